//! What waits for one shard because its channel was full.
//!
//! Invariants: the order of what waits is that in which it came; a snapshot is left out only for a later one that stands for
//! all it stands for, a list of nodes only for a later one. Bounded: `Stats` and `Drain` wait once each, and the socket is not
//! read while [`MAILBOX_MAX`] wait.

use super::ShardPort;
use crate::feed::{FeedDown, SharedSnapshot};
use common::ids::SHARDS_MAX;
use crossbeam_channel::TrySendError;
use std::collections::VecDeque;
use std::mem::discriminant;

/// Messages that may wait for one shard's channel before the socket is read no more.
pub(super) const MAILBOX_MAX: usize = 64;

pub(super) struct Mailbox {
    port: ShardPort,
    waiting: VecDeque<FeedDown>,
}

impl Mailbox {
    pub fn new(port: ShardPort) -> Self {
        Self { port, waiting: VecDeque::new() }
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub fn has_room(&self) -> bool {
        self.waiting.len() < MAILBOX_MAX
    }

    pub fn put(&mut self, down: FeedDown) {
        match &down {
            FeedDown::Snapshot(new) => {
                self.waiting.retain(|old| !matches!(old, FeedDown::Snapshot(old) if covers(new, old)));
            }
            FeedDown::Peers(_) => self.waiting.retain(|old| !matches!(old, FeedDown::Peers(_))),
            FeedDown::Stats | FeedDown::Drain => {
                if self.waiting.iter().any(|old| discriminant(old) == discriminant(&down)) {
                    return;
                }
            }
            // Where a link begins among the changes counts; two in a row are one.
            FeedDown::Resync => {
                if matches!(self.waiting.back(), Some(FeedDown::Resync)) {
                    return;
                }
            }
            FeedDown::Delta(_)
            | FeedDown::Routes { .. }
            | FeedDown::Unroute { .. }
            | FeedDown::Retained(_)
            | FeedDown::Revoke { .. } => {}
        }
        self.waiting.push_back(down);
    }

    pub fn deliver(&mut self) {
        let mut sent = false;
        while let Some(down) = self.waiting.pop_front() {
            match self.port.feed.try_send(down) {
                Ok(()) => sent = true,
                Err(TrySendError::Full(down)) => {
                    self.waiting.push_front(down);
                    break;
                }
                // The shard is gone; `LinkPlan::failed` says why.
                Err(TrySendError::Disconnected(_)) => self.waiting.clear(),
            }
        }
        if sent {
            (self.port.wake)();
        }
    }
}

/// True when a shard that takes `new` has nothing of `old` any more. A control plane that has just come back publishes
/// snapshots that lack claims: their routes are not taken, and those of the one before are.
fn covers(new: &SharedSnapshot, old: &SharedSnapshot) -> bool {
    (0..SHARDS_MAX).all(|shard| new.claims_folded(shard) >= old.claims_folded(shard))
}

const _: () = assert!(MAILBOX_MAX > 2, "Stats and Drain wait once each");

#[cfg(test)]
mod tests {
    use super::*;
    use common::ids::{BootEpoch, Match, RealmId, SnapshotVersion};
    use common::snapshot::{Delta, Snapshot, Source, build};
    use std::sync::Arc;

    fn snapshot(version: u64, claims_folded: u64) -> FeedDown {
        let source = Source {
            version: SnapshotVersion(version),
            epoch: BootEpoch(1),
            claims_folded: vec![claims_folded],
            ..Source::default()
        };
        let bytes = bytes::Bytes::from_owner(build(&source, 1));
        FeedDown::Snapshot(Arc::new(Snapshot::check(bytes).expect("a built snapshot is valid")))
    }

    fn delta(version: u64) -> FeedDown {
        let (version, follows) = (SnapshotVersion(version), SnapshotVersion(version - 1));
        FeedDown::Delta(Arc::new(Delta { version, follows, realms_put: vec![], realms_removed: vec![] }))
    }

    fn routes(first_seq: u64) -> FeedDown {
        FeedDown::Routes { first_seq, changes: Arc::new([]) }
    }

    fn revoke() -> FeedDown {
        FeedDown::Revoke { realm: RealmId(1), policy: Match::Exact, uri: "p".into() }
    }

    fn shown(down: &FeedDown) -> String {
        match down {
            FeedDown::Snapshot(snapshot) => format!("S{}", snapshot.version().0),
            FeedDown::Delta(delta) => format!("D{}", delta.version.0),
            FeedDown::Routes { first_seq, .. } => format!("R{first_seq}"),
            FeedDown::Unroute { seq, .. } => format!("U{seq}"),
            FeedDown::Peers(peers) => format!("P{}", peers.len()),
            other => format!("{other:?}").split(' ').next().unwrap_or_default().to_owned(),
        }
    }

    /// What a shard that took nothing until now gets.
    fn left(messages: Vec<FeedDown>) -> String {
        let (feed, shard) = crossbeam_channel::bounded(1);
        feed.send(FeedDown::Stats).unwrap();
        let mut mailbox = Mailbox::new(ShardPort { feed, wake: Box::new(|| {}) });
        messages.into_iter().for_each(|down| mailbox.put(down));
        let mut all = Vec::new();
        while !mailbox.is_empty() {
            let first = shard.recv().unwrap();
            all.push(shown(&first));
            mailbox.deliver();
        }
        all.extend(shard.try_iter().map(|down| shown(&down)));
        all[1..].join(" ")
    }

    #[test]
    fn a_snapshot_replaces_only_what_it_stands_for() {
        assert_eq!(left(vec![snapshot(1, 5), snapshot(2, 5)]), "S2");
        assert_eq!(left(vec![snapshot(1, 5), snapshot(2, 0)]), "S1 S2", "the second one lacks claims");
        assert_eq!(left(vec![snapshot(1, 5), snapshot(2, 0), snapshot(3, 6)]), "S3");
    }

    #[test]
    fn deltas_and_changes_stay_in_order_around_snapshots() {
        let messages =
            vec![delta(2), routes(1), snapshot(3, 1), routes(4), revoke(), snapshot(4, 1), routes(9)];
        assert_eq!(left(messages), "D2 R1 R4 Revoke S4 R9");
    }

    #[test]
    fn where_a_link_begins_is_kept() {
        let messages = vec![
            FeedDown::Resync,
            FeedDown::Resync,
            FeedDown::Stats,
            routes(7),
            FeedDown::Resync,
            FeedDown::Stats,
            routes(1),
        ];
        assert_eq!(left(messages), "Resync Stats R7 Resync R1");
    }

    #[test]
    fn the_latest_list_of_nodes_is_enough() {
        let peers = |count| {
            let peer = common::link::Peer {
                node: common::ids::NodeId([1; 16]),
                epoch: BootEpoch(1),
                relay: String::new(),
            };
            FeedDown::Peers(vec![peer; count].into())
        };
        assert_eq!(
            left(vec![peers(1), routes(1), peers(2), FeedDown::Drain, FeedDown::Drain]),
            "R1 P2 Drain"
        );
    }
}
