//! What the framing targets share: a stream fed in cuts, with the rules that hold for every stream.
#![allow(dead_code, reason = "no target uses all of it")]

use common::transport::{Frame, FrameError, Framer};

/// A frame with its own payload.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Owned {
    Message(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(u16),
}

impl From<Frame<'_>> for Owned {
    fn from(frame: Frame<'_>) -> Self {
        match frame {
            Frame::Message(payload) => Self::Message(payload.to_vec()),
            Frame::Ping(payload) => Self::Ping(payload.to_vec()),
            Frame::Pong(payload) => Self::Pong(payload.to_vec()),
            Frame::Compressed(_) => unreachable!("compression was not agreed on"),
            Frame::Close { code } => Self::Close(code),
        }
    }
}

/// Feeds `stream` in chunks of one more than each of `cuts`, then the rest in one.
pub fn receive(framer: &mut Framer, stream: &[u8], cuts: &[u8]) -> (Vec<Owned>, Result<(), FrameError>) {
    let mut stream = stream.to_vec();
    let (mut rest, mut arrived) = (&mut stream[..], 0);
    let mut cuts = cuts.iter();
    let mut frames = Vec::new();
    while !rest.is_empty() {
        let cut = cuts.next().map_or(rest.len(), |&cut| usize::from(cut) + 1).min(rest.len());
        let (mut chunk, after) = rest.split_at_mut(cut);
        rest = after;
        arrived += cut;
        loop {
            match framer.next(&mut chunk) {
                Ok(Some(frame)) => frames.push(frame.into()),
                Ok(None) => break,
                Err(error) => return (frames, Err(error)),
            }
            assert!(framer.buffered_bytes() <= 2 * arrived);
        }
        assert!(chunk.is_empty(), "None means that the chunk is used up");
        assert!(framer.buffered_bytes() <= 2 * arrived);
    }
    (frames, Ok(()))
}

/// Splits an input into a choice of the target's, cuts, and the stream: the first byte has the choice in its upper half
/// and the number of cuts, a byte each, in its lower half. So plain captured bytes make a seed.
pub fn split(input: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&first, rest) = input.split_first()?;
    let (cuts, stream) = rest.split_at_checked(usize::from(first & 0x0f))?;
    Some((first >> 4, cuts, stream))
}
