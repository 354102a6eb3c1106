//! The control plane against a scripted data plane over a real socket, and its admin endpoint.

mod support;

use common::features::Feature;
use common::ids::{Match, RealmId, RouteKind, ShardId};
use common::link::{Claim, Down, LINK_PROTOCOL, Up};
use common::metrics::{COUNTERS, Counter, GAUGES};
use common::rules::{Bound, Rules};
use controlplane::boot::{Boot, BootError, run};
use controlplane::io::child::Stop;
use serde_json::json;
use support::{Checked, Control, DataPlane, config, eventually, http};
use tokio::sync::watch;

fn routed(uri: &str) -> Claim {
    Claim::Routed {
        realm: RealmId::of("realm1"),
        kind: RouteKind::Topic,
        policy: Match::Exact,
        uri: uri.into(),
    }
}

fn shards(snapshot: &Checked, uri: &str) -> Vec<u8> {
    let route = snapshot.exact(RealmId::of("realm1"), RouteKind::Topic, uri);
    route.map(|route| route.shards.iter().map(|shard| shard.0).collect()).unwrap_or_default()
}

fn names(snapshot: &Checked) -> Vec<String> {
    let mut names: Vec<_> = snapshot.realms().map(|realm| realm.name.to_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_data_plane_gets_the_realms_and_the_node_is_ready() {
    let dir = tempfile::tempdir().unwrap();
    let control = Control::start(config(dir.path()), None);
    assert_eq!(control.http("GET", "/ping", ""), (200, "pong".into()));
    assert_eq!(control.http("GET", "/ready", ""), (503, "no data plane is linked\n".into()));
    let (data, snapshot) = DataPlane::serve(dir.path(), 5);
    assert_eq!((names(&snapshot), snapshot.epoch().0), (vec!["realm1".to_owned()], 5));
    eventually("ready", || (control.http("GET", "/ready", "").0 == 200).then_some(()));
    let status = control.status();
    assert_eq!(status["data_plane"]["listeners"][0]["address"], "127.0.0.1:1");
    assert_eq!(status["snapshot"]["taken"], snapshot.version().0);
    drop(data);
    eventually("not ready", || (control.http("GET", "/ready", "").0 == 503).then_some(()));
    control.stop().unwrap();
}

#[test]
fn claims_of_both_shards_come_back_as_routes() {
    let dir = tempfile::tempdir().unwrap();
    let control = Control::start(config(dir.path()), None);
    let (data, _) = DataPlane::serve(dir.path(), 5);
    let joined = Claim::Joined { session: 1, realm: RealmId::of("realm1") };
    data.send(&Up::Claims {
        shard: ShardId(0),
        first_seq: 1,
        claims: vec![joined, routed("a"), routed("b")],
    });
    let snapshot = data.snapshot();
    data.taken(snapshot.version());
    assert_eq!(
        (shards(&snapshot, "a"), snapshot.claims_folded(0), snapshot.claims_folded(1)),
        (vec![0], 3, 0)
    );
    data.send(&Up::ClaimsReset { shard: ShardId(1) });
    data.send(&Up::ClaimsPart { shard: ShardId(1), claims: vec![routed("a")] });
    data.send(&Up::ClaimsEnd { shard: ShardId(1), seq: 9 });
    let snapshot = data.snapshot();
    assert_eq!((shards(&snapshot, "a"), shards(&snapshot, "b")), (vec![0, 1], vec![0]));
    assert_eq!(snapshot.claims_folded(1), 9);
    let status = control.status();
    assert_eq!((&status["sessions"], &status["routes"]), (&1.into(), &2.into()));
    assert_eq!(status["realms"][0]["sessions"], 1);
}

#[test]
fn a_control_plane_that_returns_learns_the_claims_again() {
    let dir = tempfile::tempdir().unwrap();
    let control = Control::start(config(dir.path()), None);
    let (data, before) = DataPlane::serve(dir.path(), 5);
    control.stop().unwrap();
    assert_eq!(data.recv(), None, "the link ends, nobody is told to drain");
    let control = Control::start(config(dir.path()), None);
    let (data, first) = DataPlane::serve(dir.path(), 5);
    assert!(first.version() > before.version());
    assert_eq!((first.routes_len(), first.claims_folded(0)), (0, 0));
    for shard in [ShardId(0), ShardId(1)] {
        data.send(&Up::ClaimsReset { shard });
        data.send(&Up::ClaimsPart { shard, claims: vec![routed("a")] });
        data.send(&Up::Claims { shard, first_seq: 41, claims: vec![routed("b")] });
        data.send(&Up::ClaimsEnd { shard, seq: 41 });
    }
    let mut last = first.version();
    let snapshot = loop {
        let snapshot = data.snapshot();
        data.taken(snapshot.version());
        assert!(snapshot.version() > last);
        last = snapshot.version();
        if snapshot.claims_folded(0) == 41 && snapshot.claims_folded(1) == 41 {
            break snapshot;
        }
    };
    assert_eq!((shards(&snapshot, "a"), shards(&snapshot, "b")), (vec![0, 1], vec![0, 1]));
    // The link breaks, the control plane stays: the claims are there at once.
    drop(data);
    let (_data, again) = DataPlane::serve(dir.path(), 5);
    assert_eq!((shards(&again, "a"), again.claims_folded(1)), (vec![0, 1], 41));
    // Another process: they are gone.
    drop(_data);
    let (_data, other) = DataPlane::serve(dir.path(), 6);
    assert_eq!((other.routes_len(), other.claims_folded(1)), (0, 0));
    control.stop().unwrap();
}

#[test]
fn a_second_data_plane_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let control = Control::start(config(dir.path()), None);
    let (first, _) = DataPlane::serve(dir.path(), 5);
    let second = DataPlane::connect(dir.path());
    second.hello(6);
    let Some(Down::Refuse { reason }) = second.recv() else { panic!("not refused") };
    assert!(reason.contains("linked already"), "{reason}");
    assert_eq!(second.recv(), None);
    first.send(&Up::Claims { shard: ShardId(0), first_seq: 1, claims: vec![routed("a"), routed("b")] });
    assert_eq!(shards(&first.snapshot(), "a"), [0]);
    drop(control);
}

#[test]
fn nonsense_on_the_link_ends_it_and_harms_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let control = Control::start(config(dir.path()), None);
    let other = Up::Hello {
        protocol: LINK_PROTOCOL + 1,
        epoch: common::ids::BootEpoch(1),
        pid: 1,
        shards: 1,
        version: String::new(),
    };
    let speaker = DataPlane::connect(dir.path());
    speaker.send(&other);
    assert!(matches!(speaker.recv(), Some(Down::Refuse { .. })));
    let packets = [b"nonsense".to_vec(), vec![0xff; 65_536], vec![0; 80_000], Up::Draining.encode(), vec![1]];
    for packet in packets {
        let speaker = DataPlane::connect(dir.path());
        speaker.send_bytes(&packet);
        assert_eq!(speaker.recv(), None, "{} bytes", packet.len());
    }
    let (data, _) = DataPlane::serve(dir.path(), 5);
    data.send_bytes(b"nonsense");
    assert_eq!(data.recv(), None);
    let (_data, _) = DataPlane::serve(dir.path(), 5);
    eventually("ready", || (control.status()["ready"] == true).then_some(()));
}

