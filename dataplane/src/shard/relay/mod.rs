//! Connections to the shards of other nodes.
//!
//! ```text
//! publish, call ▶ lane ▶ link ══════ TCP ══════ link (guest) ▶ topics, procedures, mesh of the other node
//!      answers ◀──────── link ═════════════════ link ◀ answers
//! ```
//! A *lane* is one of the connections this shard wants to a node; it lasts while the node lives and is on one *link*
//! after the other. A *guest* is a link that another node's shard made: it acts here like a session that publishes and
//! calls. Requests go from lane to guest only, answers the other way.
//!
//! Invariants: what a guest publishes or calls stays in this node; a session's requests take one lane; a call leaves
//! once and is answered once, by its callee or by the loss of its link; a link that ended has no frame under way.

mod acks;
mod asks;
mod calls;
mod carry;
mod events;
mod frames;
mod greeting;
mod lanes;
mod link;
mod links;
mod open;
mod succession;
#[cfg(test)]
mod tests;
mod timers;
mod tls;

use super::conn::IdMap;
use super::{ConnId, Flow, Output, Segment, SendBuf, Shard};
use crate::shard::Dial;
use acks::Ack;
use common::ids::ID_MAX;
use common::metrics::{Counter, Gauge};
use common::noise::{Entropy, Terms};
pub(super) use events::Publication;
use foldhash::fast::RandomState;
use hashbrown::HashMap;
use lanes::Lane;
use link::{Link, Phase, Role};
use links::Links;
use std::time::{Duration, Instant};
use succession::Succession;
pub use tls::{TlsConfig, TlsError};

/// What a shard of a cluster is made from.
#[derive(Clone, Debug)]
pub struct RelayConfig {
    /// What the other ends must agree on.
    pub terms: Terms,
    /// Connections to each other node, at least one.
    pub connections: usize,
    /// Bytes that may be queued for one other node.
    pub queue_max: usize,
    /// None: links are not encrypted.
    pub tls: Option<TlsConfig>,
    /// Of this shard alone.
    pub entropy: Entropy,
}

/// The relay's part of a shard.
#[derive(Debug)]
pub(super) struct Relay {
    /// None: the node is by itself.
    config: Option<RelayConfig>,
    /// Bytes that may be queued for one lane.
    lane_queue_max: usize,
    links: Links,
    /// `connections` for each node, by node index.
    lanes: Vec<Option<Box<Lane>>>,
    /// Publications that other nodes have to acknowledge, by publication.
    acks: IdMap<Ack>,
    /// Guests whose handshake waits for other shards, by token.
    successions: IdMap<Succession>,
    /// Accepted links that have not proved anything yet.
    strangers: usize,
    /// Accepted links.
    guests: usize,
    last_link: u64,
    last_dial: u64,
    last_ping: u64,
    /// Links to flush.
    dirty: Vec<u32>,
    /// Bytes queued to all links and lanes.
    pub(super) queued_bytes: usize,
    /// What lanes may have of the shard's memory, bytes.
    memory_max: usize,
    /// A frame on its way to several lanes.
    scratch: Vec<u8>,
    /// When to look at lanes, links and publications.
    next: Option<Instant>,
    finishing: bool,
}

/// How often each end says that it lives.
const PING_INTERVAL: Duration = Duration::from_secs(1);
/// A link of which nothing came for so long is given up: three pings and some time to spare, and less than membership
/// needs to see a crash.
const SILENCE_MAX: Duration = Duration::from_millis(3_500);
/// From connected to the end of the handshake, for a link of ours; others have `timeouts.login`.
const GREETING_MAX: Duration = Duration::from_secs(3);
/// What a lane without a link takes, it keeps for so long after the link went; then it takes nothing.
const HOLD_TIME: Duration = Duration::from_secs(1);
/// Pause before a lane connects again: doubled with each failure, and a random half of it more.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// How long other nodes may take to acknowledge a publication.
const ACK_TIME: Duration = Duration::from_secs(5);
/// A timer that is late by more shows that this process stood still, and not that the others are silent.
const STANDSTILL: Duration = Duration::from_millis(1_500);
/// How long a drained shard waits for the other ends to take what is queued.
const FINISH_TIME: Duration = Duration::from_secs(1);

