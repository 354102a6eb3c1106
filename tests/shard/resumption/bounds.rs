//! What sessions that wait, and those that are carried, may hold.

use super::super::places::{PLACES, everywhere};
use super::{AFTER, Client, TOPIC, World, numbers};
use crate::frames;
use common::metrics::{Counter, Gauge};
use serde_json::json;
use std::time::Duration;

#[test]
fn events_beyond_the_bound_are_dropped_and_the_client_is_told() {
    everywhere(|place, realm| {
        let mut world = World::with(place, realm, |config| config.resume.buffer_max = 2_000);
        let mut stays = world.join_to_stay();
        let mut other = world.join(true, &[]);
        world.subscribe(&mut stays, TOPIC);
        world.drop(&stays);
        world.publish(&mut other, 0..200);
        let kept = world.rig.gauge(place.first, Gauge::DetachedBytes);
        assert!((1_000..=2_000).contains(&kept), "{kept} bytes are kept");
        let missed = numbers(&world.back(&mut stays, true));
        let first = missed[0];
        assert_eq!(missed, (first..200).collect::<Vec<_>>(), "the newest, in order");
        world.publish(&mut other, 200..202);
        let heard = world.hears(&stays);
        assert_eq!(numbers(&heard), [200, 201]);
        assert_eq!((&heard[0][3]["_dropped"], heard[1][3].get("_dropped")), (&first.into(), None));
        world.end();
    });
}

#[test]
fn all_that_wait_share_a_part_of_the_memory() {
    let mut world = World::with(&PLACES[0], "realm1", |config| config.memory_max = 40_000);
    let mut other = world.join(true, &[]);
    let mut waiting: Vec<Client> = (0..4).map(|_| world.join_to_stay()).collect();
    for stays in &mut waiting {
        world.subscribe(stays, TOPIC);
        world.drop(stays);
    }
    world.publish(&mut other, 0..1_000);
    assert!(world.rig.gauge(0, Gauge::DetachedBytes) <= 10_000);
    assert!(!world.rig.links[other.link].paused, "publishers are not held back for them");
    for (published, stays) in (1_000..).zip(&mut waiting) {
        let missed = numbers(&world.back(stays, true));
        assert!(missed.is_sorted() && !missed.is_empty(), "{missed:?}");
        world.publish(&mut other, published..published + 1);
        let heard = world.hears(stays);
        assert_eq!(heard[0][3]["_dropped"], published - missed.len() as u64);
    }
    world.end();
}

#[test]
fn there_is_room_for_so_many_that_wait() {
    let mut world = World::with(&PLACES[0], "realm1", |config| config.resume.sessions_max = 2);
    let clients: Vec<Client> = (0..3).map(|_| world.join_to_stay()).collect();
    clients.iter().for_each(|client| world.drop(client));
    assert_eq!(world.waiting(), 2);
    assert_eq!(world.rig.gauge(0, Gauge::Sessions), 2, "the third ended with its connection");
    assert_eq!(world.rig.gauge(0, Gauge::Connections), 0, "they are no connections");
    world.end();
}

#[test]
fn a_client_that_reads_slowly_holds_up_nobody() {
    everywhere(|place, realm| {
        let mut world = World::new(place, realm);
        let mut stays = world.join_to_stay();
        let mut other = world.join(true, &[]);
        world.subscribe(&mut stays, TOPIC);
        world.drop(&stays);
        world.back(&mut stays, true);
        world.rig.links[stays.link].stuck = true;
        let text = "x".repeat(10_000);
        for n in 0..100 {
            world.asks(&mut other, json!([16, null, {}, TOPIC, [n, text]]));
        }
        let queued = world.rig.gauge(place.second, Gauge::QueuedBytes);
        let bytes_max = if place.first == place.second { 2_000_000 } else { 300_000 };
        assert!(queued < bytes_max, "{queued} bytes wait at the connection");
        world.rig.links[stays.link].stuck = false;
        world.rig.run();
        assert_eq!(numbers(&world.hears(&stays)), (0..100).collect::<Vec<_>>());
        // And a client that sends more than a window is handled in order.
        world.subscribe(&mut other, "com.example.b");
        for n in 0..100 {
            stays.request += 1;
            let publish = json!([16, stays.request, {}, "com.example.b", [n, text]]).to_string();
            world.rig.receive(stays.link, &frames(&[&publish]));
        }
        world.rig.run();
        assert_eq!(numbers(&world.hears(&other)), (0..100).collect::<Vec<_>>());
        world.end();
    });
}

