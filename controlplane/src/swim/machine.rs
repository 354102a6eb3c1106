//! The membership machine: foca between a filter and a seal.

use super::fallback::Probe;
use super::health::Health;
use super::identity::{Identity, Wire};
use super::replay::Window;
use super::seal::Sealer;
use super::settings::Settings;
use super::timers::Timers;
use super::{Change, DropReason, MEMBERS_MAX, Member, PROTOCOL, State};
use bytes::Buf;
use foca::{Codec, Foca, Header, Identity as _, Message, NoCustomBroadcast, Notification};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// What the driver does.
#[derive(Debug)]
pub enum Output {
    Send {
        to: SocketAddr,
        packet: Vec<u8>,
    },
    /// To be sent over the link to the node, if there is one: UDP may not reach it.
    Fallback {
        node: Uuid,
        packet: Vec<u8>,
    },
    Change(Change),
    /// A packet was dropped; `detail` may be empty.
    Dropped {
        from: SocketAddr,
        reason: DropReason,
        detail: String,
    },
    /// The cluster took us for dead; we go on under a new identity.
    Rejoined,
}

/// Counters since the start.
#[derive(Clone, Copy, Default, Debug)]
pub struct Counts {
    pub received: u64,
    pub sent: u64,
    /// By the order of [`DropReason::ALL`].
    pub dropped: [u64; DropReason::ALL.len()],
    pub probes_failed: u64,
    /// Times others suspected us wrongly.
    pub refuted: u64,
    /// Times this process stood still.
    pub stalls: u64,
    /// Times the cluster took us for dead wrongly.
    pub rejoins: u64,
    /// Packets for links, because UDP brought no answer.
    pub fallbacks: u64,
}

/// Why a node is not forgotten.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ForgetError {
    #[error("there is no such member")]
    Unknown,
    #[error("the member lives; only nodes that are down or have left can be forgotten")]
    Lives,
}

pub struct Swim {
    foca: Foca<Identity, Wire, SmallRng, NoCustomBroadcast>,
    effects: Effects,
    sealer: Sealer,
    windows: BTreeMap<Uuid, Heard>,
    known: BTreeMap<Uuid, Member>,
    /// Lives that were forgotten, newest first: others may go on telling that they are over.
    forgotten: VecDeque<Identity>,
    seeds: Vec<SocketAddr>,
    /// Seeds an operator has named.
    named: Vec<SocketAddr>,
    probe: Probe,
    /// The node whose packet came over its link and is being handled: so do the answers.
    linked: Option<Uuid>,
    join_at: Instant,
    join_pause: Duration,
    alone: bool,
    left: bool,
    /// When somebody but the probed node was heard.
    heard_at: Instant,
    silence_max: Duration,
    /// Suspicions of this incarnation of ours are news.
    refuted_to: u16,
    generation: u32,
    suspicion: Duration,
    /// When suspects are told next.
    nudge_at: Option<Instant>,
    stall_min: Duration,
    stall_grace: Duration,
    forget_after: Duration,
    outputs: VecDeque<Output>,
    counts: Counts,
}

/// What foca asks for.
struct Effects {
    now: Instant,
    timers: Timers,
    health: Health,
    sends: Vec<(Identity, Vec<u8>)>,
    probing: Option<Uuid>,
    suspected: bool,
}

