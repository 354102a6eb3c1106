//! What calls cost a shard that are not the plain ones, as multiples of a call to a single callee: CPU time from the received
//! CALL to a RESULT that waits to be sent.
//!
//! - A call to a registration that 1,000 callees share, by each policy. A part of it is that 1,000 sessions are touched where
//!   a plain call touches one, so calls to 1,000 procedures of 1,000 sessions are measured too.
//! - A progressive result, over the half of a plain call: one message each.
//!
//! No kernel is involved: one shard is driven as `io` drives it, with caller and callees on it. What is compared is measured by
//! turns, and the median of the rounds' ratios is printed.

use common::config::{Config, Listener, Transport};
use common::ids::{BootEpoch, RealmId, ShardId, SnapshotVersion};
use common::share::Invoke;
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

const CALLEES: u32 = 1_000;
const URI: &str = "com.example.procedure";
const SERIALIZER: Serializer = Serializer::MsgPack;

/// In place of an invocation's id: as long as the longest, and found again to be overwritten.
const PLACE: u64 = (1 << 53) - 1;
const PLACE_BYTES: [u8; 9] = [0xcf, 0, 0x1f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];

/// Who is called.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Callees {
    /// So many, who share one registration.
    Shared(u32, Invoke),
    /// So many, each with a procedure of its own.
    Own(u32),
}

struct Bench {
    shard: Shard,
    now: Instant,
    caller: ConnId,
    /// By turns.
    calls: Vec<Vec<u8>>,
    turn: usize,
    answer: Answer,
    progress: Answer,
    /// Invocations so far, by slot.
    invoked: Vec<u64>,
}

/// A YIELD, to be numbered.
struct Answer {
    bytes: Vec<u8>,
    id_at: usize,
}

