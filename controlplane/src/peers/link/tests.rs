use super::*;
use crate::peers::hello::tests::hello;
use crate::peers::{FRAME_BYTES_MAX, QUEUE_BYTES_MAX};
use crate::swim::PROTOCOL;
use common::keys::ClusterKeys;
use common::noise::Purpose;
use proptest::prelude::*;

fn config(node: u8, key: u8, env: &str) -> LinkConfig {
    let keys = ClusterKeys::parse(&format!("{key:02x}").repeat(32)).unwrap();
    LinkConfig { terms: Terms { keys, env: env.into(), purpose: Purpose::Control }, hello: hello(node) }
}

fn node(node: u8) -> NodeId {
    NodeId([node; 16])
}

/// Two ends and the bytes between them.
struct Pair {
    now: Instant,
    ends: [Link; 2],
    events: [Vec<Event>; 2],
    over: [Option<End>; 2],
}

impl Pair {
    /// The first end dials.
    fn new(a: LinkConfig, b: LinkConfig) -> Self {
        let now = Instant::now();
        let expected = b.hello.node;
        let ends = [Link::dial(now, &a, [1; 32], expected, 7), Link::accept(now, &b, [2; 32])];
        Self { now, ends, events: [vec![], vec![]], over: [None, None] }
    }

    fn open() -> Self {
        let mut pair = Self::new(config(1, 1, "e"), config(2, 1, "e"));
        pair.run();
        assert_eq!(pair.over, [None, None]);
        assert_eq!(pair.events[0], [Event::Hello(Hello { attempt: 7, ..hello(2) })]);
        assert_eq!(pair.events[1], [Event::Hello(Hello { attempt: 7, ..hello(1) })]);
        pair.events = [vec![], vec![]];
        pair
    }

    /// Carries bytes until both are silent.
    fn run(&mut self) {
        loop {
            let moved = [0, 1].map(|from| self.carry(from));
            if moved == [false, false] {
                return;
            }
        }
    }

    fn carry(&mut self, from: usize) -> bool {
        let mut out = vec![];
        match self.over[from] {
            None => self.ends[from].transmit(&mut out),
            Some(_) => self.ends[from].farewell(&mut out),
        }
        if !out.is_empty() {
            self.give(1 - from, &out);
        }
        !out.is_empty()
    }

    fn give(&mut self, to: usize, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.over[to].is_none() {
            let (now, end) = (self.now, &mut self.ends[to]);
            let (part, rest) = bytes.split_at(bytes.len().min(end.read_bytes_max()));
            bytes = rest;
            let result = end.receive(now, part).and_then(|()| {
                while let Some(event) = end.poll(now)? {
                    self.events[to].push(event);
                }
                Ok(())
            });
            self.over[to] = result.err();
        }
    }

    /// Time passes for the ends of `awake`; what they send arrives at once.
    fn wait(&mut self, time: Duration, awake: &[usize]) {
        let end = self.now + time;
        while let Some(at) = awake.iter().filter_map(|index| self.ends[*index].deadline()).min() {
            if at > end {
                break;
            }
            self.now = at.max(self.now);
            for index in awake {
                if self.over[*index].is_none()
                    && self.ends[*index].deadline().is_some_and(|at| at <= self.now)
                {
                    self.over[*index] = self.ends[*index].timeout(self.now).err();
                }
            }
            if awake.len() == 2 { self.run() } else { self.lose(awake[0]) }
        }
        self.now = end;
    }

    /// What an end sends is lost.
    fn lose(&mut self, from: usize) {
        let mut out = vec![];
        self.ends[from].transmit(&mut out);
    }
}

fn reason(over: &Option<End>) -> Option<Refusal> {
    match over {
        Some(End::Refused { reason, .. } | End::RefusedByPeer(reason)) => Some(*reason),
        _ => None,
    }
}

#[test]
fn frames_of_all_channels_arrive_both_ways() {
    let mut pair = Pair::open();
    for from in [0, 1] {
        for channel in Channel::ALL {
            let length = if channel.is_urgent() { 1_000 } else { 100_000 };
            assert!(pair.ends[from].send(channel, Bytes::from(vec![from as u8; length])));
        }
    }
    pair.run();
    for events in &pair.events {
        let channels: Vec<_> = events
            .iter()
            .map(|event| match event {
                Event::Frame(channel, _) => *channel,
                Event::Hello(_) => panic!("one hello is enough"),
            })
            .collect();
        use Channel::{Broadcast, Claims, Exchange, Floor, Swim};
        assert_eq!(channels, [Swim, Broadcast, Claims, Exchange, Floor]);
    }
    assert_eq!(pair.ends.each_ref().map(Link::queued_bytes), [0, 0]);
}

