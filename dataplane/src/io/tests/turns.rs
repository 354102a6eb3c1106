//! Turn by turn: what happens is decided by the test, not by threads.

use super::rig::{Mode, Rig, small_config};
use crate::feed::{FeedDown, FeedUp};
use crate::io::buffers::Buffers;
use crate::io::listen::{AllBound, bind_all};
use crate::io::machine::Machine;
use crate::io::mesh::mesh;
use crate::io::probe::Features;
use crate::io::ring::{BUFFER_GROUP, Completion, Ring};
use crate::io::token::{Op, Token};
use crate::io::turn::{Feed, Turn};
use crate::io::wake::ShardWaker;
use crate::shard::ShardConfig;
use common::config::Config;
use common::ids::{ShardId, ShardSet};
use common::metrics::Counter;
use crossbeam_channel::{Receiver, Sender, bounded};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Turns without progress before a test fails, each with a wait of at most [`PATIENCE`].
const TURNS_MAX: usize = 20_000;
const PATIENCE: Duration = Duration::from_millis(1);

struct Bench {
    turns: Vec<Turn<Rig>>,
    address: SocketAddr,
    down: Vec<Sender<FeedDown>>,
    up: Receiver<FeedUp>,
}

impl Bench {
    fn new(shards: usize, mode: Mode) -> Self {
        Self::with(shards, mode, Features::ALL, &small_config())
    }

    /// Only the last shard listens.
    fn with(shards: usize, mode: Mode, features: Features, config: &Config) -> Self {
        let mut bench = Self::set_up(shards, mode, features, config);
        bench.turns.last_mut().expect("a shard").start_accepting().expect("listens");
        bench
    }

    /// One shard that waits for a snapshot.
    fn closed(mode: Mode) -> Self {
        Self::set_up(1, mode, Features::ALL, &small_config())
    }

    fn set_up(shards: usize, mode: Mode, features: Features, config: &Config) -> Self {
        let AllBound { mut sockets, places } = bind_all(&config.listeners, shards, 0).expect("bound");
        let wakers: Vec<_> = (0..shards).map(|_| ShardWaker::new().expect("waker")).collect();
        let (up_sender, up) = bounded(1);
        let mut down = Vec::new();
        let mut turns: Vec<Turn<Rig>> = Vec::new();
        for (index, mesh) in mesh(config.io.mesh_entries as usize, &wakers).into_iter().enumerate() {
            let mut buffers =
                Buffers::new(config.io.receive_buffers, config.io.receive_buffer_size).expect("buffers");
            let ring = Ring::new(config.io.ring_entries).expect("ring");
            // SAFETY: `Turn` drops its ring before its buffers.
            unsafe { buffers.register(&ring.submitter(), BUFFER_GROUP) }.expect("registered");
            mesh.set_ring(Some(ring.as_raw_fd()));
            let (down_sender, down_receiver) = bounded(8);
            down.push(down_sender);
            let shard = ShardId(index as u8);
            let link_waker = Arc::new(|| {});
            let feed = Feed::new(shard, down_receiver, up_sender.clone(), wakers[index].clone(), link_waker);
            let rig = Rig::new(mode, shard_config(config, shard, shards));
            let sockets = std::mem::take(&mut sockets[index]);
            let turn = Turn::new((ring, buffers), sockets, rig, mesh, feed, features).expect("turn");
            turns.push(turn);
        }
        Self { turns, address: places[0].ip(), down, up }
    }

    /// One turn of shard `index`, after a short wait if there is nothing to do.
    fn turn(&mut self, index: usize) {
        let turn = &mut self.turns[index];
        turn.now = Instant::now();
        let wait = !turn.again && turn.mesh.may_sleep();
        turn.again |= !wait;
        if wait {
            let until = turn.deadline().map_or(turn.now + PATIENCE, |at| at.min(turn.now + PATIENCE));
            turn.ring.arm_timer(turn.now, until).expect("armed");
        }
        turn.ring.enter(wait).expect("enter");
        turn.mesh.awake();
        turn.now = Instant::now();
        turn.run().expect("turn");
    }

