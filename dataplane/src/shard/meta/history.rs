//! `wamp.subscription.get_events` (WAMP, advanced profile, "Event History").
//!
//! Events are named by publication, and only the nodes that keep one know when it was made. So a question that names some is
//! asked in two rounds: where those events are, then what lies between.
//! ```text
//! CALL ─▶ Wanted ─▶ FindEvents ─▶ Bookmarks in the order of stamps ─┐
//!            └──── (none named) ────────────────────────────────────┴─▶ GetEvents ─▶ parts merged ─▶ RESULT
//! ```

use super::gather::Asker;
use super::procedures::{Arguments, Refused, refuse};
use super::query::{Op, Part, Query};
use crate::mesh::Caller;
use crate::shard::Shard;
use crate::shard::answers::{Answer, Answering};
use crate::shard::clock::{iso_8601, rfc_3339};
use crate::shard::conn::Route;
use crate::shard::delivery::TRUST;
use crate::shard::history::{Event, Filter, Key, Selection, first_of, last_of, ms_of};
use crate::shard::publication::Extra;
use common::features::Feature;
use common::ids::{Match, RouteKind};
use common::metrics::Counter;
use common::uri::wamp;
use common::wire::encode::{self, Field};
use common::wire::{OwnedValue, Payload, Serializer, transcode};

/// Events in one answer, and their bytes; more are asked for page by page.
pub(super) const EVENTS_MAX: usize = 1_000;
pub(super) const EVENTS_BYTES_MAX: usize = 512 << 10;

/// Arguments that name a publication: whether events after it are meant, and whether it is itself.
const BOOKMARKS: [(&str, bool, bool); 4] = [
    ("from_publication", true, true),
    ("after_publication", true, false),
    ("before_publication", false, false),
    ("until_publication", false, true),
];

/// What is asked: a filter, and publications that bound it, in the order of [`BOOKMARKS`].
#[derive(Clone, PartialEq, Eq, Debug)]
struct Wanted {
    filter: Filter,
    bookmarks: [Option<u64>; BOOKMARKS.len()],
}

impl Wanted {
    fn read(given: &Arguments, authid: &str, authrole: &str) -> Result<Self, Refused> {
        let bad =
            |key: &str, allowed: &str| refuse(wamp::INVALID_ARGUMENT, format!("{key} must be {allowed}"));
        let reverse = match given.named("reverse").map(OwnedValue::as_bool) {
            None => false,
            Some(Some(reverse)) => reverse,
            Some(None) => return bad("reverse", "a boolean"),
        };
        let topic = match given.named("topic").map(OwnedValue::as_str) {
            None => None,
            Some(Some(topic)) => Some(topic.to_owned()),
            Some(None) => return bad("topic", "a URI"),
        };
        let (from, until) = times(given)?;
        let mut bookmarks = [None; BOOKMARKS.len()];
        for (bookmark, (key, ..)) in bookmarks.iter_mut().zip(BOOKMARKS) {
            let Some(value) = given.named(key) else { continue };
            *bookmark = value.as_whole();
            if bookmark.is_none() {
                return bad(key, "the id of a publication");
            }
        }
        let (authid, authrole) = (authid.to_owned(), authrole.to_owned());
        Ok(Self { filter: Filter { from, until, reverse, topic, authid, authrole }, bookmarks })
    }

    /// Narrows the filter by publications whose places are known. The ids of those that are not.
    fn place(&mut self, found: &[Event]) -> Vec<u64> {
        let mut unknown = Vec::new();
        for (id, (_, is_lower, includes)) in self.bookmarks.into_iter().zip(BOOKMARKS) {
            let Some(id) = id else { continue };
            let Some(event) = found.iter().find(|event| event.publication == id) else {
                unknown.push(id);
                continue;
            };
            let (stamp, publication) = event.key();
            if is_lower {
                self.filter.from = self.filter.from.max((stamp, publication + u64::from(!includes)));
            } else {
                self.filter.until = self.filter.until.min((stamp, publication - u64::from(!includes)));
            }
        }
        self.bookmarks = [None; BOOKMARKS.len()];
        unknown
    }

    fn names_publications(&self) -> bool {
        self.bookmarks.iter().any(Option::is_some)
    }