#[test]
fn nothing_is_sent_before_the_handshake_is_over() {
    let now = Instant::now();
    let mut link = Link::dial(now, &config(1, 1, "e"), [1; 32], node(2), 1);
    assert!(!link.send(Channel::Claims, Bytes::new()));
}

#[test]
fn who_does_not_belong_here_is_refused_on_both_sides() {
    let mut newer = config(2, 1, "e");
    newer.hello.protocol = (PROTOCOL.1 + 1, PROTOCOL.1 + 1);
    for (other, expected) in [
        (config(2, 1, "staging"), Refusal::Env),
        (config(2, 9, "e"), Refusal::Key),
        (newer, Refusal::Incompatible),
        (config(1, 1, "e"), Refusal::Own),
    ] {
        let mut pair = Pair::new(config(1, 1, "e"), other);
        pair.run();
        assert_eq!(pair.over.each_ref().map(reason), [Some(expected); 2], "{:?}", pair.over);
        assert!(pair.events.iter().all(Vec::is_empty));
    }
}

#[test]
fn another_node_at_the_address_is_no_peer() {
    let now = Instant::now();
    let mut pair = Pair::new(config(1, 1, "e"), config(2, 1, "e"));
    pair.ends[0] = Link::dial(now, &config(1, 1, "e"), [1; 32], node(3), 1);
    pair.run();
    assert_eq!(reason(&pair.over[0]), Some(Refusal::Stranger));
    assert!(pair.events[1].is_empty(), "who dialled has proved nothing");
}

#[test]
fn the_greater_node_does_not_dial() {
    let mut pair = Pair::new(config(3, 1, "e"), config(2, 1, "e"));
    pair.run();
    assert_eq!(reason(&pair.over[1]), Some(Refusal::Turn));
}

#[test]
fn a_recorded_handshake_proves_nothing() {
    let mut pair = Pair::new(config(1, 1, "e"), config(2, 1, "e"));
    let mut recorded = vec![];
    let mut out = vec![];
    pair.ends[0].transmit(&mut out);
    recorded.extend_from_slice(&out);
    pair.give(1, &out);
    pair.carry(1);
    out.clear();
    pair.ends[0].transmit(&mut out);
    recorded.extend_from_slice(&out);
    pair.give(1, &out);
    assert_eq!(pair.events[1].len(), 1);

    let now = pair.now;
    pair.ends[1] = Link::accept(now, &config(2, 1, "e"), [3; 32]);
    pair.events[1].clear();
    pair.give(1, &recorded);
    assert_eq!(reason(&pair.over[1]), Some(Refusal::Malformed));
    assert!(pair.events[1].is_empty());
}

#[test]
fn a_refusal_after_the_handshake_is_told() {
    let mut pair = Pair::open();
    pair.ends[1].refuse(Refusal::Unknown);
    pair.over[1] = Some(End::Refused { reason: Refusal::Unknown, detail: String::new() });
    pair.run();
    assert_eq!(pair.over[0], Some(End::RefusedByPeer(Refusal::Unknown)));
    assert!(!pair.ends[0].send(Channel::Claims, Bytes::new()));
}

#[test]
fn a_handshake_has_its_time() {
    let now = Instant::now();
    let mut link = Link::accept(now, &config(1, 1, "e"), [1; 32]);
    assert_eq!(link.deadline(), Some(now + HANDSHAKE_MAX));
    assert_eq!(link.timeout(now), Ok(()));
    let end = link.timeout(now + HANDSHAKE_MAX).unwrap_err();
    assert_eq!(end, End::Refused { reason: Refusal::Slow, detail: String::new() });
}

#[test]
fn pings_measure_the_round_trip_and_keep_an_idle_link() {
    let mut pair = Pair::open();
    pair.wait(Duration::from_secs(60), &[0, 1]);
    assert_eq!(pair.over, [None, None]);
    assert_eq!(pair.ends[0].rtt(), Some(Duration::ZERO));

    let mut pair = Pair::open();
    let deadline = pair.ends[0].deadline().unwrap();
    pair.now = deadline;
    pair.ends[0].timeout(deadline).unwrap();
    let mut ping = vec![];
    pair.ends[0].transmit(&mut ping);
    pair.now += Duration::from_millis(30);
    pair.give(1, &ping);
    pair.carry(1);
    assert_eq!(pair.ends[0].rtt(), Some(Duration::from_millis(30)));
}

