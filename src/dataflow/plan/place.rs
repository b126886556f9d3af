//! Where in a query a mistake is, when the error does not say: at the expression that it goes away without.
//!
//! The invariant: a place is only looked for once there is an error, by planning the query again with one expression after the other in the
//! place of which null stands; first those that stand for themselves, then what is inside of the one that is to blame. It is slow and exact,
//! where a search for words would be misled by the same word elsewhere.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{self, Expr, Spanned, Value, Visit, VisitMut, Visitor, VisitorMut};
use datafusion::sql::sqlparser::tokenizer::Location;

/// What has become of an error in a query that was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Same,
    /// It is gone, and nothing came in its place.
    Gone,
    /// It is gone, and there are others.
    Other,
}

/// Expressions that are tried at one level.
const TRIED_MAX: usize = 500;

/// The line of the expression that is to blame, from 1, among those that `may` be; `changed` says what is left of the error in a query. `None` if
/// it is none of them.
pub(super) async fn blamed(
    query: &ast::Query,
    may: impl Fn(&Expr) -> bool,
    changed: impl AsyncFn(&ast::Query) -> Change,
) -> Option<u64> {
    let mut numbered = Numbered { may, nodes: Vec::new(), open: Vec::new() };
    let _: ControlFlow<()> = query.visit(&mut numbered);
    let nodes = numbered.nodes;
    let mut at: Option<usize> = None;
    loop {
        let (mut gone, mut other) = (Vec::new(), Vec::new());
        for n in (0..nodes.len()).filter(|n| nodes[*n].parent == at && nodes[*n].may).take(TRIED_MAX) {
            match changed(&without(query, n)).await {
                Change::Gone => gone.push(n),
                Change::Other => other.push(n),
                Change::Same => {}
            }
            if at.is_none() && !gone.is_empty() {
                break;
            }
        }
        at = match (at, gone.as_slice(), other.as_slice()) {
            (None, [first, ..], _) | (None, [], [first, ..]) | (Some(_), [first], _) => Some(*first),
            // Each of several operands would do: it is their operator.
            (Some(blamed), ..) => return line_of(&nodes, blamed),
            (None, [], []) => return None,
        };
    }
}

struct Node {
    parent: Option<usize>,
    /// 0 where the parser does not tell.
    line: u64,
    may: bool,
}

/// Numbers expressions in the order in which they are visited.
struct Numbered<F> {
    may: F,
    nodes: Vec<Node>,
    open: Vec<usize>,
}

impl<F: Fn(&Expr) -> bool> Visitor for Numbered<F> {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        let node = Node { parent: self.open.last().copied(), line: expr.span().start.line, may: (self.may)(expr) };
        self.open.push(self.nodes.len());
        self.nodes.push(node);
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, _: &Expr) -> ControlFlow<()> {
        self.open.pop();
        ControlFlow::Continue(())
    }
}

/// Its own line; else that of what stands in it, or around it.
fn line_of(nodes: &[Node], n: usize) -> Option<u64> {
    let is_inside = |mut m: usize| loop {
        match nodes[m].parent {
            Some(parent) if parent == n => return true,
            Some(parent) => m = parent,
            None => return false,
        }
    };
    let own = Some(nodes[n].line).filter(|line| *line > 0);
    let inside = || (n + 1..nodes.len()).take_while(|m| is_inside(*m)).map(|m| nodes[m].line).find(|line| *line > 0);
    let around = || nodes[n].parent.and_then(|parent| line_of(nodes, parent));
    own.or_else(inside).or_else(around)
}

/// The query with null for the expression of this number.
fn without(query: &ast::Query, number: usize) -> ast::Query {
    struct Replace(usize);
    impl VisitorMut for Replace {
        type Break = ();

        fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
            if self.0 == 0 {
                *expr = Expr::Value(Value::Null.into());
                return ControlFlow::Break(());
            }
            self.0 -= 1;
            ControlFlow::Continue(())
        }
    }
    let mut query = query.clone();
    let _ = VisitMut::visit(&mut query, &mut Replace(number));
    query
}

/// Puts null in the place of the smallest expression that begins here.
pub(super) fn forget(query: &mut ast::Query, start: Location) {
    struct Forget(Location);
    impl VisitorMut for Forget {
        type Break = ();

        fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
            if expr.span().start != self.0 {
                return ControlFlow::Continue(());
            }
            *expr = Expr::Value(Value::Null.into());
            ControlFlow::Break(())
        }
    }
    let _ = VisitMut::visit(query, &mut Forget(start));
}
