//! Questions that every shard of every node is asked, and the parts their answers are made of.
//!
//! Both travel as one MessagePack list. What another node sends is checked in every element before it is used, and holds no
//! more than [`IDS_MAX`] ids.

use super::history::{EVENTS_BYTES_MAX, EVENTS_MAX, is_reverse, merge};
use crate::shard::history::Event;
use common::ids::{Match, RouteKind, is_wamp_id};
use common::limits::URI_BYTES_MAX;
use common::wire::{OwnedValue, Serializer};

/// Most ids in one answer; longer lists are asked for page by page.
pub(in crate::shard) const IDS_MAX: usize = 10_000;
/// Longest question and part of an answer, packed: three lists of ids of nine bytes, events, and the rest.
pub(in crate::shard) const PACKED_BYTES_MAX: usize = 3 * 9 * IDS_MAX + (128 << 10) + 2 * EVENTS_BYTES_MAX;
/// Routes in one part of an answer.
const ROUTES_MAX: usize = 256;
/// Roles and other texts in one question.
const TEXTS_MAX: usize = 64;
/// Longest text in it.
pub(super) const TEXT_BYTES_MAX: usize = URI_BYTES_MAX;

/// What is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(in crate::shard) enum Op {
    /// Of the roles in `texts`, or of all.
    CountSessions = 0,
    ListSessions = 1,
    GetSession = 2,
    /// `session`, for the reason and with the message in `texts`.
    Kill = 3,
    /// Those with an authid: `texts` is it, the reason and the message. Not `session`, nor below.
    KillByAuthid = 4,
    KillByAuthrole = 5,
    KillAll = 6,
    /// `details` are put in, and those that are null taken out.
    ModifyDetails = 7,
    ListRoutes = 8,
    /// The ids of those that match the URI in `texts`.
    MatchRoutes = 9,
    GetRoute = 10,
    /// Sessions that hold a route.
    ListPeers = 11,
    CountPeers = 12,
    /// Takes the route from `session`, for the reason in `texts`.
    RemovePeer = 13,
    /// Where the publications that `details` name are in a history.
    FindEvents = 14,
    /// The events of a history, as `details` say.
    GetEvents = 15,
}

impl Op {
    const ALL: [Self; 16] = [
        Self::CountSessions,
        Self::ListSessions,
        Self::GetSession,
        Self::Kill,
        Self::KillByAuthid,
        Self::KillByAuthrole,
        Self::KillAll,
        Self::ModifyDetails,
        Self::ListRoutes,
        Self::MatchRoutes,
        Self::GetRoute,
        Self::ListPeers,
        Self::CountPeers,
        Self::RemovePeer,
        Self::FindEvents,
        Self::GetEvents,
    ];

    pub const fn is_about_events(self) -> bool {
        matches!(self, Self::FindEvents | Self::GetEvents)
    }

    /// At most one shard has something to say.
    pub const fn has_one_answer(self) -> bool {
        matches!(self, Self::GetSession | Self::Kill | Self::ModifyDetails)
    }

    /// It may end many sessions, which takes its time.
    pub const fn ends_many(self) -> bool {
        matches!(self, Self::KillByAuthid | Self::KillByAuthrole | Self::KillAll)
    }
}

/// A question. What an [`Op`] does not need is empty.
#[derive(Clone, PartialEq, Debug)]
pub(in crate::shard) struct Query {
    pub op: Op,
    pub kind: RouteKind,
    /// Of a route.
    pub id: u64,
    pub session: u64,
    /// Ids greater than this are wanted, the smallest of them first, at most `limit` in each list.
    pub after: u64,
    pub limit: usize,
    pub texts: Vec<String>,
    pub details: OwnedValue,
}

impl Query {
    pub const fn new(op: Op) -> Self {
        Self {
            op,
            kind: RouteKind::Topic,
            id: 0,
            session: 0,
            after: 0,
            limit: IDS_MAX,
            texts: Vec::new(),
            details: OwnedValue::Null,
        }
    }

    pub fn pack(&self) -> Vec<u8> {
        OwnedValue::List(vec![
            (self.op as u8).into(),
            (self.kind as u8).into(),
            self.id.into(),
            self.session.into(),
            self.after.into(),
            self.limit.into(),
            OwnedValue::list(self.texts.iter().map(String::as_str)),
            self.details.clone(),
        ])
        .to_bytes(Serializer::MsgPack)
    }

