//! Long lists of the meta API: they are looked for slice by slice, and are whole all the same.

use super::clients::World;
use super::connect;
use super::places::{PLACES, everywhere};
use common::ids::{Match, RealmId, RouteKind, route_id};
use serde_json::{Value, json};
use std::time::Duration;

/// Passes turns until an answer is there. How many, and the answer.
fn answer(world: &mut World, who: usize) -> (usize, Value) {
    for turns in 0..1_000 {
        if let Some(answer) = world.hears(who).into_iter().find(|message| message[0] == 50) {
            return (turns, answer);
        }
        world.rig.pass(Duration::ZERO);
        world.rig.run();
    }
    panic!("it is answered in the end");
}

#[test]
fn a_list_of_many_subscriptions_is_whole_and_takes_several_turns() {
    const MANY: u64 = 5_000;
    everywhere(|place, realm| {
        let mut world = World::new(place, realm);
        let (one, two) = (world.join(false), world.join(true));
        world.subscribe_many(two, "many", MANY);
        world.hears(two);
        world.asks(one, json!([48, null, {}, "wamp.subscription.list", []]));
        assert!(world.hears(one).is_empty(), "more than a turn looks at");
        // Who goes meanwhile does not disturb the others.
        world.last_request[two] = MANY;
        let id = |n: u64| route_id(RealmId::of(realm), RouteKind::Topic, Match::Exact, &format!("many.t{n}"));
        world.asks(two, json!([34, null, id(1)]));
        let (turns, got) = answer(&mut world, one);
        assert!((1..20).contains(&turns), "{turns} turns");
        let mut expected: Vec<u64> = (2..=MANY).map(id).collect();
        expected.sort_unstable();
        let mut listed: Vec<u64> = serde_json::from_value(got[3][0]["exact"].clone()).expect("ids");
        listed.retain(|listed| *listed != id(1));
        assert_eq!(listed, expected);
        assert_eq!(got.get(4), None, "{}", got[4]);
        world.says(two, &json!([6, {}, "wamp.close.close_realm"]));
        for _ in 0..60 {
            world.rig.pass(Duration::ZERO);
            world.rig.run();
        }
        world.end();
    });
}

#[test]
fn many_sessions_are_counted_and_listed_over_several_turns() {
    const MANY: usize = 2_500;
    let hello = r#"[1,"realm1",{"roles":{"caller":{},"subscriber":{}}}]"#;
    let subscribe = r#"[32,1,{},"com.example.a"]"#;
    let mut world = World::new(&PLACES[1], "realm1");
    let one = world.join(false);
    for _ in 0..MANY / 50 {
        (0..50).for_each(|_| _ = connect(&mut world.rig, world.place.second, &[hello, subscribe]));
        world.rig.run();
    }
    let topic = route_id(RealmId::of("realm1"), RouteKind::Topic, Match::Exact, "com.example.a");
    for (procedure, args, count) in [
        ("wamp.session.count", json!([["anonymous"]]), MANY + 1),
        ("wamp.session.count", json!([["nobody"]]), 0),
        ("wamp.session.list", json!([["anonymous"]]), MANY + 1),
        ("wamp.session.list", json!([]), MANY + 1),
        ("wamp.subscription.list_subscribers", json!([topic]), MANY),
    ] {
        world.asks(one, json!([48, null, {}, procedure, args]));
        let (turns, got) = answer(&mut world, one);
        assert!((1..10).contains(&turns), "{procedure}: {turns} turns");
        let told = &got[3][0];
        let told = told.as_array().map_or_else(|| told.as_u64().expect("a count") as usize, Vec::len);
        assert_eq!((told, got.get(4)), (count, None), "{procedure}");
    }
    // Page by page.
    let page = |after: u64| json!([48, null, {}, "wamp.subscription.list_subscribers", [topic], {"limit": 1_000, "after": after}]);
    let (mut after, mut pages) = (0, Vec::new());
    loop {
        world.asks(one, page(after));
        let (_, got) = answer(&mut world, one);
        let ids: Vec<u64> = serde_json::from_value(got[3][0].clone()).expect("ids");
        after = *ids.last().expect("some");
        pages.push(ids.len());
        if got.get(4).is_none() {
            break;
        }
    }
    assert_eq!(pages, [1_000, 1_000, 500]);
    world.rig.close_all();
    for _ in 0..100 {
        world.rig.pass(Duration::ZERO);
        world.rig.run();
    }
    world.end();
}
