//! Three real nodes on loopback find each other, notice a death, a return and a good-bye.

mod support;

use serde_json::Value;
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use support::cluster::{free_ports, get, key_file};
use support::{Node, Setup, eventually};

fn setup(keys: &Path, env: &str, port: u16, seed: u16) -> Setup {
    Setup::tables(&format!(
        "[cluster]\ndiscovery = \"static\"\nenv = {env:?}\nkey_file = {keys:?}\naddress = \"127.0.0.1:{port}\"\n\
         seeds = [\"127.0.0.1:{seed}\"]\n[relay]\naddress = \"127.0.0.1:0\"\n"
    ))
}

fn cluster(node: &Node) -> Value {
    get(node, "/cluster")
}

/// State by membership port, the node itself included.
fn states(node: &Node) -> BTreeMap<u16, String> {
    let nodes = cluster(node)["nodes"].as_array().expect("nodes").clone();
    let port = |node: &Value| {
        let address = node["address"].as_str().and_then(|text| text.rsplit_once(':'));
        address.and_then(|(_, port)| port.parse().ok()).expect("a port")
    };
    nodes.iter().map(|node| (port(node), node["state"].as_str().expect("a state").to_owned())).collect()
}

fn await_links(node: &Node, expected: f64) {
    node.await_metric("signalbox_cluster_links", |links| links == expected);
}

fn await_states(node: &Node, expected: &[(u16, &str)]) {
    let expected: BTreeMap<u16, String> =
        expected.iter().map(|(port, state)| (*port, (*state).to_owned())).collect();
    eventually(&format!("a node sees {expected:?}"), || (states(node) == expected).then_some(()));
}

#[test]
fn three_nodes_find_each_other_and_notice_a_death_a_return_and_a_goodbye() {
    let folder = tempfile::tempdir().expect("a folder");
    let keys = key_file(folder.path());
    let ports = free_ports(3);
    let mut nodes: Vec<Node> =
        ports.iter().map(|port| Node::with(setup(&keys, "test", *port, ports[0]))).collect();
    let alive: Vec<_> = ports.iter().map(|port| (*port, "alive")).collect();
    nodes.iter().for_each(|node| await_states(node, &alive));
    nodes.iter().for_each(|node| await_links(node, 2.0));

    let before = cluster(&nodes[2]);
    assert_eq!((&before["env"], &before["configured"]), (&Value::from("test"), &Value::from(true)));
    let listed = nodes[0].command(&["cluster", "members"]).output().expect("the command runs");
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.contains(before["local"].as_str().expect("an id")), "{listed}");

    nodes[2].kill_control();
    let dead = [(ports[0], "alive"), (ports[1], "alive"), (ports[2], "down")];
    nodes[..2].iter().for_each(|node| await_states(node, &dead));
    assert_eq!(nodes[0].metric("signalbox_cluster_members"), 2.0);
    nodes[..2].iter().for_each(|node| await_links(node, 1.0));

    nodes[2].start_control();
    nodes.iter().for_each(|node| await_states(node, &alive));
    nodes.iter().for_each(|node| await_links(node, 2.0));
    let after = cluster(&nodes[2]);
    assert_eq!(after["local"], before["local"]);

    nodes[1].terminate();
    assert!(nodes[1].wait().success());
    let left = [(ports[0], "alive"), (ports[1], "left"), (ports[2], "alive")];
    [0, 2].iter().for_each(|index| await_states(&nodes[*index], &left));

    let id = cluster(&nodes[0])["nodes"]
        .as_array()
        .expect("nodes")
        .iter()
        .find(|node| node["state"] == "left")
        .cloned();
    let id = id.and_then(|node| node["id"].as_str().map(str::to_owned)).expect("the id of the one that left");
    let forgotten = nodes[0].command(&["cluster", "forget", &id]).output().expect("the command runs");
    assert!(forgotten.status.success(), "{}", String::from_utf8_lossy(&forgotten.stderr));
    await_states(&nodes[0], &[(ports[0], "alive"), (ports[2], "alive")]);
}

#[test]
fn a_node_of_another_env_is_refused_and_the_log_says_what_to_do() {
    let folder = tempfile::tempdir().expect("a folder");
    let keys = key_file(folder.path());
    let ports = free_ports(2);
    let one = Node::with(setup(&keys, "production", ports[0], ports[1]));
    let other = Node::with(setup(&keys, "staging", ports[1], ports[0]));
    for node in [&one, &other] {
        node.await_metric("signalbox_cluster_packets_dropped_total", |dropped| dropped > 0.0);
        eventually("the log tells", || node.log().contains("set the same env on all nodes").then_some(()));
        assert_eq!(states(node).len(), 1);
    }
}

#[test]
fn a_node_by_itself_opens_no_cluster_port() {
    let node = Node::start();
    assert_eq!(cluster(&node)["configured"], false);
    let inodes = |pid: u32| -> Vec<String> {
        let folder = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("its descriptors");
        let links = folder.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok());
        links
            .filter_map(|link| {
                Some(link.to_str()?.strip_prefix("socket:[")?.trim_end_matches(']').to_owned())
            })
            .collect()
    };
    let own: Vec<_> =
        inodes(node.control_pid()).into_iter().chain(inodes(node.data_pid().expect("it runs"))).collect();
    for table in ["/proc/net/udp", "/proc/net/udp6"] {
        let text = std::fs::read_to_string(table).unwrap_or_default();
        for line in text.lines().skip(1) {
            let inode = line.split_whitespace().nth(9).unwrap_or_default();
            assert!(!own.iter().any(|own| own == inode), "{line}");
        }
    }
}

#[test]
fn a_key_file_that_everybody_can_read_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let keys = key_file(folder.path());
    std::fs::set_permissions(&keys, std::fs::Permissions::from_mode(0o644)).expect("its mode");
    let config = folder.path().join("config.toml");
    let port = free_ports(1)[0];
    let text = format!(
        "data_dir = {:?}\nadmin.address = \"127.0.0.1:0\"\n[cluster]\ndiscovery = \"static\"\nkey_file = {keys:?}\n\
         address = \"127.0.0.1:{port}\"\nseeds = [\"127.0.0.1:{port}\"]\n",
        folder.path().join("data")
    );
    std::fs::write(&config, text).expect("the config file");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_signalbox"));
    let output = command.args(["control", "--config"]).arg(&config).output().expect("the command runs");
    assert!(!output.status.success());
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("cluster.key_file: every user can read"), "{error}");
}
