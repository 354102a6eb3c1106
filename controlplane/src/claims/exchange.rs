//! Keeping maps equal: broadcast of the own one, pulls of what is missing, heads now and then. Sans-IO.
//!
//! Invariants: at most one pull an owner and [`PULLS_MAX`] in all are under way, so at most that many parts are on
//! their way here; each answer asks for the next part, so whoever is slow is served slowly. What a peer promises is
//! taken for a hint: only parts change anything.

use super::message::{Head, MESSAGE_BYTES_MAX, Message, Part, Pull};
use super::owner::{Applied, Owner};
use super::{Claims, OWN, Output, ProtocolError, ROUTES_MAX};
use bytes::Bytes;
use common::ids::NodeId;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

#[derive(Debug, Default)]
pub(super) struct Exchange {
    peers: BTreeMap<NodeId, Peer>,
    /// By owner: whom it was asked of, and when.
    pulls: BTreeMap<u16, (NodeId, Instant)>,
    /// Owners to be pulled when there is room, and who has them.
    wanted: BTreeMap<u16, NodeId>,
    tick_at: Option<Instant>,
    /// Who was told last how far the maps have come.
    told: Option<NodeId>,
}

#[derive(Debug, Default)]
struct Peer {
    /// It has said what it holds.
    heads_seen: bool,
    /// What it said that was not here.
    owed: Vec<Head>,
}

impl Claims {
    /// A connection to the peer's control plane is there. Messages sent over an earlier one may have been lost.
    pub fn peer_up(&mut self, now: Instant, node: NodeId) {
        if node == self.settings.node || self.admit(node).is_none() {
            return;
        }
        self.peer_down(node);
        self.exchange.peers.insert(node, Peer::default());
        self.exchange.tick_at.get_or_insert(now + self.settings.tick);
        self.say_heads(node, false);
    }

    pub fn peer_down(&mut self, node: NodeId) {
        self.exchange.peers.remove(&node);
        self.exchange.pulls.retain(|_, (peer, _)| *peer != node);
        self.exchange.wanted.retain(|_, peer| *peer != node);
        if self.exchange.peers.is_empty() {
            self.exchange.tick_at = None;
        }
    }

    /// True when everything the peer had said when it connected, of nodes that are of the cluster, is here.
    pub fn is_synced_with(&self, node: NodeId) -> bool {
        let Some(peer) = self.exchange.peers.get(&node) else { return false };
        let owes = |head: &Head| self.known(head.owner).is_some_and(|id| self.owner(id).is_behind(head));
        peer.heads_seen && !peer.owed.iter().any(owes)
    }

    /// Takes a message of a connected peer.
    ///
    /// # Errors
    /// When it is none. Nothing was changed.
    pub fn receive(&mut self, now: Instant, from: NodeId, bytes: &[u8]) -> Result<(), ProtocolError> {
        let message = Message::decode(bytes)?;
        if !self.exchange.peers.contains_key(&from) {
            self.counts.strangers += 1;
            return Ok(());
        }
        match message {
            Message::Heads { ask, heads } => self.on_heads(now, from, ask, heads),
            Message::Pull(pull) => self.on_pull(from, &pull),
            Message::Part(part) => self.on_part(now, from, part),
        }
        Ok(())
    }

    /// Tells all peers what changed in the own map since they were told last.
    pub(super) fn broadcast(&mut self) {
        let head = self.own().head;
        if !self.own().is_begun() || self.told == (head.life, head.version) {
            return;
        }
        let (life, version) = self.told;
        let mut from = if life == head.life { version } else { 0 };
        self.told = (head.life, head.version);
        if self.exchange.peers.is_empty() {
            return;
        }
        for _ in 0..BROADCAST_PARTS_MAX {
            let part = self.own().part(from);
            from = part.to;
            self.send_all(&Message::Part(part));
            if from == head.version {
                return;
            }
        }
        // So much that whoever needs it asks for it, at its own pace.
        self.send_all(&Message::Heads { ask: false, heads: vec![head] });
    }

