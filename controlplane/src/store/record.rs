//! The stored and sent form of one object: its key, its history and the values that still compete. Pure.
//!
//! One form for each object, so equal objects are equal bytes on every node. All integers are little-endian:
//! ```text
//! "SBO" version u8 │ kind u8 │ flags u8 = 0 │ key length u16 │ key
//! entries u16 │ entries × ( node [16] │ store epoch u64 │ counter u64 │ values u16 )     sorted by (node, epoch)
//! values, in the order of the entries, newest first × ( flags u8 │ hlc u64 │ length u32 │ bytes )
//! BLAKE3 of all above, keyed by purpose, first 16 bytes
//! ```
//! The entries are a dotted version vector set: of an entry with counter `n` and `k` values, the value at position `p`
//! has the dot `n - p`; dots 1 to `n - k` were seen and overwritten.
//!
//! Invariants, proven by [`Object::decode`]: entries are sorted and unique; no counter is 0; no entry has more values
//! than its counter; there is at least one value; nothing follows; no bound is passed.

pub use crate::replica::dvvset::{Actor, Entry};
pub use crate::replica::hlc::Hlc;

use super::conflict::Rule;
use crate::replica::dvvset::{DvvSet, TooManyActors};
use std::cmp::Ordering;

/// Types of objects; the numbers are stored.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Kind {
    Realm = 1,
    /// The retained events of a topic.
    Retained = 2,
}

/// Ordered by stamp.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Value {
    pub hlc: Hlc,
    /// The canonical bytes of the object's type; none is a deletion.
    pub bytes: Option<Vec<u8>>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Object {
    pub kind: Kind,
    pub key: String,
    pub clock: DvvSet<Value>,
}

/// What a merge has done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Merged {
    /// All of it was known.
    Known,
    Changed,
    /// Changed, and values were given up because more competed than an object may hold.
    Cut,
}

/// Why bytes are not a record. They must not be served.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RecordError {
    #[error("the checksum does not match")]
    Checksum,
    #[error("not a record, or one of a later version")]
    Version,
    #[error("unknown kind {0}")]
    Kind(u8),
    #[error("not in the one form a record has: {0}")]
    Form(&'static str),
}

/// Why an object was not changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ObjectError {
    #[error(transparent)]
    Entries(#[from] TooManyActors),
    #[error("the merged history would have more than {ENTRIES_MERGED_MAX} entries")]
    Merged,
    #[error("the two objects have other names")]
    Other,
    #[error("the record would be longer than {RECORD_BYTES_MAX} bytes")]
    Bytes,
    #[error("the key must have 1 to {KEY_BYTES_MAX} bytes")]
    Key,
}

impl Object {
    /// An object nobody has written yet; it has no value and is not to be stored.
    pub fn new(kind: Kind, key: &str) -> Self {
        Self { kind, key: key.to_owned(), clock: DvvSet::default() }
    }

    /// `actor` overwrites all it sees here: one value remains, with the next dot of `actor`, or, if it has written nothing
    /// here, the one after `counter`: the greatest it may have given out in a history that was forgotten. On error nothing
    /// was changed.
    pub fn put(&mut self, actor: Actor, counter: u64, value: Value) -> Result<(), ObjectError> {
        if self.key.is_empty() || self.key.len() > KEY_BYTES_MAX {
            return Err(ObjectError::Key);
        }
        let entries = self.clock.entries().len() + 1;
        let bytes = value.bytes.as_ref().map_or(0, Vec::len);
        let length = HEAD_BYTES + self.key.len() + entries * ENTRY_BYTES + VALUE_BYTES + bytes + SUM_BYTES;
        if length > RECORD_BYTES_MAX {
            return Err(ObjectError::Bytes);
        }
        self.clock.update_after(&self.clock.context(), actor, counter, value)?;
        Ok(())
    }

