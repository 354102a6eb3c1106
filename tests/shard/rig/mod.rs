//! Shards with a driver that moves bytes when it is told to: connections, queues between shards, what is between nodes, and
//! time. The control plane is reduced to telling nodes of each other.

pub mod node;
mod shards;
mod wires;

use common::features::FeatureSet;
use common::ids::{RouteKind, SnapshotVersion};
use common::metrics::{Counter, Gauge};
use common::rules::{ANONYMOUS, Bounds, RoleRules, Rules};
use common::share::Share;
use common::snapshot::{Anonymous, Realm, Source};
use dataplane::feed::FeedDown;
use dataplane::shard::{ConnId, Flow, Output, SendBuf, ShardConfig};
use node::{Change, Key, Node};
use shards::conn_of;
use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};
use wires::Wires;

/// Rounds after which [`Rig::run`] gives up.
const ROUNDS_MAX: usize = 100_000;
/// Other nodes have 5 s to acknowledge a publication.
const REST_S: usize = 7;
/// All rigs are made from it.
const SEED: u64 = 1;

/// One connection of a client, seen from the driver.
pub struct Link {
    pub shard: usize,
    conn: ConnId,
    pub open: bool,
    /// It is closed, and its slot is kept.
    pub parked: bool,
    /// The node sends no more.
    pub shut: bool,
    pub paused: bool,
    /// The peer reads nothing: sends do not complete.
    pub stuck: bool,
    sending: Option<SendBuf>,
    /// Bytes on their way to the shard.
    coming: VecDeque<Vec<u8>>,
    /// All the shard sent.
    pub got: Vec<u8>,
}

/// Shards are numbered over all nodes.
pub struct Rig {
    pub now: Instant,
    nodes: Vec<Node>,
    /// Node and shard of it, by number.
    places: Vec<(usize, usize)>,
    wires: Wires,
    pub links: Vec<Link>,
    /// Nodes with a procedure, first come first.
    holders: BTreeMap<Key, Vec<(usize, Option<Share>)>>,
}

impl Rig {
    /// One node by itself. `realm1` is compatible, `strict` is strict; both admit everybody.
    pub fn new(shards: usize, change: impl Fn(&mut ShardConfig)) -> Self {
        Self::cluster(&[shards], |config| {
            config.relay = None;
            change(config);
        })
    }

    /// Nodes with so many shards each, connected.
    pub fn cluster(shards: &[usize], change: impl Fn(&mut ShardConfig)) -> Self {
        let now = Instant::now();
        let make = |(node, shards): (usize, &usize)| {
            let config = |shard| {
                let mut config = node::config(node, shard, *shards, SEED);
                change(&mut config);
                config
            };
            Node::new(node, (0..*shards).map(config).collect(), &source(1), now)
        };
        let shards = shards.iter().enumerate();
        let place = |(node, shards): (usize, &usize)| (0..*shards).map(move |shard| (node, shard));
        let mut rig = Self {
            now,
            places: shards.clone().flat_map(place).collect(),
            nodes: shards.map(make).collect(),
            wires: Wires::default(),
            links: Vec::new(),
            holders: BTreeMap::new(),
        };
        if rig.nodes.len() > 1 {
            Node::tell_peers(&mut rig.nodes);
            rig.run();
        }
        rig
    }

    /// The version a shard last said it uses, if it said so since it was last asked.
    pub fn taken(&mut self, shard: usize) -> Option<SnapshotVersion> {
        let (node, shard) = self.places[shard];
        self.hear(node, shard);
        self.nodes[node].taken[shard].take()
    }

    /// Whether a shard has said that it is drained.
    pub fn is_drained(&self, shard: usize) -> bool {
        let (node, shard) = self.places[shard];
        self.nodes[node].drained[shard]
    }

