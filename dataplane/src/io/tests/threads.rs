//! Shards on threads of their own, as they run in earnest.

use super::rig::{Mode, Rig, small_config};
use crate::feed::{FeedDown, FeedUp};
use crate::io::probe::Features;
use crate::io::spawn::{Plan, Running, ShardHandle, SpawnError, spawn_machines};
use crate::io::turn::Accepting;
use common::config::Config;
use common::ids::BootEpoch;
use common::metrics::{Counter, Metrics};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Longest wait for something that must happen.
const PATIENCE: Duration = Duration::from_secs(20);
const SHORT_WAIT: Duration = Duration::from_millis(1);

fn plan(config: Config, shards: usize, features: Features) -> Plan {
    // All on one CPU: every machine has it, and the shards must share it fairly.
    let cpu = first_allowed_cpu();
    let seeds = (0..shards as u64).collect();
    Plan {
        config,
        cores: vec![cpu; shards],
        features,
        epoch: BootEpoch(1),
        seeds,
        secrets: vec![[7; 32]; shards],
        relays: vec![],
        https: vec![],
        link_waker: Arc::new(|| {}),
    }
}

fn first_allowed_cpu() -> u32 {
    let set = rustix::thread::sched_getaffinity(None).expect("affinity");
    (0..rustix::thread::CpuSet::MAX_CPU).find(|cpu| set.is_set(*cpu)).expect("a CPU") as u32
}

fn start(mode: Mode, shards: usize, features: Features, short_wait: Duration) -> Running {
    let mut config = small_config();
    config.io.short_wait = short_wait;
    spawn_machines(plan(config, shards, features), Accepting::Yes, move |config, _| Rig::new(mode, config))
        .expect("started")
}

fn stop(running: Running) {
    // What shards hold of each other's queues must not keep them.
    for shard in running.shards {
        shard.stop().expect("no error");
    }
}

fn connect(running: &Running) -> TcpStream {
    let client = TcpStream::connect(running.listening[0].ip()).expect("connected");
    client.set_read_timeout(Some(PATIENCE)).expect("option");
    client.set_nodelay(true).expect("option");
    client
}

fn echo(client: &mut TcpStream, bytes: &[u8]) {
    client.write_all(bytes).expect("written");
    let mut got = vec![0; bytes.len()];
    client.read_exact(&mut got).expect("echoed");
    assert_eq!(got, bytes);
}

fn stats(running: &Running, shard: &ShardHandle) -> Box<Metrics> {
    shard.feed.send(FeedDown::Stats).expect("sent");
    shard.waker.wake();
    match running.feed_up.recv_timeout(PATIENCE).expect("answered") {
        FeedUp::Stats { metrics, .. } => metrics,
        other => panic!("{other:?}"),
    }
}

/// Asks until the shard has parked `parks` times; each answer but the first also proves that a parked shard wakes.
fn until_parked(running: &Running, shard: &ShardHandle, parks: u64) {
    for _ in 0..10_000 {
        if stats(running, shard).get(Counter::Parks) >= parks {
            return;
        }
        // Asking keeps the shard from parking.
        std::thread::sleep(2 * SHORT_WAIT);
    }
    panic!("the shard does not park");
}

#[test]
fn a_parked_shard_wakes_for_bytes_connections_and_its_feed() {
    for short_wait in [Duration::ZERO, SHORT_WAIT] {
        let running = start(Mode::Echo, 1, Features::ALL, short_wait);
        until_parked(&running, &running.shards[0], 3);
        let mut client = connect(&running);
        until_parked(&running, &running.shards[0], 6);
        for round in 1..100 {
            echo(&mut client, &[round; 100]);
        }
        stop(running);
    }
}

#[test]
fn a_parked_shard_wakes_for_its_deadline() {
    let running = start(Mode::PauseEach, 1, Features::ALL, Duration::ZERO);
    let mut client = connect(&running);
    for round in 1..50 {
        echo(&mut client, &vec![round; 10_000]);
    }
    stop(running);
}

#[test]
fn shards_wake_each_other_from_every_sleep() {
    for features in [Features::ALL, Features::NONE] {
        for short_wait in [Duration::ZERO, SHORT_WAIT] {
            let running = start(Mode::Around, 2, features, short_wait);
            let mut clients: Vec<_> = (0..8).map(|_| connect(&running)).collect();
            for round in 1..40 {
                for client in &mut clients {
                    echo(client, &vec![round; 300]);
                }
            }
            stop(running);
        }
    }
}

#[test]
fn a_flood_through_full_queues_arrives_whole() {
    let running = start(Mode::Around, 3, Features::ALL, SHORT_WAIT);
    let senders: Vec<_> = (0..6u8)
        .map(|seed| {
            let client = connect(&running);
            std::thread::spawn(move || flood(client, seed))
        })
        .collect();
    for sender in senders {
        sender.join().expect("the flood came back");
    }
    stop(running);
}

/// Writes a mebibyte while reading it back.
fn flood(client: TcpStream, seed: u8) {
    let bytes: Vec<u8> = (0..1 << 20).map(|n: u32| (n / 7) as u8 ^ seed).collect();
    let mut writer = client.try_clone().expect("cloned");
    let sent = bytes.clone();
    let writing = std::thread::spawn(move || writer.write_all(&sent).expect("written"));
    let (mut client, mut got) = (client, vec![0; bytes.len()]);
    client.read_exact(&mut got).expect("echoed");
    assert!(got == bytes);
    writing.join().expect("written");
}

#[test]
fn a_shard_tells_the_link_thread_that_it_ended() {
    let told = Arc::new(AtomicUsize::new(0));
    let mut plan = plan(small_config(), 2, Features::ALL);
    let counter = told.clone();
    plan.link_waker = Arc::new(move || {
        counter.fetch_add(1, Ordering::SeqCst);
    });
    let running =
        spawn_machines(plan, Accepting::NotYet, |config, _| Rig::new(Mode::Echo, config)).expect("started");
    assert!(TcpStream::connect(running.listening[0].ip()).is_err(), "no snapshot, no listener");
    stop(running);
    assert_eq!(told.load(Ordering::SeqCst), 2);
}

#[test]
fn a_core_that_is_not_there_is_an_error_and_leaves_no_thread() {
    let mut plan = plan(small_config(), 2, Features::ALL);
    plan.cores[1] = 100_000;
    let error = spawn_machines(plan, Accepting::Yes, |config, _| Rig::new(Mode::Echo, config))
        .expect_err("no such core");
    assert!(matches!(error, SpawnError::Executor { cpu: 100_000, .. }), "{error}");
}
