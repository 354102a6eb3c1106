//! Registrations: who may hold one, and when the node's shards know it.
//!
//! ```text
//! REGISTER ─▶ home shard of the URI (one owner at a time) ─▶ granted ─▶ every shard routes here ─▶ REGISTERED
//! ```

use super::Shard;
use super::options::{self, RegisterOptions};
use super::realm::{Procedure, Spread, Waiting};
use super::routes::is_held_elsewhere;
use crate::mesh::Item;
use common::ids::{Match, RouteKind, ShardId, route_id};
use common::metrics::Counter;
use common::uri::{is_reserved, is_valid_pattern, wamp};
use common::wire::Dict;
use common::wire::encode;
use common::wire::message::code;

/// What a token stands for.
#[derive(Debug)]
pub(super) enum Awaited {
    /// Acknowledgements of a topic's route.
    Topic(u32),
    /// Acknowledgements of a procedure's route.
    Procedure(u32),
    /// The home shard's word on a REGISTER.
    Grant(Wanted),
    /// The home shard's word that a registration is given up.
    Release(Waiting),
}

/// A registration that is asked for.
#[derive(Debug)]
pub(super) struct Wanted {
    waiting: Waiting,
    realm: u32,
    policy: Match,
    uri: Box<str>,
    options: RegisterOptions,
}

impl Shard {
    /// REGISTER (WAMP, basic profile, "Registering and Unregistering").
    pub(super) fn register(&mut self, slot: u32, request: u64, options: &Dict<'_>, uri: &str) {
        let session = self.session(slot);
        let (realm, strict) = (session.realm, session.strict);
        let held = session.registrations.len() + session.pending as usize;
        let policy = options::policy(options, "REGISTER", strict);
        let (policy, options) =
            match policy.and_then(|policy| Ok((policy, RegisterOptions::read(options, strict)?))) {
                Ok(read) => read,
                Err(bad) => return self.bad_option(slot, &bad),
            };
        let settings = self.realms[realm as usize].settings.as_ref();
        let rule = settings.map_or_else(Default::default, |settings| settings.uri_rule);
        if is_reserved(uri) || !is_valid_pattern(uri, policy, rule) {
            let text = format!("{:?} cannot be registered as {}", super::login::shorten(uri), policy.name());
            return self.error(slot, code::REGISTER, request, wamp::INVALID_URI, &text);
        }
        if held >= self.config.limits.registrations_max as usize {
            self.metrics.count(Counter::LimitReached);
            let text = format!("a session may hold {} registrations", self.config.limits.registrations_max);
            return self.error(slot, code::REGISTER, request, wamp::UNAVAILABLE, &text);
        }
        self.session(slot).pending += 1;
        let waiting = Waiting { owner: self.owner(slot), request };
        let wanted = Wanted { waiting, realm, policy, uri: uri.into(), options };
        let home = self.home_of(realm, policy, uri);
        if home == self.me {
            let granted = self.claim_home(realm, policy, uri, home);
            self.granted(wanted, granted);
        } else {
            let token = self.token();
            self.awaited.insert(token, Awaited::Grant(wanted));
            let realm = self.realms[realm as usize].id;
            let batch = self.mesh(home);
            let route = batch.put_route(realm, RouteKind::Procedure, policy, uri);
            batch.push(Item::RegisterAsk { route, token });
        }
    }

    /// The shard that decides who holds a registration.
    fn home_of(&self, realm: u32, policy: Match, uri: &str) -> ShardId {
        let realm = self.realms[realm as usize].id;
        let id = route_id(realm, RouteKind::Procedure, policy, uri);
        ShardId((id % self.config.shards as u64) as u8)
    }

    /// As the home shard: gives a registration to `shard` unless somebody has it, here or on another node.
    pub(super) fn claim_home(&mut self, realm: u32, policy: Match, uri: &str, shard: ShardId) -> bool {
        let state = &mut self.realms[realm as usize];
        let free =
            state.home.get(policy, uri).is_none() && !is_held_elsewhere(state, &self.folded, policy, uri);
        if free {
            state.home.insert(policy, uri, shard);
        }
        free
    }

    /// The home shard has decided about a REGISTER of this shard.
    pub(super) fn granted(&mut self, wanted: Wanted, granted: bool) {
        let Wanted { waiting, realm, policy, uri, options } = wanted;
        let slot = waiting.owner.slot;
        let Some(session) = self.session_of(waiting.owner) else {
            if granted {
                self.release(realm, policy, &uri, 0);
            }
            return;
        };
        if !granted {
            session.pending -= 1;
            let text = format!("procedure {uri} is already registered");
            return self.error(slot, code::REGISTER, waiting.request, wamp::PROCEDURE_ALREADY_EXISTS, &text);
        }
        let registration = route_id(self.realms[realm as usize].id, RouteKind::Procedure, policy, &uri);
        if self.session(slot).registrations.contains_key(&registration) {
            self.metrics.count(Counter::IdCollisions);
            self.session(slot).pending -= 1;
            self.release(realm, policy, &uri, 0);
            let text = "its registration id belongs to another registration of this session";
            return self.error(slot, code::REGISTER, waiting.request, wamp::UNAVAILABLE, text);
        }
        let spread = Spread { missing: self.others(), token: self.token(), waiting: vec![waiting] };
        let token = spread.token;
        let procedure = Procedure {
            id: registration,
            realm,
            policy,
            uri: uri.clone(),
            callee: slot,
            options,
            spread,
            held: Vec::new(),
        };
        let index = self.procedures.insert(procedure) as u32;
        self.session(slot).registrations.insert(registration, index);
        let state = &mut self.realms[realm as usize];
        state.procedures.insert(policy, &uri, index);
        state.version += 1;
        self.spread_route(realm, RouteKind::Procedure, policy, &uri, token, Awaited::Procedure(index));
        self.registered_if_known(index);
    }

