//! Publishers and subscribers: publisher `p` and subscriber `s` share topic `p % T == s % T`.
//!
//! A thread has whole topics with all their sessions, so windows need no other thread.

use crate::blob::{Coding, Stamp};
use crate::checker::{Checker, Verdict};
use crate::client::{ClientError, fault};
use crate::outbox::Outbox;
use crate::schedule::Schedule;
use crate::tally::Tally;
use crate::template::{Shape, Template, read_head};
use crate::window::Window;
use crate::workload::{Phases, Turn, Workload};
use common::wire::message::code;
use common::wire::{Message, OwnedValue, Payload, Serializer, decode};

/// What a thread's part is made of. Connections are numbered subscribers first.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Topics of the run, by which publishers and subscribers are matched.
    pub topics: u32,
    /// Global indices.
    pub subscribers: Vec<u32>,
    /// Global indices.
    pub publishers: Vec<u32>,
    /// Publishers of the whole run.
    pub publishers_total: u32,
    pub subscriber_serializer: Serializer,
    pub publisher_serializer: Serializer,
    pub coding: Coding,
    pub payload_bytes: usize,
    pub acknowledge: bool,
    pub pace: Pace,
    /// The frames are relayed, not routed: what arrives is the PUBLISH itself.
    pub relay: bool,
    pub topic_prefix: String,
}

/// What limits sending.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Pace {
    /// Messages in flight of each source.
    Window(u32),
    /// Messages per second of this thread's sources together.
    Rate(f64),
}

impl Plan {
    pub fn topic(&self, index: u32) -> String {
        format!("{}.topic.{}", self.topic_prefix, index % self.topics)
    }
}

/// The topic of a source that another thread has.
const NO_TOPIC: u32 = u32::MAX;

/// Every this many messages of a source the whole payload is compared; must be a power of two.
pub const INTACT_CHECK_PERIOD: u64 = 16;

#[derive(Debug)]
pub struct PubSub {
    plan: Plan,
    shape: Shape,
    subscribers: Vec<Subscriber>,
    publishers: Vec<Publisher>,
    /// By global index.
    sources: Vec<Source>,
    /// Publishers that may be able to send.
    hopeful: Vec<u32>,
    schedule: Option<Schedule>,
    phases: Phases,
    in_flight: u64,
    tally: Tally,
    scratch: Vec<u8>,
}

#[derive(Debug)]
struct Subscriber {
    topic: u32,
    /// By publisher of the topic: global index divided by the number of topics.
    checkers: Vec<Checker>,
}

#[derive(Debug)]
struct Publisher {
    source: u32,
    connection: usize,
    template: Template,
    window: Window,
    sent: u64,
    /// Subscribers of its topic, plus one for the acknowledgement.
    receivers: u32,
    hopeful: bool,
}

/// Where an event's publisher is found, worked out beforehand: divisions cost more than the rest of its check.
#[derive(Clone, Copy, Debug)]
struct Source {
    /// Position in `publishers`.
    publisher: u32,
    topic: u32,
    /// Position in `checkers` of the topic's subscribers.
    checker: u32,
}

impl PubSub {
    pub fn new(plan: Plan) -> Self {
        let topics = plan.topics;
        let publishers_of =
            |topic: u32| (plan.publishers_total.saturating_sub(topic)).div_ceil(topics) as usize;
        let subscribers: Vec<_> = plan.subscribers.iter().map(|index| index % topics).collect();
        let mut subscribers_of = vec![0u32; topics as usize];
        subscribers.iter().for_each(|topic| subscribers_of[*topic as usize] += 1);
        let arriving = if plan.relay { plan.publisher_serializer } else { plan.subscriber_serializer };
        let shape = Shape::new(arriving, plan.coding, plan.payload_bytes);
        let sending = Shape::new(plan.publisher_serializer, plan.coding, plan.payload_bytes);
        let in_flight_max = if let Pace::Window(messages) = plan.pace { messages } else { 1 };

        let nobody = Source { publisher: u32::MAX, topic: NO_TOPIC, checker: u32::MAX };
        let mut sources = vec![nobody; plan.publishers_total as usize];
        let mut publishers = Vec::with_capacity(plan.publishers.len());
        for (index, source) in plan.publishers.iter().enumerate() {
            sources[*source as usize] =
                Source { publisher: index as u32, topic: source % topics, checker: source / topics };
            publishers.push(Publisher {
                source: *source,
                connection: subscribers.len() + index,
                template: Template::publish(&sending, &plan.topic(*source), plan.acknowledge),
                window: Window::new(in_flight_max),
                sent: 0,
                receivers: subscribers_of[(*source % topics) as usize] + u32::from(plan.acknowledge),
                hopeful: false,
            });
        }
        let subscribers = subscribers
            .into_iter()
            .map(|topic| Subscriber { topic, checkers: vec![Checker::default(); publishers_of(topic)] })
            .collect();
        Self {
            plan,
            shape,
            subscribers,
            publishers,
            sources,
            hopeful: Vec::new(),
            schedule: None,
            phases: Phases { start_ns: u64::MAX, measure_ns: u64::MAX, end_ns: u64::MAX },
            in_flight: 0,
            tally: Tally::default(),
            scratch: Vec::new(),
        }
    }

