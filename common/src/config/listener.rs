//! `[[listener]]` tables into [`Listener`]s.

use super::reader::{Section, Source};
use super::schema::{LISTENERS_MAX, PATH_BYTES_MAX, SOCKET_BYTES_MAX};
use super::{Compression, ConfigError, Listener, Transport, UnixSocket};
use crate::transport::http::is_request;

/// None written: the default ones.
pub(super) fn all(source: &Source<'_>, default: Vec<Listener>) -> Result<Vec<Listener>, ConfigError> {
    let Some(sections) = source.sections("listener")? else {
        return Ok(default);
    };
    if sections.is_empty() || sections.len() > LISTENERS_MAX {
        let found = format!("{} listeners", sections.len());
        return Err(source.root()?.refuse("listener", found, format!("1 to {LISTENERS_MAX} listeners")));
    }
    sections.iter().map(listener).collect()
}

fn listener(section: &Section<'_>) -> Result<Listener, ConfigError> {
    let transport = [Transport::WebSocket, Transport::RawSocket, Transport::Auto, Transport::Http]
        [section.choice("transport", 0)?];
    let default = Listener::of(transport);
    let upgrades = matches!(transport, Transport::WebSocket | Transport::Auto);
    if !upgrades && section.has("path") {
        let found = format!("a path of a listener of {}", transport.name());
        return Err(section.refuse("path", found, "paths of websocket listeners"));
    }
    let compression = [Compression::Off, Compression::NoTakeover, Compression::Takeover]
        [section.choice("compression", 0)?];
    if !upgrades && compression != Compression::Off {
        let found = format!("compression of a listener of {}", transport.name());
        return Err(section.refuse("compression", found, "compression of websocket listeners"));
    }
    let socket = socket(section)?;
    let echo = section.boolean("echo", default.echo)?;
    if echo && transport != Transport::WebSocket {
        return Err(section.refuse("echo", "an echo without WebSocket", "echo of websocket listeners"));
    }
    let http = section.boolean("http", default.http)?;
    if (echo || transport == Transport::RawSocket) && http {
        let allowed = "HTTP transports of websocket and auto listeners";
        return Err(section.refuse("http", "HTTP transports", allowed));
    }
    if transport == Transport::Http && !http {
        return Err(section.refuse("http", "none", "HTTP transports of an http listener"));
    }
    let path = section.string("path", &default.path, is_url_path)?;
    if upgrades && http && is_request(format!("GET {path}/ ").as_bytes()) != Some(false) {
        return Err(section.refuse("path", format!("{path:?}"), "a path that HTTP transports do not have"));
    }
    Ok(Listener {
        transport,
        address: section.address("address", default.address)?,
        path,
        connections_max: section.u32("connections_max", default.connections_max)?,
        message_max: section.u32("message_max", default.message_max)?,
        backlog: section.u32("backlog", default.backlog)?,
        compression,
        compression_level: section.u32("compression_level", default.compression_level.into())? as u8,
        proxy_protocol: section.boolean("proxy_protocol", default.proxy_protocol)?,
        echo,
        http,
        origins: section.strings("origins", default.origins, is_origin)?,
        socket,
    })
}

fn socket(section: &Section<'_>) -> Result<Option<UnixSocket>, ConfigError> {
    let is_path = |path: &str| path.len() <= SOCKET_BYTES_MAX && !path.contains('\0');
    let path = section.string("socket", "", is_path)?;
    let mode = section.string("mode", "600", |mode| read_mode(mode).is_some())?;
    if path.is_empty() {
        return Ok(None);
    }
    if section.has("address") {
        return Err(section.refuse("socket", "an address and a socket", "one of them"));
    }
    let mode = read_mode(&mode).expect("the section's value was checked");
    Ok(Some(UnixSocket { path: path.into(), mode }))
}

