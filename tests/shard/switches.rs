//! What realms and roles switch off, and the bounds of their sessions: each history with the peers on one shard, on two, and
//! on two nodes. Sections are those of the specification's advanced profile.

mod chaos;

use super::clients::World;
use super::places::{PLACES, Place, REALMS, everywhere};
use super::rig::{self, Rig};
use common::features::{FEATURES, Feature, FeatureSet};
use common::ids::SnapshotVersion;
use common::rules::{ANONYMOUS, BOUNDS, Bound, Bounds, RoleRules, Rules};
use common::snapshot::Delta;
use dataplane::feed::FeedDown;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Announces everything.
fn able() -> Value {
    let on = |names: &[&str]| json!({"features": names.iter().map(|name| (*name, true)).collect::<std::collections::BTreeMap<_, _>>()});
    let shared = ["payload_passthru_mode", "progressive_call_invocations", "progressive_call_results"];
    let callee =
        [&shared[..], &["call_canceling", "call_timeout", "call_reroute", "registration_revocation"]]
            .concat();
    json!({
        "caller": on(&shared), "callee": on(&callee), "publisher": on(&shared[..1]),
        "subscriber": on(&["payload_passthru_mode", "subscription_revocation", "publication_trustlevels"]),
    })
}

pub fn off(features: &[Feature]) -> FeatureSet {
    features.iter().fold(FeatureSet::EMPTY, |all, feature| all.with(*feature))
}

/// A realm that says what its sessions without credentials may do, and what all may.
fn rules(realm: FeatureSet, bounds: Bounds, anonymous: FeatureSet, narrower: Bounds) -> Rules {
    let role = RoleRules { name: ANONYMOUS.into(), off: Some(anonymous), bounds: narrower };
    Rules::new(realm, bounds, vec![role]).expect("one role")
}

/// Rules of the realm, and the same as those of the role: both ways are to be the same for a session.
pub fn both(features: FeatureSet, bounds: Bounds) -> [Rules; 2] {
    let (none, open) = (FeatureSet::EMPTY, Bounds::NONE);
    [rules(features, bounds, none, open), rules(none, open, features, bounds)]
}

/// Puts rules in force for the realm, as the change of this number.
fn put(world: &mut World, change: u64, rules: &Rules) {
    let realm = world.realm.clone();
    put_on(&mut world.rig, &realm, change, rules);
}

pub fn put_on(rig: &mut Rig, realm: &str, change: u64, rules: &Rules) {
    let realm = common::snapshot::Realm { rules: rules.pack(), ..rig::realm(realm) };
    rig.feed(&FeedDown::Delta(std::sync::Arc::new(Delta {
        version: SnapshotVersion(change + 1),
        follows: SnapshotVersion(change),
        realms_put: vec![realm],
        realms_removed: vec![],
    })));
}

/// Two sessions that join where these rules hold, the second one a callee and a subscriber.
fn ruled(place: &Place, realm: &str, rules: &Rules) -> (World, usize, usize) {
    let mut world = World::new(place, realm);
    put(&mut world, 1, rules);
    let (one, two) = (world.join_as(false, &able()), world.join_as(true, &able()));
    world.register(two, "com.example.p", json!({}));
    world.subscribe(two, "com.example.t", "exact");
    (world, one, two)
}

/// The URI of the ERROR that answers a request.
fn refused(world: &mut World, who: usize, message: Value) -> String {
    let kind = message[0].clone();
    world.asks(who, message);
    let heard = world.hears(who);
    assert_eq!(heard.len(), 1, "{heard:?}");
    assert_eq!((&heard[0][0], &heard[0][1]), (&json!(8), &kind), "{heard:?}");
    heard[0][4].as_str().expect("a URI").to_owned()
}

/// A call and an event reach the second session, whatever is off.
fn works(world: &mut World, one: usize, two: usize) {
    world.asks(one, json!([48, null, {}, "com.example.p", ["x"]]));
    let heard = world.hears(two);
    assert_eq!((heard.len(), &heard[0][0]), (1, &json!(68)), "{heard:?}");
    world.says(two, &json!([70, heard[0][1], {}, ["y"]]));
    let heard = world.hears(one);
    assert_eq!((heard.len(), &heard[0][3]), (1, &json!(["y"])), "{heard:?}");
    world.asks(one, json!([16, null, {"acknowledge": true}, "com.example.t", ["z"]]));
    assert_eq!(world.hears(one)[0][0], 17);
    assert_eq!(world.hears(two)[0][4], json!(["z"]));
}