#[test]
fn a_realm_put_is_answered_when_all_shards_use_it_and_outlives_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let control = Control::start(config(dir.path()), None);
    let (status, answer) = control.json("PUT", "/realms/early", "");
    assert_eq!((status, &answer["stored"], &answer["in_force"]), (200, &true.into(), &false.into()));
    let (data, first) = DataPlane::serve(dir.path(), 5);
    assert_eq!(names(&first), ["early", "realm1"]);
    std::thread::scope(|scope| {
        let body = r#"{"degree":"strict","anonymous":"anybody"}"#;
        let put = scope.spawn(|| control.json("PUT", "/realms/a.b", body));
        let Some(Down::Delta(delta)) = data.recv() else { panic!("no delta") };
        assert_eq!(delta.follows, first.version());
        let realm = &delta.realms_put[0];
        assert_eq!((realm.name.as_str(), realm.strict, realm.uri_strict), ("a.b", true, false));
        assert!(!put.is_finished(), "nothing was taken yet");
        data.taken(delta.version);
        let (status, answer) = put.join().unwrap();
        assert_eq!((status, &answer["in_force"]), (200, &true.into()), "{answer}");
        let remove = scope.spawn(|| control.json("DELETE", "/realms/early", ""));
        let removed = loop {
            // The put may be folded into a full snapshot first.
            match data.recv().unwrap() {
                Down::Delta(delta) => break delta,
                Down::Snapshot { version, .. } => data.taken(version),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(removed.realms_removed, [RealmId::of("early")]);
        data.taken(removed.version);
        assert_eq!(remove.join().unwrap().1["in_force"], true);
    });
    control.stop().unwrap();
    let control = Control::start(config(dir.path()), None);
    let (_data, snapshot) = DataPlane::serve(dir.path(), 6);
    assert_eq!(names(&snapshot), ["a.b", "realm1"]);
    let (_, list) = control.json("GET", "/realms", "");
    assert_eq!(list["realms"][0]["origin"], "store");
    assert_eq!(list["realms"][1]["origin"], "config");
}

#[test]
fn the_rules_of_a_realm_reach_the_shards_and_outlive_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let control = Control::start(config(dir.path()), None);
    let role = json!({"name": "guest", "features_off": ["call_timeout"], "payload_max": 64});
    let rules = json!({"features_off": ["session_meta_api"], "uri_max": 99, "roles": [role]});
    assert_eq!(control.json("PUT", "/realms/a.b", &rules.to_string()).0, 200);
    let refused = control.http("PUT", "/realms/a.b", r#"{"features_off": ["session_meta"]}"#);
    assert_eq!(refused.0, 400);
    assert!(refused.1.contains("session_meta") && refused.1.contains("session_meta_api"), "{}", refused.1);
    let held = |control: &Control, epoch: u64| {
        let (_data, snapshot) = DataPlane::serve(dir.path(), epoch);
        let realm = snapshot.realm(RealmId::of("a.b")).expect("the realm");
        let rules = Rules::unpack(realm.rules).expect("its rules");
        (rules, control.json("GET", "/realms", "").1["realms"][0].clone())
    };
    let (first, listed) = held(&control, 5);
    assert!(first.off.has(Feature::SessionMetaApi));
    assert_eq!((first.bounds.get(Bound::Uri), first.roles()[0].bounds.get(Bound::Payload)), (99, 64));
    for key in ["features_off", "uri_max", "roles"] {
        assert_eq!(listed[key], rules[key], "as it was put");
    }
    control.stop().unwrap();
    let control = Control::start(config(dir.path()), None);
    assert_eq!(held(&control, 6).0, first);
    // A put says all of it.
    assert_eq!(control.json("PUT", "/realms/a.b", "").0, 200);
    let listed = control.json("GET", "/realms", "").1;
    assert_eq!(
        (&listed["realms"][0]["features_off"], &listed["realms"][0]["roles"]),
        (&json!([]), &json!([]))
    );
}

#[test]
fn a_realm_that_cannot_be_is_refused_with_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.limits.realms_max = 2;
    let control = Control::start(config, None);
    assert_eq!(control.http("PUT", "/realms/one", "").0, 200);
    let refused = [
        ("PUT", "/realms/two", "", 409, "realms_max"),
        ("PUT", "/realms/realm1", "", 409, "configuration file"),
        ("DELETE", "/realms/realm1", "", 409, "configuration file"),
        ("DELETE", "/realms/none", "", 404, "no realm"),
        ("PUT", "/realms/a%20b", "", 400, "not a valid realm name"),
        ("PUT", "/realms/wamp.x", "", 400, "reserved"),
        ("PUT", "/realms/one", "{", 400, "the body"),
        ("PUT", "/realms/one", r#"{"degree":"lax"}"#, 400, "lax"),
        ("GET", "/nothing", "", 404, "no such page"),
    ];
    for (method, path, body, status, reason) in refused {
        let (found, answer) = control.json(method, path, body);
        assert_eq!(found, status, "{method} {path}: {answer}");
        assert!(answer["error"].as_str().unwrap().contains(reason), "{answer}");
    }
    let long = "x".repeat(70_000);
    assert_eq!(control.http("PUT", "/realms/one", &long).0, 413);
}

#[test]
fn web_pages_and_bad_requests_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let control = Control::start(config(dir.path()), None);
    let request = |head: &str| format!("PUT /realms/x HTTP/1.1\r\n{head}Connection: close\r\n\r\n");
    let rebound = http(&control.admin, &request("Host: evil.example\r\n"));
    assert_eq!(rebound.0, 403, "{rebound:?}");
    assert_eq!(http(&control.admin, &request("Host: localhost\r\nOrigin: http://evil.example\r\n")).0, 403);
    assert_eq!(http(&control.admin, "\x16\x03\x01 nonsense\r\n\r\n").0, 400);
    let many = (0..100).map(|n| format!("X-{n}: y\r\n")).collect::<String>();
    assert_eq!(http(&control.admin, &format!("GET /ping HTTP/1.1\r\nHost: localhost\r\n{many}\r\n")).0, 431);
    assert_eq!(control.status()["realms_total"], 1);
}

