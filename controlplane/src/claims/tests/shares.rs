//! Procedures whose callees share them, on several nodes.

use super::*;
use common::share::{Invoke, Share};

fn shared(invoke: Invoke, forced: bool, callees: u32, first: u64, last: u64) -> Wanted {
    Wanted { wanted: true, share: Some(Share { invoke, forced, callees, first, last }) }
}

fn random(callees: u32) -> Wanted {
    shared(Invoke::Random, false, callees, 1, u64::from(callees))
}

impl Net {
    fn share(&mut self, n: u8, wanted: Wanted, stamp: u64) {
        self.on(n).set(procedure("p"), wanted, Hlc(stamp));
        self.run();
    }

    /// Who was told to have lost, since it was last asked.
    fn revoked(&mut self) -> Vec<u8> {
        let nodes = 1..=self.nodes.len() as u8;
        nodes
            .filter(|n| {
                let said = self.said[usize::from(*n) - 1].iter();
                said.filter(|output| matches!(output, Output::Revoke { .. })).count() > 0
            })
            .collect()
    }

    /// The shares a node was told of, in order.
    fn shares(&mut self, n: u8) -> Vec<(u8, Option<u32>)> {
        let said = self.drain(n).into_iter();
        said.filter_map(|output| if let Output::Routes(changes) = output { Some(changes) } else { None })
            .flatten()
            .map(|change| (change.node.0[0], change.share.map(|share| share.callees)))
            .collect()
    }
}

#[test]
fn callees_of_equal_policies_share_over_all_nodes() {
    let mut net = Net::new(3);
    net.share(1, random(2), 10);
    net.share(2, random(1), 20);
    assert_eq!(net.routes(3), names(&[(1, "p"), (2, "p")]));
    assert_eq!((net.routes(1), net.routes(2)), (names(&[(2, "p")]), names(&[(1, "p")])));
    assert!(net.revoked().is_empty());
    assert_eq!(net.on(3).routes_len(), 2);
    assert_eq!(net.on(1).digest(), net.on(3).digest());
}

#[test]
fn another_number_of_callees_is_told_and_changes_no_rank() {
    let mut net = Net::new(3);
    net.share(1, random(1), 10);
    net.share(1, random(2), 30);
    net.share(1, random(2), 40);
    assert_eq!(net.shares(3), [(1, Some(1)), (1, Some(2))], "what is known is not said again");
    assert_eq!(net.on(3).routes_len(), 1);
    // Its rank is that of its first claim: the other one came later.
    net.share(2, true.into(), 20);
    assert_eq!((net.revoked(), net.routes(3)), (vec![2], names(&[(1, "p")])));
    net.share(1, false.into(), 50);
    assert_eq!(net.routes(3), names(&[(2, "p")]));
}

#[test]
fn of_different_policies_the_first_one_stays() {
    for (later, other) in [
        (shared(Invoke::First, false, 1, 1, 1), random(3)),
        (true.into(), random(1)),
        (random(1), true.into()),
        (shared(Invoke::Single, false, 1, 1, 1), shared(Invoke::Single, false, 1, 2, 2)),
    ] {
        let mut net = Net::new(3);
        // Both are given before either node knows of the other's.
        net.on(2).set(procedure("p"), later, Hlc(20));
        net.on(1).set(procedure("p"), other, Hlc(10));
        net.run();
        assert_eq!((net.revoked(), net.routes(3)), (vec![2], names(&[(1, "p")])));
        assert_eq!(net.routes(1), names(&[]));
        net.share(2, false.into(), 30);
        assert_eq!(net.routes(2), names(&[(1, "p")]));
    }
}

#[test]
fn who_takes_the_place_of_others_wins_over_all_that_were_before() {
    for forced in [shared(Invoke::Single, true, 1, 9, 9), shared(Invoke::Random, true, 1, 9, 9)] {
        let mut net = Net::new(3);
        net.share(1, random(2), 10);
        net.share(2, random(3), 20);
        net.share(3, forced, 30);
        assert_eq!(net.revoked(), [1, 2]);
        assert_eq!((net.routes(1), net.routes(2)), (names(&[(3, "p")]), names(&[(3, "p")])));
        net.share(1, false.into(), 40);
        net.share(2, false.into(), 40);
        net.drain(1);
        net.drain(2);
        // Those that come later may share with it.
        net.share(1, random(1), 50);
        let shares = forced.share.is_some_and(|share| share.invoke == Invoke::Random);
        assert_eq!(net.revoked(), if shares { vec![] } else { vec![1] });
        assert_eq!(net.routes(2).len(), if shares { 2 } else { 1 });
        net.drain(1);
        // More callees of the same group take nobody's place; another one that does so does.
        let more = forced.share.map(|share| Share { callees: 2, last: 12, ..share });
        net.share(3, Wanted { wanted: true, share: more }, 60);
        assert!(net.revoked().is_empty());
        net.share(2, shared(Invoke::Last, true, 1, 30, 30), 70);
        assert_eq!(net.routes(1), names(&[(2, "p")]));
        assert!(net.revoked().contains(&3));
    }
}

#[test]
fn shares_survive_a_control_plane_that_restarts() {
    let mut net = Net::new(3);
    net.share(1, random(2), 10);
    net.drain(3);
    net.restart(2, 8);
    net.run();
    let said = net.shares(2);
    assert!(said.contains(&(1, Some(2))), "{said:?}");
    assert_eq!(net.on(2).routes_len(), 1);
}
