//! The basic profile on a real node: every message on every transport and serializer, across shards.

mod support;

use serde_json::{Value, json};
use support::{Client, Node, Wire};

use common::wire::Serializer;

/// What applications send: every kind of value, at the edges.
fn payload() -> (Value, Value) {
    let args = json!([
        0, -1, 255, 65_536, 9_007_199_254_740_993_u64, u64::MAX, i64::MIN, 1.5, -0.25, 1e300, true, false, null, "",
        "ü€😀\"\\\n", "\u{0}AQID/w==", [], {}, [[], [{}], [[[[1]]]]], {"a": {"b": [1, {"c": null}]}},
        "x".repeat(300),
    ]);
    (args, json!({"name": "signalbox", "n": 1, "list": [1, 2], "nested": {"ünïcode": "ja"}}))
}

#[test]
fn every_message_on_every_transport_and_serializer() {
    let node = Node::start();
    for wire in Wire::all() {
        let mut one = Client::connect(&node, wire);
        check_welcome(&one.hello("realm1"));
        let mut two = Client::join(&node, wire);
        publish_and_subscribe(&mut one, &mut two);
        register_and_call(&mut one, &mut two);
        assert_eq!(one.goodbye(), json!([6, {}, "wamp.close.goodbye_and_out"]), "{wire:?}");
        assert_eq!(two.goodbye()[2], "wamp.close.goodbye_and_out", "{wire:?}");
    }
}

/// WELCOME `[2, session, details]` announces both router roles.
fn check_welcome(welcome: &Value) {
    let session = welcome[1].as_u64().expect("a session id");
    assert!((1..=1 << 53).contains(&session));
    let details = welcome[2].as_object().expect("details");
    assert!(details["roles"]["broker"].is_object() && details["roles"]["dealer"].is_object());
    assert_eq!(welcome.as_array().map(Vec::len), Some(3));
}

fn publish_and_subscribe(publisher: &mut Client, subscriber: &mut Client) {
    let (args, kwargs) = payload();
    let subscription = subscriber.subscribe("com.example.topic");
    let options = json!({"acknowledge": true});
    let published = publisher.ask(json!([16, 0, options, "com.example.topic", args, kwargs]));
    assert_eq!(published[0], 17);
    let event = subscriber.event();
    assert_eq!(event, json!([36, subscription, published[2], {}, args, kwargs]), "{:?}", publisher.wire);

    for tail in [vec![], vec![json!([1])], vec![json!([]), json!({"only": "kwargs"})]] {
        let mut message = vec![json!(16), json!(0), json!({}), json!("com.example.topic")];
        message.extend(tail.iter().cloned());
        publisher.request(Value::Array(message));
        let event = subscriber.event();
        let got = event.as_array().expect("a list")[4..].to_vec();
        let same = got == tail || (got.is_empty() && tail.iter().all(|part| part == &json!([])));
        assert!(same, "sent {tail:?}, got {got:?}");
    }
    assert_eq!(subscriber.ask(json!([34, 0, subscription])).as_array().map(Vec::len), Some(2));
}

fn register_and_call(caller: &mut Client, callee: &mut Client) {
    let (args, kwargs) = payload();
    let registration = callee.register("com.example.procedure");
    let request = caller.request(json!([48, 0, {}, "com.example.procedure", args, kwargs]));
    let invocation = callee.invocation();
    assert_eq!(invocation, json!([68, invocation[1], registration, {}, args, kwargs]), "{:?}", caller.wire);
    callee.send(&json!([70, invocation[1], {}, args, kwargs]));
    assert_eq!(caller.reply(request), json!([50, request, {}, args, kwargs]), "{:?}", caller.wire);

    let request = caller.request(json!([48, 0, {}, "com.example.procedure"]));
    let invocation = callee.invocation();
    assert_eq!(invocation.as_array().map(Vec::len), Some(4), "{invocation}");
    callee.send(&json!([8, 68, invocation[1], {}, "com.example.failed", args, kwargs]));
    assert_eq!(caller.reply(request), json!([8, 48, request, {}, "com.example.failed", args, kwargs]));

    let request = caller.request(json!([48, 0, {}, "com.example.procedure", [1]]));
    let invocation = callee.invocation();
    callee.send(&json!([70, invocation[1], {}]));
    assert_eq!(caller.reply(request), json!([50, request, {}]));

    assert_eq!(callee.ask(json!([66, 0, registration])).as_array().map(Vec::len), Some(2));
    let error = caller.ask_error(json!([48, 0, {}, "com.example.procedure"]));
    assert_eq!(error, "wamp.error.no_such_procedure");
}