    fn is_closed_loop(&self) -> bool {
        matches!(self.plan.pace, Pace::Window(_))
    }

    fn send(&mut self, publisher: usize, due_ns: u64, outbox: &mut Outbox) {
        let closed = self.is_closed_loop();
        let publisher = &mut self.publishers[publisher];
        let stamp = Stamp {
            time_ns: due_ns,
            source: publisher.source,
            sequence: (publisher.sent & ((1 << self.plan.coding.sequence_bits()) - 1)) as u32,
        };
        publisher.sent += 1;
        publisher.template.write_stamped(publisher.sent, stamp, &mut self.scratch);
        outbox.message(publisher.connection, &self.scratch);
        if closed {
            publisher.window.send(publisher.receivers);
        }
        self.in_flight += u64::from(publisher.receivers);
        self.tally.sent += 1;
    }

    /// Sends what the windows allow.
    fn fill_windows(&mut self, now_ns: u64, outbox: &mut Outbox) {
        while let Some(index) = self.hopeful.pop() {
            let index = index as usize;
            self.publishers[index].hopeful = false;
            while self.publishers[index].window.is_open()
                && outbox.has_room(self.publishers[index].connection)
            {
                self.send(index, now_ns, outbox);
            }
        }
    }

    /// Sends what is due, as far as the connections take it.
    fn keep_schedule(&mut self, now_ns: u64, outbox: &mut Outbox) -> Option<u64> {
        loop {
            let schedule = self.schedule.as_mut()?;
            let due_ns = schedule.due_ns();
            let publisher = (schedule.index() % self.publishers.len() as u64) as usize;
            if due_ns > now_ns {
                return Some(due_ns);
            }
            if !outbox.has_room(self.publishers[publisher].connection) {
                return None;
            }
            schedule.advance();
            self.send(publisher, due_ns, outbox);
        }
    }

    fn hope(&mut self, publisher: usize) {
        if !std::mem::replace(&mut self.publishers[publisher].hopeful, true) {
            self.hopeful.push(publisher as u32);
        }
    }

    /// One receiver settled `count` messages of a publisher, the last of which is `last`.
    #[inline]
    fn settle(&mut self, publisher: usize, last: u64, count: u64) {
        self.in_flight = self.in_flight.saturating_sub(count);
        if self.is_closed_loop() {
            let mut opened = false;
            for sequence in last + 1 - count..=last {
                opened |= self.publishers[publisher].window.settle(sequence);
            }
            if opened {
                self.hope(publisher);
            }
        }
    }

    #[inline]
    fn event(&mut self, subscriber: usize, payload: &[u8], now_ns: u64) {
        let coding = self.plan.coding;
        let Some(stamp) = coding.read(payload) else {
            self.corrupt("a payload does not begin with a stamp");
            return;
        };
        let receiver = &mut self.subscribers[subscriber];
        let source = self.sources.get(stamp.source as usize).filter(|source| source.topic == receiver.topic);
        let Some(&Source { publisher, checker, .. }) = source else {
            self.tally.misrouted += 1;
            self.tally.fault(|| {
                format!("an event of publisher {} reached another topic's subscriber", stamp.source)
            });
            return;
        };
        let checker = &mut receiver.checkers[checker as usize];
        let (sequence, verdict) = checker.accept(stamp.sequence, coding.sequence_bits());
        if sequence % INTACT_CHECK_PERIOD == 0 && !self.shape.is_intact(payload) {
            self.corrupt("a payload is not what was published");
        }
        match verdict {
            Verdict::Fresh { skipped } => {
                self.tally.delivered += 1;
                if self.phases.measures(now_ns) {
                    self.tally.latency.saturating_record(now_ns.saturating_sub(stamp.time_ns));
                }
                self.settle(publisher as usize, sequence, skipped + 1);
            }
            Verdict::Late => self.tally.delivered += 1,
            Verdict::Duplicate => {}
        }
    }

