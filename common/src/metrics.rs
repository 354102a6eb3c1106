//! The data plane's counters and gauges: one slot each, summed or shown per shard by the control plane.

macro_rules! table {
    ($(#[$meta:meta])* $name:ident, $count:ident: $($variant:ident $metric:literal $labels:literal $help:literal;)*) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(usize)]
        pub enum $name { $($variant),* }

        impl $name {
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// Prometheus name, extra labels (`key="value"` or empty) and help text.
            pub const fn describe(self) -> (&'static str, &'static str, &'static str) {
                match self { $(Self::$variant => ($metric, $labels, $help)),* }
            }
        }

        pub const $count: usize = $name::ALL.len();
    };
}

table! {
    /// Numbers that only grow.
    Counter, COUNTERS:
    ConnectionsAccepted "signalbox_connections_accepted_total" "" "Connections accepted.";
    ConnectionsRefused "signalbox_connections_refused_total" "" "Connections closed at once because a limit was reached.";
    AcceptsFailed "signalbox_accepts_failed_total" "" "Connections the kernel could not hand over, mostly for want of descriptors.";
    HandshakesFailed "signalbox_handshakes_failed_total" "" "Connections that ended before a session was established.";
    LoginTimeouts "signalbox_login_timeouts_total" "" "Connections closed at the login deadline.";
    PingTimeouts "signalbox_ping_timeouts_total" "" "Connections closed because a ping stayed unanswered.";
    SessionsOpened "signalbox_sessions_opened_total" "" "Sessions established.";
    SessionsClosed "signalbox_sessions_closed_total" "" "Sessions ended.";
    ProtocolViolations "signalbox_protocol_violations_total" "" "Sessions aborted because of a protocol violation.";
    MessagesReceived "signalbox_messages_received_total" "" "WAMP messages received from clients.";
    MessagesSent "signalbox_messages_sent_total" "" "WAMP messages queued to clients.";
    BytesReceived "signalbox_received_bytes_total" "" "Bytes received from clients.";
    BytesSent "signalbox_sent_bytes_total" "" "Bytes handed to the kernel for clients.";
    Publishes "signalbox_publishes_total" "" "PUBLISH messages routed.";
    Events "signalbox_events_total" "" "EVENT messages queued to subscribers.";
    Calls "signalbox_calls_total" "" "CALL messages accepted.";
    Results "signalbox_results_total" "" "RESULT and ERROR answers of callees sent to callers.";
    CallsFailed "signalbox_calls_failed_total" "" "Calls answered with an error by the router.";
    DroppedSlow "signalbox_events_dropped_total" "reason=\"slow_receiver\"" "Events not delivered, by reason.";
    DroppedTooLarge "signalbox_events_dropped_total" "reason=\"too_large_for_receiver\"" "Events not delivered, by reason.";
    DroppedTranscode "signalbox_events_dropped_total" "reason=\"not_representable\"" "Events not delivered, by reason.";
    KilledSlow "signalbox_sessions_killed_total" "reason=\"slow_receiver\"" "Sessions closed by the router, by reason.";
    MeshBatches "signalbox_mesh_batches_total" "" "Batches sent to other shards.";
    MeshMessages "signalbox_mesh_messages_total" "" "Messages sent to other shards.";
    MeshFull "signalbox_mesh_full_total" "" "Times a queue to another shard was full.";
    ReadsPaused "signalbox_reads_paused_total" "" "Times connections were not read because a queue or the memory budget was full.";
    RouteCacheHits "signalbox_route_cache_hits_total" "" "Route look-ups answered by the cache.";
    RouteCacheMisses "signalbox_route_cache_misses_total" "" "Route look-ups that had to search.";
    IdCollisions "signalbox_id_collisions_total" "" "Subscriptions or registrations refused because their id belongs to another URI.";
    LimitReached "signalbox_limit_reached_total" "" "Requests refused because a per-session or per-node limit was reached.";
    ClaimsSent "signalbox_claims_sent_total" "" "Claims reported to the control plane.";
    ClaimsResyncs "signalbox_claims_resyncs_total" "" "Times a shard's whole claim set was reported again.";
    SnapshotsTaken "signalbox_snapshots_taken_total" "" "Snapshots and deltas put in use.";
    Turns "signalbox_turns_total" "" "Turns of the shard's loop that had work.";
    Enters "signalbox_ring_enters_total" "" "io_uring_enter calls.";
    Parks "signalbox_parks_total" "" "Times the shard parked in its executor.";
    BuffersExhausted "signalbox_receive_buffers_exhausted_total" "" "Times no receive buffer was free.";
}

table! {
    /// Numbers that go up and down.
    Gauge, GAUGES:
    Connections "signalbox_connections" "" "Open connections.";
    Sessions "signalbox_sessions" "" "Established sessions.";
    Subscriptions "signalbox_subscriptions" "" "Subscriptions held by sessions.";
    Registrations "signalbox_registrations" "" "Registrations held by sessions.";
    CallsPending "signalbox_calls_pending" "" "Calls that wait for an answer.";
    OverlayRoutes "signalbox_overlay_routes" "" "Routes newer than the snapshot.";
    SnapshotRoutes "signalbox_snapshot_routes" "" "Routes in the snapshot.";
    SnapshotVersion "signalbox_snapshot_version" "" "Version of the snapshot in use.";
    QueuedBytes "signalbox_queued_bytes" "" "Bytes queued to clients and held of incomplete messages.";
    MeshBacklogBytes "signalbox_mesh_backlog_bytes" "" "Bytes that wait for room in queues to other shards.";
}

/// The values of one shard at one moment.
#[derive(Clone, Debug)]
pub struct Metrics {
    pub counters: [u64; COUNTERS],
    pub gauges: [u64; GAUGES],
}

impl Default for Metrics {
    fn default() -> Self {
        Self { counters: [0; COUNTERS], gauges: [0; GAUGES] }
    }
}

impl Metrics {
    #[inline]
    pub fn add(&mut self, counter: Counter, n: u64) {
        self.counters[counter as usize] += n;
    }

    #[inline]
    pub fn count(&mut self, counter: Counter) {
        self.add(counter, 1);
    }

    #[inline]
    pub fn set(&mut self, gauge: Gauge, value: u64) {
        self.gauges[gauge as usize] = value;
    }

    pub fn get(&self, counter: Counter) -> u64 {
        self.counters[counter as usize]
    }

    pub fn gauge(&self, gauge: Gauge) -> u64 {
        self.gauges[gauge as usize]
    }
}
