//! The control plane: realms, claims, snapshots, the admin endpoint. Its own process, never on a request's path.
//!
//! ```text
//! data plane ◀─ link ─▶ io::driver ▶ node { catalog, registry, publish }      admin ▶ io::driver
//!                                                                                └──▶ store
//! other nodes ◀─ UDP ─▶ io::udp ▶ swim
//! ```
//! `catalog`, `registry`, `publish`, `supervise`, `node`, `swim`, `replica` and the record forms under `store` are sans-IO:
//! events and `now` go in, outputs come out. `io` moves bytes. `store::env` alone names heed. The control plane never names the data
//! plane's crate: they meet in [`common::link`].

pub mod admin;
pub mod banner;
pub mod boot;
pub mod broadcast;
pub mod catalog;
pub mod claims;
pub mod cluster;
pub mod discovery;
pub mod fold;
pub mod io;
pub mod membership;
pub mod node;
pub mod operator;
pub mod peers;
pub mod placement;
pub mod publish;
pub mod registry;
pub mod remote;
pub mod replica;
pub mod retained;
pub mod store;
pub mod supervise;
pub mod swim;
pub mod table;

use boot::{Boot, DataLaunch};
use common::config::Config;
use io::child::Stop;
use std::error::Error;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

/// Runs the control plane of a node until SIGTERM or SIGINT. With `supervise` it starts the data plane, keeps it
/// running and drains it at the end.
pub fn run(config: Config, config_path: Option<PathBuf>, supervise: bool) -> ExitCode {
    start_log(&config.log.level);
    let (_stop, stop) = watch::channel(Stop::No);
    let data = if supervise {
        match DataLaunch::own(&config, config_path.as_deref()) {
            Ok(launch) => Some(launch),
            Err(error) => return failed(&error),
        }
    } else {
        None
    };
    match boot::run(Boot { config, data, stop }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

fn failed(error: &dyn Error) -> ExitCode {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    eprintln!("signalbox: {text}");
    ExitCode::FAILURE
}

/// Logs go to standard error. `level` was checked with the rest of the configuration.
fn start_log(level: &str) {
    let filter = EnvFilter::try_new(level).unwrap_or_else(|_| EnvFilter::new("info"));
    let colours = std::io::stderr().is_terminal();
    let log =
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr);
    // A log that runs already is as good.
    let _ = log.try_init();
}