/// Three or four octal digits, the first of four being zero: permissions and nothing else.
fn read_mode(text: &str) -> Option<u32> {
    let is_octal = matches!(text.len(), 3 | 4) && text.bytes().all(|digit| matches!(digit, b'0'..=b'7'));
    u32::from_str_radix(text, 8).ok().filter(|mode| is_octal && *mode <= 0o777)
}

fn is_url_path(text: &str) -> bool {
    text.starts_with('/')
        && text.len() <= PATH_BYTES_MAX
        && text.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#'))
}

/// `*`, `null`, or scheme, host and perhaps port, as browsers write it (RFC 6454, 6.1).
fn is_origin(text: &str) -> bool {
    let rest = text.split_once("://").map(|(scheme, rest)| (!scheme.is_empty(), rest));
    let is_whole = |(scheme, rest): (bool, &str)| {
        scheme
            && !rest.is_empty()
            && rest.bytes().all(|octet| octet.is_ascii_graphic() && !b"/?#@,".contains(&octet))
    };
    matches!(text, "*" | "null") || text.len() <= PATH_BYTES_MAX && rest.is_some_and(is_whole)
}

impl Listener {
    /// This origin is named, and not only one of all.
    pub fn names(&self, origin: &[u8]) -> bool {
        self.origins.iter().any(|named| named.as_bytes().eq_ignore_ascii_case(origin))
    }

    /// Pages of this origin may use it.
    pub fn admits(&self, origin: &[u8]) -> bool {
        admits(&self.origins, origin)
    }
}

/// An origin is admitted by a list of them. Browsers write schemes and hosts in lower case; people do not always.
pub fn admits(origins: &[String], origin: &[u8]) -> bool {
    origins.iter().any(|admitted| admitted == "*" || admitted.as_bytes().eq_ignore_ascii_case(origin))
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;
    use std::path::Path;

    fn parse(text: &str) -> Result<Listener, String> {
        let config = Config::parse(&format!("[[listener]]\n{text}"), Path::new("test.toml"));
        config.map(|mut config| config.listeners.remove(0)).map_err(|error| error.to_string())
    }

    #[test]
    fn http_is_served_by_itself_or_beside_websocket() {
        assert!(
            parse("transport = \"http\"").is_ok_and(|listener| listener.http && listener.path.is_empty())
        );
        for transport in ["websocket", "auto"] {
            let text = format!("transport = \"{transport}\"");
            assert!(parse(&text).is_ok_and(|listener| !listener.http));
            assert!(parse(&format!("{text}\nhttp = true")).is_ok_and(|listener| listener.http));
        }
        for (text, key) in [
            ("transport = \"rawsocket\"\nhttp = true", "http"),
            ("transport = \"http\"\nhttp = false", "http"),
            ("transport = \"http\"\npath = \"/ws\"", "path"),
            ("transport = \"http\"\ncompression = \"takeover\"", "compression"),
            ("http = true\npath = \"/wamp/sse\"", "path"),
            ("echo = true\nhttp = true", "http"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.starts_with(&format!("test.toml:3: listener.{key}: found ")), "{error}");
        }
    }

    #[test]
    fn origins_are_all_or_those_that_are_named() {
        assert!(Listener::of(Transport::WebSocket).admits(b"https://anywhere.example"));
        let listener =
            parse("origins = [\"https://App.example\", \"http://localhost:8080\"]").expect("right");
        assert!(listener.names(b"https://app.example"));
        assert!(!Listener::of(Transport::WebSocket).names(b"https://app.example"));
        assert!(listener.admits(b"https://app.example") && listener.admits(b"http://localhost:8080"));
        for other in [&b"http://app.example"[..], b"https://app.example:444", b"null", b"*", b""] {
            assert!(!listener.admits(other));
        }
        assert!(parse("origins = []").is_ok_and(|listener| !listener.admits(b"https://app.example")));
        for wrong in ["a", "https://", "://a", "https://a/", "https://a b", "https://u@a"] {
            let error = parse(&format!("origins = [\"{wrong}\"]")).expect_err(wrong);
            assert!(error.starts_with("test.toml:2: listener.origins: found "), "{error}");
        }
    }
}
