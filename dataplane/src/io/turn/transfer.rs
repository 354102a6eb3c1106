//! Bytes in and out of connections, and their end.

use super::Turn;
use crate::io::conns::{Reads, Sending, token};
use crate::io::machine::Machine;
use crate::io::ring::{Completion, Manner};
use crate::io::token::Op;
use crate::shard::{ConnId, Flow};
use common::metrics::Counter;
use std::io;

impl<M: Machine> Turn<M> {
    pub(super) fn on_receive(&mut self, completion: &Completion) -> io::Result<()> {
        let (id, conn) = self.conns.of(completion.token);
        let buffer = completion.buffer();
        if buffer.is_some() {
            self.buffers.take();
        }
        if !completion.more() {
            conn.ops -= 1;
            conn.reads = Reads::Idle;
        }
        let ended = match completion.result {
            received @ 1.. => {
                let buffer = buffer.expect("what was received is in a buffer");
                let bytes = self.buffers.filled(buffer, received as usize);
                if conn.closing || conn.ended {
                    // Nobody wants it any more.
                } else if conn.paused {
                    conn.held.get_or_insert_default().bytes.extend_from_slice(bytes);
                } else if self.machine.receive(self.now, id, bytes) == Flow::Pause {
                    self.pause(id)?;
                }
                false
            }
            0 => true,
            error if -error == libc::ENOBUFS => {
                if !self.buffers.want_more() {
                    self.machine.metrics_mut().count(Counter::BuffersExhausted);
                }
                false
            }
            error => !matches!(-error, libc::ECANCELED | libc::EINTR | libc::EAGAIN),
        };
        if let Some(buffer) = buffer {
            self.buffers.give_back(buffer);
        }
        if ended {
            self.on_ended(id);
        } else if !completion.more() {
            self.rearm.push(id);
        }
        self.release_if_done(id)
    }

    /// The peer closed or the connection broke; said once, after what it sent before.
    pub(super) fn on_ended(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get(id) else { return };
        if conn.paused && !conn.closing {
            conn.held.get_or_insert_default().ended = true;
        } else if !conn.closing && !conn.ended {
            conn.ended = true;
            self.machine.closed(self.now, id);
        }
    }

    pub(super) fn pause(&mut self, id: ConnId) -> io::Result<()> {
        let Some(conn) = self.conns.get(id) else { return Ok(()) };
        conn.paused = true;
        if conn.reads == Reads::Armed {
            conn.reads = Reads::Cancelling;
            conn.ops += 1;
            self.ring.cancel(token(Op::Receive, id), token(Op::Cancel, id))?;
        }
        Ok(())
    }

    pub(super) fn resume(&mut self, id: ConnId) -> io::Result<()> {
        let Some(conn) = self.conns.get(id).filter(|conn| conn.paused && !conn.closing) else {
            return Ok(());
        };
        conn.paused = false;
        let mut ended = false;
        if let Some(mut held) = conn.held.take() {
            ended = held.ended;
            // What comes of it may wait behind a quiet send that is not settled.
            self.again = true;
            if !held.bytes.is_empty() && self.machine.receive(self.now, id, &mut held.bytes) == Flow::Pause {
                self.pause(id)?;
            }
        }
        if ended {
            self.on_ended(id);
        } else {
            self.arm_reads(id)?;
        }
        Ok(())
    }

    pub(super) fn rearm_reads(&mut self) -> io::Result<()> {
        while let Some(id) = self.rearm.pop() {
            self.arm_reads(id)?;
        }
        Ok(())
    }

    pub(super) fn arm_reads(&mut self, id: ConnId) -> io::Result<()> {
        let Some(conn) = self.conns.get(id) else { return Ok(()) };
        if conn.reads != Reads::Idle || conn.paused || conn.closing || conn.ended {
            return Ok(());
        }
        conn.reads = Reads::Armed;
        conn.ops += 1;
        self.ring.receive(conn.fd(), token(Op::Receive, id), self.features.multishot_receive)
    }

    pub(super) fn on_sent(&mut self, completion: &Completion) -> io::Result<()> {
        let (id, conn) = self.conns.of(completion.token);
        conn.ops -= 1;
        conn.quiet = false;
        let mut sending = conn.sending.take().expect("a send was under way");
        if conn.closing {
            return self.release_if_done(id);
        }
        let ok = match completion.result {
            sent @ 0.. => {
                sending.advance(sent as usize);
                // Nothing sent of something to send: the connection takes no more.
                sent > 0 || sending.is_done()
            }
            error => matches!(-error, libc::EINTR | libc::EAGAIN),
        };
        if ok && !sending.is_done() {
            // The socket is full, or the pieces were too many for one operation: the rest waits for room.
            return self.stage_send(id, sending, Manner::Told);
        }
        self.machine.sent(self.now, id, sending.into_buf(), ok);
        if !ok {
            self.on_broken(id);
        }
        Ok(())
    }

