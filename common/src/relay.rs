//! Frames between the data planes of a cluster: `len u32 │ header │ URI │ extra │ data`, little-endian.
//!
//! The header is an archive of bytes and unaligned integers, so it is read where it was received, after one check
//! ([`Frame::check`]) that covers every length in the frame. A publication's data is the whole EVENT message that
//! subscribers of exactly its topic get, for the id of a subscription is the same on all nodes; where its payload is,
//! the header says. Otherwise the data is the payload. The content of a payload is not looked at: who may send frames
//! at all has proved to be of the cluster, and transcoding takes any bytes.

use crate::ids::{BootEpoch, ID_MAX, RealmId};
use crate::limits::{MESSAGE_BYTES_MAX, URI_BYTES_MAX};
use crate::wire::{Payload, Serializer};
use crate::wire::{encode, utf8};
use rkyv::Portable;
use rkyv::bytecheck::CheckBytes;
use rkyv::rancor::Failure;
use rkyv::rend::unaligned::{u16_ule, u32_ule, u64_ule};

/// Versions of these frames that this build speaks, oldest and newest.
pub const VERSIONS: (u16, u16) = (1, 1);

/// What a frame says. Numbers that are not here are errors, so a new one needs a new version.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Portable, CheckBytes)]
#[bytecheck(crate = rkyv::bytecheck)]
#[repr(u8)]
pub enum Kind {
    /// An event for subscribers of the receiving node.
    Publish = 1,
    /// The receiving node has taken a publication that asked for this.
    PublishAck = 2,
    /// A call for a callee of the receiving node.
    Call = 3,
    /// The callee's answer.
    Result = 4,
    /// The callee's or the router's answer.
    Error = 5,
    /// To be answered with a pong of the same id.
    Ping = 6,
    Pong = 7,
    /// A call of this connection is given up; the extra says how.
    Cancel = 8,
    /// A further part of a call of this connection.
    CallMore = 9,
    /// A question of the meta API; the payload's arguments are its packed form.
    Ask = 10,
    /// The answer of the receiving node to a question of the same id.
    Tell = 11,
    /// From a connection, by its id at the sender, to the session of the receiving node that it carries.
    ToSeat = 12,
    /// Back to the connection.
    ToPort = 13,
}

/// The fixed part of a frame.
#[derive(Debug, Portable, CheckBytes)]
#[bytecheck(crate = rkyv::bytecheck)]
#[repr(C)]
struct Header {
    kind: Kind,
    serializer: u8,
    flags: u8,
    reserved: u8,
    uri_bytes: u16_ule,
    extra_bytes: u16_ule,
    realm: u64_ule,
    id: u64_ule,
    /// Places in the data.
    args_at: u32_ule,
    args_bytes: u32_ule,
    kwargs_at: u32_ule,
    kwargs_bytes: u32_ule,
}

const HEADER_BYTES: usize = 40;
const _: () = assert!(size_of::<Header>() == HEADER_BYTES && align_of::<Header>() == 1);

/// Bytes of a frame's length.
pub const LENGTH_BYTES: usize = 4;
/// Bytes of a frame that is an id only.
pub const BARE_BYTES: usize = LENGTH_BYTES + HEADER_BYTES;
/// Longest frame without its length: the largest message, its topic, and what an EVENT has beside its payload.
pub const FRAME_BYTES_MAX: usize = HEADER_BYTES + URI_BYTES_MAX + EXTRA_BYTES_MAX + MESSAGE_BYTES_MAX + 1_024;

const HAS_ARGS: u8 = 1;
const HAS_KWARGS: u8 = 2;
const WANTS_ACK: u8 = 4;
/// The data is a whole EVENT message.
const IS_EVENT: u8 = 8;
/// A result that others follow.
const PROGRESS: u8 = 16;
const FLAGS: u8 = HAS_ARGS | HAS_KWARGS | WANTS_ACK | IS_EVENT | PROGRESS;
/// Longest extra: what a call or a publication asks for, and the attributes of payload passthru mode.
pub const EXTRA_BYTES_MAX: usize = 32 * 1_024;

/// Why a frame is refused; the connection is of no use any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameError {
    #[error("a frame of {0} bytes")]
    Length(usize),
    #[error("the header of a frame is malformed")]
    Header,
    #[error("a URI of a frame is no text, too long or missing")]
    Uri,
    #[error("a payload of a frame lies outside of it")]
    Payload,
}

