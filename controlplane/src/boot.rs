//! Starts the control plane and stops it.
//!
//! ```text
//! data folder ─▶ lock ─▶ CPUs ─▶ store ─▶ link socket, admin address ─▶ data plane ─▶ signal ─▶ drain ─▶ exit
//! ```

use crate::admin::{Admin, Facts};
use crate::banner::{Surroundings, banner};
use crate::catalog::{Catalog, RealmError};
use crate::cluster::{self, Machine, Plane, RelayAddress};
use crate::io::child::{DataCommand, Keeper, KeeperEnd, Stop, own_program};
use crate::io::cluster::Links;
use crate::io::driver::{Driver, wall_us};
use crate::io::lock::{CONTROL_LOCK, DATA_LOCK, Lock};
use crate::io::packet::Listener;
use crate::io::udp::Cluster;
use crate::io::{link, lock};
use crate::membership::{self, Membership, MembershipError};
use crate::node::{Node, NodeConfig};
use crate::placement::{self, control_cpus, shard_cpus};
use crate::publish::Policy;
use crate::store::record::Kind;
use crate::store::{self, Loaded, OpenError, Opened, Store};
use common::config::{Config, Cores, Discovery};
use common::ids::{NodeId, SnapshotVersion};
use std::ffi::OsString;
use std::io;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::{error, info, warn};

