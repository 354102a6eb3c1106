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

/// permessage-deflate (RFC 7692).
mod compression {
    use super::*;
    use common::transport::deflate::{Deflater, Inflater, write_client_frame};
    use support::Setup;

    /// A client that offers compression in its own words.
    struct Compressed {
        stream: TcpStream,
        framer: Framer,
        unread: Vec<u8>,
        deflater: Deflater,
        inflater: Inflater,
        answer: String,
    }

    fn node(compression: &str) -> Node {
        Node::with(Setup { websocket: format!("compression = {compression:?}\n"), ..Setup::default() })
    }

    impl Compressed {
        fn connect(node: &Node, offer: &str) -> Self {
            let mut stream =
                TcpStream::connect(node.address(Wire::web(Serializer::Json))).expect("connected");
            stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
            let mut request = Vec::new();
            upgrade::write_request("localhost", "/ws", Serializer::Json, [5; 16], &mut request);
            request.truncate(request.len() - 2);
            request.extend_from_slice(format!("Sec-WebSocket-Extensions: {offer}\r\n\r\n").as_bytes());
            stream.write_all(&request).expect("written");
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut octet = [0];
                assert_eq!(stream.read(&mut octet).expect("an answer"), 1);
                head.push(octet[0]);
            }
            let head = String::from_utf8(head).expect("ASCII");
            assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
            let answer = head.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Extensions: "));
            let mut framer = Framer::new(Framing::WebSocket, Role::Client, Serializer::Json, 1 << 24);
            framer.accept_compressed();
            Self {
                stream,
                framer,
                unread: Vec::new(),
                deflater: Deflater::new(6, 15),
                inflater: Inflater::new(15),
                answer: answer.unwrap_or_default().to_owned(),
            }
        }

        fn send(&mut self, message: &[u8]) {
            let mut out = Vec::new();
            if self.answer.contains("client_no_context_takeover") {
                self.deflater.reset();
            }
            write_client_frame(&mut self.deflater, true, message, [1, 2, 3, 4], &mut out);
            self.stream.write_all(&out).expect("written");
        }

