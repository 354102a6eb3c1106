//! A run from the first connection to the last: worker threads, phases, progress and what the router used meanwhile.
//!
//! ```text
//! connect ─▶ (all ready) ─▶ warm up ─▶ measure ─▶ drain ─▶ goodbye
//! ```

use crate::io::{Clock, Driver, IoError, Target};
use crate::process::{CpuUse, ProcessError, RouterProcess};
use crate::tally::Tally;
use crate::workload::{Phases, Turn, Workload};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// One thread's work.
pub struct Part<W> {
    pub workload: W,
    pub plans: Vec<crate::client::ClientPlan>,
}

/// How long the phases take, and how the threads behave.
#[derive(Clone, Debug)]
pub struct Timing {
    pub warmup: Duration,
    pub duration: Duration,
    /// Longest silence while messages are in flight, before the rest counts as lost.
    pub patience: Duration,
    /// From the last session to the first message; a bare relay needs it, because it acknowledges nothing.
    pub settle: Duration,
    /// CPUs of the threads in turn; empty: not pinned.
    pub cpus: Vec<usize>,
    /// Never sleep.
    pub spin: bool,
    pub progress: bool,
}

/// What came out.
#[derive(Debug)]
pub struct Outcome {
    pub tally: Tally,
    /// Length of the measured part as it was.
    pub measured: Duration,
    /// Messages that arrived in the measured part.
    pub delivered: u64,
    pub sent: u64,
    /// From the first connection to the last one ready.
    pub connecting: Duration,
    /// The router's CPU over the measured part.
    pub cpu: Option<CpuUse>,
    /// This program's own, to see which of the two was the limit.
    pub own_cpu: Option<CpuUse>,
    /// The router's CPU while connecting.
    pub connecting_cpu: Option<CpuUse>,
    /// The router's memory before the first connection and with all of them, in bytes (PSS).
    pub memory: Option<(u64, u64)>,
    /// Why CPU or memory are missing.
    pub router_fault: Option<String>,
}

/// Why a run ended early.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Io(#[from] IoError),
    #[error("{ready} of {connections} sessions were ready after {} s", CONNECT_TIME_OUT.as_secs())]
    Connecting { ready: usize, connections: usize },
    #[error("nothing arrived for {} s with {in_flight} messages in flight; {counts}", patience.as_secs_f64())]
    Stalled { in_flight: u64, patience: Duration, counts: String },
    #[error("cannot pin a thread to CPU {cpu}: {source}")]
    Pin { cpu: usize, source: std::io::Error },
    #[error("cannot start a thread: {0}")]
    Thread(#[source] std::io::Error),
}

/// What the threads share. Each worker writes its own counters once a turn.
struct Shared {
    clock: Clock,
    /// Zero until all sessions are ready.
    start_ns: AtomicU64,
    /// The measured part is over and looked at: nothing more is begun.
    stopped: AtomicBool,
    failed: AtomicBool,
    failure: Mutex<Option<RunError>>,
    workers: Vec<Counters>,
}

#[derive(Default)]
#[repr(align(128))]
struct Counters {
    ready: AtomicUsize,
    all_ready: AtomicBool,
    sent: AtomicU64,
    delivered: AtomicU64,
    in_flight: AtomicU64,
}

impl Shared {
    fn fail(&self, error: RunError) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.failed.store(true, Ordering::Release);
    }

    fn take_failure(&self) -> Option<RunError> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    fn sum(&self, counter: impl Fn(&Counters) -> &AtomicU64) -> u64 {
        self.workers.iter().map(|worker| counter(worker).load(Ordering::Relaxed)).sum()
    }
}

