//! The load generator bundled with Signalbox: an event loop of its own and the codecs of `common`, no WAMP library.
//!
//! ```text
//! options ▶ scenario ▶ run ▶ io ◀▶ client (sessions, no IO)
//!                            │◀▶ pubsub | rpc | idle (workloads, no IO) ▶ template, window, schedule, checker
//!                            └▶ process (what the router used) ▶ report
//! ```

mod blob;
mod checker;
mod client;
#[cfg(test)]
mod fake;
mod idle;
mod io;
mod options;
mod outbox;
mod process;
mod pubsub;
mod report;
mod rpc;
mod run;
mod scenario;
mod schedule;
mod status;
mod tally;
mod template;
mod window;
mod workload;

use clap::Parser;
use common::transport::Framing;
use options::{Cli, Common, Endpoint, Load, OptionsError, PubSubOptions, RouterPid, Scenario};
use process::RouterProcess;
use report::Report;
use run::{Part, RunError, Timing};
use std::process::ExitCode;
use std::time::Duration;
use workload::Workload;

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Options(#[from] OptionsError),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    Status(#[from] status::StatusError),
    #[error("cannot write {path}: {source}")]
    Write { path: String, source: std::io::Error },
    #[error("cannot encode the result: {0}")]
    Json(#[from] serde_json::Error),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let scenario = cli.scenario.unwrap_or_else(|| quoted_workload(cli.default));
    match execute(&scenario) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(EXIT_FAULTS),
        Err(error) => {
            eprintln!("loadgen: {error}");
            ExitCode::from(if matches!(error, Failure::Options(_)) { EXIT_OPTIONS } else { EXIT_FAULTS })
        }
    }
}

const EXIT_FAULTS: u8 = 1;
const EXIT_OPTIONS: u8 = 2;

/// The one workload we quote.
fn quoted_workload(common: Common) -> Scenario {
    Scenario::Pubsub(PubSubOptions {
        publishers: 1,
        subscribers: 1,
        topics: 1,
        acknowledge: false,
        publisher_serializer: None,
        load: Load { payload: 128, window: 1_024, rate: None, relay: false },
        common,
    })
}

/// Runs a scenario and reports it. True when it was without fault.
fn execute(scenario: &Scenario) -> Result<bool, Failure> {
    match scenario {
        Scenario::Pubsub(options) => {
            let endpoint = options.common.endpoint()?;
            let mut what = format!(
                "pubsub {} to {} on {} topics, {}",
                options.publishers,
                options.subscribers,
                options.topics,
                describe(&options.load, &options.common, &endpoint)
            );
            if let Some(serializer) = options.publisher_serializer {
                what += &format!(", publishers {serializer:?}");
            }
            if options.acknowledge {
                what += ", acknowledged";
            }
            let parts = scenario::pubsub(options, &endpoint)?;
            execute_parts("pubsub", "events", what, parts, &endpoint, &options.common, options.load.relay)
        }
        Scenario::Rpc(options) => {
            let endpoint = options.common.endpoint()?;
            let mut what = format!(
                "rpc {} callers, {} callees, {}",
                options.callers,
                options.callees,
                describe(&options.load, &options.common, &endpoint)
            );
            if let Some(serializer) = options.callee_serializer {
                what += &format!(", callees {serializer:?}");
            }
            let parts = scenario::rpc(options, &endpoint)?;
            execute_parts("rpc", "results", what, parts, &endpoint, &options.common, options.load.relay)
        }
        Scenario::Connect(options) => {
            let endpoint = options.common.endpoint()?;
            let what = format!(
                "connect {} sessions, {}{}, {} renewed/s",
                options.sessions,
                describe_transport(&options.common, &endpoint),
                if options.subscribe { ", one subscription each" } else { "" },
                options.churn
            );
            let parts = scenario::connect(options, &endpoint)?;
            execute_parts("connect", "renewals", what, parts, &endpoint, &options.common, false)
        }
    }
}

fn execute_parts<W: Workload>(
    scenario: &'static str,
    unit: &'static str,
    what: String,
    parts: Vec<Part<W>>,
    endpoint: &Endpoint,
    common: &Common,
    relay: bool,
) -> Result<bool, Failure> {
    let sessions = scenario::connections(&parts);
    let target = scenario::target(sessions, endpoint)?;
    if let Some(note) = scenario::thread_note(common, parts.len()) {
        eprintln!("loadgen: {note}");
    }
    let router = find_router(common, relay)?;
    let timing = Timing {
        warmup: common.warmup,
        duration: common.duration,
        patience: common.patience,
        settle: match common.far_address {
            Some(_) => FAR_SETTLE,
            None if relay => RELAY_SETTLE,
            None => Duration::ZERO,
        },
        cpus: common.pin.clone(),
        spin: common.spin,
        progress: !common.quiet,
    };
    let outcome = run::run(parts, &target, &timing, router.as_ref())?;
    let report = Report::new(scenario, unit, what, sessions, router.map(|router| router.pid), &outcome);
    let on_stdout = write_json(&report, common.json.as_deref())?;
    if !on_stdout {
        println!("{report}");
    }
    Ok(report.ok)
}

/// The process to look at. Without `--router-pid`, a node that does not answer is only mentioned.
fn find_router(common: &Common, relay: bool) -> Result<Option<RouterProcess>, Failure> {
    let pid = match common.router_pid {
        Some(RouterPid::Pid(pid)) => Some(pid),
        Some(RouterPid::Auto) => Some(status::data_plane_pid(&common.admin)?),
        Some(RouterPid::None) => None,
        None if relay => None,
        None => match status::data_plane_pid(&common.admin) {
            Ok(pid) => Some(pid),
            Err(error) => {
                eprintln!("loadgen: no figures of the router: {error}");
                None
            }
        },
    };
    Ok(pid.map(|pid| RouterProcess { pid, far: common.far_router_pid }))
}

/// Writes the JSON where it was asked for; true when that was the standard output.
fn write_json(report: &Report, path: Option<&str>) -> Result<bool, Failure> {
    let Some(path) = path else { return Ok(false) };
    let json = serde_json::to_string_pretty(report)?;
    if path == "-" {
        println!("{json}");
        return Ok(true);
    }
    std::fs::write(path, json + "\n").map_err(|source| Failure::Write { path: path.into(), source })?;
    Ok(false)
}

fn describe(load: &Load, common: &Common, endpoint: &Endpoint) -> String {
    let pace = match load.rate {
        Some(rate) => format!("{rate}/s"),
        None => format!("{} in flight each", load.window),
    };
    let transport = if load.relay { "bare relay".into() } else { describe_transport(common, endpoint) };
    format!("{} B, {transport}, {pace}", load.payload)
}

fn describe_transport(common: &Common, endpoint: &Endpoint) -> String {
    let transport = match endpoint.framing {
        Framing::RawSocket => "RawSocket",
        _ => "WebSocket",
    };
    format!("{transport} {:?}", common.serializer)
}

/// The other node learns a little later what is subscribed to and registered.
const FAR_SETTLE: Duration = Duration::from_secs(1);
/// A relay acknowledges nothing: time for it to take in who is who.
const RELAY_SETTLE: Duration = Duration::from_millis(200);
