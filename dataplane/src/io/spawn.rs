//! Starts one pinned thread a shard and hands out the ends of its channels.

use crate::feed::{FeedDown, FeedUp};
use crate::io::buffers::Buffers;
use crate::io::conns::Conns;
use crate::io::driver::Driver;
use crate::io::listen::{AllBound, Bound, Place, bind_all};
use crate::io::machine::Machine;
use crate::io::mesh::{Mesh, mesh};
use crate::io::probe::Features;
use crate::io::ring::{BUFFER_GROUP, Ring};
use crate::io::turn::{Accepting, Feed, Turn};
use crate::io::wake::{LinkWaker, ShardWaker};
use crate::shard::{HttpConfig, RelayConfig, Shard, ShardConfig};
use common::config::{Config, Io, Listener, Transport};
use common::ids::{BootEpoch, SHARDS_MAX, ShardId};
use crossbeam_channel::{Receiver, Sender, bounded};
use glommio::{LocalExecutorBuilder, Placement};
use std::io;
use std::os::fd::AsRawFd;
use std::thread::JoinHandle;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Entries of the channel from the link thread to one shard.
pub const FEED_DOWN_MAX: usize = 1_024;
/// Entries of the channel from all shards to the link thread.
pub const FEED_UP_MAX: usize = 4_096;
/// Relay connections the kernel holds until a shard accepts them.
const RELAY_BACKLOG: u32 = 1_024;
/// What glommio sets aside and locks for file reads and writes, of which shards do none.
const EXECUTOR_IO_MEMORY: usize = 64 << 10;
/// Entries of glommio's own rings.
const EXECUTOR_RING_DEPTH: usize = 32;

/// What the shards of a data plane are started from.
#[derive(Clone)]
pub struct Plan {
    pub config: Config,
    /// One shard each, in this order; at least one, at most [`SHARDS_MAX`].
    pub cores: Vec<u32>,
    pub features: Features,
    /// This process's life.
    pub epoch: BootEpoch,
    /// One random number a shard.
    pub seeds: Vec<u64>,
    /// One a shard, from which tokens follow.
    pub secrets: Vec<[u8; 32]>,
    /// In a cluster: one a shard.
    pub relays: Vec<RelayConfig>,
    /// Where HTTP clients are served: one a shard.
    pub https: Vec<HttpConfig>,
    /// Called after something was put into [`Running::feed_up`], and when a shard's thread ends.
    pub link_waker: LinkWaker,
}

/// The running shards.
#[derive(Debug)]
pub struct Running {
    pub shards: Vec<ShardHandle>,
    /// From all shards.
    pub feed_up: Receiver<FeedUp>,
    /// The address each of `config.listeners` is bound to, in that order, with real ports, then that of the relay if
    /// there is one. Bound from the start; a
    /// shard listens and accepts once it has its first [`FeedDown::Snapshot`].
    pub listening: Vec<Place>,
}

/// One shard's thread and the sender of its feed.
#[derive(Debug)]
pub struct ShardHandle {
    pub shard: ShardId,
    pub cpu: u32,
    /// Bounded by [`FEED_DOWN_MAX`]; call [`ShardWaker::wake`] after sending. When the sender is dropped and the
    /// shard woken, its thread closes everything and ends.
    pub feed: Sender<FeedDown>,
    pub waker: ShardWaker,
    /// An error says why the shard stopped: its ring failed.
    pub thread: JoinHandle<Result<(), SpawnError>>,
}

impl ShardHandle {
    /// Ends the shard and waits for its thread.
    ///
    /// # Errors
    /// Why it had stopped before.
    pub fn stop(self) -> Result<(), SpawnError> {
        drop(self.feed);
        self.waker.wake();
        let cpu = self.cpu;
        self.thread
            .join()
            .unwrap_or_else(|_| Err(SpawnError::Ended { cpu, reason: "its thread panicked".into() }))
    }
}

