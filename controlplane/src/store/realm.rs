//! The value of a realm object: its canonical bytes. The name is the object's key. Pure.
//!
//! `version u8 = 1 │ strict u8 │ uri_strict u8 │ anonymous u8`

use super::record::{Reader, RecordError, require};
use common::config::RealmConfig;
use common::snapshot::Anonymous;

pub fn encode(realm: &RealmConfig) -> Vec<u8> {
    vec![VERSION, realm.strict.into(), realm.uri_strict.into(), realm.anonymous as u8]
}

pub fn decode(name: &str, bytes: &[u8]) -> Result<RealmConfig, RecordError> {
    let mut reader = Reader(bytes);
    if reader.byte()? != VERSION {
        return Err(RecordError::Version);
    }
    let mut flag = || match reader.byte()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(RecordError::Form("a flag of a realm")),
    };
    let (strict, uri_strict) = (flag()?, flag()?);
    let anonymous = match reader.byte()? {
        0 => Anonymous::Nobody,
        1 => Anonymous::Loopback,
        2 => Anonymous::Anybody,
        _ => return Err(RecordError::Form("who may join a realm")),
    };
    require(reader.0.is_empty(), "bytes after a realm")?;
    Ok(RealmConfig { name: name.to_owned(), strict, uri_strict, anonymous })
}

const VERSION: u8 = 1;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_form_is_frozen() {
        let realm =
            RealmConfig { name: "a".into(), strict: true, uri_strict: false, anonymous: Anonymous::Anybody };
        assert_eq!(encode(&realm), [1, 1, 0, 2]);
        assert_eq!(decode("a", &[1, 1, 0, 2]), Ok(realm));
    }

    proptest! {
        #[test]
        fn a_realm_has_one_form(bytes in proptest::collection::vec(0u8..4, 0..6)) {
            if let Ok(realm) = decode("a", &bytes) {
                prop_assert_eq!(encode(&realm), bytes);
            }
        }
    }
}
