//! Messages on their way from a transport to its client: taken from the queue, and kept until the client's connection has
//! sent them.

use crate::shard::SendBuf;
use crate::shard::outbound::Pool;
use common::transport::http::answer;
use common::transport::{Framing, batch, walk_own_frame};
use common::wire::Serializer;

/// Whole frames, and how far they were given away.
#[derive(Debug, Default)]
pub(super) struct Staged {
    buf: SendBuf,
    at: Cursor,
    /// Behind what is under way.
    next: Cursor,
    /// Bytes between the two.
    under_way: usize,
}

/// Segment, and byte in it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Cursor {
    segment: usize,
    offset: usize,
}

/// How messages are put together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Form {
    /// One message.
    Single,
    /// As a batch of this framing.
    Batch(Framing),
    Events,
}

/// Messages of one answer, or events sent in one piece, end beyond this.
const ANSWER_BYTES_MAX: usize = 1 << 20;
const EVENTS_BYTES_MAX: usize = 64 << 10;

impl Form {
    const fn bytes_max(self) -> usize {
        match self {
            Self::Single => 0,
            Self::Batch(_) => ANSWER_BYTES_MAX,
            Self::Events => EVENTS_BYTES_MAX,
        }
    }

    fn put(self, serializer: Serializer, message: &[u8], out: &mut Vec<u8>) {
        match self {
            Self::Single => out.extend_from_slice(message),
            Self::Batch(framing) => batch::write(framing, serializer, message, out),
            Self::Events => answer::event("wamp", message, out),
        }
    }
}

impl Staged {
    pub fn new(buf: SendBuf) -> Self {
        Self { buf, ..Self::default() }
    }

    /// Nothing is left, under way or not.
    pub fn is_empty(&self) -> bool {
        self.at.segment == self.buf.segments.len()
    }

    /// Puts the next messages, one at least, to `out`. They stay until [`Staged::commit`].
    pub fn take(&mut self, form: Form, serializer: Serializer, out: &mut Vec<u8>) {
        let mut cursor = self.at;
        self.under_way = 0;
        while let Some(segment) = self.buf.segments.get(cursor.segment) {
            let frames = &segment.as_slice()[cursor.offset..];
            match walk_own_frame(Framing::RawSocket, frames) {
                Some((frame_bytes, payload_at)) => {
                    let is_first = self.under_way == 0;
                    let message = &frames[payload_at..frame_bytes];
                    if !is_first && out.len() + message.len() > form.bytes_max() {
                        break;
                    }
                    form.put(serializer, message, out);
                    self.under_way += frame_bytes;
                    cursor.offset += frame_bytes;
                }
                None => cursor = Cursor { segment: cursor.segment + 1, offset: 0 },
            }
            if form == Form::Single && self.under_way > 0 {
                break;
            }
        }
        self.next = cursor;
    }

    /// What was taken has been sent. Returns its bytes in the queue.
    pub fn commit(&mut self) -> usize {
        self.at = self.next;
        while self
            .buf
            .segments
            .get(self.at.segment)
            .is_some_and(|segment| segment.as_slice().len() == self.at.offset)
        {
            self.at = Cursor { segment: self.at.segment + 1, offset: 0 };
        }
        std::mem::take(&mut self.under_way)
    }

    pub fn recycle(&mut self, pool: &mut Pool) {
        pool.recycle(std::mem::take(self).buf);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::Segment;
    use common::transport::write_message;

    fn staged(segments: &[&[&str]]) -> (Staged, usize) {
        let frames = |messages: &&[&str]| {
            let mut out = Vec::new();
            for message in *messages {
                write_message(Framing::RawSocket, Serializer::Json, message.as_bytes(), &mut out);
            }
            Segment::Owned(out)
        };
        let buf = SendBuf { segments: segments.iter().map(frames).collect() };
        let bytes = buf.bytes();
        (Staged::new(buf), bytes)
    }

    fn next(staged: &mut Staged, form: Form) -> String {
        let mut out = Vec::new();
        staged.take(form, Serializer::Json, &mut out);
        String::from_utf8(out).expect("JSON")
    }

    #[test]
    fn messages_are_taken_one_by_one_until_they_were_sent() {
        let (mut staged, bytes) = staged(&[&["[1]", "[2,2]"], &["[3]"]]);
        let mut committed = 0;
        for expected in ["[1]", "[2,2]", "[3]"] {
            assert!(!staged.is_empty());
            assert_eq!(next(&mut staged, Form::Single), expected);
            assert_eq!(next(&mut staged, Form::Single), expected, "not sent, so it comes again");
            committed += staged.commit();
        }
        assert!(staged.is_empty());
        assert_eq!(committed, bytes);
    }

    #[test]
    fn a_batch_holds_what_there_is_up_to_a_bound() {
        let (mut staged, bytes) = staged(&[&["[1]"], &["[2]", "[3]"]]);
        let batch = Form::Batch(Framing::Batched);
        assert_eq!(next(&mut staged, batch), "[1]\x1e[2]\x1e[3]\x1e");
        assert_eq!(staged.commit(), bytes);
        assert!(staged.is_empty());
        let long = "x".repeat(ANSWER_BYTES_MAX);
        let (mut staged, _) = self::staged(&[&[&long, "[2]", "[3]"]]);
        assert_eq!(next(&mut staged, batch).len(), long.len() + 1, "one at least");
        staged.commit();
        assert_eq!(next(&mut staged, batch), "[2]\x1e[3]\x1e");
    }

    #[test]
    fn events_name_what_they_are() {
        let (mut staged, _) = staged(&[&["[1]", "[2]"]]);
        assert_eq!(next(&mut staged, Form::Events), "event: wamp\ndata: [1]\n\nevent: wamp\ndata: [2]\n\n");
    }
}
