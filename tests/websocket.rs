//! What WebSocket adds to messages on a real node: batches of them (WAMP, advanced profile, "Message Batching").

mod support;

use common::transport::{
    Frame, FrameKind, Framer, Framing, Role, Subprotocol, batch, upgrade, write_client_frame,
};
use common::wire::Serializer;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use support::client::{decode, encode};
use support::{Node, PATIENCE, Wire};

/// A WebSocket connection that shows frames as they are.
struct Raw {
    stream: TcpStream,
    framer: Framer,
    serializer: Serializer,
    unread: Vec<u8>,
}

/// What came in one frame.
#[derive(PartialEq, Debug)]
enum Got {
    Message(Vec<u8>),
    Close(u16),
    End,
}

impl Raw {
    fn connect(node: &Node, subprotocol: Subprotocol) -> Self {
        let mut stream =
            TcpStream::connect(node.address(Wire::web(subprotocol.serializer))).expect("connected");
        stream.set_nodelay(true).expect("an option");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        let mut request = Vec::new();
        upgrade::write_request("localhost", "/ws", subprotocol, [5; 16], &mut request);
        stream.write_all(&request).expect("written");
        let mut head = Vec::new();
        let head_bytes = loop {
            let mut chunk = [0; 1_024];
            let count = stream.read(&mut chunk).expect("an answer");
            assert_ne!(count, 0, "the upgrade was not answered");
            head.extend_from_slice(&chunk[..count]);
            if let Some(head_bytes) = upgrade::parse_answer(&head, subprotocol, [5; 16]).expect("accepted") {
                break head_bytes;
            }
        };
        let serializer = subprotocol.serializer;
        let framer = Framer::new(Framing::Batched, Role::Client, serializer, 1 << 24);
        Self { stream, framer, serializer, unread: head.split_off(head_bytes) }
    }

    /// Sends one WebSocket message.
    fn send(&mut self, payload: &[u8]) {
        let mut out = Vec::new();
        let mask = [3, 1, 4, 1];
        write_client_frame(Framing::Batched, self.serializer, FrameKind::Message, payload, mask, &mut out);
        self.stream.write_all(&out).expect("written");
    }

    fn recv(&mut self) -> Got {
        loop {
            let mut bytes = std::mem::take(&mut self.unread);
            let mut chunk = bytes.as_mut_slice();
            let got = match self.framer.next(&mut chunk).expect("the router frames well") {
                Some(Frame::Message(payload)) => Some(Got::Message(payload.to_vec())),
                Some(Frame::Close { code }) => Some(Got::Close(code)),
                Some(_) | None => None,
            };
            self.unread = chunk.to_vec();
            if let Some(got) = got {
                return got;
            }
            if self.unread.is_empty() {
                let mut chunk = vec![0; 65_536];
                match self.stream.read(&mut chunk) {
                    Ok(0) => return Got::End,
                    Ok(count) => self.unread.extend_from_slice(&chunk[..count]),
                    Err(error) => panic!("nothing came: {error}"),
                }
            }
        }
    }

    /// The messages of the next WebSocket message.
    fn batch(&mut self) -> Vec<Value> {
        let Got::Message(payload) = self.recv() else { panic!("no message") };
        batch::split(Framing::Batched, self.serializer, &payload)
            .map(|message| decode(self.serializer, message.expect("the router batches well")))
            .collect()
    }
}

const JSON: Subprotocol = Subprotocol { serializer: Serializer::Json, batched: true };
const HELLO: &[u8] = br#"[1,"realm1",{"roles":{"publisher":{},"subscriber":{},"caller":{},"callee":{}}}]"#;

#[test]
fn json_messages_end_with_a_separator_both_ways() {
    let node = Node::start();
    // The specification's octet, and that of Autobahn|Python: a client is answered in its own.
    for separator in [0x1e, 0x18] {
        let mut client = Raw::connect(&node, JSON);
        client.send(&[HELLO, &[separator]].concat());
        let Got::Message(welcome) = client.recv() else { panic!("no WELCOME") };
        assert_eq!(welcome.iter().filter(|octet| [0x1e, 0x18].contains(*octet)).count(), 1);
        assert_eq!(welcome.last(), Some(&separator));
        assert!(welcome.starts_with(b"[2,"));
    }
}

