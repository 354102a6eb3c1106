//! The command line, and the configuration it names.

use clap::{Args, Parser, Subcommand, ValueEnum};
use common::config::{Config, ConfigError, Cores, RealmConfig};
use common::history::History;
use common::ids::{Match, SHARDS_MAX};
use common::rules::Rules;
use common::snapshot::Anonymous;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// A masterless, clustered application router: WAMP clients call procedures and publish events.
#[derive(Debug, Parser)]
#[command(name = "signalbox", version, after_help = EXAMPLES, disable_help_subcommand = true)]
pub struct Cli {
    #[command(flatten)]
    pub options: Options,
    /// Without a command: run.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Options of every command.
#[derive(Debug, Args)]
pub struct Options {
    /// Configuration file; without one, the embedded default (see `config default`)
    #[arg(short, long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// Instead of the configuration's data_dir
    #[arg(long, value_name = "DIR", global = true)]
    pub data_dir: Option<PathBuf>,
    /// Instead of the configuration's cores: "auto", or CPUs such as "0-3,6"
    #[arg(long, value_name = "CPUS", global = true, value_parser = cores)]
    pub cores: Option<Cores>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a node: the control plane, which starts the data plane and starts it again when it dies
    Run,
    /// Run the control plane alone
    Control,
    /// Run the data plane alone; it waits for the control plane's routing table
    Data,
    /// Check a configuration file, or print the default
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Show what the running node does
    Status,
    /// Add, list or remove realms of the running node
    Realm {
        #[command(subcommand)]
        command: RealmCommand,
    },
    /// Show the cluster and its nodes, join another node, leave, or forget a node that is gone
    Cluster {
        #[command(subcommand)]
        command: ClusterCommand,
    },
    /// Print the version
    Version,
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Name the first mistake of a file: line, key, what was found and what is allowed
    Check { file: Option<PathBuf> },
    /// Print the default configuration, every key explained
    Default,
}

#[derive(Debug, Subcommand)]
pub enum RealmCommand {
    /// Add a realm, or change one that was added before; it is usable at once and kept over restarts
    Add(RealmArgs),
    /// List the realms of the configuration and those that were added
    List,
    /// Remove a realm that was added; its sessions are closed
    Remove { name: String },
}

#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// List the nodes as the running node sees them
    Members,
    /// Show how far the running node has joined, and whether nodes hold the same
    Status,
    /// List the objects that two nodes wrote without knowing of each other's value, and which value is used
    Conflicts,
    /// Ask a node for membership until it answers; for seeds that are in no configuration
    Join {
        /// Host and port of cluster.address there, such as 10.0.0.1:18083
        #[arg(value_name = "HOST:PORT", value_parser = target)]
        target: String,
    },
    /// Say good-bye to the other nodes; the running node serves on by itself
    Leave,
    /// Take a node that is down or has left off the running node's list
    Forget {
        /// The node's id, as `members` shows it
        node: uuid::Uuid,
    },
}

