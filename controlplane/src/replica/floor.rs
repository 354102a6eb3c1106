//! When deletions may be forgotten: the collection floor of each shard. Sans-IO.
//!
//! A node's *mark* of a shard is a stamp up to which it holds every write of the shard that any member made: an exchange
//! in which the roots were equal proves it for one peer, up to the stamp the peer *promised* never to go below again;
//! the mark is the least over all peers. The *floor* is the least of all members' marks, whether they live or not, less
//! an allowance for clocks and for messages that are under way, and never younger than the grace. All members hold a
//! deletion below it, and so none holds what it deleted: it leaves the hash tree when the floor is adopted, and the disk
//! later. A floor that one member has worked out is right for all, so nodes take over the higher one.
//!
//! Who has a mark below another's floor was away for too long, was forgotten, or had its disk put back: it may hold what
//! all others have deleted and forgotten. It is *stale*, gives up what it holds and pulls everything anew. Whoever holds
//! all that a peer holds has the mark of that peer.
//!
//! What a node wrote before it exchanged with another was seen by nobody, so nobody can have deleted it: a new node joins
//! as it is. The *bound* of a shard is the stamp before which nothing that the node holds was deleted elsewhere: the time of
//! the first exchange, or the least bound of the peers that exchanges brought something from (they may be stale without
//! knowing it yet), or the mark, if that is later. A node that has synced all shards with no other yet is *fresh*, and works
//! out no floor.
//!
//! Whoever takes a member off the list lets the floor go on without it. The writes of that member may still be on their way
//! from one node to the next, so the floor stands still until every mark was made after that.
//!
//! Invariants: floors never fall; a mark is announced, and a promise made, only when it is on disk; a floor is worked out
//! only from the marks of all members.

use super::hashtree::SHARDS;
use super::hlc::Hlc;
use crate::store::record::{Reader, RecordError, checksum, require};
use common::ids::{NODES_MAX, NodeId};
use std::collections::BTreeMap;
use std::time::Duration;

/// One stamp a shard.
pub type Stamps = [Hlc; SHARDS];

#[derive(Clone, Debug)]
pub struct Floor {
    own: NodeId,
    pace: Pace,
    kept: Kept,
    /// What of it may be told.
    stored: Announcement,
    /// Promises of a peer up to which we hold what it holds.
    synced: BTreeMap<NodeId, Stamps>,
    /// Marks that members announced.
    heard: BTreeMap<NodeId, Stamps>,
    /// Of a fresh node: the shards it has synced with each peer.
    first_syncs: BTreeMap<NodeId, u64>,
    /// The bounds of peers when the last exchange with them began.
    bounds: BTreeMap<NodeId, Stamps>,
    /// `kept` is to be stored.
    dirty: bool,
    /// The marks or floors are to be announced, once stored.
    announce: bool,
}

/// Times that belong together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pace {
    /// Deletions are remembered for at least this long, milliseconds.
    pub grace_ms: u64,
    /// By how much clocks may be wrong and messages late.
    pub allowance_ms: u64,
    /// Promises, marks and floors are multiples of this, so that nodes agree on them and store them rarely.
    pub quantum_ms: u64,
}

/// What is stored: see [`Kept::encode`].
#[derive(Clone, PartialEq, Eq, Debug)]
struct Kept {
    promise: Hlc,
    marks: Stamps,
    floors: Stamps,
    /// The floors stand still until all marks have passed this.
    held_until: Hlc,
    fresh: bool,
    /// Nothing that was written or taken here was deleted elsewhere before this.
    unseen: Stamps,
    /// The greatest counter of this node in a history that was forgotten.
    counter: u64,
    /// Every other node that was met and not forgotten, since when.
    members: BTreeMap<NodeId, Hlc>,
    /// Nodes that were forgotten, and when: a node that was away is told. The last few.
    forgotten: BTreeMap<NodeId, Hlc>,
}

/// This node was away for too long: see the top of this file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "shard {shard} is synced up to {mark_ms} ms, but deletions before {floor_ms} ms are forgotten elsewhere"
)]
pub struct Stale {
    pub shard: usize,
    pub mark_ms: u64,
    pub floor_ms: u64,
}

