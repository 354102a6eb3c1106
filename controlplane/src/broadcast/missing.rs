//! Payloads that were announced and have not come yet: when to ask whom. Pure.
//!
//! Invariants: at most [`MISSING_MAX`] ids with at most [`ANNOUNCERS_MAX`] peers each; every id has exactly one timer.

use super::message::Id;
use super::{ANNOUNCERS_MAX, GRAFTS_MAX, MISSING_MAX};
use common::ids::NodeId;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

#[derive(Debug, Default)]
pub struct Missing {
    wanted: BTreeMap<Id, Wanted>,
    timers: BTreeSet<(Instant, Id)>,
}

#[derive(Debug)]
struct Wanted {
    /// Those who have it, first the one to ask next, with the hops it had made to them.
    announcers: VecDeque<(NodeId, u8)>,
    at: Instant,
    grafts: u8,
}

/// What to do about an id whose time has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Due {
    /// Ask this peer; then call [`Missing::asked`].
    Ask(Id, NodeId),
    /// It was asked for often enough, or nobody is left to ask; the last one who had it, if any is known.
    GiveUp(Option<NodeId>),
}

impl Missing {
    /// `peer` has it. `first_at`: when it is asked for first, should nobody have announced it before. False: there is no
    /// room.
    pub fn announced(&mut self, id: Id, peer: NodeId, round: u8, first_at: Instant) -> bool {
        if let Some(wanted) = self.wanted.get_mut(&id) {
            let known = wanted.announcers.iter().any(|(announcer, _)| *announcer == peer);
            if !known && wanted.announcers.len() < ANNOUNCERS_MAX {
                wanted.announcers.push_back((peer, round));
            }
            return true;
        }
        if self.wanted.len() >= MISSING_MAX {
            return false;
        }
        self.timers.insert((first_at, id));
        let announcers = VecDeque::from([(peer, round)]);
        self.wanted.insert(id, Wanted { announcers, at: first_at, grafts: 0 });
        true
    }

    /// It came. Returns who had announced it, with the hops it had made to them.
    pub fn arrived(&mut self, id: &Id) -> VecDeque<(NodeId, u8)> {
        let Some(wanted) = self.wanted.remove(id) else { return VecDeque::new() };
        self.timers.remove(&(wanted.at, *id));
        wanted.announcers
    }

    /// The next id whose time has come.
    pub fn due(&mut self, now: Instant) -> Option<Due> {
        let (_, id) = *self.timers.first().filter(|(at, _)| *at <= now)?;
        let wanted = self.wanted.get(&id).expect("a timer belongs to an id");
        let next = wanted.announcers.front().map(|(peer, _)| *peer);
        match next {
            Some(peer) if wanted.grafts < GRAFTS_MAX => Some(Due::Ask(id, peer)),
            _ => {
                self.arrived(&id);
                Some(Due::GiveUp(next))
            }
        }
    }

    /// It was asked for; another is asked at `again_at`.
    pub fn asked(&mut self, id: Id, again_at: Instant) {
        let Some(wanted) = self.wanted.get_mut(&id) else { return };
        self.timers.remove(&(wanted.at, id));
        self.timers.insert((again_at, id));
        wanted.at = again_at;
        wanted.grafts += 1;
        wanted.announcers.rotate_left(1);
    }

    /// `peer` is gone.
    pub fn forget(&mut self, peer: NodeId) {
        for wanted in self.wanted.values_mut() {
            wanted.announcers.retain(|(announcer, _)| *announcer != peer);
        }
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    pub fn len(&self) -> usize {
        self.wanted.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const ID: Id = Id([1; 16]);
    const A: NodeId = NodeId([1; 16]);
    const B: NodeId = NodeId([2; 16]);

    #[test]
    fn announcers_are_asked_in_turn_and_then_it_is_given_up() {
        let (mut missing, now) = (Missing::default(), Instant::now());
        let at = |n: u32| now + Duration::from_secs(1) * n;
        assert!(missing.announced(ID, A, 4, at(1)));
        assert!(missing.announced(ID, B, 2, at(0)));
        assert_eq!((missing.due(now), missing.deadline()), (None, Some(at(1))));
        for (number, peer) in [(1, A), (2, B), (3, A)] {
            assert_eq!(missing.due(at(number)), Some(Due::Ask(ID, peer)));
            missing.asked(ID, at(number + 1));
        }
        assert_eq!(missing.due(at(4)), Some(Due::GiveUp(Some(B))));
        assert_eq!((missing.len(), missing.deadline()), (0, None));
    }

    #[test]
    fn what_came_is_not_asked_for_and_names_its_announcers() {
        let (mut missing, now) = (Missing::default(), Instant::now());
        missing.announced(ID, A, 4, now);
        missing.announced(ID, B, 2, now);
        assert_eq!(missing.arrived(&ID), [(A, 4), (B, 2)]);
        assert_eq!((missing.due(now), missing.arrived(&ID).len()), (None, 0));
    }

    #[test]
    fn nobody_is_asked_who_is_gone() {
        let (mut missing, now) = (Missing::default(), Instant::now());
        missing.announced(ID, A, 4, now);
        missing.forget(A);
        assert_eq!(missing.due(now), Some(Due::GiveUp(None)));
    }

    #[test]
    fn there_is_room_for_so_many() {
        let (mut missing, now) = (Missing::default(), Instant::now());
        let id = |number: usize| Id((number as u128).to_be_bytes());
        assert!((0..MISSING_MAX).all(|number| missing.announced(id(number), A, 0, now)));
        assert!(!missing.announced(id(MISSING_MAX), A, 0, now));
        assert!(missing.announced(id(0), B, 0, now), "one that is known");
    }
}
