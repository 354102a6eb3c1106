//! What other shards of the node say.

use super::Shard;
use super::dealer::Answer;
use super::overlay::Source;
use super::realm::Realm;
use crate::mesh::{Batch, Item, RouteSpan};
use common::ids::{RealmId, ShardId, ShardSet};
use common::metrics::Counter;
use std::time::Instant;

impl Shard {
    /// A batch from another shard; it is emptied and may be kept for reuse.
    pub fn mesh_in(&mut self, now: Instant, from: ShardId, batch: Box<Batch>) {
        self.set_now(now);
        self.metrics.count(Counter::MeshBatches);
        self.fed = ShardSet::EMPTY;
        for item in batch.items() {
            self.mesh_item(from, &batch, item);
        }
        self.spare(batch);
        self.bury();
    }

    #[inline]
    fn mesh_item(&mut self, from: ShardId, batch: &Batch, item: &Item) {
        match *item {
            Item::Publish { realm, topic, publication, payload, event } => {
                let realm = self.realm_of(realm);
                let (topic, bytes) = (batch.text(topic), batch.payload(payload));
                let event = event.map(|event| batch.bytes(event));
                self.publish_from_mesh(realm, topic, publication, payload.serializer, bytes, event);
            }
            Item::Call { realm, procedure, caller, payload, forwarded } => {
                let realm = self.realm_of(realm);
                let (procedure, bytes) = (batch.text(procedure), batch.payload(payload));
                self.call_from_mesh(realm, procedure, caller, payload.serializer, bytes, forwarded);
            }
            Item::Result { caller, payload } => {
                self.answer_here(caller, Answer::Result, payload.serializer, batch.payload(payload));
            }
            Item::Error { caller, uri, payload } => {
                let answer = Answer::Error(batch.text(uri));
                self.answer_here(caller, answer, payload.serializer, batch.payload(payload));
            }
            Item::RouteAdd { route, seq, token } => {
                self.route_said(from, batch, route, true, seq);
                self.mesh(from).push(Item::RouteAck { token });
            }
            Item::RouteRemove { route, seq } => self.route_said(from, batch, route, false, seq),
            Item::RouteAck { token } => self.acknowledged(token, from),
            Item::RegisterAsk { route, token } => {
                let realm = self.realm_of(route.realm);
                let granted = self.claim_home(realm, route.policy, batch.text(route.uri), from);
                self.mesh(from).push(Item::RegisterAnswer { token, granted });
            }
            Item::RegisterAnswer { token, granted } => self.register_answer(token, granted),
            Item::Unregister { route, token } => {
                let realm = self.realm_of(route.realm);
                self.free_home(realm, route.policy, batch.text(route.uri), from);
                if token != 0 {
                    self.mesh(from).push(Item::UnregisterAck { token });
                }
            }
            Item::UnregisterAck { token } => self.released(token),
            Item::Succeed { lane, attempt, token } => self.lane_succeeds(from, lane, attempt, token),
            Item::Succeeded { token, barriers } => self.succeeded(token, from, barriers),
            Item::Barrier { origin, token } => self.pass_barrier(origin, token),
            Item::BarrierPassed { token } => self.barrier_passed(token),
            Item::Memory { short } => {
                self.short_shards =
                    if short { self.short_shards.with(from) } else { self.short_shards.without(from) };
            }
        }
    }

    fn route_said(&mut self, from: ShardId, batch: &Batch, route: RouteSpan, wanted: bool, seq: u64) {
        let (index, uri) = (self.realm_of(route.realm), batch.text(route.uri));
        let realm = &mut self.realms[index as usize];
        realm.overlay.say(route.kind, route.policy, uri, Source::Shard(from), wanted, seq);
        if !wanted && realm.overlay.is_thick() {
            let (id, folded) = (realm.id, &self.folded);
            realm.overlay.thin_out(|kind, policy, uri| folded.exactly(id, kind, policy, uri).shards);
        }
        self.route_changed(index, route.kind, route.policy, uri);
    }

    /// The index of a realm, which another shard may know before the snapshot that opens it has come here.
    pub(super) fn realm_of(&mut self, id: RealmId) -> u32 {
        if let Some(index) = self.realm_index.get(&id) {
            return *index;
        }
        let index = self.realms.len() as u32;
        self.realms.push(Realm::new(id));
        self.realm_index.insert(id, index);
        index
    }
}
