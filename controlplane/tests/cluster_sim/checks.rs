//! What must hold at each moment, and once the faults are gone.

use crate::data::Routes;
use crate::oracle;
use crate::site::{Process, Site};
use crate::world::World;
use common::ids::RouteKind;
use common::share::Share;
use controlplane::replica::objects::Objects;
use controlplane::swim::identity::Identity;
use std::collections::BTreeMap;

impl World {
    pub fn check_always(&mut self) -> Result<(), String> {
        let disks: Vec<_> = self.sites.iter().map(|site| site.disk.clone()).collect();
        self.oracle.check(&disks.iter().collect::<Vec<_>>())?;
        for (at, site) in self.sites.iter().enumerate() {
            let phantom = site
                .data
                .told()
                .keys()
                .find(|(node, key)| !self.claimed.get(node).is_some_and(|claimed| claimed.contains(key)));
            if let Some((node, key)) = phantom {
                return Err(format!("site {at} has a route of {node} that nobody claimed: {key:?}"));
            }
        }
        Ok(())
    }

    /// All nodes are ready and agree, and each data plane knows exactly what the others want.
    pub fn check_converged(&mut self) -> Result<(), String> {
        for (at, site) in self.sites.iter().enumerate() {
            let process = site.process.as_ref().ok_or_else(|| format!("site {at} is down"))?;
            process.plane.ready().map_err(|error| format!("site {at} is not ready: {error}"))?;
            site.check_catalog().map_err(|error| format!("site {at}: {error}"))?;
            for (other, process) in self.sites.iter().enumerate().filter(|(other, _)| *other != at) {
                let node = process.process.as_ref().map(|process| process.node);
                if !node.is_some_and(|node| site.process.as_ref().is_some_and(|process| process.sees(node))) {
                    let seen: Vec<_> = process_of(site).map(view).unwrap_or_default();
                    let back = process_of(process).map(view).unwrap_or_default();
                    return Err(format!("site {at} does not see site {other}: {seen:#?} {back:#?}"));
                }
            }
        }
        let disks: Vec<_> = self.sites.iter().map(|site| site.disk.clone()).collect();
        let siblings = self.oracle.check_equal(&disks.iter().collect::<Vec<_>>())?;
        self.tally.siblings = siblings as u64;
        self.check_trees()?;
        self.check_routes()?;
        self.check_retained()
    }

    /// Every data plane holds what its disk says that topics retain. The disks are equal.
    fn check_retained(&self) -> Result<(), String> {
        for (at, site) in self.sites.iter().enumerate() {
            let stored = oracle::retained(&site.disk);
            let held = site.data.retained.iter();
            let held: BTreeMap<_, _> =
                held.map(|(topic, (bytes, _))| (topic.clone(), bytes.clone())).collect();
            if held != stored {
                return Err(format!("data plane {at} retains {held:?} and its store {stored:?}"));
            }
            if let Some((topic, _)) = stored.iter().find(|(_, bytes)| !self.published.contains(*bytes)) {
                return Err(format!("site {at} retains of {topic} what nobody published"));
            }
        }
        Ok(())
    }

    fn check_trees(&self) -> Result<(), String> {
        let mut processes = self.sites.iter().filter_map(|site| site.process.as_ref());
        let first = processes.next().ok_or("there are no sites")?;
        for (at, process) in processes.enumerate() {
            if Objects::tree(&process.worker) != Objects::tree(&first.worker) {
                return Err(format!("the tree of site {} differs", at + 1));
            }
            if process.plane.cluster().claims().digest() != first.plane.cluster().claims().digest() {
                let maps = |process: &Process| {
                    let owners = process.plane.cluster().claims().owners();
                    owners.filter(|owner| owner.live).map(|owner| format!("{owner:?}")).collect::<Vec<_>>()
                };
                let (one, other) = (maps(first), maps(process));
                return Err(format!("the claims of sites 0 and {} differ: {one:#?} {other:#?}", at + 1));
            }
        }
        Ok(())
    }

    fn check_routes(&self) -> Result<(), String> {
        let mut holders = BTreeMap::<_, (usize, Option<Share>)>::new();
        let mut all = Routes::new();
        for (at, site) in self.sites.iter().enumerate() {
            let Some(process) = &site.process else { continue };
            for (key, share) in site.data.claims() {
                if key.kind == RouteKind::Procedure
                    && let Some((other, its)) = holders.insert(key.clone(), (at, share))
                    && !share.is_some_and(|share| its.is_some_and(|its| share.shares_with(&its)))
                {
                    return Err(format!("sites {other} and {at} both hold {}: {its:?} {share:?}", key.uri));
                }
                all.insert((process.node, key), share);
            }
        }
        for (at, site) in self.sites.iter().enumerate() {
            let Some(process) = &site.process else { continue };
            let others = all.iter().filter(|((node, _), _)| *node != process.node);
            let wanted: Routes = others.map(|(route, share)| (route.clone(), *share)).collect();
            let found = site.data.effective();
            if found != wanted {
                let lacks = |these: &Routes, those: &Routes| -> Routes {
                    let lacking = these.iter().filter(|(route, share)| those.get(*route) != Some(*share));
                    lacking.map(|(route, share)| (route.clone(), *share)).collect()
                };
                let (missing, phantom) = (lacks(&wanted, &found), lacks(&found, &wanted));
                return Err(format!("data plane {at} lacks {missing:?} and has too many {phantom:?}"));
            }
        }
        Ok(())
    }
}

fn process_of(site: &Site) -> Option<&Process> {
    site.process.as_ref()
}

/// What membership says: of the node itself, then of the others.
fn view(process: &Process) -> Vec<String> {
    let own = process.swim.identity();
    let line = |identity: &Identity, state: &str| {
        format!("{} {}.{} {state}", identity.node, identity.epoch, identity.generation)
    };
    let others = process.swim.members().map(|member| line(&member.identity, member.state.name()));
    std::iter::once(line(own, "own")).chain(others).collect()
}

/// Counters that must not move any more.
#[derive(PartialEq, Eq, Debug)]
pub struct Baseline(Vec<(u64, u64, u64)>);

impl Baseline {
    pub fn of(world: &World) -> Self {
        let processes = world.sites.iter().filter_map(|site| site.process.as_ref());
        Self(
            processes
                .map(|process| {
                    let claims = process.plane.cluster().claims().counts();
                    let repaired = process.plane.status(world.now, Default::default()).exchange.repaired;
                    (repaired, claims.changes, claims.gaps + claims.resets)
                })
                .collect(),
        )
    }

    pub fn repaired(&self) -> u64 {
        self.0.iter().map(|(repaired, ..)| repaired).sum()
    }

    pub fn check(&self, world: &World) -> Result<(), String> {
        let now = Self::of(world);
        if now == *self { Ok(()) } else { Err(format!("repairs after convergence: {self:?}, then {now:?}")) }
    }
}
