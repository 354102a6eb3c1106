//! How near the router comes to the least that moving its bytes costs.
//!
//! `cargo bench --bench relay_limit` measures, side by side in one run and with the same load program, the release
//! router and two relays that move the same bytes without looking at them:
//! - `bare`: one thread, one ring, nothing else: the roof;
//! - `driven`: the same relay in place of a shard, in the data plane's own loop: what the loop itself costs.
//!
//! The loads and the ratios asked for are in [`compare`]. `-- --rounds N`, `-- --seconds S` and `-- --only WORD`
//! narrow it; without `--bench` it only checks that both
//! relays relay; `-- --serve bare|driven ADDRESS CPU` starts one relay and nothing else.
//!
//! A connection to a relay begins with eight bytes: `RLY1`, its role (0 sink, 1 source, 2 both), a zero, and its
//! group, 16 bits little endian. What the sources of a group send goes to all sinks of the group, in order; what a
//! `both` sends goes to the other `both` of its group. Nothing is acknowledged, and what nobody receives is dropped.

mod bare;
mod compare;
mod driven;
mod hub;

use std::error::Error;
use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("relay_limit: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<(), Box<dyn Error>> {
    match arguments {
        [serve, kind, address, cpu] if serve == "--serve" => {
            let (address, cpu): (SocketAddr, u32) = (address.parse()?, cpu.parse()?);
            // A relay does not outlive an interrupted run.
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
            match kind.as_str() {
                "bare" => Ok(bare::relay(TcpListener::bind(address)?, cpu, None)?),
                "driven" => Ok(driven::serve(address, cpu)?),
                _ => Err("--serve bare|driven ADDRESS CPU".into()),
            }
        }
        // `cargo test`; `cargo bench` says so.
        [] => compare::smoke(),
        _ => compare::run(&compare::Options::parse(arguments)?),
    }
}
