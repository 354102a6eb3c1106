//! Whole shards of one node or two under a list of operations: connections come and go, send legal, mutilated and random
//! bytes in both framings, stop reading, time passes, control planes speak, connections between nodes break and a node
//! dies. Nothing may panic, and with the last connection everything is gone.
#![no_main]

#[path = "../../tests/shard/rig/mod.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod rig;

use arbitrary::{Arbitrary, Unstructured};
use common::config::SlowPolicy;
use common::metrics::Gauge;
use common::transport::{FrameKind, Framing, rawsocket, upgrade, write_client_frame};
use common::wire::{OwnedValue, Serializer};
use dataplane::feed::FeedDown;
use dataplane::shard::ShardConfig;
use libfuzzer_sys::fuzz_target;
use rig::Rig;
use std::time::Duration;

/// Operations of one run at most.
const ACTIONS_MAX: usize = 200;
const CONNECTIONS_MAX: usize = 24;
/// How long a session waits for its client.
const WINDOW: Duration = Duration::from_secs(5);

#[derive(Arbitrary, Debug)]
struct Run {
    shards: u8,
    /// Another node with as many shards.
    is_cluster: bool,
    closes_slow: bool,
    /// Small bounds on queues and memory, so that they are met.
    small: bool,
}

#[derive(Arbitrary, Debug)]
enum Action {
    /// A connection that also sends its transport handshake and, mostly, HELLO.
    Connect {
        shard: u8,
        websocket: bool,
        serializer: u8,
        hello: u8,
    },
    /// A client comes back to a session, or takes it over, with the token of another connection.
    Back {
        shard: u8,
        websocket: bool,
        link: u8,
    },
    Send {
        link: u8,
        message: Request,
    },
    /// Several messages in one piece.
    SendAll {
        link: u8,
        messages: Vec<Request>,
    },
    /// The first bytes of a message, the rest with one bit changed.
    Mutilate {
        link: u8,
        message: Request,
        cut: u8,
        bit: u8,
    },
    Frame {
        link: u8,
        control: u8,
        payload: Vec<u8>,
    },
    Message {
        link: u8,
        payload: Vec<u8>,
    },
    Raw {
        link: u8,
        bytes: Vec<u8>,
    },
    Stick {
        link: u8,
    },
    Unstick {
        link: u8,
    },
    Break {
        link: u8,
    },
    Close {
        link: u8,
    },
    Turn {
        shard: u8,
    },
    Pass {
        tenths: u16,
    },
    Run,
    /// What is on its way between nodes moves by one step.
    Carry,
    /// Every connection between nodes breaks.
    Cut,
    /// The node of a shard dies.
    Kill {
        shard: u8,
    },
    /// The control planes say that another node keeps a registration.
    Revoke {
        uri: u8,
    },
    /// A shard's control plane sees which snapshot it uses and how many sessions it has.
    Look {
        shard: u8,
    },
}

#[derive(Arbitrary, Debug)]
enum Request {
    Hello { strict: bool, resumable: bool },
    Subscribe { request: u8, policy: u8, uri: u8 },
    Unsubscribe { request: u8, uri: u8 },
    Register { request: u8, policy: u8, uri: u8, invoke: u8, options: u8 },
    Unregister { request: u8, uri: u8 },
    Publish { request: u8, acknowledge: bool, exclude_me: bool, uri: u8, size: u16 },
    Call { request: u8, flags: u8, timeout: u8, uri: u8, size: u16 },
    Cancel { request: u8, mode: u8 },
    Yield { request: u8, progress: bool, passthru: bool, size: u16 },
    Error { is_wrong: bool, request: u8, is_unavailable: bool },
    Goodbye,
    Abort,
    Other { code: u8, request: u8 },
}

