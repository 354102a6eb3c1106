//! Sessions over HTTP: requests on connections of any shard, transports on theirs.

mod requests;
mod storm;

use crate::places::everywhere;
use crate::rig::Rig;
use crate::{HELLO, connect, frames, messages};
use common::config::Config;
use common::metrics::Gauge;
use common::noise::Entropy;
use dataplane::feed::FeedDown;
use dataplane::shard::{HttpConfig, ShardConfig};
use std::time::Duration;

/// The rig's WebSocket listener, which serves HTTP too.
const HTTP: usize = 1;

fn serving(config: &mut ShardConfig) {
    let settings = Config::default().http;
    let entropy = Entropy::new([config.seed as u8; 32]);
    config.listeners[HTTP].http = true;
    config.http = Some(HttpConfig { settings, transports_max: 3, entropy });
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

/// A request with a body, or without one if that is empty.
fn request(method: &str, path: &str, body: &str) -> String {
    let length = match (method, body) {
        ("GET" | "OPTIONS", "") => String::new(),
        _ => format!("Content-Length: {}\r\n", body.len()),
    };
    format!("{method} {path} HTTP/1.1\r\nHost: a\r\n{length}\r\n{body}")
}

/// The answers a connection got since it was last asked.
fn answers(rig: &mut Rig, at: usize) -> Vec<Answer> {
    let got = String::from_utf8(std::mem::take(&mut rig.links[at].got)).expect("text");
    let (mut rest, mut answers) = (&got[..], Vec::new());
    while let Some((head, after)) = rest.split_once("\r\n\r\n") {
        let status = head[9..12].parse().expect("a status");
        let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name));
        let length = match header("Content-Length: ") {
            Some(length) => length.parse().expect("a number"),
            None if header("Transfer-Encoding: chunked").is_some() => after.len(),
            None => 0,
        };
        let (body, after) = after.split_at(length);
        answers.push(Answer { status, head: head.to_owned(), body: body.to_owned() });
        rest = after;
    }
    assert_eq!(rest, "", "whole answers");
    answers
}

/// Sends a request and waits for its one answer.
fn ask(rig: &mut Rig, at: usize, method: &str, path: &str, body: &str) -> Answer {
    rig.receive(at, request(method, path, body).as_bytes());
    rig.run();
    let mut answers = answers(rig, at);
    assert_eq!(answers.len(), 1, "{method} {path}");
    answers.remove(0)
}

/// A transport, opened by a connection of its shard, and the connections that use it.
struct Transport {
    base: String,
    up: usize,
    down: usize,
}

impl Transport {
    /// `other`: the shard of its other connection.
    fn open(rig: &mut Rig, kind: &str, protocol: &str, shard: usize, other: usize) -> Self {
        let at = rig.connect(shard, HTTP).expect("there is room");
        let path = format!("/wamp/{kind}/open");
        let answer = ask(rig, at, "POST", &path, &format!("{{\"protocols\":[\"{protocol}\"]}}"));
        assert_eq!(answer.status, 200, "{}", answer.body);
        let prefix = format!("{{\"protocol\":\"{protocol}\",\"transport\":\"");
        let id = answer.body.strip_prefix(&prefix).and_then(|rest| rest.strip_suffix("\"}"));
        let base = format!("/wamp/{kind}/{}", id.expect("an id"));
        Self { base, up: at, down: rig.connect(other, HTTP).expect("there is room") }
    }

    fn send(&self, rig: &mut Rig, message: &str) -> u16 {
        ask(rig, self.up, "POST", &format!("{}/send", self.base), message).status
    }

    /// Begins to receive.
    fn wait(&self, rig: &mut Rig) {
        rig.receive(self.down, request("POST", &format!("{}/receive", self.base), "").as_bytes());
        rig.run();
    }

    fn receive(&self, rig: &mut Rig) -> String {
        let answer = ask(rig, self.down, "POST", &format!("{}/receive", self.base), "");
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.body
    }