/// Why the shards did not start, or one stopped. All of them are gone again.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    #[error("{cores} cores: a data plane has 1 to {SHARDS_MAX} shards, and a seed for each ({seeds} given)")]
    Cores { cores: usize, seeds: usize },
    #[error("cannot listen on {place}")]
    Listen {
        place: Place,
        #[source]
        source: io::Error,
    },
    #[error("cannot start a shard on CPU {cpu}: {reason}")]
    Executor { cpu: u32, reason: String },
    #[error("the ring of the shard on CPU {cpu} failed")]
    Ring {
        cpu: u32,
        #[source]
        source: io::Error,
    },
    #[error("could not make an eventfd")]
    Eventfd(#[source] io::Error),
    #[error("the shard on CPU {cpu} ended unexpectedly: {reason}")]
    Ended { cpu: u32, reason: String },
}

/// Binds the listeners, starts a pinned thread for each core and returns when all of them have their rings.
///
/// # Errors
/// [`SpawnError`]; then no thread is left.
pub fn spawn_shards(plan: Plan) -> Result<Running, SpawnError> {
    spawn_machines(plan, Accepting::NotYet, |config, now| {
        let mut shard = Shard::new(config, now);
        shard.set_clock(now, SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
        shard
    })
}

/// [`spawn_shards`] for any machine, which `make` makes on the shard's own thread: tests and benches drive small ones.
///
/// # Errors
/// As [`spawn_shards`].
pub fn spawn_machines<M: Machine + 'static>(
    plan: Plan,
    accepting: Accepting,
    make: impl Fn(ShardConfig, Instant) -> M + Clone + Send + 'static,
) -> Result<Running, SpawnError> {
    let shards = plan.cores.len();
    if shards == 0 || shards > SHARDS_MAX || plan.seeds.len() != shards || plan.secrets.len() != shards {
        return Err(SpawnError::Cores { cores: shards, seeds: plan.seeds.len() });
    }
    let mut listeners = plan.config.listeners.clone();
    listeners.extend((!plan.relays.is_empty()).then(|| relay_listener(&plan.config)));
    let all = bind_all(&listeners, shards, plan.config.io.send_buffer)
        .map_err(|(place, source)| SpawnError::Listen { place, source })?;
    let silence = plan.config.timeouts.ping_interval + plan.config.timeouts.ping_timeout;
    if let Err(error) = all.watch_http(&listeners, silence) {
        tracing::warn!(%error, "HTTP clients that vanish will be noticed late");
    }
    let AllBound { sockets, places } = all;
    let wakers: Vec<ShardWaker> =
        (0..shards).map(|_| ShardWaker::new()).collect::<Result<_, _>>().map_err(SpawnError::Eventfd)?;
    let meshes = mesh(plan.config.io.mesh_entries as usize, &wakers);
    let (up, feed_up) = bounded(FEED_UP_MAX);
    let (started, starts) = bounded(shards);
    let mut handles = Vec::with_capacity(shards);
    for (index, (sockets, mesh)) in sockets.into_iter().zip(meshes).enumerate() {
        let (down, feed_down) = bounded(FEED_DOWN_MAX);
        let shard = ShardId(index as u8);
        let waker = wakers[index].clone();
        let seat = Seat {
            config: shard_config(&plan, index),
            io: plan.config.io.clone(),
            numa: plan.config.memory.numa,
            sockets,
            mesh,
            feed: Feed::new(shard, feed_down, up.clone(), waker.clone(), plan.link_waker.clone()),
            features: plan.features,
            accepting,
        };
        let cpu = plan.cores[index];
        let spawned = spawn_thread(seat, make.clone(), started.clone());
        match spawned {
            Ok(thread) => handles.push(ShardHandle { shard, cpu, feed: down, waker, thread }),
            Err(source) => {
                stop_all(handles);
                return Err(SpawnError::Executor { cpu, reason: source.to_string() });
            }
        }
    }
    drop(started);
    // A thread that could not start drops its sender without a word; its own result says why.
    let up_and_running = (0..shards).all(|_| starts.recv().is_ok());
    if up_and_running {
        return Ok(Running { shards: handles, feed_up, listening: places });
    }
    Err(stop_all(handles)
        .unwrap_or(SpawnError::Ended { cpu: plan.cores[0], reason: "it did not start".into() }))
}

/// The listener of other nodes' shards, as far as its sockets go.
fn relay_listener(config: &Config) -> Listener {
    Listener {
        transport: Transport::RawSocket,
        address: config.relay_address(),
        path: String::new(),
        connections_max: 0,
        message_max: 0,
        backlog: RELAY_BACKLOG,
        ..Listener::of(Transport::RawSocket)
    }
}

