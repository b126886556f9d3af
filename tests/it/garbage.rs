//! Bytes that are no events: each waits in quarantine with its coordinates, its reason and its bytes, and harms nothing around it.

use freshet::time::{Coordinates, Offset, Partition};
use serde_json::{Value, json};

use super::connector::{TOPIC, Writer, envelope, event, origin};
use super::running::{Items, item_fields, items, row, until};

struct Bad {
    what: &'static str,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    rule: &'static str,
    reason: &'static str,
}

/// Garbage of every kind that a topic can hold, made from a message that is good.
fn garbage(case: &Items, writer: &Writer) -> Vec<Bad> {
    let key = case.connector.key(1);
    let good = writer.message(event("u", Value::Null, row(1, "AAAAAAAA", None, 5)));
    let replaced = |what: &[u8], with: &[u8]| {
        let at = good.windows(what.len()).position(|w| w == what).unwrap();
        [&good[..at], with, &good[at + what.len()..]].concat()
    };
    let bad =
        |what, value: Vec<u8>, rule, reason| Bad { what, key: Some(key.clone()), value: Some(value), rule, reason };
    let text = Writer::new(&case.registry, "text", &json!("string"));
    let bare = Writer::new(&case.registry, "bare", &json!({"type": "record", "name": "R", "fields": item_fields()}));
    let unknown = [&[0], &9_999_u32.to_be_bytes()[..], &good[5..]].concat();
    vec![
        bad("truncated", good[..good.len() - 1].to_vec(), "body", "ends"),
        bad("cut inside the row", good[..12].to_vec(), "body", ""),
        bad("wrong magic byte", [&[1], &good[1..]].concat(), "wire", "0x01"),
        bad("text", b"{\"op\": \"u\"}".to_vec(), "wire", "0x7b"),
        bad("four bytes", good[..4].to_vec(), "wire", "4 bytes"),
        bad("no bytes", Vec::new(), "wire", "0 bytes"),
        bad("a head alone", good[..5].to_vec(), "body", ""),
        bad("unknown schema id", unknown, "unknown_schema", "9999"),
        bad("a schema of another type", text.message(json!("hello")), "envelope", "not a record"),
        bad("a row without an envelope", bare.message(row(1, "n", None, 1)), "envelope", "flattened"),
        bad("invalid UTF-8", replaced(b"AAAAAAAA", b"AAAA\xff\xfeAA"), "body", "UTF-8"),
        bad("a length that is not there", replaced(b"\x10AAAAAAAA", b"\xfe\xff\xff\xff\x0fAAAA"), "body", "ends"),
        bad("a negative length", replaced(b"\x10AAAAAAAA", b"\x0fAAAAAAAA"), "body", "length"),
        bad("trailing bytes", [&good[..], &[0]].concat(), "body", "left over"),
        bad("two messages in one", [&good[..], &good[5..]].concat(), "body", "left over"),
        bad("a wrong union index", replaced(b"\x02\x02\x10AAAAAAAA", b"\x06\x02\x10AAAAAAAA"), "body", "no type"),
        bad("an unknown operation", writer.message(event("x", Value::Null, row(1, "n", None, 1))), "envelope", "\"x\""),
        bad("an insert of nothing", writer.message(event("c", Value::Null, Value::Null)), "envelope", "after is null"),
        Bad { what: "nothing at all", key: None, value: None, rule: "envelope", reason: "without a key" },
        Bad {
            what: "a key of noise",
            key: Some(vec![7; 9]),
            value: Some(good.clone()),
            rule: "wire",
            reason: "the key",
        },
        Bad {
            what: "a cut key",
            key: Some(key[..5].to_vec()),
            value: Some(good.clone()),
            rule: "body",
            reason: "the key",
        },
        Bad {
            what: "a delete of nobody",
            key: None,
            value: Some(
                writer.message(
                    json!({"before": null, "after": null, "source": origin("false"), "op": "d", "ts_ms": null}),
                ),
            ),
            rule: "envelope",
            reason: "without a key",
        },
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_waits_in_quarantine_and_harms_nothing() {
    let mut case = Items::new("debezium").await;
    let writer = Writer::new(&case.registry, &format!("{TOPIC}-value"), &envelope(&item_fields()));
    let running = case.start().await;
    let bad = garbage(&case, &writer);
    let mut sent = Vec::new();
    for (n, bad) in bad.iter().enumerate() {
        let id = 2 * n as i64;
        case.connector.send(id, Some(writer.message(event("c", Value::Null, row(id, "good", None, id)))));
        sent.push(case.connector.raw(0, bad.key.clone(), bad.value.clone()));
    }
    running.reflects(&case.connector).await;
    let good: Vec<i64> = (0..bad.len() as i64).map(|n| 2 * n).collect();
    assert_eq!(running.items().await.into_keys().collect::<Vec<_>>(), good, "each good message arrived");

    let held = case.folder.quarantine().await;
    assert_eq!(held.len(), bad.len());
    for ((bad, offset), entry) in bad.iter().zip(&sent).zip(&held) {
        let what = bad.what;
        assert_eq!((&*entry.rule, &*entry.stage), (bad.rule, "decode"), "{what}: {}", entry.reason);
        assert!(entry.reason.contains(bad.reason), "{what}: {}", entry.reason);
        let at = Coordinates { partition: Partition::new(TOPIC, 0), offset: Offset(*offset) };
        assert_eq!((&entry.at, entry.healed_ms), (&at, None), "{what}");
        assert_eq!((&entry.key, &entry.value), (&bad.key, &bad.value), "{what}");
    }
    let told = running.status().await;
    assert_eq!(told["quarantine"], json!({"open": bad.len(), "total": bad.len()}));
    for rule in ["wire", "body", "envelope", "unknown_schema"] {
        let count = bad.iter().filter(|b| b.rule == rule).count();
        assert_eq!(told["decode"]["rejects"][rule], count, "{rule}");
    }
    until("live", async || running.state().await.0 == "live").await;
    running.stop().await;

    // Read again after a restart, a message is not quarantined again.
    let running = case.start().await;
    running.reflects(&case.connector).await;
    until("live", async || running.state().await.0 == "live").await;
    assert_eq!(running.status().await["quarantine"], json!({"open": bad.len(), "total": bad.len()}));
    assert_eq!(case.folder.quarantine().await, held);
    running.stop().await;
}

/// 10 MB go over the socket and into quarantine whole, and the rows beside them arrive. The broker of the tests keeps 5 MiB of a partition: it
/// takes one such message in each, and nothing after it, so each has a broker of its own.
#[tokio::test(flavor = "multi_thread")]
async fn ten_megabytes_of_noise_pass_through() {
    const LARGE: usize = 10_000_000;
    for (n, rule) in ["wire", "body", "body"].into_iter().enumerate() {
        let mut case = Items::new("debezium").await;
        let writer = Writer::new(&case.registry, &format!("{TOPIC}-value"), &envelope(&item_fields()));
        let running = case.start().await;
        let good = writer.message(event("u", Value::Null, row(1, "AAAAAAAA", None, 5)));
        // Noise; a message with much behind it; a head, and lengths that go on and on.
        let (mut value, fill) = [(Vec::new(), 0xff), (good.clone(), 0), (good[..5].to_vec(), 0xfe)][n].clone();
        value.resize(LARGE, fill);
        case.connector.send(0, Some(writer.message(event("c", Value::Null, row(0, "before", None, 0)))));
        let key = case.connector.key(1);
        case.connector.raw(1, Some(key), Some(value));
        running.reflects(&case.connector).await;
        case.connector.send(2, Some(writer.message(event("c", Value::Null, row(2, "after", None, 2)))));
        running.reflects(&case.connector).await;
        assert_eq!(running.items().await, items([(0, "before", None, 0), (2, "after", None, 2)]));
        let held = case.folder.quarantine().await;
        assert_eq!((held.len(), &*held[0].rule, held[0].at.partition.number), (1, rule, 1));
        assert_eq!(held[0].value.as_ref().unwrap().len(), LARGE);
        running.stop().await;
    }
}
