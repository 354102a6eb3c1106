//! A machine that echoes.

use crate::feed::{FeedDown, FeedUp};
use crate::io::machine::Machine;
use crate::shard::{ConnId, Flow, Origin, Output, Segment, SendBuf, ShardConfig};
use common::config::{Config, Listener, Transport};
use common::ids::{ShardId, ShardSet};
use common::metrics::Metrics;
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// What is done with received bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Sent back.
    Echo,
    /// Sent back in pieces of this many bytes.
    Pieces(usize),
    /// Sent back; after each receive the connection is paused until the next timeout.
    PauseEach,
    /// Sent back by way of the next shard.
    Around,
    /// Answered with this many bytes, then writing is shut down.
    Bye(usize),
    /// Closed.
    Close,
    /// Refused at accept.
    Refuse,
}

/// Bytes on their way through the mesh.
#[derive(Debug)]
pub struct Parcel {
    origin: ShardId,
    conn: ConnId,
    bytes: Vec<u8>,
}

#[derive(Default)]
struct RigConn {
    out: Vec<u8>,
    sending: bool,
    shut_after: bool,
}

pub struct Rig {
    pub mode: Mode,
    pub config: ShardConfig,
    pub metrics: Metrics,
    pub paused: Vec<ConnId>,
    pub full: ShardSet,
    pub closed: usize,
    conns: HashMap<ConnId, RigConn>,
    outputs: VecDeque<Output>,
    outboxes: Vec<Vec<Parcel>>,
    feed: VecDeque<FeedUp>,
    resume_at: Option<Instant>,
}

impl Rig {
    pub fn new(mode: Mode, config: ShardConfig) -> Self {
        Self {
            mode,
            outboxes: (0..config.shards).map(|_| Vec::new()).collect(),
            config,
            metrics: Metrics::default(),
            paused: Vec::new(),
            full: ShardSet::EMPTY,
            closed: 0,
            conns: HashMap::new(),
            outputs: VecDeque::new(),
            feed: VecDeque::new(),
            resume_at: None,
        }
    }

    pub fn connections(&self) -> usize {
        self.conns.len()
    }

    fn queue(&mut self, id: ConnId, bytes: &[u8]) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        conn.out.extend_from_slice(bytes);
        if !conn.sending && !conn.out.is_empty() {
            conn.sending = true;
            self.outputs.push_back(Output::Send(id));
        }
    }

    fn next_shard(&self) -> ShardId {
        ShardId(((self.config.shard.index() + 1) % self.config.shards) as u8)
    }

    fn resume_all(&mut self) {
        self.outputs.extend(self.paused.drain(..).map(Output::ResumeReads));
    }
}

impl Machine for Rig {
    type Batch = Vec<Parcel>;

    fn accept(&mut self, _: Instant, conn: ConnId, _: usize, origin: Origin) -> bool {
        assert!(origin.is_local());
        if self.mode == Mode::Refuse {
            return false;
        }
        assert!(self.conns.insert(conn, RigConn::default()).is_none(), "ids are new");
        true
    }

    fn receive(&mut self, now: Instant, id: ConnId, bytes: &mut [u8]) -> Flow {
        assert!(self.conns.contains_key(&id) && !bytes.is_empty());
        assert!(!self.paused.contains(&id), "nothing comes while paused");
        match self.mode {
            Mode::Echo | Mode::Pieces(_) => self.queue(id, bytes),
            Mode::PauseEach => {
                self.queue(id, bytes);
                self.paused.push(id);
                self.resume_at.get_or_insert(now);
                return Flow::Pause;
            }
            Mode::Around => {
                let to = self.next_shard();
                let parcel = Parcel { origin: self.config.shard, conn: id, bytes: bytes.to_vec() };
                self.outboxes[to.index()].push(parcel);
                if self.full.contains(to) {
                    self.paused.push(id);
                    return Flow::Pause;
                }
            }
            Mode::Bye(len) => {
                self.conns.get_mut(&id).expect("known").shut_after = true;
                self.queue(id, &(0..len).map(|n| n as u8).collect::<Vec<_>>());
            }
            Mode::Close => {
                self.conns.remove(&id);
                self.outputs.push_back(Output::Close(id));
            }
            Mode::Refuse => unreachable!("nothing was accepted"),
        }
        Flow::Continue
    }

