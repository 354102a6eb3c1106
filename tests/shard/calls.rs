//! Calls with more to them than one question and one answer (WAMP, advanced profile): each history with both peers on one
//! shard, on two, and on two nodes.

use super::places::{self, PLACES, Place, REALMS};
use super::rig::Rig;
use super::{connect, frames, hello, messages};
use common::ids::{Match, RealmId, RouteKind, route_id};
use dataplane::feed::FeedDown;
use serde_json::{Value, json};
use std::time::Duration;

/// Announces everything.
const ABLE: &str = r#"{"caller":{"features":{"progressive_call_invocations":true,"payload_passthru_mode":true}},
    "callee":{"features":{"call_canceling":true,"progressive_call_results":true,"progressive_call_invocations":true,
    "payload_passthru_mode":true,"registration_revocation":true}}}"#;
/// Announces nothing.
const PLAIN: &str = r#"{"caller":{},"callee":{}}"#;

const PROCEDURE: &str = "com.example.p";

/// A caller and a callee with one registration.
struct Pair {
    rig: Rig,
    caller: usize,
    callee: usize,
    registration: u64,
    is_strict: bool,
}

impl Pair {
    fn new(place: &Place, realm: &str, callee: &str, register: &str) -> Self {
        let mut rig = place.rig(|_| {});
        let register = format!("[64,1,{register},\"{PROCEDURE}\"]");
        let callee = connect(&mut rig, place.second, &[&hello(realm, callee), &register]);
        rig.run();
        let caller = connect(&mut rig, place.first, &[&hello(realm, ABLE)]);
        rig.run();
        messages(&mut rig, callee);
        messages(&mut rig, caller);
        let id = RealmId::of(realm);
        let registration = route_id(id, RouteKind::Procedure, Match::Exact, PROCEDURE);
        Self { rig, caller, callee, registration, is_strict: realm == "strict" }
    }

    fn caller(&mut self, says: &[&str]) {
        self.rig.receive(self.caller, &frames(says));
        self.rig.run();
    }

    fn callee(&mut self, says: &[&str]) {
        self.rig.receive(self.callee, &frames(says));
        self.rig.run();
    }

    fn caller_hears(&mut self, expected: &[&str]) {
        assert_eq!(messages(&mut self.rig, self.caller), expected);
    }

    /// `REG` stands for the registration id.
    fn callee_hears(&mut self, expected: &[&str]) {
        let registration = self.registration.to_string();
        let expected: Vec<String> = expected.iter().map(|text| text.replace("REG", &registration)).collect();
        assert_eq!(messages(&mut self.rig, self.callee), expected);
    }

    /// Nothing is pending once everybody has left.
    fn end(mut self) {
        self.rig.check_empty();
    }
}

fn everywhere(callee: &str, register: &str, history: impl Fn(&mut Pair)) {
    places::everywhere(|place, realm| {
        let mut pair = Pair::new(place, realm, callee, register);
        history(&mut pair);
        pair.end();
    });
}

