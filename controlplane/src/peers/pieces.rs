//! How frames share one encrypted stream: cut into pieces, so that small urgent ones do not wait behind long ones. Pure.
//!
//! `tag u8 │ length u16 │ bytes`: the tag is the channel's number, and 128 more when the frame goes on with its next
//! piece; tag 0 is control. Control pieces and those of urgent channels are whole frames; the pieces of all other frames
//! follow one another, so a receiver puts together one frame at a time.
//!
//! Invariants: a receiver holds at most one incomplete frame of [`FRAME_BYTES_MAX`] and one incomplete piece; lengths are
//! checked before bytes are kept.

use super::{Channel, FRAME_BYTES_MAX, QUEUE_BYTES_MAX, QUEUE_OVERHEAD};
use bytes::{Buf, Bytes, BytesMut};
use std::collections::VecDeque;

/// Frames that wait to be sent.
#[derive(Default)]
pub struct Queue {
    urgent: VecDeque<(Channel, Bytes)>,
    urgent_bytes: usize,
    /// The front may have been sent in part.
    others: VecDeque<(Channel, Bytes)>,
    other_bytes: usize,
}

impl Queue {
    /// False when there is no room; then nothing is queued.
    ///
    /// # Panics
    /// When `body` is longer than [`FRAME_BYTES_MAX`]: who builds frames knows the bound.
    pub fn push(&mut self, channel: Channel, body: Bytes) -> bool {
        assert!(body.len() <= FRAME_BYTES_MAX, "a frame of {} bytes on {}", body.len(), channel.name());
        let (queue, bytes, bytes_max) = if channel.is_urgent() {
            (&mut self.urgent, &mut self.urgent_bytes, URGENT_BYTES_MAX)
        } else {
            (&mut self.others, &mut self.other_bytes, QUEUE_BYTES_MAX)
        };
        let cost = body.len() + QUEUE_OVERHEAD;
        if *bytes + cost > bytes_max || (channel.is_urgent() && body.len() > PIECE_BYTES_MAX) {
            return false;
        }
        *bytes += cost;
        queue.push_back((channel, body));
        true
    }

    /// What waits, overhead included.
    pub fn bytes(&self) -> usize {
        self.urgent_bytes + self.other_bytes
    }

    pub fn is_empty(&self) -> bool {
        self.urgent.is_empty() && self.others.is_empty()
    }

    /// Moves pieces to `out` while it holds less than `bytes_max` and they fit.
    pub fn fill(&mut self, out: &mut Vec<u8>, bytes_max: usize) {
        while let Some((channel, body)) = self.urgent.front() {
            if out.len() + HEAD_BYTES + body.len() > bytes_max {
                return;
            }
            put_piece(*channel as u8, body, out);
            self.urgent_bytes -= body.len() + QUEUE_OVERHEAD;
            self.urgent.pop_front();
        }
        while let Some((channel, body)) = self.others.front_mut() {
            let Some(room) = bytes_max.checked_sub(out.len() + HEAD_BYTES) else { return };
            let room = room.min(PIECE_BYTES_MAX);
            if room < body.len().min(PIECE_BYTES_MIN) {
                return;
            }
            let piece = body.split_to(room.min(body.len()));
            let more = if body.is_empty() { 0 } else { MORE };
            put_piece(*channel as u8 | more, &piece, out);
            self.other_bytes -= piece.len();
            if more == 0 {
                self.other_bytes -= QUEUE_OVERHEAD;
                self.others.pop_front();
            }
        }
    }
}

/// Appends one piece. `bytes` has at most [`PIECE_BYTES_MAX`].
pub fn put_piece(tag: u8, bytes: &[u8], out: &mut Vec<u8>) {
    assert!(bytes.len() <= PIECE_BYTES_MAX, "a piece of {} bytes", bytes.len());
    out.push(tag);
    out.extend_from_slice(&(bytes.len() as u16).to_be_bytes());
    out.extend_from_slice(bytes);
}

/// Something whole.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Whole {
    /// A control piece.
    Control(Bytes),
    Frame(Channel, Bytes),
}

/// Puts frames together again.
#[derive(Default)]
pub struct Assembly {
    plain: BytesMut,
    frame: Option<(Channel, BytesMut)>,
}

impl Assembly {
    /// Takes decrypted bytes; call [`Assembly::poll`] until it returns none before taking more.
    pub fn take(&mut self, plain: &[u8]) {
        self.plain.extend_from_slice(plain);
    }

