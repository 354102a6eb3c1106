//! The callees of one shared registration, and the choice among them. Pure: the random numbers come in.
//!
//! Invariants: `places` has every number once; `loads` has every member under what it has open, if the policy looks at
//! loads; `full` counts the members that have as many calls as they take.
//!
//! Each choice costs O(log n), and O(n) at most when nearly all callees have as many calls as they take.

use crate::mesh::Owner;
use common::share::{Invoke, jump};
use fastrand::Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

/// One callee.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member {
    pub owner: Owner,
    /// When it registered, by the logical clock of all nodes.
    stamp: u64,
    /// Most calls at a time; 0: no bound.
    concurrency: u32,
    /// Calls it has to answer.
    open: u32,
    /// When it got the last one, as a count of calls.
    turn: u64,
    /// Where it is in `places`.
    place: u32,
}

impl Member {
    fn is_full(&self) -> bool {
        self.concurrency != 0 && self.open >= self.concurrency
    }
}

/// What chooses besides the policy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Key {
    pub hash: u64,
    /// Nobody but the callee of this key may have the call.
    pub bound: bool,
}

/// Callees by number; numbers ascend in the order of registration.
#[derive(Debug)]
pub(super) struct Members {
    pub invoke: Invoke,
    members: BTreeMap<u64, Member>,
    /// In no order, for drawing; one that leaves is replaced by the last, so that few keys move.
    places: Vec<u64>,
    /// (open, turn, number): of those with the fewest open calls the one that had none for the longest time comes first.
    loads: BTreeSet<(u32, u64, u64)>,
    turns: u64,
    full: usize,
    /// Who was called last, when it goes round.
    last: u64,
    /// The latest stamp.
    clock: u64,
}

/// Callees of one shared registration on one node: bounds a choice when nearly all are full.
pub(super) const CALLEES_MAX: usize = 16_384;
/// Random draws, and hashes of a key, before free members are looked for one by one.
const DRAWS_MAX: usize = 8;

impl Members {
    pub fn new(invoke: Invoke) -> Self {
        Self {
            invoke,
            members: BTreeMap::new(),
            places: Vec::new(),
            loads: BTreeSet::new(),
            turns: 0,
            full: 0,
            last: 0,
            clock: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.places.len()
    }

    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    pub fn get(&self, number: u64) -> Option<&Member> {
        self.members.get(&number)
    }

    /// In the order of registration.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Member)> {
        self.members.iter().map(|(number, member)| (*number, member))
    }

    /// Adds a callee with a number greater than all before.
    pub fn insert(&mut self, number: u64, owner: Owner, concurrency: u32) {
        self.clock = number.max(self.clock + 1);
        let (stamp, place) = (self.clock, self.places.len() as u32);
        let member = Member { owner, stamp, concurrency, open: 0, turn: 0, place };
        self.places.push(number);
        self.members.insert(number, member);
        if self.has_loads() {
            self.loads.insert((0, 0, number));
        }
    }

    /// The next callee registers after `stamp`, of another node's.
    pub fn follow(&mut self, stamp: u64) {
        self.clock = self.clock.max(stamp);
    }

    /// When the first and the last of the callees registered.
    pub fn span(&self) -> (u64, u64) {
        let stamp = |entry: Option<(&u64, &Member)>| entry.map_or(0, |(_, member)| member.stamp);
        (stamp(self.members.first_key_value()), stamp(self.members.last_key_value()))
    }

    /// False when it was not there.
    pub fn remove(&mut self, number: u64) -> bool {
        let Some(member) = self.members.remove(&number) else { return false };
        self.full -= usize::from(member.is_full());
        self.loads.remove(&(member.open, member.turn, number));
        self.places.swap_remove(member.place as usize);
        if let Some(moved) = self.places.get(member.place as usize)
            && let Some(moved) = self.members.get_mut(moved)
        {
            moved.place = member.place;
        }
        true
    }

    /// A callee gets a call.
    pub fn take(&mut self, number: u64) {
        self.turns += 1;
        let turn = self.turns;
        self.change(number, |member| (member.open, member.turn) = (member.open + 1, turn));
    }

    /// A callee has answered a call, or need not. One that has left is not looked for.
    pub fn release(&mut self, number: u64) {
        self.change(number, |member| member.open = member.open.saturating_sub(1));
    }

    fn change(&mut self, number: u64, change: impl FnOnce(&mut Member)) {
        let has_loads = self.has_loads();
        let Some(member) = self.members.get_mut(&number) else { return };
        let (before, was_full) = (*member, member.is_full());
        change(member);
        self.full = self.full + usize::from(member.is_full()) - usize::from(was_full);
        if has_loads {
            let (open, turn) = (member.open, member.turn);
            self.loads.remove(&(before.open, before.turn, number));
            self.loads.insert((open, turn, number));
        }
    }

    fn has_loads(&self) -> bool {
        self.invoke == Invoke::LeastLoaded
    }