/// Runs the parts, one thread each.
///
/// # Errors
/// When sessions cannot be had or end early, or when nothing arrives any more.
pub fn run<W: Workload>(
    parts: Vec<Part<W>>,
    target: &Target,
    timing: &Timing,
    router: Option<&RouterProcess>,
) -> Result<Outcome, RunError> {
    let connections: usize = parts.iter().map(|part| part.plans.len()).sum();
    let shared = Shared {
        clock: Clock::start(),
        start_ns: AtomicU64::new(0),
        stopped: AtomicBool::new(false),
        failed: AtomicBool::new(false),
        failure: Mutex::new(None),
        workers: parts.iter().map(|_| Counters::default()).collect(),
    };
    if let Some(cpu) = timing.cpus.first() {
        // This thread, too, keeps off the router's CPUs; the workers pin themselves again.
        pin(*cpu)?;
    }
    let mut observer = Observer::new(router);
    observer.begin();
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        let mut connections_before = 0;
        for (index, part) in parts.into_iter().enumerate() {
            let target = Target { connections_before, ..target.clone() };
            connections_before += part.plans.len();
            let shared = &shared;
            let work = move || match work(index, part, target, timing, shared) {
                Ok(tally) => Some(tally),
                Err(error) => {
                    shared.fail(error);
                    None
                }
            };
            let thread = std::thread::Builder::new().name(format!("load-{index}")).spawn_scoped(scope, work);
            threads.push(thread.map_err(|error| {
                shared.fail(RunError::Thread(std::io::Error::from(error.kind())));
                RunError::Thread(error)
            })?);
        }
        let observed = observer.watch(connections, timing, &shared);
        let mut tally = Tally::default();
        for thread in threads {
            match thread.join() {
                Ok(Some(part)) => tally.add(&part),
                Ok(None) => {}
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        match (shared.take_failure(), observed) {
            (Some(error), _) | (None, Err(error)) => Err(error),
            (None, Ok(observed)) => Ok(observer.outcome(tally, observed)),
        }
    })
}

/// One thread.
fn work<W: Workload>(
    index: usize,
    part: Part<W>,
    target: Target,
    timing: &Timing,
    shared: &Shared,
) -> Result<Tally, RunError> {
    let Part { mut workload, plans } = part;
    if !timing.cpus.is_empty() {
        pin(timing.cpus[index % timing.cpus.len()])?;
    }
    // Without it the kernel may add 50 µs to every wait.
    let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
    let counters = &shared.workers[index];
    let mut driver = Driver::new(shared.clock, target, plans)?;
    let phases = loop {
        if shared.has_failed() {
            return Ok(Tally::default());
        }
        let start_ns = shared.start_ns.load(Ordering::Acquire);
        if start_ns != 0 {
            let measure_ns = start_ns + timing.warmup.as_nanos() as u64;
            break Phases { start_ns, measure_ns, end_ns: measure_ns + timing.duration.as_nanos() as u64 };
        }
        driver.turn(shared.clock.now_ns() + BARRIER_POLL_NS, false, &mut workload)?;
        counters.ready.store(driver.ready(), Ordering::Relaxed);
        counters.all_ready.store(driver.all_ready(), Ordering::Release);
    };
    workload.start(phases);
    exchange(&mut driver, &mut workload, phases, timing, shared, counters)?;
    let tally = workload.finish();
    driver.leave_all();
    let end_ns = shared.clock.now_ns() + GOODBYE_TIME_OUT.as_nanos() as u64;
    while !driver.all_gone() && shared.clock.now_ns() < end_ns {
        // What fails now was measured before.
        if driver.turn(shared.clock.now_ns() + BARRIER_POLL_NS, false, &mut workload).is_err() {
            break;
        }
    }
    Ok(tally)
}

