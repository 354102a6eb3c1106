//! Sessions that outlive their connections ("Session Resumption", a draft of WAMP's advanced profile). In each history the session
//! began at the first place and its client comes back at the second one.

mod bounds;
mod chaos;
mod nodes;

use super::places::{PLACES, Place, everywhere};
use super::rig::Rig;
use super::switches::{both, off, put_on};
use super::{connect, connect_with, frames, messages};
use common::features::{Feature, FeatureSet};
use common::metrics::Gauge;
use common::rules::Bounds;
use dataplane::feed::FeedDown;
use dataplane::shard::ShardConfig;
use serde_json::{Value, json};
use std::time::Duration;

const TOPIC: &str = "com.example.a";
const PROCEDURE: &str = "com.example.p";
const WINDOW: Duration = Duration::from_secs(60);
/// More than it takes for a session to be over once its window is.
const AFTER: Duration = Duration::from_secs(66);

/// A client and its session, which may be on one connection after the other.
struct Client {
    link: usize,
    session: u64,
    token: Option<String>,
    request: u64,
}

struct World {
    rig: Rig,
    place: Place,
    realm: String,
}

fn hello(realm: &str, more: &[(&str, Value)]) -> String {
    let roles = json!({"caller": {}, "callee": {"features": {"call_canceling": true}}, "publisher": {}, "subscriber": {}});
    let mut details = json!({"roles": roles});
    more.iter().for_each(|(key, value)| details[*key] = value.clone());
    json!([1, realm, details]).to_string()
}

impl World {
    fn new(place: &Place, realm: &str) -> Self {
        Self::with(place, realm, |_| {})
    }

    fn with(place: &Place, realm: &str, change: impl Fn(&mut ShardConfig)) -> Self {
        let change = |config: &mut ShardConfig| {
            config.resume.window = WINDOW;
            change(config);
        };
        Self { rig: place.rig(change), place: *place, realm: realm.to_owned() }
    }

    fn shard(&self, second: bool) -> usize {
        if second { self.place.second } else { self.place.first }
    }

    /// A connection that says HELLO with these details besides roles, and what it hears.
    fn hello(&mut self, second: bool, more: &[(&str, Value)]) -> (usize, Vec<Value>) {
        self.hello_by(second, more, 1 << 24)
    }

    /// The same by a transport that takes messages of so many bytes.
    fn hello_by(&mut self, second: bool, more: &[(&str, Value)], bytes_max: usize) -> (usize, Vec<Value>) {
        let shard = self.shard(second);
        let link = connect_with(&mut self.rig, shard, &[&hello(&self.realm, more)], bytes_max);
        self.rig.run();
        (link, self.heard(link))
    }

    fn join(&mut self, second: bool, more: &[(&str, Value)]) -> Client {
        let (link, heard) = self.hello(second, more);
        assert_eq!(heard.len(), 1, "{heard:?}");
        client(link, &heard[0])
    }

    /// A session that can be resumed.
    fn join_to_stay(&mut self) -> Client {
        let client = self.join(false, &[("resumable", true.into())]);
        assert!(client.token.is_some());
        client
    }

    /// The client comes back with the token it has. What it hears after WELCOME.
    fn back(&mut self, client: &mut Client, second: bool) -> Vec<Value> {
        self.back_by(client, second, 1 << 24)
    }

    fn back_by(&mut self, client: &mut Client, second: bool, bytes_max: usize) -> Vec<Value> {
        let (link, mut heard) = self.ask_back_by(client, second, bytes_max);
        let welcome = heard.remove(0);
        assert_eq!((&welcome[0], &welcome[1]), (&2.into(), &client.session.into()), "{welcome}");
        assert_eq!((&welcome[2]["resumed"], &welcome[2]["resumable"]), (&true.into(), &true.into()));
        let again = self::client(link, &welcome);
        assert_ne!(again.token, client.token, "a token is used once");
        *client = Client { request: client.request, ..again };
        heard
    }

    fn ask_back(&mut self, client: &Client, second: bool) -> (usize, Vec<Value>) {
        self.ask_back_by(client, second, 1 << 24)
    }

    fn ask_back_by(&mut self, client: &Client, second: bool, bytes_max: usize) -> (usize, Vec<Value>) {
        let token = client.token.clone().expect("it can be resumed");
        let session = client.session;
        let more =
            [("resumable", true.into()), ("resume-session", session.into()), ("resume-token", token.into())];
        self.hello_by(second, &more, bytes_max)
    }

