//! The loop with a small machine in place of a shard: alone in the test's thread, turn by turn, and on threads of
//! its own.

mod rig;
mod threads;
mod turns;
