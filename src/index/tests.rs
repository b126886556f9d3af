//! The index on a real LanceDB table with the real model.

mod lost;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow_row::{RowConverter, SortField};

use super::maintenance::{PARTS_MAX, UNINDEXED_ROWS};
use super::*;
use crate::config;
use crate::dataflow::ViewChange;
use crate::embed::{self, BatchStats, Embedder, EmbeddingStore, ModelId, TextEmbedder, TextHash};
use crate::serve::{Search, SearchError, Searcher};
use crate::time::{Epoch, Offset, Partition, Position};

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, true),
        Field::new("text", DataType::Utf8, true),
        Field::new("price", DataType::Int64, true),
    ]))
}

fn change(id: i64, row: Option<(&str, i64)>) -> ViewChange {
    let converter =
        |types: &[DataType]| RowConverter::new(types.iter().map(|t| SortField::new(t.clone())).collect()).unwrap();
    let key: ArrayRef = Arc::new(Int64Array::from(vec![id]));
    let bytes = converter(&[DataType::Int64]).convert_columns(std::slice::from_ref(&key)).unwrap().row(0).data().into();
    let row = row.map(|(text, price)| {
        let columns: Vec<ArrayRef> =
            vec![key, Arc::new(StringArray::from(vec![text])), Arc::new(Int64Array::from(vec![price]))];
        let types = [DataType::Int64, DataType::Utf8, DataType::Int64];
        converter(&types).convert_columns(&columns).unwrap().row(0).data().into()
    });
    ViewChange { key: bytes, row }
}

fn config(folder: &Path, ann_min_rows: usize) -> config::Index {
    config::Index {
        uri: folder.join("index").to_string_lossy().into_owned(),
        options: Default::default(),
        key: "id".into(),
        text: "text".into(),
        commit_max_keys: 100,
        ann_min_rows,
        ann_max_unindexed: 0.1,
        compact_min_fragments: 2,
        versions_max_age_s: 60,
    }
}

fn design(config: &config::Index, embedder: &dyn TextEmbedder) -> Arc<Design> {
    Design::new(config, "t", vec!["topic".into()], schema(), embedder).unwrap()
}

