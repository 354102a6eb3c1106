//! What the data plane of this node claims: who has joined, and which shards want what is sent to a URI.
//!
//! Claims of a shard are numbered. Every claim is an idempotent set operation, so a claim may be applied twice, and the
//! table may run ahead of `folded`, the last claim up to which nothing is missing: whoever holds the claims after
//! `folded` and applies them to the table reaches the same state as from the table at `folded`.
//!
//! A resync replaces a shard's set: it marks what is named between reset and end and then drops the rest. Live claims
//! come in between and count as named.
//! ```text
//! Claims 1..k  │  (lost)  │  Claims m.. ─▶ applied, folded stays k  │  Reset Part Claims Part End{n} ─▶ folded n
//! ```
//! Whether the node wants a route at all, whichever of its shards, is what other nodes are told ([`LocalChange`]).
//!
//! Invariants: a route without a shard is not kept; `sessions_by_realm` counts exactly the sessions of all shards. The
//! number of claims is bounded by the data plane's limits on sessions, subscriptions and registrations.

use crate::table::{Key, Row, Rows, Table};
use common::ids::{BootEpoch, Match, RealmId, RouteKind, SHARDS_MAX, ShardId, ShardSet};
use common::link::Claim;
use common::share::Share;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

/// Claims of one data-plane process.
#[derive(Debug, Default)]
pub struct Registry {
    epoch: Option<BootEpoch>,
    shards: Vec<Shard>,
    routes: Table<Holders>,
    /// Changes for other nodes that were not taken yet; none: nobody wants them.
    local: Option<Vec<LocalChange>>,
    sessions_by_realm: BTreeMap<RealmId, u64>,
    counts: Counts,
}

/// What happened so far, over all epochs.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counts {
    pub claims: u64,
    /// Frames that did not follow the one before; claims between them were lost.
    pub gaps: u64,
    pub resyncs: u64,
}

/// A frame that cannot be. Nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ClaimError {
    #[error("shard {} of {shards}", shard.0)]
    NoSuchShard { shard: ShardId, shards: usize },
    #[error("{shards} shards, allowed: 1 to {SHARDS_MAX}")]
    Shards { shards: usize },
    #[error("claim numbers start at 1 and end below 2^64, found {claims} from {first_seq}")]
    Sequence { first_seq: u64, claims: usize },
    #[error("part or end of a claim set of shard {} that was not begun", shard.0)]
    NoResync { shard: ShardId },
}

/// What other nodes must learn of this node's routes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LocalChange {
    /// A data plane with this epoch is linked. `known`: what was said of it before goes on; else it begins with nothing.
    Linked { epoch: BootEpoch, known: bool },
    /// The link to the data plane is gone. It may come back, with its routes.
    Lost,
    /// A shard of the node is the first to want the route, or the last one no longer does.
    /// Also when only its share has changed.
    Route {
        realm: RealmId,
        kind: RouteKind,
        policy: Match,
        uri: Arc<str>,
        wanted: bool,
        share: Option<Share>,
    },
}

/// Which shards want a route.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Holders {
    pub shards: ShardSet,
    /// Those of `shards` that named the route since their resync began; of no meaning for the others.
    named: ShardSet,
    /// Of a procedure whose callees share it, as said last.
    share: Option<Arc<Share>>,
}

#[derive(Debug, Default)]
struct Shard {
    /// The last claim up to which nothing is missing.
    folded: u64,
    /// Claims after `folded` are known to be missing.
    gap: bool,
    sessions: HashMap<u64, RealmId>,
    /// During a resync: the sessions named since it began.
    named: Option<HashSet<u64>>,
}

impl Registry {
    /// A data plane with `shards` shards has said hello. Claims of another epoch are forgotten, those of the same epoch
    /// stay. True when the epoch is new.
    pub fn begin(&mut self, epoch: BootEpoch, shards: usize) -> Result<bool, ClaimError> {
        if shards == 0 || shards > SHARDS_MAX {
            return Err(ClaimError::Shards { shards });
        }
        if self.epoch == Some(epoch) && self.shards.len() == shards {
            // What was under way when the link broke will not go on.
            for shard in &mut self.shards {
                shard.named = None;
            }
            return Ok(false);
        }
        *self = Self {
            epoch: Some(epoch),
            shards: (0..shards).map(|_| Shard::default()).collect(),
            counts: self.counts,
            local: self.local.take(),
            ..Self::default()
        };
        Ok(true)
    }

