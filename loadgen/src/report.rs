//! The result, for people and for programs.

use crate::process::{CpuUse, ThreadUse};
use crate::run::Outcome;
use hdrhistogram::Histogram;
use serde::Serialize;
use std::fmt::{self, Display, Formatter};

/// Everything that is reported; `--json` writes it as it is.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What was run, in words.
    pub workload: String,
    pub scenario: &'static str,
    /// What is counted: events, results or sessions.
    pub unit: &'static str,
    pub measured_seconds: f64,
    /// Counts of the measured part.
    pub delivered: u64,
    pub delivered_per_second: f64,
    pub sent_per_second: f64,
    pub latency_us: Latency,
    pub router: Option<Router>,
    /// Why `router` is missing or incomplete.
    pub router_fault: Option<String>,
    /// CPUs this program kept busy; near its number of threads it was the limit itself.
    pub own_cpus: Option<f64>,
    pub connecting: Connecting,
    pub faults: Faults,
    /// True when everything arrived once, whole and in order.
    pub ok: bool,
}

/// Microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Latency {
    pub count: u64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    #[serde(rename = "p99.9")]
    pub p99_9: f64,
    #[serde(rename = "p99.99")]
    pub p99_99: f64,
    pub max: f64,
}

#[derive(Clone, Debug, Serialize)]
pub struct Router {
    pub pid: u32,
    /// Where the CPU figures are from: `schedstat` or `stat`.
    pub cpu_source: &'static str,
    pub cpu_seconds: f64,
    /// CPUs kept busy.
    pub cpus: f64,
    /// What was delivered, per second of CPU.
    pub messages_per_cpu_second: f64,
    pub threads: Vec<ThreadUse>,
}

/// The way to the state in which load began.
#[derive(Clone, Debug, Serialize)]
pub struct Connecting {
    pub sessions: usize,
    pub seconds: f64,
    pub router_cpu_seconds: Option<f64>,
    pub sessions_per_cpu_second: Option<f64>,
    /// The router's PSS before the first connection and with all of them.
    pub memory_before_bytes: Option<u64>,
    pub memory_bytes: Option<u64>,
    pub memory_bytes_per_session: Option<f64>,
}

/// Counts of the whole run, warm-up and drain included.
#[derive(Clone, Debug, Serialize)]
pub struct Faults {
    pub sent: u64,
    pub delivered: u64,
    pub acknowledged: u64,
    pub lost: u64,
    pub duplicated: u64,
    pub reordered: u64,
    /// Results overtaken by later ones, which WAMP allows.
    pub results_reordered: u64,
    pub corrupt: u64,
    pub misrouted: u64,
    pub refused: u64,
    pub first: Option<String>,
}

impl Report {
    pub fn new(
        scenario: &'static str,
        unit: &'static str,
        workload: String,
        sessions: usize,
        pid: Option<u32>,
        outcome: &Outcome,
    ) -> Self {
        let tally = &outcome.tally;
        let seconds = outcome.measured.as_secs_f64();
        let router = pid.zip(outcome.cpu.as_ref()).map(|(pid, cpu)| Router {
            pid,
            cpu_source: cpu.source,
            cpu_seconds: cpu.seconds,
            cpus: cpu.seconds / seconds,
            messages_per_cpu_second: outcome.delivered as f64 / cpu.seconds.max(CPU_SECONDS_MIN),
            threads: busy_threads(cpu),
        });
        Self {
            workload,
            scenario,
            unit,
            measured_seconds: seconds,
            delivered: outcome.delivered,
            delivered_per_second: outcome.delivered as f64 / seconds,
            sent_per_second: outcome.sent as f64 / seconds,
            latency_us: Latency::of(&tally.latency),
            router,
            router_fault: outcome.router_fault.clone(),
            own_cpus: outcome.own_cpu.as_ref().map(|cpu| cpu.seconds / seconds),
            connecting: Connecting::of(sessions, outcome),
            faults: Faults {
                sent: tally.sent,
                delivered: tally.delivered,
                acknowledged: tally.acknowledged,
                lost: tally.lost,
                duplicated: tally.duplicated,
                reordered: tally.reordered,
                results_reordered: tally.results_reordered,
                corrupt: tally.corrupt,
                misrouted: tally.misrouted,
                refused: tally.refused,
                first: tally.first_fault.clone(),
            },
            ok: tally.is_clean(),
        }
    }
}

