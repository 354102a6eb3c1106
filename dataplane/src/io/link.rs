//! The link thread: moves frames, descriptors and signals between the control plane, the shards and [`Link`].
//!
//! It never blocks but in `poll`: not on the socket, not on a shard's channel. A shard that does not take its feed
//! stops the reading of the socket; a control plane that does not read leaves the shards' reports in their channel.

mod checker;
mod mailbox;

use crate::feed::{FeedDown, FeedUp, SharedSnapshot};
use crate::link::{Identity, Link, Output};
use bytes::Bytes;
use checker::{CHECKED_HERE_BYTES, Check, Checker};
use common::limits::LINK_FRAME_BYTES_MAX;
use common::link::Down;
use common::snapshot::Snapshot;
use crossbeam_channel::{Receiver, Sender};
use mailbox::Mailbox;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, SealFlags, fcntl_get_seals, fstat};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags,
    SocketAddrUnix, SocketFlags, SocketType,
};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The socket's name inside the data folder.
pub const SOCKET_NAME: &str = "link.sock";
/// Largest snapshot that is mapped, bytes.
pub const SNAPSHOT_BYTES_MAX: u64 = 8 << 30;
/// Packets read before the other descriptors are looked at again.
const ROUND_PACKETS_MAX: usize = 16;
/// How soon a full shard channel is tried again; nobody tells us that it has room.
const MAILBOX_RETRY: Duration = Duration::from_millis(10);
/// At most one line about a control plane that is away in this time.
const AWAY_LOG_INTERVAL: Duration = Duration::from_secs(30);
/// Wanted socket buffer, bytes; the kernel gives what it allows.
const SOCKET_BUFFER_BYTES: usize = 16 * LINK_FRAME_BYTES_MAX;
/// Descriptors taken from one packet; those beyond the first are closed.
const PACKET_DESCRIPTORS_MAX: usize = 4;

/// What the link thread is started from.
pub struct LinkPlan {
    pub data_dir: PathBuf,
    pub identity: Identity,
    pub shards: Vec<ShardPort>,
    pub feed_up: Receiver<FeedUp>,
    /// A non-blocking eventfd written after something was put into `feed_up`.
    pub wake: Arc<OwnedFd>,
    /// Signals that end the process: a non-blocking signalfd.
    pub signals: OwnedFd,
    /// Says why a shard is no longer there.
    pub failed: Box<dyn FnMut() -> Option<String> + Send>,
}

/// One shard as the link thread sees it.
pub struct ShardPort {
    pub feed: Sender<FeedDown>,
    /// Called after something was put into `feed`.
    pub wake: Box<dyn Fn() + Send>,
}

/// Why the link thread ended; the process ends with it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LinkEnd {
    /// Every shard is drained.
    Drained,
    /// The time for draining is over.
    DrainTimedOut,
    /// A second signal came during the drain.
    Interrupted,
    ShardFailed(String),
}

/// Runs the link until the process is to end.
///
/// # Errors
/// Only when the data folder cannot be opened or `poll` itself fails.
pub fn run(plan: LinkPlan) -> io::Result<LinkEnd> {
    Driver::new(plan)?.run()
}

struct Driver {
    link: Link,
    address: SocketAddrUnix,
    /// Keeps `/proc/self/fd/<n>` in `address` meaning the data folder.
    _folder: OwnedFd,
    socket: Option<OwnedFd>,
    /// The socket did not take a frame; wait until it can.
    blocked: bool,
    mailboxes: Vec<Mailbox>,
    checker: Checker,
    /// The number of the connection.
    connection: u64,
    feed_up: Receiver<FeedUp>,
    wake: Arc<OwnedFd>,
    signals: OwnedFd,
    signals_seen: u32,
    failed: Box<dyn FnMut() -> Option<String> + Send>,
    packet: Box<[u8]>,
    away_logged: Option<Instant>,
}

