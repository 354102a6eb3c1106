//! Dotted version vector sets: which writes of an object were seen, and which of their values still compete. Pure.
//!
//! Of an entry `(actor, n, values)` the value at position `p`, newest first, has the dot `(actor, n - p)`; the dots below
//! those were seen and overwritten. Values without a dot are never kept, so a set with history always says what
//! overwrote what. (Almeida, Baquero, Gonçalves, Preguiça, Fonte: "Scalable and Accurate Causality Tracking for
//! Eventually Consistent Stores", 2014.)
//!
//! Invariants: entries are sorted by actor and unique; no counter is 0; no entry has more values than its counter;
//! [`DvvSet::sync`] is commutative, associative and idempotent, and drops no value whose dot the other side has not
//! seen. They hold as long as no dot is given out twice, which is what [`Actor::epoch`] is for; two values under one dot
//! are settled alike everywhere all the same: the greater one stays.

use std::cmp::Ordering;
use std::fmt;

/// One node's store in one of its lives. A store that is created, restored, copied or reopened after an error gets a new
/// epoch, so no dot is ever given out twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Actor {
    pub node: [u8; 16],
    pub epoch: u64,
}

/// What an actor has done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry<V> {
    pub actor: Actor,
    pub counter: u64,
    /// Newest first.
    pub values: Vec<V>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DvvSet<V> {
    pub(crate) entries: Vec<Entry<V>>,
}

/// The writes somebody has seen, as a version vector: a reader hands it back with its next write.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Context(Vec<(Actor, u64)>);

/// The set was not changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the history has {ENTRIES_MAX} entries already")]
pub struct TooManyActors;

impl<V> Default for DvvSet<V> {
    fn default() -> Self {
        Self { entries: Vec::new() }
    }
}

impl<V> DvvSet<V> {
    /// A set with one value, the first write of `actor`.
    pub fn new(actor: Actor, value: V) -> Self {
        Self { entries: vec![Entry { actor, counter: 1, values: vec![value] }] }
    }

    /// Sorted by actor.
    pub fn entries(&self) -> &[Entry<V>] {
        &self.entries
    }

    /// Every value that competes, in the order of the entries, newest first within one.
    pub fn values(&self) -> impl Iterator<Item = &V> + Clone {
        self.entries.iter().flat_map(|entry| &entry.values)
    }

    pub fn context(&self) -> Context {
        Context(self.entries.iter().map(|entry| (entry.actor, entry.counter)).collect())
    }

    /// Drops the values `context` has seen and takes over its history.
    pub fn discard(&mut self, context: &Context) {
        for &(actor, seen) in &context.0 {
            match self.position(actor) {
                Ok(at) => {
                    let entry = &mut self.entries[at];
                    // Of the dots after `seen` all values stay.
                    let unseen = usize::try_from(entry.counter.saturating_sub(seen)).unwrap_or(usize::MAX);
                    entry.values.truncate(unseen);
                    entry.counter = entry.counter.max(seen);
                }
                Err(at) => self.entries.insert(at, Entry { actor, counter: seen, values: Vec::new() }),
            }
        }
    }

    /// A write by `actor` that has seen nothing: it competes with every value. On error nothing was changed.
    pub fn event(&mut self, actor: Actor, value: V) -> Result<(), TooManyActors> {
        self.event_after(actor, 0, value)
    }

    /// The same, and the first dot of `actor` here follows `counter`: dots up to it were given out in a history that was
    /// forgotten, and nothing they stood for is left.
    pub fn event_after(&mut self, actor: Actor, counter: u64, value: V) -> Result<(), TooManyActors> {
        match self.position(actor) {
            Ok(at) => {
                // Nobody counts to 2^64.
                self.entries[at].counter += 1;
                self.entries[at].values.insert(0, value);
            }
            Err(_) if self.entries.len() >= ENTRIES_MAX => return Err(TooManyActors),
            Err(at) => self.entries.insert(at, Entry { actor, counter: counter + 1, values: vec![value] }),
        }
        Ok(())
    }

    /// A write that overwrites what `context` has seen and competes with the rest. On error nothing was changed.
    pub fn update(&mut self, context: &Context, actor: Actor, value: V) -> Result<(), TooManyActors> {
        self.update_after(context, actor, 0, value)
    }