impl Connecting {
    fn of(sessions: usize, outcome: &Outcome) -> Self {
        let cpu_seconds = outcome.connecting_cpu.as_ref().map(|cpu| cpu.seconds);
        let grown = |(before, after): (u64, u64)| after as f64 - before as f64;
        Self {
            sessions,
            seconds: outcome.connecting.as_secs_f64(),
            router_cpu_seconds: cpu_seconds,
            sessions_per_cpu_second: cpu_seconds
                .filter(|seconds| *seconds >= RAMP_CPU_SECONDS_MIN)
                .map(|seconds| sessions as f64 / seconds),
            memory_before_bytes: outcome.memory.map(|(before, _)| before),
            memory_bytes: outcome.memory.map(|(_, after)| after),
            memory_bytes_per_session: outcome
                .memory
                .filter(|_| sessions >= RAMP_SESSIONS_MIN)
                .map(|memory| grown(memory) / sessions as f64),
        }
    }
}

impl Latency {
    fn of(histogram: &Histogram<u64>) -> Self {
        if histogram.is_empty() {
            return Self::default();
        }
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
        Self {
            count: histogram.len(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            p99_99: at(0.9999),
            max: histogram.max() as f64 / 1e3,
        }
    }
}

/// Threads that did something, busiest first.
fn busy_threads(cpu: &CpuUse) -> Vec<ThreadUse> {
    let mut threads: Vec<_> = cpu
        .threads
        .iter()
        .filter(|thread| thread.seconds > cpu.seconds * THREAD_SHARE_MIN)
        .cloned()
        .collect();
    threads.sort_by(|one, two| two.seconds.total_cmp(&one.seconds));
    threads
}

impl Display for Report {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        writeln!(out, "{}", self.workload)?;
        if self.faults.sent > 0 {
            writeln!(
                out,
                "  delivered   {} {}/s  ({} in {:.2} s; {} sent/s)",
                grouped(self.delivered_per_second),
                self.unit,
                grouped(self.delivered as f64),
                self.measured_seconds,
                grouped(self.sent_per_second)
            )?;
        }
        self.write_cpu(out)?;
        let latency = &self.latency_us;
        if latency.count > 0 {
            writeln!(
                out,
                "  latency µs  p50 {:.1}  p90 {:.1}  p99 {:.1}  p99.9 {:.1}  p99.99 {:.1}  max {:.1}",
                latency.p50, latency.p90, latency.p99, latency.p99_9, latency.p99_99, latency.max
            )?;
        }
        self.write_connecting(out)?;
        self.write_faults(out)
    }
}

impl Report {
    fn write_cpu(&self, out: &mut Formatter<'_>) -> fmt::Result {
        if let Some(router) = &self.router {
            write!(out, "  router CPU  {:.3} CPUs ({})", router.cpus, router.cpu_source)?;
            if self.delivered > 0 {
                write!(out, ", {} {} per CPU-second", grouped(router.messages_per_cpu_second), self.unit)?;
            }
            writeln!(out)?;
            for thread in router.threads.iter().take(THREADS_SHOWN) {
                writeln!(
                    out,
                    "    {:15} {:.3} CPUs (thread {})",
                    thread.name,
                    thread.seconds / self.measured_seconds,
                    thread.tid
                )?;
            }
        }
        if let Some(fault) = &self.router_fault {
            writeln!(out, "  router CPU  not complete: {fault}")?;
        }
        if let Some(cpus) = self.own_cpus {
            writeln!(out, "  load CPU    {cpus:.3} CPUs")?;
        }
        Ok(())
    }

