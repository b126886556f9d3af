//! The tables of a case as they stand, and the events that made them so.
//!
//! The invariant: the rows held here are what a reader that applies every event in order holds; each event has an offset of its own in its
//! partition, and a key's events are all in one partition.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::SchemaRef;
use arrow_row::RowConverter;
use datafusion::common::ScalarValue;
use datafusion::error::Result;

use super::table::{Cells, TableDef};
use crate::dataflow;
use crate::decode::{Change, Counts, Decoded, Op, Origin, RowType};
use crate::time::{Offset, Partition};

/// Partitions of every table's topic.
const PARTITIONS: usize = 2;

/// What happens to one table.
#[derive(Clone, Debug)]
pub struct Step {
    pub table: usize,
    pub event: Event,
}

#[derive(Clone, Debug)]
pub enum Event {
    /// The row of its key from now on.
    Put(Cells),
    /// The key's columns alone.
    Delete(Cells),
    Truncate,
    /// Every event of the table so far arrives once more, with the offsets that it had.
    Redeliver,
}

/// Tables in the order in which plans and events number them.
#[derive(Default)]
pub struct Database {
    tables: Vec<TableState>,
    sent: Vec<Decoded>,
}

struct TableState {
    def: TableDef,
    row_type: Arc<RowType>,
    keys: RowConverter,
    rows: BTreeMap<Box<[u8]>, Cells>,
    next: [i64; PARTITIONS],
}

impl Database {
    pub fn new(defs: &[TableDef]) -> Database {
        let mut database = Database::default();
        defs.iter().for_each(|def| database.create(def.clone()));
        database
    }

    pub fn create(&mut self, def: TableDef) {
        let row_type = Arc::new(def.row_type());
        let keys = row_type.key_converter().expect("the types of keys have a row format");
        self.tables.push(TableState { def, row_type, keys, rows: BTreeMap::new(), next: [0; PARTITIONS] });
    }

    pub fn defs(&self) -> impl Iterator<Item = &TableDef> {
        self.tables.iter().map(|t| &t.def)
    }

    pub fn row_types(&self) -> Vec<Arc<RowType>> {
        self.tables.iter().map(|t| t.row_type.clone()).collect()
    }

    pub fn plan_tables(&self) -> Vec<dataflow::Table> {
        self.tables.iter().map(|t| t.def.table(t.row_type.schema().clone())).collect()
    }

    pub fn schema(&self, table: usize) -> &SchemaRef {
        self.tables[table].row_type.schema()
    }

    /// The rows of a table as they stand.
    pub fn batch(&self, table: usize) -> Result<RecordBatch> {
        let state = &self.tables[table];
        state.def.batch(state.row_type.schema(), state.rows.values())
    }

    /// Every event so far, as a reader that begins at the beginning gets them.
    pub fn history(&self) -> &[Decoded] {
        &self.sent
    }

    /// Applies steps; what comes back is what the decoder would make of their events, in order.
    pub fn apply(&mut self, steps: &[Step]) -> Result<Vec<Decoded>> {
        let mut out = Vec::new();
        for step in steps {
            if let Event::Redeliver = step.event {
                // In order with what this epoch has sent already.
                let again = self.sent.iter().chain(&out).filter(|d: &&Decoded| d.source == step.table);
                let again: Vec<Decoded> = again.cloned().collect();
                out.extend(again);
                continue;
            }
            let decoded = self.tables[step.table].apply(step)?;
            out.push(decoded);
        }
        // What was delivered twice is not kept twice.
        let mut seen: BTreeMap<Partition, Offset> = self.sent.iter().map(|d| (d.partition.clone(), d.end)).collect();
        for decoded in &out {
            if seen.get(&decoded.partition).is_none_or(|end| *end < decoded.end) {
                seen.insert(decoded.partition.clone(), decoded.end);
                self.sent.push(decoded.clone());
            }
        }
        Ok(out)
    }
}

impl TableState {
    fn apply(&mut self, step: &Step) -> Result<Decoded> {
        let (key, op) = match &step.event {
            Event::Put(cells) => {
                let columns = self.def.columns(std::iter::once(cells))?;
                let row = self.row_type.converter().convert_columns(&columns)?.row(0).data().into();
                let key: Cells = self.def.key.iter().map(|k| cells[*k].clone()).collect();
                let key = self.key(&key)?;
                self.rows.insert(key.clone(), cells.clone());
                (key, Op::Upsert { row, unavailable: None })
            }
            Event::Delete(key) => {
                let key = self.key(key)?;
                self.rows.remove(&key);
                (key, Op::Delete)
            }
            Event::Truncate => {
                self.rows.clear();
                (Box::default(), Op::Truncate)
            }
            Event::Redeliver => unreachable!("a table's past is the database's"),
        };
        let partition = key.iter().map(|b| usize::from(*b)).sum::<usize>() % PARTITIONS;
        let offset = self.next[partition];
        self.next[partition] += 1;
        Ok(Decoded {
            source: step.table,
            partition: Partition::new(self.def.name.as_str(), partition as i32),
            end: Offset(offset + 1),
            changes: vec![Change { offset: Offset(offset), key, op, commit_ms: 0, origin: Origin::default() }],
            rejects: vec![],
            counts: Counts::default(),
        })
    }

    fn key(&self, key: &[ScalarValue]) -> Result<Box<[u8]>> {
        let columns: Vec<ArrayRef> = key.iter().map(ScalarValue::to_array).collect::<Result<_>>()?;
        Ok(self.keys.convert_columns(&columns)?.row(0).data().into())
    }
}
