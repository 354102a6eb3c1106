//! When the data plane is sent what: realm changes at once, in small deltas; routes folded into full snapshots now and
//! then. Sans-IO.
//!
//! ```text
//! receiver_new ─▶ Full ─▶ taken ─┬─ realm changed ───────────────────────────────────────▶ Delta ─▶ taken
//!                                └─ fold_min routes changed, or quiet and worth the work ─▶ Full ─▶ taken
//! ```
//! Invariants: at most one publication is under way; versions strictly grow; a delta follows exactly the version the
//! receiver has said it uses; at most one full snapshot in `min_interval`, and in [`BUILD_SHARE`] times what one takes to
//! build, but for the first to a new receiver.
//!
//! Versions are microseconds of the wall clock, or one more than the last where the clock has not moved on. They grow
//! over restarts of the control plane too: [`Publisher::new`] is given a number that the store has reserved, above all
//! that were used before, so a clock that steps back does no harm.

use common::history::History;
use common::ids::{RealmId, SnapshotVersion};
use common::snapshot::{Delta, Realm};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Bounds of publication.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// `snapshot.min_interval`
    pub min_interval: Duration,
    /// `snapshot.fold_min`: this many changed routes are worth a full snapshot.
    pub fold_min: u64,
}

/// What is to be published now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Publish {
    /// Build a full snapshot of this version, then say [`Publisher::sent`] or [`Publisher::failed`].
    Full {
        version: SnapshotVersion,
    },
    Delta(Delta),
}

/// What happened so far.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counts {
    pub full: u64,
    pub deltas: u64,
    pub refused: u64,
}

#[derive(Debug)]
pub struct Publisher {
    policy: Policy,
    last: SnapshotVersion,
    /// Number of the last change of realms.
    realm_seq: u64,
    /// Changes the receiver may not have yet: number, and the realm or its removal.
    pending: BTreeMap<RealmId, (u64, Option<Realm>)>,
    /// Changes since the last full snapshot, and when the newest of them came.
    changes: u64,
    changed_at: Option<Instant>,
    unsettled_since: Option<Instant>,
    /// The claims have just become complete: the changes are not kept waiting for a quiet moment.
    urgent: bool,
    /// Changes wait for a full snapshot alone: it is not kept waiting as long.
    behind: bool,
    /// No full snapshot is to be sent for now.
    held: bool,
    last_full: Option<Instant>,
    /// What the last full snapshot took to build.
    build_time: Duration,
    receiver: Option<Receiver>,
    counts: Counts,
}

#[derive(Debug)]
struct Receiver {
    since: Instant,
    /// The version all its shards use.
    at: Option<SnapshotVersion>,
    flight: Option<Flight>,
    /// Only a full snapshot helps: nothing was taken yet, or something was refused.
    needs_full: bool,
    refusals: u32,
    retry_at: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Flight {
    version: SnapshotVersion,
    realm_seq: u64,
    /// When it was sent; none while it is being built.
    sent: Option<Instant>,
}

impl Publisher {
    /// No version up to and including `last` is used.
    pub fn new(policy: Policy, last: SnapshotVersion) -> Self {
        Self {
            policy,
            last,
            realm_seq: 0,
            pending: BTreeMap::new(),
            changes: 0,
            changed_at: None,
            unsettled_since: None,
            urgent: false,
            behind: false,
            held: false,
            last_full: None,
            build_time: Duration::ZERO,
            receiver: None,
            counts: Counts::default(),
        }
    }

    /// A data plane has said hello; it gets a full snapshot first.
    pub fn receiver_new(&mut self, now: Instant) {
        self.pending.clear();
        self.receiver = Some(Receiver {
            since: now,
            at: None,
            flight: None,
            needs_full: true,
            refusals: 0,
            retry_at: None,
        });
    }

    pub fn receiver_lost(&mut self) {
        self.pending.clear();
        self.receiver = None;
    }

