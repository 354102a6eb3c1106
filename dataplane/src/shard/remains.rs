//! What a shard holds for sessions and calls. Nothing of it stays when the last session has left and nothing is under way.

use super::Shard;

impl Shard {
    /// The tables and sums that hold something for a session or a call, and how much. With no session left in the cluster,
    /// what this names has leaked.
    pub fn remains(&self) -> Vec<(&'static str, usize)> {
        let of_realms = |count: fn(&super::Realm) -> usize| self.realms.iter().map(count).sum();
        let mut all = vec![
            ("sessions", self.sessions as usize),
            ("logins", self.logins as usize),
            ("sessions of realms", of_realms(|realm| realm.sessions as usize)),
            ("sessions that are to end", self.endings.len()),
            ("questions that are looked into", self.searches.len()),
            ("subscriptions", self.subscriptions as usize),
            ("topics", self.topics.len() - self.histories.len()),
            ("topics of realms", of_realms(|realm| realm.topics.len() - realm.kept.len())),
            ("procedures", self.procedures.len()),
            ("procedures of realms", of_realms(|realm| realm.procedures.len())),
            ("registrations given", of_realms(|realm| realm.home.len())),
            ("groups", self.groups.len()),
            ("calls", self.calls as usize),
            ("calls that lost one side", self.orphans.len()),
            ("calls of other shards", self.foreign.len()),
            ("calls of groups", self.shared.len()),
            ("bytes of calls of groups", self.shared.kept_bytes()),
            ("bytes of calls that wait for a callee", self.held_bytes),
            ("deadlines of calls", self.deadlines.len()),
            ("requests that wait for other shards", self.awaited.len()),
            ("bytes queued", self.queued_bytes),
            ("bytes of incomplete messages", self.partial_bytes),
        ];
        all.extend(self.relay.remains());
        all.extend(self.resumption.remains());
        all.retain(|(_, count)| *count > 0);
        all
    }

    /// A drained shard says what it could not give back.
    pub(super) fn say_remains(&self) {
        let remains = self.remains();
        if !remains.is_empty() {
            tracing::warn!(shard = self.me.0, ?remains, "the shard is drained and still holds something");
        }
    }
}
