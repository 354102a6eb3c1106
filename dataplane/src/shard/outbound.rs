//! The bounded queue of bytes to one connection.
//!
//! Frames are appended to one growing buffer; large events are shared between receivers instead of copied. No frame
//! boundaries are kept: when events must be dropped the queue is walked, which our own frames allow.

use bytes::Bytes;
use common::transport::{Framing, batch, walk_own_frame, write_message};
use common::wire::Serializer;

/// Bytes to send on one connection, in order. The driver owns it while the kernel reads it and gives it back to
/// [`super::Shard::sent`].
#[derive(Debug, Default)]
pub struct SendBuf {
    /// Never empty when taken from a shard.
    pub segments: Vec<Segment>,
}

impl SendBuf {
    pub(super) fn bytes(&self) -> usize {
        self.segments.iter().map(|segment| segment.as_slice().len()).sum()
    }
}

/// A piece of a [`SendBuf`].
#[derive(Debug)]
pub enum Segment {
    Owned(Vec<u8>),
    Shared(bytes::Bytes),
}

impl Segment {
    #[inline]
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Self::Owned(bytes) => bytes,
            Self::Shared(bytes) => bytes,
        }
    }
}

/// Buffers of emptied queues, kept for the next connection that has something to send.
#[derive(Debug, Default)]
pub(super) struct Pool {
    buffers: Vec<Vec<u8>>,
    sends: Vec<SendBuf>,
}

/// Most buffers a shard keeps for reuse.
const POOL_BUFFERS_MAX: usize = 256;
/// Largest buffer kept for reuse.
const POOL_BUFFER_BYTES_MAX: usize = 64 * 1024;

impl Pool {
    #[inline]
    fn buffer(&mut self) -> Vec<u8> {
        self.buffers.pop().unwrap_or_default()
    }

    fn send_buf(&mut self) -> SendBuf {
        self.sends.pop().unwrap_or_default()
    }

    #[inline]
    fn put_back(&mut self, mut buffer: Vec<u8>) {
        if buffer.capacity() <= POOL_BUFFER_BYTES_MAX && self.buffers.len() < POOL_BUFFERS_MAX {
            buffer.clear();
            self.buffers.push(buffer);
        }
    }

    /// Takes back a sent buffer for reuse.
    pub fn recycle(&mut self, mut buf: SendBuf) {
        for segment in buf.segments.drain(..) {
            if let Segment::Owned(bytes) = segment {
                self.put_back(bytes);
            }
        }
        if buf.segments.capacity() <= 64 && self.sends.len() < POOL_BUFFERS_MAX {
            self.sends.push(buf);
        }
    }
}

/// Bytes from which on a buffer takes no further frame and another is begun: what waits is not copied again and again to
/// make room. A buffer that doubled until it had so many is not too large to be used again.
const FULL_BYTES: usize = POOL_BUFFER_BYTES_MAX / 2;

/// Bytes that wait for one connection.
#[derive(Debug, Default)]
pub(super) struct Outbound {
    /// Before `tail`: shared frames, and buffers that are full.
    head: Vec<Segment>,
    tail: Vec<u8>,
    bytes: usize,
    /// Bytes at the front that are no frames: the answer to a transport handshake.
    unframed: usize,
}

impl Outbound {
    #[inline]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    #[inline]
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Appends one whole frame, made by `write`. Returns its length.
    #[inline]
    pub fn append(&mut self, pool: &mut Pool, write: impl FnOnce(&mut Vec<u8>)) -> usize {
        if self.tail.is_empty() || self.tail.len() >= FULL_BYTES {
            self.begin_buffer(pool);
        }
        let before = self.tail.len();
        write(&mut self.tail);
        let len = self.tail.len() - before;
        self.bytes += len;
        len
    }

    fn begin_buffer(&mut self, pool: &mut Pool) {
        if !self.tail.is_empty() {
            self.head.push(Segment::Owned(std::mem::take(&mut self.tail)));
        }
        if self.tail.capacity() == 0 {
            self.tail = pool.buffer();
        }
    }

    /// Appends the answer to a handshake, which comes before every frame.
    pub fn append_unframed(&mut self, pool: &mut Pool, bytes: &[u8]) -> usize {
        debug_assert_eq!(self.bytes, self.unframed, "a handshake is answered before anything else is said");
        self.unframed += bytes.len();
        self.append(pool, |out| out.extend_from_slice(bytes))
    }

