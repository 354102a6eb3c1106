//! Why a request was refused, as HTTP says it.

use super::Method;

/// A refusal. Its body is JSON: a short name for programs and a line for people.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Problem {
    #[error("{0}")]
    Malformed(&'static str),
    #[error("the body is not JSON that was expected: a dictionary with the list protocols")]
    Json,
    #[error("protocols names none that is spoken here")]
    NoProtocol,
    /// The session was aborted for it.
    #[error("the message broke the protocol, and the session has ended")]
    Violation,
    #[error("pages of this origin may not use this router")]
    Origin,
    #[error("there is no such path here")]
    Path,
    #[error("there is no such transport: it was closed, or never opened")]
    Transport,
    #[error("this path wants another method")]
    Method(Method),
    #[error("the request took too long")]
    Slow,
    #[error("another request receives from this transport already")]
    Busy,
    #[error("the length of the body is not known")]
    Length,
    #[error("the body is over the limit")]
    TooLarge,
    #[error("the body is of a type that is not spoken on this transport")]
    MediaType,
    #[error("what the request expects is not done here")]
    Expectation,
    #[error("the request head is over the limit")]
    HeadTooLarge,
    #[error("the transfer coding is not known")]
    Coding,
    #[error("the router cannot take it now")]
    Unavailable,
    #[error("the version must be HTTP/1.0 or HTTP/1.1")]
    Version,
}

impl Problem {
    /// The status line after the version (RFC 9110, 15.5 and 15.6; RFC 6585).
    pub const fn status(self) -> &'static str {
        match self {
            Self::Malformed(_) | Self::Json | Self::NoProtocol | Self::Violation => "400 Bad Request",
            Self::Origin => "403 Forbidden",
            Self::Path | Self::Transport => "404 Not Found",
            Self::Method(_) => "405 Method Not Allowed",
            Self::Slow => "408 Request Timeout",
            Self::Busy => "409 Conflict",
            Self::Length => "411 Length Required",
            Self::TooLarge => "413 Content Too Large",
            Self::MediaType => "415 Unsupported Media Type",
            Self::Expectation => "417 Expectation Failed",
            Self::HeadTooLarge => "431 Request Header Fields Too Large",
            Self::Coding => "501 Not Implemented",
            Self::Unavailable => "503 Service Unavailable",
            Self::Version => "505 HTTP Version Not Supported",
        }
    }

    /// For programs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed_request",
            Self::Json => "invalid_json",
            Self::NoProtocol => "no_supported_protocol",
            Self::Violation => "protocol_violation",
            Self::Origin => "origin_not_allowed",
            Self::Path => "not_found",
            Self::Transport => "transport_not_found",
            Self::Method(_) => "method_not_allowed",
            Self::Slow => "request_timeout",
            Self::Busy => "receive_pending",
            Self::Length => "length_required",
            Self::TooLarge => "content_too_large",
            Self::MediaType => "unsupported_media_type",
            Self::Expectation => "expectation_failed",
            Self::HeadTooLarge => "head_too_large",
            Self::Coding => "unsupported_transfer_coding",
            Self::Unavailable => "unavailable",
            Self::Version => "unsupported_version",
        }
    }

    /// Headers that the status asks for.
    pub const fn headers(self) -> &'static str {
        match self {
            Self::Method(Method::Get) => "Allow: GET, OPTIONS\r\n",
            Self::Method(_) => "Allow: POST, OPTIONS\r\n",
            Self::Unavailable => "Retry-After: 1\r\n",
            _ => "",
        }
    }

    /// One of ours: no character of it needs an escape.
    pub fn body(self) -> String {
        format!("{{\"error\":\"{}\",\"message\":\"{self}\"}}", self.name())
    }
}
