//! Options and details of requests, read once. A known key with a value of the wrong type is a protocol violation in a
//! strict realm and counts as absent in a compatible one (null counts as absent in both).

use crate::mesh::{Terms, Wish};
use common::ids::Match;
use common::share::{Invoke, routing_key};
use common::wire::{Dict, Value};

/// A known option has a value it may not have. The text is for ABORT.
#[derive(Debug)]
pub(super) struct BadOption(pub String);

pub(super) fn is_text(value: &Value<'_>, text: &str) -> bool {
    matches!(value, Value::Str(found) if **found == *text)
}

/// The options of one message.
#[derive(Clone, Copy)]
struct Options<'a> {
    message: &'static str,
    dict: &'a Dict<'a>,
    strict: bool,
}

impl Options<'_> {
    fn bad<T>(self, key: &str, allowed: &str) -> Result<T, BadOption> {
        Err(BadOption(format!("{}.Options.{key} must be {allowed}", self.message)))
    }

    fn flag(self, key: &str, default: bool) -> Result<bool, BadOption> {
        match self.dict.get(key) {
            None => Ok(default),
            Some(Value::Bool(value)) => Ok(value),
            Some(_) if self.strict => self.bad(key, "a boolean"),
            Some(_) => Ok(default),
        }
    }

    /// A number; 0 when there is none.
    fn number(self, key: &str) -> Result<u32, BadOption> {
        match self.dict.get(key) {
            None => Ok(0),
            Some(Value::UInt(value)) => Ok(u32::try_from(value).unwrap_or(u32::MAX)),
            Some(_) if self.strict => self.bad(key, "a number from 0 on"),
            Some(_) => Ok(0),
        }
    }

    /// A time in milliseconds; 0 when there is none.
    fn milliseconds(self, key: &str) -> Result<u32, BadOption> {
        match self.dict.get(key) {
            None => Ok(0),
            Some(Value::UInt(value)) => Ok(u32::try_from(value).unwrap_or(u32::MAX)),
            Some(_) if self.strict => self.bad(key, "milliseconds"),
            Some(_) => Ok(0),
        }
    }
}

/// The attributes of payload passthru mode, packed: of each key `length u16 │ text`, in the order of [`PASSTHRU`]. No
/// bytes: the mode is not used (WAMP, advanced profile, "Payload Passthru Mode").
pub(super) type Passthru = Vec<u8>;

/// The keys of payload passthru mode; the first one must be there.
const PASSTHRU: [&str; 4] = ["ppt_scheme", "ppt_serializer", "ppt_cipher", "ppt_keyid"];
/// Longest value of such a key.
const PASSTHRU_TEXT_MAX: usize = 1_024;
const ABSENT: u16 = u16::MAX;
/// Most bytes of packed attributes.
pub(super) const PASSTHRU_BYTES_MAX: usize = PASSTHRU.len() * (2 + PASSTHRU_TEXT_MAX);

/// Packs the attributes; their content is the peers' business.
pub(super) fn passthru(dict: &Dict<'_>, message: &'static str, strict: bool) -> Result<Passthru, BadOption> {
    let is_used = matches!(dict.get(PASSTHRU[0]), Some(Value::Str(scheme)) if !scheme.is_empty());
    let mut packed = Vec::new();
    if dict.is_empty() || !is_used && !strict {
        return Ok(packed);
    }
    for key in PASSTHRU {
        let text = match dict.get(key) {
            Some(Value::Str(text)) if text.len() <= PASSTHRU_TEXT_MAX => Some(text),
            // Without one of its attributes a payload may be read as something else, so a long one is not passed over.
            Some(value) if strict || matches!(value, Value::Str(_)) => {
                let allowed = format!("a string of at most {PASSTHRU_TEXT_MAX} bytes");
                return Err(BadOption(format!("{message}.Options.{key} must be {allowed}")));
            }
            _ => None,
        };
        if is_used {
            packed.extend_from_slice(&text.as_ref().map_or(ABSENT, |text| text.len() as u16).to_le_bytes());
            packed.extend_from_slice(text.as_ref().map_or(&[], |text| text.as_bytes()));
        }
    }
    Ok(packed)
}

