//! One connection of a lane follows another without disorder.
//!
//! A connection that broke for the other node may still have frames here that nobody has read, on any shard. What comes
//! on the next one must not overtake them. So the shard that accepted it answers the handshake only when every shard has
//! given up the connection before, and has taken what that one's shard passed on.
//!
//! ```text
//! new guest ─ Succeed ▶ every shard ─ Succeeded ▶ new guest
//!                          └ the one that had it ─ Barrier ▶ the others ─ BarrierPassed ▶ new guest
//! ```

use super::super::Shard;
use super::link::Role;
use crate::mesh::{Item, LaneName};
use common::ids::{ShardId, ShardSet};
use common::relay::Hello;

/// A guest whose handshake waits for the other shards.
#[derive(Debug)]
pub(super) struct Succession {
    slot: u32,
    link: u64,
    answer: Hello,
    missing: ShardSet,
    /// Barriers that are to be passed; below zero those that were, before it was said that they would be.
    barriers: i32,
}

impl Shard {
    /// A guest said which lane it is. Its handshake is answered with `answer` once it can follow the lane's connection
    /// before.
    pub(super) fn succeed(&mut self, slot: u32, hello: &Hello, answer: Hello) {
        let lane = LaneName { epoch: hello.from, shard: hello.shard, lane: hello.lane };
        let Some(link) = self.relay.links.get_mut(slot) else { return };
        link.lane = Some((lane, hello.attempt));
        let id = link.id;
        self.give_up(lane, hello.attempt);
        let others = self.others();
        if others.is_empty() {
            return self.guest_answer(slot, &answer);
        }
        let token = self.token();
        let waits = Succession { slot, link: id, answer, missing: others, barriers: 0 };
        self.relay.successions.insert(token, waits);
        for shard in others.iter() {
            self.mesh(shard).push(Item::Succeed { lane, attempt: hello.attempt, token });
        }
    }

    /// Ends this shard's older connections of a lane. True when there was one.
    fn give_up(&mut self, lane: LaneName, attempt: u64) -> bool {
        let links = self.relay.links.iter();
        let older = links.filter(|(_, link)| {
            link.role == Role::Guest
                && link.lane.is_some_and(|(name, number)| name == lane && number < attempt)
        });
        let older: Vec<u32> = older.map(|(slot, _)| slot).collect();
        older.iter().for_each(|slot| self.relay_drop(*slot));
        !older.is_empty()
    }

    /// A lane is on a new connection of shard `from`.
    pub(in crate::shard) fn lane_succeeds(
        &mut self,
        from: ShardId,
        lane: LaneName,
        attempt: u64,
        token: u64,
    ) {
        let had = self.give_up(lane, attempt);
        let mut barriers = 0;
        if had {
            for shard in self.others().without(from).iter() {
                self.mesh(shard).push(Item::Barrier { origin: from, token });
                barriers += 1;
            }
        }
        self.mesh(from).push(Item::Succeeded { token, barriers });
    }

    /// All that the sender of a barrier had sent before was taken.
    pub(in crate::shard) fn pass_barrier(&mut self, origin: ShardId, token: u64) {
        self.mesh(origin).push(Item::BarrierPassed { token });
    }

    pub(in crate::shard) fn succeeded(&mut self, token: u64, from: ShardId, barriers: u8) {
        if let Some(waits) = self.relay.successions.get_mut(&token) {
            waits.missing = waits.missing.without(from);
            waits.barriers += i32::from(barriers);
            self.succession_ends(token);
        }
    }

    pub(in crate::shard) fn barrier_passed(&mut self, token: u64) {
        if let Some(waits) = self.relay.successions.get_mut(&token) {
            waits.barriers -= 1;
            self.succession_ends(token);
        }
    }

    fn succession_ends(&mut self, token: u64) {
        let ready = |waits: &Succession| waits.missing.is_empty() && waits.barriers == 0;
        if !self.relay.successions.get(&token).is_some_and(ready) {
            return;
        }
        let Some(waits) = self.relay.successions.remove(&token) else { return };
        if self.relay.links.get(waits.slot).is_some_and(|link| link.id == waits.link) {
            self.guest_answer(waits.slot, &waits.answer);
        }
    }
}