/// What a node tells the others of its floor.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Announcement {
    pub marks: Stamps,
    pub floors: Stamps,
    /// Whom it knows and since when: a node that does not know all members works out too high a floor.
    pub members: BTreeMap<NodeId, Hlc>,
    /// Nodes that were forgotten, and when.
    pub forgotten: BTreeMap<NodeId, Hlc>,
}

impl Pace {
    pub fn of(grace: Duration) -> Self {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX / 2).max(1);
        Self {
            grace_ms,
            allowance_ms: grace_ms.min(ALLOWANCE_MS_MAX),
            quantum_ms: (grace_ms / QUANTA).clamp(1, QUANTUM_MS_MAX),
        }
    }
}

impl Floor {
    /// `kept`: what [`Floor::row`] gave in an earlier life; none: the node has not met anybody. `restored`: the disk is a
    /// copy of an earlier one.
    pub fn new(own: NodeId, pace: Pace, kept: Option<&[u8]>, restored: bool) -> Result<Self, RecordError> {
        let mut kept = kept.map_or_else(|| Ok(Kept::default()), Kept::decode)?;
        if restored {
            // Whom the original has met since is not known.
            (kept.fresh, kept.unseen) = (false, [Hlc::default(); SHARDS]);
        }
        Ok(Self { dirty: restored, ..Self::of(own, pace, kept) })
    }

    /// Of a store whose row is damaged: it may have met anybody.
    pub fn unknown(own: NodeId, pace: Pace) -> Self {
        let kept = Kept { fresh: false, unseen: [Hlc::default(); SHARDS], ..Kept::default() };
        Self { dirty: true, ..Self::of(own, pace, kept) }
    }

    fn of(own: NodeId, pace: Pace, kept: Kept) -> Self {
        Self {
            own,
            pace,
            stored: kept.announcement(),
            kept,
            synced: BTreeMap::new(),
            heard: BTreeMap::new(),
            first_syncs: BTreeMap::new(),
            bounds: BTreeMap::new(),
            dirty: false,
            announce: true,
        }
    }

    pub fn floors(&self) -> &Stamps {
        &self.kept.floors
    }

    pub fn marks(&self) -> &Stamps {
        &self.kept.marks
    }

    /// Before these, nothing that this node holds was deleted elsewhere. `now`: a stamp of this moment.
    pub fn bounds(&self, now: Hlc) -> Stamps {
        std::array::from_fn(|shard| self.kept.marks[shard].max(self.kept.unseen[shard].min(now)))
    }

    /// Every stamp this node gives from now on, in later lives too, is greater.
    pub fn promise(&self) -> Hlc {
        self.kept.promise
    }

    /// It has not synced with any other node yet.
    pub fn is_fresh(&self) -> bool {
        self.kept.fresh
    }

    pub fn is_member(&self, node: NodeId) -> bool {
        self.kept.members.contains_key(&node)
    }

    pub fn grace_ms(&self) -> u64 {
        self.pace.grace_ms
    }

    /// Other nodes whose marks count.
    pub fn members(&self) -> usize {
        self.kept.members.len()
    }

    /// What a first dot of this node follows: see [`Object::put`](crate::store::record::Object::put).
    pub fn counter(&self) -> u64 {
        self.kept.counter
    }

    /// A history in which this node counted up to `counter` is about to be forgotten.
    pub fn forgot_counter(&mut self, counter: u64) {
        if counter > self.kept.counter {
            self.kept.counter = counter;
            self.dirty = true;
        }
    }

    /// A node is there. `now`: a stamp of this moment.
    pub fn met(&mut self, node: NodeId, now: Hlc) {
        let is_new = node != self.own && !self.is_member(node);
        if is_new && self.kept.members.len() < NODES_MAX {
            // After it was forgotten, whatever the clock says.
            let after = self.kept.forgotten.remove(&node).map_or(Hlc::default(), |since| since.next(0));
            self.kept.members.insert(node, now.max(after));
            self.dirty = true;
        }
    }

    /// A node will not come back. `now`: a stamp of this moment. False: it was not a member.
    pub fn forget(&mut self, node: NodeId, now: Hlc) -> bool {
        // After it was met, whatever the clock says.
        let since = self.kept.members.get(&node).map_or(now, |met| now.max(met.next(0)));
        self.forget_since(node, since, now)
    }

