//! Sharded subscriptions (WAMP, advanced profile, "Sharded Subscriptions"): of the subscribers that named a node key, those of one
//! key get an event with a resource key, always the same ones while they are there.
//!
//! Who chooses has to know the keys that a subscription has in the cluster. They are told as routes are: a shard with a
//! subscriber of a key holds a route for it, whose pattern spells the subscription and the key. No client can hold such a route
//! nor publish to it, since no URI has a `#`.
//! ```text
//! #nkey.SUBSCRIPTION.1..1.1.. ...     a component for each bit of the key: `1`, or empty for 0
//! #nkey.SUBSCRIPTION.1.1.1.1.1...     the URI that all keys of the subscription match
//! ```
//! Each key's chance of an event is a hash of both, and the greatest wins (rendezvous hashing, Thaler and Ravishankar 1998): every
//! shard finds the same winner, and when a key comes or goes only its events move.

use super::Shard;
use super::routes::for_each_elsewhere;
use crate::mesh::Item;
use common::ids::{Match, RouteKind};
use common::link::Claim;
use common::share::routing_key;
use std::collections::BTreeMap;

/// Bits of a key that are told.
const KEY_BITS: u32 = 48;

/// Keys that the subscribers of one subscription on one shard may have: each is a route, and weighed for each event.
pub(super) const NODE_KEYS_MAX: usize = 256;

/// The number of a node key, equal on all nodes.
pub(super) fn node_key(text: &[u8]) -> u64 {
    routing_key(text) & ((1 << KEY_BITS) - 1)
}

/// The node keys of one subscription.
#[derive(Debug, Default)]
pub(super) struct Keys {
    /// By slot of the subscriber here.
    here: BTreeMap<u32, u64>,
    /// How many subscribers here each key has.
    counts: BTreeMap<u64, u32>,
    /// All keys of the cluster, as of this version of the realm's routes.
    all: (u64, Vec<u64>),
}

impl Keys {
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.here.is_empty()
    }

    /// No subscriber may come with this key.
    pub fn is_full_for(&self, key: u64) -> bool {
        self.counts.len() >= NODE_KEYS_MAX && !self.counts.contains_key(&key)
    }

    /// The key whose subscribers get an event. None: nobody here named one.
    pub fn chosen(&self, resource_key: u64) -> Option<u64> {
        let keys = self.all.1.iter().copied();
        let winner = || keys.max_by_key(|key| (chance(resource_key, *key), *key));
        (!self.is_empty()).then(winner).flatten()
    }

    /// Whether the subscriber in a slot gets an event of the chosen key.
    pub fn admits(&self, slot: u32, chosen: u64) -> bool {
        self.here.get(&slot).is_none_or(|key| *key == chosen)
    }

    /// The keys that are told of, which are those of somebody here.
    pub fn told(&self) -> impl Iterator<Item = u64> {
        self.counts.keys().copied()
    }

    /// The subscriber in a slot has this key from now on, or none: the key that nobody here has any more, and the one that nobody
    /// had.
    fn set(&mut self, slot: u32, key: Option<u64>) -> [Option<u64>; 2] {
        let old = match key {
            Some(key) => self.here.insert(slot, key),
            None => self.here.remove(&slot),
        };
        if old == key {
            return [None; 2];
        }
        let begun = key.filter(|key| {
            let count = self.counts.entry(*key).or_default();
            *count += 1;
            *count == 1
        });
        let ended = old.filter(|old| {
            let count = self.counts.get_mut(old).map_or(0, |count| {
                *count -= 1;
                *count
            });
            count == 0
        });
        ended.iter().for_each(|key| _ = self.counts.remove(key));
        [ended, begun]
    }
}

