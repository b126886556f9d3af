//! One table on disk: its rows' hashes read, written in commits.
//!
//! The invariant: every version of the table after the one that it was opened at is this writer's, or has the rows of the one before: the ANN
//! index is made beside the commits. A commit that comes out behind any other version tells that somebody else has written, and ends this writer:
//! what it remembers of the table is no longer what the table holds.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{AsArray, FixedSizeBinaryArray, RecordBatch};
use arrow::datatypes::Float32Type;
use arrow_row::{RowConverter, SortField};
use futures::TryStreamExt;

use super::beside::Beside;
use super::design::{ROW_HASH, TEXT_HASH, VECTOR};
use super::{Design, Error, Table};

/// Hashes of what the index holds under a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    pub row: [u8; 16],
    pub text: [u8; 16],
}

/// What a table holds, by key in row format.
pub type Held = HashMap<Box<[u8]>, Fingerprint>;

pub struct IndexTable {
    pub(super) design: Arc<Design>,
    pub(super) name: String,
    pub(super) table: Arc<dyn Table>,
    pub(super) version: u64,
    pub(super) commits: u64,
    /// How many of the commits were followed by maintenance.
    pub(super) maintained: u64,
    /// What is done for the ANN index.
    pub(super) ann_work: Beside,
    /// Shared by every state of the table that is searched, and by what is done for its ANN index.
    pub(super) in_use: Arc<()>,
}

impl IndexTable {
    pub(super) async fn new(design: Arc<Design>, name: &str, table: Arc<dyn Table>) -> Result<IndexTable, Error> {
        let version = table.version().await.map_err(|e| design.storage(e))?;
        let name = name.to_string();
        let (ann_work, in_use) = Default::default();
        // What the last process left undone is looked at like a commit.
        Ok(IndexTable { design, name, table, version, commits: 1, maintained: 0, ann_work, in_use })
    }

    /// Whether its columns are the design's.
    pub(super) async fn is_of_design(&self) -> Result<bool, Error> {
        let found = self.table.schema().await.map_err(|e| self.storage(e))?;
        let columns = |schema: &arrow::datatypes::Schema| -> Vec<_> {
            schema.fields().iter().map(|f| (f.name().clone(), f.data_type().clone())).collect()
        };
        Ok(columns(&found) == columns(&self.design.table))
    }

    pub(super) fn storage(&self, e: impl std::fmt::Display) -> Error {
        self.design.storage(e)
    }

    /// What every key has, for reconciling, and how many rows the table has.
    pub(super) async fn held(&self) -> Result<(Held, usize), Error> {
        let key = self.design.key();
        let columns = [key.name().as_str(), ROW_HASH, TEXT_HASH];
        let mut stream = self.table.scan(&columns, None, None).await.map_err(|e| self.storage(e))?;
        let converter =
            RowConverter::new(vec![SortField::new(key.data_type().clone())]).map_err(|e| self.storage(e))?;
        let (mut held, mut rows) = (HashMap::new(), 0);
        while let Some(batch) = stream.try_next().await.map_err(|e| self.storage(e))? {
            let keys = converter.convert_columns(&batch.columns()[..1]).map_err(|e| self.storage(e))?;
            let (of_rows, of_texts) = (self.hashes(&batch, 1)?, self.hashes(&batch, 2)?);
            for n in 0..batch.num_rows() {
                held.insert(keys.row(n).data().into(), Fingerprint { row: hash(of_rows, n), text: hash(of_texts, n) });
            }
            rows += batch.num_rows();
        }
        Ok((held, rows))
    }

    /// What it holds by now, after something has failed of which nobody knows how much was done. Who calls has made sure that nobody else writes.
    pub(super) async fn look_again(&mut self) -> Result<Held, Error> {
        self.table.look_again().await.map_err(|e| self.storage(e))?;
        self.version = self.table.version().await.map_err(|e| self.storage(e))?;
        let (held, rows) = self.held().await?;
        match held.len() == rows {
            true => Ok(held),
            false => Err(self.storage(format!("the table {} has a key twice", self.name))),
        }
    }

    /// The text hash and the vector of every row.
    pub(super) async fn vectors(
        &self,
        mut each: impl FnMut([u8; 16], &[f32]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut stream = self.table.scan(&[TEXT_HASH, VECTOR], None, None).await.map_err(|e| self.storage(e))?;
        while let Some(batch) = stream.try_next().await.map_err(|e| self.storage(e))? {
            let texts = self.hashes(&batch, 0)?;
            let vectors = batch.column(1).as_fixed_size_list();
            for n in 0..batch.num_rows() {
                each(hash(texts, n), vectors.value(n).as_primitive::<Float32Type>().values())?;
            }
        }
        Ok(())
    }

    fn hashes<'a>(&self, batch: &'a RecordBatch, column: usize) -> Result<&'a FixedSizeBinaryArray, Error> {
        batch.column(column).as_fixed_size_binary_opt().ok_or_else(|| self.storage("the hashes are of another type"))
    }

    /// Writes rows and removes keys (SQL literals).
    pub(super) async fn commit(&mut self, upserts: Option<RecordBatch>, deletes: &[String]) -> Result<(), Error> {
        let key = self.design.key().name().clone();
        if let Some(batch) = upserts {
            let version = self.table.upsert(&key, batch).await.map_err(|e| self.storage(e))?;
            self.follow(version).await?;
        }
        for some in deletes.chunks(500) {
            let predicate = format!("`{key}` IN ({})", some.join(", "));
            let version = self.table.delete(&predicate).await.map_err(|e| self.storage(e))?;
            self.follow(version).await?;
        }
        self.commits += 1;
        Ok(())
    }

    /// A commit of ours has become this version.
    async fn follow(&mut self, version: u64) -> Result<(), Error> {
        let mut next = self.version + 1;
        while next < version && self.table.has_rows_of_before(next).await.map_err(|e| self.storage(e))? {
            next += 1;
        }
        if version != next {
            let (uri, table) = (self.design.config.uri.clone(), self.name.clone());
            return Err(Error::OtherWriter { uri, table, version: next });
        }
        self.version = version;
        Ok(())
    }

    /// The table as it is now, for searches.
    pub(super) async fn pinned(&self) -> Result<Arc<dyn Table>, Error> {
        self.table.pinned().await.map_err(|e| self.storage(e))
    }

    #[cfg(test)]
    pub(super) async fn count(&self) -> usize {
        self.table.lance().unwrap().count_rows(None).await.unwrap()
    }
}

fn hash(hashes: &FixedSizeBinaryArray, n: usize) -> [u8; 16] {
    hashes.value(n).try_into().expect("16 bytes, as the schema says")
}
