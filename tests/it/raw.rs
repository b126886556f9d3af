//! The recording through a raw table and back: the changes are those that decoding its messages gives, whatever the commits, the partitions,
//! the days, and the damage.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::util::display::array_value_to_string;
use freshet::config;
use freshet::decode::{Change, Counts, Decoder, Op, RowType};
use freshet::raw::{Events, Hydration, RawTable, Snapshot};
use freshet::source::MessageBatch;
use freshet::time::{Offset, Partition};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::recording::{Event, Topic, batch, recording};

/// What became of one message, as text.
type Outcomes = BTreeMap<(i32, i64), Vec<String>>;

struct Way {
    source: config::Source,
    row_type: Arc<RowType>,
}

impl Way {
    fn new(topic: &Topic) -> Way {
        let source = topic.source.checked();
        Way { row_type: Arc::new(RowType::from_contract(&source).unwrap()), source }
    }

    async fn open(&self, folder: &Path) -> RawTable {
        RawTable::open(folder.to_str().unwrap(), &BTreeMap::new(), "items", &self.source.topic).await.unwrap()
    }

    /// Lands the batches, `each` of them a commit; says how many rows have kept their bytes.
    async fn land(&self, folder: &Path, batches: &[MessageBatch], mut each: impl FnMut() -> usize) -> RawTable {
        let mut table = self.open(folder).await;
        let mut events = Events::new(&self.source, recording().store(), &table);
        let mut left = each();
        for batch in batches {
            events.push(batch).await.unwrap();
            left -= 1;
            if left == 0 {
                let rows = events.take();
                table.append(&rows).await.unwrap();
                assert_eq!(table.append(&rows).await.unwrap(), 0, "the same rows again add nothing");
                left = each();
            }
        }
        table.append(&events.take()).await.unwrap();
        table
    }

    async fn hydrated(&self, table: &RawTable, row_type: Arc<RowType>) -> (Outcomes, Counts) {
        let mut hydration = Hydration::open(table, None, 0, &self.source, row_type, recording().store()).await.unwrap();
        let (mut outcomes, mut counts) = (Outcomes::new(), Counts::default());
        while let Some(decoded) = hydration.next().await.unwrap() {
            add(&mut outcomes, &mut counts, &decoded);
        }
        (outcomes, counts)
    }

    async fn decoded(&self, batches: &[MessageBatch], row_type: Arc<RowType>) -> (Outcomes, Counts) {
        let mut decoder = Decoder::new(0, &self.source, row_type, recording().store()).unwrap();
        let (mut outcomes, mut counts) = (Outcomes::new(), Counts::default());
        for batch in batches {
            add(&mut outcomes, &mut counts, &decoder.decode(batch).await.unwrap());
        }
        (outcomes, counts)
    }

    /// A contract of which only some columns are read.
    fn pruned(&self, every: usize) -> Arc<RowType> {
        let read: Vec<bool> = (0..self.row_type.schema().fields().len()).map(|c| c % every == 0).collect();
        Arc::new(self.row_type.pruned(&read))
    }
}

fn add(to: &mut Outcomes, counts: &mut Counts, decoded: &freshet::decode::Decoded) {
    let number = decoded.partition.number;
    for change in &decoded.changes {
        to.entry((number, change.offset.0)).or_default().push(format!("{change:?}"));
    }
    for r in &decoded.rejects {
        let said = format!("{:?} {:?} {:?} {}", r.rule, r.schema_id, r.key, r.timestamp_ms);
        to.entry((number, r.offset.0)).or_default().push(said);
    }
    let Counts { create, update, delete, snapshot, truncate, tombstone, skipped } = decoded.counts;
    counts.create += create;
    counts.update += update;
    counts.delete += delete;
    counts.snapshot += snapshot;
    counts.truncate += truncate;
    counts.tombstone += tombstone;
    counts.skipped += skipped;
}

