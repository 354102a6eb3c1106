//! A real node: both processes of the built binary, in a folder of its own.

use super::client::Wire;
use super::{eventually, http};
use common::transport::Framing;
use serde_json::Value;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

/// What a node is started with; the defaults suit most tests.
#[derive(Clone, Debug)]
pub struct Setup {
    /// CPUs of the shards; by default the first two this process may use.
    pub cores: String,
    /// TOML keys added to both listeners.
    pub listener: String,
    /// TOML keys added to the WebSocket listener.
    pub websocket: String,
    /// TOML tables added at the end, for example `[limits]`.
    pub tables: String,
}

impl Default for Setup {
    fn default() -> Self {
        let cpus = dataplane::cpus::allowed().expect("the affinity of this process");
        let cores = cpus.iter().take(2).map(u32::to_string).collect::<Vec<_>>().join(",");
        Self { cores, listener: String::new(), websocket: String::new(), tables: String::new() }
    }
}

impl Setup {
    pub fn tables(tables: &str) -> Self {
        Self { tables: tables.to_owned(), ..Self::default() }
    }

    /// The number of shards of a node started like this.
    pub fn shards(&self) -> usize {
        self.cores.split(',').count()
    }

    fn text(&self, data_dir: &Path) -> String {
        let Self { cores, listener, websocket, tables } = self;
        let any = "address = \"127.0.0.1:0\"";
        format!(
            "data_dir = {data_dir:?}\ncores = {cores:?}\n\
             [admin]\n{any}\n\
             [[listener]]\ntransport = \"websocket\"\n{any}\n{listener}\n{websocket}\n\
             [[listener]]\ntransport = \"rawsocket\"\n{any}\n{listener}\n\
             {tables}\n"
        )
    }
}

/// A running node. Dropped, both its processes are killed and its folder is removed.
#[derive(Debug)]
pub struct Node {
    pub setup: Setup,
    folder: tempfile::TempDir,
    control: Option<Child>,
    websocket: SocketAddr,
    rawsocket: SocketAddr,
}

impl Node {
    /// A node with default settings that is ready to serve.
    pub fn start() -> Self {
        Self::with(Setup::default())
    }

    /// A node that is ready to serve.
    pub fn with(setup: Setup) -> Self {
        let folder = tempfile::tempdir().expect("a folder for the node");
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut node = Self { setup, folder, control: None, websocket: nowhere, rawsocket: nowhere };
        std::fs::write(node.config_path(), node.setup.text(&node.data_dir())).expect("the config file");
        node.start_control();
        node
    }

    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub fn config_path(&self) -> PathBuf {
        self.folder.path().join("config.toml")
    }

