//! The broadcast machine: peers, messages and timers in; messages, deliveries and debts out.

use super::cache::Cache;
use super::message::{Id, IdKey, Message};
use super::missing::{Due, Missing};
use super::peer::Peer;
use super::{
    BATCH_MAX, FIRST_GRAFT_MIN, FIRST_GRAFT_TRIPS, GRAFT_BYTES_MAX, MESH_MAX, NEXT_GRAFT_MIN,
    NEXT_GRAFT_TRIPS, OPTIMISE_HOPS,
};
use crate::store::record::RecordError;
use bytes::Bytes;
use common::ids::NodeId;
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// What the machine is made from.
#[derive(Clone)]
pub struct Settings {
    /// Nodes with another key refuse each other's payloads.
    pub key: IdKey,
    /// `cluster.lazy_tick_period`: what is outstanding for this long is announced again.
    pub lazy_tick: Duration,
    /// `cluster.exchange_tick_period`: the edges of the tree are confirmed this often.
    pub edge_tick: Duration,
    /// Clusters of at most this many nodes push to everybody: [`MESH_MAX`].
    pub mesh_max: usize,
}

impl Settings {
    pub fn new(key: IdKey, lazy_tick: Duration, edge_tick: Duration) -> Self {
        Self { key, lazy_tick, edge_tick, mesh_max: MESH_MAX }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Output {
    Send {
        to: NodeId,
        bytes: Bytes,
    },
    /// A payload that was not seen before.
    Deliver {
        from: NodeId,
        payload: Bytes,
    },
    /// Something was or may have been lost between this peer and us: an exchange must run at once. Said once until
    /// [`Broadcast::exchanged`].
    Owes(NodeId),
}

/// What happened so far.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counts {
    /// Payloads of this node.
    pub sent: u64,
    /// Copies sent, those of other nodes' payloads included.
    pub pushed: u64,
    /// Ids announced, repeats included.
    pub announced: u64,
    pub delivered: u64,
    pub duplicates: u64,
    /// Ids asked for, and asked for in vain.
    pub grafted: u64,
    pub given_up: u64,
    pub pruned: u64,
    /// Times a peer came to be owed an exchange.
    pub owed: u64,
}

pub struct Broadcast {
    settings: Settings,
    peers: BTreeMap<NodeId, Peer>,
    cache: Cache,
    missing: Missing,
    lazy_at: Instant,
    edges_at: Instant,
    outputs: VecDeque<Output>,
    counts: Counts,
}

impl Broadcast {
    pub fn new(now: Instant, settings: Settings) -> Self {
        let (lazy_at, edges_at) = (now + settings.lazy_tick, now + settings.edge_tick);
        Self {
            settings,
            peers: BTreeMap::new(),
            cache: Cache::default(),
            missing: Missing::default(),
            lazy_at,
            edges_at,
            outputs: VecDeque::new(),
            counts: Counts::default(),
        }
    }

    /// A connection to `peer` has come up; what was outstanding on an earlier one is left to the exchange that follows.
    pub fn up(&mut self, peer: NodeId) {
        self.missing.forget(peer);
        self.peers.insert(peer, Peer::new(false));
        self.ensure_edge();
    }

    pub fn down(&mut self, peer: NodeId) {
        self.peers.remove(&peer);
        self.missing.forget(peer);
        self.ensure_edge();
    }

    /// The round-trip time to `peer` was measured.
    pub fn rtt(&mut self, peer: NodeId, rtt: Duration) {
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.set_rtt(rtt);
        }
    }

    /// Brings `payload` to all nodes. One that was seen lately is on its way already.
    pub fn send(&mut self, now: Instant, payload: Vec<u8>) {
        let (id, payload) = (self.settings.key.id(&payload), Bytes::from(payload));
        if self.cache.contains(&id) {
            return;
        }
        self.counts.sent += 1;
        self.cache.insert(now, id, 0, payload.clone());
        self.missing.arrived(&id);
        self.spread(now, id, 0, &payload, &[]);
    }

    /// A message of `peer` has come. On error nothing was changed.
    pub fn frame(&mut self, now: Instant, peer: NodeId, bytes: &[u8]) -> Result<(), RecordError> {
        let message = Message::decode(bytes)?;
        if !self.peers.contains_key(&peer) {
            return Ok(());
        }
        match message {
            Message::Gossip { round, id, payload } => return self.on_gossip(now, peer, (round, id), payload),
            Message::Ihave(ids) => self.on_announcement(now, peer, ids),
            Message::Ack(ids) => {
                let peer = self.peer(peer);
                ids.iter().for_each(|id| peer.has(id));
            }
            Message::Graft(ids) => self.on_graft(now, peer, ids),
            Message::Prune(id) => {
                let peer = self.peer(peer);
                peer.eager = false;
                peer.has(&id);
            }
        }
        Ok(())
    }

