//! Registrations: who may hold one, and when the node's shards know it.
//!
//! ```text
//! REGISTER ─▶ home shard of the URI ─▶ granted ─▶ every shard routes here, or to the home ─▶ REGISTERED
//! ```
//! Calls to a registration of one callee go to its shard; to one that is shared or counted they go by way of its home shard
//! ([`super::groups`]).

use super::Shard;
use super::features::Features;
use super::options::{self, RegisterOptions};
use super::realm::{Asker, Local, Procedure, Spread, Waiting};
use crate::mesh::{Item, Lost, Owner};
use common::ids::{Match, RouteKind, ShardId, ShardSet, route_id};
use common::metrics::Counter;
use common::rules::Bound;
use common::uri::{is_reserved, is_valid_pattern, wamp};
use common::wire::Dict;
use common::wire::encode::{self, Field};
use common::wire::message::code;

/// What a token stands for.
#[derive(Debug)]
pub(super) enum Awaited {
    /// Acknowledgements of a topic's route.
    Topic(u32),
    /// Acknowledgements of a procedure's route.
    Procedure(u32),
    /// Acknowledgements of a group's route.
    Group(u32),
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
    /// Another node was found to hold it meanwhile.
    lost: bool,
}

/// (realm, matching policy, URI) of a registration.
pub(super) type Registration<'a> = (u32, Match, &'a str);

impl Shard {
    /// REGISTER (WAMP, basic profile, "Registering and Unregistering").
    pub(super) fn register(&mut self, slot: u32, request: u64, options: &Dict<'_>, uri: &str) {
        let session = self.session(slot);
        let (realm, strict) = (session.realm, session.strict);
        let held = session.registrations.len() + session.pending as usize;
        let registrations_max = session.rules.bounds.get(Bound::Registrations);
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
        if held >= registrations_max as usize {
            self.metrics.count(Counter::LimitReached);
            let text = format!("this session may hold {registrations_max} registrations");
            return self.error(slot, code::REGISTER, request, wamp::UNAVAILABLE, &text);
        }
        let id = route_id(self.realms[realm as usize].id, RouteKind::Procedure, policy, uri);
        let held_already = self.session(slot).registrations.get(&id).copied();
        if held_already.is_some_and(|index| *self.procedures[index as usize].uri == *uri)
            && !options.wish.force
        {
            let text = format!("this session has registered {uri} already");
            return self.error(slot, code::REGISTER, request, wamp::PROCEDURE_ALREADY_EXISTS, &text);
        }
        self.session(slot).pending += 1;
        let (owner, wish, token) = (self.owner(slot), options.wish, self.token());
        let waiting = Waiting { owner, request };
        let wanted = Wanted { waiting, realm, policy, uri: uri.into(), options, lost: false };
        self.awaited.insert(token, Awaited::Grant(wanted));
        let home = self.home_of(realm, policy, uri);
        if home == self.me {
            return self.ask_home((realm, policy, uri), Asker { shard: home, token }, owner, wish);
        }
        let realm = self.realms[realm as usize].id;
        let batch = self.mesh(home);
        let route = batch.put_route(realm, RouteKind::Procedure, policy, uri);
        batch.push(Item::RegisterAsk { route, token, owner, wish });
    }

    /// The shard that decides who holds a registration.
    fn home_of(&self, realm: u32, policy: Match, uri: &str) -> ShardId {
        let realm = self.realms[realm as usize].id;
        let id = route_id(realm, RouteKind::Procedure, policy, uri);
        ShardId((id % self.config.shards as u64) as u8)
    }

    /// The home shard's word on a REGISTER of this shard; 0: refused. `first`: nobody else holds it.
    pub(super) fn register_answer(&mut self, token: u64, grant: u64, first: bool) {
        if let Some(Awaited::Grant(wanted)) = self.awaited.remove(&token) {
            self.granted(wanted, grant, first);
        }
    }

    fn granted(&mut self, wanted: Wanted, grant: u64, first: bool) {
        let Wanted { waiting, realm, policy, uri, options, lost } = wanted;
        let slot = waiting.owner.slot;
        let Some(session) = self.session_of(waiting.owner) else {
            if grant != 0 {
                self.release((realm, policy, &uri), grant, 0);
            }
            return;
        };
        if grant == 0 || lost {
            session.pending -= 1;
            if grant != 0 {
                self.release((realm, policy, &uri), grant, 0);
            }
            return self.already_registered(slot, waiting.request, &uri);
        }
        let detailed = policy != Match::Exact
            || options.disclose_caller
            || session.features.has(Features::CALLEE_TRUSTLEVELS);
        let registration = route_id(self.realms[realm as usize].id, RouteKind::Procedure, policy, &uri);
        if let Some(other) = self.session(slot).registrations.get(&registration).copied() {
            self.session(slot).pending -= 1;
            self.release((realm, policy, &uri), grant, 0);
            if self.procedures[other as usize].uri == uri {
                return self.already_registered(slot, waiting.request, &uri);
            }
            self.metrics.count(Counter::IdCollisions);
            let text = "its registration id belongs to another registration of this session";
            return self.error(slot, code::REGISTER, waiting.request, wamp::UNAVAILABLE, text);
        }
        let is_direct = options.wish.is_direct();
        let missing = if is_direct { self.others() } else { ShardSet::EMPTY };
        let spread = Spread { missing, token: self.token(), waiting: vec![waiting] };
        let token = spread.token;
        let procedure = Procedure {
            id: registration,
            realm,
            policy,
            uri: uri.clone(),
            created_ms: self.unix_ms(),
            is_first: first,
            callee: slot,
            options,
            grant,
            detailed,
            spread,
            held: Vec::new(),
        };
        let realm_id = self.realms[realm as usize].id;
        let claim = procedure.claim(realm_id);
        let index = self.procedures.insert(procedure) as u32;
        self.ids.insert(RouteKind::Procedure, registration, index as usize);
        self.session(slot).registrations.insert(registration, index);
        if is_direct {
            let state = &mut self.realms[realm as usize];
            state.procedures.insert(policy, &uri, Local::Callee(index));
            state.version += 1;
            let route = (realm_id, RouteKind::Procedure, policy, &*uri);
            self.spread_claim(claim, route, token, Awaited::Procedure(index));
        }
        self.registered_if_known(index);
    }

