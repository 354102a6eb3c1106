//! How one thread makes another look at its queues.

use rustix::pipe::PipeFlags;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

/// Called by a shard after it put something into the channel to the link thread. Must not block.
pub type LinkWaker = Arc<dyn Fn() + Send + Sync>;

/// Wakes one shard, from any thread: a pipe the shard's ring polls.
///
/// Not an eventfd: a parked shard waits for its ring's completion eventfd, and Linux (seen on 6.18) writes that one
/// only once when the completion is caused by a write to another eventfd.
#[derive(Clone, Debug)]
pub struct ShardWaker {
    pipe: Arc<Pipe>,
}

#[derive(Debug)]
struct Pipe {
    reads: OwnedFd,
    writes: OwnedFd,
}

impl ShardWaker {
    /// # Errors
    /// When the process is out of descriptors.
    pub fn new() -> io::Result<Self> {
        let (reads, writes) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        Ok(Self { pipe: Arc::new(Pipe { reads, writes }) })
    }

    /// The shard takes a turn soon and then looks at its feed and its mesh queues. Cheap enough to call for every
    /// message, dearer than needed if several are sent at once.
    pub fn wake(&self) {
        // The only possible failure is EAGAIN: the pipe is full, so the shard has been woken already.
        let _ = rustix::io::write(&self.pipe.writes, &[1]);
    }

    /// Takes all wake-ups so far; then look at the queues.
    pub(crate) fn clear(&self) {
        let mut bytes = [0; 256];
        while rustix::io::read(&self.pipe.reads, &mut bytes) == Ok(bytes.len()) {}
    }

    /// Readable after [`ShardWaker::wake`] until [`ShardWaker::clear`].
    pub(crate) fn watched(&self) -> RawFd {
        self.pipe.reads.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_readable(waker: &ShardWaker) -> bool {
        let mut poll = libc::pollfd { fd: waker.watched(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd that lives across the call.
        unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
    }

    #[test]
    fn any_number_of_wakes_is_cleared_at_once() {
        let waker = ShardWaker::new().expect("pipe");
        for wakes in [1, 255, 256, 257, 100_000] {
            assert!(!is_readable(&waker));
            for _ in 0..wakes {
                waker.wake();
            }
            assert!(is_readable(&waker));
            waker.clear();
        }
        assert!(!is_readable(&waker));
    }
}
