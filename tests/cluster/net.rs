//! Namespaces, the bridge between them, and what goes wrong on it.

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::panic::resume_unwind;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

/// A network namespace without a name: it is gone with its last process and descriptor.
pub struct Namespace(File);

impl Namespace {
    pub fn new() -> Self {
        let made = thread::spawn(|| {
            // SAFETY: a new network namespace for this thread alone leaves memory and descriptors as they are.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.expect("a network namespace");
            File::open("/proc/thread-self/ns/net").expect("its descriptor")
        });
        Self(made.join().expect("a network namespace"))
    }

    /// Runs something inside: sockets opened and processes started there belong to the namespace.
    pub fn run<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("moved inside");
            act()
        };
        thread::scope(|scope| scope.spawn(inside).join()).unwrap_or_else(|panic| resume_unwind(panic))
    }
}

/// The network of one cluster: a bridge, where the clients are, and a namespace for each node.
pub struct Net {
    number: u8,
    ports: Mutex<Vec<Arc<Namespace>>>,
}

impl Net {
    pub fn new(number: u8) -> Self {
        let bridge = format!("br{number}");
        ip(&["link", "add", &bridge, "type", "bridge"]);
        ip(&["address", "add", &format!("{}/24", address(number, 254)), "dev", &bridge]);
        ip(&["link", "set", &bridge, "up"]);
        Self { number, ports: Mutex::default() }
    }

    /// Adds a namespace with a link to the bridge.
    pub fn plug(&self) {
        let index = self.all().len();
        let port = format!("v{}n{index}", self.number);
        let lab = std::process::id().to_string();
        let own = format!("{}/24", self.address(index));
        let namespace = Namespace::new();
        namespace.run(|| {
            ip(&["link", "set", "lo", "up"]);
            ip(&["link", "add", "eth0", "type", "veth", "peer", "name", &port, "netns", &lab]);
            ip(&["address", "add", &own, "dev", "eth0"]);
            ip(&["link", "set", "eth0", "up"]);
            nft("add table ip faults");
            nft("add chain ip faults in { type filter hook input priority 0; }");
        });
        ip(&["link", "set", &port, "master", &format!("br{}", self.number), "up"]);
        self.ports.lock().expect(CALM).push(Arc::new(namespace));
    }

    /// Where a node is, seen from clients and other nodes.
    pub fn address(&self, node: usize) -> Ipv4Addr {
        address(self.number, u8::try_from(node + 1).expect("fewer than 254 nodes"))
    }

    pub fn namespace(&self, node: usize) -> Arc<Namespace> {
        Arc::clone(&self.ports.lock().expect(CALM)[node])
    }

    fn all(&self) -> Vec<Arc<Namespace>> {
        self.ports.lock().expect(CALM).clone()
    }

    /// Nothing from `source` reaches `target` any more. Their clients reach both.
    pub fn cut_one_way(&self, source: usize, target: usize) {
        let source = self.address(source);
        self.namespace(target).run(|| nft(&format!("add rule ip faults in ip saddr {source} drop")));
    }

    pub fn cut(&self, one: usize, other: usize) {
        self.cut_one_way(one, other);
        self.cut_one_way(other, one);
    }

    /// Each packet between nodes is lost with this probability.
    pub fn lose(&self, percent: u8) {
        let (subnet, clients) = (address(self.number, 0), address(self.number, 254));
        for port in self.all() {
            port.run(|| {
                nft(&format!(
                    "add rule ip faults in ip saddr {subnet}/24 ip saddr != {clients} numgen random mod 100 < {percent} drop"
                ));
            });
        }
    }

    /// Takes all cuts and losses back.
    pub fn heal(&self) {
        self.all().iter().for_each(|port| port.run(|| nft("flush chain ip faults in")));
    }

    /// Pulls or plugs the cable: clients do not reach the node either.
    pub fn set_link(&self, node: usize, up: bool) {
        self.namespace(node).run(|| ip(&["link", "set", "eth0", if up { "up" } else { "down" }]));
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        // Its links go with their namespaces.
        let _ = Command::new("ip").args(["link", "delete", &format!("br{}", self.number)]).status();
    }
}

const CALM: &str = "nobody panics with it";

fn address(number: u8, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, number, host)
}

pub fn ip(arguments: &[&str]) {
    must(Command::new("ip").args(arguments));
}

fn nft(rule: &str) {
    must(Command::new("nft").arg(rule));
}

/// Runs a tool that has to succeed.
pub fn must(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