    fn heard(&mut self, link: usize) -> Vec<Value> {
        let heard = messages(&mut self.rig, link);
        heard.iter().map(|text| serde_json::from_str(text).expect("JSON")).collect()
    }

    fn hears(&mut self, client: &Client) -> Vec<Value> {
        self.heard(client.link)
    }

    fn says(&mut self, client: &Client, message: &Value) {
        self.rig.receive(client.link, &frames(&[&message.to_string()]));
        self.rig.run();
    }

    /// The next request, with its id in place of null.
    fn asks(&mut self, client: &mut Client, mut message: Value) -> u64 {
        client.request += 1;
        message[1] = client.request.into();
        self.says(client, &message);
        client.request
    }

    /// ... and its one answer.
    fn ask(&mut self, client: &mut Client, message: Value) -> Value {
        self.asks(client, message);
        let mut heard = self.hears(client);
        assert_eq!(heard.len(), 1, "{heard:?}");
        heard.remove(0)
    }

    fn subscribe(&mut self, client: &mut Client, topic: &str) {
        let answer = self.ask(client, json!([32, null, {}, topic]));
        assert_eq!(answer[0], 33, "{answer}");
    }

    fn register(&mut self, client: &mut Client, options: &Value) {
        let answer = self.ask(client, json!([64, null, options, PROCEDURE]));
        assert_eq!(answer[0], 65, "{answer}");
    }

    fn publish(&mut self, client: &mut Client, numbers: std::ops::Range<u64>) {
        numbers.for_each(|n| _ = self.asks(client, json!([16, null, {}, TOPIC, [n]])));
    }

    fn drop(&mut self, client: &Client) {
        self.rig.close(client.link);
        self.rig.run();
    }

    fn wait(&mut self, time: Duration) {
        let mut left = time;
        while !left.is_zero() {
            let step = left.min(Duration::from_secs(1));
            self.rig.pass(step);
            self.rig.run();
            left -= step;
        }
    }

    /// Sessions that wait in the shard where they began.
    fn waiting(&mut self) -> u64 {
        self.rig.gauge(self.place.first, Gauge::SessionsDetached)
    }

    /// Nothing is held once everybody has left and all windows are over.
    fn end(mut self) {
        self.rig.close_all();
        self.wait(AFTER);
        self.rig.check_empty();
    }
}

/// Who WELCOME says the client is.
fn client(link: usize, welcome: &Value) -> Client {
    assert_eq!(welcome[0], 2, "{welcome}");
    let details = &welcome[2];
    assert_eq!(details["resume-token"], details["resume_token"]);
    assert_eq!(details.get("resume_token").is_some(), details["resumable"] == true);
    let token = details["resume_token"].as_str().map(str::to_owned);
    Client { link, session: welcome[1].as_u64().expect("an id"), token, request: 0 }
}

/// The numbers that events carry.
fn numbers(heard: &[Value]) -> Vec<u64> {
    let events = heard.iter().inspect(|message| assert_eq!(message[0], 36, "{message}"));
    events.map(|event| event[4][0].as_u64().expect("a number")).collect()
}

#[test]
fn a_client_comes_back_to_its_session_and_what_it_missed() {
    everywhere(|place, realm| {
        let mut world = World::new(place, realm);
        let mut stays = world.join_to_stay();
        let mut other = world.join(true, &[]);
        world.subscribe(&mut stays, TOPIC);
        world.subscribe(&mut other, "com.example.b");
        for round in 0..3 {
            let first = round * 10;
            world.publish(&mut other, first..first + 2);
            assert_eq!(numbers(&world.hears(&stays)), [first, first + 1]);
            world.drop(&stays);
            assert_eq!(world.waiting(), 1);
            world.publish(&mut other, first + 2..first + 7);
            let missed = world.back(&mut stays, round % 2 == 0);
            assert_eq!(numbers(&missed), (first + 2..first + 7).collect::<Vec<_>>());
            assert_eq!(world.waiting(), 0);
            // It goes on with the ids of its requests.
            world.asks(&mut stays, json!([16, null, {}, "com.example.b", [first]]));
            assert_eq!(numbers(&world.hears(&other)), [first]);
            let count = world.ask(&mut other, json!([48, null, {}, "wamp.session.count"]));
            assert_eq!(count[3], json!([2]));
        }
        world.says(&stays, &json!([6, {}, "wamp.close.normal"]));
        assert_eq!(world.hears(&stays), [json!([6, {}, "wamp.close.goodbye_and_out"])]);
        let count = world.ask(&mut other, json!([48, null, {}, "wamp.session.count"]));
        assert_eq!(count[3], json!([1]));
        let (_, heard) = world.ask_back(&stays, true);
        assert_eq!(heard[0][2]["resumed"], false, "it has left");
        world.end();
    });
}

