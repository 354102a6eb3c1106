//! Every key of the configuration, with the bounds of its value.

use std::fmt;
use std::time::Duration;

use crate::history::{HISTORY_BYTES, HISTORY_EVENTS_MAX};
use crate::ids::SHARDS_MAX;
use crate::limits::{MESSAGE_BYTES_MAX, URI_BYTES_MAX};
use crate::rules::ROLE_BYTES_MAX;

/// One key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Key {
    /// The table it stands in; empty for keys above all tables.
    pub section: &'static str,
    pub name: &'static str,
    pub kind: Kind,
}

/// What a value may be; bounds are inclusive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Boolean,
    Integer {
        min: u64,
        max: u64,
    },
    /// An integer that is a power of two.
    Power {
        min: u64,
        max: u64,
    },
    /// Bytes: an integer, or a string with one of the units B, KiB, MiB, GiB, TiB.
    Size {
        min: u64,
        max: u64,
    },
    /// A string with one of the units us, ms, s, m, h, d, w.
    Time {
        min: Duration,
        max: Duration,
    },
    Choice(&'static [&'static str]),
    /// `"auto"`, or CPU numbers and ranges, at most `count_max` of them.
    Cpus {
        count_max: usize,
    },
    /// `"IP:port"`.
    Address,
    Path,
    /// A path, or nothing.
    File,
    /// The path of a Unix-domain socket, or nothing.
    Socket,
    /// Permissions of a file as an octal string.
    Mode,
    /// Printable text of at most this many bytes; `min` of them.
    Text {
        min: usize,
        max: usize,
    },
    /// `"IP:port"`, or nothing.
    Advertised,
    /// `"IP:port"` to listen on, or nothing.
    Listen,
    /// A list of `"host:port"`.
    Hosts {
        count_max: usize,
    },
    /// A list of origins of web pages, or `"*"` for all.
    Origins {
        count_max: usize,
    },
    /// The path of a URL.
    UrlPath,
    /// A WAMP URI by the loose rule.
    Uri,
    /// A list of names of features, or, where the default depends on other keys, `"auto"`.
    Features {
        auto: bool,
    },
    /// The name of a role.
    Role,
}

impl Key {
    /// The row of `section.name`.
    pub(super) fn find(section: &str, name: &str) -> Option<&'static Self> {
        SCHEMA.iter().find(|key| key.section == section && key.name == name)
    }
}

/// `section.name`, as in error texts and in tuning.md.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&path(self.section, self.name))
    }
}

/// `section.name`, or `name` above all sections.
pub(super) fn path(section: &str, name: &str) -> String {
    if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") }
}

impl Kind {
    /// The bounds of a number, as documentation writes them: `512B to 16MiB`.
    pub fn range(self) -> Option<String> {
        match self {
            Self::Integer { min, max } | Self::Power { min, max } => Some(format!("{min} to {max}")),
            Self::Size { min, max } => Some(format!("{} to {}", Bytes(min), Bytes(max))),
            Self::Time { min, max } => Some(format!("{} to {}", Time(min), Time(max))),
            _ => None,
        }
    }
}

