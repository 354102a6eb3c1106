//! What a client must show to get its session back.
//!
//! ```text
//! token, 16 octets = random (12) │ shard (1) │ low octets of the data plane's epoch (3)     base64 in messages
//! ```
//! The last four octets say who holds the session and are no secret; the first twelve are, so that guessing takes 2^95 tries.

use crate::ids::{BootEpoch, ShardId};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use std::fmt;

const RANDOM_BYTES: usize = 12;
const PLACE_BYTES: usize = 4;
/// Octets of a token ("Session Resumption", a draft of WAMP's advanced profile).
pub const TOKEN_BYTES: usize = RANDOM_BYTES + PLACE_BYTES;
/// Octets of its text.
const TEXT_BYTES: usize = 24;

/// A token. It is shown in no log.
#[derive(Clone, Copy)]
pub struct ResumeToken([u8; TOKEN_BYTES]);

impl ResumeToken {
    /// The token of a session of this shard and life of a data plane. `random` is secret and used for nothing else.
    pub fn new(random: &[u8; 32], shard: ShardId, epoch: BootEpoch) -> Self {
        let mut bytes = [0; TOKEN_BYTES];
        bytes[..RANDOM_BYTES].copy_from_slice(&random[..RANDOM_BYTES]);
        bytes[RANDOM_BYTES] = shard.0;
        bytes[RANDOM_BYTES + 1..].copy_from_slice(&epoch_octets(epoch));
        Self(bytes)
    }

    pub const fn from_bytes(bytes: [u8; TOKEN_BYTES]) -> Self {
        Self(bytes)
    }

    pub const fn bytes(&self) -> &[u8; TOKEN_BYTES] {
        &self.0
    }

    /// None: the text is no token.
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; TOKEN_BYTES];
        let fits = text.len() == TEXT_BYTES;
        (fits && BASE64.decode_slice(text, &mut bytes) == Ok(TOKEN_BYTES)).then_some(Self(bytes))
    }

    pub fn text(&self) -> String {
        BASE64.encode(self.0)
    }

    pub const fn shard(&self) -> ShardId {
        ShardId(self.0[RANDOM_BYTES])
    }

    /// The data plane in this life may hold the session.
    pub fn is_of(&self, epoch: BootEpoch) -> bool {
        self.0[RANDOM_BYTES + 1..] == epoch_octets(epoch)
    }

    /// The same token. Takes the same time wherever they differ.
    pub fn is(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).fold(0, |differ, (one, two)| differ | (one ^ two)) == 0
    }
}

fn epoch_octets(epoch: BootEpoch) -> [u8; PLACE_BYTES - 1] {
    let [one, two, three, ..] = epoch.0.to_le_bytes();
    [one, two, three]
}

impl fmt::Debug for ResumeToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ResumeToken of shard {}", self.shard().0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_reads_back_and_says_who_made_it() {
        let token = ResumeToken::new(&[7; 32], ShardId(3), BootEpoch(0x0102_0304));
        let again = ResumeToken::parse(&token.text()).expect("a token");
        assert!(again.is(&token) && token.text().len() == TEXT_BYTES);
        assert_eq!(again.shard(), ShardId(3));
        assert!(again.is_of(BootEpoch(0xff02_0304)) && !again.is_of(BootEpoch(0x0102_0305)));
        assert!(!ResumeToken::new(&[8; 32], ShardId(3), BootEpoch(0x0102_0304)).is(&token));
        assert!(!format!("{token:?}").contains(&token.text()));
    }

    #[test]
    fn other_texts_are_no_tokens() {
        let text = ResumeToken::from_bytes([9; TOKEN_BYTES]).text();
        for bad in ["", "AAAA", &text[1..], &format!("{text}AAAA"), &text.replace('=', "A"), &"!".repeat(24)]
        {
            assert!(ResumeToken::parse(bad).is_none(), "{bad}");
        }
    }
}
