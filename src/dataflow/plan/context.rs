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
    let mut rules = Optimizer::new().rules;
    // Before all rules, and once more where subqueries have become joins.
    let at = rules.iter().position(|rule| rule.name() == WRONG[0]).expect("DataFusion prunes columns");
    rules.insert(at, Arc::new(HideDependencies));
    rules.insert(0, Arc::new(HideDependencies));
    let state = SessionStateBuilder::new_with_default_features().with_config(config()).with_optimizer_rules(rules);
    SessionContext::new_with_state(state.build())
}

/// DataFusion's rules that drop columns which only seem to be determined by others (see [`super::opaque`]). The first one also drops those
/// that nobody reads; without the second one the third panics over a key that a group names twice.
const WRONG: &[&str] =
    &["optimize_projections", "eliminate_duplicated_expr", "single_distinct_aggregation_to_group_by"];

/// Rules of DataFusion's physical optimiser that lose rows: a predicate that is moved through a projection keeps its columns' numbers.
const WRONG_IN_BATCH: &[&str] = &["FilterPushdown", "FilterPushdown(Post)"];

/// Computes in batch, without the rules that are known to give wrong answers.
pub(super) fn batch_context() -> SessionContext {
    let mut logical = Optimizer::new().rules;
    logical.retain(|rule| !WRONG.contains(&rule.name()));
    logical.insert(0, Arc::new(DropRepeatedKeys));
    let mut physical = PhysicalOptimizer::new().rules;
    physical.retain(|rule| !WRONG_IN_BATCH.contains(&rule.name()));
    physical.insert(0, Arc::new(DoubtJoins));
    let state = SessionStateBuilder::new_with_default_features()
        .with_config(config())
        .with_optimizer_rules(logical)
        .with_physical_optimizer_rules(physical);
    SessionContext::new_with_state(state.build())
}
