//! Real nodes on loopback act as one router: a realm made on one is usable on all, events and calls cross, and state survives a
//! restart of either process.

mod support;

use common::ids::{Match, RealmId, RouteKind, route_id};
use common::wire::Serializer;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use support::cluster::{Cluster, get};
use support::{Client, Node, Wire, eventually, http};

const WIRE: Wire = Wire::raw(Serializer::MsgPack);
fn put_realm(node: &Node, name: &str) {
    let admin = node.admin().expect("the admin address");
    let answer = http::request(admin, "PUT", &format!("/realms/{name}"), "").expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.body);
    let answer: Value = serde_json::from_str(&answer.body).expect("JSON");
    assert_eq!(answer["in_force"], true, "{answer}");
}

/// Joins the realm, as soon as the node knows it.
fn join(node: &Node, realm: &str) -> Client {
    eventually(&format!("{realm} can be joined"), || {
        let mut client = Client::connect(node, WIRE);
        client.send(&json!([1, realm, {"roles": {"subscriber": {}}}]));
        (client.recv()[0] == 2).then_some(client)
    })
}

#[test]
fn a_realm_made_on_one_node_is_usable_on_the_others_at_once_and_after_a_restart() {
    let mut cluster = Cluster::start(3, "");
    let nodes = &mut cluster.nodes;
    let mut times = vec![];
    for number in 0..10 {
        let realm = format!("com.example.realm{number}");
        put_realm(&nodes[number % 3], &realm);
        let began = Instant::now();
        for node in &*nodes {
            drop(join(node, &realm));
        }
        times.push(began.elapsed());
    }
    times.sort();
    println!("from in force on one node to joined on all three, once each: {times:?}");
    assert!(times[5] < Duration::from_secs(2), "{times:?}");

    let names = |node: &Node| -> Vec<String> {
        let realms = get(node, "/realms")["realms"].as_array().expect("realms").clone();
        realms.iter().map(|realm| realm["name"].as_str().expect("a name").to_owned()).collect()
    };
    nodes[1].kill_control();
    put_realm(&nodes[0], "com.example.meanwhile");
    nodes[1].start_control();
    assert!(names(&nodes[1]).contains(&"com.example.meanwhile".to_owned()), "ready means that it has all");
    let admin = nodes[1].admin().expect("the admin address");
    let removed = http::request(admin, "DELETE", "/realms/com.example.realm0", "").expect("an answer");
    assert_eq!(removed.status, 200, "{}", removed.body);
    for node in &*nodes {
        eventually("the removal is everywhere", || {
            (!names(node).contains(&"com.example.realm0".to_owned())).then_some(())
        });
    }
}

#[test]
fn events_and_calls_cross_nodes() {
    let mut cluster = Cluster::start(2, "");
    let nodes = &mut cluster.nodes;
    let mut subscriber = Client::join(&nodes[1], WIRE);
    subscriber.subscribe("com.example.topic");
    subscriber.register("com.example.procedure");
    let mut publisher = Client::join(&nodes[0], WIRE);
    let began = Instant::now();
    let event = eventually("an event crosses", || {
        publisher.publish("com.example.topic", &json!([1]));
        subscriber.wait_for(Instant::now() + Duration::from_millis(20), |message| message[0] == 36)
    });
    println!("from subscribed to an event from the other node: {:?}", began.elapsed());
    assert_eq!(event[4], json!([1]));
    let call = |caller: &mut Client, callee: &mut Client| {
        let request = caller.request(json!([48, 0, {}, "com.example.procedure", [5]]));
        let invocation = callee.invocation();
        callee.send(&json!([70, invocation[1], {}, [6]]));
        assert_eq!(caller.reply(request), json!([50, request, {}, [6]]));
    };
    let (request, invocation) = call_until_invoked(&mut publisher, &mut subscriber);
    subscriber.send(&json!([70, invocation[1], {}]));
    assert_eq!(publisher.reply(request)[0], 50);
    call(&mut publisher, &mut subscriber);

    // Control planes come and go; clients notice nothing.
    for node in &mut *nodes {
        node.kill_control();
        node.start_control();
        call(&mut publisher, &mut subscriber);
    }
}

/// Calls again and again, as a registration takes some time to be known on other nodes. The request and the INVOCATION.
fn call_until_invoked(caller: &mut Client, callee: &mut Client) -> (u64, Value) {
    eventually("the callee is called", || {
        let request = caller.request(json!([48, 0, {}, "com.example.procedure"]));
        let soon = || Instant::now() + Duration::from_millis(20);
        let invocation = eventually("an invocation or an error", || {
            let invoked = callee.wait_for(soon(), |message| message[0] == 68).map(Some);
            let failed = |message: &Value| message[0] == 8 && message[2] == request;
            invoked.or_else(|| caller.wait_for(soon(), failed).map(|_| None))
        })?;
        Some((request, invocation))
    })
}

#[test]
fn a_call_whose_node_dies_ends_and_its_successor_is_called() {
    let cluster = Cluster::start(2, "");
    let nodes = &cluster.nodes;
    let mut callee = Client::join(&nodes[1], WIRE);
    callee.register("com.example.procedure");
    let mut caller = Client::join(&nodes[0], WIRE);
    let (request, _) = call_until_invoked(&mut caller, &mut callee);
    nodes[1].kill_data();
    let began = Instant::now();
    let error = caller.reply(request);
    println!("from the death of a data plane to the caller's error: {:?}", began.elapsed());
    assert_eq!(error[0], 8, "{error}");
    assert!(began.elapsed() < Duration::from_secs(5));

    let mut callee = eventually("another data plane serves", || {
        let status = get(&nodes[1], "/status");
        (status["ready"] == true).then_some(())?;
        let listeners = status["data_plane"]["listeners"].as_array()?.clone();
        let listener = listeners.iter().find(|listener| listener["transport"] == "rawsocket")?;
        let mut client = Client::connect_to(listener["address"].as_str()?.parse().ok()?, WIRE).ok()?;
        client.hello("realm1");
        Some(client)
    });
    callee.register("com.example.procedure");
    let (request, invocation) = call_until_invoked(&mut caller, &mut callee);
    callee.send(&json!([70, invocation[1], {}]));
    assert_eq!(caller.reply(request)[0], 50);
}