#[test]
fn serializers_and_transports_mix() {
    let node = Node::start();
    let mut clients: Vec<Client> = Wire::all().map(|wire| Client::join(&node, wire)).collect();
    let (args, kwargs) = payload();
    for client in &mut clients {
        client.subscribe("com.example.mixed");
    }
    for from in 0..clients.len() {
        let options = json!({"exclude_me": false, "acknowledge": true});
        clients[from].ask(json!([16, 0, options, "com.example.mixed", args, kwargs]));
        for to in 0..clients.len() {
            let event = clients[to].event();
            let wires = (clients[from].wire, clients[to].wire);
            assert_eq!((&event[4], &event[5]), (&args, &kwargs), "{wires:?}");
        }
    }
    for callee in 0..clients.len() {
        let procedure = format!("com.example.mixed{callee}");
        clients[callee].register(&procedure);
        for caller in (0..clients.len()).filter(|caller| *caller != callee) {
            let wires = (clients[caller].wire, clients[callee].wire);
            let request = clients[caller].request(json!([48, 0, {}, procedure, args, kwargs]));
            let invocation = clients[callee].invocation();
            assert_eq!((&invocation[4], &invocation[5]), (&args, &kwargs), "{wires:?}");
            clients[callee].send(&json!([70, invocation[1], {}, args, kwargs]));
            assert_eq!(clients[caller].reply(request), json!([50, request, {}, args, kwargs]), "{wires:?}");
        }
    }
}

#[test]
fn a_byte_string_reaches_every_serializer() {
    use common::wire::OwnedValue;
    let node = Node::start();
    let mut json_client = Client::join(&node, Wire::web(Serializer::Json));
    json_client.subscribe("com.example.bytes");
    let mut cbor_client = Client::join(&node, Wire::raw(Serializer::Cbor));
    cbor_client.subscribe("com.example.bytes");
    let mut publisher = Client::join(&node, Wire::raw(Serializer::MsgPack));
    let message = OwnedValue::List(vec![
        OwnedValue::UInt(16),
        OwnedValue::UInt(1),
        OwnedValue::Dict(vec![]),
        OwnedValue::Str("com.example.bytes".to_owned()),
        OwnedValue::List(vec![OwnedValue::Bin(vec![1, 2, 3, 0xff])]),
    ]);
    let mut bytes = Vec::new();
    message.encode(Serializer::MsgPack, &mut bytes);
    publisher.send_bytes(&bytes);
    // WAMP's JSON convention: a zero character, then base64. The test client shows CBOR's byte string the same way.
    assert_eq!(json_client.event()[4], json!(["\u{0}AQID/w=="]));
    assert_eq!(cbor_client.event()[4], json!(["\u{0}AQID/w=="]));
}

#[test]
fn requests_that_cannot_be_served_get_the_error_the_specification_names() {
    let node = Node::start();
    let mut client = Client::join(&node, Wire::PLAIN);
    let mut other = Client::join(&node, Wire::web(Serializer::Json));
    let invalid = ["", "a..b", ".a", "a.", "a b", "a#b"];
    for uri in invalid {
        for request in [
            json!([32, 0, {}, uri]),
            json!([64, 0, {}, uri]),
            json!([16, 0, {"acknowledge": true}, uri]),
            json!([48, 0, {}, uri]),
        ] {
            let code = request[0].clone();
            let answer = client.ask(request);
            assert_eq!((&answer[0], &answer[1]), (&json!(8), &code), "{uri:?}");
            assert_eq!(answer[4], "wamp.error.invalid_uri", "{uri:?}");
        }
    }
    assert_eq!(client.ask_error(json!([48, 0, {}, "com.nobody"])), "wamp.error.no_such_procedure");
    assert_eq!(client.ask_error(json!([34, 0, 12_345])), "wamp.error.no_such_subscription");
    assert_eq!(client.ask_error(json!([66, 0, 12_345])), "wamp.error.no_such_registration");
    client.register("com.example.taken");
    for second in [&mut client, &mut other] {
        let error = second.ask_error(json!([64, 0, {}, "com.example.taken"]));
        assert_eq!(error, "wamp.error.procedure_already_exists");
    }
}

