//! Much that ends at once, slice by slice. A node that drains with many sessions serves those that wait for their turn, and says
//! that it is drained when nobody is left; connections and calls whose time is over at one instant share the turns.

use super::clients::World;
use super::connect;
use super::places::{PLACES, everywhere};
use super::rig::Rig;
use dataplane::feed::FeedDown;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;

const GOODBYE: &[u8] = b"wamp.close.system_shutdown";
/// Sessions of one shard: more than a turn ends, several times.
const MANY: usize = 150;

fn is_told(rig: &Rig, at: usize) -> bool {
    rig.links[at].got.windows(GOODBYE.len()).any(|text| text == GOODBYE)
}

/// Turns until `is_done`, and how many there were.
fn turns(rig: &mut Rig, is_done: impl Fn(&mut Rig) -> bool) -> usize {
    let done = (0..1_000).find(|_| {
        let done = is_done(rig);
        if !done {
            rig.pass(Duration::ZERO);
            rig.run();
        }
        done
    });
    done.expect("it is done in the end")
}

#[test]
fn sessions_end_slice_by_slice_and_are_served_until_then() {
    everywhere(|place, realm| {
        let mut world = World::new(place, realm);
        let early = world.join(true);
        world.register(early, "com.example.early", json!({}));
        let mut others: Vec<usize> = (0..MANY).map(|_| world.join(true)).collect();
        let (callee, watcher) = (world.join(true), world.join(true));
        world.register(callee, "com.example.late", json!({}));
        world.subscribe(watcher, "wamp.session.on_leave", "exact");
        world.subscribe(watcher, "com.example.will", "exact");
        world.ask(early, "wamp.session.add_testament", json!(["com.example.will", [1], {}]));
        world.asks(watcher, json!([48, null, {}, "com.example.early"]));
        world.rig.feed(&FeedDown::Drain);

        others.push(early);
        let heard: Vec<Vec<Value>> = others.iter().map(|who| world.hears(*who)).collect();
        let goodbye = |heard: &Vec<Value>| {
            let last = heard.last();
            last.is_some_and(|message| message[0] == 6 && message[2] == "wamp.close.system_shutdown")
        };
        let told: BTreeSet<u64> = (others.iter().zip(&heard))
            .filter(|(_, heard)| goodbye(heard))
            .map(|(who, _)| world.ids[*who])
            .collect();
        assert!(!told.is_empty() && told.len() < MANY / 2, "{} are told in one turn", told.len());
        let got = world.hears(watcher);
        assert!(got.iter().any(|message| message[0] == 8 && message[4] == "wamp.error.canceled"), "{got:?}");
        assert!(got.iter().any(|message| message[0] == 36 && message[4] == json!([1])), "{got:?}");
        let left = got.iter().filter(|message| message[0] == 36).filter_map(|message| message[4][0].as_u64());
        let left: BTreeSet<u64> = left.collect();
        assert!(told.is_subset(&left), "each is told of");
        // Who waits for its turn is served as ever.
        world.asks(watcher, json!([48, null, {}, "com.example.late"]));
        let invocation = world.hears(callee).remove(0);
        world.says(callee, &json!([70, invocation[1], {}, ["yes"]]));
        assert_eq!(world.hears(watcher)[0][3], json!(["yes"]));
        assert_eq!(world.rig.connect(place.second, 0), None, "nobody comes in");
        assert!(!world.rig.is_drained(place.second));

        let all = [others, vec![callee, watcher]].concat();
        let links: Vec<usize> = all.iter().map(|who| world.links[*who]).collect();
        let last = *links.last().expect("the watcher");
        let count = turns(&mut world.rig, |rig| is_told(rig, last));
        assert!((3..20).contains(&count), "{count} turns");
        for who in &all {
            world.says(*who, &json!([6, {}, "wamp.close.goodbye_and_out"]));
            assert!(!world.rig.is_drained(place.second));
            world.rig.close_lingering(world.links[*who]);
        }
        // The lanes of a relay have a moment to say what is queued.
        for _ in 0..10 {
            world.rig.pass(Duration::from_secs(1));
            world.rig.run();
        }
        for shard in 0..place.shards() {
            assert!(world.rig.is_drained(shard), "shard {shard} says so");
        }
        world.end();
    });
}

#[test]
fn who_is_told_late_has_no_more_time_than_the_others() {
    let mut rig = PLACES[0].rig(|config| config.timeouts.drain = Duration::from_secs(5));
    let hello = r#"[1,"realm1",{"roles":{"caller":{}}}]"#;
    let links: Vec<usize> = (0..MANY).map(|_| connect(&mut rig, 0, &[hello])).collect();
    // Nobody says who it is, and that takes a turn too.
    let strangers: Vec<usize> = (0..MANY).map(|_| connect(&mut rig, 0, &[])).collect();
    rig.run();
    rig.feed(&FeedDown::Drain);
    rig.pass(Duration::from_secs(4));
    rig.run();
    let told = |rig: &mut Rig| links.iter().filter(|at| is_told(rig, **at)).count();
    let soon = told(&mut rig);
    turns(&mut rig, |rig| strangers.iter().all(|at| rig.links[*at].shut));
    assert!(told(&mut rig) > soon, "some were told later");
    assert!(links.iter().all(|at| !rig.links[*at].shut), "they have time to answer");
    rig.pass(Duration::from_millis(1_100));
    turns(&mut rig, |rig| links.iter().all(|at| rig.links[*at].shut));
    for _ in 0..3 {
        rig.pass(Duration::from_secs(2));
        rig.run();
    }
    turns(&mut rig, |rig| rig.is_drained(0));
    rig.check_empty();
}

