//! Doubly linked lists through the entries of a vector: any entry leaves its list in constant time.
//!
//! Entries are named by their places. An entry may be in one list for each of its links.

/// An entry's neighbours in a list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Link {
    before: u32,
    after: u32,
}

const END: u32 = u32::MAX;

impl Link {
    pub const NONE: Self = Self { before: END, after: END };

    #[inline]
    pub fn after(self) -> Option<u32> {
        (self.after != END).then_some(self.after)
    }
}

/// An entry with a link for lists of kind `LINK`.
pub(super) trait Linked<const LINK: usize> {
    fn link(&self) -> Link;
    fn link_mut(&mut self) -> &mut Link;
}

/// The ends of one list.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chain<const LINK: usize> {
    first: u32,
    last: u32,
}

impl<const LINK: usize> Chain<LINK> {
    pub const EMPTY: Self = Self { first: END, last: END };

    #[inline]
    pub fn first(&self) -> Option<u32> {
        (self.first != END).then_some(self.first)
    }

    #[inline]
    pub fn last(&self) -> Option<u32> {
        (self.last != END).then_some(self.last)
    }

    /// Appends an entry that is in no such list.
    #[inline]
    pub fn push<T: Linked<LINK>>(&mut self, entries: &mut [T], place: u32) {
        *entries[place as usize].link_mut() = Link { before: self.last, after: END };
        self.point(entries, Link { before: self.last, after: END }, (place, place));
    }

    /// Takes an entry out that is in this list.
    #[inline]
    pub fn take<T: Linked<LINK>>(&mut self, entries: &mut [T], place: u32) {
        let link = entries[place as usize].link();
        self.point(entries, link, (link.after, link.before));
    }

    /// An entry of this list has another place now.
    pub fn moved<T: Linked<LINK>>(&mut self, entries: &mut [T], to: u32) {
        let link = entries[to as usize].link();
        self.point(entries, link, (to, to));
    }

    /// Names what comes after the entry before, and what comes before the entry after.
    #[inline]
    fn point<T: Linked<LINK>>(&mut self, entries: &mut [T], link: Link, (after, before): (u32, u32)) {
        match link.before {
            END => self.first = after,
            place => entries[place as usize].link_mut().after = after,
        }
        match link.after {
            END => self.last = before,
            place => entries[place as usize].link_mut().before = before,
        }
    }

    #[inline]
    pub fn iter<T: Linked<LINK>>(&self, entries: &[T]) -> impl Iterator<Item = u32> {
        Self::iter_from(entries, self.first())
    }

    /// From an entry of a list on.
    #[inline]
    pub fn iter_from<T: Linked<LINK>>(entries: &[T], place: Option<u32>) -> impl Iterator<Item = u32> {
        std::iter::successors(place, |place| entries[*place as usize].link().after())
    }

    #[inline]
    pub fn iter_back<T: Linked<LINK>>(&self, entries: &[T]) -> impl Iterator<Item = u32> {
        std::iter::successors(self.last(), |place| {
            let before = entries[*place as usize].link().before;
            (before != END).then_some(before)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Linked<0> for Link {
        fn link(&self) -> Link {
            *self
        }

        fn link_mut(&mut self) -> &mut Link {
            self
        }
    }

    fn list(chain: &Chain<0>, entries: &[Link]) -> Vec<u32> {
        let there: Vec<u32> = chain.iter(entries).collect();
        let mut back: Vec<u32> = chain.iter_back(entries).collect();
        back.reverse();
        assert_eq!(there, back);
        there
    }

    #[test]
    fn entries_leave_from_anywhere_and_may_move() {
        let (mut chain, mut entries) = (Chain::<0>::EMPTY, [Link::NONE; 6]);
        for place in [3, 0, 4, 1] {
            chain.push(&mut entries, place);
        }
        chain.take(&mut entries, 0);
        assert_eq!(list(&chain, &entries), [3, 4, 1]);
        for (from, to) in [(1, 5), (3, 2), (4, 0)] {
            entries[to] = entries[from];
            chain.moved(&mut entries, to as u32);
        }
        assert_eq!(list(&chain, &entries), [2, 0, 5]);
        assert_eq!((chain.first(), chain.last(), entries[0].after()), (Some(2), Some(5), Some(5)));
        [2, 5, 0].into_iter().for_each(|place| chain.take(&mut entries, place));
        assert_eq!((chain.first(), chain.last()), (None, None));
        chain.push(&mut entries, 1);
        assert_eq!(list(&chain, &entries), [1]);
    }
}