/// Of the shard's memory lanes may have one part in so many. Up to half of that each lane has what it needs; the other half
/// is shared evenly, so that nodes that keep up have room beside any number that do not.
const MEMORY_PART: u64 = 2;

/// Accepted links of a shard.
const GUESTS_MAX: usize = 16_384;
/// Publications of a shard that wait for acknowledgements.
const ACKS_MAX: usize = 1 << 16;
/// Memory the scratch buffer keeps.
const SCRATCH_KEEP_BYTES_MAX: usize = 1 << 16;

const _: () = assert!(SILENCE_MAX.as_millis() > 3 * PING_INTERVAL.as_millis());
const _: () = assert!(SILENCE_MAX.as_millis() > 2 * STANDSTILL.as_millis());

impl Relay {
    /// `memory_max`: the shard's part of `memory.max`, bytes.
    pub fn new(config: Option<RelayConfig>, memory_max: u64, hasher: &RandomState) -> Self {
        Self {
            lane_queue_max: config.as_ref().map_or(0, |config| config.queue_max / config.connections),
            config,
            links: Links::default(),
            lanes: Vec::new(),
            acks: HashMap::with_hasher(hasher.clone()),
            successions: HashMap::with_hasher(hasher.clone()),
            strangers: 0,
            guests: 0,
            last_link: ID_MAX,
            last_dial: 0,
            last_ping: 0,
            dirty: Vec::new(),
            queued_bytes: 0,
            memory_max: usize::try_from(memory_max / MEMORY_PART).unwrap_or(usize::MAX),
            scratch: Vec::new(),
            next: None,
            finishing: false,
        }
    }

    /// When [`Shard::relay_timeout`] must be called at the latest.
    pub const fn deadline(&self) -> Option<Instant> {
        self.next
    }

    /// True when nothing keeps a drained shard.
    pub fn is_empty(&self) -> bool {
        self.links.is_empty()
    }

    /// What it holds for calls and publications; see [`Shard::remains`].
    pub fn remains(&self) -> [(&'static str, usize); 4] {
        let calls = self.lanes.iter().flatten().map(|lane| lane.calls.len()).sum();
        let of_guests = self.links.iter().map(|(_, link)| link.calls.len()).sum();
        [
            ("calls to other nodes", calls),
            ("calls from other nodes", of_guests),
            ("publications that wait for other nodes", self.acks.len()),
            ("handshakes that wait for other shards", self.successions.len()),
        ]
    }

    /// Has lanes, links and publications looked at then, or earlier.
    fn look_at(&mut self, at: Instant) {
        self.next = Some(self.next.map_or(at, |next| next.min(at)));
    }

    /// Names a link in [`crate::mesh::Owner::session`], where no session has such a number.
    fn link_id(&mut self) -> u64 {
        self.last_link += 1;
        self.last_link
    }

    fn link_mut(&mut self, conn: ConnId) -> Option<&mut Link> {
        self.links.get_mut(conn.slot).filter(|link| link.generation == conn.generation)
    }

    fn mark_dirty(&mut self, slot: u32) {
        if let Some(link) = self.links.get_mut(slot)
            && !link.dirty
        {
            link.dirty = true;
            self.dirty.push(slot);
        }
    }

    /// Another frame of so many bytes would take lanes over the half that is for any of them: what one lane may have, and whether
    /// there is room for the frame at all. Whatever its length, it has room where nothing is queued.
    #[cold]
    pub fn crowded(&self, bytes: usize) -> (usize, bool) {
        let share = self.memory_max / 2 / self.lanes.len().max(1);
        let fits = self.queued_bytes == 0 || self.queued_bytes + bytes <= self.memory_max;
        (share.min(self.lane_queue_max), fits)
    }

    /// Lets a paused link be read again. False: it is gone.
    pub fn unpause(&mut self, conn: ConnId, now: Instant) -> bool {
        let Some(link) = self.link_mut(conn) else { return false };
        link.paused = false;
        // Nothing could be heard of it.
        link.heard = now;
        true
    }
}

impl Shard {
    /// A connection was accepted on the relay's listener.
    pub(super) fn relay_accept(&mut self, conn: ConnId) -> bool {
        let strangers_max =
            self.config.limits.logins_pending_max.div_ceil(self.config.shards as u32) as usize;
        let relay = &mut self.relay;
        let full = relay.strangers >= strangers_max || relay.guests >= GUESTS_MAX;
        if relay.config.is_none() || full || self.draining {
            self.metrics.count(Counter::ConnectionsRefused);
            return false;
        }
        let deadline = self.now + self.config.timeouts.login;
        let id = relay.link_id();
        let link = Link::new(conn.generation, id, Role::Guest, self.now, deadline);
        relay.links.insert(conn.slot, link);
        relay.strangers += 1;
        relay.guests += 1;
        relay.look_at(deadline);
        self.relay_begin(conn.slot)
    }

