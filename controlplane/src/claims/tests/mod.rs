//! One machine at a time, and two side by side.

mod shares;
mod sim;

use super::message::{Head, Message, Part};
use super::*;
use common::ids::RouteKind;
use std::collections::BTreeSet;

const TICK: Duration = Duration::from_secs(1);

fn node(n: u8) -> NodeId {
    NodeId([n; 16])
}

fn topic(uri: &str) -> RouteKey {
    RouteKey { realm: RealmId(1), uri: uri.into(), kind: RouteKind::Topic, policy: Match::Exact }
}

fn procedure(uri: &str) -> RouteKey {
    RouteKey { kind: RouteKind::Procedure, ..topic(uri) }
}

fn about(n: u8) -> About {
    About { relay: format!("10.0.0.{n}:18084"), shards: 2 }
}

fn claims(n: u8, epoch: u64) -> Claims {
    Claims::new(Settings { node: node(n), epoch, tick: TICK })
}

/// Machines with every pair connected, and what each said.
struct Net {
    now: Instant,
    nodes: Vec<Claims>,
    said: Vec<Vec<Output>>,
}

impl Net {
    /// Nodes 1 to `count`, live for each other, each with data plane 100 + n.
    fn new(count: u8) -> Self {
        let now = Instant::now();
        let nodes = (1..=count).map(|n| claims(n, 7)).collect();
        let mut net = Self { now, nodes, said: vec![vec![]; usize::from(count)] };
        for n in 1..=count {
            net.on(n).begin(now, BootEpoch(100 + u64::from(n)), about(n));
            net.on(n).whole();
            for other in (1..=count).filter(|other| *other != n) {
                net.on(n).node_up(node(other));
                net.on(n).peer_up(now, node(other));
            }
        }
        net.run();
        net
    }

    fn on(&mut self, n: u8) -> &mut Claims {
        &mut self.nodes[usize::from(n) - 1]
    }

    /// Delivers until nobody has anything to say.
    fn run(&mut self) {
        while (1..=self.nodes.len() as u8).any(|n| self.step(n)) {}
    }

    fn step(&mut self, n: u8) -> bool {
        let Some(output) = self.on(n).poll() else { return false };
        if let Output::Send { to, bytes } = &output {
            let now = self.now;
            self.on(to.0[0]).receive(now, node(n), bytes).unwrap();
        }
        self.said[usize::from(n) - 1].push(output);
        true
    }

    /// A node that knows nobody restarts its control plane.
    fn restart(&mut self, n: u8, epoch: u64) {
        let count = self.nodes.len() as u8;
        *self.on(n) = claims(n, epoch);
        let now = self.now;
        for other in (1..=count).filter(|other| *other != n) {
            self.on(n).node_up(node(other));
            self.on(n).peer_up(now, node(other));
            self.on(other).peer_up(now, node(n));
        }
    }

    fn routes(&self, n: u8) -> BTreeSet<(u8, String)> {
        self.nodes[usize::from(n) - 1].routes().map(|(node, key)| (node.0[0], key.uri.to_string())).collect()
    }

    fn drain(&mut self, n: u8) -> Vec<Output> {
        std::mem::take(&mut self.said[usize::from(n) - 1])
    }

    fn route_changes(&mut self, n: u8) -> Vec<(u8, String, bool)> {
        let said = self.drain(n).into_iter();
        said.filter_map(|output| if let Output::Routes(changes) = output { Some(changes) } else { None })
            .flatten()
            .map(|change| (change.node.0[0], change.uri, change.wanted))
            .collect()
    }
}

fn names(routes: &[(u8, &str)]) -> BTreeSet<(u8, String)> {
    routes.iter().map(|(node, uri)| (*node, (*uri).to_owned())).collect()
}

