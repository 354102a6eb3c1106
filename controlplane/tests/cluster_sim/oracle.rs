//! What was written, and what must be left of it.

use controlplane::replica::dvvset::Actor;
use controlplane::retained::Held;
use controlplane::store::memory::Memory;
use controlplane::store::record::{Kind, Object, place};
use std::collections::{BTreeMap, BTreeSet};

pub type History = BTreeMap<Actor, u64>;

/// A write that a disk holds.
pub struct Write {
    pub key: usize,
    pub actor: Actor,
    pub counter: u64,
    /// What it had seen, and so overwrote.
    pub seen: History,
    pub value: Option<Vec<u8>>,
    pub acknowledged: bool,
    /// It was on no other disk when its own was lost.
    pub lost: bool,
}

#[derive(Default)]
pub struct Oracle {
    pub writes: Vec<Write>,
    /// What each site's disk knew of each key when it was looked at last.
    known: BTreeMap<(usize, usize), History>,
}

impl Oracle {
    /// A site's disk was wiped, or an old one has come back; `disks` are those of all sites now. Writes that are on none
    /// are lost, and nobody can help it.
    pub fn disk_lost(&mut self, site: usize, disks: &[&Memory]) -> u64 {
        self.known.retain(|(of, _), _| *of != site);
        let held = held(disks);
        let mut lost = 0;
        for write in self.writes.iter_mut().filter(|write| !write.lost) {
            if !write.is_in(&held) {
                write.lost = true;
                lost += 1;
            }
        }
        lost
    }

    /// What must hold at each moment: nothing acknowledged is missing, nothing is there that nobody wrote, and no disk
    /// forgets.
    pub fn check(&mut self, disks: &[&Memory]) -> Result<(), String> {
        let held = held(disks);
        if let Some(write) =
            self.writes.iter().find(|write| write.acknowledged && !write.lost && !write.is_in(&held))
        {
            return Err(format!("acknowledged write {} of key {} is on no disk", write.counter, write.key));
        }
        for (site, disk) in disks.iter().enumerate() {
            for key in 0..KEYS {
                let Some(object) = object(disk, key) else { continue };
                self.check_values(site, key, &object)?;
                let now = history(&object);
                let before = self.known.insert((site, key), now.clone()).unwrap_or_default();
                if before.iter().any(|(actor, counter)| now.get(actor).is_none_or(|now| now < counter)) {
                    return Err(format!("site {site} forgets writes of key {key}: {before:?} {now:?}"));
                }
            }
        }
        Ok(())
    }

    /// Every disk holds the writes that no later write had seen, and no others.
    pub fn check_equal(&mut self, disks: &[&Memory]) -> Result<usize, String> {
        let held = held(disks);
        // What was taken for lost may have been on its way.
        for write in self.writes.iter_mut() {
            write.lost = !write.is_in(&held);
        }
        let mut siblings = 0;
        for key in 0..KEYS {
            let of_key: Vec<&Write> =
                self.writes.iter().filter(|write| write.key == key && !write.lost).collect();
            let is_seen = |write: &Write| {
                of_key
                    .iter()
                    .any(|other| other.seen.get(&write.actor).is_some_and(|seen| *seen >= write.counter))
            };
            let wanted: BTreeSet<_> = of_key
                .iter()
                .filter(|write| !is_seen(write))
                .map(|write| (write.actor, write.counter, write.value.clone()))
                .collect();
            for (site, disk) in disks.iter().enumerate() {
                let found = object(disk, key).map(|object| values(&object)).unwrap_or_default();
                if found != wanted {
                    return Err(format!("key {key} on site {site}: {found:?} instead of {wanted:?}"));
                }
            }
            siblings += usize::from(wanted.len() > 1);
        }
        Ok(siblings)
    }

    fn check_values(&self, site: usize, key: usize, object: &Object) -> Result<(), String> {
        for (actor, counter, value) in values(object) {
            let written = |write: &&Write| (write.key, write.actor, write.counter) == (key, actor, counter);
            match self.writes.iter().find(written) {
                Some(write) if write.value == value => {}
                _ => return Err(format!("site {site} holds {value:?} of key {key}, which nobody wrote")),
            }
        }
        Ok(())
    }
}

impl Write {
    fn is_in(&self, held: &BTreeMap<usize, History>) -> bool {
        held.get(&self.key)
            .and_then(|history| history.get(&self.actor))
            .is_some_and(|most| *most >= self.counter)
    }
}

/// What all disks know together, by key.
fn held(disks: &[&Memory]) -> BTreeMap<usize, History> {
    let mut held = BTreeMap::<usize, History>::new();
    for key in 0..KEYS {
        let all = held.entry(key).or_default();
        for object in disks.iter().filter_map(|disk| object(disk, key)) {
            for (actor, counter) in history(&object) {
                let most = all.entry(actor).or_default();
                *most = counter.max(*most);
            }
        }
    }
    held
}

/// The values that compete, by their dots.
fn values(object: &Object) -> BTreeSet<(Actor, u64, Option<Vec<u8>>)> {
    let entries = object.clock.entries().iter();
    entries
        .flat_map(|entry| {
            let dots = (0..entry.counter + 1).rev().zip(&entry.values);
            dots.map(|(counter, value)| (entry.actor, counter, value.bytes.clone()))
        })
        .collect()
}

pub fn history(object: &Object) -> History {
    object.clock.entries().iter().map(|entry| (entry.actor, entry.counter)).collect()
}

pub fn object(disk: &Memory, key: usize) -> Option<Object> {
    let disk = disk.disk();
    let record = disk.objects.get(&place(Kind::Realm, &name(key))[..])?;
    Some(Object::decode(record).expect("a sound record"))
}

/// What topics retain, by topic.
pub fn retained(disk: &Memory) -> BTreeMap<String, Vec<u8>> {
    let disk = disk.disk();
    let objects = disk.objects.values().map(|record| Object::decode(record).expect("a sound record"));
    let values =
        objects.filter(|object| object.kind == Kind::Retained).filter_map(|object| object.resolved());
    let held = values.filter_map(|value| value.bytes).map(|bytes| Held::decode(&bytes).expect("our own"));
    held.map(|held| (held.topic, held.events)).collect()
}

pub fn name(key: usize) -> String {
    format!("realm.number{key}")
}

/// Realms that are written.
pub const KEYS: usize = 6;
