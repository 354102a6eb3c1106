//! When the data plane is started again. Sans-IO.
//!
//! A data plane that dies is replaced at once; one that dies again and again soon after its start is given growing
//! pauses; one that cannot even start the first time is given up, so that the operator sees why.

use std::time::{Duration, Instant};

#[derive(Debug, Default)]
pub struct Supervisor {
    /// Quick ends in a row.
    failures: u32,
    /// A data plane has been linked since this process started.
    ever_linked: bool,
}

/// How a data plane ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct End {
    pub ran: Duration,
    /// Its exit status, when it ended by itself.
    pub status: Option<i32>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    StartAt(Instant),
    /// Starting it again will not help.
    GiveUp,
}

impl Supervisor {
    /// A data plane said hello.
    pub fn linked(&mut self) {
        self.ever_linked = true;
    }

    pub fn ended(&mut self, now: Instant, end: End) -> Verdict {
        if !self.ever_linked && end.status == Some(EX_CONFIG) {
            return Verdict::GiveUp;
        }
        if end.ran >= QUICK_MAX {
            self.failures = 0;
            return Verdict::StartAt(now);
        }
        self.failures = self.failures.saturating_add(1);
        if !self.ever_linked && self.failures >= FIRST_STARTS_MAX {
            return Verdict::GiveUp;
        }
        Verdict::StartAt(now + back_off(self.failures))
    }
}

/// The pause after this many quick ends in a row.
fn back_off(failures: u32) -> Duration {
    match failures {
        0..=2 => Duration::ZERO,
        more => PAUSE_MIN.saturating_mul(1 << (more - 3).min(16)).min(PAUSE_MAX),
    }
}

/// A data plane that ran at least this long did not fail to start.
pub const QUICK_MAX: Duration = Duration::from_secs(10);
/// The pause after the third quick end in a row; each further one doubles it.
pub const PAUSE_MIN: Duration = Duration::from_millis(250);
pub const PAUSE_MAX: Duration = Duration::from_secs(10);
/// Starts of a data plane that never came up.
pub const FIRST_STARTS_MAX: u32 = 3;
/// The exit status of a configuration error (sysexits.h).
const EX_CONFIG: i32 = 78;

#[cfg(test)]
mod tests {
    use super::*;

    const KILLED: End = End { ran: Duration::from_secs(60), status: None };
    const QUICK: End = End { ran: Duration::from_millis(1), status: Some(1) };

    #[test]
    fn a_data_plane_that_served_is_replaced_at_once() {
        let (mut supervisor, now) = (Supervisor::default(), Instant::now());
        supervisor.linked();
        for _ in 0..9 {
            assert_eq!(supervisor.ended(now, KILLED), Verdict::StartAt(now));
        }
    }

    #[test]
    fn quick_ends_in_a_row_are_followed_by_growing_pauses() {
        let (mut supervisor, now) = (Supervisor::default(), Instant::now());
        supervisor.linked();
        let pauses: Vec<_> = (0..5)
            .map(|_| match supervisor.ended(now, QUICK) {
                Verdict::StartAt(at) => (at - now).as_millis(),
                Verdict::GiveUp => panic!("gave up"),
            })
            .collect();
        assert_eq!(pauses, [0, 0, 250, 500, 1_000]);
        assert_eq!(back_off(40), PAUSE_MAX);
        supervisor.ended(now, KILLED);
        assert_eq!(supervisor.ended(now, QUICK), Verdict::StartAt(now));
    }

    #[test]
    fn one_that_never_comes_up_is_given_up() {
        let (mut supervisor, now) = (Supervisor::default(), Instant::now());
        assert_eq!(supervisor.ended(now, QUICK), Verdict::StartAt(now));
        assert_eq!(supervisor.ended(now, QUICK), Verdict::StartAt(now));
        assert_eq!(supervisor.ended(now, QUICK), Verdict::GiveUp);
        let config = End { status: Some(78), ..QUICK };
        assert_eq!(Supervisor::default().ended(now, config), Verdict::GiveUp);
    }
}
