//! The handshake of a link: both ends prove that they hold a key of the cluster and say which lives they are.

use super::super::Shard;
use super::link::{Phase, Role};
use super::tls::Tls;
use super::{FINISH_TIME, PING_INTERVAL};
use common::ids::BootEpoch;
use common::metrics::Counter;
use common::noise::{Handshake, NoiseError, Progress, Refusal};
use common::relay::{Hello, VERSIONS};

/// What came of a message of the handshake.
enum Greeted {
    Not(Box<Handshake>),
    /// A guest's hello fits; this is to be the answer.
    Judged(Box<Handshake>, Hello, Hello),
    /// The handshake is done; so many bytes came after it.
    Done(usize),
}

impl Shard {
    /// Begins the handshake of a new link, or that of TLS before it. False, and the link is forgotten: neither can begin.
    pub(super) fn relay_begin(&mut self, slot: u32) -> bool {
        let Some(link) = self.relay.links.get_mut(slot) else { return false };
        let Some(config) = &self.relay.config else { return false };
        let Some(tls) = &config.tls else {
            self.relay_first(slot, &[]);
            return true;
        };
        let tls = if link.role == Role::Guest { Tls::server(tls) } else { Tls::client(tls) };
        match tls {
            Ok(tls) => {
                link.tls = Some(Box::new(tls));
                self.relay.mark_dirty(slot);
            }
            Err(error) => {
                tracing::error!(%error, "TLS cannot begin");
                let deadline = self.now;
                self.relay_close(slot, deadline);
            }
        }
        true
    }

    /// Bytes of a link with TLS.
    pub(super) fn relay_unseal(&mut self, slot: u32, bytes: &[u8]) {
        let Some(link) = self.relay.links.get_mut(slot) else { return };
        let Some(tls) = &mut link.tls else { return };
        let mut plain = Vec::new();
        let opened = tls.open(bytes, &mut plain);
        let binding = match link.phase {
            Phase::Securing if !tls.is_greeting() => tls.binding().ok(),
            _ => None,
        };
        if let Err(error) = opened {
            let role = link.role;
            tracing::debug!(%error, ?role, "TLS of a relay connection failed");
            // The other end is told by the alert that waits to be sent.
            let deadline = self.now + FINISH_TIME;
            return self.relay_close(slot, deadline);
        }
        if let Some(binding) = binding {
            self.relay_first(slot, &binding);
        }
        if !plain.is_empty() {
            self.relay_input(slot, &plain);
        }
        self.relay.mark_dirty(slot);
    }

    /// Begins the handshake, in a channel that `binding` names.
    fn relay_first(&mut self, slot: u32, binding: &[u8]) {
        let Some(config) = &mut self.relay.config else { return };
        let (connections, terms, entropy) = (config.connections, config.terms.clone(), config.entropy.draw());
        let Some(role) = self.relay.links.get(slot).map(|link| link.role) else { return };
        let mut first = Vec::new();
        let handshake = match role {
            Role::Guest => Handshake::responder_in(terms, binding, entropy),
            Role::Lane(at) => {
                let Some(lane) = self.relay.lanes[at].as_ref() else { return };
                let hello = self.relay_hello(lane.epoch, at % connections, lane.attempt);
                Handshake::initiator_in(terms, binding, entropy, &hello.bytes(), &mut first)
            }
        };
        let Some(link) = self.relay.links.get_mut(slot) else { return };
        link.phase = Phase::Greeting(Box::new(handshake));
        self.relay.queued_bytes += link.out.append(&mut self.pool, |out| out.extend_from_slice(&first));
        self.relay.mark_dirty(slot);
    }

    /// Bytes of a link that is not open yet.
    pub(super) fn relay_greet(&mut self, slot: u32, bytes: &[u8]) {
        let Some(link) = self.relay.links.get_mut(slot) else { return };
        let role = link.role;
        let Phase::Greeting(handshake) = std::mem::replace(&mut link.phase, Phase::Closing) else { return };
        let mut out = Vec::new();
        let greeted = self.relay_handshake(role, handshake, bytes, &mut out);
        let Some(link) = self.relay.links.get_mut(slot) else { return };
        self.relay.queued_bytes += link.out.append(&mut self.pool, |queue| queue.extend_from_slice(&out));
        match greeted {
            Ok(Greeted::Not(handshake)) => {
                link.phase = Phase::Greeting(handshake);
                self.relay.mark_dirty(slot);
            }
            Ok(Greeted::Judged(handshake, hello, answer)) => {
                link.phase = Phase::Greeting(handshake);
                self.succeed(slot, &hello, answer);
            }
            Ok(Greeted::Done(rest)) => {
                self.relay_open(slot);
                if rest > 0 {
                    self.relay_frames(slot, &bytes[bytes.len() - rest..]);
                }
            }
            Err(refusal) => {
                if let Some(refusal) = refusal {
                    let queue = |out: &mut Vec<u8>| out.extend_from_slice(&refusal.bytes());
                    self.relay.queued_bytes += link.out.append(&mut self.pool, queue);
                }
                let deadline = self.now + FINISH_TIME;
                self.relay_close(slot, deadline);
            }
        }
    }

