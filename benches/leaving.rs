//! For how long a session with many subscriptions stops its shard when it leaves, or loses its connection, waits for its client, is
//! resumed and ends in the end; and for how long many sessions do that are killed at once, or told that the node shuts down.
//!
//! `cargo bench --bench leaving` has 10,000 subscriptions, of one session and of 1,000, and 10,000 sessions; `cargo test`, a tenth.
//! Each turn of the shard is timed alone, in CPU time of its thread, with what it hands to another shard and to the link thread.

mod support;

use common::config::Config;
use common::ids::{BootEpoch, ShardId};
use common::wire::encode::{self, Field};
use common::wire::message::code;
use common::wire::{OwnedValue, Payload};
use dataplane::feed::FeedDown;
use dataplane::shard::{ConnId, Output, Shard};
use std::time::{Duration, Instant};
use support::cpu_time::cpu_time;
use support::{SERIALIZER, config, connect, frame, is_measured};

const FULL: usize = 10_000;
const SMOKE: usize = 1_000;
/// Times a session comes and leaves.
const ROUNDS: usize = 20;
/// What no turn may take, when it is measured.
const TURN_MAX: Duration = Duration::from_millis(1);
/// Events for a session that waits.
const KEPT: u64 = 1_000;
const SHARDS: usize = 2;
/// Subscriptions of each of many sessions.
const OF_EACH: usize = 10;
const CONN: ConnId = ConnId { slot: 0, generation: 1 };

fn main() {
    let measure = is_measured();
    let (subscriptions, rounds) = if measure { (FULL, ROUNDS) } else { (SMOKE, 2) };
    for heard in [false, true] {
        let mut turns = Vec::new();
        for _ in 0..rounds {
            let mut bench = Bench::new();
            if heard {
                bench.listen();
            }
            bench.join(CONN);
            bench.subscribe(subscriptions);
            turns.extend(bench.leave(subscriptions));
        }
        let name = if heard { "and each is told of" } else { "and nobody listens" };
        report(&format!("a session with {subscriptions} subscriptions leaves {name}"), turns, measure);
    }
    let mut turns = Vec::new();
    for _ in 0..rounds {
        let mut bench = Bench::new();
        bench.join_with(CONN, &[("resumable", Field::Bool(true))]);
        let token = bench.token();
        bench.subscribe(subscriptions);
        turns.extend(bench.resume(subscriptions, token));
    }
    report(
        &format!("a session with {subscriptions} subscriptions waits, is resumed and ends"),
        turns,
        measure,
    );
    let sessions = subscriptions / OF_EACH;
    let mut turns = Vec::new();
    for _ in 0..rounds {
        let mut bench = Bench::new();
        bench.join(CONN);
        for session in 0..sessions as u32 {
            let conn = ConnId { slot: session + 1, generation: session + 2 };
            bench.join(conn);
            for n in 1..=OF_EACH {
                bench.ask(conn, n as u64, &format!("com.example.topics.{session}.{n}"));
            }
            bench.settle();
        }
        turns.extend(bench.kill_all(sessions));
    }
    report(
        &format!("{sessions} sessions with {OF_EACH} subscriptions each are killed at once"),
        turns,
        measure,
    );
    drains(subscriptions, rounds, measure);
}

fn drains(sessions: usize, rounds: usize, measure: bool) {
    let mut turns = Vec::new();
    for _ in 0..rounds {
        let mut bench = Bench::new();
        for session in 0..sessions as u32 {
            bench.join(ConnId { slot: session, generation: session + 1 });
        }
        turns.extend(bench.drain(sessions));
    }
    report(&format!("a shard with {sessions} sessions drains and nobody answers"), turns, measure);
}

fn report(what: &str, mut turns: Vec<Duration>, measure: bool) {
    turns.sort_unstable();
    let at = |share: usize| turns[(turns.len() - 1) * share / 1_000].as_micros();
    println!(
        "{what}: {} turns, µs of CPU: p50 {}, p90 {}, p99 {}, longest {}",
        turns.len(),
        at(500),
        at(900),
        at(990),
        at(1_000),
    );
    // One of many turns may be charged for an interrupt.
    let share = turns.iter().filter(|turn| **turn > TURN_MAX).count();
    assert!(!measure || share * 1_000 <= turns.len(), "{share} turns took more than {TURN_MAX:?}");
}