/// Joins the node's realm if it serves, wherever its data plane listens by now.
fn join_ready(node: &Node) -> Option<Client> {
    let status = get(node, "/status");
    (status["ready"] == true).then_some(())?;
    let listeners = status["data_plane"]["listeners"].as_array()?.clone();
    let listener = listeners.iter().find(|listener| listener["transport"] == "rawsocket")?;
    let mut client = Client::connect_to(listener["address"].as_str()?.parse().ok()?, WIRE).ok()?;
    client.hello("realm1");
    Some(client)
}

/// The retained event that a new session of this node gets, once there is one.
fn retained(node: &Node, topic: &str, payload: &Value) {
    eventually(&format!("{topic} retains {payload}"), || {
        let mut client = join_ready(node)?;
        let request = client.request(json!([32, 0, {"get_retained": true}, topic]));
        client.reply(request);
        let event =
            client.wait_for(Instant::now() + Duration::from_millis(100), |message| message[0] == 36)?;
        assert_eq!(event[3], json!({"retained": true}));
        (event[4] == *payload).then_some(())
    });
}

#[test]
fn a_retained_event_is_on_all_nodes_and_survives_both_processes() {
    let mut cluster = Cluster::start(2, "");
    let nodes = &mut cluster.nodes;
    let retain = json!({"retain": true, "acknowledge": true});
    let mut publisher = Client::join(&nodes[0], WIRE);
    let mut topics = Vec::new();
    for number in 0..10 {
        let topic = format!("com.example.kept{number}");
        publisher.ask(json!([16, 0, retain, topic, ["old"]]));
        publisher.ask(json!([16, 0, retain, topic, [number]]));
        topics.push((topic, json!([number])));
    }
    for (topic, payload) in &topics {
        nodes.iter().for_each(|node| retained(node, topic, payload));
    }
    // A data plane that is new is told everything by its control plane.
    nodes[1].kill_data();
    topics.iter().for_each(|(topic, payload)| retained(&nodes[1], topic, payload));
    // What is published while a control plane is away is stored when it is back, and what others retain comes then.
    nodes[1].kill_control();
    publisher.ask(json!([16, 0, retain, topics[0].0, ["while one was away"]]));
    nodes[1].start_control();
    retained(&nodes[1], &topics[0].0, &json!(["while one was away"]));
    nodes[0].kill_control();
    publisher.ask(json!([16, 0, retain, topics[1].0, ["while its own was away"]]));
    nodes[0].start_control();
    retained(&nodes[0], &topics[1].0, &json!(["while its own was away"]));
    retained(&nodes[1], &topics[1].0, &json!(["while its own was away"]));
    // Of a node that starts from its disk alone nothing is missing.
    nodes.remove(1);
    nodes[0].kill_data();
    retained(&nodes[0], &topics[1].0, &json!(["while its own was away"]));
    retained(&nodes[0], &topics[9].0, &topics[9].1);
}

/// The publications of a history as a node tells them, once all nodes have answered.
fn history(node: &Node, count: usize) -> Vec<Value> {
    let realm = RealmId::of("realm1");
    let id = route_id(realm, RouteKind::Topic, Match::Exact, "com.example.log");
    eventually("a node tells the whole history", || {
        let mut client = join_ready(node)?;
        let answer = client.ask(json!([48, 0, {}, "wamp.subscription.get_events", [id]]));
        let events = answer[3].as_array().filter(|_| answer[0] == 50 && answer.get(4).is_none())?.clone();
        let ids: Vec<Value> = events.iter().map(|event| event["publication"].clone()).collect();
        (ids.len() == count).then_some(ids)
    })
}

#[test]
fn a_history_is_told_by_all_nodes_in_one_order_and_by_a_data_plane_that_is_new() {
    let cluster = Cluster::start(2, "[[history]]\nrealm = \"realm1\"\nuri = \"com.example.log\"\n");
    let nodes = &cluster.nodes;
    let mut publishers = [0, 1].map(|node| Client::join(&nodes[node], WIRE));
    let mut published = Vec::new();
    for number in 0..10 {
        let id = publishers[number % 2].publish_acknowledged("com.example.log", &json!([number]));
        published.push(json!(id));
    }
    let [first, second] = [0, 1].map(|node| history(&nodes[node], 10));
    assert_eq!(first, second);
    // Each publisher's are in its order.
    for node in 0..2 {
        let own: Vec<_> = published.iter().skip(node).step_by(2).collect();
        assert_eq!(first.iter().filter(|id| own.contains(id)).collect::<Vec<_>>(), own);
    }
    // What it has lost the other one tells.
    nodes[1].kill_data();
    assert_eq!(history(&nodes[1], 10), first);
    let last = publishers[0].publish_acknowledged("com.example.log", &json!(["after"]));
    for node in nodes {
        let all = history(node, 11);
        assert_eq!((&all[..10], &all[10]), (&first[..], &json!(last)));
    }
}