/// A checked frame.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    pub kind: Kind,
    pub serializer: Serializer,
    pub wants_ack: bool,
    pub realm: RealmId,
    /// Of the publication, the call or the ping.
    pub id: u64,
    /// Topic, procedure or error; empty for the other kinds.
    pub uri: &'a str,
    /// What the ends know of the content beside its payload; its form is theirs.
    pub extra: &'a [u8],
    /// A result that others follow.
    pub progress: bool,
    pub payload: Payload<'a>,
    /// The whole EVENT message for subscribers of exactly this topic, which has the payload in it.
    pub event: Option<&'a [u8]>,
}

/// The length of the frame at the front of `bytes` without its length field, once that has come.
///
/// # Errors
/// It is shorter than a header or longer than [`FRAME_BYTES_MAX`].
#[inline]
pub fn frame_bytes(bytes: &[u8]) -> Result<Option<usize>, FrameError> {
    let Some(length) = bytes.first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
    let length = u32::from_le_bytes(*length) as usize;
    if (HEADER_BYTES..=FRAME_BYTES_MAX).contains(&length) {
        Ok(Some(length))
    } else {
        Err(FrameError::Length(length))
    }
}

impl<'a> Frame<'a> {
    /// Checks a frame without its length field.
    ///
    /// # Errors
    /// Any length, flag or text that may not be.
    #[inline]
    pub fn check(bytes: &'a [u8]) -> Result<Self, FrameError> {
        let (header, body) = bytes.split_at_checked(HEADER_BYTES).ok_or(FrameError::Length(bytes.len()))?;
        let header = rkyv::api::low::access::<Header, Failure>(header).map_err(|_| FrameError::Header)?;
        let serializer = *Serializer::ALL.get(usize::from(header.serializer)).ok_or(FrameError::Header)?;
        if header.flags & !FLAGS != 0 {
            return Err(FrameError::Header);
        }
        let uri_bytes = usize::from(header.uri_bytes.to_native());
        let (uri, rest) = body.split_at_checked(uri_bytes).ok_or(FrameError::Uri)?;
        let extra_bytes = usize::from(header.extra_bytes.to_native());
        let fits = extra_bytes <= EXTRA_BYTES_MAX;
        let (extra, data) = rest.split_at_checked(extra_bytes).filter(|_| fits).ok_or(FrameError::Header)?;
        let has_uri = matches!(header.kind, Kind::Publish | Kind::Call | Kind::Error);
        if uri.is_empty() == has_uri || uri_bytes > URI_BYTES_MAX {
            return Err(FrameError::Uri);
        }
        let uri = utf8::text(uri).ok_or(FrameError::Uri)?;
        let part = |flag, at: u32_ule, length: u32_ule| {
            let (at, length) = (at.to_native() as usize, length.to_native() as usize);
            match header.flags & flag {
                0 => Ok(None),
                _ => data.get(at..).and_then(|rest| rest.get(..length)).map(Some).ok_or(FrameError::Payload),
            }
        };
        let args = part(HAS_ARGS, header.args_at, header.args_bytes)?;
        let kwargs = part(HAS_KWARGS, header.kwargs_at, header.kwargs_bytes)?;
        let is_event = header.flags & IS_EVENT != 0;
        let id = header.id.to_native();
        if header.kind == Kind::Publish && !(1..=ID_MAX).contains(&id) {
            return Err(FrameError::Header);
        }
        if is_event && header.kind != Kind::Publish || data.len() > MESSAGE_BYTES_MAX + EVENT_HEAD_BYTES_MAX {
            return Err(FrameError::Payload);
        }
        Ok(Self {
            kind: header.kind,
            serializer,
            wants_ack: header.flags & WANTS_ACK != 0,
            realm: RealmId(header.realm.to_native()),
            id,
            uri,
            extra,
            progress: header.flags & PROGRESS != 0,
            payload: Payload { args, kwargs },
            event: is_event.then_some(data),
        })
    }
}

