//! Wildcard patterns: one trie by components for each number of components.
//!
//! Invariants: every node but a root has a parent and is its parent's child; a node without children holds an
//! entry, a node with children holds none; roots exist only while they have children.

use super::hash::UriHash;
use super::table::shrunk;
use super::walk::{Components, Trie, Walk};
use hashbrown::HashTable;

#[derive(Clone, Debug)]
pub(super) struct Wildcards<V> {
    nodes: Vec<Option<Node<V>>>,
    /// Unused places of `nodes`.
    free: Vec<u32>,
    /// The root for patterns of `index` components, or [`NONE`].
    roots: Vec<u32>,
    edges: Edges,
    len: usize,
}

#[derive(Clone, Debug)]
struct Node<V> {
    parent: u32,
    /// The child for any component, or [`NONE`].
    any: u32,
    /// Children by component; the one for any component is not counted.
    literals: u32,
    /// The component that leads here; empty for a root and for a wildcard.
    component: Box<str>,
    entry: Option<(Box<str>, V)>,
}

const NONE: u32 = u32::MAX;

impl<V> Wildcards<V> {
    pub(super) fn new(hash: UriHash) -> Self {
        Self {
            nodes: Vec::new(),
            free: Vec::new(),
            roots: Vec::new(),
            edges: Edges { hash, table: HashTable::new() },
            len: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn get(&self, pattern: &str) -> Option<&V> {
        self.node(self.find(pattern)?).entry.as_ref().map(|(_, value)| value)
    }

    pub(super) fn get_mut(&mut self, pattern: &str) -> Option<&mut V> {
        let leaf = self.find(pattern)?;
        self.node_mut(leaf).entry.as_mut().map(|(_, value)| value)
    }

    pub(super) fn insert(&mut self, pattern: &str, value: V) -> Option<V> {
        let mut node = self.root_for(components_len(pattern));
        for component in pattern.split('.') {
            node = match self.child(node, component) {
                Some(child) => child,
                None => self.add_child(node, component),
            };
        }
        match &mut self.node_mut(node).entry {
            Some((_, old)) => Some(std::mem::replace(old, value)),
            entry => {
                *entry = Some((pattern.into(), value));
                self.len += 1;
                None
            }
        }
    }

    pub(super) fn remove(&mut self, pattern: &str) -> Option<V> {
        let leaf = self.find(pattern)?;
        let value = self.remove_leaf(leaf);
        self.shrink();
        Some(value)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &V)> {
        let entries = self.nodes.iter().filter_map(|node| node.as_ref()?.entry.as_ref());
        entries.map(|(pattern, value)| (&**pattern, value))
    }

    pub(super) fn retain(&mut self, keep: impl FnMut(&str, &mut V) -> bool) {
        self.sweep(0, self.nodes.len(), keep);
    }

    pub(super) fn places(&self) -> usize {
        self.nodes.len()
    }

    /// As [`super::PatternMap::sweep`], of places `at` up to but not including `end`.
    pub(super) fn sweep(&mut self, at: usize, end: usize, mut keep: impl FnMut(&str, &mut V) -> bool) {
        // Removing a leaf frees only it and nodes without entries, so each entry is still seen once.
        for id in at..end.min(self.nodes.len()) {
            let Some((pattern, value)) = self.nodes[id].as_mut().and_then(|node| node.entry.as_mut()) else {
                continue;
            };
            if !keep(pattern, value) {
                self.remove_leaf(id as u32);
            }
        }
        if end >= self.nodes.len() {
            self.shrink();
        }
    }

    /// Calls `found` for the patterns that match `uri`, best first, until it says true.
    #[inline]
    pub(super) fn find_match<'a>(&'a self, uri: &str, mut found: impl FnMut(&'a str, &'a V) -> bool) {
        if self.len == 0 {
            return;
        }
        let Some(components) = Components::of(uri) else { return };
        let Some(root) = self.root(components.len()) else { return };
        for leaf in Walk::new(self, root, &components) {
            let (pattern, value) = self.node(leaf).entry.as_ref().expect("leaves hold entries");
            if found(pattern, value) {
                return;
            }
        }
    }

    fn root(&self, components: usize) -> Option<u32> {
        self.roots.get(components).copied().filter(|&root| root != NONE)
    }

    fn root_for(&mut self, components: usize) -> u32 {
        if self.roots.len() <= components {
            self.roots.resize(components + 1, NONE);
        }
        if self.roots[components] == NONE {
            self.roots[components] = self.add(NONE, "");
        }
        self.roots[components]
    }

    /// The leaf of exactly this pattern.
    fn find(&self, pattern: &str) -> Option<u32> {
        let root = self.root(components_len(pattern))?;
        pattern.split('.').try_fold(root, |node, component| self.child(node, component))
    }

    fn child(&self, node: u32, component: &str) -> Option<u32> {
        if component.is_empty() { self.any(node) } else { self.literal(node, component) }
    }

    fn add_child(&mut self, parent: u32, component: &str) -> u32 {
        let child = self.add(parent, component);
        if component.is_empty() {
            self.node_mut(parent).any = child;
        } else {
            self.node_mut(parent).literals += 1;
            self.edges.insert(&self.nodes, child);
        }
        child
    }

    fn add(&mut self, parent: u32, component: &str) -> u32 {
        let node = Node { parent, any: NONE, literals: 0, component: component.into(), entry: None };
        match self.free.pop() {
            Some(id) => {
                self.nodes[id as usize] = Some(node);
                id
            }
            None => {
                let id = self.nodes.len() as u32;
                assert!(id != NONE, "a trie has fewer than 2^32 - 1 nodes");
                self.nodes.push(Some(node));
                id
            }
        }
    }

    /// Removes a leaf and the nodes above it that lead nowhere else.
    fn remove_leaf(&mut self, leaf: u32) -> V {
        let (pattern, value) = self.node_mut(leaf).entry.take().expect("leaves hold entries");
        let mut id = leaf;
        loop {
            let node = self.node(id);
            if node.literals > 0 || node.any != NONE {
                break;
            }
            let parent = node.parent;
            if parent != NONE && node.component.is_empty() {
                self.node_mut(parent).any = NONE;
            } else if parent != NONE {
                self.edges.remove(&self.nodes, id);
                self.node_mut(parent).literals -= 1;
            }
            self.nodes[id as usize] = None;
            self.free.push(id);
            if parent == NONE {
                self.roots[components_len(&pattern)] = NONE;
                break;
            }
            id = parent;
        }
        self.len -= 1;
        value
    }

    /// Gives back the memory of the edges, and of the nodes when the last one is gone; until then free places are
    /// used again.
    fn shrink(&mut self) {
        self.edges.shrink(&self.nodes);
        if self.len == 0 {
            self.nodes = Vec::new();
            self.free = Vec::new();
            self.roots = Vec::new();
        }
    }

    #[inline]
    fn node(&self, id: u32) -> &Node<V> {
        self.nodes[id as usize].as_ref().expect("linked nodes are in use")
    }

    fn node_mut(&mut self, id: u32) -> &mut Node<V> {
        self.nodes[id as usize].as_mut().expect("linked nodes are in use")
    }
}

impl<V> Trie for Wildcards<V> {
    #[inline]
    fn literal(&self, node: u32, component: &str) -> Option<u32> {
        if self.node(node).literals == 0 {
            return None;
        }
        self.edges.find(&self.nodes, node, component)
    }

