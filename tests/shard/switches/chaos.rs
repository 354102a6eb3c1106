//! Rules that change at random while calls are under way.

use super::{able, put, rules, uses};
use crate::clients::World;
use crate::places::PLACES;
use common::features::{FEATURES, FeatureSet};
use common::rules::{BOUNDS, Bounds, Rules};
use serde_json::{Value, json};

/// Rules drawn at random, most of them of features that messages ask for often.
fn drawn(rng: &mut fastrand::Rng) -> Rules {
    let features = |rng: &mut fastrand::Rng| match rng.u8(0..3) {
        0 => FeatureSet::EMPTY,
        1 => FeatureSet(rng.u64(..) & rng.u64(..)),
        _ => FeatureSet::of(FEATURES[rng.usize(..FEATURES.len())].0),
    };
    let bounds = |rng: &mut fastrand::Rng| match rng.u8(0..3) {
        0 => Bounds::NONE.with(BOUNDS[rng.usize(..BOUNDS.len())].0, rng.u32(1..20)),
        _ => Bounds::NONE,
    };
    rules(features(rng), bounds(rng), features(rng), bounds(rng))
}

/// Whatever changes while calls, their parts and answers are under way: nobody's connection ends, each call is answered once, and
/// nothing is left.
#[test]
fn rules_that_change_at_any_time_leave_nothing_behind() {
    for seed in 0..60 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut world = World::new(&PLACES[seed as usize % PLACES.len()], "realm1");
        let all = [world.join_as(false, &able()), world.join_as(true, &able()), world.join_as(true, &able())];
        world.register(all[1], "com.example.p", json!({}));
        world.register(all[2], "com.example.s", json!({"invoke": "roundrobin", "concurrency": 2}));
        world.subscribe(all[1], "com.example.t", "exact");
        let uses = uses();
        // Open calls and their numbers of answers, parts that may follow, and invocations.
        let mut calls: Vec<(usize, u64, usize)> = Vec::new();
        let mut parts: Vec<(usize, u64)> = Vec::new();
        let mut invocations: Vec<(usize, Value)> = Vec::new();
        for change in 1..=200 {
            let who = all[rng.usize(..all.len())];
            match rng.u8(0..10) {
                0 => {
                    let rules = drawn(&mut rng);
                    let number = change_number(&mut world);
                    put(&mut world, number, &rules);
                }
                1..=3 => {
                    let procedure = ["com.example.p", "com.example.s"][rng.usize(..2)];
                    let progress = rng.u8(0..3) == 0;
                    let options = json!({"progress": progress, "receive_progress": rng.bool()});
                    world.asks(who, json!([48, null, options, procedure, [change]]));
                    calls.push((who, world.last_request[who], 0));
                    if progress {
                        parts.push((who, world.last_request[who]));
                    }
                }
                4 if !parts.is_empty() => {
                    let (who, request) = parts.swap_remove(rng.usize(..parts.len()));
                    world.says(
                        who,
                        &json!([48, request, {}, "com.example.p", ["the last part, and a long one"]]),
                    );
                }
                5 if !calls.is_empty() => {
                    let (who, request, _) = calls[rng.usize(..calls.len())];
                    world.says(who, &json!([49, request, {"mode": "killnowait"}]));
                }
                6 => world.asks(who, uses[rng.usize(..uses.len() - 9)].1.clone()),
                _ if !invocations.is_empty() => {
                    let (callee, request) = invocations.swap_remove(rng.usize(..invocations.len()));
                    let answers = [
                        json!([70, request, {}, [change]]),
                        json!([70, request, {}, ["an answer longer than some may be"]]),
                        json!([70, request, {"ppt_scheme": "mqtt"}, [change]]),
                        json!([8, 68, request, {}, "wamp.error.unavailable"]),
                    ];
                    world.says(callee, &answers[rng.usize(..answers.len())]);
                }
                _ => {}
            }
            for who in all {
                for message in world.hears(who) {
                    let answers = match message[0].as_u64() {
                        Some(68) => {
                            let known = invocations.iter().any(|(at, id)| (*at, id) == (who, &message[1]));
                            if !known {
                                invocations.push((who, message[1].clone()));
                            }
                            continue;
                        }
                        Some(50) if message[2]["progress"] != true => &message[1],
                        Some(8) if message[1] == 48 => &message[2],
                        Some(3 | 6) => panic!("seed {seed}: {message}"),
                        _ => continue,
                    };
                    let called = calls.iter_mut().find(|(at, id, _)| *at == who && answers == id);
                    if let Some((.., count)) = called {
                        *count += 1;
                        assert_eq!(*count, 1, "seed {seed}: a call is answered once: {message}");
                    }
                }
            }
        }
        world.end();
    }
}

/// One more than the changes so far.
fn change_number(world: &mut World) -> u64 {
    world.changes += 1;
    world.changes
}
