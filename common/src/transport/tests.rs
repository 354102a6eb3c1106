//! The framer against what was sent, however the stream is cut.

use proptest::prelude::*;

use super::*;
use crate::limits::{FRAGMENT_BYTES, FRAGMENTS_MAX, MESSAGE_BYTES_MAX, RAW_PING_BYTES_MAX};

/// A frame with its own payload.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Owned {
    Message(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(u16),
}

impl From<Frame<'_>> for Owned {
    fn from(frame: Frame<'_>) -> Self {
        match frame {
            Frame::Message(payload) => Self::Message(payload.to_vec()),
            Frame::Ping(payload) => Self::Ping(payload.to_vec()),
            Frame::Pong(payload) => Self::Pong(payload.to_vec()),
            Frame::Compressed(_) => unreachable!("compression was not agreed on"),
            Frame::Close { code } => Self::Close(code),
        }
    }
}

/// Feeds `stream` in parts of the given lengths, over and over, and then the rest; checks the memory held on the way.
fn receive(framer: &mut Framer, stream: &[u8], cuts: &[usize]) -> (Vec<Owned>, Result<(), FrameError>) {
    let mut frames = Vec::new();
    let mut received = stream.to_vec();
    let (mut rest, mut arrived) = (&mut received[..], 0);
    let mut cuts = cuts.iter().copied().chain(std::iter::repeat(stream.len()));
    while !rest.is_empty() {
        let cut = cuts.next().unwrap_or(1).clamp(1, rest.len());
        let mut chunk = rest.split_off_mut(..cut).expect("cut is within rest");
        arrived += cut;
        loop {
            match framer.next(&mut chunk) {
                Ok(Some(frame)) => frames.push(frame.into()),
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(framer.buffered_bytes(), 0, "a failed framer holds nothing");
                    return (frames, Err(error));
                }
            }
            assert!(framer.buffered_bytes() <= 2 * arrived, "memory grows with what arrived");
        }
        assert!(chunk.is_empty(), "None means that the chunk is used up");
        assert!(framer.buffered_bytes() <= 2 * arrived);
    }
    (frames, Ok(()))
}

fn websocket(serializer: Serializer, message_bytes_max: usize) -> Framer {
    Framer::new(Framing::WebSocket, Role::Server, serializer, message_bytes_max)
}

/// One raw frame of a WebSocket client.
fn client_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    write_client_frame(
        Framing::WebSocket,
        Serializer::MsgPack,
        FrameKind::Message,
        payload,
        [0xa5, 0x5a, 0xff, 0x01],
        &mut frame,
    );
    frame[0] = first;
    frame
}

/// The frames of `parts` joined, in one chunk and byte by byte: both must end alike.
fn outcome(framer: impl Fn() -> Framer, parts: &[Vec<u8>]) -> (Vec<Owned>, Result<(), FrameError>) {
    let stream = parts.concat();
    let whole = receive(&mut framer(), &stream, &[]);
    let single_bytes = receive(&mut framer(), &stream, &vec![1; stream.len()]);
    assert_eq!(whole, single_bytes);
    whole
}

fn text(parts: &[Vec<u8>]) -> (Vec<Owned>, Result<(), FrameError>) {
    outcome(|| websocket(Serializer::Json, 1 << 20), parts)
}

const FIN_TEXT: u8 = 0x81;
const FIN_BINARY: u8 = 0x82;
const TEXT: u8 = 0x01;
const CONTINUATION: u8 = 0x00;
const FIN_CONTINUATION: u8 = 0x80;
const CLOSE: u8 = 0x88;
const PING: u8 = 0x89;
const PONG: u8 = 0x8a;