    /// Appends one whole frame that other receivers get too.
    pub fn append_shared(&mut self, frame: Bytes) {
        if !self.tail.is_empty() {
            self.head.push(Segment::Owned(std::mem::take(&mut self.tail)));
        }
        self.bytes += frame.len();
        self.head.push(Segment::Shared(frame));
    }

    /// Appends everything another queue has; neither has an answer to a handshake.
    pub fn append_all(&mut self, mut other: Self) {
        if !self.tail.is_empty() {
            self.head.push(Segment::Owned(std::mem::take(&mut self.tail)));
        }
        self.head.append(&mut other.head);
        if !other.tail.is_empty() {
            self.head.push(Segment::Owned(other.tail));
        }
        self.bytes += other.bytes;
    }

    /// Everything queued, for the driver.
    pub fn take(&mut self, pool: &mut Pool) -> SendBuf {
        let mut buf = pool.send_buf();
        buf.segments.append(&mut self.head);
        if !self.tail.is_empty() {
            buf.segments.push(Segment::Owned(std::mem::take(&mut self.tail)));
        }
        self.bytes = 0;
        self.unframed = 0;
        if self.head.capacity() > 0 {
            self.head = Vec::new();
        }
        buf
    }

    /// As [`Outbound::take`], with each run of whole frames replaced by what `rewrite` appends for it; shared frames
    /// only when `with_shared`.
    pub fn take_rewritten(
        &mut self,
        pool: &mut Pool,
        with_shared: bool,
        mut rewrite: impl FnMut(&[u8], &mut Vec<u8>),
    ) -> SendBuf {
        let mut unframed = self.unframed;
        let mut buf = self.take(pool);
        for segment in &mut buf.segments {
            if matches!(segment, Segment::Shared(_)) && !with_shared {
                continue;
            }
            let mut rewritten = pool.buffer();
            let (before, frames) = segment.as_slice().split_at(std::mem::take(&mut unframed));
            rewritten.reserve(segment.as_slice().len());
            rewritten.extend_from_slice(before);
            rewrite(frames, &mut rewritten);
            if let Segment::Owned(bytes) = std::mem::replace(segment, Segment::Owned(rewritten)) {
                pool.put_back(bytes);
            }
        }
        buf
    }

    /// Makes all whole messages frames of [`Framing::RawSocket`], which is no work when they are; what belongs to the transport
    /// (handshake, pings) goes.
    pub fn reframe(&mut self, pool: &mut Pool, framing: Framing, serializer: Serializer) {
        if framing == Framing::RawSocket && self.unframed == 0 {
            return;
        }
        let mut unframed = self.unframed;
        let buf = self.take(pool);
        for segment in &buf.segments {
            let mut frames = &segment.as_slice()[std::mem::take(&mut unframed)..];
            while let Some((frame_bytes, payload_at)) = walk_own_frame(framing, frames) {
                let (frame, rest) = frames.split_at(frame_bytes);
                frames = rest;
                if !is_message(framing, frame) {
                    continue;
                }
                let payload = &frame[payload_at..];
                if framing.is_batched() {
                    for message in batch::split(framing, serializer, payload).flatten() {
                        self.append(pool, |out| write_message(Framing::RawSocket, serializer, message, out));
                    }
                } else {
                    self.append(pool, |out| write_message(Framing::RawSocket, serializer, payload, out));
                }
            }
        }
        pool.recycle(buf);
    }

    /// Takes the first frames, of at most `bytes_max` bytes all together, but at least one.
    pub fn take_front(&mut self, pool: &mut Pool, framing: Framing, bytes_max: usize) -> Vec<u8> {
        let mut taken = pool.buffer();
        let mut whole = 0;
        let mut cut = 0;
        for segment in &self.head {
            let (bytes, all) = (segment.as_slice(), segment.as_slice().len());
            let front = front(framing, bytes, bytes_max.saturating_sub(taken.len()), taken.is_empty());
            taken.extend_from_slice(&bytes[..front]);
            if front < all {
                cut = front;
                break;
            }
            whole += 1;
        }
        let reaches_tail = whole == self.head.len();
        self.head.drain(..whole);
        if reaches_tail {
            let room = bytes_max.saturating_sub(taken.len());
            let front = front(framing, &self.tail, room, taken.is_empty());
            taken.extend(self.tail.drain(..front));
        } else if cut > 0
            && let Some(Segment::Owned(bytes)) = self.head.first_mut()
        {
            bytes.drain(..cut);
        }
        self.bytes -= taken.len();
        if self.head.is_empty() {
            self.head = Vec::new();
        }
        taken
    }