    /// Who gets a call: none of `tried`, and nobody that has as many calls as it takes.
    pub fn pick(&mut self, key: Key, tried: &[u64], rng: &mut Rng) -> Option<u64> {
        if self.full >= self.len() {
            return None;
        }
        if key.bound {
            let number = self.places[jump(key.hash, self.len() as u32) as usize];
            return self.is_free(number, tried).then_some(number);
        }
        let is_free = |number: &u64| self.is_free(*number, tried);
        match self.invoke {
            Invoke::Single | Invoke::First => self.members.keys().copied().find(is_free),
            Invoke::Last => self.members.keys().rev().copied().find(is_free),
            Invoke::RoundRobin => {
                let after = self.members.range((Bound::Excluded(self.last), Bound::Unbounded));
                let picked =
                    after.chain(self.members.range(..=self.last)).map(|(number, _)| *number).find(is_free)?;
                self.last = picked;
                Some(picked)
            }
            Invoke::Random => self.draw(tried, rng),
            Invoke::JumpHash => self.hashed(key.hash, tried),
            Invoke::LeastLoaded => self.loads.iter().map(|(.., number)| *number).find(is_free),
            Invoke::LeastLoadedSample => {
                let first = self.draw(tried, rng)?;
                let second = self.draw(tried, rng)?;
                let open = |number: &u64| self.members.get(number).map_or(u32::MAX, |member| member.open);
                Some(if open(&second) < open(&first) { second } else { first })
            }
        }
    }

    fn is_free(&self, number: u64, tried: &[u64]) -> bool {
        !tried.contains(&number) && self.members.get(&number).is_some_and(|member| !member.is_full())
    }

    /// One at random, each as likely as any other unless nearly all are not free.
    fn draw(&self, tried: &[u64], rng: &mut Rng) -> Option<u64> {
        for _ in 0..DRAWS_MAX {
            let number = self.places[rng.usize(..self.len())];
            if self.is_free(number, tried) {
                return Some(number);
            }
        }
        self.free_from(rng.usize(..self.len()), tried)
    }

    /// The callee of a key; when that is not free, the same other one for all calls of the key.
    fn hashed(&self, key: u64, tried: &[u64]) -> Option<u64> {
        let mut hash = key;
        let mut place = 0;
        for _ in 0..DRAWS_MAX {
            place = jump(hash, self.len() as u32) as usize;
            let number = self.places[place];
            if self.is_free(number, tried) {
                return Some(number);
            }
            hash = (hash ^ hash >> 31).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
        }
        self.free_from(place, tried)
    }

    fn free_from(&self, start: usize, tried: &[u64]) -> Option<u64> {
        let (before, after) = self.places.split_at(start);
        after.iter().chain(before).copied().find(|number| self.is_free(*number, tried))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::ids::ShardId;
    use common::share::routing_key;
    use std::collections::BTreeSet;

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
        (0..count).map(|_| members.pick(ANY, &[], &mut rng).expect("one is free")).collect()
    }

    fn check(members: &Members) {
        assert_eq!(members.members.len(), members.places.len());
        for (place, number) in members.places.iter().enumerate() {
            assert_eq!(members.members[number].place as usize, place);
        }
        let full = members.members.values().filter(|member| member.is_full()).count();
        assert_eq!(members.full, full);
        if members.has_loads() {
            let loads: BTreeSet<_> =
                members.iter().map(|(number, member)| (member.open, member.turn, number)).collect();
            assert_eq!(members.loads, loads);
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
        assert_eq!(first.pick(ANY, &[3], &mut rng), Some(5), "the one that registered after it");
        assert_eq!(last.pick(ANY, &[9], &mut rng), Some(5), "the one that registered right before it");
        assert_eq!(last.pick(ANY, &[9, 3, 5], &mut rng), None);
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
                    let number = picks(&mut members, 1)[0];
                    members.take(number);
                    number
                })
                .collect();
            round.sort_unstable();
            assert_eq!(round, [1, 2, 3, 4]);
        }
        members.release(3);
        assert_eq!(picks(&mut members, 1), [3]);
    }

    #[test]
    fn two_random_choices_keep_loads_even() {
        let mut members = members(Invoke::LeastLoadedSample, 1..=100);
        let mut rng = Rng::with_seed(3);
        for _ in 0..10_000 {
            let number = members.pick(ANY, &[], &mut rng).unwrap();
            members.take(number);
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
            keys.iter().map(|hash| members.pick(Key { hash: *hash, bound }, &[], &mut rng).unwrap()).collect()
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
                let number = members.pick(ANY, &[], &mut rng).expect("one takes more");
                members.take(number);
                got[number as usize] += 1;
                check(&members);
            }
            assert_eq!(got, [0, 2, 2, 2], "{invoke:?}");
            assert_eq!(members.pick(ANY, &[], &mut rng), None);
            members.release(2);
            assert_eq!(members.pick(ANY, &[], &mut rng), Some(2));
            assert_eq!(members.pick(ANY, &[2], &mut rng), None);
            let bound = Key { hash: 7, bound: true };
            let owner = members.places[jump(7, 3) as usize];
            assert_eq!(members.pick(bound, &[], &mut rng), (owner == 2).then_some(2));
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
                let any = members.places.get(rng.usize(..20)).copied();
                match (rng.u8(..6), any) {
                    (0 | 1, _) => {
                        next += 1;
                        let owner = Owner { shard: ShardId(0), slot: 0, session: next };
                        members.insert(next, owner, rng.u32(..3));
                    }
                    (2, Some(number)) => assert!(members.remove(number)),
                    (3, Some(number)) => members.release(number),
                    _ => {
                        if let Some(number) = members.pick(ANY, &[1, 2], &mut rng) {
                            assert!(number > 2);
                            members.take(number);
                        }
                    }
                }
                check(&members);
            }
        }
    }
}
