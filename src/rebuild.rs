//! `freshet rebuild`: asks the service that runs to build its index anew, and waits for it; where none runs, it does so itself.
//!
//! The invariant: the old index is the index until the new one is whole. Whatever ends this, the service or the machine leaves it in place.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::Value;

use crate::config::Config;
use crate::engine::{self, Service, stop_signal};
use crate::index;

const LOOK_EVERY: Duration = Duration::from_millis(100);
const SAY_EVERY: Duration = Duration::from_secs(5);

pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// What came of it.
#[derive(Debug)]
pub struct Rebuilt {
    /// The table that is the index now.
    pub table: String,
    pub rows: u64,
}

/// Builds a dataflow's index anew. `url` is where its service answers, by default where it is configured to listen.
pub fn run(config: Config, url: Option<String>) -> BoxFuture<'static, Result<Rebuilt, Error>> {
    async move {
        let url = url.unwrap_or_else(|| url_of(&config)).trim_end_matches('/').to_string();
        let service = Remote { client: reqwest::Client::builder().no_proxy().build()?, url };
        match service.status().await? {
            Some(status) => service.rebuild(&config.name, &status).await,
            None => here(config).await,
        }
    }
    .boxed()
}

/// Where a service of this configuration answers, seen from its own machine.
fn url_of(config: &Config) -> String {
    let mut listen = config.serve.listen;
    match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => listen.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => listen.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    format!("http://{listen}")
}

/// A service that runs.
struct Remote {
    client: reqwest::Client,
    url: String,
}

impl Remote {
    /// What the service says of itself; `None` if nothing listens there.
    async fn status(&self) -> Result<Option<Value>, Error> {
        match self.client.get(format!("{}/v1/status", self.url)).send().await {
            Ok(answer) => Ok(Some(answer.error_for_status()?.json().await?)),
            Err(e) if e.is_connect() => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    async fn rebuild(&self, dataflow: &str, status: &Value) -> Result<Rebuilt, Error> {
        let url = &self.url;
        let before = status["index"]["table"].as_str();
        if let Some(table) = before.filter(|table| table.split('.').next() != Some(dataflow)) {
            return Err(format!(
                "what answers at {url} has the index {table}, not {dataflow}'s; name its address with --url"
            )
            .into());
        }
        let asked = self.client.post(format!("{url}/v1/rebuild")).send().await?;
        if !asked.status().is_success() {
            let answer: Value = asked.json().await.unwrap_or_default();
            return Err(format!(
                "{url} refuses: {}",
                answer["error"]["message"].as_str().unwrap_or("it does not say why")
            )
            .into());
        }
        tell!("the service at {url} builds its index anew");
        let mut said = Instant::now();
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let ended = "the service has ended before the new index was whole; the old one is in its place: start it, and ask again";
            let Ok(Some(status)) = self.status().await else { return Err(ended.into()) };
            let index = &status["index"];
            if let Some(table) = index["table"].as_str().filter(|table| Some(*table) != before) {
                return Ok(Rebuilt { table: table.into(), rows: index["rows"].as_u64().unwrap_or_default() });
            }
            if status["state"] == "failed" {
                return Err(format!("the service has failed: {}", status["why"].as_str().unwrap_or_default()).into());
            }
            if let Some(why) = index["building"]["failed"].as_str() {
                return Err(format!("the new index was given up, and the old one is in its place: {why}").into());
            }
            if index["building"].is_null() {
                return Err("the service was started again meanwhile; the old index is in its place: ask again".into());
            }
            say(&mut said, index["building"]["lacking"].as_u64());
        }
    }
}

/// Builds it in this process, which answers searches meanwhile as a service does.
async fn here(config: Config) -> Result<Rebuilt, Error> {
    let stop = stop_signal()?;
    tokio::pin!(stop);
    tell!(
        "no service runs; the index is built anew here, and searches are answered at {} meanwhile",
        config.serve.listen
    );
    let service = match Service::start_anew(config, Arc::new(|_| ())).await {
        Err(engine::Error::Index(e @ index::Error::InUse { .. })) => {
            return Err(format!("{e}; or say with --url where it answers").into());
        }
        started => started?,
    };
    let status = service.status().clone();
    let before = status.table();
    let mut said = Instant::now();
    let done = loop {
        tokio::select! {
            () = &mut stop => break Err("it was stopped before the new index was whole; the old one is in its place".into()),
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        if let Some(table) = status.table().filter(|table| Some(table) != before.as_ref()) {
            break Ok(Rebuilt { table, rows: status.metrics().index_rows.get() as u64 });
        }
        if service.has_failed() {
            break Err(status.state_and_why().1.into());
        }
        let building = &status.to_json()["index"]["building"];
        if let Some(why) = building["failed"].as_str() {
            break Err(format!("the new index was given up, and the old one is in its place: {why}").into());
        }
        say(&mut said, building["lacking"].as_u64());
    };
    service.stop().await;
    done
}

fn say(said: &mut Instant, lacking: Option<u64>) {
    if said.elapsed() < SAY_EVERY {
        return;
    }
    *said = Instant::now();
    match lacking {
        Some(rows) => tell!("{rows} rows to go"),
        None => tell!("the view is on its way"),
    }
}
