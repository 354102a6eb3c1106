//! TCP connections between nodes, carried by hand.

use super::node::Node;
use dataplane::shard::{ConnId, Dial, Flow, Output, SendBuf};
use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

/// The index of the relay's listener.
const RELAY: usize = 2;

/// Where a connection ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    pub node: usize,
    pub shard: usize,
    pub conn: ConnId,
}

pub struct End {
    pub place: Place,
    pub open: bool,
    pub paused: bool,
    pub sending: Option<SendBuf>,
    /// Bytes on their way to this end.
    pub coming: VecDeque<u8>,
    /// Nothing follows them.
    pub last: bool,
    /// The shard was told so.
    told: bool,
}

pub struct Wire {
    pub ends: [End; 2],
}

/// An attempt of a shard to connect to a node.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    pub node: usize,
    pub shard: usize,
    pub dial: Dial,
    pub target: usize,
}

/// What there is between nodes.
#[derive(Default)]
pub struct Wires {
    pub wires: Vec<Wire>,
    pub dials: Vec<Call>,
}

impl End {
    pub fn new(place: Place) -> Self {
        Self {
            place,
            open: true,
            paused: false,
            sending: None,
            coming: VecDeque::new(),
            last: false,
            told: false,
        }
    }

    /// Something can still happen to this end.
    pub fn is_busy(&self) -> bool {
        self.open && (self.last || self.sending.is_some() || !self.coming.is_empty() && !self.paused)
    }
}

impl Wire {
    /// The network fails: each end still gets some of what was on its way, then the end of the connection.
    /// `keep` says how many bytes of so many.
    pub fn cut(&mut self, mut keep: impl FnMut(usize) -> usize) {
        for end in &mut self.ends {
            end.coming.truncate(keep(end.coming.len()));
            end.last = true;
        }
    }
}

impl Wires {
    /// Does what a shard wants of a connection between nodes. False: it wants something else.
    pub fn act(&mut self, nodes: &mut [Node], (node, shard): (usize, usize), output: Output) -> bool {
        let conn = match output {
            Output::Connect { dial, address } => {
                let target = nodes.iter().position(|node| node.address == address);
                let target = target.expect("an address of a node");
                self.dials.push(Call { node, shard, dial, target });
                return true;
            }
            Output::Send(conn)
            | Output::ShutdownWrite(conn)
            | Output::Close(conn)
            | Output::Park(conn)
            | Output::ResumeReads(conn) => conn,
        };
        let place = Place { node, shard, conn };
        let ends = self.wires.iter_mut().flat_map(|wire| &mut wire.ends);
        let Some(end) = ends.filter(|end| end.open).find(|end| end.place == place) else { return false };
        match output {
            Output::Send(_) => {
                assert!(end.sending.is_none(), "one send at a time");
                end.sending = Some(nodes[node].shards[shard].take_send(conn));
            }
            Output::ResumeReads(_) => end.paused = false,
            _ => self.close(nodes, place),
        }
        true
    }

    /// A shard closes its end: the other still gets what was sent before.
    fn close(&mut self, nodes: &mut [Node], place: Place) {
        for wire in &mut self.wires {
            for index in 0..2 {
                if wire.ends[index].open && wire.ends[index].place == place {
                    wire.ends[index].open = false;
                    wire.ends[index].sending = None;
                    wire.ends[1 - index].last = true;
                    nodes[place.node].release(place.shard, place.conn);
                }
            }
        }
    }

    /// The ends to which something can happen.
    pub fn busy(&self) -> Vec<(usize, usize)> {
        let ends = (0..self.wires.len()).flat_map(|wire| [(wire, 0), (wire, 1)]);
        ends.filter(|end| self.is_busy(*end)).collect()
    }

    /// Something can happen to an end. Of one that is gone, nothing can.
    pub fn is_busy(&self, (wire, end): (usize, usize)) -> bool {
        self.wires.get(wire).is_some_and(|wire| wire.ends[end].is_busy())
    }

    /// The next thing happens to an end: what its shard sent leaves, or at most `most` bytes come, or it learns that the
    /// connection is gone. Returns the place of the end and what was sent. The caller drains the shard, then calls
    /// [`Wires::sweep`].
    pub fn advance(
        &mut self,
        nodes: &mut [Node],
        now: Instant,
        (wire, index): (usize, usize),
        most: usize,
    ) -> (Place, Vec<u8>) {
        let end = &mut self.wires[wire].ends[index];
        let place = end.place;
        let shard = &mut nodes[place.node].shards[place.shard];
        let mut sent = Vec::new();
        if let Some(buf) = end.sending.take() {
            buf.segments.iter().for_each(|segment| sent.extend_from_slice(segment.as_slice()));
            assert!(!sent.is_empty(), "a send has something to send");
            let other = &mut self.wires[wire].ends[1 - index];
            if other.open && !other.last {
                other.coming.extend(&sent);
            }
            shard.sent(now, place.conn, buf, true);
        } else if !end.coming.is_empty() && !end.paused {
            let mut bytes: Vec<u8> = end.coming.drain(..most.min(end.coming.len())).collect();
            end.paused = shard.receive(now, place.conn, &mut bytes) == Flow::Pause;
        } else if end.last && end.open {
            assert!(!std::mem::replace(&mut end.told, true), "a broken connection is closed");
            shard.closed(now, place.conn);
        }
        (place, sent)
    }

    /// Forgets connections that are closed at both ends.
    pub fn sweep(&mut self) {
        self.wires.retain(|wire| wire.ends.iter().any(|end| end.open));
    }

    /// An attempt to connect arrives at a shard of its target, or nowhere. The caller drains the shard that made it.
    pub fn answer(&mut self, nodes: &mut [Node], now: Instant, call: Call, at: Option<usize>) {
        let Call { node, shard, dial, target } = call;
        let accepted = at.and_then(|at| {
            let place = Place { node: target, shard: at, conn: nodes[target].conn(at) };
            let peer = IpAddr::V4(Ipv4Addr::LOCALHOST);
            if nodes[target].shards[at].accept(now, place.conn, RELAY, peer) {
                return Some(place);
            }
            nodes[target].release(at, place.conn);
            None
        });
        let Some(other) = accepted else { return nodes[node].shards[shard].dial_failed(now, dial) };
        let place = Place { node, shard, conn: nodes[node].conn(shard) };
        self.wires.push(Wire { ends: [End::new(place), End::new(other)] });
        if !nodes[node].shards[shard].connected(now, dial, place.conn) {
            self.close(nodes, place);
        }
    }

    /// A node dies, and its connections with it. `keep` as for [`Wire::cut`].
    pub fn kill(&mut self, node: usize, mut keep: impl FnMut(usize) -> usize) {
        for wire in &mut self.wires {
            if wire.ends.iter().any(|end| end.place.node == node) {
                wire.cut(&mut keep);
            }
            for end in wire.ends.iter_mut().filter(|end| end.place.node == node) {
                end.open = false;
            }
        }
        self.sweep();
        self.dials.retain(|call| call.node != node);
    }

    pub fn is_quiet(&self) -> bool {
        self.dials.is_empty() && self.wires.iter().flat_map(|wire| &wire.ends).all(|end| !end.is_busy())
    }
}
