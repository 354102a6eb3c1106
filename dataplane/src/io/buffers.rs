//! The receive buffers of a shard: memory the kernel fills, offered through a provided buffer ring.
//!
//! Invariants: each buffer is either free, offered to the kernel, or was named by a completion and is with the
//! caller; the kernel takes offered buffers in order. Only as many are offered as the load needs, and those given
//! back last are offered first: buffers in use stay in the cache, and untouched ones cost no memory.
//! ```text
//! free ─▶ offered ─▶ (completion) taken ─▶ free
//! ```

use io_uring::types::BufRingEntry;
use memmap2::MmapMut;
use std::io;
use std::sync::atomic::{AtomicU16, Ordering};

/// Buffers offered at first.
const OFFERED_MIN: usize = 16;
/// After so many refills the number of offered buffers follows the load down.
const REVIEW_REFILLS: u32 = 4_096;
/// `io_uring_register_buf_ring` takes no more.
pub const BUFFERS_MAX: u32 = 1 << 15;

/// See the module.
pub struct Buffers {
    /// The ring's entries, shared with the kernel.
    entries: MmapMut,
    memory: MmapMut,
    count: u16,
    bytes_each: usize,
    tail: u16,
    /// Last in, first out.
    free: Vec<u16>,
    offered: usize,
    offered_goal: usize,
    /// The goal was raised since the last refill.
    raised: bool,
    /// Most buffers taken between two refills since the last review.
    taken_peak: usize,
    taken: usize,
    refills: u32,
}

