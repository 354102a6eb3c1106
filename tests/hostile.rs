//! Input from hostile or broken peers: each gets its answer, and nobody else notices.

mod support;

use common::transport::{FrameKind, Framing};
use common::wire::Serializer;
use serde_json::json;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};
use support::{Client, Node, PATIENCE, Setup, Wire, eventually};

/// Two sessions that must keep working whatever others do.
struct Witness {
    publisher: Client,
    subscriber: Client,
    count: u64,
}

impl Witness {
    fn new(node: &Node) -> Self {
        let mut subscriber = Client::join(node, Wire::web(Serializer::Cbor));
        subscriber.subscribe("com.example.witness");
        Self { publisher: Client::join(node, Wire::PLAIN), subscriber, count: 0 }
    }

    fn check(&mut self) {
        self.count += 1;
        self.publisher.publish("com.example.witness", &json!([self.count]));
        assert_eq!(self.subscriber.event()[4], json!([self.count]));
    }
}

fn raw(node: &Node, wire: Wire) -> TcpStream {
    let stream = TcpStream::connect(node.address(wire)).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    stream
}

/// Everything the router says until it closes.
fn answer(mut stream: TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => bytes,
        Err(error) => panic!("the router did not close: {error}; it said {bytes:?}"),
    }
}

fn exchange(node: &Node, wire: Wire, input: &[u8]) -> Vec<u8> {
    let mut stream = raw(node, wire);
    stream.write_all(input).expect("written");
    answer(stream)
}

#[test]
fn rawsocket_handshakes_get_the_answers_the_specification_names() {
    let node = Node::start();
    let mut witness = Witness::new(&node);
    for (request, expected) in [
        ([0x7f, 0xf4, 0, 0], &[0x7f, 0x10, 0, 0][..]),
        ([0x7f, 0xff, 0, 0], &[0x7f, 0x10, 0, 0]),
        ([0x7f, 0xf1, 1, 0], &[0x7f, 0x30, 0, 0]),
        ([0x7f, 0xf1, 0, 9], &[0x7f, 0x30, 0, 0]),
        ([0x7f, 0xf0, 0, 0], &[]),
        (*b"GET ", &[]),
        ([0, 0, 0, 0], &[]),
    ] {
        assert_eq!(exchange(&node, Wire::PLAIN, &request), expected, "{request:02x?}");
    }
    // The first octet is enough to know.
    assert_eq!(exchange(&node, Wire::PLAIN, b"G"), b"");
    witness.check();
}

