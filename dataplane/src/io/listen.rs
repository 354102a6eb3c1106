//! Listening sockets: one per shard and configured address, all of an address sharing its port (`SO_REUSEPORT`).
//!
//! They are bound in one place before the shards start, so a port the kernel chose is the same for all, and listen
//! only when their shard has something to route with. Accepted sockets inherit `TCP_NODELAY` and `SO_SNDBUF`.

use common::config::Listener;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, sockopt};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// How long an address may stay taken at start-up: the kernel ends the listeners of a killed process a little
/// after it.
const ADDRESS_WAIT: Duration = Duration::from_secs(2);
const ADDRESS_RETRY: Duration = Duration::from_millis(20);

/// A bound socket that does not listen yet.
#[derive(Debug)]
pub struct Bound {
    pub fd: OwnedFd,
    pub backlog: u32,
}

/// The sockets of all shards and the addresses they are bound to.
#[derive(Debug)]
pub struct AllBound {
    /// By shard, then in the order of the configuration.
    pub sockets: Vec<Vec<Bound>>,
    /// With real ports.
    pub addresses: Vec<SocketAddr>,
}

/// Binds each of `listeners` once a shard.
///
/// # Errors
/// The first address that cannot be bound; nothing stays bound.
pub fn bind_all(
    listeners: &[Listener],
    shards: usize,
    send_buffer: u32,
) -> Result<AllBound, (SocketAddr, io::Error)> {
    let mut sockets: Vec<Vec<Bound>> = (0..shards).map(|_| Vec::new()).collect();
    let mut addresses = Vec::new();
    for listener in listeners {
        let failed = |error| (listener.address, error);
        wait_until_free(listener.address).map_err(failed)?;
        let mut address = listener.address;
        for shard in &mut sockets {
            let fd = bind(address, send_buffer).map_err(failed)?;
            // The first socket of port 0 tells the port for the others.
            address = local_address(&fd).map_err(failed)?;
            shard.push(Bound { fd, backlog: listener.backlog });
        }
        addresses.push(address);
    }
    Ok(AllBound { sockets, addresses })
}

/// `SO_REUSEPORT` would let a second process of the same user share the port in silence, so a socket without it
/// asks first.
fn wait_until_free(address: SocketAddr) -> io::Result<()> {
    if address.port() == 0 {
        return Ok(());
    }
    let deadline = Instant::now() + ADDRESS_WAIT;
    loop {
        match bind_with(address, 0, false) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                std::thread::sleep(ADDRESS_RETRY);
            }
            Err(error) => return Err(error),
        }
    }
}

fn bind(address: SocketAddr, send_buffer: u32) -> io::Result<OwnedFd> {
    bind_with(address, send_buffer, true)
}

fn bind_with(address: SocketAddr, send_buffer: u32, share_port: bool) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let fd = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, Some(ipproto::TCP))?;
    sockopt::set_socket_reuseaddr(&fd, true)?;
    if share_port {
        sockopt::set_socket_reuseport(&fd, true)?;
    }
    if address.is_ipv6() {
        // "::" must not take the IPv4 port too: that may be a listener of its own.
        sockopt::set_ipv6_v6only(&fd, true)?;
    }
    sockopt::set_tcp_nodelay(&fd, true)?;
    if send_buffer > 0 {
        sockopt::set_socket_send_buffer_size(&fd, send_buffer as usize)?;
    }
    rustix::net::bind(&fd, &address)?;
    Ok(fd)
}

fn local_address(fd: &OwnedFd) -> io::Result<SocketAddr> {
    Ok(SocketAddr::try_from(rustix::net::getsockname(fd)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::config::Transport;
    use std::net::{TcpListener, TcpStream};

    fn listener(address: &str) -> Listener {
        Listener {
            transport: Transport::RawSocket,
            address: address.parse().expect("address"),
            path: String::new(),
            connections_max: 16,
            message_max: 1 << 20,
            backlog: 16,
            ..Listener::of(Transport::RawSocket)
        }
    }

    #[test]
    fn all_shards_share_the_port_the_kernel_chose() {
        let AllBound { sockets, addresses } = bind_all(&[listener("127.0.0.1:0")], 3, 0).expect("bound");
        assert_ne!(addresses[0].port(), 0);
        for shard in &sockets {
            assert_eq!(local_address(&shard[0].fd).expect("address"), addresses[0]);
        }
        assert!(TcpStream::connect(addresses[0]).is_err(), "bound, but nobody listens");
        rustix::net::listen(&sockets[1][0].fd, 4).expect("listens");
        TcpStream::connect(addresses[0]).expect("connected");
    }

    #[test]
    fn an_address_somebody_listens_on_is_named_in_the_error() {
        let other = TcpListener::bind("127.0.0.1:0").expect("bound");
        let taken = other.local_addr().expect("address");
        let (address, error) = bind_all(&[listener(&taken.to_string())], 1, 0).expect_err("taken");
        assert_eq!((address, error.kind()), (taken, io::ErrorKind::AddrInUse));
    }

    #[test]
    fn accepted_sockets_inherit_nodelay() {
        let AllBound { sockets, addresses } = bind_all(&[listener("127.0.0.1:0")], 1, 65_536).expect("bound");
        let fd = &sockets[0][0].fd;
        rustix::net::listen(fd, 4).expect("listens");
        let _client = TcpStream::connect(addresses[0]).expect("connected");
        let accepted = rustix::net::accept(fd).expect("accepted");
        assert!(sockopt::tcp_nodelay(&accepted).expect("option"));
        assert_eq!(sockopt::socket_send_buffer_size(&accepted).expect("option"), 2 * 65_536);
    }
}
