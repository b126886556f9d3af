//! Freshet keeps a semantic search index exactly as fresh and as correct as the database it is drawn from.
//!
//! ```text
//! Kafka --> source --> decode --> upsert --> model --> diffs of the view --> index --> serve
//!              |          |                                                    |
//!              |          +--reject--> quarantine               embedding store (never embed twice)
//!              +--> raw (Delta), off the critical path
//! ```
//!
//! The modules below stand in the order in which data passes them; each imports only what stands above it.

pub mod time;
