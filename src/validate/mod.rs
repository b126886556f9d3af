//! Quarantine is where a rejected message waits: with its coordinates, its reason and its bytes, in a file of JSON lines.
//!
//! The invariant: a message is in it once, however often it is read again, and it is durable before the position passes it.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::decode::Reject;

#[derive(Debug, thiserror::Error)]
#[error("the quarantine {path}: {source}")]
pub struct Error {
    path: PathBuf,
    source: io::Error,
}

pub struct Quarantine {
    path: PathBuf,
    file: File,
    held: HashSet<(String, i32, i64)>,
}

impl Quarantine {
    pub fn open(path: &Path) -> Result<Quarantine, Error> {
        let failed = |source| Error { path: path.into(), source };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(failed)?;
        }
        let file = OpenOptions::new().read(true).append(true).create(true).open(path).map_err(failed)?;
        let mut held = HashSet::new();
        let (mut lines, mut line, mut whole) = (BufReader::new(&file), Vec::new(), 0);
        while lines.read_until(b'\n', &mut line).map_err(failed)? > 0 {
            if line.ends_with(b"\n") {
                whole += line.len() as u64;
                if let Ok(entry) = serde_json::from_slice::<Value>(&line)
                    && let (Some(topic), Some(partition), Some(offset)) =
                        (entry["topic"].as_str(), entry["partition"].as_i64(), entry["offset"].as_i64())
                {
                    held.insert((topic.to_string(), partition as i32, offset));
                }
            }
            line.clear();
        }
        // A line that a crash cut off belongs to a message that is read again.
        file.set_len(whole).map_err(failed)?;
        Ok(Quarantine { path: path.into(), file, held })
    }

    /// Adds messages; says how many were not there before.
    pub fn add(&mut self, rejects: &[Reject]) -> Result<usize, Error> {
        let mut text = String::new();
        let mut added = 0;
        for r in rejects {
            if !self.held.insert((r.partition.topic.to_string(), r.partition.number, r.offset.0)) {
                continue;
            }
            let bytes = |b: &Option<Box<[u8]>>| b.as_ref().map(|b| STANDARD.encode(b));
            let entry = json!({
                "topic": &*r.partition.topic, "partition": r.partition.number, "offset": r.offset, "timestamp_ms": r.timestamp_ms,
                "rule": r.rule.name(), "reason": r.reason, "schema_id": r.schema_id, "key": bytes(&r.key), "value": bytes(&r.value),
            });
            text.push_str(&format!("{entry}\n"));
            added += 1;
        }
        let failed = |source| Error { path: self.path.clone(), source };
        self.file.write_all(text.as_bytes()).map_err(failed)?;
        if added > 0 {
            self.file.sync_data().map_err(failed)?;
        }
        Ok(added)
    }

    pub fn len(&self) -> usize {
        self.held.len()
    }

    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::Rule;
    use crate::time::{Offset, Partition};

    #[test]
    fn a_message_is_held_once_also_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("q.jsonl");
        let reject = |offset| Reject {
            partition: Partition::new("t", 1),
            offset: Offset(offset),
            timestamp_ms: 0,
            rule: Rule::Body,
            reason: "r".into(),
            schema_id: Some(3),
            key: None,
            value: Some(Box::from(*b"\xff\x00")),
        };
        let mut quarantine = Quarantine::open(&path).unwrap();
        assert_eq!(quarantine.add(&[reject(1), reject(2), reject(1)]).unwrap(), 2);
        drop(quarantine);
        std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"topic\":\"\xc3").unwrap();
        let mut quarantine = Quarantine::open(&path).unwrap();
        assert_eq!((quarantine.len(), quarantine.add(&[reject(2), reject(3)]).unwrap()), (2, 1));
        drop(quarantine);
        assert_eq!(Quarantine::open(&path).unwrap().len(), 3, "what a crash cut off takes nothing else along");
        let first: Value =
            serde_json::from_str(std::fs::read_to_string(&path).unwrap().lines().next().unwrap()).unwrap();
        assert_eq!((&first["rule"], &first["value"], &first["schema_id"]), (&"body".into(), &"/wA=".into(), &3.into()));
    }
}