impl foca::Runtime<Identity> for &mut Effects {
    /// Changes are found by comparing, which also finds suspects.
    fn notify(&mut self, _: Notification<'_, Identity>) {}

    fn send_to(&mut self, to: Identity, data: &[u8]) {
        self.sends.push((to, data.to_vec()));
    }

    fn submit_after(&mut self, timer: foca::Timer<Identity>, after: Duration) {
        let factor = match &timer {
            foca::Timer::ProbeRandomMember(_) => self.health.probe_factor(),
            foca::Timer::SendIndirectProbe { probed_id, .. } => {
                self.probing = Some(probed_id.node);
                self.health.probe_factor()
            }
            foca::Timer::ChangeSuspectToDown { .. } => {
                self.suspected = true;
                self.health.suspicion_factor()
            }
            _ => 1,
        };
        self.timers.set(self.now + after * factor, timer);
    }
}

impl Swim {
    pub fn new(now: Instant, settings: Settings) -> Self {
        let config = settings.foca();
        let rng = SmallRng::seed_from_u64(settings.seed);
        Self {
            foca: Foca::new(settings.identity.clone(), config, rng, Wire),
            effects: Effects {
                now,
                timers: Timers::default(),
                health: Health::default(),
                sends: vec![],
                probing: None,
                suspected: false,
            },
            sealer: Sealer::new(settings.keys, &settings.env, settings.nonce),
            windows: BTreeMap::new(),
            known: BTreeMap::new(),
            forgotten: VecDeque::new(),
            seeds: bounded(settings.seeds),
            named: vec![],
            probe: Probe::default(),
            linked: None,
            join_at: now,
            join_pause: JOIN_PAUSE_MIN,
            alone: true,
            left: false,
            heard_at: now,
            silence_max: settings.probe_interval * SILENCE_PROBES,
            refuted_to: 0,
            generation: settings.identity.generation,
            suspicion: settings.suspicion,
            nudge_at: None,
            stall_min: settings.probe_interval / 2,
            stall_grace: settings.probe_timeout,
            forget_after: settings.forget_after,
            outputs: VecDeque::new(),
            counts: Counts::default(),
        }
    }

    /// A datagram has arrived.
    pub fn datagram(&mut self, now: Instant, from: SocketAddr, packet: &[u8]) {
        self.effects.now = now;
        self.counts.received += 1;
        match self.admit(packet) {
            Ok(Some(Admitted { data, suspected })) => {
                if self.foca.handle_data(&data, &mut self.effects).is_err() {
                    self.drop_packet(from, DropReason::Malformed, String::new());
                }
                if let Some(incarnation) = suspected {
                    self.refute(incarnation);
                }
            }
            Ok(None) => {}
            Err((reason, detail)) => self.drop_packet(from, reason, detail),
        }
        self.settle();
    }

    /// A packet has arrived over the link to `node`, which is at `from`.
    pub fn linked(&mut self, now: Instant, node: Uuid, from: SocketAddr, packet: &[u8]) {
        self.linked = Some(node);
        self.datagram(now, from, packet);
        self.linked = None;
    }

    /// The deadline has passed.
    pub fn timeout(&mut self, now: Instant) {
        self.effects.now = now;
        self.notice_stall();
        while let Some(timer) = self.effects.timers.pop(now) {
            let judged = matches!(timer, foca::Timer::ProbeRandomMember(_));
            let probed = if judged { self.effects.probing.take() } else { None };
            self.effects.suspected = false;
            if self.is_premature(&timer) {
                continue;
            }
            let late = match &timer {
                foca::Timer::SendIndirectProbe { probed_id, .. } => self.probe.late(probed_id.node),
                _ => None,
            };
            // A timer that foca no longer waits for is ignored by it; nothing else can fail.
            let _ = self.foca.handle_timer(timer, &mut self.effects);
            if let Some((to, data)) = late {
                self.fall_back(&to, &data);
            }
            if probed.is_some() {
                self.judge_probe();
            }
        }
        if !self.left && now >= self.join_at {
            self.sweep();
            self.join();
        }
        if self.nudge_at.is_some_and(|at| at <= now) {
            self.nudge();
        }
        self.settle();
    }

    /// Discovery has found these addresses.
    pub fn found(&mut self, now: Instant, seeds: Vec<SocketAddr>) {
        self.effects.now = now;
        let seeds = bounded(seeds);
        if seeds != self.seeds {
            self.seeds = seeds;
            self.join_at = now;
            self.join_pause = JOIN_PAUSE_MIN;
        }
    }

    /// An operator has named these nodes; they are asked beside those of discovery from now on. False when there are too
    /// many.
    pub fn ask(&mut self, now: Instant, seeds: &[SocketAddr]) -> bool {
        self.effects.now = now;
        let mut named = self.named.clone();
        named.extend(seeds.iter().filter(|seed| !self.named.contains(seed)));
        if named.len() > SEEDS_MAX {
            return false;
        }
        self.named = named;
        self.join_at = now;
        self.join_pause = JOIN_PAUSE_MIN;
        true
    }

