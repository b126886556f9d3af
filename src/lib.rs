//! Freshet keeps a semantic search index exactly as fresh and as correct as the database behind it.
//!
//! ```text
//! Kafka --> source --> decode --> dataflow (upsert, model) --> index --> serve
//!              |          |                                     |
//!              |          +--reject--> quarantine          embed (store)
//!              +--> raw                 (a table of raw's)
//! ```
//!
//! Modules in the order in which data moves; each imports only what stands before it. `engine` composes them, `audit` checks
//! what comes out, `quarantine` shows what did not, `rebuild` has the index made anew.
//! What a program or a test awaits of the whole comes as a boxed future: its body is compiled once, here, and not again in each of them.

/// Prints a line of results. Whoever reads them may have seen enough, which is no failure.
#[macro_export]
macro_rules! say {
    ($($line:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($line)*);
    }};
}

/// Prints a line of progress, or of what is wrong. Whoever should read it may be gone, or the disk that it goes to full, which ends nothing.
#[macro_export]
macro_rules! tell {
    ($($line:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($line)*);
    }};
}

pub mod time;

pub mod thread;

pub mod config;

pub mod storage;

pub mod source;

pub mod decode;

pub mod raw;

pub mod dataflow;

pub mod embed;

pub mod serve;

pub mod index;

pub mod engine;

pub mod audit;

pub mod quarantine;

pub mod rebuild;

pub mod demo;

pub mod oracle;

pub mod sim;

pub mod bench;

pub mod logging;
