use super::answer::{self, Manner};
use super::*;
use crate::limits::UPGRADE_BYTES_MAX;
use proptest::prelude::*;

const BODY_BYTES_MAX: usize = 100;

/// Reads all requests of a stream that arrives in pieces of `piece` bytes.
fn read(stream: &[u8], piece: usize) -> Result<Vec<(Head, Vec<u8>)>, Problem> {
    let mut reader = Reader::default();
    let (mut found, mut head) = (Vec::new(), None);
    for mut piece in stream.chunks(piece.max(1)) {
        loop {
            if head.is_none() {
                let Some(next) = reader.head(&mut piece)? else { break };
                reader.expect(next.length, BODY_BYTES_MAX)?;
                head = Some(next);
            }
            let Some(body) = reader.body(&mut piece)? else { break };
            found.extend(head.take().map(|head| (head, body)));
        }
        assert!(piece.is_empty(), "a piece is used up");
        assert!(reader.buffered_bytes() <= 2 * (UPGRADE_BYTES_MAX + BODY_BYTES_MAX));
    }
    assert_eq!(reader.is_idle(), head.is_none() && reader.buffered_bytes() == 0);
    Ok(found)
}

fn refused(stream: &[u8]) -> Problem {
    let whole = read(stream, usize::MAX).expect_err("refused");
    assert_eq!(read(stream, 1), Err(whole), "the same in pieces");
    whole
}

