//! Packets of the membership port, sealed with the cluster's key. Pure.
//!
//! ```text
//! "SBm" │ packet version u8 │ env tag [8] │ nonce: boot [16], number u64 │ ciphertext and tag (XChaCha20-Poly1305)
//! ```
//! The associated data is all before the nonce and the name of the env, so a packet of another env or version opens with
//! no key. A nonce is never used twice: its first part is random for each start, its second counts packets. The same
//! number tells replayed packets from new ones.

use super::DropReason;
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};
use common::keys::ClusterKeys;
pub use common::keys::KeyError;

/// The keys of a cluster as ciphers: the first one seals, any opens.
#[derive(Clone)]
pub struct Keyring(Vec<XChaCha20Poly1305>);

impl Keyring {
    /// Reads a key file.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        Ok(Self::new(&ClusterKeys::parse(text)?))
    }

    pub fn new(keys: &ClusterKeys) -> Self {
        Self(keys.iter().map(|key| XChaCha20Poly1305::new(Key::from_slice(key.bytes()))).collect())
    }
}

/// Seals our packets and opens those of others.
pub struct Sealer {
    keys: Keyring,
    head: [u8; HEAD_BYTES],
    associated: Vec<u8>,
    boot: [u8; 16],
    number: u64,
}

impl Sealer {
    /// `boot` is random and used for one start only.
    pub fn new(keys: Keyring, env: &str, boot: [u8; 16]) -> Self {
        let mut head = [0; HEAD_BYTES];
        head[..3].copy_from_slice(MAGIC);
        head[3] = PACKET_VERSION;
        head[4..].copy_from_slice(&env_tag(env));
        let associated = [&head, env.as_bytes()].concat();
        Self { keys, head, associated, boot, number: 0 }
    }

    pub fn seal(&mut self, plain: &[u8]) -> Vec<u8> {
        self.number += 1;
        let mut nonce = [0; NONCE_BYTES];
        nonce[..16].copy_from_slice(&self.boot);
        nonce[16..].copy_from_slice(&self.number.to_be_bytes());
        let payload = Payload { msg: plain, aad: &self.associated };
        let sealed = self.keys.0[0].encrypt(XNonce::from_slice(&nonce), payload);
        let sealed = sealed.expect("a datagram is far below the cipher's bound");
        [&self.head, &nonce[..], &sealed].concat()
    }

    /// The packet's number and its content.
    pub fn open(&self, packet: &[u8]) -> Result<(u64, Vec<u8>), DropReason> {
        let (head, rest) = packet.split_first_chunk::<HEAD_BYTES>().ok_or(DropReason::Foreign)?;
        if head[..3] != *MAGIC {
            return Err(DropReason::Foreign);
        }
        if head[3] != PACKET_VERSION {
            return Err(DropReason::Version);
        }
        if *head != self.head {
            return Err(DropReason::Env);
        }
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_BYTES>().ok_or(DropReason::Malformed)?;
        let payload = || Payload { msg: sealed, aad: &self.associated };
        let opened =
            self.keys.0.iter().find_map(|key| key.decrypt(XNonce::from_slice(nonce), payload()).ok());
        let plain = opened.ok_or(DropReason::Key)?;
        let number = nonce.last_chunk().copied().map_or(0, u64::from_be_bytes);
        Ok((number, plain))
    }
}

/// Tells envs apart without a key, for a clear message; the name itself is authenticated.
fn env_tag(env: &str) -> [u8; 8] {
    let hash = blake3::derive_key("signalbox membership env tag", env.as_bytes());
    std::array::from_fn(|index| hash[index])
}

/// What sealing adds to a packet.
pub const SEAL_BYTES: usize = HEAD_BYTES + NONCE_BYTES + 16;
/// Packets of another version are dropped.
pub const PACKET_VERSION: u8 = 1;
const MAGIC: &[u8; 3] = b"SBm";
const HEAD_BYTES: usize = 12;
const NONCE_BYTES: usize = 24;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn keys(names: &[u8]) -> Keyring {
        let lines: Vec<_> = names.iter().map(|name| format!("{name:02x}").repeat(32)).collect();
        Keyring::parse(&lines.join("\n")).unwrap()
    }

    fn sealer(names: &[u8], env: &str) -> Sealer {
        Sealer::new(keys(names), env, [9; 16])
    }

    #[test]
    fn what_is_sealed_opens_and_numbers_count() {
        let (mut a, b) = (sealer(&[1], "e"), sealer(&[1], "e"));
        for number in 1..4 {
            let packet = a.seal(b"hello");
            assert_eq!(packet.len(), 5 + SEAL_BYTES);
            assert_eq!(b.open(&packet), Ok((number, b"hello".to_vec())));
        }
    }

    #[test]
    fn keys_rotate_without_a_gap() {
        let open = |from: &[u8], to: &[u8]| sealer(to, "e").open(&sealer(from, "e").seal(b"x")).is_ok();
        // Everybody learns the new key, then seals with it, then forgets the old one.
        for (one, other) in [(&[1][..], &[1, 2][..]), (&[1, 2], &[2, 1]), (&[2, 1], &[2])] {
            assert!(open(one, other) && open(other, one));
        }
        assert!(!open(&[1], &[2]));
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        let (mut a, b) = (sealer(&[1], "e"), sealer(&[1], "e"));
        let packet = a.seal(b"hello");
        for at in 0..packet.len() {
            let mut bad = packet.clone();
            bad[at] ^= 1;
            let reason = b.open(&bad).unwrap_err();
            let expected = match at {
                0..3 => DropReason::Foreign,
                3 => DropReason::Version,
                4..12 => DropReason::Env,
                _ => DropReason::Key,
            };
            assert_eq!(reason, expected, "byte {at}");
            assert!(b.open(&packet[..at]).is_err());
        }
    }

    #[test]
    fn another_env_does_not_open_even_with_the_same_tag() {
        let mut a = sealer(&[1], "staging");
        let b = sealer(&[1], "production");
        let mut packet = a.seal(b"x");
        assert_eq!(b.open(&packet), Err(DropReason::Env));
        packet[..HEAD_BYTES].copy_from_slice(&b.head);
        assert_eq!(b.open(&packet), Err(DropReason::Key));
    }

    proptest! {
        #[test]
        fn any_packet_is_opened_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200), honest: bool) {
            let sealer = sealer(&[1], "e");
            let head: &[u8] = if honest { &sealer.head } else { &[] };
            prop_assert!(sealer.open(&[head, &bytes].concat()).is_err());
        }
    }
}
