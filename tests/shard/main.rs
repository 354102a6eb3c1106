//! Shards driven by hand: histories that depend on what arrives in one piece, and on what does not arrive.

mod backlog;
mod calls;
mod clients;
mod draining;
mod events;
mod hall;
mod history;
mod http;
mod inflating;
mod meta;
mod nodes;
mod places;
mod registrations;
mod resumption;
mod retained;
mod rig;
mod rules;
mod searches;
mod sharded;
mod switches;

use common::metrics::Gauge;
use common::transport::rawsocket::{self, Handshake};
use common::wire::Serializer;
use rig::Rig;

const RAWSOCKET: usize = 0;
use std::time::Duration;

const HELLO: &str = r#"[1,"realm1",{"roles":{"caller":{},"callee":{},"publisher":{},"subscriber":{}}}]"#;

/// RawSocket frames of JSON messages.
fn frames(messages: &[&str]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for message in messages {
        bytes.extend_from_slice(&(message.len() as u32).to_be_bytes());
        bytes.extend_from_slice(message.as_bytes());
    }
    bytes
}

/// A RawSocket connection that sends the handshake and `messages` in one piece.
fn connect(rig: &mut Rig, shard: usize, messages: &[&str]) -> usize {
    connect_with(rig, shard, messages, 1 << 24)
}

/// The same of a client that takes messages of so many bytes.
fn connect_with(rig: &mut Rig, shard: usize, messages: &[&str], message_bytes_max: usize) -> usize {
    let at = rig.connect(shard, RAWSOCKET).expect("there is room");
    let handshake = Handshake { serializer: Serializer::Json, message_bytes_max };
    let mut bytes = rawsocket::write(handshake).to_vec();
    bytes.extend_from_slice(&frames(messages));
    rig.receive(at, &bytes);
    at
}

/// HELLO to a realm that announces these roles.
fn hello(realm: &str, roles: &str) -> String {
    format!("[1,\"{realm}\",{{\"roles\":{roles}}}]")
}

/// A session, and its id, after its WELCOME.
fn join(rig: &mut Rig, shard: usize, realm: &str, roles: &str) -> (usize, u64) {
    let at = connect(rig, shard, &[&hello(realm, roles)]);
    rig.run();
    let id = session(&messages(rig, at));
    (at, id)
}

/// The messages a connection got since it was last asked, after the handshake.
fn messages(rig: &mut Rig, at: usize) -> Vec<String> {
    let got = std::mem::take(&mut rig.links[at].got);
    let mut rest = if got.first() == Some(&0x7f) { &got[4..] } else { &got[..] };
    let mut messages = Vec::new();
    while let Some((head, after)) = rest.split_first_chunk::<4>() {
        let (message, after) = after.split_at((u32::from_be_bytes(*head) & 0x00ff_ffff) as usize);
        if head[0] == 0 {
            messages.push(String::from_utf8(message.to_vec()).expect("JSON"));
        }
        rest = after;
    }
    messages
}

/// The id in the WELCOME among these messages.
fn session(messages: &[String]) -> u64 {
    let welcome = messages.iter().find_map(|message| message.strip_prefix("[2,")).expect("a WELCOME");
    welcome.split(',').next().and_then(|id| id.parse().ok()).expect("a session id")
}

/// An EVENT from its details on.
fn event(message: &str) -> &str {
    let rest = message.strip_prefix("[36,").unwrap_or_else(|| panic!("an EVENT: {message}"));
    rest.splitn(3, ',').nth(2).and_then(|rest| rest.strip_suffix(']')).expect("ids and details")
}