    /// The same, of a node that was forgotten elsewhere at `since`.
    fn forget_since(&mut self, node: NodeId, since: Hlc, now: Hlc) -> bool {
        let is_known = self.kept.forgotten.get(&node).is_some_and(|known| *known >= since);
        let met_again = self.kept.members.get(&node).is_some_and(|met| *met > since);
        if node == self.own || is_known || met_again {
            return false;
        }
        self.synced.remove(&node);
        self.heard.remove(&node);
        self.bounds.remove(&node);
        self.kept.forgotten.insert(node, since);
        if self.kept.forgotten.len() > NODES_MAX {
            let oldest = self.kept.forgotten.iter().min_by_key(|(_, since)| **since).map(|(node, _)| *node);
            oldest.map(|oldest| self.kept.forgotten.remove(&oldest));
        }
        let until = Hlc::at(now.wall_ms().saturating_add(self.pace.allowance_ms));
        self.kept.held_until = self.kept.held_until.max(until);
        (self.dirty, self.announce) = (true, true);
        self.kept.members.remove(&node).is_some()
    }

    /// An exchange with `peer`, which has these bounds, begins: what is held here has been seen from now on.
    pub fn begins(&mut self, peer: NodeId, bounds: &Stamps, now: Hlc) {
        (0..SHARDS).for_each(|shard| self.was_seen(shard, now));
        if self.is_member(peer) {
            self.bounds.insert(peer, *bounds);
        }
    }

    /// An exchange with `peer` brings something of a shard. What changes here is to be stored with it.
    pub fn takes(&mut self, peer: NodeId, shard: usize) {
        let bound = self.bounds.get(&peer).map_or(Hlc::default(), |bounds| bounds[shard]);
        self.was_seen(shard, bound);
    }

    fn was_seen(&mut self, shard: usize, since: Hlc) {
        let unseen = &mut self.kept.unseen[shard];
        // Up to the mark it says nothing.
        if since < *unseen && *unseen > self.kept.marks[shard] {
            *unseen = since;
            self.dirty = true;
        }
    }

    /// We hold all that `peer` held in a shard when it promised `promise` and had `mark`: so up to that we have all that
    /// it has. Whoever has synced all shards with one node is fresh no longer.
    pub fn synced(&mut self, peer: NodeId, shard: usize, promise: Hlc, mark: Hlc) {
        if mark > self.kept.marks[shard] {
            self.kept.marks[shard] = mark;
            (self.dirty, self.announce) = (true, true);
        }
        if self.kept.fresh {
            let shards = self.first_syncs.entry(peer).or_default();
            *shards |= 1 << shard;
            if *shards == u64::MAX {
                (self.kept.fresh, self.dirty) = (false, true);
                self.first_syncs.clear();
            }
        }
        if self.is_member(peer) {
            let stamps = self.synced.entry(peer).or_insert([Hlc::default(); SHARDS]);
            stamps[shard] = stamps[shard].max(promise);
        }
    }

    /// `peer` says how far it is. Its floors are to be adopted.
    pub fn heard(&mut self, peer: NodeId, announcement: &Announcement, now: Hlc) {
        self.met(peer, now);
        for (node, since) in &announcement.forgotten {
            self.forget_since(*node, *since, now);
        }
        for (node, met) in &announcement.members {
            if self.kept.forgotten.get(node).is_none_or(|since| since < met) {
                self.met(*node, *met);
            }
        }
        if self.is_member(peer) {
            self.heard.insert(peer, announcement.marks);
        }
    }

    /// Moves the promise and the marks on. `last`: the greatest stamp given or seen.
    pub fn tick(&mut self, last: Hlc, wall_ms: u64) {
        let promise = self.quantized(last.max(Hlc::at(wall_ms)));
        if promise > self.kept.promise {
            self.kept.promise = promise;
            self.dirty = true;
        }
        // Alone it has nobody to tell it whether others are missing: an old copy of a disk may know nobody.
        if self.kept.members.is_empty() {
            return;
        }
        for shard in 0..SHARDS {
            let peers = self.kept.members.keys();
            let synced =
                peers.map(|peer| self.synced.get(peer).map_or(Hlc::default(), |stamps| stamps[shard]));
            let mark = self.quantized(synced.min().unwrap_or(self.kept.promise));
            if mark > self.kept.marks[shard] {
                self.kept.marks[shard] = mark;
                (self.dirty, self.announce) = (true, true);
            }
        }
    }

