//! Who a member is, and how members and message heads look on the wire. Pure.
//!
//! ```text
//! brief   node [16] │ epoch u64 │ generation u32 │ address
//! full    bytes u16 │ brief │ flags u8 │ store epoch u64 │ pid u32 │ protocol u16 u16 │ version │ domain │ (what later versions add)
//! member  full │ incarnation u16 │ state u8
//! head    full (source) │ incarnation u16 │ brief (destination) │ message u8, with brief and probe number where it has them
//! ```
//! Invariants: one node is one member whatever its address; of two identities of a node the one with the greater
//! (epoch, generation) wins; identities with equal (node, epoch, generation) are equal in all else. Numbers are big-endian.
//! Decoding allocates no more than two short texts and refuses what an encoder of ours would not write.

use bytes::{Buf, BufMut, TryGetError};
use common::ids::NodeId;
use foca::{Codec, Header, Member, Message, State};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use uuid::Uuid;

/// One life of a node as the cluster sees it.
#[derive(Clone, Debug)]
pub struct Identity {
    pub node: Uuid,
    /// Grows with every start of the control plane.
    pub epoch: u64,
    /// Grows when the cluster takes the node for dead although it lives.
    pub generation: u32,
    /// Where its membership port is.
    pub address: SocketAddr,
    /// It says good-bye: down means left.
    pub leaving: bool,
    pub about: Arc<About>,
}

/// What a node tells of itself; fixed for one life.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct About {
    pub store_epoch: u64,
    pub pid: u32,
    /// The least and the greatest protocol version it speaks.
    pub protocol: (u16, u16),
    /// At most [`TEXT_BYTES_MAX`] printable bytes.
    pub version: String,
    /// Nodes that are likely to fail together share it; empty when not configured. At most [`TEXT_BYTES_MAX`] bytes.
    pub domain: String,
}

/// Why bytes are no identity, member or head.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CodecError {
    #[error("it ends too early")]
    Short,
    #[error("no room")]
    Room,
    #[error("{0}")]
    Value(&'static str),
}

impl From<TryGetError> for CodecError {
    fn from(_: TryGetError) -> Self {
        Self::Short
    }
}

impl Identity {
    /// The addressee of an announcement when only its address is known.
    pub fn unknown_at(address: SocketAddr) -> Self {
        let about = Arc::new(About::default());
        Self { node: Uuid::nil(), epoch: 0, generation: 0, address, leaving: false, about }
    }

    pub fn is_unknown(&self) -> bool {
        self.node.is_nil()
    }

    /// The node as the rest of the system names it.
    pub fn id(&self) -> NodeId {
        NodeId(self.node.into_bytes())
    }

    fn life(&self) -> (u64, u32) {
        (self.epoch, self.generation)
    }
}

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        self.node == other.node && self.life() == other.life()
    }
}

impl Eq for Identity {}

impl foca::Identity for Identity {
    type Addr = Uuid;

    fn renew(&self) -> Option<Self> {
        let generation = self.generation.checked_add(1).filter(|_| !self.leaving)?;
        Some(Self { generation, ..self.clone() })
    }

    fn addr(&self) -> Uuid {
        self.node
    }

    fn win_addr_conflict(&self, other: &Self) -> bool {
        self.life() > other.life()
    }
}

/// The wire form above.
#[derive(Clone, Copy, Debug)]
pub struct Wire;

impl Codec<Identity> for Wire {
    type Error = CodecError;

    fn encode_header(&mut self, header: &Header<Identity>, mut out: impl BufMut) -> Result<(), CodecError> {
        let mut bytes = Vec::with_capacity(HEAD_BYTES_MAX);
        put_full(&header.src, &mut bytes);
        bytes.put_u16(header.src_incarnation);
        put_brief(&header.dst, &mut bytes);
        put_message(&header.message, &mut bytes);
        put_all(&bytes, &mut out)
    }

    fn decode_header(&mut self, mut from: impl Buf) -> Result<Header<Identity>, CodecError> {
        Ok(Header {
            src: get_full(&mut from)?,
            src_incarnation: from.try_get_u16()?,
            dst: get_brief(&mut from)?,
            message: get_message(&mut from)?,
        })
    }

