//! A document into a [`Config`], section by section.

use super::reader::Source;
use super::{
    Admin, Config, ConfigError, Control, Http, Io, Limits, Log, Memory, SlowPolicy, SlowReceiver,
    SnapshotConfig, Timeouts, check, cluster, listener, realm,
};
use std::path::{Path, PathBuf};

/// Where nothing else is written, retained events and histories each take at most one part in so many of `memory.max`.
const RETAINED_SHARE: u64 = 4;

/// See [`Config::parse`].
pub(super) fn config(text: &str, file: &Path) -> Result<Config, ConfigError> {
    let source = Source::parse(text, file)?;
    let default = Config::default();
    let root = source.root()?;
    let memory = memory(&source, default.memory)?;
    let limits = limits(&source, default.limits, memory.max)?;
    let data_dir = default.data_dir.to_str().expect("the default folder is ASCII");
    let config = Config {
        data_dir: PathBuf::from(root.string("data_dir", data_dir, is_path)?),
        cores: root.cores("cores", default.cores)?,
        control: control(&source, default.control)?,
        memory,
        listeners: listener::all(&source, default.listeners)?,
        admin: admin(&source, default.admin)?,
        limits,
        timeouts: timeouts(&source, default.timeouts)?,
        http: http(&source, default.http)?,
        slow_receiver: slow_receiver(&source, default.slow_receiver)?,
        resume: super::resume::read(&source, default.resume)?,
        io: io(&source, default.io)?,
        snapshot: snapshot(&source, default.snapshot)?,
        realms: realm::realms(&source, default.realms)?,
        cluster: cluster::cluster(&source, default.cluster)?,
        aae: cluster::aae(&source, default.aae)?,
        relay: cluster::relay(&source, default.relay)?,
        log: log(&source, default.log)?,
    };
    check::config(&config, &source)?;
    Ok(config)
}

fn control(source: &Source<'_>, default: Control) -> Result<Control, ConfigError> {
    Ok(Control { cpus: source.section("control")?.cores("cpus", default.cpus)? })
}

fn memory(source: &Source<'_>, default: Memory) -> Result<Memory, ConfigError> {
    let section = source.section("memory")?;
    Ok(Memory { max: section.u64("max", default.max)?, numa: section.boolean("numa", default.numa)? })
}

fn http(source: &Source<'_>, default: Http) -> Result<Http, ConfigError> {
    let section = source.section("http")?;
    Ok(Http {
        transports_max: section.u32("transports_max", default.transports_max)?,
        poll_timeout: section.time("poll_timeout", default.poll_timeout)?,
        idle_timeout: section.time("idle_timeout", default.idle_timeout)?,
        ping_interval: section.time("ping_interval", default.ping_interval)?,
        keep_alive: section.time("keep_alive", default.keep_alive)?,
        accepts_without_content: section.choice("accepted", 0)? == 1,
    })
}

fn admin(source: &Source<'_>, default: Admin) -> Result<Admin, ConfigError> {
    Ok(Admin { address: source.section("admin")?.address("address", default.address)? })
}

fn limits(source: &Source<'_>, default: Limits, memory_max: u64) -> Result<Limits, ConfigError> {
    let section = source.section("limits")?;
    // A node of little memory retains little, unless somebody says otherwise.
    let retained_memory_max = default.retained_memory_max.min(memory_max / RETAINED_SHARE);
    let history_memory_max = default.history_memory_max.min(memory_max / RETAINED_SHARE);
    Ok(Limits {
        subscriptions_max: section.u32("subscriptions_max", default.subscriptions_max)?,
        registrations_max: section.u32("registrations_max", default.registrations_max)?,
        calls_pending_max: section.u32("calls_pending_max", default.calls_pending_max)?,
        invocations_pending_max: section.u32("invocations_pending_max", default.invocations_pending_max)?,
        call_timeout: section.time("call_timeout", default.call_timeout)?,
        call_timeout_max: section.time("call_timeout_max", default.call_timeout_max)?,
        uri_max: section.u32("uri_max", default.uri_max)?,
        payload_max: section.u32("payload_max", default.payload_max)?,
        logins_pending_max: section.u32("logins_pending_max", default.logins_pending_max)?,
        realms_max: section.u32("realms_max", default.realms_max)?,
        retained_max: section.u32("retained_max", default.retained_max)?,
        retained_memory_max: section.u64("retained_memory_max", retained_memory_max)?,
        retained_event_max: section.u32("retained_event_max", default.retained_event_max)?,
        retained_ttl: section.time("retained_ttl", default.retained_ttl)?,
        history_memory_max: section.u64("history_memory_max", history_memory_max)?,
        history_event_max: section.u32("history_event_max", default.history_event_max)?,
    })
}

