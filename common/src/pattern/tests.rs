use super::*;
use crate::uri::matches;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// What the dealer prefers: a smaller key is better. For a wildcard it is the lengths of the literal runs before each
/// empty component, longest first.
pub(crate) fn preference(policy: Match, pattern: &str) -> (Match, std::cmp::Reverse<Vec<usize>>) {
    let runs = match policy {
        Match::Exact => vec![],
        Match::Prefix => vec![pattern.len()],
        Match::Wildcard => {
            let mut runs = vec![0];
            for component in pattern.split('.') {
                match component {
                    "" => runs.push(0),
                    _ => *runs.last_mut().unwrap() += 1,
                }
            }
            runs
        }
    };
    (policy, std::cmp::Reverse(runs))
}

/// Every pattern that matches, best first, found by trying them all.
pub(crate) fn oracle<'a, V>(
    entries: impl IntoIterator<Item = (&'a (Match, String), V)>,
    uri: &str,
) -> Vec<(Match, &'a str, V)> {
    let mut found: Vec<_> = entries
        .into_iter()
        .filter(|((policy, pattern), _)| matches(pattern, *policy, uri))
        .map(|((policy, pattern), value)| (*policy, pattern.as_str(), value))
        .collect();
    found.sort_by_key(|(policy, pattern, _)| preference(*policy, pattern));
    found
}

pub(crate) fn policy() -> impl Strategy<Value = Match> {
    prop_oneof![Just(Match::Exact), Just(Match::Prefix), Just(Match::Wildcard)]
}

/// Patterns over so few components that many match, with others that are not ASCII or share beginnings.
pub(crate) fn pattern() -> impl Strategy<Value = String> {
    let component =
        prop_oneof![Just("a"), Just("b"), Just(""), Just("ab"), Just("a-b"), Just("é"), Just("è")];
    prop::collection::vec(component, 0..6).prop_map(|components| components.join("."))
}

pub(crate) fn uri() -> impl Strategy<Value = String> {
    let component = prop_oneof![Just("a"), Just("b"), Just("ab"), Just("a-b"), Just("é"), Just("c")];
    prop_oneof![9 => prop::collection::vec(component, 1..6).prop_map(|parts| parts.join(".")), 1 => pattern()]
}

fn all_matches<'a>(map: &'a PatternMap<u32>, uri: &str) -> Vec<(Match, &'a str, u32)> {
    let mut found = Vec::new();
    map.for_each_match(uri, |policy, pattern, value| found.push((policy, pattern, *value)));
    found
}

#[derive(Clone, Debug)]
enum Change {
    Insert(Match, String, u32),
    Remove(Match, String),
    /// Drop the values that this number divides.
    Retain(u32),
    Add(Match, String),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        8 => (policy(), pattern(), any::<u32>()).prop_map(|(policy, text, value)| Change::Insert(policy, text, value)),
        4 => (policy(), pattern()).prop_map(|(policy, text)| Change::Remove(policy, text)),
        2 => (policy(), pattern()).prop_map(|(policy, text)| Change::Add(policy, text)),
        1 => (2u32..5).prop_map(Change::Retain),
    ]
}

proptest! {
    #[test]
    fn the_map_agrees_with_trying_every_pattern(
        changes in prop::collection::vec(change(), 0..80), uris in prop::collection::vec(uri(), 20),
    ) {
        let mut map = PatternMap::default();
        let mut model: BTreeMap<(Match, String), u32> = BTreeMap::new();
        for change in changes {
            match change {
                Change::Insert(policy, text, value) => {
                    prop_assert_eq!(map.insert(policy, &text, value), model.insert((policy, text), value));
                }
                Change::Remove(policy, text) => {
                    prop_assert_eq!(map.remove(policy, &text), model.remove(&(policy, text)));
                }
                Change::Add(policy, text) => {
                    let (ours, theirs) = (map.get_mut(policy, &text), model.get_mut(&(policy, text)));
                    prop_assert_eq!(&ours, &theirs);
                    ours.into_iter().chain(theirs).for_each(|value| *value = value.wrapping_add(1));
                }
                Change::Retain(divisor) => {
                    map.retain(|_, _, value| *value % divisor != 0);
                    model.retain(|_, value| *value % divisor != 0);
                }
            }
            prop_assert_eq!(map.len(), model.len());
        }
        for ((policy, text), value) in &model {
            prop_assert_eq!(map.get(*policy, text), Some(value));
        }
        let mut entries: Vec<_> = map.iter().map(|(policy, text, value)| ((policy, text.to_owned()), *value)).collect();
        entries.sort();
        prop_assert_eq!(entries, model.clone().into_iter().collect::<Vec<_>>());
        for uri in &uris {
            let expected = oracle(model.iter().map(|(key, value)| (key, *value)), uri);
            prop_assert_eq!(all_matches(&map, uri), expected.clone());
            let best = map.best_match(uri).map(|(policy, pattern, value)| (policy, pattern, *value));
            prop_assert_eq!(best, expected.first().copied());
        }
    }
}

