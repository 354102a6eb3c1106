//! RawSocket handshake and frame prefix (WAMP, advanced profile, "RawSocket").
//!
//! ```text
//! handshake   0x7F | LLLLSSSS | 0 | 0       answer of an error: 0x7F | EEEE0000 | 0 | 0
//! prefix      RRRRXTTT | 24-bit length      X is the 25th bit of the length
//! ```

use super::{FrameError, FrameKind};
use crate::limits::{MESSAGE_BYTES_MAX, RAW_PING_BYTES_MAX};
use crate::wire::Serializer;

/// What a peer says in its four handshake octets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Handshake {
    pub serializer: Serializer,
    /// Longest message the sender of the handshake wants to receive, 2^9 to 2^24 bytes.
    pub message_bytes_max: usize,
}

/// Why a client's handshake was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HandshakeError {
    #[error("first octet {0:#04x} is not 0x7f: not RawSocket")]
    Magic(u8),
    #[error("serializer 0 is illegal")]
    SerializerZero,
    #[error("serializer {0} is not supported")]
    Serializer(u8),
    #[error("reserved octets must be zero")]
    Reserved,
}

impl HandshakeError {
    /// The four octets to answer with before closing; `None` when the connection is just failed.
    pub const fn answer(self) -> Option<[u8; 4]> {
        match self {
            Self::Magic(_) | Self::SerializerZero => None,
            Self::Serializer(_) => Some([MAGIC, 0x10, 0, 0]),
            Self::Reserved => Some([MAGIC, 0x30, 0, 0]),
        }
    }
}

/// The first octet of either side's handshake; no HTTP request begins with it.
pub const MAGIC: u8 = 0x7f;

/// The answer "maximum connection count reached".
pub const TOO_MANY_CONNECTIONS: [u8; 4] = [MAGIC, 0x40, 0, 0];

/// Bytes of a handshake, and of a frame's prefix.
pub const HANDSHAKE_BYTES: usize = 4;
pub const PREFIX_BYTES: usize = 4;

/// Exponent of the shortest limit that a handshake can express, 512 bytes.
const LIMIT_EXPONENT_MIN: u32 = 9;
const LIMIT_EXPONENT_MAX: u32 = LIMIT_EXPONENT_MIN + 15;
const _: () = assert!(MESSAGE_BYTES_MAX == 1 << LIMIT_EXPONENT_MAX);

/// The prefix bit that says 2^24; the other length bits are zero then.
const LENGTH_BIT_25: u8 = 0b0000_1000;

/// Reads a client's handshake.
pub fn parse_request(octets: [u8; 4]) -> Result<Handshake, HandshakeError> {
    let [magic, limit_and_serializer, reserved @ ..] = octets;
    if magic != MAGIC {
        return Err(HandshakeError::Magic(magic));
    }
    if reserved != [0, 0] {
        return Err(HandshakeError::Reserved);
    }
    match limit_and_serializer & 0x0f {
        0 => Err(HandshakeError::SerializerZero),
        number => match Serializer::from_rawsocket(number) {
            Some(serializer) => Ok(Handshake { serializer, message_bytes_max: limit(limit_and_serializer) }),
            None => Err(HandshakeError::Serializer(number)),
        },
    }
}

/// Reads a server's answer. `Err` has the server's error code (1 serializer, 2 length, 3 reserved bits, 4 too many
/// connections), or 0 when the octets are no RawSocket answer at all.
pub fn parse_answer(octets: [u8; 4]) -> Result<Handshake, u8> {
    match (parse_request(octets), octets) {
        (Ok(handshake), _) => Ok(handshake),
        (Err(HandshakeError::SerializerZero), [_, code, ..]) => Err(code >> 4),
        (Err(_), _) => Err(0),
    }
}

