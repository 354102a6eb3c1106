//! Values that compete: which one is used, by the type of the object, and the list of what was settled. Pure.
//!
//! Every node computes the same from the same values, so all use one value before any of them has stored it.
//!
//! | rule | of | of values that compete |
//! | --- | --- | --- |
//! | fields | realms | each field from the side that changed it last; a change wins over a deletion that did not see it, because a deletion can be said again and a lost change cannot |
//! | revoke | what gives rights | a deletion wins over a change that did not see it: a right that was taken away stays away |
//! | latest | all else | the one with the greatest stamp, the greater bytes among equals; a change wins over a deletion |

use super::realm;
use super::record::{Actor, Hlc, Kind, Object, Value};
use std::collections::{BTreeSet, VecDeque};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Rule {
    Fields,
    Revoke,
    Latest,
}

/// Values of one object that were written without knowledge of each other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Conflict {
    pub kind: Kind,
    pub key: String,
    /// When this node learnt of it, milliseconds since 1970.
    pub at_ms: u64,
    pub siblings: Vec<Sibling>,
    /// What is used; none: a deletion. Not longer than [`SHOWN_BYTES_MAX`].
    pub used: Option<Vec<u8>>,
    pub rule: Rule,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sibling {
    pub actor: Actor,
    pub stamp: Hlc,
    /// None: a deletion. Not longer than [`SHOWN_BYTES_MAX`].
    pub bytes: Option<Vec<u8>>,
}

/// The last conflicts.
#[derive(Clone, Default, Debug)]
pub struct Conflicts(VecDeque<Conflict>);

impl Rule {
    pub const ALL: [Self; 3] = [Self::Fields, Self::Revoke, Self::Latest];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Fields => "fields",
            Self::Revoke => "revoke",
            Self::Latest => "latest",
        }
    }

    /// That of a type of object.
    pub const fn of(kind: Kind) -> Self {
        match kind {
            Kind::Realm => Self::Fields,
            Kind::Retained => Self::Latest,
        }
    }

    /// What to use of the values of an object: its bytes, or none for a deletion.
    pub fn settle<'a>(self, values: impl Iterator<Item = &'a Value> + Clone) -> Option<Vec<u8>> {
        if self == Self::Revoke && values.clone().any(|value| value.bytes.is_none()) {
            return None;
        }
        let live = values.filter_map(|value| value.bytes.as_deref().map(|bytes| (value.hlc, bytes)));
        let latest = live.clone().max()?.1.to_vec();
        if self != Self::Fields || live.clone().count() < 2 {
            return Some(latest);
        }
        let fields: Result<Vec<_>, _> =
            live.map(|(stamp, bytes)| realm::Settings::decode(bytes, stamp)).collect();
        // Bytes that are no realm have no fields.
        let joined = fields.ok().and_then(|fields| fields.into_iter().reduce(realm::Settings::join));
        Some(joined.map_or(latest, |joined| joined.encode()))
    }
}

impl Conflicts {
    /// Remembers that the values of `object` compete, if they do and did not in `before`.
    pub fn note(&mut self, before: &Object, object: &Object, at_ms: u64) -> Option<Rule> {
        let after = distinct(object);
        if after.len() < 2 || after == distinct(before) {
            return None;
        }
        let rule = Rule::of(object.kind);
        if self.0.len() >= CONFLICTS_MAX {
            self.0.pop_front();
        }
        let used = object.resolved().and_then(|value| shown(value.bytes.as_ref()));
        let entries = object.clock.entries().iter();
        let siblings = entries.flat_map(|entry| {
            entry.values.iter().map(|value| Sibling {
                actor: entry.actor,
                stamp: value.hlc,
                bytes: shown(value.bytes.as_ref()),
            })
        });
        let (kind, key, siblings) = (object.kind, object.key.clone(), siblings.collect());
        self.0.push_back(Conflict { kind, key, at_ms, siblings, used, rule });
        Some(rule)
    }

    /// The oldest first.
    pub fn list(&self) -> Vec<Conflict> {
        self.0.iter().cloned().collect()
    }
}

/// Whether an object has values that differ.
pub fn competes(object: &Object) -> bool {
    let mut values = object.values();
    values.next().is_some_and(|first| values.any(|other| other.bytes != first.bytes))
}

