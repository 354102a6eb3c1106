//! How two nodes prove to each other that they hold a key of the cluster: a Noise handshake, pattern NNpsk0 with
//! 25519, ChaChaPoly and BLAKE2s (Noise Protocol Framework, revision 34). A machine: bytes in, bytes out.
//!
//! ```text
//! initiator                                                     responder
//! head (21 bytes) │ len u16 │ psk, e, hello ──────────────────▶ Hello
//! Hello ◀────────────────────────────────── len u16 │ e, ee, hello
//! len u16 │ proof ────────────────────────────────────────────▶ Done
//! ```
//! The head is `SBn`, format version, purpose, tag of the env and id of the key, all in the clear; it and the env's name
//! are the prologue. A recording of the first message can be played again by anybody, so the responder trusts nobody
//! before the proof, the first message under the session's keys. The hellos are the caller's; they are encrypted.
//!
//! A responder that refuses says so with `0 u16 │ code u8`, which is not authenticated: it explains, it proves nothing.

use crate::keys::{ClusterKeys, KeyId};
use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::{CryptoResolver, DefaultResolver};
use snow::types::{Cipher, Dh, Hash, Random};
use snow::{Builder, HandshakeState, TransportState};
use std::fmt;

/// What a connection is for; both ends must mean the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Purpose {
    /// Between control planes.
    Control = 1,
    /// Between data planes.
    Relay = 2,
}

/// What both ends must agree on.
#[derive(Clone, Debug)]
pub struct Terms {
    pub keys: ClusterKeys,
    pub env: Box<str>,
    pub purpose: Purpose,
}

/// Why a handshake, or an encrypted stream, ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NoiseError {
    #[error("the peer speaks another protocol")]
    Foreign,
    #[error("the peer's handshake has format {0}, ours {FORMAT}")]
    Format(u8),
    #[error("the peer belongs to another env")]
    Env,
    #[error("the peer uses a key that is not in our key file")]
    UnknownKey,
    /// Forged, damaged or replayed.
    #[error("a message of the peer is not authentic")]
    Authentic,
    #[error("a message of the peer has a length it may not have")]
    Length,
    #[error("the peer refused: {0}")]
    Refused(Refusal),
    #[error("a message came out of turn")]
    Turn,
}

/// What a responder says before it closes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[repr(u8)]
pub enum Refusal {
    #[error("another version of the handshake")]
    Format = 1,
    #[error("another env")]
    Env = 2,
    #[error("it does not have our key")]
    Key = 3,
    #[error("another version of the protocol")]
    Version = 4,
    #[error("we are not who it expects, or it is not who we expect")]
    Identity = 5,
    #[error("for a reason we do not know")]
    Other = 255,
}

impl Refusal {
    /// What is sent of it.
    pub const fn bytes(self) -> [u8; 3] {
        [0, 0, self as u8]
    }
}

impl NoiseError {
    /// What the peer may be told of it.
    pub const fn refusal(self) -> Option<Refusal> {
        match self {
            Self::Format(_) => Some(Refusal::Format),
            Self::Env => Some(Refusal::Env),
            Self::UnknownKey => Some(Refusal::Key),
            _ => None,
        }
    }
}

/// Where a handshake is after bytes came.
#[derive(Debug)]
pub enum Progress {
    /// More bytes are needed.
    More,
    /// The peer's hello, to be judged and answered with [`Handshake::answer`] (a responder; it may be a replay) or
    /// [`Handshake::confirm`] (an initiator; it is authentic).
    Hello(Vec<u8>),
    /// A responder's peer has proved that it holds the key.
    Done(Transport),
}

/// One end of a handshake.
pub struct Handshake {
    terms: Terms,
    /// The channel around it; empty for none.
    binding: Box<[u8]>,
    entropy: [u8; 32],
    state: State,
    /// The message that is coming in.
    input: Vec<u8>,
}

enum State {
    /// Responder: the first message is expected.
    First,
    /// Responder: the caller judges the initiator's hello.
    Judged(Box<HandshakeState>),
    /// Responder: the proof is expected.
    Proof(Transport),
    /// Initiator: the second message is expected.
    Second(Box<HandshakeState>),
    /// Initiator: the caller judges the responder's hello.
    Answered(Transport),
    Over,
}

