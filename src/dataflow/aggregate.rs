//! Aggregate keeps, for every key, what its functions need to know of the key's rows, and emits one row for each key that has any.
//!
//! The invariant: what it has emitted so far sums up to the present row of every group. A group of the empty key (an aggregate without GROUP
//! BY) is always there: its row over nothing is a constant beside this operator.

use ahash::AHashMap;
use arrow::array::ArrayRef;
use arrow::datatypes::SchemaRef;
use datafusion::error::Result;

use super::Row;
use super::accumulator::{Accumulator, AggregateCall, Answer};
use super::codec::{Codec, concat, converter};
use super::key::{Key, Value};
use super::stats::Size;

pub(super) struct Aggregate {
    calls: Vec<AggregateCall>,
    arguments: Codec,
    groups: AHashMap<Key, Group>,
    size: Size,
    /// Whether the empty key has a row without having rows.
    always: bool,
    null_row: Row,
}

struct Group {
    rows: i64,
    accumulators: Box<[Accumulator]>,
}

/// What an epoch's updates came to.
#[derive(Default)]
pub(super) struct Applied {
    pub out: Vec<(Row, isize)>,
    /// Keys that have no row because a function failed: key, reason, diff.
    pub failed: Vec<(Row, String, isize)>,
}

/// The results of a group, or why there are none.
type Results = std::result::Result<Vec<Answer>, String>;

impl Aggregate {
    pub fn new(calls: Vec<AggregateCall>, arguments: &SchemaRef, always: bool) -> Aggregate {
        Aggregate {
            calls,
            arguments: Codec::new(arguments),
            groups: AHashMap::new(),
            size: Size::default(),
            always,
            null_row: Row::from([]),
        }
    }

    /// The row of a group without rows.
    pub fn row_over_nothing(&self) -> Result<Row> {
        let results = self.results(&self.empty()).map_err(datafusion::error::DataFusionError::Execution)?;
        let mut row = self.null_row.clone();
        self.encode(vec![results], |bytes| row = bytes.into())?;
        Ok(row)
    }

    fn empty(&self) -> Group {
        Group { rows: 0, accumulators: self.calls.iter().map(AggregateCall::empty).collect() }
    }

    /// Applies an epoch's updates, which are sorted; what comes back are the diffs of the groups' rows, and of groups that failed.
    pub fn apply(&mut self, updates: &[((Key, Value), isize)]) -> Result<Applied> {
        let arguments = self.arguments.decode(updates.iter().map(|((_, value), _)| &*value.row))?;
        let prepared = self.calls.iter().map(|c| c.prepare(&arguments)).collect::<Result<Vec<_>>>()?;
        let mut changes: Vec<(Key, isize, Results)> = Vec::new();
        let mut start = 0;
        while start < updates.len() {
            let key = &updates[start].0.0;
            let end = start + updates[start..].iter().take_while(|((k, _), _)| k == key).count();
            let always = self.always && key.is_empty();
            let mut group = match self.groups.remove(key) {
                Some(group) => {
                    self.size.remove(key.len());
                    changes.push((key.clone(), -1, self.results(&group)));
                    group
                }
                None => {
                    let group = self.empty();
                    if always {
                        changes.push((key.clone(), -1, self.results(&group)));
                    }
                    group
                }
            };
            for (n, (_, diff)) in updates.iter().enumerate().take(end).skip(start) {
                group.rows += *diff as i64;
                for (accumulator, prepared) in group.accumulators.iter_mut().zip(&prepared) {
                    AggregateCall::apply(accumulator, prepared, n, *diff as i64, &mut self.size);
                }
            }
            if group.rows > 0 || always {
                changes.push((key.clone(), 1, self.results(&group)));
            }
            if group.rows != 0 {
                self.size.add(key.len());
                self.groups.insert(key.clone(), group);
            }
            start = end;
        }
        self.emit(changes)
    }

    pub fn size(&self) -> Size {
        self.size
    }

    fn results(&self, group: &Group) -> Results {
        let columns = self.arguments.schema();
        self.calls.iter().enumerate().map(|(n, call)| call.result(n, &group.accumulators, columns)).collect()
    }

    fn emit(&self, changes: Vec<(Key, isize, Results)>) -> Result<Applied> {
        let (mut keys, mut results, mut failed) = (Vec::with_capacity(changes.len()), Vec::new(), Vec::new());
        for (key, diff, result) in changes {
            match result {
                Ok(values) => {
                    keys.push((key, diff));
                    results.push(values);
                }
                Err(reason) => failed.push((Row::from(&*key), reason, diff)),
            }
        }
        let mut out = Vec::with_capacity(keys.len());
        let mut next = keys.iter();
        self.encode(results, |bytes| {
            let (key, diff) = next.next().expect("as many rows as keys");
            out.push((concat(key, bytes), *diff));
        })?;
        // A group whose row is what it was says nothing.
        out.dedup_by(|b, a| {
            let same = a.0 == b.0;
            if same {
                a.1 += b.1;
            }
            same
        });
        out.retain(|(_, diff)| *diff != 0);
        Ok(Applied { out, failed })
    }

    fn encode(&self, rows: Vec<Vec<Answer>>, mut each: impl FnMut(&[u8])) -> Result<()> {
        let count = rows.len();
        if self.calls.is_empty() || count == 0 {
            (0..count).for_each(|_| each(&[]));
            return Ok(());
        }
        let mut columns: Vec<Vec<Answer>> = self.calls.iter().map(|_| Vec::with_capacity(count)).collect();
        for row in rows {
            row.into_iter().zip(&mut columns).for_each(|(value, column)| column.push(value));
        }
        let columns: Vec<ArrayRef> =
            self.calls.iter().zip(columns).map(|(call, values)| call.column(values)).collect::<Result<_>>()?;
        let encoded = converter(columns.iter().map(|c| c.data_type())).convert_columns(&columns)?;
        encoded.iter().for_each(|row| each(row.data()));
        Ok(())
    }
}
