//! Sessions by HTTP with a real node of two shards: requests come to either.

mod support;

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use support::{Client, Node, PATIENCE, Setup, Wire};

/// A node with one more listener, and the address of that.
fn node(listener: &str) -> (Node, SocketAddr) {
    let node = Node::with(Setup::tables(&format!(
        "[[listener]]\n{listener}\naddress = \"127.0.0.1:0\"\n[http]\npoll_timeout = \"1s\"\n"
    )));
    let status = node.status();
    let listeners = status["data_plane"]["listeners"].as_array().expect("listeners");
    let address = listeners[2]["address"].as_str().expect("an address").parse().expect("an address");
    (node, address)
}

/// A connection that sends requests and reads their answers.
struct Http {
    stream: BufReader<TcpStream>,
}

impl Http {
    fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("connected");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        stream.set_nodelay(true).expect("no delay");
        Self { stream: BufReader::new(stream) }
    }

    fn write(&mut self, method: &str, path: &str, body: &str) {
        let length = body.len();
        let request =
            format!("{method} {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{body}");
        self.stream.get_mut().write_all(request.as_bytes()).expect("written");
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).expect("a line");
        line.trim_end().to_owned()
    }

    /// The status of the next answer, and its length if it says one.
    fn head(&mut self) -> (u16, usize) {
        let status = self.line();
        let status = status.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        let mut length = 0;
        loop {
            let line = self.line();
            if let Some(value) = line.strip_prefix("Content-Length: ") {
                length = value.parse().expect("a length");
            }
            if line.is_empty() {
                return (status, length);
            }
        }
    }

    fn answer(&mut self) -> (u16, String) {
        let (status, length) = self.head();
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).expect("the body");
        (status, String::from_utf8(body).expect("text"))
    }

    fn ask(&mut self, method: &str, path: &str, body: &str) -> (u16, String) {
        self.write(method, path, body);
        self.answer()
    }

    /// The data of the next event of a stream.
    fn event(&mut self, name: &str) -> Value {
        loop {
            let line = self.line();
            if line.strip_prefix("event: ") == Some(name) {
                let data = self.line();
                let data = data.strip_prefix("data: ").expect("data");
                return serde_json::from_str(data).expect("JSON");
            }
        }
    }
}

/// Opens a transport, and returns the path of its requests.
fn open(http: &mut Http, kind: &str, protocol: &str) -> String {
    let body = json!({ "protocols": [protocol] }).to_string();
    let (status, body) = http.ask("POST", &format!("/wamp/{kind}/open"), &body);
    assert_eq!(status, 200, "{body}");
    let body: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(body["protocol"], protocol);
    format!("/wamp/{kind}/{}", body["transport"].as_str().expect("an id"))
}

const HELLO: &str = r#"[1,"realm1",{"roles":{"caller":{},"callee":{},"publisher":{},"subscriber":{}}}]"#;

/// A session, and a message each way on new connections, which the kernel gives to either shard.
fn use_session(address: SocketAddr, peer: &mut Client, round: usize) {
    let connect = || Http::connect(address);
    let base = open(&mut connect(), "longpoll", "wamp.2.json");
    let send = |message: Value| {
        let answer = connect().ask("POST", &format!("{base}/send"), &message.to_string());
        assert_eq!(answer, (202, String::new()));
    };
    let receive = || {
        let (status, body) = connect().ask("POST", &format!("{base}/receive"), "");
        assert_eq!(status, 200, "{body}");
        serde_json::from_str::<Value>(&body).expect("JSON")
    };
    send(serde_json::from_str(HELLO).expect("JSON"));
    assert_eq!(receive()[0], 2);
    let topic = format!("com.example.round{round}");
    send(json!([32, 1, {}, topic]));
    assert_eq!(receive()[1], 1);
    peer.subscribe(&format!("{topic}.back"));
    peer.publish_acknowledged(&topic, &json!(["there"]));
    assert_eq!(receive()[4], json!(["there"]));
    send(json!([16, 2, { "acknowledge": true }, format!("{topic}.back"), ["back"]]));
    assert_eq!(peer.event()[4], json!(["back"]));
    assert_eq!(receive()[0], 17);
    let (status, _) = connect().ask("POST", &format!("{base}/receive"), "");
    assert_eq!(status, 204, "nothing is left");
    assert_eq!(connect().ask("POST", &format!("{base}/close"), "").0, 202);
    assert_eq!(connect().ask("POST", &format!("{base}/receive"), "").0, 404);
}

