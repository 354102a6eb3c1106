//! Agreeing on permessage-deflate in the upgrade (RFC 7692, 5 and 7.1).

use std::fmt;

/// What a server is willing to agree to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Accepts {
    /// Context may be kept from message to message, both ways, which takes memory for each connection.
    pub context_takeover: bool,
}

/// What was agreed on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Params {
    /// Each of the server's messages is compressed by itself.
    pub server_no_context_takeover: bool,
    /// Each of the client's messages is compressed by itself.
    pub client_no_context_takeover: bool,
    /// Base-2 logarithm of the window of the server's compressor, when the client asked for one; 9 to 15.
    pub server_max_window_bits: Option<u8>,
    /// Of the client's, when it lets the server choose; 8 to 15.
    pub client_max_window_bits: Option<u8>,
}

/// The only window sizes there are (RFC 7692, 7.1.2).
const WINDOW_BITS: std::ops::RangeInclusive<u8> = 8..=15;
const WINDOW_BITS_MAX: u8 = 15;
/// Our compressor has no smaller window than this.
const DEFLATER_WINDOW_BITS_MIN: u8 = 9;

/// Most offers of one request that are looked at.
const OFFERS_MAX: usize = 16;

impl Params {
    /// Window of the server's compressor.
    pub fn server_window_bits(self) -> u8 {
        self.server_max_window_bits.unwrap_or(WINDOW_BITS_MAX)
    }

    /// Window that the client's compressor may use.
    pub fn client_window_bits(self) -> u8 {
        self.client_max_window_bits.unwrap_or(WINDOW_BITS_MAX)
    }

    /// Agrees to the first of the offers in one `Sec-WebSocket-Extensions` value that can be kept.
    pub fn choose(value: &[u8], accepts: Accepts) -> Option<Self> {
        let offers = str::from_utf8(value).ok()?.split(',');
        offers.take(OFFERS_MAX).filter_map(Offer::parse).find_map(|offer| offer.accept(accepts))
    }

    /// Reads a server's answer to an offer of everything.
    pub fn parse_answer(value: &[u8]) -> Option<Self> {
        let offer = Offer::parse(str::from_utf8(value).ok()?)?;
        let client_max_window_bits = match offer.client_max_window_bits {
            None => None,
            Some(bits) => Some(bits?),
        };
        Some(Self {
            server_no_context_takeover: offer.server_no_context_takeover,
            client_no_context_takeover: offer.client_no_context_takeover,
            server_max_window_bits: offer.server_max_window_bits,
            client_max_window_bits,
        })
    }
}

/// The answer, as the value of `Sec-WebSocket-Extensions`.
impl fmt::Display for Params {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(NAME)?;
        if self.server_no_context_takeover {
            f.write_str("; server_no_context_takeover")?;
        }
        if self.client_no_context_takeover {
            f.write_str("; client_no_context_takeover")?;
        }
        if let Some(bits) = self.server_max_window_bits {
            write!(f, "; server_max_window_bits={bits}")?;
        }
        if let Some(bits) = self.client_max_window_bits {
            write!(f, "; client_max_window_bits={bits}")?;
        }
        Ok(())
    }
}

/// The registered name of the extension.
const NAME: &str = "permessage-deflate";

/// One offer of a client.
#[derive(Clone, Copy, Default)]
struct Offer {
    server_no_context_takeover: bool,
    client_no_context_takeover: bool,
    server_max_window_bits: Option<u8>,
    /// With or without a hint.
    client_max_window_bits: Option<Option<u8>>,
}

impl Offer {
    /// An offer that breaks a rule is no offer (RFC 7692, 7.1: it must be declined).
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(';').map(str::trim);
        if parts.next() != Some(NAME) {
            return None;
        }
        let mut offer = Self::default();
        for part in parts {
            let (name, value) = match part.split_once('=') {
                Some((name, value)) => (name.trim(), Some(value.trim())),
                None => (part, None),
            };
            let is_new = match (name, value) {
                ("server_no_context_takeover", None) => set(&mut offer.server_no_context_takeover),
                ("client_no_context_takeover", None) => set(&mut offer.client_no_context_takeover),
                ("server_max_window_bits", Some(value)) => {
                    offer.server_max_window_bits.replace(window_bits(value)?).is_none()
                }
                ("client_max_window_bits", Some(value)) => {
                    offer.client_max_window_bits.replace(Some(window_bits(value)?)).is_none()
                }
                ("client_max_window_bits", None) => offer.client_max_window_bits.replace(None).is_none(),
                _ => false,
            };
            if !is_new {
                return None;
            }
        }
        Some(offer)
    }

    fn accept(self, accepts: Accepts) -> Option<Params> {
        if self.server_max_window_bits.is_some_and(|bits| bits < DEFLATER_WINDOW_BITS_MIN) {
            return None;
        }
        Some(Params {
            server_no_context_takeover: self.server_no_context_takeover || !accepts.context_takeover,
            client_no_context_takeover: self.client_no_context_takeover || !accepts.context_takeover,
            server_max_window_bits: self.server_max_window_bits,
            client_max_window_bits: self.client_max_window_bits.map(|bits| bits.unwrap_or(WINDOW_BITS_MAX)),
        })
    }
}