#[test]
fn a_carried_publisher_is_held_back_while_the_holder_of_its_session_is_short_of_memory() {
    for place in PLACES {
        let mut world = World::with(&place, "strict", |config| config.memory_max = 100_000);
        let mut slow = world.join(false, &[]);
        world.subscribe(&mut slow, TOPIC);
        let mut stays = world.join_to_stay();
        world.drop(&stays);
        world.back(&mut stays, true);
        world.rig.links[slow.link].stuck = true;
        let text = "x".repeat(4_000);
        let count = 300;
        for n in 0..count {
            stays.request += 1;
            let publish = json!([16, stays.request, {}, TOPIC, [n, text]]).to_string();
            world.rig.receive(stays.link, &frames(&[&publish]));
            world.rig.run();
        }
        assert!(world.rig.links[stays.link].paused, "{place:?}");
        let queued = world.rig.gauge(place.first, Gauge::QueuedBytes);
        assert!(queued < 500_000, "{queued} bytes are queued");
        world.rig.links[slow.link].stuck = false;
        world.rig.run();
        assert!(!world.rig.links[stays.link].paused);
        assert_eq!(numbers(&world.hears(&slow)), (0..count).collect::<Vec<_>>());
        world.end();
    }
}

#[test]
fn events_for_sessions_that_end_are_not_kept() {
    let mut world = World::with(&PLACES[0], "realm1", |config| config.resume.sessions_max = 1);
    let mut other = world.join(true, &[]);
    let mut clients: Vec<Client> = (0..3).map(|_| world.join_to_stay()).collect();
    world.subscribe(&mut clients[2], TOPIC);
    for client in &mut clients[..2] {
        world.subscribe(client, TOPIC);
        // So many that it is out of its topics only some turns later.
        for n in 0..300 {
            world.subscribe(client, &format!("com.example.b{n}"));
        }
    }
    world.drop(&clients[0]);
    world.back(&mut clients[0], true);
    // The second one waits, so the first one, which was carried, and the third one end.
    for at in [1, 0, 2] {
        world.rig.close(clients[at].link);
        world.asks(&mut other, json!([16, null, {}, TOPIC, [at]]));
        assert_eq!(world.waiting(), 1);
    }
    for n in 0..AFTER.as_secs() + 5 {
        world.rig.pass(Duration::from_secs(1));
        world.asks(&mut other, json!([16, null, {}, TOPIC, [n]]));
    }
    assert_eq!(world.waiting(), 0);
    assert_eq!(world.rig.gauge(0, Gauge::DetachedBytes), 0);
    world.end();
}

#[test]
fn a_client_that_comes_back_in_the_last_moment_has_its_whole_window_again() {
    let mut world = World::new(&PLACES[0], "realm1");
    let mut clients: Vec<Client> = (0..8).map(|_| world.join_to_stay()).collect();
    clients.iter().for_each(|client| world.drop(client));
    // Their time is over, and turns to come end some of them each.
    world.rig.pass(AFTER);
    assert_eq!(world.waiting(), 8);
    let late = clients.last_mut().expect("a client");
    world.back(late, true);
    world.drop(late);
    world.wait(Duration::from_secs(2));
    assert_eq!(world.waiting(), 1);
    world.back(late, true);
    world.end();
}

#[test]
fn a_client_gets_nothing_longer_than_its_new_transport_takes() {
    everywhere(|place, realm| {
        let mut world = World::new(place, realm);
        let mut stays = world.join_to_stay();
        let mut other = world.join(true, &[]);
        world.subscribe(&mut stays, TOPIC);
        world.drop(&stays);
        world.asks(&mut other, json!([16, null, {}, TOPIC, [1, "x".repeat(20_000)]]));
        world.publish(&mut other, 2..3);
        let heard = world.back_by(&mut stays, true, 8 << 10);
        assert_eq!(numbers(&heard), [2]);
        let shard = world.shard(true);
        assert_eq!(world.rig.counter(shard, Counter::DroppedTooLarge), 1);
        world.end();
    });
}