    fn pack(&self) -> OwnedValue {
        let Filter { from, until, reverse, topic, authid, authrole } = &self.filter;
        let id = |id: Option<u64>| id.map_or(OwnedValue::Null, OwnedValue::from);
        OwnedValue::List(vec![
            from.0.into(),
            from.1.into(),
            until.0.into(),
            until.1.into(),
            (*reverse).into(),
            topic.as_deref().map_or(OwnedValue::Null, OwnedValue::from),
            authid.as_str().into(),
            authrole.as_str().into(),
            OwnedValue::List(self.bookmarks.into_iter().map(id).collect()),
        ])
    }

    /// None: another node has sent what no node packs.
    fn unpack(packed: &OwnedValue) -> Option<Self> {
        let [from, from_id, until, until_id, reverse, topic, authid, authrole, bookmarks] =
            packed.as_list()?
        else {
            return None;
        };
        let key = |stamp: &OwnedValue, id: &OwnedValue| Some((stamp.as_u64()?, id.as_u64()?));
        let text = |text: &OwnedValue| text.as_str().map(str::to_owned);
        let bookmarks: Vec<Option<u64>> = bookmarks.as_list()?.iter().map(OwnedValue::as_u64).collect();
        Some(Self {
            filter: Filter {
                from: key(from, from_id)?,
                until: key(until, until_id)?,
                reverse: reverse.as_bool()?,
                topic: if topic.is_null() { None } else { Some(text(topic)?) },
                authid: text(authid)?,
                authrole: text(authrole)?,
            },
            bookmarks: bookmarks.try_into().ok()?,
        })
    }
}

/// The first and the last place that the times given allow.
fn times(given: &Arguments) -> Result<(Key, Key), Refused> {
    let (mut first_ms, mut last_ms) = (i64::MIN, i64::MAX);
    for key in ["from_time", "after_time", "before_time", "until_time"] {
        let Some(value) = given.named(key) else { continue };
        let Some((ms, is_whole)) = value.as_str().and_then(rfc_3339) else {
            return refuse(wamp::INVALID_ARGUMENT, format!("{key} must be a time as in RFC 3339"));
        };
        // Events have whole milliseconds.
        match key {
            "from_time" => first_ms = first_ms.max(ms + i64::from(!is_whole)),
            "after_time" => first_ms = first_ms.max(ms + 1),
            "before_time" => last_ms = last_ms.min(ms - i64::from(is_whole)),
            _ => last_ms = last_ms.min(ms),
        }
    }
    if last_ms < 0 {
        // Before all times that events can have.
        return Ok(((u64::MAX, u64::MAX), (0, 0)));
    }
    Ok(((first_of(first_ms.max(0) as u64), 0), (last_of(last_ms as u64), u64::MAX)))
}

/// Takes events of another part in, in the direction of `reverse`, each publication once. `more`: the part they are put into, and
/// theirs, were cut after their last event. True when the whole is cut.
pub(super) fn merge(
    mine: &mut Vec<Event>,
    theirs: Vec<Event>,
    more: [bool; 2],
    limit: usize,
    reverse: bool,
) -> bool {
    let ends = [mine.last().map(Event::key), theirs.last().map(Event::key)];
    mine.extend(theirs);
    // A publication that two nodes had to stamp themselves has its first stamp.
    mine.sort_by_key(|event| (event.publication, event.stamp));
    mine.dedup_by_key(|event| event.publication);
    mine.sort_by_key(Event::key);
    if reverse {
        mine.reverse();
    }
    // Beyond the end of a part that was cut there may be events that nobody has told of.
    for (end, _) in ends.into_iter().zip(more).filter(|(_, more)| *more) {
        let Some(end) = end else { continue };
        mine.retain(|event| if reverse { event.key() >= end } else { event.key() <= end });
    }
    let (whole, mut bytes) = (mine.len(), 0);
    let fits = |event: &&Event| {
        bytes += event.bytes();
        bytes <= EVENTS_BYTES_MAX
    };
    let fitting = mine.iter().take_while(fits).count().max(1);
    mine.truncate(fitting.min(limit));
    mine.len() < whole || more.contains(&true)
}

/// The direction of an answer's events.
pub(super) fn is_reverse(query: &Query) -> bool {
    query.op == Op::GetEvents && Wanted::unpack(&query.details).is_some_and(|wanted| wanted.filter.reverse)
}