    /// Drops everything; returns the bytes dropped.
    pub fn clear(&mut self, pool: &mut Pool) -> usize {
        self.head = Vec::new();
        pool.put_back(std::mem::take(&mut self.tail));
        self.unframed = 0;
        std::mem::take(&mut self.bytes)
    }

    /// Drops the oldest queued events until at most `bytes_max` bytes are left or no event is. Returns how many
    /// events went. Replies and control frames stay, in order.
    pub fn drop_oldest_events(&mut self, framing: Framing, serializer: Serializer, bytes_max: usize) -> u64 {
        let mut excess = self.bytes.saturating_sub(bytes_max);
        let mut dropped = 0;
        let mut unframed = self.unframed;
        self.head.retain_mut(|segment| match segment {
            Segment::Shared(frame) if excess > 0 => {
                excess = excess.saturating_sub(frame.len());
                dropped += 1;
                false
            }
            Segment::Owned(bytes) if excess > 0 => {
                let start = std::mem::take(&mut unframed);
                dropped += drop_events(bytes, start, framing, serializer, &mut excess);
                !bytes.is_empty()
            }
            _ => true,
        });
        if excess > 0 {
            dropped += drop_events(&mut self.tail, unframed, framing, serializer, &mut excess);
        }
        self.bytes =
            self.head.iter().map(|segment| segment.as_slice().len()).sum::<usize>() + self.tail.len();
        dropped
    }
}

/// Bytes of the whole frames at the front that have room, of one more if none has and `one` is to be taken.
fn front(framing: Framing, bytes: &[u8], room: usize, one: bool) -> usize {
    if bytes.len() <= room {
        return bytes.len();
    }
    let mut end = 0;
    while let Some((frame_bytes, _)) = walk_own_frame(framing, &bytes[end..])
        && (end + frame_bytes <= room || one && end == 0)
    {
        end += frame_bytes;
    }
    end
}

/// Removes events from the front part of a buffer, whole frames from `start` on, until `excess` bytes are gone.
fn drop_events(
    buffer: &mut Vec<u8>,
    start: usize,
    framing: Framing,
    serializer: Serializer,
    excess: &mut usize,
) -> u64 {
    let (mut read, mut write, mut dropped) = (start, start, 0);
    while *excess > 0 {
        let Some((frame_bytes, payload_at)) = walk_own_frame(framing, &buffer[read..]) else { break };
        if is_event(framing, serializer, &buffer[read..read + frame_bytes], payload_at) {
            *excess = excess.saturating_sub(frame_bytes);
            dropped += 1;
        } else {
            buffer.copy_within(read..read + frame_bytes, write);
            write += frame_bytes;
        }
        read += frame_bytes;
    }
    buffer.copy_within(read.., write);
    buffer.truncate(write + buffer.len() - read);
    dropped
}

fn is_message(framing: Framing, frame: &[u8]) -> bool {
    match framing {
        Framing::RawSocket => frame[0] & 7 == 0,
        _ => matches!(frame[0] & 0x0f, 1 | 2),
    }
}

