//! The link thread against a scripted control plane on a real socket and scripted shards.

use super::*;
use common::ids::{BootEpoch, Match, RealmId, RouteKind, ShardId, SnapshotVersion};
use common::link::{Claim, LINK_PROTOCOL, Up};
use common::snapshot::{Anonymous, Delta, Realm, Route, Source};
use rustix::fs::MemfdFlags;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage};
use std::io::IoSlice;
use std::thread::JoinHandle;

/// Far beyond what any step takes; only a failing test waits for it.
const PATIENCE: Duration = Duration::from_secs(20);
const EPOCH: BootEpoch = BootEpoch(77);

/// A link thread between two scripted sides.
struct Bench {
    folder: tempfile::TempDir,
    listener: OwnedFd,
    shards: Vec<Receiver<FeedDown>>,
    feed_up: Sender<FeedUp>,
    wake: Arc<OwnedFd>,
    signals: OwnedFd,
    thread: JoinHandle<io::Result<LinkEnd>>,
}

impl Bench {
    fn start(shards: usize, feed_capacity: usize) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), "", shards, feed_capacity, || None)
    }

    fn start_in(
        folder: tempfile::TempDir,
        below: &str,
        shards: usize,
        feed_capacity: usize,
        failed: impl FnMut() -> Option<String> + Send + 'static,
    ) -> Self {
        let data_dir = folder.path().join(below);
        std::fs::create_dir_all(&data_dir).unwrap();
        let listener = listen(&data_dir);
        let (feed_up, reports) = crossbeam_channel::bounded(8);
        let (feeds, takers): (Vec<_>, Vec<_>) =
            (0..shards).map(|_| crossbeam_channel::bounded(feed_capacity)).unzip();
        let flags = rustix::event::EventfdFlags::NONBLOCK;
        let wake = Arc::new(rustix::event::eventfd(0, flags).unwrap());
        let (signals_read, signals) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).unwrap();
        let plan = LinkPlan {
            data_dir,
            identity: Identity {
                epoch: EPOCH,
                pid: 4711,
                shards,
                version: "9.9".to_owned(),
                listeners: vec![("rawsocket".to_owned(), "127.0.0.1:7".to_owned())],
                drain_timeout: Duration::from_secs(3_600),
            },
            shards: feeds.into_iter().map(|feed| ShardPort { feed, wake: Box::new(|| {}) }).collect(),
            feed_up: reports,
            wake: Arc::clone(&wake),
            signals: signals_read,
            failed: Box::new(failed),
        };
        let thread = std::thread::spawn(move || run(plan));
        Self { folder, listener, shards: takers, feed_up, wake, signals, thread }
    }

    /// Accepts the link and takes the greeting.
    fn greet(&self) -> Control {
        let control = self.accept();
        let hello = Up::Hello {
            protocol: LINK_PROTOCOL,
            epoch: EPOCH,
            pid: 4711,
            shards: self.shards.len() as u8,
            version: "9.9".to_owned(),
        };
        assert_eq!(control.next(), Some(hello));
        let listeners = vec![("rawsocket".to_owned(), "127.0.0.1:7".to_owned())];
        assert_eq!(control.next(), Some(Up::Listening { listeners }));
        control
    }

    /// Greets, says welcome and sees what every shard is told then.
    fn welcome(&self) -> Control {
        let control = self.greet();
        control.send(&Down::Welcome { protocol: LINK_PROTOCOL, pid: 1 });
        for shard in 0..self.shards.len() {
            assert!(matches!(self.told_raw(shard), FeedDown::Resync));
            assert!(matches!(self.told_raw(shard), FeedDown::Stats));
        }
        control
    }

    fn accept(&self) -> Control {
        ready(&self.listener, PollFlags::IN);
        Control { socket: rustix::net::accept(&self.listener).unwrap() }
    }

    fn report(&self, up: FeedUp) {
        self.feed_up.send_timeout(up, PATIENCE).expect("the link thread takes reports");
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// What a shard is told next, besides the periodic question for metrics.
    fn told(&self, shard: usize) -> FeedDown {
        loop {
            match self.told_raw(shard) {
                FeedDown::Stats => {}
                down => return down,
            }
        }
    }

    fn told_raw(&self, shard: usize) -> FeedDown {
        self.shards[shard].recv_timeout(PATIENCE).expect("the shard is told something")
    }

    fn told_snapshot(&self, shard: usize) -> SnapshotVersion {
        match self.told(shard) {
            FeedDown::Snapshot(snapshot) => snapshot.version(),
            other => panic!("expected a snapshot, got {other:?}"),
        }
    }

    fn signal(&self) {
        let info = [0; size_of::<libc::signalfd_siginfo>()];
        assert_eq!(rustix::io::write(&self.signals, &info).unwrap(), info.len());
    }

    fn end(self) -> LinkEnd {
        self.thread.join().unwrap().unwrap()
    }
}

