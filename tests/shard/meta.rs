//! The meta API (WAMP, advanced profile): procedures and events of sessions, registrations and subscriptions, testaments. Each
//! history with the peers on one shard, on two, and on two nodes.

use super::clients::World;
use super::frames;
use super::places::everywhere;
use common::ids::{Match, RealmId, RouteKind, SnapshotVersion, route_id};
use common::snapshot::Delta;
use dataplane::feed::FeedDown;
use serde_json::{Value, json};
use std::time::Duration;

fn sorted(mut list: Vec<u64>) -> Value {
    list.sort_unstable();
    json!(list)
}

#[test]
fn sessions_are_counted_listed_and_described() {
    everywhere(|place, realm| {
        let mut world = World::new(place, realm);
        let (one, two) = (world.join(false), world.join(true));
        let (first, second) = (world.ids[one], world.ids[two]);
        assert_eq!(world.ask(one, "wamp.session.count", json!([])), json!([2]));
        assert_eq!(world.ask(one, "wamp.session.count", json!([["anonymous", "x"]])), json!([2]));
        assert_eq!(world.ask(one, "wamp.session.count", json!([["x"]])), json!([0]));
        assert_eq!(world.ask(one, "wamp.session.list", json!([])), json!([sorted(vec![first, second])]));
        assert_eq!(world.ask(two, "wamp.session.list", json!([["x"]])), json!([[]]));
        for asked in [first, second] {
            let details = world.ask(one, "wamp.session.get", json!([asked]));
            let authid = format!("{asked:x}");
            let expected = json!([{
                "session": asked, "authid": authid, "authrole": "anonymous", "authmethod": "anonymous",
                "authprovider": "static", "transport": {
                    "type": "rawsocket", "serializer": "json", "peer": "127.0.0.1",
                },
            }]);
            assert_eq!(details, expected);
        }
        assert_eq!(world.ask(one, "wamp.session.get", json!([1])), "wamp.error.no_such_session");
        assert_eq!(world.ask(one, "wamp.session.get", json!([])), "wamp.error.invalid_argument");
        assert_eq!(world.ask(one, "wamp.session.nothing", json!([])), "wamp.error.no_such_procedure");
        let (of, page) = (json!([]), json!({"limit": 1}));
        world.asks(one, json!([48, null, {}, "wamp.session.list", of, page]));
        let smaller = first.min(second);
        assert_eq!(world.hears(one)[0][3], json!([[smaller]]));
        let rest = world.call(one, "wamp.session.list", json!([]), json!({"after": smaller}));
        assert_eq!(rest, json!([[first.max(second)]]));
        world.end();
    });
}

#[test]
fn a_cut_list_says_that_there_is_more() {
    everywhere(|place, realm| {
        let mut world = World::new(place, realm);
        let one = world.join(false);
        world.join(true);
        world.asks(one, json!([48, null, {}, "wamp.session.list", [], {"limit": 1}]));
        let got = world.hears(one);
        assert_eq!(got[0][4], json!({"more": true}), "{got:?}");
        world.end();
    });
}

#[test]
fn details_of_a_session_can_be_added_but_not_who_it_is() {
    everywhere(|place, realm| {
        let mut world = World::new(place, realm);
        let (one, two) = (world.join(false), world.join(true));
        let second = world.ids[two];
        let modify = "wamp.session.modify_details";
        assert_eq!(world.ask(one, modify, json!([second, {"x": 1, "y": "z"}])), json!([]));
        assert_eq!(world.ask(one, modify, json!([second, {"y": null}])), json!([]));
        let details = world.ask(one, "wamp.session.get", json!([second]));
        assert_eq!((&details[0]["x"], details[0].get("y")), (&json!(1), None));
        assert_eq!(world.ask(one, modify, json!([second, {"authid": "x"}])), "wamp.error.invalid_argument");
        assert_eq!(world.ask(one, modify, json!([5, {"x": 1}])), "wamp.error.no_such_session");
        let long = "x".repeat(10_000);
        assert_eq!(world.ask(one, modify, json!([second, {"x": long}])), "wamp.error.invalid_argument");
        world.end();
    });
}

