//! The indexer brings changes of the view into the table: for every key a delete, a row with the vector that its text has already, or a row
//! whose text is embedded first.
//!
//! The invariant: a vector is in the embedding store before the row that needs it is in the index; what equals the index is not written.

use std::collections::{HashMap, HashSet};
use std::fmt::Display;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, FixedSizeBinaryArray, FixedSizeListArray, Float32Array, Int32Array, Int64Array, RecordBatch,
    StringArray,
};
use arrow::datatypes::{DataType, Field, FieldRef};
use arrow_row::{RowConverter, SortField};
use sha2::{Digest, Sha256};

use super::store::failed;
use super::{Columns, Error, Fingerprint, IndexStore, IndexTable};
use crate::dataflow::{Row, ViewChange};
use crate::embed::{BatchStats, EmbeddingStore, TextEmbedder, TextHash};
use crate::time::{Epoch, Position};

/// What a call of [`Indexer::apply`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Rows whose text is another one than the index had.
    pub asked: u64,
    /// Of them, those whose vector was known.
    pub cached: u64,
    /// Texts that went through the model.
    pub computed: u64,
    pub upserted: u64,
    pub deleted: u64,
    /// Rows that the index held already.
    pub unchanged: u64,
}

pub struct Indexer<S = IndexTable> {
    store: S,
    columns: Columns,
    embeddings: EmbeddingStore,
    embedder: Arc<dyn TextEmbedder>,
    held: HashMap<Box<[u8]>, Fingerprint>,
    rows: RowConverter,
    keys: RowConverter,
    dimension: usize,
}

impl<S: IndexStore> Indexer<S> {
    pub async fn new(
        store: S,
        embeddings: EmbeddingStore,
        embedder: Arc<dyn TextEmbedder>,
    ) -> Result<Indexer<S>, Error> {
        let columns = store.columns();
        let converter = |fields: &[FieldRef]| {
            let fields = fields.iter().map(|f| SortField::new(f.data_type().clone())).collect();
            RowConverter::new(fields).map_err(|e| failed(store.location(), e))
        };
        let fields = columns.view.fields();
        let (rows, keys) = (converter(fields)?, converter(&fields[columns.key..=columns.key])?);
        let held = store.fingerprints().await?;
        let dimension = embedder.dimension();
        Ok(Indexer { store, columns, embeddings, embedder, held, rows, keys, dimension })
    }

    pub fn table(&self) -> &S {
        &self.store
    }

    pub fn len(&self) -> usize {
        self.held.len()
    }

    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Deletes of keys that the index holds and the view does not.
    pub fn orphans(&self, view: &HashSet<Box<[u8]>>) -> Vec<ViewChange> {
        self.held.keys().filter(|k| !view.contains(*k)).map(|k| ViewChange { key: k.clone(), row: None }).collect()
    }

    /// Announces how far the coming changes lead.
    pub async fn announce(&mut self, epoch: Epoch, position: &Position) -> Result<(), Error> {
        self.store.announce(epoch, position).await
    }

    /// Shows what was applied; see [`IndexStore::publish`].
    pub async fn publish(&mut self, reached: Option<(Epoch, &Position)>) -> Result<(), Error> {
        self.store.publish(reached).await
    }

    pub async fn maintain(&mut self, idle: bool) -> Result<bool, Error> {
        self.store.maintain(idle).await
    }

    /// Brings changes into the table, in one commit.
    pub async fn apply(
        &mut self,
        changes: &[ViewChange],
        progress: &mut (dyn FnMut(BatchStats) + Send),
    ) -> Result<Applied, Error> {
        let mut applied = Applied::default();
        let mut deletes: Vec<&[u8]> = Vec::new();
        let mut upserts: Vec<(&[u8], &Row, [u8; 16])> = Vec::new();
        for change in changes {
            match &change.row {
                None if self.held.contains_key(&change.key) => deletes.push(&change.key),
                None => applied.unchanged += 1,
                Some(row) => {
                    let hash = row_hash(row);
                    match self.held.get(&change.key) {
                        Some(held) if held.row == hash => applied.unchanged += 1,
                        _ => upserts.push((&change.key, row, hash)),
                    }
                }
            }
        }
        if deletes.is_empty() && upserts.is_empty() {
            return Ok(applied);
        }
        let parser = self.rows.parser();
        let columns = self
            .rows
            .convert_rows(upserts.iter().map(|(_, row, _)| parser.parse(row)))
            .map_err(|e| self.failed(e))?;
        let hashes = self.vectors_for(&upserts, &columns, &mut applied, progress)?;
        let batch = (!upserts.is_empty()).then(|| self.batch(columns, &upserts, &hashes)).transpose()?;
        let gone = (!deletes.is_empty()).then(|| self.column(&deletes)).transpose()?;
        self.store.commit(batch, gone).await?;
        applied.upserted = upserts.len() as u64;
        applied.deleted = deletes.len() as u64;
        for key in deletes {
            self.held.remove(key);
        }
        for ((key, _, row), text) in upserts.into_iter().zip(hashes) {
            self.held.insert(key.into(), Fingerprint { row, text: text.0 });
        }
        Ok(applied)
    }

