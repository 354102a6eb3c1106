//! Taking frames out of a received stream.
//!
//! Invariants: the heap memory is at most twice the payload bytes that arrived and are still needed; an announced length
//! is compared with the limit before anything is kept; no step depends on where the stream was cut into chunks.
//!
//! ```text
//! Idle ─▶ whole frame in the chunk: borrowed from it ─▶ Idle
//!   │ ▲
//!   ▼ └──────────────────────────┐ fragment
//! Head ─▶ Payload, gathered ─────┴─▶ Spent, lent out until the next call ─▶ Idle
//!                          close ─▶ Closed             any error ─▶ Failed
//! ```

use super::websocket::{self, Opcode};
use super::{Frame, FrameError, FrameKind, Framing, HEADER_BYTES_MAX, Role, deflate, rawsocket};
use crate::limits::{FRAGMENT_BYTES, FRAGMENTS_MAX, MESSAGE_BYTES_MAX};
use crate::wire::Serializer;

/// Takes frames out of a stream. Small: an idle one owns no heap memory.
#[derive(Debug)]
pub struct Framer {
    /// Payloads of the open message's frames so far; behind them, an incomplete control frame's.
    gathered: Vec<u8>,
    step: Step,
    message_bytes_max: u32,
    /// Bytes of `gathered` that are whole fragments of the open message.
    message_bytes: u32,
    /// Leading bytes of `gathered` known to be whole characters, when the open message is text.
    utf8_bytes: u32,
    /// Frames of the open message; 0 when none is open.
    fragments: u32,
    framing: Framing,
    role: Role,
    /// The type that messages must have; `None` takes both.
    is_text_expected: Option<bool>,
    /// The last message, open or not, is text.
    is_text: bool,
    /// Compressed messages are taken.
    deflates: bool,
    /// The last message, open or not, is compressed.
    is_compressed: bool,
}

const _: () = assert!(size_of::<Framer>() <= 64, "a framer is one cache line of every connection");
const _: () = assert!(MESSAGE_BYTES_MAX <= u32::MAX as usize);

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Between two frames.
    Idle,
    /// Inside a header.
    Head {
        bytes: [u8; HEADER_BYTES_MAX],
        bytes_len: u8,
    },
    /// Inside a payload that is being gathered; `Head::payload_bytes` counts what is missing.
    Payload(Head),
    /// What is behind `message_bytes` in `gathered` was lent out as a frame and is done with.
    Spent,
    /// The peer said that nothing follows.
    Closed,
    Failed,
}

/// The frame that is being received.
#[derive(Clone, Copy, Debug)]
struct Head {
    kind: FrameKind,
    /// It ends its message; always true of other kinds.
    is_final: bool,
    mask: [u8; 4],
    payload_bytes: u32,
}

/// A whole frame and where its payload is.
enum Found<'c> {
    InChunk(FrameKind, &'c [u8]),
    /// From this byte of `gathered` to its end.
    Gathered(FrameKind, usize),
    Close(u16),
}

impl Framer {
    /// A framer of a stream whose handshake is over. `message_bytes_max` bounds one message, fragments together; it may
    /// be raised later with [`Framer::set_message_bytes_max`] (after login), and is at most [`MESSAGE_BYTES_MAX`].
    pub fn new(framing: Framing, role: Role, serializer: Serializer, message_bytes_max: usize) -> Self {
        Self {
            gathered: Vec::new(),
            step: Step::Idle,
            message_bytes_max: message_bytes_max.min(MESSAGE_BYTES_MAX) as u32,
            message_bytes: 0,
            utf8_bytes: 0,
            fragments: 0,
            framing,
            role,
            is_text_expected: Some(serializer.is_text()),
            is_text: false,
            deflates: false,
            is_compressed: false,
        }
    }

    /// Takes compressed WebSocket messages from now on: permessage-deflate was agreed on. The bound of a message holds
    /// for its compressed form too, with a little more for what cannot be compressed; what it unfolds to is bounded
    /// by whoever decompresses it.
    pub fn accept_compressed(&mut self) {
        self.deflates = true;
    }

    /// Holds for frames whose header has not arrived yet.
    pub fn set_message_bytes_max(&mut self, message_bytes_max: usize) {
        self.message_bytes_max = message_bytes_max.min(MESSAGE_BYTES_MAX) as u32;
    }

    /// Takes WebSocket messages of both types, as an echo endpoint needs; [`Framer::is_text`] tells them apart.
    pub fn accept_any_type(&mut self) {
        self.is_text_expected = None;
    }

    /// True when the last WebSocket message was text.
    pub const fn is_text(&self) -> bool {
        self.is_text
    }