const UNSUPPORTED: &str = "wamp.error.feature_not_supported";
const DISCLOSE: &str = "wamp.error.option_disallowed.disclose_me";
const CLOSED: &str = "wamp.error.not_authorized";

/// A request that uses each feature, and how it is answered where that is off.
fn uses() -> Vec<(Feature, Value, &'static str)> {
    let call = |options: Value| json!([48, null, options, "com.example.p"]);
    let publish =
        |key: &str, value: Value| json!([16, null, {"acknowledge": true, key: value}, "com.example.t"]);
    let subscribe = |key: &str, value: Value| json!([32, null, {key: value}, "com.example"]);
    let register = |key: &str, value: Value| json!([64, null, {key: value}, "com.example.q"]);
    let ask = |procedure: &str, args: Value| json!([48, null, {}, procedure, args]);
    let listen = |topic: &str| json!([32, null, {}, topic]);
    let passthru = json!({"ppt_scheme": "mqtt", "ppt_serializer": "native", "acknowledge": true});
    vec![
        (Feature::CallTimeout, call(json!({"timeout": 1_000})), UNSUPPORTED),
        (Feature::CallTimeout, register("forward_timeout", json!(true)), UNSUPPORTED),
        (Feature::CallerIdentification, call(json!({"disclose_me": true})), DISCLOSE),
        (Feature::CallerIdentification, register("disclose_caller", json!(true)), DISCLOSE),
        (Feature::EventHistory, ask("wamp.subscription.get_events", json!([1])), CLOSED),
        (Feature::EventRetention, publish("retain", json!(true)), UNSUPPORTED),
        (Feature::EventRetention, subscribe("get_retained", json!(true)), UNSUPPORTED),
        (Feature::PatternBasedRegistration, register("match", json!("prefix")), UNSUPPORTED),
        (Feature::PatternBasedSubscription, subscribe("match", json!("wildcard")), UNSUPPORTED),
        (Feature::PayloadPassthruMode, call(passthru.clone()), UNSUPPORTED),
        (Feature::PayloadPassthruMode, json!([16, null, passthru, "com.example.t"]), UNSUPPORTED),
        (Feature::ProgressiveCallInvocations, call(json!({"progress": true})), UNSUPPORTED),
        (Feature::ProgressiveCallResults, call(json!({"receive_progress": true})), UNSUPPORTED),
        (Feature::PublisherExclusion, publish("exclude_me", json!(false)), UNSUPPORTED),
        (Feature::PublisherIdentification, publish("disclose_me", json!(true)), DISCLOSE),
        (Feature::ShardedRegistration, call(json!({"runmode": "partition", "rkey": "k"})), UNSUPPORTED),
        (Feature::ShardedSubscription, publish("rkey", json!("sn1")), UNSUPPORTED),
        (Feature::ShardedSubscription, subscribe("nkey", json!("node1")), UNSUPPORTED),
        (Feature::SharedRegistration, register("invoke", json!("roundrobin")), UNSUPPORTED),
        (Feature::SubscriberBlackwhiteListing, publish("exclude_authrole", json!(["x"])), UNSUPPORTED),
        (Feature::SessionMetaApi, ask("wamp.session.count", json!([])), CLOSED),
        (Feature::SessionMetaApi, listen("wamp.session.on_join"), CLOSED),
        (Feature::RegistrationMetaApi, ask("wamp.registration.list", json!([])), CLOSED),
        (Feature::RegistrationMetaApi, listen("wamp.registration.on_create"), CLOSED),
        (Feature::SubscriptionMetaApi, ask("wamp.subscription.list", json!([])), CLOSED),
        (Feature::SubscriptionMetaApi, listen("wamp.subscription.on_subscribe"), CLOSED),
        (Feature::TestamentMetaApi, ask("wamp.session.add_testament", json!(["com.x", [], {}])), CLOSED),
        (Feature::MetaApiControl, ask("wamp.session.kill", json!([1])), CLOSED),
        (Feature::MetaApiControl, ask("wamp.session.kill_by_authid", json!(["x"])), CLOSED),
        (Feature::MetaApiControl, ask("wamp.session.kill_by_authrole", json!(["anonymous"])), CLOSED),
        (Feature::MetaApiControl, ask("wamp.session.kill_all", json!([])), CLOSED),
        (Feature::MetaApiControl, ask("wamp.session.modify_details", json!([1, {"x": 1}])), CLOSED),
        (Feature::MetaApiControl, ask("wamp.registration.remove_callee", json!([1, 2])), CLOSED),
        (Feature::MetaApiControl, ask("wamp.subscription.remove_subscriber", json!([1, 2])), CLOSED),
    ]
}

