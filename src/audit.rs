//! The audit recomputes the view from raw, in batch and from scratch, and compares the index with it by key, row hash and vector. It shares
//! with the way on which the index came to be only the decoder, DataFusion's SQL and the model.
//!
//! The invariant: it only reads, and both sides are taken at the index's position: events that landed beyond it do not count.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::util::display::array_value_to_string;
use arrow_row::{RowConverter, SortField};
use futures::FutureExt;
use futures::future::BoxFuture;

use crate::config::Config;
use crate::dataflow::{self, Plan};
use crate::decode::{Op, RegistryClient, RowType, SchemaStore};
use crate::embed::{Embedder, TextHash};
use crate::engine;
use crate::index::{Announced, Fingerprint, IndexReader, IndexRow, row_hash};
use crate::raw::{Hydration, RawTable};
use crate::time::Position;

/// Differences that are told one by one.
const TOLD: usize = 10;
const COSINE_MIN: f32 = 0.9999;

/// The audit cannot be made; this says nothing of the index.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// What an audit found.
#[derive(Debug, Default)]
pub struct Audit {
    pub position: Position,
    pub view_rows: usize,
    pub index_rows: usize,
    /// Keys of the view that the index has not.
    pub missing: usize,
    /// Keys of the index that the view has not.
    pub orphans: usize,
    /// Keys whose row is another one.
    pub stale: usize,
    /// Keys that the index has several times.
    pub duplicates: usize,
    /// Rows whose text was embedded anew, and the lowest cosine between what came out and what the index has.
    pub sampled: usize,
    pub lowest_cosine: Option<f32>,
    /// The first differences, one sentence each.
    pub differences: Vec<String>,
}

impl Audit {
    pub fn is_clean(&self) -> bool {
        self.differences.is_empty()
    }

    fn differs(&mut self, what: impl FnOnce() -> String) {
        if self.differences.len() < TOLD {
            self.differences.push(what());
        }
    }
}

/// Audits a dataflow whose service has ended. `sample` is how many texts are embedded anew.
pub fn run(config: Config, sample: usize) -> BoxFuture<'static, Result<Audit, Error>> {
    async move { audit(&config, sample).await }.boxed()
}

async fn audit(config: &Config, sample: usize) -> Result<Audit, Error> {
    let (plan, _) = engine::plan(config).map_err(|problems| {
        problems.iter().map(|p| format!("{}: {}", p.key, p.reason)).collect::<Vec<_>>().join("; ")
    })?;
    let index = IndexReader::open(&config.index, &config.name).await?;
    let index = index.ok_or_else(|| format!("there is no index {} at {}", config.name, config.index.uri))?;
    let Announced { position, reached, .. } = index.announced();
    if *position != reached.position {
        return Err("the service has ended in the midst of its commits, and the index is between two positions: let it run and end in order first".into());
    }
    let schemas: Arc<dyn SchemaStore> = Arc::new(RegistryClient::new(&config.registry)?);
    let view = view(config, &plan, &schemas, position).await?;
    let mut comparison = Comparison::new(&view, position);
    let mut vectors = HashMap::new();
    let every = view.rows.len().div_ceil(sample.max(1)).max(1);
    let take = |row: IndexRow| match comparison.take(&row.key, row.hashes) {
        Some(place) if sample > 0 && place % every == 0 => drop(vectors.insert(place, (row.hashes.text, row.vector))),
        _ => {}
    };
    index.rows(take).await?;
    let found = comparison.end();
    let (embed, made_by) = (config.embed.clone(), index.announced().made_of.model_id.clone());
    tokio::task::spawn_blocking(move || embed_anew(&Embedder::load(&embed)?, &made_by, &view, &vectors, found)).await?
}

/// The view at a position, recomputed from raw.
pub(crate) async fn view(
    config: &Config,
    plan: &Plan,
    schemas: &Arc<dyn SchemaStore>,
    position: &Position,
) -> Result<View, Error> {
    View::new(config, plan.batch_view(tables(config, plan, schemas, position).await?).await?)
}

/// An index on its way through the comparison with the view, row by row.
pub(crate) struct Comparison<'v> {
    view: &'v View,
    seen: HashSet<Box<[u8]>>,
    found: Audit,
}

