//! Listening sockets: one per shard and configured address, all of an address sharing its port (`SO_REUSEPORT`), and one
//! for each configured path, which all shards have a descriptor of.
//!
//! They are bound in one place before the shards start, so a port the kernel chose is the same for all, and listen
//! only when their shard has something to route with. Accepted sockets inherit `TCP_NODELAY` and `SO_SNDBUF`.

use common::config::{Listener, UnixSocket};
use rustix::fs::{FileType, Mode};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, ipproto, sockopt};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
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
    /// Other shards accept from the same queue. Waiting in it anew after each connection, they take turns.
    pub is_shared: bool,
}

/// Where a listener is reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    Ip(SocketAddr),
    Unix(PathBuf),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Place {
    /// # Panics
    /// When it is a path.
    pub fn ip(&self) -> SocketAddr {
        match self {
            Self::Ip(address) => *address,
            Self::Unix(path) => panic!("{} has no IP address", path.display()),
        }
    }
}

/// The sockets of all shards and the addresses they are bound to.
#[derive(Debug)]
pub struct AllBound {
    /// By shard, then in the order of the configuration.
    pub sockets: Vec<Vec<Bound>>,
    /// With real ports.
    pub places: Vec<Place>,
}

impl AllBound {
    /// Has the kernel end connections to HTTP clients when what was sent is not acknowledged for `time` (tcp(7),
    /// `TCP_USER_TIMEOUT`): a client of events sends nothing by whose absence it could be told from one that is gone. Accepted
    /// sockets inherit it.
    pub fn watch_http(&self, listeners: &[Listener], time: Duration) -> io::Result<()> {
        let time_ms = u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
        for shard in &self.sockets {
            for (bound, listener) in shard.iter().zip(listeners) {
                if listener.http && listener.socket.is_none() {
                    sockopt::set_tcp_user_timeout(&bound.fd, time_ms)?;
                }
            }
        }
        Ok(())
    }
}

/// Binds each of `listeners` once a shard.
///
/// # Errors
/// The first address or path that cannot be bound; nothing stays bound.
pub fn bind_all(
    listeners: &[Listener],
    shards: usize,
    send_buffer: u32,
) -> Result<AllBound, (Place, io::Error)> {
    let mut sockets: Vec<Vec<Bound>> = (0..shards).map(|_| Vec::new()).collect();
    let mut places = Vec::new();
    for listener in listeners {
        let backlog = listener.backlog;
        if let Some(socket) = &listener.socket {
            let place = Place::Unix(socket.path.clone());
            let failed = |error| (place.clone(), error);
            let first = bind_unix(socket, send_buffer).map_err(failed)?;
            for shard in &mut sockets {
                let fd = first.try_clone().map_err(failed)?;
                shard.push(Bound { fd, backlog, is_shared: true });
            }
            places.push(place);
            continue;
        }
        let failed = |error| (Place::Ip(listener.address), error);
        wait_until_free(listener.address).map_err(failed)?;
        let mut address = listener.address;
        for shard in &mut sockets {
            let fd = bind(address, send_buffer).map_err(failed)?;
            // The first socket of port 0 tells the port for the others.
            address = local_address(&fd).map_err(failed)?;
            shard.push(Bound { fd, backlog, is_shared: false });
        }
        places.push(Place::Ip(address));
    }
    Ok(AllBound { sockets, places })
}