impl Buffers {
    /// `count` buffers (a power of two up to [`BUFFERS_MAX`]) of `bytes_each` bytes.
    ///
    /// # Errors
    /// No memory, or sizes that make no ring.
    pub fn new(count: u32, bytes_each: u32) -> io::Result<Self> {
        if !count.is_power_of_two() || count > BUFFERS_MAX || bytes_each == 0 {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let count = count as usize;
        Ok(Self {
            entries: MmapMut::map_anon(count * size_of::<BufRingEntry>())?,
            memory: MmapMut::map_anon(count * bytes_each as usize)?,
            count: count as u16,
            bytes_each: bytes_each as usize,
            tail: 0,
            free: (0..count as u16).rev().collect(),
            offered: 0,
            offered_goal: OFFERED_MIN.min(count),
            raised: false,
            taken_peak: 0,
            taken: 0,
            refills: 0,
        })
    }

    /// Registers the buffers as `group` and offers the first ones.
    ///
    /// # Safety
    /// `self` must live until the ring behind `submitter` is gone.
    ///
    /// # Errors
    /// What the kernel says.
    pub unsafe fn register(&mut self, submitter: &io_uring::Submitter<'_>, group: u16) -> io::Result<()> {
        let address = self.entries.as_mut_ptr() as u64;
        // SAFETY: the mapping is page-aligned, holds `count` entries and stays where it is; it lives long enough by
        // the caller's promise.
        unsafe { submitter.register_buf_ring_with_flags(address, self.count, group, 0) }?;
        self.refill();
        Ok(())
    }

    /// The first `len` bytes of a buffer a completion named.
    #[inline]
    pub fn filled(&mut self, id: u16, len: usize) -> &mut [u8] {
        assert!(id < self.count && len <= self.bytes_each, "the kernel names buffers it was given");
        let start = usize::from(id) * self.bytes_each;
        &mut self.memory[start..start + len]
    }

    /// Counts a buffer as taken; to be called once for each completion that names one.
    #[inline]
    pub fn take(&mut self) {
        self.offered -= 1;
        self.taken += 1;
    }

    /// The caller is done with a buffer.
    #[inline]
    pub fn give_back(&mut self, id: u16) {
        self.free.push(id);
    }

    /// The kernel found no buffer: offer twice as many from the next refill on, however often that is said before it.
    /// False when all were offered.
    pub fn want_more(&mut self) -> bool {
        if self.raised {
            return true;
        }
        self.raised = self.offered_goal < usize::from(self.count);
        self.offered_goal = (self.offered_goal * 2).min(usize::from(self.count));
        self.raised
    }

    /// Offers free buffers up to the goal.
    #[inline]
    pub fn refill(&mut self) {
        self.taken_peak = self.taken_peak.max(self.taken);
        self.taken = 0;
        self.raised = false;
        self.refills += 1;
        if self.refills == REVIEW_REFILLS {
            self.review();
        }
        if self.offered >= self.offered_goal {
            return;
        }
        while self.offered < self.offered_goal
            && let Some(id) = self.free.pop()
        {
            self.offer(id);
        }
        self.publish_tail();
    }

    /// Lets the goal follow the load down, by half at a time.
    fn review(&mut self) {
        if self.taken_peak * 4 < self.offered_goal {
            self.offered_goal = (self.offered_goal / 2).max(OFFERED_MIN.min(usize::from(self.count)));
        }
        self.taken_peak = 0;
        self.refills = 0;
    }

    fn offer(&mut self, id: u16) {
        let start = usize::from(id) * self.bytes_each;
        let address = self.memory[start..].as_mut_ptr() as u64;
        let index = usize::from(self.tail & (self.count - 1));
        // SAFETY: `index` is below `count`, for which the mapping has room; a zeroed or earlier written entry is a
        // valid value. The kernel reads the entry only after the tail says so. The tail lies in the first entry's
        // reserved field, which none of these setters writes.
        unsafe {
            let entry = &mut *self.entries.as_mut_ptr().cast::<BufRingEntry>().add(index);
            entry.set_addr(address);
            entry.set_len(self.bytes_each as u32);
            entry.set_bid(id);
        }
        self.tail = self.tail.wrapping_add(1);
        self.offered += 1;
    }

    fn publish_tail(&mut self) {
        // SAFETY: the tail is a 16-bit field of the mapping's first entry, aligned to 2, written by us alone and read
        // by the kernel; an atomic store with release order publishes the entries before it.
        unsafe {
            let tail = BufRingEntry::tail(self.entries.as_ptr().cast()).cast_mut();
            AtomicU16::from_ptr(tail).store(self.tail, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_buffers_are_offered_until_the_kernel_runs_out() {
        let mut buffers = Buffers::new(64, 128).expect("buffers");
        buffers.refill();
        assert_eq!(buffers.offered, OFFERED_MIN);
        assert!(buffers.want_more() && buffers.want_more() && buffers.want_more());
        buffers.refill();
        assert_eq!(buffers.offered, 32, "three connections in want are one reason");
        assert!(buffers.want_more());
        buffers.refill();
        assert!(!buffers.want_more(), "all 64 are offered");
        buffers.refill();
        assert_eq!((buffers.offered, buffers.free.len()), (64, 0));
    }

    #[test]
    fn the_offer_follows_the_load_down() {
        let mut buffers = Buffers::new(64, 128).expect("buffers");
        for _ in 0..2 {
            buffers.want_more();
            buffers.refill();
        }
        for _ in 0..4 * REVIEW_REFILLS {
            buffers.refill();
        }
        assert_eq!(buffers.offered_goal, OFFERED_MIN);
        assert_eq!(buffers.offered, 64, "what the kernel has it keeps until it is taken");
        for id in 0..64 {
            buffers.take();
            buffers.give_back(id);
            buffers.refill();
        }
        assert_eq!(buffers.offered, OFFERED_MIN);
    }

    #[test]
    fn sizes_that_make_no_ring_are_refused() {
        assert!(Buffers::new(0, 64).is_err());
        assert!(Buffers::new(3, 64).is_err());
        assert!(Buffers::new(BUFFERS_MAX * 2, 64).is_err());
        assert!(Buffers::new(4, 0).is_err());
    }
}
