//! Retained events (WAMP, advanced profile, "Event Retention"): each history with both peers on one shard, on two, and on two
//! nodes.

use super::places::{PLACES, Place, REALMS, everywhere};
use super::rig::Rig;
use super::{event, frames, join, messages};
use common::metrics::Gauge;
use std::time::Duration;

const ROLES: &str = r#"{"publisher":{},"subscriber":{}}"#;
/// Their homes are on every shard.
const TOPICS: [&str; 8] = ["com.a", "com.b", "com.c", "com.d", "com.e.x", "com.f.x", "com.g.x", "com.h.x"];

/// A publisher, and whoever subscribes after it.
struct World {
    rig: Rig,
    place: Place,
    realm: String,
    publisher: usize,
    publisher_id: u64,
    request: u64,
}

impl World {
    fn new(place: &Place, realm: &str) -> Self {
        let mut rig = place.rig(|_| {});
        let (publisher, publisher_id) = join(&mut rig, place.first, realm, ROLES);
        Self { rig, place: *place, realm: realm.to_owned(), publisher, publisher_id, request: 0 }
    }

    fn publish(&mut self, options: &str, topic: &str, payload: &str) {
        self.request += 1;
        let options = options.replace("ME", &self.publisher_id.to_string());
        let publish = format!("[16,{},{options},\"{topic}\",{payload}]", self.request);
        self.rig.receive(self.publisher, &frames(&[&publish]));
    }

