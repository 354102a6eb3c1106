//! Listeners that send every WebSocket message back as it came (`listener.echo`), for test suites that speak no WAMP:
//! such a connection goes through everything that one with a session does but the session.

use super::Shard;
use super::conn::Phase;
use super::flow::Class;
use common::metrics::Counter;
use common::transport::{Frame, FrameError, FrameKind};
use common::wire::Serializer;

/// What a frame held, out of the framer's hands so that the framer can be asked for its type.
enum Held {
    Plain(Vec<u8>),
    Compressed(Vec<u8>),
}

impl Shard {
    /// The upgrade is over and no message will be WAMP.
    pub(super) fn begin_echo(&mut self, slot: u32) {
        let listener = usize::from(self.at(slot).listener);
        let message_max = self.config.listeners[listener].message_max as usize;
        let conn = self.at(slot);
        conn.phase = Phase::Echo;
        if let Some(framer) = &mut conn.framer {
            framer.accept_any_type();
            framer.set_message_bytes_max(message_max);
        }
        self.logins -= 1;
        self.set_deadline(slot, self.config.timeouts.ping_interval);
    }

    /// Answers the frames in received bytes with the same.
    #[cold]
    pub(super) fn echo(&mut self, slot: u32, mut chunk: &mut [u8]) {
        let Some(mut framer) = self.at(slot).framer.take() else { return };
        let generation = self.at(slot).generation;
        loop {
            let held = match framer.next(&mut chunk) {
                Ok(Some(Frame::Message(payload))) => Held::Plain(payload.to_vec()),
                Ok(Some(Frame::Compressed(payload))) => Held::Compressed(payload.to_vec()),
                Ok(Some(Frame::Ping(payload))) => {
                    self.push_control(slot, FrameKind::Pong, payload);
                    continue;
                }
                Ok(Some(Frame::Pong(_))) => continue,
                Ok(Some(Frame::Close { code })) => {
                    return self.hang_up(slot, if code == 1005 { 1000 } else { code });
                }
                Ok(None) => break,
                Err(error) => return self.hang_up(slot, error.close_code()),
            };
            if let Err(error) = self.send_back(slot, framer.is_text(), held) {
                return self.hang_up(slot, error.close_code());
            }
            if !self.is_read(slot, generation) {
                return;
            }
        }
        self.at(slot).framer = Some(framer);
    }

    fn send_back(&mut self, slot: u32, is_text: bool, held: Held) -> Result<(), FrameError> {
        self.metrics.count(Counter::MessagesReceived);
        let listener = usize::from(self.at(slot).listener);
        let message_max = self.config.listeners[listener].message_max as usize;
        // The serializer says of which type a message is, one way and the other.
        self.at(slot).serializer = if is_text { Serializer::Json } else { Serializer::Cbor };
        let message = match held {
            Held::Plain(message) => message,
            Held::Compressed(payload) => {
                let mut message = Vec::new();
                self.inflate(slot, &payload, message_max, &mut message)?;
                message
            }
        };
        self.push(slot, Class::Reply, |_, out| out.extend_from_slice(&message));
        Ok(())
    }
}