    /// The floors this node works out: those of all shards that may rise.
    pub fn worked_out(&self, wall_ms: u64) -> Stamps {
        let youngest = Hlc::at(wall_ms.saturating_sub(self.pace.grace_ms));
        std::array::from_fn(|shard| {
            let members = self.kept.members.keys();
            let heard = members.map(|peer| self.heard.get(peer).map_or(Hlc::default(), |marks| marks[shard]));
            let mark = heard.fold(self.kept.marks[shard], Hlc::min);
            if mark < self.kept.held_until || self.kept.members.is_empty() {
                return self.kept.floors[shard];
            }
            let safe = Hlc::at(mark.wall_ms().saturating_sub(self.pace.allowance_ms));
            self.quantized(safe.min(youngest)).max(self.kept.floors[shard])
        })
    }

    /// The shards whose floor rises to that of another node, or to what this one worked out. `is_empty`: the store holds
    /// nothing.
    pub fn rises(&self, floors: &Stamps, wall_ms: u64, is_empty: bool) -> Result<Vec<usize>, Stale> {
        let mut rising = Vec::new();
        for (shard, floor) in floors.iter().enumerate() {
            // One from the future is a broken clock's.
            if *floor <= self.kept.floors[shard] || floor.check(wall_ms).is_err() {
                continue;
            }
            let mark = self.kept.marks[shard];
            if *floor > mark.max(self.kept.unseen[shard]) && !is_empty {
                return Err(Stale { shard, mark_ms: mark.wall_ms(), floor_ms: floor.wall_ms() });
            }
            rising.push(shard);
        }
        Ok(rising)
    }

    /// Adopts the floor of a shard: see [`Floor::rises`].
    pub fn adopt(&mut self, shard: usize, floor: Hlc) {
        self.kept.floors[shard] = self.kept.floors[shard].max(floor);
        // True of a node that holds nothing, or nothing that others may have deleted; of all others it is true already.
        self.kept.marks[shard] = self.kept.marks[shard].max(floor);
        (self.dirty, self.announce) = (true, true);
    }

    /// The node gave up all it held and has these floors.
    pub fn begin_anew(&mut self, floors: &Stamps) {
        self.synced.clear();
        self.kept.fresh = false;
        self.kept.unseen = [Hlc::default(); SHARDS];
        self.kept.floors = std::array::from_fn(|shard| self.kept.floors[shard].max(floors[shard]));
        self.kept.marks = self.kept.floors;
        (self.dirty, self.announce) = (true, true);
    }

    /// What is to be stored, if it has changed: in one transaction with the changes that belong to it. [`Floor::stored`]
    /// is to follow.
    pub fn row(&self) -> Option<Vec<u8>> {
        self.dirty.then(|| self.kept.encode())
    }

    pub fn stored(&mut self) {
        self.dirty = false;
        self.stored = self.kept.announcement();
    }

    /// What all members are to be told; none: nothing new, or nothing that is stored.
    pub fn announcement(&mut self) -> Option<Announcement> {
        if !std::mem::take(&mut self.announce) {
            return None;
        }
        if self.dirty {
            self.announce = true;
            return None;
        }
        Some(self.state())
    }

    /// For a node that was not connected when it was announced last: what is stored of it.
    pub fn state(&self) -> Announcement {
        self.stored.clone()
    }

    fn quantized(&self, stamp: Hlc) -> Hlc {
        Hlc::at(stamp.wall_ms() / self.pace.quantum_ms * self.pace.quantum_ms)
    }
}

impl Default for Kept {
    fn default() -> Self {
        Self {
            promise: Hlc::default(),
            marks: [Hlc::default(); SHARDS],
            floors: [Hlc::default(); SHARDS],
            held_until: Hlc::default(),
            fresh: true,
            unseen: [Hlc(u64::MAX); SHARDS],
            counter: 0,
            members: BTreeMap::new(),
            forgotten: BTreeMap::new(),
        }
    }
}

impl Kept {
    fn announcement(&self) -> Announcement {
        let (members, forgotten) = (self.members.clone(), self.forgotten.clone());
        Announcement { marks: self.marks, floors: self.floors, members, forgotten }
    }

