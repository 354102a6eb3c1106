//! `/metrics`: the Prometheus text format, version 0.0.4.

mod links;
mod replication;

use super::Facts;
use crate::io::driver::View;
use crate::io::proc;
use crate::io::udp::ClusterView;
use crate::node::Stats;
use crate::store::conflict::Rule;
use crate::store::{COMMIT_MS, Store};
use crate::swim::{DropReason, State};
use common::metrics::{Counter, Gauge};
use std::fmt::{Display, Write};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

pub fn render(view: &View<'_>, store: &Store, facts: &Facts, cluster: Option<&ClusterView>) -> String {
    let mut text = Text::default();
    process(&mut text, view, facts);
    link(&mut text, view);
    realms_and_claims(&mut text, view);
    snapshots(&mut text, view);
    stored(&mut text, store);
    if let Some(members) = cluster {
        membership(&mut text, members);
        links::render(&mut text, members);
        replication::render(&mut text, &view.cluster());
    }
    if let Some(data) = view.node.data_plane() {
        let names = Counter::ALL.iter().enumerate();
        shards(
            &mut text,
            "counter",
            names.map(|(slot, name)| (slot, name.describe())),
            &data.stats,
            |stats| &stats.counters,
        );
        let names = Gauge::ALL.iter().enumerate();
        shards(&mut text, "gauge", names.map(|(slot, name)| (slot, name.describe())), &data.stats, |stats| {
            &stats.gauges
        });
    }
    text.0
}

fn process(text: &mut Text, view: &View<'_>, facts: &Facts) {
    text.gauge("signalbox_ready", "1 while clients are served.", u8::from(view.plane.ready().is_ok()));
    let uptime = view.now.saturating_duration_since(facts.started).as_secs_f64();
    text.gauge("signalbox_uptime_seconds", "Seconds since the control plane started.", uptime);
    let pids = [("control", Some(facts.pid)), ("data", view.node.data_plane().map(|data| data.pid))];
    text.head("signalbox_process_cpu_seconds_total", "counter", "CPU time of a process, user and system.");
    for (plane, pid) in pids {
        if let Some(seconds) = pid.and_then(proc::cpu_seconds) {
            text.sample("signalbox_process_cpu_seconds_total", &format!("plane=\"{plane}\""), seconds);
        }
    }
    text.head("signalbox_process_memory_bytes", "gauge", "Resident memory of a process.");
    for (plane, pid) in pids {
        if let Some(bytes) = pid.and_then(proc::memory_bytes) {
            text.sample("signalbox_process_memory_bytes", &format!("plane=\"{plane}\""), bytes);
        }
    }
}

fn link(text: &mut Text, view: &View<'_>) {
    let up = u8::from(view.node.data_plane().is_some());
    text.gauge("signalbox_link_up", "1 while a data plane is linked.", up);
    let counts = view.node.counts();
    text.counter("signalbox_link_frames_total", "Frames received from data planes.", counts.frames);
    text.counter("signalbox_links_refused_total", "Data planes refused.", counts.links_refused);
    text.counter(
        "signalbox_link_violations_total",
        "Links closed because of a bad frame.",
        counts.violations,
    );
}

fn realms_and_claims(text: &mut Text, view: &View<'_>) {
    let registry = view.node.registry();
    let counts = registry.counts();
    text.gauge("signalbox_realms", "Realms of the node.", view.node.catalog().len());
    text.gauge("signalbox_claimed_sessions", "Sessions the data plane has claimed.", registry.sessions_len());
    text.gauge("signalbox_claimed_routes", "Routes the data plane has claimed.", registry.routes_len());
    let settled = u8::from(registry.is_settled());
    text.gauge("signalbox_claims_settled", "1 while no claims are known to be missing.", settled);
    text.counter("signalbox_claims_received_total", "Claims received.", counts.claims);
    text.counter("signalbox_claims_gaps_total", "Times claims were found missing.", counts.gaps);
    text.counter("signalbox_claims_sets_total", "Whole claim sets received.", counts.resyncs);
}

