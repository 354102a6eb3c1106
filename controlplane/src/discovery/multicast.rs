//! Nodes of one network that announce themselves in a multicast group: for development, where nobody wants to write seeds.
//!
//! `node [16] │ address as text`, sealed with the key of the cluster under the env and the word "multicast", every
//! [`ANNOUNCE_PERIOD`]. An announcement only adds an address to be asked, so a recorded one does no harm.

use super::{DiscoveryError, Pause, Report};
use crate::swim::identity::is_reachable;
use crate::swim::machine::SEEDS_MAX;
use crate::swim::seal::{Keyring, Sealer};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use uuid::Uuid;

/// What is announced, and where.
pub struct Group {
    pub group: SocketAddrV4,
    /// Of which network; unspecified: the system's choice.
    pub interface: Ipv4Addr,
    pub node: Uuid,
    pub address: SocketAddr,
    pub sealer: Sealer,
    pub heard: Heard,
}

/// Addresses that were announced lately.
#[derive(Default)]
pub struct Heard(BTreeMap<SocketAddr, Instant>);

struct Sockets {
    /// Bound to the group, which several nodes of one host may be.
    listen: UdpSocket,
    speak: UdpSocket,
}

impl Group {
    /// `nonce` is random and used for one start only, and for nothing else.
    pub fn new(
        group: SocketAddrV4,
        own: (SocketAddr, Uuid, SocketAddr),
        keys: Keyring,
        env: &str,
        nonce: [u8; 16],
    ) -> Self {
        let (bound, node, address) = own;
        let interface = match bound {
            SocketAddr::V4(bound) => *bound.ip(),
            SocketAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
        };
        // The name of an env has no control characters, so no membership packet can be taken for an announcement.
        let sealer = Sealer::new(keys, &format!("{env}\u{0}multicast"), nonce);
        Self { group, interface, node, address, sealer, heard: Heard::default() }
    }

    fn announcement(&mut self) -> Vec<u8> {
        let plain = [self.node.as_bytes(), self.address.to_string().as_bytes()].concat();
        self.sealer.seal(&plain)
    }

    /// The address of another node, when it is an announcement of our cluster.
    fn open(&self, packet: &[u8]) -> Option<SocketAddr> {
        let (_, plain) = self.sealer.open(packet).ok()?;
        let (node, address) = plain.split_first_chunk::<16>()?;
        let address: SocketAddr = std::str::from_utf8(address).ok()?.parse().ok()?;
        (*node != *self.node.as_bytes() && is_reachable(address)).then_some(address)
    }

    fn sockets(&self) -> io::Result<Sockets> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let listen = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)?;
        sockopt::set_socket_reuseaddr(&listen, true)?;
        rustix::net::bind(&listen, &self.group)?;
        let listen = UdpSocket::from_std(listen.into())?;
        listen.join_multicast_v4(*self.group.ip(), self.interface)?;
        let speak = std::net::UdpSocket::bind((self.interface, 0))?;
        sockopt::set_ip_multicast_if(&speak, &self.interface)?;
        sockopt::set_ip_multicast_ttl(&speak, 1)?;
        sockopt::set_ip_multicast_loop(&speak, true)?;
        speak.set_nonblocking(true)?;
        Ok(Sockets { listen, speak: UdpSocket::from_std(speak)? })
    }
}

impl Heard {
    /// True when it is news.
    fn add(&mut self, now: Instant, address: SocketAddr) -> bool {
        if self.0.len() >= SEEDS_MAX && !self.0.contains_key(&address) {
            return false;
        }
        self.0.insert(address, now).is_none()
    }

    fn forget_old(&mut self, now: Instant) {
        self.0.retain(|_, at| now.saturating_duration_since(*at) < HEARD_MAX);
    }
}

/// Announces and listens until nobody is interested any more.
pub async fn run(mut group: Group, found: mpsc::Sender<Vec<SocketAddr>>, mut report: Report) {
    let mut pause = Pause::default();
    loop {
        let Err(source) = converse(&mut group, &found, &report).await else { return };
        report.failed(&DiscoveryError::Multicast { group: group.group.into(), source });
        tokio::select! {
            () = tokio::time::sleep(pause.next(true)) => {}
            () = found.closed() => return,
        }
    }
}