/// Sends until it is stopped, then waits for what is in flight.
fn exchange<W: Workload>(
    driver: &mut Driver,
    workload: &mut W,
    phases: Phases,
    timing: &Timing,
    shared: &Shared,
    counters: &Counters,
) -> Result<(), RunError> {
    let patience_ns = timing.patience.as_nanos() as u64;
    let mut progress = (workload.tally().delivered, shared.clock.now_ns());
    loop {
        let now_ns = shared.clock.now_ns();
        let stopped = shared.stopped.load(Ordering::Acquire);
        let sending = now_ns >= phases.start_ns && !stopped;
        let due_ns = workload.turn(Turn { now_ns, sending }, driver.outbox());
        let delivered = workload.tally().delivered;
        let in_flight = workload.in_flight();
        counters.sent.store(workload.tally().sent, Ordering::Relaxed);
        counters.delivered.store(delivered, Ordering::Relaxed);
        counters.in_flight.store(in_flight, Ordering::Relaxed);
        if stopped && in_flight == 0 || shared.has_failed() {
            return Ok(());
        }
        if delivered != progress.0 || in_flight == 0 {
            progress = (delivered, now_ns);
        } else if now_ns - progress.1 > patience_ns {
            if stopped {
                return Ok(());
            }
            return Err(stalled(in_flight, timing.patience, workload.finish()));
        }
        let deadline_ns = if timing.spin {
            now_ns
        } else if now_ns < phases.start_ns {
            phases.start_ns
        } else if now_ns < phases.end_ns {
            phases.end_ns.min(due_ns.unwrap_or(u64::MAX)).min(now_ns + FAILURE_POLL_NS)
        } else {
            due_ns.unwrap_or(u64::MAX).min(now_ns + BARRIER_POLL_NS)
        };
        driver.turn(deadline_ns, sending, workload)?;
    }
}

fn stalled(in_flight: u64, patience: Duration, tally: Tally) -> RunError {
    let fault = tally.first_fault.map(|fault| format!("; first fault: {fault}")).unwrap_or_default();
    let counts = format!(
        "{} sent, {} delivered, {} duplicated, {} reordered, {} refused{fault}",
        tally.sent, tally.delivered, tally.duplicated, tally.reordered, tally.refused
    );
    RunError::Stalled { in_flight, patience, counts }
}

fn pin(cpu: usize) -> Result<(), RunError> {
    let failed = |source| RunError::Pin { cpu, source };
    if cpu >= rustix::thread::CpuSet::MAX_CPU {
        return Err(failed(std::io::ErrorKind::InvalidInput.into()));
    }
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    rustix::thread::sched_setaffinity(None, &set).map_err(|error| failed(error.into()))
}

/// Looks at the counters and at the router; runs in the thread that started the workers.
struct Observer<'a> {
    router: Option<&'a RouterProcess>,
    fault: Option<String>,
    cpu_at_begin: Option<CpuUse>,
    memory_at_begin: Option<u64>,
}

struct Observed {
    connecting: Duration,
    connecting_cpu: Option<CpuUse>,
    memory: Option<(u64, u64)>,
    measured: Duration,
    sent: u64,
    delivered: u64,
    cpu: Option<CpuUse>,
    own_cpu: Option<CpuUse>,
}

impl<'a> Observer<'a> {
    fn new(router: Option<&'a RouterProcess>) -> Self {
        Self { router, fault: None, cpu_at_begin: None, memory_at_begin: None }
    }

    fn begin(&mut self) {
        self.cpu_at_begin = self.cpu();
        self.memory_at_begin = self.memory();
    }

    fn cpu(&mut self) -> Option<CpuUse> {
        let read = self.router?.cpu();
        self.note(read)
    }

    fn memory(&mut self) -> Option<u64> {
        let read = self.router?.memory_bytes();
        self.note(read)
    }

    fn note<T>(&mut self, read: Result<T, ProcessError>) -> Option<T> {
        read.map_err(|error| self.fault.get_or_insert_with(|| error.to_string()).len()).ok()
    }

