//! The program: arguments, logging, exit codes.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, Subcommand};
use freshet::config::{self, Config};
use freshet::serve::State;
use freshet::{audit, bench, demo, embed, engine, index, logging, quarantine, rebuild, storage};
use freshet::{say, tell};

/// Rows are allocated on one thread and freed on another, which the system's allocator is slow at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Keeps a semantic search index exactly as fresh and as correct as the database behind it.
///
/// A dataflow is a folder: dataflow.toml, SQL models, contracts. `freshet demo` shows everything on made-up data, with nothing beside it.
/// Exit codes: 0 done, 1 the answer is no, 2 usage or configuration, 3 a peer or storage failed for good. FRESHET_LOG chooses what is logged.
#[derive(Parser)]
#[command(version, max_term_width = 120)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs a dataflow until SIGTERM or Ctrl-C.
    Run {
        /// The dataflow's folder, such as dataflows/product.
        folder: PathBuf,
    },
    /// Says what is wrong with a dataflow's folder, all of it at once, or prints its plan.
    Check {
        /// The dataflow's folder, such as dataflows/product.
        folder: PathBuf,
    },
    /// Shows how a dataflow's models are maintained: the optimised plans, and the operators with their names.
    ///
    /// What each operator holds and does while the dataflow runs stands under `operators` in GET /v1/status, by the same numbers.
    Explain {
        /// The dataflow's folder, such as dataflows/product.
        folder: PathBuf,
        /// Only the operators that this model (or source) is made of.
        #[arg(long)]
        model: Option<String>,
    },
    /// Recomputes a dataflow's view from raw, in batch, and compares the index with it. Only reads; the service has to have ended.
    ///
    /// Prints counts and the first differences. Exit code 1 when there is any.
    Audit {
        /// The dataflow's folder, such as dataflows/product.
        folder: PathBuf,
        /// Rows whose text is embedded once more, to compare the vectors.
        #[arg(long, default_value_t = 200)]
        sample: usize,
    },
    /// Builds a dataflow's index anew, beside the one that is searched, which it replaces when it is whole.
    ///
    /// The service that runs is asked for it, on its own machine, and goes on meanwhile; where none runs it is done here, also in the place of an
    /// index that a start refuses. Nothing is embedded that was embedded before. Until it is whole the old index stays, whatever ends.
    Rebuild {
        folder: PathBuf,
        /// Where the service answers; by default where serve.listen says.
        #[arg(long)]
        url: Option<String>,
    },
    /// Shows the messages that were rejected, and what would become of them today. Only reads; the service may run.
    Quarantine {
        #[command(subcommand)]
        command: quarantine::Command,
    },
    /// Runs a broker, a registry, a shop that keeps changing its products, and the service, in one process.
    Demo(demo::Options),
    /// Says what this machine has: GPUs, the device that is taken and why, the model, and whether the peers answer.
    Doctor {
        /// The dataflow's folder, such as dataflows/product.
        folder: PathBuf,
    },
    /// Measures a part of Freshet on made-up data, and checks what it computed.
    ///
    /// Prints one JSON object on stdout, {"bench", "ok", ...figures with their units in their names}, and progress on stderr. ok is false, and
    /// the exit code 1, when an answer was wrong; whether a mark was met is the figure mark_met. Measure on a machine that does nothing else.
    Bench {
        #[command(subcommand)]
        bench: bench::Bench,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Err(e) = logging::start() {
        tell!("freshet: {e}");
        return ExitCode::from(2);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            tell!("freshet: the runtime cannot be started: {e}");
            return ExitCode::from(3);
        }
    };
    let code = runtime.block_on(async {
        match arguments.command {
            Command::Run { folder } => run(&folder).await,
            Command::Check { folder } => check(&folder).await,
            Command::Explain { folder, model } => explain(&folder, model.as_deref()).await,
            Command::Audit { folder, sample } => audit(&folder, sample).await,
            Command::Rebuild { folder, url } => rebuild(&folder, url).await,
            Command::Quarantine { command } => quarantined(command).await,
            Command::Demo(options) => demo(options).await,
            Command::Doctor { folder } => doctor(&folder).await,
            Command::Bench { bench } => measure(bench).await,
        }
    });
    // A search that still computes does not hold up the end.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    ExitCode::from(code)
}