    /// Takes over what another node knows of the object. Values that compete stay; if they are more than an object may
    /// hold, the one to use stays alone. On error nothing was changed.
    pub fn merge(&mut self, other: &Self) -> Result<Merged, ObjectError> {
        if (self.kind, &self.key) != (other.kind, &other.key) {
            return Err(ObjectError::Other);
        }
        let mut clock = self.clock.sync(&other.clock);
        if clock == self.clock {
            return Ok(Merged::Known);
        }
        if clock.entries().len() > ENTRIES_MERGED_MAX {
            return Err(ObjectError::Merged);
        }
        let mut merged = Merged::Changed;
        if !fits(&self.key, &clock) {
            clock.keep_greatest(by_stamp);
            merged = Merged::Cut;
            if !fits(&self.key, &clock) {
                return Err(ObjectError::Bytes);
            }
            if clock == self.clock {
                return Ok(Merged::Known);
            }
        }
        self.clock = clock;
        Ok(merged)
    }

    /// Every value that competes, in the order of the entries.
    pub fn values(&self) -> impl Iterator<Item = &Value> + Clone {
        self.clock.values()
    }

    /// The value to use, by the rule of the object's type: see [`Rule`]. A deletion has no bytes.
    pub fn resolved(&self) -> Option<Value> {
        let bytes = Rule::of(self.kind).settle(self.values());
        self.values().next().map(|_| Value { hlc: self.last(), bytes })
    }

    /// Whether all that is left of the object is its deletion.
    pub fn is_tombstone(&self) -> bool {
        self.values().all(|value| value.bytes.is_none())
    }

    /// The greatest stamp of its values.
    pub fn last(&self) -> Hlc {
        self.values().map(|value| value.hlc).max().unwrap_or_default()
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(128 + self.key.len());
        out.extend_from_slice(&MAGIC);
        out.push(self.kind as u8);
        out.push(0);
        out.extend_from_slice(&(self.key.len() as u16).to_le_bytes());
        out.extend_from_slice(self.key.as_bytes());
        out.extend_from_slice(&(self.clock.entries().len() as u16).to_le_bytes());
        for entry in self.clock.entries() {
            out.extend_from_slice(&entry.actor.node);
            out.extend_from_slice(&entry.actor.epoch.to_le_bytes());
            out.extend_from_slice(&entry.counter.to_le_bytes());
            out.extend_from_slice(&(entry.values.len() as u16).to_le_bytes());
        }
        for value in self.values() {
            let bytes = value.bytes.as_deref();
            out.push(if bytes.is_none() { DELETED } else { 0 });
            out.extend_from_slice(&value.hlc.0.to_le_bytes());
            let bytes = bytes.unwrap_or_default();
            out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
            out.extend_from_slice(bytes);
        }
        let sum = checksum(&out);
        out.extend_from_slice(&sum);
        out
    }

    /// Proves the checksum first, then the form.
    pub fn decode(record: &[u8]) -> Result<Self, RecordError> {
        if record.len() > RECORD_BYTES_MAX {
            return Err(RecordError::Form("too long"));
        }
        let (body, sum) = record.split_last_chunk::<SUM_BYTES>().ok_or(RecordError::Checksum)?;
        if checksum(body) != *sum {
            return Err(RecordError::Checksum);
        }
        let mut reader = Reader(body);
        if reader.array()? != MAGIC {
            return Err(RecordError::Version);
        }
        let kind = Kind::from_number(reader.byte()?)?;
        require(reader.byte()? == 0, "flags")?;
        let key_bytes = usize::from(reader.u16()?);
        require((1..=KEY_BYTES_MAX).contains(&key_bytes), "length of the key")?;
        let key = std::str::from_utf8(reader.take(key_bytes)?).map_err(|_| RecordError::Form("key"))?;
        let mut object = Self::new(kind, key);
        let counts = read_entries(&mut reader, &mut object.clock.entries)?;
        for (entry, count) in object.clock.entries.iter_mut().zip(counts) {
            for _ in 0..count {
                entry.values.push(read_value(&mut reader)?);
            }
        }
        require(reader.0.is_empty(), "bytes after the end")?;
        Ok(object)
    }
}

