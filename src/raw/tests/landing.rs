//! The landing's thread: its bound, outages, and how it ends.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::*;

fn config(queue_max_bytes: usize) -> config::Raw {
    config::Raw {
        uri: "memory:///".into(),
        options: BTreeMap::new(),
        commit_max_bytes: 4096,
        commit_max_age_ms: 20,
        queue_max_bytes,
        compact_min_files: 4,
        versions_max_age_s: 3600,
        snapshot_min_events: usize::MAX,
    }
}

/// What a landing has said.
#[derive(Default)]
struct Heard {
    landed: Mutex<Position>,
    held_most: AtomicUsize,
    waited: AtomicUsize,
}

impl Observer for Heard {
    fn landed(&self, landed: &Position, _rows: usize) {
        self.landed.lock().unwrap().join(landed);
    }

    fn held(&self, bytes: usize, _: usize) {
        self.held_most.fetch_max(bytes, Ordering::SeqCst);
    }

    fn waiting(&self, reason: Option<&str>) {
        self.waited.fetch_add(usize::from(reason.is_some()), Ordering::SeqCst);
    }
}

fn landing(store_table: RawTable, queue_max_bytes: usize, heard: &Arc<Heard>) -> Landing {
    let schemas = Arc::new(FixedSchemas::default());
    let runtime = tokio::runtime::Handle::current();
    let raw = config(queue_max_bytes);
    let sources = vec![(source(), store_table)];
    Landing::start(&raw, "shop", sources, schemas, Gate::default(), heard.clone(), runtime).unwrap()
}

/// Offers until it is taken.
fn give(landing: &Landing, batch: MessageBatch) {
    let mut batch = Arc::new(batch);
    while let Err(back) = landing.offer(batch) {
        assert!(!landing.has_ended());
        batch = back;
        std::thread::yield_now();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_landing_is_bounded_and_outlives_outages() {
    let store = Faulty::default();
    let heard = Arc::new(Heard::default());
    let landing = landing(store.open().await, 20_000, &heard);
    store.will(&[Fate::Fails, Fate::Lies, Fate::Works, Fate::Lags, Fate::Fails]);
    let offering = tokio::task::spawn_blocking(move || {
        for n in 0..100 {
            // Every other batch has been offered before, as after a restart.
            give(&landing, messages(0, n / 2 * 3, &[event(1, &[]), b"garbage".to_vec(), event(2, &[])]));
        }
        landing
    });
    let landing = offering.await.unwrap();
    tokio::task::spawn_blocking(|| landing.stop()).await.unwrap().unwrap();
    let table = store.open().await;
    let offsets: Vec<i64> = all(&table).await.into_iter().map(|row| row.1).collect();
    assert_eq!(offsets, (0..150).collect::<Vec<_>>());
    assert_eq!(*heard.landed.lock().unwrap(), *table.landed());
    let most = heard.held_most.load(Ordering::SeqCst);
    assert!((1..=20_000).contains(&most), "{most}");
    assert!(heard.waited.load(Ordering::SeqCst) >= 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_landing_ends_with_a_second_writer_or_with_storage_away_at_its_stop() {
    let store = Faulty::default();
    let heard = Arc::new(Heard::default());
    let mine = landing(store.open().await, 20_000, &heard);
    let mut other = store.open().await;
    let rows = rows(&other, 0, 0, &[event(1, &[])]).await;
    other.append(&rows).await.unwrap();
    give(&mine, messages(0, 0, &[event(1, &[])]));
    let stopped = tokio::task::spawn_blocking(move || {
        while !mine.has_ended() {
            std::thread::yield_now();
        }
        let back = mine.offer(Arc::new(messages(0, 1, &[event(2, &[])])));
        assert!(back.is_err());
        mine.stop()
    });
    assert!(matches!(stopped.await.unwrap(), Err(Error::OtherWriter { version: 1, .. })));

    let mine = landing(store.open().await, 20_000, &heard);
    store.will(&[Fate::Fails; 50]);
    give(&mine, messages(0, 1, &[event(2, &[])]));
    let stopped = tokio::task::spawn_blocking(|| mine.stop()).await.unwrap();
    assert!(stopped.unwrap_err().is_passing());
}