/// WAMP, advanced profile, "Calls matching multiple registrations".
#[test]
fn the_dealer_chooses_as_the_specification_says() {
    let registrations = [
        (Match::Exact, "a1.b2.c3.d4.e55"),
        (Match::Prefix, "a1.b2.c3"),
        (Match::Prefix, "a1.b2.c3.d4"),
        (Match::Wildcard, "a1.b2..d4.e5"),
        (Match::Wildcard, "a1.b2.c3..e5"),
        (Match::Wildcard, "a1.b2..d4.e5..g7"),
        (Match::Wildcard, "a1.b2..d4..f6.g7"),
    ];
    let mut map = PatternMap::default();
    for (number, (policy, pattern)) in (1..).zip(registrations) {
        map.insert(policy, pattern, number);
    }
    let chosen = |map: &PatternMap<u32>, uri| map.best_match(uri).map(|(_, _, number)| *number);
    assert_eq!(chosen(&map, "a1.b2.c3.d4.e55"), Some(1));
    assert_eq!(chosen(&map, "a1.b2.c3.d98.e74"), Some(2));
    assert_eq!(chosen(&map, "a1.b2.c3.d4.e325"), Some(3));
    assert_eq!(chosen(&map, "a1.b2.c55.d4.e5"), Some(4));
    assert_eq!(chosen(&map, "a1.b2.c88.d4.e5.f6.g7"), Some(6));
    assert_eq!(chosen(&map, "a2.b2.c2.d2.e2"), None);
    // The chapter gives a1.b2.c3.d4.e5 to registration 5 because no prefix matched, but 2 and 3 do by its own
    // definition; without them the example holds.
    assert_eq!(chosen(&map, "a1.b2.c3.d4.e5"), Some(3));
    map.remove(Match::Prefix, "a1.b2.c3");
    map.remove(Match::Prefix, "a1.b2.c3.d4");
    assert_eq!(chosen(&map, "a1.b2.c3.d4.e5"), Some(5));
}

#[test]
fn prefixes_are_of_the_string_and_wildcards_of_one_component() {
    let mut map = PatternMap::default();
    map.insert(Match::Prefix, "com.myapp.myobject1", ());
    for uri in ["com.myapp.myobject1", "com.myapp.myobject1.proc", "com.myapp.myobject1-sub"] {
        assert!(map.best_match(uri).is_some(), "{uri}");
    }
    for uri in ["com.myapp.myobject2", "com.myapp.myobject"] {
        assert!(map.best_match(uri).is_none(), "{uri}");
    }
    let mut map = PatternMap::default();
    map.insert(Match::Wildcard, "com.myapp..proc1", ());
    assert!(map.best_match("com.myapp.myobject1.proc1").is_some());
    for uri in ["com.myapp.o.proc1.sub", "com.myapp.o.proc2", "com.myapp2.o.proc1", "com.myapp.proc1"] {
        assert!(map.best_match(uri).is_none(), "{uri}");
    }
}

#[test]
fn patterns_and_uris_out_of_bounds_match_nothing_and_do_no_harm() {
    use crate::limits::{URI_BYTES_MAX, URI_COMPONENTS_MAX};
    let mut map = PatternMap::default();
    let (longest, too_long) = ("x".repeat(URI_BYTES_MAX), "x".repeat(URI_BYTES_MAX + 1));
    map.insert(Match::Prefix, &longest, 1);
    map.insert(Match::Prefix, &too_long, 2);
    assert_eq!(all_matches(&map, &too_long), [(Match::Prefix, longest.as_str(), 1)]);
    let (most, too_many) = (".".repeat(URI_COMPONENTS_MAX - 1), ".".repeat(URI_COMPONENTS_MAX));
    map.insert(Match::Wildcard, &most, 3);
    map.insert(Match::Wildcard, &too_many, 4);
    assert_eq!(all_matches(&map, &most), [(Match::Wildcard, most.as_str(), 3)]);
    assert_eq!(all_matches(&map, &too_many), []);
    assert_eq!(map.remove(Match::Wildcard, &too_many), Some(4));
    assert_eq!(map.len(), 3);
}

#[test]
fn equal_seeds_give_equal_orders() {
    let listed = || {
        let mut map = PatternMap::with_seed(5);
        for n in 0..100 {
            map.insert(Match::Exact, &format!("topic.{n}"), n);
        }
        map.iter().map(|(_, _, value)| *value).collect::<Vec<_>>()
    };
    assert_eq!(listed(), listed());
}

#[test]
fn a_sweep_in_slices_sees_every_entry_of_a_map_at_rest() {
    for budget in [1, 7, 1_000] {
        let mut map = PatternMap::default();
        for n in 0..200 {
            map.insert(Match::Exact, &format!("topic.{n}"), n);
            map.insert(Match::Prefix, &format!("topic.{n}."), n);
            map.insert(Match::Wildcard, &format!("topic..{n}"), n);
        }
        let (mut cursor, mut seen, mut slices) = (SweepCursor::default(), 0, 0);
        while !cursor.is_done() {
            let mut here = 0;
            let looked_at = map.sweep(&mut cursor, budget, |_, _, value| {
                here += 1;
                *value % 2 == 0
            });
            assert!(here <= budget && looked_at <= budget);
            seen += here;
            slices += 1;
        }
        assert_eq!((seen, map.len()), (600, 300));
        assert!(slices >= 600 / budget);
        assert_eq!(all_matches(&map, "topic.3.3"), []);
        assert_eq!(all_matches(&map, "topic.x.4"), [(Match::Wildcard, "topic..4", 4)]);
        assert_eq!(map.sweep(&mut cursor, budget, |_, _, _| false), 0, "it is at its end");
    }
}