    /// `"SBF" version u8 │ fresh u8 │ promise u64 │ held until u64 │ counter u64 │ 64 × mark u64 │ 64 × floor u64 │
    /// 64 × unseen u64 │ members │ forgotten │ checksum [16]`, little-endian; nodes are `count u16 │ count × ( node [16] │ stamp u64 )`, sorted.
    fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.push(self.fresh.into());
        for number in [self.promise.0, self.held_until.0, self.counter] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        put_stamps(&mut out, &self.marks);
        put_stamps(&mut out, &self.floors);
        put_stamps(&mut out, &self.unseen);
        put_nodes(&mut out, &self.members);
        put_nodes(&mut out, &self.forgotten);
        let sum = checksum(&out);
        out.extend_from_slice(&sum);
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let (body, sum) = bytes.split_last_chunk().ok_or(RecordError::Checksum)?;
        if checksum(body) != *sum {
            return Err(RecordError::Checksum);
        }
        let mut reader = Reader(body);
        if reader.array()? != MAGIC {
            return Err(RecordError::Version);
        }
        let fresh = reader.byte()? == 1;
        let (promise, held_until, counter) = (Hlc(reader.u64()?), Hlc(reader.u64()?), reader.u64()?);
        let (marks, floors) = (read_stamps(&mut reader)?, read_stamps(&mut reader)?);
        let unseen = read_stamps(&mut reader)?;
        let (members, forgotten) = (read_nodes(&mut reader)?, read_nodes(&mut reader)?);
        require(reader.0.is_empty(), "bytes after the end")?;
        Ok(Self { promise, marks, floors, held_until, fresh, unseen, counter, members, forgotten })
    }
}

impl Announcement {
    /// `version u8 = 1 │ 64 × mark u64 │ 64 × floor u64 │ members │ forgotten`, little-endian, with nodes as in [`Kept::encode`].
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![ANNOUNCEMENT_VERSION];
        put_stamps(&mut out, &self.marks);
        put_stamps(&mut out, &self.floors);
        put_nodes(&mut out, &self.members);
        put_nodes(&mut out, &self.forgotten);
        out
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut reader = Reader(bytes);
        if reader.byte()? != ANNOUNCEMENT_VERSION {
            return Err(RecordError::Version);
        }
        let (marks, floors) = (read_stamps(&mut reader)?, read_stamps(&mut reader)?);
        let (members, forgotten) = (read_nodes(&mut reader)?, read_nodes(&mut reader)?);
        let announcement = Self { marks, floors, members, forgotten };
        require(reader.0.is_empty(), "bytes after the end")?;
        Ok(announcement)
    }
}

pub(super) fn put_stamps(out: &mut Vec<u8>, stamps: &Stamps) {
    stamps.iter().for_each(|stamp| out.extend_from_slice(&stamp.0.to_le_bytes()));
}

pub(super) fn read_stamps(reader: &mut Reader<'_>) -> Result<Stamps, RecordError> {
    let mut stamps = [Hlc::default(); SHARDS];
    for stamp in &mut stamps {
        *stamp = Hlc(reader.u64()?);
    }
    Ok(stamps)
}

fn put_nodes(out: &mut Vec<u8>, nodes: &BTreeMap<NodeId, Hlc>) {
    out.extend_from_slice(&(nodes.len() as u16).to_le_bytes());
    for (node, stamp) in nodes {
        out.extend_from_slice(&node.0);
        out.extend_from_slice(&stamp.0.to_le_bytes());
    }
}

fn read_nodes(reader: &mut Reader<'_>) -> Result<BTreeMap<NodeId, Hlc>, RecordError> {
    let count = usize::from(reader.u16()?);
    require(count <= NODES_MAX, "too many nodes")?;
    let mut nodes = BTreeMap::new();
    for _ in 0..count {
        let (node, stamp) = (NodeId(reader.array()?), Hlc(reader.u64()?));
        require(nodes.last_key_value().is_none_or(|(last, _)| *last < node), "order of nodes")?;
        nodes.insert(node, stamp);
    }
    Ok(nodes)
}

/// "SBF" and the version of the form.
const MAGIC: [u8; 4] = *b"SBF\x02";
const ANNOUNCEMENT_VERSION: u8 = 1;
/// How wrong clocks may be, and how late a message, at most.
const ALLOWANCE_MS_MAX: u64 = 600_000;
/// Quanta of one grace, and the longest one.
const QUANTA: u64 = 24;
const QUANTUM_MS_MAX: u64 = 3_600_000;

const _: () = assert!(NODES_MAX <= u16::MAX as usize);

#[cfg(test)]
mod tests;
