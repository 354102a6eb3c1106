//! One connection: its framing, its phase, its outbound queue and, once logged in, its session.

use super::compression::Packing;
use super::origin::Origin;
use super::outbound::Outbound;
use super::timers::Tick;
use common::transport::{Framer, Framing};
use common::wire::{OwnedValue, Serializer};
use foldhash::fast::RandomState;
use hashbrown::HashMap;
use std::rc::Rc;
use std::time::Instant;

use super::features::Features;
use super::http::Http;
use super::identity::Identity;
use super::meta::Testaments;
use super::replay::Held;
use super::resume::Away;
use super::rules::SessionRules;
use super::said::Kept;
use crate::mesh::{Caller, Terms};
use common::ids::ShardId;
use common::resume::ResumeToken;

/// Where a connection is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// The RawSocket handshake or HTTP upgrade is coming in.
    Opening,
    /// Framing is set up; HELLO is expected.
    Login,
    /// The holder of the session that HELLO names is asked.
    Resuming,
    /// A session is established.
    Open,
    /// What comes is for a session of another slot, shard or node.
    Carrying,
    /// No session: messages go back as they came.
    Echo,
    /// No session: requests come in that transports in other slots answer.
    Http,
    /// We said GOODBYE and wait for the answer; everything else is ignored.
    Leaving,
    /// Nothing is read any more; what is queued still goes out.
    Flushing,
    /// Writing is shut down; the peer is expected to close.
    Lingering,
}

/// A connection. An idle one owns no buffer. What every message needs comes first, so that a message to one of very many
/// connections touches few cache lines.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Conn {
    pub session: Option<Box<Session>>,
    pub out: Outbound,
    /// Taken while its frames are handled.
    pub framer: Option<Framer>,
    /// Compression, when it was agreed on.
    pub packing: Option<Box<Packing>>,
    pub generation: u32,
    /// Longest message the peer wants to receive.
    pub peer_message_max: u32,
    /// Bytes with the driver.
    pub sending_bytes: u32,
    /// Bytes of an incomplete message.
    pub partial_bytes: u32,
    pub last_heard: Tick,
    /// Events dropped since the session was last told.
    pub dropped: u32,
    pub phase: Phase,
    pub framing: Framing,
    pub serializer: Serializer,
    /// In the list of connections to flush.
    pub dirty: bool,
    /// A `SendBuf` is with the driver.
    pub sending: bool,
    /// Reads are paused.
    pub paused: bool,
    /// A ping is out.
    pub pinged: bool,
    /// Events tell the session how far they are trusted.
    pub trusting: bool,
    /// The session has events held back.
    pub holding: bool,
    pub listener: u16,
    pub origin: Origin,
    /// The PROXY header, where one is expected, was read.
    pub introduced: bool,
    /// When a connection that has no session must be gone; when to look at one that has.
    pub deadline: Tick,
    /// When its one valid entry in the timer wheel comes up.
    pub scheduled: Tick,
    /// The handshake as far as it has come.
    pub handshake: Vec<u8>,
    /// It speaks HTTP, or is the transport of a client that does.
    pub http: Option<Box<Http>>,
    /// A session that has ended and still holds subscriptions. While it does, the slot stays taken.
    pub leaving: Option<Box<Session>>,
    /// The connection is to be forgotten once that is over.
    pub gone: bool,
    /// The session is not on this connection, or no longer.
    pub away: Option<Box<Away>>,
    /// Its port, when it carries a session or asks for one; else 0.
    pub port: u64,
}

impl Phase {
    /// There has been no session yet, or there is none any more.
    pub const fn is_login(self) -> bool {
        matches!(self, Self::Opening | Self::Login | Self::Resuming)
    }
}

/// A WAMP session; what every message needs comes first, as for [`Conn`].
#[derive(Debug)]
#[repr(C)]
pub(super) struct Session {
    pub id: u64,
    /// Index of the realm in this shard.
    pub realm: u32,
    /// Where the route cache had the last topic and the last procedure.
    pub last_topic: u32,
    pub last_procedure: u32,
    pub features: Features,
    pub strict: bool,
    /// Highest request id seen; the next one must follow it when `strict`.
    pub last_request: u64,
    /// Id of the last INVOCATION sent to this session.
    pub last_invocation: u64,
    /// Calls of this session that wait for an answer.
    pub calls: IdMap<Call>,
    /// Invocations this session has to answer.
    pub invocations: IdMap<Invocation>,
    /// How many they may be: none while it waits for its client.
    pub invocations_max: u32,
    /// Calls in parts that ended before their last part came.
    pub unfinished: Vec<u64>,
    /// Registration id to procedure.
    pub registrations: IdMap<u32>,
    /// Grows from session to session of the shard.
    pub born: u64,
    pub identity: Identity,
    /// Subscription id to topic and to this session's place among the topic's subscribers.
    pub subscriptions: IdMap<Subscribed>,
    /// What its client announced, and what of that is not switched off.
    pub announced: Features,
    pub rules: Rc<SessionRules>,
    /// The version of the realm's rules that `rules` are from.
    pub rules_at: u32,
    /// The same, when plain messages need no look at `rules`; else 0.
    pub unruled_at: u32,
    /// SUBSCRIBE and REGISTER requests that wait for other shards.
    pub pending: u32,
    pub testaments: Testaments,
    /// What `wamp.session.modify_details` put.
    pub details: Vec<(String, OwnedValue)>,
    /// Nobody is told that it ends.
    pub silent: bool,
    /// Subscriptions that are still to be given up, once it has ended.
    pub held: Vec<u64>,
    /// Those of them, and of the request in hand, that want retained events.
    pub get_retained: Vec<u64>,
    /// SUBSCRIBEs that named a node key, and the keys.
    pub node_keys: Vec<(u64, u64)>,
    /// Events held back until retained ones have come.
    pub held_events: Held,
    /// With what its client gets it back; none: it ends with its connection.
    pub token: Option<ResumeToken>,
    /// It waits for its client.
    pub waits: bool,
    /// The next request may leave out ids: those of requests that were lost with a connection.
    pub gap: bool,
}

