//! One turn of a shard: what the kernel and the other shards brought goes into the machine, what the machine wants
//! goes to the kernel, the other shards and the link thread.
//!
//! Nothing here waits; [`crate::io::driver`] decides when the next turn is.

mod accept;
mod connect;
mod neighbours;
mod transfer;

use crate::feed::{FeedDown, FeedUp};
use crate::io::buffers::Buffers;
use crate::io::conns::{Conns, token};
use crate::io::listen::Bound;
use crate::io::machine::Machine;
use crate::io::mesh::Mesh;
use crate::io::probe::Features;
use crate::io::ring::{Completion, Ring};
use crate::io::token::Op;
use crate::io::wake::{LinkWaker, ShardWaker};
use crate::shard::{ConnId, Output};
use common::ids::ShardId;
use common::metrics::Counter;
use crossbeam_channel::{Receiver, Sender};
use std::collections::VecDeque;
use std::io;
use std::time::Instant;

/// Completions a turn takes at most.
pub const TURN_INPUTS_MAX: usize = 256;
/// Batches a turn takes of one other shard at most.
pub const TURN_BATCHES_MAX: usize = 64;

/// The state of one shard's loop.
///
/// Fields drop in this order: the ring goes before what the kernel reads and writes for it.
pub struct Turn<M: Machine> {
    pub ring: Ring,
    pub buffers: Buffers,
    pub conns: Conns,
    pub listeners: Vec<Listening>,
    pub machine: M,
    pub mesh: Mesh<M::Batch>,
    pub feed: Feed,
    pub features: Features,
    pub now: Instant,
    /// The machine has more to do although nothing came.
    pub again: bool,
    /// The link thread let go of the feed: the shard ends.
    pub stop: bool,
    completions: Vec<Completion>,
    quiet: QuietSends,
    /// Connections to arm reads for once buffers are back.
    rearm: Vec<ConnId>,
    dials: connect::Dials,
    accepting: Accepting,
    accept_again: Option<Instant>,
}

/// Whether connections are accepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Accepting {
    /// There is no snapshot yet.
    NotYet,
    Yes,
    /// The shard drains.
    Over,
}

/// Sends that have a completion only if something is wrong.
#[derive(Default)]
struct QuietSends {
    /// Since the last enter.
    staged: Vec<ConnId>,
    /// With the number of reaped completions at which one without a completion is known to be done.
    left: VecDeque<(u64, ConnId)>,
}

/// One listener of a shard.
pub struct Listening {
    /// `None` once it was closed for a drain.
    socket: Option<Bound>,
    armed: bool,
}

/// The shard's ends of its channels to the link thread.
pub struct Feed {
    pub shard: ShardId,
    pub down: Receiver<FeedDown>,
    pub up: Sender<FeedUp>,
    pub waker: ShardWaker,
    pub link_waker: LinkWaker,
    /// Taken from the machine when the channel was full.
    unsent: Option<FeedUp>,
    /// Something may be in `down`.
    woken: bool,
}

impl Feed {
    pub fn new(
        shard: ShardId,
        down: Receiver<FeedDown>,
        up: Sender<FeedUp>,
        waker: ShardWaker,
        link_waker: LinkWaker,
    ) -> Self {
        Self { shard, down, up, waker, link_waker, unsent: None, woken: true }
    }
}

impl<M: Machine> Turn<M> {
    pub fn new(
        (ring, buffers): (Ring, Buffers),
        sockets: Vec<Bound>,
        machine: M,
        mesh: Mesh<M::Batch>,
        feed: Feed,
        features: Features,
    ) -> io::Result<Self> {
        let listeners = sockets.into_iter().map(|socket| Listening { socket: Some(socket), armed: false });
        let mut turn = Self {
            ring,
            buffers,
            conns: Conns::default(),
            listeners: listeners.collect(),
            machine,
            mesh,
            feed,
            features,
            now: Instant::now(),
            again: false,
            stop: false,
            completions: Vec::with_capacity(TURN_INPUTS_MAX),
            quiet: QuietSends::default(),
            rearm: Vec::new(),
            dials: connect::Dials::default(),
            accepting: Accepting::NotYet,
            accept_again: None,
        };
        turn.watch_waker()?;
        Ok(turn)
    }

    /// Takes what is there, up to the bounds, and acts on it. True when there was something.
    pub fn run(&mut self) -> io::Result<bool> {
        let inputs = self.take_completions()? + self.take_mesh()? + usize::from(self.take_feed()?);
        let due = self.machine.deadline().is_some_and(|deadline| deadline <= self.now);
        if due {
            self.machine.timeout(self.now);
        }
        if self.accept_again.is_some_and(|at| at <= self.now) {
            self.accept_again = None;
            self.arm_accepts()?;
        }
        if inputs == 0 && !due && !self.again {
            return Ok(false);
        }
        // What the link thread sent was left for the next turn.
        self.again = self.feed.woken;
        self.act()?;
        self.send_mesh()?;
        self.send_feed();
        let enters = self.ring.enters();
        let metrics = self.machine.metrics_mut();
        metrics.count(Counter::Turns);
        metrics.counters[Counter::Enters as usize] = enters;
        Ok(true)
    }

    /// When the next turn must be at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        [self.machine.deadline(), self.accept_again].into_iter().flatten().min()
    }

    /// The link thread has not taken what waits for it, and will not tell when it does.
    pub fn waits_for_link(&self) -> bool {
        self.feed.unsent.is_some()
    }

    fn take_completions(&mut self) -> io::Result<usize> {
        self.mark_quiet_sends();
        let mut completions = std::mem::take(&mut self.completions);
        self.ring.reap(&mut completions, TURN_INPUTS_MAX);
        let mut count = completions.len();
        for completion in &completions {
            if completion.token.op() == Op::Timer {
                // It only ends a wait: what is due is looked up anyway.
                self.ring.timer_fired();
                count -= 1;
            } else {
                self.on_completion(completion)?;
            }
        }
        count += self.settle_quiet_sends()?;
        completions.clear();
        self.completions = completions;
        // Buffers first: a read armed while none is offered fails at once.
        self.buffers.refill();
        self.rearm_reads()?;
        Ok(count)
    }

    #[inline]
    fn on_completion(&mut self, completion: &Completion) -> io::Result<()> {
        match completion.token.op() {
            Op::Receive => self.on_receive(completion),
            Op::Send => self.on_sent(completion),
            Op::Shutdown | Op::Cancel => self.on_done(completion),
            Op::Accept => self.on_accept(completion),
            Op::Connect => self.on_connected(completion),
            Op::Wake => self.on_wake(completion),
            Op::MeshFailed => {
                self.mesh.waker(ShardId(completion.token.slot() as u8)).wake();
                Ok(())
            }
            Op::Mesh | Op::Timer | Op::Nothing => Ok(()),
        }
    }

    /// Does what the machine wants, until it wants no more.
    fn act(&mut self) -> io::Result<()> {
        while let Some(output) = self.machine.poll() {
            match output {
                Output::Send(id) => self.start_send(id)?,
                Output::ShutdownWrite(id) => {
                    if let Some(conn) = self.conns.get(id) {
                        conn.ops += 1;
                        let fd = conn.fd();
                        self.ring.shutdown(fd, token(Op::Shutdown, id), libc::SHUT_WR)?;
                    }
                }
                Output::Close(id) => self.close(id)?,
                Output::Park(id) => self.park(id)?,
                Output::ResumeReads(id) => self.resume(id)?,
                Output::Connect { dial, address } => self.connect(dial, address)?,
            }
        }
        Ok(())
    }
}
