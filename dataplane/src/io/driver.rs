//! When a shard's turns are: at once while there is work, else after a wait.
//!
//! Waiting has two depths. *Short*: in the shard's own ring, until a completion comes. *Long*, once nothing was to do
//! for `io.short_wait`: glommio parks the thread on an eventfd that the kernel writes when the ring has a completion;
//! its timers and other tasks run meanwhile. Parking glommio is dear, so a loaded shard stays in the short wait, and
//! the eventfd is silent until the shard is about to park.
//!
//! The short wait ends by a timer of the ring, at the next deadline or after `io.short_wait`. A timer that is armed
//! stays armed through any number of waits: setting one for each wait costs a fifth of the CPU of one message in
//! flight, where a timer interrupt leaves the virtual machine.
//!
//! No wake-up is lost: before either wait the shard says that it sleeps and then looks at its mailbox, and before
//! the long one it has the eventfd watched and then looks at the ring.

use crate::io::machine::Machine;
use crate::io::turn::Turn;
use common::metrics::Counter;
use glommio::io::BufferedFile;
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::time::{Duration, Instant};

/// One shard's loop; runs inside a glommio executor.
pub struct Driver<M: Machine> {
    turn: Turn<M>,
    /// The eventfd, as something glommio can wait for.
    bell: BufferedFile,
    short_wait: Duration,
    /// When there was last something to do.
    busy_at: Instant,
}

/// How often a full channel to the link thread is tried again.
const LINK_RETRY: Duration = Duration::from_millis(1);

impl<M: Machine> Driver<M> {
    /// # Errors
    /// The eventfd cannot be made. Must be called in the executor.
    pub fn new(mut turn: Turn<M>, short_wait: Duration) -> io::Result<Self> {
        let eventfd = turn.ring.register_eventfd()?;
        // SAFETY: the descriptor is owned and given away.
        let bell = unsafe { BufferedFile::from_raw_fd(eventfd.into_raw_fd()) };
        Ok(Self { turn, bell, short_wait, busy_at: Instant::now() })
    }

    /// Takes turns until the link thread drops the feed.
    ///
    /// # Errors
    /// The ring failed.
    pub async fn run(mut self) -> io::Result<()> {
        while !self.turn.stop {
            self.enter()?;
            self.turn.now = Instant::now();
            if self.turn.run()? {
                self.busy_at = self.turn.now;
            } else if self.turn.now - self.busy_at >= self.short_wait {
                self.park().await?;
            }
            if glommio::executor().need_preempt() {
                glommio::executor().yield_if_needed().await;
            }
        }
        self.turn.mesh.set_ring(None);
        drop(self.turn);
        // The descriptor is gone in any case.
        let _ = self.bell.close().await;
        Ok(())
    }

    /// One system call: flushes what is staged, runs what the kernel put off, and waits if there is nothing to do.
    fn enter(&mut self) -> io::Result<()> {
        let turn = &mut self.turn;
        let mut until = self.busy_at + self.short_wait;
        if let Some(deadline) = turn.deadline() {
            until = until.min(deadline);
        }
        if turn.again || until <= turn.now || turn.ring.has_completions() {
            return turn.ring.enter(false);
        }
        let wait = turn.mesh.may_sleep();
        if wait {
            turn.ring.arm_timer(turn.now, until)?;
        } else {
            turn.again = true;
        }
        turn.ring.enter(wait)?;
        turn.mesh.awake();
        Ok(())
    }

    async fn park(&mut self) -> io::Result<()> {
        let turn = &mut self.turn;
        // The link thread does not tell when it has made room.
        let retry = turn.waits_for_link().then(|| turn.now + LINK_RETRY);
        if let Some(until) = [turn.deadline(), retry].into_iter().flatten().min() {
            turn.ring.arm_timer(turn.now, until)?;
        }
        turn.ring.watch(true);
        // Hands over the timer, and runs what came before the eventfd was watched.
        turn.ring.enter(false)?;
        if !turn.mesh.may_sleep() {
            turn.again = true;
        } else if !turn.ring.has_completions() {
            turn.machine.metrics_mut().count(Counter::Parks);
            // However the read ends, the shard looks again.
            let _ = self.bell.read_at(0, 8).await;
        }
        self.turn.again |= retry.is_some();
        self.turn.mesh.awake();
        self.turn.ring.watch(false);
        Ok(())
    }
}
