//! All state of one core: connections, sessions, routes. Sans-IO: the driver in `io` feeds it and drains it.
//!
//! The driver's turn: hand over what was received (`receive`), accepted, sent, closed and what other shards sent
//! (`mesh_in`), then `poll` until `None`, then move the mesh batches (`mesh_ready`, `take_batch`) and the feed.
//!
//! ```text
//! receive ▶ conn (framing) ▶ login | session ▶ broker | dealer ▶ outbound ▶ poll, take_send
//!                                               │      ▲
//!                                        mesh_out      mesh_in (other shards)
//! ```
//! Invariants: a slot with a session is in phase `Open`; a subscriber's place in its topic and the topic in its
//! session's table agree; what a peer sends changes only its own connection's phase.

mod answers;
mod broker;
mod cache;
mod cancel;
mod claims;
mod clock;
mod compression;
mod config;
mod conn;
mod dealer;
mod delivery;
mod echo;
mod endings;
mod features;
mod flow;
mod groups;
mod history;
mod http;
mod identity;
mod inbound;
mod inflating;
mod leaving;
mod login;
mod members;
mod meta;
mod nodes;
mod options;
mod origin;
mod orphans;
mod outbound;
mod output;
mod overlay;
mod peers;
mod publication;
mod realm;
mod realms;
mod register;
pub(crate) mod relay;
mod remains;
mod remote;
mod replay;
mod report;
mod resume;
mod retained;
mod routes;
mod rules;
mod said;
mod scans;
mod session;
mod sharded;
mod shared;
mod sites;
mod timers;

use crate::feed::{FeedDown, FeedUp};
use crate::mesh::{Batch, Caller, Owner};
use cache::Cache;
use claims::Claims;
use clock::Clock;
use common::ids::{ID_MAX, Match, RealmId, RouteKind, ShardId, ShardSet, SnapshotVersion};
use common::metrics::{Counter, Metrics};
use common::uri::is_reserved;
pub use config::ShardConfig;
use conn::{Conn, IdMap, Phase, Route, Session};
use foldhash::fast::RandomState;
use hashbrown::HashMap;
pub use http::HttpConfig;
pub(crate) use http::{Ask, Tell};
use nodes::Nodes;
pub(crate) use options::CancelMode;
pub use origin::Origin;
use outbound::Pool;
pub use outbound::{Segment, SendBuf};
pub use output::{Dial, Flow, Output};
use realm::{Group, Procedure, Realm, Topic};
use relay::Relay;
pub use relay::{RelayConfig, TlsConfig, TlsError};
pub use resume::ResumeConfig;
pub(crate) use resume::{ToPort, ToSeat};
use routes::Folded;
use slab::Slab;
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};
use timers::{Tick, Timers};

/// A connection of this shard. The driver chooses `slot` (dense, reused once every kernel operation of the old
/// connection has ended) and `generation` (different at each reuse of a slot).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ConnId {
    pub slot: u32,
    pub generation: u32,
}

