//! Random tables and random changes of them.
//!
//! The invariant: values come from small domains and keys are skewed, so that joins meet, groups fill and empty, and the same row comes and
//! goes; sums of doubles are exact (every double is a small multiple of a quarter), so that their order cannot change an answer.

use datafusion::common::ScalarValue;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::database::{Event, Step};
use super::table::{Cells, Column, TableDef, Type};

pub const DECIMAL: Type = Type::Decimal(12, 2);

pub const TYPES: [Type; 8] =
    [Type::BigInt, Type::Int, Type::Double, DECIMAL, Type::Text, Type::Bool, Type::Date, Type::Timestamp];

/// Keys of a table are drawn from this many.
const KEYS: i64 = 24;

/// 2024-02-27, so that a few days lead over a leap day into another month.
const FIRST_DAY: i32 = 19_780;

const WORDS: [&str; 7] = ["a", "b", "", "ab", "B", "a b", "é"];

/// Every seed has a generator of its own for each of its parts, so that a change of one part leaves the others as they are.
pub fn generator(seed: u64, part: u64) -> StdRng {
    StdRng::seed_from_u64(seed.wrapping_mul(8).wrapping_add(part))
}

/// A small number; the smaller, the likelier.
pub fn skewed(rng: &mut StdRng, below: i64) -> i64 {
    rng.random_range(0..below).min(rng.random_range(0..below))
}

/// A value of a type; never null.
pub fn value(rng: &mut StdRng, ty: Type) -> ScalarValue {
    let n = skewed(rng, 7);
    match ty {
        Type::BigInt if rng.random_ratio(1, 40) => {
            ScalarValue::Int64(Some(*[-1, 1_000_000, -7].choose(rng).expect("not empty")))
        }
        Type::BigInt => ScalarValue::Int64(Some(n)),
        Type::Int => ScalarValue::Int32(Some(n as i32 - i32::from(rng.random_ratio(1, 10)))),
        Type::Double => ScalarValue::Float64(Some((n - 1) as f64 * 0.25)),
        Type::Decimal(precision, scale) => ScalarValue::Decimal128(Some(i128::from((n - 1) * 50)), precision, scale),
        Type::Text => ScalarValue::Utf8(Some(WORDS[n as usize].into())),
        Type::Bool => ScalarValue::Boolean(Some(n % 2 == 0)),
        Type::Date => ScalarValue::Date32(Some(FIRST_DAY + n as i32)),
        Type::Timestamp => {
            let hours = i64::from(FIRST_DAY) * 24 + n * 7;
            ScalarValue::TimestampMicrosecond(Some(hours * 3_600_000_000 + (n % 2) * 1_500), None)
        }
    }
}

fn null(ty: Type) -> ScalarValue {
    ScalarValue::try_from(&ty.arrow()).expect("every type has a null")
}

/// One to four tables, each with a key of one or two columns.
pub fn tables(rng: &mut StdRng) -> Vec<TableDef> {
    (0..rng.random_range(1..=4)).map(|n| table(rng, n)).collect()
}

fn table(rng: &mut StdRng, n: usize) -> TableDef {
    let of_keys = [Type::BigInt, Type::Int, Type::Text];
    let key: Vec<usize> = (0..rng.random_range(1..=2)).collect();
    let mut columns: Vec<Column> = key
        .iter()
        .map(|k| Column { name: format!("k{k}"), ty: *of_keys.choose(rng).expect("not empty"), nullable: false })
        .collect();
    for c in 0..rng.random_range(2..=5) {
        let ty = *TYPES.choose(rng).expect("not empty");
        columns.push(Column { name: format!("c{c}"), ty, nullable: rng.random_ratio(3, 4) });
    }
    TableDef { name: format!("s__t{n}"), columns, key }
}

fn key_value(rng: &mut StdRng, ty: Type) -> ScalarValue {
    let n = skewed(rng, KEYS);
    match ty {
        Type::Int => ScalarValue::Int32(Some(n as i32)),
        Type::Text => {
            ScalarValue::Utf8(Some(WORDS.get(n as usize).map_or_else(|| format!("k{n}"), ToString::to_string)))
        }
        _ => ScalarValue::Int64(Some(n)),
    }
}

fn key(rng: &mut StdRng, table: &TableDef) -> Cells {
    // The second column of a key has few values, so that it can be joined on.
    let mut key: Cells = table.key.iter().map(|k| key_value(rng, table.columns[*k].ty)).collect();
    if let [_, second] = key.as_mut_slice() {
        match second {
            ScalarValue::Int32(Some(n)) => *n %= 4,
            ScalarValue::Int64(Some(n)) => *n %= 4,
            _ => {}
        }
    }
    key
}

fn row(rng: &mut StdRng, table: &TableDef, key: &Cells) -> Cells {
    let mut row = key.clone();
    for column in &table.columns[key.len()..] {
        row.push(if column.nullable && rng.random_ratio(1, 6) { null(column.ty) } else { value(rng, column.ty) });
    }
    row
}

/// Four to eight epochs: the first fills the tables, the others change them, now and then not at all or nearly everything.
pub fn epochs(rng: &mut StdRng, tables: &[TableDef]) -> Vec<Vec<Step>> {
    let mut epochs = vec![Vec::new()];
    for (table, def) in tables.iter().enumerate() {
        for _ in 0..*[0, 6, 12, 16, 24, 24, 24].choose(rng).expect("not empty") {
            let key = key(rng, def);
            epochs[0].push(Step { table, event: Event::Put(row(rng, def, &key)) });
        }
    }
    for _ in 0..rng.random_range(3..=7) {
        let changes = match rng.random_range(0..12) {
            0 => 0,
            1 => 40,
            n => n * tables.len(),
        };
        let mut steps = Vec::new();
        for _ in 0..changes {
            let table = rng.random_range(0..tables.len());
            step(rng, table, &tables[table], &mut steps);
        }
        epochs.push(steps);
    }
    epochs
}

fn step(rng: &mut StdRng, table: usize, def: &TableDef, steps: &mut Vec<Step>) {
    let old = key(rng, def);
    let mut push = |event| steps.push(Step { table, event });
    match rng.random_range(0..100) {
        0..55 => push(Event::Put(row(rng, def, &old))),
        55..80 => push(Event::Delete(old)),
        // A key that changes is a delete and a put.
        80..88 => {
            let new = key(rng, def);
            push(Event::Delete(old));
            push(Event::Put(row(rng, def, &new)));
        }
        // What comes and goes, or changes twice, within an epoch.
        88..94 => {
            push(Event::Put(row(rng, def, &old)));
            push(if rng.random() { Event::Delete(old) } else { Event::Put(row(rng, def, &old)) });
        }
        94..98 => push(Event::Redeliver),
        _ => push(Event::Truncate),
    }
}
