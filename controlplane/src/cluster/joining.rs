//! From the start of a control plane to ready: it takes over the state of every member that lives. Pure.
//!
//! ```text
//! no member known ── join_wait over ──▶ ready, alone
//! members known ── each linked, objects compared, claims whole ──▶ ready
//!               └─ some not in time ──▶ ready, without those
//! ```
//! Invariant: it ends, [`LINK_WAIT_MAX`] after the last member appeared that cannot be linked, and at the latest
//! [`JOIN_MAX`] after the first one; once it has ended it does not begin again.

use super::{JOIN_MAX, LINK_WAIT_MAX};
use common::ids::NodeId;
use std::time::{Duration, Instant};

#[derive(Debug)]
pub struct Joining {
    began: Instant,
    /// Nobody was found by then: the node is alone.
    alone_at: Instant,
    first_member_at: Option<Instant>,
    state: State,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum State {
    /// Until then at the latest.
    Waiting(Waiting, Instant),
    /// Without the state of these.
    Done(Vec<NodeId>),
}

/// What a joining node waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Waiting {
    #[error("joining: looking for other nodes")]
    Members,
    #[error("joining: connecting to node {0}")]
    Link(NodeId),
    #[error("joining: taking over objects from node {0}")]
    Objects(NodeId),
    #[error("joining: taking over routes of node {0}")]
    Claims(NodeId),
}

/// How far a member that lives has been taken over.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    pub node: NodeId,
    pub lives_since: Instant,
    pub linked_since: Option<Instant>,
    pub objects: bool,
    /// All it knew of claims when it was linked is known here.
    pub claims: bool,
}

impl Joining {
    /// `wait`: `cluster.join_wait`.
    pub fn new(now: Instant, wait: Duration) -> Self {
        let alone_at = now + wait;
        let state = State::Waiting(Waiting::Members, alone_at);
        Self { began: now, alone_at, first_member_at: None, state }
    }

    /// A node that is in no cluster.
    pub fn none(now: Instant) -> Self {
        Self { state: State::Done(vec![]), ..Self::new(now, Duration::ZERO) }
    }

    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done(_))
    }

    /// Looks at what is there now. True when it has just ended.
    pub fn look(&mut self, now: Instant, members: &[Progress]) -> bool {
        if self.is_done() {
            return false;
        }
        let mut without = Vec::new();
        let mut waiting: Option<(Waiting, Instant)> = None;
        if members.is_empty() {
            waiting = (now < self.alone_at).then_some((Waiting::Members, self.alone_at));
        } else {
            let first = *self.first_member_at.get_or_insert(now);
            for member in members {
                let Some((what, until)) = member.waits() else { continue };
                let until = until.min(first + JOIN_MAX);
                if now < until {
                    let (shown, at) = waiting.unwrap_or((what, until));
                    waiting = Some((shown, at.min(until)));
                } else {
                    without.push(member.node);
                }
            }
        }
        self.state = match waiting {
            Some((what, until)) => State::Waiting(what, until),
            None => State::Done(without),
        };
        self.is_done()
    }

    /// When to look again at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Waiting(_, until) => Some(until),
            State::Done(_) => None,
        }
    }

    pub fn began(&self) -> Instant {
        self.began
    }

    /// Why the node is not ready, if it is not.
    pub fn waiting(&self) -> Option<Waiting> {
        match self.state {
            State::Waiting(waiting, _) => Some(waiting),
            State::Done(_) => None,
        }
    }

    /// Members whose state was not taken over.
    pub fn without(&self) -> &[NodeId] {
        match &self.state {
            State::Waiting(..) => &[],
            State::Done(without) => without,
        }
    }
}

impl Progress {
    /// What is still awaited of it, and for how long.
    fn waits(&self) -> Option<(Waiting, Instant)> {
        let Some(linked) = self.linked_since else {
            return Some((Waiting::Link(self.node), self.lives_since + LINK_WAIT_MAX));
        };
        if !self.objects {
            return Some((Waiting::Objects(self.node), linked + JOIN_MAX));
        }
        (!self.claims).then_some((Waiting::Claims(self.node), linked + JOIN_MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn progress(node: u8, now: Instant) -> Progress {
        Progress {
            node: NodeId([node; 16]),
            lives_since: now,
            linked_since: Some(now),
            objects: true,
            claims: true,
        }
    }

    #[test]
    fn a_node_without_others_serves_alone_after_a_while() {
        let now = Instant::now();
        let mut joining = Joining::new(now, 3 * SECOND);
        assert!(!joining.look(now + 2 * SECOND, &[]));
        assert_eq!((joining.waiting(), joining.deadline()), (Some(Waiting::Members), Some(now + 3 * SECOND)));
        assert!(joining.look(now + 3 * SECOND, &[]));
        assert!(!joining.look(now + 3 * SECOND, &[]), "said once");
        assert_eq!((joining.waiting(), joining.deadline(), joining.without().len()), (None, None, 0));
    }

    #[test]
    fn objects_and_claims_of_every_member_are_awaited() {
        let now = Instant::now();
        let mut joining = Joining::new(now, 3 * SECOND);
        let (one, other) = (progress(1, now), progress(2, now));
        let id = other.node;
        for (state, what) in [
            (Progress { linked_since: None, objects: false, claims: false, ..other }, Waiting::Link(id)),
            (Progress { objects: false, claims: false, ..other }, Waiting::Objects(id)),
            (Progress { claims: false, ..other }, Waiting::Claims(id)),
        ] {
            assert!(!joining.look(now + 5 * SECOND, &[one, state]));
            assert_eq!(joining.waiting(), Some(what));
        }
        assert!(joining.look(now + 5 * SECOND, &[one, other]));
        assert!(joining.without().is_empty());
    }

    #[test]
    fn nobody_holds_a_node_up_for_ever() {
        let now = Instant::now();
        let stuck = [
            (Progress { linked_since: None, ..progress(1, now) }, LINK_WAIT_MAX),
            (Progress { objects: false, ..progress(1, now) }, JOIN_MAX),
            (Progress { claims: false, ..progress(1, now) }, JOIN_MAX),
        ];
        for (member, wait) in stuck {
            let mut joining = Joining::new(now, SECOND);
            assert!(!joining.look(now, &[member]));
            assert_eq!(joining.deadline(), Some(now + wait));
            assert!(!joining.look(now + wait - SECOND, &[member, progress(2, now)]));
            assert!(joining.look(now + wait, &[member, progress(2, now)]));
            assert_eq!(joining.without(), [member.node]);
        }
    }
}
