//! Testaments: what is published for a session when it has ended (WAMP, advanced profile, "Testament").
//!
//! A testament is kept as the PUBLISH it will be, in the serializer of its connection. Those of scope `detached` are published,
//! once, when the session loses its connection and waits for its client; when it ends, those that are left, `detached` first.

use super::procedures::{Arguments, Refused, refuse};
use crate::shard::Shard;
use crate::shard::features::Features;
use crate::shard::login::shorten;
use crate::shard::publication::{self, PublishOptions, Refused as Unpublishable};
use common::metrics::Counter;
use common::uri::{is_reserved, is_valid, wamp};
use common::wire::message::code;
use common::wire::{Message, OwnedValue, decode};

/// Testaments of one session, of both scopes.
const TESTAMENTS_MAX: usize = 64;
/// Bytes of all of them.
const TESTAMENTS_BYTES_MAX: usize = 256 << 10;
/// Options of no meaning for a testament: nobody waits for an answer, and the publisher is gone.
const NOT_HONOURED: [&str; 2] = ["acknowledge", "exclude_me"];

const SCOPES: [&str; 2] = ["detached", "destroyed"];

/// The testaments of one session, by scope, each in the order they were added.
#[derive(Debug, Default)]
pub(in crate::shard) struct Testaments([Vec<Vec<u8>>; 2]);

impl Testaments {
    pub fn len(&self) -> usize {
        self.0.iter().map(Vec::len).sum()
    }

    pub fn bytes(&self) -> usize {
        self.0.iter().flatten().map(Vec::len).sum()
    }

    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0[0].is_empty() && self.0[1].is_empty()
    }

    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

/// The scope a call names, `destroyed` if none.
fn scope(given: &Arguments) -> Result<usize, Refused> {
    let Some(scope) = given.named("scope") else { return Ok(1) };
    let place = SCOPES.iter().position(|name| scope.as_str() == Some(name));
    place.ok_or_else(|| (wamp::INVALID_ARGUMENT, "scope must be \"detached\" or \"destroyed\"".to_owned()))
}

impl Shard {
    /// `wamp.session.add_testament`.
    pub(super) fn add_testament(
        &mut self,
        slot: u32,
        given: &Arguments,
    ) -> Result<Option<OwnedValue>, Refused> {
        let topic = given.text(0, "a topic")?;
        let scope = scope(given)?;
        let (args, kwargs) = (given.at(1), given.at(2));
        if args.is_some_and(|args| args.as_list().is_none()) {
            return refuse(wamp::INVALID_ARGUMENT, "argument 1 must be a list");
        }
        if kwargs.is_some_and(|kwargs| kwargs.as_dict().is_none()) {
            return refuse(wamp::INVALID_ARGUMENT, "argument 2 must be a dictionary");
        }
        let options = match given.named("publish_options").map(OwnedValue::as_dict) {
            None => &[],
            Some(Some(options)) => options,
            Some(None) => return refuse(wamp::INVALID_ARGUMENT, "publish_options must be a dictionary"),
        };
        let session = self.session(slot);
        let realm = session.realm as usize;
        let rule = self.realms[realm].settings.as_ref().map_or_else(Default::default, |set| set.uri_rule);
        if is_reserved(topic) || !is_valid(topic, rule) {
            let text = format!("topic {:?} cannot be published to", shorten(topic));
            return refuse(wamp::INVALID_URI, text);
        }
        let honoured = options.iter().filter(|(key, _)| !NOT_HONOURED.contains(&&**key)).cloned();
        let mut publish =
            vec![code::PUBLISH.into(), 1_u64.into(), OwnedValue::Dict(honoured.collect()), topic.into()];
        if args.is_some() || kwargs.is_some() {
            publish.push(args.cloned().unwrap_or_else(|| OwnedValue::List(Vec::new())));
        }
        publish.extend(kwargs.cloned());
        let publish = OwnedValue::List(publish).to_bytes(self.at(slot).serializer);
        self.check_testament(slot, &publish)?;
        let testaments = &mut self.session(slot).testaments;
        if testaments.len() >= TESTAMENTS_MAX || testaments.bytes() + publish.len() > TESTAMENTS_BYTES_MAX {
            self.metrics.count(Counter::LimitReached);
            let text =
                format!("a session may have {TESTAMENTS_MAX} testaments of {TESTAMENTS_BYTES_MAX} bytes");
            return refuse(wamp::UNAVAILABLE, text);
        }
        testaments.0[scope].push(publish);
        Ok(None)
    }

    /// It must be a publication that this session may make, since nobody is told when it turns out that it was none.
    fn check_testament(&mut self, slot: u32, publish: &[u8]) -> Result<(), Refused> {
        let serializer = self.at(slot).serializer;
        let session = self.session(slot);
        match decode(serializer, publish) {
            Ok(Message::Publish { options, topic, payload, .. }) => {
                if let Some(refused) = session.rules.refuses_publication(&options, &topic, payload) {
                    self.count_refusal(refused.0);
                    return Err(refused);
                }
                if session.strict
                    && !session.features.has(Features::PASSTHRU)
                    && options.get("ppt_scheme").is_some()
                {
                    let text = "this client did not announce payload_passthru_mode";
                    return refuse(wamp::INVALID_ARGUMENT, text);
                }
                let disclosed = session.identity.disclosed(session.id);
                let bad = PublishOptions::read(&options, true).err().map(Unpublishable::BadOption);
                match bad.or_else(|| publication::pack(&options, &disclosed, true).err()) {
                    None => Ok(()),
                    Some(Unpublishable::BadOption(bad)) => refuse(wamp::INVALID_ARGUMENT, bad.0),
                    Some(Unpublishable::TooLong) => {
                        refuse(wamp::INVALID_ARGUMENT, "publish_options has too long lists of receivers")
                    }
                }
            }
            Ok(_) => refuse(wamp::INVALID_ARGUMENT, "the testament is no publication"),
            Err(error) => refuse(wamp::INVALID_ARGUMENT, error.to_string()),
        }
    }

    /// `wamp.session.flush_testaments`.
    pub(super) fn flush_testaments(
        &mut self,
        slot: u32,
        given: &Arguments,
    ) -> Result<Option<OwnedValue>, Refused> {
        let scope = scope(given)?;
        self.session(slot).testaments.0[scope] = Vec::new();
        Ok(None)
    }

    /// The session in a slot is about to end: publishes its testaments in its name.
    #[cold]
    pub(in crate::shard) fn publish_testaments(&mut self, slot: u32) {
        let testaments = std::mem::take(&mut self.session(slot).testaments);
        self.publish_all(slot, testaments.0.iter().flatten());
    }

    /// The session in a slot is about to wait for its client.
    pub(in crate::shard) fn publish_detached(&mut self, slot: u32) {
        let testaments = std::mem::take(&mut self.session(slot).testaments.0[0]);
        self.publish_all(slot, testaments.iter());
    }

    fn publish_all<'t>(&mut self, slot: u32, testaments: impl Iterator<Item = &'t Vec<u8>>) {
        let serializer = self.at(slot).serializer;
        for publish in testaments {
            // A publication that is refused may end the session by itself.
            if self.at(slot).session.is_none() {
                return;
            }
            if let Ok(Message::Publish { request, options, topic, payload }) = decode(serializer, publish) {
                self.publish(slot, request, &options, &topic, payload);
            }
        }
    }
}
