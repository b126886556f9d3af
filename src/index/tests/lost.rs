//! An index of which something is gone, torn or another's: what a start says of it, and that it ends up whole with nothing embedded again.

use std::fs;
use std::path::PathBuf;

use super::*;

const ROWS: i64 = 600;
/// Few enough for an ANN index.
const ANN: usize = 300;

fn position(next: i64) -> Position {
    [(Partition::new("topic", 0), Offset(next))].into_iter().collect()
}

fn drawn() -> Arc<dyn TextEmbedder> {
    Arc::new(Drawn(ModelId("drawn".into())))
}

fn view() -> Vec<ViewChange> {
    // Two share a text.
    (0..ROWS).filter(|id| id % 7 != 0).map(|id| change(id, Some((&format!("text {}", id / 2), id)))).collect()
}

/// An index as a service leaves it: several commits, rows that were deleted, an ANN index, and commits after it.
async fn made() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let (mut indexer, _) = open(folder.path(), drawn(), ANN).await;
    let all: Vec<ViewChange> = (0..ROWS).map(|id| change(id, Some((&format!("text {}", id / 2), id)))).collect();
    for (n, some) in all.chunks(200).enumerate() {
        let (epoch, position) = (Epoch(n as u64 + 1), position(200 * (n as i64 + 1)));
        indexer.announce(epoch, &position).await.unwrap();
        indexer.apply(some, &mut |_| ()).await.unwrap();
        indexer.publish(Some((epoch, &position))).await.unwrap();
        maintained(&mut indexer).await;
    }
    let gone: Vec<ViewChange> = (0..ROWS).filter(|id| id % 7 == 0).map(|id| change(id, None)).collect();
    for some in gone.chunks(10) {
        indexer.announce(Epoch(9), &position(900 + some[0].key.len() as i64)).await.unwrap();
        indexer.apply(some, &mut |_| ()).await.unwrap();
    }
    indexer.announce(Epoch(10), &position(1000)).await.unwrap();
    folder
}

fn copied(from: &Path) -> tempfile::TempDir {
    fn copy(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
            let to = to.join(entry.file_name());
            match entry.path().is_dir() {
                true => copy(&entry.path(), &to),
                false => assert!(fs::copy(entry.path(), to).is_ok()),
            }
        }
    }
    let folder = tempfile::tempdir().unwrap();
    copy(from, folder.path());
    folder
}

/// The files beneath a folder whose paths have this in them, in their order.
fn files(folder: &Path, part: &str) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
        if entry.is_dir() {
            all.extend(files(&entry, part));
        } else if entry.to_string_lossy().contains(part) {
            all.push(entry);
        }
    }
    all.sort();
    all
}

fn halve(file: &Path) {
    let length = fs::metadata(file).unwrap().len();
    fs::OpenOptions::new().write(true).open(file).unwrap().set_len(length / 2).unwrap();
}

/// Opens what lies there, brings it to the view, and looks at it as a later start does. Answers why it was built anew.
async fn mended(folder: &Path, what: &str) -> Option<String> {
    let embedder = drawn();
    let found = Place::open(design(&config(folder, ANN), &*embedder), false).await.unwrap();
    let why = found.index.as_ref().err().cloned();
    let store = EmbeddingStore::open(&folder.join("store"), embedder.model_id(), 16).unwrap();
    let mut indexer = Indexer::new(found, store, embedder.clone()).await.unwrap();
    assert_eq!(indexer.is_searchable(), why.is_none(), "{what}");
    let position = position(2000);
    let computed = if why.is_some() {
        let applied = indexer.apply_beside(&view(), &mut |_| ()).await.unwrap();
        indexer.swap(Epoch(20), &position).await.unwrap();
        applied.computed
    } else {
        indexer.announce(Epoch(20), &position).await.unwrap();
        indexer.apply(&view(), &mut |_| ()).await.unwrap().computed
    };
    assert_eq!(computed, 0, "{what}: what was embedded is not embedded again");
    drop(indexer);

    let (mut indexer, searcher) = open(folder, embedder.clone(), ANN).await;
    assert_eq!(indexer.announced(), (Epoch(20), position), "{what}");
    assert_eq!((indexer.len(), indexer.table().count().await), (view().len(), view().len()), "{what}");
    let applied = indexer.apply(&view(), &mut |_| ()).await.unwrap();
    assert_eq!(applied.unchanged, view().len() as u64, "{what}");
    for id in [1, 300, 599] {
        let vector: Arc<[f32]> = embedder.embed_query(&format!("text {}", id / 2)).unwrap().into();
        let hits = searcher.search(Search { vector, k: 2, filter: None, columns: None }).await.unwrap().hits;
        assert!(hits.iter().any(|hit| *hit.key == *id.to_string()), "{what}: {id} is not found: {hits:?}");
    }
    assert_eq!(tables(folder).len(), 1, "{what}: {:?}", tables(folder));
    why
}

