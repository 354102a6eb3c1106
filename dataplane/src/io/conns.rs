//! The connections of a shard as the driver sees them: a descriptor, the operations under way, and what they hold.
//!
//! Invariants: a slot is free, or holds an open descriptor, or is parked; it becomes free only when no operation of its
//! connection is with the kernel, and then its generation changes; at most one send is under way.

use crate::io::ring::{SEND_BYTES_MAX, SEND_PIECES_MAX};
use crate::io::token::{GENERATIONS, Op, Token};
use crate::shard::{ConnId, SendBuf};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// One connection.
pub struct Conn {
    fd: Option<OwnedFd>,
    generation: u32,
    /// Operations with the kernel.
    pub ops: u8,
    pub reads: Reads,
    /// The shard asked for no more.
    pub paused: bool,
    /// The shard was told that the connection ended.
    pub ended: bool,
    /// The shard has forgotten the connection.
    pub closing: bool,
    /// The slot is not to be used again, although the descriptor is closed: [`crate::shard::Output::Park`].
    pub parked: bool,
    pub sending: Option<Sending>,
    /// The send under way speaks only of trouble ([`crate::io::ring::Manner::Quiet`]).
    pub quiet: bool,
    /// What came while paused.
    pub held: Option<Box<Held>>,
}

/// The state of the receive operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reads {
    /// None with the kernel.
    Idle,
    Armed,
    /// Its cancellation is with the kernel.
    Cancelling,
}

/// Bytes received after a pause was asked for, until the receive operation was cancelled. They are copied: a paused
/// connection must not keep receive buffers from the others. What one connection can hold is what the kernel
/// hands over in the turn of the pause, at most all buffers.
#[derive(Default)]
pub struct Held {
    pub bytes: Vec<u8>,
    /// The peer closed after them.
    pub ended: bool,
}

/// A send under way.
pub struct Sending {
    buf: SendBuf,
    /// The first segment that is not sent whole.
    segment: usize,
    /// Bytes of that segment which are sent.
    offset: usize,
}

/// All connections of a shard.
#[derive(Default)]
pub struct Conns {
    /// The first slot; the machine has those before it for itself.
    first: u32,
    slots: Vec<Conn>,
    free: Vec<u32>,
}

impl Conn {
    fn new(fd: OwnedFd, generation: u32) -> Self {
        Self {
            fd: Some(fd),
            generation,
            ops: 0,
            reads: Reads::Idle,
            paused: false,
            ended: false,
            closing: false,
            parked: false,
            sending: None,
            quiet: false,
            held: None,
        }
    }

    #[inline]
    pub fn fd(&self) -> RawFd {
        self.fd.as_ref().expect("the slot is in use").as_raw_fd()
    }
}

impl Sending {
    pub fn new(buf: SendBuf) -> Self {
        let mut sending = Self { buf, segment: 0, offset: 0 };
        sending.advance(0);
        sending
    }

    /// What is left to send, in pieces that are not empty.
    #[inline]
    pub fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        let mut offset = self.offset;
        self.buf.segments[self.segment..].iter().map(move |segment| {
            let bytes = &segment.as_slice()[offset..];
            offset = 0;
            bytes
        })
    }

    /// The only piece left, if there is one.
    #[inline]
    pub fn single(&self) -> Option<&[u8]> {
        match &self.buf.segments[self.segment..] {
            [last] => Some(&last.as_slice()[self.offset..]),
            _ => None,
        }
    }

    /// One operation can send all of it.
    #[inline]
    pub fn fits_one_operation(&self) -> bool {
        match self.single() {
            Some(bytes) => bytes.len() <= SEND_BYTES_MAX,
            None => self.buf.segments.len() - self.segment <= SEND_PIECES_MAX,
        }
    }

    /// Counts `sent` bytes as gone. The kernel sends no more than it was given, which is at most
    /// [`SEND_PIECES_MAX`] pieces.
    pub fn advance(&mut self, mut sent: usize) {
        while let Some(segment) = self.buf.segments.get(self.segment) {
            let left = segment.as_slice().len() - self.offset;
            if sent < left {
                self.offset += sent;
                return;
            }
            sent -= left;
            self.segment += 1;
            self.offset = 0;
        }
        assert_eq!(sent, 0, "the kernel sends no more than it was given");
    }

    pub fn is_done(&self) -> bool {
        self.segment == self.buf.segments.len()
    }

    pub fn into_buf(self) -> SendBuf {
        self.buf
    }
}

impl Conns {
    /// None yet; the first one will have slot `first`.
    pub fn after(first: u32) -> Self {
        Self { first, ..Self::default() }
    }

    fn at(&mut self, slot: u32) -> &mut Conn {
        &mut self.slots[(slot - self.first) as usize]
    }

    /// A slot for a new connection.
    pub fn insert(&mut self, fd: OwnedFd) -> ConnId {
        let slot = match self.free.pop() {
            Some(slot) => {
                let conn = self.at(slot);
                *conn = Conn::new(fd, conn.generation);
                slot
            }
            None => {
                let slots = u32::try_from(self.slots.len()).expect("descriptors are fewer than 2^31");
                self.slots.push(Conn::new(fd, 0));
                self.first + slots
            }
        };
        ConnId { slot, generation: self.at(slot).generation }
    }