impl Shard {
    /// What `wamp.subscription.get_events` asks for.
    pub(super) fn events_question(&mut self, slot: u32, given: &Arguments) -> Result<Query, Refused> {
        let id = given.id(0, "subscription")?;
        let limit = match given.named("limit").map(OwnedValue::as_whole) {
            None => EVENTS_MAX,
            Some(Some(limit)) if limit > 0 => (limit as usize).min(EVENTS_MAX),
            Some(_) => return refuse(wamp::INVALID_ARGUMENT, "limit must be a positive integer"),
        };
        let identity = &self.session(slot).identity;
        let wanted = Wanted::read(given, &identity.authid, &identity.authrole)?;
        let op = if wanted.names_publications() { Op::FindEvents } else { Op::GetEvents };
        Ok(Query { kind: RouteKind::Topic, id, limit, details: wanted.pack(), ..Query::new(op) })
    }

    /// What this shard keeps, and what is to be looked for. `count`: it is the home of the history; the route: of the
    /// subscription, if it is there at all.
    pub(super) fn look_for_events(&mut self, realm: u32, query: &Query) -> (Part, Option<Selection>) {
        let mut part = Part::default();
        let Some(topic) = self.topic_of(realm, query.id) else { return (part, None) };
        part.add_route(self.topic_info(topic));
        let Some(wanted) = Wanted::unpack(&query.details) else { return (part, None) };
        if !self.topics[topic as usize].kept {
            return (part, None);
        }
        part.count = 1;
        let mut selection = None;
        if query.op == Op::FindEvents {
            let ids = wanted.bookmarks.into_iter().flatten();
            part.events = ids.filter_map(|id| self.histories.find(topic, id)).collect();
        } else {
            let bounds = (query.limit.min(EVENTS_MAX), EVENTS_BYTES_MAX);
            selection = self.histories.begin(topic, wanted.filter, bounds, self.unix_ms());
        }
        (part, selection)
    }

    /// All have told what they keep: asks for what lies between the publications that were named, or answers.
    pub(super) fn events_told(&mut self, caller: Caller, realm: u32, query: &Query, part: &Part) {
        if part.count == 0 && part.partial {
            let text = "whoever keeps the history has not answered in time, or has too much to look for";
            return self.answer_error(caller, wamp::UNAVAILABLE, text);
        }
        if part.count == 0 {
            let (uri, text) = match part.routes.first() {
                Some(_) => (wamp::HISTORY_UNAVAILABLE, "no history is kept of subscription"),
                None => (wamp::NO_SUCH_SUBSCRIPTION, "there is no subscription"),
            };
            return self.answer_error(caller, uri, &format!("{text} {}", query.id));
        }
        let is_pattern = part.routes.first().is_some_and(|route| route.policy != Match::Exact);
        if is_pattern && self.session(caller.owner.slot).rules.off.has(Feature::PatternBasedSubscription) {
            let text = "pattern_based_subscription is switched off for this session";
            return self.answer_error(caller, wamp::NOT_AUTHORIZED, text);
        }
        let Some(mut wanted) = Wanted::unpack(&query.details) else { return };
        if query.op == Op::GetEvents {
            return self.answer_events(caller, query, part, &[]);
        }
        let unknown = wanted.place(&part.events);
        if !unknown.is_empty() {
            // Of no event it can be said that it came before or after them.
            let nothing = Part { events: Vec::new(), ..part.clone() };
            return self.answer_events(caller, query, &nothing, &unknown);
        }
        let query = Query { op: Op::GetEvents, details: wanted.pack(), ..query.clone() };
        if let Some(token) = self.ask(Asker::Session(caller), realm, query) {
            self.set_route(caller, Route::Asked(token));
        }
    }

    /// RESULT: the events are its arguments.
    fn answer_events(&mut self, caller: Caller, query: &Query, part: &Part, unknown: &[u64]) {
        let conn = self.at(caller.owner.slot);
        let (to, trusting) = (conn.serializer, conn.trusting);
        let is_exact = part.routes.first().is_some_and(|route| route.policy == Match::Exact);
        let told: Vec<Told> =
            part.events.iter().filter_map(|event| told(event, to, trusting, is_exact)).collect();
        self.metrics.add(Counter::DroppedTranscode, (part.events.len() - told.len()) as u64);
        let mut args = Vec::new();
        let fields: Vec<_> = told.iter().map(|told| told.fields(query.id)).collect();
        encode::list_of_dicts(to, &mut args, &fields);
        let mut said = Vec::new();
        said.extend(part.more.then_some(("more", OwnedValue::Bool(true))));
        said.extend(part.partial.then_some(("partial", OwnedValue::Bool(true))));
        if !unknown.is_empty() {
            said.push(("unknown", OwnedValue::list(unknown.iter().copied())));
        }
        let kwargs = (!said.is_empty()).then(|| OwnedValue::dict(said).to_bytes(to));
        let payload = Payload { args: Some(&args), kwargs: kwargs.as_deref() };
        self.answer(caller, &Answering { kind: Answer::Result, ppt: &[], from: to, payload });
    }
}

