//! Joins: pairs of rows with equal keys, and the rows of a side by whether they have a partner.
//!
//! The invariant: a join without an equality is one whose key is empty. Both uses of a side that an outer join makes share its arrangement.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::{JoinType, NullEquality};
use datafusion::logical_expr::logical_plan::Join;
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::logical_expr_common::type_coercion::binary::comparison_coercion;
use datafusion::physical_expr::expressions::{CastExpr, IsNotNullExpr, IsNullExpr};

use super::{Lowered, Lowering, Physical, column, every_column, failed, refuse};
use crate::dataflow::Row;
use crate::dataflow::codec::Codec;
use crate::dataflow::graph::{Emit, NodeId, NullKeys, Operator, Stage};

/// Both sides of a join.
struct Sides {
    left: NodeId,
    right: NodeId,
    left_key: Vec<Physical>,
    right_key: Vec<Physical>,
    /// A condition on the pair, left columns first.
    filter: Option<Physical>,
    /// What the join's equality makes of null keys.
    drop: NullKeys,
}

impl Lowering<'_> {
    pub(super) fn join(&mut self, join: &Join) -> Lowered {
        use JoinType::{Full, Inner, Left, LeftAnti, LeftMark, LeftSemi, Right, RightAnti, RightMark, RightSemi};
        let (left, right) = (self.lower(&join.left)?, self.lower(&join.right)?);
        let on = |this: &Self, side: fn(&(Expr, Expr)) -> &Expr, plan: &LogicalPlan| {
            join.on.iter().map(|pair| this.physical(side(pair), plan.schema())).collect::<Lowered<Vec<_>>>()
        };
        let (left_key, right_key) = (on(self, |pair| &pair.0, &join.left)?, on(self, |pair| &pair.1, &join.right)?);
        let (left_key, right_key) = self.alike((left, left_key), (right, right_key))?;
        let sides = Sides {
            left,
            right,
            left_key,
            right_key,
            filter: match &join.filter {
                Some(filter) => {
                    let both = join.left.schema().join(join.right.schema()).map_err(|e| failed(&e))?;
                    Some(self.physical(filter, &both)?)
                }
                None => None,
            },
            drop: match join.null_equality {
                NullEquality::NullEqualsNothing => NullKeys::Drop,
                NullEquality::NullEqualsNull => NullKeys::Keep,
            },
        };
        if join.null_aware {
            return self.not_in(&sides);
        }
        let schema: SchemaRef = Arc::new(join.schema.as_arrow().clone());
        let nothing = || Row::from([]);
        match join.join_type {
            Inner => Ok(self.inner(&sides, false, false)),
            LeftSemi => Ok(self.presence(&sides, true, Emit::Present)),
            RightSemi => Ok(self.presence(&sides, false, Emit::Present)),
            LeftAnti => Ok(self.presence(&sides, true, Emit::Absent { before: nothing(), after: nothing() })),
            RightAnti => Ok(self.presence(&sides, false, Emit::Absent { before: nothing(), after: nothing() })),
            LeftMark | RightMark => {
                let emit = Emit::Mark { present: flag(true), absent: flag(false) };
                let node = self.presence(&sides, join.join_type == LeftMark, emit);
                Ok(node)
            }
            Left | Right | Full => {
                let (keep_left, keep_right) = (join.join_type != Right, join.join_type != Left);
                let mut inputs = vec![self.inner(&sides, keep_left, keep_right)];
                if keep_left {
                    let after = Codec::new(self.graph.schema(right)).nulls();
                    inputs.push(self.presence(&sides, true, Emit::Absent { before: nothing(), after }));
                }
                if keep_right {
                    let before = Codec::new(self.graph.schema(left)).nulls();
                    inputs.push(self.presence(&sides, false, Emit::Absent { before, after: nothing() }));
                }
                Ok(self.add(Operator::Union { inputs }, schema))
            }
        }
    }

    /// The keys of two sides with the same types: keys are compared as bytes. DataFusion 54 gives a union its columns' types after it has compared
    /// them with others, and so leaves keys of an int and a bigint.
    fn alike(
        &self,
        left: (NodeId, Vec<Physical>),
        right: (NodeId, Vec<Physical>),
    ) -> Lowered<(Vec<Physical>, Vec<Physical>)> {
        let pairs = left.1.into_iter().zip(right.1).map(|(l, r)| {
            let of = |key: &Physical, node| key.data_type(self.graph.schema(node)).map_err(|e| failed(&e));
            let (of_left, of_right) = (of(&l, left.0)?, of(&r, right.0)?);
            if of_left == of_right {
                return Ok((l, r));
            }
            let Some(common) = comparison_coercion(&of_left, &of_right) else {
                return refuse("join", format!("a {of_left} cannot be equal to a {of_right}"));
            };
            let cast = |key: Physical, ty: &DataType| match *ty == common {
                true => key,
                false => Arc::new(CastExpr::new(key, common.clone(), None)) as Physical,
            };
            Ok((cast(l, &of_left), cast(r, &of_right)))
        });
        Ok(pairs.collect::<Lowered<Vec<_>>>()?.into_iter().unzip())
    }

    /// The pairs that match. Of a side whose rows are kept without a partner too, null keys stay in its arrangement, so that both uses share
    /// it; it is enough that the other side has none.
    fn inner(&mut self, sides: &Sides, keep_left: bool, keep_right: bool) -> NodeId {
        let nulls = |keep: bool| if keep { NullKeys::Keep } else { sides.drop };
        let schema = self.pair_schema(sides);
        let left = self.keyed(sides.left, sides.left_key.clone(), nulls(keep_left), None);
        let right = self.keyed(sides.right, sides.right_key.clone(), nulls(keep_right && !keep_left), None);
        let pairs = self.add(Operator::Join { left, right }, schema.clone());
        let stages = sides.filter.iter().map(|f| Stage::Filter(f.clone())).collect();
        self.linear(pairs, stages, schema)
    }

    fn pair_schema(&self, sides: &Sides) -> SchemaRef {
        let fields = [sides.left, sides.right].map(|side| self.graph.schema(side).fields().iter().cloned());
        Arc::new(Schema::new(fields.into_iter().flatten().collect::<Vec<_>>()))
    }

    /// The rows of one side by whether the other has a partner for them.
    fn presence(&mut self, sides: &Sides, of_left: bool, emit: Emit) -> NodeId {
        let (this, other) = if of_left { (sides.left, sides.right) } else { (sides.right, sides.left) };
        let (this_key, other_key) =
            if of_left { (&sides.left_key, &sides.right_key) } else { (&sides.right_key, &sides.left_key) };
        let (rows, keys) = if sides.filter.is_none() {
            let rows = self.keyed(this, this_key.clone(), NullKeys::Keep, None);
            (rows, self.keyed(other, other_key.clone(), sides.drop, None))
        } else {
            // With a condition on the pair, a row has a partner if it is part of a pair: the whole row is the key.
            let pairs = self.inner(sides, false, false);
            let schema = self.graph.schema(this).clone();
            let first = if of_left { 0 } else { self.graph.schema(sides.left).fields().len() };
            let pair_schema = self.graph.schema(pairs).clone();
            let exprs = (first..first + schema.fields().len()).map(|n| column(&pair_schema, n)).collect();
            let matched = self.linear(pairs, vec![Stage::Project(exprs, schema.clone())], schema.clone());
            let rows = self.keyed(this, every_column(&schema), NullKeys::Keep, None);
            (rows, self.keyed(matched, every_column(&schema), NullKeys::Keep, Some(0..0)))
        };
        let mut fields: Vec<Arc<Field>> = self.graph.schema(this).fields().iter().cloned().collect();
        match &emit {
            Emit::Mark { .. } => fields.push(Arc::new(Field::new("mark", DataType::Boolean, false))),
            Emit::Absent { before, after } if !before.is_empty() || !after.is_empty() => {
                fields = self.pair_schema(sides).fields().iter().cloned().collect();
            }
            _ => {}
        }
        self.add(Operator::Presence { rows, keys, emit }, Arc::new(Schema::new(fields)))
    }

    /// `x NOT IN (select y ...)`: no row if any y is null; a row whose x is null only if there is no y at all.
    fn not_in(&mut self, sides: &Sides) -> Lowered {
        let ([left_key], [right_key], None) =
            (sides.left_key.as_slice(), sides.right_key.as_slice(), sides.filter.as_ref())
        else {
            let reason = "NOT IN, where columns can be null, with a correlated subquery or a constant on its left; write NOT EXISTS";
            return refuse("not in", reason);
        };
        let absent = || Emit::Absent { before: Row::from([]), after: Row::from([]) };
        let schema = self.graph.schema(sides.left).clone();
        let right_schema = self.graph.schema(sides.right).clone();
        let unmatched = self.presence(sides, true, absent());
        let nulls = Stage::Filter(Arc::new(IsNullExpr::new(right_key.clone())) as Physical);
        let null_keys = self.linear(sides.right, vec![nulls], right_schema);
        let null_keys = self.keyed(null_keys, vec![], NullKeys::Keep, Some(0..0));
        let rows = self.keyed(unmatched, vec![], NullKeys::Keep, None);
        let without_nulls = self.add(Operator::Presence { rows, keys: null_keys, emit: absent() }, schema.clone());
        let known = Stage::Filter(Arc::new(IsNotNullExpr::new(left_key.clone())) as Physical);
        let unknown = Stage::Filter(Arc::new(IsNullExpr::new(left_key.clone())) as Physical);
        let known = self.linear(without_nulls, vec![known], schema.clone());
        let unknown = self.linear(without_nulls, vec![unknown], schema.clone());
        let rows = self.keyed(unknown, vec![], NullKeys::Keep, None);
        let keys = self.keyed(sides.right, vec![], NullKeys::Keep, Some(0..0));
        let unknown = self.add(Operator::Presence { rows, keys, emit: absent() }, schema.clone());
        Ok(self.add(Operator::Union { inputs: vec![known, unknown] }, schema))
    }
}

/// The row bytes of one flag.
fn flag(value: bool) -> Row {
    let codec = Codec::new(&Schema::new(vec![Field::new("mark", DataType::Boolean, false)]));
    let mut row = Row::from([]);
    let column: ArrayRef = Arc::new(BooleanArray::from(vec![value]));
    codec.encode(&[column], 1, |bytes| row = bytes.into()).expect("a flag is a boolean");
    row
}
