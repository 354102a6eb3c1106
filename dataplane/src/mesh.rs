//! Batches of messages between the shards of a node.
//!
//! What a shard sends another in one turn is one [`Batch`]: typed items, and one arena that holds the text and payload
//! bytes they point into. Batches of one pair of shards arrive whole and in order; nothing is dropped.

use crate::shard::{Ask, CancelMode, Tell, ToPort, ToSeat};
use common::ids::{BootEpoch, Match, RealmId, RouteKind, ShardId};
use common::share::Invoke;
use common::transport::http::Kind;
use common::wire::{Payload, Serializer, utf8};

/// A session somewhere in the node. Stale when the connection in the slot carries another session by now, which may
/// be on the same connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Owner {
    pub shard: ShardId,
    pub slot: u32,
    pub session: u64,
}

/// A call's origin: who asked, under which request id.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Caller {
    pub owner: Owner,
    pub request: u64,
}

/// What a call asks for besides its procedure and payload.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Terms {
    /// The caller's session.
    pub session: u64,
    /// 0: none.
    pub timeout_ms: u32,
    pub flags: u8,
}

impl Terms {
    /// The caller takes progressive results.
    pub const RECEIVE_PROGRESS: u8 = 1;
    /// More of the call follows.
    pub const PROGRESS: u8 = 2;
    /// The caller wants to be named to the callee.
    pub const DISCLOSE: u8 = 4;
    /// The call has a routing key.
    pub const KEYED: u8 = 8;
    /// Only the callee of its key may have the call.
    pub const PARTITION: u8 = 16;
    /// The call stays in this node.
    pub const STAYS: u8 = 32;
    /// What is of no interest once a callee was chosen.
    pub const CHOICE: u8 = Self::KEYED | Self::PARTITION | Self::STAYS;

    #[inline]
    pub const fn is(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Nothing has to be said to the callee.
    #[inline]
    pub const fn is_plain(&self) -> bool {
        self.flags == 0 && self.timeout_ms == 0
    }
}

/// How a callee wants to hold a registration.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Wish {
    pub invoke: Invoke,
    /// Most calls at a time; 0: no bound.
    pub concurrency: u32,
    /// It takes the place of whoever holds it.
    pub force: bool,
    /// Callees of the caller's node are preferred, if the policy allows.
    pub prefer_local: bool,
}

impl Wish {
    /// Calls go to the callee directly: nobody has to choose, and nobody counts.
    pub fn is_direct(&self) -> bool {
        self.invoke == Invoke::Single && self.concurrency == 0
    }
}

/// Why a registration was taken away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lost {
    /// Another node holds it with the better right.
    OtherNode,
    /// Another callee took its place.
    Replaced,
}

impl Lost {
    pub const fn reason(self) -> &'static str {
        match self {
            Self::OtherNode => "another node holds the registration",
            Self::Replaced => "another callee has taken the registration",
        }
    }
}

/// A piece of the arena.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Span {
    start: u32,
    len: u32,
}

/// Payload spans and the serializer they are in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PayloadSpan {
    pub serializer: Serializer,
    args: Option<Span>,
    kwargs: Option<Span>,
}

/// (realm, kind, policy, URI) of a route.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RouteSpan {
    pub realm: RealmId,
    pub kind: RouteKind,
    pub policy: Match,
    pub uri: Span,
}

/// A lane of another node: the data plane, its shard, and which of that shard's lanes to this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LaneName {
    pub epoch: BootEpoch,
    pub shard: u8,
    pub lane: u8,
}

