//! The quarantine as a person asks for it: what waits there, one message whole, and what would become of messages if they were read today.
//!
//! The invariant: it only reads, and so may be asked while the service runs, which is the quarantine's one writer. Nothing has to be written for a
//! message to be tried again: a start reads every message that the tables and topics have, each at its own offset, and marks those of the
//! quarantine that it takes.

use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono::{DateTime, SecondsFormat};
use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::{Value, json};

use crate::config::Config;
use crate::decode::{Decoder, RegistryClient, RowType, Rule, SchemaStore};
use crate::engine;
use crate::raw::{Entries, Entry, RawTable};
use crate::source::MessageBatch;
use crate::time::Coordinates;

#[derive(Clone, Debug, clap::Subcommand)]
pub enum Command {
    /// Lists the messages that wait, the newest last.
    List {
        /// The dataflow's folder, such as dataflows/product.
        folder: PathBuf,
        /// Only what was rejected by this rule.
        #[arg(long, value_parser = rule)]
        rule: Option<Rule>,
        /// Only messages of this topic.
        #[arg(long)]
        topic: Option<String>,
        /// At most so many, the newest.
        #[arg(long, default_value_t = 1000)]
        limit: usize,
        /// Those that waited once and have been taken since.
        #[arg(long)]
        healed: bool,
        /// A JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Shows all of a message: why it was rejected, and its bytes.
    Show {
        /// The dataflow's folder, such as dataflows/product.
        folder: PathBuf,
        /// topic:partition:offset
        coordinates: Coordinates,
    },
    /// Decodes messages again, by the contracts and the registry of today, and says which of them would be taken.
    ///
    /// The next start of the service takes those, each at its own offset, so that nothing newer is overwritten, and marks them as healed. Exit code 1
    /// when one would be rejected again.
    Retry {
        /// The dataflow's folder, such as dataflows/product.
        folder: PathBuf,
        /// topic:partition:offset; without any, all that wait.
        coordinates: Vec<Coordinates>,
    },
}

impl Command {
    pub fn folder(&self) -> &Path {
        match self {
            Command::List { folder, .. } | Command::Show { folder, .. } | Command::Retry { folder, .. } => folder,
        }
    }
}

fn rule(name: &str) -> Result<Rule, String> {
    let names = || Rule::ALL.map(Rule::name).join(", ");
    Rule::ALL.into_iter().find(|r| r.name() == name).ok_or_else(|| format!("there are the rules {}", names()))
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("there is no message in quarantine with the coordinates {0}")]
    Absent(Coordinates),
    #[error("{0}")]
    Plan(String),
    #[error(transparent)]
    Table(#[from] crate::raw::Error),
    #[error(transparent)]
    Registry(#[from] crate::decode::Error),
}

/// What is to be printed, and whether the answer is yes.
pub type Answer = (String, bool);

pub fn run(config: &Config, command: Command) -> BoxFuture<'_, Result<Answer, Error>> {
    let answer = async move {
        match command {
            Command::List { rule, topic, limit, healed, json, .. } => {
                list(config, rule, topic.as_deref(), (limit, healed, json)).await
            }
            Command::Show { coordinates, .. } => show(config, &coordinates).await,
            Command::Retry { coordinates, .. } => retry(config, &coordinates).await,
        }
    };
    answer.boxed()
}

/// All messages, oldest first. `bytes` says whether keys and values are wanted.
async fn open(config: &Config, bytes: bool) -> Result<Option<Entries>, Error> {
    let (location, options) = config.quarantine();
    Ok(Entries::open(&location, &options, bytes).await?)
}

async fn next(entries: &mut Option<Entries>) -> Result<Option<Vec<Entry>>, Error> {
    match entries {
        Some(entries) => Ok(entries.next().await?),
        // A quarantine that nobody has begun has nothing.
        None => Ok(None),
    }
}

async fn list(
    config: &Config,
    rule: Option<Rule>,
    topic: Option<&str>,
    (limit, healed, json): (usize, bool, bool),
) -> Result<Answer, Error> {
    let (mut found, mut listed) = (0, VecDeque::new());
    let is_asked_for = |e: &Entry| {
        e.healed_ms.is_some() == healed
            && rule.is_none_or(|rule| e.rule == rule.name())
            && topic.is_none_or(|topic| *e.at.partition.topic == *topic)
    };
    let mut entries = open(config, false).await?;
    while let Some(some) = next(&mut entries).await? {
        for entry in some.into_iter().filter(is_asked_for) {
            found += 1;
            listed.push_back(entry);
            listed.drain(..listed.len().saturating_sub(limit));
        }
    }
    let mut text = String::new();
    if json {
        listed.iter().for_each(|entry| line(&mut text, &as_json(entry).to_string()));
        return Ok((text, true));
    }
    let head = ["quarantined at", "coordinates", "rule", "reason"].map(String::from);
    let rows = listed.iter().map(|e| [time(e.quarantined_ms), e.at.to_string(), e.rule.clone(), printable(&e.reason)]);
    let rows: Vec<[String; 4]> = if found == 0 { Vec::new() } else { [head].into_iter().chain(rows).collect() };
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let (at, of, by) = (width(0), width(1), width(2));
    rows.iter().for_each(|[a, b, c, d]| line(&mut text, &format!("{a:<at$}  {b:<of$}  {c:<by$}  {d}")));
    let what = if healed { "healed" } else { "waiting" };
    line(&mut text, &format!("{} of {found} {what}", listed.len()));
    Ok((text, true))
}

async fn show(config: &Config, at: &Coordinates) -> Result<Answer, Error> {
    let mut text = String::new();
    let mut entries = open(config, true).await?;
    while let Some(some) = next(&mut entries).await? {
        some.iter().filter(|entry| entry.at == *at).for_each(|entry| whole(&mut text, entry));
    }
    if text.is_empty() { Err(Error::Absent(at.clone())) } else { Ok((text, true)) }
}

async fn retry(config: &Config, wanted: &[Coordinates]) -> Result<Answer, Error> {
    let mut judge = Judge::new(config)?;
    let mut verdicts = Vec::new();
    let mut entries = open(config, true).await?;
    while let Some(some) = next(&mut entries).await? {
        for entry in some {
            if wanted.contains(&entry.at) || (wanted.is_empty() && entry.healed_ms.is_none()) {
                let verdict = judge.decode(&entry).await?;
                verdicts.push((entry.at, verdict));
            }
        }
    }
    if let Some(absent) = wanted.iter().find(|wanted| !verdicts.iter().any(|(at, _)| at == *wanted)) {
        return Err(Error::Absent(absent.clone()));
    }
    let mut text = String::new();
    let width = verdicts.iter().map(|(at, _)| at.to_string().len()).max().unwrap_or(0);
    for (at, verdict) in &verdicts {
        let verdict = verdict.as_ref().map_or_else(|why| printable(why), |()| "would be taken".into());
        line(&mut text, &format!("{:<width$}  {verdict}", at.to_string()));
    }
    let taken = verdicts.iter().filter(|(_, verdict)| verdict.is_ok()).count();
    line(&mut text, &format!("{taken} of {} would be taken", verdicts.len()));
    if taken > 0 {
        line(&mut text, "The next start of the service takes what it can, each message at its own offset.");
    }
    Ok((text, taken == verdicts.len()))
}

/// Says what a start would make of a message.
struct Judge<'a> {
    config: &'a Config,
    row_types: Vec<Arc<RowType>>,
    registry: Arc<dyn SchemaStore>,
    decoders: HashMap<usize, Decoder>,
}

