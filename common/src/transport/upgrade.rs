//! The HTTP/1.1 upgrade to WebSocket (RFC 6455, 4), both roles.
//!
//! One request a connection: whatever is not an upgrade is answered with an error and `Connection: close`, so nothing
//! that follows a refused head is ever read as a second request.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use sha1::{Digest, Sha1};

use super::{Subprotocol, deflate};
use crate::config::admits;
use crate::limits::{UPGRADE_BYTES_MAX, UPGRADE_HEADERS_MAX};

/// What a listener answers with an upgrade.
#[derive(Clone, Copy, Debug)]
pub struct Accepts<'p> {
    /// The path of the request.
    pub path: &'p str,
    /// No WAMP is spoken and no subprotocol agreed on.
    pub is_echo: bool,
    /// `None`: messages are not compressed.
    pub deflate: Option<deflate::Accepts>,
    /// The pages that may connect; see [`admits`].
    pub origins: Option<&'p [String]>,
}

/// Without compression, from any page.
impl<'p> From<&'p str> for Accepts<'p> {
    fn from(path: &'p str) -> Self {
        Self { path, is_echo: false, deflate: None, origins: None }
    }
}

/// A client's valid upgrade request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Upgrade {
    /// The first offered WAMP subprotocol that we speak; `None` only with [`Accepts::is_echo`].
    pub subprotocol: Option<Subprotocol>,
    /// Compression, when the client offered it and the listener agrees.
    pub deflate: Option<deflate::Params>,
    /// The `Sec-WebSocket-Accept` value to answer.
    pub accept: String,
    /// Bytes of the request head; what follows belongs to the WebSocket.
    pub head_bytes: usize,
}

/// Why an upgrade was refused: an HTTP answer to send before closing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UpgradeError {
    #[error("400 malformed request: {0}")]
    Malformed(&'static str),
    #[error("403 pages of this origin may not connect")]
    Origin,
    #[error("404 no such path")]
    Path,
    #[error("405 method must be GET")]
    Method,
    #[error("400 no WAMP subprotocol offered that is spoken here")]
    Subprotocol,
    #[error("426 WebSocket version must be 13")]
    Version,
    #[error("431 request head over the limit")]
    TooLarge,
    #[error("426 this port speaks WebSocket only")]
    NotWebSocket,
}

impl UpgradeError {
    /// The status line after the version.
    const fn status(self) -> &'static str {
        match self {
            Self::Malformed(_) | Self::Subprotocol => "400 Bad Request",
            Self::Origin => "403 Forbidden",
            Self::Path => "404 Not Found",
            Self::Method => "405 Method Not Allowed",
            Self::Version | Self::NotWebSocket => "426 Upgrade Required",
            Self::TooLarge => "431 Request Header Fields Too Large",
        }
    }

    /// `Connection`, and headers that the status asks for (RFC 9110, 15.5.6 and 15.5.22; RFC 6455, 4.4).
    const fn headers(self) -> &'static str {
        match self {
            Self::Method => "Connection: close\r\nAllow: GET\r\n",
            Self::Version | Self::NotWebSocket => {
                "Connection: close, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            }
            Self::Malformed(_) | Self::Subprotocol | Self::Origin | Self::Path | Self::TooLarge => {
                "Connection: close\r\n"
            }
        }
    }

    /// One line for whoever wrote the client.
    fn body(self) -> String {
        match self {
            Self::Malformed(what) => format!("Malformed request: {what}.\n"),
            Self::Origin => "Pages of this origin may not connect here.\n".into(),
            Self::Path => "There is no such path here.\n".into(),
            Self::Method => "The method must be GET.\n".into(),
            Self::Subprotocol => {
                let names: Vec<&str> = Subprotocol::all().map(Subprotocol::name).collect();
                format!("Sec-WebSocket-Protocol must offer one of {}.\n", names.join(", "))
            }
            Self::Version => "Sec-WebSocket-Version must be 13.\n".into(),
            Self::TooLarge => "The request head is over the limit.\n".into(),
            Self::NotWebSocket => "This port speaks WebSocket only: connect with a WAMP client.\n".into(),
        }
    }
}

