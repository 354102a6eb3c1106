//! Sessions of clients that speak HTTP: long-poll, and server-sent events with requests upstream.
//!
//! A transport is a connection without a socket in a slot of its shard: the session on it, its queue and its end are those
//! of any connection. Requests come on connections that any shard may have accepted, and ask the shard that the id of their
//! transport names. What is received from a transport stays with it until the connection that carries it has sent it, so
//! nothing is lost with a connection that ends before.
//!
//! ```text
//! shard A                                        shard B
//! connection ─▶ peer (requests, answers) ─Asked─▶ transport ─▶ login | session
//!                              ▲──────────Told──────┘ ▲── outbound queue ◀─┘
//! ```
//! Invariants: a peer has one request in hand, and its transport one answer on the way; slots below
//! [`ShardConfig::first_slot`] are of transports and no others; a transport's connection counts as sending always, so
//! nothing of it is given to the driver.

mod peer;
mod staged;
mod transport;

use super::conn::Conn;
use super::{Shard, ShardConfig};
use crate::mesh::{Batch, Item, Span};
use common::config::Http as Settings;
use common::ids::ShardId;
use common::noise::Entropy;
use common::transport::http::{Content, Kind, Problem, TransportId};
use common::wire::Serializer;
use peer::Peer;
use transport::Transport;

/// What a shard needs to serve HTTP clients.
#[derive(Clone, Debug)]
pub struct HttpConfig {
    pub settings: Settings,
    /// This shard's part of `http.transports_max`.
    pub transports_max: u32,
    /// Of the ids of transports.
    pub entropy: Entropy,
}

impl ShardConfig {
    /// The first slot that the driver may use; the ones before it are the shard's own.
    pub fn first_slot(&self) -> u32 {
        self.http.as_ref().map_or(0, |http| http.transports_max)
    }
}

/// The side of a connection that speaks HTTP, or is made of it.
#[derive(Debug)]
pub(super) enum Http {
    Peer(Peer),
    Transport(Transport),
}

impl Http {
    /// Bytes of incomplete requests.
    pub fn buffered_bytes(&self) -> usize {
        match self {
            Self::Peer(peer) => peer.buffered_bytes(),
            Self::Transport(_) => 0,
        }
    }
}

impl Conn {
    /// What it receives may fill memory. A request for what waits to be received makes room instead: whoever fetches must be read
    /// while there is none.
    pub fn feeds(&self) -> bool {
        !matches!(self.http.as_deref(), Some(Http::Peer(peer)) if !peer.feeds())
    }

    /// The kind of transport that this is, if it has no socket.
    pub fn transport_kind(&self) -> Option<Kind> {
        match self.http.as_deref() {
            Some(Http::Transport(transport)) => Some(transport.kind()),
            _ => None,
        }
    }
}

/// Slots of transports.
#[derive(Debug, Default)]
pub(super) struct Slots {
    /// By slot, of those that were used: the generation of the next connection in it.
    generations: Vec<u32>,
    free: Vec<u32>,
}

impl Slots {
    fn len(&self) -> usize {
        self.generations.len() - self.free.len()
    }

    /// A slot and its generation.
    fn take(&mut self, slots_max: u32) -> Option<(u32, u32)> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.generations.len() < slots_max as usize => {
                self.generations.push(0);
                self.generations.len() as u32 - 1
            }
            None => return None,
        };
        Some((slot, self.generations[slot as usize]))
    }

    fn give_back(&mut self, slot: u32) {
        let generation = &mut self.generations[slot as usize];
        *generation = generation.wrapping_add(1);
        self.free.push(slot);
    }
}

/// A connection of this node on which a request came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Asker {
    pub shard: ShardId,
    pub slot: u32,
    pub generation: u32,
}

/// What a request, or the connection it came on, says to a transport.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ask {
    /// The messages in the body.
    Send(Content),
    /// What there is, or comes soon.
    Receive,
    Close,
    /// What was told last has been sent.
    Taken,
    /// The connection has ended, and what was told last may not have been sent.
    Gone,
}

/// What a transport says to a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Tell {
    Accepted,
    /// Nothing came in time.
    Empty,
    Refused(Problem),
    /// The bytes are the answer's body.
    Messages(Serializer),
    /// A stream begins.
    Begin,
    /// The bytes are events of it.
    Events,
    /// So are these, and then it ends.
    End,
}

impl Shard {
    /// Says something to a transport of any shard.
    fn ask_transport(&mut self, from: Asker, to: (Kind, TransportId), ask: Ask, body: &[u8]) {
        let (kind, id) = to;
        let shard = ShardId(id.shard);
        if shard == self.me {
            return self.ask_here(from, to, ask, body);
        }
        let batch = self.mesh(shard);
        let (id, body) = (batch.put(&id.to_bytes()), batch.put(body));
        let Asker { slot, generation, .. } = from;
        batch.push(Item::HttpAsk { slot, generation, kind, ask, id, body });
    }

    /// Says something to a request of any shard.
    fn tell_peer(&mut self, to: Asker, tell: Tell, bytes: &[u8]) {
        if to.shard == self.me {
            return self.told_peer(to.slot, to.generation, tell, bytes);
        }
        let batch = self.mesh(to.shard);
        let bytes = batch.put(bytes);
        batch.push(Item::HttpTell { slot: to.slot, generation: to.generation, tell, bytes });
    }

    /// What another shard asks or tells.
    #[cold]
    pub(super) fn mesh_http(&mut self, shard: ShardId, batch: &Batch, item: &Item) {
        match *item {
            Item::HttpAsk { slot, generation, kind, ask, id, body } => {
                let id = id_in(batch, id);
                self.ask_here(Asker { shard, slot, generation }, (kind, id), ask, batch.bytes(body));
            }
            Item::HttpTell { slot, generation, tell, bytes } => {
                self.told_peer(slot, generation, tell, batch.bytes(bytes));
            }
            _ => {}
        }
    }

    /// An entry of the timer wheel came up for one of these connections.
    #[cold]
    pub(super) fn look_at_http(&mut self, slot: u32) {
        match self.at(slot).http.as_deref() {
            Some(Http::Peer(_)) => self.look_at_peer(slot),
            Some(Http::Transport(_)) => self.look_at_transport(slot),
            None => {}
        }
    }

    /// A connection has been forgotten that was one of these.
    #[cold]
    pub(super) fn forgotten_http(&mut self, slot: u32, conn: Conn) {
        let is_handed = conn.sending && conn.out.is_empty();
        match conn.http.map(|http| *http) {
            None => {}
            Some(Http::Peer(peer)) => self.forgotten_peer(slot, conn.generation, &peer, is_handed),
            Some(Http::Transport(transport)) => self.forgotten_transport(slot, transport),
        }
    }

    /// How many transports are open here.
    pub(super) fn transports(&self) -> usize {
        self.transports.len()
    }
}

fn id_in(batch: &Batch, id: Span) -> TransportId {
    let bytes = batch.bytes(id).first_chunk().expect("ids are put as ids");
    TransportId::from_bytes(*bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_bounded_and_reused_with_another_generation() {
        let mut slots = Slots::default();
        assert_eq!([slots.take(2), slots.take(2), slots.take(2)], [Some((0, 0)), Some((1, 0)), None]);
        slots.give_back(0);
        assert_eq!((slots.len(), slots.take(2)), (1, Some((0, 1))));
    }
}
