//! From accept to WELCOME: transport handshake, HELLO.

use super::conn::{Phase, Session};
use super::features::Features;
use super::flow::Class;
use super::identity::Identity;
use super::origin::Origin;
use super::realm::Settings;
use super::resume::Wish;
use super::{Shard, options};
use common::config::{Listener, Transport};
use common::features::{Feature, FeatureSet};
use common::ids::{RealmId, is_wamp_id};
use common::limits::{LOGIN_MESSAGE_BYTES_MAX, PROXY_BYTES_MAX, UPGRADE_BYTES_MAX};
use common::link::Claim;
use common::metrics::Counter;
use common::rules::ANONYMOUS;
use common::snapshot::Anonymous;
use common::transport::proxy::{self, Source};
use common::transport::{Framer, Framing, Role, http, rawsocket, upgrade};
use common::uri::{UriRule, is_valid, wamp};
use common::wire::encode::{self, Field};
use common::wire::message::code;
use common::wire::{Dict, OwnedValue, Serializer, Value};
use std::time::Duration;

/// How long a connection may stay without a session after GOODBYE.
const REUSE_TIME: Duration = Duration::from_secs(2);

const AGENT: &str = concat!("Signalbox-", env!("CARGO_PKG_VERSION"));

/// Sharded subscription, as the specification's text spells it.
const SHAREDED: &str = "shareded_subscriptions";

/// What WELCOME announces: the roles with the features that are there and not switched off.
pub(super) fn roles(off: FeatureSet) -> OwnedValue {
    let features = |names: &[&str]| {
        let is_off = |name: &str| off.has_named(if name == SHAREDED { "sharded_subscription" } else { name });
        let on = names.iter().filter(|name| !is_off(name));
        let on = on.map(|name| ((*name).to_owned(), OwnedValue::Bool(true))).collect();
        OwnedValue::Dict(vec![("features".to_owned(), OwnedValue::Dict(on))])
    };
    OwnedValue::Dict(vec![
        (
            "broker".to_owned(),
            features(&[
                "event_history",
                "event_retention",
                "pattern_based_subscription",
                "payload_passthru_mode",
                "publication_trustlevels",
                "publisher_exclusion",
                "publisher_identification",
                "session_meta_api",
                "sharded_subscription",
                SHAREDED,
                "subscriber_blackwhite_listing",
                "subscription_meta_api",
                "subscription_revocation",
            ]),
        ),
        (
            "dealer".to_owned(),
            features(&[
                "call_canceling",
                "call_reroute",
                "call_timeout",
                "call_trustlevels",
                "caller_identification",
                "pattern_based_registration",
                "payload_passthru_mode",
                "progressive_call_invocations",
                "progressive_call_results",
                "registration_meta_api",
                "registration_revocation",
                "session_meta_api",
                "sharded_registration",
                "shared_registration",
                "testament_meta_api",
            ]),
        ),
    ])
}

/// A HELLO that was let in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Joining {
    /// Index of the realm in this shard.
    pub realm: u32,
    pub features: Features,
    /// Whether the session is to outlive its connection; none: HELLO does not say.
    pub resumable: Option<bool>,
}

/// Why a HELLO was refused.
struct Refusal {
    reason: &'static str,
    message: String,
}

impl Refusal {
    fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

impl Shard {
    /// Bytes of a connection whose transport handshake is not over.
    pub(super) fn open(&mut self, slot: u32, bytes: &mut [u8]) {
        let listener = usize::from(self.at(slot).listener);
        let listener = &self.config.listeners[listener];
        let (transport, expects_header) = (listener.transport, listener.proxy_protocol);
        let bytes = match expects_header && !self.at(slot).introduced {
            true => match self.introduce(slot, bytes) {
                Some(rest) => rest,
                None => return,
            },
            false => bytes,
        };
        match transport {
            Transport::RawSocket => self.open_rawsocket(slot, bytes),
            Transport::WebSocket => self.open_websocket(slot, bytes),
            Transport::Http => {
                self.begin_http(slot);
                self.http(slot, bytes);
            }
            Transport::Auto => match self.at(slot).handshake.first().or(bytes.first()) {
                Some(&rawsocket::MAGIC) => self.open_rawsocket(slot, bytes),
                Some(_) => self.open_websocket(slot, bytes),
                None => {}
            },
        }
    }

