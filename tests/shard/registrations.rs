//! Registrations of several callees (WAMP, advanced profile, "Shared Registration", "Sharded Registration", "Call Re-Routing",
//! "Registration Revocation", "Call Trust Levels"): each history with caller, callees and the procedure's home shard on the same
//! shard and on different ones.

use super::rig::Rig;
use super::{connect, frames, messages};
use common::ids::{Match, RealmId, RouteKind, route_id};
use dataplane::feed::FeedDown;
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::Duration;

/// Announces everything.
const ABLE: &str = r#"{"caller":{"features":{"progressive_call_invocations":true}},
    "callee":{"features":{"call_canceling":true,"progressive_call_results":true,"progressive_call_invocations":true,
    "registration_revocation":true,"call_reroute":true}}}"#;
/// Announces nothing.
const PLAIN: &str = r#"{"caller":{},"callee":{}}"#;

/// A caller, and callees that have not registered yet.
struct Hall {
    rig: Rig,
    uri: String,
    caller: usize,
    callees: Vec<usize>,
    registration: u64,
    /// Requests of the caller, and of each callee.
    requests: Vec<u64>,
    realm: &'static str,
}

/// Where the parts of a history are.
#[derive(Clone, Copy, Debug)]
struct Places {
    home: u64,
    caller: usize,
    callees: [usize; 3],
    realm: &'static str,
}

impl Hall {
    fn new(places: Places, roles: &str) -> Self {
        let mut rig = Rig::new(2, |config| config.timeouts.ping_interval = Duration::from_secs(86_400));
        let hello = |roles: &str| format!("[1,\"{}\",{{\"roles\":{roles}}}]", places.realm);
        let callees: Vec<usize> =
            places.callees.iter().map(|shard| connect(&mut rig, *shard, &[&hello(roles)])).collect();
        let caller = connect(&mut rig, places.caller, &[&hello(ABLE)]);
        rig.run();
        for at in callees.iter().chain([&caller]) {
            messages(&mut rig, *at);
        }
        let id = |uri: &str| route_id(RealmId::of(places.realm), RouteKind::Procedure, Match::Exact, uri);
        let mut uris = (0..).map(|n| format!("com.example.p{n}"));
        let uri = uris.find(|uri| id(uri) % 2 == places.home).expect("every shard is some procedure's home");
        let (registration, realm) = (id(&uri), places.realm);
        Self { rig, uri, caller, callees, registration, requests: vec![0; 4], realm }
    }

    /// What a callee gets for a REGISTER with these options.
    fn register(&mut self, callee: usize, options: &str) -> Value {
        let request = self.next(callee);
        self.callee(callee, &format!("[64,{request},{options},\"{}\"]", self.uri));
        let mut heard = self.callee_hears(callee);
        heard.pop().expect("it is answered")
    }

    fn register_all(&mut self, options: &str) {
        for callee in 0..self.callees.len() {
            let answer = self.register(callee, options);
            assert_eq!((&answer[0], &answer[2]), (&65.into(), &self.registration.into()), "{answer}");
        }
    }

    /// The next request id of a callee, or of the caller (3).
    fn next(&mut self, who: usize) -> u64 {
        self.requests[who] += 1;
        self.requests[who]
    }

    fn callee(&mut self, callee: usize, says: &str) {
        self.rig.receive(self.callees[callee], &frames(&[says]));
        self.rig.run();
    }

    fn callee_hears(&mut self, callee: usize) -> Vec<Value> {
        let heard = messages(&mut self.rig, self.callees[callee]);
        heard.iter().map(|text| serde_json::from_str(text).expect("JSON")).collect()
    }

    fn caller_hears(&mut self) -> Vec<Value> {
        let heard = messages(&mut self.rig, self.caller);
        heard.iter().map(|text| serde_json::from_str(text).expect("JSON")).collect()
    }

    fn say(&mut self, says: &str) {
        self.rig.receive(self.caller, &frames(&[says]));
        self.rig.run();
    }

    /// A CALL and its request id.
    fn call(&mut self, options: &str) -> u64 {
        let request = self.next(3);
        self.say(&format!("[48,{request},{options},\"{}\",[{request}]]", self.uri));
        request
    }

    /// Who got an INVOCATION, and the message.
    fn invoked(&mut self) -> Option<(usize, Value)> {
        let mut all = Vec::new();
        for callee in 0..self.callees.len() {
            all.extend(self.callee_hears(callee).into_iter().map(|message| (callee, message)));
        }
        assert!(all.len() <= 1, "one callee is invoked, once: {all:?}");
        let (callee, message) = all.pop()?;
        assert_eq!((&message[0], &message[2]), (&68.into(), &self.registration.into()), "{message}");
        Some((callee, message))
    }

    /// The callee of a call, which it answers.
    fn serve(&mut self, options: &str) -> usize {
        let request = self.call(options);
        let (callee, invocation) = self.invoked().expect("somebody is called");
        assert_eq!(invocation[4][0], request, "the payload is that of the call");
        self.callee(callee, &format!("[70,{},{{}},[\"by {callee}\"]]", invocation[1]));
        let heard = self.caller_hears();
        assert_eq!(heard, [serde_json::json!([50, request, {}, [format!("by {callee}")]])]);
        callee
    }

    /// The URI of the ERROR that a call gets at once.
    fn refused(&mut self, options: &str) -> String {
        let request = self.call(options);
        self.error_of(request)
    }

    fn error_of(&mut self, request: u64) -> String {
        let heard = self.caller_hears();
        assert_eq!(heard.len(), 1, "{heard:?}");
        assert_eq!((&heard[0][0], &heard[0][2]), (&8.into(), &request.into()), "{heard:?}");
        heard[0][4].as_str().expect("a URI").to_owned()
    }

    /// A callee answers an invocation with `wamp.error.unavailable`.
    fn unavailable(&mut self, callee: usize, invocation: &Value) {
        self.callee(callee, &format!("[8,68,{},{{}},\"wamp.error.unavailable\",[\"busy\"]]", invocation[1]));
    }
}

/// Every place in both degrees of strictness.
fn everywhere(roles: &str, history: impl Fn(&mut Hall)) {
    for home in [0, 1] {
        for caller in [0, 1] {
            for callees in [[0, 0, 0], [1, 1, 1], [0, 1, 0]] {
                for realm in ["realm1", "strict"] {
                    let mut hall = Hall::new(Places { home, caller, callees, realm }, roles);
                    history(&mut hall);
                    hall.rig.check_empty();
                }
            }
        }
    }
}

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
    let places = Places { home: 0, caller: 0, callees: [0, 1, 0], realm: "realm1" };
    let mut hall = Hall::new(places, PLAIN);
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
        let realm = RealmId::of(hall.realm);
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
        for realm in ["realm1", "strict"] {
            let places = Places { home: 0, caller: 0, callees: [0, 0, 1], realm };
            let mut hall = Hall::new(places, ABLE);
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
        let places = Places { home: 0, caller: 0, callees: [0, 0, 1], realm: "realm1" };
        let mut hall = Hall::new(places, ABLE);
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