#[test]
fn a_session_that_is_not_asked_to_stay_ends_with_its_connection() {
    everywhere(|place, realm| {
        let mut world = World::new(place, realm);
        let (link, heard) = world.hello(false, &[]);
        assert!(heard[0][2].get("resumable").is_none() && heard[0][2].get("resumed").is_none());
        world.rig.close(link);
        world.rig.run();
        let asked = world.join(false, &[("resumable", false.into())]);
        assert!(asked.token.is_none());
        world.drop(&asked);
        assert_eq!(world.waiting(), 0);
        world.rig.check_empty();
    });
    let mut world = World::with(&PLACES[0], "realm1", |config| config.resume.window = Duration::ZERO);
    let (_, heard) = world.hello(false, &[("resumable", true.into())]);
    assert_eq!((&heard[0][2]["resumable"], &heard[0][2]["resumed"]), (&false.into(), &false.into()));
    world.rig.check_empty();
}

#[test]
fn a_realm_or_a_role_can_switch_it_off_at_any_time() {
    everywhere(|place, realm| {
        for rules in both(off(&[Feature::SessionResumption]), Bounds::NONE) {
            let mut world = World::new(place, realm);
            let (one, two) = (world.join_to_stay(), world.join_to_stay());
            world.drop(&one);
            put_on(&mut world.rig, realm, 1, &rules);
            let asked = world.join(false, &[("resumable", true.into())]);
            assert!(asked.token.is_none());
            world.drop(&asked);
            world.drop(&two);
            assert_eq!(world.waiting(), 1, "the one that waited before");
            put_on(&mut world.rig, realm, 2, &both(FeatureSet::EMPTY, Bounds::NONE)[0]);
            let mut again = world.join_to_stay();
            world.drop(&again);
            world.back(&mut again, true);
            world.end();
        }
    });
}

#[test]
fn a_token_is_good_once_and_for_its_session_only() {
    everywhere(|place, realm| {
        let mut world = World::new(place, realm);
        let mut stays = world.join_to_stay();
        let used = Client {
            token: stays.token.clone(),
            ..Client { link: 0, session: stays.session, token: None, request: 0 }
        };
        world.drop(&stays);
        world.back(&mut stays, true);
        world.drop(&stays);
        let wrong = "AAAAAAAAAAAAAAAAAAAAAA==";
        let mut almost = stays.token.clone().expect("a token").into_bytes();
        almost[0] ^= 1;
        let almost = String::from_utf8(almost).expect("text");
        for (session, token) in [
            (used.session, used.token.as_deref().expect("a token")),
            (stays.session, wrong),
            (stays.session, "short"),
            (stays.session, &almost),
            (stays.session % 1_000 + 1, stays.token.as_deref().expect("a token")),
        ] {
            let more = [
                ("resumable", true.into()),
                ("resume_session", session.into()),
                ("resume_token", token.into()),
            ];
            let stranger = world.join(true, &more);
            assert_ne!(stranger.session, stays.session);
            assert!(stranger.token.is_some() && stranger.token != stays.token);
        }
        // Another realm is another client.
        let real = std::mem::replace(
            &mut world.realm,
            if realm == "strict" { "realm1" } else { "strict" }.to_owned(),
        );
        let (_, heard) = world.ask_back(&stays, true);
        assert_eq!((&heard[0][0], &heard[0][2]["resumed"]), (&2.into(), &false.into()));
        world.realm = real;
        world.back(&mut stays, true);
        world.end();
    });
}

#[test]
fn wrong_types_in_hello_are_violations_in_strict_realms_only() {
    everywhere(|place, realm| {
        let mut world = World::new(place, realm);
        for (key, value) in [
            ("resumable", json!(1)),
            ("resume-session", json!("x")),
            ("resume-session", json!(0)),
            ("resume-token", json!(7)),
        ] {
            let (_, heard) = world.hello(true, &[(key, value)]);
            if realm == "strict" {
                assert_eq!(
                    (&heard[0][0], &heard[0][2]),
                    (&3.into(), &"wamp.error.protocol_violation".into())
                );
            } else {
                assert_eq!(heard[0][0], 2, "{heard:?}");
            }
        }
        world.rig.check_empty();
    });
}

