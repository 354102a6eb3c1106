//! Clients of real nodes come back to their sessions: on every transport and serializer, on any shard, on another node.

mod support;

use common::transport::{FrameKind, Framing};
use common::wire::Serializer;
use serde_json::{Value, json};
use support::cluster::Cluster;
use support::{Client, Node, Setup, Wire, eventually};

const TOPIC: &str = "com.example.topic";

/// Says HELLO and takes WELCOME. `before`: session and token it wants to have back.
fn hello(client: &mut Client, before: Option<&(u64, String)>) -> (u64, String, bool) {
    let roles = json!({"publisher": {}, "subscriber": {}, "caller": {}, "callee": {}});
    let mut details = json!({"roles": roles, "resumable": true});
    if let Some((session, token)) = before {
        details["resume-session"] = (*session).into();
        details["resume-token"] = token.as_str().into();
    }
    client.send(&json!([1, "realm1", details]));
    let welcome = client.recv();
    assert_eq!((&welcome[0], &welcome[2]["resumable"]), (&2.into(), &true.into()), "{welcome}");
    client.session = welcome[1].as_u64().expect("an id");
    let token = welcome[2]["resume-token"].as_str().expect("a token").to_owned();
    (client.session, token, welcome[2]["resumed"] == true)
}

/// The client goes without GOODBYE: cut off, or by the closing handshake of WebSocket.
fn go(mut client: Client, politely: bool) {
    if politely && client.wire.framing.is_websocket() {
        client.send_frame(FrameKind::Close, &1001_u16.to_be_bytes());
        assert_eq!(client.end().close, Some(1001), "it is answered");
    }
}

/// The node has noticed that so many connections with sessions that stay have gone.
fn await_gone(node: &Node, times: f64) {
    node.await_metric("signalbox_sessions_detached_total", |value| value >= times);
}

fn numbers(client: &mut Client, count: u64) -> Vec<Value> {
    (0..count).map(|_| client.event()[4][0].clone()).collect()
}

#[test]
fn clients_come_back_on_every_transport_and_serializer() {
    let node = Node::start();
    let mut other = Client::join(&node, Wire::PLAIN);
    let invoke = other.register("com.example.procedure");
    let mut gone = 0.0;
    for serializer in Serializer::ALL {
        let framings = [Framing::RawSocket, Framing::WebSocket, Framing::Batched];
        let wires = framings.map(|framing| Wire { framing, serializer });
        let mut client = Client::connect(&node, wires[0]);
        let (session, mut token, _) = hello(&mut client, None);
        client.subscribe(TOPIC);
        // Each way after each other, several times, so that most pairs of shards are among them.
        for round in 0..6_u64 {
            go(client, round % 2 == 0);
            gone += 1.0;
            await_gone(&node, gone);
            for n in 0..20 {
                other.publish_acknowledged(TOPIC, &json!([round * 20 + n, "x".repeat(3_000)]));
            }
            client = Client::connect(&node, wires[(round as usize + 1) % 3]);
            let (again, next, resumed) = hello(&mut client, Some(&(session, token.clone())));
            assert!(resumed && again == session && next != token);
            token = next;
            let wanted: Vec<Value> = (0..20).map(|n| (round * 20 + n).into()).collect();
            assert_eq!(numbers(&mut client, 20), wanted, "{serializer:?} round {round}");
            let call = client.request(json!([48, 0, {}, "com.example.procedure", [round]]));
            let invocation = other.invocation();
            assert_eq!((&invocation[2], &invocation[4]), (&invoke.into(), &json!([round])));
            other.send(&json!([70, invocation[1], {}, ["served"]]));
            assert_eq!(client.reply(call)[3], json!(["served"]));
        }
        assert_eq!(client.goodbye()[2], "wamp.close.goodbye_and_out");
        client.end();
    }
    node.await_metric("signalbox_sessions", |value| value == 1.0);
    node.await_metric("signalbox_sessions_carried", |value| value == 0.0);
}

#[test]
fn a_client_comes_back_on_another_node() {
    let cluster = Cluster::start(2, "");
    let mut other = Client::join(&cluster.nodes[0], Wire::PLAIN);
    let mut client = Client::connect(&cluster.nodes[1], Wire::PLAIN);
    let (session, mut token, _) = hello(&mut client, None);
    client.subscribe(TOPIC);
    // It is known everywhere once an event arrives.
    eventually("an event crosses", || {
        other.publish(TOPIC, &json!(["first"]));
        let until = std::time::Instant::now() + std::time::Duration::from_millis(50);
        client.wait_for(until, |message| message[0] == 36)
    });
    for (round, to) in [0, 1, 0, 0].into_iter().enumerate() {
        drop(client);
        await_gone(&cluster.nodes[1], round as f64 + 1.0);
        for n in 0..10 {
            other.publish_acknowledged(TOPIC, &json!([round * 10 + n]));
        }
        client = Client::connect(&cluster.nodes[to], Wire::web(Serializer::MsgPack));
        let (again, next, resumed) = hello(&mut client, Some(&(session, token)));
        assert!(resumed && again == session);
        token = next;
        let mut missed = numbers(&mut client, 10);
        while missed[0] == "first" {
            // What was asked for again before the first one was seen.
            missed.remove(0);
            missed.push(client.event()[4][0].clone());
        }
        let wanted: Vec<Value> = (0..10).map(|n| (round * 10 + n).into()).collect();
        assert_eq!(missed, wanted, "round {round}");
    }
}

#[test]
fn sessions_end_with_their_windows() {
    let node = Node::with(Setup::tables("[resume]\nwindow = \"1s\"\n"));
    let mut client = Client::connect(&node, Wire::web(Serializer::Json));
    let (session, token, _) = hello(&mut client, None);
    go(client, true);
    node.await_metric("signalbox_sessions_expired_total", |value| value == 1.0);
    let mut client = Client::connect(&node, Wire::web(Serializer::Json));
    let (again, _, resumed) = hello(&mut client, Some(&(session, token)));
    assert!(!resumed && again != session);
}