/// A socket at a path that has the wanted permissions before anybody can connect. The file of a socket that nobody
/// listens on any more is replaced; files of other kinds are not touched.
fn bind_unix(socket: &UnixSocket, send_buffer: u32) -> io::Result<OwnedFd> {
    let deadline = Instant::now() + ADDRESS_WAIT;
    while !remove_stale(&socket.path)? {
        if Instant::now() >= deadline {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        std::thread::sleep(ADDRESS_RETRY);
    }
    let fd = unix_socket()?;
    if send_buffer > 0 {
        sockopt::set_socket_send_buffer_size(&fd, send_buffer as usize)?;
    }
    rustix::net::bind(&fd, &SocketAddrUnix::new(&socket.path)?)?;
    rustix::fs::chmod(&socket.path, Mode::from_raw_mode(socket.mode))?;
    Ok(fd)
}

/// False: somebody listens at `path`.
fn remove_stale(path: &Path) -> io::Result<bool> {
    let kind = match rustix::fs::lstat(path) {
        Ok(found) => FileType::from_raw_mode(found.st_mode),
        Err(Errno::NOENT) => return Ok(true),
        Err(error) => return Err(error.into()),
    };
    if kind != FileType::Socket {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is a file that is no socket"));
    }
    match rustix::net::connect(unix_socket()?, &SocketAddrUnix::new(path)?) {
        Err(Errno::CONNREFUSED) => {
            rustix::fs::unlink(path)?;
            Ok(true)
        }
        Err(Errno::NOENT) => Ok(true),
        // A full queue has an owner too.
        Ok(()) | Err(Errno::AGAIN) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn unix_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?)
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
    use std::os::unix::net::{UnixListener, UnixStream};

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
        let AllBound { sockets, places } = bind_all(&[listener("127.0.0.1:0")], 3, 0).expect("bound");
        assert_ne!(places[0].ip().port(), 0);
        for shard in &sockets {
            assert_eq!(local_address(&shard[0].fd).expect("address"), places[0].ip());
        }
        assert!(TcpStream::connect(places[0].ip()).is_err(), "bound, but nobody listens");
        rustix::net::listen(&sockets[1][0].fd, 4).expect("listens");
        TcpStream::connect(places[0].ip()).expect("connected");
    }

    #[test]
    fn an_address_somebody_listens_on_is_named_in_the_error() {
        let other = TcpListener::bind("127.0.0.1:0").expect("bound");
        let taken = other.local_addr().expect("address");
        let (address, error) = bind_all(&[listener(&taken.to_string())], 1, 0).expect_err("taken");
        assert_eq!((address.ip(), error.kind()), (taken, io::ErrorKind::AddrInUse));
    }

    #[test]
    fn accepted_sockets_inherit_nodelay() {
        let AllBound { sockets, places } = bind_all(&[listener("127.0.0.1:0")], 1, 65_536).expect("bound");
        let fd = &sockets[0][0].fd;
        rustix::net::listen(fd, 4).expect("listens");
        let _client = TcpStream::connect(places[0].ip()).expect("connected");
        let accepted = rustix::net::accept(fd).expect("accepted");
        assert!(sockopt::tcp_nodelay(&accepted).expect("option"));
        assert_eq!(sockopt::socket_send_buffer_size(&accepted).expect("option"), 2 * 65_536);
    }

    fn at(path: &Path) -> Listener {
        let socket = Some(UnixSocket { path: path.to_owned(), mode: 0o640 });
        Listener { socket, ..listener("127.0.0.1:0") }
    }

    #[test]
    fn a_socket_has_its_permissions_and_is_shared_by_all_shards() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("socket");
        let AllBound { sockets, places } = bind_all(&[at(&path)], 2, 0).expect("bound");
        assert_eq!(places, [Place::Unix(path.clone())]);
        assert_eq!(rustix::fs::stat(&path).expect("a file").st_mode & 0o7777, 0o640);
        assert!(UnixStream::connect(&path).is_err(), "bound, but nobody listens");
        rustix::net::listen(&sockets[1][0].fd, 4).expect("listens");
        UnixStream::connect(&path).expect("connected");
        UnixStream::connect(&path).expect("connected");
        for shard in &sockets {
            rustix::net::accept(&shard[0].fd).expect("one for each");
        }
    }

    #[test]
    fn the_file_of_a_socket_that_is_gone_is_replaced_and_no_other() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("socket");
        let other = UnixListener::bind(&path).expect("bound");
        let (place, error) = bind_all(&[at(&path)], 1, 0).expect_err("taken");
        assert_eq!((place, error.kind()), (Place::Unix(path.clone()), io::ErrorKind::AddrInUse));
        drop(other);
        bind_all(&[at(&path)], 1, 0).expect("replaced");
        let file = folder.path().join("file");
        std::fs::write(&file, "kept").expect("written");
        let (_, error) = bind_all(&[at(&file)], 1, 0).expect_err("a file");
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&file).expect("a file"), b"kept");
    }

    #[test]
    fn connections_to_http_clients_inherit_a_bound_on_silence() {
        let http = Listener { http: true, ..listener("127.0.0.1:0") };
        let listeners = [listener("127.0.0.1:0"), http];
        let all = bind_all(&listeners, 1, 0).expect("bound");
        all.watch_http(&listeners, Duration::from_secs(50)).expect("set");
        for (index, expected_ms) in [(0, 0), (1, 50_000)] {
            let bound = &all.sockets[0][index];
            rustix::net::listen(&bound.fd, 1).expect("listens");
            let _client = std::net::TcpStream::connect(all.places[index].ip()).expect("connected");
            let accepted = rustix::net::accept(&bound.fd).expect("accepted");
            assert_eq!(sockopt::tcp_user_timeout(&accepted).expect("an option"), expected_ms);
        }
    }
}