    /// Bytes of heap memory held for an incomplete frame or message, or for the frame lent out last.
    pub const fn buffered_bytes(&self) -> usize {
        self.gathered.capacity()
    }

    /// The next frame. `chunk` is what was received and not yet consumed; it is advanced past what was taken.
    /// `Ok(None)` means that the chunk is used up and more must be received. After a close frame all that follows is
    /// thrown away (RFC 6455, 5.5.1).
    ///
    /// A frame that is whole in the chunk is unmasked in place and borrowed from it; otherwise its bytes are gathered
    /// in the framer's own buffer, which grows with the bytes that arrived, never with a length that was announced,
    /// and is given back by the call after the one that lent the frame. After an error the framer must be dropped.
    #[inline]
    pub fn next<'b, 'c: 'b>(&'b mut self, chunk: &mut &'c mut [u8]) -> Result<Option<Frame<'b>>, FrameError> {
        if let Some(payload) = self.take_whole_message(chunk) {
            if self.is_text && simdutf8::basic::from_utf8(payload).is_err() {
                self.end(Step::Failed);
                return Err(FrameError::Utf8);
            }
            return Ok(Some(Frame::Message(payload)));
        }
        match self.advance(chunk) {
            Ok(None) => Ok(None),
            Ok(Some(Found::InChunk(kind, payload))) => Ok(Some(frame(kind, self.is_compressed, payload))),
            Ok(Some(Found::Gathered(kind, start))) => {
                Ok(Some(frame(kind, self.is_compressed, &self.gathered[start..])))
            }
            Ok(Some(Found::Close(code))) => Ok(Some(Frame::Close { code })),
            Err(error) => {
                self.end(Step::Failed);
                Err(error)
            }
        }
    }