    /// Publishes a retained event and lets it arrive everywhere.
    fn retain(&mut self, topic: &str, payload: &str) {
        self.publish(r#"{"retain":true}"#, topic, payload);
        self.rig.run();
    }

    /// A new session at the other place, which is told who it is.
    fn join(&mut self) -> (usize, u64) {
        join(&mut self.rig, self.place.second, &self.realm, ROLES)
    }

    /// Subscribes with the first request of a session and says what came after SUBSCRIBED: `details payload` of each event.
    fn subscribe(&mut self, at: usize, options: &str, topic: &str) -> Vec<String> {
        self.rig.receive(at, &frames(&[&format!("[32,1,{options},\"{topic}\"]")]));
        self.rig.run();
        let got = messages(&mut self.rig, at);
        assert!(got[0].starts_with("[33,1,"), "SUBSCRIBED comes first: {got:?}");
        got[1..].iter().map(|message| event(message).to_owned()).collect()
    }

    /// Lets the shards go on with what they do slice by slice.
    fn pass_turns(&mut self) {
        for _ in 0..20 {
            self.rig.run();
            self.rig.pass(Duration::ZERO);
        }
        self.rig.run();
    }

    fn end(mut self) {
        self.rig.check_empty();
    }
}

#[test]
fn who_asks_gets_the_last_event_of_the_topic_once() {
    everywhere(|place, realm| {
        let mut world = World::new(place, realm);
        for topic in TOPICS {
            world.retain(topic, r#"["old"]"#);
            world.retain(topic, r#"[],{"n":1}"#);
            world.publish("{}", topic, r#"["not retained"]"#);
            world.rig.run();
        }
        for topic in TOPICS {
            let (at, _) = world.join();
            assert_eq!(
                world.subscribe(at, r#"{"get_retained":true}"#, topic),
                [r#"{"retained":true},[],{"n":1}"#]
            );
            // A live one follows, and is told apart.
            world.retain(topic, r#"["new"]"#);
            let got = messages(&mut world.rig, at);
            assert_eq!(got.iter().map(|message| event(message)).collect::<Vec<_>>(), [r#"{},["new"]"#]);
            let (at, _) = world.join();
            assert!(world.subscribe(at, r#"{"get_retained":false}"#, topic).is_empty());
            world.retain(topic, r#"[],{"n":1}"#);
        }
        world.end();
    });
}

#[test]
fn subscribers_by_pattern_get_the_last_event_of_every_topic() {
    for place in &PLACES {
        for (options, pattern, expected) in [
            (r#"{"match":"prefix","get_retained":true}"#, "com", 8),
            (r#"{"match":"prefix","get_retained":true}"#, "com.e", 1),
            (r#"{"match":"wildcard","get_retained":true}"#, "com..x", 4),
            (r#"{"match":"wildcard","get_retained":true}"#, ".b", 1),
            (r#"{"match":"wildcard"}"#, ".b", 0),
        ] {
            let mut world = World::new(place, "strict");
            TOPICS.iter().for_each(|topic| world.retain(topic, &format!("[\"{topic}\"]")));
            let (at, _) = world.join();
            let mut got = world.subscribe(at, options, pattern);
            got.sort();
            let told = |topic: &&str| format!("{{\"topic\":\"{topic}\",\"retained\":true}},[\"{topic}\"]");
            let all: Vec<_> = TOPICS.iter().map(told).filter(|event| got.contains(event)).collect();
            assert_eq!((got.len(), &got), (expected, &all), "{pattern}");
            world.end();
        }
    }
}

#[test]
fn only_whom_the_lists_admit_gets_a_retained_event() {
    for place in &PLACES {
        let mut world = World::new(place, "realm1");
        let (one, one_id) = world.join();
        let (other, _) = world.join();
        for topic in TOPICS {
            world.retain(topic, r#"["all"]"#);
            world.publish(
                &format!("{{\"retain\":true,\"eligible\":[{one_id}],\"disclose_me\":true}}"),
                topic,
                "[1]",
            );
            world.publish(r#"{"retain":true,"eligible_authrole":["admin"]}"#, topic, "[2]");
            world.rig.run();
            let got = world.subscribe(one, r#"{"get_retained":true}"#, topic);
            assert!(
                got.len() == 1
                    && got[0].ends_with(r#""retained":true},[1]"#)
                    && got[0].contains("\"publisher\":")
            );
            let got = world.subscribe(other, r#"{"get_retained":true}"#, topic);
            assert_eq!(got, [r#"{"retained":true},["all"]"#]);
        }
        world.end();
    }
}

#[test]
fn a_publisher_gets_its_own_event_back_only_if_it_would_have_got_it() {
    for (exclude_me, expected) in [("", 0), (r#","exclude_me":false"#, 1)] {
        for topic in TOPICS {
            let mut world = World::new(&PLACES[1], "realm1");
            world.publish(&format!("{{\"retain\":true{exclude_me}}}"), topic, "[1]");
            world.rig.run();
            messages(&mut world.rig, world.publisher);
            let publisher = world.publisher;
            assert_eq!(world.subscribe(publisher, r#"{"get_retained":true}"#, topic).len(), expected);
            world.end();
        }
    }
}

#[test]
fn a_retained_event_ends_with_its_time() {
    for place in &PLACES {
        for (options, seconds, expected) in [
            (r#"{"retain":true,"_retained_ttl":10}"#, 9, 1),
            (r#"{"retain":true,"_retained_ttl":10}"#, 11, 0),
            (r#"{"retain":true,"_retained_ttl":0}"#, 100_000, 1),
        ] {
            let mut world = World::new(place, "strict");
            TOPICS.iter().for_each(|topic| world.publish(options, topic, "[1]"));
            world.rig.run();
            world.rig.pass(Duration::from_secs(seconds));
            for topic in TOPICS {
                let (at, _) = world.join();
                assert_eq!(
                    world.subscribe(at, r#"{"get_retained":true}"#, topic).len(),
                    expected,
                    "{options}"
                );
            }
            world.end();
        }
    }
}

#[test]
fn events_published_meanwhile_follow_the_retained_one_and_none_comes_twice() {
    for place in &PLACES {
        for topic in TOPICS {
            for before in 0..6 {
                let mut world = World::new(place, "realm1");
                // The topic is routed to the subscriber's shard already, so what is published meanwhile reaches it.
                let (first, _) = world.join();
                world.subscribe(first, "{}", topic);
                world.retain(topic, "[0]");
                let (at, _) = world.join();
                world.rig.receive(at, &frames(&[&format!("[32,1,{{\"get_retained\":true}},\"{topic}\"]")]));
                // The shards go on while more is published.
                for number in 1..=8 {
                    if number > before {
                        world.publish(r#"{"retain":true}"#, topic, &format!("[{number}]"));
                    }
                    (0..place.shards()).for_each(|shard| world.rig.turn(shard));
                }
                world.rig.run();
                let got = messages(&mut world.rig, at);
                let events: Vec<_> = got.iter().filter(|message| message.starts_with("[36,")).collect();
                let number = |event: &str| -> u64 {
                    event
                        .rsplit('[')
                        .next()
                        .and_then(|rest| rest.trim_end_matches(']').parse().ok())
                        .expect("a number")
                };
                let numbers: Vec<u64> = events.iter().map(|event| number(event)).collect();
                if place.is_apart() {
                    // What is retained may be here sooner than older events from the other node; none comes twice.
                    let all: std::collections::BTreeSet<_> = numbers.iter().collect();
                    assert!(all.len() == numbers.len() && all.contains(&8), "{numbers:?}");
                    world.end();
                    continue;
                }
                assert!(numbers.is_sorted_by(|one, two| one < two), "{numbers:?}");
                assert_eq!(numbers.last(), Some(&8), "{numbers:?}");
                // Only the first one can be a retained one; from it on nothing is missing.
                assert!(!events[1..].iter().any(|event| event.contains("\"retained\"")), "{events:?}");
                let from = numbers[0].max(before);
                assert!(numbers[1..].iter().copied().eq(from + 1..=8), "{numbers:?} from {from}");
                world.end();
            }
        }
    }
}

#[test]
fn what_is_too_long_is_published_and_not_retained() {
    for realm in REALMS {
        let mut world = World::new(&PLACES[1], realm);
        let (live, _) = world.join();
        world.subscribe(live, "{}", "com.a");
        let long = format!("[\"{}\"]", "x".repeat(40_000));
        world.retain("com.a", &long);
        assert_eq!(messages(&mut world.rig, live).len(), 1);
        let (at, _) = world.join();
        assert!(world.subscribe(at, r#"{"get_retained":true}"#, "com.a").is_empty());
        let topics: u64 = (0..2).map(|shard| world.rig.gauge(shard, Gauge::RetainedTopics)).sum();
        assert_eq!(topics, 0);
        world.end();
    }
}

#[test]
fn wrong_types_are_violations_in_strict_realms_only() {
    for (realm, is_refused) in [("realm1", false), ("strict", true)] {
        for publish in [
            r#"[16,1,{"retain":1},"com.a"]"#,
            r#"[16,1,{"retain":true,"_retained_ttl":"soon"},"com.a"]"#,
            r#"[32,1,{"get_retained":"x"},"com.a"]"#,
        ] {
            let mut world = World::new(&PLACES[0], realm);
            let (at, _) = world.join();
            world.rig.receive(at, &frames(&[publish]));
            world.rig.run();
            let got = messages(&mut world.rig, at);
            let aborted = got.iter().any(|message| message.contains("wamp.error.protocol_violation"));
            assert_eq!(aborted, is_refused, "{publish}");
            world.end();
        }
    }
}

#[test]
fn what_may_match_any_topic_is_looked_for_slice_by_slice() {
    // More topics on each shard than one turn looks at.
    const TOPICS: usize = 5_000;
    for (place, quiet) in PLACES.iter().flat_map(|place| [(place, true), (place, false)]) {
        let mut world = World::new(place, REALMS[0]);
        for chunk in 0..TOPICS / 100 {
            (0..100).for_each(|n| world.publish(r#"{"retain":true}"#, &format!("t{chunk}.n{n}"), "[1]"));
            world.rig.run();
        }
        let (at, _) = world.join();
        world.rig.receive(at, &frames(&[r#"[32,1,{"match":"wildcard","get_retained":true},".n7"]"#]));
        // One turn of each shard: it has looked at a part of them only, and a live event comes meanwhile.
        let shards = place.shards();
        (0..shards).for_each(|shard| world.rig.turn(shard));
        let mut got = Vec::new();
        if quiet {
            world.rig.run();
            got = messages(&mut world.rig, at);
            assert_eq!(got.len(), 1, "there is more to look at, in a turn of its own");
        } else {
            world.publish(r#"{"retain":true}"#, "t3.n7", "[2]");
        }
        world.pass_turns();
        got.extend(messages(&mut world.rig, at));
        assert!(got[0].starts_with("[33,1,"), "{}", got[0]);
        let last: Vec<&str> =
            got.iter().filter(|message| message.contains("\"t3.n7\"")).map(|m| event(m)).collect();
        let [old, new] = [r#"{"topic":"t3.n7","retained":true},[1]"#, r#"{"topic":"t3.n7"},[2]"#];
        let retained = r#"{"topic":"t3.n7","retained":true},[2]"#;
        if quiet {
            assert_eq!(last, [old]);
        } else {
            // It was published before the subscriber was known, or before its topic was looked at, or after.
            assert!([&[retained][..], &[new], &[old, new]].contains(&&last[..]), "{last:?}");
        }
        let others =
            got.iter().filter(|message| message.starts_with("[36,") && !message.contains("\"t3.n7\""));
        assert_eq!(others.count(), TOPICS / 100 - 1);
        world.end();
    }
}
