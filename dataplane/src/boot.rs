//! One life of the data-plane process: from the parsed configuration to the exit status.
//!
//! ```text
//! log, panics ▶ signals ▶ data folder, lock ▶ CPUs ▶ io_uring ▶ shards ▶ link ▶ exit
//! ```
//! Signals are blocked before the first thread starts, so every thread inherits that and only the link thread's
//! signalfd sees them. A thread that panics ends the process: a node with a dead shard would keep its connections and
//! never answer them.

use crate::cpus::{self, CpuError, Placement};
use crate::io::link::{LinkEnd, LinkPlan, ShardPort};
use crate::io::{Features, LinkWaker, Plan, ProbeError, Running, SpawnError};
use crate::link::Identity;
use crate::shard::{HttpConfig, RelayConfig, TlsConfig, TlsError};
use common::config::{Config, Discovery};
use common::ids::BootEpoch;
use common::keys::{ClusterKeys, KeyError};
use common::noise::{Entropy, Purpose, Terms};
use rustix::event::EventfdFlags;
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::error::Error;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, IsTerminal, Read, Seek, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::JoinHandle;

/// Exit statuses of the data plane besides 0, a finished drain.
pub mod status {
    /// Whatever has no status of its own: the message on standard error says what.
    pub const FAILED: u8 = 1;
    /// io_uring is absent, forbidden or too old here.
    pub const NO_IO_URING: u8 = 2;
    /// A listener's address cannot be bound.
    pub const CANNOT_LISTEN: u8 = 3;
    /// Another data plane holds the data folder.
    pub const FOLDER_HELD: u8 = 4;
}

/// The lock file's name inside the data folder; it holds the pid of the data plane that holds the lock.
pub const LOCK_NAME: &str = "data.lock";

