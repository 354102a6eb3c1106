//! What it costs that a receiver is on another node.
//!
//! `cargo bench --bench cross_node` starts two data planes of one shard each in one process, on one CPU, and runs the same
//! load with both ends on one node and with the receivers on the other, in turn. Messages are per second of CPU of both
//! data planes together. Beside it, what the same costs two relays that move the bytes without looking at them (see the
//! `relay_limit` bench): with both ends on one of them, and with the receivers on the other. No router does better than
//! that ratio where the bytes are all there is. `-- --rounds N`, `-- --seconds S`; without `--bench` it only checks that
//! events cross.

#[path = "../../src/allocator.rs"]
mod allocator;
#[path = "../relay_limit/bare.rs"]
mod bare;
#[path = "../../tests/relay/cluster.rs"]
mod cluster;
#[path = "../relay_limit/hub.rs"]
mod hub;
#[path = "../../tests/support/mod.rs"]
mod support;

use cluster::Cluster;
use common::config::Cores;
use serde_json::Value;
use std::error::Error;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

/// CPU of the first node, and of the second where they share one.
const NEAR_CPU: u32 = 0;
/// CPU of the load program, and of the second node where it has one of its own.
const LOAD_CPU: u32 = 1;
/// Cross-node messages per CPU-second over same-node ones.
const WANTED: f64 = 0.6;

const LOADS: &[(&str, &[&str])] = &[
    ("1 to 1, 1024 in flight", &["pubsub", "--window", "1024"]),
    ("1 to 1, 4096 in flight", &["pubsub", "--window", "4096"]),
    ("1 to 100, 64 in flight", &["pubsub", "--subscribers", "100", "--window", "64"]),
    ("RPC, 256 in flight", &["rpc", "--window", "256"]),
    ("RPC, 4096 in flight", &["rpc", "--window", "4096"]),
];

/// Where the two nodes run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Both on one CPU, and the load program, which never sleeps, on another.
    Together,
    /// Each on a CPU of its own. The load program shares the second one's, so it has to sleep.
    Apart,
}

impl Place {
    const ALL: [Self; 2] = [Self::Together, Self::Apart];

    fn word(self) -> &'static str {
        match self {
            Self::Together => "together",
            Self::Apart => "apart",
        }
    }

    fn of(word: &str) -> Result<Self, Box<dyn Error>> {
        let found = Self::ALL.into_iter().find(|place| place.word() == word);
        found.ok_or_else(|| format!("no place {word}").into())
    }

    /// CPUs of the two nodes.
    fn cpus(self) -> [u32; 2] {
        match self {
            Self::Together => [NEAR_CPU; 2],
            Self::Apart => [NEAR_CPU, LOAD_CPU],
        }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.as_slice() {
        [serve, kind, place] if serve == "--serve" => Place::of(place)
            .and_then(|place| if kind == "bare" { serve_bare(place) } else { serve_nodes(place) }),
        // `cargo test`; `cargo bench` says so.
        [] => smoke(),
        _ => compare(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cross_node: {error}");
            ExitCode::FAILURE
        }
    }
}

fn two_nodes(place: Place) -> Cluster {
    let cluster = Cluster::start_each(2, 1, |at, config| config.cores = Cores::List(vec![place.cpus()[at]]));
    cluster.wait_connected(&[0, 1]);
    cluster
}

fn smoke() -> Result<(), Box<dyn Error>> {
    let cluster = Cluster::start(2, 1, |_| {});
    cluster.wait_connected(&[0, 1]);
    let join = |at: usize| -> Result<support::Client, Box<dyn Error>> {
        let mut client = support::Client::connect_to(cluster.nodes[at].rawsocket, support::Wire::PLAIN)?;
        client.hello("realm1");
        Ok(client)
    };
    let (mut near, mut far) = (join(0)?, join(1)?);
    far.subscribe("com.example.t");
    support::eventually("an event crosses", || {
        near.publish("com.example.t", &serde_json::json!([1]));
        (!far.arrived().is_empty()).then_some(())
    });
    Ok(())
}

/// Serves until the standard input ends, and says where.
fn serve_nodes(place: Place) -> Result<(), Box<dyn Error>> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
    let cluster = two_nodes(place);
    let [near, far] = [0, 1].map(|at| cluster.nodes[at].rawsocket);
    println!("{near} {far} {near}");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Serves two relays in a row, and one alone for both ends, until the standard input ends.