struct Bench {
    shards: Vec<Shard>,
    now: Instant,
    /// What was sent last.
    got: Vec<u8>,
}

impl Bench {
    fn new() -> Self {
        let now = Instant::now();
        Self { shards: (0..SHARDS).map(|index| shard(index, now)).collect(), now, got: Vec::new() }
    }

    fn join(&mut self, conn: ConnId) {
        self.join_with(conn, &[]);
    }

    /// `more`: what HELLO says besides roles.
    fn join_with(&mut self, conn: ConnId, more: &[(&str, Field<'_>)]) {
        let mut bytes = connect(&mut self.shards[0], self.now, conn, more);
        self.shards[0].receive(self.now, conn, &mut bytes);
        self.settle();
    }

    /// A session that hears of the end of every subscription.
    fn listen(&mut self) {
        let conn = ConnId { slot: 1, generation: 2 };
        self.join(conn);
        self.ask(conn, 1, "wamp.subscription.on_delete");
        self.settle();
    }

    fn subscribe(&mut self, subscriptions: usize) {
        for n in 1..=subscriptions {
            self.ask(CONN, n as u64, &format!("com.example.topics.number.{n}"));
            if n % 500 == 0 {
                self.settle();
            }
        }
        self.settle();
    }

    fn ask(&mut self, conn: ConnId, request: u64, topic: &str) {
        let mut bytes = frame(|out| {
            encode::id_dict_uri(SERIALIZER, out, code::SUBSCRIBE, request, &[], topic);
        });
        self.shards[0].receive(self.now, conn, &mut bytes);
    }

    /// Lets everything under way arrive.
    fn settle(&mut self) {
        loop {
            let mut moved = false;
            for from in 0..SHARDS {
                self.turn(from);
                for to in self.shards[from].mesh_ready().iter() {
                    let batch = self.shards[from].take_batch(to);
                    self.shards[to.index()].mesh_in(self.now, ShardId(from as u8), batch);
                    moved = true;
                }
            }
            if !moved {
                return;
            }
        }
    }

    /// What a turn hands on.
    fn turn(&mut self, shard: usize) -> bool {
        let shard = &mut self.shards[shard];
        let mut closed = false;
        while let Some(output) = shard.poll() {
            match output {
                Output::Send(conn) => {
                    let buf = shard.take_send(conn);
                    self.got = buf.segments.iter().flat_map(|segment| segment.as_slice()).copied().collect();
                    shard.sent(self.now, conn, buf, true);
                }
                Output::Close(conn) => closed |= conn == CONN,
                Output::Park(_) | Output::ShutdownWrite(_) => {}
                other => panic!("{other:?} is not expected"),
            }
        }
        while shard.take_feed().is_some() {}
        closed
    }

    /// The connection closes. The turns of its shard until it is forgotten.
    fn leave(&mut self, subscriptions: usize) -> Vec<Duration> {
        let mut turns = Vec::new();
        loop {
            let start = cpu_time();
            if turns.is_empty() {
                self.shards[0].closed(self.now, CONN);
            } else {
                self.shards[0].timeout(self.now);
            }
            let closed = self.turn(0);
            for to in self.shards[0].mesh_ready().iter() {
                let batch = self.shards[0].take_batch(to);
                turns.push(cpu_time() - start);
                self.shards[to.index()].mesh_in(self.now, ShardId(0), batch);
            }
            if closed {
                return turns;
            }
            assert!(turns.len() <= subscriptions, "it leaves in the end");
        }
    }
}

impl Bench {
    /// The first session kills the others. The turns of their shard until they have left all topics.
    fn kill_all(&mut self, sessions: usize) -> Vec<Duration> {
        let mut bytes = frame(|out| {
            let payload = Payload { args: None, kwargs: None };
            encode::call(SERIALIZER, out, 1, &[], "wamp.session.kill_all", payload);
        });
        let mut turns = Vec::new();
        loop {
            let start = cpu_time();
            if turns.is_empty() {
                self.shards[0].receive(self.now, CONN, &mut bytes);
            } else {
                self.shards[0].timeout(self.now);
            }
            self.turn(0);
            for to in self.shards[0].mesh_ready().iter() {
                let batch = self.shards[0].take_batch(to);
                turns.push(cpu_time() - start);
                self.shards[to.index()].mesh_in(self.now, ShardId(0), batch);
            }
            if self.shards[0].deadline() != Some(self.now) {
                return turns;
            }
            assert!(turns.len() <= sessions, "they end in the end");
        }
    }
}

impl Bench {
    /// The turns until the last session was told, and then those until all are closed because nobody has answered.
    fn drain(&mut self, sessions: usize) -> Vec<Duration> {
        let mut turns = Vec::new();
        self.timed(&mut turns, |shard, now| shard.feed(now, FeedDown::Drain));
        while !self.shards[0].is_drained() {
            assert!(turns.len() <= sessions, "it is drained in the end");
            match self.shards[0].deadline() {
                Some(at) => self.now = self.now.max(at),
                None => panic!("there is something to wait for"),
            }
            self.timed(&mut turns, |shard, now| shard.timeout(now));
        }
        turns
    }

    /// The connection breaks, events are kept, the client comes back by another one, which breaks too, and the session ends. The
    /// turns of its shard in all that, but those of the events.
    fn resume(&mut self, subscriptions: usize, (session, token): (u64, String)) -> Vec<Duration> {
        let mut turns = Vec::new();
        self.timed(&mut turns, |shard, now| shard.closed(now, CONN));
        let other = ConnId { slot: 2, generation: 3 };
        self.join(other);
        for request in 1..=KEPT {
            let mut bytes = frame(|out| {
                let payload = Payload { args: Some(&[0x90]), kwargs: None };
                encode::publish(SERIALIZER, out, request, &[], "com.example.topics.number.1", payload);
            });
            self.timed(&mut Vec::new(), |shard, now| _ = shard.receive(now, other, &mut bytes));
        }
        let again = ConnId { slot: 1, generation: 2 };
        let more = [("resume-session", Field::UInt(session)), ("resume-token", Field::Str(&token))];
        let mut bytes = connect(&mut self.shards[0], self.now, again, &more);
        self.timed(&mut turns, |shard, now| _ = shard.receive(now, again, &mut bytes));
        assert!(self.got.len() > KEPT as usize * 10, "the client gets WELCOME and what was kept");
        self.timed(&mut turns, |shard, now| shard.closed(now, again));
        self.now += Config::default().resume.window * 2;
        let mut count = 0;
        while !self.timed(&mut turns, |shard, now| shard.timeout(now)) {
            count += 1;
            assert!(count <= subscriptions, "it ends in the end");
        }
        turns
    }

    /// The session and token in the WELCOME that was sent last.
    fn token(&self) -> (u64, String) {
        let at = self.got.windows(2).position(|bytes| bytes == [0x93, 2]).expect("WELCOME");
        let welcome = OwnedValue::decode(SERIALIZER, &self.got[at..]).expect("a message");
        let [_, session, details] = welcome.as_list().expect("a list") else { panic!("{welcome:?}") };
        let mut details = details.as_dict().expect("details").iter();
        let token = details.find(|(key, _)| key == "resume-token").and_then(|(_, token)| token.as_str());
        (session.as_u64().expect("an id"), token.expect("a token").to_owned())
    }

    /// One turn. True: the slot of the session is given up.
    fn timed(&mut self, turns: &mut Vec<Duration>, act: impl FnOnce(&mut Shard, Instant)) -> bool {
        let start = cpu_time();
        act(&mut self.shards[0], self.now);
        let closed = self.turn(0);
        let batches: Vec<_> =
            self.shards[0].mesh_ready().iter().map(|to| (to, self.shards[0].take_batch(to))).collect();
        turns.push(cpu_time() - start);
        for (to, batch) in batches {
            self.shards[to.index()].mesh_in(self.now, ShardId(0), batch);
        }
        closed
    }
}

/// A shard that lets a session have so many subscriptions.
fn shard(index: usize, now: Instant) -> Shard {
    let mut config = config(index, SHARDS, BootEpoch(1));
    config.limits.subscriptions_max = config.limits.subscriptions_max.max(FULL as u32);
    support::shard(config, now)
}
