//! The commands that speak to a running node over its admin endpoint: a small HTTP/1.1 client and plain text output.

mod cluster;

pub use cluster::{conflicts, forget, join, leave, members, status as cluster_status};

use crate::io::lock::ADMIN_FILE;
use common::config::{Config, RealmConfig};
use serde_json::Value;
use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum OperatorError {
    #[error("no node answers on {address} ({source}); is it running? see `signalbox run`")]
    NoNode { address: SocketAddr, source: io::Error },
    #[error("what answers on {address} is not a Signalbox node: {reason}")]
    NotANode { address: SocketAddr, reason: String },
    #[error("{0}")]
    Refused(String),
}

/// `signalbox status`
pub fn status(config: &Config) -> ExitCode {
    report(call(config, "GET", "/status", None).map(|status| show_status(&status)))
}

/// `signalbox realm add`
pub fn realm_add(config: &Config, realm: RealmConfig) -> ExitCode {
    let body = Value::Object(crate::admin::show_wanted(&realm));
    let answer = call(config, "PUT", &realm_path(&realm.name), Some(&body));
    report(answer.map(|answer| changed("added", &realm.name, &answer)))
}

/// `signalbox realm list`
pub fn realm_list(config: &Config) -> ExitCode {
    report(call(config, "GET", "/realms", None).map(|answer| show_realms(&answer["realms"])))
}

/// `signalbox realm remove`
pub fn realm_remove(config: &Config, name: &str) -> ExitCode {
    let answer = call(config, "DELETE", &realm_path(name), None);
    report(answer.map(|answer| changed("removed", name, &answer)))
}

fn report(result: Result<String, OperatorError>) -> ExitCode {
    match result {
        Ok(text) => {
            let mut out = io::stdout().lock();
            // A reader that went away is no failure of the command.
            let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("signalbox: {error}");
            ExitCode::FAILURE
        }
    }
}

fn changed(done: &str, name: &str, answer: &Value) -> String {
    match answer["note"].as_str() {
        None => format!("realm {name} {done}; in force on all shards\n"),
        Some(note) => format!("realm {name} {done}: {note}\n"),
    }
}

fn show_realms(realms: &Value) -> String {
    let rows = realms.as_array().map(Vec::as_slice).unwrap_or_default();
    let mut table = vec![["REALM", "DEGREE", "URI", "ANONYMOUS", "ORIGIN", "SESSIONS"].map(str::to_owned)];
    for realm in rows {
        let text = |key: &str| realm[key].as_str().unwrap_or("?").to_owned();
        let sessions = realm["sessions"].to_string();
        table.push([text("name"), text("degree"), text("uri"), text("anonymous"), text("origin"), sessions]);
    }
    columns(&table)
}

/// A table whose columns line up.
fn columns<const N: usize>(table: &[[String; N]]) -> String {
    let widths: [usize; N] =
        std::array::from_fn(|column| table.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    let mut out = String::new();
    for row in table {
        let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        let _ = writeln!(out, "{}", cells.join("  ").trim_end());
    }
    out
}

fn show_status(status: &Value) -> String {
    let mut out = String::new();
    let mut line = |name: &str, text: String| _ = writeln!(out, "{name:<14} {text}");
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    line("version", status["version"].as_str().unwrap_or("?").to_owned());
    line(
        "ready",
        match status["not_ready_because"].as_str() {
            None => "yes".into(),
            Some(reason) => format!("no: {reason}"),
        },
    );
    line("uptime", show_seconds(number(&status["uptime_seconds"])));
    line("data folder", status["data_dir"].as_str().unwrap_or("?").to_owned());
    let control = &status["control_plane"];
    let memory = show_bytes(number(&control["memory_bytes"]));
    line("control plane", format!("pid {}, {memory}, CPUs {}", number(&control["pid"]), control["cpus"]));
    let data = &status["data_plane"];
    if data.is_object() {
        let memory = show_bytes(number(&data["memory_bytes"]));
        let (pid, linked) = (number(&data["pid"]), show_seconds(number(&data["linked_seconds"])));
        line("data plane", format!("pid {pid}, {memory}, linked for {linked}"));
        line("shards", format!("{} on CPUs {}", number(&data["shards"]), data["cpus"]));
        for listener in data["listeners"].as_array().map(Vec::as_slice).unwrap_or_default() {
            let text = |key: &str| listener[key].as_str().unwrap_or("?").to_owned();
            line("listener", format!("{} {}", text("transport"), text("address")));
        }
        line("connections", number(&data["connections"]).to_string());
    } else {
        line("data plane", "none".into());
    }
    line("realms", number(&status["realms_total"]).to_string());
    line("sessions", number(&status["sessions"]).to_string());
    line("routes", number(&status["routes"]).to_string());
    let snapshot = &status["snapshot"];
    let taken = snapshot["taken"].as_u64().map_or("none".into(), |version| version.to_string());
    line("snapshot", format!("{taken} in use, {} refused", number(&snapshot["refused"])));
    let store = &status["store"];
    let state = match (store["poisoned"].as_bool(), number(&store["corrupt_records"])) {
        (Some(true), _) => "takes no writes after a failed commit; restart the control plane".to_owned(),
        (_, 0) => "in order".to_owned(),
        (_, corrupt) => format!("{corrupt} damaged records"),
    };
    line("store", format!("{state}, {} used", show_bytes(number(&store["used_bytes"]))));
    out
}

fn show_seconds(seconds: u64) -> String {
    match (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, seconds) => format!("{seconds}s"),
        (0, 0, minutes, seconds) => format!("{minutes}m {seconds}s"),
        (0, hours, minutes, _) => format!("{hours}h {minutes}m"),
        (days, hours, _, _) => format!("{days}d {hours}h"),
    }
}

