//! Snapshots and deltas coming into use: realms open, change and close; routes are folded.

use super::Shard;
use super::conn::Phase;
use super::realm::Settings;
use crate::feed::{FeedUp, SharedSnapshot};
use common::ids::{RealmId, SnapshotVersion};
use common::metrics::Counter;
use common::snapshot::{Anonymous, Delta};
use common::uri::{UriRule, wamp};
use std::time::Duration;

/// How long the sessions of a removed realm may take to answer GOODBYE.
const REALM_GOODBYE_TIME: Duration = Duration::from_secs(2);

impl Shard {
    pub(super) fn take_snapshot(&mut self, snapshot: &SharedSnapshot) {
        for realm in snapshot.realms() {
            self.open_realm(realm.id, realm.name, realm.strict, realm.uri_strict, realm.anonymous);
        }
        let gone: Vec<u32> = (0..self.realms.len() as u32)
            .filter(|index| {
                let realm = &self.realms[*index as usize];
                realm.settings.is_some() && snapshot.realm(realm.id).is_none()
            })
            .collect();
        for index in gone {
            self.close_realm(index);
        }
        if self.folded.take(snapshot, self.config.epoch, self.config.shards) {
            for realm in &mut self.realms {
                realm.overlay.fold(|shard| snapshot.claims_folded(shard));
                realm.version += 1;
            }
        }
        self.taken(snapshot.version());
    }

    /// A change of realms only. The link thread has checked that it follows what is in use.
    pub(super) fn take_delta(&mut self, delta: &Delta) {
        for realm in &delta.realms_put {
            self.open_realm(realm.id, &realm.name, realm.strict, realm.uri_strict, realm.anonymous);
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

    fn open_realm(&mut self, id: RealmId, name: &str, strict: bool, uri_strict: bool, anonymous: Anonymous) {
        let index = self.realm_of(id) as usize;
        let uri_rule = if uri_strict { UriRule::Strict } else { UriRule::Loose };
        let settings = Settings { name: name.into(), strict, uri_rule, anonymous };
        let realm = &mut self.realms[index];
        if realm.settings.as_ref() != Some(&settings) {
            realm.settings = Some(settings);
            realm.version += 1;
        }
    }

    /// The realm is removed: its sessions are said GOODBYE, nobody joins any more.
    fn close_realm(&mut self, index: u32) {
        let realm = &mut self.realms[index as usize];
        realm.settings = None;
        realm.version += 1;
        if realm.sessions == 0 {
            return;
        }
        for slot in 0..self.conns.len() as u32 {
            let Some(Some(conn)) = self.conns.get(slot as usize) else { continue };
            let inside = conn.session.as_ref().is_some_and(|session| session.realm == index);
            if conn.phase == Phase::Open && inside {
                self.leave(slot, wamp::CLOSE_REALM, "the realm was removed");
                self.set_deadline(slot, REALM_GOODBYE_TIME);
            }
        }
    }
}
