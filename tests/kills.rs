//! Either process may die or be told to end, and clients see what was promised.

mod support;

use serde_json::json;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use support::{Client, Node, Setup, Wire, eventually};

/// Enough sessions that the kernel puts some on each shard.
const SPREAD: usize = 8;

fn spread(node: &Node) -> Vec<Client> {
    let wires: Vec<Wire> = Wire::all().collect();
    (0..SPREAD).map(|n| Client::join(node, wires[n % wires.len()])).collect()
}

fn echo(caller: &mut Client, callee: &mut Client, uri: &str) {
    let request = caller.request(json!([48, 0, {}, uri, [1, "two"]]));
    let invocation = callee.invocation();
    callee.send(&json!([70, invocation[1], {}, invocation[4]]));
    assert_eq!(caller.reply(request), json!([50, request, {}, [1, "two"]]));
}

/// Sessions and routes the control plane knows of.
fn claims(node: &Node) -> (u64, u64) {
    let status = node.status();
    let count = |key: &str| status[key].as_u64().expect("a number");
    (count("sessions"), count("routes"))
}

#[test]
fn clients_do_not_notice_that_the_control_plane_is_away() {
    let mut node = Node::start();
    let mut before = spread(&node);
    for (index, client) in before.iter_mut().enumerate() {
        client.subscribe("com.example.all");
        client.register(&format!("com.example.before{index}"));
    }
    let data_pid = node.data_pid();
    node.kill_control();

    // Old sessions, new sessions, new subscriptions and new registrations, across shards.
    let mut after = spread(&node);
    for (index, client) in after.iter_mut().enumerate() {
        client.subscribe("com.example.all");
        client.register(&format!("com.example.after{index}"));
    }
    before[0].publish("com.example.all", &json!(["old"]));
    after[0].publish("com.example.all", &json!(["new"]));
    for (index, client) in before.iter_mut().chain(&mut after).enumerate() {
        let expected = if index == 0 {
            vec!["new"]
        } else if index == SPREAD {
            vec!["old"]
        } else {
            vec!["old", "new"]
        };
        let mut got: Vec<String> =
            expected.iter().map(|_| client.event()[4][0].as_str().unwrap().to_owned()).collect();
        got.sort_by_key(|text| text != "old");
        assert_eq!(got, expected);
    }
    for index in 0..SPREAD {
        echo(
            &mut after[index],
            &mut before[(index + 1) % SPREAD],
            &format!("com.example.before{}", (index + 1) % SPREAD),
        );
        echo(
            &mut before[index],
            &mut after[(index + 3) % SPREAD],
            &format!("com.example.after{}", (index + 3) % SPREAD),
        );
    }
    before.pop();

    // The next one adopts the same data plane, and the two agree about who holds what.
    node.start_control();
    assert_eq!(node.data_pid(), data_pid);
    let sessions = 2 * SPREAD - 1;
    // One topic, and a procedure for each session.
    let agreed = (sessions as u64, sessions as u64 + 1);
    eventually("the claims agree", || (claims(&node) == agreed).then_some(()));
    node.await_metric("signalbox_sessions", |value| value == sessions as f64);
    let (old, new) = (&mut before, &mut after);
    echo(&mut old[0], &mut new[0], "com.example.after0");
    let mut third = spread(&node);
    third[0].publish("com.example.all", &json!(["third"]));
    for client in old.iter_mut().chain(new) {
        assert_eq!(client.event()[4], json!(["third"]));
    }
}

#[test]
fn claims_agree_after_churn_through_many_deaths_of_the_control_plane() {
    let mut node = Node::start();
    let stop = AtomicBool::new(false);
    let stopped = || stop.load(Relaxed);
    let addresses: Vec<(Wire, SocketAddr)> = Wire::all().map(|wire| (wire, node.address(wire))).collect();
    let held: Vec<Client> = std::thread::scope(|scope| {
        let churners: Vec<_> = addresses
            .iter()
            .map(|&(wire, address)| scope.spawn(move || churn(address, wire, stopped)))
            .collect();
        for _ in 0..4 {
            node.kill_control();
            node.start_control();
        }
        stop.store(true, Relaxed);
        churners
            .into_iter()
            .map(|churner| churner.join().expect("the data plane served all the time"))
            .collect()
    });
    // Each holds its last topic and procedure; all share one topic.
    let sessions = held.len() as u64;
    eventually("the claims agree", || (claims(&node) == (sessions, 1 + 2 * sessions)).then_some(()));
    drop(held);
    eventually("nothing is left", || (claims(&node) == (0, 0)).then_some(()));
}

