//! Our WebSocket frames against an implementation we did not write: what one writes the other reads, and both accept
//! and refuse the same sequences of frames.

use std::io::{Cursor, Error, ErrorKind, Read, Result, Write};

use proptest::prelude::*;
use tungstenite::protocol::frame::CloseFrame;
use tungstenite::protocol::{self, Message};
use tungstenite::{Bytes, WebSocket};

use super::*;

/// A connection that receives `input`, then nothing for now, and remembers what was sent.
struct Memory {
    input: Cursor<Vec<u8>>,
    output: Vec<u8>,
}

impl Read for Memory {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        match self.input.read(buffer)? {
            0 => Err(Error::from(ErrorKind::WouldBlock)),
            bytes => Ok(bytes),
        }
    }
}

impl Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        self.output.write(bytes)
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

fn other(role: Role, input: &[u8]) -> WebSocket<Memory> {
    let role = match role {
        Role::Server => protocol::Role::Server,
        Role::Client => protocol::Role::Client,
    };
    let memory = Memory { input: Cursor::new(input.to_vec()), output: Vec::new() };
    WebSocket::from_raw_socket(memory, role, None)
}

/// What the other implementation reads from `input`, and whether it refused to go on.
fn others_messages(role: Role, input: &[u8]) -> (Vec<Message>, bool) {
    let mut socket = other(role, input);
    let mut messages = Vec::new();
    loop {
        match socket.read() {
            Ok(message) => messages.push(message),
            Err(tungstenite::Error::ConnectionClosed) => return (messages, false),
            Err(tungstenite::Error::Io(_)) => return (messages, false),
            Err(_) => return (messages, true),
        }
        if matches!(messages.last(), Some(Message::Close(_))) {
            return (messages, false);
        }
    }
}

/// The same of ours. Close reasons are not kept.
fn our_messages(role: Role, input: &[u8]) -> (Vec<Message>, bool) {
    let mut framer = Framer::new(Framing::WebSocket, role, Serializer::Json, 1 << 20);
    framer.accept_any_type();
    let mut input = input.to_vec();
    let mut chunk = &mut input[..];
    let mut messages = Vec::new();
    loop {
        let (make, payload): (fn(Bytes) -> Message, _) = match framer.next(&mut chunk) {
            Ok(None) => return (messages, false),
            Err(_) => return (messages, true),
            Ok(Some(Frame::Message(payload))) => (Message::Binary, payload.to_vec()),
            Ok(Some(Frame::Ping(payload))) => (Message::Ping, payload.to_vec()),
            Ok(Some(Frame::Pong(payload))) => (Message::Pong, payload.to_vec()),
            Ok(Some(Frame::Compressed(_))) => unreachable!("compression was not agreed on"),
            Ok(Some(Frame::Close { code })) => {
                let frame = CloseFrame { code: code.into(), reason: "".into() };
                messages.push(Message::Close((code != websocket::CLOSE_CODE_ABSENT).then_some(frame)));
                continue;
            }
        };
        messages.push(match make(payload.into()) {
            Message::Binary(payload) if framer.is_text() => {
                Message::Text(payload.try_into().expect("the framer checked the text"))
            }
            message => message,
        });
    }
}

/// One frame of a client, right by itself except for what `first` may say.
fn client_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    let mask = [0x11, 0x22, 0x84, 0xf8];
    write_client_frame(Framing::WebSocket, Serializer::Json, FrameKind::Message, payload, mask, &mut frame);
    frame[0] = first;
    frame
}

/// Parts of characters, and what never is one.
const ODD_TEXT: &[&[u8]] = &[b"\xe2", b"\x82\xac", b"\xf0\x9f", b"\x98\x80", b"\xff", b"\xed\xa0"];

fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let first = prop_oneof![
        20 => prop::sample::select(&[0x00u8, 0x80, 0x01, 0x81, 0x02, 0x82][..]),
        6 => prop::sample::select(&[0x89u8, 0x8a][..]),
        1 => prop::sample::select(&[0x09u8, 0x83, 0x8b, 0xc1, 0x91, 0x8f][..]),
    ];
    let payload = prop_oneof![
        6 => "[a-z\u{e4}\u{20ac}\u{1f600}]{0,8}".prop_map(String::into_bytes),
        2 => prop::sample::select(ODD_TEXT)
            .prop_map(<[u8]>::to_vec),
        1 => (120usize..132).prop_map(|bytes| vec![b'x'; bytes]),
        1 => Just(vec![b'y'; 66_000]),
    ];
    (first, payload).prop_map(|(first, payload)| client_frame(first, &payload))
}

fn message() -> impl Strategy<Value = Message> {
    let payload = || prop::collection::vec(any::<u8>(), 0..126).prop_map(Bytes::from);
    prop_oneof![
        "\\PC{0,200}".prop_map(|text| Message::Text(text.into())),
        prop_oneof![0usize..300, 65_500usize..65_600]
            .prop_map(|bytes| Message::Binary(vec![0xfe; bytes].into())),
        payload().prop_map(Message::Ping),
        payload().prop_map(Message::Pong),
    ]
}

proptest! {
    #[test]
    fn both_read_and_refuse_the_same(
        frames in prop::collection::vec(any_frame(), 0..10),
        close in prop::option::of(prop::sample::select(&[1000u16, 1001, 1011, 1012, 3000, 4999][..])),
    ) {
        let mut input = frames.concat();
        input.extend(close.map(|code| client_frame(0x88, &code.to_be_bytes())).unwrap_or_default());
        prop_assert_eq!(our_messages(Role::Server, &input), others_messages(Role::Server, &input));
    }

    #[test]
    fn each_reads_what_the_other_writes(messages in prop::collection::vec(message(), 0..8), mask: [u8; 4]) {
        for (reader, writer) in [(Role::Server, Role::Client), (Role::Client, Role::Server)] {
            let mut socket = other(writer, &[]);
            let mut ours = Vec::new();
            for message in &messages {
                socket.write(message.clone()).expect("memory takes everything");
                let kind = match message {
                    Message::Ping(_) => FrameKind::Ping,
                    Message::Pong(_) => FrameKind::Pong,
                    _ => FrameKind::Message,
                };
                let serializer = if message.is_text() { Serializer::Json } else { Serializer::Cbor };
                let payload = message.clone().into_data();
                if writer == Role::Client {
                    write_client_frame(Framing::WebSocket, serializer, kind, &payload, mask, &mut ours);
                } else {
                    write_header(Framing::WebSocket, serializer, kind, payload.len(), &mut ours);
                    ours.extend_from_slice(&payload);
                }
            }
            socket.flush().expect("memory takes everything");
            prop_assert_eq!(our_messages(reader, &socket.get_ref().output), (messages.clone(), false));
            prop_assert_eq!(others_messages(reader, &ours), (messages.clone(), false));
        }
    }
}
