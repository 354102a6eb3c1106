//! What a publication says beside its topic and payload: who may get it, and what its EVENT tells.
//!
//! It is packed once where the PUBLISH came in, and read where there are receivers, on whatever shard and node. A plain
//! publication has no bytes of it.
//! ```text
//! flags u16 │ stamp u64 │ resource key u64 │ publisher │ passthru │ exclude, eligible │ exclude_authid ...
//! publisher, passthru = length u16 │ packed     text = length u16 │ UTF-8
//! list of sessions = count u16 │ u64 ...     list of texts = count u16 │ text ...     both ascending
//! ```

use super::identity::{DISCLOSED_BYTES_MAX, Disclosed};
use super::options::{BadOption, PASSTHRU_BYTES_MAX, passthru, unpacked};
use common::limits::{AUDIENCE_BYTES_MAX, AUDIENCE_ENTRIES_MAX};
use common::relay::EXTRA_BYTES_MAX;
use common::share::routing_key;
use common::wire::encode::Field;
use common::wire::{Dict, Value};
use std::time::Duration;

/// What PUBLISH may ask for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct PublishOptions {
    pub acknowledge: bool,
    pub exclude_me: bool,
    /// The topic retains the event.
    pub retain: bool,
    /// Nothing else is asked for; else [`pack`] reads it.
    pub is_plain: bool,
}

impl PublishOptions {
    #[inline]
    pub fn read(dict: &Dict<'_>, strict: bool) -> Result<Self, BadOption> {
        let mut options = Self { acknowledge: false, exclude_me: true, retain: false, is_plain: true };
        if dict.is_empty() {
            return Ok(options);
        }
        for (key, value) in dict.iter() {
            match &*key {
                "acknowledge" => options.acknowledge = flag("acknowledge", &value, false, strict)?,
                "exclude_me" => options.exclude_me = flag("exclude_me", &value, true, strict)?,
                "retain" => {
                    options.retain = flag("retain", &value, false, strict)?;
                    options.is_plain &= !options.retain;
                }
                "disclose_me" | "rkey" => options.is_plain &= value.is_null(),
                key if key.starts_with("ppt_") || LISTS.contains(&key) => options.is_plain &= value.is_null(),
                _ => {}
            }
        }
        Ok(options)
    }
}

/// How long an event is to be retained (`_retained_ttl`, seconds), if it says so.
pub(super) fn retained_ttl(dict: &Dict<'_>, strict: bool) -> Result<Option<Duration>, BadOption> {
    match dict.get("_retained_ttl") {
        None => Ok(None),
        Some(Value::UInt(seconds)) => Ok(Some(Duration::from_secs(seconds.min(TTL_SECONDS_MAX)))),
        Some(_) if strict => Err(BadOption("PUBLISH.Options._retained_ttl must be seconds".to_owned())),
        Some(_) => Ok(None),
    }
}

/// Longest time an event is retained: a hundred years.
const TTL_SECONDS_MAX: u64 = 100 * 365 * 24 * 60 * 60;

fn flag(key: &str, value: &Value<'_>, default: bool, strict: bool) -> Result<bool, BadOption> {
    match value {
        Value::Bool(value) => Ok(*value),
        Value::Null => Ok(default),
        _ if strict => Err(BadOption(format!("PUBLISH.Options.{key} must be a boolean"))),
        _ => Ok(default),
    }
}

/// Lists of receivers: two of sessions, then four of texts (WAMP, advanced profile, "Subscriber Black- and Whitelisting").
/// Those at odd places name who may get the event, the others who may not.
pub(super) const LISTS: [&str; 6] =
    ["exclude", "eligible", "exclude_authid", "eligible_authid", "exclude_authrole", "eligible_authrole"];
const SESSION_LISTS: usize = 2;
const EXCLUDE_AUTHROLE: usize = 4;

const DISCLOSE: u16 = 1;
const PASSTHRU: u16 = 1 << 1;
/// Of the first list; the others follow.
const LIST: u16 = 1 << 2;
/// Some history keeps the publication, and this is when it was made.
const STAMP: u16 = 1 << 8;
/// Of subscribers with a node key only those of one get it.
const RESOURCE_KEY: u16 = 1 << 9;
const FLAGS: u16 = (1 << 10) - 1;
const NUMBERS_BYTES: usize = 2 * 8;

const _: () = assert!(
    2 + NUMBERS_BYTES + 2 + DISCLOSED_BYTES_MAX + 2 + PASSTHRU_BYTES_MAX + AUDIENCE_BYTES_MAX
        <= EXTRA_BYTES_MAX
);