#[test]
fn a_whole_frame_is_borrowed_from_the_chunk() {
    for framing in [Framing::RawSocket, Framing::WebSocket] {
        let mut stream = Vec::new();
        write_client_frame(framing, Serializer::Json, FrameKind::Message, b"[1]", [9; 4], &mut stream);
        let range = stream.as_ptr_range();
        let mut chunk = &mut stream[..];
        let mut framer = Framer::new(framing, Role::Server, Serializer::Json, 512);
        match framer.next(&mut chunk) {
            Ok(Some(Frame::Message(payload))) => {
                assert_eq!(payload, b"[1]");
                assert!(range.contains(&payload.as_ptr()));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(framer.buffered_bytes(), 0);
        assert_eq!(framer.next(&mut chunk), Ok(None));
    }
}

#[test]
fn a_gathered_frame_is_given_back_by_the_next_call() {
    let mut framer = Framer::new(Framing::RawSocket, Role::Server, Serializer::Cbor, 512);
    let (mut head, mut tail) = ([0, 0, 0, 3, 1], [2, 3]);
    assert_eq!(framer.next(&mut &mut head[..]), Ok(None));
    assert_eq!(framer.buffered_bytes(), 1);
    let mut chunk = &mut tail[..];
    assert_eq!(framer.next(&mut chunk), Ok(Some(Frame::Message(&[1, 2, 3]))));
    assert_eq!(framer.next(&mut chunk), Ok(None));
    assert_eq!(framer.buffered_bytes(), 0);
}

#[test]
fn an_announced_length_allocates_nothing() {
    let mut framer = Framer::new(Framing::RawSocket, Role::Server, Serializer::Json, MESSAGE_BYTES_MAX);
    assert_eq!(framer.next(&mut &mut [8, 0, 0, 0][..]), Ok(None));
    assert_eq!(framer.buffered_bytes(), 0);
    assert_eq!(framer.next(&mut &mut [0; 100][..]), Ok(None));
    assert_eq!(framer.buffered_bytes(), 100);
}

#[test]
fn limits_hold_before_the_payload_arrives_and_may_be_raised() {
    let mut framer = Framer::new(Framing::RawSocket, Role::Server, Serializer::Json, 512);
    assert_eq!(
        framer.next(&mut &mut [0, 0, 2, 1][..]),
        Err(FrameError::TooLarge { bytes: 513, bytes_max: 512 })
    );
    let mut framer = websocket(Serializer::MsgPack, 512);
    assert_eq!(
        framer.next(&mut &mut [0x82, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0][..]),
        Err(FrameError::TooLarge { bytes: u64::MAX >> 1, bytes_max: 512 })
    );
    let mut framer = websocket(Serializer::MsgPack, 512);
    framer.set_message_bytes_max(513);
    let mut frame = client_frame(FIN_BINARY, &[7; 513]);
    assert_eq!(framer.next(&mut &mut frame[..]), Ok(Some(Frame::Message(&[7; 513]))));
}

#[test]
fn fragments_count_together_against_the_limit() {
    let fragments = |sizes: &[usize]| {
        let mut parts: Vec<_> =
            sizes.iter().map(|&size| client_frame(CONTINUATION, &vec![b'x'; size])).collect();
        parts[0][0] = TEXT;
        parts.last_mut().expect("there are fragments")[0] |= 0x80;
        outcome(|| websocket(Serializer::Json, 512), &parts)
    };
    assert_eq!(fragments(&[256, 256]).0, [Owned::Message(vec![b'x'; 512])]);
    assert_eq!(fragments(&[256, 255, 2]).1, Err(FrameError::TooLarge { bytes: 513, bytes_max: 512 }));
}

#[test]
fn fragments_are_bounded_even_when_empty() {
    let mut parts = vec![client_frame(CONTINUATION, b""); FRAGMENTS_MAX as usize];
    parts[0][0] = TEXT;
    parts.last_mut().expect("there are fragments")[0] = FIN_CONTINUATION;
    assert_eq!(text(&parts).0, [Owned::Message(Vec::new())]);
    parts.insert(1, client_frame(CONTINUATION, b""));
    assert_eq!(text(&parts).1, Err(FrameError::Protocol("a message has too many fragments")));
}

#[test]
fn long_messages_may_have_as_many_fragments_as_their_bytes_pay_for() {
    let fragment_bytes = FRAGMENT_BYTES as usize;
    let mut parts = vec![client_frame(CONTINUATION, &vec![b'x'; fragment_bytes]); 4 * FRAGMENTS_MAX as usize];
    parts[0][0] = TEXT;
    parts.last_mut().expect("there are fragments")[0] = FIN_CONTINUATION;
    assert_eq!(text(&parts).0, [Owned::Message(vec![b'x'; parts.len() * fragment_bytes])]);
    for part in &mut parts[1..] {
        *part = client_frame(CONTINUATION, b"x");
    }
    assert_eq!(text(&parts).1, Err(FrameError::Protocol("a message has too many fragments")));
}

#[test]
fn control_frames_may_come_between_fragments() {
    let (frames, result) = text(&[
        client_frame(TEXT, b"one "),
        client_frame(PING, b"ping"),
        client_frame(CONTINUATION, b"two "),
        client_frame(PONG, b""),
        client_frame(FIN_CONTINUATION, b"three"),
        client_frame(CLOSE, b"\x03\xe8bye"),
    ]);
    assert_eq!(result, Ok(()));
    let expected = [
        Owned::Ping(b"ping".to_vec()),
        Owned::Pong(Vec::new()),
        Owned::Message(b"one two three".to_vec()),
        Owned::Close(1000),
    ];
    assert_eq!(frames, expected);
}

#[test]
fn the_rules_between_frames_are_kept() {
    let is_protocol = |parts: &[Vec<u8>]| matches!(text(parts).1, Err(FrameError::Protocol(_)));
    assert!(is_protocol(&[client_frame(CONTINUATION, b"x")]));
    assert!(is_protocol(&[client_frame(FIN_CONTINUATION, b"x")]));
    assert!(is_protocol(&[client_frame(TEXT, b"x"), client_frame(FIN_TEXT, b"y")]));
    assert!(is_protocol(&[client_frame(FIN_TEXT, b"x"), client_frame(FIN_CONTINUATION, b"y")]));
    assert!(is_protocol(&[client_frame(TEXT, b""), client_frame(0x08, b"")]));
}

#[test]
fn the_type_must_be_the_serializers() {
    let (_, result) = text(&[client_frame(FIN_BINARY, b"x")]);
    assert_eq!(result, Err(FrameError::WrongType { frame: "binary", expected: "text" }));
    let (_, result) = outcome(|| websocket(Serializer::Cbor, 512), &[client_frame(TEXT, b"x")]);
    assert_eq!(result, Err(FrameError::WrongType { frame: "text", expected: "binary" }));

    let mut framer = websocket(Serializer::Cbor, 512);
    framer.accept_any_type();
    for (first, is_text) in [(FIN_TEXT, true), (FIN_BINARY, false)] {
        assert_eq!(receive(&mut framer, &client_frame(first, b"x"), &[]).1, Ok(()));
        assert_eq!(framer.is_text(), is_text);
    }
}

#[test]
fn text_is_checked_as_soon_as_a_byte_is_wrong() {
    let mut framer = websocket(Serializer::Json, 512);
    let mut stream =
        [client_frame(TEXT, "\u{20ac}".as_bytes()), client_frame(CONTINUATION, b"ab\xf4\x90ccc")].concat();
    let end = stream.len() - 3;
    assert_eq!(framer.next(&mut &mut stream[..end]), Err(FrameError::Utf8), "the message has not ended");
}

#[test]
fn characters_may_be_cut_by_frames_but_not_by_the_end() {
    let smile = "\u{1f600}".as_bytes();
    let cut = |first: &[u8], second: &[u8]| {
        text(&[client_frame(TEXT, first), client_frame(PING, b"p"), client_frame(FIN_CONTINUATION, second)])
    };
    for at in 0..=4 {
        let (frames, result) = cut(&smile[..at], &smile[at..]);
        assert_eq!(result, Ok(()));
        assert_eq!(frames[1], Owned::Message(smile.to_vec()));
    }
    for end in 1..4 {
        assert_eq!(cut(&smile[..end], b"").1, Err(FrameError::Utf8));
        assert_eq!(text(&[client_frame(FIN_TEXT, &smile[..end])]).1, Err(FrameError::Utf8));
    }
    assert_eq!(cut(&smile[..2], b"a").1, Err(FrameError::Utf8));
    let (frames, result) = outcome(
        || websocket(Serializer::MsgPack, 512),
        &[
            client_frame(FIN_BINARY, b"\xff"),
            client_frame(0x02, b"\xc0"),
            client_frame(FIN_CONTINUATION, b"\xc1"),
        ],
    );
    assert_eq!((frames.len(), result), (2, Ok(())), "binary is not checked");
}

#[test]
fn nothing_is_read_after_a_close_or_an_error() {
    let (frames, result) = text(&[client_frame(CLOSE, b""), client_frame(FIN_TEXT, b"x"), vec![0xff; 9]]);
    assert_eq!((frames, result), (vec![Owned::Close(1005)], Ok(())));
    assert_eq!(text(&[client_frame(CLOSE, b"\x03")]).1.unwrap_err().close_code(), 1002);
    assert_eq!(text(&[client_frame(CLOSE, b"\x03\xee")]).1.unwrap_err().close_code(), 1002);
    assert_eq!(text(&[client_frame(CLOSE, b"\x03\xe8\xc0")]).1.unwrap_err().close_code(), 1007);

    let mut framer = websocket(Serializer::Json, 512);
    assert!(framer.next(&mut &mut client_frame(FIN_BINARY, b"x")[..]).is_err());
    assert!(framer.next(&mut &mut client_frame(FIN_TEXT, b"x")[..]).is_err());
}

#[test]
fn the_longest_rawsocket_message_passes() {
    let mut framer = Framer::new(Framing::RawSocket, Role::Client, Serializer::MsgPack, MESSAGE_BYTES_MAX);
    let mut stream = Vec::new();
    write_header(Framing::RawSocket, Serializer::MsgPack, FrameKind::Message, MESSAGE_BYTES_MAX, &mut stream);
    stream.resize(stream.len() + MESSAGE_BYTES_MAX, 7);
    assert_eq!(walk_own_frame(Framing::RawSocket, &stream), Some((stream.len(), 4)));
    assert_eq!(walk_own_frame(Framing::RawSocket, &stream[..stream.len() - 1]), None);
    let (frames, result) = receive(&mut framer, &stream, &[1, 2, 3, 1 << 20]);
    assert_eq!(result, Ok(()));
    assert!(matches!(&frames[..], [Owned::Message(payload)] if payload.len() == MESSAGE_BYTES_MAX));
    assert_eq!(framer.buffered_bytes(), 0);
}

/// What one side sends: the frame, and for a WebSocket client where to cut the message into fragments.
fn sent() -> impl Strategy<Value = (FrameKind, Vec<u8>, Vec<usize>)> {
    let kind =
        prop_oneof![6 => Just(FrameKind::Message), 1 => Just(FrameKind::Ping), 1 => Just(FrameKind::Pong)];
    let payload = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..140),
        "\\PC{0,40}".prop_map(String::into_bytes),
        (0usize..70_000).prop_map(|bytes| vec![b'm'; bytes]),
    ];
    (kind, payload, prop::collection::vec(any::<usize>(), 0..4)).prop_map(|(kind, mut payload, cuts)| {
        if kind != FrameKind::Message {
            payload.truncate(125);
        }
        (kind, payload, cuts)
    })
}