#[test]
fn a_killed_session_is_told_why() {
    everywhere(|place, realm| {
        let mut world = World::new(place, realm);
        let (one, two, three) = (world.join(false), world.join(true), world.join(true));
        let (first, second) = (world.ids[one], world.ids[two]);
        let kill = "wamp.session.kill";
        assert_eq!(world.ask(one, kill, json!([first])), "wamp.error.no_such_session", "its own");
        assert_eq!(world.ask(one, kill, json!([7])), "wamp.error.no_such_session");
        let bad = world.call(one, kill, json!([second]), json!({"reason": "no uri"}));
        assert_eq!(bad, "wamp.error.invalid_uri");
        let kwargs = json!({"reason": "com.example.out", "message": "begone"});
        assert_eq!(world.call(one, kill, json!([second]), kwargs), json!([]));
        assert_eq!(world.hears(two), [json!([6, {"message": "begone"}, "com.example.out"])]);
        assert_eq!(world.ask(one, "wamp.session.count", json!([])), json!([2]));
        world.says(two, &json!([6, {}, "wamp.close.goodbye_and_out"]));
        assert_eq!(world.ask(one, kill, json!([world.ids[three]])), json!([]));
        assert_eq!(world.hears(three), [json!([6, {}, "wamp.close.killed"])]);
        // Who does not answer is closed.
        world.rig.pass(Duration::from_secs(3));
        world.rig.pass(Duration::from_secs(3));
        world.rig.run();
        world.rig.pass(Duration::from_secs(3));
        assert!(!world.rig.links[world.links[three]].open);
        world.end();
    });
}

#[test]
fn sessions_are_killed_by_who_they_are() {
    everywhere(|place, realm| {
        let mut world = World::new(place, realm);
        let (one, two) = (world.join(false), world.join(true));
        let (third, second) = (world.join(false), world.ids[two]);
        let authid = format!("{second:x}");
        assert_eq!(world.ask(one, "wamp.session.kill_by_authid", json!([authid])), json!([[second]]));
        assert_eq!(world.hears(two), [json!([6, {}, "wamp.close.killed"])]);
        assert_eq!(world.ask(one, "wamp.session.kill_by_authid", json!([authid])), json!([[]]));
        assert_eq!(world.ask(one, "wamp.session.kill_by_authrole", json!(["x"])), json!([0]));
        assert_eq!(world.ask(one, "wamp.session.kill_by_authrole", json!(["anonymous"])), json!([1]));
        assert_eq!(world.hears(third), [json!([6, {}, "wamp.close.killed"])]);
        let four = world.join(true);
        assert_eq!(world.ask(one, "wamp.session.kill_all", json!([])), json!([1]));
        assert_eq!(world.hears(four), [json!([6, {}, "wamp.close.killed"])]);
        assert_eq!(world.ask(one, "wamp.session.count", json!([])), json!([1]));
        world.end();
    });
}

