//! What other nodes want, and what the data plane was told of it. Sans-IO.
//!
//! ```text
//! remote_routes, remote_reset ─▶ table ─▶ the next snapshot, which names the last change it stands for
//!                                  └────▶ queue of numbered changes ─▶ frames, at once
//! ```
//! Changes are numbered 1, 2, 3 ... over the life of this control plane. A data plane gets them from the building of its first
//! snapshot on, while later ones are built too, since each says up to which number it stands. When more than
//! [`UNFOLDED_MAX`] came since a snapshot was built they are withheld, and a snapshot is due: shards keep changes one by one.
//!
//! Invariants: a row has a node; equal sets of nodes are one allocation; a node that was reset has no row that counts.

use crate::table::{Key, Row, Rows, Table};
use common::ids::{NODES_MAX, NodeId, RouteKind};
use common::link::{Down, RouteChange, changes_in_one_frame};
use common::share::Share;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

/// Nodes that want a route, by slot, ascending.
pub type Slots = Arc<[u16]>;

/// What nodes, by slot, say of callees that share a procedure.
pub type Shares = Arc<[(u16, Share)]>;

#[derive(Debug, Default)]
pub struct Remote {
    table: Table<Slots>,
    /// What nodes say of callees that share a procedure, for routes of the table.
    shares: Table<Shares>,
    sets: HashSet<Slots>,
    slots: Vec<Slot>,
    index: HashMap<NodeId, u16>,
    /// Where the sweep of rows of nodes that were reset is.
    sweep: Option<Sweep>,
    /// Number of the last change.
    seq: u64,
    stream: Stream,
}

/// One node from its first route to its reset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Slot {
    Free,
    Used(NodeId),
    /// The node was reset; rows may still name the slot.
    Dead,
    /// As `Dead`, and the sweep under way began before that.
    DeadSince,
}

#[derive(Debug)]
struct Sweep {
    last: Option<Row<Slots>>,
}

/// Changes on their way to the data plane.
#[derive(Debug, Default)]
enum Stream {
    /// No data plane, or one whose first snapshot is not being built yet.
    #[default]
    Off,
    On {
        /// The last change that the newest snapshot stands for.
        built: u64,
        /// Changes up to the last one; the number of the first is that of the last less their count.
        queue: VecDeque<Queued>,
    },
    /// Too many: only the next snapshot tells.
    Withheld,
}

#[derive(Debug)]
enum Queued {
    Route(RouteChange),
    Unroute(NodeId),
}

/// What a snapshot is built from: the routes of other nodes at one moment.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Shared {
    pub routes: Rows<Slots>,
    pub shares: Rows<Shares>,
    /// The node of each slot; none: it wants nothing any more.
    pub nodes: Vec<Option<NodeId>>,
    /// The last change that is in it.
    pub folded: u64,
}

impl Remote {
    /// Another node wants, or no longer wants, a route, or its share has changed. False when that was known.
    pub fn change(&mut self, change: RouteChange) -> bool {
        let Some(slot) = self.slot(change.node, change.wanted) else { return false };
        let key = Key { realm: change.realm, kind: change.kind, policy: change.policy, uri: &change.uri };
        let before = self.table.get(key);
        let same = before.is_some_and(|slots| slots.contains(&slot)) == change.wanted;
        let share = change.share.filter(|_| change.wanted);
        let news = change.kind == RouteKind::Procedure && put_share(&mut self.shares, key, slot, share);
        if same {
            if news {
                self.number(Queued::Route(change));
            }
            return news;
        }
        let mut slots: Vec<u16> = before.map_or_else(Vec::new, |slots| slots.to_vec());
        // Slots of nodes that were reset go along with the first change.
        slots.retain(|other| *other != slot && matches!(self.slots[usize::from(*other)], Slot::Used(_)));
        if change.wanted {
            let at = slots.partition_point(|other| *other < slot);
            slots.insert(at, slot);
        }
        let old = before.cloned();
        if slots.is_empty() {
            self.table.update(key, |_| false);
        } else {
            let slots = intern(&mut self.sets, slots);
            let row = self.table.get_or_insert(key, || Arc::clone(&slots));
            *row = slots;
        }
        if let Some(old) = old {
            release(&mut self.sets, old);
        }
        self.number(Queued::Route(change));
        true
    }