const URIS: [&str; 11] = [
    "a",
    "a.b",
    "a.b.c",
    "b..c",
    "wamp.x",
    "a b",
    "wamp.session.add_testament",
    "wamp.session.kill_all",
    "wamp.session.list",
    "wamp.subscription.on_delete",
    "wamp.subscription.match",
];
const POLICIES: [&str; 4] = ["exact", "prefix", "wildcard", "other"];
const INVOKE: [&str; 8] = [
    "single",
    "first",
    "last",
    "roundrobin",
    "random",
    "jump_consistent_hash",
    "queue_least_loaded",
    "queue_least_loaded_sample",
];
const SESSIONS: [&str; 2] = ["realm1", "strict"];

fn int(value: u8) -> OwnedValue {
    OwnedValue::UInt(value.into())
}

fn text(value: &str) -> OwnedValue {
    OwnedValue::Str(value.to_owned())
}

fn dict(entries: &[(&str, OwnedValue)]) -> OwnedValue {
    OwnedValue::Dict(entries.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect())
}

fn uri(index: u8) -> &'static str {
    URIS[usize::from(index) % URIS.len()]
}

fn policy(index: u8) -> &'static str {
    POLICIES[usize::from(index) % POLICIES.len()]
}

fn payload(size: u16) -> OwnedValue {
    OwnedValue::List(vec![text(&"x".repeat(size.into()))])
}

/// The id of a subscription or registration, which is a hash every client can compute.
fn route(kind: common::ids::RouteKind, index: u8) -> OwnedValue {
    use common::ids::{Match, RealmId, route_id};
    OwnedValue::UInt(route_id(RealmId::of("realm1"), kind, Match::Exact, uri(index)))
}

impl Action {
    /// Sooner or later ends the connection it is about.
    fn is_fatal(&self) -> bool {
        match self {
            Self::Mutilate { .. } | Self::Message { .. } | Self::Raw { .. } | Self::Break { .. } => true,
            Self::Frame { control, .. } => control % 3 == 2,
            Self::Pass { tenths } => *tenths > 200,
            Self::Cut | Self::Kill { .. } => true,
            Self::Send { message, .. } => message.is_fatal(),
            Self::SendAll { messages, .. } => messages.iter().any(Request::is_fatal),
            _ => false,
        }
    }
}

impl Request {
    fn is_fatal(&self) -> bool {
        match self {
            Self::Hello { .. } | Self::Abort | Self::Other { .. } => true,
            Self::Error { is_wrong, .. } => *is_wrong,
            Self::Subscribe { policy, .. } | Self::Register { policy, .. } => policy % 4 == 3,
            _ => false,
        }
    }

