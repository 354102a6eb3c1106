//! The rules of the basic profile, message by message, with both peers in every place. Sections are the specification's.

use super::places::{PLACES, Place, everywhere};
use super::rig::Rig;
use super::{connect, frames, hello, messages};
use serde_json::{Value, json};

const ROLES: &str = r#"{"caller":{},"callee":{},"publisher":{},"subscriber":{}}"#;
/// "IDs": the greatest one.
const ID_MAX: u64 = 1 << 53;

/// Two sessions, in the order of their places.
struct Two {
    rig: Rig,
    peers: [usize; 2],
}

impl Two {
    fn new(place: &Place, realm: &str) -> Self {
        let mut rig = place.rig(|_| {});
        let hello = hello(realm, ROLES);
        let peers = [place.first, place.second].map(|shard| connect(&mut rig, shard, &[&hello]));
        rig.run();
        let mut two = Self { rig, peers };
        for peer in [0, 1] {
            assert_eq!(two.hears(peer)[0][0], 2);
        }
        two
    }

    fn says(&mut self, peer: usize, messages: &[&str]) {
        self.rig.receive(self.peers[peer], &frames(messages));
        self.rig.run();
    }

    fn hears(&mut self, peer: usize) -> Vec<Value> {
        let heard = messages(&mut self.rig, self.peers[peer]);
        heard.iter().map(|text| serde_json::from_str(text).expect("JSON")).collect()
    }

    /// What a peer hears for one message: one answer.
    fn asks(&mut self, peer: usize, message: &str) -> Value {
        self.says(peer, &[message]);
        let heard = self.hears(peer);
        assert_eq!(heard.len(), 1, "{message} is answered once: {heard:?}");
        heard.into_iter().next().expect("an answer")
    }

    fn end(mut self) {
        self.rig.check_empty();
    }
}

/// An ERROR for a request.
fn is_error(message: &Value, code: u64, request: u64, uri: &str) -> bool {
    (&message[0], &message[1], &message[2], &message[4])
        == (&8.into(), &code.into(), &request.into(), &uri.into())
}

fn in_every_place(history: impl Fn(&mut Two)) {
    everywhere(|place, realm| {
        let mut two = Two::new(place, realm);
        history(&mut two);
        two.end();
    });
}

