//! What a frame costs: taking whole frames out of a received chunk, writing headers, and checking a URI.
//!
//! One iteration handles a chunk of 64 frames, so criterion's "elements" are frames.

use std::hint::black_box;
use std::time::Duration;

use common::transport::{
    Frame, FrameKind, Framer, Framing, HEADER_BYTES_MAX, Role, write_client_frame, write_header,
};
use common::uri::{UriRule, is_valid};
use common::wire::Serializer;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

const FRAMES: usize = 64;
const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// Takes every frame of `chunk` and adds up their lengths.
fn drain(framer: &mut Framer, mut chunk: &mut [u8]) -> usize {
    let mut bytes = 0;
    while let Some(frame) = framer.next(&mut chunk).expect("the frames are valid") {
        if let Frame::Message(payload) = black_box(frame) {
            bytes += payload.len();
        }
    }
    bytes
}

fn client_frames(framing: Framing, serializer: Serializer, payload_bytes: usize) -> Vec<u8> {
    let payload = vec![b'7'; payload_bytes];
    let mut stream = Vec::new();
    for index in 0..FRAMES as u8 {
        let mask = [index, 0xa5, 0x3c, 0x5a];
        write_client_frame(framing, serializer, FrameKind::Message, &payload, mask, &mut stream);
    }
    stream
}

fn take_frames(c: &mut Criterion) {
    let kinds = [
        ("rawsocket", Framing::RawSocket, Serializer::MsgPack),
        ("websocket_binary", Framing::WebSocket, Serializer::MsgPack),
        ("websocket_text", Framing::WebSocket, Serializer::Json),
    ];
    for (name, framing, serializer) in kinds {
        let mut group = c.benchmark_group(format!("framing/take/{name}"));
        group.throughput(Throughput::Elements(FRAMES as u64));
        for payload_bytes in [16, 128, 1_024, 16_384] {
            let mut framer = Framer::new(framing, Role::Server, serializer, MESSAGE_BYTES_MAX);
            let stream = client_frames(framing, serializer, payload_bytes);
            assert_eq!(drain(&mut framer, &mut stream.clone()), FRAMES * payload_bytes);
            group.bench_function(payload_bytes.to_string(), |b| {
                // Frames are unmasked in place, so every iteration needs its own copy.
                b.iter_batched_ref(
                    || stream.clone(),
                    |stream| drain(&mut framer, stream),
                    BatchSize::SmallInput,
                );
            });
        }
        group.finish();
    }
}

fn write_headers(c: &mut Criterion) {
    let mut group = c.benchmark_group("framing/write_header");
    group.throughput(Throughput::Elements(FRAMES as u64));
    for (name, framing) in [("rawsocket", Framing::RawSocket), ("websocket", Framing::WebSocket)] {
        let mut out = Vec::with_capacity(FRAMES * HEADER_BYTES_MAX);
        group.bench_function(name, |b| {
            b.iter(|| {
                out.clear();
                for _ in 0..FRAMES {
                    write_header(framing, Serializer::Json, FrameKind::Message, black_box(128), &mut out);
                }
                black_box(&out);
            });
        });
    }
    group.finish();
}

fn check_uris(c: &mut Criterion) {
    let mut group = c.benchmark_group("framing/uri");
    for uri in ["com.myapp.topic1", "com.example.device.4711.telemetry.temperature"] {
        group.bench_function(uri.len().to_string(), |b| b.iter(|| is_valid(black_box(uri), UriRule::Loose)));
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = take_frames, write_headers, check_uris
}
criterion_main!(benches);
