//! `signalbox cluster ...`

use super::{call, columns, report, show_bytes, show_seconds};
use common::config::Config;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};
use uuid::Uuid;

/// `signalbox cluster members`
pub fn members(config: &Config) -> ExitCode {
    report(call(config, "GET", "/cluster", None).map(|answer| show_members(&answer)))
}

/// `signalbox cluster status`
pub fn status(config: &Config) -> ExitCode {
    report(call(config, "GET", "/cluster", None).map(|answer| show_status(&answer)))
}

/// `signalbox cluster conflicts`
pub fn conflicts(config: &Config) -> ExitCode {
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64);
    report(call(config, "GET", "/cluster/conflicts", None).map(|answer| show_conflicts(&answer, now_ms)))
}

/// `signalbox cluster join`
pub fn join(config: &Config, target: &str) -> ExitCode {
    let answer = call(config, "POST", "/cluster/join", Some(&json!({ "target": target })));
    report(answer.map(|answer| {
        let addresses =
            list(&answer["asked"]).iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", ");
        format!("asked {addresses}; `signalbox cluster members` shows the node once it has answered\n")
    }))
}

/// `signalbox cluster leave`
pub fn leave(config: &Config) -> ExitCode {
    let answer = call(config, "POST", "/cluster/leave", None);
    report(
        answer.map(|_| "left the cluster; the node serves by itself until it is started again\n".to_owned()),
    )
}

/// `signalbox cluster forget`
pub fn forget(config: &Config, node: Uuid) -> ExitCode {
    let answer = call(config, "POST", &format!("/cluster/forget/{node}"), None);
    report(answer.map(|_| format!("node {node} forgotten by this node; others may still list it\n")))
}

fn show_members(cluster: &Value) -> String {
    if let Some(text) = none_configured(cluster) {
        return text;
    }
    let head = ["NODE", "ADDRESS", "RELAY", "STATE", "FOR", "VERSION", "RTT", "SYNCED", "ROUTES", "DOMAIN"];
    let mut table = vec![head.map(str::to_owned)];
    for node in list(&cluster["nodes"]) {
        let own = if node["id"] == cluster["local"] { " (this)" } else { "" };
        let rtt = node["rtt_ms"].as_f64().map_or_else(String::new, |ms| format!("{ms:.1} ms"));
        let routes = node["routes"].as_u64().map_or_else(String::new, |routes| routes.to_string());
        table.push([
            text(node, "id"),
            text(node, "address"),
            text(node, "relay"),
            text(node, "state") + own,
            seconds(node, "state_seconds"),
            text(node, "version"),
            rtt,
            seconds(node, "synced_seconds"),
            routes,
            text(node, "failure_domain"),
        ]);
    }
    format!("{}env {}\n", columns(&table), text(cluster, "env"))
}

fn show_status(cluster: &Value) -> String {
    if let Some(text) = none_configured(cluster) {
        return text;
    }
    let mut out = String::new();
    let mut line = |name: &str, text: String| _ = writeln!(out, "{name:<14} {text}");
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    line("env", text(cluster, "env"));
    line("node", text(cluster, "local"));
    let without = list(&cluster["without"]).iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", ");
    line(
        "joined",
        match cluster["waiting_for"].as_str() {
            Some(reason) => format!("no: {reason}, for {}", seconds(cluster, "waiting_seconds")),
            None if without.is_empty() => "yes".to_owned(),
            None => format!("yes, without the state of {without}"),
        },
    );
    let mut states: Vec<(String, usize)> = vec![];
    for node in list(&cluster["nodes"]) {
        let state = text(node, "state");
        match states.iter_mut().find(|(name, _)| *name == state) {
            Some((_, count)) => *count += 1,
            None => states.push((state, 1)),
        }
    }
    let states: Vec<_> = states.iter().map(|(state, count)| format!("{count} {state}")).collect();
    line("nodes", states.join(", "));
    let (objects, claims) = (&cluster["objects"], &cluster["claims"]);
    line("objects", format!("{}, digest {}", number(&objects["records"]), text(objects, "digest")));
    let (own, others) = (number(&claims["routes"]), number(&claims["remote_routes"]));
    line("routes", format!("{own} own, {others} of other nodes, digest {}", text(claims, "digest")));
    let exchange = &cluster["exchange"];
    let sum = number(&exchange["bytes_in"]) + number(&exchange["bytes_out"]);
    line(
        "exchanges",
        format!(
            "{} ended, {} broken off, {} found differences, {} records repaired here, {} moved",
            number(&exchange["ended"]),
            number(&exchange["aborted"]),
            number(&exchange["divergent"]),
            number(&exchange["repaired"]),
            show_bytes(sum)
        ),
    );
    let broadcast = &cluster["broadcast"];
    let (peers, eager) = (number(&broadcast["peers"]), number(&broadcast["eager"]));
    line(
        "broadcast",
        format!("{peers} peers, {eager} of them eager, {} owed", number(&broadcast["missing"])),
    );
    out
}