    /// Sees to it that the store has a vector for every row's text. A text that is null counts as empty.
    fn vectors_for(
        &mut self,
        upserts: &[(&[u8], &Row, [u8; 16])],
        columns: &[ArrayRef],
        applied: &mut Applied,
        progress: &mut dyn FnMut(BatchStats),
    ) -> Result<Vec<TextHash>, Error> {
        if upserts.is_empty() {
            return Ok(Vec::new());
        }
        let texts = columns[self.columns.text]
            .as_any()
            .downcast_ref::<StringArray>()
            .ok_or_else(|| self.failed("the text column is of another type"))?;
        let mut hashes = Vec::with_capacity(upserts.len());
        let (mut new, mut seen) = (Vec::new(), HashSet::new());
        for (n, (key, _, _)) in upserts.iter().enumerate() {
            let text = if texts.is_null(n) { "" } else { texts.value(n) };
            let hash = TextHash::of(self.embedder.model_id(), text);
            if self.held.get(*key).is_none_or(|held| held.text != hash.0) {
                applied.asked += 1;
                if self.embeddings.contains(&hash) || seen.contains(&hash) {
                    applied.cached += 1;
                }
            }
            if !self.embeddings.contains(&hash) && seen.insert(hash) {
                new.push((hash, text));
            }
            hashes.push(hash);
        }
        if !new.is_empty() {
            let texts: Vec<&str> = new.iter().map(|(_, text)| *text).collect();
            let vectors = self.embedder.embed(&texts, progress)?;
            let records: Vec<(TextHash, &[f32])> =
                new.iter().map(|(hash, _)| *hash).zip(vectors.iter().map(Vec::as_slice)).collect();
            self.embeddings.put(&records)?;
            applied.computed += new.len() as u64;
        }
        Ok(hashes)
    }

    fn batch(
        &self,
        mut columns: Vec<ArrayRef>,
        upserts: &[(&[u8], &Row, [u8; 16])],
        texts: &[TextHash],
    ) -> Result<RecordBatch, Error> {
        let mut numbers = Vec::with_capacity(upserts.len() * self.dimension);
        for hash in texts {
            let vector =
                self.embeddings.get(hash)?.ok_or_else(|| self.failed("the embedding store lost a vector"))?;
            numbers.extend(vector);
        }
        let item = Arc::new(Field::new("item", DataType::Float32, true));
        let vectors =
            FixedSizeListArray::try_new(item, self.dimension as i32, Arc::new(Float32Array::from(numbers)), None);
        let row_hashes = FixedSizeBinaryArray::try_from_iter(upserts.iter().map(|(_, _, hash)| hash));
        let text_hashes = FixedSizeBinaryArray::try_from_iter(texts.iter().map(|hash| hash.0));
        columns.push(Arc::new(vectors.map_err(|e| self.failed(e))?));
        columns.push(Arc::new(row_hashes.map_err(|e| self.failed(e))?));
        columns.push(Arc::new(text_hashes.map_err(|e| self.failed(e))?));
        RecordBatch::try_new(self.columns.stored.clone(), columns).map_err(|e| self.failed(e))
    }

    /// Keys as a column.
    fn column(&self, keys: &[&[u8]]) -> Result<ArrayRef, Error> {
        let parser = self.keys.parser();
        let columns = self.keys.convert_rows(keys.iter().map(|k| parser.parse(k))).map_err(|e| self.failed(e))?;
        Ok(columns[0].clone())
    }

    fn failed(&self, reason: impl Display) -> Error {
        failed(self.store.location(), reason)
    }
}

/// A key's value as a SQL literal.
pub(super) fn literal(column: &ArrayRef, n: usize) -> String {
    if column.is_null(n) {
        return "NULL".into();
    }
    if let Some(numbers) = column.as_any().downcast_ref::<Int64Array>() {
        numbers.value(n).to_string()
    } else if let Some(numbers) = column.as_any().downcast_ref::<Int32Array>() {
        numbers.value(n).to_string()
    } else {
        quoted(column.as_any().downcast_ref::<StringArray>().map_or("", |texts| texts.value(n)))
    }
}

pub(super) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// What tells a row of the view from another one under its key: the first 16 bytes of the sha256 of its row format.
pub fn row_hash(row: &[u8]) -> [u8; 16] {
    let mut first = [0; 16];
    first.copy_from_slice(&Sha256::digest(row)[..16]);
    first
}
