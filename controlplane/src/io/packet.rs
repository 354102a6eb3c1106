//! Unix `SOCK_SEQPACKET` sockets under tokio: packets keep their bounds, and a packet may carry one descriptor.

use common::limits::LINK_FRAME_BYTES_MAX;
use rustix::cmsg_space;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::sockopt::{set_socket_send_buffer_size, socket_peercred, socket_send_buffer_size};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown, SocketAddrUnix,
    SocketFlags, SocketType, UCred, accept_with, bind, connect, listen, recv, sendmsg, shutdown, socket_with,
};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use tokio::io::unix::AsyncFd;

/// A connected socket.
#[derive(Debug)]
pub struct Packets(AsyncFd<OwnedFd>);

/// A listening socket.
#[derive(Debug)]
pub struct Listener(AsyncFd<OwnedFd>);

impl Listener {
    /// Listens on `<dir>/<name>`, mode 0600. A socket file that is there already is replaced, so the caller holds the
    /// lock that says nobody listens on it.
    pub fn bind(dir: &Path, name: &str) -> io::Result<Self> {
        match std::fs::remove_file(dir.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let fd = seqpacket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
        with_address(dir, name, |address| Ok(bind(&fd, address)?))?;
        // Between bind and here another user may connect at most; the credentials of every peer are checked.
        std::fs::set_permissions(dir.join(name), std::fs::Permissions::from_mode(0o600))?;
        listen(&fd, BACKLOG)?;
        Ok(Self(register(fd)?))
    }

    pub async fn accept(&self) -> io::Result<Packets> {
        loop {
            let mut guard = self.0.readable().await?;
            let accepted = guard
                .try_io(|fd| Ok(accept_with(fd.get_ref(), SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?));
            match accepted {
                Ok(Ok(fd)) => return Packets::new(fd),
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
    }
}

impl Packets {
    /// Takes over a connected, non-blocking socket and sees to it that a frame fits its send buffer.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        // The kernel counts its own overhead into the buffer, about as much again for a large packet.
        let wanted = 4 * LINK_FRAME_BYTES_MAX;
        if socket_send_buffer_size(&fd)? < wanted {
            set_socket_send_buffer_size(&fd, wanted)?;
        }
        let size = socket_send_buffer_size(&fd)?;
        if size < LINK_FRAME_BYTES_MAX + LINK_FRAME_BYTES_MAX / 2 {
            let error = format!("SO_SNDBUF is limited to {size} bytes; raise net.core.wmem_max");
            return Err(io::Error::other(error));
        }
        Ok(Self(register(fd)?))
    }

    /// Connects to `<dir>/<name>`.
    pub fn connect(dir: &Path, name: &str) -> io::Result<Self> {
        let fd = seqpacket(SocketFlags::CLOEXEC)?;
        with_address(dir, name, |address| Ok(connect(&fd, address)?))?;
        rustix::io::ioctl_fionbio(&fd, true)?;
        Self::new(fd)
    }

    /// Who connected, or whom we are connected to.
    pub fn peer(&self) -> io::Result<UCred> {
        Ok(socket_peercred(self.0.get_ref())?)
    }

    /// The next packet; none at the end. A packet longer than `buffer` is an error.
    pub async fn recv<'a>(&self, buffer: &'a mut [u8]) -> io::Result<Option<&'a [u8]>> {
        let length = loop {
            let mut guard = self.0.readable().await?;
            let received = guard.try_io(|fd| Ok(recv(fd.get_ref(), &mut *buffer, RecvFlags::TRUNC)?.1));
            match received {
                Ok(Ok(length)) => break length,
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        };
        match length {
            0 => Ok(None),
            length if length > buffer.len() => {
                let error = format!("a packet of {length} bytes, allowed: {}", buffer.len());
                Err(io::Error::new(io::ErrorKind::InvalidData, error))
            }
            length => Ok(Some(&buffer[..length])),
        }
    }

    /// Sends one packet, with a descriptor if there is one. Waits while the peer does not read.
    pub async fn send(&self, packet: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        loop {
            let mut guard = self.0.writable().await?;
            match guard.try_io(|socket| send_now(socket.get_ref().as_fd(), packet, fd)) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => return result,
                Err(_would_block) => {}
            }
        }
    }

    /// Ends both directions; a `recv` under way returns.
    pub fn shutdown(&self) {
        // A peer that is gone already is shut down too.
        let _ = shutdown(self.0.get_ref(), Shutdown::Both);
    }

    /// True when the other end is closed, though packets it sent may still wait.
    pub fn is_hung_up(&self) -> bool {
        let mut fds = [PollFd::new(self.0.get_ref(), PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&now)).is_ok_and(|_| fds[0].revents().contains(PollFlags::HUP))
    }
}

fn send_now(socket: BorrowedFd<'_>, packet: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = fd.map(|fd| [fd]);
    if let Some(fds) = &fds {
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)), "the space holds one descriptor");
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::EOR;
    let sent = sendmsg(socket, &[IoSlice::new(packet)], &mut control, flags)?;
    // A packet socket takes a packet whole or not at all.
    if sent == packet.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the `AsyncFd` owns the descriptor from here on; an `OwnedFd` is open until it is dropped and always gives
    // the same number.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