#[test]
fn registrations_stay_and_calls_meanwhile_find_nobody() {
    everywhere(|place, realm| {
        let mut world = World::new(place, realm);
        let mut stays = world.join_to_stay();
        let mut caller = world.join(true, &[]);
        world.register(&mut stays, &json!({}));
        world.drop(&stays);
        let answer = world.ask(&mut caller, json!([48, null, {}, PROCEDURE]));
        assert_eq!((&answer[0], &answer[4]), (&8.into(), &"wamp.error.session_unattached".into()));
        assert!(world.back(&mut stays, true).is_empty());
        world.asks(&mut caller, json!([48, null, {}, PROCEDURE, ["hello"]]));
        let invocation = world.hears(&stays).remove(0);
        assert_eq!((&invocation[0], &invocation[4]), (&68.into(), &json!(["hello"])));
        world.says(&stays, &json!([70, invocation[1], {}, ["served"]]));
        assert_eq!(world.hears(&caller)[0][3], json!(["served"]));
        world.end();
    });
}

#[test]
fn calls_go_to_another_callee_while_one_is_away() {
    everywhere(|place, realm| {
        let mut world = World::new(place, realm);
        let (mut stays, mut other) = (world.join_to_stay(), world.join(false, &[]));
        let mut caller = world.join(true, &[]);
        let options = json!({"invoke": "first"});
        world.register(&mut stays, &options);
        world.register(&mut other, &options);
        world.drop(&stays);
        world.asks(&mut caller, json!([48, null, {}, PROCEDURE]));
        let invocation = world.hears(&other).remove(0);
        world.says(&other, &json!([70, invocation[1], {}, ["other"]]));
        assert_eq!(world.hears(&caller)[0][3], json!(["other"]));
        world.back(&mut stays, true);
        world.asks(&mut caller, json!([48, null, {}, PROCEDURE]));
        assert_eq!(world.hears(&stays)[0][0], 68);
        world.end();
    });
}

#[test]
fn calls_that_are_open_end_as_they_would() {
    everywhere(|place, realm| {
        let mut world = World::new(place, realm);
        let mut stays = world.join_to_stay();
        let mut other = world.join(true, &[]);
        world.register(&mut stays, &json!({}));
        let answer = world.ask(&mut other, json!([64, null, {}, "com.example.other"]));
        assert_eq!(answer[0], 65);
        // One call each way, both open when the connection breaks.
        world.asks(&mut other, json!([48, null, {}, PROCEDURE]));
        let to_answer = world.hears(&stays).remove(0);
        let asked = world.asks(&mut stays, json!([48, null, {}, "com.example.other"]));
        let invocation = world.hears(&other).remove(0);
        world.drop(&stays);
        world.says(&other, &json!([70, invocation[1], {}, ["while it was away"]]));
        assert_eq!(world.back(&mut stays, true), [json!([50, asked, {}, ["while it was away"]])]);
        world.says(&stays, &json!([70, to_answer[1], {}, ["late"]]));
        assert_eq!(world.hears(&other)[0][3], json!(["late"]));
        // And one that is given up while the callee is away.
        world.asks(&mut other, json!([48, null, {}, PROCEDURE]));
        let given_up = world.hears(&stays).remove(0);
        world.drop(&stays);
        let request = other.request;
        world.says(&other, &json!([49, request, {}]));
        assert_eq!(world.hears(&other)[0][4], "wamp.error.canceled");
        let heard = world.back(&mut stays, false);
        assert_eq!((heard.len(), &heard[0][0], &heard[0][1]), (1, &69.into(), &given_up[1]));
        world.end();
    });
}