    fn encode_member(&mut self, member: &Member<Identity>, mut out: impl BufMut) -> Result<(), CodecError> {
        let mut bytes = Vec::with_capacity(HEAD_BYTES_MAX);
        put_full(member.id(), &mut bytes);
        bytes.put_u16(member.incarnation());
        bytes.put_u8(match member.state() {
            State::Alive => 0,
            State::Suspect => 1,
            State::Down => 2,
        });
        put_all(&bytes, &mut out)
    }

    fn decode_member(&mut self, mut from: impl Buf) -> Result<Member<Identity>, CodecError> {
        let id = get_full(&mut from)?;
        let incarnation = from.try_get_u16()?;
        let state = match from.try_get_u8()? {
            0 => State::Alive,
            1 => State::Suspect,
            2 => State::Down,
            _ => return Err(CodecError::Value("no such state")),
        };
        Ok(Member::new(id, incarnation, state))
    }
}

fn put_all(bytes: &[u8], out: &mut impl BufMut) -> Result<(), CodecError> {
    if out.remaining_mut() < bytes.len() {
        return Err(CodecError::Room);
    }
    out.put_slice(bytes);
    Ok(())
}

fn put_brief(identity: &Identity, out: &mut Vec<u8>) {
    out.put_slice(identity.node.as_bytes());
    out.put_u64(identity.epoch);
    out.put_u32(identity.generation);
    match identity.address.ip() {
        IpAddr::V4(ip) => {
            out.put_u8(4);
            out.put_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            out.put_u8(6);
            out.put_slice(&ip.octets());
        }
    }
    out.put_u16(identity.address.port());
}

fn get_brief(from: &mut impl Buf) -> Result<Identity, CodecError> {
    let node = Uuid::from_bytes(get_array(from)?);
    let epoch = from.try_get_u64()?;
    let generation = from.try_get_u32()?;
    let ip = match from.try_get_u8()? {
        4 => IpAddr::from(Ipv4Addr::from(get_array::<4>(from)?)),
        6 => IpAddr::from(Ipv6Addr::from(get_array::<16>(from)?)),
        _ => return Err(CodecError::Value("no such address family")),
    };
    let address = SocketAddr::new(ip, from.try_get_u16()?);
    if !is_reachable(address) {
        return Err(CodecError::Value("an address nobody can be reached at"));
    }
    Ok(Identity { node, epoch, generation, ..Identity::unknown_at(address) })
}

fn put_full(identity: &Identity, out: &mut Vec<u8>) {
    let start = out.len();
    out.put_u16(0);
    put_brief(identity, out);
    let about = &identity.about;
    out.put_u8(if identity.leaving { FLAG_LEAVING } else { 0 });
    out.put_u64(about.store_epoch);
    out.put_u32(about.pid);
    out.put_u16(about.protocol.0);
    out.put_u16(about.protocol.1);
    for text in [&about.version, &about.domain] {
        let text = text_part(text);
        out.put_u8(text.len() as u8);
        out.put_slice(text.as_bytes());
    }
    let bytes = (out.len() - start - 2) as u16;
    out[start..start + 2].copy_from_slice(&bytes.to_be_bytes());
}

fn get_full(from: &mut impl Buf) -> Result<Identity, CodecError> {
    let bytes = usize::from(from.try_get_u16()?);
    let mut room = [0; IDENTITY_BYTES_MAX];
    let room = room.get_mut(..bytes).ok_or(CodecError::Value("an identity that is too long"))?;
    from.try_copy_to_slice(room)?;
    let mut body = &*room;
    let mut identity = get_brief(&mut body)?;
    if identity.is_unknown() {
        return Err(CodecError::Value("a member without a name"));
    }
    identity.leaving = body.try_get_u8()? & FLAG_LEAVING != 0;
    let about = About {
        store_epoch: body.try_get_u64()?,
        pid: body.try_get_u32()?,
        protocol: (body.try_get_u16()?, body.try_get_u16()?),
        version: get_text(&mut body)?,
        domain: get_text(&mut body)?,
    };
    if about.protocol.0 > about.protocol.1 {
        return Err(CodecError::Value("an empty range of protocol versions"));
    }
    identity.about = Arc::new(about);
    Ok(identity)
}