    /// Bytes came on a connection that is no client's.
    #[inline]
    pub(super) fn relay_receive(&mut self, conn: ConnId, bytes: &[u8]) -> Flow {
        let now = self.now;
        let Some(link) = self.relay.link_mut(conn) else { return Flow::Continue };
        link.heard = now;
        self.metrics.add(Counter::RelayBytesReceived, bytes.len() as u64);
        self.fed = common::ids::ShardSet::EMPTY;
        self.resumption.stalled = false;
        if link.tls.is_some() {
            self.relay_unseal(conn.slot, bytes);
        } else {
            self.relay_input(conn.slot, bytes);
        }
        self.hold_relay_partial(conn);
        self.bury();
        self.flow(conn)
    }

    /// Bytes of the other end's shard.
    #[inline]
    fn relay_input(&mut self, slot: u32, bytes: &[u8]) {
        let Some(link) = self.relay.links.get(slot) else { return };
        match link.phase_name() {
            link::PhaseName::Greeting => self.relay_greet(slot, bytes),
            link::PhaseName::Open => self.relay_frames(slot, bytes),
            link::PhaseName::Securing | link::PhaseName::Closing => {}
        }
    }

    /// Counts what a link has sent of an incomplete frame; as for clients.
    fn hold_relay_partial(&mut self, conn: ConnId) {
        let Some(link) = self.relay.link_mut(conn) else { return };
        let held = link.input.len();
        let before = std::mem::replace(&mut link.partial_bytes, held);
        self.partial_bytes = self.partial_bytes + held - before;
        if held > before && self.partial_bytes as u64 > self.config.memory_max / 2 {
            self.metrics.count(Counter::LimitReached);
            self.relay_drop(conn.slot);
        }
    }

    /// As `flow`, for a link: it is read no further.
    pub(super) fn relay_pause(&mut self, conn: ConnId) -> Flow {
        let Some(link) = self.relay.link_mut(conn) else { return Flow::Continue };
        if !std::mem::replace(&mut link.paused, true) {
            self.paused.push(conn);
            self.metrics.count(Counter::ReadsPaused);
        }
        Flow::Pause
    }

    pub(super) fn relay_closed(&mut self, conn: ConnId) {
        if self.relay.link_mut(conn).is_some() {
            self.relay_drop(conn.slot);
        }
    }

    pub(super) fn relay_take_send(&mut self, conn: ConnId) -> SendBuf {
        let Some(link) = self.relay.link_mut(conn) else { return SendBuf::default() };
        link.sending_bytes = link.out.bytes();
        link.events_queued = 0;
        let mut buf = link.out.take(&mut self.pool);
        if let Some(tls) = &mut link.tls {
            buf.segments.iter().for_each(|segment| tls.write(segment.as_slice()));
            self.pool.recycle(buf);
            buf = SendBuf { segments: vec![Segment::Owned(tls.take())] };
        }
        let bytes: usize = buf.segments.iter().map(|segment| segment.as_slice().len()).sum();
        self.metrics.add(Counter::RelayBytesSent, bytes as u64);
        buf
    }