/// What is allowed, as error texts say it.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Boolean => f.write_str("true or false"),
            Self::Integer { min, max } => write!(f, "an integer from {min} to {max}"),
            Self::Power { min, max } => write!(f, "a power of two from {min} to {max}"),
            Self::Size { min, max } => {
                write!(f, "a size from {} to {}, such as \"64KiB\"", Bytes(min), Bytes(max))
            }
            Self::Time { min, max } => {
                write!(f, "a time from {} to {}, such as \"10s\"", Time(min), Time(max))
            }
            Self::Choice(names) => {
                for (index, name) in names.iter().enumerate() {
                    let before = match index {
                        0 => "",
                        _ if index + 1 == names.len() => " or ",
                        _ => ", ",
                    };
                    write!(f, "{before}\"{name}\"")?;
                }
                Ok(())
            }
            Self::Cpus { count_max } => {
                write!(f, "\"auto\" or CPUs from 0 to {CPU_MAX}, such as \"0-3,6\", at most {count_max}")
            }
            Self::Address => f.write_str("an IP address and a port, such as \"127.0.0.1:18080\""),
            Self::Path => f.write_str("the path of a folder"),
            Self::File => f.write_str("the path of a file"),
            Self::Socket => write!(f, "the path of a socket of at most {SOCKET_BYTES_MAX} bytes, or \"\""),
            Self::Mode => f.write_str("permissions in octal, such as \"660\""),
            Self::Text { min, max } => write!(f, "{min} to {max} bytes of printable text"),
            Self::Advertised => {
                f.write_str("an IP address and a port others can reach, such as \"10.0.0.1:18083\", or \"\"")
            }
            Self::Listen => f.write_str("an IP address and a port, such as \"10.0.0.1:18084\", or \"\""),
            Self::Hosts { count_max } => {
                write!(f, "at most {count_max} of host and port, such as [\"10.0.0.1:18083\"]")
            }
            Self::Origins { count_max } => {
                write!(f, "at most {count_max} of \"*\" and origins, such as [\"https://app.example\"]")
            }
            Self::UrlPath => {
                write!(
                    f,
                    "a path of at most {PATH_BYTES_MAX} visible ASCII characters that starts with \"/\""
                )
            }
            Self::Features { auto } => {
                let auto = if auto { "\"auto\" or " } else { "" };
                write!(f, "{auto}a list of names of features, such as [\"call_canceling\"]")
            }
            Self::Role => write!(f, "a name of 1 to {ROLE_BYTES_MAX} bytes"),
            Self::Uri => f.write_str("a WAMP URI, such as \"com.example.app\", not below \"wamp.\""),
        }
    }
}

/// Bytes with the largest unit that divides them; 0 has none.
pub(super) struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (value, unit) = super::value::SIZE_UNITS
            .iter()
            .rev()
            .find(|(_, bytes)| self.0 != 0 && self.0.is_multiple_of(*bytes))
            .map_or((self.0, ""), |(unit, bytes)| (self.0 / bytes, unit));
        write!(f, "{value}{unit}")
    }
}

/// A time with the largest unit that divides it.
pub(super) struct Time(pub Duration);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.as_nanos();
        let (value, unit) = super::value::TIME_UNITS
            .iter()
            .rev()
            .find(|(_, time)| nanos != 0 && nanos.is_multiple_of(time.as_nanos()))
            .map_or((0, "s"), |(unit, time)| (nanos / time.as_nanos(), unit));
        write!(f, "{value}{unit}")
    }
}

/// Largest CPU number: the kernel's own bound for a CPU set of the usual size.
pub const CPU_MAX: u32 = 1_023;
/// Longest `path` of a listener.
pub const PATH_BYTES_MAX: usize = 255;
/// Longest path of a Unix-domain socket: what `sockaddr_un` holds with a NUL behind it (unix(7)).
pub const SOCKET_BYTES_MAX: usize = 107;
/// Most `[[listener]]` tables: each costs a socket and an accept operation on every shard.
pub const LISTENERS_MAX: usize = 16;
/// Most `listener.origins`: each request that names its page is compared with all of them.
pub const ORIGINS_MAX: usize = 64;

/// Longest name of an env or a failure domain.
pub const CLUSTER_TEXT_BYTES_MAX: usize = 64;
/// Longest name in `cluster.dns` and `cluster.kubernetes`.
pub const DNS_TEXT_BYTES_MAX: usize = 260;
/// Most `cluster.seeds`.
pub const SEEDS_MAX: usize = 64;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const HOUR: Duration = Duration::from_secs(60 * 60);

const fn key(section: &'static str, name: &'static str, kind: Kind) -> Key {
    Key { section, name, kind }
}

const fn integer(section: &'static str, name: &'static str, max: u64) -> Key {
    key(section, name, Kind::Integer { min: 1, max })
}

