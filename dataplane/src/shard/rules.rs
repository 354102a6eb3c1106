//! What a session may not use, and what it may not exceed, by the rules of its realm for its role.
//!
//! They are looked at before a message is handled, and a change of them counts from the next message of each session on. A
//! session remembers with which rules its plain messages need no look ([`Session::unruled_at`]): then they cost one comparison.

use super::Shard;
use super::conn::Session;
use super::features::Features;
use super::login::{roles, shorten};
use super::options::{CancelMode, is_text};
use super::publication;
use common::features::{Feature, FeatureSet};
use common::limits::MESSAGE_BYTES_MAX;
use common::metrics::Counter;
use common::rules::{ANONYMOUS, Bound, Bounds, InForce, Rules};
use common::snapshot::Anonymous;
use common::uri::{is_reserved, wamp};
use common::wire::message::code;
use common::wire::{Dict, Message, OwnedValue, Payload, Value};
use std::rc::Rc;

/// What holds for all sessions of a role.
#[derive(Debug)]
pub(super) struct SessionRules {
    pub off: FeatureSet,
    pub bounds: Bounds,
    /// What WELCOME announces.
    pub announced: OwnedValue,
    /// PUBLISH, CALL, YIELD and ERROR are to be looked at.
    looks: bool,
}

impl SessionRules {
    fn new(InForce { off, bounds }: InForce) -> Self {
        let payloads = (bounds.get(Bound::Payload) as usize) < MESSAGE_BYTES_MAX;
        let looks = off.0 & ASKED_OFTEN.0 != 0 || bounds.bounds_uris() || payloads;
        Self { off, bounds, announced: roles(off), looks }
    }

    /// Why a session may not publish this.
    pub fn refuses_publication(
        &self,
        options: &Dict<'_>,
        topic: &str,
        payload: Payload<'_>,
    ) -> Option<Refusal> {
        refused_for(self, published(options), topic, payload)
    }
}

/// What the options of PUBLISH, CALL, YIELD and ERROR may ask for.
const ASKED_OFTEN: FeatureSet = FeatureSet::of(Feature::CallTimeout)
    .with(Feature::CallerIdentification)
    .with(Feature::EventRetention)
    .with(Feature::PayloadPassthruMode)
    .with(Feature::ProgressiveCallInvocations)
    .with(Feature::ProgressiveCallResults)
    .with(Feature::PublisherExclusion)
    .with(Feature::PublisherIdentification)
    .with(Feature::ShardedRegistration)
    .with(Feature::ShardedSubscription)
    .with(Feature::SubscriberBlackwhiteListing);

/// The rules of a realm, and what they come to for the roles that were asked for.
#[derive(Debug)]
pub(super) struct RealmRules {
    /// Never 0; another one with each change.
    version: u32,
    packed: Box<[u8]>,
    anonymous: Anonymous,
    rules: Rules,
    /// Roles with rules of their own, [`ANONYMOUS`], and the empty name for all others.
    of_roles: Vec<(Box<str>, Rc<SessionRules>)>,
}

impl Default for RealmRules {
    fn default() -> Self {
        Self {
            version: 1,
            packed: Box::default(),
            anonymous: Anonymous::Nobody,
            rules: Rules::default(),
            of_roles: Vec::new(),
        }
    }
}

impl RealmRules {
    /// What the control plane says; true when that is a change.
    pub fn set(&mut self, packed: &[u8], anonymous: Anonymous) -> bool {
        if (&*self.packed, self.anonymous) == (packed, anonymous) {
            return false;
        }
        let version = self.version.checked_add(1).unwrap_or(1);
        let rules = Rules::unpack(packed).expect("the rules of a realm are checked where they come in");
        *self = Self { version, packed: packed.into(), anonymous, rules, of_roles: Vec::new() };
        true
    }

