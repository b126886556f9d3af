//! The writer brings changes of the view into a table: for every key a delete, a row with the vector that its text has already, or a row whose text
//! is embedded first.
//!
//! The invariant: a vector is in the embedding store before the row that needs it is in a table; what equals the table is not written.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, FixedSizeBinaryArray, FixedSizeListArray, Float32Array, Int32Array, Int64Array, RecordBatch,
    StringArray,
};
use arrow::datatypes::{DataType, Field};
use arrow_row::{RowConverter, SortField};
use sha2::{Digest, Sha256};

use super::{Design, Error, Fingerprint, Kept};
use crate::dataflow::{Row, ViewChange};
use crate::embed::{BatchStats, EmbeddingStore, TextEmbedder, TextHash};

/// Vectors that are taken over at once.
const MENDED_AT_ONCE: usize = 1000;

/// What bringing changes in did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Rows whose text is another one than the table had.
    pub asked: u64,
    /// Of them, those whose vector was known.
    pub cached: u64,
    /// Texts that went through the model.
    pub computed: u64,
    pub upserted: u64,
    pub deleted: u64,
    /// Rows that the table held already.
    pub unchanged: u64,
}

pub(super) struct Writer {
    design: Arc<Design>,
    store: EmbeddingStore,
    /// Vectors that were computed and that the store has not taken yet.
    computed: Vec<(TextHash, Vec<f32>)>,
    embedder: Arc<dyn TextEmbedder>,
    rows: RowConverter,
    keys: RowConverter,
}

impl Writer {
    pub fn new(design: Arc<Design>, store: EmbeddingStore, embedder: Arc<dyn TextEmbedder>) -> Result<Writer, Error> {
        let fields = design.view.fields().iter().map(|f| SortField::new(f.data_type().clone())).collect();
        let rows = RowConverter::new(fields).map_err(|e| design.storage(e))?;
        let keys = RowConverter::new(vec![SortField::new(design.key().data_type().clone())]);
        let keys = keys.map_err(|e| design.storage(e))?;
        Ok(Writer { design, store, computed: Vec::new(), embedder, rows, keys })
    }

    /// Puts into the embedding store what a table has and the store has lost.
    pub async fn mend_store(&mut self, kept: &Kept) -> Result<(), Error> {
        let texts = kept.held.values().map(|held| TextHash(held.text));
        let mut lost: HashSet<TextHash> = texts.filter(|text| !self.store.contains(text)).collect();
        if lost.is_empty() {
            return Ok(());
        }
        tracing::warn!(
            texts = lost.len(),
            "the embedding store lacks vectors that the index has; they are taken from there"
        );
        let (store, mut found) = (&mut self.store, Vec::new());
        let put = |store: &mut EmbeddingStore, found: &[(TextHash, Vec<f32>)]| {
            store.put(&found.iter().map(|(text, vector)| (*text, vector.as_slice())).collect::<Vec<_>>())
        };
        let each = |text: [u8; 16], vector: &[f32]| {
            let text = TextHash(text);
            if lost.remove(&text) {
                found.push((text, vector.to_vec()));
            }
            if found.len() >= MENDED_AT_ONCE {
                put(store, &found)?;
                found.clear();
            }
            Ok(())
        };
        kept.table.vectors(each).await?;
        Ok(put(&mut self.store, &found)?)
    }

