//! The machine that composes the others.

use super::exchanges::{Abort, Exchanges, Todo};
use super::joining::{Joining, Progress, Waiting};
use super::members::{Change, Members};
use super::task::{StoreDone, StoreTask, Token};
use super::{DATA_PLANE_GRACE, STORE_TASKS_MAX, UPKEEP_PERIOD, exchanges};
use crate::broadcast::{self, Broadcast, IdKey};
use crate::claims::{self, About, Claims, RouteKey, Wanted};
use crate::peers::Channel;
use crate::replica::exchange::Tally;
use crate::replica::hlc::Clock;
use crate::store::record::{Kind, Object};
use crate::store::{Changes, StoreError, Upkeep};
use crate::swim::Member;
use bytes::Bytes;
use common::config;
use common::ids::{BootEpoch, Match, NodeId, RealmId};
use common::link::{Peer, RouteChange};
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// What the machine is made from.
#[derive(Clone, Debug)]
pub struct Settings {
    pub node: NodeId,
    /// Of this control plane: greater than at any earlier start.
    pub epoch: u64,
    pub env: String,
    /// False: the node is in no cluster, and has nobody to wait for.
    pub clustered: bool,
    pub join_wait: Duration,
    pub lazy_tick: Duration,
    pub edge_tick: Duration,
    pub aae: config::Aae,
    /// Of all random choices.
    pub seed: u64,
}

/// What the driver does.
#[derive(Debug)]
pub enum Output {
    /// A frame for a peer that is linked. One that cannot be queued is lost, which is repaired.
    Send {
        to: NodeId,
        channel: Channel,
        bytes: Bytes,
    },
    /// The peer does not keep to the protocol: close its link.
    Close {
        peer: NodeId,
    },
    /// To be done in the order in which it is asked, and answered in that order with [`Machine::stored`].
    Store {
        token: Token,
        task: StoreTask,
    },
    /// A put or deletion of this node is stored, or is not.
    Put {
        token: Token,
        result: Result<(), StoreError>,
    },
    /// No object is there any more: this node had been away for too long. They come back one by one.
    Reset,
    /// The object is now like this: to be put in force here.
    Object(Object),
    /// For the data plane: all nodes that may be sent to.
    Peers(Vec<Peer>),
    /// For the data plane: what other nodes want.
    Routes(Vec<RouteChange>),
    /// For the data plane: another node has the better right to this registration.
    Revoke {
        realm: RealmId,
        policy: Match,
        uri: String,
    },
    Notice(Notice),
}

/// Something worth a line in the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Notice {
    /// The node may serve: `after` so long, without the state of these.
    Joined {
        after: Duration,
        members: usize,
        without: Vec<NodeId>,
    },
    Exchanged {
        peer: NodeId,
        tally: Tally,
    },
    Aborted {
        peer: NodeId,
        why: Abort,
    },
    Violation {
        peer: NodeId,
        channel: Channel,
        reason: String,
    },
    /// The data plane did not come back: what it claimed is gone.
    ClaimsEnded,
    /// The store does not take a record of another node.
    Refused {
        reason: String,
    },
}

/// Why work was given to the store.
#[derive(Clone, Copy, Debug)]
enum Purpose {
    Put,
    Merge,
    Start { round: u64 },
    Step { round: u64 },
    Answer { peer: NodeId },
    Announce { peer: NodeId },
    Hear { peer: NodeId },
    Upkeep,
    Members,
}

pub struct Machine {
    pub(super) settings: Settings,
    pub(super) members: Members,
    pub(super) broadcast: Broadcast,
    pub(super) claims: Claims,
    pub(super) exchanges: Exchanges,
    pub(super) joining: Joining,
    pub(super) counts: Counts,
    clock: Clock,
    /// When the claims of a data plane whose link broke end.
    claims_end_at: Option<Instant>,
    /// More of the claims is to be told, after what else has come.
    again_at: Option<Instant>,
    /// When the store does its regular work; none: it does it now, or there is no cluster.
    upkeep_at: Option<Instant>,
    /// What the data plane was told last.
    peers: Vec<Peer>,
    pending: BTreeMap<Token, Purpose>,
    tokens_last: u64,
    pub(super) remote_routes: usize,
    outputs: VecDeque<Output>,
}