    /// Tells the next peer how far the maps have come.
    pub(super) fn tick(&mut self, now: Instant) {
        if self.exchange.tick_at.is_none_or(|at| now < at) {
            return;
        }
        self.exchange.tick_at = Some(now + self.settings.tick);
        if let Some(node) = self.next_peer() {
            self.exchange.told = Some(node);
            self.say_heads(node, true);
        }
    }

    /// Gives up pulls that were not answered; heads will ask again.
    pub(super) fn expire(&mut self, now: Instant) {
        let before = self.exchange.pulls.len();
        self.exchange.pulls.retain(|_, (_, at)| now < *at + PULL_TIME_MAX);
        self.counts.pulls_expired += (before - self.exchange.pulls.len()) as u64;
        self.pull_wanted(now);
    }

    /// A node has come to the cluster: it is asked for its map or, without a connection to it, somebody else is.
    pub(super) fn ask_about(&mut self, node: NodeId) {
        let peer = if self.exchange.peers.contains_key(&node) { Some(node) } else { self.next_peer() };
        if let Some(peer) = peer {
            self.say_heads(peer, true);
        }
    }

    fn next_peer(&self) -> Option<NodeId> {
        let peers = &self.exchange.peers;
        let after = self.exchange.told.and_then(|told| peers.range(told..).find(|(node, _)| **node > told));
        after.or_else(|| peers.first_key_value()).map(|(node, _)| *node)
    }

    fn on_heads(&mut self, now: Instant, from: NodeId, ask: bool, heads: Vec<Head>) {
        let mut named = BTreeSet::new();
        let mut newer_here = false;
        let mut owed = Vec::new();
        for head in heads {
            let Some(id) = self.known(head.owner) else {
                self.counts.strangers += 1;
                continue;
            };
            named.insert(id);
            if id == OWN {
                self.check_superseded(&head);
            }
            let owner = self.owner(id);
            if id != OWN && owner.is_behind(&head) {
                self.adopt(id, &head);
                if head.version > 0 {
                    self.want(now, id, from);
                    owed.push(head);
                }
            } else {
                newer_here |=
                    owner.is_complete() && (owner.head.life, owner.head.version) > (head.life, head.version);
            }
        }
        let tellable = |id: &u16| !self.owner(*id).gone && self.owner(*id).is_complete();
        newer_here |= self.by_node.values().any(|id| !named.contains(id) && tellable(id));
        if let Some(peer) = self.exchange.peers.get_mut(&from)
            && !peer.heads_seen
        {
            (peer.heads_seen, peer.owed) = (true, owed);
        }
        if ask && newer_here {
            self.say_heads(from, false);
        }
    }

    fn on_pull(&mut self, from: NodeId, pull: &Pull) {
        let Some(id) = self.known(pull.owner) else {
            self.counts.strangers += 1;
            return;
        };
        if let Some(part) = self.owner(id).supply(pull) {
            self.send(from, Message::Part(part).encode().into());
        }
    }

    fn on_part(&mut self, now: Instant, from: NodeId, part: Part) {
        let head = part.head;
        let Some(id) = self.known(head.owner) else {
            self.counts.strangers += 1;
            return;
        };
        if id == OWN {
            return self.check_superseded(&head);
        }
        if self.exchange.pulls.get(&id).is_some_and(|(peer, _)| *peer == from) {
            self.exchange.pulls.remove(&id);
        }
        self.adopt(id, &head);
        let owner = self.owner_mut(id);
        if (head.life, head.epoch) != (owner.head.life, owner.head.epoch) {
            self.counts.stale += 1;
            return self.pull_wanted(now);
        }
        let (about_at, changes) = (owner.about_at, part.entries.len() as u64);
        let applied = owner.apply(part, ROUTES_MAX);
        if owner.about_at > about_at {
            self.say_owner(id);
        }
        match applied {
            Applied::Changed { slots, reset } => {
                let behind = self.owner(id).is_behind(&head);
                self.counts.changes += changes;
                self.counts.resets += u64::from(reset);
                slots.into_iter().for_each(|slot| self.changed(id, slot));
                if behind {
                    self.want(now, id, from);
                }
            }
            Applied::Known => self.counts.stale += 1,
            Applied::Gap => {
                self.counts.gaps += 1;
                self.want(now, id, from);
            }
            Applied::Overfull => self.counts.refused += 1,
        }
        self.pull_wanted(now);
    }