    /// An exchange with `peer` has ended well: nothing is owed.
    pub fn exchanged(&mut self, peer: NodeId) {
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.owed = false;
        }
    }

    /// The deadline has passed.
    pub fn timeout(&mut self, now: Instant) {
        self.cache.expire(now);
        self.ask_for_missing(now);
        if now >= self.lazy_at {
            self.lazy_at = now + self.settings.lazy_tick;
            self.announce_again(now);
        }
        if now >= self.edges_at {
            self.edges_at = now + self.settings.edge_tick;
            self.confirm_edges();
        }
        let due = |peer: &Peer| peer.flush_at().is_some_and(|at| at <= now);
        let full: Vec<_> = self.peers.iter().filter(|(_, peer)| due(peer)).map(|(id, _)| *id).collect();
        full.into_iter().for_each(|peer| self.flush(peer));
    }

    /// When to call [`Broadcast::timeout`].
    pub fn deadline(&self) -> Option<Instant> {
        let outstanding = self.peers.values().any(|peer| peer.outstanding() > 0);
        let batches = self.peers.values().filter_map(Peer::flush_at);
        let rows = [
            self.missing.deadline(),
            outstanding.then_some(self.lazy_at),
            (!self.peers.is_empty()).then_some(self.edges_at),
        ];
        batches.chain(rows.into_iter().flatten()).min()
    }

    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Ids outstanding at `peer`; none: it is not connected.
    pub fn outstanding(&self, peer: NodeId) -> Option<usize> {
        Some(self.peers.get(&peer)?.outstanding())
    }

    /// Connected peers, and how many of them are eager.
    pub fn peers(&self) -> (usize, usize) {
        (self.peers.len(), self.peers.values().filter(|peer| peer.eager).count())
    }

    /// Ids remembered, and ids announced to us that have not come.
    pub fn ids(&self) -> (usize, usize) {
        (self.cache.len(), self.missing.len())
    }

    fn on_gossip(
        &mut self,
        now: Instant,
        from: NodeId,
        (round, id): (u8, Id),
        payload: &[u8],
    ) -> Result<(), RecordError> {
        if self.settings.key.id(payload) != id {
            return Err(RecordError::Form("id of a payload"));
        }
        let peer = self.peer(from);
        peer.has(&id);
        if self.cache.contains(&id) {
            self.counts.duplicates += 1;
            self.prune(from, id);
            return Ok(());
        }
        self.counts.delivered += 1;
        let peer = self.peer(from);
        peer.eager = true;
        let full = peer.ack(now, id);
        if full {
            self.flush(from);
        }
        let announcers = self.missing.arrived(&id);
        let payload = Bytes::copy_from_slice(payload);
        let next = round.saturating_add(1);
        self.cache.insert(now, id, next, payload.clone());
        self.outputs.push_back(Output::Deliver { from, payload: payload.clone() });
        let mut have: Vec<_> = announcers.iter().map(|(peer, _)| *peer).collect();
        have.push(from);
        self.spread(now, id, next, &payload, &have);
        let nearest = announcers.into_iter().filter(|(peer, _)| *peer != from).min_by_key(|(_, hops)| *hops);
        if let Some((nearest, hops)) = nearest
            && !self.is_mesh()
            && round >= hops.saturating_add(OPTIMISE_HOPS)
        {
            self.graft(nearest, vec![]);
            self.prune(from, id);
        }
        Ok(())
    }

    fn on_announcement(&mut self, now: Instant, from: NodeId, ids: Vec<(Id, u8)>) {
        let slowest = self.peers.values().map(|peer| peer.rtt).max().unwrap_or_default();
        let first_at = now + (slowest * FIRST_GRAFT_TRIPS).max(FIRST_GRAFT_MIN);
        let (mut full, mut room) = (false, true);
        for (id, round) in ids {
            let peer = self.peer(from);
            peer.has(&id);
            if self.cache.contains(&id) {
                full |= self.peer(from).ack(now, id);
            } else {
                room &= self.missing.announced(id, from, round, first_at);
            }
        }
        if full {
            self.flush(from);
        }
        if !room {
            self.owe(from);
        }
    }

    fn on_graft(&mut self, now: Instant, from: NodeId, ids: Vec<Id>) {
        self.peer(from).eager = true;
        let mut bytes = 0;
        for id in ids {
            // What is left out is asked for again.
            let Some((round, payload)) = self.cache.get(&id).filter(|_| bytes < GRAFT_BYTES_MAX) else {
                continue;
            };
            bytes += payload.len();
            self.counts.pushed += 1;
            if !self.peer(from).remember(now, id, round) {
                self.owe(from);
            }
            self.say(from, &Message::Gossip { round, id, payload: &payload });
        }
    }

    /// Pushes or announces to everybody but those who `have` it.
    fn spread(&mut self, now: Instant, id: Id, round: u8, payload: &Bytes, have: &[NodeId]) {
        let (mesh, own) = (self.is_mesh(), have.is_empty());
        let mut copy = None;
        let (mut owed, mut full) = (vec![], vec![]);
        for (node, peer) in self.peers.iter_mut().filter(|(node, _)| !have.contains(node)) {
            if !peer.remember(now, id, round) {
                owed.push(*node);
            }
            if if mesh { own } else { peer.eager } {
                let encode = || Bytes::from(Message::Gossip { round, id, payload }.encode());
                let bytes = copy.get_or_insert_with(encode).clone();
                self.counts.pushed += 1;
                self.outputs.push_back(Output::Send { to: *node, bytes });
            } else if peer.announce(now, id, round) {
                full.push(*node);
            }
        }
        full.into_iter().for_each(|peer| self.flush(peer));
        owed.into_iter().for_each(|peer| self.owe(peer));
    }

    fn ask_for_missing(&mut self, now: Instant) {
        let mut asks: BTreeMap<NodeId, Vec<Id>> = BTreeMap::new();
        while let Some(due) = self.missing.due(now) {
            match due {
                Due::Ask(id, peer) => {
                    let trip = self.peers.get(&peer).map_or(Duration::ZERO, |peer| peer.rtt);
                    self.missing.asked(id, now + (trip * NEXT_GRAFT_TRIPS).max(NEXT_GRAFT_MIN));
                    asks.entry(peer).or_default().push(id);
                }
                Due::GiveUp(announcer) => {
                    self.counts.given_up += 1;
                    let anybody = || self.peers.keys().next().copied();
                    if let Some(peer) = announcer.or_else(anybody) {
                        self.owe(peer);
                    }
                }
            }
        }
        for (peer, ids) in asks {
            self.counts.grafted += ids.len() as u64;
            ids.chunks(BATCH_MAX).for_each(|ids| self.graft(peer, ids.to_vec()));
        }
    }

    fn announce_again(&mut self, now: Instant) {
        let before = now.checked_sub(self.settings.lazy_tick).unwrap_or(now);
        let mut owed = vec![];
        for (node, peer) in &mut self.peers {
            if peer.announce_again(now, before, |id| self.cache.get(id).is_some()) > 0 {
                owed.push(*node);
            }
        }
        owed.into_iter().for_each(|peer| self.owe(peer));
    }

    /// Both ends of an eager edge are to know that it is one.
    fn confirm_edges(&mut self) {
        self.ensure_edge();
        let eager = self.peers.iter().filter(|(_, peer)| peer.eager);
        let eager: Vec<_> = eager.map(|(node, _)| *node).collect();
        eager.into_iter().for_each(|peer| self.graft(peer, vec![]));
    }

    /// A node with peers has an eager one: the nearest, if there is none.
    fn ensure_edge(&mut self) {
        if self.peers.values().any(|peer| peer.eager) {
            return;
        }
        if let Some((&nearest, _)) = self.peers.iter().min_by_key(|(_, peer)| peer.rtt) {
            self.graft(nearest, vec![]);
        }
    }

    fn graft(&mut self, peer: NodeId, ids: Vec<Id>) {
        if let Some(state) = self.peers.get_mut(&peer) {
            state.eager = true;
            self.say(peer, &Message::Graft(ids));
        }
    }

    fn prune(&mut self, peer: NodeId, id: Id) {
        self.counts.pruned += 1;
        self.peer(peer).eager = false;
        self.say(peer, &Message::Prune(id));
    }

    fn flush(&mut self, peer: NodeId) {
        let (announcements, acks) = self.peer(peer).flush();
        self.counts.announced += announcements.len() as u64;
        announcements.chunks(BATCH_MAX).for_each(|ids| self.say(peer, &Message::Ihave(ids.to_vec())));
        acks.chunks(BATCH_MAX).for_each(|ids| self.say(peer, &Message::Ack(ids.to_vec())));
    }

    fn owe(&mut self, node: NodeId) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if !std::mem::replace(&mut peer.owed, true) {
            self.counts.owed += 1;
            self.outputs.push_back(Output::Owes(node));
        }
    }

    fn say(&mut self, to: NodeId, message: &Message<'_>) {
        self.outputs.push_back(Output::Send { to, bytes: message.encode().into() });
    }

    fn peer(&mut self, peer: NodeId) -> &mut Peer {
        self.peers.get_mut(&peer).expect("messages of peers that are not connected are dropped")
    }

    fn is_mesh(&self) -> bool {
        self.peers.len() < self.settings.mesh_max
    }
}
