//! Nodes that die or lose each other while a session of one is carried by another.

use super::super::places::PLACES;
use super::{AFTER, Client, TOPIC, World, numbers};
use std::time::Duration;

#[test]
fn a_client_that_is_carried_comes_back_when_the_nodes_lose_each_other() {
    for place in PLACES.iter().filter(|place| place.is_apart()) {
        let mut world = World::new(place, "strict");
        let mut stays = world.join_to_stay();
        world.subscribe(&mut stays, TOPIC);
        world.drop(&stays);
        world.back(&mut stays, true);
        world.rig.cut();
        world.wait(Duration::from_secs(5));
        assert!(!world.rig.links[stays.link].open, "its connection is of no use");
        assert_eq!(world.waiting(), 1);
        let mut other = world.join(false, &[]);
        world.publish(&mut other, 0..3);
        assert_eq!(numbers(&world.back(&mut stays, true)), [0, 1, 2]);
        world.end();
    }
}

#[test]
fn a_session_dies_with_the_node_that_holds_it() {
    for place in PLACES.iter().filter(|place| place.is_apart()) {
        let mut world = World::new(place, "realm1");
        let (mut one, two) = (world.join_to_stay(), world.join_to_stay());
        world.drop(&one);
        world.drop(&two);
        world.back(&mut one, true);
        world.rig.kill(place.first);
        world.wait(Duration::from_secs(5));
        assert!(!world.rig.links[one.link].open);
        for client in [&one, &two] {
            let (_, heard) = world.ask_back(client, true);
            assert_eq!((&heard[0][0], &heard[0][2]["resumed"]), (&2.into(), &false.into()));
        }
        world.end();
    }
}

#[test]
fn a_session_waits_again_when_the_node_that_carries_it_dies() {
    for place in PLACES.iter().filter(|place| place.is_apart()) {
        let mut world = World::new(place, "realm1");
        let mut stays = world.join_to_stay();
        let mut other = world.join(false, &[]);
        world.subscribe(&mut stays, TOPIC);
        world.drop(&stays);
        world.back(&mut stays, true);
        world.rig.kill(place.second);
        world.wait(Duration::from_secs(5));
        assert_eq!(world.waiting(), 1);
        world.publish(&mut other, 0..3);
        assert_eq!(numbers(&world.back(&mut stays, false)), [0, 1, 2]);
        world.end();
    }
}

#[test]
fn many_that_are_carried_come_back_when_the_nodes_lose_each_other() {
    const MANY: usize = 300;
    for place in PLACES.iter().filter(|place| place.is_apart()) {
        let mut world = World::new(place, "realm1");
        let mut clients: Vec<Client> = (0..MANY).map(|_| world.join_to_stay()).collect();
        for client in &mut clients {
            world.drop(client);
            world.back(client, true);
        }
        assert_eq!(world.waiting(), 0);
        world.rig.cut();
        let closed =
            |world: &World| clients.iter().filter(|client| world.rig.links[client.link].shut).count();
        let at_once = closed(&world);
        assert!(at_once < MANY, "{at_once} of them in one turn");
        for _ in 0..5 {
            world.rig.pass(Duration::ZERO);
            world.rig.run();
        }
        assert_eq!(closed(&world), MANY);
        world.rig.pass(Duration::from_secs(3));
        world.rig.run();
        assert_eq!(world.waiting(), MANY as u64, "all sessions wait again");
        for client in &mut clients {
            world.back(client, false);
        }
        assert_eq!(world.waiting(), 0);
        // Those whose window is over end in slices too.
        world.rig.close_all();
        world.wait(AFTER);
        for _ in 0..MANY {
            world.rig.pass(Duration::ZERO);
            world.rig.run();
        }
        world.end();
    }
}
