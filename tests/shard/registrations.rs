//! Registrations of several callees (WAMP, advanced profile, "Shared Registration", "Sharded Registration", "Call Re-Routing",
//! "Registration Revocation", "Call Trust Levels"): each history with caller, callees and the procedure's home shard on the same
//! shard, on different ones, and on different nodes.

use super::clients::World;
use super::frames;
use super::hall::{ABLE, Hall, PLAIN, Seats, apart, everywhere};
use super::places::{PLACES, REALMS};
use common::ids::{Match, RealmId};
use dataplane::feed::FeedDown;
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::Duration;

#[test]
fn calls_go_round_the_callees_in_the_order_of_registration() {
    everywhere(PLAIN, |hall| {
        hall.register_all(r#"{"invoke":"roundrobin"}"#);
        let served: Vec<usize> = (0..6).map(|_| hall.serve("{}")).collect();
        assert_eq!(served, [0, 1, 2, 0, 1, 2]);
        hall.rig.close(hall.callees[1]);
        hall.rig.run();
        let served: Vec<usize> = (0..3).map(|_| hall.serve("{}")).collect();
        assert_eq!(served, [0, 2, 0]);
    });
}

#[test]
fn the_first_or_the_last_callee_is_called_and_the_next_when_it_leaves() {
    for (invoke, order) in [("first", [0, 1, 2]), ("last", [2, 1, 0])] {
        everywhere(PLAIN, |hall| {
            hall.register_all(&format!(r#"{{"invoke":"{invoke}"}}"#));
            for callee in order {
                assert_eq!((hall.serve("{}"), hall.serve("{}")), (callee, callee));
                let request = hall.next(callee);
                let text = format!("[66,{request},{}]", hall.registration);
                hall.callee(callee, &text);
                assert_eq!(hall.callee_hears(callee), [serde_json::json!([67, request])]);
            }
            assert_eq!(hall.refused("{}"), "wamp.error.no_such_procedure");
        });
    }
}

#[test]
fn random_calls_reach_everybody_in_no_order() {
    for invoke in ["random", "qlls", "queue_least_loaded_sample"] {
        everywhere(PLAIN, |hall| {
            hall.register_all(&format!(r#"{{"invoke":"{invoke}"}}"#));
            let served: Vec<usize> = (0..40).map(|_| hall.serve("{}")).collect();
            assert_eq!(served.iter().collect::<BTreeSet<_>>().len(), 3);
            assert!(served.windows(2).any(|pair| pair[0] == pair[1]), "{served:?}");
        });
    }
}

#[test]
fn the_first_callee_fixes_the_policy() {
    everywhere(PLAIN, |hall| {
        for (first, others) in [
            ("{}", [r#"{"invoke":"first"}"#, r#"{"invoke":"single"}"#]),
            (r#"{"invoke":"first"}"#, [r#"{"invoke":"last"}"#, "{}"]),
            (r#"{"invoke":"jch"}"#, [r#"{"invoke":"random"}"#, r#"{"concurrency":1}"#]),
            (r#"{"concurrency":1}"#, [r#"{"concurrency":1}"#, r#"{"invoke":"random"}"#]),
        ] {
            assert_eq!(hall.register(0, first)[0], 65);
            for (callee, other) in [1, 2].into_iter().zip(others) {
                let refused = hall.register(callee, other);
                assert_eq!(
                    (&refused[0], &refused[4]),
                    (&8.into(), &"wamp.error.procedure_already_exists".into())
                );
            }
            let again = hall.register(0, first);
            assert_eq!(again[4], "wamp.error.procedure_already_exists", "it is a callee already");
            assert_eq!(hall.serve("{}"), 0);
            let request = hall.next(0);
            let text = format!("[66,{request},{}]", hall.registration);
            hall.callee(0, &text);
            assert_eq!(hall.callee_hears(0)[0][0], 67);
        }
        let long = r#"{"invoke":"jump_consistent_hash"}"#;
        assert_eq!(
            (&hall.register(0, r#"{"invoke":"jch"}"#)[0], &hall.register(1, long)[0]),
            (&65.into(), &65.into())
        );
    });
}

#[test]
fn a_policy_nobody_knows_is_refused() {
    let seats = Seats { place: PLACES[0], callees: [0, 1, 0], home: 0, realm: "realm1" };
    let mut hall = Hall::new(seats, PLAIN);
    let answer = hall.register(0, r#"{"invoke":"loudest"}"#);
    assert_eq!((&answer[0], &answer[2]), (&3.into(), &"wamp.error.protocol_violation".into()));
    hall.rig.check_empty();
}

#[test]
fn a_key_has_its_callee() {
    for (invoke, call) in [("jch", r#""rkey":"#), ("roundrobin", r#""runmode":"partition","rkey":"#)] {
        everywhere(PLAIN, |hall| {
            hall.register_all(&format!(r#"{{"invoke":"{invoke}"}}"#));
            let mut all = BTreeSet::new();
            for key in 0..12 {
                let callee = hall.serve(&format!(r#"{{{call}"key{key}"}}"#));
                assert_eq!(hall.serve(&format!(r#"{{{call}"key{key}"}}"#)), callee);
                all.insert(callee);
            }
            assert_eq!(all.len(), 3);
            let numbers = [hall.serve(&format!("{{{call}7}}")), hall.serve(&format!("{{{call}\"7\"}}"))];
            assert_eq!(numbers[0], numbers[1], "a number is its digits");
        });
    }
    everywhere(PLAIN, |hall| {
        hall.register_all(r#"{"invoke":"jch"}"#);
        let callee = hall.serve(r#"{"_routing_key":"a"}"#);
        assert_eq!(hall.serve(r#"{"rkey":"a","_routing_key":"b"}"#), callee);
        let own = hall.serve("{}");
        assert_eq!(hall.serve("{}"), own, "without a key a caller has its callee");
        assert_eq!(hall.refused(r#"{"runmode":"partition"}"#), "wamp.error.invalid_argument");
    });
}

#[test]
fn a_callee_gets_no_more_calls_than_it_takes() {
    for limit in [r#""concurrency":2"#, r#""x_concurrency":2"#] {
        everywhere(PLAIN, |hall| {
            hall.register_all(&format!(r#"{{"invoke":"first",{limit}}}"#));
            let mut open = Vec::new();
            for expected in [0, 0, 1, 1, 2, 2] {
                let request = hall.call("{}");
                let (callee, invocation) = hall.invoked().expect("somebody is called");
                assert_eq!(callee, expected);
                open.push((request, callee, invocation[1].clone()));
            }
            assert_eq!(hall.refused("{}"), "wamp.error.unavailable");
            for (request, callee, invocation) in open {
                hall.callee(callee, &format!("[70,{invocation},{{}}]"));
                assert_eq!(hall.caller_hears()[0][1], request);
            }
            assert_eq!(hall.serve("{}"), 0);
        });
    }
    everywhere(PLAIN, |hall| {
        assert_eq!(hall.register(0, r#"{"concurrency":1}"#)[0], 65);
        let request = hall.call("{}");
        let (_, invocation) = hall.invoked().expect("it is called");
        assert_eq!(hall.refused("{}"), "wamp.error.unavailable");
        hall.callee(0, &format!("[8,68,{},{{}},\"com.example.sad\"]", invocation[1]));
        assert_eq!(hall.error_of(request), "com.example.sad");
        assert_eq!(hall.serve("{}"), 0);
    });
}

#[test]
fn the_callee_with_the_fewest_open_calls_is_called() {
    everywhere(PLAIN, |hall| {
        hall.register_all(r#"{"invoke":"queue_least_loaded"}"#);
        let mut open = Vec::new();
        for _ in 0..3 {
            hall.call("{}");
            open.push(hall.invoked().expect("somebody is called"));
        }
        assert_eq!(open.iter().map(|(callee, _)| *callee).collect::<BTreeSet<_>>().len(), 3);
        let (callee, invocation) = open.remove(1);
        hall.callee(callee, &format!("[70,{},{{}}]", invocation[1]));
        hall.caller_hears();
        assert_eq!((hall.serve("{}"), hall.serve("{}")), (callee, callee));
    });
}

#[test]
fn a_callee_can_take_the_place_of_the_others() {
    for (before, others) in [("{}", 1), (r#"{"invoke":"roundrobin"}"#, 2), (r#"{"concurrency":1}"#, 1)] {
        for after in [r#"{"force_reregister":true}"#, r#"{"invoke":"random","force_reregister":true}"#] {
            everywhere(ABLE, |hall| {
                for callee in 0..others {
                    assert_eq!(hall.register(callee, before)[0], 65);
                }
                let request = hall.call("{}");
                let (old, invocation) = hall.invoked().expect("it is called");
                assert_eq!(hall.register(2, after)[0], 65);
                for callee in 0..others {
                    let told = hall.callee_hears(callee);
                    let reason = "another callee has taken the registration";
                    let details = serde_json::json!({"registration": hall.registration, "reason": reason});
                    assert_eq!(told, [serde_json::json!([67, 0, details])]);
                }
                hall.callee(old, &format!("[70,{},{{}},[\"old\"]]", invocation[1]));
                assert_eq!(hall.caller_hears(), [serde_json::json!([50, request, {}, ["old"]])]);
                assert_eq!(hall.serve("{}"), 2);
                // It may do so to itself.
                assert_eq!(hall.register(2, after)[0], 65);
                assert_eq!(hall.serve("{}"), 2);
                let request = hall.next(0);
                let text = format!("[66,{request},{}]", hall.registration);
                hall.callee(0, &text);
                assert_eq!(hall.callee_hears(0)[0][4], "wamp.error.no_such_registration");
            });
        }
    }
    everywhere(PLAIN, |hall| {
        assert_eq!(hall.register(0, "{}")[0], 65);
        assert_eq!(hall.register(1, r#"{"force_reregister":true}"#)[0], 65);
        assert_eq!(hall.callee_hears(0), Vec::<Value>::new(), "it knows no revocation");
        assert_eq!(hall.serve("{}"), 1);
    });
}

#[test]
fn a_call_goes_to_another_callee_when_one_says_that_it_is_unavailable() {
    for (invoke, order) in [
        ("first", Some([0, 1, 2])),
        ("last", Some([2, 1, 0])),
        ("roundrobin", Some([0, 1, 2])),
        ("random", None),
    ] {
        everywhere(ABLE, |hall| {
            hall.register_all(&format!(r#"{{"invoke":"{invoke}"}}"#));
            let request = hall.call("{}");
            let mut asked = Vec::new();
            while let Some((callee, invocation)) = hall.invoked() {
                assert_eq!(invocation[4], serde_json::json!([request]));
                assert_eq!(hall.caller_hears(), Vec::<Value>::new(), "the caller does not notice");
                hall.unavailable(callee, &invocation);
                asked.push(callee);
            }
            assert_eq!(hall.error_of(request), "wamp.error.no_available_callee");
            if let Some(order) = order {
                assert_eq!(asked, order);
            }
            asked.sort_unstable();
            assert_eq!(asked, [0, 1, 2], "each was asked once");
            // And an answer of the second one is one.
            let request = hall.call("{}");
            let (first, invocation) = hall.invoked().expect("somebody is called");
            hall.unavailable(first, &invocation);
            let (second, invocation) = hall.invoked().expect("another one is called");
            assert_ne!(first, second);
            hall.callee(second, &format!("[70,{},{{}}]", invocation[1]));
            assert_eq!(hall.caller_hears(), [serde_json::json!([50, request, {}])]);
        });
    }
}

#[test]
fn a_single_callee_that_is_unavailable_has_no_substitute() {
    for register in ["{}", r#"{"concurrency":5}"#] {
        everywhere(ABLE, |hall| {
            assert_eq!(hall.register(0, register)[0], 65);
            let request = hall.call("{}");
            let (callee, invocation) = hall.invoked().expect("it is called");
            hall.unavailable(callee, &invocation);
            assert_eq!(hall.error_of(request), "wamp.error.no_available_callee");
        });
    }
}

#[test]
fn in_a_strict_realm_only_callees_that_announced_it_are_replaced() {
    everywhere(PLAIN, |hall| {
        hall.register_all(r#"{"invoke":"first"}"#);
        let request = hall.call("{}");
        let (callee, invocation) = hall.invoked().expect("somebody is called");
        hall.unavailable(callee, &invocation);
        if hall.realm == "strict" {
            assert_eq!(hall.error_of(request), "wamp.error.unavailable");
        } else {
            assert_eq!(hall.invoked().expect("another one is called").0, 1);
        }
    });
}

#[test]
fn calls_that_cannot_be_sent_again_are_not() {
    let long = "x".repeat(70_000);
    for (options, payload) in [
        ("{}", long.as_str()),
        (r#"{"runmode":"partition","rkey":1}"#, "short"),
        (r#"{"progress":true}"#, "in parts"),
    ] {
        everywhere(ABLE, |hall| {
            hall.register_all(r#"{"invoke":"first"}"#);
            let request = hall.next(3);
            hall.say(&format!("[48,{request},{options},\"{}\",[\"{payload}\"]]", hall.uri));
            let (callee, invocation) = hall.invoked().expect("somebody is called");
            hall.unavailable(callee, &invocation);
            assert_eq!(hall.error_of(request), "wamp.error.no_available_callee");
            assert_eq!(hall.invoked(), None);
        });
    }
}

#[test]
fn a_call_that_was_answered_in_part_is_not_sent_again() {
    everywhere(ABLE, |hall| {
        hall.register_all(r#"{"invoke":"first"}"#);
        let request = hall.call(r#"{"receive_progress":true}"#);
        let (callee, invocation) = hall.invoked().expect("somebody is called");
        hall.callee(callee, &format!("[70,{},{{\"progress\":true}},[1]]", invocation[1]));
        assert_eq!(hall.caller_hears(), [serde_json::json!([50, request, {"progress": true}, [1]])]);
        hall.unavailable(callee, &invocation);
        assert_eq!(hall.error_of(request), "wamp.error.no_available_callee");
        assert_eq!(hall.invoked(), None);
    });
}

#[test]
fn so_many_callees_are_asked_to_take_one_call() {
    for place in &PLACES {
        let mut world = World::new(place, "realm1");
        let caller = world.join(false);
        let callees: Vec<usize> = (0..40).map(|_| world.join(true)).collect();
        for callee in &callees {
            world.register(*callee, "com.example.p", serde_json::json!({"invoke": "roundrobin"}));
        }
        world.asks(caller, serde_json::json!([48, null, {}, "com.example.p"]));
        for callee in &callees[..32] {
            let heard = world.hears(*callee);
            assert_eq!((heard.len(), &heard[0][0]), (1, &68.into()), "{heard:?}");
            let busy = serde_json::json!([8, 68, heard[0][1], {}, "wamp.error.unavailable"]);
            world.says(*callee, &busy);
        }
        assert!(callees.iter().all(|callee| world.hears(*callee).is_empty()));
        let heard = world.hears(caller);
        assert_eq!((heard.len(), &heard[0][4]), (1, &"wamp.error.no_available_callee".into()), "{heard:?}");
        world.end();
    }
}

#[test]
fn a_call_is_lost_with_its_callee_and_given_to_nobody_else() {
    everywhere(ABLE, |hall| {
        hall.register_all(r#"{"invoke":"first"}"#);
        let request = hall.call("{}");
        let (callee, _) = hall.invoked().expect("somebody is called");
        hall.rig.close(hall.callees[callee]);
        hall.rig.run();
        assert_eq!(hall.error_of(request), "wamp.error.canceled");
        assert_eq!(hall.invoked(), None);
        assert_eq!(hall.serve("{}"), 1);
    });
}

#[test]
fn calls_to_shared_registrations_are_given_up_like_any_other() {
    everywhere(ABLE, |hall| {
        hall.register_all(r#"{"invoke":"queue_least_loaded","concurrency":1}"#);
        for mode in ["skip", "killnowait", "kill"] {
            let request = hall.call("{}");
            let (callee, invocation) = hall.invoked().expect("somebody is called");
            hall.say(&format!(r#"[49,{request},{{"mode":"{mode}"}}]"#));
            let told = hall.callee_hears(callee);
            if mode == "skip" {
                assert_eq!(told, Vec::<Value>::new());
            } else {
                let options = serde_json::json!({"mode": mode, "reason": "wamp.error.canceled"});
                assert_eq!(told, [serde_json::json!([69, invocation[1], options])]);
            }
            if mode == "kill" {
                assert_eq!(hall.caller_hears(), Vec::<Value>::new());
                hall.unavailable(callee, &invocation);
                assert_eq!(hall.error_of(request), "wamp.error.no_available_callee");
                assert_eq!(hall.invoked(), None, "what was given up is not sent again");
            } else {
                assert_eq!(hall.error_of(request), "wamp.error.canceled");
                hall.callee(callee, &format!("[70,{},{{}},[\"late\"]]", invocation[1]));
                assert_eq!(hall.caller_hears(), Vec::<Value>::new());
            }
        }
        for _ in 0..6 {
            hall.serve("{}");
        }
    });
}

#[test]
fn a_timeout_reaches_the_callee_that_was_chosen() {
    everywhere(ABLE, |hall| {
        hall.register_all(r#"{"invoke":"roundrobin","concurrency":1}"#);
        let request = hall.call(r#"{"timeout":500}"#);
        let (callee, invocation) = hall.invoked().expect("somebody is called");
        hall.rig.pass(Duration::from_millis(500));
        hall.rig.run();
        assert_eq!(hall.error_of(request), "wamp.error.timeout");
        let options = serde_json::json!({"mode": "killnowait", "reason": "wamp.error.timeout"});
        assert_eq!(hall.callee_hears(callee), [serde_json::json!([69, invocation[1], options])]);
        let served: BTreeSet<usize> = (0..3).map(|_| hall.serve("{}")).collect();
        assert_eq!(served.len(), 3, "its place is free again");
    });
}

#[test]
fn progress_passes_both_ways() {
    everywhere(ABLE, |hall| {
        hall.register_all(r#"{"invoke":"roundrobin"}"#);
        let request = hall.call(r#"{"progress":true,"receive_progress":true}"#);
        let (callee, invocation) = hall.invoked().expect("somebody is called");
        hall.callee(callee, &format!(r#"[70,{},{{"progress":true}},["half"]]"#, invocation[1]));
        assert_eq!(hall.caller_hears(), [serde_json::json!([50, request, {"progress": true}, ["half"]])]);
        hall.say(&format!("[48,{request},{{}},\"{}\",[\"end\"]]", hall.uri));
        let (same, last) = hall.invoked().expect("the same callee gets the rest");
        assert_eq!((same, &last[1], &last[4]), (callee, &invocation[1], &serde_json::json!(["end"])));
        hall.callee(callee, &format!("[70,{},{{}},[\"all\"]]", invocation[1]));
        assert_eq!(hall.caller_hears(), [serde_json::json!([50, request, {}, ["all"]])]);
    });
}

#[test]
fn a_caller_that_leaves_gives_its_shared_calls_up() {
    everywhere(ABLE, |hall| {
        hall.register_all(r#"{"invoke":"last","concurrency":1}"#);
        hall.call("{}");
        let (callee, invocation) = hall.invoked().expect("somebody is called");
        hall.rig.close(hall.caller);
        hall.rig.run();
        let options = serde_json::json!({"mode": "killnowait", "reason": "wamp.error.canceled"});
        assert_eq!(hall.callee_hears(callee), [serde_json::json!([69, invocation[1], options])]);
        hall.callee(callee, &format!("[70,{},{{}}]", invocation[1]));
    });
}

#[test]
fn callees_that_lose_to_another_node_are_all_told() {
    everywhere(ABLE, |hall| {
        hall.register_all(r#"{"invoke":"first"}"#);
        let realm = RealmId::of(&hall.realm);
        hall.rig.feed(&FeedDown::Revoke { realm, policy: Match::Exact, uri: hall.uri.as_str().into() });
        for callee in 0..3 {
            assert_eq!(hall.callee_hears(callee)[0][2]["registration"], hall.registration);
        }
        assert_eq!(hall.refused("{}"), "wamp.error.no_such_procedure");
    });
}

#[test]
fn callees_that_want_it_are_told_how_much_a_call_is_trusted() {
    let roles = r#"{"callee":{"features":{"call_trustlevels":true}}}"#;
    for register in ["{}", r#"{"invoke":"first"}"#] {
        for (roles, expected) in
            [(roles, serde_json::json!({"trustlevel": 0})), (PLAIN, serde_json::json!({}))]
        {
            everywhere(roles, |hall| {
                assert_eq!(hall.register(0, register)[0], 65);
                hall.call("{}");
                assert_eq!(hall.invoked().expect("it is called").1[3], expected);
            });
        }
    }
}

#[test]
fn calls_that_come_before_the_first_callee_is_known_wait_for_it() {
    for invoke in ["single", "roundrobin"] {
        for realm in REALMS {
            let seats = Seats { place: PLACES[0], callees: [0, 0, 1], home: 0, realm };
            let mut hall = Hall::new(seats, ABLE);
            let register = format!(r#"[64,1,{{"invoke":"{invoke}"}},"{}"]"#, hall.uri);
            hall.rig.receive(hall.callees[0], &frames(&[&register]));
            let call = |n: u32, more: &str| format!("[48,{n},{{{more}}},\"{}\",[{n}]]", hall.uri);
            let calls =
                [call(1, ""), call(2, r#""progress":true"#), call(2, ""), call(3, ""), "[49,3,{}]".into()];
            hall.rig.receive(hall.caller, &frames(&calls.each_ref().map(String::as_str)));
            hall.rig.run();
            let heard = hall.callee_hears(0);
            let kinds: Vec<_> =
                heard.iter().map(|message| (message[0].clone(), message[4][0].clone())).collect();
            let (registered, invoked) = (Value::from(65), Value::from(68));
            let expected = [
                (registered, Value::Null),
                (invoked.clone(), 1.into()),
                (invoked.clone(), 2.into()),
                (invoked, 2.into()),
            ];
            assert_eq!(kinds, expected, "{heard:?}");
            assert_eq!(hall.error_of(3), "wamp.error.canceled");
            hall.rig.check_empty();
        }
    }
}

#[test]
fn calls_that_wait_for_a_callee_are_bounded_in_bytes() {
    for invoke in ["single", "roundrobin"] {
        let seats = Seats { place: PLACES[0], callees: [0, 0, 1], home: 0, realm: "realm1" };
        let mut hall = Hall::new(seats, ABLE);
        let register = format!(r#"[64,1,{{"invoke":"{invoke}"}},"{}"]"#, hall.uri);
        hall.rig.receive(hall.callees[0], &frames(&[&register]));
        let text = "x".repeat(1_000_000);
        for n in 1..=20 {
            let call = format!("[48,{n},{{}},\"{}\",[\"{text}\"]]", hall.uri);
            hall.rig.receive(hall.caller, &frames(&[&call]));
        }
        hall.rig.run();
        let refused = hall.caller_hears();
        let early = refused.iter().filter(|error| error[5][0] == "the callee is still being registered");
        assert!((3..6).contains(&early.count()), "16 MiB wait, the rest does not: {refused:?}");
        // Of those that waited some are more than the callee's queue takes.
        assert_eq!(hall.callee_hears(0).len(), 1 + 20 - refused.len());
        hall.rig.check_empty();
    }
}

#[test]
fn callees_of_the_callers_node_are_preferred_if_the_policy_and_the_callee_allow() {
    for invoke in ["roundrobin", "random", "queue_least_loaded", "queue_least_loaded_sample"] {
        apart(PLAIN, |hall| {
            hall.register_all(&format!(r#"{{"invoke":"{invoke}"}}"#));
            assert!((0..12).all(|_| hall.serve("{}") == 1), "{invoke}");
            hall.rig.close(hall.callees[1]);
            hall.rig.run();
            let served: BTreeSet<usize> = (0..30).map(|_| hall.serve("{}")).collect();
            assert_eq!(served, BTreeSet::from([0, 2]), "{invoke}");
        });
        apart(PLAIN, |hall| {
            hall.register_all(&format!(r#"{{"invoke":"{invoke}","_prefer_local":false}}"#));
            let mut counts = [0; 3];
            (0..30).for_each(|_| counts[hall.serve("{}")] += 1);
            assert!(counts.iter().all(|count| *count > 0), "{invoke}: {counts:?}");
            assert!(invoke != "roundrobin" || counts == [10; 3], "each its share: {counts:?}");
        });
    }
}

#[test]
fn the_first_and_the_last_callee_are_those_of_all_nodes() {
    for (invoke, order) in [("first", [0, 1, 2]), ("last", [2, 1, 0])] {
        apart(PLAIN, |hall| {
            hall.register_all(&format!(r#"{{"invoke":"{invoke}"}}"#));
            for callee in order {
                assert_eq!((hall.serve("{}"), hall.serve("{}")), (callee, callee));
                hall.rig.close(hall.callees[callee]);
                hall.rig.run();
            }
            assert_eq!(hall.refused("{}"), "wamp.error.no_such_procedure");
        });
    }
}

#[test]
fn a_key_has_the_same_callee_for_callers_of_all_nodes() {
    let options = [("jch", r#""rkey":"#), ("roundrobin", r#""runmode":"partition","rkey":"#)];
    for (invoke, call) in options {
        for home in [0, 1] {
            let served = [0, 1, 2, 3].map(|caller| {
                let place = PLACES[3].with_first(caller);
                let mut hall = Hall::new(Seats { place, callees: [2, 0, 3], home, realm: "realm1" }, PLAIN);
                hall.register_all(&format!(r#"{{"invoke":"{invoke}"}}"#));
                let served = (0..24).map(|key| hall.serve(&format!("{{{call}{key}}}")));
                let served: Vec<usize> = served.collect();
                hall.rig.check_empty();
                served
            });
            assert!(served.iter().all(|other| *other == served[0]), "{invoke}: {served:?}");
            assert_eq!(served[0].iter().collect::<BTreeSet<_>>().len(), 3);
        }
    }
}

#[test]
fn the_first_callee_of_all_nodes_fixes_the_policy() {
    apart(PLAIN, |hall| {
        for (first, refused) in [
            (r#"{"invoke":"first"}"#, &["{}", r#"{"invoke":"last"}"#, r#"{"concurrency":1}"#][..]),
            ("{}", &["{}", r#"{"invoke":"last"}"#]),
            (r#"{"concurrency":1}"#, &[r#"{"concurrency":1}"#]),
        ] {
            assert_eq!(hall.register(0, first)[0], 65);
            for options in refused {
                let answer = hall.register(1, options);
                assert_eq!(answer[4], "wamp.error.procedure_already_exists", "{first} and then {options}");
            }
            assert_eq!(hall.serve("{}"), 0);
            let request = hall.next(0);
            let text = format!("[66,{request},{}]", hall.registration);
            hall.callee(0, &text);
            assert_eq!(hall.callee_hears(0)[0][0], 67);
        }
    });
}

#[test]
fn a_call_goes_to_another_node_when_no_callee_of_the_first_one_takes_it() {
    for (invoke, order) in [("first", [0, 1, 2]), ("last", [2, 1, 0])] {
        apart(ABLE, |hall| {
            hall.register_all(&format!(r#"{{"invoke":"{invoke}"}}"#));
            let request = hall.call("{}");
            let mut asked = Vec::new();
            while let Some((callee, invocation)) = hall.invoked() {
                assert_eq!(invocation[4], serde_json::json!([request]));
                hall.unavailable(callee, &invocation);
                asked.push(callee);
            }
            assert_eq!(hall.error_of(request), "wamp.error.no_available_callee");
            assert_eq!(asked[0], order[0]);
            asked.sort_unstable();
            assert_eq!(asked, [0, 1, 2], "each was asked once");
        });
    }
    apart(ABLE, |hall| {
        hall.register_all(r#"{"invoke":"roundrobin","concurrency":1}"#);
        let mut open = Vec::new();
        for _ in 0..3 {
            hall.call("{}");
            open.push(hall.invoked().expect("somebody is called"));
        }
        assert_eq!(open[0].0, 1, "its own node's");
        assert_eq!(hall.refused("{}"), "wamp.error.unavailable");
        for (callee, invocation) in open {
            hall.callee(callee, &format!("[70,{},{{}}]", invocation[1]));
            assert_eq!(hall.caller_hears().len(), 1);
        }
    });
}

#[test]
fn a_callee_can_take_the_place_of_those_of_other_nodes() {
    for before in ["{}", r#"{"invoke":"first"}"#] {
        for after in [r#"{"force_reregister":true}"#, r#"{"invoke":"first","force_reregister":true}"#] {
            apart(ABLE, |hall| {
                assert_eq!(hall.register(0, before)[0], 65);
                let request = hall.call("{}");
                let (_, invocation) = hall.invoked().expect("it is called");
                assert_eq!(hall.register(1, after)[0], 65);
                assert_eq!(hall.callee_hears(0)[0][2]["registration"], hall.registration);
                hall.callee(0, &format!("[70,{},{{}}]", invocation[1]));
                assert_eq!(hall.caller_hears(), [serde_json::json!([50, request, {}])]);
                assert_eq!(hall.serve("{}"), 1);
                if after.contains("invoke") {
                    assert_eq!(hall.register(2, r#"{"invoke":"first"}"#)[0], 65, "others may join it");
                    assert_eq!(hall.serve("{}"), 1);
                }
            });
        }
    }
}

#[test]
fn calls_are_lost_with_the_node_of_their_callee_and_later_ones_go_elsewhere() {
    for realm in REALMS {
        for home in [0, 1] {
            let mut hall = Hall::new(Seats { place: PLACES[3], callees: [2, 0, 3], home, realm }, ABLE);
            hall.register_all(r#"{"invoke":"first"}"#);
            let request = hall.call("{}");
            assert_eq!(hall.invoked().expect("somebody is called").0, 0);
            hall.rig.kill(2);
            assert_eq!(hall.error_of(request), "wamp.error.canceled");
            assert_eq!(hall.serve("{}"), 1);
            hall.rig.check_empty();
        }
    }
}
