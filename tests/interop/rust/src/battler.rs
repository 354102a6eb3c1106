//! battler-wamp.

use super::{Client, FAILED, Inbox, Payload};
use battler_wamp::core::error::WampError;
use battler_wamp::core::hash::HashSet;
use battler_wamp::core::invocation_policy::InvocationPolicy;
use battler_wamp::core::match_style::MatchStyle;
use battler_wamp::core::publish_options::PublishOptions;
use battler_wamp::peer::{
    Invocation, PeerConfig, ProcedureMessage, ProcedureOptions, PublishedEvent, RpcCall, RpcYield,
    SubscriptionOptions, WebSocketPeer, new_web_socket_peer,
};
use battler_wamp::serializer::serializer::SerializerType;
use battler_wamp_uri::{Uri, WildcardUri};
use battler_wamp_values::{Dictionary, List, Value as Wamp};
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;

pub struct Battler {
    peer: WebSocketPeer,
    events: mpsc::UnboundedSender<Value>,
    inbox: Inbox,
}

fn dict(kwargs: &Map<String, Value>) -> Result<Dictionary, String> {
    serde_json::from_value(Value::Object(kwargs.clone())).map_err(text)
}

fn list(args: &[Value]) -> Result<List, String> {
    serde_json::from_value(Value::Array(args.to_vec())).map_err(text)
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// The URI of an error.
fn reason(error: impl Into<WampError>) -> String {
    error.into().reason().to_string()
}

fn style(options: &Map<String, Value>) -> Result<Option<MatchStyle>, String> {
    let style = options.get("match").and_then(Value::as_str);
    style.map(|style| MatchStyle::try_from(style).map_err(text)).transpose()
}

impl Battler {
    pub async fn join(url: &str, serializer: &str, realm: &str) -> Result<Self, String> {
        let serializer =
            if serializer == "json" { SerializerType::Json } else { SerializerType::MessagePack };
        let serializers = HashSet::from_iter([serializer]);
        let config = PeerConfig { serializers, ..PeerConfig::default() };
        let peer = new_web_socket_peer(config).map_err(text)?;
        peer.connect(url).await.map_err(text)?;
        peer.join_realm(realm).await.map_err(text)?;
        let (events, inbox) = mpsc::unbounded_channel();
        Ok(Self { peer, events, inbox })
    }
}

fn call(payload: &Payload) -> Result<RpcCall, String> {
    let (arguments, arguments_keyword) = (list(&payload.args)?, dict(&payload.kwargs)?);
    Ok(RpcCall { arguments, arguments_keyword, ..RpcCall::default() })
}

fn first(arguments: &List) -> Result<Value, String> {
    serde_json::to_value(arguments.first()).map_err(text)
}

impl Client for Battler {
    async fn register(&mut self, uri: &str, name: &str, options: &Map<String, Value>) -> Result<(), String> {
        let invoke = options.get("invoke").and_then(Value::as_str);
        let invoke = invoke.map(|policy| InvocationPolicy::try_from(policy).map_err(text)).transpose()?;
        let options = ProcedureOptions {
            match_style: style(options)?,
            invocation_policy: invoke.unwrap_or_default(),
            ..ProcedureOptions::default()
        };
        let uri = WildcardUri::try_from(uri).map_err(text)?;
        let mut procedure = self.peer.register_with_options(uri, options).await.map_err(reason)?;
        let name = name.to_owned();
        tokio::spawn(async move {
            while let Ok(message) = procedure.procedure_message_rx.recv().await {
                if let ProcedureMessage::Invocation(invocation) = message
                    && let Err(error) = answer(&name, invocation).await
                {
                    eprintln!("{name}: {error}");
                }
            }
        });
        Ok(())
    }

    async fn call(&mut self, uri: &str, payload: Payload) -> Result<Value, String> {
        let uri = Uri::try_from(uri).map_err(text)?;
        let result = self.peer.call_and_wait(uri, call(&payload)?).await.map_err(reason)?;
        first(&result.arguments)
    }

    async fn call_progress(&mut self, uri: &str) -> Result<(Vec<Value>, Value), String> {
        let uri = Uri::try_from(uri).map_err(text)?;
        let mut pending = self.peer.call_with_progress(uri, RpcCall::default()).await.map_err(reason)?;
        let mut results = Vec::new();
        while let Some(result) = pending.next_result().await.map_err(reason)? {
            results.push(first(&result.arguments)?);
        }
        let last = results.pop().unwrap_or_default();
        Ok((results, last))
    }

    async fn subscribe(&mut self, uri: &str, options: &Map<String, Value>) -> Result<(), String> {
        let options = SubscriptionOptions { match_style: style(options)? };
        let uri = WildcardUri::try_from(uri).map_err(text)?;
        let mut subscription = self.peer.subscribe_with_options(uri, options).await.map_err(reason)?;
        let events = self.events.clone();
        tokio::spawn(async move {
            while let Ok(event) = subscription.event_rx.recv().await {
                let topic = event.topic.map(|topic| topic.to_string());
                let _ = events.send(json!([event.arguments, event.arguments_keyword, topic]));
            }
        });
        Ok(())
    }

    async fn publish(
        &mut self,
        uri: &str,
        payload: Payload,
        options: &Map<String, Value>,
    ) -> Result<(), String> {
        let (arguments, arguments_keyword) = (list(&payload.args)?, dict(&payload.kwargs)?);
        let flag = |key: &str| options.get(key).and_then(Value::as_bool);
        let names =
            |key: &str| options.get(key).cloned().map(serde_json::from_value).transpose().map_err(text);
        let options = PublishOptions {
            acknowledge: Some(true),
            exclude_me: flag("exclude_me"),
            eligible_authrole: names("eligible_authrole")?,
            exclude_authrole: names("exclude_authrole")?,
            ..PublishOptions::default()
        };
        let uri = Uri::try_from(uri).map_err(text)?;
        let event = PublishedEvent { arguments, arguments_keyword, options };
        self.peer.publish(uri, event).await.map_err(reason)
    }

    fn inbox(&mut self) -> &mut Inbox {
        &mut self.inbox
    }
}

async fn answer(name: &str, invocation: Invocation) -> Result<(), String> {
    let one = |value: Wamp| RpcYield { arguments: vec![value], ..RpcYield::default() };
    let outcome = match name {
        "echo" => one(invocation.arguments.first().cloned().unwrap_or(Wamp::Null)),
        "named" => one(Wamp::Dictionary(Dictionary::clone(&invocation.arguments_keyword))),
        "fail" => {
            let uri = Uri::try_from(FAILED).map_err(text)?;
            let error = WampError::new(uri, "on purpose");
            return invocation.respond_error(error).await.map_err(text);
        }
        _ => {
            for number in 1..=3 {
                invocation.progress(one(Wamp::Integer(number))).await.map_err(text)?;
            }
            one(Wamp::from("done"))
        }
    };
    invocation.respond_ok(outcome).await.map_err(text)
}