impl Handshake {
    /// Begins a handshake and appends the first message to `out`. `entropy` is secret and random, and used for one
    /// handshake only. `hello` has at most [`HELLO_BYTES_MAX`] bytes.
    pub fn initiator(terms: Terms, entropy: [u8; 32], hello: &[u8], out: &mut Vec<u8>) -> Self {
        Self::initiator_in(terms, &[], entropy, hello, out)
    }

    /// As [`Handshake::initiator`], inside of an encrypted channel that `binding` names: both ends must be ends of the same
    /// one, so nobody can pass a handshake on from one channel to another.
    pub fn initiator_in(
        terms: Terms,
        binding: &[u8],
        entropy: [u8; 32],
        hello: &[u8],
        out: &mut Vec<u8>,
    ) -> Self {
        assert!(hello.len() <= HELLO_BYTES_MAX, "a hello of {} bytes", hello.len());
        let key = terms.keys.first();
        let head = head(&terms, key.id());
        let prologue = [&head, terms.env.as_bytes(), binding].concat();
        let builder = builder(entropy, key.bytes(), &prologue);
        let mut state = Box::new(builder.build_initiator().expect("the pattern needs a key only"));
        out.extend_from_slice(&head);
        write_noise(out, |buffer| state.write_message(hello, buffer));
        Self { terms, binding: binding.into(), entropy, state: State::Second(state), input: Vec::new() }
    }

    /// Waits for a first message. `entropy` as for [`Handshake::initiator`].
    pub fn responder(terms: Terms, entropy: [u8; 32]) -> Self {
        Self::responder_in(terms, &[], entropy)
    }

    /// As [`Handshake::responder`], inside of an encrypted channel that `binding` names.
    pub fn responder_in(terms: Terms, binding: &[u8], entropy: [u8; 32]) -> Self {
        Self { terms, binding: binding.into(), entropy, state: State::First, input: Vec::new() }
    }

    /// Takes bytes from the front of `bytes`, as many as the message at hand still needs. After [`Progress::Done`], what
    /// is left in `bytes` is what the peer said next.
    ///
    /// # Errors
    /// The handshake is over; [`NoiseError::refusal`] is what the peer may be told.
    pub fn receive(&mut self, bytes: &mut &[u8]) -> Result<Progress, NoiseError> {
        loop {
            let wanted = self.wanted()?;
            if wanted == self.input.len() {
                let message = std::mem::take(&mut self.input);
                return self.message(&message);
            }
            let (taken, rest) = bytes.split_at((wanted - self.input.len()).min(bytes.len()));
            self.input.extend_from_slice(taken);
            *bytes = rest;
            if taken.is_empty() {
                return Ok(Progress::More);
            }
        }
    }

    /// How long the message at hand is, as far as what came of it tells.
    fn wanted(&self) -> Result<usize, NoiseError> {
        let head_bytes = match self.state {
            State::First => HEAD_BYTES,
            State::Second(_) | State::Proof(_) => 0,
            State::Judged(_) | State::Answered(_) | State::Over => return Err(NoiseError::Turn),
        };
        if head_bytes > 0 {
            self.check_head()?;
        }
        let Some(length) = self.input.get(head_bytes..head_bytes + 2) else { return Ok(head_bytes + 2) };
        match usize::from(u16::from_le_bytes([length[0], length[1]])) {
            0 if matches!(self.state, State::Second(_)) => Ok(3),
            length if (TAG_BYTES..=MESSAGE_BYTES_MAX).contains(&length) => Ok(head_bytes + 2 + length),
            _ => Err(NoiseError::Length),
        }
    }

    /// What cannot become a head is refused at its first byte.
    fn check_head(&self) -> Result<(), NoiseError> {
        let expected = head(&self.terms, KeyId([0; 8]));
        let got = &self.input[..self.input.len().min(HEAD_BYTES - 8)];
        let Some(at) = got.iter().zip(&expected).position(|(got, expected)| got != expected) else {
            return Ok(());
        };
        match at {
            3 => Err(NoiseError::Format(got[3])),
            // The whole tag is waited for, so that the peer can be told.
            5.. if self.input.len() >= HEAD_BYTES => Err(NoiseError::Env),
            5.. => Ok(()),
            _ => Err(NoiseError::Foreign),
        }
    }

