//! Callers and callees: caller `c` calls procedure `c % R`, callee `e` of `E` serves the procedures `p` with
//! `p % E == e` and answers with the arguments it got.
//!
//! A thread has whole callees with all their callers. One call is four messages: CALL, INVOCATION, YIELD, RESULT.

use crate::blob::{Coding, Stamp};
use crate::checker::{Checker, Verdict};
use crate::client::{ClientError, fault};
use crate::outbox::Outbox;
use crate::pubsub::{INTACT_CHECK_PERIOD, Pace, argument};
use crate::schedule::Schedule;
use crate::tally::Tally;
use crate::template::{Shape, Template, read_head};
use crate::window::Window;
use crate::workload::{Phases, Turn, Workload};
use common::wire::message::code;
use common::wire::{Message, Serializer, decode};

/// What a thread's part is made of. Connections are numbered callees first.
#[derive(Clone, Debug)]
pub struct Plan {
    pub procedures: u32,
    pub callees_total: u32,
    pub callers_total: u32,
    /// Global indices.
    pub callees: Vec<u32>,
    /// Global indices.
    pub callers: Vec<u32>,
    pub caller_serializer: Serializer,
    pub callee_serializer: Serializer,
    pub coding: Coding,
    pub payload_bytes: usize,
    pub pace: Pace,
    /// The frames are relayed, not routed: a call is a frame to the callee and the same frame back.
    pub relay: bool,
    pub procedure_prefix: String,
}

impl Plan {
    fn procedure(&self, index: u32) -> String {
        format!("{}.procedure.{index}", self.procedure_prefix)
    }

    /// What a callee registers.
    pub fn procedures_of(&self, callee: u32) -> Vec<String> {
        (callee..self.procedures)
            .step_by(self.callees_total as usize)
            .map(|index| self.procedure(index))
            .collect()
    }

    /// The callee that serves a caller.
    pub fn callee_of(&self, caller: u32) -> u32 {
        caller % self.procedures % self.callees_total
    }
}

#[derive(Debug)]
pub struct Rpc {
    plan: Plan,
    caller_shape: Shape,
    callee_shape: Shape,
    yield_: Template,
    callers: Vec<Caller>,
    /// Position in `callers` by global index; [`NOT_HERE`] for those of other threads.
    caller_of_source: Vec<u32>,
    /// Callers that may be able to call.
    hopeful: Vec<u32>,
    schedule: Option<Schedule>,
    phases: Phases,
    in_flight: u64,
    tally: Tally,
    scratch: Vec<u8>,
}

#[derive(Debug)]
struct Caller {
    source: u32,
    connection: usize,
    template: Template,
    window: Window,
    sent: u64,
    /// Connection of its callee.
    callee: usize,
    /// What the callee saw of this caller.
    invocations: Checker,
    results: Checker,
    hopeful: bool,
}

const NOT_HERE: u32 = u32::MAX;