/// Why the data plane did not start or had to end.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    #[error("could not create the data folder {}", path.display())]
    Folder {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("could not lock {}", path.display())]
    Lock {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is held by another data plane{holder}", path.display())]
    Held { path: PathBuf, holder: String },
    #[error(transparent)]
    Cpus(#[from] CpuError),
    #[error("this machine cannot run the data plane")]
    IoUring(#[from] ProbeError),
    #[error("could not start the shards")]
    Shards(#[from] SpawnError),
    #[error("could not set up {what}")]
    System {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("could not read the key file {}", path.display())]
    KeyFile {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the key file {} may be read or written by everybody, allowed: its owner and group (chmod 600)", path.display())]
    KeyFileOpen { path: PathBuf },
    #[error("the key file {} is not valid", path.display())]
    Key {
        path: PathBuf,
        #[source]
        source: KeyError,
    },
    #[error("could not read {} for relay.tls", path.display())]
    TlsFile {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("relay.tls cannot be used")]
    Tls(#[from] TlsError),
    #[error("a shard failed: {reason}")]
    ShardFailed { reason: String },
}

impl BootError {
    fn status(&self) -> u8 {
        match self {
            Self::IoUring(_) => status::NO_IO_URING,
            Self::Shards(SpawnError::Listen { .. }) => status::CANNOT_LISTEN,
            Self::Held { .. } => status::FOLDER_HELD,
            _ => status::FAILED,
        }
    }
}

/// Runs the data plane until it is drained, told to end a second time, or fails; `config_path` is only named in the log.
pub fn run(config: Config, config_path: Option<PathBuf>) -> ExitCode {
    start_log(&config.log.level);
    abort_on_panic();
    let from = config_path.map_or_else(|| "defaults".to_owned(), |path| path.display().to_string());
    tracing::info!(version = VERSION, pid = std::process::id(), config = from, "data plane starts");
    match start_and_wait(config) {
        Ok(LinkEnd::Drained) => {
            tracing::info!("drained");
            ExitCode::SUCCESS
        }
        Ok(LinkEnd::DrainTimedOut) => {
            tracing::warn!("the time for draining is over; some peers did not close");
            ExitCode::SUCCESS
        }
        Ok(LinkEnd::Interrupted) => {
            tracing::warn!("told to end during the drain");
            ExitCode::from(status::FAILED)
        }
        Ok(LinkEnd::ShardFailed(reason)) => fail(&BootError::ShardFailed { reason }),
        Err(error) => fail(&error),
    }
}

const VERSION: &str = env!("CARGO_PKG_VERSION");

fn start_and_wait(config: Config) -> Result<LinkEnd, BootError> {
    let signals = take_signals().map_err(|source| BootError::System { what: "signals", source })?;
    create_folder(&config.data_dir)?;
    let _lock = lock_folder(&config.data_dir)?;
    raise_descriptors();
    let placement = Placement::decide(&config.cores, &config.control.cpus, &cpus::allowed()?)?;
    // Shards go to their own CPUs from here; all other threads, those of libraries too, keep off them where they can.
    if let Err(error) = cpus::restrict_process(&placement.helpers) {
        tracing::warn!(%error, "could not place the threads that are no shard");
    }
    let features = Features::probe()?;
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    let wake = rustix::event::eventfd(0, flags)
        .map_err(|source| BootError::System { what: "the link's eventfd", source: source.into() })?;
    let wake = Arc::new(wake);
    let system = |what| move |source| BootError::System { what, source };
    let seeds = random(placement.shards.len()).map_err(system("random numbers"))?;
    let epoch = BootEpoch(random(1).map_err(system("random numbers"))?[0]);
    let relays = relays(&config, placement.shards.len())?;
    let https = https(&config, placement.shards.len())?;
    let secrets = placement.shards.iter().map(|_| secret()).collect::<Result<_, _>>()?;
    let plan = Plan {
        config: config.clone(),
        relays,
        https,
        cores: placement.shards.clone(),
        features,
        epoch,
        seeds,
        secrets,
        link_waker: link_waker(&wake),
    };
    let running = crate::io::spawn_shards(plan)?;
    log_start(&config, &placement, &running);
    let identity = identity(&config, epoch, &running);
    let link = link_plan(&config, identity, running, wake, signals);
    let thread = std::thread::Builder::new()
        .name("link".to_owned())
        .spawn(move || crate::io::link::run(link))
        .map_err(system("the link thread"))?;
    thread.join().expect("a panic aborts the process").map_err(system("the link"))
}

/// Random bytes that nobody else knows.
fn secret() -> Result<[u8; 32], BootError> {
    let random = random(4).map_err(|source| BootError::System { what: "random numbers", source })?;
    let mut secret = [0; 32];
    for (bytes, number) in secret.chunks_exact_mut(8).zip(random) {
        bytes.copy_from_slice(&number.to_ne_bytes());
    }
    Ok(secret)
}

/// What each shard needs to speak with those of other nodes; empty when the node is by itself.
fn relays(config: &Config, shards: usize) -> Result<Vec<RelayConfig>, BootError> {
    if config.cluster.discovery == Discovery::None {
        return Ok(vec![]);
    }
    let keys = read_keys(&config.cluster.key_file)?;
    let env: Box<str> = config.cluster.env.as_str().into();
    let terms = Terms { keys, env, purpose: Purpose::Relay };
    let tls = read_tls(config)?;
    (0..shards)
        .map(|_| {
            Ok(RelayConfig {
                terms: terms.clone(),
                connections: config.relay.connections as usize,
                queue_max: config.relay.queue_max as usize,
                tls: tls.clone(),
                entropy: entropy()?,
            })
        })
        .collect()
}

/// What each shard needs to serve HTTP clients; empty when no listener does.
fn https(config: &Config, shards: usize) -> Result<Vec<HttpConfig>, BootError> {
    if !config.listeners.iter().any(|listener| listener.http) {
        return Ok(vec![]);
    }
    let transports_max = config.http.transports_max.div_ceil(shards as u32);
    let make = || Ok(HttpConfig { settings: config.http.clone(), transports_max, entropy: entropy()? });
    (0..shards).map(|_| make()).collect()
}

fn entropy() -> Result<Entropy, BootError> {
    Ok(Entropy::new(secret()?))
}

fn read_tls(config: &Config) -> Result<Option<TlsConfig>, BootError> {
    let relay = &config.relay;
    if !relay.tls {
        return Ok(None);
    }
    let read = |path: &Path| {
        std::fs::read(path).map_err(|source| BootError::TlsFile { path: path.to_owned(), source })
    };
    let (certificate, key, authorities) =
        (read(&relay.tls_certificate)?, read(&relay.tls_key)?, read(&relay.tls_authorities)?);
    Ok(Some(TlsConfig::new(&certificate, &key, &authorities)?))
}

fn read_keys(path: &Path) -> Result<ClusterKeys, BootError> {
    let failed = |source| BootError::KeyFile { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.permissions().mode() & 0o007 != 0 {
        return Err(BootError::KeyFileOpen { path: path.to_owned() });
    }
    let mut text = String::new();
    file.take(KEY_FILE_BYTES_MAX).read_to_string(&mut text).map_err(failed)?;
    ClusterKeys::parse(&text).map_err(|source| BootError::Key { path: path.to_owned(), source })
}

/// Longest key file; comments included.
const KEY_FILE_BYTES_MAX: u64 = 64 << 10;

fn identity(config: &Config, epoch: BootEpoch, running: &Running) -> Identity {
    let names = config.listeners.iter().map(|listener| listener.transport.name()).chain([RELAY]);
    Identity {
        epoch,
        pid: std::process::id(),
        shards: running.shards.len(),
        version: VERSION.to_owned(),
        listeners: names
            .zip(&running.listening)
            .map(|(name, address)| (name.to_owned(), address.to_string()))
            .collect(),
        drain_timeout: config.timeouts.drain,
    }
}

fn link_plan(
    config: &Config,
    identity: Identity,
    running: Running,
    wake: Arc<OwnedFd>,
    signals: OwnedFd,
) -> LinkPlan {
    let mut shards = Vec::with_capacity(running.shards.len());
    let mut threads = Vec::with_capacity(running.shards.len());
    for handle in running.shards {
        let waker = handle.waker;
        shards.push(ShardPort { feed: handle.feed, wake: Box::new(move || waker.wake()) });
        threads.push((handle.cpu, handle.thread));
    }
    LinkPlan {
        data_dir: config.data_dir.clone(),
        identity,
        shards,
        feed_up: running.feed_up,
        wake,
        signals,
        failed: Box::new(move || first_ended(&mut threads)),
    }
}

/// A shard only ends when it is told to, after the link; one that ended before that failed.
fn first_ended(threads: &mut Vec<(u32, JoinHandle<Result<(), SpawnError>>)>) -> Option<String> {
    let index = threads.iter().position(|(_, thread)| thread.is_finished())?;
    let (cpu, thread) = threads.swap_remove(index);
    let how = match thread.join() {
        Ok(Err(error)) => chain(&error),
        Ok(Ok(())) | Err(_) => "its thread ended".to_owned(),
    };
    Some(format!("CPU {cpu}: {how}"))
}

fn link_waker(wake: &Arc<OwnedFd>) -> LinkWaker {
    let wake = Arc::clone(wake);
    Arc::new(move || {
        // The only possible failure is EAGAIN: the counter is full, so the link thread has been woken already.
        let _ = rustix::io::write(&wake, &1u64.to_ne_bytes());
    })
}

/// The relay's name among the listeners.
const RELAY: &str = "relay";

fn log_start(config: &Config, placement: &Placement, running: &Running) {
    for shard in &running.shards {
        let node = cpus::numa_node(shard.cpu);
        tracing::info!(shard = shard.shard.0, cpu = shard.cpu, numa_node = node, "shard runs");
    }
    for (listener, address) in config.listeners.iter().zip(&running.listening) {
        tracing::info!(transport = listener.transport.name(), %address, "bound");
    }
    if let Some(address) = running.listening.get(config.listeners.len()) {
        tracing::info!(transport = RELAY, %address, "bound");
    }
    tracing::info!(cpus = cpus::list_text(&placement.helpers), "other threads run");
}

fn start_log(level: &str) {
    let level = level.parse().unwrap_or(tracing::Level::INFO);
    // Fails when the log is set up already, and then it is as good.
    let _ = tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_max_level(level)
        .try_init();
}

fn abort_on_panic() {
    std::panic::set_hook(Box::new(|info| {
        let thread = std::thread::current();
        let backtrace = std::backtrace::Backtrace::capture();
        tracing::error!(thread = thread.name(), "{info}\n{backtrace}");
        std::process::abort();
    }));
}

/// Blocks SIGTERM and SIGINT in this thread and those it starts, and makes the descriptor they are read from.
fn take_signals() -> io::Result<OwnedFd> {
    // SAFETY: `set` is initialised by sigemptyset before it is read; the other calls take valid pointers to it or
    // constants, and the descriptor that signalfd returns is ours alone.
    unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGTERM);
        libc::sigaddset(&raw mut set, libc::SIGINT);
        let error = libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        if libc::signal(libc::SIGPIPE, libc::SIG_IGN) == libc::SIG_ERR {
            return Err(io::Error::last_os_error());
        }
        let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}

fn create_folder(path: &Path) -> Result<(), BootError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| BootError::Folder { path: path.to_owned(), source })
}

/// Takes the folder for this process until it ends, however it ends.
fn lock_folder(folder: &Path) -> Result<File, BootError> {
    let path = folder.join(LOCK_NAME);
    let failed = |source| BootError::Lock { path: path.clone(), source };
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let mut file = options.open(&path).map_err(failed)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut pid = String::new();
            // Only told to the operator; a holder that has not written it yet is as good as unknown.
            let _ = file.take(32).read_to_string(&mut pid);
            let pid = pid.trim();
            let holder = if pid.is_empty() { String::new() } else { format!(", process {pid}") };
            return Err(BootError::Held { path, holder });
        }
        Err(error) => return Err(failed(error.into())),
    }
    let write = |file: &mut File| {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    };
    write(&mut file).map_err(failed)?;
    Ok(file)
}

/// A connection is a descriptor: take as many as we may.
fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: limit.maximum, maximum: limit.maximum };
    match setrlimit(Resource::Nofile, wanted) {
        Ok(()) => tracing::debug!(descriptors_max = limit.maximum, "raised the limit of open files"),
        Err(error) => tracing::warn!(%error, "could not raise the limit of open files"),
    }
}

