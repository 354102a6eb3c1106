//! The relay in place of a shard: the data plane's loop, threads and rings without its protocol.

use super::hub::Hub;
use common::config::{Config, Listener, Transport};
use common::ids::{BootEpoch, ShardId, ShardSet};
use common::metrics::Metrics;
use dataplane::feed::{FeedDown, FeedUp};
use dataplane::io::{Accepting, Features, Machine, Plan, spawn_machines};
use dataplane::shard::{ConnId, Flow, Origin, Output, Segment, SendBuf};
use std::collections::VecDeque;
use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

/// Relays until it is killed.
///
/// # Errors
/// When the address is taken or io_uring does not work.
pub fn serve(address: SocketAddr, cpu: u32) -> Result<(), Box<dyn Error>> {
    let listener = Listener {
        transport: Transport::RawSocket,
        address,
        path: String::new(),
        connections_max: 100_000,
        message_max: 1 << 20,
        backlog: 1_024,
        ..Listener::of(Transport::RawSocket)
    };
    let plan = Plan {
        config: Config { listeners: vec![listener], ..Config::default() },
        cores: vec![cpu],
        features: Features::probe()?,
        epoch: BootEpoch(1),
        seeds: vec![1],
        secrets: vec![[1; 32]],
        relays: vec![],
        https: vec![],
        link_waker: Arc::new(|| {}),
    };
    let running = spawn_machines(plan, Accepting::Yes, |_, _| Relay::default())?;
    for shard in running.shards {
        // The feed is held while the shard runs: it ends when that is dropped.
        let (_feed, thread) = (shard.feed, shard.thread);
        thread.join().map_err(|_| "the relay panicked")??;
    }
    Ok(())
}

#[derive(Default)]
struct Relay {
    hub: Hub,
    ids: Vec<ConnId>,
    outputs: VecDeque<Output>,
    metrics: Metrics,
}

impl Machine for Relay {
    type Batch = ();

    fn accept(&mut self, _: Instant, conn: ConnId, _: usize, _: Origin) -> bool {
        let slot = conn.slot as usize;
        if self.ids.len() <= slot {
            self.ids.resize(slot + 1, conn);
        }
        self.ids[slot] = conn;
        self.hub.open(conn.slot);
        true
    }

    fn receive(&mut self, _: Instant, conn: ConnId, bytes: &mut [u8]) -> Flow {
        self.hub.receive(conn.slot, bytes);
        Flow::Continue
    }

    fn closed(&mut self, _: Instant, conn: ConnId) {
        self.hub.close(conn.slot);
        self.outputs.push_back(Output::Close(conn));
    }

    fn take_send(&mut self, conn: ConnId) -> SendBuf {
        SendBuf { segments: vec![Segment::Owned(self.hub.take(conn.slot))] }
    }

    fn sent(&mut self, _: Instant, conn: ConnId, mut buf: SendBuf, ok: bool) {
        if let (true, Some(Segment::Owned(bytes))) = (ok, buf.segments.pop()) {
            self.hub.sent(conn.slot, bytes);
        }
    }

    fn mesh_in(&mut self, _: Instant, _: ShardId, (): ()) {}

    fn mesh_ready(&self) -> ShardSet {
        ShardSet::EMPTY
    }

    fn take_batch(&mut self, _: ShardId) {}

    fn mesh_full(&mut self, _: Instant, _: ShardSet) {}

    fn feed(&mut self, _: Instant, _: FeedDown) {}

    fn take_feed(&mut self) -> Option<FeedUp> {
        None
    }

    fn poll(&mut self) -> Option<Output> {
        self.outputs
            .pop_front()
            .or_else(|| self.hub.next_to_send().map(|slot| Output::Send(self.ids[slot as usize])))
    }

    fn deadline(&self) -> Option<Instant> {
        None
    }

    fn timeout(&mut self, _: Instant) {}

    fn metrics_mut(&mut self) -> &mut Metrics {
        &mut self.metrics
    }
}
