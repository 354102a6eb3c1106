//! RawSocket handshake and frame headers (WAMP, advanced profile, "RawSocket").

use crate::wire::Serializer;

/// What a peer says in its four handshake octets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Handshake {
    pub serializer: Serializer,
    /// Longest message the sender of the handshake wants to receive, 2^9 to 2^24.
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
            Self::Serializer(_) => Some([0x7f, 0x10, 0, 0]),
            Self::Reserved => Some([0x7f, 0x30, 0, 0]),
        }
    }
}

/// The answer "maximum connection count reached".
pub const TOO_MANY_CONNECTIONS: [u8; 4] = [0x7f, 0x40, 0, 0];

/// Reads a client's handshake.
pub fn parse_request(octets: [u8; 4]) -> Result<Handshake, HandshakeError> {
    let _ = octets;
    unimplemented!()
}

/// Reads a server's answer; an error answer is `Err(code)`.
pub fn parse_answer(octets: [u8; 4]) -> Result<Handshake, u8> {
    let _ = octets;
    unimplemented!()
}

/// The octets that say `handshake`, of either side. `message_bytes_max` is rounded down to a power of two.
pub fn write(handshake: Handshake) -> [u8; 4] {
    let _ = handshake;
    unimplemented!()
}
