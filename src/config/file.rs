//! Reading a dataflow folder: `dataflow.toml`, the models beside it, the contracts that it names.
//!
//! The invariant: every mistake is found in one go, and each is named by its key; a configuration that is returned needs no further look.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::project::{self, Project, Settings};
use super::section::{Context, Section};
use super::{Config, DeviceChoice, Embed, Engine, Envelope, Format, Index, Kafka, Raw, Registry, Serve, Source};

/// Settings of librdkafka that what Freshet promises rests on, and why each is not the user's.
pub const FORBIDDEN: &[(&str, &str)] = &[
    ("bootstrap.servers", "it is kafka.bootstrap_servers"),
    ("group.id", "partitions are assigned by hand; there is no group"),
    ("enable.auto.commit", "the position lives beside the index, not in Kafka"),
    ("auto.commit.interval.ms", "the position lives beside the index, not in Kafka"),
    ("enable.auto.offset.store", "the position lives beside the index, not in Kafka"),
    ("auto.offset.reset", "an offset that is gone has to be noticed, not skipped"),
    ("isolation.level", "only committed events are read"),
    ("enable.partition.eof", "the lag is taken from the watermarks"),
    ("check.crcs", "damaged bytes have to be noticed"),
    ("queued.max.messages.kbytes", "it is kafka.queue_max_bytes"),
    ("queued.min.messages", "it follows from kafka.queue_max_bytes"),
];

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

/// Reads and checks the dataflow in `folder`.
pub fn load(folder: &Path) -> Result<Config, Errors> {
    load_with(folder, |name| std::env::var(name).ok())
}

/// Like [`load`], with an environment of the caller's choice.
pub fn load_with(folder: &Path, variable: impl Fn(&str) -> Option<String>) -> Result<Config, Errors> {
    let file = folder.join("dataflow.toml");
    let fail = |problems: Vec<Problem>| Errors { file: file.clone(), problems };
    let one = |key: &str, reason: String| fail(vec![Problem { key: key.into(), reason }]);
    let text = std::fs::read_to_string(&file).map_err(|e| one("dataflow.toml", format!("cannot be read: {e}")))?;
    let table: Table = text
        .parse()
        .map_err(|e: toml::de::Error| one("dataflow.toml", e.to_string().trim().replace('\n', "\n    ")))?;
    let problems = RefCell::new(Vec::new());
    let config = {
        let cx = Context { folder, problems: &problems, variable: &variable };
        read(&cx, table)
    };
    let mut problems = problems.into_inner();
    if problems.is_empty() {
        return Ok(config);
    }
    problems.sort_by(|a, b| place(&a.key).cmp(&place(&b.key)).then_with(|| a.cmp(b)));
    problems.dedup();
    Err(fail(problems))
}

/// A key for sorting: what ends with a line number goes by the number.
fn place(key: &str) -> (&str, u32) {
    let line = key.rsplit_once(':').and_then(|(file, line)| Some((file, line.parse().ok()?)));
    line.unwrap_or((key, 0))
}

const MIB: u64 = 1 << 20;

fn read(cx: &Context<'_>, table: Table) -> Config {
    let mut root = Section::new(cx, String::new(), table);
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
        store: PathBuf::from(s.location("store", Some("../../data/embeddings"))),
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
    let index = Index {
        uri: s.location("uri", Some("../../data/index")),
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
        concurrency_max: s.size("concurrency_max", 64, 1..=100_000),
    };
    s.finish();
    let raw = root.table.contains_key("raw").then(|| raw(&mut root.section("raw"), &sources));
    root.finish();
    let Project { models, tests, view } =
        project::read(cx, &Settings { name: &name, target, variables, sources: &sources, view });
    Config {
        name,
        folder: cx.folder.into(),
        kafka,
        registry,
        sources,
        models,
        tests,
        view,
        engine,
        embed,
        index,
        serve,
        raw,
    }
}

/// Options of S3 that come from the environment alone.
const SECRETS: [&str; 3] = ["access_key_id", "secret_access_key", "session_token"];