#[test]
fn binary_messages_begin_with_their_length_both_ways() {
    let node = Node::start();
    for serializer in [Serializer::MsgPack, Serializer::Cbor] {
        let mut client = Raw::connect(&node, Subprotocol { serializer, batched: true });
        let hello = encode(serializer, &serde_json::from_slice(HELLO).expect("JSON"));
        client.send(&[&(hello.len() as u32).to_be_bytes()[..], &hello].concat());
        let Got::Message(welcome) = client.recv() else { panic!("no WELCOME") };
        let (length, welcome) = welcome.split_first_chunk().expect("a length");
        assert_eq!(u32::from_be_bytes(*length) as usize, welcome.len());
        assert_eq!(decode(serializer, welcome)[0], 2);
    }
}

/// One batch of these messages.
fn joined(serializer: Serializer, messages: &[Value]) -> Vec<u8> {
    let mut batch = Vec::new();
    for message in messages {
        let message = encode(serializer, message);
        if serializer.is_text() {
            batch.extend_from_slice(&message);
            batch.push(0x1e);
        } else {
            batch.extend_from_slice(&(message.len() as u32).to_be_bytes());
            batch.extend_from_slice(&message);
        }
    }
    batch
}

#[test]
fn a_batch_is_handled_in_order_and_its_answers_leave_together() {
    const EVENTS: usize = 40;
    let node = Node::start();
    for serializer in Serializer::ALL {
        let mut client = Raw::connect(&node, Subprotocol { serializer, batched: true });
        let hello = serde_json::from_slice(HELLO).expect("JSON");
        client.send(&joined(serializer, &[hello, json!([32, 1, {}, "com.example.batch"])]));
        let mut begun = client.batch();
        while begun.len() < 2 {
            begun.extend(client.batch());
        }
        assert_eq!((&begun[0][0], &begun[1][0]), (&json!(2), &json!(33)));

        let options = json!({"exclude_me": false});
        let publish = |number| json!([16, 2 + number, options, "com.example.batch", [number]]);
        client.send(&joined(serializer, &(0..EVENTS).map(publish).collect::<Vec<_>>()));
        let (mut frames, mut events) = (0, Vec::new());
        while events.len() < EVENTS {
            frames += 1;
            events.extend(client.batch().into_iter().map(|event| event[4][0].clone()));
        }
        assert_eq!(events, (0..EVENTS).map(|number| json!(number)).collect::<Vec<_>>());
        assert!(frames < EVENTS / 4, "{EVENTS} events in {frames} frames, {serializer:?}");
    }
}

#[test]
fn broken_batches_fail_the_transport() {
    let node = Node::start();
    let text = [&b""[..], b"[1,\"realm1\",{}]", b"x"];
    let binary = [&b""[..], &[0, 0, 0], &[0, 0, 0, 9, 1], &[0xff, 0xff, 0xff, 0xff, 1]];
    for (serializer, batches) in
        [(Serializer::Json, &text[..]), (Serializer::MsgPack, &binary), (Serializer::Cbor, &binary)]
    {
        for batch in batches {
            let mut client = Raw::connect(&node, Subprotocol { serializer, batched: true });
            client.send(batch);
            let Got::Message(abort) = client.recv() else { panic!("no ABORT") };
            let abort: Vec<Value> = batch::split(Framing::Batched, serializer, &abort)
                .map(|message| decode(serializer, message.expect("right")))
                .collect();
            assert_eq!((&abort[0][0], &abort[0][2]), (&json!(3), &json!("wamp.error.protocol_violation")));
            assert_eq!(client.recv(), Got::Close(1002), "{batch:?}");
            assert_eq!(client.recv(), Got::End);
        }
    }
}

#[test]
fn nothing_of_a_batch_is_handled_after_the_session_ended() {
    let node = Node::start();
    let mut client = Raw::connect(&node, JSON);
    let abort = br#"[3,{},"wamp.error.abort"]"#;
    client.send(&[HELLO, b"\x1e", abort, b"\x1e[32,1,{},\"com.example.late\"]\x1e"].concat());
    assert_eq!(client.batch()[0][0], 2);
    assert_eq!(client.recv(), Got::Close(1000));
    assert_eq!(client.recv(), Got::End);
}

#[test]
fn the_bound_of_a_message_is_that_of_a_batch() {
    let node = Node::start();
    let mut client = Raw::connect(&node, JSON);
    client.send(&[HELLO, &b"\x1e"[..]].concat().repeat(60));
    assert_eq!(client.batch()[0][2], "wamp.error.protocol_violation");
    assert_eq!(client.recv(), Got::Close(1009), "4,096 bytes before login");
}