    /// A new connection on listener 0 (RawSocket) or 1 (WebSocket), or nothing when the shard refuses it or is dead.
    pub fn connect(&mut self, shard: usize, listener: usize) -> Option<usize> {
        let (at, index) = self.places[shard];
        let node = &mut self.nodes[at];
        if !node.alive {
            return None;
        }
        let conn = node.conn(index);
        if !node.shards[index].accept(self.now, conn, listener, IpAddr::V4(Ipv4Addr::LOCALHOST)) {
            node.release(index, conn);
            return None;
        }
        self.links.push(Link {
            shard,
            conn,
            open: true,
            parked: false,
            shut: false,
            paused: false,
            stuck: false,
            sending: None,
            coming: VecDeque::new(),
            got: Vec::new(),
        });
        Some(self.links.len() - 1)
    }

    /// Bytes arrive on a connection, or wait while it is paused.
    pub fn receive(&mut self, at: usize, bytes: &[u8]) {
        self.links[at].coming.push_back(bytes.to_vec());
        self.let_in(at);
    }

    fn let_in(&mut self, at: usize) {
        let link = &mut self.links[at];
        if !link.open || link.paused {
            return;
        }
        let Some(mut bytes) = link.coming.pop_front() else { return };
        let (node, shard) = self.places[link.shard];
        let flow = self.nodes[node].shards[shard].receive(self.now, link.conn, &mut bytes);
        link.paused = flow == Flow::Pause;
        self.act(node, shard);
    }

    /// The peer closes.
    pub fn close(&mut self, at: usize) {
        let link = &self.links[at];
        if link.open {
            let (node, shard) = self.places[link.shard];
            self.nodes[node].shards[shard].closed(self.now, link.conn);
            self.act(node, shard);
            assert!(!self.links[at].open, "what the peer closed is closed");
        }
    }

    /// All peers close.
    pub fn close_all(&mut self) {
        (0..self.links.len()).for_each(|at| self.close(at));
    }

    /// The peer closes, if the node has not, after the node has said that it sends no more.
    pub fn close_lingering(&mut self, at: usize) {
        assert!(!self.links[at].open || self.links[at].shut, "the node hangs up");
        self.close(at);
    }

    /// The control planes say something to every shard.
    pub fn feed(&mut self, down: &FeedDown) {
        self.nodes.iter_mut().for_each(|node| node.tell(down));
        for shard in 0..self.places.len() {
            self.fed(shard);
        }
        self.run();
    }

    /// The next thing a control plane said reaches a shard.
    fn fed(&mut self, shard: usize) {
        let (node, shard) = self.places[shard];
        if self.nodes[node].alive {
            self.nodes[node].feed(self.now, shard);
            self.act(node, shard);
        }
    }

    /// Time passes, and every shard looks at its timers.
    pub fn pass(&mut self, time: Duration) {
        self.now += time;
        for (node, shard) in self.places.clone() {
            if !self.nodes[node].alive {
                continue;
            }
            let state = &mut self.nodes[node].shards[shard];
            if state.deadline().is_some_and(|deadline| deadline <= self.now) {
                state.timeout(self.now);
                self.act(node, shard);
            }
        }
    }

    fn act(&mut self, node: usize, shard: usize) {
        while let Some(output) = self.nodes[node].shards[shard].poll() {
            if self.wires.act(&mut self.nodes, (node, shard), output) {
                continue;
            }
            let conn = conn_of(&output);
            let of_conn = |link: &Link| self.places[link.shard] == (node, shard) && link.conn == conn;
            let at = self.links.iter().rposition(of_conn).expect("outputs name connections that were opened");
            let link = &mut self.links[at];
            let frees = link.parked && matches!(output, Output::Close(_));
            assert!(link.open || frees, "nothing is wanted of a closed connection: {output:?}");
            match output {
                Output::Send(_) => {
                    assert!(link.sending.is_none(), "one send at a time");
                    let buf = self.nodes[node].shards[shard].take_send(conn);
                    assert!(!buf.segments.is_empty(), "a send has something to send");
                    link.sending = Some(buf);
                }
                Output::Park(_) => {
                    (link.open, link.parked) = (false, true);
                    link.sending = None;
                }
                Output::Close(_) => {
                    (link.open, link.parked) = (false, false);
                    link.sending = None;
                    self.nodes[node].release(shard, conn);
                }
                Output::ResumeReads(_) => link.paused = false,
                Output::ShutdownWrite(_) => link.shut = true,
                Output::Connect { .. } => {}
            }
        }
    }

