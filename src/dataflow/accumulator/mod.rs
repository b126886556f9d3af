//! Accumulators hold what one aggregate function needs to know of one group, and take rows back as well as they take them in.
//!
//! The invariant: the state depends on the group's rows alone, never on the order in which they came or went. Counts, sums and averages are
//! numbers (sums of floating point are exact); minimum, maximum and distinct counts are sorted multisets, so that a change costs a logarithm;
//! every other function is DataFusion's own, over the group's rows in order.

mod answer;

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::Arc;

use arrow::array::cast::AsArray;
use arrow::array::{
    Array, ArrayRef, BooleanArray, Decimal128Array, Float64Array, Int64Array, RecordBatch, UInt64Array,
};
use arrow::compute::{SortOptions, and, is_not_null, prep_null_mask_filter, take};
use arrow::datatypes::{DataType, Decimal128Type, Float64Type, Int64Type, Schema, UInt64Type};
use arrow_row::{RowConverter, Rows, SortField};
use datafusion::common::ScalarValue;
use datafusion::common::cast::as_boolean_array;
use datafusion::error::Result;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion::physical_expr::expressions::Literal;

pub(super) use self::answer::Answer;
use super::exact::ExactSum;
use super::stats::Size;

/// One aggregate function, and where its arguments stand.
#[derive(Clone, Debug)]
pub(super) struct AggregateCall {
    /// The function without its order: rows are handed to it in order.
    function: Arc<AggregateFunctionExpr>,
    kind: Kind,
    arguments: Vec<Argument>,
    /// The order of the rows that a general function is handed.
    order: Vec<(usize, SortOptions)>,
    /// Columns that the rows of a sorted multiset have behind their order: the arguments, and what else tells rows of equal order apart.
    values: Vec<usize>,
    /// The call that keeps the rows for this one too; `None` keeps its own.
    holder: Option<usize>,
    filter: Option<usize>,
    argument_types: Vec<DataType>,
}

#[derive(Clone, Debug)]
enum Argument {
    Column(usize),
    Constant(ScalarValue),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Count,
    CountDistinct,
    /// Sums of whole numbers and decimals: exact integers that wrap as DataFusion's do.
    SumInteger,
    SumFloat,
    AverageFloat,
    /// The power of ten that the sum is scaled by.
    AverageDecimal {
        factor: u32,
    },
    Minimum,
    Maximum,
    And,
    Or,
    /// DataFusion's accumulator over all rows of the group.
    General {
        distinct: bool,
    },
}

/// What one call knows of one group.
#[derive(Debug)]
pub(super) enum Accumulator {
    Count(i64),
    Integer {
        sum: i128,
        count: i64,
    },
    Float {
        sum: Box<ExactSum>,
        count: i64,
    },
    Flags {
        yes: i64,
        no: i64,
    },
    /// Values in their order, and how often each is there.
    Sorted(BTreeMap<Box<[u8]>, i64>),
    /// Another call has what this one needs to know.
    Held,
}

/// The arguments of a batch of rows, ready to be taken one by one.
pub(super) struct Prepared {
    /// Rows that the call looks at; `None` is all.
    counted: Option<BooleanArray>,
    values: Values,
}

enum Values {
    None,
    Int64(Int64Array),
    UInt64(UInt64Array),
    Decimal(Decimal128Array),
    Float(Float64Array),
    Flag(BooleanArray),
    Bytes(Rows),
}

impl Argument {
    fn column(&self) -> Option<usize> {
        match self {
            Argument::Column(column) => Some(*column),
            Argument::Constant(_) => None,
        }
    }
}

