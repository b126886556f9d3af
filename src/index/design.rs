//! What an index is to be: the view's columns with what is kept beside them, for which dataflow, in which model's vectors.
//!
//! The invariant: a design can be stored and searched; what cannot is named by the key of the configuration that it comes from.

use std::sync::Arc;

use arrow::array::{RecordBatch, new_null_array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use super::Error;
use crate::config;
use crate::embed::TextEmbedder;

pub(super) const VECTOR: &str = "_vector";
pub(super) const ROW_HASH: &str = "_row_hash";
pub(super) const TEXT_HASH: &str = "_text_hash";

/// What a table's rows and vectors come from, beyond the view's columns, which it shows itself. One that was made of other things is not gone on
/// with: equal rows would keep the vectors of another text or model.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct MadeOf {
    pub model_id: String,
    /// Columns of the view.
    pub key: String,
    pub text: String,
}

pub struct Design {
    pub(super) config: config::Index,
    /// The dataflow's.
    pub(super) name: String,
    /// The topics that the dataflow reads.
    pub(super) topics: Vec<Arc<str>>,
    pub(super) view: SchemaRef,
    /// The view's columns and the index's own.
    pub(super) table: SchemaRef,
    pub(super) key_column: usize,
    pub(super) text_column: usize,
    pub(super) made_of: MadeOf,
    pub(super) dimension: usize,
}

impl Design {
    pub fn new(
        config: &config::Index,
        name: &str,
        topics: Vec<Arc<str>>,
        view: SchemaRef,
        embedder: &dyn TextEmbedder,
    ) -> Result<Arc<Design>, Error> {
        if let Some(config::Problem { key, reason }) = problems(config, &view).into_iter().next() {
            return Err(Error::Configuration { key, reason });
        }
        let column = |name: &str| view.index_of(name).expect("a column that is missing is a problem");
        let dimension = embedder.dimension();
        Ok(Arc::new(Design {
            config: config.clone(),
            name: name.into(),
            topics,
            table: table_schema(&view, dimension),
            key_column: column(&config.key),
            text_column: column(&config.text),
            made_of: MadeOf {
                model_id: embedder.model_id().0.clone(),
                key: config.key.clone(),
                text: config.text.clone(),
            },
            dimension,
            view,
        }))
    }

    pub(super) fn key(&self) -> &Field {
        self.view.field(self.key_column)
    }

    pub(super) fn storage(&self, e: impl std::fmt::Display) -> Error {
        Error::Storage { uri: self.config.uri.clone(), reason: e.to_string() }
    }
}

/// What keeps a view from being indexed, by the keys of the configuration.
pub fn problems(config: &config::Index, view: &Schema) -> Vec<config::Problem> {
    let columns: Vec<_> = view.fields().iter().map(|f| f.name().as_str()).collect();
    let mut problems = missing_columns(config, &columns);
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
            // Told below.
            Err(_) => {}
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
        let table = connection.create_empty_table("view", schema.clone()).execute().await?;
        let row = RecordBatch::try_new(schema.clone(), vec![new_null_array(field.data_type(), 1)])?;
        table.add(row).execute().await?;
        Ok(())
    }
    let mut problems = Vec::new();
    for field in view.fields() {
        if stored(field).await.is_err() {
            let (name, ty) = (field.name(), field.data_type());
            let reason = format!("the column {name} is of type {ty}, which the index cannot hold; cast it");
            problems.push(config::Problem { key: "view".into(), reason });
        }
    }
    problems
}

fn table_schema(view: &SchemaRef, dimension: usize) -> SchemaRef {
    let item = Arc::new(Field::new("item", DataType::Float32, true));
    let mut fields: Vec<Field> =
        view.fields().iter().map(|f| Field::new(f.name(), f.data_type().clone(), true)).collect();
    fields.push(Field::new(VECTOR, DataType::FixedSizeList(item, dimension as i32), true));
    fields.push(Field::new(ROW_HASH, DataType::FixedSizeBinary(16), false));
    fields.push(Field::new(TEXT_HASH, DataType::FixedSizeBinary(16), false));
    Arc::new(Schema::new(fields))
}

/// What a view with columns of these names lacks.
pub fn missing_columns(config: &config::Index, view: &[&str]) -> Vec<config::Problem> {
    let wanted = [("index.key", &config.key), ("index.text", &config.text)];
    let missing = wanted.into_iter().filter(|(_, name)| !view.contains(&name.as_str()));
    let problem = |(key, name): (&str, &String)| config::Problem {
        key: key.into(),
        reason: format!("the view has no column {name}; it has {}", view.join(", ")),
    };
    missing.map(problem).collect()
}