    /// None: another node has sent what no node packs.
    pub fn unpack(bytes: &[u8]) -> Option<Self> {
        let whole = unpack(bytes)?;
        let [op, kind, id, session, after, limit, texts, details] = whole.as_list()? else { return None };
        let kind = match kind.as_u64()? {
            0 => RouteKind::Topic,
            1 => RouteKind::Procedure,
            _ => return None,
        };
        let texts = texts.as_list().filter(|texts| texts.len() <= TEXTS_MAX)?;
        let texts: Option<Vec<String>> = texts
            .iter()
            .map(|text| text.as_str().filter(|text| text.len() <= TEXT_BYTES_MAX).map(str::to_owned))
            .collect();
        Some(Self {
            op: *Op::ALL.get(usize::try_from(op.as_u64()?).ok()?)?,
            kind,
            id: id.as_u64()?,
            session: session.as_u64()?,
            after: after.as_u64()?,
            limit: usize::try_from(limit.as_u64()?).ok().filter(|limit| *limit <= IDS_MAX)?,
            texts: texts?,
            details: details.clone(),
        })
    }
}

fn unpack(bytes: &[u8]) -> Option<OwnedValue> {
    let fits = bytes.len() <= PACKED_BYTES_MAX;
    fits.then(|| OwnedValue::decode(Serializer::MsgPack, bytes).ok()).flatten()
}

/// A subscription or registration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::shard) struct RouteInfo {
    pub policy: Match,
    pub uri: String,
    /// Milliseconds since 1970-01-01 UTC.
    pub created_ms: u64,
    /// Of a registration.
    pub invoke: String,
}

/// What one shard, or one node, says to a question.
#[derive(Clone, PartialEq, Default, Debug)]
pub(in crate::shard) struct Part {
    /// How many there are, or were dealt with.
    pub count: u64,
    /// By policy for routes; else only the first list.
    pub ids: [Vec<u64>; 3],
    /// There are more ids than were wanted.
    pub more: bool,
    /// Somebody did not answer in time.
    pub partial: bool,
    pub routes: Vec<RouteInfo>,
    pub details: Option<OwnedValue>,
    /// Of a history, in the order that was asked for.
    pub events: Vec<Event>,
}

impl Part {
    pub fn pack(&self) -> Vec<u8> {
        let ids = self.ids.iter().map(|ids| OwnedValue::list(ids.iter().copied()));
        let route = |route: &RouteInfo| {
            OwnedValue::List(vec![
                (route.policy as u8).into(),
                route.uri.as_str().into(),
                route.created_ms.into(),
                route.invoke.as_str().into(),
            ])
        };
        OwnedValue::List(vec![
            self.count.into(),
            OwnedValue::List(ids.collect()),
            self.more.into(),
            self.partial.into(),
            OwnedValue::List(self.routes.iter().map(route).collect()),
            self.details.clone().unwrap_or(OwnedValue::Null),
            OwnedValue::List(self.events.iter().map(Event::pack).collect()),
        ])
        .to_bytes(Serializer::MsgPack)
    }

    /// None: another node has sent what no node packs.
    pub fn unpack(bytes: &[u8]) -> Option<Self> {
        let whole = unpack(bytes)?;
        let [count, ids, more, partial, routes, details, events] = whole.as_list()? else { return None };
        let [exact, prefix, wildcard] = ids.as_list()? else { return None };
        let ids = |list: &OwnedValue| -> Option<Vec<u64>> {
            let list = list.as_list().filter(|list| list.len() <= IDS_MAX)?;
            list.iter().map(|id| id.as_u64().filter(|id| is_wamp_id(*id))).collect()
        };
        let route = |route: &OwnedValue| {
            let [policy, uri, created_ms, invoke] = route.as_list()? else { return None };
            let policy = [Match::Exact, Match::Prefix, Match::Wildcard]
                .get(usize::try_from(policy.as_u64()?).ok()?)
                .copied()?;
            let text = |text: &OwnedValue| {
                Some(text.as_str().filter(|text| text.len() <= TEXT_BYTES_MAX)?.to_owned())
            };
            Some(RouteInfo {
                policy,
                uri: text(uri)?,
                created_ms: created_ms.as_u64()?,
                invoke: text(invoke)?,
            })
        };
        let routes = routes.as_list().filter(|routes| routes.len() <= ROUTES_MAX)?;
        let events = events.as_list().filter(|events| events.len() <= EVENTS_MAX)?;
        Some(Self {
            count: count.as_u64()?,
            ids: [ids(exact)?, ids(prefix)?, ids(wildcard)?],
            more: more.as_bool()?,
            partial: partial.as_bool()?,
            routes: routes.iter().map(route).collect::<Option<_>>()?,
            details: Some(details.clone()).filter(|details| !details.is_null()),
            events: events.iter().map(Event::unpack).collect::<Option<_>>()?,
        })
    }

