//! The collection floor by itself.

use super::*;
use proptest::prelude::*;

const A: NodeId = NodeId([1; 16]);
const B: NodeId = NodeId([2; 16]);
const C: NodeId = NodeId([3; 16]);
const MINUTE_MS: u64 = 60_000;
/// Now.
const T: u64 = 1_000 * 24 * MINUTE_MS;

fn pace() -> Pace {
    Pace { grace_ms: 10 * MINUTE_MS, allowance_ms: MINUTE_MS, quantum_ms: MINUTE_MS }
}

fn of(own: NodeId, others: &[NodeId]) -> Floor {
    let mut floor = Floor::new(own, pace(), None, false).unwrap();
    (floor.kept.fresh, floor.kept.unseen, floor.dirty) = (false, [Hlc::default(); SHARDS], true);
    others.iter().for_each(|node| floor.met(*node, Hlc::at(1)));
    floor
}

fn marked(minutes: u64) -> Announcement {
    let marks = [Hlc::at(minutes * MINUTE_MS); SHARDS];
    let (members, forgotten) = (BTreeMap::new(), BTreeMap::new());
    Announcement { marks, floors: [Hlc::default(); SHARDS], members, forgotten }
}

/// Synced with both others up to a minute.
fn synced(floor: &mut Floor, minutes: u64) {
    for shard in 0..SHARDS {
        [B, C].iter().for_each(|peer| floor.synced(*peer, shard, Hlc::at(minutes * MINUTE_MS), Hlc(0)));
    }
    floor.tick(Hlc::default(), T);
}

#[test]
fn the_floor_is_the_least_of_all_marks_less_the_allowance() {
    let mut floor = of(A, &[B, C]);
    synced(&mut floor, 500);
    floor.heard(B, &marked(300), Hlc::at(T));
    assert_eq!(floor.worked_out(T), [Hlc::default(); SHARDS], "not a word of C");
    floor.heard(C, &marked(400), Hlc::at(T));
    assert_eq!(floor.worked_out(T), [Hlc::at(299 * MINUTE_MS); SHARDS]);
    assert_eq!(floor.worked_out(200 * MINUTE_MS), [Hlc::at(190 * MINUTE_MS); SHARDS], "the grace");
}

#[test]
fn it_stands_still_for_a_while_after_a_member_was_forgotten() {
    let mut floor = of(A, &[B, C]);
    synced(&mut floor, 500);
    floor.heard(B, &marked(480), Hlc::at(T));
    assert!(floor.forget(C, Hlc::at(480 * MINUTE_MS)) && !floor.forget(C, Hlc::at(480 * MINUTE_MS)));
    assert_eq!(floor.worked_out(T)[0], Hlc::default(), "B is not past it");
    floor.heard(B, &marked(481), Hlc::at(T));
    assert_eq!(floor.worked_out(T)[0], Hlc::at(480 * MINUTE_MS));
}

#[test]
fn who_was_away_is_told_whom_the_others_have_forgotten() {
    let (mut away, mut other) = (of(A, &[B, C]), of(B, &[A, C]));
    other.forget(C, Hlc::at(T));
    other.stored();
    away.heard(B, &other.state(), Hlc::at(T));
    assert!(away.is_member(B) && !away.is_member(C));
    away.met(C, Hlc::at(T + 1));
    away.heard(B, &other.state(), Hlc::at(T + 2));
    assert!(away.is_member(C), "it has come back since");
}

#[test]
fn a_mark_below_another_floor_is_stale_unless_nothing_can_be_old() {
    let floors = [Hlc::at(400 * MINUTE_MS); SHARDS];
    let mut floor = of(A, &[B, C]);
    assert!(matches!(floor.rises(&floors, T, false), Err(Stale { shard: 0, .. })));
    assert_eq!(floor.rises(&floors, T, true).unwrap().len(), SHARDS, "it holds nothing");
    let fresh = Floor::new(A, pace(), None, false).unwrap();
    assert_eq!(fresh.rises(&floors, T, false).unwrap().len(), SHARDS, "it never met anybody");
    let restored = Floor::new(A, pace(), None, true).unwrap();
    assert!(restored.rises(&floors, T, false).is_err(), "its original may have");
    synced(&mut floor, 400);
    assert_eq!(floor.rises(&floors, T, false).unwrap().len(), SHARDS);
    let future = [Hlc::at(T + 61_000); SHARDS];
    assert_eq!(floor.rises(&future, T, false), Ok(vec![]), "a broken clock makes nobody stale");
    floor.begin_anew(&future);
    assert_eq!(floor.rises(&future, T, false), Ok(vec![]));
}

