//! Operators with state of their own, which changes one whole epoch at a time.
//!
//! The invariant: an epoch's updates are applied together, consolidated, once no more of them can come, and epochs in their order. Times are
//! totally ordered, so one version of the state is all that is ever needed.

use std::collections::BTreeMap;

use differential_dataflow::consolidation::consolidate;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::Stream;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::Operator;

use super::Row;

/// Records with the epoch that they change in, and their diffs.
pub(super) type Updates<D> = Vec<(D, u64, isize)>;

/// A stream of updates.
pub(super) type Diffs<'scope, D> = Stream<'scope, u64, Updates<D>>;

/// What came of epochs that are not over, and the right to speak at their time.
pub(super) struct Waiting<D>(BTreeMap<u64, (Capability<u64>, Vec<D>)>);

impl<D> Default for Waiting<D> {
    fn default() -> Self {
        Waiting(BTreeMap::new())
    }
}

impl<D> Waiting<D> {
    pub fn push(&mut self, time: u64, item: D, capability: &Capability<u64>) {
        self.0.entry(time).or_insert_with(|| (capability.delayed(&time), Vec::new())).1.push(item);
    }

    /// The first epoch that is over, by a frontier; `None` is the frontier of a stream that has ended.
    pub fn next(&mut self, frontier: Option<u64>) -> Option<(u64, Capability<u64>, Vec<D>)> {
        let entry = self.0.first_entry().filter(|e| frontier.is_none_or(|f| *e.key() < f))?;
        let (time, (capability, items)) = entry.remove_entry();
        Some((time, capability, items))
    }
}

/// Applies `logic` to each epoch's updates; what it pushes are the output's updates in that epoch.
pub(super) fn by_epoch<'scope, D, L>(stream: Diffs<'scope, D>, name: &str, mut logic: L) -> Diffs<'scope, Row>
where
    D: Ord + Clone + 'static,
    L: FnMut(u64, Vec<(D, isize)>, &mut Vec<(Row, isize)>) + 'static,
{
    let mut waiting: Waiting<(D, isize)> = Waiting::default();
    stream.unary_frontier::<CapacityContainerBuilder<Updates<Row>>, _, _, _>(Pipeline, name, |_, _| {
        move |(input, frontier), output| {
            input.for_each(|capability, updates| {
                let Some(capability) = capability.retain_least(0) else { return };
                for (record, time, diff) in updates.drain(..) {
                    waiting.push(time, (record, diff), &capability);
                }
            });
            let frontier = frontier.frontier().first().copied();
            let mut out = Vec::new();
            while let Some((time, capability, mut updates)) = waiting.next(frontier) {
                consolidate(&mut updates);
                logic(time, updates, &mut out);
                output.session(&capability).give_iterator(out.drain(..).map(|(row, diff)| (row, time, diff)));
            }
        }
    })
}