    /// # Errors
    /// The peer breaks the rules above; the stream is of no use any more.
    pub fn poll(&mut self) -> Result<Option<Whole>, &'static str> {
        loop {
            let Some((head, _)) = self.plain.split_first_chunk::<HEAD_BYTES>() else { return Ok(None) };
            let [tag, length @ ..] = *head;
            let length = usize::from(u16::from_be_bytes(length));
            if length > PIECE_BYTES_MAX {
                return Err("a piece that is too long");
            }
            if self.plain.len() < HEAD_BYTES + length {
                return Ok(None);
            }
            self.plain.advance(HEAD_BYTES);
            let piece = self.plain.split_to(length);
            if let Some(whole) = self.piece(tag, &piece)? {
                return Ok(Some(whole));
            }
        }
    }

    fn piece(&mut self, tag: u8, piece: &[u8]) -> Result<Option<Whole>, &'static str> {
        let (number, more) = (tag & !MORE, tag & MORE != 0);
        let channel = match number {
            CONTROL if more => return Err("a control message in pieces"),
            // Copied, so that a short body does not keep a long buffer.
            CONTROL => return Ok(Some(Whole::Control(Bytes::copy_from_slice(piece)))),
            _ => Channel::from_number(number).ok_or("no such channel")?,
        };
        if channel.is_urgent() {
            let whole = Whole::Frame(channel, Bytes::copy_from_slice(piece));
            return if more { Err("an urgent frame in pieces") } else { Ok(Some(whole)) };
        }
        let (of, mut frame) = match self.frame.take() {
            Some(begun) => begun,
            None if !more => return Ok(Some(Whole::Frame(channel, Bytes::copy_from_slice(piece)))),
            None if piece.is_empty() => return Err("an empty piece of a longer frame"),
            None => (channel, BytesMut::new()),
        };
        if of != channel {
            return Err("a frame within a frame");
        }
        if frame.len() + piece.len() > FRAME_BYTES_MAX {
            return Err("a frame that is too long");
        }
        if piece.is_empty() {
            return Err("an empty piece of a longer frame");
        }
        frame.extend_from_slice(piece);
        if more {
            self.frame = Some((channel, frame));
            return Ok(None);
        }
        Ok(Some(Whole::Frame(channel, frame.freeze())))
    }

    /// Bytes kept of what is incomplete.
    pub fn held_bytes(&self) -> usize {
        self.plain.len() + self.frame.as_ref().map_or(0, |(_, frame)| frame.len())
    }
}