    /// Applies claims `first_seq`, `first_seq + 1`, ... and returns how many routes changed.
    pub fn claims(&mut self, shard: ShardId, first_seq: u64, claims: Vec<Claim>) -> Result<u64, ClaimError> {
        let state = self.shard(shard)?;
        let Some(end) = first_seq.checked_add(claims.len() as u64).filter(|_| first_seq > 0) else {
            return Err(ClaimError::Sequence { first_seq, claims: claims.len() });
        };
        let mut skip = 0;
        if first_seq <= state.folded + 1 {
            skip = (state.folded + 1 - first_seq) as usize;
            state.folded = state.folded.max(end - 1);
        } else if !state.gap {
            state.gap = true;
            self.counts.gaps += 1;
        }
        let mut changes = 0;
        for claim in claims.into_iter().skip(skip) {
            changes += u64::from(self.apply(shard, claim));
        }
        Ok(changes)
    }

    /// The shard begins to name its whole set.
    pub fn reset(&mut self, shard: ShardId) -> Result<(), ClaimError> {
        self.shard(shard)?.named = Some(HashSet::new());
        self.routes.sweep_all(
            |holders| holders.named.contains(shard),
            |row| {
                row.value.named = row.value.named.without(shard);
                true
            },
        );
        self.counts.resyncs += 1;
        Ok(())
    }

    /// A part of the set begun by [`Registry::reset`]; returns how many routes changed.
    pub fn part(&mut self, shard: ShardId, claims: Vec<Claim>) -> Result<u64, ClaimError> {
        if self.shard(shard)?.named.is_none() {
            return Err(ClaimError::NoResync { shard });
        }
        let mut changes = 0;
        for claim in claims {
            changes += u64::from(self.apply(shard, claim));
        }
        Ok(changes)
    }

    /// The set is whole and stands for everything up to claim `seq`: what was not named goes. Returns how many routes
    /// changed.
    pub fn end(&mut self, shard: ShardId, seq: u64) -> Result<u64, ClaimError> {
        let state = self.shard(shard)?;
        let Some(named) = state.named.take() else { return Err(ClaimError::NoResync { shard }) };
        state.folded = state.folded.max(seq);
        state.gap = false;
        let mut gone = Vec::new();
        state.sessions.retain(|session, realm| {
            let keep = named.contains(session);
            if !keep {
                gone.push(*realm);
            }
            keep
        });
        for realm in gone {
            self.count_session(realm, false);
        }
        let mut changes = 0;
        let local = &mut self.local;
        self.routes.sweep_all(
            |holders| holders.shards.contains(shard) && !holders.named.contains(shard),
            |row| {
                changes += 1;
                row.value.shards = row.value.shards.without(shard);
                let wanted = !row.value.shards.is_empty();
                if !wanted {
                    note(local, row, false);
                }
                wanted
            },
        );
        Ok(changes)
    }

    pub fn epoch(&self) -> Option<BootEpoch> {
        self.epoch
    }

    /// For each shard, the last claim that is folded into [`Registry::routes`].
    pub fn claims_folded(&self) -> Vec<u64> {
        self.shards.iter().map(|shard| shard.folded).collect()
    }

    /// True when the claims of no shard are known to be incomplete or are just being named again.
    pub fn is_settled(&self) -> bool {
        self.shards.iter().all(|shard| !shard.gap && shard.named.is_none())
    }

    /// The routes as they are now, for a snapshot.
    pub fn share(&self) -> Rows<Holders> {
        self.routes.share()
    }

    /// From here on, changes for other nodes are kept until [`Registry::take_local`] takes them; first come all routes there
    /// are.
    pub fn watch_local(&mut self) {
        let mut local = Some(Vec::new());
        for row in self.routes.rows() {
            note(&mut local, row, true);
        }
        self.local = local;
    }

    /// The changes for other nodes since the last call, in order. They wait without a bound but that of the claims: whoever
    /// watches takes them after each event.
    pub fn take_local(&mut self) -> Vec<LocalChange> {
        self.local.as_mut().map(std::mem::take).unwrap_or_default()
    }

