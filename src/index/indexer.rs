//! The indexer keeps the index in step with the view, and builds it anew where it cannot be used: in a table beside the one that was, which takes
//! its place when it is whole.
//!
//! The invariant: a position is announced before the rows of it are committed, and published only when all of them are in. A table in the making
//! is neither announced nor searched.

use std::collections::HashSet;
use std::sync::{Arc, RwLock, Weak};

use super::search::{Shown, Snapshot};
use super::writer::Writer;
use super::{Applied, Error, Found, IndexSearcher, Kept, Place, Reached};
use crate::dataflow::ViewChange;
use crate::embed::{BatchStats, EmbeddingStore, TextEmbedder};
use crate::time::{Epoch, Position};

pub struct Indexer {
    place: Place,
    writer: Writer,
    /// The index, and what of it is searched, unless it has to be built anew.
    current: Option<(Kept, Shown)>,
    /// The table that is to take its place.
    next: Option<Kept>,
    /// Tables whose place others have taken, each with what tells whether it is still searched.
    retired: Vec<(String, Weak<()>)>,
}

impl Indexer {
    pub async fn new(found: Found, store: EmbeddingStore, embedder: Arc<dyn TextEmbedder>) -> Result<Indexer, Error> {
        let Found { place, index, anew } = found;
        let mut writer = Writer::new(place.design().clone(), store, embedder)?;
        let current = match index {
            Ok(kept) => {
                writer.mend_store(&kept).await?;
                let Reached { epoch, position } = place.reached();
                let snapshot = Snapshot::of(&kept.table, epoch, Arc::new(position)).await?;
                Some((kept, Shown::new(RwLock::new(snapshot))))
            }
            Err(why) => {
                let index = &place.design().name;
                tracing::warn!(index, why, "the index is built anew; searches are answered once it is whole");
                None
            }
        };
        let mut indexer = Indexer { place, writer, current, next: None, retired: Vec::new() };
        if anew {
            indexer.begin().await?;
        }
        Ok(indexer)
    }

    /// How far all of the index is.
    pub fn reached(&self) -> Reached {
        self.place.reached()
    }

    /// How far the index may be.
    pub fn announced(&self) -> (Epoch, Position) {
        self.place.announced_position()
    }

    /// What answers searches; `None` until the index is whole.
    pub fn searcher(&self) -> Result<Option<IndexSearcher>, Error> {
        let searcher = |(_, shown): &(Kept, Shown)| IndexSearcher::new(self.place.design(), shown.clone());
        self.current.as_ref().map(searcher).transpose()
    }

    pub fn is_searchable(&self) -> bool {
        self.current.is_some()
    }

    /// Whether a table is being made.
    pub fn is_building(&self) -> bool {
        self.next.is_some()
    }