    /// The kernel took what was sent on a connection (`ok`), or found it broken. True when there was something.
    pub fn finish_send(&mut self, at: usize, ok: bool) -> bool {
        let link = &mut self.links[at];
        let Some(buf) = link.sending.take() else { return false };
        for segment in &buf.segments {
            link.got.extend_from_slice(segment.as_slice());
        }
        let (node, shard) = self.places[link.shard];
        self.nodes[node].shards[shard].sent(self.now, link.conn, buf, ok);
        self.act(node, shard);
        true
    }

    /// One turn of a shard: at most one batch of each other, and what it has for them.
    pub fn turn(&mut self, shard: usize) {
        if !self.nodes[self.places[shard].0].alive {
            return;
        }
        self.fed(shard);
        let (node, shard) = self.places[shard];
        let changes = self.nodes[node].turn(self.now, shard);
        self.spread(node, &changes);
        self.spread_retained(node);
        self.act(node, shard);
    }

    fn hear(&mut self, node: usize, shard: usize) {
        if !self.nodes[node].alive {
            return;
        }
        let changes = self.nodes[node].hear(shard);
        self.spread(node, &changes);
    }

    /// The other nodes hear what a node began or ceased to want. Who registers a procedure that another node has loses it.
    fn spread(&mut self, from: usize, changes: &[Change]) {
        if changes.is_empty() || self.nodes.len() == 1 {
            return;
        }
        let id = self.nodes[from].id;
        for at in (0..self.nodes.len()).filter(|at| *at != from) {
            self.nodes[at].tell_routes(id, changes);
        }
        for (key, wanted, share) in changes.iter().filter(|((_, kind, ..), ..)| *kind == RouteKind::Procedure)
        {
            let holders = self.holders.entry(key.clone()).or_default();
            let before = holders.iter().position(|(node, _)| *node == from).map(|at| holders.remove(at).1);
            if !wanted {
                continue;
            }
            let shares = |other: &Share| share.is_some_and(|share| share.shares_with(other));
            let lost: Vec<usize> = match share {
                // It takes the place of all, once.
                Some(share) if share.forced && !before.flatten().is_some_and(|before| before.forced) => {
                    holders.drain(..).map(|(node, _)| node).collect()
                }
                _ if holders.iter().all(|(_, other)| other.as_ref().is_some_and(shares)) => vec![],
                _ => vec![from],
            };
            holders.push((from, *share));
            let (realm, _, policy, uri) = key;
            for node in lost {
                let (realm, policy, uri) = (*realm, *policy, uri.as_str().into());
                self.nodes[node].tell(&FeedDown::Revoke { realm, policy, uri });
            }
        }
    }

    /// What a topic retains is stored and reaches all nodes, the one where it was put too.
    fn spread_retained(&mut self, from: usize) {
        let topics = std::mem::take(&mut self.nodes[from].retained);
        if !topics.is_empty() {
            let down = FeedDown::Retained(topics.into());
            self.nodes.iter_mut().for_each(|node| node.tell(&down));
        }
    }

    /// Every connection between nodes breaks, with what is under way.
    pub fn cut(&mut self) {
        self.wires.wires.iter_mut().for_each(|wire| wire.cut(|_| 0));
        self.run();
    }

    /// The node of a shard dies with its clients. The others hear of it when their connections break, and later from
    /// their control planes.
    pub fn kill(&mut self, shard: usize) {
        let (dead, _) = self.places[shard];
        self.nodes[dead].alive = false;
        let of_node = |link: &&mut Link| self.places[link.shard].0 == dead;
        for link in self.links.iter_mut().filter(of_node) {
            link.open = false;
            link.sending = None;
        }
        self.wires.kill(dead, |_| 0);
        self.run();
        Node::tell_peers(&mut self.nodes);
        self.holders.values_mut().for_each(|holders| holders.retain(|(node, _)| *node != dead));
        let id = self.nodes[dead].id;
        self.nodes.iter_mut().for_each(|node| node.tell_gone(id));
        self.run();
    }

