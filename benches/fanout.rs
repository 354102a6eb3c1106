//! What one PUBLISH costs a shard from its received bytes to bytes that wait to be sent, by number of receivers.
//!
//! No kernel is involved: the shard is driven as `io` drives it. `mixed` spreads the receivers over all serializers and
//! framings, so the payload is transcoded twice and the event encoded three times, whatever the number of receivers.

use common::config::{Config, Listener, Transport};
use common::ids::{BootEpoch, RealmId, ShardId, SnapshotVersion};
use common::snapshot::{Anonymous, Realm, Snapshot, Source, build};
use common::transport::{FrameKind, Framing, rawsocket, upgrade, write_client_frame};
use common::wire::encode::{self, Field};
use common::wire::message::code;
use common::wire::{OwnedValue, Payload, Serializer};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use dataplane::feed::FeedDown;
use dataplane::shard::{ConnId, Output, ResumeConfig, Shard, ShardConfig};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

struct Bench {
    shard: Shard,
    now: Instant,
    connections: u32,
}

impl Bench {
    fn new() -> Self {
        let now = Instant::now();
        let defaults = Config::default();
        let listener = |transport| Listener {
            transport,
            path: if transport == Transport::WebSocket { "/ws".to_owned() } else { String::new() },
            ..defaults.listeners[0].clone()
        };
        let config = ShardConfig {
            shard: ShardId(0),
            shards: 1,
            cpu: 0,
            epoch: BootEpoch(1),
            listeners: vec![listener(Transport::RawSocket), listener(Transport::WebSocket)],
            limits: defaults.limits.clone(),
            timeouts: defaults.timeouts.clone(),
            slow_receiver: defaults.slow_receiver.clone(),
            resume: ResumeConfig::new(&defaults.resume, 1, [1; 32]),
            relay: None,
            http: None,
            memory_max: defaults.memory.max,
            seed: 1,
        };
        let source = Source {
            version: SnapshotVersion(1),
            epoch: BootEpoch(1),
            claims_folded: vec![0],
            nodes_folded: 0,
            realms: vec![Realm {
                id: RealmId::of("realm1"),
                name: "realm1".to_owned(),
                strict: false,
                uri_strict: false,
                anonymous: Anonymous::Loopback,
                rules: vec![],
                histories: vec![],
            }],
            routes: vec![],
            ..Source::default()
        };
        let bytes = bytes::Bytes::from_owner(build(&source, 1));
        let snapshot = Snapshot::check(bytes).expect("a built snapshot is valid");
        let mut shard = Shard::new(config, now);
        shard.feed(now, FeedDown::Snapshot(Arc::new(snapshot)));
        Self { shard, now, connections: 0 }
    }

    fn join(&mut self, framing: Framing, serializer: Serializer) -> ConnId {
        self.connections += 1;
        let conn = ConnId { slot: self.connections, generation: 1 };
        assert!(self.shard.accept(self.now, conn, framing as usize, IpAddr::V4(Ipv4Addr::LOCALHOST)));
        let mut bytes = Vec::new();
        match framing {
            Framing::RawSocket => {
                let hello = rawsocket::Handshake { serializer, message_bytes_max: 1 << 24 };
                bytes.extend_from_slice(&rawsocket::write(hello));
            }
            _ => upgrade::write_request("node", "/ws", serializer, [1; 16], &mut bytes),
        }
        let role = OwnedValue::Dict(vec![]);
        let roles = OwnedValue::Dict(
            ["publisher", "subscriber"].map(|name| (name.to_owned(), role.clone())).to_vec(),
        );
        frame(framing, serializer, &mut bytes, |out| {
            encode::uri_dict(serializer, out, code::HELLO, "realm1", &[("roles", Field::Value(&roles))]);
        });
        self.receive(conn, &mut bytes);
        conn
    }

    fn receive(&mut self, conn: ConnId, bytes: &mut [u8]) {
        self.shard.receive(self.now, conn, bytes);
        while let Some(output) = self.shard.poll() {
            let Output::Send(conn) = output else { panic!("nothing but sends is expected, not {output:?}") };
            let buf = self.shard.take_send(conn);
            self.shard.sent(self.now, conn, buf, true);
        }
    }
}

