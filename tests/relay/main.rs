//! Calls and events between real data planes over loopback.

mod cluster;
mod events;
#[path = "../support/mod.rs"]
mod support;

use cluster::{Cluster, Node, terms};
use common::config::Config;
use common::metrics::{Counter, Gauge};
use common::noise::{Handshake, Progress};
use common::relay::{Hello, Kind, VERSIONS, put_bare};
use common::transport::Framing;
use common::wire::Serializer;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};
use support::client::Ended;
use support::{Client, PATIENCE, Wire, eventually};

fn join(node: &Node, wire: Wire) -> Client {
    let address = if wire.framing == Framing::RawSocket { node.rawsocket } else { node.websocket };
    Client::join_at(address, wire)
}

/// Calls until the callee's node is known here.
fn call_until_known(caller: &mut Client, procedure: &str, callee: &mut Client, answer: &Value) -> Value {
    let until = Instant::now() + PATIENCE;
    loop {
        let request = caller.request(json!([48, null, {}, procedure, ["hello"]]));
        // The callee gets it, or the caller an error.
        loop {
            assert!(Instant::now() < until, "no way to the callee");
            if let Some(invocation) = callee.arrived().into_iter().find(|message| message[0] == 68) {
                callee.send(&json!([70, invocation[1], {}, answer]));
                return caller.reply(request);
            }
            if caller.arrived().iter().any(|message| message[0] == 8) {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Two nodes, a caller on the first and on the second the callee of `com.example.p`, which it can reach.
fn in_touch(change: impl Fn(&mut Config)) -> (Cluster, Client, Client) {
    let cluster = Cluster::start(2, 1, change);
    cluster.wait_connected(&[0, 1]);
    let mut callee = join(&cluster.nodes[1], Wire::PLAIN);
    callee.register("com.example.p");
    let mut caller = join(&cluster.nodes[0], Wire::PLAIN);
    call_until_known(&mut caller, "com.example.p", &mut callee, &json!([1]));
    (cluster, caller, callee)
}

/// Publishes until the subscriber's node is known here.
fn publish_until_known(publisher: &mut Client, topic: &str, subscriber: &mut Client) {
    eventually("the first event arrives", || {
        publisher.publish(topic, &json!(["first"]));
        subscriber.arrived().iter().any(|message| message[0] == 36).then_some(())
    });
    publisher.publish_acknowledged(topic, &json!(["last"]));
    while subscriber.event()[4] != json!(["last"]) {}
}

#[test]
fn calls_and_events_reach_other_nodes_in_every_serializer() {
    let cluster = Cluster::start(2, 2, |_| {});
    cluster.wait_connected(&[0, 1]);
    let [here, there] = &cluster.nodes[..] else { unreachable!() };
    for serializer in Serializer::ALL {
        let mut callee = join(there, Wire::raw(serializer));
        let name = format!("com.example.{serializer:?}").to_lowercase();
        callee.register(&name);
        callee.subscribe(&name);
        for wire in Wire::all() {
            let mut caller = join(here, wire);
            let result = call_until_known(&mut caller, &name, &mut callee, &json!([7, "é", [1.5, null]]));
            assert_eq!(result[3], json!([7, "é", [1.5, null]]), "{result}");
            publish_until_known(&mut caller, &name, &mut callee);
            for number in 0..50 {
                caller.publish(&name, &json!([number, {"a": [true]}]));
            }
            for number in 0..50 {
                assert_eq!(callee.event()[4], json!([number, {"a": [true]}]), "in order");
            }
            // An error of the callee comes back as it is.
            let request = caller.request(json!([48, null, {}, name, []]));
            let invocation = callee.invocation();
            callee.send(&json!([8, 68, invocation[1], {}, "com.example.failed", ["why"]]));
            let error = caller.reply(request);
            assert_eq!((&error[4], &error[5]), (&json!("com.example.failed"), &json!(["why"])));
        }
    }
    assert_eq!(cluster.counter(0, Counter::RelayBadFrames) + cluster.counter(1, Counter::RelayBadFrames), 0);
    assert!(cluster.counter(0, Counter::RelayRoundTrips) > 0 || cluster.counter(0, Counter::RelayHops) > 0);
}

#[test]
fn one_event_goes_to_a_node_once_whatever_the_number_of_its_subscribers() {
    let cluster = Cluster::start(3, 2, |_| {});
    cluster.wait_connected(&[0, 1, 2]);
    let mut subscribers: Vec<Client> = Vec::new();
    for node in &cluster.nodes[1..] {
        for _ in 0..6 {
            let mut subscriber = join(node, Wire::PLAIN);
            subscriber.subscribe("com.example.many");
            subscribers.push(subscriber);
        }
    }
    let mut publisher = join(&cluster.nodes[0], Wire::PLAIN);
    for subscriber in &mut subscribers {
        publish_until_known(&mut publisher, "com.example.many", subscriber);
    }
    let before = cluster.counter(0, Counter::RelayHops);
    let sent = 20;
    for number in 0..sent {
        publisher.publish_acknowledged("com.example.many", &json!(["numbered", number]));
    }
    for subscriber in &mut subscribers {
        for number in 0..sent {
            while subscriber.event()[4] != json!(["numbered", number]) {}
        }
    }
    assert_eq!(cluster.counter(0, Counter::RelayHops) - before, 2 * sent, "one copy for each node");
}

#[test]
fn calls_to_a_node_that_dies_end_in_an_error_and_later_ones_do_not_wait() {
    let (cluster, mut caller, mut callee) = in_touch(|_| {});
    let requests: Vec<u64> =
        (0..10).map(|_| caller.request(json!([48, null, {}, "com.example.p", []]))).collect();
    (0..10).for_each(|_| drop(callee.invocation()));
    cluster.kill(1);
    for request in requests {
        assert_eq!(caller.reply(request)[4], "wamp.error.canceled");
    }
    // The node is still in the list: a call waits a moment for it to come back, and not longer.
    let error = caller.ask_error(json!([48, null, {}, "com.example.p", []]));
    assert_eq!(error, "wamp.error.unavailable");
    cluster.tell_peers(&[0]);
    eventually("the route is gone", || {
        let error = caller.ask_error(json!([48, null, {}, "com.example.p", []]));
        (error == "wamp.error.no_such_procedure").then_some(())
    });
    assert_eq!(cluster.gauge(0, Gauge::RelayCallsPending), 0);
}

#[test]
fn an_acknowledged_publication_waits_for_live_nodes_only() {
    let cluster = Cluster::start(2, 1, |_| {});
    cluster.wait_connected(&[0, 1]);
    let mut subscriber = join(&cluster.nodes[1], Wire::PLAIN);
    subscriber.subscribe("com.example.t");
    let mut publisher = join(&cluster.nodes[0], Wire::PLAIN);
    publish_until_known(&mut publisher, "com.example.t", &mut subscriber);
    cluster.kill(1);
    let ask = json!([16, null, {"acknowledge": true}, "com.example.t", []]);
    eventually("the node is found to be unreachable", || {
        let request = publisher.request(ask.clone());
        let reply = publisher.reply(request);
        if reply[0] == 17 {
            return None;
        }
        assert_eq!(reply[4], "wamp.error.unavailable");
        let text = reply[5][0].as_str().expect("a text");
        assert!(text.contains("02020202-0202-0202-0202-020202020202"), "{text}");
        Some(())
    });
    cluster.tell_peers(&[0]);
    publisher.publish_acknowledged("com.example.t", &json!([]));
}

/// A node that proves that it is one and then does what the test says.
fn impostor(cluster: &Cluster, at: usize, from: &Hello) -> TcpStream {
    let mut stream = TcpStream::connect(cluster.nodes[at].relay).expect("connected");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    let mut out = Vec::new();
    let mut handshake = Handshake::initiator(terms(7), [9; 32], &from.bytes(), &mut out);
    stream.write_all(&out).expect("written");
    loop {
        let mut buffer = [0; 1];
        stream.read_exact(&mut buffer).expect("an answer");
        if let Progress::Hello(hello) = handshake.receive(&mut &buffer[..]).expect("a valid answer") {
            let hello = Hello::parse(&hello).expect("a hello");
            assert_eq!((hello.from, hello.to), (cluster.nodes[at].epoch, from.from));
            let mut proof = Vec::new();
            handshake.confirm(&mut proof);
            stream.write_all(&proof).expect("written");
            return stream;
        }
    }
}

fn hello(cluster: &Cluster, at: usize) -> Hello {
    Hello {
        versions: VERSIONS,
        from: common::ids::BootEpoch(77),
        to: cluster.nodes[at].epoch,
        shard: 0,
        lane: 0,
        attempt: 1,
    }
}

fn is_closed(stream: &mut TcpStream) -> bool {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => true,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

#[test]
fn strangers_and_broken_nodes_disturb_nobody() {
    let (cluster, mut caller, mut callee) =
        in_touch(|config| config.timeouts.login = Duration::from_millis(300));

    // Bytes that are no handshake, half of one, one with another key, one for another life.
    let connect = || {
        let stream = TcpStream::connect(cluster.nodes[1].relay).expect("connected");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        stream
    };
    let mut stream = connect();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("written");
    assert!(is_closed(&mut stream));
    let mut first = Vec::new();
    Handshake::initiator(terms(7), [8; 32], &hello(&cluster, 1).bytes(), &mut first);
    let mut stream = connect();
    stream.write_all(&first[..first.len() - 1]).expect("written");
    assert!(is_closed(&mut stream), "at the deadline");
    first.clear();
    Handshake::initiator(terms(8), [8; 32], &hello(&cluster, 1).bytes(), &mut first);
    let mut stream = connect();
    stream.write_all(&first).expect("written");
    assert!(is_closed(&mut stream));
    let wrong = Hello { to: common::ids::BootEpoch(5), ..hello(&cluster, 1) };
    first.clear();
    Handshake::initiator(terms(7), [8; 32], &wrong.bytes(), &mut first);
    let mut stream = connect();
    stream.write_all(&first).expect("written");
    let mut refusal = Vec::new();
    stream.read_to_end(&mut refusal).expect("a refusal");
    assert_eq!(refusal, common::noise::Refusal::Identity.bytes());

    // A node that is one, but sends nonsense.
    let mut stream = impostor(&cluster, 1, &hello(&cluster, 1));
    stream.write_all(&[0xff; 100]).expect("written");
    assert!(is_closed(&mut stream));
    assert_eq!(cluster.counter(1, Counter::RelayBadFrames), 1);
    assert!(cluster.counter(1, Counter::RelayHandshakesFailed) >= 4);

    let request = caller.request(json!([48, null, {}, "com.example.p", []]));
    let invocation = callee.invocation();
    callee.send(&json!([70, invocation[1], {}, [2]]));
    assert_eq!(caller.reply(request)[3], json!([2]));
}

#[test]
fn a_node_that_takes_nothing_costs_bounded_memory_and_no_local_traffic() {
    const QUEUE_MAX: u32 = 1 << 20;
    let cluster = Cluster::start(2, 1, |config| config.relay.queue_max = QUEUE_MAX);
    cluster.wait_connected(&[0, 1]);
    let mut subscriber = join(&cluster.nodes[1], Wire::PLAIN);
    subscriber.subscribe("com.example.t");
    let mut publisher = join(&cluster.nodes[0], Wire::PLAIN);
    publish_until_known(&mut publisher, "com.example.t", &mut subscriber);
    // In place of the other node there is now one that never reads.
    let deaf = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let mut peer = cluster.peer(1);
    peer.relay = deaf.local_addr().expect("an address").to_string();
    cluster.feed(0, &dataplane::feed::FeedDown::Peers(vec![peer].into()));
    let (mut stream, _) = deaf.accept().expect("the node connects");
    answer_as(&mut stream, cluster.nodes[1].epoch);

    let mut local = join(&cluster.nodes[0], Wire::PLAIN);
    local.subscribe("com.example.t");
    // It says that it lives, so only the queue can be what bounds.
    let mut pings = stream.try_clone().expect("a socket");
    std::thread::spawn(move || {
        let mut ping = Vec::new();
        put_bare(&mut ping, Kind::Ping, 1);
        while pings.write_all(&ping).is_ok() {
            std::thread::sleep(Duration::from_millis(200));
        }
    });
    let padding = "x".repeat(100_000);
    let until = Instant::now() + PATIENCE;
    let mut published = 0;
    while cluster.counter(0, Counter::DroppedRelayFull) < 10 {
        assert!(Instant::now() < until, "{published} events were published and none was dropped");
        publisher.publish("com.example.t", &json!([published, padding]));
        assert_eq!(local.event()[4][0], json!(published), "local subscribers get everything");
        published += 1;
        assert!(cluster.gauge(0, Gauge::RelayQueuedBytes) <= u64::from(QUEUE_MAX) + 100_000);
    }
    assert_eq!(cluster.counter(0, Counter::ReadsPaused), 0, "publishers are not held back for it");
}

/// Answers the handshake of a lane.
fn answer_as(stream: &mut TcpStream, epoch: common::ids::BootEpoch) {
    let mut handshake = Handshake::responder(terms(7), [3; 32]);
    loop {
        let mut buffer = [0; 1];
        stream.read_exact(&mut buffer).expect("a handshake");
        match handshake.receive(&mut &buffer[..]).expect("a valid handshake") {
            Progress::More => {}
            Progress::Hello(hello) => {
                let hello = Hello::parse(&hello).expect("a hello");
                let answer = Hello { from: epoch, to: hello.from, shard: 0, lane: 0, attempt: 0, ..hello };
                let mut out = Vec::new();
                handshake.answer(&answer.bytes(), &mut out);
                stream.write_all(&out).expect("written");
            }
            Progress::Done(_) => return,
        }
    }
}

#[test]
fn a_silent_node_is_noticed_and_its_calls_end() {
    let (cluster, mut caller, _callee) = in_touch(|_| {});
    let deaf = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let mut peer = cluster.peer(1);
    peer.relay = deaf.local_addr().expect("an address").to_string();
    cluster.feed(0, &dataplane::feed::FeedDown::Peers(vec![peer].into()));
    let (mut stream, _) = deaf.accept().expect("the node connects");
    answer_as(&mut stream, cluster.nodes[1].epoch);
    let begun = Instant::now();
    let error = caller.ask_error(json!([48, null, {}, "com.example.p", []]));
    assert_eq!(error, "wamp.error.canceled");
    assert!(begun.elapsed() > Duration::from_secs(1), "it was given time");
}

#[test]
fn calls_and_events_cross_in_tls() {
    let cluster = Cluster::start(2, 2, |config| config.relay.tls = true);
    cluster.wait_connected(&[0, 1]);
    let [here, there] = &cluster.nodes[..] else { unreachable!() };
    let mut callee = join(there, Wire::PLAIN);
    callee.register("com.example.p");
    callee.subscribe("com.example.p");
    let mut caller = join(here, Wire::raw(Serializer::Json));
    let result = call_until_known(&mut caller, "com.example.p", &mut callee, &json!(["é"]));
    assert_eq!(result[3], json!(["é"]));
    publish_until_known(&mut caller, "com.example.p", &mut callee);
    // Longer than any record of TLS, and than what one operation sends.
    for size in [20_000, 900_000] {
        let text = "x".repeat(size);
        caller.publish("com.example.p", &json!([text]));
        assert_eq!(callee.event()[4], json!([text]));
    }
    for number in 0..200 {
        caller.publish("com.example.p", &json!([number]));
    }
    for number in 0..200 {
        assert_eq!(callee.event()[4], json!([number]), "in order");
    }
    // What crosses is not in the clear: whoever speaks without TLS is not even answered.
    let mut stream = TcpStream::connect(there.relay).expect("connected");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    let mut first = Vec::new();
    Handshake::initiator(terms(7), [8; 32], &hello(&cluster, 1).bytes(), &mut first);
    stream.write_all(&first).expect("written");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(answer.len() < 10 && answer.first().is_none_or(|first| *first == 21), "an alert: {answer:?}");
}

#[test]
fn a_certificate_of_another_authority_makes_no_node() {
    let cluster = Cluster::start_each(2, 1, |node, config| {
        config.relay.tls = true;
        if node == 1 {
            config.relay.tls_authorities = "other".into();
        }
    });
    for node in 0..2 {
        eventually("connections are refused", || {
            (cluster.counter(node, Counter::RelayHandshakesFailed) > 2).then_some(())
        });
        assert_eq!(cluster.counter(node, Counter::RelayHandshakes), 0);
    }
}

#[test]
fn pem_files_that_do_not_fit_are_refused() {
    use cluster::{OTHER_KEY, OWN_AUTHORITY, OWN_CERTIFICATE, OWN_KEY};
    let refused = |certificate, key, authority| {
        dataplane::shard::TlsConfig::new(certificate, key, authority).err().map(|error| error.to_string())
    };
    assert_eq!(refused(OWN_CERTIFICATE, OWN_KEY, OWN_AUTHORITY), None);
    for (certificate, key, authority) in [
        (OWN_CERTIFICATE, OTHER_KEY, OWN_AUTHORITY),
        (OWN_KEY, OWN_KEY, OWN_AUTHORITY),
        (OWN_CERTIFICATE, OWN_CERTIFICATE, OWN_AUTHORITY),
        (OWN_CERTIFICATE, OWN_KEY, b"".as_slice()),
        (b"-----BEGIN CERTIFICATE-----\n!!".as_slice(), OWN_KEY, OWN_AUTHORITY),
    ] {
        assert!(refused(certificate, key, authority).is_some());
    }
}

#[test]
fn a_drained_node_ends_its_sessions_first_and_then_its_relay() {
    let cluster = Cluster::start(2, 1, |_| {});
    cluster.wait_connected(&[0, 1]);
    let mut client = join(&cluster.nodes[1], Wire::PLAIN);
    cluster.feed(1, &dataplane::feed::FeedDown::Drain);
    assert_eq!(client.take("GOODBYE", |message| message[0] == 6)[2], "wamp.close.system_shutdown");
    assert!(cluster.gauge(0, Gauge::RelayConnections) >= 1, "the relay outlives the sessions");
    client.send(&json!([6, {}, "wamp.close.goodbye_and_out"]));
    let Ended { .. } = client.end();
    eventually("the relay is closed", || (cluster.gauge(1, Gauge::RelayConnections) == 0).then_some(()));
}