#[test]
fn a_route_reaches_all_peers_at_once_and_goes_again() {
    let mut net = Net::new(3);
    net.on(1).set(topic("a"), true, Hlc(5));
    net.on(1).set(topic("b"), true, Hlc(6));
    let sent = net.on(1).counts().messages_sent;
    net.run();
    assert_eq!(net.on(1).counts().messages_sent, sent + 2, "one message to each, not one for each change");
    assert_eq!(net.routes(2), names(&[(1, "a"), (1, "b")]));
    assert_eq!(net.routes(3), net.routes(2));
    net.on(1).set(topic("a"), false, Hlc(7));
    net.run();
    assert_eq!(net.routes(3), names(&[(1, "b")]));
    let told = vec![(1, "a".to_owned(), true), (1, "b".to_owned(), true), (1, "a".to_owned(), false)];
    assert_eq!(net.route_changes(3), told);
    assert_eq!(net.on(1).digest(), net.on(2).digest());
}

#[test]
fn the_data_planes_of_others_are_said_with_their_relays() {
    let mut net = Net::new(2);
    let said = Output::Owner { node: node(2), epoch: BootEpoch(102), about: about(2) };
    assert!(net.drain(1).contains(&said));
    assert_eq!(net.on(1).owner_of(node(2)), Some((BootEpoch(102), &about(2))));
    net.on(2).set_about(about(9));
    net.run();
    assert_eq!(net.on(1).owner_of(node(2)), Some((BootEpoch(102), &about(9))));
    net.on(2).end();
    net.run();
    assert!(net.drain(1).contains(&Output::OwnerGone { node: node(2) }));
    assert_eq!(net.on(1).owner_of(node(2)), None);
}

#[test]
fn routes_of_a_node_that_is_down_go_and_come_back() {
    let mut net = Net::new(2);
    net.on(2).set(topic("a"), true, Hlc(1));
    net.run();
    net.on(1).node_down(node(2));
    net.run();
    assert_eq!(net.routes(1), names(&[]));
    net.on(2).set(topic("b"), true, Hlc(2));
    net.run();
    assert_eq!(net.routes(1), names(&[]));
    net.on(1).node_up(node(2));
    net.run();
    assert_eq!(net.routes(1), names(&[(2, "a"), (2, "b")]));
}

#[test]
fn another_data_plane_drops_the_routes_of_the_one_before() {
    let mut net = Net::new(2);
    net.on(2).set(topic("a"), true, Hlc(1));
    net.on(2).set(topic("b"), true, Hlc(1));
    net.run();
    let now = net.now;
    net.on(2).begin(now, BootEpoch(900), about(2));
    net.on(2).set(topic("b"), true, Hlc(2));
    net.run();
    assert_eq!(net.routes(1), names(&[(2, "b")]));
}

#[test]
fn a_control_plane_that_restarts_takes_no_route_away() {
    let mut net = Net::new(3);
    for uri in ["a", "b", "c"] {
        net.on(2).set(topic(uri), true, Hlc(1));
    }
    net.run();
    net.drain(1);
    net.restart(2, 8);
    let now = net.now;
    net.on(2).begin(now, BootEpoch(102), about(2));
    net.on(2).set(topic("a"), true, Hlc(9));
    net.run();
    assert_eq!(net.routes(1), names(&[(2, "a"), (2, "b"), (2, "c")]));
    net.on(2).set(topic("b"), true, Hlc(9));
    net.on(2).whole();
    net.run();
    assert_eq!(net.routes(1), names(&[(2, "a"), (2, "b")]));
    assert_eq!(net.route_changes(1), [(2, "c".to_owned(), false)], "nothing flickered");
    assert_eq!(net.on(1).digest(), net.on(3).digest());
}

#[test]
fn of_two_registrations_the_older_wins_everywhere_and_the_loser_is_told_once() {
    let mut net = Net::new(3);
    net.on(1).set(procedure("p"), true, Hlc(20));
    net.on(2).set(procedure("p"), true, Hlc(10));
    net.run();
    assert_eq!(net.routes(3), names(&[(2, "p")]));
    assert_eq!(net.routes(1), names(&[(2, "p")]));
    assert_eq!(net.routes(2), names(&[]));
    let revoke = Output::Revoke { realm: RealmId(1), policy: Match::Exact, uri: "p".into() };
    let said = net.drain(1);
    assert_eq!(said.iter().filter(|output| **output == revoke).count(), 1);
    assert!(!net.drain(2).contains(&revoke));
    assert_eq!(net.on(1).revoked().count(), 1);
    net.on(2).set(topic("x"), true, Hlc(30));
    net.on(3).node_down(node(2));
    net.run();
    assert_eq!(net.routes(3), names(&[(1, "p")]), "who is alone is used");
    net.on(1).set(procedure("p"), false, Hlc(31));
    net.run();
    assert_eq!(net.on(1).revoked().count(), 0);
    assert!(!net.drain(1).contains(&revoke));
}

