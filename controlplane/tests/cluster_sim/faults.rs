//! What is done to the sites: by operators, by clients of their data planes, and by bad luck.

use crate::data::Data;
use crate::oracle;
use crate::world::{World, ms};
use common::config::RealmConfig;
use common::history::History;
use common::ids::{Match, RealmId, RouteKind};
use common::share::Invoke;
use common::snapshot::Anonymous;
use controlplane::claims::RouteKey;
use controlplane::node::LinkId;
use controlplane::store::memory::Memory;

impl World {
    fn any(&mut self) -> usize {
        self.rng.usize(..self.sites.len())
    }

    pub fn act(&mut self) -> Result<(), String> {
        let at = self.any();
        match self.rng.u8(0..100) {
            0..25 => self.write(at)?,
            25..45 => self.claim(at)?,
            45..55 => self.share(at)?,
            55..59 => self.retain(at)?,
            59..62 => {
                self.crash(at);
                if self.rng.u8(0..4) == 0 {
                    self.restart_data(at)?;
                }
            }
            62..64 => self.restart_data(at)?,
            64..70 => {
                self.network.cut(&mut self.rng);
                self.tally.cuts += 1;
            }
            70..78 => self.network.cuts.clear(),
            78..82 => self.break_link(),
            82..84 => self.stall_link(),
            84..87 => self.lose_disk(at)?,
            87..89 => self.sites[at].backup = self.sites[at].disk.copy(),
            89..92 => self.sites[at].clock_ms = self.rng.i64(-CLOCK_MS_MAX..CLOCK_MS_MAX),
            92..95 => self.sites[at].paused_until = Some(self.now + ms(self.rng.u64(500..8_000))),
            95..97 => {
                let full = self.rng.bool().then_some(1);
                self.sites[at].disk.disk().full_at = full;
            }
            _ => self.leave(at)?,
        }
        // Whoever is down comes back some time.
        if self.rng.u8(0..4) == 0 {
            let down = (0..self.sites.len()).find(|at| self.sites[*at].process.is_none());
            down.map_or(Ok(()), |at| self.start_site(at))?;
        }
        Ok(())
    }

    /// An operator puts or removes a realm.
    fn write(&mut self, at: usize) -> Result<(), String> {
        let name = oracle::name(self.rng.usize(..oracle::KEYS));
        let remove = self.rng.u8(0..3) == 0;
        let config = RealmConfig {
            strict: self.rng.bool(),
            uri_strict: self.rng.bool(),
            anonymous: if self.rng.bool() { Anonymous::Anybody } else { Anonymous::Nobody },
            histories: (0..self.rng.u32(..3)).map(|n| History::of(Match::Exact, &format!("a{n}"))).collect(),
            ..RealmConfig::named(&name)
        };
        let Some(process) = &mut self.sites[at].process else { return Ok(()) };
        let token = if remove { process.plane.realm_remove(&name) } else { process.plane.realm_put(&config) };
        if let Ok(token) = token {
            process.puts.insert(token, None);
        }
        self.drain(at)
    }

    fn claim(&mut self, at: usize) -> Result<(), String> {
        for _ in 0..self.rng.usize(1..4) {
            let n = self.rng.u8(0..12);
            let procedure = self.rng.bool();
            let kind = if procedure { RouteKind::Procedure } else { RouteKind::Topic };
            let uri = if procedure { format!("procedure{}", n % 4) } else { format!("topic{n}") };
            let policy = if n.is_multiple_of(5) { Match::Prefix } else { Match::Exact };
            let key = RouteKey { realm: RealmId::of("realm1"), uri: uri.into(), kind, policy };
            let shard = self.rng.usize(..2);
            let data = &mut self.sites[at].data;
            let elsewhere = data.effective().keys().any(|(_, other)| *other == key);
            let held = data.claims().contains_key(&key);
            // A procedure that is seen elsewhere, or on another shard, is refused to a client.
            let refused = procedure && (elsewhere || held) && !(held && data.alive);
            if !data.alive || refused {
                continue;
            }
            let frame =
                if procedure && held { data.drop_everywhere(&key) } else { data.toggle(shard, key.clone()) };
            self.note_claims(at);
            self.up(at, frame)?;
        }
        Ok(())
    }