/// True when it was not set before.
fn set(flag: &mut bool) -> bool {
    !std::mem::replace(flag, true)
}

/// A decimal number without leading zeros (RFC 7692, 7.1.2.1), bare or quoted (RFC 6455, 9.1).
fn window_bits(text: &str) -> Option<u8> {
    let text = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    let is_plain = text.bytes().all(|octet| octet.is_ascii_digit()) && !text.starts_with('0');
    text.parse().ok().filter(|bits| is_plain && WINDOW_BITS.contains(bits))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn answer(value: &str, context_takeover: bool) -> Option<String> {
        Params::choose(value.as_bytes(), Accepts { context_takeover }).map(|params| params.to_string())
    }

    fn kept(value: &str) -> Option<String> {
        answer(value, true)
    }

    #[test]
    fn what_is_offered_is_agreed_to() {
        assert_eq!(kept("permessage-deflate").as_deref(), Some("permessage-deflate"));
        for same in [
            "permessage-deflate; server_no_context_takeover",
            "permessage-deflate; client_no_context_takeover",
            "permessage-deflate; server_max_window_bits=9",
            "permessage-deflate; client_max_window_bits=8",
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover; \
             server_max_window_bits=12; client_max_window_bits=15",
        ] {
            assert_eq!(kept(same).as_deref(), Some(same));
        }
        let any = "permessage-deflate; client_max_window_bits";
        assert_eq!(kept(any).as_deref(), Some("permessage-deflate; client_max_window_bits=15"));
        let quoted = "permessage-deflate;server_max_window_bits = \"10\"";
        assert_eq!(kept(quoted).as_deref(), Some("permessage-deflate; server_max_window_bits=10"));
    }

    #[test]
    fn a_server_that_keeps_no_context_says_so() {
        let expected = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
        assert_eq!(answer("permessage-deflate", false).as_deref(), Some(expected));
        assert_eq!(
            answer("permessage-deflate; client_max_window_bits=10", false).as_deref(),
            Some(format!("{expected}; client_max_window_bits=10").as_str())
        );
    }

    #[test]
    fn the_first_offer_that_can_be_kept_wins() {
        let offers = "permessage-bzip2, permessage-deflate; server_max_window_bits=8, \
                      permessage-deflate; server_max_window_bits=11, permessage-deflate";
        assert_eq!(kept(offers).as_deref(), Some("permessage-deflate; server_max_window_bits=11"));
    }

    #[test]
    fn broken_offers_are_declined() {
        for wrong in [
            "",
            "permessage-deflated",
            "x-webkit-deflate-frame",
            "permessage-deflate; unknown",
            "permessage-deflate;",
            "permessage-deflate; server_max_window_bits",
            "permessage-deflate; server_max_window_bits=16",
            "permessage-deflate; server_max_window_bits=7",
            "permessage-deflate; server_max_window_bits=09",
            "permessage-deflate; server_max_window_bits=+9",
            "permessage-deflate; server_max_window_bits=",
            "permessage-deflate; server_max_window_bits=10; server_max_window_bits=10",
            "permessage-deflate; client_max_window_bits; client_max_window_bits=9",
            "permessage-deflate; client_no_context_takeover=1",
            "permessage-deflate; client_no_context_takeover; client_no_context_takeover",
            "permessage-deflate; server_max_window_bits=8",
        ] {
            assert_eq!(kept(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn few_offers_are_looked_at() {
        let many = vec!["x"; OFFERS_MAX].join(",") + ", permessage-deflate";
        assert_eq!(kept(&many), None);
        let fewer = vec!["x"; OFFERS_MAX - 1].join(",") + ", permessage-deflate";
        assert!(kept(&fewer).is_some());
    }

    proptest! {
        #[test]
        fn any_value_is_answered_with_what_reads_back(value: Vec<u8>, text in "[a-z_;=, 0-9\"]{0,60}", takeover: bool) {
            let accepts = Accepts { context_takeover: takeover };
            for value in [&value[..], text.as_bytes(), format!("{NAME}; {text}").as_bytes()] {
                if let Some(params) = Params::choose(value, accepts) {
                    prop_assert_eq!(Params::parse_answer(params.to_string().as_bytes()), Some(params));
                }
            }
        }
    }
}