/// One core's state.
#[derive(Debug)]
pub struct Shard {
    config: ShardConfig,
    me: ShardId,
    now: Instant,
    clock: Clock,
    tick: Tick,
    conns: Vec<Option<Box<Conn>>>,
    conns_len: usize,
    /// Connections that are not yet logged in.
    logins: u32,
    /// Open connections by listener.
    by_listener: Vec<u32>,
    /// Slots of HTTP clients' transports.
    transports: http::Slots,
    sessions: u32,
    realms: Vec<Realm>,
    realm_index: HashMap<RealmId, u32, RandomState>,
    version: SnapshotVersion,
    topics: Slab<Topic>,
    procedures: Slab<Procedure>,
    /// Registrations of several callees that this shard is the home of.
    groups: Slab<Group>,
    /// Calls for which this shard chose the callee.
    shared: shared::Shared,
    /// Bytes of calls that wait for a REGISTERED.
    held_bytes: usize,
    subscriptions: u64,
    calls: u64,
    /// Calls of other shards that are open or held here, and their way.
    foreign: HashMap<Caller, Route, RandomState>,
    /// Calls that time out: when, and a number of their own; whose, and how long each result prolongs them.
    deadlines: BTreeMap<(Instant, u64), (Caller, Duration)>,
    folded: Folded,
    nodes: Nodes,
    relay: Relay,
    resumption: resume::Resumption,
    changes: remote::Changes,
    upkeep: realms::Upkeep,
    retained: retained::Retained,
    histories: history::Histories,
    stamps: history::Stamps,
    /// Grows with every change that can change answers of the route cache in all realms.
    generation: u64,
    cache: Cache,
    /// Questions of the meta API that are under way.
    asks: meta::Asks,
    searches: meta::Searches,
    ids: meta::Ids,
    /// Slots whose ended sessions still hold subscriptions.
    leaving: VecDeque<u32>,
    orphans: orphans::Orphans,
    endings: endings::Endings,
    /// Spreads, registrations and their ends that wait for other shards, by token.
    awaited: IdMap<register::Awaited>,
    last_token: u64,
    #[expect(clippy::vec_box, reason = "batches travel between shards as boxes")]
    mesh_out: Vec<Box<Batch>>,
    mesh_ready: ShardSet,
    mesh_blocked: ShardSet,
    /// The other shards were told that this one is short of memory.
    is_short: bool,
    /// Shards that said so of themselves.
    short_shards: ShardSet,
    /// Shards the message in hand was passed to.
    fed: ShardSet,
    #[expect(clippy::vec_box, reason = "batches travel between shards as boxes")]
    spare_batches: Vec<Box<Batch>>,
    pool: Pool,
    scratch: delivery::Scratch,
    /// Bytes queued to all connections.
    queued_bytes: usize,
    /// Bytes of incomplete messages of all connections.
    partial_bytes: usize,
    /// Bytes reserved for compression contexts of all connections.
    context_bytes: usize,
    inflating: inflating::Inflating,
    dirty: Vec<u32>,
    paused: Vec<ConnId>,
    /// Connections whose queue overflowed, closed when the input in hand is done.
    doomed: Vec<ConnId>,
    outputs: VecDeque<Output>,
    timers: Timers<ConnId>,
    /// Entries that came up and were not yet looked at.
    due: Vec<ConnId>,
    claims: Claims,
    feed_up: VecDeque<FeedUp>,
    draining: bool,
    drained_said: bool,
    rng: fastrand::Rng,
    hasher: RandomState,
    metrics: Metrics,
    /// A bound for the framer that is in use.
    new_bound: Option<usize>,
}

/// Emptied mesh batches a shard keeps.
const SPARE_BATCHES_MAX: usize = 16;

impl Shard {
    pub fn new(config: ShardConfig, now: Instant) -> Self {
        let mut rng = fastrand::Rng::with_seed(config.seed);
        let hasher = RandomState::default();
        let shards = config.shards;
        Self {
            me: config.shard,
            now,
            clock: Clock::new(now),
            tick: 0,
            conns: Vec::new(),
            conns_len: 0,
            logins: 0,
            by_listener: vec![0; config.listeners.len()],
            transports: http::Slots::default(),
            sessions: 0,
            realms: Vec::new(),
            realm_index: HashMap::with_hasher(hasher.clone()),
            version: SnapshotVersion(0),
            topics: Slab::new(),
            procedures: Slab::new(),
            groups: Slab::new(),
            shared: shared::Shared::default(),
            held_bytes: 0,
            subscriptions: 0,
            calls: 0,
            foreign: HashMap::with_hasher(hasher.clone()),
            deadlines: BTreeMap::new(),
            folded: Folded::default(),
            nodes: Nodes::default(),
            relay: Relay::new(config.relay.clone(), config.memory_max, &hasher),
            resumption: resume::Resumption::new(&hasher),
            changes: remote::Changes::default(),
            upkeep: realms::Upkeep::default(),
            retained: retained::Retained::default(),
            histories: history::Histories::default(),
            stamps: history::Stamps::default(),
            generation: 0,
            cache: Cache::new(hasher.clone()),
            asks: meta::Asks::new(&hasher),
            searches: meta::Searches::default(),
            ids: meta::Ids::default(),
            leaving: VecDeque::new(),
            orphans: orphans::Orphans::default(),
            endings: endings::Endings::default(),
            awaited: HashMap::with_hasher(hasher.clone()),
            last_token: 0,
            mesh_out: (0..shards).map(|_| Box::default()).collect(),
            mesh_ready: ShardSet::EMPTY,
            mesh_blocked: ShardSet::EMPTY,
            is_short: false,
            short_shards: ShardSet::EMPTY,
            fed: ShardSet::EMPTY,
            spare_batches: Vec::new(),
            pool: Pool::default(),
            scratch: delivery::Scratch::default(),
            queued_bytes: 0,
            partial_bytes: 0,
            context_bytes: 0,
            inflating: inflating::Inflating::default(),
            dirty: Vec::new(),
            paused: Vec::new(),
            doomed: Vec::new(),
            outputs: VecDeque::new(),
            timers: Timers::new(now),
            due: Vec::new(),
            claims: Claims::default(),
            feed_up: VecDeque::new(),
            draining: false,
            drained_said: false,
            rng: rng.fork(),
            hasher,
            metrics: Metrics::default(),
            new_bound: None,
            config,
        }
    }