/// The same key where it may only narrow what `[limits]` says; 0 does not.
const fn narrower(section: &'static str, limit: Key) -> Key {
    let kind = match limit.kind {
        Kind::Integer { max, .. } => Kind::Integer { min: 0, max },
        Kind::Size { max, .. } => Kind::Size { min: 0, max },
        _ => panic!("numbers can be narrowed"),
    };
    key(section, limit.name, kind)
}

const fn time(section: &'static str, name: &'static str, min_ms: u64, max: Duration) -> Key {
    key(section, name, Kind::Time { min: Duration::from_millis(min_ms), max })
}

// What a realm and a role may narrow.
const SUBSCRIPTIONS_MAX: Key = integer("limits", "subscriptions_max", 10_000_000);
const REGISTRATIONS_MAX: Key = integer("limits", "registrations_max", 10_000_000);
const CALLS_PENDING_MAX: Key = integer("limits", "calls_pending_max", 1 << 20);
const INVOCATIONS_PENDING_MAX: Key = integer("limits", "invocations_pending_max", 1 << 20);
const URI_MAX: Key = integer("limits", "uri_max", URI_BYTES_MAX as u64);
const PAYLOAD_MAX: Key = key("limits", "payload_max", Kind::Size { min: 1, max: MESSAGE_BYTES_MAX as u64 });

