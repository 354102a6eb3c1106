//! What compressed messages unfold to, whoever sends them, is bounded in a turn (RFC 7692).

use super::rig::Rig;
use common::config::Compression;
use common::transport::deflate::{Deflater, write_client_frame};
use common::transport::upgrade;
use common::wire::Serializer;
use std::time::Duration;

const WEBSOCKET: usize = 1;
const HELLO: &str = r#"[1,"realm1",{"roles":{"publisher":{}}}]"#;
/// What one message unfolds to; it comes as some hundred bytes.
const BYTES: usize = 200_000;

struct Client {
    link: usize,
    deflater: Deflater,
}

impl Client {
    fn join(rig: &mut Rig) -> Self {
        let link = rig.connect(0, WEBSOCKET).expect("there is room");
        let mut request = Vec::new();
        upgrade::write_request("localhost", "/ws", Serializer::Json, [5; 16], &mut request);
        request.truncate(request.len() - 2);
        request.extend_from_slice(b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n");
        rig.receive(link, &request);
        rig.run();
        let mut client = Self { link, deflater: Deflater::new(6, 15) };
        client.send(rig, &[HELLO.to_owned()]);
        rig.run();
        assert!(String::from_utf8_lossy(&rig.links[link].got).contains("permessage-deflate"));
        client
    }

    /// Sends messages in one piece.
    fn send(&mut self, rig: &mut Rig, messages: &[String]) {
        let mut bytes = Vec::new();
        for message in messages {
            self.deflater.reset();
            write_client_frame(&mut self.deflater, true, message.as_bytes(), [1, 2, 3, 4], &mut bytes);
        }
        assert!(bytes.len() < BYTES / 10);
        rig.receive(self.link, &bytes);
    }

    /// Publications that were acknowledged.
    fn published(&self, rig: &mut Rig) -> usize {
        rig.finish_send(self.link, true);
        rig.links[self.link].got.windows(4).filter(|bytes| bytes == b"[17,").count()
    }
}

fn publications(count: usize) -> Vec<String> {
    let publish = |n| format!(r#"[16,{n},{{"acknowledge":true}},"com.t",["{}"]]"#, "x".repeat(BYTES));
    (1..=count).map(publish).collect()
}

fn rig() -> Rig {
    Rig::new(1, |config| config.listeners[WEBSOCKET].compression = Compression::NoTakeover)
}

#[test]
fn a_turn_unfolds_its_share_and_the_rest_waits_in_order() {
    let mut rig = rig();
    let (mut first, mut second) = (Client::join(&mut rig), Client::join(&mut rig));
    rig.pass(Duration::from_millis(1));
    first.send(&mut rig, &publications(9));
    second.send(&mut rig, &publications(1));
    assert_eq!((first.published(&mut rig), second.published(&mut rig)), (2, 0));
    assert!(rig.links[first.link].paused && rig.links[second.link].paused);
    // What comes now waits where it is.
    first.send(&mut rig, &publications(1));
    let mut turns = 0;
    let mut before = 2;
    while rig.links[first.link].paused {
        rig.pass(Duration::from_millis(1));
        let now = first.published(&mut rig) + second.published(&mut rig);
        assert!(now > before && now - before <= 2, "{before} to {now}");
        assert!(turns == 0 || second.published(&mut rig) == 1, "nobody waits for all that another one sent");
        (before, turns) = (now, turns + 1);
    }
    rig.pass(Duration::from_millis(1));
    rig.run();
    rig.pass(Duration::from_millis(1));
    assert_eq!((first.published(&mut rig), second.published(&mut rig)), (10, 1));
    assert!(!rig.links[first.link].paused && !rig.links[second.link].paused);
    rig.check_empty();
}

#[test]
fn who_leaves_is_waited_for_no_more() {
    let mut rig = rig();
    let (mut first, mut second) = (Client::join(&mut rig), Client::join(&mut rig));
    rig.pass(Duration::from_millis(1));
    first.send(&mut rig, &publications(9));
    second.send(&mut rig, &publications(1));
    rig.close(first.link);
    rig.pass(Duration::from_millis(1));
    assert_eq!(second.published(&mut rig), 1);
    rig.check_empty();
}