fn seqpacket(flags: SocketFlags) -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// Calls `act` with the address of `<dir>/<name>`. A path too long for a socket address (107 bytes) is reached through
/// the directory's descriptor: `/proc/self/fd/<n>/<name>`.
fn with_address<T>(
    dir: &Path,
    name: &str,
    act: impl FnOnce(&SocketAddrUnix) -> io::Result<T>,
) -> io::Result<T> {
    let path = dir.join(name);
    if path.as_os_str().as_bytes().len() <= SOCKET_PATH_BYTES_MAX {
        return act(&SocketAddrUnix::new(&path)?);
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(dir, flags, Mode::empty())
        .map_err(|error: Errno| io::Error::other(format!("cannot open {}: {error}", dir.display())))?;
    act(&SocketAddrUnix::new(format!("/proc/self/fd/{}/{name}", fd.as_raw_fd()))?)
}

/// `sun_path` holds 108 bytes with the final NUL (unix(7)).
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileTypeExt;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    #[test]
    fn a_directory_of_any_length_can_hold_the_socket() {
        let dir = tempfile::tempdir().unwrap();
        let long = dir.path().join("x".repeat(200));
        std::fs::create_dir(&long).unwrap();
        for dir in [dir.path(), &long] {
            runtime().block_on(async {
                // A file left behind by a control plane that was killed.
                drop(Listener::bind(dir, "s").unwrap());
                let listener = Listener::bind(dir, "s").unwrap();
                let kind = std::fs::metadata(dir.join("s")).unwrap();
                assert!(kind.file_type().is_socket());
                assert_eq!(kind.permissions().mode() & 0o777, 0o600);
                let client = Packets::connect(dir, "s").unwrap();
                let server = listener.accept().await.unwrap();
                assert_eq!(server.peer().unwrap().pid, rustix::process::getpid());
                let large = vec![7; LINK_FRAME_BYTES_MAX];
                client.send(&large, None).await.unwrap();
                client.send(b"two", None).await.unwrap();
                let mut buffer = vec![0; LINK_FRAME_BYTES_MAX];
                assert_eq!(server.recv(&mut buffer).await.unwrap().unwrap(), large);
                assert_eq!(server.recv(&mut buffer).await.unwrap().unwrap(), b"two");
                client.send(b"three", None).await.unwrap();
                assert!(server.recv(&mut buffer[..4]).await.is_err());
                assert!(!server.is_hung_up());
                drop(client);
                assert!(server.is_hung_up());
                assert!(server.recv(&mut buffer).await.unwrap().is_none());
            });
        }
    }
}