/// What no request asks for: it is what the router does with a receiver, or with a session. Their tests follow; that of resumption
/// is with the others of it.
const OF_RECEIVERS: [Feature; 7] = [
    Feature::CallCanceling,
    Feature::CallReroute,
    Feature::CallTrustlevels,
    Feature::PublicationTrustlevels,
    Feature::RegistrationRevocation,
    Feature::SubscriptionRevocation,
    Feature::SessionResumption,
];

#[test]
fn what_is_off_is_answered_with_an_error_and_reaches_nobody() {
    let asked: BTreeSet<u64> = uses().iter().map(|(feature, ..)| FeatureSet::of(*feature).0).collect();
    let others = OF_RECEIVERS.map(|feature| FeatureSet::of(feature).0);
    assert_eq!(asked.len() + others.len(), FEATURES.len(), "every feature is in one of the lists");
    everywhere(|place, realm| {
        for (feature, message, error) in uses() {
            for rules in both(off(&[feature]), Bounds::NONE) {
                let (mut world, one, two) = ruled(place, realm, &rules);
                assert_eq!(refused(&mut world, one, message.clone()), error, "{message}");
                assert!(world.hears(two).is_empty(), "{message}");
                works(&mut world, one, two);
                world.end();
            }
        }
    });
}

#[test]
fn what_is_off_is_not_announced_and_everything_else_is() {
    let announced = |rules: &Rules| -> BTreeSet<String> {
        let mut world = World::new(&PLACES[0], "realm1");
        put(&mut world, 1, rules);
        let hello = json!([1, "realm1", {"roles": able()}]).to_string();
        let at = super::connect(&mut world.rig, 0, &[&hello]);
        world.rig.run();
        let welcome: Value = serde_json::from_str(&super::messages(&mut world.rig, at)[0]).expect("JSON");
        world.end();
        let roles = welcome[2]["roles"].as_object().expect("roles");
        assert_eq!(roles.len(), 2, "a broker and a dealer, whatever is off");
        let features = roles.values().filter_map(|role| role["features"].as_object());
        features.flat_map(|features| features.keys().cloned()).collect()
    };
    let all = announced(&both(FeatureSet::EMPTY, Bounds::NONE)[0]);
    // As the specification's text spells it, besides.
    let sharded = "shareded_subscriptions".to_owned();
    let mut names: BTreeSet<String> = FEATURES.iter().map(|(_, name)| (*name).to_owned()).collect();
    names.insert(sharded.clone());
    let unannounced =
        [Feature::MetaApiControl, Feature::SessionResumption].map(|feature| feature.name().to_owned());
    assert_eq!(&all | &BTreeSet::from(unannounced), names, "what is announced can be switched off");
    for (feature, name) in FEATURES {
        for rules in both(off(&[feature]), Bounds::NONE) {
            let mut expected = all.clone();
            expected.remove(name);
            if feature == Feature::ShardedSubscription {
                expected.remove(&sharded);
            }
            assert_eq!(announced(&rules), expected);
        }
    }
}

