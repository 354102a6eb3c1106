use super::*;
use crate::peers::hello::tests::hello;
use proptest::prelude::*;

const OWN: u8 = 5;

fn node(node: u8) -> NodeId {
    NodeId([node; 16])
}

fn live(id: u8, epoch: u64) -> Live {
    Live { node: node(id), epoch, address: SocketAddr::from(([10, 0, 0, id], 7)) }
}

fn from(id: u8, epoch: u64, attempt: u64) -> Hello {
    Hello { epoch, attempt, ..hello(id) }
}

struct World {
    now: Instant,
    table: Table,
}

impl World {
    fn new() -> Self {
        Self { now: Instant::now(), table: Table::new(node(OWN), 1) }
    }

    fn outputs(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.table.poll()).collect()
    }

    fn members(&mut self, live: &[Live]) -> Vec<Output> {
        self.table.members(self.now, live);
        self.outputs()
    }

    fn hello(&mut self, connection: ConnectionId, hello: Hello) -> Vec<Output> {
        self.table.hello(self.now, connection, hello);
        self.outputs()
    }

    fn closed(&mut self, connection: ConnectionId) -> Vec<Output> {
        self.table.closed(self.now, connection, DownReason::Failed);
        self.outputs()
    }

    /// Goes to the next deadline.
    fn next(&mut self) -> Vec<Output> {
        self.now = self.table.deadline().expect("a deadline").max(self.now);
        self.table.timeout(self.now);
        self.outputs()
    }

    /// A link to node 9, which we have dialled.
    fn up(&mut self) -> ConnectionId {
        let dials = self.members(&[live(9, 1)]);
        let [Output::Dial { connection, attempt, .. }] = dials[..] else { panic!("{dials:?}") };
        let up = self.hello(connection, from(9, 1, attempt));
        assert!(matches!(up[..], [Output::Up { .. }]), "{up:?}");
        connection
    }
}

#[test]
fn the_smaller_node_dials_at_once_and_the_greater_waits() {
    let mut world = World::new();
    let dials = world.members(&[live(OWN, 1), live(9, 1), live(2, 1)]);
    let [Output::Dial { node: dialed, address, .. }] = dials[..] else { panic!("{dials:?}") };
    assert_eq!((dialed, address), (node(9), live(9, 1).address));
    assert_eq!(world.table.deadline(), None);
}

#[test]
fn dials_that_fail_are_repeated_with_growing_pauses() {
    let mut world = World::new();
    let mut dials = world.members(&[live(9, 1)]);
    let mut pauses = vec![];
    for _ in 0..12 {
        let [Output::Dial { connection, .. }] = dials[..] else { panic!("{dials:?}") };
        assert!(world.closed(connection).is_empty());
        let before = world.now;
        dials = world.next();
        pauses.push(world.now - before);
    }
    assert!(
        pauses[0] < 3 * PAUSE_MIN && pauses[11] <= PAUSE_MAX && pauses[11] >= PAUSE_MAX / 2,
        "{pauses:?}"
    );
    assert!(pauses[..6].is_sorted(), "{pauses:?}");
}

#[test]
fn a_link_that_breaks_is_told_and_made_again() {
    let mut world = World::new();
    let connection = world.up();
    assert_eq!(world.closed(connection), [Output::Down { node: node(9), reason: DownReason::Failed }]);
    assert!(matches!(world.next()[..], [Output::Dial { attempt: 2, .. }]));
}

#[test]
fn a_node_that_is_gone_loses_its_link_and_its_dial() {
    let mut world = World::new();
    let connection = world.up();
    assert_eq!(world.members(&[]), [Output::Close { connection }]);
    assert_eq!(world.closed(connection), [Output::Down { node: node(9), reason: DownReason::Gone }]);
    assert!(world.table.rows.is_empty());

    let dials = world.members(&[live(9, 1)]);
    let [Output::Dial { connection, .. }] = dials[..] else { panic!("{dials:?}") };
    assert_eq!(world.members(&[]), [Output::Close { connection }]);
    // It was on its way meanwhile.
    let late = world.hello(connection, from(9, 1, 2));
    assert!(matches!(late[..], [Output::Refuse { reason: Refusal::Stale, .. }]), "{late:?}");
    assert!(world.table.rows.is_empty());
}