#[test]
fn a_joining_node_is_fresh_until_it_has_synced_and_then_has_the_marks_of_its_peer() {
    let mut floor = Floor::new(A, pace(), None, false).unwrap();
    [B, C].iter().for_each(|node| floor.met(*node, Hlc::at(1)));
    for shard in 0..SHARDS {
        assert!(floor.is_fresh());
        floor.synced(B, shard, Hlc::at(500 * MINUTE_MS), Hlc::at(400 * MINUTE_MS));
    }
    assert!(!floor.is_fresh());
    assert_eq!(floor.marks(), &[Hlc::at(400 * MINUTE_MS); SHARDS]);
    let floors = [Hlc::at(400 * MINUTE_MS); SHARDS];
    assert_eq!(floor.rises(&floors, T, false).unwrap().len(), SHARDS, "that of C may be a little higher");
}

#[test]
fn what_a_new_node_took_is_as_old_as_the_peer_it_came_from() {
    let minutes = |minutes| [Hlc::at(minutes * MINUTE_MS); SHARDS];
    let mut floor = Floor::new(A, pace(), None, false).unwrap();
    [B, C].iter().for_each(|node| floor.met(*node, Hlc::at(1)));
    floor.begins(B, &minutes(300), Hlc::at(500 * MINUTE_MS));
    assert_eq!(floor.bounds(Hlc::at(T)), minutes(500), "nobody has seen what it wrote before");
    floor.takes(B, 7);
    assert_eq!(floor.rises(&minutes(300), T, false).unwrap().len(), SHARDS, "B was there");
    assert!(matches!(floor.rises(&minutes(301), T, false), Err(Stale { shard: 7, .. })), "B was not");
    let mut again = Floor::new(A, pace(), Some(&floor.row().unwrap()), false).unwrap();
    assert!(again.rises(&minutes(301), T, false).is_err(), "a later life remembers");
    floor.takes(C, 8);
    assert!(matches!(floor.rises(&minutes(1), T, false), Err(Stale { shard: 8, .. })), "C said nothing");
    again.adopt(7, Hlc::at(400 * MINUTE_MS));
    assert_eq!(again.rises(&minutes(400), T, false).unwrap().len(), SHARDS - 1, "it held nothing then");
}

#[test]
fn nothing_is_announced_before_it_is_stored() {
    let mut floor = of(A, &[B, C]);
    floor.stored();
    assert!(floor.announcement().is_some() && floor.announcement().is_none());
    synced(&mut floor, 400);
    assert!(floor.announcement().is_none());
    let row = floor.row().unwrap();
    floor.stored();
    let announced = floor.announcement().unwrap();
    assert_eq!(announced.marks, [Hlc::at(400 * MINUTE_MS); SHARDS]);
    assert_eq!(Announcement::decode(&announced.encode()), Ok(announced));
    let again = Floor::new(A, pace(), Some(&row), false).unwrap();
    assert_eq!(again.row(), None);
    assert_eq!(again.kept, floor.kept);
}

#[test]
fn a_mark_is_the_least_that_all_members_have_promised() {
    let mut floor = of(A, &[B, C]);
    floor.synced(B, 0, Hlc::at(500 * MINUTE_MS), Hlc(0));
    floor.tick(Hlc::default(), T);
    assert_eq!(floor.marks()[0], Hlc::default(), "nothing was heard of what C holds");
    floor.synced(C, 0, Hlc::at(300 * MINUTE_MS), Hlc(0));
    floor.tick(Hlc::default(), T);
    assert_eq!(floor.marks()[0], Hlc::at(300 * MINUTE_MS));
    floor.synced(C, 0, Hlc::at(200 * MINUTE_MS), Hlc(0));
    floor.tick(Hlc::default(), T);
    assert_eq!(floor.marks()[0], Hlc::at(300 * MINUTE_MS), "it never falls");
}

#[test]
fn so_many_nodes_that_were_forgotten_are_remembered_the_last_ones() {
    let node = |n: usize| {
        let mut id = [9; 16];
        id[..8].copy_from_slice(&n.to_le_bytes());
        NodeId(id)
    };
    let mut floor = of(A, &[]);
    for n in 0..NODES_MAX + 3 {
        floor.met(node(n), Hlc::at(n as u64));
        assert!(floor.forget(node(n), Hlc::at(n as u64 + 1)));
    }
    let forgotten = &floor.kept.forgotten;
    assert_eq!(forgotten.len(), NODES_MAX);
    assert!((3..NODES_MAX + 3).all(|n| forgotten.contains_key(&node(n))));
    assert!(Floor::new(A, pace(), Some(&floor.row().unwrap()), false).is_ok(), "its row reads back");
}

proptest! {
    #[test]
    fn bytes_of_any_origin_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..1_200)) {
        let bytes = [vec![1], bytes].concat();
        if let Ok(announcement) = Announcement::decode(&bytes) {
            prop_assert_eq!(announcement.encode(), bytes.clone());
        }
        prop_assert!(Floor::new(A, pace(), Some(&bytes), false).is_err());
    }
}
