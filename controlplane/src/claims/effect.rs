//! From maps to routes: which entries may be used, and telling each change once. Pure.
//!
//! Level-triggered: whatever changed is looked at again, and what is wanted is compared with what was told last
//! (`shown`). The order in which things are looked at is of no matter, and nothing is told twice.

use super::contest::Claimant;
use super::owner::Owner;
use super::table::{Held, SlotId};
use super::{Claims, OWN, Output, ROUTES_PER_OUTPUT};
use common::ids::{NodeId, RouteKind};
use common::link::RouteChange;

impl Claims {
    /// The entry is to be looked at.
    pub(super) fn look_at(&mut self, id: u16, slot: SlotId) {
        if let Some(held) = self.owner_mut(id).table.get_mut(slot)
            && !held.queued
        {
            held.queued = true;
            self.dirty.push_back((id, slot));
        }
    }

    /// The entry was put: it and those that claim the same are to be looked at.
    pub(super) fn changed(&mut self, id: u16, slot: SlotId) {
        self.look_at(id, slot);
        let Some(held) = self.owner(id).table.get(slot) else { return };
        if held.key.kind == RouteKind::Procedure && self.contest.of(&held.key).len() > 1 {
            let claimants = self.contest.of(&held.key).to_vec();
            claimants.into_iter().for_each(|(id, slot)| self.look_at(id, slot));
        }
    }

    /// Looks at what waits for it until one output is full.
    pub(super) fn look(&mut self) {
        let mut changes = Vec::new();
        while changes.len() < ROUTES_PER_OUTPUT {
            if let Some((id, slot)) = self.dirty.pop_front() {
                self.evaluate(id, slot, false, &mut changes);
            } else if !self.sweep(&mut changes) {
                break;
            }
        }
        if !changes.is_empty() {
            self.outputs.push_front(Output::Routes(changes));
        }
    }

    /// Goes on with a walk over an owner's slots; false when there is none.
    fn sweep(&mut self, changes: &mut Vec<RouteChange>) -> bool {
        let walking = |owner: &Option<Owner>| owner.as_ref().is_some_and(|owner| owner.sweep.is_some());
        let Some(id) = self.owners.iter().position(walking) else { return false };
        let id = id as u16;
        while self.dirty.is_empty() && changes.len() < ROUTES_PER_OUTPUT {
            let owner = self.owner_mut(id);
            let Some(slot) = owner.sweep else { break };
            if slot < owner.table.slots_len() {
                owner.sweep = Some(slot + 1);
                self.evaluate(id, slot, true, changes);
                continue;
            }
            owner.sweep = None;
            if owner.gone && owner.table.is_empty() {
                let node = owner.head.owner;
                self.by_node.remove(&node);
                self.owners[usize::from(id)] = None;
                break;
            }
        }
        true
    }

    /// Compares what is wanted of an entry with what was told. `spread`: its owner came or went, so others that claim
    /// the same are to be looked at too.
    fn evaluate(&mut self, id: u16, slot: SlotId, spread: bool, changes: &mut Vec<RouteChange>) {
        let Some(owner) = self.owners.get(usize::from(id)).and_then(Option::as_ref) else { return };
        let Some(held) = owner.table.get(slot) else { return };
        let there = owner.table.is_held(held);
        let (shown, node) = (held.shown, owner.head.owner);
        let mut wanted = there && owner.is_routed();
        let mut lost = false;
        if held.key.kind == RouteKind::Procedure {
            let key = held.key.clone();
            let changed = if there {
                self.contest.join(&key, (id, slot))
            } else {
                self.contest.leave(&key, (id, slot))
            };
            if (changed || spread) && self.contest.of(&key).len() > usize::from(there) {
                let others = self.contest.of(&key).to_vec();
                others
                    .into_iter()
                    .filter(|other| *other != (id, slot))
                    .for_each(|(id, slot)| self.look_at(id, slot));
            }
            let winner = self.winner(self.contest.of(&key));
            let wins = winner.is_some_and(|winner| self.may_be_called((id, slot), winner));
            lost = wanted && !wins && winner.is_some_and(|winner| self.is_confirmed(winner));
            wanted &= wins;
        }
        let owner = self.owner_mut(id);
        let collected = owner.head.collected;
        let Some(held) = owner.table.get_mut(slot) else { return };
        held.queued = false;
        if id == OWN {
            let revoke = lost && !held.shown;
            held.shown = (held.shown || lost) && there;
            let key = revoke.then(|| held.key.clone());
            owner.table.reap(slot, collected);
            if let Some(key) = key {
                self.counts.revoked += 1;
                let uri = key.uri.as_ref().into();
                self.outputs.push_back(Output::Revoke { realm: key.realm, policy: key.policy, uri });
            }
            return;
        }
        if wanted != shown || wanted && held.news {
            (held.shown, held.news) = (wanted, false);
            changes.push(change(node, held, wanted));
        }
        owner.table.reap(slot, collected);
        self.shown = self.shown + usize::from(wanted) - usize::from(shown);
    }

    /// Which of several that claim a procedure comes first, among those that may be used: the last one that took the place
    /// of the others, else the least (stamp, node).
    fn winner(&self, claimants: &[Claimant]) -> Option<Claimant> {
        let usable = claimants.iter().filter_map(|claimant| Some((*claimant, self.usable(*claimant)?)));
        let rank = |held: &Held| match held.is_forced() {
            true => (0, u64::MAX - held.stamp.0),
            false => (1, held.stamp.0),
        };
        usable.min_by_key(|((id, _), held)| (rank(held), self.owner(*id).head.owner)).map(|(first, _)| first)
    }

    /// True for the winner, and for those that share the procedure with it in the same way and whose place it did not take.
    fn may_be_called(&self, claimant: Claimant, winner: Claimant) -> bool {
        if claimant == winner {
            return true;
        }
        let (Some(held), Some(first)) = (self.usable(claimant), self.usable(winner)) else { return false };
        let (Some(mine), Some(its)) = (&held.share, &first.share) else { return false };
        mine.shares_with(its) && (!first.is_forced() || held.stamp > first.stamp)
    }

    fn usable(&self, (id, slot): Claimant) -> Option<&Held> {
        let owner = self.owners.get(usize::from(id))?.as_ref().filter(|owner| owner.is_routed())?;
        owner.table.get(slot).filter(|held| owner.table.is_held(held))
    }

    /// The entry is known of its owner's present life, not just taken over.
    fn is_confirmed(&self, (id, slot): Claimant) -> bool {
        let table = &self.owner(id).table;
        table.get(slot).is_some_and(|held| table.is_current(held))
    }
}

fn change(node: NodeId, held: &Held, wanted: bool) -> RouteChange {
    let key = &held.key;
    let uri = key.uri.as_ref().into();
    let share = held.share.as_deref().copied().filter(|_| wanted);
    RouteChange { node, realm: key.realm, kind: key.kind, policy: key.policy, uri, wanted, share }
}