    /// Callees that share a procedure come and go.
    fn share(&mut self, at: usize) -> Result<(), String> {
        for _ in 0..self.rng.usize(1..4) {
            let uri = format!("shared{}", self.rng.u8(0..3)).into();
            let (kind, policy) = (RouteKind::Procedure, Match::Exact);
            let key = RouteKey { realm: RealmId::of("realm1"), uri, kind, policy };
            let invoke = if self.rng.u8(0..4) == 0 { Invoke::First } else { Invoke::RoundRobin };
            let (forced, leaves) = (self.rng.u8(0..6) == 0, self.rng.u8(0..3) == 0);
            let data = &mut self.sites[at].data;
            let known = data.effective();
            let mut elsewhere = known.iter().filter(|((_, other), _)| *other == key);
            // Callees that are seen elsewhere and share otherwise keep a client out.
            let refused = elsewhere.any(|(_, share)| share.is_none_or(|share| share.invoke != invoke));
            if !data.alive || refused && !forced && !leaves {
                continue;
            }
            let frame = data.share(&key, invoke, forced && !leaves, leaves);
            self.tally.shared += 1;
            self.note_claims(at);
            self.up(at, frame)?;
        }
        Ok(())
    }

    /// A client publishes an event that its topic retains.
    fn retain(&mut self, at: usize) -> Result<(), String> {
        if !self.sites[at].data.alive {
            return Ok(());
        }
        let topic = format!("retained{}", self.rng.u8(0..4));
        let bytes = (self.published.len() as u64).to_le_bytes().to_vec();
        self.published.insert(bytes.clone());
        self.tally.retained += 1;
        let frame = self.sites[at].data.retain(&topic, bytes);
        self.up(at, frame)
    }

    /// What the site's data plane claims is known to be claimed by its node.
    fn note_claims(&mut self, at: usize) {
        let site = &self.sites[at];
        if let Some(process) = &site.process {
            self.claimed.entry(process.node).or_default().extend(site.data.claims().into_keys());
        }
    }

    pub fn start_site(&mut self, at: usize) -> Result<(), String> {
        self.serials += 1;
        let (serial, seed) = (self.serials, self.rng.u64(..));
        let (now, ms) = (self.now, self.ms());
        let site = &mut self.sites[at];
        site.tell_time(ms);
        site.paused_until = None;
        site.start(now, at, serial, seed)?;
        self.note_claims(at);
        self.link_data(at)?;
        self.drain(at)
    }

    /// The control plane dies; its data plane goes on.
    fn crash(&mut self, at: usize) {
        if let Some(process) = self.sites[at].process.take() {
            self.tally.crashes += 1;
            self.tally.revoked += process.plane.cluster().claims().counts().revoked;
            self.sites[at].data.unlinked();
        }
    }

    /// A data plane dies, and mostly there is another one at once.
    fn restart_data(&mut self, at: usize) -> Result<(), String> {
        self.epochs += 1;
        let (now, ms) = (self.now, self.ms());
        let site = &mut self.sites[at];
        site.tell_time(ms);
        let wall_ms = site.wall_us() / 1_000;
        if let (Some(link), Some(process)) = (site.data.link, &mut site.process) {
            process.plane.closed(now, wall_ms, link);
        }
        let shards = self.rng.usize(1..3);
        self.sites[at].data = Data::new(self.epochs, shards);
        self.sites[at].data.alive = self.rng.u8(0..4) > 0;
        self.link_data(at)?;
        self.drain(at)
    }

    fn link_data(&mut self, at: usize) -> Result<(), String> {
        self.serials += 1;
        let link = LinkId(self.serials);
        let site = &mut self.sites[at];
        if !site.data.alive || site.process.is_none() {
            return Ok(());
        }
        let hello = site.data.hello(link);
        self.up(at, Some(hello))
    }