fn raw(s: &mut Section<'_>, sources: &[Source]) -> Raw {
    let uri = s.location("uri", Some("../../data/raw"));
    let options = raw_options(s, uri.starts_with("s3://"));
    let scheme = uri.split_once("://").map_or("file", |(scheme, _)| scheme);
    if !["file", "s3"].contains(&scheme) {
        s.problem("uri", format!("is of the kind {scheme}://; a folder and s3:// are possible"));
    }
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

fn raw_options(raw: &mut Section<'_>, is_s3: bool) -> BTreeMap<String, String> {
    let section = raw.section("options");
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

fn options(kafka: &mut Section<'_>) -> BTreeMap<String, String> {
    let section = kafka.section("options");
    let mut options = BTreeMap::new();
    for (key, value) in &section.table {
        if let Some((_, why)) = FORBIDDEN.iter().find(|(name, _)| name == key) {
            section.problem(key, format!("cannot be set: {why}"));
            continue;
        }
        let text = match value {
            Value::String(text) => section.cx.expand(&section.key(key), text),
            Value::Integer(_) | Value::Boolean(_) | Value::Float(_) => value.to_string(),
            other => {
                section.problem(key, format!("is a {}; keys with dots have to be quoted", other.type_str()));
                continue;
            }
        };
        options.insert(key.clone(), text);
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
    let mut contract = String::new();
    if !contract_path.as_os_str().is_empty() {
        match std::fs::read_to_string(&contract_path) {
            Ok(text) => {
                check_contract(s, &contract_path, &text, &key);
                contract = text;
            }
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

fn check_contract(s: &Section<'_>, path: &Path, text: &str, key: &[String]) {
    match apache_avro::Schema::parse_str(text) {
        Ok(apache_avro::Schema::Record(record)) => {
            for column in key.iter().filter(|k| !record.fields.iter().any(|f| f.name == **k)) {
                s.problem("key", format!("the contract {} has no column {column}", path.display()));
            }
        }
        Ok(_) => s.problem("contract", format!("{} is not a record", path.display())),
        Err(e) => s.problem("contract", format!("{} is no Avro schema: {e}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        name = "shop"
        [kafka]
        bootstrap_servers = "${BROKERS}"
        options = { "security.protocol" = "SSL" }
        [registry]
        url = "${REGISTRY:-http://${HOST}:8081}"
        [[source]]
        schema = "shop"
        table = "product"
        topic = "shop.public.product"
        key = ["id"]
        contract = "product.avsc"
        [index]
        key = "id"
        text = "name"
    "#;

    fn folder(toml: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("dataflow.toml"), toml).unwrap();
        std::fs::create_dir(folder.path().join("models")).unwrap();
        std::fs::write(folder.path().join("models/view.sql"), "select 1").unwrap();
        let contract = r#"{"type":"record","name":"P","fields":[{"name":"id","type":"long"}]}"#;
        std::fs::write(folder.path().join("product.avsc"), contract).unwrap();
        folder
    }

    fn load_text(toml: &str) -> Result<Config, Errors> {
        let folder = folder(toml);
        load_with(folder.path(), |name| match name {
            "BROKERS" => Some("a:1,b:2".into()),
            "HOST" => Some("host".into()),
            _ => None,
        })
    }

    #[test]
    fn the_environment_is_put_in() {
        let config = load_text(GOOD).unwrap();
        assert_eq!(config.kafka.bootstrap_servers, "a:1,b:2");
        assert_eq!(config.registry.url.as_deref(), Some("http://host:8081"));
        assert_eq!(config.kafka.options["security.protocol"], "SSL");
        assert_eq!(config.view, "view");
    }

    #[test]
    fn all_mistakes_are_named_at_once_by_their_keys() {
        let bad = GOOD
            .replace("key = [\"id\"]", "key = [\"idd\"]")
            .replace("\"security.protocol\" = \"SSL\"", "\"enable.auto.commit\" = true")
            .replace("${BROKERS}", "${NOT_SET}")
            .replace("text = \"name\"", "text = 5\nann_min_row = 1000")
            + "[serve]\nlisten = \"nowhere\"\nk_max = 0\n[embed]\ndevice = \"tpu\"\n";
        let errors = load_text(&bad).unwrap_err();
        let keys: Vec<&str> = errors.problems.iter().map(|p| p.key.as_str()).collect();
        let expect = [
            "embed.device",
            "index.ann_min_row",
            "index.text",
            "kafka.bootstrap_servers",
            "kafka.options.enable.auto.commit",
            "serve.k_max",
            "serve.listen",
            "source[0].key",
        ];
        assert_eq!(keys, expect, "{errors}");
        let text = errors.to_string();
        assert!(text.contains("did you mean ann_min_rows?") && text.contains("NOT_SET"), "{text}");
    }

    #[test]
    fn raw_is_optional_and_its_keys_stay_out_of_files() {
        assert!(load_text(GOOD).unwrap().raw.is_none());
        let good = format!(
            "{GOOD}\n[raw]\nuri = \"s3://b/raw/\"\noptions = {{ endpoint = \"http://${{HOST}}:9000\", allow_http = true }}\n"
        );
        let config = load_text(&good).unwrap();
        let raw = config.raw.unwrap();
        assert_eq!(raw.options["endpoint"], "http://host:9000");
        assert_eq!(raw.options["allow_http"], "true");
        assert_eq!(raw.table(&config.sources[0]), "s3://b/raw/shop__product");
        let bad = format!(
            "{GOOD}\n[raw]\nuri = \"s3://b\"\nqueue_max_bytes = 2048\nversions_max_age_s = 1\ncommit_max_age = 5\n[raw.options]\nendpont = \"x\"\nsecret_access_key = \"x\"\n"
        );
        let errors = load_text(&bad).unwrap_err();
        let keys: Vec<&str> = errors.problems.iter().map(|p| p.key.as_str()).collect();
        let expect = [
            "raw.commit_max_age",
            "raw.options.endpont",
            "raw.options.secret_access_key",
            "raw.queue_max_bytes",
            "raw.versions_max_age_s",
        ];
        assert_eq!(keys, expect, "{errors}");
        assert!(errors.to_string().contains("AWS_SECRET_ACCESS_KEY"), "{errors}");
        let local = format!("{GOOD}\n[raw]\noptions = {{ region = \"x\" }}\n");
        assert!(load_text(&local).unwrap_err().to_string().contains("s3:// alone"));
    }

    #[test]
    fn the_shipped_dataflow_is_right() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("dataflows/product");
        let config = load_with(&folder, |name| (name == "HOME").then(|| "/home/x".into())).unwrap();
        assert_eq!((config.name.as_str(), config.view.as_str()), ("product", "product_search"));
    }

    #[test]
    fn what_is_no_toml_is_said_with_its_line() {
        assert!(load_text("[kafka\n").unwrap_err().to_string().contains("line 1"));
    }
}
