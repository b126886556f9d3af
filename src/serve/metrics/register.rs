//! The register makes metrics and keeps the names under which Prometheus finds them.

use prometheus::core::Collector;
use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

/// Makes metrics, registers each, and keeps its name. A name that is taken or malformed is a mistake in this file.
pub(super) struct Register {
    pub registry: Registry,
    pub series: Vec<String>,
}

impl Register {
    fn add<C: Collector + Clone + 'static>(&mut self, made: prometheus::Result<C>, suffixes: &[&str]) -> C {
        let collector = made.expect("a metric of this file is well formed");
        for desc in collector.desc() {
            self.series.extend(suffixes.iter().map(|suffix| format!("{}{suffix}", desc.fq_name)));
        }
        self.registry.register(Box::new(collector.clone())).expect("a metric of this file has a name of its own");
        collector
    }

    pub fn counter(&mut self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::new(name, help), &[""])
    }

    pub fn counters(&mut self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add(IntCounterVec::new(Opts::new(name, help), labels), &[""])
    }

    pub fn gauge(&mut self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::new(name, help), &[""])
    }

    pub fn gauges(&mut self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.add(IntGaugeVec::new(Opts::new(name, help), labels), &[""])
    }

    pub fn float_gauge(&mut self, name: &str, help: &str) -> Gauge {
        self.add(Gauge::new(name, help), &[""])
    }

    pub fn histogram(&mut self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.add(Histogram::with_opts(opts), &["_bucket", "_sum", "_count"])
    }

    pub fn histograms(&mut self, name: &str, help: &str, buckets: &[f64], labels: &[&str]) -> HistogramVec {
        let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.add(HistogramVec::new(opts, labels), &["_bucket", "_sum", "_count"])
    }

    /// The process's own: CPU, memory, threads, open files.
    #[cfg(target_os = "linux")]
    pub fn process(&mut self) {
        let collector = prometheus::process_collector::ProcessCollector::for_self();
        self.series.extend(collector.desc().into_iter().map(|desc| desc.fq_name.clone()));
        self.registry.register(Box::new(collector)).expect("a process registers itself once");
    }

    #[cfg(not(target_os = "linux"))]
    pub fn process(&mut self) {}
}
