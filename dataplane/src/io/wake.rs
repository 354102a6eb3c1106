//! How one thread makes another look at its queues.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

/// Called by a shard after it put something into the channel to the link thread. Must not block.
pub type LinkWaker = Arc<dyn Fn() + Send + Sync>;

/// Wakes one shard, from any thread: a non-blocking eventfd the shard's ring reads.
#[derive(Clone, Debug)]
pub struct ShardWaker {
    fd: Arc<OwnedFd>,
}

impl ShardWaker {
    /// # Errors
    /// When the process is out of descriptors.
    pub fn new() -> io::Result<Self> {
        let flags = rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK;
        Ok(Self { fd: Arc::new(rustix::event::eventfd(0, flags)?) })
    }

    /// The shard takes a turn soon and then looks at its feed and its mesh queues. Cheap enough to call for every
    /// message, dearer than needed if several are sent at once.
    pub fn wake(&self) {
        // The only possible failure is EAGAIN: the counter is full, so the shard has been woken already.
        let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
    }
}

impl AsFd for ShardWaker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for ShardWaker {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}