/// An event as one who asked is told it, in the serializer of its connection.
struct Told {
    timestamp: String,
    publication: u64,
    details: OwnedValue,
    payload: Vec<u8>,
    args_bytes: Option<usize>,
    has_kwargs: bool,
}

/// None: its payload cannot be said in this serializer.
fn told(event: &Event, to: Serializer, trusting: bool, is_exact: bool) -> Option<Told> {
    let extra = Extra::parse(&event.extra)?;
    let mut details = Vec::new();
    details.extend((!is_exact).then_some(("topic", Field::Str(&event.topic))));
    details.extend(extra.details());
    details.extend(trusting.then_some(TRUST));
    let details = details.into_iter().map(|(key, field)| (key, value_of(field)));
    let mut payload = Vec::new();
    let parts = transcode::payload(event.serializer, event.payload(), to, &mut payload).ok()?;
    let (args_bytes, has_kwargs) = (parts.args.map(<[u8]>::len), parts.kwargs.is_some());
    Some(Told {
        timestamp: iso_8601(ms_of(event.stamp)),
        publication: event.publication,
        details: OwnedValue::dict(details),
        payload,
        args_bytes,
        has_kwargs,
    })
}

fn value_of(field: Field<'_>) -> OwnedValue {
    match field {
        Field::Bool(value) => value.into(),
        Field::UInt(value) => value.into(),
        Field::Str(value) => value.into(),
        Field::Value(value) => value.clone(),
        Field::Encoded(_) => OwnedValue::Null,
    }
}

impl Told {
    fn fields(&self, subscription: u64) -> Vec<(&str, Field<'_>)> {
        let mut fields = vec![
            ("timestamp", Field::Str(&self.timestamp)),
            ("subscription", Field::UInt(subscription)),
            ("publication", Field::UInt(self.publication)),
            ("details", Field::Value(&self.details)),
        ];
        let (args, kwargs) = self.payload.split_at(self.args_bytes.unwrap_or(0));
        fields.extend(self.args_bytes.map(|_| ("args", Field::Encoded(args))));
        fields.extend(self.has_kwargs.then_some(("kwargs", Field::Encoded(kwargs))));
        fields
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::history::test_events::event;

    fn given(kwargs: &str) -> Arguments {
        let payload = Payload { args: Some(b"[1]"), kwargs: Some(kwargs.as_bytes()) };
        Arguments::read(Serializer::Json, payload).expect("JSON")
    }

    fn wanted(kwargs: &str) -> Result<Wanted, &'static str> {
        Wanted::read(&given(kwargs), "joe", "user").map_err(|(uri, _)| uri)
    }

