//! A caller and callees that may share a registration, on shards of one node or of two.

use super::places::{self, PLACES, Place, REALMS};
use super::rig::Rig;
use super::{connect, frames, hello, messages};
use common::ids::{Match, RealmId, RouteKind, route_id};
use serde_json::Value;

/// Announces everything.
pub const ABLE: &str = r#"{"caller":{"features":{"progressive_call_invocations":true}},
    "callee":{"features":{"call_canceling":true,"progressive_call_results":true,"progressive_call_invocations":true,
    "registration_revocation":true,"call_reroute":true}}}"#;
/// Announces nothing.
pub const PLAIN: &str = r#"{"caller":{},"callee":{}}"#;

/// A caller, and callees that have not registered yet.
pub struct Hall {
    pub rig: Rig,
    pub uri: String,
    pub caller: usize,
    pub callees: Vec<usize>,
    pub registration: u64,
    /// Requests of the caller, and of each callee.
    pub requests: Vec<u64>,
    pub realm: String,
}

/// Where the parts of a history are: the caller is the first of the place.
#[derive(Clone, Copy, Debug)]
pub struct Seats<'a> {
    pub place: Place,
    pub callees: [usize; 3],
    /// The procedure's home shard in each node.
    pub home: u64,
    pub realm: &'a str,
}

impl Hall {
    pub fn new(seats: Seats<'_>, roles: &str) -> Self {
        let mut rig = seats.place.rig(|_| {});
        let hello = |roles| hello(seats.realm, roles);
        let callees: Vec<usize> =
            seats.callees.iter().map(|shard| connect(&mut rig, *shard, &[&hello(roles)])).collect();
        let caller = connect(&mut rig, seats.place.first, &[&hello(ABLE)]);
        rig.run();
        for at in callees.iter().chain([&caller]) {
            messages(&mut rig, *at);
        }
        let id = |uri: &str| route_id(RealmId::of(seats.realm), RouteKind::Procedure, Match::Exact, uri);
        let mut uris = (0..).map(|n| format!("com.example.p{n}"));
        let uri = uris.find(|uri| id(uri) % 2 == seats.home).expect("every shard is some procedure's home");
        let (registration, realm) = (id(&uri), seats.realm.to_owned());
        Self { rig, uri, caller, callees, registration, requests: vec![0; 4], realm }
    }

    /// What a callee gets for a REGISTER with these options.
    pub fn register(&mut self, callee: usize, options: &str) -> Value {
        let request = self.next(callee);
        self.callee(callee, &format!("[64,{request},{options},\"{}\"]", self.uri));
        let mut heard = self.callee_hears(callee);
        heard.pop().expect("it is answered")
    }

    pub fn register_all(&mut self, options: &str) {
        for callee in 0..self.callees.len() {
            let answer = self.register(callee, options);
            assert_eq!((&answer[0], &answer[2]), (&65.into(), &self.registration.into()), "{answer}");
        }
    }

    /// The next request id of a callee, or of the caller (3).
    pub fn next(&mut self, who: usize) -> u64 {
        self.requests[who] += 1;
        self.requests[who]
    }

    pub fn callee(&mut self, callee: usize, says: &str) {
        self.rig.receive(self.callees[callee], &frames(&[says]));
        self.rig.run();
    }

    pub fn callee_hears(&mut self, callee: usize) -> Vec<Value> {
        let heard = messages(&mut self.rig, self.callees[callee]);
        heard.iter().map(|text| serde_json::from_str(text).expect("JSON")).collect()
    }

    pub fn caller_hears(&mut self) -> Vec<Value> {
        let heard = messages(&mut self.rig, self.caller);
        heard.iter().map(|text| serde_json::from_str(text).expect("JSON")).collect()
    }

    pub fn say(&mut self, says: &str) {
        self.rig.receive(self.caller, &frames(&[says]));
        self.rig.run();
    }

    /// A CALL and its request id.
    pub fn call(&mut self, options: &str) -> u64 {
        let request = self.next(3);
        self.say(&format!("[48,{request},{options},\"{}\",[{request}]]", self.uri));
        request
    }

    /// Who got an INVOCATION, and the message.
    pub fn invoked(&mut self) -> Option<(usize, Value)> {
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
    pub fn serve(&mut self, options: &str) -> usize {
        let request = self.call(options);
        let (callee, invocation) = self.invoked().expect("somebody is called");
        assert_eq!(invocation[4][0], request, "the payload is that of the call");
        self.callee(callee, &format!("[70,{},{{}},[\"by {callee}\"]]", invocation[1]));
        let heard = self.caller_hears();
        assert_eq!(heard, [serde_json::json!([50, request, {}, [format!("by {callee}")]])]);
        callee
    }

    /// The URI of the ERROR that a call gets at once.
    pub fn refused(&mut self, options: &str) -> String {
        let request = self.call(options);
        self.error_of(request)
    }

    pub fn error_of(&mut self, request: u64) -> String {
        let heard = self.caller_hears();
        assert_eq!(heard.len(), 1, "{heard:?}");
        assert_eq!((&heard[0][0], &heard[0][2]), (&8.into(), &request.into()), "{heard:?}");
        heard[0][4].as_str().expect("a URI").to_owned()
    }

    /// A callee answers an invocation with `wamp.error.unavailable`.
    pub fn unavailable(&mut self, callee: usize, invocation: &Value) {
        self.callee(callee, &format!("[8,68,{},{{}},\"wamp.error.unavailable\",[\"busy\"]]", invocation[1]));
    }
}

/// All callees at the second peer's shard, and one of them at its neighbour.
pub fn everywhere(roles: &str, history: impl Fn(&mut Hall)) {
    places::everywhere(|place, realm| {
        let (second, neighbour) = (place.second, place.second ^ 1);
        for callees in [[second; 3], [second, neighbour, second]] {
            for home in [0, 1] {
                run(Seats { place: *place, callees, home, realm }, roles, &history);
            }
        }
    });
}

/// The caller on the first of two nodes, callees 0 and 2 on the second one and callee 1 on the first.
pub fn apart(roles: &str, history: impl Fn(&mut Hall)) {
    for home in [0, 1] {
        for callees in [[2, 0, 3], [3, 1, 3]] {
            for realm in REALMS {
                run(Seats { place: PLACES[3], callees, home, realm }, roles, &history);
            }
        }
    }
}

fn run(seats: Seats<'_>, roles: &str, history: impl Fn(&mut Hall)) {
    places::named(&seats, || {
        let mut hall = Hall::new(seats, roles);
        history(&mut hall);
        hall.rig.check_empty();
    });
}