    /// `count` routes changed, and whether the claims are complete.
    pub fn routes_changed(&mut self, now: Instant, count: u64, settled: bool) {
        if count > 0 {
            self.changes += count;
            self.changed_at = Some(now);
        }
        match (settled, self.unsettled_since) {
            (true, Some(_)) => {
                self.unsettled_since = None;
                self.urgent = self.changes > 0;
            }
            (true, None) => {}
            (false, None) => self.unsettled_since = Some(now),
            (false, Some(_)) => {}
        }
    }

    /// Changes of routes wait for a full snapshot, which nothing else tells of.
    pub fn behind(&mut self) {
        self.behind = true;
    }

    /// While `hold` is true no full snapshot is published.
    pub fn hold(&mut self, hold: bool) {
        self.held = hold;
    }

    pub fn is_held(&self) -> bool {
        self.held
    }

    /// A realm was put or removed. Returns the number of the change, for [`Publisher::taken`].
    pub fn realm_changed(&mut self, now: Instant, id: RealmId, realm: Option<Realm>) -> u64 {
        self.realm_seq += 1;
        self.changes += 1;
        self.changed_at = Some(now);
        if self.receiver.is_some() {
            self.pending.insert(id, (self.realm_seq, realm));
        }
        self.realm_seq
    }

    /// The next publication, if one is due. `wall_us`: the wall clock in microseconds since 1970.
    pub fn poll(&mut self, now: Instant, wall_us: u64) -> Option<Publish> {
        self.expire_flight(now);
        let receiver = self.receiver.as_ref()?;
        if receiver.flight.is_some() {
            return None;
        }
        if let (Some(at), false, false) = (receiver.at, receiver.needs_full, self.pending.is_empty()) {
            if let Some(delta) = self.delta(at, wall_us) {
                self.counts.deltas += 1;
                self.take_off(delta.version, Some(now));
                return Some(Publish::Delta(delta));
            }
            self.receiver.as_mut()?.needs_full = true;
        }
        if self.full_at().is_none_or(|at| at > now) {
            return None;
        }
        let version = self.next_version(wall_us);
        self.counts.full += 1;
        self.changes = 0;
        self.changed_at = None;
        self.urgent = false;
        self.behind = false;
        self.last_full = Some(now);
        self.take_off(version, None);
        Some(Publish::Full { version })
    }

    /// The full snapshot of `version` was sent; it took `build_time` to build.
    pub fn sent(&mut self, now: Instant, version: SnapshotVersion, build_time: Duration) {
        self.build_time = build_time;
        if let Some(flight) = self.flight_of(version) {
            flight.sent = Some(now);
        }
    }

    /// All shards use `version`. Returns the number of the last change of realms in it, when it was under way.
    pub fn taken(&mut self, now: Instant, version: SnapshotVersion) -> Option<u64> {
        self.observe(version);
        let flight = self.receiver.as_ref()?.flight?;
        if flight.version < version {
            // The receiver has a later one from an earlier control plane and will not look at ours.
            self.failed(now, flight.version);
        }
        let flight = *self.flight_of(version)?;
        let receiver = self.receiver.as_mut()?;
        receiver.at = Some(version);
        receiver.flight = None;
        receiver.needs_full = false;
        receiver.refusals = 0;
        receiver.retry_at = None;
        self.pending.retain(|_, (seq, _)| *seq > flight.realm_seq);
        Some(flight.realm_seq)
    }

    /// The receiver did not take `version` and keeps what it had.
    pub fn refused(&mut self, now: Instant, version: SnapshotVersion) {
        self.observe(version);
        self.counts.refused += 1;
        self.failed(now, version);
    }

    /// `version` could not be built or sent.
    pub fn failed(&mut self, now: Instant, version: SnapshotVersion) {
        if self.flight_of(version).is_none() {
            return;
        }
        // The changes it carried are still to be folded in.
        self.changes += 1;
        self.changed_at = Some(now);
        let Some(receiver) = &mut self.receiver else { return };
        receiver.flight = None;
        receiver.needs_full = true;
        receiver.retry_at = Some(now + back_off(receiver.refusals));
        receiver.refusals = receiver.refusals.saturating_add(1);
    }

