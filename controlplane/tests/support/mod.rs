//! A control plane in a thread, a scripted data plane over a real socket, and a small HTTP client.

use common::config::Config;
use common::ids::{BootEpoch, SnapshotVersion};
use common::link::{Down, LINK_PROTOCOL, Up};
use common::snapshot::Snapshot;
use controlplane::boot::{Boot, BootError, DataLaunch, run};
use controlplane::io::child::Stop;
use memmap2::Mmap;
use rustix::fs::{SealFlags, fcntl_get_seals};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, connect, recvmsg, send, socket_with,
};
use serde_json::Value;
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Nothing here takes this long; a test that waits for it fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Calls `done` until it gives something.
pub fn eventually<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(Instant::now() < until, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A configuration for tests: free ports, quick snapshots.
pub fn config(dir: &Path) -> Config {
    let mut config = Config { data_dir: dir.to_owned(), ..Config::default() };
    config.admin.address.set_port(0);
    config.snapshot.min_interval = Duration::from_millis(10);
    config.snapshot.fold_min = 2;
    config.timeouts.drain = Duration::from_secs(5);
    config
}

/// A control plane; stopped on drop.
pub struct Control {
    stop: watch::Sender<Stop>,
    thread: Option<JoinHandle<Result<(), BootError>>>,
    pub admin: String,
}

impl Control {
    pub fn start(config: Config, data: Option<DataLaunch>) -> Self {
        let note = config.data_dir.join("admin.address");
        let _ = std::fs::remove_file(&note);
        let (stop, stopped) = watch::channel(Stop::No);
        let thread = std::thread::spawn(move || run(Boot { config, data, stop: stopped }));
        let admin = eventually("the admin address", || {
            let text = std::fs::read_to_string(&note).ok()?;
            text.strip_suffix('\n').map(str::to_owned)
        });
        Self { stop, thread: Some(thread), admin }
    }

    pub fn stop(mut self) -> Result<(), BootError> {
        self.stop.send_replace(Stop::Drain);
        self.thread.take().expect("stopped once").join().expect("the control plane does not panic")
    }

    /// Status and body.
    pub fn http(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        http(&self.admin, &format!("{head}{body}"))
    }

    pub fn json(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let (status, body) = self.http(method, path, body);
        (status, serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}")))
    }

    pub fn status(&self) -> Value {
        self.json("GET", "/status", "").1
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.stop.send_replace(Stop::Now);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Sends a request as it is; status 0 when there is no answer.
pub fn http(address: &str, request: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("the admin endpoint listens");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    // A server that refuses what it has not read whole may reset the connection after its answer.
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { return (0, answer) };
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
    (status, body.to_owned())
}

/// A data plane that does what the test says.
pub struct DataPlane {
    socket: OwnedFd,
}

pub type Checked = Snapshot<Mmap>;

impl DataPlane {
    pub fn connect(dir: &Path) -> Self {
        let address = SocketAddrUnix::new(dir.join("link.sock")).unwrap();
        let socket = eventually("a link", || {
            let flags = SocketFlags::CLOEXEC;
            let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
            connect(&socket, &address).ok().map(|()| socket)
        });
        set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE)).unwrap();
        Self { socket }
    }

    /// Connects, says hello and where it listens, and takes the first snapshot.
    pub fn serve(dir: &Path, epoch: u64) -> (Self, Checked) {
        let data = Self::connect(dir);
        data.hello(epoch);
        let listeners = vec![("rawsocket".to_owned(), "127.0.0.1:1".to_owned())];
        data.send(&Up::Listening { listeners });
        assert!(matches!(data.recv(), Some(Down::Welcome { protocol: LINK_PROTOCOL, .. })));
        let snapshot = data.snapshot();
        data.taken(snapshot.version());
        (data, snapshot)
    }

    pub fn hello(&self, epoch: u64) {
        let (epoch, version) = (BootEpoch(epoch), "test".to_owned());
        let pid = std::process::id();
        self.send(&Up::Hello { protocol: LINK_PROTOCOL, epoch, pid, shards: 2, version });
    }

    pub fn taken(&self, version: SnapshotVersion) {
        self.send(&Up::Taken { version });
    }

    pub fn send(&self, frame: &Up) {
        self.send_bytes(&frame.encode());
    }

    pub fn send_bytes(&self, packet: &[u8]) {
        assert_eq!(send(&self.socket, packet, SendFlags::NOSIGNAL).unwrap(), packet.len());
    }

    /// The next frame; none at the end.
    pub fn recv(&self) -> Option<Down> {
        self.recv_with_descriptor().0
    }

    /// The next frame, which is a snapshot: sealed, mapped and checked.
    pub fn snapshot(&self) -> Checked {
        let (frame, descriptor) = self.recv_with_descriptor();
        let Some(Down::Snapshot { version, bytes }) = frame else { panic!("not a snapshot: {frame:?}") };
        let descriptor = descriptor.expect("a snapshot comes with a descriptor");
        let seals = fcntl_get_seals(&descriptor).unwrap();
        assert!(seals.contains(SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL));
        // SAFETY: the seals say that nobody can change the bytes.
        let map = unsafe { Mmap::map(&descriptor) }.unwrap();
        assert_eq!(map.len() as u64, bytes);
        let snapshot = Snapshot::check(map).expect("a published snapshot is valid");
        assert_eq!(snapshot.version(), version);
        snapshot
    }

    fn recv_with_descriptor(&self) -> (Option<Down>, Option<OwnedFd>) {
        let mut packet = vec![0; common::limits::LINK_FRAME_BYTES_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(&mut packet)];
        let received = recvmsg(&self.socket, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC);
        let length = match received {
            Ok(received) => received.bytes,
            Err(rustix::io::Errno::CONNRESET) => 0,
            Err(error) => panic!("no frame came: {error}"),
        };
        let descriptor = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        let frame = (length > 0).then(|| Down::decode(&packet[..length]).expect("a valid frame"));
        (frame, descriptor)
    }
}
