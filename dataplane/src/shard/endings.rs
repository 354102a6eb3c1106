//! Many sessions that are ended together: killed by the meta API, or with their realm.
//!
//! To end a session is to say so to its peers, to other shards and to the control plane, so it is done in slices, one a turn.
//! Sessions that join meanwhile are not meant.

use super::Shard;
use super::conn::{Phase, Session};
use super::meta::Part;
use common::ids::ShardId;
use common::metrics::Counter;
use std::collections::VecDeque;
use std::time::Duration;

/// Sessions ended in one turn.
const END_SLICE: usize = 32;
/// Sessions looked at in one turn.
const LOOK_SLICE: usize = 1_024;
/// Endings for which questions wait; more are refused.
const ENDINGS_MAX: usize = 64;
/// How long the connection of such a session may take to answer GOODBYE.
const GOODBYE_TIME: Duration = Duration::from_secs(2);

/// Which sessions of a realm are meant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Whom {
    All,
    Authid(String),
    Authrole(String),
}

/// Sessions that are to end.
#[derive(Debug)]
pub(super) struct Ending {
    pub realm: u32,
    pub whom: Whom,
    /// Not this one.
    pub except: u64,
    pub reason: String,
    pub message: String,
    /// Nobody is left who could hear of it: there are no meta events and no testaments.
    pub silent: bool,
    /// Counted for each session.
    pub counter: Option<Counter>,
    /// Most ids in the answer.
    pub limit: usize,
    /// The shard that asked for it, and its question; none: nobody waits.
    pub asker: Option<(ShardId, u64)>,
}

/// An ending, and how far it has come.
#[derive(Debug)]
struct Begun {
    ending: Ending,
    /// Sessions that joined later are not meant; see [`Session::born`].
    before: u64,
    /// Sessions up to this id were looked at.
    after: u64,
    part: Part,
}

/// The endings of one shard, first come first.
#[derive(Debug, Default)]
pub(super) struct Endings(VecDeque<Begun>);

impl Endings {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }
}

/// What is left of a turn.
struct Budget {
    looks: usize,
    ends: usize,
}

impl Budget {
    const fn new() -> Self {
        Self { looks: LOOK_SLICE, ends: END_SLICE }
    }

    const fn is_spent(&self) -> bool {
        self.looks == 0 || self.ends == 0
    }
}

impl Shard {
    /// Ends the first of the sessions that are meant, and has the others wait for turns to come. What there is to say when that
    /// was all of them; else it is told to the asker later.
    pub(super) fn end_sessions(&mut self, ending: Ending) -> Option<Part> {
        if ending.asker.is_some() && self.endings.len() >= ENDINGS_MAX {
            self.metrics.count(Counter::LimitReached);
            return Some(Part { partial: true, ..Part::default() });
        }
        let mut begun = Begun { ending, before: self.token(), after: 0, part: Part::default() };
        if self.endings.is_empty() && self.end_some(&mut begun, &mut Budget::new()) {
            return Some(begun.part);
        }
        self.endings.0.push_back(begun);
        None
    }

    /// One turn's share of what waits.
    pub(super) fn go_on_ending(&mut self) {
        let mut budget = Budget::new();
        while !budget.is_spent()
            && let Some(mut begun) = self.endings.0.pop_front()
        {
            if !self.end_some(&mut begun, &mut budget) {
                self.endings.0.push_front(begun);
                return;
            }
            let Begun { ending, part, .. } = begun;
            if let Some((shard, token)) = ending.asker {
                self.tell_shard(shard, token, part);
            }
        }
    }

    /// True: all are ended.
    fn end_some(&mut self, begun: &mut Begun, budget: &mut Budget) -> bool {
        while !budget.is_spent() {
            let Some((id, slot)) = self.ids.session_after(begun.after) else {
                begun.part.bound(begun.ending.limit);
                return true;
            };
            begun.after = id;
            budget.looks -= 1;
            if self.is_meant(slot, begun) {
                budget.ends -= 1;
                begun.part.count += 1;
                // One more than is wanted shows that there are more.
                if begun.part.ids[0].len() <= begun.ending.limit {
                    begun.part.ids[0].push(id);
                }
                self.end_one(slot, &begun.ending);
            }
        }
        false
    }

    fn is_meant(&self, slot: u32, Begun { ending, before, .. }: &Begun) -> bool {
        let Some(Some(conn)) = self.conns.get(slot as usize) else { return false };
        let Some(session) = conn.session.as_deref().filter(|_| conn.phase == Phase::Open) else {
            return false;
        };
        let Session { id, realm, born, ref identity, .. } = *session;
        let is_whom = match &ending.whom {
            Whom::All => true,
            Whom::Authid(authid) => *identity.authid == **authid,
            Whom::Authrole(authrole) => identity.authrole == *authrole,
        };
        realm == ending.realm && born < *before && id != ending.except && is_whom
    }

    fn end_one(&mut self, slot: u32, ending: &Ending) {
        if ending.silent {
            let session = self.session(slot);
            session.silent = true;
            session.testaments.clear();
        }
        if let Some(counter) = ending.counter {
            self.metrics.count(counter);
        }
        self.leave(slot, &ending.reason, &ending.message);
        self.set_deadline(slot, GOODBYE_TIME);
    }
}
