//! URI rules (WAMP, basic profile, "URIs").
//!
//! Beyond the text of the rules, both refuse:
//! - more than [`URI_BYTES_MAX`] bytes or [`URI_COMPONENTS_MAX`] components;
//! - control characters and the marks that reorder text, because URIs are shown in logs, metrics and consoles, where
//!   these forge lines or make one URI look like another.

use crate::ids::Match;
use crate::limits::{URI_BYTES_MAX, URI_COMPONENTS_MAX};

/// How strictly components are checked.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum UriRule {
    /// Components contain no `.`, `#` or white space.
    #[default]
    Loose,
    /// Components are made of `0-9 a-z _`.
    Strict,
}

/// Checks a URI that names one thing (exact): no empty component.
#[inline]
pub fn is_valid(uri: &str, rule: UriRule) -> bool {
    scan(uri, rule) == Some(Empty::Nowhere)
}

/// Checks the URI of a subscription or registration with matching `policy`: wildcard may have empty components, a
/// prefix may end with a `.` or be any beginning of a valid URI.
///
/// The empty string is one empty component: as a wildcard it matches every URI of one component, as a prefix every
/// URI. The patterns of the spec allow both, and so do Crossbar and nexus.
#[inline]
pub fn is_valid_pattern(uri: &str, policy: Match, rule: UriRule) -> bool {
    match (scan(uri, rule), policy) {
        (None, _) => false,
        (Some(empty), Match::Exact) => empty == Empty::Nowhere,
        (Some(empty), Match::Prefix) => empty != Empty::BeforeLast,
        (Some(_), Match::Wildcard) => true,
    }
}

/// True for URIs whose first component is `wamp`, which only the router may define.
#[inline]
pub fn is_reserved(uri: &str) -> bool {
    uri == "wamp" || uri.starts_with("wamp.")
}

/// True when `pattern` under `policy` matches `uri`; the definition the indexes are tested against.
pub fn matches(pattern: &str, policy: Match, uri: &str) -> bool {
    match policy {
        Match::Exact => pattern == uri,
        Match::Prefix => uri.starts_with(pattern),
        Match::Wildcard => {
            let mut components = uri.split('.');
            pattern.split('.').all(|expected| {
                components.next().is_some_and(|component| expected.is_empty() || expected == component)
            }) && components.next().is_none()
        }
    }
}

/// Where a URI has empty components.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Empty {
    Nowhere,
    OnlyLast,
    BeforeLast,
}

/// Where `uri` has empty components; `None` when it is too long or has a character that `rule` forbids.
#[inline]
fn scan(uri: &str, rule: UriRule) -> Option<Empty> {
    let bytes = uri.as_bytes();
    if bytes.len() > URI_BYTES_MAX {
        return None;
    }
    let found = faults(bytes);
    let is_forbidden = match rule {
        UriRule::Strict => found & NOT_STRICT != 0,
        UriRule::Loose if found & NOT_LOOSE != 0 => true,
        UriRule::Loose => found & NOT_ASCII != 0 && uri.chars().any(is_forbidden_char),
    };
    // Only longer ones can have too many.
    let dots = if bytes.len() < URI_COMPONENTS_MAX { 0 } else { memchr::memchr_iter(b'.', bytes).count() };
    if is_forbidden || dots >= URI_COMPONENTS_MAX {
        return None;
    }
    Some(match bytes {
        [b'.', ..] => Empty::BeforeLast,
        _ if found & TWO_DOTS != 0 => Empty::BeforeLast,
        [] | [.., b'.'] => Empty::OnlyLast,
        _ => Empty::Nowhere,
    })
}

const NOT_STRICT: u8 = 1;
const NOT_LOOSE: u8 = 2;
const NOT_ASCII: u8 = 4;
const TWO_DOTS: u8 = 8;

/// Bytes looked at together; what the narrowest vector unit holds.
const BLOCK: usize = 16;

