//! The keyed hash of URIs: SipHash-1-3, so a peer that does not know the key cannot choose URIs that collide.

use siphasher::sip::SipHasher13;
use std::hash::Hasher;

/// A hash function chosen by a key. Equal keys hash equally in every process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UriHash {
    start: SipHasher13,
}

impl UriHash {
    pub(crate) fn new(seed: u64) -> Self {
        Self { start: SipHasher13::new_with_keys(seed, KEY_1) }
    }

    #[inline]
    pub(crate) fn of(&self, bytes: &[u8]) -> u64 {
        self.start.hash(bytes)
    }

    /// The hash of the bytes of `head` and then of those that [`Running::extend`] adds.
    #[inline]
    pub(crate) fn running(&self, head: &[u8]) -> Running {
        let mut state = self.start;
        state.write(head);
        Running { state }
    }
}

/// A hash of a growing string: every prefix's hash for the price of one pass.
#[derive(Clone, Debug)]
pub(crate) struct Running {
    state: SipHasher13,
}

impl Running {
    #[inline]
    pub(crate) fn extend(&mut self, bytes: &[u8]) {
        self.state.write(bytes);
    }

    /// The hash of all bytes so far.
    #[inline]
    pub(crate) fn hash(&self) -> u64 {
        self.state.finish()
    }
}

/// The half of the key that is no secret; the other half is the seed.
const KEY_1: u64 = 0x7369_676e_616c_626f;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_hashes_equal_those_of_whole_prefixes() {
        let hash = UriHash::new(7);
        let uri = b"com.example.a.quite.long.topic";
        let mut running = hash.running(b"");
        for end in 0..uri.len() {
            assert_eq!(running.hash(), hash.of(&uri[..end]));
            running.extend(&uri[end..=end]);
        }
    }

    #[test]
    fn hashes_depend_on_the_seed() {
        assert_ne!(UriHash::new(1).of(b"a.b"), UriHash::new(2).of(b"a.b"));
    }
}