fn timeouts(source: &Source<'_>, default: Timeouts) -> Result<Timeouts, ConfigError> {
    let section = source.section("timeouts")?;
    Ok(Timeouts {
        login: section.time("login", default.login)?,
        ping_interval: section.time("ping_interval", default.ping_interval)?,
        ping_timeout: section.time("ping_timeout", default.ping_timeout)?,
        drain: section.time("drain", default.drain)?,
    })
}

fn slow_receiver(source: &Source<'_>, default: SlowReceiver) -> Result<SlowReceiver, ConfigError> {
    const POLICIES: [SlowPolicy; 2] = [SlowPolicy::DropOldest, SlowPolicy::Close];
    let section = source.section("slow_receiver")?;
    let policy = POLICIES.iter().position(|policy| *policy == default.policy).unwrap_or_default();
    Ok(SlowReceiver {
        policy: POLICIES[section.choice("policy", policy)?],
        queue_max: section.u32("queue_max", default.queue_max)?,
        reply_reserve: section.u32("reply_reserve", default.reply_reserve)?,
    })
}

fn io(source: &Source<'_>, default: Io) -> Result<Io, ConfigError> {
    let section = source.section("io")?;
    Ok(Io {
        ring_entries: section.u32("ring_entries", default.ring_entries)?,
        receive_buffers: section.u32("receive_buffers", default.receive_buffers)?,
        receive_buffer_size: section.u32("receive_buffer_size", default.receive_buffer_size)?,
        mesh_entries: section.u32("mesh_entries", default.mesh_entries)?,
        send_buffer: section.u32("send_buffer", default.send_buffer)?,
        short_wait: section.time("short_wait", default.short_wait)?,
    })
}

fn snapshot(source: &Source<'_>, default: SnapshotConfig) -> Result<SnapshotConfig, ConfigError> {
    let section = source.section("snapshot")?;
    Ok(SnapshotConfig {
        min_interval: section.time("min_interval", default.min_interval)?,
        fold_min: section.u32("fold_min", default.fold_min)?,
    })
}

fn log(source: &Source<'_>, default: Log) -> Result<Log, ConfigError> {
    Ok(Log { level: LEVELS[source.section("log")?.choice("level", level(&default.level))?].to_owned() })
}

fn level(name: &str) -> usize {
    LEVELS.iter().position(|level| *level == name).unwrap_or_default()
}

const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];

fn is_path(text: &str) -> bool {
    !text.is_empty() && !text.contains('\0')
}

