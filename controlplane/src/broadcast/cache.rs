//! The ids that were seen lately, and the payloads of the latest of them. Pure.
//!
//! Invariants: at most [`IDS_MAX`] ids, none older than [`IDS_TIME`] once [`Cache::expire`] was called; payloads take at most
//! [`CACHE_BYTES_MAX`] bytes, the oldest go first.

use super::message::Id;
use super::{CACHE_BYTES_MAX, IDS_MAX, IDS_TIME};
use bytes::Bytes;
use std::collections::{HashMap, VecDeque};
use std::time::Instant;

#[derive(Debug, Default)]
pub struct Cache {
    /// The hops a copy sent from here has made, and the payload while it is kept.
    seen: HashMap<Id, (u8, Option<Bytes>)>,
    /// In the order in which they came.
    order: VecDeque<(Instant, Id)>,
    /// How many at the front of `order` have no payload any more.
    empty: usize,
    bytes: usize,
}

impl Cache {
    pub fn contains(&self, id: &Id) -> bool {
        self.seen.contains_key(id)
    }

    /// The hops a copy sent from here has made, and the payload, while it is kept.
    pub fn get(&self, id: &Id) -> Option<(u8, Bytes)> {
        let (round, payload) = self.seen.get(id)?;
        Some((*round, payload.clone()?))
    }

    /// Adds an id that is not in the cache.
    pub fn insert(&mut self, now: Instant, id: Id, round: u8, payload: Bytes) {
        self.bytes += payload.len();
        let was = self.seen.insert(id, (round, Some(payload)));
        debug_assert!(was.is_none(), "an id is inserted once");
        self.order.push_back((now, id));
        while self.order.len() > IDS_MAX {
            self.pop();
        }
        while self.bytes > CACHE_BYTES_MAX {
            self.shed();
        }
    }

    pub fn expire(&mut self, now: Instant) {
        while self.order.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) >= IDS_TIME) {
            self.pop();
        }
    }

    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Gives up the oldest payload; its id stays.
    fn shed(&mut self) {
        let Some((_, id)) = self.order.get(self.empty) else { return };
        self.empty += 1;
        if let Some(payload) = self.seen.get_mut(id).and_then(|(_, payload)| payload.take()) {
            self.bytes -= payload.len();
        }
    }

    fn pop(&mut self) {
        let Some((_, id)) = self.order.pop_front() else { return };
        self.empty = self.empty.saturating_sub(1);
        if let Some((_, Some(payload))) = self.seen.remove(&id) {
            self.bytes -= payload.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn id(number: u32) -> Id {
        let mut id = [0; 16];
        id[..4].copy_from_slice(&number.to_le_bytes());
        Id(id)
    }

    #[test]
    fn old_ids_and_those_beyond_the_bound_are_forgotten() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        for number in 0..IDS_MAX as u32 + 5 {
            cache.insert(now + Duration::from_micros(number.into()), id(number), 0, Bytes::from_static(b"x"));
        }
        assert_eq!(cache.len(), IDS_MAX);
        assert!(!cache.contains(&id(4)) && cache.contains(&id(5)));
        cache.expire(now + IDS_TIME + Duration::from_micros(9));
        assert!(!cache.contains(&id(9)) && cache.contains(&id(10)));
        cache.expire(now + 2 * IDS_TIME);
        assert_eq!((cache.len(), cache.bytes, cache.empty, cache.seen.len()), (0, 0, 0, 0));
    }

    #[test]
    fn payloads_are_given_up_before_ids() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        let large: Bytes = vec![0; CACHE_BYTES_MAX / 4].into();
        (0..6).for_each(|number| cache.insert(now, id(number), 7, large.clone()));
        assert_eq!(cache.bytes, CACHE_BYTES_MAX);
        assert!(cache.contains(&id(0)) && cache.get(&id(1)).is_none());
        assert_eq!(cache.get(&id(2)).map(|(round, payload)| (round, payload.len())), Some((7, large.len())));
        cache.expire(now + IDS_TIME);
        assert_eq!((cache.bytes, cache.empty), (0, 0));
    }
}