    /// The node wants nothing any more. False when it wanted nothing before.
    pub fn reset(&mut self, node: NodeId) -> bool {
        let Some(slot) = self.index.remove(&node) else { return false };
        self.slots[usize::from(slot)] = if self.sweep.is_some() { Slot::DeadSince } else { Slot::Dead };
        if self.sweep.is_none() {
            self.sweep = Some(Sweep { last: None });
        }
        self.number(Queued::Unroute(node));
        true
    }

    /// Takes rows out that only reset nodes wanted, a bounded number of them. True when more are left to be looked at.
    pub fn sweep(&mut self) -> bool {
        let Some(sweep) = &mut self.sweep else { return false };
        let (slots, sets) = (&self.slots, &mut self.sets);
        let is_used = |slot: &u16| matches!(slots[usize::from(*slot)], Slot::Used(_));
        sweep.last = self.table.sweep(
            sweep.last.as_ref(),
            |row| !row.iter().all(is_used),
            |row| {
                let left: Vec<u16> = row.value.iter().copied().filter(|slot| is_used(slot)).collect();
                let keep = !left.is_empty();
                if keep {
                    let old = std::mem::replace(&mut row.value, intern(sets, left));
                    release(sets, old);
                }
                keep
            },
        );
        if sweep.last.is_some() {
            return true;
        }
        let slots = &self.slots;
        let is_dead = |slot: u16| matches!(slots[usize::from(slot)], Slot::Dead | Slot::DeadSince);
        self.shares.sweep_all(
            |shares| shares.iter().any(|(slot, _)| is_dead(*slot)),
            |row| {
                row.value = row.value.iter().copied().filter(|(slot, _)| !is_dead(*slot)).collect();
                !row.value.is_empty()
            },
        );
        let mut again = false;
        for slot in &mut self.slots {
            *slot = match *slot {
                Slot::Dead => Slot::Free,
                Slot::DeadSince => {
                    again = true;
                    Slot::Dead
                }
                other => other,
            };
        }
        self.sets.retain(|set| Arc::strong_count(set) > 1);
        self.sweep = again.then_some(Sweep { last: None });
        again
    }

    /// A data plane is new, or gone: it gets a snapshot before any change.
    pub fn stop(&mut self) {
        self.stream = Stream::Off;
    }

    /// What a snapshot that is built now is built from. From here on changes are queued for the data plane.
    pub fn share(&mut self) -> Shared {
        match &mut self.stream {
            Stream::On { built, .. } => *built = self.seq,
            Stream::Off | Stream::Withheld => {
                self.stream = Stream::On { built: self.seq, queue: VecDeque::new() };
            }
        }
        let node = |slot: &Slot| match slot {
            Slot::Used(node) => Some(*node),
            Slot::Free | Slot::Dead | Slot::DeadSince => None,
        };
        Shared {
            routes: self.table.share(),
            shares: self.shares.share(),
            nodes: self.slots.iter().map(node).collect(),
            folded: self.seq,
        }
    }

    /// True when changes wait for a snapshot because there are too many.
    pub fn is_withheld(&self) -> bool {
        matches!(self.stream, Stream::Withheld)
    }

    pub fn has_frame(&self) -> bool {
        matches!(&self.stream, Stream::On { queue, .. } if !queue.is_empty())
    }

    /// The next changes to send, in the order of their numbers.
    pub fn frame(&mut self) -> Option<Down> {
        let Stream::On { queue, .. } = &mut self.stream else { return None };
        let first_seq = self.seq + 1 - queue.len() as u64;
        if let Queued::Unroute(node) = queue.front()? {
            let node = *node;
            queue.pop_front();
            return Some(Down::Unroute { seq: first_seq, node });
        }
        let route = |queued: &Queued| match queued {
            Queued::Route(change) => Some(change.frame_bytes_max()),
            Queued::Unroute(_) => None,
        };
        let count = changes_in_one_frame(queue.iter().map_while(route));
        let changes = queue.drain(..count).filter_map(|queued| match queued {
            Queued::Route(change) => Some(change),
            Queued::Unroute(_) => None,
        });
        let changes = changes.collect();
        if queue.is_empty() {
            queue.shrink_to(QUEUE_KEPT);
        }
        Some(Down::Routes { first_seq, changes })
    }

