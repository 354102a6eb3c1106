//! The choice among the nodes whose callees share a procedure. Pure: the random numbers come in.
//!
//! `first`, `last` and keys are decided alike on all nodes that know the same; the other policies give each node calls in
//! proportion to its callees, and the node that is chosen chooses among those.

use super::members::Key;
use common::share::{Invoke, Share};
use fastrand::Rng;

/// A node that might be chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Site {
    /// None: this one.
    pub node: Option<u16>,
    /// The life of its data plane: a name that all nodes know it by.
    pub life: u64,
    pub share: Share,
}

/// The place of the chosen one among `sites`, none of them if there are none. `turn` counts the calls.
pub(super) fn choose(invoke: Invoke, key: Key, sites: &[Site], turn: u32, rng: &mut Rng) -> Option<usize> {
    let all = || sites.iter().enumerate();
    let chosen = match invoke {
        _ if key.bound => all().max_by(|a, b| score(key, a.1).total_cmp(&score(key, b.1))),
        Invoke::JumpHash => all().max_by(|a, b| score(key, a.1).total_cmp(&score(key, b.1))),
        Invoke::Single | Invoke::First => all().min_by_key(|(_, site)| (site.share.first, site.life)),
        Invoke::Last => all().max_by_key(|(_, site)| (site.share.last, site.life)),
        Invoke::RoundRobin | Invoke::Random | Invoke::LeastLoaded | Invoke::LeastLoadedSample => {
            let callees: u64 = sites.iter().map(|site| u64::from(site.share.callees)).sum();
            let mut at = match invoke {
                _ if callees == 0 => return all().next().map(|(place, _)| place),
                Invoke::RoundRobin => u64::from(turn) % callees,
                _ => rng.u64(..callees),
            };
            all().find(|(_, site)| {
                let here = at < u64::from(site.share.callees);
                at = at.saturating_sub(site.share.callees.into());
                here
            })
        }
    };
    chosen.map(|(place, _)| place)
}

/// Weighted rendezvous: the node with the greatest score has the key. When the number of a node's callees changes, keys move only to
/// it or from it (Thaler and Ravishankar 1998; Schindelhauer and Schomaker 2005 for weights).
fn score(key: Key, site: &Site) -> f64 {
    let mut hash = key.hash ^ site.life.rotate_left(17);
    for _ in 0..2 {
        hash = (hash ^ hash >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    }
    hash ^= hash >> 32;
    // In (0, 1): 53 bits are exact.
    let unit = ((hash >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    -f64::from(site.share.callees.max(1)) / unit.ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::share::routing_key;

    const ANY: Key = Key { hash: 7, bound: false };

    fn site(node: u16, callees: u32, first: u64, last: u64) -> Site {
        let share = Share { callees, first, last, ..Share::SINGLE };
        Site { node: Some(node), life: u64::from(node).wrapping_mul(0x9e37_79b9_7f4a_7c15), share }
    }

    fn counts(invoke: Invoke, sites: &[Site], calls: u32) -> Vec<u32> {
        let mut rng = Rng::with_seed(1);
        let mut counts = vec![0; sites.len()];
        for turn in 0..calls {
            let key = Key { hash: routing_key(&turn.to_le_bytes()), bound: false };
            counts[choose(invoke, key, sites, turn, &mut rng).expect("there are some")] += 1;
        }
        counts
    }

    #[test]
    fn nodes_get_calls_in_proportion_to_their_callees() {
        let sites = [site(1, 1, 1, 1), site(2, 2, 2, 3), site(3, 5, 4, 9)];
        assert_eq!(counts(Invoke::RoundRobin, &sites, 800), [100, 200, 500]);
        for invoke in [Invoke::Random, Invoke::LeastLoaded, Invoke::LeastLoadedSample, Invoke::JumpHash] {
            let counts = counts(invoke, &sites, 80_000);
            let expected = [10_000, 20_000, 50_000];
            let close = |(found, expected): (&u32, u32)| found.abs_diff(expected) < expected / 15;
            assert!(counts.iter().zip(expected).all(close), "{invoke:?}: {counts:?}");
        }
    }

    #[test]
    fn the_first_and_the_last_callee_of_all_nodes_are_found() {
        let sites = [site(1, 1, 5, 6), site(2, 2, 2, 8), site(3, 5, 4, 7)];
        let mut rng = Rng::with_seed(1);
        let mut chosen = |invoke| choose(invoke, ANY, &sites, 0, &mut rng);
        assert_eq!((chosen(Invoke::First), chosen(Invoke::Last)), (Some(1), Some(1)));
        assert_eq!(choose(Invoke::First, ANY, &[], 0, &mut rng), None);
        // Of two at once every node finds the same one.
        let twins = [site(1, 1, 5, 5), site(2, 1, 5, 5)];
        let turned = [twins[1], twins[0]];
        for invoke in [Invoke::First, Invoke::Last] {
            let node = |sites: &[Site]| sites[choose(invoke, ANY, sites, 0, &mut Rng::new()).unwrap()].node;
            assert_eq!(node(&twins), node(&turned));
        }
    }

    #[test]
    fn a_key_stays_on_its_node_unless_that_node_has_fewer_callees_or_another_one_more() {
        let mut sites: Vec<Site> = (1..=6).map(|n| site(n, 4, 1, 1)).collect();
        let mut rng = Rng::with_seed(1);
        let mut all = |sites: &[Site]| -> Vec<u16> {
            let key = |n: u32| Key { hash: routing_key(&n.to_le_bytes()), bound: n.is_multiple_of(2) };
            let chosen = |n| choose(Invoke::JumpHash, key(n), sites, 0, &mut rng).unwrap();
            (0..6_000).map(chosen).map(|place| sites[place].node.unwrap()).collect()
        };
        let before = all(&sites);
        sites[2].share.callees = 5;
        let after = all(&sites);
        let moved = before.iter().zip(&after).filter(|(old, new)| old != new);
        assert!(moved.clone().all(|(_, new)| *new == 3) && moved.count() < 6_000 / 15);
        sites.remove(0);
        let last = all(&sites);
        let stays = |(old, new): (&u16, &u16)| old == new || *old == 1;
        assert!(after.iter().zip(&last).all(stays));
    }

    #[test]
    fn what_other_nodes_say_of_no_callees_does_no_harm() {
        let mut rng = Rng::with_seed(1);
        for invoke in Invoke::ALL {
            assert_eq!(choose(invoke, ANY, &[site(1, 0, 0, 0)], 3, &mut rng), Some(0), "{invoke:?}");
        }
        let vast = [site(1, u32::MAX, 0, u64::MAX), site(2, u32::MAX, 0, u64::MAX)];
        assert!(Invoke::ALL.into_iter().all(|invoke| choose(invoke, ANY, &vast, 3, &mut rng).is_some()));
    }
}
