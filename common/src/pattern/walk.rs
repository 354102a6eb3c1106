//! The look-up in a trie of wildcard patterns, for the mutable trie and for the archived one.
//!
//! ```text
//! a..c, a.b.c, a.b.     a ─┬─ b ─┬─ c        literal branches are tried before the wildcard branch,
//! (three components)       │     └─ (any)    so leaves come in the dealer's order of preference
//!                          └─ (any) ─ c
//! ```
//! A trie holds patterns of one number of components. The walk visits a node at most once, and at each depth at most
//! one node for every distinct set of wildcard positions above it: at most `min(nodes, 2^wildcards)` leaves, and never
//! more than the nodes whose literals agree with the URI so far. It needs no stack but one word and one index a depth.

use crate::limits::URI_COMPONENTS_MAX;

/// A trie by components whose leaves all lie at one depth.
pub(crate) trait Trie {
    /// The child for exactly this component, which is not empty.
    fn literal(&self, node: u32, component: &str) -> Option<u32>;

    /// The child for any component.
    fn any(&self, node: u32) -> Option<u32>;
}

/// The components of a URI.
pub(crate) struct Components<'u> {
    uri: &'u str,
    /// Where each component ends in `uri`.
    ends: [u32; URI_COMPONENTS_MAX],
    len: usize,
}

impl<'u> Components<'u> {
    /// `None` when there are more than [`URI_COMPONENTS_MAX`] of them: no pattern matches such a URI.
    #[inline]
    pub(crate) fn of(uri: &'u str) -> Option<Self> {
        let mut ends = [0; URI_COMPONENTS_MAX];
        let mut len = 0;
        for end in memchr::memchr_iter(b'.', uri.as_bytes()).chain([uri.len()]) {
            *ends.get_mut(len)? = u32::try_from(end).ok()?;
            len += 1;
        }
        Some(Self { uri, ends, len })
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    #[inline]
    fn get(&self, index: usize) -> &'u str {
        let start = if index == 0 { 0 } else { self.ends[index - 1] as usize + 1 };
        &self.uri[start..self.ends[index] as usize]
    }
}

/// The leaves of the trie below `root` that match a URI, best first: the pattern whose wildcards come later, compared
/// from the left, is better (WAMP, advanced profile, "Calls matching multiple registrations").
pub(crate) struct Walk<'a, 'u, T: Trie> {
    trie: &'a T,
    components: &'a Components<'u>,
    /// Where to go on: a node and its depth.
    next: Option<(u32, usize)>,
    /// Bit `d` is set when the wildcard branch below depth `d` is still to be taken.
    pending: u128,
    branches: [u32; URI_COMPONENTS_MAX],
}

const _: () = assert!(URI_COMPONENTS_MAX <= u128::BITS as usize, "pending holds one bit a component");

impl<'a, 'u, T: Trie> Walk<'a, 'u, T> {
    #[inline]
    pub(crate) fn new(trie: &'a T, root: u32, components: &'a Components<'u>) -> Self {
        Self { trie, components, next: Some((root, 0)), pending: 0, branches: [0; URI_COMPONENTS_MAX] }
    }

    /// The deepest wildcard branch not taken yet.
    #[inline]
    fn back(&mut self) -> Option<(u32, usize)> {
        if self.pending == 0 {
            return None;
        }
        let depth = (u128::BITS - 1 - self.pending.leading_zeros()) as usize;
        self.pending ^= 1 << depth;
        Some((self.branches[depth], depth + 1))
    }

    /// The child to go to first; the other one is remembered.
    #[inline]
    fn descend(&mut self, node: u32, depth: usize) -> Option<u32> {
        let any = self.trie.any(node);
        let component = self.components.get(depth);
        let literal = if component.is_empty() { None } else { self.trie.literal(node, component) };
        if let (Some(_), Some(any)) = (literal, any) {
            self.branches[depth] = any;
            self.pending |= 1 << depth;
        }
        literal.or(any)
    }
}

impl<T: Trie> Iterator for Walk<'_, '_, T> {
    type Item = u32;

    #[inline]
    fn next(&mut self) -> Option<u32> {
        loop {
            let (node, depth) = self.next?;
            if depth == self.components.len {
                self.next = self.back();
                return Some(node);
            }
            self.next = match self.descend(node, depth) {
                Some(child) => Some((child, depth + 1)),
                None => self.back(),
            };
        }
    }
}