#[test]
fn registrations_are_found_and_described() {
    everywhere(|place, realm| {
        let mut world = World::new(place, realm);
        let (one, two) = (world.join(false), world.join(true));
        let exact = world.register(two, "a.b.c", json!({}));
        let prefix = world.register(two, "a.", json!({"match": "prefix"}));
        let wildcard = world.register(one, "a..c", json!({"match": "wildcard"}));
        let all = json!([{"exact": [exact], "prefix": [prefix], "wildcard": [wildcard]}]);
        assert_eq!(world.ask(one, "wamp.registration.list", json!([])), all);
        let lookup = "wamp.registration.lookup";
        assert_eq!(world.ask(one, lookup, json!(["a.b.c"])), json!([exact]));
        assert_eq!(world.ask(one, lookup, json!(["a.", {"match": "prefix"}])), json!([prefix]));
        assert_eq!(world.ask(one, lookup, json!(["a.x"])), json!([null]));
        for (uri, best) in [("a.b.c", json!(exact)), ("a.x.c", json!(prefix)), ("b", json!(null))] {
            assert_eq!(world.ask(one, "wamp.registration.match", json!([uri])), json!([best]), "{uri}");
        }
        let details = world.ask(one, "wamp.registration.get", json!([prefix]));
        let created = details[0]["created"].as_str().expect("a time");
        assert!(created.starts_with("1970-01-01T") && created.ends_with('Z'), "{created}");
        let expected =
            json!({"id": prefix, "created": created, "uri": "a.", "match": "prefix", "invoke": "single"});
        assert_eq!(details[0], expected);
        assert_eq!(world.ask(one, "wamp.registration.get", json!([7])), "wamp.error.no_such_registration");
        let callees = "wamp.registration.list_callees";
        assert_eq!(world.ask(one, callees, json!([exact])), json!([[world.ids[two]]]));
        assert_eq!(world.ask(one, callees, json!([7])), "wamp.error.no_such_registration");
        assert_eq!(world.ask(one, "wamp.registration.count_callees", json!([wildcard])), json!([1]));
        let remove = "wamp.registration.remove_callee";
        assert_eq!(world.ask(one, remove, json!([exact, world.ids[one]])), "wamp.error.no_such_session");
        assert_eq!(world.ask(one, remove, json!([7, world.ids[two]])), "wamp.error.no_such_registration");
        let kwargs = json!({"reason": "com.example.over"});
        assert_eq!(world.call(one, remove, json!([exact, world.ids[two]]), kwargs), json!([]));
        let told = json!([67, 0, {"registration": exact, "reason": "com.example.over"}]);
        assert_eq!(world.hears(two), [told]);
        assert_eq!(world.ask(one, lookup, json!(["a.b.c"])), json!([null]));
        world.end();
    });
}

#[test]
fn subscriptions_are_found_and_described() {
    everywhere(|place, realm| {
        let mut world = World::new(place, realm);
        let (one, two) = (world.join(false), world.join(true));
        let exact = world.subscribe(two, "a.b.c", "exact");
        assert_eq!(world.subscribe(one, "a.b.c", "exact"), exact);
        let prefix = world.subscribe(two, "a.", "prefix");
        let wildcard = world.subscribe(one, "a..c", "wildcard");
        let all = json!([{"exact": [exact], "prefix": [prefix], "wildcard": [wildcard]}]);
        assert_eq!(world.ask(one, "wamp.subscription.list", json!([])), all);
        let lookup = "wamp.subscription.lookup";
        assert_eq!(world.ask(one, lookup, json!(["a..c", {"match": "wildcard"}])), json!([wildcard]));
        assert_eq!(world.ask(one, lookup, json!(["x"])), json!([null]));
        let found = "wamp.subscription.match";
        assert_eq!(world.ask(one, found, json!(["a.b.c"])), json!([sorted(vec![exact, prefix, wildcard])]));
        assert_eq!(world.ask(one, found, json!(["x"])), json!([null]));
        let details = world.ask(one, "wamp.subscription.get", json!([exact]));
        let created = &details[0]["created"];
        assert_eq!(details[0], json!({"id": exact, "created": created, "uri": "a.b.c", "match": "exact"}));
        assert_eq!(world.ask(one, "wamp.subscription.get", json!([7])), "wamp.error.no_such_subscription");
        let both = json!([sorted(vec![world.ids[one], world.ids[two]])]);
        assert_eq!(world.ask(one, "wamp.subscription.list_subscribers", json!([exact])), both);
        assert_eq!(world.ask(two, "wamp.subscription.count_subscribers", json!([exact])), json!([2]));
        let count = world.ask(two, "wamp.subscription.count_subscribers", json!([7]));
        assert_eq!(count, "wamp.error.no_such_subscription");
        let remove = "wamp.subscription.remove_subscriber";
        assert_eq!(world.ask(one, remove, json!([exact, world.ids[two]])), json!([]));
        let told = json!([35, 0, {"subscription": exact, "reason": "wamp.close.killed"}]);
        assert_eq!(world.hears(two), [told]);
        assert_eq!(world.ask(two, "wamp.subscription.count_subscribers", json!([exact])), json!([1]));
        world.end();
    });
}

