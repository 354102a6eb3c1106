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
//! has the dot `n - p`; dots 1 to `n - k` were seen and overwritten. Today every object has at most one value; the form
//! holds siblings.
//!
//! Invariants, proven by [`Object::decode`]: entries are sorted and unique; no counter is 0; no entry has more values
//! than its counter; there is at least one value; nothing follows; no bound is passed.

use std::fmt;

/// One node's store in one of its lives. A store that is created, restored, copied or reopened after an error gets a new
/// epoch, so no dot is ever given out twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Actor {
    pub node: [u8; 16],
    pub epoch: u64,
}

/// A hybrid logical clock stamp: 48 bits of milliseconds since 1970, 16 bits that count within one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Hlc(pub u64);

/// Types of objects; the numbers are stored.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Kind {
    Realm = 1,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Value {
    pub hlc: Hlc,
    /// The canonical bytes of the object's type; none is a deletion.
    pub bytes: Option<Vec<u8>>,
}

/// What an actor has done to an object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    pub actor: Actor,
    pub counter: u64,
    /// Newest first.
    pub values: Vec<Value>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Object {
    pub kind: Kind,
    pub key: String,
    /// Sorted by actor.
    pub entries: Vec<Entry>,
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
    #[error("the history of the object has {ENTRIES_MAX} entries already")]
    Entries,
    #[error("the record would be longer than {RECORD_BYTES_MAX} bytes")]
    Bytes,
    #[error("the key must have 1 to {KEY_BYTES_MAX} bytes")]
    Key,
}

impl Object {
    /// An object nobody has written yet; it has no value and is not to be stored.
    pub fn new(kind: Kind, key: &str) -> Self {
        Self { kind, key: key.to_owned(), entries: Vec::new() }
    }

    /// `actor` overwrites all it sees here: one value remains, with the next dot of `actor`. On error nothing was
    /// changed.
    pub fn put(&mut self, actor: Actor, value: Value) -> Result<(), ObjectError> {
        if self.key.is_empty() || self.key.len() > KEY_BYTES_MAX {
            return Err(ObjectError::Key);
        }
        let at = self.entries.binary_search_by_key(&actor, |entry| entry.actor);
        let entries = self.entries.len() + usize::from(at.is_err());
        if entries > ENTRIES_MAX {
            return Err(ObjectError::Entries);
        }
        let bytes = value.bytes.as_ref().map_or(0, Vec::len);
        let length = HEAD_BYTES + self.key.len() + entries * ENTRY_BYTES + VALUE_BYTES + bytes + SUM_BYTES;
        if length > RECORD_BYTES_MAX {
            return Err(ObjectError::Bytes);
        }
        for entry in &mut self.entries {
            entry.values.clear();
        }
        match at {
            Ok(at) => {
                // Far from overflow: see COUNTER_MAX.
                self.entries[at].counter += 1;
                self.entries[at].values.push(value);
            }
            Err(at) => self.entries.insert(at, Entry { actor, counter: 1, values: vec![value] }),
        }
        Ok(())
    }

    /// Every value that competes, in the order of the entries.
    pub fn values(&self) -> impl Iterator<Item = &Value> {
        self.entries.iter().flat_map(|entry| &entry.values)
    }

    /// The value to use: the one with the greatest stamp, the greater actor's among equals. A deletion has no bytes.
    pub fn winner(&self) -> Option<&Value> {
        self.values().max_by_key(|value| value.hlc)
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(128 + self.key.len());
        out.extend_from_slice(&MAGIC);
        out.push(self.kind as u8);
        out.push(0);
        out.extend_from_slice(&(self.key.len() as u16).to_le_bytes());
        out.extend_from_slice(self.key.as_bytes());
        out.extend_from_slice(&(self.entries.len() as u16).to_le_bytes());
        for entry in &self.entries {
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
        let counts = read_entries(&mut reader, &mut object.entries)?;
        for (entry, count) in object.entries.iter_mut().zip(counts) {
            for _ in 0..count {
                entry.values.push(read_value(&mut reader)?);
            }
        }
        require(reader.0.is_empty(), "bytes after the end")?;
        Ok(object)
    }
}

/// Reads the entries without their values and returns how many values each has.
fn read_entries(reader: &mut Reader<'_>, entries: &mut Vec<Entry>) -> Result<Vec<u16>, RecordError> {
    let length = usize::from(reader.u16()?);
    require(length <= ENTRIES_MAX, "too many entries")?;
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

impl Hlc {
    /// The stamp after `self` at `wall_ms` milliseconds since 1970. A wall clock that stands still or steps back does no
    /// harm.
    #[must_use]
    pub fn next(self, wall_ms: u64) -> Self {
        Self((wall_ms << 16).max(self.0 + 1))
    }
}

impl Kind {
    fn from_number(number: u8) -> Result<Self, RecordError> {
        match number {
            1 => Ok(Self::Realm),
            other => Err(RecordError::Kind(other)),
        }
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{:016x}", uuid::Uuid::from_bytes(self.node), self.epoch)
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
pub(super) struct Reader<'a>(pub &'a [u8]);

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

pub(super) fn require(holds: bool, what: &'static str) -> Result<(), RecordError> {
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
/// Most actors in one object's history.
pub const ENTRIES_MAX: usize = 64;
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
        object.put(A, value(0x0001_0203_0405_0607, b"one")).unwrap();
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
        object.put(B, value(8, b"two")).unwrap();
        object.put(B, Value { hlc: Hlc(9), bytes: None }).unwrap();
        assert_eq!(object.values().count(), 1);
        assert_eq!(object.winner(), Some(&Value { hlc: Hlc(9), bytes: None }));
        let counters: Vec<_> = object.entries.iter().map(|entry| (entry.actor, entry.counter)).collect();
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
        assert_eq!(body(|object| object.entries[0].counter = 0), Err(RecordError::Form("counter")));
        assert_eq!(
            body(|object| object.entries[0].values.clear()),
            Err(RecordError::Form("number of values"))
        );
        assert_eq!(
            body(|object| object.entries.push(object.entries[0].clone())),
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
            object.put(Actor { epoch, ..A }, value(1, b"")).unwrap();
        }
        let before = object.clone();
        assert_eq!(object.put(Actor { epoch: 66, ..A }, value(1, b"")), Err(ObjectError::Entries));
        assert_eq!(object.put(A, value(1, &vec![0; RECORD_BYTES_MAX])), Err(ObjectError::Bytes));
        assert_eq!(object, before);
        assert_eq!(Object::new(Kind::Realm, "").put(A, value(1, b"")), Err(ObjectError::Key));
    }

    #[test]
    fn stamps_grow_though_the_clock_steps_back() {
        let first = Hlc::default().next(1_000);
        let second = first.next(999);
        assert!(second > first && first == Hlc(1_000 << 16));
        assert_eq!(second.next(2_000), Hlc(2_000 << 16));
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
                object.put(Actor { epoch, ..A }, Value { hlc: Hlc(hlc), bytes }).unwrap();
            }
            prop_assert_eq!(Object::decode(&object.encode()), Ok(object));
        }
    }
}