        /// The next message and whether it came compressed; nothing after a close frame, whose code is the error.
        fn recv(&mut self) -> Result<(Value, bool), u16> {
            loop {
                let mut bytes = std::mem::take(&mut self.unread);
                let mut chunk = bytes.as_mut_slice();
                let mut text = Vec::new();
                let got = match self.framer.next(&mut chunk).expect("the router frames well") {
                    Some(Frame::Message(payload)) => {
                        text.extend_from_slice(payload);
                        Some(false)
                    }
                    Some(Frame::Compressed(payload)) => {
                        if self.answer.contains("server_no_context_takeover") {
                            self.inflater.reset();
                        }
                        self.inflater
                            .inflate(payload, 1 << 24, &mut text)
                            .expect("the router compresses well");
                        Some(true)
                    }
                    Some(Frame::Close { code }) => return Err(code),
                    Some(_) | None => None,
                };
                self.unread = chunk.to_vec();
                if let Some(compressed) = got {
                    return Ok((decode(Serializer::Json, &text), compressed));
                }
                if self.unread.is_empty() {
                    let mut chunk = vec![0; 65_536];
                    let count = self.stream.read(&mut chunk).expect("something comes");
                    assert_ne!(count, 0, "the connection ended");
                    self.unread.extend_from_slice(&chunk[..count]);
                }
            }
        }
    }

    #[test]
    fn it_is_agreed_on_only_where_the_listener_allows_it() {
        let offer = "permessage-deflate; client_max_window_bits";
        for (setting, answer) in [
            ("off", ""),
            (
                "no_takeover",
                "permessage-deflate; server_no_context_takeover; client_no_context_takeover; \
                 client_max_window_bits=15",
            ),
            ("takeover", "permessage-deflate; client_max_window_bits=15"),
        ] {
            assert_eq!(Compressed::connect(&node(setting), offer).answer, answer, "{setting}");
        }
    }

    #[test]
    fn events_and_calls_pass_with_every_parameter() {
        for setting in ["no_takeover", "takeover"] {
            let node = node(setting);
            for offer in [
                "permessage-deflate",
                "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
                "permessage-deflate; server_max_window_bits=9; client_max_window_bits=9",
                "permessage-deflate; server_no_context_takeover; server_max_window_bits=12",
            ] {
                let mut clients = [(); 4].map(|()| Compressed::connect(&node, offer));
                for client in &mut clients {
                    client.send(HELLO);
                    assert_eq!(client.recv().expect("WELCOME").0[0], 2);
                    client.send(br#"[32,1,{},"com.example.compressed"]"#);
                    assert_eq!(client.recv().expect("SUBSCRIBED").0[0], 33);
                }
                for length in [1, 100, 3_000, 200_000] {
                    let text = "signal box ".repeat(length / 10 + 1);
                    let publish = json!([16, 1, {"exclude_me": false}, "com.example.compressed", [text]]);
                    clients[0].send(&encode(Serializer::Json, &publish));
                    for client in &mut clients {
                        let (event, compressed) = client.recv().expect("EVENT");
                        assert_eq!((&event[0], &event[4][0]), (&json!(36), &json!(text)), "{offer}");
                        assert_eq!(compressed, length >= 100, "{length}, {offer}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_bomb_is_stopped_at_the_bound_of_a_message() {
        for setting in ["no_takeover", "takeover"] {
            let node = node(setting);
            // Before login, 4,096 bytes; after it, message_max.
            let mut stranger = Compressed::connect(&node, "permessage-deflate");
            stranger.send(&[HELLO, &b" ".repeat(4_096)].concat());
            assert_eq!(stranger.recv().expect("ABORT").0[2], "wamp.error.protocol_violation");
            assert_eq!(stranger.recv(), Err(1009));
            let mut client = Compressed::connect(&node, "permessage-deflate");
            client.send(HELLO);
            client.recv().expect("WELCOME");
            client.send(&b" ".repeat(64 << 20));
            assert_eq!(client.recv().expect("ABORT").0[2], "wamp.error.protocol_violation");
            assert_eq!(client.recv(), Err(1009));
            node.await_metric("signalbox_inflates_refused_total", |count| count >= 2.0);
        }
    }

    #[test]
    fn what_is_no_compressed_text_closes_with_1007() {
        let node = node("takeover");
        for payload in [&[0xff; 8][..], &[0x00, 0x01, 0x00, 0xfe, 0xff, 0xff, 0x00]] {
            let mut client = Compressed::connect(&node, "permessage-deflate");
            let mut frame = Vec::new();
            let (framing, kind) = (Framing::WebSocket, FrameKind::Message);
            super::write_client_frame(framing, Serializer::Json, kind, payload, [9; 4], &mut frame);
            frame[0] |= 0x40;
            client.stream.write_all(&frame).expect("written");
            client.recv().expect("ABORT");
            assert_eq!(client.recv(), Err(1007));
        }
    }

    #[test]
    fn beyond_the_memory_for_contexts_there_are_none() {
        let tables = "[memory]\nmax = \"16MiB\"\n".to_owned();
        let websocket = "compression = \"takeover\"\n".to_owned();
        let cores = Setup::default().cores.split(',').next().expect("a core").to_owned();
        let node = Node::with(Setup { websocket, tables, cores, ..Setup::default() });
        // An eighth of 16 MiB holds four contexts of 448 KiB.
        let clients = [(); 5].map(|()| Compressed::connect(&node, "permessage-deflate"));
        let without = clients.iter().filter(|client| client.answer.contains("no_context_takeover")).count();
        assert_eq!(without, 1);
        node.await_metric("signalbox_compression_contexts_refused_total", |count| count == 1.0);
        drop(clients);
        node.await_metric("signalbox_compression_context_bytes", |bytes| bytes == 0.0);
    }
}
