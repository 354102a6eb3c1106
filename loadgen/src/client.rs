//! A WAMP client's session, without IO: from the transport's handshake to GOODBYE.
//!
//! Bytes go in with [`Client::step`], one step at a time; what must be sent is appended to `out`. Messages of an
//! established session are handed out unparsed: the workloads read only what they need.
//! ```text
//! RawSocket or WebSocket handshake ─▶ HELLO ─▶ SUBSCRIBE or REGISTER ... ─▶ established ─▶ GOODBYE ─▶ gone
//! relay preamble ──────────────────────────────────────────────────────────▶ established
//! ```

use common::limits::{MESSAGE_BYTES_MAX, UPGRADE_BYTES_MAX};
use common::transport::{
    Frame, FrameError, FrameKind, Framer, Framing, Role, rawsocket, upgrade, write_client_frame,
};
use common::wire::encode::{self, Field};
use common::wire::message::code;
use common::wire::{Message, OwnedValue, Serializer, WireError, decode};
use std::net::SocketAddr;

/// What a session does before it counts as ready.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Setup {
    Nothing,
    Subscribe { topic: String },
    Register { procedures: Vec<String> },
}

/// How a connection begins.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Opening {
    Session {
        realm: String,
        host: String,
        path: String,
        setup: Setup,
    },
    /// No WAMP at all: these octets, then frames (the bare relay bench).
    Relay {
        preamble: [u8; 8],
    },
}

/// Everything needed to open a connection, again and again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientPlan {
    /// Another node than the target's.
    pub address: Option<SocketAddr>,
    pub framing: Framing,
    pub serializer: Serializer,
    pub opening: Opening,
}

impl ClientPlan {
    pub const fn is_relay(&self) -> bool {
        matches!(self.opening, Opening::Relay { .. })
    }
}

/// One connection's session.
#[derive(Debug)]
pub struct Client {
    framing: Framing,
    serializer: Serializer,
    stage: Stage,
    framer: Framer,
    mask: fastrand::Rng,
}

#[derive(Debug)]
enum Stage {
    RawHandshake {
        octets: [u8; 4],
        filled: usize,
        login: Login,
    },
    Upgrade {
        head: Vec<u8>,
        key: [u8; 16],
        login: Login,
    },
    Welcome {
        setup: Setup,
    },
    Setup {
        pending: usize,
    },
    Established,
    /// GOODBYE was sent.
    Leaving,
    Gone,
}

#[derive(Debug)]
struct Login {
    realm: String,
    setup: Setup,
}

/// What one step found.
#[derive(PartialEq, Eq, Debug)]
pub enum Step<'a> {
    /// The chunk is used up.
    Starved,
    /// Something was handled here; step again.
    Progress,
    /// The session is established and its setup acknowledged.
    Ready,
    /// A message of the established session.
    Message(&'a [u8]),
    /// GOODBYE was answered: the connection may be closed.
    Gone,
}

