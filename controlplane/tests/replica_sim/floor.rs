//! The collection of deletions against a model of plain sets: who has seen which write. Whole stores on disks in memory
//! write, delete, exchange, crash, come back from old copies, are forgotten and return; time passes.
//!
//! Nothing that was deleted comes back, nothing that was acknowledged is lost but with the only disk that had it, floors
//! never fall, and in the end no deletion is left.

use crate::world::open_with;
use common::ids::NodeId;
use controlplane::replica::exchange::{Exchange, ExchangeError, Next};
use controlplane::replica::floor::Stamps;
use controlplane::replica::message::Refusal;
use controlplane::replica::objects::Objects;
use controlplane::store::memory::Memory;
use controlplane::store::record::{Kind, Object, place};
use controlplane::store::worker::Worker;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

#[derive(Clone, Debug)]
enum Step {
    Put {
        node: usize,
        key: usize,
    },
    Delete {
        node: usize,
        key: usize,
    },
    Exchange {
        one: usize,
        other: usize,
    },
    Tell {
        from: usize,
        to: usize,
    },
    Upkeep {
        node: usize,
    },
    Crash {
        node: usize,
    },
    Backup {
        node: usize,
    },
    Restore {
        node: usize,
    },
    Wipe {
        node: usize,
    },
    /// Everybody else forgets it; it does not know.
    Forget {
        node: usize,
    },
    Pass {
        ms: u64,
    },
    /// A moment in which all is well: everybody exchanges with everybody.
    Quiet,
    /// A node comes back as it was before a deletion that the others have forgotten.
    Return {
        node: usize,
        key: usize,
    },
    /// So long a time of it that deletions may be forgotten. The node whose turn it is, if any, is away.
    Calm {
        away: Option<usize>,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (node, key) = (0..NODES, 0..KEYS);
    let step = prop_oneof![
        6 => (node.clone(), key.clone()).prop_map(|(node, key)| Step::Put { node, key }),
        6 => (node.clone(), key).prop_map(|(node, key)| Step::Delete { node, key }),
        8 => (node.clone(), node.clone()).prop_map(|(one, other)| Step::Exchange { one, other }),
        4 => (node.clone(), node.clone()).prop_map(|(from, to)| Step::Tell { from, to }),
        4 => node.clone().prop_map(|node| Step::Upkeep { node }),
        2 => node.clone().prop_map(|node| Step::Crash { node }),
        2 => node.clone().prop_map(|node| Step::Backup { node }),
        1 => node.clone().prop_map(|node| Step::Restore { node }),
        1 => node.clone().prop_map(|node| Step::Wipe { node }),
        1 => node.prop_map(|node| Step::Forget { node }),
        4 => (1u64..3 * GRACE_MS).prop_map(|ms| Step::Pass { ms }),
        3 => Just(Step::Quiet),
        2 => (0..NODES, 0..KEYS).prop_map(|(node, key)| Step::Return { node, key }),
        4 => proptest::option::of(0..NODES).prop_map(|away| Step::Calm { away }),
    ];
    proptest::collection::vec(step, 1..50)
}

/// Writes, by number.
type Seen = BTreeSet<usize>;

#[derive(Clone)]
struct Write {
    seen: Seen,
    bytes: Option<Vec<u8>>,
}

struct Node {
    disk: Memory,
    worker: Worker,
    /// What it has seen of each key.
    seen: Vec<Seen>,
    backup: (Memory, Vec<Seen>),
    floors: Stamps,
    /// The others have forgotten it, and it has not come back yet.
    forgotten: bool,
    /// It was forgotten, or its disk is a copy: until all have heard of it again it may have to begin anew, and once more
    /// while others go by the marks of its earlier life. Nobody else ever may.
    may_be_stale: bool,
}

struct Cluster {
    nodes: Vec<Node>,
    writes: Vec<Write>,
    wall_ms: Arc<AtomicU64>,
    now: Instant,
    lives: u64,
    /// Nodes whose disks were wiped: they will not come back.
    gone: Vec<NodeId>,
}

impl Cluster {
    fn new() -> Self {
        let wall_ms = Arc::new(AtomicU64::new(1_795_000_000_000));
        let mut cluster =
            Self { nodes: vec![], writes: vec![], wall_ms, now: Instant::now(), lives: 0, gone: vec![] };
        for _ in 0..NODES {
            let node = cluster.node(Memory::default(), vec![Seen::new(); KEYS]);
            cluster.nodes.push(node);
        }
        cluster.introduce();
        cluster
    }