    /// A connection was accepted on `config.listeners[listener]`, or on the relay's if there are no so many. False: refused, the driver closes it (the shard has
    /// already counted it and holds nothing).
    pub fn accept(&mut self, now: Instant, conn: ConnId, listener: usize, origin: impl Into<Origin>) -> bool {
        self.set_now(now);
        if listener == self.config.listeners.len() {
            return self.relay_accept(conn);
        }
        if self.draining || !self.has_room(listener) {
            self.metrics.count(Counter::ConnectionsRefused);
            return false;
        }
        self.metrics.count(Counter::ConnectionsAccepted);
        let slot = conn.slot as usize;
        if self.conns.len() <= slot {
            self.conns.resize_with(slot + 1, || None);
        }
        assert!(self.conns[slot].is_none(), "the driver reuses a slot only after Output::Close");
        self.conns[slot] =
            Some(Box::new(Conn::new(conn.generation, listener as u16, origin.into(), self.tick)));
        self.conns_len += 1;
        self.logins += 1;
        self.by_listener[listener] += 1;
        self.set_deadline(conn.slot, self.config.timeouts.login);
        true
    }

    /// This shard's share of the node's connection limits.
    fn has_room(&self, listener: usize) -> bool {
        let share = |max: u32| max.div_ceil(self.config.shards as u32);
        self.by_listener[listener] < share(self.config.listeners[listener].connections_max)
            && self.logins < share(self.config.limits.logins_pending_max)
    }

    /// Bytes came from the peer; they may be changed in place (unmasking).
    pub fn receive(&mut self, now: Instant, conn: ConnId, bytes: &mut [u8]) -> Flow {
        self.set_now(now);
        let tick = self.tick;
        let Some(state) = self.conn_mut(conn) else { return self.relay_receive(conn, bytes) };
        state.last_heard = tick;
        state.pinged = false;
        let phase = state.phase;
        self.metrics.add(Counter::BytesReceived, bytes.len() as u64);
        self.fed = ShardSet::EMPTY;
        self.resumption.stalled = false;
        match phase {
            Phase::Opening => self.open(conn.slot, bytes),
            Phase::Login | Phase::Resuming | Phase::Open | Phase::Carrying | Phase::Leaving => {
                self.frames(conn.slot, bytes);
            }
            Phase::Echo => self.echo(conn.slot, bytes),
            Phase::Http => self.http(conn.slot, bytes),
            Phase::Flushing | Phase::Lingering => {}
        }
        self.hold_partial(conn);
        self.bury();
        self.flow(conn)
    }

    /// The peer closed, or the connection broke. The shard answers with [`Output::Close`].
    pub fn closed(&mut self, now: Instant, conn: ConnId) {
        self.set_now(now);
        if self.conn_mut(conn).is_some() {
            self.lose(conn.slot);
        } else {
            self.relay_closed(conn);
        }
        self.bury();
    }

    /// The connection's bytes to send, after [`Output::Send`].
    pub fn take_send(&mut self, conn: ConnId) -> SendBuf {
        let Some(Some(state)) = self.conns.get_mut(conn.slot as usize) else {
            return self.relay_take_send(conn);
        };
        if state.away.is_some() {
            return self.take_last(conn);
        }
        let mut bytes = state.out.bytes();
        let buf = if state.is_packed() {
            let queued = std::mem::take(&mut bytes);
            let buf = state.pack(&mut self.scratch.codecs, &mut self.pool);
            bytes = buf.bytes();
            self.queued_bytes = self.queued_bytes + bytes - queued;
            if state.packing.is_some() {
                self.metrics.add(Counter::DeflatedBytes, queued.saturating_sub(bytes) as u64);
            }
            buf
        } else {
            state.out.take(&mut self.pool)
        };
        state.sending_bytes = bytes as u32;
        self.metrics.add(Counter::BytesSent, bytes as u64);
        buf
    }

