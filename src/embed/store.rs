//! The embedding store: every vector that was ever computed, in one append-only file for each model.
//!
//! The invariant: what `put` has answered for survives a crash; a record that a crash cut off is dropped at the next open, and no record
//! before it is touched. One process writes.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::ModelId;

const MAGIC: &[u8; 8] = b"FRSHEMB1";
const HASH: usize = 16;
const CHECK: usize = 4;

/// A text under a model: the first 16 bytes of a sha256 over both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TextHash(pub [u8; HASH]);

impl TextHash {
    pub fn of(model: &ModelId, text: &str) -> TextHash {
        let mut hash = Sha256::new();
        hash.update(model.0.as_bytes());
        hash.update([0]);
        hash.update(text.as_bytes());
        let mut first = [0; HASH];
        first.copy_from_slice(&hash.finalize()[..HASH]);
        TextHash(first)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the embedding store {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("the embedding store {path} is in use by another process")]
    InUse { path: PathBuf },
    #[error("{path} is not an embedding store of {dimension} numbers a vector")]
    Foreign { path: PathBuf, dimension: usize },
}

pub struct EmbeddingStore {
    path: PathBuf,
    file: File,
    dimension: usize,
    /// Offset of a vector's record.
    places: HashMap<TextHash, u64>,
    end: u64,
}

impl EmbeddingStore {
    /// Opens the store of one model in `folder`, or begins it.
    pub fn open(folder: &Path, model: &ModelId, dimension: usize) -> Result<EmbeddingStore, StoreError> {
        let short: String = model.0.chars().take(16).collect();
        let path = folder.join(format!("{short}.embeddings"));
        let failed = |source| StoreError::Io { path: path.clone(), source };
        std::fs::create_dir_all(folder).map_err(failed)?;
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StoreError::InUse { path }),
            Err(TryLockError::Error(e)) => return Err(failed(e)),
        }
        let mut store = EmbeddingStore { path: path.clone(), file, dimension, places: HashMap::new(), end: 0 };
        match store.read() {
            Ok(()) => Ok(store),
            Err(e) if e.kind() == io::ErrorKind::InvalidData => Err(StoreError::Foreign { path, dimension }),
            Err(e) => Err(failed(e)),
        }
    }

    fn read(&mut self) -> io::Result<()> {
        let length = self.file.metadata()?.len();
        let head = self.head();
        if length < head.len() as u64 {
            self.file.set_len(0)?;
            self.file.write_all_at(&head, 0)?;
            self.file.sync_data()?;
            self.end = head.len() as u64;
            return Ok(());
        }
        let mut reader = BufReader::with_capacity(1 << 20, self.file.try_clone()?);
        let mut found = vec![0; head.len()];
        reader.read_exact(&mut found)?;
        if found != head {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.end = head.len() as u64;
        let mut record = vec![0; self.record_bytes()];
        while reader.read_exact(&mut record).is_ok() && is_whole(&record) {
            let hash = TextHash(record[..HASH].try_into().expect("a record begins with its hash"));
            self.places.insert(hash, self.end);
            self.end += record.len() as u64;
        }
        if self.end < length {
            tracing::warn!(path = %self.path.display(), bytes = length - self.end, "the embedding store ends in a record that is not whole; it is cut off");
            self.file.set_len(self.end)?;
        }
        Ok(())
    }

    fn head(&self) -> Vec<u8> {
        let mut head = MAGIC.to_vec();
        head.extend((self.dimension as u64).to_le_bytes());
        head
    }

    fn record_bytes(&self) -> usize {
        HASH + 4 * self.dimension + CHECK
    }

    pub fn contains(&self, hash: &TextHash) -> bool {
        self.places.contains_key(hash)
    }

    pub fn get(&self, hash: &TextHash) -> Result<Option<Vec<f32>>, StoreError> {
        let Some(place) = self.places.get(hash) else { return Ok(None) };
        let mut bytes = vec![0; 4 * self.dimension];
        self.file
            .read_exact_at(&mut bytes, place + HASH as u64)
            .map_err(|source| StoreError::Io { path: self.path.clone(), source })?;
        Ok(Some(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()))
    }

    /// Adds vectors; they are durable when this answers.
    pub fn put(&mut self, vectors: &[(TextHash, &[f32])]) -> Result<(), StoreError> {
        let mut bytes = Vec::with_capacity(vectors.len() * self.record_bytes());
        let mut places = Vec::with_capacity(vectors.len());
        for (hash, vector) in vectors {
            assert_eq!(vector.len(), self.dimension, "a vector of another model");
            places.push((*hash, self.end + bytes.len() as u64));
            let start = bytes.len();
            bytes.extend(hash.0);
            bytes.extend(vector.iter().flat_map(|v| v.to_le_bytes()));
            let check = check(&bytes[start..]);
            bytes.extend(check);
        }
        let write = || {
            self.file.write_all_at(&bytes, self.end)?;
            self.file.sync_data()
        };
        write().map_err(|source| StoreError::Io { path: self.path.clone(), source })?;
        self.end += bytes.len() as u64;
        self.places.extend(places);
        (&self.file).flush().map_err(|source| StoreError::Io { path: self.path.clone(), source })
    }

    pub fn len(&self) -> usize {
        self.places.len()
    }

    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }
}

fn check(bytes: &[u8]) -> [u8; CHECK] {
    Sha256::digest(bytes)[..CHECK].try_into().expect("a sha256 is longer")
}

fn is_whole(record: &[u8]) -> bool {
    let (body, sum) = record.split_at(record.len() - CHECK);
    check(body) == *sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_tail_is_cut_off_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let model = ModelId("m".into());
        let (a, b) = (TextHash::of(&model, "a"), TextHash::of(&model, "b"));
        let path = {
            let mut store = EmbeddingStore::open(folder.path(), &model, 2).unwrap();
            store.put(&[(a, &[1.0, 2.0])]).unwrap();
            store.put(&[(b, &[3.0, 4.0])]).unwrap();
            assert!(matches!(EmbeddingStore::open(folder.path(), &model, 2), Err(StoreError::InUse { .. })));
            store.path.clone()
        };
        let length = std::fs::metadata(&path).unwrap().len();
        OpenOptions::new().write(true).open(&path).unwrap().set_len(length - 3).unwrap();
        let mut store = EmbeddingStore::open(folder.path(), &model, 2).unwrap();
        assert_eq!(store.get(&a).unwrap(), Some(vec![1.0, 2.0]));
        assert_eq!(store.get(&b).unwrap(), None);
        store.put(&[(b, &[5.0, 6.0])]).unwrap();
        drop(store);
        let store = EmbeddingStore::open(folder.path(), &model, 2).unwrap();
        assert_eq!((store.get(&b).unwrap(), store.len()), (Some(vec![5.0, 6.0]), 2));
        drop(store);
        assert!(matches!(EmbeddingStore::open(folder.path(), &model, 3), Err(StoreError::Foreign { .. })));
    }

    #[test]
    fn a_text_is_another_one_under_another_model() {
        assert_ne!(TextHash::of(&ModelId("m".into()), "a"), TextHash::of(&ModelId("n".into()), "a"));
    }
}