    fn encode(&self, serializer: Serializer) -> Vec<u8> {
        use common::ids::RouteKind;
        let none = || dict(&[]);
        let elements = match *self {
            Self::Hello { strict, resumable } => {
                let on = |names: &[&str]| {
                    let all: Vec<_> = names.iter().map(|name| (*name, OwnedValue::Bool(true))).collect();
                    dict(&[("features", dict(&all))])
                };
                let callee = on(&[
                    "call_canceling",
                    "progressive_call_results",
                    "progressive_call_invocations",
                    "call_reroute",
                ]);
                let caller = on(&["progressive_call_invocations", "payload_passthru_mode"]);
                let roles =
                    [("publisher", none()), ("subscriber", none()), ("callee", callee), ("caller", caller)];
                let roles = dict(&roles);
                let details = dict(&[("roles", roles), ("resumable", OwnedValue::Bool(resumable))]);
                vec![int(1), text(SESSIONS[usize::from(strict)]), details]
            }
            Self::Subscribe { request, policy: by, uri: at } => {
                vec![int(32), int(request), dict(&[("match", text(policy(by)))]), text(uri(at))]
            }
            Self::Unsubscribe { request, uri: at } => {
                vec![int(34), int(request), route(RouteKind::Topic, at)]
            }
            Self::Register { request, policy: by, uri: at, invoke, options: flags } => {
                let mut options = vec![("match", text(policy(by)))];
                if invoke % 2 == 1 {
                    options.push(("invoke", text(INVOKE[usize::from(invoke / 2) % INVOKE.len()])));
                }
                if flags & 1 != 0 {
                    options.push(("concurrency", int(flags % 5)));
                }
                options.push(("disclose_caller", OwnedValue::Bool(flags & 2 != 0)));
                options.push(("force_reregister", OwnedValue::Bool(flags & 12 == 12)));
                options.push(("forward_timeout", OwnedValue::Bool(flags & 16 != 0)));
                vec![int(64), int(request), dict(&options), text(uri(at))]
            }
            Self::Unregister { request, uri: at } => {
                vec![int(66), int(request), route(RouteKind::Procedure, at)]
            }
            Self::Publish { request, acknowledge, exclude_me, uri: at, size } => {
                let options = [
                    ("acknowledge", OwnedValue::Bool(acknowledge)),
                    ("exclude_me", OwnedValue::Bool(exclude_me)),
                ];
                vec![int(16), int(request), dict(&options), text(uri(at)), payload(size)]
            }
            Self::Call { request, flags, timeout, uri: at, size } => {
                let flag = |bit: u8| OwnedValue::Bool(flags & bit != 0);
                let mut options =
                    vec![("progress", flag(1)), ("receive_progress", flag(2)), ("disclose_me", flag(4))];
                options.push(("timeout", OwnedValue::UInt(u64::from(timeout) * 100)));
                if flags & 8 != 0 {
                    options.push(("ppt_scheme", text("x")));
                }
                if flags & 32 != 0 {
                    options.push(("rkey", text("key")));
                }
                if flags & 64 != 0 {
                    options.push(("runmode", text("partition")));
                }
                // Few ids, so that calls go on and collide.
                let options = if flags & 16 == 0 { dict(&options) } else { none() };
                vec![int(48), int(request % 8 + 1), options, text(uri(at)), payload(size)]
            }
            Self::Cancel { request, mode } => {
                let mode = ["skip", "kill", "killnowait"][usize::from(mode) % 3];
                vec![int(49), int(request % 8 + 1), dict(&[("mode", text(mode))])]
            }
            Self::Yield { request, progress, passthru, size } => {
                let mut options = vec![("progress", OwnedValue::Bool(progress))];
                if passthru {
                    options.push(("ppt_scheme", text("x")));
                }
                vec![int(70), int(request % 4), dict(&options), payload(size)]
            }
            Self::Error { is_wrong, request, is_unavailable } => {
                let kind = if is_wrong { 48 } else { 68 };
                let error = if is_unavailable { "wamp.error.unavailable" } else { "com.example.error" };
                vec![int(8), int(kind), int(request % 4), none(), text(error)]
            }
            Self::Goodbye => vec![int(6), none(), text("wamp.close.normal")],
            Self::Abort => vec![int(3), none(), text("wamp.error.x")],
            Self::Other { code, request } => vec![int(code), int(request), none()],
        };
        let mut message = Vec::new();
        OwnedValue::List(elements).encode(serializer, &mut message);
        message
    }
}

/// The session and the token in the last WELCOME that says one, in JSON.
fn token(got: &[u8]) -> Option<(u64, String)> {
    let (key, welcome) = (b"\"resume_token\":\"", b"[2,");
    let at = got.windows(key.len()).rposition(|bytes| bytes == key)?;
    let token = got.get(at + key.len()..)?.get(..24)?;
    let start = got[..at].windows(welcome.len()).rposition(|bytes| bytes == welcome)? + welcome.len();
    let digits: String = got[start..].iter().map(|byte| char::from(*byte)).take_while(char::is_ascii_digit).collect();
    Some((digits.parse().ok()?, String::from_utf8(token.to_vec()).ok()?))
}

struct World {
    rig: Rig,
    /// Framing and serializer of each connection.
    peers: Vec<(Framing, Serializer)>,
}

