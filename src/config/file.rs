//! Reading a dataflow folder: `dataflow.toml`, the models beside it, the contracts that it names.
//!
//! The invariant: every mistake is found in one go, and each is named by its key; a configuration that is returned needs no further look.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::kafka_options::options;
use super::project::{self, Project, Settings};
use super::section::{Context, Section, text_of};
use super::{Config, DeviceChoice, Embed, Engine, Envelope, Format, Index, Kafka, Raw, Registry, Serve, Source};

/// One mistake, by the key that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    pub key: String,
    pub reason: String,
}

/// All that is wrong with a dataflow folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Errors {
    pub file: PathBuf,
    pub problems: Vec<Problem>,
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = if self.problems.len() == 1 { "" } else { "s" };
        write!(f, "{}: {} mistake{s}", self.file.display(), self.problems.len())?;
        for problem in &self.problems {
            write!(f, "\n  {}: {}", problem.key, problem.reason)?;
        }
        Ok(())
    }
}

impl std::error::Error for Errors {}

/// A dataflow's folder as far as it could be read: what is wrong has its default, or is left out.
pub struct Draft {
    pub config: Config,
    /// In no order.
    pub problems: Vec<Problem>,
    /// Models that are not in the configuration because of a problem. What refers to them cannot be judged.
    pub absent: BTreeSet<String>,
}

impl Draft {
    /// The configuration, if nothing is wrong with it.
    pub fn finish(self) -> Result<Config, Errors> {
        match Errors::of(&self.config.folder, self.problems) {
            Some(errors) => Err(errors),
            None => Ok(self.config),
        }
    }
}

impl Errors {
    /// All problems of a folder, each once, in the order of their keys; `None` if there are none.
    pub fn of(folder: &Path, mut problems: Vec<Problem>) -> Option<Errors> {
        problems.sort_by(|a, b| place(&a.key).cmp(&place(&b.key)).then_with(|| a.cmp(b)));
        problems.dedup();
        (!problems.is_empty()).then(|| Errors { file: folder.join("dataflow.toml"), problems })
    }
}

/// Reads and checks the dataflow in `folder`.
pub fn load(folder: &Path) -> Result<Config, Errors> {
    load_with(folder, |name| std::env::var(name).ok())
}

/// Like [`load`], with an environment of the caller's choice.
pub fn load_with(folder: &Path, variable: impl Fn(&str) -> Option<String>) -> Result<Config, Errors> {
    draft_with(folder, variable).finish()
}

/// Reads the dataflow in `folder`, whatever is wrong with it.
pub fn draft(folder: &Path) -> Draft {
    draft_with(folder, |name| std::env::var(name).ok())
}

fn draft_with(folder: &Path, variable: impl Fn(&str) -> Option<String>) -> Draft {
    let problems = RefCell::new(Vec::new());
    let cx = Context { folder, problems: &problems, variable: &variable };
    let (config, absent) = match text_of(&folder.join("dataflow.toml")) {
        Ok(text) => match text.parse() {
            Ok(table) => read(&cx, Some(table)),
            Err(e) => {
                let e: toml::de::Error = e;
                let line = e.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
                let draft = read(&cx, None);
                cx.problem(format!("dataflow.toml:{line}"), e.to_string().trim().replace('\n', "\n    "));
                draft
            }
        },
        Err(e) => {
            let draft = read(&cx, None);
            cx.problem("dataflow.toml", format!("cannot be read: {e}"));
            draft
        }
    };
    Draft { config, problems: problems.into_inner(), absent }
}

/// A key for sorting: what ends with a line number goes by the number.
fn place(key: &str) -> (&str, u32) {
    let line = key.rsplit_once(':').and_then(|(file, line)| Some((file, line.parse().ok()?)));
    line.unwrap_or((key, 0))
}

const MIB: u64 = 1 << 20;

