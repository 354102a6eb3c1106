//! Events on their way to the subscribers of one shard.
//!
//! An event is encoded once for each serializer among its receivers here, whatever their number. What one receiver is
//! told and another is not (the trust level) makes two forms of it.

use super::compression::{Codecs, Key};
use super::conn::Conn;
use super::flow::{Class, Queued, Queues};
use super::publication::Extra;
use super::replay::hold_back;
use super::resume::Keeping;
use super::{ConnId, Shard};
use bytes::Bytes;
use common::ids::Match;
use common::limits::DEFLATE_BYTES_MIN;
use common::metrics::Counter;
use common::transport::{Framing, HEADER_BYTES_MAX, write_message};
use common::wire::encode::{self, Field};
use common::wire::{Payload, Serializer, transcode};
use std::time::Instant;

/// Events at least this long are shared by their receivers instead of copied to each.
const SHARE_BYTES_MIN: usize = 2_048;

/// Memory that is reused from message to message.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// The payload transcoded, by serializer.
    payloads: [Transcoded; 3],
    /// The event encoded, by form and serializer.
    events: [[Vec<u8>; 3]; FORMS],
    /// The event framed for sharing: one of each way at most.
    shared: Vec<(Way, Bytes)>,
    /// Compressors that belong to no connection.
    pub(super) codecs: Codecs,
}

/// What makes two frames of one event the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Way {
    trusting: bool,
    serializer: Serializer,
    framing: Framing,
    /// Compressed, each message by itself.
    alone: Option<Key>,
}

/// Forms of an event: without the trust level, and with it.
const FORMS: usize = 2;
/// What every publication is trusted (WAMP, advanced profile, "Publication Trust Levels"): nothing raises it yet.
pub(super) const TRUST: (&str, Field<'static>) = ("trustlevel", Field::UInt(0));

/// Bytes each scratch buffer keeps from message to message.
const SCRATCH_KEEP_BYTES_MAX: usize = 1 << 16;

/// A payload in another serializer.
#[derive(Debug, Default)]
pub(super) struct Transcoded {
    state: TranscodeState,
    bytes: Vec<u8>,
    args_len: usize,
    has_args: bool,
    has_kwargs: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
enum TranscodeState {
    #[default]
    Not,
    Done,
    /// The payload cannot be said in this serializer.
    Impossible,
}

impl Transcoded {
    /// Transcodes once; later calls for the same payload (until `reset`) only read.
    pub fn fill(&mut self, from: Serializer, to: Serializer, payload: Payload<'_>) -> Option<Payload<'_>> {
        if self.state == TranscodeState::Not {
            self.bytes.clear();
            self.has_args = payload.args.is_some();
            self.has_kwargs = payload.kwargs.is_some();
            let args = payload.args.map_or(Ok(()), |args| transcode::value(from, args, to, &mut self.bytes));
            self.args_len = self.bytes.len();
            let kwargs =
                payload.kwargs.map_or(Ok(()), |kwargs| transcode::value(from, kwargs, to, &mut self.bytes));
            self.state =
                if args.and(kwargs).is_ok() { TranscodeState::Done } else { TranscodeState::Impossible };
        }
        if self.state == TranscodeState::Impossible {
            return None;
        }
        let (args, kwargs) = self.bytes.split_at(self.args_len);
        Some(Payload { args: self.has_args.then_some(args), kwargs: self.has_kwargs.then_some(kwargs) })
    }

    pub fn reset(&mut self) {
        if self.state != TranscodeState::Not {
            self.state = TranscodeState::Not;
            self.bytes.clear();
            self.bytes.shrink_to(SCRATCH_KEEP_BYTES_MAX);
        }
    }
}

/// A publication for receivers here.
#[derive(Clone, Copy)]
pub(super) struct Published<'a> {
    pub topic: &'a str,
    pub publication: u64,
    /// Who may get it and what the event tells, packed.
    pub extra: &'a [u8],
    pub from: Serializer,
    pub payload: Payload<'a>,
    /// The whole message for subscribers of exactly this topic, if it came as one.
    pub encoded: Option<&'a [u8]>,
}

/// One event to deliver here.
struct Event<'a> {
    subscription: u64,
    publication: u64,
    /// The topic, said to pattern subscribers (WAMP, advanced profile, "Pattern-based Subscriptions").
    topic: Option<&'a str>,
    /// What it tells besides.
    details: &'a [(&'a str, Field<'a>)],
    from: Serializer,
    payload: Payload<'a>,
    /// The whole message in `from`, as another node encoded it.
    encoded: Option<&'a [u8]>,
    now: Instant,
    /// Subscribers here; for few, encoding in place is cheaper than encoding once and copying.
    receivers: usize,
}

impl Event<'_> {
    #[inline]
    fn write(&self, trusting: bool, to: Serializer, out: &mut Vec<u8>, payload: Payload<'_>) {
        match self.topic {
            _ if trusting || !self.details.is_empty() => {
                encode::event(to, out, self.subscription, self.publication, &self.all(trusting), payload);
            }
            None => encode::event(to, out, self.subscription, self.publication, &[], payload),
            Some(topic) => {
                let details = [("topic", Field::Str(topic))];
                encode::event(to, out, self.subscription, self.publication, &details, payload);
            }
        }
    }

    /// Everything the event tells.
    #[cold]
    fn all(&self, trusting: bool) -> Vec<(&str, Field<'_>)> {
        let mut details = Vec::with_capacity(self.details.len() + 2);
        details.extend(self.topic.map(|topic| ("topic", Field::Str(topic))));
        details.extend_from_slice(self.details);
        details.extend(trusting.then_some(TRUST));
        details
    }
}