#[test]
fn joining_and_leaving_are_told() {
    everywhere(|place, realm| {
        let mut world = World::new(place, realm);
        let one = world.join(false);
        world.subscribe(one, "wamp.session.", "prefix");
        let two = world.join(true);
        let second = world.ids[two];
        let events = world.events(one);
        assert_eq!(events.len(), 1, "{events:?}");
        assert_eq!(events[0][0][0]["session"], second);
        assert_eq!(events[0][0][0]["authmethod"], "anonymous");
        world.says(two, &json!([6, {}, "wamp.close.close_realm"]));
        let left = json!([[second, format!("{second:x}"), "anonymous"], null]);
        assert_eq!(world.events(one), [left]);
        let three = world.join(true);
        world.events(one);
        world.close(three);
        assert_eq!(world.events(one).len(), 1, "a crash is told too");
        world.join(true);
        world.events(one);
        world.ask(one, "wamp.session.kill_all", json!([]));
        assert_eq!(world.events(one), Vec::<Value>::new(), "kill_all is not told");
        world.end();
    });
}

#[test]
fn a_session_is_not_told_of_its_own_end() {
    everywhere(|place, realm| {
        let mut world = World::new(place, realm);
        let (one, two) = (world.join(false), world.join(true));
        world.subscribe(two, "wamp.", "prefix");
        world.register(two, "a.b", json!({}));
        world.hears(two);
        world.says(two, &json!([6, {}, "wamp.close.close_realm"]));
        assert_eq!(world.hears(two), [json!([6, {}, "wamp.close.goodbye_and_out"])]);
        assert_eq!(world.ask(one, "wamp.session.count", json!([])), json!([1]));
        world.end();
    });
}

#[test]
fn nobody_else_publishes_what_the_router_does() {
    everywhere(|place, realm| {
        let mut world = World::new(place, realm);
        let (one, two) = (world.join(false), world.join(true));
        world.subscribe(one, "wamp.session.on_join", "exact");
        for from in [two, one, two] {
            world.join(true);
            assert_eq!(world.events(one).len(), 1);
            world.asks(from, json!([16, null, {"acknowledge": true}, "wamp.session.on_join", ["forged"]]));
            let answer = world.hears(from);
            assert!(answer.iter().any(|m| m[0] == 8 && m[4] == "wamp.error.invalid_uri"), "{answer:?}");
            assert_eq!(world.events(one), Vec::<Value>::new());
        }
        world.end();
    });
}

#[test]
fn the_life_of_a_subscription_is_told_in_order() {
    everywhere(|place, realm| {
        let mut world = World::new(place, realm);
        let (one, two) = (world.join(false), world.join(true));
        world.subscribe(one, "wamp.subscription.", "prefix");
        world.events(one);
        let id = world.subscribe(two, "a.b", "exact");
        let (second, topic) = (world.ids[two], json!({"topic": "a.b"}));
        let events = world.events(one);
        assert_eq!(events.len(), 2, "{events:?}");
        let created = &events[0][0][1]["created"];
        let details = json!({"id": id, "created": created, "uri": "a.b", "match": "exact"});
        assert_eq!(events[0], json!([[second, details], topic]));
        assert_eq!(events[1], json!([[second, id], topic]));
        let three = world.join(false);
        world.subscribe(three, "a.b", "exact");
        let third = world.ids[three];
        assert_eq!(world.events(one), [json!([[third, id], topic])], "it was there");
        world.subscribe(three, "a.b", "exact");
        assert_eq!(world.events(one), Vec::<Value>::new(), "it is subscribed already");
        world.asks(two, json!([34, null, id]));
        assert_eq!(world.events(one), [json!([[second, id], topic])]);
        world.close(three);
        let end = json!([[third, id], topic]);
        assert_eq!(world.events(one), [end.clone(), end], "the session, then the subscription");
        world.end();
    });
}