/// Reads the table of dataflow.toml. Without one, what it would say is not missed, and the models are looked at all the same.
fn read(cx: &Context<'_>, table: Option<Table>) -> (Config, BTreeSet<String>) {
    let is_read = table.is_some();
    let mut root = Section::new(cx, String::new(), table.unwrap_or_default());
    let folder_name =
        cx.folder.canonicalize().ok().and_then(|p| p.file_name().map(|n| n.to_string_lossy().into_owned()));
    let name = root.text("name", folder_name.as_deref());
    if !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-') {
        root.problem("name", format!("is {name:?}; letters, digits, _ and - are possible"));
    }
    let view = root.optional_text("view");
    let target = root.text("target", Some("prod"));
    let variables = variables(&mut root);

    let mut s = root.section("kafka");
    let kafka = Kafka {
        bootstrap_servers: s.text("bootstrap_servers", None),
        options: options(&mut s),
        queue_max_bytes: s.size("queue_max_bytes", 64 * MIB, MIB..=2048 * MIB),
        heartbeat_topics: heartbeat_topics(&mut s),
        heartbeat_max_silence_s: s.number("heartbeat_max_silence_s", 60, 1..=86_400),
    };
    s.finish();

    let mut s = root.section("registry");
    let not_empty = |text: Option<String>| text.filter(|t| !t.trim().is_empty());
    let registry = Registry {
        url: not_empty(s.optional_text("url")),
        username: not_empty(s.optional_text("username")),
        password: not_empty(s.optional_text("password")),
        timeout_ms: s.number("timeout_ms", 10_000, 100..=600_000),
    };
    if let Some(url) = registry.url.as_ref().filter(|u| !u.starts_with("http://") && !u.starts_with("https://")) {
        s.problem("url", format!("is {url:?}, not an http:// or https:// address"));
    }
    s.finish();

    let sources = sources(&mut root);
    if registry.url.is_none() && sources.iter().any(|s| s.format == Format::Avro) {
        root.problem("registry.url", "is missing, and a source is in Avro");
    }

    let mut s = root.section("engine");
    let engine = Engine {
        workers: s.size("workers", 1, 1..=256),
        epoch_max_events: s.size("epoch_max_events", 10_000, 1..=1_000_000),
        decoded_max_batches: s.size("decoded_max_batches", 16, 1..=10_000),
        pending_max_keys: s.size("pending_max_keys", 100_000, 1..=10_000_000),
    };
    s.finish();

    let mut s = root.section("embed");
    let embed = Embed {
        model: s.text("model", Some("sentence-transformers/all-MiniLM-L6-v2")),
        path: not_empty(s.optional_text("path")).map(|p| cx.folder.join(p)),
        sha256: not_empty(s.optional_text("sha256")).map(|h| h.to_ascii_lowercase()),
        device: device(&mut s),
        text_max_tokens: s.size("text_max_tokens", 256, 8..=8192),
        batch_max_tokens: s.size("batch_max_tokens", 4096, 8..=1_000_000),
        store: embedding_store(&mut s),
    };
    if embed.sha256.as_ref().is_some_and(|h| h.len() != 64 || !h.bytes().all(|b| b.is_ascii_hexdigit())) {
        s.problem("sha256", "is not 64 hexadecimal digits");
    }
    if embed.batch_max_tokens < embed.text_max_tokens {
        s.problem(
            "batch_max_tokens",
            format!("is less than text_max_tokens ({}): one text has to fit", embed.text_max_tokens),
        );
    }
    s.finish();

    let mut s = root.section("index");
    let (uri, store_options) = store(&mut s, "../../data/index");
    let index = Index {
        uri,
        options: store_options,
        key: s.text("key", None),
        text: s.text("text", None),
        commit_max_keys: s.size("commit_max_keys", 1_000, 1..=100_000),
        ann_min_rows: s.size("ann_min_rows", 10_000, 256..=1_000_000_000),
        ann_max_unindexed: s.share("ann_max_unindexed", 0.05),
        compact_min_fragments: s.size("compact_min_fragments", 20, 2..=10_000),
        versions_max_age_s: s.number("versions_max_age_s", 600, 60..=31_536_000),
    };
    s.finish();

    let mut s = root.section("serve");
    let listen = s.text("listen", Some("127.0.0.1:8080"));
    let serve = Serve {
        listen: listen.parse().unwrap_or_else(|_| {
            s.problem("listen", format!("is {listen:?}, not address:port such as 127.0.0.1:8080"));
            ([127, 0, 0, 1], 8080).into()
        }),
        body_max_bytes: s.number("body_max_bytes", MIB, 1024..=1024 * MIB),
        k_max: s.size("k_max", 1_000, 1..=100_000),
        timeout_ms: s.number("timeout_ms", 5_000, 10..=600_000),
        connections_max: s.size("connections_max", 512, 1..=100_000),
        concurrency_max: s.size("concurrency_max", 16, 1..=100_000),
    };
    s.finish();
    let raw = root.table.contains_key("raw").then(|| raw(&mut root.section("raw"), &sources));
    if raw.as_ref().is_some_and(|raw| is_same_place(&raw.uri, &index.uri)) {
        root.problem("raw.uri", format!("is the index's too ({}); each needs a place of its own", index.uri));
    }
    root.finish();
    if !is_read {
        cx.problems.borrow_mut().clear();
    }
    let settings = Settings { read: is_read, name: &name, target, variables, sources: &sources, view };
    let Project { models, others, tests, view, absent } = project::read(cx, &settings);
    let config = Config {
        name,
        folder: cx.folder.into(),
        kafka,
        registry,
        sources,
        models,
        others,
        tests,
        view,
        engine,
        embed,
        index,
        serve,
        raw,
    };
    (config, absent)
}

