//! What a shard tells of itself.

use super::Shard;
use crate::feed::FeedUp;
use common::metrics::Gauge;

impl Shard {
    /// Puts the gauges and hands the metrics to the link thread.
    pub(super) fn report(&mut self) {
        self.relay_report();
        let backlog: usize = self.mesh_out.iter().map(|batch| batch.bytes_len()).sum();
        let [detached, kept, carried] = self.resumption.gauges();
        let overlay: usize = self.realms.iter().map(|realm| realm.overlay.len()).sum();
        for (gauge, value) in [
            (Gauge::Connections, (self.conns_len - self.resumption.seated) as u64),
            (Gauge::Sessions, u64::from(self.sessions)),
            (Gauge::SessionsDetached, detached as u64),
            (Gauge::DetachedBytes, kept as u64),
            (Gauge::SessionsCarried, carried as u64),
            (Gauge::Subscriptions, self.subscriptions),
            (Gauge::RetainedTopics, self.retained.len() as u64),
            (Gauge::RetainedBytes, self.retained.bytes() as u64),
            (Gauge::HistoryEvents, self.histories.events() as u64),
            (Gauge::HistoryBytes, self.histories.bytes() as u64),
            (Gauge::Registrations, self.procedures.len() as u64),
            (Gauge::CallsPending, self.calls),
            (Gauge::SharedCalls, self.shared.len() as u64),
            (Gauge::HeldCallBytes, (self.held_bytes + self.shared.kept_bytes()) as u64),
            (Gauge::OverlayRoutes, overlay as u64),
            (Gauge::SnapshotRoutes, self.folded.len() as u64),
            (Gauge::SnapshotVersion, self.version.0),
            (Gauge::QueuedBytes, self.queued_bytes as u64),
            (Gauge::HttpTransports, self.transports() as u64),
            (Gauge::CompressionBytes, self.context_bytes as u64),
            (Gauge::MeshBacklogBytes, backlog as u64),
        ] {
            self.metrics.set(gauge, value);
        }
        let stats =
            FeedUp::Stats { shard: self.me, cpu: self.config.cpu, metrics: Box::new(self.metrics.clone()) };
        self.feed_up.retain(|up| !matches!(up, FeedUp::Stats { .. }));
        self.feed_up.push_back(stats);
    }
}
