//! The head of a request.

use super::{Problem, Target};
use crate::limits::UPGRADE_HEADERS_MAX;
use crate::transport::upgrade::{has_token, is_host, tokens};
use crate::wire::Serializer;

/// Methods that are told apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Method {
    Get,
    Post,
    Options,
    Other,
}

/// How the end of a body is found (RFC 9112, 6.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Length {
    /// Not said: there is none.
    Unsaid,
    Bytes(u64),
    Chunked,
}

impl Length {
    /// Nothing follows the head.
    pub const fn is_none(self) -> bool {
        matches!(self, Self::Unsaid | Self::Bytes(0))
    }
}

/// What a body claims to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Content {
    /// Nothing, or a type that says nothing.
    Unsaid,
    Of(Serializer),
    Other,
}

impl Content {
    /// A body of this type may hold messages of `serializer`.
    pub fn suits(self, serializer: Serializer) -> bool {
        match self {
            Self::Unsaid => true,
            Self::Of(said) => said == serializer,
            Self::Other => false,
        }
    }

    fn read(value: &[u8]) -> Self {
        let media_type = value.split(|octet| *octet == b';').next().unwrap_or_default().trim_ascii();
        let is = |name: &str| media_type.eq_ignore_ascii_case(name.as_bytes());
        if is("application/json") {
            Self::Of(Serializer::Json)
        } else if is("application/x-msgpack") || is("application/msgpack") || is("application/vnd.msgpack") {
            Self::Of(Serializer::MsgPack)
        } else if is("application/cbor") {
            Self::Of(Serializer::Cbor)
        } else if is("") || is("text/plain") || is("application/octet-stream") {
            Self::Unsaid
        } else {
            Self::Other
        }
    }
}

/// A request's head, checked by itself; whether its method suits its target is not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Head {
    pub method: Method,
    /// `None`: no path of ours.
    pub target: Option<Target>,
    /// The connection may carry another request.
    pub keep_alive: bool,
    /// HTTP/1.1, so answers may be chunked.
    pub is_1_1: bool,
    /// The page that a browser sends it for.
    pub origin: Option<Box<str>>,
    pub length: Length,
    pub content: Content,
    /// The client waits for a word before it sends the body.
    pub expects_continue: bool,
}

/// Reads a whole head: `bytes` end with its empty line.
pub(super) fn parse(bytes: &[u8]) -> Result<Head, Problem> {
    let mut headers = [httparse::EMPTY_HEADER; UPGRADE_HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(httparse::Status::Complete(_)) => {}
        Err(httparse::Error::TooManyHeaders) => return Err(Problem::HeadTooLarge),
        Err(httparse::Error::Version) => return Err(Problem::Version),
        _ => return Err(Problem::Malformed("the request head is not HTTP")),
    }
    let is_1_1 = request.version == Some(1);
    let method = match request.method {
        Some("GET") => Method::Get,
        Some("POST") => Method::Post,
        Some("OPTIONS") => Method::Options,
        _ => Method::Other,
    };
    let fields = Fields::read(request.headers)?;
    let host_is_right = match fields.host {
        Some(host) => is_host(host),
        None => !is_1_1,
    };
    if !host_is_right {
        return Err(Problem::Malformed("Host is missing or is not a host and port"));
    }
    Ok(Head {
        method,
        target: Target::parse(request.path.unwrap_or_default()),
        keep_alive: !fields.closes && (is_1_1 || fields.keeps_alive),
        is_1_1,
        origin: fields.origin()?,
        length: fields.length(is_1_1)?,
        content: fields.content_type.map_or(Content::Unsaid, Content::read),
        expects_continue: fields.expects_continue(is_1_1)?,
    })
}

/// The headers that matter. Others are passed over.
#[derive(Default)]
struct Fields<'h> {
    host: Option<&'h [u8]>,
    origin: Option<&'h [u8]>,
    content_length: Option<&'h [u8]>,
    content_type: Option<&'h [u8]>,
    transfer_encoding: Option<&'h [u8]>,
    expect: Option<&'h [u8]>,
    closes: bool,
    keeps_alive: bool,
}

impl<'h> Fields<'h> {
    fn read(headers: &[httparse::Header<'h>]) -> Result<Self, Problem> {
        let mut fields = Self::default();
        for &httparse::Header { name, value } in headers {
            let is = |expected: &str| name.eq_ignore_ascii_case(expected);
            let slot = if is("host") {
                &mut fields.host
            } else if is("origin") {
                &mut fields.origin
            } else if is("content-length") {
                &mut fields.content_length
            } else if is("content-type") {
                &mut fields.content_type
            } else if is("transfer-encoding") {
                &mut fields.transfer_encoding
            } else if is("expect") {
                &mut fields.expect
            } else if is("connection") {
                fields.closes |= has_token(value, "close");
                fields.keeps_alive |= has_token(value, "keep-alive");
                continue;
            } else if is("content-encoding") {
                match tokens(value).all(|token| token.eq_ignore_ascii_case("identity")) {
                    true => continue,
                    false => return Err(Problem::MediaType),
                }
            } else {
                continue;
            };
            if slot.replace(value).is_some() {
                return Err(Problem::Malformed("a header that may stand once stands twice"));
            }
        }
        Ok(fields)
    }

    fn origin(&self) -> Result<Option<Box<str>>, Problem> {
        let Some(origin) = self.origin else { return Ok(None) };
        match str::from_utf8(origin) {
            // It is sent back in a header of the answer.
            Ok(text) if !text.is_empty() && text.bytes().all(|octet| octet.is_ascii_graphic()) => {
                Ok(Some(text.into()))
            }
            _ => Err(Problem::Malformed("Origin is no origin")),
        }
    }

    fn length(&self, is_1_1: bool) -> Result<Length, Problem> {
        match (self.transfer_encoding, self.content_length) {
            // Whoever is in front may have believed the other one.
            (Some(_), Some(_)) => Err(Problem::Malformed("both Content-Length and Transfer-Encoding")),
            (Some(_), None) if !is_1_1 => Err(Problem::Malformed("Transfer-Encoding in HTTP/1.0")),
            (Some(coding), None) if coding.trim_ascii().eq_ignore_ascii_case(b"chunked") => {
                Ok(Length::Chunked)
            }
            (Some(_), None) => Err(Problem::Coding),
            (None, Some(digits)) => {
                // Digits only: `parse` would take a sign.
                let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
                let number = str::from_utf8(digits).ok().filter(|_| is_number);
                let bytes = number.and_then(|number| number.parse().ok());
                bytes.map(Length::Bytes).ok_or(Problem::Malformed("Content-Length is not a number"))
            }
            (None, None) => Ok(Length::Unsaid),
        }
    }

    fn expects_continue(&self, is_1_1: bool) -> Result<bool, Problem> {
        match self.expect {
            None => Ok(false),
            Some(expect) if expect.trim_ascii().eq_ignore_ascii_case(b"100-continue") => Ok(is_1_1),
            Some(_) => Err(Problem::Expectation),
        }
    }
}