    /// Says good-bye; again when it is called again, because packets get lost.
    pub fn leave(&mut self, now: Instant) {
        self.effects.now = now;
        let result = if self.left {
            self.foca.gossip(&mut self.effects)
        } else {
            self.left = true;
            let own = self.foca.identity().clone();
            let identity = Identity { leaving: true, ..own.renew().unwrap_or(own) };
            self.foca
                .change_identity(identity, &mut self.effects)
                .and_then(|()| self.foca.leave_cluster(&mut self.effects))
        };
        // Who is not told finds out by probing.
        let _ = result;
        self.settle();
    }

    /// Forgets a node that is down or has left; others may still know it.
    pub fn forget(&mut self, now: Instant, node: Uuid) -> Result<(), ForgetError> {
        self.effects.now = now;
        let member = self.known.get(&node).ok_or(ForgetError::Unknown)?;
        if !matches!(member.state, State::Down | State::Left) {
            return Err(ForgetError::Lives);
        }
        let gone = foca::Timer::RemoveDown(member.identity.clone());
        let _ = self.foca.handle_timer(gone, &mut self.effects);
        if let Some(member) = self.known.remove(&node) {
            self.forgotten.truncate(FORGOTTEN_MAX - 1);
            self.forgotten.push_front(member.identity);
        }
        self.windows.remove(&node);
        self.settle();
        Ok(())
    }

    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call [`Swim::timeout`].
    pub fn deadline(&self) -> Option<Instant> {
        let join = (!self.left).then_some(self.join_at);
        self.effects.timers.deadline().into_iter().chain(join).chain(self.nudge_at).min()
    }

    pub fn identity(&self) -> &Identity {
        self.foca.identity()
    }

    /// The other nodes, by id.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.known.values()
    }

    pub fn has_left(&self) -> bool {
        self.left
    }

    /// 0 is healthy, 7 the worst.
    pub fn health_score(&self) -> u32 {
        self.effects.health.score()
    }

    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Opens a packet and keeps of it what foca may see; none: it is our own.
    fn admit(&mut self, packet: &[u8]) -> Result<Option<Admitted>, (DropReason, String)> {
        let bare = |reason| (reason, String::new());
        let malformed = |_| bare(DropReason::Malformed);
        let (number, plain) = self.sealer.open(packet).map_err(bare)?;
        let mut rest = &*plain;
        let hint = match rest.try_get_u8() {
            Ok(0) => None,
            Ok(1) => Some(rest.try_get_u16().map_err(|_| bare(DropReason::Malformed))?),
            _ => return Err(bare(DropReason::Malformed)),
        };
        let mut header = Wire.decode_header(&mut rest).map_err(malformed)?;
        let own = self.foca.identity().clone();
        let source = header.src.clone();
        if source.node == own.node {
            let other_life = source.epoch != own.epoch;
            return if other_life { Err(bare(DropReason::Own)) } else { Ok(None) };
        }
        if !speaks_with_us(&source) {
            let (least, most) = source.about.protocol;
            let detail = format!(
                "{} of version {} speaks protocols {least} to {most}, this node {} to {}",
                source.node, source.about.version, PROTOCOL.0, PROTOCOL.1
            );
            return Err((DropReason::Incompatible, detail));
        }
        self.take_number(&source, number)?;
        if header.dst.node == own.node && header.dst.epoch > own.epoch {
            self.outlive(header.dst.epoch);
        }
        self.probe.heard(source.node, &header.message);
        let updates = self.updates(&header, rest, &own)?;
        if header.dst.is_unknown() && header.message == Message::Announce {
            header.dst = own.clone();
        }
        if self.effects.probing != Some(source.node) {
            self.heard_at = self.effects.now;
        }
        let told =
            updates.iter().filter(|update| *update.id() == own && update.state() == foca::State::Suspect);
        let hint = hint.filter(|_| header.dst == own);
        let news = told.map(foca::Member::incarnation).chain(hint).max();
        self.note_suspicion(news);
        Ok(Some(Admitted { data: encode(&header, &updates).map_err(malformed)?, suspected: hint }))
    }