#[test]
fn uris_of_the_router_are_not_for_clients() {
    let node = Node::start();
    let mut client = Client::join(&node, Wire::PLAIN);
    for uri in ["wamp", "wamp.session.on_join", "wamp.x"] {
        let error = client.ask_error(json!([64, 0, {}, uri]));
        assert_eq!(error, "wamp.error.invalid_uri");
        let error = client.ask_error(json!([16, 0, {"acknowledge": true}, uri]));
        assert_eq!(error, "wamp.error.invalid_uri");
    }
    client.subscribe("wamp.session.on_join");
    client.register("wampus.ok");
}

#[test]
fn nobody_gives_up_what_another_session_holds() {
    let node = Node::start();
    let mut holder = Client::join(&node, Wire::PLAIN);
    let mut thief = Client::join(&node, Wire::PLAIN);
    let subscription = holder.subscribe("com.example.held");
    let registration = holder.register("com.example.held");
    assert_eq!(thief.ask_error(json!([34, 0, subscription])), "wamp.error.no_such_subscription");
    assert_eq!(thief.ask_error(json!([66, 0, registration])), "wamp.error.no_such_registration");
    thief.publish("com.example.held", &json!([1]));
    assert_eq!(holder.event()[4], json!([1]));
    let request = thief.request(json!([48, 0, {}, "com.example.held"]));
    let invocation = holder.invocation();
    holder.send(&json!([70, invocation[1], {}, ["mine"]]));
    assert_eq!(thief.reply(request)[3], json!(["mine"]));
}

#[test]
fn hello_is_refused_with_a_reason() {
    let node = Node::start();
    let roles = json!({"roles": {"caller": {}}});
    let cases = [
        (json!([1, "com.no.such.realm", roles]), "wamp.error.no_such_realm"),
        (json!([1, "not a uri", roles]), "wamp.error.invalid_uri"),
        (json!([1, "realm1", {}]), "wamp.error.protocol_violation"),
        (json!([1, "realm1", {"roles": {}}]), "wamp.error.protocol_violation"),
        (
            json!([1, "realm1", {"roles": {"caller": {}}, "authmethods": ["ticket"]}]),
            "wamp.error.no_matching_auth_method",
        ),
    ];
    for wire in Wire::all() {
        for (hello, reason) in &cases {
            let mut client = Client::connect(&node, wire);
            client.send(hello);
            let (got, text) = client.aborted();
            assert_eq!(got, *reason, "{hello}");
            assert!(!text.is_empty(), "a client author is told what is wrong: {hello}");
        }
    }
}

#[test]
fn a_compatible_realm_takes_what_real_clients_send() {
    let node = Node::start();
    let mut client = Client::connect(&node, Wire::web(Serializer::Json));
    let details = json!({
        "roles": {"caller": {"features": {}}, "callee": {}, "subscriber": {}, "publisher": {}, "unheard_of": {}},
        "authmethods": ["anonymous"], "authid": "", "authextra": null, "agent": "x", "_own": 1,
    });
    client.send(&json!([1, "realm1", details]));
    assert_eq!(client.recv()[0], 2);
    // Random request ids, null options, disclosure that was never announced, unknown options.
    client.send(&json!([32, 777, {"match": null}, "com.example.a"]));
    assert_eq!(client.reply(777)[0], 33);
    client.send(&json!([64, 5, {"invoke": null, "disclose_caller": true}, "com.example.a"]));
    assert_eq!(client.reply(5)[0], 65);
    client.send(
        &json!([48, 1_000, {"disclose_me": true, "receive_progress": true, "timeout": 0}, "com.example.a"]),
    );
    let invocation = client.invocation();
    client.send(&json!([70, invocation[1], {}, [], {}]));
    assert_eq!(client.reply(1_000)[0], 50);
    client.send(&json!([16, 3, {"exclude_me": false, "x": [1]}, "com.example.a"]));
    assert_eq!(client.event()[0], 36);
}