impl AggregateCall {
    /// Makes a call of DataFusion's expression; the columns that it needs are added to `columns`, unless they are there already.
    pub fn new(
        function: Arc<AggregateFunctionExpr>,
        distinct: bool,
        filter: Option<Arc<dyn PhysicalExpr>>,
        order: &[(Arc<dyn PhysicalExpr>, SortOptions)],
        input: &Schema,
        columns: &mut Vec<Arc<dyn PhysicalExpr>>,
    ) -> Result<AggregateCall> {
        let mut column = |expr: &Arc<dyn PhysicalExpr>| {
            columns.iter().position(|known| known == expr).unwrap_or_else(|| {
                columns.push(expr.clone());
                columns.len() - 1
            })
        };
        let expressions = function.expressions();
        let argument_types = expressions.iter().map(|e| e.data_type(input)).collect::<Result<Vec<_>>>()?;
        // A constant is a column like any other where it is all that a function has; count only asks whether it is null.
        let only_counted = function.fun().name() == "count" && !distinct;
        let arguments = expressions
            .iter()
            .enumerate()
            .map(|(n, e)| match e.downcast_ref::<Literal>() {
                Some(literal) if n > 0 || only_counted => Argument::Constant(literal.value().clone()),
                _ => Argument::Column(column(e)),
            })
            .collect::<Vec<_>>();
        let order: Vec<_> = order.iter().map(|(e, options)| (column(e), *options)).collect();
        let filter = filter.map(|f| column(&f));
        let result = function.field().data_type().clone();
        let kind = match (function.fun().name(), distinct, argument_types.as_slice(), &result) {
            ("count", false, ..) => Kind::Count,
            ("count", true, ..) => Kind::CountDistinct,
            ("sum", false, [DataType::Int64 | DataType::UInt64 | DataType::Decimal128(..)], _) => Kind::SumInteger,
            ("sum", false, [DataType::Float64], _) => Kind::SumFloat,
            ("avg", false, [DataType::Float64], _) => Kind::AverageFloat,
            ("avg", false, [DataType::Decimal128(_, from)], DataType::Decimal128(_, to)) if to >= from => {
                Kind::AverageDecimal { factor: (to - from) as u32 }
            }
            ("min", _, [_], _) => Kind::Minimum,
            ("max", _, [_], _) => Kind::Maximum,
            ("bool_and", _, [DataType::Boolean], _) => Kind::And,
            ("bool_or", _, [DataType::Boolean], _) => Kind::Or,
            _ => Kind::General { distinct },
        };
        // The fast paths read columns; a constant argument among them is rare enough for the general one.
        let constant = arguments.iter().any(|a| matches!(a, Argument::Constant(_)));
        let kind = if constant && kind != Kind::Count { Kind::General { distinct } } else { kind };
        // All others say the same of the rows in any order.
        let order = if matches!(kind, Kind::General { .. }) { order } else { vec![] };
        let values = arguments.iter().filter_map(Argument::column).collect();
        Ok(AggregateCall { function, kind, arguments, order, values, holder: None, filter, argument_types })
    }

    /// Brings the calls of one aggregate together. Those with the same order have to see rows of equal order in the same order, or what
    /// they say of a group would be of several rows: the arguments of all of them tell such rows apart. The first call keeps the rows.
    pub fn share_rows(calls: &mut [AggregateCall]) {
        let known = calls.to_vec();
        let ordered = |call: &AggregateCall| call.kind == Kind::General { distinct: false } && !call.order.is_empty();
        for (n, call) in calls.iter_mut().enumerate().filter(|(_, call)| ordered(call)) {
            let alike = known.iter().enumerate().filter(|(_, other)| ordered(other) && other.order == call.order);
            let mut seen = HashSet::new();
            let values = alike.clone().flat_map(|(_, other)| &other.values);
            call.values = values.copied().filter(|column| seen.insert(*column)).collect();
            let mut before = alike.take_while(|(at, _)| *at < n);
            call.holder = before.find(|(_, other)| other.filter == call.filter).map(|(at, _)| at);
        }
    }

    /// The state of a group without rows.
    pub fn empty(&self) -> Accumulator {
        match self.kind {
            _ if self.holder.is_some() => Accumulator::Held,
            Kind::Count => Accumulator::Count(0),
            Kind::SumInteger | Kind::AverageDecimal { .. } => Accumulator::Integer { sum: 0, count: 0 },
            Kind::SumFloat | Kind::AverageFloat => Accumulator::Float { sum: Box::default(), count: 0 },
            Kind::And | Kind::Or => Accumulator::Flags { yes: 0, no: 0 },
            Kind::CountDistinct | Kind::Minimum | Kind::Maximum | Kind::General { .. } => {
                Accumulator::Sorted(BTreeMap::new())
            }
        }
    }

