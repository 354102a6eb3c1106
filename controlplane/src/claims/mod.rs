//! What every node of the cluster wants: one versioned map of routes an owner, kept equal on all nodes. Sans-IO.
//!
//! An owner is a node whose data plane lives; nobody else changes its map, so maps need no merging and no tombstones. The owner
//! numbers its changes and tells them to all connected peers at once. A receiver takes a change only if it holds
//! everything before it; otherwise it pulls what it lacks, from anybody who has it. Once in `tick` each node tells one
//! other how far each of its maps has come, so losses heal, and whoever is cut off from an owner gets its map by way of
//! others. (Scuttlebutt reconciliation, van Renesse et al. 2008, with chitchat's collection mark.)
//!
//! ```text
//! begin, set, whole, end ─▶ own map ─ Part ─▶ peers          peers ─ Part, Heads, Pull ─▶ others' maps
//! node_up, _down, _left  ─▶ which maps are routed            maps ─▶ Routes, Owner, OwnerGone, Revoke
//! ```
//! Invariants: what [`Output::Routes`] said, folded in order, is what [`Claims::routes`] lists; a route is listed only if its
//! owner lives, and for a procedure only if the owner may be called: of several owners that claim a registration and do not share
//! it in the same way, the one with the least (stamp, node), or the last one that took the place of the others. All nodes that hold equal maps and see the same nodes live list the same.
//!
//! Memory: at most [`NODES_MAX`] maps of [`ROUTES_MAX`] entries. A change costs O(log n); one that ends or begins an
//! owner's life costs O(1) at once and one look at each of its routes in the polls that follow.

mod contest;
mod effect;
mod exchange;
pub mod message;
mod owner;
mod table;
#[cfg(test)]
mod tests;

pub use message::{About, Life, MESSAGE_BYTES_MAX, RELAY_BYTES_MAX, RouteKey, Wanted};

use crate::replica::hlc::Hlc;
use crate::store::record::RecordError;
use bytes::Bytes;
use common::ids::{BootEpoch, Match, NODES_MAX, NodeId, RealmId};
use common::link::RouteChange;
use common::share::Share;
use contest::Contest;
use exchange::Exchange;
use message::Entry;
use owner::Owner;
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};
use table::SlotId;

/// What the machine is made from.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub node: NodeId,
    /// Greater than at any earlier start of this control plane.
    pub epoch: u64,
    /// `cluster.lazy_tick_period`: how often one other node is told how far the maps have come.
    pub tick: Duration,
}

#[derive(Debug)]
pub struct Claims {
    settings: Settings,
    /// The first one is this node.
    owners: Vec<Option<Owner>>,
    by_node: BTreeMap<NodeId, u16>,
    /// No life up to this one is begun: another node has seen it, or it was ours.
    life: Life,
    /// How far the own map was told to everybody.
    told: (Life, u64),
    /// The version of the own map when marks were last collected, and when that was.
    collect: (u64, Option<Instant>),
    contest: Contest,
    dirty: VecDeque<(u16, SlotId)>,
    exchange: Exchange,
    outputs: VecDeque<Output>,
    /// Routes of others that were told to be there.
    shown: usize,
    counts: Counts,
}

/// What the driver must do.
#[derive(Clone, PartialEq, Debug)]
pub enum Output {
    /// A message of at most [`MESSAGE_BYTES_MAX`] for a peer; dropped if the connection has gone meanwhile.
    Send { to: NodeId, bytes: Bytes },
    /// Routes of others that came or went, at most [`ROUTES_PER_OUTPUT`].
    Routes(Vec<RouteChange>),
    /// This is now the data plane of `node`.
    Owner { node: NodeId, epoch: BootEpoch, about: About },
    /// `node` has no data plane, or is no longer of the cluster.
    OwnerGone { node: NodeId },
    /// The registration here loses to another node's. Said once.
    Revoke { realm: RealmId, policy: Match, uri: String },
}