/// A number that is as good as random, the same for a pair everywhere (the finalizer of MurmurHash3, twice).
fn chance(resource_key: u64, node_key: u64) -> u64 {
    let mix = |mut hash: u64| {
        hash = (hash ^ hash >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash = (hash ^ hash >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        hash ^ hash >> 33
    };
    mix(mix(resource_key).wrapping_add(node_key))
}

fn head(subscription: u64) -> String {
    format!("#nkey.{subscription}")
}

/// The pattern that tells of a key, or with all bits the URI that all keys match.
fn pattern(subscription: u64, key: u64) -> String {
    let mut pattern = head(subscription);
    for bit in 0..KEY_BITS {
        pattern.push_str(if key >> bit & 1 == 1 { ".1" } else { "." });
    }
    pattern
}

/// The key that a pattern tells of, if it is one of this subscription's.
fn key_of(subscription: u64, pattern: &str) -> Option<u64> {
    let bits = pattern.strip_prefix(&head(subscription))?.strip_prefix('.')?;
    bits.split('.').enumerate().try_fold(0, |key, (bit, component)| match component {
        "1" if bit < KEY_BITS as usize => Some(key | 1 << bit),
        "" if bit < KEY_BITS as usize => Some(key),
        _ => None,
    })
}

impl Shard {
    /// A subscriber named a key, or another one, or none.
    pub(super) fn set_node_key(&mut self, topic: u32, slot: u32, key: Option<u64>) {
        let state = &mut self.topics[topic as usize];
        let (realm, subscription) = (state.realm, state.id);
        let [ended, begun] = state.keys.set(slot, key);
        if let Some(key) = begun {
            let token = self.token();
            let seq = self.claims.push(self.key_claim(realm, subscription, key), &mut self.metrics);
            self.tell_key(realm, subscription, key, |route| Item::RouteAdd { route, seq, token });
        }
        if let Some(key) = ended {
            let (realm_id, uri) = (self.realms[realm as usize].id, pattern(subscription, key));
            let (kind, policy) = (RouteKind::Topic, Match::Wildcard);
            let seq =
                self.claims.push(Claim::Unrouted { realm: realm_id, kind, policy, uri }, &mut self.metrics);
            self.tell_key(realm, subscription, key, |route| Item::RouteRemove { route, seq });
        }
        if begun.is_some() || ended.is_some() {
            self.realms[realm as usize].version += 1;
        }
    }

    /// What the control plane is told of a key of somebody here.
    pub(super) fn key_claim(&self, realm: u32, subscription: u64, key: u64) -> Claim {
        let realm = self.realms[realm as usize].id;
        let (kind, policy, uri) = (RouteKind::Topic, Match::Wildcard, pattern(subscription, key));
        Claim::Routed { realm, kind, policy, uri }
    }

    /// Nobody waits for the answers: what a session sends takes the same way, after this.
    fn tell_key(
        &mut self,
        realm: u32,
        subscription: u64,
        key: u64,
        item: impl Fn(crate::mesh::RouteSpan) -> Item,
    ) {
        let (realm, uri) = (self.realms[realm as usize].id, pattern(subscription, key));
        for shard in self.others().iter() {
            let batch = self.mesh(shard);
            let route = batch.put_route(realm, RouteKind::Topic, Match::Wildcard, &uri);
            batch.push(item(route));
        }
    }

    /// Learns the keys that these subscriptions have in the cluster, before events with a resource key are delivered.
    #[cold]
    pub(super) fn learn_keys(&mut self, topics: &[u32]) {
        for topic in topics {
            let Some(state) = self.topics.get(*topic as usize).filter(|state| !state.keys.is_empty()) else {
                continue;
            };
            let version = self.routes_version(state.realm);
            if state.keys.all.0 == version {
                continue;
            }
            let mut all: Vec<u64> = state.keys.told().collect();
            let (realm, id) = (&self.realms[state.realm as usize], state.id);
            for_each_elsewhere(realm, &self.folded, self.me, &pattern(id, u64::MAX), |pattern| {
                all.extend(key_of(id, pattern));
            });
            all.sort_unstable();
            all.dedup();
            self.topics[*topic as usize].keys.all = (version, all);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::uri::{UriRule, is_valid_pattern, matches};

    #[test]
    fn keys_are_told_by_patterns_that_match_one_uri_and_no_client_has() {
        for key in [0, 1, 5, node_key(b"node23"), (1 << KEY_BITS) - 1] {
            let pattern = pattern(77, key);
            assert_eq!(key_of(77, &pattern), Some(key));
            assert_eq!(key_of(7, &pattern), None);
            assert!(matches(&pattern, Match::Wildcard, &super::pattern(77, u64::MAX)));
            assert!(!is_valid_pattern(&pattern, Match::Wildcard, UriRule::Loose));
        }
        for other in ["#nkey.77", "#nkey.77.2", "a.b", &format!("{}.", pattern(77, 3))] {
            assert_eq!(key_of(77, other), None, "{other}");
        }
    }

    #[test]
    fn a_key_begins_with_its_first_subscriber_and_ends_with_its_last() {
        let mut keys = Keys::default();
        assert_eq!(keys.set(1, Some(10)), [None, Some(10)]);
        assert_eq!(keys.set(2, Some(10)), [None, None]);
        assert_eq!(keys.set(1, Some(11)), [None, Some(11)]);
        assert_eq!(keys.set(2, Some(11)), [Some(10), None]);
        assert_eq!(keys.set(2, Some(11)), [None, None]);
        assert_eq!((keys.set(1, None), keys.set(3, None)), ([None, None], [None, None]));
        assert_eq!(keys.set(2, None), [Some(11), None]);
        assert!(keys.is_empty() && keys.counts.is_empty());
        (0..NODE_KEYS_MAX).for_each(|n| _ = keys.set(n as u32, Some(n as u64)));
        assert!(keys.is_full_for(NODE_KEYS_MAX as u64) && !keys.is_full_for(7));
    }

    #[test]
    fn resource_keys_are_spread_and_move_only_with_their_node_key() {
        let of =
            |all: Vec<u64>| Keys { here: BTreeMap::from([(0, all[0])]), all: (1, all), ..Keys::default() };
        let nodes: Vec<u64> = (0..10).map(|n| node_key(format!("node{n}").as_bytes())).collect();
        let (ten, nine) = (of(nodes.clone()), of(nodes[..9].to_vec()));
        let mut counts = BTreeMap::<u64, u32>::new();
        for n in 0..10_000 {
            let resource = routing_key(format!("sn{n}").as_bytes());
            let winner = ten.chosen(resource).expect("there are keys");
            *counts.entry(winner).or_default() += 1;
            if winner != nodes[9] {
                assert_eq!(nine.chosen(resource), Some(winner));
            }
        }
        assert!(
            counts.len() == 10 && counts.values().all(|count| (850..1_150).contains(count)),
            "{counts:?}"
        );
        assert_eq!(Keys::default().chosen(5), None);
    }
}
