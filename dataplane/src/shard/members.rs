//! The callees of one shared registration, and the choice among them. Pure: the random numbers come in.
//!
//! Invariants: `places` names for each number the place of its member; `order` has every member, `loads` those that take
//! another call, if the policy looks at loads; `full` counts the members that have as many calls as they take.
//!
//! Each choice costs the same however many callees there are, and O(n) at most when nearly all have as many calls as they take.

mod chain;

use crate::mesh::Owner;
use chain::{Chain, Link, Linked};
use common::share::{Invoke, jump};
use fastrand::Rng;
use std::collections::BTreeMap;

/// One callee.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member {
    number: u64,
    pub owner: Owner,
    /// When it registered, by the logical clock of all nodes.
    stamp: u64,
    /// Most calls at a time; 0: no bound.
    concurrency: u32,
    /// Calls it has to answer.
    open: u32,
    /// Where its shard has the registration, if that is the home shard; a guess.
    procedure: u32,
    links: [Link; 2],
}

/// In [`Member::links`].
const ORDER: usize = 0;
const LOAD: usize = 1;

impl<const LINK: usize> Linked<LINK> for Member {
    #[inline]
    fn link(&self) -> Link {
        self.links[LINK]
    }

    #[inline]
    fn link_mut(&mut self) -> &mut Link {
        &mut self.links[LINK]
    }
}

impl Member {
    #[inline]
    fn is_full(&self) -> bool {
        self.concurrency != 0 && self.open >= self.concurrency
    }

    /// The place in [`Members::loads`].
    #[inline]
    fn load(&self) -> usize {
        (self.open as usize).min(LOADS_MAX - 1)
    }
}

/// What chooses besides the policy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Key {
    pub hash: u64,
    /// Nobody but the callee of this key may have the call.
    pub bound: bool,
}

/// A callee that was chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Picked {
    pub number: u64,
    /// Where it is, until a callee leaves.
    pub place: u32,
    pub owner: Owner,
    /// What was said to [`Members::learn`].
    pub procedure: u32,
}

/// Callees by number; numbers ascend in the order of registration.
#[derive(Debug)]
pub(super) struct Members {
    pub invoke: Invoke,
    /// In no order, for drawing; one that leaves is replaced by the last, so that few keys move.
    members: Vec<Member>,
    places: BTreeMap<u64, u32>,
    /// By number.
    order: Chain<ORDER>,
    /// By open calls: those that have so many and take more, who has had so many for the longest time first.
    loads: Vec<Chain<LOAD>>,
    /// None has fewer open calls.
    load_min: usize,
    full: usize,
    /// Who was called last, when it goes round.
    last: u64,
    last_place: u32,
    /// The latest stamp.
    clock: u64,
}

/// Callees of one shared registration on one node: bounds a choice when nearly all are full.
pub(super) const CALLEES_MAX: usize = 16_384;
/// Random draws, and hashes of a key, before free members are looked for one by one.
const DRAWS_MAX: usize = 8;
/// Loads that are told apart: of callees with more open calls each has its turn. Bounds a look for the lowest.
const LOADS_MAX: usize = 1_024;

