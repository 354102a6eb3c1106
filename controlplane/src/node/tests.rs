use super::*;
use common::ids::RouteKind;
use common::link::Claim;
use common::snapshot::Anonymous;

const A: LinkId = LinkId(1);
const B: LinkId = LinkId(2);

fn realm(name: &str) -> RealmConfig {
    RealmConfig { anonymous: Anonymous::Nobody, ..RealmConfig::named(name) }
}

fn node() -> Node {
    Node::new(NodeConfig {
        pid: 1,
        catalog: Catalog::new(&[realm("realm1")], 10).unwrap(),
        policy: Policy { min_interval: Duration::from_millis(100), fold_min: 2 },
        version_last: SnapshotVersion(0),
    })
}

fn hello(epoch: u64) -> Up {
    let (epoch, version) = (BootEpoch(epoch), "1".into());
    Up::Hello { protocol: LINK_PROTOCOL, epoch, pid: 99, shards: 2, version }
}

fn drain(node: &mut Node, now: Instant) -> Vec<Output> {
    std::iter::from_fn(|| node.poll(now, 0)).filter(|output| !matches!(output, Output::Notice(_))).collect()
}

fn routed(uri: &str) -> Claim {
    let realm = RealmId::of("realm1");
    Claim::Routed { realm, kind: RouteKind::Topic, policy: Match::Exact, uri: uri.into() }
}

fn serve(node: &mut Node, now: Instant) -> Box<Fold> {
    node.frame(now, A, hello(5));
    let listeners = vec![("websocket".into(), "127.0.0.1:1".into())];
    node.frame(now, A, Up::Listening { listeners });
    let mut outputs = drain(node, now);
    let Some(Output::Build { link: A, fold, .. }) = outputs.pop() else { panic!("no build") };
    let source = fold.head.clone();
    let welcome = Down::Welcome { protocol: LINK_PROTOCOL, pid: 1 };
    assert_eq!(outputs, [Output::Send { link: A, frame: welcome }]);
    node.built(now, source.version, Some(Duration::ZERO));
    node.frame(now, A, Up::Taken { version: source.version });
    fold
}

#[test]
fn a_hello_is_answered_with_welcome_and_a_full_snapshot() {
    let (mut node, now) = (node(), Instant::now());
    assert_eq!(node.ready(), Err(Unready::NoDataPlane));
    let source = serve(&mut node, now).head;
    assert_eq!((source.epoch, source.claims_folded, source.realms.len()), (BootEpoch(5), vec![0, 0], 1));
    assert_eq!(drain(&mut node, now), [Output::RealmsTaken { realm_seq: 0 }, Output::Serving]);
    assert_eq!(node.ready(), Ok(()));
}

#[test]
fn a_second_data_plane_is_refused_and_the_first_stays() {
    let (mut node, now) = (node(), Instant::now());
    serve(&mut node, now);
    drain(&mut node, now);
    node.frame(now, B, hello(6));
    let outputs = drain(&mut node, now);
    assert!(matches!(&outputs[0], Output::Send { link: B, frame: Down::Refuse { .. } }), "{outputs:?}");
    assert_eq!(outputs[1], Output::Close { link: B });
    node.closed(now, B);
    assert_eq!((node.ready(), node.registry().epoch()), (Ok(()), Some(BootEpoch(5))));
}

#[test]
fn another_protocol_is_refused() {
    let (mut node, now) = (node(), Instant::now());
    let (protocol, epoch) = (LINK_PROTOCOL + 1, BootEpoch(1));
    node.frame(now, A, Up::Hello { protocol, epoch, pid: 1, shards: 1, version: String::new() });
    assert!(matches!(&drain(&mut node, now)[0], Output::Send { frame: Down::Refuse { .. }, .. }));
    assert!(node.data_plane().is_none());
}

#[test]
fn claims_survive_the_link_and_are_in_the_next_first_snapshot() {
    let (mut node, now) = (node(), Instant::now());
    serve(&mut node, now);
    node.frame(now, A, Up::Claims { shard: ShardId(1), first_seq: 1, claims: vec![routed("x")] });
    node.closed(now, A);
    assert_eq!(node.ready(), Err(Unready::NoDataPlane));
    drain(&mut node, now);
    let fold = serve(&mut node, now);
    let (routes, _) = fold.routes();
    assert_eq!((&fold.head.claims_folded, routes.len()), (&vec![0, 1], 1));
    assert_eq!(routes[0].shards.0, 2);
}

