//! Event history (WAMP, advanced profile, "Event History"): each history with both peers on one shard, on two, and on two nodes.

use super::places::{PLACES, Place, REALMS, everywhere};
use super::rig::node::snapshot;
use super::rig::{Rig, realm, source};
use super::{frames, join, messages};
use common::history::History;
use common::ids::{Match, RealmId, RouteKind, SnapshotVersion, route_id};
use common::metrics::{Counter, Gauge};
use common::snapshot::Delta;
use dataplane::feed::FeedDown;
use serde_json::{Value, json};
use std::time::Duration;

const ROLES: &str =
    r#"{"publisher":{"features":{"payload_passthru_mode":true}},"subscriber":{},"caller":{}}"#;
/// Their homes are on every shard.
const TOPICS: [&str; 4] = ["com.log.a", "com.log.b", "com.log.c", "com.log.d"];
const TIME_MS: u64 = 1_795_268_400_000;

fn histories() -> Vec<History> {
    let mut histories = TOPICS.map(|topic| History::of(Match::Exact, topic)).to_vec();
    histories.push(History::of(Match::Prefix, "com.log"));
    histories.push(History { events_max: 3, ..History::of(Match::Wildcard, "com..few") });
    histories.push(History { age_max_ms: 10_000, ..History::of(Match::Exact, "com.short") });
    histories
}

/// A publisher, and one who asks.
struct World {
    rig: Rig,
    place: Place,
    realm: String,
    version: u64,
    publisher: usize,
    asker: usize,
    requests: u64,
    asked: u64,
}

impl World {
    fn new(place: &Place, name: &str) -> Self {
        let mut world = Self {
            rig: place.rig(|_| {}),
            place: *place,
            realm: name.to_owned(),
            version: 1,
            publisher: 0,
            asker: 0,
            requests: 0,
            asked: 0,
        };
        world.rig.set_clocks(Duration::from_millis(TIME_MS));
        world.change(histories());
        world.publisher = world.join(place.first);
        world.asker = world.join(place.second);
        world
    }

    fn join(&mut self, shard: usize) -> usize {
        join(&mut self.rig, shard, &self.realm, ROLES).0
    }

    /// The realm has these histories from now on.
    fn change(&mut self, histories: Vec<History>) {
        let follows = SnapshotVersion(self.version);
        self.version += 1;
        let mut put = realm(&self.realm);
        put.histories = histories;
        History::check_all(&mut put.histories).expect("good histories");
        let version = SnapshotVersion(self.version);
        let delta = Delta { version, follows, realms_put: vec![put], realms_removed: vec![] };
        self.rig.feed(&FeedDown::Delta(delta.into()));
    }

    fn id(&self, policy: Match, uri: &str) -> u64 {
        route_id(RealmId::of(&self.realm), RouteKind::Topic, policy, uri)
    }