    #[inline]
    fn any(&self, node: u32) -> Option<u32> {
        let any = self.node(node).any;
        (any != NONE).then_some(any)
    }
}

fn components_len(pattern: &str) -> usize {
    memchr::memchr_iter(b'.', pattern.as_bytes()).count() + 1
}

/// The literal children of all nodes: one table keyed by (parent, component).
#[derive(Clone, Debug)]
struct Edges {
    hash: UriHash,
    table: HashTable<u32>,
}

impl Edges {
    fn hash(hash: UriHash, parent: u32, component: &str) -> u64 {
        let mut running = hash.running(&parent.to_le_bytes());
        running.extend(component.as_bytes());
        running.hash()
    }

    fn hash_of<V>(hash: UriHash, nodes: &[Option<Node<V>>], child: u32) -> u64 {
        let node = nodes[child as usize].as_ref().expect("linked nodes are in use");
        Self::hash(hash, node.parent, &node.component)
    }

    #[inline]
    fn find<V>(&self, nodes: &[Option<Node<V>>], parent: u32, component: &str) -> Option<u32> {
        let is_it = |&child: &u32| {
            let node = nodes[child as usize].as_ref().expect("linked nodes are in use");
            node.parent == parent && *node.component == *component
        };
        self.table.find(Self::hash(self.hash, parent, component), is_it).copied()
    }