/// The attributes in packed form again, by name. Ends early when the bytes were not packed here.
pub(super) fn unpacked(mut packed: &[u8]) -> impl Iterator<Item = (&'static str, &str)> {
    PASSTHRU.into_iter().filter_map(move |key| {
        let (length, rest) = packed.split_first_chunk::<2>()?;
        let length = u16::from_le_bytes(*length);
        if length == ABSENT {
            packed = rest;
            return None;
        }
        let (text, rest) = rest.split_at_checked(length.into())?;
        packed = rest;
        Some((key, std::str::from_utf8(text).ok()?))
    })
}

/// What CALL may ask for; the timeout in milliseconds, 0 for none.
#[inline]
pub(super) fn call_terms(dict: &Dict<'_>, strict: bool) -> Result<Terms, BadOption> {
    if dict.is_empty() {
        return Ok(Terms::default());
    }
    let options = Options { message: "CALL", dict, strict };
    let set = |on: bool, flag: u8| if on { flag } else { 0 };
    let flags = set(options.flag("receive_progress", false)?, Terms::RECEIVE_PROGRESS)
        | set(options.flag("progress", false)?, Terms::PROGRESS)
        | set(options.flag("disclose_me", false)?, Terms::DISCLOSE);
    Ok(Terms { flags, timeout_ms: options.milliseconds("timeout")?, session: 0 })
}

/// The routing key of a CALL, by which a callee of a shared registration is chosen, and whether only the callee of that key may
/// have it (WAMP, advanced profile, "Sharded Registration"), as flags of [`Terms`].
pub(super) fn call_key(dict: &Dict<'_>, strict: bool) -> Result<(u8, u64), BadOption> {
    let options = Options { message: "CALL", dict, strict };
    let (mut flags, mut hash) = (0, 0);
    for (key, value) in dict.iter() {
        match (&*key, value) {
            ("runmode" | "rkey" | "_routing_key", Value::Null) => {}
            ("runmode", mode) if is_text(&mode, "partition") => flags |= Terms::PARTITION,
            ("runmode", _) if strict => return options.bad("runmode", "\"partition\""),
            ("_routing_key", _) if flags & Terms::KEYED != 0 => {}
            ("rkey" | "_routing_key", Value::Str(text)) => {
                (flags, hash) = (flags | Terms::KEYED, routing_key(text.as_bytes()));
            }
            ("rkey" | "_routing_key", Value::UInt(number)) => {
                (flags, hash) = (flags | Terms::KEYED, routing_key(number.to_string().as_bytes()));
            }
            ("rkey" | "_routing_key", Value::Int(number)) => {
                (flags, hash) = (flags | Terms::KEYED, routing_key(number.to_string().as_bytes()));
            }
            ("rkey" | "_routing_key", _) if strict => return options.bad(&key, "a string or an integer"),
            _ => {}
        }
    }
    Ok((flags, hash))
}

/// Whether a YIELD is a progressive result.
#[inline]
pub(super) fn is_progress(dict: &Dict<'_>, strict: bool) -> Result<bool, BadOption> {
    if dict.is_empty() {
        Ok(false)
    } else {
        Options { message: "YIELD", dict, strict }.flag("progress", false)
    }
}

/// How a call is given up (WAMP, advanced profile, "Call Canceling").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum CancelMode {
    /// The callee is not told.
    Skip = 0,
    /// The callee is told, and its answer is waited for.
    Kill = 1,
    /// The callee is told, and its answer is not waited for.
    KillNoWait = 2,
}

impl CancelMode {
    /// CANCEL.Options.mode; what is not said is `killnowait`.
    pub(super) fn read(dict: &Dict<'_>, strict: bool) -> Result<Self, BadOption> {
        let bad = || BadOption("CANCEL.Options.mode must be \"skip\", \"kill\" or \"killnowait\"".to_owned());
        match dict.get("mode") {
            None => Ok(Self::KillNoWait),
            Some(Value::Str(mode)) => match &*mode {
                "skip" => Ok(Self::Skip),
                "kill" => Ok(Self::Kill),
                "killnowait" => Ok(Self::KillNoWait),
                _ if strict => Err(bad()),
                _ => Ok(Self::KillNoWait),
            },
            Some(_) if strict => Err(bad()),
            Some(_) => Ok(Self::KillNoWait),
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Skip => "skip",
            Self::Kill => "kill",
            Self::KillNoWait => "killnowait",
        }
    }

    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Skip),
            1 => Some(Self::Kill),
            2 => Some(Self::KillNoWait),
            _ => None,
        }
    }
}

