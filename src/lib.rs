//! Freshet keeps a semantic search index exactly as fresh and as correct as the database behind it.

pub mod config;
pub mod dataflow;
pub mod decode;
pub mod source;
pub mod time;