#[test]
fn many_connections_whose_time_comes_at_once_share_the_turns() {
    const PEERS: usize = 1_000;
    let mut rig = Rig::new(1, |config| {
        config.timeouts.ping_interval = Duration::from_secs(10);
        config.timeouts.ping_timeout = Duration::from_secs(10);
        config.limits.logins_pending_max = PEERS as u32;
    });
    let hello = r#"[1,"realm1",{"roles":{"caller":{}}}]"#;
    let links: Vec<usize> = (0..PEERS).map(|_| connect(&mut rig, 0, &[hello])).collect();
    rig.run();
    let count = |rig: &mut Rig, is: fn(&super::rig::Link) -> bool| {
        links.iter().filter(|at| is(&rig.links[**at])).count()
    };
    rig.links.iter_mut().for_each(|link| link.got.clear());
    rig.pass(Duration::from_secs(11));
    rig.run();
    let pinged = count(&mut rig, |link| !link.got.is_empty());
    assert!((1..PEERS / 2).contains(&pinged), "{pinged} are pinged in one turn");
    turns(&mut rig, |rig| count(rig, |link| !link.got.is_empty()) == PEERS);
    // Nobody answers: their sessions end, and that costs more than a ping.
    rig.pass(Duration::from_secs(11));
    rig.run();
    let open = count(&mut rig, |link| link.open);
    assert!((PEERS * 9 / 10..PEERS).contains(&open), "{open} wait for turns to come");
    turns(&mut rig, |rig| count(rig, |link| link.open) == 0);
    rig.check_empty();
}

#[test]
fn many_calls_whose_time_is_over_at_once_share_the_turns() {
    const CALLS: usize = 1_000;
    everywhere(|place, realm| {
        let mut world = World::new(place, realm);
        let (caller, callee) = (world.join(false), world.join(true));
        world.register(callee, "com.example.slow", json!({}));
        let call = |n| json!([48, n, {"timeout": 500}, "com.example.slow"]).to_string();
        let calls: Vec<String> = (1..=CALLS).map(call).collect();
        for part in calls.chunks(200) {
            let part: Vec<&str> = part.iter().map(String::as_str).collect();
            world.rig.receive(world.links[caller], &super::frames(&part));
            world.rig.run();
        }
        assert_eq!(world.hears(callee).len(), CALLS);
        world.rig.pass(Duration::from_secs(1));
        world.rig.run();
        let mut got = world.hears(caller);
        assert!((1..CALLS / 2).contains(&got.len()), "{} in one turn", got.len());
        for _ in 0..10 {
            world.rig.pass(Duration::ZERO);
            world.rig.run();
            got.extend(world.hears(caller));
        }
        assert_eq!(got.len(), CALLS);
        assert!(got.iter().all(|message| message[0] == 8 && message[4] == "wamp.error.timeout"));
        world.end();
    });
}

#[test]
fn sessions_with_many_registrations_count_more() {
    const REGISTRATIONS: u64 = 200;
    let mut world = World::new(&PLACES[1], "realm1");
    let one = world.join(false);
    let others: Vec<usize> = (0..30).map(|_| world.join(true)).collect();
    for who in &others {
        let register = |n| json!([64, n, {}, format!("com.example.p{who}.n{n}")]).to_string();
        let all: Vec<String> = (1..=REGISTRATIONS).map(register).collect();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        world.rig.receive(world.links[*who], &super::frames(&all));
        world.rig.run();
        assert_eq!(world.hears(*who).len() as u64, REGISTRATIONS);
    }
    world.asks(one, json!([48, null, {}, "wamp.session.kill_all"]));
    let at_once = others.iter().filter(|who| !world.hears(**who).is_empty()).count();
    assert_eq!(at_once, 8, "32 by four each");
    for _ in 0..5 {
        world.rig.pass(Duration::ZERO);
        world.rig.run();
    }
    assert_eq!(world.hears(one)[0][3], json!([30]));
    world.end();
}

#[test]
fn sessions_with_many_testaments_count_more() {
    let mut world = World::new(&PLACES[1], "realm1");
    let one = world.join(false);
    world.subscribe(one, "com.example.will", "exact");
    let others: Vec<usize> = (0..10).map(|_| world.join(true)).collect();
    for who in &others {
        (0..40).for_each(|n| {
            world.ask(*who, "wamp.session.add_testament", json!(["com.example.will", [n], {}]));
        });
    }
    world.rig.feed(&FeedDown::Drain);
    let at_once = others.iter().filter(|who| is_told(&world.rig, world.links[**who])).count();
    assert_eq!(at_once, 3, "32 by eleven each, and what is left is enough for one more");
    assert_eq!(world.events(one).len(), 0, "it was told first itself");
    for _ in 0..5 {
        world.rig.pass(Duration::ZERO);
        world.rig.run();
    }
    assert!(others.iter().all(|who| is_told(&world.rig, world.links[*who])));
    world.end();
}

