//! What two control planes tell each other inside the handshake. Pure.
//!
//! `protocol u16 u16 │ node [16] │ epoch u64 │ store epoch u64 │ attempt u64 │ version u8 [..] │ (what later versions add)`
//!
//! Numbers are big-endian. The env and the key are settled by the handshake itself.

use bytes::{Buf, BufMut, TryGetError};
use common::ids::NodeId;

/// Who is at the other end, and which of its connections this is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// The least and the greatest protocol version it speaks.
    pub protocol: (u16, u16),
    pub node: NodeId,
    /// Of its control plane: grows with every start.
    pub epoch: u64,
    pub store_epoch: u64,
    /// Of the one that dials: grows with every connection it tries.
    pub attempt: u64,
    /// Its software. At most [`VERSION_BYTES_MAX`] printable bytes.
    pub version: String,
}

/// Why bytes are no hello.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HelloError {
    #[error("it ends too early")]
    Short,
    #[error("{0}")]
    Value(&'static str),
}

impl From<TryGetError> for HelloError {
    fn from(_: TryGetError) -> Self {
        Self::Short
    }
}

impl Hello {
    /// The greatest protocol version that both ends speak.
    pub fn common_protocol(&self, other: &Self) -> Option<u16> {
        let (least, most) = (self.protocol.0.max(other.protocol.0), self.protocol.1.min(other.protocol.1));
        (least <= most).then_some(most)
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(FIXED_BYTES + VERSION_BYTES_MAX);
        out.put_u16(self.protocol.0);
        out.put_u16(self.protocol.1);
        out.put_slice(&self.node.0);
        out.put_u64(self.epoch);
        out.put_u64(self.store_epoch);
        out.put_u64(self.attempt);
        let mut end = self.version.len().min(VERSION_BYTES_MAX);
        while !self.version.is_char_boundary(end) {
            end -= 1;
        }
        out.put_u8(end as u8);
        out.put_slice(&self.version.as_bytes()[..end]);
        out
    }

    pub fn decode(mut bytes: &[u8]) -> Result<Self, HelloError> {
        let protocol = (bytes.try_get_u16()?, bytes.try_get_u16()?);
        if protocol.0 > protocol.1 {
            return Err(HelloError::Value("an empty range of protocol versions"));
        }
        let mut node = NodeId::default();
        bytes.try_copy_to_slice(&mut node.0)?;
        if node == NodeId::default() {
            return Err(HelloError::Value("a node without a name"));
        }
        let (epoch, store_epoch, attempt) =
            (bytes.try_get_u64()?, bytes.try_get_u64()?, bytes.try_get_u64()?);
        let length = usize::from(bytes.try_get_u8()?);
        let text = bytes.get(..length).ok_or(HelloError::Short)?;
        let text = std::str::from_utf8(text).map_err(|_| HelloError::Value("a text that is not UTF-8"))?;
        // It ends up in logs and on terminals.
        if length > VERSION_BYTES_MAX || text.chars().any(char::is_control) {
            return Err(HelloError::Value("a version that is too long or has control characters"));
        }
        Ok(Self { protocol, node, epoch, store_epoch, attempt, version: text.to_owned() })
    }
}

/// Longest version.
pub const VERSION_BYTES_MAX: usize = 64;
const FIXED_BYTES: usize = 4 + 16 + 3 * 8 + 1;
const _: () = assert!(FIXED_BYTES + VERSION_BYTES_MAX <= common::noise::HELLO_BYTES_MAX);

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::swim::PROTOCOL;
    use proptest::prelude::*;

    pub fn hello(node: u8) -> Hello {
        let version = "1.2".to_owned();
        Hello { protocol: PROTOCOL, node: NodeId([node; 16]), epoch: 1, store_epoch: 2, attempt: 1, version }
    }

    #[test]
    fn the_greatest_common_version_is_spoken() {
        let speaks = |protocol| Hello { protocol, ..hello(1) }.common_protocol(&hello(2));
        assert_eq!(speaks((0, 9)), Some(PROTOCOL.1));
        assert_eq!(speaks((0, PROTOCOL.0)), Some(PROTOCOL.0));
        assert_eq!(speaks((PROTOCOL.1 + 1, PROTOCOL.1 + 2)), None);
    }

    #[test]
    fn what_a_later_version_adds_is_passed_over() {
        let mut bytes = hello(7).encode();
        bytes.extend_from_slice(b"more");
        assert_eq!(Hello::decode(&bytes), Ok(hello(7)));
    }

    #[test]
    fn nameless_nodes_and_control_characters_are_refused() {
        assert!(Hello::decode(&hello(0).encode()).is_err());
        let version = "a\u{1b}[2J".to_owned();
        assert!(Hello::decode(&Hello { version, ..hello(1) }.encode()).is_err());
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(epoch: u64, store_epoch: u64, attempt: u64, version in "\\PC{0,16}") {
            let hello = Hello { epoch, store_epoch, attempt, version, ..hello(3) };
            let bytes = hello.encode();
            prop_assert_eq!(Hello::decode(&bytes), Ok(hello));
            for end in 0..bytes.len() {
                prop_assert!(Hello::decode(&bytes[..end]).is_err());
            }
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Hello::decode(&bytes);
        }
    }
}
