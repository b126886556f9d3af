//! The quarantine under an object store that fails, under crashes and other writers, and its thread.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::table::weight;
use super::*;
use crate::config;
use crate::decode::{Change, Counts, Decoded, FixedSchemas, Op, Origin, Rule};
use crate::raw::{Error, Landing, Observer, RawTable};
use crate::source::MessageBatch;
use crate::storage::faulty::{Fate, Faulty};
use crate::time::{Offset, Partition, Position};

async fn table(store: &Faulty) -> QuarantineTable {
    QuarantineTable::with_log_store("memory:///", store.log_store()).await.unwrap()
}

async fn all(store: &Faulty) -> Vec<Entry> {
    let mut entries = Entries::with_log_store("memory:///", store.log_store(), true).await.unwrap().unwrap();
    let mut all = Vec::new();
    while let Some(some) = entries.next().await.unwrap() {
        all.extend(some);
    }
    all
}

fn at(topic: &str, number: i32, offset: i64) -> Coordinates {
    Coordinates { partition: Partition::new(topic, number), offset: Offset(offset) }
}

fn reject(at: &Coordinates) -> Reject {
    Reject {
        partition: at.partition.clone(),
        offset: at.offset,
        timestamp_ms: 1_700_000_000_000,
        rule: Rule::Body,
        reason: format!("nothing can be made of {at}"),
        schema_id: Some(3),
        key: (at.offset.0 % 3 > 0).then(|| Box::from(*b"\xff\x00")),
        value: Some(at.to_string().into_bytes().into()),
        value_in_raw: false,
    }
}

