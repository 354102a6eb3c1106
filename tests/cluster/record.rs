//! Writes of realms on many nodes, and what must have become of them.

use crate::cluster::Cluster;
use crate::net::Namespace;
use crate::node::ADMIN_PORT;
use crate::support::http;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::thread::sleep;
use std::time::Duration;

/// Names of realms by what is known of the last write of each.
#[derive(Default, Debug)]
pub struct Writes {
    added: BTreeSet<String>,
    removed: BTreeSet<String>,
    /// Written or not: the answer did not come.
    unknown: BTreeSet<String>,
    pub refused: BTreeSet<String>,
}

impl Writes {
    pub fn merge(&mut self, other: Self) {
        self.added.extend(other.added);
        self.removed.extend(other.removed);
        self.unknown.extend(other.unknown);
        self.refused.extend(other.refused);
    }

    pub fn acknowledged(&self) -> usize {
        self.added.len() + self.removed.len()
    }

    /// Adds a realm on a node and notes the outcome; true when it was acknowledged.
    pub fn add(&mut self, namespace: &Namespace, name: &str) -> bool {
        match change(namespace, "PUT", name) {
            Outcome::Done => self.added.insert(name.to_owned()),
            Outcome::Refused => {
                self.refused.insert(name.to_owned());
                false
            }
            Outcome::Unknown => {
                self.unknown.insert(name.to_owned());
                false
            }
        }
    }

    /// Removes a realm that was added on the same node.
    pub fn remove(&mut self, namespace: &Namespace, name: &str) -> bool {
        match change(namespace, "DELETE", name) {
            Outcome::Done => {
                self.added.remove(name);
                self.removed.insert(name.to_owned())
            }
            Outcome::Refused => false,
            Outcome::Unknown => {
                self.added.remove(name);
                self.unknown.insert(name.to_owned());
                false
            }
        }
    }

    pub fn has_unknown(&self) -> bool {
        !self.unknown.is_empty()
    }

    /// On each of `nodes`: nothing acknowledged is lost.
    pub fn check_added(&self, cluster: &Cluster, nodes: &[usize]) {
        for &node in nodes {
            self.check_found(node, &names(cluster, node));
        }
    }

    fn check_found(&self, node: usize, found: &BTreeSet<String>) {
        let lost: Vec<_> = self.added.difference(found).collect();
        assert!(lost.is_empty(), "node {node} lost {} acknowledged realms: {:?}", lost.len(), head(&lost));
    }

    /// On each of `nodes`: nothing acknowledged is lost, nothing removed is back, and nothing is there that nobody wrote.
    pub fn check(&self, cluster: &Cluster, nodes: &[usize]) {
        for &node in nodes {
            let found = names(cluster, node);
            self.check_found(node, &found);
            let back: Vec<_> = self.removed.intersection(&found).collect();
            assert!(back.is_empty(), "node {node} has {} removed realms: {:?}", back.len(), head(&back));
            let phantom: Vec<_> = found
                .iter()
                .filter(|name| !self.added.contains(*name) && !self.unknown.contains(*name))
                .collect();
            assert!(
                phantom.is_empty(),
                "node {node} has {} realms nobody added: {:?}",
                phantom.len(),
                head(&phantom)
            );
        }
    }
}

fn head<T>(all: &[T]) -> &[T] {
    &all[..all.len().min(5)]
}

/// The realms that were added on any node, as this one lists them.
pub fn names(cluster: &Cluster, node: usize) -> BTreeSet<String> {
    let page = cluster.nodes[node].page("/realms").expect("/realms");
    let realms = page["realms"].as_array().expect("realms").iter();
    let names = realms.filter_map(|realm| realm["name"].as_str()).map(str::to_owned);
    names.filter(|name| name.starts_with(PREFIX)).collect()
}

/// Adds realms on one node, and removes every fourth again, until it is told to stop.
pub fn write_realms(namespace: &Namespace, node: usize, stopped: impl Fn() -> bool) -> Writes {
    let mut writes = Writes::default();
    for number in 0.. {
        if stopped() {
            break;
        }
        let name = format!("{PREFIX}.node{node}.n{number}");
        if writes.add(namespace, &name) && number % 4 == 0 {
            writes.remove(namespace, &name);
        }
        sleep(PAUSE);
    }
    writes
}

enum Outcome {
    Done,
    Refused,
    Unknown,
}

fn change(namespace: &Namespace, method: &str, name: &str) -> Outcome {
    let admin = SocketAddr::from(([127, 0, 0, 1], ADMIN_PORT));
    let body = if method == "PUT" { r#"{"anonymous":"anybody"}"# } else { "" };
    match namespace.run(|| http::request(admin, method, &format!("/realms/{name}"), body)) {
        Ok(answer) => match answer.status {
            200 => Outcome::Done,
            // The node knows that it did not store it.
            400..=499 | 507 => Outcome::Refused,
            _ => Outcome::Unknown,
        },
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => Outcome::Refused,
        Err(_) => Outcome::Unknown,
    }
}

pub const PREFIX: &str = "com.lab.realm";
const PAUSE: Duration = Duration::from_millis(50);