/// All keys, in the order of the default text.
pub const SCHEMA: &[Key] = &[
    key("", "data_dir", Kind::Path),
    key("", "cores", Kind::Cpus { count_max: SHARDS_MAX }),
    key("control", "cpus", Kind::Cpus { count_max: CPU_MAX as usize + 1 }),
    key("memory", "max", Kind::Size { min: 16 << 20, max: 16 << 40 }),
    key("memory", "numa", Kind::Boolean),
    key("listener", "transport", Kind::Choice(&["websocket", "rawsocket", "auto", "http"])),
    key("listener", "address", Kind::Address),
    key("listener", "socket", Kind::Socket),
    key("listener", "mode", Kind::Mode),
    key("listener", "path", Kind::UrlPath),
    integer("listener", "connections_max", 10_000_000),
    key("listener", "message_max", Kind::Size { min: 512, max: MESSAGE_BYTES_MAX as u64 }),
    integer("listener", "backlog", 65_535),
    key("listener", "compression", Kind::Choice(&["off", "no_takeover", "takeover"])),
    integer("listener", "compression_level", 9),
    key("listener", "proxy_protocol", Kind::Boolean),
    key("listener", "echo", Kind::Boolean),
    key("listener", "http", Kind::Boolean),
    key("listener", "origins", Kind::Origins { count_max: ORIGINS_MAX }),
    key("admin", "address", Kind::Address),
    SUBSCRIPTIONS_MAX,
    REGISTRATIONS_MAX,
    CALLS_PENDING_MAX,
    INVOCATIONS_PENDING_MAX,
    URI_MAX,
    PAYLOAD_MAX,
    time("limits", "call_timeout", 0, DAY),
    time("limits", "call_timeout_max", 1, Duration::from_secs(30 * 24 * 60 * 60)),
    integer("limits", "logins_pending_max", 1_000_000),
    integer("limits", "realms_max", 100_000),
    integer("limits", "retained_max", 10_000_000),
    key("limits", "retained_memory_max", Kind::Size { min: 1 << 20, max: 1 << 40 }),
    key("limits", "retained_event_max", Kind::Size { min: 64, max: 32 << 10 }),
    time("limits", "retained_ttl", 0, Duration::from_secs(365 * 24 * 60 * 60)),
    key("limits", "history_memory_max", Kind::Size { min: 1 << 20, max: 1 << 40 }),
    key("limits", "history_event_max", Kind::Size { min: 64, max: 128 << 10 }),
    time("timeouts", "login", 10, HOUR),
    time("timeouts", "ping_interval", 10, DAY),
    time("timeouts", "ping_timeout", 10, HOUR),
    time("timeouts", "drain", 0, HOUR),
    integer("http", "transports_max", 1_000_000),
    time("http", "poll_timeout", 100, HOUR),
    time("http", "idle_timeout", 1_000, DAY),
    time("http", "ping_interval", 100, HOUR),
    time("http", "keep_alive", 100, HOUR),
    key("http", "accepted", Kind::Choice(&["202", "204"])),
    key("slow_receiver", "policy", Kind::Choice(&["drop_oldest", "close"])),
    key("slow_receiver", "queue_max", Kind::Size { min: 1 << 10, max: 1 << 30 }),
    key("slow_receiver", "reply_reserve", Kind::Size { min: 512, max: 1 << 30 }),
    time("resume", "window", 0, DAY),
    integer("resume", "sessions_max", 10_000_000),
    key("resume", "buffer_max", Kind::Size { min: 1 << 10, max: 1 << 30 }),
    key("io", "ring_entries", Kind::Power { min: 64, max: 32_768 }),
    key("io", "receive_buffers", Kind::Power { min: 16, max: 32_768 }),
    key("io", "receive_buffer_size", Kind::Size { min: 1 << 10, max: 1 << 20 }),
    key("io", "mesh_entries", Kind::Integer { min: 2, max: 65_536 }),
    key("io", "send_buffer", Kind::Size { min: 0, max: 64 << 20 }),
    time("io", "short_wait", 0, Duration::from_secs(1)),
    time("snapshot", "min_interval", 1, Duration::from_secs(60)),
    integer("snapshot", "fold_min", 10_000_000),
    key("realm", "name", Kind::Uri),
    key("realm", "degree", Kind::Choice(&["compatible", "strict"])),
    key("realm", "uri", Kind::Choice(&["loose", "strict"])),
    key("realm", "anonymous", Kind::Choice(&["nobody", "loopback", "anybody"])),
    key("realm", "features_off", Kind::Features { auto: false }),
    narrower("realm", SUBSCRIPTIONS_MAX),
    narrower("realm", REGISTRATIONS_MAX),
    narrower("realm", CALLS_PENDING_MAX),
    narrower("realm", INVOCATIONS_PENDING_MAX),
    narrower("realm", URI_MAX),
    narrower("realm", PAYLOAD_MAX),
    key("realm.role", "name", Kind::Role),
    key("realm.role", "features_off", Kind::Features { auto: true }),
    narrower("realm.role", SUBSCRIPTIONS_MAX),
    narrower("realm.role", REGISTRATIONS_MAX),
    narrower("realm.role", CALLS_PENDING_MAX),
    narrower("realm.role", INVOCATIONS_PENDING_MAX),
    narrower("realm.role", URI_MAX),
    narrower("realm.role", PAYLOAD_MAX),
    key("history", "realm", Kind::Uri),
    key("history", "uri", Kind::Text { min: 0, max: URI_BYTES_MAX }),
    key("history", "match", Kind::Choice(&["exact", "prefix", "wildcard"])),
    integer("history", "events_max", HISTORY_EVENTS_MAX as u64),
    key("history", "bytes_max", Kind::Size { min: HISTORY_BYTES.0, max: HISTORY_BYTES.1 }),
    time("history", "age_max", 0, Duration::from_secs(365 * 24 * 60 * 60)),
    key("cluster", "discovery", Kind::Choice(&["none", "static", "dns", "multicast", "kubernetes"])),
    key("cluster", "env", Kind::Text { min: 1, max: CLUSTER_TEXT_BYTES_MAX }),
    key("cluster", "address", Kind::Address),
    key("cluster", "advertise", Kind::Advertised),
    key("cluster", "key_file", Kind::File),
    key("cluster", "seeds", Kind::Hosts { count_max: SEEDS_MAX }),
    key("cluster", "dns", Kind::Text { min: 0, max: DNS_TEXT_BYTES_MAX }),
    key("cluster", "multicast", Kind::Address),
    key("cluster", "kubernetes", Kind::Text { min: 0, max: DNS_TEXT_BYTES_MAX }),
    key("cluster", "failure_domain", Kind::Text { min: 0, max: CLUSTER_TEXT_BYTES_MAX }),
    time("cluster", "probe_interval", 20, Duration::from_secs(60)),
    time("cluster", "probe_timeout", 10, Duration::from_secs(30)),
    time("cluster", "suspicion", 100, Duration::from_secs(600)),
    time("cluster", "forget_after", 60_000, Duration::from_secs(30 * 24 * 60 * 60)),
    time("cluster", "join_wait", 0, HOUR),
    time("cluster", "lazy_tick_period", 10, HOUR),
    time("cluster", "exchange_tick_period", 100, DAY),
    key("aae", "enabled", Kind::Boolean),
    time("aae", "exchange_timer", 100, DAY),
    time("aae", "data_exchange_timeout", 1_000, HOUR),
    key("aae", "exchange_rate", Kind::Size { min: 128 << 10, max: 1 << 40 }),
    time("aae", "hashtree_timer", 100, DAY),
    time("aae", "hashtree_ttl", 60_000, Duration::from_secs(365 * 24 * 60 * 60)),
    time("aae", "tombstone_grace", 1_000, Duration::from_secs(365 * 24 * 60 * 60)),
    key("relay", "address", Kind::Listen),
    key("relay", "advertise", Kind::Advertised),
    key("relay", "connections", Kind::Integer { min: 1, max: 16 }),
    key("relay", "queue_max", Kind::Size { min: 1 << 20, max: 1 << 30 }),
    key("relay", "tls", Kind::Boolean),
    key("relay", "tls_certificate", Kind::File),
    key("relay", "tls_key", Kind::File),
    key("relay", "tls_authorities", Kind::File),
    key("log", "level", Kind::Choice(&["error", "warn", "info", "debug", "trace"])),
];