/// Why a session ended.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ClientError {
    #[error(
        "the router refused the RawSocket handshake: error {0} (1: serializer, 2: length, 3: reserved bits, 4: too many connections)"
    )]
    RawHandshake(u8),
    #[error("the router refused the WebSocket upgrade: {0}")]
    Upgrade(String),
    #[error("the router sent a bad frame: {0}")]
    Frame(#[from] FrameError),
    #[error("the router sent a bad message: {0}")]
    Wire(#[from] WireError),
    #[error("the router aborted the session: {reason}{text}")]
    Aborted { reason: String, text: String },
    #[error("the router said goodbye: {reason}{text}")]
    Goodbye { reason: String, text: String },
    #[error("the router closed the WebSocket with code {code}")]
    Closed { code: u16 },
    #[error("the router refused the {request}: {error}{text}")]
    Refused { request: &'static str, error: String, text: String },
    #[error("the router sent {message} while {expected} was expected")]
    Unexpected { message: &'static str, expected: &'static str },
}

impl Client {
    /// A fresh session; its first octets are appended to `out`. `seed` makes its masks.
    pub fn open(plan: &ClientPlan, seed: u64, out: &mut Vec<u8>) -> Self {
        let mut mask = fastrand::Rng::with_seed(seed);
        let stage = match &plan.opening {
            Opening::Relay { preamble } => {
                out.extend_from_slice(preamble);
                Stage::Established
            }
            Opening::Session { realm, host, path, setup } => {
                let login = Login { realm: realm.clone(), setup: setup.clone() };
                match plan.framing {
                    Framing::RawSocket => {
                        let offer = rawsocket::Handshake {
                            serializer: plan.serializer,
                            message_bytes_max: MESSAGE_BYTES_MAX,
                        };
                        out.extend_from_slice(&rawsocket::write(offer));
                        Stage::RawHandshake { octets: [0; 4], filled: 0, login }
                    }
                    _ => {
                        let key = mask.u128(..).to_le_bytes();
                        upgrade::write_request(host, path, plan.serializer, key, out);
                        Stage::Upgrade { head: Vec::new(), key, login }
                    }
                }
            }
        };
        let framer = Framer::new(plan.framing, Role::Client, plan.serializer, MESSAGE_BYTES_MAX);
        Self { framing: plan.framing, serializer: plan.serializer, stage, framer, mask }
    }

    /// True from the start for a relay's connection, which has no handshake.
    pub fn is_established(&self) -> bool {
        matches!(self.stage, Stage::Established)
    }

    /// Takes one step with received bytes; `chunk` is advanced past what was used.
    #[inline]
    pub fn step<'b, 'c: 'b>(
        &'b mut self,
        chunk: &mut &'c mut [u8],
        out: &mut Vec<u8>,
    ) -> Result<Step<'b>, ClientError> {
        if matches!(self.stage, Stage::RawHandshake { .. } | Stage::Upgrade { .. }) {
            return self.step_handshake(chunk, out);
        }
        let (framing, serializer) = (self.framing, self.serializer);
        match self.framer.next(chunk)? {
            None => Ok(Step::Starved),
            Some(Frame::Message(message)) => match self.stage {
                Stage::Established => Ok(Step::Message(message)),
                _ => {
                    let mut frames = Frames { framing, serializer, mask: &mut self.mask, out };
                    self.stage.message(serializer, message, &mut frames)
                }
            },
            Some(Frame::Ping(payload)) => {
                let mask = self.mask.u32(..).to_le_bytes();
                write_client_frame(framing, serializer, FrameKind::Pong, payload, mask, out);
                Ok(Step::Progress)
            }
            Some(Frame::Pong(_)) => Ok(Step::Progress),
            // Only after `Framer::accept_compressed`.
            Some(Frame::Compressed(_)) => unreachable!("compression was not agreed on"),
            Some(Frame::Close { .. }) if matches!(self.stage, Stage::Leaving | Stage::Gone) => Ok(Step::Gone),
            Some(Frame::Close { code }) => Err(ClientError::Closed { code }),
        }
    }

    /// Says GOODBYE; everything but its answer is ignored from now on.
    pub fn leave(&mut self, out: &mut Vec<u8>) {
        self.stage = Stage::Leaving;
        let mut frames =
            Frames { framing: self.framing, serializer: self.serializer, mask: &mut self.mask, out };
        frames.message(|serializer, message| {
            encode::dict_uri(serializer, message, code::GOODBYE, &[], "wamp.close.close_realm");
        });
    }

    fn step_handshake(
        &mut self,
        chunk: &mut &mut [u8],
        out: &mut Vec<u8>,
    ) -> Result<Step<'static>, ClientError> {
        if chunk.is_empty() {
            return Ok(Step::Starved);
        }
        let login = match &mut self.stage {
            Stage::RawHandshake { octets, filled, login } => {
                let taken = take(chunk, octets.len() - *filled);
                octets[*filled..][..taken.len()].copy_from_slice(taken);
                *filled += taken.len();
                if *filled < octets.len() {
                    return Ok(Step::Starved);
                }
                rawsocket::parse_answer(*octets).map_err(ClientError::RawHandshake)?;
                login
            }
            Stage::Upgrade { head, key, login } => {
                let before = head.len();
                head.extend_from_slice(chunk);
                let parsed =
                    upgrade::parse_answer(head, self.serializer, *key).map_err(ClientError::Upgrade)?;
                let Some(head_bytes) = parsed else {
                    if head.len() > UPGRADE_BYTES_MAX {
                        return Err(ClientError::Upgrade("the answer's head is too long".into()));
                    }
                    take(chunk, usize::MAX);
                    return Ok(Step::Starved);
                };
                take(chunk, head_bytes.saturating_sub(before));
                login
            }
            _ => return Ok(Step::Progress),
        };
        let (realm, setup) =
            (std::mem::take(&mut login.realm), std::mem::replace(&mut login.setup, Setup::Nothing));
        let mut frames =
            Frames { framing: self.framing, serializer: self.serializer, mask: &mut self.mask, out };
        frames.hello(&realm);
        self.stage = Stage::Welcome { setup };
        Ok(Step::Progress)
    }
}