fn load(folder: &std::path::Path) -> Result<Config, u8> {
    config::load(folder).map_err(|e| {
        tell!("freshet: {e}");
        2
    })
}

/// A folder that can be run, or what is wrong with it on stderr.
async fn checked(folder: &std::path::Path) -> Result<engine::Checked, u8> {
    engine::check(folder).await.map_err(|e| {
        tell!("freshet: {e}");
        2
    })
}

async fn run(folder: &std::path::Path) -> u8 {
    let ended = match engine::stop_signal() {
        Ok(ended) => ended,
        Err(e) => {
            tell!("freshet: signals cannot be listened to: {e}");
            return 3;
        }
    };
    tokio::pin!(ended);
    let config = match checked(folder).await {
        Ok(checked) => checked.config,
        Err(code) => return code,
    };
    let started = tokio::select! {
        () = &mut ended => return 0,
        started = engine::Service::start(config, Arc::new(|_| ())) => started,
    };
    let service = match started {
        Ok(service) => service,
        Err(e) => {
            tell!("freshet: {e}");
            return code_of(&e);
        }
    };
    let mut looked = tokio::time::interval(std::time::Duration::from_millis(200));
    loop {
        tokio::select! {
            () = &mut ended => break,
            _ = looked.tick() => if service.has_failed() { break },
        }
    }
    let status = service.status().clone();
    service.stop().await;
    // Also at the end something can fail: what was read may have found no way into the index.
    if status.state() == State::Failed { 3 } else { 0 }
}

async fn check(folder: &std::path::Path) -> u8 {
    match engine::check(folder).await {
        Ok(engine::Checked { config, plan }) => {
            say!("{} is right. The view {} is maintained as", folder.display(), config.view);
            say!("{plan}");
            if let Some(tried) = embed::is_elsewhere(&config.embed) {
                say!("A start fetches {} from the Hugging Face hub; it is not in {tried}", config.embed.model);
            }
            0
        }
        Err(e) => {
            say!("{e}");
            1
        }
    }
}

async fn explain(folder: &std::path::Path, model: Option<&str>) -> u8 {
    let plan = match checked(folder).await {
        Ok(checked) => checked.plan,
        Err(code) => return code,
    };
    match plan.explain(model) {
        Some(text) => {
            say!("{}", text.trim_end());
            0
        }
        None => {
            let (model, models) = (model.unwrap_or_default(), plan.models().join(", "));
            tell!("freshet: there is no model {model}; there are {models}");
            2
        }
    }
}

async fn audit(folder: &std::path::Path, sample: usize) -> u8 {
    let config = match load(folder) {
        Ok(config) => config,
        Err(code) => return code,
    };
    match audit::run(config, sample).await {
        Ok(found) => {
            let position = serde_json::to_string(&found.position).unwrap_or_default();
            say!("view      {} rows, from raw at {position}", found.view_rows);
            say!("index     {} rows", found.index_rows);
            let audit::Audit { missing, orphans, stale, duplicates, .. } = found;
            say!("rows      {missing} missing, {orphans} orphans, {stale} stale, {duplicates} duplicate keys");
            let lowest = found.lowest_cosine.map_or(String::new(), |cosine| format!(", lowest cosine {cosine}"));
            say!("vectors   {} embedded anew{lowest}", found.sampled);
            found.differences.iter().for_each(|difference| say!("          {difference}"));
            say!("{}", if found.is_clean() { "clean" } else { "NOT CLEAN" });
            u8::from(!found.is_clean())
        }
        Err(e) => {
            tell!("freshet: {e}");
            3
        }
    }
}

async fn rebuild(folder: &std::path::Path, url: Option<String>) -> u8 {
    let config = match checked(folder).await {
        Ok(checked) => checked.config,
        Err(code) => return code,
    };
    match rebuild::run(config, url).await {
        Ok(rebuild::Rebuilt { table, rows }) => {
            say!("{table} is the index now, with {rows} rows");
            0
        }
        Err(e) => {
            tell!("freshet: {e}");
            3
        }
    }
}

