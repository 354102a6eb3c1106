//! Every configured bound, at its edge.

mod support;

use common::wire::Serializer;
use serde_json::json;
use std::io::Read;
use std::net::TcpStream;
use support::{Client, Node, PATIENCE, Setup, Wire, eventually};

/// One shard, so that the node's limits are not divided.
fn one_shard(tables: &str) -> Setup {
    let cores = Setup::default().cores.split(',').next().expect("a CPU").to_owned();
    Setup { cores, ..Setup::tables(tables) }
}

#[test]
fn a_session_holds_so_many_subscriptions_and_registrations() {
    let node = Node::with(Setup::tables("[limits]\nsubscriptions_max = 3\nregistrations_max = 2\n"));
    let mut client = Client::join(&node, Wire::PLAIN);
    let ids: Vec<u64> = (0..3).map(|n| client.subscribe(&format!("com.example.s{n}"))).collect();
    assert_eq!(client.ask_error(json!([32, 0, {}, "com.example.s3"])), "wamp.error.unavailable");
    client.ask(json!([34, 0, ids[0]]));
    client.subscribe("com.example.s3");
    for n in 0..2 {
        client.register(&format!("com.example.r{n}"));
    }
    assert_eq!(client.ask_error(json!([64, 0, {}, "com.example.r2"])), "wamp.error.unavailable");
    let mut other = Client::join(&node, Wire::PLAIN);
    other.subscribe("com.example.s3");
    other.register("com.example.r2");
    node.await_metric("signalbox_limit_reached_total", |count| count == 2.0);
}

#[test]
fn so_many_calls_of_a_session_may_wait() {
    let node = Node::with(Setup::tables("[limits]\ncalls_pending_max = 4\ninvocations_pending_max = 6\n"));
    let mut callee = Client::join(&node, Wire::PLAIN);
    callee.register("com.example.slow");
    let mut first = Client::join(&node, Wire::PLAIN);
    let waiting: Vec<u64> = (0..4).map(|_| first.request(json!([48, 0, {}, "com.example.slow"]))).collect();
    assert_eq!(first.ask_error(json!([48, 0, {}, "com.example.slow"])), "wamp.error.unavailable");
    let invocations: Vec<_> = (0..4).map(|_| callee.invocation()[1].clone()).collect();

    // The callee has its own bound, over all callers.
    let mut second = Client::join(&node, Wire::PLAIN);
    second.request(json!([48, 0, {}, "com.example.slow"]));
    second.request(json!([48, 0, {}, "com.example.slow"]));
    assert_eq!(second.ask_error(json!([48, 0, {}, "com.example.slow"])), "wamp.error.unavailable");

    callee.send(&json!([70, invocations[0], {}]));
    assert_eq!(first.reply(waiting[0])[0], 50);
    first.request(json!([48, 0, {}, "com.example.slow"]));
    callee.invocation();
}

#[test]
fn a_listener_takes_so_many_connections() {
    let setup = one_shard("");
    let node = Node::with(Setup { listener: "connections_max = 3\n".to_owned(), ..setup });
    let clients: Vec<Client> = (0..3).map(|_| Client::join(&node, Wire::PLAIN)).collect();
    refused(&node);
    // The other listener has a bound of its own.
    Client::join(&node, Wire::web(Serializer::Json));
    drop(clients);
    eventually("there is room again", || Client::try_connect(&node, Wire::PLAIN).ok());
    node.await_metric("signalbox_connections_refused_total", |count| count >= 1.0);
}

#[test]
fn so_many_logins_may_be_under_way() {
    let node = Node::with(one_shard("[limits]\nlogins_pending_max = 2\n"));
    let mut first = Client::connect(&node, Wire::PLAIN);
    let _second = Client::connect(&node, Wire::PLAIN);
    refused(&node);
    first.hello("realm1");
    Client::connect(&node, Wire::PLAIN).hello("realm1");
}

/// One more connection is closed at once, with at most RawSocket's word for it.
fn refused(node: &Node) {
    let mut stream = TcpStream::connect(node.address(Wire::PLAIN)).expect("the kernel accepts it");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    let mut said = Vec::new();
    match stream.read_to_end(&mut said) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "it was not closed"),
    }
    assert!(said.is_empty() || said == [0x7f, 0x40, 0, 0], "{said:02x?}");
}

