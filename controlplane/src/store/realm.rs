//! The value of a realm object: its canonical bytes. The name is the object's key. Pure.
//!
//! ```text
//! version u8 = 1 │ strict u8 │ uri_strict u8 │ anonymous u8                  as it is put, and in stores of early versions
//! version u8 = 2 │ strict u8 │ uri_strict u8 │ anonymous u8 │ 3 × stamp u64   as it is stored, little-endian
//! version u8 = 3 │ as 1 │ rules                                              as it is put, when it has rules
//! version u8 = 4 │ as 2 │ stamp u64 │ rules                                  as it is stored, once it had rules
//! version u8 = 5 │ as 1 │ histories │ rules                                  as it is put, when it has histories
//! version u8 = 6 │ as 2 │ stamp u64 │ histories │ stamp u64 │ rules          as it is stored, once it had histories
//! histories = count u8 │ (policy u8 │ events_max u32 │ bytes_max u64 │ age_max_ms u64 │ URI: length u16, bytes) ...
//! ```
//! Each field has the stamp of its last change; [`Rules`] are one field, in the form they are packed in. Of values that
//! compete each field is taken from the one with the greatest stamp, so two operators who change two settings at once both
//! get their way.

use super::record::{Hlc, Reader, RecordError, require};
use common::config::RealmConfig;
use common::history::{HISTORIES_MAX, History};
use common::ids::Match;
use common::rules::Rules;
use common::snapshot::Anonymous;

/// The settings of a realm, and when each was changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    strict: (Hlc, bool),
    uri_strict: (Hlc, bool),
    anonymous: (Hlc, u8),
    rules: (Hlc, Rules),
    histories: (Hlc, Vec<History>),
}

/// As it is to be put.
pub fn encode(realm: &RealmConfig) -> Vec<u8> {
    let rules = realm.rules.pack();
    let version = match (realm.histories.is_empty(), rules.is_empty()) {
        (true, true) => WISH,
        (true, false) => WISH_WITH_RULES,
        (false, _) => WISH_WITH_HISTORIES,
    };
    let mut out = vec![version, realm.strict.into(), realm.uri_strict.into(), realm.anonymous as u8];
    if version == WISH_WITH_HISTORIES {
        put_histories(&mut out, &realm.histories);
    }
    out.extend_from_slice(&rules);
    out
}

pub fn decode(name: &str, bytes: &[u8]) -> Result<RealmConfig, RecordError> {
    let settings = Settings::decode(bytes, Hlc::default())?;
    let anonymous = anonymous(settings.anonymous.1)?;
    Ok(RealmConfig {
        name: name.to_owned(),
        strict: settings.strict.1,
        uri_strict: settings.uri_strict.1,
        anonymous,
        rules: settings.rules.1,
        histories: settings.histories.1,
    })
}

/// The bytes to store for those that are put at `stamp` over `before`: what does not change keeps its stamp. Bytes that are
/// stamped already, or no realm, stay as they are.
pub fn stamped(put: &[u8], before: Option<Settings>, stamp: Hlc) -> Vec<u8> {
    match Settings::decode(put, stamp) {
        Ok(settings) if is_wish(put[0]) => {
            // A realm that never had rules or histories has the form of versions without them.
            let said_before =
                before.clone().map_or_else(Default::default, |said| (said.rules, said.histories));
            let rules = field((stamp, settings.rules.1.clone()), said_before.0);
            let histories = field((stamp, settings.histories.1.clone()), said_before.1);
            let settings = before.map_or(settings.clone(), |before| settings.after(before));
            Settings { rules, histories, ..settings }.encode()
        }
        _ => put.to_vec(),
    }
}