    pub(crate) fn note_local(&mut self, change: LocalChange) {
        if let Some(local) = &mut self.local {
            local.push(change);
        }
    }

    pub fn routes_len(&self) -> usize {
        self.routes.len()
    }

    pub fn sessions_len(&self) -> usize {
        self.shards.iter().map(|shard| shard.sessions.len()).sum()
    }

    /// Sessions by realm; realms without sessions are left out.
    pub fn sessions_by_realm(&self) -> &BTreeMap<RealmId, u64> {
        &self.sessions_by_realm
    }

    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// As [`Registry::note_local`], before all others.
    pub(crate) fn note_local_first(&mut self, change: LocalChange) {
        if let Some(local) = &mut self.local {
            local.insert(0, change);
        }
    }

    fn shard(&mut self, shard: ShardId) -> Result<&mut Shard, ClaimError> {
        let shards = self.shards.len();
        self.shards.get_mut(shard.index()).ok_or(ClaimError::NoSuchShard { shard, shards })
    }

    /// True when a route changed. `shard` exists.
    fn apply(&mut self, shard: ShardId, claim: Claim) -> bool {
        self.counts.claims += 1;
        let state = &mut self.shards[shard.index()];
        match claim {
            Claim::Joined { session, realm } => {
                if let Some(named) = &mut state.named {
                    named.insert(session);
                }
                let before = state.sessions.insert(session, realm);
                if before != Some(realm) {
                    self.count_session(realm, true);
                    if let Some(before) = before {
                        self.count_session(before, false);
                    }
                }
                false
            }
            Claim::Left { session } => {
                if let Some(named) = &mut state.named {
                    named.remove(&session);
                }
                if let Some(realm) = state.sessions.remove(&session) {
                    self.count_session(realm, false);
                }
                false
            }
            Claim::Routed { realm, kind, policy, uri } => {
                self.routed(shard, Key { realm, kind, policy, uri: &uri }, None)
            }
            Claim::Shared { realm, policy, uri, share } => {
                let key = Key { realm, kind: RouteKind::Procedure, policy, uri: &uri };
                self.routed(shard, key, Some(share))
            }
            Claim::Unrouted { realm, kind, policy, uri } => {
                let mut changed = false;
                let mut last = false;
                self.routes.update(Key { realm, kind, policy, uri: &uri }, |holders| {
                    changed = holders.shards.contains(shard);
                    holders.shards = holders.shards.without(shard);
                    holders.named = holders.named.without(shard);
                    last = holders.shards.is_empty();
                    !last
                });
                if last {
                    let uri = uri.into();
                    let (wanted, share) = (false, None);
                    self.note_local(LocalChange::Route { realm, kind, policy, uri, wanted, share });
                }
                changed
            }
        }
    }

    /// A shard that exists wants a route. True when it did not.
    fn routed(&mut self, shard: ShardId, key: Key<'_>, share: Option<Share>) -> bool {
        let resyncs = self.shards[shard.index()].named.is_some();
        let is_known =
            |holders: &Holders| holders.shards.contains(shard) && holders.share.as_deref() == share.as_ref();
        if !resyncs && self.routes.get(key).is_some_and(is_known) {
            return false;
        }
        let holders = self.routes.get_or_insert(key, Holders::default);
        let (first, changed) = (holders.shards.is_empty(), !holders.shards.contains(shard));
        let news = first || holders.share.as_deref() != share.as_ref();
        holders.shards = holders.shards.with(shard);
        holders.named = holders.named.with(shard);
        if news {
            holders.share = share.map(Arc::new);
            let Key { realm, kind, policy, uri } = key;
            let uri = uri.into();
            self.note_local(LocalChange::Route { realm, kind, policy, uri, wanted: true, share });
        }
        changed
    }

    fn count_session(&mut self, realm: RealmId, joined: bool) {
        let count = self.sessions_by_realm.entry(realm).or_default();
        *count = if joined { *count + 1 } else { count.saturating_sub(1) };
        if *count == 0 {
            self.sessions_by_realm.remove(&realm);
        }
    }
}

