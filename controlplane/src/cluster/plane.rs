//! A whole control plane as one machine: this node, and its part in the cluster. Sans-IO.
//!
//! ```text
//! data plane ◀─ link ─▶ node ── local routes, linked, lost ──▶ machine ◀─ links ─▶ other control planes
//!                        ◀── routes, peers, revocations, realms ──┘ └──▶ store
//! ```
//! Invariants: the node hears of realms only what is stored, in the order in which it was stored; while the node joins, its data
//! plane keeps what it has and hears nothing new.

use super::machine::{Machine, Notice, Output as FromMachine};
use super::status::{ClusterStatus, ObjectsStatus};
use super::task::{StoreDone, StoreTask, Token};
use super::{Waiting, machine};
use crate::catalog::{Origin, RealmError};
use crate::claims::{About, RouteKey, Wanted};
use crate::node::{self, LinkId, Node, Output as FromNode, Unready};
use crate::peers::Channel;
use crate::registry::LocalChange;
use crate::retained::{Put, Retained};
use crate::store::record::{Kind, Object};
use crate::store::{StoreError, realm};
use crate::swim::Member;
use bytes::Bytes;
use common::config::RealmConfig;
use common::ids::{BootEpoch, NodeId, RealmId, ShardSet};
use common::link::Up;
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// How other nodes reach this node's relay.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RelayAddress {
    /// `relay.advertise`
    pub advertise: Option<SocketAddr>,
    /// Of `cluster.advertise`: with the port that the relay is bound to.
    pub ip: IpAddr,
}

/// What the driver does.
#[derive(Debug)]
pub enum Output {
    /// Everything to do with the data plane and the log of the node.
    Node(FromNode),
    Send {
        to: NodeId,
        channel: Channel,
        bytes: Bytes,
    },
    Close {
        peer: NodeId,
    },
    Store {
        token: Token,
        task: StoreTask,
    },
    /// A realm that was put or removed here is stored, and in force with this number; or is not stored.
    Realm {
        token: Token,
        result: Result<u64, StoreError>,
    },
    Notice(Notice),
}