impl Scratch {
    /// The event in `to`, or nothing when its payload cannot be said in it.
    #[inline]
    fn event(&mut self, event: &Event<'_>, trusting: bool, to: Serializer) -> Option<&[u8]> {
        let at = to.index();
        let encoded = &mut self.events[usize::from(trusting)][at];
        if let Some(whole) = event.encoded.filter(|_| to == event.from && !trusting && encoded.is_empty()) {
            encoded.extend_from_slice(whole);
        }
        if encoded.is_empty() {
            let payload = if to == event.from {
                event.payload
            } else {
                self.payloads[at].fill(event.from, to, event.payload)?
            };
            event.write(trusting, to, encoded, payload);
        }
        Some(encoded)
    }

    /// The event's whole frame for `conn`, shared with every receiver of the same way.
    fn shared(&mut self, conn: &Conn) -> Bytes {
        let way = Way {
            trusting: conn.trusting,
            serializer: conn.serializer,
            framing: conn.framing,
            alone: conn.compresses_alone(),
        };
        if let Some((_, frame)) = self.shared.iter().find(|(made, _)| *made == way) {
            return frame.clone();
        }
        let message = &self.events[usize::from(way.trusting)][way.serializer.index()];
        let mut frame = Vec::with_capacity(message.len() + HEADER_BYTES_MAX);
        write_message(way.framing, way.serializer, message, &mut frame);
        if let Some(key) = way.alone {
            let plain = std::mem::take(&mut frame);
            self.codecs.deflater(key).compress_frames(&plain, false, &mut frame);
        }
        let frame = Bytes::from(frame);
        self.shared.push((way, frame.clone()));
        frame
    }

    fn next_subscription(&mut self) {
        for event in self.events.as_flattened_mut() {
            event.clear();
            if event.capacity() > SCRATCH_KEEP_BYTES_MAX {
                *event = Vec::new();
            }
        }
        self.shared.clear();
    }

    fn next_payload(&mut self) {
        self.payloads.iter_mut().for_each(Transcoded::reset);
    }

    pub(super) fn payload(&mut self, to: Serializer) -> &mut Transcoded {
        &mut self.payloads[to.index()]
    }
}

impl Shard {
    /// Queues an event to every subscriber here of `topics`, except the connection in slot `except`. `extra`: what was
    /// packed, for a publication that has something.
    pub(super) fn deliver(
        &mut self,
        topics: &[u32],
        published: &Published<'_>,
        extra: Option<&Extra<'_>>,
        except: u32,
    ) {
        let details = extra.map(Extra::details).unwrap_or_default();
        let restricted = extra.filter(|extra| extra.is_restricted());
        let resource_key = extra.and_then(|extra| extra.resource_key);
        if resource_key.is_some() {
            self.learn_keys(topics);
        }
        let kept_bytes_max = self.kept_bytes_max();
        let scratch = &mut self.scratch;
        scratch.next_payload();
        for index in topics {
            let Some(subscription) = self.topics.get(*index as usize) else { continue };
            scratch.next_subscription();
            let is_exact = subscription.policy == Match::Exact;
            let event = Event {
                subscription: subscription.id,
                publication: published.publication,
                topic: (!is_exact).then_some(published.topic),
                details: &details,
                from: published.from,
                payload: published.payload,
                encoded: published.encoded.filter(|_| is_exact),
                now: self.now,
                receivers: subscription.subscribers.len(),
            };
            let conns = &mut self.conns;
            let mut queues = Queues {
                pool: &mut self.pool,
                metrics: &mut self.metrics,
                dirty: &mut self.dirty,
                queued_bytes: &mut self.queued_bytes,
                policy: &self.config.slow_receiver,
                keeping: Keeping {
                    kept_bytes: &mut self.resumption.kept_bytes,
                    kept_bytes_max,
                    buffer_max: self.config.resume.buffer_max,
                },
            };
            let mut events = 0;
            let chosen = resource_key.and_then(|key| subscription.keys.chosen(key));
            let is_for_some = restricted.is_some() || chosen.is_some();
            for slot in &subscription.subscribers {
                if *slot == except {
                    continue;
                }
                let Some(Some(conn)) = conns.get_mut(*slot as usize) else { continue };
                if is_for_some
                    && (restricted.is_some_and(|extra| !admits(extra, conn))
                        || chosen.is_some_and(|key| !subscription.keys.admits(*slot, key)))
                {
                    continue;
                }
                match queue_event(&mut queues, scratch, &event, *slot, conn) {
                    Queued::Yes => events += 1,
                    Queued::Doomed => self.doomed.push(ConnId { slot: *slot, generation: conn.generation }),
                    Queued::TooLarge => queues.metrics.count(Counter::DroppedTooLarge),
                    Queued::Full => {}
                }
            }
            self.metrics.add(Counter::Events, events);
        }
    }
}