/// The octets that say `handshake`, of either side. `message_bytes_max` is rounded down to a power of two; what is
/// below 512 or above 2^24 cannot be said and becomes 512 or 2^24.
pub fn write(handshake: Handshake) -> [u8; 4] {
    let bytes_max = handshake.message_bytes_max.clamp(1 << LIMIT_EXPONENT_MIN, 1 << LIMIT_EXPONENT_MAX);
    let exponent = (bytes_max.ilog2() - LIMIT_EXPONENT_MIN) as u8;
    [MAGIC, exponent << 4 | handshake.serializer as u8, 0, 0]
}

const fn limit(octet: u8) -> usize {
    1 << (LIMIT_EXPONENT_MIN + (octet >> 4) as u32)
}

/// Reads a frame's prefix: what the frame is and how many bytes follow it. A message may have up to
/// `message_bytes_max` bytes, a ping or pong at most [`RAW_PING_BYTES_MAX`] of them.
pub(super) fn parse_prefix(
    prefix: [u8; PREFIX_BYTES],
    message_bytes_max: usize,
) -> Result<(FrameKind, usize), FrameError> {
    let [first, length @ ..] = prefix;
    if first & 0xf0 != 0 {
        return Err(FrameError::Protocol("reserved bits of a RawSocket frame must be zero"));
    }
    let (kind, bytes_max) = match first & 0x07 {
        0 => (FrameKind::Message, message_bytes_max),
        1 => (FrameKind::Ping, message_bytes_max.min(RAW_PING_BYTES_MAX)),
        2 => (FrameKind::Pong, message_bytes_max.min(RAW_PING_BYTES_MAX)),
        _ => return Err(FrameError::Protocol("unknown RawSocket frame type")),
    };
    let [high, middle, low] = length;
    let mut bytes = u32::from_be_bytes([0, high, middle, low]) as usize;
    if first & LENGTH_BIT_25 != 0 {
        if bytes != 0 {
            return Err(FrameError::Protocol("a RawSocket frame is longer than 2^24 bytes"));
        }
        bytes = MESSAGE_BYTES_MAX;
    }
    if bytes > bytes_max {
        return Err(FrameError::TooLarge { bytes: bytes as u64, bytes_max });
    }
    Ok((kind, bytes))
}

/// The prefix of a frame whose payload of `payload_bytes` follows.
///
/// # Panics
/// When `payload_bytes` is over 2^24 or `kind` is a close, neither of which RawSocket can say.
#[inline]
pub(super) fn prefix(kind: FrameKind, payload_bytes: usize) -> [u8; PREFIX_BYTES] {
    assert!(payload_bytes <= MESSAGE_BYTES_MAX, "senders keep to the limit that was negotiated");
    let kind = match kind {
        FrameKind::Message => 0,
        FrameKind::Ping => 1,
        FrameKind::Pong => 2,
        FrameKind::Close => panic!("RawSocket has no close frame"),
    };
    // 2^24 has only bit 24 set, which LENGTH_BIT_25 stands for: it is bit 27 of the big-endian prefix.
    let length_bit_25 = (payload_bytes >> 24) as u32 * u32::from(LENGTH_BIT_25);
    ((kind | length_bit_25) << 24 | (payload_bytes as u32 & 0x00ff_ffff)).to_be_bytes()
}

