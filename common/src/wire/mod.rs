//! WAMP messages in JSON, MessagePack and CBOR.
//!
//! A message is a list whose head (type, ids, options, URI) is parsed and whose tail (`args`, `kwargs`) is checked to
//! be well formed and kept as slices of the input. Nothing here knows a session.

use std::borrow::Cow;

pub mod encode;
pub mod message;
pub mod transcode;
pub mod value;

mod cbor;
mod json;
mod json_text;
mod msgpack;
mod owned;
mod reader;
pub mod utf8;
mod writer;

#[cfg(test)]
mod tests;

pub use message::{Message, decode};
pub use owned::OwnedValue;
pub use value::{Dict, List, Value};

/// A serializer; the numbers are RawSocket's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Serializer {
    Json = 1,
    MsgPack = 2,
    Cbor = 3,
}

impl Serializer {
    pub const ALL: [Self; 3] = [Self::Json, Self::MsgPack, Self::Cbor];

    /// Zero-based, for tables indexed by serializer.
    #[inline]
    pub const fn index(self) -> usize {
        self as usize - 1
    }

    pub const fn from_rawsocket(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Json),
            2 => Some(Self::MsgPack),
            3 => Some(Self::Cbor),
            _ => None,
        }
    }

    /// The format's own name.
    pub const fn format(self) -> &'static str {
        match self {
            Self::Json => "JSON",
            Self::MsgPack => "MessagePack",
            Self::Cbor => "CBOR",
        }
    }

    /// True when WebSocket carries it in text frames.
    #[inline]
    pub const fn is_text(self) -> bool {
        matches!(self, Self::Json)
    }
}

/// The application payload of a message: still encoded, each part checked to be one well-formed value of its kind
/// (a list, a dictionary with string keys) in the message's serializer.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Payload<'a> {
    pub args: Option<&'a [u8]>,
    pub kwargs: Option<&'a [u8]>,
}

impl Payload<'_> {
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.args.is_none() && self.kwargs.is_none()
    }

    #[inline]
    pub fn bytes_len(&self) -> usize {
        self.args.map_or(0, <[u8]>::len) + self.kwargs.map_or(0, <[u8]>::len)
    }
}

/// Text borrowed from the message, owned where JSON escapes had to be resolved.
pub type Text<'a> = Cow<'a, str>;

/// Why bytes are not a WAMP message. The text is fit for ABORT `wamp.error.protocol_violation`.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WireError {
    #[error("not well-formed {format} at byte {offset}: {what}")]
    Malformed { format: &'static str, offset: usize, what: &'static str },
    #[error("nested deeper than {depth_max} levels")]
    TooDeep { depth_max: usize },
    #[error("a message must be a list that begins with a type code")]
    NotAMessage,
    /// Only where a value is written in JSON or as a tree.
    #[error("a dictionary key that is not a string, an integer or a boolean has no form in JSON")]
    Key,
    #[error("unknown message type {code}")]
    UnknownType { code: u64 },
    #[error("{message} must have {expected} elements")]
    Arity { message: &'static str, expected: &'static str },
    #[error("{message}.{field} must be {expected}")]
    Field { message: &'static str, field: &'static str, expected: &'static str },
}