    /// The command `signalbox <arguments> --config <this node's>`.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_signalbox"));
        command.args(arguments).arg("--config").arg(self.config_path()).stdin(Stdio::null());
        command
    }

    /// Starts `signalbox run` and waits until the node is ready.
    pub fn start_control(&mut self) {
        assert!(self.control.is_none(), "the control plane runs already");
        // The old process's address must not be taken for the new one's.
        let _ = std::fs::remove_file(self.data_dir().join("admin.address"));
        let log = File::options().create(true).append(true).open(self.log_path()).expect("the log file");
        let mut command = self.command(&["run"]);
        command.stdout(log.try_clone().expect("the log file")).stderr(log);
        self.control = Some(command.spawn().expect("the signalbox binary"));
        self.wait_ready();
    }

    /// Waits until `/ready` says yes and learns the ports.
    pub fn wait_ready(&mut self) {
        eventually("the node is ready", || {
            if let Some(status) = self.control.as_mut().and_then(|child| child.try_wait().ok().flatten()) {
                panic!("the control plane ended: {status}");
            }
            let answer = http::get(self.admin()?, "/ready").ok()?;
            (answer.status == 200).then_some(())
        });
        let status = self.status();
        let address = |name: &str| {
            let listeners = status["data_plane"]["listeners"].as_array().expect("status names the listeners");
            let listener = listeners.iter().find(|listener| listener["transport"] == name);
            let address = listener.and_then(|listener| listener["address"].as_str());
            address.expect("status names the address").parse().expect("an address")
        };
        self.websocket = address("websocket");
        self.rawsocket = address("rawsocket");
    }

    /// Where clients of `wire` connect.
    pub fn address(&self, wire: Wire) -> SocketAddr {
        match wire.framing {
            Framing::RawSocket => self.rawsocket,
            _ => self.websocket,
        }
    }

    /// The admin endpoint, once the control plane has written where it is.
    pub fn admin(&self) -> Option<SocketAddr> {
        std::fs::read_to_string(self.data_dir().join("admin.address")).ok()?.trim().parse().ok()
    }

    /// `/status`.
    pub fn status(&self) -> Value {
        let answer = http::get(self.admin().expect("the admin address"), "/status").expect("/status");
        assert_eq!(answer.status, 200, "{}", answer.body);
        serde_json::from_str(&answer.body).expect("/status is JSON")
    }

    /// The sum over all labels of a metric in `/metrics`. The shards report once a second.
    pub fn metric(&self, name: &str) -> f64 {
        let answer = http::get(self.admin().expect("the admin address"), "/metrics").expect("/metrics");
        assert_eq!(answer.status, 200, "{}", answer.body);
        let values = answer.body.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let series_name = series.split('{').next()?;
            (series_name == name).then(|| value.parse::<f64>().expect("a number"))
        });
        values.sum()
    }

    /// Waits until a metric has a value that suits.
    pub fn await_metric(&self, name: &str, suits: impl Fn(f64) -> bool) -> f64 {
        eventually(&format!("{name} has the value wanted"), || Some(self.metric(name)).filter(|&v| suits(v)))
    }

    pub fn control_pid(&self) -> u32 {
        self.control.as_ref().expect("the control plane runs").id()
    }

    /// The data plane's pid, from its lock file.
    pub fn data_pid(&self) -> Option<u32> {
        let text = std::fs::read_to_string(self.data_dir().join("data.lock")).ok()?;
        let pid = text.trim().parse().ok()?;
        let executable = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?;
        (executable == Path::new(env!("CARGO_BIN_EXE_signalbox"))).then_some(pid)
    }

    /// Resident memory of the data plane, bytes.
    pub fn data_resident(&self) -> u64 {
        let pid = self.data_pid().expect("the data plane runs");
        let text = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1_024
    }

    /// `kill -9` of the control plane; the data plane goes on.
    pub fn kill_control(&mut self) {
        let mut control = self.control.take().expect("the control plane runs");
        control.kill().expect("killed");
        control.wait().expect("waited");
    }

    /// `kill -9` of the data plane.
    pub fn kill_data(&self) -> u32 {
        let pid = self.data_pid().expect("the data plane runs");
        signal(pid, libc::SIGKILL);
        eventually("the data plane is gone", || (self.data_pid() != Some(pid)).then_some(()));
        pid
    }

    /// SIGTERM to the control plane, which passes it on.
    pub fn terminate(&self) {
        signal(self.control_pid(), libc::SIGTERM);
    }

    /// Waits until the control plane has ended.
    pub fn wait(&mut self) -> ExitStatus {
        let mut control = self.control.take().expect("the control plane runs");
        eventually("the control plane ends", || control.try_wait().expect("waited"))
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("log")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut control) = self.control.take() {
            // It may have ended by itself.
            let _ = control.kill();
            let _ = control.wait();
        }
        if let Some(pid) = self.data_pid() {
            signal(pid, libc::SIGKILL);
        }
        if std::thread::panicking() {
            eprintln!("--- log of the node ---\n{}--- end of log ---", self.log());
        }
    }
}

fn signal(pid: u32, signal: libc::c_int) {
    // SAFETY: kill takes two numbers and touches no memory of ours.
    unsafe { libc::kill(pid.cast_signed(), signal) };
}