impl Members {
    pub fn new(invoke: Invoke) -> Self {
        Self {
            invoke,
            members: Vec::new(),
            places: BTreeMap::new(),
            order: Chain::EMPTY,
            loads: Vec::new(),
            load_min: 0,
            full: 0,
            last: 0,
            last_place: 0,
            clock: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.members.len()
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    pub fn get(&self, number: u64) -> Option<&Member> {
        self.members.get(*self.places.get(&number)? as usize)
    }

    /// In the order of registration.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Member)> {
        self.places.iter().map(|(number, place)| (*number, &self.members[*place as usize]))
    }

    /// Adds a callee with a number greater than all before.
    pub fn insert(&mut self, number: u64, owner: Owner, concurrency: u32) {
        self.clock = number.max(self.clock + 1);
        let (stamp, place) = (self.clock, self.members.len() as u32);
        let links = [Link::NONE; 2];
        self.members.push(Member { number, owner, stamp, concurrency, open: 0, procedure: u32::MAX, links });
        self.places.insert(number, place);
        self.order.push(&mut self.members, place);
        self.enter_load(place);
    }

    /// The next callee registers after `stamp`, of another node's.
    pub fn follow(&mut self, stamp: u64) {
        self.clock = self.clock.max(stamp);
    }

    /// When the first and the last of the callees registered.
    pub fn span(&self) -> (u64, u64) {
        let stamp = |place: Option<u32>| place.map_or(0, |place| self.members[place as usize].stamp);
        (stamp(self.order.first()), stamp(self.order.last()))
    }

    /// False when it was not there.
    pub fn remove(&mut self, number: u64) -> bool {
        let Some(place) = self.places.remove(&number) else { return false };
        self.full -= usize::from(self.members[place as usize].is_full());
        self.leave_load(place);
        self.order.take(&mut self.members, place);
        self.members.swap_remove(place as usize);
        if let Some(moved) = self.members.get(place as usize) {
            let (number, load, is_full) = (moved.number, moved.load(), moved.is_full());
            self.places.insert(number, place);
            self.order.moved(&mut self.members, place);
            if self.has_loads() && !is_full {
                self.loads[load].moved(&mut self.members, place);
            }
        }
        true
    }

    /// A callee that was just picked gets the call.
    pub fn take(&mut self, picked: Picked) {
        self.change(picked.place, |member| member.open += 1);
    }

    /// Where the shard has the registration of a callee that was just picked.
    #[inline]
    pub fn learn(&mut self, picked: Picked, procedure: u32) {
        self.members[picked.place as usize].procedure = procedure;
    }

    /// A callee has answered a call, or need not. One that has left is not looked for.
    pub fn release(&mut self, number: u64, place: u32) {
        let is_there = self.members.get(place as usize).is_some_and(|member| member.number == number);
        let place = if is_there { Some(place) } else { self.places.get(&number).copied() };
        if let Some(place) = place {
            self.change(place, |member| member.open = member.open.saturating_sub(1));
        }
    }

    #[inline]
    fn change(&mut self, place: u32, change: impl FnOnce(&mut Member)) {
        let was_full = self.members[place as usize].is_full();
        self.leave_load(place);
        let member = &mut self.members[place as usize];
        change(member);
        self.full = self.full + usize::from(member.is_full()) - usize::from(was_full);
        self.enter_load(place);
    }

    fn has_loads(&self) -> bool {
        self.invoke == Invoke::LeastLoaded
    }

    #[inline]
    fn enter_load(&mut self, place: u32) {
        let member = &self.members[place as usize];
        if !self.has_loads() || member.is_full() {
            return;
        }
        let load = member.load();
        if self.loads.len() <= load {
            self.loads.resize(load + 1, Chain::EMPTY);
        }
        self.loads[load].push(&mut self.members, place);
        self.load_min = self.load_min.min(load);
    }

    #[inline]
    fn leave_load(&mut self, place: u32) {
        let member = &self.members[place as usize];
        if !self.has_loads() || member.is_full() {
            return;
        }
        let load = member.load();
        self.loads[load].take(&mut self.members, place);
        while self.loads.get(self.load_min).is_some_and(|chain| chain.first().is_none()) {
            self.load_min += 1;
        }
    }

    /// Who gets a call: none of `tried`, and nobody that has as many calls as it takes.
    pub fn pick(&mut self, key: Key, tried: &[u64], rng: &mut Rng) -> Option<Picked> {
        if self.full >= self.len() {
            return None;
        }
        let place = if key.bound {
            Some(jump(key.hash, self.len() as u32)).filter(|place| self.is_free(*place, tried))
        } else {
            self.place(key, tried, rng)
        }?;
        let Member { number, owner, procedure, .. } = self.members[place as usize];
        if self.invoke == Invoke::RoundRobin {
            (self.last, self.last_place) = (number, place);
        }
        Some(Picked { number, place, owner, procedure })
    }

    fn place(&self, key: Key, tried: &[u64], rng: &mut Rng) -> Option<u32> {
        let is_free = |place: &u32| self.is_free(*place, tried);
        match self.invoke {
            Invoke::Single | Invoke::First => self.order.iter(&self.members).find(is_free),
            Invoke::Last => self.order.iter_back(&self.members).find(is_free),
            Invoke::RoundRobin => {
                let after = Chain::<ORDER>::iter_from(&self.members, self.next_in_turn());
                after.chain(self.order.iter(&self.members)).take(self.len() + 1).find(is_free)
            }
            Invoke::Random => self.draw(tried, rng),
            Invoke::JumpHash => self.hashed(key.hash, tried),
            Invoke::LeastLoaded => {
                let loads = self.loads.get(self.load_min..).unwrap_or_default();
                loads.iter().flat_map(|chain| chain.iter(&self.members)).find(is_free)
            }
            Invoke::LeastLoadedSample => {
                let (first, second) = (self.draw(tried, rng)?, self.draw(tried, rng)?);
                let open = |place: u32| self.members[place as usize].open;
                Some(if open(second) < open(first) { second } else { first })
            }
        }
    }

    /// Who comes after the one that was called last, if anybody does.
    #[inline]
    fn next_in_turn(&self) -> Option<u32> {
        match self.members.get(self.last_place as usize) {
            Some(last) if last.number == self.last => last.links[ORDER].after(),
            // It has left, or its place is another one.
            _ => self.places.range(self.last + 1..).next().map(|(_, place)| *place),
        }
    }

    #[inline]
    fn is_free(&self, place: u32, tried: &[u64]) -> bool {
        let member = &self.members[place as usize];
        !member.is_full() && !tried.contains(&member.number)
    }

    /// One at random, each as likely as any other unless nearly all are not free.
    fn draw(&self, tried: &[u64], rng: &mut Rng) -> Option<u32> {
        for _ in 0..DRAWS_MAX {
            let place = rng.u32(..self.len() as u32);
            if self.is_free(place, tried) {
                return Some(place);
            }
        }
        self.free_from(rng.u32(..self.len() as u32), tried)
    }

    /// The callee of a key; when that is not free, the same other one for all calls of the key.
    fn hashed(&self, key: u64, tried: &[u64]) -> Option<u32> {
        let mut hash = key;
        let mut place = 0;
        for _ in 0..DRAWS_MAX {
            place = jump(hash, self.len() as u32);
            if self.is_free(place, tried) {
                return Some(place);
            }
            hash = (hash ^ hash >> 31).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
        }
        self.free_from(place, tried)
    }

    fn free_from(&self, start: u32, tried: &[u64]) -> Option<u32> {
        (start..self.len() as u32).chain(0..start).find(|place| self.is_free(*place, tried))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::ids::ShardId;
    use common::share::routing_key;

    const ANY: Key = Key { hash: 7, bound: false };

    fn members(invoke: Invoke, numbers: impl IntoIterator<Item = u64>) -> Members {
        let mut members = Members::new(invoke);
        for number in numbers {
            members.insert(number, Owner { shard: ShardId(0), slot: number as u32, session: number }, 0);
        }
        members
    }

    fn picks(members: &mut Members, count: usize) -> Vec<u64> {
        let mut rng = Rng::with_seed(5);
        (0..count).map(|_| members.pick(ANY, &[], &mut rng).expect("one is free").number).collect()
    }

    fn pick(members: &mut Members, key: Key, tried: &[u64], rng: &mut Rng) -> Option<u64> {
        members.pick(key, tried, rng).map(|picked| picked.number)
    }

    fn check(members: &Members) {
        assert_eq!(members.members.len(), members.places.len());
        for (place, member) in members.members.iter().enumerate() {
            assert_eq!(members.places[&member.number] as usize, place);
        }
        let full = members.members.iter().filter(|member| member.is_full()).count();
        assert_eq!(members.full, full);
        let order: Vec<u32> = members.order.iter(&members.members).collect();
        assert!(order.iter().eq(members.places.values()));
        assert!(members.order.iter_back(&members.members).eq(order.into_iter().rev()));
        if members.has_loads() {
            let least = members.members.iter().filter(|member| !member.is_full()).map(Member::load).min();
            assert!(least.is_none_or(|least| least == members.load_min));
            let mut loads = Vec::new();
            for (load, chain) in members.loads.iter().enumerate() {
                loads.extend(chain.iter(&members.members));
                assert!(chain.iter(&members.members).all(|at| members.members[at as usize].load() == load));
            }
            loads.sort_unstable();
            assert!(loads.windows(2).all(|pair| pair[0] != pair[1]));
            assert_eq!(loads.len(), members.len() - full);
        }
    }

    #[test]
    fn it_goes_round_in_the_order_of_registration() {
        let mut members = members(Invoke::RoundRobin, [3, 5, 9]);
        assert_eq!(picks(&mut members, 5), [3, 5, 9, 3, 5]);
        members.remove(9);
        members.insert(11, Owner { shard: ShardId(0), slot: 0, session: 1 }, 0);
        assert_eq!(picks(&mut members, 4), [11, 3, 5, 11]);
        members.remove(11);
        assert_eq!(picks(&mut members, 2), [3, 5], "the one called last has left");
    }

    #[test]
    fn the_first_and_the_last_are_those_that_registered_so() {
        let (mut first, mut last) = (members(Invoke::First, [3, 5, 9]), members(Invoke::Last, [3, 5, 9]));
        assert_eq!((picks(&mut first, 2), picks(&mut last, 2)), (vec![3, 3], vec![9, 9]));
        let mut rng = Rng::with_seed(1);
        assert_eq!(pick(&mut first, ANY, &[3], &mut rng), Some(5), "the one that registered after it");
        assert_eq!(pick(&mut last, ANY, &[9], &mut rng), Some(5), "the one that registered right before it");
        assert_eq!(pick(&mut last, ANY, &[9, 3, 5], &mut rng), None);
        first.remove(3);
        last.remove(9);
        assert_eq!((picks(&mut first, 1), picks(&mut last, 1)), (vec![5], vec![5]));
    }

    #[test]
    fn callees_register_after_all_that_were_heard_of() {
        let mut members = members(Invoke::First, [3, 5]);
        assert_eq!(members.span(), (3, 5));
        members.follow(40);
        members.insert(6, Owner { shard: ShardId(0), slot: 0, session: 1 }, 0);
        members.remove(3);
        assert_eq!(members.span(), (5, 41));
    }

    #[test]
    fn drawing_reaches_all_and_favours_none() {
        let mut members = members(Invoke::Random, 1..=20);
        let mut counts = [0u32; 21];
        picks(&mut members, 20_000).into_iter().for_each(|number| counts[number as usize] += 1);
        assert!(counts[1..].iter().all(|count| (850..1_150).contains(count)), "{counts:?}");
        let two = picks(&mut members, 1_000);
        assert!(two.windows(2).any(|pair| pair[0] == pair[1]), "it is no shuffle");
    }

    #[test]
    fn the_least_loaded_gets_the_call() {
        let mut members = members(Invoke::LeastLoaded, 1..=4);
        for _ in 0..3 {
            let mut round: Vec<u64> = (0..4)
                .map(|_| {
                    let picked = members.pick(ANY, &[], &mut Rng::with_seed(5)).expect("one is free");
                    members.take(picked);
                    picked.number
                })
                .collect();
            round.sort_unstable();
            assert_eq!(round, [1, 2, 3, 4]);
        }
        members.release(3, 0);
        assert_eq!(picks(&mut members, 1), [3]);
    }

    #[test]
    fn two_random_choices_keep_loads_even() {
        let mut members = members(Invoke::LeastLoadedSample, 1..=100);
        let mut rng = Rng::with_seed(3);
        for _ in 0..10_000 {
            let picked = members.pick(ANY, &[], &mut rng).unwrap();
            members.take(picked);
        }
        let loads: Vec<u32> = members.iter().map(|(_, member)| member.open).collect();
        assert!(loads.iter().all(|open| (90..=105).contains(open)), "{loads:?}");
    }

    #[test]
    fn a_key_has_one_callee_and_few_move_when_one_comes_or_goes() {
        let mut members = members(Invoke::JumpHash, 1..=50);
        let mut rng = Rng::with_seed(1);
        let keys: Vec<u64> = (0..5_000u32).map(|n| routing_key(&n.to_le_bytes())).collect();
        let mut all = |members: &mut Members, bound: bool| -> Vec<u64> {
            keys.iter()
                .map(|hash| pick(members, Key { hash: *hash, bound }, &[], &mut rng).unwrap())
                .collect()
        };
        let before = all(&mut members, false);
        assert_eq!(before, all(&mut members, true));
        members.remove(17);
        let after = all(&mut members, false);
        let moved = before.iter().zip(&after).filter(|(old, new)| old != new).count();
        assert!(moved < 5_000 * 3 / 50, "{moved} of 5000 keys moved, two callees' worth at most");
        members.insert(99, Owner { shard: ShardId(0), slot: 0, session: 1 }, 0);
        let last = all(&mut members, false);
        let moved = after.iter().zip(&last).filter(|(old, new)| old != new);
        assert!(moved.clone().all(|(_, new)| *new == 99) && moved.count() < 5_000 * 3 / 100);
    }

    #[test]
    fn a_callee_that_has_as_many_calls_as_it_takes_is_passed_over() {
        for invoke in Invoke::ALL {
            let mut members = Members::new(invoke);
            for number in 1..=3 {
                members.insert(number, Owner { shard: ShardId(0), slot: 0, session: number }, 2);
            }
            let mut rng = Rng::with_seed(1);
            let mut got = [0; 4];
            for _ in 0..6 {
                let picked = members.pick(ANY, &[], &mut rng).expect("one takes more");
                members.take(picked);
                got[picked.number as usize] += 1;
                check(&members);
            }
            assert_eq!(got, [0, 2, 2, 2], "{invoke:?}");
            assert_eq!(members.pick(ANY, &[], &mut rng), None);
            members.release(2, u32::MAX);
            assert_eq!(pick(&mut members, ANY, &[], &mut rng), Some(2));
            assert_eq!(pick(&mut members, ANY, &[2], &mut rng), None);
            let bound = Key { hash: 7, bound: true };
            let owner = members.members[jump(7, 3) as usize].number;
            assert_eq!(pick(&mut members, bound, &[], &mut rng), (owner == 2).then_some(2));
            members.remove(1);
            members.remove(1);
            check(&members);
        }
    }

    #[test]
    fn whatever_happens_the_tables_agree() {
        let mut rng = Rng::with_seed(11);
        for invoke in Invoke::ALL {
            let mut members = Members::new(invoke);
            let mut next = 0;
            for _ in 0..3_000 {
                let any = members.members.get(rng.usize(..20)).map(|member| member.number);
                match (rng.u8(..6), any) {
                    (0 | 1, _) => {
                        next += 1;
                        let owner = Owner { shard: ShardId(0), slot: 0, session: next };
                        members.insert(next, owner, rng.u32(..3));
                    }
                    (2, Some(number)) => assert!(members.remove(number)),
                    (3, Some(number)) => members.release(number, rng.u32(..20)),
                    _ => {
                        if let Some(picked) = members.pick(ANY, &[1, 2], &mut rng) {
                            assert!(picked.number > 2);
                            members.take(picked);
                        }
                    }
                }
                check(&members);
            }
        }
    }
}
