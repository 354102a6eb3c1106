//! What is compressed reads back, and what is made to hurt is stopped.

use super::super::{Frame, Framer, Framing, Role, write_message};
use super::*;
use crate::wire::Serializer;
use proptest::prelude::*;

/// What a client receives, message by message.
fn received(stream: &[u8], window_bits: u8, context_takeover: bool) -> Vec<Vec<u8>> {
    let mut stream = stream.to_vec();
    let mut chunk = &mut stream[..];
    let mut framer = Framer::new(Framing::WebSocket, Role::Client, Serializer::Cbor, MESSAGE_BYTES_MAX);
    framer.accept_compressed();
    let mut inflater = Inflater::new(window_bits);
    let mut messages = Vec::new();
    while let Some(frame) = framer.next(&mut chunk).expect("right") {
        messages.push(match frame {
            Frame::Message(message) => message.to_vec(),
            Frame::Compressed(payload) => {
                if !context_takeover {
                    inflater.reset();
                }
                let mut out = Vec::new();
                inflater.inflate(payload, MESSAGE_BYTES_MAX, &mut out).expect("right");
                out
            }
            other => panic!("{other:?}"),
        });
    }
    messages
}

fn frames(messages: &[Vec<u8>]) -> Vec<u8> {
    let mut frames = Vec::new();
    for message in messages {
        write_message(Framing::WebSocket, Serializer::Cbor, message, &mut frames);
    }
    frames
}

/// The compressed form of `message`, without context.
fn deflated(message: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    Deflater::new(9, 15).deflate(message, &mut out);
    out
}

#[test]
fn the_examples_of_the_rfc_are_read() {
    // RFC 7692, 7.2.3: one block, its second copy with and without takeover, no compression, BFINAL, two blocks.
    let hello = [0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];
    let mut inflater = Inflater::new(15);
    let mut inflate = |payload: &[u8], reset: bool| {
        if reset {
            inflater.reset();
        }
        let mut out = Vec::new();
        inflater.inflate(payload, 100, &mut out).map(|()| out)
    };
    assert_eq!(inflate(&hello, true), Ok(b"Hello".to_vec()));
    assert_eq!(inflate(&[0xf2, 0x00, 0x11, 0x00, 0x00], false), Ok(b"Hello".to_vec()));
    assert_eq!(inflate(&hello, false), Ok(b"Hello".to_vec()));
    let stored = [0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00];
    assert_eq!(inflate(&stored, true), Ok(b"Hello".to_vec()));
    let ended = [0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00];
    assert_eq!(inflate(&ended, true), Ok(b"Hello".to_vec()));
    assert_eq!(inflate(&hello, false), Ok(b"Hello".to_vec()), "another message after an ended stream");
    let two = [0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00];
    assert_eq!(inflate(&two, true), Ok(b"Hello".to_vec()));
    assert_eq!(inflate(&[0x00], true), Ok(Vec::new()), "an empty message");
}

#[test]
fn nothing_beyond_the_bound_is_held() {
    let bomb = deflated(&vec![0; 64 << 20]);
    assert!(bomb.len() < 70_000, "{} bytes", bomb.len());
    for bytes_max in [0, 1, 4_095, 4_096, 1 << 20] {
        let mut out = Vec::new();
        let refused = Inflater::new(15).inflate(&bomb, bytes_max, &mut out);
        assert_eq!(refused, Err(FrameError::TooLarge { bytes: bytes_max as u64 + 1, bytes_max }));
        assert!(out.capacity() <= 2 * bytes_max + 2 * STEP_BYTES, "{} for {bytes_max}", out.capacity());
    }
}

#[test]
fn a_message_may_be_as_long_as_the_bound_and_no_longer() {
    for bytes in [1, STEP_BYTES - 1, STEP_BYTES, STEP_BYTES + 1, 100_000] {
        let payload = deflated(&vec![7; bytes]);
        let mut out = Vec::new();
        assert_eq!(Inflater::new(15).inflate(&payload, bytes, &mut out), Ok(()));
        assert_eq!(out.len(), bytes);
        let refused = Inflater::new(15).inflate(&payload, bytes - 1, &mut Vec::new());
        assert_eq!(refused, Err(FrameError::TooLarge { bytes: bytes as u64, bytes_max: bytes - 1 }));
    }
}