/// Why the node is not ready.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NotReady {
    #[error(transparent)]
    Joining(#[from] Waiting),
    #[error(transparent)]
    Node(#[from] Unready),
}

pub struct Plane {
    node: Node,
    cluster: Machine,
    relay: RelayAddress,
    data: Data,
    retained: Retained,
    /// When the retained events are looked after again.
    retained_at: Option<Instant>,
    /// The store has refused a put of retained events: none is tried before then.
    retained_rests: Option<Instant>,
    /// That is in the log.
    retained_refused: bool,
    /// Number of the last change of realms.
    realm_seq: u64,
    /// Changes of realms asked for here that are not yet in force.
    realms_pending: usize,
    outputs: VecDeque<Output>,
}

/// What is remembered of the data plane.
#[derive(Debug, Default)]
struct Data {
    epoch: BootEpoch,
    /// It said that it was going away.
    draining: bool,
    /// Shards that have named their whole claim set since it was linked.
    resynced: ShardSet,
    about: About,
    whole_said: bool,
}

impl Plane {
    pub fn new(node: Node, cluster: Machine, relay: RelayAddress) -> Self {
        let mut plane = Self {
            node,
            retained: Retained::new(cluster.node()),
            retained_at: None,
            retained_rests: None,
            retained_refused: false,
            cluster,
            relay,
            data: Data::default(),
            realm_seq: 0,
            realms_pending: 0,
            outputs: VecDeque::new(),
        };
        plane.node.watch_local();
        if plane.cluster.waiting().is_some() {
            plane.node.hold(true);
        }
        plane
    }

    // The data plane: see `Node`.

    pub fn frame(&mut self, now: Instant, wall_ms: u64, link: LinkId, frame: Up) {
        self.node.frame(now, link, frame);
        self.follow(now, wall_ms);
    }

    pub fn violation(&mut self, now: Instant, wall_ms: u64, link: LinkId, reason: String) {
        self.node.violation(now, link, reason);
        self.follow(now, wall_ms);
    }

    pub fn closed(&mut self, now: Instant, wall_ms: u64, link: LinkId) {
        self.node.closed(now, link);
        self.follow(now, wall_ms);
    }

    pub fn built(
        &mut self,
        now: Instant,
        version: common::ids::SnapshotVersion,
        build_time: Option<Duration>,
    ) {
        self.node.built(now, version, build_time);
    }

    pub fn link_room(&mut self, frames: usize) {
        self.node.link_room(frames);
    }

    /// Tells the data plane to say goodbye to everybody and exit. True when one is linked.
    pub fn drain(&mut self) -> bool {
        self.node.drain()
    }

    // Realms.

    /// Stores a realm and brings it to all nodes; [`Output::Realm`] tells when it is in force here.
    ///
    /// # Errors
    /// It cannot be; nothing was changed.
    pub fn realm_put(&mut self, config: &RealmConfig) -> Result<Token, RealmError> {
        self.node.catalog().check_put(config, self.realms_pending)?;
        self.realms_pending += 1;
        Ok(self.cluster.put(Kind::Realm, &config.name, Some(realm::encode(config))))
    }

    /// As [`Plane::realm_put`].
    pub fn realm_remove(&mut self, name: &str) -> Result<Token, RealmError> {
        self.node.catalog().check_remove(name)?;
        self.realms_pending += 1;
        self.retained.delete_realm(RealmId::of(name));
        Ok(self.cluster.put(Kind::Realm, name, None))
    }

    /// What is retained, as the store had it at start.
    pub fn load_retained<'a>(&mut self, objects: impl Iterator<Item = &'a Object>) {
        for object in objects.filter(|object| object.kind == Kind::Retained) {
            self.follow_retained(object);
        }
    }

    pub fn retained(&self) -> &Retained {
        &self.retained
    }

    // The cluster: see `Machine`.

    pub fn members(&mut self, now: Instant, members: &[Member]) {
        self.cluster.members(now, members);
    }

    pub fn peer_up(&mut self, now: Instant, node: NodeId) {
        self.cluster.peer_up(now, node);
    }

    pub fn peer_down(&mut self, now: Instant, node: NodeId) {
        self.cluster.peer_down(now, node);
    }

    pub fn rtt(&mut self, node: NodeId, rtt: Duration) {
        self.cluster.rtt(node, rtt);
    }

    pub fn peer_frame(&mut self, now: Instant, node: NodeId, channel: Channel, body: &[u8]) {
        self.cluster.frame(now, node, channel, body);
    }

    pub fn stored(&mut self, now: Instant, token: Token, done: StoreDone) {
        self.cluster.stored(now, token, done);
    }

    // Time.

    /// The deadline has passed.
    pub fn timeout(&mut self, now: Instant) {
        if self.cluster.deadline().is_some_and(|at| at <= now) {
            self.cluster.timeout(now);
        }
    }

    /// When to call [`Plane::timeout`] and [`Plane::poll`] at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        [self.node.deadline(), self.cluster.deadline(), self.retained_at].into_iter().flatten().min()
    }

    /// The next thing to do; to be called until there is none. `wall_us`: the wall clock in microseconds since 1970.
    pub fn poll(&mut self, now: Instant, wall_us: u64) -> Option<Output> {
        while let Some(output) = self.cluster.poll() {
            self.on_cluster(now, output);
        }
        if let Some(output) = self.outputs.pop_front() {
            return Some(output);
        }
        // What is retained goes last: nothing goes before a welcome.
        let Some(output) = self.node.poll(now, wall_us) else {
            return self.poll_retained(now, wall_us / 1_000);
        };
        if let FromNode::Notice(node::Notice::Resynced { shard, .. }) = &output {
            self.data.resynced = self.data.resynced.with(*shard);
            self.say_whole(now);
        }
        Some(Output::Node(output))
    }

    // What is known.

    pub fn node(&self) -> &Node {
        &self.node
    }

    pub fn cluster(&self) -> &Machine {
        &self.cluster
    }

    pub fn ready(&self) -> Result<(), NotReady> {
        if let Some(waiting) = self.cluster.waiting() {
            return Err(waiting.into());
        }
        Ok(self.node.ready()?)
    }

    pub fn status(&self, now: Instant, objects: ObjectsStatus) -> ClusterStatus {
        self.cluster.status(now, objects)
    }

    /// Tells the cluster what became of the data plane and its routes.
    fn follow(&mut self, now: Instant, wall_ms: u64) {
        for (topic, ttl_ms) in self.node.take_retain() {
            self.retained.put(topic, ttl_ms, wall_ms);
        }
        let mut routes = Vec::new();
        for change in self.node.take_local() {
            match change {
                LocalChange::Route { realm, kind, policy, uri, wanted, share } => {
                    routes.push((RouteKey { realm, kind, policy, uri }, Wanted { wanted, share }));
                    continue;
                }
                LocalChange::Linked { .. } | LocalChange::Lost => {
                    self.cluster.claimed(now, wall_ms, routes.drain(..));
                }
            }
            match change {
                LocalChange::Linked { epoch, known } => {
                    self.retained.tell_all();
                    self.data = Data { epoch, ..Data::default() };
                    self.data.about = self.about();
                    self.cluster.data_plane(now, epoch, self.data.about.clone());
                    if known {
                        self.cluster.tell_again();
                    }
                }
                LocalChange::Lost => self.cluster.data_plane_lost(now, self.data.draining),
                LocalChange::Route { .. } => {}
            }
        }
        if !routes.is_empty() {
            self.cluster.claimed(now, wall_ms, routes);
        }
        let Some(draining) = self.node.data_plane().map(|data| data.draining) else { return };
        self.data.draining = draining;
        let about = self.about();
        if about != self.data.about {
            self.data.about = about.clone();
            self.cluster.data_plane(now, self.data.epoch, about);
        }
        self.say_whole(now);
    }

    /// Brings what is retained to the store and to the data plane.
    fn poll_retained(&mut self, now: Instant, wall_ms: u64) -> Option<Output> {
        self.retained.sweep(wall_ms);
        self.retained_rests = self.retained_rests.filter(|until| *until > now);
        while self.retained_rests.is_none()
            && let Some((name, bytes)) = self.retained.take_put()
        {
            let token = self.cluster.put(Kind::Retained, &name, bytes.clone());
            self.retained.began(token, (name, bytes));
        }
        let sweep = (!self.retained.is_empty()).then(|| now + RETAINED_SWEEP);
        self.retained_at = self.retained_rests.into_iter().chain(sweep).min();
        if self.retained.has_frame() {
            if let Some(link) = self.node.spare_room() {
                let frame = self.retained.frame(wall_ms)?;
                return Some(Output::Node(FromNode::Send { link, frame }));
            }
            if self.node.data_plane().is_some() {
                self.retained_at = Some(now + RETAINED_RETRY);
            }
        }
        // What the puts above gave the machine to do.
        let output = self.cluster.poll()?;
        self.on_cluster(now, output);
        self.outputs.pop_front()
    }

    /// A put of retained events has ended.
    fn retained_put(&mut self, now: Instant, put: Put, result: Result<(), StoreError>) {
        let Err(error) = result else {
            self.retained_refused = false;
            return;
        };
        if matches!(error, StoreError::Object(_)) {
            self.retained.give_up(put);
        } else {
            self.retained.again(put);
            self.retained_rests = Some(now + RETAINED_REST);
            if std::mem::replace(&mut self.retained_refused, true) {
                return;
            }
        }
        let reason = format!("retained events are not stored: {error}");
        self.outputs.push_back(Output::Notice(Notice::Refused { reason }));
    }

    fn follow_retained(&mut self, object: &Object) {
        let bytes = object.resolved().and_then(|value| value.bytes);
        if let Err(error) = self.retained.stored(&object.key, bytes.as_deref()) {
            let reason = format!("retained events {} are stored and not used: {error}", object.key);
            self.outputs.push_back(Output::Notice(Notice::Refused { reason }));
        }
    }

    fn say_whole(&mut self, now: Instant) {
        let Some(shards) = self.node.data_plane().map(|data| data.stats.len()) else { return };
        let named = self.data.resynced.len() >= shards && self.node.registry().is_settled();
        if named && !self.data.whole_said {
            self.data.whole_said = true;
            self.cluster.claimed_whole(now);
        }
    }

    /// What other nodes must know of the data plane that is linked.
    /// What this node says of its data plane.
    pub fn about(&self) -> About {
        let Some(data) = self.node.data_plane() else { return About::default() };
        let relay = data.listeners.iter().find(|(name, _)| name == RELAY);
        let bound = relay.and_then(|(_, address)| address.parse::<SocketAddr>().ok());
        let reached = bound.map(|bound| {
            self.relay.advertise.unwrap_or_else(|| SocketAddr::new(self.relay.ip, bound.port()))
        });
        About { relay: reached.map(|at| at.to_string()).unwrap_or_default(), shards: data.shards }
    }

    fn on_cluster(&mut self, now: Instant, output: FromMachine) {
        let output = match output {
            FromMachine::Send { to, channel, bytes } => Output::Send { to, channel, bytes },
            FromMachine::Close { peer } => Output::Close { peer },
            FromMachine::Store { token, task } => Output::Store { token, task },
            FromMachine::Put { token, result } => {
                if let Some(put) = self.retained.ended(token) {
                    return self.retained_put(now, put, result);
                }
                self.realms_pending -= 1;
                Output::Realm { token, result: result.map(|()| self.realm_seq) }
            }
            FromMachine::Reset => {
                self.retained.reset();
                return self.forget_realms(now);
            }
            FromMachine::Object(object) if object.kind == Kind::Retained => {
                return self.follow_retained(&object);
            }
            FromMachine::Object(object) => return self.put_in_force(now, &object),
            FromMachine::Peers(peers) => return self.node.peers(peers),
            FromMachine::Routes(changes) => return self.node.remote_routes(now, changes),
            FromMachine::Revoke { realm, policy, uri } => {
                // Without a data plane there is no callee to be told.
                self.node.revoke(realm, policy, &uri);
                return;
            }
            FromMachine::Notice(notice) => {
                if let machine::Notice::Joined { .. } = notice {
                    self.node.hold(false);
                }
                Output::Notice(notice)
            }
        };
        self.outputs.push_back(output);
    }

    /// Nothing is stored any more.
    fn forget_realms(&mut self, now: Instant) {
        let stored = self.node.catalog().iter().filter(|entry| entry.origin == Origin::Store);
        let names: Vec<_> = stored.map(|entry| entry.config.name.clone()).collect();
        for name in names {
            if let Some(seq) = self.node.realm_remove(now, &name) {
                self.realm_seq = seq;
            }
        }
    }

    /// The object is stored like this: the catalog follows it.
    fn put_in_force(&mut self, now: Instant, object: &Object) {
        let bytes = object.resolved().and_then(|value| value.bytes);
        let reason = match bytes.map(|bytes| realm::decode(&object.key, &bytes)) {
            None => {
                if self.node.catalog().check_remove(&object.key).is_ok()
                    && let Some(seq) = self.node.realm_remove(now, &object.key)
                {
                    self.realm_seq = seq;
                }
                return;
            }
            Some(Ok(config)) => match self.node.catalog().check_load(&config) {
                Ok(()) => {
                    self.realm_seq = self.node.realm_put(now, config);
                    return;
                }
                // It is hidden by the configuration of this node alone.
                Err(RealmError::Configured { .. }) => return,
                Err(reason) => reason.to_string(),
            },
            Some(Err(reason)) => reason.to_string(),
        };
        let reason = format!("realm {:?} is stored and not used: {reason}", object.key);
        self.outputs.push_back(Output::Notice(Notice::Refused { reason }));
    }
}

/// How often it is looked for retained events that are over, and how soon a link without room is tried again.
const RETAINED_SWEEP: Duration = Duration::from_secs(10);
/// How long the store is left alone once it has refused retained events.
const RETAINED_REST: Duration = Duration::from_secs(1);
const RETAINED_RETRY: Duration = Duration::from_millis(2);

/// The relay's name among the listeners of a data plane.
pub const RELAY: &str = "relay";