    /// A send failed: nothing more can be expected of the connection, even if reads are paused.
    pub(super) fn on_broken(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.get(id) {
            conn.paused = false;
            conn.held = None;
        }
        self.on_ended(id);
    }

    /// Sends what the machine has for a connection.
    pub(super) fn start_send(&mut self, id: ConnId) -> io::Result<()> {
        let sending = Sending::new(self.machine.take_send(id));
        let quiet = self.features.quiet_send && sending.fits_one_operation();
        self.stage_send(id, sending, if quiet { Manner::Quiet } else { Manner::Told })
    }

    fn stage_send(&mut self, id: ConnId, sending: Sending, manner: Manner) -> io::Result<()> {
        let Some(conn) = self.conns.get(id) else { return Ok(()) };
        conn.ops += 1;
        conn.quiet = manner == Manner::Quiet;
        if conn.quiet {
            self.quiet.staged.push(id);
        }
        let fd = conn.fd();
        let sending = conn.sending.insert(sending);
        let token = token(Op::Send, id);
        // SAFETY: the segments' bytes are on the heap or static, and `conn.sending` keeps them until this token's
        // completion takes it out in `on_sent`, or, for a quiet send, `settle` does because there will be none; until
        // then the slot is not freed, because `ops` is not zero, and when the loop ends the ring is dropped before
        // the connections.
        unsafe {
            match sending.single() {
                Some(bytes) => self.ring.send(fd, token, bytes, manner),
                None => self.ring.send_pieces(fd, token, sending.pieces(), manner),
            }
        }
    }

    /// To be called after each enter: the quiet sends staged before it have left, or their trouble is told by one of
    /// the completions that are there now.
    #[inline]
    pub(super) fn mark_quiet_sends(&mut self) {
        if !self.quiet.staged.is_empty()
            && let Some(posted) = self.ring.posted()
        {
            self.quiet.left.extend(self.quiet.staged.drain(..).map(|id| (posted, id)));
        }
    }

    /// To be called after completions were handled: quiet sends that had nothing to say went well. Returns how many.
    pub(super) fn settle_quiet_sends(&mut self) -> io::Result<usize> {
        let reaped = self.ring.reaped();
        let mut settled = 0;
        while let Some((posted, id)) = self.quiet.left.front().copied()
            && posted <= reaped
        {
            self.quiet.left.pop_front();
            settled += 1;
            let Some(conn) = self.conns.get(id).filter(|conn| conn.quiet) else { continue };
            conn.quiet = false;
            conn.ops -= 1;
            let sending = conn.sending.take().expect("a send was under way");
            if conn.closing {
                self.release_if_done(id)?;
            } else {
                self.machine.sent(self.now, id, sending.into_buf(), true);
            }
        }
        Ok(settled)
    }

    /// A shutdown or cancellation came back.
    pub(super) fn on_done(&mut self, completion: &Completion) -> io::Result<()> {
        let (id, conn) = self.conns.of(completion.token);
        conn.ops -= 1;
        if completion.token.op() == Op::Cancel && completion.result < 0 && conn.reads == Reads::Cancelling {
            // Not found or just running: the receive operation's last completion is on its way, or it goes on.
            conn.reads = Reads::Armed;
            if conn.paused && !conn.closing {
                self.pause(id)?;
            }
        }
        self.release_if_done(id)
    }

    /// Closes the socket of a connection and keeps its slot.
    pub(super) fn park(&mut self, id: ConnId) -> io::Result<()> {
        if let Some(conn) = self.conns.get(id) {
            conn.parked = true;
        }
        self.shut(id)
    }

    pub(super) fn close(&mut self, id: ConnId) -> io::Result<()> {
        if self.conns.unpark(id) {
            return Ok(());
        }
        self.shut(id)
    }

    fn shut(&mut self, id: ConnId) -> io::Result<()> {
        let Some(conn) = self.conns.get(id).filter(|conn| !conn.closing) else { return Ok(()) };
        conn.closing = true;
        conn.held = None;
        if conn.ops > 0 {
            conn.ops += 1;
            let fd = conn.fd();
            self.ring.cancel_all(fd, token(Op::Cancel, id))?;
        }
        self.release_if_done(id)
    }

    #[inline]
    pub(super) fn release_if_done(&mut self, id: ConnId) -> io::Result<()> {
        if self.conns.get(id).is_some_and(|conn| conn.closing && conn.ops == 0) {
            let fd = self.conns.remove(id);
            self.ring.close(fd)?;
        }
        Ok(())
    }
}