/// What happened so far.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counts {
    /// Records that came by broadcast and changed something, were refused, and were dropped because the store had enough
    /// to do.
    pub merged: u64,
    pub refused: u64,
    pub dropped: u64,
    /// Records changed here by exchanges, of ours and of others.
    pub repaired: u64,
}

impl Machine {
    pub fn new(now: Instant, settings: Settings) -> Self {
        let key = IdKey::of(settings.env.as_bytes());
        let broadcast = broadcast::Settings::new(key, settings.lazy_tick, settings.edge_tick);
        let claims =
            claims::Settings { node: settings.node, epoch: settings.epoch, tick: settings.lazy_tick };
        let exchange = exchanges::Settings {
            enabled: settings.aae.enabled,
            timer: settings.aae.exchange_timer,
            timeout: settings.aae.data_exchange_timeout,
            rate: settings.aae.exchange_rate,
            seed: settings.seed,
        };
        let joining =
            if settings.clustered { Joining::new(now, settings.join_wait) } else { Joining::none(now) };
        Self {
            members: Members::default(),
            broadcast: Broadcast::new(now, broadcast),
            claims: Claims::new(claims),
            exchanges: Exchanges::new(now, exchange),
            joining,
            counts: Counts::default(),
            clock: Clock::default(),
            claims_end_at: None,
            again_at: None,
            upkeep_at: settings.clustered.then_some(now + UPKEEP_PERIOD),
            peers: Vec::new(),
            pending: BTreeMap::new(),
            tokens_last: 0,
            remote_routes: 0,
            outputs: VecDeque::new(),
            settings,
        }
    }

    /// This node.
    pub fn node(&self) -> NodeId {
        self.settings.node
    }

    // Membership and links.

    /// All other nodes, as membership has them now.
    pub fn members(&mut self, now: Instant, members: &[Member]) {
        let changes = self.members.set(now, members);
        if changes.iter().any(|change| matches!(change, Change::Up(_))) {
            // Whoever was seen once has to agree before a deletion is forgotten.
            let all = self.members.iter().filter(|(_, row)| row.member.is_some()).map(|(node, _)| node);
            let all = all.collect();
            self.store(Purpose::Members, StoreTask::Members(all));
        }
        for change in changes {
            match change {
                Change::Up(node) => self.claims.node_up(node),
                Change::Down(node) => self.claims.node_down(node),
                Change::Left(node) => self.claims.node_left(node),
            }
        }
        self.settle(now);
    }

    /// A link to `node` has come up.
    pub fn peer_up(&mut self, now: Instant, node: NodeId) {
        self.members.link_up(now, node);
        self.broadcast.up(node);
        self.claims.peer_up(now, node);
        self.exchanges.up(now, node, !self.joining.is_done());
        self.store(Purpose::Announce { peer: node }, StoreTask::Announce);
        self.settle(now);
    }

    /// The link to `node` is gone, and what was queued to it.
    pub fn peer_down(&mut self, now: Instant, node: NodeId) {
        self.members.link_down(node);
        self.broadcast.down(node);
        self.claims.peer_down(node);
        self.exchanges.down(now, node);
        self.settle(now);
    }

    /// The round-trip time to `node` was measured.
    pub fn rtt(&mut self, node: NodeId, rtt: Duration) {
        if self.members.rtt(node, rtt) {
            self.broadcast.rtt(node, rtt);
        }
    }

    /// A frame of `node` has come.
    pub fn frame(&mut self, now: Instant, node: NodeId, channel: Channel, body: &[u8]) {
        let taken = match channel {
            Channel::Broadcast => self.broadcast.frame(now, node, body).map_err(|error| error.to_string()),
            Channel::Claims => self.claims.receive(now, node, body).map_err(|error| error.to_string()),
            Channel::Exchange => self.exchanges.frame(now, node, body).map_err(|error| error.to_string()),
            Channel::Floor => {
                self.on_floor(node, body);
                Ok(())
            }
            // Not for this machine.
            Channel::Swim => Ok(()),
        };
        if let Err(reason) = taken {
            self.violation(node, channel, reason);
        }
        self.settle(now);
    }

    fn on_floor(&mut self, peer: NodeId, body: &[u8]) {
        // What is left out is announced again.
        if self.pending.len() < STORE_TASKS_MAX {
            let announcement = body.to_vec();
            self.store(Purpose::Hear { peer }, StoreTask::Hear { peer, announcement });
        }
    }

