//! One site: a disk, a clock, a data plane and, unless it has crashed, a whole control plane.

use crate::data::Data;
use crate::oracle;
use common::config::Config;
use common::ids::{NodeId, SnapshotVersion};
use controlplane::boot::{self, VERSIONS_AHEAD_US};
use controlplane::catalog::Catalog;
use controlplane::cluster::{self, Machine, Plane, RelayAddress, StoreTask, Token};
use controlplane::node::{Node, NodeConfig};
use controlplane::publish::Policy;
use controlplane::store;
use controlplane::store::memory::Memory;
use controlplane::store::record::Kind;
use controlplane::store::worker::{Change, Request, Sources, Worker};
use controlplane::swim::identity::{About, Identity};
use controlplane::swim::seal::Keyring;
use controlplane::swim::{self, PROTOCOL, State, Swim};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use uuid::Uuid;

pub struct Site {
    /// What is committed is on it.
    pub disk: Memory,
    /// A copy from earlier.
    pub backup: Memory,
    /// It was wiped or put back once.
    pub disk_lost: bool,
    /// Its clock, milliseconds since 1970, and how far it is off.
    pub wall_ms: Arc<AtomicU64>,
    pub clock_ms: i64,
    pub process: Option<Process>,
    pub data: Data,
    /// It stands still until then; what arrives waits.
    pub paused_until: Option<Instant>,
}

pub struct Process {
    /// Tells processes of a site apart.
    pub serial: u64,
    pub node: NodeId,
    pub swim: Swim,
    pub plane: Plane,
    pub worker: Worker,
    /// What the store has to do, and when it will have done it.
    pub work: VecDeque<(Instant, Token, StoreTask)>,
    /// Writes that are not acknowledged yet, by their number with the oracle once they are stored.
    pub puts: BTreeMap<Token, Option<usize>>,
}

pub fn address(site: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, site as u8 + 1], 18_083))
}

impl Site {
    pub fn new(epoch: u64, shards: usize) -> Self {
        let disk = Memory::default();
        Self {
            backup: disk.copy(),
            disk,
            disk_lost: false,
            wall_ms: Arc::new(AtomicU64::new(WALL_MS)),
            clock_ms: 0,
            process: None,
            data: Data::new(epoch, shards),
            paused_until: None,
        }
    }

    /// Sets the clock; `ms`: since the run began.
    pub fn tell_time(&self, ms: u64) {
        self.wall_ms.store((WALL_MS + ms).saturating_add_signed(self.clock_ms), Relaxed);
    }

    pub fn wall_us(&self) -> u64 {
        self.wall_ms.load(Relaxed) * 1_000
    }

    pub fn is_paused(&self, now: Instant) -> bool {
        self.paused_until.is_some_and(|until| until > now)
    }

    /// Starts the control plane from the disk.
    pub fn start(&mut self, now: Instant, site: usize, serial: u64, seed: u64) -> Result<(), String> {
        let mut config = Config::default();
        if site % 2 == 1 {
            config.aae.exchange_rate = SLOW_RATE;
        }
        let mut rng = fastrand::Rng::with_seed(seed);
        let (worker, loaded) = self.open(&config, rng.u64(..))?;
        let node = NodeId(worker.actor().node);
        let last = self.wall_us().max(loaded.versions_reserved);
        let mut worker = worker;
        let (reply, _) = tokio::sync::oneshot::channel();
        worker.work(vec![Request {
            change: Change::ReserveVersions { up_to: last + VERSIONS_AHEAD_US },
            reply,
        }]);
        let mut catalog =
            Catalog::new(&config.realms, config.limits.realms_max).map_err(|error| error.to_string())?;
        for object in loaded.objects.iter().filter(|object| object.kind == Kind::Realm) {
            let Some(bytes) = object.resolved().and_then(|value| value.bytes) else { continue };
            let realm = store::realm::decode(&object.key, &bytes).map_err(|error| error.to_string())?;
            catalog.load(realm).map_err(|error| error.to_string())?;
        }
        let policy =
            Policy { min_interval: config.snapshot.min_interval, fold_min: config.snapshot.fold_min.into() };
        let version_last = SnapshotVersion(last);
        let epoch = boot::epoch(version_last, rng.u64(..));
        let machine = cluster::Settings {
            node,
            epoch,
            env: "sim".into(),
            clustered: true,
            join_wait: config.cluster.join_wait,
            lazy_tick: config.cluster.lazy_tick_period,
            edge_tick: config.cluster.exchange_tick_period,
            aae: config.aae,
            seed: rng.u64(..),
        };
        let machine = Machine::new(now, machine);
        let relay = RelayAddress { advertise: None, ip: address(site).ip() };
        let swim = Swim::new(now, membership(node, worker.actor().epoch, epoch, site, &mut rng));
        let mut plane =
            Plane::new(Node::new(NodeConfig { pid: 1, catalog, policy, version_last }), machine, relay);
        plane.load_retained(loaded.objects.iter());
        let (work, puts) = (VecDeque::new(), BTreeMap::new());
        self.process = Some(Process { serial, node, swim, plane, worker, work, puts });
        Ok(())
    }

