//! What a message costs in the codecs: to parse, to write, to check a payload, and to transcode one.
//!
//! `cargo bench --bench wire` measures; without `--bench`, as in `cargo test`, each case runs once and checks its result.
//! Two payloads of each size: `text`, one string, which costs little but its UTF-8 check, and `tree`, records of small values.

use common::wire::{Message, OwnedValue, Payload, Serializer, decode, encode, transcode};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use std::time::Duration;

const SIZES: [(&str, usize); 4] = [("16B", 16), ("128B", 128), ("1KiB", 1_024), ("64KiB", 65_536)];
const TOPIC: &str = "com.example.sensor.temperature";
/// A request id in the middle of a session.
const REQUEST: u64 = 123_456;
/// Ids of a router are large: hashes and random numbers of 53 bits.
const SUBSCRIPTION: u64 = 7_245_987_345_987_345;
const PUBLICATION: u64 = 3_987_234_598_723_459;

fn text(bytes: usize) -> OwnedValue {
    OwnedValue::list(["signalbox ".chars().cycle().take(bytes).collect::<String>()])
}

fn tree(bytes: usize) -> OwnedValue {
    // About 60 bytes a record in the binary formats.
    let record = |index: usize| {
        OwnedValue::dict([
            ("id", OwnedValue::from(index)),
            ("name", OwnedValue::from(format!("sensor-{index}"))),
            ("value", OwnedValue::from(index as f64 * 0.1)),
            ("ok", OwnedValue::from(true)),
            ("tags", OwnedValue::list(["a", "b"])),
        ])
    };
    OwnedValue::List((0..bytes.div_ceil(60)).map(record).collect())
}

fn publish(serializer: Serializer, args: &OwnedValue) -> Vec<u8> {
    let mut out = Vec::new();
    let args = args.to_bytes(serializer);
    encode::publish(serializer, &mut out, REQUEST, &[], TOPIC, Payload { args: Some(&args), kwargs: None });
    out
}

fn parse(criterion: &mut Criterion) {
    for (kind, make) in [("text", text as fn(usize) -> OwnedValue), ("tree", tree)] {
        let mut group = criterion.benchmark_group(format!("parse/publish/{kind}"));
        for serializer in Serializer::ALL {
            for (name, bytes) in SIZES {
                let message = publish(serializer, &make(bytes));
                let parsed = decode(serializer, &message).expect("the bench writes messages");
                assert!(matches!(parsed, Message::Publish { topic, .. } if topic == TOPIC));
                group.throughput(Throughput::Bytes(message.len() as u64));
                group.bench_function(BenchmarkId::new(serializer.format(), name), |bencher| {
                    bencher.iter(|| decode(serializer, black_box(&message)));
                });
            }
        }
        group.finish();
    }
}

fn parse_small(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("parse/small");
    for serializer in Serializer::ALL {
        let mut subscribe = Vec::new();
        let prefix = [("match", encode::Field::Str("prefix"))];
        encode::id_dict_uri(serializer, &mut subscribe, 32, REQUEST, &prefix, TOPIC);
        group.bench_function(BenchmarkId::new(serializer.format(), "subscribe+match"), |bencher| {
            bencher.iter(|| {
                let Ok(Message::Subscribe { options, .. }) = decode(serializer, black_box(&subscribe)) else {
                    unreachable!("the bench wrote a SUBSCRIBE");
                };
                options.get("match").is_some_and(|policy| policy.as_str() == Some("prefix"))
            });
        });
        let mut yielded = Vec::new();
        encode::yield_(serializer, &mut yielded, REQUEST, &[], Payload::default());
        group.bench_function(BenchmarkId::new(serializer.format(), "yield"), |bencher| {
            bencher.iter(|| decode(serializer, black_box(&yielded)));
        });
    }
    group.finish();
}

fn write(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encode/event");
    for serializer in Serializer::ALL {
        for (name, bytes) in SIZES {
            let args = text(bytes).to_bytes(serializer);
            let payload = Payload { args: Some(&args), kwargs: None };
            let mut out = Vec::new();
            encode::event(serializer, &mut out, SUBSCRIPTION, PUBLICATION, &[], payload);
            assert!(matches!(decode(serializer, &out), Ok(Message::Event { .. })));
            group.throughput(Throughput::Bytes(out.len() as u64));
            group.bench_function(BenchmarkId::new(serializer.format(), name), |bencher| {
                bencher.iter(|| {
                    out.clear();
                    encode::event(
                        black_box(serializer),
                        &mut out,
                        black_box(SUBSCRIPTION),
                        black_box(PUBLICATION),
                        &[],
                        black_box(payload),
                    );
                    out.len()
                });
            });
        }
        let mut out = Vec::new();
        group.bench_function(BenchmarkId::new(serializer.format(), "topic-detail"), |bencher| {
            bencher.iter(|| {
                out.clear();
                let details = [("topic", encode::Field::Str(black_box(TOPIC)))];
                encode::event(
                    serializer,
                    &mut out,
                    black_box(SUBSCRIPTION),
                    black_box(PUBLICATION),
                    &details,
                    Payload::default(),
                );
                out.len()
            });
        });
        group.bench_function(BenchmarkId::new(serializer.format(), "published"), |bencher| {
            bencher.iter(|| {
                out.clear();
                encode::ids(serializer, &mut out, 17, black_box(&[REQUEST, PUBLICATION]));
                out.len()
            });
        });
    }
    group.finish();
}

fn transcoding(criterion: &mut Criterion) {
    for (kind, make) in [("text", text as fn(usize) -> OwnedValue), ("tree", tree)] {
        let mut group = criterion.benchmark_group(format!("transcode/{kind}"));
        for from in Serializer::ALL {
            for to in Serializer::ALL.into_iter().filter(|to| *to != from) {
                for (name, bytes) in SIZES {
                    let value = make(bytes);
                    let source = value.to_bytes(from);
                    let mut out = Vec::new();
                    transcode::value(from, &source, to, &mut out).expect("every tree has all forms");
                    assert_eq!(out, value.to_bytes(to));
                    group.throughput(Throughput::Bytes(source.len() as u64));
                    let pair = format!("{}-{}", from.format(), to.format());
                    group.bench_function(BenchmarkId::new(pair, name), |bencher| {
                        bencher.iter(|| {
                            out.clear();
                            transcode::value(from, black_box(&source), to, &mut out)
                        });
                    });
                }
            }
        }
        group.finish();
    }
}

criterion_group! {
    name = wire;
    config = Criterion::default()
        .sample_size(30)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(600));
    targets = parse, parse_small, write, transcoding
}
criterion_main!(wire);