    /// Routes that another node wants or wanted.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// The number of the last change.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    fn number(&mut self, queued: Queued) {
        self.seq += 1;
        if let Stream::On { built, queue } = &mut self.stream {
            queue.push_back(queued);
            if self.seq - *built > UNFOLDED_MAX {
                self.stream = Stream::Withheld;
            }
        }
    }

    /// The slot of a node; with `make` it gets one if it has none. None: too many nodes, which membership does not allow.
    fn slot(&mut self, node: NodeId, make: bool) -> Option<u16> {
        if let Some(slot) = self.index.get(&node) {
            return Some(*slot);
        }
        if !make || self.index.len() >= NODES_MAX {
            return None;
        }
        if self.slots.len() >= SLOTS_MAX && !self.slots.contains(&Slot::Free) {
            while self.sweep() {}
        }
        let free = self.slots.iter().position(|slot| *slot == Slot::Free);
        let slot = free.unwrap_or(self.slots.len());
        if slot == self.slots.len() {
            self.slots.push(Slot::Free);
        }
        self.slots[slot] = Slot::Used(node);
        self.index.insert(node, slot as u16);
        Some(slot as u16)
    }
}

/// Notes what a node says of callees that share a procedure. False when that was known.
fn put_share(table: &mut Table<Shares>, key: Key<'_>, slot: u16, share: Option<Share>) -> bool {
    let before = table.get(key);
    let known = before.and_then(|shares| shares.iter().find(|(other, _)| *other == slot));
    if known.map(|(_, share)| *share) == share {
        return false;
    }
    let others = before.into_iter().flat_map(|shares| shares.iter()).filter(|(other, _)| *other != slot);
    let shares: Shares = others.copied().chain(share.map(|share| (slot, share))).collect();
    if shares.is_empty() {
        table.update(key, |_| false);
    } else {
        let row = table.get_or_insert(key, || Arc::clone(&shares));
        *row = shares;
    }
    true
}

/// The one allocation of a set.
fn intern(sets: &mut HashSet<Slots>, slots: Vec<u16>) -> Slots {
    if let Some(set) = sets.get(&slots[..]) {
        return Arc::clone(set);
    }
    let set: Slots = slots.into();
    sets.insert(Arc::clone(&set));
    set
}

/// Forgets a set that no row names any more.
fn release(sets: &mut HashSet<Slots>, set: Slots) {
    // One count is ours, one that of `sets`.
    if Arc::strong_count(&set) <= 2 {
        sets.remove(&set);
    }
}

/// Changes that may come after a snapshot was built before they are withheld until the next one. Each shard keeps them
/// one by one until then, in tables whose growth must not stop it for long.
pub const UNFOLDED_MAX: u64 = 16_384;
/// Slots: nodes, and as many lives of nodes again whose routes are being swept up.
const SLOTS_MAX: usize = 4 * NODES_MAX;
/// Places an empty queue keeps.
const QUEUE_KEPT: usize = 1_024;

