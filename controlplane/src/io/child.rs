//! Starts the data plane and starts it again when it dies.
//!
//! The child outlives us: it is a process group of its own, gets no signal when we die, and a control plane that comes
//! back finds its lock held and lets it link instead of starting another.

use super::driver::{Handle, LinkState};
use super::lock;
use crate::placement;
use crate::supervise::{End, Supervisor, Verdict};
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::{sleep, sleep_until, timeout};
use tracing::{error, info, warn};

/// How the data plane is started.
#[derive(Clone, Debug)]
pub struct DataCommand {
    pub program: PathBuf,
    pub arguments: Vec<OsString>,
    /// The CPUs it may run on; we may be bound to others.
    pub cpus: Vec<u32>,
    /// `<data_dir>/data.lock`
    pub lock: PathBuf,
    /// How long a drain may take.
    pub drain_max: Duration,
}

/// The task that keeps a data plane running.
pub struct Keeper {
    command: DataCommand,
    link: watch::Receiver<LinkState>,
    stop: watch::Receiver<Stop>,
    handle: Handle,
    supervisor: Supervisor,
}

/// What the operator asked for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub enum Stop {
    #[default]
    No,
    Drain,
    /// A second signal: do not wait any longer.
    Now,
}

/// Why the keeper ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KeeperEnd {
    Stopped,
    /// The data plane cannot be started.
    GaveUp,
}

enum Watched {
    Ended(End),
    Stop,
}

impl Keeper {
    pub fn new(
        command: DataCommand,
        link: watch::Receiver<LinkState>,
        stop: watch::Receiver<Stop>,
        handle: Handle,
    ) -> Self {
        Self { command, link, stop, handle, supervisor: Supervisor::default() }
    }

    /// Keeps a data plane running until it is told to stop, then drains it.
    pub async fn run(mut self) -> KeeperEnd {
        if self.is_running() {
            info!("a data plane is running; it is adopted");
            if let Watched::Stop = self.watch_adopted().await {
                self.drain_adopted().await;
                return KeeperEnd::Stopped;
            }
            warn!("the adopted data plane has ended; starting another");
        }
        let mut start_at = Instant::now();
        loop {
            tokio::select! {
                () = sleep_until(start_at.into()) => {}
                () = stopped(&mut self.stop) => return KeeperEnd::Stopped,
            }
            let end = match self.command.start() {
                Ok(mut child) => match self.watch_child(&mut child).await {
                    Watched::Ended(end) => end,
                    Watched::Stop => {
                        self.drain_child(child).await;
                        return KeeperEnd::Stopped;
                    }
                },
                Err(error) => {
                    error!(%error, program = %self.command.program.display(), "cannot start the data plane");
                    End { ran: Duration::ZERO, status: None }
                }
            };
            match self.supervisor.ended(Instant::now(), end) {
                Verdict::StartAt(at) => start_at = at,
                Verdict::GiveUp => return KeeperEnd::GaveUp,
            }
        }
    }

    fn is_running(&self) -> bool {
        match lock::is_held(&self.command.lock) {
            Ok(held) => held,
            Err(error) => {
                warn!(%error, lock = %self.command.lock.display(), "cannot look at the data plane's lock");
                false
            }
        }
    }

    /// Waits for the end of a data plane that is not our child: its link goes, then its lock.
    async fn watch_adopted(&mut self) -> Watched {
        let since = Instant::now();
        loop {
            tokio::select! {
                () = stopped(&mut self.stop) => return Watched::Stop,
                () = sleep(LOCK_POLL) => {}
            }
            if self.link.borrow_and_update().pid.is_some() {
                self.supervisor.linked();
            } else if !self.is_running() {
                return Watched::Ended(End { ran: since.elapsed(), status: None });
            }
        }
    }

    async fn watch_child(&mut self, child: &mut Child) -> Watched {
        let started = Instant::now();
        loop {
            tokio::select! {
                status = child.wait() => {
                    let end = End {
                        ran: started.elapsed(),
                        status: status.as_ref().ok().and_then(|status| status.code()),
                    };
                    match status {
                        Ok(status) => warn!(%status, ran = ?end.ran, "the data plane has ended"),
                        Err(error) => error!(%error, "cannot wait for the data plane"),
                    }
                    return Watched::Ended(end);
                }
                changed = self.link.changed() => {
                    if changed.is_ok() && self.link.borrow_and_update().pid.is_some() {
                        self.supervisor.linked();
                    } else if changed.is_err() {
                        return Watched::Stop;
                    }
                }
                () = stopped(&mut self.stop) => return Watched::Stop,
            }
        }
    }

    /// SIGTERM makes it say goodbye to everybody; SIGKILL follows when that takes too long.
    async fn drain_child(&mut self, mut child: Child) {
        let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        if let Some(pid) = pid {
            signal(pid, Signal::TERM);
        }
        tokio::select! {
            ended = timeout(self.command.drain_max, child.wait()) => {
                if ended.is_ok() {
                    return;
                }
                warn!("the data plane did not drain in time");
            }
            () = hurried(&mut self.stop) => warn!("the drain is cut short"),
        }
        if let Err(error) = child.kill().await {
            error!(%error, "cannot kill the data plane");
        }
    }

    async fn drain_adopted(&mut self) {
        if self.handle.drain().await != Some(true)
            && let Some(pid) = holder(&self.command.lock)
        {
            signal(pid, Signal::TERM);
        }
        let until = Instant::now() + self.command.drain_max;
        while self.is_running() {
            if Instant::now() >= until {
                warn!("the data plane did not drain in time; it is left alone");
                return;
            }
            tokio::select! {
                () = sleep(DRAIN_POLL) => {}
                () = hurried(&mut self.stop) => return,
            }
        }
    }
}

impl DataCommand {
    fn start(&self) -> io::Result<Child> {
        let own = placement::allowed()?;
        // A child inherits the CPUs of the thread that starts it.
        placement::bind(&self.cpus)?;
        let child = Command::new(&self.program)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .process_group(0)
            .kill_on_drop(false)
            .spawn();
        if let Err(error) = placement::bind(&own) {
            warn!(%error, "cannot return to the control plane's CPUs");
        }
        let child = child?;
        info!(pid = child.id(), "data plane started");
        Ok(child)
    }
}

/// This executable, or the one that has replaced it on disk.
pub fn own_program() -> io::Result<PathBuf> {
    let path = std::env::current_exe()?;
    if !path.exists()
        && let Some(replaced) = path.as_os_str().as_bytes().strip_suffix(b" (deleted)")
    {
        return Ok(PathBuf::from(OsString::from_vec(replaced.to_vec())));
    }
    Ok(path)
}

/// The process that holds the lock, as its file tells.
fn holder(lock: &Path) -> Option<Pid> {
    let text = std::fs::read_to_string(lock).ok()?;
    Pid::from_raw(text.trim().parse().ok().filter(|pid| *pid > 1)?)
}

fn signal(pid: Pid, signal: Signal) {
    if let Err(error) = kill_process(pid, signal) {
        warn!(%error, %pid, "cannot signal the data plane");
    }
}

async fn stopped(stop: &mut watch::Receiver<Stop>) {
    // A closed channel is an order to stop as well.
    let _ = stop.wait_for(|stop| *stop >= Stop::Drain).await;
}

async fn hurried(stop: &mut watch::Receiver<Stop>) {
    let _ = stop.wait_for(|stop| *stop >= Stop::Now).await;
}

/// How often the lock of a data plane that is not our child is looked at.
const LOCK_POLL: Duration = Duration::from_millis(100);
/// The same while it drains.
const DRAIN_POLL: Duration = Duration::from_millis(20);
