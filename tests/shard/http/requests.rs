//! Requests by themselves: those that are right in unusual ways, and those that are wrong.

use super::{HTTP, Transport, answers, ask, request, serving};
use crate::HELLO;
use crate::rig::Rig;
use std::time::Duration;

/// The status of each answer to what a new connection sends, and whether it is kept.
fn statuses(rig: &mut Rig, sent: &str) -> (Vec<u16>, bool) {
    let at = rig.connect(0, HTTP).expect("there is room");
    rig.receive(at, sent.as_bytes());
    rig.run();
    let statuses = answers(rig, at).iter().map(|answer| answer.status).collect();
    rig.pass(Duration::from_millis(1_100));
    rig.run();
    (statuses, rig.links[at].open)
}

#[test]
fn a_transport_is_for_who_knows_its_name() {
    let mut rig = Rig::new(2, serving);
    let poll = Transport::open(&mut rig, "longpoll", "wamp.2.json", 0, 1);
    poll.join(&mut rig, "realm1");
    let id = poll.base.rsplit('/').next().expect("an id").to_owned();
    let (shard, rest) = id.split_at(2);
    assert_eq!(shard, "00");
    let flip = |at: usize| {
        let mut digits = rest.to_owned().into_bytes();
        digits[at] = if digits[at] == b'0' { b'1' } else { b'0' };
        String::from_utf8(digits).expect("digits")
    };
    let wrong = [
        format!("01{rest}"),
        format!("02{rest}"),
        format!("ff{rest}"),
        format!("00{}", flip(0)),
        format!("00{}", flip(7)),
        format!("00{}", flip(8)),
        format!("00{}", flip(39)),
        "0".repeat(42),
        "x".repeat(42),
        id[1..].to_owned(),
    ];
    for at in [poll.up, poll.down] {
        for wrong in &wrong {
            for action in ["send", "receive", "close"] {
                let path = format!("/wamp/longpoll/{wrong}/{action}");
                let answer = ask(&mut rig, at, "POST", &path, "");
                assert_eq!(answer.status, 404, "{path}");
                assert!(answer.body.starts_with("{\"error\":\"transport_not_found\""), "{}", answer.body);
            }
        }
        // As one of the other kind it is not known either.
        let path = format!("/wamp/sse/{id}/receive");
        assert_eq!(ask(&mut rig, at, "GET", &path, "").status, 404);
    }
    assert_eq!(poll.send(&mut rig, r#"[32,1,{},"com.example.a"]"#), 202, "the session did not notice");
    poll.close(&mut rig);
    rig.check_empty();
}

#[test]
fn requests_that_are_wrong_are_refused_as_http_wants() {
    let mut rig = Rig::new(2, |config| {
        serving(config);
        config.listeners[HTTP].message_max = 1_000;
        config.listeners[HTTP].origins = vec!["https://app.example".to_owned()];
    });
    let poll = Transport::open(&mut rig, "longpoll", "wamp.2.json", 0, 1);
    let base = poll.base.clone();
    let open = "/wamp/longpoll/open";
    let with = |header: &str, method: &str, path: &str, body: &str| {
        request(method, path, body).replace("Host: a\r\n", &format!("Host: a\r\n{header}\r\n"))
    };
    let protocols = "{\"protocols\":[\"wamp.2.json\"]}";
    for (sent, status, is_kept) in [
        (with("Connection: close", "POST", &format!("{base}/send"), "[5]"), 400, false),
        (request("POST", "/wamp/longpoll/", ""), 404, true),
        (request("GET", open, ""), 405, true),
        (request("DELETE", open, "x"), 405, false),
        (request("HEAD", open, ""), 405, false),
        (request("POST", &base.replace("longpoll", "sse").replace("/receive", ""), ""), 404, true),
        (format!("POST {open} HTTP/1.1\r\nHost: a\r\n\r\n"), 411, true),
        (request("POST", open, "nonsense"), 400, true),
        (request("POST", open, "{\"protocols\":[\"wamp.9.json\"]}"), 400, true),
        (request("POST", open, &"x".repeat(5_000)), 413, false),
        (with("Content-Type: text/html", "POST", open, protocols), 415, false),
        (with("Origin: https://evil.example", "POST", open, ""), 403, true),
        (with("Origin: https://evil.example", "OPTIONS", open, ""), 403, true),
        (with("Origin: https://app.example", "OPTIONS", open, ""), 204, true),
        (with(&format!("A: {}", "a".repeat(9_000)), "POST", open, ""), 431, false),
        (format!("POST {open} HTTP/1.1\r\n\r\n"), 400, false),
        (format!("POST {open} HTTP/3.0\r\nHost: a\r\n\r\n"), 505, false),
        (with("Transfer-Encoding: gzip", "OPTIONS", open, ""), 501, false),
        (with("Expect: a miracle", "POST", open, ""), 417, false),
    ] {
        assert_eq!(statuses(&mut rig, &sent), (vec![status], is_kept), "{sent}");
    }
    // A client of a page that is admitted.
    let at = rig.connect(0, HTTP).expect("there is room");
    rig.receive(at, with("Origin: https://app.example", "POST", open, protocols).as_bytes());
    rig.run();
    let opened = answers(&mut rig, at).remove(0);
    assert_eq!(opened.status, 200);
    assert!(opened.head.contains("\r\nAccess-Control-Allow-Origin: https://app.example"), "{}", opened.head);
    for path in ["/ws", "/"] {
        // No path of HTTP transports: an upgrade, that this is not.
        let (status, is_kept) = statuses(&mut rig, &request("POST", path, ""));
        assert!(matches!(status[..], [404 | 405]) && !is_kept, "{path} {status:?}");
    }
    rig.pass(Duration::from_secs(12));
    rig.check_empty();
}

#[test]
fn bodies_may_come_in_chunks_and_after_a_word() {
    let mut rig = Rig::new(1, serving);
    let poll = Transport::open(&mut rig, "longpoll", "wamp.2.json", 0, 0);
    let at = poll.up;
    let send = format!("POST {}/send HTTP/1.1\r\nHost: a\r\n", poll.base);
    let chunked = format!("{send}Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n");
    rig.receive(at, chunked.as_bytes());
    rig.run();
    let word = String::from_utf8(std::mem::take(&mut rig.links[at].got)).expect("text");
    assert_eq!(word, "HTTP/1.1 100 Continue\r\n\r\n");
    let (first, second) = HELLO.split_at(20);
    rig.receive(
        at,
        format!("{:x}\r\n{first}\r\n{:x}\r\n{second}\r\n0\r\n\r\n", first.len(), second.len()).as_bytes(),
    );
    rig.run();
    assert_eq!(answers(&mut rig, at)[0].status, 202);
    assert!(poll.receive(&mut rig).starts_with("[2,"));
    // Requests that come at once are answered in order.
    let subscribe = |n: u32| {
        request("POST", &format!("{}/send", poll.base), &format!("[32,{n},{{}},\"com.example.a{n}\"]"))
    };
    rig.receive(at, (1..=5).map(subscribe).collect::<String>().as_bytes());
    rig.run();
    let statuses: Vec<u16> = answers(&mut rig, at).iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, [202; 5]);
    for n in 1..=5 {
        assert!(poll.receive(&mut rig).starts_with(&format!("[33,{n},")));
    }
    poll.close(&mut rig);
    rig.check_empty();
}

#[test]
fn slow_and_greedy_clients_are_closed() {
    let mut rig = Rig::new(2, |config| {
        serving(config);
        config.timeouts.login = Duration::from_secs(2);
    });
    let poll = Transport::open(&mut rig, "longpoll", "wamp.2.json", 0, 1);
    poll.join(&mut rig, "realm1");
    // A head, and a body, that come too slowly.
    let head = request("POST", &format!("{}/send", poll.base), "[32,1,{},\"com.example.a\"]");
    for cut in [10, head.len() - 1] {
        let at = rig.connect(0, HTTP).expect("there is room");
        for octet in head[..cut].bytes() {
            rig.receive(at, &[octet]);
            rig.run();
        }
        for _ in 0..5 {
            rig.pass(Duration::from_millis(500));
            rig.run();
        }
        // One that had not shown what it speaks is closed without a word.
        let answers = answers(&mut rig, at);
        assert_eq!(answers.first().map(|answer| answer.status), (cut > 10).then_some(408));
        rig.pass(Duration::from_millis(1_500));
        rig.run();
        assert!(!rig.links[at].open);
    }
    // More behind a request that waits than is kept for anybody.
    poll.wait(&mut rig);
    rig.receive(poll.down, &[b'x'; 60 << 10]);
    rig.run();
    assert!(rig.links[poll.down].open);
    rig.receive(poll.down, &[b'x'; 60 << 10]);
    rig.run();
    rig.pass(Duration::from_secs(2));
    rig.run();
    assert!(!rig.links[poll.down].open);
    assert_eq!(poll.send(&mut rig, r#"[32,1,{},"com.example.a"]"#), 202);
    poll.close(&mut rig);
    rig.check_empty();
}