#[test]
fn a_session_ends_when_its_client_does_not_come_back() {
    everywhere(|place, realm| {
        let mut world = World::new(place, realm);
        let mut stays = world.join_to_stay();
        let mut other = world.join(true, &[]);
        world.subscribe(&mut stays, TOPIC);
        world.register(&mut stays, &json!({}));
        world.subscribe(&mut other, "com.example.testament");
        world.subscribe(&mut other, "wamp.session.on_leave");
        for scope in ["detached", "destroyed"] {
            let arguments = json!(["com.example.testament", [scope]]);
            let add = json!([48, null, {}, "wamp.session.add_testament", arguments, {"scope": scope}]);
            assert_eq!(world.ask(&mut stays, add)[0], 50);
        }
        world.drop(&stays);
        let heard = world.hears(&other);
        assert_eq!(heard.iter().map(|event| &event[4][0]).collect::<Vec<_>>(), ["detached"]);
        world.back(&mut stays, true);
        world.drop(&stays);
        assert!(world.hears(&other).is_empty(), "it was published before");
        world.wait(WINDOW - Duration::from_secs(2));
        let count = world.ask(&mut other, json!([48, null, {}, "wamp.session.count"]));
        assert_eq!(count[3], json!([2]), "it counts while it waits");
        world.wait(AFTER - WINDOW + Duration::from_secs(2));
        let heard = world.hears(&other);
        let (testament, left) = (&heard[0], &heard[1]);
        assert_eq!(
            (heard.len(), &testament[4][0], &left[4][0]),
            (2, &"destroyed".into(), &stays.session.into())
        );
        let (_, heard) = world.ask_back(&stays, true);
        assert_eq!(heard[0][2]["resumed"], false);
        assert_ne!(heard[0][1], stays.session);
        let answer = world.ask(&mut other, json!([48, null, {}, PROCEDURE]));
        assert_eq!(answer[4], "wamp.error.no_such_procedure");
        world.end();
    });
}

#[test]
fn a_second_connection_takes_the_session_over_from_one_that_is_half_dead() {
    everywhere(|place, realm| {
        let mut world = World::new(place, realm);
        let mut stays = world.join_to_stay();
        let mut other = world.join(true, &[]);
        world.subscribe(&mut stays, TOPIC);
        let first = stays.link;
        world.rig.links[first].stuck = true;
        world.publish(&mut other, 0..1);
        // What was handed to the old connection is gone with it, what waited behind it is not.
        world.publish(&mut other, 1..4);
        assert_eq!(numbers(&world.back(&mut stays, true)), [1, 2, 3]);
        assert!(!world.rig.links[first].open);
        let second = stays.link;
        for to_second in [false, true, true] {
            world.publish(&mut other, 4..6);
            assert_eq!(numbers(&world.hears(&stays)), [4, 5]);
            let before = stays.link;
            world.back(&mut stays, to_second);
            world.rig.close_lingering(before);
            assert!(!world.rig.links[before].open && stays.link != second);
        }
        world.end();
    });
}

#[test]
fn a_session_that_waits_is_known_and_can_be_killed() {
    everywhere(|place, realm| {
        let mut world = World::new(place, realm);
        let stays = world.join_to_stay();
        let mut other = world.join(true, &[]);
        world.drop(&stays);
        let details = world.ask(&mut other, json!([48, null, {}, "wamp.session.get", [stays.session]]));
        assert_eq!(details[3][0]["session"], stays.session);
        let killed = world.ask(&mut other, json!([48, null, {}, "wamp.session.kill", [stays.session]]));
        assert_eq!(killed[0], 50, "{killed}");
        assert_eq!(world.waiting(), 0);
        let (_, heard) = world.ask_back(&stays, true);
        assert_eq!(heard[0][2]["resumed"], false);

        // One that is carried hears why.
        let mut stays = world.join_to_stay();
        world.drop(&stays);
        world.back(&mut stays, true);
        world.ask(
            &mut other,
            json!([48, null, {}, "wamp.session.kill", [stays.session], {"reason": "com.example.why"}]),
        );
        assert_eq!(world.hears(&stays)[0][2], "com.example.why");
        world.says(&stays, &json!([6, {}, "wamp.close.goodbye_and_out"]));
        world.rig.close_lingering(stays.link);
        assert!(!world.rig.links[stays.link].open);
        world.end();
    });
}

#[test]
fn sessions_that_wait_are_killed_with_the_others() {
    everywhere(|place, realm| {
        let mut world = World::new(place, realm);
        let stays = [world.join_to_stay(), world.join_to_stay()];
        let mut other = world.join(true, &[]);
        world.drop(&stays[0]);
        let killed = world.ask(&mut other, json!([48, null, {}, "wamp.session.kill_all"]));
        assert_eq!((&killed[3], world.waiting()), (&json!([2]), 0));
        assert_eq!(world.hears(&stays[1])[0][2], "wamp.close.killed");
        world.end();
    });
}