/// What a key is joined with before it is hashed (RFC 6455, 1.3).
const KEY_SUFFIX: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Bytes of a nonce that a key encodes.
const NONCE_BYTES: usize = 16;
/// Bytes of a nonce in base64, with padding.
const KEY_BYTES: usize = NONCE_BYTES.div_ceil(3) * 4;

/// Reads an upgrade request. `Ok(None)`: not whole yet, and so far within [`UPGRADE_BYTES_MAX`].
pub fn parse_request<'p>(
    head: &[u8],
    accepts: impl Into<Accepts<'p>>,
) -> Result<Option<Upgrade>, UpgradeError> {
    let accepts = accepts.into();
    let mut headers = [httparse::EMPTY_HEADER; UPGRADE_HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let within = &head[..head.len().min(UPGRADE_BYTES_MAX)];
    let head_bytes = match request.parse(within) {
        Ok(httparse::Status::Complete(head_bytes)) => head_bytes,
        Ok(httparse::Status::Partial) if head.len() >= UPGRADE_BYTES_MAX => {
            return Err(UpgradeError::TooLarge);
        }
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(UpgradeError::TooLarge),
        Err(error) => return Err(UpgradeError::Malformed(parse_failure(error))),
    };
    // Parsers that disagree about a lone LF can be played against each other.
    if !has_only_crlf(&within[..head_bytes]) {
        return Err(UpgradeError::Malformed("lines must end with CR LF"));
    }
    check_request_line(&request, accepts.path)?;
    let offer = Offer::read(request.headers, accepts.deflate)?;
    let accept = offer.check()?;
    if let (Some(origins), Some(origin)) = (accepts.origins, offer.origin)
        && !admits(origins, origin)
    {
        return Err(UpgradeError::Origin);
    }
    let subprotocol = match accepts.is_echo {
        true => None,
        false => Some(offer.subprotocol.ok_or(UpgradeError::Subprotocol)?),
    };
    Ok(Some(Upgrade { subprotocol, deflate: offer.deflate, accept, head_bytes }))
}

/// Method, version and target. The query is not part of the path.
fn check_request_line(request: &httparse::Request<'_, '_>, path: &str) -> Result<(), UpgradeError> {
    if request.method != Some("GET") {
        return Err(UpgradeError::Method);
    }
    if request.version != Some(1) {
        return Err(UpgradeError::Malformed("the version must be HTTP/1.1"));
    }
    let target = request.path.unwrap_or_default();
    if !target.starts_with('/') {
        return Err(UpgradeError::Malformed("the request target must be a path"));
    }
    match target.split('?').next() {
        Some(target) if target == path => Ok(()),
        _ => Err(UpgradeError::Path),
    }
}

/// The headers that matter. Others are passed over.
#[derive(Default)]
struct Offer<'h> {
    host: Option<&'h [u8]>,
    /// The page that a browser connects for (RFC 6455, 10.2).
    origin: Option<&'h [u8]>,
    key: Option<&'h [u8]>,
    version: Option<&'h [u8]>,
    content_length: Option<&'h [u8]>,
    is_upgrade: bool,
    is_connection_upgrade: bool,
    subprotocol: Option<Subprotocol>,
    /// Agreed to already: the first offer that can be kept wins.
    deflate: Option<deflate::Params>,
}