/// The tables; those that may be written more than once are `[[name]]`.
pub(super) const SECTIONS: &[(&str, bool)] = &[
    ("control", false),
    ("memory", false),
    ("listener", true),
    ("admin", false),
    ("limits", false),
    ("timeouts", false),
    ("http", false),
    ("slow_receiver", false),
    ("resume", false),
    ("io", false),
    ("snapshot", false),
    ("realm", true),
    ("realm.role", true),
    ("history", true),
    ("cluster", false),
    ("aae", false),
    ("relay", false),
    ("log", false),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::BOUNDS;

    #[test]
    fn every_key_stands_in_a_section_and_only_once() {
        for (index, key) in SCHEMA.iter().enumerate() {
            assert!(
                key.section.is_empty() || SECTIONS.iter().any(|(name, _)| *name == key.section),
                "{key} has no section"
            );
            assert!(
                SCHEMA[index + 1..].iter().all(|other| other.to_string() != key.to_string()),
                "{key} twice"
            );
        }
    }

    #[test]
    fn what_sessions_are_bound_by_is_narrowed_in_realms_and_roles() {
        let names = BOUNDS.map(|(_, name)| name);
        for section in ["realm", "realm.role"] {
            let keys = SCHEMA.iter().filter(|key| key.section == section);
            let bounds = keys.filter(|key| key.kind.range().is_some()).map(|key| key.name);
            assert_eq!(bounds.collect::<Vec<_>>(), names);
        }
    }

    #[test]
    fn bounds_are_shown_with_their_unit() {
        let shown = |section, name| Key::find(section, name).expect("a key").kind.to_string();
        assert_eq!(shown("listener", "message_max"), "a size from 512B to 16MiB, such as \"64KiB\"");
        assert_eq!(shown("timeouts", "ping_interval"), "a time from 10ms to 1d, such as \"10s\"");
        assert_eq!(shown("io", "short_wait"), "a time from 0s to 1s, such as \"10s\"");
        assert_eq!(shown("realm", "anonymous"), "\"nobody\", \"loopback\" or \"anybody\"");
    }
}
