//! What this shard tells the control plane: a numbered log of changes, or the whole set when the log was cut.

use super::Shard;
use crate::feed::FeedUp;
use common::ids::RouteKind;
use common::link::Claim;
use common::metrics::{Counter, Metrics};
use std::collections::VecDeque;

/// Claims that may wait for the link; beyond it the log is cut and the whole set is reported instead.
const CLAIMS_WAITING_MAX: usize = 16_384;
/// Claims in one frame.
const CLAIMS_FRAME_MAX: usize = 256;
/// Table slots looked at for one frame of a whole set.
const RESYNC_SLOTS_MAX: usize = 4_096;

#[derive(Debug, Default)]
pub(super) struct Claims {
    waiting: VecDeque<Claim>,
    /// Number of the last claim.
    last_seq: u64,
    resync: Resync,
}

/// Where the report of the whole set is.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
enum Resync {
    #[default]
    Idle,
    Due,
    Sessions(usize),
    Topics(usize),
    Procedures(usize),
    Groups(usize),
}

impl Claims {
    /// Logs a claim and returns its number.
    pub fn push(&mut self, claim: Claim, metrics: &mut Metrics) -> u64 {
        self.last_seq += 1;
        metrics.count(Counter::ClaimsSent);
        if self.resync == Resync::Due {
            return self.last_seq;
        }
        if self.waiting.len() >= CLAIMS_WAITING_MAX {
            self.start_resync();
        } else {
            self.waiting.push_back(claim);
        }
        self.last_seq
    }

    /// The whole set is reported, from its beginning. What waits is part of it.
    pub fn start_resync(&mut self) {
        self.waiting = VecDeque::new();
        self.resync = Resync::Due;
    }

    fn take(&mut self) -> Vec<Claim> {
        let count = self.waiting.len().min(CLAIMS_FRAME_MAX);
        self.waiting.drain(..count).collect()
    }
}

impl Shard {
    /// The next frame's worth of claims. Live claims go first, so that a set in progress only has to be idempotent: a
    /// claim about something not yet listed is repeated or harmless.
    pub(super) fn take_claims(&mut self) -> Option<FeedUp> {
        let shard = self.me;
        if self.claims.resync == Resync::Due {
            self.metrics.count(Counter::ClaimsResyncs);
            self.claims.resync = Resync::Sessions(0);
            return Some(FeedUp::ClaimsReset { shard });
        }
        let first_seq = self.claims.last_seq + 1 - self.claims.waiting.len() as u64;
        let claims = self.claims.take();
        if !claims.is_empty() {
            return Some(FeedUp::Claims { shard, first_seq, claims });
        }
        let mut claims = Vec::new();
        while claims.is_empty() {
            self.claims.resync = match self.claims.resync {
                Resync::Idle | Resync::Due => return None,
                Resync::Sessions(from) => match self.list_sessions(from, &mut claims) {
                    Some(next) => Resync::Sessions(next),
                    None => Resync::Topics(0),
                },
                Resync::Topics(from) => match self.list_topics(from, &mut claims) {
                    Some(next) => Resync::Topics(next),
                    None => Resync::Procedures(0),
                },
                Resync::Procedures(from) => match self.list_procedures(from, &mut claims) {
                    Some(next) => Resync::Procedures(next),
                    None => Resync::Groups(0),
                },
                Resync::Groups(from) => match self.list_groups(from, &mut claims) {
                    Some(next) => Resync::Groups(next),
                    None if claims.is_empty() => {
                        self.claims.resync = Resync::Idle;
                        return Some(FeedUp::ClaimsEnd { shard, seq: self.claims.last_seq });
                    }
                    None => Resync::Groups(usize::MAX),
                },
            };
        }
        Some(FeedUp::ClaimsPart { shard, claims })
    }

    fn list_sessions(&self, from: usize, claims: &mut Vec<Claim>) -> Option<usize> {
        for slot in from..self.conns.len() {
            if slot - from >= RESYNC_SLOTS_MAX || claims.len() >= CLAIMS_FRAME_MAX {
                return Some(slot);
            }
            if let Some(session) = self.conns[slot].as_ref().and_then(|conn| conn.session.as_ref()) {
                let realm = self.realms[session.realm as usize].id;
                claims.push(Claim::Joined { session: session.id, realm });
            }
        }
        None
    }

    fn list_topics(&self, from: usize, claims: &mut Vec<Claim>) -> Option<usize> {
        for index in from..self.topics.capacity() {
            if index - from >= RESYNC_SLOTS_MAX || claims.len() >= CLAIMS_FRAME_MAX {
                return Some(index);
            }
            if let Some(topic) = self.topics.get(index) {
                let realm = self.realms[topic.realm as usize].id;
                let (kind, policy, uri) = (RouteKind::Topic, topic.policy, topic.uri.to_string());
                claims.push(Claim::Routed { realm, kind, policy, uri });
                claims.extend(topic.keys.told().map(|key| self.key_claim(topic.realm, topic.id, key)));
            }
        }
        None
    }

    fn list_procedures(&self, from: usize, claims: &mut Vec<Claim>) -> Option<usize> {
        for index in from..self.procedures.capacity() {
            if index - from >= RESYNC_SLOTS_MAX || claims.len() >= CLAIMS_FRAME_MAX {
                return Some(index);
            }
            // Those that are shared are claimed by their home shard.
            if let Some(procedure) = self.procedures.get(index).filter(|procedure| !procedure.is_shared()) {
                claims.push(procedure.claim(self.realms[procedure.realm as usize].id));
            }
        }
        None
    }

    fn list_groups(&self, from: usize, claims: &mut Vec<Claim>) -> Option<usize> {
        for index in from..self.groups.capacity() {
            if index - from >= RESYNC_SLOTS_MAX || claims.len() >= CLAIMS_FRAME_MAX {
                return Some(index);
            }
            if let Some(group) = self.groups.get(index) {
                let realm = self.realms[group.realm as usize].id;
                let (policy, uri, share) = (group.policy, group.uri.to_string(), group.share());
                claims.push(Claim::Shared { realm, policy, uri, share });
            }
        }
        None
    }
}