/// `count` random numbers from the kernel.
fn random(count: usize) -> io::Result<Vec<u64>> {
    let mut bytes = vec![0; count * 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.as_chunks().0.iter().map(|chunk| u64::from_ne_bytes(*chunk)).collect())
}

fn fail(error: &BootError) -> ExitCode {
    tracing::error!("{}", chain(error));
    eprintln!("signalbox data: {}", chain(error));
    ExitCode::from(error.status())
}

/// An error with its causes on one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text.push_str(": ");
        text.push_str(&source.to_string());
        cause = source.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::Place;

    #[test]
    fn a_folder_is_held_by_one_data_plane_and_free_after_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b");
        create_folder(&path).unwrap();
        let lock = lock_folder(&path).unwrap();
        let error = lock_folder(&path).unwrap_err();
        assert_eq!(error.status(), status::FOLDER_HELD);
        let text = chain(&error);
        assert!(text.contains("data.lock is held by another data plane, process"), "{text}");
        assert!(text.contains(&std::process::id().to_string()), "{text}");
        drop(lock);
        lock_folder(&path).unwrap();
    }

    #[test]
    fn the_folder_is_for_its_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data");
        create_folder(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        create_folder(&path).unwrap();
    }

    #[test]
    fn a_path_that_is_no_folder_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = chain(&create_folder(&file.path().join("data")).unwrap_err());
        assert!(text.contains(file.path().to_str().unwrap()), "{text}");
    }

    #[test]
    fn the_exit_status_tells_what_to_look_at() {
        let place = Place::Ip("127.0.0.1:80".parse().unwrap());
        let error = BootError::from(SpawnError::Listen {
            place,
            source: io::Error::from_raw_os_error(libc::EADDRINUSE),
        });
        assert_eq!(error.status(), status::CANNOT_LISTEN);
        let text = chain(&error);
        assert!(text.contains("127.0.0.1:80") && text.contains("in use"), "{text}");
        let error = BootError::from(ProbeError::Forbidden { reason: "a seccomp filter".to_owned() });
        assert_eq!(error.status(), status::NO_IO_URING);
    }

    #[test]
    fn random_numbers_differ() {
        let numbers = random(3).unwrap();
        assert_eq!(numbers.len(), 3);
        assert!(numbers[0] != numbers[1] && numbers[1] != numbers[2]);
    }
}