    fn node(&mut self, disk: Memory, seen: Vec<Seen>) -> Node {
        self.lives += 1;
        let worker = open_with(&disk, &self.wall_ms, self.lives, GRACE);
        let (floors, backup) = (worker.floors(), (disk.copy(), seen.clone()));
        Node { disk, worker, seen, backup, floors, forgotten: false, may_be_stale: false }
    }

    /// Membership tells all of all that are not forgotten.
    fn introduce(&mut self) {
        let known: Vec<NodeId> = self.nodes.iter().filter(|node| !node.forgotten).map(Node::id).collect();
        self.nodes.iter_mut().filter(|node| !node.forgotten).for_each(|node| node.worker.members(&known));
    }

    fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match *step {
            Step::Put { node, key } => self.write(node, key, true),
            Step::Delete { node, key } => self.write(node, key, false),
            Step::Exchange { one, other } => self.exchange(one, other)?,
            Step::Tell { from, to } => self.tell(from, to),
            Step::Upkeep { node } => self.upkeep(node),
            Step::Crash { node } => {
                self.lives += 1;
                let at = &mut self.nodes[node];
                at.worker = open_with(&at.disk, &self.wall_ms, self.lives, GRACE);
            }
            Step::Backup { node } => {
                let at = &mut self.nodes[node];
                at.backup = (at.disk.copy(), at.seen.clone());
            }
            Step::Restore { node } => {
                let (disk, seen) = (self.nodes[node].backup.0.copy(), self.nodes[node].backup.1.clone());
                disk.disk().inode = self.lives + 1;
                let (backup, forgotten) = (self.nodes[node].backup.clone(), self.nodes[node].forgotten);
                let restored = self.node(disk, seen);
                self.nodes[node] = Node { backup, forgotten, may_be_stale: true, ..restored };
            }
            Step::Wipe { node } => {
                // Operators forget who will not come back.
                let gone = self.nodes[node].id();
                self.gone.push(gone);
                self.nodes[node] = self.node(Memory::default(), vec![Seen::new(); KEYS]);
                self.nodes.iter_mut().for_each(|other| other.worker.forget(gone));
                self.introduce();
            }
            Step::Forget { node } => {
                let gone = self.nodes[node].id();
                self.nodes[node].forgotten = true;
                self.nodes[node].may_be_stale = true;
                let others = self.nodes.iter_mut().enumerate().filter(|(other, _)| *other != node);
                others.for_each(|(_, other)| other.worker.forget(gone));
            }
            Step::Pass { ms } => self.pass(ms),
            Step::Quiet => self.quiet(None)?,
            Step::Return { node, key } => {
                self.quiet(None)?;
                for step in [
                    Step::Backup { node },
                    Step::Delete { node: (node + 1) % NODES, key },
                    Step::Calm { away: None },
                    Step::Restore { node },
                ] {
                    self.step(&step)?;
                }
            }
            Step::Calm { away } => {
                for _ in 0..4 {
                    self.pass(GRACE_MS);
                    self.quiet(away)?;
                }
                if away.is_none() {
                    self.nodes.iter_mut().for_each(|node| node.may_be_stale = false);
                }
            }
        }
        for node in &mut self.nodes {
            let floors = node.worker.floors();
            prop_assert!(floors.iter().zip(&node.floors).all(|(now, before)| now >= before), "a floor fell");
            node.floors = floors;
        }
        Ok(())
    }

    fn write(&mut self, node: usize, key: usize, puts: bool) {
        let at = &mut self.nodes[node];
        let bytes = puts.then(|| (self.writes.len() as u64).to_be_bytes().to_vec());
        let object = at.worker.put(Kind::Realm, &name(key), bytes.clone()).expect("a small value fits");
        assert_eq!(object.resolved().and_then(|value| value.bytes), bytes);
        self.writes.push(Write { seen: at.seen[key].clone(), bytes });
        at.seen[key].insert(self.writes.len() - 1);
    }