    fn of_role(&mut self, role: &str, node: impl FnOnce() -> Bounds) -> Rc<SessionRules> {
        let is_named = role == ANONYMOUS || self.rules.roles().iter().any(|rules| rules.name == role);
        let name = if is_named { role } else { "" };
        if let Some((_, known)) = self.of_roles.iter().find(|(known, _)| **known == *name) {
            return known.clone();
        }
        let made = Rc::new(SessionRules::new(self.rules.of_role(name, self.anonymous, &node())));
        self.of_roles.push((name.into(), made.clone()));
        made
    }

    /// What is packed with an event of a meta API so that only those get it who may use the API; none: nobody may.
    fn audience(&self, api: Feature) -> Option<Vec<u8>> {
        if self.rules.off.has(api) {
            return None;
        }
        let without = self.rules.roles().iter().filter(|role| role.off.is_some_and(|off| off.has(api)));
        Some(publication::pack_without_roles(&without.map(|role| role.name.clone()).collect::<Vec<_>>()))
    }
}

/// Why a message is refused: error URI and text.
pub(super) type Refusal = (&'static str, String);

/// An ERROR answers these requests.
struct Request {
    kind: u64,
    name: &'static str,
    id: u64,
    /// False: nobody waits for an answer.
    answered: bool,
}

impl Shard {
    /// The rules of a role in a realm, and their version.
    pub(super) fn rules_of(&mut self, realm: u32, role: &str) -> (Rc<SessionRules>, u32) {
        let rules = &mut self.realms[realm as usize].rules;
        (rules.of_role(role, || Bounds::of(&self.config.limits)), rules.version)
    }

    /// True when a PUBLISH, CALL, YIELD or ERROR of a session is to be looked at.
    #[inline]
    pub(super) fn is_ruled(&mut self, slot: u32) -> bool {
        let Session { realm, unruled_at, .. } = *self.session(slot);
        unruled_at != self.realms[realm as usize].rules.version
    }

    /// Follows a change of the rules.
    pub(super) fn renew_rules(&mut self, slot: u32) {
        let session = self.session(slot);
        let (realm, held, role) = (session.realm, session.rules_at, session.identity.authrole.clone());
        if held == self.realms[realm as usize].rules.version {
            return;
        }
        let (rules, version) = self.rules_of(realm, &role);
        let session = self.session(slot);
        session.obey(rules, version);
        let trusting = session.features.has(Features::SUBSCRIBER_TRUST);
        self.at(slot).trusting = trusting;
    }

    /// Whether a message may be handled; else it was answered as far as it can be.
    #[cold]
    pub(super) fn may(&mut self, slot: u32, message: &Message<'_>) -> bool {
        self.renew_rules(slot);
        let rules = self.session(slot).rules.clone();
        match message {
            Message::Publish { request, options, topic, payload } => {
                let refusal = rules.refuses_publication(options, topic, *payload);
                let answered = matches!(options.get("acknowledge"), Some(Value::Bool(true)));
                let request = Request { kind: code::PUBLISH, name: "PUBLISH", id: *request, answered };
                self.decide(slot, request, refusal)
            }
            Message::Call { request, options, procedure, payload } => {
                let refusal = refused_for(&rules, called(options), procedure, *payload);
                self.may_call(slot, *request, options, refusal)
            }
            Message::Yield { request, options, payload } => {
                let refusal = refused_for(&rules, answered(options), "", *payload);
                self.may_answer(slot, "YIELD", *request, refusal)
            }
            Message::Error { kind: code::INVOCATION, request, details, payload, .. } => {
                let refusal = refused_for(&rules, answered(details), "", *payload);
                self.may_answer(slot, "ERROR", *request, refusal)
            }
            Message::Subscribe { request, options, topic } => {
                let asked = subscribed(options);
                let refusal = closed_topic(&rules, topic)
                    .or_else(|| refused_for(&rules, asked, topic, Payload::default()));
                let request =
                    Request { kind: code::SUBSCRIBE, name: "SUBSCRIBE", id: *request, answered: true };
                self.decide(slot, request, refusal)
            }
            Message::Register { request, options, procedure } => {
                let refusal = refused_for(&rules, registered(options), procedure, Payload::default());
                let request =
                    Request { kind: code::REGISTER, name: "REGISTER", id: *request, answered: true };
                self.decide(slot, request, refusal)
            }
            Message::Cancel { .. } if rules.off.has(Feature::CallCanceling) => {
                self.metrics.count(Counter::FeaturesRefused);
                if self.session(slot).strict {
                    self.violation(slot, "CANCEL, but call_canceling is switched off for this session");
                }
                false
            }
            _ => true,
        }
    }

    fn decide(&mut self, slot: u32, request: Request, refusal: Option<Refusal>) -> bool {
        let Some((uri, text)) = refusal else { return true };
        self.count_refusal(uri);
        // A refused request has used its id.
        if self.in_sequence(slot, request.name, request.id) && request.answered {
            self.error(slot, request.kind, request.id, uri, &text);
        }
        false
    }

    fn may_call(&mut self, slot: u32, request: u64, options: &Dict<'_>, refusal: Option<Refusal>) -> bool {
        let Some((uri, text)) = refusal else { return true };
        let session = self.session(slot);
        if session.unfinished.contains(&request) {
            return true;
        }
        if session.calls.contains_key(&request) {
            // A part of a call that was taken: only too long a part ends it.
            if uri == wamp::PAYLOAD_SIZE_EXCEEDED {
                self.count_refusal(uri);
                self.give_up_call(slot, request, CancelMode::KillNoWait, uri, &text);
                return false;
            }
            return true;
        }
        self.count_refusal(uri);
        if self.in_sequence(slot, "CALL", request) {
            self.refuse_new_call(slot, (request, is_set(options, "progress")), uri, &text);
        }
        false
    }

    /// An answer that may not be given ends its call with an error.
    fn may_answer(&mut self, slot: u32, message: &str, request: u64, refusal: Option<Refusal>) -> bool {
        let Some((uri, text)) = refusal else { return true };
        self.count_refusal(uri);
        if let Some(caller) = self.take_invocation(slot, message, request) {
            self.answer_error(caller, uri, &format!("the callee's answer: {text}"));
        }
        false
    }

    pub(super) fn count_refusal(&mut self, uri: &str) {
        let is_bound = matches!(uri, wamp::PAYLOAD_SIZE_EXCEEDED | wamp::INVALID_URI);
        self.metrics.count(if is_bound { Counter::LimitReached } else { Counter::FeaturesRefused });
    }

    /// Why a session may not call a procedure of the router.
    pub(super) fn closed_procedure(&mut self, slot: u32, procedure: &str) -> Option<Refusal> {
        let off = self.session(slot).rules.off;
        let api = api_of(procedure).filter(|api| off.has(*api));
        let control =
            || is_control(procedure).then_some(Feature::MetaApiControl).filter(|part| off.has(*part));
        let closed = api.or_else(control)?;
        self.metrics.count(Counter::FeaturesRefused);
        Some(not_authorized(closed))
    }

    /// What is packed with an event of the router's topic; none: nobody may get it.
    pub(super) fn audience_of(&self, realm: u32, topic: &str) -> Option<Vec<u8>> {
        match api_of(topic) {
            Some(api) => self.realms[realm as usize].rules.audience(api),
            None => Some(Vec::new()),
        }
    }
}

impl Session {
    /// The rules that hold from now on.
    pub fn obey(&mut self, rules: Rc<SessionRules>, version: u32) {
        self.features = self.announced.without(rules.off);
        self.rules_at = version;
        self.unruled_at = if rules.looks { 0 } else { version };
        self.rules = rules;
        self.set_waiting(self.waits);
    }

    /// While it waits for its client it takes no invocations.
    pub fn set_waiting(&mut self, waits: bool) {
        self.waits = waits;
        self.invocations_max = if waits { 0 } else { self.rules.bounds.get(Bound::InvocationsPending) };
    }
}

/// Why what a message asks for, its URI or its payload is refused.
fn refused_for(rules: &SessionRules, asked: FeatureSet, uri: &str, payload: Payload<'_>) -> Option<Refusal> {
    let refused = FeatureSet(asked.0 & rules.off.0);
    if let Some(name) = refused.names().next() {
        return Some((error_of(name), format!("{name} is switched off for this session")));
    }
    let uri_max = rules.bounds.get(Bound::Uri) as usize;
    // The router's own are as long as they are.
    if uri.len() > uri_max && !is_reserved(uri) {
        let text = format!("{:?} has {} bytes, a URI may have {uri_max}", shorten(uri), uri.len());
        return Some((wamp::INVALID_URI, text));
    }
    let payload_max = rules.bounds.get(Bound::Payload) as usize;
    if payload.bytes_len() > payload_max {
        let text = format!("the payload has {} bytes, it may have {payload_max}", payload.bytes_len());
        return Some((wamp::PAYLOAD_SIZE_EXCEEDED, text));
    }
    None
}

/// WAMP, advanced profile, "Predefined URIs".
fn error_of(feature: &str) -> &'static str {
    match Feature::named(feature) {
        Some(Feature::CallerIdentification | Feature::PublisherIdentification) => {
            wamp::OPTION_DISALLOWED_DISCLOSE_ME
        }
        _ => wamp::FEATURE_NOT_SUPPORTED,
    }
}