impl Judge<'_> {
    fn new(config: &Config) -> Result<Judge<'_>, Error> {
        let (_, row_types) = engine::plan(config).map_err(|problems| {
            Error::Plan(problems.iter().map(|p| format!("{}: {}", p.key, p.reason)).collect::<Vec<_>>().join("; "))
        })?;
        let registry = Arc::new(RegistryClient::new(&config.registry)?);
        Ok(Judge { config, row_types, registry, decoders: HashMap::new() })
    }

    /// The inner error says why the message would not be taken.
    async fn decode(&mut self, entry: &Entry) -> Result<Result<(), String>, Error> {
        let topic = &entry.at.partition.topic;
        let Some(n) = self.config.sources.iter().position(|s| s.topic == *topic) else {
            return Ok(Err("no source of the dataflow has this topic".into()));
        };
        if entry.value_in_raw {
            return Ok(Err(
                "cannot be tried: its value is in the raw table alone, in columns; a start will tell".into()
            ));
        }
        if !self.decoders.contains_key(&n) {
            let decoder = self.decoder(n).await?;
            self.decoders.insert(n, decoder);
        }
        let decoder = self.decoders.get_mut(&n).expect("it was put there");
        let mut batch = MessageBatch::new(entry.at.partition.clone());
        batch.push(entry.at.offset, entry.timestamp_ms, entry.key.as_deref(), entry.value.as_deref());
        let rejects = decoder.decode(&batch).await?.rejects;
        Ok(rejects.first().map_or(Ok(()), |r| Err(format!("{}: {}", r.rule.name(), r.reason))))
    }

    /// As a start has it: what raw remembers of schemas goes before the registry.
    async fn decoder(&self, n: usize) -> Result<Decoder, Error> {
        let source = &self.config.sources[n];
        let mut schemas = self.registry.clone();
        if let Some(raw) = &self.config.raw {
            let table = RawTable::open(&raw.table(source), &raw.options, &self.config.name, &source.topic).await?;
            schemas = table.schemas(schemas);
        }
        let decoder = Decoder::new(n, source, self.row_types[n].clone(), schemas);
        decoder.map_err(|e| Error::Plan(e.to_string()))
    }
}

