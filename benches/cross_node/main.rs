//! What it costs that a receiver is on another node.
//!
//! `cargo bench --bench cross_node` starts two data planes of one shard each in one process, on one CPU, and runs the same
//! load with both ends on one node and with the receivers on the other, in turn. Messages are per second of CPU of both
//! data planes together. `-- --rounds N`, `-- --seconds S`; without `--bench` it only checks that events cross.

#[path = "../../tests/relay/cluster.rs"]
mod cluster;
#[path = "../../tests/support/mod.rs"]
mod support;

use cluster::Cluster;
use serde_json::Value;
use std::error::Error;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

/// CPU of both data planes, and of the load program.
const SERVER_CPU: u32 = 0;
const LOAD_CPU: u32 = 1;
/// Cross-node messages per CPU-second over same-node ones.
const WANTED: f64 = 0.6;

const LOADS: &[(&str, &[&str])] = &[
    ("1 to 1, 1024 in flight", &["pubsub", "--window", "1024", "--spin"]),
    ("1 to 100, 64 in flight", &["pubsub", "--subscribers", "100", "--window", "64", "--spin"]),
    ("RPC, 256 in flight", &["rpc", "--window", "256", "--spin"]),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.as_slice() {
        [serve] if serve == "--serve" => serve_nodes(),
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

fn two_nodes() -> Cluster {
    let cluster = Cluster::start(2, 1, |_| {});
    cluster.wait_connected(&[0, 1]);
    cluster
}

fn smoke() -> Result<(), Box<dyn Error>> {
    let cluster = two_nodes();
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
fn serve_nodes() -> Result<(), Box<dyn Error>> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
    let cluster = two_nodes();
    println!("{} {}", cluster.nodes[0].rawsocket, cluster.nodes[1].rawsocket);
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

struct Nodes {
    child: Child,
    near: String,
    far: String,
}

impl Drop for Nodes {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

fn start_nodes() -> Result<Nodes, Box<dyn Error>> {
    let mut child = Command::new("taskset")
        .args(["-c", &SERVER_CPU.to_string()])
        .arg(std::env::current_exe()?)
        .arg("--serve")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().ok_or("no output")?).read_line(&mut line)?;
    let (near, far) = line.trim().split_once(' ').ok_or("the nodes did not start")?;
    Ok(Nodes { near: near.to_owned(), far: far.to_owned(), child })
}

fn compare(arguments: &[String]) -> Result<(), Box<dyn Error>> {
    let (mut rounds, mut seconds) = (3, 2.0);
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
    let nodes = start_nodes()?;
    println!(
        "both nodes on CPU {SERVER_CPU}, load on CPU {LOAD_CPU}; 128 B, RawSocket, MessagePack; medians of {rounds}"
    );
    println!("{:<26}{:>16}{:>16}{:>8}  wanted", "load", "same node", "other node", "ratio");
    for (name, load) in LOADS {
        let mut figures = [Vec::new(), Vec::new()];
        for _ in 0..rounds {
            figures[0].push(measure(&loadgen, load, &nodes, false, seconds)?);
            figures[1].push(measure(&loadgen, load, &nodes, true, seconds)?);
        }
        let ratios: Vec<f64> = figures[1].iter().zip(&figures[0]).map(|(far, near)| far / near).collect();
        let [near, far] = figures.map(|figures| median(&figures));
        println!("{name:<26}{near:>16.0}{far:>16.0}{:>8.2}  ≥ {WANTED}", median(&ratios));
    }
    Ok(())
}

/// Messages per CPU-second.
fn measure(
    loadgen: &Path,
    load: &[&str],
    nodes: &Nodes,
    cross: bool,
    seconds: f64,
) -> Result<f64, Box<dyn Error>> {
    let mut command = Command::new(loadgen);
    command.args(load).args(["--address", &nodes.near]);
    if cross {
        command.args(["--far-address", &nodes.far]);
    }
    command.args(["--router-pid", &nodes.child.id().to_string(), "--pin", &LOAD_CPU.to_string()]);
    command.args(["--duration", &format!("{seconds}s"), "--quiet", "--json", "-"]);
    let output = command.stderr(Stdio::inherit()).output()?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    if !output.status.success() {
        return Err(format!("{load:?}: {report}").into());
    }
    report["router"]["messages_per_cpu_second"].as_f64().ok_or_else(|| "no figure of the router".into())
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