/// Reads the entries without their values and returns how many values each has.
fn read_entries(reader: &mut Reader<'_>, entries: &mut Vec<Entry<Value>>) -> Result<Vec<u16>, RecordError> {
    let length = usize::from(reader.u16()?);
    require(length <= ENTRIES_MERGED_MAX, "too many entries")?;
    let mut counts = Vec::with_capacity(length);
    let mut values = 0;
    for _ in 0..length {
        let actor = Actor { node: reader.array()?, epoch: reader.u64()? };
        let counter = reader.u64()?;
        let count = reader.u16()?;
        require(entries.last().is_none_or(|last| last.actor < actor), "order of entries")?;
        require((1..=COUNTER_MAX).contains(&counter) && u64::from(count) <= counter, "counter")?;
        values += usize::from(count);
        counts.push(count);
        entries.push(Entry { actor, counter, values: Vec::new() });
    }
    require((1..=SIBLINGS_MAX).contains(&values), "number of values")?;
    Ok(counts)
}

fn read_value(reader: &mut Reader<'_>) -> Result<Value, RecordError> {
    let flags = reader.byte()?;
    require(flags & !DELETED == 0, "flags of a value")?;
    let hlc = Hlc(reader.u64()?);
    let length = reader.u32()? as usize;
    let bytes = reader.take(length)?;
    if flags == DELETED {
        require(bytes.is_empty(), "bytes of a deletion")?;
        return Ok(Value { hlc, bytes: None });
    }
    Ok(Value { hlc, bytes: Some(bytes.to_vec()) })
}

/// The order of values that compete: by stamp; of equal ones the later in the set is the greater.
fn by_stamp(one: &Value, other: &Value) -> Ordering {
    one.hlc.cmp(&other.hlc)
}

fn fits(key: &str, clock: &DvvSet<Value>) -> bool {
    let values = clock.values().map(|value| VALUE_BYTES + value.bytes.as_ref().map_or(0, Vec::len));
    let length =
        HEAD_BYTES + key.len() + clock.entries().len() * ENTRY_BYTES + values.sum::<usize>() + SUM_BYTES;
    clock.values().count() <= SIBLINGS_MAX && length <= RECORD_BYTES_MAX
}

impl Kind {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Realm => "realm",
            Self::Retained => "retained",
        }
    }

    fn from_number(number: u8) -> Result<Self, RecordError> {
        match number {
            1 => Ok(Self::Realm),
            2 => Ok(Self::Retained),
            other => Err(RecordError::Kind(other)),
        }
    }
}

/// Where an object is kept: the BLAKE3 hash of its kind and key. Its first 16 bits are the hash tree's bucket (6 bits of
/// shard, 10 of bucket within it), so the objects of a bucket lie together. This order is for ever: it is on disk and
/// between nodes.
pub fn place(kind: Kind, key: &str) -> [u8; PLACE_BYTES] {
    let mut hasher = blake3::Hasher::new_derive_key("signalbox 2026 object place");
    hasher.update(&[kind as u8]);
    hasher.update(key.as_bytes());
    *hasher.finalize().as_bytes()
}

/// The checksum of records and of everything else the store keeps.
pub fn checksum(bytes: &[u8]) -> [u8; SUM_BYTES] {
    let mut sum = [0; SUM_BYTES];
    blake3::Hasher::new_derive_key("signalbox 2026 record checksum")
        .update(bytes)
        .finalize_xof()
        .fill(&mut sum);
    sum
}

/// A cursor over bytes that nobody vouches for.
pub(crate) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub fn take(&mut self, length: usize) -> Result<&'a [u8], RecordError> {
        let (head, rest) = self.0.split_at_checked(length).ok_or(RecordError::Form("cut short"))?;
        self.0 = rest;
        Ok(head)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], RecordError> {
        let (head, rest) = self.0.split_first_chunk().ok_or(RecordError::Form("cut short"))?;
        self.0 = rest;
        Ok(*head)
    }

    pub fn byte(&mut self) -> Result<u8, RecordError> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub fn u16(&mut self) -> Result<u16, RecordError> {
        self.array().map(u16::from_le_bytes)
    }

    pub fn u32(&mut self) -> Result<u32, RecordError> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, RecordError> {
        self.array().map(u64::from_le_bytes)
    }
}

pub(crate) fn require(holds: bool, what: &'static str) -> Result<(), RecordError> {
    if holds { Ok(()) } else { Err(RecordError::Form(what)) }
}