impl Stage {
    /// A message before the session is established, or after it said GOODBYE.
    fn message(
        &mut self,
        serializer: Serializer,
        bytes: &[u8],
        frames: &mut Frames<'_>,
    ) -> Result<Step<'static>, ClientError> {
        let message = decode(serializer, bytes)?;
        match (&mut *self, message) {
            (Self::Leaving | Self::Gone, Message::Goodbye { .. } | Message::Abort { .. }) => {
                *self = Self::Gone;
                Ok(Step::Gone)
            }
            (Self::Leaving | Self::Gone, _) => Ok(Step::Progress),
            (Self::Welcome { setup }, Message::Welcome { .. }) => {
                let pending = frames.setup(setup);
                *self = if pending == 0 { Self::Established } else { Self::Setup { pending } };
                Ok(if pending == 0 { Step::Ready } else { Step::Progress })
            }
            (Self::Welcome { .. }, Message::Challenge { .. }) => Err(ClientError::Unexpected {
                message: "CHALLENGE",
                expected: "WELCOME to an anonymous session",
            }),
            (Self::Setup { pending }, Message::Subscribed { .. } | Message::Registered { .. }) => {
                *pending -= 1;
                if *pending > 0 {
                    return Ok(Step::Progress);
                }
                *self = Self::Established;
                Ok(Step::Ready)
            }
            (Self::Welcome { .. }, other) => Err(fault(other, "WELCOME")),
            (_, other) => Err(fault(other, "SUBSCRIBED or REGISTERED")),
        }
    }
}

/// The error that an unexpected message of the router stands for.
pub fn fault(message: Message<'_>, expected: &'static str) -> ClientError {
    match message {
        Message::Abort { details, reason, .. } => {
            ClientError::Aborted { reason: reason.into_owned(), text: message_text(&details.to_owned()) }
        }
        Message::Goodbye { details, reason } => {
            ClientError::Goodbye { reason: reason.into_owned(), text: message_text(&details.to_owned()) }
        }
        Message::Error { kind, error, details, payload, .. } => {
            let args = payload.args.and_then(|args| OwnedValue::decode(details.serializer(), args).ok());
            ClientError::Refused {
                request: request_name(kind),
                error: error.into_owned(),
                text: args.map(|args| format!(" {args:?}")).unwrap_or_default(),
            }
        }
        other => ClientError::Unexpected { message: other.name(), expected },
    }
}

fn message_text(details: &OwnedValue) -> String {
    let OwnedValue::Dict(entries) = details else { return String::new() };
    let text = entries.iter().find_map(|(key, value)| match value {
        OwnedValue::Str(text) if key == "message" => Some(text),
        _ => None,
    });
    text.map(|text| format!(" ({text})")).unwrap_or_default()
}

const fn request_name(kind: u64) -> &'static str {
    match kind {
        code::PUBLISH => "PUBLISH",
        code::SUBSCRIBE => "SUBSCRIBE",
        code::UNSUBSCRIBE => "UNSUBSCRIBE",
        code::CALL => "CALL",
        code::REGISTER => "REGISTER",
        code::UNREGISTER => "UNREGISTER",
        _ => "request",
    }
}

/// Splits up to `count` bytes off the front of `chunk`.
fn take<'a>(chunk: &mut &'a mut [u8], count: usize) -> &'a mut [u8] {
    let count = count.min(chunk.len());
    let (taken, rest) = std::mem::take(chunk).split_at_mut(count);
    *chunk = rest;
    taken
}

/// Writes whole messages as frames.
struct Frames<'a> {
    framing: Framing,
    serializer: Serializer,
    mask: &'a mut fastrand::Rng,
    out: &'a mut Vec<u8>,
}