    fn leave(&mut self, at: usize) -> Result<(), String> {
        if let Some(process) = &mut self.sites[at].process {
            process.swim.leave(self.now);
            self.drain(at)?;
            self.crash(at);
        }
        Ok(())
    }

    fn break_link(&mut self) {
        let links = self.network.links.len();
        if links > 0 {
            let pair = *self.network.links.keys().nth(self.rng.usize(..links)).expect("within bounds");
            self.unlink(pair);
        }
    }

    fn stall_link(&mut self) {
        let until = self.now + ms(self.rng.u64(100..6_000));
        let pick = self.rng.usize(..self.network.links.len().max(1));
        if let Some(link) = self.network.links.values_mut().nth(pick) {
            link.stalled_until = Some(until);
        }
    }

    /// The disk is wiped, or an old copy takes its place. Either begins a new epoch.
    fn lose_disk(&mut self, at: usize) -> Result<(), String> {
        if self.disks_lost >= DISKS_LOST_MAX {
            return Ok(());
        }
        self.disks_lost += 1;
        self.crash(at);
        self.network
            .links
            .keys()
            .copied()
            .filter(|(a, b)| *a == at || *b == at)
            .collect::<Vec<_>>()
            .into_iter()
            .for_each(|pair| self.unlink(pair));
        let wiped = self.rng.bool();
        let site = &mut self.sites[at];
        site.disk = if wiped { Memory::default() } else { site.backup.copy() };
        site.disk.disk().inode = self.disks_lost as u64;
        (site.backup, site.disk_lost) = (site.disk.copy(), true);
        let disks: Vec<&Memory> = self.sites.iter().map(|site| &site.disk).collect();
        self.tally.lost_with_disks += self.oracle.disk_lost(at, &disks);
        // What only that disk held, its data plane goes on giving out until the topic retains another event: a known limit.
        let held: Vec<_> = disks.iter().map(|disk| oracle::retained(disk)).collect();
        let is_held =
            |topic: &String, bytes: &Vec<u8>| held.iter().any(|held| held.get(topic) == Some(bytes));
        self.sites[at]
            .data
            .retained
            .retain(|topic, (bytes, unconfirmed)| *unconfirmed || is_held(topic, bytes));
        if wiped {
            self.tally.wiped += 1;
            // Another node: clients of the old one are gone.
            self.restart_data(at)?;
        } else {
            self.tally.restored += 1;
        }
        self.start_site(at)
    }

    /// The store gave up what it held: it was put back and may hold what others have forgotten. What nobody else knows is set aside.
    pub fn gave_up(&mut self, at: usize) -> Result<(), String> {
        if !self.sites[at].disk_lost {
            return Err(format!("the store of site {at} gives up what it holds for no reason"));
        }
        let disks: Vec<&Memory> = self.sites.iter().map(|site| &site.disk).collect();
        self.tally.lost_with_disks += self.oracle.disk_lost(at, &disks);
        self.tally.given_up += 1;
        Ok(())
    }

    pub fn lift_faults(&mut self) -> Result<(), String> {
        self.network.cuts.clear();
        (self.network.loss, self.network.delay_ms_max) = (0.0, 5);
        for link in self.network.links.values_mut() {
            link.stalled_until = None;
        }
        for at in 0..self.sites.len() {
            let site = &mut self.sites[at];
            (site.clock_ms, site.paused_until) = (0, None);
            site.disk.disk().full_at = None;
            // A new data plane that was not started by its control plane finds it by itself.
            if !site.data.alive {
                self.sites[at].data.alive = true;
                self.link_data(at)?;
            }
            if self.sites[at].process.is_none() {
                self.start_site(at)?;
            }
        }
        // Clocks that were ahead are caught up with.
        self.advance(ms(20_000))
    }
}

/// More actors than siblings fit would end in cut values.
const DISKS_LOST_MAX: usize = 2;
/// How far clocks are off.
const CLOCK_MS_MAX: i64 = 20_000;
