//! End to end beside real peers: a burst of changes, and steady rates of them.
//!
//! The path of a change: the shop in this process, which writes the events that Debezium would (Avro, keyed, with their schemas in the
//! registry); the given broker; the service, in this process, with raw on the local disk; its API over a socket. The clock starts before the write.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::types::RDKafkaErrorCode;

use super::report::rounded;
use super::rig::{Peers, Rig, What};
use super::{Error, Report, Scratch, freshness};
use crate::config::Config;
use crate::demo::{self, TOPICS};
use crate::embed::{Embedder, TextEmbedder};

/// How long what was written in a burst may take to be searchable.
const PATIENCE: Duration = Duration::from_secs(300);
const ADMIN_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Kafka, as host:port,...
    #[arg(long)]
    pub brokers: String,
    /// A registry with Confluent's API, by its URL.
    #[arg(long)]
    pub registry: String,
    /// Products of the shop. All are embedded before the measurement begins.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    pub products: u32,
    /// Changes of prices that are written as fast as it goes.
    #[arg(long, default_value_t = 200_000)]
    pub burst: u32,
    /// Steady rates, one after the other; one change in ten is of a text, the others of a price.
    #[arg(long, value_delimiter = ',', default_values_t = [100.0, 1000.0], value_parser = freshness::rate)]
    pub changes_per_second: Vec<f64>,
    /// How long each rate is kept up, such as 60s or 5m.
    #[arg(long = "for", default_value = "20s", value_parser = demo::duration)]
    pub for_: Duration,
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

pub(super) async fn run(options: &Options) -> Result<Report, Error> {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", &options.brokers).create()?;
    make_topics(&admin).await?;
    let model = |config: &Config| {
        let embedder = tokio::task::block_in_place(|| Embedder::load(&config.embed))?;
        Ok(Arc::new(embedder) as Arc<dyn TextEmbedder>)
    };
    let measured = measure(options, model).await;
    let names = TOPICS.map(|(name, _)| name);
    let admin_options = AdminOptions::new().operation_timeout(Some(ADMIN_TIMEOUT));
    for removed in admin.delete_topics(&names, &admin_options).await? {
        if let Err((topic, code)) = removed {
            tell!("{topic} could not be removed: {code}");
        }
    }
    measured
}

async fn make_topics(admin: &AdminClient<DefaultClientContext>) -> Result<(), Error> {
    let options = AdminOptions::new().operation_timeout(Some(ADMIN_TIMEOUT));
    let topics = TOPICS.map(|(name, partitions)| NewTopic::new(name, partitions, TopicReplication::Fixed(-1)));
    let mut made = Vec::new();
    let mut refused = None;
    for answer in admin.create_topics(&topics, &options).await? {
        match answer {
            Ok(topic) => made.push(topic),
            Err((topic, RDKafkaErrorCode::TopicAlreadyExists)) => {
                refused = Some(format!("the broker has a topic {topic} already; this wants one of its own"));
            }
            Err((topic, code)) => refused = Some(format!("the topic {topic} cannot be made: {code}")),
        }
    }
    let Some(reason) = refused else { return Ok(()) };
    let made: Vec<&str> = made.iter().map(String::as_str).collect();
    if !made.is_empty() {
        admin.delete_topics(&made, &options).await?;
    }
    Err(reason.into())
}

async fn measure(
    options: &Options,
    embedder: impl FnOnce(&Config) -> Result<Arc<dyn TextEmbedder>, Error>,
) -> Result<Report, Error> {
    let scratch = Scratch::new("e2e")?;
    let peers = Peers::Given { brokers: options.brokers.clone(), registry: options.registry.clone() };
    let mut shared = None;
    let started = Instant::now();
    let rig = Rig::start(&scratch, options.seed, options.products as usize, peers, |config| {
        let embedder = embedder(config)?;
        shared = Some(embedder.clone());
        Ok(embedder)
    })
    .await?;
    let embedder = shared.ok_or("the rig asked for no embedder")?;
    let mut report = Report::new("e2e", options.seed);
    report.figure("path", "events written by this process (no database, no connector), the given broker and registry, the service, its API");
    report.figure("products", options.products);
    report.figure("loaded_s", rounded(started.elapsed().as_secs_f64()));

    let mut prices = rig.plan(options.seed, options.burst as usize);
    prices.iter_mut().zip(300..).for_each(|(planned, cents)| planned.what = What::Price(cents));
    tell!("{} prices change as fast as it goes", prices.len());
    let (wrote, searchable) = rig.burst(prices, PATIENCE).await?;
    report.figure("burst_events", options.burst);
    report.figure("burst_written_s", rounded(wrote.as_secs_f64()));
    report.figure("burst_searchable_s", rounded(searchable.as_secs_f64()));
    report.figure("burst_events_per_second", rounded(f64::from(options.burst) / searchable.as_secs_f64()));

    for (n, rate) in options.changes_per_second.iter().enumerate() {
        let part = freshness::at_rate(&rig, embedder.clone(), *rate, options.for_, options.seed + 1 + n as u64).await?;
        report.part(format!("at_{rate}_changes_per_second"), part);
    }
    rig.stop().await;
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::super::words::WordEmbedder;
    use super::*;
    use crate::source::embedded::{Broker, Registry};

    #[tokio::test(flavor = "multi_thread")]
    async fn a_burst_and_every_rate_are_measured_and_checked() {
        let broker = Broker::start(&TOPICS).unwrap();
        let registry = Registry::start().await.unwrap();
        let options = Options {
            brokers: broker.bootstrap_servers(),
            registry: registry.url(),
            products: 200,
            burst: 1000,
            changes_per_second: vec![50.0, 100.0],
            for_: Duration::from_secs(1),
            seed: 3,
        };
        let report = measure(&options, |_| Ok(Arc::new(WordEmbedder::new(64)))).await.unwrap();
        assert!(report.is_ok(), "{:?}", report.wrong());
        let json = report.json();
        assert!(json["burst_events_per_second"].as_f64().unwrap() > 0.0, "{json}");
        for (rate, texts) in [(50, 5), (100, 10)] {
            let part = &json[format!("at_{rate}_changes_per_second")];
            assert_eq!((&part["texts_changed"], &part["rows_compared"]), (&texts.into(), &200.into()), "{json}");
        }
    }
}