/// A caller at the first place, a callee at the second, and many calls between them.
fn with_calls(place: &super::places::Place, realm: &str, count: usize) -> (World, usize, usize) {
    let mut world = World::new(place, realm);
    let roles = json!({"caller": {}, "callee": {"features": {"call_canceling": true}}});
    let (caller, callee) = (world.join(false), world.join_as(true, &roles));
    world.register(callee, "com.example.slow", json!({}));
    let calls: Vec<String> =
        (1..=count).map(|n| json!([48, n, {}, "com.example.slow"]).to_string()).collect();
    for part in calls.chunks(200) {
        let part: Vec<&str> = part.iter().map(String::as_str).collect();
        world.rig.receive(world.links[caller], &super::frames(&part));
        world.rig.run();
    }
    assert_eq!(world.hears(callee).len(), count);
    (world, caller, callee)
}

/// What one is told in this turn, and in some that follow.
fn told(world: &mut World, who: usize) -> (usize, Vec<Value>) {
    let mut got = world.hears(who);
    let at_once = got.len();
    for _ in 0..10 {
        world.rig.pass(Duration::ZERO);
        world.rig.run();
        got.extend(world.hears(who));
    }
    (at_once, got)
}

#[test]
fn many_calls_that_lose_one_side_at_once_end_over_several_turns() {
    const CALLS: usize = 1_000;
    everywhere(|place, realm| {
        let (mut world, caller, callee) = with_calls(place, realm, CALLS);
        world.rig.close(world.links[callee]);
        world.rig.run();
        let (at_once, got) = told(&mut world, caller);
        assert!((1..CALLS / 2).contains(&at_once), "{at_once} in one turn");
        assert_eq!(got.len(), CALLS, "each is answered once");
        assert!(got.iter().all(|message| message[0] == 8 && message[4] == "wamp.error.canceled"));
        world.end();

        let (mut world, caller, callee) = with_calls(place, realm, CALLS);
        world.rig.close(world.links[caller]);
        world.rig.run();
        let (at_once, got) = told(&mut world, callee);
        assert!((1..CALLS / 2).contains(&at_once), "{at_once} in one turn");
        assert_eq!(got.len(), CALLS);
        assert!(got.iter().all(|message| message[0] == 69), "INTERRUPT");
        world.end();
    });
}

#[test]
fn many_calls_to_a_node_that_dies_end_over_several_turns() {
    const CALLS: usize = 1_000;
    for place in PLACES.iter().filter(|place| place.is_apart()) {
        let (mut world, caller, _) = with_calls(place, "realm1", CALLS);
        world.rig.kill(place.second);
        world.rig.run();
        let (at_once, got) = told(&mut world, caller);
        assert!((1..CALLS / 2).contains(&at_once), "{at_once} in one turn");
        assert_eq!(got.len(), CALLS, "each is answered once");
        assert!(got.iter().all(|message| message[0] == 8 && message[4] == "wamp.error.canceled"));
        world.end();

        let (mut world, _, callee) = with_calls(place, "realm1", CALLS);
        world.rig.kill(place.first);
        world.rig.run();
        let (at_once, got) = told(&mut world, callee);
        assert!((1..CALLS / 2).contains(&at_once), "{at_once} in one turn");
        assert_eq!(got.len(), CALLS, "the callee is told that its caller's node is gone");
        world.end();
    }
}

#[test]
fn many_publications_that_a_lost_node_does_not_acknowledge_are_answered_over_several_turns() {
    const EVENTS: usize = 1_000;
    for place in PLACES.iter().filter(|place| place.is_apart()) {
        for dies in [false, true] {
            let mut world = World::new(place, "realm1");
            let (publisher, subscriber) = (world.join(false), world.join(true));
            world.subscribe(subscriber, "com.example.a", "exact");
            let publish = |n| json!([16, n, {"acknowledge": true}, "com.example.a"]).to_string();
            let all: Vec<String> = (1..=EVENTS).map(publish).collect();
            let all: Vec<&str> = all.iter().map(String::as_str).collect();
            world.rig.receive(world.links[publisher], &super::frames(&all));
            if dies {
                world.rig.kill(place.second);
            } else {
                world.rig.cut();
            }
            world.rig.run();
            let (at_once, got) = told(&mut world, publisher);
            assert!(at_once < EVENTS / 2, "{at_once} in one turn");
            let requests: BTreeSet<u64> = (got.iter())
                .filter_map(|answer| if answer[0] == 8 { answer[2].as_u64() } else { answer[1].as_u64() })
                .collect();
            assert_eq!((got.len(), requests.len()), (EVENTS, EVENTS), "each is answered once");
            world.end();
        }
    }
}