impl<'h> Offer<'h> {
    fn read(
        headers: &[httparse::Header<'h>],
        accepts: Option<deflate::Accepts>,
    ) -> Result<Self, UpgradeError> {
        let mut offer = Self::default();
        for &httparse::Header { name, value } in headers {
            let is = |expected: &str| name.eq_ignore_ascii_case(expected);
            if is("host") {
                once(&mut offer.host, value, "more than one Host")?;
            } else if is("origin") {
                once(&mut offer.origin, value, "more than one Origin")?;
            } else if is("sec-websocket-key") {
                once(&mut offer.key, value, "more than one Sec-WebSocket-Key")?;
            } else if is("sec-websocket-version") {
                once(&mut offer.version, value, "more than one Sec-WebSocket-Version")?;
            } else if is("content-length") {
                once(&mut offer.content_length, value, "more than one Content-Length")?;
            } else if is("transfer-encoding") {
                return Err(UpgradeError::Malformed("an upgrade request has no body"));
            } else if is("upgrade") {
                offer.is_upgrade |= has_token(value, "websocket");
            } else if is("connection") {
                offer.is_connection_upgrade |= has_token(value, "upgrade");
            } else if is("sec-websocket-protocol") && offer.subprotocol.is_none() {
                offer.subprotocol = tokens(value).find_map(Subprotocol::from_name);
            } else if is("sec-websocket-extensions")
                && offer.deflate.is_none()
                && let Some(accepts) = accepts
            {
                offer.deflate = deflate::Params::choose(value, accepts);
            }
        }
        Ok(offer)
    }

    /// The accept value to answer.
    fn check(&self) -> Result<String, UpgradeError> {
        match self.host {
            Some(host) if is_host(host) => {}
            Some(_) => return Err(UpgradeError::Malformed("Host is not a host and port")),
            None => return Err(UpgradeError::Malformed("Host is missing")),
        }
        if self.content_length.is_some_and(|length| length != b"0") {
            return Err(UpgradeError::Malformed("an upgrade request has no body"));
        }
        if !self.is_upgrade {
            return Err(UpgradeError::NotWebSocket);
        }
        if !self.is_connection_upgrade {
            return Err(UpgradeError::Malformed("Connection must list Upgrade"));
        }
        if self.version != Some(b"13") {
            return Err(UpgradeError::Version);
        }
        let Some(key) = self.key else {
            return Err(UpgradeError::Malformed("Sec-WebSocket-Key is missing"));
        };
        if !is_key(key) {
            return Err(UpgradeError::Malformed("Sec-WebSocket-Key is not 16 bytes in base64"));
        }
        Ok(accept_value(key))
    }
}

fn once<'h>(slot: &mut Option<&'h [u8]>, value: &'h [u8], failure: &'static str) -> Result<(), UpgradeError> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(UpgradeError::Malformed(failure)),
    }
}

/// A host and port hold no delimiter of another part of a URI, and no list (RFC 9110, 7.2).
pub(super) fn is_host(value: &[u8]) -> bool {
    value.iter().all(|octet| octet.is_ascii_graphic() && !b"/?#@,\\".contains(octet))
}

fn is_key(key: &[u8]) -> bool {
    let mut nonce = [0; NONCE_BYTES + 2];
    key.len() == KEY_BYTES && BASE64.decode_slice(key, &mut nonce) == Ok(NONCE_BYTES)
}

/// The elements of a comma-separated header value; those that are not UTF-8 are no token we know.
pub(super) fn tokens(value: &[u8]) -> impl Iterator<Item = &str> {
    value.split(|&octet| octet == b',').filter_map(|token| str::from_utf8(token.trim_ascii()).ok())
}

pub(super) fn has_token(value: &[u8], expected: &str) -> bool {
    tokens(value).any(|token| token.eq_ignore_ascii_case(expected))
}

fn has_only_crlf(head: &[u8]) -> bool {
    memchr::memchr_iter(b'\n', head).all(|at| at > 0 && head[at - 1] == b'\r')
}

const fn parse_failure(error: httparse::Error) -> &'static str {
    match error {
        httparse::Error::HeaderName => "bad header name",
        httparse::Error::HeaderValue => "bad header value",
        httparse::Error::NewLine => "bad line end",
        httparse::Error::Version => "bad HTTP version",
        _ => "not HTTP/1.1",
    }
}

