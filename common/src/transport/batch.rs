//! Several WAMP messages in one WebSocket message (WAMP, advanced profile, "Message Batching").
//!
//! ```text
//! JSON              message | 0x1e | message | 0x1e ...
//! MessagePack, CBOR length, 32 bits, big-endian | message | length | message ...
//! ```
//! JSON has a dialect: Autobahn|Python ends messages with 0x18 where the specification says 0x1e. Neither octet can
//! stand in JSON (RFC 8259, 7), so both are read, and each client is answered in its own.

use super::{FrameError, Framing, websocket};
use crate::wire::Serializer;

/// What ends a JSON message in a batch: RS, and the dialect's CAN.
const RECORD_SEPARATOR: u8 = 0x1e;
const CANCEL: u8 = 0x18;

/// Bytes of the length before a message of a binary serializer.
const LENGTH_BYTES: usize = 4;

/// Most messages of a received batch: as many short ones are handled in one go, before the receivers' queues and the
/// other connections of the shard are looked at again.
pub const BATCH_MESSAGES_MAX: usize = 4_096;

/// Longest batch, in bytes, that [`coalesce`] makes of several messages; what is longer by itself goes by itself. Its
/// header is never longer than those it replaces.
pub const BATCH_BYTES_MAX: usize = 65_535;

/// The messages of what was received as one; see [`split`].
#[derive(Clone, Debug)]
pub struct Messages<'b> {
    rest: &'b [u8],
    is_batched: bool,
    is_text: bool,
    /// Messages found. A batch of no messages is an error, said once.
    found: usize,
}

/// The messages of `received`, in order: itself, unless it is a batch by `framing`. After an error there are no more.
pub fn split(framing: Framing, serializer: Serializer, received: &[u8]) -> Messages<'_> {
    Messages { rest: received, is_batched: framing.is_batched(), is_text: serializer.is_text(), found: 0 }
}

impl<'b> Iterator for Messages<'b> {
    type Item = Result<&'b [u8], FrameError>;

    fn next(&mut self) -> Option<Self::Item> {
        let is_first = self.found == 0;
        self.found += 1;
        if !self.is_batched {
            return is_first.then_some(Ok(self.rest));
        }
        let rest = std::mem::take(&mut self.rest);
        if rest.is_empty() {
            return is_first.then_some(Err(FrameError::Protocol("a batch must hold a message")));
        }
        if self.found > BATCH_MESSAGES_MAX {
            return Some(Err(FrameError::Protocol("a batch holds too many messages")));
        }
        let Some((message, rest)) = split_first(rest, self.is_text) else {
            return Some(Err(FrameError::Protocol("a batch ends inside a message")));
        };
        self.rest = rest;
        Some(Ok(message))
    }
}

fn split_first(batch: &[u8], is_text: bool) -> Option<(&[u8], &[u8])> {
    if is_text {
        let end = memchr::memchr2(RECORD_SEPARATOR, CANCEL, batch)?;
        return Some((&batch[..end], &batch[end + 1..]));
    }
    let (length, rest) = batch.split_first_chunk::<LENGTH_BYTES>()?;
    rest.split_at_checked(u32::from_be_bytes(*length) as usize)
}

/// The framing in which a client that sent `batch` is answered.
pub fn dialect(serializer: Serializer, batch: &[u8]) -> Framing {
    match batch.last() {
        Some(&CANCEL) if serializer.is_text() => Framing::BatchedCan,
        _ => Framing::Batched,
    }
}

/// Bytes before a message in a batch, and after it.
#[inline]
pub(super) const fn overhead(serializer: Serializer) -> (usize, usize) {
    if serializer.is_text() { (0, 1) } else { (LENGTH_BYTES, 0) }
}

/// Appends `message` as one of a batch.
pub fn write(framing: Framing, serializer: Serializer, message: &[u8], out: &mut Vec<u8>) {
    if serializer.is_text() {
        out.extend_from_slice(message);
        out.push(terminator(framing));
    } else {
        out.extend_from_slice(&length(message.len()));
        out.extend_from_slice(message);
    }
}

pub(super) const fn terminator(framing: Framing) -> u8 {
    match framing {
        Framing::BatchedCan => CANCEL,
        _ => RECORD_SEPARATOR,
    }
}

/// The length before a message of `message_bytes`.
///
/// # Panics
/// When it does not fit into 32 bits; messages are at most [`MESSAGE_BYTES_MAX`](crate::limits::MESSAGE_BYTES_MAX).
pub(super) fn length(message_bytes: usize) -> [u8; LENGTH_BYTES] {
    u32::try_from(message_bytes).expect("messages are shorter than 2^32 bytes").to_be_bytes()
}

