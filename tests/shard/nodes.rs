//! What the control plane says of other nodes, seen by this node's sessions.
//!
//! Whether a shard knows a route of another node is asked with REGISTER: it is refused while a node that lives has it.

use crate::rig::node::snapshot;
use crate::rig::{Rig, realm, source};
use crate::{HELLO, connect, frames, messages};
use common::ids::{BootEpoch, Match, NodeId, RealmId, RouteKind, SnapshotVersion};
use common::link::{Peer, RouteChange};
use common::snapshot::{Route, Source};
use dataplane::feed::FeedDown;
use std::sync::Arc;
use std::time::Duration;

fn node(n: u8) -> NodeId {
    NodeId([n; 16])
}

fn peers(nodes: &[u8]) -> FeedDown {
    let peer = |n: &u8| Peer { node: node(*n), epoch: BootEpoch(1), relay: "127.0.0.1:1".into() };
    FeedDown::Peers(nodes.iter().map(peer).collect())
}

fn routes(first_seq: u64, changes: &[(u8, &str, bool)]) -> FeedDown {
    let change = |(n, uri, wanted): &(u8, &str, bool)| RouteChange {
        node: node(*n),
        realm: RealmId::of("realm1"),
        kind: RouteKind::Procedure,
        policy: Match::Exact,
        uri: (*uri).to_owned(),
        wanted: *wanted,
        share: None,
    };
    FeedDown::Routes { first_seq, changes: changes.iter().map(change).collect() }
}

fn revoke(uri: &str) -> FeedDown {
    FeedDown::Revoke { realm: RealmId::of("realm1"), policy: Match::Exact, uri: uri.into() }
}

/// A snapshot with one procedure of node 1.
fn with_procedure(version: u64, nodes_folded: u64, uri: &str) -> FeedDown {
    let route = Route {
        realm: RealmId::of("realm1"),
        kind: RouteKind::Procedure,
        policy: Match::Exact,
        uri: uri.to_owned(),
        shards: 0,
        nodes: vec![node(1)],
    };
    FeedDown::Snapshot(snapshot(&Source { nodes_folded, routes: vec![route], ..source(version) }))
}

fn empty(version: u64, nodes_folded: u64) -> FeedDown {
    FeedDown::Snapshot(snapshot(&Source { nodes_folded, ..source(version) }))
}

/// Two shards, and a session on each.
struct Pair {
    rig: Rig,
    sessions: [usize; 2],
    request: u64,
}

