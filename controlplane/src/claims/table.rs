//! The routes of one owner: by key, and by the version that changed each last. Pure.
//!
//! Invariants: `log` has exactly the entries of the current tag, each under its own version; an entry whose tag is below
//! `kept_from` counts as absent, whatever it says. So the whole table is outdated in constant time, and who goes over
//! the slots afterwards takes the rest away.
//!
//! ```text
//! index: key ─▶ slot      log: version ─▶ slot      slots: key, version, stamp, tag, present, shown
//! ```

use super::message::{Entry, RouteKey};
use crate::replica::hlc::Hlc;
use common::share::Share;
use std::collections::{BTreeMap, HashMap, VecDeque};

/// Where an entry is; may be used again for another once the entry is gone.
pub(super) type SlotId = u32;

#[derive(Debug)]
pub(super) struct Table {
    slots: Vec<Option<Held>>,
    free: Vec<SlotId>,
    index: HashMap<RouteKey, SlotId>,
    log: BTreeMap<u64, SlotId>,
    /// Versions of entries that went, ascending; some may have come back since.
    absent: VecDeque<(u64, SlotId)>,
    tag: u32,
    kept_from: u32,
    present: usize,
    sum: u64,
}

#[derive(Clone, Debug)]
pub(super) struct Held {
    pub key: RouteKey,
    pub version: u64,
    pub stamp: Hlc,
    tag: u32,
    pub share: Option<Box<Share>>,
    pub present: bool,
    /// For others' routes: the consumer was told that it is there. For own ones: it was told that it lost.
    pub shown: bool,
    /// For others' routes: the consumer was told another share.
    pub news: bool,
    /// It waits to be looked at.
    pub queued: bool,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            index: HashMap::new(),
            log: BTreeMap::new(),
            absent: VecDeque::new(),
            tag: 1,
            kept_from: 1,
            present: 0,
            sum: 0,
        }
    }
}

impl Table {
    pub fn get(&self, slot: SlotId) -> Option<&Held> {
        self.slots.get(slot as usize)?.as_ref()
    }

    pub fn get_mut(&mut self, slot: SlotId) -> Option<&mut Held> {
        self.slots.get_mut(slot as usize)?.as_mut()
    }

    pub fn find(&self, key: &RouteKey) -> Option<SlotId> {
        self.index.get(key).copied()
    }

    /// The route is there, by what is known of the current life or still taken over from the one before.
    pub fn is_held(&self, held: &Held) -> bool {
        held.present && held.tag >= self.kept_from
    }

    /// It is known of the current life.
    pub fn is_current(&self, held: &Held) -> bool {
        held.tag == self.tag
    }

    /// Takes a change. Its version is greater than all before in this tag.
    pub fn put(&mut self, entry: Entry) -> SlotId {
        let Entry { key, version, stamp, present, share } = entry;
        let slot = match self.index.get(&key) {
            Some(slot) => *slot,
            None => self.insert(key),
        };
        self.unlog(slot);
        let tag = self.tag;
        let held = self.slots[slot as usize].as_mut().expect("the index names slots in use");
        (held.version, held.stamp, held.tag) = (version, stamp, tag);
        held.present = present;
        if held.share.as_deref() != share.as_ref() {
            held.share = share.map(Box::new);
            held.news |= held.shown;
        }
        if present {
            self.present += 1;
            self.sum = self.sum.wrapping_add(fingerprint(held));
        } else {
            self.absent.push_back((version, slot));
            self.trim_absent();
        }
        self.log.insert(version, slot);
        slot
    }

    /// Outdates all entries. `keep`: what is there stays until [`Table::drop_kept`] unless it is named again.
    pub fn outdate(&mut self, keep: bool) {
        self.tag += 1;
        if !keep {
            self.kept_from = self.tag;
        }
        self.log.clear();
        self.absent.clear();
        (self.present, self.sum) = (0, 0);
    }

    /// What was not named since the last [`Table::outdate`] is no longer there.
    pub fn drop_kept(&mut self) {
        self.kept_from = self.tag;
    }

    /// Something is taken over from before the last [`Table::outdate`].
    pub fn keeps(&self) -> bool {
        self.kept_from < self.tag
    }

