//! A WebSocket peer that sends anything: what is found must not depend on the cuts.
#![no_main]

mod receive;

use common::transport::{Framer, Framing, Role};
use common::wire::Serializer;
use libfuzzer_sys::fuzz_target;

use receive::Owned;

const MESSAGE_BYTES_MAX: usize = 4_096;

fuzz_target!(|input: &[u8]| {
    let Some((choice, cuts, stream)) = receive::split(input) else { return };
    let (is_client, is_text) = (choice & 1 != 0, choice & 2 != 0);
    let role = if is_client { Role::Client } else { Role::Server };
    let serializer = if is_text { Serializer::Json } else { Serializer::Cbor };
    let framer = || Framer::new(Framing::WebSocket, role, serializer, MESSAGE_BYTES_MAX);
    let whole = receive::receive(&mut framer(), stream, &[]);
    assert_eq!(receive::receive(&mut framer(), stream, cuts), whole);

    let (frames, _) = whole;
    for (index, frame) in frames.iter().enumerate() {
        match frame {
            Owned::Message(payload) => {
                assert!(payload.len() <= MESSAGE_BYTES_MAX);
                assert!(!is_text || str::from_utf8(payload).is_ok());
            }
            Owned::Ping(payload) | Owned::Pong(payload) => assert!(payload.len() <= 125),
            Owned::Close(_) => assert_eq!(index + 1, frames.len(), "nothing follows a close"),
        }
    }
});