impl Settings {
    /// `stamp`: that of all fields, if the bytes have none.
    pub fn decode(bytes: &[u8], stamp: Hlc) -> Result<Self, RecordError> {
        let mut reader = Reader(bytes);
        let version = reader.byte()?;
        if !(WISH..=STAMPED_WITH_HISTORIES).contains(&version) {
            return Err(RecordError::Version);
        }
        let mut flag = || match reader.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(RecordError::Form("a flag of a realm")),
        };
        let (strict, uri_strict) = (flag()?, flag()?);
        let who = reader.byte()?;
        anonymous(who)?;
        let is_stamped = !is_wish(version);
        let stamp = |reader: &mut Reader<'_>| match is_stamped {
            true => reader.u64().map(Hlc),
            false => Ok(stamp),
        };
        let from = &mut reader;
        let (strict, uri_strict) = ((stamp(from)?, strict), (stamp(from)?, uri_strict));
        let anonymous = (stamp(from)?, who);
        let mut histories = (Hlc::default(), Vec::new());
        if matches!(version, WISH_WITH_HISTORIES | STAMPED_WITH_HISTORIES) {
            histories = (stamp(from)?, read_histories(from)?);
            let is_needed = !histories.1.is_empty() || is_stamped && histories.0 != Hlc::default();
            require(is_needed, "histories that say nothing")?;
        }
        let mut rules = (Hlc::default(), Rules::default());
        if version > STAMPED {
            let stamp = stamp(from)?;
            let read = Rules::unpack(from.0).map_err(|_| RecordError::Form("the rules of a realm"))?;
            from.0 = &[];
            let is_needed = read != Rules::default()
                || version == STAMPED_WITH_RULES && stamp != Hlc::default()
                || version > STAMPED_WITH_RULES;
            require(is_needed, "rules that say nothing")?;
            let is_said = is_stamped || read != Rules::default();
            rules = (if is_said { stamp } else { Hlc::default() }, read);
        }
        require(from.0.is_empty(), "bytes after a realm")?;
        Ok(Self { strict, uri_strict, anonymous, rules, histories })
    }

    pub fn encode(&self) -> Vec<u8> {
        let has_rules = self.rules != Default::default();
        let has_histories = self.histories != Default::default();
        let version = match (has_histories, has_rules) {
            (false, false) => STAMPED,
            (false, true) => STAMPED_WITH_RULES,
            (true, _) => STAMPED_WITH_HISTORIES,
        };
        let mut out = vec![version, self.strict.1.into(), self.uri_strict.1.into(), self.anonymous.1];
        for stamp in [self.strict.0, self.uri_strict.0, self.anonymous.0] {
            out.extend_from_slice(&stamp.0.to_le_bytes());
        }
        if has_histories {
            out.extend_from_slice(&self.histories.0.0.to_le_bytes());
            put_histories(&mut out, &self.histories.1);
        }
        if has_rules || has_histories {
            out.extend_from_slice(&self.rules.0.0.to_le_bytes());
            out.extend_from_slice(&self.rules.1.pack());
        }
        out
    }

    /// Each field from the side that changed it last; of two changes with one stamp the greater.
    #[must_use]
    pub fn join(self, other: Self) -> Self {
        Self {
            strict: self.strict.max(other.strict),
            uri_strict: self.uri_strict.max(other.uri_strict),
            anonymous: self.anonymous.max(other.anonymous),
            rules: self.rules.max(other.rules),
            histories: self.histories.max(other.histories),
        }
    }

    fn after(self, before: Self) -> Self {
        Self {
            strict: field(self.strict, before.strict),
            uri_strict: field(self.uri_strict, before.uri_strict),
            anonymous: field(self.anonymous, before.anonymous),
            rules: field(self.rules, before.rules),
            histories: field(self.histories, before.histories),
        }
    }
}

/// What does not change keeps its stamp.
fn field<T: PartialEq>(new: (Hlc, T), old: (Hlc, T)) -> (Hlc, T) {
    if new.1 == old.1 { old } else { new }
}

const fn is_wish(version: u8) -> bool {
    matches!(version, WISH | WISH_WITH_RULES | WISH_WITH_HISTORIES)
}

fn anonymous(number: u8) -> Result<Anonymous, RecordError> {
    match number {
        0 => Ok(Anonymous::Nobody),
        1 => Ok(Anonymous::Loopback),
        2 => Ok(Anonymous::Anybody),
        _ => Err(RecordError::Form("who may join a realm")),
    }
}

fn put_histories(out: &mut Vec<u8>, histories: &[History]) {
    out.push(histories.len() as u8);
    for history in histories {
        out.push(history.policy as u8);
        out.extend_from_slice(&history.events_max.to_le_bytes());
        out.extend_from_slice(&history.bytes_max.to_le_bytes());
        out.extend_from_slice(&history.age_max_ms.to_le_bytes());
        out.extend_from_slice(&(history.uri.len() as u16).to_le_bytes());
        out.extend_from_slice(history.uri.as_bytes());
    }
}

