//! One node in its namespace, with what can happen to its processes and its disk.

use crate::net::{Namespace, must};
use crate::support::http::{self, Answer};
use serde_json::Value;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};

pub struct Node {
    pub index: usize,
    pub ip: Ipv4Addr,
    folder: PathBuf,
    run: Option<Child>,
    /// A tmpfs is mounted as the data folder.
    small_disk: bool,
}

impl Node {
    /// Writes the configuration; `start` starts it.
    pub fn new(index: usize, ip: Ipv4Addr, folder: &Path, text: &str) -> Self {
        let folder = folder.join(format!("node{index}"));
        std::fs::create_dir_all(folder.join("data")).expect("a folder for the node");
        let node = Self { index, ip, folder, run: None, small_disk: false };
        let data = node.data();
        std::fs::write(node.config(), format!("data_dir = {data:?}\n{text}")).expect("the config file");
        node
    }

    pub fn rawsocket(&self) -> SocketAddr {
        (self.ip, RAWSOCKET_PORT).into()
    }

    /// The WebSocket's URL.
    pub fn url(&self) -> String {
        format!("ws://{}:{WEBSOCKET_PORT}/ws", self.ip)
    }

    pub fn admin(&self) -> SocketAddr {
        (self.ip, ADMIN_PORT).into()
    }

    pub fn start(&mut self, namespace: &Namespace) {
        assert!(self.run.is_none(), "the node runs already");
        let log = File::options().create(true).append(true).open(self.log_path()).expect("the log file");
        let mut command = self.command(&["run"]);
        command.stdout(log.try_clone().expect("the log file")).stderr(log);
        self.run = Some(namespace.run(|| command.spawn().expect("the signalbox binary")));
    }

    /// `signalbox <arguments>` for this node.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_signalbox"));
        command.args(arguments).arg("--config").arg(self.config()).stdin(Stdio::null());
        command
    }

    /// Runs `signalbox <arguments>` beside the node.
    pub fn operator(&self, namespace: &Namespace, arguments: &[&str]) -> Output {
        let mut command = self.command(arguments);
        namespace.run(|| command.output().expect("the command runs"))
    }

    pub fn get(&self, path: &str) -> io::Result<Answer> {
        http::get(self.admin(), path)
    }

    /// A page that is JSON; None when the node does not answer.
    pub fn page(&self, path: &str) -> Option<Value> {
        let answer = self.get(path).ok()?;
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        Some(serde_json::from_str(&answer.body).expect("JSON"))
    }

    pub fn is_ready(&self) -> bool {
        self.get("/ready").is_ok_and(|answer| answer.status == 200)
    }

    /// The sum over all labels that hold `labels` of a metric.
    pub fn metric(&self, name: &str, labels: &str) -> f64 {
        let answer = self.get("/metrics").expect("/metrics");
        let values = answer.body.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let wanted = series.split('{').next()? == name && series.contains(labels);
            wanted.then(|| value.parse::<f64>().expect("a number"))
        });
        values.sum()
    }

    /// `kill -9` of both processes.
    pub fn kill(&mut self) {
        let pids = self.pids();
        pids.iter().for_each(|pid| signal(*pid, libc::SIGKILL));
        if let Some(mut run) = self.run.take() {
            run.wait().expect("waited");
        }
    }

    /// `kill -9` of the control plane alone; the data plane goes on.
    pub fn kill_control(&mut self) {
        let mut run = self.run.take().expect("the node runs");
        run.kill().expect("killed");
        run.wait().expect("waited");
    }

    pub fn stop_processes(&self) {
        self.pids().iter().for_each(|pid| signal(*pid, libc::SIGSTOP));
    }

    pub fn continue_processes(&self) {
        self.pids().iter().for_each(|pid| signal(*pid, libc::SIGCONT));
    }

    /// SIGTERM: drains and waits for the end.
    pub fn drain(&mut self) -> ExitStatus {
        let mut run = self.run.take().expect("the node runs");
        signal(run.id(), libc::SIGTERM);
        crate::support::eventually("the node drains", || run.try_wait().expect("waited"))
    }

    fn pids(&self) -> Vec<u32> {
        let data = std::fs::read_to_string(self.data().join("data.lock")).ok();
        let data = data.and_then(|text| text.trim().parse().ok());
        // A lock file outlives its process; the pid may be another's by now.
        let own = |pid: &u32| {
            let executable = std::fs::read_link(format!("/proc/{pid}/exe"));
            executable.is_ok_and(|path| path == Path::new(env!("CARGO_BIN_EXE_signalbox")))
        };
        self.run.iter().map(Child::id).chain(data.filter(own)).collect()
    }

    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    pub fn config(&self) -> PathBuf {
        self.folder.join("config.toml")
    }

    fn log_path(&self) -> PathBuf {
        self.folder.join("log")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Empties the data folder of a node that does not run.
    pub fn wipe(&self) {
        assert!(self.run.is_none(), "the node runs");
        std::fs::remove_dir_all(self.data()).expect("the data folder is removed");
        std::fs::create_dir(self.data()).expect("the data folder");
    }

    /// Copies the data folder of a node that does not run.
    pub fn back_up(&self) {
        assert!(self.run.is_none(), "the node runs");
        must(Command::new("cp").arg("-a").arg(self.data()).arg(self.folder.join("backup")));
    }

    /// Puts the copy in the place of the data folder.
    pub fn restore(&self) {
        assert!(self.run.is_none(), "the node runs");
        std::fs::remove_dir_all(self.data()).expect("the data folder is removed");
        must(Command::new("cp").arg("-a").arg(self.folder.join("backup")).arg(self.data()));
    }

    /// Makes the data folder of a node that never ran a disk of its own.
    pub fn mount_small_disk(&mut self, size: &str) {
        let options = format!("size={size},mode=700");
        must(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(self.data()));
        self.small_disk = true;
    }

    /// Fills the disk up to its last byte; the path of the file that does it.
    pub fn fill_disk(&self) -> PathBuf {
        let path = self.data().join("ballast");
        let mut file = File::create(&path).expect("the ballast");
        let zeros = vec![0; 64 << 10];
        while io::Write::write_all(&mut file, &zeros).is_ok() {}
        path
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Stopped processes die of SIGKILL too.
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let tail = log.lines().count().saturating_sub(LOG_LINES_SHOWN);
            let tail: Vec<_> = log.lines().skip(tail).collect();
            eprintln!("--- end of the log of node {} ({}) ---\n{}", self.index, self.ip, tail.join("\n"));
        }
        if self.small_disk {
            let _ = Command::new("umount").arg("--lazy").arg(self.data()).status();
        }
    }
}

fn signal(pid: u32, signal: libc::c_int) {
    // SAFETY: kill takes two numbers and touches no memory of ours.
    unsafe { libc::kill(pid.cast_signed(), signal) };
}

pub const WEBSOCKET_PORT: u16 = 18_080;
pub const ADMIN_PORT: u16 = 18_081;
pub const RAWSOCKET_PORT: u16 = 18_082;
pub const CLUSTER_PORT: u16 = 18_083;
const LOG_LINES_SHOWN: usize = 40;