impl Driver {
    fn new(plan: LinkPlan) -> io::Result<Self> {
        let folder = rustix::fs::open(
            &plan.data_dir,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let address = socket_address(&plan.data_dir, &folder)?;
        Ok(Self {
            link: Link::new(plan.identity, Instant::now()),
            address,
            _folder: folder,
            socket: None,
            blocked: false,
            mailboxes: plan.shards.into_iter().map(Mailbox::new).collect(),
            checker: Checker::start(Arc::clone(&plan.wake))?,
            connection: 0,
            feed_up: plan.feed_up,
            wake: plan.wake,
            signals: plan.signals,
            signals_seen: 0,
            failed: plan.failed,
            packet: vec![0; LINK_FRAME_BYTES_MAX].into_boxed_slice(),
            away_logged: None,
        })
    }

    fn run(mut self) -> io::Result<LinkEnd> {
        loop {
            let now = Instant::now();
            self.link.timeout(now);
            self.connect(now);
            self.take_reports();
            self.take_checked();
            self.send_frames(now);
            if let Some(end) = self.act() {
                return Ok(end);
            }
            self.mailboxes.iter_mut().for_each(Mailbox::deliver);
            self.checker.let_go();
            if let Some(end) = self.wait(now)? {
                return Ok(end);
            }
            if let Some(reason) = (self.failed)() {
                return Ok(LinkEnd::ShardFailed(reason));
            }
        }
    }

    fn connect(&mut self, now: Instant) {
        if self.socket.is_some() || !self.link.connect_due(now) {
            return;
        }
        match open_socket(&self.address) {
            Ok(socket) => {
                self.socket = Some(socket);
                self.connection += 1;
                self.blocked = false;
                self.away_logged = None;
                self.link.connected(now);
            }
            Err(error) => {
                self.link.connect_failed(now);
                if self.away_logged.is_none_or(|at| now >= at + AWAY_LOG_INTERVAL) {
                    tracing::warn!(%error, "the control plane is away; routing goes on with the last good snapshot");
                    self.away_logged = Some(now);
                }
            }
        }
    }

    /// Moves reports while there is room for their frames.
    fn take_reports(&mut self) {
        while self.link.has_room() {
            match self.feed_up.try_recv() {
                Ok(up) => self.link.reported(up),
                Err(_) => break,
            }
        }
    }

    /// Hands over what was checked, if it came on this connection: another numbers its changes of routes otherwise.
    fn take_checked(&mut self) {
        while let Some(checked) = self.checker.checked() {
            if checked.connection == self.connection && self.link.wants(checked.version) {
                self.link.snapshot(checked.version, checked.result);
            }
        }
    }

    fn send_frames(&mut self, now: Instant) {
        while let (Some(socket), Some(frame), false) = (&self.socket, self.link.frame(), self.blocked) {
            match rustix::net::send(socket, frame, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(_) => self.link.frame_sent(),
                Err(rustix::io::Errno::AGAIN) => self.blocked = true,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => self.lost(now, &io::Error::from(error)),
            }
        }
    }

    fn act(&mut self) -> Option<LinkEnd> {
        while let Some(output) = self.link.poll() {
            match output {
                Output::Shards(down) => {
                    if let FeedDown::Snapshot(snapshot) = &down {
                        self.checker.handed(Arc::clone(snapshot));
                    }
                    self.mailboxes.iter_mut().for_each(|mailbox| mailbox.put(down.clone()));
                }
                Output::Close { reason } => {
                    tracing::warn!(reason, "closed the link to the control plane");
                    self.socket = None;
                }
                Output::Exit { clean } => {
                    return Some(if clean { LinkEnd::Drained } else { LinkEnd::DrainTimedOut });
                }
            }
        }
        None
    }

    /// Waits for something to do and takes what the descriptors have.
    fn wait(&mut self, now: Instant) -> io::Result<Option<LinkEnd>> {
        let mut interest = PollFlags::empty();
        if self.reads() {
            interest |= PollFlags::IN;
        }
        if self.blocked {
            interest |= PollFlags::OUT;
        }
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN), PollFd::new(&self.wake, PollFlags::IN)];
        fds.extend(self.socket.as_ref().map(|socket| PollFd::new(socket, interest)));
        let timeout = timespec(self.wait_max(now));
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready = |index: usize| fds.get(index).map_or(PollFlags::empty(), PollFd::revents);
        let (signals, wake, socket) = (ready(0), ready(1), ready(2));
        let now = Instant::now();
        if wake.contains(PollFlags::IN) {
            let mut counter = [0; 8];
            // EAGAIN cannot hurt: somebody else's wake is as good.
            let _ = rustix::io::read(&self.wake, &mut counter);
        }
        if socket.intersects(PollFlags::OUT) {
            self.blocked = false;
        }
        let ended = PollFlags::HUP | PollFlags::ERR;
        if socket.intersects(ended) && !self.reads() {
            // What the peer sent before it went will not be asked for: a poll would return at once for ever.
            self.lost(now, &io::ErrorKind::ConnectionReset.into());
        } else if socket.intersects(PollFlags::IN | ended) {
            self.receive(now);
        }
        Ok(if signals.contains(PollFlags::IN) { self.signalled(now) } else { None })
    }

    /// The socket is read only while there is room for what it brings and for the answers.
    fn reads(&self) -> bool {
        self.link.has_room() && self.mailboxes.iter().all(Mailbox::has_room)
    }

    fn wait_max(&self, now: Instant) -> Duration {
        if self.link.has_room() && !self.feed_up.is_empty() || self.link.frame().is_some() && !self.blocked {
            return Duration::ZERO;
        }
        let wait = self.link.deadline().saturating_duration_since(now);
        let full = self.mailboxes.iter().any(|mailbox| !mailbox.is_empty());
        if full { wait.min(MAILBOX_RETRY) } else { wait }
    }

    fn receive(&mut self, now: Instant) {
        for _ in 0..ROUND_PACKETS_MAX {
            let Some(socket) = self.socket.as_ref().filter(|_| self.reads()) else { return };
            match receive_packet(socket, &mut self.packet) {
                Ok(Received::Packet { bytes, descriptor }) => self.take_packet(now, bytes, descriptor),
                Ok(Received::Cut) => self.link.garbled(now, "a packet was longer than a frame may be".into()),
                Ok(Received::End) => return self.lost(now, &io::ErrorKind::UnexpectedEof.into()),
                Err(rustix::io::Errno::AGAIN) => return,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return self.lost(now, &error.into()),
            }
            // A close that the link asked for must happen before anything more is read.
            if let Some(Output::Close { .. }) = self.link.peek() {
                return;
            }
        }
    }

    fn take_packet(&mut self, now: Instant, bytes: usize, descriptor: Option<OwnedFd>) {
        match Down::decode(&self.packet[..bytes]) {
            Ok(Down::Snapshot { version, bytes }) if self.link.wants(version) => match descriptor {
                Some(descriptor) if bytes < CHECKED_HERE_BYTES => {
                    self.link.snapshot(version, map_snapshot(&descriptor, bytes));
                }
                Some(descriptor) => {
                    let connection = self.connection;
                    self.checker.check(Check { connection, version, descriptor, bytes });
                }
                None => {
                    self.link.snapshot(version, Err("the frame carries no descriptor".to_owned()));
                }
            },
            Ok(down) => self.link.received(now, down),
            Err(error) => self.link.garbled(now, error.to_string()),
        }
    }

    fn lost(&mut self, now: Instant, error: &io::Error) {
        tracing::warn!(%error, "lost the control plane; routing goes on with the last good snapshot");
        self.away_logged = Some(now);
        self.socket = None;
        self.link.disconnected(now);
    }

    fn signalled(&mut self, now: Instant) -> Option<LinkEnd> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        while let Ok(count) = rustix::io::read(&self.signals, &mut info) {
            if count < info.len() {
                break;
            }
            self.signals_seen += 1;
            if self.signals_seen > 1 {
                return Some(LinkEnd::Interrupted);
            }
            self.link.drain(now);
        }
        None
    }
}

