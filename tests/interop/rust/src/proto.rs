//! wampproto, which opens no socket: its messages over a WebSocket.

use super::{Client, FAILED, Inbox, Payload};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::{ClientRequestBuilder, Message as Frame};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};
use wampproto::authenticators::anonymous::AnonymousAuthenticator;
use wampproto::idgen::SessionScopeIDGenerator;
use wampproto::joiner::Joiner;
use wampproto::messages::call::Call;
use wampproto::messages::error::Error;
use wampproto::messages::event::Event;
use wampproto::messages::invocation::{Invocation, MESSAGE_TYPE_INVOCATION};
use wampproto::messages::message::Message;
use wampproto::messages::publish::Publish;
use wampproto::messages::published::Published;
use wampproto::messages::register::Register;
use wampproto::messages::registered::Registered;
use wampproto::messages::result::Result_;
use wampproto::messages::subscribe::Subscribe;
use wampproto::messages::subscribed::Subscribed;
use wampproto::messages::types::Value as Wamp;
use wampproto::messages::yield_::Yield;
use wampproto::serializers::cbor::CBORSerializer;
use wampproto::serializers::json::JSONSerializer;
use wampproto::serializers::msgpack::MsgPackSerializer;
use wampproto::serializers::serializer::Serializer;

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;
type Dict = HashMap<String, Wamp>;
type Outgoing = mpsc::UnboundedSender<Box<dyn Message>>;

pub struct Proto {
    ids: SessionScopeIDGenerator,
    outgoing: Outgoing,
    /// Answers to what was asked.
    answers: mpsc::UnboundedReceiver<Box<dyn Message>>,
    /// Procedures by the id of their registration.
    procedures: mpsc::UnboundedSender<(i64, String)>,
    inbox: Inbox,
}

fn text(error: impl std::fmt::Debug) -> String {
    format!("{error:?}")
}

fn dict(options: &Map<String, Value>) -> Result<Dict, String> {
    serde_json::from_value(Value::Object(options.clone())).map_err(text)
}

fn list(args: &[Value]) -> Result<Vec<Wamp>, String> {
    serde_json::from_value(Value::Array(args.to_vec())).map_err(text)
}

fn first(args: Option<&Vec<Wamp>>) -> Result<Value, String> {
    serde_json::to_value(args.and_then(|args| args.first())).map_err(text)
}

impl Proto {
    pub async fn join(url: &str, serializer: &str, realm: &str) -> Result<Self, String> {
        let codec: Box<dyn Serializer> = match serializer {
            "json" => Box::new(JSONSerializer {}),
            "msgpack" => Box::new(MsgPackSerializer {}),
            _ => Box::new(CBORSerializer {}),
        };
        let request = ClientRequestBuilder::new(url.parse().map_err(text)?)
            .with_sub_protocol(format!("wamp.2.{serializer}"));
        let (mut socket, _) = connect_async(request).await.map_err(text)?;
        let is_text = serializer == "json";
        let authenticator = Box::new(AnonymousAuthenticator::default());
        let mut joiner = Joiner::new(realm, codec.clone_box(), authenticator);
        socket.send(frame(is_text, joiner.send_hello().map_err(text)?)).await.map_err(text)?;
        while joiner.session_details().is_err() {
            let came = socket.next().await.ok_or("the connection ended")?.map_err(text)?;
            if let Some(answer) = joiner.receive(came.into_data().to_vec()).map_err(text)? {
                socket.send(frame(is_text, answer)).await.map_err(text)?;
            }
        }
        let (outgoing, to_send) = mpsc::unbounded_channel();
        let (answered, answers) = mpsc::unbounded_channel();
        let (events, inbox) = mpsc::unbounded_channel();
        let (procedures, registered) = mpsc::unbounded_channel();
        let (sink, stream) = socket.split();
        tokio::spawn(send_all(sink, to_send, codec.clone_box(), is_text));
        let reader = Reader {
            codec,
            outgoing: outgoing.clone(),
            answered,
            events,
            registered,
            procedures: HashMap::new(),
        };
        tokio::spawn(reader.run(stream));
        Ok(Self { ids: SessionScopeIDGenerator::new(), outgoing, answers, procedures, inbox })
    }

    fn send(&self, message: impl Message + 'static) -> Result<(), String> {
        self.outgoing.send(Box::new(message)).map_err(|_| "the connection ended".to_owned())
    }

    /// The next answer: requests are made one after the other.
    async fn answer(&mut self) -> Result<Box<dyn Message>, String> {
        let answer = self.answers.recv().await.ok_or("the connection ended")?;
        match answer.as_any().downcast_ref::<Error>() {
            Some(error) => Err(error.uri.clone()),
            None => Ok(answer),
        }
    }

    async fn result(&mut self) -> Result<(bool, Value), String> {
        let answer = self.answer().await?;
        let result = answer.as_any().downcast_ref::<Result_>().ok_or("another answer came")?;
        let progress = result.details.get("progress") == Some(&Wamp::Bool(true));
        Ok((progress, first(result.args.as_ref())?))
    }

    fn request(&self, uri: &str, payload: &Payload, options: Dict) -> Result<(), String> {
        let (args, kwargs) = (list(&payload.args)?, dict(&payload.kwargs)?);
        self.send(Call {
            request_id: self.ids.next_id(),
            options,
            procedure: uri.to_owned(),
            args: Some(args),
            kwargs: Some(kwargs),
        })
    }
}

fn frame(is_text: bool, bytes: Vec<u8>) -> Frame {
    match String::from_utf8(bytes) {
        Ok(text) if is_text => Frame::text(text),
        Ok(text) => Frame::binary(text.into_bytes()),
        Err(error) => Frame::binary(error.into_bytes()),
    }
}