    /// The same, with the counter of [`DvvSet::event_after`].
    pub fn update_after(
        &mut self,
        context: &Context,
        actor: Actor,
        counter: u64,
        value: V,
    ) -> Result<(), TooManyActors> {
        let unknown = |known: Actor| self.position(known).is_err();
        let mut new = context.0.iter().filter(|pair| unknown(pair.0)).count();
        let in_context = context.0.iter().any(|pair| pair.0 == actor);
        new += usize::from(unknown(actor) && !in_context);
        if new > 0 && self.entries.len() + new > ENTRIES_MAX {
            return Err(TooManyActors);
        }
        self.discard(context);
        self.event_after(actor, counter, value)
    }

    /// What is known here against what is known there: `Less` if there everything is known that is known here, and more.
    /// None: each side knows a write the other does not. Values are not looked at.
    pub fn compare(&self, other: &Self) -> Option<Ordering> {
        let less = self.is_within(other);
        match (less, other.is_within(self)) {
            (true, true) => Some(Ordering::Equal),
            (true, false) => Some(Ordering::Less),
            (false, true) => Some(Ordering::Greater),
            (false, false) => None,
        }
    }

    /// Keeps of all values only the greatest by `order`, and those its actor wrote after it. The history stays.
    pub fn keep_greatest(&mut self, mut order: impl FnMut(&V, &V) -> Ordering) {
        let dots = self.entries.iter().enumerate().flat_map(|(at, entry)| {
            entry.values.iter().enumerate().map(move |(position, value)| (at, position, value))
        });
        let Some((kept, position, _)) = dots.max_by(|one, other| order(one.2, other.2)) else { return };
        for (at, entry) in self.entries.iter_mut().enumerate() {
            entry.values.truncate(if at == kept { position + 1 } else { 0 });
        }
    }

    fn is_within(&self, other: &Self) -> bool {
        self.entries.iter().all(|entry| {
            other.position(entry.actor).is_ok_and(|at| other.entries[at].counter >= entry.counter)
        })
    }

    fn position(&self, actor: Actor) -> Result<usize, usize> {
        self.entries.binary_search_by_key(&actor, |entry| entry.actor)
    }
}

impl<V: Clone + Ord> DvvSet<V> {
    /// Both histories as one: a value stays unless the side that lacks it has seen its dot.
    #[must_use]
    pub fn sync(&self, other: &Self) -> Self {
        let mut entries = Vec::with_capacity(self.entries.len().max(other.entries.len()));
        let (mut left, mut right) = (self.entries.iter().peekable(), other.entries.iter().peekable());
        loop {
            let order = match (left.peek(), right.peek()) {
                (None, None) => return Self { entries },
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(one), Some(other)) => one.actor.cmp(&other.actor),
            };
            match order {
                Ordering::Less => entries.extend(left.next().cloned()),
                Ordering::Greater => entries.extend(right.next().cloned()),
                Ordering::Equal => {
                    entries.extend(left.next().zip(right.next()).map(|(one, other)| sync_entry(one, other)));
                }
            }
        }
    }
}

impl<V: PartialEq> DvvSet<V> {
    /// How many dots have another value there. Each was given out twice.
    pub fn clashes(&self, other: &Self) -> usize {
        let both = self
            .entries
            .iter()
            .filter_map(|entry| other.position(entry.actor).ok().map(|at| (entry, &other.entries[at])));
        both.map(|(one, other)| {
            let (newer, older) = if one.counter >= other.counter { (one, other) } else { (other, one) };
            let ahead = usize::try_from(newer.counter - older.counter).unwrap_or(usize::MAX);
            newer.values.iter().skip(ahead).zip(&older.values).filter(|(one, other)| one != other).count()
        })
        .sum()
    }
}

/// Both entries are of one actor.
fn sync_entry<V: Clone + Ord>(one: &Entry<V>, other: &Entry<V>) -> Entry<V> {
    let (newer, older) = if one.counter >= other.counter { (one, other) } else { (other, one) };
    let ahead = newer.counter - older.counter;
    // The older side has overwritten all but its newest values.
    let kept = usize::try_from(ahead.saturating_add(older.values.len() as u64)).unwrap_or(usize::MAX);
    let mut values = newer.values[..newer.values.len().min(kept)].to_vec();
    let shared = values.iter_mut().skip(usize::try_from(ahead).unwrap_or(usize::MAX));
    for (value, same_dot) in shared.zip(&older.values) {
        if same_dot > value {
            value.clone_from(same_dot);
        }
    }
    Entry { actor: newer.actor, counter: newer.counter, values }
}