fn cut_lengths() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![
        Just(Vec::new()),
        Just(vec![1; 4_096]),
        prop::collection::vec(1usize..20, 0..500),
        prop::collection::vec(1usize..3_000, 0..100),
    ]
}

/// Appends a client's message in fragments, with a ping after each but the last; returns the frames to expect.
fn write_fragments(payload: &[u8], cuts: &[usize], is_text: bool, stream: &mut Vec<u8>) -> Vec<Owned> {
    let mut cuts: Vec<_> = cuts.iter().map(|cut| cut % (payload.len() + 1)).collect();
    cuts.sort_unstable();
    let mut expected = Vec::new();
    let mut start = 0;
    for &cut in &cuts {
        let opcode = if start == 0 && expected.is_empty() { 2 - u8::from(is_text) } else { CONTINUATION };
        stream.extend(client_frame(opcode, &payload[start..cut]));
        stream.extend(client_frame(PING, b"between"));
        expected.push(Owned::Ping(b"between".to_vec()));
        start = cut;
    }
    let opcode = if cuts.is_empty() { 2 - u8::from(is_text) } else { CONTINUATION };
    stream.extend(client_frame(0x80 | opcode, &payload[start..]));
    expected.push(Owned::Message(payload.to_vec()));
    expected
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_cut_yields_what_was_sent(
        sent in prop::collection::vec(sent(), 0..12),
        cuts in cut_lengths(),
        is_websocket: bool,
        is_client: bool,
        serializer in prop::sample::select(&Serializer::ALL[..]),
        mask: [u8; 4],
    ) {
        let framing = if is_websocket { Framing::WebSocket } else { Framing::RawSocket };
        let role = if is_client { Role::Client } else { Role::Server };
        let is_text = is_websocket && serializer.is_text();
        let (mut stream, mut expected) = (Vec::new(), Vec::new());
        for (kind, mut payload, fragments) in sent {
            if is_text && kind == FrameKind::Message {
                payload = String::from_utf8_lossy(&payload).into_owned().into_bytes();
            }
            if role == Role::Client {
                write_header(framing, serializer, kind, payload.len(), &mut stream);
                stream.extend_from_slice(&payload);
            } else if is_websocket && kind == FrameKind::Message {
                expected.extend(write_fragments(&payload, &fragments, is_text, &mut stream));
                continue;
            } else {
                write_client_frame(framing, serializer, kind, &payload, mask, &mut stream);
            }
            expected.push(match kind {
                FrameKind::Message => Owned::Message(payload),
                FrameKind::Ping => Owned::Ping(payload),
                FrameKind::Pong => Owned::Pong(payload),
                FrameKind::Close => unreachable!("not generated"),
            });
        }
        let mut framer = Framer::new(framing, role, serializer, 1 << 20);
        let (frames, result) = receive(&mut framer, &stream, &cuts);
        prop_assert_eq!(result, Ok(()));
        prop_assert_eq!(frames, expected);
        prop_assert_eq!(framer.buffered_bytes(), 0);
    }

    #[test]
    fn random_bytes_end_alike_however_cut(
        mut stream in prop::collection::vec(any::<u8>(), 0..300),
        first in prop::option::of(prop::sample::select(&[0u8, 1, 2, 0x01, FIN_TEXT, FIN_BINARY, PING, CLOSE][..])),
        cuts in cut_lengths(),
        is_websocket: bool,
        is_client: bool,
        serializer in prop::sample::select(&Serializer::ALL[..]),
    ) {
        if let (Some(first), Some(octet)) = (first, stream.first_mut()) {
            *octet = first;
        }
        let framing = if is_websocket { Framing::WebSocket } else { Framing::RawSocket };
        let role = if is_client { Role::Client } else { Role::Server };
        let framer = || Framer::new(framing, role, serializer, RAW_PING_BYTES_MAX);
        let whole = receive(&mut framer(), &stream, &[]);
        prop_assert_eq!(receive(&mut framer(), &stream, &cuts), whole);
    }

    #[test]
    fn our_frames_are_walked_as_written(
        payloads in prop::collection::vec(prop_oneof![0usize..130, 65_530usize..65_540], 1..5),
        is_websocket: bool,
    ) {
        let framing = if is_websocket { Framing::WebSocket } else { Framing::RawSocket };
        let mut stream = Vec::new();
        for &payload_bytes in &payloads {
            let before = stream.len();
            write_header(framing, Serializer::Json, FrameKind::Message, payload_bytes, &mut stream);
            prop_assert!(stream.len() - before <= HEADER_BYTES_MAX);
            stream.resize(stream.len() + payload_bytes, 0);
        }
        let mut rest = &stream[..];
        for &payload_bytes in &payloads {
            let (frame_bytes, payload_start) = walk_own_frame(framing, rest).expect("a whole frame");
            prop_assert_eq!(frame_bytes - payload_start, payload_bytes);
            prop_assert_eq!(walk_own_frame(framing, &rest[..frame_bytes - 1]), None);
            rest = &rest[frame_bytes..];
        }
        prop_assert!(rest.is_empty());
        prop_assert_eq!(walk_own_frame(framing, rest), None);
    }
}

#[test]
fn a_frame_made_in_place_is_the_frame_written_in_order() {
    for framing in [Framing::RawSocket, Framing::WebSocket] {
        for serializer in Serializer::ALL {
            for bytes in [0, 1, 125, 126, 127, 65_535, 65_536, 100_000] {
                let message: Vec<u8> = (0..bytes).map(|at| at as u8).collect();
                let mut expected = b"before".to_vec();
                write_header(framing, serializer, FrameKind::Message, bytes, &mut expected);
                expected.extend_from_slice(&message);
                let mut out = b"before".to_vec();
                out.extend_from_slice(&[0; HEADER_ROOM]);
                out.extend_from_slice(&message);
                finish_frame(framing, serializer, 6, &mut out);
                assert!(out == expected, "{framing:?} {serializer:?} {bytes}");
            }
        }
    }
}