#[test]
fn who_breaks_the_protocol_does_not_come_back() {
    everywhere(|place, realm| {
        let mut world = World::new(place, realm);
        let bad = [frames(&["[16,1]"]), frames(&["no message"]), vec![0xff; 8]];
        for (carried, bytes) in
            [false, true].into_iter().flat_map(|carried| bad.clone().map(|bytes| (carried, bytes)))
        {
            let mut stays = world.join_to_stay();
            if carried {
                world.drop(&stays);
                world.back(&mut stays, true);
            }
            world.rig.receive(stays.link, &bytes);
            world.rig.run();
            let heard = world.hears(&stays);
            assert_eq!((&heard[0][0], &heard[0][2]), (&3.into(), &"wamp.error.protocol_violation".into()));
            world.rig.close_lingering(stays.link);
            assert!(!world.rig.links[stays.link].open);
            let (_, heard) = world.ask_back(&stays, true);
            assert_eq!(heard[0][2]["resumed"], false);
        }
        world.end();
    });
}

#[test]
fn requests_that_were_lost_leave_a_gap_once() {
    everywhere(|place, realm| {
        let mut world = World::new(place, realm);
        let mut stays = world.join_to_stay();
        world.subscribe(&mut stays, TOPIC);
        world.drop(&stays);
        world.back(&mut stays, true);
        stays.request += 3;
        world.subscribe(&mut stays, "com.example.b");
        stays.request += 1;
        let answer = world.ask(&mut stays, json!([32, null, {}, "com.example.c"]));
        assert_eq!(answer[0], if realm == "strict" { 3 } else { 33 }, "{answer}");
        world.end();
    });
}

#[test]
fn a_client_that_gives_up_while_it_asks_leaves_the_session_to_wait() {
    everywhere(|place, realm| {
        let mut world = World::new(place, realm);
        let mut stays = world.join_to_stay();
        world.drop(&stays);
        let token = stays.token.clone().expect("a token");
        let more = [("resume-session", stays.session.into()), ("resume-token", token.into())];
        let link = connect(&mut world.rig, place.second, &[&hello(realm, &more)]);
        world.rig.close(link);
        world.rig.run();
        assert_eq!(world.waiting(), 1);
        // The token was used, or it was not: the session is to be had or ends in time, and nothing is left of it.
        let (again, heard) = world.ask_back(&stays, true);
        if heard[0][2]["resumed"] == true {
            stays = client(again, &heard[0]);
            world.drop(&stays);
        }
        world.end();
    });
}

#[test]
fn a_client_that_answers_no_pings_may_come_back() {
    for place in &PLACES {
        let pinged = |config: &mut ShardConfig| {
            config.timeouts.ping_interval = Duration::from_secs(5);
            config.timeouts.ping_timeout = Duration::from_secs(5);
        };
        let mut world = World::with(place, "strict", pinged);
        world.join_to_stay();
        world.wait(Duration::from_secs(12) + AFTER);
        assert_eq!(world.waiting(), 0, "it ends in time");
        let mut stays = world.join_to_stay();
        world.wait(Duration::from_secs(12));
        assert!(!world.rig.links[stays.link].open);
        assert_eq!(world.waiting(), 1);
        for second in [true, false] {
            world.back(&mut stays, second);
            world.wait(Duration::from_secs(12));
            assert!(!world.rig.links[stays.link].open, "it is pinged where its connection is");
            assert_eq!(world.waiting(), 1);
        }
        world.end();
    }
}

#[test]
fn a_node_that_drains_ends_sessions_that_wait_and_those_that_are_carried() {
    for place in &PLACES {
        let mut world = World::new(place, "realm1");
        let (waits, mut carried) = (world.join_to_stay(), world.join_to_stay());
        world.drop(&waits);
        world.drop(&carried);
        world.back(&mut carried, true);
        world.rig.feed(&FeedDown::Drain);
        world.rig.run();
        for shard in 0..place.shards() {
            assert_eq!(world.rig.gauge(shard, Gauge::SessionsDetached), 0, "{place:?}");
        }
        let heard = world.hears(&carried);
        if !place.is_apart() {
            assert_eq!((&heard[0][0], &heard[0][2]), (&6.into(), &"wamp.close.system_shutdown".into()));
            world.says(&carried, &json!([6, {}, "wamp.close.goodbye_and_out"]));
        }
        world.rig.close_lingering(carried.link);
        world.rig.run();
        for shard in 0..place.shards() {
            assert_eq!(world.rig.gauge(shard, Gauge::Sessions), 0, "{place:?}");
            assert_eq!(world.rig.gauge(shard, Gauge::SessionsCarried), 0, "{place:?}");
        }
        world.rig.check_empty();
    }
}
