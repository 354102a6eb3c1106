//! Clients that ask and answer, in every place.

use super::places::Place;
use super::rig::Rig;
use super::{connect, frames, messages};
use serde_json::{Value, json};

/// Clients that ask and answer, by name.
pub struct World {
    pub rig: Rig,
    pub realm: String,
    pub place: Place,
    pub last_request: Vec<u64>,
    pub links: Vec<usize>,
    pub ids: Vec<u64>,
    /// Changes of the realm so far.
    pub changes: u64,
}

impl World {
    pub fn new(place: &Place, realm: &str) -> Self {
        let rig = place.rig(|_| {});
        Self {
            rig,
            realm: realm.to_owned(),
            place: *place,
            last_request: vec![],
            links: vec![],
            ids: vec![],
            changes: 0,
        }
    }

    /// A session at the first place, or at the second one.
    pub fn join(&mut self, second: bool) -> usize {
        let features =
            json!({"features": {"subscription_revocation": true, "registration_revocation": true}});
        let roles = json!({"caller": {}, "callee": features, "publisher": {}, "subscriber": features});
        self.join_as(second, &roles)
    }

    /// As [`World::join`], announcing these roles.
    pub fn join_as(&mut self, second: bool, roles: &Value) -> usize {
        let hello = json!([1, self.realm, {"roles": roles}]).to_string();
        let shard = if second { self.place.second } else { self.place.first };
        let at = connect(&mut self.rig, shard, &[&hello]);
        self.rig.run();
        let welcome: Value = serde_json::from_str(&messages(&mut self.rig, at)[0]).expect("JSON");
        self.links.push(at);
        self.ids.push(welcome[1].as_u64().expect("WELCOME"));
        self.last_request.push(0);
        self.links.len() - 1
    }

    pub fn says(&mut self, who: usize, message: &Value) {
        self.rig.receive(self.links[who], &frames(&[&message.to_string()]));
        self.rig.run();
    }

    /// The next request, with its id in place of null.
    pub fn asks(&mut self, who: usize, mut message: Value) {
        self.last_request[who] += 1;
        message[1] = self.last_request[who].into();
        self.says(who, &message);
    }

    pub fn hears(&mut self, who: usize) -> Vec<Value> {
        let got = messages(&mut self.rig, self.links[who]);
        got.iter().map(|text| serde_json::from_str(text).expect("JSON")).collect()
    }

    /// Events by topic, without what differs from run to run.
    pub fn events(&mut self, who: usize) -> Vec<Value> {
        let of = |message: Value| (message[0] == 36).then(|| json!([message[4], message[5]]));
        self.hears(who).into_iter().filter_map(of).collect()
    }

    /// What a call is answered: its arguments, or the URI of the error.
    pub fn call(&mut self, who: usize, procedure: &str, args: Value, kwargs: Value) -> Value {
        self.asks(who, json!([48, null, {}, procedure, args, kwargs]));
        let mut got = self.hears(who);
        got.retain(|message| message[0] == 50 || message[0] == 8);
        assert_eq!(got.len(), 1, "{procedure} is answered once: {got:?}");
        let answer = got.remove(0);
        if answer[0] == 8 {
            return answer[4].clone();
        }
        assert_eq!(answer.get(4), None, "{procedure} asks everybody");
        answer.get(3).cloned().unwrap_or(json!([]))
    }

    pub fn ask(&mut self, who: usize, procedure: &str, args: Value) -> Value {
        self.call(who, procedure, args, json!({}))
    }

    pub fn subscribe(&mut self, who: usize, topic: &str, policy: &str) -> u64 {
        self.asks(who, json!([32, null, {"match": policy}, topic]));
        let got = self.hears(who);
        let answer = got.iter().find(|message| message[0] == 33);
        answer.unwrap_or_else(|| panic!("{got:?}"))[2].as_u64().expect("SUBSCRIBED")
    }

    /// Subscribes to so many topics `under.t1`, `under.t2` ... at once, with the first requests of a session.
    pub fn subscribe_many(&mut self, who: usize, under: &str, count: u64) {
        let of = |n| json!([32, n, {}, format!("{under}.t{n}")]).to_string();
        let subscribes: Vec<String> = (1..=count).map(of).collect();
        let subscribes: Vec<&str> = subscribes.iter().map(String::as_str).collect();
        self.rig.receive(self.links[who], &frames(&subscribes));
        self.rig.run();
    }

    pub fn register(&mut self, who: usize, procedure: &str, options: Value) -> u64 {
        self.asks(who, json!([64, null, options, procedure]));
        let got = self.hears(who);
        let answer = got.iter().find(|message| message[0] == 65);
        answer.unwrap_or_else(|| panic!("{got:?}"))[2].as_u64().expect("REGISTERED")
    }

    pub fn close(&mut self, who: usize) {
        self.rig.close(self.links[who]);
        self.rig.run();
    }

    pub fn end(mut self) {
        self.rig.check_empty();
    }
}
