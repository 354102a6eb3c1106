//! What a shard holds by id, in the order of ids: questions name ids, and long lists are read page by page.

use common::ids::RouteKind;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

/// Sessions, subscriptions and registrations of one shard.
#[derive(Debug, Default)]
pub(in crate::shard) struct Ids {
    /// The slot of each session.
    sessions: BTreeMap<u64, u32>,
    /// Ids and indexes. Several callees of this shard may hold a registration, and two URIs may have one id.
    routes: [BTreeSet<(u64, u32)>; 2],
}

impl Ids {
    pub fn join(&mut self, session: u64, slot: u32) {
        self.sessions.insert(session, slot);
    }

    pub fn leave(&mut self, session: u64) {
        self.sessions.remove(&session);
    }

    pub fn slot_of(&self, session: u64) -> Option<u32> {
        self.sessions.get(&session).copied()
    }

    /// The session with the next greater id, and its slot.
    pub fn session_after(&self, session: u64) -> Option<(u64, u32)> {
        self.sessions.range(session.saturating_add(1)..).next().map(|(id, slot)| (*id, *slot))
    }

    /// Sessions with greater ids, and their slots, ascending.
    pub fn sessions_after(&self, session: u64) -> impl Iterator<Item = (u64, u32)> {
        self.sessions.range(session.saturating_add(1)..).map(|(id, slot)| (*id, *slot))
    }

    pub fn insert(&mut self, kind: RouteKind, id: u64, index: usize) {
        self.routes[kind as usize].insert((id, index as u32));
    }

    pub fn remove(&mut self, kind: RouteKind, id: u64, index: usize) {
        self.routes[kind as usize].remove(&(id, index as u32));
    }

    /// Indexes of what has this id.
    pub fn of(&self, kind: RouteKind, id: u64) -> impl Iterator<Item = u32> {
        self.routes[kind as usize].range((id, 0)..=(id, u32::MAX)).map(|(_, index)| *index)
    }

    /// Ids and indexes of what comes after one, ascending.
    pub fn routes_after(&self, kind: RouteKind, after: (u64, u32)) -> impl Iterator<Item = (u64, u32)> {
        self.routes[kind as usize].range((Bound::Excluded(after), Bound::Unbounded)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_found_by_id_and_after_one() {
        let mut ids = Ids::default();
        for (id, index) in [(5, 1), (3, 2), (5, 0), (9, 4)] {
            ids.insert(RouteKind::Procedure, id, index);
        }
        assert_eq!(ids.of(RouteKind::Procedure, 5).collect::<Vec<_>>(), [0, 1]);
        let after = |id, index| ids.routes_after(RouteKind::Procedure, (id, index)).collect::<Vec<_>>();
        assert_eq!(after(3, u32::MAX), [(5, 0), (5, 1), (9, 4)]);
        assert_eq!(after(5, 0), [(5, 1), (9, 4)]);
        assert_eq!(ids.of(RouteKind::Topic, 5).count(), 0);
        ids.remove(RouteKind::Procedure, 5, 0);
        assert_eq!(ids.of(RouteKind::Procedure, 5).collect::<Vec<_>>(), [1]);
        ids.join(7, 3);
        ids.join(2, 8);
        assert_eq!((ids.slot_of(7), ids.slot_of(8)), (Some(3), None));
        assert_eq!(ids.sessions_after(0).collect::<Vec<_>>(), [(2, 8), (7, 3)]);
        assert_eq!((ids.session_after(2), ids.session_after(7)), (Some((7, 3)), None));
        ids.leave(7);
        assert_eq!(ids.sessions_after(2).count(), 0);
    }
}
