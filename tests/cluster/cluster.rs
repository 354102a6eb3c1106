//! A cluster of real nodes, and what its nodes say of each other.

use crate::net::Net;
use crate::node::{ADMIN_PORT, CLUSTER_PORT, Node, RAWSOCKET_PORT, WEBSOCKET_PORT};
use crate::support::eventually_within;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub struct Cluster {
    pub nodes: Vec<Node>,
    pub net: Arc<Net>,
    folder: PathBuf,
    /// Of which nodes every node knows the address.
    seeds: Vec<usize>,
}

impl Cluster {
    /// Everything but the processes.
    pub fn prepare(number: u8, folder: &Path, nodes: usize, seeds: &[usize]) -> Self {
        let keys = folder.join("keys");
        std::fs::write(&keys, format!("{KEY}\n")).expect("the key file");
        std::fs::set_permissions(&keys, std::fs::Permissions::from_mode(0o600)).expect("its mode");
        let net = Arc::new(Net::new(number));
        let mut cluster = Self { nodes: vec![], net, folder: folder.to_owned(), seeds: seeds.to_vec() };
        (0..nodes).for_each(|_| _ = cluster.add());
        cluster
    }

    /// Adds a node that does not run yet; its index.
    pub fn add(&mut self) -> usize {
        let index = self.nodes.len();
        self.net.plug();
        let text = self.config(index);
        self.nodes.push(Node::new(index, self.net.address(index), &self.folder, &text));
        index
    }

    fn config(&self, index: usize) -> String {
        let ip = self.net.address(index);
        let seeds: Vec<_> = self.seeds.iter().map(|seed| self.net.address(*seed)).collect();
        // A node needs one; its own says that it knows of nobody.
        let seeds = if seeds.is_empty() { vec![ip] } else { seeds };
        let seeds: Vec<_> = seeds.iter().map(|seed| format!("\"{seed}:{CLUSTER_PORT}\"")).collect();
        let seeds = seeds.join(", ");
        let keys = self.folder.join("keys");
        // The first node has two shards, so that relays end at another shard than the one they are for.
        let cpus = dataplane::cpus::allowed().expect("the affinity of this process");
        let shards = if index == 0 { 2 } else { 1 };
        let cores: Vec<_> =
            (0..shards.min(cpus.len())).map(|shard| cpus[(index + shard) % cpus.len()].to_string()).collect();
        let cores = cores.join(",");
        format!(
            "cores = {cores:?}\n\
             [admin]\naddress = \"0.0.0.0:{ADMIN_PORT}\"\n\
             [[listener]]\ntransport = \"websocket\"\naddress = \"0.0.0.0:{WEBSOCKET_PORT}\"\n\
             [[listener]]\ntransport = \"rawsocket\"\naddress = \"0.0.0.0:{RAWSOCKET_PORT}\"\n\
             [[realm]]\nname = \"realm1\"\nanonymous = \"anybody\"\n\
             [timeouts]\ndrain = \"2s\"\n\
             [cluster]\ndiscovery = \"static\"\nenv = \"lab\"\nkey_file = {keys:?}\n\
             address = \"{ip}:{CLUSTER_PORT}\"\nseeds = [{seeds}]\n"
        )
    }

    /// Starts a node without waiting.
    pub fn launch(&mut self, node: usize) {
        self.nodes[node].start(&self.net.namespace(node));
    }

    /// Starts a node and waits until it is ready; the time that took.
    pub fn launch_ready(&mut self, node: usize) -> Duration {
        let started = Instant::now();
        self.launch(node);
        eventually_within(START_MAX, &format!("node {node} is ready"), || {
            self.nodes[node].is_ready().then_some(())
        });
        started.elapsed()
    }

    /// Runs `signalbox <arguments>` beside a node.
    pub fn operator(&self, node: usize, arguments: &[&str]) -> Output {
        self.nodes[node].operator(&self.net.namespace(node), arguments)
    }

    /// The output of a command that has to succeed.
    pub fn must(&self, node: usize, arguments: &[&str]) -> String {
        let output = self.operator(node, arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// `/cluster` of a node, and the node's id.
    pub fn page_and_local(&self, node: usize) -> (Value, String) {
        let page = self.nodes[node].page("/cluster").expect("/cluster");
        let local = page["local"].as_str().expect("an id").to_owned();
        (page, local)
    }

    /// Waits until every node is ready and sees every other alive; the time that took.
    pub fn await_whole(&self, bound: Duration) -> Duration {
        let all: Vec<usize> = (0..self.nodes.len()).collect();
        self.await_alive(&all, &all, bound)
    }

    /// Waits until each of `watchers` is ready, sees exactly `alive` as alive and suspects nobody; the time that took.
    pub fn await_alive(&self, watchers: &[usize], alive: &[usize], bound: Duration) -> Duration {
        let started = Instant::now();
        for &watcher in watchers {
            let what = format!("node {watcher} is ready and sees the nodes {alive:?} alive");
            eventually_within(bound.saturating_sub(started.elapsed()), &what, || {
                (self.alive(watcher)? == alive && self.nodes[watcher].is_ready()).then_some(())
            });
        }
        started.elapsed()
    }

    /// The nodes that `watcher` sees alive, itself included; None while it suspects one.
    pub fn alive(&self, watcher: usize) -> Option<Vec<usize>> {
        let states = self.states(watcher)?;
        let certain = states.values().all(|state| state != "suspect");
        let alive = states.into_iter().filter(|(_, state)| state == "alive").map(|(node, _)| node);
        certain.then(|| alive.collect())
    }

    /// The state of each address by node, as `watcher` sees it; of two lives at one address the one that lives.
    pub fn states(&self, watcher: usize) -> Option<BTreeMap<usize, String>> {
        let page = self.nodes[watcher].page("/cluster")?;
        let mut states = BTreeMap::new();
        for node in page["nodes"].as_array()? {
            let address = node["address"].as_str()?;
            let state = node["state"].as_str()?.to_owned();
            let index =
                self.nodes.iter().position(|node| address == format!("{}:{CLUSTER_PORT}", node.ip))?;
            let known = states.entry(index).or_insert_with(|| state.clone());
            if state == "alive" {
                *known = state;
            }
        }
        Some(states)
    }

    /// What all nodes must agree on once nothing is under way: digests of objects and of claims.
    pub fn digests(&self, node: usize) -> Option<Value> {
        let page = self.nodes[node].page("/cluster")?;
        let digests = [&page["objects"]["digest"], &page["claims"]["digest"]];
        assert!(digests.iter().all(|digest| digest.is_string()), "/cluster has no digests: {page}");
        Some(json!(digests))
    }

    /// Waits until all of `nodes` have the same digests; the time that took.
    pub fn await_equal(&self, nodes: &[usize], bound: Duration) -> Duration {
        let started = Instant::now();
        eventually_within(bound, &format!("the nodes {nodes:?} hold the same"), || {
            let mut digests = nodes.iter().map(|node| self.digests(*node));
            let first = digests.next()??;
            digests.all(|digest| digest.as_ref() == Some(&first)).then_some(())
        });
        started.elapsed()
    }
}

const KEY: &str = "6b1f0c6c0f3d0a8f2b7f6a5e4d3c2b1a00112233445566778899aabbccddeeff";
pub const START_MAX: Duration = Duration::from_secs(60);
