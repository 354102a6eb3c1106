//! The direct probe that is under way, so that it can be made again over another path. Pure.
//!
//! A path may lose UDP and carry TCP. When the answer to a ping is late, the same ping goes over the link to the node as
//! well, while others are asked to probe it (SWIM with Lifeguard as in hashicorp/memberlist, "TCP fallback").

use super::identity::{Identity, Wire};
use foca::{Codec, Message};
use uuid::Uuid;

/// The last ping.
#[derive(Default)]
pub struct Probe {
    waiting: Option<Ping>,
}

struct Ping {
    to: Identity,
    number: u8,
    data: Vec<u8>,
}

impl Probe {
    /// Something was sent to the node that is being probed.
    pub fn sent(&mut self, to: &Identity, data: &[u8]) {
        let header = Wire.decode_header(data);
        if let Ok(Message::Ping(number)) = header.map(|header| header.message) {
            self.waiting = Some(Ping { to: to.clone(), number, data: data.to_vec() });
        }
    }

    /// `message` has come from `source`.
    pub fn heard(&mut self, source: Uuid, message: &Message<Identity>) {
        let (node, number) = match message {
            Message::Ack(number) => (source, *number),
            Message::ForwardedAck { origin, probe_number } => (origin.node, *probe_number),
            _ => return,
        };
        self.waiting.take_if(|ping| ping.to.node == node && ping.number == number);
    }

    /// The ping of `node`, when it has not been answered.
    pub fn late(&self, node: Uuid) -> Option<(Identity, Vec<u8>)> {
        let ping = self.waiting.as_ref().filter(|ping| ping.to.node == node)?;
        Some((ping.to.clone(), ping.data.clone()))
    }
}
