//! Maintenance keeps the table in few fragments and its ANN index over nearly all rows, by the table's own statistics. Fragments are merged between
//! commits, which LanceDB would have to do over again if they were merged under them; the ANN index, which takes longer and touches no row, is made
//! and extended beside the commits.
//!
//! The invariant: it changes how rows are found, never which: what a search does not find in the ANN index it compares one by one.

use futures::TryStreamExt;
use lancedb::DistanceType;
use lancedb::index::vector::IvfFlatIndexBuilder;
use lancedb::index::{Index, IndexStatistics};
use lancedb::query::{ExecutableQuery, QueryBase};
use lancedb::table::{CompactionOptions, Duration, OptimizeAction, OptimizeOptions};

use super::database::not_lance;
use super::design::VECTOR;
use super::{Error, IndexTable};

/// Commits between two looks at the statistics while there is work.
const EVERY: u64 = 16;
/// Rows that a partition of the ANN index should have. A search looks into a number of partitions: the smaller they are, the less it compares.
const PARTITION_ROWS: u32 = 512;
/// Parts of the ANN index, each of rows that came later, before they become one.
pub(super) const PARTS_MAX: usize = 4;
/// Rows outside of the ANN index that cost a search next to nothing.
pub(super) const UNINDEXED_ROWS: usize = 500;

impl IndexTable {
    /// Looks at the statistics, now and then while there is work and always when there is none, and does what they ask for, or begins it: see
    /// [`ann_done`](Self::ann_done). Says whether it did something.
    pub async fn maintain(&mut self, idle: bool) -> Result<bool, Error> {
        // Fragments that are merged under the making of an index would make it be for nothing.
        if self.table.lance().is_none() || self.has_ann_work() {
            return Ok(false);
        }
        let commits = self.commits - self.maintained;
        if commits == 0 || (!idle && commits < EVERY) {
            return Ok(false);
        }
        self.maintained = self.commits;
        let stats = self.lance()?.stats().await.map_err(|e| self.storage(e))?;
        let is_in_pieces = stats.fragment_stats.num_small_fragments >= self.design.config.compact_min_fragments;
        if is_in_pieces {
            self.compact().await?;
            self.version = self.table.version().await.map_err(|e| self.storage(e))?;
        }
        if stats.num_rows >= self.design.config.ann_min_rows {
            match self.ann().await? {
                None => self.make_ann()?,
                Some(ann) => self.extend_ann(&ann, idle)?,
            }
        }
        Ok(is_in_pieces)
    }

    /// Whether something is done for the ANN index beside the commits.
    pub fn has_ann_work(&self) -> bool {
        self.ann_work.is_running()
    }

    /// Whether it has come to an end since this was asked last. What could not be done is done when there is no work.
    pub fn ann_done(&mut self) -> bool {
        let Some(done) = self.ann_work.done() else { return false };
        if let Err(reason) = done {
            let table = &self.name;
            tracing::warn!(table, reason, "the ANN index has to wait");
            self.commits += 1;
        }
        true
    }

    /// Looks whether the ANN index can be searched. One that has lost files is given up, and made anew by maintenance: it changes how rows are
    /// found, never which.
    pub(super) async fn check_ann(&mut self) -> Result<(), Error> {
        if self.table.lance().is_none() {
            return Ok(());
        }
        let indices = self.lance()?.list_indices().await.map_err(|e| self.storage(e))?;
        let Some(index) = indices.iter().find(|i| i.columns.iter().any(|c| c == VECTOR)) else { return Ok(()) };
        let mut direction = vec![0.0; self.design.dimension];
        direction[0] = 1.0;
        let table = self.lance()?;
        let search = async || {
            let near = table.query().nearest_to(direction)?.column(VECTOR).distance_type(DistanceType::Cosine);
            near.limit(1).execute().await?.try_collect::<Vec<_>>().await
        };
        if let Err(reason) = search().await {
            let (table, reason) = (&self.name, reason.to_string());
            tracing::warn!(
                table,
                reason,
                "the ANN index cannot be read; it is made anew, and searches compare all rows until then"
            );
            self.lance()?.drop_index(&index.name).await.map_err(|e| self.storage(e))?;
            self.version = self.table.version().await.map_err(|e| self.storage(e))?;
            // It is looked at as soon as there is no work.
            self.commits += 1;
        }
        Ok(())
    }

    fn lance(&self) -> Result<&lancedb::Table, Error> {
        self.table.lance().ok_or_else(|| self.storage(not_lance()))
    }

    /// Removes versions that no search reads any more, and brings small fragments together: in this order, since the newest version is the one
    /// that is searched until what comes after it is published, and the newest is never removed.
    async fn compact(&self) -> Result<(), Error> {
        let age = i64::try_from(self.design.config.versions_max_age_s).unwrap_or(i64::MAX / 1000);
        let prune = OptimizeAction::Prune {
            older_than: Some(Duration::seconds(age)),
            delete_unverified: None,
            error_if_tagged_old_versions: None,
        };
        self.lance()?.optimize(prune).await.map_err(|e| self.storage(e))?;
        let compact = OptimizeAction::Compact { options: CompactionOptions::default(), remap_options: None };
        self.lance()?.optimize(compact).await.map_err(|e| self.storage(e))?;
        Ok(())
    }

    /// The statistics of the ANN index, if there is one.
    pub(super) async fn ann(&self) -> Result<Option<IndexStatistics>, Error> {
        let indices = self.lance()?.list_indices().await.map_err(|e| self.storage(e))?;
        match indices.iter().find(|i| i.columns.iter().any(|c| c == VECTOR)) {
            Some(index) => self.lance()?.index_stats(&index.name).await.map_err(|e| self.storage(e)),
            None => Ok(None),
        }
    }

    /// Flat within its partitions: exact distances, and no training beyond the centroids.
    fn make_ann(&mut self) -> Result<(), Error> {
        let builder =
            IvfFlatIndexBuilder::default().distance_type(DistanceType::Cosine).target_partition_size(PARTITION_ROWS);
        let make = self.lance()?.create_index(&[VECTOR], Index::IvfFlat(builder));
        self.ann_work.begin(make.execute(), self.in_use.clone());
        Ok(())
    }

    /// A search compares every row that the index does not cover, and looks into each of the index's parts.
    fn extend_ann(&mut self, ann: &IndexStatistics, idle: bool) -> Result<(), Error> {
        let rows = ann.num_indexed_rows + ann.num_unindexed_rows;
        let share = if idle { 0.0 } else { self.design.config.ann_max_unindexed };
        if ann.num_unindexed_rows <= UNINDEXED_ROWS.max((share * rows as f64) as usize) {
            return Ok(());
        }
        let parts = ann.num_indices.unwrap_or(0) as usize;
        let options = OptimizeOptions::new().num_indices_to_merge((parts >= PARTS_MAX).then_some(parts));
        let table = self.lance()?.clone();
        let extend = async move { table.optimize(OptimizeAction::Index(options)).await.map(drop) };
        self.ann_work.begin(extend, self.in_use.clone());
        Ok(())
    }
}