/// What REGISTER may ask for besides the policy.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct RegisterOptions {
    /// Callers are named in every INVOCATION.
    pub disclose_caller: bool,
    /// The callee wants to know of timeouts.
    pub forward_timeout: bool,
    pub wish: Wish,
}

impl RegisterOptions {
    pub fn read(dict: &Dict<'_>, strict: bool) -> Result<Self, BadOption> {
        if dict.is_empty() {
            return Ok(Self::default());
        }
        let options = Options { message: "REGISTER", dict, strict };
        Ok(Self {
            disclose_caller: options.flag("disclose_caller", false)?,
            forward_timeout: options.flag("forward_timeout", false)?,
            wish: Wish {
                invoke: invoke(options)?,
                concurrency: match options.number("concurrency")? {
                    0 => options.number("x_concurrency")?,
                    bound => bound,
                },
                force: options.flag("force_reregister", false)?,
                prefer_local: options.flag("_prefer_local", true)?,
            },
        })
    }
}

/// The policy by which callees share a registration (WAMP, advanced profile, "Shared Registration").
fn invoke(options: Options<'_>) -> Result<Invoke, BadOption> {
    match options.dict.get("invoke") {
        None => Ok(Invoke::Single),
        Some(Value::Str(name)) => match Invoke::named(&name) {
            Some(invoke) => Ok(invoke),
            // Taking it for another policy would send calls where they do not belong, so no degree accepts it.
            None => options.bad("invoke", "a policy such as \"single\", \"roundrobin\" or \"random\""),
        },
        Some(_) if options.strict => options.bad("invoke", "a policy such as \"single\""),
        Some(_) => Ok(Invoke::Single),
    }
}

/// Whether SUBSCRIBE asks for the retained events of its topic.
pub(super) fn get_retained(dict: &Dict<'_>, strict: bool) -> Result<bool, BadOption> {
    if dict.is_empty() {
        return Ok(false);
    }
    Options { message: "SUBSCRIBE", dict, strict }.flag("get_retained", false)
}

/// The node key that SUBSCRIBE names, as text.
pub(super) fn node_key(dict: &Dict<'_>, strict: bool) -> Result<Option<u64>, BadOption> {
    if dict.is_empty() {
        return Ok(None);
    }
    match dict.get("nkey") {
        None => Ok(None),
        Some(Value::Str(text)) => Ok(Some(super::sharded::node_key(text.as_bytes()))),
        Some(_) if strict => Options { message: "SUBSCRIBE", dict, strict }.bad("nkey", "a string"),
        Some(_) => Ok(None),
    }
}

