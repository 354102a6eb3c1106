//! The relay's links by slot: found with two reads, and gone through in proportion to their number.
//!
//! Invariant: `places` names for each slot the place of its link in `list`, or [`NOWHERE`].

use super::link::Link;

#[derive(Debug, Default)]
pub(super) struct Links {
    /// Slots are those of all connections of the shard, of which few are links.
    places: Vec<u32>,
    list: Vec<(u32, Box<Link>)>,
}

const NOWHERE: u32 = u32::MAX;

impl Links {
    #[inline]
    fn place(&self, slot: u32) -> usize {
        self.places.get(slot as usize).map_or(NOWHERE, |place| *place) as usize
    }

    #[inline]
    pub fn get(&self, slot: u32) -> Option<&Link> {
        self.list.get(self.place(slot)).map(|(_, link)| &**link)
    }

    #[inline]
    pub fn get_mut(&mut self, slot: u32) -> Option<&mut Link> {
        let place = self.place(slot);
        self.list.get_mut(place).map(|(_, link)| &mut **link)
    }

    /// Puts the link of a slot that has none.
    pub fn insert(&mut self, slot: u32, link: Link) {
        assert!(self.get(slot).is_none(), "the driver reuses a slot only after Output::Close");
        if self.places.len() <= slot as usize {
            self.places.resize(slot as usize + 1, NOWHERE);
        }
        self.places[slot as usize] = self.list.len() as u32;
        self.list.push((slot, Box::new(link)));
    }

    pub fn remove(&mut self, slot: u32) -> Option<Box<Link>> {
        let place = self.place(slot);
        if place >= self.list.len() {
            return None;
        }
        let (_, link) = self.list.swap_remove(place);
        self.places[slot as usize] = NOWHERE;
        if let Some((moved, _)) = self.list.get(place) {
            self.places[*moved as usize] = place as u32;
        }
        Some(link)
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// In no order.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Link)> {
        self.list.iter().map(|(slot, link)| (*slot, &**link))
    }

    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut Link> {
        self.list.iter_mut().map(|(_, link)| &mut **link)
    }

    pub fn slots(&self) -> Vec<u32> {
        self.list.iter().map(|(slot, _)| *slot).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::link::Role;
    use super::*;
    use std::time::Instant;

    #[test]
    fn each_slot_finds_its_link_however_many_went() {
        let (mut links, now) = (Links::default(), Instant::now());
        for slot in [7, 0, 3, 900] {
            links.insert(slot, Link::new(1, u64::from(slot), Role::Guest, now, now));
        }
        assert_eq!(links.remove(7).map(|link| link.id), Some(7));
        assert!(links.remove(7).is_none() && links.remove(5).is_none() && links.get(1_000).is_none());
        links.insert(7, Link::new(2, 70, Role::Guest, now, now));
        assert_eq!(links.remove(900).map(|link| link.id), Some(900));
        let mut slots = links.slots();
        slots.sort_unstable();
        assert_eq!(slots, [0, 3, 7]);
        for (slot, id) in [(0, 0), (3, 3), (7, 70)] {
            assert_eq!(links.get(slot).map(|link| link.id), Some(id));
            assert_eq!(links.get_mut(slot).map(|link| link.id), Some(id));
        }
        assert!(links.iter().all(|(slot, link)| links.get(slot).is_some_and(|found| found.id == link.id)));
        slots.into_iter().for_each(|slot| assert!(links.remove(slot).is_some()));
        assert!(links.is_empty());
    }
}