#[test]
fn what_one_session_asked_is_not_given_to_the_next_on_its_connection() {
    let other = HELLO.replace("realm1", "strict");
    let mut rig = Rig::new(2, |_| {});
    // The other shard has not yet agreed when the session ends and one in another realm begins.
    let eavesdropper = connect(
        &mut rig,
        0,
        &[
            HELLO,
            r#"[32,1,{},"com.example.a"]"#,
            r#"[64,2,{},"com.example.p"]"#,
            r#"[64,3,{},"com.example.q"]"#,
            r#"[6,{},"wamp.close.close_realm"]"#,
            &other,
        ],
    );
    rig.run();
    let got = messages(&mut rig, eavesdropper);
    assert!(
        got.iter().all(|message| !message.starts_with("[33,") && !message.starts_with("[65,")),
        "{got:?}"
    );
    connect(&mut rig, 1, &[HELLO, r#"[16,1,{},"com.example.a",["secret"]]"#]);
    rig.run();
    assert_eq!(messages(&mut rig, eavesdropper), Vec::<String>::new());

    // The new session is not charged for the old one: it may do what a session may do.
    rig.receive(eavesdropper, &frames(&[r#"[32,1,{},"com.example.a"]"#, r#"[64,2,{},"com.example.p"]"#]));
    rig.run();
    let got = messages(&mut rig, eavesdropper);
    assert!(got.iter().any(|message| message.starts_with("[33,1,")), "{got:?}");
    assert!(got.iter().any(|message| message.starts_with("[65,2,")), "{got:?}");
    rig.check_empty();
}

#[test]
fn a_late_answer_does_not_answer_the_next_session() {
    for shard in 0..2 {
        let mut rig = Rig::new(2, |_| {});
        let callee = connect(&mut rig, 1, &[HELLO, r#"[64,1,{},"com.example.p"]"#]);
        rig.run();
        let caller = connect(&mut rig, shard, &[HELLO, r#"[48,1,{},"com.example.p"]"#]);
        rig.run();
        messages(&mut rig, caller);
        let call = r#"[48,1,{},"com.example.p"]"#;
        rig.receive(caller, &frames(&[r#"[6,{},"wamp.close.close_realm"]"#, HELLO, call]));
        rig.run();
        rig.receive(callee, &frames(&[r#"[70,1,{},["old"]]"#]));
        rig.run();
        rig.receive(callee, &frames(&[r#"[70,2,{},["new"]]"#]));
        rig.run();
        let answers: Vec<String> =
            messages(&mut rig, caller).into_iter().filter(|message| message.starts_with("[50,")).collect();
        assert_eq!(answers, [r#"[50,1,{},["new"]]"#]);
        rig.check_empty();
    }
}

/// A subscriber that reads nothing, with its queue full, and a publisher that was paused for it.
fn paused_publisher(rig: &mut Rig, subscriber_shard: usize) -> (usize, usize) {
    let subscriber = connect(rig, subscriber_shard, &[HELLO, r#"[32,1,{},"com.example.a"]"#]);
    let publisher = connect(rig, 0, &[HELLO]);
    rig.run();
    rig.links[subscriber].stuck = true;
    let event = format!(r#"[16,1,{{}},"com.example.a",["{}"]]"#, "x".repeat(4_000));
    for _ in 0..100 {
        rig.receive(publisher, &frames(&[&event]));
        rig.run();
    }
    assert!(rig.links[publisher].paused);
    (subscriber, publisher)
}

/// Less memory than one queue may hold.
fn short_of_memory(config: &mut dataplane::shard::ShardConfig) {
    config.memory_max = 100_000;
}

#[test]
fn a_publisher_is_held_back_while_its_subscribers_fill_the_memory_of_any_shard() {
    for shard in 0..2 {
        let mut rig = Rig::new(2, short_of_memory);
        let (subscriber, publisher) = paused_publisher(&mut rig, shard);
        let queued = rig.gauge(shard, Gauge::QueuedBytes);
        assert!(queued < 100_000 + 4 * 4_100, "{queued} bytes are queued");
        // It goes on when the subscriber reads, and nothing was lost.
        rig.links[subscriber].stuck = false;
        rig.run();
        assert!(!rig.links[publisher].paused);
        let events = messages(&mut rig, subscriber).into_iter().filter(|message| message.starts_with("[36,"));
        assert_eq!(events.count(), 100);
        rig.check_empty();
    }
}

#[test]
fn a_publisher_goes_on_when_the_slow_subscriber_has_left() {
    for shard in 0..2 {
        let mut rig = Rig::new(2, short_of_memory);
        let (subscriber, publisher) = paused_publisher(&mut rig, shard);
        rig.close(subscriber);
        rig.run();
        assert!(!rig.links[publisher].paused);
        rig.check_empty();
    }
}

#[test]
fn a_connection_that_is_not_read_is_not_blamed_for_silence() {
    let mut rig = Rig::new(1, short_of_memory);
    let (subscriber, publisher) = paused_publisher(&mut rig, 0);
    for _ in 0..60 {
        rig.pass(Duration::from_secs(1));
        rig.run();
    }
    assert!(!rig.links[subscriber].open, "it neither reads nor answers pings");
    assert!(rig.links[publisher].open && !rig.links[publisher].paused);
    rig.check_empty();
}

#[test]
fn incomplete_messages_take_half_of_the_memory_at_most() {
    let mut rig = Rig::new(1, |config| config.memory_max = 1_000_000);
    let head = 200_000_u32.to_be_bytes();
    let mut peers = Vec::new();
    for _ in 0..6 {
        let at = connect(&mut rig, 0, &[HELLO]);
        rig.run();
        messages(&mut rig, at);
        rig.receive(at, &[&head[..], &[b'x'; 95_000][..]].concat());
        rig.run();
        peers.push(at);
    }
    let last = messages(&mut rig, peers[5]);
    assert!(last[0].contains("wamp.error.unavailable"), "{last:?}");
    // Those that were there may end their messages, and then there is room again.
    for at in &peers[..5] {
        assert!(rig.links[*at].open && !rig.links[*at].paused);
        rig.receive(*at, &[b'x'; 105_000]);
    }
    rig.run();
    let at = connect(&mut rig, 0, &[HELLO]);
    rig.receive(at, &[&head[..], &[b'x'; 95_000][..]].concat());
    rig.run();
    let got = messages(&mut rig, at);
    assert_eq!(got.len(), 1, "{got:?}");
    rig.check_empty();
}