/// The tag of control pieces.
pub const CONTROL: u8 = 0;
const MORE: u8 = 0x80;
const HEAD_BYTES: usize = 3;
/// Longest piece: an urgent frame waits for one of these.
pub const PIECE_BYTES_MAX: usize = 16 << 10;
/// A frame is not cut into shorter pieces than this to fill a record.
const PIECE_BYTES_MIN: usize = 1 << 10;
/// Urgent frames have room of their own: other channels may be full when membership asks whether the peer lives.
const URGENT_BYTES_MAX: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(assembly: &mut Assembly) -> Result<Vec<Whole>, &'static str> {
        std::iter::from_fn(|| assembly.poll().transpose()).collect()
    }

    #[test]
    fn an_urgent_frame_overtakes_a_long_one() {
        let mut queue = Queue::default();
        let long = Bytes::from(vec![7; FRAME_BYTES_MAX]);
        assert!(queue.push(Channel::Claims, long.clone()));
        let mut out = vec![];
        queue.fill(&mut out, 20_000);
        assert!(queue.push(Channel::Swim, Bytes::from_static(b"ping")));
        queue.fill(&mut out, 60_000);
        let mut assembly = Assembly::default();
        assembly.take(&out);
        let swim = Whole::Frame(Channel::Swim, Bytes::from_static(b"ping"));
        assert_eq!(all(&mut assembly), Ok(vec![swim]));
        let mut rest = vec![];
        queue.fill(&mut rest, usize::MAX);
        assembly.take(&rest);
        assert_eq!(all(&mut assembly), Ok(vec![Whole::Frame(Channel::Claims, long)]));
        assert!(queue.is_empty());
        assert_eq!((queue.bytes(), assembly.held_bytes()), (0, 0));
    }

    #[test]
    fn the_queue_is_bounded_in_bytes_and_membership_has_room_of_its_own() {
        let mut queue = Queue::default();
        let pushed = (0..).take_while(|_| queue.push(Channel::Floor, Bytes::new())).count();
        assert_eq!(pushed, QUEUE_BYTES_MAX / QUEUE_OVERHEAD);
        assert!(!queue.push(Channel::Claims, Bytes::from_static(b"x")));
        let packet = Bytes::from(vec![0; 1_400]);
        let pushed = (0..).take_while(|_| queue.push(Channel::Swim, packet.clone())).count();
        assert_eq!(pushed, URGENT_BYTES_MAX / (1_400 + QUEUE_OVERHEAD));
    }

    #[test]
    fn a_frame_that_never_ends_is_refused_at_the_bound() {
        let mut piece = vec![];
        put_piece(Channel::Exchange as u8 | MORE, &[1; PIECE_BYTES_MAX], &mut piece);
        let mut assembly = Assembly::default();
        for _ in 0..FRAME_BYTES_MAX / PIECE_BYTES_MAX {
            assembly.take(&piece);
            assert_eq!(assembly.poll(), Ok(None));
            assert!(assembly.held_bytes() <= FRAME_BYTES_MAX);
        }
        assembly.take(&piece);
        assert_eq!(assembly.poll(), Err("a frame that is too long"));
    }

    #[test]
    fn what_breaks_the_rules_is_refused() {
        for (tag, length, reason) in [
            (CONTROL | MORE, 1, "a control message in pieces"),
            (Channel::Swim as u8 | MORE, 1, "an urgent frame in pieces"),
            (Channel::Claims as u8 | MORE, 0, "an empty piece of a longer frame"),
            (99, 1, "no such channel"),
        ] {
            let mut bytes = vec![];
            put_piece(tag, &vec![0; length], &mut bytes);
            let mut assembly = Assembly::default();
            assembly.take(&bytes);
            assert_eq!(assembly.poll(), Err(reason));
        }
        let mut assembly = Assembly::default();
        assembly.take(&[1, 0xff, 0xff]);
        assert_eq!(assembly.poll(), Err("a piece that is too long"));
        let mut bytes = vec![];
        put_piece(Channel::Claims as u8 | MORE, b"a", &mut bytes);
        put_piece(Channel::Floor as u8, b"b", &mut bytes);
        let mut assembly = Assembly::default();
        assembly.take(&bytes);
        assert_eq!(assembly.poll(), Err("a frame within a frame"));
    }

    proptest! {
        #[test]
        fn frames_arrive_whole_and_in_the_order_of_their_channel(
            frames in proptest::collection::vec((0usize..5, 0usize..40_000, any::<u8>()), 0..20),
            cut in 1usize..70_000,
            record in 2_000usize..65_000,
        ) {
            let mut queue = Queue::default();
            let mut sent: [Vec<Bytes>; 5] = Default::default();
            for (channel, length, byte) in frames {
                let channel = Channel::ALL[channel];
                let length = if channel.is_urgent() { length % 1_400 } else { length };
                let body = Bytes::from(vec![byte; length]);
                if queue.push(channel, body.clone()) {
                    sent[channel.index()].push(body);
                }
            }
            let mut stream = vec![];
            while !queue.is_empty() {
                let mut out = vec![];
                queue.fill(&mut out, record);
                prop_assert!(!out.is_empty() && out.len() <= record);
                stream.extend(out);
            }
            let mut assembly = Assembly::default();
            let mut got: [Vec<Bytes>; 5] = Default::default();
            for part in stream.chunks(cut) {
                assembly.take(part);
                for whole in all(&mut assembly).unwrap() {
                    let Whole::Frame(channel, body) = whole else { panic!("{whole:?}") };
                    got[channel.index()].push(body);
                }
            }
            prop_assert_eq!(got, sent);
            prop_assert_eq!(assembly.held_bytes(), 0);
        }

        #[test]
        fn any_stream_is_taken_or_refused_within_bounds(parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..2_000), 0..40)) {
            let mut assembly = Assembly::default();
            for part in parts {
                assembly.take(&part);
                let whole = all(&mut assembly);
                prop_assert!(assembly.held_bytes() <= FRAME_BYTES_MAX + HEAD_BYTES + PIECE_BYTES_MAX);
                if whole.is_err() {
                    break;
                }
            }
        }
    }
}