#[test]
fn a_strict_realm_wants_request_ids_in_sequence() {
    let realms = "[[realm]]\nname = \"realm1\"\ndegree = \"strict\"\n";
    let node = Node::with(support::Setup::tables(realms));
    let mut client = Client::join(&node, Wire::PLAIN);
    client.subscribe("com.example.a");
    client.publish("com.example.a", &json!([]));
    client.send(&json!([32, 7, {}, "com.example.b"]));
    let (reason, text) = client.aborted();
    assert_eq!(reason, "wamp.error.protocol_violation");
    assert!(text.contains('7') && text.contains('3'), "{text}");

    let mut client = Client::join(&node, Wire::PLAIN);
    client.request(json!([32, 0, {"match": 5}, "com.example.b"]));
    assert_eq!(client.aborted().0, "wamp.error.protocol_violation");

    // What is asked for must have been announced.
    for message in [
        json!([48, 1, {"progress": true}, "com.example.p"]),
        json!([48, 1, {"ppt_scheme": "x_own"}, "com.example.p"]),
        json!([16, 1, {"ppt_scheme": "x_own"}, "com.example.t"]),
        json!([70, 1, {"ppt_scheme": "x_own"}]),
    ] {
        let mut client = Client::join(&node, Wire::PLAIN);
        client.send(&message);
        let (reason, text) = client.aborted();
        assert_eq!(reason, "wamp.error.protocol_violation");
        assert!(text.contains("announce"), "{text}");
    }
}

#[test]
fn a_repeated_subscribe_gets_the_same_id_and_one_event() {
    let node = Node::start();
    let mut subscriber = Client::join(&node, Wire::PLAIN);
    let mut publisher = Client::join(&node, Wire::PLAIN);
    let first = subscriber.subscribe("com.example.twice");
    assert_eq!(subscriber.subscribe("com.example.twice"), first);
    publisher.publish("com.example.twice", &json!([1]));
    publisher.publish("com.example.twice", &json!([2]));
    assert_eq!(subscriber.event()[4], json!([1]));
    assert_eq!(subscriber.event()[4], json!([2]));
    assert_eq!(subscriber.ask(json!([34, 0, first]))[0], 35);
    assert_eq!(subscriber.ask_error(json!([34, 0, first])), "wamp.error.no_such_subscription");
}

#[test]
fn a_publisher_gets_its_own_event_only_when_it_asks_for_it() {
    let node = Node::start();
    let mut client = Client::join(&node, Wire::PLAIN);
    client.subscribe("com.example.own");
    client.publish_acknowledged("com.example.own", &json!(["not for me"]));
    client.request(json!([16, 0, {"exclude_me": false}, "com.example.own", ["for me"]]));
    assert_eq!(client.event()[4], json!(["for me"]));
}

#[test]
fn an_unacknowledged_publish_is_not_answered_even_when_it_fails() {
    let node = Node::start();
    let mut client = Client::join(&node, Wire::PLAIN);
    client.request(json!([16, 0, {}, "not a uri"]));
    client.request(json!([16, 0, {"acknowledge": false}, "com.example.ok"]));
    let next = client.request(json!([32, 0, {}, "com.example.ok"]));
    let answer = client.recv();
    assert_eq!((&answer[0], &answer[1]), (&json!(33), &json!(next)), "nothing was said before: {answer}");
}

