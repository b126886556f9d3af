//! The table on disk: opened or begun, and written in commits.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};

use arrow::array::{Array, FixedSizeBinaryArray, RecordBatch, RecordBatchIterator, new_null_array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow_row::{RowConverter, SortField};
use futures::TryStreamExt;
use lancedb::query::{ExecutableQuery, QueryBase, Select};
use lancedb::{Connection, Table};

use super::Error;
use crate::config;
use crate::time::{Epoch, Position};

pub(super) const VECTOR: &str = "_vector";
pub(super) const ROW_HASH: &str = "_row_hash";
pub(super) const TEXT_HASH: &str = "_text_hash";

/// Hashes of what the index holds under a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    pub row: [u8; 16],
    pub text: [u8; 16],
}

/// How far the index may be: written before a commit, so that a restart catches up to it before it shows anything else; and how far it is,
/// written before that is shown to anybody, so that a restart shows no less.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Announced {
    pub model_id: String,
    pub epoch: Epoch,
    pub position: Position,
    pub reached: Reached,
}

/// All changes up to here are in the index.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Reached {
    pub epoch: Epoch,
    pub position: Position,
}

/// One state of the table that is searched.
pub(super) struct Snapshot {
    pub table: Table,
    pub epoch: Epoch,
    pub position: Arc<Position>,
}

pub struct IndexTable {
    pub(super) config: config::Index,
    pub(super) table: Table,
    pub(super) schema: SchemaRef,
    pub(super) view_schema: SchemaRef,
    pub(super) key_column: usize,
    pub(super) text_column: usize,
    announcement: PathBuf,
    announced: Option<Announced>,
    model_id: String,
    snapshot: Arc<RwLock<Arc<Snapshot>>>,
    pub(super) commits: u64,
    /// How many of the commits were followed by maintenance.
    pub(super) maintained: u64,
}

impl IndexTable {
    /// Opens the table `name`; one of another model or of other columns is begun anew: all of it can be derived.
    pub async fn open(
        config: &config::Index,
        name: &str,
        view_schema: SchemaRef,
        model_id: &str,
        dimension: usize,
    ) -> Result<IndexTable, Error> {
        let storage = |reason: String| Error::Storage { uri: config.uri.clone(), reason };
        let wrong = unreachable(config).into_iter().chain(problems(config, &view_schema));
        if let Some(config::Problem { key, reason }) = wrong.into_iter().next() {
            return Err(Error::Configuration { key, reason });
        }
        let column = |name: &str| view_schema.index_of(name).map_err(|e| storage(e.to_string()));
        let (key_column, text_column) = (column(&config.key)?, column(&config.text)?);
        let folder = Path::new(&config.uri);
        std::fs::create_dir_all(folder).map_err(|e| storage(e.to_string()))?;
        let announcement = announcement(config, name);
        let mut announced = read_announcement(&announcement)?;
        let connection = lancedb::connect(&config.uri).execute().await.map_err(|e| storage(e.to_string()))?;
        let schema = table_schema(&view_schema, dimension);
        let names = connection.table_names().execute().await.map_err(|e| storage(e.to_string()))?;
        let table = if names.iter().any(|n| n == name) {
            let table = connection.open_table(name).execute().await.map_err(|e| storage(e.to_string()))?;
            let found = table.schema().await.map_err(|e| storage(e.to_string()))?;
            let same_columns = found
                .fields()
                .iter()
                .map(|f| (f.name(), f.data_type()))
                .eq(schema.fields().iter().map(|f| (f.name(), f.data_type())));
            let rows = table.count_rows(None).await.map_err(|e| storage(e.to_string()))?;
            let unlike = match &announced {
                _ if !same_columns => Some("the view has other columns than the index"),
                Some(a) if a.model_id != model_id => Some("the index was made for another model"),
                None if rows > 0 => Some("the index has rows, and what says how far they go is missing"),
                _ => None,
            };
            match unlike {
                None => table,
                Some(why) => {
                    tracing::warn!(table = name, rows, why, "the index is built anew");
                    connection.drop_table(name, &[]).await.map_err(|e| storage(e.to_string()))?;
                    // Epochs go on; of the sources' rows it has none.
                    announced = announced.map(|a| {
                        let reached = Reached { position: Position::default(), ..a.reached };
                        Announced { position: Position::default(), model_id: model_id.into(), reached, ..a }
                    });
                    create(&connection, name, &schema).await.map_err(|e| storage(e.to_string()))?
                }
            }
        } else {
            announced = None;
            create(&connection, name, &schema).await.map_err(|e| storage(e.to_string()))?
        };
        let pinned = table.checkout_current().await.map_err(|e| storage(e.to_string()))?;
        let Reached { epoch, position } = announced.as_ref().map(|a| a.reached.clone()).unwrap_or_default();
        let first = Snapshot { table: pinned, epoch, position: Arc::new(position) };
        Ok(IndexTable {
            config: config.clone(),
            table,
            schema,
            view_schema,
            key_column,
            text_column,
            announcement,
            announced,
            model_id: model_id.into(),
            snapshot: Arc::new(RwLock::new(Arc::new(first))),
            commits: 0,
            maintained: 0,
        })
    }