/// What the bytes break, all together.
#[inline]
fn faults(bytes: &[u8]) -> u8 {
    let Some(last) = bytes.last_chunk() else {
        return short_faults(bytes);
    };
    let mut found = [0; BLOCK];
    found[0] = FAULTS[bytes[0] as usize];
    let mut rest = bytes;
    while let Some(window) = rest.first_chunk() {
        add_faults(&mut found, window);
        rest = &rest[BLOCK..];
    }
    // Faults are only ever added up, so the last block may overlap the one before it.
    add_faults(&mut found, last);
    found.into_iter().fold(0, |all, one| all | one)
}

/// The same for what is too short for a block. Byte by byte a table is faster than comparisons.
#[inline]
fn short_faults(bytes: &[u8]) -> u8 {
    let mut found = 0;
    let mut is_after_dot = false;
    for &byte in bytes {
        let is_dot = byte == b'.';
        found |= FAULTS[byte as usize] | (u8::from(is_dot & is_after_dot) * TWO_DOTS);
        is_after_dot = is_dot;
    }
    found
}

/// Adds what the bytes of a block, which follow the first one of `window`, break.
#[inline]
fn add_faults(found: &mut [u8; BLOCK], window: &[u8; BLOCK + 1]) {
    for index in 0..BLOCK {
        found[index] |= fault(window[index], window[index + 1]);
    }
}

/// What `byte` breaks, coming after `before`. Without branches or tables, so that a block of it is vector code.
#[inline]
const fn fault(before: u8, byte: u8) -> u8 {
    let is_dot = byte == b'.';
    let is_strict = byte.wrapping_sub(b'a') < 26 || byte.wrapping_sub(b'0') < 10 || byte == b'_' || is_dot;
    let is_not_loose = byte <= b' ' || byte == b'#' || byte == 0x7f;
    ((!is_strict) as u8 * NOT_STRICT)
        | (is_not_loose as u8 * NOT_LOOSE)
        | ((byte >= 0x80) as u8 * NOT_ASCII)
        | ((is_dot && before == b'.') as u8 * TWO_DOTS)
}

/// What each byte breaks by itself.
const FAULTS: [u8; 256] = {
    let mut faults = [0; 256];
    let mut byte = 0;
    while byte < faults.len() {
        faults[byte] = fault(0, byte as u8);
        byte += 1;
    }
    faults
};

