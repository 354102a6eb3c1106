//! The value of a realm object: its canonical bytes. The name is the object's key. Pure.
//!
//! ```text
//! version u8 = 1 │ strict u8 │ uri_strict u8 │ anonymous u8                  as it is put, and in stores of early versions
//! version u8 = 2 │ strict u8 │ uri_strict u8 │ anonymous u8 │ 3 × stamp u64   as it is stored, little-endian
//! ```
//! Each field has the stamp of its last change. Of values that compete each field is taken from the one with the
//! greatest stamp, so two operators who change two settings at once both get their way.

use super::record::{Hlc, Reader, RecordError, require};
use common::config::RealmConfig;
use common::snapshot::Anonymous;

/// The settings of a realm, and when each was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    strict: (Hlc, bool),
    uri_strict: (Hlc, bool),
    anonymous: (Hlc, u8),
}

/// As it is to be put.
pub fn encode(realm: &RealmConfig) -> Vec<u8> {
    vec![WISH, realm.strict.into(), realm.uri_strict.into(), realm.anonymous as u8]
}

pub fn decode(name: &str, bytes: &[u8]) -> Result<RealmConfig, RecordError> {
    let settings = Settings::decode(bytes, Hlc::default())?;
    let anonymous = anonymous(settings.anonymous.1)?;
    Ok(RealmConfig {
        name: name.to_owned(),
        strict: settings.strict.1,
        uri_strict: settings.uri_strict.1,
        anonymous,
    })
}

/// The bytes to store for those that are put at `stamp` over `before`: what does not change keeps its stamp. Bytes that are
/// stamped already, or no realm, stay as they are.
pub fn stamped(put: &[u8], before: Option<Settings>, stamp: Hlc) -> Vec<u8> {
    match Settings::decode(put, stamp) {
        Ok(settings) if put.first() == Some(&WISH) => {
            before.map_or(settings, |before| settings.after(before)).encode()
        }
        _ => put.to_vec(),
    }
}

impl Settings {
    /// `stamp`: that of all fields, if the bytes have none.
    pub fn decode(bytes: &[u8], stamp: Hlc) -> Result<Self, RecordError> {
        let mut reader = Reader(bytes);
        let version = reader.byte()?;
        if version != WISH && version != STAMPED {
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
        let mut stamp = || if version == WISH { Ok(stamp) } else { reader.u64().map(Hlc) };
        let settings = Self {
            strict: (stamp()?, strict),
            uri_strict: (stamp()?, uri_strict),
            anonymous: (stamp()?, who),
        };
        require(reader.0.is_empty(), "bytes after a realm")?;
        Ok(settings)
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![STAMPED, self.strict.1.into(), self.uri_strict.1.into(), self.anonymous.1];
        for stamp in [self.strict.0, self.uri_strict.0, self.anonymous.0] {
            out.extend_from_slice(&stamp.0.to_le_bytes());
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
        }
    }

    fn after(self, before: Self) -> Self {
        fn field<T: PartialEq>(new: (Hlc, T), old: (Hlc, T)) -> (Hlc, T) {
            if new.1 == old.1 { old } else { new }
        }
        Self {
            strict: field(self.strict, before.strict),
            uri_strict: field(self.uri_strict, before.uri_strict),
            anonymous: field(self.anonymous, before.anonymous),
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_forms_are_frozen() {
        let realm =
            RealmConfig { name: "a".into(), strict: true, uri_strict: false, anonymous: Anonymous::Anybody };
        assert_eq!(encode(&realm), [1, 1, 0, 2]);
        assert_eq!(decode("a", &[1, 1, 0, 2]), Ok(realm.clone()));
        let stored = stamped(&[1, 1, 0, 2], None, Hlc(5));
        assert_eq!(stored, [&[2, 1, 0, 2][..], &[5, 0, 0, 0, 0, 0, 0, 0].repeat(3)].concat());
        assert_eq!(decode("a", &stored), Ok(realm));
    }

    #[test]
    fn a_put_stamps_what_it_changes_and_nothing_else() {
        let before = Settings::decode(&[1, 1, 0, 2], Hlc(5)).unwrap();
        let after = Settings::decode(&stamped(&[1, 1, 1, 2], Some(before), Hlc(9)), Hlc(0)).unwrap();
        assert_eq!(after, Settings { uri_strict: (Hlc(9), true), ..before });
        assert_eq!(stamped(&after.encode(), Some(before), Hlc(77)), after.encode(), "it has its stamps");
        assert_eq!(stamped(b"other", None, Hlc(1)), b"other");
    }

    fn settings() -> impl Strategy<Value = Settings> {
        ((0u64..4, any::<bool>()), (0u64..4, any::<bool>()), (0u64..4, 0u8..3)).prop_map(
            |(one, two, three)| Settings {
                strict: (Hlc(one.0), one.1),
                uri_strict: (Hlc(two.0), two.1),
                anonymous: (Hlc(three.0), three.1),
            },
        )
    }

    proptest! {
        #[test]
        fn a_realm_has_one_form(bytes in proptest::collection::vec(0u8..4, 0..30)) {
            if let Ok(settings) = Settings::decode(&bytes, Hlc(0)) {
                if bytes[0] == STAMPED {
                    prop_assert_eq!(settings.encode(), bytes);
                } else {
                    prop_assert_eq!(encode(&decode("a", &bytes).unwrap()), bytes);
                }
            }
        }

        #[test]
        fn join_is_a_join(one in settings(), two in settings(), three in settings()) {
            prop_assert_eq!(one.join(two), two.join(one));
            prop_assert_eq!(one.join(two).join(three), one.join(two.join(three)));
            prop_assert_eq!(one.join(one), one);
        }
    }
}