    /// How the rows of a sorted multiset are written: the order's columns, then the others.
    fn sorted(&self, columns: &Schema) -> Result<RowConverter> {
        let mut fields: Vec<SortField> = self
            .order
            .iter()
            .map(|(c, options)| SortField::new_with_options(columns.field(*c).data_type().clone(), *options))
            .collect();
        fields.extend(self.values.iter().map(|c| SortField::new(columns.field(*c).data_type().clone())));
        Ok(RowConverter::new(fields)?)
    }

    fn argument_columns(&self) -> impl Iterator<Item = usize> {
        self.arguments.iter().filter_map(Argument::column)
    }

    pub fn prepare(&self, batch: &RecordBatch) -> Result<Prepared> {
        let mut counted: Option<BooleanArray> = None;
        let mut only = |mask: BooleanArray| -> Result<()> {
            counted = Some(match &counted {
                Some(before) => and(before, &mask)?,
                None => mask,
            });
            Ok(())
        };
        if let Some(filter) = self.filter {
            let mask = as_boolean_array(batch.column(filter))?;
            only(if mask.null_count() > 0 { prep_null_mask_filter(mask) } else { mask.clone() })?;
        }
        if !matches!(self.kind, Kind::General { .. }) {
            for column in self.argument_columns().map(|c| batch.column(c)) {
                if column.logical_null_count() > 0 {
                    only(is_not_null(column)?)?;
                }
            }
            if self.arguments.iter().any(|a| matches!(a, Argument::Constant(v) if v.is_null())) {
                only(BooleanArray::from(vec![false; batch.num_rows()]))?;
            }
        }
        let first = || batch.column(self.argument_columns().next().expect("this function has an argument"));
        let values = match (self.kind, self.argument_types.first()) {
            _ if self.holder.is_some() => Values::None,
            (Kind::Count, _) => Values::None,
            (Kind::SumInteger, Some(DataType::Int64)) => Values::Int64(first().as_primitive::<Int64Type>().clone()),
            (Kind::SumInteger, Some(DataType::UInt64)) => Values::UInt64(first().as_primitive::<UInt64Type>().clone()),
            (Kind::SumInteger | Kind::AverageDecimal { .. }, _) => {
                Values::Decimal(first().as_primitive::<Decimal128Type>().clone())
            }
            (Kind::SumFloat | Kind::AverageFloat, _) => Values::Float(first().as_primitive::<Float64Type>().clone()),
            (Kind::And | Kind::Or, _) => Values::Flag(as_boolean_array(first())?.clone()),
            (Kind::CountDistinct | Kind::Minimum | Kind::Maximum | Kind::General { .. }, _) => {
                let order = self.order.iter().map(|(c, _)| *c);
                let values = self.values.iter().copied();
                let columns: Vec<ArrayRef> = order.chain(values).map(|c| batch.column(c).clone()).collect();
                Values::Bytes(self.sorted(&batch.schema())?.convert_columns(&columns)?)
            }
        };
        Ok(Prepared { counted, values })
    }

    /// Takes row `n` of a prepared batch `diff` times.
    pub fn apply(accumulator: &mut Accumulator, prepared: &Prepared, n: usize, diff: i64, size: &mut Size) {
        if prepared.counted.as_ref().is_some_and(|c| !c.value(n)) {
            return;
        }
        match (accumulator, &prepared.values) {
            (Accumulator::Held, _) => {}
            (Accumulator::Count(count), _) => *count += diff,
            (Accumulator::Float { sum, count }, Values::Float(values)) => {
                sum.add(values.value(n), diff);
                *count += diff;
            }
            (Accumulator::Flags { yes, no }, Values::Flag(values)) => {
                *(if values.value(n) { yes } else { no }) += diff;
            }
            (Accumulator::Sorted(sorted), Values::Bytes(rows)) => {
                let bytes = rows.row(n).data();
                match sorted.get_mut(bytes) {
                    Some(count) => {
                        *count += diff;
                        if *count == 0 {
                            sorted.remove(bytes);
                            size.remove(bytes.len());
                        }
                    }
                    None => {
                        sorted.insert(bytes.into(), diff);
                        size.add(bytes.len());
                    }
                }
            }
            (Accumulator::Integer { sum, count }, values) => {
                let value = match values {
                    Values::Int64(values) => i128::from(values.value(n)),
                    Values::UInt64(values) => i128::from(values.value(n)),
                    Values::Decimal(values) => values.value(n),
                    _ => unreachable!("an integer sum is prepared from integers"),
                };
                *sum = sum.wrapping_add(value.wrapping_mul(i128::from(diff)));
                *count += diff;
            }
            _ => unreachable!("an accumulator is fed by the call that made it"),
        }
    }

