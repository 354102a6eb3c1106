//! What nodes say to each other to broadcast, and its bytes. Pure.
//!
//! ```text
//! type u8 │ 1 Gossip: round u8, id [16], payload up to the end
//!         │ 2 Ihave:  count u16 × (id [16], round u8)     3 Ack: count u16 × id [16]
//!         │ 4 Graft:  count u16 × id [16]; none: only the edge      5 Prune: id [16]
//! ```
//! Little-endian. Counts are checked before anything is allocated, and nothing may follow.

use super::BATCH_MAX;
use crate::store::record::{RECORD_BYTES_MAX, Reader, RecordError, require};
use std::fmt;

/// Names a payload: a keyed hash of it, so equal payloads have one id on all nodes of a cluster.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub [u8; ID_BYTES]);

/// What the ids of one cluster are keyed with.
#[derive(Clone)]
pub struct IdKey([u8; 32]);

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message<'a> {
    /// The payload, and how many hops it has made.
    Gossip { round: u8, id: Id, payload: &'a [u8] },
    /// The sender has these; each with the hops it had made.
    Ihave(Vec<(Id, u8)>),
    /// The sender has these and need not hear of them again.
    Ack(Vec<Id>),
    /// The edge is eager from now on, and the sender lacks these.
    Graft(Vec<Id>),
    /// The edge is lazy from now on: the sender had this already.
    Prune(Id),
}

impl IdKey {
    pub fn of(secret: &[u8]) -> Self {
        Self(blake3::derive_key("signalbox 2026 broadcast ids", secret))
    }

    pub fn id(&self, payload: &[u8]) -> Id {
        let mut id = [0; ID_BYTES];
        blake3::Hasher::new_keyed(&self.0).update(payload).finalize_xof().fill(&mut id);
        Id(id)
    }
}

impl Message<'_> {
    pub fn encode(&self) -> Vec<u8> {
        let mut out;
        match self {
            Self::Gossip { round, id, payload } => {
                out = Vec::with_capacity(GOSSIP_HEAD_BYTES + payload.len());
                out.extend_from_slice(&[1, *round]);
                out.extend_from_slice(&id.0);
                out.extend_from_slice(payload);
            }
            Self::Ihave(ids) => {
                out = vec![2];
                count(&mut out, ids.len());
                for (id, round) in ids {
                    out.extend_from_slice(&id.0);
                    out.push(*round);
                }
            }
            Self::Ack(ids) => {
                out = vec![3];
                list(&mut out, ids);
            }
            Self::Graft(ids) => {
                out = vec![4];
                list(&mut out, ids);
            }
            Self::Prune(id) => {
                out = vec![5];
                out.extend_from_slice(&id.0);
            }
        }
        out
    }
}

impl<'a> Message<'a> {
    pub fn decode(bytes: &'a [u8]) -> Result<Self, RecordError> {
        let mut reader = Reader(bytes);
        let message = match reader.byte()? {
            1 => {
                let (round, id) = (reader.byte()?, Id(reader.array()?));
                let payload = reader.take(reader.0.len())?;
                require((1..=PAYLOAD_BYTES_MAX).contains(&payload.len()), "length of a payload")?;
                Self::Gossip { round, id, payload }
            }
            2 => Self::Ihave(read(&mut reader, |reader| Ok((Id(reader.array()?), reader.byte()?)))?),
            3 => Self::Ack(read(&mut reader, |reader| Ok(Id(reader.array()?)))?),
            4 => Self::Graft(read(&mut reader, |reader| Ok(Id(reader.array()?)))?),
            5 => Self::Prune(Id(reader.array()?)),
            _ => return Err(RecordError::Form("type of message")),
        };
        require(reader.0.is_empty(), "bytes after the end")?;
        Ok(message)
    }
}

fn count(out: &mut Vec<u8>, count: usize) {
    debug_assert!(count <= BATCH_MAX);
    out.extend_from_slice(&(count as u16).to_le_bytes());
}

fn list(out: &mut Vec<u8>, ids: &[Id]) {
    count(out, ids.len());
    ids.iter().for_each(|id| out.extend_from_slice(&id.0));
}

fn read<T>(
    reader: &mut Reader<'_>,
    item: impl Fn(&mut Reader<'_>) -> Result<T, RecordError>,
) -> Result<Vec<T>, RecordError> {
    let count = usize::from(reader.u16()?);
    require(count <= BATCH_MAX, "too long a list")?;
    let mut items = Vec::with_capacity(count);
    for _ in 0..count {
        items.push(item(reader)?);
    }
    Ok(items)
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

pub const ID_BYTES: usize = 16;
/// Longest payload: a record.
pub const PAYLOAD_BYTES_MAX: usize = RECORD_BYTES_MAX;
const GOSSIP_HEAD_BYTES: usize = 2 + ID_BYTES;
/// Longest message.
pub const MESSAGE_BYTES_MAX: usize = GOSSIP_HEAD_BYTES + PAYLOAD_BYTES_MAX;

const _: () = assert!(BATCH_MAX <= u16::MAX as usize);
const _: () = assert!(3 + BATCH_MAX * (ID_BYTES + 1) <= MESSAGE_BYTES_MAX);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_encoded_is_decoded() {
        let id = |byte| Id([byte; 16]);
        for message in [
            Message::Gossip { round: 3, id: id(1), payload: b"payload" },
            Message::Ihave(vec![(id(1), 0), (id(2), 255)]),
            Message::Ack(vec![id(7); BATCH_MAX]),
            Message::Graft(vec![]),
            Message::Prune(id(9)),
        ] {
            let bytes = message.encode();
            assert_eq!(Message::decode(&bytes).as_ref(), Ok(&message));
            if !matches!(message, Message::Gossip { .. }) {
                (0..bytes.len()).for_each(|length| assert!(Message::decode(&bytes[..length]).is_err()));
            }
        }
    }

    #[test]
    fn messages_beyond_their_bounds_are_refused() {
        let refused = |message: Message<'_>| Message::decode(&message.encode()).is_err();
        assert!(refused(Message::Gossip { round: 0, id: Id([0; 16]), payload: b"" }));
        let long = vec![0; PAYLOAD_BYTES_MAX + 1];
        assert!(refused(Message::Gossip { round: 0, id: Id([0; 16]), payload: &long }));
        let mut many = vec![3];
        many.extend_from_slice(&(BATCH_MAX as u16 + 1).to_le_bytes());
        many.extend_from_slice(&[0; (BATCH_MAX + 1) * ID_BYTES]);
        assert!(Message::decode(&many).is_err());
    }

    #[test]
    fn ids_depend_on_the_payload_and_the_key() {
        let (one, other) = (IdKey::of(b"one"), IdKey::of(b"other"));
        assert_eq!(one.id(b"a"), IdKey::of(b"one").id(b"a"));
        assert_ne!(one.id(b"a"), one.id(b"b"));
        assert_ne!(one.id(b"a"), other.id(b"a"));
    }

    proptest! {
        #[test]
        fn bytes_of_any_origin_are_answered(
            number in 0u8..7,
            count in 0u16..8,
            rest in proptest::collection::vec(any::<u8>(), 0..160),
        ) {
            let bytes = [vec![number], count.to_le_bytes().to_vec(), rest].concat();
            if let Ok(message) = Message::decode(&bytes) {
                prop_assert_eq!(message.encode(), bytes);
            }
        }
    }
}