/// Keys that name a publisher (WAMP, advanced profile, "Publisher Identification").
const PUBLISHER: [&str; 3] = ["publisher", "publisher_authid", "publisher_authrole"];

/// Why a publication is refused.
#[derive(Debug)]
pub(super) enum Refused {
    /// A protocol violation.
    BadOption(BadOption),
    /// The lists of receivers are too long.
    TooLong,
}

impl From<BadOption> for Refused {
    fn from(bad: BadOption) -> Self {
        Self::BadOption(bad)
    }
}

/// Packs what `dict` asks for. No bytes: it turns out to be plain. In a compatible realm an entry of a list that can name
/// nobody is passed over, and one entry without its list counts as a list, so that `eligible` never admits more.
pub(super) fn pack(dict: &Dict<'_>, publisher: &Disclosed<'_>, strict: bool) -> Result<Vec<u8>, Refused> {
    let (mut flags, mut out) = (0, vec![0; 2]);
    if let Some(key) = resource_key(dict, strict)? {
        flags |= RESOURCE_KEY;
        out.extend_from_slice(&key.to_le_bytes());
    }
    match dict.get("disclose_me") {
        Some(Value::Bool(true)) => {
            flags |= DISCLOSE;
            let mut packed = Vec::new();
            publisher.pack(&mut packed);
            put_bytes(&mut out, &packed);
        }
        Some(Value::Bool(false)) | None => {}
        Some(value) => _ = flag("disclose_me", &value, false, strict)?,
    }
    let packed = passthru(dict, "PUBLISH", strict)?;
    if !packed.is_empty() {
        flags |= PASSTHRU;
        put_bytes(&mut out, &packed);
    }
    let session = |value: &Value<'_>| if strict { value.as_u64() } else { value.as_whole() };
    let (lists_at, mut entries) = (out.len(), 0);
    for (at, key) in LISTS.into_iter().enumerate() {
        let Some(value) = dict.get(key) else { continue };
        flags |= LIST << at;
        entries += if at < SESSION_LISTS {
            put_sessions(&mut out, &entries_of(key, value, strict, AUDIENCE_ENTRIES_MAX - entries, session)?)
        } else {
            put_texts(&mut out, &entries_of(key, value, strict, AUDIENCE_ENTRIES_MAX - entries, as_text)?)
        };
        if out.len() - lists_at > AUDIENCE_BYTES_MAX {
            return Err(Refused::TooLong);
        }
    }
    if flags == 0 {
        return Ok(Vec::new());
    }
    out[..2].copy_from_slice(&flags.to_le_bytes());
    Ok(out)
}

/// The number of the resource key that a PUBLISH names; an integer is its digits, as in calls.
fn resource_key(dict: &Dict<'_>, strict: bool) -> Result<Option<u64>, BadOption> {
    match dict.get("rkey") {
        None => Ok(None),
        Some(Value::Str(text)) => Ok(Some(routing_key(text.as_bytes()))),
        Some(Value::UInt(number)) => Ok(Some(routing_key(number.to_string().as_bytes()))),
        Some(Value::Int(number)) => Ok(Some(routing_key(number.to_string().as_bytes()))),
        Some(_) if strict => Err(BadOption("PUBLISH.Options.rkey must be a string or an integer".to_owned())),
        Some(_) => Ok(None),
    }
}

/// For everybody but sessions of these roles, which ascend. No bytes: there is none.
pub(super) fn pack_without_roles(roles: &[String]) -> Vec<u8> {
    if roles.is_empty() {
        return Vec::new();
    }
    let mut out = (LIST << EXCLUDE_AUTHROLE).to_le_bytes().to_vec();
    put_texts(&mut out, roles);
    out
}

/// What was packed, with the time of the publication.
pub(super) fn with_stamp(packed: &[u8], stamp: u64) -> Vec<u8> {
    let (flags, rest) = packed.split_first_chunk::<2>().unwrap_or((&[0; 2], &[]));
    let flags = u16::from_le_bytes(*flags) | STAMP;
    [&flags.to_le_bytes()[..], &stamp.to_le_bytes(), rest].concat()
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u16).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn as_text(value: &Value<'_>) -> Option<String> {
    value.as_str().filter(|text| text.len() <= AUDIENCE_BYTES_MAX).map(str::to_owned)
}