    /// Others know a later life of ours than this one: our disk is an old copy, or our clock was set back. Below that life
    /// they would take all that we say for recorded.
    fn outlive(&mut self, epoch: u64) {
        let own = self.foca.identity().clone();
        let Some(epoch) = epoch.checked_add(1).filter(|_| !own.leaving) else { return };
        let identity = Identity { epoch, generation: 0, ..own };
        if self.foca.change_identity(identity, &mut self.effects).is_ok() {
            self.outputs.push_back(Output::Rejoined);
        }
    }

    /// A packet counts once, and only so many nodes are remembered.
    fn take_number(&mut self, source: &Identity, number: u64) -> Result<(), (DropReason, String)> {
        let bare = |reason| (reason, String::new());
        if !self.windows.contains_key(&source.node) && self.windows.len() >= MEMBERS_MAX {
            return Err(bare(DropReason::Full));
        }
        let now = self.effects.now;
        let new = || Heard { window: Window::new(source.epoch), heard_at: now };
        let heard = self.windows.entry(source.node).or_insert_with(new);
        if !heard.window.take(source.epoch, number) {
            return Err(bare(DropReason::Replayed));
        }
        heard.heard_at = now;
        Ok(())
    }

    /// What a packet tells of others. Left out: members we could not talk to, those beyond the bound, and our earlier lives.
    fn updates(
        &self,
        header: &Header<Identity>,
        mut rest: &[u8],
        own: &Identity,
    ) -> Result<Vec<foca::Member<Identity>>, (DropReason, String)> {
        let malformed = || (DropReason::Malformed, String::new());
        if rest.is_empty() {
            return Ok(vec![]);
        }
        if matches!(header.message, Message::Announce | Message::Broadcast) {
            return Err(malformed());
        }
        let count = rest.try_get_u16().map_err(|_| malformed())?;
        let mut room = MEMBERS_MAX.saturating_sub(self.known.len());
        let mut updates = vec![];
        for _ in 0..count {
            // Each takes bytes of the packet, so the packet's length bounds them.
            let update = Wire.decode_member(&mut rest).map_err(|_| malformed())?;
            let id = update.id();
            let known = self.known.contains_key(&id.node);
            if (id.node == own.node && id != own) || !speaks_with_us(id) || (!known && room == 0) {
                continue;
            }
            room = room.saturating_sub(usize::from(!known));
            updates.push(update);
        }
        if rest.is_empty() { Ok(updates) } else { Err(malformed()) }
    }

    fn note_suspicion(&mut self, incarnation: Option<u16>) {
        if let Some(incarnation) = incarnation.filter(|incarnation| *incarnation >= self.refuted_to) {
            self.refuted_to = incarnation.saturating_add(1);
            self.counts.refuted += 1;
            self.effects.health.worse();
        }
    }

    /// Whoever sent us a packet said that we are suspected.
    fn refute(&mut self, incarnation: u16) {
        let own = self.foca.identity().clone();
        let suspected = foca::Member::new(own, incarnation, foca::State::Suspect);
        let _ = self.foca.apply_many(std::iter::once(suspected), false, &mut self.effects);
    }

    fn drop_packet(&mut self, from: SocketAddr, reason: DropReason, detail: String) {
        self.counts.dropped[reason as usize] += 1;
        self.outputs.push_back(Output::Dropped { from, reason, detail });
    }

    /// Time in which this process did not run is not held against others: what they sent waits in the socket.
    fn notice_stall(&mut self) {
        let late = self.effects.timers.deadline().map(|at| self.effects.now.saturating_duration_since(at));
        if let Some(late) = late.filter(|late| *late > self.stall_min) {
            self.counts.stalls += 1;
            self.effects.health.worse();
            self.effects.timers.delay(late + self.stall_grace);
        }
    }

