//! The other nodes of the cluster as one shard knows them, by a dense index that routes and queues use.
//!
//! Invariants: an index is a node's until another node needs it and the first one does not live; only nodes of the latest
//! list are live.

use common::ids::{BootEpoch, NODES_MAX, NodeId};
use common::link::Peer;
use foldhash::fast::RandomState;
use hashbrown::HashMap;
use std::net::SocketAddr;

/// A set of node indexes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct NodeSet([u64; NODES_MAX / 64]);

impl NodeSet {
    pub const EMPTY: Self = Self([0; NODES_MAX / 64]);

    pub const fn contains(self, node: u16) -> bool {
        self.0[node as usize / 64] >> (node % 64) & 1 == 1
    }

    pub fn insert(&mut self, node: u16) {
        self.0[node as usize / 64] |= 1 << (node % 64);
    }

    pub fn remove(&mut self, node: u16) {
        self.0[node as usize / 64] &= !(1 << (node % 64));
    }

    #[must_use]
    pub fn union(self, other: Self) -> Self {
        self.with_words(other, |mine, theirs| mine | theirs)
    }

    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        self.with_words(other, |mine, theirs| mine & !theirs)
    }

    #[must_use]
    pub fn intersection(self, other: Self) -> Self {
        self.with_words(other, |mine, theirs| mine & theirs)
    }

    fn with_words(mut self, other: Self, join: impl Fn(u64, u64) -> u64) -> Self {
        for (word, theirs) in self.0.iter_mut().zip(other.0) {
            *word = join(*word, theirs);
        }
        self
    }

    #[inline]
    pub fn is_empty(self) -> bool {
        self.0 == [0; NODES_MAX / 64]
    }

    /// The one node it has, if it has one.
    #[inline]
    pub fn only(self) -> Option<u16> {
        // Neither by counting bits, which takes many instructions where the processor is not known to have one for it, nor
        // by taking the first out: what is written in pieces and read as a whole has to wait for the cache.
        let mut only = None;
        for (word, bits) in (0..).zip(self.0) {
            if bits == 0 {
                continue;
            }
            if only.is_some() || bits & (bits - 1) != 0 {
                return None;
            }
            only = Some(word * 64 + bits.trailing_zeros() as u16);
        }
        only
    }

    pub fn len(self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Ascending.
    pub fn iter(self) -> impl Iterator<Item = u16> {
        (0..).zip(self.0).flat_map(|(word, bits)| {
            let mut rest = bits;
            std::iter::from_fn(move || {
                let bit = (rest != 0).then(|| rest.trailing_zeros() as u16)?;
                rest &= rest - 1;
                Some(word * 64 + bit)
            })
        })
    }
}

/// Every node the shard has heard of.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    index: HashMap<NodeId, u16, RandomState>,
    list: Vec<Node>,
    live: NodeSet,
    /// Where the next index to be given to another node is looked for.
    hand: usize,
    /// Indexes that were given to another node since [`Nodes::take_reused`].
    reused: Vec<u16>,
}

#[derive(Debug)]
pub(super) struct Node {
    pub id: NodeId,
    /// Of the latest list it was in.
    pub epoch: BootEpoch,
    pub relay: Option<SocketAddr>,
}

impl Nodes {
    /// The index of a node; it gets one if it has none. None: [`NODES_MAX`] nodes live.
    pub fn index(&mut self, id: NodeId) -> Option<u16> {
        self.index_keeping(id, self.live)
    }

    /// As [`Nodes::index`]; an index of a node in `keep` is not given away.
    fn index_keeping(&mut self, id: NodeId, keep: NodeSet) -> Option<u16> {
        if let Some(index) = self.index.get(&id) {
            return Some(*index);
        }
        let node = Node { id, epoch: BootEpoch(0), relay: None };
        if self.list.len() < NODES_MAX {
            self.list.push(node);
            let index = (self.list.len() - 1) as u16;
            self.index.insert(id, index);
            return Some(index);
        }
        let places = (0..NODES_MAX).map(|step| (self.hand + step) % NODES_MAX);
        let place = places.into_iter().find(|place| !keep.contains(*place as u16))?;
        self.hand = place + 1;
        let old = std::mem::replace(&mut self.list[place], node);
        self.index.remove(&old.id);
        self.index.insert(id, place as u16);
        self.reused.push(place as u16);
        Some(place as u16)
    }