    fn watch(&mut self, connections: usize, timing: &Timing, shared: &Shared) -> Result<Observed, RunError> {
        let clock = shared.clock;
        let ended = |shared: &Shared| shared.has_failed().then(|| shared.take_failure()).flatten();
        while !shared.workers.iter().all(|worker| worker.all_ready.load(Ordering::Acquire)) {
            if let Some(error) = ended(shared) {
                return Err(error);
            }
            if clock.now_ns() > CONNECT_TIME_OUT.as_nanos() as u64 {
                let ready = shared.workers.iter().map(|worker| worker.ready.load(Ordering::Relaxed)).sum();
                shared.fail(RunError::Connecting { ready, connections });
                return Err(RunError::Connecting { ready, connections });
            }
            std::thread::sleep(READY_POLL);
        }
        let connecting = Duration::from_nanos(clock.now_ns());
        let connecting_cpu =
            self.cpu().zip(self.cpu_at_begin.clone()).map(|(now, before)| now.since(&before));
        std::thread::sleep(timing.settle);
        let memory = self.memory_at_begin.zip(self.memory());
        if timing.progress {
            eprintln!("{connections} sessions ready after {:.2} s", connecting.as_secs_f64());
        }

        let start_ns = clock.now_ns() + START_LEAD_NS;
        shared.start_ns.store(start_ns, Ordering::Release);
        let measure_ns = start_ns + timing.warmup.as_nanos() as u64;
        let end_ns = measure_ns + timing.duration.as_nanos() as u64;
        let mut line = Progress::new(timing.progress, start_ns);
        line.until(measure_ns, "warm up", shared);
        let own = RouterProcess { pid: std::process::id(), far: None };
        let own_before = own.cpu().ok();
        let (before, cpu_before) = (Counts::read(shared), self.cpu());
        line.until(end_ns, "measure", shared);
        let (after, cpu_after) = (Counts::read(shared), self.cpu());
        let own_after = own.cpu().ok();
        // Only now, so that the load lasted as long as it was looked at.
        shared.stopped.store(true, Ordering::Release);
        Ok(Observed {
            connecting,
            connecting_cpu,
            memory,
            measured: Duration::from_nanos(after.now_ns - before.now_ns),
            sent: after.sent - before.sent,
            delivered: after.delivered - before.delivered,
            cpu: cpu_after.zip(cpu_before).map(|(after, before)| after.since(&before)),
            own_cpu: own_after.zip(own_before).map(|(after, before)| after.since(&before)),
        })
    }

    fn outcome(self, tally: Tally, observed: Observed) -> Outcome {
        Outcome {
            tally,
            measured: observed.measured,
            delivered: observed.delivered,
            sent: observed.sent,
            connecting: observed.connecting,
            cpu: observed.cpu,
            own_cpu: observed.own_cpu,
            connecting_cpu: observed.connecting_cpu,
            memory: observed.memory,
            router_fault: self.fault,
        }
    }
}

#[derive(Clone, Copy)]
struct Counts {
    now_ns: u64,
    sent: u64,
    delivered: u64,
}

impl Counts {
    fn read(shared: &Shared) -> Self {
        Self {
            now_ns: shared.clock.now_ns(),
            sent: shared.sum(|worker| &worker.sent),
            delivered: shared.sum(|worker| &worker.delivered),
        }
    }
}

/// A line on stderr every second.
struct Progress {
    on: bool,
    start_ns: u64,
    next_ns: u64,
    last: Option<Counts>,
}

impl Progress {
    fn new(on: bool, start_ns: u64) -> Self {
        Self { on, start_ns, next_ns: start_ns + PROGRESS_PERIOD_NS, last: None }
    }

    /// Sleeps until `end_ns`, or until the run has failed.
    fn until(&mut self, end_ns: u64, phase: &str, shared: &Shared) {
        loop {
            let now_ns = shared.clock.now_ns();
            if now_ns >= self.next_ns {
                self.next_ns += PROGRESS_PERIOD_NS;
                self.print(phase, shared);
            }
            if now_ns >= end_ns || shared.has_failed() {
                return;
            }
            let wake_ns = end_ns.min(self.next_ns).min(now_ns + FAILURE_POLL_NS);
            std::thread::sleep(Duration::from_nanos(wake_ns.saturating_sub(now_ns)));
        }
    }

