//! What nodes say to each other of their claims, and its bytes. Pure.
//!
//! `type u8 │ fields`, little-endian; lists with a count in front. Every length is checked before memory is taken, every number
//! against what it may be, and nothing may follow the last field.
//!
//! ```text
//! Heads   what I hold          ─▶ newer there? ─▶ Pull ─▶ Part, Part ...
//! Part    changes (from, to]   ─▶ contiguous?  ─▶ applied │ else Pull
//! ```

use crate::replica::hlc::Hlc;
use crate::store::record::{Reader, RecordError, require};
use common::ids::{BootEpoch, Match, NODES_MAX, NodeId, RealmId, RouteKind, SHARDS_MAX};
use common::limits::URI_BYTES_MAX;
use common::share::{Invoke, Share};
use std::sync::Arc;

/// One life of an owner's map. The owner gives the numbers; a later life is greater.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Life {
    /// The epoch of the owner's control plane.
    pub control: u64,
    /// Counts within that.
    pub count: u32,
}

/// What a node wants, or no longer wants.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RouteKey {
    pub realm: RealmId,
    pub uri: Arc<str>,
    pub kind: RouteKind,
    pub policy: Match,
}

/// What others must know of an owner beside its routes.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct About {
    /// `IP:port` of its relay; empty: it has none.
    pub relay: String,
    pub shards: u8,
}

/// How far a map has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head {
    pub owner: NodeId,
    pub life: Life,
    /// The data plane whose claims these are; none: it is gone.
    pub epoch: Option<BootEpoch>,
    /// The last change.
    pub version: u64,
    /// Marks of routes that went up to this version are no longer kept.
    pub collected: u64,
    /// With this version the map first held everything the data plane claims; 0: it does not yet.
    pub whole_at: u64,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    pub key: RouteKey,
    pub version: u64,
    /// When the owner first knew of it; of meaning for procedures.
    pub stamp: Hlc,
    pub present: bool,
    /// What the owner says of callees that share a procedure; none: there is one, whose it is alone.
    pub share: Option<Share>,
}

/// Whether a data plane wants a route, and what it says of callees that share it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wanted {
    pub wanted: bool,
    pub share: Option<Share>,
}

impl From<bool> for Wanted {
    fn from(wanted: bool) -> Self {
        Self { wanted, share: None }
    }
}

/// Changes after `from` up to `to`, but for those that later ones replaced.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Part {
    pub head: Head,
    /// The version that changed `about` last.
    pub about_at: u64,
    pub about: About,
    pub from: u64,
    pub to: u64,
    /// By ascending version.
    pub entries: Vec<Entry>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pull {
    pub owner: NodeId,
    pub life: Life,
    /// The version the asker has come to, and the collection mark its map stands on.
    pub from: u64,
    pub floor: u64,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// `ask`: say yours if you hold anything newer.
    Heads {
        ask: bool,
        heads: Vec<Head>,
    },
    Pull(Pull),
    Part(Part),
}

/// Longest message.
pub const MESSAGE_BYTES_MAX: usize = 256 * 1_024;
/// Longest address of a relay: an IPv6 address with a scope and a port is shorter.
pub const RELAY_BYTES_MAX: usize = 128;
/// Nothing counts this far; a greater number is damage.
pub const NUMBER_MAX: u64 = 1 << 62;
const HEAD_BYTES: usize = 16 + 12 + 9 + 24;
const ENTRY_BYTES: usize = 8 + 2 + 2 + 8 + 8 + 2;
/// What a share adds.
const SHARE_BYTES: usize = 1 + 4 + 16;
/// What a part takes beside its entries, at most.
pub const PART_HEAD_BYTES: usize = 1 + HEAD_BYTES + 8 + 3 + RELAY_BYTES_MAX + 16 + 4;