    /// The payload, not yet checked, of the case that has to be fast: an unfragmented message, whole in the chunk, with
    /// nothing pending and nothing wrong. Everything else is left as it is to [`Framer::advance`].
    #[inline]
    fn take_whole_message<'c>(&mut self, chunk: &mut &'c mut [u8]) -> Option<&'c mut [u8]> {
        if !matches!(self.step, Step::Idle) || self.fragments != 0 {
            return None;
        }
        match self.framing {
            Framing::RawSocket => {
                let prefix = u32::from_be_bytes(*chunk.first_chunk()?);
                // Kind, reserved bits and the 25th length bit are zero.
                let is_short_message = prefix >> 24 == 0;
                let frame_bytes = rawsocket::PREFIX_BYTES + prefix as usize;
                if !is_short_message || prefix > self.message_bytes_max || frame_bytes > chunk.len() {
                    return None;
                }
                Some(&mut take(chunk, frame_bytes)[rawsocket::PREFIX_BYTES..])
            }
            _ => {
                let (first, header_bytes, payload_bytes, mask) = websocket::parse_short(chunk, self.role)?;
                let is_text = self.is_text_expected?;
                let frame_bytes = header_bytes + payload_bytes;
                if first != websocket::first_octet(is_text)
                    || payload_bytes > self.message_bytes_max as usize
                    || frame_bytes > chunk.len()
                {
                    return None;
                }
                self.is_text = is_text;
                self.is_compressed = false;
                let payload = &mut take(chunk, frame_bytes)[header_bytes..];
                websocket::apply_mask(payload, mask);
                Some(payload)
            }
        }
    }

    #[inline(never)]
    fn advance<'c>(&mut self, chunk: &mut &'c mut [u8]) -> Result<Option<Found<'c>>, FrameError> {
        loop {
            match self.step {
                Step::Idle => {
                    let Some((head, head_bytes)) = self.read_head(chunk)? else {
                        self.keep_head(chunk);
                        return Ok(None);
                    };
                    take(chunk, head_bytes);
                    if let Some(found) = self.begin(head, chunk)? {
                        return Ok(Some(found));
                    }
                }
                Step::Head { bytes, bytes_len } => {
                    let Some(head) = self.continue_head(bytes, usize::from(bytes_len), chunk)? else {
                        return Ok(None);
                    };
                    if let Some(found) = self.begin(head, chunk)? {
                        return Ok(Some(found));
                    }
                }
                Step::Payload(head) => {
                    if !self.gather(head, chunk)? {
                        return Ok(None);
                    }
                    if let Some(found) = self.finish(head)? {
                        return Ok(Some(found));
                    }
                }
                Step::Spent => self.release(),
                Step::Closed => {
                    *chunk = &mut [];
                    return Ok(None);
                }
                Step::Failed => return Err(FrameError::Protocol("the stream failed before")),
            }
        }
    }

    /// Reads and admits the header that `bytes` begins with, and its length. `Ok(None)`, without a change: not whole.
    #[inline]
    fn read_head(&mut self, bytes: &[u8]) -> Result<Option<(Head, usize)>, FrameError> {
        match self.framing {
            Framing::RawSocket => {
                let Some(&prefix) = bytes.first_chunk() else { return Ok(None) };
                let (kind, payload_bytes) = rawsocket::parse_prefix(prefix, self.message_bytes_max as usize)?;
                self.fragments = u32::from(kind == FrameKind::Message);
                let head = Head { kind, is_final: true, mask: [0; 4], payload_bytes: payload_bytes as u32 };
                Ok(Some((head, rawsocket::PREFIX_BYTES)))
            }
            _ => {
                let Some((header, header_bytes)) = websocket::parse_header(bytes, self.role, self.deflates)?
                else {
                    return Ok(None);
                };
                Ok(Some((self.admit(header)?, header_bytes)))
            }
        }
    }

    /// The rules between frames (RFC 6455, 5.4), and the limits.
    #[inline]
    fn admit(&mut self, header: websocket::Header) -> Result<Head, FrameError> {
        let is_open = self.fragments != 0;
        let kind = match header.opcode {
            Opcode::Text | Opcode::Binary if is_open => {
                return Err(FrameError::Protocol("a new message began inside a fragmented one"));
            }
            Opcode::Continuation if !is_open => {
                return Err(FrameError::Protocol("a continuation frame continues nothing"));
            }
            Opcode::Text | Opcode::Binary => {
                self.is_text = header.opcode == Opcode::Text;
                if self.is_text_expected.is_some_and(|is_text| is_text != self.is_text) {
                    return Err(wrong_type(self.is_text));
                }
                self.is_compressed = header.is_compressed;
                FrameKind::Message
            }
            Opcode::Continuation => FrameKind::Message,
            Opcode::Close => FrameKind::Close,
            Opcode::Ping => FrameKind::Ping,
            Opcode::Pong => FrameKind::Pong,
        };
        if kind == FrameKind::Message {
            // Large messages may come in many fragments, but not in many that are next to nothing.
            if self.fragments >= FRAGMENTS_MAX + self.message_bytes / FRAGMENT_BYTES {
                return Err(FrameError::Protocol("a message has too many fragments"));
            }
            self.fragments += 1;
            let bytes = header.payload_bytes.saturating_add(u64::from(self.message_bytes));
            let bytes_max = match self.is_compressed {
                true => deflate::compressed_bytes_max(self.message_bytes_max),
                false => self.message_bytes_max,
            };
            if bytes > u64::from(bytes_max) {
                return Err(FrameError::TooLarge { bytes, bytes_max: bytes_max as usize });
            }
        }
        let payload_bytes = u32::try_from(header.payload_bytes)
            .expect("control frames and messages under the limit are short");
        Ok(Head { kind, is_final: header.is_final, mask: header.mask, payload_bytes })
    }

    /// Keeps the beginning of a header. `chunk` is too short to hold a whole one.
    fn keep_head(&mut self, chunk: &mut &mut [u8]) {
        if chunk.is_empty() {
            return;
        }
        let mut bytes = [0; HEADER_BYTES_MAX];
        bytes[..chunk.len()].copy_from_slice(chunk);
        self.step = Step::Head { bytes, bytes_len: chunk.len() as u8 };
        *chunk = &mut [];
    }

    /// Adds to a header of which `bytes_len` bytes are there and which is not whole.
    fn continue_head(
        &mut self,
        mut bytes: [u8; HEADER_BYTES_MAX],
        bytes_len: usize,
        chunk: &mut &mut [u8],
    ) -> Result<Option<Head>, FrameError> {
        let added = chunk.len().min(HEADER_BYTES_MAX - bytes_len);
        bytes[bytes_len..bytes_len + added].copy_from_slice(&chunk[..added]);
        let bytes_len_now = bytes_len + added;
        let Some((head, head_bytes)) = self.read_head(&bytes[..bytes_len_now])? else {
            self.step = Step::Head { bytes, bytes_len: bytes_len_now as u8 };
            take(chunk, added);
            return Ok(None);
        };
        take(chunk, head_bytes - bytes_len);
        Ok(Some(head))
    }

    /// Starts on a payload: found when it is whole in the chunk and need not be joined to others.
    #[inline]
    fn begin<'c>(&mut self, head: Head, chunk: &mut &'c mut [u8]) -> Result<Option<Found<'c>>, FrameError> {
        let payload_bytes = head.payload_bytes as usize;
        let is_alone = head.kind != FrameKind::Message || (head.is_final && self.fragments == 1);
        if !is_alone || payload_bytes > chunk.len() {
            self.step = Step::Payload(head);
            return Ok(None);
        }
        let payload = take(chunk, payload_bytes);
        websocket::apply_mask(payload, head.mask);
        match head.kind {
            FrameKind::Message => {
                self.fragments = 0;
                if self.is_plain_text() && simdutf8::basic::from_utf8(payload).is_err() {
                    return Err(FrameError::Utf8);
                }
            }
            FrameKind::Close => return self.close(websocket::parse_close(payload)?),
            FrameKind::Ping | FrameKind::Pong => {}
        }
        self.step = Step::Idle;
        Ok(Some(Found::InChunk(head.kind, payload)))
    }

    /// The open message is text that can be checked.
    #[inline]
    fn is_plain_text(&self) -> bool {
        self.is_text && !self.is_compressed
    }

    /// Moves what the chunk has of the payload behind what was gathered. True when the payload is whole.
    fn gather(&mut self, head: Head, chunk: &mut &mut [u8]) -> Result<bool, FrameError> {
        let missing = head.payload_bytes as usize;
        let part = take(chunk, missing.min(chunk.len()));
        websocket::apply_mask(part, head.mask);
        let mut mask = head.mask;
        mask.rotate_left(part.len() % 4);

        let is_plain_text = self.is_plain_text();
        let gathered = &mut self.gathered;
        let needed = gathered.len() + part.len();
        if needed > gathered.capacity() {
            let whole = if head.is_final { gathered.len() + missing } else { usize::MAX };
            let capacity = needed.max(2 * gathered.capacity()).min(whole);
            gathered.reserve_exact(capacity - gathered.len());
        }
        gathered.extend_from_slice(part);
        if is_plain_text && head.kind == FrameKind::Message {
            self.utf8_bytes += websocket::check_utf8(&gathered[self.utf8_bytes as usize..])? as u32;
        }
        let payload_bytes = (missing - part.len()) as u32;
        self.step = Step::Payload(Head { mask, payload_bytes, ..head });
        Ok(payload_bytes == 0)
    }

    /// Ends a gathered payload: found unless more fragments follow.
    fn finish(&mut self, head: Head) -> Result<Option<Found<'static>>, FrameError> {
        let start = self.message_bytes as usize;
        match head.kind {
            FrameKind::Message if head.is_final => {
                if self.is_plain_text() && self.utf8_bytes as usize != self.gathered.len() {
                    return Err(FrameError::Utf8);
                }
                (self.fragments, self.message_bytes, self.utf8_bytes) = (0, 0, 0);
                self.step = Step::Spent;
                Ok(Some(Found::Gathered(FrameKind::Message, 0)))
            }
            FrameKind::Message => {
                self.message_bytes = self.gathered.len() as u32;
                self.step = Step::Idle;
                Ok(None)
            }
            FrameKind::Close => {
                let code = websocket::parse_close(&self.gathered[start..])?;
                self.close(code)
            }
            FrameKind::Ping | FrameKind::Pong => {
                self.step = Step::Spent;
                Ok(Some(Found::Gathered(head.kind, start)))
            }
        }
    }

    fn close(&mut self, code: u16) -> Result<Option<Found<'static>>, FrameError> {
        self.end(Step::Closed);
        Ok(Some(Found::Close(code)))
    }

    fn end(&mut self, step: Step) {
        self.step = step;
        self.gathered = Vec::new();
    }

    /// Drops what was lent out.
    fn release(&mut self) {
        self.step = Step::Idle;
        match self.message_bytes {
            0 => self.gathered = Vec::new(),
            bytes => self.gathered.truncate(bytes as usize),
        }
    }
}

#[inline]
fn frame(kind: FrameKind, is_compressed: bool, payload: &[u8]) -> Frame<'_> {
    match kind {
        FrameKind::Message if is_compressed => Frame::Compressed(payload),
        FrameKind::Message => Frame::Message(payload),
        FrameKind::Ping => Frame::Ping(payload),
        FrameKind::Pong => Frame::Pong(payload),
        FrameKind::Close => unreachable!("close frames are found as Found::Close"),
    }
}

fn wrong_type(is_text: bool) -> FrameError {
    match is_text {
        true => FrameError::WrongType { frame: "text", expected: "binary" },
        false => FrameError::WrongType { frame: "binary", expected: "text" },
    }
}

/// Splits the first `bytes` off `chunk`.
#[inline]
fn take<'c>(chunk: &mut &'c mut [u8], bytes: usize) -> &'c mut [u8] {
    let (taken, rest) = std::mem::take(chunk).split_at_mut(bytes);
    *chunk = rest;
    taken
}
