//! Snapshots and deltas coming into use: realms open, change and close; routes are folded.

use super::Shard;
use super::endings::{Ending, Whom};
use super::overlay::Sweep;
use super::realm::Settings;
use crate::feed::{FeedUp, SharedSnapshot};
use common::history::History;
use common::ids::SnapshotVersion;
use common::metrics::Counter;
use common::snapshot::{Delta, RealmView};
use common::uri::{UriRule, wamp};

/// Realms opened or closed, and places of the overlays looked at, in one turn.
const SLICE_REALMS_MAX: usize = 1_024;
const SLICE_PLACES_MAX: usize = 2_048;
/// What a realm without anything to sweep counts for, in places.
const REALM_PLACES: usize = 2;

/// Work that a snapshot leaves and that is done in slices, one a turn, so that no turn is long.
#[derive(Debug, Default)]
pub(super) struct Upkeep {
    taking: Option<Taking>,
    /// The realm whose overlay is swept, and how far. None: nothing is left to sweep.
    sweep: Option<(usize, Sweep)>,
}

/// A snapshot whose routes are in use, and whose realms are being opened and closed.
#[derive(Debug)]
struct Taking {
    snapshot: SharedSnapshot,
    /// Realms of the snapshot that are open.
    opened: usize,
    /// Realms of this shard that were looked at.
    checked: usize,
}

impl Shard {
    pub(super) fn take_snapshot(&mut self, snapshot: &SharedSnapshot) {
        let process = (self.config.epoch, self.config.shards);
        if self.folded.take(snapshot, process, &mut self.nodes, self.changes.span()) {
            self.generation += 1;
            self.start_sweep();
        }
        self.upkeep.taking = Some(Taking { snapshot: snapshot.clone(), opened: 0, checked: 0 });
        self.go_on_taking();
        // Connections are accepted from the first snapshot on, and must find their realm.
        while self.version == SnapshotVersion::default() && self.upkeep.taking.is_some() {
            self.go_on_taking();
        }
        self.go_on_sweep();
    }

    /// True when a slice of work waits.
    pub(super) fn has_upkeep(&self) -> bool {
        self.upkeep.taking.is_some()
            || self.upkeep.sweep.is_some()
            || !self.retained.scans.is_empty()
            || !self.searches.is_empty()
            || self.histories.owes()
            || !self.orphans.is_empty()
    }

    pub(super) fn go_on_upkeep(&mut self) {
        self.go_on_scans();
        self.histories.go_on_dropping();
        if self.upkeep.taking.is_some() {
            self.go_on_taking();
        } else {
            self.go_on_sweep();
        }
    }

    fn go_on_taking(&mut self) {
        let Some(mut taking) = self.upkeep.taking.take() else { return };
        let snapshot = taking.snapshot.clone();
        let mut left = SLICE_REALMS_MAX;
        for realm in snapshot.realms_from(taking.opened).take(left) {
            self.open_realm(&realm, snapshot.histories(realm.id).collect());
            taking.opened += 1;
            left -= 1;
        }
        let end = self.realms.len().min(taking.checked + left);
        for index in taking.checked..end {
            let realm = &self.realms[index];
            if realm.settings.is_some() && snapshot.realm(realm.id).is_none() {
                self.close_realm(index as u32);
            }
        }
        taking.checked = end;
        if left > 0 && end == self.realms.len() {
            self.taken(snapshot.version());
        } else {
            self.upkeep.taking = Some(taking);
        }
    }

    /// Words of the overlays have lost their weight: they are to be swept up.
    pub(super) fn start_sweep(&mut self) {
        self.upkeep.sweep = Some((0, Sweep::default()));
    }

    fn go_on_sweep(&mut self) {
        let Some((mut index, mut sweep)) = self.upkeep.sweep.take() else { return };
        let mut left = SLICE_PLACES_MAX;
        while let Some(realm) = self.realms.get_mut(index) {
            let looked_at = realm.overlay.sweep(&mut sweep, &self.folded, left);
            // Looking at a realm costs as much as some places, even when there is nothing.
            left = left.saturating_sub(looked_at.max(REALM_PLACES));
            if sweep.is_done() {
                (index, sweep) = (index + 1, Sweep::default());
            }
            if left == 0 {
                self.upkeep.sweep = Some((index, sweep));
                return;
            }
        }
    }

    /// A change of realms only. The link thread has checked that it follows what is in use.
    pub(super) fn take_delta(&mut self, delta: &Delta) {
        while self.upkeep.taking.is_some() {
            self.go_on_taking();
        }
        for realm in &delta.realms_put {
            self.open_realm(&realm.view(), realm.histories.clone());
        }
        for id in &delta.realms_removed {
            if let Some(index) = self.realm_index.get(id).copied() {
                self.close_realm(index);
            }
        }
        self.taken(delta.version);
    }

    fn taken(&mut self, version: SnapshotVersion) {
        self.version = version;
        self.metrics.count(Counter::SnapshotsTaken);
        self.feed_up.retain(|up| !matches!(up, FeedUp::Taken { .. }));
        self.feed_up.push_back(FeedUp::Taken { shard: self.me, version });
    }

    fn open_realm(&mut self, realm: &RealmView<'_>, histories: Vec<History>) {
        let RealmView { id, name, strict, uri_strict, anonymous, rules } = *realm;
        let index = self.realm_of(id) as usize;
        let uri_rule = if uri_strict { UriRule::Strict } else { UriRule::Loose };
        let realm = &mut self.realms[index];
        let same = |old: &Settings| {
            *old.name == *name
                && (old.strict, old.uri_rule, old.anonymous) == (strict, uri_rule, anonymous)
                && old.histories == histories
        };
        if !realm.settings.as_ref().is_some_and(same) {
            realm.settings = Some(Settings { name: name.into(), strict, uri_rule, anonymous, histories });
            realm.version += 1;
            self.keep_histories(index as u32);
        }
        self.realms[index].rules.set(rules, anonymous);
    }

    /// The realm is removed: its sessions are said GOODBYE, nobody joins any more.
    fn close_realm(&mut self, index: u32) {
        self.retained.forget(index);
        let realm = &mut self.realms[index as usize];
        realm.settings = None;
        realm.version += 1;
        self.keep_histories(index);
        if self.realms[index as usize].sessions == 0 {
            return;
        }
        let ending = Ending {
            realm: index,
            whom: Whom::All,
            except: 0,
            reason: wamp::CLOSE_REALM.to_owned(),
            message: "the realm was removed".to_owned(),
            silent: true,
            counter: None,
            limit: 0,
            asker: None,
        };
        self.end_sessions(ending);
    }
}
