//! The map of one owner as this node holds it, the owner being this node or another. Pure.
//!
//! `(collected, version)` only grows lexicographically within a life. The content is the owner's map at some moment not
//! before `collected`, cut off after `version`. While `version < collected` it is a fragment: it may miss removals of what
//! others still name, so it is not passed on.
//!
//! What was there before a new life of the same data plane, or before a map was taken anew, stays until the new map is
//! whole: a control plane that restarts takes no route away.

use super::message::{About, Head, Life, Part, Pull, entry_bytes};
use super::message::{Entry, MESSAGE_BYTES_MAX, PART_HEAD_BYTES};
use super::table::{SlotId, Table};
use common::ids::{BootEpoch, NodeId};

#[derive(Debug)]
pub(super) struct Owner {
    pub head: Head,
    pub about_at: u64,
    pub about: About,
    /// Membership says that it lives.
    pub live: bool,
    /// It is no longer of the cluster; the rest of its table is just being taken away.
    pub gone: bool,
    pub table: Table,
    /// The next slot to look at, of a walk over all of them.
    pub sweep: Option<SlotId>,
    /// The version to come to before what was kept may go.
    kept_until: u64,
}

/// What became of a part.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Applied {
    /// These slots changed.
    Changed { slots: Vec<SlotId>, reset: bool },
    /// Nothing new in it.
    Known,
    /// Something before it is missing.
    Gap,
    /// The owner has more routes than a node may have.
    Overfull,
}

impl Owner {
    pub fn new(node: NodeId) -> Self {
        Self {
            head: Head {
                owner: node,
                life: Life::default(),
                epoch: None,
                version: 0,
                collected: 0,
                whole_at: 0,
            },
            about_at: 0,
            about: About::default(),
            live: false,
            gone: false,
            table: Table::default(),
            sweep: None,
            kept_until: 0,
        }
    }

    /// Something is known of it.
    pub fn is_begun(&self) -> bool {
        self.head.life > Life::default()
    }

    /// It may be passed on.
    pub fn is_complete(&self) -> bool {
        self.is_begun() && self.head.version > 0 && self.head.version >= self.head.collected
    }

    /// How far this map is told to have come: a fragment is told by its life alone.
    pub fn told(&self) -> Head {
        if self.is_complete() {
            return self.head;
        }
        Head { version: 0, collected: 0, whole_at: 0, ..self.head }
    }

    /// Routes of this owner may be used.
    pub fn is_routed(&self) -> bool {
        self.live && !self.gone && self.head.epoch.is_some()
    }

    /// Begins another life. What was there stays for now if the data plane is the same.
    pub fn begin(&mut self, life: Life, epoch: Option<BootEpoch>) {
        let keep = epoch.is_some() && epoch == self.head.epoch;
        self.head = Head { life, epoch, version: 0, collected: 0, whole_at: 0, ..self.head };
        self.about_at = 0;
        self.kept_until = 0;
        self.table.outdate(keep);
        self.sweep = Some(0);
    }

    /// Forgets everything.
    pub fn drop_map(&mut self) {
        self.begin(Life::default(), None);
        self.about = About::default();
    }

    /// Whether `head`, of a peer, promises anything that is not here.
    pub fn is_behind(&self, head: &Head) -> bool {
        (head.life, head.version) > (self.head.life, self.head.version)
    }

    /// Takes what comes after what is here. The part is of this life. `routes_max`: entries of any kind.
    pub fn apply(&mut self, part: Part, routes_max: usize) -> Applied {
        let Part { head, about_at, about, from, to, entries } = part;
        self.head.whole_at = self.head.whole_at.max(head.whole_at);
        let mut news = false;
        if about_at > self.about_at {
            (self.about_at, self.about) = (about_at, about);
            news = true;
        }
        let mut reset = false;
        if head.collected > self.head.version.max(self.head.collected) {
            // Removals that are not here are no longer told one by one.
            if from != 0 {
                return Applied::Gap;
            }
            self.table.outdate(true);
            self.head.version = 0;
            self.head.collected = head.collected;
            self.kept_until = head.version;
            reset = true;
        } else if head.version < self.head.collected {
            // Its map is older than the removals this one has no marks of.
            return Applied::Known;
        } else if from > self.head.version {
            return Applied::Gap;
        }
        let mut slots = Vec::new();
        if to > self.head.version {
            let held = self.head.version;
            if self.table.len() + entries.len() > routes_max {
                return Applied::Overfull;
            }
            slots = entries
                .into_iter()
                .filter(|entry| entry.version > held)
                .map(|entry| self.table.put(entry))
                .collect();
            self.head.version = to;
            news = true;
        }
        if head.collected > self.head.collected {
            self.head.collected = head.collected;
            self.table.collect(head.collected);
        }
        self.settle();
        if news || reset { Applied::Changed { slots, reset } } else { Applied::Known }
    }

    /// Answers a pull; none: what is here is of no use to the asker.
    pub fn supply(&self, pull: &Pull) -> Option<Part> {
        if !self.is_complete() || self.head.life < pull.life {
            return None;
        }
        let from = if self.head.life > pull.life || self.head.collected > pull.from.max(pull.floor) {
            0
        } else if self.head.version < pull.floor {
            return None;
        } else {
            pull.from.min(self.head.version)
        };
        Some(self.part(from))
    }

    /// The changes after version `from`, as many as a message takes.
    pub fn part(&self, from: u64) -> Part {
        let mut bytes = PART_HEAD_BYTES;
        let mut entries: Vec<Entry> = Vec::new();
        let mut to = self.head.version;
        for held in self.table.after(from) {
            bytes += entry_bytes(&held.key, held.share.is_some());
            if bytes > MESSAGE_BYTES_MAX {
                to = entries.last().map_or(from, |last| last.version);
                break;
            }
            entries.push(held.entry());
        }
        Part { head: self.head, about_at: self.about_at, about: self.about.clone(), from, to, entries }
    }

    /// Lets go of what was kept once the map is whole.
    pub fn settle(&mut self) {
        let whole_at = self.head.whole_at;
        let whole = whole_at > 0 && self.head.version >= whole_at.max(self.kept_until);
        if whole && self.table.keeps() {
            self.table.drop_kept();
            self.sweep = Some(0);
        }
    }

    // The owner itself.

    /// Makes a change of this node's own map.
    pub fn change(&mut self, entry: Entry) -> SlotId {
        self.head.version += 1;
        self.table.put(Entry { version: self.head.version, ..entry })
    }

    /// Numbers another change that is no route.
    pub fn next_version(&mut self) -> u64 {
        self.head.version += 1;
        self.head.version
    }

    /// Drops marks up to `version`, for everybody.
    pub fn collect(&mut self, version: u64) {
        self.head.collected = self.head.collected.max(version.min(self.head.version));
        self.table.collect(self.head.collected);
    }
}
