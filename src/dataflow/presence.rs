//! Presence splits the rows of one collection by whether another one has their key: semi, anti and mark joins, and the part of an outer
//! join that finds no partner.
//!
//! The invariant: a row comes out once for each time that it is there, under the answer that holds at the end of the epoch. A key that
//! appears or goes costs the rows that have it; a row costs one look at its key.

use std::collections::BTreeMap;

use ahash::AHashMap;
use differential_dataflow::consolidation::consolidate;
use differential_dataflow::operators::arrange::{Arranged, TraceAgent};
use differential_dataflow::trace::cursor::cursor_list;
use differential_dataflow::trace::implementations::ValSpine;
use differential_dataflow::trace::{Cursor, Navigable, TraceReader};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::Operator;
use timely::progress::Antichain;

use super::Row;
use super::epochs::{Diffs, Updates, Waiting};
use super::graph::Emit;
use super::key::{Key, Value};
use super::stats::{Share, Size};

/// Rows by key, as differential keeps and shares them.
pub(super) type Arrangement = ValSpine<Key, Value, u64, isize>;

/// The rows of `rows` by whether `keys` has their key.
pub(super) fn presence<'scope>(
    rows: Arranged<'scope, TraceAgent<Arrangement>>,
    keys: Diffs<'scope, (Key, Value)>,
    emit: Emit,
    mut share: Share,
) -> Diffs<'scope, Row> {
    let mut trace = rows.trace.clone();
    let mut upper = Antichain::from_elem(0_u64);
    let mut changed_rows: Waiting<(Key, Value, isize)> = Waiting::default();
    let mut changed_keys: Waiting<(Key, isize)> = Waiting::default();
    let mut counts: AHashMap<Key, i64> = AHashMap::new();
    let mut size = Size::default();
    rows.stream.binary_frontier::<_, CapacityContainerBuilder<Updates<Row>>, _, _, _, _>(
        keys,
        Pipeline,
        Pipeline,
        "presence",
        move |_, _| {
            move |(input, rows_frontier), (keys, keys_frontier), output| {
                input.for_each(|capability, batches| {
                    let capability = capability.retain_least(0);
                    for span in batches.drain(..) {
                        upper.clone_from(span.upper());
                        let (Some(batch), Some(capability)) = (&span.inner, &capability) else { continue };
                        let mut cursor = batch.cursor();
                        while let Some(key) = cursor.get_key(batch) {
                            while let Some(row) = cursor.get_val(batch) {
                                cursor.map_times(batch, |time, diff| {
                                    changed_rows.push(*time, (key.clone(), row.clone(), *diff), capability);
                                });
                                cursor.step_val(batch);
                            }
                            cursor.step_key(batch);
                        }
                    }
                });
                keys.for_each(|capability, updates| {
                    let Some(capability) = capability.retain_least(0) else { return };
                    for ((key, _), time, diff) in updates.drain(..) {
                        changed_keys.push(time, (key, diff), &capability);
                    }
                });
                let first =
                    |frontier: &timely::progress::frontier::MutableAntichain<u64>| frontier.frontier().first().copied();
                let frontier = match (first(rows_frontier), first(keys_frontier)) {
                    (Some(a), Some(b)) => Some(a.min(b)),
                    (one, None) | (None, one) => one,
                };
                // Both queues by time, so that an epoch is taken whole.
                let mut epochs = BTreeMap::new();
                while let Some((time, capability, rows)) = changed_rows.next(frontier) {
                    epochs.insert(time, (capability, rows, Vec::new()));
                }
                while let Some((time, capability, keys)) = changed_keys.next(frontier) {
                    epochs.entry(time).or_insert_with(|| (capability, Vec::new(), Vec::new())).2 = keys;
                }
                for (time, (capability, rows, keys)) in epochs {
                    let mut out: Vec<(Row, isize)> = Vec::new();
                    let mut give = |row: &Row, present: bool, diff: isize| {
                        if let Some(row) = emit.row(row, present) {
                            out.push((row, diff));
                        }
                    };
                    let flipped = flip(&mut counts, &mut size, keys);
                    if !flipped.is_empty() {
                        let batches =
                            trace.batches_through(upper.borrow()).expect("the trace is held at this frontier");
                        let (mut cursor, storage) = cursor_list(batches);
                        for (key, present) in &flipped {
                            cursor.seek_key(&storage, key);
                            if cursor.get_key(&storage) != Some(key) {
                                continue;
                            }
                            while let Some(row) = cursor.get_val(&storage) {
                                let mut before = 0;
                                cursor.map_times(&storage, |at, diff| before += if *at < time { *diff } else { 0 });
                                if before != 0 {
                                    give(&row.row, !present, -before);
                                    give(&row.row, *present, before);
                                }
                                cursor.step_val(&storage);
                            }
                        }
                    }
                    for (key, row, diff) in &rows {
                        give(&row.row, counts.contains_key(key), *diff);
                    }
                    consolidate(&mut out);
                    share.updates(out.len());
                    output.session(&capability).give_iterator(out.into_iter().map(|(row, diff)| (row, time, diff)));
                }
                share.holds(size);
                // An epoch is asked for what came before it: times are kept apart from the last settled one on.
                trace.advance_upper(&mut upper);
                let settled = frontier.map_or_else(Antichain::new, |f| Antichain::from_elem(f.saturating_sub(1)));
                trace.set_logical_compaction(settled.borrow());
                trace.set_physical_compaction(upper.borrow());
            }
        },
    )
}

/// Counts keys, and gives those that appeared (true) or went, in order.
fn flip(counts: &mut AHashMap<Key, i64>, size: &mut Size, mut changes: Vec<(Key, isize)>) -> Vec<(Key, bool)> {
    consolidate(&mut changes);
    let mut flipped = Vec::new();
    for (key, diff) in changes {
        let before = counts.get(&key).copied().unwrap_or(0);
        let after = before + diff as i64;
        if after == 0 {
            counts.remove(&key);
        } else {
            counts.insert(key.clone(), after);
        }
        if before == 0 {
            size.add(key.len());
        } else if after == 0 {
            size.remove(key.len());
        }
        if (before == 0) != (after == 0) {
            flipped.push((key, after != 0));
        }
    }
    flipped
}

impl Emit {
    fn row(&self, row: &Row, present: bool) -> Option<Row> {
        let concat = super::codec::concat;
        match self {
            Emit::Present => present.then(|| row.clone()),
            Emit::Absent { before, after } if before.is_empty() && after.is_empty() => (!present).then(|| row.clone()),
            Emit::Absent { before, after } => {
                (!present).then(|| if before.is_empty() { concat(row, after) } else { concat(before, row) })
            }
            Emit::Mark { present: yes, absent: no } => Some(concat(row, if present { yes } else { no })),
        }
    }
}
