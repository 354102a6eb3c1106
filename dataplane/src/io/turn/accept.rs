//! New connections.

use super::{Accepting, Turn};
use crate::io::machine::Machine;
use crate::io::ring::Completion;
use crate::io::token::{Op, Token};
use crate::shard::Origin;
use common::metrics::Counter;
use rustix::net::{AddressFamily, UCred};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// How long a listener rests after the kernel had no descriptor or memory for a connection.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

impl<M: Machine> Turn<M> {
    pub fn on_accept(&mut self, completion: &Completion) -> io::Result<()> {
        let index = completion.token.slot() as usize;
        if !completion.more() {
            self.listeners[index].armed = false;
        }
        match completion.result {
            fd @ 0.. => {
                // SAFETY: the kernel made this descriptor for us and nobody else knows it.
                let fd = unsafe { OwnedFd::from_raw_fd(fd) };
                self.on_connection(index, fd)?;
            }
            error => match -error {
                libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM => {
                    self.machine.metrics_mut().count(Counter::AcceptsFailed);
                    self.accept_again = Some(self.now + ACCEPT_BACKOFF);
                }
                libc::ECANCELED => {}
                // The connection was gone before it was accepted.
                _ => self.machine.metrics_mut().count(Counter::AcceptsFailed),
            },
        }
        if self.accepting == Accepting::Yes {
            self.arm_accepts()
        } else {
            self.close_listener(index);
            Ok(())
        }
    }

    pub(super) fn on_connection(&mut self, listener: usize, fd: OwnedFd) -> io::Result<()> {
        let origin = if self.accepting == Accepting::Yes { origin_of(&fd) } else { None };
        let Some(origin) = origin else { return self.ring.close(fd) };
        let id = self.conns.insert(fd);
        if self.machine.accept(self.now, id, listener, origin) {
            self.arm_reads(id)
        } else {
            let fd = self.conns.remove(id);
            self.ring.close(fd)
        }
    }

    pub(super) fn arm_accepts(&mut self) -> io::Result<()> {
        if self.accepting != Accepting::Yes || self.accept_again.is_some() {
            return Ok(());
        }
        for (index, listener) in self.listeners.iter_mut().enumerate() {
            if let (false, Some(socket)) = (listener.armed, &listener.socket) {
                listener.armed = true;
                let token = Token::new(Op::Accept, index as u32, 0);
                // Of several that wait for one socket the kernel wakes the first: who stays there takes everything.
                let many = self.features.multishot_accept && !socket.is_shared;
                self.ring.accept(socket.fd.as_raw_fd(), token, many)?;
            }
        }
        Ok(())
    }

    /// Listens and accepts from now on.
    pub fn start_accepting(&mut self) -> io::Result<()> {
        self.accepting = Accepting::Yes;
        for socket in self.listeners.iter().filter_map(|listener| listener.socket.as_ref()) {
            let backlog = i32::try_from(socket.backlog).unwrap_or(i32::MAX);
            rustix::net::listen(&socket.fd, backlog)?;
        }
        self.arm_accepts()
    }

    /// New connections are refused by the kernel from now on.
    pub(super) fn stop_accepting(&mut self) -> io::Result<()> {
        self.accepting = Accepting::Over;
        for index in 0..self.listeners.len() {
            if self.listeners[index].armed {
                let accept = Token::new(Op::Accept, index as u32, 0);
                self.ring.cancel(accept, Token::new(Op::Nothing, 0, 0))?;
            } else {
                self.close_listener(index);
            }
        }
        Ok(())
    }

    pub(super) fn close_listener(&mut self, index: usize) {
        if !self.listeners[index].armed {
            self.listeners[index].socket = None;
        }
    }
}

/// `None`: the peer is gone already.
fn origin_of(fd: &OwnedFd) -> Option<Origin> {
    let Some(address) = rustix::net::getpeername(fd).ok()? else { return process_of(fd) };
    match address.address_family() {
        AddressFamily::UNIX => process_of(fd),
        _ => Some(std::net::SocketAddr::try_from(address).ok()?.ip().to_canonical().into()),
    }
}

/// Who connected to a Unix-domain socket, as the kernel noted it then (unix(7), `SO_PEERCRED`).
fn process_of(fd: &OwnedFd) -> Option<Origin> {
    let UCred { pid, uid, gid } = rustix::net::sockopt::socket_peercred(fd).ok()?;
    Some(Origin::Unix {
        pid: pid.as_raw_nonzero().get().unsigned_abs(),
        uid: uid.as_raw(),
        gid: gid.as_raw(),
    })
}