/// An event on its way to other nodes.
#[derive(Clone, Copy, Debug)]
pub struct Publish<'a> {
    pub realm: RealmId,
    pub topic: &'a str,
    /// Id of the subscription to exactly this topic, on all nodes.
    pub subscription: u64,
    pub publication: u64,
    pub wants_ack: bool,
    /// Who may get it, and what the event tells beside its payload: at most [`EXTRA_BYTES_MAX`] bytes.
    pub extra: &'a [u8],
    /// The event tells more than its payload, so the receiving node encodes it.
    pub has_details: bool,
    pub serializer: Serializer,
    pub payload: Payload<'a>,
}

impl Publish<'_> {
    /// Bytes that the frame has at most.
    pub fn bytes_max(&self) -> usize {
        let beside = LENGTH_BYTES + HEADER_BYTES + EVENT_HEAD_BYTES_MAX;
        beside + self.topic.len() + self.extra.len() + self.payload.bytes_len()
    }

    /// Appends the frame.
    pub fn put(&self, out: &mut Vec<u8>) {
        debug_assert!(self.extra.len() <= EXTRA_BYTES_MAX, "what is packed into it is bounded");
        let start = out.len();
        out.extend_from_slice(&[0; LENGTH_BYTES + HEADER_BYTES]);
        out.extend_from_slice(self.topic.as_bytes());
        out.extend_from_slice(self.extra);
        if self.has_details {
            return self.put_payload(out, start);
        }
        let data = out.len();
        encode::event(self.serializer, out, self.subscription, self.publication, &[], self.payload);
        // The payload ends the message, but for what JSON puts between and after its parts.
        let extra = usize::from(self.serializer == Serializer::Json);
        let length = |part: Option<&[u8]>| part.map_or(0, |part| part.len() + extra);
        let end = out.len() - data - extra;
        let kwargs_at = end + extra - length(self.payload.kwargs);
        let args_at = kwargs_at - length(self.payload.args);
        self.head(IS_EVENT).fill(out, start, (args_at, kwargs_at), self.payload);
    }

    /// Ends the frame that begins at `start` with the payload instead of the event.
    #[cold]
    fn put_payload(&self, out: &mut Vec<u8>, start: usize) {
        let args = self.payload.args.unwrap_or_default();
        out.extend_from_slice(args);
        out.extend_from_slice(self.payload.kwargs.unwrap_or_default());
        self.head(0).fill(out, start, (0, args.len()), self.payload);
    }

    fn head(&self, flags: u8) -> Head {
        Head {
            kind: Kind::Publish,
            serializer: self.serializer,
            flags: flags | if self.wants_ack { WANTS_ACK } else { 0 },
            uri_bytes: self.topic.len(),
            extra_bytes: self.extra.len(),
            realm: self.realm,
            id: self.publication,
        }
    }
}

/// A frame with a payload that is no publication.
#[derive(Clone, Copy, Debug)]
pub struct Content<'a> {
    pub kind: Kind,
    pub realm: RealmId,
    /// Names a call on its connection.
    pub id: u64,
    /// Procedure or error; empty for the other kinds.
    pub uri: &'a str,
    /// In pieces; at most [`EXTRA_BYTES_MAX`] bytes.
    pub extra: &'a [&'a [u8]],
    pub progress: bool,
    pub serializer: Serializer,
    pub payload: Payload<'a>,
}

impl Content<'_> {
    #[inline]
    fn extra_bytes(&self) -> usize {
        self.extra.iter().map(|piece| piece.len()).sum()
    }

    /// Bytes of the frame.
    #[inline]
    pub fn bytes(&self) -> usize {
        LENGTH_BYTES + HEADER_BYTES + self.uri.len() + self.extra_bytes() + self.payload.bytes_len()
    }

    /// Appends the frame.
    pub fn put(&self, out: &mut Vec<u8>) {
        let start = out.len();
        let args = self.payload.args.unwrap_or_default();
        let kwargs = self.payload.kwargs.unwrap_or_default();
        let extra_bytes = self.extra_bytes();
        debug_assert!(extra_bytes <= EXTRA_BYTES_MAX, "what is packed into it is bounded");
        out.reserve(self.bytes());
        out.extend_from_slice(&[0; LENGTH_BYTES + HEADER_BYTES]);
        out.extend_from_slice(self.uri.as_bytes());
        self.extra.iter().for_each(|piece| out.extend_from_slice(piece));
        out.extend_from_slice(args);
        out.extend_from_slice(kwargs);
        let head = Head {
            kind: self.kind,
            serializer: self.serializer,
            flags: if self.progress { PROGRESS } else { 0 },
            uri_bytes: self.uri.len(),
            extra_bytes,
            realm: self.realm,
            id: self.id,
        };
        head.fill(out, start, (0, args.len()), self.payload);
    }
}