/// An empty name is none: the environment may leave it open.
fn heartbeat_topics(kafka: &mut Section<'_>) -> Vec<String> {
    let names = if kafka.table.contains_key("heartbeat_topics") { kafka.texts("heartbeat_topics") } else { vec![] };
    names.into_iter().filter(|name| !name.trim().is_empty()).collect()
}

/// Whether two locations are one, as far as their texts say.
fn is_same_place(one: &str, other: &str) -> bool {
    let parts = |uri: &str| Path::new(uri.strip_prefix("file://").unwrap_or(uri)).components().collect::<PathBuf>();
    parts(one) == parts(other)
}

/// A place for tables, `uri` and `options` of a section: a folder, or S3.
fn store(s: &mut Section<'_>, default: &'static str) -> (String, BTreeMap<String, String>) {
    let uri = s.folder("uri", default);
    let scheme = uri.split_once("://").map_or("file", |(scheme, _)| scheme);
    if !["file", "s3"].contains(&scheme) {
        s.problem("uri", format!("is of the kind {scheme}://; a folder and s3:// are possible"));
    }
    if uri.strip_prefix("s3://").is_some_and(|rest| rest.is_empty() || rest.starts_with('/')) {
        s.problem("uri", format!("is {uri:?}, which names no bucket: s3://bucket/path"));
    }
    let options = s3_options(s, scheme == "s3");
    (uri, options)
}

/// Its records are appended to files, which no object store has.
fn embedding_store(s: &mut Section<'_>) -> PathBuf {
    let store = s.folder("store", "../../data/embeddings");
    if store.contains("://") {
        s.problem("store", format!("is {store:?}; it has to be a folder"));
    }
    store.into()
}

/// Options of S3 that come from the environment alone.
const SECRETS: [&str; 3] = ["access_key_id", "secret_access_key", "session_token"];

fn raw(s: &mut Section<'_>, sources: &[Source]) -> Raw {
    let (uri, options) = store(s, "../../data/raw");
    for source in sources {
        let name = format!("{}__{}", source.schema, source.table);
        if !name.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c)) {
            s.problem(
                "uri",
                format!("cannot hold a folder {name:?} for a source: letters, digits, _, - and . are possible"),
            );
        }
    }
    let raw = Raw {
        uri,
        options,
        commit_max_bytes: s.size("commit_max_bytes", 32 * MIB, 1024..=1024 * MIB),
        commit_max_age_ms: s.number("commit_max_age_ms", 10_000, 10..=3_600_000),
        queue_max_bytes: s.size("queue_max_bytes", 64 * MIB, 1024..=4096 * MIB),
        compact_min_files: s.size("compact_min_files", 32, 2..=10_000),
        // Who reads an old version, a long query or a snapshot in the making, needs its files meanwhile.
        versions_max_age_s: s.number("versions_max_age_s", 604_800, 3600..=315_360_000),
        snapshot_min_events: s.size("snapshot_min_events", 100_000, 1..=1_000_000_000),
    };
    if raw.queue_max_bytes < raw.commit_max_bytes {
        let reason = format!("is less than commit_max_bytes ({}): a commit has to fit", raw.commit_max_bytes);
        s.problem("queue_max_bytes", reason);
    }
    std::mem::replace(s, Section::new(s.cx, String::new(), Table::new())).finish();
    raw
}

fn s3_options(s: &mut Section<'_>, is_s3: bool) -> BTreeMap<String, String> {
    let section = s.section("options");
    let mut options = BTreeMap::new();
    for (key, value) in &section.table {
        let short = key.strip_prefix("aws_").unwrap_or(key);
        if !is_s3 {
            section.problem(key, "is for s3:// alone");
        } else if SECRETS.contains(&short) {
            let variable = format!("AWS_{}", short.to_uppercase());
            section.problem(key, format!("cannot be set: the environment variable {variable} is asked"));
        } else if key.parse::<object_store::aws::AmazonS3ConfigKey>().is_err() {
            section.problem(key, "is no option of S3");
        } else {
            let text = match value {
                Value::String(text) => section.cx.expand(&section.key(key), text),
                other => other.to_string(),
            };
            options.insert(key.clone(), text);
        }
    }
    options
}

/// What `{{ var(...) }}` gives; texts may hold variables of the environment.
fn variables(root: &mut Section<'_>) -> BTreeMap<String, Value> {
    fn expanded(cx: &Context<'_>, key: &str, value: Value) -> Value {
        match value {
            Value::String(text) => Value::String(cx.expand(key, &text)),
            Value::Array(items) => Value::Array(items.into_iter().map(|item| expanded(cx, key, item)).collect()),
            Value::Table(table) => {
                Value::Table(table.into_iter().map(|(name, item)| (name, expanded(cx, key, item))).collect())
            }
            other => other,
        }
    }
    let section = root.section("vars");
    let key = |name: &str| section.key(name);
    section.table.iter().map(|(name, value)| (name.clone(), expanded(section.cx, &key(name), value.clone()))).collect()
}