impl<'v> Comparison<'v> {
    pub fn new(view: &'v View, position: &Position) -> Comparison<'v> {
        let found = Audit { position: position.clone(), view_rows: view.rows.len(), ..Audit::default() };
        Comparison { view, seen: HashSet::new(), found }
    }

    /// Compares a row of the index. Says where in the view the same one is.
    pub fn take(&mut self, key: &[u8], hashes: Fingerprint) -> Option<usize> {
        let Comparison { view, seen, found } = self;
        found.index_rows += 1;
        if !seen.insert(key.into()) {
            found.duplicates += 1;
            found.differs(|| format!("the index has the key {} more than once", view.shown(key)));
            return None;
        }
        match view.rows.get(key) {
            None => {
                found.orphans += 1;
                found.differs(|| format!("the key {} is in the index and not in the view", view.shown(key)));
                None
            }
            Some(of_view) if of_view.hash != hashes.row => {
                found.stale += 1;
                found.differs(|| format!("the row of the key {} is another one", view.shown(key)));
                None
            }
            Some(of_view) => Some(of_view.place),
        }
    }

    /// What was found, after the last row.
    pub fn end(mut self) -> Audit {
        for key in self.view.rows.keys().filter(|key| !self.seen.contains(*key)) {
            self.found.missing += 1;
            self.found.differs(|| format!("the key {} is in the view and not in the index", self.view.shown(key)));
        }
        self.found
    }
}

/// The sources' latest rows at a position, with all columns of their contracts.
async fn tables(
    config: &Config,
    plan: &Plan,
    schemas: &Arc<dyn SchemaStore>,
    position: &Position,
) -> Result<Vec<RecordBatch>, Error> {
    let raw = config.raw.as_ref().ok_or("the dataflow has no [raw]: there is nothing to compare the index with")?;
    let mut tables = Vec::new();
    for (n, (source, of_plan)) in config.sources.iter().zip(plan.tables()).enumerate() {
        let row_type = Arc::new(RowType::from_contract(source)?);
        let table = RawTable::open(&raw.table(source), &raw.options, &config.name, &source.topic).await?;
        for (partition, reached) in position.iter().filter(|(p, _)| p.topic == source.topic) {
            let landed = table.landed().get(partition).unwrap_or_default();
            if landed < reached {
                let (landed, reached) = (landed.0, reached.0);
                return Err(format!("the index reflects {partition} up to {reached}, and raw has landed up to {landed}: let the service run and end in order first").into());
            }
        }
        let mut events = Hydration::open(&table, None, n, source, row_type.clone(), schemas.clone()).await?;
        let mut rows: HashMap<Box<[u8]>, Arc<[u8]>> = HashMap::new();
        while let Some(decoded) = events.next().await? {
            let end = position.get(&decoded.partition).unwrap_or_default();
            for change in decoded.changes.into_iter().take_while(|change| change.offset < end) {
                match change.op {
                    Op::Truncate => rows.clear(),
                    Op::Delete => drop(rows.remove(&change.key)),
                    Op::Upsert { row, unavailable } => {
                        let row = match (unavailable, rows.get(&change.key)) {
                            (Some(columns), Some(old)) => dataflow::patch(&row_type, &row, old, &columns),
                            _ => row,
                        };
                        rows.insert(change.key, row);
                    }
                }
            }
        }
        let columns = row_type.rows_to_columns(rows.values().map(|row| &**row))?;
        tables.push(RecordBatch::try_new(of_plan.columns.clone(), columns)?);
    }
    Ok(tables)
}

/// The view as it should be.
pub(crate) struct View {
    batch: RecordBatch,
    text: usize,
    key: usize,
    rows: BTreeMap<Box<[u8]>, ViewRow>,
}

struct ViewRow {
    /// Where it stands in the batch.
    place: usize,
    hash: [u8; 16],
}

impl View {
    fn new(config: &Config, batch: RecordBatch) -> Result<View, Error> {
        let schema = batch.schema();
        let (key, text) = (schema.index_of(&config.index.key)?, schema.index_of(&config.index.text)?);
        let converter = |columns: std::ops::Range<usize>| {
            RowConverter::new(columns.map(|n| SortField::new(schema.field(n).data_type().clone())).collect())
        };
        let all = converter(0..batch.num_columns())?.convert_columns(batch.columns())?;
        let keys = converter(key..key + 1)?.convert_columns(&batch.columns()[key..=key])?;
        let mut rows: BTreeMap<Box<[u8]>, ViewRow> = BTreeMap::new();
        for place in 0..batch.num_rows() {
            // Of several rows under one key the smallest stands for them, as in the index.
            let is_smaller = |held: &ViewRow| all.row(place) < all.row(held.place);
            if rows.get(keys.row(place).data()).is_none_or(is_smaller) {
                let row = ViewRow { place, hash: row_hash(all.row(place).data()) };
                rows.insert(keys.row(place).data().into(), row);
            }
        }
        Ok(View { batch, text, key, rows })
    }

    /// A key as a person reads it.
    fn shown(&self, key: &[u8]) -> String {
        let column = self.batch.column(self.key);
        let own = self.rows.get(key).and_then(|row| array_value_to_string(column, row.place).ok());
        own.unwrap_or_else(|| {
            let converter = RowConverter::new(vec![SortField::new(column.data_type().clone())]);
            let read = converter.and_then(|c| c.convert_rows([c.parser().parse(key)]));
            read.and_then(|columns| array_value_to_string(&columns[0], 0)).unwrap_or_else(|_| format!("{key:x?}"))
        })
    }

    /// The text of the row at a place.
    pub fn text(&self, place: usize) -> &str {
        let texts = self.batch.column(self.text).as_string::<i32>();
        if texts.is_null(place) { "" } else { texts.value(place) }
    }
}

/// Embeds the sampled rows' texts once more.
fn embed_anew(
    embedder: &Embedder,
    made_by: &str,
    view: &View,
    vectors: &HashMap<usize, ([u8; 16], Vec<f32>)>,
    mut found: Audit,
) -> Result<Audit, Error> {
    if embedder.model_id().0 != made_by {
        found.differs(|| {
            format!("the index is of the model {made_by}, and the dataflow's is {}", embedder.model_id().0)
        });
        return Ok(found);
    }
    let places: Vec<usize> = vectors.keys().copied().collect();
    let texts: Vec<&str> = places.iter().map(|place| view.text(*place)).collect();
    let anew = embedder.embed(&texts, &mut |_| ())?;
    for ((place, text), new) in places.iter().zip(texts).zip(anew) {
        let (hash, old) = &vectors[place];
        let key = || array_value_to_string(view.batch.column(view.key), *place).unwrap_or_default();
        let cosine: f32 = old.iter().zip(&new).map(|(a, b)| a * b).sum();
        found.sampled += 1;
        found.lowest_cosine = Some(found.lowest_cosine.map_or(cosine, |lowest| lowest.min(cosine)));
        if *hash != TextHash::of(embedder.model_id(), text).0 {
            found.differs(|| format!("the text of the key {} is another one", key()));
        } else if cosine < COSINE_MIN || old.len() != new.len() {
            found.differs(|| {
                format!("the vector of the key {} is another one: its cosine to the text's is {cosine}", key())
            });
        }
    }
    Ok(found)
}