fn admits(extra: &Extra<'_>, conn: &Conn) -> bool {
    conn.session.as_ref().is_some_and(|session| {
        let identity = &session.identity;
        extra.admits(session.id, &identity.authid, &identity.authrole)
    })
}

/// Queues one event to one receiver.
#[inline]
fn queue_event(
    queues: &mut Queues<'_>,
    scratch: &mut Scratch,
    event: &Event<'_>,
    slot: u32,
    conn: &mut Conn,
) -> Queued {
    if (conn.dropped > 0 || conn.holding)
        && let Some(queued) = queue_event_specially(queues, scratch, event, slot, conn)
    {
        return queued;
    }
    let trusting = conn.trusting;
    if let Some(message) = event.encoded
        && conn.serializer == event.from
        && message.len() < SHARE_BYTES_MIN
        && !trusting
    {
        return queues.push(slot, conn, Class::Event, message);
    }
    if event.receivers <= 2 && conn.serializer == event.from {
        return queues
            .push_with(slot, conn, Class::Event, |to, out| event.write(trusting, to, out, event.payload));
    }
    let Some(message) = scratch.event(event, trusting, conn.serializer) else {
        queues.metrics.count(Counter::DroppedTranscode);
        return Queued::Full;
    };
    let share_bytes_min = if conn.compresses_alone().is_some() { DEFLATE_BYTES_MIN } else { SHARE_BYTES_MIN };
    if message.len() < share_bytes_min {
        return queues.push(slot, conn, Class::Event, message);
    }
    let bytes = message.len();
    let frame = scratch.shared(conn);
    queues.push_shared(slot, conn, frame, bytes)
}

/// As `queue_event`, to a session that has lost events or has some held back. None: it gets this one as any other session.
#[cold]
fn queue_event_specially(
    queues: &mut Queues<'_>,
    scratch: &mut Scratch,
    event: &Event<'_>,
    slot: u32,
    conn: &mut Conn,
) -> Option<Queued> {
    let (ids, trusting, to) = ((event.subscription, event.publication), conn.trusting, conn.serializer);
    let encoded = || scratch.event(event, trusting, to).map(<[u8]>::to_vec);
    if conn.holding && hold_back(queues, conn, ids, event.now, encoded) {
        return Some(Queued::Full);
    }
    if conn.is_detached() {
        return Some(match scratch.event(event, trusting, to) {
            Some(message) => queues.keep(conn, message),
            None => {
                queues.metrics.count(Counter::DroppedTranscode);
                Queued::Full
            }
        });
    }
    (conn.dropped > 0).then(|| queue_event_after_loss(queues, scratch, event, slot, conn))
}

/// As `queue_event`, to a session that has lost events and is not yet told: this event says how many
/// (`Details._dropped`).
fn queue_event_after_loss(
    queues: &mut Queues<'_>,
    scratch: &mut Scratch,
    event: &Event<'_>,
    slot: u32,
    conn: &mut Conn,
) -> Queued {
    if conn.session.is_none() {
        // It has left, and is only not yet out of all tables.
        return Queued::Full;
    }
    let dropped = std::mem::take(&mut conn.dropped);
    let to = conn.serializer;
    let payload = if to == event.from {
        Some(event.payload)
    } else {
        scratch.payloads[to.index()].fill(event.from, to, event.payload)
    };
    let Some(payload) = payload else {
        queues.metrics.count(Counter::DroppedTranscode);
        return Queued::Full;
    };
    let mut details = vec![("_dropped", Field::UInt(u64::from(dropped)))];
    details.extend(event.all(conn.trusting));
    let queued = queues.push_with(slot, conn, Class::Event, |to, out| {
        encode::event(to, out, event.subscription, event.publication, &details, payload);
    });
    if queued != Queued::Yes {
        conn.dropped = conn.dropped.saturating_add(dropped);
    }
    queued
}