/// The control plane's end of one connection.
struct Control {
    socket: OwnedFd,
}

impl Control {
    /// The next frame besides `Stats`; `None` when the link closed.
    fn next(&self) -> Option<Up> {
        ready(&self.socket, PollFlags::IN);
        let mut packet = vec![0; LINK_FRAME_BYTES_MAX + 1];
        match rustix::net::recv(&self.socket, packet.as_mut_slice(), RecvFlags::empty()) {
            Ok((0, _)) | Err(rustix::io::Errno::CONNRESET) => None,
            Ok((bytes, _)) => {
                assert!(bytes <= LINK_FRAME_BYTES_MAX);
                Some(Up::decode(&packet[..bytes]).unwrap())
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn refused(&self) -> (SnapshotVersion, String) {
        match self.next() {
            Some(Up::Refused { version, reason }) => (version, reason),
            other => panic!("expected Refused, got {other:?}"),
        }
    }

    fn send(&self, down: &Down) {
        self.send_bytes(&down.encode());
    }

    fn send_bytes(&self, packet: &[u8]) {
        rustix::net::send(&self.socket, packet, SendFlags::NOSIGNAL).unwrap();
    }

    fn send_with(&self, down: &Down, descriptor: &OwnedFd) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors = [descriptor.as_fd()];
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
        let packet = down.encode();
        rustix::net::sendmsg(&self.socket, &[IoSlice::new(&packet)], &mut control, SendFlags::NOSIGNAL)
            .unwrap();
    }

    fn publish(&self, version: u64) {
        self.publish_bytes(version, &snapshot_bytes(version, EPOCH));
    }

    fn publish_bytes(&self, version: u64, bytes: &[u8]) {
        let down = Down::Snapshot { version: SnapshotVersion(version), bytes: bytes.len() as u64 };
        self.send_with(&down, &memfd(bytes, true));
    }

    fn delta(&self, version: u64, follows: u64) {
        self.send(&Down::Delta(Delta {
            version: SnapshotVersion(version),
            follows: SnapshotVersion(follows),
            realms_put: vec![],
            realms_removed: vec![RealmId(1)],
        }));
    }
}

fn ready(socket: &OwnedFd, flags: PollFlags) {
    let mut fds = [PollFd::new(socket, flags)];
    let count = poll(&mut fds, Some(&timespec(PATIENCE))).unwrap();
    assert_eq!(count, 1, "nothing came in time");
}

fn listen(data_dir: &Path) -> OwnedFd {
    let folder = rustix::fs::open(data_dir, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
    let address = socket_address(data_dir, &folder).unwrap();
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    rustix::net::bind(&socket, &address).unwrap();
    rustix::net::listen(&socket, 4).unwrap();
    socket
}

fn snapshot_bytes(version: u64, epoch: BootEpoch) -> Vec<u8> {
    let realm = Realm::new("realm1", Anonymous::Loopback);
    let source =
        Source { version: SnapshotVersion(version), epoch, realms: vec![realm], ..Source::default() };
    common::snapshot::build(&source, 5).to_vec()
}

fn memfd(bytes: &[u8], sealed: bool) -> OwnedFd {
    let fd = rustix::fs::memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    let mut rest = bytes;
    while !rest.is_empty() {
        rest = &rest[rustix::io::write(&fd, rest).unwrap()..];
    }
    if sealed {
        let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&fd, seals).unwrap();
    }
    fd
}

fn claim(uri: &str) -> Claim {
    let realm = RealmId::of("realm1");
    Claim::Routed { realm, kind: RouteKind::Topic, policy: Match::Exact, uri: uri.to_owned() }
}

fn taken(shard: u8, version: u64) -> FeedUp {
    FeedUp::Taken { shard: ShardId(shard), version: SnapshotVersion(version) }
}

#[test]
fn a_snapshot_reaches_every_shard_and_is_taken_when_all_use_it() {
    let bench = Bench::start(2, 8);
    let control = bench.welcome();
    control.publish(3);
    for shard in 0..2 {
        assert_eq!(bench.told_snapshot(shard), SnapshotVersion(3));
    }
    bench.report(taken(1, 3));
    bench.report(FeedUp::ClaimsReset { shard: ShardId(1) });
    assert_eq!(control.next(), Some(Up::ClaimsReset { shard: ShardId(1) }), "one shard is not all");
    bench.report(taken(0, 3));
    assert_eq!(control.next(), Some(Up::Taken { version: SnapshotVersion(3) }));
}

#[test]
fn a_bad_snapshot_is_refused_and_a_later_good_one_is_taken() {
    let bench = Bench::start(1, 8);
    let control = bench.welcome();
    control.publish(1);
    let mut bytes = snapshot_bytes(2, EPOCH);
    bytes.truncate(bytes.len() / 2);
    control.publish_bytes(2, &bytes);
    assert_eq!(control.refused().0, SnapshotVersion(2));
    control.delta(3, 2);
    assert_eq!(control.refused(), (SnapshotVersion(3), "follows version 2, in use is 1".to_owned()));
    control.publish(4);
    assert_eq!(bench.told_snapshot(0), SnapshotVersion(1));
    assert_eq!(bench.told_snapshot(0), SnapshotVersion(4));
}

#[test]
fn a_snapshot_must_be_what_its_frame_says() {
    let bench = Bench::start(1, 8);
    let control = bench.welcome();
    control.publish_bytes(9, &snapshot_bytes(8, EPOCH));
    assert_eq!(control.refused().1, "the frame says version 9, the snapshot 8");
    control.publish_bytes(8, &snapshot_bytes(8, BootEpoch(78)));
    assert_eq!(control.refused().1, "built for data plane 4e, this is 4d");
}

#[test]
fn only_a_sealed_memfd_of_the_announced_size_is_mapped() {
    let bench = Bench::start(1, 8);
    let control = bench.welcome();
    let bytes = snapshot_bytes(1, EPOCH);
    let frame = |bytes: usize| Down::Snapshot { version: SnapshotVersion(1), bytes: bytes as u64 };
    control.send_with(&frame(bytes.len()), &memfd(&bytes, false));
    assert!(control.refused().1.contains("not sealed"));
    control.send_with(&frame(bytes.len() + 1), &memfd(&bytes, true));
    assert!(control.refused().1.contains("the frame says"));
    control.send_with(&frame(0), &memfd(&[], true));
    assert!(control.refused().1.contains("allowed are 1 to"));
    let mut file = tempfile::tempfile().unwrap();
    io::Write::write_all(&mut file, &bytes).unwrap();
    control.send_with(&frame(bytes.len()), &file.into());
    assert!(control.refused().1.contains("not"));
    control.send(&frame(bytes.len()));
    assert!(control.refused().1.contains("no descriptor"));
    control.publish(1);
    assert_eq!(bench.told_snapshot(0), SnapshotVersion(1), "none of the others was handed over");
}

#[test]
fn stale_versions_are_ignored_and_deltas_follow_the_version_in_use() {
    let bench = Bench::start(1, 16);
    let control = bench.welcome();
    control.publish(5);
    assert_eq!(bench.told_snapshot(0), SnapshotVersion(5));
    control.publish(4);
    control.delta(5, 4);
    control.delta(6, 5);
    match bench.told(0) {
        FeedDown::Delta(delta) => assert_eq!(delta.version, SnapshotVersion(6)),
        other => panic!("expected the delta, got {other:?}"),
    }
    control.publish(6);
    control.publish(7);
    assert_eq!(bench.told_snapshot(0), SnapshotVersion(7));
}

#[test]
fn a_new_control_plane_is_greeted_by_the_same_process_and_gets_whole_claim_sets() {
    let bench = Bench::start(1, 8);
    let shard = ShardId(0);
    let control = bench.welcome();
    control.publish(1);
    assert_eq!(bench.told_snapshot(0), SnapshotVersion(1));
    bench.report(taken(0, 1));
    assert_eq!(control.next(), Some(Up::Taken { version: SnapshotVersion(1) }));
    bench.report(FeedUp::ClaimsReset { shard });
    assert_eq!(control.next(), Some(Up::ClaimsReset { shard }));
    drop(control);

    // The rest of the old set and new claims belong to nobody; then the whole set comes.
    let control = bench.greet();
    bench.report(FeedUp::ClaimsPart { shard, claims: vec![claim("old")] });
    control.send(&Down::Welcome { protocol: LINK_PROTOCOL, pid: 2 });
    assert!(matches!(bench.told(0), FeedDown::Resync));
    assert_eq!(control.next(), Some(Up::Taken { version: SnapshotVersion(1) }), "said to each anew");
    bench.report(FeedUp::ClaimsEnd { shard, seq: 3 });
    bench.report(FeedUp::Claims { shard, first_seq: 4, claims: vec![claim("new")] });
    bench.report(FeedUp::ClaimsReset { shard });
    bench.report(FeedUp::ClaimsPart { shard, claims: vec![claim("new")] });
    bench.report(FeedUp::ClaimsEnd { shard, seq: 4 });
    assert_eq!(control.next(), Some(Up::ClaimsReset { shard }));
    assert_eq!(control.next(), Some(Up::ClaimsPart { shard, claims: vec![claim("new")] }));
    assert_eq!(control.next(), Some(Up::ClaimsEnd { shard, seq: 4 }));
}

#[test]
fn reports_are_taken_while_the_control_plane_is_away() {
    let bench = Bench::start(1, 8);
    let control = bench.welcome();
    drop(control);
    // Many times what the channel and the outbox hold: the send would time out if nobody took them.
    for seq in 1..=500 {
        let claims = vec![claim("gone")];
        bench.report(FeedUp::Claims { shard: ShardId(0), first_seq: seq, claims });
    }
    let control = bench.welcome();
    bench.report(FeedUp::ClaimsReset { shard: ShardId(0) });
    assert_eq!(control.next(), Some(Up::ClaimsReset { shard: ShardId(0) }));
}

#[test]
fn a_control_plane_that_does_not_read_leaves_reports_with_the_shards_and_loses_none() {
    let bench = Bench::start(1, 8);
    let control = bench.welcome();
    let shard = ShardId(0);
    bench.report(FeedUp::ClaimsReset { shard });
    let claims = vec![claim(&"x".repeat(900)); 40];
    let mut sent = 0;
    // The socket and the outbox hold a bounded number of frames; then the channel stays full.
    loop {
        let up = FeedUp::Claims { shard, first_seq: 1 + sent * 40, claims: claims.clone() };
        let _ = rustix::io::write(&bench.wake, &1u64.to_ne_bytes());
        if bench.feed_up.send_timeout(up, Duration::from_millis(300)).is_err() {
            break;
        }
        sent += 1;
        assert!(sent < 10_000, "nothing bounds what is taken from the shards");
    }
    assert_eq!(control.next(), Some(Up::ClaimsReset { shard }));
    for index in 0..sent {
        match control.next() {
            Some(Up::Claims { first_seq, claims, .. }) => {
                assert_eq!((first_seq, claims.len()), (1 + index * 40, 40));
            }
            other => panic!("expected claims, got {other:?}"),
        }
    }
}

#[test]
fn a_shard_that_takes_nothing_gets_the_newest_snapshot_later() {
    let bench = Bench::start(2, 2);
    let control = bench.greet();
    control.send(&Down::Welcome { protocol: LINK_PROTOCOL, pid: 1 });
    // Shard 1 takes nothing: its channel holds Resync and Stats.
    for version in 1..=200 {
        control.publish(version);
        while bench.told(0).version() != Some(SnapshotVersion(version)) {}
    }
    assert!(matches!(bench.told_raw(1), FeedDown::Resync));
    assert!(matches!(bench.told_raw(1), FeedDown::Stats));
    assert_eq!(bench.told_snapshot(1), SnapshotVersion(200), "older ones were never worth keeping");
}

trait VersionOf {
    fn version(&self) -> Option<SnapshotVersion>;
}

impl VersionOf for FeedDown {
    fn version(&self) -> Option<SnapshotVersion> {
        match self {
            Self::Snapshot(snapshot) => Some(snapshot.version()),
            Self::Delta(delta) => Some(delta.version),
            _ => None,
        }
    }
}

#[test]
fn told_to_drain_it_ends_when_every_shard_is_drained() {
    let bench = Bench::start(2, 8);
    let control = bench.welcome();
    control.send(&Down::Drain);
    for shard in 0..2 {
        assert!(matches!(bench.told(shard), FeedDown::Drain));
    }
    assert_eq!(control.next(), Some(Up::Draining));
    bench.report(FeedUp::Drained { shard: ShardId(1) });
    bench.report(FeedUp::Drained { shard: ShardId(0) });
    assert_eq!(bench.end(), LinkEnd::Drained);
}

#[test]
fn a_signal_drains_and_a_second_one_ends_at_once() {
    let bench = Bench::start(1, 8);
    let control = bench.welcome();
    bench.signal();
    assert!(matches!(bench.told(0), FeedDown::Drain));
    assert_eq!(control.next(), Some(Up::Draining));
    bench.signal();
    assert_eq!(bench.end(), LinkEnd::Interrupted);
}

#[test]
fn a_signal_drains_without_a_control_plane() {
    let bench = Bench::start(1, 8);
    bench.signal();
    assert!(matches!(bench.told(0), FeedDown::Drain));
    bench.report(FeedUp::Drained { shard: ShardId(0) });
    assert_eq!(bench.end(), LinkEnd::Drained);
}

#[test]
fn what_is_no_frame_closes_the_link_and_a_new_one_is_made() {
    let bench = Bench::start(1, 8);
    let control = bench.welcome();
    control.send_bytes(b"no frame");
    while control.next().is_some() {}
    let control = bench.welcome();
    control.send_bytes(&vec![0; LINK_FRAME_BYTES_MAX + 1]);
    while control.next().is_some() {}
    let control = bench.welcome();
    control.send(&Down::Refuse { reason: "a second data plane".to_owned() });
    while control.next().is_some() {}
    bench.welcome();
}

#[test]
fn a_shard_that_failed_ends_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let bench = Bench::start_in(folder, "", 1, 8, || Some("CPU 3: its ring failed".to_owned()));
    assert_eq!(bench.end(), LinkEnd::ShardFailed("CPU 3: its ring failed".to_owned()));
}

#[test]
fn a_data_folder_with_a_long_path_has_a_link_too() {
    let below = format!("{}/{}", "long".repeat(20), "path".repeat(20));
    let bench = Bench::start_in(tempfile::tempdir().unwrap(), &below, 1, 8, || None);
    assert!(bench.folder.path().join(&below).as_os_str().len() > 108);
    bench.welcome();
}

#[test]
fn a_large_snapshot_is_checked_beside_the_link() {
    let bench = Bench::start(1, 16);
    let control = bench.welcome();
    let route = |n: u32| Route {
        realm: RealmId(1),
        kind: RouteKind::Topic,
        policy: Match::Exact,
        uri: format!("com.example.topic.{n:06}"),
        shards: 1,
        nodes: vec![],
    };
    let (version, epoch) = (SnapshotVersion(9), EPOCH);
    let source = Source { version, epoch, routes: (0..20_000).map(route).collect(), ..Source::default() };
    let bytes = common::snapshot::build(&source, 1);
    assert!(bytes.len() as u64 > CHECKED_HERE_BYTES);
    control.publish_bytes(9, &bytes);
    control.send(&Down::Routes { first_seq: 1, changes: vec![] });
    // Which of the two is first is a race; neither is lost.
    let told = [bench.told(0), bench.told(0)];
    assert_eq!(told.iter().filter_map(VersionOf::version).collect::<Vec<_>>(), [version]);
    assert!(told.iter().any(|down| matches!(down, FeedDown::Routes { first_seq: 1, .. })), "{told:?}");
    let mut broken = bytes.to_vec();
    let middle = broken.len() / 2;
    broken[middle..middle + 64].fill(0xff);
    control.publish_bytes(10, &broken);
    assert_eq!(control.refused().0, SnapshotVersion(10));
}