/// Appends the whole server's frames `frames`, with neighbouring messages joined to batches of at most
/// [`BATCH_BYTES_MAX`]. Each of the messages must be a batch itself. Other frames stay in their place. What is
/// appended is never longer than `frames`.
pub fn coalesce(frames: &[u8], out: &mut Vec<u8>) {
    let mut rest = frames;
    while !rest.is_empty() {
        let run = Run::of(rest);
        if run.messages > 1 {
            websocket::write_header(
                super::FrameKind::Message,
                rest[0] == websocket::first_octet(true),
                run.payload_bytes,
                None,
                out,
            );
            let mut frames = &rest[..run.frames_bytes];
            while let Some((start, payload_bytes)) = websocket::walk_own_header(frames) {
                let end = start + payload_bytes;
                out.extend_from_slice(&frames[start..end]);
                frames = &frames[end..];
            }
        } else {
            out.extend_from_slice(&rest[..run.frames_bytes]);
        }
        rest = &rest[run.frames_bytes..];
    }
}

/// Frames at the front of some that become one.
struct Run {
    messages: usize,
    payload_bytes: usize,
    frames_bytes: usize,
}

impl Run {
    /// The longest run that `frames` begins with; one frame at least.
    fn of(frames: &[u8]) -> Self {
        let mut run = Self { messages: 0, payload_bytes: 0, frames_bytes: 0 };
        let mut rest = frames;
        while let Some((start, payload_bytes)) = websocket::walk_own_header(rest) {
            let is_message = matches!(rest[0], TEXT | BINARY);
            let fits = run.payload_bytes + payload_bytes <= BATCH_BYTES_MAX;
            if run.frames_bytes > 0 && !(is_message && fits && rest[0] == frames[0]) {
                break;
            }
            run.messages += usize::from(is_message);
            run.payload_bytes += payload_bytes;
            run.frames_bytes += start + payload_bytes;
            if !is_message || !fits {
                break;
            }
            rest = &rest[start + payload_bytes..];
        }
        assert!(run.frames_bytes > 0, "only whole frames of our own are queued");
        run
    }
}

const TEXT: u8 = websocket::first_octet(true);
const BINARY: u8 = websocket::first_octet(false);

#[cfg(test)]
mod tests {
    use super::super::{Frame, FrameKind, Framer, Role, write_header, write_message};
    use super::*;
    use proptest::prelude::*;

    fn messages(serializer: Serializer, batch: &[u8]) -> Result<Vec<&[u8]>, FrameError> {
        split(Framing::Batched, serializer, batch).collect()
    }

    #[test]
    fn json_messages_end_with_a_separator() {
        let split = |batch: &'static [u8]| messages(Serializer::Json, batch);
        assert_eq!(split(b"[1]\x1e"), Ok(vec![&b"[1]"[..]]));
        assert_eq!(split(b"[1]\x1e[2]\x1e"), Ok(vec![&b"[1]"[..], b"[2]"]));
        assert_eq!(split(b"[1]\x18[2]\x18"), Ok(vec![&b"[1]"[..], b"[2]"]), "Autobahn's dialect");
        assert_eq!(split(b"\x1e[2]\x1e"), Ok(vec![&b""[..], b"[2]"]), "the decoder refuses what is empty");
        for wrong in [&b"[1]"[..], b"[1]\x1e[2]", b"x"] {
            assert!(matches!(split(wrong), Err(FrameError::Protocol(_))), "{wrong:?}");
        }
    }

    #[test]
    fn binary_messages_begin_with_their_length() {
        for serializer in [Serializer::MsgPack, Serializer::Cbor] {
            let split = |batch: &'static [u8]| messages(serializer, batch);
            assert_eq!(split(&[0, 0, 0, 2, 7, 8]), Ok(vec![&[7, 8][..]]));
            assert_eq!(split(&[0, 0, 0, 1, 7, 0, 0, 0, 1, 8]), Ok(vec![&[7][..], &[8]]));
            for wrong in [&[0][..], &[0, 0, 0, 2, 7], &[0, 0, 0, 1, 7, 0], &[255, 255, 255, 255, 1]] {
                assert!(matches!(split(wrong), Err(FrameError::Protocol(_))), "{wrong:?}");
            }
        }
    }

    #[test]
    fn what_is_no_batch_is_one_message() {
        for framing in [Framing::RawSocket, Framing::WebSocket] {
            for received in [&b"[1]\x1e[2]\x1e"[..], b""] {
                let found: Vec<_> = split(framing, Serializer::Json, received).collect();
                assert_eq!(found, [Ok(received)]);
            }
        }
    }

    #[test]
    fn an_empty_batch_is_an_error() {
        for serializer in Serializer::ALL {
            let found: Vec<_> = split(Framing::Batched, serializer, b"").collect();
            assert_eq!(found, [Err(FrameError::Protocol("a batch must hold a message"))]);
        }
    }