    fn violation(&mut self, peer: NodeId, channel: Channel, reason: String) {
        self.outputs.push_back(Output::Notice(Notice::Violation { peer, channel, reason }));
        self.outputs.push_back(Output::Close { peer });
    }

    // Objects.

    /// Stores an object's value, or with no bytes its deletion, and brings it to all nodes. [`Output::Put`] tells when it
    /// would survive a power cut.
    pub fn put(&mut self, kind: Kind, key: &str, bytes: Option<Vec<u8>>) -> Token {
        self.store(Purpose::Put, StoreTask::Put { kind, key: key.to_owned(), bytes })
    }

    /// The store has done a piece of work.
    pub fn stored(&mut self, now: Instant, token: Token, done: StoreDone) {
        let Some(purpose) = self.pending.remove(&token) else { return };
        match (purpose, done) {
            (Purpose::Put, StoreDone::Put(result)) => {
                let result = result.map(|record| {
                    if let Ok(object) = Object::decode(&record) {
                        self.changed(object);
                    }
                    self.broadcast.send(now, record);
                });
                self.outputs.push_back(Output::Put { token, result });
            }
            (Purpose::Merge, StoreDone::Merge(Ok(Some(object)))) => {
                self.counts.merged += 1;
                self.changed(object);
            }
            (Purpose::Merge, StoreDone::Merge(Ok(None))) => {}
            (Purpose::Merge, StoreDone::Merge(Err(error))) => self.refused(error.to_string()),
            (Purpose::Start { round }, StoreDone::Start(begun)) => {
                self.exchanges.started(now, round, begun.ok());
            }
            (Purpose::Step { round }, StoreDone::Step(Ok((exchange, stepped)))) => {
                self.repaired(stepped.changes);
                self.exchanges.stepped(now, round, Some((exchange, stepped.next)));
            }
            (Purpose::Step { round }, StoreDone::Step(Err(_))) => {
                self.exchanges.stepped(now, round, None);
            }
            (Purpose::Answer { peer }, StoreDone::Answer(Ok(answered))) => {
                self.repaired(answered.changes);
                self.exchanges.answered(now, peer, answered.reply);
            }
            // The one who asked runs into its time-out.
            (Purpose::Answer { .. }, StoreDone::Answer(Err(_))) => {}
            (Purpose::Announce { peer }, StoreDone::Announce(Ok(announcement))) => {
                self.announce(peer, announcement.into());
            }
            (Purpose::Hear { .. }, StoreDone::Hear(Ok(Ok(changes)))) => self.repaired(changes),
            (Purpose::Hear { peer }, StoreDone::Hear(Ok(Err(error)))) => {
                self.violation(peer, Channel::Floor, error.to_string());
            }
            (Purpose::Upkeep, StoreDone::Upkeep(done)) => self.upkept(now, done.unwrap_or_default()),
            // It is announced again, or said again with the next member.
            (Purpose::Announce { .. }, StoreDone::Announce(Err(_)))
            | (Purpose::Hear { .. }, StoreDone::Hear(Err(_)))
            | (Purpose::Members, StoreDone::Members(_)) => {}
            (purpose, done) => unreachable!("{purpose:?} was answered with {done:?}"),
        }
        self.settle(now);
    }

    /// The store has done its regular work.
    fn upkept(&mut self, now: Instant, upkeep: Upkeep) {
        self.upkeep_at = Some(now + UPKEEP_PERIOD);
        let Changes { reset, changed } = upkeep.changes;
        if reset {
            self.outputs.push_back(Output::Reset);
        }
        for object in changed {
            self.broadcast.send(now, object.encode());
            self.changed(object);
        }
        if let Some(announcement) = upkeep.announcement {
            let announcement = Bytes::from(announcement);
            let linked: Vec<_> = self.members.linked().collect();
            linked.into_iter().for_each(|peer| self.announce(peer, announcement.clone()));
        }
    }

    fn announce(&mut self, to: NodeId, bytes: Bytes) {
        self.outputs.push_back(Output::Send { to, channel: Channel::Floor, bytes });
    }

    // This node's data plane.

    /// A data plane is linked. When it is another one than before, what it claims is to be said anew.
    pub fn data_plane(&mut self, now: Instant, epoch: BootEpoch, about: About) {
        self.claims_end_at = None;
        self.claims.begin(now, epoch, about);
        self.settle(now);
    }