fn not_authorized(feature: Feature) -> Refusal {
    (wamp::NOT_AUTHORIZED, format!("{} is switched off for this session", feature.name()))
}

/// The meta API that a URI belongs to.
fn api_of(uri: &str) -> Option<Feature> {
    match uri.strip_prefix("wamp.")?.split_once('.')? {
        ("session", "add_testament" | "flush_testaments") => Some(Feature::TestamentMetaApi),
        ("session", _) => Some(Feature::SessionMetaApi),
        ("subscription", "get_events") => Some(Feature::EventHistory),
        ("registration", _) => Some(Feature::RegistrationMetaApi),
        ("subscription", _) => Some(Feature::SubscriptionMetaApi),
        _ => None,
    }
}

/// Whether a procedure of a meta API changes other sessions.
fn is_control(procedure: &str) -> bool {
    matches!(
        procedure,
        "wamp.session.kill"
            | "wamp.session.kill_by_authid"
            | "wamp.session.kill_by_authrole"
            | "wamp.session.kill_all"
            | "wamp.session.modify_details"
            | "wamp.registration.remove_callee"
            | "wamp.subscription.remove_subscriber"
    )
}

/// Topics of one API only. A pattern that reaches further is taken, and brings no events of the API.
fn closed_topic(rules: &SessionRules, topic: &str) -> Option<Refusal> {
    api_of(topic).filter(|api| rules.off.has(*api)).map(not_authorized)
}

