//! The protocol's timers as rows of a table: one of each kind, and one for each suspect. Pure.
//!
//! A newer timer of a kind replaces the older, which is of an earlier connection to the cluster and would be ignored. Of
//! two for the same suspicion the earlier counts. So the table is bounded by the number of members.

use super::identity::Identity;
use foca::Timer;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use uuid::Uuid;

#[derive(Default)]
pub struct Timers {
    kinds: [Option<(Instant, Timer<Identity>)>; KINDS],
    suspects: BTreeMap<Uuid, (Instant, Timer<Identity>)>,
}

impl Timers {
    pub fn set(&mut self, at: Instant, timer: Timer<Identity>) {
        let kind = match &timer {
            Timer::ProbeRandomMember(_) => 0,
            Timer::SendIndirectProbe { .. } => 1,
            Timer::PeriodicAnnounce(_) => 2,
            Timer::PeriodicAnnounceDown(_) => 3,
            Timer::PeriodicGossip(_) => 4,
            Timer::ChangeSuspectToDown { member_id, .. } => {
                let node = member_id.node;
                if self.suspects.get(&node).is_none_or(|(_, known)| *known != timer) {
                    self.suspects.insert(node, (at, timer));
                }
                return;
            }
            // Members that are down are forgotten by the sweep.
            Timer::RemoveDown(_) => return,
        };
        self.kinds[kind] = Some((at, timer));
    }

    pub fn deadline(&self) -> Option<Instant> {
        let kinds = self.kinds.iter().flatten().map(|(at, _)| *at);
        kinds.chain(self.suspects.values().map(|(at, _)| *at)).min()
    }

    /// Takes the earliest timer that is due.
    pub fn pop(&mut self, now: Instant) -> Option<Timer<Identity>> {
        let at = self.deadline().filter(|at| *at <= now)?;
        if let Some(row) = self.kinds.iter_mut().find(|row| row.as_ref().is_some_and(|row| row.0 == at)) {
            return row.take().map(|(_, timer)| timer);
        }
        let node = self.suspects.iter().find(|(_, row)| row.0 == at).map(|(node, _)| *node)?;
        self.suspects.remove(&node).map(|(_, timer)| timer)
    }

    /// Moves all timers into the future.
    pub fn delay(&mut self, by: Duration) {
        self.kinds.iter_mut().flatten().for_each(|row| row.0 += by);
        self.suspects.values_mut().for_each(|row| row.0 += by);
    }
}

const KINDS: usize = 5;
