//! A peer that sends anything as compressed messages, one after the other, with and without context.
#![no_main]

use arbitrary::Arbitrary;
use common::transport::deflate::{Accepts, Inflater, Params};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Peer {
    offer: Vec<u8>,
    context_takeover: bool,
    bytes_max: u16,
    payloads: Vec<Vec<u8>>,
}

fuzz_target!(|peer: Peer| {
    let accepts = Accepts { context_takeover: peer.context_takeover };
    let params = Params::choose(&peer.offer, accepts);
    if let Some(params) = params {
        assert_eq!(Params::parse_answer(params.to_string().as_bytes()), Some(params));
        assert!(peer.context_takeover || params.client_no_context_takeover && params.server_no_context_takeover);
    }
    let mut inflater = Inflater::new(params.map_or(15, Params::client_window_bits));
    let bytes_max = usize::from(peer.bytes_max);
    for payload in &peer.payloads {
        if !peer.context_takeover {
            inflater.reset();
        }
        let mut out = Vec::new();
        if inflater.inflate(payload, bytes_max, &mut out).is_err() {
            assert!(out.len() <= bytes_max + 1);
            inflater.reset();
        } else {
            assert!(out.len() <= bytes_max);
        }
    }
});
