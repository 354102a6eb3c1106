//! Rules between values, once each value is within its own bounds.

use super::cluster::is_reachable;
use super::reader::{Section, Source};
use super::schema::{Bytes, Time};
use super::{Config, ConfigError, Cores, Discovery, Listener, RealmConfig};
use crate::uri::{UriRule, is_reserved, is_valid};
use std::collections::HashSet;
use std::net::SocketAddr;

/// Fails at the first rule that is broken. The line named is that of the key to change, or of its section when
/// the key is not written.
pub(super) fn config(config: &Config, source: &Source<'_>) -> Result<(), ConfigError> {
    queues(config, source)?;
    memory(config, source)?;
    addresses(config, source)?;
    realms(config, source)?;
    cluster(config, source)
}

/// The largest message, twice, fits a connection's queue: else nothing of that size could follow another. A reply of
/// that size fits the reserve: else a full queue of events would close the session of every caller.
fn queues(config: &Config, source: &Source<'_>) -> Result<(), ConfigError> {
    let section = source.section("slow_receiver")?;
    let slow = &config.slow_receiver;
    for (index, listener) in config.listeners.iter().enumerate() {
        let message_max = listener.message_max;
        for (name, value, least) in [
            ("queue_max", slow.queue_max, u64::from(message_max) * 2),
            ("reply_reserve", slow.reply_reserve, u64::from(message_max)),
        ] {
            if u64::from(value) >= least {
                continue;
            }
            let (value, message_max) = (Bytes(value.into()), Bytes(message_max.into()));
            let written = source.sections("listener")?.unwrap_or_default().get(index).copied();
            return Err(match written.filter(|_| !section.has(name)) {
                Some(listener) => {
                    let share = if name == "queue_max" { "half of" } else { "all of" };
                    let allowed = format!("at most {share} slow_receiver.{name}, which is {value}");
                    listener.refuse("message_max", message_max.to_string(), allowed)
                }
                None => {
                    let allowed =
                        format!("at least {} with a listener.message_max of {message_max}", Bytes(least));
                    section.refuse(name, value.to_string(), allowed)
                }
            });
        }
    }
    Ok(())
}

/// One connection at its bound does not use up its shard's part of the memory.
fn memory(config: &Config, source: &Source<'_>) -> Result<(), ConfigError> {
    if config.limits.retained_memory_max > config.memory.max {
        let (found, allowed) = (Bytes(config.limits.retained_memory_max), Bytes(config.memory.max));
        let allowed = format!("at most memory.max, {allowed}");
        return Err(source.section("limits")?.refuse("retained_memory_max", found.to_string(), allowed));
    }
    if config.limits.history_memory_max > config.memory.max {
        let (found, allowed) = (Bytes(config.limits.history_memory_max), Bytes(config.memory.max));
        let allowed = format!("at most memory.max, {allowed}");
        return Err(source.section("limits")?.refuse("history_memory_max", found.to_string(), allowed));
    }
    let least = config.memory_min();
    if config.memory.max >= least {
        return Ok(());
    }
    let allowed =
        format!("at least slow_receiver.queue_max and reply_reserve together, each shard: {}", Bytes(least));
    Err(source.section("memory")?.refuse("max", Bytes(config.memory.max).to_string(), allowed))
}

impl Config {
    /// The least `memory.max`, bytes: one full queue on every shard, else one slow receiver would stop a shard's
    /// publishers. Shards that `auto` will make are not known here and count as one.
    pub fn memory_min(&self) -> u64 {
        let shards = match &self.cores {
            Cores::Auto => 1,
            Cores::List(cpus) => cpus.len() as u64,
        };
        shards * (u64::from(self.slow_receiver.queue_max) + u64::from(self.slow_receiver.reply_reserve))
    }
}

/// No two sockets want the same address. Port 0 is the kernel's choice and never taken twice.
fn addresses(config: &Config, source: &Source<'_>) -> Result<(), ConfigError> {
    let written: Vec<Section<'_>> = source.sections("listener")?.unwrap_or_default();
    for (index, listener) in config.listeners.iter().enumerate() {
        let taken = config.listeners[..index].iter().any(|other| want_the_same(listener, other));
        if let (true, Some(section), Some(socket)) = (taken, written.get(index), &listener.socket) {
            let allowed = "a socket that no other listener has";
            return Err(section.refuse("socket", socket.path.display().to_string(), allowed));
        }
        if let (true, Some(section)) = (taken, written.get(index)) {
            let allowed = "an address and port that no other listener has, or port 0";
            return Err(section.refuse("address", listener.address.to_string(), allowed));
        }
    }
    let admin = config.admin.address;
    let mut of_ip = config.listeners.iter().filter(|listener| listener.socket.is_none());
    if of_ip.any(|listener| overlap(listener.address, admin)) {
        let allowed = "an address and port that no listener has, or port 0";
        return Err(source.section("admin")?.refuse("address", admin.to_string(), allowed));
    }
    Ok(())
}

