//! When a shard's turns are: at once while there is work, else after a wait.
//!
//! Waiting has two depths. *Short*: in the shard's own ring, for `io.short_wait` at most and never past the next
//! deadline. *Long*, when that brought nothing: glommio parks the thread on an eventfd that the kernel writes when
//! the ring has a completion; its timers and other tasks run meanwhile. Parking glommio is dear, so a loaded shard
//! stays in the short wait, and the eventfd is silent until the shard is about to park.
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
}

/// How an enter ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Entered {
    /// Did not wait, or something came.
    Look,
    /// Nothing came in the whole short wait.
    Idle,
}

impl<M: Machine> Driver<M> {
    /// # Errors
    /// The eventfd cannot be made. Must be called in the executor.
    pub fn new(mut turn: Turn<M>, short_wait: Duration) -> io::Result<Self> {
        let eventfd = turn.ring.register_eventfd()?;
        // SAFETY: the descriptor is owned and given away.
        let bell = unsafe { BufferedFile::from_raw_fd(eventfd.into_raw_fd()) };
        Ok(Self { turn, bell, short_wait })
    }

    /// Takes turns until the link thread drops the feed.
    ///
    /// # Errors
    /// The ring failed.
    pub async fn run(mut self) -> io::Result<()> {
        while !self.turn.stop {
            let entered = self.enter()?;
            self.turn.now = Instant::now();
            let worked = self.turn.run()?;
            if !worked && entered == Entered::Idle {
                self.rest().await?;
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
    fn enter(&mut self) -> io::Result<Entered> {
        let Some(wait) = self.wait() else {
            self.turn.ring.enter(None)?;
            let idle = self.short_wait.is_zero() && !self.turn.again && !self.turn.ring.has_completions();
            return Ok(if idle { Entered::Idle } else { Entered::Look });
        };
        self.turn.ring.enter(Some(wait))?;
        self.turn.mesh.awake();
        let idle = wait == self.short_wait && !self.turn.ring.has_completions();
        Ok(if idle { Entered::Idle } else { Entered::Look })
    }

    /// How long to wait in the ring; `None`: not at all.
    fn wait(&mut self) -> Option<Duration> {
        if self.turn.again || self.turn.ring.has_completions() {
            return None;
        }
        let wait = match self.turn.deadline() {
            None => self.short_wait,
            Some(deadline) => deadline.saturating_duration_since(self.turn.now).min(self.short_wait),
        };
        if wait.is_zero() {
            return None;
        }
        if !self.turn.mesh.may_sleep() {
            self.turn.mesh.awake();
            self.turn.again = true;
            return None;
        }
        Some(wait)
    }

    /// After a short wait in which nothing came.
    async fn rest(&mut self) -> io::Result<()> {
        if self.turn.waits_for_link() {
            self.turn.again = true;
            return Ok(());
        }
        self.park().await
    }

    async fn park(&mut self) -> io::Result<()> {
        let turn = &mut self.turn;
        if let Some(deadline) = turn.deadline() {
            turn.ring.arm_timer(turn.now, deadline)?;
        }
        turn.ring.watch(true);
        // Hands over the timer, and runs what came before the eventfd was watched.
        turn.ring.enter(None)?;
        if !turn.mesh.may_sleep() {
            turn.again = true;
        } else if !turn.ring.has_completions() {
            turn.machine.metrics_mut().count(Counter::Parks);
            // However the read ends, the shard looks again.
            let _ = self.bell.read_at(0, 8).await;
        }
        self.turn.mesh.awake();
        self.turn.ring.watch(false);
        Ok(())
    }
}