async fn check(made: &Path, what: &str, damage: impl FnOnce(&Path), expected: Option<&str>) {
    let folder = copied(made);
    damage(&folder.path().join("index"));
    let why = mended(folder.path(), what).await;
    match (&why, expected) {
        (None, None) => {}
        (Some(why), Some(part)) => assert!(why.contains(part), "{what}: {why}"),
        _ => panic!("{what}: built anew because {why:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_gone_of_a_table_is_noticed_and_built_anew() {
    let made = made().await;
    let made = made.path();
    check(made, "nothing", |_| (), None).await;
    check(made, "the table", |index| fs::remove_dir_all(index.join("t.lance")).unwrap(), Some("table t is gone")).await;
    check(
        made,
        "its versions",
        |index| fs::remove_dir_all(index.join("t.lance/_versions")).unwrap(),
        Some("cannot be read"),
    )
    .await;
    let latest = |index: &Path| files(index, "_versions").remove(0);
    assert!(files(made, "_versions").len() > 3, "the first file's name is the last version's");
    check(
        made,
        "its last versions",
        |index| (0..3).for_each(|_| fs::remove_file(latest(index)).unwrap()),
        Some("commits are gone"),
    )
    .await;
    check(made, "a half of its last version", |index| halve(&latest(index)), Some("cannot be read")).await;
    for part in ["/data/", "/_deletions/"] {
        let all = files(made, part);
        assert!(!all.is_empty(), "{part}");
        let mut noticed = 0;
        for file in &all {
            let file = file.strip_prefix(made).unwrap();
            for is_half in [false, true] {
                let folder = copied(made);
                let at = folder.path().join(file);
                if is_half {
                    halve(&at)
                } else {
                    fs::remove_file(&at).unwrap()
                }
                // A file of an older version alone is missed by nobody.
                if let Some(why) = mended(folder.path(), &file.to_string_lossy()).await {
                    assert!(why.contains("cannot be read"), "{why}");
                    noticed += 1;
                }
            }
        }
        assert!(noticed >= 2, "{noticed} of {all:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ann_index_that_is_gone_costs_no_rebuild() {
    let made = made().await;
    let made = made.path();
    check(made, "all of it", |index| fs::remove_dir_all(index.join("t.lance/_indices")).unwrap(), None).await;
    let all = files(made, "_indices");
    assert!(!all.is_empty());
    for file in all {
        let file = file.strip_prefix(made.join("index")).unwrap().to_path_buf();
        check(made, "a file", |index| fs::remove_file(index.join(&file)).unwrap(), None).await;
        check(made, "a half", |index| halve(&index.join(&file)), None).await;
    }
    // What was given up is made anew when there is no work.
    let folder = copied(made);
    fs::remove_dir_all(folder.path().join("index/t.lance/_indices")).unwrap();
    let (mut indexer, _) = open(folder.path(), drawn(), ANN).await;
    assert!(indexer.table().ann().await.unwrap().is_none());
    assert!(maintained(&mut indexer).await);
    assert!(indexer.table().ann().await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_announcement_that_is_gone_or_torn_is_not_guessed() {
    let made = made().await;
    let made = made.path();
    let file = |index: &Path| index.join("t.announced.json");
    check(made, "gone", |index| fs::remove_file(file(index)).unwrap(), Some("is gone")).await;
    let length = fs::metadata(file(&made.join("index"))).unwrap().len();
    for at in [0, 1, length / 2, length - 1] {
        let tear = |index: &Path| fs::OpenOptions::new().write(true).open(file(index)).unwrap().set_len(at).unwrap();
        check(made, "torn", tear, Some("cannot be understood")).await;
    }
    let both = |index: &Path| {
        fs::remove_file(file(index)).unwrap();
        fs::remove_dir_all(index.join("t.lance")).unwrap();
    };
    // Then there is nothing left that could be mended.
    check(made, "both", both, None).await;
    check(made, "the folder", |index| fs::remove_dir_all(index).unwrap(), None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_was_made_of_other_things_is_not_gone_on_with() {
    let made = made().await;
    let why = async |change: &dyn Fn(&mut config::Index), view: SchemaRef, model: &str| {
        let folder = copied(made.path());
        let mut config = config(folder.path(), ANN);
        change(&mut config);
        let embedder = Drawn(ModelId(model.into()));
        let design = Design::new(&config, "t", vec!["topic".into()], view, &embedder).unwrap();
        Place::open(design, false).await.unwrap().index.err().unwrap_or_default()
    };
    let with = |name: &str, ty: DataType| {
        let mut fields = schema().fields().to_vec();
        fields.push(Arc::new(Field::new(name, ty, true)));
        Arc::new(Schema::new(fields))
    };
    assert_eq!(why(&|_| (), schema(), "drawn").await, "");
    assert!(why(&|_| (), schema(), "another").await.contains("another model's"));
    assert!(why(&|_| (), with("weight", DataType::Int64), "drawn").await.contains("other columns"));
    assert!(why(&|c| c.key = "price".into(), schema(), "drawn").await.contains("with the key id and the text text"));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_dataflows_index_is_refused_and_stays_as_it_is() {
    let made = made().await;
    let opened = async |folder: &Path, topics: &[&str]| {
        let topics = topics.iter().map(|t| (*t).into()).collect();
        let design = Design::new(&config(folder, ANN), "t", topics, schema(), &*drawn()).unwrap();
        Place::open(design, false).await.map(drop)
    };
    let refused = |opened: Result<(), Error>, part: &str| match opened {
        Err(e @ Error::Foreign { .. }) => assert!(e.to_string().contains(part), "{e}"),
        other => panic!("{part}: {other:?}"),
    };
    refused(opened(made.path(), &["others"]).await, "it reflects topic, and this one reads others");
    opened(made.path(), &["others", "topic"]).await.unwrap();

    let folder = copied(made.path());
    let file = folder.path().join("index/t.announced.json");
    let of_other = fs::read_to_string(&file).unwrap().replace(r#""table":"t""#, r#""table":"u""#);
    fs::write(&file, &of_other).unwrap();
    refused(opened(folder.path(), &["topic"]).await, "about the table u");
    assert_eq!(fs::read_to_string(&file).unwrap(), of_other);
    assert_eq!(files(folder.path(), "t.lance").len(), files(made.path(), "t.lance").len());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_process_writes_an_index() {
    let folder = tempfile::tempdir().unwrap();
    let (mut indexer, _) = open(folder.path(), drawn(), ANN).await;
    let config = config(folder.path(), ANN);
    let again = Place::open(design(&config, &*drawn()), false).await;
    assert!(matches!(again, Err(Error::InUse { .. })), "{:?}", again.map(drop));
    // Another dataflow's index may lie beside it.
    let beside = Design::new(&config, "t2", vec!["topic".into()], schema(), &*drawn()).unwrap();
    drop(Place::open(beside, false).await.unwrap());

    // Who does not ask for the lock is noticed by the versions.
    indexer.apply(&view()[..10], &mut |_| ()).await.unwrap();
    let table = lancedb::connect(&config.uri).execute().await.unwrap().open_table("t").execute().await.unwrap();
    table.delete("id = 1").await.unwrap();
    let applied = indexer.apply(&view()[10..20], &mut |_| ()).await;
    assert!(matches!(applied, Err(Error::OtherWriter { .. })), "{applied:?}");
    drop(indexer);
    assert_eq!(open(folder.path(), drawn(), ANN).await.0.len(), 19, "a start sees what is there");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_gone_is_filled_from_the_index() {
    let made = made().await;
    for damage in ["folder", "half", "another model's"] {
        let folder = copied(made.path());
        let file = files(&folder.path().join("store"), "drawn").remove(0);
        match damage {
            "folder" => fs::remove_dir_all(folder.path().join("store")).unwrap(),
            "half" => halve(&file),
            _ => {
                let model = ModelId("other".into());
                let mut other = EmbeddingStore::open(&folder.path().join("other"), &model, 16).unwrap();
                other.put(&[(TextHash::of(&model, "text 1"), &[1.0; 16])]).unwrap();
                drop(other);
                fs::rename(folder.path().join("other/other.embeddings"), &file).unwrap();
            }
        }
        let (mut indexer, searcher) = open(folder.path(), drawn(), ANN).await;
        // Rows that change and keep their text, and a key that is new with a text that another has.
        let changes =
            [change(1, Some(("text 0", 7))), change(5, Some(("text 2", 8))), change(1000, Some(("text 299", 9)))];
        let applied = indexer.apply(&changes, &mut |_| ()).await.unwrap();
        assert_eq!((applied.upserted, applied.computed, applied.asked, applied.cached), (3, 0, 1, 1), "{damage}");
        indexer.publish(None).await.unwrap();
        let vector: Arc<[f32]> = drawn().embed_query("text 299").unwrap().into();
        let hits = searcher.search(Search { vector, k: 2, filter: None, columns: None }).await.unwrap().hits;
        assert!(hits.iter().all(|hit| hit.score > 0.9999), "{damage}: {hits:?}");
    }
}

fn tables(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder.join("index")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut tables: Vec<String> = names.filter_map(|name| name.strip_suffix(".lance").map(Into::into)).collect();
    tables.sort();
    tables
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_in_the_making_is_nobodys_until_it_takes_the_place() {
    let made = made().await;
    let folder = made.path();
    let embedder = drawn();
    let anew = async || {
        let found = Place::open(design(&config(folder, ANN), &*embedder), true).await.unwrap();
        let store = EmbeddingStore::open(&folder.join("store"), embedder.model_id(), 16).unwrap();
        Indexer::new(found, store, embedder.clone()).await.unwrap()
    };
    // A crash in the midst.
    let mut indexer = anew().await;
    assert!(indexer.is_searchable() && indexer.is_building());
    indexer.apply_beside(&view()[..300], &mut |_| ()).await.unwrap();
    assert_eq!((indexer.len(), tables(folder)), (view().len(), vec!["t".into(), "t.1".into()]));
    drop(indexer);
    let (indexer, _) = open(folder, embedder.clone(), ANN).await;
    assert_eq!((indexer.len(), indexer.table_name()), (view().len(), Some("t")));
    assert_eq!(tables(folder), ["t"], "what a crash has left is removed");
    drop(indexer);

    // One that is given up, and one to its end.
    let mut indexer = anew().await;
    let searcher = indexer.searcher().unwrap().unwrap();
    indexer.give_up().await;
    assert_eq!((indexer.is_building(), tables(folder)), (false, vec!["t".into()]));
    indexer.begin().await.unwrap();
    let applied = indexer.apply_beside(&view(), &mut |_| ()).await.unwrap();
    assert_eq!((applied.upserted as usize, applied.computed), (view().len(), 0));
    // What the view has beyond that goes to both.
    let more = [change(1, Some(("text 0", 77))), change(2, None)];
    indexer.announce(Epoch(11), &position(1001)).await.unwrap();
    indexer.apply(&more, &mut |_| ()).await.unwrap();
    indexer.publish(Some((Epoch(11), &position(1001)))).await.unwrap();
    indexer.apply_beside(&more, &mut |_| ()).await.unwrap();
    let searched = searcher.now();
    indexer.swap(Epoch(11), &position(1001)).await.unwrap();
    assert_eq!((indexer.table_name(), indexer.len()), (Some("t.2"), view().len() - 1));
    let found = searcher.item("1").await.unwrap();
    let row: serde_json::Value = serde_json::from_str(&found.row).unwrap();
    assert_eq!((&row["price"], found.epoch, &*found.position), (&77.into(), Epoch(11), &position(1001)));
    assert_eq!(tables(folder), ["t", "t.2"], "the old table stays while it is searched");
    drop(searched);
    indexer.maintain(true).await.unwrap();
    assert_eq!(tables(folder), ["t.2"]);
    drop(indexer);
    let (indexer, _) = open(folder, embedder.clone(), ANN).await;
    assert_eq!((indexer.table_name(), indexer.announced()), (Some("t.2"), (Epoch(11), position(1001))));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_dataflows_index_is_replaced_when_it_is_asked_for() {
    let made = made().await;
    let embedder = drawn();
    let design = Design::new(&config(made.path(), ANN), "t", vec!["others".into()], schema(), &*embedder).unwrap();
    let found = Place::open(design.clone(), true).await.unwrap();
    let store = EmbeddingStore::open(&made.path().join("store"), embedder.model_id(), 16).unwrap();
    let mut indexer = Indexer::new(found, store, embedder.clone()).await.unwrap();
    assert!(!indexer.is_searchable(), "the other one's rows are not shown");
    assert_eq!(indexer.announced(), (Epoch(10), Position::default()), "nor is its position come to");
    assert_eq!(tables(made.path()), ["t", "t.1"], "it stays until the new one is whole");
    indexer.apply_beside(&view()[..5], &mut |_| ()).await.unwrap();
    let position: Position = [(Partition::new("others", 0), Offset(5))].into_iter().collect();
    indexer.swap(Epoch(11), &position).await.unwrap();
    drop(indexer);
    assert_eq!(tables(made.path()), ["t.1"]);
    assert_eq!(Place::open(design, false).await.unwrap().index.unwrap_or_else(|e| panic!("{e}")).held.len(), 5);
}
