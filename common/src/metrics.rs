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
    ProxyHeadersRefused "signalbox_proxy_headers_refused_total" "" "Connections closed because they did not begin with a right PROXY header.";
    LoginTimeouts "signalbox_login_timeouts_total" "" "Connections closed at the login deadline.";
    PingTimeouts "signalbox_ping_timeouts_total" "" "Connections closed because a ping stayed unanswered.";
    SessionsOpened "signalbox_sessions_opened_total" "" "Sessions established.";
    SessionsClosed "signalbox_sessions_closed_total" "" "Sessions ended.";
    ProtocolViolations "signalbox_protocol_violations_total" "" "Sessions aborted because of a protocol violation.";
    MessagesReceived "signalbox_messages_received_total" "" "WAMP messages received from clients.";
    MessagesSent "signalbox_messages_sent_total" "" "WAMP messages queued to clients.";
    BytesReceived "signalbox_received_bytes_total" "" "Bytes received from clients.";
    BytesSent "signalbox_sent_bytes_total" "" "Bytes handed to the kernel for clients.";
    SessionsDetached "signalbox_sessions_detached_total" "" "Times a session lost its connection and began to wait for its client.";
    SessionsResumed "signalbox_sessions_resumed_total" "" "Times a client came back to its session.";
    ResumptionsRefused "signalbox_resumptions_refused_total" "" "Clients that asked for a session they did not get, and got a new one.";
    SessionsExpired "signalbox_sessions_expired_total" "" "Sessions that ended because their clients did not come back in time.";
    Publishes "signalbox_publishes_total" "" "PUBLISH messages routed.";
    Events "signalbox_events_total" "" "EVENT messages queued to subscribers.";
    Calls "signalbox_calls_total" "" "CALL messages accepted.";
    Results "signalbox_results_total" "" "RESULT and ERROR answers of callees sent to callers.";
    CallsTimedOut "signalbox_calls_timed_out_total" "" "Calls that took longer than they may.";
    CallsRerouted "signalbox_calls_rerouted_total" "" "Calls passed to another callee because the first one could not take them.";
    CallsFailed "signalbox_calls_failed_total" "" "Calls answered with an error by the router.";
    DroppedSlow "signalbox_events_dropped_total" "reason=\"slow_receiver\"" "Events not delivered, by reason.";
    DroppedTooLarge "signalbox_events_dropped_total" "reason=\"too_large_for_receiver\"" "Events not delivered, by reason.";
    DroppedTranscode "signalbox_events_dropped_total" "reason=\"not_representable\"" "Events not delivered, by reason.";
    DroppedDetached "signalbox_events_dropped_total" "reason=\"detached\"" "Events not delivered, by reason.";
    DroppedRelayFull "signalbox_events_dropped_total" "reason=\"relay_queue_full\"" "Events not delivered, by reason.";
    DroppedRelayDown "signalbox_events_dropped_total" "reason=\"relay_not_connected\"" "Events not delivered, by reason.";
    DroppedRelayLost "signalbox_events_dropped_total" "reason=\"relay_lost\"" "Events not delivered, by reason.";
    KilledSlow "signalbox_sessions_killed_total" "reason=\"slow_receiver\"" "Sessions closed by the router, by reason.";
    KilledMeta "signalbox_sessions_killed_total" "reason=\"meta_api\"" "Sessions closed by the router, by reason.";
    MetaEvents "signalbox_meta_events_total" "" "Events of the router itself that somebody listens to.";
    MeshBatches "signalbox_mesh_batches_total" "" "Batches sent to other shards.";
    MeshMessages "signalbox_mesh_messages_total" "" "Messages sent to other shards.";
    MeshFull "signalbox_mesh_full_total" "" "Times a queue to another shard was full.";
    ReadsPaused "signalbox_reads_paused_total" "" "Times connections were not read because a queue or the memory budget was full.";
    RouteCacheHits "signalbox_route_cache_hits_total" "" "Route look-ups answered by the cache.";
    RouteCacheMisses "signalbox_route_cache_misses_total" "" "Route look-ups that had to search.";
    IdCollisions "signalbox_id_collisions_total" "" "Subscriptions or registrations refused because their id belongs to another URI.";
    RegistrationsRevoked "signalbox_registrations_revoked_total" "" "Registrations a callee lost to another node's.";
    EventsRetained "signalbox_retained_total" "" "Publications that their topic retains.";
    RetainedRefused "signalbox_retained_refused_total" "" "Publications, and topics of other nodes, that were not retained because a limit was reached.";
    EventsKept "signalbox_history_kept_total" "" "Events that a history of this node has kept.";
    HistoryRefused "signalbox_history_refused_total" "" "Events that a history did not keep because a limit was reached.";
    EventsReplayed "signalbox_retained_replayed_total" "" "Retained events queued to subscribers that asked for them.";
    SubscriptionsRevoked "signalbox_subscriptions_revoked_total" "" "Subscriptions that were taken away from their sessions.";
    FeaturesRefused "signalbox_features_refused_total" "" "Messages refused because they use a feature that the realm or the role has switched off.";
    LimitReached "signalbox_limit_reached_total" "" "Requests refused because a per-session or per-node limit was reached.";
    ClaimsSent "signalbox_claims_sent_total" "" "Claims reported to the control plane.";
    ClaimsResyncs "signalbox_claims_resyncs_total" "" "Times a shard's whole claim set was reported again.";
    SnapshotsTaken "signalbox_snapshots_taken_total" "" "Snapshots and deltas put in use.";
    RelayDials "signalbox_relay_dials_total" "" "Connections to other nodes that were tried.";
    RelayHandshakes "signalbox_relay_handshakes_total" "" "Relay connections on which both ends proved that they are of the cluster.";
    RelayHandshakesFailed "signalbox_relay_handshakes_failed_total" "" "Relay connections, of either direction, that ended before that.";
    RelayLost "signalbox_relay_lost_total" "" "Established relay connections that ended, or were given up because nothing came any more.";
    RelayBadFrames "signalbox_relay_bad_frames_total" "" "Relay connections closed because of a malformed frame.";
    RelaySlow "signalbox_relay_slow_total" "" "Relay connections closed because the other end did not take its answers.";
    RelayMemoryFull "signalbox_relay_memory_full_total" "" "Frames for other nodes refused because queues to them have their part of memory.max.";
    RelayHops "signalbox_relay_hops_total" "" "Events and calls passed to another node.";
    RelayFramesSent "signalbox_relay_frames_total" "direction=\"sent\"" "Frames between nodes.";
    RelayFramesReceived "signalbox_relay_frames_total" "direction=\"received\"" "Frames between nodes.";
    RelayBytesSent "signalbox_relay_bytes_total" "direction=\"sent\"" "Bytes between nodes.";
    RelayBytesReceived "signalbox_relay_bytes_total" "direction=\"received\"" "Bytes between nodes.";
    RelayCallsRefused "signalbox_relay_calls_refused_total" "" "Calls for a callee on another node that could not be passed to it.";
    RelayCallsLost "signalbox_relay_calls_lost_total" "" "Calls passed to another node whose connection ended before the answer.";
    RelayAcksFailed "signalbox_relay_acks_failed_total" "" "Acknowledged publications that a live node did not take.";
    RelayRoundTrips "signalbox_relay_round_trips_total" "" "Round trips between nodes that were measured.";
    RelayRoundTripMicros "signalbox_relay_round_trip_microseconds_total" "" "Their sum.";
    InflatedBytes "signalbox_inflated_bytes_total" "" "Bytes that compressed messages of clients unfolded to.";
    InflatesPutOff "signalbox_inflates_put_off_total" "" "Times that a client had to wait because its shard had unfolded enough compressed messages in one turn.";
    InflatesRefused "signalbox_inflates_refused_total" "" "Compressed messages that were broken or unfolded to more than a message may have.";
    DeflatedBytes "signalbox_deflated_bytes_total" "" "Bytes that compression and batching saved on compressed connections.";
    ContextsRefused "signalbox_compression_contexts_refused_total" "" "Connections compressed without context because memory for contexts was at its bound.";
    HttpRequests "signalbox_http_requests_total" "" "Requests of the HTTP transports that were answered.";
    HttpRefused "signalbox_http_requests_refused_total" "" "Those of them that were answered with an error.";
    HttpTransportsOpened "signalbox_http_transports_opened_total" "" "Transports opened by HTTP.";
    HttpTransportsExpired "signalbox_http_transports_expired_total" "" "Those closed because no request was made to them any more.";
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
    SessionsDetached "signalbox_sessions_detached" "" "Sessions that wait for their clients.";
    DetachedBytes "signalbox_sessions_detached_bytes" "" "Bytes kept for them.";
    SessionsCarried "signalbox_sessions_carried" "" "Connections that carry a session of another slot, shard or node.";
    Subscriptions "signalbox_subscriptions" "" "Subscriptions held by sessions.";
    Registrations "signalbox_registrations" "" "Registrations held by sessions.";
    RetainedTopics "signalbox_retained_topics" "" "Topics that retain an event.";
    RetainedBytes "signalbox_retained_bytes" "" "Bytes of retained events.";
    HistoryEvents "signalbox_history_events" "" "Events in histories.";
    HistoryBytes "signalbox_history_bytes" "" "Bytes of events in histories.";
    CallsPending "signalbox_calls_pending" "" "Calls that wait for an answer.";
    SharedCalls "signalbox_shared_calls" "" "Open calls to registrations of several callees, at the shard that chose the callee.";
    HeldCallBytes "signalbox_held_call_bytes" "" "Bytes of calls that wait for a REGISTERED or may be routed again.";
    OverlayRoutes "signalbox_overlay_routes" "" "Routes newer than the snapshot.";
    SnapshotRoutes "signalbox_snapshot_routes" "" "Routes in the snapshot.";
    SnapshotVersion "signalbox_snapshot_version" "" "Version of the snapshot in use.";
    QueuedBytes "signalbox_queued_bytes" "" "Bytes queued to clients and held of incomplete messages.";
    CompressionBytes "signalbox_compression_context_bytes" "" "Bytes reserved for the compression contexts of connections.";
    HttpTransports "signalbox_http_transports" "" "Open transports of HTTP clients.";
    MeshBacklogBytes "signalbox_mesh_backlog_bytes" "" "Bytes that wait for room in queues to other shards.";
    RelayConnections "signalbox_relay_connections" "" "Established relay connections, of both directions.";
    RelayQueuedBytes "signalbox_relay_queued_bytes" "" "Bytes queued to other nodes.";
    RelayCallsPending "signalbox_relay_calls_pending" "" "Calls passed to other nodes that wait for an answer, and calls of other nodes that wait for one here.";
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