    /// True when a suspect is not to be declared down now: it has objected already, or it was heard lately. In the latter
    /// case it gets more time, but not for ever: who speaks and does not hear is of no use to the cluster.
    fn is_premature(&mut self, timer: &foca::Timer<Identity>) -> bool {
        let foca::Timer::ChangeSuspectToDown { member_id, incarnation, .. } = timer else { return false };
        let mut states = self.foca.iter_membership_state().filter(|state| state.id() == member_id);
        let waits = |state: &foca::Member<Identity>| {
            state.state() == foca::State::Suspect && state.incarnation() == *incarnation
        };
        if !states.next().is_some_and(waits) {
            return true;
        }
        let Some(window) = self.windows.get(&member_id.node) else { return false };
        let since = self.known.get(&member_id.node).map_or(self.effects.now, |known| known.since);
        let at = (window.heard_at + self.suspicion).min(since + self.suspicion * SUSPICIONS_MAX);
        if at > self.effects.now {
            self.effects.timers.set(at, timer.clone());
            return true;
        }
        false
    }

    /// Tells suspects that they are: every packet to them says so.
    fn nudge(&mut self) {
        let suspects: Vec<_> = self.known.values().filter(|known| known.state == State::Suspect).collect();
        self.nudge_at = (!suspects.is_empty()).then_some(self.effects.now + self.stall_grace);
        for suspect in suspects {
            let _ = self.foca.announce(suspect.identity.clone(), &mut self.effects);
        }
    }

    /// Called when the next probe has begun: foca has judged the last one.
    fn judge_probe(&mut self) {
        if !self.effects.suspected {
            self.effects.health.better();
            return;
        }
        self.counts.probes_failed += 1;
        // Silence of everybody is more likely our fault than theirs. With one other node there is nobody to compare with.
        let silence = self.effects.now.saturating_duration_since(self.heard_at);
        if silence > self.silence_max && self.foca.num_members() > 1 {
            self.effects.health.worse();
        }
    }

    /// Asks seeds that are no living members; when we are alone, also those that were members.
    fn join(&mut self) {
        let own = self.foca.identity().address;
        let mut targets: Vec<SocketAddr> = self.seeds.iter().chain(&self.named).copied().collect();
        let lives = |member: &&Member| matches!(member.state, State::Alive | State::Suspect);
        if self.alone {
            let down = self.known.values().filter(|member| member.state == State::Down);
            targets.extend(down.map(|member| member.identity.address));
        }
        targets.sort_unstable();
        targets.dedup();
        let living: Vec<_> =
            self.known.values().filter(lives).map(|member| member.identity.address).chain([own]).collect();
        for target in targets.into_iter().filter(|target| !living.contains(target)) {
            let _ = self.foca.announce(Identity::unknown_at(target), &mut self.effects);
        }
        self.join_at = self.effects.now + if self.alone { self.join_pause } else { JOIN_PAUSE_MAX };
        self.join_pause = (self.join_pause * 2).min(JOIN_PAUSE_MAX);
    }

    fn sweep(&mut self) {
        let now = self.effects.now;
        let old = |member: &&Member| {
            let gone = matches!(member.state, State::Down | State::Left);
            gone && now.saturating_duration_since(member.since) >= self.forget_after
        };
        let old: Vec<_> = self.known.values().filter(old).map(|member| member.identity.node).collect();
        for node in old {
            let _ = self.forget(now, node);
        }
    }

    /// Turns what foca did into outputs.
    fn settle(&mut self) {
        self.compare();
        for (to, data) in std::mem::take(&mut self.effects.sends) {
            if self.effects.probing == Some(to.node) {
                self.probe.sent(&to, &data);
            }
            if self.linked == Some(to.node) {
                self.fall_back(&to, &data);
                continue;
            }
            let suspected = self.suspected_in(&to);
            let packet = self.seal(suspected, &data);
            self.counts.sent += 1;
            self.outputs.push_back(Output::Send { to: to.address, packet });
            // It has little time, so every path is tried.
            if suspected.is_some() {
                self.fall_back(&to, &data);
            }
        }
        let alone = self.foca.num_members() == 0;
        if alone && !self.alone {
            self.join_pause = JOIN_PAUSE_MIN;
            self.join_at = self.effects.now + JOIN_PAUSE_MIN;
        }
        self.alone = alone;
    }

    fn fall_back(&mut self, to: &Identity, data: &[u8]) {
        let packet = self.seal(self.suspected_in(to), data);
        self.counts.fallbacks += 1;
        self.outputs.push_back(Output::Fallback { node: to.node, packet });
    }

