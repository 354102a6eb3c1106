//! Sessions that outlive their connections ("Session Resumption", a draft of WAMP's advanced profile).
//!
//! A session stays in the shard and slot where it began, with all it holds; so nothing is routed anew when its client comes back
//! somewhere else, and what is under way finds it. The connection with which the client comes back *carries* the session:
//!
//! ```text
//! client ══ connection, its port ─ ToSeat ▶ (mesh, relay) ▶ the session's slot, its seat
//!                               ◀ ToPort ─                ◀
//! ```
//! To the seat go the client's messages, back go frames; each direction has a window, and the bytes beyond it wait where they are. A
//! session without any connection is *detached*: its slot is parked, its events are kept up to a bound, and it ends when its
//! window is over.
//!
//! Invariants: a port knows one seat and a seat at most one port; a token is good for one resumption; what is lost between a
//! port and a seat ends the connection and leaves the session to wait.

mod ask;
mod port;
mod seat;

use super::conn::{Conn, IdMap};
use super::outbound::Outbound;
use super::timers::Tick;
use super::{ConnId, Shard};
use common::config::Resume;
use common::ids::ShardId;
use common::noise::Entropy;
use common::transport::Framing;
use foldhash::fast::RandomState;
use hashbrown::HashMap;
pub(super) use port::{Port, Wish};
pub(super) use seat::Keeping;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How sessions of a shard outlive their connections.
#[derive(Clone, Debug)]
pub struct ResumeConfig {
    /// Zero: they do not.
    pub window: Duration,
    /// Sessions of this shard that wait.
    pub sessions_max: usize,
    /// Bytes kept for one of them.
    pub buffer_max: usize,
    /// Of this shard alone, for tokens.
    pub entropy: Entropy,
}

impl ResumeConfig {
    /// A shard's part of what a node may do. `seed` is secret, random and used for nothing else.
    pub fn new(config: &Resume, shards: usize, seed: [u8; 32]) -> Self {
        Self {
            window: config.window,
            sessions_max: (config.sessions_max as usize).div_ceil(shards),
            buffer_max: config.buffer_max as usize,
            entropy: Entropy::new(seed),
        }
    }
}

/// The part of a shard's memory that detached sessions may fill with events.
const MEMORY_PART: u64 = 4;
/// Bytes of frames on their way from a seat to its port; one frame may be longer.
const FRAMES_WINDOW: usize = 128 << 10;
/// Bytes of messages on their way from a port to its seat at which the connection is read no further.
const MESSAGES_WINDOW: usize = 256 << 10;
/// How long the holder of a session may take to say whether it is resumed.
const ASK_TIME: Duration = Duration::from_secs(2);
/// How long what is still to be said on the connection a session had may take.
const LAST_TIME: Duration = Duration::from_secs(3);
/// Sessions whose window is over that end in one turn.
const EXPIRE_SLICE: usize = 4;
/// Connections of one shard, and of other nodes through it, that carry sessions or ask for one.
const PORTS_MAX: usize = 1 << 16;

/// To a session from the connection that carries it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum ToSeat {
    /// The client asks for the session ([`ask::Ask`]).
    Ask = 0,
    /// A message of the client.
    Message = 1,
    /// The frames sent last have been taken.
    Taken = 2,
    /// The connection is gone.
    Gone = 3,
    /// What came is no message: `close code u16 │ text`.
    Broken = 4,
}

/// To the connection from the session it carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum ToPort {
    Accepted = 0,
    Refused = 1,
    /// Frames, as [`Framing::RawSocket`] has them.
    Frames = 2,
    /// Messages of so many bytes (u32) have been handled.
    Handled = 3,
    /// The session is over, or is carried by another connection: `close code u16`.
    End = 4,
}

impl ToSeat {
    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::Ask,
            1 => Self::Message,
            2 => Self::Taken,
            3 => Self::Gone,
            4 => Self::Broken,
            _ => return None,
        })
    }
}