/// One message between shards.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Item {
    /// The sender wants what goes to this route; `seq` is its claim number. Answer with `RouteAck`.
    RouteAdd {
        route: RouteSpan,
        seq: u64,
        token: u64,
    },
    RouteAck {
        token: u64,
    },
    RouteRemove {
        route: RouteSpan,
        seq: u64,
    },
    /// To the home shard: may this session of the sender hold this registration?
    RegisterAsk {
        route: RouteSpan,
        token: u64,
        owner: Owner,
        wish: Wish,
    },
    /// `grant` numbers what was given; 0: refused. `first`: nobody else holds it.
    RegisterAnswer {
        token: u64,
        grant: u64,
        first: bool,
    },
    /// To the home shard: what was given under this number is given up. Answered when `token` is not 0.
    Unregister {
        route: RouteSpan,
        grant: u64,
        token: u64,
    },
    /// From the home shard: what was given under this number is taken away.
    Evict {
        callee: Owner,
        registration: u64,
        grant: u64,
        lost: Lost,
    },
    /// The session, one of the receiver's, was the last that held this shared registration.
    Emptied {
        route: RouteSpan,
        session: u64,
    },
    UnregisterAck {
        token: u64,
    },
    /// A request that came on a connection of the sender, for a transport of the receiver. `id`: the transport's, packed.
    HttpAsk {
        slot: u32,
        generation: u32,
        kind: Kind,
        ask: Ask,
        id: Span,
        body: Span,
    },
    /// What a transport of the sender says to it.
    HttpTell {
        slot: u32,
        generation: u32,
        tell: Tell,
        bytes: Span,
    },
    /// The sender is short of memory, or no longer: what feeds it is to be read no further.
    Memory {
        short: bool,
    },
    /// Another node's lane is on a new connection of the sender: give up the one before, with what of it is not read, and
    /// answer when nothing of it can come any more.
    Succeed {
        lane: LaneName,
        attempt: u64,
        token: u64,
    },
    /// `barriers`: other shards that the connection before may have passed something to; each will answer too.
    Succeeded {
        token: u64,
        barriers: u8,
    },
    /// Tell shard `origin` that all that came from the sender before this was taken.
    Barrier {
        origin: ShardId,
        token: u64,
    },
    BarrierPassed {
        token: u64,
    },
    /// A question of the meta API, packed. Answer with `Tell`.
    Ask {
        realm: RealmId,
        token: u64,
        query: Span,
    },
    Tell {
        token: u64,
        part: Span,
    },
    /// To a session of the receiver from the connection that carries it, or asks for it, by the sender's number of its port.
    ToSeat {
        port: u64,
        op: ToSeat,
        bytes: Span,
    },
    /// Back to the connection.
    ToPort {
        port: u64,
        op: ToPort,
        bytes: Span,
    },
    Publish {
        realm: RealmId,
        topic: Span,
        publication: u64,
        /// Who may get it and what the event tells, packed (`shard::publication`).
        extra: Span,
        payload: PayloadSpan,
        /// The whole message for subscribers of exactly this topic, as another node encoded it.
        event: Option<Span>,
    },
    /// To the home shard of the topic: it retains this publication, for so long; 0: for ever. `except`: the session that is not
    /// to get it, or 0.
    Retain {
        realm: RealmId,
        topic: Span,
        publication: u64,
        except: u64,
        ttl_ms: u64,
        extra: Span,
        payload: PayloadSpan,
    },
    /// A subscriber wants what the receiver retains. Answered with `Retained`s and `RetainedEnd`.
    RetainedAsk {
        owner: Owner,
        token: u64,
        subscription: u64,
        realm: RealmId,
        policy: Match,
        uri: Span,
        authid: Span,
        authrole: Span,
    },
    Retained {
        owner: Owner,
        token: u64,
        subscription: u64,
        topic: Span,
        publication: u64,
        extra: Span,
        payload: PayloadSpan,
    },
    /// To be answered with `RetainedEnd`.
    RetainedSync {
        owner: Owner,
        token: u64,
        subscription: u64,
    },
    RetainedEnd {
        owner: Owner,
        token: u64,
        subscription: u64,
    },
    /// `who`: what may be told of the caller, packed; `ppt`: attributes of payload passthru mode, packed, and before them the
    /// routing key if there is one.
    Call {
        realm: RealmId,
        procedure: Span,
        caller: Caller,
        terms: Terms,
        who: Span,
        ppt: Span,
        payload: PayloadSpan,
        forwarded: bool,
    },
    /// From the home shard: a call for this callee of the receiver. `callee`: its slot and session, packed.
    Invoke {
        registration: u64,
        callee: Span,
        procedure: Span,
        caller: Caller,
        terms: Terms,
        who: Span,
        ppt: Span,
        payload: PayloadSpan,
    },
    /// The call goes on.
    CallMore {
        caller: Caller,
        terms: Terms,
        ppt: Span,
        payload: PayloadSpan,
    },
    /// The call is given up.
    Cancel {
        caller: Caller,
        mode: CancelMode,
        timeout: bool,
    },
    /// `progress`: more results follow.
    Result {
        caller: Caller,
        progress: bool,
        ppt: Span,
        payload: PayloadSpan,
    },
    Error {
        caller: Caller,
        uri: Span,
        ppt: Span,
        payload: PayloadSpan,
    },
}

/// What one shard sends another in one turn. An emptied batch keeps its memory up to [`KEEP_BYTES_MAX`].
#[derive(Debug, Default)]
pub struct Batch {
    items: Vec<Item>,
    arena: Vec<u8>,
}

/// A slot and a session.
const CALLEE_BYTES: usize = 12;
const KEY_BYTES: usize = 8;

/// Arena bytes an emptied batch keeps for reuse.
const KEEP_BYTES_MAX: usize = 1 << 20;

impl Batch {
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Messages in the batch.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Bytes it occupies, for backlog accounting.
    pub fn bytes_len(&self) -> usize {
        self.arena.len() + self.items.len() * size_of::<Item>()
    }

    pub(crate) fn clear(&mut self) {
        self.items.clear();
        self.arena.clear();
        self.arena.shrink_to(KEEP_BYTES_MAX);
        self.items.shrink_to(KEEP_BYTES_MAX / size_of::<Item>());
    }

    #[inline]
    pub(crate) fn push(&mut self, item: Item) {
        self.items.push(item);
    }

    #[inline]
    pub(crate) fn items(&self) -> &[Item] {
        &self.items
    }

    #[inline]
    pub(crate) fn put(&mut self, bytes: &[u8]) -> Span {
        let start = u32::try_from(self.arena.len()).expect("a batch stays under its backlog bound");
        self.arena.extend_from_slice(bytes);
        Span { start, len: bytes.len() as u32 }
    }

