//! Sharded subscriptions (WAMP, advanced profile, "Sharded Subscriptions"): each history with its subscribers on one shard, on two,
//! and on two nodes.

use super::places::{PLACES, Place, REALMS, everywhere};
use super::rig::Rig;
use super::{frames, join, messages};
use std::collections::BTreeSet;

const ROLES: &str = r#"{"publisher":{},"subscriber":{}}"#;
const KEYS: usize = 40;

/// A publisher at the first place and subscribers at both.
struct World {
    rig: Rig,
    place: Place,
    realm: String,
    publisher: usize,
    requests: u64,
    /// The connections of the subscribers, and how often each has subscribed.
    subscribers: Vec<(usize, u64)>,
}

impl World {
    fn new(place: &Place, realm: &str) -> Self {
        let mut world = Self {
            rig: place.rig(|_| {}),
            place: *place,
            realm: realm.to_owned(),
            publisher: 0,
            requests: 0,
            subscribers: Vec::new(),
        };
        world.publisher = world.join(place.first);
        world
    }

    fn join(&mut self, shard: usize) -> usize {
        join(&mut self.rig, shard, &self.realm, ROLES).0
    }

    /// A new subscriber, at the first place for even numbers, at the second one for odd ones. Its number.
    fn subscriber(&mut self, options: &str) -> usize {
        let number = self.subscribers.len();
        let shard = if number.is_multiple_of(2) { self.place.first } else { self.place.second };
        let at = self.join(shard);
        self.subscribers.push((at, 0));
        self.subscribe(number, options);
        number
    }

    fn subscribe(&mut self, number: usize, options: &str) {
        let (at, asked) = &mut self.subscribers[number];
        *asked += 1;
        let subscribe = format!("[32,{asked},{options},\"com.sensor{}\"]", topic_end(options));
        let at = *at;
        self.rig.receive(at, &frames(&[&subscribe]));
        self.rig.run();
        let got = messages(&mut self.rig, at);
        assert!(got[0].starts_with("[33,"), "{got:?}");
    }

    /// Publishes with these options, and says which subscribers got it, each once.
    fn publish(&mut self, options: &str) -> BTreeSet<usize> {
        self.requests += 1;
        let publish = format!("[16,{},{options},\"com.sensor.1\",[]]", self.requests);
        self.rig.receive(self.publisher, &frames(&[&publish]));
        self.rig.run();
        let mut got = BTreeSet::new();
        for (number, (at, _)) in self.subscribers.clone().into_iter().enumerate() {
            let events = messages(&mut self.rig, at);
            assert!(events.len() <= 1, "it comes once: {events:?}");
            got.extend((!events.is_empty()).then_some(number));
        }
        got
    }