/// A call that waits for an answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    pub route: Route,
    pub terms: Terms,
    /// When it times out, and its number among calls that do.
    pub deadline: Option<(Instant, u64)>,
}

impl Call {
    pub const fn new(terms: Terms) -> Self {
        Self { route: Route::Nowhere, terms, deadline: None }
    }
}

/// Which way a call went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Route {
    Nowhere,
    /// To the session in this slot of this shard.
    Here {
        slot: u32,
        invocation: u64,
    },
    /// It waits for the REGISTERED of this procedure.
    Held(u32),
    /// It waits for the REGISTERED of this group.
    HeldByGroup(u32),
    /// To a callee that this shard chose, by index of the shard's shared calls.
    Shared(u32),
    Shard(ShardId),
    /// To the router itself, which asks others under this token.
    Asked(u64),
    /// To another node, by this lane and under this id.
    Lane {
        at: usize,
        id: u64,
    },
}

/// An invocation that waits for an answer.
#[derive(Debug)]
pub(super) struct Invocation {
    pub caller: Caller,
    pub registration: u64,
    /// The callee was asked for progressive results.
    pub progress: bool,
    /// What further parts of the call say; nothing, when the last one has come.
    pub parts: Option<Box<Kept>>,
}

/// Most ids in [`Session::unfinished`]; beyond it the oldest is forgotten.
const UNFINISHED_MAX: usize = 64;

impl Session {
    /// A call that came in parts has ended before its last part.
    pub fn put_unfinished(&mut self, request: u64) {
        if self.unfinished.len() >= UNFINISHED_MAX {
            self.unfinished.remove(0);
        }
        self.unfinished.push(request);
    }

    /// True when a CALL continues such a call. `more`: it is not the last part.
    pub fn take_unfinished(&mut self, request: u64, more: bool) -> bool {
        let Some(at) = self.unfinished.iter().position(|unfinished| *unfinished == request) else {
            return false;
        };
        if !more {
            self.unfinished.remove(at);
        }
        true
    }
}

/// A map keyed by ids that peers choose, so its hash is keyed.
pub(super) type IdMap<V> = HashMap<u64, V, RandomState>;

#[derive(Clone, Copy, Debug)]
pub(super) struct Subscribed {
    pub topic: u32,
    pub place: u32,
}

impl Session {
    pub fn new(
        id: u64,
        realm: u32,
        strict: bool,
        announced: Features,
        (rules, version): (Rc<SessionRules>, u32),
        hasher: &RandomState,
    ) -> Self {
        let mut session = Self {
            id,
            born: 0,
            identity: Identity::anonymous(id),
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
            invocations_max: 0,
            unfinished: Vec::new(),
            announced,
            features: announced,
            rules: rules.clone(),
            rules_at: 0,
            unruled_at: 0,
            pending: 0,
            testaments: Testaments::default(),
            details: Vec::new(),
            silent: false,
            held: Vec::new(),
            get_retained: Vec::new(),
            node_keys: Vec::new(),
            held_events: Held::new(hasher),
            token: None,
            waits: false,
            gap: false,
        };
        session.obey(rules, version);
        session
    }
}

impl Conn {
    pub fn new(generation: u32, listener: u16, origin: Origin, now: Tick) -> Self {
        Self {
            generation,
            phase: Phase::Opening,
            framing: Framing::RawSocket,
            serializer: Serializer::Json,
            framer: None,
            listener,
            origin,
            introduced: false,
            dirty: false,
            sending: false,
            paused: false,
            pinged: false,
            peer_message_max: u32::MAX,
            sending_bytes: 0,
            partial_bytes: 0,
            trusting: false,
            holding: false,
            dropped: 0,
            last_heard: now,
            deadline: now,
            scheduled: Tick::MAX,
            out: Outbound::default(),
            packing: None,
            handshake: Vec::new(),
            http: None,
            session: None,
            leaving: None,
            gone: false,
            away: None,
            port: 0,
        }
    }

    /// Bytes the shard holds for this connection.
    pub fn held_bytes(&self) -> usize {
        self.out.bytes() + self.sending_bytes as usize
    }
}