    fn join(&self, rig: &mut Rig, realm: &str) {
        assert_eq!(self.send(rig, &HELLO.replace("realm1", realm)), 202);
        let welcome = self.receive(rig);
        assert!(welcome.starts_with("[2,"), "{welcome}");
    }

    fn close(&self, rig: &mut Rig) -> u16 {
        ask(rig, self.up, "POST", &format!("{}/close", self.base), "").status
    }
}

#[test]
fn a_long_poll_session_calls_and_is_called_from_everywhere() {
    everywhere(|place, realm| {
        let mut rig = place.rig(serving);
        // The other shard of the same node.
        let other = place.first ^ 1;
        let poll = Transport::open(&mut rig, "longpoll", "wamp.2.json", place.first, other);
        poll.join(&mut rig, realm);
        let peer = connect(&mut rig, place.second, &[&HELLO.replace("realm1", realm)]);
        rig.run();
        messages(&mut rig, peer);
        rig.receive(peer, &frames(&[r#"[64,1,{},"com.example.theirs"]"#, r#"[32,2,{},"com.example.news"]"#]));
        assert_eq!(poll.send(&mut rig, r#"[64,1,{},"com.example.ours"]"#), 202);
        assert!(poll.receive(&mut rig).starts_with("[65,1,"));
        assert_eq!(poll.send(&mut rig, r#"[32,2,{},"com.example.news"]"#), 202);
        assert!(poll.receive(&mut rig).starts_with("[33,2,"));
        messages(&mut rig, peer);

        assert_eq!(poll.send(&mut rig, r#"[48,3,{},"com.example.theirs",[1]]"#), 202);
        assert!(messages(&mut rig, peer)[0].starts_with("[68,1,"));
        poll.wait(&mut rig);
        assert!(answers(&mut rig, poll.down).is_empty(), "nothing is there yet");
        rig.receive(peer, &frames(&[r#"[70,1,{},["theirs"]]"#]));
        rig.run();
        assert_eq!(answers(&mut rig, poll.down)[0].body, r#"[50,3,{},["theirs"]]"#);

        poll.wait(&mut rig);
        rig.receive(peer, &frames(&[r#"[48,3,{},"com.example.ours",["x"]]"#]));
        rig.run();
        let invocation = answers(&mut rig, poll.down).remove(0).body;
        assert!(invocation.starts_with("[68,1,") && invocation.ends_with(",{},[\"x\"]]"), "{invocation}");
        assert_eq!(poll.send(&mut rig, r#"[70,1,{},["ours"]]"#), 202);
        assert_eq!(messages(&mut rig, peer), [r#"[50,3,{},["ours"]]"#]);

        rig.receive(peer, &frames(&[r#"[16,4,{},"com.example.news",["hello"]]"#]));
        rig.run();
        assert!(poll.receive(&mut rig).ends_with(",[\"hello\"]]"));
        assert_eq!(poll.send(&mut rig, r#"[16,4,{},"com.example.news",["hi"]]"#), 202);
        assert!(messages(&mut rig, peer)[0].ends_with(",[\"hi\"]]"));
        // It leaves while somebody waits for its answer.
        rig.receive(peer, &frames(&[r#"[48,5,{},"com.example.ours"]"#]));
        rig.run();
        assert_eq!(poll.close(&mut rig), 202);
        assert_eq!(
            messages(&mut rig, peer),
            [r#"[8,48,5,{},"wamp.error.canceled",["the callee has left"]]"#]
        );
        assert_eq!(poll.close(&mut rig), 404);
        rig.check_empty();
    });
}

#[test]
fn a_session_of_events_is_served_from_everywhere() {
    everywhere(|place, realm| {
        let mut rig = place.rig(serving);
        let events = Transport::open(&mut rig, "sse", "wamp.2.json.sse", place.first, place.first ^ 1);
        let path = format!("{}/receive", events.base);
        rig.receive(events.down, request("GET", &path, "").as_bytes());
        rig.run();
        let stream = answers(&mut rig, events.down).remove(0);
        assert!(stream.head.contains("\r\nContent-Type: text/event-stream\r\n"), "{}", stream.head);
        let next = |rig: &mut Rig| {
            rig.run();
            String::from_utf8(std::mem::take(&mut rig.links[events.down].got)).expect("text")
        };
        assert_eq!(events.send(&mut rig, &HELLO.replace("realm1", realm)), 202);
        let welcome = next(&mut rig);
        assert!(welcome.contains("\r\nevent: wamp\ndata: [2,"), "{welcome}");
        assert_eq!(events.send(&mut rig, r#"[32,1,{},"com.example.news"]"#), 202);
        next(&mut rig);
        let peer = connect(&mut rig, place.second, &[&HELLO.replace("realm1", realm)]);
        rig.run();
        for n in 1..=3 {
            let publish = format!("[16,{n},{{}},\"com.example.news\",[{n},\r\n\"x\"]]");
            rig.receive(peer, &frames(&[&publish]));
        }
        let got = next(&mut rig);
        let ends: Vec<usize> =
            (1..=3).filter_map(|n| got.find(&format!(",[{n},\ndata: \ndata: \"x\"]]\n\n"))).collect();
        assert!(ends.len() == 3 && ends.is_sorted(), "{got}");
        // What the client says last ends the stream, once the session has said so.
        assert_eq!(events.send(&mut rig, r#"[6,{},"wamp.close.close_realm"]"#), 202);
        assert!(next(&mut rig).contains("data: [6,{},\"wamp.close.goodbye_and_out\"]"));
        rig.pass(Duration::from_secs(3));
        let end = next(&mut rig);
        assert!(end.contains("event: session_terminated\n") && end.ends_with("\r\n0\r\n\r\n"), "{end}");
        assert_eq!(
            ask(&mut rig, events.down, "GET", &path, "").status,
            404,
            "the connection is good for more"
        );
        rig.check_empty();
    });
}

#[test]
fn the_meta_api_knows_what_a_session_speaks() {
    for (kind, receives) in [("longpoll", true), ("sse", false)] {
        let mut rig = Rig::new(2, serving);
        let transport = Transport::open(&mut rig, kind, "wamp.2.json", 0, 1);
        assert_eq!(transport.send(&mut rig, HELLO), 202);
        if receives {
            transport.receive(&mut rig);
        }
        let peer = connect(&mut rig, 1, &[HELLO]);
        rig.run();
        messages(&mut rig, peer);
        rig.receive(peer, &frames(&[r#"[48,1,{},"wamp.session.list"]"#]));
        rig.run();
        let list = messages(&mut rig, peer).remove(0);
        let ids =
            list.split(['[', ']', ',']).filter_map(|word| word.parse::<u64>().ok()).filter(|id| *id > 50);
        let asked: Vec<String> = ids
            .enumerate()
            .map(|(n, id)| format!("[48,{},{{}},\"wamp.session.get\",[{id}]]", n + 2))
            .collect();
        assert_eq!(asked.len(), 2, "{list}");
        for ask in &asked {
            rig.receive(peer, &frames(&[ask]));
        }
        rig.run();
        let details = messages(&mut rig, peer).join("\n");
        let shown =
            format!("\"transport\":{{\"type\":\"{kind}\",\"serializer\":\"json\",\"peer\":\"127.0.0.1\"");
        assert!(details.contains(&shown), "{details}");
        transport.close(&mut rig);
        rig.check_empty();
    }
}

#[test]
fn what_was_accepted_is_answered_as_clients_want_it() {
    let mut rig = Rig::new(2, |config| {
        serving(config);
        if let Some(http) = &mut config.http {
            http.settings.accepts_without_content = true;
        }
    });
    let poll = Transport::open(&mut rig, "longpoll", "wamp.2.json", 0, 1);
    assert_eq!(poll.send(&mut rig, HELLO), 204);
    assert_eq!(poll.close(&mut rig), 204);
    rig.check_empty();
}

#[test]
fn batches_hold_all_that_waits() {
    let mut rig = Rig::new(2, serving);
    let poll = Transport::open(&mut rig, "longpoll", "wamp.2.json.batched", 0, 1);
    assert_eq!(poll.send(&mut rig, &format!("{HELLO}\x1e")), 202);
    assert!(poll.receive(&mut rig).starts_with("[2,"));
    let two = "[32,1,{},\"com.example.a\"]\x1e[32,2,{},\"com.example.b\"]\x1e";
    assert_eq!(poll.send(&mut rig, two), 202);
    let batch = poll.receive(&mut rig);
    let subscribed: Vec<&str> = batch.split_terminator('\x1e').map(|message| &message[..6]).collect();
    assert_eq!(subscribed, ["[33,1,", "[33,2,"]);
    // A batch that is none ends the session, and the client is told of it both ways.
    assert_eq!(poll.send(&mut rig, "[32,3,{},\"com.example.c\"]"), 400);
    let last = poll.receive(&mut rig);
    assert!(last.starts_with("[3,") && last.contains("wamp.error.protocol_violation"), "{last}");
    assert_eq!(poll.send(&mut rig, "[5]\x1e"), 400);
    poll.wait(&mut rig);
    rig.pass(Duration::from_secs(4));
    rig.run();
    assert_eq!(answers(&mut rig, poll.down)[0].status, 404, "all of it was fetched, so it is gone");
    rig.check_empty();
}

#[test]
fn a_refused_login_is_told_by_abort_and_no_error_of_the_request() {
    let mut rig = Rig::new(2, serving);
    let poll = Transport::open(&mut rig, "longpoll", "wamp.2.json", 0, 1);
    assert_eq!(poll.send(&mut rig, &HELLO.replace("realm1", "nowhere")), 202);
    let abort = poll.receive(&mut rig);
    assert!(abort.starts_with("[3,") && abort.contains("wamp.error.no_such_realm"), "{abort}");
    // The client closes what is over.
    poll.wait(&mut rig);
    assert_eq!(poll.close(&mut rig), 202);
    assert_eq!(answers(&mut rig, poll.down)[0].status, 204);
    rig.check_empty();
}

#[test]
fn one_request_waits_and_a_second_one_is_refused() {
    for other in [0, 1] {
        let mut rig = Rig::new(2, serving);
        let poll = Transport::open(&mut rig, "longpoll", "wamp.2.json", 0, other);
        poll.join(&mut rig, "realm1");
        poll.wait(&mut rig);
        let second = rig.connect(1 - other, HTTP).expect("there is room");
        let receive = format!("{}/receive", poll.base);
        let answer = ask(&mut rig, second, "POST", &receive, "");
        assert_eq!((answer.status, &answer.body[..26]), (409, r#"{"error":"receive_pending""#));
        // The first goes, and the second may wait in its place.
        rig.close(poll.down);
        rig.run();
        rig.receive(second, request("POST", &receive, "").as_bytes());
        rig.run();
        assert!(answers(&mut rig, second).is_empty());
        assert_eq!(poll.send(&mut rig, r#"[32,1,{},"com.example.a"]"#), 202);
        rig.run();
        assert!(answers(&mut rig, second)[0].body.starts_with("[33,1,"));
        // Whoever waits for a transport that is closed waits no longer.
        rig.receive(second, request("POST", &receive, "").as_bytes());
        rig.run();
        assert_eq!(poll.close(&mut rig), 202);
        assert_eq!(answers(&mut rig, second)[0].status, 204);
        assert_eq!(ask(&mut rig, second, "POST", &receive, "").status, 404);
        rig.check_empty();
    }
}

/// Two answers for a session, of which the kernel has one, on a connection of shard `other`, and does not get rid of it.
fn stuck_answers(other: usize) -> (Rig, Transport) {
    let mut rig = Rig::new(2, serving);
    let poll = Transport::open(&mut rig, "longpoll", "wamp.2.json", 0, other);
    poll.join(&mut rig, "realm1");
    rig.links[poll.down].stuck = true;
    poll.wait(&mut rig);
    assert_eq!(poll.send(&mut rig, r#"[32,1,{},"com.example.a"]"#), 202);
    assert_eq!(poll.send(&mut rig, r#"[32,2,{},"com.example.b"]"#), 202);
    (rig, poll)
}

#[test]
fn what_a_connection_did_not_carry_comes_again_by_another() {
    for other in [0, 1] {
        let (mut rig, poll) = stuck_answers(other);
        // The connection breaks; a client that comes meanwhile waits for its turn.
        let next = rig.connect(1 - other, HTTP).expect("there is room");
        let receive = request("POST", &format!("{}/receive", poll.base), "");
        rig.receive(next, receive.as_bytes());
        rig.run();
        assert!(answers(&mut rig, next).is_empty());
        rig.finish_send(poll.down, false);
        rig.run();
        assert!(answers(&mut rig, next)[0].body.starts_with("[33,1,"), "in order, and none is lost");
        rig.receive(next, receive.as_bytes());
        rig.run();
        assert!(answers(&mut rig, next)[0].body.starts_with("[33,2,"));
        poll.close(&mut rig);
        rig.check_empty();
    }
}

#[test]
fn what_a_client_may_have_read_does_not_come_twice() {
    for other in [0, 1] {
        let (mut rig, poll) = stuck_answers(other);
        // It closes before the driver says that all was sent.
        rig.close(poll.down);
        rig.run();
        let next = ask(&mut rig, poll.up, "POST", &format!("{}/receive", poll.base), "");
        assert!(next.body.starts_with("[33,2,"), "{}", next.body);
        poll.close(&mut rig);
        rig.check_empty();
    }
}

#[test]
fn time_ends_what_nobody_asks_for() {
    let mut rig = Rig::new(2, |config| {
        serving(config);
        config.timeouts.ping_interval = Duration::from_secs(1);
    });
    let poll = Transport::open(&mut rig, "longpoll", "wamp.2.json", 0, 1);
    let events = Transport::open(&mut rig, "sse", "wamp.2.json", 0, 1);
    let stranger = Transport::open(&mut rig, "longpoll", "wamp.2.json", 0, 1);
    for transport in [&poll, &events] {
        assert_eq!(transport.send(&mut rig, HELLO), 202);
    }
    rig.receive(events.down, request("GET", &format!("{}/receive", events.base), "").as_bytes());
    assert!(poll.receive(&mut rig).starts_with("[2,"));
    rig.links[events.down].got.clear();
    let pass = |rig: &mut Rig, seconds: u32| {
        for _ in 0..seconds * 2 {
            rig.pass(Duration::from_millis(500));
            rig.run();
        }
    };
    poll.wait(&mut rig);
    pass(&mut rig, 9);
    assert!(answers(&mut rig, poll.down).is_empty());
    pass(&mut rig, 2);
    assert_eq!(answers(&mut rig, poll.down)[0].status, 204);
    assert_eq!(stranger.send(&mut rig, HELLO), 404, "nobody logged in");
    pass(&mut rig, 10);
    let got = String::from_utf8(std::mem::take(&mut rig.links[events.down].got)).expect("text");
    assert!(got.ends_with("3\r\n:\n\n\r\n"), "{got}");
    // A stream keeps its transport; one that is not asked for is closed, and its session with it.
    pass(&mut rig, 47);
    assert_eq!(rig.gauge(0, Gauge::Sessions), 2);
    pass(&mut rig, 4);
    assert_eq!((rig.gauge(0, Gauge::Sessions), rig.gauge(0, Gauge::HttpTransports)), (1, 1));
    assert!(!rig.links[poll.down].open, "connections without requests are closed too");
    assert!(rig.links[events.down].open);
    rig.close(events.down);
    pass(&mut rig, 62);
    rig.check_empty();
}

#[test]
fn a_client_that_does_not_read_its_events_is_closed() {
    let mut rig = Rig::new(1, serving);
    let events = Transport::open(&mut rig, "sse", "wamp.2.json", 0, 0);
    rig.receive(events.down, request("GET", &format!("{}/receive", events.base), "").as_bytes());
    rig.run();
    rig.links[events.down].stuck = true;
    assert_eq!(events.send(&mut rig, HELLO), 202);
    for _ in 0..62 {
        rig.pass(Duration::from_secs(1));
        rig.run();
    }
    assert!(!rig.links[events.down].open);
    rig.pass(Duration::from_secs(61));
    rig.check_empty();
}

#[test]
fn slow_receivers_lose_their_oldest_events_and_no_replies() {
    let mut rig = Rig::new(2, |config| {
        serving(config);
        config.listeners[HTTP].message_max = 1 << 10;
        config.slow_receiver.queue_max = 4 << 10;
        config.slow_receiver.reply_reserve = 2 << 10;
    });
    let poll = Transport::open(&mut rig, "longpoll", "wamp.2.json", 0, 1);
    poll.join(&mut rig, "realm1");
    assert_eq!(poll.send(&mut rig, r#"[32,1,{},"com.example.a"]"#), 202);
    let publisher = connect(&mut rig, 1, &[HELLO]);
    rig.run();
    let text = "x".repeat(100);
    for n in 1..=100 {
        rig.receive(publisher, &frames(&[&format!("[16,{n},{{}},\"com.example.a\",[{n},\"{text}\"]]")]));
    }
    rig.run();
    assert!(rig.gauge(0, Gauge::QueuedBytes) <= 4 << 10);
    assert!(poll.receive(&mut rig).starts_with("[33,1,"), "replies stay");
    let first = poll.receive(&mut rig);
    assert!(!first.contains(",[1,"), "{first}");
    let mut last = first;
    while rig.gauge(0, Gauge::QueuedBytes) > 0 {
        last = poll.receive(&mut rig);
    }
    assert!(last.contains(",[100,"), "{last}");
    poll.close(&mut rig);
    rig.check_empty();
}

#[test]
fn a_node_that_drains_lets_clients_fetch_the_end() {
    let mut rig = Rig::new(2, serving);
    let waiting = Transport::open(&mut rig, "longpoll", "wamp.2.json", 0, 1);
    let polling = Transport::open(&mut rig, "longpoll", "wamp.2.json", 0, 1);
    let stranger = Transport::open(&mut rig, "longpoll", "wamp.2.json", 0, 1);
    waiting.join(&mut rig, "realm1");
    polling.join(&mut rig, "realm1");
    waiting.wait(&mut rig);
    stranger.wait(&mut rig);
    rig.feed(&FeedDown::Drain);
    let end = answers(&mut rig, waiting.down).remove(0);
    assert!(end.body.starts_with("[6,") && end.head.contains("Connection: close"), "{}", end.body);
    assert_eq!(answers(&mut rig, stranger.down)[0].status, 404);
    assert!(polling.receive(&mut rig).starts_with("[6,"));
    assert_eq!(rig.gauge(0, Gauge::HttpTransports), 0);
    let open = ask(&mut rig, stranger.up, "POST", "/wamp/longpoll/open", "{\"protocols\":[\"wamp.2.json\"]}");
    assert_eq!(open.status, 503);
    for _ in 0..40 {
        rig.pass(Duration::from_millis(100));
        rig.run();
    }
    assert!(rig.links.iter().all(|link| !link.open), "nothing keeps the node");
}

#[test]
fn there_are_so_many_transports_and_no_more() {
    let mut rig = Rig::new(1, serving);
    let transports: Vec<Transport> =
        (0..3).map(|_| Transport::open(&mut rig, "longpoll", "wamp.2.cbor", 0, 0)).collect();
    let body = "{\"protocols\":[\"wamp.2.json\"]}";
    let refused = ask(&mut rig, transports[0].up, "POST", "/wamp/longpoll/open", body);
    assert_eq!(refused.status, 503);
    assert!(refused.head.contains("\r\nRetry-After: 1\r\n"));
    assert_eq!(transports[1].close(&mut rig), 202);
    let again = Transport::open(&mut rig, "longpoll", "wamp.2.json", 0, 0);
    assert_ne!(again.base, transports[1].base);
    assert_eq!(transports[1].close(&mut rig), 404, "the name of the one before is not known any more");
    for transport in [&transports[0], &transports[2], &again] {
        assert_eq!(transport.close(&mut rig), 202);
    }
    rig.check_empty();
}

/// Some large messages fill its memory.
fn short_of_memory() -> Rig {
    Rig::new(2, |config| {
        serving(config);
        config.memory_max = 200 << 10;
        config.slow_receiver.queue_max = 1 << 20;
    })
}

/// A large PUBLISH.
fn large(request: u32) -> String {
    format!("[16,{request},{{}},\"com.example.a\",[\"{}\"]]", "x".repeat(50 << 10))
}

#[test]
fn what_feeds_a_shard_without_memory_waits() {
    let mut rig = short_of_memory();
    let subscriber = connect(&mut rig, 1, &[HELLO, r#"[32,1,{},"com.example.a"]"#]);
    let poll = Transport::open(&mut rig, "longpoll", "wamp.2.json", 0, 1);
    poll.join(&mut rig, "realm1");
    rig.run();
    rig.links[subscriber].stuck = true;
    let path = format!("{}/send", poll.base);
    let mut waited = 0;
    for n in 1..=8 {
        rig.receive(poll.up, request("POST", &path, &large(n)).as_bytes());
        rig.run();
        if answers(&mut rig, poll.up).is_empty() {
            waited = n;
            break;
        }
    }
    assert!((4..8).contains(&waited), "{waited}");
    let refused = ask(&mut rig, poll.down, "POST", &path, &large(9));
    assert_eq!(refused.status, 503, "the next one is not even looked at");
    rig.links[subscriber].stuck = false;
    rig.run();
    assert_eq!(answers(&mut rig, poll.up)[0].status, 202);
    assert_eq!(poll.send(&mut rig, &large(10)), 202);
    assert_eq!(poll.close(&mut rig), 202);
    rig.check_empty();
}

#[test]
fn who_is_held_back_is_answered_when_the_transport_ends() {
    let mut rig = short_of_memory();
    let subscriber = connect(&mut rig, 1, &[HELLO, r#"[32,1,{},"com.example.a"]"#]);
    let poll = Transport::open(&mut rig, "longpoll", "wamp.2.json", 0, 1);
    poll.join(&mut rig, "realm1");
    rig.links[subscriber].stuck = true;
    let path = format!("{}/send", poll.base);
    let is_held = (1..8).any(|n| {
        rig.receive(poll.up, request("POST", &path, &large(n)).as_bytes());
        rig.run();
        answers(&mut rig, poll.up).is_empty()
    });
    assert!(is_held);
    assert_eq!(ask(&mut rig, poll.down, "POST", &format!("{}/close", poll.base), "").status, 202);
    assert_eq!(answers(&mut rig, poll.up)[0].status, 202, "it was handled");
    rig.links[subscriber].stuck = false;
    rig.run();
    rig.check_empty();
}

#[test]
fn what_a_client_has_taken_makes_room_for_publishers() {
    for other in [0, 1] {
        let mut rig = short_of_memory();
        let poll = Transport::open(&mut rig, "longpoll", "wamp.2.json", 0, other);
        poll.join(&mut rig, "realm1");
        assert_eq!(poll.send(&mut rig, r#"[32,1,{},"com.example.a"]"#), 202);
        assert!(poll.receive(&mut rig).starts_with("[33,1,"));
        let publisher = connect(&mut rig, 0, &[HELLO]);
        rig.run();
        let mut sent = 0;
        while !rig.links[publisher].paused {
            sent += 1;
            assert!(sent < 20, "there is no room for so many");
            rig.receive(publisher, &frames(&[&large(sent)]));
            rig.run();
        }
        while rig.links[publisher].paused {
            assert!(poll.receive(&mut rig).starts_with("[36,"));
        }
        poll.close(&mut rig);
        rig.check_empty();
    }
}