fn frame(framing: Framing, serializer: Serializer, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let mut message = Vec::new();
    write(&mut message);
    write_client_frame(framing, serializer, FrameKind::Message, &message, [0; 4], out);
}

fn fan_out(c: &mut Criterion) {
    let mut group = c.benchmark_group("fanout");
    for mixed in [false, true] {
        for receivers in [1u64, 100, 10_000] {
            let mut bench = Bench::new();
            let (framing, serializer) = (Framing::RawSocket, Serializer::MsgPack);
            let publisher = bench.join(framing, serializer);
            for n in 0..receivers as usize {
                let serializer = if mixed { Serializer::ALL[n % 3] } else { serializer };
                let framing = if mixed && n % 2 == 1 { Framing::WebSocket } else { framing };
                let conn = bench.join(framing, serializer);
                let mut bytes = Vec::new();
                frame(framing, serializer, &mut bytes, |out| {
                    encode::id_dict_uri(serializer, out, code::SUBSCRIBE, 1, &[], "com.example.topic");
                });
                bench.receive(conn, &mut bytes);
            }
            let mut args = Vec::new();
            OwnedValue::List(vec![OwnedValue::Str("x".repeat(128))]).encode(serializer, &mut args);
            let mut publish = Vec::new();
            frame(framing, serializer, &mut publish, |out| {
                let payload = Payload { args: Some(&args), kwargs: None };
                encode::publish(serializer, out, 1, &[], "com.example.topic", payload);
            });
            group.throughput(Throughput::Elements(receivers));
            let name = if mixed { "mixed" } else { "one" };
            group.bench_function(format!("{name}/{receivers}"), |b| {
                b.iter(|| bench.receive(publisher, &mut publish));
            });
        }
    }
    group.finish();
}

/// What a publication costs whose one subscriber has it by one of very many wildcard patterns, beside one that has it by its
/// topic: over topics that the route cache holds, and over more than it does.
fn patterns(c: &mut Criterion) {
    // `cargo test` goes through it once, with few.
    let subscriptions: u64 = if std::env::args().any(|arg| arg == "--bench") { 100_000 } else { 1_000 };
    let (framing, serializer) = (Framing::RawSocket, Serializer::MsgPack);
    let mut group = c.benchmark_group("patterns");
    let mut args = Vec::new();
    OwnedValue::List(vec![OwnedValue::Str("x".repeat(128))]).encode(serializer, &mut args);
    for policy in ["exact", "wildcard"] {
        let mut bench = Bench::new();
        let publisher = bench.join(framing, serializer);
        let subscriber = bench.join(framing, serializer);
        for n in 0..subscriptions {
            let uri = if policy == "exact" { format!("com.t.n{n}") } else { format!("com..n{n}") };
            let mut bytes = Vec::new();
            frame(framing, serializer, &mut bytes, |out| {
                let options = [("match", Field::Str(policy))];
                encode::id_dict_uri(serializer, out, code::SUBSCRIBE, n + 1, &options, &uri);
            });
            bench.receive(subscriber, &mut bytes);
        }
        let publish = |n: u64| {
            let mut bytes = Vec::new();
            frame(framing, serializer, &mut bytes, |out| {
                let payload = Payload { args: Some(&args), kwargs: None };
                encode::publish(serializer, out, 1, &[], &format!("com.t.n{n}"), payload);
            });
            bytes
        };
        for topics in [subscriptions / 100, subscriptions] {
            let mut messages: Vec<_> = (0..topics).map(publish).collect();
            let mut next = 0;
            group.throughput(Throughput::Elements(1));
            group.bench_function(format!("{policy}/{topics}_topics"), |b| {
                b.iter(|| {
                    next = (next + 1) % messages.len();
                    bench.receive(publisher, &mut messages[next]);
                });
            });
        }
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = fan_out, patterns
}
criterion_main!(benches);