#[test]
fn no_event_comes_after_unsubscribed() {
    let node = Node::start();
    let mut subscriber = Client::join(&node, Wire::PLAIN);
    let mut publisher = Client::join(&node, Wire::PLAIN);
    let given_up = subscriber.subscribe("com.example.up");
    subscriber.subscribe("com.example.kept");
    subscriber.ask(json!([34, 0, given_up]));
    publisher.publish("com.example.up", &json!([]));
    publisher.publish("com.example.kept", &json!(["kept"]));
    assert_eq!(subscriber.event()[4], json!(["kept"]), "order: the other one would have come first");
}

#[test]
fn patterns_match_topics_and_procedures() {
    let node = Node::start();
    let mut subscriber = Client::join(&node, Wire::PLAIN);
    let mut publisher = Client::join(&node, Wire::PLAIN);
    let exact = subscriber.subscribe("com.myapp.topic.emergency");
    let mut pattern = |policy: &str, uri: &str| {
        let answer = subscriber.ask(json!([32, 0, {"match": policy}, uri]));
        answer[2].as_u64().unwrap_or_else(|| panic!("expected SUBSCRIBED, got {answer}"))
    };
    let prefix = pattern("prefix", "com.myapp.topic.emergency");
    let wildcard = pattern("wildcard", "com..topic.emergency");
    let publication = publisher.publish_acknowledged("com.myapp.topic.emergency", &json!([1]));
    let mut seen: Vec<(u64, Value)> = (0..3)
        .map(|_| {
            let event = subscriber.event();
            assert_eq!(event[2], publication, "one publication id for all");
            (event[1].as_u64().expect("an id"), event[3]["topic"].clone())
        })
        .collect();
    seen.sort_by_key(|(id, _)| *id);
    let topic = json!("com.myapp.topic.emergency");
    let mut expected = vec![(exact, Value::Null), (prefix, topic.clone()), (wildcard, topic)];
    expected.sort_by_key(|(id, _)| *id);
    assert_eq!(seen, expected);
    publisher.publish("com.myapp.topic.emergency-low", &json!([2]));
    assert_eq!(subscriber.event()[1], prefix, "a prefix is one of the string");

    let answer = subscriber.ask(json!([64, 0, {"match": "prefix"}, "com.myapp"]));
    let registration = &answer[2];
    let request = publisher.request(json!([48, 0, {}, "com.myapp.add"]));
    let invocation = subscriber.invocation();
    assert_eq!((&invocation[2], &invocation[3]["procedure"]), (registration, &json!("com.myapp.add")));
    subscriber.send(&json!([70, invocation[1], {}]));
    assert_eq!(publisher.reply(request)[0], 50);
}

/// Enough sessions that the kernel puts some on each shard.
const SPREAD: usize = 12;

fn spread(node: &Node) -> Vec<Client> {
    let wires: Vec<Wire> = Wire::all().collect();
    (0..SPREAD).map(|n| Client::join(node, wires[n % wires.len()])).collect()
}

/// The test meant something: messages went between shards.
fn assert_crossed(node: &Node) {
    if node.setup.shards() > 1 {
        node.await_metric("signalbox_mesh_messages_total", |messages| messages > 0.0);
    }
}

#[test]
fn events_of_one_publisher_on_one_topic_arrive_in_order_on_every_shard() {
    const EVENTS: u64 = 400;
    let node = Node::start();
    let mut subscribers = spread(&node);
    let mut publishers = spread(&node);
    for subscriber in &mut subscribers {
        subscriber.subscribe("com.example.order");
    }
    for n in 0..EVENTS {
        for (index, publisher) in publishers.iter_mut().enumerate() {
            publisher.publish("com.example.order", &json!([index, n]));
        }
    }
    for subscriber in &mut subscribers {
        let mut next = [0; SPREAD];
        for _ in 0..EVENTS * SPREAD as u64 {
            let event = subscriber.event();
            let publisher = event[4][0].as_u64().expect("an index") as usize;
            assert_eq!(event[4][1], next[publisher], "publisher {publisher}");
            next[publisher] += 1;
        }
    }
    assert_crossed(&node);
}