    fn already_registered(&mut self, slot: u32, request: u64, uri: &str) {
        let text = format!("procedure {uri} is already registered");
        self.error(slot, code::REGISTER, request, wamp::PROCEDURE_ALREADY_EXISTS, &text);
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
            let created = self.procedures[index as usize].is_first;
            self.has_registered(slot, index, created);
        }
        self.release_held(held, |shard, call| shard.invoke(index, &call.procedure, &call.calling()));
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
            Some(Awaited::Group(group)) => {
                let group = *group;
                let spread = &mut self.groups[group as usize].spread;
                spread.missing = spread.missing.without(from);
                if spread.missing.is_empty() {
                    self.awaited.remove(&token);
                    self.group_known(group);
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
        let procedure = self.drop_procedure(index);
        self.release((procedure.realm, procedure.policy, &procedure.uri), procedure.grant, token);
    }

    /// As [`Shard::remove_procedure`], of one whose home knows of it.
    fn drop_procedure(&mut self, index: u32) -> Procedure {
        let about = self.about_procedure(index);
        let mut procedure = self.procedures.remove(index as usize);
        self.ids.remove(RouteKind::Procedure, procedure.id, index as usize);
        if !procedure.is_shared() {
            self.awaited.remove(&procedure.spread.token);
            let realm = &mut self.realms[procedure.realm as usize];
            realm.procedures.remove(procedure.policy, &procedure.uri);
            realm.version += 1;
            self.fail_held(std::mem::take(&mut procedure.held));
            let (realm, policy) = (procedure.realm, procedure.policy);
            self.unspread_route(realm, RouteKind::Procedure, policy, &procedure.uri);
        }
        if procedure.spread.missing.is_empty() {
            self.holder_removed(procedure.callee, about, !procedure.is_shared());
        }
        procedure
    }

    /// Tells the home shard that a registration is given up.
    pub(super) fn release(&mut self, (realm, policy, uri): Registration<'_>, grant: u64, token: u64) {
        let home = self.home_of(realm, policy, uri);
        if home == self.me {
            if let Some(session) = self.free_home((realm, policy, uri), grant) {
                self.registration_emptied(realm, policy, uri, session);
            }
            return self.released(token);
        }
        let realm = self.realms[realm as usize].id;
        let batch = self.mesh(home);
        let route = batch.put_route(realm, RouteKind::Procedure, policy, uri);
        batch.push(Item::Unregister { route, grant, token });
    }

    /// The home shard takes a registration away.
    pub(super) fn evicted(&mut self, callee: Owner, registration: u64, grant: u64, lost: Lost) {
        let held = self.session_of(callee).and_then(|session| session.registrations.get(&registration));
        if let Some(index) = held.copied().filter(|index| self.procedures[*index as usize].grant == grant) {
            self.take_away(index, lost.reason());
        }
    }

    /// Takes a registration away from its callee, which is told if it knows how (WAMP, advanced profile, "Registration
    /// Revocation").
    pub(super) fn take_away(&mut self, index: u32, reason: &str) -> Procedure {
        let procedure = &mut self.procedures[index as usize];
        let (slot, registration) = (procedure.callee, procedure.id);
        let waiting = std::mem::take(&mut procedure.spread.waiting);
        self.metrics.count(Counter::RegistrationsRevoked);
        self.session(slot).registrations.remove(&registration);
        if waiting.is_empty() && self.session(slot).features.has(Features::CALLEE_REVOCATION) {
            self.reply(slot, |serializer, out| {
                let details = [("registration", Field::UInt(registration)), ("reason", Field::Str(reason))];
                encode::id_dict(serializer, out, code::UNREGISTERED, 0, &details);
            });
        }
        let procedure = self.drop_procedure(index);
        for waiting in waiting {
            self.session(slot).pending -= 1;
            self.already_registered(slot, waiting.request, &procedure.uri);
        }
        procedure
    }

    /// Takes a registration from the session in a slot. False: it does not hold it.
    pub(super) fn revoke_registration(&mut self, slot: u32, registration: u64, reason: &str) -> bool {
        let held = self.session(slot).registrations.get(&registration).copied();
        let Some(index) = held else { return false };
        let procedure = self.take_away(index, reason);
        self.release((procedure.realm, procedure.policy, &procedure.uri), procedure.grant, 0);
        true
    }

    /// Another node holds a registration with the better right, and the home shard has not yet said whether a session here may
    /// have it: it may not.
    pub(super) fn lose_wanted(&mut self, (realm, policy, uri): Registration<'_>) {
        for awaited in self.awaited.values_mut() {
            if let Awaited::Grant(wanted) = awaited
                && (wanted.realm, wanted.policy, &*wanted.uri) == (realm, policy, uri)
                && wanted.options.wish.is_direct()
            {
                wanted.lost = true;
            }
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
}