/// Sessions come and go with subscriptions and registrations until told to stop; the last one is returned.
fn churn(address: SocketAddr, wire: Wire, stopped: impl Fn() -> bool) -> Client {
    let name = format!("{:?}.{:?}", wire.framing, wire.serializer);
    for round in 0.. {
        let mut client = Client::connect_to(address, wire).expect("a connection");
        client.hello("realm1");
        client.subscribe("com.example.shared");
        let mut last = 0;
        for n in 0..5 {
            let topic = client.subscribe(&format!("com.example.{name}.t{n}"));
            last = client.register(&format!("com.example.{name}.p{n}"));
            if n < 4 {
                client.ask(json!([34, 0, topic]));
                client.ask(json!([66, 0, last]));
            }
        }
        if stopped() {
            return client;
        }
        // Some say goodbye, some just go; these give up the procedure before, which the next one wants at once.
        if round % 2 == 0 {
            client.goodbye();
        } else {
            client.ask(json!([66, 0, last]));
        }
    }
    unreachable!("it goes on until it is stopped")
}

#[test]
fn a_data_plane_that_died_is_started_again_and_serves_all_realms() {
    let mut node = Node::with(Setup::tables("[[realm]]\nname = \"realm1\"\n[[realm]]\nname = \"realm2\"\n"));
    let added = node.command(&["realm", "add", "com.added"]).output().expect("the command runs");
    assert!(added.status.success(), "{added:?}");
    let mut clients = spread(&node);
    let old = node.kill_data();
    for client in &mut clients {
        client.end();
    }
    eventually("another data plane runs", || node.data_pid().filter(|pid| *pid != old));
    node.wait_ready();
    for realm in ["realm1", "realm2", "com.added"] {
        let mut callee = Client::join_realm(&node, Wire::PLAIN, realm);
        callee.register("com.example.again");
        for wire in Wire::all() {
            let mut caller = Client::join_realm(&node, wire, realm);
            echo(&mut caller, &mut callee, "com.example.again");
        }
    }
    eventually("the old sessions are forgotten", || (claims(&node).0 == 0).then_some(()));
}

#[test]
fn a_realm_added_at_run_time_is_usable_on_every_shard_and_kept() {
    let mut node = Node::start();
    let mut early = Client::connect(&node, Wire::PLAIN);
    early.send(&json!([1, "com.added", {"roles": {"caller": {}}}]));
    assert_eq!(early.aborted().0, "wamp.error.no_such_realm");
    let added = node.command(&["realm", "add", "com.added"]).output().expect("the command runs");
    assert!(added.status.success(), "{added:?}");
    // The command returned: it is usable now, everywhere.
    let mut clients: Vec<Client> =
        (0..SPREAD).map(|_| Client::join_realm(&node, Wire::PLAIN, "com.added")).collect();
    clients[0].register("com.example.p");
    let (callee, callers) = clients.split_at_mut(1);
    for caller in callers {
        echo(caller, &mut callee[0], "com.example.p");
    }
    let listed = node.command(&["realm", "list"]).output().expect("the command runs");
    let listed = String::from_utf8(listed.stdout).expect("text");
    assert!(listed.contains("com.added") && listed.contains("realm1"), "{listed}");

    node.kill_control();
    node.kill_data();
    node.start_control();
    let mut client = Client::join_realm(&node, Wire::PLAIN, "com.added");
    client.subscribe("com.example.kept");

    let removed = node.command(&["realm", "remove", "com.added"]).output().expect("the command runs");
    assert!(removed.status.success(), "{removed:?}");
    client.end();
    let mut late = Client::connect(&node, Wire::PLAIN);
    late.send(&json!([1, "com.added", {"roles": {"caller": {}}}]));
    assert_eq!(late.aborted().0, "wamp.error.no_such_realm");
}