    fn write_connecting(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let connecting = &self.connecting;
        write!(out, "  sessions    {} ready after {:.3} s", connecting.sessions, connecting.seconds)?;
        if let Some(rate) = connecting.sessions_per_cpu_second {
            write!(out, ", {} per router CPU-second", grouped(rate))?;
        }
        if let Some(((before, after), each)) = connecting
            .memory_before_bytes
            .zip(connecting.memory_bytes)
            .zip(connecting.memory_bytes_per_session)
        {
            write!(
                out,
                "; router memory {:.1} to {:.1} MiB PSS, {each:.0} bytes a session",
                before as f64 / MIB,
                after as f64 / MIB
            )?;
        }
        writeln!(out)
    }

    fn write_faults(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let faults = &self.faults;
        write!(
            out,
            "  faults      {} lost, {} duplicated, {} reordered, {} corrupt, {} misrouted, {} refused",
            faults.lost,
            faults.duplicated,
            faults.reordered,
            faults.corrupt,
            faults.misrouted,
            faults.refused
        )?;
        if faults.results_reordered > 0 {
            write!(out, " ({} results overtaken, which is allowed)", faults.results_reordered)?;
        }
        if let Some(first) = &faults.first {
            write!(out, "\n  first fault {first}")?;
        }
        Ok(())
    }
}

/// A number with its thousands apart.
fn grouped(number: f64) -> String {
    let digits = format!("{:.0}", number.max(0.0));
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

const MIB: f64 = 1_048_576.0;
const THREADS_SHOWN: usize = 8;
/// Threads below this share of the CPU are not listed.
const THREAD_SHARE_MIN: f64 = 0.005;
/// Less than this is no basis for a rate of sessions, or for the memory of one.
const RAMP_CPU_SECONDS_MIN: f64 = 0.01;
const RAMP_SESSIONS_MIN: usize = 100;
/// Below what the kernel resolves; keeps a ratio finite.
const CPU_SECONDS_MIN: f64 = 1e-9;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tally::Tally;
    use std::time::Duration;

    fn outcome() -> Outcome {
        let mut tally = Tally { sent: 10, delivered: 9, lost: 1, ..Tally::default() };
        (1..=100).for_each(|value| tally.latency.saturating_record(value * 1_000));
        let thread = ThreadUse { tid: 8, name: "core-0".into(), seconds: 0.5 };
        let cpu = CpuUse { source: "schedstat", seconds: 0.5, threads: vec![thread] };
        Outcome {
            tally,
            measured: Duration::from_secs(2),
            delivered: 4_000_000,
            sent: 4_000_000,
            connecting: Duration::from_millis(20),
            cpu: Some(cpu.clone()),
            own_cpu: None,
            connecting_cpu: Some(cpu),
            memory: Some((1_048_576, 3_145_728)),
            router_fault: None,
        }
    }

    #[test]
    fn people_see_rates_percentiles_and_faults() {
        let report = Report::new("pubsub", "events", "what was run".into(), 1_024, Some(7), &outcome());
        let text = report.to_string();
        for part in [
            "2,000,000 events/s",
            "8,000,000 events per CPU-second",
            "0.250 CPUs (schedstat)",
            "core-0",
            "p99 99.",
            "1.0 to 3.0 MiB PSS, 2048 bytes a session",
            "1 lost",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert!(!report.ok);
    }

    #[test]
    fn programs_get_the_same_as_json() {
        let report = Report::new("pubsub", "events", "what was run".into(), 2, Some(7), &outcome());
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["router"]["messages_per_cpu_second"], 8e6);
        assert_eq!(json["faults"]["lost"], 1);
        assert!(json["latency_us"]["p99.9"].as_f64().unwrap() > 99.0);
        assert_eq!(json["ok"], false);
    }

    #[test]
    fn thousands_are_apart() {
        assert_eq!([0.0, 999.4, 1_000.0, 1_234_567.0].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