#[test]
fn http_requests_that_are_no_wamp_upgrade_are_refused() {
    let node = Node::start();
    let mut witness = Witness::new(&node);
    let upgrade = "Host: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let wamp = "Sec-WebSocket-Protocol: wamp.2.json\r\n";
    let version = "Sec-WebSocket-Version: 13\r\n";
    let cases = [
        (format!("GET /other HTTP/1.1\r\n{upgrade}{wamp}{version}\r\n"), "404"),
        (format!("POST /ws HTTP/1.1\r\n{upgrade}{wamp}{version}\r\n"), "405"),
        (format!("GET /ws HTTP/1.1\r\n{upgrade}{version}\r\n"), "400"),
        (format!("GET /ws HTTP/1.1\r\n{upgrade}Sec-WebSocket-Protocol: mqtt\r\n{version}\r\n"), "400"),
        (format!("GET /ws HTTP/1.1\r\n{upgrade}{wamp}Sec-WebSocket-Version: 8\r\n\r\n"), "426"),
        ("GET /ws HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "426"),
        (format!("GET /ws HTTP/1.1\r\n{upgrade}X: {}\r\n\r\n", "x".repeat(9_000)), "431"),
        ("\u{16}\u{3}\u{1} this is not HTTP\r\n\r\n".to_owned(), "400"),
    ];
    for (request, status) in cases {
        let said = exchange(&node, Wire::web(Serializer::Json), request.as_bytes());
        let said = String::from_utf8_lossy(&said);
        let got = said.split(' ').nth(1).unwrap_or_default();
        assert_eq!(got, status, "{:?} was answered {said:?}", &request[..request.len().min(80)]);
    }
    witness.check();
}

/// Sends bytes as one WAMP message after login and expects ABORT `wamp.error.protocol_violation`.
fn expect_violation(node: &Node, wire: Wire, payload: &[u8]) -> String {
    let mut client = Client::join(node, wire);
    client.send_bytes(payload);
    let (reason, text) = client.aborted();
    assert_eq!(reason, "wamp.error.protocol_violation", "{wire:?} {payload:?}");
    assert!(!text.is_empty());
    text
}

#[test]
fn malformed_messages_abort_their_session_only() {
    let node = Node::start();
    let mut witness = Witness::new(&node);
    let malformed: [(Serializer, &[&[u8]]); 3] = [
        (
            Serializer::Json,
            &[
                b"",
                b"[",
                b"[1",
                b"[16,1,{},\"a\"",
                b"nonsense",
                b"[16,1,{},\"\\ud800\"]",
                b"{}",
                b"[]",
                b"[1]]",
                b"5",
            ],
        ),
        (
            Serializer::MsgPack,
            &[
                b"",
                b"\xc1",
                b"\x94\x10\x01\x80",
                b"\x90",
                b"\x81\x01\x02",
                b"\x94\x10",
                b"\xdd\xff\xff\xff\xff",
            ],
        ),
        (
            Serializer::Cbor,
            &[
                b"",
                b"\xff",
                b"\x84\x10\x01\xa0",
                b"\x80",
                b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff",
                b"\x9f\x10",
            ],
        ),
    ];
    for (serializer, payloads) in malformed {
        for framing in [Framing::RawSocket, Framing::WebSocket] {
            for payload in payloads {
                expect_violation(&node, Wire { framing, serializer }, payload);
            }
        }
        witness.check();
    }
}

#[test]
fn messages_of_the_wrong_shape_abort_with_a_text_that_names_the_message() {
    let node = Node::start();
    let mut witness = Witness::new(&node);
    let cases = [
        (json!([16]), "PUBLISH"),
        (json!([16, 1, {}]), "PUBLISH"),
        (json!([16, 1, {}, 5]), "PUBLISH"),
        (json!([16, "1", {}, "a.b"]), "PUBLISH"),
        (json!([16, 0, {}, "a.b"]), "PUBLISH"),
        (json!([16, -1, {}, "a.b"]), "PUBLISH"),
        (json!([16, 1.5, {}, "a.b"]), "PUBLISH"),
        (json!([16, 9_007_199_254_740_993_u64, {}, "a.b"]), "PUBLISH"),
        (json!([16, 1, [], "a.b"]), "PUBLISH"),
        (json!([16, 1, {}, "a.b", {}]), "PUBLISH"),
        (json!([16, 1, {}, "a.b", [], []]), "PUBLISH"),
        (json!([16, 1, {}, "a.b", [], {}, 1]), "PUBLISH"),
        (json!([32, 1, {}]), "SUBSCRIBE"),
        (json!([34, 1]), "UNSUBSCRIBE"),
        (json!([34, 1, "x"]), "UNSUBSCRIBE"),
        (json!([48, 1, {}]), "CALL"),
        (json!([64, 1, {}, null]), "REGISTER"),
        (json!([66, 1, {}]), "UNREGISTER"),
        (json!([70, {}, {}]), "YIELD"),
        (json!([8, 68, 1, {}]), "ERROR"),
        (json!([6, {}]), "GOODBYE"),
        (json!([999, 1]), "999"),
        (json!(["16", 1, {}, "a.b"]), ""),
        (json!([true, 1, {}, "a.b"]), ""),
        (json!({"0": 16}), ""),
    ];
    for (message, named) in cases {
        for wire in [Wire::web(Serializer::Json), Wire::raw(Serializer::MsgPack), Wire::raw(Serializer::Cbor)]
        {
            let text = expect_violation(&node, wire, &support::client::encode(wire.serializer, &message));
            assert!(text.contains(named), "{message}: {text}");
        }
    }
    witness.check();
}

#[test]
fn messages_a_client_may_not_send_abort_its_session() {
    let node = Node::start();
    let mut witness = Witness::new(&node);
    let forbidden = [
        json!([1, "realm1", {"roles": {"caller": {}}}]),
        json!([2, 1, {}]),
        json!([4, "ticket", {}]),
        json!([5, "x", {}]),
        json!([17, 1, 1]),
        json!([33, 1, 1]),
        json!([35, 1]),
        json!([36, 1, 1, {}]),
        json!([50, 1, {}]),
        json!([65, 1, 1]),
        json!([67, 1]),
        json!([68, 1, 1, {}]),
        json!([69, 1, {}]),
        json!([70, 1, {}]),
        json!([8, 68, 1, {}, "com.example.error"]),
        json!([8, 48, 1, {}, "com.example.error"]),
        json!([8, 5, 1, {}, "com.example.error"]),
    ];
    for message in forbidden {
        let mut client = Client::join(&node, Wire::PLAIN);
        client.send(&message);
        assert_eq!(client.aborted().0, "wamp.error.protocol_violation", "{message}");
    }
    // Before login, everything but HELLO (and ABORT, which is never answered).
    for message in
        [json!([6, {}, "wamp.close.normal"]), json!([8, 68, 1, {}, "a.b"]), json!([16, 1, {}, "a.b"])]
    {
        let mut client = Client::connect(&node, Wire::PLAIN);
        client.send(&message);
        assert_eq!(client.aborted().0, "wamp.error.protocol_violation", "{message}");
    }
    let mut client = Client::connect(&node, Wire::PLAIN);
    client.send(&json!([3, {}, "wamp.error.no_such_realm"]));
    assert_eq!(client.end().messages, Vec::<serde_json::Value>::new());
    witness.check();
}

#[test]
fn deep_nesting_is_refused_and_costs_no_stack() {
    let node = Node::start();
    let mut witness = Witness::new(&node);
    let depth = 500_000;
    for (serializer, open, close) in [
        (Serializer::Json, &b"["[..], &b"]"[..]),
        (Serializer::MsgPack, b"\x91", b"\xc0"),
        (Serializer::Cbor, b"\x81", b"\xf6"),
        (Serializer::Cbor, b"\xc1", b"\x00"),
        (Serializer::Cbor, b"\x9f", b"\xff"),
    ] {
        let head: &[u8] = match serializer {
            Serializer::Json => b"[16,1,{},\"a.b\",[",
            Serializer::MsgPack => b"\x95\x10\x01\x80\xa3a.b\x91",
            Serializer::Cbor => b"\x85\x10\x01\xa0\x63a.b\x81",
        };
        let mut message = [head, &open.repeat(depth)].concat();
        message.extend_from_slice(close);
        expect_violation(&node, Wire::raw(serializer), &message);
    }
    witness.check();
}

#[test]
fn nesting_up_to_the_bound_is_carried() {
    let node = Node::start();
    // The message is the first level and args the second.
    let deep = |levels: usize| {
        let text = format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        serde_json::from_str::<serde_json::Value>(&text).expect("JSON")
    };
    let args = deep(common::limits::DEPTH_MAX - 1);
    let mut subscriber = Client::join(&node, Wire::raw(Serializer::Cbor));
    subscriber.subscribe("com.example.deep");
    let mut publisher = Client::join(&node, Wire::raw(Serializer::MsgPack));
    publisher.publish("com.example.deep", &args);
    assert_eq!(subscriber.event()[4], args);
}

#[test]
fn oversized_messages_end_the_connection_before_they_are_held() {
    let node = Node::with(Setup { listener: "message_max = \"64KiB\"\n".to_owned(), ..Setup::default() });
    let mut witness = Witness::new(&node);
    for wire in Wire::all() {
        // After login the listener's bound counts, before it the bound for HELLO.
        let mut client = Client::join(&node, wire);
        client.send_bytes(&vec![b' '; 64 * 1_024 + 1]);
        assert_eq!(client.aborted().0, "wamp.error.protocol_violation", "{wire:?}");
        let mut client = Client::connect(&node, wire);
        client.send_bytes(&vec![b' '; common::limits::LOGIN_MESSAGE_BYTES_MAX + 1]);
        let ended = client.end();
        if wire.framing == Framing::WebSocket {
            assert_eq!(ended.close, Some(1009), "{wire:?}");
        }
    }
    witness.check();
}

#[test]
fn websocket_rules_are_enforced_with_their_close_codes() {
    let node = Node::start();
    let mut witness = Witness::new(&node);
    let cases: [(Serializer, &[u8], u16); 9] = [
        (Serializer::Json, b"\x81\x02[]", 1002),               // not masked
        (Serializer::Json, b"\xc1\x80\0\0\0\0", 1002),         // reserved bit
        (Serializer::Json, b"\x83\x80\0\0\0\0", 1002),         // reserved opcode
        (Serializer::Json, b"\x80\x80\0\0\0\0", 1002),         // nothing to continue
        (Serializer::Json, b"\x09\x80\0\0\0\0", 1002),         // fragmented ping
        (Serializer::Json, b"\x89\xfe\x00\x7e\0\0\0\0", 1002), // ping of 126 bytes
        (Serializer::Json, b"\x81\x81\0\0\0\0\xff", 1007),     // text that is not UTF-8
        (Serializer::Json, b"\x82\x82\0\0\0\0[]", 1003),       // binary, but JSON is text
        (Serializer::MsgPack, b"\x81\x81\0\0\0\0 ", 1003),     // text, but MessagePack is binary
    ];
    for (serializer, bytes, code) in cases {
        let mut client = Client::join(&node, Wire::web(serializer));
        client.send_raw(bytes);
        let ended = client.end();
        assert_eq!(ended.close, Some(code), "{bytes:02x?}");
        assert_eq!(ended.messages[0][2], "wamp.error.protocol_violation", "{bytes:02x?}");
    }
    // A close is answered with its code.
    let mut client = Client::join(&node, Wire::web(Serializer::Json));
    client.send_frame(FrameKind::Close, &1000_u16.to_be_bytes());
    assert_eq!(client.end().close, Some(1000));
    witness.check();
}

#[test]
fn a_fragmented_message_is_put_together() {
    let node = Node::start();
    let mut client = Client::join(&node, Wire::web(Serializer::Json));
    let message = "[32,1,{},\"com.ünïcode\"]".as_bytes();
    for (index, byte) in message.iter().enumerate() {
        let opcode = u8::from(index == 0);
        let last = if index + 1 == message.len() { 0x80 } else { 0 };
        client.send_raw(&[opcode | last, 0x81, 0, 0, 0, 0, *byte]);
        // Control frames may come between.
        if index == 5 {
            client.send_frame(FrameKind::Ping, b"between");
        }
    }
    assert_eq!(client.reply(1)[0], 33);
    assert_eq!(client.pong(), b"between");
}

#[test]
fn random_bytes_disturb_nobody() {
    let node = Node::start();
    let mut witness = Witness::new(&node);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        // xorshift64*: a fixed sequence, so that a failure comes again.
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    };
    for round in 0..60 {
        for wire in Wire::all() {
            let bytes: Vec<u8> = (0..random() % 3_000).map(|_| random() as u8).collect();
            match round % 3 {
                // Instead of a handshake.
                0 => {
                    let mut stream = raw(&node, wire);
                    let _ = stream.write_all(&bytes);
                }
                // Instead of frames.
                1 => Client::join(&node, wire).send_raw(&bytes),
                // Instead of messages.
                _ => {
                    let mut client = Client::join(&node, wire);
                    client.send_bytes(&bytes);
                    client.end();
                }
            }
        }
        if round % 10 == 9 {
            witness.check();
        }
    }
    node.await_metric("signalbox_sessions", |sessions| sessions == 2.0);
}