#[test]
fn a_node_at_another_address_is_dialled_there() {
    let mut world = World::new();
    world.members(&[live(9, 1)]);
    let moved = Live { address: "10.9.9.9:9".parse().unwrap(), ..live(9, 2) };
    let outputs = world.members(&[moved]);
    let [Output::Close { .. }, Output::Dial { address, .. }] = outputs[..] else { panic!("{outputs:?}") };
    assert_eq!(address, moved.address);
}

#[test]
fn a_node_that_was_started_again_gets_a_new_link() {
    let mut world = World::new();
    let connection = world.up();
    assert_eq!(world.members(&[live(9, 2)]), [Output::Close { connection }]);
    assert_eq!(world.closed(connection), [Output::Down { node: node(9), reason: DownReason::Renewed }]);
    let dials = world.next();
    let [Output::Dial { connection, attempt, .. }] = dials[..] else { panic!("{dials:?}") };
    // The old process answers once more.
    let old = world.hello(connection, from(9, 1, attempt));
    assert!(matches!(old[..], [Output::Refuse { reason: Refusal::Stale, .. }]), "{old:?}");
    assert!(matches!(world.next()[..], [Output::Dial { .. }]));
}

#[test]
fn a_node_that_membership_does_not_know_yet_waits_for_a_while() {
    let mut world = World::new();
    let connection = world.table.accepted();
    assert!(world.hello(connection, from(2, 1, 1)).is_empty());
    let up = world.members(&[live(2, 1)]);
    assert!(matches!(up[..], [Output::Up { .. }]), "{up:?}");

    let later = world.table.accepted();
    assert!(world.hello(later, from(3, 1, 1)).is_empty());
    let refused = world.next();
    assert!(matches!(refused[..], [Output::Refuse { reason: Refusal::Unknown, .. }]), "{refused:?}");
}

#[test]
fn the_later_connection_of_a_node_counts_whatever_the_order() {
    for first_first in [true, false] {
        let mut world = World::new();
        world.members(&[live(2, 1)]);
        let (first, second) = (world.table.accepted(), world.table.accepted());
        if first_first {
            world.hello(first, from(2, 1, 1));
            assert_eq!(world.hello(second, from(2, 1, 2)), [Output::Close { connection: first }]);
            let outputs = world.closed(first);
            let [Output::Down { reason: DownReason::Replaced, .. }, Output::Up { connection, .. }] =
                outputs[..]
            else {
                panic!("{outputs:?}")
            };
            assert_eq!(connection, second);
        } else {
            world.hello(second, from(2, 1, 2));
            let outputs = world.hello(first, from(2, 1, 1));
            let [Output::Refuse { connection, reason: Refusal::Stale, .. }] = outputs[..] else {
                panic!("{outputs:?}")
            };
            assert_eq!(connection, first);
        }
    }
}

#[test]
fn strangers_are_bounded() {
    let mut world = World::new();
    for stranger in 0..STRANGERS_MAX as u8 {
        let connection = world.table.accepted();
        let hello = Hello {
            node: NodeId([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, stranger + 1]),
            ..from(1, 1, 1)
        };
        assert!(world.hello(connection, hello).is_empty());
    }
    let connection = world.table.accepted();
    let full = world.hello(connection, from(1, 1, 1));
    assert!(matches!(full[..], [Output::Refuse { reason: Refusal::Full, .. }]), "{full:?}");
}

#[test]
fn a_link_that_was_asked_to_close_is_made_again() {
    let mut world = World::new();
    let connection = world.up();
    world.table.close(world.now, node(9));
    assert_eq!(world.outputs(), [Output::Close { connection }]);
    assert_eq!(world.closed(connection), [Output::Down { node: node(9), reason: DownReason::Asked }]);
    assert!(matches!(world.next()[..], [Output::Dial { .. }]));
}