#[test]
fn the_life_of_a_registration_is_told_in_order() {
    everywhere(|place, realm| {
        for invoke in ["single", "roundrobin"] {
            let mut world = World::new(place, realm);
            let (one, two) = (world.join(false), world.join(true));
            world.subscribe(one, "wamp.registration.", "prefix");
            let id = world.register(two, "a.b", json!({"invoke": invoke}));
            let (second, named) = (world.ids[two], json!({"procedure": "a.b"}));
            let events = world.events(one);
            assert_eq!(events.len(), 2, "{events:?}");
            let created = &events[0][0][1]["created"];
            let details =
                json!({"id": id, "created": created, "uri": "a.b", "match": "exact", "invoke": invoke});
            assert_eq!(events[0], json!([[second, details], named]));
            assert_eq!(events[1], json!([[second, id], named]));
            if invoke == "roundrobin" {
                let three = world.join(true);
                world.register(three, "a.b", json!({"invoke": invoke}));
                let third = world.ids[three];
                assert_eq!(world.events(one), [json!([[third, id], named])], "it was there");
                world.close(three);
                assert_eq!(world.events(one), [json!([[third, id], named])], "it still is");
            }
            world.asks(two, json!([66, null, id]));
            let end = json!([[second, id], named]);
            assert_eq!(world.events(one), [end.clone(), end], "the session, then the registration");
            world.end();
        }
    });
}

#[test]
fn a_shared_registration_is_created_and_deleted_once_wherever_its_callees_are() {
    everywhere(|place, realm| {
        let mut world = World::new(place, realm);
        let (one, two, three) = (world.join(false), world.join(true), world.join(false));
        world.subscribe(one, "wamp.registration.", "prefix");
        let shared = || json!({"invoke": "roundrobin"});
        let id = world.register(two, "a.b", shared());
        assert_eq!(world.events(one).len(), 2, "the registration, then its callee");
        let told = |session: u64| json!([[session, id], {"procedure": "a.b"}]);
        let (second, third) = (told(world.ids[two]), told(world.ids[three]));
        world.register(three, "a.b", shared());
        assert_eq!(world.events(one), std::slice::from_ref(&third), "it was there");
        world.close(two);
        assert_eq!(world.events(one), [second], "it still is");
        world.close(three);
        assert_eq!(world.events(one), [third.clone(), third], "the callee, then the registration");
        world.end();
    });
}

#[test]
fn testaments_are_published_when_a_session_ends() {
    type Ends = fn(&mut World, usize, usize);
    let ends: [Ends; 3] = [
        |world, _, who| world.close(who),
        |world, _, who| world.says(who, &json!([6, {}, "wamp.close.close_realm"])),
        |world, other, who| {
            let who = world.ids[who];
            world.ask(other, "wamp.session.kill", json!([who]));
        },
    ];
    for end in ends {
        everywhere(|place, realm| {
            let mut world = World::new(place, realm);
            let (one, two, three) = (world.join(false), world.join(true), world.join(false));
            world.subscribe(one, "a.b", "exact");
            // It is not told of its own end.
            world.subscribe(two, "a.b", "exact");
            let add = "wamp.session.add_testament";
            let said = |text: &str| json!(["a.b", [text], {"by": "two"}]);
            assert_eq!(world.ask(two, add, said("destroyed")), json!([]));
            for text in ["first", "second"] {
                let scope = json!({"scope": "detached", "publish_options": {"acknowledge": true}});
                assert_eq!(world.call(two, add, said(text), scope), json!([]));
            }
            end(&mut world, three, two);
            let texts: Vec<Value> = world.events(one).into_iter().map(|event| event[0][0].clone()).collect();
            assert_eq!(texts, ["first", "second", "destroyed"]);
            world.end();
        });
    }
}

