//! What it takes to route a call again, in buffers that are used again: most calls are answered by the first callee.

use super::super::dealer::Calling;
use crate::mesh::{Caller, Terms};
use common::wire::{Payload, Serializer, utf8};

/// One call.
#[derive(Debug)]
pub(super) struct Kept {
    terms: Terms,
    key: u64,
    serializer: Serializer,
    /// Lengths of the pieces of `bytes`, in this order.
    uri: u32,
    who: u32,
    ppt: u32,
    args: Option<u32>,
    kwargs: Option<u32>,
    bytes: Vec<u8>,
}

/// All that a shard keeps.
#[derive(Debug, Default)]
pub(super) struct Keeper {
    bytes: usize,
    spare: Vec<Vec<u8>>,
}

/// A longer call is not routed again.
const REROUTED_BYTES_MAX: usize = 64 << 10;
/// Bytes of calls that a shard keeps to route them again; calls beyond it are not.
const KEPT_BYTES_MAX: usize = 16 << 20;
/// Empty buffers that are kept, and the largest of them.
const SPARE_MAX: usize = 256;
const SPARE_BYTES_MAX: usize = 4 << 10;

impl Kept {
    /// The URI and the call, as one of `caller`.
    pub fn calling(&self, caller: Caller) -> (&str, Calling<'_>) {
        let mut rest = &self.bytes[..];
        let mut piece = |bytes: u32| {
            let (piece, after) = rest.split_at(bytes as usize);
            rest = after;
            piece
        };
        let uri = utf8::text(piece(self.uri)).expect("a URI was kept");
        let (who, ppt) = (piece(self.who), piece(self.ppt));
        let (args, kwargs) = (self.args.map(&mut piece), self.kwargs.map(&mut piece));
        let (terms, key, from) = (self.terms, self.key, self.serializer);
        (uri, Calling { caller, terms, key, who, ppt, from, payload: Payload { args, kwargs } })
    }

    fn bytes(&self) -> usize {
        size_of::<Self>() + self.bytes.len()
    }
}

impl Keeper {
    /// Bytes of all that is kept.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Keeps a call, if there is room.
    #[inline]
    pub fn keep(&mut self, uri: &str, calling: &Calling<'_>) -> Option<Kept> {
        let Calling { terms, key, who, ppt, from: serializer, payload, .. } = *calling;
        let length = uri.len() + who.len() + ppt.len() + payload.bytes_len();
        if length > REROUTED_BYTES_MAX || self.bytes + length > KEPT_BYTES_MAX {
            return None;
        }
        let mut bytes = self.spare.pop().unwrap_or_default();
        bytes.reserve(length);
        let (args, kwargs) = (payload.args.unwrap_or_default(), payload.kwargs.unwrap_or_default());
        [uri.as_bytes(), who, ppt, args, kwargs].iter().for_each(|piece| bytes.extend_from_slice(piece));
        let piece = |piece: &[u8]| piece.len() as u32;
        let kept = Kept {
            terms,
            key,
            serializer,
            uri: piece(uri.as_bytes()),
            who: piece(who),
            ppt: piece(ppt),
            args: payload.args.map(piece),
            kwargs: payload.kwargs.map(piece),
            bytes,
        };
        self.bytes += kept.bytes();
        Some(kept)
    }

    /// A call will not be routed again.
    #[inline]
    pub fn give_back(&mut self, kept: Kept) {
        self.bytes -= kept.bytes();
        let mut bytes = kept.bytes;
        if bytes.capacity() <= SPARE_BYTES_MAX && self.spare.len() < SPARE_MAX {
            bytes.clear();
            self.spare.push(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::Owner;
    use common::ids::ShardId;

    fn calling(payload: Payload<'_>) -> Calling<'_> {
        let owner = Owner { shard: ShardId(0), slot: 1, session: 2 };
        let terms = Terms { session: 9, timeout_ms: 5, flags: Terms::KEYED };
        let caller = Caller { owner, request: 3 };
        Calling { caller, terms, key: 7, who: b"who", ppt: b"", from: Serializer::Json, payload }
    }

    #[test]
    fn a_call_is_kept_as_it_was() {
        let mut keeper = Keeper::default();
        for (args, kwargs) in [(None, None), (Some(&b"[1]"[..]), None), (Some(&b"[]"[..]), Some(&b"{}"[..]))]
        {
            let calling = calling(Payload { args, kwargs });
            let kept = keeper.keep("a.b", &calling).expect("room");
            let (uri, again) = kept.calling(calling.caller);
            assert_eq!((uri, again.caller, again.terms), ("a.b", calling.caller, calling.terms));
            assert_eq!((again.key, again.who, again.ppt), (7, &b"who"[..], &b""[..]));
            assert_eq!((again.from, again.payload), (Serializer::Json, calling.payload));
            assert_eq!(keeper.bytes(), kept.bytes());
            keeper.give_back(kept);
            assert_eq!((keeper.bytes(), keeper.spare.len()), (0, 1), "the buffer is used again");
        }
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut keeper = Keeper::default();
        let large = vec![b'1'; REROUTED_BYTES_MAX - 6];
        let fits = calling(Payload { args: Some(&large), kwargs: None });
        assert!(keeper.keep("a.bc", &fits).is_none(), "too long by one byte");
        let kept: Vec<Kept> = std::iter::from_fn(|| keeper.keep("a.b", &fits)).take(300).collect();
        assert!(keeper.bytes() <= KEPT_BYTES_MAX + REROUTED_BYTES_MAX && kept.len() > 200);
        kept.into_iter().for_each(|kept| keeper.give_back(kept));
        assert_eq!((keeper.bytes(), keeper.spare.len()), (0, 0), "large buffers are not");
    }
}