#[derive(Clone, Debug)]
enum Step {
    Members(Vec<(u8, u64)>),
    Accept(u8, u64, u64),
    /// Of the connections there are.
    Hello(prop::sample::Index, u64),
    Closed(prop::sample::Index),
    Close(u8),
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Step> {
    let id = 1u8..9;
    prop_oneof![
        proptest::collection::vec((id.clone(), 1u64..3), 0..6).prop_map(Step::Members),
        (1u8..OWN, 1u64..3, 1u64..5).prop_map(|(id, epoch, attempt)| Step::Accept(id, epoch, attempt)),
        (any::<prop::sample::Index>(), 1u64..3).prop_map(|(at, epoch)| Step::Hello(at, epoch)),
        any::<prop::sample::Index>().prop_map(Step::Closed),
        id.prop_map(Step::Close),
        (0u64..7_000).prop_map(Step::Wait),
    ]
}

proptest! {
    #[test]
    fn up_and_down_alternate_and_only_the_living_are_up(steps in proptest::collection::vec(steps(), 0..80)) {
        let mut world = World::new();
        // Connections that are open: who is at the other end, and what the table wants of them.
        let mut open: BTreeMap<ConnectionId, (NodeId, Option<u64>)> = BTreeMap::new();
        let mut up: BTreeMap<NodeId, ConnectionId> = BTreeMap::new();
        let mut lives: BTreeMap<NodeId, u64> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Members(list) => {
                    lives = list.iter().map(|(id, epoch)| (node(*id), *epoch)).collect();
                    let list: Vec<_> = list.iter().map(|(id, epoch)| live(*id, *epoch)).collect();
                    // The last of several counts, as in the map.
                    world.table.members(world.now, &list);
                }
                Step::Accept(id, epoch, attempt) => {
                    let connection = world.table.accepted();
                    open.insert(connection, (node(id), None));
                    world.table.hello(world.now, connection, from(id, epoch, attempt));
                }
                Step::Hello(at, epoch) => {
                    let dialed: Vec<_> = open.iter().filter_map(|(id, (node, attempt))| Some((*id, *node, (*attempt)?))).collect();
                    if !dialed.is_empty() {
                        let (connection, node, attempt) = dialed[at.index(dialed.len())];
                        open.insert(connection, (node, None));
                        world.table.hello(world.now, connection, from(node.0[0], epoch, attempt));
                    }
                }
                Step::Closed(at) if !open.is_empty() => {
                    let connection = *open.keys().nth(at.index(open.len())).unwrap();
                    open.remove(&connection);
                    world.table.closed(world.now, connection, DownReason::Closed);
                }
                Step::Closed(_) => {}
                Step::Close(id) => world.table.close(world.now, node(id)),
                Step::Wait(ms) => {
                    world.now += Duration::from_millis(ms);
                    world.table.timeout(world.now);
                }
            }
            while let Some(output) = world.table.poll() {
                match output {
                    Output::Dial { connection, node: to, attempt, .. } => {
                        prop_assert!(node(OWN) < to && lives.contains_key(&to) && !up.contains_key(&to));
                        prop_assert!(open.insert(connection, (to, Some(attempt))).is_none());
                    }
                    Output::Up { connection, hello } => {
                        prop_assert_eq!(lives.get(&hello.node), Some(&hello.epoch));
                        prop_assert!(up.insert(hello.node, connection).is_none());
                    }
                    Output::Down { node, .. } => {
                        let connection = up.remove(&node);
                        prop_assert!(connection.is_some_and(|connection| !open.contains_key(&connection)));
                    }
                    Output::Refuse { connection, .. } | Output::Close { connection } => {
                        // The driver closes and says so, now or later.
                        if open.remove(&connection).is_some() && connection.0 % 2 == 0 {
                            world.table.closed(world.now, connection, DownReason::Asked);
                        } else {
                            open.insert(connection, (node(0), None));
                        }
                    }
                }
            }
            prop_assert!(world.table.rows.len() <= 16);
        }
        // Whatever happened: who lives is linked when connections work again.
        let now = world.now;
        for connection in std::mem::take(&mut open).into_keys() {
            world.table.closed(now, connection, DownReason::Closed);
        }
        for _ in 0..30 {
            while let Some(output) = world.table.poll() {
                match output {
                    Output::Dial { connection, node, attempt, .. } => {
                        world.table.hello(world.now, connection, from(node.0[0], lives[&node], attempt));
                    }
                    Output::Up { connection, hello } => {
                        up.insert(hello.node, connection);
                    }
                    Output::Down { node, .. } => {
                        up.remove(&node);
                    }
                    Output::Refuse { connection, .. } | Output::Close { connection } => {
                        world.table.closed(world.now, connection, DownReason::Closed);
                    }
                }
            }
            if let Some(at) = world.table.deadline() {
                world.now = at.max(world.now);
                world.table.timeout(world.now);
            }
        }
        for node in lives.keys().filter(|id| **id > node(OWN)) {
            prop_assert!(up.contains_key(node), "{} is not linked", node);
        }
    }
}