    /// A `SendBuf` went out whole (`ok`), or the connection broke.
    pub fn sent(&mut self, now: Instant, conn: ConnId, buf: SendBuf, ok: bool) {
        self.set_now(now);
        self.pool.recycle(buf);
        let tick = self.tick;
        let Some(state) = self.conn_mut(conn) else { return self.relay_sent(conn, ok) };
        if state.away.is_some() {
            return self.last_sent(conn, ok);
        }
        state.sending = false;
        if state.paused && ok {
            // Nothing can be heard of a peer that is not read; that it takes what it is sent shows that it lives.
            state.last_heard = tick;
            state.pinged = false;
        }
        let sent = std::mem::take(&mut state.sending_bytes) as usize;
        if !ok {
            self.queued_bytes -= sent;
            self.lose(conn.slot);
            return self.bury();
        }
        let (speaks_http, carries) = (state.http.is_some(), state.phase == Phase::Carrying);
        if !state.out.is_empty() || state.phase == Phase::Flushing {
            self.mark_dirty(conn.slot);
        }
        self.queued_bytes -= sent;
        if speaks_http {
            self.sent_http(conn.slot);
            return self.bury();
        }
        if carries {
            self.port_drained(conn.slot);
        }
        self.resume();
    }

    /// Something from the link thread.
    pub fn feed(&mut self, now: Instant, down: FeedDown) {
        self.set_now(now);
        match down {
            FeedDown::Snapshot(snapshot) => self.take_snapshot(&snapshot),
            FeedDown::Delta(delta) => self.take_delta(&delta),
            FeedDown::Peers(peers) => self.take_peers(&peers),
            FeedDown::Routes { first_seq, changes } => self.take_routes(first_seq, &changes),
            FeedDown::Revoke { realm, policy, uri } => self.revoke(realm, policy, &uri),
            FeedDown::Unroute { seq, node } => self.take_unroute(seq, node),
            FeedDown::Retained(topics) => self.take_retained(&topics),
            FeedDown::Resync => {
                self.changes.begin();
                self.claims.start_resync();
                self.retained.tell_again();
            }
            FeedDown::Stats => self.report(),
            FeedDown::Drain => self.drain(),
        }
        self.bury();
    }

    /// The next thing for the link thread, at most one claims frame's worth. When the channel is full the driver keeps
    /// what it took and calls again only after that was sent; claims wait in the shard up to a bound and are then
    /// replaced by a whole resync.
    pub fn take_feed(&mut self) -> Option<FeedUp> {
        if let Some(up) = self.feed_up.pop_front() {
            return Some(up);
        }
        if let Some(up) = self.take_claims() {
            return Some(up);
        }
        if let Some(up) = self.tell_retained() {
            return Some(up);
        }
        if self.is_drained() && !self.drained_said {
            self.drained_said = true;
            self.say_remains();
            return Some(FeedUp::Drained { shard: self.me });
        }
        None
    }

    /// The next thing to do. Cheap when there is none.
    #[inline]
    pub fn poll(&mut self) -> Option<Output> {
        loop {
            if let Some(output) = self.outputs.pop_front() {
                return Some(output);
            }
            let Some(slot) = self.dirty.pop() else { return self.relay_poll() };
            let Some(Some(conn)) = self.conns.get_mut(slot as usize) else { continue };
            conn.dirty = false;
            let id = ConnId { slot, generation: conn.generation };
            if conn.sending {
                if conn.http.is_some() {
                    self.transport_ready(slot);
                    self.bury();
                } else if conn.away.is_some() {
                    self.carry_on(slot);
                }
                continue;
            }
            if !conn.out.is_empty() {
                conn.sending = true;
                return Some(Output::Send(id));
            }
            if conn.phase == Phase::Flushing {
                self.linger(slot);
                return Some(Output::ShutdownWrite(id));
            }
        }
    }

