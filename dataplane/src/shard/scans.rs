//! Looking for retained events slice by slice: a pattern whose first component is empty may match any topic there is, and a turn
//! must stay short.
//!
//! What is put meanwhile is found or not; if not, it comes as a live event, since the subscriber is among the receivers before the
//! first slice.

use super::Shard;
use super::replay::published;
use super::retained::{Asking, Kept};
use crate::mesh::{Item, Owner};
use common::ids::Match;
use common::metrics::Counter;
use std::collections::VecDeque;

/// Retained events a shard gives to one subscriber, and their bytes; what is beyond is left out.
const REPLAY_EVENTS_MAX: usize = 10_000;
const REPLAY_BYTES_MAX: usize = 1 << 22;
/// Topics that are looked at in one turn, and the bytes that are found in it, but for one event.
const SLICE_TOPICS_MAX: usize = 1_024;
const SLICE_BYTES_MAX: usize = 1 << 18;
/// Scans of one shard that go on in later turns; what one more would find after its first slice is left out.
const SCANS_MAX: usize = 1_024;

/// A subscriber, the name of its question, and its subscription.
pub(super) type Asker = (Owner, u64, u64);
/// A topic and what it retains.
pub(super) type Found = Vec<(String, Kept)>;

/// A subscriber's question, and how far it is answered.
#[derive(Debug)]
pub(super) struct Scan {
    realm: u32,
    policy: Match,
    uri: Box<str>,
    session: u64,
    authid: Box<str>,
    authrole: Box<str>,
    /// The last topic that was looked at.
    after: Option<Box<str>>,
    events: usize,
    bytes: usize,
}

impl Scan {
    pub fn new((realm, policy, uri): (u32, Match, &str), who: &Asking<'_>) -> Self {
        let Asking { session, authid, authrole } = *who;
        let (uri, authid, authrole) = (uri.into(), authid.into(), authrole.into());
        Self { realm, policy, uri, session, authid, authrole, after: None, events: 0, bytes: 0 }
    }
}

/// Scans that go on in later turns, the next one first.
#[derive(Debug, Default)]
pub(super) struct Scans(VecDeque<(Asker, Scan)>);

impl Scans {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Shard {
    /// Looks at the next topics: what was found, and whether it was the last slice.
    pub(super) fn scan_slice(&mut self, scan: &mut Scan) -> (Found, bool) {
        let who = Asking { session: scan.session, authid: &scan.authid, authrole: &scan.authrole };
        let what = (scan.realm, scan.policy, &*scan.uri);
        let mut found = Found::new();
        let (mut looked_at, mut slice_bytes, mut stopped_at) = (0, 0, None);
        for (topic, kept) in self.retained.matching(what, scan.after.as_deref(), &who, self.now) {
            looked_at += 1;
            if let Some(kept) = kept {
                let bytes = kept.payload().bytes_len();
                slice_bytes += bytes;
                (scan.events, scan.bytes) = (scan.events + 1, scan.bytes + bytes);
                if scan.events > REPLAY_EVENTS_MAX || scan.bytes > REPLAY_BYTES_MAX {
                    self.metrics.count(Counter::LimitReached);
                    return (found, true);
                }
                found.push((topic.to_owned(), kept.clone()));
            }
            if looked_at >= SLICE_TOPICS_MAX || slice_bytes > SLICE_BYTES_MAX {
                stopped_at = Some(Box::from(topic));
                break;
            }
        }
        let done = stopped_at.is_none();
        scan.after = stopped_at;
        (found, done)
    }

    /// Another shard's subscriber asks for what this shard retains.
    pub(super) fn retained_asked(&mut self, asker: Asker, what: (u32, Match, &str), who: &Asking<'_>) {
        let mut scan = Scan::new(what, who);
        let (found, done) = self.scan_slice(&mut scan);
        self.give_found(asker, &found);
        self.go_on_later(asker, scan, done);
    }

    /// The rest is for later turns, or there is none.
    pub(super) fn go_on_later(&mut self, asker: Asker, scan: Scan, done: bool) {
        let has_room = self.retained.scans.0.len() < SCANS_MAX;
        if !done && has_room {
            return self.retained.scans.0.push_back((asker, scan));
        }
        if !done {
            self.metrics.count(Counter::LimitReached);
        }
        let (owner, token, subscription) = asker;
        if owner.shard == self.me {
            self.retained_ended(asker, self.me);
        } else {
            self.mesh(owner.shard).push(Item::RetainedEnd { owner, token, subscription });
        }
    }

    /// One slice of the scan that waits longest.
    pub(super) fn go_on_scans(&mut self) {
        let Some((asker, mut scan)) = self.retained.scans.0.pop_front() else { return };
        let (found, done) = self.scan_slice(&mut scan);
        self.give_found(asker, &found);
        self.go_on_later(asker, scan, done);
    }

    /// Brings what was found to the subscriber's shard.
    pub(super) fn give_found(&mut self, asker: Asker, found: &[(String, Kept)]) {
        let (owner, token, subscription) = asker;
        for (topic, kept) in found {
            if owner.shard == self.me {
                self.retained_came(asker, &published(topic, kept));
                continue;
            }
            let batch = self.mesh(owner.shard);
            let topic = batch.put(topic.as_bytes());
            let extra = batch.put(&kept.extra);
            let payload = batch.put_payload(kept.serializer, kept.payload());
            let publication = kept.publication;
            batch.push(Item::Retained { owner, token, subscription, topic, publication, extra, payload });
        }
    }
}