/// Histories that are in order and of topics.
fn read_histories(reader: &mut Reader<'_>) -> Result<Vec<History>, RecordError> {
    const POLICIES: [Match; 3] = [Match::Exact, Match::Prefix, Match::Wildcard];
    let count = usize::from(reader.byte()?);
    require(count <= HISTORIES_MAX, "too many histories")?;
    let mut histories = Vec::with_capacity(count);
    for _ in 0..count {
        let policy = POLICIES.get(usize::from(reader.byte()?)).copied();
        let policy = policy.ok_or(RecordError::Form("the policy of a history"))?;
        let (events_max, bytes_max, age_max_ms) = (reader.u32()?, reader.u64()?, reader.u64()?);
        let length = usize::from(reader.u16()?);
        let uri = std::str::from_utf8(reader.take(length)?);
        let uri = uri.map_err(|_| RecordError::Form("the topic of a history"))?.to_owned();
        histories.push(History { policy, uri, events_max, bytes_max, age_max_ms });
    }
    let mut sorted = histories.clone();
    let is_good = History::check_all(&mut sorted).is_ok() && sorted == histories;
    require(is_good, "the histories of a realm")?;
    Ok(histories)
}

/// Versions: without and with stamps, and the same with histories.
const WISH: u8 = 1;
const STAMPED: u8 = 2;
const WISH_WITH_RULES: u8 = 3;
const STAMPED_WITH_RULES: u8 = 4;
const WISH_WITH_HISTORIES: u8 = 5;
const STAMPED_WITH_HISTORIES: u8 = 6;

#[cfg(test)]
mod tests {
    use super::*;
    use common::features::FeatureSet;
    use common::rules::Bounds;
    use proptest::prelude::*;

    #[test]
    fn the_forms_are_frozen() {
        let realm = RealmConfig { strict: true, anonymous: Anonymous::Anybody, ..RealmConfig::named("a") };
        assert_eq!(encode(&realm), [1, 1, 0, 2]);
        assert_eq!(decode("a", &[1, 1, 0, 2]), Ok(realm.clone()));
        let stored = stamped(&[1, 1, 0, 2], None, Hlc(5));
        assert_eq!(stored, [&[2, 1, 0, 2][..], &[5, 0, 0, 0, 0, 0, 0, 0].repeat(3)].concat());
        assert_eq!(decode("a", &stored), Ok(realm.clone()));
        let ruled = RealmConfig { rules: off(1), ..realm.clone() };
        let wish = [&[3, 1, 0, 2][..], &off(1).pack()].concat();
        assert_eq!((encode(&ruled), decode("a", &wish)), (wish.clone(), Ok(ruled.clone())));
        let stored = stamped(&wish, None, Hlc(5));
        let stamps = [5, 0, 0, 0, 0, 0, 0, 0].repeat(4);
        assert_eq!(stored, [&[4, 1, 0, 2][..], &stamps, &off(1).pack()].concat());
        assert_eq!(decode("a", &stored), Ok(ruled));
        let log =
            History { events_max: 5, bytes_max: 1 << 10, age_max_ms: 7, ..History::of(Match::Prefix, "b") };
        let histories = b"\x01\x01\x05\0\0\0\0\x04\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\x01\0b";
        for (rules, since) in [(Rules::default(), 0), (off(1), 5)] {
            let realm = RealmConfig { histories: vec![log.clone()], rules: rules.clone(), ..realm.clone() };
            assert_eq!(encode(&realm), [&[5, 1, 0, 2][..], &histories[..], &rules.pack()].concat());
            assert_eq!(decode("a", &encode(&realm)), Ok(realm.clone()));
            let stored = stamped(&encode(&realm), None, Hlc(5));
            let since = [since, 0, 0, 0, 0, 0, 0, 0];
            let expected = [&[6, 1, 0, 2][..], &stamps, &histories[..], &since, &rules.pack()].concat();
            assert_eq!(stored, expected);
            assert_eq!(decode("a", &stored), Ok(realm));
        }
    }

    fn off(features: u64) -> Rules {
        Rules::new(FeatureSet(features), Bounds::NONE, vec![]).unwrap()
    }

