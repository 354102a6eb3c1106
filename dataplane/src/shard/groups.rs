//! Registrations of several callees, at their home shard.
//!
//! ```text
//! caller's shard ─ CALL ─▶ home shard: chooses ─ Invoke ─▶ callee's shard
//!                 ◀─────── answers ◀──────────────────────
//! ```
//! The home shard of a procedure decides who holds it. If its calls need a choice, or are counted, all shards route to the
//! home, whose [`super::shared`] passes each call to a callee and the answers back.
//!
//! Invariants: a registration has callees that are called directly, or a group, never both; a group has a member.

use super::Shard;
use super::members::{CALLEES_MAX, Members};
use super::realm::{Asker, Group, Home, Local, Spread};
use super::register::{Awaited, Registration};
use super::routes::{holders, sharers};
use crate::mesh::{Item, Lost, Owner, Wish};
use common::ids::{RouteKind, route_id};
use common::link::Claim;
use common::metrics::Counter;
use common::share::{Invoke, Share};

impl Shard {
    /// As the home shard: gives a registration to a session of the asking shard, or refuses it. The first callee fixes the
    /// policy (WAMP, advanced profile, "Shared Registration").
    pub(super) fn ask_home(&mut self, wanted: Registration<'_>, asker: Asker, owner: Owner, wish: Wish) {
        let (realm, policy, uri) = wanted;
        if wish.force {
            self.evict(wanted, Lost::Replaced);
        }
        let state = &self.realms[realm as usize];
        let held = state.home.get(policy, uri).copied();
        let elsewhere = holders(state, &self.folded, policy, uri);
        let refused = held.is_none() && !wish.force && !elsewhere.is_empty() && {
            let sharers = sharers(state, &self.folded, policy, uri);
            let shares = |share: Share| wish.invoke != Invoke::Single && share.invoke == wish.invoke;
            sharers.len() < elsewhere.len() || !sharers.iter().all(|sharer| shares(sharer.share))
        };
        match held {
            None if refused => self.answer_ask(asker, 0, false),
            None => {
                let grant = self.token();
                if wish.is_direct() {
                    let home = &mut self.realms[realm as usize].home;
                    home.insert(policy, uri, Home::Callee { owner, grant });
                    self.answer_ask(asker, grant, true);
                } else {
                    self.make_group(wanted, (asker, grant), owner, wish);
                }
            }
            Some(Home::Group(index)) => self.join_group(index, asker, owner, wish),
            Some(Home::Callee { .. }) => self.answer_ask(asker, 0, false),
        }
    }

    fn answer_ask(&mut self, asker: Asker, grant: u64, first: bool) {
        if asker.shard == self.me {
            self.register_answer(asker.token, grant, first);
        } else {
            self.mesh(asker.shard).push(Item::RegisterAnswer { token: asker.token, grant, first });
        }
    }

    /// The first callee of a group; it is told when every shard routes here.
    fn make_group(&mut self, wanted: Registration<'_>, asked: (Asker, u64), owner: Owner, wish: Wish) {
        let (realm, policy, uri) = wanted;
        let id = route_id(self.realms[realm as usize].id, RouteKind::Procedure, policy, uri);
        let token = self.token();
        let mut members = Members::new(wish.invoke);
        members.follow(self.latest_elsewhere(wanted));
        members.insert(asked.1, owner, wish.concurrency);
        let spread = Spread { missing: self.others(), token, waiting: Vec::new() };
        let elsewhere = holders(&self.realms[realm as usize], &self.folded, policy, uri);
        let uri: Box<str> = uri.into();
        let asked = vec![asked];
        let group = Group {
            id,
            realm,
            policy,
            uri: uri.clone(),
            members,
            forced: wish.force,
            is_first: wish.force || elsewhere.is_empty(),
            prefer_local: wish.prefer_local && may_prefer_local(wish.invoke),
            spread,
            asked,
            held: Vec::new(),
        };
        let realm_id = self.realms[realm as usize].id;
        let share = group.share();
        let claim = Claim::Shared { realm: realm_id, policy, uri: uri.to_string(), share };
        let index = self.groups.insert(group) as u32;
        let state = &mut self.realms[realm as usize];
        state.home.insert(policy, &uri, Home::Group(index));
        state.procedures.insert(policy, &uri, Local::Group(index));
        state.version += 1;
        let route = (realm_id, RouteKind::Procedure, policy, &*uri);
        self.spread_claim(claim, route, token, Awaited::Group(index));
        self.group_known(index);
    }

    fn join_group(&mut self, index: u32, asker: Asker, owner: Owner, wish: Wish) {
        let grant = self.token();
        let group = &mut self.groups[index as usize];
        let fits = wish.invoke == group.members.invoke && wish.invoke != Invoke::Single;
        if !fits || group.members.len() >= CALLEES_MAX {
            if fits {
                self.metrics.count(Counter::LimitReached);
            }
            return self.answer_ask(asker, 0, false);
        }
        let (realm, policy, uri) = (group.realm, group.policy, group.uri.clone());
        let latest = self.latest_elsewhere((realm, policy, &uri));
        let group = &mut self.groups[index as usize];
        group.members.follow(latest);
        group.members.insert(grant, owner, wish.concurrency);
        let is_known = group.spread.missing.is_empty();
        if !is_known {
            group.asked.push((asker, grant));
        }
        self.claim_share(index);
        if is_known {
            self.answer_ask(asker, grant, false);
        }
    }

