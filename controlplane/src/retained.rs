//! What the topics of the cluster retain, between the data plane and the store. Sans-IO.
//!
//! ```text
//! shard ─▶ put ─▶ waiting ─▶ store ─▶ other nodes
//!                             └─▶ stored ─▶ table ─▶ frames to the data plane: changes, and all of it to a new one
//! ```
//! The events of a topic are one object, named by a hash of realm and topic, whose bytes only shards read: the latest put
//! wins. Puts of one topic that wait are one. What the store had no room for waits again, unless a later event of the topic has
//! come from elsewhere. What is over is deleted by the node that has put it, or by any node a while later.
//!
//! Invariants: at most [`PUTS_MAX`] puts are on their way to the store; the table holds at most [`TOPICS_MAX`] topics.

use crate::cluster::Token;
use crate::store::record::{Reader, RecordError, require};
use common::ids::{NodeId, RealmId};
use common::limits::{RETAINED_BYTES_MAX, URI_BYTES_MAX};
use common::link::{Down, RetainedTopic, topics_in_one_frame};
use std::collections::BTreeMap;

/// Puts on their way to the store at once.
pub const PUTS_MAX: usize = 32;
/// Topics that are held; those beyond are stored and not used here.
pub const TOPICS_MAX: usize = 10_000_000;
/// How much later than the node that has put it any node deletes what is over, ms.
const OTHERS_GRACE_MS: u64 = 600_000;
/// How often it is looked for what is over, and at how many topics then.
const SWEEP_INTERVAL_MS: u64 = 10_000;
const SWEEP_TOPICS: usize = 4_096;

/// What one object says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Held {
    pub realm: RealmId,
    pub topic: String,
    /// The node that has put it.
    pub node: NodeId,
    /// When it was put, and when it is over, milliseconds since 1970; 0: never.
    pub put_ms: u64,
    pub over_ms: u64,
    /// Events, packed by a shard.
    pub events: Vec<u8>,
}

/// `version u8 = 1 │ realm u64 │ node [16] │ put_ms u64 │ over_ms u64 │ topic length u16 │ topic │ events`, little-endian.
const VERSION: u8 = 1;

impl Held {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.extend_from_slice(&self.realm.0.to_le_bytes());
        out.extend_from_slice(&self.node.0);
        out.extend_from_slice(&self.put_ms.to_le_bytes());
        out.extend_from_slice(&self.over_ms.to_le_bytes());
        out.extend_from_slice(&(self.topic.len() as u16).to_le_bytes());
        out.extend_from_slice(self.topic.as_bytes());
        out.extend_from_slice(&self.events);
        out
    }

    /// # Errors
    /// The bytes are of another version or malformed.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut reader = Reader(bytes);
        if reader.byte()? != VERSION {
            return Err(RecordError::Version);
        }
        let (realm, node) = (RealmId(reader.u64()?), NodeId(reader.array()?));
        let (put_ms, over_ms) = (reader.u64()?, reader.u64()?);
        let length = usize::from(reader.u16()?);
        let topic = std::str::from_utf8(reader.take(length)?).map_err(|_| RecordError::Form("a topic"))?;
        require(
            length <= URI_BYTES_MAX && reader.0.len() <= RETAINED_BYTES_MAX,
            "length of what is retained",
        )?;
        Ok(Self { realm, topic: topic.to_owned(), node, put_ms, over_ms, events: reader.0.to_vec() })
    }

    fn is_over(&self, wall_ms: u64, grace_ms: u64) -> bool {
        self.over_ms > 0 && self.over_ms.saturating_add(grace_ms) <= wall_ms
    }

    fn told(&self, wall_ms: u64) -> RetainedTopic {
        RetainedTopic {
            realm: self.realm,
            topic: self.topic.clone(),
            age_ms: wall_ms.saturating_sub(self.put_ms),
            bytes: self.events.clone(),
        }
    }
}

