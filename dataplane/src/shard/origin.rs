//! Who is at the other end of a connection, as far as the transport knows.

use std::fmt;
use std::net::IpAddr;

/// The other end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    Ip(IpAddr),
    /// A process of this machine, as it was when it connected to a Unix-domain socket (unix(7), `SO_PEERCRED`).
    Unix {
        pid: u32,
        uid: u32,
        gid: u32,
    },
    /// A client of a proxy that does not say where it is.
    Hidden,
}

impl From<IpAddr> for Origin {
    fn from(ip: IpAddr) -> Self {
        Self::Ip(ip.to_canonical())
    }
}

impl Origin {
    /// The client is on this machine, for all that is known.
    pub fn is_local(self) -> bool {
        match self {
            Self::Ip(ip) => ip.is_loopback(),
            Self::Unix { .. } => true,
            Self::Hidden => false,
        }
    }
}

/// As logs and session details show it.
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Unix { pid, uid, gid } => write!(f, "unix:pid={pid},uid={uid},gid={gid}"),
            Self::Hidden => f.write_str("unknown"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_and_loopback_addresses_are_of_this_machine() {
        let from = |ip: &str| Origin::from(ip.parse::<IpAddr>().expect("an address"));
        for local in [from("127.0.0.1"), from("127.9.9.9"), from("::1"), from("::ffff:127.0.0.1")] {
            assert!(local.is_local(), "{local}");
        }
        let process = Origin::Unix { pid: 7, uid: 1_000, gid: 100 };
        assert!(process.is_local());
        assert_eq!(process.to_string(), "unix:pid=7,uid=1000,gid=100");
        for other in [from("192.0.2.1"), from("2001:db8::1"), from("0.0.0.0"), Origin::Hidden] {
            assert!(!other.is_local(), "{other}");
        }
    }
}