    /// The link to the data plane is gone. `expected`: it had said that it was going away.
    pub fn data_plane_lost(&mut self, now: Instant, expected: bool) {
        if expected {
            self.claims.end();
        } else {
            self.claims_end_at = Some(now + DATA_PLANE_GRACE);
        }
        self.settle(now);
    }

    /// Routes that the data plane wants or no longer wants. `wall_ms`: milliseconds since 1970. Saying again what is known
    /// changes nothing.
    pub fn claimed(
        &mut self,
        now: Instant,
        wall_ms: u64,
        changes: impl IntoIterator<Item = (RouteKey, impl Into<Wanted>)>,
    ) {
        for (key, wanted) in changes {
            let stamp = self.clock.tick(wall_ms);
            self.claims.set(key, wanted, stamp);
        }
        self.settle(now);
    }

    /// The data plane has claimed all that it holds.
    pub fn claimed_whole(&mut self, now: Instant) {
        self.claims.whole();
        self.settle(now);
    }

    /// The data plane was linked anew and has to be told again what it may have missed.
    pub fn tell_again(&mut self) {
        let lost: Vec<_> = self.claims.revoked().cloned().collect();
        for key in lost {
            let RouteKey { realm, policy, uri, .. } = key;
            self.outputs.push_back(Output::Revoke { realm, policy, uri: uri.as_ref().into() });
        }
    }

    // Time.

    /// The deadline has passed.
    pub fn timeout(&mut self, now: Instant) {
        if self.claims_end_at.is_some_and(|at| at <= now) {
            self.claims_end_at = None;
            self.claims.end();
            self.outputs.push_back(Output::Notice(Notice::ClaimsEnded));
        }
        if self.upkeep_at.is_some_and(|at| at <= now) {
            self.upkeep_at = None;
            self.store(Purpose::Upkeep, StoreTask::Upkeep);
        }
        self.broadcast.timeout(now);
        self.claims.timeout(now);
        self.exchanges.timeout(now);
        self.settle(now);
    }

    /// When to call [`Machine::timeout`].
    pub fn deadline(&self) -> Option<Instant> {
        let rows = [
            self.broadcast.deadline(),
            self.claims.deadline(),
            self.exchanges.deadline(),
            self.joining.deadline(),
            self.claims_end_at,
            self.again_at,
            self.upkeep_at,
        ];
        rows.into_iter().flatten().min()
    }

    /// The next thing to do; to be called until there is none.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    // What is known.

    /// What the node waits for before it may serve.
    pub fn waiting(&self) -> Option<Waiting> {
        self.joining.waiting()
    }

    pub fn claims(&self) -> &Claims {
        &self.claims
    }

    /// Nodes that may be sent to, as the data plane was told.
    pub fn peers(&self) -> &[Peer] {
        &self.peers
    }

    /// Does what follows from what has changed, until nothing more follows.
    fn settle(&mut self, now: Instant) {
        self.again_at = None;
        let mut room = ROUTES_OUTPUTS_MAX;
        loop {
            let mut idle = true;
            while let Some(output) = self.broadcast.poll() {
                idle = false;
                self.on_broadcast(now, output);
            }
            while room > 0
                && let Some(output) = self.claims.poll()
            {
                idle = false;
                room -= usize::from(matches!(output, claims::Output::Routes(_)));
                self.on_claims(output);
            }
            while let Some(todo) = self.exchanges.poll() {
                idle = false;
                self.on_exchange(todo);
            }
            if idle {
                break;
            }
        }
        if room == 0 {
            // A node with many routes came or went; others are heard in between.
            self.again_at = Some(now);
        }
        self.join(now);
        if self.joining.is_done() {
            self.tell_peers();
        }
    }

    fn on_broadcast(&mut self, now: Instant, output: broadcast::Output) {
        match output {
            broadcast::Output::Send { to, bytes } => {
                self.outputs.push_back(Output::Send { to, channel: Channel::Broadcast, bytes });
            }
            broadcast::Output::Deliver { from, payload } => match Object::decode(&payload) {
                Ok(_) if self.pending.len() >= STORE_TASKS_MAX => {
                    self.counts.dropped += 1;
                    self.exchanges.owe(now, from);
                }
                Ok(object) => _ = self.store(Purpose::Merge, StoreTask::Merge(object)),
                Err(error) => self.refused(error.to_string()),
            },
            broadcast::Output::Owes(peer) => self.exchanges.owe(now, peer),
        }
    }

