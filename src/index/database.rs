//! Where the tables of an index lie: in LanceDB, or in what stands for it in a simulation.
//!
//! The invariant: a write is one version of the table more, all of it or none.

use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchIterator};
use arrow::datatypes::SchemaRef;
use datafusion::logical_expr::Expr;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use lancedb::query::{ExecutableQuery, QueryBase, Select};
use lancedb::{Connection, Error, Result};

pub trait Database: Send + Sync {
    fn names(&self) -> BoxFuture<'_, Result<Vec<String>>>;

    fn open<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Arc<dyn Table>>>;

    /// Makes a table without rows.
    fn create<'a>(&'a self, name: &'a str, schema: SchemaRef) -> BoxFuture<'a, Result<Arc<dyn Table>>>;

    fn remove<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<()>>;
}

pub trait Table: Send + Sync {
    fn version(&self) -> BoxFuture<'_, Result<u64>>;

    fn schema(&self) -> BoxFuture<'_, Result<SchemaRef>>;

    /// These columns of the rows that a condition holds for, or of all, in no order; no more than `limit`.
    fn scan<'a>(
        &'a self,
        columns: &'a [&'a str],
        condition: Option<Expr>,
        limit: Option<usize>,
    ) -> BoxFuture<'a, Result<BoxStream<'static, Result<RecordBatch>>>>;

    /// Writes rows, each in the place of the one that has its key; says the version that has them.
    fn upsert<'a>(&'a self, key: &'a str, rows: RecordBatch) -> BoxFuture<'a, Result<u64>>;

    /// Removes the rows that a condition holds for; says the version that has them no longer.
    fn delete<'a>(&'a self, condition: &'a str) -> BoxFuture<'a, Result<u64>>;

    /// The table as it is now, whatever is written to it.
    fn pinned(&self) -> BoxFuture<'_, Result<Arc<dyn Table>>>;

    /// Finds what was written in another way than by this handle.
    fn look_again(&self) -> BoxFuture<'_, Result<()>>;

    /// Whether a version has the rows of the one before, and differs only in how they are found.
    fn has_rows_of_before(&self, version: u64) -> BoxFuture<'_, Result<bool>>;

    /// LanceDB's, for what is nearest, and for maintenance.
    fn lance(&self) -> Option<&lancedb::Table>;
}

impl Database for Connection {
    fn names(&self) -> BoxFuture<'_, Result<Vec<String>>> {
        self.table_names().execute().boxed()
    }

    fn open<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Arc<dyn Table>>> {
        let open = self.open_table(name).execute();
        async move { Ok(Arc::new(open.await?) as Arc<dyn Table>) }.boxed()
    }

    fn create<'a>(&'a self, name: &'a str, schema: SchemaRef) -> BoxFuture<'a, Result<Arc<dyn Table>>> {
        let create = self.create_empty_table(name, schema).execute();
        async move { Ok(Arc::new(create.await?) as Arc<dyn Table>) }.boxed()
    }

    fn remove<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<()>> {
        self.drop_table(name, &[]).boxed()
    }
}

impl Table for lancedb::Table {
    fn version(&self) -> BoxFuture<'_, Result<u64>> {
        lancedb::Table::version(self).boxed()
    }

    fn schema(&self) -> BoxFuture<'_, Result<SchemaRef>> {
        lancedb::Table::schema(self).boxed()
    }

    fn scan<'a>(
        &'a self,
        columns: &'a [&'a str],
        condition: Option<Expr>,
        limit: Option<usize>,
    ) -> BoxFuture<'a, Result<BoxStream<'static, Result<RecordBatch>>>> {
        let mut query = self.query().select(Select::columns(columns));
        if let Some(condition) = condition {
            query = query.only_if_expr(condition);
        }
        if let Some(limit) = limit {
            query = query.limit(limit);
        }
        async move { Ok(query.execute().await?.boxed()) }.boxed()
    }

    fn upsert<'a>(&'a self, key: &'a str, rows: RecordBatch) -> BoxFuture<'a, Result<u64>> {
        let schema = rows.schema();
        let mut merge = self.merge_insert(&[key]);
        merge.when_matched_update_all(None).when_not_matched_insert_all();
        let merge = merge.execute(Box::new(RecordBatchIterator::new([Ok(rows)], schema)));
        async move { Ok(merge.await?.version) }.boxed()
    }

    fn delete<'a>(&'a self, condition: &'a str) -> BoxFuture<'a, Result<u64>> {
        async move { Ok(lancedb::Table::delete(self, condition).await?.version) }.boxed()
    }

    fn pinned(&self) -> BoxFuture<'_, Result<Arc<dyn Table>>> {
        async move { Ok(Arc::new(self.checkout_current().await?) as Arc<dyn Table>) }.boxed()
    }

    fn look_again(&self) -> BoxFuture<'_, Result<()>> {
        self.checkout_latest().boxed()
    }

    fn has_rows_of_before(&self, version: u64) -> BoxFuture<'_, Result<bool>> {
        async move {
            let dataset = self.dataset().ok_or_else(not_lance)?.get().await?;
            let transaction = dataset.read_transaction_by_version(version).await?;
            Ok(transaction.is_some_and(|t| t.operation.name() == "CreateIndex"))
        }
        .boxed()
    }

    fn lance(&self) -> Option<&lancedb::Table> {
        Some(self)
    }
}

/// What a table cannot do that is not LanceDB's.
pub(super) fn not_lance() -> Error {
    Error::NotSupported { message: "the table is not LanceDB's".into() }
}