    fn closed(&mut self, _: Instant, conn: ConnId) {
        assert!(self.conns.remove(&conn).is_some(), "said once");
        self.closed += 1;
        self.outputs.push_back(Output::Close(conn));
    }

    fn take_send(&mut self, conn: ConnId) -> SendBuf {
        let Some(state) = self.conns.get_mut(&conn) else { return SendBuf::default() };
        let bytes = std::mem::take(&mut state.out);
        let segments = match self.mode {
            Mode::Pieces(len) => {
                bytes.chunks(len).map(|piece| Segment::Shared(bytes::Bytes::copy_from_slice(piece))).collect()
            }
            _ => vec![Segment::Owned(bytes)],
        };
        SendBuf { segments }
    }

    fn sent(&mut self, _: Instant, conn: ConnId, _: SendBuf, ok: bool) {
        let Some(state) = self.conns.get_mut(&conn) else { return };
        assert!(std::mem::take(&mut state.sending));
        if !ok {
            return;
        }
        if state.shut_after {
            self.outputs.push_back(Output::ShutdownWrite(conn));
        }
        self.queue(conn, &[]);
    }

    fn mesh_in(&mut self, _: Instant, from: ShardId, batch: Vec<Parcel>) {
        for parcel in batch {
            if parcel.origin == self.config.shard {
                self.queue(parcel.conn, &parcel.bytes);
            } else {
                assert_eq!(parcel.origin, from);
                self.outboxes[parcel.origin.index()].push(parcel);
            }
        }
    }

    fn mesh_ready(&self) -> ShardSet {
        (0..self.outboxes.len())
            .filter(|shard| !self.outboxes[*shard].is_empty())
            .fold(ShardSet::EMPTY, |set, shard| set.with(ShardId(shard as u8)))
    }

    fn take_batch(&mut self, to: ShardId) -> Vec<Parcel> {
        std::mem::take(&mut self.outboxes[to.index()])
    }

    fn mesh_full(&mut self, _: Instant, full: ShardSet) {
        self.full = full;
        if full.is_empty() {
            self.resume_all();
        }
    }

    fn feed(&mut self, _: Instant, down: FeedDown) {
        match down {
            FeedDown::Stats => self.feed.push_back(FeedUp::Stats {
                shard: self.config.shard,
                cpu: self.config.cpu,
                metrics: Box::new(self.metrics.clone()),
            }),
            FeedDown::Drain => {
                self.feed.push_back(FeedUp::Drained { shard: self.config.shard });
                self.outputs.extend(self.conns.drain().map(|(id, _)| Output::Close(id)));
            }
            _ => {}
        }
    }

    fn take_feed(&mut self) -> Option<FeedUp> {
        self.feed.pop_front()
    }

    fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn deadline(&self) -> Option<Instant> {
        self.resume_at
    }

    fn timeout(&mut self, _: Instant) {
        self.resume_at = None;
        self.resume_all();
    }

    fn metrics_mut(&mut self) -> &mut Metrics {
        &mut self.metrics
    }
}

/// One listener on a port the kernel chooses, small rings and buffers.
pub fn small_config() -> Config {
    let mut config = Config {
        listeners: vec![Listener {
            transport: Transport::RawSocket,
            address: "127.0.0.1:0".parse().expect("address"),
            path: String::new(),
            connections_max: 1_000,
            message_max: 1 << 20,
            backlog: 128,
            ..Listener::of(Transport::RawSocket)
        }],
        ..Config::default()
    };
    config.io.ring_entries = 64;
    config.io.receive_buffers = 32;
    config.io.receive_buffer_size = 4_096;
    config.io.mesh_entries = 4;
    config.io.short_wait = Duration::from_millis(1);
    config
}