    /// Brings changes into a table, in one commit.
    pub async fn bring(
        &mut self,
        kept: &mut Kept,
        changes: &[ViewChange],
        progress: &mut (dyn FnMut(BatchStats) + Send),
    ) -> Result<Applied, Error> {
        let mut applied = Applied::default();
        let mut deletes: Vec<&[u8]> = Vec::new();
        let mut upserts: Vec<(&[u8], &Row, [u8; 16])> = Vec::new();
        for change in changes {
            match &change.row {
                None if kept.held.contains_key(&change.key) => deletes.push(&change.key),
                None => applied.unchanged += 1,
                Some(row) => {
                    let hash = row_hash(row);
                    match kept.held.get(&change.key) {
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
            .map_err(|e| self.design.storage(e))?;
        let hashes = self.vectors_for(kept, &upserts, &columns, &mut applied, progress)?;
        let batch = (!upserts.is_empty()).then(|| self.batch(columns, &upserts, &hashes)).transpose()?;
        let literals = self.literals(&deletes)?;
        kept.table.commit(batch, &literals).await?;
        applied.upserted = upserts.len() as u64;
        applied.deleted = deletes.len() as u64;
        for key in deletes {
            kept.held.remove(key);
        }
        for ((key, _, row), text) in upserts.into_iter().zip(hashes) {
            kept.held.insert(key.into(), Fingerprint { row, text: text.0 });
        }
        Ok(applied)
    }

    /// Sees to it that the store has a vector for every row's text. A text that is null counts as empty.
    fn vectors_for(
        &mut self,
        kept: &Kept,
        upserts: &[(&[u8], &Row, [u8; 16])],
        columns: &[ArrayRef],
        applied: &mut Applied,
        progress: &mut dyn FnMut(BatchStats),
    ) -> Result<Vec<TextHash>, Error> {
        if upserts.is_empty() {
            return Ok(Vec::new());
        }
        let texts = columns[self.design.text_column]
            .as_any()
            .downcast_ref::<StringArray>()
            .ok_or_else(|| self.design.storage("the text column is of another type"))?;
        applied.computed += self.keep()?;
        let mut hashes = Vec::with_capacity(upserts.len());
        let (mut new, mut seen) = (Vec::new(), HashSet::new());
        for (n, (key, _, _)) in upserts.iter().enumerate() {
            let text = if texts.is_null(n) { "" } else { texts.value(n) };
            let hash = TextHash::of(self.embedder.model_id(), text);
            if kept.held.get(*key).is_none_or(|held| held.text != hash.0) {
                applied.asked += 1;
                if self.store.contains(&hash) || seen.contains(&hash) {
                    applied.cached += 1;
                }
            }
            if !self.store.contains(&hash) && seen.insert(hash) {
                new.push((hash, text));
            }
            hashes.push(hash);
        }
        if !new.is_empty() {
            let texts: Vec<&str> = new.iter().map(|(_, text)| *text).collect();
            let vectors = self.embedder.embed(&texts, progress)?;
            self.computed = new.iter().map(|(hash, _)| *hash).zip(vectors).collect();
            applied.computed += self.keep()?;
        }
        Ok(hashes)
    }

    /// Puts what was computed into the store, where it has not taken it yet; says how many that were.
    fn keep(&mut self) -> Result<u64, Error> {
        let records: Vec<(TextHash, &[f32])> = self.computed.iter().map(|(hash, v)| (*hash, v.as_slice())).collect();
        self.store.put(&records)?;
        Ok(std::mem::take(&mut self.computed).len() as u64)
    }

    fn batch(
        &self,
        mut columns: Vec<ArrayRef>,
        upserts: &[(&[u8], &Row, [u8; 16])],
        texts: &[TextHash],
    ) -> Result<RecordBatch, Error> {
        let mut numbers = Vec::with_capacity(upserts.len() * self.design.dimension);
        for hash in texts {
            let vector =
                self.store.get(hash)?.ok_or_else(|| self.design.storage("the embedding store lost a vector"))?;
            numbers.extend(vector);
        }
        let item = Arc::new(Field::new("item", DataType::Float32, true));
        let vectors = FixedSizeListArray::try_new(
            item,
            self.design.dimension as i32,
            Arc::new(Float32Array::from(numbers)),
            None,
        );
        let row_hashes = FixedSizeBinaryArray::try_from_iter(upserts.iter().map(|(_, _, hash)| hash));
        let text_hashes = FixedSizeBinaryArray::try_from_iter(texts.iter().map(|hash| hash.0));
        columns.push(Arc::new(vectors.map_err(|e| self.design.storage(e))?));
        columns.push(Arc::new(row_hashes.map_err(|e| self.design.storage(e))?));
        columns.push(Arc::new(text_hashes.map_err(|e| self.design.storage(e))?));
        RecordBatch::try_new(self.design.table.clone(), columns).map_err(|e| self.design.storage(e))
    }

    fn literals(&self, keys: &[&[u8]]) -> Result<Vec<String>, Error> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let parser = self.keys.parser();
        let columns =
            self.keys.convert_rows(keys.iter().map(|k| parser.parse(k))).map_err(|e| self.design.storage(e))?;
        Ok((0..keys.len()).map(|n| literal(&columns[0], n)).collect())
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
