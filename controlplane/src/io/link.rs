//! The link socket: accepts data planes, reads frames into the driver's channel, writes what the driver queued.
//!
//! Reading stops while the driver's channel is full, so the data plane's socket fills and it keeps its claims back.
//! Writing is bounded by [`QUEUE_FRAMES_MAX`] and [`SEND_MAX`]: a data plane that does not read loses its link, comes
//! back and gets a full snapshot.

use super::driver::Event;
use super::packet::{Listener, Packets};
use crate::node::LinkId;
use common::limits::LINK_FRAME_BYTES_MAX;
use common::link::Up;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tracing::{debug, warn};

/// Something to send.
#[derive(Debug)]
pub struct Packet {
    pub bytes: Vec<u8>,
    pub fd: Option<OwnedFd>,
}

/// The driver's end of a connection. Dropping it sends what is queued and closes.
#[derive(Debug)]
pub struct Connection {
    pub packets: Arc<Packets>,
    pub queue: mpsc::Sender<Packet>,
    pub peer_pid: u32,
}

/// Accepts for ever; returns only on an error of the listening socket.
pub async fn serve(listener: Listener, events: mpsc::Sender<Event>) -> io::Error {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    for number in 1.. {
        let slot = Arc::clone(&slots).acquire_owned().await.expect("the semaphore is never closed");
        let packets = match listener.accept().await {
            Ok(packets) => Arc::new(packets),
            Err(error) if is_passing(&error) => {
                warn!(%error, "could not accept a link");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
            Err(error) => return error,
        };
        let peer_pid = match check_peer(&packets) {
            Ok(pid) => pid,
            Err(error) => {
                warn!(%error, "refused a link");
                continue;
            }
        };
        let link = LinkId(number);
        let (queue, queued) = mpsc::channel(QUEUE_FRAMES_MAX);
        let connection = Connection { packets: Arc::clone(&packets), queue, peer_pid };
        if events.send(Event::Accepted(link, connection)).await.is_err() {
            break;
        }
        tokio::spawn(write(Arc::clone(&packets), queued));
        let events = events.clone();
        tokio::spawn(async move {
            let end = match read(link, &packets, &events).await {
                Ok(()) => "closed by the peer".to_owned(),
                Err(error) => error.to_string(),
            };
            debug!(link = link.0, end, "link ended");
            let _ = events.send(Event::Closed(link)).await;
            drop(slot);
        });
    }
    io::Error::other("the driver has ended")
}

/// Only processes of our own user may be the data plane.
fn check_peer(packets: &Packets) -> io::Result<u32> {
    let peer = packets.peer()?;
    let own = rustix::process::geteuid();
    if peer.uid != own {
        let error = format!("process {} runs as user {}, not {}", peer.pid, peer.uid, own);
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, error));
    }
    Ok(peer.pid.as_raw_nonzero().get().unsigned_abs())
}

async fn read(link: LinkId, packets: &Packets, events: &mpsc::Sender<Event>) -> io::Result<()> {
    let mut buffer = vec![0; LINK_FRAME_BYTES_MAX];
    let first = timeout(HELLO_MAX, packets.recv(&mut buffer));
    let Some(packet) = first.await.map_err(|_| io::Error::other("no hello in time"))?? else {
        return Ok(());
    };
    if events.send(decode(link, packet)).await.is_err() {
        return Ok(());
    }
    while let Some(packet) = packets.recv(&mut buffer).await? {
        if events.send(decode(link, packet)).await.is_err() {
            break;
        }
    }
    Ok(())
}

fn decode(link: LinkId, packet: &[u8]) -> Event {
    match Up::decode(packet) {
        Ok(frame) => Event::Frame(link, frame),
        Err(error) => Event::Garbage(link, error.to_string()),
    }
}

async fn write(packets: Arc<Packets>, mut queued: mpsc::Receiver<Packet>) {
    while let Some(packet) = queued.recv().await {
        let fd = packet.fd.as_ref().map(|fd| fd.as_fd());
        match timeout(SEND_MAX, packets.send(&packet.bytes, fd)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                debug!(%error, "could not send to the data plane");
                break;
            }
            Err(_) => {
                warn!("the data plane does not read its link; closing it");
                break;
            }
        }
    }
    packets.shutdown();
}

/// Errors of `accept` that pass by themselves: the peer has gone, or descriptors are short.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ECONNABORTED | libc::EINTR | libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS)
    )
}

/// Name of the socket in the data folder.
pub const SOCKET: &str = "link.sock";
/// Frames queued to one data plane; there are few, see `publish`.
const QUEUE_FRAMES_MAX: usize = 64;
/// Connections at one time, refused ones included.
const CONNECTIONS_MAX: usize = 8;
/// How long a connection may stay without its first frame.
const HELLO_MAX: Duration = Duration::from_secs(5);
/// How long the socket may stay full.
const SEND_MAX: Duration = Duration::from_secs(10);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