fn is_set(options: &Dict<'_>, key: &str) -> bool {
    matches!(options.get(key), Some(Value::Bool(true)))
}

fn is_passthru(options: &Dict<'_>) -> bool {
    matches!(options.get("ppt_scheme"), Some(Value::Str(scheme)) if !scheme.is_empty())
}

/// Those of `asked` that are true.
fn asks<const N: usize>(asked: [(bool, Feature); N]) -> FeatureSet {
    let asked = asked.into_iter().filter(|(is_asked, _)| *is_asked);
    asked.fold(FeatureSet::EMPTY, |all, (_, feature)| all.with(feature))
}

fn is_there(options: &Dict<'_>, keys: &[&str]) -> bool {
    options.iter().any(|(key, value)| !value.is_null() && keys.contains(&&*key))
}

fn published(options: &Dict<'_>) -> FeatureSet {
    asks([
        (is_set(options, "retain"), Feature::EventRetention),
        (is_set(options, "disclose_me"), Feature::PublisherIdentification),
        (matches!(options.get("exclude_me"), Some(Value::Bool(false))), Feature::PublisherExclusion),
        (is_passthru(options), Feature::PayloadPassthruMode),
        (is_there(options, &publication::LISTS), Feature::SubscriberBlackwhiteListing),
        (is_there(options, &["rkey"]), Feature::ShardedSubscription),
    ])
}