impl Frames<'_> {
    fn message(&mut self, write: impl FnOnce(Serializer, &mut Vec<u8>)) {
        let mut message = Vec::new();
        write(self.serializer, &mut message);
        let mask = self.mask.u32(..).to_le_bytes();
        write_client_frame(self.framing, self.serializer, FrameKind::Message, &message, mask, self.out);
    }

    fn hello(&mut self, realm: &str) {
        let role = || OwnedValue::Dict(Vec::new());
        let roles = ["publisher", "subscriber", "caller", "callee"].map(|name| (name.to_owned(), role()));
        let roles = OwnedValue::Dict(roles.into());
        let details = [("agent", Field::Str(AGENT)), ("roles", Field::Value(&roles))];
        self.message(|serializer, message| {
            encode::uri_dict(serializer, message, code::HELLO, realm, &details)
        });
    }

    /// Sends the setup's requests and returns how many there are.
    fn setup(&mut self, setup: &Setup) -> usize {
        let (code, uris) = match setup {
            Setup::Nothing => return 0,
            Setup::Subscribe { topic } => (code::SUBSCRIBE, std::slice::from_ref(topic)),
            Setup::Register { procedures } => (code::REGISTER, procedures.as_slice()),
        };
        for (request, uri) in (1..).zip(uris) {
            self.message(|serializer, message| {
                encode::id_dict_uri(serializer, message, code, request, &[], uri)
            });
        }
        uris.len()
    }
}

const AGENT: &str = concat!("signalbox-loadgen-", env!("CARGO_PKG_VERSION"));

#[cfg(test)]
mod tests {
    use super::*;
    use common::transport::write_header;

    fn plan(framing: Framing, serializer: Serializer, setup: Setup) -> ClientPlan {
        let opening = Opening::Session {
            realm: "realm1".into(),
            host: "127.0.0.1:1".into(),
            path: "/ws".into(),
            setup,
        };
        ClientPlan { address: None, framing, serializer, opening }
    }

    /// A router's side of a connection, just enough to script it.
    struct Peer {
        framing: Framing,
        serializer: Serializer,
        framer: Framer,
    }

    impl Peer {
        fn new(framing: Framing, serializer: Serializer) -> Self {
            Self {
                framing,
                serializer,
                framer: Framer::new(framing, Role::Server, serializer, MESSAGE_BYTES_MAX),
            }
        }

        fn answer_handshake(&self, request: &mut Vec<u8>) -> Vec<u8> {
            let request = std::mem::take(request);
            match self.framing {
                Framing::RawSocket => {
                    let handshake = rawsocket::parse_request(request.try_into().unwrap()).unwrap();
                    assert_eq!(handshake.serializer, self.serializer);
                    rawsocket::write(handshake).to_vec()
                }
                _ => {
                    let upgrade = upgrade::parse_request(&request, "/ws").unwrap().unwrap();
                    assert_eq!(upgrade.subprotocol, Some(self.serializer.into()));
                    let mut out = Vec::new();
                    upgrade::write_accept(&upgrade, &mut out);
                    out
                }
            }
        }

        fn frame(&self, message: &[u8]) -> Vec<u8> {
            let mut out = Vec::new();
            write_header(self.framing, self.serializer, FrameKind::Message, message.len(), &mut out);
            out.extend_from_slice(message);
            out
        }

        /// The codes of the messages in `bytes`.
        fn codes(&mut self, bytes: &mut Vec<u8>) -> Vec<u64> {
            let mut bytes = std::mem::take(bytes);
            let mut chunk = &mut bytes[..];
            let mut codes = Vec::new();
            while let Some(Frame::Message(message)) = self.framer.next(&mut chunk).unwrap() {
                codes.push(decode(self.serializer, message).unwrap().code());
            }
            codes
        }

        fn encoded(&self, write: impl FnOnce(Serializer, &mut Vec<u8>)) -> Vec<u8> {
            let mut message = Vec::new();
            write(self.serializer, &mut message);
            self.frame(&message)
        }

        fn welcome(&self) -> Vec<u8> {
            self.encoded(|serializer, out| encode::id_dict(serializer, out, code::WELCOME, 7, &[]))
        }
    }

