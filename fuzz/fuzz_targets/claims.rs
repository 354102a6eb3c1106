//! Messages of claims: hostile bytes never panic, whatever order they come in, and what is accepted has one form.

#![no_main]

use common::ids::{BootEpoch, NodeId};
use controlplane::claims::message::Message;
use controlplane::claims::{About, Claims, Settings};
use libfuzzer_sys::fuzz_target;
use std::time::{Duration, Instant};

fuzz_target!(|messages: Vec<&[u8]>| {
    let now = Instant::now();
    let (node, peer) = (NodeId([1; 16]), NodeId([2; 16]));
    let mut claims = Claims::new(Settings { node, epoch: 7, tick: Duration::from_secs(1) });
    claims.begin(now, BootEpoch(1), About::default());
    claims.node_up(peer);
    claims.peer_up(now, peer);
    for bytes in messages {
        if let Ok(message) = Message::decode(bytes) {
            assert_eq!(message.encode(), bytes);
        }
        let _ = claims.receive(now, peer, bytes);
        while claims.poll().is_some() {}
    }
    assert!(claims.routes().all(|(of, _)| of != node));
});
