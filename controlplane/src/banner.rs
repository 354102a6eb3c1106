//! What a node prints when it serves: where to connect, what is pinned, what is open. Pure.

use crate::cluster::RELAY;
use crate::node::{DataPlane, Node};
use crate::placement::show;
use common::snapshot::Anonymous;
use std::fmt::Write;
use std::net::SocketAddr;
use std::path::Path;

/// What the node itself does not know.
#[derive(Clone, Debug)]
pub struct Surroundings {
    pub shard_cpus: Vec<u32>,
    pub control_cpus: Vec<u32>,
    pub admin: SocketAddr,
    pub data_dir: std::path::PathBuf,
    /// (transport name, configured address, path) of each listener.
    pub listeners: Vec<(String, SocketAddr, String)>,
    pub pid: u32,
    /// Env and advertised address of membership, when it is configured.
    pub cluster: Option<(String, SocketAddr)>,
}

/// How the address of a Unix-domain socket begins.
const UNIX: &str = "unix:";

/// The lines printed when a data plane has come to serve.
pub fn banner(node: &Node, data: &DataPlane, around: &Surroundings) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let mut line = |name: &str, text: &str| _ = writeln!(out, "  {name:<9} {text}");
    let relay = data.listeners.iter().find(|(transport, _)| transport == RELAY).map(|(_, address)| address);
    let clients = data.listeners.iter().filter(|(transport, _)| transport != RELAY);
    for (index, (transport, address)) in clients.enumerate() {
        let configured = around.listeners.get(index).filter(|listener| listener.0 == *transport);
        let path = configured.map_or("/ws", |listener| &listener.2);
        let url = match transport.as_str() {
            "websocket" if address.starts_with(UNIX) => format!("{address} (WebSocket, path {path})"),
            "auto" if address.starts_with(UNIX) => {
                format!("{address} (WebSocket, path {path}, and RawSocket)")
            }
            "rawsocket" if address.starts_with(UNIX) => format!("{address} (RawSocket)"),
            "http" if address.starts_with(UNIX) => format!("{address} (HTTP, long-poll and events)"),
            "http" => format!("http://{address}/wamp/ (long-poll and server-sent events)"),
            "websocket" => format!("ws://{address}{path}"),
            "auto" => format!("ws://{address}{path} and rs://{address} (RawSocket)"),
            "rawsocket" => format!("rs://{address} (RawSocket)"),
            other => format!("{address} ({other})"),
        };
        line(if index == 0 { "connect" } else { "" }, &url);
    }
    line("admin", &format!("http://{}/status (also /ping, /ready, /metrics, /realms)", around.admin));
    line("shards", &shards(data, &around.shard_cpus));
    line("control", &format!("CPUs {}", show(&around.control_cpus)));
    let (open, closed) = doors(node);
    line("open", &open);
    line("closed", &closed);
    if let Some((env, address)) = &around.cluster {
        let relay = relay.map_or_else(|| "no relay".to_owned(), |relay| format!("relay on tcp {relay}"));
        line("cluster", &format!("{env} on udp and tcp {address}, {relay}"));
    }
    line("data", &shown_path(&around.data_dir));
    line("pids", &format!("control plane {}, data plane {}", around.pid, data.pid));
    format!("Signalbox {} serves\n{out}", env!("CARGO_PKG_VERSION"))
}

/// `0 on CPU 2, 1 on CPU 3`
fn shards(data: &DataPlane, cpus: &[u32]) -> String {
    let places: Vec<_> = (0..usize::from(data.shards))
        .take(SHARDS_SHOWN_MAX)
        .map(|shard| {
            // What was measured, or else what the configuration says.
            let cpu = data.stats.get(shard).and_then(|stats| stats.as_ref().map(|stats| stats.cpu));
            match cpu.or_else(|| cpus.get(shard).copied()) {
                Some(cpu) => format!("{shard} on CPU {cpu}"),
                None => shard.to_string(),
            }
        })
        .collect();
    let more = usize::from(data.shards).saturating_sub(SHARDS_SHOWN_MAX);
    let places = places.join(", ");
    if more > 0 { format!("{places} and {more} more") } else { places }
}