    #[cold]
    fn corrupt(&mut self, what: &str) {
        self.tally.corrupt += 1;
        self.tally.fault(|| what.to_owned());
    }

    /// A message that the fast path did not recognize.
    #[cold]
    fn odd_message(&mut self, connection: usize, message: &[u8], now_ns: u64) -> Result<(), ClientError> {
        if self.plan.relay {
            self.corrupt("a relayed frame is not what was sent");
            return Ok(());
        }
        let subscriber = connection < self.subscribers.len();
        let serializer =
            if subscriber { self.plan.subscriber_serializer } else { self.plan.publisher_serializer };
        match decode(serializer, message)? {
            Message::Event { payload, .. } if subscriber => {
                match argument(serializer, payload) {
                    Some(payload) => self.event(connection, &payload, now_ns),
                    None => self.corrupt("an event without our argument"),
                }
                Ok(())
            }
            error @ Message::Error { kind: code::PUBLISH, request, .. } if !subscriber => {
                self.tally.refused += 1;
                self.tally.fault(|| fault(error, "PUBLISHED").to_string());
                self.acknowledged(connection, request);
                Ok(())
            }
            other => Err(fault(other, if subscriber { "EVENT" } else { "PUBLISHED" })),
        }
    }

    fn acknowledged(&mut self, connection: usize, request: u64) {
        let publisher = connection - self.subscribers.len();
        match request.checked_sub(1) {
            Some(sequence) if sequence < self.publishers[publisher].sent => {
                self.settle(publisher, sequence, 1)
            }
            _ => self.corrupt("an acknowledgement of nothing that was published"),
        }
    }
}

/// The one argument of a payload.
pub fn argument(serializer: Serializer, payload: Payload<'_>) -> Option<Vec<u8>> {
    match OwnedValue::decode(serializer, payload.args?).ok()? {
        OwnedValue::List(mut list) if list.len() == 1 => match list.remove(0) {
            OwnedValue::Bin(bytes) => Some(bytes),
            OwnedValue::Str(text) => Some(text.into_bytes()),
            _ => None,
        },
        _ => None,
    }
}

impl Workload for PubSub {
    fn start(&mut self, phases: Phases) {
        self.phases = phases;
        match self.plan.pace {
            Pace::Window(_) => (0..self.publishers.len()).for_each(|publisher| self.hope(publisher)),
            Pace::Rate(rate) if !self.publishers.is_empty() => {
                self.schedule = Some(Schedule::new(phases.start_ns, rate));
            }
            Pace::Rate(_) => {}
        }
    }

    fn ready(&mut self, _connection: usize, _now_ns: u64) {}

    #[inline]
    fn message(
        &mut self,
        connection: usize,
        message: &[u8],
        now_ns: u64,
        _outbox: &mut Outbox,
    ) -> Result<(), ClientError> {
        let expected = if self.plan.relay { code::PUBLISH } else { code::EVENT };
        if connection < self.subscribers.len() {
            let head = read_head(self.shape.serializer, message);
            return match (head, self.shape.payload_at_end(message)) {
                (Some((code, _)), Some(payload)) if code == expected => {
                    self.event(connection, payload, now_ns);
                    Ok(())
                }
                _ => self.odd_message(connection, message, now_ns),
            };
        }
        match read_head(self.plan.publisher_serializer, message) {
            Some((code::PUBLISHED, request)) => {
                self.tally.acknowledged += 1;
                self.acknowledged(connection, request);
                Ok(())
            }
            _ => self.odd_message(connection, message, now_ns),
        }
    }