    /// Answers a guest's hello.
    pub(super) fn guest_answer(&mut self, slot: u32, hello: &Hello) {
        let Some(link) = self.relay.links.get_mut(slot) else { return };
        let Phase::Greeting(handshake) = &mut link.phase else { return };
        let mut answer = Vec::new();
        handshake.answer(&hello.bytes(), &mut answer);
        self.relay.queued_bytes += link.out.append(&mut self.pool, |out| out.extend_from_slice(&answer));
        self.relay.mark_dirty(slot);
    }

    /// Runs the handshake over `bytes`. The error is what the other end may be told.
    fn relay_handshake(
        &self,
        role: Role,
        mut handshake: Box<Handshake>,
        mut bytes: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Greeted, Option<Refusal>> {
        match handshake.receive(&mut bytes) {
            Ok(Progress::More) => Ok(Greeted::Not(handshake)),
            Ok(Progress::Done(_)) => Ok(Greeted::Done(bytes.len())),
            Ok(Progress::Hello(hello)) => {
                let hello = Hello::parse(&hello).ok_or(None)?;
                match role {
                    Role::Guest if bytes.is_empty() => {
                        let answer = self.relay_answer_hello(&hello)?;
                        Ok(Greeted::Judged(handshake, hello, answer))
                    }
                    // Nothing may follow a hello that is not answered.
                    Role::Guest => Err(None),
                    Role::Lane(at) => {
                        self.relay_check_answer(at, &hello)?;
                        handshake.confirm(out);
                        Ok(Greeted::Done(bytes.len()))
                    }
                }
            }
            Err(error) => {
                if let (Role::Lane(at), NoiseError::Refused(refusal)) = (role, error) {
                    self.log_refusal(at, refusal);
                }
                Err(error.refusal().filter(|_| role == Role::Guest))
            }
        }
    }

    /// What lane `lane` of those to one data plane says first.
    pub(super) fn relay_hello(&self, to: BootEpoch, lane: usize, attempt: u64) -> Hello {
        let (from, shard) = (self.config.epoch, self.me.0);
        Hello { versions: VERSIONS, from, to, shard, lane: lane as u8, attempt }
    }

    fn relay_answer_hello(&self, hello: &Hello) -> Result<Hello, Option<Refusal>> {
        let version = hello.common_version().ok_or(Some(Refusal::Version))?;
        let epoch = self.config.epoch;
        if hello.to != epoch || hello.from == epoch {
            return Err(Some(Refusal::Identity));
        }
        let versions = (version, version);
        Ok(Hello { versions, from: epoch, to: hello.from, shard: 0, lane: 0, attempt: 0 })
    }

    fn relay_check_answer(&self, at: usize, hello: &Hello) -> Result<(), Option<Refusal>> {
        let expected = self.relay.lanes[at].as_ref().map(|lane| lane.epoch);
        let fits = hello.common_version() == Some(hello.versions.1)
            && Some(hello.from) == expected
            && hello.to == self.config.epoch;
        if fits { Ok(()) } else { Err(None) }
    }

    fn log_refusal(&self, at: usize, refusal: Refusal) {
        if let Some(lane) = &self.relay.lanes[at] {
            let node = self.nodes.get(lane.node).map(|node| node.id.to_string());
            tracing::warn!(node, address = %lane.address, %refusal, "a node refused the relay's connection");
        }
    }

    /// Both ends have proved what they had to.
    fn relay_open(&mut self, slot: u32) {
        self.metrics.count(Counter::RelayHandshakes);
        let ping_at = self.now + PING_INTERVAL;
        let Some(link) = self.relay.links.get_mut(slot) else { return };
        link.phase = Phase::Open;
        link.greeted = true;
        link.ping_at = ping_at;
        let role = link.role;
        self.relay.look_at(ping_at);
        match role {
            Role::Guest => self.relay.strangers -= 1,
            Role::Lane(at) => self.lane_ready(at, slot),
        }
        self.relay.mark_dirty(slot);
    }
}