    fn on_claims(&mut self, output: claims::Output) {
        match output {
            claims::Output::Send { to, bytes } => {
                self.outputs.push_back(Output::Send { to, channel: Channel::Claims, bytes });
            }
            claims::Output::Routes(changes) => {
                self.remote_routes = self.claims.routes_len();
                self.outputs.push_back(Output::Routes(changes));
            }
            // The list of peers is made from what the claims hold.
            claims::Output::Owner { .. } | claims::Output::OwnerGone { .. } => {}
            claims::Output::Revoke { realm, policy, uri } => {
                self.outputs.push_back(Output::Revoke { realm, policy, uri });
            }
        }
    }

    fn on_exchange(&mut self, todo: Todo) {
        match todo {
            Todo::Start { peer, round } => {
                let timeout = self.settings.aae.data_exchange_timeout;
                self.store(Purpose::Start { round }, StoreTask::Start { peer, round, timeout });
            }
            Todo::Step { peer, exchange, message } => {
                let round = message.round;
                self.store(Purpose::Step { round }, StoreTask::Step { peer, exchange, message });
            }
            Todo::Answer { peer, message } if self.pending.len() >= STORE_TASKS_MAX => {
                self.exchanges.unanswered(peer, message.round);
            }
            Todo::Answer { peer, message } => {
                self.store(Purpose::Answer { peer }, StoreTask::Answer { peer, message });
            }
            Todo::Send { to, bytes } => {
                self.outputs.push_back(Output::Send { to, channel: Channel::Exchange, bytes });
            }
            Todo::Ended { peer, tally } => {
                self.broadcast.exchanged(peer);
                self.outputs.push_back(Output::Notice(Notice::Exchanged { peer, tally }));
            }
            Todo::Aborted { peer, why } => {
                self.outputs.push_back(Output::Notice(Notice::Aborted { peer, why }));
            }
        }
    }

    fn join(&mut self, now: Instant) {
        if self.joining.is_done() {
            return;
        }
        let progress: Vec<_> =
            self.members.alive().map(|(node, row)| self.progress(now, node, row)).collect();
        if self.joining.look(now, &progress) {
            let notice = Notice::Joined {
                after: now.saturating_duration_since(self.joining.began()),
                members: progress.len(),
                without: self.joining.without().to_vec(),
            };
            self.outputs.push_back(Output::Notice(notice));
        }
    }

    fn progress(&self, now: Instant, node: NodeId, row: &super::members::Row) -> Progress {
        Progress {
            node,
            lives_since: row.lives_since.unwrap_or(now),
            linked_since: row.link.map(|link| link.since),
            objects: !self.settings.aae.enabled || self.exchanges.synced(node).is_some(),
            claims: self.claims.is_synced_with(node),
        }
    }

    /// Tells the data plane whom it may send to, if that has changed.
    fn tell_peers(&mut self) {
        let peer = |node: NodeId| {
            let (epoch, about) = self.claims.owner_of(node)?;
            let relay = about.relay.clone();
            (!relay.is_empty()).then_some(Peer { node, epoch, relay })
        };
        let peers: Vec<_> = self.members.alive().filter_map(|(node, _)| peer(node)).collect();
        if peers != self.peers {
            self.peers.clone_from(&peers);
            self.outputs.push_back(Output::Peers(peers));
        }
    }

    fn changed(&mut self, object: Object) {
        self.outputs.push_back(Output::Object(object));
    }

    fn repaired(&mut self, changes: Changes) {
        if changes.reset {
            self.outputs.push_back(Output::Reset);
        }
        self.counts.repaired += changes.changed.len() as u64;
        changes.changed.into_iter().for_each(|object| self.changed(object));
    }

    fn refused(&mut self, reason: String) {
        self.counts.refused += 1;
        self.outputs.push_back(Output::Notice(Notice::Refused { reason }));
    }

    fn store(&mut self, purpose: Purpose, task: StoreTask) -> Token {
        self.tokens_last += 1;
        let token = Token(self.tokens_last);
        self.pending.insert(token, purpose);
        self.outputs.push_back(Output::Store { token, task });
        token
    }
}

/// Outputs of changed routes that one event may lead to at once; each has some hundreds.
const ROUTES_OUTPUTS_MAX: usize = 8;
