//! permessage-deflate on connections (RFC 7692): what was agreed on, compressors with and without context.
//!
//! Messages are compressed when they are handed to the driver, after the last chance to drop any, because with context
//! the peer must get every one of them. Without context one compressor of the shard does for all connections, and
//! what several receive is compressed once.

use super::conn::{Conn, Phase};
use super::outbound::Pool;
use super::{SendBuf, Shard};
use common::config::Compression;
use common::limits::LOGIN_MESSAGE_BYTES_MAX;
use common::metrics::Counter;
use common::transport::deflate::{self, DEFLATER_BYTES_MAX, Deflater, INFLATER_BYTES_MAX, Inflater, Params};
use common::transport::{FrameError, Framing, batch};

/// The part of a shard's memory that contexts may take; connections beyond it are compressed without.
const CONTEXT_MEMORY_PART: u64 = 8;
/// Bytes of an inflated message's buffer that are kept for the next.
const INFLATED_KEEP_BYTES_MAX: usize = 1 << 16;

/// What makes the output of two compressors without context the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Key {
    level: u8,
    window_bits: u8,
    is_thorough: bool,
}

impl Key {
    fn deflater(self) -> Deflater {
        let mut deflater = Deflater::new(self.level, self.window_bits);
        if self.is_thorough {
            deflater.be_thorough();
        }
        deflater
    }
}

/// Compressors and decompressors that belong to no connection: one of each kind at most, made when first needed.
#[derive(Debug, Default)]
pub(super) struct Codecs {
    /// By level and window bits, thorough or not: 9 times 7 times 2.
    deflaters: Vec<(Key, Deflater)>,
    /// Of the widest window, which reads all others.
    inflater: Option<Inflater>,
    /// The message in hand, unfolded.
    inflated: Vec<u8>,
}

impl Codecs {
    /// Without context; to be reset before each message, as [`Deflater::compress_frames`] does.
    pub fn deflater(&mut self, key: Key) -> &mut Deflater {
        let at = match self.deflaters.iter().position(|(made, _)| *made == key) {
            Some(at) => at,
            None => {
                self.deflaters.push((key, key.deflater()));
                self.deflaters.len() - 1
            }
        };
        &mut self.deflaters[at].1
    }
}

/// Compression of one connection.
#[derive(Debug)]
pub(super) struct Packing {
    params: Params,
    level: u8,
    /// Every message is compressed, as it came.
    is_thorough: bool,
    /// With context; made for the first message.
    deflater: Option<Deflater>,
    inflater: Option<Inflater>,
    /// Received bytes that wait for a later turn.
    pub(super) put_off: Vec<u8>,
}

impl Packing {
    fn key(&self) -> Key {
        let window_bits = self.params.server_window_bits();
        Key { level: self.level, window_bits, is_thorough: self.is_thorough }
    }
}

/// Bytes of the contexts that `params` ask for.
fn context_bytes(params: Params) -> usize {
    let server = if params.server_no_context_takeover { 0 } else { DEFLATER_BYTES_MAX };
    let client = if params.client_no_context_takeover { 0 } else { INFLATER_BYTES_MAX };
    server + client
}

impl Conn {
    /// Bytes reserved for this connection's contexts.
    pub fn context_bytes(&self) -> usize {
        self.packing.as_ref().map_or(0, |packing| context_bytes(packing.params))
    }

    /// How messages to this connection are compressed, each by itself.
    #[inline]
    pub fn compresses_alone(&self) -> Option<Key> {
        let packing = self.packing.as_ref().filter(|packing| packing.params.server_no_context_takeover)?;
        Some(packing.key())
    }

    /// What is queued does not go out as it is.
    #[inline]
    pub fn is_packed(&self) -> bool {
        self.packing.is_some() || self.framing.is_batched()
    }

    /// Everything queued, for the driver, batched and compressed as was agreed on.
    pub fn pack(&mut self, codecs: &mut Codecs, pool: &mut Pool) -> SendBuf {
        match (&mut self.packing, self.framing.is_batched()) {
            (None, false) => self.out.take(pool),
            (None, true) => self.out.take_rewritten(pool, false, batch::coalesce),
            (Some(packing), is_batched) => {
                let key = packing.key();
                let keeps_context = !packing.params.server_no_context_takeover;
                let deflater = match keeps_context {
                    true => packing.deflater.get_or_insert_with(|| key.deflater()),
                    false => codecs.deflater(key),
                };
                // Without context, what is shared was compressed when it was made.
                self.out.take_rewritten(pool, keeps_context, |frames, out| {
                    if is_batched {
                        let mut joined = Vec::with_capacity(frames.len());
                        batch::coalesce(frames, &mut joined);
                        deflater.compress_frames(&joined, keeps_context, out);
                    } else {
                        deflater.compress_frames(frames, keeps_context, out);
                    }
                })
            }
        }
    }
}