    /// When [`Publisher::poll`] must be called at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        match self.receiver.as_ref()?.flight {
            Some(flight) => flight.sent.map(|sent| sent + TAKE_MAX),
            None => self.full_at(),
        }
    }

    /// The last version given out.
    pub fn last(&self) -> SnapshotVersion {
        self.last
    }

    /// The version all shards of the data plane use.
    pub fn taken_version(&self) -> Option<SnapshotVersion> {
        self.receiver.as_ref()?.at
    }

    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// When a full snapshot is due, while none is under way.
    fn full_at(&self) -> Option<Instant> {
        let receiver = self.receiver.as_ref().filter(|_| !self.held)?;
        // Many routes take long to fold: a change may cost work in proportion to itself, not to them.
        let share = if self.behind { BUILD_SHARE_BEHIND } else { BUILD_SHARE };
        let pause = self.policy.min_interval.max(self.build_time.saturating_mul(share));
        let interval = self.last_full.map(|last| last + pause);
        if receiver.needs_full {
            let first = receiver.at.is_none() && receiver.refusals == 0;
            let earliest = if first { receiver.retry_at } else { receiver.retry_at.max(interval) };
            return Some(earliest.unwrap_or(receiver.since));
        }
        let changed_at = self.changed_at?;
        let changes = u32::try_from(self.changes).unwrap_or(u32::MAX);
        let wanted = if self.urgent || self.behind || self.changes >= self.policy.fold_min.max(1) {
            changed_at
        } else if self.build_time <= FOLD_TIME_MAX.saturating_mul(changes) {
            changed_at + QUIET
        } else {
            // The shards keep so few changes beside the snapshot for less than folding them in would cost.
            return None;
        };
        let settled = self.unsettled_since.map(|since| since + SETTLE_MAX);
        Some(wanted).max(settled).max(interval)
    }

    fn delta(&mut self, follows: SnapshotVersion, wall_us: u64) -> Option<Delta> {
        let bytes: usize =
            self.pending.values().map(|(_, realm)| REALM_BYTES + realm.as_ref().map_or(0, bytes_of)).sum();
        if bytes > DELTA_BYTES_MAX {
            return None;
        }
        let mut delta = Delta {
            version: self.next_version(wall_us),
            follows,
            realms_put: Vec::new(),
            realms_removed: Vec::new(),
        };
        for (id, (_, realm)) in &self.pending {
            match realm {
                Some(realm) => delta.realms_put.push(realm.clone()),
                None => delta.realms_removed.push(*id),
            }
        }
        Some(delta)
    }

    fn take_off(&mut self, version: SnapshotVersion, sent: Option<Instant>) {
        let realm_seq = self.realm_seq;
        if let Some(receiver) = &mut self.receiver {
            receiver.flight = Some(Flight { version, realm_seq, sent });
        }
    }

    /// A version the receiver never answers for counts as refused.
    fn expire_flight(&mut self, now: Instant) {
        let flight = self.receiver.as_ref().and_then(|receiver| receiver.flight);
        if let Some(Flight { version, sent: Some(sent), .. }) = flight
            && now >= sent + TAKE_MAX
        {
            self.refused(now, version);
        }
    }

    fn flight_of(&mut self, version: SnapshotVersion) -> Option<&mut Flight> {
        self.receiver.as_mut()?.flight.as_mut().filter(|flight| flight.version == version)
    }

    fn next_version(&mut self, wall_us: u64) -> SnapshotVersion {
        self.last = SnapshotVersion(wall_us.max(self.last.0 + 1));
        self.last
    }

    /// A version in use elsewhere is not used again.
    fn observe(&mut self, version: SnapshotVersion) {
        if version.0 < VERSION_SANE_MAX {
            self.last = self.last.max(version);
        }
    }
}

/// Waits after the first, second, ... refusal in a row.
fn back_off(refusals: u32) -> Duration {
    RETRY_MIN.saturating_mul(1 << refusals.min(16)).min(RETRY_MAX)
}