    /// Turns of `shards` until `done`.
    fn until(&mut self, shards: &[usize], mut done: impl FnMut(&mut Self) -> bool) {
        for _ in 0..TURNS_MAX {
            if done(self) {
                return;
            }
            for shard in shards {
                self.turn(*shard);
            }
        }
        panic!("it does not happen");
    }

    fn connect(&mut self) -> TcpStream {
        let shard = self.turns.len() - 1;
        let before = self.turns[shard].machine.connections();
        let client = TcpStream::connect(self.address).expect("connected");
        client.set_nonblocking(true).expect("option");
        self.until(&[shard], |bench| bench.turns[shard].machine.connections() > before);
        client
    }

    /// Writes `bytes` to `client` and reads as many back, with turns of `shards` in between.
    fn echo(&mut self, client: &mut TcpStream, shards: &[usize], bytes: &[u8]) {
        let (mut written, mut got) = (0, Vec::new());
        self.until(shards, |_| {
            written += progress(client.write(&bytes[written..]));
            got.extend(available(client));
            got.len() >= bytes.len()
        });
        assert!(got == bytes, "the bytes come back as they were");
    }

    fn counter(&mut self, shard: usize, counter: Counter) -> u64 {
        self.turns[shard].machine.metrics_mut().get(counter)
    }
}

fn shard_config(config: &Config, shard: ShardId, shards: usize) -> ShardConfig {
    let epoch = common::ids::BootEpoch(1);
    ShardConfig::new(config, shard, shards, epoch, [shard.0; 32], 1)
}

fn progress(result: std::io::Result<usize>) -> usize {
    match result {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => 0,
        Err(error) => panic!("{error}"),
    }
}

/// What can be read without waiting.
fn available(client: &mut TcpStream) -> Vec<u8> {
    let mut chunk = vec![0; 4_096];
    let len = progress(client.read(&mut chunk));
    chunk.truncate(len);
    chunk
}

fn numbers(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 31 % 251) as u8).collect()
}

#[test]
fn bytes_come_back_on_many_connections() {
    for features in [Features::ALL, Features::NONE] {
        let mut bench = Bench::with(1, Mode::Echo, features, &small_config());
        let mut clients: Vec<_> = (0..100).map(|_| bench.connect()).collect();
        for round in 1..4 {
            for client in &mut clients {
                bench.echo(client, &[0], &numbers(round * 100));
            }
        }
        assert_eq!(bench.turns[0].conns.len(), 100);
        drop(clients);
        bench.until(&[0], |bench| bench.turns[0].conns.len() == 0);
        assert_eq!(bench.turns[0].machine.closed, 100);
    }
}

#[test]
fn more_than_the_sockets_hold_is_sent_in_parts() {
    for mode in [Mode::Echo, Mode::Pieces(100)] {
        let mut bench = Bench::new(1, mode);
        let mut client = bench.connect();
        bench.echo(&mut client, &[0], &numbers(4 << 20));
    }
}

#[test]
fn a_send_of_thousands_of_pieces_keeps_its_order() {
    let mut bench = Bench::new(1, Mode::Pieces(1));
    let mut client = bench.connect();
    for len in [1, 63, 64, 65, 2_000] {
        bench.echo(&mut client, &[0], &numbers(len));
    }
}

#[test]
fn a_paused_connection_loses_nothing() {
    for features in [Features::ALL, Features::NONE] {
        let mut bench = Bench::with(1, Mode::PauseEach, features, &small_config());
        let mut client = bench.connect();
        bench.echo(&mut client, &[0], &numbers(1 << 20));
    }
}

#[test]
fn the_end_of_a_paused_connection_comes_after_its_bytes() {
    let mut bench = Bench::new(1, Mode::PauseEach);
    let mut client = bench.connect();
    client.set_nonblocking(false).expect("option");
    client.write_all(&numbers(10_000)).expect("written");
    drop(client);
    bench.until(&[0], |bench| bench.turns[0].conns.len() == 0);
    assert_eq!(bench.turns[0].machine.closed, 1);
}