/// The entries of a list, ascending, each once.
fn entries_of<T: Ord>(
    key: &str,
    value: Value<'_>,
    strict: bool,
    entries_max: usize,
    read: impl Fn(&Value<'_>) -> Option<T>,
) -> Result<Vec<T>, Refused> {
    let bad =
        || Refused::BadOption(BadOption(format!("PUBLISH.Options.{key} must be a list of ids or strings")));
    let mut entries = Vec::new();
    match &value {
        Value::List(list) => {
            for value in list.iter() {
                match read(&value) {
                    Some(_) if entries.len() >= entries_max => return Err(Refused::TooLong),
                    Some(entry) => entries.push(entry),
                    None if strict => return Err(bad()),
                    None => {}
                }
            }
        }
        _ if strict => return Err(bad()),
        value => entries.extend(read(value)),
    }
    entries.sort_unstable();
    entries.dedup();
    Ok(entries)
}

/// Returns how many they are.
fn put_sessions(out: &mut Vec<u8>, sessions: &[u64]) -> usize {
    out.extend_from_slice(&(sessions.len() as u16).to_le_bytes());
    sessions.iter().for_each(|session| out.extend_from_slice(&session.to_le_bytes()));
    sessions.len()
}

fn put_texts(out: &mut Vec<u8>, texts: &[String]) -> usize {
    out.extend_from_slice(&(texts.len() as u16).to_le_bytes());
    texts.iter().for_each(|text| put_bytes(out, text.as_bytes()));
    texts.len()
}

/// What was packed.
#[derive(Debug, Default)]
pub(super) struct Extra<'a> {
    pub publisher: Option<Disclosed<'a>>,
    /// When it was made, if some history keeps it; see `history`.
    pub stamp: Option<u64>,
    /// See `sharded`.
    pub resource_key: Option<u64>,
    /// Attributes of payload passthru mode, packed.
    pub ppt: &'a [u8],
    sessions: [Option<Sessions<'a>>; SESSION_LISTS],
    texts: [Option<Vec<&'a str>>; LISTS.len() - SESSION_LISTS],
}

/// Ascending ids.
#[derive(Clone, Copy, Debug)]
struct Sessions<'a>(&'a [[u8; 8]]);

impl Sessions<'_> {
    fn contains(self, session: u64) -> bool {
        self.0.binary_search_by_key(&session, |bytes| u64::from_le_bytes(*bytes)).is_ok()
    }
}

impl<'a> Extra<'a> {
    /// Reads what [`pack`] has written, here or on another node. Nothing: it is malformed.
    pub fn parse(mut bytes: &'a [u8]) -> Option<Self> {
        if bytes.is_empty() {
            return Some(Self::default());
        }
        let from = &mut bytes;
        let flags = u16::from_le_bytes(take(from)?);
        if flags & !FLAGS != 0 {
            return None;
        }
        let mut extra = Self::default();
        if flags & STAMP != 0 {
            extra.stamp = Some(u64::from_le_bytes(take(from)?));
        }
        if flags & RESOURCE_KEY != 0 {
            extra.resource_key = Some(u64::from_le_bytes(take(from)?));
        }
        if flags & DISCLOSE != 0 {
            extra.publisher = Some(Disclosed::unpack(take_bytes(from)?)?);
        }
        if flags & PASSTHRU != 0 {
            extra.ppt = take_bytes(from)?;
        }
        for at in (0..LISTS.len()).filter(|at| flags & LIST << at != 0) {
            let count = usize::from(u16::from_le_bytes(take(from)?));
            if count > AUDIENCE_ENTRIES_MAX {
                return None;
            }
            if at < SESSION_LISTS {
                let (sessions, rest) = from.split_at_checked(count * 8)?;
                *from = rest;
                extra.sessions[at] = Some(Sessions(sessions.as_chunks().0));
            } else {
                let texts = (0..count).map(|_| take_text(from)).collect::<Option<Vec<_>>>()?;
                extra.texts[at - SESSION_LISTS] = Some(texts);
            }
        }
        from.is_empty().then_some(extra)
    }

    /// The event tells more than its payload.
    pub fn has_details(&self) -> bool {
        self.publisher.is_some() || !self.ppt.is_empty()
    }

    /// What the event tells, by key.
    pub fn details(&self) -> Vec<(&'static str, Field<'_>)> {
        let mut details = Vec::new();
        details.extend(self.publisher.iter().flat_map(|publisher| publisher.fields(PUBLISHER)));
        details.extend(unpacked(self.ppt).map(|(key, text)| (key, Field::Str(text))));
        details
    }

    /// The publication is not for everybody.
    pub fn is_restricted(&self) -> bool {
        self.is_for_sessions() || self.texts.iter().any(Option::is_some)
    }

    /// Who gets the publication depends on ids of sessions.
    pub fn is_for_sessions(&self) -> bool {
        self.sessions.iter().any(Option::is_some)
    }