/// "Testament": what a session may not publish itself nobody publishes for it.
#[test]
fn a_testament_is_no_way_around_the_rules() {
    let long = "com.example.too.long";
    let bounds = Bounds::NONE.with(Bound::Uri, long.len() as u32 - 1);
    everywhere(|place, realm| {
        for rules in both(off(&[Feature::EventRetention, Feature::PublisherIdentification]), bounds) {
            let mut world = World::new(place, realm);
            let (one, two) = (world.join(false), world.join(true));
            put(&mut world, 1, &rules);
            world.subscribe(two, "com.example.t", "exact");
            let mut add = |topic: &str, options: Value| {
                let given = json!([topic, ["end"], {}]);
                world.call(one, ADD, given, json!({"publish_options": options}))
            };
            assert_eq!(add("com.example.t", json!({"retain": true})), UNSUPPORTED);
            assert_eq!(add("com.example.t", json!({"disclose_me": true})), DISCLOSE);
            assert_eq!(add(long, json!({})), "wamp.error.invalid_uri");
            assert_eq!(add("com.example.t", json!({})), json!([]));
            world.close(one);
            assert_eq!(world.hears(two).iter().filter(|message| message[4] == json!(["end"])).count(), 1);
            world.end();
        }
    });
}

const ADD: &str = "wamp.session.add_testament";

#[test]
fn a_plain_publication_that_is_refused_is_dropped_without_a_word() {
    everywhere(|place, realm| {
        let (mut world, one, two) =
            ruled(place, realm, &both(off(&[Feature::EventRetention]), Bounds::NONE)[0]);
        world.asks(one, json!([16, null, {"retain": true}, "com.example.t"]));
        assert!(world.hears(one).is_empty() && world.hears(two).is_empty());
        works(&mut world, one, two);
        world.end();
    });
}

#[test]
fn where_cancelling_is_off_a_call_goes_on() {
    everywhere(|place, realm| {
        let (mut world, one, two) =
            ruled(place, realm, &both(off(&[Feature::CallCanceling]), Bounds::NONE)[1]);
        world.asks(one, json!([48, null, {}, "com.example.p"]));
        let invocation = world.hears(two)[0][1].clone();
        world.says(one, &json!([49, 1, {"mode": "kill"}]));
        let heard = world.hears(one);
        if realm == "strict" {
            assert_eq!((&heard[0][0], &heard[0][2]), (&json!(3), &json!("wamp.error.protocol_violation")));
        } else {
            assert!(heard.is_empty());
            world.says(two, &json!([70, invocation, {}, [1]]));
            assert_eq!(world.hears(one), [json!([50, 1, {}, [1]])]);
        }
        // The callee may not be told of anything.
        assert!(world.hears(two).is_empty());
        world.end();
    });
}

/// "Call Re-Routing", "Progressive Call Results", "Payload Passthru Mode": what a callee may not do is not asked of it.
#[test]
fn a_callee_is_not_asked_for_what_its_role_may_not_do() {
    everywhere(|place, realm| {
        // Both sessions have the same role, so what the caller may not ask for is left to the receivers' test.
        let (mut world, one, two) = ruled(place, realm, &both(off(&[Feature::CallReroute]), Bounds::NONE)[1]);
        world.asks(one, json!([48, null, {}, "com.example.p"]));
        let invocation = world.hears(two)[0][1].clone();
        world.says(two, &json!([8, 68, invocation, {}, "wamp.error.unavailable"]));
        assert_eq!(world.hears(one)[0][4], "wamp.error.unavailable", "the error is the callee's");
        world.end();
        // Rules that come into force later: the callee joined and was called when all was on.
        let mut world = World::new(place, realm);
        let (one, two) = (world.join_as(false, &able()), world.join_as(true, &able()));
        world.register(two, "com.example.p", json!({}));
        let rules = both(off(&[Feature::PayloadPassthruMode]), Bounds::NONE);
        world.asks(one, json!([48, null, {}, "com.example.p"]));
        let invocation = world.hears(two)[0][1].clone();
        put(&mut world, 1, &rules[1]);
        world.says(two, &json!([70, invocation, {"ppt_scheme": "mqtt"}, [1]]));
        assert_eq!(world.hears(one)[0][4], UNSUPPORTED, "the answer may not be given");
        assert!(world.hears(two).is_empty());
        world.end();
    });
}