/// Appends a frame that is an id only: [`Kind::PublishAck`], [`Kind::Ping`], [`Kind::Pong`].
pub fn put_bare(out: &mut Vec<u8>, kind: Kind, id: u64) {
    put_with_extra(out, kind, id, &[]);
}

/// Appends a frame that is an id and an extra: [`Kind::Cancel`].
pub fn put_with_extra(out: &mut Vec<u8>, kind: Kind, id: u64, extra: &[u8]) {
    let (realm, serializer, payload) = (RealmId(0), Serializer::Json, Payload::default());
    Content { kind, realm, id, uri: "", extra: &[extra], progress: false, serializer, payload }.put(out);
}

/// A header to write.
struct Head {
    kind: Kind,
    serializer: Serializer,
    flags: u8,
    uri_bytes: usize,
    extra_bytes: usize,
    realm: RealmId,
    id: u64,
}

impl Head {
    /// Writes length and header of the frame that begins at `start` and ends `out`.
    #[inline]
    fn fill(&self, out: &mut [u8], start: usize, (args_at, kwargs_at): (usize, usize), payload: Payload<'_>) {
        let length = out.len() - start - LENGTH_BYTES;
        debug_assert!(length <= FRAME_BYTES_MAX, "messages and URIs are bounded");
        let has = |part: Option<&[u8]>, flag| if part.is_some() { flag } else { 0 };
        let flags = self.flags | has(payload.args, HAS_ARGS) | has(payload.kwargs, HAS_KWARGS);
        let bytes = |part: Option<&[u8]>| (part.map_or(0, <[u8]>::len) as u32).to_le_bytes();
        let frame = &mut out[start..];
        frame[..4].copy_from_slice(&(length as u32).to_le_bytes());
        frame[4..8].copy_from_slice(&[self.kind as u8, self.serializer.index() as u8, flags, 0]);
        frame[8..10].copy_from_slice(&(self.uri_bytes as u16).to_le_bytes());
        frame[10..12].copy_from_slice(&(self.extra_bytes as u16).to_le_bytes());
        frame[12..20].copy_from_slice(&self.realm.0.to_le_bytes());
        frame[20..28].copy_from_slice(&self.id.to_le_bytes());
        frame[28..32].copy_from_slice(&(args_at as u32).to_le_bytes());
        frame[32..36].copy_from_slice(&bytes(payload.args));
        frame[36..40].copy_from_slice(&(kwargs_at as u32).to_le_bytes());
        frame[40..44].copy_from_slice(&bytes(payload.kwargs));
    }
}

/// What an EVENT has beside its payload, at most.
const EVENT_HEAD_BYTES_MAX: usize = 64;
const _: () =
    assert!(HEADER_BYTES + URI_BYTES_MAX + MESSAGE_BYTES_MAX + EVENT_HEAD_BYTES_MAX <= FRAME_BYTES_MAX);
const _: () = assert!(FRAME_BYTES_MAX <= u32::MAX as usize && URI_BYTES_MAX <= u16::MAX as usize);
const _: () = assert!(ID_MAX < u64::MAX / 2);

/// What the ends of a relay connection tell each other inside the handshake. A data plane is named by its life: its
/// epoch is random and never used again, and the control plane says which node's it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hello {
    /// Oldest and newest version the sender speaks; in an answer both are the one that is used.
    pub versions: (u16, u16),
    /// The sender.
    pub from: BootEpoch,
    /// Who the sender takes the receiver for.
    pub to: BootEpoch,
    /// The shard that connects, and which of its connections to this node it is; 0 in an answer, as is the next.
    pub shard: u8,
    pub lane: u8,
    /// Grows with each attempt of the shard: of two connections for one lane the greater follows the other.
    pub attempt: u64,
}

const HELLO_BYTES: usize = 30;

