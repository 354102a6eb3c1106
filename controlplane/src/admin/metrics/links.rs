//! Metrics of the links between control planes, and of looking for other nodes. Labels are bounded by the channels, the
//! reasons and [`common::ids::NODES_MAX`].

use super::Text;
use crate::io::peers::{ChannelCounts, PeerCounts};
use crate::io::udp::ClusterView;
use crate::peers::{Channel, Refusal};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

pub fn render(text: &mut Text, view: &ClusterView) {
    peers(text, view);
    let counts = view.peers.counts();
    channels(text, counts);
    connections(text, counts);
    let found = &view.discovered;
    let name = "signalbox_discovery_lookups_total";
    text.counter(name, "Look-ups of other nodes.", found.lookups.load(Relaxed));
    let name = "signalbox_discovery_failures_total";
    text.counter(name, "Look-ups of other nodes that failed.", found.failures.load(Relaxed));
    let name = "signalbox_discovery_addresses";
    text.gauge(name, "Addresses that the last look-up found.", found.addresses.load(Relaxed));
}

fn peers(text: &mut Text, view: &ClusterView) {
    let links = view.peers.links();
    text.gauge("signalbox_cluster_links", "Nodes that this one is linked to.", links.len());
    let name = "signalbox_cluster_link_rtt_seconds";
    text.head(name, "gauge", "Smoothed round-trip time of a link.");
    for link in &links {
        if let Some(rtt) = link.rtt {
            text.sample(name, &format!("node=\"{}\"", link.node), rtt.as_secs_f64());
        }
    }
    let name = "signalbox_cluster_link_queued_bytes";
    text.head(name, "gauge", "Bytes queued to a node.");
    for link in &links {
        text.sample(name, &format!("node=\"{}\"", link.node), link.queued_bytes);
    }
}

/// A number of a channel: inward or outward.
type Number = fn(&ChannelCounts) -> &AtomicU64;

fn channels(text: &mut Text, counts: &PeerCounts) {
    let metrics: [(&str, &str, Number, Number); 3] = [
        ("frames_total", "Frames on links.", |c| &c.frames_in, |c| &c.frames_out),
        ("bytes_total", "Bytes of frames on links.", |c| &c.bytes_in, |c| &c.bytes_out),
        ("frames_full_total", "Frames not taken: a queue was full.", |c| &c.full_in, |c| &c.full_out),
    ];
    for (name, help, inward, outward) in metrics {
        let name = format!("signalbox_cluster_link_{name}");
        text.head(&name, "counter", help);
        for (channel, counts) in Channel::ALL.iter().zip(&counts.channels) {
            for (direction, number) in [("in", inward), ("out", outward)] {
                let labels = format!("channel=\"{}\",direction=\"{direction}\"", channel.name());
                text.sample(&name, &labels, number(counts).load(Relaxed));
            }
        }
    }
}

fn connections(text: &mut Text, counts: &PeerCounts) {
    let get = |number: &AtomicU64| number.load(Relaxed);
    text.counter("signalbox_cluster_link_dials_total", "Connections tried to nodes.", get(&counts.dialed));
    let name = "signalbox_cluster_link_unreachable_total";
    text.counter(name, "Connections to nodes that did not come about.", get(&counts.unreachable));
    let name = "signalbox_cluster_link_accepted_total";
    text.counter(name, "Connections accepted on cluster.address.", get(&counts.accepted));
    text.counter("signalbox_cluster_link_ups_total", "Times a link came up.", get(&counts.ups));
    text.counter("signalbox_cluster_link_downs_total", "Times a link went down.", get(&counts.downs));
    let name = "signalbox_cluster_link_refused_total";
    text.head(name, "counter", "Connections between nodes that were refused, by whom and why.");
    for (by, counters) in [("us", &counts.refused), ("peer", &counts.refused_by_peers)] {
        for (reason, counter) in Refusal::ALL.iter().zip(counters) {
            text.sample(name, &format!("by=\"{by}\",reason=\"{}\"", reason.name()), get(counter));
        }
    }
}
