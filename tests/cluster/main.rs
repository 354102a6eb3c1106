//! Real nodes in network namespaces: faults of machines, networks and disks, and what must hold afterwards.
//!
//! ```text
//!   node 1 (namespace, eth0 10.77.k.1) ──┐
//!   node 2 (namespace, eth0 10.77.k.2) ──┼── bridge of cluster k (10.77.k.254): the clients, in the lab's namespace
//!   node 3 (namespace, eth0 10.77.k.3) ──┘
//! ```
//! The program starts itself again inside new pid, mount and network namespaces: when it ends, however it ends, the
//! kernel ends all it started and takes away its interfaces and mounts. Data folders of dead runs are removed at the next.
//!
//! `cargo test --test cluster [PART OF A NAME...]`; `-- --list` lists. It needs root, `ip`, `nft`, `mount` and `unshare`;
//! where they are missing every scenario is skipped, said and counted. Variables:
//!
//! | `SIGNALBOX_CLUSTER_JOBS` | scenarios at a time (3) |
//! | `SIGNALBOX_CLUSTER_LONG` | 1: also the scenarios that are marked long |
//! | `SIGNALBOX_CLUSTER_REQUIRED` | 1: what would be skipped for want of a tool fails |
//! | `AUTOBAHN_PYTHON` | a Python with Autobahn; without it, the one that `tests/interop/run.sh install` makes |

mod cluster;
mod lab;
mod load;
mod net;
mod node;
mod record;
mod scenarios;
#[path = "../support/mod.rs"]
mod support;

use std::process::ExitCode;

fn main() -> ExitCode {
    let options = lab::Options::read(std::env::args().skip(1));
    if options.list {
        for scenario in scenarios::ALL {
            println!("{}: test", scenario.name);
        }
        return ExitCode::SUCCESS;
    }
    if lab::is_inside() { lab::run(&options) } else { lab::enter() }
}
