//! What listeners can be told: both transports on one port, PROXY headers, IPv6, Unix-domain sockets.

mod support;

use common::transport::Framing;
use common::wire::Serializer;
use serde_json::json;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;
use support::{Client, Node, PATIENCE, Setup, Wire, eventually};

/// A node with one more listener, and the address of that.
fn node(listener: &str) -> (Node, SocketAddr) {
    let node = Node::with(Setup::tables(&format!("[[listener]]\n{listener}\n")));
    let status = node.status();
    let listeners = status["data_plane"]["listeners"].as_array().expect("listeners");
    let address = listeners[2]["address"].as_str().expect("an address").parse().expect("an address");
    (node, address)
}

/// A raw connection that has sent `header` and then a RawSocket handshake, and what was answered to both.
fn answer(address: SocketAddr, header: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).expect("connected");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    // In two parts, so the header is cut.
    let bytes = [header, &[0x7f, 0xf1, 0, 0]].concat();
    let (first, second) = bytes.split_at(bytes.len() / 2);
    for part in [first, second] {
        // A connection that was closed is told by the answer.
        let _ = stream.write_all(part);
    }
    let mut answer = vec![0; 4];
    match stream.read_exact(&mut answer) {
        Ok(()) => answer,
        Err(_) => Vec::new(),
    }
}

#[test]
fn both_transports_are_served_on_one_port() {
    let (_node, address) = node("transport = \"auto\"\naddress = \"127.0.0.1:0\"");
    let mut clients: Vec<Client> = Wire::all().map(|wire| Client::join_at(address, wire)).collect();
    for client in &mut clients {
        client.subscribe("com.example.auto");
    }
    clients[0].publish_acknowledged("com.example.auto", &json!(["hello"]));
    for client in &mut clients[1..] {
        assert_eq!(client.event()[4], json!(["hello"]));
    }
}

#[test]
fn what_is_neither_transport_is_answered_as_http() {
    let (_node, address) = node("transport = \"auto\"\naddress = \"127.0.0.1:0\"");
    let mut stream = TcpStream::connect(address).expect("connected");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer, then the end");
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
}

#[test]
fn clients_of_ipv6_are_served() {
    let (_node, address) = node("transport = \"auto\"\naddress = \"[::1]:0\"");
    assert!(address.is_ipv6());
    for framing in [Framing::RawSocket, Framing::WebSocket] {
        let wire = Wire { framing, serializer: Serializer::Cbor };
        // Anonymous sessions are for this machine, which ::1 is.
        Client::connect_to(address, wire).expect("connected").hello("realm1");
    }
}