/// Some routes changed and then none for this long: fold them in.
pub const QUIET: Duration = Duration::from_secs(2);
/// Incomplete claims hold a full snapshot back for at most this long.
pub const SETTLE_MAX: Duration = Duration::from_secs(10);
/// Building full snapshots takes at most one part in this many of one CPU's time.
pub const BUILD_SHARE: u32 = 20;
/// The same while changes wait for one that shards are told of in no other way.
pub const BUILD_SHARE_BEHIND: u32 = 3;
/// What building a full snapshot may take for each change that it folds in after a quiet moment.
pub const FOLD_TIME_MAX: Duration = Duration::from_millis(1);
/// A publication not answered for this long counts as refused.
pub const TAKE_MAX: Duration = Duration::from_secs(10);
/// Wait after the first refusal; each further one doubles it.
pub const RETRY_MIN: Duration = Duration::from_millis(250);
pub const RETRY_MAX: Duration = Duration::from_secs(30);
/// Beyond this size a change of realms travels as a full snapshot.
pub const DELTA_BYTES_MAX: usize = 48 * 1_024;
/// What a realm takes in a delta beside its texts, rounded up.
const REALM_BYTES: usize = 64;
/// Versions from here on are taken for damage and do not move ours.
const VERSION_SANE_MAX: u64 = 1 << 62;

const _: () = assert!(DELTA_BYTES_MAX + 4_096 < common::limits::LINK_FRAME_BYTES_MAX);

