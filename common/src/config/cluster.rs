//! `[cluster]`, `[aae]` and `[relay]`: what a node needs to know of others.

use super::reader::Source;
use super::schema::{CLUSTER_TEXT_BYTES_MAX, DNS_TEXT_BYTES_MAX};
use super::{Aae, Cluster, ConfigError, Discovery, Relay};
use std::net::SocketAddr;
use std::path::PathBuf;

pub(super) fn cluster(source: &Source<'_>, default: Cluster) -> Result<Cluster, ConfigError> {
    const DISCOVERIES: [Discovery; 5] =
        [Discovery::None, Discovery::Static, Discovery::Dns, Discovery::Multicast, Discovery::Kubernetes];
    let section = source.section("cluster")?;
    let discovery = DISCOVERIES.iter().position(|discovery| *discovery == default.discovery);
    let advertise = section.string("advertise", "", |text| text.is_empty() || is_advertised(text))?;
    let key_file = section.string("key_file", "", |text| !text.contains('\0'))?;
    Ok(Cluster {
        discovery: DISCOVERIES[section.choice("discovery", discovery.unwrap_or_default())?],
        env: section.string("env", &default.env, |text| !text.is_empty() && is_text(text))?,
        address: section.address("address", default.address)?,
        advertise: advertise.parse().ok(),
        key_file: PathBuf::from(key_file),
        seeds: section.strings("seeds", default.seeds, is_host)?,
        dns: section
            .string("dns", &default.dns, |text| text.is_empty() || is_host(text) || is_service(text))?,
        multicast: section.address("multicast", default.multicast)?,
        kubernetes: section.string("kubernetes", &default.kubernetes, |text| {
            text.is_empty() || is_kubernetes_service(text)
        })?,
        failure_domain: section.string("failure_domain", &default.failure_domain, is_text)?,
        probe_interval: section.time("probe_interval", default.probe_interval)?,
        probe_timeout: section.time("probe_timeout", default.probe_timeout)?,
        suspicion: section.time("suspicion", default.suspicion)?,
        forget_after: section.time("forget_after", default.forget_after)?,
        join_wait: section.time("join_wait", default.join_wait)?,
        lazy_tick_period: section.time("lazy_tick_period", default.lazy_tick_period)?,
        exchange_tick_period: section.time("exchange_tick_period", default.exchange_tick_period)?,
    })
}

pub(super) fn aae(source: &Source<'_>, default: Aae) -> Result<Aae, ConfigError> {
    let section = source.section("aae")?;
    Ok(Aae {
        enabled: section.boolean("enabled", default.enabled)?,
        exchange_timer: section.time("exchange_timer", default.exchange_timer)?,
        data_exchange_timeout: section.time("data_exchange_timeout", default.data_exchange_timeout)?,
        exchange_rate: section.u64("exchange_rate", default.exchange_rate)?,
        hashtree_timer: section.time("hashtree_timer", default.hashtree_timer)?,
        hashtree_ttl: section.time("hashtree_ttl", default.hashtree_ttl)?,
        tombstone_grace: section.time("tombstone_grace", default.tombstone_grace)?,
    })
}

pub(super) fn relay(source: &Source<'_>, default: Relay) -> Result<Relay, ConfigError> {
    let section = source.section("relay")?;
    let address =
        section.string("address", "", |text| text.is_empty() || text.parse::<SocketAddr>().is_ok())?;
    let advertise = section.string("advertise", "", |text| text.is_empty() || is_advertised(text))?;
    let file = |name| section.string(name, "", |text| !text.contains('\0')).map(PathBuf::from);
    Ok(Relay {
        address: address.parse().ok(),
        advertise: advertise.parse().ok(),
        connections: section.u32("connections", default.connections)?,
        queue_max: section.u32("queue_max", default.queue_max)?,
        tls: section.boolean("tls", default.tls)?,
        tls_certificate: file("tls_certificate")?,
        tls_key: file("tls_key")?,
        tls_authorities: file("tls_authorities")?,
    })
}

fn is_text(text: &str) -> bool {
    text.len() <= CLUSTER_TEXT_BYTES_MAX && !text.chars().any(char::is_control)
}

fn is_advertised(text: &str) -> bool {
    text.parse().is_ok_and(is_reachable)
}

/// True when one node can be sent packets at `address`.
pub(super) fn is_reachable(address: SocketAddr) -> bool {
    address.port() != 0 && !address.ip().is_unspecified() && !address.ip().is_multicast()
}

/// An IP address or a name, and a port.
fn is_host(text: &str) -> bool {
    let name = |host: &str| {
        !host.is_empty()
            && host.len() <= HOST_BYTES_MAX
            && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
    };
    match (text.parse::<SocketAddr>(), text.rsplit_once(':')) {
        (Ok(address), _) => is_reachable(address),
        (_, Some((host, port))) => name(host) && port.parse::<u16>().is_ok_and(|port| port != 0),
        _ => false,
    }
}

