//! URI rules (WAMP, basic profile, "URIs").

use crate::ids::Match;

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
pub fn is_valid(uri: &str, rule: UriRule) -> bool {
    let _ = (uri, rule);
    unimplemented!()
}

/// Checks the URI of a subscription or registration with matching `policy`: wildcard may have empty components, a
/// prefix may end with a `.` or be any beginning of a valid URI.
pub fn is_valid_pattern(uri: &str, policy: Match, rule: UriRule) -> bool {
    let _ = (uri, policy, rule);
    unimplemented!()
}

/// True for URIs whose first component is `wamp`, which only the router may define.
#[inline]
pub fn is_reserved(uri: &str) -> bool {
    uri == "wamp" || uri.starts_with("wamp.")
}

/// True when `pattern` under `policy` matches `uri`; the definition the indexes are tested against.
pub fn matches(pattern: &str, policy: Match, uri: &str) -> bool {
    let _ = (pattern, policy, uri);
    unimplemented!()
}

/// Error and close URIs the router sends.
pub mod wamp {
    pub const INVALID_URI: &str = "wamp.error.invalid_uri";
    pub const NO_SUCH_PROCEDURE: &str = "wamp.error.no_such_procedure";
    pub const PROCEDURE_ALREADY_EXISTS: &str = "wamp.error.procedure_already_exists";
    pub const NO_SUCH_REGISTRATION: &str = "wamp.error.no_such_registration";
    pub const NO_SUCH_SUBSCRIPTION: &str = "wamp.error.no_such_subscription";
    pub const INVALID_ARGUMENT: &str = "wamp.error.invalid_argument";
    pub const CANCELED: &str = "wamp.error.canceled";
    pub const PAYLOAD_SIZE_EXCEEDED: &str = "wamp.error.payload_size_exceeded";
    pub const PROTOCOL_VIOLATION: &str = "wamp.error.protocol_violation";
    pub const NOT_AUTHORIZED: &str = "wamp.error.not_authorized";
    pub const NO_SUCH_REALM: &str = "wamp.error.no_such_realm";
    pub const NO_SUCH_ROLE: &str = "wamp.error.no_such_role";
    pub const NO_MATCHING_AUTH_METHOD: &str = "wamp.error.no_matching_auth_method";
    pub const OPTION_NOT_ALLOWED: &str = "wamp.error.option_not_allowed";
    pub const NETWORK_FAILURE: &str = "wamp.error.network_failure";
    pub const UNAVAILABLE: &str = "wamp.error.unavailable";
    pub const SYSTEM_SHUTDOWN: &str = "wamp.close.system_shutdown";
    pub const CLOSE_REALM: &str = "wamp.close.close_realm";
    pub const GOODBYE_AND_OUT: &str = "wamp.close.goodbye_and_out";
    pub const KILLED: &str = "wamp.close.killed";
    pub const TIMEOUT: &str = "wamp.error.timeout";
}
