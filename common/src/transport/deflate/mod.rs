//! Compression of WebSocket messages: permessage-deflate (RFC 7692), sans-IO.
//!
//! Invariants: a [`Deflater`] or [`Inflater`] holds at most [`DEFLATER_BYTES_MAX`] or [`INFLATER_BYTES_MAX`] of memory
//! whatever it is fed; inflating stops at the bound of the message, so what a few bytes unfold to is never held.

mod offer;

pub use offer::{Accepts, Params};

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::{FrameError, FrameKind, websocket};
use crate::limits::{DEFLATE_BYTES_MIN, MESSAGE_BYTES_MAX};

/// Most heap memory that a compressor holds: window, hash chains and symbols of zlib's memory level 8.
pub const DEFLATER_BYTES_MAX: usize = 384 * 1_024;
/// Most heap memory that a decompressor holds: window and code tables.
pub const INFLATER_BYTES_MAX: usize = 64 * 1_024;

/// What every compressed message ends with and is left out on the wire (RFC 7692, 7.2.1).
const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];

/// Room for output that is added at a time.
const STEP_BYTES: usize = 4 * 1_024;

/// Longest compressed form accepted of a message of at most `message_bytes_max`: it may be longer than the message
/// itself, when that cannot be compressed and is cut into many blocks.
pub(super) const fn compressed_bytes_max(message_bytes_max: u32) -> u32 {
    message_bytes_max + message_bytes_max / 16 + 64
}

const _: () = assert!(compressed_bytes_max(MESSAGE_BYTES_MAX as u32) > MESSAGE_BYTES_MAX as u32);

/// Compresses messages of one direction.
#[derive(Debug)]
pub struct Deflater {
    compress: Compress,
    /// Every message is compressed.
    is_thorough: bool,
}

impl Deflater {
    /// `level`: 1 (fast) to 9 (small). `window_bits`: 9 to 15.
    ///
    /// # Panics
    /// When `window_bits` is something else.
    pub fn new(level: u8, window_bits: u8) -> Self {
        let level = Compression::new(u32::from(level.clamp(1, 9)));
        Self { compress: Compress::new_with_window_bits(level, false, window_bits), is_thorough: false }
    }

    /// Compresses every message from now on, also where it is not worth while.
    pub fn be_thorough(&mut self) {
        self.is_thorough = true;
    }

    /// Forgets the messages before.
    pub fn reset(&mut self) {
        self.compress.reset();
    }

    /// Appends `message`, compressed.
    fn deflate(&mut self, message: &[u8], out: &mut Vec<u8>) {
        if message.is_empty() {
            // zlib has nothing to flush (RFC 7692, 7.2.3.6).
            return out.push(0);
        }
        let start = out.len();
        let before = self.compress.total_in();
        loop {
            out.reserve(STEP_BYTES);
            let taken = (self.compress.total_in() - before) as usize;
            self.compress
                .compress_vec(&message[taken..], out, FlushCompress::Sync)
                .expect("a compressor that is never finished takes any input");
            // With room left, everything was taken and flushed.
            if out.len() < out.capacity() {
                break;
            }
        }
        assert!(out[start..].ends_with(&TAIL), "a flush ends with an empty block");
        out.truncate(out.len() - TAIL.len());
    }

    /// Appends the whole server's frames `frames` with their messages compressed, where that is worth while: messages
    /// shorter than [`DEFLATE_BYTES_MIN`], those compressed already and other frames stay as they are. With
    /// `context_takeover` the receiver must get all of them, in this order.
    pub fn compress_frames(&mut self, frames: &[u8], context_takeover: bool, out: &mut Vec<u8>) {
        let mut rest = frames;
        while let Some((start, payload_bytes)) = websocket::walk_own_header(rest) {
            let (frame, others) = rest.split_at(start + payload_bytes);
            let is_text = frame[0] == websocket::first_octet(true);
            let is_plain = is_text || frame[0] == websocket::first_octet(false);
            if is_plain && (payload_bytes >= DEFLATE_BYTES_MIN || self.is_thorough) {
                self.compress_frame(frame, start, is_text, context_takeover, out);
            } else {
                out.extend_from_slice(frame);
            }
            rest = others;
        }
        assert!(rest.is_empty(), "only whole frames of our own are queued");
    }