impl Hello {
    pub fn bytes(&self) -> [u8; HELLO_BYTES] {
        let mut bytes = [0; HELLO_BYTES];
        bytes[..2].copy_from_slice(&self.versions.0.to_le_bytes());
        bytes[2..4].copy_from_slice(&self.versions.1.to_le_bytes());
        bytes[4..12].copy_from_slice(&self.from.0.to_le_bytes());
        bytes[12..20].copy_from_slice(&self.to.0.to_le_bytes());
        bytes[20..22].copy_from_slice(&[self.shard, self.lane]);
        bytes[22..].copy_from_slice(&self.attempt.to_le_bytes());
        bytes
    }

    /// Later versions may append to it.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.first_chunk::<HELLO_BYTES>()?;
        let version = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| bytes[at + byte]));
        Some(Self {
            versions: (version(0), version(2)),
            from: BootEpoch(number(4)),
            to: BootEpoch(number(12)),
            shard: bytes[20],
            lane: bytes[21],
            attempt: number(22),
        })
    }

    /// The newest version that both speak.
    pub fn common_version(&self) -> Option<u16> {
        let newest = self.versions.1.min(VERSIONS.1);
        (newest >= self.versions.0.max(VERSIONS.0)).then_some(newest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Match, RouteKind, route_id};
    use crate::wire::{Message, OwnedValue, decode};
    use proptest::prelude::*;

    fn encoded(serializer: Serializer, value: &OwnedValue) -> Vec<u8> {
        let mut out = Vec::new();
        value.encode(serializer, &mut out);
        out
    }

    type Part = Option<Vec<u8>>;

    fn payloads(serializer: Serializer) -> Vec<(Part, Part)> {
        let args =
            encoded(serializer, &OwnedValue::List(vec![OwnedValue::UInt(7), OwnedValue::Str("x".into())]));
        let kwargs = encoded(serializer, &OwnedValue::Dict(vec![("k".into(), OwnedValue::Bool(true))]));
        vec![
            (None, None),
            (Some(args.clone()), None),
            (None, Some(kwargs.clone())),
            (Some(args), Some(kwargs)),
        ]
    }

    fn one(bytes: &[u8]) -> Frame<'_> {
        let length = frame_bytes(bytes).unwrap().unwrap();
        assert_eq!(length + LENGTH_BYTES, bytes.len());
        Frame::check(&bytes[LENGTH_BYTES..]).unwrap()
    }

    #[test]
    fn a_publication_carries_the_event_and_tells_where_its_payload_is() {
        let realm = RealmId::of("r");
        let subscription = route_id(realm, RouteKind::Topic, Match::Exact, "a.b");
        for serializer in Serializer::ALL {
            for (args, kwargs) in payloads(serializer) {
                let payload = Payload { args: args.as_deref(), kwargs: kwargs.as_deref() };
                let publish = Publish {
                    realm,
                    topic: "a.b",
                    subscription,
                    publication: 9,
                    wants_ack: args.is_some(),
                    extra: &[],
                    has_details: false,
                    serializer,
                    payload,
                };
                let mut bytes = Vec::new();
                publish.put(&mut bytes);
                assert!(bytes.len() <= publish.bytes_max());
                let frame = one(&bytes);
                assert_eq!((frame.kind, frame.realm, frame.id, frame.uri), (Kind::Publish, realm, 9, "a.b"));
                assert_eq!((frame.payload, frame.wants_ack), (payload, args.is_some()));
                match decode(serializer, frame.event.unwrap()).unwrap() {
                    Message::Event { subscription: id, publication: 9, payload: inside, .. } => {
                        assert_eq!(id, subscription);
                        assert_eq!(inside.kwargs, payload.kwargs);
                        assert!(payload.args.is_none() || inside.args == payload.args);
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    #[test]
    fn calls_and_answers_read_back() {
        for serializer in Serializer::ALL {
            for (args, kwargs) in payloads(serializer) {
                let payload = Payload { args: args.as_deref(), kwargs: kwargs.as_deref() };
                let content = |kind, uri| Content {
                    kind,
                    realm: RealmId(3),
                    id: 5,
                    uri,
                    extra: &[b"ex", b"", b"tra"],
                    progress: kind == Kind::Result,
                    serializer,
                    payload,
                };
                for (kind, uri) in
                    [(Kind::Call, "p.q"), (Kind::Result, ""), (Kind::Error, "e.r"), (Kind::CallMore, "")]
                {
                    let mut bytes = Vec::new();
                    content(kind, uri).put(&mut bytes);
                    assert_eq!(bytes.len(), content(kind, uri).bytes());
                    let frame = one(&bytes);
                    assert_eq!((frame.kind, frame.realm, frame.id, frame.uri), (kind, RealmId(3), 5, uri));
                    assert_eq!((frame.payload, frame.serializer, frame.event), (payload, serializer, None));
                    assert_eq!((frame.extra, frame.progress), (&b"extra"[..], kind == Kind::Result));
                }
            }
        }
        let mut bytes = Vec::new();
        put_bare(&mut bytes, Kind::Ping, u64::MAX);
        assert_eq!((one(&bytes).kind, one(&bytes).id), (Kind::Ping, u64::MAX));
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        assert_eq!(frame_bytes(&[0, 0, 0]), Ok(None));
        assert_eq!(frame_bytes(&u32::MAX.to_le_bytes()), Err(FrameError::Length(u32::MAX as usize)));
        assert_eq!(frame_bytes(&[39, 0, 0, 0]), Err(FrameError::Length(39)));
        let mut bytes = Vec::new();
        let call = Content {
            kind: Kind::Call,
            realm: RealmId(3),
            id: 5,
            uri: "p.q",
            extra: &[],
            progress: false,
            serializer: Serializer::Json,
            payload: Payload { args: Some(b"[1]"), kwargs: None },
        };
        call.put(&mut bytes);
        let changed = |changes: &[(usize, &[u8])]| {
            let mut bad = bytes.clone();
            changes.iter().for_each(|(at, to)| bad[*at..at + to.len()].copy_from_slice(to));
            Frame::check(&bad[LENGTH_BYTES..]).err()
        };
        let change = |at: usize, to: &[u8]| changed(&[(at, to)]);
        let publication = |id: u64| changed(&[(4, &[Kind::Publish as u8]), (20, &id.to_le_bytes())]);
        assert_eq!([1, ID_MAX].map(publication), [None, None]);
        assert_eq!([0, ID_MAX + 1].map(publication), [Some(FrameError::Header), Some(FrameError::Header)]);
        assert_eq!(change(4, &[0]), Some(FrameError::Header));
        assert_eq!(change(4, &[14]), Some(FrameError::Header), "a kind to come");
        assert_eq!(change(4, &[4]), Some(FrameError::Uri), "a result has none");
        assert_eq!(change(5, &[3]), Some(FrameError::Header));
        assert_eq!(change(6, &[0x21]), Some(FrameError::Header));
        assert_eq!(change(10, &[0xff, 0xff]), Some(FrameError::Header));
        assert_eq!(change(6, &[IS_EVENT]), Some(FrameError::Payload));
        assert_eq!(change(8, &[0xff, 0xff]), Some(FrameError::Uri));
        assert_eq!(change(8, &[0, 0]), Some(FrameError::Uri));
        assert_eq!(change(28, &u32::MAX.to_le_bytes()), Some(FrameError::Payload));
        assert_eq!(change(32, &[4]), Some(FrameError::Payload));
        assert_eq!(change(44, &[0xff]), Some(FrameError::Uri), "not UTF-8");
        assert_eq!(Frame::check(&bytes[LENGTH_BYTES..20]).err(), Some(FrameError::Length(16)));
    }

    #[test]
    fn hellos_find_a_version_or_none() {
        let hello = Hello {
            versions: (1, 3),
            from: BootEpoch(7),
            to: BootEpoch(u64::MAX),
            shard: 127,
            lane: 15,
            attempt: 1 << 40,
        };
        assert_eq!(Hello::parse(&hello.bytes()), Some(hello));
        assert_eq!(Hello::parse(&hello.bytes()[1..]), None);
        assert_eq!(hello.common_version(), Some(1));
        assert_eq!(Hello { versions: (2, 3), ..hello }.common_version(), None);
        assert_eq!(Hello { versions: (0, 0), ..hello }.common_version(), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_frame_or_refused(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0u8..13) {
            if let Some(first) = bytes.first_mut() {
                *first = kind;
            }
            if let Ok(frame) = Frame::check(&bytes) {
                prop_assert!(frame.uri.len() <= URI_BYTES_MAX);
            }
            let _ = frame_bytes(&bytes);
        }
    }
}
