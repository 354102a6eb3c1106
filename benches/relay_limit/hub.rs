//! Who receives what: the part the two relays share.

use std::collections::HashMap;

/// Bytes waiting for one connection beyond which the relay gives up: the load program's windows keep far below.
const QUEUE_BYTES_MAX: usize = 256 << 20;
const PREAMBLE_BYTES: usize = 8;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Sink,
    Source,
    Both,
}

#[derive(Default)]
struct Peer {
    preamble: Vec<u8>,
    role: Option<Role>,
    group: u16,
    /// Waits to be sent.
    queue: Vec<u8>,
    /// An emptied buffer to queue in while another is with the kernel.
    spare: Vec<u8>,
    sending: bool,
    dirty: bool,
}

/// The connections by slot, and the receivers of each group.
#[derive(Default)]
pub struct Hub {
    peers: Vec<Peer>,
    sinks: HashMap<u16, Vec<u32>>,
    both: HashMap<u16, Vec<u32>>,
    dirty: Vec<u32>,
    /// Groups in which somebody sends, by what role.
    begun: Vec<(u8, u16)>,
    /// The last of them, until it was asked for: what one says that receives of it, and one that sends to it.
    news: Option<(Preamble, Preamble)>,
}

/// The first bytes of a connection.
pub type Preamble = [u8; PREAMBLE_BYTES];

impl Hub {
    pub fn open(&mut self, slot: u32) {
        let slot = slot as usize;
        if self.peers.len() <= slot {
            self.peers.resize_with(slot + 1, Peer::default);
        }
        self.peers[slot] = Peer::default();
    }

    pub fn close(&mut self, slot: u32) {
        let group = self.peers[slot as usize].group;
        for members in [&mut self.sinks, &mut self.both] {
            if let Some(members) = members.get_mut(&group) {
                members.retain(|member| *member != slot);
            }
        }
        self.peers[slot as usize] = Peer::default();
    }

    pub fn receive(&mut self, slot: u32, mut bytes: &[u8]) {
        let peer = &mut self.peers[slot as usize];
        if peer.role.is_none() {
            let missing = PREAMBLE_BYTES - peer.preamble.len();
            let (head, rest) = bytes.split_at(missing.min(bytes.len()));
            peer.preamble.extend_from_slice(head);
            bytes = rest;
            if peer.preamble.len() < PREAMBLE_BYTES || !self.enter(slot) {
                return;
            }
        }
        if bytes.is_empty() {
            return;
        }
        let peer = &self.peers[slot as usize];
        let (role, group) = (peer.role, peer.group);
        let receivers = match role {
            Some(Role::Source) => self.sinks.get(&group),
            Some(Role::Both) => self.both.get(&group),
            _ => None,
        };
        for receiver in receivers.into_iter().flatten().copied().filter(|receiver| *receiver != slot) {
            let peer = &mut self.peers[receiver as usize];
            assert!(peer.queue.len() <= QUEUE_BYTES_MAX, "a receiver does not read");
            peer.queue.extend_from_slice(bytes);
            if !peer.dirty {
                peer.dirty = true;
                self.dirty.push(receiver);
            }
        }
    }

    /// Reads the preamble; false if it is none.
    fn enter(&mut self, slot: u32) -> bool {
        let peer = &mut self.peers[slot as usize];
        let [b'R', b'L', b'Y', b'1', role, _, low, high] = *peer.preamble.as_slice() else {
            eprintln!("not a preamble: {:?}", peer.preamble);
            peer.preamble.clear();
            return false;
        };
        peer.group = u16::from_le_bytes([low, high]);
        if role != 0 && !self.begun.contains(&(role, peer.group)) {
            self.begun.push((role, peer.group));
            let preamble = |role| [b'R', b'L', b'Y', b'1', role, 0, low, high];
            self.news = Some(if role == 1 { (preamble(0), preamble(1)) } else { (preamble(2), preamble(2)) });
        }
        let (role, members) = match role {
            0 => (Role::Sink, Some(&mut self.sinks)),
            1 => (Role::Source, None),
            _ => (Role::Both, Some(&mut self.both)),
        };
        peer.role = Some(role);
        if let Some(members) = members {
            members.entry(peer.group).or_default().push(slot);
        }
        true
    }

    /// A group in which somebody sends since the last time: the preambles of a connection that gets what it sends
    /// here, and of one that sends it elsewhere.
    pub fn take_begun(&mut self) -> Option<(Preamble, Preamble)> {
        self.news.take()
    }

    /// A connection with something to send and no send under way.
    pub fn next_to_send(&mut self) -> Option<u32> {
        loop {
            let slot = self.dirty.pop()?;
            let peer = &mut self.peers[slot as usize];
            peer.dirty = false;
            if !peer.sending && !peer.queue.is_empty() {
                peer.sending = true;
                return Some(slot);
            }
        }
    }

    /// All bytes queued to it.
    pub fn take(&mut self, slot: u32) -> Vec<u8> {
        let peer = &mut self.peers[slot as usize];
        std::mem::replace(&mut peer.queue, std::mem::take(&mut peer.spare))
    }

    /// What [`Hub::take`] gave was sent.
    pub fn sent(&mut self, slot: u32, mut bytes: Vec<u8>) {
        let peer = &mut self.peers[slot as usize];
        bytes.clear();
        peer.spare = bytes;
        peer.sending = false;
        if !peer.queue.is_empty() && !peer.dirty {
            peer.dirty = true;
            self.dirty.push(slot);
        }
    }
}