fn assert_equal(name: &str, (hydrated, counts): &(Outcomes, Counts), (decoded, expect): &(Outcomes, Counts)) {
    for (at, expect) in decoded {
        assert_eq!(hydrated.get(at), Some(expect), "{name} at {at:?}");
    }
    assert_eq!((hydrated.len(), counts), (decoded.len(), expect), "{name}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_topic_comes_back_as_it_is_decoded() {
    let scratch = tempfile::tempdir().unwrap();
    // For tests/delta/read.py: the same tables, to be read by others.
    let root = std::env::var_os("FRESHET_KEEP_RAW").map_or_else(|| scratch.path().into(), PathBuf::from);
    for topic in recording().topics() {
        let way = Way::new(&topic);
        let name = topic.source.topic.as_str();
        let batches: Vec<MessageBatch> = recording().events(name).chunks(7).map(|e| batch(name, e)).collect();
        let table = way.land(&root.join(name), &batches, || 3).await;
        for row_type in [way.row_type.clone(), way.pruned(3)] {
            let hydrated = way.hydrated(&table, row_type.clone()).await;
            assert_equal(name, &hydrated, &way.decoded(&batches, row_type).await);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_damaged_comes_back_as_it_is_decoded() {
    let topics = recording().topics();
    for seed in 0..8 {
        let mut random = StdRng::seed_from_u64(seed);
        let topic = &topics[random.random_range(0..topics.len())];
        let (way, folder) = (Way::new(topic), tempfile::tempdir().unwrap());
        let batches = shaken(recording().events(&topic.source.topic), &topic.source.topic, &mut random);
        let table = way.land(folder.path(), &batches, || random.random_range(1..5)).await;
        let row_type = way.pruned(1 + (seed as usize % 4));
        let hydrated = way.hydrated(&table, row_type.clone()).await;
        let name = format!("seed {seed}, {}", topic.source.topic);
        assert_equal(&name, &hydrated, &way.decoded(&batches, row_type).await);
        // Once more, after the table was closed, from the same messages: nothing is added.
        let again = way.land(folder.path(), &batches, || 2).await;
        assert_eq!((again.version(), again.landed()), (table.version(), table.landed()), "{name}");
    }
}

/// The rows as a dataflow would have them: the last event of a key counts, what was not sent stays.
#[derive(Default)]
struct Rows(BTreeMap<Box<[u8]>, Vec<String>>);

impl Rows {
    async fn hydrated(hydration: &mut Hydration, of: &RowType) -> (Rows, usize) {
        let (mut rows, mut events) = (Rows::default(), 0);
        while let Some(decoded) = hydration.next().await.unwrap() {
            events += decoded.changes.len();
            decoded.changes.iter().for_each(|change| rows.apply(change, of));
        }
        (rows, events)
    }

    fn apply(&mut self, change: &Change, of: &RowType) {
        match &change.op {
            Op::Truncate => self.0.clear(),
            Op::Delete => drop(self.0.remove(&change.key)),
            Op::Upsert { row, unavailable } => {
                let columns = of.rows_to_columns([&**row]).unwrap();
                let mut new: Vec<_> = columns.iter().map(|c| array_value_to_string(c, 0).unwrap()).collect();
                let old = self.0.get(&change.key);
                for column in unavailable.iter().flatten().map(|c| usize::from(*c)) {
                    new[column] = old.map_or("never sent".into(), |old| old[column].clone());
                }
                self.0.insert(change.key.clone(), new);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_and_its_tail_come_to_the_same_rows() {
    let topics = recording().topics();
    let mut saved = 0;
    for seed in 0..11 {
        let mut random = StdRng::seed_from_u64(seed);
        let topic = &topics[seed as usize % topics.len()];
        let (way, folder) = (Way::new(topic), tempfile::tempdir().unwrap());
        let (location, options) = (folder.path().join("t"), BTreeMap::new());
        let location = location.to_str().unwrap();
        let name = format!("seed {seed}, {}", topic.source.topic);
        // Half of the runs are damaged, with keys that move from partition to partition.
        let events = recording().events(&topic.source.topic);
        let batches: Vec<MessageBatch> = match seed % 2 {
            0 => events.chunks(9).map(|e| batch(&topic.source.topic, e)).collect(),
            _ => shaken(events, &topic.source.topic, &mut random),
        };
        let third = batches.len() / 3;
        for part in [&batches[..third], &batches[third..2 * third], &batches[2 * third..]] {
            let mut table = way.land(Path::new(location), part, || random.random_range(1..4)).await;
            if random.random_bool(0.5) {
                table.compact(2).await.unwrap();
            }
            let mut snapshot = Snapshot::open(location, &options, "items", &table).await.unwrap();
            for row_type in [way.row_type.clone(), way.pruned(3), way.pruned(100)] {
                let open = |s| Hydration::open(&table, s, 0, &way.source, row_type.clone(), recording().store());
                let (whole, all) = Rows::hydrated(&mut open(None).await.unwrap(), &row_type).await;
                let (rows, events) = Rows::hydrated(&mut open(Some(&snapshot)).await.unwrap(), &row_type).await;
                assert_eq!(rows.0, whole.0, "{name}");
                assert!(events <= all);
                saved += all - events;
            }
            let stats = snapshot.take(&table, &way.source, recording().store()).await.unwrap();
            assert_eq!(snapshot.commit(&table, &way.source), Some(table.version() as i64));
            assert!(stats.kept <= stats.read, "{name}: {stats:?}");
            let other = config::Source { key: vec!["another".into()], ..way.source.clone() };
            assert_eq!(snapshot.commit(&table, &other), None);
        }
    }
    assert!(saved > 300, "{saved}");
}

/// The events over three partitions, some damaged, on days of their own, in small batches.
fn shaken(events: &[Event], topic: &str, random: &mut StdRng) -> Vec<MessageBatch> {
    let mut open: [Option<MessageBatch>; 3] = [None, None, None];
    let mut next = [0, 5, 1 << 40];
    let mut batches = Vec::new();
    for event in events {
        let mut event = event.clone();
        if random.random_bool(0.2) {
            for part in [&mut event.key, &mut event.value].into_iter().flatten().filter(|p| !p.is_empty()) {
                match random.random_range(0..4) {
                    0 => {
                        let at = random.random_range(0..part.len());
                        part[at] ^= 1 << random.random_range(0..8);
                    }
                    1 => part.truncate(random.random_range(0..part.len())),
                    2 => part.push(0),
                    _ => {}
                }
            }
        }
        if random.random_bool(0.02) {
            event.value = None;
        }
        let timestamp_ms = match random.random_range(0..10) {
            0 => 0,
            1 => -1,
            2 => 1 << 50,
            _ => event.timestamp_ms + random.random_range(-1..2) * 86_400_000,
        };
        let n = random.random_range(0..3);
        let partition = Partition::new(topic, n as i32 * 2);
        let batch = open[n].get_or_insert_with(|| MessageBatch::new(partition));
        batch.push(Offset(next[n]), timestamp_ms, event.key.as_deref(), event.value.as_deref());
        next[n] += random.random_range(1..4);
        if random.random_bool(0.1) {
            batches.extend(open[n].take());
        }
    }
    batches.extend(open.into_iter().flatten());
    batches
}