    /// How far the last run may have come.
    pub fn announced(&self) -> Option<&Announced> {
        self.announced.as_ref()
    }

    pub(super) fn snapshot(&self) -> Arc<RwLock<Arc<Snapshot>>> {
        self.snapshot.clone()
    }

    pub(super) fn storage(&self, e: impl std::fmt::Display) -> Error {
        Error::Storage { uri: self.config.uri.clone(), reason: e.to_string() }
    }

    /// What every key has, for reconciling; the keys are in row format.
    pub async fn fingerprints(&self) -> Result<HashMap<Box<[u8]>, Fingerprint>, Error> {
        let key = self.view_schema.field(self.key_column);
        let columns = [key.name().as_str(), ROW_HASH, TEXT_HASH];
        let mut stream =
            self.table.query().select(Select::columns(&columns)).execute().await.map_err(|e| self.storage(e))?;
        let converter =
            RowConverter::new(vec![SortField::new(key.data_type().clone())]).map_err(|e| self.storage(e))?;
        let mut all = HashMap::new();
        while let Some(batch) = stream.try_next().await.map_err(|e| self.storage(e))? {
            let keys = converter.convert_columns(&batch.columns()[..1]).map_err(|e| self.storage(e))?;
            let hashes = |n: usize| batch.column(n).as_any().downcast_ref::<FixedSizeBinaryArray>();
            let (Some(rows), Some(texts)) = (hashes(1), hashes(2)) else {
                return Err(self.storage("the hashes are of another type"));
            };
            for n in 0..batch.num_rows() {
                let hash = |a: &FixedSizeBinaryArray| a.value(n).try_into().expect("16 bytes, as the schema says");
                all.insert(keys.row(n).data().into(), Fingerprint { row: hash(rows), text: hash(texts) });
            }
        }
        Ok(all)
    }

    /// Says how far the next commits may bring the index.
    pub fn announce(&mut self, epoch: Epoch, position: &Position) -> Result<(), Error> {
        let reached = self.announced.as_ref().map(|a| a.reached.clone()).unwrap_or_default();
        self.say(Announced { model_id: self.model_id.clone(), epoch, position: position.clone(), reached })
    }

    fn say(&mut self, next: Announced) -> Result<(), Error> {
        if self.announced.as_ref() == Some(&next) {
            return Ok(());
        }
        let failed = |e: std::io::Error| Error::Announcement { path: self.announcement.clone(), reason: e.to_string() };
        let text = serde_json::to_vec(&next).expect("an announcement is plain data");
        let temporary = self.announcement.with_extension("new");
        let write = || -> std::io::Result<()> {
            let mut file = File::create(&temporary)?;
            file.write_all(&text)?;
            file.sync_all()?;
            std::fs::rename(&temporary, &self.announcement)?;
            File::open(self.announcement.parent().unwrap_or(Path::new(".")))?.sync_all()
        };
        write().map_err(failed)?;
        self.announced = Some(next);
        Ok(())
    }

    /// Writes rows and removes keys (SQL literals).
    pub async fn commit(&mut self, upserts: Option<RecordBatch>, deletes: &[String]) -> Result<(), Error> {
        let key = self.view_schema.field(self.key_column).name().clone();
        if let Some(batch) = upserts {
            let reader = RecordBatchIterator::new([Ok(batch)], self.schema.clone());
            let mut merge = self.table.merge_insert(&[&key]);
            merge.when_matched_update_all(None).when_not_matched_insert_all();
            merge.execute(Box::new(reader)).await.map_err(|e| self.storage(e))?;
        }
        for some in deletes.chunks(500) {
            let predicate = format!("`{key}` IN ({})", some.join(", "));
            self.table.delete(predicate.as_str()).await.map_err(|e| self.storage(e))?;
        }
        self.commits += 1;
        Ok(())
    }

    /// Shows the table as it is now to searches. `reached` is how far all of it is; without it the position stays what was published before.
    pub async fn publish(&mut self, reached: Option<(Epoch, &Position)>) -> Result<(), Error> {
        let table = self.table.checkout_current().await.map_err(|e| self.storage(e))?;
        if let Some((epoch, position)) = reached {
            let reached = Reached { epoch, position: position.clone() };
            let announced = self.announced.clone().unwrap_or_else(|| Announced {
                model_id: self.model_id.clone(),
                epoch,
                position: position.clone(),
                reached: Reached::default(),
            });
            self.say(Announced { reached, ..announced })?;
        }
        let mut now = self.snapshot.write().expect("no holder of this lock panics");
        let (epoch, position) = match reached {
            Some((epoch, position)) => (epoch, Arc::new(position.clone())),
            None => (now.epoch, now.position.clone()),
        };
        *now = Arc::new(Snapshot { table, epoch, position });
        Ok(())
    }