    /// The connection, unless it is gone.
    #[inline]
    pub fn get(&mut self, id: ConnId) -> Option<&mut Conn> {
        self.slots
            .get_mut(id.slot.checked_sub(self.first)? as usize)
            .filter(|conn| conn.generation == id.generation && conn.fd.is_some())
    }

    /// The connection a completion belongs to.
    #[inline]
    pub fn of(&mut self, token: Token) -> (ConnId, &mut Conn) {
        let id = ConnId { slot: token.slot(), generation: token.generation() };
        (id, self.get(id).expect("a slot is not reused while an operation is under way"))
    }

    /// Frees the slot, unless it is parked, and gives the descriptor back to be closed.
    pub fn remove(&mut self, id: ConnId) -> OwnedFd {
        let conn = self.get(id).expect("removed once");
        assert!(conn.ops == 0, "no operation is under way");
        conn.sending = None;
        conn.held = None;
        let fd = conn.fd.take().expect("the slot is in use");
        if !conn.parked {
            self.free(id.slot);
        }
        fd
    }

    /// A parked slot may be used again, once its descriptor is closed. False: it is not parked.
    pub fn unpark(&mut self, id: ConnId) -> bool {
        let at = id.slot.checked_sub(self.first).map_or(usize::MAX, |at| at as usize);
        let conn = self.slots.get_mut(at).filter(|conn| conn.generation == id.generation);
        let Some(conn) = conn.filter(|conn| conn.parked) else { return false };
        conn.parked = false;
        if conn.fd.is_none() {
            self.free(id.slot);
        }
        true
    }

    fn free(&mut self, slot: u32) {
        let conn = self.at(slot);
        conn.generation = (conn.generation + 1) % GENERATIONS;
        self.free.push(slot);
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    #[cfg(test)]
    pub fn slots(&self) -> usize {
        self.slots.len()
    }
}

/// The token of an operation on a connection.
#[inline]
pub fn token(op: Op, id: ConnId) -> Token {
    Token::new(op, id.slot, id.generation)
}

const _: () = assert!(size_of::<Conn>() <= 72, "a million idle connections pay for each byte");
const _: () = assert!(SEND_PIECES_MAX > 1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::Segment;

    fn any_fd() -> OwnedFd {
        std::fs::File::open("/dev/null").expect("opened").into()
    }

    #[test]
    fn a_reused_slot_has_another_generation() {
        let mut conns = Conns::default();
        let first = conns.insert(any_fd());
        let other = conns.insert(any_fd());
        conns.remove(first);
        let again = conns.insert(any_fd());
        assert_eq!(again.slot, first.slot);
        assert_ne!(again.generation, first.generation);
        assert!(conns.get(first).is_none());
        assert!(conns.get(again).is_some() && conns.get(other).is_some());
        assert_eq!(conns.len(), 2);
    }

    #[test]
    fn the_first_slots_are_left_to_the_machine() {
        let mut conns = Conns::after(7);
        let first = conns.insert(any_fd());
        let other = conns.insert(any_fd());
        assert_eq!((first.slot, other.slot), (7, 8));
        assert!(conns.get(ConnId { slot: 0, generation: 0 }).is_none());
        conns.remove(first);
        assert_eq!(conns.insert(any_fd()).slot, 7);
    }

    #[test]
    fn a_parked_slot_is_not_used_again_until_it_is_closed() {
        let mut conns = Conns::default();
        let first = conns.insert(any_fd());
        conns.get(first).expect("it is there").parked = true;
        drop(conns.remove(first));
        assert!(conns.get(first).is_none(), "its descriptor is closed");
        let other = conns.insert(any_fd());
        assert_ne!(other.slot, first.slot);
        assert!(conns.unpark(first) && !conns.unpark(first) && !conns.unpark(other));
        let again = conns.insert(any_fd());
        assert_eq!(again.slot, first.slot);
        assert_ne!(again.generation, first.generation);

        // The descriptor may outlast the parking, while the kernel has operations on it.
        conns.get(again).expect("it is there").parked = true;
        assert!(conns.unpark(again));
        drop(conns.remove(again));
        assert_eq!(conns.insert(any_fd()).slot, again.slot);
    }

    #[test]
    fn a_send_goes_on_after_any_number_of_bytes() {
        let segments = [b"abc".as_slice(), b"", b"de", b"f"];
        for cut in 0..=6 {
            let buf = SendBuf { segments: segments.iter().map(|s| Segment::Owned(s.to_vec())).collect() };
            let mut sending = Sending::new(buf);
            sending.advance(cut);
            let rest: Vec<u8> = sending.pieces().flatten().copied().collect();
            assert_eq!(rest, b"abcdef"[cut..]);
            assert_eq!(sending.is_done(), cut == 6);
            assert_eq!(sending.single().is_some(), cut == 5);
        }
    }
}