    fn compress_frame(
        &mut self,
        frame: &[u8],
        payload_start: usize,
        is_text: bool,
        context_takeover: bool,
        out: &mut Vec<u8>,
    ) {
        let message = &frame[payload_start..];
        if !context_takeover {
            self.reset();
        }
        let mut compressed = Vec::with_capacity(message.len() / 2 + STEP_BYTES);
        self.deflate(message, &mut compressed);
        if compressed.len() >= message.len() && !context_takeover && !self.is_thorough {
            return out.extend_from_slice(frame);
        }
        let start = out.len();
        websocket::write_header(FrameKind::Message, is_text, compressed.len(), None, out);
        out[start] |= websocket::COMPRESSED_BIT;
        out.extend_from_slice(&compressed);
    }
}

/// A client's compressed message as one frame; for clients of ours.
pub fn write_client_frame(
    deflater: &mut Deflater,
    is_text: bool,
    message: &[u8],
    mask: [u8; 4],
    out: &mut Vec<u8>,
) {
    let mut compressed = Vec::new();
    deflater.deflate(message, &mut compressed);
    let start = out.len();
    websocket::write_header(FrameKind::Message, is_text, compressed.len(), Some(mask), out);
    out[start] |= websocket::COMPRESSED_BIT;
    let payload_start = out.len();
    out.extend_from_slice(&compressed);
    websocket::apply_mask(&mut out[payload_start..], mask);
}

/// Decompresses messages of one direction.
#[derive(Debug)]
pub struct Inflater {
    decompress: Decompress,
}

impl Inflater {
    /// `window_bits`: at least those the sender may use. Fewer than 9 are taken for 9.
    ///
    /// # Panics
    /// When there are more than 15.
    pub fn new(window_bits: u8) -> Self {
        Self { decompress: Decompress::new_with_window_bits(false, window_bits.max(9)) }
    }

    /// Forgets the messages before.
    pub fn reset(&mut self) {
        self.decompress.reset(false);
    }

    /// Appends the message that `payload` is the compressed form of; at most `message_bytes_max` bytes of it are ever
    /// held. After an error the inflater must be reset or dropped.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`] or [`FrameError::Compression`]; `out` may hold the beginning of the message.
    pub fn inflate(
        &mut self,
        payload: &[u8],
        message_bytes_max: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), FrameError> {
        let message_start = out.len();
        for part in [payload, &TAIL] {
            self.inflate_part(part, message_start, message_bytes_max, out)?;
        }
        Ok(())
    }

    fn inflate_part(
        &mut self,
        mut part: &[u8],
        message_start: usize,
        message_bytes_max: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), FrameError> {
        loop {
            // One byte more than is allowed tells what ends at the bound from what goes on.
            let start = out.len();
            let message_bytes = start - message_start;
            let room = (message_bytes_max + 1 - message_bytes).min(message_bytes.max(STEP_BYTES));
            let (before_in, before_out) = (self.decompress.total_in(), self.decompress.total_out());
            out.reserve_exact(room);
            out.resize(start + room, 0);
            let status = self.decompress.decompress(part, &mut out[start..], FlushDecompress::Sync);
            let taken = (self.decompress.total_in() - before_in) as usize;
            let made = (self.decompress.total_out() - before_out) as usize;
            out.truncate(start + made);
            part = &part[taken..];
            let message_bytes = out.len() - message_start;
            if message_bytes > message_bytes_max {
                let bytes = message_bytes as u64;
                return Err(FrameError::TooLarge { bytes, bytes_max: message_bytes_max });
            }
            match status {
                Err(_) => return Err(FrameError::Compression),
                // The sender ended the stream with this block; another may follow (RFC 7692, 7.2.3.4).
                Ok(Status::StreamEnd) => {
                    self.reset();
                    if part.is_empty() {
                        return Ok(());
                    }
                }
                Ok(_) if part.is_empty() && made < room => return Ok(()),
                Ok(_) if taken == 0 && made == 0 => return Err(FrameError::Compression),
                Ok(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests;
