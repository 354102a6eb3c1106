//! Publications with more to them than a topic and a payload, between nodes.

use super::cluster::Cluster;
use super::{Wire, join, publish_until_known};
use common::metrics::Counter;
use common::wire::Serializer;
use serde_json::{Value, json};

const TOPIC: &str = "com.example.special";

#[test]
fn what_is_told_and_who_is_admitted_holds_on_other_nodes() {
    let cluster = Cluster::start(2, 2, |_| {});
    cluster.wait_connected(&[0, 1]);
    let [here, there] = &cluster.nodes[..] else { unreachable!() };
    for serializer in Serializer::ALL {
        let mut publisher = join(here, Wire::raw(serializer));
        // One whose serializer is the publisher's and one whose is not, on any shard.
        let mut subscribers = [serializer, Serializer::Json].map(|wire| join(there, Wire::raw(wire)));
        for subscriber in &mut subscribers {
            subscriber.subscribe(TOPIC);
            publish_until_known(&mut publisher, TOPIC, subscriber);
        }
        let [first, second] = &subscribers;
        let (first, second) = (first.session, second.session);
        let mut publish = |options: Value, number: u64| {
            publisher.request(json!([16, null, options, TOPIC, [number]]));
        };
        publish(json!({"eligible": [first]}), 1);
        publish(json!({"exclude": [first]}), 2);
        publish(json!({"eligible_authid": [format!("{second:x}")], "eligible_authrole": ["anonymous"]}), 3);
        publish(json!({"exclude_authrole": ["anonymous"]}), 4);
        publish(json!({"disclose_me": true, "ppt_scheme": "x_my", "exclude_authrole": []}), 5);
        let [first, second] = &mut subscribers;
        for (subscriber, numbers) in [(first, &[1, 5][..]), (second, &[2, 3, 5])] {
            for number in numbers {
                // What found the way to the others came here too.
                let is_ours = |event: &Value| event[4][0].is_number();
                let event = std::iter::repeat_with(|| subscriber.event()).find(is_ours).expect("one comes");
                assert_eq!(event[4], json!([number]));
                let details = match number {
                    5 => json!({
                        "publisher": publisher.session,
                        "publisher_authid": format!("{:x}", publisher.session),
                        "publisher_authrole": "anonymous",
                        "ppt_scheme": "x_my",
                    }),
                    _ => json!({}),
                };
                assert_eq!(event[3], details);
            }
        }
    }
    assert_eq!(cluster.counter(0, Counter::RelayBadFrames) + cluster.counter(1, Counter::RelayBadFrames), 0);
}