#[test]
fn a_damaged_record_is_reported_and_not_served() {
    let dir = tempfile::tempdir().unwrap();
    let control = Control::start(config(dir.path()), None);
    assert_eq!(control.http("PUT", "/realms/kept", "").0, 200);
    assert_eq!(control.http("PUT", "/realms/unlucky.name", "").0, 200);
    control.stop().unwrap();
    let file = dir.path().join("store/data.mdb");
    let mut bytes = std::fs::read(&file).unwrap();
    let name = b"unlucky.name";
    let places: Vec<_> =
        (0..bytes.len() - name.len()).filter(|at| &bytes[*at..at + name.len()] == name).collect();
    assert!(!places.is_empty());
    places.into_iter().for_each(|at| bytes[at] ^= 1);
    std::fs::write(&file, bytes).unwrap();
    let control = Control::start(config(dir.path()), None);
    let (_data, snapshot) = DataPlane::serve(dir.path(), 5);
    assert_eq!(names(&snapshot), ["kept", "realm1"]);
    assert_eq!(control.status()["store"]["corrupt_records"], 1);
    assert!(control.http("GET", "/metrics", "").1.contains("\nsignalbox_store_corrupt_records_total 1\n"));
}

#[test]
fn one_folder_has_one_control_plane() {
    let dir = tempfile::tempdir().unwrap();
    let control = Control::start(config(dir.path()), None);
    let (_stop, stop) = watch::channel(Stop::No);
    let second = run(Boot { config: config(dir.path()), data: None, stop });
    assert!(matches!(second, Err(BootError::Taken(_))), "{second:?}");
    assert_eq!(control.http("GET", "/ping", "").0, 200, "the first is not disturbed");
}

#[test]
fn measurements_of_shards_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let control = Control::start(config(dir.path()), None);
    let (data, _) = DataPlane::serve(dir.path(), 5);
    let mut counters = vec![0; COUNTERS];
    counters[Counter::Publishes as usize] = 77;
    data.send(&Up::Stats { shard: ShardId(1), cpu: 3, counters, gauges: vec![0; GAUGES] });
    let line = "\nsignalbox_publishes_total{shard=\"1\",cpu=\"3\"} 77\n";
    eventually("the counter", || control.http("GET", "/metrics", "").1.contains(line).then_some(()));
    let (_, text) = control.http("GET", "/metrics", "");
    assert!(text.contains("\nsignalbox_link_up 1\n"));
    assert!(text.contains("signalbox_process_memory_bytes{plane=\"control\"} "));
    let heads: Vec<_> = text.lines().filter(|line| line.starts_with("# TYPE")).collect();
    let mut once = heads.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(heads.len(), once.len(), "each metric has one head");
}