#[test]
fn progressive_results_come_before_the_last_one_to_callers_that_want_them() {
    everywhere(ABLE, "{}", |pair| {
        pair.caller(&[r#"[48,1,{"receive_progress":true},"com.example.p"]"#]);
        pair.callee_hears(&[r#"[68,1,REG,{"receive_progress":true}]"#]);
        pair.callee(&[
            r#"[70,1,{"progress":true},[1]]"#,
            r#"[70,1,{"progress":true},[2]]"#,
            r#"[70,1,{},[3]]"#,
        ]);
        pair.caller_hears(&[
            r#"[50,1,{"progress":true},[1]]"#,
            r#"[50,1,{"progress":true},[2]]"#,
            r#"[50,1,{},[3]]"#,
        ]);
        pair.caller(&[r#"[48,2,{},"com.example.p"]"#]);
        pair.callee_hears(&["[68,2,REG,{}]"]);
        pair.callee(&[r#"[70,2,{"progress":false},["only"]]"#]);
        pair.caller_hears(&[r#"[50,2,{},["only"]]"#]);
    });
}

#[test]
fn progress_nobody_asked_for_goes_nowhere() {
    for place in &PLACES {
        let mut pair = Pair::new(place, "realm1", ABLE, "{}");
        pair.caller(&[r#"[48,1,{},"com.example.p"]"#]);
        pair.callee(&[r#"[70,1,{"progress":true},[1]]"#, r#"[70,1,{},[2]]"#]);
        pair.caller_hears(&["[50,1,{},[2]]"]);
        pair.end();
        let mut pair = Pair::new(place, "strict", ABLE, "{}");
        pair.caller(&[r#"[48,1,{},"com.example.p"]"#]);
        pair.callee(&[r#"[70,1,{"progress":true},[1]]"#]);
        pair.caller_hears(&[r#"[8,48,1,{},"wamp.error.canceled",["the callee has left"]]"#]);
        pair.end();
    }
}

#[test]
fn a_call_is_given_up_at_once_and_the_callee_is_told() {
    for mode in ["", r#""mode":"killnowait""#] {
        everywhere(ABLE, "{}", |pair| {
            pair.caller(&[r#"[48,1,{},"com.example.p"]"#, &format!("[49,1,{{{mode}}}]")]);
            pair.caller_hears(&[r#"[8,48,1,{},"wamp.error.canceled",["the call was canceled"]]"#]);
            pair.callee_hears(&[
                "[68,1,REG,{}]",
                r#"[69,1,{"mode":"killnowait","reason":"wamp.error.canceled"}]"#,
            ]);
            // Too late: it is dropped.
            pair.callee(&[r#"[70,1,{},["late"]]"#, r#"[8,68,1,{},"com.example.late"]"#]);
            pair.caller_hears(&[]);
            // As is another CANCEL.
            pair.caller(&["[49,1,{}]"]);
            pair.caller_hears(&[]);
        });
    }
}

#[test]
fn a_skipped_call_is_not_interrupted() {
    everywhere(ABLE, "{}", |pair| {
        pair.caller(&[r#"[48,1,{},"com.example.p"]"#, r#"[49,1,{"mode":"skip"}]"#]);
        pair.caller_hears(&[r#"[8,48,1,{},"wamp.error.canceled",["the call was canceled"]]"#]);
        pair.callee_hears(&["[68,1,REG,{}]"]);
        pair.callee(&[r#"[70,1,{},["late"]]"#]);
        pair.caller_hears(&[]);
    });
}

#[test]
fn a_killed_call_ends_with_what_the_callee_says() {
    everywhere(ABLE, "{}", |pair| {
        pair.caller(&[r#"[48,1,{},"com.example.p"]"#, r#"[49,1,{"mode":"kill"}]"#]);
        pair.callee_hears(&["[68,1,REG,{}]", r#"[69,1,{"mode":"kill","reason":"wamp.error.canceled"}]"#]);
        pair.caller_hears(&[]);
        pair.callee(&[r#"[8,68,1,{},"com.example.stopped",["half"]]"#]);
        pair.caller_hears(&[r#"[8,48,1,{},"com.example.stopped",["half"]]"#]);
    });
    // One that cannot be told is not waited for.
    everywhere(PLAIN, "{}", |pair| {
        pair.caller(&[r#"[48,1,{},"com.example.p"]"#, r#"[49,1,{"mode":"kill"}]"#]);
        pair.callee_hears(&["[68,1,REG,{}]"]);
        pair.caller_hears(&[r#"[8,48,1,{},"wamp.error.canceled",["the call was canceled"]]"#]);
        pair.callee(&[r#"[70,1,{},["late"]]"#]);
        pair.caller_hears(&[]);
    });
}

#[test]
fn a_call_takes_no_longer_than_its_caller_allows() {
    everywhere(ABLE, "{}", |pair| {
        pair.caller(&[
            r#"[48,1,{"timeout":500},"com.example.p"]"#,
            r#"[48,2,{"timeout":2000},"com.example.p"]"#,
            r#"[48,3,{"timeout":500},"com.example.p"]"#,
        ]);
        pair.callee_hears(&["[68,1,REG,{}]", "[68,2,REG,{}]", "[68,3,REG,{}]"]);
        pair.callee(&[r#"[70,3,{},["in time"]]"#]);
        pair.caller_hears(&[r#"[50,3,{},["in time"]]"#]);
        pair.rig.pass(Duration::from_millis(499));
        pair.rig.run();
        pair.caller_hears(&[]);
        pair.rig.pass(Duration::from_millis(1));
        pair.rig.run();
        pair.caller_hears(&[r#"[8,48,1,{},"wamp.error.timeout",["the call took longer than it may"]]"#]);
        pair.callee_hears(&[r#"[69,1,{"mode":"killnowait","reason":"wamp.error.timeout"}]"#]);
        pair.callee(&[r#"[70,1,{},["late"]]"#, r#"[70,2,{},["in time"]]"#]);
        pair.caller_hears(&[r#"[50,2,{},["in time"]]"#]);
        pair.rig.pass(Duration::from_secs(5));
        pair.rig.run();
        pair.caller_hears(&[]);
    });
}

#[test]
fn a_progressive_result_gives_the_call_its_time_again() {
    everywhere(ABLE, "{}", |pair| {
        pair.caller(&[r#"[48,1,{"timeout":500,"receive_progress":true},"com.example.p"]"#]);
        for _ in 0..3 {
            pair.rig.pass(Duration::from_millis(400));
            pair.callee(&[r#"[70,1,{"progress":true}]"#]);
            pair.caller_hears(&[r#"[50,1,{"progress":true}]"#]);
        }
        pair.rig.pass(Duration::from_millis(500));
        pair.rig.run();
        pair.caller_hears(&[r#"[8,48,1,{},"wamp.error.timeout",["the call took longer than it may"]]"#]);
    });
}

#[test]
fn the_time_of_a_call_has_a_default_and_a_bound() {
    let hello = r#"[1,"realm1",{"roles":{"caller":{},"callee":{}}}]"#;
    let mut rig = Rig::new(1, |config| {
        config.limits.call_timeout = Duration::from_secs(2);
        config.limits.call_timeout_max = Duration::from_secs(4);
    });
    connect(&mut rig, 0, &[hello, r#"[64,1,{},"com.example.p"]"#]);
    let calls = [r#"[48,1,{},"com.example.p"]"#, r#"[48,2,{"timeout":60000},"com.example.p"]"#];
    let caller = connect(&mut rig, 0, &[hello, calls[0], calls[1]]);
    rig.run();
    messages(&mut rig, caller);
    for request in [1, 2] {
        rig.pass(Duration::from_secs(2));
        rig.run();
        let expected =
            format!(r#"[8,48,{request},{{}},"wamp.error.timeout",["the call took longer than it may"]]"#);
        assert_eq!(messages(&mut rig, caller), [expected]);
    }
    rig.check_empty();
}

#[test]
fn a_callee_that_wants_it_is_told_of_the_time() {
    everywhere(PLAIN, r#"{"forward_timeout":true}"#, |pair| {
        pair.caller(&[r#"[48,1,{"timeout":700},"com.example.p"]"#]);
        pair.callee_hears(&[r#"[68,1,REG,{"timeout":700}]"#]);
        pair.callee(&[r#"[8,68,1,{},"wamp.error.timeout"]"#]);
        pair.caller_hears(&[r#"[8,48,1,{},"wamp.error.timeout"]"#]);
    });
}

#[test]
fn a_caller_that_leaves_interrupts_its_callees() {
    for goodbye in [true, false] {
        everywhere(ABLE, "{}", |pair| {
            pair.caller(&[r#"[48,1,{},"com.example.p"]"#]);
            pair.callee_hears(&["[68,1,REG,{}]"]);
            if goodbye {
                pair.caller(&[r#"[6,{},"wamp.close.close_realm"]"#]);
            } else {
                pair.rig.close(pair.caller);
                pair.rig.run();
            }
            pair.callee_hears(&[r#"[69,1,{"mode":"killnowait","reason":"wamp.error.canceled"}]"#]);
            pair.callee(&[r#"[70,1,{},["late"]]"#]);
        });
    }
    everywhere(PLAIN, "{}", |pair| {
        pair.caller(&[r#"[48,1,{},"com.example.p"]"#, r#"[6,{},"wamp.close.close_realm"]"#]);
        pair.callee_hears(&["[68,1,REG,{}]"]);
        pair.callee(&[r#"[70,1,{},["late"]]"#]);
    });
}

/// A call left once, so nobody can say whether it was done.
#[test]
fn a_call_to_a_node_that_is_lost_ends_and_so_does_its_invocation() {
    for place in PLACES.iter().filter(|place| place.is_apart()) {
        for realm in REALMS {
            let mut pair = Pair::new(place, realm, ABLE, "{}");
            let calls = [r#"[48,1,{},"com.example.p"]"#, r#"[48,2,{"timeout":5000},"com.example.p"]"#];
            pair.caller(&calls);
            pair.callee_hears(&["[68,1,REG,{}]", "[68,2,REG,{}]"]);
            pair.rig.cut();
            let error = |id: u64| {
                format!(
                    r#"[8,48,{id},{{}},"wamp.error.canceled",["the connection to the callee's node was lost"]]"#
                )
            };
            let interrupt =
                |id: u64| format!(r#"[69,{id},{{"mode":"killnowait","reason":"wamp.error.canceled"}}]"#);
            // In any order.
            let mut heard = [pair.caller, pair.callee].map(|at| messages(&mut pair.rig, at));
            heard.iter_mut().for_each(|messages| messages.sort());
            assert_eq!(heard, [[error(1), error(2)], [interrupt(1), interrupt(2)]]);
            // Over the next connection the next call goes.
            pair.rig.pass(Duration::from_millis(200));
            pair.rig.run();
            pair.caller(&[r#"[48,3,{},"com.example.p"]"#]);
            pair.callee_hears(&["[68,3,REG,{}]"]);
            pair.callee(&[r#"[70,1,{},["late"]]"#, r#"[70,3,{},["third"]]"#]);
            pair.caller_hears(&[r#"[50,3,{},["third"]]"#]);
            pair.end();
        }
    }
}

#[test]
fn calls_from_and_to_a_node_that_dies_end() {
    for place in PLACES.iter().filter(|place| place.is_apart()) {
        for realm in REALMS {
            let mut pair = Pair::new(place, realm, ABLE, "{}");
            pair.caller(&[r#"[48,1,{},"com.example.p"]"#]);
            pair.rig.kill(place.second);
            pair.caller(&[r#"[48,2,{},"com.example.p"]"#]);
            pair.caller_hears(&[
                r#"[8,48,1,{},"wamp.error.canceled",["the connection to the callee's node was lost"]]"#,
                r#"[8,48,2,{},"wamp.error.no_such_procedure",["no callee has registered com.example.p"]]"#,
            ]);
            pair.end();
            let mut pair = Pair::new(place, realm, ABLE, "{}");
            pair.caller(&[r#"[48,1,{},"com.example.p"]"#]);
            pair.rig.kill(place.first);
            let interrupt = r#"[69,1,{"mode":"killnowait","reason":"wamp.error.canceled"}]"#;
            pair.callee_hears(&["[68,1,REG,{}]", interrupt]);
            pair.callee(&[r#"[70,1,{},["late"]]"#]);
            pair.end();
        }
    }
}

#[test]
fn a_call_in_parts_is_one_invocation() {
    everywhere(ABLE, "{}", |pair| {
        pair.caller(&[
            r#"[48,1,{"progress":true,"receive_progress":true},"com.example.p",[1]]"#,
            r#"[48,2,{},"com.example.p",["other"]]"#,
            r#"[48,1,{"progress":true},"com.example.p",[2]]"#,
        ]);
        pair.callee(&[r#"[70,1,{"progress":true},["so far"]]"#]);
        pair.caller(&[r#"[48,1,{},"com.example.p",[3]]"#]);
        pair.callee_hears(&[
            r#"[68,1,REG,{"receive_progress":true,"progress":true},[1]]"#,
            r#"[68,2,REG,{},["other"]]"#,
            r#"[68,1,REG,{"receive_progress":true,"progress":true},[2]]"#,
            r#"[68,1,REG,{"receive_progress":true},[3]]"#,
        ]);
        pair.callee(&[r#"[70,1,{},["all"]]"#, "[70,2,{}]"]);
        pair.caller_hears(&[r#"[50,1,{"progress":true},["so far"]]"#, r#"[50,1,{},["all"]]"#, "[50,2,{}]"]);
    });
}

/// "Freezing of Options in Progressive Call Invocations".
#[test]
fn what_the_first_part_of_a_call_asks_for_holds_for_all() {
    let roles = ABLE.replace("\"registration_revocation\":true", "\"call_trustlevels\":true");
    for invoke in ["single", "random"] {
        let register = format!(r#"{{"match":"prefix","invoke":"{invoke}","forward_timeout":true}}"#);
        everywhere(&roles, &register, |pair| {
            pair.caller(&[
                r#"[48,1,{"progress":true,"disclose_me":true,"timeout":60000,"ppt_scheme":"x"},"com.example.p",[1]]"#,
                r#"[48,1,{"progress":true,"timeout":5,"ppt_scheme":"y","ppt_keyid":"k"},"com.example.p",[2]]"#,
                r#"[48,1,{"receive_progress":true},"com.example.p",[3]]"#,
            ]);
            let heard = messages(&mut pair.rig, pair.callee);
            let heard: Vec<Value> =
                heard.iter().map(|text| serde_json::from_str(text).expect("JSON")).collect();
            assert_eq!(heard.iter().map(|part| &part[4][0]).collect::<Vec<_>>(), [1, 2, 3]);
            let caller = &heard[0][3]["caller"];
            assert!(caller.is_u64(), "{heard:?}");
            let mut details = json!({"procedure": "com.example.p", "progress": true, "trustlevel": 0, "timeout": 60_000,
                "caller": caller, "caller_authid": heard[0][3]["caller_authid"], "caller_authrole": "anonymous",
                "ppt_scheme": "x"});
            assert_eq!((&heard[0][3], &heard[1][3]), (&details, &details));
            details.as_object_mut().expect("details").remove("progress");
            assert_eq!(heard[2][3], details);
            pair.callee(&["[70,1,{}]"]);
            pair.caller_hears(&["[50,1,{}]"]);
        });
    }
}

#[test]
fn parts_of_a_call_that_has_ended_are_ignored() {
    everywhere(ABLE, "{}", |pair| {
        pair.caller(&[r#"[48,1,{"progress":true},"com.example.p",[1]]"#]);
        pair.callee(&[r#"[8,68,1,{},"com.example.enough"]"#]);
        pair.callee_hears(&[r#"[68,1,REG,{"progress":true},[1]]"#]);
        pair.caller_hears(&[r#"[8,48,1,{},"com.example.enough"]"#]);
        pair.caller(&[
            r#"[48,1,{"progress":true},"com.example.p",[2]]"#,
            r#"[48,1,{},"com.example.p",[3]]"#,
            r#"[48,2,{},"com.example.p",["next"]]"#,
        ]);
        pair.callee_hears(&[r#"[68,2,REG,{},["next"]]"#]);
        pair.caller_hears(&[]);
    });
}

#[test]
fn the_id_of_an_open_call_is_not_used_for_another() {
    everywhere(ABLE, "{}", |pair| {
        pair.caller(&[r#"[48,1,{},"com.example.p"]"#, r#"[48,1,{},"com.example.p"]"#]);
        let heard = messages(&mut pair.rig, pair.caller);
        assert!(heard[0].contains("wamp.error.protocol_violation"), "{heard:?}");
    });
}

#[test]
fn a_callee_that_takes_no_calls_in_parts_gets_none() {
    everywhere(PLAIN, "{}", |pair| {
        pair.caller(&[r#"[48,1,{"progress":true},"com.example.p",[1]]"#]);
        pair.callee_hears(&[]);
        pair.caller_hears(&[
            r#"[8,48,1,{},"wamp.error.feature_not_supported",["the callee did not announce progressive call invocations"]]"#,
        ]);
    });
}

#[test]
fn attributes_of_a_payload_in_passthru_mode_travel_with_it() {
    let attributes =
        r#""ppt_scheme":"wamp","ppt_serializer":"cbor","ppt_cipher":"aes256gcm","ppt_keyid":"k1""#;
    everywhere(ABLE, "{}", |pair| {
        pair.caller(&[&format!(r#"[48,1,{{{attributes}}},"com.example.p",["\u0000AAE="]]"#)]);
        pair.callee_hears(&[&format!(r#"[68,1,REG,{{{attributes}}},["\u0000AAE="]]"#)]);
        pair.callee(&[&format!(r#"[70,1,{{{attributes}}},["\u0000AAI="]]"#)]);
        pair.caller_hears(&[&format!(r#"[50,1,{{{attributes}}},["\u0000AAI="]]"#)]);
        pair.caller(&[r#"[48,2,{"ppt_scheme":"mqtt"},"com.example.p"]"#]);
        pair.callee(&[r#"[8,68,2,{"ppt_scheme":"mqtt","ppt_serializer":"native"},"com.example.sad"]"#]);
        pair.caller_hears(&[r#"[8,48,2,{"ppt_scheme":"mqtt","ppt_serializer":"native"},"com.example.sad"]"#]);
    });
}

#[test]
fn callers_are_named_when_they_or_the_callee_want_it() {
    for (register, call) in [("{}", r#"{"disclose_me":true}"#), (r#"{"disclose_caller":true}"#, "{}")] {
        everywhere(PLAIN, register, |pair| {
            pair.caller(&[&format!(r#"[48,1,{call},"com.example.p"]"#)]);
            let heard = messages(&mut pair.rig, pair.callee);
            let invocation: Value = serde_json::from_str(&heard[0]).expect("JSON");
            let caller = invocation[3]["caller"].as_u64().expect("a session id");
            assert_eq!(invocation[3]["caller_authid"], format!("{caller:x}"));
            assert_eq!(invocation[3]["caller_authrole"], "anonymous");
        });
    }
}

#[test]
fn a_call_given_up_before_its_callee_is_ready_never_gets_there() {
    for mode in ["skip", "kill", "killnowait"] {
        let hello = hello("realm1", ABLE);
        let mut rig = Rig::new(2, |_| {});
        let callee = connect(&mut rig, 0, &[&hello]);
        let caller = connect(&mut rig, 0, &[&hello]);
        rig.run();
        messages(&mut rig, callee);
        messages(&mut rig, caller);
        // Two turns after the home shard has agreed the other shard has not yet heard of the route.
        rig.receive(callee, &frames(&[r#"[64,1,{},"com.example.p"]"#, r#"[64,2,{},"com.example.q"]"#]));
        let calls = [
            r#"[48,1,{},"com.example.p"]"#.to_owned(),
            r#"[48,2,{},"com.example.q"]"#.to_owned(),
            format!(r#"[49,1,{{"mode":"{mode}"}}]"#),
            format!(r#"[49,2,{{"mode":"{mode}"}}]"#),
        ];
        rig.receive(caller, &frames(&calls.iter().map(String::as_str).collect::<Vec<_>>()));
        rig.run();
        let heard = messages(&mut rig, caller);
        assert_eq!(heard.len(), 2, "{heard:?}");
        assert!(
            heard.iter().all(|error| error.contains("canceled") || error.contains("no_such_procedure")),
            "{heard:?}"
        );
        assert!(heard.iter().any(|error| error.contains("canceled")), "one was held: {heard:?}");
        let heard = messages(&mut rig, callee);
        assert!(heard.iter().all(|message| message.starts_with("[65,")), "{heard:?}");
        rig.check_empty();
    }
}

#[test]
fn a_callee_that_loses_its_registration_to_another_node_is_told() {
    for (callee, told) in [(ABLE, true), (PLAIN, false)] {
        everywhere(callee, "{}", |pair| {
            pair.caller(&[r#"[48,1,{},"com.example.p"]"#]);
            pair.callee_hears(&["[68,1,REG,{}]"]);
            let realm = RealmId::of(if pair.is_strict { "strict" } else { "realm1" });
            pair.rig.feed(&FeedDown::Revoke { realm, policy: Match::Exact, uri: PROCEDURE.into() });
            let text = r#"[67,0,{"registration":REG,"reason":"another node holds the registration"}]"#;
            pair.callee_hears(if told { std::slice::from_ref(&text) } else { &[] });
            // What it was asked before it still answers.
            pair.callee(&["[70,1,{}]"]);
            pair.caller_hears(&["[50,1,{}]"]);
            pair.caller(&[r#"[48,2,{},"com.example.p"]"#]);
            pair.caller_hears(&[
                r#"[8,48,2,{},"wamp.error.no_such_procedure",["no callee has registered com.example.p"]]"#,
            ]);
        });
    }
}
