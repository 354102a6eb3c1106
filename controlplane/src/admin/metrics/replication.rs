//! Metrics of what nodes share: exchanges, broadcast, claims. Labels are bounded by the reasons.

use super::Text;
use crate::cluster::{Abort, BroadcastStatus, ClusterStatus, ExchangeStatus, Readiness};

pub fn render(text: &mut Text, status: &ClusterStatus) {
    let joined = u8::from(!matches!(status.readiness, Readiness::Joining { .. }));
    text.gauge("signalbox_cluster_joined", "1 once the state of the other nodes was taken over.", joined);
    exchanges(text, &status.exchange);
    broadcasts(text, &status.broadcast);
    let claims = &status.claims;
    let name = "signalbox_claims_remote_routes";
    text.gauge(name, "Routes of other nodes that are in use.", claims.remote_routes);
    text.counter("signalbox_claims_changes_total", "Changes taken of other nodes' routes.", claims.changes);
    text.counter("signalbox_claims_messages_sent_total", "Messages of routes sent.", claims.messages_sent);
    text.counter("signalbox_claims_bytes_sent_total", "Bytes of routes sent.", claims.bytes_sent);
    text.counter("signalbox_claims_pulls_total", "Times missing routes were asked for.", claims.pulls);
    let name = "signalbox_claims_revoked_total";
    text.counter(name, "Registrations here that lost to another node's.", claims.revoked);
    text.gauge("signalbox_objects", "Records that count in comparisons.", status.objects.records);
}

fn exchanges(text: &mut Text, status: &ExchangeStatus) {
    let name = "signalbox_exchange_queue";
    text.gauge(name, "Nodes that are owed an exchange before its turn.", status.queued);
    text.gauge("signalbox_exchange_inbound", "Exchanges of other nodes under way.", status.inbound);
    text.counter("signalbox_exchanges_begun_total", "Exchanges begun.", status.begun);
    text.counter("signalbox_exchanges_total", "Exchanges that ended.", status.ended);
    let name = "signalbox_exchanges_aborted_total";
    text.head(name, "counter", "Exchanges that broke off, by reason.");
    for (reason, count) in Abort::ALL.iter().zip(status.aborted) {
        text.sample(name, &format!("reason=\"{}\"", reason.name()), count);
    }
    let name = "signalbox_exchanges_divergent_total";
    text.counter(name, "Exchanges that found a difference.", status.divergent);
    let name = "signalbox_exchange_repairs_total";
    text.counter(name, "Records changed here by exchanges.", status.repaired);
    let name = "signalbox_exchange_records_sent_total";
    text.counter(name, "Records sent in exchanges begun here.", status.sent);
    let name = "signalbox_exchange_records_refused_total";
    text.counter(name, "Records that one side did not take.", status.refused);
    let name = "signalbox_exchange_bytes_total";
    text.head(name, "counter", "Bytes of exchanges.");
    text.sample(name, "direction=\"in\"", status.bytes_in);
    text.sample(name, "direction=\"out\"", status.bytes_out);
    let name = "signalbox_exchange_messages_held_total";
    text.counter(name, "Messages of exchanges that waited because of aae.exchange_rate.", status.held);
    let name = "signalbox_exchange_too_busy_total";
    text.counter(name, "Questions not answered because they would have waited too long.", status.too_busy);
}

fn broadcasts(text: &mut Text, status: &BroadcastStatus) {
    let counts = &status.counts;
    text.gauge("signalbox_broadcast_eager_peers", "Nodes that records are pushed to.", status.eager);
    let name = "signalbox_broadcast_missing";
    text.gauge(name, "Records announced to this node that have not come.", status.missing);
    text.counter("signalbox_broadcast_sent_total", "Records of this node.", counts.sent);
    text.counter("signalbox_broadcast_pushed_total", "Copies of records sent.", counts.pushed);
    text.counter("signalbox_broadcast_announced_total", "Records announced.", counts.announced);
    text.counter("signalbox_broadcast_delivered_total", "Records that came.", counts.delivered);
    text.counter("signalbox_broadcast_duplicates_total", "Records that came again.", counts.duplicates);
    text.counter("signalbox_broadcast_grafted_total", "Records asked for.", counts.grafted);
    text.counter("signalbox_broadcast_pruned_total", "Edges made lazy.", counts.pruned);
    let name = "signalbox_broadcast_owed_total";
    text.counter(name, "Times something was lost and an exchange was owed.", counts.owed);
    text.counter("signalbox_broadcast_merged_total", "Records that changed something.", status.merged);
    text.counter("signalbox_broadcast_refused_total", "Records that the store refused.", status.refused);
    let name = "signalbox_broadcast_dropped_total";
    text.counter(name, "Records dropped because the store had enough to do.", status.dropped);
}