/// What happened so far.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counts {
    /// Changes taken from others' maps.
    pub changes: u64,
    pub messages_sent: u64,
    pub bytes_sent: u64,
    /// What was missing and asked for, and what of that was not answered in time.
    pub pulls: u64,
    pub pulls_expired: u64,
    /// Parts that did not follow what is held.
    pub gaps: u64,
    /// Maps taken anew because removals were no longer known.
    pub resets: u64,
    /// Messages of earlier lives, and parts held already.
    pub stale: u64,
    /// Maps and messages of nodes that are not of the cluster or not connected.
    pub strangers: u64,
    /// Others knew more of this node's map than it does: it began another life.
    pub superseded: u64,
    /// Routes and nodes beyond [`ROUTES_MAX`] and [`NODES_MAX`].
    pub refused: u64,
    pub revoked: u64,
}

/// Bytes that are no message. Nothing was changed; the connection should be closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not a message of claims: {0}")]
pub struct ProtocolError(#[from] RecordError);

/// One map, for operators.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OwnerView<'a> {
    pub node: NodeId,
    pub life: Life,
    pub epoch: Option<BootEpoch>,
    pub about: &'a About,
    pub version: u64,
    pub collected: u64,
    pub live: bool,
    /// It is known to hold everything its data plane claims.
    pub whole: bool,
    pub routes: usize,
}

impl Claims {
    pub fn new(settings: Settings) -> Self {
        let mut own = Owner::new(settings.node);
        own.live = true;
        Self {
            settings,
            owners: vec![Some(own)],
            by_node: BTreeMap::from([(settings.node, OWN)]),
            life: Life { control: settings.epoch, count: 0 },
            told: (Life::default(), 0),
            collect: (0, None),
            contest: Contest::default(),
            dirty: VecDeque::new(),
            exchange: Exchange::default(),
            outputs: VecDeque::new(),
            shown: 0,
            counts: Counts::default(),
        }
    }

    // This node's own map.

    /// This data plane is linked. If it is another one than before, its claims are to be said anew: [`Claims::set`] for each,
    /// then [`Claims::whole`].
    pub fn begin(&mut self, now: Instant, epoch: BootEpoch, about: About) {
        if self.own().head.epoch == Some(epoch) {
            return self.set_about(about);
        }
        self.collect.1.get_or_insert(now);
        self.new_life(Some(epoch));
        self.set_about(about);
    }

    pub fn set_about(&mut self, mut about: About) {
        if about.relay.len() > RELAY_BYTES_MAX {
            about.relay.clear();
        }
        let own = self.own_mut();
        if own.head.epoch.is_none() || (own.about_at > 0 && own.about == about) {
            return;
        }
        own.about = about;
        own.about_at = own.next_version();
    }

    /// A route came or went, or its share changed. `stamp`: the hybrid logical clock, used if it is new. Saying again what is
    /// known changes nothing.
    pub fn set(&mut self, key: RouteKey, wanted: impl Into<Wanted>, stamp: Hlc) {
        let Wanted { wanted: present, share } = wanted.into();
        let share = share.filter(|_| present);
        let own = self.own_mut();
        if own.head.epoch.is_none() {
            return;
        }
        let found = own.table.find(&key).and_then(|slot| own.table.get(slot));
        let held = found.filter(|held| own.table.is_held(held));
        if held.is_some() == present && held.is_none_or(|held| held.share.as_deref() == share.as_ref()) {
            return;
        }
        // What took the place of others did so now; another change of its callees leaves its rank.
        let renewed = |old: Option<&Share>| {
            share.is_some_and(|share| {
                share.forced && old.is_none_or(|old| !old.forced || share.first > old.last)
            })
        };
        let kept = held.filter(|held| present && !renewed(held.share.as_deref())).map(|held| held.stamp);
        if found.is_none() && own.table.len() >= ROUTES_MAX {
            self.counts.refused += 1;
            return;
        }
        let stamp = if present { kept.unwrap_or(stamp) } else { Hlc::default() };
        let slot = own.change(Entry { key, version: 0, stamp, present, share });
        // What comes back after it lost may lose again.
        own.table.get_mut(slot).expect("just put").shown = false;
        self.changed(OWN, slot);
        self.collect_excess();
    }

    /// Everything the data plane claims has been said.
    pub fn whole(&mut self) {
        let own = self.own_mut();
        if own.head.epoch.is_some() && own.head.whole_at == 0 {
            own.head.whole_at = own.next_version();
            own.settle();
        }
    }

