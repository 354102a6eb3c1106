//! A link between control planes against a hostile peer: one that has no key and sends anything, and one that has the key and
//! sends anything under it. It never panics, and what it keeps is bounded.

#![no_main]

use arbitrary::Arbitrary;
use common::ids::NodeId;
use common::keys::ClusterKeys;
use common::noise::{Handshake, Progress, Purpose, Terms, Transport};
use controlplane::peers::{Event, FRAME_BYTES_MAX, Hello, Link, LinkConfig, READ_BYTES, READ_EARLY_BYTES};
use controlplane::swim::PROTOCOL;
use libfuzzer_sys::fuzz_target;
use std::time::{Duration, Instant};

#[derive(Arbitrary, Debug)]
enum Step {
    /// As they are.
    Raw(Vec<u8>),
    /// Sealed, when the peer has proved that it holds the key.
    Plain(Vec<u8>),
    /// This many milliseconds pass.
    Wait(u16),
    Transmit,
}

#[derive(Arbitrary, Debug)]
struct Input {
    /// The peer holds the key.
    insider: bool,
    /// What the insider says of itself; a good hello when there is none.
    hello: Option<Vec<u8>>,
    steps: Vec<Step>,
}

fn config(node: u8) -> LinkConfig {
    let keys = ClusterKeys::parse(&"07".repeat(32)).expect("a key");
    let terms = Terms { keys, env: "fuzz".into(), purpose: Purpose::Control };
    let version = "1".to_owned();
    let hello =
        Hello { protocol: PROTOCOL, node: NodeId([node; 16]), epoch: 1, store_epoch: 1, attempt: 1, version };
    LinkConfig { terms, hello }
}

/// Gives bytes to the link and takes its events; false when it is over.
fn give(link: &mut Link, now: Instant, bytes: &[u8], early: bool) -> bool {
    for part in bytes.chunks(if early { READ_EARLY_BYTES } else { READ_BYTES }) {
        if link.receive(now, part).is_err() {
            return false;
        }
        loop {
            match link.poll(now) {
                Ok(None) => break,
                Ok(Some(Event::Hello(_))) => assert!(!early, "nothing was proved"),
                Ok(Some(Event::Frame(_, body))) => assert!(!early && body.len() <= FRAME_BYTES_MAX),
                Err(_) => return false,
            }
        }
        let bound = if early { READ_EARLY_BYTES } else { FRAME_BYTES_MAX + 2 * READ_BYTES };
        assert!(link.held_bytes() <= bound, "{} bytes are kept", link.held_bytes());
    }
    true
}

/// The handshake of a peer that holds the key; none: it is refused.
fn shake(link: &mut Link, now: Instant, hello: &[u8]) -> Option<Transport> {
    let mut out = vec![];
    let mut peer = Handshake::initiator(config(1).terms, [1; 32], &hello[..hello.len().min(512)], &mut out);
    if !give(link, now, &out, true) {
        return None;
    }
    out.clear();
    link.transmit(&mut out);
    let Ok(Progress::Hello(_)) = peer.receive(&mut &out[..]) else { return None };
    out.clear();
    let transport = peer.confirm(&mut out);
    give(link, now, &out, false).then_some(transport)
}

fuzz_target!(|input: Input| {
    let mut now = Instant::now();
    let mut link = Link::accept(now, &config(2), [2; 32]);
    let mut transport = None;
    if input.insider {
        transport = shake(&mut link, now, &input.hello.unwrap_or_else(|| config(1).hello.encode()));
        if transport.is_none() {
            return;
        }
    }
    for step in input.steps {
        let goes_on = match (step, &mut transport) {
            (Step::Raw(bytes), transport) => give(&mut link, now, &bytes, transport.is_none()),
            (Step::Plain(bytes), Some(transport)) => {
                let mut out = vec![];
                transport.seal(&bytes, &mut out);
                give(&mut link, now, &out, false)
            }
            (Step::Plain(_), None) => true,
            (Step::Wait(ms), _) => {
                now += Duration::from_millis(ms.into());
                link.timeout(now).is_ok()
            }
            (Step::Transmit, _) => {
                link.transmit(&mut vec![]);
                true
            }
        };
        if !goes_on {
            link.farewell(&mut vec![]);
            return;
        }
    }
});
