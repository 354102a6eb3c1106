//! What a call to a registration that 1,000 callees share costs a shard, as a multiple of a call to a single callee: CPU time from
//! the received CALL to a RESULT that waits to be sent.
//!
//! No kernel is involved: one shard is driven as `io` drives it, with caller and callees on it. The two are measured by turns, and
//! the median of the rounds' ratios is printed for each policy.

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

struct Bench {
    shard: Shard,
    now: Instant,
    caller: ConnId,
    call: Vec<u8>,
    args: Vec<u8>,
    /// Invocations so far, by slot.
    invoked: Vec<u64>,
}

impl Bench {
    fn new(callees: u32, invoke: Invoke) -> Self {
        let now = Instant::now();
        let mut shard = shard(now);
        let caller = join(&mut shard, now, 0);
        for slot in 1..=callees {
            let callee = join(&mut shard, now, slot);
            let mut register = frame(|out| {
                let options = [("invoke", Field::Str(invoke.name()))];
                encode::id_dict_uri(SERIALIZER, out, code::REGISTER, 1, &options, URI);
            });
            receive(&mut shard, now, callee, &mut register);
        }
        let mut args = Vec::new();
        OwnedValue::List(vec![OwnedValue::Str("x".repeat(128))]).encode(SERIALIZER, &mut args);
        let call = frame(|out| {
            let payload = Payload { args: Some(&args), kwargs: None };
            encode::call(SERIALIZER, out, 1, &[], URI, payload);
        });
        Self { shard, now, caller, call, args, invoked: vec![0; callees as usize + 1] }
    }

    /// A call and its answer.
    fn call(&mut self) {
        let mut bytes = self.call.clone();
        let callee = receive(&mut self.shard, self.now, self.caller, &mut bytes).expect("one is invoked");
        assert_ne!(callee, self.caller, "the call is not refused");
        let invoked = &mut self.invoked[callee.slot as usize];
        *invoked += 1;
        let request = *invoked;
        let mut answer = frame(|out| {
            let payload = Payload { args: Some(&self.args), kwargs: None };
            encode::yield_(SERIALIZER, out, request, &[], payload);
        });
        let answered = receive(&mut self.shard, self.now, callee, &mut answer);
        assert_eq!(answered, Some(self.caller), "the caller gets the result");
    }

    /// CPU time of so many calls.
    fn round(&mut self, calls: u32) -> Duration {
        let start = cpu_time();
        (0..calls).for_each(|_| self.call());
        cpu_time() - start
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

fn main() {
    let is_bench = std::env::args().any(|arg| arg == "--bench");
    let (rounds, calls, callees) = if is_bench { (31, 20_000, CALLEES) } else { (1, 100, 10) };
    let mut plain = Bench::new(1, Invoke::Single);
    plain.round(calls);
    for invoke in Invoke::ALL.into_iter().skip(1) {
        let mut shared = Bench::new(callees, invoke);
        shared.round(calls);
        let round = |_| {
            let (one, many) = (plain.round(calls), shared.round(calls));
            (many.as_secs_f64() / one.as_secs_f64(), one.as_nanos() / u128::from(calls))
        };
        let mut ratios: Vec<(f64, u128)> = (0..rounds).map(round).collect();
        ratios.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (ratio, ns) = ratios[ratios.len() / 2];
        println!("{:<28} {callees} callees over 1: {ratio:.2} (1: {ns} ns a call)", invoke.name());
    }
}
