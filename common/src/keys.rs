//! The key file of a cluster. Pure; nothing of a key is ever shown.

use std::fmt;

/// The secret keys of a cluster in the order of the file: the first one is used to speak, any to listen, so keys can be
/// changed node by node.
#[derive(Clone)]
pub struct ClusterKeys(Vec<ClusterKey>);

/// One secret key.
#[derive(Clone)]
pub struct ClusterKey([u8; 32]);

/// Names a key without telling anything of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KeyId(pub [u8; 8]);

/// Why a key file is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum KeyError {
    #[error("line {line}: found no key, allowed: {KEY_DIGITS} hexadecimal digits (openssl rand -hex 32)")]
    Line { line: usize },
    #[error("found no key; one line a key, {KEY_DIGITS} hexadecimal digits each (openssl rand -hex 32)")]
    Empty,
    #[error("found more than {KEYS_MAX} keys")]
    Many,
}

impl ClusterKeys {
    /// Reads a key file: one key a line; empty lines and those that start with `#` do not count.
    ///
    /// # Errors
    /// No key, too many, or a line that is none.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let mut keys = vec![];
        for (index, line) in text.lines().map(str::trim).enumerate() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let key = hexadecimal(line).ok_or(KeyError::Line { line: index + 1 })?;
            if keys.len() == KEYS_MAX {
                return Err(KeyError::Many);
            }
            keys.push(ClusterKey(key));
        }
        if keys.is_empty() { Err(KeyError::Empty) } else { Ok(Self(keys)) }
    }

    /// The key to speak with.
    pub fn first(&self) -> &ClusterKey {
        self.0.first().expect("a key file has a key")
    }

    pub fn iter(&self) -> impl Iterator<Item = &ClusterKey> {
        self.0.iter()
    }

    pub fn by_id(&self, id: KeyId) -> Option<&ClusterKey> {
        self.iter().find(|key| key.id() == id)
    }
}

impl ClusterKey {
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub fn id(&self) -> KeyId {
        let hash = blake3::derive_key("signalbox cluster key id", &self.0);
        KeyId(std::array::from_fn(|index| hash[index]))
    }
}

impl fmt::Debug for ClusterKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} keys", self.0.len())
    }
}

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key {:?}", self.id())
    }
}

fn hexadecimal(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    if digits.len() != KEY_DIGITS {
        return None;
    }
    let mut key = [0; 32];
    for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
        let [high, low] = [pair[0], pair[1]].map(|digit| char::from(digit).to_digit(16));
        *byte = (high? << 4 | low?) as u8;
    }
    Some(key)
}

const KEY_DIGITS: usize = 64;
/// More than one rotation at a time needs.
const KEYS_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_file_has_comments_and_its_errors_name_the_line_only() {
        let key = "0f".repeat(32);
        assert_eq!(ClusterKeys::parse(&format!("# old\n\n {key} \n{key}")).unwrap().0.len(), 2);
        assert_eq!(ClusterKeys::parse(" \n# none").err(), Some(KeyError::Empty));
        for bad in ["secret", &"0g".repeat(32), &key[1..], &format!("{key}0")] {
            let error = ClusterKeys::parse(&format!("{key}\n{bad}")).err().unwrap();
            assert_eq!(error, KeyError::Line { line: 2 });
            assert!(!error.to_string().contains(bad));
        }
        assert_eq!(ClusterKeys::parse(&format!("{key}\n").repeat(9)).err(), Some(KeyError::Many));
    }

    #[test]
    fn keys_are_found_by_an_id_and_not_shown() {
        let keys = ClusterKeys::parse(&format!("{}\n{}", "0f".repeat(32), "0e".repeat(32))).unwrap();
        for key in keys.iter() {
            assert_eq!(keys.by_id(key.id()).unwrap().bytes(), key.bytes());
        }
        assert!(keys.by_id(KeyId([0; 8])).is_none());
        assert_eq!(format!("{keys:?}"), "2 keys");
        assert!(!format!("{:?}", keys.first()).contains("15, 15"));
    }
}
