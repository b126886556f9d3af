//! An index as it lies there, for who only looks: nothing is made, repaired or begun anew.

use std::path::Path;

use arrow::array::{Array, AsArray, FixedSizeBinaryArray};
use arrow::datatypes::Float32Type;
use arrow_row::{RowConverter, SortField};
use futures::TryStreamExt;
use lancedb::Table;
use lancedb::query::{ExecutableQuery, QueryBase, Select};

use super::announced::Announcement;
use super::design::{ROW_HASH, TEXT_HASH, VECTOR};
use super::place::connect;
use super::{Announced, Error, Fingerprint};
use crate::{config, storage};

pub struct IndexReader {
    config: config::Index,
    table: Table,
    announced: Announced,
}

/// What the index holds of one row of the view.
pub struct IndexRow {
    /// In row format.
    pub key: Box<[u8]>,
    pub hashes: Fingerprint,
    pub vector: Vec<f32>,
}

impl IndexReader {
    /// Opens the index `name`; `None` if there is none.
    pub async fn open(config: &config::Index, name: &str) -> Result<Option<IndexReader>, Error> {
        let storage = |reason: String| Error::Storage { uri: config.uri.clone(), reason };
        if !config.uri.contains("://") && !Path::new(&config.uri).exists() {
            return Ok(None);
        }
        let place = storage::open(&config.uri, &config.options).map_err(storage)?;
        let mut announcement = Announcement::of(&place, &config.uri, name);
        let Some(announced) = announcement.read().await? else { return Ok(None) };
        let announced = announced.map_err(storage)?;
        let connection = connect(config).await.map_err(|e| storage(e.to_string()))?;
        let table = connection.open_table(&announced.table).execute().await.map_err(|e| storage(e.to_string()))?;
        Ok(Some(IndexReader { config: config.clone(), table, announced }))
    }

    /// How far the index was to come, and of which model its vectors are.
    pub fn announced(&self) -> &Announced {
        &self.announced
    }

    /// Every row, in no order.
    pub async fn rows(&self, mut each: impl FnMut(IndexRow)) -> Result<(), Error> {
        let storage =
            |e: &dyn std::fmt::Display| Error::Storage { uri: self.config.uri.clone(), reason: e.to_string() };
        let columns = [self.config.key.as_str(), ROW_HASH, TEXT_HASH, VECTOR];
        let query = self.table.query().select(Select::columns(&columns));
        let mut batches = query.execute().await.map_err(|e| storage(&e))?;
        while let Some(batch) = batches.try_next().await.map_err(|e| storage(&e))? {
            let (key, vectors) = (batch.column(0), batch.column(3));
            let converter =
                RowConverter::new(vec![SortField::new(key.data_type().clone())]).map_err(|e| storage(&e))?;
            let keys = converter.convert_columns(&batch.columns()[..1]).map_err(|e| storage(&e))?;
            let hashes = [1, 2].map(|n| batch.column(n).as_fixed_size_binary_opt());
            let ([Some(rows), Some(texts)], Some(vectors)) = (hashes, vectors.as_fixed_size_list_opt()) else {
                return Err(storage(&"it is no index of Freshet's: its own columns are of other types"));
            };
            for n in 0..batch.num_rows() {
                let hash = |of: &FixedSizeBinaryArray| {
                    of.value(n).try_into().map_err(|_| storage(&"a hash has another length"))
                };
                let vector = vectors.value(n);
                let vector = vector
                    .as_primitive_opt::<Float32Type>()
                    .ok_or_else(|| storage(&"its vectors are of another type"))?;
                each(IndexRow {
                    key: keys.row(n).data().into(),
                    hashes: Fingerprint { row: hash(rows)?, text: hash(texts)? },
                    vector: vector.values().to_vec(),
                });
            }
        }
        Ok(())
    }
}