fn distinct(object: &Object) -> BTreeSet<Option<&[u8]>> {
    object.values().map(|value| value.bytes.as_deref()).collect()
}

fn shown(bytes: Option<&Vec<u8>>) -> Option<Vec<u8>> {
    bytes.map(|bytes| bytes[..bytes.len().min(SHOWN_BYTES_MAX)].to_vec())
}

/// Conflicts that are remembered.
pub const CONFLICTS_MAX: usize = 256;
/// How much of a value a conflict shows.
pub const SHOWN_BYTES_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn value(hlc: u64, bytes: Option<&[u8]>) -> Value {
        Value { hlc: Hlc(hlc), bytes: bytes.map(<[u8]>::to_vec) }
    }

    fn actor(node: u8) -> Actor {
        Actor { node: [node; 16], epoch: 1 }
    }

    #[test]
    fn each_rule_settles_a_deletion_against_a_change() {
        let values = [value(1, Some(b"old")), value(9, None), value(3, Some(b"new"))];
        assert_eq!(Rule::Latest.settle(values.iter()), Some(b"new".to_vec()));
        assert_eq!(Rule::Fields.settle(values.iter()), Some(b"new".to_vec()), "no realms: the latest");
        assert_eq!(Rule::Revoke.settle(values.iter()), None);
        let gone = [value(1, None), value(2, None)];
        assert!(Rule::ALL.iter().all(|rule| rule.settle(gone.iter()).is_none()));
    }

    #[test]
    fn two_settings_changed_at_once_are_both_kept() {
        let base = realm::stamped(&[1, 0, 0, 0], None, Hlc(1));
        let settings = realm::Settings::decode(&base, Hlc(0)).ok();
        let one = value(5, Some(&realm::stamped(&[1, 1, 0, 0], settings.clone(), Hlc(5))));
        let other = value(6, Some(&realm::stamped(&[1, 0, 0, 2], settings, Hlc(6))));
        let used = Rule::Fields.settle([&one, &other].into_iter()).unwrap();
        let realm = realm::decode("a", &used).unwrap();
        assert_eq!(realm::encode(&realm), [1, 1, 0, 2]);
    }

    #[test]
    fn a_conflict_is_noted_once_and_the_list_is_bounded() {
        let mut conflicts = Conflicts::default();
        let mut one = Object::new(Kind::Realm, "a");
        one.put(actor(1), 0, value(1, Some(b"1"))).unwrap();
        let mut other = Object::new(Kind::Realm, "a");
        other.put(actor(2), 0, value(2, Some(b"2"))).unwrap();
        let before = one.clone();
        one.merge(&other).unwrap();
        assert_eq!(conflicts.note(&before, &one, 7), Some(Rule::Fields));
        assert_eq!(conflicts.note(&one, &one, 8), None);
        let found = &conflicts.list()[0];
        assert_eq!((found.at_ms, found.siblings.len(), found.used.as_deref()), (7, 2, Some(&b"2"[..])));
        for _ in 0..CONFLICTS_MAX {
            conflicts.note(&before, &one, 9);
        }
        assert_eq!((conflicts.list().len(), conflicts.list()[0].at_ms), (CONFLICTS_MAX, 9));
        // Two nodes that wrote the same do not compete.
        let mut same = Object::new(Kind::Realm, "a");
        same.put(actor(3), 0, value(9, Some(b"1"))).unwrap();
        same.merge(&before).unwrap();
        assert!(!competes(&same) && competes(&one));
        assert_eq!(conflicts.note(&before, &same, 10), None);
    }

    proptest! {
        #[test]
        fn the_order_of_values_does_not_matter(
            values in proptest::collection::vec((0u64..5, proptest::option::of((0u8..2, 0u8..2, 0u8..4))), 1..6),
            turn in 0usize..6,
        ) {
            let mut values: Vec<Value> = values
                .into_iter()
                .map(|(hlc, bytes)| value(hlc, bytes.map(|(one, two, three)| [1, one, two, three]).as_ref().map(|bytes| &bytes[..])))
                .collect();
            let settled = Rule::ALL.map(|rule| rule.settle(values.iter()));
            let turn = turn % values.len();
            values.rotate_left(turn);
            prop_assert_eq!(Rule::ALL.map(|rule| rule.settle(values.iter())), settled);
        }
    }
}
