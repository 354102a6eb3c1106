//! Publications with more to them than a topic and a payload (WAMP, advanced profile): each history with both peers on one
//! shard, on two, and on two nodes.

use super::places::{PLACES, Place, REALMS};
use super::rig::Rig;
use super::{connect, event, frames, hello, messages, session};
use common::ids::{Match, RealmId, RouteKind, route_id};

/// Announces everything.
const ABLE: &str = r#"{"publisher":{"features":{"payload_passthru_mode":true}},
    "subscriber":{"features":{"payload_passthru_mode":true,"publication_trustlevels":true,"subscription_revocation":true}}}"#;
/// Announces nothing.
const PLAIN: &str = r#"{"publisher":{},"subscriber":{}}"#;

const TOPIC: &str = "com.example.a";

/// A publisher, and a subscriber of one topic.
struct Pair {
    rig: Rig,
    publisher: usize,
    subscriber: usize,
    realm: &'static str,
    /// Ids of their sessions.
    publisher_id: u64,
    subscriber_id: u64,
    request: u64,
}

impl Pair {
    /// `topic` is subscribed to with `options`.
    fn new(place: &Place, realm: &'static str, roles: &str, options: &str, topic: &str) -> Self {
        let mut rig = place.rig(|_| {});
        let subscribe = format!("[32,1,{options},\"{topic}\"]");
        let subscriber = connect(&mut rig, place.second, &[&hello(realm, roles), &subscribe]);
        rig.run();
        let publisher = connect(&mut rig, place.first, &[&hello(realm, ABLE)]);
        rig.run();
        let subscriber_id = session(&messages(&mut rig, subscriber));
        let publisher_id = session(&messages(&mut rig, publisher));
        Self { rig, publisher, subscriber, realm, publisher_id, subscriber_id, request: 0 }
    }

    /// Publishes to [`TOPIC`]. `ME` and `YOU` stand for the sessions of the publisher and of the subscriber, and with `h` in
    /// front for their authids. What the publisher hears.
    fn publish(&mut self, options: &str, payload: &str) -> Vec<String> {
        self.request += 1;
        let options = self.named(options);
        let publish = format!("[16,{},{options},\"{TOPIC}\"{payload}]", self.request);
        self.rig.receive(self.publisher, &frames(&[&publish]));
        self.rig.run();
        messages(&mut self.rig, self.publisher)
    }

    fn named(&self, text: &str) -> String {
        let text = text.replace("hME", &format!("{:x}", self.publisher_id));
        let text = text.replace("hYOU", &format!("{:x}", self.subscriber_id));
        text.replace("ME", &self.publisher_id.to_string()).replace("YOU", &self.subscriber_id.to_string())
    }

    /// The events the subscriber got, without the ids in front: `details payload`.
    fn events(&mut self) -> Vec<String> {
        let got = messages(&mut self.rig, self.subscriber);
        got.iter().map(|message| event(message).to_owned()).collect()
    }

    fn hears(&mut self, expected: &[&str]) {
        let expected: Vec<String> = expected.iter().map(|text| self.named(text)).collect();
        assert_eq!(self.events(), expected, "{}", self.realm);
    }

    /// Nothing is held once everybody has left.
    fn end(mut self) {
        self.rig.check_empty();
    }
}

/// Every place in both degrees of strictness.
fn everywhere(roles: &str, history: impl Fn(&mut Pair)) {
    for place in &PLACES {
        for realm in REALMS {
            let mut pair = Pair::new(place, realm, roles, "{}", TOPIC);
            history(&mut pair);
            pair.end();
        }
    }
}