/// "Registration Revocation", "Subscription Revocation", "Publication Trust Levels": off, nobody is told.
#[test]
fn a_receiver_is_not_told_what_its_role_may_not_know() {
    let features =
        [Feature::RegistrationRevocation, Feature::SubscriptionRevocation, Feature::PublicationTrustlevels];
    everywhere(|place, realm| {
        let (mut world, one, two) = ruled(place, realm, &both(off(&features), Bounds::NONE)[1]);
        world.asks(one, json!([16, null, {}, "com.example.t"]));
        assert_eq!(world.hears(two)[0][3], json!({}), "no trust level");
        let session = world.ids[two];
        let registration = world.ask(one, "wamp.registration.lookup", json!(["com.example.p"]))[0].clone();
        let subscription = world.ask(one, "wamp.subscription.lookup", json!(["com.example.t"]))[0].clone();
        let removed = world.ask(one, "wamp.registration.remove_callee", json!([registration, session]));
        assert_eq!(removed, json!([]));
        let removed = world.ask(one, "wamp.subscription.remove_subscriber", json!([subscription, session]));
        assert_eq!(removed, json!([]));
        assert!(world.hears(two).is_empty());
        world.end();
    });
}

#[test]
fn events_of_an_api_that_is_off_reach_nobody_who_may_not_use_it() {
    everywhere(|place, realm| {
        for rules in both(off(&[Feature::SessionMetaApi]), Bounds::NONE) {
            let mut world = World::new(place, realm);
            let watcher = world.join(true);
            world.subscribe(watcher, "wamp.session.on_join", "exact");
            world.subscribe(watcher, "wamp.", "prefix");
            world.hears(watcher);
            world.join(false);
            assert_eq!(world.events(watcher).len(), 2);
            put(&mut world, 1, &rules);
            let other = world.join(false);
            assert!(world.events(watcher).is_empty());
            // A pattern that reaches further is no question about the API; the events of others come.
            world.subscribe(watcher, "wamp.subscription.", "prefix");
            world.hears(watcher);
            world.subscribe(other, "com.example.t", "exact");
            assert!(!world.events(watcher).is_empty());
            // For another role it would be on: what is left out follows from the role.
            let others = Rules::new(
                FeatureSet::EMPTY,
                Bounds::NONE,
                vec![RoleRules {
                    name: "other".into(),
                    off: Some(off(&[Feature::SessionMetaApi])),
                    bounds: Bounds::NONE,
                }],
            );
            put(&mut world, 2, &others.expect("one role"));
            world.join(false);
            assert_eq!(world.events(watcher).len(), 2);
            world.end();
        }
    });
}

#[test]
fn a_change_of_rules_counts_from_the_next_message_on() {
    everywhere(|place, realm| {
        let mut world = World::new(place, realm);
        let (one, two) = (world.join_as(false, &able()), world.join_as(true, &able()));
        world.register(two, "com.example.p", json!({}));
        world.subscribe(two, "com.example.t", "exact");
        works(&mut world, one, two);
        // A call in parts that is open goes on.
        world.asks(one, json!([48, null, {"progress": true}, "com.example.p", [1]]));
        let request = world.last_request[one];
        world.hears(two);
        put(&mut world, 1, &both(off(&[Feature::ProgressiveCallInvocations]), Bounds::NONE)[0]);
        world.says(one, &json!([48, request, {}, "com.example.p", [2]]));
        let heard = world.hears(two);
        assert_eq!((heard.len(), &heard[0][4]), (1, &json!([2])), "{heard:?}");
        world.says(two, &json!([70, heard[0][1], {}, [3]]));
        assert_eq!(world.hears(one), [json!([50, request, {}, [3]])]);
        // Another one does not begin, and its other parts are dropped.
        let begun = json!([48, null, {"progress": true}, "com.example.p", [1]]);
        assert_eq!(refused(&mut world, one, begun), UNSUPPORTED);
        let request = world.last_request[one];
        world.says(one, &json!([48, request, {}, "com.example.p", [2]]));
        assert!(world.hears(one).is_empty() && world.hears(two).is_empty());
        // Nothing is off any more.
        put(&mut world, 2, &Rules::default());
        works(&mut world, one, two);
        world.asks(one, json!([48, null, {"progress": true}, "com.example.p"]));
        assert_eq!(world.hears(two)[0][0], 68);
        world.end();
    });
}