async fn open(folder: &Path, embedder: Arc<dyn TextEmbedder>, ann_min_rows: usize) -> (Indexer, IndexSearcher) {
    let found = Place::open(design(&config(folder, ann_min_rows), &*embedder), false).await.unwrap();
    let store = EmbeddingStore::open(&folder.join("store"), embedder.model_id(), embedder.dimension()).unwrap();
    let indexer = Indexer::new(found, store, embedder).await.unwrap();
    let searcher = indexer.searcher().unwrap().expect("the index is whole");
    (indexer, searcher)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_is_bounded_and_its_mistakes_are_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let embedder = Arc::new(Embedder::load(&crate::embed::tests::config()).unwrap());
    let (mut indexer, searcher) = open(folder.path(), embedder.clone(), 1_000_000).await;
    let changes = [change(1, Some(("two-person tent", 10))), change(2, Some(("steel saucepan", 20)))];
    indexer.apply(&changes, &mut |_| ()).await.unwrap();
    indexer.publish(Some((Epoch(1), &Position::default()))).await.unwrap();
    let vector: Arc<[f32]> = embedder.embed(&["tent"], &mut |_| ()).unwrap().remove(0).into();
    let search = |filter: &str| {
        searcher.search(Search { vector: vector.clone(), k: 10, filter: Some(filter.into()), columns: None })
    };
    let listed = (-1000..1000).map(|n| n.to_string()).collect::<Vec<_>>().join(", ");
    let nested = format!("{}id = 1{}", "not (".repeat(10), ")".repeat(10));
    let terms = |n: usize| vec!["id = 1"; n].join(" or ");
    for (filter, rows) in [
        (format!("id in ({listed})"), 2),
        (nested, 1),
        (terms(67), 1),
        (format!("id{} = 199", " + 1".repeat(198)), 1),
        ("text like '%tent%' and price is not null".into(), 1),
        ("length(lower(text)) > 3 and abs(price) in (10, 20)".into(), 2),
        ("ceil(price / 3.0) = 4 and floor(price) = 10 and substr(text, 1, 3) = 'two'".into(), 1),
        ("price < 10.5 and price < 1e3 and trim(text) <> 'x'".into(), 1),
        ("case when price > 15 then id = 2 else id = 1 end".into(), 2),
        ("id > -9223372036854775808 and id between '1' and 1".into(), 1),
        ("price in (20, null) or text is null".into(), 1),
    ] {
        assert_eq!(search(&filter).await.map(|hits| hits.hits.len()).map_err(|e| e.to_string()), Ok(rows), "{filter}");
    }
    for (filter, reason) in [
        (terms(1000), "operators"),
        (format!("id{} = 99", " + 1".repeat(500)), "operators"),
        ("(".repeat(5000), "operators"),
        (format!("{}id = 1{}", "not (".repeat(11), ")".repeat(11)), "nest deeper"),
        (format!("{}id id{}", "not (".repeat(10), ")".repeat(10)), "id"),
        (format!("id in ({})", vec!["1"; 20_000].join(",")), "bytes"),
        ("length(repeat(text, 400000)) > 0".into(), "repeat()"),
        ("text || text = text".into(), "||"),
        ("id = 'abc'".into(), "abc"),
        ("1/0 = 1".into(), "ivide by zero"),
        ("id/0 = 1".into(), "ivide by zero"),
        ("id in (select 1)".into(), "SELECT"),
        ("id = (select 1)".into(), "SELECT"),
        ("price".into(), "not a condition"),
        ("$1 = id".into(), "no parameters: $1"),
        ("id = $x".into(), "no parameters: $x"),
        ("count(*) > 1".into(), "no count()"),
        ("nosuch(text) = 1".into(), "no nosuch(); its functions are"),
        ("id in (select id from other)".into(), "SELECT"),
        ("text = 1".into(), "Cannot cast string"),
        ("row_number() over () = 1".into(), "no row_number()"),
        ("colour = 1".into(), "colour"),
        ("id = 'x".into(), "nterminated"),
    ] {
        match search(&filter).await {
            Err(SearchError::BadFilter(said)) => {
                assert!(said.contains(reason) && !said.contains("Error("), "{filter}: {said}");
            }
            other => panic!("{filter}: {:?}", other.map(|hits| hits.hits.len())),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_found_changed_and_removed_and_outlive_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let embedder = Arc::new(Embedder::load(&crate::embed::tests::config()).unwrap());
    let position: Position = [(Partition::new("topic", 0), Offset(5))].into_iter().collect();
    let vector: Arc<[f32]> = embedder.embed(&["a shelter for camping"], &mut |_| ()).unwrap().remove(0).into();
    let search =
        |filter: Option<&str>| Search { vector: vector.clone(), k: 10, filter: filter.map(Into::into), columns: None };
    {
        let (mut indexer, searcher) = open(folder.path(), embedder.clone(), 1_000_000).await;
        let changes = [
            change(1, Some(("two-person tent", 10))),
            change(2, Some(("steel saucepan", 20))),
            change(3, Some(("two-person tent", 30))),
        ];
        indexer.announce(Epoch(1), &position).await.unwrap();
        let applied = indexer.apply(&changes, &mut |_| ()).await.unwrap();
        assert_eq!((applied.asked, applied.cached, applied.computed, applied.upserted), (3, 1, 2, 3));
        indexer.publish(Some((Epoch(1), &position))).await.unwrap();
        let hits = searcher.search(search(None)).await.unwrap();
        assert_eq!((hits.epoch, hits.hits.len()), (Epoch(1), 3));
        assert_eq!(&*hits.hits[2].key, "2", "the saucepan is farthest");
        assert_eq!(searcher.search(search(Some("price > 15"))).await.unwrap().hits.len(), 2);
        for bad in ["price >", "nothing = 1", "price + 1", "_row_hash IS NOT NULL"] {
            assert!(matches!(searcher.search(search(Some(bad))).await, Err(SearchError::BadFilter(_))), "{bad}");
        }
        // A price alone asks for no vector; the same row again is no write.
        let applied = indexer
            .apply(&[change(1, Some(("two-person tent", 11))), change(2, Some(("steel saucepan", 20)))], &mut |_| ())
            .await
            .unwrap();
        assert_eq!((applied.asked, applied.computed, applied.upserted, applied.unchanged), (0, 0, 1, 1));
        let applied = indexer.apply(&[change(3, None), change(9, None)], &mut |_| ()).await.unwrap();
        assert_eq!((applied.deleted, applied.unchanged), (1, 1));
        indexer.publish(Some((Epoch(2), &position))).await.unwrap();
        assert!(indexer.maintain(true).await.unwrap(), "small fragments are compacted");
        indexer.publish(Some((Epoch(2), &position))).await.unwrap();
        let item = searcher.item("1").await.unwrap();
        assert_eq!(&*item.row, r#"{"id":1,"text":"two-person tent","price":11}"#);
        assert!(matches!(searcher.item("3").await, Err(SearchError::NoSuchKey(_))));
        assert!(matches!(searcher.item("x").await, Err(SearchError::BadKey(_))));
        let similar = searcher.similar("1", 5).await.unwrap();
        assert_eq!(similar.hits.iter().map(|h| &*h.key).collect::<Vec<_>>(), ["2"]);
    }
    let (mut indexer, searcher) = open(folder.path(), embedder.clone(), 1_000_000).await;
    assert_eq!((indexer.len(), indexer.announced()), (2, (Epoch(2), position.clone())));
    assert_eq!(searcher.search(search(None)).await.unwrap().position, Arc::new(position.clone()));
    // What is announced and not there yet is the next start's to catch up with; answers do not claim it.
    let further: Position = [(Partition::new("topic", 0), Offset(9))].into_iter().collect();
    indexer.announce(Epoch(3), &further).await.unwrap();
    drop((indexer, searcher));
    let (mut indexer, searcher) = open(folder.path(), embedder.clone(), 1_000_000).await;
    assert_eq!(indexer.announced(), (Epoch(3), further));
    let hits = searcher.search(search(None)).await.unwrap();
    assert_eq!((hits.epoch, hits.position), (Epoch(2), Arc::new(position)));
    let applied = indexer.apply(&[change(1, Some(("two-person tent", 11)))], &mut |_| ()).await.unwrap();
    assert_eq!((applied.unchanged, applied.upserted), (1, 0));
    let view = [change(1, None).key].into_iter().collect();
    assert_eq!(indexer.orphans(&view), [change(2, None)]);
}

/// Vectors drawn from a text's hash: far from each other, and the same for the same text.
struct Drawn(ModelId);

impl Drawn {
    const DIMENSION: usize = 16;

    fn draw(&self, text: &str) -> Vec<f32> {
        let bytes = TextHash::of(&self.0, text).0;
        let numbers: Vec<f32> = bytes.iter().map(|b| f32::from(*b) - 127.5).collect();
        let length = numbers.iter().map(|n| n * n).sum::<f32>().sqrt();
        numbers.iter().map(|n| n / length).collect()
    }
}

impl TextEmbedder for Drawn {
    fn model_id(&self) -> &ModelId {
        &self.0
    }

    fn dimension(&self) -> usize {
        Self::DIMENSION
    }

    fn embed(&self, texts: &[&str], _: &mut dyn FnMut(BatchStats)) -> Result<Vec<Vec<f32>>, embed::Error> {
        Ok(texts.iter().map(|text| self.draw(text)).collect())
    }

    fn embed_query(&self, text: &str) -> Result<Vec<f32>, embed::Error> {
        Ok(self.draw(text))
    }
}

/// Has all maintenance done that there is to do; says whether there was any.
async fn maintained(indexer: &mut Indexer) -> bool {
    let (mut did, begun) = (false, std::time::Instant::now());
    loop {
        // A hang becomes a failure after this; nothing is measured by it.
        assert!(begun.elapsed() < std::time::Duration::from_secs(60), "there is always more to do");
        let (merged, works) = (indexer.maintain(true).await.unwrap(), indexer.table().has_ann_work());
        if !merged && !works {
            return did;
        }
        did = true;
        if works && !indexer.ann_done() {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_come_and_go_while_the_ann_index_is_made_and_extended() {
    let folder = tempfile::tempdir().unwrap();
    let embedder = Arc::new(Drawn(ModelId("drawn".into())));
    let (mut indexer, searcher) = open(folder.path(), embedder.clone(), 1_000).await;
    let text = |id: i64, version: i64| format!("the text {version} of {id}");
    let row = |id: i64, version: i64| change(id, Some((&text(id, version), version)));
    // Of each key that was ever there, the version of its text; none is gone.
    let mut versions: Vec<Option<i64>> = vec![Some(0); 5_000];
    indexer.apply(&(0..5_000).map(|id| row(id, 0)).collect::<Vec<_>>(), &mut |_| ()).await.unwrap();
    let mut version = 0;
    for _ in 0..3 {
        indexer.maintain(true).await.unwrap();
        assert!(indexer.table().has_ann_work());
        // Until it is done, and once more, rows get another text, one comes and one goes.
        let mut done = false;
        while !std::mem::replace(&mut done, indexer.ann_done()) {
            version += 1;
            let changed = (0..100).map(|n| (version * 37 + n) % 4_000);
            let (gone, new) = (versions.len() as i64 - 1, versions.len() as i64);
            let mut changes = vec![change(gone, None), row(new, version)];
            changes.extend(changed.clone().map(|id| row(id, version)));
            indexer.apply(&changes, &mut |_| ()).await.unwrap();
            changed.for_each(|id| versions[id as usize] = Some(version));
            versions[gone as usize] = None;
            versions.push(Some(version));
        }
        let more = versions.len() as i64..versions.len() as i64 + 2 * UNINDEXED_ROWS as i64;
        indexer.apply(&more.clone().map(|id| row(id, version)).collect::<Vec<_>>(), &mut |_| ()).await.unwrap();
        versions.extend(more.map(|_| Some(version)));
    }
    assert!(version > 3, "no commit came between");
    indexer.publish(None).await.unwrap();
    assert_eq!(indexer.len(), versions.iter().flatten().count());
    assert_eq!(indexer.table().count().await, indexer.len());
    let gone = versions.iter().enumerate().filter(|(_, at)| at.is_none());
    for (id, at) in versions.iter().enumerate().step_by(101).chain(gone) {
        let vector: Arc<[f32]> = embedder.draw(&text(id as i64, at.unwrap_or(0))).into();
        let hits = searcher.search(Search { vector, k: 1, filter: None, columns: None }).await.unwrap().hits;
        let is_found = *hits[0].key == *id.to_string() && hits[0].score > 0.999;
        assert_eq!(is_found, at.is_some(), "{id} of version {at:?}: {:?}", hits[0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ann_index_follows_the_rows_and_hides_none() {
    let folder = tempfile::tempdir().unwrap();
    let embedder = Arc::new(Drawn(ModelId("drawn".into())));
    let (mut indexer, searcher) = open(folder.path(), embedder.clone(), 1_000).await;
    // Of each key, the version of its text; none is gone.
    let mut versions: Vec<Option<usize>> = Vec::new();
    let text = |id: usize, version: usize| format!("the text {version} of {id}");
    let mut most_parts = 0;
    for round in 0..7 {
        // Rows come, and of those that are there each eleventh changes its text and each thirteenth goes.
        let mut changes = Vec::new();
        for (id, version) in versions.iter_mut().enumerate().filter(|(_, version)| version.is_some()) {
            if id % 11 == round {
                *version = Some(round);
                changes.push(change(id as i64, Some((&text(id, round), round as i64))));
            } else if id % 13 == round {
                *version = None;
                changes.push(change(id as i64, None));
            }
        }
        for id in versions.len()..versions.len() + 2 * UNINDEXED_ROWS {
            versions.push(Some(round));
            changes.push(change(id as i64, Some((&text(id, round), round as i64))));
        }
        indexer.apply(&changes, &mut |_| ()).await.unwrap();
        assert!(!indexer.maintain(false).await.unwrap(), "a single commit is not worth a look while there is work");
        assert!(!indexer.table().has_ann_work(), "nor an ANN index");
        assert!(maintained(&mut indexer).await, "there is something to do when there is no work");
        assert!(!maintained(&mut indexer).await, "and then nothing more");
        indexer.publish(None).await.unwrap();
        let ann = indexer.table().ann().await.unwrap().expect("there are rows enough");
        assert!(ann.num_unindexed_rows <= UNINDEXED_ROWS, "{ann:?}");
        most_parts = most_parts.max(ann.num_indices.unwrap());
        for (id, version) in versions.iter().enumerate().step_by(37) {
            let vector: Arc<[f32]> = embedder.draw(&text(id, version.unwrap_or(0))).into();
            let hits = searcher.search(Search { vector, k: 1, filter: None, columns: None }).await.unwrap().hits;
            assert_eq!(*hits[0].key == *id.to_string(), version.is_some(), "{id} in round {round}: {:?}", hits[0]);
        }
    }
    assert_eq!(indexer.len(), versions.iter().flatten().count());
    assert_eq!(indexer.table().count().await, indexer.len());
    assert!((2..=PARTS_MAX as u32 + 1).contains(&most_parts), "{most_parts} parts");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_beside_the_ann_index_loses_no_row_that_passes() {
    let folder = tempfile::tempdir().unwrap();
    let embedder = Arc::new(Drawn(ModelId("drawn".into())));
    let (mut indexer, searcher) = open(folder.path(), embedder.clone(), 1_000).await;
    // More rows than a search looks into: some of the few that pass lie in partitions that are far from where it looks.
    let rows = 13_000;
    let is_rare = |id: i64| id % 400 == 7;
    let text = |id: i64| format!("the text of {id}");
    let row = |id: i64| change(id, Some((&text(id), i64::from(is_rare(id)))));
    indexer.apply(&(0..rows).map(row).collect::<Vec<_>>(), &mut |_| ()).await.unwrap();
    assert!(maintained(&mut indexer).await);
    assert!(indexer.table().ann().await.unwrap().is_some(), "there are rows enough");
    let mut rare: BTreeMap<i64, String> = (0..rows).filter(|id| is_rare(*id)).map(|id| (id, text(id))).collect();
    for is_later in [false, true] {
        if is_later {
            // Some come to be outside of it, and of those that are in it one goes, and one has another text.
            let more = (rows..rows + 400).map(row).chain([change(7, None), change(407, Some(("another text", 1)))]);
            indexer.apply(&more.collect::<Vec<_>>(), &mut |_| ()).await.unwrap();
            rare.extend((rows..rows + 400).filter(|id| is_rare(*id)).map(|id| (id, text(id))));
            rare.insert(407, "another text".into());
            rare.remove(&7);
        }
        indexer.publish(Some((Epoch(1), &Position::default()))).await.unwrap();
        for near in [text(1), text(3), text(407), "another text".into()] {
            let vector = embedder.draw(&near);
            let score = |text: &str| embedder.draw(text).iter().zip(&vector).map(|(a, b)| a * b).sum::<f32>();
            let mut nearest: Vec<(String, f32)> = rare.iter().map(|(id, text)| (id.to_string(), score(text))).collect();
            nearest.sort_by(|a, b| b.1.total_cmp(&a.1));
            for k in [rare.len() + 10, rare.len(), rare.len() - 1] {
                let filter = Some("price = 1".into());
                let search = Search { vector: vector.clone().into(), k, filter, columns: None };
                let hits = searcher.search(search).await.unwrap().hits;
                assert_eq!(hits.len(), k.min(rare.len()), "of {k} that were asked for");
                if k >= rare.len() {
                    let told: Vec<&str> = hits.iter().map(|hit| &*hit.key).collect();
                    assert_eq!(told, nearest.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>(), "{near}");
                }
                for hit in &hits {
                    let exact = nearest.iter().find(|(key, _)| **key == *hit.key).expect("it passes the filter").1;
                    assert!((hit.score - exact).abs() < 1e-4, "{near}: {hit:?} and not {exact}");
                }
            }
        }
    }
}