const _: () = assert!(3 + NODES_MAX * HEAD_BYTES <= MESSAGE_BYTES_MAX);
const _: () = assert!(PART_HEAD_BYTES + ENTRY_BYTES + SHARE_BYTES + URI_BYTES_MAX <= MESSAGE_BYTES_MAX);

/// What an entry of this key takes in a part.
pub fn entry_bytes(key: &RouteKey, is_shared: bool) -> usize {
    ENTRY_BYTES + key.uri.len() + if is_shared { SHARE_BYTES } else { 0 }
}

impl Message {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Heads { ask, heads } => {
                out.extend_from_slice(&[1, (*ask).into()]);
                out.extend_from_slice(&(heads.len() as u16).to_le_bytes());
                heads.iter().for_each(|head| put_head(&mut out, head));
            }
            Self::Pull(pull) => {
                out.push(2);
                out.extend_from_slice(&pull.owner.0);
                put_life(&mut out, pull.life);
                put_numbers(&mut out, &[pull.from, pull.floor]);
            }
            Self::Part(part) => put_part(&mut out, part),
        }
        debug_assert!(out.len() <= MESSAGE_BYTES_MAX);
        out
    }

    /// # Errors
    /// When the bytes are longer than [`MESSAGE_BYTES_MAX`] or are not in the one form a message has.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        require(bytes.len() <= MESSAGE_BYTES_MAX, "too long a message")?;
        let mut reader = Reader(bytes);
        let message = match reader.byte()? {
            1 => {
                let ask = flag(&mut reader)?;
                let count = usize::from(reader.u16()?);
                require(count <= NODES_MAX, "more owners than nodes")?;
                let heads = (0..count).map(|_| read_head(&mut reader)).collect::<Result<_, _>>()?;
                Self::Heads { ask, heads }
            }
            2 => Self::Pull(Pull {
                owner: NodeId(reader.array()?),
                life: read_life(&mut reader)?,
                from: number(&mut reader)?,
                floor: number(&mut reader)?,
            }),
            3 => Self::Part(read_part(&mut reader)?),
            _ => return Err(RecordError::Form("type of message")),
        };
        require(reader.0.is_empty(), "bytes after the end")?;
        Ok(message)
    }
}

fn put_part(out: &mut Vec<u8>, part: &Part) {
    out.push(3);
    put_head(out, &part.head);
    put_numbers(out, &[part.about_at]);
    out.push(part.about.shards);
    put_text(out, &part.about.relay);
    put_numbers(out, &[part.from, part.to]);
    out.extend_from_slice(&(part.entries.len() as u32).to_le_bytes());
    for entry in &part.entries {
        put_numbers(out, &[entry.key.realm.0]);
        out.extend_from_slice(&[entry.key.kind as u8, entry.key.policy as u8]);
        put_text(out, &entry.key.uri);
        put_numbers(out, &[entry.version, entry.stamp.0]);
        out.push(entry.present.into());
        put_share(out, entry.share);
    }
}

fn read_part(reader: &mut Reader<'_>) -> Result<Part, RecordError> {
    let head = read_head(reader)?;
    let about_at = number(reader)?;
    let shards = reader.byte()?;
    require(usize::from(shards) <= SHARDS_MAX, "shards")?;
    let relay = text(reader, RELAY_BYTES_MAX)?.to_owned();
    let (from, to) = (number(reader)?, number(reader)?);
    require(from <= to && to <= head.version && about_at <= head.version, "order of versions")?;
    let count = reader.u32()? as usize;
    require(count <= reader.0.len() / ENTRY_BYTES, "more entries than bytes")?;
    let mut entries: Vec<Entry> = Vec::with_capacity(count);
    let mut last = from;
    for _ in 0..count {
        let entry = read_entry(reader)?;
        require(entry.version > last && entry.version <= to, "order of entries")?;
        last = entry.version;
        entries.push(entry);
    }
    Ok(Part { head, about_at, about: About { relay, shards }, from, to, entries })
}

