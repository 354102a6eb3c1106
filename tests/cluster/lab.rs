//! Runs scenarios, several at a time, inside namespaces of their own; counts what passed, failed and was skipped.

use crate::cluster::{Cluster, START_MAX};
use crate::scenarios::{ALL, Scenario};
use std::fmt::Display;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

/// What the command line asks for. Flags of the standard test harness are accepted and mean nothing here.
pub struct Options {
    pub list: bool,
    filters: Vec<String>,
}

impl Options {
    pub fn read(arguments: impl Iterator<Item = String>) -> Self {
        let mut options = Self { list: false, filters: vec![] };
        for argument in arguments {
            match argument.as_str() {
                "--list" => options.list = true,
                flag if flag.starts_with('-') => {}
                _ => options.filters.push(argument),
            }
        }
        options
    }

    fn wants(&self, scenario: &Scenario) -> bool {
        self.filters.is_empty() || self.filters.iter().any(|filter| scenario.name.contains(filter.as_str()))
    }
}

/// What a scenario works in.
pub struct Lab {
    pub name: &'static str,
    /// Number of the scenario's cluster: its subnet.
    number: u8,
    folder: PathBuf,
    started: Instant,
    pub python: Option<PathBuf>,
}

impl Lab {
    /// Starts a cluster of `nodes` nodes in the scenario's subnet and waits until it is whole. At most one a scenario.
    pub fn cluster(&self, nodes: usize) -> Cluster {
        let mut cluster = self.cluster_prepared(nodes);
        (0..nodes).for_each(|node| cluster.launch(node));
        cluster.await_whole(START_MAX);
        cluster
    }

    /// Everything but the processes.
    pub fn cluster_prepared(&self, nodes: usize) -> Cluster {
        Cluster::prepare(self.number, &self.folder, nodes, &[0, 1])
    }

    /// A cluster whose nodes run and do not know of each other.
    pub fn cluster_without_seeds(&self, nodes: usize) -> Cluster {
        let mut cluster = Cluster::prepare(self.number, &self.folder, nodes, &[]);
        (0..nodes).for_each(|node| _ = cluster.launch_ready(node));
        cluster
    }

    /// Prints a line with the scenario's name and the seconds since its start.
    pub fn say(&self, text: impl Display) {
        say(format_args!("{:>7.1} s  {}: {text}", self.started.elapsed().as_secs_f64(), self.name));
    }
}

/// True in the process that has the namespaces.
pub fn is_inside() -> bool {
    std::env::var_os(OUTER_PID).is_some()
}

/// Starts this program again inside namespaces; without the means, says that everything is skipped.
pub fn enter() -> ExitCode {
    remove_leftovers();
    if let Err(reason) = can_enter() {
        let count = ALL.len();
        say(format_args!("skipped cluster: {reason}"));
        say(format_args!("cluster: 0 passed, 0 failed, {count} skipped"));
        return if is_set("SIGNALBOX_CLUSTER_REQUIRED") { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    let program = std::env::current_exe().expect("the path of this program");
    let status = unshare()
        .arg(program)
        .args(std::env::args_os().skip(1))
        .env(OUTER_PID, std::process::id().to_string())
        .status()
        .expect("unshare runs, it did a moment ago");
    if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn unshare() -> Command {
    let mut command = Command::new("unshare");
    command.args(["--pid", "--mount", "--net", "--fork", "--kill-child", "--mount-proc"]);
    command
}

fn can_enter() -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("network namespaces need root".into());
    }
    for tool in ["unshare", "ip", "nft", "mount", "cp"] {
        let found = Command::new(tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if found.is_err() {
            return Err(format!("{tool} is not installed"));
        }
    }
    let tried = unshare().args(["nft", "list", "ruleset"]).output().map_err(|error| error.to_string())?;
    if !tried.status.success() {
        let text = String::from_utf8_lossy(&tried.stderr);
        return Err(format!("namespaces are forbidden here: {}", text.trim()));
    }
    Ok(())
}

/// Runs the scenarios asked for.
pub fn run(options: &Options) -> ExitCode {
    let outer = std::env::var(OUTER_PID).expect("set by enter()");
    let folder = base().join(outer);
    crate::net::ip(&["link", "set", "lo", "up"]);
    let python = python();
    let mut results = Results::default();
    let mut chosen = vec![];
    for (index, scenario) in ALL.iter().enumerate().filter(|(_, scenario)| options.wants(scenario)) {
        match missing(scenario, python.as_deref()) {
            None => chosen.push((u8::try_from(index + 1).expect("fewer than 255 scenarios"), scenario)),
            Some(reason) => results.skip(scenario.name, reason),
        }
    }
    // Long ones first, so that none of them is alone at the end.
    chosen.sort_by_key(|(_, scenario)| std::cmp::Reverse(scenario.seconds));
    let jobs = std::env::var("SIGNALBOX_CLUSTER_JOBS").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    let next = AtomicUsize::new(0);
    let results = Mutex::new(results);
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(&(number, scenario)) = chosen.get(next.fetch_add(1, Relaxed)) {
                    let passed = run_one(number, scenario, &folder, python.clone());
                    results.lock().expect("nobody panics with it").add(scenario.name, passed);
                }
            });
        }
    });
    let results = results.into_inner().expect("nobody panics with it");
    say(format_args!(
        "cluster: {} passed, {} failed, {} skipped",
        results.passed, results.failed, results.skipped
    ));
    if results.failed == 0 {
        let _ = std::fs::remove_dir_all(&folder);
        return ExitCode::SUCCESS;
    }
    say(format_args!("data and logs of the nodes: {} (until the next run)", folder.display()));
    ExitCode::FAILURE
}