    /// True when a subscriber may get it: every list of who may has it, and no list of who may not.
    pub fn admits(&self, session: u64, authid: &str, authrole: &str) -> bool {
        let [exclude, eligible] = &self.sessions;
        let [exclude_authid, eligible_authid, exclude_authrole, eligible_authrole] = &self.texts;
        let has = |list: &Vec<&str>, text: &str| list.binary_search(&text).is_ok();
        exclude.is_none_or(|list| !list.contains(session))
            && eligible.is_none_or(|list| list.contains(session))
            && exclude_authid.as_ref().is_none_or(|list| !has(list, authid))
            && eligible_authid.as_ref().is_none_or(|list| has(list, authid))
            && exclude_authrole.as_ref().is_none_or(|list| !has(list, authrole))
            && eligible_authrole.as_ref().is_none_or(|list| has(list, authrole))
    }
}

fn take<const N: usize>(from: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = from.split_first_chunk::<N>()?;
    *from = rest;
    Some(*taken)
}

fn take_bytes<'a>(from: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = u16::from_le_bytes(take(from)?);
    let (taken, rest) = from.split_at_checked(length.into())?;
    *from = rest;
    Some(taken)
}

fn take_text<'a>(from: &mut &'a [u8]) -> Option<&'a str> {
    std::str::from_utf8(take_bytes(from)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::wire::{Message, Serializer, decode};
    use proptest::prelude::*;

    const ME: Disclosed<'static> =
        Disclosed { session: 9, authid: std::borrow::Cow::Borrowed("joe"), authrole: "admin" };

    fn with<T>(options: &str, read: impl FnOnce(&Dict<'_>) -> T) -> T {
        let publish = format!("[16, 1, {options}, \"a.b\"]");
        match decode(Serializer::Json, publish.as_bytes()).expect("a message") {
            Message::Publish { options, .. } => read(&options),
            other => panic!("{other:?}"),
        }
    }

    fn packed(options: &str, strict: bool) -> Result<Vec<u8>, Refused> {
        with(options, |dict| pack(dict, &ME, strict))
    }

    #[test]
    fn options_are_plain_unless_they_ask_for_more_than_a_reply_or_an_echo() {
        let read = |options: &str, strict| with(options, |dict| PublishOptions::read(dict, strict));
        let plain = PublishOptions { acknowledge: true, exclude_me: false, retain: false, is_plain: true };
        let text = r#"{"acknowledge": true, "exclude_me": false, "eligible": null, "other": 1}"#;
        assert_eq!(read(text, true).unwrap(), plain);
        for option in
            [r#""disclose_me": true"#, r#""retain": true"#, r#""eligible": []"#, r#""ppt_scheme": "x""#]
        {
            assert!(!read(&format!("{{{option}}}"), true).unwrap().is_plain, "{option}");
        }
        assert!(read(r#"{"acknowledge": 1}"#, true).is_err());
        assert!(!read(r#"{"acknowledge": 1}"#, false).unwrap().acknowledge);
    }

    #[test]
    fn what_an_event_tells_comes_back() {
        let text = r#"{"disclose_me": true, "ppt_scheme": "mqtt", "ppt_keyid": "k"}"#;
        let bytes = packed(text, true).unwrap();
        let extra = Extra::parse(&bytes).unwrap();
        assert_eq!(extra.publisher, Some(ME));
        let keys: Vec<_> = extra.details().iter().map(|(key, _)| *key).collect();
        assert_eq!(keys, ["publisher", "publisher_authid", "publisher_authrole", "ppt_scheme", "ppt_keyid"]);
        assert!(extra.has_details() && !extra.is_restricted());
        assert!(packed(r#"{"disclose_me": false}"#, true).unwrap().is_empty());
        assert!(packed(r#"{"disclose_me": 1}"#, true).is_err());
        assert!(packed(r#"{"disclose_me": 1}"#, false).unwrap().is_empty());
    }

    #[test]
    fn resource_keys_are_texts_or_integers() {
        let key = |options: &str, strict| {
            packed(options, strict).map(|bytes| Extra::parse(&bytes).unwrap().resource_key)
        };
        assert_eq!(key(r#"{"rkey": "7"}"#, true).unwrap(), Some(routing_key(b"7")));
        assert_eq!(key(r#"{"rkey": 7}"#, true).unwrap(), Some(routing_key(b"7")));
        assert_eq!(key(r#"{"rkey": [7]}"#, false).unwrap(), None);
        assert!(key(r#"{"rkey": [7]}"#, true).is_err());
        assert_eq!(key(r#"{"rkey": null}"#, true).unwrap(), None);
    }

    #[test]
    fn a_stamp_changes_nothing_else() {
        for options in ["{}", r#"{"disclose_me": true, "eligible": [7], "rkey": "a"}"#] {
            let bytes = packed(options, true).unwrap();
            let stamped = with_stamp(&bytes, 5 << 16);
            let (plain, extra) = (Extra::parse(&bytes).unwrap(), Extra::parse(&stamped).unwrap());
            assert_eq!((plain.stamp, extra.stamp), (None, Some(5 << 16)));
            assert_eq!(plain.admits(7, "a", "b"), extra.admits(7, "a", "b"));
            assert_eq!(plain.is_restricted(), extra.is_restricted());
            assert_eq!(plain.resource_key, extra.resource_key);
            assert_eq!(plain.publisher, extra.publisher);
        }
    }

    #[test]
    fn every_list_must_agree() {
        let admits = |options: &str| {
            let bytes = packed(options, true).unwrap();
            Extra::parse(&bytes).unwrap().admits(7, "joe", "user")
        };
        for yes in [
            "{}",
            r#"{"exclude": [6, 8], "eligible": [8, 7, 7]}"#,
            r#"{"eligible_authid": ["ann", "joe"], "exclude_authrole": ["admin"]}"#,
            r#"{"exclude": [], "exclude_authid": []}"#,
        ] {
            assert!(admits(yes), "{yes}");
        }
        for no in [
            r#"{"exclude": [7]}"#,
            r#"{"eligible": []}"#,
            r#"{"eligible": [7], "exclude_authrole": ["user"]}"#,
            r#"{"eligible": [7], "eligible_authrole": ["admin"]}"#,
            r#"{"exclude_authid": ["joe"]}"#,
            r#"{"eligible_authid": ["joey", "jo"]}"#,
        ] {
            assert!(!admits(no), "{no}");
        }
    }

    #[test]
    fn what_can_name_nobody_never_widens_the_audience() {
        for wrong in [r#"{"eligible": ["joe"]}"#, r#"{"eligible": {}}"#, r#"{"eligible_authid": 5}"#] {
            assert!(packed(wrong, true).is_err(), "{wrong}");
            let bytes = packed(wrong, false).unwrap();
            assert!(!Extra::parse(&bytes).unwrap().admits(7, "joe", "user"), "{wrong}");
        }
        let bytes = packed(r#"{"eligible": 7, "eligible_authrole": "user"}"#, false).unwrap();
        assert!(Extra::parse(&bytes).unwrap().admits(7, "joe", "user"));
    }

    #[test]
    fn lists_are_bounded() {
        let list = |entries: usize| {
            let ids: Vec<String> = (1..=entries).map(|id| id.to_string()).collect();
            format!(r#"{{"exclude": [{}]}}"#, ids.join(","))
        };
        assert!(packed(&list(AUDIENCE_ENTRIES_MAX), true).unwrap().len() <= EXTRA_BYTES_MAX);
        assert!(matches!(packed(&list(AUDIENCE_ENTRIES_MAX + 1), true), Err(Refused::TooLong)));
        let text = "x".repeat(1_000);
        let texts: Vec<String> = (0..30).map(|n| format!("\"{n}{text}\"")).collect();
        let long = format!(r#"{{"exclude_authid": [{}]}}"#, texts.join(","));
        assert!(matches!(packed(&long, false), Err(Refused::TooLong)));
    }

    proptest! {
        #[test]
        fn lists_come_back_as_they_were_read(
            exclude in proptest::collection::vec(any::<u64>(), 0..9),
            eligible in proptest::collection::vec("[a-z]{0,3}", 0..9),
            session: u64, authid in "[a-z]{0,2}",
        ) {
            let (ids, names) = (format!("{exclude:?}"), format!("{eligible:?}"));
            let bytes = packed(&format!(r#"{{"exclude": {ids}, "eligible_authid": {names}}}"#), true).unwrap();
            let expected = !exclude.contains(&session) && eligible.contains(&authid);
            let extra = Extra::parse(&bytes).unwrap();
            prop_assert_eq!(extra.admits(session, &authid, "x"), expected);
            for id in exclude {
                prop_assert!(!extra.admits(id, &authid, "x"));
            }
            for cut in 1..bytes.len() {
                prop_assert!(Extra::parse(&bytes[..cut]).is_none());
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Some(extra) = Extra::parse(&bytes) {
                extra.admits(1, "a", "b");
                extra.details();
            }
        }
    }
}
