//! What waits for other nodes is part of a shard's memory: a node that does not keep up takes no more than its part of it, and
//! nothing from the others.

use super::rig::Rig;
use super::{HELLO, connect, frames, messages};
use common::metrics::{Counter, Gauge};

/// A shard's memory.
const MEMORY: u64 = 1 << 20;
/// Bytes of an event.
const EVENT: usize = 10 << 10;
/// More than lanes may have, and less than `relay.queue_max`.
const EVENTS: usize = 90;

/// A session on the only shard of a node, that subscribes to `topic`.
fn subscriber(rig: &mut Rig, node: usize, topic: &str) -> usize {
    let at = connect(rig, node, &[HELLO, &format!("[32,1,{{}},\"{topic}\"]")]);
    rig.run();
    messages(rig, at);
    at
}

fn events(rig: &mut Rig, at: usize) -> usize {
    messages(rig, at).iter().filter(|message| message.starts_with("[36,")).count()
}

fn publish(request: usize, topic: &str) -> String {
    format!("[16,{request},{{}},\"{topic}\",[\"{}\"]]", "x".repeat(EVENT))
}

#[test]
fn queues_to_other_nodes_have_their_part_of_the_memory() {
    let mut rig = Rig::cluster(&[1, 1, 1], |config| config.memory_max = MEMORY);
    let publisher = connect(&mut rig, 0, &[HELLO]);
    let (here, there, elsewhere) = (
        subscriber(&mut rig, 0, "com.example.all"),
        subscriber(&mut rig, 1, "com.example.all"),
        subscriber(&mut rig, 2, "com.example.other"),
    );
    // All in one turn, so that nothing can have been sent.
    let mut all: Vec<String> = (1..=EVENTS).map(|n| publish(n, "com.example.all")).collect();
    all.extend((1..=5).map(|n| publish(EVENTS + n, "com.example.other")));
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    rig.receive(publisher, &frames(&all));
    let queued = rig.gauge(0, Gauge::RelayQueuedBytes);
    assert!(queued > MEMORY / 4, "what is free is used: {queued}");
    assert!(queued <= MEMORY / 2, "{queued} of {MEMORY}");
    rig.run();
    let refused = rig.counter(0, Counter::RelayMemoryFull) as usize;
    assert!(refused > 0 && refused == rig.counter(0, Counter::DroppedRelayFull) as usize, "{refused}");
    assert_eq!(events(&mut rig, there) + refused, EVENTS, "what was not refused arrives");
    assert_eq!(events(&mut rig, elsewhere), 5, "the node that keeps up has room");
    assert_eq!(events(&mut rig, here), EVENTS, "and here nobody notices");
    assert_eq!(rig.gauge(0, Gauge::RelayQueuedBytes), 0);
    // Then there is room again.
    let more: Vec<String> = (1..=20).map(|n| publish(EVENTS + 5 + n, "com.example.all")).collect();
    rig.receive(publisher, &frames(&more.iter().map(String::as_str).collect::<Vec<_>>()));
    rig.run();
    assert_eq!(events(&mut rig, there), 20);
    rig.check_empty();
}

#[test]
fn one_frame_fits_whatever_its_length() {
    let mut rig = Rig::cluster(&[1, 1], |config| config.memory_max = 32 << 10);
    let publisher = connect(&mut rig, 0, &[HELLO]);
    let there = subscriber(&mut rig, 1, "com.example.all");
    let long = format!("[16,1,{{}},\"com.example.all\",[\"{}\"]]", "x".repeat(60 << 10));
    rig.receive(publisher, &frames(&[&long, &publish(2, "com.example.all")]));
    rig.run();
    assert_eq!(
        events(&mut rig, there),
        1,
        "the second one has to wait for the first, and there is no room to"
    );
    assert_eq!(rig.counter(0, Counter::RelayMemoryFull), 1);
    rig.check_empty();
}