#[test]
fn testaments_can_be_flushed_and_are_checked() {
    everywhere(|place, realm| {
        let mut world = World::new(place, realm);
        let (one, two) = (world.join(false), world.join(true));
        world.subscribe(one, "a.b", "exact");
        let (add, flush) = ("wamp.session.add_testament", "wamp.session.flush_testaments");
        for (args, kwargs, error) in [
            (json!([]), json!({}), "wamp.error.invalid_argument"),
            (json!(["a b"]), json!({}), "wamp.error.invalid_uri"),
            (json!(["wamp.session.on_join"]), json!({}), "wamp.error.invalid_uri"),
            (json!(["a.b", 1]), json!({}), "wamp.error.invalid_argument"),
            (json!(["a.b", [], []]), json!({}), "wamp.error.invalid_argument"),
            (json!(["a.b"]), json!({"scope": "x"}), "wamp.error.invalid_argument"),
            (json!(["a.b"]), json!({"publish_options": 1}), "wamp.error.invalid_argument"),
        ] {
            assert_eq!(world.call(two, add, args, kwargs), error);
        }
        let detached = json!({"scope": "detached"});
        world.ask(two, add, json!(["a.b", ["destroyed"]]));
        world.call(two, add, json!(["a.b", ["detached"]]), detached.clone());
        assert_eq!(world.call(two, flush, json!([]), detached), json!([]));
        world.close(two);
        assert_eq!(world.events(one), [json!([["destroyed"], null])]);
        let three = world.join(true);
        world.ask(three, add, json!(["a.b", ["x"]]));
        assert_eq!(world.ask(three, flush, json!([])), json!([]));
        world.close(three);
        let four = world.join(true);
        world.ask(four, add, json!(["a.b", ["x"]]));
        world.ask(one, "wamp.session.kill_all", json!([]));
        assert_eq!(world.events(one), Vec::<Value>::new(), "neither flushed ones nor after kill_all");
        world.end();
    });
}

#[test]
fn testaments_are_bounded() {
    let mut world = World::new(&super::places::PLACES[0], "realm1");
    let one = world.join(false);
    let add = "wamp.session.add_testament";
    let long = "x".repeat(50_000);
    let answers: Vec<Value> = (0..6).map(|_| world.ask(one, add, json!(["a.b", [long]]))).collect();
    assert_eq!(answers[4..], [json!([]), json!("wamp.error.unavailable")]);
    let two = world.join(false);
    let answers: Vec<Value> = (0..65).map(|_| world.ask(two, add, json!(["a.b"]))).collect();
    assert_eq!(answers[63..], [json!([]), json!("wamp.error.unavailable")]);
    let longer = "x".repeat(70_000);
    assert_eq!(world.ask(one, add, json!(["a.b", [longer]])), "wamp.error.payload_size_exceeded");
    world.end();
}