impl Answer {
    fn new(options: &[(&str, Field<'_>)], payload: Payload<'_>) -> Self {
        let bytes = frame(|out| encode::yield_(SERIALIZER, out, PLACE, options, payload));
        let id = bytes.windows(PLACE_BYTES.len()).position(|bytes| bytes == PLACE_BYTES).expect("an id");
        Self { bytes, id_at: id + 1 }
    }

    fn number(&mut self, request: u64) -> &mut [u8] {
        self.bytes[self.id_at..self.id_at + 8].copy_from_slice(&request.to_be_bytes());
        &mut self.bytes
    }
}

impl Bench {
    fn new(callees: Callees, options: &[(&str, Field<'_>)]) -> Self {
        let now = Instant::now();
        let mut shard = shard(now);
        let caller = join(&mut shard, now, 0);
        let (count, invoke) = match callees {
            Callees::Shared(count, invoke) => (count, invoke),
            Callees::Own(count) => (count, Invoke::Single),
        };
        let uri = |slot: u32| match callees {
            Callees::Shared(..) => URI.to_owned(),
            Callees::Own(_) => format!("{URI}{slot}"),
        };
        for slot in 1..=count {
            let callee = join(&mut shard, now, slot);
            let mut register = frame(|out| {
                let options = [("invoke", Field::Str(invoke.name()))];
                encode::id_dict_uri(SERIALIZER, out, code::REGISTER, 1, &options, &uri(slot));
            });
            receive(&mut shard, now, callee, &mut register);
        }
        let mut args = Vec::new();
        OwnedValue::List(vec![OwnedValue::Str("x".repeat(128))]).encode(SERIALIZER, &mut args);
        let payload = Payload { args: Some(&args), kwargs: None };
        let call = |slot| frame(|out| encode::call(SERIALIZER, out, 1, options, &uri(slot), payload));
        let calls = if matches!(callees, Callees::Own(_)) { count } else { 1 };
        Self {
            shard,
            now,
            caller,
            calls: (1..=calls).map(call).collect(),
            turn: 0,
            answer: Answer::new(&[], payload),
            progress: Answer::new(&[("progress", Field::Bool(true))], payload),
            invoked: vec![0; count as usize + 1],
        }
    }

    /// A call. Its callee, and the id it knows the call by.
    fn call(&mut self) -> (ConnId, u64) {
        self.turn = (self.turn + 1) % self.calls.len();
        let bytes = &mut self.calls[self.turn];
        let callee = receive(&mut self.shard, self.now, self.caller, bytes).expect("one is invoked");
        assert_ne!(callee, self.caller, "the call is not refused");
        let invoked = &mut self.invoked[callee.slot as usize];
        *invoked += 1;
        (callee, *invoked)
    }

    fn answer(&mut self, (callee, request): (ConnId, u64)) {
        let answered = receive(&mut self.shard, self.now, callee, self.answer.number(request));
        assert_eq!(answered, Some(self.caller), "the caller gets the result");
    }

    /// CPU time of a call and its answer, nanoseconds.
    fn round(&mut self, calls: u32) -> f64 {
        let start = cpu_time();
        for _ in 0..calls {
            let invocation = self.call();
            self.answer(invocation);
        }
        (cpu_time() - start).as_nanos() as f64 / f64::from(calls)
    }

    /// CPU time of a progressive result, nanoseconds.
    fn progress_round(&mut self, results: u32) -> f64 {
        let (callee, request) = self.call();
        let start = cpu_time();
        for _ in 0..results {
            let told = receive(&mut self.shard, self.now, callee, self.progress.number(request));
            assert_eq!(told, Some(self.caller), "the caller gets the result");
        }
        let time = (cpu_time() - start).as_nanos() as f64 / f64::from(results);
        self.answer((callee, request));
        time
    }
}

fn shard(now: Instant) -> Shard {
    let defaults = Config::default();
    let listener =
        Listener { transport: Transport::RawSocket, path: String::new(), ..defaults.listeners[0].clone() };
    let config = ShardConfig {
        shard: ShardId(0),
        shards: 1,
        cpu: 0,
        epoch: BootEpoch(1),
        listeners: vec![listener],
        limits: defaults.limits,
        timeouts: defaults.timeouts,
        slow_receiver: defaults.slow_receiver,
        resume: ResumeConfig::new(&defaults.resume, 1, [1; 32]),
        relay: None,
        http: None,
        memory_max: defaults.memory.max,
        seed: 1,
    };
    let realm = Realm {
        id: RealmId::of("realm1"),
        name: "realm1".to_owned(),
        strict: false,
        uri_strict: false,
        anonymous: Anonymous::Loopback,
        rules: vec![],
        histories: vec![],
    };
    let source = Source {
        version: SnapshotVersion(1),
        epoch: BootEpoch(1),
        claims_folded: vec![0],
        realms: vec![realm],
        ..Source::default()
    };
    let bytes = bytes::Bytes::from_owner(build(&source, 1));
    let snapshot = Snapshot::check(bytes).expect("a built snapshot is valid");
    let mut shard = Shard::new(config, now);
    shard.feed(now, FeedDown::Snapshot(Arc::new(snapshot)));
    shard
}

fn join(shard: &mut Shard, now: Instant, slot: u32) -> ConnId {
    let conn = ConnId { slot, generation: 1 };
    assert!(shard.accept(now, conn, 0, IpAddr::V4(Ipv4Addr::LOCALHOST)));
    let hello = rawsocket::Handshake { serializer: SERIALIZER, message_bytes_max: 1 << 24 };
    let mut bytes = rawsocket::write(hello).to_vec();
    let role = OwnedValue::Dict(vec![]);
    let roles = ["caller", "callee"].map(|name| (name.to_owned(), role.clone())).to_vec();
    let roles = OwnedValue::Dict(roles);
    bytes.extend_from_slice(&frame(|out| {
        encode::uri_dict(SERIALIZER, out, code::HELLO, "realm1", &[("roles", Field::Value(&roles))]);
    }));
    receive(shard, now, conn, &mut bytes);
    conn
}

/// Hands bytes over and sends what there is. The connection that was sent to last.
fn receive(shard: &mut Shard, now: Instant, conn: ConnId, bytes: &mut [u8]) -> Option<ConnId> {
    shard.receive(now, conn, bytes);
    let mut last = None;
    while let Some(output) = shard.poll() {
        let Output::Send(conn) = output else { panic!("nothing but sends is expected, not {output:?}") };
        let buf = shard.take_send(conn);
        shard.sent(now, conn, buf, true);
        last = Some(conn);
    }
    while shard.take_feed().is_some() {}
    last
}

fn frame(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let (mut message, mut out) = (Vec::new(), Vec::new());
    write(&mut message);
    write_client_frame(Framing::RawSocket, SERIALIZER, FrameKind::Message, &message, [0; 4], &mut out);
    out
}

fn cpu_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// The median of the rounds' ratios, and that of what they are ratios to, nanoseconds.
fn compare(rounds: usize, mut round: impl FnMut() -> (f64, f64)) -> (f64, f64) {
    let rounds: Vec<(f64, f64)> = (0..=rounds).map(|_| round()).skip(1).collect();
    let median = |mut of: Vec<f64>| {
        of.sort_by(f64::total_cmp);
        of[of.len() / 2]
    };
    let ratios = rounds.iter().map(|(one, other)| one / other).collect();
    (median(ratios), median(rounds.iter().map(|(_, other)| *other).collect()))
}

fn main() {
    let is_bench = std::env::args().any(|arg| arg == "--bench");
    let (rounds, calls, callees) = if is_bench { (31, 20_000, CALLEES) } else { (1, 100, 10) };
    let mut plain = Bench::new(Callees::Own(1), &[]);
    let mut own = Bench::new(Callees::Own(callees), &[]);
    let (ratio, ns) = compare(rounds, || (own.round(calls), plain.round(calls)));
    println!("a call to one of {callees} procedures of as many sessions, over 1: {ratio:.2} (1: {ns:.0} ns)");
    for invoke in Invoke::ALL.into_iter().skip(1) {
        let mut shared = Bench::new(Callees::Shared(callees, invoke), &[]);
        let (ratio, ns) = compare(rounds, || (shared.round(calls), plain.round(calls)));
        let (to_own, _) = compare(rounds, || (shared.round(calls), own.round(calls)));
        let name = invoke.name();
        println!(
            "{name:<28} {callees} callees over 1: {ratio:.2} (1: {ns:.0} ns), over {callees}: {to_own:.2}"
        );
    }
    let mut progress = Bench::new(Callees::Own(1), &[("receive_progress", Field::Bool(true))]);
    let (ratio, ns) = compare(rounds, || (progress.progress_round(calls), plain.round(calls) / 2.0));
    println!("a progressive result over half a plain call: {ratio:.2} ({ns:.0} ns)");
}