fn read_entry(reader: &mut Reader<'_>) -> Result<Entry, RecordError> {
    let realm = RealmId(reader.u64()?);
    let kind = match reader.byte()? {
        0 => RouteKind::Topic,
        1 => RouteKind::Procedure,
        _ => return Err(RecordError::Form("kind of route")),
    };
    let policy = match reader.byte()? {
        0 => Match::Exact,
        1 => Match::Prefix,
        2 => Match::Wildcard,
        _ => return Err(RecordError::Form("match policy")),
    };
    let uri = text(reader, URI_BYTES_MAX)?.into();
    let (version, stamp) = (number(reader)?, Hlc(reader.u64()?));
    let present = flag(reader)?;
    let share = read_share(reader)?;
    Ok(Entry { key: RouteKey { realm, uri, kind, policy }, version, stamp, present, share })
}

fn put_share(out: &mut Vec<u8>, share: Option<Share>) {
    let Some(Share { invoke, forced, callees, first, last }) = share else { return out.push(0) };
    out.extend_from_slice(&[invoke as u8 + 1, forced.into()]);
    out.extend_from_slice(&callees.to_le_bytes());
    put_numbers(out, &[first, last]);
}

fn read_share(reader: &mut Reader<'_>) -> Result<Option<Share>, RecordError> {
    let Some(invoke) = reader.byte()?.checked_sub(1) else { return Ok(None) };
    let invoke = Invoke::from_number(invoke).ok_or(RecordError::Form("policy of a share"))?;
    let (forced, callees) = (flag(reader)?, reader.u32()?);
    Ok(Some(Share { invoke, forced, callees, first: number(reader)?, last: number(reader)? }))
}

fn put_head(out: &mut Vec<u8>, head: &Head) {
    out.extend_from_slice(&head.owner.0);
    put_life(out, head.life);
    out.push(head.epoch.is_some().into());
    put_numbers(out, &[head.epoch.map_or(0, |epoch| epoch.0), head.version, head.collected, head.whole_at]);
}

fn read_head(reader: &mut Reader<'_>) -> Result<Head, RecordError> {
    let owner = NodeId(reader.array()?);
    let life = read_life(reader)?;
    let there = flag(reader)?;
    let epoch = reader.u64()?;
    require(there || epoch == 0, "an epoch of nobody")?;
    let (version, collected, whole_at) = (number(reader)?, number(reader)?, number(reader)?);
    require(collected <= version && whole_at <= version, "order of versions")?;
    Ok(Head { owner, life, epoch: there.then_some(BootEpoch(epoch)), version, collected, whole_at })
}

fn put_life(out: &mut Vec<u8>, life: Life) {
    put_numbers(out, &[life.control]);
    out.extend_from_slice(&life.count.to_le_bytes());
}

fn read_life(reader: &mut Reader<'_>) -> Result<Life, RecordError> {
    let life = Life { control: number(reader)?, count: reader.u32()? };
    require(life.count < u32::MAX, "number of a life")?;
    Ok(life)
}

fn put_numbers(out: &mut Vec<u8>, numbers: &[u64]) {
    numbers.iter().for_each(|number| out.extend_from_slice(&number.to_le_bytes()));
}

fn number(reader: &mut Reader<'_>) -> Result<u64, RecordError> {
    let number = reader.u64()?;
    require(number < NUMBER_MAX, "too great a number")?;
    Ok(number)
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u16).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn text<'a>(reader: &mut Reader<'a>, bytes_max: usize) -> Result<&'a str, RecordError> {
    let length = usize::from(reader.u16()?);
    require(length <= bytes_max, "too long a text")?;
    std::str::from_utf8(reader.take(length)?).map_err(|_| RecordError::Form("text that is not UTF-8"))
}