#[test]
fn writing_is_shut_down_after_what_was_queued() {
    let mut bench = Bench::new(1, Mode::Bye(3 << 20));
    let mut client = bench.connect();
    assert_eq!(progress(client.write(b"?")), 1);
    let (mut got, mut end) = (Vec::new(), false);
    bench.until(&[0], |_| {
        let mut chunk = [0; 4_096];
        match client.read(&mut chunk) {
            Ok(0) => end = true,
            other => got.extend_from_slice(&chunk[..progress(other)]),
        }
        end
    });
    assert!(got.len() == 3 << 20 && got.iter().enumerate().all(|(n, byte)| *byte == n as u8));
    assert_eq!(bench.turns[0].conns.len(), 1, "reads go on");
    drop(client);
    bench.until(&[0], |bench| bench.turns[0].conns.len() == 0);
}

#[test]
fn a_closed_connection_frees_its_slot_for_the_next() {
    let mut bench = Bench::new(1, Mode::Close);
    for _ in 0..50 {
        let mut client = bench.connect();
        assert_eq!(progress(client.write(b"x")), 1);
        let mut end = false;
        bench.until(&[0], |_| {
            end |= matches!(client.read(&mut [0; 8]), Ok(0));
            end
        });
        bench.until(&[0], |bench| bench.turns[0].conns.len() == 0);
    }
    assert_eq!(bench.turns[0].conns.slots(), 1);
}

#[test]
fn closing_does_not_wait_for_a_peer_that_reads_nothing() {
    let mut bench = Bench::new(1, Mode::Bye(16 << 20));
    let mut client = bench.connect();
    assert_eq!(progress(client.write(b"?")), 1);
    // The send is under way and cannot end.
    bench.until(&[0], |bench| bench.turns[0].conns.len() == 1 && client.peek(&mut [0]).is_ok());
    bench.turns[0].machine.feed(Instant::now(), FeedDown::Drain);
    bench.turns[0].again = true;
    bench.until(&[0], |bench| bench.turns[0].conns.len() == 0);
}

#[test]
fn a_refused_connection_is_closed_at_once() {
    let mut bench = Bench::new(1, Mode::Refuse);
    let mut client = TcpStream::connect(bench.address).expect("connected");
    client.set_nonblocking(true).expect("option");
    let mut end = false;
    bench.until(&[0], |_| {
        end |= matches!(client.read(&mut [0; 8]), Ok(0));
        end
    });
    assert_eq!(bench.turns[0].conns.len(), 0);
}

#[test]
fn reads_go_on_after_the_kernel_ran_out_of_buffers() {
    let mut config = small_config();
    config.io.receive_buffers = 16;
    config.io.receive_buffer_size = 1_024;
    let mut bench = Bench::with(1, Mode::Echo, Features::ALL, &config);
    let mut clients: Vec<_> = (0..40).map(|_| bench.connect()).collect();
    let bytes = numbers(2_000);
    for client in &mut clients {
        assert_eq!(progress(client.write(&bytes)), bytes.len());
    }
    let mut got = vec![Vec::new(); clients.len()];
    bench.until(&[0], |_| {
        for (client, got) in clients.iter_mut().zip(&mut got) {
            got.extend(available(client));
        }
        got.iter().all(|got| got.len() == bytes.len())
    });
    assert!(got.iter().all(|got| *got == bytes));
    assert!(bench.counter(0, Counter::BuffersExhausted) > 0);
}

#[test]
fn parcels_go_around_and_a_full_queue_pauses_and_resumes_reads() {
    for features in [Features::ALL, Features::NONE] {
        let mut config = small_config();
        config.io.mesh_entries = 2;
        let mut bench = Bench::with(2, Mode::Around, features, &config);
        let mut client = bench.connect();
        bench.echo(&mut client, &[0, 1], &numbers(10_000));
        // Only the accepting shard runs: its queue fills up.
        let bytes = numbers(50_000);
        let mut written = 0;
        bench.until(&[1], |bench| {
            if written < bytes.len() {
                let end = (written + 500).min(bytes.len());
                written += progress(client.write(&bytes[written..end]));
            }
            !bench.turns[1].machine.paused.is_empty()
        });
        assert_eq!(bench.turns[1].machine.full, ShardSet::one(ShardId(0)));
        assert!(bench.counter(1, Counter::MeshFull) > 0);
        assert!(written < bytes.len(), "reads paused long before that");
        let mut got = Vec::new();
        bench.until(&[0, 1], |_| {
            if written < bytes.len() {
                written += progress(client.write(&bytes[written..]));
            }
            got.extend(available(&mut client));
            got.len() == bytes.len()
        });
        assert!(got == bytes);
        assert!(bench.turns[1].machine.full.is_empty());
    }
}