#[test]
fn calls_of_one_caller_arrive_in_order_and_every_one_is_answered() {
    const CALLS: u64 = 200;
    let node = Node::start();
    let mut callee = Client::join(&node, Wire::PLAIN);
    callee.register("com.example.order");
    let mut callers = spread(&node);
    let mut requests = vec![Vec::new(); SPREAD];
    for n in 0..CALLS {
        for (index, caller) in callers.iter_mut().enumerate() {
            requests[index].push(caller.request(json!([48, 0, {}, "com.example.order", [index, n]])));
        }
    }
    let mut next = [0; SPREAD];
    for n in 1..=CALLS * SPREAD as u64 {
        let invocation = callee.invocation();
        assert_eq!(invocation[1], n, "INVOCATION ids are 1, 2, 3 ... for each callee");
        let caller = invocation[4][0].as_u64().expect("an index") as usize;
        assert_eq!(invocation[4][1], next[caller], "caller {caller}");
        next[caller] += 1;
        callee.send(&json!([70, invocation[1], {}, invocation[4]]));
    }
    for (index, caller) in callers.iter_mut().enumerate() {
        for (n, request) in requests[index].iter().enumerate() {
            assert_eq!(caller.reply(*request)[3], json!([index, n]));
        }
    }
    assert_crossed(&node);
}

#[test]
fn a_session_reads_its_own_writes_on_every_shard() {
    let node = Node::start();
    let mut clients = spread(&node);
    for round in 0..10 {
        for index in 0..SPREAD {
            let uri = format!("com.example.own.r{round}.c{index}");
            clients[index].subscribe(&uri);
            clients[index].register(&uri);
            // Acknowledged: every other session must reach it now, from whatever shard.
            let other = (index + 1 + round) % SPREAD;
            if other == index {
                continue;
            }
            clients[other].publish(&uri, &json!([round]));
            assert_eq!(clients[index].event()[4], json!([round]));
            let request = clients[other].request(json!([48, 0, {}, uri]));
            let invocation = clients[index].invocation();
            clients[index].send(&json!([70, invocation[1], {}]));
            assert_eq!(clients[other].reply(request)[0], 50);
        }
    }
    assert_crossed(&node);
}

#[test]
fn one_of_many_that_register_at_once_gets_the_procedure() {
    let node = Node::start();
    let mut clients = spread(&node);
    for round in 0..20 {
        let uri = format!("com.example.race{round}");
        let requests: Vec<u64> =
            clients.iter_mut().map(|client| client.request(json!([64, 0, {}, uri]))).collect();
        let mut held = 0;
        for (client, request) in clients.iter_mut().zip(requests) {
            let answer = client.reply(request);
            match answer[0].as_u64() {
                Some(65) => held += 1,
                _ => assert_eq!(answer[4], "wamp.error.procedure_already_exists"),
            }
        }
        assert_eq!(held, 1, "round {round}");
    }
}

#[test]
fn a_callee_that_leaves_fails_its_calls_at_once() {
    let node = Node::start();
    for leave in [goodbye as fn(&mut Client), hang_up, break_protocol] {
        let mut callee = Client::join(&node, Wire::PLAIN);
        callee.register("com.example.left");
        let mut callers = spread(&node);
        let requests: Vec<u64> =
            callers.iter_mut().map(|caller| caller.request(json!([48, 0, {}, "com.example.left"]))).collect();
        for _ in 0..SPREAD {
            callee.invocation();
        }
        leave(&mut callee);
        for (caller, request) in callers.iter_mut().zip(requests) {
            let answer = caller.reply(request);
            assert_eq!((&answer[0], &answer[4]), (&json!(8), &json!("wamp.error.canceled")));
        }
        // The procedure is free again.
        let mut heir = Client::join(&node, Wire::PLAIN);
        support::eventually("the procedure is free", || {
            (heir.ask(json!([64, 0, {}, "com.example.left"]))[0] == 65).then_some(())
        });
        let request = callers[0].request(json!([48, 0, {}, "com.example.left"]));
        let invocation = heir.invocation();
        heir.send(&json!([70, invocation[1], {}, ["heir"]]));
        assert_eq!(callers[0].reply(request)[3], json!(["heir"]));
        hang_up(&mut heir);
        support::eventually("the heir's procedure is gone", || {
            let answer = callers[0].ask(json!([48, 0, {}, "com.example.left"]));
            (answer[4] == "wamp.error.no_such_procedure").then_some(())
        });
    }
}