    /// When a callee of another node registered last, as far as this node knows.
    fn latest_elsewhere(&self, (realm, policy, uri): Registration<'_>) -> u64 {
        let sharers = sharers(&self.realms[realm as usize], &self.folded, policy, uri);
        sharers.iter().map(|sharer| sharer.share.last).max().unwrap_or(0)
    }

    /// Other nodes are told that the callees are others now.
    fn claim_share(&mut self, index: u32) {
        let group = &self.groups[index as usize];
        let realm = self.realms[group.realm as usize].id;
        let (policy, uri, share) = (group.policy, group.uri.to_string(), group.share());
        self.claims.push(Claim::Shared { realm, policy, uri, share }, &mut self.metrics);
    }

    /// Answers those that wait once every shard routes here, then lets the calls go that came before.
    pub(super) fn group_known(&mut self, index: u32) {
        let group = &mut self.groups[index as usize];
        if !group.spread.missing.is_empty() {
            return;
        }
        let asked = std::mem::take(&mut group.asked);
        let held = std::mem::take(&mut group.held);
        let is_first = group.is_first;
        for (place, (asker, grant)) in asked.into_iter().enumerate() {
            self.answer_ask(asker, grant, is_first && place == 0);
        }
        if !self.groups.contains(index as usize) {
            // The last of those that asked had left.
            return self.fail_held(held);
        }
        self.release_held(held, |shard, call| shard.call_group(index, &call.procedure, &call.calling()));
    }

    /// As the home shard: what was given under `grant` is given up. It may have been taken away before. The session, if it
    /// was the last of a group.
    pub(super) fn free_home(&mut self, (realm, policy, uri): Registration<'_>, grant: u64) -> Option<u64> {
        let home = &mut self.realms[realm as usize].home;
        match home.get(policy, uri).copied() {
            Some(Home::Callee { grant: given, .. }) if given == grant => {
                home.remove(policy, uri);
            }
            Some(Home::Group(index)) => {
                let group = &mut self.groups[index as usize];
                let session = group.members.get(grant).map(|member| member.owner.session);
                group.members.remove(grant);
                group.asked.retain(|(_, asked)| *asked != grant);
                if group.members.is_empty() {
                    self.drop_group(index);
                    return session;
                }
                if session.is_some() {
                    self.claim_share(index);
                }
            }
            Some(Home::Callee { .. }) | None => {}
        }
        None
    }

    /// As the home shard: takes a registration away from all who hold it. Each is told; calls they were given they may answer.
    pub(super) fn evict(&mut self, (realm, policy, uri): Registration<'_>, lost: Lost) {
        let id = route_id(self.realms[realm as usize].id, RouteKind::Procedure, policy, uri);
        let home = &mut self.realms[realm as usize].home;
        match home.get(policy, uri).copied() {
            Some(Home::Callee { owner, grant }) => {
                home.remove(policy, uri);
                self.evict_one(owner, id, grant, lost);
            }
            Some(Home::Group(index)) => {
                let group = self.drop_group(index);
                for (asker, _) in &group.asked {
                    self.answer_ask(*asker, 0, false);
                }
                let is_asked = |grant| group.asked.iter().any(|(_, asked)| *asked == grant);
                for (grant, member) in group.members.iter().filter(|(grant, _)| !is_asked(*grant)) {
                    self.evict_one(member.owner, id, grant, lost);
                }
            }
            None => {}
        }
    }

    fn evict_one(&mut self, callee: Owner, registration: u64, grant: u64, lost: Lost) {
        if callee.shard == self.me {
            self.evicted(callee, registration, grant, lost);
        } else {
            self.mesh(callee.shard).push(Item::Evict { callee, registration, grant, lost });
        }
    }

    fn drop_group(&mut self, index: u32) -> Group {
        let mut group = self.groups.remove(index as usize);
        self.awaited.remove(&group.spread.token);
        let realm = &mut self.realms[group.realm as usize];
        realm.home.remove(group.policy, &group.uri);
        realm.procedures.remove(group.policy, &group.uri);
        realm.version += 1;
        self.fail_held(std::mem::take(&mut group.held));
        self.unspread_route(group.realm, RouteKind::Procedure, group.policy, &group.uri);
        group
    }
}

/// Whether a policy leaves open on which node the callee is.
fn may_prefer_local(invoke: Invoke) -> bool {
    match invoke {
        Invoke::RoundRobin | Invoke::Random | Invoke::LeastLoaded | Invoke::LeastLoadedSample => true,
        Invoke::Single | Invoke::First | Invoke::Last | Invoke::JumpHash => false,
    }
}