fn show_bytes(bytes: u64) -> String {
    match bytes {
        0..1_024 => format!("{bytes} B"),
        1_024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1_024.0),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}

fn realm_path(name: &str) -> String {
    let mut path = String::from("/realms/");
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'~') {
            path.push(char::from(byte));
        } else {
            let _ = write!(path, "%{byte:02X}");
        }
    }
    path
}

/// One request; the answer's JSON.
fn call(config: &Config, method: &str, path: &str, body: Option<&Value>) -> Result<Value, OperatorError> {
    let address = admin_address(config);
    let answer = exchange(address, method, path, body).map_err(|source| match source.kind() {
        io::ErrorKind::InvalidData => OperatorError::NotANode { address, reason: source.to_string() },
        _ => OperatorError::NoNode { address, source },
    })?;
    let not_a_node = |reason: String| OperatorError::NotANode { address, reason };
    let (status, body) = parse(&answer).map_err(|reason| not_a_node(reason.to_owned()))?;
    let value: Value = serde_json::from_slice(body).map_err(|error| not_a_node(error.to_string()))?;
    match (status, value["error"].as_str()) {
        (200..=299, _) => Ok(value),
        (_, Some(error)) => Err(OperatorError::Refused(error.to_owned())),
        (status, None) => Err(not_a_node(format!("HTTP status {status}"))),
    }
}

/// The configured address; with port 0 or an unspecified one, where the node on this data folder says it is.
fn admin_address(config: &Config) -> SocketAddr {
    let mut address = config.admin.address;
    if address.port() == 0
        && let Ok(text) = std::fs::read_to_string(config.data_dir.join(ADMIN_FILE))
        && let Ok(noted) = text.trim().parse()
    {
        address = noted;
    }
    if address.ip().is_unspecified() {
        let loopback =
            if address.is_ipv4() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { IpAddr::V6(Ipv6Addr::LOCALHOST) };
        address.set_ip(loopback);
    }
    address
}

fn exchange(address: SocketAddr, method: &str, path: &str, body: Option<&Value>) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&address, CONNECT_MAX)?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    stream.set_write_timeout(Some(ANSWER_MAX))?;
    let body = body.map(Value::to_string).unwrap_or_default();
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX + 1).read_to_end(&mut answer)?;
    if answer.len() as u64 > ANSWER_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is too long"));
    }
    Ok(answer)
}

/// Status and body of an HTTP/1 answer that ends with its connection.
fn parse(answer: &[u8]) -> Result<(u16, &[u8]), &'static str> {
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").ok_or("the answer has no head")?;
    let (head, body) = (&answer[..end], &answer[end + 4..]);
    let head = std::str::from_utf8(head).map_err(|_| "the answer's head is not text")?;
    let mut lines = head.split("\r\n");
    let mut words = lines.next().unwrap_or_default().split(' ');
    if !words.next().unwrap_or_default().starts_with("HTTP/1.") {
        return Err("the answer is not HTTP/1");
    }
    let status = words.next().and_then(|word| word.parse().ok()).ok_or("the answer has no status")?;
    for line in lines {
        let (name, value) = line.split_once(':').ok_or("the answer has a bad header")?;
        if name.eq_ignore_ascii_case("content-length") && value.trim().parse() != Ok(body.len()) {
            return Err("the answer was cut short");
        }
        if name.eq_ignore_ascii_case("transfer-encoding") {
            return Err("the answer is encoded");
        }
    }
    Ok((status, body))
}

const CONNECT_MAX: Duration = Duration::from_secs(3);
/// Longer than the node waits for its data plane.
const ANSWER_MAX: Duration = Duration::from_secs(15);
const ANSWER_BYTES_MAX: u64 = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_answer_is_taken_apart() {
        let answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}";
        assert_eq!(parse(answer), Ok((404, &b"{}"[..])));
        for bad in [
            &b""[..],
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{}",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{}",
            b"SSH-2.0\r\n\r\n",
            b"HTTP/1.1 x\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nnonsense\r\n\r\n",
        ] {
            assert!(parse(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn any_name_fits_a_path() {
        assert_eq!(realm_path("a.b/é"), "/realms/a%2Eb%2F%C3%A9");
    }

    #[test]
    fn a_table_lines_up() {
        let realms = json!([{
            "name": "realm1", "degree": "compatible", "uri": "loose", "anonymous": "loopback", "origin": "config",
            "sessions": 3,
        }]);
        let expected = "REALM   DEGREE      URI    ANONYMOUS  ORIGIN  SESSIONS\n\
            realm1  compatible  loose  loopback   config  3\n";
        assert_eq!(show_realms(&realms), expected);
    }

    #[test]
    fn times_and_sizes_read_well() {
        assert_eq!(show_seconds(59), "59s");
        assert_eq!(show_seconds(3_700), "1h 1m");
        assert_eq!(show_seconds(90_000), "1d 1h");
        assert_eq!(show_bytes(2_048), "2.0 KiB");
    }

    #[test]
    fn a_node_that_is_down_gives_a_clear_error() {
        // A port that was free a moment ago.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut config = Config::default();
        config.admin.address = port;
        let error = call(&config, "GET", "/status", None).unwrap_err();
        assert!(error.to_string().contains("no node answers on 127.0.0.1:"), "{error}");
    }
}