    /// Answers the REGISTER once every shard routes to the procedure, then lets the calls go that came before.
    fn registered_if_known(&mut self, index: u32) {
        let procedure = &mut self.procedures[index as usize];
        if !procedure.spread.missing.is_empty() {
            return;
        }
        let (registration, slot) = (procedure.id, procedure.callee);
        let waiting = std::mem::take(&mut procedure.spread.waiting);
        let held = std::mem::take(&mut procedure.held);
        for waiting in waiting {
            self.session(slot).pending -= 1;
            self.reply(slot, |serializer, out| {
                encode::ids(serializer, out, code::REGISTERED, &[waiting.request, registration]);
            });
        }
        self.release_held(index, &held);
    }

    /// Another shard routes to what `token` stands for.
    pub(super) fn acknowledged(&mut self, token: u64, from: ShardId) {
        match self.awaited.get(&token) {
            Some(Awaited::Topic(topic)) => {
                let topic = *topic;
                let spread = &mut self.topics[topic as usize].spread;
                spread.missing = spread.missing.without(from);
                if spread.missing.is_empty() {
                    let waiting = std::mem::take(&mut spread.waiting);
                    self.awaited.remove(&token);
                    for waiting in waiting {
                        if let Some(session) = self.session_of(waiting.owner) {
                            session.pending -= 1;
                        }
                        self.subscribed(topic, waiting);
                    }
                    self.drop_topic_if_unused(topic);
                }
            }
            Some(Awaited::Procedure(procedure)) => {
                let procedure = *procedure;
                let spread = &mut self.procedures[procedure as usize].spread;
                spread.missing = spread.missing.without(from);
                if spread.missing.is_empty() {
                    self.awaited.remove(&token);
                    self.registered_if_known(procedure);
                }
            }
            Some(Awaited::Grant(_) | Awaited::Release(_)) | None => {}
        }
    }

    /// UNREGISTER.
    pub(super) fn unregister(&mut self, slot: u32, request: u64, registration: u64) {
        let held = self.session(slot).registrations.get(&registration).copied();
        // A registration that is not yet acknowledged is not the client's to give up.
        let known = held.filter(|index| self.procedures[*index as usize].spread.missing.is_empty());
        let Some(index) = known else {
            let text = format!("this session holds no registration {registration}");
            return self.error(slot, code::UNREGISTER, request, wamp::NO_SUCH_REGISTRATION, &text);
        };
        self.session(slot).registrations.remove(&registration);
        let waiting = Waiting { owner: self.owner(slot), request };
        let token = self.token();
        self.awaited.insert(token, Awaited::Release(waiting));
        self.remove_procedure(index, token);
    }

    /// Gives a registration up: here, on every shard, and at its home, which answers when `token` is not 0.
    pub(super) fn remove_procedure(&mut self, index: u32, token: u64) {
        let procedure = self.procedures.remove(index as usize);
        self.awaited.remove(&procedure.spread.token);
        let realm = &mut self.realms[procedure.realm as usize];
        realm.procedures.remove(procedure.policy, &procedure.uri);
        realm.version += 1;
        self.fail_held(procedure.held);
        self.unspread_route(procedure.realm, RouteKind::Procedure, procedure.policy, &procedure.uri);
        self.release(procedure.realm, procedure.policy, &procedure.uri, token);
    }

    /// Tells the home shard that a registration is free.
    fn release(&mut self, realm: u32, policy: Match, uri: &str, token: u64) {
        let home = self.home_of(realm, policy, uri);
        if home == self.me {
            self.free_home(realm, policy, uri, home);
            return self.released(token);
        }
        let realm = self.realms[realm as usize].id;
        let batch = self.mesh(home);
        let route = batch.put_route(realm, RouteKind::Procedure, policy, uri);
        batch.push(Item::Unregister { route, token });
    }

    /// As the home shard: `shard` gives a registration up.
    pub(super) fn free_home(&mut self, realm: u32, policy: Match, uri: &str, shard: ShardId) {
        let home = &mut self.realms[realm as usize].home;
        if home.get(policy, uri) == Some(&shard) {
            home.remove(policy, uri);
        }
    }

    /// The home shard knows that a registration was given up; the UNREGISTER is answered.
    pub(super) fn released(&mut self, token: u64) {
        let Some(Awaited::Release(waiting)) = self.awaited.remove(&token) else { return };
        if self.session_of(waiting.owner).is_some() {
            self.reply(waiting.owner.slot, |serializer, out| {
                encode::ids(serializer, out, code::UNREGISTERED, &[waiting.request]);
            });
        }
    }

    /// The home shard's answer to `RegisterAsk`.
    pub(super) fn register_answer(&mut self, token: u64, granted: bool) {
        if let Some(Awaited::Grant(wanted)) = self.awaited.remove(&token) {
            self.granted(wanted, granted);
        }
    }
}
