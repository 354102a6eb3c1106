//! The data plane's end of the link: what the control plane is told and what the shards are given. No IO here; the
//! driver is [`crate::io::link`].
//!
//! ```text
//! packets ─▶ received ─┐                         ┌─▶ poll: to the shards, close, exit
//! shards ──▶ reported ─┼─▶ Link (Away, Greeting, ├─▶ frame: to the control plane
//! signals ─▶ drain ────┘        Established)     └─▶ deadline
//! ```
//! Invariants: versions handed to the shards only grow; nothing is sent but `Hello`, `Listening` and `Draining` before
//! `Welcome`; after each `Welcome` the claims of a shard are sent from a `ClaimsReset` on, so the control plane never
//! sees the middle of a set; the outbox holds at most [`OUTBOX_FRAMES_MAX`] frames and those of one report.

use crate::feed::{FeedDown, FeedUp, SharedSnapshot};
use common::ids::{BootEpoch, ShardId, ShardSet, SnapshotVersion};
use common::limits::LINK_FRAME_BYTES_MAX;
use common::link::{Claim, Down, LINK_PROTOCOL, Up};
use common::metrics::{Counter, Gauge};
use common::snapshot::Delta;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long to wait before the next try to connect.
pub const RETRY_INTERVAL: Duration = Duration::from_millis(75);
/// The same after the control plane refused us or spoke nonsense: only another control plane can do better.
pub const REFUSED_INTERVAL: Duration = Duration::from_secs(1);
/// How long a control plane that accepted the connection may take to say `Welcome`.
pub const WELCOME_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the shards are asked for their metrics.
pub const STATS_INTERVAL: Duration = Duration::from_secs(1);
/// How much longer than `timeouts.drain` the shards may take to close their connections.
pub const DRAIN_GRACE: Duration = Duration::from_secs(1);
/// Frames that may wait for the socket; beyond it the shards' reports stay in their channel.
pub const OUTBOX_FRAMES_MAX: usize = 64;
/// Longest reason sent in `Refused`, bytes.
const REASON_BYTES_MAX: usize = 1_024;

/// Who we are, said in `Hello` and `Listening`.
#[derive(Clone, Debug)]
pub struct Identity {
    pub epoch: BootEpoch,
    pub pid: u32,
    pub shards: usize,
    pub version: String,
    /// (transport name, address) of each listener.
    pub listeners: Vec<(String, String)>,
    /// `timeouts.drain`.
    pub drain_timeout: Duration,
}

