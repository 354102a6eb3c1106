//! How well we do ourselves: Lifeguard's local health (Dadgar, Phillips, Currey 2018, section IV). Pure.
//!
//! A node that is slow itself takes others for dead. The score goes up with signs that the fault is ours and down with
//! every probe that is answered; probing slows down with it.

/// 0 is healthy.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Health(u32);

impl Health {
    pub fn score(self) -> u32 {
        self.0
    }

    /// A probe was answered.
    pub fn better(&mut self) {
        self.0 = self.0.saturating_sub(1);
    }

    /// A probe failed and nobody else was heard, we were stalled, or others suspected us.
    pub fn worse(&mut self) {
        self.0 = (self.0 + 1).min(SCORE_MAX);
    }

    /// Probe intervals and time-outs are multiplied by this.
    pub fn probe_factor(self) -> u32 {
        self.0 + 1
    }

    /// The time a suspect has is multiplied by this.
    pub fn suspicion_factor(self) -> u32 {
        (self.0 + 1).min(SUSPICION_FACTOR_MAX)
    }
}

const SCORE_MAX: u32 = 7;
const SUSPICION_FACTOR_MAX: u32 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_score_stays_within_its_bounds() {
        let mut health = Health::default();
        health.better();
        assert_eq!((health.score(), health.probe_factor(), health.suspicion_factor()), (0, 1, 1));
        (0..20).for_each(|_| health.worse());
        assert_eq!((health.score(), health.probe_factor(), health.suspicion_factor()), (7, 8, 3));
        health.better();
        assert_eq!(health.score(), 6);
    }
}