/// "Protocol Errors": what no session may send once it is established, and whether only a strict realm minds.
const VIOLATIONS: [(&str, bool); 34] = [
    // HELLO, WELCOME and CHALLENGE in a session.
    (r#"[1,"realm1",{"roles":{"caller":{}}}]"#, false),
    ("[2,1,{}]", false),
    (r#"[4,"ticket",{}]"#, false),
    // ERROR for what a client does not answer.
    (r#"[8,48,1,{},"com.example.e"]"#, false),
    (r#"[8,1,1,{},"com.example.e"]"#, false),
    (r#"[8,0,1,{},"com.example.e"]"#, false),
    // What only routers say.
    ("[33,4,1]", false),
    ("[35,4]", false),
    ("[17,4,1]", false),
    ("[36,1,1,{}]", false),
    ("[50,4,{}]", false),
    ("[65,4,1]", false),
    ("[67,4]", false),
    ("[68,4,1,{}]", false),
    ("[69,4,{}]", false),
    // Answers to no invocation.
    ("[70,99,{}]", false),
    (r#"[8,68,99,{},"com.example.e"]"#, false),
    // Not the next id of the session.
    (r#"[32,9,{},"com.example.t"]"#, true),
    ("[34,9,1]", true),
    (r#"[16,9,{},"com.example.t"]"#, true),
    (r#"[64,9,{},"com.example.q"]"#, true),
    ("[66,9,1]", true),
    (r#"[48,9,{},"com.example.q"]"#, true),
    // No id at all.
    (r#"[48,0,{},"com.example.q"]"#, false),
    (r#"[48,9007199254740993,{},"com.example.q"]"#, false),
    // No message.
    ("[]", false),
    ("[99,4]", false),
    ("[32,4]", false),
    (r#"[32,"4",{},"com.example.t"]"#, false),
    (r#"[32,4,[],"com.example.t"]"#, false),
    (r#"[16,4,{},"com.example.t",{}]"#, false),
    ("no JSON", false),
    // Features that were not announced.
    (r#"[48,4,{"progress":true},"com.example.q"]"#, true),
    (r#"[16,4,{"ppt_scheme":"x_own"},"com.example.t",["x"]]"#, true),
];

/// The offender has a subscription, a registration and a call each way. All of it ends with its session, wherever the other
/// peer is, and that one notices nothing else.
#[test]
fn who_breaks_the_protocol_is_told_and_loses_everything_and_nobody_else_anything() {
    for (offence, only_strict) in VIOLATIONS {
        everywhere(|place, realm| {
            if only_strict && realm != "strict" {
                return;
            }
            let mut two = Two::new(place, realm);
            let own = [r#"[32,1,{},"com.example.t"]"#, r#"[64,2,{},"com.example.p"]"#];
            two.says(0, &own);
            two.says(1, &[r#"[32,1,{},"com.example.other"]"#, r#"[64,2,{},"com.example.other"]"#]);
            two.says(0, &[r#"[48,3,{},"com.example.other"]"#]);
            two.says(1, &[r#"[48,3,{},"com.example.p"]"#]);
            two.hears(0);
            two.hears(1);
            // Nothing of what follows the offence is looked at.
            two.says(0, &[offence, r#"[16,4,{},"com.example.other",["after"]]"#]);
            let heard = two.hears(0);
            assert_eq!(heard.len(), 1, "{offence}: {heard:?}");
            assert_eq!((&heard[0][0], &heard[0][2]), (&3.into(), &"wamp.error.protocol_violation".into()));
            let heard = two.hears(1);
            assert_eq!(heard.len(), 1, "{offence}: its call ends, and it hears of nothing else: {heard:?}");
            assert!(is_error(&heard[0], 48, 3, "wamp.error.canceled"), "{heard:?}");
            let answer = two.asks(1, r#"[48,4,{},"com.example.p"]"#);
            assert_eq!(answer[4], "wamp.error.no_such_procedure");
            assert_eq!(two.asks(1, r#"[64,5,{},"com.example.p"]"#)[0], 65, "the procedure is free");
            // A late answer to the call of one that is gone.
            two.says(1, &["[70,1,{}]"]);
            assert_eq!(two.asks(1, r#"[16,6,{"acknowledge":true},"com.example.t"]"#)[0], 17);
            assert!(two.hears(0).is_empty());
            two.end();
        });
    }
}

/// "Protocol Errors", "Session Establishment": HELLO comes first.
#[test]
fn before_the_session_is_established_only_hello_is_taken() {
    for first in [
        r#"[6,{},"wamp.close.close_realm"]"#,
        r#"[8,68,1,{},"com.example.e"]"#,
        "[33,1,1]",
        "[35,1]",
        "[17,1,1]",
        "[50,1,{}]",
        "[65,1,1]",
        "[67,1]",
        "[68,1,1,{}]",
        r#"[48,1,{},"com.example.p"]"#,
        r#"[16,1,{},"com.example.t"]"#,
        "[70,1,{}]",
        r#"[5,"signature",{}]"#,
    ] {
        let mut rig = Rig::new(2, |_| {});
        let at = connect(&mut rig, 0, &[first, &hello("realm1", ROLES)]);
        rig.run();
        let heard = messages(&mut rig, at);
        assert_eq!(heard.len(), 1, "{first}: {heard:?}");
        assert!(
            heard[0].starts_with("[3,") && heard[0].contains("wamp.error.protocol_violation"),
            "{heard:?}"
        );
        rig.check_empty();
    }
}

/// "HELLO" and "Feature Announcement" give each detail its type.
#[test]
fn details_of_hello_have_their_types_in_strict_realms() {
    for details in [
        r#""roles":{"caller":{"features":5}}"#,
        r#""roles":{"caller":{"features":{"call_timeout":"yes"}}}"#,
        r#""roles":{"caller":{}},"agent":5"#,
        r#""roles":{"caller":{}},"authid":[]"#,
        r#""roles":{"caller":{}},"authextra":"x""#,
    ] {
        for (realm, code) in [("realm1", "[2,"), ("strict", "[3,")] {
            let mut rig = Rig::new(2, |_| {});
            let at = connect(&mut rig, 0, &[&format!("[1,\"{realm}\",{{{details}}}]")]);
            rig.run();
            let heard = messages(&mut rig, at);
            assert!(heard[0].starts_with(code), "{details} in {realm}: {heard:?}");
            assert_eq!(heard[0].contains("wamp.error.protocol_violation"), realm == "strict");
        }
    }
}

/// "IDs": a router counts its requests to a session from 1, whoever calls.
#[test]
fn invocations_of_a_callee_are_numbered_from_one() {
    in_every_place(|two| {
        two.says(1, &[r#"[64,1,{},"com.example.p"]"#, r#"[64,2,{},"com.example.q"]"#]);
        two.hears(1);
        for request in 1..=3 {
            two.says(0, &[&format!(r#"[48,{request},{{}},"com.example.p"]"#)]);
            two.says(1, &[&format!(r#"[48,{},{{}},"com.example.q"]"#, request + 2)]);
        }
        let heard = two.hears(1);
        let ids: Vec<u64> = heard.iter().filter_map(|message| message[1].as_u64()).collect();
        assert_eq!(ids, [1, 2, 3, 4, 5, 6]);
        let answers: Vec<String> = (1..=6).map(|id| format!("[70,{id},{{}}]")).collect();
        two.says(1, &answers.iter().map(String::as_str).collect::<Vec<_>>());
        // "IDs": an answer mirrors the id of its request.
        let results: Vec<Value> = two.hears(0).into_iter().map(|message| message[1].clone()).collect();
        assert_eq!(results, [1, 2, 3]);
    });
}

/// "Publish and Subscribe", "IDs": one publication has one id, on every subscription; a subscription has one, too.
#[test]
fn a_publication_has_one_id_and_comes_once_to_each_subscription() {
    in_every_place(|two| {
        let exact = two.asks(1, r#"[32,1,{},"com.example.a"]"#)[2].as_u64().expect("an id");
        assert_eq!(two.asks(1, r#"[32,2,{},"com.example.a"]"#)[2], exact, "the same subscription");
        assert_eq!(two.asks(0, r#"[32,1,{},"com.example.a"]"#)[2], exact, "for everybody");
        let prefix = two.asks(1, r#"[32,3,{"match":"prefix"},"com.ex"]"#)[2].as_u64().expect("an id");
        let wildcard = two.asks(1, r#"[32,4,{"match":"wildcard"},"com..a"]"#)[2].as_u64().expect("an id");
        let published = two.asks(0, r#"[16,2,{"acknowledge":true},"com.example.a",[1],{"k":2}]"#);
        let publication = published[2].as_u64().expect("an id");
        assert!((1..=ID_MAX).contains(&publication));
        let mut events = two.hears(1);
        events.sort_by_key(|event| event[1].as_u64());
        let mut expected = [
            json!([36, exact, publication, {}, [1], {"k": 2}]),
            json!([36, prefix, publication, {"topic": "com.example.a"}, [1], {"k": 2}]),
            json!([36, wildcard, publication, {"topic": "com.example.a"}, [1], {"k": 2}]),
        ];
        expected.sort_by_key(|event| event[1].as_u64());
        assert_eq!(events, expected);
        // A prefix is one of the string, a wildcard one of components.
        two.says(0, &[r#"[16,3,{},"com.exotic"]"#, r#"[16,4,{},"com.b.a"]"#, r#"[16,5,{},"com.b.c.a"]"#]);
        let events: Vec<u64> = two.hears(1).iter().filter_map(|event| event[1].as_u64()).collect();
        assert_eq!(events, [prefix, wildcard]);
    });
}

/// "Publisher Exclusion".
#[test]
fn a_publisher_is_excluded_unless_it_wants_its_events() {
    in_every_place(|two| {
        let topic = r#"[32,1,{},"com.example.t"]"#;
        let ids = [0, 1].map(|peer| two.asks(peer, topic)[2].clone());
        assert_eq!(ids[0], ids[1]);
        for (request, options, included) in
            [(2, "{}", 0), (3, r#"{"exclude_me":true}"#, 0), (4, r#"{"exclude_me":false}"#, 1)]
        {
            two.says(0, &[&format!(r#"[16,{request},{options},"com.example.t"]"#)]);
            assert_eq!(two.hears(0).len(), included, "{options}");
            assert_eq!(two.hears(1).len(), 1, "{options}");
        }
    });
}

/// "Publish and Subscribe": only what asks for it is acknowledged, be it done or refused.
#[test]
fn a_publication_is_acknowledged_when_that_is_asked_for() {
    in_every_place(|two| {
        two.says(1, &[r#"[32,1,{},"com.example.t"]"#]);
        two.hears(1);
        two.says(
            0,
            &[
                r#"[16,1,{},"com.example.t"]"#,
                r#"[16,2,{"acknowledge":false},"com.example.t"]"#,
                r#"[16,3,{},"com..t"]"#,
                r#"[16,4,{},"wamp.own"]"#,
            ],
        );
        assert!(two.hears(0).is_empty());
        assert_eq!(two.hears(1).len(), 2);
        let published = two.asks(0, r#"[16,5,{"acknowledge":true},"com.example.t"]"#);
        assert_eq!((&published[0], &published[1]), (&17.into(), &5.into()));
        assert_eq!(two.hears(1).len(), 1);
        let refused = two.asks(0, r#"[16,6,{"acknowledge":true},"com..t"]"#);
        assert!(is_error(&refused, 16, 6, "wamp.error.invalid_uri"), "{refused}");
        assert!(two.hears(1).is_empty());
    });
}

/// "URIs": components that are empty, hold whitespace or `#`; and those of the router.
#[test]
fn a_uri_that_breaks_the_rules_is_refused() {
    for bad in ["", ".", "a.", ".a", "a..b", "a b", "a.b\\tc", "a#b", "a.#"] {
        for realm in ["realm1", "strict"] {
            let mut two = Two::new(&PLACES[0], realm);
            for (request, (code, options)) in
                (1..).zip([(32, "{}"), (64, "{}"), (48, "{}"), (16, r#"{"acknowledge":true}"#)])
            {
                let answer = two.asks(0, &format!(r#"[{code},{request},{options},"{bad}"]"#));
                assert!(is_error(&answer, code, request, "wamp.error.invalid_uri"), "{bad}: {answer}");
            }
            two.end();
        }
    }
}

/// "Ordering Guarantees": of one publisher's events to one subscriber, over all topics, and of one caller's invocations of one
/// callee, over all procedures.
#[test]
fn what_one_peer_sends_another_arrives_in_order() {
    in_every_place(|two| {
        two.says(1, &[r#"[32,1,{},"com.a"]"#, r#"[32,2,{"match":"prefix"},"com.b"]"#]);
        two.says(1, &[r#"[64,3,{},"com.p"]"#, r#"[64,4,{},"com.q"]"#]);
        two.hears(1);
        let message = |n: u64| match n % 4 {
            0 => format!(r#"[16,{n},{{}},"com.a",[{n}]]"#),
            1 => format!(r#"[16,{n},{{}},"com.b.c",[{n}]]"#),
            2 => format!(r#"[48,{n},{{}},"com.p",[{n}]]"#),
            _ => format!(r#"[48,{n},{{}},"com.q",[{n}]]"#),
        };
        let all: Vec<String> = (1..=80).map(message).collect();
        two.says(0, &all.iter().map(String::as_str).collect::<Vec<_>>());
        let heard = two.hears(1);
        for code in [36, 68] {
            let of_code = heard.iter().filter(|message| message[0] == code);
            let numbers: Vec<u64> = of_code.filter_map(|message| message[4][0].as_u64()).collect();
            let sent = (1..=80).filter(|n| (n % 4 < 2) == (code == 36));
            assert_eq!(numbers, sent.collect::<Vec<_>>());
        }
    });
}

/// "Subscribing and Unsubscribing", "Registering and Unregistering": SUBSCRIBED is before the first EVENT and UNSUBSCRIBED
/// after the last one; a call that was invoked is answered although its procedure is gone.
#[test]
fn what_was_given_up_brings_nothing_more() {
    in_every_place(|two| {
        let subscription = two.asks(1, r#"[32,1,{},"com.t"]"#)[2].clone();
        let registration = two.asks(1, r#"[64,2,{},"com.p"]"#)[2].clone();
        two.says(0, &[r#"[48,1,{},"com.p"]"#]);
        assert_eq!(two.hears(1)[0][0], 68);
        assert_eq!(two.asks(1, &format!("[34,3,{subscription}]")), json!([35, 3]));
        assert_eq!(two.asks(1, &format!("[66,4,{registration}]")), json!([67, 4]));
        two.says(0, &[r#"[16,2,{},"com.t"]"#]);
        assert_eq!(two.asks(0, r#"[48,3,{},"com.p"]"#)[4], "wamp.error.no_such_procedure");
        assert!(two.hears(1).is_empty());
        two.says(1, &["[70,1,{},[7]]"]);
        assert_eq!(two.hears(0), [json!([50, 1, {}, [7]])]);
        let again = two.asks(1, &format!("[34,5,{subscription}]"));
        assert!(is_error(&again, 34, 5, "wamp.error.no_such_subscription"), "{again}");
        let again = two.asks(1, &format!("[66,6,{registration}]"));
        assert!(is_error(&again, 66, 6, "wamp.error.no_such_registration"), "{again}");
    });
}

/// "Session Closing", "Call Invocations, callee leaving": however a session ends, its calls do, and GOODBYE alone is answered.
#[test]
fn a_session_ends_with_what_it_had() {
    for ends in [r#"[6,{},"wamp.close.close_realm"]"#, r#"[3,{},"com.example.enough"]"#, ""] {
        in_every_place(|two| {
            two.says(1, &[r#"[64,1,{},"com.p"]"#, r#"[32,2,{},"com.t"]"#]);
            two.hears(1);
            two.says(0, &[r#"[48,1,{},"com.p"]"#]);
            assert_eq!(two.hears(1)[0][0], 68);
            if ends.is_empty() {
                two.rig.close(two.peers[1]);
                two.rig.run();
            } else {
                two.says(1, &[ends]);
            }
            let heard = two.hears(1);
            if ends.starts_with("[6") {
                assert_eq!(heard, [json!([6, {}, "wamp.close.goodbye_and_out"])]);
            } else {
                assert!(heard.is_empty(), "an ABORT is not answered: {heard:?}");
            }
            let heard = two.hears(0);
            assert!(heard.len() == 1 && is_error(&heard[0], 48, 1, "wamp.error.canceled"), "{heard:?}");
            two.says(0, &[r#"[16,2,{},"com.t"]"#]);
            assert_eq!(two.asks(0, r#"[48,3,{},"com.p"]"#)[4], "wamp.error.no_such_procedure");
            assert!(two.hears(1).is_empty());
        });
    }
}

/// "Call Results", "Call Errors": what a callee says goes to the caller unchanged.
#[test]
fn results_and_errors_reach_the_caller_as_they_were_said() {
    in_every_place(|two| {
        let registration = two.asks(1, r#"[64,1,{},"com.p"]"#)[2].clone();
        for (request, payload) in
            (1..).zip(["", ",[]", r#",[1,"two",null,[3.5]]"#, r#",[],{"k":{"l":[true]}}"#])
        {
            two.says(0, &[&format!(r#"[48,{request},{{}},"com.p"{payload}]"#)]);
            let heard = two.hears(1);
            let sent: Value =
                serde_json::from_str(&format!("[68,{request},{registration},{{}}{payload}]")).expect("JSON");
            assert_eq!(heard, [sent]);
            let answer = if request % 2 == 0 {
                format!(r#"[8,68,{request},{{}},"com.example.no"{payload}]"#)
            } else {
                format!("[70,{request},{{}}{payload}]")
            };
            two.says(1, &[&answer]);
            let expected = answer.replacen("[8,68,", "[8,48,", 1).replacen("[70,", "[50,", 1);
            assert_eq!(two.hears(0), [serde_json::from_str::<Value>(&expected).expect("JSON")]);
        }
    });
}

/// "URIs": an error has a valid one, whatever a callee says; the caller would break off.
#[test]
fn an_error_without_a_valid_uri_is_told_with_one() {
    in_every_place(|two| {
        two.asks(1, r#"[64,1,{},"com.p"]"#);
        let long = "x".repeat(2_000);
        for (request, uri) in (1..).zip(["", "a b", "a..b", "a#", &long]) {
            two.says(0, &[&format!(r#"[48,{request},{{}},"com.p"]"#)]);
            two.hears(1);
            two.says(1, &[&format!(r#"[8,68,{request},{{}},"{uri}",["why"]]"#)]);
            assert_eq!(two.hears(0), [json!([8, 48, request, {}, "wamp.error.invalid_uri", ["why"]])]);
        }
    });
}
