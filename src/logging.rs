//! Logging writes what happens to stderr: for a person at a terminal, one JSON object a line for anything else.
//!
//! The invariant: stdout belongs to results and never carries a log line. What is logged is chosen by [`VARIABLE`].

use std::io::{self, IsTerminal};

use tracing_subscriber::filter::{EnvFilter, ParseError};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

/// The environment variable with the filter: `debug`, `freshet::index=debug`, `info,lance=debug`, ...
pub const VARIABLE: &str = "FRESHET_LOG";

/// Without a word from [`VARIABLE`]: what Freshet does, and of the crates below it only what went wrong
/// (librdkafka's errors reach us as answers, and its log repeats each of them a hundred times). A name stands for every target
/// that starts with it.
const DEFAULT: &str = "info,lance=warn,datafusion=warn,delta=warn,buoyant_kernel=warn,object_store=warn,opendal=warn,sqlparser=warn,\
    aws=warn,hyper=warn,h2=warn,reqwest=warn,rustls=warn,warp=warn,rdkafka=off,librdkafka=off,timely=warn,differential=warn,\
    candle=warn,tokenizers=warn,hf_hub=warn,ureq=warn,tantivy=warn";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{VARIABLE}={value}: {source}")]
    Filter { value: String, source: ParseError },
    #[error("{VARIABLE} is not valid UTF-8")]
    NotText,
    #[error("logging was started twice: {0}")]
    Started(#[from] TryInitError),
}

/// How a line is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// For people: short times, colours.
    Human,
    /// For machines: one JSON object a line.
    Json,
}

/// Starts logging to stderr for the whole process; to be called once.
pub fn start() -> Result<(), Error> {
    let style = if io::stderr().is_terminal() { Style::Human } else { Style::Json };
    start_with(style, io::stderr)
}

/// Like [`start`], with a style and a writer of the caller's choice: a progress bar wants to be told of every line.
pub fn start_with<W>(style: Style, writer: W) -> Result<(), Error>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let asked = match std::env::var(VARIABLE) {
        Ok(asked) => asked,
        Err(std::env::VarError::NotPresent) => String::new(),
        Err(std::env::VarError::NotUnicode(_)) => return Err(Error::NotText),
    };
    subscriber(style, filter(&asked)?, writer).try_init()?;
    // What a panic has to say is a line like any other: whoever reads JSON reads it all.
    std::panic::set_hook(Box::new(|panic| {
        let said = panic.payload_as_str().unwrap_or("no text");
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(place, backtrace = %std::backtrace::Backtrace::capture(), "a panic: {said}");
    }));
    Ok(())
}

/// What is asked for wins over the default, target by target.
fn filter(asked: &str) -> Result<EnvFilter, Error> {
    let failed = |source| Error::Filter { value: asked.to_string(), source };
    // Alone first: joined to the default, a message about a mistake would name text that nobody wrote.
    EnvFilter::builder().parse(asked).map_err(failed)?;
    let joined = if asked.trim().is_empty() { DEFAULT.to_string() } else { format!("{DEFAULT},{asked}") };
    EnvFilter::builder().parse(joined).map_err(failed)
}

fn subscriber<W>(style: Style, filter: EnvFilter, writer: W) -> Box<dyn tracing::Subscriber + Send + Sync>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    // That a line cannot be written would be said where it cannot be written, and to fail at that ends the process.
    let base = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).log_internal_errors(false);
    match style {
        Style::Human => Box::new(base.with_timer(TimeOfDay).with_ansi(colours()).finish()),
        Style::Json => Box::new(base.json().flatten_event(true).with_current_span(false).finish()),
    }
}

/// The local time of day: whoever watches a terminal knows the date.
struct TimeOfDay;

impl FormatTime for TimeOfDay {
    fn format_time(&self, line: &mut Writer<'_>) -> std::fmt::Result {
        write!(line, "{}", chrono::Local::now().format("%H:%M:%S%.3f"))
    }
}

/// Colours unless <https://no-color.org> asks for none.
fn colours() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Lines {
        type Writer = Lines;

        fn make_writer(&'a self) -> Lines {
            self.clone()
        }
    }

    fn written(style: Style, asked: &str, log: impl FnOnce()) -> String {
        let lines = Lines::default();
        let subscriber = subscriber(style, filter(asked).unwrap(), lines.clone());
        tracing::subscriber::with_default(subscriber, log);
        let bytes = lines.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_json_line_carries_its_fields() {
        let text = written(Style::Json, "", || tracing::info!(target: "freshet::engine", epoch = 7, "epoch done"));
        let line: serde_json::Value = serde_json::from_str(text.trim_end()).unwrap();
        assert_eq!(
            (&line["message"], &line["epoch"], &line["level"]),
            (&"epoch done".into(), &7.into(), &"INFO".into())
        );
        assert_eq!(line["target"], "freshet::engine");
    }

    #[test]
    fn a_human_line_is_a_line() {
        let text = written(Style::Human, "", || tracing::warn!(topic = "shop", "nothing answers"));
        assert!(text.contains("nothing answers") && text.contains("shop") && text.ends_with('\n'), "{text}");
    }

    #[test]
    fn noisy_crates_are_heard_from_warnings_on_unless_asked_for() {
        let log = || {
            tracing::info!(target: "lance_index::vector", "chatter");
            tracing::warn!(target: "lance_index::vector", "trouble");
            tracing::info!(target: "freshet::index", "committed");
            tracing::debug!(target: "freshet::index", "detail");
        };
        let quiet = written(Style::Human, "", log);
        assert!(!quiet.contains("chatter") && quiet.contains("trouble") && quiet.contains("committed"), "{quiet}");
        assert!(!quiet.contains("detail"), "{quiet}");
        let debug = written(Style::Human, "debug", log);
        assert!(debug.contains("detail") && !debug.contains("chatter"), "{debug}");
        let asked = written(Style::Human, "lance=info", log);
        assert!(asked.contains("chatter") && !asked.contains("detail"), "{asked}");
    }

    #[test]
    fn a_mistake_in_the_filter_names_the_variable() {
        let error = filter("freshet=loud").unwrap_err().to_string();
        assert!(error.starts_with("FRESHET_LOG=freshet=loud: "), "{error}");
    }
}
