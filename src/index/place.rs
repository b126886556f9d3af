//! Where a dataflow's index lies, and which of the tables there is the index.
//!
//! A table that takes the place of another is made beside it, under a name of its own (`product`, `product.1`, `product.2`): what is announced
//! is the index, and to announce another table is to put it in the old one's place. Everything in an index can be derived, so what cannot be used is
//! built anew; but never over what may be another dataflow's.
//!
//! The invariant: one process writes. A table is gone on with only if all of its rows can be read, it has every commit that was announced, and it
//! was made of what this dataflow makes it of.

use std::fs::{File, OpenOptions, TryLockError};
use std::sync::Arc;

use super::announced::{Announcement, Reached};
use super::table::Held;
use super::{Announced, Database, Design, Error, IndexTable};
use crate::config;
use crate::storage::{self, Storage};
use crate::time::{Epoch, Position};

pub struct Place {
    design: Arc<Design>,
    database: Arc<dyn Database>,
    announcement: Announcement,
    announced: Option<Announced>,
    /// The highest number that a table here has.
    last: Option<u64>,
    /// Tells this process's announcements from another's.
    writer: u64,
    /// Of a folder: no other process has it while this one lives.
    _lock: Option<File>,
}

/// A table, and what it holds.
pub struct Kept {
    pub(super) table: IndexTable,
    pub(super) held: Held,
}

/// What a start finds.
pub struct Found {
    pub place: Place,
    /// The index, or the reason why it cannot be gone on with.
    pub index: Result<Kept, String>,
    /// Whether another one is to be built, also beside one that can be used.
    pub anew: bool,
}

impl Place {
    /// Looks at what lies there. An index that is not there is begun. With `anew` another one is to be built in any case, also in the place of what is
    /// another dataflow's.
    pub async fn open(design: Arc<Design>, anew: bool) -> Result<Found, Error> {
        Place::open_in(None, design, anew).await
    }

    /// The same with tables that lie in a database of the caller's.
    pub async fn open_in(database: Option<Arc<dyn Database>>, design: Arc<Design>, anew: bool) -> Result<Found, Error> {
        let uri = &design.config.uri;
        let storage = storage::open(uri, &design.config.options).map_err(|e| design.storage(e))?;
        let lock = if storage.is_folder() { Some(lock(&design, &storage)?) } else { None };
        let database = match database {
            Some(database) => database,
            None => Arc::new(connect(&design.config).await.map_err(|e| design.storage(e))?),
        };
        let announcement = Announcement::of(&storage, uri, &design.name);
        let mut place =
            Place { design, database, announcement, announced: None, last: None, writer: rand::random(), _lock: lock };
        let index = place.find(anew).await?;
        let anew = anew || index.is_err();
        Ok(Found { place, index, anew })
    }

    async fn find(&mut self, anew: bool) -> Result<Result<Kept, String>, Error> {
        let mut read = self.announcement.read().await?;
        if let Some(Ok(announced)) = &mut read {
            if let Some(reason) = self.is_foreign(announced) {
                if !anew {
                    let (uri, name) = (self.design.config.uri.clone(), self.design.name.clone());
                    return Err(Error::Foreign { uri, name, reason });
                }
                // Where another dataflow was is nothing that this one would have to come to.
                announced.position = Position::default();
                announced.reached.position = Position::default();
                self.announced = Some(announced.clone());
                read = Some(Err(format!("it is another dataflow's: {reason}")));
            } else {
                // From now on whoever had it on an object store has it no longer.
                announced.writer = self.writer;
                self.announcement.write(announced).await?;
                self.announced = Some(announced.clone());
            }
        }
        let names = self.database.names().await.map_err(|e| self.design.storage(e))?;
        let tables: Vec<(u64, String)> = names.into_iter().filter_map(|n| Some((self.number(&n)?, n))).collect();
        let named = self.announced.as_ref().and_then(|a| self.number(&a.table));
        self.last = tables.iter().map(|(number, _)| *number).chain(named).max();
        for (number, name) in &tables {
            if Some(*number) != named {
                tracing::info!(table = name, "a table that is not the index is removed");
                self.remove(name).await;
            }
        }
        match read {
            None if tables.is_empty() => {
                let kept = self.begin().await?;
                self.announce(&kept.table, Epoch::default(), &Position::default()).await?;
                Ok(Ok(kept))
            }
            None => Ok(Err("the file that says how far it goes is gone".into())),
            Some(Err(reason)) => Ok(Err(reason)),
            Some(Ok(announced)) if !tables.iter().any(|(_, name)| *name == announced.table) => {
                Ok(Err(format!("its table {} is gone", announced.table)))
            }
            Some(Ok(announced)) => {
                let mut found = self.look_at(&announced).await;
                if found.is_err() {
                    // An object store that has failed in the midst is away: it is no table that is damaged.
                    self.check().await?;
                    found = self.look_at(&announced).await;
                }
                Ok(found)
            }
        }
    }