fn want_the_same(a: &Listener, b: &Listener) -> bool {
    match (&a.socket, &b.socket) {
        (None, None) => overlap(a.address, b.address),
        (Some(a), Some(b)) => a.path == b.path,
        _ => false,
    }
}

/// True when one socket bound to `a` and one to `b` would take each other's connections.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    // The unspecified address of IPv6 takes IPv4 connections too.
    let covers = |wide: SocketAddr, narrow: SocketAddr| {
        wide.ip().is_unspecified() && (wide.is_ipv6() || narrow.is_ipv4())
    };
    let same = a.ip() == b.ip() || covers(a, b) || covers(b, a);
    a.port() == b.port() && a.port() != 0 && same
}

fn realms(config: &Config, source: &Source<'_>) -> Result<(), ConfigError> {
    let written = source.sections("realm")?.unwrap_or_default();
    let realms_max = config.limits.realms_max;
    if config.realms.len() > realms_max as usize {
        let found = format!("{} realms", config.realms.len());
        return Err(source.root()?.refuse(
            "realm",
            found,
            format!("at most limits.realms_max, {realms_max}"),
        ));
    }
    let mut seen = HashSet::new();
    for (realm, section) in config.realms.iter().zip(&written) {
        if !seen.insert(realm.name.as_str()) {
            return Err(section.refuse("name", format!("{:?} again", realm.name), "each name once"));
        }
    }
    Ok(())
}

/// A node that is to find others can, and others can find it.
fn cluster(config: &Config, source: &Source<'_>) -> Result<(), ConfigError> {
    let cluster = &config.cluster;
    let section = source.section("cluster")?;
    if cluster.probe_timeout * 2 > cluster.probe_interval {
        let allowed =
            format!("at most half of cluster.probe_interval, which is {}", Time(cluster.probe_interval));
        return Err(section.refuse("probe_timeout", Time(cluster.probe_timeout).to_string(), allowed));
    }
    let needed = match cluster.discovery {
        Discovery::None => return Ok(()),
        Discovery::Static if cluster.seeds.is_empty() => {
            Some(("seeds", "with discovery static: one seed or more"))
        }
        Discovery::Dns if cluster.dns.is_empty() => Some(("dns", "with discovery dns: a host and a port")),
        Discovery::Kubernetes if cluster.kubernetes.is_empty() => {
            Some(("kubernetes", "with discovery kubernetes: namespace/service:port"))
        }
        _ if cluster.key_file.as_os_str().is_empty() => Some((
            "key_file",
            "in a cluster: a file with a key of 64 hexadecimal digits (openssl rand -hex 32)",
        )),
        _ => None,
    };
    if let Some((name, allowed)) = needed {
        return Err(section.refuse(name, "nothing", allowed));
    }
    let group = cluster.multicast;
    if cluster.discovery == Discovery::Multicast && !(is_ipv4_multicast(group) && group.port() != 0) {
        let allowed = "with discovery multicast: a group of IPv4, 224.0.0.0 to 239.255.255.255, and a port";
        return Err(section.refuse("multicast", group.to_string(), allowed));
    }
    let taken = cluster.address.ip().is_unspecified() && cluster.address.port() == group.port();
    if cluster.discovery == Discovery::Multicast && taken {
        let allowed = "with a cluster.address of all addresses: another port than its port";
        return Err(section.refuse("multicast", group.to_string(), allowed));
    }
    if cluster.address.port() == 0 {
        return Err(section.refuse(
            "address",
            cluster.address.to_string(),
            "in a cluster: a port that is not 0",
        ));
    }
    if !is_reachable(cluster.advertised()) {
        let allowed =
            "with this cluster.address: an IP address and a port at which other nodes reach this one";
        return Err(section.refuse("advertise", "nothing", allowed));
    }
    relay(config, source)
}