    /// The data plane is gone, and with it all it claimed. A control plane that finds none when it starts says so too, after
    /// a while: others may still hold what an earlier one claimed.
    pub fn end(&mut self) {
        if self.own().head.epoch.is_some() || !self.own().is_begun() {
            self.new_life(None);
            self.own_mut().next_version();
            self.own_mut().head.whole_at = 1;
        }
    }

    // Membership.

    /// The node lives: its routes are used. Order against [`Claims::peer_up`] is of no matter.
    pub fn node_up(&mut self, node: NodeId) {
        let new = self.known(node).is_none();
        let Some(id) = self.admit(node) else { return };
        self.set_live(id, true);
        if new {
            self.ask_about(node);
        }
    }

    /// The node does not answer. Its routes are not used until [`Claims::node_up`]; its map is kept.
    pub fn node_down(&mut self, node: NodeId) {
        if let Some(id) = self.known(node) {
            self.set_live(id, false);
        }
    }

    /// The node said good-bye or was forgotten: its map is dropped, and refused until the node is back.
    pub fn node_left(&mut self, node: NodeId) {
        let Some(id) = self.known(node).filter(|id| *id != OWN) else { return };
        let owner = self.owner_mut(id);
        let had = owner.head.epoch.is_some();
        owner.drop_map();
        (owner.live, owner.gone) = (false, true);
        self.exchange.forget(id);
        if had {
            self.outputs.push_back(Output::OwnerGone { node });
        }
    }

    // Time.

    /// What is due is done.
    pub fn timeout(&mut self, now: Instant) {
        self.expire(now);
        self.tick(now);
        let (version, since) = self.collect;
        if since.is_some_and(|since| now >= since + COLLECT_AFTER) {
            self.own_mut().collect(version);
            self.collect = (self.own().head.version, Some(now));
        }
    }