    /// When [`Shard::timeout`] must be called at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        let upkeep = self.has_upkeep() || !self.leaving.is_empty() || !self.endings.is_empty();
        let waits = upkeep || !self.inflating.is_empty() || !self.due.is_empty();
        let upkeep = waits.then_some(self.now);
        let (asks, expired) = (self.asks.deadline(), self.resumption.deadline(self.now));
        [upkeep, self.timers.deadline(), self.relay.deadline(), self.calls_deadline(), asks, expired]
            .into_iter()
            .flatten()
            .min()
    }

    /// Time has passed; due timers act.
    pub fn timeout(&mut self, now: Instant) {
        self.set_now(now);
        self.go_on_upkeep();
        self.go_on_leaving();
        self.go_on_orphans();
        self.go_on_ending();
        self.go_on_expiring();
        self.go_on_inflating();
        self.go_on_searching();
        self.look_at_due();
        self.calls_timeout();
        self.asks_timeout();
        self.relay_timeout();
        self.bury();
    }

    /// What the time of day is, since 1970-01-01 UTC. A shard that is not told lives in 1970.
    pub const fn set_clock(&mut self, now: Instant, unix: Duration) {
        self.clock.set(now, unix);
    }

    /// Milliseconds since 1970-01-01 UTC.
    fn unix_ms(&self) -> u64 {
        self.clock.unix_ms(self.now)
    }

    /// Counters of the driver are added here.
    pub fn metrics_mut(&mut self) -> &mut Metrics {
        &mut self.metrics
    }

    /// True once a drain was asked for and the last connection is gone.
    pub fn is_drained(&self) -> bool {
        self.draining && self.conns_len == 0 && self.relay.is_empty()
    }

    fn set_now(&mut self, now: Instant) {
        if now != self.now {
            self.now = now;
            self.tick = self.timers.tick(now);
            self.inflating.next_turn();
            self.searches.next_turn();
            self.orphans.next_turn();
        }
    }

    #[inline]
    fn conn_mut(&mut self, conn: ConnId) -> Option<&mut Conn> {
        match self.conns.get_mut(conn.slot as usize) {
            Some(Some(state)) if state.generation == conn.generation => Some(state),
            _ => None,
        }
    }

    /// The connection in a slot that is known to be taken.
    #[inline]
    fn at(&mut self, slot: u32) -> &mut Conn {
        self.conns[slot as usize].as_mut().expect("the slot of a connection in hand is taken")
    }

    /// Names the session in a slot to others, for an answer to come.
    #[inline]
    fn owner(&mut self, slot: u32) -> Owner {
        Owner { shard: self.me, slot, session: self.session(slot).id }
    }

    /// The session of this shard that `owner` names, unless it has ended.
    #[inline]
    fn session_of(&mut self, owner: Owner) -> Option<&mut Session> {
        let session = self.conns.get_mut(owner.slot as usize)?.as_mut()?.session.as_mut()?;
        (session.id == owner.session).then_some(session)
    }

    #[inline]
    fn mark_dirty(&mut self, slot: u32) {
        let conn = self.at(slot);
        if !conn.dirty {
            conn.dirty = true;
            self.dirty.push(slot);
        }
    }

    /// A random id of the global scope (WAMP, basic profile, "IDs").
    #[inline]
    fn global_id(&mut self) -> u64 {
        (self.rng.u64(..) & (ID_MAX - 1)) + 1
    }

    /// Which state of a realm's routes an answer of the cache must be of. A sum of two numbers that only grow.
    #[inline]
    fn routes_version(&self, realm: u32) -> u64 {
        self.realms[realm as usize].version + self.generation
    }

    /// Another shard or node changed a route: what was resolved with it is resolved anew.
    fn route_changed(&mut self, realm: u32, kind: RouteKind, policy: Match, uri: &str) {
        match policy {
            Match::Exact => {
                self.cache.forget(realm, kind, uri);
                if is_reserved(uri) {
                    self.cache.forget(realm | meta::ROUTERS, kind, uri);
                }
            }
            Match::Prefix | Match::Wildcard => self.realms[realm as usize].version += 1,
        }
    }

    fn token(&mut self) -> u64 {
        self.last_token += 1;
        self.last_token
    }

    /// The batch to another shard, which will be sent after the turn.
    #[inline]
    fn mesh(&mut self, to: ShardId) -> &mut Batch {
        debug_assert_ne!(to, self.me, "a shard does not send itself batches");
        self.mesh_ready = self.mesh_ready.with(to);
        self.fed = self.fed.with(to);
        self.metrics.count(Counter::MeshMessages);
        &mut self.mesh_out[to.index()]
    }

    fn others(&self) -> ShardSet {
        ShardSet::first(self.config.shards).without(self.me)
    }
}