    #[test]
    fn rules_that_are_taken_back_leave_their_stamp() {
        let put = |wish: &RealmConfig, before: &[u8], stamp| {
            stamped(&encode(wish), Settings::decode(before, Hlc(0)).ok(), Hlc(stamp))
        };
        let (bare, ruled) =
            (RealmConfig::named("a"), RealmConfig { rules: off(1), ..RealmConfig::named("a") });
        let first = put(&bare, &[], 3);
        let second = put(&ruled, &first, 5);
        let third = put(&bare, &second, 7);
        let settings = |bytes: &[u8]| Settings::decode(bytes, Hlc(0)).unwrap();
        assert_eq!(settings(&third), Settings { rules: (Hlc(7), Rules::default()), ..settings(&first) });
        assert_eq!(settings(&third).join(settings(&second)), settings(&third), "the later change counts");
        assert_eq!(put(&bare, &third, 9), third);
    }

    #[test]
    fn histories_are_taken_away_by_a_put_without_them_and_stay_away() {
        let with = RealmConfig { histories: vec![History::of(Match::Exact, "b")], ..RealmConfig::named("a") };
        let without = RealmConfig::named("a");
        let settings = |bytes: &[u8]| Settings::decode(bytes, Hlc(0)).expect("a realm");
        let first = stamped(&encode(&with), None, Hlc(5));
        let second = stamped(&encode(&without), Some(settings(&first)), Hlc(9));
        assert_eq!(decode("a", &second), Ok(without));
        assert_eq!(settings(&second).histories, (Hlc(9), vec![]));
        assert_eq!(settings(&first).join(settings(&second)), settings(&second));
    }

    #[test]
    fn a_put_stamps_what_it_changes_and_nothing_else() {
        let before = Settings::decode(&[1, 1, 0, 2], Hlc(5)).unwrap();
        let after = Settings::decode(&stamped(&[1, 1, 1, 2], Some(before.clone()), Hlc(9)), Hlc(0)).unwrap();
        assert_eq!(after, Settings { uri_strict: (Hlc(9), true), ..before.clone() });
        assert_eq!(stamped(&after.encode(), Some(before), Hlc(77)), after.encode(), "it has its stamps");
        assert_eq!(stamped(b"other", None, Hlc(1)), b"other");
    }

    fn settings() -> impl Strategy<Value = Settings> {
        let rules = (0u64..4, (0u64..3).prop_map(off));
        let history = (0u64..4, 0u32..3);
        let flags = ((0u64..4, any::<bool>()), (0u64..4, any::<bool>()));
        (flags, (0u64..4, 0u8..3), rules, history).prop_map(|((one, two), three, rules, four)| Settings {
            strict: (Hlc(one.0), one.1),
            uri_strict: (Hlc(two.0), two.1),
            anonymous: (Hlc(three.0), three.1),
            rules: (Hlc(rules.0), rules.1),
            histories: (
                Hlc(four.0),
                (0..four.1).map(|n| History::of(Match::Exact, &n.to_string())).collect(),
            ),
        })
    }

    proptest! {
        #[test]
        fn a_realm_has_one_form(mut bytes in proptest::collection::vec(0u8..5, 0..30), rules in 0u64..3) {
            if bytes.first().is_some_and(|version| *version >= WISH_WITH_RULES) {
                bytes.extend_from_slice(&off(rules).pack());
            }
            if let Ok(settings) = Settings::decode(&bytes, Hlc(0)) {
                if !is_wish(bytes[0]) {
                    prop_assert_eq!(settings.encode(), bytes);
                } else {
                    prop_assert_eq!(encode(&decode("a", &bytes).unwrap()), bytes);
                }
            }
        }

        #[test]
        fn join_is_a_join(one in settings(), two in settings(), three in settings()) {
            let join = |one: &Settings, two: &Settings| one.clone().join(two.clone());
            prop_assert_eq!(join(&one, &two), join(&two, &one));
            prop_assert_eq!(join(&join(&one, &two), &three), join(&one, &join(&two, &three)));
            prop_assert_eq!(join(&one, &one), one.clone());
            prop_assert_eq!(Settings::decode(&one.encode(), Hlc(0)), Ok(one));
        }
    }
}