    fn open(&self, config: &Config, seed: u64) -> Result<(Worker, store::Loaded), String> {
        let (wall_ms, mut rng) = (Arc::clone(&self.wall_ms), fastrand::Rng::with_seed(seed));
        let sources = Sources {
            wall_ms: Box::new(move || wall_ms.load(Relaxed)),
            random: Box::new(move || rng.u64(..)),
        };
        let settings = store::Settings::of(config);
        Worker::open(Box::new(self.disk.clone()), self.disk.files(), &settings, sources, Arc::default())
            .map_err(|error| error.to_string())
    }

    /// The realms of the catalog are those of the disk.
    pub fn check_catalog(&self) -> Result<(), String> {
        let Some(process) = &self.process else { return Ok(()) };
        for key in 0..oracle::KEYS {
            let object = oracle::object(&self.disk, key);
            let stored =
                object.and_then(|object| object.resolved()).is_some_and(|value| value.bytes.is_some());
            let name = oracle::name(key);
            if process.plane.node().catalog().contains(common::ids::RealmId::of(&name)) != stored {
                return Err(format!("{name} is stored: {stored}, and the catalog differs"));
            }
        }
        Ok(())
    }
}

impl Process {
    pub fn deadline(&self) -> Option<Instant> {
        let work = self.work.front().map(|(at, ..)| *at);
        [self.swim.deadline(), self.plane.deadline(), work].into_iter().flatten().min()
    }

    /// The next piece of work that the store has done by now.
    pub fn due(&mut self, now: Instant) -> Option<(Token, StoreTask)> {
        self.work.front().filter(|(at, ..)| *at <= now)?;
        self.work.pop_front().map(|(_, token, task)| (token, task))
    }

    pub fn sees(&self, node: NodeId) -> bool {
        let lives = |state| matches!(state, State::Alive | State::Suspect);
        self.swim.members().any(|member| member.identity.node.into_bytes() == node.0 && lives(member.state))
    }
}

fn membership(
    node: NodeId,
    store_epoch: u64,
    epoch: u64,
    site: usize,
    rng: &mut fastrand::Rng,
) -> swim::Settings {
    let about = About { store_epoch, protocol: PROTOCOL, version: "sim".into(), ..About::default() };
    let unknown = Identity::unknown_at(address(site));
    let identity = Identity { node: Uuid::from_bytes(node.0), epoch, about: Arc::new(about), ..unknown };
    swim::Settings {
        identity,
        env: "sim".into(),
        keys: Keyring::parse(KEY).expect("a key"),
        nonce: Uuid::from_u64_pair(rng.u64(..), rng.u64(..)).into_bytes(),
        seed: rng.u64(..),
        seeds: (0..3).map(address).collect(),
        // Slower than the defaults: most of the work of a run would be probes.
        probe_interval: Duration::from_millis(1_000),
        probe_timeout: Duration::from_millis(400),
        suspicion: Duration::from_millis(3_000),
        forget_after: Duration::from_secs(86_400),
    }
}

/// `aae.exchange_rate` of every other site: little enough for exchanges of the few objects there are to wait.
const SLOW_RATE: u64 = 32 << 10;
const KEY: &str = "0101010101010101010101010101010101010101010101010101010101010101";
/// Milliseconds since 1970 when a run begins.
const WALL_MS: u64 = 1_795_000_000_000;
