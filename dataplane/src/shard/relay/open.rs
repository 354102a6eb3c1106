//! Open calls of a lane, at both of its ends, without hashing.
//!
//! The end that calls chooses the ids: the low bits are a place in its table, the others tell a call from those that had
//! the place before. The end that is called keeps the call at the same place. Frames of a lane arrive in order, so
//! a place that is taken when a call comes belongs to one that the calling end has given up.

use super::super::conn::Route;
use crate::mesh::Caller;
use std::vec::IntoIter;

/// Bits of an id that name a place.
const PLACE_BITS: u32 = 18;
/// Calls of one lane that wait for an answer.
pub(super) const CALLS_MAX: usize = 1 << PLACE_BITS;

const fn place_of(id: u64) -> usize {
    (id & (CALLS_MAX as u64 - 1)) as usize
}

/// At the end that calls: who waits for the answer.
#[derive(Debug, Default)]
pub(super) struct Callers {
    places: Vec<Waiting>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Waiting {
    /// The id of the call that has the place or had it last.
    id: u64,
    caller: Option<Caller>,
}

impl Callers {
    pub fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The id of a new call; nothing if there are [`CALLS_MAX`].
    #[inline]
    pub fn insert(&mut self, caller: Caller) -> Option<u64> {
        if let Some(place) = self.free.pop() {
            let waiting = &mut self.places[place as usize];
            waiting.id = waiting.id.wrapping_add(1 << PLACE_BITS);
            waiting.caller = Some(caller);
            return Some(waiting.id);
        }
        let place = self.places.len();
        if place >= CALLS_MAX {
            return None;
        }
        self.places.push(Waiting { id: place as u64, caller: Some(caller) });
        Some(place as u64)
    }

    #[inline]
    pub fn get(&self, id: u64) -> Option<Caller> {
        self.places.get(place_of(id)).filter(|waiting| waiting.id == id)?.caller
    }

    #[inline]
    pub fn remove(&mut self, id: u64) -> Option<Caller> {
        let place = place_of(id);
        let caller = self.places.get_mut(place).filter(|waiting| waiting.id == id)?.caller.take()?;
        self.free.push(place as u32);
        Some(caller)
    }

    /// False: there never was such a call.
    pub fn knows(&self, id: u64) -> bool {
        self.places.get(place_of(id)).is_some_and(|waiting| id <= waiting.id)
    }

    /// Gives up all; ids of calls to come are none of theirs.
    pub fn drain(&mut self) -> Vec<Caller> {
        let mut callers = Vec::with_capacity(self.len());
        for (place, waiting) in self.places.iter_mut().enumerate() {
            if let Some(caller) = waiting.caller.take() {
                callers.push(caller);
                self.free.push(place as u32);
            }
        }
        callers
    }
}

/// At the end that is called: the way each call went.
#[derive(Debug, Default)]
pub(super) struct Routes {
    places: Vec<Option<(u64, Route)>>,
    len: usize,
}

/// What a new call found at its place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Before {
    Nothing,
    /// A call that is given up.
    Other(u64, Route),
    /// Itself: its id was used twice.
    Same,
}

impl Routes {
    pub fn len(&self) -> usize {
        self.len
    }

    /// A call that has not gone its way yet.
    #[inline]
    pub fn insert(&mut self, id: u64) -> Before {
        let place = place_of(id);
        if self.places.len() <= place {
            self.places.resize(place + 1, None);
        }
        let before = self.places[place];
        if before.is_some_and(|(open, _)| open == id) {
            return Before::Same;
        }
        self.places[place] = Some((id, Route::Nowhere));
        self.len += usize::from(before.is_none());
        before.map_or(Before::Nothing, |(open, route)| Before::Other(open, route))
    }

    #[inline]
    pub fn get(&self, id: u64) -> Option<Route> {
        self.places
            .get(place_of(id))
            .copied()
            .flatten()
            .filter(|(open, _)| *open == id)
            .map(|(_, route)| route)
    }

    #[inline]
    pub fn set(&mut self, id: u64, route: Route) {
        if let Some(Some((open, way))) = self.places.get_mut(place_of(id))
            && *open == id
        {
            *way = route;
        }
    }

    /// False: it is not open.
    #[inline]
    pub fn remove(&mut self, id: u64) -> bool {
        let open = self.places.get_mut(place_of(id)).and_then(|place| place.take_if(|(open, _)| *open == id));
        self.len -= usize::from(open.is_some());
        open.is_some()
    }

    /// All that are open, place by place.
    pub fn into_open(self) -> IntoIter<Option<(u64, Route)>> {
        self.places.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::Owner;
    use common::ids::ShardId;

    fn caller(request: u64) -> Caller {
        Caller { owner: Owner { shard: ShardId(0), slot: 1, session: 2 }, request }
    }

    #[test]
    fn an_answer_finds_its_call_and_none_that_has_the_place_later() {
        let mut callers = Callers::default();
        let [first, second] = [1, 2].map(|request| callers.insert(caller(request)).expect("room"));
        assert_eq!(callers.remove(first), Some(caller(1)));
        let third = callers.insert(caller(3)).expect("room");
        assert_eq!(place_of(third), place_of(first));
        assert_eq!((callers.get(first), callers.remove(first)), (None, None));
        assert_eq!((callers.get(second), callers.get(third)), (Some(caller(2)), Some(caller(3))));
        assert!([first, second, third].into_iter().all(|id| callers.knows(id)));
        let strange = [third + (1 << PLACE_BITS), second + 1, u64::MAX];
        assert!(strange.into_iter().all(|id| !callers.knows(id) && callers.get(id).is_none()));
        assert_eq!(callers.drain(), [caller(3), caller(2)]);
        assert!(callers.is_empty());
        let again = callers.insert(caller(4)).expect("room");
        assert!(![first, second, third].contains(&again));
    }

    #[test]
    fn a_lane_has_so_many_calls_and_no_more() {
        let mut callers = Callers::default();
        let mut routes = Routes::default();
        for request in 0..CALLS_MAX as u64 {
            let id = callers.insert(caller(request)).expect("room");
            assert_eq!(routes.insert(id), Before::Nothing);
        }
        assert_eq!(callers.insert(caller(0)), None);
        assert_eq!((callers.len(), routes.len()), (CALLS_MAX, CALLS_MAX));
        assert_eq!(routes.insert(u64::MAX), Before::Other(CALLS_MAX as u64 - 1, Route::Nowhere));
        assert_eq!(routes.places.len(), CALLS_MAX, "no id makes it larger");
    }

    #[test]
    fn a_place_that_is_taken_belongs_to_a_call_that_was_given_up() {
        let mut routes = Routes::default();
        let (old, new) = (5, 5 + (1 << PLACE_BITS));
        assert_eq!(routes.insert(old), Before::Nothing);
        routes.set(old, Route::Asked(7));
        routes.set(new, Route::Asked(8));
        assert_eq!(routes.insert(new), Before::Other(old, Route::Asked(7)));
        assert!(!routes.remove(old) && routes.get(old).is_none());
        routes.set(new, Route::Asked(9));
        assert_eq!(routes.insert(new), Before::Same);
        assert_eq!(routes.get(new), Some(Route::Asked(9)));
        assert_eq!(routes.len(), 1);
        assert!(routes.remove(new) && !routes.remove(new));
        assert_eq!((routes.len(), routes.into_open().flatten().count()), (0, 0));
    }
}