    /// Reads the PROXY header: what follows it, once it is whole and right.
    fn introduce<'b>(&mut self, slot: u32, bytes: &'b mut [u8]) -> Option<&'b mut [u8]> {
        let conn = self.at(slot);
        let held = conn.handshake.len();
        conn.handshake.extend_from_slice(&bytes[..bytes.len().min(PROXY_BYTES_MAX - held)]);
        match proxy::parse(&conn.handshake) {
            Ok(None) => None,
            Ok(Some((source, header_bytes))) => {
                conn.handshake = Vec::new();
                conn.introduced = true;
                match source {
                    Source::Client(ip) => conn.origin = ip.into(),
                    Source::Hidden => conn.origin = Origin::Hidden,
                    Source::Proxy => {}
                }
                // It was not whole before these bytes.
                Some(&mut bytes[header_bytes - held..])
            }
            Err(_) => {
                self.metrics.count(Counter::ProxyHeadersRefused);
                self.hang_up(slot, 1002);
                None
            }
        }
    }

    fn open_rawsocket(&mut self, slot: u32, bytes: &mut [u8]) {
        let conn = self.at(slot);
        let listener = usize::from(conn.listener);
        let taken = (4 - conn.handshake.len()).min(bytes.len());
        conn.handshake.extend_from_slice(&bytes[..taken]);
        let first = conn.handshake.first().copied().unwrap_or(0x7f);
        let octets = match <[u8; 4]>::try_from(conn.handshake.as_slice()) {
            Ok(octets) => octets,
            // What cannot become a handshake is refused at its first octet.
            Err(_) if first == 0x7f => return,
            Err(_) => [first, 0, 0, 0],
        };
        conn.handshake = Vec::new();
        match rawsocket::parse_request(octets) {
            Err(error) => {
                if let Some(answer) = error.answer() {
                    self.push_bytes(slot, &answer);
                }
                self.hang_up(slot, 1002);
            }
            Ok(request) => {
                let message_bytes_max = self.config.listeners[listener].message_max as usize;
                let answer = rawsocket::Handshake { serializer: request.serializer, message_bytes_max };
                self.push_bytes(slot, &rawsocket::write(answer));
                self.at(slot).peer_message_max = request.message_bytes_max as u32;
                self.framed(slot, Framing::RawSocket, request.serializer);
                self.frames(slot, &mut bytes[taken..]);
            }
        }
    }

    fn open_websocket(&mut self, slot: u32, bytes: &mut [u8]) {
        let conn = self.at(slot);
        let listener = usize::from(conn.listener);
        let held = conn.handshake.len();
        let taken = bytes.len().min(UPGRADE_BYTES_MAX + 1 - held);
        conn.handshake.extend_from_slice(&bytes[..taken]);
        let head = std::mem::take(&mut conn.handshake);
        if self.config.listeners[listener].http {
            match http::is_request(&head) {
                None => return self.at(slot).handshake = head,
                Some(false) => {}
                Some(true) => {
                    self.begin_http(slot);
                    self.http(slot, &[&head, &bytes[taken..]].concat());
                    return;
                }
            }
        }
        let deflate = self.deflate_accepts(listener);
        let Listener { path, echo, origins, .. } = &self.config.listeners[listener];
        let accepts = upgrade::Accepts { path, is_echo: *echo, deflate, origins: Some(origins) };
        match upgrade::parse_request(&head, accepts) {
            Ok(None) if head.len() > UPGRADE_BYTES_MAX => {
                self.refuse_upgrade(slot, upgrade::UpgradeError::TooLarge)
            }
            Ok(None) => self.at(slot).handshake = head,
            Err(error) => self.refuse_upgrade(slot, error),
            Ok(Some(request)) => {
                let mut answer = Vec::new();
                upgrade::write_accept(&request, &mut answer);
                self.push_bytes(slot, &answer);
                let spoken = request.subprotocol.unwrap_or(Serializer::Json.into());
                self.framed(slot, spoken.framing(), spoken.serializer);
                self.agree_on_compression(slot, request.deflate);
                let rest = request.head_bytes.saturating_sub(held).min(bytes.len());
                if request.subprotocol.is_none() {
                    self.begin_echo(slot);
                    return self.echo(slot, &mut bytes[rest..]);
                }
                self.frames(slot, &mut bytes[rest..]);
            }
        }
    }

    fn refuse_upgrade(&mut self, slot: u32, error: upgrade::UpgradeError) {
        let mut answer = Vec::new();
        upgrade::write_refusal(error, &mut answer);
        self.push_bytes(slot, &answer);
        self.hang_up(slot, 1002);
    }

    /// The transport handshake is over; messages are small until login.
    fn framed(&mut self, slot: u32, framing: Framing, serializer: Serializer) {
        let conn = self.at(slot);
        conn.framing = framing;
        conn.serializer = serializer;
        conn.framer = Some(Framer::new(framing, Role::Server, serializer, LOGIN_MESSAGE_BYTES_MAX));
        conn.phase = Phase::Login;
    }

    /// HELLO on a connection without a session (WAMP, basic profile, "Session Establishment").
    pub(super) fn hello(&mut self, slot: u32, realm: &str, details: &Dict<'_>) {
        self.finish_leaving(slot);
        if self.draining {
            return self.refuse_login(slot, Refusal::new(wamp::SYSTEM_SHUTDOWN, "the node is shutting down"));
        }
        match self.admit(slot, realm, details) {
            Ok((realm, wish)) => {
                let features = Features::announced(details);
                let joining = Joining { realm, features, resumable: wish.said() };
                self.resume_or_welcome(slot, joining, &wish);
            }
            Err(refusal) => self.refuse_login(slot, refusal),
        }
    }

    /// The session HELLO asks for if it is there, else a new one.
    fn resume_or_welcome(&mut self, slot: u32, joining: Joining, wish: &Wish) {
        if let Some((session, token)) = wish.session {
            // Clients are anonymous: all of them are the same.
            let who = Identity::anonymous(session).with_call(session);
            if self.can_resume(slot) && self.ask_for_session(slot, joining, (session, token), &who) {
                return;
            }
            self.metrics.count(Counter::ResumptionsRefused);
        }
        self.welcome(slot, joining);
    }

    /// Sessions outlive connections like this one. A transport that is made of HTTP requests outlives connections by itself.
    fn can_resume(&mut self, slot: u32) -> bool {
        !self.config.resume.window.is_zero() && self.at(slot).transport_kind().is_none()
    }

    /// The session that was asked for is not to be had.
    pub(super) fn welcome_instead(&mut self, slot: u32, joining: Joining) {
        self.at(slot).phase = Phase::Login;
        if self.draining {
            return self.refuse_login(slot, Refusal::new(wamp::SYSTEM_SHUTDOWN, "the node is shutting down"));
        }
        if self.realms[joining.realm as usize].settings.is_none() {
            return self.refuse_login(slot, Refusal::new(wamp::NO_SUCH_REALM, "the realm was removed"));
        }
        self.welcome(slot, joining);
    }

    fn refuse_login(&mut self, slot: u32, refusal: Refusal) {
        self.abort(slot, refusal.reason, &refusal.message);
    }

    /// Decides a HELLO: the realm's index, or why not.
    fn admit(&mut self, slot: u32, realm: &str, details: &Dict<'_>) -> Result<(u32, Wish), Refusal> {
        if !is_valid(realm, UriRule::Loose) {
            let text = format!("HELLO.Realm {:?} is not a valid URI", shorten(realm));
            return Err(Refusal::new(wamp::INVALID_URI, text));
        }
        check_roles(details)?;
        let index = self.realm_index.get(&RealmId::of(realm)).copied();
        let settings = index.and_then(|index| self.realms[index as usize].settings.as_ref());
        let (Some(index), Some(settings)) = (index, settings.filter(|settings| *settings.name == *realm))
        else {
            let text = format!("there is no realm {:?} here", shorten(realm));
            return Err(Refusal::new(wamp::NO_SUCH_REALM, text));
        };
        if settings.strict {
            check_types(details)?;
        }
        check_auth(
            settings,
            details,
            self.conns[slot as usize].as_ref().is_some_and(|conn| conn.origin.is_local()),
        )?;
        let wish = Wish::read(details, settings.strict);
        Ok((index, wish.map_err(|bad| Refusal::new(wamp::PROTOCOL_VIOLATION, bad.0))?))
    }

    fn welcome(&mut self, slot: u32, joining: Joining) {
        let Joining { realm, features, resumable } = joining;
        let id = self.global_id();
        debug_assert!(is_wamp_id(id));
        let strict = self.realms[realm as usize].settings.as_ref().is_some_and(|settings| settings.strict);
        let (rules, version) = self.rules_of(realm, ANONYMOUS);
        let is_off = rules.off.has(Feature::SessionResumption);
        let mut session = Session::new(id, realm, strict, features, (rules, version), &self.hasher);
        session.born = self.token();
        if resumable == Some(true) && !is_off && self.can_resume(slot) {
            session.token = Some(self.new_token());
        }
        let listener = usize::from(self.at(slot).listener);
        let message_max = self.config.listeners[listener].message_max as usize;
        let conn = self.at(slot);
        conn.trusting = session.features.has(Features::SUBSCRIBER_TRUST);
        conn.session = Some(Box::new(session));
        conn.phase = Phase::Open;
        self.logins -= 1;
        self.sessions += 1;
        self.realms[realm as usize].sessions += 1;
        self.set_deadline(slot, self.config.timeouts.ping_interval);
        self.message_bound(slot, message_max);
        self.metrics.count(Counter::SessionsOpened);
        let realm_id = self.realms[realm as usize].id;
        self.claims.push(Claim::Joined { session: id, realm: realm_id }, &mut self.metrics);
        self.push_welcome(slot, resumable.map(|_| false));
        self.ids.join(id, slot);
        self.joined(slot);
    }

    /// WELCOME. `resumed`: what it says of resumption; none: nothing.
    pub(super) fn push_welcome(&mut self, slot: u32, resumed: Option<bool>) {
        let session = self.session(slot);
        let rules = session.rules.clone();
        let (id, realm, identity, token) =
            (session.id, session.realm, session.identity.clone(), session.token);
        let token = token.map(|token| token.text());
        let settings = self.realms[realm as usize].settings.as_ref();
        let name = settings.map_or_else(Box::default, |settings| settings.name.clone());
        let mut details = vec![
            ("roles", Field::Value(&rules.announced)),
            ("realm", Field::Str(&name)),
            ("authid", Field::Str(&identity.authid)),
            ("authrole", Field::Str(&identity.authrole)),
            ("authmethod", Field::Str(identity.authmethod)),
            ("authprovider", Field::Str(identity.authprovider)),
            ("agent", Field::Str(AGENT)),
        ];
        if let Some(resumed) = resumed {
            details.push(("resumed", Field::Bool(resumed)));
            details.push(("resumable", Field::Bool(token.is_some())));
            if let Some(token) = &token {
                // As the specification writes it, and as clients read it.
                details.extend(["resume-token", "resume_token"].map(|key| (key, Field::Str(token))));
            }
        }
        self.push(slot, Class::Reply, |serializer, out| {
            encode::id_dict(serializer, out, code::WELCOME, id, &details);
        });
    }

    /// After GOODBYE the connection may carry another session (WAMP, basic profile, "Session Closing").
    pub(super) fn await_reuse(&mut self, slot: u32) {
        if self.at(slot).away.is_some() {
            return self.hang_up(slot, 1000);
        }
        self.message_bound(slot, LOGIN_MESSAGE_BYTES_MAX);
        self.at(slot).phase = Phase::Login;
        self.logins += 1;
        self.set_deadline(slot, REUSE_TIME);
    }

    /// Sets the longest message accepted from now on; the framer may be in use.
    pub(super) fn message_bound(&mut self, slot: u32, message_max: usize) {
        match &mut self.at(slot).framer {
            Some(framer) => framer.set_message_bytes_max(message_max),
            None => self.new_bound = Some(message_max),
        }
    }
}