    fn message(&mut self, message: &[u8]) -> Result<Progress, NoiseError> {
        match std::mem::replace(&mut self.state, State::Over) {
            State::First => {
                let (head, noise) = message.split_at(HEAD_BYTES);
                let id = KeyId(*head.last_chunk().expect("a head ends with the id"));
                let key = self.terms.keys.by_id(id).ok_or(NoiseError::UnknownKey)?;
                let prologue = [head, self.terms.env.as_bytes(), &self.binding].concat();
                let builder = builder(self.entropy, key.bytes(), &prologue);
                let mut state = Box::new(builder.build_responder().expect("the pattern needs a key only"));
                let hello = read_noise(&noise[2..], |noise, buffer| state.read_message(noise, buffer))?;
                self.state = State::Judged(state);
                Ok(Progress::Hello(hello))
            }
            State::Second(_) if message.len() == 3 => Err(NoiseError::Refused(refusal_of(message[2]))),
            State::Second(mut state) => {
                let hello = read_noise(&message[2..], |noise, buffer| state.read_message(noise, buffer))?;
                self.state = State::Answered(Transport::of(*state));
                Ok(Progress::Hello(hello))
            }
            State::Proof(mut transport) => {
                let proof =
                    read_noise(&message[2..], |noise, buffer| transport.state.read_message(noise, buffer))?;
                if !proof.is_empty() {
                    return Err(NoiseError::Length);
                }
                Ok(Progress::Done(transport))
            }
            State::Judged(_) | State::Answered(_) | State::Over => Err(NoiseError::Turn),
        }
    }

    /// As the responder, accepts the initiator's hello and appends the second message to `out`. `hello` has at most
    /// [`HELLO_BYTES_MAX`] bytes.
    pub fn answer(&mut self, hello: &[u8], out: &mut Vec<u8>) {
        assert!(hello.len() <= HELLO_BYTES_MAX, "a hello of {} bytes", hello.len());
        let State::Judged(mut state) = std::mem::replace(&mut self.state, State::Over) else {
            panic!("answer() follows the initiator's hello");
        };
        write_noise(out, |buffer| state.write_message(hello, buffer));
        self.state = State::Proof(Transport::of(*state));
    }

    /// As the initiator, accepts the responder's hello and appends the proof to `out`: the handshake is done.
    pub fn confirm(self, out: &mut Vec<u8>) -> Transport {
        let State::Answered(mut transport) = self.state else {
            panic!("confirm() follows the responder's hello");
        };
        write_noise(out, |buffer| transport.state.write_message(&[], buffer));
        transport
    }

    /// Bytes held of an incomplete message.
    pub fn held_bytes(&self) -> usize {
        self.input.len()
    }
}

impl fmt::Debug for Handshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Handshake")
    }
}

/// The encrypted stream after a handshake: records of `len u16 │ ciphertext`, for who wants more than the proof.
pub struct Transport {
    state: Box<TransportState>,
    /// The record that is coming in.
    input: Vec<u8>,
}

impl Transport {
    fn of(state: HandshakeState) -> Self {
        let state = state.into_transport_mode().expect("the second message ends the handshake");
        Self { state: Box::new(state), input: Vec::new() }
    }

    /// Appends `plain`, encrypted, to `out`: one record for each [`RECORD_PLAIN_BYTES_MAX`] of it.
    pub fn seal(&mut self, plain: &[u8], out: &mut Vec<u8>) {
        for part in plain.chunks(RECORD_PLAIN_BYTES_MAX) {
            let start = out.len();
            let sealed = part.len() + TAG_BYTES;
            out.extend_from_slice(&(sealed as u16).to_le_bytes());
            out.resize(start + 2 + sealed, 0);
            let written = self.state.write_message(part, &mut out[start + 2..]);
            assert_eq!(written, Ok(sealed), "a record is within the bounds of Noise");
        }
    }

    /// Takes all of `bytes`, any piece of the stream, and appends what is whole of it to `plain`. Holds at most one
    /// incomplete record.
    ///
    /// # Errors
    /// The stream is forged or damaged, and of no use any more.
    pub fn open(&mut self, mut bytes: &[u8], plain: &mut Vec<u8>) -> Result<(), NoiseError> {
        loop {
            let wanted = match self.input.first_chunk() {
                None => 2,
                Some(length) => 2 + usize::from(u16::from_le_bytes(*length)),
            };
            if self.input.len() >= 2 && wanted == self.input.len() {
                self.open_record(plain)?;
                continue;
            }
            let (taken, rest) = bytes.split_at((wanted - self.input.len()).min(bytes.len()));
            self.input.extend_from_slice(taken);
            bytes = rest;
            if taken.is_empty() {
                return Ok(());
            }
        }
    }