fn goodbye(client: &mut Client) {
    client.goodbye();
}

fn hang_up(client: &mut Client) {
    client.stream().shutdown(std::net::Shutdown::Both).expect("shut down");
}

fn break_protocol(client: &mut Client) {
    client.send(&json!([999]));
}

#[test]
fn a_caller_that_leaves_does_not_disturb_the_callee() {
    let node = Node::start();
    let mut callee = Client::join(&node, Wire::PLAIN);
    callee.register("com.example.late");
    let mut caller = Client::join(&node, Wire::PLAIN);
    caller.request(json!([48, 0, {}, "com.example.late"]));
    let invocation = callee.invocation();
    hang_up(&mut caller);
    callee.send(&json!([70, invocation[1], {}, ["late"]]));
    callee.send(&json!([8, 68, invocation[1], {}, "com.example.twice"]));
    let mut next = Client::join(&node, Wire::PLAIN);
    let request = next.request(json!([48, 0, {}, "com.example.late"]));
    let invocation = callee.invocation();
    callee.send(&json!([70, invocation[1], {}, ["in time"]]));
    assert_eq!(next.reply(request)[3], json!(["in time"]));
}

#[test]
fn sessions_of_different_realms_do_not_meet() {
    let realms = "[[realm]]\nname = \"realm1\"\n[[realm]]\nname = \"realm2\"\n";
    let node = Node::with(support::Setup::tables(realms));
    let mut here = Client::join(&node, Wire::PLAIN);
    let mut there = Client::join_realm(&node, Wire::PLAIN, "realm2");
    let ids = [here.subscribe("com.example.a"), there.subscribe("com.example.a")];
    assert_ne!(ids[0], ids[1]);
    here.register("com.example.a");
    there.register("com.example.a");
    let request = [json!([16, 0, {"exclude_me": false}, "com.example.a", ["here"]])];
    here.request(request[0].clone());
    there.request(json!([16, 0, {"exclude_me": false}, "com.example.a", ["there"]]));
    assert_eq!(here.event()[4], json!(["here"]));
    assert_eq!(there.event()[4], json!(["there"]));
}

#[test]
fn a_connection_may_carry_another_session_after_goodbye() {
    let node = Node::start();
    for wire in Wire::all() {
        let mut client = Client::join(&node, wire);
        let first = client.session;
        client.subscribe("com.example.reuse");
        client.goodbye();
        client.hello("realm1");
        assert_ne!(client.session, first);
        let mut other = Client::join(&node, wire);
        other.publish_acknowledged("com.example.reuse", &json!([]));
        client.subscribe("com.example.fence");
        other.publish("com.example.fence", &json!(["fence"]));
        assert_eq!(client.event()[4], json!(["fence"]), "the old session's subscription is gone");
    }
}

#[test]
fn pings_are_answered() {
    use common::transport::FrameKind;
    let node = Node::start();
    for wire in Wire::all() {
        let mut client = Client::join(&node, wire);
        for payload in [&b""[..], b"x", &[0xab; 125]] {
            client.send_frame(FrameKind::Ping, payload);
            assert_eq!(client.pong(), payload, "{wire:?}");
        }
    }
}

#[test]
fn a_large_message_arrives_whole() {
    let node = Node::start();
    let text = "0123456789abcdef".repeat(60_000);
    for wire in Wire::all() {
        let mut subscriber = Client::join(&node, wire);
        let mut publisher = Client::join(&node, wire);
        subscriber.subscribe("com.example.large");
        publisher.publish("com.example.large", &json!([text]));
        assert_eq!(subscriber.event()[4][0], text, "{wire:?}");
    }
}