#[test]
fn enough_claims_make_a_full_snapshot() {
    let (mut node, now) = (node(), Instant::now());
    serve(&mut node, now);
    drain(&mut node, now);
    let claims = vec![routed("x"), routed("y")];
    node.frame(now, A, Up::Claims { shard: ShardId(0), first_seq: 1, claims });
    assert_eq!(drain(&mut node, now), []);
    let outputs = drain(&mut node, now + Duration::from_millis(100));
    let [Output::Build { fold, .. }] = &outputs[..] else { panic!("{outputs:?}") };
    assert_eq!((&fold.head.claims_folded, fold.routes().0.len()), (&vec![2, 0], 2));
}

#[test]
fn impossible_frames_close_the_link() {
    let now = Instant::now();
    let bad = [
        Up::ClaimsEnd { shard: ShardId(0), seq: 1 },
        Up::ClaimsReset { shard: ShardId(2) },
        Up::Stats { shard: ShardId(77), cpu: 0, counters: vec![], gauges: vec![] },
        hello(5),
    ];
    for frame in bad {
        let mut node = node();
        serve(&mut node, now);
        drain(&mut node, now);
        node.frame(now, A, frame.clone());
        assert_eq!(drain(&mut node, now), [Output::Close { link: A }], "{frame:?}");
        assert!(node.data_plane().is_none());
    }
    let mut node = node();
    node.frame(now, A, Up::Draining);
    assert_eq!(drain(&mut node, now), [Output::Close { link: A }]);
}

#[test]
fn a_realm_put_is_a_delta_and_its_number_comes_back_when_taken() {
    let (mut node, now) = (node(), Instant::now());
    serve(&mut node, now);
    drain(&mut node, now);
    let seq = node.realm_put(now, realm("a"));
    let outputs = drain(&mut node, now);
    let [Output::Send { frame: Down::Delta(delta), .. }] = &outputs[..] else { panic!("{outputs:?}") };
    assert_eq!(delta.realms_put[0].name, "a");
    node.frame(now, A, Up::Taken { version: delta.version });
    assert_eq!(drain(&mut node, now), [Output::RealmsTaken { realm_seq: seq }]);
}

#[test]
fn a_drain_reaches_the_data_plane_now_and_one_that_comes_later() {
    let (mut node, now) = (node(), Instant::now());
    assert!(!node.drain());
    node.frame(now, A, hello(1));
    assert!(drain(&mut node, now).contains(&Output::Send { link: A, frame: Down::Drain }));
    assert_eq!(node.ready(), Err(Unready::Draining));
}

fn peer(n: u8) -> Peer {
    Peer { node: NodeId([n; 16]), epoch: BootEpoch(n.into()), relay: "127.0.0.1:9".into() }
}

fn wants(n: u8, uri: &str, wanted: bool) -> RouteChange {
    RouteChange {
        node: NodeId([n; 16]),
        realm: RealmId::of("realm1"),
        kind: RouteKind::Topic,
        policy: Match::Exact,
        uri: uri.into(),
        wanted,
        share: None,
    }
}

fn sent(outputs: &[Output]) -> Vec<&Down> {
    outputs
        .iter()
        .filter_map(|output| match output {
            Output::Send { frame, .. } => Some(frame),
            _ => None,
        })
        .collect()
}

#[test]
fn nothing_of_other_nodes_is_told_while_held_and_then_peers_come_before_the_snapshot() {
    let (mut node, now) = (node(), Instant::now());
    node.hold(true);
    node.frame(now, A, hello(5));
    node.remote_routes(now, vec![wants(2, "x", true)]);
    node.peers(vec![peer(2)]);
    let later = now + Duration::from_secs(60);
    assert!(matches!(sent(&drain(&mut node, later))[..], [Down::Welcome { .. }]));
    assert_eq!(node.deadline(), None);
    node.hold(false);
    let outputs = drain(&mut node, later);
    let [Output::Send { frame, .. }, Output::Build { fold, .. }] = &outputs[..] else {
        panic!("{outputs:?}")
    };
    assert_eq!(*frame, Down::Peers { peers: vec![peer(2)] });
    let (routes, lists) = fold.routes();
    assert_eq!((routes.len(), &lists[routes[0].list as usize]), (1, &vec![NodeId([2; 16])]));
    assert_eq!(fold.head.nodes_folded, 1);
}