fn run_one(number: u8, scenario: &Scenario, folder: &Path, python: Option<PathBuf>) -> bool {
    let started = Instant::now();
    let folder = folder.join(scenario.name);
    std::fs::create_dir_all(&folder).expect("a folder for the scenario");
    let lab = Lab { name: scenario.name, number, folder, started, python };
    // Its thread has its name, so that a panic's message says whose it is.
    let passed = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name(scenario.name.to_owned());
        let lab = &lab;
        let act = move || catch_unwind(AssertUnwindSafe(|| (scenario.run)(lab))).is_ok();
        thread.spawn_scoped(scope, act).expect("a thread").join().unwrap_or(false)
    });
    let seconds = started.elapsed().as_secs_f64();
    say(format_args!("{} {} ({seconds:.1} s)", if passed { "passed" } else { "FAILED" }, scenario.name));
    passed
}

/// Why a scenario cannot run here.
fn missing(scenario: &Scenario, python: Option<&Path>) -> Option<&'static str> {
    if scenario.long && !is_set("SIGNALBOX_CLUSTER_LONG") {
        return Some("it is long; SIGNALBOX_CLUSTER_LONG=1 runs it");
    }
    if scenario.python && python.is_none() {
        return Some("Autobahn for Python is not installed; `tests/interop/run.sh install` does that");
    }
    None
}

fn python() -> Option<PathBuf> {
    let installed = || target().join("interop/venv/bin/python");
    let path = std::env::var_os("AUTOBAHN_PYTHON").map_or_else(installed, PathBuf::from);
    let check = Command::new(&path).args(["-c", "import autobahn"]).stderr(Stdio::null()).status();
    check.is_ok_and(|status| status.success()).then_some(path)
}

#[derive(Default)]
struct Results {
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Results {
    fn skip(&mut self, name: &str, reason: &str) {
        say(format_args!("skipped {name}: {reason}"));
        self.skipped += 1;
        if is_set("SIGNALBOX_CLUSTER_REQUIRED") && !reason.contains("SIGNALBOX_CLUSTER_LONG") {
            self.failed += 1;
        }
    }

    fn add(&mut self, _name: &str, passed: bool) {
        if passed {
            self.passed += 1;
        } else {
            self.failed += 1;
        }
    }
}

/// The build's target folder.
pub fn target() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("target/tmp has a parent").to_owned()
}

fn base() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("cluster")
}

/// Folders of runs whose process is gone: they were killed, or failed and left their logs.
fn remove_leftovers() {
    for entry in std::fs::read_dir(base()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let dead = name.to_str().is_some_and(|pid| !Path::new("/proc").join(pid).exists());
        if dead {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

fn is_set(variable: &str) -> bool {
    std::env::var(variable).is_ok_and(|value| value == "1")
}

fn say(text: impl Display) {
    let mut out = std::io::stdout().lock();
    // Whoever reads this may have gone away; the exit status tells the same.
    let _ = writeln!(out, "{text}");
    let _ = out.flush();
}

/// Set in the process that has the namespaces, to the pid of the one that made them.
const OUTER_PID: &str = "SIGNALBOX_CLUSTER_OUTER_PID";