fn is_ipv4_multicast(address: SocketAddr) -> bool {
    address.is_ipv4() && address.ip().is_multicast()
}

/// The relay has what its TLS needs.
fn relay(config: &Config, source: &Source<'_>) -> Result<(), ConfigError> {
    let relay = &config.relay;
    let files = [
        ("tls_certificate", &relay.tls_certificate),
        ("tls_key", &relay.tls_key),
        ("tls_authorities", &relay.tls_authorities),
    ];
    match files.iter().find(|(_, path)| relay.tls && path.as_os_str().is_empty()) {
        Some((name, _)) => {
            Err(source.section("relay")?.refuse(name, "nothing", "with relay.tls: the path of a PEM file"))
        }
        None => Ok(()),
    }
}

impl RealmConfig {
    /// True when a realm may be called `name`: a URI by the loose rule, and not one of those that WAMP reserves.
    pub fn is_valid_name(name: &str) -> bool {
        !is_reserved(name) && is_valid(name, UriRule::Loose)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::URI_BYTES_MAX;
    use std::path::Path;

    fn refused(text: &str) -> String {
        Config::parse(text, Path::new("test.toml")).expect_err(text).to_string()
    }

    fn accepted(text: &str) {
        Config::parse(text, Path::new("test.toml")).expect(text);
    }

    #[test]
    fn queues_hold_two_of_the_largest_messages() {
        assert_eq!(
            refused("[[listener]]\nmessage_max = \"4MiB\""),
            "test.toml:2: listener.message_max: found 4MiB, allowed: at most half of slow_receiver.queue_max, which is 4MiB"
        );
        assert_eq!(
            refused(
                "[[listener]]\nmessage_max = \"4MiB\"\n[slow_receiver]\nqueue_max = \"7MiB\"\nreply_reserve = \"4MiB\""
            ),
            "test.toml:4: slow_receiver.queue_max: found 7MiB, allowed: at least 8MiB with a listener.message_max of 4MiB"
        );
        assert_eq!(
            refused("[slow_receiver]\nreply_reserve = \"512KiB\""),
            "test.toml:2: slow_receiver.reply_reserve: found 512KiB, allowed: at least 1MiB with a listener.message_max of 1MiB"
        );
        accepted(
            "slow_receiver = { queue_max = \"8MiB\", reply_reserve = \"4MiB\" }\n[[listener]]\nmessage_max = \"4MiB\"",
        );
    }

    #[test]
    fn memory_holds_one_connection_at_its_bound_on_every_shard() {
        let text = "[slow_receiver]\nqueue_max = \"16MiB\"\n[memory]\nmax = \"16MiB\"";
        assert!(refused(text).starts_with("test.toml:4: memory.max: found 16MiB, allowed: at least "));
        assert_eq!(
            refused("cores = \"0-3\"\nmemory.max = \"19MiB\""),
            "test.toml:2: memory.max: found 19MiB, allowed: at least slow_receiver.queue_max and reply_reserve together, each shard: 20MiB"
        );
        accepted("cores = \"0-3\"\nmemory.max = \"20MiB\"");
    }

    #[test]
    fn no_two_sockets_want_the_same_address() {
        let two = |a: &str, b: &str| format!("listener = [{{address = \"{a}\"}},\n{{address = \"{b}\"}}]");
        assert!(
            refused(&two("127.0.0.1:9", "127.0.0.1:9"))
                .starts_with("test.toml:2: listener.address: found 127")
        );
        refused(&two("0.0.0.0:9", "127.0.0.1:9"));
        refused(&two("127.0.0.1:9", "[::]:9"));
        refused(&two("[::1]:9", "[::]:9"));
        accepted(&two("[::1]:9", "127.0.0.1:9"));
        accepted(&two("[::1]:9", "0.0.0.0:9"));
        accepted(&two("127.0.0.1:0", "127.0.0.1:0"));
        accepted(&two("127.0.0.1:9", "127.0.0.2:9"));
        assert_eq!(
            refused("[admin]\naddress = \"0.0.0.0:18080\""),
            "test.toml:2: admin.address: found 0.0.0.0:18080, allowed: an address and port that no listener has, or port 0"
        );
    }

    #[test]
    fn a_listener_has_an_address_or_a_socket_of_its_own() {
        accepted("[[listener]]\nsocket = \"/run/a\"\n[[listener]]\nsocket = \"/run/b\"\nmode = \"0660\"");
        accepted("[[listener]]\nsocket = \"/run/a\"\n[admin]\naddress = \"127.0.0.1:18080\"");
        assert_eq!(
            refused("[[listener]]\nsocket = \"/run/a\"\n[[listener]]\nsocket = \"/run/a\""),
            "test.toml:4: listener.socket: found /run/a, allowed: a socket that no other listener has"
        );
        assert_eq!(
            refused("[[listener]]\nsocket = \"a\"\naddress = \"127.0.0.1:9\""),
            "test.toml:2: listener.socket: found an address and a socket, allowed: one of them"
        );
        for mode in ["66", "1777", "0o600", "680", "00600", ""] {
            let text = refused(&format!("[[listener]]\nsocket = \"a\"\nmode = \"{mode}\""));
            assert!(text.starts_with("test.toml:3: listener.mode: found "), "{text}");
        }
        let long = "x".repeat(108);
        assert!(
            refused(&format!("[[listener]]\nsocket = \"{long}\""))
                .starts_with("test.toml:2: listener.socket")
        );
    }

    #[test]
    fn realms_have_different_names_and_are_bounded() {
        assert_eq!(
            refused("[[realm]]\nname = \"a\"\n[[realm]]\nname = \"a\""),
            "test.toml:4: realm.name: found \"a\" again, allowed: each name once"
        );
        let text = "realm = [{name = \"a\"}, {name = \"b\"}]\nlimits.realms_max = 1";
        assert!(refused(text).starts_with("test.toml:1: realm: found 2 realms, "));
    }

    #[test]
    fn a_cluster_has_seeds_keys_and_an_address_others_reach() {
        let with = |text: &str| format!("[cluster]\n{text}");
        let refused = |text: &str| refused(&with(text));
        assert!(refused("discovery = \"static\"").starts_with("test.toml:1: cluster.seeds: found nothing, "));
        assert!(refused("discovery = \"dns\"").starts_with("test.toml:1: cluster.dns: found nothing, "));
        let seeds = "discovery = \"static\"\nseeds = [\"a:1\"]\n";
        assert!(refused(seeds).starts_with("test.toml:1: cluster.key_file: found nothing, "));
        let keys = format!("{seeds}key_file = \"k\"\n");
        accepted(&with(&keys));
        let any = refused(&format!("{keys}address = \"0.0.0.0:7\""));
        assert!(any.starts_with("test.toml:1: cluster.advertise: found nothing, "), "{any}");
        accepted(&with(&format!("{keys}address = \"0.0.0.0:7\"\nadvertise = \"10.0.0.1:7\"")));
        let zero = refused(&format!("{keys}address = \"10.0.0.1:0\""));
        assert!(zero.starts_with("test.toml:5: cluster.address: found 10.0.0.1:0, "), "{zero}");
        let group = |text: &str| format!("discovery = \"multicast\"\nkey_file = \"k\"\n{text}");
        accepted(&with(&group("")));
        for bad in
            ["multicast = \"10.0.0.1:5\"", "multicast = \"239.1.1.1:0\"", "multicast = \"[ff02::1]:5\""]
        {
            assert!(refused(&group(bad)).starts_with("test.toml:4: cluster.multicast: found "), "{bad}");
        }
        let all = refused(&group("address = \"0.0.0.0:18083\"\nadvertise = \"10.0.0.1:18083\""));
        assert!(all.contains("another port than its port"), "{all}");
        let tls = refused(&format!("{keys}[relay]\ntls = true\ntls_key = \"k\""));
        assert!(tls.starts_with("test.toml:5: relay.tls_certificate: found nothing, "), "{tls}");
        assert_eq!(
            refused("probe_timeout = \"200ms\""),
            "test.toml:2: cluster.probe_timeout: found 200ms, allowed: at most half of cluster.probe_interval, which is 250ms"
        );
    }

    #[test]
    fn realm_names_are_loose_uris_outside_wamp() {
        for good in ["realm1", "com.example.Ähre", "a-b.c_d", "wampum"] {
            assert!(RealmConfig::is_valid_name(good), "{good}");
        }
        let long = "x".repeat(URI_BYTES_MAX + 1);
        for bad in ["", ".", "a..b", "a.", "a b", "a#b", "a\u{a0}b", "wamp", "wamp.a", &long] {
            assert!(!RealmConfig::is_valid_name(bad), "{bad}");
        }
    }
}
