//! What an operation's completion says about where it belongs: 8 bits of kind, 24 of generation, 32 of slot.

/// What was asked of the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Op {
    /// Nobody waits for it.
    Nothing = 0,
    /// Slot and generation of a connection, as for the next three.
    Receive = 1,
    Send = 2,
    Shutdown = 3,
    Cancel = 4,
    /// Slot: index of the listener.
    Accept = 5,
    /// The shard's waker was used.
    Wake = 6,
    /// Another shard's message; slot: its index.
    Mesh = 7,
    /// A message to another shard failed; slot: its index.
    MeshFailed = 8,
    Timer = 9,
    /// Slot and generation of a connection.
    Connect = 10,
}

/// Generations wrap at this number.
pub const GENERATIONS: u32 = 1 << 24;

/// An operation's `user_data`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Token(pub u64);

impl Token {
    #[inline]
    pub const fn new(op: Op, slot: u32, generation: u32) -> Self {
        debug_assert!(generation < GENERATIONS);
        Self((op as u64) << 56 | (generation as u64) << 32 | slot as u64)
    }

    #[inline]
    pub const fn op(self) -> Op {
        match (self.0 >> 56) as u8 {
            1 => Op::Receive,
            2 => Op::Send,
            3 => Op::Shutdown,
            4 => Op::Cancel,
            5 => Op::Accept,
            6 => Op::Wake,
            7 => Op::Mesh,
            8 => Op::MeshFailed,
            9 => Op::Timer,
            10 => Op::Connect,
            _ => Op::Nothing,
        }
    }

    #[inline]
    pub const fn slot(self) -> u32 {
        self.0 as u32
    }

    #[inline]
    pub const fn generation(self) -> u32 {
        (self.0 >> 32) as u32 & (GENERATIONS - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_keep_their_parts() {
        for op in [
            Op::Nothing,
            Op::Receive,
            Op::Send,
            Op::Shutdown,
            Op::Cancel,
            Op::Accept,
            Op::Wake,
            Op::Mesh,
            Op::MeshFailed,
            Op::Timer,
            Op::Connect,
        ] {
            let token = Token::new(op, u32::MAX, GENERATIONS - 1);
            assert_eq!((token.op(), token.slot(), token.generation()), (op, u32::MAX, GENERATIONS - 1));
            let token = Token::new(op, 7, 0);
            assert_eq!((token.op(), token.slot(), token.generation()), (op, 7, 0));
        }
    }
}