    fn print(&mut self, phase: &str, shared: &Shared) {
        let now = Counts::read(shared);
        let last = self.last.replace(now).unwrap_or(Counts { now_ns: self.start_ns, sent: 0, delivered: 0 });
        if self.on {
            let seconds = now.now_ns.saturating_sub(last.now_ns).max(1) as f64 / 1e9;
            eprintln!(
                "{:5.0} s  {phase:8} {:>12.0} sent/s {:>12.0} delivered/s {:>9} in flight",
                now.now_ns.saturating_sub(self.start_ns) as f64 / 1e9,
                (now.sent - last.sent) as f64 / seconds,
                (now.delivered - last.delivered) as f64 / seconds,
                shared.sum(|worker| &worker.in_flight),
            );
        }
    }
}

const CONNECT_TIME_OUT: Duration = Duration::from_secs(60);
const GOODBYE_TIME_OUT: Duration = Duration::from_secs(2);
const READY_POLL: Duration = Duration::from_millis(1);
const BARRIER_POLL_NS: u64 = 5_000_000;
const FAILURE_POLL_NS: u64 = 100_000_000;
const PROGRESS_PERIOD_NS: u64 = 1_000_000_000;
/// Time for all workers to see that the run starts.
const START_LEAD_NS: u64 = 20_000_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{FakeRelay, FakeRouter, Misdeed};
    use crate::options::{Cli, Endpoint, Scenario};
    use crate::scenario;
    use clap::Parser;
    use common::transport::Framing;
    use std::net::SocketAddr;

    /// Longer than this machine ever stands still.
    const PATIENCE: Duration = Duration::from_secs(20);

    fn outcome(line: &str, framing: Framing, address: SocketAddr) -> Result<Outcome, RunError> {
        outcome_within(PATIENCE, line, framing, address)
    }

    fn outcome_within(
        patience: Duration,
        line: &str,
        framing: Framing,
        address: SocketAddr,
    ) -> Result<Outcome, RunError> {
        let line = std::iter::once("loadgen").chain(line.split(' '));
        let scenario = Cli::try_parse_from(line).unwrap().scenario.unwrap();
        let endpoint = Endpoint { framing, address, host: address.to_string(), path: "/ws".into() };
        let target = scenario::target(64, &endpoint).unwrap();
        let timing = Timing {
            warmup: Duration::from_millis(20),
            duration: Duration::from_millis(200),
            patience,
            settle: Duration::ZERO,
            cpus: Vec::new(),
            spin: false,
            progress: false,
        };
        let this = RouterProcess { pid: std::process::id(), far: None };
        match scenario {
            Scenario::Pubsub(options) => {
                run(scenario::pubsub(&options, &endpoint).unwrap(), &target, &timing, Some(&this))
            }
            Scenario::Rpc(options) => {
                run(scenario::rpc(&options, &endpoint).unwrap(), &target, &timing, Some(&this))
            }
            Scenario::Connect(options) => {
                run(scenario::connect(&options, &endpoint).unwrap(), &target, &timing, Some(&this))
            }
        }
    }

    fn clean(line: &str, framing: Framing) -> Outcome {
        let router = FakeRouter::start(framing, Misdeed::None);
        let outcome = outcome(line, framing, router.address).unwrap();
        assert!(outcome.tally.is_clean(), "{line}: {:?}", outcome.tally);
        assert!(outcome.tally.delivered > 0 && outcome.tally.sent > 0, "{line}");
        outcome
    }

    #[test]
    fn every_scenario_runs_clean_on_both_transports() {
        for framing in [Framing::RawSocket, Framing::WebSocket] {
            let outcome = clean("pubsub -P 2 -S 4 -T 2 --window 8 --threads 2", framing);
            assert!(outcome.tally.delivered == 2 * outcome.tally.sent);
            assert!(!outcome.tally.latency.is_empty());
            clean("pubsub --rate 2000 --acknowledge --publisher-serializer json", framing);
            let outcome = clean("rpc -C 3 -E 2 --window 4 --callee-serializer cbor", framing);
            assert_eq!(outcome.tally.delivered, outcome.tally.sent);
            clean("rpc --rate 1000 --payload 2000", framing);
            let outcome = clean("connect -N 6 --churn 200 --subscribe", framing);
            assert!(outcome.tally.renewed > 0);
            assert!(outcome.cpu.is_some() && outcome.memory.is_some(), "{:?}", outcome.router_fault);
        }
    }

    #[test]
    fn a_relay_moves_the_same_load() {
        for (line, members) in [
            ("pubsub --relay --window 16", 2),
            ("rpc --relay --window 4", 2),
            ("pubsub --relay -P 3 -S 6 -T 3 --rate 900", 9),
        ] {
            let relay = FakeRelay::start(members);
            let outcome = outcome(line, Framing::RawSocket, relay.address).unwrap();
            assert!(outcome.tally.is_clean(), "{line}: {:?}", outcome.tally);
            assert!(outcome.tally.delivered > 0, "{line}");
        }
    }

    #[test]
    fn lost_and_repeated_events_are_counted() {
        let router = FakeRouter::start(Framing::RawSocket, Misdeed::DropEvery(10));
        let tally = outcome("pubsub --window 16", Framing::RawSocket, router.address).unwrap().tally;
        assert!(tally.lost >= tally.sent / 10 && !tally.is_clean(), "{} of {}", tally.lost, tally.sent);
        let router = FakeRouter::start(Framing::RawSocket, Misdeed::RepeatEvery(10));
        let tally = outcome("pubsub --window 16", Framing::RawSocket, router.address).unwrap().tally;
        // The run is over when everything has come, so the last event may be repeated too late.
        assert!(tally.duplicated + 1 >= tally.sent / 10, "{} of {}", tally.duplicated, tally.sent);
        assert!(tally.duplicated > 0 && tally.lost == 0, "{} and {}", tally.duplicated, tally.lost);
    }

    #[test]
    fn a_router_that_delivers_nothing_is_noticed() {
        let router = FakeRouter::start(Framing::RawSocket, Misdeed::DropEvery(1));
        let patience = Duration::from_millis(900);
        let error = outcome_within(patience, "pubsub --window 4", Framing::RawSocket, router.address);
        match error {
            // The run was over before patience was.
            Ok(outcome) => assert_eq!(outcome.tally.lost, 4),
            Err(error) => assert!(matches!(error, RunError::Stalled { in_flight: 4, .. }), "{error}"),
        }
    }

    #[test]
    fn what_ends_a_session_is_told() {
        let router = FakeRouter::start(Framing::WebSocket, Misdeed::Abort);
        let error = outcome("pubsub", Framing::WebSocket, router.address).unwrap_err();
        assert!(error.to_string().contains("wamp.error.no_such_realm"), "{error}");
        let router = FakeRouter::start(Framing::RawSocket, Misdeed::CloseAfter(40));
        let error = outcome("pubsub", Framing::RawSocket, router.address).unwrap_err();
        assert!(matches!(error, RunError::Io(_)), "{error}");
        let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = outcome("rpc", Framing::RawSocket, unused).unwrap_err();
        assert!(error.to_string().starts_with(&format!("cannot connect to {unused}")), "{error}");
    }

    #[test]
    fn refused_calls_are_counted_and_told() {
        let router = FakeRouter::start(Framing::RawSocket, Misdeed::RefuseCalls);
        let tally = outcome("rpc --rate 500", Framing::RawSocket, router.address).unwrap().tally;
        assert_eq!((tally.refused, tally.lost), (tally.sent, 0));
        assert!(tally.first_fault.unwrap().contains("no_such_procedure"));
    }
}