/// What the driver must do.
#[derive(Debug)]
pub enum Output {
    /// Hand this to every shard.
    Shards(FeedDown),
    /// Close the connection; [`Link::disconnected`] has been taken care of.
    Close { reason: String },
    /// End the process; `clean` when every shard is drained.
    Exit { clean: bool },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// No connection; the next try is due.
    Away {
        retry_at: Instant,
    },
    /// `Hello` is on its way, no `Welcome` yet.
    Greeting {
        until: Instant,
    },
    Established {
        stats_at: Instant,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Drain {
    No,
    Until(Instant),
    Over,
}

/// The state of the link.
#[derive(Debug)]
pub struct Link {
    identity: Identity,
    phase: Phase,
    drain: Drain,
    drained: ShardSet,
    /// The version the shards were given last.
    offered: SnapshotVersion,
    /// The version each shard uses.
    taken: Vec<SnapshotVersion>,
    /// The version last said in `Taken` on this connection.
    taken_said: SnapshotVersion,
    /// Shards whose claims are left out until their `ClaimsReset`.
    awaiting_reset: ShardSet,
    outbox: VecDeque<Vec<u8>>,
    outputs: VecDeque<Output>,
}

impl Link {
    /// A link that is due to connect at once.
    pub fn new(identity: Identity, now: Instant) -> Self {
        let shards = identity.shards;
        Self {
            identity,
            phase: Phase::Away { retry_at: now },
            drain: Drain::No,
            drained: ShardSet::EMPTY,
            offered: SnapshotVersion::default(),
            taken: vec![SnapshotVersion::default(); shards],
            taken_said: SnapshotVersion::default(),
            awaiting_reset: ShardSet::EMPTY,
            outbox: VecDeque::new(),
            outputs: VecDeque::new(),
        }
    }

    /// True when a try to connect is due.
    pub fn connect_due(&self, now: Instant) -> bool {
        matches!(self.phase, Phase::Away { retry_at } if retry_at <= now)
    }

    /// A try to connect failed.
    pub fn connect_failed(&mut self, now: Instant) {
        self.phase = Phase::Away { retry_at: now + RETRY_INTERVAL };
    }

    /// The socket is connected.
    pub fn connected(&mut self, now: Instant) {
        self.phase = Phase::Greeting { until: now + WELCOME_TIMEOUT };
        self.outbox.clear();
        self.push(&Up::Hello {
            protocol: LINK_PROTOCOL,
            epoch: self.identity.epoch,
            pid: self.identity.pid,
            shards: self.identity.shards as u8,
            version: self.identity.version.clone(),
        });
        self.push(&Up::Listening { listeners: self.identity.listeners.clone() });
        if self.drain != Drain::No {
            self.push(&Up::Draining);
        }
    }

    /// The connection is gone. What was not sent is dropped; the resync after the next `Welcome` repairs it.
    pub fn disconnected(&mut self, now: Instant) {
        self.leave(now + RETRY_INTERVAL);
    }

    /// The version of a snapshot worth mapping and checking.
    pub fn wants(&self, version: SnapshotVersion) -> bool {
        self.is_established() && version > self.offered
    }

    /// A snapshot that [`Link::wants`] wanted was checked: hands it to the shards, or tells the control plane why not.
    pub fn snapshot(&mut self, version: SnapshotVersion, checked: Result<SharedSnapshot, String>) {
        let checked = checked.and_then(|snapshot| self.judge(version, snapshot));
        match checked {
            Ok(snapshot) => {
                self.offered = version;
                self.outputs.push_back(Output::Shards(FeedDown::Snapshot(snapshot)));
            }
            Err(reason) => self.refuse(version, reason),
        }
    }

    /// A frame came. `Snapshot` frames are the driver's: it maps and checks, then calls [`Link::snapshot`].
    pub fn received(&mut self, now: Instant, down: Down) {
        match (down, self.phase) {
            (Down::Refuse { reason }, _) => {
                self.close(now, format!("the control plane refused us: {reason}"))
            }
            (Down::Welcome { protocol, .. }, _) if protocol != LINK_PROTOCOL => {
                let text =
                    format!("the control plane speaks link protocol {protocol}, we speak {LINK_PROTOCOL}");
                self.close(now, text);
            }
            (Down::Welcome { pid, .. }, Phase::Greeting { .. }) => self.welcomed(now, pid),
            (Down::Delta(delta), Phase::Established { .. }) => self.delta(delta),
            (Down::Peers { peers }, Phase::Established { .. }) => self.pass(FeedDown::Peers(peers.into())),
            (Down::Routes { first_seq, changes }, Phase::Established { .. }) => {
                self.pass(FeedDown::Routes { first_seq, changes: changes.into() });
            }
            (Down::Unroute { seq, node }, Phase::Established { .. }) => {
                self.pass(FeedDown::Unroute { seq, node });
            }
            (Down::Revoke { realm, policy, uri }, Phase::Established { .. }) => {
                self.pass(FeedDown::Revoke { realm, policy, uri: uri.into() });
            }
            (Down::Retained { topics }, Phase::Established { .. }) => {
                self.pass(FeedDown::Retained(topics.into()));
            }
            (Down::Drain, Phase::Established { .. }) => self.drain(now),
            (Down::Snapshot { .. }, Phase::Established { .. }) => {}
            (_, _) => self.close(now, "the control plane sent a frame out of turn".to_owned()),
        }
    }

    fn pass(&mut self, down: FeedDown) {
        self.outputs.push_back(Output::Shards(down));
    }

    /// A packet came that is no frame.
    pub fn garbled(&mut self, now: Instant, reason: String) {
        self.close(now, reason);
    }

    /// True when [`Link::reported`] may be called.
    pub fn has_room(&self) -> bool {
        self.outbox.len() < OUTBOX_FRAMES_MAX
    }

    /// A shard reports. What concerns the control plane is dropped while there is none.
    pub fn reported(&mut self, up: FeedUp) {
        match up {
            FeedUp::Taken { shard, version } => self.shard_took(shard, version),
            FeedUp::Drained { shard } => {
                self.drained = self.drained.with(shard);
                self.finish_drain();
            }
            FeedUp::Stats { shard, cpu, metrics } => {
                if self.is_established() {
                    let (counters, gauges) = (metrics.counters.to_vec(), metrics.gauges.to_vec());
                    self.push(&Up::Stats { shard, cpu, counters, gauges });
                }
            }
            FeedUp::ClaimsReset { shard } => {
                if self.is_established() {
                    self.awaiting_reset = self.awaiting_reset.without(shard);
                    self.push(&Up::ClaimsReset { shard });
                }
            }
            FeedUp::Claims { shard, first_seq, claims } => {
                if self.passes_claims(shard) {
                    self.push_claims(shard, Some(first_seq), claims);
                }
            }
            FeedUp::ClaimsPart { shard, claims } => {
                if self.passes_claims(shard) {
                    self.push_claims(shard, None, claims);
                }
            }
            FeedUp::Retain { topic, ttl_ms } => {
                if self.is_established() {
                    self.push(&Up::Retain { topic, ttl_ms });
                }
            }
            FeedUp::ClaimsEnd { shard, seq } => {
                if self.passes_claims(shard) {
                    self.push(&Up::ClaimsEnd { shard, seq });
                }
            }
        }
    }

    /// Starts the drain, once.
    pub fn drain(&mut self, now: Instant) {
        if self.drain != Drain::No {
            return;
        }
        tracing::info!("draining: every session is told goodbye");
        self.drain = Drain::Until(now + self.identity.drain_timeout + DRAIN_GRACE);
        self.outputs.push_back(Output::Shards(FeedDown::Drain));
        if !matches!(self.phase, Phase::Away { .. }) {
            self.push(&Up::Draining);
        }
        self.finish_drain();
    }

    /// What [`Link::poll`] gives next.
    pub fn peek(&self) -> Option<&Output> {
        self.outputs.front()
    }

    /// The next thing to do.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// The frame to send next; call [`Link::frame_sent`] when the socket took it.
    pub fn frame(&self) -> Option<&[u8]> {
        self.outbox.front().map(Vec::as_slice)
    }

    pub fn frame_sent(&mut self) {
        self.outbox.pop_front();
    }

    /// When [`Link::timeout`] must be called, or a connection tried.
    pub fn deadline(&self) -> Instant {
        let at = match self.phase {
            Phase::Away { retry_at } => retry_at,
            Phase::Greeting { until } => until,
            Phase::Established { stats_at } => stats_at,
        };
        match self.drain {
            Drain::Until(until) => at.min(until),
            Drain::No | Drain::Over => at,
        }
    }

    /// Time has passed.
    pub fn timeout(&mut self, now: Instant) {
        match self.phase {
            Phase::Greeting { until } if until <= now => {
                self.close(now, "the control plane did not say welcome".to_owned());
            }
            Phase::Established { stats_at } if stats_at <= now => {
                self.phase = Phase::Established { stats_at: now + STATS_INTERVAL };
                self.outputs.push_back(Output::Shards(FeedDown::Stats));
            }
            _ => {}
        }
        if matches!(self.drain, Drain::Until(until) if until <= now) {
            self.drain = Drain::Over;
            self.outputs.push_back(Output::Exit { clean: false });
        }
    }

    fn is_established(&self) -> bool {
        matches!(self.phase, Phase::Established { .. })
    }

    fn welcomed(&mut self, now: Instant, pid: u32) {
        tracing::info!(pid, "linked to the control plane");
        self.phase = Phase::Established { stats_at: now + STATS_INTERVAL };
        self.awaiting_reset = ShardSet::first(self.identity.shards);
        self.taken_said = SnapshotVersion::default();
        self.outputs.push_back(Output::Shards(FeedDown::Resync));
        self.outputs.push_back(Output::Shards(FeedDown::Stats));
        self.say_taken();
    }

    /// A snapshot must be what its frame says and about this process: another's routes would lead nowhere.
    fn judge(&self, version: SnapshotVersion, snapshot: SharedSnapshot) -> Result<SharedSnapshot, String> {
        if snapshot.version() != version {
            return Err(format!(
                "the frame says version {}, the snapshot {}",
                version.0,
                snapshot.version().0
            ));
        }
        let epoch = snapshot.epoch();
        if epoch != self.identity.epoch {
            return Err(format!("built for data plane {:x}, this is {:x}", epoch.0, self.identity.epoch.0));
        }
        Ok(snapshot)
    }

    fn delta(&mut self, delta: Delta) {
        if delta.version <= self.offered {
            return;
        }
        if delta.follows != self.offered {
            let reason = format!("follows version {}, in use is {}", delta.follows.0, self.offered.0);
            return self.refuse(delta.version, reason);
        }
        self.offered = delta.version;
        self.outputs.push_back(Output::Shards(FeedDown::Delta(Arc::new(delta))));
    }

    fn refuse(&mut self, version: SnapshotVersion, mut reason: String) {
        let end = (0..=REASON_BYTES_MAX.min(reason.len())).rev().find(|&end| reason.is_char_boundary(end));
        reason.truncate(end.unwrap_or(0));
        tracing::warn!(version = version.0, reason, "refused a snapshot; the last good one stays in use");
        self.push(&Up::Refused { version, reason });
    }

    fn shard_took(&mut self, shard: ShardId, version: SnapshotVersion) {
        let Some(taken) = self.taken.get_mut(shard.index()) else { return };
        *taken = (*taken).max(version);
        self.say_taken();
    }

    fn say_taken(&mut self) {
        let version = self.taken.iter().copied().min().unwrap_or_default();
        if self.is_established() && version > self.taken_said {
            self.taken_said = version;
            self.push(&Up::Taken { version });
        }
    }

    fn passes_claims(&self, shard: ShardId) -> bool {
        self.is_established() && !self.awaiting_reset.contains(shard)
    }

    /// Sends the claims in as many frames as they need; one claim always fits (its URI is bounded).
    fn push_claims(&mut self, shard: ShardId, first_seq: Option<u64>, claims: Vec<Claim>) {
        let mut rest = vec![(first_seq, claims)];
        while let Some((first_seq, mut claims)) = rest.pop() {
            let count = claims.len();
            let up = match first_seq {
                Some(first_seq) => Up::Claims { shard, first_seq, claims },
                None => Up::ClaimsPart { shard, claims },
            };
            let frame = up.encode();
            if frame.len() <= LINK_FRAME_BYTES_MAX || count <= 1 {
                self.outbox.push_back(frame);
                continue;
            }
            claims = match up {
                Up::Claims { claims, .. } | Up::ClaimsPart { claims, .. } => claims,
                _ => unreachable!("made above"),
            };
            let half = claims.split_off(count / 2);
            rest.push((first_seq.map(|seq| seq + (count / 2) as u64), half));
            rest.push((first_seq, claims));
        }
    }

    fn push(&mut self, up: &Up) {
        self.outbox.push_back(up.encode());
    }

    fn finish_drain(&mut self) {
        let all = ShardSet::first(self.identity.shards);
        if matches!(self.drain, Drain::Until(_)) && all.minus(self.drained).is_empty() {
            self.drain = Drain::Over;
            self.outputs.push_back(Output::Exit { clean: true });
        }
    }

    fn close(&mut self, now: Instant, reason: String) {
        self.leave(now + REFUSED_INTERVAL);
        self.outputs.push_back(Output::Close { reason });
    }

    fn leave(&mut self, retry_at: Instant) {
        self.phase = Phase::Away { retry_at };
        self.outbox.clear();
    }
}

const _: () = assert!(REASON_BYTES_MAX < LINK_FRAME_BYTES_MAX / 2);
const _: () = assert!(
    (Counter::ALL.len() + Gauge::ALL.len()) * 8 < LINK_FRAME_BYTES_MAX / 2,
    "the metrics of a shard fit in one frame"
);
const _: () = assert!(common::ids::SHARDS_MAX <= u8::MAX as usize, "Hello counts shards in one byte");

#[cfg(test)]
mod tests {
    use super::*;
    use common::ids::{Match, RealmId, RouteKind};

    const DRAIN: Duration = Duration::from_secs(10);

    fn link(shards: usize, now: Instant) -> Link {
        let identity = Identity {
            epoch: BootEpoch(1),
            pid: 2,
            shards,
            version: "v".to_owned(),
            listeners: vec![],
            drain_timeout: DRAIN,
        };
        Link::new(identity, now)
    }

    fn established(shards: usize, now: Instant) -> Link {
        let mut link = link(shards, now);
        link.connected(now);
        link.received(now, Down::Welcome { protocol: LINK_PROTOCOL, pid: 1 });
        frames(&mut link);
        outputs(&mut link);
        link
    }

    fn frames(link: &mut Link) -> Vec<Up> {
        let mut ups = Vec::new();
        while let Some(frame) = link.frame() {
            ups.push(Up::decode(frame).unwrap());
            link.frame_sent();
        }
        ups
    }

    fn outputs(link: &mut Link) -> Vec<String> {
        std::iter::from_fn(|| link.poll().map(|output| format!("{output:?}"))).collect()
    }

    #[test]
    fn nothing_but_the_greeting_is_sent_before_welcome() {
        let now = Instant::now();
        let mut link = link(1, now);
        assert!(link.connect_due(now));
        link.connected(now);
        let metrics = Box::default();
        link.reported(FeedUp::Stats { shard: ShardId(0), cpu: 0, metrics });
        link.reported(FeedUp::ClaimsReset { shard: ShardId(0) });
        link.reported(FeedUp::Taken { shard: ShardId(0), version: SnapshotVersion(4) });
        let sent = frames(&mut link);
        assert!(matches!(sent[..], [Up::Hello { .. }, Up::Listening { .. }]), "{sent:?}");
        link.received(now, Down::Welcome { protocol: LINK_PROTOCOL, pid: 1 });
        assert_eq!(frames(&mut link), [Up::Taken { version: SnapshotVersion(4) }]);
        assert_eq!(outputs(&mut link), ["Shards(Resync)", "Shards(Stats)"]);
    }

    #[test]
    fn metrics_are_asked_for_once_a_second_while_linked() {
        let now = Instant::now();
        let mut link = established(1, now);
        link.timeout(now + STATS_INTERVAL - Duration::from_millis(1));
        assert!(outputs(&mut link).is_empty());
        assert_eq!(link.deadline(), now + STATS_INTERVAL);
        link.timeout(now + STATS_INTERVAL);
        assert_eq!(outputs(&mut link), ["Shards(Stats)"]);
        link.disconnected(now + STATS_INTERVAL);
        link.timeout(now + STATS_INTERVAL * 5);
        assert!(outputs(&mut link).is_empty());
    }

    #[test]
    fn connecting_is_tried_again_for_ever_at_the_interval() {
        let mut now = Instant::now();
        let mut link = link(1, now);
        for _ in 0..100 {
            assert!(link.connect_due(now));
            link.connect_failed(now);
            assert!(!link.connect_due(now));
            assert_eq!(link.deadline(), now + RETRY_INTERVAL);
            now += RETRY_INTERVAL;
        }
    }

    #[test]
    fn a_silent_control_plane_is_left() {
        let now = Instant::now();
        let mut link = link(1, now);
        link.connected(now);
        assert_eq!(link.deadline(), now + WELCOME_TIMEOUT);
        link.timeout(now + WELCOME_TIMEOUT);
        assert!(outputs(&mut link)[0].contains("did not say welcome"));
        assert!(link.connect_due(now + WELCOME_TIMEOUT + REFUSED_INTERVAL));
    }

    #[test]
    fn another_link_protocol_is_left() {
        let now = Instant::now();
        let mut link = link(1, now);
        link.connected(now);
        link.received(now, Down::Welcome { protocol: LINK_PROTOCOL + 1, pid: 1 });
        assert!(outputs(&mut link)[0].contains("link protocol"));
    }

    #[test]
    fn frames_out_of_turn_close_the_link() {
        let now = Instant::now();
        let mut early = link(1, now);
        early.connected(now);
        early.received(now, Down::Drain);
        assert!(outputs(&mut early)[0].contains("out of turn"));
        let mut twice = established(1, now);
        twice.received(now, Down::Welcome { protocol: LINK_PROTOCOL, pid: 1 });
        assert!(outputs(&mut twice)[0].contains("out of turn"));
    }

    #[test]
    fn claims_too_long_for_a_frame_are_split_and_keep_their_numbers() {
        let now = Instant::now();
        let mut link = established(1, now);
        let shard = ShardId(0);
        let uri = |n: usize| format!("{n:0>1000}");
        let claims: Vec<Claim> = (0..301)
            .map(|n| Claim::Unrouted {
                realm: RealmId(1),
                kind: RouteKind::Procedure,
                policy: Match::Exact,
                uri: uri(n),
            })
            .collect();
        link.reported(FeedUp::ClaimsReset { shard });
        link.reported(FeedUp::Claims { shard, first_seq: 10, claims: claims.clone() });
        let mut seen = Vec::new();
        let sent = frames(&mut link);
        assert!(sent.len() > 5);
        for up in &sent[1..] {
            assert!(up.encode().len() <= LINK_FRAME_BYTES_MAX);
            let Up::Claims { first_seq, claims, .. } = up else { panic!("{up:?}") };
            assert_eq!(*first_seq, 10 + seen.len() as u64);
            seen.extend(claims.iter().cloned());
        }
        assert_eq!(seen, claims);
    }

    #[test]
    fn taken_is_the_least_version_of_all_shards_and_said_once() {
        let now = Instant::now();
        let mut link = established(2, now);
        let took = |link: &mut Link, shard, version| {
            link.reported(FeedUp::Taken { shard: ShardId(shard), version: SnapshotVersion(version) });
            frames(link)
        };
        assert_eq!(took(&mut link, 0, 5), []);
        assert_eq!(took(&mut link, 1, 4), [Up::Taken { version: SnapshotVersion(4) }]);
        assert_eq!(took(&mut link, 1, 4), []);
        assert_eq!(took(&mut link, 1, 9), [Up::Taken { version: SnapshotVersion(5) }]);
        assert_eq!(took(&mut link, 7, 9), [], "a shard that is not there");
    }

    #[test]
    fn a_drain_ends_at_its_deadline_at_the_latest() {
        let now = Instant::now();
        let mut link = link(2, now);
        link.drain(now);
        link.drain(now + DRAIN);
        assert_eq!(outputs(&mut link), ["Shards(Drain)"], "told once");
        link.reported(FeedUp::Drained { shard: ShardId(0) });
        link.timeout(now + DRAIN);
        assert!(outputs(&mut link).is_empty());
        link.timeout(now + DRAIN + DRAIN_GRACE);
        assert_eq!(outputs(&mut link), ["Exit { clean: false }"]);
        link.reported(FeedUp::Drained { shard: ShardId(1) });
        assert!(outputs(&mut link).is_empty(), "it ends once");
    }

    #[test]
    fn a_control_plane_that_comes_during_a_drain_is_told() {
        let now = Instant::now();
        let mut link = link(1, now);
        link.drain(now);
        link.connected(now);
        let sent = frames(&mut link);
        assert!(matches!(sent[..], [Up::Hello { .. }, Up::Listening { .. }, Up::Draining]), "{sent:?}");
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let now = Instant::now();
        let mut link = established(1, now);
        link.snapshot(SnapshotVersion(1), Err("ä".repeat(REASON_BYTES_MAX)));
        let [Up::Refused { reason, .. }] = &frames(&mut link)[..] else { panic!("one frame") };
        assert_eq!(reason.len(), REASON_BYTES_MAX);
    }

    #[test]
    fn the_outbox_says_when_it_is_full() {
        let now = Instant::now();
        let mut link = established(1, now);
        for version in 1..=OUTBOX_FRAMES_MAX as u64 {
            assert!(link.has_room());
            link.snapshot(SnapshotVersion(version), Err(String::new()));
        }
        assert!(!link.has_room());
        link.frame_sent();
        assert!(link.has_room());
    }
}