impl Shard {
    /// What is agreed to on a listener just now.
    pub(super) fn deflate_accepts(&self, listener: usize) -> Option<deflate::Accepts> {
        let context_takeover = match self.config.listeners[listener].compression {
            Compression::Off => return None,
            Compression::NoTakeover => false,
            Compression::Takeover => self.has_room_for_context(),
        };
        Some(deflate::Accepts { context_takeover })
    }

    fn has_room_for_context(&self) -> bool {
        let needed = self.context_bytes + DEFLATER_BYTES_MAX + INFLATER_BYTES_MAX;
        needed as u64 <= self.config.memory_max / CONTEXT_MEMORY_PART
    }

    /// Sets up what the upgrade agreed on; the connection's framing is set up already.
    pub(super) fn agree_on_compression(&mut self, slot: u32, params: Option<Params>) {
        let Some(params) = params else { return };
        let listener = usize::from(self.at(slot).listener);
        let listener = &self.config.listeners[listener];
        let (level, wanted, is_thorough) = (listener.compression_level, listener.compression, listener.echo);
        if wanted == Compression::Takeover && !self.has_room_for_context() {
            self.metrics.count(Counter::ContextsRefused);
        }
        self.context_bytes += context_bytes(params);
        let conn = self.at(slot);
        let (deflater, inflater, put_off) = (None, None, Vec::new());
        conn.packing = Some(Box::new(Packing { params, level, is_thorough, deflater, inflater, put_off }));
        if let Some(framer) = &mut conn.framer {
            framer.accept_compressed();
        }
    }

    /// Handles what a compressed message holds. It is unfolded to no more than a message may have: before login that is
    /// [`LOGIN_MESSAGE_BYTES_MAX`].
    #[cold]
    pub(super) fn compressed(&mut self, slot: u32, framing: Framing, payload: &[u8]) {
        let listener = usize::from(self.at(slot).listener);
        let message_bytes_max = match self.at(slot).phase {
            Phase::Open | Phase::Carrying | Phase::Leaving => {
                self.config.listeners[listener].message_max as usize
            }
            _ => LOGIN_MESSAGE_BYTES_MAX,
        };
        let mut message = std::mem::take(&mut self.scratch.codecs.inflated);
        let unfolded = self.inflate(slot, payload, message_bytes_max, &mut message);
        // One that is refused has cost as much.
        self.inflating.count(message.len());
        match unfolded {
            Ok(()) => {
                self.metrics.add(Counter::InflatedBytes, message.len() as u64);
                self.carried(slot, framing, &message);
            }
            Err(error) => {
                self.metrics.count(Counter::InflatesRefused);
                self.bad_frame(slot, &error);
            }
        }
        message.clear();
        message.shrink_to(INFLATED_KEEP_BYTES_MAX);
        self.scratch.codecs.inflated = message;
    }

    pub(super) fn inflate(
        &mut self,
        slot: u32,
        payload: &[u8],
        message_bytes_max: usize,
        message: &mut Vec<u8>,
    ) -> Result<(), FrameError> {
        let conn = self.conns[slot as usize].as_mut().expect("the slot of a connection in hand is taken");
        let packing = conn.packing.as_mut().expect("compressed frames are taken only once it was agreed on");
        let bits = packing.params.client_window_bits();
        if packing.params.client_no_context_takeover {
            let inflater = self.scratch.codecs.inflater.get_or_insert_with(|| Inflater::new(15));
            inflater.reset();
            inflater.inflate(payload, message_bytes_max, message)?;
        } else {
            let inflater = packing.inflater.get_or_insert_with(|| Inflater::new(bits));
            inflater.inflate(payload, message_bytes_max, message)?;
        }
        if conn.serializer.is_text() && std::str::from_utf8(message).is_err() {
            return Err(FrameError::Utf8);
        }
        Ok(())
    }
}