#[test]
fn a_publisher_is_named_when_it_asks_for_it() {
    everywhere(PLAIN, |pair| {
        pair.publish(r#"{"disclose_me":true}"#, ",[1]");
        pair.publish(r#"{"disclose_me":false}"#, ",[2]");
        pair.publish("{}", ",[3]");
        pair.hears(&[
            r#"{"publisher":ME,"publisher_authid":"hME","publisher_authrole":"anonymous"},[1]"#,
            "{},[2]",
            "{},[3]",
        ]);
    });
}

#[test]
fn subscribers_by_pattern_are_told_the_topic_too() {
    for (options, topic) in [(r#"{"match":"prefix"}"#, "com.ex"), (r#"{"match":"wildcard"}"#, "com..a")] {
        for place in &PLACES {
            let mut pair = Pair::new(place, "strict", ABLE, options, topic);
            pair.publish(r#"{"disclose_me":true}"#, ",[1]");
            pair.publish("{}", "");
            pair.hears(&[
                r#"{"topic":"com.example.a","publisher":ME,"publisher_authid":"hME","publisher_authrole":"anonymous","trustlevel":0},[1]"#,
                r#"{"topic":"com.example.a","trustlevel":0}"#,
            ]);
            pair.end();
        }
    }
}

#[test]
fn the_trust_level_is_told_to_those_who_announced_it() {
    everywhere(ABLE, |pair| {
        pair.publish("{}", ",[1]");
        pair.publish(r#"{"acknowledge":true,"eligible":[YOU]}"#, ",[],{\"a\":1}");
        pair.hears(&[r#"{"trustlevel":0},[1]"#, r#"{"trustlevel":0},[],{"a":1}"#]);
    });
}

#[test]
fn one_event_has_both_forms_for_many_receivers() {
    let large = "x".repeat(4_000);
    for payload in ["1", large.as_str()] {
        let mut pair = Pair::new(&PLACES[0], "realm1", PLAIN, "{}", TOPIC);
        let mut others = Vec::new();
        for roles in [PLAIN, ABLE, PLAIN, ABLE] {
            let hello = hello("realm1", roles);
            let at = connect(&mut pair.rig, 0, &[&hello, &format!("[32,1,{{}},\"{TOPIC}\"]")]);
            others.push((at, roles == ABLE));
        }
        pair.rig.run();
        others.iter().for_each(|(at, _)| _ = messages(&mut pair.rig, *at));
        pair.publish("{}", &format!(",[\"{payload}\"]"));
        pair.hears(&[&format!("{{}},[\"{payload}\"]")]);
        for (at, trusting) in others {
            let got = messages(&mut pair.rig, at);
            let details = if trusting { "{\"trustlevel\":0}" } else { "{}" };
            assert_eq!(event(&got[0]), format!("{details},[\"{payload}\"]"));
        }
        pair.end();
    }
}

#[test]
fn attributes_of_payload_passthru_mode_reach_subscribers_untouched() {
    everywhere(PLAIN, |pair| {
        let ppt = r#""ppt_scheme":"wamp","ppt_serializer":"cbor","ppt_cipher":"aes256gcm","ppt_keyid":"k""#;
        pair.publish(&format!("{{{ppt}}}"), ",[\"\\u0000AAEC\"]");
        pair.publish(r#"{"ppt_keyid":"without a scheme"}"#, ",[1]");
        pair.hears(&[&format!("{{{ppt}}},[\"\\u0000AAEC\"]"), "{},[1]"]);
    });
}

#[test]
fn payload_passthru_mode_is_to_be_announced_in_strict_realms() {
    for (realm, is_refused) in [("realm1", false), ("strict", true)] {
        let mut pair = Pair::new(&PLACES[1], realm, PLAIN, "{}", TOPIC);
        let hello = hello(realm, PLAIN);
        let publish = format!("[16,1,{{\"ppt_scheme\":\"mqtt\"}},\"{TOPIC}\"]");
        let at = connect(&mut pair.rig, 0, &[&hello, &publish]);
        pair.rig.run();
        let got = messages(&mut pair.rig, at);
        let aborted = got.iter().any(|message| message.contains("wamp.error.protocol_violation"));
        assert_eq!((aborted, pair.events().len()), (is_refused, usize::from(!is_refused)));
        pair.end();
    }
}

#[test]
fn attributes_of_payload_passthru_mode_are_strings() {
    let able = r#"{"publisher":{"features":{"payload_passthru_mode":true}}}"#;
    for options in [r#""ppt_scheme":1"#, r#""ppt_scheme":"x","ppt_cipher":[]"#, r#""ppt_keyid":7"#] {
        for (realm, is_refused) in [("realm1", false), ("strict", true)] {
            let mut pair = Pair::new(&PLACES[1], realm, PLAIN, "{}", TOPIC);
            let hello = format!("[1,\"{realm}\",{{\"roles\":{able}}}]");
            let at = connect(&mut pair.rig, 0, &[&hello, &format!("[16,1,{{{options}}},\"{TOPIC}\"]")]);
            pair.rig.run();
            let got = messages(&mut pair.rig, at);
            let aborted = got.iter().any(|message| message.contains("wamp.error.protocol_violation"));
            let events = pair.events();
            assert_eq!((aborted, events.len()), (is_refused, usize::from(!is_refused)), "{options}");
            pair.end();
        }
    }
}

#[test]
fn only_whom_every_list_admits_gets_the_event() {
    everywhere(PLAIN, |pair| {
        for yes in [
            r#"{"eligible":[YOU,ME]}"#,
            r#"{"eligible_authid":["hYOU"]}"#,
            r#"{"eligible_authrole":["admin","anonymous"]}"#,
            r#"{"exclude":[ME],"exclude_authid":["joe","hME"],"exclude_authrole":["admin"]}"#,
            r#"{"eligible":[YOU],"eligible_authid":["hYOU"],"exclude":[]}"#,
        ] {
            pair.publish(yes, ",[1]");
            pair.hears(&["{},[1]"]);
        }
        for no in [
            r#"{"exclude":[1,YOU]}"#,
            r#"{"exclude_authid":["hYOU"]}"#,
            r#"{"exclude_authrole":["anonymous"]}"#,
            r#"{"eligible":[ME]}"#,
            r#"{"eligible":[]}"#,
            r#"{"eligible_authid":["hME"]}"#,
            r#"{"eligible_authrole":["admin"]}"#,
            r#"{"eligible":[YOU],"exclude_authid":["hYOU"]}"#,
            r#"{"eligible":[YOU],"eligible_authrole":["admin"],"disclose_me":true}"#,
        ] {
            pair.publish(no, ",[1]");
            pair.hears(&[]);
        }
    });
}

#[test]
fn lists_say_nothing_about_the_publisher_itself() {
    for realm in REALMS {
        let mut pair = Pair::new(&PLACES[1], realm, PLAIN, "{}", TOPIC);
        pair.request = 1;
        let subscribe = format!("[32,1,{{}},\"{TOPIC}\"]");
        pair.rig.receive(pair.publisher, &frames(&[&subscribe]));
        pair.rig.run();
        messages(&mut pair.rig, pair.publisher);
        assert!(pair.publish(r#"{"eligible":[ME]}"#, ",[1]").is_empty(), "exclude_me is true");
        let got = pair.publish(r#"{"eligible":[ME],"exclude_me":false}"#, ",[2]");
        assert_eq!(got.iter().map(|message| event(message)).collect::<Vec<_>>(), [r#"{"trustlevel":0},[2]"#]);
        pair.hears(&[]);
        pair.end();
    }
}

#[test]
fn wrong_types_are_violations_in_strict_realms_and_name_nobody_in_others() {
    for wrong in [
        r#"{"eligible":["x"]}"#,
        r#"{"eligible_authid":[1]}"#,
        r#"{"eligible_authrole":true}"#,
        r#"{"exclude":{},"eligible":[]}"#,
        r#"{"eligible":[YOU.5]}"#,
    ] {
        let mut pair = Pair::new(&PLACES[1], "realm1", PLAIN, "{}", TOPIC);
        assert!(pair.publish(wrong, ",[1]").is_empty());
        pair.hears(&[]);
        pair.publish("{}", ",[2]");
        pair.hears(&["{},[2]"]);
        pair.end();
        let mut pair = Pair::new(&PLACES[1], "strict", PLAIN, "{}", TOPIC);
        let got = pair.publish(wrong, ",[1]");
        assert!(got[0].contains("wamp.error.protocol_violation"), "{got:?}");
        pair.hears(&[]);
        pair.end();
    }
}

/// Clients in languages with one kind of number write long ids as floats in MessagePack and CBOR.
#[test]
fn a_session_may_be_named_by_a_float_in_compatible_realms() {
    for place in &PLACES {
        let mut pair = Pair::new(place, "realm1", PLAIN, "{}", TOPIC);
        pair.publish(r#"{"exclude":[YOU.0]}"#, ",[1]");
        pair.publish(r#"{"eligible":[YOU.0]}"#, ",[2]");
        pair.hears(&["{},[2]"]);
        pair.end();
    }
    let mut pair = Pair::new(&PLACES[0], "strict", PLAIN, "{}", TOPIC);
    let got = pair.publish(r#"{"exclude":[YOU.0]}"#, ",[1]");
    assert!(got[0].contains("wamp.error.protocol_violation"), "{got:?}");
    pair.end();
}

#[test]
fn too_long_lists_are_refused() {
    let ids: Vec<String> = (1..=3_000).map(|id| id.to_string()).collect();
    let mut pair = Pair::new(&PLACES[1], "strict", PLAIN, "{}", TOPIC);
    let got = pair.publish(&format!(r#"{{"acknowledge":true,"exclude":[{}]}}"#, ids.join(",")), ",[1]");
    assert!(got[0].starts_with("[8,16,1,{},\"wamp.error.invalid_argument\""), "{got:?}");
    assert!(pair.publish(&format!(r#"{{"exclude":[{}]}}"#, ids.join(",")), ",[1]").is_empty());
    pair.hears(&[]);
    pair.end();
}

#[test]
fn a_lost_event_is_told_with_the_details_of_the_next() {
    let mut pair = Pair::new(&PLACES[0], "realm1", ABLE, "{}", TOPIC);
    pair.rig.links[pair.subscriber].stuck = true;
    let large = format!(",[\"{}\"]", "x".repeat(100_000));
    for _ in 0..100 {
        pair.publish(r#"{"disclose_me":true}"#, &large);
    }
    pair.rig.links[pair.subscriber].stuck = false;
    pair.rig.run();
    let details = pair.named(
        r#""publisher":ME,"publisher_authid":"hME","publisher_authrole":"anonymous","trustlevel":0},"#,
    );
    let events = pair.events();
    let told = events.iter().filter(|event| event.starts_with("{\"_dropped\":") && event.contains(&details));
    assert!(told.count() > 0, "{} events, none tells of those that were lost", events.len());
    pair.end();
}

/// The id of the subscription to [`TOPIC`].
fn subscription(realm: &str) -> u64 {
    route_id(RealmId::of(realm), RouteKind::Topic, Match::Exact, TOPIC)
}

#[test]
fn the_same_publication_has_one_id_and_one_event_for_each_subscription() {
    for place in &PLACES {
        let mut pair = Pair::new(place, "strict", PLAIN, "{}", TOPIC);
        pair.rig.receive(pair.subscriber, &frames(&[r#"[32,2,{"match":"prefix"},"com"]"#]));
        pair.rig.run();
        messages(&mut pair.rig, pair.subscriber);
        pair.publish(r#"{"eligible":[YOU]}"#, "");
        let got = messages(&mut pair.rig, pair.subscriber);
        let ids: Vec<_> = got.iter().map(|message| message.split(',').nth(2).expect("an id")).collect();
        assert_eq!(ids.len(), 2, "{got:?}");
        assert_eq!(ids[0], ids[1]);
        let exact = format!("[36,{},", subscription("strict"));
        assert_eq!(got.iter().filter(|message| message.starts_with(&exact)).count(), 1);
        pair.end();
    }
}