    #[inline]
    pub(crate) fn put_payload(&mut self, serializer: Serializer, payload: Payload<'_>) -> PayloadSpan {
        let args = payload.args.map(|bytes| self.put(bytes));
        let kwargs = payload.kwargs.map(|bytes| self.put(bytes));
        PayloadSpan { serializer, args, kwargs }
    }

    /// Puts a message with its payload in it.
    pub(crate) fn put_event(
        &mut self,
        serializer: Serializer,
        event: &[u8],
        payload: Payload<'_>,
    ) -> (Span, PayloadSpan) {
        let whole = self.put(event);
        let part = |part: &[u8]| {
            let at = part.as_ptr().addr() - event.as_ptr().addr();
            debug_assert!(at + part.len() <= event.len(), "a payload is in its event");
            Span { start: whole.start + at as u32, len: part.len() as u32 }
        };
        let (args, kwargs) = (payload.args.map(part), payload.kwargs.map(part));
        (whole, PayloadSpan { serializer, args, kwargs })
    }

    /// Names a session of the receiving shard.
    pub(crate) fn put_callee(&mut self, slot: u32, session: u64) -> Span {
        let span = self.put(&slot.to_le_bytes());
        self.put(&session.to_le_bytes());
        Span { len: CALLEE_BYTES as u32, ..span }
    }

    /// The session that [`Batch::put_callee`] named.
    pub(crate) fn callee(&self, span: Span) -> (u32, u64) {
        let bytes = self.bytes(span).first_chunk::<CALLEE_BYTES>().expect("callees are put as callees");
        let (slot, session) = bytes.split_at(4);
        let session = session.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
        (slot.iter().rev().fold(0, |number, byte| number << 8 | u32::from(*byte)), session)
    }

    /// Puts attributes of payload passthru mode, and before them a call's routing key if it has one.
    #[inline]
    pub(crate) fn put_attributes(&mut self, terms: Terms, key: u64, ppt: &[u8]) -> Span {
        if !terms.is(Terms::KEYED) {
            return self.put(ppt);
        }
        let span = self.put(&key.to_le_bytes());
        self.put(ppt);
        Span { len: KEY_BYTES as u32 + ppt.len() as u32, ..span }
    }

    /// What [`Batch::put_attributes`] put.
    #[inline]
    pub(crate) fn attributes(&self, terms: Terms, span: Span) -> (u64, &[u8]) {
        let bytes = self.bytes(span);
        if !terms.is(Terms::KEYED) {
            return (0, bytes);
        }
        let (key, ppt) = bytes.split_first_chunk::<KEY_BYTES>().expect("attributes are put as attributes");
        (u64::from_le_bytes(*key), ppt)
    }

    pub(crate) fn put_route(
        &mut self,
        realm: RealmId,
        kind: RouteKind,
        policy: Match,
        uri: &str,
    ) -> RouteSpan {
        let uri = self.put(uri.as_bytes());
        RouteSpan { realm, kind, policy, uri }
    }

    #[inline]
    pub(crate) fn bytes(&self, span: Span) -> &[u8] {
        &self.arena[span.start as usize..][..span.len as usize]
    }

    /// Text that was put as text.
    #[inline]
    pub(crate) fn text(&self, span: Span) -> &str {
        utf8::text(self.bytes(span)).expect("only text is read as text")
    }

    #[inline]
    pub(crate) fn payload(&self, span: PayloadSpan) -> Payload<'_> {
        Payload {
            args: span.args.map(|span| self.bytes(span)),
            kwargs: span.kwargs.map(|span| self.bytes(span)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_read_back_what_was_put() {
        let mut batch = Batch::default();
        let payload = Payload { args: Some(b"\x91\x01"), kwargs: None };
        let topic = batch.put(b"a.b");
        let span = batch.put_payload(Serializer::MsgPack, payload);
        let (realm, extra) = (RealmId(1), batch.put(&[]));
        batch.push(Item::Publish { realm, topic, publication: 9, extra, payload: span, event: None });
        assert_eq!(batch.text(topic), "a.b");
        assert_eq!(batch.payload(span), payload);
        let event = b"..\x91\x01..";
        let inside = Payload { args: Some(&event[2..4]), kwargs: Some(&event[4..4]) };
        let (whole, span) = batch.put_event(Serializer::MsgPack, event, inside);
        assert_eq!((batch.bytes(whole), batch.payload(span)), (&event[..], inside));
        assert_eq!(batch.len(), 1);
        let callee = batch.put_callee(7, 1 << 52);
        assert_eq!(batch.callee(callee), (7, 1 << 52));
        for flags in [0, Terms::KEYED] {
            let terms = Terms { flags, ..Terms::default() };
            let span = batch.put_attributes(terms, u64::from(flags), b"ppt");
            assert_eq!(batch.attributes(terms, span), (u64::from(flags), &b"ppt"[..]));
        }
        batch.clear();
        assert!(batch.is_empty() && batch.bytes_len() == 0);
    }
}