    #[test]
    fn a_batch_has_a_bounded_number_of_messages() {
        for (serializer, message) in [(Serializer::Json, &b"1\x1e"[..]), (Serializer::Cbor, &[0, 0, 0, 1, 1])]
        {
            let most = message.repeat(BATCH_MESSAGES_MAX);
            assert_eq!(messages(serializer, &most).map(|found| found.len()), Ok(BATCH_MESSAGES_MAX));
            let more = message.repeat(BATCH_MESSAGES_MAX + 2);
            let found: Vec<_> = split(Framing::Batched, serializer, &more).collect();
            assert_eq!(found.len(), BATCH_MESSAGES_MAX + 1);
            assert!(matches!(found.last(), Some(Err(FrameError::Protocol(_)))));
        }
    }

    #[test]
    fn a_client_is_answered_in_its_own_dialect() {
        assert_eq!(dialect(Serializer::Json, b"[1]\x1e"), Framing::Batched);
        assert_eq!(dialect(Serializer::Json, b"[1]\x18"), Framing::BatchedCan);
        assert_eq!(dialect(Serializer::MsgPack, &[0, 0, 0, 1, 0x18]), Framing::Batched);
        let mut out = Vec::new();
        write_message(Framing::BatchedCan, Serializer::Json, b"[1]", &mut out);
        assert_eq!(out, b"\x81\x04[1]\x18");
    }

    /// What a client receives: each WebSocket message's messages, and control frames as they are.
    fn received(framing: Framing, serializer: Serializer, stream: &[u8]) -> Vec<Vec<Vec<u8>>> {
        let mut stream = stream.to_vec();
        let mut chunk = &mut stream[..];
        let mut framer = Framer::new(framing, Role::Client, serializer, 1 << 24);
        let mut found = Vec::new();
        while let Some(frame) = framer.next(&mut chunk).expect("right") {
            found.push(match frame {
                Frame::Message(batch) => split(Framing::Batched, serializer, batch)
                    .map(|message| message.expect("right").to_vec())
                    .collect(),
                Frame::Ping(payload) => vec![payload.to_vec()],
                other => panic!("{other:?}"),
            });
        }
        found
    }

    #[test]
    fn neighbours_are_joined_up_to_the_bound() {
        for serializer in Serializer::ALL {
            let framing = Framing::Batched;
            let mut frames = Vec::new();
            for message in [&[b'1'; 100][..], &[b'2'; 100]] {
                write_message(framing, serializer, message, &mut frames);
            }
            write_header(framing, serializer, FrameKind::Ping, 1, &mut frames);
            frames.push(b'p');
            for message in [&[b'3'; 40_000][..], &[b'4'; 30_000], &[b'5'; 100_000], b"6", b"7"] {
                write_message(framing, serializer, message, &mut frames);
            }
            let mut out = Vec::new();
            coalesce(&frames, &mut out);
            let lengths: Vec<usize> = received(framing, serializer, &out).iter().map(Vec::len).collect();
            assert_eq!(lengths, [2, 1, 1, 1, 1, 2], "{serializer:?}");
            assert!(out.len() <= frames.len());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_split_or_refused(batch: Vec<u8>) {
            for serializer in Serializer::ALL {
                let (overhead_before, overhead_after) = overhead(serializer);
                let mut bytes = 0;
                for message in split(Framing::Batched, serializer, &batch).flatten() {
                    bytes += message.len() + overhead_before + overhead_after;
                }
                prop_assert!(bytes <= batch.len());
            }
        }

        #[test]
        fn what_is_joined_arrives_in_order(
            messages in prop::collection::vec((prop::option::of(0usize..300), 0usize..40_000), 0..40),
        ) {
            for serializer in Serializer::ALL {
                let (mut frames, mut expected) = (Vec::new(), Vec::new());
                for (index, (short, long)) in messages.iter().enumerate() {
                    let message = vec![b'a' + (index % 26) as u8; short.unwrap_or(*long)];
                    write_message(Framing::Batched, serializer, &message, &mut frames);
                    expected.push(message);
                }
                let mut out = vec![];
                coalesce(&frames, &mut out);
                prop_assert!(out.len() <= frames.len());
                let found = received(Framing::Batched, serializer, &out);
                let bytes = |batch: &[Vec<u8>]| batch.iter().map(Vec::len).sum::<usize>();
                let bounded = found.iter().all(|batch| batch.len() == 1 || bytes(batch) <= BATCH_BYTES_MAX);
                prop_assert!(bounded);
                prop_assert_eq!(found.concat(), expected);
            }
        }
    }
}
