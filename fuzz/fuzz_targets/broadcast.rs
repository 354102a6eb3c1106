//! Broadcast messages: hostile bytes never panic, what is accepted survives another round trip, and a machine that gets a
//! list of them stays within its bounds.

#![no_main]

use common::ids::NodeId;
use controlplane::broadcast::{Broadcast, IdKey, MISSING_MAX, Message, Settings};
use libfuzzer_sys::fuzz_target;
use std::time::{Duration, Instant};

fuzz_target!(|input: (Vec<(u8, Vec<u8>)>, u16)| {
    let (frames, wait) = input;
    let mut now = Instant::now();
    let settings = Settings::new(IdKey::of(b"k"), Duration::from_secs(1), Duration::from_secs(60));
    let mut machine = Broadcast::new(now, settings);
    (0..3).for_each(|peer| machine.up(NodeId([peer; 16])));
    for (peer, bytes) in frames {
        if let Ok(message) = Message::decode(&bytes) {
            assert_eq!(message.encode(), bytes);
        }
        let peer = NodeId([peer % 4; 16]);
        let _ = machine.frame(now, peer, &bytes);
        machine.send(now, vec![bytes.len() as u8]);
        now += Duration::from_millis(wait.into());
        machine.timeout(now);
        while machine.poll().is_some() {}
        assert!(machine.ids().1 <= MISSING_MAX);
    }
});