#[test]
fn told_to_end_a_node_says_goodbye_and_exits_with_success() {
    let mut node = Node::start();
    let mut clients = spread(&node);
    let data_pid = node.data_pid().expect("the data plane runs");
    node.terminate();
    for client in &mut clients {
        let goodbye = client.take("GOODBYE", |message| message[0] == 6);
        assert_eq!(goodbye[2], "wamp.close.system_shutdown");
        client.send(&json!([6, {}, "wamp.close.goodbye_and_out"]));
        client.end();
    }
    assert_eq!(node.wait().code(), Some(0));
    eventually("the data plane is gone", || (node.data_pid() != Some(data_pid)).then_some(()));
}

#[test]
fn clients_that_do_not_answer_goodbye_do_not_hold_up_the_end() {
    let mut node = Node::with(Setup::tables("[timeouts]\ndrain = \"300ms\"\n"));
    let mut clients = spread(&node);
    node.terminate();
    assert_eq!(node.wait().code(), Some(0));
    for client in &mut clients {
        let ended = client.end();
        assert!(ended.messages.iter().any(|message| message[0] == 6), "{:?}", ended.messages);
    }
}

#[test]
fn a_second_node_in_the_same_folder_is_refused() {
    let node = Node::start();
    let second = node.command(&["data"]).output().expect("the command runs");
    assert_eq!(second.status.code(), Some(i32::from(dataplane::boot::status::FOLDER_HELD)));
    let text = String::from_utf8_lossy(&second.stderr);
    let pid = node.data_pid().expect("the data plane runs").to_string();
    assert!(text.contains("held by another data plane") && text.contains(&pid), "{text}");
    // The first one does not care.
    let mut client = Client::join(&node, Wire::PLAIN);
    client.subscribe("com.example.a");
}

#[test]
fn a_port_that_is_taken_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("its address");
    let folder = tempfile::tempdir().expect("a folder");
    let config = folder.path().join("config.toml");
    let text = format!(
        "data_dir = {:?}\n[[listener]]\ntransport = \"rawsocket\"\naddress = \"{address}\"\n",
        folder.path().join("data")
    );
    std::fs::write(&config, text).expect("the config file");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_signalbox"));
    let output = command.arg("data").arg("--config").arg(&config).output().expect("the command runs");
    assert_eq!(output.status.code(), Some(i32::from(dataplane::boot::status::CANNOT_LISTEN)));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains(&address.to_string()), "{text}");
}

#[test]
fn no_thread_but_its_own_runs_on_the_cpu_of_a_shard() {
    let all = dataplane::cpus::allowed().expect("the affinity of this process");
    let [first, _, ..] = all[..] else {
        return eprintln!(
            "skipped no_thread_but_its_own_runs_on_the_cpu_of_a_shard: this machine has one CPU"
        );
    };
    let node = Node::with(support::Setup { cores: first.to_string(), ..support::Setup::default() });
    let mut shards = 0;
    for pid in [node.control_pid(), node.data_pid().expect("a data plane")] {
        for thread in std::fs::read_dir(format!("/proc/{pid}/task")).expect("threads") {
            let thread = thread.expect("a thread").path();
            // It may end while it is looked at.
            let Ok(status) = std::fs::read_to_string(thread.join("status")) else { continue };
            let field = |name: &str| {
                status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned()
            };
            let (name, cpus) = (field("Name:"), field("Cpus_allowed_list:"));
            let is_shard = name.starts_with("shard-");
            let wanted = if is_shard { first.to_string() } else { dataplane::cpus::list_text(&all[1..]) };
            assert_eq!(cpus, wanted, "{name}");
            shards += u32::from(is_shard);
        }
    }
    // It has helpers of its own.
    assert!(shards > 0);
}

#[test]
fn a_cpu_that_is_not_there_is_named_with_those_that_are() {
    let node = Node::start();
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path().to_str().expect("a text path");
    let mut command = node.command(&["data", "--cores", "1000", "--data-dir", folder]);
    let output = command.output().expect("the command runs");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("CPU 1000") && text.contains("only run on"), "{text}");
}
