//! Idle sessions, and churn: sessions that are closed and opened again at a rate, oldest first.

use crate::client::{ClientError, fault};
use crate::outbox::Outbox;
use crate::schedule::Schedule;
use crate::tally::Tally;
use crate::workload::{Phases, Turn, Workload};
use common::wire::{Serializer, decode};

#[derive(Debug)]
pub struct Idle {
    serializer: Serializer,
    /// When the session was to be renewed, while it is; from then its set-up time counts.
    renewal_due_ns: Vec<Option<u64>>,
    /// Sessions renewed per second; zero for none.
    churn_rate: f64,
    schedule: Option<Schedule>,
    phases: Phases,
    renewing: u64,
    tally: Tally,
}

impl Idle {
    pub fn new(connections: usize, serializer: Serializer, churn_rate: f64) -> Self {
        Self {
            serializer,
            renewal_due_ns: vec![None; connections],
            churn_rate,
            schedule: None,
            phases: Phases { start_ns: u64::MAX, measure_ns: u64::MAX, end_ns: u64::MAX },
            renewing: 0,
            tally: Tally::default(),
        }
    }
}

impl Workload for Idle {
    fn start(&mut self, phases: Phases) {
        self.phases = phases;
        if self.churn_rate > 0.0 && !self.renewal_due_ns.is_empty() {
            self.schedule = Some(Schedule::new(phases.start_ns, self.churn_rate));
        }
    }

    fn ready(&mut self, connection: usize, now_ns: u64) {
        let Some(due_ns) = self.renewal_due_ns[connection].take() else { return };
        self.renewing -= 1;
        self.tally.renewed += 1;
        self.tally.delivered += 1;
        if self.phases.measures(now_ns) {
            self.tally.latency.saturating_record(now_ns.saturating_sub(due_ns));
        }
    }

    fn message(
        &mut self,
        _connection: usize,
        message: &[u8],
        _now_ns: u64,
        _outbox: &mut Outbox,
    ) -> Result<(), ClientError> {
        Err(fault(decode(self.serializer, message)?, "nothing in an idle session"))
    }

    fn drained(&mut self, _connection: usize) {}

    fn turn(&mut self, turn: Turn, outbox: &mut Outbox) -> Option<u64> {
        if !turn.sending {
            return None;
        }
        loop {
            let schedule = self.schedule.as_mut()?;
            let due_ns = schedule.due_ns();
            let connection = (schedule.index() % self.renewal_due_ns.len() as u64) as usize;
            if due_ns > turn.now_ns {
                return Some(due_ns);
            }
            if self.renewal_due_ns[connection].is_some() {
                return None;
            }
            schedule.advance();
            self.renewal_due_ns[connection] = Some(due_ns);
            self.renewing += 1;
            self.tally.sent += 1;
            outbox.renewals.push(connection as u32);
        }
    }

    fn in_flight(&self) -> u64 {
        self.renewing
    }

    fn tally(&self) -> &Tally {
        &self.tally
    }

    fn finish(&mut self) -> Tally {
        self.tally.lost = self.renewing;
        std::mem::take(&mut self.tally)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started(connections: usize, churn_rate: f64) -> Idle {
        let mut idle = Idle::new(connections, Serializer::Json, churn_rate);
        idle.start(Phases { start_ns: 0, measure_ns: 0, end_ns: u64::MAX });
        idle
    }

    #[test]
    fn churn_renews_the_oldest_session_and_waits_for_it() {
        let (mut idle, mut outbox) = (started(2, 1e6), Outbox::default());
        let turn =
            |idle: &mut Idle, outbox: &mut Outbox, now_ns| idle.turn(Turn { now_ns, sending: true }, outbox);
        assert_eq!(turn(&mut idle, &mut outbox, 3_500), None, "both are being renewed");
        assert_eq!(outbox.renewals, [0, 1]);
        idle.ready(0, 4_000);
        assert_eq!(idle.in_flight(), 1);
        let latency_ns = idle.tally().latency.max();
        // The histogram keeps three digits.
        assert!((4_000..4_010).contains(&latency_ns), "from its due time 0: {latency_ns}");
        turn(&mut idle, &mut outbox, 4_000);
        assert_eq!(outbox.renewals, [0, 1, 0]);
    }

    #[test]
    fn without_churn_nothing_is_due() {
        let mut idle = started(3, 0.0);
        assert_eq!(idle.turn(Turn { now_ns: u64::MAX, sending: true }, &mut Outbox::default()), None);
        assert!(idle.finish().is_clean());
    }
}
