//! Batches to and from the other shards, and the feed from and to the link thread.

use super::{Accepting, TURN_BATCHES_MAX, Turn};
use crate::feed::FeedDown;
use crate::io::machine::Machine;
use crate::io::mesh::Wake;
use crate::io::ring::Completion;
use crate::io::token::{Op, Token};
use common::ids::{ShardId, ShardSet};
use common::metrics::Counter;
use crossbeam_channel::{TryRecvError, TrySendError};
use std::io;

impl<M: Machine> Turn<M> {
    pub(super) fn on_wake(&mut self, completion: &Completion) -> io::Result<()> {
        self.feed.woken = true;
        self.feed.waker.clear();
        if completion.more() { Ok(()) } else { self.watch_waker() }
    }

    pub(super) fn watch_waker(&mut self) -> io::Result<()> {
        self.ring.watch_readable(self.feed.waker.watched(), Token::new(Op::Wake, 0, 0))
    }

    pub(super) fn take_mesh(&mut self) -> io::Result<usize> {
        let ready = self.mesh.ready();
        if ready.is_empty() {
            return Ok(0);
        }
        let mut batches = 0;
        for from in ready.iter() {
            let (machine, now) = (&mut self.machine, self.now);
            batches += self.mesh.take(from, TURN_BATCHES_MAX, |batch| machine.mesh_in(now, from, batch));
        }
        let mut woken = Vec::new();
        self.mesh.give_room(|shard, wake| woken.push((shard, wake)));
        for (shard, wake) in woken {
            self.wake(shard, wake)?;
        }
        Ok(batches)
    }

    /// Moves batches to the queues with room and tells the machine which have none.
    pub(super) fn send_mesh(&mut self) -> io::Result<()> {
        let mut full = ShardSet::EMPTY;
        for to in self.machine.mesh_ready().iter() {
            if !self.mesh.has_room(to) {
                full = full.with(to);
                continue;
            }
            let batch = self.machine.take_batch(to);
            self.machine.metrics_mut().count(Counter::MeshBatches);
            if let Some(wake) = self.mesh.push(to, batch) {
                self.wake(to, wake)?;
            }
        }
        let before = self.mesh.full();
        if full.is_empty() && before.is_empty() {
            return Ok(());
        }
        self.mesh.set_full(full);
        if full != before {
            self.machine.metrics_mut().add(Counter::MeshFull, full.minus(before).len() as u64);
            self.machine.mesh_full(self.now, full);
            self.again = true;
        }
        Ok(())
    }

    pub(super) fn wake(&mut self, shard: ShardId, wake: Wake) -> io::Result<()> {
        match wake {
            Wake::Ring(ring) if self.features.msg_ring => {
                let message = Token::new(Op::Mesh, u32::from(self.feed.shard.0), 0);
                self.ring.message(ring, message, Token::new(Op::MeshFailed, u32::from(shard.0), 0))
            }
            Wake::Ring(_) => {
                self.mesh.waker(shard).wake();
                Ok(())
            }
            Wake::Waker(waker) => {
                waker.wake();
                Ok(())
            }
        }
    }

    /// Takes what the link thread sent. The order counts: a shard listens before it says that it took a snapshot.
    pub(super) fn take_feed(&mut self) -> io::Result<bool> {
        if !std::mem::take(&mut self.feed.woken) {
            return Ok(false);
        }
        loop {
            match self.feed.down.try_recv() {
                Ok(down) => {
                    let snapshot = matches!(down, FeedDown::Snapshot(_));
                    let drain = matches!(down, FeedDown::Drain);
                    let long = snapshot || matches!(down, FeedDown::Routes { .. });
                    self.machine.feed(self.now, down);
                    if drain {
                        self.stop_accepting()?;
                    } else if snapshot && self.accepting == Accepting::NotYet {
                        self.start_accepting()?;
                    }
                    if long {
                        // The rest waits for the next turn, so that this one stays short.
                        self.feed.woken = true;
                        return Ok(true);
                    }
                }
                Err(TryRecvError::Empty) => return Ok(true),
                Err(TryRecvError::Disconnected) => {
                    self.stop = true;
                    return Ok(true);
                }
            }
        }
    }

    pub(super) fn send_feed(&mut self) {
        let mut sent = false;
        while let Some(up) = self.feed.unsent.take().or_else(|| self.machine.take_feed()) {
            match self.feed.up.try_send(up) {
                Ok(()) => sent = true,
                Err(TrySendError::Full(up)) => {
                    self.feed.unsent = Some(up);
                    break;
                }
                // Nobody listens any more; the end of `down` follows.
                Err(TrySendError::Disconnected(_)) => break,
            }
        }
        if sent {
            (self.feed.link_waker)();
        }
    }
}