#[test]
fn a_tie_goes_to_the_smaller_node() {
    let mut net = Net::new(3);
    net.on(2).set(procedure("p"), true, Hlc(10));
    net.on(1).set(procedure("p"), true, Hlc(10));
    net.run();
    assert_eq!(net.routes(3), names(&[(1, "p")]));
}

#[test]
fn who_missed_messages_gets_them_by_the_next_tick_from_anybody() {
    let mut net = Net::new(3);
    let now = net.now;
    // 1 and 2 are cut off from each other; both see 3.
    net.on(1).peer_down(node(2));
    net.on(2).peer_down(node(1));
    net.on(1).set(topic("a"), true, Hlc(1));
    net.run();
    assert_eq!(net.routes(2), names(&[]));
    net.now = now + TICK;
    let later = net.now;
    assert_eq!(net.on(2).deadline(), Some(later));
    net.on(2).timeout(later);
    net.run();
    assert_eq!(net.routes(2), names(&[(1, "a")]));
}

#[test]
fn a_large_map_comes_in_parts_and_only_then_are_nodes_in_sync() {
    let mut net = Net::new(2);
    let now = net.now;
    for n in 0..20_000 {
        net.on(1).set(topic(&format!("com.example.a.rather.long.topic.number.{n}")), true, Hlc(n));
    }
    net.nodes.push(claims(3, 1));
    net.said.push(vec![]);
    net.on(3).begin(now, BootEpoch(103), about(3));
    net.on(3).node_up(node(1));
    net.on(3).peer_up(now, node(1));
    net.on(1).node_up(node(3));
    net.on(1).peer_up(now, node(3));
    assert!(!net.on(3).is_synced_with(node(1)));
    while net.on(3).counts().changes == 0 {
        (1..=3).for_each(|n| _ = net.step(n));
    }
    assert!(!net.on(3).is_synced_with(node(1)), "one part is not the whole");
    net.run();
    assert!(net.on(3).is_synced_with(node(1)));
    assert_eq!(net.routes(3).len(), 20_000);
    assert!(net.on(1).counts().messages_sent < 40, "{:?}", net.on(1).counts());
}

#[test]
fn who_missed_collected_marks_takes_the_map_anew() {
    let mut net = Net::new(2);
    let now = net.now;
    for uri in ["a", "b", "c"] {
        net.on(1).set(topic(uri), true, Hlc(1));
    }
    net.run();
    net.drain(2);
    net.on(1).peer_down(node(2));
    net.on(2).peer_down(node(1));
    net.on(1).set(topic("b"), false, Hlc(1));
    net.on(1).timeout(now + COLLECT_AFTER);
    net.on(1).timeout(now + 2 * COLLECT_AFTER);
    assert_eq!(net.on(1).owners().next().unwrap().collected, 6);
    net.on(1).set(topic("d"), true, Hlc(1));
    net.run();
    net.on(1).peer_up(now, node(2));
    net.on(2).peer_up(now, node(1));
    net.run();
    assert_eq!(net.routes(2), names(&[(1, "a"), (1, "c"), (1, "d")]));
    assert_eq!(net.on(2).counts().resets, 1);
    let told = vec![(1, "d".to_owned(), true), (1, "b".to_owned(), false)];
    assert_eq!(net.route_changes(2).into_iter().collect::<BTreeSet<_>>(), told.into_iter().collect());
    assert_eq!(net.on(1).digest(), net.on(2).digest());
}

