//! DataFusion's sessions: the one that plans what is maintained, and the one that computes it in batch.
//!
//! The invariant: both understand SQL alike, and neither has a rule that is known to give wrong answers. Nothing but queries is planned here;
//! what else there is in SQL has no way in.

use std::sync::Arc;

use datafusion::execution::SessionStateBuilder;
use datafusion::optimizer::Optimizer;
use datafusion::physical_optimizer::optimizer::PhysicalOptimizer;
use datafusion::prelude::{SessionConfig, SessionContext};

use super::batch::{DoubtJoins, DropRepeatedKeys};
use super::mended::mended;
use super::opaque::HideDependencies;

/// Stack of a thread that plans: DataFusion calls itself once for each level that a query nests. Only what is used of it is ever taken.
const STACK_BYTES: usize = 512 << 20;

/// Plans, or computes in batch, on a thread of its own: whoever calls may be part of an executor, and one cannot run inside another.
pub(super) fn alone<T: Send, F: Future<Output = T>>(work: impl FnOnce() -> F + Send) -> T {
    let worked = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("planning".into()).stack_size(STACK_BYTES);
        let thread = thread.spawn_scoped(scope, || {
            let runtime = tokio::runtime::Builder::new_current_thread().build();
            runtime.expect("a runtime without time and network needs nothing").block_on(work())
        });
        thread.expect("a thread can be started").join()
    });
    worked.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn config() -> SessionConfig {
    SessionConfig::new()
        .with_target_partitions(1)
        // Text stays the type that the tables have.
        .set_bool("datafusion.sql_parser.map_string_types_to_utf8view", false)
        // Identifiers are the database's: their case counts.
        .set_bool("datafusion.sql_parser.enable_ident_normalization", true)
        // Mistakes are told with their lines.
        .set_bool("datafusion.sql_parser.collect_spans", true)
        // A scalar subquery is a join: that is what can be maintained.
        .set_bool("datafusion.optimizer.enable_physical_uncorrelated_scalar_subquery", false)
}

/// Parses and optimises what is to be maintained.
pub(super) fn context() -> SessionContext {
    let mut rules = mended(Optimizer::new().rules);
    // It sums sums, and so gives a sum of decimals more digits than it was planned with.
    rules.retain(|rule| rule.name() != SINGLE_DISTINCT);
    // Before all rules, and once more where subqueries have become joins.
    let at = rules.iter().position(|rule| rule.name() == PRUNES).expect("DataFusion prunes columns");
    rules.insert(at, Arc::new(HideDependencies));
    rules.insert(0, Arc::new(HideDependencies));
    let state = SessionStateBuilder::new_with_default_features().with_config(config()).with_optimizer_rules(rules);
    SessionContext::new_with_state(state.build())
}

/// The rule that drops columns which nobody reads, and those that only seem to be determined by others (see [`super::opaque`]).
const PRUNES: &str = "optimize_projections";

const SINGLE_DISTINCT: &str = "single_distinct_aggregation_to_group_by";

/// Rules of DataFusion 54 that change answers, or panic, each with a query that it gets wrong; the batch does without them.
pub(super) const WRONG: &[&str] = &[
    // Takes the column after an expression for the key of the groups below it, and drops the others from `group by` and `order by`:
    // select label, count(*) from (select upper(x) as label, g from (select g, max(x) as x from t group by g)) group by label, g
    PRUNES,
    // Believes the same of the keys of an order, over the same projection:
    // select 2 as a, c as b from (select c from t group by c) order by a, b limit 3
    "eliminate_duplicated_expr",
    // Without that one it panics over a key that a group names twice.
    SINGLE_DISTINCT,
    // Moves a predicate through a projection and leaves the columns' numbers as they were, and so loses rows:
    // select b.x from a right join b on a.k = b.k where abs(a.k) not between 1 and 3
    "FilterPushdown",
    "FilterPushdown(Post)",
];

/// Rules without which subqueries, `distinct on`, `not in`, `coalesce` and `limit 0` cannot be executed, and a sort below a limit is lost.
const NEEDED: &[&str] = &[
    "simplify_expressions",
    "eliminate_limit",
    "push_down_limit",
    "rewrite_set_comparison",
    "replace_distinct_aggregate",
    "decorrelate_predicate_subquery",
    "scalar_subquery_to_join",
    "decorrelate_lateral_join",
    "extract_equijoin_predicate",
];

/// Computes models in batch.
pub(super) fn batch_context() -> SessionContext {
    batch_session(config())
}

/// Computes in batch, with DataFusion's own rules but for those that are known to be wrong, and those of [`super::batch`] in their place.
fn batch_session(config: SessionConfig) -> SessionContext {
    session(config, |rule| !WRONG.contains(&rule))
}

/// Computes a query as it is written: no rule moves a condition, reorders a join or drops a column, so that none can be wrong. Only what has
/// no execution of its own becomes something that has. It is for small tables.
pub(crate) fn plain_session(config: SessionConfig) -> SessionContext {
    session(config, |rule| NEEDED.contains(&rule))
}

fn session(config: SessionConfig, wanted: impl Fn(&str) -> bool) -> SessionContext {
    let mut logical = mended(Optimizer::new().rules);
    logical.retain(|rule| wanted(rule.name()));
    logical.insert(0, Arc::new(DropRepeatedKeys));
    let mut physical = PhysicalOptimizer::new().rules;
    physical.retain(|rule| !WRONG.contains(&rule.name()));
    physical.insert(0, Arc::new(DoubtJoins));
    let state = SessionStateBuilder::new_with_default_features()
        .with_config(config)
        .with_optimizer_rules(logical)
        .with_physical_optimizer_rules(physical);
    SessionContext::new_with_state(state.build())
}
