//! Connections the machine asks for.

use super::Turn;
use crate::io::conns::token;
use crate::io::machine::Machine;
use crate::io::ring::Completion;
use crate::io::token::Op;
use crate::shard::{ConnId, Dial};
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, sockopt};
use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

/// Connects that are with the kernel.
#[derive(Default)]
pub(super) struct Dials(Vec<Dialing>);

struct Dialing {
    dial: Dial,
    conn: ConnId,
    /// Read by the kernel when it takes the entry.
    _address: Box<Address>,
}

/// A socket address as the kernel reads it.
struct Address {
    storage: MaybeUninit<libc::sockaddr_storage>,
    len: libc::socklen_t,
}

impl<M: Machine> Turn<M> {
    /// Begins to connect.
    pub(super) fn connect(&mut self, dial: Dial, address: SocketAddr) -> io::Result<()> {
        let Ok(fd) = socket(address) else {
            // Out of descriptors: as if nobody answered.
            self.machine.dial_failed(self.now, dial);
            return Ok(());
        };
        let id = self.conns.insert(fd);
        let address = Box::new(Address::new(address));
        let (at, len) = (address.storage.as_ptr().cast(), address.len);
        self.dials.0.push(Dialing { dial, conn: id, _address: address });
        let conn = self.conns.get(id).expect("just inserted");
        conn.ops += 1;
        let fd = conn.fd();
        // SAFETY: `at` points into a box that `dials` keeps until the operation's completion.
        unsafe { self.ring.connect(fd, token(Op::Connect, id), at, len) }
    }

    pub(super) fn on_connected(&mut self, completion: &Completion) -> io::Result<()> {
        let (id, conn) = self.conns.of(completion.token);
        conn.ops -= 1;
        let at = self.dials.0.iter().position(|dialing| dialing.conn == id).expect("it was dialled");
        let dial = self.dials.0.swap_remove(at).dial;
        if completion.result < 0 {
            self.machine.dial_failed(self.now, dial);
        } else if self.machine.connected(self.now, dial, id) {
            return self.arm_reads(id);
        }
        let fd = self.conns.remove(id);
        self.ring.close(fd)
    }
}

fn socket(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let fd = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, Some(ipproto::TCP))?;
    sockopt::set_tcp_nodelay(&fd, true)?;
    Ok(fd)
}

impl Address {
    fn new(address: SocketAddr) -> Self {
        let mut storage = MaybeUninit::<libc::sockaddr_storage>::zeroed();
        let len = match address {
            SocketAddr::V4(v4) => {
                let octets = u32::from_ne_bytes(v4.ip().octets());
                let raw = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: octets },
                    sin_zero: [0; 8],
                };
                // SAFETY: the storage is larger than any address and aligned for all of them.
                unsafe { storage.as_mut_ptr().cast::<libc::sockaddr_in>().write(raw) };
                size_of::<libc::sockaddr_in>()
            }
            SocketAddr::V6(v6) => {
                let raw = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: v6.port().to_be(),
                    sin6_flowinfo: v6.flowinfo(),
                    sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                    sin6_scope_id: v6.scope_id(),
                };
                // SAFETY: as above.
                unsafe { storage.as_mut_ptr().cast::<libc::sockaddr_in6>().write(raw) };
                size_of::<libc::sockaddr_in6>()
            }
        };
        Self { storage, len: len as libc::socklen_t }
    }
}