async fn send_all(
    mut sink: SplitSink<Socket, Frame>,
    mut messages: mpsc::UnboundedReceiver<Box<dyn Message>>,
    codec: Box<dyn Serializer>,
    is_text: bool,
) {
    while let Some(message) = messages.recv().await {
        match codec.serialize(message.as_ref()) {
            Ok(bytes) => {
                if let Err(error) = sink.send(frame(is_text, bytes)).await {
                    return eprintln!("nothing more is sent: {error}");
                }
            }
            Err(error) => return eprintln!("it cannot say what it wants: {error:?}"),
        }
    }
}

/// Takes what comes.
struct Reader {
    codec: Box<dyn Serializer>,
    outgoing: Outgoing,
    answered: mpsc::UnboundedSender<Box<dyn Message>>,
    events: mpsc::UnboundedSender<Value>,
    registered: mpsc::UnboundedReceiver<(i64, String)>,
    procedures: HashMap<i64, String>,
}

impl Reader {
    async fn run(mut self, mut stream: SplitStream<Socket>) {
        while let Some(Ok(came)) = stream.next().await {
            if !(came.is_text() || came.is_binary()) {
                continue;
            }
            match self.codec.deserialize(came.into_data().to_vec()) {
                Ok(message) => self.take(message).await,
                Err(error) => return eprintln!("it cannot read what came: {error:?}"),
            }
        }
    }

    async fn take(&mut self, message: Box<dyn Message>) {
        if let Some(event) = message.as_any().downcast_ref::<Event>() {
            let (args, kwargs) = (event.args.clone().unwrap_or_default(), event.kwargs.clone());
            let told = event.details.get("publisher").or_else(|| event.details.get("topic"));
            let event = json!([args, kwargs.unwrap_or_default(), told]);
            let _ = self.events.send(event);
        } else if let Some(invocation) = message.as_any().downcast_ref::<Invocation>() {
            self.invoked(invocation).await;
        } else {
            let _ = self.answered.send(message);
        }
    }

    async fn invoked(&mut self, invocation: &Invocation) {
        while !self.procedures.contains_key(&invocation.registration_id) {
            let Some((id, name)) = self.registered.recv().await else { return };
            self.procedures.insert(id, name);
        }
        let request_id = invocation.request_id;
        let args = invocation.args.as_ref().and_then(|args| args.first()).cloned();
        let give = |options: Dict, value: Wamp| {
            let message = Yield { request_id, options, args: Some(vec![value]), kwargs: None };
            let _ = self.outgoing.send(Box::new(message));
        };
        match self.procedures[&invocation.registration_id].as_str() {
            "echo" => give(Dict::new(), args.unwrap_or(Wamp::Null)),
            "named" => give(Dict::new(), Wamp::Dict(invocation.kwargs.clone().unwrap_or_default())),
            "caller" => {
                give(Dict::new(), invocation.details.get("caller").cloned().unwrap_or(Wamp::Null))
            }
            "fail" => {
                let _ = self.outgoing.send(Box::new(Error {
                    message_type: MESSAGE_TYPE_INVOCATION,
                    request_id,
                    options: Dict::new(),
                    uri: FAILED.to_owned(),
                    args: None,
                    kwargs: None,
                }));
            }
            _ => {
                for number in 1..=3 {
                    give(Dict::from([("progress".into(), Wamp::Bool(true))]), Wamp::Int(number));
                }
                give(Dict::new(), Wamp::Str("done".into()));
            }
        }
    }
}

impl Client for Proto {
    async fn register(&mut self, uri: &str, name: &str, options: &Map<String, Value>) -> Result<(), String> {
        let (request_id, procedure) = (self.ids.next_id(), uri.to_owned());
        self.send(Register { request_id, options: dict(options)?, procedure })?;
        let answer = self.answer().await?;
        let registered = answer.as_any().downcast_ref::<Registered>().ok_or("another answer came")?;
        self.procedures.send((registered.registration_id, name.to_owned())).map_err(text)
    }

    async fn call(&mut self, uri: &str, payload: Payload) -> Result<Value, String> {
        self.request(uri, &payload, Dict::new())?;
        self.result().await.map(|(_, value)| value)
    }

    async fn call_progress(&mut self, uri: &str) -> Result<(Vec<Value>, Value), String> {
        let options = Dict::from([("receive_progress".into(), Wamp::Bool(true))]);
        self.request(uri, &Payload::default(), options)?;
        let mut parts = Vec::new();
        loop {
            match self.result().await? {
                (true, part) => parts.push(part),
                (false, last) => return Ok((parts, last)),
            }
        }
    }

    async fn subscribe(&mut self, uri: &str, options: &Map<String, Value>) -> Result<(), String> {
        let (request_id, topic) = (self.ids.next_id(), uri.to_owned());
        self.send(Subscribe { request_id, options: dict(options)?, topic })?;
        let answer = self.answer().await?;
        answer.as_any().downcast_ref::<Subscribed>().map(|_| ()).ok_or("another answer came".to_owned())
    }

    async fn publish(
        &mut self,
        uri: &str,
        payload: Payload,
        options: &Map<String, Value>,
    ) -> Result<(), String> {
        let mut options = dict(options)?;
        options.insert("acknowledge".into(), Wamp::Bool(true));
        self.send(Publish {
            request_id: self.ids.next_id(),
            options,
            topic: uri.to_owned(),
            args: Some(list(&payload.args)?),
            kwargs: Some(dict(&payload.kwargs)?),
        })?;
        let answer = self.answer().await?;
        answer.as_any().downcast_ref::<Published>().map(|_| ()).ok_or("another answer came".to_owned())
    }

    fn inbox(&mut self) -> &mut Inbox {
        &mut self.inbox
    }
}
