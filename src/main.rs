//! `signalbox`: parses the command line and the configuration, then calls a plane. No logic of its own.

mod allocator;
mod cli;

use clap::Parser;
use cli::{Cli, ClusterCommand, Command, ConfigCommand, RealmCommand};
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.call() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("signalbox: {error}");
            ExitCode::from(EX_CONFIG)
        }
    }
}

impl Cli {
    fn call(self) -> Result<ExitCode, cli::Error> {
        let options = self.options;
        match self.command.unwrap_or(Command::Run) {
            Command::Run => Ok(controlplane::run(options.load()?, options.config, true)),
            Command::Control => Ok(controlplane::run(options.load()?, options.config, false)),
            Command::Data => Ok(dataplane::run(options.load()?, options.config)),
            Command::Config { command: ConfigCommand::Check { file } } => {
                let options = cli::Options { config: file.or(options.config), ..options };
                options.load()?;
                println!("{}: no mistake found", options.name());
                Ok(ExitCode::SUCCESS)
            }
            Command::Config { command: ConfigCommand::Default } => {
                print!("{}", common::config::DEFAULT_TEXT);
                Ok(ExitCode::SUCCESS)
            }
            Command::Status => Ok(controlplane::operator::status(&options.load()?)),
            Command::Realm { command } => {
                let config = options.load()?;
                Ok(match command {
                    RealmCommand::Add(realm) => controlplane::operator::realm_add(&config, realm.into()),
                    RealmCommand::List => controlplane::operator::realm_list(&config),
                    RealmCommand::Remove { name } => controlplane::operator::realm_remove(&config, &name),
                })
            }
            Command::Cluster { command } => {
                let config = options.load()?;
                Ok(match command {
                    ClusterCommand::Members => controlplane::operator::members(&config),
                    ClusterCommand::Status => controlplane::operator::cluster_status(&config),
                    ClusterCommand::Conflicts => controlplane::operator::conflicts(&config),
                    ClusterCommand::Join { target } => controlplane::operator::join(&config, &target),
                    ClusterCommand::Leave => controlplane::operator::leave(&config),
                    ClusterCommand::Forget { node } => controlplane::operator::forget(&config, node),
                })
            }
            Command::Version => {
                println!("signalbox {}", env!("CARGO_PKG_VERSION"));
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

/// The exit status of a configuration error (sysexits.h), so that a service manager need not try again.
const EX_CONFIG: u8 = 78;
