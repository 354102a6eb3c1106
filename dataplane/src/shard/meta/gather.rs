//! Questions under way: asked of every shard of the node and of every live node, answered with what came in time.
//!
//! ```text
//! caller's shard ─ Ask ─▶ other shards ─ Tell ─▶ caller's shard ─▶ RESULT
//!                └ Ask ═▶ a shard of each live node ─ Ask ─▶ its other shards ─ Tell ─▶ it ═ Tell ═▶ caller's shard
//! ```
//! A node that dies, is cut off or does not answer in time is left out, and the RESULT says so. What another node asks has less
//! time than what was asked here, so that a slow shard there costs its own part only.

use super::query::{Part, Query};
use crate::mesh::{Caller, Item};
use crate::shard::Shard;
use crate::shard::conn::IdMap;
use crate::shard::nodes::NodeSet;
use common::ids::{RealmId, ShardId, ShardSet};
use common::metrics::Counter;
use foldhash::fast::RandomState;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// How long the other nodes and shards have to answer a session's question.
const ASK_TIME: Duration = Duration::from_secs(2);
/// How long the other shards have to answer another node's question.
const GUEST_ASK_TIME: Duration = Duration::from_secs(1);
/// How much longer they have when many sessions are to be ended.
const ENDING_TIME: Duration = Duration::from_secs(28);
/// Questions under way in one shard.
const ASKS_MAX: usize = 256;
/// Those of them that are about events: their parts are long.
const ASKS_EVENTS_MAX: usize = 32;
/// And those of one session.
const ASKS_EVENTS_OF_SESSION_MAX: usize = 8;

const _: () = assert!(ASKS_EVENTS_OF_SESSION_MAX < ASKS_EVENTS_MAX && ASKS_EVENTS_MAX < ASKS_MAX);
const _: () = assert!(GUEST_ASK_TIME.as_millis() < ASK_TIME.as_millis());

/// Who asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::shard) enum Asker {
    /// A session of this shard, by a CALL.
    Session(Caller),
    /// Another node, on the link in this slot, under its own token.
    Node { slot: u32, link: u64, token: u64 },
}

/// A question under way.
#[derive(Debug)]
struct Asked {
    asker: Asker,
    query: Query,
    part: Part,
    shards: ShardSet,
    nodes: NodeSet,
    deadline: Instant,
}

/// The questions of one shard, by token.
#[derive(Debug)]
pub(in crate::shard) struct Asks {
    open: IdMap<Asked>,
    deadlines: BTreeSet<(Instant, u64)>,
}

impl Asks {
    pub fn new(hasher: &RandomState) -> Self {
        Self { open: IdMap::with_hasher(hasher.clone()), deadlines: BTreeSet::new() }
    }

    /// When [`Shard::asks_timeout`] must be called at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    fn has_room(&self, asker: Asker, query: &Query) -> bool {
        let about_events = || self.open.values().filter(|asked| asked.query.op.is_about_events());
        let of_session = |asked: &&Asked| match (asked.asker, asker) {
            (Asker::Session(one), Asker::Session(other)) => one.owner == other.owner,
            _ => false,
        };
        self.open.len() < ASKS_MAX
            && (!query.op.is_about_events()
                || about_events().count() < ASKS_EVENTS_MAX
                    && about_events().filter(of_session).count() < ASKS_EVENTS_OF_SESSION_MAX)
    }

    /// Somebody waits for the answer.
    pub fn is_open(&self, token: u64) -> bool {
        self.open.contains_key(&token)
    }

    fn take(&mut self, token: u64) -> Option<Asked> {
        let asked = self.open.remove(&token)?;
        self.deadlines.remove(&(asked.deadline, token));
        Some(asked)
    }
}

impl Shard {
    /// Asks everybody. The token by which the question may be given up; none: it was answered.
    pub(super) fn ask(&mut self, asker: Asker, realm: u32, query: Query) -> Option<u64> {
        if !self.asks.has_room(asker, &query) {
            self.metrics.count(Counter::LimitReached);
            self.told(asker, &query, None);
            return None;
        }
        let token = self.token();
        let own = self.answer_of(realm, &query, (self.me, token));
        let comes_later = own.is_none();
        let mut part = own.unwrap_or_default();
        let settled = query.op.has_one_answer() && part.count > 0;
        let (mut shards, mut nodes) = (ShardSet::EMPTY, NodeSet::EMPTY);
        if !settled {
            shards = self.others();
            let (asked, partial) = self.pass_question(asker, realm, token, &query);
            (nodes, part.partial) = (asked, part.partial || partial);
        }
        if comes_later {
            shards = shards.with(self.me);
        }
        if shards.is_empty() && nodes.is_empty() {
            self.told(asker, &query, Some(part));
            return None;
        }
        let time = if matches!(asker, Asker::Session(_)) { ASK_TIME } else { GUEST_ASK_TIME };
        let deadline = self.now + if query.op.ends_many() { time + ENDING_TIME } else { time };
        self.asks.deadlines.insert((deadline, token));
        self.asks.open.insert(token, Asked { asker, query, part, shards, nodes, deadline });
        Some(token)
    }