#[test]
fn strangers_may_not_end_each_others_sessions_unless_the_realm_says_so() {
    for realm in REALMS {
        let mut world = World::new(&PLACES[1], realm);
        let (one, two) = (world.join(false), world.join(true));
        let mut change = 1;
        let mut kill = |world: &mut World, rules: &Rules| {
            put(world, change, rules);
            change += 1;
            world.ask(one, "wamp.session.kill", json!([world.ids[two]]))
        };
        assert_eq!(kill(&mut world, &Rules::default()), CLOSED, "the rig's realms let anybody in");
        assert_eq!(world.ask(one, "wamp.session.count", json!([])), json!([2]), "looking is no harm");
        let said = rules(FeatureSet::EMPTY, Bounds::NONE, FeatureSet::EMPTY, Bounds::NONE);
        assert_eq!(kill(&mut world, &said), json!([]));
        world.end();
    }
}

/// Each bound is that of the realm or of the role, whichever is narrower.
fn bounded(bound: Bound, max: u32) -> Vec<Rules> {
    let narrow = Bounds::NONE.with(bound, max);
    let wide = Bounds::NONE.with(bound, max + 100);
    let none = FeatureSet::EMPTY;
    vec![
        rules(none, narrow, none, Bounds::NONE),
        rules(none, Bounds::NONE, none, narrow),
        rules(none, narrow, none, wide),
        rules(none, wide, none, narrow),
    ]
}

#[test]
fn a_session_holds_no_more_than_its_realm_and_role_allow() {
    everywhere(|place, realm| {
        for rules in bounded(Bound::Subscriptions, 2) {
            let (mut world, _, two) = ruled(place, realm, &rules);
            world.subscribe(two, "com.example.u", "exact");
            let third = json!([32, null, {}, "com.example.v"]);
            assert_eq!(refused(&mut world, two, third), "wamp.error.unavailable");
            world.end();
        }
        for rules in bounded(Bound::Registrations, 2) {
            let (mut world, _, two) = ruled(place, realm, &rules);
            world.register(two, "com.example.q", json!({}));
            let third = json!([64, null, {}, "com.example.r"]);
            assert_eq!(refused(&mut world, two, third), "wamp.error.unavailable");
            world.end();
        }
        for bound in [Bound::CallsPending, Bound::InvocationsPending] {
            for rules in bounded(bound, 1) {
                let (mut world, one, two) = ruled(place, realm, &rules);
                world.asks(one, json!([48, null, {}, "com.example.p"]));
                let invocation = world.hears(two)[0][1].clone();
                let second = json!([48, null, {}, "com.example.p"]);
                assert_eq!(refused(&mut world, one, second), "wamp.error.unavailable");
                world.says(two, &json!([70, invocation, {}]));
                assert_eq!(world.hears(one)[0][0], 50);
                works(&mut world, one, two);
                world.end();
            }
        }
    });
}

/// "Progressive Call Invocations": what follows of a call that did not begin is no call.
#[test]
fn the_parts_of_a_call_that_was_refused_are_dropped() {
    everywhere(|place, realm| {
        let (mut world, one, two) = ruled(place, realm, &bounded(Bound::CallsPending, 1)[0]);
        world.asks(one, json!([48, null, {}, "com.example.p"]));
        let invocation = world.hears(two)[0][1].clone();
        let begun = json!([48, null, {"progress": true}, "com.example.p", [1]]);
        assert_eq!(refused(&mut world, one, begun), "wamp.error.unavailable");
        let request = world.last_request[one];
        world.says(two, &json!([70, invocation, {}]));
        world.hears(one);
        // There is room for a call now.
        for options in [json!({"progress": true}), json!({})] {
            world.says(one, &json!([48, request, options, "com.example.p", [2]]));
            assert!(world.hears(one).is_empty() && world.hears(two).is_empty());
        }
        works(&mut world, one, two);
        world.end();
    });
}

#[test]
fn a_uri_is_as_long_as_it_may_be_and_no_longer() {
    let most = "com.example.t".len();
    let long = "com.example.tt";
    everywhere(|place, realm| {
        for rules in bounded(Bound::Uri, most as u32) {
            let (mut world, one, two) = ruled(place, realm, &rules);
            for message in [
                json!([32, null, {}, long]),
                json!([64, null, {}, long]),
                json!([48, null, {}, long]),
                json!([16, null, {"acknowledge": true}, long]),
            ] {
                assert_eq!(refused(&mut world, one, message), "wamp.error.invalid_uri");
            }
            works(&mut world, one, two);
            world.end();
        }
    });
}