    /// A whole exchange, in which a node may find that it is stale.
    fn exchange(&mut self, one: usize, other: usize) -> Result<(), TestCaseError> {
        if one == other {
            return Ok(());
        }
        self.meet(one, other);
        // Who holds nothing may get something old from who does not know yet that it is stale.
        let either = self.nodes[one].may_be_stale || self.nodes[other].may_be_stale;
        [one, other].iter().for_each(|node| self.nodes[*node].may_be_stale = either);
        let ids = (self.nodes[one].id(), self.nodes[other].id());
        let now = self.now;
        let (mut exchange, mut message): (Exchange, _) =
            self.nodes[one].worker.exchange_start(ids.1, 1, now, Duration::from_secs(60));
        for _ in 0..1_000 {
            let answered = self.nodes[other].worker.exchange_answer(ids.0, message);
            self.note_reset(other, answered.changes.reset);
            let reply = answered.reply.expect("an answer");
            let stepped = self.nodes[one].worker.exchange_step(ids.1, &mut exchange, reply, now);
            self.note_reset(one, stepped.changes.reset);
            match stepped.next {
                Ok(Some(Next::Send(next))) => message = next,
                Ok(Some(Next::Done(_))) => {
                    for key in 0..KEYS {
                        let both: Seen = &self.nodes[one].seen[key] | &self.nodes[other].seen[key];
                        self.nodes[one].seen[key] = both.clone();
                        self.nodes[other].seen[key] = both;
                    }
                    return Ok(());
                }
                Err(ExchangeError::Stale(_) | ExchangeError::Refused(Refusal::Stale)) => return Ok(()),
                unexpected => return Err(TestCaseError::fail(format!("{unexpected:?}"))),
            }
        }
        Err(TestCaseError::fail("an endless exchange"))
    }

    /// A forgotten node that is heard of is a member again. Whether it must begin anew it finds out by itself.
    fn meet(&mut self, one: usize, other: usize) {
        [one, other].iter().for_each(|node| self.nodes[*node].forgotten = false);
        self.introduce();
    }

    fn note_reset(&mut self, node: usize, reset: bool) {
        if reset {
            assert!(self.nodes[node].may_be_stale, "node {node} began anew without need");
            self.nodes[node].seen = vec![Seen::new(); KEYS];
        }
    }

    fn tell(&mut self, from: usize, to: usize) {
        if from == to || self.nodes[from].forgotten || self.nodes[to].forgotten {
            return;
        }
        let (id, announcement) = (self.nodes[from].id(), self.nodes[from].worker.announcement());
        let changes = self.nodes[to].worker.heard(id, &announcement).expect("our own bytes");
        self.note_reset(to, changes.reset);
    }

    fn upkeep(&mut self, node: usize) {
        let upkeep = self.nodes[node].worker.upkeep();
        for object in upkeep.changes.changed {
            // What it settled is a write that has seen all it knew.
            let key = (0..KEYS).find(|key| name(*key) == object.key).expect("one of ours");
            let at = &mut self.nodes[node];
            let bytes = object.resolved().and_then(|value| value.bytes);
            self.writes.push(Write { seen: at.seen[key].clone(), bytes });
            at.seen[key].insert(self.writes.len() - 1);
        }
    }

    fn pass(&mut self, ms: u64) {
        self.wall_ms.fetch_add(ms, Relaxed);
    }

    fn quiet(&mut self, away: Option<usize>) -> Result<(), TestCaseError> {
        let there: Vec<usize> = (0..NODES).filter(|node| Some(*node) != away).collect();
        for one in &there {
            for other in &there {
                self.exchange(*one, *other)?;
            }
        }
        there.iter().for_each(|node| self.upkeep(*node));
        for from in &there {
            there.iter().for_each(|to| self.tell(*from, *to));
        }
        Ok(())
    }

    /// Nobody forgets anything until all are equal; then the nodes must hold what no known write had seen.
    fn check(&mut self) -> Result<(), TestCaseError> {
        self.quiet(None)?;
        self.quiet(None)?;
        for key in 0..KEYS {
            let known: Seen = self.nodes.iter().flat_map(|node| node.seen[key].iter().copied()).collect();
            let overwritten: Seen =
                known.iter().flat_map(|write| self.writes[*write].seen.iter().copied()).collect();
            let left = known.difference(&overwritten).map(|write| &self.writes[*write]);
            let wanted: BTreeSet<&[u8]> = left.filter_map(|write| write.bytes.as_deref()).collect();
            for (number, node) in self.nodes.iter().enumerate() {
                let object = node.object(key);
                let values = object.iter().flat_map(Object::values);
                let found: BTreeSet<&[u8]> = values.filter_map(|value| value.bytes.as_deref()).collect();
                prop_assert_eq!(&found, &wanted, "key {} on node {}", key, number);
            }
        }
        Ok(())
    }