    pub(super) fn relay_sent(&mut self, conn: ConnId, ok: bool) {
        let Some(link) = self.relay.link_mut(conn) else { return };
        link.sending = false;
        let sent = std::mem::take(&mut link.sending_bytes);
        let more = link.has_output() || matches!(link.phase, Phase::Closing);
        self.relay.queued_bytes -= sent;
        if !ok {
            self.relay_drop(conn.slot);
            return self.bury();
        }
        if more {
            self.relay.mark_dirty(conn.slot);
        }
        self.resume();
    }

    /// The next thing to do for a link.
    #[inline]
    pub(super) fn relay_poll(&mut self) -> Option<Output> {
        while let Some(slot) = self.relay.dirty.pop() {
            let Some(link) = self.relay.links.get_mut(slot) else { continue };
            link.dirty = false;
            if link.sending {
                continue;
            }
            if link.has_output() {
                link.sending = true;
                return Some(Output::Send(ConnId { slot, generation: link.generation }));
            }
            if matches!(link.phase, Phase::Closing) {
                self.relay_drop(slot);
                return self.outputs.pop_front();
            }
        }
        None
    }

    /// Forgets a link and has its socket closed. What waited for it ends with it.
    fn relay_drop(&mut self, slot: u32) {
        let Some(mut link) = self.relay.links.remove(slot) else { return };
        self.relay.queued_bytes -= link.out.clear(&mut self.pool) + link.sending_bytes;
        self.partial_bytes -= link.partial_bytes;
        self.metrics.count(if link.greeted { Counter::RelayLost } else { Counter::RelayHandshakesFailed });
        self.outputs.push_back(Output::Close(ConnId { slot, generation: link.generation }));
        match link.role {
            Role::Guest => {
                self.relay.guests -= 1;
                self.relay.strangers -= usize::from(!link.greeted);
                let calls = std::mem::take(&mut link.calls);
                self.guest_gone(slot, link.id, calls.into_open());
                self.guest_ports_lost(link.id);
            }
            Role::Lane(at) => {
                self.metrics.add(Counter::DroppedRelayLost, link.events_queued);
                self.lane_lost(at);
            }
        }
    }

    /// Sends what is queued, then closes: the last session is gone.
    pub(super) fn relay_finish(&mut self) {
        if std::mem::replace(&mut self.relay.finishing, true) {
            return;
        }
        for at in 0..self.relay.lanes.len() {
            self.lane_remove(at, true);
        }
        let deadline = self.now + FINISH_TIME;
        let slots = self.relay.links.slots();
        for slot in slots {
            self.relay_close(slot, deadline);
        }
    }

    /// Closes a link once what is queued has gone out, at the latest then.
    fn relay_close(&mut self, slot: u32, deadline: Instant) {
        let Some(link) = self.relay.links.get_mut(slot) else { return };
        link.phase = Phase::Closing;
        link.deadline = deadline;
        self.relay.look_at(deadline);
        self.relay.mark_dirty(slot);
    }

    pub(super) fn relay_report(&mut self) {
        let relay = &self.relay;
        let open = relay.links.iter().filter(|(_, link)| matches!(link.phase, Phase::Open)).count();
        let [(_, calls), (_, of_guests), ..] = relay.remains();
        self.metrics.set(Gauge::RelayConnections, open as u64);
        self.metrics.set(Gauge::RelayQueuedBytes, relay.queued_bytes as u64);
        self.metrics.set(Gauge::RelayCallsPending, (calls + of_guests) as u64);
    }

    /// A connection that [`Output::Connect`] asked for is there. False: nobody wants it any more, the driver closes it.
    pub fn connected(&mut self, now: Instant, dial: Dial, conn: ConnId) -> bool {
        self.set_now(now);
        self.lane_connected(dial, conn)
    }

    /// A connection that [`Output::Connect`] asked for could not be made.
    pub fn dial_failed(&mut self, now: Instant, dial: Dial) {
        self.set_now(now);
        self.lane_dial_failed(dial);
    }
}