fn put_message(message: &Message<Identity>, out: &mut Vec<u8>) {
    let (tag, other, number) = match message {
        Message::Ping(number) => (0, None, Some(number)),
        Message::Ack(number) => (1, None, Some(number)),
        Message::PingReq { target, probe_number } => (2, Some(target), Some(probe_number)),
        Message::IndirectPing { origin, probe_number } => (3, Some(origin), Some(probe_number)),
        Message::IndirectAck { target, probe_number } => (4, Some(target), Some(probe_number)),
        Message::ForwardedAck { origin, probe_number } => (5, Some(origin), Some(probe_number)),
        Message::Announce => (6, None, None),
        Message::Feed => (7, None, None),
        Message::Gossip => (8, None, None),
        Message::Broadcast => (9, None, None),
        Message::TurnUndead => (10, None, None),
    };
    out.put_u8(tag);
    if let Some(other) = other {
        put_brief(other, out);
    }
    if let Some(number) = number {
        out.put_u8(*number);
    }
}

fn get_message(from: &mut impl Buf) -> Result<Message<Identity>, CodecError> {
    Ok(match from.try_get_u8()? {
        0 => Message::Ping(from.try_get_u8()?),
        1 => Message::Ack(from.try_get_u8()?),
        2 => Message::PingReq { target: get_brief(from)?, probe_number: from.try_get_u8()? },
        3 => Message::IndirectPing { origin: get_brief(from)?, probe_number: from.try_get_u8()? },
        4 => Message::IndirectAck { target: get_brief(from)?, probe_number: from.try_get_u8()? },
        5 => Message::ForwardedAck { origin: get_brief(from)?, probe_number: from.try_get_u8()? },
        6 => Message::Announce,
        7 => Message::Feed,
        8 => Message::Gossip,
        9 => Message::Broadcast,
        10 => Message::TurnUndead,
        _ => return Err(CodecError::Value("no such message")),
    })
}

fn get_array<const N: usize>(from: &mut impl Buf) -> Result<[u8; N], CodecError> {
    let mut bytes = [0; N];
    from.try_copy_to_slice(&mut bytes)?;
    Ok(bytes)
}

/// Texts of others end up in logs and on terminals.
fn get_text(from: &mut impl Buf) -> Result<String, CodecError> {
    let mut room = [0; TEXT_BYTES_MAX];
    let bytes = usize::from(from.try_get_u8()?);
    let room = room.get_mut(..bytes).ok_or(CodecError::Value("a text that is too long"))?;
    from.try_copy_to_slice(room)?;
    let text = std::str::from_utf8(room).map_err(|_| CodecError::Value("a text that is not UTF-8"))?;
    if text.chars().any(char::is_control) {
        return Err(CodecError::Value("a text with control characters"));
    }
    Ok(text.to_owned())
}