/// "SBO" and the version of the form.
const MAGIC: [u8; 4] = *b"SBO\x01";
/// Flag of a value: it is a deletion.
const DELETED: u8 = 1;
const HEAD_BYTES: usize = 10;
const ENTRY_BYTES: usize = 34;
const VALUE_BYTES: usize = 13;
const SUM_BYTES: usize = 16;
pub const PLACE_BYTES: usize = 32;
pub const KEY_BYTES_MAX: usize = common::limits::URI_BYTES_MAX;
/// Most actors in the history of a merged object. Writes here stop far below, at
/// [`ENTRIES_MAX`](crate::replica::dvvset::ENTRIES_MAX).
pub const ENTRIES_MERGED_MAX: usize = 1_024;
/// Most values of one object that compete.
pub const SIBLINGS_MAX: usize = 16;
pub const RECORD_BYTES_MAX: usize = 256 * 1_024;
/// Nobody writes an object this often; a greater counter is damage.
const COUNTER_MAX: u64 = 1 << 62;

const _: () = assert!(KEY_BYTES_MAX <= u16::MAX as usize);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: Actor = Actor { node: [1; 16], epoch: 2 };
    const B: Actor = Actor { node: [1; 16], epoch: 3 };

    fn value(hlc: u64, bytes: &[u8]) -> Value {
        Value { hlc: Hlc(hlc), bytes: Some(bytes.to_vec()) }
    }

    fn object() -> Object {
        let mut object = Object::new(Kind::Realm, "realm1");
        object.put(A, 0, value(0x0001_0203_0405_0607, b"one")).unwrap();
        object
    }

    /// Seals a body that `encode` would not make.
    fn sealed(mut body: Vec<u8>) -> Vec<u8> {
        let sum = checksum(&body);
        body.extend_from_slice(&sum);
        body
    }

    #[test]
    fn the_form_is_frozen() {
        let hex: String = object().encode().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            concat!(
                "53424f01",
                "01",
                "00",
                "0600",
                "7265616c6d31",
                "0100",
                "01010101010101010101010101010101",
                "0200000000000000",
                "0100000000000000",
                "0100",
                "00",
                "0706050403020100",
                "03000000",
                "6f6e65",
                "b2eaebe3b5279e09ec9467cfca07b769"
            )
        );
        let place: String = place(Kind::Realm, "realm1").iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(place, "93f9b656df14cdd894b175b1ee2e9c3011ec024bccf776c176d9f2c2bd98c945");
    }

    #[test]
    fn a_put_overwrites_what_it_sees_and_keeps_the_history() {
        let mut object = object();
        object.put(B, 0, value(8, b"two")).unwrap();
        object.put(B, 0, Value { hlc: Hlc(9), bytes: None }).unwrap();
        assert_eq!(object.values().count(), 1);
        assert_eq!(object.resolved(), Some(Value { hlc: Hlc(9), bytes: None }));
        let counters: Vec<_> =
            object.clock.entries.iter().map(|entry| (entry.actor, entry.counter)).collect();
        assert_eq!(counters, [(A, 1), (B, 2)]);
        assert_eq!(Object::decode(&object.encode()), Ok(object));
    }

    #[test]
    fn any_flipped_bit_is_found() {
        let record = object().encode();
        for bit in 0..record.len() * 8 {
            let mut bad = record.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Object::decode(&bad), Err(RecordError::Checksum), "bit {bit}");
        }
        for length in 0..record.len() {
            assert!(Object::decode(&record[..length]).is_err());
        }
    }

    #[test]
    fn a_second_form_of_one_object_is_refused() {
        let body = |change: fn(&mut Object)| {
            let mut object = object();
            change(&mut object);
            Object::decode(&object.encode())
        };
        assert!(body(|_| {}).is_ok());
        assert_eq!(body(|object| object.clock.entries[0].counter = 0), Err(RecordError::Form("counter")));
        assert_eq!(
            body(|object| object.clock.entries[0].values.clear()),
            Err(RecordError::Form("number of values"))
        );
        assert_eq!(
            body(|object| object.clock.entries.push(object.clock.entries[0].clone())),
            Err(RecordError::Form("order of entries"))
        );
        let mut longer = object().encode();
        longer.truncate(longer.len() - SUM_BYTES);
        longer.push(0);
        assert_eq!(Object::decode(&sealed(longer)), Err(RecordError::Form("bytes after the end")));
    }

    #[test]
    fn a_later_version_is_told_from_damage() {
        let mut record = object().encode();
        record.truncate(record.len() - SUM_BYTES);
        record[3] = 2;
        assert_eq!(Object::decode(&sealed(record.clone())), Err(RecordError::Version));
        (record[3], record[4]) = (1, 77);
        assert_eq!(Object::decode(&sealed(record)), Err(RecordError::Kind(77)));
    }

    #[test]
    fn bounds_refuse_and_change_nothing() {
        let mut object = object();
        for epoch in 3..=65 {
            object.put(Actor { epoch, ..A }, 0, value(1, b"")).unwrap();
        }
        let before = object.clone();
        assert_eq!(
            object.put(Actor { epoch: 66, ..A }, 0, value(1, b"")),
            Err(ObjectError::Entries(TooManyActors))
        );
        assert_eq!(object.put(A, 0, value(1, &vec![0; RECORD_BYTES_MAX])), Err(ObjectError::Bytes));
        assert_eq!(object, before);
        assert_eq!(Object::new(Kind::Realm, "").put(A, 0, value(1, b"")), Err(ObjectError::Key));
    }

    #[test]
    fn values_of_two_nodes_compete_and_the_later_one_is_used() {
        let (mut one, mut other) = (object(), object());
        one.put(A, 0, value(5, b"a")).unwrap();
        other.put(B, 0, value(9, b"b")).unwrap();
        let (before, theirs) = (one.clone(), other.clone());
        assert_eq!(one.merge(&theirs), Ok(Merged::Changed));
        assert_eq!(other.merge(&before), Ok(Merged::Changed));
        assert_eq!(one, other);
        assert_eq!((one.values().count(), one.resolved()), (2, Some(value(9, b"b"))));
        assert_eq!(one.merge(&theirs), Ok(Merged::Known));
        assert_eq!(Object::decode(&one.encode()), Ok(one.clone()));
        one.put(A, 0, Value { hlc: Hlc(10), bytes: None }).unwrap();
        assert!(one.is_tombstone() && one.values().count() == 1);
        assert_eq!(one.merge(&Object::new(Kind::Realm, "another")), Err(ObjectError::Other));
    }

    #[test]
    fn more_values_than_an_object_holds_are_cut_to_the_one_in_use() {
        let mut merged = Object::new(Kind::Realm, "a");
        let written = |epoch: u64| {
            let mut object = Object::new(Kind::Realm, "a");
            object.put(Actor { epoch, ..A }, 0, value(100 - epoch, b"x")).unwrap();
            object
        };
        for epoch in 1..=SIBLINGS_MAX as u64 {
            assert_eq!(merged.merge(&written(epoch)), Ok(Merged::Changed));
        }
        assert_eq!(merged.merge(&written(50)), Ok(Merged::Cut));
        assert_eq!(merged.values().collect::<Vec<_>>(), [&value(99, b"x")]);
        assert_eq!(merged.merge(&written(2)), Ok(Merged::Known), "what was given up does not come back");
    }

    proptest! {
        #[test]
        fn bytes_of_any_origin_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Object::decode(&bytes);
            let mut body = MAGIC.to_vec();
            body.push(1);
            body.extend_from_slice(&bytes);
            let record = sealed(body);
            if let Ok(object) = Object::decode(&record) {
                prop_assert_eq!(object.encode(), record);
            }
        }

        #[test]
        fn what_is_encoded_is_decoded(
            key in "[a-z]{1,40}",
            puts in proptest::collection::vec((0u64..4, any::<u64>(), proptest::option::of(any::<[u8; 5]>())), 1..20),
        ) {
            let mut object = Object::new(Kind::Realm, &key);
            for (epoch, hlc, bytes) in puts {
                let bytes = bytes.map(|bytes| bytes.to_vec());
                object.put(Actor { epoch, ..A }, 0, Value { hlc: Hlc(hlc), bytes }).unwrap();
            }
            prop_assert_eq!(Object::decode(&object.encode()), Ok(object));
        }
    }
}
