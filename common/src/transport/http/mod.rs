//! HTTP/1 as far as the HTTP transports of WAMP need it (WAMP, advanced profile, "HTTP Longpoll Transport"; RFC 9110 and
//! 9112; server-sent events as in the HTML standard, 9.2). The server's side, sans-IO.
//!
//! ```text
//! bytes ─▶ Reader::head ─▶ Head ─▶ Reader::body ─▶ the request's body        answer, event, chunk ─▶ bytes
//! ```
//! Invariants: no byte is kept before the bound of its head or body was compared; a request whose end two parsers could
//! see in two places is refused; after a refusal nothing is read as another request.

pub mod answer;
mod body;
mod head;
mod id;
mod problem;
mod reader;

pub use head::{Content, Head, Length, Method};
pub use id::TransportId;
pub use problem::Problem;
pub use reader::Reader;

use super::Subprotocol;
use crate::wire::{OwnedValue, Serializer};

/// Which of the transports a path belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    LongPoll,
    /// Server-sent events downstream, requests upstream.
    Events,
}

impl Kind {
    /// As session details show it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::LongPoll => "longpoll",
            Self::Events => "sse",
        }
    }

    const fn base(self) -> &'static str {
        match self {
            Self::LongPoll => "/wamp/longpoll/",
            Self::Events => "/wamp/sse/",
        }
    }

    const ALL: [Self; 2] = [Self::LongPoll, Self::Events];
}

/// What a path asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    Open,
    Send,
    Receive,
    Close,
}

/// The path of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Target {
    pub kind: Kind,
    pub action: Action,
    /// `None`: what stands in its place is none, or the action is to open one.
    pub id: Option<TransportId>,
}

impl Target {
    /// Reads a path, whose query is passed over: clients put numbers there that keep caches away.
    pub fn parse(path: &str) -> Option<Self> {
        let path = path.split('?').next()?;
        let (kind, rest) =
            Kind::ALL.iter().find_map(|kind| Some((*kind, path.strip_prefix(kind.base())?)))?;
        if rest == "open" {
            return Some(Self { kind, action: Action::Open, id: None });
        }
        let (id, action) = rest.split_once('/')?;
        let action = match action {
            "send" => Action::Send,
            "receive" => Action::Receive,
            "close" => Action::Close,
            _ => return None,
        };
        Some(Self { kind, action, id: TransportId::parse(id) })
    }

    /// The method that the path wants.
    pub const fn method(&self) -> Method {
        match (self.kind, self.action) {
            (Kind::Events, Action::Receive) => Method::Get,
            _ => Method::Post,
        }
    }
}

/// Longest request method that [`is_request`] looks past.
const METHOD_BYTES_MAX: usize = 16;

/// Whether the first bytes of a connection are a request to one of the paths here. `None`: too few to tell.
pub fn is_request(bytes: &[u8]) -> Option<bool> {
    let start = bytes.iter().position(|octet| !matches!(octet, b'\r' | b'\n'))?;
    let line = &bytes[start..];
    let method = &line[..line.len().min(METHOD_BYTES_MAX)];
    let Some(space) = method.iter().position(|octet| *octet == b' ') else {
        return (line.len() >= METHOD_BYTES_MAX).then_some(false);
    };
    let path = &line[space + 1..];
    let bases = Kind::ALL.map(|kind| kind.base().as_bytes());
    if bases.iter().any(|base| path.starts_with(base)) {
        return Some(true);
    }
    if bases.iter().any(|base| base.starts_with(path)) { None } else { Some(false) }
}

/// What a client opens: its protocol, and the name to answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Opening {
    pub subprotocol: Subprotocol,
    pub name: &'static str,
}

/// The name that other routers give to messages as server-sent events.
const EVENTS_NAME: &str = "wamp.2.json.sse";

/// Longest body of a request that opens a transport.
pub const OPEN_BYTES_MAX: usize = 4_096;

/// Reads the body of a request that opens a transport: the first protocol of its list that is spoken.
pub fn parse_open(kind: Kind, body: &[u8]) -> Result<Opening, Problem> {
    let Ok(OwnedValue::Dict(entries)) = OwnedValue::decode(Serializer::Json, body) else {
        return Err(Problem::Json);
    };
    let protocols = entries.iter().rev().find(|(key, _)| key == "protocols").map(|(_, value)| value);
    let Some(OwnedValue::List(names)) = protocols else { return Err(Problem::NoProtocol) };
    let spoken = |name: &OwnedValue| match (kind, name) {
        (_, OwnedValue::Str(name)) => {
            if kind == Kind::Events && name == EVENTS_NAME {
                return Some(Opening { subprotocol: Serializer::Json.into(), name: EVENTS_NAME });
            }
            let subprotocol = Subprotocol::from_name(name)?;
            let fits = kind == Kind::LongPoll || subprotocol == Serializer::Json.into();
            fits.then(|| Opening { subprotocol, name: subprotocol.name() })
        }
        _ => None,
    };
    names.iter().find_map(spoken).ok_or(Problem::NoProtocol)
}

/// The body that answers it.
pub fn opened(opening: Opening, id: TransportId) -> String {
    format!("{{\"protocol\":\"{}\",\"transport\":\"{id}\"}}", opening.name)
}

/// The media type of a serializer's messages.
pub const fn media_type(serializer: Serializer) -> &'static str {
    match serializer {
        Serializer::Json => "application/json",
        Serializer::MsgPack => "application/x-msgpack",
        Serializer::Cbor => "application/cbor",
    }
}

#[cfg(test)]
mod tests;