/// As much of a text as travels.
fn text_part(text: &str) -> &str {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// True when one node can be sent packets at `address`.
pub fn is_reachable(address: SocketAddr) -> bool {
    let ip = address.ip();
    let broadcast = ip == IpAddr::V4(Ipv4Addr::BROADCAST);
    address.port() != 0 && !ip.is_unspecified() && !ip.is_multicast() && !broadcast
}

/// Longest version or failure domain.
pub const TEXT_BYTES_MAX: usize = 64;
/// Longest full identity, with room for what later versions add.
const IDENTITY_BYTES_MAX: usize = 512;
/// What our own heads and members need at most.
const HEAD_BYTES_MAX: usize = 384;
const FLAG_LEAVING: u8 = 1;

#[cfg(test)]
pub mod tests {
    use super::*;
    use proptest::prelude::*;

    pub fn identities() -> impl Strategy<Value = Identity> {
        let address = (any::<IpAddr>(), 1..=u16::MAX)
            .prop_map(SocketAddr::from)
            .prop_filter("somewhere", |address| is_reachable(*address));
        let life = (1u128.., any::<u64>(), any::<u32>(), any::<bool>());
        let about = (any::<u64>(), any::<u32>(), any::<u16>(), any::<u16>(), "\\PC{0,16}", "\\PC{0,16}");
        (life, address, about).prop_map(|((node, epoch, generation, leaving), address, about)| {
            let (store_epoch, pid, a, b, version, domain) = about;
            let protocol = (a.min(b), a.max(b));
            let about = Arc::new(About { store_epoch, pid, protocol, version, domain });
            Identity { node: Uuid::from_u128(node), epoch, generation, address, leaving, about }
        })
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(src in identities(), dst in identities(), incarnation: u16, tag in 0u8..11, number: u8) {
            let mut message = vec![tag];
            if (2..=5).contains(&tag) {
                put_brief(&dst, &mut message);
            }
            message.push(number);
            let message = get_message(&mut &*message).unwrap();
            let head = Header { src: src.clone(), src_incarnation: incarnation, dst, message };
            let mut bytes = vec![];
            Wire.encode_header(&head, &mut bytes).unwrap();
            let member = Member::new(src.clone(), incarnation, State::Suspect);
            Wire.encode_member(&member, &mut bytes).unwrap();
            let mut rest = &*bytes;
            let read = Wire.decode_header(&mut rest).unwrap();
            prop_assert_eq!(&read, &head);
            prop_assert_eq!((&read.src.about, read.src.address, read.src.leaving), (&src.about, src.address, src.leaving));
            prop_assert_eq!(read.dst.address, head.dst.address);
            prop_assert_eq!(Wire.decode_member(&mut rest).unwrap(), member);
            prop_assert!(rest.is_empty());
            for end in 0..bytes.len() {
                let mut part = &bytes[..end];
                let whole = Wire.decode_header(&mut part).and_then(|_| Wire.decode_member(&mut part));
                prop_assert!(whole.is_err());
            }
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = Wire.decode_header(&*bytes);
            let _ = Wire.decode_member(&*bytes);
        }

        #[test]
        fn a_flipped_byte_is_decoded_or_refused(src in identities(), at: prop::sample::Index, to: u8) {
            let mut bytes = vec![];
            Wire.encode_member(&Member::alive(src), &mut bytes).unwrap();
            let at = at.index(bytes.len());
            bytes[at] = to;
            let _ = Wire.decode_member(&*bytes);
        }

        #[test]
        fn long_texts_are_cut_at_a_character(text in "\\PC{0,100}") {
            let part = text_part(&text);
            prop_assert!(part.len() <= TEXT_BYTES_MAX && text.starts_with(part));
        }
    }

    fn identity() -> Identity {
        let mut identity = Identity::unknown_at("10.0.0.1:7".parse().unwrap());
        identity.node = Uuid::from_u128(7);
        identity
    }

    #[test]
    fn what_a_later_version_adds_is_passed_over() {
        let mut bytes = vec![];
        put_full(&identity(), &mut bytes);
        bytes.extend_from_slice(b"more");
        let length = (bytes.len() - 2) as u16;
        bytes[..2].copy_from_slice(&length.to_be_bytes());
        let mut rest = &*bytes;
        assert_eq!(get_full(&mut rest), Ok(identity()));
        assert!(rest.is_empty());
    }

    #[test]
    fn a_renewed_identity_wins_and_a_leaving_one_is_not_renewed() {
        use foca::Identity as _;
        let old = identity();
        let new = old.renew().unwrap();
        assert!(new.win_addr_conflict(&old) && !old.win_addr_conflict(&new));
        let restarted = Identity { epoch: 1, generation: 0, ..new.clone() };
        assert!(restarted.win_addr_conflict(&new));
        assert!(Identity { leaving: true, ..new.clone() }.renew().is_none());
        assert!(Identity { generation: u32::MAX, ..new }.renew().is_none());
    }

    #[test]
    fn useless_addresses_and_control_characters_are_refused() {
        for address in ["0.0.0.0:1", "10.0.0.1:0", "224.0.0.1:5", "[::]:5", "255.255.255.255:5"] {
            let mut bytes = vec![];
            put_brief(&Identity { address: address.parse().unwrap(), ..identity() }, &mut bytes);
            assert!(get_brief(&mut &*bytes).is_err(), "{address}");
        }
        let about = About { version: "a\u{1b}[2J".into(), ..About::default() };
        let mut bytes = vec![];
        put_full(&Identity { about: Arc::new(about), ..identity() }, &mut bytes);
        assert_eq!(get_full(&mut &*bytes), Err(CodecError::Value("a text with control characters")));
    }
}