/// The name of the object of a topic.
pub fn key(realm: RealmId, topic: &str) -> String {
    let mut hasher = blake3::Hasher::new_derive_key("signalbox 2026 retained events of a topic");
    hasher.update(&realm.0.to_le_bytes());
    hasher.update(topic.as_bytes());
    let hash: [u8; 16] = std::array::from_fn(|at| hasher.finalize().as_bytes()[at]);
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A put, or with no bytes a deletion.
pub type Put = (String, Option<Vec<u8>>);

#[derive(Debug)]
pub struct Retained {
    me: NodeId,
    table: BTreeMap<String, Held>,
    /// Changes the data plane has not been told; those of topics that are retained no more name them.
    untold: BTreeMap<String, Option<(RealmId, String)>>,
    /// Puts that wait for those under way.
    waiting: BTreeMap<String, Option<Vec<u8>>>,
    puts: BTreeMap<Token, Put>,
    /// Topics not held because there are too many.
    refused: u64,
    swept: Option<String>,
    sweep_at_ms: u64,
}

impl Retained {
    pub fn new(me: NodeId) -> Self {
        Self {
            me,
            table: BTreeMap::new(),
            untold: BTreeMap::new(),
            waiting: BTreeMap::new(),
            puts: BTreeMap::new(),
            refused: 0,
            swept: None,
            sweep_at_ms: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.table.len()
    }

    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Topics that were not taken because there are [`TOPICS_MAX`].
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// A shard of this node retains events that are over in `ttl_ms`; 0: never.
    pub fn put(&mut self, topic: RetainedTopic, ttl_ms: u64, wall_ms: u64) {
        let over_ms = if ttl_ms == 0 { 0 } else { wall_ms.saturating_add(ttl_ms) };
        let RetainedTopic { realm, topic, bytes: events, .. } = topic;
        let name = key(realm, &topic);
        if !self.table.contains_key(&name) && self.table.len() + self.waiting.len() >= TOPICS_MAX {
            self.refused += 1;
            return;
        }
        let held = Held { realm, topic, node: self.me, put_ms: wall_ms, over_ms, events };
        self.waiting.insert(name, Some(held.encode()));
    }

    /// A realm is gone: what it retained is deleted.
    pub fn delete_realm(&mut self, realm: RealmId) {
        let gone = self.table.iter().filter(|(_, held)| held.realm == realm);
        self.waiting.extend(gone.map(|(name, _)| (name.clone(), None)));
    }

    /// The next put, if the store takes one; [`Retained::began`] must follow.
    pub fn take_put(&mut self) -> Option<Put> {
        if self.puts.len() >= PUTS_MAX { None } else { self.waiting.pop_first() }
    }

    pub fn began(&mut self, token: Token, put: Put) {
        self.puts.insert(token, put);
    }

    /// The put of ours with this token is over; none: it is not ours.
    pub fn ended(&mut self, token: Token) -> Option<Put> {
        self.puts.remove(&token)
    }

    /// A put failed and is to be tried again: it waits, unless something later does, or is stored.
    pub fn again(&mut self, (name, bytes): Put) {
        let put_ms = |bytes: &[u8]| Held::decode(bytes).map_or(0, |held| held.put_ms);
        let is_late = bytes
            .as_deref()
            .is_some_and(|bytes| self.table.get(&name).is_some_and(|held| held.put_ms > put_ms(bytes)));
        if is_late {
            self.untold.insert(name, None);
        } else {
            self.waiting.entry(name).or_insert(bytes);
        }
    }

    /// A put failed for good: the data plane is told what the store holds instead.
    pub fn give_up(&mut self, (name, bytes): Put) {
        let held = bytes.and_then(|bytes| Held::decode(&bytes).ok());
        let gone = held.filter(|_| !self.table.contains_key(&name)).map(|held| (held.realm, held.topic));
        self.untold.insert(name, gone);
    }

    /// The object `name` is stored like this; no bytes: it is deleted.
    ///
    /// # Errors
    /// The bytes cannot be read; nothing was changed.
    pub fn stored(&mut self, name: &str, bytes: Option<&[u8]>) -> Result<(), RecordError> {
        let new = bytes.map(Held::decode).transpose()?;
        match new {
            None => {
                if let Some(old) = self.table.remove(name) {
                    self.untold.insert(name.to_owned(), Some((old.realm, old.topic)));
                }
            }
            Some(_) if !self.table.contains_key(name) && self.table.len() >= TOPICS_MAX => self.refused += 1,
            Some(held) => {
                self.table.insert(name.to_owned(), held);
                self.untold.insert(name.to_owned(), None);
            }
        }
        Ok(())
    }

    /// Nothing is stored any more.
    pub fn reset(&mut self) {
        for (name, old) in std::mem::take(&mut self.table) {
            self.untold.insert(name, Some((old.realm, old.topic)));
        }
    }

    /// A data plane is new: it is told everything.
    pub fn tell_all(&mut self) {
        self.untold.retain(|_, gone| gone.is_some());
        self.untold.extend(self.table.keys().map(|name| (name.clone(), None)));
    }

    pub fn has_frame(&self) -> bool {
        !self.untold.is_empty()
    }

    /// The next frame for the data plane.
    pub fn frame(&mut self, wall_ms: u64) -> Option<Down> {
        let (table, mut topics) = (&self.table, Vec::new());
        let told = |name: &String, gone: &Option<(RealmId, String)>| match (gone, table.get(name)) {
            (_, Some(held)) if !held.is_over(wall_ms, 0) => Some(held.told(wall_ms)),
            (None, None) => None,
            (Some((realm, topic)), _) => Some(nothing((*realm, topic.clone()))),
            (None, Some(held)) => Some(nothing((held.realm, held.topic.clone()))),
        };
        let bytes = self.untold.iter().map(|(name, gone)| match table.get(name) {
            Some(held) => RetainedTopic::frame_bytes_max(held.topic.len(), held.events.len()),
            None => RetainedTopic::frame_bytes_max(gone.as_ref().map_or(0, |(_, topic)| topic.len()), 0),
        });
        for _ in 0..topics_in_one_frame(bytes) {
            let Some((name, gone)) = self.untold.pop_first() else { break };
            topics.extend(told(&name, &gone));
        }
        (!topics.is_empty()).then_some(Down::Retained { topics })
    }

    /// Looks for what is over. Returns when to do so again, milliseconds since 1970.
    pub fn sweep(&mut self, wall_ms: u64) -> u64 {
        if wall_ms < self.sweep_at_ms && self.sweep_at_ms - wall_ms <= SWEEP_INTERVAL_MS {
            return self.sweep_at_ms;
        }
        self.sweep_at_ms = wall_ms + SWEEP_INTERVAL_MS;
        use std::ops::Bound::{Excluded, Unbounded};
        let from = self.swept.take().map_or(Unbounded, Excluded);
        let mut looked_at = 0;
        for (name, held) in self.table.range((from, Unbounded)).take(SWEEP_TOPICS) {
            looked_at += 1;
            let grace_ms = if held.node == self.me { 0 } else { OTHERS_GRACE_MS };
            if held.is_over(wall_ms, grace_ms) {
                self.waiting.entry(name.clone()).or_insert(None);
            }
            if looked_at == SWEEP_TOPICS {
                self.swept = Some(name.clone());
            }
        }
        self.sweep_at_ms
    }
}

fn nothing((realm, topic): (RealmId, String)) -> RetainedTopic {
    RetainedTopic { realm, topic, age_ms: 0, bytes: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::limits::LINK_FRAME_BYTES_MAX;

    const ME: NodeId = NodeId([1; 16]);

    fn topic(name: &str, bytes: usize) -> RetainedTopic {
        RetainedTopic { realm: RealmId(7), topic: name.into(), age_ms: 0, bytes: vec![1; bytes] }
    }

    fn told(retained: &mut Retained, wall_ms: u64) -> Vec<(String, u64, usize)> {
        let mut all = Vec::new();
        while let Some(frame) = retained.frame(wall_ms) {
            assert!(frame.encode().len() <= LINK_FRAME_BYTES_MAX);
            let Down::Retained { topics } = frame else { panic!("{frame:?}") };
            all.extend(topics.into_iter().map(|topic| (topic.topic, topic.age_ms, topic.bytes.len())));
        }
        all.sort();
        all
    }

    /// Puts go to the store and come back.
    fn store(retained: &mut Retained) -> usize {
        let mut puts = 0;
        while let Some((name, bytes)) = retained.take_put() {
            puts += 1;
            retained.began(Token(puts), (name, bytes));
            let (name, bytes) = retained.ended(Token(puts)).unwrap();
            retained.stored(&name, bytes.as_deref()).unwrap();
        }
        puts as usize
    }

    #[test]
    fn what_is_put_is_stored_once_and_told() {
        let mut retained = Retained::new(ME);
        retained.put(topic("a", 3), 0, 1_000);
        retained.put(topic("a", 4), 0, 1_001);
        retained.put(topic("b", 5), 0, 1_001);
        assert_eq!(store(&mut retained), 2, "puts of a topic that wait are one");
        assert_eq!(told(&mut retained, 1_500), [("a".into(), 499, 4), ("b".into(), 499, 5)]);
        assert!(!retained.has_frame());
        retained.tell_all();
        assert_eq!(told(&mut retained, 1_500).len(), 2);
        retained.delete_realm(RealmId(8));
        assert_eq!(store(&mut retained), 0);
        retained.delete_realm(RealmId(7));
        assert_eq!(store(&mut retained), 2);
        assert_eq!(told(&mut retained, 1_500), [("a".into(), 0, 0), ("b".into(), 0, 0)]);
        assert!(retained.is_empty());
    }

    #[test]
    fn what_is_over_is_deleted_by_its_node_first() {
        let (mut here, mut there) = (Retained::new(ME), Retained::new(NodeId([2; 16])));
        here.put(topic("a", 3), 5_000, 100_000);
        let (name, bytes) = here.take_put().unwrap();
        for side in [&mut here, &mut there] {
            side.stored(&name, bytes.as_deref()).unwrap();
            side.sweep(104_000);
            assert!(side.take_put().is_none());
            side.sweep(114_001);
        }
        assert_eq!(told(&mut there, 114_001), [("a".into(), 0, 0)], "it is told no more");
        assert_eq!(here.take_put(), Some((name.clone(), None)));
        assert_eq!(there.take_put(), None);
        there.sweep(105_000 + OTHERS_GRACE_MS);
        assert_eq!(there.take_put(), Some((name, None)));
    }

    #[test]
    fn many_and_long_ones_are_told_in_frames_that_fit() {
        let mut retained = Retained::new(ME);
        for number in 0..300 {
            retained.put(
                topic(&format!("topic{number}"), if number % 50 == 0 { RETAINED_BYTES_MAX } else { 900 }),
                0,
                1,
            );
        }
        assert_eq!(store(&mut retained), 300);
        assert_eq!(told(&mut retained, 2).len(), 300);
        retained.reset();
        assert_eq!(told(&mut retained, 2).len(), 300);
    }

    #[test]
    fn at_most_so_many_puts_are_under_way() {
        let mut retained = Retained::new(ME);
        for number in 0..100 {
            retained.put(topic(&number.to_string(), 1), 0, 1);
        }
        for token in 0..PUTS_MAX as u64 {
            let put = retained.take_put().unwrap();
            retained.began(Token(token), put);
        }
        assert!(retained.take_put().is_none());
        assert!(retained.ended(Token(3)).is_some() && retained.ended(Token(3)).is_none());
        assert!(retained.take_put().is_some());
    }

    #[test]
    fn what_the_store_refused_waits_again_unless_something_later_has_come() {
        let mut retained = Retained::new(ME);
        retained.put(topic("a", 3), 0, 1_000);
        let first = retained.take_put().unwrap();
        retained.again(first.clone());
        assert_eq!(retained.take_put(), Some(first.clone()));
        retained.put(topic("a", 4), 0, 1_001);
        retained.again(first.clone());
        let second = retained.take_put().unwrap();
        assert_ne!(second, first, "what was put later is what counts");
        assert_eq!(retained.take_put(), None);
        retained.stored(&second.0, second.1.as_deref()).unwrap();
        assert_eq!(told(&mut retained, 1_001), [("a".into(), 0, 4)]);
        retained.again(first);
        assert_eq!(retained.take_put(), None);
        assert_eq!(told(&mut retained, 1_001), [("a".into(), 0, 4)], "in place of what was put here");
    }

    #[test]
    fn what_is_never_stored_is_taken_back_from_the_data_plane() {
        let mut retained = Retained::new(ME);
        retained.put(topic("a", 3), 0, 1_000);
        let put = retained.take_put().unwrap();
        retained.give_up(put.clone());
        assert_eq!(told(&mut retained, 1_000), [("a".into(), 0, 0)]);
        retained.stored(&put.0, put.1.as_deref()).unwrap();
        assert_eq!(told(&mut retained, 1_000).len(), 1);
        retained.give_up(put);
        assert_eq!(told(&mut retained, 1_000), [("a".into(), 0, 3)]);
    }

    #[test]
    fn bytes_that_are_malformed_are_refused() {
        let held = Held {
            realm: RealmId(1),
            topic: "a.b".into(),
            node: ME,
            put_ms: 2,
            over_ms: 3,
            events: vec![4; 5],
        };
        let bytes = held.encode();
        assert_eq!(Held::decode(&bytes).unwrap(), held);
        for cut in 0..bytes.len() - 5 {
            assert!(Held::decode(&bytes[..cut]).is_err());
        }
        assert!(Held::decode(&[9; 60]).is_err());
    }
}