impl World {
    fn connect(&mut self, shard: usize, websocket: bool, serializer: u8, hello: u8) {
        if self.peers.len() >= CONNECTIONS_MAX {
            return;
        }
        let serializer = Serializer::ALL[usize::from(serializer) % 3];
        let Some(at) = self.rig.connect(shard, usize::from(websocket)) else { return };
        let framing = if websocket { Framing::WebSocket } else { Framing::RawSocket };
        self.peers.push((framing, serializer));
        let mut bytes = Vec::new();
        if websocket {
            upgrade::write_request("node", "/ws", serializer, [7; 16], &mut bytes);
        } else {
            let handshake = rawsocket::Handshake { serializer, message_bytes_max: 1 << 20 };
            bytes.extend_from_slice(&rawsocket::write(handshake));
        }
        if hello % 16 != 0 {
            let (strict, resumable) = (hello % 16 == 1, hello & 16 != 0);
            bytes.extend_from_slice(&self.frame(
                at,
                FrameKind::Message,
                &Request::Hello { strict, resumable }.encode(serializer),
            ));
        }
        self.rig.receive(at, &bytes);
    }

    /// A connection that says HELLO with the token a JSON client got, if it got one.
    fn come_back(&mut self, shard: usize, websocket: bool, from: usize) -> Option<()> {
        let (session, token) = token(&self.rig.links[from].got)?;
        let before = self.peers.len();
        self.connect(shard, websocket, Serializer::Json.index() as u8, 0);
        if self.peers.len() > before {
            let details = [
                ("roles", dict(&[("caller", dict(&[]))])),
                ("resumable", OwnedValue::Bool(true)),
                ("resume-session", OwnedValue::UInt(session)),
                ("resume-token", text(&token)),
            ];
            let mut hello = Vec::new();
            OwnedValue::List(vec![int(1), text(SESSIONS[0]), dict(&details)]).encode(Serializer::Json, &mut hello);
            let bytes = self.frame(before, FrameKind::Message, &hello);
            self.rig.receive(before, &bytes);
        }
        Some(())
    }

    fn frame(&self, at: usize, kind: FrameKind, payload: &[u8]) -> Vec<u8> {
        let (framing, serializer) = self.peers[at];
        let mut bytes = Vec::new();
        write_client_frame(framing, serializer, kind, payload, [1, 2, 3, 4], &mut bytes);
        bytes
    }

    fn request(&self, at: usize, request: &Request) -> Vec<u8> {
        self.frame(at, FrameKind::Message, &request.encode(self.peers[at].1))
    }

    fn link(&self, link: u8) -> Option<usize> {
        (!self.peers.is_empty()).then(|| usize::from(link) % self.peers.len())
    }

