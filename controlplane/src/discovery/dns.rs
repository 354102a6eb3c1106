//! Nodes by one name of the DNS: all its addresses with a port, or its SRV records (RFC 2782), whose priorities and weights
//! do not count, because every node is asked.

use crate::swim::machine::SEEDS_MAX;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::ResolverConfig;
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::RData;
use std::net::SocketAddr;

/// Why a name gave no address.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    #[error("cannot read /etc/resolv.conf")]
    System(#[source] NetError),
    #[error("{name}: {source}")]
    Lookup { name: String, source: NetError },
    #[error("{name} has no {records}")]
    Empty { name: String, records: &'static str },
}

pub struct Dns {
    target: Target,
    /// None: as the system is configured at the time.
    config: Option<ResolverConfig>,
}

enum Target {
    Host { name: String, port: u16 },
    Service(String),
}

impl Dns {
    /// `text` is `host:port`, or `_service._udp.domain`; the configuration has checked it. None: it is neither.
    pub fn new(text: &str) -> Option<Self> {
        let target = if text.starts_with('_') {
            Target::Service(text.to_owned())
        } else {
            let (name, port) = text.rsplit_once(':')?;
            Target::Host { name: name.to_owned(), port: port.parse().ok()? }
        };
        Some(Self { target, config: None })
    }

    pub async fn look(&self) -> Result<Vec<SocketAddr>, DnsError> {
        // Made anew: what it remembers, and the system's configuration, may be of the past.
        let resolver = self.resolver()?;
        match &self.target {
            Target::Host { name, port } => addresses(&resolver, name, *port).await,
            Target::Service(name) => services(&resolver, name).await,
        }
    }

    fn resolver(&self) -> Result<TokioResolver, DnsError> {
        let builder = match &self.config {
            None => TokioResolver::builder_tokio().map_err(DnsError::System)?,
            Some(config) => {
                TokioResolver::builder_with_config(config.clone(), TokioRuntimeProvider::default())
            }
        };
        builder.build().map_err(DnsError::System)
    }
}

async fn addresses(resolver: &TokioResolver, name: &str, port: u16) -> Result<Vec<SocketAddr>, DnsError> {
    let found = resolver.lookup_ip(name).await.map_err(|source| failed(name, source))?;
    let found: Vec<_> = found.iter().take(SEEDS_MAX).map(|ip| SocketAddr::new(ip, port)).collect();
    if found.is_empty() {
        return Err(DnsError::Empty { name: name.to_owned(), records: "A or AAAA record" });
    }
    Ok(found)
}

/// Names that some of the records have and that do not resolve are passed over, unless that leaves nothing.
async fn services(resolver: &TokioResolver, name: &str) -> Result<Vec<SocketAddr>, DnsError> {
    let found = resolver.srv_lookup(name).await.map_err(|source| failed(name, source))?;
    let mut all = vec![];
    let mut last = DnsError::Empty { name: name.to_owned(), records: "SRV record" };
    for record in found.answers().iter().take(SEEDS_MAX) {
        let RData::SRV(service) = &record.data else { continue };
        // RFC 2782: a target of "." says that there is no such service.
        if service.target.is_root() || service.port == 0 {
            continue;
        }
        match addresses(resolver, &service.target.to_utf8(), service.port).await {
            Ok(addresses) => all.extend(addresses),
            Err(error) => last = error,
        }
    }
    if all.is_empty() { Err(last) } else { Ok(all) }
}

fn failed(name: &str, source: NetError) -> DnsError {
    DnsError::Lookup { name: name.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ProtocolConfig};
    use std::net::{IpAddr, Ipv4Addr};
    use tokio::net::UdpSocket;

    const A: u16 = 1;
    const AAAA: u16 = 28;
    const SRV: u16 = 33;

    /// Name, type and data of a record.
    type Zone = Vec<(&'static str, u16, Vec<u8>)>;

    fn labels(name: &str) -> Vec<u8> {
        let mut bytes = vec![];
        for label in name.split('.').filter(|label| !label.is_empty()) {
            bytes.push(label.len() as u8);
            bytes.extend_from_slice(label.as_bytes());
        }
        bytes.push(0);
        bytes
    }

    /// Priority, weight, port, target.
    fn service(port: u16, target: &str) -> Vec<u8> {
        let mut data = vec![0, 1, 0, 5];
        data.extend_from_slice(&port.to_be_bytes());
        data.extend(labels(target));
        data
    }

    /// Answers questions from `zone`, and with "no such name" otherwise (RFC 1035, section 4.1).
    fn answer(query: &[u8], zone: &Zone) -> Vec<u8> {
        let mut at = 12;
        let mut name = vec![];
        while query[at] != 0 {
            let length = usize::from(query[at]);
            name.push(String::from_utf8_lossy(&query[at + 1..at + 1 + length]).to_lowercase());
            at += 1 + length;
        }
        let question = &query[12..at + 5];
        let kind = u16::from_be_bytes([query[at + 1], query[at + 2]]);
        let name = name.join(".");
        let of_name: Vec<_> = zone.iter().filter(|(owner, ..)| *owner == name).collect();
        let found: Vec<_> = of_name.iter().filter(|(_, of, _)| *of == kind).collect();
        let code = if of_name.is_empty() { 3 } else { 0 };
        let mut out = [&query[..2], &[0x81, 0x80 | code, 0, 1, 0, found.len() as u8, 0, 0, 0, 0]].concat();
        out.extend_from_slice(question);
        for (_, kind, data) in found {
            out.extend([0xc0, 12]);
            out.extend_from_slice(&kind.to_be_bytes());
            out.extend([0, 1, 0, 0, 0, 60]);
            out.extend_from_slice(&(data.len() as u16).to_be_bytes());
            out.extend_from_slice(data);
        }
        out
    }

    async fn serve(zone: Zone) -> ResolverConfig {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let mut connection = ConnectionConfig::new(ProtocolConfig::Udp);
        connection.port = socket.local_addr().unwrap().port();
        tokio::spawn(async move {
            let mut query = [0; 512];
            while let Ok((bytes, from)) = socket.recv_from(&mut query).await {
                let _ = socket.send_to(&answer(&query[..bytes], &zone), from).await;
            }
        });
        let server = NameServerConfig::new(IpAddr::V4(Ipv4Addr::LOCALHOST), true, vec![connection]);
        ResolverConfig::from_parts(None, vec![], vec![server])
    }

    async fn look(text: &str, zone: Zone) -> Result<Vec<SocketAddr>, DnsError> {
        let mut dns = Dns::new(text).expect("a good name");
        dns.config = Some(serve(zone).await);
        let mut found = dns.look().await?;
        found.sort_unstable();
        Ok(found)
    }

    fn nodes() -> Zone {
        let v6 = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];
        vec![
            ("nodes.example.test", A, vec![10, 0, 0, 1]),
            ("nodes.example.test", A, vec![10, 0, 0, 2]),
            ("nodes.example.test", AAAA, v6.to_vec()),
            ("_signalbox._udp.example.test", SRV, service(7_001, "a.example.test")),
            ("_signalbox._udp.example.test", SRV, service(7_002, "b.example.test")),
            ("_signalbox._udp.example.test", SRV, service(7_003, "gone.example.test")),
            ("a.example.test", A, vec![10, 0, 0, 3]),
            ("b.example.test", A, vec![10, 0, 0, 4]),
            ("_none._udp.example.test", SRV, service(0, "")),
        ]
    }

    #[tokio::test]
    async fn every_address_of_a_name_counts() {
        let found = look("nodes.example.test:7000", nodes()).await.unwrap();
        let expected = ["10.0.0.1:7000", "10.0.0.2:7000", "[2001:db8::9]:7000"];
        assert_eq!(found, expected.map(|text| text.parse::<SocketAddr>().unwrap()));
    }

    #[tokio::test]
    async fn services_have_ports_of_their_own_and_one_that_is_gone_does_not_hide_the_others() {
        let found = look("_signalbox._udp.example.test", nodes()).await.unwrap();
        assert_eq!(found, ["10.0.0.3:7001", "10.0.0.4:7002"].map(|text| text.parse::<SocketAddr>().unwrap()));
    }

    #[tokio::test]
    async fn what_is_not_there_is_named() {
        for (text, part) in [
            ("nothing.example.test:1", "nothing.example.test"),
            ("_other._udp.example.test", "_other._udp.example.test"),
            ("_none._udp.example.test", "has no SRV record"),
        ] {
            let error = look(text, nodes()).await.unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[tokio::test]
    async fn the_hosts_file_counts() {
        let found = look("localhost:5", vec![]).await.unwrap();
        assert!(found.contains(&"127.0.0.1:5".parse().unwrap()), "{found:?}");
    }
}