    /// Indexes that are another node's since the last call: what was known of them is of the node before.
    pub fn take_reused(&mut self) -> Vec<u16> {
        std::mem::take(&mut self.reused)
    }

    pub fn known(&self, id: NodeId) -> Option<u16> {
        self.index.get(&id).copied()
    }

    pub fn get(&self, index: u16) -> Option<&Node> {
        self.list.get(usize::from(index))
    }

    /// Nodes that may be sent to.
    #[inline]
    pub fn live(&self) -> NodeSet {
        self.live
    }

    /// Takes a new list of nodes that may be sent to.
    pub fn replace(&mut self, peers: &[Peer]) {
        // Those of the list before keep theirs too: something may still be under way to them.
        let mut keep = self.live;
        peers.iter().filter_map(|peer| self.known(peer.node)).for_each(|index| keep.insert(index));
        self.live = NodeSet::EMPTY;
        for peer in peers {
            let Some(index) = self.index_keeping(peer.node, keep) else { continue };
            keep.insert(index);
            let node = &mut self.list[usize::from(index)];
            node.epoch = peer.epoch;
            node.relay = peer.relay.parse().ok();
            self.live.insert(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(node: u8, epoch: u64) -> Peer {
        Peer { node: NodeId([node; 16]), epoch: BootEpoch(epoch), relay: "127.0.0.1:1".into() }
    }

    #[test]
    fn sets_list_their_members_in_order() {
        let mut set = NodeSet::EMPTY;
        [255, 0, 64, 63].iter().for_each(|node| set.insert(*node));
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 63, 64, 255]);
        set.remove(63);
        assert!(!set.contains(63) && set.contains(64) && !set.is_empty());
        assert_eq!((set.only(), NodeSet::EMPTY.only()), (None, None));
        [0, 255].iter().for_each(|node| set.remove(*node));
        assert_eq!(set.only(), Some(64));
    }

    #[test]
    fn an_index_stays_while_nodes_come_and_go() {
        let mut nodes = Nodes::default();
        nodes.replace(&[peer(1, 1), peer(2, 1)]);
        nodes.replace(&[peer(2, 5)]);
        assert_eq!(nodes.live().iter().collect::<Vec<_>>(), [1]);
        assert_eq!(nodes.get(1).unwrap().epoch, BootEpoch(5));
        assert_eq!(nodes.known(NodeId([1; 16])), Some(0));
        for node in 0..=255 {
            nodes.index(NodeId([node; 16]));
        }
        assert!(nodes.index(NodeId([7; 16])).is_some());
        let mut other = [9; 16];
        other[0] = 1;
        assert!(nodes.take_reused().is_empty());
        assert_eq!(nodes.index(NodeId(other)), Some(0), "the first that does not live");
        assert_eq!((nodes.take_reused(), nodes.known(NodeId([1; 16]))), (vec![0], None));
        assert_eq!(nodes.index(NodeId([1; 16])), Some(2), "1 lives");
        let mut peers: Vec<_> = (0..=255).map(|node| peer(node, 1)).collect();
        nodes.replace(&peers);
        assert_eq!(nodes.live().iter().count(), 256);
        assert_eq!(nodes.index(NodeId(other)), None, "all live");
        peers[7].node = NodeId(other);
        nodes.replace(&peers);
        assert_eq!(nodes.live().iter().count(), 255, "the place of one that lived before is kept for now");
        nodes.replace(&peers);
        assert_eq!(nodes.live().iter().count(), 256);
        assert_eq!(nodes.known(NodeId([7; 16])), None);
    }
}