    /// Something happens on every connection between nodes.
    pub fn carry(&mut self) {
        for call in std::mem::take(&mut self.wires.dials) {
            let target = &self.nodes[call.target];
            let at = target.alive.then_some(call.shard % target.shards.len());
            self.wires.answer(&mut self.nodes, self.now, call, at);
            self.act(call.node, call.shard);
        }
        for end in self.wires.busy().into_iter().rev() {
            if self.wires.is_busy(end) {
                let (place, _) = self.wires.advance(&mut self.nodes, self.now, end, usize::MAX);
                self.act(place.node, place.shard);
                self.wires.sweep();
            }
        }
    }

    /// Lets everything under way arrive but what goes to stuck peers.
    pub fn run(&mut self) {
        for _ in 0..ROUNDS_MAX {
            for at in 0..self.links.len() {
                self.let_in(at);
                if !self.links[at].stuck {
                    self.finish_send(at, true);
                }
            }
            self.carry();
            (0..self.places.len()).for_each(|shard| self.turn(shard));
            if self.is_quiet() {
                return;
            }
        }
        panic!("the shards do not come to rest");
    }

    fn is_quiet(&self) -> bool {
        let quiet = |link: &Link| {
            let waits = link.paused || link.coming.is_empty();
            !link.open || waits && (link.stuck || link.sending.is_none())
        };
        self.links.iter().all(quiet)
            && self.nodes.iter().all(|node| !node.alive || node.is_quiet())
            && self.wires.is_quiet()
    }

    /// Of all nodes.
    pub fn shards(&self) -> usize {
        self.places.len()
    }

    /// What the time of day is, on all nodes.
    pub fn set_clocks(&mut self, unix: Duration) {
        for shard in self.nodes.iter_mut().flat_map(|node| &mut node.shards) {
            shard.set_clock(self.now, unix);
        }
    }

    pub fn counter(&mut self, shard: usize, counter: Counter) -> u64 {
        let (node, shard) = self.places[shard];
        (0..self.nodes[node].shards.len()).for_each(|shard| self.hear(node, shard));
        self.nodes[node].metrics(self.now)[shard].get(counter)
    }

    pub fn gauge(&mut self, shard: usize, gauge: Gauge) -> u64 {
        let (node, shard) = self.places[shard];
        (0..self.nodes[node].shards.len()).for_each(|shard| self.hear(node, shard));
        self.nodes[node].metrics(self.now)[shard].gauge(gauge)
    }

    /// Time passes until lanes that were cut connect again, and nothing waits for a node that does not answer.
    fn rest(&mut self) {
        for _ in 0..REST_S {
            self.pass(Duration::from_secs(1));
            self.run();
        }
    }

    /// With every client gone, the shards hold nothing of them.
    pub fn check_empty(&mut self) {
        self.close_all();
        self.run();
        if self.nodes.len() > 1 {
            self.rest();
        }
        for node in 0..self.nodes.len() {
            if self.nodes[node].alive {
                (0..self.nodes[node].shards.len()).for_each(|shard| self.hear(node, shard));
                self.nodes[node].check_empty(self.now);
            }
        }
    }
}

/// Whoever is not asked who it is may do everything.
fn open() -> Rules {
    let anonymous = RoleRules { name: ANONYMOUS.into(), off: Some(FeatureSet::EMPTY), bounds: Bounds::NONE };
    Rules::new(FeatureSet::EMPTY, Bounds::NONE, vec![anonymous]).expect("one role")
}

pub fn realm(name: &str) -> Realm {
    Realm { strict: name == "strict", rules: open().pack(), ..Realm::new(name, Anonymous::Anybody) }
}

/// What the first snapshot is made from, in a version. It stands for no claim.
pub fn source(version: u64) -> Source {
    let realms = vec![realm("realm1"), realm("strict")];
    let epoch = node::epoch(SEED, 0);
    Source { version: SnapshotVersion(version), epoch, realms, ..Source::default() }
}