fn head(lines: &str) -> Head {
    let stream = format!("POST /wamp/longpoll/open HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
    let found = read(stream.as_bytes(), 7).expect(lines);
    found.into_iter().next().expect("a request").0
}

#[test]
fn requests_follow_each_other_on_a_connection() {
    let id = TransportId { shard: 1, slot: 258, secret: [0xab; 16] };
    let stream = format!(
        "POST /wamp/longpoll/{id}/send?x=1 HTTP/1.1\r\nHost: a:80\r\nContent-Length: 3\r\n\r\n[1]\
         \r\nGET /wamp/sse/{id}/receive HTTP/1.1\r\nhost: a\r\norigin: https://a.example\r\n\r\n\
         POST /wamp/longpoll/{id}/send HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n\
         2;name=value\r\nab\r\n00A\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n\
         POST /wamp/longpoll/{id}/close HTTP/1.0\r\n\r\n"
    );
    for piece in [1, 2, 3, 5, 50, usize::MAX] {
        let found = read(stream.as_bytes(), piece).expect("right");
        let bodies: Vec<&[u8]> = found.iter().map(|(_, body)| &body[..]).collect();
        assert_eq!(bodies, [&b"[1]"[..], b"", b"ab0123456789", b""]);
        let targets = [
            (Kind::LongPoll, Action::Send),
            (Kind::Events, Action::Receive),
            (Kind::LongPoll, Action::Send),
            (Kind::LongPoll, Action::Close),
        ];
        for ((head, _), (kind, action)) in found.iter().zip(targets) {
            let target = Target { kind, action, id: Some(id) };
            assert_eq!(head.target, Some(target));
            assert_eq!(head.method, target.method());
            assert_eq!((head.keep_alive, head.is_1_1), (action != Action::Close, action != Action::Close));
        }
        assert_eq!(found[1].0.origin.as_deref(), Some("https://a.example"));
    }
}

#[test]
fn ids_are_read_back_and_do_not_show_their_secret() {
    let id = TransportId { shard: 255, slot: u32::MAX - 1, secret: *b"0123456789abcdef" };
    let text = id.to_string();
    assert_eq!(TransportId::parse(&text), Some(id));
    assert_eq!(TransportId::from_bytes(id.to_bytes()), id);
    for wrong in ["", &text[1..], &format!("{text}0"), &text.to_uppercase(), &text.replace('f', "g")] {
        assert_eq!(TransportId::parse(wrong), None, "{wrong}");
    }
    assert_eq!(format!("{id:?}"), "transport 4294967294 of shard 255");
}

#[test]
fn paths_are_read_or_none_of_ours() {
    assert_eq!(
        Target::parse("/wamp/longpoll/open?x=382913"),
        Some(Target { kind: Kind::LongPoll, action: Action::Open, id: None })
    );
    let target = Target::parse("/wamp/sse/nonsense/close").expect("a path");
    assert_eq!((target.kind, target.action, target.id), (Kind::Events, Action::Close, None));
    for wrong in [
        "",
        "/",
        "/ws",
        "/wamp/longpoll/",
        "/wamp/longpoll/a",
        "/wamp/longpoll/a/b",
        "/wamp/longpoll/a/send/",
    ] {
        assert_eq!(Target::parse(wrong), None, "{wrong}");
    }
}

#[test]
fn requests_of_ours_are_told_from_others_by_their_first_bytes() {
    for (bytes, expected) in [
        (&b"POST /wamp/longpoll/open HTTP/1.1\r\n"[..], Some(true)),
        (b"\r\nGET /wamp/sse/x", Some(true)),
        (b"GET /ws HTTP/1.1\r\n", Some(false)),
        (b"GET /wamp/s", None),
        (b"GET /wamp/sx", Some(false)),
        (b"POS", None),
        (b"", None),
        (b"\r\n", None),
        (b"AAAAAAAAAAAAAAAA", Some(false)),
    ] {
        assert_eq!(is_request(bytes), expected, "{}", bytes.escape_ascii());
        if let Some(expected) = expected {
            let told = (0..bytes.len()).find_map(|end| is_request(&bytes[..end]));
            assert!(told.is_none_or(|told| told == expected));
        }
    }
}

#[test]
fn two_ends_of_one_request_are_refused() {
    let with = |lines: &str| format!("POST /a HTTP/1.1\r\nHost: a\r\n{lines}\r\n\r\n").into_bytes();
    for lines in [
        "Content-Length: 3\r\nTransfer-Encoding: chunked",
        "Content-Length: 3\r\nContent-Length: 3",
        "Content-Length: 3, 3",
        "Content-Length: +3",
        "Content-Length: ",
        "Content-Length: 0x3",
        "Content-Length: 99999999999999999999",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "A: b\nContent-Length: 3",
        "Host: b",
        "Origin: a b",
        "Origin: a\r\nOrigin: a",
    ] {
        assert!(matches!(refused(&with(lines)), Problem::Malformed(_)), "{lines}");
    }
    assert_eq!(refused(&with("Transfer-Encoding: gzip, chunked")), Problem::Coding);
    assert_eq!(refused(&with("Content-Encoding: gzip")), Problem::MediaType);
    assert_eq!(refused(&with("Expect: a miracle")), Problem::Expectation);
    assert_eq!(refused(b"POST /a HTTP/2.0\r\nHost: a\r\n\r\n"), Problem::Version);
    for lines in ["POST /a HTTP/1.1", "nonsense", "POST /a HTTP/1.0\r\nTransfer-Encoding: chunked"] {
        assert!(matches!(refused(format!("{lines}\r\n\r\n").as_bytes()), Problem::Malformed(_)), "{lines}");
    }
}

#[test]
fn chunks_that_are_not_right_are_refused() {
    let with = |body: &str| {
        format!("POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}").into_bytes()
    };
    for body in [
        "\r\n",
        "x\r\n",
        ";a\r\n",
        "2\r\nabc",
        "2\r\nab0\r\n",
        "2\nab\r\n",
        "0\r\nA: b\n",
        "00000000000000001\r\n",
        &format!("1;{}", "a".repeat(5_000)),
        &format!("0\r\n{}", "a".repeat(5_000)),
        &format!("0\r\n{}", "a: b\r\n".repeat(2_000)),
    ] {
        assert!(matches!(refused(&with(body)), Problem::Malformed(_)), "{body}");
    }
    assert_eq!(refused(&with("65\r\n")), Problem::TooLarge);
    assert_eq!(refused(&with("ffffffffffffffff\r\n")), Problem::TooLarge);
    assert_eq!(
        refused(&with("64\r\n").into_iter().chain([b'a'; 100]).chain(*b"\r\n1\r\n").collect::<Vec<_>>()),
        Problem::TooLarge
    );
}

#[test]
fn what_is_too_long_is_refused_before_it_is_kept() {
    let head = format!("POST /a HTTP/1.1\r\nHost: a\r\nA: {}", "a".repeat(UPGRADE_BYTES_MAX));
    assert_eq!(refused(head.as_bytes()), Problem::HeadTooLarge);
    let many = "A: b\r\n".repeat(65);
    let many = format!("POST /a HTTP/1.1\r\nHost: a\r\n{many}\r\n");
    assert_eq!(refused(many.as_bytes()), Problem::HeadTooLarge);
    let body = b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 101\r\n\r\n";
    assert_eq!(refused(body), Problem::TooLarge);
}

#[test]
fn connections_stay_as_the_version_says() {
    assert!(head("").keep_alive && !head("Connection: Close\r\n").keep_alive);
    assert!(head("Expect: 100-Continue\r\nContent-Length: 0\r\n").expects_continue);
    let old = |lines: &str| {
        let stream = format!("POST /a HTTP/1.0\r\n{lines}\r\n");
        read(stream.as_bytes(), 9).expect("right").remove(0).0
    };
    assert!(!old("").keep_alive && old("Connection: keep-alive\r\n").keep_alive);
    assert!(!old("Expect: 100-continue\r\n").expects_continue);
}

#[test]
fn bodies_are_of_a_type_that_suits_their_transport() {
    let content = |value: &str| head(&format!("Content-Type: {value}\r\n")).content;
    assert_eq!(content("application/json; charset=utf-8"), Content::Of(Serializer::Json));
    assert_eq!(content("Application/CBOR"), Content::Of(Serializer::Cbor));
    assert_eq!(content("application/msgpack"), Content::Of(Serializer::MsgPack));
    assert_eq!(content("application/x-www-form-urlencoded"), Content::Other);
    for unsaid in ["text/plain", "application/octet-stream"] {
        assert!(Serializer::ALL.iter().all(|serializer| content(unsaid).suits(*serializer)));
    }
    assert!(!content("application/json").suits(Serializer::Cbor) && !Content::Other.suits(Serializer::Json));
    for serializer in Serializer::ALL {
        assert!(content(media_type(serializer)).suits(serializer));
    }
}

#[test]
fn the_first_protocol_that_is_spoken_is_opened() {
    let deep = "[".repeat(4_000);
    let open = |kind, body: &str| parse_open(kind, body.as_bytes()).map(|opening| opening.name);
    let long = |body| open(Kind::LongPoll, body);
    assert_eq!(long(r#"{"protocols":["wamp.3.json","wamp.2.json"]}"#), Ok("wamp.2.json"));
    assert_eq!(long(r#"{"protocols":["wamp.2.cbor.batched","wamp.2.json"]}"#), Ok("wamp.2.cbor.batched"));
    for wrong in [r#"{"protocols":[]}"#, "{}", r#"{"protocols":"wamp.2.json"}"#, r#"{"protocols":[1]}"#] {
        assert_eq!(long(wrong), Err(Problem::NoProtocol), "{wrong}");
    }
    for wrong in ["", "[]", "nonsense", "{\"protocols\":[", &deep] {
        assert_eq!(long(wrong), Err(Problem::Json), "{wrong}");
    }
    let events = |body| open(Kind::Events, body);
    assert_eq!(events(r#"{"protocols":["wamp.2.json.sse"]}"#), Ok("wamp.2.json.sse"));
    assert_eq!(events(r#"{"protocols":["wamp.2.json"]}"#), Ok("wamp.2.json"));
    assert_eq!(events(r#"{"protocols":["wamp.2.cbor","wamp.2.json.batched"]}"#), Err(Problem::NoProtocol));
    assert_eq!(long(r#"{"protocols":["wamp.2.json.sse"]}"#), Err(Problem::NoProtocol));
}

#[test]
fn answers_are_http() {
    let manner =
        Manner { keep_alive: true, is_1_1: true, origin: Some("https://a".into()), credentials: true };
    let mut out = Vec::new();
    answer::write(&manner, "200 OK", "application/json", b"[1]", &mut out);
    let text = String::from_utf8(std::mem::take(&mut out)).expect("ASCII");
    assert!(text.starts_with("HTTP/1.1 200 OK\r\nConnection: keep-alive\r\n"), "{text}");
    let allowed = "\r\nAccess-Control-Allow-Origin: https://a\r\nAccess-Control-Allow-Credentials: true\r\n";
    assert!(text.contains(allowed), "{text}");
    assert!(text.ends_with("\r\nContent-Type: application/json\r\nContent-Length: 3\r\n\r\n[1]"), "{text}");
    answer::write(&Manner::CLOSING, "204 No Content", "", b"", &mut out);
    let text = String::from_utf8(std::mem::take(&mut out)).expect("ASCII");
    assert!(text.contains("\r\nConnection: close\r\n") && !text.contains("Content-Length"), "{text}");
    answer::refuse(&manner, Problem::Method(Method::Get), &mut out);
    let text = String::from_utf8(std::mem::take(&mut out)).expect("ASCII");
    assert!(text.starts_with("HTTP/1.1 405 ") && text.contains("\r\nAllow: GET, OPTIONS\r\n"), "{text}");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    assert!(head.contains(&format!("Content-Length: {}", body.len())), "{text}");
    let body = OwnedValue::decode(Serializer::Json, body.as_bytes());
    assert!(matches!(body, Ok(OwnedValue::Dict(entries)) if entries[0].0 == "error"));
}

#[test]
fn events_keep_line_breaks_between_the_tokens_of_json() {
    let mut out = Vec::new();
    answer::event("wamp", b"[36,1,\r\n2,{}]", &mut out);
    assert_eq!(out, b"event: wamp\ndata: [36,1,\ndata: \ndata: 2,{}]\n\n");
    let mut stream = Vec::new();
    let manner = Manner { keep_alive: true, is_1_1: true, origin: None, credentials: false };
    answer::stream(&manner, &[b'x'; 20], &mut stream);
    answer::stream(&manner, b"", &mut stream);
    answer::end_stream(&manner, &mut stream);
    assert_eq!(stream, b"14\r\nxxxxxxxxxxxxxxxxxxxx\r\n0\r\n\r\n");
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused_however_they_are_cut(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        whole: bool,
        piece in 1usize..40,
    ) {
        let start = b"POST /wamp/sse/open HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        let bytes = if whole { [&start[..], &bytes].concat() } else { bytes };
        prop_assert_eq!(read(&bytes, usize::MAX), read(&bytes, piece));
        let _ = (is_request(&bytes), parse_open(Kind::LongPoll, &bytes));
    }

    #[test]
    fn any_body_comes_whole(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..20), 0..5), piece in 1usize..30) {
        let mut stream = b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        for chunk in &chunks {
            stream.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            stream.extend_from_slice(chunk);
            stream.extend_from_slice(b"\r\n");
        }
        stream.extend_from_slice(b"0\r\n\r\n");
        let found = read(&stream, piece).expect("right");
        prop_assert_eq!(&found[0].1, &chunks.concat());
    }
}
