//! Packets of the link: hostile bytes never panic, and what is accepted survives another round trip.

#![no_main]

use common::link::{Down, Up};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|packet: &[u8]| {
    if let Ok(frame) = Up::decode(packet) {
        assert_eq!(Up::decode(&frame.encode()), Ok(frame));
    }
    if let Ok(frame) = Down::decode(packet) {
        assert_eq!(Down::decode(&frame.encode()), Ok(frame));
    }
});
