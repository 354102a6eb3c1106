//! Real nodes on loopback that are one cluster.

use super::{Node, Setup, eventually, http};
use serde_json::Value;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const KEY: &str = "6b1f0c6c0f3d0a8f2b7f6a5e4d3c2b1a00112233445566778899aabbccddeeff";

pub struct Cluster {
    pub nodes: Vec<Node>,
    /// What each node is started with; nodes to come are the next ones.
    setups: Vec<Setup>,
    /// Holds the key file.
    _folder: TempDir,
}

impl Cluster {
    /// Nodes that know of each other, all ready. `tables`: TOML for each.
    pub fn start(count: usize, tables: &str) -> Self {
        let mut cluster = Self::with_room(count, count, tables);
        for _ in 0..count {
            cluster.add();
        }
        cluster.await_members();
        cluster
    }

    /// No node yet; of `room` to come the first `seeds` are named to all.
    pub fn with_room(room: usize, seeds: usize, tables: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let keys = key_file(folder.path());
        let ports = free_ports(room);
        let seeds: Vec<_> = ports.iter().take(seeds).map(|port| format!("\"127.0.0.1:{port}\"")).collect();
        let setup = |port: &u16| {
            Setup::tables(&format!(
                "[cluster]\ndiscovery = \"static\"\nkey_file = {keys:?}\naddress = \"127.0.0.1:{port}\"\nseeds = [{}]\n\
                 join_wait = \"500ms\"\n[relay]\naddress = \"127.0.0.1:0\"\n{tables}",
                seeds.join(", ")
            ))
        };
        let setups = ports.iter().map(setup).collect();
        Self { nodes: Vec::new(), setups, _folder: folder }
    }

    /// Starts the next node and waits until it is ready.
    pub fn add(&mut self) {
        let setup = self.setups[self.nodes.len()].clone();
        self.nodes.push(Node::with(setup));
    }

    /// Waits until each node sees all others.
    pub fn await_members(&self) {
        for node in &self.nodes {
            eventually("a node sees all others", || {
                let page = get(node, "/cluster");
                let alive = page["nodes"].as_array()?.iter().filter(|node| node["state"] == "alive").count();
                (alive == self.nodes.len()).then_some(())
            });
        }
    }
}

/// A page of the admin endpoint.
pub fn get(node: &Node, path: &str) -> Value {
    let answer = http::get(node.admin().expect("the admin address"), path).expect(path);
    assert_eq!(answer.status, 200, "{}", answer.body);
    serde_json::from_str(&answer.body).expect("JSON")
}

/// A new key file of a cluster in a folder.
pub fn key_file(folder: &Path) -> PathBuf {
    let path = folder.join("keys");
    std::fs::write(&path, format!("{KEY}\n")).expect("the key file");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("its mode");
    path
}

/// Ports nobody else has just now, UDP and TCP.
pub fn free_ports(count: usize) -> Vec<u16> {
    let mut held = vec![];
    while held.len() < count {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let address = socket.local_addr().expect("its address");
        if let Ok(listener) = TcpListener::bind(address) {
            held.push((address.port(), socket, listener));
        }
    }
    held.iter().map(|(port, ..)| *port).collect()
}
