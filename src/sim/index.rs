//! The index of the simulation: a table in memory, or LanceDB's on disk, crossed at its seams.
//!
//! The invariant: of a commit that the process dies in, the rows may be in and the deletes not; an announcement is there or is not.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::Float32Type;
use arrow_row::{RowConverter, SortField};
use futures::FutureExt;
use futures::future::BoxFuture;

use super::dataflow::Dataflow;
use super::embedder::{self, DIMENSION};
use super::watch::Answer;
use super::world::{Crossing, Dead, Seam, Shared, lock};
use crate::index::{Announced, Columns, Error, Fingerprint, IndexReader, IndexRow, IndexStore, IndexTable, Reached};
use crate::time::{Epoch, Position};

/// What outlives a process of its index.
#[derive(Clone)]
pub enum Kept {
    Memory(Arc<Mutex<Table>>),
    /// Where the configuration says.
    Lance,
}

#[derive(Default)]
pub struct Table {
    rows: BTreeMap<Box<[u8]>, (Fingerprint, Vec<f32>)>,
    announced: Option<Announced>,
}

impl Kept {
    /// The index as a process opens it.
    pub async fn open(&self, dataflow: &Dataflow, world: &Shared) -> Result<Seamed, Error> {
        let (config, view, model) = (&dataflow.config.index, dataflow.plan.view_schema(), embedder::model());
        let store: Box<dyn IndexStore> = match self {
            Kept::Memory(table) => {
                let columns = Columns::new(config, view.clone(), DIMENSION)?;
                let announced = held(table).announced.clone();
                Box::new(Memory { table: table.clone(), columns, announced })
            }
            Kept::Lance => {
                let name = &dataflow.config.name;
                Box::new(IndexTable::open(config, name, view.clone(), &model.0, DIMENSION).await?)
            }
        };
        let store = Seamed { store, world: world.clone() };
        let announced = store.announced().cloned().unwrap_or_default();
        store.answer(announced.reached.epoch, &announced.reached.position, false).await?;
        Ok(store)
    }

    /// What is there of it; how far it was announced to go.
    pub async fn rows(&self, dataflow: &Dataflow) -> Result<(Vec<IndexRow>, Announced), Error> {
        let mut rows = Vec::new();
        match self {
            Kept::Memory(table) => {
                let table = held(table);
                let row = |(key, (hashes, vector)): (&Box<[u8]>, &(Fingerprint, Vec<f32>))| IndexRow {
                    key: key.clone(),
                    hashes: *hashes,
                    vector: vector.clone(),
                };
                Ok((table.rows.iter().map(row).collect(), table.announced.clone().unwrap_or_default()))
            }
            Kept::Lance => {
                let config = &dataflow.config;
                let Some(reader) = IndexReader::open(&config.index, &config.name).await? else { return Ok(Default::default()) };
                reader.rows(|row| rows.push(row)).await?;
                Ok((rows, reader.announced().clone()))
            }
        }
    }
}

fn held(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().expect("no holder of this lock panics")
}

/// What keeps an index, under the world's eyes.
pub struct Seamed {
    store: Box<dyn IndexStore>,
    world: Shared,
}

impl Seamed {
    /// Lets the watch see what searches see now.
    async fn answer(&self, epoch: Epoch, position: &Position, is_complete: bool) -> Result<(), Error> {
        let rows = self.store.fingerprints().await?;
        let world = &mut *lock(&self.world);
        world.watch.answer(&world.shop, &Answer { epoch, position, rows: &rows, is_complete });
        Ok(())
    }
}

impl From<Dead> for Error {
    fn from(dead: Dead) -> Error {
        Error::Storage { uri: "the index".into(), reason: dead.to_string() }
    }
}

impl IndexStore for Seamed {
    fn location(&self) -> &str {
        self.store.location()
    }

    fn columns(&self) -> Columns {
        self.store.columns()
    }

    fn announced(&self) -> Option<&Announced> {
        self.store.announced()
    }