impl fmt::Display for Actor {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{:016x}", uuid::Uuid::from_bytes(self.node), self.epoch)
    }
}

/// Most actors in a history that a write here may lead to. What was merged may have more.
pub const ENTRIES_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    type Set = DvvSet<u32>;
    type Dot = (Actor, u64);

    fn actor(number: u8) -> Actor {
        Actor { node: [number; 16], epoch: 7 }
    }

    /// The same with plain sets of dots.
    #[derive(Clone, PartialEq, Eq, Default, Debug)]
    struct Model {
        seen: BTreeSet<Dot>,
        values: BTreeMap<Dot, u32>,
    }

    impl Model {
        fn update(&mut self, context: &BTreeSet<Dot>, actor: Actor, value: u32) {
            self.values.retain(|dot, _| !context.contains(dot));
            self.seen.extend(context);
            let counter = self.seen.iter().filter(|dot| dot.0 == actor).map(|dot| dot.1).max();
            let dot = (actor, counter.unwrap_or(0) + 1);
            self.seen.insert(dot);
            self.values.insert(dot, value);
        }

        fn sync(&self, other: &Self) -> Self {
            let stays = |dot: &Dot, there: &Self| there.values.contains_key(dot) || !there.seen.contains(dot);
            let ours = self.values.iter().filter(|(dot, _)| stays(dot, other));
            let theirs = other.values.iter().filter(|(dot, _)| stays(dot, self));
            let values = ours.chain(theirs).map(|(dot, value)| (*dot, *value)).collect();
            Self { seen: self.seen.union(&other.seen).copied().collect(), values }
        }

        /// What `set` stands for.
        fn of(set: &Set) -> Self {
            let mut model = Self::default();
            for entry in set.entries() {
                model.seen.extend((1..=entry.counter).map(|counter| (entry.actor, counter)));
                let dots = (1..=entry.counter).rev().map(|counter| (entry.actor, counter));
                model.values.extend(dots.zip(entry.values.iter().copied()));
            }
            model
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Read { replica: usize, client: usize },
        Write { replica: usize, client: usize },
        Event { replica: usize },
        Sync { from: usize, to: usize },
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let (replica, client) = (0..REPLICAS, 0..3usize);
        let step = prop_oneof![
            (replica.clone(), client.clone()).prop_map(|(replica, client)| Step::Read { replica, client }),
            (replica.clone(), client).prop_map(|(replica, client)| Step::Write { replica, client }),
            replica.clone().prop_map(|replica| Step::Event { replica }),
            (replica.clone(), replica).prop_map(|(from, to)| Step::Sync { from, to }),
        ];
        proptest::collection::vec(step, 1..60)
    }

    /// Runs the steps on sets and on models and compares after each.
    fn run(steps: &[Step]) -> Vec<Set> {
        let mut sets = vec![Set::default(); REPLICAS];
        let mut models = vec![Model::default(); REPLICAS];
        let mut contexts = vec![(Context::default(), BTreeSet::new()); 3];
        for (value, step) in steps.iter().enumerate() {
            let value = value as u32;
            match *step {
                Step::Read { replica, client } => {
                    contexts[client] = (sets[replica].context(), models[replica].seen.clone());
                }
                Step::Write { replica, client } => {
                    let (context, seen) = &contexts[client];
                    sets[replica].update(context, actor(replica as u8), value).unwrap();
                    // A write that has seen dots of this very actor that are not here needs a lost store.
                    models[replica].update(seen, actor(replica as u8), value);
                }
                Step::Event { replica } => {
                    sets[replica].event(actor(replica as u8), value).unwrap();
                    models[replica].update(&BTreeSet::new(), actor(replica as u8), value);
                }
                Step::Sync { from, to } => {
                    sets[to] = sets[to].sync(&sets[from]);
                    models[to] = models[to].sync(&models[from]);
                }
            }
            for (set, model) in sets.iter().zip(&models) {
                assert_eq!(&Model::of(set), model);
            }
        }
        sets
    }

    #[test]
    fn a_write_that_saw_a_value_replaces_it_and_one_that_did_not_competes() {
        let mut set = Set::new(actor(1), 1);
        let seen = set.context();
        set.update(&Context::default(), actor(1), 2).unwrap();
        assert_eq!(set.values().copied().collect::<Vec<_>>(), [2, 1]);
        set.update(&seen, actor(2), 3).unwrap();
        assert_eq!(set.values().copied().collect::<Vec<_>>(), [2, 3], "1 was seen, 2 was not");
        set.update(&set.context(), actor(2), 4).unwrap();
        assert_eq!(set.values().copied().collect::<Vec<_>>(), [4]);
    }

    #[test]
    fn two_values_under_one_dot_are_settled_alike_on_both_sides() {
        let (one, other) = (Set::new(actor(1), 1), Set::new(actor(1), 2));
        assert_eq!(one.sync(&other), other);
        assert_eq!(other.sync(&one), other);
        assert_eq!((one.clashes(&other), one.clashes(&one)), (1, 0));
        let mut later = one.clone();
        later.event(actor(1), 7).unwrap();
        assert_eq!((later.clashes(&other), other.clashes(&later), later.clashes(&one)), (1, 1, 0));
    }

    #[test]
    fn dots_begin_after_those_of_a_forgotten_history() {
        let mut gone = Set::default();
        (0..5).for_each(|value| gone.update(&gone.context(), actor(1), value).unwrap());
        let mut again = Set::default();
        again.event_after(actor(1), 5, 9).unwrap();
        assert_eq!(gone.sync(&again), again, "whoever still has the old history takes the new value");
        again.event_after(actor(1), 5, 10).unwrap();
        assert_eq!(again.entries()[0].counter, 7);
    }

    #[test]
    fn the_number_of_actors_is_bounded_and_a_refused_write_changes_nothing() {
        let mut set = Set::default();
        for epoch in 0..ENTRIES_MAX as u64 {
            set.event(Actor { epoch, ..actor(1) }, 0).unwrap();
        }
        let before = set.clone();
        assert_eq!(set.event(actor(2), 1), Err(TooManyActors));
        assert_eq!(set.update(&set.context(), actor(2), 1), Err(TooManyActors));
        assert_eq!(set.update(&Set::new(actor(2), 1).context(), actor(1), 1), Err(TooManyActors));
        assert_eq!(set, before);
        assert_eq!(set.update(&set.context(), actor(1), 1), Ok(()), "a known actor goes on writing");
    }

    #[test]
    fn a_counter_near_the_end_of_numbers_does_no_harm() {
        let far = Entry { actor: actor(1), counter: u64::MAX, values: vec![1, 2] };
        let far = Set { entries: vec![far] };
        let near = Set::new(actor(1), 3);
        assert_eq!(far.sync(&near), far);
        assert_eq!(near.sync(&far), far);
    }

    #[test]
    fn the_greatest_alone_is_kept_with_the_history() {
        let mut set = Set::new(actor(1), 5);
        set.event(actor(2), 9).unwrap();
        set.event(actor(3), 7).unwrap();
        let context = set.context();
        set.keep_greatest(Ord::cmp);
        assert_eq!(set.values().copied().collect::<Vec<_>>(), [9]);
        assert_eq!(set.context(), context);
    }

    proptest! {
        #[test]
        fn sets_agree_with_plain_sets_of_dots(steps in steps()) {
            run(&steps);
        }

        #[test]
        fn sync_is_a_join(steps in steps()) {
            let sets = run(&steps);
            let [a, b, c] = [&sets[0], &sets[1], &sets[2]];
            prop_assert_eq!(a.sync(b), b.sync(a));
            prop_assert_eq!(a.sync(b).sync(c), a.sync(&b.sync(c)));
            prop_assert_eq!(&a.sync(a), a);
            let both = a.sync(b);
            prop_assert_eq!(both.sync(a), both.clone());
            prop_assert!(matches!(a.compare(&both), Some(Ordering::Less | Ordering::Equal)));
            prop_assert_eq!(a.compare(b), b.compare(a).map(Ordering::reverse));
            prop_assert_eq!(a.compare(b) == Some(Ordering::Equal), a.context() == b.context());
        }
    }

    const REPLICAS: usize = 4;
}