    /// Feeds `bytes` and returns what the steps were called.
    fn feed(client: &mut Client, bytes: &[u8], out: &mut Vec<u8>) -> Vec<&'static str> {
        let mut bytes = bytes.to_vec();
        let mut chunk = &mut bytes[..];
        let mut steps = Vec::new();
        loop {
            match client.step(&mut chunk, out).unwrap() {
                Step::Starved => return steps,
                Step::Progress => steps.push("progress"),
                Step::Ready => steps.push("ready"),
                Step::Message(_) => steps.push("message"),
                Step::Gone => steps.push("gone"),
            }
        }
    }

    fn opened(framing: Framing, serializer: Serializer, setup: Setup) -> (Client, Peer, Vec<u8>) {
        let mut out = Vec::new();
        let mut client = Client::open(&plan(framing, serializer, setup), 1, &mut out);
        let mut peer = Peer::new(framing, serializer);
        let answer = peer.answer_handshake(&mut out);
        assert_eq!(feed(&mut client, &answer, &mut out), ["progress"]);
        assert_eq!(peer.codes(&mut out), [code::HELLO]);
        (client, peer, out)
    }

    #[test]
    fn a_session_is_set_up_on_every_transport_and_serializer() {
        for framing in [Framing::RawSocket, Framing::WebSocket] {
            for serializer in Serializer::ALL {
                let setup = Setup::Register { procedures: vec!["a".into(), "b".into()] };
                let (mut client, mut peer, mut out) = opened(framing, serializer, setup);
                assert_eq!(feed(&mut client, &peer.welcome(), &mut out), ["progress"]);
                assert_eq!(peer.codes(&mut out), [code::REGISTER, code::REGISTER]);
                let registered = |peer: &Peer, request| {
                    peer.encoded(|serializer, out| {
                        encode::ids(serializer, out, code::REGISTERED, &[request, 9])
                    })
                };
                assert_eq!(feed(&mut client, &registered(&peer, 1), &mut out), ["progress"]);
                assert_eq!(feed(&mut client, &registered(&peer, 2), &mut out), ["ready"]);
                assert_eq!(feed(&mut client, &registered(&peer, 3), &mut out), ["message"]);
                client.leave(&mut out);
                assert_eq!(peer.codes(&mut out), [code::GOODBYE]);
                let goodbye = peer.encoded(|serializer, out| {
                    encode::dict_uri(serializer, out, code::GOODBYE, &[], "wamp.close.goodbye_and_out");
                });
                assert_eq!(feed(&mut client, &goodbye, &mut out), ["gone"]);
            }
        }
    }

    #[test]
    fn a_handshake_in_single_octets_is_enough() {
        for framing in [Framing::RawSocket, Framing::WebSocket] {
            let mut out = Vec::new();
            let mut client = Client::open(&plan(framing, Serializer::Cbor, Setup::Nothing), 2, &mut out);
            let peer = Peer::new(framing, Serializer::Cbor);
            let mut bytes = peer.answer_handshake(&mut out);
            bytes.extend(peer.welcome());
            let steps: Vec<_> = bytes.iter().flat_map(|byte| feed(&mut client, &[*byte], &mut out)).collect();
            assert_eq!(steps, ["progress", "ready"]);
        }
    }

    #[test]
    fn an_abort_tells_why() {
        let (mut client, peer, mut out) = opened(Framing::RawSocket, Serializer::Json, Setup::Nothing);
        let mut abort = peer.encoded(|serializer, out| {
            let details = [("message", Field::Str("no such realm here"))];
            encode::dict_uri(serializer, out, code::ABORT, &details, "wamp.error.no_such_realm");
        });
        let error = client.step(&mut &mut abort[..], &mut out).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the router aborted the session: wamp.error.no_such_realm (no such realm here)"
        );
    }

    #[test]
    fn a_refused_handshake_tells_why() {
        let mut out = Vec::new();
        let plan = plan(Framing::RawSocket, Serializer::Json, Setup::Nothing);
        let mut client = Client::open(&plan, 3, &mut out);
        let error = client.step(&mut &mut [0x7f, 0x10, 0, 0][..], &mut out).unwrap_err();
        assert_eq!(error, ClientError::RawHandshake(1));
    }

    #[test]
    fn a_relay_connection_is_established_by_its_preamble() {
        let opening = Opening::Relay { preamble: *b"RLY1\x01\0\x05\0" };
        let (framing, serializer) = (Framing::RawSocket, Serializer::MsgPack);
        let plan = ClientPlan { address: None, framing, serializer, opening };
        let mut out = Vec::new();
        let mut client = Client::open(&plan, 4, &mut out);
        assert!(client.is_established());
        assert_eq!(out, b"RLY1\x01\0\x05\0");
        assert_eq!(feed(&mut client, &[0, 0, 0, 2, 0x91, 0x10], &mut out), ["message"]);
    }
}