fn snapshots(text: &mut Text, view: &View<'_>) {
    let publisher = view.node.publisher();
    let counts = publisher.counts();
    let name = "signalbox_snapshot_published_version";
    text.gauge(name, "Version of the last snapshot or delta published.", publisher.last().0);
    let name = "signalbox_snapshots_published_total";
    text.head(name, "counter", "Snapshots and deltas published.");
    text.sample(name, "kind=\"full\"", counts.full);
    text.sample(name, "kind=\"delta\"", counts.deltas);
    text.counter("signalbox_snapshots_refused_total", "Snapshots and deltas not taken.", counts.refused);
    let builds = view.builds;
    text.counter("signalbox_snapshots_failed_total", "Snapshots that could not be built.", builds.failed);
    let name = "signalbox_snapshot_build_seconds_total";
    text.counter(name, "Time spent building snapshots.", builds.time_sum.as_secs_f64());
    let name = "signalbox_snapshot_build_seconds";
    text.gauge(name, "Time the last snapshot took to build.", builds.time_last.as_secs_f64());
    text.gauge("signalbox_snapshot_bytes", "Size of the last full snapshot.", builds.bytes_last);
}

fn stored(text: &mut Text, store: &Store) {
    let stats = store.stats();
    let get = |number: &AtomicU64| number.load(Relaxed);
    let poisoned = u8::from(stats.poisoned.load(Relaxed));
    text.gauge("signalbox_store_poisoned", "1 after a commit failed: no write is taken.", poisoned);
    text.counter("signalbox_store_operations_total", "Changes stored.", get(&stats.operations));
    text.counter("signalbox_store_refused_total", "Changes refused by the store.", get(&stats.refused));
    text.counter("signalbox_store_corrupt_records_total", "Damaged records found.", get(&stats.corrupt));
    let name = "signalbox_store_sum_differences_total";
    let help = "Hash-tree buckets that disagreed with their records.";
    text.counter(name, help, get(&stats.sum_differences));
    let name = "signalbox_store_buckets_scrubbed_total";
    text.counter(name, "Hash-tree buckets compared with their records.", get(&stats.scrubbed));
    let name = "signalbox_store_conflicts_total";
    text.head(name, "counter", "Values found that were written without knowledge of each other, by rule.");
    for (rule, count) in Rule::ALL.iter().zip(&stats.conflicts) {
        text.sample(name, &format!("rule=\"{}\"", rule.name()), get(count));
    }
    let name = "signalbox_store_competing_objects";
    text.gauge(name, "Objects with values that compete and are not settled yet.", get(&stats.siblings));
    let name = "signalbox_store_future_stamps_total";
    text.counter(name, "Objects refused because another node's clock is ahead.", get(&stats.future));
    let name = "signalbox_store_reused_dots_total";
    text.counter(
        name,
        "Writes of one node under one number that differ: a store was used twice.",
        get(&stats.clashes),
    );
    text.gauge("signalbox_store_deletions", "Deletions that are remembered.", get(&stats.graves));
    text.counter("signalbox_store_deletions_forgotten_total", "Deletions forgotten.", get(&stats.purged));
    let name = "signalbox_store_resets_total";
    text.counter(name, "Times this node was away for too long and began anew.", get(&stats.resets));
    text.gauge("signalbox_store_map_bytes", "Address space of the store.", get(&stats.map_bytes));
    text.gauge("signalbox_store_used_bytes", "Bytes of the store in use.", get(&stats.used_bytes));
    let name = "signalbox_store_commit_seconds";
    text.head(name, "histogram", "Time of a commit, flush included.");
    let mut total = 0;
    for (ms, bucket) in COMMIT_MS.iter().zip(&stats.commit_buckets) {
        total += get(bucket);
        let bound = *ms as f64 / 1_000.0;
        text.sample(&format!("{name}_bucket"), &format!("le=\"{bound}\""), total);
    }
    let commits = get(&stats.commits);
    text.sample(&format!("{name}_bucket"), "le=\"+Inf\"", commits);
    text.sample(&format!("{name}_sum"), "", get(&stats.commit_us_sum) as f64 / 1e6);
    text.sample(&format!("{name}_count"), "", commits);
}

