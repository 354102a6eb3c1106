//! What other shards of the node say.

use super::Shard;
use super::answers::{Answer, Answering};
use super::dealer::{Calling, Came};
use super::delivery::Published;
use super::overlay::Source;
use super::realm::{Asker, Realm};
use super::resume::Carrier;
use super::retained::Asking;
use crate::mesh::{Batch, Caller, Item, Owner, PayloadSpan, RouteSpan, Span, Terms};
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
            Item::Publish { realm, topic, publication, extra, payload, event } => {
                let realm = self.realm_of(realm);
                let (from, encoded) = (payload.serializer, event.map(|event| batch.bytes(event)));
                let (extra, payload) = (batch.bytes(extra), batch.payload(payload));
                let published =
                    Published { topic: batch.text(topic), publication, extra, from, payload, encoded };
                self.publish_from_mesh(realm, &published);
            }
            Item::Retain { .. }
            | Item::RetainedAsk { .. }
            | Item::Retained { .. }
            | Item::RetainedSync { .. }
            | Item::RetainedEnd { .. } => {
                self.mesh_retained(from, batch, item);
            }
            Item::Call { realm, procedure, caller, terms, who, ppt, payload, forwarded } => {
                let realm = self.realm_of(realm);
                let who = batch.bytes(who);
                let calling = Calling { who, ..calling(batch, caller, terms, ppt, payload) };
                let came = if forwarded { Came::Forwarded } else { Came::Shard };
                let procedure = batch.text(procedure);
                let callee = self.callee(realm, procedure).map(|(callee, _)| callee);
                self.call_from_elsewhere(callee, realm, procedure, &calling, came);
            }
            Item::Invoke { registration, callee, procedure, caller, terms, who, ppt, payload } => {
                let (slot, session) = batch.callee(callee);
                let callee = Owner { shard: self.me, slot, session };
                let who = batch.bytes(who);
                let calling = Calling { who, ..calling(batch, caller, terms, ppt, payload) };
                self.invoke_member(callee, registration, batch.text(procedure), &calling);
            }
            Item::CallMore { caller, terms, ppt, payload } => {
                if let Some(route) = self.foreign.get(&caller).copied() {
                    self.pass_more(route, &calling(batch, caller, terms, ppt, payload));
                }
            }
            Item::Cancel { caller, mode, timeout } => {
                if let Some(route) = self.foreign.get(&caller).copied() {
                    self.cancel_route(route, caller, mode, timeout);
                }
            }
            Item::Result { caller, progress, ppt, payload } => {
                let kind = if progress { Answer::Progress } else { Answer::Result };
                self.answer_here(caller, &answering(batch, kind, ppt, payload));
            }
            Item::Error { caller, uri, ppt, payload } => {
                let kind = Answer::Error(batch.text(uri));
                self.answer_here(caller, &answering(batch, kind, ppt, payload));
            }
            Item::RouteAdd { route, seq, token } => {
                self.route_said(from, batch, route, true, seq);
                self.mesh(from).push(Item::RouteAck { token });
            }
            Item::RouteRemove { route, seq } => self.route_said(from, batch, route, false, seq),
            Item::RouteAck { token } => self.acknowledged(token, from),
            Item::RegisterAsk { route, token, owner, wish } => {
                let realm = self.realm_of(route.realm);
                let asker = Asker { shard: from, token };
                self.ask_home((realm, route.policy, batch.text(route.uri)), asker, owner, wish);
            }
            Item::RegisterAnswer { token, grant, first } => self.register_answer(token, grant, first),
            Item::Evict { callee, registration, grant, lost } => {
                self.evicted(callee, registration, grant, lost);
            }
            Item::Unregister { route, grant, token } => {
                let realm = self.realm_of(route.realm);
                if let Some(session) = self.free_home((realm, route.policy, batch.text(route.uri)), grant) {
                    let reply = self.mesh(from);
                    let uri = reply.put(batch.bytes(route.uri));
                    reply.push(Item::Emptied { route: RouteSpan { uri, ..route }, session });
                }
                if token != 0 {
                    self.mesh(from).push(Item::UnregisterAck { token });
                }
            }
            Item::Emptied { route, session } => {
                let realm = self.realm_of(route.realm);
                self.registration_emptied(realm, route.policy, batch.text(route.uri), session);
            }
            Item::UnregisterAck { token } => self.released(token),
            Item::Succeed { lane, attempt, token } => self.lane_succeeds(from, lane, attempt, token),
            Item::Succeeded { token, barriers } => self.succeeded(token, from, barriers),
            Item::Barrier { origin, token } => self.pass_barrier(origin, token),
            Item::BarrierPassed { token } => self.barrier_passed(token),
            Item::Ask { realm, token, query } => {
                self.asked_by_shard(from, realm, token, batch.bytes(query));
            }
            Item::ToSeat { port, op, bytes } => {
                self.seat_told(Carrier { shard: from, port }, op, batch.bytes(bytes));
            }
            Item::ToPort { port, op, bytes } => self.port_told(from, port, op, batch.bytes(bytes)),
            Item::Tell { token, part } => self.shard_told(from, token, batch.bytes(part)),
            Item::HttpAsk { .. } | Item::HttpTell { .. } => self.mesh_http(from, batch, item),
            Item::Memory { short } => {
                self.short_shards =
                    if short { self.short_shards.with(from) } else { self.short_shards.without(from) };
            }
        }
    }

    /// What concerns retained events.
    fn mesh_retained(&mut self, from: ShardId, batch: &Batch, item: &Item) {
        let published = |topic, publication, extra, payload: PayloadSpan| Published {
            topic: batch.text(topic),
            publication,
            extra: batch.bytes(extra),
            from: payload.serializer,
            payload: batch.payload(payload),
            encoded: None,
        };
        match *item {
            Item::Retain { realm, topic, publication, except, ttl_ms, extra, payload } => {
                let realm = self.realm_of(realm);
                self.retain_here(realm, &published(topic, publication, extra, payload), except, ttl_ms);
            }
            Item::RetainedAsk { owner, token, subscription, realm, policy, uri, authid, authrole } => {
                let what = (self.realm_of(realm), policy, batch.text(uri));
                let (authid, authrole) = (batch.text(authid), batch.text(authrole));
                let who = Asking { session: owner.session, authid, authrole };
                self.retained_asked((owner, token, subscription), what, &who);
            }
            Item::Retained { owner, token, subscription, topic, publication, extra, payload } => {
                let published = published(topic, publication, extra, payload);
                self.retained_came((owner, token, subscription), &published);
            }
            Item::RetainedSync { owner, token, subscription } => {
                self.mesh(from).push(Item::RetainedEnd { owner, token, subscription });
            }
            Item::RetainedEnd { owner, token, subscription } => {
                self.retained_ended((owner, token, subscription), from);
            }
            _ => {}
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

fn calling(batch: &Batch, caller: Caller, terms: Terms, ppt: Span, payload: PayloadSpan) -> Calling<'_> {
    let (key, ppt) = batch.attributes(terms, ppt);
    Calling { caller, terms, key, who: &[], ppt, from: payload.serializer, payload: batch.payload(payload) }
}

fn answering<'a>(batch: &'a Batch, kind: Answer<'a>, ppt: Span, payload: PayloadSpan) -> Answering<'a> {
    let (ppt, from) = (batch.bytes(ppt), payload.serializer);
    Answering { kind, ppt, from, payload: batch.payload(payload) }
}
