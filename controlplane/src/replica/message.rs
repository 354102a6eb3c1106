//! What two nodes say to each other in an exchange, and its bytes. Pure.
//!
//! `type u8 │ round u64 │ fields`, little-endian, lists with a u16 count in front. Every list has a bound that is checked
//! before anything is allocated, and nothing may follow the last field.

use super::floor::{Stamps, put_stamps, read_stamps};
use super::hashtree::{Digest, FINGERPRINT_BYTES, SHARD_BUCKETS, SHARDS};
use super::hlc::Hlc;
use super::objects::Place;
use crate::store::record::{RECORD_BYTES_MAX, Reader, RecordError, require};

/// The first half of a sum: enough to compare by.
pub type Short = [u8; SHORT_BYTES];

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    /// Which exchange of the one who started it; answers repeat it.
    pub round: u64,
    pub body: Body,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Body {
    /// Of all shards.
    Roots { state: State, sums: Vec<Short> },
    /// One bit a shard that differs.
    Shards { state: State, bits: u64 },
    /// All buckets of a shard.
    Buckets { shard: u8, sums: Vec<Short> },
    /// Those that differ.
    Differing(Vec<u16>),
    /// Every record of these buckets that is kept at `from` or after it and before `until`.
    Rows { buckets: Vec<u16>, from: Place, until: Option<Place>, rows: Vec<Row> },
    /// Records that the asker lacks or has otherwise, and what is wanted of it; only of places before `stopped`, where it
    /// is to go on.
    Offer { records: Vec<Vec<u8>>, wanted: Vec<Place>, stopped: Option<Place> },
    /// Records that were wanted.
    Push(Vec<Vec<u8>>),
    /// The push was taken, but for as many records as were refused.
    Taken { refused: u16 },
    /// There will be no exchange.
    Refused(Refusal),
}

/// Of the node that sends it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct State {
    /// Of the key its sums are made with.
    pub fingerprint: [u8; FINGERPRINT_BYTES],
    /// Its later stamps are all greater.
    pub promise: Hlc,
    pub floors: Box<Stamps>,
    pub marks: Box<Stamps>,
    pub bounds: Box<Stamps>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    #[error("the sums of the two nodes are made with different keys")]
    Key,
    #[error("the other node was away for too long and begins anew")]
    Stale,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Row {
    pub place: Place,
    pub hash: Short,
}

pub fn short(digest: Digest) -> Short {
    let bytes = digest.sum.to_bytes();
    let mut short = [0; SHORT_BYTES];
    short.copy_from_slice(&bytes[..SHORT_BYTES]);
    short
}

impl Message {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![self.body.number()];
        out.extend_from_slice(&self.round.to_le_bytes());
        match &self.body {
            Body::Roots { state, sums } => {
                put_state(&mut out, state);
                list(&mut out, sums, |out, sum| out.extend_from_slice(sum));
            }
            Body::Shards { state, bits } => {
                put_state(&mut out, state);
                out.extend_from_slice(&bits.to_le_bytes());
            }
            Body::Buckets { shard, sums } => {
                out.push(*shard);
                list(&mut out, sums, |out, sum| out.extend_from_slice(sum));
            }
            Body::Differing(buckets) => list(&mut out, buckets, put_u16),
            Body::Rows { buckets, from, until, rows } => {
                list(&mut out, buckets, put_u16);
                out.extend_from_slice(from);
                put_place(&mut out, *until);
                list(&mut out, rows, |out, row| {
                    out.extend_from_slice(&row.place);
                    out.extend_from_slice(&row.hash);
                });
            }
            Body::Offer { records, wanted, stopped } => {
                list(&mut out, records, |out, record| put_record(out, record));
                list(&mut out, wanted, |out, place| out.extend_from_slice(place));
                put_place(&mut out, *stopped);
            }
            Body::Push(records) => list(&mut out, records, |out, record| put_record(out, record)),
            Body::Taken { refused } => put_u16(&mut out, refused),
            Body::Refused(Refusal::Key) => out.push(0),
            Body::Refused(Refusal::Stale) => out.push(1),
        }
        out
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut reader = Reader(bytes);
        let (number, round) = (reader.byte()?, reader.u64()?);
        let body = match number {
            1 => Body::Roots {
                state: read_state(&mut reader)?,
                sums: read(&mut reader, SHARDS, |reader| reader.array())?,
            },
            2 => Body::Shards { state: read_state(&mut reader)?, bits: reader.u64()? },
            3 => {
                let shard = reader.byte()?;
                require(usize::from(shard) < SHARDS, "shard")?;
                Body::Buckets { shard, sums: read(&mut reader, SHARD_BUCKETS, |reader| reader.array())? }
            }
            4 => Body::Differing(read(&mut reader, SHARD_BUCKETS, |reader| reader.u16())?),
            5 => Body::Rows {
                buckets: read(&mut reader, SHARD_BUCKETS, |reader| reader.u16())?,
                from: reader.array()?,
                until: read_place(&mut reader)?,
                rows: read(&mut reader, ROWS_MAX, |reader| {
                    Ok(Row { place: reader.array()?, hash: reader.array()? })
                })?,
            },
            6 => Body::Offer {
                records: read(&mut reader, RECORDS_MAX, read_record)?,
                wanted: read(&mut reader, ROWS_MAX, |reader| reader.array())?,
                stopped: read_place(&mut reader)?,
            },
            7 => Body::Push(read(&mut reader, RECORDS_MAX, read_record)?),
            8 => Body::Taken { refused: reader.u16()? },
            9 => Body::Refused(match reader.byte()? {
                0 => Refusal::Key,
                1 => Refusal::Stale,
                _ => return Err(RecordError::Form("a refusal")),
            }),
            _ => return Err(RecordError::Form("type of message")),
        };
        require(reader.0.is_empty(), "bytes after the end")?;
        Ok(Self { round, body })
    }
}

