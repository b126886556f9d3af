//! A recording is what the demo's shop wrote: its snapshot and its changes, as batches of messages in memory, with their schemas.
//!
//! The invariant: the messages are those that a consumer read from the broker, in its batches' usual size, and within a partition in order.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::{Error, Scratch};
use crate::config::Config;
use crate::dataflow::Plan;
use crate::decode::{Decoder, FixedSchemas, RegistryClient, RowType, SchemaStore};
use crate::demo::{self, Shop, TOPICS};
use crate::engine;
use crate::source::embedded::{Broker, Producer, Registry};
use crate::source::kafka::KafkaSource;
use crate::source::{MessageBatch, Source};
use crate::time::{Partition, Position};

/// Messages of a batch, as a consumer that lags reads them.
pub(super) const BATCH_MESSAGES: usize = 4096;
/// How far the shop may write before it is read: the broker keeps 5 MiB a partition.
const AHEAD_MAX_BYTES: usize = 1 << 20;

pub(super) struct Recording {
    pub config: Config,
    pub plan: Plan,
    /// Of the sources, in their order.
    pub row_types: Vec<Arc<RowType>>,
    pub batches: Vec<MessageBatch>,
    pub schemas: HashMap<u32, Arc<str>>,
    pub messages: usize,
    /// Bytes of keys and values.
    pub bytes: usize,
}

impl Recording {
    /// Lets a shop of `products` write its snapshot and then changes, until there are `events` in all, and reads them.
    pub async fn make(scratch: &Scratch, seed: u64, products: usize, events: usize) -> Result<Recording, Error> {
        let broker = Broker::start(&TOPICS)?;
        let registry = Registry::start().await?;
        let brokers = broker.bootstrap_servers();
        let listen = (std::net::Ipv4Addr::LOCALHOST, 0).into();
        let config = demo::product_dataflow(scratch.path(), &brokers, &registry.url(), listen)?;
        let (plan, row_types) = engine::plan(&config).map_err(|problems| {
            problems.iter().map(|p| format!("{}: {}", p.key, p.reason)).collect::<Vec<_>>().join("; ")
        })?;
        let mut shop = Shop::new(seed, products, Producer::new(&brokers)?, &registry)?;
        let mut tape = Tape::new(&config)?;
        let ids = shop.ids();
        for (n, id) in ids.iter().enumerate() {
            shop.snapshot(*id, n + 1 == ids.len())?;
            tape.follow(&mut shop, AHEAD_MAX_BYTES)?;
        }
        let written = |shop: &Shop| shop.written().iter().map(|(_, end)| end.0 as usize).sum::<usize>();
        let halfway = written(&shop).midpoint(events);
        while written(&shop) < events {
            // Halfway through the changes the table gains a column, so that two schemas are in use.
            if written(&shop) >= halfway {
                shop.add_column();
            }
            shop.step()?;
            tape.follow(&mut shop, AHEAD_MAX_BYTES)?;
        }
        tape.follow(&mut shop, 0)?;
        let batches = tape.finish();
        let known = RegistryClient::new(&config.registry)?;
        let mut schemas = HashMap::new();
        for id in schema_ids(&batches) {
            let text = known.get(id).await?.ok_or("a schema id that the registry does not know")?;
            schemas.insert(id, text);
        }
        let messages = batches.iter().map(|b| b.messages.len()).sum();
        let bytes = batches.iter().map(|b| b.bytes.len()).sum();
        Ok(Recording { config, plan, row_types, batches, schemas, messages, bytes })
    }

    /// The source that a batch is of.
    pub fn source_of(&self, batch: &MessageBatch) -> usize {
        let found = self.config.sources.iter().position(|s| s.topic == batch.partition.topic);
        found.expect("only the sources' topics were read")
    }

    /// A decoder for each source.
    pub fn decoders(&self) -> Result<Vec<Decoder>, Error> {
        let schemas: Arc<dyn SchemaStore> = Arc::new(FixedSchemas(self.schemas.clone()));
        let of = self.config.sources.iter().zip(&self.row_types).enumerate();
        of.map(|(n, (source, row_type))| Ok(Decoder::new(n, source, row_type.clone(), schemas.clone())?)).collect()
    }
}

fn schema_ids(batches: &[MessageBatch]) -> BTreeSet<u32> {
    let parts = batches.iter().flat_map(|b| b.messages.iter().flat_map(|m| [b.key(m), b.value(m)]));
    parts.flatten().filter_map(|part| Some(u32::from_be_bytes(part.get(1..5)?.try_into().ok()?))).collect()
}

/// What was read so far.
struct Tape {
    source: KafkaSource,
    read: Position,
    open: HashMap<Partition, MessageBatch>,
    full: Vec<MessageBatch>,
}

impl Tape {
    fn new(config: &Config) -> Result<Tape, Error> {
        let topics: Vec<_> = config.sources.iter().map(|s| s.topic.clone()).collect();
        let mut source = KafkaSource::new(&config.kafka, &topics)?;
        source.seek(&Position::default())?;
        Ok(Tape { source, read: Position::default(), open: HashMap::new(), full: Vec::new() })
    }

    /// Reads all that the shop has written, once that is more than `ahead` bytes.
    fn follow(&mut self, shop: &mut Shop, ahead: usize) -> Result<(), Error> {
        if shop.bytes_ahead(&self.read) <= ahead && ahead > 0 {
            return Ok(());
        }
        shop.flush()?;
        let written = shop.written();
        while !self.read.covers(&written) {
            let Some(batch) = self.source.poll(Duration::from_millis(100))? else { continue };
            self.read.advance(&batch.partition, batch.end().unwrap_or_default());
            let open =
                self.open.entry(batch.partition.clone()).or_insert_with(|| MessageBatch::new(batch.partition.clone()));
            for message in &batch.messages {
                open.push(message.offset, message.timestamp_ms, batch.key(message), batch.value(message));
                if open.messages.len() == BATCH_MESSAGES {
                    let new = MessageBatch::new(batch.partition.clone());
                    self.full.push(std::mem::replace(open, new));
                }
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Vec<MessageBatch> {
        let mut rest: Vec<MessageBatch> = self.open.into_values().filter(|b| !b.messages.is_empty()).collect();
        rest.sort_by(|a, b| a.partition.cmp(&b.partition));
        self.full.append(&mut rest);
        self.full
    }
}
