//! For how long a session with many subscriptions stops its shard when it leaves, or loses its connection, waits for its client, is
//! resumed and ends in the end, and many sessions that are killed at once.
//!
//! `cargo bench --bench leaving` has 10,000 subscriptions, of one session and of 1,000; `cargo test`, a tenth. Each turn of the shard is timed
//! alone, in CPU time of its thread, with what it hands to another shard and to the link thread.

use common::config::{Config, Listener, Transport};
use common::ids::{BootEpoch, RealmId, ShardId, SnapshotVersion};
use common::snapshot::{Anonymous, Realm, Snapshot, Source, build};
use common::transport::{FrameKind, Framing, rawsocket, write_client_frame};
use common::wire::encode::{self, Field};
use common::wire::message::code;
use common::wire::{OwnedValue, Payload, Serializer};
use dataplane::feed::FeedDown;
use dataplane::shard::{ConnId, Output, ResumeConfig, Shard, ShardConfig};
use rustix::time::{ClockId, clock_gettime};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

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
    let args: Vec<_> = std::env::args().collect();
    let measure = args.iter().any(|arg| arg == "--bench") && !args.iter().any(|arg| arg == "--test");
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
        let shards = (0..SHARDS).map(|shard| Shard::new(config(shard), now)).collect();
        let mut bench = Self { shards, now, got: Vec::new() };
        let source = Source {
            version: SnapshotVersion(1),
            epoch: BootEpoch(1),
            claims_folded: vec![0; SHARDS],
            realms: vec![Realm {
                id: RealmId::of("realm1"),
                name: "realm1".to_owned(),
                strict: false,
                uri_strict: false,
                anonymous: Anonymous::Loopback,
                rules: vec![],
                histories: vec![],
            }],
            ..Source::default()
        };
        let bytes = bytes::Bytes::from_owner(build(&source, 1));
        let snapshot = Arc::new(Snapshot::check(bytes).expect("a built snapshot is valid"));
        for shard in &mut bench.shards {
            shard.feed(now, FeedDown::Snapshot(snapshot.clone()));
        }
        bench
    }

    fn join(&mut self, conn: ConnId) {
        self.join_with(conn, &[]);
    }

    /// `more`: what HELLO says besides roles.
    fn join_with(&mut self, conn: ConnId, more: &[(&str, Field<'_>)]) {
        let mut bytes = self.hello(conn, more);
        self.shards[0].receive(self.now, conn, &mut bytes);
        self.settle();
    }

    /// A connection, and what its client says first.
    fn hello(&mut self, conn: ConnId, more: &[(&str, Field<'_>)]) -> Vec<u8> {
        assert!(self.shards[0].accept(self.now, conn, 0, IpAddr::V4(Ipv4Addr::LOCALHOST)));
        let serializer = Serializer::MsgPack;
        let mut bytes =
            rawsocket::write(rawsocket::Handshake { serializer, message_bytes_max: 1 << 24 }).to_vec();
        let roles = OwnedValue::dict(["subscriber", "caller"].map(|role| (role, OwnedValue::Dict(vec![]))));
        frame(&mut bytes, |out| {
            let details: Vec<_> = more.iter().copied().chain([("roles", Field::Value(&roles))]).collect();
            encode::uri_dict(serializer, out, code::HELLO, "realm1", &details);
        });
        bytes
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
        let mut bytes = Vec::new();
        frame(&mut bytes, |out| {
            encode::id_dict_uri(Serializer::MsgPack, out, code::SUBSCRIBE, request, &[], topic);
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
                Output::Park(_) => {}
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
        let mut bytes = Vec::new();
        frame(&mut bytes, |out| {
            let payload = Payload { args: None, kwargs: None };
            encode::call(Serializer::MsgPack, out, 1, &[], "wamp.session.kill_all", payload);
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
    /// The connection breaks, events are kept, the client comes back by another one, which breaks too, and the session ends. The
    /// turns of its shard in all that, but those of the events.
    fn resume(&mut self, subscriptions: usize, (session, token): (u64, String)) -> Vec<Duration> {
        let mut turns = Vec::new();
        self.timed(&mut turns, |shard, now| shard.closed(now, CONN));
        let other = ConnId { slot: 2, generation: 3 };
        self.join(other);
        for request in 1..=KEPT {
            let mut bytes = Vec::new();
            frame(&mut bytes, |out| {
                let payload = Payload { args: Some(&[0x90]), kwargs: None };
                encode::publish(
                    Serializer::MsgPack,
                    out,
                    request,
                    &[],
                    "com.example.topics.number.1",
                    payload,
                );
            });
            self.timed(&mut Vec::new(), |shard, now| _ = shard.receive(now, other, &mut bytes));
        }
        let again = ConnId { slot: 1, generation: 2 };
        let more = [("resume-session", Field::UInt(session)), ("resume-token", Field::Str(&token))];
        let mut bytes = self.hello(again, &more);
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
        let welcome = OwnedValue::decode(Serializer::MsgPack, &self.got[at..]).expect("a message");
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

fn config(shard: usize) -> ShardConfig {
    let defaults = Config::default();
    let listener =
        Listener { transport: Transport::RawSocket, path: String::new(), ..defaults.listeners[0].clone() };
    let mut limits = defaults.limits.clone();
    limits.subscriptions_max = limits.subscriptions_max.max(FULL as u32);
    ShardConfig {
        shard: ShardId(shard as u8),
        shards: SHARDS,
        cpu: 0,
        epoch: BootEpoch(1),
        listeners: vec![listener],
        limits,
        timeouts: defaults.timeouts.clone(),
        slow_receiver: defaults.slow_receiver.clone(),
        resume: ResumeConfig::new(&defaults.resume, SHARDS, [1; 32]),
        relay: None,
        http: None,
        memory_max: defaults.memory.max,
        seed: 1,
    }
}

fn frame(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let mut message = Vec::new();
    write(&mut message);
    write_client_frame(Framing::RawSocket, Serializer::MsgPack, FrameKind::Message, &message, [0; 4], out);
}

/// CPU time of this thread.
fn cpu_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}