/// What reading some messages of `t`'s first partition comes to.
fn decoded(rejected: &[i64], taken: &[i64]) -> Decoded {
    let change = |offset: &i64| Change {
        offset: Offset(*offset),
        key: Box::default(),
        op: Op::Delete,
        commit_ms: 0,
        origin: Origin::default(),
    };
    Decoded {
        source: 0,
        partition: Partition::new("t", 0),
        end: Offset(0),
        changes: taken.iter().map(change).collect(),
        rejects: rejected.iter().map(|offset| reject(&at("t", 0, *offset))).collect(),
        counts: Counts::default(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_kept_whole_and_once() {
    let store = Faulty::default();
    let mut first = reject(&at("t", 1, 7));
    first.timestamp_ms = i64::MAX;
    let in_raw = Reject { value: None, value_in_raw: true, schema_id: None, ..reject(&at("t", 0, 9)) };
    let mut quarantine = table(&store).await;
    quarantine.take(&[first.clone(), in_raw.clone(), first.clone()], &[]).await.unwrap();
    for _ in 0..2 {
        quarantine = table(&store).await;
        quarantine.take(&[first.clone(), in_raw.clone()], &[]).await.unwrap();
        assert_eq!((quarantine.total(), quarantine.log.version()), (2, 1), "read again, they are there");
    }
    // The topic was made anew, and has another message at the same coordinates.
    let anew = Reject { timestamp_ms: 5, ..in_raw.clone() };
    quarantine.take(&[anew], &[]).await.unwrap();
    let entries = all(&store).await;
    let told: Vec<_> = entries.iter().map(|e| (e.at.to_string(), e.timestamp_ms)).collect();
    let last_ms = i64::MAX / 1000;
    assert_eq!(told, [("t:0:9".into(), 1_700_000_000_000), ("t:1:7".into(), last_ms), ("t:0:9".into(), 5)]);
    let now_ms = chrono::Utc::now().timestamp_millis();
    assert!((now_ms - 600_000..=now_ms).contains(&entries[1].quarantined_ms), "{}", entries[1].quarantined_ms);
    let expect = Entry {
        at: at("t", 1, 7),
        timestamp_ms: last_ms,
        key: Some(vec![0xff, 0]),
        value: Some(b"t:1:7".to_vec()),
        value_in_raw: false,
        schema_id: Some(3),
        stage: "decode".into(),
        rule: "body".into(),
        reason: "nothing can be made of t:1:7".into(),
        quarantined_ms: entries[1].quarantined_ms,
        healed_ms: None,
    };
    assert_eq!(entries[1], expect);
    assert_eq!((&entries[0].value, entries[0].value_in_raw, entries[0].schema_id), (&None, true, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_heals_and_may_be_rejected_once_more() {
    let store = Faulty::default();
    let mut quarantine = table(&store).await;
    let three = [at("t", 0, 1), at("t", 0, 2), at("u", 0, 1)];
    quarantine.take(&three.each_ref().map(reject), &[]).await.unwrap();
    let open = async |store: &Faulty| {
        let of = |e: &Entry| (e.at.to_string(), e.healed_ms.is_none());
        all(store).await.iter().map(of).collect::<BTreeMap<_, _>>().into_values().collect::<Vec<_>>()
    };
    // Also of one that nobody has ever rejected, and twice.
    let healed = [three[1].clone(), at("t", 0, 3)];
    quarantine.take(&[], &healed).await.unwrap();
    quarantine.take(&[], &healed).await.unwrap();
    assert_eq!((open(&store).await, quarantine.log.version()), (vec![true, false, true], 2));
    let mut quarantine = table(&store).await;
    let waiting: Vec<_> = quarantine.open_messages().cloned().collect();
    assert_eq!((waiting, quarantine.total()), (vec![three[0].clone(), three[2].clone()], 3));
    let before = all(&store).await;
    quarantine.take(&[reject(&three[1])], &[three[2].clone()]).await.unwrap();
    assert_eq!(open(&store).await, [true, true, false]);
    assert_eq!(all(&store).await[0], before[0], "the others are as they were");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_of_unknown_outcome_adds_no_second_row() {
    for fate in [Fate::Fails, Fate::Lies, Fate::Lags] {
        let store = Faulty::default();
        let mut quarantine = table(&store).await;
        let (one, two) = (reject(&at("t", 0, 1)), reject(&at("t", 0, 2)));
        // The file is put, the commit is not, or is it?
        store.will(&[Fate::Works, fate]);
        assert!(quarantine.take(std::slice::from_ref(&one), &[]).await.unwrap_err().is_passing());
        assert_eq!(quarantine.total(), 0, "what is not known to be there is not counted");
        quarantine.take(&[one.clone(), two.clone()], &[]).await.unwrap();
        assert_eq!((quarantine.total(), all(&store).await.len()), (2, 2), "{fate:?}");
        store.will(&[Fate::Works, fate]);
        assert!(quarantine.take(&[], &[at("t", 0, 1)]).await.unwrap_err().is_passing());
        quarantine.take(&[], &[at("t", 0, 1)]).await.unwrap();
        let open: Vec<_> = all(&store).await.iter().map(|e| e.healed_ms.is_none()).collect();
        assert_eq!((open, quarantine.open_messages().count()), (vec![false, true], 1), "{fate:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_writer_is_refused() {
    let store = Faulty::default();
    let (mut first, mut second) = (table(&store).await, table(&store).await);
    first.take(&[reject(&at("t", 0, 1))], &[]).await.unwrap();
    let refused = second.take(&[reject(&at("t", 0, 1))], &[]).await.unwrap_err();
    assert!(matches!(refused, Error::OtherWriter { version: 1, .. }), "{refused}");
    assert_eq!(all(&store).await.len(), 1);
    let folder = tempfile::tempdir().unwrap();
    let nowhere = folder.path().join("nothing");
    assert!(Entries::open(nowhere.to_str().unwrap(), &BTreeMap::new(), true).await.unwrap().is_none());
    assert!(!nowhere.exists(), "looking makes nothing");
}

/// Messages are rejected, heal and are rejected again under writers that crash, over a store that fails; then one reads them all.
#[tokio::test(flavor = "multi_thread")]
async fn every_message_is_there_once_whatever_crashes() {
    let (mut refused, mut lost) = (0, 0);
    for seed in 0..30 {
        let mut random = StdRng::seed_from_u64(seed);
        let store = Faulty::default();
        let messages: Vec<Coordinates> = (0..40).map(|n| at(["t", "u"][n as usize % 2], n / 2 % 2, n.into())).collect();
        for _ in 0..random.random_range(1..6) {
            // A new process, that reads from the beginning by a contract of its own.
            store.will(&[]);
            let mut quarantine = table(&store).await;
            let good: Vec<bool> = messages.iter().map(|_| random.random_bool(0.3)).collect();
            let mut from = 0;
            while from < messages.len() {
                let to = (from + random.random_range(1..10)).min(messages.len());
                let of = |is_good: bool| (from..to).filter(|n| good[*n] == is_good).map(|n| &messages[n]).collect();
                let (taken, bad): (Vec<_>, Vec<_>) = (of(true), of(false));
                let rejects: Vec<Reject> = bad.into_iter().map(reject).collect();
                let healed: Vec<Coordinates> = taken.into_iter().cloned().collect();
                let fates = [Fate::Works, Fate::Works, Fate::Works, Fate::Fails, Fate::Lies, Fate::Lags];
                store.will(&[(); 4].map(|()| fates[random.random_range(0..fates.len())]));
                let done = loop {
                    match quarantine.take(&rejects, &healed).await {
                        Err(e) if e.is_passing() && random.random_bool(0.8) => {}
                        other => break other,
                    }
                };
                let done = match done {
                    Ok(()) if random.random_bool(0.2) => quarantine.log.compact(2).await.map(drop),
                    other => other,
                };
                match done {
                    Ok(()) => {}
                    Err(e) if e.is_passing() => {
                        lost += 1;
                        break;
                    }
                    Err(Error::OtherWriter { .. }) => {
                        refused += 1;
                        break;
                    }
                    Err(e) => panic!("seed {seed}: {e}"),
                }
                from = to;
            }
        }
        let good: Vec<bool> = messages.iter().map(|_| random.random_bool(0.3)).collect();
        loop {
            store.will(&[]);
            let mut quarantine = table(&store).await;
            let before: Vec<Message> =
                all(&store).await.iter().map(|e| Message::new(e.at.clone(), e.timestamp_ms)).collect();
            let of = |is_good: bool| messages.iter().zip(&good).filter(move |(_, g)| **g == is_good).map(|(at, _)| at);
            let rejects: Vec<Reject> = of(false).map(reject).collect();
            let healed: Vec<Coordinates> = of(true).cloned().collect();
            match quarantine.take(&rejects, &healed).await {
                // What the last process left under way came now.
                Err(Error::OtherWriter { .. }) => continue,
                other => other.unwrap(),
            }
            let entries = all(&store).await;
            let expect: BTreeMap<Coordinates, bool> = of(true)
                .filter(|at| before.iter().any(|m| m.at == **at))
                .map(|at| (at.clone(), false))
                .chain(of(false).map(|at| (at.clone(), true)))
                .collect();
            let told: BTreeMap<Coordinates, bool> =
                entries.iter().map(|e| (e.at.clone(), e.healed_ms.is_none())).collect();
            assert_eq!((told.len(), told), (entries.len(), expect), "seed {seed}");
            assert!(entries.iter().all(|e| e.value.as_deref() == Some(e.at.to_string().as_bytes())), "seed {seed}");
            break;
        }
    }
    assert!(refused > 0 && lost > 0, "{refused} {lost}");
}

/// What the threads have said, in its order.
#[derive(Default)]
struct Heard(Mutex<Vec<String>>);

impl Heard {
    fn say(&self, what: String) {
        self.0.lock().unwrap().push(what);
    }

    fn said(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

impl Observer for Heard {
    fn landed(&self, _: &Position, rows: usize) {
        self.say(format!("{rows} landed"));
    }

    fn quarantined(&self, open: usize, total: usize) {
        self.say(format!("{open} of {total} open"));
    }

    fn quarantine_waiting(&self, reason: Option<&str>) {
        self.say(format!("waiting: {}", reason.is_some()));
    }
}

fn start(table: QuarantineTable, queue_max_bytes: usize, heard: &Arc<Heard>) -> Quarantine {
    Quarantine::start(table, queue_max_bytes, heard.clone(), tokio::runtime::Handle::current()).unwrap()
}

/// Offers until it is taken.
fn give(quarantine: &mut Quarantine, mut decoded: Decoded) {
    while !quarantine.offer(&mut decoded) {
        assert!(!quarantine.has_ended());
        std::thread::yield_now();
    }
    assert!(decoded.rejects.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_messages_are_few_commits_and_a_gate_opens_when_they_are_made() {
    let (store, heard) = (Faulty::default(), Arc::new(Heard::default()));
    let table_of_it = table(&store).await;
    store.will(&[Fate::Fails, Fate::Works, Fate::Lies]);
    let (of_thread, says) = (store.clone(), heard.clone());
    let mut quarantine = start(table_of_it, 1 << 20, &heard);
    let gate = quarantine.gate();
    assert!(gate.wait(), "nothing was offered");
    let runtime = tokio::runtime::Handle::current();
    let work = move || {
        give(&mut quarantine, decoded(&[0], &[]));
        assert!(gate.wait());
        assert_eq!(runtime.block_on(all(&of_thread)).len(), 1, "the gate opens after the commit");
        assert_eq!(
            says.said(),
            ["0 of 0 open", "waiting: true", "waiting: true", "waiting: false", "1 of 1 open"],
            "the gate opens after that was said"
        );
        (0..100).for_each(|n| give(&mut quarantine, decoded(&[n], &[])));
        quarantine.stop().unwrap();
        assert!(gate.wait());
    };
    tokio::task::spawn_blocking(work).await.unwrap();
    let version = table(&store).await.log.version();
    assert!(version < 20, "{version} versions for 100 messages");
    assert_eq!(all(&store).await.len(), 100);
    assert_eq!(heard.said().last().unwrap(), "100 of 100 open");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_offered_is_bounded() {
    let (store, heard) = (Faulty::default(), Arc::new(Heard::default()));
    let mut quarantine = start(table(&store).await, 1000, &heard);
    let work = move || {
        // Each time there is no room, those that are there are committed at once.
        (0..60).for_each(|n| give(&mut quarantine, decoded(&[n], &[])));
        quarantine.stop().unwrap();
    };
    tokio::task::spawn_blocking(work).await.unwrap();
    assert_eq!(all(&store).await.len(), 60);
    let (commits, room) = (heard.said().len() - 1, 1000 / weight(&reject(&at("t", 0, 10))));
    assert!(commits >= 60 / room && room > 1, "{commits} commits of at most {room}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_read_again_heals_and_of_what_is_rejected_again_nothing_is_written() {
    let (store, heard) = (Faulty::default(), Arc::new(Heard::default()));
    let mut before = table(&store).await;
    before.take(&decoded(&[1, 2, 3, 9], &[]).rejects, &[]).await.unwrap();
    before.take(&[], &[at("t", 0, 9)]).await.unwrap();
    let mut quarantine = start(table(&store).await, 1 << 20, &heard);
    let work = move || {
        // 0 and 4 were never in quarantine; the changes between which 2 lies do not have it.
        give(&mut quarantine, decoded(&[1], &[0, 3, 3, 4]));
        give(&mut quarantine, decoded(&[], &[5]));
        quarantine.stop().unwrap();
    };
    tokio::task::spawn_blocking(work).await.unwrap();
    let told: Vec<_> = all(&store).await.iter().map(|e| (e.at.offset.0, e.healed_ms.is_none())).collect();
    assert_eq!(told, [(1, true), (2, true), (3, false), (9, false)]);
    assert_eq!(heard.said(), ["3 of 4 open", "2 of 4 open"]);

    let version = table(&store).await.log.version();
    let mut quarantine = start(table(&store).await, 1 << 20, &heard);
    let gate = quarantine.gate();
    let work = move || {
        give(&mut quarantine, decoded(&[1, 2], &[]));
        assert!(gate.wait());
        quarantine.stop().unwrap();
    };
    tokio::task::spawn_blocking(work).await.unwrap();
    assert_eq!(
        (table(&store).await.log.version(), heard.said().len()),
        (version, 3),
        "what it begins with, and no more"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_stays_shut_when_the_thread_ends_before() {
    for second_writer in [true, false] {
        let (store, heard) = (Faulty::default(), Arc::new(Heard::default()));
        let mut quarantine = start(table(&store).await, 1 << 20, &heard);
        match second_writer {
            true => table(&store).await.take(&[reject(&at("t", 0, 0))], &[]).await.unwrap(),
            false => store.will(&[Fate::Fails; 50]),
        }
        let work = move || {
            let gate = quarantine.gate();
            give(&mut quarantine, decoded(&[1], &[]));
            let stopped = if second_writer {
                // It ends by itself.
                assert!(!gate.wait());
                assert!(quarantine.has_ended() && !quarantine.offer(&mut decoded(&[2], &[])));
                quarantine.stop()
            } else {
                let stopped = quarantine.stop();
                assert!(!gate.wait());
                stopped
            };
            assert_eq!(stopped.unwrap_err().is_passing(), !second_writer);
        };
        tokio::task::spawn_blocking(work).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_lands_when_its_reject_is_in_quarantine() {
    let (store, beside, heard) = (Faulty::default(), Faulty::default(), Arc::new(Heard::default()));
    let mut quarantine = start(table(&store).await, 1 << 20, &heard);
    let source = config::Source {
        schema: "shop".into(),
        table: "item".into(),
        topic: "t".into(),
        format: config::Format::Json,
        envelope: config::Envelope::Debezium,
        key: vec!["id".into()],
        unavailable: "__gone".into(),
        contract: r#"{"type":"record","name":"I","fields":[{"name":"id","type":"int"}]}"#.into(),
        contract_path: "item.avsc".into(),
    };
    let raw = config::Raw {
        uri: "memory:///".into(),
        options: BTreeMap::new(),
        commit_max_bytes: 1,
        commit_max_age_ms: 1,
        queue_max_bytes: 1 << 20,
        compact_min_files: 32,
        versions_max_age_s: 3600,
        snapshot_min_events: usize::MAX,
    };
    let landed = RawTable::with_log_store("memory:///", beside.log_store(), "shop", &source.topic).await.unwrap();
    let runtime = tokio::runtime::Handle::current();
    let (schemas, gate) = (Arc::new(FixedSchemas::default()), quarantine.gate());
    let landing = Landing::start(&raw, "shop", vec![(source, landed)], schemas, gate, heard.clone(), runtime).unwrap();
    store.will(&[Fate::Fails; 3]);
    let work = move || {
        give(&mut quarantine, decoded(&[0], &[]));
        let mut batch = MessageBatch::new(Partition::new("t", 0));
        batch.push(Offset(0), 0, None, Some(b"garbage"));
        assert!(landing.offer(Arc::new(batch)).is_ok());
        landing.stop().unwrap();
        quarantine.stop().unwrap();
    };
    tokio::task::spawn_blocking(work).await.unwrap();
    let said = heard.said();
    let place = |what: &str| said.iter().position(|said| said == what).unwrap_or_else(|| panic!("{what}: {said:?}"));
    assert!(place("waiting: true") < place("1 of 1 open") && place("1 of 1 open") < place("1 landed"), "{said:?}");
}
