//! What one PUBLISH costs a shard from its received bytes to bytes that wait to be sent, by number of receivers.
//!
//! No kernel is involved: the shard is driven as `io` drives it. `mixed` spreads the receivers over all serializers and
//! framings, so the payload is transcoded twice and the event encoded three times, whatever the number of receivers.

mod support;

use common::ids::BootEpoch;
use common::transport::Framing;
use common::wire::encode::{self, Field};
use common::wire::message::code;
use common::wire::{Payload, Serializer};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use dataplane::shard::{ConnId, Shard};
use std::time::{Duration, Instant};
use support::{SERIALIZER, args, config, connect_by, frame, frame_by, is_measured, receive, shard};

/// How most clients come.
const PLAIN: (Framing, Serializer) = (Framing::RawSocket, SERIALIZER);

struct Bench {
    shard: Shard,
    now: Instant,
    connections: u32,
}

impl Bench {
    fn new() -> Self {
        let now = Instant::now();
        Self { shard: shard(config(0, 1, BootEpoch(1)), now), now, connections: 0 }
    }

    fn join(&mut self, by: (Framing, Serializer)) -> ConnId {
        self.connections += 1;
        let conn = ConnId { slot: self.connections, generation: 1 };
        let mut bytes = connect_by(&mut self.shard, self.now, conn, by, &[]);
        self.receive(conn, &mut bytes);
        conn
    }

    fn receive(&mut self, conn: ConnId, bytes: &mut [u8]) {
        receive(&mut self.shard, self.now, conn, bytes);
    }
}

fn fan_out(c: &mut Criterion) {
    let mut group = c.benchmark_group("fanout");
    for mixed in [false, true] {
        for receivers in [1u64, 100, 10_000] {
            let mut bench = Bench::new();
            let publisher = bench.join(PLAIN);
            for n in 0..receivers as usize {
                let serializer = if mixed { Serializer::ALL[n % 3] } else { SERIALIZER };
                let framing = if mixed && n % 2 == 1 { Framing::WebSocket } else { Framing::RawSocket };
                let conn = bench.join((framing, serializer));
                let mut bytes = frame_by((framing, serializer), |out| {
                    encode::id_dict_uri(serializer, out, code::SUBSCRIBE, 1, &[], "com.example.topic");
                });
                bench.receive(conn, &mut bytes);
            }
            let args = args();
            let mut publish = frame(|out| {
                let payload = Payload { args: Some(&args), kwargs: None };
                encode::publish(SERIALIZER, out, 1, &[], "com.example.topic", payload);
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
    let subscriptions: u64 = if is_measured() { 100_000 } else { 1_000 };
    let mut group = c.benchmark_group("patterns");
    let args = args();
    for policy in ["exact", "wildcard"] {
        let mut bench = Bench::new();
        let publisher = bench.join(PLAIN);
        let subscriber = bench.join(PLAIN);
        for n in 0..subscriptions {
            let uri = if policy == "exact" { format!("com.t.n{n}") } else { format!("com..n{n}") };
            let mut bytes = frame(|out| {
                let options = [("match", Field::Str(policy))];
                encode::id_dict_uri(SERIALIZER, out, code::SUBSCRIBE, n + 1, &options, &uri);
            });
            bench.receive(subscriber, &mut bytes);
        }
        let publish = |n: u64| {
            frame(|out| {
                let payload = Payload { args: Some(&args), kwargs: None };
                encode::publish(SERIALIZER, out, 1, &[], &format!("com.t.n{n}"), payload);
            })
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