const _: () = assert!(SLOTS_MAX <= u16::MAX as usize);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fold::Fold;
    use common::ids::{Match, RealmId, RouteKind};
    use common::snapshot::Source;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn node(n: u8) -> NodeId {
        NodeId([n; 16])
    }

    fn change(n: u8, uri: &str, wanted: bool) -> RouteChange {
        let (realm, kind, policy) = (RealmId(1), RouteKind::Topic, Match::Exact);
        RouteChange { node: node(n), realm, kind, policy, uri: uri.into(), wanted, share: None }
    }

    /// Routes and who wants them, as a snapshot would have them.
    fn table(shared: &Shared) -> BTreeMap<String, Vec<NodeId>> {
        let fold = Fold { head: Source::default(), local: Rows::default(), remote: shared.clone() };
        let (routes, lists) = fold.routes();
        let list = |list: u32| {
            let mut list = lists[list as usize].clone();
            list.sort();
            list
        };
        routes.into_iter().map(|route| (route.uri.to_owned(), list(route.list))).collect()
    }

    fn frames(remote: &mut Remote) -> Vec<Down> {
        std::iter::from_fn(|| remote.frame()).collect()
    }

    #[test]
    fn changes_are_in_the_next_snapshot_and_those_after_it_in_frames() {
        let mut remote = Remote::default();
        assert!(remote.change(change(1, "a", true)) && remote.change(change(2, "a", true)));
        assert!(!remote.change(change(2, "a", true)) && !remote.change(change(3, "a", false)), "known");
        assert_eq!(frames(&mut remote), [], "the first snapshot comes first");
        let shared = remote.share();
        assert_eq!(
            (table(&shared), shared.folded),
            (BTreeMap::from([("a".into(), vec![node(1), node(2)])]), 2)
        );
        let later = [change(1, "a", false), change(3, "b", true)];
        assert!(remote.change(later[0].clone()));
        assert!(remote.reset(node(2)) && !remote.reset(node(2)));
        assert!(remote.change(later[1].clone()));
        let shared = remote.share();
        assert_eq!((table(&shared), shared.folded), (BTreeMap::from([("b".into(), vec![node(3)])]), 5));
        let expected = [
            Down::Routes { first_seq: 3, changes: vec![later[0].clone()] },
            Down::Unroute { seq: 4, node: node(2) },
            Down::Routes { first_seq: 5, changes: vec![later[1].clone()] },
        ];
        assert_eq!(frames(&mut remote), expected, "sent although a snapshot with them is being built");
        remote.stop();
        remote.change(change(3, "c", true));
        assert_eq!(frames(&mut remote), []);
    }

    #[test]
    fn too_many_changes_wait_for_the_next_snapshot() {
        let mut remote = Remote::default();
        remote.share();
        for n in 0..=UNFOLDED_MAX {
            assert!(!remote.is_withheld());
            remote.change(change(1, &n.to_string(), true));
        }
        assert!(remote.is_withheld() && frames(&mut remote).is_empty());
        assert_eq!(remote.share().folded, UNFOLDED_MAX + 1);
        assert!(!remote.is_withheld());
        remote.change(change(1, "x", true));
        let [Down::Routes { first_seq, .. }] = frames(&mut remote)[..] else { panic!("one frame") };
        assert_eq!(first_seq, UNFOLDED_MAX + 2);
    }

    #[test]
    fn rows_of_reset_nodes_are_swept_up_and_their_slots_used_again() {
        let mut remote = Remote::default();
        for round in 0..5 {
            for n in 0..2_000 {
                remote.change(change(1, &n.to_string(), true));
                remote.change(change(2, &n.to_string(), n % 2 == 0));
            }
            remote.reset(node(1));
            let left = table(&remote.share());
            assert_eq!(left.len(), 1_000, "round {round}");
            assert!(left.values().all(|nodes| *nodes == [node(2)]));
            while remote.sweep() {}
            assert_eq!((remote.len(), table(&remote.share())), (1_000, left));
        }
        assert_eq!((remote.slots.len(), remote.sets.len()), (2, 1));
    }

    proptest! {
        /// Whatever happens, a snapshot has exactly what is wanted, and a shard that follows the frames knows the same.
        #[test]
        fn snapshots_and_frames_tell_the_same(ops in proptest::collection::vec((0u8..12, 1u8..5, 0u8..6), 0..200)) {
            let mut remote = Remote::default();
            let mut wanted: BTreeMap<String, std::collections::BTreeSet<NodeId>> = BTreeMap::new();
            let plain = |wanted: &BTreeMap<String, std::collections::BTreeSet<NodeId>>| -> BTreeMap<String, Vec<NodeId>> {
                wanted
                    .iter()
                    .filter(|(_, nodes)| !nodes.is_empty())
                    .map(|(uri, nodes)| (uri.clone(), nodes.iter().copied().collect()))
                    .collect()
            };
            remote.share();
            let mut followed = wanted.clone();
            let mut next = 1;
            for (op, n, uri) in ops {
                let uri = uri.to_string();
                match op {
                    0..=7 => {
                        remote.change(change(n, &uri, op < 5));
                        let nodes = wanted.entry(uri).or_default();
                        if op < 5 { nodes.insert(node(n)); } else { nodes.remove(&node(n)); }
                    }
                    8 => {
                        remote.reset(node(n));
                        wanted.values_mut().for_each(|nodes| { nodes.remove(&node(n)); });
                    }
                    9 => { remote.sweep(); }
                    10 => {
                        let shared = remote.share();
                        prop_assert_eq!(table(&shared), plain(&wanted));
                        prop_assert_eq!(shared.folded, remote.seq());
                    }
                    _ => {
                        while let Some(frame) = remote.frame() {
                            match frame {
                                Down::Routes { first_seq, changes } => {
                                    prop_assert_eq!(first_seq, next);
                                    next += changes.len() as u64;
                                    for change in changes {
                                        let nodes = followed.entry(change.uri).or_default();
                                        if change.wanted { nodes.insert(change.node); } else { nodes.remove(&change.node); }
                                    }
                                }
                                Down::Unroute { seq, node } => {
                                    prop_assert_eq!(seq, next);
                                    next += 1;
                                    followed.values_mut().for_each(|nodes| { nodes.remove(&node); });
                                }
                                other => prop_assert!(false, "{:?}", other),
                            }
                        }
                        prop_assert_eq!(plain(&followed), plain(&wanted));
                    }
                }
            }
        }
    }
}