/// What one shard's thread is given.
struct Seat<B> {
    config: ShardConfig,
    io: Io,
    numa: bool,
    sockets: Vec<Bound>,
    mesh: Mesh<B>,
    feed: Feed,
    features: Features,
    accepting: Accepting,
}

/// Tells the link thread that a shard's thread ended, also by a panic.
struct TellAtEnd(LinkWaker);

impl Drop for TellAtEnd {
    fn drop(&mut self) {
        (self.0)();
    }
}

fn shard_config(plan: &Plan, index: usize) -> ShardConfig {
    let (shard, shards) = (ShardId(index as u8), plan.cores.len());
    let (secret, seed) = (plan.secrets[index], plan.seeds[index]);
    ShardConfig {
        cpu: plan.cores[index],
        relay: plan.relays.get(index).cloned(),
        http: plan.https.get(index).cloned(),
        ..ShardConfig::new(&plan.config, shard, shards, plan.epoch, secret, seed)
    }
}

fn spawn_thread<M: Machine + 'static>(
    seat: Seat<M::Batch>,
    make: impl FnOnce(ShardConfig, Instant) -> M + Send + 'static,
    started: Sender<()>,
) -> io::Result<JoinHandle<Result<(), SpawnError>>> {
    let name = format!("shard-{}", seat.config.shard.0);
    std::thread::Builder::new().name(name.clone()).spawn(move || {
        let _tell = TellAtEnd(seat.feed.link_waker.clone());
        let cpu = seat.config.cpu;
        if seat.numa {
            place_memory_locally();
        }
        let executor = LocalExecutorBuilder::new(Placement::Fixed(cpu as usize))
            .name(&name)
            .io_memory(EXECUTOR_IO_MEMORY)
            .ring_depth(EXECUTOR_RING_DEPTH)
            .make()
            .map_err(|error| SpawnError::Executor { cpu, reason: error.to_string() })?;
        executor
            .run(async move {
                let driver = seat.take(make)?;
                // The starter waits for all, or has given up.
                let _ = started.send(());
                drop(started);
                driver.run().await
            })
            .map_err(|source| SpawnError::Ring { cpu, source })
    })
}

impl<B: Send + 'static> Seat<B> {
    /// Sets everything up, on the shard's thread.
    fn take<M: Machine<Batch = B>>(
        self,
        make: impl FnOnce(ShardConfig, Instant) -> M,
    ) -> io::Result<Driver<M>> {
        let mut buffers = Buffers::new(self.io.receive_buffers, self.io.receive_buffer_size)?;
        let ring = Ring::new(self.io.ring_entries)?;
        // SAFETY: `Turn` drops its ring before its buffers; if it is not reached, `ring` is dropped first here too,
        // because it was declared later.
        unsafe { buffers.register(&ring.submitter(), BUFFER_GROUP) }?;
        self.mesh.set_ring(Some(ring.as_raw_fd()));
        let first_slot = self.config.first_slot();
        let machine = make(self.config, Instant::now());
        let mut turn =
            Turn::new((ring, buffers), self.sockets, machine, self.mesh, self.feed, self.features)?;
        turn.conns = Conns::after(first_slot);
        if self.accepting == Accepting::Yes {
            turn.start_accepting()?;
        }
        Driver::new(turn, self.io.short_wait)
    }
}

/// Has the kernel take this thread's memory from its core's node, whatever policy the process inherited.
fn place_memory_locally() {
    const MPOL_LOCAL: i32 = 4;
    // SAFETY: the call takes no memory when the mask is empty. A kernel without it has one node.
    let done = unsafe { libc::syscall(libc::SYS_set_mempolicy, MPOL_LOCAL, std::ptr::null::<u64>(), 0u64) };
    if done != 0 {
        let error = io::Error::last_os_error();
        tracing::debug!(%error, "no memory policy; the kernel's default places memory locally too");
    }
}

/// The first reason among the shards that failed.
fn stop_all(handles: Vec<ShardHandle>) -> Option<SpawnError> {
    let results: Vec<_> = handles.into_iter().map(ShardHandle::stop).collect();
    results.into_iter().find_map(Result::err)
}