/// Which realms can be joined without credentials, and which not.
fn doors(node: &Node) -> (String, String) {
    let (mut open, mut closed) = (Vec::new(), Vec::new());
    for entry in node.catalog().iter() {
        let realm = &entry.config;
        let degree = if realm.strict { "strict" } else { "compatible" };
        match realm.anonymous {
            Anonymous::Nobody => closed.push(realm.name.clone()),
            Anonymous::Loopback => open.push(format!("{}: anonymous from loopback, {degree}", realm.name)),
            Anonymous::Anybody => open.push(format!("{}: anonymous from anywhere, {degree}", realm.name)),
        }
    }
    let closed = match shorten(closed, ", ").as_str() {
        "" => "every other realm; publishing and registering below wamp.".to_owned(),
        realms => format!("{realms} (no anonymous sessions); every other realm"),
    };
    let open = shorten(open, "; ");
    (if open.is_empty() { "nothing".into() } else { open }, closed)
}

fn shorten(mut items: Vec<String>, separator: &str) -> String {
    let more = items.len().saturating_sub(REALMS_SHOWN_MAX);
    items.truncate(REALMS_SHOWN_MAX);
    let text = items.join(separator);
    if more > 0 { format!("{text}{separator}and {more} more") } else { text }
}

fn shown_path(path: &Path) -> String {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display().to_string()
}

const REALMS_SHOWN_MAX: usize = 4;
const SHARDS_SHOWN_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Catalog;
    use crate::node::{LinkId, NodeConfig};
    use crate::publish::Policy;
    use common::config::RealmConfig;
    use common::ids::{BootEpoch, SnapshotVersion};
    use common::link::{LINK_PROTOCOL, Up};
    use std::time::{Duration, Instant};

    #[test]
    fn a_stranger_learns_where_to_connect_and_what_is_open() {
        let realms = [
            RealmConfig::named("realm1"),
            RealmConfig { anonymous: Anonymous::Nobody, ..RealmConfig::named("b") },
        ];
        let mut node = Node::new(NodeConfig {
            pid: 1,
            catalog: Catalog::new(&realms, 9).unwrap(),
            policy: Policy { min_interval: Duration::ZERO, fold_min: 1 },
            version_last: SnapshotVersion(0),
        });
        let now = Instant::now();
        let hello = Up::Hello {
            protocol: LINK_PROTOCOL,
            epoch: BootEpoch(1),
            pid: 7,
            shards: 2,
            version: "1".into(),
        };
        node.frame(now, LinkId(1), hello);
        let listeners =
            [("websocket", "127.0.0.1:80"), ("rawsocket", "127.0.0.1:81"), (RELAY, "127.0.0.1:84")];
        let listeners = listeners.map(|(name, address)| (name.to_owned(), address.to_owned())).to_vec();
        node.frame(now, LinkId(1), Up::Listening { listeners });
        let around = Surroundings {
            shard_cpus: vec![2, 3],
            control_cpus: vec![0, 1],
            admin: "127.0.0.1:82".parse().unwrap(),
            data_dir: "/d".into(),
            listeners: vec![("websocket".into(), "127.0.0.1:0".parse().unwrap(), "/x".into())],
            pid: 6,
            cluster: Some(("e".into(), "127.0.0.1:83".parse().unwrap())),
        };
        let text = banner(&node, node.data_plane().unwrap(), &around);
        let expected = format!(
            "Signalbox {} serves
  connect   ws://127.0.0.1:80/x
            rs://127.0.0.1:81 (RawSocket)
  admin     http://127.0.0.1:82/status (also /ping, /ready, /metrics, /realms)
  shards    0 on CPU 2, 1 on CPU 3
  control   CPUs 0-1
  open      realm1: anonymous from loopback, compatible
  closed    b (no anonymous sessions); every other realm
  cluster   e on udp and tcp 127.0.0.1:83, relay on tcp 127.0.0.1:84
  data      /d
  pids      control plane 6, data plane 7
",
            env!("CARGO_PKG_VERSION")
        );
        assert_eq!(text, expected);
    }
}
