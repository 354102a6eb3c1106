//! Nodes that leave, and those that are forgotten.

use super::*;

#[test]
fn a_node_that_leaves_is_not_taken_for_dead() {
    for seed in seeds() {
        let mut world = World::joined(5, seed);
        world.loss = 0.1;
        let since = world.now;
        for _ in 0..3 {
            let now = world.now;
            world.swim(4).leave(now);
            world.drain(4);
            world.run(Duration::from_millis(100));
        }
        world.hosts[4] = None;
        world.run(Duration::from_secs(3));
        assert!(world.seen_after(since, 4, State::Left).iter().all(|after| *after < Duration::from_secs(2)));
        assert_eq!(world.false_deaths(), 0, "seed {seed}");
        world.loss = 0.0;
        world.boot(4);
        world.run(Duration::from_secs(3));
        world.demand_all(State::Alive);
    }
}

#[test]
fn only_the_dead_are_forgotten() {
    let mut world = World::joined(3, 8);
    let now = world.now;
    assert_eq!(world.swim(0).forget(now, node(1)), Err(ForgetError::Lives));
    assert_eq!(world.swim(0).forget(now, node(7)), Err(ForgetError::Unknown));
    world.hosts[1] = None;
    world.run(Duration::from_secs(6));
    let now = world.now;
    assert_eq!(world.swim(0).forget(now, node(1)), Ok(()));
    world.run(Duration::from_secs(20));
    assert_eq!(world.view(0).keys().collect::<Vec<_>>(), [&node(2)]);
}

#[test]
fn who_is_forgotten_does_not_come_back_by_what_others_still_tell() {
    for seed in seeds() {
        let mut world = World::joined(3, seed);
        let now = world.now;
        world.swim(1).leave(now);
        world.drain(1);
        world.hosts[1] = None;
        // The other one is still telling that it has left.
        while world.view(0)[&node(1)] != State::Left {
            world.run(Duration::from_millis(1));
        }
        let now = world.now;
        assert_eq!(world.swim(0).forget(now, node(1)), Ok(()));
        for _ in 0..100 {
            world.run(Duration::from_millis(100));
            assert_eq!(world.view(0).keys().collect::<Vec<_>>(), [&node(2)], "seed {seed}");
        }
        world.boot(1);
        world.run(Duration::from_secs(3));
        world.demand_all(State::Alive);
    }
}
