//! What a payload begins with: when it was due, who sent it and its sequence number.
//!
//! Sixteen octets in either coding, so that every serializer carries payloads of the same size. JSON needs text;
//! the same coding is used by all sessions of a run, because a payload may be transcoded on its way.
//! ```text
//! binary  time u64 LE · source u32 LE · sequence u32 LE
//! text    time 8 digits · source 3 digits · sequence 5 digits, six bits each, least significant first
//! ```

use common::wire::{OwnedValue, Serializer};

/// Bytes of a stamp, and so the smallest payload.
pub const STAMP_BYTES: usize = 16;
/// Sources a run may have (publishers or callers): what three text digits hold.
pub const SOURCES_MAX: usize = 1 << 18;
/// Largest payload: leaves room for the rest of the message below RawSocket's 2^24.
pub const PAYLOAD_BYTES_MAX: usize = (1 << 24) - 4_096;

/// How a stamp is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Coding {
    /// For MessagePack and CBOR byte strings.
    Binary,
    /// For text strings, in any serializer.
    Text,
}

/// The head of a payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamp {
    /// Nanoseconds since the run's clock began, at which the message was due (below 2^48 in text: three days).
    pub time_ns: u64,
    /// Index of the publisher or caller.
    pub source: u32,
    /// Sequence number of the source, cut to [`Coding::sequence_bits`].
    pub sequence: u32,
}

impl Coding {
    /// The coding that all of `serializers` can carry.
    pub fn for_serializers(serializers: impl IntoIterator<Item = Serializer>) -> Self {
        if serializers.into_iter().any(Serializer::is_text) { Self::Text } else { Self::Binary }
    }

    /// Width of the sequence number on the wire.
    pub const fn sequence_bits(self) -> u32 {
        match self {
            Self::Binary => 32,
            Self::Text => 30,
        }
    }

    /// Writes `stamp` over the first [`STAMP_BYTES`] of `payload`.
    #[inline]
    pub fn write(self, stamp: Stamp, payload: &mut [u8]) {
        let head = &mut payload[..STAMP_BYTES];
        match self {
            Self::Binary => {
                head[..8].copy_from_slice(&stamp.time_ns.to_le_bytes());
                head[8..12].copy_from_slice(&stamp.source.to_le_bytes());
                head[12..].copy_from_slice(&stamp.sequence.to_le_bytes());
            }
            Self::Text => {
                write_digits(stamp.time_ns, &mut head[..8]);
                write_digits(stamp.source.into(), &mut head[8..11]);
                write_digits(stamp.sequence.into(), &mut head[11..]);
            }
        }
    }

    /// Reads the stamp a payload begins with; `None` when it is too short or not a stamp.
    #[inline]
    pub fn read(self, payload: &[u8]) -> Option<Stamp> {
        let head: &[u8; STAMP_BYTES] = payload.first_chunk()?;
        match self {
            Self::Binary => Some(Stamp {
                time_ns: u64::from_le_bytes(*head.first_chunk()?),
                source: u32::from_le_bytes([head[8], head[9], head[10], head[11]]),
                sequence: u32::from_le_bytes([head[12], head[13], head[14], head[15]]),
            }),
            Self::Text => Some(Stamp {
                time_ns: read_digits(&head[..8])?,
                source: read_digits(&head[8..11])? as u32,
                sequence: read_digits(&head[11..])? as u32,
            }),
        }
    }

    /// A payload of `bytes` with a zero stamp, its rest a fixed pattern that receivers compare.
    pub fn filler(self, bytes: usize) -> Vec<u8> {
        let mut payload: Vec<u8> = match self {
            Self::Binary => (0..bytes).map(|index| (index % 251) as u8).collect(),
            Self::Text => (0..bytes).map(|index| b'a' + (index % 23) as u8).collect(),
        };
        self.write(Stamp { time_ns: 0, source: 0, sequence: 0 }, &mut payload);
        payload
    }

    /// The payload as the one positional argument.
    pub fn value(self, payload: &[u8]) -> OwnedValue {
        match self {
            Self::Binary => OwnedValue::Bin(payload.to_vec()),
            Self::Text => OwnedValue::Str(String::from_utf8_lossy(payload).into_owned()),
        }
    }
}

#[inline]
fn write_digits(mut number: u64, out: &mut [u8]) {
    for digit in out {
        *digit = DIGITS[(number & 63) as usize];
        number >>= 6;
    }
}

#[inline]
fn read_digits(digits: &[u8]) -> Option<u64> {
    let mut number = 0;
    let mut bad = 0;
    for (index, digit) in digits.iter().enumerate() {
        let value = VALUES[*digit as usize];
        bad |= value;
        number |= u64::from(value & 63) << (6 * index);
    }
    (bad < NO_DIGIT).then_some(number)
}

const DIGITS: &[u8; 64] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_";
const NO_DIGIT: u8 = 64;
const VALUES: [u8; 256] = {
    let mut values = [NO_DIGIT; 256];
    let mut value = 0;
    while value < 64 {
        values[DIGITS[value] as usize] = value as u8;
        value += 1;
    }
    values
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_survive_both_codings() {
        for coding in [Coding::Binary, Coding::Text] {
            for stamp in [
                Stamp { time_ns: 0, source: 0, sequence: 0 },
                Stamp { time_ns: (1 << 48) - 1, source: SOURCES_MAX as u32 - 1, sequence: (1 << 30) - 1 },
                Stamp { time_ns: 123_456_789_012, source: 99, sequence: 7_654_321 },
            ] {
                let mut payload = coding.filler(20);
                coding.write(stamp, &mut payload);
                assert_eq!(coding.read(&payload), Some(stamp));
                assert_eq!(payload[16..], coding.filler(20)[16..]);
            }
        }
    }

    #[test]
    fn text_stamps_are_plain_ascii_and_refuse_other_bytes() {
        let mut payload = Coding::Text.filler(64);
        assert!(payload.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(byte)));
        payload[3] = b' ';
        assert_eq!(Coding::Text.read(&payload), None);
        assert_eq!(Coding::Binary.read(&payload[..15]), None);
    }

    #[test]
    fn one_json_session_makes_the_whole_run_text() {
        assert_eq!(Coding::for_serializers([Serializer::MsgPack, Serializer::Cbor]), Coding::Binary);
        assert_eq!(Coding::for_serializers([Serializer::MsgPack, Serializer::Json]), Coding::Text);
    }
}