fn serve_bare(place: Place) -> Result<(), Box<dyn Error>> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
    let listen = || TcpListener::bind("127.0.0.1:0");
    let (near, far, alone) = (listen()?, listen()?, listen()?);
    println!("{} {} {}", near.local_addr()?, far.local_addr()?, alone.local_addr()?);
    let onward = far.local_addr()?;
    let [near_cpu, far_cpu] = place.cpus();
    for (listener, onward, cpu) in
        [(alone, None, near_cpu), (far, None, far_cpu), (near, Some(onward), near_cpu)]
    {
        std::thread::spawn(move || {
            if let Err(error) = bare::relay(listener, cpu, onward) {
                eprintln!("a relay ended: {error}");
            }
        });
    }
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Two nodes or two relays, in a process of their own.
struct Pair {
    child: Child,
    relay: bool,
    place: Place,
    near: String,
    far: String,
    /// Where both ends may be.
    alone: String,
}

impl Drop for Pair {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

impl Pair {
    fn start(kind: &str, place: Place) -> Result<Self, Box<dyn Error>> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--serve", kind, place.word()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().ok_or("no output")?).read_line(&mut line)?;
        let addresses: Vec<String> = line.split_whitespace().map(String::from).collect();
        let [near, far, alone] = <[String; 3]>::try_from(addresses).map_err(|_| "it did not start")?;
        Ok(Self { relay: kind == "bare", place, near, far, alone, child })
    }

    /// Messages per CPU-second with the receivers on the other node, over those with both ends on one.
    fn ratio(&self, loadgen: &Path, load: &[&str], seconds: f64) -> Result<[f64; 3], Box<dyn Error>> {
        let near = self.measure(loadgen, load, false, seconds)?;
        let far = self.measure(loadgen, load, true, seconds)?;
        Ok([near, far, far / near])
    }

    /// Messages per CPU-second.
    fn measure(
        &self,
        loadgen: &Path,
        load: &[&str],
        cross: bool,
        seconds: f64,
    ) -> Result<f64, Box<dyn Error>> {
        let mut command = Command::new(loadgen);
        command.args(load);
        if self.place == Place::Together {
            command.arg("--spin");
        }
        if cross {
            command.args(["--address", &self.near, "--far-address", &self.far]);
        } else {
            command.args(["--address", &self.alone]);
        }
        if self.relay {
            command.arg("--relay");
        }
        command.args(["--router-pid", &self.child.id().to_string(), "--pin", &LOAD_CPU.to_string()]);
        command.args(["--duration", &format!("{seconds}s"), "--quiet", "--json", "-"]);
        let output = command.stderr(Stdio::inherit()).output()?;
        let report: Value = serde_json::from_slice(&output.stdout)?;
        if !output.status.success() {
            return Err(format!("{load:?}: {report}").into());
        }
        report["router"]["messages_per_cpu_second"].as_f64().ok_or_else(|| "no figure of the router".into())
    }
}

fn compare(arguments: &[String]) -> Result<(), Box<dyn Error>> {
    let (mut rounds, mut seconds) = (3, 1.5);
    let mut rest = arguments.iter().filter(|argument| *argument != "--bench");
    while let Some(argument) = rest.next() {
        let value = rest.next().ok_or_else(|| format!("{argument} needs a value"))?;
        match argument.as_str() {
            "--rounds" => rounds = value.parse::<usize>()?.max(1),
            "--seconds" => seconds = value.parse::<f64>()?,
            other => return Err(format!("unknown option {other}").into()),
        }
    }
    let loadgen = build_loadgen()?;
    println!("128 B, RawSocket, MessagePack; messages per CPU-second; medians of {rounds}");
    for place in Place::ALL {
        let [near, far] = place.cpus();
        println!("\nnodes on CPU {near} and CPU {far}, load on CPU {LOAD_CPU}");
        println!(
            "{:<26}{:>14}{:>14}{:>8}{:>14}  wanted",
            "load", "same node", "other node", "ratio", "bare relays"
        );
        let (nodes, relays) = (Pair::start("nodes", place)?, Pair::start("bare", place)?);
        for (name, load) in LOADS {
            let mut figures = Vec::new();
            for _ in 0..rounds {
                let [near, far, ratio] = nodes.ratio(&loadgen, load, seconds)?;
                figures.push([near, far, ratio, relays.ratio(&loadgen, load, seconds)?[2]]);
            }
            let [near, far, ratio, bare] =
                [0, 1, 2, 3].map(|at| median(&figures.iter().map(|figures| figures[at]).collect::<Vec<_>>()));
            println!("{name:<26}{near:>14.0}{far:>14.0}{ratio:>8.2}{bare:>14.2}  ≥ {WANTED}");
        }
    }
    Ok(())
}

fn median(of: &[f64]) -> f64 {
    let mut sorted = of.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// The load program, built like this bench.
fn build_loadgen() -> Result<PathBuf, Box<dyn Error>> {
    let built = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--release", "--quiet", "--package", "loadgen", "--manifest-path"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"))
        .status()?;
    if !built.success() {
        return Err("the load program does not build".into());
    }
    Ok(Path::new(env!("CARGO_BIN_EXE_signalbox")).with_file_name("loadgen"))
}
