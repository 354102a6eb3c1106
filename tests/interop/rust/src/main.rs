//! Rust clients behind the commands of ../pairs/adapter.py: one line of JSON for each command and each answer.
//!
//! Started with CLIENT URL SERIALIZER REALM.

mod battler;
mod proto;

use serde_json::{Map, Value, json};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

/// What the procedure `fail` answers.
const FAILED: &str = "com.example.failed";
const PATIENCE_S: f64 = 20.0;

/// Events as (args, kwargs, the publisher, the topic or null).
type Inbox = mpsc::UnboundedReceiver<Value>;

/// What is passed with a call or a publication.
#[derive(Default)]
struct Payload {
    args: Vec<Value>,
    kwargs: Map<String, Value>,
}

/// One client library. Errors are URIs, or whatever there is to say.
trait Client {
    /// Registers one of adapter.py's procedures. Options are those of REGISTER.
    async fn register(&mut self, uri: &str, name: &str, options: &Map<String, Value>) -> Result<(), String>;
    async fn call(&mut self, uri: &str, payload: Payload) -> Result<Value, String>;
    /// The progressive results, and the last one.
    async fn call_progress(&mut self, uri: &str) -> Result<(Vec<Value>, Value), String>;
    async fn subscribe(&mut self, uri: &str, options: &Map<String, Value>) -> Result<(), String>;
    /// Publishes with acknowledgement. Options are those of PUBLISH.
    async fn publish(
        &mut self,
        uri: &str,
        payload: Payload,
        options: &Map<String, Value>,
    ) -> Result<(), String>;
    fn inbox(&mut self) -> &mut Inbox;
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [client, url, serializer, realm] = &arguments[..] else { panic!("CLIENT URL SERIALIZER REALM") };
    let outcome = match client.as_str() {
        "battler-wamp" => match battler::Battler::join(url, serializer, realm).await {
            Ok(client) => serve(client).await,
            Err(error) => Err(error),
        },
        "wampproto" => match proto::Proto::join(url, serializer, realm).await {
            Ok(client) => serve(client).await,
            Err(error) => Err(error),
        },
        other => panic!("there is no client {other}"),
    };
    if let Err(error) = outcome {
        eprintln!("{error}");
        std::process::exit(1);
    }
    // The thread that reads commands cannot be woken.
    std::process::exit(0);
}

/// Answers commands until the input ends.
async fn serve(mut client: impl Client) -> Result<(), String> {
    println!("{}", json!({ "ready": true }));
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await.map_err(|error| error.to_string())? {
        let command: Map<String, Value> = serde_json::from_str(&line).map_err(|error| error.to_string())?;
        let answer = match obey(&mut client, command).await {
            Ok(value) => json!({ "ok": value }),
            Err(error) => json!({ "error": error }),
        };
        println!("{answer}");
    }
    Ok(())
}

async fn obey(client: &mut impl Client, mut command: Map<String, Value>) -> Result<Value, String> {
    let mut text = |key: &str| match command.remove(key) {
        Some(Value::String(text)) => text,
        _ => String::new(),
    };
    let (what, uri, name) = (text("do"), text("uri"), text("name"));
    let args = match command.remove("args") {
        Some(Value::Array(args)) => args,
        _ => Vec::new(),
    };
    let kwargs = match command.remove("kwargs") {
        Some(Value::Object(kwargs)) => kwargs,
        _ => Map::new(),
    };
    let payload = Payload { args, kwargs };
    match what.as_str() {
        "register" => client.register(&uri, &name, &command).await.map(|()| Value::Null),
        "call" => client.call(&uri, payload).await,
        "call_progress" => client.call_progress(&uri).await.map(|(parts, last)| json!([parts, last])),
        "subscribe" => client.subscribe(&uri, &command).await.map(|()| Value::Null),
        "publish" => client.publish(&uri, payload, &command).await.map(|()| Value::Null),
        "take" => {
            let count = command.get("count").and_then(Value::as_u64).unwrap_or(0) as usize;
            let patience = command.get("patience").and_then(Value::as_f64).unwrap_or(PATIENCE_S);
            Ok(Value::Array(take(client.inbox(), count, patience).await))
        }
        other => Err(format!("there is no command {other}")),
    }
}

/// The next events, or those that came in time.
async fn take(inbox: &mut Inbox, count: usize, patience_s: f64) -> Vec<Value> {
    let deadline = Instant::now() + Duration::from_secs_f64(patience_s);
    let mut taken = Vec::new();
    while taken.len() < count {
        match timeout_at(deadline, inbox.recv()).await {
            Ok(Some(event)) => taken.push(event),
            _ => break,
        }
    }
    taken
}