    /// The incarnation in which we suspect `to`, if we do.
    fn suspected_in(&self, to: &Identity) -> Option<u16> {
        let known = self.known.get(&to.node)?;
        if known.state != State::Suspect || known.identity != *to {
            return None;
        }
        let mut states = self.foca.iter_membership_state().filter(|state| *state.id() == known.identity);
        states.next().map(foca::Member::incarnation)
    }

    fn seal(&mut self, suspected: Option<u16>, data: &[u8]) -> Vec<u8> {
        let mut plain = Vec::with_capacity(data.len() + HINT_BYTES_MAX);
        match suspected {
            Some(incarnation) => {
                plain.push(1);
                plain.extend_from_slice(&incarnation.to_be_bytes());
            }
            None => plain.push(0),
        }
        plain.extend_from_slice(data);
        self.sealer.seal(&plain)
    }

    /// Finds what changed in foca's view.
    fn compare(&mut self) {
        let now = self.effects.now;
        let generation = self.foca.identity().generation;
        if generation != std::mem::replace(&mut self.generation, generation) && !self.left {
            self.refuted_to = 0;
            self.counts.rejoins += 1;
            self.outputs.push_back(Output::Rejoined);
        }
        for seen in self.foca.iter_membership_state() {
            let identity = seen.id();
            let state = match seen.state() {
                _ if identity.leaving => State::Left,
                foca::State::Alive => State::Alive,
                foca::State::Suspect => State::Suspect,
                foca::State::Down => State::Down,
            };
            let known = self.known.get(&identity.node);
            let before = known.map(|known| known.state);
            let renewed = known.is_some_and(|known| known.identity != *identity);
            if before == Some(state) && !renewed {
                continue;
            }
            let is_gone = matches!(state, State::Down | State::Left);
            if before.is_none() && is_gone && self.forgotten.contains(identity) {
                continue;
            }
            if state == State::Suspect {
                self.nudge_at.get_or_insert(now);
            }
            let member = Member { identity: identity.clone(), state, since: now };
            self.known.insert(identity.node, member.clone());
            self.outputs.push_back(Output::Change(Change { member, before, renewed }));
        }
    }
}

/// What came from a node itself.
struct Heard {
    window: Window,
    heard_at: Instant,
}

/// A packet that foca may see.
struct Admitted {
    data: Vec<u8>,
    /// The sender suspects this incarnation of ours.
    suspected: Option<u16>,
}

fn speaks_with_us(identity: &Identity) -> bool {
    let (least, most) = identity.about.protocol;
    least <= PROTOCOL.1 && PROTOCOL.0 <= most
}

fn encode(
    header: &Header<Identity>,
    updates: &[foca::Member<Identity>],
) -> Result<Vec<u8>, super::identity::CodecError> {
    let mut data = vec![];
    Wire.encode_header(header, &mut data)?;
    if !updates.is_empty() {
        data.extend_from_slice(&(updates.len() as u16).to_be_bytes());
        updates.iter().try_for_each(|update| Wire.encode_member(update, &mut data))?;
    }
    Ok(data)
}

fn bounded(mut seeds: Vec<SocketAddr>) -> Vec<SocketAddr> {
    seeds.truncate(SEEDS_MAX);
    seeds
}

/// Longest datagram we send; fits an Ethernet frame with room for tunnels.
pub const DATAGRAM_BYTES_MAX: usize = 1_400;
/// The part of a packet before foca's: whether we suspect the receiver, and which incarnation.
pub(super) const HINT_BYTES_MAX: usize = 3;
/// Forgotten lives that are remembered.
const FORGOTTEN_MAX: usize = 64;
/// Most addresses of discovery that are used.
pub const SEEDS_MAX: usize = 64;
/// Others have at least this many probe intervals to be heard; in one of them everybody may be busy with the same node.
const SILENCE_PROBES: u32 = 4;
/// A suspect that goes on speaking has this many times the time of a silent one.
const SUSPICIONS_MAX: u32 = 4;
/// A node that is alone asks its seeds this often at first, then less and less often ...
const JOIN_PAUSE_MIN: Duration = Duration::from_millis(500);
/// ... down to this.
const JOIN_PAUSE_MAX: Duration = Duration::from_secs(5);
