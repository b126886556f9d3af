//! What is checked of what lies there when no process runs.
//!
//! The invariant: nothing is asked of a process; raw, the index, the embedding store and the quarantine are read as anybody reads them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::Float32Type;
use arrow_row::{RowConverter, SortField};
use object_store::ObjectStoreExt;

use super::dataflow::{Dataflow, Shown};
use super::embedder::{self, DIMENSION};
use super::index::Database;
use super::world::{Shared, lock};
use crate::audit::{self, Comparison};
use crate::decode::{FixedSchemas, RowType, SchemaStore};
use crate::embed::EmbeddingStore;
use crate::index::{Announced, Fingerprint};
use crate::raw::{Entries, Hydration, RawTable};
use crate::storage::faulty::Faulty;
use crate::time::Partition;

/// What processes have left.
pub struct Leavings<'a> {
    dataflow: &'a Dataflow,
    folder: &'a Path,
    database: &'a Database,
    objects: &'a Faulty,
    world: &'a Shared,
}

impl<'a> Leavings<'a> {
    pub fn of(
        dataflow: &'a Dataflow,
        folder: &'a Path,
        database: &'a Database,
        objects: &'a Faulty,
        world: &'a Shared,
    ) -> Leavings<'a> {
        Leavings { dataflow, folder, database, objects, world }
    }

    /// After any end of a process: the index has no row whose vector the embedding store lacks, and no text was stored twice.
    pub async fn embeddings(&self) -> Result<(), String> {
        let store =
            EmbeddingStore::open(&self.folder.join("embeddings"), &embedder::model(), DIMENSION).map_err(said)?;
        if store.records() != store.len() {
            return Err(format!("{} vectors are kept of {} texts", store.records(), store.len()));
        }
        let Some((rows, _)) = self.index().await? else { return Ok(()) };
        for row in Shown::all(&rows) {
            if !store.contains(&embedder::hash(&row.text)) {
                return Err(format!("the vector of {:?} is in the index and not in the embedding store", row.text));
            }
        }
        Ok(())
    }

    /// After a process that has caught up: the index is the view over the latest rows, recomputed in batch, with its texts' vectors. Says how many
    /// rows were compared.
    pub async fn view(&self) -> Result<usize, String> {
        let (rows, announced) = self.index().await?.ok_or("there is no index")?;
        let (end, position) = (lock(self.world).shop.end(), &announced.reached.position);
        if !position.covers(&end) {
            return Err(format!("the index is at {position:?}, and the topics end at {end:?}"));
        }
        let Dataflow { config, plan, .. } = self.dataflow;
        let view = audit::view(config, plan, &self.schemas(), position).await.map_err(said)?;
        let mut comparison = Comparison::new(&view, position);
        let key = &rows.columns()[..1];
        let converter = RowConverter::new(vec![SortField::new(key[0].data_type().clone())]).map_err(said)?;
        let keys = converter.convert_columns(key).map_err(said)?;
        let columns = rows.columns();
        let [vectors, hashes, texts] = &columns[columns.len() - 3..] else {
            return Err("the index has no columns".into());
        };
        let hash = |of: &Arc<dyn Array>, n| of.as_fixed_size_binary().value(n).try_into().expect("16 bytes");
        for n in 0..rows.num_rows() {
            let hashes = Fingerprint { row: hash(hashes, n), text: hash(texts, n) };
            let vector = vectors.as_fixed_size_list().value(n);
            if let Some(place) = comparison.take(keys.row(n).data(), hashes) {
                let text = view.text(place);
                if hashes.text != embedder::hash(text).0
                    || **vector.as_primitive::<Float32Type>().values() != *embedder::draw(text)
                {
                    return Err(format!("the vector of {text:?} is another one"));
                }
            }
        }
        match comparison.end().differences.first() {
            None => Ok(rows.num_rows()),
            Some(difference) => Err(difference.clone()),
        }
    }

    /// The rows of the index and its announcement, if there is one.
    pub async fn index(&self) -> Result<Option<(RecordBatch, Announced)>, String> {
        let at = format!("index/{}.announced.json", self.dataflow.config.name);
        let bytes = match self.objects.get(&at.into()).await {
            Ok(found) => found.bytes().await.map_err(said)?,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(e) => return Err(said(e)),
        };
        let announced: Announced = serde_json::from_slice(&bytes).map_err(said)?;
        Ok(self.database.rows(&announced.table).map(|rows| (rows, announced)))
    }

    /// After the last process: every offset of every partition is in raw once.
    pub async fn offsets(&self) -> Result<(), String> {
        let (config, raw) = (&self.dataflow.config, self.dataflow.raw());
        let mut found: BTreeMap<Partition, Vec<i64>> = BTreeMap::new();
        for (n, source) in config.sources.iter().enumerate() {
            let location = raw.table(source);
            let table = RawTable::open(&location, &raw.options, &config.name, &source.topic);
            let table = table.await.map_err(said)?;
            let row_type = Arc::new(RowType::from_contract(source).map_err(said)?);
            let events = Hydration::open(&table, None, n, source, row_type, self.schemas());
            let mut events = events.await.map_err(said)?;
            while let Some(decoded) = events.next().await.map_err(said)? {
                let changes = decoded.changes.iter().map(|change| change.offset.0);
                let of_rejects = decoded.rejects.iter().map(|reject| reject.offset.0);
                let mut offsets: Vec<i64> = changes.chain(of_rejects).collect();
                offsets.sort_unstable();
                found.entry(decoded.partition).or_default().extend(offsets);
            }
        }
        for (partition, topic) in &lock(self.world).shop.topics {
            let found = found.remove(partition).unwrap_or_default();
            if !topic.offsets().eq(found.iter().copied()) {
                let expected: Vec<i64> = topic.offsets().collect();
                return Err(format!("raw has of {partition} the offsets {found:?}, and the topic {expected:?}"));
            }
        }
        Ok(())
    }

    /// After the last process: what nobody can read is in quarantine, once and with its bytes, and nothing else.
    pub async fn quarantine(&self) -> Result<(), String> {
        let (location, options) = self.dataflow.config.quarantine();
        let entries = Entries::open(&location, &options, true).await.map_err(said)?;
        let mut entries = entries.ok_or("there is no quarantine")?;
        let mut held = BTreeSet::new();
        while let Some(some) = entries.next().await.map_err(said)? {
            for entry in some {
                if let Some(at) = entry.healed_ms {
                    return Err(format!("{} is said to have healed at {at}", entry.at));
                }
                let told = entry.at.to_string();
                if !held.insert((entry.at.partition, entry.at.offset.0, entry.value)) {
                    return Err(format!("the quarantine holds {told} twice"));
                }
            }
        }
        let world = lock(self.world);
        let garbage = world.shop.topics.iter().flat_map(|(partition, topic)| {
            let of_topic = topic.messages.iter().enumerate().filter(|(_, message)| message.is_garbage());
            of_topic.map(|(n, message)| (partition.clone(), n as i64, message.value.clone()))
        });
        let garbage = garbage.collect();
        match held == garbage {
            true => Ok(()),
            false => {
                let at = |of: &BTreeSet<(Partition, i64, Option<Vec<u8>>)>| -> Vec<String> {
                    of.iter().map(|(partition, offset, _)| format!("{partition} {offset}")).collect()
                };
                Err(format!("the quarantine holds {:?}, and {:?} cannot be read", at(&held), at(&garbage)))
            }
        }
    }

    fn schemas(&self) -> Arc<dyn SchemaStore> {
        Arc::new(FixedSchemas(lock(self.world).shop.schemas().into_iter().collect()))
    }
}

fn said(e: impl ToString) -> String {
    e.to_string()
}