/// Payload bytes that the prefix of one of our own frames announces.
#[inline]
pub(super) fn own_payload_bytes(prefix: [u8; PREFIX_BYTES]) -> usize {
    let word = u32::from_be_bytes(prefix);
    if prefix[0] & LENGTH_BIT_25 != 0 { MESSAGE_BYTES_MAX } else { (word & 0x00ff_ffff) as usize }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handshakes_say_limit_and_serializer() {
        for serializer in Serializer::ALL {
            for exponent in 9..=24 {
                let handshake = Handshake { serializer, message_bytes_max: 1 << exponent };
                let octets = write(handshake);
                assert_eq!(octets, [0x7f, (exponent - 9) << 4 | serializer as u8, 0, 0]);
                assert_eq!(parse_request(octets), Ok(handshake));
                assert_eq!(parse_answer(octets), Ok(handshake));
            }
        }
    }

    #[test]
    fn limits_round_down_and_stay_expressible() {
        let octet =
            |message_bytes_max| write(Handshake { serializer: Serializer::Json, message_bytes_max })[1] >> 4;
        assert_eq!([octet(0), octet(511), octet(512), octet(1023), octet(1024)], [0, 0, 0, 0, 1]);
        assert_eq!([octet((1 << 24) - 1), octet(1 << 24), octet(usize::MAX)], [14, 15, 15]);
    }

    #[test]
    fn bad_handshakes_get_the_code_of_the_spec() {
        let answer = |octets| parse_request(octets).unwrap_err().answer();
        assert_eq!(answer([0x7e, 0xf1, 0, 0]), None);
        assert_eq!(answer(*b"GET "), None);
        assert_eq!(answer([0x7f, 0xf0, 0, 0]), None);
        assert_eq!(answer([0x7f, 0xf4, 0, 0]), Some([0x7f, 0x10, 0, 0]));
        assert_eq!(answer([0x7f, 0xff, 0, 0]), Some([0x7f, 0x10, 0, 0]));
        assert_eq!(answer([0x7f, 0xf1, 1, 0]), Some([0x7f, 0x30, 0, 0]));
        assert_eq!(answer([0x7f, 0xf1, 0, 1]), Some([0x7f, 0x30, 0, 0]));
    }

    #[test]
    fn error_answers_are_told_from_handshakes() {
        assert_eq!(parse_answer([0x7f, 0x10, 0, 0]), Err(1));
        assert_eq!(parse_answer(TOO_MANY_CONNECTIONS), Err(4));
        assert_eq!(parse_answer(*b"HTTP"), Err(0));
        assert_eq!(parse_answer([0x7f, 0xf5, 0, 0]), Err(0));
        assert_eq!(parse_answer([0x7f, 0x31, 0, 1]), Err(0));
    }

    #[test]
    fn prefixes_read_back_up_to_the_25th_bit() {
        for bytes in [0, 1, 0xffff, 0x1_0000, (1 << 24) - 1, 1 << 24] {
            let octets = prefix(FrameKind::Message, bytes);
            assert_eq!(parse_prefix(octets, MESSAGE_BYTES_MAX), Ok((FrameKind::Message, bytes)));
            assert_eq!(own_payload_bytes(octets), bytes);
        }
        assert_eq!(prefix(FrameKind::Message, 1 << 24), [0x08, 0, 0, 0]);
        assert_eq!(prefix(FrameKind::Pong, 5), [2, 0, 0, 5]);
        for kind in [FrameKind::Ping, FrameKind::Pong] {
            assert_eq!(parse_prefix(prefix(kind, 7), MESSAGE_BYTES_MAX), Ok((kind, 7)));
        }
    }

    #[test]
    fn bad_prefixes_are_refused() {
        let is_protocol = |octets| matches!(parse_prefix(octets, 1 << 24), Err(FrameError::Protocol(_)));
        for first in 3..8 {
            assert!(is_protocol([first, 0, 0, 0]), "type {first}");
        }
        for bit in 4..8 {
            assert!(is_protocol([1 << bit, 0, 0, 1]), "reserved bit {bit}");
        }
        assert!(is_protocol([0x08, 0, 0, 1]));
        let too_large = |bytes, bytes_max| Err(FrameError::TooLarge { bytes, bytes_max });
        assert_eq!(parse_prefix([0, 0, 2, 1], 512), too_large(513, 512));
        assert_eq!(parse_prefix([8, 0, 0, 0], (1 << 24) - 1), too_large(1 << 24, (1 << 24) - 1));
        assert_eq!(parse_prefix([1, 0, 0x10, 1], 1 << 24), too_large(4_097, RAW_PING_BYTES_MAX));
        assert_eq!(parse_prefix([1, 0, 2, 1], 512), too_large(513, 512));
        assert_eq!(parse_prefix([2, 0, 0x10, 0], 1 << 24), Ok((FrameKind::Pong, 4_096)));
    }
}