impl Rpc {
    pub fn new(plan: Plan) -> Self {
        let caller_shape = Shape::new(plan.caller_serializer, plan.coding, plan.payload_bytes);
        let callee_shape = Shape::new(plan.callee_serializer, plan.coding, plan.payload_bytes);
        let in_flight_max = if let Pace::Window(calls) = plan.pace { calls } else { 1 };
        let mut callee_connections = vec![usize::MAX; plan.callees_total as usize];
        for (connection, callee) in plan.callees.iter().enumerate() {
            callee_connections[*callee as usize] = connection;
        }
        let mut caller_of_source = vec![NOT_HERE; plan.callers_total as usize];
        let mut callers = Vec::with_capacity(plan.callers.len());
        for (index, source) in plan.callers.iter().enumerate() {
            caller_of_source[*source as usize] = index as u32;
            let procedure = plan.procedure(source % plan.procedures);
            callers.push(Caller {
                source: *source,
                connection: plan.callees.len() + index,
                template: Template::call(&caller_shape, &procedure),
                window: Window::new(in_flight_max),
                sent: 0,
                callee: callee_connections[plan.callee_of(*source) as usize],
                invocations: Checker::default(),
                results: Checker::default(),
                hopeful: false,
            });
        }
        Self {
            yield_: Template::yield_(&callee_shape),
            plan,
            caller_shape,
            callee_shape,
            callers,
            caller_of_source,
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

    fn call(&mut self, caller: usize, due_ns: u64, outbox: &mut Outbox) {
        let closed = self.is_closed_loop();
        let caller = &mut self.callers[caller];
        let stamp = Stamp {
            time_ns: due_ns,
            source: caller.source,
            sequence: (caller.sent & ((1 << self.plan.coding.sequence_bits()) - 1)) as u32,
        };
        caller.sent += 1;
        caller.template.write_stamped(caller.sent, stamp, &mut self.scratch);
        outbox.message(caller.connection, &self.scratch);
        if closed {
            caller.window.send(1);
        }
        self.in_flight += 1;
        self.tally.sent += 1;
    }

    fn hope(&mut self, caller: usize) {
        if !std::mem::replace(&mut self.callers[caller].hopeful, true) {
            self.hopeful.push(caller as u32);
        }
    }

    /// Checks what a callee got and answers it.
    #[inline]
    fn invocation(
        &mut self,
        connection: usize,
        request: u64,
        payload: &[u8],
        message: &[u8],
        outbox: &mut Outbox,
    ) {
        let coding = self.plan.coding;
        let Some(stamp) = coding.read(payload) else {
            self.corrupt("an invocation's payload does not begin with a stamp");
            return;
        };
        let caller = self.caller_of_source.get(stamp.source as usize).copied().unwrap_or(NOT_HERE);
        match self.callers.get_mut(caller as usize) {
            Some(caller) if caller.callee == connection => {
                caller.invocations.accept(stamp.sequence, coding.sequence_bits());
            }
            _ => self.misrouted("an invocation reached another procedure's callee"),
        }
        if self.plan.relay {
            outbox.message(connection, message);
            return;
        }
        if payload.len() == self.plan.payload_bytes {
            self.yield_.write_echo(request, payload, &mut self.scratch);
            outbox.message(connection, &self.scratch);
        } else {
            self.corrupt("an invocation's payload has another length");
        }
    }

    /// Checks an answer.
    #[inline]
    fn result(&mut self, connection: usize, request: u64, payload: &[u8], now_ns: u64) {
        let coding = self.plan.coding;
        let index = connection - self.plan.callees.len();
        let Some(stamp) = coding.read(payload) else {
            self.corrupt("a result's payload does not begin with a stamp");
            return;
        };
        let caller = &mut self.callers[index];
        if stamp.source != caller.source {
            self.misrouted("a result reached another caller");
            return;
        }
        let (sequence, verdict) = caller.results.accept(stamp.sequence, coding.sequence_bits());
        if sequence + 1 != request {
            self.misrouted("a result answers another call");
            return;
        }
        if sequence % INTACT_CHECK_PERIOD == 0 && !self.caller_shape.is_intact(payload) {
            self.corrupt("a result is not what was sent");
        }
        if verdict != Verdict::Duplicate {
            self.tally.delivered += 1;
            if self.phases.measures(now_ns) {
                self.tally.latency.saturating_record(now_ns.saturating_sub(stamp.time_ns));
            }
            self.settle(index, sequence);
        }
    }

    #[inline]
    fn settle(&mut self, caller: usize, sequence: u64) {
        self.in_flight = self.in_flight.saturating_sub(1);
        if self.is_closed_loop() && self.callers[caller].window.settle(sequence) {
            self.hope(caller);
        }
    }

    #[cold]
    fn corrupt(&mut self, what: &str) {
        self.tally.corrupt += 1;
        self.tally.fault(|| what.to_owned());
    }

    #[cold]
    fn misrouted(&mut self, what: &str) {
        self.tally.misrouted += 1;
        self.tally.fault(|| what.to_owned());
    }

    /// A message that the fast path did not recognize.
    #[cold]
    fn odd_message(
        &mut self,
        connection: usize,
        message: &[u8],
        now_ns: u64,
        outbox: &mut Outbox,
    ) -> Result<(), ClientError> {
        if self.plan.relay {
            self.corrupt("a relayed frame is not what was sent");
            return Ok(());
        }
        let callee = connection < self.plan.callees.len();
        let serializer = if callee { self.plan.callee_serializer } else { self.plan.caller_serializer };
        match decode(serializer, message)? {
            Message::Invocation { request, payload, .. } if callee => match argument(serializer, payload) {
                Some(payload) => self.invocation(connection, request, &payload, message, outbox),
                None => self.corrupt("an invocation without our argument"),
            },
            Message::Result { request, payload, .. } if !callee => match argument(serializer, payload) {
                Some(payload) => self.result(connection, request, &payload, now_ns),
                None => self.corrupt("a result without our argument"),
            },
            error @ Message::Error { kind: code::CALL, request, .. } if !callee => {
                self.tally.refused += 1;
                self.tally.fault(|| fault(error, "RESULT").to_string());
                let index = connection - self.plan.callees.len();
                if (1..=self.callers[index].sent).contains(&request) {
                    let bits = self.plan.coding.sequence_bits();
                    let low = ((request - 1) & ((1 << bits) - 1)) as u32;
                    self.callers[index].results.accept(low, bits);
                    self.settle(index, request - 1);
                }
            }
            other => return Err(fault(other, if callee { "INVOCATION" } else { "RESULT" })),
        }
        Ok(())
    }
}

impl Workload for Rpc {
    fn start(&mut self, phases: Phases) {
        self.phases = phases;
        match self.plan.pace {
            Pace::Window(_) => (0..self.callers.len()).for_each(|caller| self.hope(caller)),
            Pace::Rate(rate) if !self.callers.is_empty() => {
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
        outbox: &mut Outbox,
    ) -> Result<(), ClientError> {
        let callee = connection < self.plan.callees.len();
        // A relayed frame is the caller's own, also when it arrives at the callee.
        let shape = if callee && !self.plan.relay { &self.callee_shape } else { &self.caller_shape };
        let expected = match (self.plan.relay, callee) {
            (true, _) => code::CALL,
            (false, true) => code::INVOCATION,
            (false, false) => code::RESULT,
        };
        match (read_head(shape.serializer, message), shape.payload_at_end(message)) {
            (Some((code, request)), Some(payload)) if code == expected => {
                if callee {
                    self.invocation(connection, request, payload, message, outbox);
                } else {
                    self.result(connection, request, payload, now_ns);
                }
                Ok(())
            }
            _ => self.odd_message(connection, message, now_ns, outbox),
        }
    }

    fn drained(&mut self, connection: usize) {
        if self.is_closed_loop() && connection >= self.plan.callees.len() {
            self.hope(connection - self.plan.callees.len());
        }
    }

    #[inline]
    fn turn(&mut self, turn: Turn, outbox: &mut Outbox) -> Option<u64> {
        if !turn.sending {
            return None;
        }
        while let Some(index) = self.hopeful.pop() {
            let index = index as usize;
            self.callers[index].hopeful = false;
            while self.callers[index].window.is_open() && outbox.has_room(self.callers[index].connection) {
                self.call(index, turn.now_ns, outbox);
            }
        }
        loop {
            let schedule = self.schedule.as_mut()?;
            let due_ns = schedule.due_ns();
            let caller = (schedule.index() % self.callers.len() as u64) as usize;
            if due_ns > turn.now_ns {
                return Some(due_ns);
            }
            if !outbox.has_room(self.callers[caller].connection) {
                return None;
            }
            schedule.advance();
            self.call(caller, due_ns, outbox);
        }
    }

    fn in_flight(&self) -> u64 {
        self.in_flight
    }

    fn tally(&self) -> &Tally {
        &self.tally
    }

    fn finish(&mut self) -> Tally {
        for caller in &self.callers {
            self.tally.lost += caller.results.lost(caller.sent);
            self.tally.duplicated += caller.invocations.duplicated + caller.results.duplicated;
            self.tally.reordered += caller.invocations.reordered;
            self.tally.results_reordered += caller.results.reordered;
        }
        std::mem::take(&mut self.tally)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::transport::{Frame, Framer, Framing, Role};
    use common::wire::{OwnedValue, Payload, encode};

    fn plan(pace: Pace) -> Plan {
        Plan {
            procedures: 1,
            callees_total: 1,
            callers_total: 1,
            callees: vec![0],
            callers: vec![0],
            caller_serializer: Serializer::Cbor,
            callee_serializer: Serializer::Json,
            coding: Coding::Text,
            payload_bytes: 24,
            pace,
            relay: false,
            procedure_prefix: "t".into(),
        }
    }

    fn started(plan: Plan) -> (Rpc, Outbox) {
        let serializers = [plan.callee_serializer, plan.caller_serializer];
        let outbox = Outbox::new(serializers.map(|serializer| (Framing::RawSocket, serializer)));
        let mut rpc = Rpc::new(plan);
        rpc.start(Phases { start_ns: 0, measure_ns: 0, end_ns: u64::MAX });
        (rpc, outbox)
    }

    fn frames(outbox: &mut Outbox, connection: usize) -> Vec<Vec<u8>> {
        let mut bytes = std::mem::take(&mut outbox.queue(connection).bytes);
        let mut chunk = &mut bytes[..];
        let mut framer = Framer::new(Framing::RawSocket, Role::Server, Serializer::Json, 1 << 20);
        let mut frames = Vec::new();
        while let Some(Frame::Message(message)) = framer.next(&mut chunk).unwrap() {
            frames.push(message.to_vec());
        }
        frames
    }

    fn transcoded(from: Serializer, payload: Payload<'_>, to: Serializer) -> Vec<u8> {
        let mut args = Vec::new();
        OwnedValue::decode(from, payload.args.unwrap()).unwrap().encode(to, &mut args);
        args
    }

    /// The INVOCATIONs a router would make of what the caller queued.
    fn invocations(outbox: &mut Outbox) -> Vec<Vec<u8>> {
        let calls = frames(outbox, 1);
        let invocation = |call: &Vec<u8>| {
            let Message::Call { request, payload, .. } = decode(Serializer::Cbor, call).unwrap() else {
                panic!()
            };
            let args = transcoded(Serializer::Cbor, payload, Serializer::Json);
            let mut out = Vec::new();
            let payload = Payload { args: Some(&args), kwargs: None };
            encode::invocation(Serializer::Json, &mut out, request + 1_000, 5, &[], payload);
            out
        };
        calls.iter().map(invocation).collect()
    }

    /// The RESULTs a router would make of what the callee queued.
    fn results(outbox: &mut Outbox) -> Vec<Vec<u8>> {
        let yields = frames(outbox, 0);
        let result = |bytes: &Vec<u8>| {
            let Message::Yield { request, payload, .. } = decode(Serializer::Json, bytes).unwrap() else {
                panic!()
            };
            let args = transcoded(Serializer::Json, payload, Serializer::Cbor);
            let mut out = Vec::new();
            let payload = Payload { args: Some(&args), kwargs: None };
            encode::result(Serializer::Cbor, &mut out, request - 1_000, &[], payload);
            out
        };
        yields.iter().map(result).collect()
    }

    #[test]
    fn a_call_goes_round_and_opens_the_window() {
        let (mut rpc, mut outbox) = started(plan(Pace::Window(3)));
        rpc.turn(Turn { now_ns: 10, sending: true }, &mut outbox);
        for invocation in invocations(&mut outbox) {
            rpc.message(0, &invocation, 20, &mut outbox).unwrap();
        }
        let results = results(&mut outbox);
        assert_eq!((results.len(), rpc.in_flight()), (3, 3));
        for result in &results {
            rpc.message(1, result, 40, &mut outbox).unwrap();
        }
        assert_eq!((rpc.in_flight(), rpc.tally().latency.max()), (0, 30));
        rpc.turn(Turn { now_ns: 50, sending: true }, &mut outbox);
        assert_eq!(rpc.in_flight(), 3);
        rpc.message(1, &results[0], 60, &mut outbox).unwrap();
        let tally = rpc.finish();
        assert_eq!((tally.sent, tally.delivered, tally.lost, tally.duplicated), (6, 3, 3, 1));
    }

    #[test]
    fn overtaking_invocations_are_a_fault_and_overtaking_results_are_not() {
        let (mut rpc, mut outbox) = started(plan(Pace::Window(2)));
        rpc.turn(Turn { now_ns: 10, sending: true }, &mut outbox);
        for invocation in invocations(&mut outbox) {
            rpc.message(0, &invocation, 20, &mut outbox).unwrap();
        }
        for result in results(&mut outbox).iter().rev() {
            rpc.message(1, result, 40, &mut outbox).unwrap();
        }
        rpc.turn(Turn { now_ns: 50, sending: true }, &mut outbox);
        let invocations = invocations(&mut outbox);
        for invocation in invocations.iter().rev() {
            rpc.message(0, invocation, 60, &mut outbox).unwrap();
        }
        for result in results(&mut outbox).iter().rev() {
            rpc.message(1, result, 70, &mut outbox).unwrap();
        }
        let tally = rpc.finish();
        assert_eq!((tally.lost, tally.reordered, tally.results_reordered), (0, 1, 1));
    }

    #[test]
    fn a_result_with_another_request_id_is_misrouted() {
        let (mut rpc, mut outbox) = started(plan(Pace::Window(1)));
        rpc.turn(Turn { now_ns: 10, sending: true }, &mut outbox);
        for invocation in invocations(&mut outbox) {
            rpc.message(0, &invocation, 20, &mut outbox).unwrap();
        }
        let result = &results(&mut outbox)[0];
        let Message::Result { payload, .. } = decode(Serializer::Cbor, result).unwrap() else { panic!() };
        let mut wrong = Vec::new();
        encode::result(Serializer::Cbor, &mut wrong, 2, &[], payload);
        rpc.message(1, &wrong, 40, &mut outbox).unwrap();
        assert_eq!(rpc.tally().misrouted, 1);
    }

    #[test]
    fn an_error_settles_its_call() {
        let (mut rpc, mut outbox) = started(plan(Pace::Window(1)));
        rpc.turn(Turn { now_ns: 10, sending: true }, &mut outbox);
        let mut error = Vec::new();
        let payload = Payload::default();
        let uri = "wamp.error.no_such_procedure";
        encode::error(Serializer::Cbor, &mut error, code::CALL, 1, &[], uri, payload);
        rpc.message(1, &error, 40, &mut outbox).unwrap();
        assert_eq!(rpc.in_flight(), 0);
        let tally = rpc.finish();
        assert_eq!((tally.refused, tally.lost), (1, 0));
        assert!(tally.first_fault.unwrap().contains(uri));
    }

    #[test]
    fn relayed_calls_come_back_as_they_were() {
        let (mut rpc, mut outbox) =
            started(Plan { relay: true, callee_serializer: Serializer::Cbor, ..plan(Pace::Window(1)) });
        rpc.turn(Turn { now_ns: 10, sending: true }, &mut outbox);
        let call = frames(&mut outbox, 1).remove(0);
        rpc.message(0, &call, 20, &mut outbox).unwrap();
        let echo = frames(&mut outbox, 0).remove(0);
        assert_eq!(echo, call);
        rpc.message(1, &echo, 30, &mut outbox).unwrap();
        assert!(rpc.finish().is_clean());
    }

    #[test]
    fn procedures_are_shared_out_among_callees() {
        let plan = Plan { procedures: 5, callees_total: 2, ..plan(Pace::Window(1)) };
        assert_eq!(plan.procedures_of(0), ["t.procedure.0", "t.procedure.2", "t.procedure.4"]);
        assert_eq!(plan.procedures_of(1), ["t.procedure.1", "t.procedure.3"]);
        assert_eq!(plan.callee_of(8), 1);
    }
}