    fn drained(&mut self, connection: usize) {
        if self.is_closed_loop() && connection >= self.subscribers.len() {
            self.hope(connection - self.subscribers.len());
        }
    }

    #[inline]
    fn turn(&mut self, turn: Turn, outbox: &mut Outbox) -> Option<u64> {
        if !turn.sending {
            return None;
        }
        if self.is_closed_loop() {
            self.fill_windows(turn.now_ns, outbox);
            return None;
        }
        self.keep_schedule(turn.now_ns, outbox)
    }

    fn in_flight(&self) -> u64 {
        self.in_flight
    }

    fn tally(&self) -> &Tally {
        &self.tally
    }

    fn finish(&mut self) -> Tally {
        for subscriber in &self.subscribers {
            for (index, checker) in subscriber.checkers.iter().enumerate() {
                let source = index * self.plan.topics as usize + subscriber.topic as usize;
                let Some(publisher) = self.publishers.get(self.sources[source].publisher as usize) else {
                    continue;
                };
                self.tally.lost += checker.lost(publisher.sent);
                self.tally.duplicated += checker.duplicated;
                self.tally.reordered += checker.reordered;
            }
        }
        std::mem::take(&mut self.tally)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::transport::{Frame, Framer, Framing, Role};
    use common::wire::encode;

    fn plan(pace: Pace) -> Plan {
        Plan {
            topics: 1,
            subscribers: vec![0, 1],
            publishers: vec![0],
            publishers_total: 1,
            subscriber_serializer: Serializer::MsgPack,
            publisher_serializer: Serializer::Json,
            coding: Coding::Text,
            payload_bytes: 40,
            acknowledge: false,
            pace,
            relay: false,
            topic_prefix: "t".into(),
        }
    }

    fn outbox() -> Outbox {
        Outbox::new(
            [Serializer::MsgPack, Serializer::MsgPack, Serializer::Json].map(|s| (Framing::RawSocket, s)),
        )
    }

    fn started(plan: Plan) -> PubSub {
        let mut pubsub = PubSub::new(plan);
        pubsub.start(Phases { start_ns: 100, measure_ns: 100, end_ns: u64::MAX });
        pubsub
    }

    fn turn(pubsub: &mut PubSub, now_ns: u64, outbox: &mut Outbox) -> Option<u64> {
        pubsub.turn(Turn { now_ns, sending: true }, outbox)
    }

    /// The EVENTs a router would make of what the publisher queued, transcoded.
    fn events(outbox: &mut Outbox, extra_kwargs: bool) -> Vec<Vec<u8>> {
        let queue = outbox.queue(2);
        let mut bytes = std::mem::take(&mut queue.bytes);
        let mut chunk = &mut bytes[..];
        let mut framer = Framer::new(Framing::RawSocket, Role::Server, Serializer::Json, 1 << 20);
        let mut events = Vec::new();
        while let Some(frame) = framer.next(&mut chunk).unwrap() {
            let Frame::Message(message) = frame else { panic!("{frame:?}") };
            let Message::Publish { payload, .. } = decode(Serializer::Json, message).unwrap() else {
                panic!()
            };
            let mut args = Vec::new();
            OwnedValue::decode(Serializer::Json, payload.args.unwrap())
                .unwrap()
                .encode(Serializer::MsgPack, &mut args);
            let payload = Payload { args: Some(&args), kwargs: extra_kwargs.then_some(&[0x80]) };
            let mut event = Vec::new();
            encode::event(Serializer::MsgPack, &mut event, 5, 6, &[], payload);
            events.push(event);
        }
        events
    }

    #[test]
    fn a_window_is_refilled_when_all_subscribers_have_a_message() {
        let (mut pubsub, mut outbox) = (started(plan(Pace::Window(2))), outbox());
        assert_eq!(turn(&mut pubsub, 150, &mut outbox), None);
        let first = events(&mut outbox, false);
        assert_eq!((first.len(), pubsub.in_flight()), (2, 4));
        pubsub.message(0, &first[0], 170, &mut outbox).unwrap();
        turn(&mut pubsub, 170, &mut outbox);
        assert_eq!(events(&mut outbox, false).len(), 0, "one subscriber is missing");
        pubsub.message(1, &first[0], 180, &mut outbox).unwrap();
        turn(&mut pubsub, 180, &mut outbox);
        assert_eq!(events(&mut outbox, false).len(), 1);
        assert_eq!(pubsub.tally().latency.max(), 30);
        let tally = pubsub.finish();
        assert_eq!((tally.sent, tally.delivered, tally.lost), (3, 2, 4));
    }

    #[test]
    fn nothing_is_begun_while_draining() {
        let (mut pubsub, mut outbox) = (started(plan(Pace::Window(2))), outbox());
        pubsub.turn(Turn { now_ns: 1, sending: false }, &mut outbox);
        assert_eq!(events(&mut outbox, false).len(), 0);
    }

    #[test]
    fn latency_counts_from_the_due_time() {
        let (mut pubsub, mut outbox) = (started(plan(Pace::Rate(1e6))), outbox());
        assert_eq!(turn(&mut pubsub, 5_100, &mut outbox), Some(6_100));
        let events = events(&mut outbox, true);
        assert_eq!(events.len(), 6);
        pubsub.message(0, &events[0], 5_200, &mut outbox).unwrap();
        let latency_ns = pubsub.tally().latency.max();
        // The histogram keeps three digits.
        assert!((5_100..5_110).contains(&latency_ns), "due at 100, though sent at 5100: {latency_ns}");
    }

    #[test]
    fn lost_duplicated_and_reordered_events_are_told_apart() {
        let (mut pubsub, mut outbox) = (started(plan(Pace::Window(4))), outbox());
        turn(&mut pubsub, 150, &mut outbox);
        let events = events(&mut outbox, false);
        for index in [0, 2, 1, 1] {
            pubsub.message(0, &events[index], 170, &mut outbox).unwrap();
        }
        for event in &events {
            pubsub.message(1, event, 170, &mut outbox).unwrap();
        }
        let tally = pubsub.finish();
        assert_eq!((tally.lost, tally.duplicated, tally.reordered), (1, 1, 1));
        assert!(!tally.is_clean());
    }

    #[test]
    fn an_acknowledged_window_waits_for_the_acknowledgement() {
        let (mut pubsub, mut outbox) =
            (started(Plan { acknowledge: true, subscribers: vec![0], ..plan(Pace::Window(1)) }), outbox());
        // One subscriber only, so the publisher is connection 1.
        turn(&mut pubsub, 150, &mut outbox);
        assert_eq!(pubsub.in_flight(), 2);
        let mut published = Vec::new();
        encode::ids(Serializer::Json, &mut published, code::PUBLISHED, &[1, 99]);
        pubsub.message(1, &published, 160, &mut outbox).unwrap();
        assert_eq!((pubsub.in_flight(), pubsub.tally().acknowledged), (1, 1));
    }

    #[test]
    fn what_the_router_says_ends_up_in_the_fault() {
        let (mut pubsub, mut outbox) = (started(plan(Pace::Window(1))), outbox());
        turn(&mut pubsub, 150, &mut outbox);
        let mut error = Vec::new();
        let payload = Payload::default();
        encode::error(
            Serializer::Json,
            &mut error,
            code::PUBLISH,
            1,
            &[],
            "wamp.error.not_authorized",
            payload,
        );
        pubsub.message(2, &error, 160, &mut outbox).unwrap();
        assert_eq!(pubsub.tally().refused, 1);
        let fault = pubsub.tally().first_fault.clone().unwrap();
        assert!(fault.contains("PUBLISH") && fault.contains("wamp.error.not_authorized"), "{fault}");
        let mut abort = Vec::new();
        encode::dict_uri(Serializer::MsgPack, &mut abort, code::ABORT, &[], "wamp.error.protocol_violation");
        assert!(matches!(pubsub.message(0, &abort, 1, &mut outbox), Err(ClientError::Aborted { .. })));
    }

    #[test]
    fn an_event_of_another_topic_is_misrouted() {
        let two_topics = Plan { topics: 2, subscribers: vec![0, 1], ..plan(Pace::Window(1)) };
        let (mut pubsub, mut outbox) = (started(two_topics), outbox());
        turn(&mut pubsub, 150, &mut outbox);
        let events = events(&mut outbox, false);
        pubsub.message(1, &events[0], 160, &mut outbox).unwrap();
        assert_eq!(pubsub.tally().misrouted, 1);
    }
}
