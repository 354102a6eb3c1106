//! A list of frames, written and cut anywhere, is received as it was sent, in both framings and roles.
#![no_main]

mod receive;

use arbitrary::Arbitrary;
use common::limits::{CONTROL_FRAME_BYTES_MAX, MESSAGE_BYTES_MAX};
use common::transport::{FrameKind, Framer, Framing, Role, walk_own_frame, write_client_frame, write_header};
use common::wire::Serializer;
use libfuzzer_sys::fuzz_target;

use receive::Owned;

#[derive(Arbitrary, Debug)]
enum Sent {
    Message(Vec<u8>),
    /// As many bytes of one kind.
    Long(u16, u8),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    /// A WebSocket client's message in parts, each but the last followed by an empty ping.
    Fragments(Vec<Vec<u8>>),
}

#[derive(Arbitrary, Debug)]
struct Connection {
    is_websocket: bool,
    is_client: bool,
    mask: [u8; 4],
    sent: Vec<Sent>,
    cuts: Vec<u8>,
}

/// Binary, so that any payload is right.
const SERIALIZER: Serializer = Serializer::MsgPack;

const FINAL_BIT: u8 = 0x80;
const OPCODE: u8 = 0x0f;

impl Connection {
    /// Appends one frame of the peer.
    fn write(&self, kind: FrameKind, payload: &[u8], stream: &mut Vec<u8>) {
        let framing = self.framing();
        if !self.is_client {
            return write_client_frame(framing, SERIALIZER, kind, payload, self.mask, stream);
        }
        let start = stream.len();
        write_header(framing, SERIALIZER, kind, payload.len(), stream);
        let payload_start = stream.len() - start;
        stream.extend_from_slice(payload);
        assert_eq!(walk_own_frame(framing, &stream[start..]), Some((stream.len() - start, payload_start)));
    }

    fn framing(&self) -> Framing {
        if self.is_websocket { Framing::WebSocket } else { Framing::RawSocket }
    }

    fn write_fragments(&self, parts: &[Vec<u8>], stream: &mut Vec<u8>) -> Vec<Owned> {
        let mut expected = Vec::new();
        for (index, part) in parts.iter().enumerate() {
            let start = stream.len();
            self.write(FrameKind::Message, part, stream);
            if index > 0 {
                stream[start] &= !OPCODE;
            }
            if index + 1 < parts.len() {
                stream[start] &= !FINAL_BIT;
                self.write(FrameKind::Ping, b"", stream);
                expected.push(Owned::Ping(Vec::new()));
            }
        }
        expected.push(Owned::Message(parts.concat()));
        expected
    }
}

fuzz_target!(|connection: Connection| {
    let (mut stream, mut expected) = (Vec::new(), Vec::new());
    for sent in &connection.sent {
        match sent {
            Sent::Message(payload) => {
                connection.write(FrameKind::Message, payload, &mut stream);
                expected.push(Owned::Message(payload.clone()));
            }
            Sent::Long(bytes, byte) => {
                let payload = vec![*byte; usize::from(*bytes) * 2];
                connection.write(FrameKind::Message, &payload, &mut stream);
                expected.push(Owned::Message(payload));
            }
            Sent::Ping(payload) => {
                let payload = &payload[..payload.len().min(CONTROL_FRAME_BYTES_MAX)];
                connection.write(FrameKind::Ping, payload, &mut stream);
                expected.push(Owned::Ping(payload.to_vec()));
            }
            Sent::Pong(payload) => {
                let payload = &payload[..payload.len().min(CONTROL_FRAME_BYTES_MAX)];
                connection.write(FrameKind::Pong, payload, &mut stream);
                expected.push(Owned::Pong(payload.to_vec()));
            }
            Sent::Fragments(parts) if connection.is_websocket && !parts.is_empty() && parts.len() < 1_000 => {
                expected.extend(connection.write_fragments(parts, &mut stream));
            }
            Sent::Fragments(_) => {}
        }
    }
    let role = if connection.is_client { Role::Client } else { Role::Server };
    let mut framer = Framer::new(connection.framing(), role, SERIALIZER, MESSAGE_BYTES_MAX);
    let (frames, result) = receive::receive(&mut framer, &stream, &connection.cuts);
    assert_eq!(result, Ok(()));
    assert_eq!(frames, expected);
    assert_eq!(framer.buffered_bytes(), 0, "an idle framer holds nothing");
});
