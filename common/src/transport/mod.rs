//! Framing of WAMP messages on a byte stream: RawSocket and WebSocket, sans-IO, both roles.
//!
//! A [`Framer`] takes received chunks and yields frames that borrow from the chunk when they are whole in it, and from
//! its own buffer when they are not.

pub mod rawsocket;
pub mod upgrade;
pub mod websocket;

use crate::wire::Serializer;

/// Which end of the connection we are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    Server,
    Client,
}

/// The framing of a connection, once its handshake is over.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Framing {
    RawSocket = 0,
    WebSocket = 1,
}

/// What a framer found.
#[derive(PartialEq, Eq, Debug)]
pub enum Frame<'a> {
    /// One whole WAMP message.
    Message(&'a [u8]),
    /// Answer with a pong of the same payload.
    Ping(&'a [u8]),
    Pong(&'a [u8]),
    /// WebSocket only: the peer's close code (1005 when it gave none). Answer with a close frame and close.
    Close {
        code: u16,
    },
}

/// Why a stream cannot go on. The text is fit for a log line and a close reason.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameError {
    #[error("frame of {bytes} bytes is over the limit of {bytes_max}")]
    TooLarge { bytes: u64, bytes_max: usize },
    #[error("{0}")]
    Protocol(&'static str),
    #[error("text is not valid UTF-8")]
    Utf8,
    #[error("{frame} frame, but the serializer needs {expected}")]
    WrongType { frame: &'static str, expected: &'static str },
}

impl FrameError {
    /// The WebSocket close code (RFC 6455, 7.4.1): 1009, 1002, 1007 or 1003.
    pub const fn close_code(&self) -> u16 {
        match self {
            Self::TooLarge { .. } => 1009,
            Self::Protocol(_) => 1002,
            Self::Utf8 => 1007,
            Self::WrongType { .. } => 1003,
        }
    }
}

/// Takes frames out of a stream. Small: an idle one owns no heap memory.
#[derive(Debug)]
pub struct Framer {
    _todo: (),
}

impl Framer {
    /// A framer of a stream whose handshake is over. `message_bytes_max` bounds one message; it may be raised later
    /// with [`Framer::set_message_bytes_max`] (after login).
    pub fn new(framing: Framing, role: Role, serializer: Serializer, message_bytes_max: usize) -> Self {
        let _ = (framing, role, serializer, message_bytes_max);
        unimplemented!()
    }

    pub fn set_message_bytes_max(&mut self, message_bytes_max: usize) {
        let _ = message_bytes_max;
    }

    /// The next frame. `chunk` is what was received and not yet consumed; it is advanced past what was taken.
    /// `Ok(None)` means that the chunk is used up and more must be received.
    ///
    /// A frame that is whole in the chunk is unmasked in place and borrowed from it; otherwise its bytes are gathered
    /// in the framer's own buffer, which grows with the bytes that arrived, never with a length that was announced,
    /// and is given back when the frame was taken. After an error the framer must be dropped.
    pub fn next<'b, 'c: 'b>(&'b mut self, chunk: &mut &'c mut [u8]) -> Result<Option<Frame<'b>>, FrameError> {
        let _ = chunk;
        unimplemented!()
    }

    /// Bytes of heap memory held for an incomplete frame.
    pub fn buffered_bytes(&self) -> usize {
        0
    }
}

/// Bytes of the header that [`write_header`] writes at most.
pub const HEADER_BYTES_MAX: usize = 14;

/// What a frame carries when we write one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrameKind {
    Message,
    Ping,
    Pong,
    /// WebSocket only; the payload begins with the close code.
    Close,
}

/// Appends the header of a server's frame whose payload of `payload_bytes` follows. WebSocket messages are text or
/// binary by `serializer`.
#[inline]
pub fn write_header(
    framing: Framing,
    serializer: Serializer,
    kind: FrameKind,
    payload_bytes: usize,
    out: &mut Vec<u8>,
) {
    let _ = (framing, serializer, kind, payload_bytes, out);
    unimplemented!()
}

/// Appends a client's whole frame; WebSocket payloads are masked with `mask`.
pub fn write_client_frame(
    framing: Framing,
    serializer: Serializer,
    kind: FrameKind,
    payload: &[u8],
    mask: [u8; 4],
    out: &mut Vec<u8>,
) {
    let _ = (framing, serializer, kind, payload, mask, out);
    unimplemented!()
}

/// The length of the whole frame (header and payload) that `bytes` begins with, as written by [`write_header`], and
/// where its payload begins. Used to walk an outbound buffer of our own frames. `None`: not a whole frame.
pub fn walk_own_frame(framing: Framing, bytes: &[u8]) -> Option<(usize, usize)> {
    let _ = (framing, bytes);
    unimplemented!()
}