/// The texts of a realm, its rules, and the rest of its histories.
fn bytes_of(realm: &Realm) -> usize {
    let histories = realm.histories.iter().map(|history| History::HEAD_BYTES + history.uri.len());
    realm.name.len() + realm.rules.len() + histories.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::snapshot::Anonymous;
    use proptest::prelude::*;

    const POLICY: Policy = Policy { min_interval: Duration::from_millis(100), fold_min: 10 };

    fn realm(name: &str) -> Realm {
        Realm::new(name, Anonymous::Nobody)
    }

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// A publisher whose receiver uses version 11.
    fn settled(now: Instant) -> Publisher {
        let mut publisher = Publisher::new(POLICY, SnapshotVersion(10));
        publisher.receiver_new(now);
        assert_eq!(publisher.poll(now, 0), Some(Publish::Full { version: SnapshotVersion(11) }));
        publisher.sent(now, SnapshotVersion(11), ms(1));
        assert_eq!(publisher.taken(now, SnapshotVersion(11)), Some(0));
        publisher
    }

    #[test]
    fn a_new_receiver_gets_a_full_snapshot_at_once() {
        let now = Instant::now();
        let mut publisher = settled(now);
        assert_eq!((publisher.poll(now, 0), publisher.deadline()), (None, None));
        publisher.receiver_lost();
        publisher.receiver_new(now);
        assert_eq!(publisher.poll(now, 5_000), Some(Publish::Full { version: SnapshotVersion(5_000) }));
        assert_eq!(publisher.poll(now, 6_000), None);
    }

    #[test]
    fn a_realm_change_is_a_delta_that_follows_the_version_in_use() {
        let now = Instant::now();
        let mut publisher = settled(now);
        let first = publisher.realm_changed(now, RealmId::of("a"), Some(realm("a")));
        let second = publisher.realm_changed(now, RealmId(3), None);
        let delta = Delta {
            version: SnapshotVersion(12),
            follows: SnapshotVersion(11),
            realms_put: vec![realm("a")],
            realms_removed: vec![RealmId(3)],
        };
        assert_eq!(publisher.poll(now, 0), Some(Publish::Delta(delta)));
        let third = publisher.realm_changed(now, RealmId(4), None);
        assert_eq!(publisher.poll(now, 0), None, "one at a time");
        let taken = publisher.taken(now, SnapshotVersion(12)).unwrap();
        assert!(taken >= first.max(second) && taken < third);
        let next = Delta {
            version: SnapshotVersion(13),
            follows: SnapshotVersion(12),
            realms_put: vec![],
            realms_removed: vec![RealmId(4)],
        };
        assert_eq!(publisher.poll(now, 0), Some(Publish::Delta(next)));
    }

    #[test]
    fn a_put_and_a_removal_of_one_realm_leave_the_last() {
        let now = Instant::now();
        let mut publisher = settled(now);
        publisher.realm_changed(now, RealmId::of("a"), Some(realm("a")));
        publisher.realm_changed(now, RealmId::of("a"), None);
        let Some(Publish::Delta(delta)) = publisher.poll(now, 0) else { panic!("no delta") };
        assert_eq!((delta.realms_put.len(), delta.realms_removed), (0, vec![RealmId::of("a")]));
    }

    #[test]
    fn a_change_too_large_for_a_frame_is_a_full_snapshot() {
        let now = Instant::now();
        let mut publisher = settled(now);
        for n in 0..800 {
            let name = format!("realm{n}");
            publisher.realm_changed(now, RealmId::of(&name), Some(realm(&name)));
        }
        assert_eq!(publisher.poll(now, 0), None, "not before the interval is over");
        assert!(matches!(publisher.poll(now + ms(100), 0), Some(Publish::Full { .. })));
    }

    #[test]
    fn routes_are_folded_when_there_are_enough_or_all_is_quiet() {
        let now = Instant::now();
        let mut publisher = settled(now);
        publisher.routes_changed(now, 3, true);
        assert_eq!(publisher.poll(now + ms(150), 0), None);
        assert_eq!(publisher.deadline(), Some(now + QUIET));
        publisher.routes_changed(now + ms(150), 7, true);
        assert_eq!(publisher.deadline(), Some(now + ms(150)));
        assert!(matches!(publisher.poll(now + ms(150), 0), Some(Publish::Full { .. })));
        publisher.sent(now, publisher.last(), ms(1));
        publisher.taken(now, publisher.last());
        publisher.routes_changed(now + ms(160), 10, true);
        assert_eq!(publisher.deadline(), Some(now + ms(250)), "the interval");
        publisher.poll(now + ms(250), 0).unwrap();
        publisher.taken(now, publisher.last());
        publisher.routes_changed(now + ms(400), 1, true);
        assert_eq!(publisher.poll(now + ms(400) + QUIET - ms(1), 0), None);
        assert!(publisher.poll(now + ms(400) + QUIET, 0).is_some());
    }

    #[test]
    fn incomplete_claims_hold_a_full_snapshot_back_for_a_while() {
        let now = Instant::now();
        let mut publisher = settled(now);
        publisher.routes_changed(now, 100, false);
        assert_eq!(publisher.poll(now + ms(500), 0), None);
        assert_eq!(publisher.deadline(), Some(now + SETTLE_MAX));
        publisher.routes_changed(now + ms(600), 0, true);
        assert!(publisher.poll(now + ms(600), 0).is_some(), "complete: no quiet moment is awaited");
    }

    #[test]
    fn a_refused_snapshot_is_tried_again_with_growing_waits() {
        let now = Instant::now();
        let mut publisher = Publisher::new(POLICY, SnapshotVersion(0));
        publisher.receiver_new(now);
        let mut at = now;
        for wait in [250, 500, 1_000] {
            let Some(Publish::Full { version }) = publisher.poll(at, 0) else { panic!("none due") };
            publisher.sent(at, version, ms(1));
            publisher.refused(at, version);
            assert_eq!(publisher.poll(at + ms(wait - 1), 0), None);
            at += ms(wait);
        }
        assert_eq!(publisher.counts().refused, 3);
        assert_eq!(back_off(40), RETRY_MAX);
    }

    #[test]
    fn a_refused_delta_is_replaced_by_a_full_snapshot() {
        let now = Instant::now();
        let mut publisher = settled(now);
        publisher.realm_changed(now, RealmId::of("a"), Some(realm("a")));
        let Some(Publish::Delta(delta)) = publisher.poll(now, 0) else { panic!("no delta") };
        publisher.refused(now, delta.version);
        assert!(matches!(publisher.poll(now + RETRY_MIN, 0), Some(Publish::Full { .. })));
        assert_eq!(publisher.taken(now, publisher.last()), Some(1));
        assert!(publisher.pending.is_empty());
    }

    #[test]
    fn silence_counts_as_a_refusal() {
        let now = Instant::now();
        let mut publisher = settled(now);
        publisher.realm_changed(now, RealmId(1), None);
        publisher.poll(now, 0).unwrap();
        assert_eq!(publisher.deadline(), Some(now + TAKE_MAX));
        assert_eq!(publisher.poll(now + TAKE_MAX, 0), None);
        assert!(matches!(publisher.poll(now + TAKE_MAX + RETRY_MIN, 0), Some(Publish::Full { .. })));
    }

    #[test]
    fn a_snapshot_that_takes_long_to_build_is_built_rarely() {
        let now = Instant::now();
        let mut publisher = settled(now);
        publisher.routes_changed(now, 10, true);
        let Some(Publish::Full { version }) = publisher.poll(now + ms(100), 0) else { panic!("none due") };
        publisher.sent(now + ms(1_100), version, ms(1_000));
        publisher.taken(now, version);
        publisher.routes_changed(now + ms(1_200), 10, true);
        assert_eq!(publisher.deadline(), Some(now + ms(20_100)));
    }

    #[test]
    fn a_receiver_that_is_ahead_gets_a_later_version() {
        let now = Instant::now();
        let mut publisher = Publisher::new(POLICY, SnapshotVersion(10));
        publisher.receiver_new(now);
        publisher.poll(now, 0).unwrap();
        publisher.sent(now, SnapshotVersion(11), ms(1));
        assert_eq!(publisher.taken(now, SnapshotVersion(500)), None);
        let later = publisher.poll(now + RETRY_MIN, 0);
        assert_eq!(later, Some(Publish::Full { version: SnapshotVersion(501) }));
    }

    proptest! {
        /// Whatever happens: versions grow, one is under way at a time, deltas follow what is in use, and a receiver
        /// that keeps taking ends with every realm change.
        #[test]
        fn versions_grow_and_no_change_is_lost(events in proptest::collection::vec((0u8..7, 0u64..3_000), 1..200)) {
            let mut now = Instant::now();
            let mut publisher = Publisher::new(POLICY, SnapshotVersion(1_000));
            publisher.receiver_new(now);
            let mut realms: BTreeMap<RealmId, Option<Realm>> = BTreeMap::new();
            let mut seen: BTreeMap<RealmId, Option<Realm>> = BTreeMap::new();
            let (mut at, mut last) = (None, SnapshotVersion(1_000));
            let ends = events.len();
            let tail = std::iter::repeat_n((6, 60_000), 4);
            for (index, (event, wait)) in events.into_iter().chain(tail).enumerate() {
                now += ms(wait);
                let id = RealmId(wait % 5);
                match event {
                    0 => {
                        let value = (wait % 2 == 0).then(|| Realm { id, ..realm("x") });
                        publisher.realm_changed(now, id, value.clone());
                        realms.insert(id, value);
                    }
                    1 => publisher.routes_changed(now, wait % 20, wait % 3 > 0),
                    2 => {
                        publisher.receiver_lost();
                        publisher.receiver_new(now);
                        (at, seen) = (None, BTreeMap::new());
                    }
                    _ => {}
                }
                let Some(publish) = publisher.poll(now, wait) else { continue };
                prop_assert_eq!(publisher.poll(now, wait), None);
                let refuse = event == 3 && index < ends;
                let version = match publish {
                    Publish::Full { version } => {
                        publisher.sent(now, version, ms(1));
                        if !refuse {
                            seen = realms.clone();
                        }
                        version
                    }
                    Publish::Delta(delta) => {
                        prop_assert_eq!(Some(delta.follows), at);
                        if !refuse {
                            seen.extend(delta.realms_put.into_iter().map(|realm| (realm.id, Some(realm))));
                            seen.extend(delta.realms_removed.into_iter().map(|id| (id, None)));
                        }
                        delta.version
                    }
                };
                prop_assert!(version > last);
                last = version;
                if refuse {
                    publisher.refused(now, version);
                } else {
                    publisher.taken(now, version);
                    at = Some(version);
                }
            }
            prop_assert_eq!(seen, realms);
        }
    }
}
