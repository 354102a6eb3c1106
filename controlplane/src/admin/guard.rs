//! Who may change something: programs on this machine, and no web page they have open.
//!
//! A page on the web can make a browser send requests to loopback addresses, under its own host name (DNS rebinding) or
//! with its `Origin`. Both are refused.

use super::{Facts, Peer};
use axum::http::HeaderMap;
use axum::http::header::{HOST, ORIGIN};
use std::net::{IpAddr, SocketAddr};

/// Why a change is refused before it is looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    #[error("changes are taken from this machine only")]
    Remote,
    #[error("the Host header must name this machine: an IP address or localhost")]
    Host,
    #[error("requests of web pages are refused")]
    Origin,
}

pub fn check_change(facts: &Facts, Peer(peer): Peer, headers: &HeaderMap) -> Result<(), Refusal> {
    if !is_loopback(peer.ip()) {
        return Err(Refusal::Remote);
    }
    if headers.contains_key(ORIGIN) {
        return Err(Refusal::Origin);
    }
    let mut hosts = headers.get_all(HOST).iter();
    let host = hosts.next().and_then(|host| host.to_str().ok()).filter(|_| hosts.next().is_none());
    if host.is_some_and(|host| is_own(facts.address, host)) { Ok(()) } else { Err(Refusal::Host) }
}

/// `localhost`, a loopback address or the address we listen on, with or without a port.
fn is_own(own: SocketAddr, host: &str) -> bool {
    if let Ok(address) = host.parse::<SocketAddr>() {
        return is_loopback(address.ip()) || address.ip() == own.ip();
    }
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.parse::<u16>().is_ok() => name,
        _ => host,
    };
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    match bare.parse::<IpAddr>() {
        Ok(address) => is_loopback(address) || address == own.ip(),
        Err(_) => name.eq_ignore_ascii_case("localhost"),
    }
}

fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn check(peer: &str, headers: &[(&'static str, &'static str)]) -> Result<(), Refusal> {
        let facts = Facts {
            pid: 1,
            started: std::time::Instant::now(),
            address: "10.0.0.1:18081".parse().unwrap(),
            data_dir: "/".into(),
            shard_cpus: vec![],
            control_cpus: vec![],
            supervise: true,
        };
        let headers = headers.iter().map(|(name, value)| {
            (name.parse::<axum::http::HeaderName>().unwrap(), HeaderValue::from_static(value))
        });
        let mut map = HeaderMap::new();
        headers.for_each(|(name, value)| _ = map.append(name, value));
        check_change(&facts, Peer(peer.parse().unwrap()), &map)
    }

    #[test]
    fn programs_on_this_machine_may_change_things() {
        for host in
            ["127.0.0.1:18081", "127.0.0.1", "localhost", "LocalHost:1", "[::1]:18081", "10.0.0.1:18081"]
        {
            assert_eq!(check("127.0.0.1:5", &[("host", host)]), Ok(()), "{host}");
        }
        assert_eq!(check("[::ffff:127.0.0.1]:5", &[("host", "localhost")]), Ok(()));
    }

    #[test]
    fn others_and_web_pages_may_not() {
        assert_eq!(check("10.0.0.2:5", &[("host", "10.0.0.1")]), Err(Refusal::Remote));
        for host in ["evil.example", "localhost.evil.example:18081", "10.0.0.9", "", "127.0.0.1.evil.example"]
        {
            assert_eq!(check("127.0.0.1:5", &[("host", host)]), Err(Refusal::Host), "{host}");
        }
        assert_eq!(check("127.0.0.1:5", &[]), Err(Refusal::Host));
        let twice = [("host", "localhost"), ("host", "evil.example")];
        assert_eq!(check("127.0.0.1:5", &twice), Err(Refusal::Host));
        let page = [("host", "localhost"), ("origin", "http://evil.example")];
        assert_eq!(check("127.0.0.1:5", &page), Err(Refusal::Origin));
    }
}