    /// The announced table, or why it is not gone on with. The storage has just answered, and asks again by itself what fails in passing: a table
    /// that cannot be read is damaged.
    async fn look_at(&self, announced: &Announced) -> Result<Kept, String> {
        let (name, wanted) = (&announced.table, &self.design.made_of);
        if announced.made_of.model_id != wanted.model_id {
            return Err("its vectors are another model's".into());
        }
        if announced.made_of != *wanted {
            return Err(format!(
                "it was made with the key {} and the text {}",
                announced.made_of.key, announced.made_of.text
            ));
        }
        let unreadable = |e: &dyn std::fmt::Display| format!("its table {name} cannot be read: {e}");
        let table = self.database.open(name).await.map_err(|e| unreadable(&e))?;
        let mut table = IndexTable::new(self.design.clone(), name, table).await.map_err(|e| unreadable(&e))?;
        if table.version < announced.version {
            return Err(format!(
                "its table {name} is of version {}, and was of version {} already: commits are gone",
                table.version, announced.version
            ));
        }
        if !table.is_of_design().await.map_err(|e| unreadable(&e))? {
            return Err("the view has other columns".into());
        }
        let (held, rows) = table.held().await.map_err(|e| unreadable(&e))?;
        if held.len() < rows {
            return Err(format!("{} rows of its table {name} have a key that another one has", rows - held.len()));
        }
        table.check_ann().await.map_err(|e| unreadable(&e))?;
        Ok(Kept { table, held })
    }

    /// Why what is announced is not this dataflow's.
    fn is_foreign(&self, announced: &Announced) -> Option<String> {
        let Announced { table, position, .. } = announced;
        if self.number(table).is_none() {
            return Some(format!("its announcement is about the table {table}"));
        }
        let mut topics: Vec<&str> = position.iter().map(|(partition, _)| &*partition.topic).collect();
        topics.dedup();
        let ours = &self.design.topics;
        let is_other = !topics.is_empty() && !topics.iter().any(|topic| ours.iter().any(|our| **our == **topic));
        is_other.then(|| format!("it reflects {}, and this one reads {}", topics.join(", "), ours.join(", ")))
    }

    /// Which of this dataflow's tables a table is: `product` is the first, `product.1` the next. A dataflow's name has no dot.
    fn number(&self, table: &str) -> Option<u64> {
        match table.strip_prefix(&self.design.name)? {
            "" => Some(0),
            rest => rest.strip_prefix('.')?.parse().ok().filter(|number| *number > 0),
        }
    }

    /// Makes a table without rows, beside those that are there.
    pub(super) async fn begin(&mut self) -> Result<Kept, Error> {
        let design = &self.design;
        let number = self.last.map_or(0, |last| last + 1);
        let name = if number == 0 { design.name.clone() } else { format!("{}.{number}", design.name) };
        let made = self.database.create(&name, design.table.clone()).await;
        let table = IndexTable::new(design.clone(), &name, made.map_err(|e| design.storage(e))?).await?;
        self.last = Some(number);
        Ok(Kept { table, held: Held::default() })
    }

    pub(super) fn design(&self) -> &Arc<Design> {
        &self.design
    }

    pub(super) fn announced(&self) -> Option<&Announced> {
        self.announced.as_ref()
    }

    /// How far the index may be.
    pub(super) fn announced_position(&self) -> (Epoch, Position) {
        self.announced.as_ref().map(|a| (a.epoch, a.position.clone())).unwrap_or_default()
    }

    /// How far all of the index is.
    pub(super) fn reached(&self) -> Reached {
        self.announced.as_ref().map(|a| a.reached.clone()).unwrap_or_default()
    }

    /// Says that this table is the index, and how far its next commits may bring it.
    pub(super) async fn announce(
        &mut self,
        table: &IndexTable,
        epoch: Epoch,
        position: &Position,
    ) -> Result<(), Error> {
        let reached = self.reached();
        self.say(table, epoch, position, reached).await
    }

    /// Says that this table is the index, and that all changes up to here are in it.
    pub(super) async fn reach(&mut self, table: &IndexTable, epoch: Epoch, position: &Position) -> Result<(), Error> {
        self.say(table, epoch, position, Reached { epoch, position: position.clone() }).await
    }

    async fn say(
        &mut self,
        table: &IndexTable,
        epoch: Epoch,
        position: &Position,
        reached: Reached,
    ) -> Result<(), Error> {
        let is_said = |a: &Announced| {
            a.table == table.name && a.epoch == epoch && a.position == *position && a.reached == reached
        };
        if self.announced.as_ref().is_some_and(is_said) {
            return Ok(());
        }
        let next = Announced {
            table: table.name.clone(),
            made_of: self.design.made_of.clone(),
            version: table.version,
            epoch,
            position: position.clone(),
            writer: self.writer,
            reached,
        };
        self.announcement.write(&next).await?;
        self.announced = Some(next);
        Ok(())
    }

    /// Whether no other process has announced anything since.
    pub(super) async fn check(&mut self) -> Result<(), Error> {
        self.announcement.check(self.writer).await
    }

    /// Removes one of this dataflow's tables. One that cannot be removed is in nobody's way, and the next start tries again.
    pub(super) async fn remove(&self, table: &str) {
        if self.number(table).is_none() {
            return;
        }
        if let Err(e) = self.database.remove(table).await {
            tracing::warn!(table, reason = %e, "a table that is no longer the index cannot be removed");
        }
    }
}

pub(super) async fn connect(config: &config::Index) -> lancedb::Result<lancedb::Connection> {
    let options = config.options.iter().map(|(key, value)| (key.clone(), value.clone()));
    // As often as our own client; Lance's would give up within a second.
    let patient = ("client_max_retries".into(), "10".into());
    lancedb::connect(&config.uri).storage_options(options.chain([patient])).execute().await
}

/// The lock of this dataflow's index.
fn lock(design: &Design, storage: &Storage) -> Result<File, Error> {
    let folder = storage.url.to_file_path().map_err(|()| design.storage("is no folder"))?;
    let path = folder.join(format!("{}.lock", design.name));
    let failed = |e: std::io::Error| design.storage(format!("{}: {e}", path.display()));
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(Error::InUse { uri: design.config.uri.clone(), name: design.name.clone() })
        }
        Err(TryLockError::Error(e)) => Err(failed(e)),
    }
}