/// HELLO must announce one of the client roles.
fn check_roles(details: &Dict<'_>) -> Result<(), Refusal> {
    const CLIENT_ROLES: [&str; 4] = ["publisher", "subscriber", "caller", "callee"];
    let refusal = |message: &str| Refusal::new(wamp::PROTOCOL_VIOLATION, message);
    match details.get("roles") {
        Some(Value::Dict(roles)) => {
            if !roles.iter().any(|(role, _)| CLIENT_ROLES.contains(&&*role)) {
                let text =
                    "HELLO.Details.roles must name at least one of publisher, subscriber, caller, callee";
                return Err(refusal(text));
            }
            if roles.iter().any(|(_, value)| !matches!(value, Value::Dict(_) | Value::Null)) {
                return Err(refusal("every role in HELLO.Details.roles must be a dictionary"));
            }
            Ok(())
        }
        Some(_) => Err(refusal("HELLO.Details.roles must be a dictionary")),
        None => Err(refusal("HELLO.Details.roles is missing")),
    }
}

/// What HELLO says of the client has the types of the specification; in compatible realms what has not counts as not there.
fn check_types(details: &Dict<'_>) -> Result<(), Refusal> {
    let bad = |key: &str, allowed: &str| {
        Err(Refusal::new(wamp::PROTOCOL_VIOLATION, format!("HELLO.Details.{key} must be {allowed}")))
    };
    for key in ["agent", "authid", "authrole"] {
        if !matches!(details.get(key), None | Some(Value::Str(_))) {
            return bad(key, "a string");
        }
    }
    if !matches!(details.get("authextra"), None | Some(Value::Dict(_))) {
        return bad("authextra", "a dictionary");
    }
    let Some(Value::Dict(roles)) = details.get("roles") else { return Ok(()) };
    for (role, value) in roles.iter() {
        let Value::Dict(role_details) = value else { continue };
        let is_right = match role_details.get("features") {
            None => true,
            Some(Value::Dict(features)) => {
                features.iter().all(|(_, value)| matches!(value, Value::Bool(_) | Value::Null))
            }
            Some(_) => false,
        };
        if !is_right {
            return bad(&format!("roles.{}.features", shorten(&role)), "a dictionary of booleans");
        }
    }
    Ok(())
}

