//! The embedding store: every vector that was ever computed, in one append-only file for each model: a head, then records of one length, each a
//! text's hash, its vector and a checksum.
//!
//! The invariant: what `put` has answered for survives a crash. What a crash tore is cut off at the next open; a record that is damaged is
//! noticed, there or when it is read, and never answered with; no other record suffers from it. One process writes.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufReader, Read};
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
    #[error(
        "{path} is not an embedding store of {dimension} numbers a vector, or its head is damaged: move it away, and a start fills one from the index"
    )]
    Foreign { path: PathBuf, dimension: usize },
    #[error(
        "the embedding store {path} is damaged at byte {offset}; a restart leaves that record out and embeds its text again"
    )]
    Damaged { path: PathBuf, offset: u64 },
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
        match store.read(folder) {
            Ok(()) => Ok(store),
            Err(e) if e.kind() == io::ErrorKind::InvalidData => Err(StoreError::Foreign { path, dimension }),
            Err(e) => Err(failed(e)),
        }
    }

    fn read(&mut self, folder: &Path) -> io::Result<()> {
        let length = self.file.metadata()?.len();
        let head = self.head();
        self.end = head.len() as u64;
        // A file without a record has nothing to lose: it is new, or a crash came while it was begun.
        if length <= self.end {
            self.file.set_len(0)?;
            self.file.write_all_at(&head, 0)?;
            self.file.sync_all()?;
            // The file's name, and its folder's.
            for folder in folder.canonicalize()?.ancestors().take(2) {
                File::open(folder)?.sync_all()?;
            }
            return Ok(());
        }
        let mut reader = BufReader::with_capacity(1 << 20, self.file.try_clone()?);
        let mut found = vec![0; head.len()];
        reader.read_exact(&mut found)?;
        if found != head {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut record = vec![0; self.record_bytes()];
        let mut damaged = 0;
        for n in 0..(length - self.end) / record.len() as u64 {
            reader.read_exact(&mut record)?;
            if !is_whole(&record) {
                damaged += 1;
                continue;
            }
            let place = head.len() as u64 + n * record.len() as u64;
            self.places.insert(hash_of(&record), place);
            let end = place + record.len() as u64;
            // What is damaged and has a whole record behind it was not torn by a crash in the last write, or not at its end: it stays, unused.
            if damaged > 0 {
                tracing::warn!(path = %self.path.display(), records = damaged, before = place, "the embedding store has damaged records; their texts are embedded again");
                damaged = 0;
            }
            self.end = end;
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
        let mut record = vec![0; self.record_bytes()];
        self.file.read_exact_at(&mut record, *place).map_err(|source| self.failed(source))?;
        if !is_whole(&record) || hash_of(&record) != *hash {
            return Err(StoreError::Damaged { path: self.path.clone(), offset: *place });
        }
        let numbers = record[HASH..record.len() - CHECK].as_chunks::<4>().0;
        Ok(Some(numbers.iter().map(|b| f32::from_le_bytes(*b)).collect()))
    }

    /// Adds vectors, except those that are there; they are durable when this answers.
    pub fn put(&mut self, vectors: &[(TextHash, &[f32])]) -> Result<(), StoreError> {
        let mut bytes = Vec::with_capacity(vectors.len() * self.record_bytes());
        let mut places = HashMap::with_capacity(vectors.len());
        for (hash, vector) in vectors {
            assert_eq!(vector.len(), self.dimension, "a vector of another model");
            if self.contains(hash) || places.contains_key(hash) {
                continue;
            }
            let start = bytes.len();
            places.insert(*hash, self.end + start as u64);
            bytes.extend(hash.0);
            bytes.extend(vector.iter().flat_map(|v| v.to_le_bytes()));
            let check = check(&bytes[start..]);
            bytes.extend(check);
        }
        if bytes.is_empty() {
            return Ok(());
        }
        // What a failed write leaves behind lies after the end, and the next one goes over it.
        self.file.write_all_at(&bytes, self.end).map_err(|source| self.failed(source))?;
        self.file.sync_data().map_err(|source| self.failed(source))?;
        self.end += bytes.len() as u64;
        self.places.extend(places);
        Ok(())
    }

    fn failed(&self, source: io::Error) -> StoreError {
        StoreError::Io { path: self.path.clone(), source }
    }

    /// Texts.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Records on disk. As many as there are texts, unless some are damaged.
    pub fn records(&self) -> usize {
        (self.end as usize - self.head().len()) / self.record_bytes()
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

fn hash_of(record: &[u8]) -> TextHash {
    TextHash(record[..HASH].try_into().expect("a record begins with its hash"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIMENSION: usize = 3;
    const HEAD: usize = 16;
    const RECORD: usize = HASH + 4 * DIMENSION + CHECK;

    fn model() -> ModelId {
        ModelId("m".into())
    }

    fn hash(text: &str) -> TextHash {
        TextHash::of(&model(), text)
    }

    fn open(folder: &Path) -> EmbeddingStore {
        EmbeddingStore::open(folder, &model(), DIMENSION).unwrap()
    }

    fn vector(n: usize) -> [f32; DIMENSION] {
        [n as f32 + 0.1, -1.5, 1e-9]
    }

    /// A store with the texts "0", "1" and so on; its file's bytes, in which changes are tried.
    fn stored(folder: &Path, records: usize) -> (PathBuf, Vec<u8>) {
        let mut store = open(folder);
        for n in 0..records {
            store.put(&[(hash(&n.to_string()), &vector(n))]).unwrap();
        }
        let path = store.path.clone();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len(), HEAD + records * RECORD);
        (path, bytes)
    }

    /// Which of the texts are there, each with its right vector.
    fn held(store: &EmbeddingStore, records: usize) -> Vec<bool> {
        let held = |n: usize| match store.get(&hash(&n.to_string())).unwrap() {
            Some(found) => {
                assert_eq!(found, vector(n));
                true
            }
            None => false,
        };
        (0..records).map(held).collect()
    }

    /// What was torn or damaged can be embedded again, and then everything is there, also after another open.
    fn mend(mut store: EmbeddingStore, folder: &Path, records: usize) {
        for n in 0..records {
            store.put(&[(hash(&n.to_string()), &vector(n))]).unwrap();
        }
        drop(store);
        let store = open(folder);
        assert_eq!((held(&store, records), store.len()), (vec![true; records], records));
    }

    #[test]
    fn a_write_torn_at_any_byte_is_cut_off_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let (path, bytes) = stored(folder.path(), 3);
        let last = bytes.len() - RECORD;
        for at in last..bytes.len() {
            // The file ends there; or it has its length, and the rest of it never came to the disk.
            let mut zeroed = bytes.clone();
            zeroed[at..].fill(0);
            for torn in [&bytes[..at], &zeroed] {
                std::fs::write(&path, torn).unwrap();
                let store = open(folder.path());
                assert_eq!(held(&store, 3), [true, true, false], "torn at {at}");
                assert_eq!(std::fs::metadata(&path).unwrap().len(), last as u64);
                mend(store, folder.path(), 3);
            }
        }
    }

    #[test]
    fn a_crash_while_the_file_is_begun_leaves_nothing_in_the_way() {
        let folder = tempfile::tempdir().unwrap();
        let (path, bytes) = stored(folder.path(), 0);
        for at in 0..bytes.len() {
            let mut zeroed = bytes.clone();
            zeroed[at..].fill(0);
            for torn in [&bytes[..at], &zeroed] {
                std::fs::write(&path, torn).unwrap();
                mend(open(folder.path()), folder.path(), 2);
            }
        }
    }

    #[test]
    fn any_flipped_bit_costs_its_record_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (path, bytes) = stored(folder.path(), 3);
        for bit in HEAD * 8..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, &flipped).unwrap();
            let damaged = (bit / 8 - HEAD) / RECORD;
            let store = open(folder.path());
            let mut expect = [true; 3];
            expect[damaged] = false;
            assert_eq!(held(&store, 3), expect, "bit {bit}");
            mend(store, folder.path(), 3);
        }
    }

    #[test]
    fn a_record_that_is_damaged_while_the_store_is_open_is_not_answered_with() {
        let folder = tempfile::tempdir().unwrap();
        let (path, bytes) = stored(folder.path(), 2);
        let store = open(folder.path());
        for bit in (HEAD + RECORD) * 8..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, &flipped).unwrap();
            let found = store.get(&hash("1"));
            assert!(
                matches!(found, Err(StoreError::Damaged { offset, .. }) if offset as usize == HEAD + RECORD),
                "bit {bit}: {found:?}"
            );
            assert_eq!(store.get(&hash("0")).unwrap().as_deref(), Some(vector(0).as_slice()));
        }
    }

    #[test]
    fn a_vector_is_stored_once_and_little_else_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = EmbeddingStore::open(folder.path(), &model(), 384).unwrap();
        let vectors: Vec<Vec<f32>> = (0..1000).map(|n| vec![n as f32; 384]).collect();
        let records: Vec<(TextHash, &[f32])> =
            vectors.iter().enumerate().map(|(n, v)| (hash(&n.to_string()), v.as_slice())).collect();
        let twice: Vec<(TextHash, &[f32])> = records.iter().chain(&records).copied().collect();
        store.put(&twice).unwrap();
        store.put(&records).unwrap();
        assert_eq!(store.len(), 1000);
        let on_disk: u64 =
            std::fs::read_dir(folder.path()).unwrap().map(|f| f.unwrap().metadata().unwrap().len()).sum();
        assert!(on_disk * 10 <= 11 * 1000 * 384 * 4, "{on_disk} bytes");
    }

    #[test]
    fn another_dimension_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (path, bytes) = stored(folder.path(), 1);
        let found = EmbeddingStore::open(folder.path(), &model(), DIMENSION + 1);
        assert!(matches!(found, Err(StoreError::Foreign { .. })));
        assert_eq!(std::fs::read(path).unwrap(), bytes);
    }

    #[test]
    fn a_text_is_another_one_under_another_model() {
        assert_ne!(TextHash::of(&ModelId("m".into()), "a"), TextHash::of(&ModelId("n".into()), "a"));
    }

    const FOLDER: &str = "FRESHET_TEST_STORE_OF_ANOTHER_PROCESS";

    /// Runs this test in a process of its own, which tries to open the store, and says what came of it.
    #[test]
    fn a_second_process_is_refused_until_the_first_lets_go() {
        if let Some(folder) = std::env::var_os(FOLDER) {
            let found = EmbeddingStore::open(Path::new(&folder), &model(), DIMENSION);
            println!("opened: {}", found.map_or_else(|e| e.to_string(), |store| store.len().to_string()));
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let other_process = || {
            let name = std::thread::current().name().unwrap().to_string();
            let mut command = std::process::Command::new(std::env::current_exe().unwrap());
            let output = command.args(["--exact", "--nocapture", &name]).env(FOLDER, folder.path()).output().unwrap();
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let mut store = open(folder.path());
        store.put(&[(hash("0"), &vector(0))]).unwrap();
        // Nor does this process get it twice.
        assert!(matches!(EmbeddingStore::open(folder.path(), &model(), DIMENSION), Err(StoreError::InUse { .. })));
        let said = other_process();
        assert!(said.contains("is in use by another process"), "{said}");
        drop(store);
        let said = other_process();
        assert!(said.contains("opened: 1"), "{said}");
    }
}