async fn converse(
    group: &mut Group,
    found: &mpsc::Sender<Vec<SocketAddr>>,
    report: &Report,
) -> io::Result<()> {
    let sockets = group.sockets()?;
    let mut announce = tokio::time::interval(ANNOUNCE_PERIOD);
    let mut buffer = [0; PACKET_BYTES_MAX];
    loop {
        tokio::select! {
            _ = announce.tick() => {
                let packet = group.announcement();
                sockets.speak.send_to(&packet, SocketAddr::V4(group.group)).await?;
                group.heard.forget_old(Instant::now());
                report.found(group.heard.0.len());
            }
            received = sockets.listen.recv_from(&mut buffer) => {
                let (bytes, _) = received?;
                let Some(address) = group.open(&buffer[..bytes]) else { continue };
                if !group.heard.add(Instant::now(), address) {
                    continue;
                }
                if found.send(group.heard.0.keys().copied().collect()).await.is_err() {
                    return Ok(());
                }
            }
            () = found.closed() => return Ok(()),
        }
    }
}

const ANNOUNCE_PERIOD: Duration = Duration::from_secs(2);
/// An address that was not announced for this long is forgotten.
const HEARD_MAX: Duration = Duration::from_secs(60);
/// Longer packets are cut and then open with no key.
const PACKET_BYTES_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::{DiscoveryCounts, Source};
    use std::sync::Arc;

    const KEY: &str = "0101010101010101010101010101010101010101010101010101010101010101";

    fn group(id: u8, port: u16, env: &str) -> Group {
        let keys = Keyring::parse(KEY).unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], 7_000 + u16::from(id)));
        let group = SocketAddrV4::new(Ipv4Addr::new(239, 255, 83, 66), port);
        Group::new(group, (address, Uuid::from_u128(id.into()), address), keys, env, [id; 16])
    }

    #[test]
    fn only_other_nodes_of_the_env_are_heard() {
        let (mut one, two) = (group(1, 5, "e"), group(2, 5, "e"));
        let packet = one.announcement();
        assert_eq!(two.open(&packet), Some(one.address));
        assert_eq!(one.open(&packet), None);
        assert_eq!(group(2, 5, "other").open(&packet), None);
        let mut membership = Sealer::new(Keyring::parse(KEY).unwrap(), "e", [3; 16]);
        assert_eq!(two.open(&membership.seal(&[&[9; 16][..], b"10.0.0.1:5"].concat())), None);
        for address in ["10.0.0.1:0", "0.0.0.0:5", "nowhere"] {
            let plain = [&[9; 16][..], address.as_bytes()].concat();
            assert_eq!(two.open(&one.sealer.seal(&plain)), None, "{address}");
        }
    }

    #[test]
    fn what_is_heard_is_bounded_and_forgotten() {
        let (mut heard, now) = (Heard::default(), Instant::now());
        let address = |port| SocketAddr::from(([10, 0, 0, 1], port));
        for port in 1..=SEEDS_MAX as u16 {
            assert!(heard.add(now, address(port)) && !heard.add(now, address(port)));
        }
        assert!(!heard.add(now, address(9_999)));
        heard.add(now + HEARD_MAX / 2, address(7));
        heard.forget_old(now + HEARD_MAX);
        assert_eq!(heard.0.into_keys().collect::<Vec<_>>(), [address(7)]);
    }

    #[tokio::test]
    async fn two_nodes_of_one_host_find_each_other() {
        // A port that is free for the group is free for both.
        let port = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        if let Err(error) = group(1, port, "e").sockets() {
            eprintln!("skipped: no multicast here: {error}");
            return;
        }
        let mut seeds = vec![];
        for id in [1, 2] {
            let (found, receiver) = mpsc::channel(1);
            let source = Source::Multicast(group(id, port, "e"));
            tokio::spawn(crate::discovery::run(source, found, Arc::new(DiscoveryCounts::default())));
            seeds.push(receiver);
        }
        for (index, expected) in [(0, 7_002), (1, 7_001)] {
            let found = tokio::time::timeout(Duration::from_secs(20), seeds[index].recv()).await;
            let found = found.expect("it is heard in time").expect("it goes on");
            assert_eq!(found, [SocketAddr::from(([127, 0, 0, 1], expected))]);
        }
    }
}