    pub async fn count(&self) -> Result<usize, Error> {
        self.table.count_rows(None).await.map_err(|e| self.storage(e))
    }
}

/// What is wrong with where an index is to lie, by the key of the configuration.
pub fn unreachable(config: &config::Index) -> Option<config::Problem> {
    config.uri.contains("://").then(|| config::Problem {
        key: "index.uri".into(),
        reason: format!("is {:?}; an index on an object store is not there yet, it has to be a folder", config.uri),
    })
}

/// What keeps a view from being indexed, by the keys of the configuration.
pub fn problems(config: &config::Index, view: &Schema) -> Vec<config::Problem> {
    let mut problems = Vec::new();
    let mut problem = |key: &str, reason: String| problems.push(config::Problem { key: key.into(), reason });
    let wanted: [(&str, &str, &[DataType], &str); 2] = [
        (
            "index.key",
            &config.key,
            &[DataType::Int32, DataType::Int64, DataType::Utf8],
            "a key is a whole number or text",
        ),
        ("index.text", &config.text, &[DataType::Utf8], "what is embedded is text"),
    ];
    for (key, name, types, sentence) in wanted {
        match view.field_with_name(name) {
            Ok(field) if types.contains(field.data_type()) => {}
            Ok(field) => {
                problem(key, format!("the column {name} is of type {}; {sentence}: cast it", field.data_type()));
            }
            Err(_) => {
                let columns: Vec<_> = view.fields().iter().map(|f| f.name().as_str()).collect();
                problem(key, format!("the view has no column {name}; it has {}", columns.join(", ")));
            }
        }
    }
    for (n, field) in view.fields().iter().enumerate() {
        let name = field.name();
        if name.starts_with('_') {
            problem("view", format!("the column {name} begins with _, which the index keeps for itself"));
        }
        if name.contains('.') {
            problem("view", format!("the column {name:?} has a dot in its name; give it another with AS"));
        }
        match view.fields()[..n].iter().find(|f| f.name().eq_ignore_ascii_case(name)) {
            Some(other) if other.name() == name => {
                problem("view", format!("two columns are named {name}; give one another name with AS"));
            }
            // Lance finds a column by its name in any case.
            Some(other) => {
                let both = format!("the columns {} and {name} differ in case alone", other.name());
                problem("view", format!("{both}; give one another name with AS"));
            }
            None => {}
        }
    }
    problems
}

/// The columns of types that LanceDB does not store, as it says itself of a table in memory.
pub async fn refused_columns(view: &Schema) -> Vec<config::Problem> {
    async fn stored(field: &Field) -> lancedb::Result<()> {
        let schema = Arc::new(Schema::new(vec![Field::new("column", field.data_type().clone(), true)]));
        let connection = lancedb::connect("memory://").execute().await?;
        let table = create(&connection, "view", &schema).await?;
        let row = RecordBatch::try_new(schema.clone(), vec![new_null_array(field.data_type(), 1)])?;
        table.add(row).execute().await?;
        Ok(())
    }
    let mut problems = Vec::new();
    for field in view.fields() {
        if let Err(e) = stored(field).await {
            let (name, ty) = (field.name(), field.data_type());
            let reason = format!("the column {name} is of type {ty}, which the index cannot hold ({e}); cast it");
            problems.push(config::Problem { key: "view".into(), reason });
        }
    }
    problems
}

pub(super) fn table_schema(view: &SchemaRef, dimension: usize) -> SchemaRef {
    let item = Arc::new(Field::new("item", DataType::Float32, true));
    let mut fields: Vec<Field> =
        view.fields().iter().map(|f| Field::new(f.name(), f.data_type().clone(), true)).collect();
    fields.push(Field::new(VECTOR, DataType::FixedSizeList(item, dimension as i32), true));
    fields.push(Field::new(ROW_HASH, DataType::FixedSizeBinary(16), false));
    fields.push(Field::new(TEXT_HASH, DataType::FixedSizeBinary(16), false));
    Arc::new(Schema::new(fields))
}

async fn create(connection: &Connection, name: &str, schema: &SchemaRef) -> lancedb::Result<Table> {
    connection.create_empty_table(name, schema.clone()).execute().await
}

/// Where it is said how far the index `name` may be.
pub(super) fn announcement(config: &config::Index, name: &str) -> PathBuf {
    Path::new(&config.uri).join(format!("{name}.announced.json"))
}

pub(super) fn read_announcement(path: &Path) -> Result<Option<Announced>, Error> {
    let failed = |reason: String| Error::Announcement { path: path.into(), reason };
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| failed(e.to_string())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed(e.to_string())),
    }
}