#[test]
fn marks_stay_within_bounds() {
    let mut one = claims(1, 1);
    one.begin(Instant::now(), BootEpoch(1), about(1));
    for n in 0..2 * MARKS_MIN as u64 {
        one.set(topic(&n.to_string()), true, Hlc(n));
        one.set(topic(&n.to_string()), false, Hlc(n));
        while one.poll().is_some() {}
    }
    assert!(one.own().table.len() <= MARKS_MIN + 1, "{}", one.own().table.len());
    assert!(one.own().head.collected > 0);
}

#[test]
fn a_node_that_left_is_refused_until_it_is_back() {
    let mut net = Net::new(3);
    net.on(3).set(topic("a"), true, Hlc(1));
    net.run();
    net.drain(1);
    net.on(1).node_left(node(3));
    net.run();
    assert_eq!(net.routes(1), names(&[]));
    assert_eq!(net.on(1).owners().count(), 2);
    // Node 2 has not heard of it yet and offers the map again.
    let later = net.now + TICK;
    net.on(1).timeout(later);
    net.on(2).timeout(later);
    net.run();
    assert_eq!(net.routes(1), names(&[]));
    assert!(net.drain(1).contains(&Output::OwnerGone { node: node(3) }));
    net.on(1).node_up(node(3));
    net.run();
    assert_eq!(net.routes(1), names(&[(3, "a")]));
}

#[test]
fn an_owner_that_others_know_better_begins_a_life_above() {
    let mut net = Net::new(2);
    for uri in ["a", "b", "c"] {
        net.on(1).set(topic(uri), true, Hlc(1));
    }
    net.run();
    // The disk of a month ago: the epoch of the control plane was used before.
    net.restart(1, 7);
    let now = net.now;
    net.on(1).begin(now, BootEpoch(555), about(1));
    net.on(1).set(topic("z"), true, Hlc(1));
    net.on(1).whole();
    net.run();
    assert_eq!(net.routes(2), names(&[(1, "z")]));
    assert_eq!(net.on(1).digest(), net.on(2).digest());
}

#[test]
fn a_life_that_was_used_before_by_another_data_plane_is_left_however_much_others_hold_of_it() {
    for changes in [1, 2, 3] {
        let mut net = Net::new(2);
        net.on(1).set(topic("a"), true, Hlc(1));
        net.run();
        net.restart(1, 7);
        let now = net.now;
        net.on(1).begin(now, BootEpoch(555), about(1));
        for n in 0..changes {
            net.on(1).set(topic(&format!("z{n}")), true, Hlc(1));
        }
        net.on(1).whole();
        net.run();
        let expected = (0..changes).map(|n| (1, format!("z{n}"))).collect();
        assert_eq!(net.routes(2), expected, "{changes} changes");
        let owner = net.nodes[1].owners().find(|owner| owner.node == node(1)).expect("it is known");
        assert_eq!(owner.epoch, Some(BootEpoch(555)), "{changes} changes");
        assert_eq!(net.on(1).digest(), net.on(2).digest());
    }
}

#[test]
fn nodes_beyond_the_bound_are_refused() {
    let mut one = claims(1, 1);
    for n in 2..=NODES_MAX as u64 + 5 {
        let mut id = [9; 16];
        id[..8].copy_from_slice(&n.to_le_bytes());
        one.node_up(NodeId(id));
    }
    assert_eq!(one.owners().count(), NODES_MAX);
    assert_eq!(one.counts().refused, 5);
}

#[test]
fn messages_of_strangers_and_junk_change_nothing() {
    let mut net = Net::new(2);
    let now = net.now;
    let digest = net.on(1).digest();
    assert!(net.on(1).receive(now, node(2), &[9, 9]).is_err());
    let head = Head {
        owner: node(2),
        life: Life { control: 99, count: 1 },
        epoch: None,
        version: 1,
        collected: 0,
        whole_at: 0,
    };
    let part = Part { head, about_at: 0, about: About::default(), from: 0, to: 1, entries: vec![] };
    let bytes = Message::Part(part).encode();
    net.on(1).receive(now, node(77), &bytes).unwrap();
    assert_eq!((net.on(1).digest(), net.on(1).counts().strangers), (digest, 1));
}