    fn act(&mut self, action: &Action, shards: usize) -> Option<()> {
        match action {
            Action::Connect { shard, websocket, serializer, hello } => {
                self.connect(usize::from(*shard) % shards, *websocket, *serializer, *hello);
            }
            Action::Back { shard, websocket, link } => {
                let from = self.link(*link)?;
                self.come_back(usize::from(*shard) % shards, *websocket, from)?;
            }
            Action::Send { link, message } => {
                let at = self.link(*link)?;
                let bytes = self.request(at, message);
                self.rig.receive(at, &bytes);
            }
            Action::SendAll { link, messages } => {
                let at = self.link(*link)?;
                let bytes: Vec<u8> = messages.iter().flat_map(|message| self.request(at, message)).collect();
                self.rig.receive(at, &bytes);
            }
            Action::Mutilate { link, message, cut, bit } => {
                let at = self.link(*link)?;
                let mut bytes = self.request(at, message);
                let cut = usize::from(*cut) % bytes.len();
                bytes[cut] ^= 1 << (bit % 8);
                let rest = bytes.split_off(cut);
                self.rig.receive(at, &bytes);
                self.rig.receive(at, &rest);
            }
            Action::Frame { link, control, payload } => {
                let at = self.link(*link)?;
                let kind = [FrameKind::Ping, FrameKind::Pong, FrameKind::Close][usize::from(*control) % 3];
                let payload = &payload[..payload.len().min(120)];
                let is_rawsocket = self.peers[at].0 == Framing::RawSocket;
                if !(is_rawsocket && kind == FrameKind::Close) {
                    let bytes = self.frame(at, kind, payload);
                    self.rig.receive(at, &bytes);
                }
            }
            Action::Message { link, payload } => {
                let at = self.link(*link)?;
                let bytes = self.frame(at, FrameKind::Message, payload);
                self.rig.receive(at, &bytes);
            }
            Action::Raw { link, bytes } => self.rig.receive(self.link(*link)?, bytes),
            Action::Stick { link } => {
                let at = self.link(*link)?;
                self.rig.links[at].stuck = true;
            }
            Action::Unstick { link } => {
                let at = self.link(*link)?;
                self.rig.links[at].stuck = false;
            }
            Action::Break { link } => {
                self.rig.finish_send(self.link(*link)?, false);
            }
            Action::Close { link } => self.rig.close(self.link(*link)?),
            Action::Turn { shard } => self.rig.turn(usize::from(*shard) % shards),
            Action::Pass { tenths } => self.rig.pass(Duration::from_millis(100) * u32::from(*tenths)),
            Action::Run => self.rig.run(),
            Action::Carry => self.rig.carry(),
            Action::Cut => self.rig.cut(),
            Action::Kill { shard } => self.rig.kill(usize::from(*shard) % shards),
            Action::Revoke { uri: at } => {
                use common::ids::{Match, RealmId};
                let (realm, policy) = (RealmId::of("realm1"), Match::Exact);
                self.rig.feed(&FeedDown::Revoke { realm, policy, uri: uri(*at).into() });
            }
            Action::Look { shard } => {
                let shard = usize::from(*shard) % shards;
                let sessions = self.rig.gauge(shard, Gauge::Sessions);
                assert!(sessions <= CONNECTIONS_MAX as u64);
                let taken = self.rig.taken(shard);
                assert!(taken.is_none_or(|version| version.0 == 1), "there is one snapshot");
            }
        }
        Some(())
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Unstructured::new(bytes);
    let Ok(run) = Run::arbitrary(&mut input) else { return };
    let shards = usize::from(run.shards % 3) + 1;
    let change = |config: &mut ShardConfig| {
        if run.closes_slow {
            config.slow_receiver.policy = SlowPolicy::Close;
        }
        if run.small {
            config.slow_receiver.queue_max = 8 << 10;
            config.slow_receiver.reply_reserve = 2 << 10;
            config.memory_max = 20 << 10;
            config.limits.subscriptions_max = 3;
            config.limits.calls_pending_max = 3;
            config.resume.buffer_max = 1 << 10;
            config.resume.sessions_max = 2;
        }
        config.resume.window = WINDOW;
    };
    let rig = if run.is_cluster { Rig::cluster(&[shards, shards], change) } else { Rig::new(shards, change) };
    let shards = if run.is_cluster { 2 * shards } else { shards };
    let mut world = World { rig, peers: Vec::new() };
    for _ in 0..ACTIONS_MAX {
        let Ok(action) = Action::arbitrary(&mut input) else { break };
        // Sessions that live long meet each other.
        let chance = u8::arbitrary(&mut input).unwrap_or(0);
        if !action.is_fatal() || chance < 16 {
            world.act(&action, shards);
        }
        if input.is_empty() {
            break;
        }
    }
    world.rig.close_all();
    world.rig.run();
    // Sessions wait for their clients, and those whose connections linger do so later.
    for _ in 0..3 {
        world.rig.pass(2 * WINDOW);
        world.rig.run();
    }
    world.rig.check_empty();
});