fn membership(text: &mut Text, view: &ClusterView) {
    let name = "signalbox_cluster_members";
    text.head(name, "gauge", "Other nodes by state.");
    for state in State::ALL {
        let count = view.members.iter().filter(|member| member.state == state).count();
        text.sample(name, &format!("state=\"{}\"", state.name()), count);
    }
    let name = "signalbox_cluster_health_score";
    text.gauge(name, "0 when this node probes well, up to 7 when it may be slow itself.", view.health_score);
    let counts = &view.counts;
    text.counter("signalbox_cluster_packets_received_total", "Membership packets received.", counts.received);
    text.counter("signalbox_cluster_packets_sent_total", "Membership packets sent.", counts.sent);
    let name = "signalbox_cluster_packets_dropped_total";
    text.head(name, "counter", "Membership packets dropped, by reason.");
    for (reason, count) in DropReason::ALL.iter().zip(counts.dropped) {
        text.sample(name, &format!("reason=\"{}\"", reason.name()), count);
    }
    text.counter("signalbox_cluster_probes_failed_total", "Probes that got no answer.", counts.probes_failed);
    text.counter(
        "signalbox_cluster_suspicions_refuted_total",
        "Times others suspected this node.",
        counts.refuted,
    );
    let name = "signalbox_cluster_fallback_packets_total";
    text.counter(name, "Membership packets for links, because UDP brought no answer.", counts.fallbacks);
    text.counter("signalbox_cluster_stalls_total", "Times this process stood still.", counts.stalls);
    text.counter("signalbox_cluster_rejoins_total", "Times others took this node for dead.", counts.rejoins);
}

/// One line a shard for each of `names`: (slot, (metric, extra labels, help)).
fn shards(
    text: &mut Text,
    kind: &str,
    names: impl Iterator<Item = (usize, (&'static str, &'static str, &'static str))>,
    stats: &[Option<Stats>],
    values: impl Fn(&Stats) -> &Vec<u64>,
) {
    let mut last = "";
    for (slot, (name, labels, help)) in names {
        // The same metric with other labels comes right after.
        if name != last {
            text.head(name, kind, help);
            last = name;
        }
        for (shard, stats) in stats.iter().enumerate() {
            let Some(stats) = stats else { continue };
            let Some(value) = values(stats).get(slot) else { continue };
            let comma = if labels.is_empty() { "" } else { "," };
            let labels = format!("shard=\"{shard}\",cpu=\"{}\"{comma}{labels}", stats.cpu);
            text.sample(name, &labels, *value);
        }
    }
}

/// A text that grows. Writing to a string cannot fail.
#[derive(Default)]
struct Text(String);

impl Text {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &str, value: impl Display) {
        let _ = match labels {
            "" => writeln!(self.0, "{name} {value}"),
            labels => writeln!(self.0, "{name}{{{labels}}} {value}"),
        };
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.head(name, "gauge", help);
        self.sample(name, "", value);
    }

    fn counter(&mut self, name: &str, help: &str, value: impl Display) {
        self.head(name, "counter", help);
        self.sample(name, "", value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn shards_are_told_apart_and_heads_come_once() {
        let mut text = Text::default();
        let stats = |cpu, first| Some(Stats { cpu, counters: vec![first, 7], gauges: vec![] });
        let names = [
            (0, ("a_total", "", "Help.")),
            (1, ("b_total", "reason=\"x\"", "Other.")),
            (2, ("b_total", "reason=\"y\"", "Other.")),
        ];
        shards(&mut text, "counter", names.into_iter(), &[stats(4, 5), None, stats(6, 9)], |s| &s.counters);
        let expected = "# HELP a_total Help.\n# TYPE a_total counter\n\
            a_total{shard=\"0\",cpu=\"4\"} 5\na_total{shard=\"2\",cpu=\"6\"} 9\n\
            # HELP b_total Other.\n# TYPE b_total counter\n\
            b_total{shard=\"0\",cpu=\"4\",reason=\"x\"} 7\nb_total{shard=\"2\",cpu=\"6\",reason=\"x\"} 7\n";
        assert_eq!(text.0, expected);
    }

    #[test]
    fn metrics_of_one_name_stand_together() {
        let names = Counter::ALL.iter().map(|name| name.describe().0);
        let mut seen = BTreeSet::new();
        let mut last = "";
        for name in names.chain(Gauge::ALL.iter().map(|name| name.describe().0)) {
            assert!(name == last || seen.insert(name), "{name}");
            last = name;
        }
    }
}
