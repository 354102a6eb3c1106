//! Bytes as a message. The first byte chooses the serializer. What is a message must be the same one after a journey
//! through every other serializer.
#![no_main]

use common::wire::{Serializer, WireError, decode, encode};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((choice, bytes)) = data.split_first() else { return };
    let serializer = Serializer::ALL[usize::from(*choice) % Serializer::ALL.len()];
    let Ok(message) = decode(serializer, bytes) else { return };
    for to in Serializer::ALL {
        let mut there = Vec::new();
        match encode::message(to, &mut there, &message, serializer) {
            Err(error) => assert_eq!(error, WireError::Key),
            Ok(()) => {
                let arrived = decode(to, &there).expect("what is written can be read");
                assert_eq!(arrived.code(), message.code());
                assert_eq!(arrived.payload().kwargs.is_some(), message.payload().kwargs.is_some());
                // What the journey there and back changed stays as it is from then on.
                let back = carried(&there, to, serializer);
                let again = carried(&carried(&back, serializer, to), to, serializer);
                assert_eq!(back, again);
            }
        }
    }
});

fn carried(bytes: &[u8], from: Serializer, to: Serializer) -> Vec<u8> {
    let message = decode(from, bytes).expect("what is written can be read");
    let mut out = Vec::new();
    encode::message(to, &mut out, &message, from).expect("what went through both formats has a form in both");
    out
}