async fn quarantined(command: quarantine::Command) -> u8 {
    let config = match load(command.folder()) {
        Ok(config) => config,
        Err(code) => return code,
    };
    match quarantine::run(&config, command).await {
        Ok((text, yes)) => {
            // Whoever reads it may have seen enough.
            let _ = std::io::stdout().write_all(text.as_bytes());
            u8::from(!yes)
        }
        Err(e) => {
            tell!("freshet: {e}");
            match e {
                quarantine::Error::Absent(_) => 1,
                quarantine::Error::Plan(_) => 2,
                quarantine::Error::Table(_) | quarantine::Error::Registry(_) => 3,
            }
        }
    }
}

async fn demo(options: demo::Options) -> u8 {
    match demo::run(options).await {
        Ok(()) => 0,
        Err(e) => {
            tell!("freshet: {e}");
            if e.is::<demo::Refused>() { 2 } else { e.downcast_ref().map_or(3, code_of) }
        }
    }
}

/// An address that cannot be listened on is a configuration's mistake, as is whatever a start refuses of one.
fn code_of(error: &engine::Error) -> u8 {
    match error {
        engine::Error::Server(_) | engine::Error::Plan(_) => 2,
        engine::Error::Index(index::Error::Configuration { .. }) => 2,
        engine::Error::Embed(embed::Error::Device { .. }) => 2,
        _ => 3,
    }
}

async fn measure(bench: bench::Bench) -> u8 {
    match bench::run(bench).await {
        Ok(report) => {
            report.wrong().iter().for_each(|what| tell!("wrong: {what}"));
            say!("{}", report.json());
            u8::from(!report.is_ok())
        }
        Err(e) => {
            tell!("freshet: {e}");
            3
        }
    }
}

async fn doctor(folder: &std::path::Path) -> u8 {
    let config = match load(folder) {
        Ok(config) => config,
        Err(code) => return code,
    };
    let mut well = true;
    match embed::device::gpus() {
        Ok(gpus) if gpus.is_empty() => say!("GPUs      none"),
        Ok(gpus) => {
            for g in gpus {
                say!(
                    "GPU {}     {}, compute capability {}, {} of {} MiB free",
                    g.ordinal,
                    g.name,
                    g.capability,
                    g.memory_free_bytes >> 20,
                    g.memory_total_bytes >> 20
                );
            }
        }
        Err(reason) => say!("GPUs      none: {reason}"),
    }
    let mut say = |what: &str, answer: Result<String, String>| match answer {
        Ok(text) => say!("{what:<9} {text}"),
        Err(text) => {
            well = false;
            say!("{what:<9} NOT WELL: {text}");
        }
    };
    say(
        "device",
        embed::device::pick(config.embed.device)
            .map(|(d, why)| format!("{}, because {why}", embed::device::name(&d)))
            .map_err(|e| e.to_string()),
    );
    let model = embed::Embedder::load(&config.embed);
    let model = model.map(|m| {
        let licence = m.licence().unwrap_or("not stated beside it");
        format!("{} ({} numbers a vector, licence {licence}, id {})", config.embed.model, m.dimension(), m.model_id().0)
    });
    say("model", model.map_err(|e| e.to_string()));
    say("broker", engine::ask_broker(&config));
    if config.registry.url.is_some() {
        say("registry", engine::ask_registry(&config).await);
    }
    let (vectors, no_options) = (config.embed.store.to_string_lossy().into_owned(), Default::default());
    let mut places = vec![("index", &config.index.uri, &config.index.options), ("vectors", &vectors, &no_options)];
    places.extend(config.raw.iter().map(|raw| ("raw", &raw.uri, &raw.options)));
    for (what, uri, options) in places {
        let probed = storage::probe(uri, options).await;
        say(what, probed.map(|()| uri.clone()).map_err(|e| format!("{uri}: {e}")));
    }
    u8::from(!well)
}