impl ToPort {
    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::Accepted,
            1 => Self::Refused,
            2 => Self::Frames,
            3 => Self::Handled,
            4 => Self::End,
            _ => return None,
        })
    }
}

/// The connection that carries a session, by a number of the shard that has its port.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(in crate::shard) struct Carrier {
    pub shard: ShardId,
    pub port: u64,
}

/// What a slot has whose session is no longer on the slot's own connection.
#[derive(Debug)]
pub(in crate::shard) struct Away {
    /// None: the session is detached.
    carrier: Option<Carrier>,
    /// What is still to be said on the slot's own connection.
    last: Outbound,
    /// That connection has a `SendBuf` with the driver.
    sending: bool,
    /// The driver has closed it.
    parked: bool,
    /// Frames are on their way to the port.
    in_flight: bool,
    /// Bytes of messages that were handled and not yet acknowledged, for want of memory.
    owed: usize,
    /// Bytes counted in [`Resumption::kept_bytes`].
    counted: usize,
    /// The session ends then, if it is detached still.
    until: Tick,
    /// Of the client's connection, for details of the session.
    framing: Framing,
    /// With what the carrier is closed.
    close_code: u16,
}

impl Conn {
    /// The session waits for its client.
    #[inline]
    pub fn is_detached(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.waits)
    }

    /// Nobody is there to whom anything could be said.
    pub fn is_forsaken(&self) -> bool {
        self.away.as_ref().is_some_and(|away| away.carrier.is_none())
    }

    /// How the client is connected.
    pub fn shown_framing(&self) -> Framing {
        self.away.as_ref().map_or(self.framing, |away| away.framing)
    }
}

/// A shard's part in resumption.
#[derive(Debug)]
pub(in crate::shard) struct Resumption {
    /// Slots whose sessions are not on their own connections.
    pub(in crate::shard) seated: usize,
    /// Sessions that wait for their clients.
    detached: usize,
    /// Bytes of events kept for them, as counted when the last one was added to each.
    pub(in crate::shard) kept_bytes: usize,
    /// Slots of sessions whose window is over.
    expired: VecDeque<ConnId>,
    /// Slots of seats that owe their ports an acknowledgement.
    owing: Vec<ConnId>,
    /// Slots of carried sessions.
    seats: HashMap<Carrier, u32, RandomState>,
    ports: IdMap<Port>,
    /// Numbers of ports that connections of other nodes have here, by link and their number there.
    guests: HashMap<(u64, u64), u64, RandomState>,
    /// Ports that could not be reached, or whose seats cannot; given up when the input in hand is done.
    broken: Vec<u64>,
    /// The connection in hand has sent what its seat has not handled.
    pub(in crate::shard) stalled: bool,
}

impl Resumption {
    pub fn new(hasher: &RandomState) -> Self {
        Self {
            seated: 0,
            detached: 0,
            kept_bytes: 0,
            expired: VecDeque::new(),
            owing: Vec::new(),
            seats: HashMap::with_hasher(hasher.clone()),
            ports: HashMap::with_hasher(hasher.clone()),
            guests: HashMap::with_hasher(hasher.clone()),
            broken: Vec::new(),
            stalled: false,
        }
    }

    /// When [`Shard::go_on_expiring`] must be called at the latest.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        (!self.expired.is_empty()).then_some(now)
    }

    /// Sessions that wait, bytes kept for them, connections that carry sessions.
    pub fn gauges(&self) -> [usize; 3] {
        [self.detached, self.kept_bytes, self.ports.len()]
    }

    /// See [`Shard::remains`].
    pub fn remains(&self) -> [(&'static str, usize); 6] {
        [
            ("slots that are kept for sessions", self.seated),
            ("sessions that wait for their clients", self.detached),
            ("bytes kept for them", self.kept_bytes),
            ("seats", self.seats.len()),
            ("ports", self.ports.len()),
            ("ports of other nodes", self.guests.len()),
        ]
    }
}