#[test]
fn a_payload_is_as_long_as_it_may_be_and_no_longer() {
    const EXCEEDED: &str = "wamp.error.payload_size_exceeded";
    // As JSON, with its brackets and quotes.
    let (fits, long) = (json!(["x".repeat(60)]), json!(["x".repeat(61)]));
    everywhere(|place, realm| {
        for rules in bounded(Bound::Payload, 64) {
            let (mut world, one, two) = ruled(place, realm, &rules);
            let call = |payload: &Value| json!([48, null, {}, "com.example.p", payload]);
            assert_eq!(refused(&mut world, one, call(&long)), EXCEEDED);
            let publish =
                |payload: &Value| json!([16, null, {"acknowledge": true}, "com.example.t", payload]);
            assert_eq!(refused(&mut world, one, publish(&long)), EXCEEDED);
            let named = json!([48, null, {}, "com.example.p", [], {"name": "x".repeat(60)}]);
            assert_eq!(refused(&mut world, one, named), EXCEEDED);
            assert!(world.hears(two).is_empty());
            world.asks(one, publish(&fits));
            assert_eq!((&world.hears(one)[0][0], world.hears(two).len()), (&json!(17), 1));
            // What a callee says is bounded as well: its call ends with an error, and nothing is left open.
            for answer in [json!([70, null, {}, long]), json!([8, 68, null, {}, "com.example.e", long])] {
                world.asks(one, call(&fits));
                let invocation = world.hears(two)[0][1].clone();
                let mut answer = answer.clone();
                let at = if answer[0] == 70 { 1 } else { 2 };
                answer[at] = invocation;
                world.says(two, &answer);
                assert_eq!(world.hears(one)[0][4], EXCEEDED);
                assert!(world.hears(two).is_empty());
            }
            works(&mut world, one, two);
            world.end();
        }
    });
}

#[test]
fn too_long_a_part_ends_the_call_it_belongs_to() {
    everywhere(|place, realm| {
        let (mut world, one, two) = ruled(place, realm, &bounded(Bound::Payload, 8)[0]);
        world.asks(one, json!([48, null, {"progress": true}, "com.example.p", [1]]));
        let request = world.last_request[one];
        world.hears(two);
        world.says(one, &json!([48, request, {"progress": true}, "com.example.p", ["too long a part"]]));
        let heard = world.hears(one);
        assert_eq!(
            (&heard[0][2], &heard[0][4]),
            (&json!(request), &json!("wamp.error.payload_size_exceeded"))
        );
        assert_eq!(world.hears(two)[0][0], 69, "the callee is told");
        world.says(one, &json!([48, request, {}, "com.example.p", [2]]));
        assert!(world.hears(one).is_empty() && world.hears(two).is_empty());
        world.end();
    });
}

#[test]
fn nothing_is_wider_than_the_node() {
    for (bound, name) in BOUNDS {
        let node = Bounds::of(&common::config::Config::default().limits);
        let wide =
            rules(FeatureSet::EMPTY, Bounds::NONE, FeatureSet::EMPTY, Bounds::NONE.with(bound, u32::MAX - 1));
        let held = wide.of_role(ANONYMOUS, common::snapshot::Anonymous::Loopback, &node).bounds;
        assert_eq!(held.get(bound), node.get(bound), "{name}");
    }
}

#[test]
fn trust_is_told_no_more_from_the_next_message_on_after_it_was_switched_off() {
    everywhere(|place, realm| {
        let open = Rules::new(FeatureSet::EMPTY, Bounds::NONE, vec![]).expect("no role");
        let (mut world, one, two) = ruled(place, realm, &open);
        let told = |world: &mut World| {
            world.asks(one, json!([16, null, {}, "com.example.t", ["x"]]));
            let heard = world.hears(two);
            assert_eq!(heard.len(), 1, "{heard:?}");
            heard[0][3].get("trustlevel").cloned()
        };
        assert_eq!(told(&mut world), Some(json!(0)));
        let [rules, _] = both(off(&[Feature::PublicationTrustlevels]), Bounds::NONE);
        put(&mut world, 2, &rules);
        world.subscribe(two, "com.example.other", "exact");
        assert_eq!(told(&mut world), None);
        world.end();
    });
}