    fn insert<V>(&mut self, nodes: &[Option<Node<V>>], child: u32) {
        let hash = self.hash;
        let hash_of = |&child: &u32| Self::hash_of(hash, nodes, child);
        self.table.insert_unique(hash_of(&child), child, hash_of);
    }

    fn remove<V>(&mut self, nodes: &[Option<Node<V>>], child: u32) {
        let hash = Self::hash_of(self.hash, nodes, child);
        self.table.find_entry(hash, |&other| other == child).expect("literal children have edges").remove();
    }

    fn shrink<V>(&mut self, nodes: &[Option<Node<V>>]) {
        let hash = self.hash;
        if let Some(capacity) = shrunk(self.table.len(), self.table.capacity()) {
            self.table.shrink_to(capacity, |&child| Self::hash_of(hash, nodes, child));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removing_the_last_pattern_frees_all_nodes() {
        let mut trie = Wildcards::new(UriHash::new(1));
        for n in 0..1_000 {
            trie.insert(&format!("a.{n}..b"), n);
        }
        let nodes = trie.nodes.len();
        for n in 1..1_000 {
            assert_eq!(trie.remove(&format!("a.{n}..b")), Some(n));
        }
        assert_eq!(trie.nodes.len() - trie.free.len(), 5, "one path is left: root, a, 0, any, b");
        for n in 1..1_000 {
            trie.insert(&format!("a.{n}..b"), n);
        }
        assert_eq!(trie.nodes.len(), nodes, "freed places are used again");
        trie.retain(|_, _| false);
        assert_eq!((trie.nodes.capacity(), trie.roots.len(), trie.len()), (0, 0, 0));
    }

    /// Counts the nodes a walk visits, for crafted patterns that share no dead end near the root.
    #[test]
    fn crafted_patterns_cost_no_more_than_their_own_nodes() {
        let mut trie = Wildcards::new(UriHash::new(1));
        let wildcards = 12;
        for set in 0..1u32 << wildcards {
            let literal = |bit| if set >> bit & 1 == 1 { "x." } else { "." };
            let pattern: String = (0..wildcards).map(literal).chain(["y"]).collect();
            trie.insert(&pattern, ());
        }
        let counted = Counted { trie: &trie, visits: std::cell::Cell::new(0) };
        let uri = "x.".repeat(wildcards) + "z";
        let components = Components::of(&uri).unwrap();
        let root = trie.root(components.len()).unwrap();
        assert_eq!(Walk::new(&counted, root, &components).count(), 0);
        assert!(counted.visits.get() <= 2usize << wildcards, "{}", counted.visits.get());
        assert!(counted.visits.get() <= trie.nodes.len());

        counted.visits.set(0);
        let other = "w.".repeat(wildcards) + "y";
        let components = Components::of(&other).unwrap();
        assert_eq!(Walk::new(&counted, root, &components).count(), 1);
        assert_eq!(counted.visits.get(), wildcards + 1, "branches that cannot match are not visited");
    }

    struct Counted<'a> {
        trie: &'a Wildcards<()>,
        visits: std::cell::Cell<usize>,
    }

    impl Trie for Counted<'_> {
        fn literal(&self, node: u32, component: &str) -> Option<u32> {
            self.trie.literal(node, component)
        }

        fn any(&self, node: u32) -> Option<u32> {
            self.visits.set(self.visits.get() + 1);
            self.trie.any(node)
        }
    }
}
