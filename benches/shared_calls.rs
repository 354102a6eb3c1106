//! What calls cost a shard that are not the plain ones, as multiples of a call to a single callee: CPU time from the received
//! CALL to a RESULT that waits to be sent.
//!
//! - A call to a registration that 1,000 callees share, by each policy. A part of it is that 1,000 sessions are touched where
//!   a plain call touches one, so calls to 1,000 procedures of 1,000 sessions are measured too.
//! - A progressive result, over the half of a plain call: one message each.
//!
//! No kernel is involved: one shard is driven as `io` drives it, with caller and callees on it. What is compared is measured by
//! turns, and the median of the rounds' ratios is printed.

mod support;

use common::ids::BootEpoch;
use common::share::Invoke;
use common::wire::Payload;
use common::wire::encode::{self, Field};
use common::wire::message::code;
use dataplane::shard::{ConnId, Shard};
use std::time::Instant;
use support::cpu_time::cpu_time;
use support::{
    Numbered, PLACE, SERIALIZER, args, config, connect, frame, is_measured, median, receive, shard,
};

const CALLEES: u32 = 1_000;
const URI: &str = "com.example.procedure";

/// Who is called.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Callees {
    /// So many, who share one registration.
    Shared(u32, Invoke),
    /// So many, each with a procedure of its own.
    Own(u32),
}

struct Bench {
    shard: Shard,
    now: Instant,
    caller: ConnId,
    /// By turns.
    calls: Vec<Vec<u8>>,
    turn: usize,
    answer: Numbered,
    progress: Numbered,
    /// Invocations so far, by slot.
    invoked: Vec<u64>,
}

impl Bench {
    fn new(callees: Callees, options: &[(&str, Field<'_>)]) -> Self {
        let now = Instant::now();
        let mut shard = shard(config(0, 1, BootEpoch(1)), now);
        let caller = join(&mut shard, now, 0);
        let (count, invoke) = match callees {
            Callees::Shared(count, invoke) => (count, invoke),
            Callees::Own(count) => (count, Invoke::Single),
        };
        let uri = |slot: u32| match callees {
            Callees::Shared(..) => URI.to_owned(),
            Callees::Own(_) => format!("{URI}{slot}"),
        };
        for slot in 1..=count {
            let callee = join(&mut shard, now, slot);
            let mut register = frame(|out| {
                let options = [("invoke", Field::Str(invoke.name()))];
                encode::id_dict_uri(SERIALIZER, out, code::REGISTER, 1, &options, &uri(slot));
            });
            receive(&mut shard, now, callee, &mut register);
        }
        let args = args();
        let payload = Payload { args: Some(&args), kwargs: None };
        let call = |slot| frame(|out| encode::call(SERIALIZER, out, 1, options, &uri(slot), payload));
        let calls = if matches!(callees, Callees::Own(_)) { count } else { 1 };
        let answer =
            |options: &[_]| Numbered::new(1, |out| encode::yield_(SERIALIZER, out, PLACE, options, payload));
        Self {
            shard,
            now,
            caller,
            calls: (1..=calls).map(call).collect(),
            turn: 0,
            answer: answer(&[]),
            progress: answer(&[("progress", Field::Bool(true))]),
            invoked: vec![0; count as usize + 1],
        }
    }

    /// A call. Its callee, and the id it knows the call by.
    fn call(&mut self) -> (ConnId, u64) {
        self.turn = (self.turn + 1) % self.calls.len();
        let bytes = &mut self.calls[self.turn];
        let callee = receive(&mut self.shard, self.now, self.caller, bytes).expect("one is invoked");
        assert_ne!(callee, self.caller, "the call is not refused");
        let invoked = &mut self.invoked[callee.slot as usize];
        *invoked += 1;
        (callee, *invoked)
    }

    fn answer(&mut self, (callee, request): (ConnId, u64)) {
        let answered = receive(&mut self.shard, self.now, callee, self.answer.number(request));
        assert_eq!(answered, Some(self.caller), "the caller gets the result");
    }

    /// CPU time of a call and its answer, nanoseconds.
    fn round(&mut self, calls: u32) -> f64 {
        let start = cpu_time();
        for _ in 0..calls {
            let invocation = self.call();
            self.answer(invocation);
        }
        (cpu_time() - start).as_nanos() as f64 / f64::from(calls)
    }

    /// CPU time of a progressive result, nanoseconds.
    fn progress_round(&mut self, results: u32) -> f64 {
        let (callee, request) = self.call();
        let start = cpu_time();
        for _ in 0..results {
            let told = receive(&mut self.shard, self.now, callee, self.progress.number(request));
            assert_eq!(told, Some(self.caller), "the caller gets the result");
        }
        let time = (cpu_time() - start).as_nanos() as f64 / f64::from(results);
        self.answer((callee, request));
        time
    }
}

fn join(shard: &mut Shard, now: Instant, slot: u32) -> ConnId {
    let conn = ConnId { slot, generation: 1 };
    let mut bytes = connect(shard, now, conn, &[]);
    receive(shard, now, conn, &mut bytes);
    conn
}

/// The median of the rounds' ratios, and that of what they are ratios to, nanoseconds.
fn compare(rounds: usize, mut round: impl FnMut() -> (f64, f64)) -> (f64, f64) {
    let rounds: Vec<(f64, f64)> = (0..=rounds).map(|_| round()).skip(1).collect();
    let ratios = rounds.iter().map(|(one, other)| one / other).collect();
    (median(ratios), median(rounds.iter().map(|(_, other)| *other).collect()))
}

fn main() {
    let (rounds, calls, callees) = if is_measured() { (31, 20_000, CALLEES) } else { (1, 100, 10) };
    let mut plain = Bench::new(Callees::Own(1), &[]);
    let mut own = Bench::new(Callees::Own(callees), &[]);
    let (ratio, ns) = compare(rounds, || (own.round(calls), plain.round(calls)));
    println!("a call to one of {callees} procedures of as many sessions, over 1: {ratio:.2} (1: {ns:.0} ns)");
    for invoke in Invoke::ALL.into_iter().skip(1) {
        let mut shared = Bench::new(Callees::Shared(callees, invoke), &[]);
        let (ratio, ns) = compare(rounds, || (shared.round(calls), plain.round(calls)));
        let (to_own, _) = compare(rounds, || (shared.round(calls), own.round(calls)));
        let name = invoke.name();
        println!(
            "{name:<28} {callees} callees over 1: {ratio:.2} (1: {ns:.0} ns), over {callees}: {to_own:.2}"
        );
    }
    let mut progress = Bench::new(Callees::Own(1), &[("receive_progress", Field::Bool(true))]);
    let (ratio, ns) = compare(rounds, || (progress.progress_round(calls), plain.round(calls) / 2.0));
    println!("a progressive result over half a plain call: {ratio:.2} ({ns:.0} ns)");
}