    /// Who gets the events of each of some resource keys.
    fn by_key(&mut self) -> Vec<BTreeSet<usize>> {
        (0..KEYS).map(|n| self.publish(&format!(r#"{{"rkey":"sn{n}"}}"#))).collect()
    }

    fn leave(&mut self, number: usize) {
        self.rig.close(self.subscribers[number].0);
        self.rig.run();
    }

    fn end(mut self) {
        self.rig.check_empty();
    }
}

/// Pattern subscribers name the topic with one component blank.
fn topic_end(options: &str) -> &str {
    if options.contains("wildcard") { "." } else { ".1" }
}

fn all(numbers: impl IntoIterator<Item = usize>) -> BTreeSet<usize> {
    numbers.into_iter().collect()
}

#[test]
fn an_event_with_a_resource_key_goes_to_one_node_key_and_always_the_same() {
    everywhere(|place, realm| {
        for policy in ["exact", "wildcard"] {
            let mut world = World::new(place, realm);
            for key in ["n0", "n1", "n2", "n3"] {
                world.subscriber(&format!(r#"{{"match":"{policy}","nkey":"{key}"}}"#));
            }
            let first = world.by_key();
            assert!(first.iter().all(|got| got.len() == 1), "{first:?}");
            assert_eq!(first.iter().flatten().copied().collect::<BTreeSet<_>>(), all(0..4), "each has some");
            assert_eq!(world.by_key(), first);
            assert_eq!(world.publish("{}"), all(0..4), "without a resource key all get it");
            world.end();
        }
    });
}

#[test]
fn subscribers_without_a_key_get_everything_and_those_of_one_key_the_same() {
    everywhere(|place, realm| {
        let mut world = World::new(place, realm);
        for options in [r#"{"nkey":"a"}"#, r#"{"nkey":"a"}"#, r#"{"nkey":"b"}"#, "{}", "{}"] {
            world.subscriber(options);
        }
        let got = world.by_key();
        assert!(got.iter().all(|got| [all([0, 1, 3, 4]), all([2, 3, 4])].contains(got)), "{got:?}");
        assert!(got.contains(&all([0, 1, 3, 4])) && got.contains(&all([2, 3, 4])));
        world.end();
    });
}

#[test]
fn when_a_node_key_goes_only_its_events_move() {
    everywhere(|place, realm| {
        let mut world = World::new(place, realm);
        for key in ["n0", "n1", "n2", "n3"] {
            world.subscriber(&format!(r#"{{"nkey":"{key}"}}"#));
        }
        let before = world.by_key();
        world.leave(3);
        let after = world.by_key();
        for (before, after) in before.iter().zip(&after) {
            assert!(after.len() == 1 && !after.contains(&3), "{after:?}");
            assert!(before == after || before.contains(&3));
        }
        // It comes back with another session, and its events with it.
        let again = world.subscriber(r#"{"nkey":"n3"}"#);
        let moved = |got: &BTreeSet<usize>| got.iter().map(|n| if *n == again { 3 } else { *n }).collect();
        assert_eq!(world.by_key().iter().map(moved).collect::<Vec<BTreeSet<_>>>(), before);
        world.end();
    });
}

#[test]
fn the_last_subscribe_says_which_key_a_session_has() {
    everywhere(|place, realm| {
        let mut world = World::new(place, realm);
        world.subscriber(r#"{"nkey":"a"}"#);
        world.subscriber(r#"{"nkey":"b"}"#);
        world.subscribe(0, r#"{"nkey":"b"}"#);
        assert!(world.by_key().iter().all(|got| *got == all([0, 1])));
        world.subscribe(0, "{}");
        world.subscribe(1, r#"{"nkey":"c"}"#);
        assert!(
            world.by_key().iter().all(|got| *got == all([0, 1])),
            "one has no key, the other the only one"
        );
        world.end();
    });
}

#[test]
fn lists_of_receivers_and_resource_keys_both_hold() {
    everywhere(|place, realm| {
        let mut world = World::new(place, realm);
        world.subscriber(r#"{"nkey":"a"}"#);
        world.subscriber(r#"{"nkey":"b"}"#);
        assert_eq!(world.publish(r#"{"rkey":"x","exclude_authrole":["anonymous"]}"#), all([]));
        assert_eq!(world.publish(r#"{"rkey":5,"eligible_authrole":["anonymous"]}"#).len(), 1);
        world.end();
    });
}

#[test]
fn the_keys_of_a_node_that_dies_are_gone() {
    for place in PLACES.iter().filter(|place| place.is_apart()) {
        let mut world = World::new(place, REALMS[0]);
        for key in ["n0", "n1", "n2", "n3"] {
            world.subscriber(&format!(r#"{{"nkey":"{key}"}}"#));
        }
        let before = world.by_key();
        world.rig.kill(place.second);
        let after = world.by_key();
        for (before, after) in before.iter().zip(&after) {
            assert!(after.len() == 1 && after.iter().all(|number| number.is_multiple_of(2)), "{after:?}");
            assert!(before == after || before.iter().all(|number| !number.is_multiple_of(2)));
        }
        world.end();
    }
}

#[test]
fn node_keys_of_a_subscription_are_bounded() {
    let mut world = World::new(&PLACES[0], REALMS[0]);
    (0..256).for_each(|n| _ = world.subscriber(&format!(r#"{{"nkey":"n{n}"}}"#)));
    let more = world.join(world.place.first);
    let subscribe =
        |request: u64, key: &str| frames(&[&format!(r#"[32,{request},{{"nkey":"{key}"}},"com.sensor.1"]"#)]);
    world.rig.receive(more, &subscribe(1, "one too many"));
    world.rig.receive(more, &subscribe(2, "n7"));
    world.rig.run();
    let got = messages(&mut world.rig, more);
    assert!(got[0].contains("wamp.error.unavailable") && got[1].starts_with("[33,2,"), "{got:?}");
    assert_eq!(world.publish(r#"{"rkey":"sn1"}"#).len(), 1);
    world.end();
}