/// `_name._udp.domain` (RFC 2782).
fn is_service(text: &str) -> bool {
    text.starts_with('_')
        && text.len() <= DNS_TEXT_BYTES_MAX
        && text.split('.').count() >= 3
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
}

/// `namespace/service:port`
fn is_kubernetes_service(text: &str) -> bool {
    let label = |text: &str| {
        !text.is_empty()
            && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    };
    text.split_once('/').is_some_and(|(namespace, rest)| {
        rest.split_once(':').is_some_and(|(service, port)| {
            label(namespace) && label(service) && port.parse::<u16>().is_ok_and(|port| port != 0)
        })
    })
}

/// Longest host name (RFC 1035, section 2.3.4).
const HOST_BYTES_MAX: usize = 253;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use std::path::Path;
    use std::time::Duration;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("test.toml"))
    }

    #[test]
    fn values_come_where_they_belong() {
        let text = r#"
            [cluster]
            discovery = "dns"
            env = "staging"
            address = "0.0.0.0:7"
            advertise = "10.0.0.1:8"
            key_file = "/k"
            seeds = ["a.example:1", "10.0.0.2:2"]
            dns = "nodes.example:3"
            multicast = "239.1.2.3:4"
            kubernetes = "space/service:5"
            failure_domain = "rack 1"
            probe_interval = "1s"
            probe_timeout = "500ms"
            suspicion = "4s"
            forget_after = "1h"
            join_wait = "7s"
            lazy_tick_period = "8s"
            exchange_tick_period = "9s"
            [aae]
            enabled = false
            exchange_timer = "1s"
            data_exchange_timeout = "2s"
            exchange_rate = "3MiB"
            hashtree_timer = "3s"
            hashtree_ttl = "4m"
            tombstone_grace = "5s"
            [relay]
            address = "0.0.0.0:1"
            advertise = "10.0.0.1:2"
            connections = 3
            queue_max = "4MiB"
            tls = true
            tls_certificate = "/c"
            tls_key = "/p"
            tls_authorities = "/a"
        "#;
        let config = parse(text).expect("a good configuration");
        let cluster = Cluster {
            discovery: Discovery::Dns,
            env: "staging".into(),
            address: "0.0.0.0:7".parse().unwrap(),
            advertise: Some("10.0.0.1:8".parse().unwrap()),
            key_file: "/k".into(),
            seeds: vec!["a.example:1".into(), "10.0.0.2:2".into()],
            dns: "nodes.example:3".into(),
            multicast: "239.1.2.3:4".parse().unwrap(),
            kubernetes: "space/service:5".into(),
            failure_domain: "rack 1".into(),
            probe_interval: Duration::from_secs(1),
            probe_timeout: Duration::from_millis(500),
            suspicion: Duration::from_secs(4),
            forget_after: Duration::from_secs(3_600),
            join_wait: Duration::from_secs(7),
            lazy_tick_period: Duration::from_secs(8),
            exchange_tick_period: Duration::from_secs(9),
        };
        assert_eq!(config.cluster, cluster);
        let aae = Aae {
            enabled: false,
            exchange_timer: Duration::from_secs(1),
            data_exchange_timeout: Duration::from_secs(2),
            exchange_rate: 3 << 20,
            hashtree_timer: Duration::from_secs(3),
            hashtree_ttl: Duration::from_secs(240),
            tombstone_grace: Duration::from_secs(5),
        };
        assert_eq!(config.aae, aae);
        let relay = Relay {
            address: Some("0.0.0.0:1".parse().unwrap()),
            advertise: Some("10.0.0.1:2".parse().unwrap()),
            connections: 3,
            queue_max: 4 << 20,
            tls: true,
            tls_certificate: "/c".into(),
            tls_key: "/p".into(),
            tls_authorities: "/a".into(),
        };
        assert_eq!(config.relay, relay);
    }

    #[test]
    fn addresses_that_reach_nobody_are_refused() {
        for (text, start) in [
            ("cluster.discovery = \"mdns\"", "cluster.discovery: found \"mdns\", allowed: \"none\", "),
            ("cluster.env = \"\"", "cluster.env: found \"\", allowed: 1 to 64 bytes"),
            ("cluster.advertise = \"0.0.0.0:1\"", "cluster.advertise: found \"0.0.0.0:1\", "),
            ("cluster.seeds = \"a:1\"", "cluster.seeds: found \"a:1\", allowed: at most 64 of host"),
            ("cluster.seeds = [\"a\"]", "cluster.seeds: found array, "),
            ("cluster.seeds = [1]", "cluster.seeds: found array, "),
            ("cluster.dns = \"a b:1\"", "cluster.dns: found \"a b:1\", "),
            ("cluster.dns = \"a:0\"", "cluster.dns: found \"a:0\", "),
        ] {
            let error = parse(text).expect_err(text).to_string();
            assert!(error.starts_with(&format!("test.toml:1: {start}")), "{text}: {error}");
        }
    }
}