fn called(options: &Dict<'_>) -> FeatureSet {
    asks([
        (is_set(options, "progress"), Feature::ProgressiveCallInvocations),
        (is_set(options, "receive_progress"), Feature::ProgressiveCallResults),
        (is_set(options, "disclose_me"), Feature::CallerIdentification),
        (matches!(options.get("timeout"), Some(Value::UInt(ms)) if ms > 0), Feature::CallTimeout),
        (is_passthru(options), Feature::PayloadPassthruMode),
        (is_there(options, &["runmode", "rkey", "_routing_key"]), Feature::ShardedRegistration),
    ])
}

fn answered(options: &Dict<'_>) -> FeatureSet {
    asks([(is_passthru(options), Feature::PayloadPassthruMode)])
}

fn is_pattern(options: &Dict<'_>) -> bool {
    options.get("match").is_some_and(|policy| is_text(&policy, "prefix") || is_text(&policy, "wildcard"))
}

fn subscribed(options: &Dict<'_>) -> FeatureSet {
    asks([
        (is_pattern(options), Feature::PatternBasedSubscription),
        (is_set(options, "get_retained"), Feature::EventRetention),
        (is_there(options, &["nkey"]), Feature::ShardedSubscription),
    ])
}

fn registered(options: &Dict<'_>) -> FeatureSet {
    let is_shared = options.get("invoke").is_some_and(|policy| !is_text(&policy, "single"));
    asks([
        (is_pattern(options), Feature::PatternBasedRegistration),
        (is_shared, Feature::SharedRegistration),
        (is_set(options, "disclose_caller"), Feature::CallerIdentification),
        (is_set(options, "forward_timeout"), Feature::CallTimeout),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::rules::RoleRules;

    fn packed(off: Feature) -> Vec<u8> {
        let role = RoleRules { name: "a".into(), off: Some(FeatureSet::of(off)), bounds: Bounds::NONE };
        Rules::new(FeatureSet::EMPTY, Bounds::NONE, vec![role]).expect("one role").pack()
    }

    #[test]
    fn roles_without_rules_of_their_own_share_theirs_whatever_they_are_called() {
        let mut rules = RealmRules::default();
        assert!(rules.set(&packed(Feature::CallTimeout), Anonymous::Loopback));
        let node = || Bounds::NONE;
        let [a, anonymous, others] = ["a", ANONYMOUS, "x0"].map(|role| rules.of_role(role, node));
        assert!(a.off.has(Feature::CallTimeout) && !others.off.has(Feature::CallTimeout));
        for role in 1..1_000 {
            assert!(Rc::ptr_eq(&others, &rules.of_role(&format!("x{role}"), node)));
        }
        assert!(Rc::ptr_eq(&anonymous, &rules.of_role(ANONYMOUS, node)) && rules.of_roles.len() == 3);
    }

    #[test]
    fn only_a_change_makes_another_version() {
        let mut rules = RealmRules::default();
        let first = packed(Feature::CallTimeout);
        assert!(rules.set(&first, Anonymous::Anybody) && !rules.set(&first, Anonymous::Anybody));
        assert!(rules.set(&first, Anonymous::Loopback) && rules.set(&[], Anonymous::Loopback));
        assert_eq!(rules.version, 4);
        rules.version = u32::MAX;
        assert!(rules.set(&first, Anonymous::Loopback));
        assert_eq!(rules.version, 1, "0 is what sessions have that are to be looked at");
    }

    #[test]
    fn plain_messages_are_looked_at_only_where_they_may_be_refused() {
        let looks = |off, bounds| SessionRules::new(InForce { off, bounds }).looks;
        let wide = Bounds::of(&common::config::Config::default().limits);
        assert!(!looks(FeatureSet::EMPTY, wide) && !looks(FeatureSet::of(Feature::MetaApiControl), wide));
        assert!(looks(FeatureSet::of(Feature::EventRetention), wide));
        assert!(looks(FeatureSet::EMPTY, wide.with(Bound::Uri, 100)));
        assert!(looks(FeatureSet::EMPTY, wide.with(Bound::Payload, 100)));
        assert!(!looks(FeatureSet::EMPTY, wide.with(Bound::Subscriptions, 1)));
    }
}
