//! Questions whose answers are looked for slice by slice: lists of sessions and of routes, and the events of histories.
//!
//! ```text
//! question ─▶ first slice ─ all looked at ─▶ part
//!                 └─ the turn's share is spent ─▶ waits ─▶ a slice a turn ─▶ part
//! ```
//! What is looked at has an order (ids, the places of events), and a search remembers the last it has looked at. So what is there
//! from the beginning of a search to its end is found, whatever else comes and goes; what comes or goes meanwhile is found or
//! not, and nothing twice. Searches take their slices in turn.

use super::look::has_role;
use super::query::{Op, Part, Query};
use crate::shard::Shard;
use crate::shard::history::Selection;
use common::ids::{RouteKind, ShardId};
use common::metrics::Counter;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Sessions, routes and events that all searches look at in one turn.
pub(super) const LOOK_SLICE: usize = 2_048;
/// Searches of one shard that wait for turns to come; what one more would find after its first slice is left out.
const SEARCHES_MAX: usize = 64;
/// How long a search may take. Then nobody waits for it any more.
const SEARCH_TIME: Duration = Duration::from_secs(2);

/// Where a search goes on.
#[derive(Debug)]
pub(super) enum Place {
    /// After the session with this id.
    Sessions(u64),
    /// After this route: its id, and its index.
    Routes(u64, u32),
    Events(Selection),
}

/// A question, and how far it is answered.
#[derive(Debug)]
struct Search {
    realm: u32,
    query: Query,
    /// The shard that asked, and its question.
    asker: (ShardId, u64),
    until: Instant,
    place: Place,
    part: Part,
}

/// The searches of one shard.
#[derive(Debug, Default)]
pub(in crate::shard) struct Searches {
    /// The next one first.
    waiting: VecDeque<Search>,
    /// What this turn has looked at.
    looked_at: usize,
}

impl Searches {
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    #[inline]
    pub const fn next_turn(&mut self) {
        self.looked_at = 0;
    }
}

impl Shard {
    /// What is found by the turn's share; none: the asker is told later. `part` is what is known already.
    pub(super) fn search(
        &mut self,
        realm: u32,
        query: &Query,
        asker: (ShardId, u64),
        (place, part): (Place, Part),
    ) -> Option<Part> {
        let until = self.now + SEARCH_TIME;
        let mut search = Search { realm, query: query.clone(), asker, until, place, part };
        if self.searches.is_empty() && self.search_slice(&mut search) {
            return Some(search.part);
        }
        if self.searches.len() >= SEARCHES_MAX {
            self.metrics.count(Counter::LimitReached);
            search.part.partial = true;
            if query.op == Op::GetEvents {
                // Of a history nobody was asked who keeps it.
                search.part.count = 0;
            }
            search.part.bound(query.limit);
            return Some(search.part);
        }
        self.searches.waiting.push_back(search);
        None
    }

    /// One turn's share of what waits.
    pub(in crate::shard) fn go_on_searching(&mut self) {
        self.searches.next_turn();
        while self.searches.looked_at < LOOK_SLICE
            && let Some(mut search) = self.searches.waiting.pop_front()
        {
            let (shard, token) = search.asker;
            if search.until <= self.now || shard == self.me && !self.asks.is_open(token) {
                // Nobody waits for it.
                continue;
            }
            if self.search_slice(&mut search) {
                self.tell_shard(shard, token, search.part);
            } else {
                self.searches.waiting.push_back(search);
            }
        }
    }

    /// True: all was looked at, or enough was found.
    fn search_slice(&mut self, search: &mut Search) -> bool {
        let mut looks = LOOK_SLICE.saturating_sub(self.searches.looked_at);
        let done = match search.place {
            Place::Sessions(_) => self.search_sessions(search, &mut looks),
            Place::Routes(..) => self.search_routes(search, &mut looks),
            Place::Events(_) => self.search_events(search, &mut looks),
        };
        // One that finds nothing to look at is work too.
        self.searches.looked_at = LOOK_SLICE - looks.min(LOOK_SLICE) + 1;
        done
    }

    /// Sessions of some roles, or that hold a route, in the order of their ids.
    fn search_sessions(&self, search: &mut Search, looks: &mut usize) -> bool {
        let Search { realm, query, place: Place::Sessions(after), part, .. } = search else { return true };
        for (id, slot) in self.ids.sessions_after(*after) {
            if *looks == 0 {
                return false;
            }
            *looks -= 1;
            *after = id;
            let Some((_, session)) = self.session_in(*realm, slot) else { continue };
            let is_meant = match (query.op, query.kind) {
                (Op::ListPeers, RouteKind::Topic) => session.subscriptions.contains_key(&query.id),
                (Op::ListPeers, RouteKind::Procedure) => session.registrations.contains_key(&query.id),
                _ => query.texts.is_empty() || has_role(session, &query.texts),
            };
            if !is_meant {
                continue;
            }
            if query.op == Op::CountSessions {
                part.count += 1;
                continue;
            }
            part.ids[0].push(id);
            // One more than is wanted shows that there are more.
            if part.ids[0].len() > query.limit {
                break;
            }
        }
        part.bound(query.limit);
        true
    }

    /// Routes that somebody here holds, by policy, in the order of their ids.
    fn search_routes(&self, search: &mut Search, looks: &mut usize) -> bool {
        let Search { realm, query, place: Place::Routes(id, index), part, .. } = search else { return true };
        for (next, at) in self.ids.routes_after(query.kind, (*id, *index)) {
            if *looks == 0 {
                return false;
            }
            *looks -= 1;
            (*id, *index) = (next, at);
            let Some((policy, route)) = self.listed(*realm, query.kind, at) else { continue };
            let ids = &mut part.ids[policy as usize];
            // One more than is wanted shows that there are more.
            if ids.len() <= query.limit {
                ids.push(route);
            } else if part.ids.iter().all(|ids| ids.len() > query.limit) {
                break;
            }
        }
        part.bound(query.limit);
        true
    }

    /// Events of a history, in their order or against it. A history that is given up meanwhile has no more of them.
    fn search_events(&self, search: &mut Search, looks: &mut usize) -> bool {
        let Search { realm, query, place: Place::Events(selection), part, .. } = search else { return true };
        let found =
            self.topic_of(*realm, query.id).map(|topic| self.histories.go_on(topic, selection, looks));
        let Some(more) = found.unwrap_or(Some(false)) else { return false };
        (part.events, part.more) = (std::mem::take(&mut selection.events), more);
        true
    }
}
