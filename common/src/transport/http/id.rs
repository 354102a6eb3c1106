//! The name of a transport. Who knows it may use the transport.

use std::fmt;

/// A transport of a node: where it is, and what nobody can guess. Its text is hexadecimal digits of a fixed number.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TransportId {
    pub shard: u8,
    pub slot: u32,
    pub secret: [u8; Self::SECRET_BYTES],
}

impl TransportId {
    pub const SECRET_BYTES: usize = 16;
    /// Bytes of [`TransportId::to_bytes`].
    pub const BYTES: usize = 1 + 4 + Self::SECRET_BYTES;

    pub fn parse(text: &str) -> Option<Self> {
        let digits: &[u8; 2 * Self::BYTES] = text.as_bytes().try_into().ok()?;
        let mut bytes = [0; Self::BYTES];
        for (byte, pair) in bytes.iter_mut().zip(digits.as_chunks::<2>().0) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Some(Self::from_bytes(bytes))
    }

    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[0] = self.shard;
        bytes[1..5].copy_from_slice(&self.slot.to_be_bytes());
        bytes[5..].copy_from_slice(&self.secret);
        bytes
    }

    pub fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        let [shard, a, b, c, d, secret @ ..] = bytes;
        Self { shard, slot: u32::from_be_bytes([a, b, c, d]), secret }
    }
}

const fn digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

impl fmt::Display for TransportId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Without the secret.
impl fmt::Debug for TransportId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "transport {} of shard {}", self.slot, self.shard)
    }
}
