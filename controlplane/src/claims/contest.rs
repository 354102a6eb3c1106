//! Who claims which procedure, over all owners. Pure.
//!
//! A table of candidates only: whether one counts (its owner lives, the entry is still there) and who wins is looked up
//! where it is asked, so a candidate that is late to leave does no harm.

use super::message::RouteKey;
use super::table::SlotId;
use std::collections::HashMap;

/// An owner by its number in the machine, and its entry.
pub(super) type Claimant = (u16, SlotId);

#[derive(Debug, Default)]
pub(super) struct Contest {
    claimants: HashMap<RouteKey, Claimants>,
}

/// Nearly all procedures have one.
#[derive(Debug)]
enum Claimants {
    One(Claimant),
    Many(Vec<Claimant>),
}

impl Contest {
    pub fn of(&self, key: &RouteKey) -> &[Claimant] {
        match self.claimants.get(key) {
            None => &[],
            Some(Claimants::One(one)) => std::slice::from_ref(one),
            Some(Claimants::Many(many)) => many,
        }
    }

    /// True when it was not there.
    pub fn join(&mut self, key: &RouteKey, claimant: Claimant) -> bool {
        let Some(claimants) = self.claimants.get_mut(key) else {
            self.claimants.insert(key.clone(), Claimants::One(claimant));
            return true;
        };
        match claimants {
            Claimants::One(one) if *one == claimant => false,
            Claimants::One(one) => {
                *claimants = Claimants::Many(vec![*one, claimant]);
                true
            }
            Claimants::Many(many) if many.contains(&claimant) => false,
            Claimants::Many(many) => {
                many.push(claimant);
                true
            }
        }
    }

    /// True when it was there.
    pub fn leave(&mut self, key: &RouteKey, claimant: Claimant) -> bool {
        let Some(claimants) = self.claimants.get_mut(key) else { return false };
        match claimants {
            Claimants::One(one) if *one != claimant => false,
            Claimants::One(_) => {
                self.claimants.remove(key);
                true
            }
            Claimants::Many(many) => {
                let Some(at) = many.iter().position(|other| *other == claimant) else { return false };
                many.swap_remove(at);
                if let [one] = many[..] {
                    *claimants = Claimants::One(one);
                }
                true
            }
        }
    }
}