fn flag(reader: &mut Reader<'_>) -> Result<bool, RecordError> {
    match reader.byte()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(RecordError::Form("a flag")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn head() -> impl Strategy<Value = Head> {
        let numbers = (any::<[u8; 16]>(), 0..NUMBER_MAX, 0..u32::MAX, any::<Option<u64>>());
        (numbers, 5_000u64..6_000, 0u64..5_000, 0u64..5_000).prop_map(
            |((owner, control, count, epoch), version, collected, whole_at)| Head {
                owner: NodeId(owner),
                life: Life { control, count },
                epoch: epoch.map(BootEpoch),
                version,
                collected,
                whole_at,
            },
        )
    }

    fn entry() -> impl Strategy<Value = Entry> {
        let kind = prop_oneof![Just(RouteKind::Topic), Just(RouteKind::Procedure)];
        let policy = prop_oneof![Just(Match::Exact), Just(Match::Prefix), Just(Match::Wildcard)];
        let share = (0u8..8, any::<bool>(), any::<u32>(), 0..NUMBER_MAX, 0..NUMBER_MAX).prop_map(
            |(invoke, forced, callees, first, last)| {
                let invoke = Invoke::from_number(invoke).unwrap();
                Share { invoke, forced, callees, first, last }
            },
        );
        let share = prop::option::of(share);
        (any::<u64>(), ".{0,40}", kind, policy, (any::<u64>(), any::<bool>(), share)).prop_map(
            |(realm, uri, kind, policy, (stamp, present, share))| Entry {
                key: RouteKey { realm: RealmId(realm), uri: uri.into(), kind, policy },
                version: 0,
                stamp: Hlc(stamp),
                present,
                share,
            },
        )
    }

    fn message() -> impl Strategy<Value = Message> {
        let part = (head(), "[0-9.:]{0,30}", 0u8..=128, 0u64..100, prop::collection::vec(entry(), 0..8));
        prop_oneof![
            (any::<bool>(), prop::collection::vec(head(), 0..5))
                .prop_map(|(ask, heads)| Message::Heads { ask, heads }),
            (head(), 0..NUMBER_MAX, 0..NUMBER_MAX).prop_map(|(head, from, floor)| {
                Message::Pull(Pull { owner: head.owner, life: head.life, from, floor })
            }),
            part.prop_map(|(head, relay, shards, from, mut entries)| {
                for (at, entry) in entries.iter_mut().enumerate() {
                    entry.version = from + 1 + 3 * at as u64;
                }
                let about = About { relay, shards };
                Message::Part(Part { head, about_at: 7, about, from, to: from + 100, entries })
            }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded_and_nothing_shorter(message in message()) {
            let bytes = message.encode();
            prop_assert_eq!(Message::decode(&bytes), Ok(message));
            for length in 0..bytes.len() {
                prop_assert!(Message::decode(&bytes[..length]).is_err());
            }
        }

        #[test]
        fn bytes_of_any_origin_are_answered(
            number in 0u8..5,
            bytes in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let bytes = [vec![number], bytes].concat();
            if let Ok(message) = Message::decode(&bytes) {
                prop_assert_eq!(message.encode(), bytes);
            }
        }

        #[test]
        fn damaged_messages_are_answered(message in message(), at in any::<prop::sample::Index>(), with in any::<u8>()) {
            let mut bytes = message.encode();
            let at = at.index(bytes.len());
            bytes[at] = with;
            if let Ok(message) = Message::decode(&bytes) {
                prop_assert_eq!(message.encode(), bytes);
            }
        }
    }

    #[test]
    fn a_count_of_entries_that_cannot_be_there_takes_no_memory() {
        let head = Head {
            owner: NodeId([1; 16]),
            life: Life { control: 1, count: 1 },
            epoch: None,
            version: 9,
            collected: 0,
            whole_at: 0,
        };
        let part = Part { head, about_at: 0, about: About::default(), from: 0, to: 9, entries: vec![] };
        let mut bytes = Message::Part(part).encode();
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(Message::decode(&bytes), Err(RecordError::Form("more entries than bytes")));
    }
}