fn line(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

fn time(ms: i64) -> String {
    let time = DateTime::from_timestamp_millis(ms);
    time.map_or_else(|| format!("{ms} ms"), |t| t.to_rfc3339_opts(SecondsFormat::Millis, true))
}

/// A text without what a terminal takes for commands.
fn printable(text: &str) -> String {
    let escaped = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(escaped).collect()
}

fn as_json(entry: &Entry) -> Value {
    json!({
        "topic": &*entry.at.partition.topic,
        "partition": entry.at.partition.number,
        "offset": entry.at.offset,
        "timestamp": time(entry.timestamp_ms),
        "schema_id": entry.schema_id,
        "stage": entry.stage,
        "rule": entry.rule,
        "reason": entry.reason,
        "quarantined_at": time(entry.quarantined_ms),
        "healed_at": entry.healed_ms.map(time),
    })
}

fn whole(text: &mut String, entry: &Entry) {
    let mut say = |name: &str, what: &str| line(text, &format!("{name:<14}  {what}"));
    say("coordinates", &entry.at.to_string());
    say("timestamp", &time(entry.timestamp_ms));
    say("schema id", &entry.schema_id.map_or("none".into(), |id| id.to_string()));
    say("stage", &entry.stage);
    say("rule", &entry.rule);
    say("reason", &printable(&entry.reason));
    say("quarantined at", &time(entry.quarantined_ms));
    say("healed at", &entry.healed_ms.map_or("not yet".into(), time));
    for (name, bytes) in [("key", &entry.key), ("value", &entry.value)] {
        match bytes {
            None if name == "value" && entry.value_in_raw => say(name, "not kept: the raw table has it, in columns"),
            None => say(name, "null"),
            Some(bytes) => {
                say(name, &format!("{} bytes", bytes.len()));
                dump(bytes).for_each(|line| say("", &line));
                if let Ok(utf8) = std::str::from_utf8(bytes)
                    && !utf8.is_empty()
                {
                    say("", &format!("in UTF-8: {}", printable(utf8)));
                }
            }
        }
    }
}

/// Sixteen bytes a line in hexadecimal, after the place of the first.
fn dump(bytes: &[u8]) -> impl Iterator<Item = String> {
    bytes.chunks(16).enumerate().map(|(n, chunk)| {
        let bytes: String = chunk.iter().map(|byte| format!(" {byte:02x}")).collect();
        format!("{:08x} {bytes}", 16 * n)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_shown_whole_and_do_nothing_to_a_terminal() {
        let bytes: Vec<u8> = (0..18).collect();
        let lines: Vec<String> = dump(&bytes).collect();
        assert_eq!(
            lines,
            ["00000000  00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f", "00000010  10 11"].map(String::from)
        );
        assert_eq!(printable("red \u{1b}[31m\nnow, naïve \"quotes\""), "red \\u{1b}[31m\\nnow, naïve \"quotes\"");
    }
}