    /// Publishes from one session, and says the id of the publication.
    fn publish_from(&mut self, at: usize, request: u64, options: &str, topic: &str, payload: &str) -> u64 {
        let options = options.replacen('{', r#"{"acknowledge":true,"#, 1).replace(",}", "}");
        let publish = format!("[16,{request},{options},\"{topic}\",{payload}]");
        self.rig.receive(at, &frames(&[&publish]));
        self.rig.run();
        let got = messages(&mut self.rig, at);
        let published = got.iter().find(|message| message.starts_with("[17,")).expect("PUBLISHED");
        let published: Value = serde_json::from_str(published).expect("JSON");
        published[2].as_u64().expect("an id")
    }

    fn publish(&mut self, options: &str, topic: &str, payload: &str) -> u64 {
        self.requests += 1;
        self.publish_from(self.publisher, self.requests, options, topic, payload)
    }

    /// What a session is answered: RESULT or ERROR.
    fn ask_from(&mut self, at: usize, request: u64, subscription: u64, kwargs: &Value) -> Value {
        let call = json!([48, request, {}, "wamp.subscription.get_events", [subscription], kwargs]);
        self.rig.receive(at, &frames(&[&call.to_string()]));
        self.rig.run();
        let got = messages(&mut self.rig, at);
        let is_answer = |message: &&String| message.starts_with("[50,") || message.starts_with("[8,");
        let answer = got.iter().find(is_answer).unwrap_or_else(|| panic!("an answer: {got:?}"));
        serde_json::from_str(answer).expect("JSON")
    }

    fn ask(&mut self, subscription: u64, kwargs: Value) -> Value {
        self.asked += 1;
        self.ask_from(self.asker, self.asked, subscription, &kwargs)
    }

    /// The publications of an answer, in its order.
    fn ids(&mut self, subscription: u64, kwargs: Value) -> Vec<u64> {
        let answer = self.ask(subscription, kwargs);
        let events = answer[3].as_array().unwrap_or_else(|| panic!("a RESULT: {answer}"));
        events.iter().map(|event| event["publication"].as_u64().expect("an id")).collect()
    }

    fn pass(&mut self, ms: u64) {
        self.rig.pass(Duration::from_millis(ms));
        self.rig.run();
    }

    fn end(mut self) {
        self.change(vec![]);
        self.rig.check_empty();
    }
}

#[test]
fn events_are_kept_without_subscribers_and_told_as_they_were() {
    everywhere(|place, realm| {
        let mut world = World::new(place, realm);
        for topic in TOPICS {
            let id = world.id(Match::Exact, topic);
            assert_eq!(world.ids(id, json!({})), Vec::<u64>::new(), "no events yet");
            let first = world.publish("{}", topic, r#"[1,"x"],{"k":null}"#);
            world.pass(1_500);
            let second = world.publish(r#"{"disclose_me":true,"ppt_scheme":"x_custom"}"#, topic, "[2]");
            let answer = world.ask(id, json!({}));
            let [one, two] = answer[3].as_array().expect("events").as_slice() else { panic!("{answer}") };
            assert_eq!(one["publication"], first);
            assert_eq!(one["subscription"], id);
            assert_eq!((&one["args"], &one["kwargs"]), (&json!([1, "x"]), &json!({"k": null})));
            assert_eq!(one["details"], json!({}));
            assert_eq!((&two["publication"], &two["args"]), (&json!(second), &json!([2])));
            assert_eq!(two.get("kwargs"), None);
            assert_eq!(two["details"]["ppt_scheme"], "x_custom");
            assert_eq!(two["details"]["publisher_authrole"], "anonymous");
            let [then, later] = [one, two].map(|event| event["timestamp"].as_str().expect("a time"));
            assert!(then < later && then.starts_with("2026-11-21T13:40:"), "{then} {later}");
            assert_eq!(answer.get(4), None, "there is nothing more to say: {answer}");
        }
        world.end();
    });
}

#[test]
fn a_pattern_keeps_the_events_of_all_its_topics() {
    everywhere(|place, realm| {
        let mut world = World::new(place, realm);
        let prefix = world.id(Match::Prefix, "com.log");
        let all: Vec<u64> = TOPICS.iter().map(|topic| world.publish("{}", topic, "[]")).collect();
        let other = world.publish("{}", "com.logging", "[]");
        world.publish("{}", "com.other", "[]");
        let answer = world.ask(prefix, json!({}));
        let events = answer[3].as_array().expect("events");
        let told: Vec<_> = events.iter().map(|event| event["details"]["topic"].as_str()).collect();
        assert_eq!(told, TOPICS.into_iter().chain(["com.logging"]).map(Some).collect::<Vec<_>>());
        assert_eq!(world.ids(prefix, json!({"topic": "com.log.b"})), [all[1]]);
        assert_eq!(world.ids(prefix, json!({"topic": "com.logging"})), [other]);
        assert_eq!(world.ids(prefix, json!({"topic": "com.other"})), Vec::<u64>::new());
        world.end();
    });
}

#[test]
fn every_filter_is_obeyed() {
    everywhere(|place, realm| {
        let mut world = World::new(place, realm);
        let id = world.id(Match::Exact, "com.log.a");
        let mut all = Vec::new();
        for n in 0..6 {
            all.push(world.publish("{}", "com.log.a", &format!("[{n}]")));
            world.pass(1_000);
        }
        let answer = world.ask(id, json!({}));
        let time = |n: usize| answer[3][n]["timestamp"].clone();
        for (kwargs, expected) in [
            (json!({}), &[0, 1, 2, 3, 4, 5][..]),
            (json!({"reverse": true}), &[5, 4, 3, 2, 1, 0]),
            (json!({"limit": 2}), &[0, 1]),
            (json!({"limit": 2, "reverse": true}), &[5, 4]),
            (json!({"from_time": time(4)}), &[4, 5]),
            (json!({"after_time": time(4)}), &[5]),
            (json!({"before_time": time(2)}), &[0, 1]),
            (json!({"until_time": time(2)}), &[0, 1, 2]),
            (json!({"from_publication": all[4]}), &[4, 5]),
            (json!({"after_publication": all[4]}), &[5]),
            (json!({"before_publication": all[2]}), &[0, 1]),
            (json!({"until_publication": all[2]}), &[0, 1, 2]),
            (json!({"after_publication": all[1], "limit": 2}), &[2, 3]),
            (json!({"before_publication": all[4], "limit": 2, "reverse": true}), &[3, 2]),
            (
                json!({"from_time": time(1), "until_publication": all[3], "after_publication": all[1]}),
                &[2, 3],
            ),
            (json!({"from_publication": all[3], "until_publication": all[2]}), &[]),
            (json!({"topic": "com.log.b"}), &[]),
        ] {
            let expected: Vec<u64> = expected.iter().map(|n: &usize| all[*n]).collect();
            assert_eq!(world.ids(id, kwargs.clone()), expected, "{kwargs}");
        }
        assert_eq!(world.ask(id, json!({"limit": 2}))[4], json!({"more": true}));
        assert_eq!(world.ask(id, json!({"after_publication": 5}))[4], json!({"unknown": [5]}));
        for bad in [json!({"limit": 0}), json!({"from_time": "noon"}), json!({"reverse": "yes"})] {
            assert_eq!(world.ask(id, bad)[4], "wamp.error.invalid_argument");
        }
        world.end();
    });
}

#[test]
fn all_publishers_events_are_told_in_one_order_wherever_one_asks() {
    for place in PLACES.iter().filter(|place| place.is_apart()) {
        let mut world = World::new(place, REALMS[0]);
        let id = world.id(Match::Exact, "com.log.a");
        let publishers: Vec<usize> = (0..place.shards()).map(|shard| world.join(shard)).collect();
        let mut published = Vec::new();
        for round in 1..=5 {
            for at in &publishers {
                // All in one instant, each publisher's in its order.
                published.push(world.publish_from(*at, round, "{}", "com.log.a", "[]"));
            }
        }
        let told = world.ids(id, json!({}));
        for at in 0..publishers.len() {
            let own: Vec<u64> = published.iter().skip(at).step_by(publishers.len()).copied().collect();
            let in_order: Vec<u64> = told.iter().copied().filter(|id| own.contains(id)).collect();
            assert_eq!(in_order, own);
        }
        let mut sorted = (told.clone(), published.clone());
        sorted.0.sort_unstable();
        sorted.1.sort_unstable();
        assert_eq!(sorted.0, sorted.1, "each is there once");
        for shard in 0..place.shards() {
            let at = world.join(shard);
            let answer = world.ask_from(at, 1, id, &json!({}));
            let ids: Vec<_> =
                answer[3].as_array().expect("events").iter().map(|event| &event["publication"]).collect();
            assert_eq!(ids, told.iter().map(|id| json!(id)).collect::<Vec<_>>().iter().collect::<Vec<_>>());
        }
        world.end();
    }
}

#[test]
fn what_a_dead_node_was_told_the_others_know() {
    for place in PLACES.iter().filter(|place| place.is_apart()) {
        let mut world = World::new(place, REALMS[0]);
        let id = world.id(Match::Exact, "com.log.a");
        let all: Vec<u64> = (0..3).map(|_| world.publish("{}", "com.log.a", "[]")).collect();
        world.rig.kill(place.first);
        assert_eq!(world.ids(id, json!({})), all);
        world.end();
    }
}

#[test]
fn a_node_that_is_cut_off_while_it_is_asked_is_left_out() {
    for place in PLACES.iter().filter(|place| place.is_apart()) {
        let mut world = World::new(place, REALMS[0]);
        let id = world.id(Match::Exact, "com.log.a");
        let all: Vec<u64> = (0..3).map(|_| world.publish("{}", "com.log.a", "[]")).collect();
        let call = json!([48, 1, {}, "wamp.subscription.get_events", [id], {"from_publication": all[1]}]);
        world.rig.receive(world.asker, &frames(&[&call.to_string()]));
        world.rig.cut();
        // What was asked by the connection before is not waited for; what is asked then has its own time.
        (0..3).for_each(|_| world.pass(500));
        let got = messages(&mut world.rig, world.asker);
        let answer: Value = serde_json::from_str(got.first().expect("an answer")).expect("JSON");
        assert_eq!(answer[3].as_array().map(Vec::len), Some(2), "{answer}");
        world.end();
    }
}

#[test]
fn lists_of_receivers_are_obeyed_and_events_for_sessions_are_not_kept() {
    everywhere(|place, realm| {
        let mut world = World::new(place, realm);
        let id = world.id(Match::Exact, "com.log.a");
        world.publish(r#"{"eligible":[1]}"#, "com.log.a", "[]");
        world.publish(r#"{"exclude":[1]}"#, "com.log.a", "[]");
        world.publish(r#"{"eligible_authrole":["admin"]}"#, "com.log.a", "[]");
        world.publish(r#"{"exclude_authrole":["anonymous"]}"#, "com.log.a", "[]");
        let admitted = world.publish(r#"{"eligible_authrole":["anonymous"]}"#, "com.log.a", "[]");
        let all = world.publish("{}", "com.log.a", "[]");
        assert_eq!(world.ids(id, json!({})), [admitted, all]);
        assert_eq!(world.ids(id, json!({"limit": 1})), [admitted], "the others do not count");
        world.end();
    });
}

#[test]
fn bounds_hold_by_number_and_age() {
    everywhere(|place, realm| {
        let mut world = World::new(place, realm);
        let few = world.id(Match::Wildcard, "com..few");
        let all: Vec<u64> = (0..5).map(|n| world.publish("{}", &format!("com.{n}.few"), "[]")).collect();
        assert_eq!(world.ids(few, json!({})), all[2..]);
        let answer = world.ask(few, json!({"from_publication": all[0]}));
        assert_eq!((&answer[3], &answer[4]), (&json!([]), &json!({"unknown": [all[0]]})));
        let short = world.id(Match::Exact, "com.short");
        world.publish("{}", "com.short", "[1]");
        world.pass(6_000);
        let second = world.publish("{}", "com.short", "[2]");
        world.pass(6_000);
        assert_eq!(world.ids(short, json!({})), [second]);
        world.end();
    });
}

#[test]
fn what_is_too_long_is_published_and_not_kept() {
    for place in &PLACES {
        let mut world = World::new(place, REALMS[0]);
        let id = world.id(Match::Exact, "com.log.a");
        world.publish("{}", "com.log.a", &format!("[\"{}\"]", "x".repeat(65 << 10)));
        let short = world.publish("{}", "com.log.a", "[]");
        assert_eq!(world.ids(id, json!({})), [short]);
        let refused: u64 =
            (0..place.shards()).map(|shard| world.rig.counter(shard, Counter::HistoryRefused)).sum();
        // By the topic's history and the pattern's, on each node.
        assert_eq!(refused, if place.is_apart() { 4 } else { 2 });
        world.end();
    }
}

#[test]
fn subscriptions_without_a_history_say_so() {
    everywhere(|place, realm| {
        let mut world = World::new(place, realm);
        let subscribe = r#"[32,1,{},"com.other"]"#;
        let subscriber = world.join(world.place.first);
        world.rig.receive(subscriber, &frames(&[subscribe]));
        world.rig.run();
        let other = world.id(Match::Exact, "com.other");
        assert_eq!(world.ask(other, json!({}))[4], "wamp.error.history_unavailable");
        assert_eq!(world.ask(other + 1, json!({}))[4], "wamp.error.no_such_subscription");
        // The one with a history is found without a subscriber.
        let lookup = r#"[48,1,{},"wamp.subscription.lookup",["com.log.a"]]"#;
        let fresh = world.join(world.place.second);
        world.rig.receive(fresh, &frames(&[lookup]));
        world.rig.run();
        let id = world.id(Match::Exact, "com.log.a");
        assert_eq!(messages(&mut world.rig, fresh), [format!("[50,1,{{}},[{id}]]")]);
        world.end();
    });
}

#[test]
fn histories_come_and_go_with_the_realms_settings() {
    for place in &PLACES {
        let mut world = World::new(place, REALMS[0]);
        let id = world.id(Match::Exact, "com.log.a");
        // A subscriber stays, whatever becomes of the history.
        let subscriber = world.join(world.place.second);
        world.rig.receive(subscriber, &frames(&[r#"[32,1,{},"com.log.a"]"#]));
        world.rig.run();
        let first = world.publish("{}", "com.log.a", "[1]");
        world.change(vec![History { events_max: 5, ..History::of(Match::Exact, "com.log.a") }]);
        assert_eq!(world.ids(id, json!({})), [first], "a change of bounds forgets nothing");
        world.change(vec![]);
        let shards = world.rig.shards();
        for (shard, gauge) in
            (0..shards).flat_map(|at| [(at, Gauge::HistoryEvents), (at, Gauge::HistoryBytes)])
        {
            assert_eq!(world.rig.gauge(shard, gauge), 0, "{gauge:?}");
        }
        assert_eq!(world.ask(id, json!({}))[4], "wamp.error.history_unavailable");
        world.publish("{}", "com.log.a", "[2]");
        world.change(histories());
        let third = world.publish("{}", "com.log.a", "[3]");
        assert_eq!(world.ids(id, json!({})), [third]);
        let events = messages(&mut world.rig, subscriber);
        let events: Vec<_> = events.iter().filter(|message| message.starts_with("[36,")).collect();
        assert_eq!(events.len(), 3, "{events:?}");
        world.end();
    }
}

#[test]
fn a_snapshot_brings_histories_too() {
    for place in &PLACES {
        let mut world = World::new(place, REALMS[0]);
        let id = world.id(Match::Exact, "com.log.a");
        let first = world.publish("{}", "com.log.a", "[1]");
        let mut source = source(9);
        source.realms[0].histories = vec![History::of(Match::Exact, "com.log.a")];
        world.rig.feed(&FeedDown::Snapshot(snapshot(&source)));
        assert_eq!(world.ids(id, json!({})), [first]);
        let prefix = world.id(Match::Prefix, "com.log");
        assert_eq!(world.ask(prefix, json!({}))[4], "wamp.error.no_such_subscription");
        world.version = 9;
        world.end();
    }
}

/// Events that a search looks at in several turns, with one of another topic before and one behind them, in one history.
fn haystack(place: &Place, realm: &str) -> (World, u64, [u64; 2]) {
    let mut world = World::new(place, realm);
    world.change(vec![History { events_max: 100_000, ..History::of(Match::Prefix, "com.log") }]);
    let first = world.publish("{}", "com.log.needle", "[1]");
    let hay: Vec<String> = (0..5_000)
        .map(|_| {
            world.requests += 1;
            format!("[16,{},{{}},\"com.log.a\",[]]", world.requests)
        })
        .collect();
    for part in hay.chunks(500) {
        let part: Vec<&str> = part.iter().map(String::as_str).collect();
        world.rig.receive(world.publisher, &frames(&part));
        world.rig.run();
    }
    let last = world.publish("{}", "com.log.needle", "[2]");
    let id = world.id(Match::Prefix, "com.log");
    (world, id, [first, last])
}

fn search(request: u64, id: u64, reverse: bool) -> String {
    let filter = json!({"topic": "com.log.needle", "reverse": reverse});
    json!([48, request, {}, "wamp.subscription.get_events", [id], filter]).to_string()
}

/// Answers to the asker or another session, and after how many turns they are there.
fn answers(world: &mut World, at: Option<usize>, count: usize) -> (usize, Vec<Value>) {
    let (at, mut got) = (at.unwrap_or(world.asker), Vec::new());
    for turns in 0..10_000 {
        let answered =
            messages(&mut world.rig, at).into_iter().filter(|message| !message.starts_with("[17,"));
        got.extend(answered.map(|message| serde_json::from_str(&message).expect("JSON")));
        if got.len() >= count {
            return (turns, got);
        }
        world.pass(0);
    }
    panic!("{count} answers: {got:?}");
}

fn publications(answer: &Value) -> Vec<u64> {
    let events = answer[3].as_array().unwrap_or_else(|| panic!("a RESULT: {answer}"));
    events.iter().map(|event| event["publication"].as_u64().expect("an id")).collect()
}

#[test]
fn a_filter_that_takes_little_is_answered_over_several_turns() {
    everywhere(|place, realm| {
        let (mut world, id, [first, last]) = haystack(place, realm);
        for (request, reverse) in [(1, false), (2, true)] {
            world.rig.receive(world.asker, &frames(&[&search(request, id, reverse)]));
            world.rig.run();
            assert_eq!(
                messages(&mut world.rig, world.asker),
                Vec::<String>::new(),
                "it takes more than a turn"
            );
            // What is published meanwhile comes later than what was asked for.
            world.publish("{}", "com.log.a", "[]");
            if request == 1 {
                world.publish("{}", "com.log.needle", "[3]");
            }
            let (turns, got) = answers(&mut world, None, 1);
            assert!((1..10).contains(&turns), "{turns} turns");
            let got = got.into_iter().next().expect("one");
            let mut expected = vec![first, last];
            if reverse {
                expected.reverse();
                assert_eq!(publications(&got)[1..], expected, "the third needle is there by now");
            } else {
                assert_eq!(publications(&got), expected);
            }
            assert_eq!(got.get(4), None, "nothing was left out: {got}");
        }
        world.end();
    });
}

#[test]
fn a_search_ends_with_its_asker_or_with_the_history() {
    for place in &PLACES {
        for asker_leaves in [true, false] {
            let (mut world, id, _) = haystack(place, REALMS[0]);
            world.rig.receive(world.asker, &frames(&[&search(1, id, false)]));
            world.rig.run();
            if asker_leaves {
                world.rig.close(world.asker);
                (0..5).for_each(|_| world.pass(0));
            } else {
                world.change(vec![]);
                let (_, got) = answers(&mut world, None, 1);
                assert!(got[0][0] == 50 || got[0][4] == "wamp.error.history_unavailable", "{got:?}");
            }
            world.rig.close_all();
            (0..10).for_each(|_| world.pass(0));
            world.end();
        }
    }
}

#[test]
fn searches_under_way_are_bounded_for_a_session_and_for_a_shard() {
    for place in &PLACES {
        let (mut world, id, needles) = haystack(place, REALMS[0]);
        let calls: Vec<String> = (1..=10).map(|request| search(request, id, false)).collect();
        let calls: Vec<&str> = calls.iter().map(String::as_str).collect();
        world.rig.receive(world.asker, &frames(&calls));
        let (_, got) = answers(&mut world, None, 10);
        let refused = got.iter().filter(|answer| answer[4] == "wamp.error.unavailable").count();
        assert_eq!(refused, 2, "eight of one session");
        assert!(got.iter().filter(|answer| answer[0] == 50).all(|answer| publications(answer) == needles));
        // Many sessions, on all shards: each is answered, if not with everything then it says so.
        let others: Vec<usize> = (0..16).map(|n| world.join(n % place.shards())).collect();
        for at in &others {
            world.rig.receive(*at, &frames(&calls[..8]));
        }
        for at in others {
            let (_, got) = answers(&mut world, Some(at), 8);
            for answer in got {
                let is_refused = answer[4] == "wamp.error.unavailable";
                assert!(
                    is_refused || answer[4]["partial"] == true || publications(&answer) == needles,
                    "{answer}"
                );
            }
        }
        world.end();
    }
}