#[cfg(test)]
mod tests {
    use super::super::{Cores, DEFAULT_TEXT, RealmConfig, SCHEMA, Transport};
    use super::*;
    use crate::history::History;
    use crate::ids::Match;
    use crate::rules::Rules;
    use crate::snapshot::Anonymous;
    use proptest::prelude::*;
    use std::time::Duration;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("test.toml"))
    }

    /// What begins a section.
    fn open(section: &str) -> String {
        match section {
            "" => String::new(),
            "listener" | "realm" | "history" => format!("[[{section}]]\n"),
            "realm.role" => "[[realm]]\nname = \"a\"\n[[realm.role]]\n".to_owned(),
            _ => format!("[{section}]\n"),
        }
    }

    /// The error of `text`, as it is shown.
    fn refused(text: &str) -> String {
        parse(text).expect_err(text).to_string()
    }

    #[test]
    fn an_empty_file_is_the_default() {
        assert_eq!(parse(""), Ok(Config::default()));
    }

    #[test]
    fn the_default_text_is_the_default() {
        assert_eq!(parse(DEFAULT_TEXT), Ok(Config::default()));
    }

    #[test]
    fn the_default_text_explains_every_key_and_tells_its_bounds() {
        for key in SCHEMA {
            let section = match key.section {
                "" => DEFAULT_TEXT,
                name => DEFAULT_TEXT.split_once(&format!("[{name}]")).expect(name).1,
            };
            // An example may be there instead of the key.
            let at = |head: &str| section.split_once(&format!("\n{head}{} = ", key.name));
            let comment = at("").or_else(|| at("# ")).expect(key.name).0;
            let comment: Vec<&str> = comment.lines().rev().take_while(|line| line.starts_with('#')).collect();
            assert!(!comment.is_empty(), "{key} is not explained");
            let Some(range) = key.kind.range() else { continue };
            assert!(
                comment.iter().any(|line| line.contains(&range)),
                "{key} does not say {range}: {comment:?}"
            );
        }
    }

    #[test]
    fn values_come_where_they_belong() {
        let text = r#"
            data_dir = "/var/lib/signalbox"
            cores = "6,0-3"
            control.cpus = "4"
            memory = { max = "2GiB", numa = false }
            [[listener]]
            transport = "rawsocket"
            address = "[::]:9000"
            connections_max = 5
            message_max = 65536
            backlog = 7
            [[listener]]
            address = "0.0.0.0:0"
            path = "/wamp"
            [admin]
            address = "127.0.0.1:9001"
            [limits]
            subscriptions_max = 1
            registrations_max = 2
            calls_pending_max = 3
            invocations_pending_max = 4
            call_timeout = "20s"
            call_timeout_max = "1h"
            uri_max = 100
            payload_max = "1KiB"
            logins_pending_max = 5
            realms_max = 6
            retained_max = 7
            retained_memory_max = "2MiB"
            retained_event_max = "1KiB"
            retained_ttl = "1m"
            history_memory_max = "3MiB"
            history_event_max = "2KiB"
            [timeouts]
            login = "1s"
            ping_interval = "2m"
            ping_timeout = "3s"
            drain = "0s"
            [slow_receiver]
            policy = "close"
            queue_max = "8MiB"
            reply_reserve = "2MiB"
            [io]
            ring_entries = 128
            receive_buffers = 32
            receive_buffer_size = "4KiB"
            mesh_entries = 9
            send_buffer = "1MiB"
            short_wait = "50us"
            [snapshot]
            min_interval = "5ms"
            fold_min = 10
            [[realm]]
            name = "com.example"
            degree = "strict"
            uri = "strict"
            anonymous = "nobody"
            [[realm]]
            name = "other"
            [[history]]
            realm = "other"
            uri = "com..log"
            match = "wildcard"
            events_max = 3
            bytes_max = "4KiB"
            age_max = "5s"
            [log]
            level = "trace"
        "#;
        let config = parse(text).expect("a good configuration");
        assert_eq!(config.data_dir, PathBuf::from("/var/lib/signalbox"));
        assert_eq!(config.cores, Cores::List(vec![0, 1, 2, 3, 6]));
        assert_eq!(config.control.cpus, Cores::List(vec![4]));
        assert_eq!(config.memory, Memory { max: 2 << 30, numa: false });
        assert_eq!(config.listeners[0].transport, Transport::RawSocket);
        assert_eq!(config.listeners[0].address.to_string(), "[::]:9000");
        assert_eq!(config.listeners[0].path, "");
        assert_eq!(
            (
                config.listeners[0].connections_max,
                config.listeners[0].message_max,
                config.listeners[0].backlog
            ),
            (5, 65_536, 7)
        );
        assert_eq!((config.listeners[1].path.as_str(), config.listeners[1].address.port()), ("/wamp", 0));
        assert_eq!(config.admin.address.to_string(), "127.0.0.1:9001");
        let limits = Limits {
            subscriptions_max: 1,
            registrations_max: 2,
            calls_pending_max: 3,
            invocations_pending_max: 4,
            call_timeout: Duration::from_secs(20),
            call_timeout_max: Duration::from_secs(3_600),
            uri_max: 100,
            payload_max: 1 << 10,
            logins_pending_max: 5,
            realms_max: 6,
            retained_max: 7,
            retained_memory_max: 2 << 20,
            retained_event_max: 1 << 10,
            retained_ttl: Duration::from_secs(60),
            history_memory_max: 3 << 20,
            history_event_max: 2 << 10,
        };
        assert_eq!(config.limits, limits);
        let timeouts = Timeouts {
            login: Duration::from_secs(1),
            ping_interval: Duration::from_secs(120),
            ping_timeout: Duration::from_secs(3),
            drain: Duration::ZERO,
        };
        assert_eq!(config.timeouts, timeouts);
        let slow = SlowReceiver { policy: SlowPolicy::Close, queue_max: 8 << 20, reply_reserve: 2 << 20 };
        assert_eq!(config.slow_receiver, slow);
        let io = Io {
            ring_entries: 128,
            receive_buffers: 32,
            receive_buffer_size: 4_096,
            mesh_entries: 9,
            send_buffer: 1 << 20,
            short_wait: Duration::from_micros(50),
        };
        assert_eq!(config.io, io);
        assert_eq!(config.snapshot, SnapshotConfig { min_interval: Duration::from_millis(5), fold_min: 10 });
        let strict = RealmConfig {
            name: "com.example".to_owned(),
            strict: true,
            uri_strict: true,
            anonymous: Anonymous::Nobody,
            rules: Rules::default(),
            histories: vec![],
        };
        let log = History {
            policy: Match::Wildcard,
            uri: "com..log".into(),
            events_max: 3,
            bytes_max: 4 << 10,
            age_max_ms: 5_000,
        };
        let other = RealmConfig { histories: vec![log], ..RealmConfig::named("other") };
        assert_eq!(config.realms, [strict, other]);
        assert_eq!(config.log.level, "trace");
    }

    /// A date is a value of no key.
    #[test]
    fn every_key_is_read() {
        for key in SCHEMA {
            let needed = match (key.section, key.name) {
                ("realm" | "realm.role", "name") | ("history", "realm") => "",
                ("realm" | "realm.role", _) => {
                    "name = \"b\"
"
                }
                ("history", "uri") => {
                    "realm = \"realm1\"
"
                }
                ("history", _) => {
                    "realm = \"realm1\"
uri = \"a\"
"
                }
                _ => "",
            };
            let error = parse(&format!("{}{needed}{} = 1979-05-27", open(key.section), key.name));
            assert_eq!(error.map_err(|error| error.key), Err(key.to_string()));
        }
    }

    #[test]
    fn errors_name_file_line_key_found_and_allowed() {
        let error = parse("\n[limits]\nrealms_max = 0\n").unwrap_err();
        assert_eq!(error.file, "test.toml");
        assert_eq!(error.line, 3);
        assert_eq!(error.key, "limits.realms_max");
        assert_eq!(error.found, "0");
        assert_eq!(error.allowed, "an integer from 1 to 100000");
        assert_eq!(
            error.to_string(),
            "test.toml:3: limits.realms_max: found 0, allowed: an integer from 1 to 100000"
        );
    }

    #[test]
    fn unknown_keys_and_tables_are_refused_with_the_nearest_name() {
        assert_eq!(
            refused("[memory]\nmax = 4000000000\nnuma_ = true"),
            "test.toml:3: memory.numa_: found an unknown key, allowed: numa (the nearest), max"
        );
        assert!(refused("[limit]\n").starts_with(
            "test.toml:1: limit: found an unknown key, allowed: limits (the nearest), data_dir, cores, "
        ));
        assert!(refused("[[listener]]\n[[listener]]\nport = 1").starts_with("test.toml:3: listener.port: "));
        assert!(refused("x.y = 1").starts_with("test.toml:1: x: found an unknown key"));
    }

    #[test]
    fn values_of_a_wrong_kind_are_refused() {
        for (text, start) in [
            ("cores = 2", "cores: found 2, allowed: \"auto\" or CPUs"),
            ("cores = \"0-1024\"", "cores: found \"0-1024\", "),
            ("cores = \"0-128\"", "cores: found \"0-128\", "),
            ("data_dir = \"\"", "data_dir: found \"\", "),
            ("memory.max = \"1KiB\"", "memory.max: found \"1KiB\", allowed: a size from 16MiB"),
            ("memory.max = -1", "memory.max: found -1, "),
            ("memory.numa = 1", "memory.numa: found 1, allowed: true or false"),
            ("timeouts.login = 10", "timeouts.login: found 10, allowed: a time from 10ms to 1h"),
            ("timeouts.ping_timeout = \"0s\"", "timeouts.ping_timeout: found \"0s\", "),
            ("io.ring_entries = 1000", "io.ring_entries: found 1000, allowed: a power of two"),
            ("io.receive_buffers = 48", "io.receive_buffers: found 48, allowed: a power of two"),
            (
                "slow_receiver.policy = \"drop\"",
                "slow_receiver.policy: found \"drop\", allowed: \"drop_oldest\"",
            ),
            ("admin.address = \"localhost\"", "admin.address: found \"localhost\", allowed: an IP address"),
            ("listener = [{path = \"ws\"}]", "listener.path: found \"ws\", "),
            ("listener = [{path = \"/a?b\"}]", "listener.path: found \"/a?b\", "),
            ("listener = [{message_max = \"17MiB\"}]", "listener.message_max: found \"17MiB\", "),
            ("listener = []", "listener: found 0 listeners, "),
            ("listener = 3", "listener: found 3, allowed: tables, [[listener]]"),
            ("listener = [3]", "listener: found array, allowed: tables"),
            ("limits = 3", "limits: found 3, allowed: a table, [limits]"),
            ("[listener]", "listener: found table, allowed: tables, [[listener]]"),
            ("[[limits]]", "limits: found array of tables, allowed: a table"),
            ("realm = [{}]", "realm.name: found no name, "),
            ("realm = [{name = \"a..b\"}]", "realm.name: found \"a..b\", allowed: a WAMP URI"),
            ("realm = [{name = \"wamp.x\"}]", "realm.name: found \"wamp.x\", "),
            ("history = [{uri = \"a\"}]", "history.realm: found \"\", "),
            ("history = [{realm = \"other\", uri = \"a\"}]", "history.realm: found \"other\", "),
            ("history = [{realm = \"realm1\"}]", "history.uri: found no uri, "),
            ("history = [{realm = \"realm1\", uri = \"wamp.a\"}]", "history.uri: found \"wamp.a\" is "),
            ("history = [{realm = \"realm1\", uri = \"a\", match = \"x\"}]", "history.match: found \"x\", "),
            ("log.level = \"loud\"", "log.level: found \"loud\", "),
        ] {
            let error = refused(text);
            assert!(error.starts_with(&format!("test.toml:1: {start}")), "{text}: {error}");
        }
    }

    #[test]
    fn syntax_errors_name_the_line() {
        assert!(refused("[memory]\nmax = ").starts_with("test.toml:2: syntax: found "));
        assert!(refused("cores = \"0\"\ncores = \"1\"").starts_with("test.toml:2: syntax: found "));
        assert!(refused(&format!("cores = {}", "[".repeat(10_000))).starts_with("test.toml:1: syntax: "));
    }

    #[test]
    fn a_raw_socket_listener_has_no_path() {
        let text = "[[listener]]\ntransport = \"rawsocket\"\npath = \"/ws\"";
        assert!(refused(text).starts_with("test.toml:3: listener.path: "));
    }

    #[test]
    fn a_node_of_little_memory_retains_little() {
        let memory = |config: Config| (config.limits.retained_memory_max, config.limits.history_memory_max);
        let retained = |text: &str| parse(text).map(memory);
        assert_eq!(retained("[memory]\nmax = \"64MiB\""), Ok((16 << 20, 16 << 20)));
        assert_eq!(retained("[memory]\nmax = \"64GiB\""), Ok((256 << 20, 256 << 20)));
    }

    #[test]
    fn a_config_may_name_no_realm() {
        assert_eq!(parse("realm = []").map(|config| config.realms), Ok(vec![]));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "(\\PC|\n){0,200}") {
            let _ = parse(&text);
        }

        #[test]
        fn any_value_of_any_key_is_read_or_refused(row in 0..SCHEMA.len(), value in "\"\\PC{0,20}\"|-?[0-9]{1,20}|true|\\[\\]|\\{\\}|1979-05-27|nan") {
            let key = SCHEMA[row];
            let _ = parse(&format!("{}{} = {value}", open(key.section), key.name));
        }
    }
}