impl Body {
    fn number(&self) -> u8 {
        match self {
            Self::Roots { .. } => 1,
            Self::Shards { .. } => 2,
            Self::Buckets { .. } => 3,
            Self::Differing(_) => 4,
            Self::Rows { .. } => 5,
            Self::Offer { .. } => 6,
            Self::Push(_) => 7,
            Self::Taken { .. } => 8,
            Self::Refused(_) => 9,
        }
    }
}

fn put_state(out: &mut Vec<u8>, state: &State) {
    out.extend_from_slice(&state.fingerprint);
    out.extend_from_slice(&state.promise.0.to_le_bytes());
    put_stamps(out, &state.floors);
    put_stamps(out, &state.marks);
    put_stamps(out, &state.bounds);
}

fn read_state(reader: &mut Reader<'_>) -> Result<State, RecordError> {
    let (fingerprint, promise) = (reader.array()?, Hlc(reader.u64()?));
    let (floors, marks) = (Box::new(read_stamps(reader)?), Box::new(read_stamps(reader)?));
    Ok(State { fingerprint, promise, floors, marks, bounds: Box::new(read_stamps(reader)?) })
}

fn list<T>(out: &mut Vec<u8>, items: &[T], put: impl Fn(&mut Vec<u8>, &T)) {
    debug_assert!(items.len() <= usize::from(u16::MAX));
    put_u16(out, &(items.len() as u16));
    items.iter().for_each(|item| put(out, item));
}

fn put_u16(out: &mut Vec<u8>, number: &u16) {
    out.extend_from_slice(&number.to_le_bytes());
}

fn put_record(out: &mut Vec<u8>, record: &[u8]) {
    out.extend_from_slice(&(record.len() as u32).to_le_bytes());
    out.extend_from_slice(record);
}

/// `0`, or `1 │ place [32]`.
fn put_place(out: &mut Vec<u8>, place: Option<Place>) {
    out.push(place.is_some().into());
    out.extend(place.into_iter().flatten());
}

fn read_place(reader: &mut Reader<'_>) -> Result<Option<Place>, RecordError> {
    match reader.byte()? {
        0 => Ok(None),
        1 => Ok(Some(reader.array()?)),
        _ => Err(RecordError::Form("a flag")),
    }
}

fn read<T>(
    reader: &mut Reader<'_>,
    max: usize,
    mut item: impl FnMut(&mut Reader<'_>) -> Result<T, RecordError>,
) -> Result<Vec<T>, RecordError> {
    let count = usize::from(reader.u16()?);
    require(count <= max, "too long a list")?;
    let mut items = Vec::new();
    for _ in 0..count {
        items.push(item(reader)?);
    }
    Ok(items)
}

fn read_record(reader: &mut Reader<'_>) -> Result<Vec<u8>, RecordError> {
    let length = reader.u32()? as usize;
    require(length <= RECORD_BYTES_MAX, "too long a record")?;
    Ok(reader.take(length)?.to_vec())
}

const SHORT_BYTES: usize = 16;
/// Most rows of one message.
pub const ROWS_MAX: usize = 4_096;
/// Most records of one message, and their bytes: the last one may go beyond.
pub const RECORDS_MAX: usize = 256;
pub const RECORDS_BYTES_MAX: usize = 256 * 1_024;

const _: () = assert!(SHARDS == u64::BITS as usize);
const _: () = assert!(ROWS_MAX <= u16::MAX as usize);
const _: () = assert!(RECORDS_MAX <= u16::MAX as usize);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn state() -> State {
        let stamps = |stamp| Box::new([Hlc(stamp); SHARDS]);
        State {
            fingerprint: [7; 16],
            promise: Hlc(8),
            floors: stamps(9),
            marks: stamps(10),
            bounds: stamps(11),
        }
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let rows = vec![Row { place: [1; 32], hash: [2; 16] }];
        for body in [
            Body::Roots { state: state(), sums: vec![[1; 16]; SHARDS] },
            Body::Shards { state: state(), bits: 5 },
            Body::Refused(Refusal::Stale),
            Body::Buckets { shard: 63, sums: vec![[2; 16]; SHARD_BUCKETS] },
            Body::Differing(vec![1, 65_535]),
            Body::Rows { buckets: vec![7], from: [4; 32], until: None, rows },
            Body::Offer { records: vec![vec![1, 2]], wanted: vec![[3; 32]], stopped: Some([5; 32]) },
            Body::Push(vec![vec![], vec![9]]),
            Body::Taken { refused: 3 },
        ] {
            let message = Message { round: 77, body };
            let bytes = message.encode();
            assert_eq!(Message::decode(&bytes), Ok(message));
            for length in 0..bytes.len() {
                assert!(Message::decode(&bytes[..length]).is_err());
            }
        }
    }

    #[test]
    fn lists_beyond_their_bound_are_refused() {
        let refused = |body| Message::decode(&Message { round: 1, body }.encode()).is_err();
        assert!(refused(Body::Roots { state: state(), sums: vec![[0; 16]; SHARDS + 1] }));
        assert!(refused(Body::Buckets { shard: 64, sums: vec![] }));
        assert!(refused(Body::Push(vec![vec![]; RECORDS_MAX + 1])));
        assert!(refused(Body::Push(vec![vec![0; RECORD_BYTES_MAX + 1]])));
    }

    proptest! {
        #[test]
        fn bytes_of_any_origin_are_answered(
            number in 0u8..11,
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let bytes = [vec![number], bytes].concat();
            if let Ok(message) = Message::decode(&bytes) {
                prop_assert_eq!(message.encode(), bytes);
            }
        }
    }
}
