//! Framing of WAMP messages on a byte stream: RawSocket and WebSocket, sans-IO, both roles.
//!
//! A [`Framer`] takes received chunks and yields frames that borrow from the chunk when they are whole in it, and from
//! its own buffer when they are not.

pub mod batch;
pub mod deflate;
mod framer;
pub mod http;
pub mod proxy;
pub mod rawsocket;
mod subprotocol;
pub mod upgrade;
pub mod websocket;

pub use framer::Framer;
pub use subprotocol::Subprotocol;

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
    /// WebSocket messages that hold one or more WAMP messages each ([`batch`]).
    Batched = 2,
    /// The same, with the other terminator of JSON messages.
    BatchedCan = 3,
}

impl Framing {
    #[inline]
    pub const fn is_websocket(self) -> bool {
        !matches!(self, Self::RawSocket)
    }

    #[inline]
    pub const fn is_batched(self) -> bool {
        matches!(self, Self::Batched | Self::BatchedCan)
    }
}

/// What a framer found.
#[derive(PartialEq, Eq, Debug)]
pub enum Frame<'a> {
    /// One whole WAMP message, or a batch of them.
    Message(&'a [u8]),
    /// The same, compressed by permessage-deflate; only once [`Framer::accept_compressed`] was called. Whether it is
    /// text is said by [`Framer::is_text`], and not checked.
    Compressed(&'a [u8]),
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
    #[error("a compressed message cannot be decompressed")]
    Compression,
    #[error("{frame} frame, but the serializer needs {expected}")]
    WrongType { frame: &'static str, expected: &'static str },
}

impl FrameError {
    /// The WebSocket close code (RFC 6455, 7.4.1): 1009, 1002, 1007 or 1003.
    pub const fn close_code(&self) -> u16 {
        match self {
            Self::TooLarge { .. } => 1009,
            Self::Protocol(_) => 1002,
            Self::Utf8 | Self::Compression => 1007,
            Self::WrongType { .. } => 1003,
        }
    }
}

/// Bytes of the header that [`write_header`] writes at most, and of all that [`write_message`] adds to a message.
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
/// binary by `serializer`. The payload of a batched message is a batch; [`write_message`] makes it one.
///
/// # Panics
/// When RawSocket cannot say it: a close, or more than 2^24 bytes.
#[inline]
pub fn write_header(
    framing: Framing,
    serializer: Serializer,
    kind: FrameKind,
    payload_bytes: usize,
    out: &mut Vec<u8>,
) {
    match framing {
        Framing::RawSocket => out.extend_from_slice(&rawsocket::prefix(kind, payload_bytes)),
        _ => websocket::write_header(kind, serializer.is_text(), payload_bytes, None, out),
    }
}

/// Appends one message as a server's frame.
///
/// # Panics
/// As [`write_header`].
#[inline]
pub fn write_message(framing: Framing, serializer: Serializer, message: &[u8], out: &mut Vec<u8>) {
    if framing.is_batched() {
        let (before, after) = batch::overhead(serializer);
        write_header(framing, serializer, FrameKind::Message, before + message.len() + after, out);
        batch::write(framing, serializer, message, out);
    } else {
        write_header(framing, serializer, FrameKind::Message, message.len(), out);
        out.extend_from_slice(message);
    }
}

/// Octets to leave free before a message that is encoded in place, for [`finish_frame`].
pub const HEADER_ROOM: usize = rawsocket::PREFIX_BYTES;

/// Turns what was appended to `out` from `start` on, [`HEADER_ROOM`] free octets and a message, into a server's frame.
/// Most messages stay where they are; short and very long WebSocket ones move by a few octets.
///
/// # Panics
/// As [`write_header`].
#[inline]
pub fn finish_frame(framing: Framing, serializer: Serializer, start: usize, out: &mut Vec<u8>) {
    let message_bytes = out.len() - start - HEADER_ROOM;
    match framing {
        Framing::RawSocket => {
            let prefix = rawsocket::prefix(FrameKind::Message, message_bytes);
            out[start..start + HEADER_ROOM].copy_from_slice(&prefix);
        }
        Framing::WebSocket => websocket::finish_frame(serializer.is_text(), start, HEADER_ROOM, out),
        Framing::Batched | Framing::BatchedCan => {
            if serializer.is_text() {
                out.push(batch::terminator(framing));
                websocket::finish_frame(true, start, HEADER_ROOM, out);
            } else {
                // The length takes the room; the frame's header needs another.
                out[start..start + HEADER_ROOM].copy_from_slice(&batch::length(message_bytes));
                out.resize(out.len() + HEADER_ROOM, 0);
                out.copy_within(start..start + HEADER_ROOM + message_bytes, start + HEADER_ROOM);
                websocket::finish_frame(false, start, HEADER_ROOM, out);
            }
        }
    }
}

/// Appends one message as a client's frame.
///
/// # Panics
/// As [`write_header`].
pub fn write_client_message(
    framing: Framing,
    serializer: Serializer,
    message: &[u8],
    mask: [u8; 4],
    out: &mut Vec<u8>,
) {
    let mut batch = Vec::new();
    let payload = if framing.is_batched() {
        batch::write(framing, serializer, message, &mut batch);
        &batch
    } else {
        message
    };
    write_client_frame(framing, serializer, FrameKind::Message, payload, mask, out);
}

/// Appends a client's whole frame; WebSocket payloads are masked with `mask`. A batched message's payload is a batch.
///
/// # Panics
/// As [`write_header`].
pub fn write_client_frame(
    framing: Framing,
    serializer: Serializer,
    kind: FrameKind,
    payload: &[u8],
    mask: [u8; 4],
    out: &mut Vec<u8>,
) {
    match framing {
        Framing::RawSocket => {
            out.extend_from_slice(&rawsocket::prefix(kind, payload.len()));
            out.extend_from_slice(payload);
        }
        _ => {
            websocket::write_header(kind, serializer.is_text(), payload.len(), Some(mask), out);
            let start = out.len();
            out.extend_from_slice(payload);
            websocket::apply_mask(&mut out[start..], mask);
        }
    }
}

/// The length of the whole frame (header and payload) that `bytes` begins with, as written by [`write_header`], and
/// where its payload begins. Used to walk an outbound buffer of our own frames. `None`: not a whole frame.
#[inline]
pub fn walk_own_frame(framing: Framing, bytes: &[u8]) -> Option<(usize, usize)> {
    let (payload_start, payload_bytes) = match framing {
        Framing::RawSocket => (rawsocket::PREFIX_BYTES, rawsocket::own_payload_bytes(*bytes.first_chunk()?)),
        _ => websocket::walk_own_header(bytes)?,
    };
    let frame_bytes = payload_start.checked_add(payload_bytes)?;
    (frame_bytes <= bytes.len()).then_some((frame_bytes, payload_start))
}

#[cfg(test)]
mod oracle;
#[cfg(test)]
mod tests;