impl Pair {
    fn new() -> Self {
        let mut rig = Rig::new(2, |_| {});
        let revocable = r#""callee":{"features":{"registration_revocation":true}}"#;
        let hello = HELLO.replace(r#""callee":{}"#, revocable);
        let sessions = [0, 1].map(|shard| connect(&mut rig, shard, &[&hello]));
        let mut pair = Self { rig, sessions, request: 0 };
        pair.rig.run();
        pair.got(0);
        pair.got(1);
        pair
    }

    fn got(&mut self, shard: usize) -> Vec<String> {
        messages(&mut self.rig, self.sessions[shard])
    }

    /// What the session of a shard gets for a request, whose id is put for `#`.
    fn ask(&mut self, shard: usize, request: &str) -> String {
        self.request += 1;
        let request = request.replace('#', &self.request.to_string());
        self.rig.receive(self.sessions[shard], &frames(&[&request]));
        self.rig.run();
        let mut got = self.got(shard);
        assert_eq!(got.len(), 1, "{request} is answered once: {got:?}");
        got.remove(0)
    }

    /// True when every shard takes the procedure for another node's.
    fn is_held_elsewhere(&mut self, uri: &str) -> bool {
        let held = [0, 1].map(|shard| {
            let answer = self.ask(shard, &format!(r#"[64,#,{{}},"{uri}"]"#));
            if answer.contains("wamp.error.procedure_already_exists") {
                return true;
            }
            let registration = answer.rsplit([',', ']']).nth(1).expect("a REGISTERED");
            let answer = self.ask(shard, &format!("[66,#,{registration}]"));
            assert!(answer.starts_with("[67,"), "{answer}");
            false
        });
        assert_eq!(held[0], held[1], "the home shard decides for both");
        held[0]
    }
}

#[test]
fn a_registration_of_a_node_that_lives_is_not_given_twice() {
    let mut pair = Pair::new();
    for uri in ["p.a", "p.b", "p.c", "p.d"] {
        assert!(!pair.is_held_elsewhere(uri));
    }
    pair.rig.feed(&peers(&[1]));
    pair.rig.feed(&routes(1, &[(1, "p.a", true), (1, "p.b", true), (2, "p.c", true), (1, "p.b", false)]));
    assert!(pair.is_held_elsewhere("p.a"));
    assert!(!pair.is_held_elsewhere("p.b"), "given up");
    assert!(!pair.is_held_elsewhere("p.c"), "its node is down");
    pair.rig.feed(&peers(&[2]));
    assert!(!pair.is_held_elsewhere("p.a") && pair.is_held_elsewhere("p.c"));
    pair.rig.feed(&FeedDown::Unroute { seq: 5, node: node(2) });
    assert!(!pair.is_held_elsewhere("p.c"));
    pair.rig.check_empty();
}

#[test]
fn a_snapshot_stands_for_the_changes_it_names_and_no_others() {
    let mut pair = Pair::new();
    pair.rig.feed(&peers(&[1]));
    pair.rig.feed(&with_procedure(2, 3, "p.a"));
    assert!(pair.is_held_elsewhere("p.a"));
    pair.rig.feed(&routes(3, &[(1, "p.a", false)]));
    assert!(pair.is_held_elsewhere("p.a"), "change 3 is older than the snapshot");
    pair.rig.feed(&routes(4, &[(1, "p.a", false), (1, "p.b", true)]));
    assert!(!pair.is_held_elsewhere("p.a") && pair.is_held_elsewhere("p.b"));
    pair.rig.feed(&with_procedure(3, 4, "p.c"));
    assert!(pair.is_held_elsewhere("p.b"), "change 5 is newer than the snapshot");
    assert!(pair.is_held_elsewhere("p.c"));
    pair.rig.feed(&empty(4, 5));
    assert!(!pair.is_held_elsewhere("p.b") && !pair.is_held_elsewhere("p.c"));
    pair.rig.check_empty();
}

#[test]
fn changes_that_were_lost_are_made_good_by_the_next_snapshot() {
    let mut pair = Pair::new();
    pair.rig.feed(&peers(&[1]));
    pair.rig.feed(&routes(1, &[(1, "p.a", true)]));
    // 2 and 3, which took p.a back and gave p.b, never come.
    pair.rig.feed(&routes(4, &[(1, "p.c", true)]));
    assert!(pair.is_held_elsewhere("p.a") && !pair.is_held_elsewhere("p.b"));
    pair.rig.feed(&with_procedure(2, 3, "p.b"));
    assert!(!pair.is_held_elsewhere("p.a"));
    assert!(pair.is_held_elsewhere("p.b") && pair.is_held_elsewhere("p.c"));
    pair.rig.check_empty();
}

/// With and without the notice that the link is new.
#[test]
fn nothing_an_earlier_control_plane_said_survives_the_first_snapshot_of_the_next() {
    for told in [true, false] {
        let mut pair = Pair::new();
        pair.rig.feed(&peers(&[1]));
        pair.rig.feed(&with_procedure(2, 8, "p.old"));
        pair.rig.feed(&routes(9, &[(1, "p.a", true), (1, "p.b", true)]));
        if told {
            pair.rig.feed(&FeedDown::Resync);
            assert!(pair.is_held_elsewhere("p.a"), "what was known is used until then");
        }
        pair.rig.feed(&routes(1, &[(1, "p.c", true), (1, "p.b", false), (1, "p.d", true)]));
        assert!(pair.is_held_elsewhere("p.c") && !pair.is_held_elsewhere("p.b"));
        pair.rig.feed(&empty(3, 2));
        assert!(!pair.is_held_elsewhere("p.a") && !pair.is_held_elsewhere("p.old"), "told: {told}");
        assert!(!pair.is_held_elsewhere("p.c") && pair.is_held_elsewhere("p.d"), "told: {told}");
        pair.rig.check_empty();
    }
}

#[test]
fn a_callee_that_loses_its_registration_is_told_and_nobody_else() {
    let mut pair = Pair::new();
    for shard in [0, 1] {
        let answer = pair.ask(shard, r#"[64,#,{},"p.a"]"#);
        let registration: u64 = answer.rsplit([',', ']']).nth(1).and_then(|id| id.parse().ok()).unwrap();
        pair.rig.feed(&revoke("p.other"));
        pair.rig.feed(&revoke("p.a"));
        pair.rig.feed(&revoke("p.a"));
        pair.rig.run();
        let told = pair.got(shard);
        let head = format!(r#"[67,0,{{"registration":{registration},"reason":"#);
        assert!(told.len() == 1 && told[0].starts_with(&head), "{told:?}");
        assert_eq!(pair.got(1 - shard), Vec::<String>::new());
        let answer = pair.ask(1 - shard, r#"[48,#,{},"p.a"]"#);
        assert!(answer.contains("wamp.error.no_such_procedure"), "{answer}");
        let answer = pair.ask(shard, &format!("[66,#,{registration}]"));
        assert!(answer.contains("wamp.error.no_such_registration"), "{answer}");
        assert!(!pair.is_held_elsewhere("p.a"), "its home shard has it free again");
    }
    pair.rig.check_empty();
}

#[test]
fn a_callee_that_knows_no_revocation_loses_its_registration_all_the_same() {
    let mut pair = Pair::new();
    let other = connect(&mut pair.rig, 0, &[HELLO, r#"[64,1,{},"p.a"]"#]);
    pair.rig.run();
    messages(&mut pair.rig, other);
    pair.rig.feed(&revoke("p.a"));
    pair.rig.run();
    assert_eq!(messages(&mut pair.rig, other), Vec::<String>::new());
    assert!(!pair.is_held_elsewhere("p.a"));
    pair.rig.check_empty();
}

#[test]
fn calls_under_way_to_a_callee_that_loses_its_registration_are_answered() {
    let mut pair = Pair::new();
    pair.ask(0, r#"[64,#,{},"p.a"]"#);
    pair.rig.receive(pair.sessions[1], &frames(&[r#"[48,77,{},"p.a"]"#]));
    pair.rig.run();
    pair.rig.feed(&revoke("p.a"));
    pair.rig.run();
    let told = pair.got(0);
    assert!(told[0].starts_with("[68,1,") && told[1].starts_with("[67,0,"), "{told:?}");
    pair.rig.receive(pair.sessions[0], &frames(&[r#"[70,1,{},["done"]]"#]));
    pair.rig.run();
    assert_eq!(pair.got(1), [r#"[50,77,{},["done"]]"#], "what was invoked may be answered");
    pair.rig.check_empty();
}

/// Its REGISTER waits for the other shard, and calls wait for it.
#[test]
fn a_registration_lost_before_it_was_acknowledged_is_refused() {
    let mut pair = Pair::new();
    for n in 0..16 {
        let uri = format!("p.{n}");
        let register = format!(r#"[64,{},{{}},"{uri}"]"#, 100 + n);
        let call = format!(r#"[48,{},{{}},"{uri}"]"#, 100 + n);
        pair.rig.receive(pair.sessions[0], &frames(&[&register, &call]));
        pair.rig.feed(&revoke(&uri));
        pair.rig.run();
        // Whether this shard is the procedure's home and holds it already, or still waits for the home's word.
        let mut got = pair.got(0);
        got.sort();
        assert_eq!(got.len(), 2, "both are answered, once: {got:?}");
        assert!(got[0].contains("wamp.error.no_such_procedure"), "{got:?}");
        assert!(
            got[1].starts_with("[8,64,") && got[1].contains("wamp.error.procedure_already_exists"),
            "{got:?}"
        );
        assert!(!pair.is_held_elsewhere(&uri));
    }
    pair.rig.check_empty();
}

#[test]
fn a_call_looks_for_the_callee_on_nodes_that_live() {
    let mut pair = Pair::new();
    pair.rig.feed(&routes(1, &[(1, "p.a", true)]));
    let answer = pair.ask(0, r#"[48,#,{},"p.a"]"#);
    assert!(answer.contains("wamp.error.no_such_procedure"), "{answer}");
    pair.rig.feed(&peers(&[1]));
    let answer = pair.ask(0, r#"[48,#,{},"p.a"]"#);
    assert!(answer.contains("wamp.error.unavailable"), "no connection leads there: {answer}");
    pair.rig.feed(&peers(&[]));
    let answer = pair.ask(0, r#"[48,#,{},"p.a"]"#);
    assert!(answer.contains("wamp.error.no_such_procedure"), "{answer}");
    pair.rig.check_empty();
}

#[test]
fn a_snapshot_of_many_realms_is_taken_in_turns_and_said_to_be_taken_at_the_end() {
    let mut rig = Rig::new(1, |_| {});
    rig.taken(0);
    let names: Vec<String> = (0..5_000).map(|n| format!("com.example.realm{n}")).collect();
    let mut many = source(2);
    many.realms.extend(names.iter().map(|name| realm(name)));
    rig.feed(&FeedDown::Snapshot(snapshot(&many)));
    assert_eq!(rig.taken(0), None, "that is too much for one turn");
    let mut turns = 1;
    while rig.taken(0).is_none() {
        rig.pass(Duration::ZERO);
        turns += 1;
        assert!(turns < 100);
    }
    assert!(turns > 3);
    let join = |rig: &mut Rig, realm: &str| {
        let at = connect(rig, 0, &[&HELLO.replace("realm1", realm)]);
        rig.run();
        messages(rig, at).remove(0).starts_with("[2,")
    };
    assert!(names.iter().step_by(500).all(|name| join(&mut rig, name)));
    // A later one takes the place of one that is being taken.
    let small = snapshot(&source(4));
    rig.feed(&FeedDown::Snapshot(snapshot(&Source { version: SnapshotVersion(3), ..many })));
    rig.feed(&FeedDown::Snapshot(Arc::clone(&small)));
    let mut taken = rig.taken(0);
    while taken.is_none() {
        rig.pass(Duration::ZERO);
        taken = rig.taken(0);
    }
    assert_eq!(taken, Some(SnapshotVersion(4)));
    assert!(names.iter().step_by(500).all(|name| !join(&mut rig, name)), "they are closed");
    assert!(join(&mut rig, "realm1"));
    rig.check_empty();
}
