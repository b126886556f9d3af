//! Maintenance keeps the table in few fragments and its ANN index over nearly all rows, by the table's own statistics.
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
    /// Looks at the statistics, now and then while there is work and always when there is none, and does what they ask for. Says whether it
    /// did something.
    pub async fn maintain(&mut self, idle: bool) -> Result<bool, Error> {
        if self.table.lance().is_none() {
            return Ok(false);
        }
        let commits = self.commits - self.maintained;
        if commits == 0 || (!idle && commits < EVERY) {
            return Ok(false);
        }
        self.maintained = self.commits;
        let stats = self.lance()?.stats().await.map_err(|e| self.storage(e))?;
        let mut did = false;
        if stats.fragment_stats.num_small_fragments >= self.design.config.compact_min_fragments {
            self.compact().await?;
            did = true;
        }
        if stats.num_rows >= self.design.config.ann_min_rows {
            did |= match self.ann().await? {
                None => self.make_ann().await?,
                Some(ann) => self.extend_ann(&ann, idle).await?,
            };
        }
        if did {
            self.version = self.table.version().await.map_err(|e| self.storage(e))?;
        }
        Ok(did)
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
    async fn make_ann(&self) -> Result<bool, Error> {
        let builder =
            IvfFlatIndexBuilder::default().distance_type(DistanceType::Cosine).target_partition_size(PARTITION_ROWS);
        let made = self.lance()?.create_index(&[VECTOR], Index::IvfFlat(builder)).execute();
        made.await.map_err(|e| self.storage(e)).map(|()| true)
    }

    /// A search compares every row that the index does not cover, and looks into each of the index's parts.
    async fn extend_ann(&self, ann: &IndexStatistics, idle: bool) -> Result<bool, Error> {
        let rows = ann.num_indexed_rows + ann.num_unindexed_rows;
        let share = if idle { 0.0 } else { self.design.config.ann_max_unindexed };
        if ann.num_unindexed_rows <= UNINDEXED_ROWS.max((share * rows as f64) as usize) {
            return Ok(false);
        }
        let parts = ann.num_indices.unwrap_or(0) as usize;
        let options = OptimizeOptions::new().num_indices_to_merge((parts >= PARTS_MAX).then_some(parts));
        self.lance()?.optimize(OptimizeAction::Index(options)).await.map_err(|e| self.storage(e))?;
        Ok(true)
    }
}