#[test]
fn changes_of_other_nodes_are_sent_at_once_also_while_a_snapshot_is_built() {
    let (mut node, now) = (node(), Instant::now());
    node.frame(now, A, hello(5));
    node.remote_routes(now, vec![wants(2, "x", true)]);
    let outputs = drain(&mut node, now);
    assert!(matches!(outputs[..], [Output::Send { .. }, Output::Build { .. }]), "{outputs:?}");
    let change = wants(2, "x", false);
    node.remote_routes(now, vec![change.clone(), change.clone()]);
    let routes = Down::Routes { first_seq: 2, changes: vec![change] };
    assert_eq!(drain(&mut node, now), [Output::Send { link: A, frame: routes }]);
    node.remote_reset(now, NodeId([2; 16]));
    let unroute = Down::Unroute { seq: 3, node: NodeId([2; 16]) };
    assert_eq!(sent(&drain(&mut node, now)), [&unroute]);
    node.peers(vec![]);
    node.peers(vec![]);
    assert_eq!(sent(&drain(&mut node, now)), [&Down::Peers { peers: vec![] }]);
}

#[test]
fn changes_wait_for_room_in_the_link_and_other_frames_do_not() {
    let (mut node, now) = (node(), Instant::now());
    serve(&mut node, now);
    drain(&mut node, now);
    node.link_room(ROOM_KEPT);
    node.remote_routes(now, vec![wants(2, "x", true)]);
    assert!(node.revoke(RealmId(1), Match::Exact, "p"));
    let revoke = Down::Revoke { realm: RealmId(1), policy: Match::Exact, uri: "p".into() };
    assert_eq!(sent(&drain(&mut node, now)), [&revoke]);
    assert_eq!(node.deadline(), Some(now + ROOM_RETRY));
    node.link_room(ROOM_KEPT + 1);
    assert!(matches!(sent(&drain(&mut node, now + ROOM_RETRY))[..], [Down::Routes { first_seq: 1, .. }]));
}

#[test]
fn a_data_plane_that_comes_back_gets_everything_with_its_first_snapshot() {
    let (mut node, now) = (node(), Instant::now());
    serve(&mut node, now);
    node.peers(vec![peer(2)]);
    drain(&mut node, now);
    node.closed(now, A);
    assert!(!node.revoke(RealmId(1), Match::Exact, "p"));
    node.remote_routes(now, vec![wants(2, "x", true)]);
    assert_eq!(drain(&mut node, now), []);
    node.frame(now, B, hello(5));
    let outputs = drain(&mut node, now);
    let [Down::Welcome { .. }, Down::Peers { .. }] = sent(&outputs)[..] else { panic!("{outputs:?}") };
    let Some(Output::Build { fold, .. }) = outputs.last() else { panic!("{outputs:?}") };
    assert_eq!((fold.routes().0.len(), fold.head.nodes_folded), (1, 1));
}

#[test]
fn other_nodes_learn_which_routes_the_node_wants() {
    let (mut node, now) = (node(), Instant::now());
    let claims = |node: &mut Node, shard, first_seq, claims| {
        node.frame(now, A, Up::Claims { shard: ShardId(shard), first_seq, claims });
        node.take_local()
    };
    let unrouted = |uri: &str| {
        let realm = RealmId::of("realm1");
        Claim::Unrouted { realm, kind: RouteKind::Topic, policy: Match::Exact, uri: uri.into() }
    };
    let local = |uri: &str, wanted| {
        let realm = RealmId::of("realm1");
        LocalChange::Route {
            realm,
            kind: RouteKind::Topic,
            policy: Match::Exact,
            uri: uri.into(),
            wanted,
            share: None,
        }
    };
    node.frame(now, A, hello(5));
    assert_eq!(claims(&mut node, 0, 1, vec![routed("x")]), [], "nobody watches");
    node.watch_local();
    let linked = LocalChange::Linked { epoch: BootEpoch(5), known: false };
    assert_eq!(node.take_local(), [linked, local("x", true)]);
    assert_eq!(claims(&mut node, 1, 1, vec![routed("x"), routed("y")]), [local("y", true)]);
    assert_eq!(claims(&mut node, 0, 2, vec![unrouted("x")]), [], "the other shard wants it still");
    assert_eq!(claims(&mut node, 1, 3, vec![unrouted("x")]), [local("x", false)]);
    node.frame(now, A, Up::ClaimsReset { shard: ShardId(1) });
    node.frame(now, A, Up::ClaimsEnd { shard: ShardId(1), seq: 9 });
    assert_eq!(node.take_local(), [local("y", false)], "a whole set without it");
    node.closed(now, A);
    node.frame(now, B, hello(6));
    let linked = LocalChange::Linked { epoch: BootEpoch(6), known: false };
    assert_eq!(node.take_local(), [LocalChange::Lost, linked]);
}