/// Why the control plane does not start, or has ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    #[error("cannot use the data folder {}", path.display())]
    Folder {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("another control plane runs on this data folder")]
    Taken(#[source] io::Error),
    #[error("cannot run on CPUs {cpus}")]
    Cpus {
        cpus: String,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Store(#[from] OpenError),
    #[error("the configuration has a realm that cannot be")]
    Realm(#[from] RealmError),
    #[error("cannot start the runtime")]
    Runtime(#[source] io::Error),
    #[error("cannot listen on {}", path.display())]
    Link {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("admin.address: cannot listen on {address}")]
    Admin {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Membership(#[from] MembershipError),
    #[error("the data plane cannot be started; its own message says why")]
    GaveUp,
}

/// What a control plane is started from.
#[derive(Debug)]
pub struct Boot {
    pub config: Config,
    /// Starts the data plane and keeps it running; none: it comes by itself.
    pub data: Option<DataLaunch>,
    /// Ends the control plane, beside SIGTERM and SIGINT.
    pub stop: watch::Receiver<Stop>,
}

/// How the data plane is launched.
#[derive(Clone, Debug)]
pub struct DataLaunch {
    pub program: PathBuf,
    pub arguments: Vec<OsString>,
}

impl DataLaunch {
    /// This executable as `data`, with the same configuration file and the values the command line may have changed.
    pub fn own(config: &Config, config_path: Option<&Path>) -> io::Result<Self> {
        let mut arguments: Vec<OsString> = vec!["data".into()];
        if let Some(path) = config_path {
            arguments.extend(["--config".into(), path.into()]);
        }
        let cores = match &config.cores {
            Cores::Auto => "auto".to_owned(),
            Cores::List(cpus) => cpus.iter().map(u32::to_string).collect::<Vec<_>>().join(","),
        };
        arguments.extend([
            "--data-dir".into(),
            config.data_dir.clone().into(),
            "--cores".into(),
            cores.into(),
        ]);
        Ok(Self { program: own_program()?, arguments })
    }
}

/// Runs until it is told to stop.
pub fn run(boot: Boot) -> Result<(), BootError> {
    let started = Instant::now();
    let data_dir = &boot.config.data_dir;
    let folder = |source| BootError::Folder { path: data_dir.clone(), source };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(data_dir).map_err(folder)?;
    let _lock = match Lock::take(&data_dir.join(CONTROL_LOCK)) {
        Ok(lock) => lock,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(BootError::Taken(error)),
        Err(error) => return Err(folder(error)),
    };
    let allowed = placement::allowed().map_err(folder)?;
    let shards = shard_cpus(&boot.config.cores, &allowed);
    let own = control_cpus(&boot.config.control.cpus, &shards, &allowed);
    placement::bind_all(&own).map_err(|source| BootError::Cpus { cpus: placement::show(&own), source })?;

    let settings = store::Settings::of(&boot.config);
    let Opened { store, thread, loaded } = Store::open(&data_dir.join("store"), store::MAP_BYTES, &settings)?;
    let Loaded { objects, versions_reserved, .. } = loaded;
    let mut catalog = Catalog::new(&boot.config.realms, boot.config.limits.realms_max)?;
    load(&mut catalog, &objects);
    let retained = objects.into_iter().filter(|object| object.kind == Kind::Retained).collect();
    let plan = Plan { started, allowed, shards, own, catalog, retained, versions_reserved };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(BootError::Runtime)?;
    let result = runtime.block_on(serve(boot, plan, store));
    runtime.shutdown_timeout(SHUTDOWN_MAX);
    drop(thread);
    result
}

/// What is known before the runtime runs.
struct Plan {
    started: Instant,
    allowed: Vec<u32>,
    shards: Vec<u32>,
    own: Vec<u32>,
    catalog: Catalog,
    /// What is stored of retained events.
    retained: Vec<store::record::Object>,
    versions_reserved: u64,
}

async fn serve(boot: Boot, plan: Plan, store: Store) -> Result<(), BootError> {
    let Boot { config, data, stop } = boot;
    let stop = forward_signals(stop)?;
    let data_dir = config.data_dir.clone();
    let path = data_dir.join(link::SOCKET);
    let listener =
        Listener::bind(&data_dir, link::SOCKET).map_err(|source| BootError::Link { path, source })?;
    let address = config.admin.address;
    let admin_error = |source| BootError::Admin { address, source };
    let admin_listener = TcpListener::bind(address).await.map_err(admin_error)?;
    let address = admin_listener.local_addr().map_err(admin_error)?;
    note_admin(&data_dir, address);

    let version_last = reserve_versions(&store, plan.versions_reserved).await;
    let epoch = epoch(version_last, uuid::Uuid::new_v4().as_u64_pair().0);
    let membership = membership::start(&config.cluster, store.actor(), epoch).await?;
    let node = Node::new(NodeConfig {
        pid: std::process::id(),
        catalog: plan.catalog,
        policy: Policy {
            min_interval: config.snapshot.min_interval,
            fold_min: config.snapshot.fold_min.into(),
        },
        version_last,
    });
    let settings = cluster::Settings {
        node: NodeId(store.actor().node),
        epoch,
        env: config.cluster.env.clone(),
        clustered: membership.is_some(),
        join_wait: config.cluster.join_wait,
        lazy_tick: config.cluster.lazy_tick_period,
        edge_tick: config.cluster.exchange_tick_period,
        aae: config.aae.clone(),
        seed: uuid::Uuid::new_v4().as_u64_pair().0,
    };
    let relay = RelayAddress { advertise: config.relay.advertise, ip: config.cluster.advertised().ip() };
    let machine = Machine::new(Instant::now(), settings);
    let (cluster, links) = match membership {
        Some(Membership { cluster, peers, events }) => {
            let links = Links::new(peers, events, cluster.members());
            (Some(cluster), Some(links))
        }
        None => (None, None),
    };
    let around = surroundings(&config, &plan.shards, &plan.own, address);
    let on_serving = Box::new(move |node: &Node| print_banner(node, &around));
    let mut plane = Plane::new(node, machine, relay);
    plane.load_retained(plan.retained.iter());
    drop(plan.retained);
    let (driver, handle, link_state) = Driver::new(plane, store.clone(), links, on_serving);
    let facts = Facts {
        pid: std::process::id(),
        started: plan.started,
        address,
        data_dir: data_dir.clone(),
        shard_cpus: plan.shards,
        control_cpus: plan.own,
        supervise: data.is_some(),
    };
    tokio::spawn(driver.run());
    tokio::spawn(Admin::new(handle.clone(), store.clone(), cluster.clone(), facts).serve(admin_listener));
    tokio::spawn(keep_versions(store, version_last.0));
    let events = handle.events();
    tokio::spawn(async move {
        let error = link::serve(listener, events).await;
        error!(%error, "the link socket is gone");
    });
    info!(%address, "control plane started");

    let Some(launch) = data else {
        // The data plane goes on, and so do its routes: the others take this for a crash that a restart soon ends.
        let mut stop = stop;
        let _ = stop.wait_for(|stop| *stop >= Stop::Drain).await;
        return Ok(());
    };
    let command = DataCommand {
        program: launch.program,
        arguments: launch.arguments,
        cpus: plan.allowed,
        lock: data_dir.join(DATA_LOCK),
        drain_max: config.timeouts.drain + DRAIN_MARGIN,
    };
    match Keeper::new(command, link_state, stop, handle).run().await {
        KeeperEnd::Stopped => {
            say_good_bye(cluster).await;
            Ok(())
        }
        KeeperEnd::GaveUp => Err(BootError::GaveUp),
    }
}

/// Tells the others that this node is gone. While the data plane drained its routes went with its sessions.
async fn say_good_bye(cluster: Option<Cluster>) {
    if let Some(cluster) = cluster {
        let _ = tokio::time::timeout(FAREWELL_MAX, cluster.leave()).await;
    }
}

/// Realms of the store; those that cannot be are left out and reported.
fn load(catalog: &mut Catalog, objects: &[store::record::Object]) {
    for object in objects.iter().filter(|object| object.kind == Kind::Realm) {
        let Some(bytes) = object.resolved().and_then(|value| value.bytes) else { continue };
        match store::realm::decode(&object.key, &bytes) {
            Ok(realm) => {
                if let Err(reason) = catalog.load(realm) {
                    warn!(realm = object.key, %reason, "a stored realm is not used");
                }
            }
            Err(reason) => error!(realm = object.key, %reason, "a stored realm cannot be read"),
        }
    }
}

/// The number of this life of the control plane. It is greater than that of any earlier one, because versions are reserved further
/// ahead than `random` reaches. Two starts from copies of one disk, or from a disk too full to reserve anything, have the
/// same `version_last`; other nodes must still tell them apart.
pub fn epoch(version_last: SnapshotVersion, random: u64) -> u64 {
    version_last.0 + random % (VERSIONS_AHEAD_US / 10)
}

/// The greatest version that may have been used; those after it are reserved in the store for a while.
async fn reserve_versions(store: &Store, reserved: u64) -> SnapshotVersion {
    let last = wall_us().max(reserved);
    if let Err(error) = store.reserve_versions(last.saturating_add(VERSIONS_AHEAD_US)).await {
        warn!(%error, "cannot reserve snapshot versions; they follow the clock");
    }
    SnapshotVersion(last)
}

/// Moves the reservation along with the clock.
async fn keep_versions(store: Store, mut last: u64) {
    loop {
        tokio::time::sleep(Duration::from_micros(VERSIONS_AHEAD_US / 2)).await;
        last = wall_us().max(last.saturating_add(VERSIONS_AHEAD_US / 2));
        if let Err(error) = store.reserve_versions(last.saturating_add(VERSIONS_AHEAD_US)).await {
            warn!(%error, "cannot reserve snapshot versions");
        }
    }
}

/// The first SIGTERM or SIGINT asks for a drain, the second for haste.
fn forward_signals(mut asked: watch::Receiver<Stop>) -> Result<watch::Receiver<Stop>, BootError> {
    let mut term = signal(SignalKind::terminate()).map_err(BootError::Runtime)?;
    let mut int = signal(SignalKind::interrupt()).map_err(BootError::Runtime)?;
    let (sender, stop) = watch::channel(*asked.borrow_and_update());
    tokio::spawn(async move {
        let mut open = true;
        loop {
            let next = tokio::select! {
                _ = term.recv() => None,
                _ = int.recv() => None,
                changed = asked.changed(), if open => {
                    // Once its sender is gone nobody else can ask any more; signals still can.
                    open = changed.is_ok();
                    Some(*asked.borrow_and_update())
                }
            };
            sender.send_modify(|stop| {
                let more = if *stop == Stop::No { Stop::Drain } else { Stop::Now };
                *stop = (*stop).max(next.unwrap_or(more));
            });
        }
    });
    Ok(stop)
}

fn surroundings(config: &Config, shards: &[u32], own: &[u32], admin: SocketAddr) -> Surroundings {
    let listeners = config.listeners.iter();
    Surroundings {
        shard_cpus: shards.to_vec(),
        control_cpus: own.to_vec(),
        admin,
        data_dir: config.data_dir.clone(),
        listeners: listeners
            .map(|listener| (listener.transport.name().to_owned(), listener.address, listener.path.clone()))
            .collect(),
        pid: std::process::id(),
        cluster: (config.cluster.discovery != Discovery::None)
            .then(|| (config.cluster.env.clone(), config.cluster.advertised())),
    }
}

fn print_banner(node: &Node, around: &Surroundings) {
    let Some(data) = node.data_plane() else { return };
    let text = banner(node, data, around);
    let mut out = io::stdout().lock();
    // Nobody may be reading it.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Where `admin.address` with port 0 ended up, for the operator commands.
fn note_admin(data_dir: &Path, address: SocketAddr) {
    let path = data_dir.join(lock::ADMIN_FILE);
    if let Err(error) = std::fs::write(&path, format!("{address}\n")) {
        warn!(%error, path = %path.display(), "cannot note the admin address");
    }
}

/// How much longer than `timeouts.drain` the data plane may take to end.
const DRAIN_MARGIN: Duration = Duration::from_secs(3);
/// How long a good-bye to the cluster may take.
const FAREWELL_MAX: Duration = Duration::from_secs(1);
/// How long work under way may take to end.
const SHUTDOWN_MAX: Duration = Duration::from_millis(500);
/// Snapshot versions, which are microseconds, are reserved this far ahead.
pub const VERSIONS_AHEAD_US: u64 = 600_000_000;