/// Tells an EVENT from everything else by the first bytes of a frame we wrote ourselves.
fn is_event(framing: Framing, serializer: Serializer, frame: &[u8], payload_at: usize) -> bool {
    let message = match framing.is_batched() && !serializer.is_text() {
        true => frame.get(payload_at + 4..).unwrap_or_default(),
        false => &frame[payload_at..],
    };
    is_message(framing, frame)
        && match serializer {
            Serializer::Json => message.starts_with(b"[36,"),
            // A list of four to six elements, then 36: fixarray and fixint; a CBOR array and uint8 after 0x18.
            Serializer::MsgPack => {
                message.len() > 1 && (0x94..=0x96).contains(&message[0]) && message[1] == 36
            }
            Serializer::Cbor => {
                message.len() > 2 && (0x84..=0x86).contains(&message[0]) && message[1..3] == [0x18, 36]
            }
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::transport::{Frame, FrameKind, Framer, Role, write_header};
    use common::wire::{Payload, encode};

    fn frame(framing: Framing, serializer: Serializer, message: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        write_message(framing, serializer, message, &mut out);
        out
    }

    fn event(serializer: Serializer, publication: u64) -> Vec<u8> {
        let mut message = Vec::new();
        encode::event(serializer, &mut message, 7, publication, &[], Payload::default());
        message
    }

    fn reply(serializer: Serializer, request: u64) -> Vec<u8> {
        let mut message = Vec::new();
        encode::result(serializer, &mut message, request, &[], Payload::default());
        message
    }

    #[test]
    fn the_oldest_events_go_and_replies_stay_in_order() {
        for framing in [Framing::RawSocket, Framing::WebSocket, Framing::Batched, Framing::BatchedCan] {
            for serializer in Serializer::ALL {
                let mut pool = Pool::default();
                let mut queue = Outbound::default();
                let mut expected = Vec::new();
                for n in 1..=20 {
                    let (event, reply) = (
                        frame(framing, serializer, &event(serializer, n)),
                        frame(framing, serializer, &reply(serializer, n)),
                    );
                    queue.append(&mut pool, |out| out.extend_from_slice(&event));
                    queue.append(&mut pool, |out| out.extend_from_slice(&reply));
                    if n > 10 {
                        expected.extend_from_slice(&event);
                    }
                    expected.extend_from_slice(&reply);
                }
                let dropped = queue.drop_oldest_events(framing, serializer, expected.len());
                assert_eq!(dropped, 10);
                assert_eq!(queue.bytes(), expected.len());
                let sent = queue.take(&mut pool);
                assert_eq!(sent.segments[0].as_slice(), expected);
            }
        }
    }

    #[test]
    fn the_answer_to_a_handshake_is_no_frame() {
        for (framing, answer) in
            [(Framing::RawSocket, &[0x7f, 0xf1, 0, 0][..]), (Framing::WebSocket, b"HTTP/1.1 101 \r\n\r\n")]
        {
            let serializer = Serializer::Cbor;
            let mut pool = Pool::default();
            let mut queue = Outbound::default();
            queue.append_unframed(&mut pool, answer);
            for n in 1..=4 {
                let event = frame(framing, serializer, &event(serializer, n));
                queue.append(&mut pool, |out| out.extend_from_slice(&event));
            }
            let last = frame(framing, serializer, &event(serializer, 4));
            let expected = [answer, &last].concat();
            assert_eq!(queue.drop_oldest_events(framing, serializer, expected.len()), 3);
            assert_eq!(queue.take(&mut pool).segments[0].as_slice(), expected);
        }
    }

    #[test]
    fn what_waits_in_one_turn_leaves_as_one_batch() {
        for serializer in Serializer::ALL {
            let framing = Framing::Batched;
            let mut pool = Pool::default();
            let mut queue = Outbound::default();
            queue.append_unframed(&mut pool, b"answer");
            let replies: Vec<Vec<u8>> = (1..=50).map(|n| reply(serializer, n)).collect();
            for (index, reply) in replies.iter().enumerate() {
                let reply = frame(framing, serializer, reply);
                if index == 30 {
                    queue.append_shared(Bytes::from(reply));
                } else {
                    queue.append(&mut pool, |out| out.extend_from_slice(&reply));
                }
            }
            let before = queue.bytes();
            let sent = queue.take_rewritten(&mut pool, false, batch::coalesce);
            assert!(queue.is_empty());
            assert!(sent.bytes() < before);
            let mut bytes: Vec<u8> =
                sent.segments.iter().flat_map(|segment| segment.as_slice()).copied().collect();
            assert!(bytes.starts_with(b"answer"));
            let mut chunk = &mut bytes[6..];
            let mut framer = Framer::new(framing, Role::Client, serializer, 1 << 20);
            let (mut frames, mut messages) = (0, Vec::new());
            while let Ok(Some(Frame::Message(bytes))) = framer.next(&mut chunk) {
                frames += 1;
                messages.extend(batch::split(framing, serializer, bytes).map(|m| m.expect("right").to_vec()));
            }
            assert_eq!((frames, messages), (3, replies), "what is shared goes by itself");
        }
    }

    #[test]
    fn shared_frames_keep_their_place_and_can_be_dropped() {
        let (framing, serializer) = (Framing::RawSocket, Serializer::MsgPack);
        let mut pool = Pool::default();
        let mut queue = Outbound::default();
        let small = frame(framing, serializer, &reply(serializer, 1));
        queue.append(&mut pool, |out| out.extend_from_slice(&small));
        queue.append_shared(Bytes::from_static(&[9; 100]));
        queue.append(&mut pool, |out| out.extend_from_slice(&small));
        assert_eq!(queue.bytes(), 2 * small.len() + 100);
        assert_eq!(queue.drop_oldest_events(framing, serializer, 50), 1);
        let sent = queue.take(&mut pool);
        assert_eq!(sent.segments.len(), 2);
        assert!(sent.segments.iter().all(|segment| segment.as_slice() == small));
        assert!(queue.is_empty());
        pool.recycle(sent);
    }

    #[test]
    fn a_full_buffer_is_left_as_it_is() {
        let (framing, serializer) = (Framing::RawSocket, Serializer::MsgPack);
        let mut pool = Pool::default();
        for _ in 0..2 {
            let mut queue = Outbound::default();
            let mut expected = Vec::new();
            while queue.bytes() < 3 * FULL_BYTES {
                let frame = frame(framing, serializer, &reply(serializer, queue.bytes() as u64 + 1));
                queue.append(&mut pool, |out| out.extend_from_slice(&frame));
                expected.extend_from_slice(&frame);
            }
            let sent = queue.take(&mut pool);
            assert_eq!((sent.segments.len(), sent.bytes()), (3, expected.len()));
            let bytes: Vec<u8> =
                sent.segments.iter().flat_map(|segment| segment.as_slice()).copied().collect();
            assert_eq!(bytes, expected);
            pool.recycle(sent);
            assert_eq!(pool.buffers.len(), 3, "all are used again");
        }
    }

    #[test]
    fn a_queue_is_framed_anew_without_what_belongs_to_the_transport() {
        for framing in [Framing::RawSocket, Framing::WebSocket, Framing::Batched, Framing::BatchedCan] {
            for serializer in Serializer::ALL {
                let mut pool = Pool::default();
                let mut queue = Outbound::default();
                queue.append_unframed(&mut pool, b"answer");
                let long = vec![b'x'; 70_000];
                let messages: Vec<Vec<u8>> =
                    (1..=3).map(|n| reply(serializer, n)).chain([long, event(serializer, 4)]).collect();
                for (at, message) in messages.iter().enumerate() {
                    let framed = frame(framing, serializer, message);
                    if at == 1 {
                        queue.append_shared(framed.into());
                    } else {
                        queue.append(&mut pool, |out| {
                            out.extend_from_slice(&framed);
                            write_header(framing, serializer, FrameKind::Ping, 2, out);
                            out.extend_from_slice(b"hi");
                        });
                    }
                }
                queue.reframe(&mut pool, framing, serializer);
                let wanted: Vec<u8> = messages
                    .iter()
                    .flat_map(|message| frame(Framing::RawSocket, serializer, message))
                    .collect();
                assert_eq!(queue.bytes(), wanted.len(), "{framing:?} {serializer:?}");
                let sent = queue.take(&mut pool);
                assert_eq!(
                    sent.segments.iter().flat_map(Segment::as_slice).copied().collect::<Vec<_>>(),
                    wanted
                );
            }
        }
    }

    #[test]
    fn whole_frames_are_taken_from_the_front() {
        let (framing, serializer) = (Framing::RawSocket, Serializer::MsgPack);
        let frames: Vec<Vec<u8>> = (1..=9).map(|n| frame(framing, serializer, &[n; 100])).collect();
        for bytes_max in [0, 1, 103, 104, 105, 400, 10_000] {
            let mut pool = Pool::default();
            let mut queue = Outbound::default();
            for (at, frame) in frames.iter().enumerate() {
                if at % 4 == 2 {
                    queue.append_shared(frame.clone().into());
                } else {
                    queue.append(&mut pool, |out| out.extend_from_slice(frame));
                }
            }
            let mut all = Vec::new();
            while !queue.is_empty() {
                let before = queue.bytes();
                let taken = queue.take_front(&mut pool, framing, bytes_max);
                assert_eq!(taken.len() % 104, 0, "frames are whole");
                assert!(
                    !taken.is_empty() && taken.len() <= bytes_max.max(104),
                    "{bytes_max}: {}",
                    taken.len()
                );
                assert_eq!(queue.bytes(), before - taken.len());
                all.extend(taken);
            }
            assert_eq!(all, frames.concat(), "{bytes_max}");
        }
    }

    #[test]
    fn a_queue_without_events_drops_nothing() {
        let (framing, serializer) = (Framing::WebSocket, Serializer::Json);
        let mut pool = Pool::default();
        let mut queue = Outbound::default();
        let small = frame(framing, serializer, &reply(serializer, 1));
        queue.append(&mut pool, |out| out.extend_from_slice(&small));
        assert_eq!(queue.drop_oldest_events(framing, serializer, 0), 0);
        assert_eq!(queue.bytes(), small.len());
    }
}