#[test]
fn a_shard_whose_ring_takes_no_message_is_woken_by_its_pipe() {
    let mut bench = Bench::new(2, Mode::Around);
    let mut client = bench.connect();
    let no_ring = std::fs::File::open("/dev/null").expect("opened");
    bench.turns[0].mesh.set_ring(Some(no_ring.as_raw_fd()));
    assert!(bench.turns[0].mesh.may_sleep());
    assert_eq!(progress(client.write(b"x")), 1);
    bench.until(&[1], |bench| {
        let pipe = bench.turns[0].feed.waker.watched();
        let mut poll = libc::pollfd { fd: pipe, events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd that lives across the call.
        unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
    });
}

#[test]
fn a_listener_rests_when_the_kernel_has_no_descriptor_for_a_connection() {
    let mut bench = Bench::new(1, Mode::Echo);
    let turn = &mut bench.turns[0];
    turn.now = Instant::now();
    let refused = Completion::made_up(Token::new(Op::Accept, 0, 0), -libc::EMFILE);
    turn.on_accept(&refused).expect("handled");
    let again = turn.deadline().expect("it tries again");
    assert!(again > turn.now);
    assert_eq!(bench.counter(0, Counter::AcceptsFailed), 1);
    bench.until(&[0], |bench| bench.turns[0].deadline().is_none());
    assert!(Instant::now() >= again);
    bench.connect();
}

#[test]
fn connections_are_accepted_from_the_first_snapshot_on() {
    let mut bench = Bench::closed(Mode::Echo);
    assert!(TcpStream::connect(bench.address).is_err());
    let bytes = common::snapshot::build(&common::snapshot::Source::default(), 1);
    let snapshot = common::snapshot::Snapshot::check(bytes::Bytes::from_owner(bytes)).expect("a snapshot");
    bench.down[0].send(FeedDown::Snapshot(Arc::new(snapshot))).expect("sent");
    bench.turns[0].feed.waker.wake();
    let address = bench.address;
    bench.until(&[0], |_| TcpStream::connect(address).is_ok());
    bench.until(&[0], |bench| bench.turns[0].machine.connections() > 0);
}

#[test]
fn the_link_thread_gets_everything_in_order_through_a_full_channel() {
    let mut bench = Bench::new(1, Mode::Echo);
    for _ in 0..5 {
        bench.down[0].send(FeedDown::Stats).expect("sent");
    }
    bench.down[0].send(FeedDown::Drain).expect("sent");
    bench.turns[0].feed.waker.wake();
    let mut got = Vec::new();
    bench.until(&[0], |bench| {
        bench.turns[0].again |= bench.turns[0].waits_for_link();
        got.extend(bench.up.try_iter());
        got.len() == 6
    });
    assert!(got[..5].iter().all(|up| matches!(up, FeedUp::Stats { .. })));
    assert!(matches!(got[5], FeedUp::Drained { shard: ShardId(0) }));
}

#[test]
fn a_draining_shard_listens_no_more_and_ends_with_its_feed() {
    let mut bench = Bench::new(1, Mode::Echo);
    let client = bench.connect();
    bench.down[0].send(FeedDown::Drain).expect("sent");
    bench.turns[0].feed.waker.wake();
    let address = bench.address;
    bench.until(&[0], |_| TcpStream::connect(address).is_err());
    bench.until(&[0], |bench| bench.turns[0].conns.len() == 0);
    drop(client);
    bench.down.clear();
    bench.turns[0].feed.waker.wake();
    bench.until(&[0], |bench| bench.turns[0].stop);
}