    /// Tells the other shards what is asked, and the other nodes if a session of this one asks. The nodes that will answer, and
    /// whether there are others.
    fn pass_question(&mut self, asker: Asker, realm: u32, token: u64, query: &Query) -> (NodeSet, bool) {
        let packed = query.pack();
        let realm = self.realms[realm as usize].id;
        for shard in self.others().iter() {
            let batch = self.mesh(shard);
            let query = batch.put(&packed);
            batch.push(Item::Ask { realm, token, query });
        }
        let (mut nodes, mut partial) = (NodeSet::EMPTY, false);
        if matches!(asker, Asker::Session(_)) {
            for node in self.nodes.live().iter() {
                if self.relay_ask(node, realm, token, &packed) {
                    nodes.insert(node);
                } else {
                    partial = true;
                }
            }
        }
        (nodes, partial)
    }

    /// Another shard of this node asks.
    pub(in crate::shard) fn asked_by_shard(
        &mut self,
        from: ShardId,
        realm: RealmId,
        token: u64,
        query: &[u8],
    ) {
        let realm = self.realm_of(realm);
        let part = match Query::unpack(query) {
            Some(query) => self.answer_of(realm, &query, (from, token)),
            None => Some(Part::default()),
        };
        if let Some(part) = part {
            self.tell_shard(from, token, part);
        }
    }

    /// What there is to say here to a question of a shard, which may be this one.
    pub(in crate::shard) fn tell_shard(&mut self, to: ShardId, token: u64, part: Part) {
        if to == self.me {
            return self.part_came(to, token, Some(part));
        }
        let packed = part.pack();
        let batch = self.mesh(to);
        let part = batch.put(&packed);
        batch.push(Item::Tell { token, part });
    }

    /// Another node asks. False: it has sent what no node packs.
    pub(in crate::shard) fn asked_by_node(&mut self, asker: Asker, realm: RealmId, query: &[u8]) -> bool {
        let Some(query) = Query::unpack(query) else { return false };
        match self.realm_index.get(&realm).copied() {
            Some(realm) => {
                self.ask(asker, realm, query);
            }
            None => self.told(asker, &query, Some(Part::default())),
        }
        true
    }

    /// A shard of this node answers.
    pub(in crate::shard) fn shard_told(&mut self, from: ShardId, token: u64, part: &[u8]) {
        self.part_came(from, token, Part::unpack(part));
    }

    fn part_came(&mut self, from: ShardId, token: u64, part: Option<Part>) {
        if let Some(asked) = self.asks.open.get_mut(&token)
            && asked.shards.contains(from)
        {
            asked.shards = asked.shards.without(from);
            self.add_part(token, part);
        }
    }

    /// Another node answers. False: it has sent what no node packs.
    pub(in crate::shard) fn node_told(&mut self, node: u16, token: u64, part: &[u8]) -> bool {
        let Some(part) = Part::unpack(part) else { return false };
        if let Some(asked) = self.asks.open.get_mut(&token)
            && asked.nodes.contains(node)
        {
            asked.nodes.remove(node);
            self.add_part(token, Some(part));
        }
        true
    }

    fn add_part(&mut self, token: u64, part: Option<Part>) {
        let Some(asked) = self.asks.open.get_mut(&token) else { return };
        asked.part.partial |= part.is_none();
        asked.part.add(part.unwrap_or_default(), &asked.query);
        let settled = asked.query.op.has_one_answer() && asked.part.count > 0;
        if settled || asked.shards.is_empty() && asked.nodes.is_empty() {
            self.end_question(token);
        }
    }

    fn end_question(&mut self, token: u64) {
        let Some(asked) = self.asks.take(token) else { return };
        self.told(asked.asker, &asked.query, Some(asked.part));
    }

    /// What went to a node by one lane is lost: it is not waited for.
    pub(in crate::shard) fn asks_lost(&mut self, node: u16, lane: usize) {
        let waits = |token: u64, asked: &Asked| {
            asked.nodes.contains(node) && self.lane_of(node, token as u32) == lane
        };
        let lost: Vec<u64> = self
            .asks
            .open
            .iter()
            .filter(|(token, asked)| waits(**token, asked))
            .map(|(token, _)| *token)
            .collect();
        for token in lost {
            if let Some(asked) = self.asks.open.get_mut(&token) {
                asked.nodes.remove(node);
                self.add_part(token, None);
            }
        }
    }

    /// The caller no longer wants an answer.
    pub(in crate::shard) fn drop_question(&mut self, token: u64) {
        self.asks.take(token);
    }

    /// Answers with what came in time.
    pub(in crate::shard) fn asks_timeout(&mut self) {
        while let Some((at, token)) = self.asks.deadlines.first().copied()
            && at <= self.now
        {
            if let Some(asked) = self.asks.open.get_mut(&token) {
                asked.part.partial = true;
            }
            self.end_question(token);
        }
    }

    /// The answer to whoever asked. No part: there is no room for the question.
    fn told(&mut self, asker: Asker, query: &Query, part: Option<Part>) {
        match asker {
            Asker::Session(caller) => self.answer_query(caller, query, part),
            Asker::Node { slot, link, token } => {
                let part = part.unwrap_or_else(|| Part { partial: true, ..Part::default() });
                self.relay_tell(slot, link, token, &part.pack());
            }
        }
    }
}
