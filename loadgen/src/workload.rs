//! What a scenario does with established sessions, without IO.
//!
//! The driver calls [`Workload::message`] for every message and [`Workload::turn`] once after each batch of them;
//! both may queue messages. `turn` alone begins new ones, and only while [`Turn::sending`].

use crate::client::ClientError;
use crate::outbox::Outbox;
use crate::tally::Tally;

/// What a workload is told about the present.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    /// Nanoseconds of the run's clock.
    pub now_ns: u64,
    /// False while connecting and while draining.
    pub sending: bool,
}

/// When the measured part of a run begins and ends; latencies outside of it are not recorded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Phases {
    pub start_ns: u64,
    pub measure_ns: u64,
    pub end_ns: u64,
}

impl Phases {
    #[inline]
    pub fn measures(&self, now_ns: u64) -> bool {
        (self.measure_ns..self.end_ns).contains(&now_ns)
    }
}

/// One thread's part of a scenario.
pub trait Workload: Send {
    /// All sessions of all threads are established.
    fn start(&mut self, phases: Phases);

    /// A session is established.
    fn ready(&mut self, connection: usize, now_ns: u64);

    /// A message came, at `now_ns`.
    ///
    /// # Errors
    /// When it ends the session.
    fn message(
        &mut self,
        connection: usize,
        message: &[u8],
        now_ns: u64,
        outbox: &mut Outbox,
    ) -> Result<(), ClientError>;

    /// A blocked connection drained.
    fn drained(&mut self, connection: usize);

    /// Queues what is due. Returns when it wants to be called at the latest.
    fn turn(&mut self, turn: Turn, outbox: &mut Outbox) -> Option<u64>;

    /// Messages that are still to arrive.
    fn in_flight(&self) -> u64;

    fn tally(&self) -> &Tally;

    /// Settles the final counts.
    fn finish(&mut self) -> Tally;
}