    fn open_record(&mut self, plain: &mut Vec<u8>) -> Result<(), NoiseError> {
        let sealed = &self.input[2..];
        let length = sealed.len().checked_sub(TAG_BYTES).ok_or(NoiseError::Length)?;
        let start = plain.len();
        plain.resize(start + length, 0);
        match self.state.read_message(sealed, &mut plain[start..]) {
            Ok(read) if read == length => {
                self.input.clear();
                Ok(())
            }
            _ => {
                plain.truncate(start);
                Err(NoiseError::Authentic)
            }
        }
    }

    /// Bytes held of an incomplete record.
    pub fn held_bytes(&self) -> usize {
        self.input.len()
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Transport")
    }
}

fn refusal_of(code: u8) -> Refusal {
    let known = [Refusal::Format, Refusal::Env, Refusal::Key, Refusal::Version, Refusal::Identity];
    known.into_iter().find(|known| *known as u8 == code).unwrap_or(Refusal::Other)
}

fn head(terms: &Terms, key: KeyId) -> [u8; HEAD_BYTES] {
    let mut head = [0; HEAD_BYTES];
    head[..3].copy_from_slice(MAGIC);
    head[3] = FORMAT;
    head[4] = terms.purpose as u8;
    let tag = blake3::derive_key("signalbox handshake env tag", terms.env.as_bytes());
    head[5..13].copy_from_slice(&tag[..8]);
    head[13..].copy_from_slice(&key.0);
    head
}

fn builder<'a>(entropy: [u8; 32], key: &'a [u8; 32], prologue: &'a [u8]) -> Builder<'a> {
    let params = PATTERN.parse().expect("a valid pattern");
    let fits = "each is set once";
    Builder::with_resolver(params, Box::new(Seeded(entropy)))
        .psk(0, key)
        .expect(fits)
        .prologue(prologue)
        .expect(fits)
}

fn write_noise(out: &mut Vec<u8>, write: impl FnOnce(&mut [u8]) -> Result<usize, snow::Error>) {
    let mut buffer = [0; MESSAGE_BYTES_MAX];
    let written = write(&mut buffer).expect("hellos are bounded and messages are written in turn");
    out.extend_from_slice(&(written as u16).to_le_bytes());
    out.extend_from_slice(&buffer[..written]);
}

fn read_noise(
    message: &[u8],
    read: impl FnOnce(&[u8], &mut [u8]) -> Result<usize, snow::Error>,
) -> Result<Vec<u8>, NoiseError> {
    let mut buffer = [0; MESSAGE_BYTES_MAX];
    let length = read(message, &mut buffer).map_err(|_| NoiseError::Authentic)?;
    Ok(buffer[..length].to_vec())
}

/// Secret random numbers for any number of handshakes, all of which follow from one seed.
#[derive(Clone)]
pub struct Entropy {
    seed: [u8; 32],
    handshakes: u64,
}

impl Entropy {
    /// `seed` is secret, random and used for one of these only.
    pub const fn new(seed: [u8; 32]) -> Self {
        Self { seed, handshakes: 0 }
    }

    /// What one handshake needs.
    pub fn draw(&mut self) -> [u8; 32] {
        self.handshakes += 1;
        let mut hasher = blake3::Hasher::new_derive_key("signalbox handshake seed");
        *hasher.update(&self.seed).update(&self.handshakes.to_le_bytes()).finalize().as_bytes()
    }
}

impl fmt::Debug for Entropy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Entropy of {} handshakes", self.handshakes)
    }
}

/// The usual primitives, and random numbers that follow from one secret seed: the machine draws none itself.
struct Seeded([u8; 32]);

impl CryptoResolver for Seeded {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        let stream =
            blake3::Hasher::new_derive_key("signalbox handshake randomness").update(&self.0).finalize_xof();
        Some(Box::new(Stream(stream)))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        DefaultResolver.resolve_dh(choice)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        DefaultResolver.resolve_cipher(choice)
    }
}

struct Stream(blake3::OutputReader);

impl Random for Stream {
    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), snow::Error> {
        self.0.fill(bytes);
        Ok(())
    }
}

