//! What benches share: shards that no kernel drives, what their clients say, and the measure.
#![allow(dead_code, reason = "each bench uses its own part")]

pub mod cpu_time;

#[path = "../../src/allocator.rs"]
mod allocator;

use common::config::{Config, Listener, Transport};
use common::ids::{BootEpoch, ShardId, SnapshotVersion};
use common::snapshot::{Anonymous, Realm, Snapshot, Source, build};
use common::transport::{FrameKind, Framing, rawsocket, upgrade, write_client_frame};
use common::wire::encode::{self, Field};
use common::wire::message::code;
use common::wire::{OwnedValue, Serializer};
use dataplane::feed::{FeedDown, SharedSnapshot};
use dataplane::shard::{ConnId, Output, Shard, ShardConfig};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

/// Of clients, if nothing else is said; they come by RawSocket.
pub const SERIALIZER: Serializer = Serializer::MsgPack;
const REALM: &str = "realm1";
/// Bytes of the text in a payload.
pub const PAYLOAD_BYTES: usize = 128;

/// False: each case is run once, small, as Criterion does it without `--bench` or with `--test`.
pub fn is_measured() -> bool {
    let has = |name: &str| std::env::args().any(|arg| arg == name);
    has("--bench") && !has("--test")
}

/// One of a node's shards, with the defaults. It listens for RawSocket (0) and WebSocket (1).
pub fn config(shard: usize, shards: usize, epoch: BootEpoch) -> ShardConfig {
    let listeners = vec![Listener::of(Transport::RawSocket), Listener::of(Transport::WebSocket)];
    let config = Config { listeners, ..Config::default() };
    ShardConfig::new(&config, ShardId(shard as u8), shards, epoch, [shard as u8; 32], epoch.0)
}

/// A shard whose snapshot has one realm and no route.
pub fn shard(config: ShardConfig, now: Instant) -> Shard {
    let snapshot = snapshot(config.epoch, config.shards);
    let mut shard = Shard::new(config, now);
    shard.feed(now, FeedDown::Snapshot(snapshot));
    shard
}

fn snapshot(epoch: BootEpoch, shards: usize) -> SharedSnapshot {
    let source = Source {
        version: SnapshotVersion(1),
        epoch,
        claims_folded: vec![0; shards],
        realms: vec![Realm::new(REALM, Anonymous::Loopback)],
        ..Source::default()
    };
    let bytes = bytes::Bytes::from_owner(build(&source, 1));
    Arc::new(Snapshot::check(bytes).expect("a built snapshot is valid"))
}

/// Lets a connection in, and what its client says first. `more`: what HELLO says besides roles.
pub fn connect(shard: &mut Shard, now: Instant, conn: ConnId, more: &[(&str, Field<'_>)]) -> Vec<u8> {
    connect_by(shard, now, conn, (Framing::RawSocket, SERIALIZER), more)
}

/// The same by RawSocket or WebSocket.
pub fn connect_by(
    shard: &mut Shard,
    now: Instant,
    conn: ConnId,
    (framing, serializer): (Framing, Serializer),
    more: &[(&str, Field<'_>)],
) -> Vec<u8> {
    assert!(shard.accept(now, conn, framing as usize, IpAddr::V4(Ipv4Addr::LOCALHOST)));
    let mut bytes = Vec::new();
    match framing {
        Framing::RawSocket => {
            let hello = rawsocket::Handshake { serializer, message_bytes_max: 1 << 24 };
            bytes.extend_from_slice(&rawsocket::write(hello));
        }
        _ => upgrade::write_request("node", "/ws", serializer, [1; 16], &mut bytes),
    }
    let roles = ["publisher", "subscriber", "caller", "callee"];
    let roles = OwnedValue::dict(roles.map(|role| (role, OwnedValue::Dict(vec![]))));
    let details: Vec<_> = [("roles", Field::Value(&roles))].iter().chain(more).copied().collect();
    bytes.extend(frame_by((framing, serializer), |out| {
        encode::uri_dict(serializer, out, code::HELLO, REALM, &details);
    }));
    bytes
}

/// Hands bytes over and sends what there is. The connection that was sent to last.
pub fn receive(shard: &mut Shard, now: Instant, conn: ConnId, bytes: &mut [u8]) -> Option<ConnId> {
    shard.receive(now, conn, bytes);
    let mut last = None;
    while let Some(output) = shard.poll() {
        let Output::Send(conn) = output else { panic!("nothing but sends is expected, not {output:?}") };
        let buf = shard.take_send(conn);
        shard.sent(now, conn, buf, true);
        last = Some(conn);
    }
    while shard.take_feed().is_some() {}
    last
}

/// A message of a client.
pub fn frame(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    frame_by((Framing::RawSocket, SERIALIZER), write)
}

pub fn frame_by((framing, serializer): (Framing, Serializer), write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let (mut message, mut out) = (Vec::new(), Vec::new());
    write(&mut message);
    write_client_frame(framing, serializer, FrameKind::Message, &message, [0; 4], &mut out);
    out
}

/// Arguments of a message: one text.
pub fn args() -> Vec<u8> {
    OwnedValue::list(["x".repeat(PAYLOAD_BYTES)]).to_bytes(SERIALIZER)
}

/// In place of an id: as long as the longest, and found again to be overwritten.
pub const PLACE: u64 = (1 << 53) - 1;
const PLACE_BYTES: [u8; 9] = [0xcf, 0, 0x1f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];

/// A client's messages in one piece, with ids to be put in.
pub struct Numbered {
    bytes: Vec<u8>,
    ids: Vec<usize>,
}

impl Numbered {
    /// The same message so often; `write` puts [`PLACE`] where the id goes.
    pub fn new(messages: usize, write: impl FnOnce(&mut Vec<u8>)) -> Self {
        let one = frame(write);
        let place = one.windows(PLACE_BYTES.len()).position(|bytes| bytes == PLACE_BYTES).expect("an id") + 1;
        let ids = (0..messages).map(|at| at * one.len() + place).collect();
        Self { bytes: one.repeat(messages), ids }
    }

    pub fn messages(&self) -> usize {
        self.ids.len()
    }

    /// The messages, numbered from `first` on.
    pub fn number(&mut self, first: u64) -> &mut [u8] {
        for (id, at) in (first..).zip(&self.ids) {
            self.bytes[*at..at + 8].copy_from_slice(&id.to_be_bytes());
        }
        &mut self.bytes
    }
}

/// The middle of what was measured in a number of rounds.
pub fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}