impl Shard {
    /// What a shard's sessions without connections may fill.
    pub(in crate::shard) fn kept_bytes_max(&self) -> usize {
        usize::try_from(self.config.memory_max / MEMORY_PART).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::ask::Ask;
    use super::*;
    use crate::feed::FeedDown;
    use crate::shard::{Output, ShardConfig};
    use common::config::{Config, Listener, Transport};
    use common::ids::{BootEpoch, NodeId, RealmId, SnapshotVersion};
    use common::link::Peer;
    use common::metrics::Counter;
    use common::resume::{ResumeToken, TOKEN_BYTES};
    use common::snapshot::{Anonymous, Realm, Snapshot, Source, build};
    use common::transport::{FrameKind, rawsocket, write_client_frame};
    use common::wire::Serializer;
    use fastrand::Rng;
    use std::net::Ipv4Addr;
    use std::sync::Arc;

    const CONN: ConnId = ConnId { slot: 0, generation: 1 };

    fn shard(now: Instant) -> Shard {
        let config = Config { listeners: vec![Listener::of(Transport::RawSocket)], ..Config::default() };
        let config = ShardConfig::new(&config, ShardId(0), 1, BootEpoch(1), [1; 32], 1);
        let source = Source {
            version: SnapshotVersion(1),
            epoch: BootEpoch(1),
            claims_folded: vec![0],
            realms: vec![Realm::new("realm1", Anonymous::Loopback)],
            ..Source::default()
        };
        let bytes = bytes::Bytes::from_owner(build(&source, 1));
        let mut shard = Shard::new(config, now);
        let snapshot = Snapshot::check(bytes).expect("a built snapshot is valid");
        shard.feed(now, FeedDown::Snapshot(Arc::new(snapshot)));
        shard
    }

    /// A session that can be resumed, and its id.
    fn join(shard: &mut Shard, now: Instant) -> u64 {
        assert!(shard.accept(now, CONN, 0, std::net::IpAddr::V4(Ipv4Addr::LOCALHOST)));
        let serializer = Serializer::Json;
        let mut bytes =
            rawsocket::write(rawsocket::Handshake { serializer, message_bytes_max: 1 << 24 }).to_vec();
        let hello = br#"[1,"realm1",{"roles":{"caller":{}},"resumable":true}]"#;
        write_client_frame(Framing::RawSocket, serializer, FrameKind::Message, hello, [0; 4], &mut bytes);
        shard.receive(now, CONN, &mut bytes);
        run(shard, now);
        let session = shard.conns[0].as_ref().and_then(|conn| conn.session.as_ref()).expect("a session");
        assert!(session.token.is_some());
        session.id
    }

    fn run(shard: &mut Shard, now: Instant) {
        while let Some(output) = shard.poll() {
            if let Output::Send(conn) = output {
                let buf = shard.take_send(conn);
                shard.sent(now, conn, buf, true);
            }
        }
        while shard.take_feed().is_some() {}
    }

    #[test]
    fn whatever_other_shards_and_nodes_say_is_taken_or_passed_over() {
        let mut rng = Rng::with_seed(1);
        let mut resumed = 0;
        for _ in 0..300 {
            let mut now = Instant::now();
            let mut shard = shard(now);
            let session = join(&mut shard, now);
            if rng.bool() {
                shard.closed(now, CONN);
            }
            for _ in 0..60 {
                let carrier = Carrier { shard: ShardId(0), port: rng.u64(1..5) };
                let mut bytes: Vec<u8> = (0..rng.usize(..90)).map(|_| rng.u8(..)).collect();
                let held = shard.conns[0].as_ref().and_then(|conn| conn.session.as_ref());
                if rng.bool()
                    && let Some(token) = held.and_then(|session| session.token)
                {
                    let token =
                        if rng.u8(..4) > 0 { token } else { ResumeToken::from_bytes([7; TOKEN_BYTES]) };
                    let ask = Ask {
                        session,
                        token,
                        realm: RealmId::of("realm1"),
                        peer_message_max: rng.u32(..),
                        serializer: Serializer::Json,
                        framing: Framing::WebSocket,
                        origin: crate::shard::Origin::Hidden,
                        who: &[],
                    };
                    bytes = ask.pack();
                }
                let to_seat = ToSeat::from_number(rng.u8(..5)).expect("a kind");
                let to_port = ToPort::from_number(rng.u8(..5)).expect("a kind");
                match rng.u8(..5) {
                    0 | 1 => shard.seat_told(carrier, to_seat, &bytes),
                    2 => shard.port_told(ShardId(0), carrier.port, to_port, &bytes),
                    3 => shard.lane_told_port(0, carrier.port, to_port, &bytes),
                    _ => _ = shard.guest_to_seat((9, 1 << 60, carrier.port), to_seat, &bytes),
                }
                shard.bury();
                run(&mut shard, now);
            }
            resumed += shard.metrics_mut().get(Counter::SessionsResumed);
            shard.guest_ports_lost(1 << 60);
            (1..5).for_each(|port| shard.seat_told(Carrier { shard: ShardId(0), port }, ToSeat::Gone, &[]));
            shard.closed(now, CONN);
            for _ in 0..40 {
                now += Duration::from_secs(5);
                shard.timeout(now);
                run(&mut shard, now);
            }
            assert_eq!(shard.remains(), []);
        }
        assert!(resumed > 300, "{resumed} resumptions");
    }

    /// What the client of a session asks with, if it says the truth.
    fn ask(shard: &Shard, session: u64) -> Ask<'static> {
        let token =
            shard.conns[0].as_ref().and_then(|conn| conn.session.as_ref()).and_then(|held| held.token);
        Ask {
            session,
            token: token.expect("it can be resumed"),
            realm: RealmId::of("realm1"),
            peer_message_max: 1 << 24,
            serializer: Serializer::Json,
            framing: Framing::RawSocket,
            origin: crate::shard::Origin::Hidden,
            who: &[],
        }
    }