#[test]
fn a_dead_path_is_noticed_and_a_pause_of_our_own_is_not_one() {
    let mut pair = Pair::open();
    pair.wait(SILENCE_MAX - Duration::from_secs(1), &[0]);
    assert_eq!(pair.over[0], None);
    pair.wait(Duration::from_secs(2), &[0]);
    assert_eq!(pair.over[0], Some(End::Down(DownReason::Silent)));

    let mut pair = Pair::open();
    pair.wait(Duration::from_secs(5), &[0, 1]);
    let deadline = pair.ends[0].deadline().unwrap();
    pair.ends[0].timeout(deadline).unwrap();
    // The process stands still while the answer waits in the socket.
    pair.now = deadline + 5 * SILENCE_MAX;
    let now = pair.now;
    assert_eq!(pair.ends[0].timeout(now), Ok(()));
    pair.run();
    assert_eq!(pair.over, [None, None]);
}

/// One end does not read, because nobody takes what it got; both go on.
#[test]
fn an_end_that_is_busy_is_not_a_dead_path() {
    let mut pair = Pair::open();
    let now = pair.now;
    pair.ends[1].set_deaf(now, true);
    let mut unread = vec![];
    for _ in 0..60 {
        pair.now += Duration::from_secs(1);
        let now = pair.now;
        for index in [0, 1] {
            assert_eq!(pair.ends[index].timeout(now), Ok(()));
        }
        pair.ends[0].transmit(&mut unread);
        pair.carry(1);
    }
    let now = pair.now;
    pair.ends[1].set_deaf(now, false);
    pair.give(1, &unread);
    pair.wait(SILENCE_MAX / 2, &[0, 1]);
    assert_eq!(pair.over, [None, None]);
    pair.wait(3 * SILENCE_MAX, &[1]);
    assert_eq!(pair.over[1], Some(End::Down(DownReason::Silent)));
}

#[test]
fn a_full_queue_takes_no_more_and_keeps_what_it_has() {
    let mut pair = Pair::open();
    let body = Bytes::from(vec![5; FRAME_BYTES_MAX / 3]);
    let sent = (0..).take_while(|_| pair.ends[0].send(Channel::Exchange, body.clone())).count();
    assert!(sent >= 11 && pair.ends[0].queued_bytes() <= QUEUE_BYTES_MAX);
    assert!(pair.ends[0].send(Channel::Swim, Bytes::from_static(b"ping")), "membership has its own room");
    pair.run();
    assert_eq!(pair.events[1].len(), sent + 1);
}

#[test]
fn what_makes_no_sense_ends_the_link() {
    for piece in [&[CONTROL, 0, 1, PING][..], &[CONTROL, 0, 0], &[77, 0, 0]] {
        let mut pair = Pair::open();
        let mut out = vec![];
        let Stage::Open(transport) = &mut pair.ends[0].stage else { panic!("it is open") };
        transport.seal(piece, &mut out);
        pair.give(1, &out);
        assert!(matches!(pair.over[1], Some(End::Down(DownReason::Violation(_)))), "{:?}", pair.over);
    }
}

#[test]
fn a_control_message_of_a_later_version_is_passed_over() {
    let mut pair = Pair::open();
    let mut out = vec![];
    let Stage::Open(transport) = &mut pair.ends[0].stage else { panic!("it is open") };
    transport.seal(&[CONTROL, 0, 2, 99, 1], &mut out);
    pair.give(1, &out);
    assert_eq!(pair.over[1], None);
}

proptest! {
    #[test]
    fn any_bytes_before_the_proof_are_refused_or_kept_within_bounds(
        parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..12),
        honest in 0usize..300,
        dialed: bool,
    ) {
        let mut pair = Pair::new(config(1, 1, "e"), config(2, 1, "e"));
        let to = usize::from(!dialed);
        // As much of a good message as there may be.
        let mut good = vec![];
        pair.ends[0].transmit(&mut good);
        if dialed {
            pair.give(1, &good);
            good.clear();
            pair.ends[1].transmit(&mut good);
        }
        // Without the whole of its last tag, so that chance does not complete it.
        let honest = honest.min(good.len() - 16);
        pair.give(to, &good[..honest]);
        for part in parts {
            pair.give(to, &part);
            prop_assert!(pair.ends[to].held_bytes() <= READ_EARLY_BYTES);
            prop_assert!(pair.events[to].is_empty());
        }
    }

    #[test]
    fn any_plain_bytes_from_a_peer_are_taken_or_end_the_link(parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..500), 0..12)) {
        let mut pair = Pair::open();
        for part in parts {
            let mut out = vec![];
            let Stage::Open(transport) = &mut pair.ends[0].stage else { panic!("it is open") };
            transport.seal(&part, &mut out);
            pair.give(1, &out);
            prop_assert!(pair.ends[1].held_bytes() <= FRAME_BYTES_MAX + 2 * READ_BYTES);
        }
    }
}
