//! Lanes and links of one shard, with nobody at the other end.

use super::lanes::Passed;
use super::*;
use crate::feed::FeedDown;
use crate::mesh::{Item, LaneName};
use crate::shard::{Origin, ShardConfig};
use common::config::{Config, Listener, Transport};
use common::ids::{BootEpoch, NodeId, ShardId};
use common::keys::ClusterKeys;
use common::link::Peer;
use common::noise::Purpose;
use common::relay::LENGTH_BYTES;

const QUEUE_MAX: usize = 100_000;
const MEMORY_MAX: u64 = 1 << 20;
const CONN: ConnId = ConnId { slot: 5, generation: 1 };

fn shard(now: Instant, shards: usize) -> Shard {
    shard_with(now, shards, 1)
}

pub(super) fn shard_with(now: Instant, shards: usize, connections: usize) -> Shard {
    let config = Config { listeners: vec![Listener::of(Transport::RawSocket)], ..Config::default() };
    let mut config = ShardConfig::new(&config, ShardId(0), shards, BootEpoch(1), [1; 32], 1);
    let keys = ClusterKeys::parse(&"5a".repeat(32)).expect("a key");
    config.memory_max = MEMORY_MAX;
    config.relay = Some(RelayConfig {
        terms: Terms { keys, env: "test".into(), purpose: Purpose::Relay },
        connections,
        queue_max: QUEUE_MAX,
        tls: None,
        entropy: Entropy::new([1; 32]),
    });
    Shard::new(config, now)
}

/// The first lane to a node that is said to live.
pub(super) fn lane(shard: &mut Shard, now: Instant) -> usize {
    let peer = Peer { node: NodeId([2; 16]), epoch: BootEpoch(2), relay: "127.0.0.1:9000".to_owned() };
    shard.feed(now, FeedDown::Peers([peer].into()));
    shard.lane_of(shard.nodes.live().iter().next().expect("a node"), 0)
}

fn dialled(shard: &mut Shard) -> Option<Dial> {
    std::iter::from_fn(|| shard.poll()).find_map(|output| match output {
        Output::Connect { dial, .. } => Some(dial),
        _ => None,
    })
}

/// A connection that another node has made, its handshake over.
fn guest(shard: &mut Shard, now: Instant) {
    assert!(shard.accept(now, CONN, 1, Origin::Hidden));
    let link = shard.relay.link_mut(CONN).expect("a link");
    link.phase = Phase::Open;
}

fn lives(shard: &mut Shard) -> bool {
    shard.relay.link_mut(CONN).is_some()
}

#[test]
fn a_lane_connects_again_and_again_after_pauses_that_are_bounded() {
    let mut now = Instant::now();
    let mut shard = shard(now, 1);
    lane(&mut shard, now);
    let mut dial = dialled(&mut shard).expect("it connects");
    for _ in 0..12 {
        shard.dial_failed(now, dial);
        let failed = now;
        dial = (0..100)
            .find_map(|_| {
                now = shard.deadline().expect("it will connect again").max(now);
                shard.timeout(now);
                dialled(&mut shard)
            })
            .expect("it connects again");
        let pause = now - failed;
        assert!((BACKOFF_MIN..=BACKOFF_MAX * 3 / 2).contains(&pause), "{pause:?}");
    }
}

#[test]
fn a_lane_without_a_link_holds_so_much_and_for_so_long() {
    let mut now = Instant::now();
    let mut shard = shard(now, 1);
    let at = lane(&mut shard, now);
    let send = |shard: &mut Shard| shard.lane_send(at, 1_000, 1, |out| out.extend_from_slice(&[0; 1_000]));
    for _ in 0..QUEUE_MAX / 1_000 {
        assert_eq!(send(&mut shard), Passed::Yes);
    }
    assert_eq!(send(&mut shard), Passed::Full);
    assert_eq!(shard.relay.queued_bytes, QUEUE_MAX);
    now += HOLD_TIME;
    shard.timeout(now);
    assert_eq!(send(&mut shard), Passed::Down);
    assert_eq!(shard.relay.queued_bytes, 0);
    assert_eq!(shard.metrics.get(Counter::DroppedRelayDown), (QUEUE_MAX / 1_000) as u64);
}

#[test]
fn a_link_is_given_up_when_its_frame_takes_too_much_memory() {
    let now = Instant::now();
    let mut shard = shard(now, 1);
    guest(&mut shard, now);
    let frame_bytes = MEMORY_MAX as u32 * 4;
    shard.receive(now, CONN, &mut frame_bytes.to_le_bytes());
    let mut received = LENGTH_BYTES;
    while lives(&mut shard) {
        assert_eq!(shard.partial_bytes, received);
        assert!(received <= MEMORY_MAX as usize / 2, "{received}");
        received += shard.config.memory_max as usize / 16;
        shard.receive(now, CONN, &mut vec![0; MEMORY_MAX as usize / 16]);
    }
    assert_eq!(shard.partial_bytes, 0);
}

#[test]
fn a_link_that_was_not_read_is_not_taken_for_silent() {
    let mut now = Instant::now();
    let mut shard = shard(now, 1);
    guest(&mut shard, now);
    // For as long as the shard says so: it has memory.
    shard.relay.link_mut(CONN).expect("a link").paused = true;
    let mut pass = |shard: &mut Shard| {
        now += PING_INTERVAL;
        shard.timeout(now);
        lives(shard)
    };
    for _ in 0..10 {
        assert!(pass(&mut shard));
    }
    let at = shard.now;
    assert!(shard.relay.unpause(CONN, at));
    assert!(pass(&mut shard), "it has just been read again");
    let silent = (0..10).find(|_| !pass(&mut shard));
    assert_eq!(silent, Some(2), "it is silent now");
}

#[test]
fn who_gives_up_a_connection_of_a_lane_asks_the_others_whether_they_have_taken_what_it_passed_on() {
    let now = Instant::now();
    let mut shard = shard(now, 3);
    guest(&mut shard, now);
    let lane = LaneName { epoch: BootEpoch(2), shard: 0, lane: 0 };
    shard.relay.link_mut(CONN).expect("a link").lane = Some((lane, 7));
    for (attempt, gives_up) in [(7, false), (8, true), (9, false)] {
        shard.lane_succeeds(ShardId(1), lane, attempt, attempt * 10);
        let mut told = |to| shard.take_batch(ShardId(to)).items().to_vec();
        let (new, other) = (told(1), told(2));
        let [Item::Succeeded { token, barriers }] = new[..] else { panic!("{new:?}") };
        assert_eq!((token, barriers), (attempt * 10, u8::from(gives_up)));
        let barrier = matches!(other[..], [Item::Barrier { origin: ShardId(1), token: 80 }]);
        assert_eq!((barrier, other.len()), (gives_up, usize::from(gives_up)), "{other:?}");
    }
    assert!(!lives(&mut shard));
}