#[test]
fn broken_streams_are_refused() {
    for broken in [&[0xff; 16][..], &[0x07], &[0xf2, 0x00, 0x11, 0x00, 0x00]] {
        let result = Inflater::new(15).inflate(broken, 1 << 20, &mut Vec::new());
        assert_eq!(result, Err(FrameError::Compression), "{broken:?}");
    }
}

#[test]
fn what_does_not_get_shorter_goes_as_it_is() {
    let mut random = fastrand_like(1);
    let noise: Vec<u8> = (0..1_000).map(|_| random()).collect();
    let messages = [noise, vec![b'x'; DEFLATE_BYTES_MIN - 1]];
    let plain = frames(&messages);
    let mut out = Vec::new();
    Deflater::new(6, 15).compress_frames(&plain, false, &mut out);
    assert_eq!(out, plain);
}

/// A small generator: the crate needs no random numbers but here.
fn fastrand_like(seed: u64) -> impl FnMut() -> u8 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    }
}

#[test]
fn a_thorough_compressor_leaves_nothing_as_it_is() {
    let mut random = fastrand_like(3);
    let noise: Vec<u8> = (0..300).map(|_| random()).collect();
    let messages = [vec![], b"x".to_vec(), noise, vec![], vec![]];
    for context_takeover in [false, true] {
        let mut deflater = Deflater::new(6, 15);
        deflater.be_thorough();
        let mut out = Vec::new();
        deflater.compress_frames(&frames(&messages), context_takeover, &mut out);
        let mut rest = &out[..];
        while let Some((start, payload_bytes)) = websocket::walk_own_header(rest) {
            assert_ne!(rest[0] & websocket::COMPRESSED_BIT, 0);
            rest = &rest[start + payload_bytes..];
        }
        assert_eq!(received(&out, 15, context_takeover), messages);
    }
}

#[test]
fn a_frame_is_not_compressed_twice() {
    let plain = frames(&[vec![b'x'; 1_000], vec![b'y'; 1_000]]);
    let (mut once, mut twice) = (Vec::new(), Vec::new());
    Deflater::new(6, 15).compress_frames(&plain, false, &mut once);
    assert!(once.len() < plain.len() / 10);
    Deflater::new(6, 15).compress_frames(&once, false, &mut twice);
    assert_eq!(once, twice);
}

#[test]
fn context_makes_the_second_message_shorter() {
    let mut random = fastrand_like(2);
    let noise: Vec<u8> = (0..2_000).map(|_| random()).collect();
    let plain = frames(&[noise.clone(), noise]);
    let mut out = Vec::new();
    Deflater::new(6, 15).compress_frames(&plain, true, &mut out);
    assert!(out.len() < 2_200, "{} bytes", out.len());
    assert_eq!(received(&out, 15, true).len(), 2);
}

fn message() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..400),
        "[a-e]{0,3000}".prop_map(String::into_bytes),
        (0usize..20_000, any::<u8>()).prop_map(|(bytes, byte)| vec![byte; bytes]),
    ]
}

proptest! {
    #[test]
    fn every_message_arrives(
        messages in prop::collection::vec(message(), 0..8),
        level in 1u8..=9,
        window_bits in 9u8..=15,
        context_takeover: bool,
    ) {
        let mut out = Vec::new();
        Deflater::new(level, window_bits).compress_frames(&frames(&messages), context_takeover, &mut out);
        prop_assert_eq!(received(&out, window_bits, context_takeover), messages);
    }

    #[test]
    fn any_payload_is_inflated_within_the_bound_or_refused(
        payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..6),
        bytes_max in 0usize..10_000,
    ) {
        let mut inflater = Inflater::new(15);
        for payload in payloads {
            let mut out = vec![1, 2, 3];
            match inflater.inflate(&payload, bytes_max, &mut out) {
                Ok(()) => prop_assert!(out.len() <= bytes_max + 3),
                Err(_) => inflater.reset(),
            }
            prop_assert!(out.starts_with(&[1, 2, 3]));
        }
    }
}
