//! Memory for the message headers and vectors of staged sends.

use crate::io::ring::SEND_PIECES_MAX;

/// Headers and vectors in use; free again once the kernel has taken all entries.
pub struct Vectors {
    headers: Box<[libc::msghdr]>,
    headers_used: usize,
    pieces: Box<[libc::iovec]>,
    pieces_used: usize,
}

impl Vectors {
    pub fn new() -> Self {
        // SAFETY: both are plain C structs of integers and pointers, for which all zeroes is a value.
        let (header, piece) =
            unsafe { (std::mem::zeroed::<libc::msghdr>(), std::mem::zeroed::<libc::iovec>()) };
        Self {
            headers: vec![header; VECTORED_MAX].into(),
            headers_used: 0,
            pieces: vec![piece; PIECES_MAX].into(),
            pieces_used: 0,
        }
    }

    pub fn clear(&mut self) {
        self.headers_used = 0;
        self.pieces_used = 0;
    }

    /// One more send of any size fits.
    pub fn has_room(&self) -> bool {
        self.headers_used < VECTORED_MAX && self.pieces_used + SEND_PIECES_MAX <= PIECES_MAX
    }

    pub fn add<'a>(&mut self, pieces: impl Iterator<Item = &'a [u8]>) -> *const libc::msghdr {
        let first = self.pieces_used;
        for bytes in pieces {
            self.pieces[self.pieces_used] =
                libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
            self.pieces_used += 1;
        }
        let header = &mut self.headers[self.headers_used];
        self.headers_used += 1;
        header.msg_iov = self.pieces[first..].as_mut_ptr();
        header.msg_iovlen = self.pieces_used - first;
        header
    }
}

/// Vectored sends staged before the ring is flushed.
const VECTORED_MAX: usize = 256;
/// Pieces of all vectored sends staged before the ring is flushed.
const PIECES_MAX: usize = 4_096;

const _: () = assert!(SEND_PIECES_MAX <= PIECES_MAX);