#[test]
fn who_does_not_answer_is_left_out() {
    let mut world = World::new(&super::places::PLACES[1], "realm1");
    let (one, _) = (world.join(false), world.join(true));
    let count = frames(&[r#"[48,1,{},"wamp.session.count"]"#]);
    world.rig.receive(world.links[one], &count);
    // The other shard has no turn.
    world.rig.pass(Duration::from_secs(1));
    world.rig.finish_send(world.links[one], true);
    assert_eq!(world.hears(one), Vec::<Value>::new());
    world.rig.pass(Duration::from_secs(2));
    world.rig.finish_send(world.links[one], true);
    assert_eq!(world.hears(one), [json!([50, 1, {}, [1], {"partial": true}])]);
    world.rig.run();
    assert_eq!(world.hears(one), Vec::<Value>::new(), "a late answer finds nobody");
    world.end();
}

#[test]
fn a_question_that_was_given_up_is_answered_once() {
    for (mode, place) in [("skip", 1), ("kill", 1), ("killnowait", 1)] {
        let mut world = World::new(&super::places::PLACES[place], "realm1");
        let (one, _) = (world.join(false), world.join(true));
        let cancel = format!(r#"[49,1,{{"mode":"{mode}"}}]"#);
        let call = frames(&[r#"[48,1,{},"wamp.session.count"]"#, &cancel]);
        world.rig.receive(world.links[one], &call);
        world.rig.run();
        let got = world.hears(one);
        assert_eq!((got.len(), &got[0][4]), (1, &json!("wamp.error.canceled")), "{mode}: {got:?}");
        world.end();
    }
}

#[test]
fn a_node_that_dies_does_not_keep_its_question_open() {
    let mut world = World::new(&super::places::PLACES[3], "realm1");
    let (one, _) = (world.join(false), world.join(true));
    world.rig.receive(world.links[one], &frames(&[r#"[48,1,{},"wamp.session.count"]"#]));
    world.rig.kill(world.place.second);
    world.rig.run();
    for _ in 0..5 {
        world.rig.pass(Duration::from_secs(1));
        world.rig.run();
    }
    let got = world.hears(one);
    assert_eq!(got, [json!([50, 1, {}, [1], {"partial": true}])]);
    world.end();
}

#[test]
fn a_session_with_many_subscriptions_leaves_slice_by_slice() {
    everywhere(|place, realm| {
        let mut world = World::new(place, realm);
        let (one, two) = (world.join(false), world.join(true));
        world.subscribe(one, "wamp.subscription.on_delete", "exact");
        world.subscribe_many(two, "many", 1_000);
        world.says(two, &json!([6, {}, "wamp.close.close_realm"]));
        assert!(world.events(one).len() < 1_000, "a slice of them");
        // What has left gets nothing more, though it is not yet out of all tables.
        world.hears(two);
        for n in 1..=1_000 {
            world.asks(one, json!([16, null, {}, format!("many.t{n}")]));
        }
        assert_eq!(world.hears(two), Vec::<Value>::new());
        for _ in 0..20 {
            world.rig.pass(Duration::ZERO);
            world.rig.run();
        }
        let count = world.ask(one, "wamp.subscription.match", json!(["many.t1"]));
        assert_eq!(count, json!([null]));
        world.end();
    });
}

/// Ends a shard's part of what waits, slice by slice. How many slices there were.
fn slices(world: &mut World, is_done: impl Fn(&mut World) -> bool) -> usize {
    let done = (0..1_000).find(|_| {
        let done = is_done(world);
        if !done {
            world.rig.pass(Duration::ZERO);
            world.rig.run();
        }
        done
    });
    done.expect("it is done in the end")
}

#[test]
fn sessions_that_are_killed_together_end_slice_by_slice() {
    const MANY: usize = 100;
    everywhere(|place, realm| {
        for (procedure, args) in [("kill_all", json!([])), ("kill_by_authrole", json!(["anonymous"]))] {
            let mut world = World::new(place, realm);
            let one = world.join(false);
            let others: Vec<usize> = (0..MANY).map(|_| world.join(true)).collect();
            world.asks(one, json!([48, null, {}, format!("wamp.session.{procedure}"), args]));
            // What one turn ends is told of before the answer.
            let left = |world: &mut World| others.iter().filter(|who| world.hears(**who).is_empty()).count();
            let after_one = left(&mut world);
            assert!(after_one > 0 && after_one < MANY, "{after_one} wait for turns to come");
            assert!(world.hears(one).is_empty());
            // Who joins meanwhile is not meant.
            let late = world.join(true);
            world.hears(one);
            let turns = slices(&mut world, |world| {
                let count = world.rig.gauge(world.place.second, common::metrics::Gauge::Sessions);
                count == 1 + u64::from(world.place.first == world.place.second)
            });
            assert!(turns >= 3, "{turns} turns");
            slices(&mut world, |world| !world.rig.links[world.links[one]].got.is_empty());
            let heard: Vec<Value> = world.hears(one).into_iter().filter(|message| message[0] == 50).collect();
            assert_eq!((heard.len(), &heard[0][3]), (1, &json!([MANY])), "{heard:?}");
            assert_eq!(
                world.ask(one, "wamp.session.get", json!([world.ids[late]]))[0]["session"],
                world.ids[late]
            );
            world.end();
        }
    });
}

#[test]
fn an_end_that_was_begun_goes_on_without_its_asker() {
    let mut world = World::new(&super::places::PLACES[1], "realm1");
    let (one, watcher) = (world.join(false), world.join(false));
    let others: Vec<usize> = (0..50).map(|_| world.join(true)).collect();
    let authid = format!("{:x}", world.ids[watcher]);
    // Two ends at once: the second one waits for the first one, and names one session only.
    world.says(one, &json!([48, 1, {}, "wamp.session.kill_all", []]));
    world.says(others[49], &json!([48, 1, {}, "wamp.session.kill_by_authid", [authid]]));
    world.close(one);
    for _ in 0..10 {
        world.rig.pass(Duration::ZERO);
        world.rig.run();
    }
    for who in others {
        let heard = world.hears(who);
        assert!(heard.iter().any(|message| message[0] == 6), "{heard:?}");
    }
    world.end();
}

#[test]
fn a_realm_that_is_removed_loses_its_sessions_slice_by_slice() {
    let mut world = World::new(&super::places::PLACES[0], "realm1");
    let all: Vec<usize> = (0..100).map(|_| world.join(false)).collect();
    let delta = |version, put: bool| {
        let realm = super::rig::realm("realm1");
        let (put, removed) = if put { (vec![realm], vec![]) } else { (vec![], vec![realm.id]) };
        FeedDown::Delta(std::sync::Arc::new(Delta {
            version: SnapshotVersion(version),
            follows: SnapshotVersion(version - 1),
            realms_put: put,
            realms_removed: removed,
        }))
    };
    world.rig.feed(&delta(2, false));
    let open = |world: &mut World| {
        all.iter().filter(|who| world.rig.links[world.links[**who]].got.is_empty()).count()
    };
    assert!((1..100).contains(&open(&mut world)), "some wait for turns to come");
    // It is there again before they are gone: who joins now stays.
    world.rig.feed(&delta(3, true));
    let late = world.join(false);
    slices(&mut world, |world| open(world) == 0);
    for who in &all {
        assert_eq!(world.hears(*who)[0][2], "wamp.close.close_realm");
    }
    assert_eq!(world.ask(late, "wamp.session.count", json!([])), json!([1]));
    world.end();
}

#[test]
fn many_sessions_that_end_at_once_share_the_turns() {
    let mut world = World::new(&super::places::PLACES[1], "realm1");
    let one = world.join(false);
    let others: Vec<usize> = (0..10).map(|_| world.join(true)).collect();
    for who in &others {
        world.subscribe_many(*who, &format!("many.w{who}"), 150);
    }
    assert_eq!(world.ask(one, "wamp.session.kill_all", json!([])), json!([10]));
    let left = |world: &mut World| {
        let listed = world.ask(one, "wamp.subscription.list", json!([]));
        listed[0]["exact"].as_array().map(Vec::len)
    };
    assert_eq!(left(&mut world), Some(1_500 - 128 - 9 * 16), "what one turn gives up");
    for _ in 0..20 {
        world.rig.pass(Duration::ZERO);
        world.rig.run();
    }
    assert_eq!(left(&mut world), Some(0));
    world.end();
}

#[test]
fn the_next_session_on_a_connection_has_nothing_of_the_one_before() {
    let mut world = World::new(&super::places::PLACES[1], "realm1");
    let (one, two) = (world.join(false), world.join(true));
    world.subscribe_many(two, "many", 1_000);
    let again = [r#"[6,{},"wamp.close.close_realm"]"#, super::HELLO];
    world.rig.receive(world.links[two], &frames(&again));
    world.rig.run();
    world.hears(two);
    let count = world.ask(one, "wamp.subscription.list", json!([]));
    assert_eq!(count, json!([{"exact": [], "prefix": [], "wildcard": []}]));
    world.end();
}

#[test]
fn a_closed_connection_with_many_subscriptions_keeps_its_slot_until_they_are_gone() {
    let mut world = World::new(&super::places::PLACES[1], "realm1");
    let (one, two) = (world.join(false), world.join(true));
    world.subscribe_many(two, "many", 1_000);
    // The connection breaks while something is sent.
    world.rig.links[world.links[two]].stuck = true;
    let id = route_id(RealmId::of("realm1"), RouteKind::Topic, Match::Exact, "many.t1");
    world.says(two, &json!([34, 1_001, id]));
    assert!(world.rig.finish_send(world.links[two], false));
    assert!(world.rig.links[world.links[two]].open, "it still has subscriptions");
    assert_eq!(world.ask(one, "wamp.session.count", json!([])), json!([1]));
    for _ in 0..20 {
        world.rig.pass(Duration::ZERO);
        world.rig.run();
    }
    assert!(!world.rig.links[world.links[two]].open);
    world.end();
}