enum Received {
    Packet {
        bytes: usize,
        descriptor: Option<OwnedFd>,
    },
    /// The packet did not fit.
    Cut,
    /// The peer closed.
    End,
}

/// The socket's address; a folder whose path is too long for one is reached through its descriptor.
fn socket_address(folder: &Path, descriptor: &OwnedFd) -> io::Result<SocketAddrUnix> {
    let direct = SocketAddrUnix::new(folder.join(SOCKET_NAME));
    let short = || format!("/proc/self/fd/{}/{SOCKET_NAME}", descriptor.as_raw_fd());
    Ok(direct.or_else(|_| SocketAddrUnix::new(short()))?)
}

fn open_socket(address: &SocketAddrUnix) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    // Larger buffers save wake-ups and are not needed.
    let _ = rustix::net::sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER_BYTES);
    rustix::net::connect(&socket, address)?;
    Ok(socket)
}

fn receive_packet(socket: &OwnedFd, packet: &mut [u8]) -> rustix::io::Result<Received> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PACKET_DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(packet)], &mut control, flags)?;
    let mut descriptors = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(rights) => Some(rights),
            _ => None,
        })
        .flatten();
    let descriptor = descriptors.next();
    descriptors.for_each(drop);
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Ok(Received::Cut);
    }
    // A sequenced socket gives no bytes at its end; frames are never empty.
    Ok(match received.bytes {
        0 => Received::End,
        bytes => Received::Packet { bytes, descriptor },
    })
}

/// Maps a sealed memfd of exactly `bytes` bytes and checks the snapshot in it.
fn map_snapshot(descriptor: &OwnedFd, bytes: u64) -> Result<SharedSnapshot, String> {
    let sealed = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW;
    let seals = fcntl_get_seals(descriptor.as_fd()).map_err(|error| format!("not a memfd: {error}"))?;
    if !seals.contains(sealed) {
        return Err("the memfd is not sealed against writing, shrinking and growing".to_owned());
    }
    let size = fstat(descriptor).map_err(|error| format!("cannot ask for its size: {error}"))?.st_size;
    if u64::try_from(size) != Ok(bytes) {
        return Err(format!("the frame says {bytes} bytes, the memfd has {size}"));
    }
    if bytes == 0 || bytes > SNAPSHOT_BYTES_MAX {
        return Err(format!("{bytes} bytes; allowed are 1 to {SNAPSHOT_BYTES_MAX}"));
    }
    let length = usize::try_from(bytes).map_err(|_| "too large for this machine".to_owned())?;
    // SAFETY: the memfd is sealed against writing, shrinking and growing, and seals cannot be removed, so no process
    // can change or cut the mapped bytes as long as the mapping lives.
    let map = unsafe { memmap2::MmapOptions::new().len(length).map(descriptor) };
    let map = map.map_err(|error| format!("cannot map {bytes} bytes: {error}"))?;
    let snapshot = Snapshot::check(Bytes::from_owner(map)).map_err(|error| error.to_string())?;
    Ok(Arc::new(snapshot))
}

fn timespec(duration: Duration) -> Timespec {
    // A partial millisecond is rounded by nobody: poll takes nanoseconds.
    Timespec { tv_sec: duration.as_secs().cast_signed(), tv_nsec: duration.subsec_nanos().into() }
}

#[cfg(test)]
mod tests;