/// White space, controls, and the marks, embeddings, overrides and isolates of Unicode's bidirectional algorithm.
fn is_forbidden_char(char: char) -> bool {
    char.is_whitespace()
        || char.is_control()
        || matches!(char, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Error and close URIs the router sends.
pub mod wamp {
    pub const INVALID_URI: &str = "wamp.error.invalid_uri";
    pub const NO_SUCH_PROCEDURE: &str = "wamp.error.no_such_procedure";
    pub const PROCEDURE_ALREADY_EXISTS: &str = "wamp.error.procedure_already_exists";
    pub const NO_SUCH_REGISTRATION: &str = "wamp.error.no_such_registration";
    pub const NO_SUCH_SESSION: &str = "wamp.error.no_such_session";
    pub const SESSION_UNATTACHED: &str = "wamp.error.session_unattached";
    pub const NO_SUCH_SUBSCRIPTION: &str = "wamp.error.no_such_subscription";
    /// Not in the specification; Crossbar.io's.
    pub const HISTORY_UNAVAILABLE: &str = "wamp.error.history_unavailable";
    pub const INVALID_ARGUMENT: &str = "wamp.error.invalid_argument";
    pub const CANCELED: &str = "wamp.error.canceled";
    pub const PAYLOAD_SIZE_EXCEEDED: &str = "wamp.error.payload_size_exceeded";
    pub const PROTOCOL_VIOLATION: &str = "wamp.error.protocol_violation";
    pub const NOT_AUTHORIZED: &str = "wamp.error.not_authorized";
    pub const NO_SUCH_REALM: &str = "wamp.error.no_such_realm";
    pub const NO_SUCH_ROLE: &str = "wamp.error.no_such_role";
    pub const NO_MATCHING_AUTH_METHOD: &str = "wamp.error.no_matching_auth_method";
    pub const OPTION_NOT_ALLOWED: &str = "wamp.error.option_not_allowed";
    pub const OPTION_DISALLOWED_DISCLOSE_ME: &str = "wamp.error.option_disallowed.disclose_me";
    pub const NETWORK_FAILURE: &str = "wamp.error.network_failure";
    pub const UNAVAILABLE: &str = "wamp.error.unavailable";
    pub const NO_AVAILABLE_CALLEE: &str = "wamp.error.no_available_callee";
    pub const SYSTEM_SHUTDOWN: &str = "wamp.close.system_shutdown";
    pub const CLOSE_REALM: &str = "wamp.close.close_realm";
    pub const GOODBYE_AND_OUT: &str = "wamp.close.goodbye_and_out";
    pub const KILLED: &str = "wamp.close.killed";
    pub const FEATURE_NOT_SUPPORTED: &str = "wamp.error.feature_not_supported";
    pub const TIMEOUT: &str = "wamp.error.timeout";
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn loose(uri: &str) -> bool {
        is_valid(uri, UriRule::Loose)
    }

    fn strict(uri: &str) -> bool {
        is_valid(uri, UriRule::Strict)
    }

    fn pattern(uri: &str, policy: Match) -> bool {
        is_valid_pattern(uri, policy, UriRule::Loose)
    }

    #[test]
    fn loose_takes_all_but_space_and_hash() {
        for uri in ["a", "com.myapp.topic1", "Com.MyApp", "a-b.c/d", "com.m\u{fc}ller.\u{4e2d}", "$a.{b}"] {
            assert!(loose(uri), "{uri}");
        }
        for uri in ["a b", "a\tb", "a\nb", "a#b", "a.#", "a\u{a0}b", "a\u{2003}b", "a\u{3000}.b"] {
            assert!(!loose(uri), "{uri:?}");
        }
    }

    #[test]
    fn controls_and_reordering_marks_are_refused() {
        for uri in
            ["a\0b", "\u{1b}[2J", "a\u{7f}", "a\u{85}", "a\u{9f}", "a\u{202e}b", "a\u{2066}", "\u{200f}a"]
        {
            assert!(!loose(uri), "{uri:?}");
        }
    }

    #[test]
    fn strict_takes_lower_case_digits_and_underscore() {
        assert!(strict("com.my_app.topic1") && strict("0") && strict("_"));
        for uri in ["Com", "a-b", "a/b", "a b", "\u{e4}", "a#", "a\0"] {
            assert!(!strict(uri), "{uri:?}");
        }
    }

    #[test]
    fn empty_components_are_for_patterns() {
        for uri in ["", ".", "a.", ".a", "a..b", ".."] {
            assert!(!loose(uri) && !strict(uri) && !pattern(uri, Match::Exact), "{uri:?}");
            assert!(pattern(uri, Match::Wildcard), "{uri:?}");
        }
        for (uri, is_prefix) in [
            ("", true),
            ("a", true),
            ("a.", true),
            ("a.b.", true),
            (".", false),
            (".a", false),
            ("a..", false),
            ("a..b", false),
        ] {
            assert_eq!(pattern(uri, Match::Prefix), is_prefix, "{uri:?}");
        }
        assert!(!pattern("a b..", Match::Wildcard) && !pattern("a#", Match::Prefix));
        assert!(!is_valid_pattern("A..b", Match::Wildcard, UriRule::Strict));
    }

    #[test]
    fn bytes_and_components_are_bounded() {
        assert!(loose(&"x".repeat(URI_BYTES_MAX)));
        assert!(!loose(&"x".repeat(URI_BYTES_MAX + 1)));
        assert!(loose(&vec!["x"; URI_COMPONENTS_MAX].join(".")));
        assert!(!loose(&vec!["x"; URI_COMPONENTS_MAX + 1].join(".")));
        assert!(pattern(&vec![""; URI_COMPONENTS_MAX].join("."), Match::Wildcard));
        assert!(!pattern(&vec![""; URI_COMPONENTS_MAX + 1].join("."), Match::Wildcard));
    }

    #[test]
    fn prefixes_match_strings_and_wildcards_match_components() {
        let prefix = "com.myapp.topic.emergency";
        assert!(matches(prefix, Match::Prefix, prefix));
        assert!(matches(prefix, Match::Prefix, "com.myapp.topic.emergency-low"));
        assert!(matches("", Match::Prefix, "a"));
        assert!(!matches("com.myapp.", Match::Prefix, "com.myapp"));
        assert!(matches("a..c", Match::Wildcard, "a.b.c"));
        assert!(matches("..", Match::Wildcard, "a.b.c"));
        assert!(matches("", Match::Wildcard, "a"));
        assert!(!matches("a..c", Match::Wildcard, "a.c"));
        assert!(!matches("a..c", Match::Wildcard, "a.b.x.c"));
        assert!(!matches("a.", Match::Wildcard, "a"));
        assert!(!matches("", Match::Wildcard, "a.b"));
        assert!(matches("a.b", Match::Exact, "a.b") && !matches("a.b", Match::Exact, "a.b.c"));
    }

    #[test]
    fn the_first_component_wamp_is_reserved() {
        assert!(is_reserved("wamp") && is_reserved("wamp.session.count"));
        assert!(!is_reserved("wampum") && !is_reserved("com.wamp"));
    }

    /// The spec's rule, component by component.
    fn naive(uri: &str, rule: UriRule) -> bool {
        let component = |component: &str| {
            !component.is_empty()
                && component.chars().all(|char| match rule {
                    UriRule::Strict => matches!(char, '0'..='9' | 'a'..='z' | '_'),
                    UriRule::Loose => char != '#' && !is_forbidden_char(char),
                })
        };
        uri.len() <= URI_BYTES_MAX
            && uri.split('.').count() <= URI_COMPONENTS_MAX
            && uri.split('.').all(component)
    }

    proptest! {
        #[test]
        fn one_pass_agrees_with_the_rule(uri in "[a-c.#_A \u{e4}\u{2003}\u{202e}]{0,12}|[a-z.]{0,160}|\\PC{0,20}") {
            for rule in [UriRule::Loose, UriRule::Strict] {
                prop_assert_eq!(is_valid(&uri, rule), naive(&uri, rule));
                prop_assert_eq!(is_valid_pattern(&uri, Match::Exact, rule), naive(&uri, rule));
            }
        }

        #[test]
        fn beginnings_of_valid_uris_are_prefixes_that_match(uri in "[a-c\u{e4}]{1,3}(\\.[a-c]{1,3}){0,4}", cut in 0usize..20) {
            let cut = (0..=cut.min(uri.len())).rev().find(|&cut| uri.is_char_boundary(cut)).unwrap_or(0);
            prop_assert!(is_valid_pattern(&uri[..cut], Match::Prefix, UriRule::Loose));
            prop_assert!(matches(&uri[..cut], Match::Prefix, &uri));
        }

        #[test]
        fn blanked_components_match(components in prop::collection::vec(("[a-c]{1,3}", any::<bool>()), 1..6)) {
            let uri = components.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(".");
            let blanked: Vec<_> =
                components.iter().map(|(name, is_blank)| if *is_blank { "" } else { name.as_str() }).collect();
            let blanked = blanked.join(".");
            prop_assert!(is_valid_pattern(&blanked, Match::Wildcard, UriRule::Strict));
            prop_assert!(matches(&blanked, Match::Wildcard, &uri));
            let longer = format!("{uri}.x");
            prop_assert!(!matches(&blanked, Match::Wildcard, &longer));
        }
    }
}