    #[test]
    fn times_bound_whole_milliseconds() {
        let between = |kwargs: &str| {
            let Filter { from, until, .. } = wanted(kwargs).expect("times").filter;
            (from, until)
        };
        let (first, last) = (|ms: u64| (first_of(ms), 0), |ms: u64| (last_of(ms), u64::MAX));
        let far = last(i64::MAX as u64);
        for (kwargs, expected) in [
            (r#"{"from_time":"1970-01-01T00:00:02Z"}"#, (first(2_000), far)),
            (r#"{"from_time":"1970-01-01T00:00:02.0001Z"}"#, (first(2_001), far)),
            (r#"{"after_time":"1970-01-01T00:00:02Z"}"#, (first(2_001), far)),
            (r#"{"after_time":"1970-01-01T00:00:02.0001Z"}"#, (first(2_001), far)),
            (r#"{"before_time":"1970-01-01T00:00:02Z"}"#, (first(0), last(1_999))),
            (r#"{"before_time":"1970-01-01T00:00:02.0001Z"}"#, (first(0), last(2_000))),
            (r#"{"until_time":"1970-01-01T01:00:02.9999+01:00"}"#, (first(0), last(2_999))),
            (
                r#"{"from_time":"1970-01-01T00:00:02Z","after_time":"1970-01-01T00:00:03Z","until_time":"1970-01-01T00:00:05Z"}"#,
                (first(3_001), last(5_000)),
            ),
        ] {
            assert_eq!(between(kwargs), expected, "{kwargs}");
        }
        let (from, until) = between(r#"{"until_time":"1960-01-01T00:00:02Z"}"#);
        assert!(from > until);
    }

    #[test]
    fn what_is_no_filter_is_refused() {
        for bad in [
            r#"{"from_time":"yesterday"}"#,
            r#"{"until_time":5}"#,
            r#"{"reverse":1}"#,
            r#"{"topic":[]}"#,
            r#"{"after_publication":"x"}"#,
        ] {
            assert_eq!(wanted(bad), Err(wamp::INVALID_ARGUMENT), "{bad}");
        }
        let nothing = wanted(r#"{"reverse":null,"topic":null,"before_publication":null}"#);
        assert_eq!(nothing.map(|wanted| wanted.filter.until.1), Ok(u64::MAX));
    }

    #[test]
    fn publications_bound_the_filter_where_they_are() {
        let place = |kwargs: &str| {
            let mut wanted = wanted(kwargs).expect("ids");
            let unknown = wanted.place(&[event(3, 7, "").head(), event(5, 9, "").head()]);
            (wanted.filter.from, wanted.filter.until, unknown)
        };
        let far = (last_of(i64::MAX as u64), u64::MAX);
        let (three, five) = (3 << 16, 5 << 16);
        for (kwargs, expected) in [
            (r#"{"from_publication":7}"#, ((three, 7), far, vec![])),
            (r#"{"after_publication":7}"#, ((three, 8), far, vec![])),
            (r#"{"before_publication":9}"#, ((0, 0), (five, 8), vec![])),
            (r#"{"until_publication":9.0}"#, ((0, 0), (five, 9), vec![])),
            (r#"{"from_publication":7,"until_publication":8}"#, ((three, 7), far, vec![8])),
        ] {
            assert_eq!(place(kwargs), expected, "{kwargs}");
        }
    }

    #[test]
    fn what_is_wanted_reads_back() {
        for kwargs in [r#"{"reverse":true,"topic":"a.b","until_publication":8}"#, "{}"] {
            let wanted = wanted(kwargs).unwrap();
            assert_eq!(Wanted::unpack(&wanted.pack()), Some(wanted));
        }
        assert_eq!(Wanted::unpack(&OwnedValue::List(vec![OwnedValue::Null; 9])), None);
    }

    fn ids(events: &[Event]) -> Vec<u64> {
        events.iter().map(|event| event.publication).collect()
    }

    #[test]
    fn parts_merge_into_one_order_without_repetition() {
        let mut mine = vec![event(1, 1, "a"), event(3, 3, "a")];
        let theirs = vec![event(1, 1, "a"), event(2, 2, "a"), event(4, 3, "a")];
        assert!(!merge(&mut mine, theirs.clone(), [false, false], 10, false));
        assert_eq!((ids(&mine), mine[2].stamp), (vec![1, 2, 3], 3 << 16));
        assert!(merge(&mut mine, Vec::new(), [false, false], 2, false));
        assert_eq!(ids(&mine), [1, 2]);
        let mut back = vec![event(3, 3, "a"), event(1, 1, "a")];
        assert!(!merge(&mut back, vec![event(2, 2, "a")], [false, false], 10, true));
        assert_eq!(ids(&back), [3, 2, 1]);
    }

    #[test]
    fn nothing_is_told_beyond_where_a_part_was_cut() {
        let mut mine = vec![event(1, 1, "a"), event(2, 2, "a")];
        let theirs = vec![event(1, 1, "a"), event(5, 5, "a")];
        assert!(merge(&mut mine, theirs, [true, false], 10, false));
        assert_eq!(ids(&mine), [1, 2], "what comes between 2 and 5 is not known");
        let mut back = vec![event(5, 5, "a")];
        assert!(merge(&mut back, vec![event(4, 4, "a"), event(3, 3, "a")], [true, false], 10, true));
        assert_eq!(ids(&back), [5]);
    }

    #[test]
    fn long_parts_are_cut() {
        let long = |n: u64| Event { args: Some(vec![b' '; 100 << 10].into()), ..event(n, n, "a") };
        let mut mine: Vec<Event> = (1..=4).map(long).collect();
        assert!(merge(&mut mine, (5..=8).map(long).collect(), [false, false], 10, false));
        assert_eq!(ids(&mine), [1, 2, 3, 4, 5]);
    }
}