    /// When [`Claims::timeout`] must be called at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        let collect = self.collect.1.map(|since| since + COLLECT_AFTER);
        [self.exchange.deadline(), collect].into_iter().flatten().min()
    }

    /// The next thing to do; to be called until there is none.
    pub fn poll(&mut self) -> Option<Output> {
        if self.outputs.is_empty() {
            self.broadcast();
        }
        if self.outputs.is_empty() {
            self.look();
        }
        self.outputs.pop_front()
    }

    // What is known.

    /// The routes of others that may be used, as said by [`Output::Routes`] so far, in no particular order.
    pub fn routes(&self) -> impl Iterator<Item = (NodeId, &RouteKey)> {
        self.others().flat_map(|owner| {
            owner.table.iter().filter(|held| held.shown).map(|held| (owner.head.owner, &held.key))
        })
    }

    /// How many [`Claims::routes`] lists.
    pub fn routes_len(&self) -> usize {
        self.shown
    }

    /// Registrations here that lose to another node's and are still there: a data plane that is linked anew may have missed
    /// [`Output::Revoke`].
    pub fn revoked(&self) -> impl Iterator<Item = &RouteKey> {
        let own = self.own();
        own.table.iter().filter(|held| held.shown && own.table.is_held(held)).map(|held| &held.key)
    }

    /// The data plane of `node`, as said by [`Output::Owner`].
    pub fn owner_of(&self, node: NodeId) -> Option<(BootEpoch, &About)> {
        let owner = self.owner(self.known(node)?);
        owner.head.epoch.filter(|_| owner.about_at > 0).map(|epoch| (epoch, &owner.about))
    }

    pub fn owners(&self) -> impl Iterator<Item = OwnerView<'_>> {
        self.by_node.values().map(|id| self.owner(*id)).filter(|owner| !owner.gone).map(|owner| OwnerView {
            node: owner.head.owner,
            life: owner.head.life,
            epoch: owner.head.epoch,
            about: &owner.about,
            version: owner.head.version,
            collected: owner.head.collected,
            live: owner.live,
            whole: owner.head.whole_at > 0 && owner.head.version >= owner.head.whole_at,
            routes: owner.table.present().0,
        })
    }

    /// One number over the maps of all live nodes: nodes that agree have the same.
    pub fn digest(&self) -> u64 {
        let mut digest = 0u64;
        for owner in self.by_node.values().map(|id| self.owner(*id)).filter(|owner| owner.is_routed()) {
            let (head, (present, sum)) = (&owner.head, owner.table.present());
            let node = u128::from_le_bytes(head.owner.0);
            let parts = [
                node as u64,
                (node >> 64) as u64,
                head.life.control,
                u64::from(head.life.count),
                head.version,
                present as u64,
                sum,
            ];
            for part in parts {
                digest = (digest ^ part).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31);
            }
        }
        digest
    }

    pub fn counts(&self) -> Counts {
        self.counts
    }

    // Owners.

    fn own(&self) -> &Owner {
        self.owner(OWN)
    }

    fn own_mut(&mut self) -> &mut Owner {
        self.owner_mut(OWN)
    }

    fn owner(&self, id: u16) -> &Owner {
        self.owners[usize::from(id)].as_ref().expect("numbers of owners are taken from by_node")
    }

    fn owner_mut(&mut self, id: u16) -> &mut Owner {
        self.owners[usize::from(id)].as_mut().expect("numbers of owners are taken from by_node")
    }

    fn others(&self) -> impl Iterator<Item = &Owner> {
        self.owners[1..].iter().flatten()
    }

    /// The number of a node that is of the cluster.
    fn known(&self, node: NodeId) -> Option<u16> {
        self.by_node.get(&node).copied().filter(|id| !self.owner(*id).gone)
    }

    /// From now on the node is of the cluster.
    fn admit(&mut self, node: NodeId) -> Option<u16> {
        if let Some(id) = self.by_node.get(&node).copied() {
            self.owner_mut(id).gone = false;
            return Some(id);
        }
        if self.by_node.len() >= NODES_MAX {
            self.counts.refused += 1;
            return None;
        }
        let id = match self.owners.iter().position(Option::is_none) {
            Some(id) => id,
            None => {
                self.owners.push(None);
                self.owners.len() - 1
            }
        };
        self.owners[id] = Some(Owner::new(node));
        self.by_node.insert(node, id as u16);
        Some(id as u16)
    }

    fn set_live(&mut self, id: u16, live: bool) {
        let owner = self.owner_mut(id);
        if id != OWN && owner.live != live {
            owner.live = live;
            owner.sweep = Some(0);
        }
    }

    /// Begins another life of the own map, above all that were.
    fn new_life(&mut self, epoch: Option<BootEpoch>) {
        self.life = Life { control: self.life.control, count: self.life.count.saturating_add(1) };
        let life = self.life;
        let own = self.own_mut();
        // The own table is not taken over from an earlier life: the data plane says it anew.
        own.head.epoch = None;
        own.begin(life, epoch);
        self.collect.0 = 0;
    }

    /// Says the own map once more, in a life above all that others know of.
    fn begin_again(&mut self) {
        let own = self.own();
        let (epoch, about, whole) = (own.head.epoch, own.about.clone(), own.head.whole_at > 0);
        let entries: Vec<Entry> =
            own.table.after(0).filter(|held| held.present).map(|held| held.entry()).collect();
        self.new_life(epoch);
        if epoch.is_none() {
            self.own_mut().head.whole_at = 1;
            self.own_mut().next_version();
            return;
        }
        self.set_about(about);
        for entry in entries {
            let slot = self.own_mut().change(entry);
            self.changed(OWN, slot);
        }
        if whole {
            self.whole();
        }
    }

    /// Keeps the number of marks within bounds: beyond it, taking the whole map anew is cheaper for whoever missed them.
    fn collect_excess(&mut self) {
        let own = self.own_mut();
        let marks_max = own.table.present().0.max(MARKS_MIN);
        if let Some(version) = own.table.excess(marks_max) {
            own.collect(version);
        }
    }
}

/// The number of this node's own map.
const OWN: u16 = 0;
/// Most routes of an owner, marks of routes that went included.
pub const ROUTES_MAX: usize = 1 << 22;
/// Most changes of one [`Output::Routes`]: with the longest URIs they are far from filling memory.
pub const ROUTES_PER_OUTPUT: usize = 512;
/// Marks are kept for this long at least, unless there are more than [`MARKS_MIN`] and more than routes.
pub const COLLECT_AFTER: Duration = Duration::from_secs(600);
pub const MARKS_MIN: usize = 16_384;

const _: () = assert!(NODES_MAX < u16::MAX as usize);
const _: () = assert!(ROUTES_MAX < SlotId::MAX as usize);
