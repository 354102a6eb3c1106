//! The WebSocket subprotocols of WAMP: a serializer, and whether messages are batched.

use super::Framing;
use crate::wire::Serializer;

/// What a WebSocket connection speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Subprotocol {
    pub serializer: Serializer,
    /// Several WAMP messages in one WebSocket message.
    pub batched: bool,
}

/// One message in each WebSocket message.
impl From<Serializer> for Subprotocol {
    fn from(serializer: Serializer) -> Self {
        Self { serializer, batched: false }
    }
}

impl Subprotocol {
    /// Its registered name, `wamp.2.*`.
    pub const fn name(self) -> &'static str {
        match (self.serializer, self.batched) {
            (Serializer::Json, false) => "wamp.2.json",
            (Serializer::MsgPack, false) => "wamp.2.msgpack",
            (Serializer::Cbor, false) => "wamp.2.cbor",
            (Serializer::Json, true) => "wamp.2.json.batched",
            (Serializer::MsgPack, true) => "wamp.2.msgpack.batched",
            (Serializer::Cbor, true) => "wamp.2.cbor.batched",
        }
    }

    pub fn all() -> impl Iterator<Item = Self> {
        [false, true]
            .into_iter()
            .flat_map(|batched| Serializer::ALL.map(|serializer| Self { serializer, batched }))
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::all().find(|subprotocol| subprotocol.name() == name)
    }

    /// How its messages are framed; a client's dialect is not known yet.
    pub const fn framing(self) -> Framing {
        if self.batched { Framing::Batched } else { Framing::WebSocket }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_read_back_and_only_those() {
        assert_eq!(Subprotocol::all().count(), 6);
        for subprotocol in Subprotocol::all() {
            assert_eq!(Subprotocol::from_name(subprotocol.name()), Some(subprotocol));
        }
        for other in
            ["", "wamp.2", "wamp.2.JSON", "wamp.2.ubjson", "wamp.2.json.batch", "wamp.2.json.batched."]
        {
            assert_eq!(Subprotocol::from_name(other), None);
        }
    }
}
