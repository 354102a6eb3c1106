//! A RawSocket peer that sends anything: the handshake, then frames, which must not depend on the cuts.
#![no_main]

mod receive;

use common::limits::RAW_PING_BYTES_MAX;
use common::transport::rawsocket::{self, HANDSHAKE_BYTES};
use common::transport::{Framer, Framing, Role};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((_, cuts, stream)) = receive::split(input) else { return };
    let Some((&octets, frames)) = stream.split_first_chunk::<HANDSHAKE_BYTES>() else { return };
    let _ = rawsocket::parse_answer(octets);
    let handshake = match rawsocket::parse_request(octets) {
        Ok(handshake) => handshake,
        Err(error) => {
            if let Some(answer) = error.answer() {
                assert!(matches!(rawsocket::parse_answer(answer), Err(1..)), "a client reads why");
            }
            return;
        }
    };
    assert_eq!(rawsocket::write(handshake), octets);
    assert_eq!(rawsocket::parse_answer(octets), Ok(handshake));

    let bytes_max = handshake.message_bytes_max.min(RAW_PING_BYTES_MAX);
    let framer = || Framer::new(Framing::RawSocket, Role::Server, handshake.serializer, bytes_max);
    let whole = receive::receive(&mut framer(), frames, &[]);
    assert_eq!(receive::receive(&mut framer(), frames, cuts), whole);
});