    /// Time passes, and no deletion is left.
    fn check_collection(&mut self) -> Result<(), TestCaseError> {
        // Whoever knew that a node is gone may be gone itself: the operator says it again.
        for node in &mut self.nodes {
            self.gone.iter().for_each(|gone| node.worker.forget(*gone));
        }
        for _ in 0..8 {
            self.pass(GRACE_MS);
            self.quiet(None)?;
        }
        self.check()?;
        for (number, node) in self.nodes.iter().enumerate() {
            let graves = node.disk.disk().objects.values().filter(|record| is_tombstone(record)).count();
            prop_assert_eq!(graves, 0, "deletions are left on node {}", number);
        }
        prop_assert!(self.nodes.windows(2).all(|pair| pair[0].worker.tree() == pair[1].worker.tree()));
        Ok(())
    }
}

impl Node {
    fn id(&self) -> NodeId {
        NodeId(self.worker.actor().node)
    }

    fn object(&self, key: usize) -> Option<Object> {
        let disk = self.disk.disk();
        let record = disk.objects.get(&place(Kind::Realm, &name(key))[..])?;
        Some(Object::decode(record).expect("a sound record"))
    }
}

fn is_tombstone(record: &[u8]) -> bool {
    Object::decode(record).expect("a sound record").is_tombstone()
}

fn name(key: usize) -> String {
    format!("realm{key}")
}

fn run(steps: &[Step]) -> Result<Cluster, TestCaseError> {
    let mut cluster = Cluster::new();
    for step in steps {
        cluster.step(step)?;
    }
    cluster.check()?;
    cluster.check_collection()?;
    Ok(cluster)
}

/// The sequence the rule for stale nodes is for.
#[test]
fn an_old_copy_of_a_disk_brings_nothing_back() {
    let calm = Step::Calm { away: None };
    let steps = [
        Step::Put { node: 0, key: 0 },
        Step::Quiet,
        Step::Backup { node: 2 },
        Step::Put { node: 2, key: 1 },
        Step::Backup { node: 2 },
        Step::Delete { node: 0, key: 0 },
        calm.clone(),
        calm,
        Step::Restore { node: 2 },
    ];
    let mut cluster = Cluster::new();
    steps.iter().for_each(|step| cluster.step(step).unwrap());
    assert!(cluster.nodes[0].object(0).is_none(), "forgotten by now");
    assert!(cluster.nodes[2].object(0).is_some());
    cluster.check().unwrap();
    let aside = cluster.nodes[2].disk.disk().aside.clone();
    assert!(aside.values().any(|file| String::from_utf8_lossy(file).contains("realm1")), "{aside:?}");
    cluster.check_collection().unwrap();
}

/// A node with an old disk that the others forget meets, before anybody else, one that has nothing.
#[test]
fn an_old_copy_of_a_disk_brings_nothing_back_to_who_has_nothing() {
    let steps = [
        Step::Put { node: 0, key: 0 },
        Step::Return { node: 0, key: 0 },
        Step::Wipe { node: 1 },
        Step::Forget { node: 0 },
    ];
    run(&steps).unwrap();
}

/// Two new nodes meet before either meets the third, which has forgotten deletions: what they wrote is kept.
#[test]
fn what_new_nodes_wrote_outlives_their_joining_an_old_cluster_together() {
    let steps = [
        Step::Return { node: 0, key: 0 },
        Step::Wipe { node: 1 },
        Step::Wipe { node: 0 },
        Step::Put { node: 0, key: 0 },
        Step::Pass { ms: 1 },
    ];
    run(&steps).unwrap();
}

/// The copy was made before the node had met anybody, and the node crashes as soon as it has been put back.
#[test]
fn a_node_knows_its_disk_for_a_copy_in_every_later_life() {
    let steps = [
        Step::Put { node: 1, key: 1 },
        Step::Backup { node: 1 },
        Step::Return { node: 0, key: 1 },
        Step::Exchange { one: 0, other: 1 },
        Step::Put { node: 0, key: 0 },
        Step::Restore { node: 1 },
        Step::Crash { node: 1 },
    ];
    run(&steps).unwrap();
}

fn number(variable: &str, default: u32) -> u32 {
    std::env::var(variable).ok().and_then(|number| number.parse().ok()).unwrap_or(default)
}

proptest! {
    // More cases, and others: FLOOR_CASES=1000 FLOOR_SEED=7.
    #![proptest_config(ProptestConfig {
        cases: number("FLOOR_CASES", 96),
        rng_seed: RngSeed::Fixed(number("FLOOR_SEED", 1).into()),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn nothing_deleted_returns_and_nothing_acknowledged_is_lost(steps in steps()) {
        run(&steps)?;
    }
}

const NODES: usize = 3;
const KEYS: usize = 3;
/// Short, so that deletions are forgotten in the middle of a run.
const GRACE: Duration = Duration::from_secs(60);
const GRACE_MS: u64 = 60_000;
