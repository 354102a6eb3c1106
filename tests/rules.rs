//! Rules of realms and roles on real nodes: from the configuration file, from the command line, on another node.

mod support;

use serde_json::{Value, json};
use support::cluster::Cluster;
use support::{Client, Node, Setup, Wire, eventually};

const REALM: &str = "com.example.ruled";
const RULES: &str = "features_off = [\"shared_registration\"]\npayload_max = \"1KiB\"\n";
const OF_ROLE: &str = "name = \"anonymous\"\nfeatures_off = [\"meta_api_control\"]\nregistrations_max = 1\n";

/// A session, and the features of the dealer that it was told of; none: there is no such realm yet.
fn join(node: &Node, realm: &str) -> Option<(Client, Value)> {
    let mut client = Client::connect(node, Wire::PLAIN);
    client.send(&json!([1, realm, {"roles": {"caller": {}, "callee": {}}}]));
    let welcome = client.recv();
    (welcome[0] == 2).then(|| (client, welcome[2]["roles"]["dealer"]["features"].clone()))
}

/// What [`RULES`] and [`OF_ROLE`] say holds for a session. `own`: what it registers.
fn is_ruled(client: &mut Client, features: &Value, own: &str) {
    assert_eq!((&features["shared_registration"], &features["call_timeout"]), (&Value::Null, &json!(true)));
    let shared = json!([64, 0, {"invoke": "roundrobin"}, "com.example.p"]);
    assert_eq!(client.ask_error(shared), "wamp.error.feature_not_supported");
    let long = json!([48, 0, {}, "com.example.p", ["x".repeat(2_000)]]);
    assert_eq!(client.ask_error(long), "wamp.error.payload_size_exceeded");
    assert_eq!(client.ask_error(kill()), "wamp.error.not_authorized");
    client.register(own);
    assert_eq!(client.ask_error(json!([64, 0, {}, "com.example.second"])), "wamp.error.unavailable");
}

fn kill() -> Value {
    json!([48, 0, {}, "wamp.session.kill", [1]])
}

#[test]
fn a_configuration_rules_its_realms_and_no_others() {
    let tables = format!(
        "[[realm]]\nname = \"realm1\"\n[[realm]]\nname = \"{REALM}\"\n{RULES}[[realm.role]]\n{OF_ROLE}"
    );
    let node = Node::with(Setup::tables(&tables));
    let (mut client, features) = join(&node, REALM).expect("a session");
    is_ruled(&mut client, &features, "com.example.own");
    let (mut free, features) = join(&node, "realm1").expect("a session");
    assert_eq!(features["shared_registration"], true);
    assert_eq!(free.ask_error(kill()), "wamp.error.no_such_session", "it may");
}

#[test]
fn rules_that_are_put_on_one_node_hold_on_all_and_for_sessions_that_are_there() {
    let cluster = Cluster::start(2, "");
    let [here, there] = &cluster.nodes[..] else { panic!("two nodes") };
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), format!("{RULES}[[role]]\n{OF_ROLE}")).expect("the rules");
    let add = |node: &Node, more: &[&str]| {
        let arguments = [&["realm", "add", REALM][..], more].concat();
        let output = node.command(&arguments).output().expect("the command runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    add(here, &["--rules", file.path().to_str().expect("a path")]);
    let mut sessions = [("here", here), ("there", there)].map(|(name, node)| {
        let (mut client, features) = eventually("the realm is there", || join(node, REALM));
        is_ruled(&mut client, &features, &format!("com.example.{name}"));
        (client, format!("com.example.{name}.another"))
    });
    // Taken back on the other node.
    add(there, &[]);
    for (client, another) in &mut sessions {
        eventually("the rules are gone", || {
            (client.ask_error(kill()) == "wamp.error.no_such_session").then_some(())
        });
        client.register(another);
    }
}
