//! One connection: its framing, its phase, its outbound queue and, once logged in, its session.

use super::outbound::Outbound;
use super::timers::Tick;
use common::transport::{Framer, Framing};
use common::wire::Serializer;
use foldhash::fast::RandomState;
use hashbrown::HashMap;

use crate::mesh::Caller;

/// Where a connection is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// The RawSocket handshake or HTTP upgrade is coming in.
    Opening,
    /// Framing is set up; HELLO is expected.
    Login,
    /// A session is established.
    Open,
    /// We said GOODBYE and wait for the answer; everything else is ignored.
    Leaving,
    /// Nothing is read any more; what is queued still goes out.
    Flushing,
    /// Writing is shut down; the peer is expected to close.
    Lingering,
}

/// A connection. An idle one owns no buffer.
#[derive(Debug)]
pub(super) struct Conn {
    pub generation: u32,
    pub phase: Phase,
    pub framing: Framing,
    pub serializer: Serializer,
    /// Taken while its frames are handled.
    pub framer: Option<Framer>,
    pub listener: u16,
    pub loopback: bool,
    /// In the list of connections to flush.
    pub dirty: bool,
    /// A `SendBuf` is with the driver.
    pub sending: bool,
    /// Reads are paused.
    pub paused: bool,
    /// A ping is out.
    pub pinged: bool,
    /// Longest message the peer wants to receive.
    pub peer_message_max: u32,
    /// Bytes with the driver.
    pub sending_bytes: u32,
    /// Bytes of an incomplete message.
    pub partial_bytes: u32,
    /// Events dropped since the session was last told.
    pub dropped: u32,
    pub last_heard: Tick,
    /// When a connection that has no session must be gone; when to look at one that has.
    pub deadline: Tick,
    /// When its one valid entry in the timer wheel comes up.
    pub scheduled: Tick,
    pub out: Outbound,
    /// The handshake as far as it has come.
    pub handshake: Vec<u8>,
    pub session: Option<Box<Session>>,
}

/// A WAMP session.
#[derive(Debug)]
pub(super) struct Session {
    pub id: u64,
    /// Index of the realm in this shard.
    pub realm: u32,
    pub strict: bool,
    /// Where the route cache had the last topic and the last procedure.
    pub last_topic: u32,
    pub last_procedure: u32,
    /// Highest request id seen; the next one must follow it when `strict`.
    pub last_request: u64,
    /// Id of the last INVOCATION sent to this session.
    pub last_invocation: u64,
    /// Subscription id to topic and to this session's place among the topic's subscribers.
    pub subscriptions: IdMap<Subscribed>,
    /// Registration id to procedure.
    pub registrations: IdMap<u32>,
    /// Calls of this session that wait for an answer.
    pub calls: IdMap<()>,
    /// Invocations this session has to answer.
    pub invocations: IdMap<Caller>,
    /// SUBSCRIBE and REGISTER requests that wait for other shards.
    pub pending: u32,
}

/// A map keyed by ids that peers choose, so its hash is keyed.
pub(super) type IdMap<V> = HashMap<u64, V, RandomState>;

#[derive(Clone, Copy, Debug)]
pub(super) struct Subscribed {
    pub topic: u32,
    pub place: u32,
}

impl Session {
    pub fn new(id: u64, realm: u32, strict: bool, hasher: &RandomState) -> Self {
        Self {
            id,
            realm,
            strict,
            last_topic: 0,
            last_procedure: 0,
            last_request: 0,
            last_invocation: 0,
            subscriptions: HashMap::with_hasher(hasher.clone()),
            registrations: HashMap::with_hasher(hasher.clone()),
            calls: HashMap::with_hasher(hasher.clone()),
            invocations: HashMap::with_hasher(hasher.clone()),
            pending: 0,
        }
    }
}

impl Conn {
    pub fn new(generation: u32, listener: u16, loopback: bool, now: Tick) -> Self {
        Self {
            generation,
            phase: Phase::Opening,
            framing: Framing::RawSocket,
            serializer: Serializer::Json,
            framer: None,
            listener,
            loopback,
            dirty: false,
            sending: false,
            paused: false,
            pinged: false,
            peer_message_max: u32::MAX,
            sending_bytes: 0,
            partial_bytes: 0,
            dropped: 0,
            last_heard: now,
            deadline: now,
            scheduled: Tick::MAX,
            out: Outbound::default(),
            handshake: Vec::new(),
            session: None,
        }
    }

    /// Bytes the shard holds for this connection.
    pub fn held_bytes(&self) -> usize {
        self.out.bytes() + self.sending_bytes as usize
    }
}