fn device(embed: &mut Section<'_>) -> DeviceChoice {
    let text = embed.text("device", Some("auto"));
    match (text.as_str(), text.strip_prefix("cuda:").map(str::parse)) {
        ("auto", _) => DeviceChoice::Auto,
        ("cpu", _) => DeviceChoice::Cpu,
        (_, Some(Ok(n))) => DeviceChoice::Cuda(n),
        _ => {
            embed.problem("device", format!("is {text:?}; auto, cpu and cuda:N are possible"));
            DeviceChoice::Auto
        }
    }
}

fn sources(root: &mut Section<'_>) -> Vec<Source> {
    let tables = match root.take("source") {
        Some(Value::Array(items)) if !items.is_empty() => items,
        None => {
            root.problem("source", "is missing: a dataflow has at least one [[source]]");
            return Vec::new();
        }
        Some(_) => {
            root.problem("source", "is not a list of tables; each begins with [[source]]");
            return Vec::new();
        }
    };
    let (mut topics, mut names) = (BTreeSet::new(), BTreeSet::new());
    let mut sources = Vec::new();
    for (n, table) in tables.into_iter().enumerate() {
        let path = format!("source[{n}]");
        let Value::Table(table) = table else {
            root.cx.problem(path, "is not a table");
            continue;
        };
        let mut s = Section::new(root.cx, path, table);
        let source = source(&mut s);
        let legal = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if !source.topic.chars().all(legal) || source.topic.len() > 249 || [".", ".."].contains(&&*source.topic) {
            let rule = "at most 249 letters, digits, ., _ and - are possible";
            s.problem("topic", format!("is {:?}, which no topic of Kafka can be named: {rule}", source.topic));
        }
        if !topics.insert(source.topic.clone()) && !source.topic.is_empty() {
            s.problem("topic", format!("{} is another source's already", source.topic));
        }
        if !names.insert((source.schema.clone(), source.table.clone())) && !source.table.is_empty() {
            s.problem("table", format!("{}.{} is another source's already", source.schema, source.table));
        }
        s.finish();
        sources.push(source);
    }
    sources
}

fn source(s: &mut Section<'_>) -> Source {
    let contract_path = PathBuf::from(s.location("contract", None));
    let key = s.texts("key");
    for (n, column) in key.iter().enumerate().filter(|(n, column)| key[..*n].contains(column)) {
        s.problem("key", format!("names {column} again at place {}", n + 1));
    }
    let mut contract = String::new();
    if !contract_path.as_os_str().is_empty() {
        match text_of(&contract_path) {
            Ok(text) if is_contract(s, &contract_path, &text, &key) => contract = text,
            Ok(_) => {}
            Err(e) => s.problem("contract", format!("{} cannot be read: {e}", contract_path.display())),
        }
    }
    Source {
        schema: s.text("schema", None),
        table: s.text("table", None),
        topic: s.text("topic", None).into(),
        format: s.choice("format", Format::Avro, &[("avro", Format::Avro), ("json", Format::Json)]),
        envelope: s.choice(
            "envelope",
            Envelope::Debezium,
            &[("debezium", Envelope::Debezium), ("flattened", Envelope::Flattened)],
        ),
        key,
        unavailable: s.text("unavailable", Some("__debezium_unavailable_value")),
        contract,
        contract_path,
    }
}

/// Whether a text is a contract, whatever is wrong with its columns.
fn is_contract(s: &Section<'_>, path: &Path, text: &str, key: &[String]) -> bool {
    match apache_avro::Schema::parse_str(text) {
        Ok(apache_avro::Schema::Record(record)) => {
            for column in key.iter().filter(|k| !record.fields.iter().any(|f| f.name == **k)) {
                s.problem("key", format!("the contract {} has no column {column}", path.display()));
            }
            // Delta has one name for both, and so have most databases.
            let mut names = BTreeMap::new();
            for field in &record.fields {
                if let Some(other) = names.insert(field.name.to_lowercase(), &field.name) {
                    let (path, name) = (path.display(), &field.name);
                    s.problem(
                        "contract",
                        format!("{path} has the columns {other} and {name}, which differ in case alone"),
                    );
                }
            }
            return true;
        }
        Ok(_) => s.problem("contract", format!("{} is not a record", path.display())),
        Err(e) => s.problem("contract", format!("{} is no Avro schema: {e}", path.display())),
    }
    false
}