    /// Rows of the index, or, while there is none, of the table in the making.
    pub fn len(&self) -> usize {
        let current = self.current.as_ref().map(|(kept, _)| kept);
        current.or(self.next.as_ref()).map_or(0, |kept| kept.held.len())
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Deletes of keys that the index holds and the view does not.
    pub fn orphans(&self, view: &HashSet<Box<[u8]>>) -> Vec<ViewChange> {
        let held = self.current.iter().flat_map(|(kept, _)| kept.held.keys());
        held.filter(|k| !view.contains(*k)).map(|k| ViewChange { key: k.clone(), row: None }).collect()
    }

    /// Announces how far the coming changes lead.
    pub async fn announce(&mut self, epoch: Epoch, position: &Position) -> Result<(), Error> {
        match &self.current {
            Some((kept, _)) => self.place.announce(&kept.table, epoch, position).await,
            None => Ok(()),
        }
    }

    /// Brings changes into the index, in one commit. Without an index there is nothing to do.
    pub async fn apply(
        &mut self,
        changes: &[ViewChange],
        progress: &mut (dyn FnMut(BatchStats) + Send),
    ) -> Result<Applied, Error> {
        match &mut self.current {
            Some((kept, _)) => self.writer.bring(kept, changes, progress).await,
            None => Ok(Applied::default()),
        }
    }

    /// Shows the index as it is now to searches: all of the position is in it, or, for a part of it, what was published before.
    pub async fn publish(&mut self, reached: Option<(Epoch, &Position)>) -> Result<(), Error> {
        let Some((kept, shown)) = &self.current else { return Ok(()) };
        let (epoch, position) = match reached {
            Some((epoch, position)) => {
                self.place.reach(&kept.table, epoch, position).await?;
                (epoch, Arc::new(position.clone()))
            }
            None => {
                let now = shown.read().expect("no holder of this lock panics");
                (now.epoch, now.position.clone())
            }
        };
        let snapshot = Snapshot::of(&kept.table, epoch, position).await?;
        *shown.write().expect("no holder of this lock panics") = snapshot;
        Ok(())
    }

    /// The table that is the index.
    pub fn table_name(&self) -> Option<&str> {
        self.current.as_ref().map(|(kept, _)| &*kept.table.name)
    }

    /// Begins a table beside the index.
    pub async fn begin(&mut self) -> Result<(), Error> {
        self.next = Some(self.place.begin().await?);
        Ok(())
    }

    /// Gives up the table in the making.
    pub async fn give_up(&mut self) {
        if let Some(next) = self.next.take() {
            self.retired.push((next.table.name.clone(), Arc::downgrade(&next.table.in_use)));
        }
        self.remove_retired().await;
    }

    /// Brings changes into the table in the making, in one commit.
    pub async fn apply_beside(
        &mut self,
        changes: &[ViewChange],
        progress: &mut (dyn FnMut(BatchStats) + Send),
    ) -> Result<Applied, Error> {
        let next = self.next.as_mut().expect("a table is being made");
        self.writer.bring(next, changes, progress).await
    }

    /// Makes the first searches of the table in the making as fast as the later ones. Says whether that is over: until then it has to be asked again.
    pub async fn maintain_beside(&mut self) -> Result<bool, Error> {
        let table = &mut self.next.as_mut().expect("a table is being made").table;
        // Rows that have come meanwhile have to wait for the table to be the index: there may always be more.
        if table.ann_done() {
            return Ok(true);
        }
        table.maintain(true).await?;
        Ok(!table.has_ann_work())
    }

    /// Puts the table in the making, which holds the view as it is at this position, in the place of the index.
    pub async fn swap(&mut self, epoch: Epoch, position: &Position) -> Result<(), Error> {
        let next = self.next.as_ref().expect("a table is being made");
        let snapshot = Snapshot::of(&next.table, epoch, Arc::new(position.clone())).await?;
        let old = self.place.announced().map(|a| a.table.clone());
        self.place.reach(&next.table, epoch, position).await?;
        let next = self.next.take().expect("a table is being made");
        let (table, rows) = (&next.table.name, next.held.len());
        tracing::info!(table, rows, "the index is whole; it takes the place of the one before");
        let mut searched = Weak::new();
        self.current = Some(match self.current.take() {
            Some((before, shown)) => {
                searched = Arc::downgrade(&before.table.in_use);
                *shown.write().expect("no holder of this lock panics") = snapshot;
                (next, shown)
            }
            None => (next, Shown::new(RwLock::new(snapshot))),
        });
        self.retired.extend(old.map(|old| (old, searched)));
        self.remove_retired().await;
        Ok(())
    }

    /// Looks at what lies there, after something has failed of which nobody knows how much was done.
    pub async fn look_again(&mut self) -> Result<(), Error> {
        self.place.check().await?;
        for kept in self.current.iter_mut().map(|(kept, _)| kept).chain(&mut self.next) {
            kept.held = kept.table.look_again().await?;
        }
        Ok(())
    }

    async fn remove_retired(&mut self) {
        for (table, searched) in std::mem::take(&mut self.retired) {
            match searched.strong_count() {
                0 => self.place.remove(&table).await,
                _ => self.retired.push((table, searched)),
            }
        }
    }

    pub async fn maintain(&mut self, idle: bool) -> Result<bool, Error> {
        self.remove_retired().await;
        if idle {
            self.place.check().await?;
        }
        match &mut self.current {
            Some((kept, _)) => kept.table.maintain(idle).await,
            None => Ok(false),
        }
    }

    /// Whether work on the ANN index has come to an end since this was asked last: searches have to be shown it.
    pub fn ann_done(&mut self) -> bool {
        self.current.as_mut().is_some_and(|(kept, _)| kept.table.ann_done())
    }

    #[cfg(test)]
    pub(super) fn table(&self) -> &super::IndexTable {
        &self.current.as_ref().expect("the index is whole").0.table
    }
}