    #[test]
    fn a_session_is_given_to_its_client_only() {
        let now = Instant::now();
        let mut shard = shard(now);
        let session = join(&mut shard, now);
        shard.closed(now, CONN);
        run(&mut shard, now);
        let right = ask(&shard, session);
        let token = ResumeToken::from_bytes([7; TOKEN_BYTES]);
        for wrong in [
            Ask { session: session + 1, ..right },
            Ask { token, ..right },
            Ask { realm: RealmId::of("realm2"), ..right },
            Ask { serializer: Serializer::Cbor, ..right },
            Ask { who: b"somebody else", ..right },
        ] {
            shard.seat_told(Carrier { shard: ShardId(0), port: 1 }, ToSeat::Ask, &wrong.pack());
            assert_eq!(shard.metrics.get(Counter::SessionsResumed), 0, "{wrong:?}");
        }
        shard.seat_told(Carrier { shard: ShardId(0), port: 1 }, ToSeat::Ask, &right.pack());
        assert_eq!(shard.metrics.get(Counter::SessionsResumed), 1);
    }

    #[test]
    fn what_one_node_asks_for_is_not_passed_on_to_another() {
        let now = Instant::now();
        let mut shard = shard(now);
        let session = join(&mut shard, now);
        let epoch = BootEpoch(2);
        let third = Peer { node: NodeId([3; 16]), epoch, relay: "127.0.0.1:1".to_owned() };
        shard.feed(now, FeedDown::Peers([third].into()));
        let token = ResumeToken::new(&[5; 32], ShardId(0), epoch);
        let ask = Ask { token, ..ask(&shard, session) };
        assert!(shard.holder_of(session, &token).is_some(), "a client of this node would be served");
        assert!(shard.guest_to_seat((9, 1 << 60, 1), ToSeat::Ask, &ask.pack()));
        assert!(shard.resumption.guests.is_empty() && shard.resumption.ports.is_empty());
    }
}