    /// Frees the slot if nobody needs it: it is not there, the consumer knows, and its mark was collected.
    pub fn reap(&mut self, slot: SlotId, collected: u64) {
        let Some(held) = self.get(slot) else { return };
        let marked = self.is_current(held) && held.version > collected;
        if held.shown || held.queued || marked || self.is_held(held) {
            return;
        }
        self.unlog(slot);
        let held = self.slots[slot as usize].take().expect("looked at above");
        self.index.remove(&held.key);
        self.free.push(slot);
        if self.index.is_empty() {
            // A map that has gone gives its memory back.
            (self.slots, self.free, self.index) = <(Vec<_>, Vec<_>, HashMap<_, _>)>::default();
        }
    }

    /// Drops marks up to version `collected`.
    pub fn collect(&mut self, collected: u64) {
        while let Some((version, slot)) = self.absent.front().copied()
            && version <= collected
        {
            self.absent.pop_front();
            self.reap(slot, collected);
        }
    }

    /// The version up to which marks must go so that at most `marks_max` stay; none: there are no more.
    pub fn excess(&self, marks_max: usize) -> Option<u64> {
        let beyond = self.absent.len().checked_sub(marks_max)?.checked_sub(1)?;
        self.absent.get(beyond).map(|(version, _)| *version)
    }

    /// Changes after version `from`, ascending.
    pub fn after(&self, from: u64) -> impl Iterator<Item = &Held> {
        self.log.range(from + 1..).filter_map(|(_, slot)| self.get(*slot))
    }

    /// Slots in use or not are those below this.
    pub fn slots_len(&self) -> SlotId {
        self.slots.len() as SlotId
    }

    pub fn iter(&self) -> impl Iterator<Item = &Held> {
        self.slots.iter().flatten()
    }

    /// Entries of any kind.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Routes of the current life that are there, and their fingerprints' sum.
    pub fn present(&self) -> (usize, u64) {
        (self.present, self.sum)
    }

    fn insert(&mut self, key: RouteKey) -> SlotId {
        let held = Held {
            key: key.clone(),
            version: 0,
            stamp: Hlc::default(),
            // Below all tags: `put` gives it one.
            tag: 0,
            share: None,
            present: false,
            shown: false,
            news: false,
            queued: false,
        };
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = Some(held);
                slot
            }
            None => {
                self.slots.push(Some(held));
                (self.slots.len() - 1) as SlotId
            }
        };
        self.index.insert(key, slot);
        slot
    }

    /// Takes the entry out of the log and the sums.
    fn unlog(&mut self, slot: SlotId) {
        let Some(held) = self.get(slot) else { return };
        if held.tag != self.tag {
            return;
        }
        let (version, present, print) = (held.version, held.present, fingerprint(held));
        self.log.remove(&version);
        if present {
            self.present -= 1;
            self.sum = self.sum.wrapping_sub(print);
        }
    }

    /// Routes that come and go often must not fill the list with marks that mean nothing any more.
    fn trim_absent(&mut self) {
        if self.absent.len() > 2 * self.index.len() + ABSENT_MIN {
            let log = &self.log;
            self.absent.retain(|(version, slot)| log.get(version) == Some(slot));
        }
    }
}

impl Held {
    /// It took the place of those that held the registration before.
    pub fn is_forced(&self) -> bool {
        self.share.as_ref().is_some_and(|share| share.forced)
    }

    pub fn entry(&self) -> Entry {
        Entry {
            key: self.key.clone(),
            version: self.version,
            stamp: self.stamp,
            present: self.present,
            share: self.share.as_deref().copied(),
        }
    }
}

/// Equal on all nodes; for comparing what honest nodes hold.
fn fingerprint(held: &Held) -> u64 {
    let key = &held.key;
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut mix = |word: u64| {
        hash = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash ^= hash >> 29;
    };
    for word in [key.realm.0, held.version, held.stamp.0, key.uri.len() as u64] {
        mix(word);
    }
    mix(u64::from(key.kind as u8) << 8 | u64::from(key.policy as u8));
    if let Some(Share { invoke, forced, callees, first, last }) = held.share.as_deref() {
        let head = u64::from(*forced) << 40 | u64::from(*invoke as u8 + 1) << 32 | u64::from(*callees);
        [head, *first, *last].into_iter().for_each(&mut mix);
    }
    for chunk in key.uri.as_bytes().chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        mix(u64::from_le_bytes(word));
    }
    hash
}

/// Marks are not looked through below this many.
const ABSENT_MIN: usize = 1_024;