fn note(local: &mut Option<Vec<LocalChange>>, row: &Row<Holders>, wanted: bool) {
    if let Some(local) = local {
        local.push(LocalChange::Route {
            realm: row.realm,
            kind: row.kind,
            policy: row.policy,
            uri: Arc::clone(&row.uri),
            wanted,
            share: row.value.share.as_deref().copied().filter(|_| wanted),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const REALM: RealmId = RealmId(7);
    const S0: ShardId = ShardId(0);
    const S1: ShardId = ShardId(1);

    fn routed(uri: &str) -> Claim {
        Claim::Routed { realm: REALM, kind: RouteKind::Topic, policy: Match::Exact, uri: uri.into() }
    }

    fn unrouted(uri: &str) -> Claim {
        Claim::Unrouted { realm: REALM, kind: RouteKind::Topic, policy: Match::Exact, uri: uri.into() }
    }

    fn joined(session: u64) -> Claim {
        Claim::Joined { session, realm: REALM }
    }

    fn registry() -> Registry {
        let mut registry = Registry::default();
        assert_eq!(registry.begin(BootEpoch(1), 2), Ok(true));
        registry
    }

    fn table(registry: &Registry) -> BTreeMap<String, u128> {
        registry.routes.rows().map(|row| (row.uri.to_string(), row.value.shards.0)).collect()
    }

    #[test]
    fn routes_of_two_shards_merge_into_one_set() {
        let mut registry = registry();
        assert_eq!(registry.claims(S0, 1, vec![routed("a"), joined(1)]), Ok(1));
        assert_eq!(registry.claims(S1, 1, vec![routed("a"), routed("b")]), Ok(2));
        assert_eq!(table(&registry), BTreeMap::from([("a".into(), 3), ("b".into(), 2)]));
        assert_eq!(registry.claims_folded(), [2, 2]);
        assert_eq!(registry.claims(S1, 3, vec![unrouted("a"), unrouted("b")]), Ok(2));
        assert_eq!(table(&registry), BTreeMap::from([("a".into(), 1)]));
        assert_eq!(registry.sessions_by_realm(), &BTreeMap::from([(REALM, 1)]));
    }

    #[test]
    fn a_repeated_frame_is_applied_once() {
        let mut registry = registry();
        registry.claims(S0, 1, vec![routed("a"), unrouted("a"), routed("b")]).unwrap();
        assert_eq!(registry.claims(S0, 1, vec![routed("a"), unrouted("a"), routed("b")]), Ok(0));
        assert_eq!(registry.claims(S0, 3, vec![routed("b"), routed("c")]), Ok(1));
        assert_eq!(registry.claims_folded(), [4, 0]);
    }

    #[test]
    fn a_gap_stops_folding_until_a_resync_ends() {
        let mut registry = registry();
        registry.claims(S0, 1, vec![routed("a"), joined(1)]).unwrap();
        registry.claims(S0, 9, vec![routed("c")]).unwrap();
        assert_eq!((registry.claims_folded()[0], registry.is_settled()), (2, false));
        registry.reset(S0).unwrap();
        registry.part(S0, vec![routed("c"), joined(2)]).unwrap();
        registry.claims(S0, 10, vec![routed("d")]).unwrap();
        assert_eq!(registry.end(S0, 10), Ok(1));
        assert_eq!(table(&registry).into_keys().collect::<Vec<_>>(), ["c", "d"]);
        assert_eq!((registry.claims_folded()[0], registry.is_settled()), (10, true));
        assert_eq!((registry.sessions_len(), registry.counts().gaps), (1, 1));
    }

    #[test]
    fn another_epoch_forgets_and_the_same_epoch_keeps() {
        let mut registry = registry();
        registry.claims(S0, 1, vec![routed("a"), joined(1)]).unwrap();
        assert_eq!(registry.begin(BootEpoch(1), 2), Ok(false));
        assert_eq!(registry.routes_len(), 1);
        assert_eq!(registry.begin(BootEpoch(2), 2), Ok(true));
        assert_eq!((registry.routes_len(), registry.sessions_len()), (0, 0));
        assert!(registry.sessions_by_realm().is_empty());
        assert_eq!(registry.claims_folded(), [0, 0]);
    }

    #[test]
    fn impossible_frames_are_errors_and_change_nothing() {
        let mut registry = registry();
        let two = ShardId(2);
        assert_eq!(registry.claims(two, 1, vec![]), Err(ClaimError::NoSuchShard { shard: two, shards: 2 }));
        assert_eq!(registry.claims(S0, 0, vec![]), Err(ClaimError::Sequence { first_seq: 0, claims: 0 }));
        assert!(registry.claims(S0, u64::MAX, vec![routed("a")]).is_err());
        assert_eq!(registry.part(S0, vec![routed("a")]), Err(ClaimError::NoResync { shard: S0 }));
        assert_eq!(registry.end(S0, 5), Err(ClaimError::NoResync { shard: S0 }));
        assert_eq!(registry.begin(BootEpoch(9), 0), Err(ClaimError::Shards { shards: 0 }));
        assert_eq!((registry.routes_len(), registry.epoch()), (0, Some(BootEpoch(1))));
    }

    /// One step of a shard that loses frames and resyncs.
    #[derive(Clone, Debug)]
    enum Step {
        Route(u8),
        Unroute(u8),
        Lose(u8),
        /// Names the set in parts of one, with a live claim before part `at`.
        Resync {
            live: u8,
            at: u8,
        },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0u8..12).prop_map(Step::Route),
            (0u8..12).prop_map(Step::Unroute),
            (0u8..12).prop_map(Step::Lose),
            (0u8..12, 0u8..12).prop_map(|(live, at)| Step::Resync { live, at }),
        ]
    }

    proptest! {
        /// After a resync the table is the shard's own set; before that, `folded` claims plus the later ones give it.
        #[test]
        fn a_resync_always_agrees_with_the_shard(steps in proptest::collection::vec(step(), 0..60)) {
            let mut registry = registry();
            let mut own = BTreeSet::new();
            let mut log: Vec<Claim> = Vec::new();
            let say = |own: &mut BTreeSet<String>, log: &mut Vec<Claim>, claim: Claim| {
                match &claim {
                    Claim::Routed { uri, .. } => own.insert(uri.clone()),
                    Claim::Unrouted { uri, .. } => own.remove(uri),
                    _ => false,
                };
                log.push(claim.clone());
                (log.len() as u64, vec![claim])
            };
            for step in steps {
                match step {
                    Step::Route(n) => {
                        let (seq, frame) = say(&mut own, &mut log, routed(&n.to_string()));
                        registry.claims(S0, seq, frame).unwrap();
                    }
                    Step::Unroute(n) => {
                        let (seq, frame) = say(&mut own, &mut log, unrouted(&n.to_string()));
                        registry.claims(S0, seq, frame).unwrap();
                    }
                    Step::Lose(n) => {
                        say(&mut own, &mut log, routed(&n.to_string()));
                    }
                    Step::Resync { live, at } => {
                        registry.reset(S0).unwrap();
                        let mut named = BTreeSet::new();
                        let mut parts = 0;
                        while let Some(uri) = own.iter().find(|uri| !named.contains(*uri)).cloned() {
                            if parts == at {
                                let claim = if own.contains(&live.to_string()) {
                                    unrouted(&live.to_string())
                                } else {
                                    routed(&live.to_string())
                                };
                                let (seq, frame) = say(&mut own, &mut log, claim);
                                registry.claims(S0, seq, frame).unwrap();
                            }
                            parts += 1;
                            if own.contains(&uri) {
                                registry.part(S0, vec![routed(&uri)]).unwrap();
                            }
                            named.insert(uri);
                        }
                        registry.end(S0, log.len() as u64).unwrap();
                        prop_assert_eq!(table(&registry).into_keys().collect::<BTreeSet<_>>(), own.clone());
                        prop_assert!(registry.is_settled());
                    }
                }
                let mut rebuilt: BTreeSet<String> = table(&registry).into_keys().collect();
                for claim in &log[registry.claims_folded()[0] as usize..] {
                    match claim {
                        Claim::Routed { uri, .. } => rebuilt.insert(uri.clone()),
                        Claim::Unrouted { uri, .. } => rebuilt.remove(uri),
                        _ => false,
                    };
                }
                prop_assert_eq!(rebuilt, own.clone());
            }
        }
    }
}