/// The `Sec-WebSocket-Accept` that proves that `key` was read (RFC 6455, 4.2.2).
fn accept_value(key: &[u8]) -> String {
    let hash = Sha1::new().chain_update(key).chain_update(KEY_SUFFIX).finalize();
    BASE64.encode(hash)
}

/// Appends the 101 answer.
pub fn write_accept(upgrade: &Upgrade, out: &mut Vec<u8>) {
    let Upgrade { subprotocol, deflate, accept, .. } = upgrade;
    for part in [
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ",
        accept,
        "\r\n",
    ] {
        out.extend_from_slice(part.as_bytes());
    }
    if let Some(subprotocol) = subprotocol {
        out.extend_from_slice(format!("Sec-WebSocket-Protocol: {}\r\n", subprotocol.name()).as_bytes());
    }
    if let Some(params) = deflate {
        out.extend_from_slice(format!("Sec-WebSocket-Extensions: {params}\r\n").as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends a whole HTTP error answer with a one-line body and `Connection: close`.
pub fn write_refusal(error: UpgradeError, out: &mut Vec<u8>) {
    let body = error.body();
    let answer = format!(
        "HTTP/1.1 {}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n{}\r\n{body}",
        error.status(),
        body.len(),
        error.headers(),
    );
    out.extend_from_slice(answer.as_bytes());
}

/// Appends a client's request. `host` and `path` come from our own configuration.
pub fn write_request(
    host: &str,
    path: &str,
    subprotocol: impl Into<Subprotocol>,
    key: [u8; 16],
    out: &mut Vec<u8>,
) {
    let key = BASE64.encode(key);
    let subprotocol = subprotocol.into().name();
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: {subprotocol}\r\n\r\n",
    );
    out.extend_from_slice(request.as_bytes());
}

/// Reads the server's answer for `key`. `Ok(None)`: not whole yet; otherwise the bytes of the answer's head. The error
/// says what was wrong.
pub fn parse_answer(
    head: &[u8],
    subprotocol: impl Into<Subprotocol>,
    key: [u8; 16],
) -> Result<Option<usize>, String> {
    let subprotocol = subprotocol.into().name();
    let mut headers = [httparse::EMPTY_HEADER; UPGRADE_HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let within = &head[..head.len().min(UPGRADE_BYTES_MAX)];
    let head_bytes = match response.parse(within) {
        Ok(httparse::Status::Complete(head_bytes)) => head_bytes,
        Ok(httparse::Status::Partial) if head.len() >= UPGRADE_BYTES_MAX => {
            return Err(format!("the answer's head is over {UPGRADE_BYTES_MAX} bytes"));
        }
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(format!("the answer is not HTTP/1.1: {error}")),
    };
    if response.code != Some(101) {
        return Err(format!("the server answered {} instead of 101", response.code.unwrap_or_default()));
    }
    let value = |name: &str| {
        let mut values = response.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
        let first = values.next().map(|header| header.value);
        if values.next().is_some() { Err(format!("the answer has more than one {name}")) } else { Ok(first) }
    };
    let accept = accept_value(BASE64.encode(key).as_bytes());
    if !value("Upgrade")?.is_some_and(|upgrade| upgrade.eq_ignore_ascii_case(b"websocket")) {
        return Err("the answer's Upgrade is not websocket".into());
    }
    if !value("Connection")?.is_some_and(|connection| has_token(connection, "upgrade")) {
        return Err("the answer's Connection does not list Upgrade".into());
    }
    if value("Sec-WebSocket-Accept")? != Some(accept.as_bytes()) {
        return Err("the answer's Sec-WebSocket-Accept is wrong".into());
    }
    if value("Sec-WebSocket-Protocol")? != Some(subprotocol.as_bytes()) {
        return Err(format!("the server does not speak {subprotocol}"));
    }
    if value("Sec-WebSocket-Extensions")?.is_some_and(|extensions| !extensions.is_empty()) {
        return Err("the server chose an extension that was not offered".into());
    }
    Ok(Some(head_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Serializer;
    use proptest::prelude::*;

    const REQUEST: &str = "GET /ws HTTP/1.1\r\nHost: server.example.com\r\nUpgrade: websocket\r\n\
        Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: wamp.2.json\r\n\r\n";

    fn parse(request: &str) -> Result<Option<Upgrade>, UpgradeError> {
        parse_request(request.as_bytes(), "/ws")
    }

    /// The answer to `REQUEST` with `from` replaced.
    fn replaced(from: &str, to: &str) -> Result<Upgrade, UpgradeError> {
        let request = REQUEST.replace(from, to);
        assert_ne!(request, REQUEST, "{from:?} is in the request");
        parse(&request).map(|upgrade| upgrade.expect("the request is whole"))
    }

    fn with_header(header: &str) -> Result<Upgrade, UpgradeError> {
        replaced("\r\n\r\n", &format!("\r\n{header}\r\n\r\n"))
    }

    #[test]
    fn the_example_of_the_rfc_is_accepted() {
        let upgrade = parse(&format!("{REQUEST}rest")).unwrap().unwrap();
        assert_eq!(upgrade.subprotocol, Some(Serializer::Json.into()));
        assert_eq!(upgrade.accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(upgrade.head_bytes, REQUEST.len());
    }

    #[test]
    fn a_request_is_asked_for_until_it_is_whole() {
        for end in 0..REQUEST.len() {
            assert_eq!(parse(&REQUEST[..end]), Ok(None), "{end} bytes");
        }
    }

    #[test]
    fn names_and_tokens_are_compared_without_case_and_in_lists() {
        assert!(replaced("Upgrade: websocket", "UPGRADE: WebSocket").is_ok());
        assert!(replaced("Upgrade: websocket", "Upgrade: h2c, websocket").is_ok());
        assert!(replaced("Connection: Upgrade", "Connection: keep-alive, upgrade").is_ok());
        assert!(replaced("Connection: Upgrade", "Connection: keep-alive\r\nConnection: Upgrade").is_ok());
        assert!(replaced("GET /ws", "GET /ws?token=a/b").is_ok());
        assert!(replaced("Host: server.example.com", "Host: [::1]:18080").is_ok());
        assert!(with_header("Sec-WebSocket-Extensions: permessage-deflate").is_ok());
        assert!(with_header("Content-Length: 0").is_ok());
    }

    #[test]
    fn the_first_subprotocol_that_is_spoken_wins() {
        let chosen = |offer: &str| {
            let offer = format!("Sec-WebSocket-Protocol: {offer}");
            replaced("Sec-WebSocket-Protocol: wamp.2.json", &offer)
                .map(|upgrade| upgrade.subprotocol.expect("no echo").name())
        };
        assert_eq!(chosen("wamp.2.cbor, wamp.2.json"), Ok("wamp.2.cbor"));
        assert_eq!(chosen("wamp.2.flatbuffers,wamp.2.msgpack"), Ok("wamp.2.msgpack"));
        assert_eq!(chosen("mqtt\r\nSec-WebSocket-Protocol: wamp.2.cbor"), Ok("wamp.2.cbor"));
        assert_eq!(chosen("wamp.2.json\r\nSec-WebSocket-Protocol: wamp.2.cbor"), Ok("wamp.2.json"));
        assert_eq!(chosen("wamp.2.json.batched"), Ok("wamp.2.json.batched"));
        assert_eq!(chosen("wamp.2.cbor, wamp.2.cbor.batched"), Ok("wamp.2.cbor"));
        assert_eq!(chosen("wamp.2.cbor.batched, wamp.2.cbor"), Ok("wamp.2.cbor.batched"));
        assert_eq!(chosen("wamp.2.ubjson.batched"), Err(UpgradeError::Subprotocol));
        assert_eq!(chosen("WAMP.2.JSON"), Err(UpgradeError::Subprotocol));
        assert_eq!(chosen(&vec!["x"; 500].join(",")), Err(UpgradeError::Subprotocol));
        assert_eq!(replaced("Sec-WebSocket-Protocol: wamp.2.json\r\n", ""), Err(UpgradeError::Subprotocol));
    }

    #[test]
    fn pages_of_other_origins_do_not_connect() {
        let origins = ["https://app.example".to_owned()];
        let from = |lines: &str| {
            let request = REQUEST.replace("Upgrade: websocket", &format!("{lines}Upgrade: websocket"));
            let accepts = Accepts { origins: Some(&origins), ..Accepts::from("/ws") };
            parse_request(request.as_bytes(), accepts).map(|upgrade| upgrade.is_some())
        };
        assert_eq!(from("Origin: https://app.example\r\n"), Ok(true));
        assert_eq!(from(""), Ok(true), "no browser");
        assert_eq!(from("Origin: https://evil.example\r\n"), Err(UpgradeError::Origin));
        assert_eq!(from("Origin: null\r\n"), Err(UpgradeError::Origin));
        assert!(with_header("Origin: https://evil.example").is_ok(), "all are admitted where none is named");
    }

    #[test]
    fn compression_is_agreed_on_where_the_listener_allows_it() {
        let offer =
            "permessage-deflate; client_max_window_bits\r\nSec-WebSocket-Extensions: permessage-deflate";
        let request = REQUEST.replace("\r\n\r\n", &format!("\r\nSec-WebSocket-Extensions: {offer}\r\n\r\n"));
        let parse = |deflate| {
            let accepts = Accepts { deflate, ..Accepts::from("/ws") };
            parse_request(request.as_bytes(), accepts).unwrap().unwrap()
        };
        assert_eq!(parse(None).deflate, None);
        let upgrade = parse(Some(deflate::Accepts { context_takeover: true }));
        let mut answer = Vec::new();
        write_accept(&upgrade, &mut answer);
        let answer = String::from_utf8(answer).unwrap();
        let line = "\r\nSec-WebSocket-Extensions: permessage-deflate; client_max_window_bits=15\r\n\r\n";
        assert!(answer.ends_with(line), "{answer}");
        assert!(parse_answer(answer.as_bytes(), Serializer::Json, [7; 16]).is_err(), "nobody offered it");
    }

    #[test]
    fn wrong_methods_paths_and_versions_are_refused() {
        assert_eq!(replaced("GET", "POST"), Err(UpgradeError::Method));
        assert_eq!(replaced("/ws", "/"), Err(UpgradeError::Path));
        assert_eq!(replaced("/ws", "/ws/"), Err(UpgradeError::Path));
        assert_eq!(replaced("/ws", "/%77s"), Err(UpgradeError::Path));
        assert_eq!(replaced("/ws", "/x/../ws"), Err(UpgradeError::Path));
        assert!(matches!(replaced("/ws", "http://other/ws"), Err(UpgradeError::Malformed(_))));
        assert!(matches!(replaced("HTTP/1.1", "HTTP/1.0"), Err(UpgradeError::Malformed(_))));
        assert_eq!(replaced("Version: 13", "Version: 8"), Err(UpgradeError::Version));
        assert_eq!(replaced("Version: 13", "Version: 13, 8"), Err(UpgradeError::Version));
        assert_eq!(replaced("Sec-WebSocket-Version: 13\r\n", ""), Err(UpgradeError::Version));
        assert_eq!(replaced("Upgrade: websocket\r\n", ""), Err(UpgradeError::NotWebSocket));
        assert_eq!(replaced("Upgrade: websocket", "Upgrade: h2c"), Err(UpgradeError::NotWebSocket));
    }

    #[test]
    fn missing_wrong_and_repeated_headers_are_refused() {
        let is_malformed = |result| matches!(result, Err(UpgradeError::Malformed(_)));
        for missing in [
            "Host: server.example.com\r\n",
            "Connection: Upgrade\r\n",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        ] {
            assert!(is_malformed(replaced(missing, "")), "{missing}");
        }
        for key in ["", "dGhlIHNhbXBsZSBub25j", "dGhlIHNhbXBsZSBub25jZQ", "dGhlIHNhbXBsZSBub25jZWFh", "!!!!"]
        {
            assert!(is_malformed(replaced("dGhlIHNhbXBsZSBub25jZQ==", key)), "{key}");
        }
        for repeated in [
            "Host: server.example.com",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            "Sec-WebSocket-Version: 13",
            "Content-Length: 0\r\nContent-Length: 0",
        ] {
            assert!(is_malformed(with_header(repeated)), "{repeated}");
        }
        for body in
            ["Content-Length: 5", "Content-Length: 00", "Content-Length: -0", "Transfer-Encoding: chunked"]
        {
            assert!(is_malformed(with_header(body)), "{body}");
        }
        for host in ["a/b", "a b", "a,b", "user@a", "\u{e4}"] {
            assert!(is_malformed(replaced("server.example.com", host)), "{host}");
        }
    }

    #[test]
    fn line_tricks_are_refused() {
        let is_malformed = |request: &str| matches!(parse(request), Err(UpgradeError::Malformed(_)));
        assert!(is_malformed(&REQUEST.replace("\r\n", "\n")));
        assert!(is_malformed(&REQUEST.replacen("\r\nUpgrade", "\nUpgrade", 1)));
        assert!(is_malformed(&REQUEST.replacen("\r\nUpgrade", "\rUpgrade", 1)));
        assert!(is_malformed(&REQUEST.replace("Host: server", "Host: a\r\n server")), "folded line");
        assert!(is_malformed(&REQUEST.replace("Host:", "Host :")));
        assert!(is_malformed(&REQUEST.replace("/ws", "/ws\0")));
        assert!(is_malformed("\x16\x03\x01\x02\x00\x01\x00\x01"), "TLS");
        assert!(is_malformed("\x7f\x00\x00\x00"), "RawSocket");
        assert!(is_malformed("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), "HTTP/2");
    }

    #[test]
    fn heads_over_the_limits_are_refused() {
        let long =
            |bytes: usize| REQUEST.replace("\r\n\r\n", &format!("\r\nX: {}\r\n\r\n", "x".repeat(bytes)));
        let overhead = long(0).len();
        assert!(parse(&long(UPGRADE_BYTES_MAX - overhead)).unwrap().is_some());
        assert_eq!(parse(&long(UPGRADE_BYTES_MAX - overhead + 1)), Err(UpgradeError::TooLarge));
        let endless = format!("GET /{}", "x".repeat(UPGRADE_BYTES_MAX));
        assert_eq!(parse(&endless[..UPGRADE_BYTES_MAX - 1]), Ok(None));
        assert_eq!(parse(&endless[..UPGRADE_BYTES_MAX]), Err(UpgradeError::TooLarge));
        assert_eq!(with_header(&vec!["X: y"; UPGRADE_HEADERS_MAX].join("\r\n")), Err(UpgradeError::TooLarge));
        assert!(with_header(&vec!["X: y"; UPGRADE_HEADERS_MAX - 6].join("\r\n")).is_ok());
    }

    #[test]
    fn answers_end_the_connection_and_say_their_length() {
        let errors = [
            (UpgradeError::Malformed("bad"), 400),
            (UpgradeError::Path, 404),
            (UpgradeError::Method, 405),
            (UpgradeError::Subprotocol, 400),
            (UpgradeError::Version, 426),
            (UpgradeError::TooLarge, 431),
            (UpgradeError::NotWebSocket, 426),
        ];
        for (error, code) in errors {
            assert!(error.to_string().starts_with(&code.to_string()), "{error}");
            let mut answer = Vec::new();
            write_refusal(error, &mut answer);
            let mut headers = [httparse::EMPTY_HEADER; 8];
            let mut response = httparse::Response::new(&mut headers);
            let head_bytes = response.parse(&answer).unwrap().unwrap();
            assert_eq!(response.code, Some(code));
            let value = |name: &str| {
                let header = response.headers.iter().find(|header| header.name == name)?;
                str::from_utf8(header.value).ok()
            };
            assert_eq!(value("Content-Length"), Some((answer.len() - head_bytes).to_string().as_str()));
            assert!(value("Connection").unwrap().starts_with("close"));
            assert_eq!(value("Sec-WebSocket-Version"), (code == 426).then_some("13"));
            assert_eq!(answer.iter().filter(|&&octet| octet == b'\n').count(), response.headers.len() + 3);
        }
    }

    #[test]
    fn an_echo_needs_no_subprotocol_and_agrees_to_none() {
        for request in [REQUEST.to_owned(), REQUEST.replace("Sec-WebSocket-Protocol: wamp.2.json\r\n", "")] {
            let accepts = Accepts { is_echo: true, ..Accepts::from("/ws") };
            let upgrade = parse_request(request.as_bytes(), accepts).unwrap().unwrap();
            assert_eq!(upgrade.subprotocol, None);
            let mut answer = Vec::new();
            write_accept(&upgrade, &mut answer);
            assert!(answer.ends_with(b"kYGzzhZRbK+xOo=\r\n\r\n"), "{}", answer.escape_ascii());
        }
    }

    #[test]
    fn both_roles_agree() {
        for subprotocol in Subprotocol::all() {
            let (mut request, mut answer) = (Vec::new(), Vec::new());
            write_request("localhost:18080", "/ws", subprotocol, [7; 16], &mut request);
            let upgrade = parse_request(&request, "/ws").unwrap().unwrap();
            assert_eq!((upgrade.subprotocol, upgrade.head_bytes), (Some(subprotocol), request.len()));
            write_accept(&upgrade, &mut answer);
            for end in 0..answer.len() {
                assert_eq!(parse_answer(&answer[..end], subprotocol, [7; 16]), Ok(None));
            }
            answer.extend_from_slice(b"\x81\x00");
            assert_eq!(parse_answer(&answer, subprotocol, [7; 16]), Ok(Some(answer.len() - 2)));
            assert!(parse_answer(&answer, subprotocol, [8; 16]).is_err());
        }
    }

    #[test]
    fn wrong_answers_are_told() {
        let mut answer = Vec::new();
        let accept = accept_value(BASE64.encode([7; 16]).as_bytes());
        write_accept(
            &Upgrade { subprotocol: Some(Serializer::Json.into()), deflate: None, accept, head_bytes: 0 },
            &mut answer,
        );
        let answer = String::from_utf8(answer).unwrap();
        let parse = |answer: &str| parse_answer(answer.as_bytes(), Serializer::Json, [7; 16]);
        assert!(parse(&answer).is_ok());
        for (from, to) in [
            ("101", "200"),
            ("Upgrade: websocket", "Upgrade: h2c"),
            ("Connection: Upgrade", "Connection: close"),
            ("Accept: ", "Accept: x"),
            ("wamp.2.json", "wamp.2.cbor"),
            ("\r\n\r\n", "\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"),
            ("\r\n\r\n", "\r\nUpgrade: websocket\r\n\r\n"),
            ("HTTP/1.1", "SMTP"),
        ] {
            let changed = answer.replace(from, to);
            assert_ne!(changed, answer);
            assert!(parse(&changed).is_err(), "{from} -> {to}");
        }
        let endless = format!("HTTP/1.1 101 x\r\nX: {}", "x".repeat(UPGRADE_BYTES_MAX));
        assert!(parse(&endless).is_err());
    }

    proptest! {
        #[test]
        fn random_heads_never_panic(head: Vec<u8>, at in 0usize..250, octet: u8) {
            let _ = parse_request(&head, "/ws");
            let _ = parse_answer(&head, Serializer::Json, [7; 16]);
            let mut changed = REQUEST.as_bytes().to_vec();
            let at = at % changed.len();
            changed[at] = octet;
            if let Ok(Some(upgrade)) = parse_request(&changed, "/ws") {
                prop_assert!(upgrade.head_bytes <= changed.len());
            }
        }
    }
}