/// Only anonymous authentication is offered.
fn check_auth(settings: &Settings, details: &Dict<'_>, loopback: bool) -> Result<(), Refusal> {
    let offered = match details.get("authmethods") {
        Some(Value::List(methods)) => {
            let mut methods = methods.iter().peekable();
            methods.peek().is_none() || methods.any(|method| options::is_text(&method, "anonymous"))
        }
        Some(_) => {
            return Err(Refusal::new(wamp::PROTOCOL_VIOLATION, "HELLO.Details.authmethods must be a list"));
        }
        None => true,
    };
    if !offered || settings.anonymous == Anonymous::Nobody {
        let text = if offered {
            format!("realm {} admits no anonymous sessions", settings.name)
        } else {
            format!("realm {} offers the authentication method anonymous only", settings.name)
        };
        return Err(Refusal::new(wamp::NO_MATCHING_AUTH_METHOD, text));
    }
    if settings.anonymous == Anonymous::Loopback && !loopback {
        let text = format!("realm {} admits anonymous sessions from loopback addresses only", settings.name);
        return Err(Refusal::new(wamp::NOT_AUTHORIZED, text));
    }
    Ok(())
}

/// The beginning of a peer's text, for a message.
pub(super) fn shorten(text: &str) -> &str {
    let end = (0..=text.len().min(100)).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    &text[..end]
}