/// The matching policy of SUBSCRIBE or REGISTER.
pub(super) fn policy(options: &Dict<'_>, message: &str, strict: bool) -> Result<Match, BadOption> {
    if options.is_empty() {
        return Ok(Match::Exact);
    }
    let bad = || BadOption(format!("{message}.Options.match must be \"exact\", \"prefix\" or \"wildcard\""));
    match options.get("match") {
        None => Ok(Match::Exact),
        Some(Value::Str(name)) => match &*name {
            "exact" => Ok(Match::Exact),
            "prefix" => Ok(Match::Prefix),
            "wildcard" => Ok(Match::Wildcard),
            // Taking an unknown policy for another one would deliver the wrong events, so no degree accepts it.
            _ => Err(bad()),
        },
        Some(_) if strict => Err(bad()),
        Some(_) => Ok(Match::Exact),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::wire::{Message, Serializer, decode};

    fn with<T>(options: &str, read: impl FnOnce(&Dict<'_>) -> T) -> T {
        let call = format!("[48, 1, {options}, \"a.b\"]");
        match decode(Serializer::Json, call.as_bytes()).expect("a message") {
            Message::Call { options, .. } => read(&options),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn passthru_attributes_come_back_as_they_were() {
        let text = r#"{"ppt_scheme": "mqtt", "ppt_keyid": "k", "ppt_serializer": "native", "other": 1}"#;
        let packed = with(text, |dict| passthru(dict, "CALL", true)).unwrap();
        let all: Vec<_> = unpacked(&packed).collect();
        assert_eq!(all, [("ppt_scheme", "mqtt"), ("ppt_serializer", "native"), ("ppt_keyid", "k")]);
        assert!(packed.len() <= PASSTHRU_BYTES_MAX);
        for strict in [false, true] {
            let read = |text: &str| with(text, |dict| passthru(dict, "CALL", strict));
            assert!(read(r#"{"ppt_keyid": "k"}"#).unwrap().is_empty());
            assert!(read(r#"{"ppt_scheme": "", "ppt_cipher": null}"#).unwrap().is_empty());
            let long = format!(r#"{{"ppt_scheme": "x", "ppt_cipher": "{}"}}"#, "c".repeat(1_025));
            assert!(read(&long).is_err());
            for wrong in
                [r#"{"ppt_scheme": 1}"#, r#"{"ppt_keyid": []}"#, r#"{"ppt_scheme": "x", "ppt_cipher": 1}"#]
            {
                let packed = read(wrong);
                assert_eq!(packed.is_err(), strict, "{wrong}");
                assert!(packed.is_err() || unpacked(&packed.unwrap()).all(|(key, _)| key == "ppt_scheme"));
            }
        }
        for cut in 0..packed.len() {
            assert!(unpacked(&packed[..cut]).count() <= 3);
        }
    }

    #[test]
    fn what_a_call_asks_for_is_read_and_wrong_types_count_in_strict_realms_only() {
        let text = r#"{"receive_progress": true, "timeout": 1500, "disclose_me": true}"#;
        let terms = with(text, |dict| call_terms(dict, true)).unwrap();
        assert_eq!((terms.timeout_ms, terms.flags), (1_500, Terms::RECEIVE_PROGRESS | Terms::DISCLOSE));
        let wrong = r#"{"progress": 1, "timeout": "soon"}"#;
        assert_eq!(with(wrong, |dict| call_terms(dict, false)).unwrap(), Terms::default());
        assert!(with(wrong, |dict| call_terms(dict, true)).is_err());
        let long = with(r#"{"timeout": 99999999999}"#, |dict| call_terms(dict, true)).unwrap();
        assert_eq!(long.timeout_ms, u32::MAX);
    }

    #[test]
    fn how_a_registration_is_shared_is_read() {
        let text =
            r#"{"invoke": "qlls", "x_concurrency": 3, "force_reregister": true, "_prefer_local": false}"#;
        let wish = with(text, |dict| RegisterOptions::read(dict, true)).unwrap().wish;
        let expected =
            Wish { invoke: Invoke::LeastLoadedSample, concurrency: 3, force: true, prefer_local: false };
        assert_eq!(wish, expected);
        assert!(with("{}", |dict| RegisterOptions::read(dict, true)).unwrap().wish.is_direct());
        for strict in [false, true] {
            assert!(with(r#"{"invoke": "all"}"#, |dict| RegisterOptions::read(dict, strict)).is_err());
            let odd = with(r#"{"invoke": 3, "concurrency": -1}"#, |dict| RegisterOptions::read(dict, strict));
            assert_eq!(odd.is_err(), strict);
        }
    }

    #[test]
    fn routing_keys_are_text_or_numbers() {
        let read = |text: &str, strict| with(text, |dict| call_key(dict, strict));
        let key = read(r#"{"runmode": "partition", "rkey": "a"}"#, true).unwrap();
        assert_eq!(key, (Terms::KEYED | Terms::PARTITION, routing_key(b"a")));
        assert_eq!(read(r#"{"_routing_key": 12}"#, true).unwrap(), (Terms::KEYED, routing_key(b"12")));
        assert_eq!(read(r#"{"rkey": -1}"#, true).unwrap(), (Terms::KEYED, routing_key(b"-1")));
        for odd in [r#"{"rkey": [1]}"#, r#"{"runmode": "all"}"#] {
            assert!(read(odd, true).is_err());
            assert_eq!(read(odd, false).unwrap(), (0, 0));
        }
    }

    #[test]
    fn modes_of_cancelling_have_names() {
        for mode in [CancelMode::Skip, CancelMode::Kill, CancelMode::KillNoWait] {
            let read =
                with(&format!(r#"{{"mode": "{}"}}"#, mode.name()), |dict| CancelMode::read(dict, true));
            assert_eq!(read.unwrap(), mode);
            assert_eq!(CancelMode::from_number(mode as u8), Some(mode));
        }
        assert_eq!(with("{}", |dict| CancelMode::read(dict, true)).unwrap(), CancelMode::KillNoWait);
        assert!(with(r#"{"mode": "x"}"#, |dict| CancelMode::read(dict, true)).is_err());
        assert_eq!(CancelMode::from_number(3), None);
    }
}
