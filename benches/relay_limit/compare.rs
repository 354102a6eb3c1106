//! The side-by-side run: each load in turn against each of the three, round after round, medians at the end.

use std::error::Error;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// CPU of the relays and of the data plane.
const SERVER_CPU: u32 = 0;
/// CPU of the load program and of the control plane.
const LOAD_CPU: u32 = 1;
/// Longest wait for a server to answer.
const START_TIME: Duration = Duration::from_secs(20);

/// One load and what is asked of it.
struct Load {
    name: &'static str,
    arguments: &'static [&'static str],
    figure: Figure,
    /// The router's figure over the bare relay's: at least this for [`Figure::PerCpuSecond`], at most for the others.
    wanted: f64,
}

/// What is compared.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Figure {
    /// Messages (for RPC: results, which are two relayed messages on both sides) per second of CPU.
    PerCpuSecond,
    /// Microseconds.
    P50,
    P99,
}

/// In the first three the load program never sleeps (`--spin`): waking a sleeper on another core costs the sender an
/// inter-processor interrupt for each send, and a relay that keeps the load program busy pays none, so what is compared
/// would be who sleeps. The latencies are taken from a load program that sleeps, as clients do.
const LOADS: &[Load] = &[
    Load {
        name: "1 to 1, 1024 in flight",
        arguments: &["pubsub", "--window", "1024", "--spin"],
        figure: Figure::PerCpuSecond,
        wanted: 0.5,
    },
    Load {
        name: "1 to 100, 64 in flight",
        arguments: &["pubsub", "--subscribers", "100", "--window", "64", "--spin"],
        figure: Figure::PerCpuSecond,
        wanted: 0.6,
    },
    Load {
        name: "RPC, 256 in flight",
        arguments: &["rpc", "--window", "256", "--spin"],
        figure: Figure::PerCpuSecond,
        wanted: 0.4,
    },
    Load {
        name: "RPC, 1 in flight, p50",
        arguments: &["rpc", "--window", "1"],
        figure: Figure::P50,
        wanted: 1.2,
    },
    Load {
        name: "100 pairs, 30000/s, p99",
        arguments: &["pubsub", "-P", "100", "-S", "100", "-T", "100", "--rate", "30000"],
        figure: Figure::P99,
        wanted: 3.0,
    },
];

/// How long and what.
pub struct Options {
    rounds: usize,
    seconds: f64,
    /// Only loads whose name holds this.
    only: String,
}

impl Options {
    /// # Errors
    /// An unknown option or a value that is none.
    pub fn parse(arguments: &[String]) -> Result<Self, Box<dyn Error>> {
        let mut options = Self { rounds: 3, seconds: 2.0, only: String::new() };
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            let mut value = || rest.next().ok_or_else(|| format!("{argument} needs a value"));
            match argument.as_str() {
                // What cargo passes to every bench.
                "--bench" => {}
                "--rounds" => options.rounds = value()?.parse::<usize>()?.max(1),
                "--seconds" => options.seconds = value()?.parse()?,
                "--only" => options.only = value()?.clone(),
                other => return Err(format!("unknown option {other}").into()),
            }
        }
        Ok(options)
    }
}

/// A process to measure.
struct Server {
    name: &'static str,
    address: SocketAddr,
    /// What the load program is told of it.
    extra: Vec<String>,
    child: Child,
}

impl Drop for Server {
    fn drop(&mut self) {
        // SIGTERM: the router ends both of its processes.
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}

/// Runs everything and prints the table.
///
/// # Errors
/// A program that does not start or answer, or a load that loses messages.
pub fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let loadgen = build_loadgen()?;
    let servers = [start_relay("bare")?, start_relay("driven")?, start_router(folder.path())?];
    println!(
        "servers on CPU {SERVER_CPU}, load on CPU {LOAD_CPU}; 128 B, RawSocket, MessagePack; {} rounds of {} s, medians",
        options.rounds, options.seconds
    );
    println!(
        "{:<26}{:>18}{:>18}{:>18}{:>9}{:>9}  wanted",
        "load", "bare", "driven", "router", "driven", "router"
    );
    let mut all_met = true;
    for load in LOADS.iter().filter(|load| load.name.contains(&options.only)) {
        let mut figures = vec![Vec::new(); servers.len()];
        for _ in 0..options.rounds {
            for (server, figures) in servers.iter().zip(&mut figures) {
                figures.push(measure(&loadgen, load, server, options.seconds, folder.path())?);
            }
        }
        all_met &= print_row(load, &figures);
    }
    println!("{}", if all_met { "every ratio is as wanted" } else { "NOT every ratio is as wanted" });
    Ok(())
}