#[test]
fn a_truncated_frame_ends_with_its_connection() {
    let node = Node::start();
    let mut witness = Witness::new(&node);
    for wire in Wire::all() {
        let mut out = Vec::new();
        let message =
            support::client::encode(wire.serializer, &json!([16, 1, {}, "com.example.witness", ["cut"]]));
        let Wire { framing, serializer } = wire;
        common::transport::write_client_frame(
            framing,
            serializer,
            FrameKind::Message,
            &message,
            [1, 2, 3, 4],
            &mut out,
        );
        for cut in [1, 3, 5, out.len() / 2, out.len() - 1] {
            let mut client = Client::join(&node, wire);
            client.send_raw(&out[..cut]);
            client.shut_down_write();
            client.end();
        }
    }
    witness.check();
    node.await_metric("signalbox_connections", |connections| connections == 2.0);
}

#[test]
fn a_login_that_takes_too_long_is_ended() {
    let node = Node::with(Setup::tables("[timeouts]\nlogin = \"400ms\"\n"));
    let mut witness = Witness::new(&node);
    let begun = Instant::now();
    let silent = raw(&node, Wire::PLAIN);
    let mut half = raw(&node, Wire::PLAIN);
    half.write_all(&[0x7f, 0xf2]).expect("written");
    let mut head = raw(&node, Wire::web(Serializer::Json));
    head.write_all(b"GET /ws HTTP/1.1\r\nHost: x\r\n").expect("written");
    let mut mute = Client::connect(&node, Wire::PLAIN);
    // Bytes that trickle in do not keep it open.
    let mut trickle = raw(&node, Wire::web(Serializer::Json));
    let trickled = std::thread::spawn(move || {
        while begun.elapsed() < PATIENCE {
            if trickle.write_all(b"x").is_err() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("the trickling connection was never closed");
    });
    answer(silent);
    answer(half);
    answer(head);
    mute.end();
    trickled.join().expect("closed");
    assert!(begun.elapsed() >= Duration::from_millis(300), "nobody was cut off early");
    witness.check();
    node.await_metric("signalbox_login_timeouts_total", |ended| ended >= 5.0);
}

#[test]
fn a_peer_that_stays_silent_is_pinged_and_then_closed() {
    let node = Node::with(Setup::tables("[timeouts]\nping_interval = \"300ms\"\nping_timeout = \"400ms\"\n"));
    for wire in [Wire::PLAIN, Wire::web(Serializer::Json)] {
        let dead = Client::join(&node, wire);
        let mut alive = Client::join(&node, wire);
        alive.subscribe("com.example.alive");
        // The dead one's kernel still acknowledges, but nobody answers pings; reading would answer them.
        let closed = eventually("the silent peer is closed", || {
            alive.arrived();
            let mut octets = [0; 4_096];
            dead.stream().set_nonblocking(true).expect("set");
            match dead.stream().read(&mut octets) {
                Ok(0) => Some(true),
                Ok(_) => None,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => None,
                Err(_) => Some(true),
            }
        });
        assert!(closed);
        alive.publish_acknowledged("com.example.fence", &json!([]));
    }
    node.await_metric("signalbox_ping_timeouts_total", |count| count == 2.0);
}

#[test]
fn a_client_that_closes_its_half_is_closed() {
    let node = Node::start();
    for wire in Wire::all() {
        let mut client = Client::join(&node, wire);
        client.shut_down_write();
        client.end();
    }
    node.await_metric("signalbox_connections", |connections| connections == 0.0);
}

#[test]
fn announced_lengths_take_no_memory() {
    const CONNECTIONS: usize = 400;
    let node = Node::start();
    let mut witness = Witness::new(&node);
    witness.check();
    let before = node.data_resident();
    let mut held = Vec::new();
    for n in 0..CONNECTIONS {
        // A frame of nearly the whole bound is announced; a few bytes of it come, before and after login.
        let wire = if n % 2 == 0 { Wire::PLAIN } else { Wire::web(Serializer::Json) };
        let mut client = if n % 4 < 2 { Client::join(&node, wire) } else { Client::connect(&node, wire) };
        match wire.framing {
            Framing::RawSocket if n % 4 < 2 => client.send_raw(&[0, 0x0f, 0xff, 0xff, 1, 2, 3]),
            Framing::RawSocket => client.send_raw(&[0, 0, 0x0f, 0xff, 1, 2, 3]),
            _ => client.send_raw(b"\x81\xfe\x0f\xff\0\0\0\0[16,1"),
        }
        held.push(client);
    }
    witness.check();
    node.await_metric("signalbox_connections", |connections| connections == (CONNECTIONS + 2) as f64);
    let grown = node.data_resident().saturating_sub(before);
    let each = grown / CONNECTIONS as u64;
    assert!(each < 32 * 1_024, "{each} bytes for each connection that announced much and sent little");
}

#[test]
fn many_incomplete_messages_are_bounded_by_what_was_sent() {
    const CONNECTIONS: usize = 40;
    const SENT: usize = 900_000;
    let node = Node::start();
    let mut witness = Witness::new(&node);
    let before = node.data_resident();
    let mut held: Vec<Client> = (0..CONNECTIONS).map(|_| Client::join(&node, Wire::PLAIN)).collect();
    for client in &mut held {
        client.send_raw(&[0, 0x0f, 0xff, 0xff]);
        client.send_raw(&vec![0; SENT]);
    }
    witness.check();
    let sent = (CONNECTIONS * SENT) as u64;
    let grown = node.data_resident().saturating_sub(before);
    assert!(grown < sent * 5 / 2 + (16 << 20), "{grown} bytes more for {sent} bytes of incomplete messages");
    drop(held);
    node.await_metric("signalbox_sessions", |sessions| sessions == 2.0);
    node.await_metric("signalbox_queued_bytes", |bytes| bytes == 0.0);
    witness.check();
}
