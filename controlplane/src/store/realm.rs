//! The value of a realm object: its canonical bytes. The name is the object's key. Pure.
//!
//! ```text
//! version u8 = 1 │ strict u8 │ uri_strict u8 │ anonymous u8                  as it is put, and in stores of early versions
//! version u8 = 2 │ strict u8 │ uri_strict u8 │ anonymous u8 │ 3 × stamp u64   as it is stored, little-endian
//! version u8 = 3 │ as 1 │ rules                                              as it is put, when it has rules
//! version u8 = 4 │ as 2 │ stamp u64 │ rules                                  as it is stored, once it had rules
//! ```
//! Each field has the stamp of its last change; [`Rules`] are one field, in the form they are packed in. Of values that
//! compete each field is taken from the one with the greatest stamp, so two operators who change two settings at once both
//! get their way.

use super::record::{Hlc, Reader, RecordError, require};
use common::config::RealmConfig;
use common::rules::Rules;
use common::snapshot::Anonymous;

/// The settings of a realm, and when each was changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    strict: (Hlc, bool),
    uri_strict: (Hlc, bool),
    anonymous: (Hlc, u8),
    rules: (Hlc, Rules),
}

/// As it is to be put.
pub fn encode(realm: &RealmConfig) -> Vec<u8> {
    let rules = realm.rules.pack();
    let version = if rules.is_empty() { WISH } else { WISH_WITH_RULES };
    let mut out = vec![version, realm.strict.into(), realm.uri_strict.into(), realm.anonymous as u8];
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
    })
}

/// The bytes to store for those that are put at `stamp` over `before`: what does not change keeps its stamp. Bytes that are
/// stamped already, or no realm, stay as they are.
pub fn stamped(put: &[u8], before: Option<Settings>, stamp: Hlc) -> Vec<u8> {
    match Settings::decode(put, stamp) {
        Ok(settings) if is_wish(put[0]) => {
            // A realm that never had rules has the form of versions without them.
            let rules_before = before.as_ref().map_or_else(Default::default, |before| before.rules.clone());
            let rules = field((stamp, settings.rules.1.clone()), rules_before);
            let settings = before.map_or(settings.clone(), |before| settings.after(before));
            Settings { rules, ..settings }.encode()
        }
        _ => put.to_vec(),
    }
}

impl Settings {
    /// `stamp`: that of all fields, if the bytes have none.
    pub fn decode(bytes: &[u8], stamp: Hlc) -> Result<Self, RecordError> {
        let mut reader = Reader(bytes);
        let version = reader.byte()?;
        if !(WISH..=STAMPED_WITH_RULES).contains(&version) {
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
        let mut stamp = || if is_wish(version) { Ok(stamp) } else { reader.u64().map(Hlc) };
        let (strict, uri_strict, anonymous) = ((stamp()?, strict), (stamp()?, uri_strict), (stamp()?, who));
        let mut rules = (Hlc::default(), Rules::default());
        if matches!(version, WISH_WITH_RULES | STAMPED_WITH_RULES) {
            let stamp = stamp()?;
            let read = Rules::unpack(reader.0).map_err(|_| RecordError::Form("the rules of a realm"))?;
            reader.0 = &[];
            let is_needed =
                read != Rules::default() || version == STAMPED_WITH_RULES && stamp != Hlc::default();
            require(is_needed, "rules that say nothing")?;
            rules = (stamp, read);
        }
        require(reader.0.is_empty(), "bytes after a realm")?;
        Ok(Self { strict, uri_strict, anonymous, rules })
    }

    pub fn encode(&self) -> Vec<u8> {
        let has_rules = self.rules != Default::default();
        let version = if has_rules { STAMPED_WITH_RULES } else { STAMPED };
        let mut out = vec![version, self.strict.1.into(), self.uri_strict.1.into(), self.anonymous.1];
        for stamp in [self.strict.0, self.uri_strict.0, self.anonymous.0] {
            out.extend_from_slice(&stamp.0.to_le_bytes());
        }
        if has_rules {
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
        }
    }

    fn after(self, before: Self) -> Self {
        Self {
            strict: field(self.strict, before.strict),
            uri_strict: field(self.uri_strict, before.uri_strict),
            anonymous: field(self.anonymous, before.anonymous),
            rules: field(self.rules, before.rules),
        }
    }
}

/// What does not change keeps its stamp.
fn field<T: PartialEq>(new: (Hlc, T), old: (Hlc, T)) -> (Hlc, T) {
    if new.1 == old.1 { old } else { new }
}

const fn is_wish(version: u8) -> bool {
    matches!(version, WISH | WISH_WITH_RULES)
}

fn anonymous(number: u8) -> Result<Anonymous, RecordError> {
    match number {
        0 => Ok(Anonymous::Nobody),
        1 => Ok(Anonymous::Loopback),
        2 => Ok(Anonymous::Anybody),
        _ => Err(RecordError::Form("who may join a realm")),
    }
}

/// Versions: without and with stamps.
const WISH: u8 = 1;
const STAMPED: u8 = 2;
const WISH_WITH_RULES: u8 = 3;
const STAMPED_WITH_RULES: u8 = 4;

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
        let ruled = RealmConfig { rules: off(1), ..realm };
        let wish = [&[3, 1, 0, 2][..], &off(1).pack()].concat();
        assert_eq!((encode(&ruled), decode("a", &wish)), (wish.clone(), Ok(ruled.clone())));
        let stored = stamped(&wish, None, Hlc(5));
        let stamps = [5, 0, 0, 0, 0, 0, 0, 0].repeat(4);
        assert_eq!(stored, [&[4, 1, 0, 2][..], &stamps, &off(1).pack()].concat());
        assert_eq!(decode("a", &stored), Ok(ruled));
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
    fn a_put_stamps_what_it_changes_and_nothing_else() {
        let before = Settings::decode(&[1, 1, 0, 2], Hlc(5)).unwrap();
        let after = Settings::decode(&stamped(&[1, 1, 1, 2], Some(before.clone()), Hlc(9)), Hlc(0)).unwrap();
        assert_eq!(after, Settings { uri_strict: (Hlc(9), true), ..before.clone() });
        assert_eq!(stamped(&after.encode(), Some(before), Hlc(77)), after.encode(), "it has its stamps");
        assert_eq!(stamped(b"other", None, Hlc(1)), b"other");
    }

    fn settings() -> impl Strategy<Value = Settings> {
        let rules = (0u64..4, (0u64..3).prop_map(off));
        ((0u64..4, any::<bool>()), (0u64..4, any::<bool>()), (0u64..4, 0u8..3), rules).prop_map(
            |(one, two, three, rules)| Settings {
                strict: (Hlc(one.0), one.1),
                uri_strict: (Hlc(two.0), two.1),
                anonymous: (Hlc(three.0), three.1),
                rules: (Hlc(rules.0), rules.1),
            },
        )
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