#[test]
fn a_proxy_header_says_who_the_client_is() {
    let (node, address) = node("transport = \"rawsocket\"\naddress = \"127.0.0.1:0\"\nproxy_protocol = true");
    let version_2 = |address: [u8; 4]| {
        let signature = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c";
        [&signature[..], &address, &[127, 0, 0, 1, 1, 0, 1, 0]].concat()
    };
    for (header, is_local) in [
        (b"PROXY TCP4 192.0.2.1 127.0.0.1 1 2\r\n".to_vec(), false),
        (b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n".to_vec(), true),
        (b"PROXY TCP6 ::ffff:127.0.0.1 ::1 1 2\r\n".to_vec(), true),
        (b"PROXY UNKNOWN\r\n".to_vec(), false),
        (b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0".to_vec(), true),
        (version_2([192, 0, 2, 1]), false),
        (version_2([127, 0, 0, 2]), true),
    ] {
        let mut stream = TcpStream::connect(address).expect("connected");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        let hello = br#"[1,"realm1",{"roles":{"caller":{}}}]"#;
        let length = (hello.len() as u32).to_be_bytes();
        stream.write_all(&[&header[..], &[0x7f, 0xf1, 0, 0], &length, hello].concat()).expect("written");
        let mut answer = [0; 10];
        stream.read_exact(&mut answer).expect("an answer");
        // The handshake, a frame's prefix, and WELCOME or ABORT: anonymous sessions are for this machine.
        assert_eq!(&answer[8..], if is_local { b"[2" } else { b"[3" }, "{}", header.escape_ascii());
    }
    assert_eq!(node.await_metric("signalbox_proxy_headers_refused_total", |_| true), 0.0);
}

#[test]
fn without_a_right_proxy_header_there_is_no_connection() {
    let (node, address) = node("transport = \"rawsocket\"\naddress = \"127.0.0.1:0\"\nproxy_protocol = true");
    assert_eq!(answer(address, b"PROXY UNKNOWN\r\n").len(), 4);
    let wrong = [
        &b""[..],
        b"GET / HTTP/1.1\r\n\r\n",
        b"PROXY TCP4 1 2 3 4\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff",
    ];
    for header in wrong {
        assert_eq!(answer(address, header), [0u8; 0], "{}", header.escape_ascii());
    }
    node.await_metric("signalbox_proxy_headers_refused_total", |count| count == wrong.len() as f64);
}

#[test]
fn a_proxy_header_is_not_looked_for_where_it_is_not_configured() {
    let (node, _) = node("transport = \"auto\"\naddress = \"127.0.0.1:0\"");
    assert_eq!(answer(node.address(Wire::PLAIN), b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n"), [0u8; 0]);
}

/// A node that listens on a socket in `folder`, and its path.
fn unix_node(folder: &tempfile::TempDir) -> (Node, PathBuf) {
    let path = folder.path().join("socket");
    let listener = format!("[[listener]]\ntransport = \"auto\"\nsocket = {path:?}\nmode = \"0620\"\n");
    (Node::with(Setup::tables(&listener)), path)
}

/// The values of a metric, by shard.
fn by_shard(node: &Node, name: &str) -> Vec<f64> {
    let answer = support::http::get(node.admin().expect("the admin address"), "/metrics").expect("/metrics");
    let of_name = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{'));
    let values = answer.body.lines().filter(of_name).filter_map(|line| line.rsplit_once(' '));
    values.map(|(_, value)| value.parse().expect("a number")).collect()
}

#[test]
fn clients_of_a_unix_socket_are_of_this_machine_and_spread_over_the_shards() {
    let folder = tempfile::tempdir().expect("a folder");
    let (node, path) = unix_node(&folder);
    let metadata = std::fs::metadata(&path).expect("a socket");
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o620);
    let listeners = node.status()["data_plane"]["listeners"].clone();
    assert_eq!(listeners[2]["address"], format!("unix:{}", path.display()));
    let mut clients: Vec<Client> = Wire::all()
        .map(|wire| {
            let mut client = Client::connect_unix(&path, wire).expect("connected");
            // Anonymous sessions are for this machine.
            client.hello("realm1");
            client
        })
        .collect();
    let asked = clients[0].session;
    let details = clients[1].ask(json!([48, 0, {}, "wamp.session.get", [asked]]))[3][0].clone();
    let peer = details["transport"]["peer"].as_str().expect("a peer").to_owned();
    let own = format!("unix:pid={},uid={},gid=", std::process::id(), metadata.uid());
    assert!(peer.starts_with(&own), "{peer}");
    for client in &mut clients {
        client.subscribe("com.example.unix");
    }
    clients[0].publish_acknowledged("com.example.unix", &json!(["hello"]));
    for client in &mut clients[1..] {
        assert_eq!(client.event()[4], json!(["hello"]));
    }
    // Each client came when all shards waited for it, and they take turns.
    let count = clients.len() as f64;
    node.await_metric("signalbox_connections_accepted_total", |accepted| accepted == count);
    let shards = by_shard(&node, "signalbox_connections_accepted_total");
    assert_eq!(shards.len(), node.setup.shards());
    assert!(shards.iter().all(|accepted| *accepted >= 1.0), "{shards:?}");
}

#[test]
fn the_socket_of_a_data_plane_that_was_killed_is_taken_over() {
    let folder = tempfile::tempdir().expect("a folder");
    let (node, path) = unix_node(&folder);
    let wire = Wire::raw(Serializer::Cbor);
    let mut client = Client::connect_unix(&path, wire).expect("connected");
    client.hello("realm1");
    let killed = node.data_pid().expect("a data plane");
    node.kill_data();
    let mut client = eventually("the next data plane listens at the same path", || {
        node.data_pid().filter(|pid| *pid != killed)?;
        Client::connect_unix(&path, wire).ok()
    });
    client.hello("realm1");
}