    /// What the function says, from the accumulators of all calls, of which it is the `n`th; a failure is the text of a bad row, not of the
    /// engine.
    pub fn result(&self, n: usize, accumulators: &[Accumulator], columns: &Schema) -> Result<Answer, String> {
        Ok(match (self.kind, &accumulators[self.holder.unwrap_or(n)]) {
            (_, Accumulator::Count(count)) => Answer::Integer(i128::from(*count)),
            (_, Accumulator::Integer { count: 0, .. } | Accumulator::Float { count: 0, .. }) => Answer::Null,
            (Kind::AverageDecimal { factor }, Accumulator::Integer { sum, count }) => {
                let average =
                    10_i128.checked_pow(factor).and_then(|f| sum.checked_mul(f)).map(|s| s / i128::from(*count));
                let fits = |v: &i128| match self.function.field().data_type() {
                    DataType::Decimal128(precision, _) => v.unsigned_abs() < 10_u128.pow(u32::from(*precision)),
                    _ => false,
                };
                Answer::Integer(average.filter(fits).ok_or("arithmetic overflow in avg")?)
            }
            (_, Accumulator::Integer { sum, .. }) => Answer::Integer(*sum),
            (Kind::AverageFloat, Accumulator::Float { sum, count }) => Answer::Float(sum.value() / *count as f64),
            (_, Accumulator::Float { sum, .. }) => Answer::Float(sum.value()),
            (_, Accumulator::Flags { yes: 0, no: 0 }) => Answer::Null,
            (Kind::And, Accumulator::Flags { no, .. }) => Answer::Flag(*no == 0),
            (_, Accumulator::Flags { yes, .. }) => Answer::Flag(*yes > 0),
            (Kind::CountDistinct, Accumulator::Sorted(sorted)) => Answer::Integer(sorted.len() as i128),
            (Kind::Minimum, Accumulator::Sorted(sorted)) => {
                sorted.first_key_value().map_or(Answer::Null, |(bytes, _)| Answer::Bytes(bytes.clone()))
            }
            (Kind::Maximum, Accumulator::Sorted(sorted)) => {
                sorted.last_key_value().map_or(Answer::Null, |(bytes, _)| Answer::Bytes(bytes.clone()))
            }
            (_, Accumulator::Held) => unreachable!("the call that holds the rows is asked"),
            (_, Accumulator::Sorted(sorted)) => {
                Answer::Scalar(self.general(sorted, columns).map_err(|e| e.strip_backtrace())?)
            }
        })
    }

    /// DataFusion's accumulator over a group's rows.
    fn general(&self, sorted: &BTreeMap<Box<[u8]>, i64>, columns: &Schema) -> Result<ScalarValue> {
        let mut accumulator = self.function.create_accumulator()?;
        let Kind::General { distinct } = self.kind else { unreachable!("only general functions come here") };
        let converter = self.sorted(columns)?;
        let parser = converter.parser();
        let each = converter.convert_rows(sorted.keys().map(|bytes| parser.parse(bytes)))?;
        let repeats: UInt64Array = sorted
            .values()
            .enumerate()
            .flat_map(|(n, count)| std::iter::repeat_n(n as u64, if distinct { 1 } else { (*count).max(0) as usize }))
            .collect();
        let place = |column| self.values.iter().position(|c| c == column).expect("the rows have every argument");
        let arguments = self
            .arguments
            .iter()
            .map(|argument| match argument {
                Argument::Constant(value) => value.to_array_of_size(repeats.len()),
                Argument::Column(column) => Ok(take(&each[self.order.len() + place(column)], &repeats, None)?),
            })
            .collect::<Result<Vec<_>>>()?;
        if !repeats.is_empty() {
            accumulator.update_batch(&arguments)?;
        }
        accumulator.evaluate()
    }
}

impl fmt::Display for AggregateCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kept = match self.kind {
            Kind::General { .. } => " over the group's rows",
            Kind::CountDistinct | Kind::Minimum | Kind::Maximum => " of a sorted multiset",
            _ => "",
        };
        write!(f, "{}{kept}", self.function.name())
    }
}