#[test]
fn sessions_are_served_whichever_shard_a_request_comes_to() {
    let (node, address) = node("transport = \"http\"");
    let mut peer = Client::join(&node, Wire::PLAIN);
    for round in 0..4 {
        use_session(address, &mut peer, round);
    }
    node.await_metric("signalbox_http_transports", |open| open == 0.0);
    assert_eq!(node.await_metric("signalbox_http_transports_opened_total", |opened| opened == 4.0), 4.0);
    assert_eq!(node.await_metric("signalbox_sessions", |sessions| sessions == 1.0), 1.0);
}

#[test]
fn events_are_streamed_to_clients() {
    let (node, address) = node("http = true");
    let mut peer = Client::join(&node, Wire::PLAIN);
    let mut http = Http::connect(address);
    let base = open(&mut http, "sse", "wamp.2.json.sse");
    let mut stream = Http::connect(address);
    stream.write("GET", &format!("{base}/receive"), "");
    assert_eq!(stream.head().0, 200);
    assert_eq!(http.ask("POST", &format!("{base}/send"), HELLO).0, 202);
    assert_eq!(stream.event("wamp")[0], 2);
    assert_eq!(http.ask("POST", &format!("{base}/send"), r#"[32,1,{},"com.example.a"]"#).0, 202);
    assert_eq!(stream.event("wamp")[0], 33);
    for n in 0..1_000 {
        peer.publish("com.example.a", &json!([n]));
    }
    for n in 0..1_000 {
        assert_eq!(stream.event("wamp")[4], json!([n]));
    }
    // The node ends while the stream is open.
    node.terminate();
    assert_eq!(stream.event("wamp")[2], "wamp.close.system_shutdown");
    assert!(stream.event("session_terminated")["message"].is_string());
}

#[test]
fn one_port_serves_everything() {
    let (_node, address) = node("transport = \"auto\"\nhttp = true");
    let mut clients: Vec<Client> = Wire::all().map(|wire| Client::join_at(address, wire)).collect();
    use_session(address, &mut clients[0], 0);
    let (status, _) = Http::connect(address).ask("GET", "/", "");
    assert_eq!(status, 404);
}

#[test]
fn pages_that_are_not_named_do_not_connect() {
    let (_node, address) = node("http = true\norigins = [\"https://app.example\"]");
    let status = |origin: &str, request: &str| {
        let mut http = Http::connect(address);
        let request = request.replace("Host: a\r\n", &format!("Host: a\r\nOrigin: {origin}\r\n"));
        http.stream.get_mut().write_all(request.as_bytes()).expect("written");
        http.head().0
    };
    let upgrade = "GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Protocol: wamp.2.json\r\n\r\n";
    let body = "{\"protocols\":[\"wamp.2.json\"]}";
    let length = body.len();
    let open =
        format!("POST /wamp/longpoll/open HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{body}");
    let preflight = "OPTIONS /wamp/longpoll/open HTTP/1.1\r\nHost: a\r\n\
        Access-Control-Request-Method: POST\r\n\r\n";
    for (request, expected) in [(upgrade, 101), (&open, 200), (preflight, 204)] {
        assert_eq!(status("https://app.example", request), expected, "{request}");
        assert_eq!(status("https://evil.example", request), 403, "{request}");
    }
}

#[test]
fn hostile_clients_are_refused_and_nobody_else_notices() {
    let (node, address) = node("transport = \"http\"\norigins = [\"https://app.example\"]");
    let mut peer = Client::join(&node, Wire::PLAIN);
    for (input, status) in [
        (&b"nonsense\r\n\r\n"[..], "400"),
        (b"POST /wamp/longpoll/open HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n", "413"),
        (b"POST /wamp/longpoll/open HTTP/1.1\r\nHost: a\r\nOrigin: https://evil.example\r\n\r\n", "403"),
        (b"POST /wamp/longpoll/00/send HTTP/1.1\r\nHost: a\r\nContent-Length: 999999\r\n\r\nxxx", "404"),
        (b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "404"),
        (b"\x7f\xf1\x00\x00\n", "400"),
    ] {
        let mut stream = Http::connect(address);
        stream.stream.get_mut().write_all(input).expect("written");
        assert_eq!(stream.head().0.to_string(), status, "{}", input.escape_ascii());
    }
    use_session(address, &mut peer, 0);
}