#[derive(Debug, Args)]
pub struct RealmArgs {
    /// A WAMP URI, not below "wamp."
    #[arg(value_parser = realm_name)]
    name: String,
    /// Enforce every rule of the specification instead of accepting what real clients send
    #[arg(long)]
    strict: bool,
    /// Allow only 0-9, a-z and _ in the components of URIs
    #[arg(long)]
    uri_strict: bool,
    /// Who may join without credentials
    #[arg(long, value_enum, default_value_t = Who::Loopback)]
    anonymous: Who,
    /// TOML file of what a [[realm]] of the configuration says of features_off, bounds and [[role]]
    #[arg(long, value_name = "FILE", value_parser = rules)]
    rules: Option<Rules>,
    /// Keep the events of a topic for wamp.subscription.get_events; "prefix:" or "wildcard:" before it makes it a pattern.
    /// May be given more than once
    #[arg(long, value_name = "TOPIC", value_parser = history)]
    history: Vec<History>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Who {
    Nobody,
    /// Clients on this machine
    Loopback,
    Anybody,
}

impl From<RealmArgs> for RealmConfig {
    fn from(args: RealmArgs) -> Self {
        let anonymous = match args.anonymous {
            Who::Nobody => Anonymous::Nobody,
            Who::Loopback => Anonymous::Loopback,
            Who::Anybody => Anonymous::Anybody,
        };
        let rules = args.rules.unwrap_or_default();
        let (name, strict, uri_strict) = (args.name, args.strict, args.uri_strict);
        Self { name, strict, uri_strict, anonymous, rules, histories: args.history }
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{file}: {source}")]
    Read { file: String, source: io::Error },
    #[error("{file}: longer than {CONFIG_BYTES_MAX} bytes")]
    TooLong { file: String },
    #[error("--cores {cores} needs a memory.max of at least {least} bytes")]
    Memory { cores: Cores, least: u64 },
    #[error(transparent)]
    Invalid(#[from] ConfigError),
}

impl Options {
    /// The configuration: the file or the embedded default, with what the command line overrides.
    pub fn load(&self) -> Result<Config, Error> {
        let mut config = match &self.config {
            Some(file) => Config::parse(&read(file)?, file)?,
            None => Config::default(),
        };
        if let Some(data_dir) = &self.data_dir {
            config.data_dir.clone_from(data_dir);
        }
        if let Some(cores) = &self.cores {
            config.cores.clone_from(cores);
        }
        let least = config.memory_min();
        if config.memory.max < least {
            return Err(Error::Memory { cores: config.cores, least });
        }
        Ok(config)
    }

    /// What the configuration is called in messages.
    pub fn name(&self) -> String {
        self.config.as_ref().map_or("the embedded default".to_owned(), |file| file.display().to_string())
    }
}

fn read(file: &Path) -> Result<String, Error> {
    let name = || file.display().to_string();
    let mut text = String::new();
    File::open(file)
        .and_then(|open| open.take(CONFIG_BYTES_MAX + 1).read_to_string(&mut text))
        .map_err(|source| Error::Read { file: name(), source })?;
    if text.len() as u64 > CONFIG_BYTES_MAX {
        return Err(Error::TooLong { file: name() });
    }
    Ok(text)
}

fn cores(text: &str) -> Result<Cores, String> {
    match text.parse()? {
        Cores::List(cpus) if cpus.len() > SHARDS_MAX => Err(format!("allowed: at most {SHARDS_MAX} CPUs")),
        cores => Ok(cores),
    }
}

fn target(text: &str) -> Result<String, String> {
    let is_target = text
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0));
    if is_target { Ok(text.to_owned()) } else { Err("allowed: HOST:PORT, such as 10.0.0.1:18083".to_owned()) }
}

fn rules(file: &str) -> Result<Rules, String> {
    let file = Path::new(file);
    let text = read(file).map_err(|error| error.to_string())?;
    Rules::parse(&text, file).map_err(|error| error.to_string())
}

fn realm_name(text: &str) -> Result<String, String> {
    if RealmConfig::is_valid_name(text) {
        return Ok(text.to_owned());
    }
    Err("allowed: a WAMP URI, such as com.example.app, not below \"wamp.\"".to_owned())
}

fn history(text: &str) -> Result<History, String> {
    let (policy, uri) = match text.split_once(':') {
        Some(("exact", uri)) => (Match::Exact, uri),
        Some(("prefix", uri)) => (Match::Prefix, uri),
        Some(("wildcard", uri)) => (Match::Wildcard, uri),
        _ => (Match::Exact, text),
    };
    let mut histories = [History::of(policy, uri)];
    History::check_all(&mut histories).map_err(|error| error.to_string())?;
    let [history] = histories;
    Ok(history)
}

/// Longest configuration file; ten thousand realms fit.
const CONFIG_BYTES_MAX: u64 = 4 << 20;

const EXAMPLES: &str = "\
Examples:
  signalbox                                  run a node on loopback with the embedded default
  signalbox --cores 0-3 --data-dir /srv/sb   the same on four cores, its data elsewhere
  signalbox config default > signalbox.toml  write the default configuration to a file and edit it
  signalbox config check signalbox.toml      find mistakes in it
  signalbox run --config signalbox.toml      run a node with it
  signalbox status                           what the running node does
  signalbox realm add com.example.app        open a realm without a restart
  signalbox cluster members                  the nodes of the cluster as the running node sees them

Signals: SIGTERM and SIGINT drain (clients get GOODBYE) and exit.";

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use common::rules::Bound;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_may_follow_the_command() {
        let cli = Cli::try_parse_from(["signalbox", "data", "--config", "a.toml", "--cores", "0-1"]).unwrap();
        assert!(matches!(cli.command, Some(Command::Data)));
        assert_eq!(cli.options.config, Some(PathBuf::from("a.toml")));
        assert_eq!(cli.options.cores, Some(Cores::List(vec![0, 1])));
    }

    #[test]
    fn wrong_arguments_are_refused() {
        for wrong in [
            &["signalbox", "--cores", "x"][..],
            &["signalbox", "--cores", "0-128"],
            &["signalbox", "realm", "add", "wamp.x"],
            &["signalbox", "realm", "add", "a", "--anonymous", "all"],
            &["signalbox", "realm", "add", "a", "--rules", "/nonexistent/rules.toml"],
            &["signalbox", "realm"],
            &["signalbox", "cluster", "join", "10.0.0.1"],
            &["signalbox", "cluster", "forget", "x"],
            &["signalbox", "fly"],
        ] {
            assert!(Cli::try_parse_from(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn rules_of_a_realm_come_from_a_file() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut file, b"uri_max = 64\n[[role]]\nname = \"a\"\nfeatures_off = []")
            .unwrap();
        let path = file.path().to_str().unwrap();
        let cli = Cli::try_parse_from(["signalbox", "realm", "add", "a", "--rules", path]).unwrap();
        let Some(Command::Realm { command: RealmCommand::Add(args) }) = cli.command else {
            panic!("another")
        };
        let rules = RealmConfig::from(args).rules;
        assert_eq!((rules.bounds.get(Bound::Uri), rules.roles()[0].name.as_str()), (64, "a"));
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let options = Options { config: Some("/nonexistent/a.toml".into()), data_dir: None, cores: None };
        let error = options.load().unwrap_err().to_string();
        assert!(error.starts_with("/nonexistent/a.toml: "), "{error}");
    }

    #[test]
    fn the_command_line_overrides_the_file() {
        let options =
            Options { config: None, data_dir: Some("/x".into()), cores: Some(Cores::List(vec![3])) };
        let config = options.load().unwrap();
        assert_eq!(config.data_dir, PathBuf::from("/x"));
        assert_eq!(config.cores, Cores::List(vec![3]));
    }

    #[test]
    fn cores_on_the_command_line_need_the_memory_of_their_shards() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut file, b"memory.max = \"16MiB\"").unwrap();
        let options = |cores: &str| Options {
            config: Some(file.path().to_owned()),
            data_dir: None,
            cores: Some(cores.parse().unwrap()),
        };
        assert!(options("0-2").load().is_ok());
        let error = options("0-3").load().unwrap_err().to_string();
        assert_eq!(error, "--cores 0-3 needs a memory.max of at least 20971520 bytes");
    }
}
