//! The meta API on a real node of several shards, whatever shard the kernel gives a connection to.

mod support;

use common::wire::Serializer;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use support::{Client, Node, Wire};

fn call(client: &mut Client, procedure: &str, args: &Value) -> Value {
    client.ask(json!([48, 0, {}, procedure, args]))[3].clone()
}

fn session(welcome: &Value) -> u64 {
    welcome[1].as_u64().expect("a session id")
}

#[test]
fn sessions_on_all_shards_are_known_told_of_and_killed() {
    let node = Node::start();
    let mut watcher = Client::connect(&node, Wire::PLAIN);
    let mut ids = BTreeSet::from([session(&watcher.hello("realm1"))]);
    watcher.subscribe("wamp.session.on_join");
    watcher.subscribe("wamp.session.on_leave");
    watcher.subscribe("com.example.will");
    // So many that no shard is left out but by great bad luck.
    let mut clients = Vec::new();
    for n in 0..16 {
        let wire = Wire { serializer: Serializer::ALL[n % 3], ..Wire::PLAIN };
        let mut client = Client::connect(&node, wire);
        let id = session(&client.hello("realm1"));
        assert_eq!(watcher.event()[4][0]["session"], id);
        ids.insert(id);
        clients.push((id, client));
    }
    assert_eq!(call(&mut watcher, "wamp.session.count", &json!([])), json!([17]));
    assert_eq!(call(&mut watcher, "wamp.session.list", &json!([])), json!([ids]));
    for (id, _) in &clients {
        let details = call(&mut watcher, "wamp.session.get", &json!([id]));
        assert_eq!(details[0]["authid"], format!("{id:x}"));
    }
    // The connection of the first breaks, the second is killed, the third says good-bye.
    let testament = json!(["com.example.will", ["gone"]]);
    let (first, mut client) = clients.remove(0);
    assert_eq!(call(&mut client, "wamp.session.add_testament", &testament), Value::Null);
    drop(client);
    assert_eq!(watcher.event()[4], json!(["gone"]));
    assert_eq!(watcher.event()[4], json!([first, format!("{first:x}"), "anonymous"]));
    let (second, mut client) = clients.remove(0);
    assert_eq!(call(&mut watcher, "wamp.session.kill", &json!([second])), Value::Null);
    assert_eq!(client.recv(), json!([6, {}, "wamp.close.killed"]));
    assert_eq!(watcher.event()[4][0], second);
    let (third, mut client) = clients.remove(0);
    client.goodbye();
    assert_eq!(watcher.event()[4][0], third);
    assert_eq!(call(&mut watcher, "wamp.session.kill_all", &json!([])), json!([13]));
    for (_, client) in &mut clients {
        assert_eq!(client.recv(), json!([6, {}, "wamp.close.killed"]));
    }
    assert_eq!(call(&mut watcher, "wamp.session.count", &json!([])), json!([1]));
    // Times are those of the calendar.
    let registration = watcher.register("com.example.p");
    let details = call(&mut watcher, "wamp.registration.get", &json!([registration]));
    let created = details[0]["created"].as_str().expect("a time");
    assert!(created > "2026-" && created.len() == "2026-11-21T13:40:00.000Z".len(), "{created}");
}