/// Passes a few bytes through both relays.
///
/// # Errors
/// When they do not arrive as they were sent.
pub fn smoke() -> Result<(), Box<dyn Error>> {
    for kind in ["bare", "driven"] {
        let server = start_relay(kind)?;
        let connect = |preamble: &[u8; 8]| -> Result<TcpStream, Box<dyn Error>> {
            let mut stream = TcpStream::connect(server.address)?;
            stream.set_read_timeout(Some(START_TIME))?;
            stream.write_all(preamble)?;
            Ok(stream)
        };
        let (mut left, mut right) = (connect(b"RLY1\x02\0\x01\0")?, connect(b"RLY1\x02\0\x01\0")?);
        let mut got = [0];
        // What comes before both are there is dropped.
        right.set_read_timeout(Some(Duration::from_millis(20)))?;
        while right.read(&mut got).is_err() {
            left.write_all(b"?")?;
        }
        let bytes: Vec<u8> = (0..1 << 20).map(|n: u32| (n % 251) as u8).collect();
        let expected = bytes.clone();
        let writer = std::thread::spawn(move || left.write_all(b"!").and_then(|()| left.write_all(&bytes)));
        right.set_read_timeout(Some(START_TIME))?;
        while got != *b"!" {
            right.read_exact(&mut got)?;
        }
        let mut received = vec![0; expected.len()];
        right.read_exact(&mut received)?;
        writer.join().map_err(|_| "the writer panicked")??;
        if received != expected {
            return Err(format!("{kind} changes what it relays").into());
        }
    }
    Ok(())
}

/// The ratios are medians of the rounds' ratios: a round's runs follow each other, and the machine changes its speed
/// from minute to minute.
fn print_row(load: &Load, figures: &[Vec<f64>]) -> bool {
    let ratio =
        |of: &[f64]| median(&of.iter().zip(&figures[0]).map(|(of, bare)| of / bare).collect::<Vec<_>>());
    let (driven, router) = (ratio(&figures[1]), ratio(&figures[2]));
    let (met, sign) = match load.figure {
        Figure::PerCpuSecond => (router >= load.wanted, '≥'),
        Figure::P50 | Figure::P99 => (router <= load.wanted, '≤'),
    };
    let unit = if load.figure == Figure::PerCpuSecond { "/CPU-s" } else { "us" };
    let shown: String =
        figures.iter().map(|of| format!("{:>18}", format!("{:.0} {unit}", median(of)))).collect();
    println!(
        "{:<26}{shown}{driven:>9.2}{router:>9.2}  {sign} {} {}",
        load.name,
        load.wanted,
        if met { "" } else { "MISSED" }
    );
    met
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn measure(
    loadgen: &Path,
    load: &Load,
    server: &Server,
    seconds: f64,
    folder: &Path,
) -> Result<f64, Box<dyn Error>> {
    let report = folder.join("report.json");
    let output = Command::new(loadgen)
        .args(load.arguments)
        .args(["--payload", "128", "--transport", "rawsocket", "--serializer", "msgpack", "--quiet"])
        .args(["--address", &server.address.to_string(), "--pin", &LOAD_CPU.to_string()])
        .args(["--warmup", "500ms", "--duration", &format!("{}ms", (seconds * 1e3) as u64)])
        .arg("--json")
        .arg(&report)
        .args(&server.extra)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{}: {} failed: {}", server.name, load.name, why.trim()).into());
    }
    let report: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&report)?)?;
    let pointer = match load.figure {
        Figure::PerCpuSecond => "/router/messages_per_cpu_second",
        Figure::P50 => "/latency_us/p50",
        Figure::P99 => "/latency_us/p99",
    };
    let figure = report.pointer(pointer).and_then(serde_json::Value::as_f64);
    figure.ok_or_else(|| format!("{}: no {pointer} in the report: {report}", server.name).into())
}

/// The load program next to the router's executable.
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

fn start_relay(kind: &'static str) -> Result<Server, Box<dyn Error>> {
    let address = free_address()?;
    let child = Command::new(std::env::current_exe()?)
        .args(["--serve", kind, &address.to_string(), &SERVER_CPU.to_string()])
        .spawn()?;
    let extra = vec!["--relay".into(), "--router-pid".into(), child.id().to_string()];
    let server = Server { name: kind, address, extra, child };
    wait_for(&server, address)?;
    Ok(server)
}

fn start_router(folder: &Path) -> Result<Server, Box<dyn Error>> {
    let (address, admin) = (free_address()?, free_address()?);
    let config = folder.join("signalbox.toml");
    let mut file = std::fs::File::create(&config)?;
    writeln!(
        file,
        "data_dir = {:?}\ncores = \"{SERVER_CPU}\"\ncontrol.cpus = \"{LOAD_CPU}\"\nadmin.address = \"{admin}\"\n\
         [[listener]]\ntransport = \"rawsocket\"\naddress = \"{address}\"",
        folder.join("data"),
    )?;
    let child = Command::new(env!("CARGO_BIN_EXE_signalbox"))
        .args(["run", "--config"])
        .arg(&config)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let extra = ["--router-pid", "auto", "--admin", &admin.to_string()].map(String::from).to_vec();
    let server = Server { name: "router", address, extra, child };
    wait_for(&server, address)?;
    wait_for(&server, admin)?;
    Ok(server)
}

/// An address nobody listens on at this moment.
fn free_address() -> Result<SocketAddr, Box<dyn Error>> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

fn wait_for(server: &Server, address: SocketAddr) -> Result<(), Box<dyn Error>> {
    let deadline = Instant::now() + START_TIME;
    while TcpStream::connect(address).is_err() {
        if Instant::now() > deadline {
            return Err(format!("{} does not answer on {address}", server.name).into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