    /// Follows the owner into a later life.
    fn adopt(&mut self, id: u16, head: &Head) {
        let owner = self.owner_mut(id);
        if head.life <= owner.head.life {
            return;
        }
        owner.begin(head.life, head.epoch);
        if head.epoch.is_none() {
            self.outputs.push_back(Output::OwnerGone { node: head.owner });
        }
    }

    fn say_owner(&mut self, id: u16) {
        let owner = self.owner(id);
        if let Some(epoch) = owner.head.epoch {
            let (node, about) = (owner.head.owner, owner.about.clone());
            self.outputs.push_back(Output::Owner { node, epoch, about });
        }
    }

    /// Somebody holds more of the own map than this node, or one of another data plane under the same life: a copy of an
    /// earlier life whose numbers were used again, which happens when an old disk comes back. A life above it makes the own
    /// word count again.
    fn check_superseded(&mut self, head: &Head) {
        if head.life.control > self.life.control
            || (head.life.control == self.life.control && head.life.count > self.life.count)
        {
            self.life = head.life;
        }
        let own = self.own();
        let reused = head.life == own.head.life && head.epoch != own.head.epoch;
        if own.is_begun() && (own.is_behind(head) || reused) {
            self.counts.superseded += 1;
            self.begin_again();
        }
    }

    /// Asks `peer` for what is missing of an owner's map, now or when there is room.
    fn want(&mut self, now: Instant, id: u16, peer: NodeId) {
        if !self.exchange.pulls.contains_key(&id) {
            self.exchange.wanted.insert(id, peer);
            self.pull_wanted(now);
        }
    }

    fn pull_wanted(&mut self, now: Instant) {
        while self.exchange.pulls.len() < PULLS_MAX
            && let Some((id, peer)) = self.exchange.wanted.pop_first()
        {
            let head = self.owner(id).head;
            let pull = Pull { owner: head.owner, life: head.life, from: head.version, floor: head.collected };
            self.counts.pulls += 1;
            self.exchange.pulls.insert(id, (peer, now));
            self.send(peer, Message::Pull(pull).encode().into());
        }
    }

    fn say_heads(&mut self, to: NodeId, ask: bool) {
        let owners = self.by_node.values().map(|id| self.owner(*id));
        let heads = owners.filter(|owner| !owner.gone && owner.is_begun()).map(Owner::told).collect();
        self.send(to, Message::Heads { ask, heads }.encode().into());
    }

    fn send_all(&mut self, message: &Message) {
        let bytes = Bytes::from(message.encode());
        let peers: Vec<NodeId> = self.exchange.peers.keys().copied().collect();
        peers.into_iter().for_each(|to| self.send(to, bytes.clone()));
    }

    fn send(&mut self, to: NodeId, bytes: Bytes) {
        debug_assert!(bytes.len() <= MESSAGE_BYTES_MAX);
        self.counts.messages_sent += 1;
        self.counts.bytes_sent += bytes.len() as u64;
        self.outputs.push_back(Output::Send { to, bytes });
    }
}

impl Exchange {
    /// When something is due.
    pub fn deadline(&self) -> Option<Instant> {
        let pulls = self.pulls.values().map(|(_, at)| *at + PULL_TIME_MAX);
        pulls.chain(self.tick_at).min()
    }

    pub fn forget(&mut self, id: u16) {
        self.pulls.remove(&id);
        self.wanted.remove(&id);
    }
}

/// Pulls under way at a time.
pub const PULLS_MAX: usize = 16;
/// A pull not answered for this long is given up.
pub const PULL_TIME_MAX: Duration = Duration::from_secs(2);
/// Parts told to everybody at once; with more, peers are told to ask.
const BROADCAST_PARTS_MAX: usize = 4;