/// Longest hello.
pub const HELLO_BYTES_MAX: usize = 512;
/// Longest piece of plain bytes in one record.
pub const RECORD_PLAIN_BYTES_MAX: usize = 65_535 - TAG_BYTES;
const PATTERN: &str = "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s";
const MAGIC: &[u8; 3] = b"SBn";
/// Version of the handshake.
pub const FORMAT: u8 = 1;
const HEAD_BYTES: usize = 21;
const TAG_BYTES: usize = 16;
/// An ephemeral key, a hello and a tag.
const MESSAGE_BYTES_MAX: usize = 32 + HELLO_BYTES_MAX + TAG_BYTES;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn terms(keys: &[u8], env: &str) -> Terms {
        let lines: Vec<_> = keys.iter().map(|key| format!("{key:02x}").repeat(32)).collect();
        let keys = ClusterKeys::parse(&lines.join("\n")).unwrap();
        Terms { keys, env: env.into(), purpose: Purpose::Relay }
    }

    /// Runs a whole handshake, the streams cut into pieces of `piece` bytes.
    fn handshake(a: Terms, b: Terms, piece: usize) -> Result<(Transport, Transport), NoiseError> {
        let (mut to_b, mut to_a) = (Vec::new(), Vec::new());
        let mut initiator = Handshake::initiator(a, [1; 32], b"from a", &mut to_b);
        let mut responder = Handshake::responder(b, [2; 32]);
        let first = feed(&mut responder, &to_b, piece)?;
        assert!(matches!(first, Progress::Hello(hello) if hello == b"from a"));
        responder.answer(b"from b", &mut to_a);
        let second = feed(&mut initiator, &to_a, piece)?;
        assert!(matches!(second, Progress::Hello(hello) if hello == b"from b"));
        let mut proof = Vec::new();
        let transport = initiator.confirm(&mut proof);
        match feed(&mut responder, &proof, piece)? {
            Progress::Done(other) => Ok((transport, other)),
            other => panic!("{other:?}"),
        }
    }

    fn feed(end: &mut Handshake, bytes: &[u8], piece: usize) -> Result<Progress, NoiseError> {
        for (index, piece_bytes) in bytes.chunks(piece).enumerate() {
            let mut rest = piece_bytes;
            match end.receive(&mut rest)? {
                Progress::More => assert!(rest.is_empty()),
                progress => {
                    assert!((index + 1) * piece >= bytes.len(), "the message is used up");
                    return Ok(progress);
                }
            }
        }
        Ok(Progress::More)
    }

    #[test]
    fn both_ends_learn_the_others_hello_and_share_a_stream() {
        for piece in [1, 7, 1_000] {
            let (mut a, mut b) = handshake(terms(&[1], "e"), terms(&[1], "e"), piece).unwrap();
            let plain: Vec<u8> = (0..200_000u32).map(|n| n as u8).collect();
            let (mut sealed, mut opened) = (Vec::new(), Vec::new());
            a.seal(&plain, &mut sealed);
            for bytes in sealed.chunks(4_999) {
                b.open(bytes, &mut opened).unwrap();
            }
            assert_eq!(opened, plain);
            assert_eq!(b.held_bytes(), 0);
            let last = sealed.len() - 1;
            sealed[last] ^= 1;
            assert_eq!(b.open(&sealed, &mut opened), Err(NoiseError::Authentic));
        }
    }

    #[test]
    fn keys_rotate_without_a_gap() {
        for (one, other) in [(&[1][..], &[1, 2][..]), (&[1, 2], &[2, 1]), (&[2, 1], &[2])] {
            handshake(terms(one, "e"), terms(other, "e"), 100).unwrap();
            handshake(terms(other, "e"), terms(one, "e"), 100).unwrap();
        }
        assert_eq!(handshake(terms(&[1], "e"), terms(&[2], "e"), 100).err(), Some(NoiseError::UnknownKey));
    }

    #[test]
    fn what_does_not_fit_is_told_apart() {
        let refused = |a: Terms, b: Terms| handshake(a, b, 100).err().unwrap();
        assert_eq!(refused(terms(&[1], "staging"), terms(&[1], "production")), NoiseError::Env);
        let control = Terms { purpose: Purpose::Control, ..terms(&[1], "e") };
        assert_eq!(refused(control, terms(&[1], "e")), NoiseError::Foreign);
        let mut responder = Handshake::responder(terms(&[1], "e"), [2; 32]);
        assert_eq!(responder.receive(&mut &b"GET / HTTP/1.1"[..]).err(), Some(NoiseError::Foreign));
        let mut responder = Handshake::responder(terms(&[1], "e"), [2; 32]);
        assert_eq!(responder.receive(&mut &b"SBn\x07"[..]).err(), Some(NoiseError::Format(7)));

        let mut sent = Vec::new();
        let mut initiator = Handshake::initiator(terms(&[1], "e"), [1; 32], b"", &mut sent);
        let refusal = NoiseError::Env.refusal().unwrap();
        let told = initiator.receive(&mut &refusal.bytes()[..]);
        assert_eq!(told.err(), Some(NoiseError::Refused(Refusal::Env)));
    }

    #[test]
    fn every_changed_byte_of_every_message_is_noticed() {
        let mut first = Vec::new();
        Handshake::initiator(terms(&[1], "e"), [1; 32], b"a", &mut first);
        for at in 0..first.len() {
            let mut bad = first.clone();
            bad[at] ^= 1;
            let mut responder = Handshake::responder(terms(&[1], "e"), [2; 32]);
            let end = responder.receive(&mut &bad[..]);
            assert!(matches!(end, Err(_) | Ok(Progress::More)), "byte {at}: {end:?}");
        }
    }

    #[test]
    fn a_recorded_first_message_gets_an_answer_but_no_trust() {
        let (mut first, mut answer) = (Vec::new(), Vec::new());
        let initiator = Handshake::initiator(terms(&[1], "e"), [1; 32], b"a", &mut first);
        let mut responder = Handshake::responder(terms(&[1], "e"), [2; 32]);
        responder.receive(&mut &first[..]).unwrap();
        responder.answer(b"b", &mut answer);
        // The recorded proof belongs to other session keys.
        let mut initiator = initiator;
        initiator.receive(&mut &answer[..]).unwrap();
        let mut proof = Vec::new();
        initiator.confirm(&mut proof);
        let mut victim = Handshake::responder(terms(&[1], "e"), [3; 32]);
        victim.receive(&mut &first[..]).unwrap();
        victim.answer(b"b", &mut Vec::new());
        assert_eq!(victim.receive(&mut &proof[..]).err(), Some(NoiseError::Authentic));
    }

    #[test]
    fn no_two_handshakes_share_their_randomness() {
        let mut entropy = Entropy::new([7; 32]);
        let (first, second) = (entropy.draw(), entropy.draw());
        assert_ne!(first, second);
        assert_ne!(first, Entropy::new([8; 32]).draw());
        let opening = |seed| {
            let mut out = Vec::new();
            Handshake::initiator(terms(&[1], "e"), seed, b"", &mut out);
            out
        };
        assert_ne!(opening(first), opening(second));
        assert!(!format!("{entropy:?}").contains('['));
    }

    #[test]
    fn ends_of_different_channels_do_not_meet() {
        let first = |binding: &[u8]| {
            let mut out = Vec::new();
            Handshake::initiator_in(terms(&[1], "e"), binding, [1; 32], b"a", &mut out);
            out
        };
        let mut same = Handshake::responder_in(terms(&[1], "e"), b"one", [2; 32]);
        assert!(matches!(same.receive(&mut &first(b"one")[..]), Ok(Progress::Hello(_))));
        for other in [&b"two"[..], b""] {
            let mut responder = Handshake::responder_in(terms(&[1], "e"), b"one", [2; 32]);
            assert_eq!(responder.receive(&mut &first(other)[..]).err(), Some(NoiseError::Authentic));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_wait(bytes in proptest::collection::vec(any::<u8>(), 0..900), honest: bool) {
            let mut responder = Handshake::responder(terms(&[1], "e"), [2; 32]);
            let head = head(&terms(&[1], "e"), terms(&[1], "e").keys.first().id());
            let bytes = if honest { [&head[..], &bytes].concat() } else { bytes };
            let end = responder.receive(&mut &bytes[..]);
            prop_assert!(matches!(end, Err(_) | Ok(Progress::More)));
            prop_assert!(responder.held_bytes() <= HEAD_BYTES + 2 + MESSAGE_BYTES_MAX);
        }

        #[test]
        fn any_stream_is_refused_or_waits(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let (mut a, _) = handshake(terms(&[1], "e"), terms(&[1], "e"), 100).unwrap();
            let mut plain = Vec::new();
            let _ = a.open(&bytes, &mut plain);
            prop_assert!(plain.is_empty());
        }
    }
}