fn show_conflicts(answer: &Value, now_ms: u64) -> String {
    let rows = list(&answer["conflicts"]);
    if rows.is_empty() {
        return "no object was written by two nodes that did not know of each other's value\n".to_owned();
    }
    let mut table = vec![["TYPE", "NAME", "FOUND", "WRITTEN BY", "RULE", "USED"].map(str::to_owned)];
    for row in rows {
        let ago = |stamp: &Value| {
            let seconds = now_ms.saturating_sub(stamp.as_u64().unwrap_or(now_ms)) / 1_000;
            format!("{} ago", show_seconds(seconds))
        };
        let sibling = |sibling: &Value| {
            format!("{} {} ({})", text(sibling, "node"), ago(&sibling["stamp_ms"]), text(sibling, "wrote"))
        };
        let siblings: Vec<_> = list(&row["siblings"]).iter().map(sibling).collect();
        table.push([
            text(row, "type"),
            text(row, "name"),
            ago(&row["found_ms"]),
            siblings.join(", "),
            text(row, "rule"),
            text(row, "used"),
        ]);
    }
    let number = |key: &str| answer[key].as_u64().unwrap_or(0);
    let (total, competing) = (number("total"), number("competing"));
    format!("{}{total} since the start, {competing} not settled yet\n", columns(&table))
}

/// What is said of a node that is in no cluster.
fn none_configured(cluster: &Value) -> Option<String> {
    (cluster["configured"].as_bool() != Some(true)).then(|| format!("{}\n", text(cluster, "note")))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// A text, empty when it is not there.
fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_default().to_owned()
}

fn seconds(value: &Value, key: &str) -> String {
    value[key].as_u64().map(show_seconds).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_line_up_and_say_which_is_this() {
        assert_eq!(show_members(&json!({ "configured": false, "note": "no" })), "no\n");
        let node = |id: &str, since: Option<u64>, rtt: Option<f64>| {
            json!({
                "id": id, "address": "10.0.0.1:1", "relay": "10.0.0.1:2", "state": "alive", "state_seconds": since,
                "version": "1", "rtt_ms": rtt, "synced_seconds": since, "routes": 3, "failure_domain": "",
            })
        };
        let nodes = [node("a", None, None), node("b", Some(61), Some(0.25))];
        let cluster = json!({ "configured": true, "env": "e", "local": "a", "nodes": nodes });
        let expected = "NODE  ADDRESS     RELAY       STATE         FOR    VERSION  RTT     SYNCED  ROUTES  DOMAIN\n\
            a     10.0.0.1:1  10.0.0.1:2  alive (this)         1                        3\n\
            b     10.0.0.1:1  10.0.0.1:2  alive         1m 1s  1        0.2 ms  1m 1s   3\n\
            env e\n";
        assert_eq!(show_members(&cluster), expected);
    }

    #[test]
    fn the_status_tells_whether_the_node_has_joined() {
        let mut cluster = json!({
            "configured": true, "env": "e", "local": "a", "waiting_for": "no link to b", "waiting_seconds": 3,
            "nodes": [{ "state": "alive" }, { "state": "down" }, { "state": "alive" }],
            "objects": { "records": 7, "digest": "0a" },
            "claims": { "routes": 1, "remote_routes": 2, "digest": "0b" },
            "exchange": { "ended": 4, "aborted": 0, "divergent": 1, "repaired": 5, "bytes_in": 1_024, "bytes_out": 1_024 },
            "broadcast": { "peers": 2, "eager": 1, "missing": 0 },
        });
        let shown = show_status(&cluster);
        for part in
            ["joined         no: no link to b, for 3s\n", "nodes          2 alive, 1 down\n", "2.0 KiB moved"]
        {
            assert!(shown.contains(part), "{shown}");
        }
        cluster["waiting_for"] = Value::Null;
        cluster["without"] = json!(["b"]);
        assert!(show_status(&cluster).contains("joined         yes, without the state of b\n"));
    }

    #[test]
    fn conflicts_are_listed_and_none_are_said() {
        assert!(show_conflicts(&json!({ "conflicts": [] }), 0).starts_with("no object"));
        let sibling = |node: &str, wrote: &str| json!({ "node": node, "stamp_ms": 1_000, "wrote": wrote });
        let row = json!({
            "type": "realm", "name": "com.a", "found_ms": 1_000, "rule": "fields", "used": "value",
            "siblings": [sibling("a", "value"), sibling("b", "deletion")],
        });
        let answer = json!({ "conflicts": [row], "total": 3, "competing": 0 });
        let expected = "TYPE   NAME   FOUND      WRITTEN BY                                   RULE    USED\n\
            realm  com.a  1m 1s ago  a 1m 1s ago (value), b 1m 1s ago (deletion)  fields  value\n\
            3 since the start, 0 not settled yet\n";
        assert_eq!(show_conflicts(&answer, 62_000), expected);
    }
}
