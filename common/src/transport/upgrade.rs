//! The HTTP/1.1 upgrade to WebSocket (RFC 6455, 4), both roles.

use crate::wire::Serializer;

/// A client's valid upgrade request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Upgrade {
    /// The first offered WAMP subprotocol that we speak.
    pub serializer: Serializer,
    /// The `Sec-WebSocket-Accept` value to answer.
    pub accept: String,
    /// Bytes of the request head; what follows belongs to the WebSocket.
    pub head_bytes: usize,
}

/// Why an upgrade was refused: an HTTP answer to send before closing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UpgradeError {
    #[error("400 malformed request: {0}")]
    Malformed(&'static str),
    #[error("404 no such path")]
    Path,
    #[error("405 method must be GET")]
    Method,
    #[error("400 no WAMP subprotocol offered that is spoken here")]
    Subprotocol,
    #[error("426 WebSocket version must be 13")]
    Version,
    #[error("431 request head over the limit")]
    TooLarge,
    #[error("400 this port speaks WebSocket only")]
    NotWebSocket,
}

/// Reads an upgrade request for `path`. `Ok(None)`: not whole yet.
pub fn parse_request(head: &[u8], path: &str) -> Result<Option<Upgrade>, UpgradeError> {
    let _ = (head, path);
    unimplemented!()
}

/// Appends the 101 answer.
pub fn write_accept(upgrade: &Upgrade, out: &mut Vec<u8>) {
    let _ = (upgrade, out);
    unimplemented!()
}

/// Appends a whole HTTP error answer with a one-line body and `Connection: close`.
pub fn write_refusal(error: UpgradeError, out: &mut Vec<u8>) {
    let _ = (error, out);
    unimplemented!()
}

/// Appends a client's request.
pub fn write_request(host: &str, path: &str, serializer: Serializer, key: [u8; 16], out: &mut Vec<u8>) {
    let _ = (host, path, serializer, key, out);
    unimplemented!()
}

/// Reads the server's answer for `key`. `Ok(None)`: not whole yet; otherwise the bytes of the answer's head.
pub fn parse_answer(head: &[u8], serializer: Serializer, key: [u8; 16]) -> Result<Option<usize>, String> {
    let _ = (head, serializer, key);
    unimplemented!()
}
