//! What is checked of what lies there when no process runs.
//!
//! The invariant: nothing is asked of a process; raw, the index, the embedding store and the quarantine are read as anybody reads them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::runtime::Runtime;

use super::embedder;
use super::process::Place;
use super::world::{Shared, lock};
use crate::audit::{self, Comparison};
use crate::decode::{FixedSchemas, RowType, SchemaStore};
use crate::raw::{Hydration, RawTable};
use crate::time::Partition;

/// After any end of a process: the index has no row whose vector the embedding store lacks, and no text was stored twice.
pub fn embeddings(place: &Place<'_>, world: &Shared) -> Result<(), String> {
    let (rows, _) = runtime()?.block_on(place.index.rows(place.dataflow)).map_err(said)?;
    let store = place.embeddings().map_err(said)?;
    if store.records() != store.len() {
        return Err(format!("{} vectors are kept of {} texts", store.records(), store.len()));
    }
    let world = lock(world);
    for row in &rows {
        let shown = world.watch.shown(&row.hashes.row).ok_or("the index has a row that the view never had")?;
        let hash = embedder::hash(&shown.text);
        if !store.contains(&hash) {
            return Err(format!("the vector of {:?} is in the index and not in the embedding store", shown.text));
        }
    }
    Ok(())
}

/// After a process that has caught up: raw has every offset once; the index is the view over the latest rows, recomputed in batch, with its texts'
/// vectors; what could not be read is in quarantine. Says how many rows were compared.
pub fn caught_up(place: &Place<'_>, world: &Shared) -> Result<usize, String> {
    lock(world).calm();
    runtime()?.block_on(async {
        offsets(place, world).await?;
        quarantine(place, world)?;
        let (config, plan, storage) = (&place.dataflow.config, &place.dataflow.plan, place.storage());
        let (rows, announced) = place.index.rows(place.dataflow).await.map_err(said)?;
        let (end, position) = (lock(world).shop.end(), &announced.reached.position);
        if !position.covers(&end) {
            return Err(format!("the index is at {position:?}, and the topics end at {end:?}"));
        }
        let raw = (place.dataflow.raw(), &storage);
        let view = audit::view(config, plan, raw, &schemas(world), position).await.map_err(said)?;
        let mut comparison = Comparison::new(&view, position);
        for row in &rows {
            if let Some(of_view) = comparison.take(&row.key, row.hashes)
                && row.vector != embedder::draw(view.text(of_view.place))
            {
                return Err(format!("the vector of {:?} is another one", view.text(of_view.place)));
            }
        }
        match comparison.end().differences.first() {
            None => Ok(rows.len()),
            Some(difference) => Err(difference.clone()),
        }
    })
}

/// Every offset of every partition is in raw once.
async fn offsets(place: &Place<'_>, world: &Shared) -> Result<(), String> {
    let (config, storage) = (&place.dataflow.config, place.storage());
    let mut found: BTreeMap<Partition, Vec<i64>> = BTreeMap::new();
    for (n, source) in config.sources.iter().enumerate() {
        let location = place.dataflow.raw().table(source);
        let table = RawTable::open(&location, &storage, &config.name, &source.topic).await.map_err(said)?;
        let row_type = Arc::new(RowType::from_contract(source).map_err(said)?);
        let events = Hydration::open(&table, None, n, source, row_type, schemas(world)).await;
        let mut events = events.map_err(said)?;
        while let Some(decoded) = events.next().await.map_err(said)? {
            let changes = decoded.changes.iter().map(|change| change.offset.0);
            let mut offsets: Vec<i64> = changes.chain(decoded.rejects.iter().map(|reject| reject.offset.0)).collect();
            offsets.sort_unstable();
            found.entry(decoded.partition).or_default().extend(offsets);
        }
    }
    for (partition, topic) in &lock(world).shop.topics {
        let found = found.remove(partition).unwrap_or_default();
        if !topic.offsets().eq(found.iter().copied()) {
            let expected: Vec<i64> = topic.offsets().collect();
            return Err(format!("raw has of {partition} the offsets {found:?}, and the topic {expected:?}"));
        }
    }
    Ok(())
}

/// What nobody can read is in quarantine, and nothing else.
fn quarantine(place: &Place<'_>, world: &Shared) -> Result<(), String> {
    let text = std::fs::read_to_string(place.quarantine_file()).map_err(said)?;
    let mut held = BTreeSet::new();
    for line in text.lines() {
        let entry: serde_json::Value = serde_json::from_str(line).map_err(said)?;
        let place = (entry["topic"].as_str().map(String::from), entry["partition"].as_i64(), entry["offset"].as_i64());
        if !held.insert(place) {
            return Err(format!("the quarantine holds a message twice: {line}"));
        }
    }
    let world = lock(world);
    let garbage = world.shop.topics.iter().flat_map(|(partition, topic)| {
        let of_topic = topic.messages.iter().enumerate().filter(|(_, message)| message.is_garbage());
        of_topic.map(|(n, _)| (Some(partition.topic.to_string()), Some(i64::from(partition.number)), Some(n as i64)))
    });
    let garbage = garbage.collect();
    match held == garbage {
        true => Ok(()),
        false => Err(format!("the quarantine holds {held:?}, and {garbage:?} cannot be read")),
    }
}

fn schemas(world: &Shared) -> Arc<dyn SchemaStore> {
    Arc::new(FixedSchemas(lock(world).shop.schemas().into_iter().collect()))
}

fn runtime() -> Result<Runtime, String> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(said)
}

fn said(e: impl ToString) -> String {
    e.to_string()
}