    /// Takes another part in. The ids stay the smallest `limit` of all, so that the next page begins where this one ends.
    pub fn add(&mut self, other: Self, query: &Query) {
        if query.op.is_about_events() {
            let more = [self.more, other.more];
            self.more = merge(&mut self.events, other.events, more, query.limit, is_reverse(query));
        }
        self.count = self.count.saturating_add(other.count);
        self.more |= other.more;
        self.partial |= other.partial;
        for (mine, theirs) in self.ids.iter_mut().zip(other.ids) {
            mine.extend(theirs);
        }
        self.bound(query.limit);
        for route in other.routes {
            self.add_route(route);
        }
        self.details = self.details.take().or(other.details);
    }

    /// Sorts the ids and keeps the smallest `limit` of each list, each once.
    pub fn bound(&mut self, limit: usize) {
        for ids in &mut self.ids {
            ids.sort_unstable();
            ids.dedup();
            self.more |= ids.len() > limit;
            ids.truncate(limit);
        }
    }

    /// The same route on several shards is one, as old as the oldest.
    pub fn add_route(&mut self, route: RouteInfo) {
        let same = |known: &&mut RouteInfo| known.policy == route.policy && known.uri == route.uri;
        if let Some(known) = self.routes.iter_mut().find(same) {
            if route.created_ms < known.created_ms {
                *known = route;
            }
        } else if self.routes.len() < ROUTES_MAX {
            self.routes.push(route);
        } else {
            self.more = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(policy: Match, uri: &str, created_ms: u64) -> RouteInfo {
        RouteInfo { policy, uri: uri.into(), created_ms, invoke: "single".into() }
    }

    fn part() -> Part {
        Part {
            count: 3,
            ids: [vec![1, 5], vec![], vec![7]],
            more: true,
            partial: true,
            routes: vec![route(Match::Prefix, "a.", 17)],
            details: Some(OwnedValue::dict([("session", 5_u64)])),
            events: vec![crate::shard::history::test_events::event(3, 4, "a.b")],
        }
    }

    #[test]
    fn questions_and_parts_read_back() {
        for op in Op::ALL {
            let query = Query {
                kind: RouteKind::Procedure,
                id: 1 << 53,
                session: 9,
                after: 4,
                limit: 10,
                texts: vec!["a".into(), String::new()],
                details: OwnedValue::dict([("x", "y")]),
                ..Query::new(op)
            };
            assert_eq!(Query::unpack(&query.pack()), Some(query));
        }
        assert_eq!(Part::unpack(&part().pack()), Some(part()));
        assert_eq!(Part::unpack(&Part::default().pack()), Some(Part::default()));
    }

    #[test]
    fn what_no_node_packs_is_refused() {
        let query = Query::new(Op::ListSessions);
        for bad in [
            Query { limit: IDS_MAX + 1, ..query.clone() },
            Query { texts: vec![String::new(); TEXTS_MAX + 1], ..query.clone() },
            Query { texts: vec!["x".repeat(TEXT_BYTES_MAX + 1)], ..query },
        ] {
            assert_eq!(Query::unpack(&bad.pack()), None);
        }
        assert_eq!(Part::unpack(&Part { ids: [vec![0], vec![], vec![]], ..part() }.pack()), None);
        let long = vec![1; IDS_MAX + 1];
        assert_eq!(Part::unpack(&Part { ids: [long, vec![], vec![]], ..part() }.pack()), None);
        assert_eq!(Query::unpack(&vec![0xc0; PACKED_BYTES_MAX + 1]), None);
    }

    #[test]
    fn parts_add_up_to_the_smallest_ids_and_the_oldest_route() {
        let mut whole = Part { ids: [vec![9, 2], vec![], vec![]], ..Part::default() };
        let other = Part {
            count: 2,
            ids: [vec![2, 4, 6], vec![], vec![1]],
            routes: vec![route(Match::Exact, "a", 20), route(Match::Exact, "a", 10)],
            ..Part::default()
        };
        whole.add(other, &Query { limit: 3, ..Query::new(Op::ListRoutes) });
        assert_eq!((whole.count, &whole.ids), (2, &[vec![2, 4, 6], vec![], vec![1]]));
        assert!(whole.more, "9 was left out");
        assert_eq!(whole.routes, [route(Match::Exact, "a", 10)]);
    }

    #[test]
    fn changed_bytes_are_read_or_refused() {
        let mut rng = fastrand::Rng::with_seed(1);
        for _ in 0..20_000 {
            for mut bytes in [part().pack(), Query::new(Op::GetRoute).pack()] {
                let at = rng.usize(..bytes.len());
                bytes[at] = rng.u8(..);
                bytes.truncate(rng.usize(..=bytes.len() * 2));
                let _ = Query::unpack(&bytes);
                if let Some(part) = Part::unpack(&bytes) {
                    assert!(part.ids.iter().flatten().all(|id| is_wamp_id(*id)));
                }
            }
        }
    }
}