    fn fingerprints(&self) -> BoxFuture<'_, Result<HashMap<Box<[u8]>, Fingerprint>, Error>> {
        self.store.fingerprints()
    }

    fn announce<'a>(&'a mut self, epoch: Epoch, position: &'a Position) -> BoxFuture<'a, Result<(), Error>> {
        let work = async move {
            let crossing = Crossing::begin(&self.world, Seam::Announcement)?;
            self.store.announce(epoch, position).await?;
            Ok(crossing.end()?)
        };
        work.boxed()
    }

    fn commit(&mut self, upserts: Option<RecordBatch>, deletes: Option<ArrayRef>) -> BoxFuture<'_, Result<(), Error>> {
        let work = async move {
            for (seam, upserts, deletes) in [(Seam::IndexRows, upserts, None), (Seam::IndexDeletes, None, deletes)] {
                if upserts.is_some() || deletes.is_some() {
                    let crossing = Crossing::begin(&self.world, seam)?;
                    lock(&self.world).counts.index_commits += 1;
                    self.store.commit(upserts, deletes).await?;
                    crossing.end()?;
                }
            }
            Ok(())
        };
        work.boxed()
    }

    fn publish<'a>(&'a mut self, reached: Option<(Epoch, &'a Position)>) -> BoxFuture<'a, Result<(), Error>> {
        let work = async move {
            let crossing = Crossing::begin(&self.world, Seam::Publication)?;
            self.store.publish(reached).await?;
            match reached {
                Some((epoch, position)) => self.answer(epoch, position, true).await?,
                // Under the position of the answer before.
                None => {
                    let (epoch, position) = lock(&self.world).watch.reached();
                    self.answer(epoch, &position, false).await?;
                }
            }
            Ok(crossing.end()?)
        };
        work.boxed()
    }

    fn maintain(&mut self, idle: bool) -> BoxFuture<'_, Result<bool, Error>> {
        let work = async move {
            let crossing = Crossing::begin(&self.world, Seam::IndexMaintenance)?;
            let did = self.store.maintain(idle).await?;
            crossing.end()?;
            Ok(did)
        };
        work.boxed()
    }
}

/// A table in memory with the commits of a LanceDB table.
struct Memory {
    table: Arc<Mutex<Table>>,
    columns: Columns,
    announced: Option<Announced>,
}

impl Memory {
    fn say(&mut self, announced: Announced) {
        held(&self.table).announced = Some(announced.clone());
        self.announced = Some(announced);
    }

    fn keys(&self, column: &ArrayRef) -> Vec<Box<[u8]>> {
        let converter = RowConverter::new(vec![SortField::new(column.data_type().clone())]);
        let rows = converter.and_then(|c| c.convert_columns(std::slice::from_ref(column)));
        let rows = rows.expect("a key has a row format");
        rows.iter().map(|key| key.data().into()).collect()
    }
}

impl IndexStore for Memory {
    fn location(&self) -> &str {
        "memory"
    }

    fn columns(&self) -> Columns {
        self.columns.clone()
    }

    fn announced(&self) -> Option<&Announced> {
        self.announced.as_ref()
    }

    fn fingerprints(&self) -> BoxFuture<'_, Result<HashMap<Box<[u8]>, Fingerprint>, Error>> {
        let all = held(&self.table).rows.iter().map(|(key, (hashes, _))| (key.clone(), *hashes)).collect();
        std::future::ready(Ok(all)).boxed()
    }

    fn announce<'a>(&'a mut self, epoch: Epoch, position: &'a Position) -> BoxFuture<'a, Result<(), Error>> {
        let reached = self.announced.as_ref().map(|a| a.reached.clone()).unwrap_or_default();
        self.say(Announced { model_id: embedder::model().0, epoch, position: position.clone(), reached });
        std::future::ready(Ok(())).boxed()
    }

    fn commit(&mut self, upserts: Option<RecordBatch>, deletes: Option<ArrayRef>) -> BoxFuture<'_, Result<(), Error>> {
        let mut table = held(&self.table);
        if let Some(batch) = upserts {
            let view = self.columns.view.fields().len();
            let [rows, texts] = [1, 2].map(|n| batch.column(view + n).as_fixed_size_binary());
            let vectors = batch.column(view).as_fixed_size_list();
            let keys = self.keys(batch.column(self.columns.key));
            let mut distinct = keys.clone();
            distinct.sort_unstable();
            distinct.dedup();
            assert_eq!(distinct.len(), keys.len(), "a commit has a key twice");
            for (n, key) in keys.into_iter().enumerate() {
                let hash = |of: &arrow::array::FixedSizeBinaryArray| of.value(n).try_into().expect("16 bytes");
                let vector = vectors.value(n).as_primitive::<Float32Type>().values().to_vec();
                table.rows.insert(key, (Fingerprint { row: hash(rows), text: hash(texts) }, vector));
            }
        }
        for key in deletes.iter().flat_map(|column| self.keys(column)) {
            table.rows.remove(&key);
        }
        std::future::ready(Ok(())).boxed()
    }

    fn publish<'a>(&'a mut self, reached: Option<(Epoch, &'a Position)>) -> BoxFuture<'a, Result<(), Error>> {
        if let (Some((epoch, position)), Some(announced)) = (reached, self.announced.clone()) {
            self.say(Announced { reached: Reached { epoch, position: position.clone() }, ..announced });
        }
        std::future::ready(Ok(())).boxed()
    }

    fn maintain(&mut self, _: bool) -> BoxFuture<'_, Result<bool, Error>> {
        std::future::ready(Ok(false)).boxed()
    }
}