#[test]
fn a_message_is_refused_when_its_receiver_takes_less() {
    use common::transport::rawsocket::{self, Handshake};
    use std::io::Write;
    let node = Node::start();
    // A callee that takes at most 512 bytes.
    let mut stream = TcpStream::connect(node.address(Wire::PLAIN)).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    let handshake = Handshake { serializer: Serializer::Json, message_bytes_max: 512 };
    stream.write_all(&rawsocket::write(handshake)).expect("written");
    let mut octets = [0; 4];
    stream.read_exact(&mut octets).expect("an answer");
    let mut send = |text: &str| {
        let mut frame = (text.len() as u32).to_be_bytes().to_vec();
        frame.extend_from_slice(text.as_bytes());
        stream.write_all(&frame).expect("written");
    };
    send(r#"[1,"realm1",{"roles":{"callee":{}}}]"#);
    send(r#"[64,1,{},"com.example.small"]"#);
    let mut caller = Client::join(&node, Wire::PLAIN);
    let large = "x".repeat(600);
    let error = eventually("the procedure is there", || {
        let error = caller.ask_error(json!([48, 0, {}, "com.example.small", [large]]));
        (error != "wamp.error.no_such_procedure").then_some(error)
    });
    assert_eq!(error, "wamp.error.payload_size_exceeded");
}

/// A subscriber that reads nothing while `publisher` sends `count` events of `bytes` bytes; another one reads all.
fn flood(node: &Node, count: u64, bytes: usize) -> Client {
    let mut slow = Client::join(node, Wire::PLAIN);
    let mut fast = Client::join(node, Wire::PLAIN);
    let mut publisher = Client::join(node, Wire::PLAIN);
    slow.subscribe("com.example.flood");
    fast.subscribe("com.example.flood");
    let filler = "x".repeat(bytes);
    for n in 0..count {
        publisher.publish("com.example.flood", &json!([n, filler]));
        if n % 16 == 15 {
            while fast.event()[4][0] != n {}
        }
    }
    slow
}

#[test]
fn a_slow_receiver_loses_the_oldest_events_and_nobody_else_any() {
    const COUNT: u64 = 1_600;
    let tables = "[slow_receiver]\nqueue_max = \"2MiB\"\n";
    let node = Node::with(Setup::tables(tables));
    let before = node.data_resident();
    let mut slow = flood(&node, COUNT, 20_000);
    let grown = node.data_resident().saturating_sub(before);
    assert!(grown < 24 << 20, "{grown} bytes more while 32 MB were published");
    // What is left comes in order and ends with the last one.
    let mut last = None;
    let mut received = 0;
    while last != Some(COUNT - 1) {
        let n = slow.event()[4][0].as_u64().expect("a number");
        assert!(last.is_none_or(|last| n > last), "{n} after {last:?}");
        last = Some(n);
        received += 1;
    }
    assert!(received < COUNT, "the bound was reached");
    let lost = (COUNT - received) as f64;
    // Every event is delivered or counted.
    node.await_metric("signalbox_events_dropped_total", |dropped| dropped == lost);
    // The session lives and gets its replies.
    slow.subscribe("com.example.other");
}

#[test]
fn a_slow_receiver_is_closed_when_so_configured() {
    let tables = "[slow_receiver]\npolicy = \"close\"\nqueue_max = \"2MiB\"\n";
    let node = Node::with(Setup::tables(tables));
    let mut slow = flood(&node, 1_600, 20_000);
    slow.end();
    node.await_metric("signalbox_sessions_killed_total", |count| count == 1.0);
}

#[test]
fn replies_are_never_dropped_the_session_is_closed_instead() {
    let tables = "[slow_receiver]\nqueue_max = \"2MiB\"\nreply_reserve = \"1MiB\"\n";
    let node = Node::with(Setup::tables(tables));
    let mut callee = Client::join(&node, Wire::PLAIN);
    callee.register("com.example.big");
    let mut caller = Client::join(&node, Wire::PLAIN);
    let big = "x".repeat(200_000);
    // The caller reads nothing: sockets and queue hold a bounded part of the answers.
    let calls = 200;
    for _ in 0..calls {
        caller.request(json!([48, 0, {}, "com.example.big"]));
    }
    for _ in 0..calls {
        let invocation = callee.invocation();
        callee.send(&json!([70, invocation[1], {}, [big]]));
    }
    let ended = caller.end();
    let results = ended.messages.iter().filter(|message| message[0] == 50).count();
    assert!(results < calls, "the bound was reached");
    node.await_metric("signalbox_sessions_killed_total", |count| count == 1.0);
    callee.register("com.example.alive");
}

#[test]
fn a_publisher_faster_than_its_subscribers_is_held_back_and_loses_nothing() {
    const COUNT: u64 = 200;
    const MEMORY: u64 = 16 << 20;
    let tables = format!("[memory]\nmax = {MEMORY}\n[io]\nsend_buffer = \"64KiB\"\n");
    let node = Node::with(one_shard(&tables));
    let mut slow: Vec<Client> = (0..12).map(|_| Client::join(&node, Wire::PLAIN)).collect();
    for client in &mut slow {
        client.subscribe("com.example.flood");
    }
    let before = node.data_resident();
    let mut publisher = Client::join(&node, Wire::PLAIN);
    let publishing = std::thread::spawn(move || {
        let filler = "x".repeat(20_000);
        for n in 0..COUNT {
            publisher.publish("com.example.flood", &json!([n, filler]));
        }
        publisher
    });
    // Nobody reads: 48 MB would have to be held.
    node.await_metric("signalbox_reads_paused_total", |count| count >= 1.0);
    let queued = node.metric("signalbox_queued_bytes") as u64;
    assert!(queued <= MEMORY + (1 << 20), "{queued} bytes are queued");
    let grown = node.data_resident().saturating_sub(before);
    assert!(grown < MEMORY + (16 << 20), "{grown} bytes more");
    // They read, it goes on, and nothing is missing.
    let readers: Vec<_> = slow
        .into_iter()
        .map(|mut client| {
            std::thread::spawn(move || {
                for n in 0..COUNT {
                    assert_eq!(client.event()[4][0], n);
                }
            })
        })
        .collect();
    for reader in readers {
        reader.join().expect("every event came, in order");
    }
    let mut publisher = publishing.join().expect("all is published");
    assert_eq!(node.metric("signalbox_events_dropped_total"), 0.0);
    publisher.subscribe("com.example.alive");
}
