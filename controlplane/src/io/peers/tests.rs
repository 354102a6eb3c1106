//! Links over real sockets on loopback.

use super::*;
use crate::peers::{FRAME_BYTES_MAX, QUEUE_BYTES_MAX};
use crate::swim::{Member, PROTOCOL, identity::Identity};
use common::keys::ClusterKeys;
use common::noise::{Purpose, Terms};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

struct Host {
    id: u8,
    epoch: u64,
    address: SocketAddr,
    peers: Peers,
    events: mpsc::Receiver<PeerEvent>,
    members: watch::Sender<Members>,
    swim: mpsc::Receiver<SwimPacket>,
}

fn node(id: u8) -> NodeId {
    NodeId([id; 16])
}

async fn host(id: u8, epoch: u64, key: u8) -> Host {
    let keys = ClusterKeys::parse(&format!("{key:02x}").repeat(32)).unwrap();
    let terms = Terms { keys, env: "test".into(), purpose: Purpose::Control };
    let version = "1".to_owned();
    let hello = Hello { protocol: PROTOCOL, node: node(id), epoch, store_epoch: 3, attempt: 0, version };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (members, members_seen) = watch::channel(Members::default());
    let (swim_sender, swim) = mpsc::channel(4);
    let (peers, events) = start(listener, LinkConfig { terms, hello }, members_seen, swim_sender);
    Host { id, epoch, address, peers, events, members, swim }
}

impl Host {
    /// Its membership says that these, and only these, live.
    fn sees(&self, others: &[&Host]) {
        let member = |host: &&Host| {
            let node = Uuid::from_bytes([host.id; 16]);
            let identity = Identity { node, epoch: host.epoch, ..Identity::unknown_at(host.address) };
            Member { identity, state: crate::swim::State::Alive, since: Instant::now() }
        };
        let members = others.iter().map(member).collect();
        let view = View { members, left: false, epoch: self.epoch };
        self.members.send_replace(Arc::new(view));
    }

    async fn event(&mut self) -> PeerEvent {
        timeout(PATIENCE, self.events.recv()).await.expect("an event in time").expect("links go on")
    }

    async fn up(&mut self, id: u8) {
        let event = self.event().await;
        assert!(matches!(&event, PeerEvent::Up { node: up, .. } if *up == node(id)), "{event:?}");
    }

    async fn down(&mut self, id: u8) -> DownReason {
        match self.event().await {
            PeerEvent::Down { node: down, reason } if down == node(id) => reason,
            event => panic!("{event:?}"),
        }
    }

    fn refused(&self, reason: Refusal) -> u64 {
        self.peers.counts().refused[reason as usize].load(Relaxed)
    }
}

async fn pair() -> (Host, Host) {
    let (mut a, mut b) = (host(1, 1, 1).await, host(2, 1, 1).await);
    a.sees(&[&b]);
    b.sees(&[&a]);
    a.up(2).await;
    b.up(1).await;
    (a, b)
}

async fn eventually(what: &str, done: impl Fn() -> bool) {
    let waited = timeout(PATIENCE, async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("never: {what}"));
}

#[tokio::test]
async fn two_nodes_link_and_frames_pass_both_ways_in_order() {
    let (mut a, mut b) = pair().await;
    assert_eq!(a.peers.members().iter().map(|live| live.node).collect::<Vec<_>>(), [node(2)]);
    assert!(a.peers.is_up(node(2)) && !a.peers.is_up(node(3)));
    let long = Bytes::from(vec![7; FRAME_BYTES_MAX]);
    for body in [long.clone(), Bytes::from_static(b"short"), Bytes::new()] {
        assert!(a.peers.send(node(2), Channel::Claims, body.clone()));
        let event = b.event().await;
        assert_eq!(event, PeerEvent::Frame { node: node(1), channel: Channel::Claims, body });
    }
    assert!(b.peers.send(node(1), Channel::Floor, Bytes::from_static(b"x")));
    assert!(matches!(a.event().await, PeerEvent::Frame { channel: Channel::Floor, .. }));
    eventually("the round trip is known", || a.peers.rtt(node(2)).is_some()).await;
    let counts = &a.peers.counts().channels[Channel::Claims.index()];
    assert_eq!(counts.frames_out.load(Relaxed), 3);
    assert_eq!(counts.bytes_out.load(Relaxed), FRAME_BYTES_MAX as u64 + 5);
    assert!(!a.peers.send(node(9), Channel::Claims, Bytes::new()), "it is not linked");
}

#[tokio::test]
async fn membership_packets_go_to_membership() {
    let (a, mut b) = pair().await;
    assert!(a.peers.send(node(2), Channel::Swim, Bytes::from_static(b"ping")));
    let packet = timeout(PATIENCE, b.swim.recv()).await.unwrap().unwrap();
    assert_eq!((packet.node, &packet.packet[..]), (node(1), &b"ping"[..]));
}

#[tokio::test]
async fn a_link_goes_with_its_member_and_comes_back_with_it() {
    let (mut a, mut b) = pair().await;
    a.sees(&[]);
    assert_eq!(a.down(2).await, DownReason::Gone);
    // Bytes that were not read may make it a reset.
    let reason = b.down(1).await;
    assert!(matches!(reason, DownReason::Closed | DownReason::Failed), "{reason:?}");
    assert!(!a.peers.is_up(node(2)));
    a.sees(&[&b]);
    a.up(2).await;
    b.up(1).await;
    a.peers.close(node(2));
    assert_eq!(a.down(2).await, DownReason::Asked);
    a.up(2).await;
}

#[tokio::test]
async fn a_node_that_was_started_again_is_linked_again() {
    let (mut a, b) = pair().await;
    drop(b);
    let mut again = host(2, 2, 1).await;
    again.sees(&[&a]);
    a.sees(&[&again]);
    let reason = a.down(2).await;
    assert!(matches!(reason, DownReason::Renewed | DownReason::Closed | DownReason::Failed), "{reason:?}");
    a.up(2).await;
    again.up(1).await;
}

#[tokio::test]
async fn a_node_links_by_the_life_that_others_know_of_it() {
    let (mut a, mut b) = (host(1, 1, 1).await, host(2, 1, 1).await);
    // An old copy of its disk was put back: others know a later life, above which membership has lifted it.
    b.epoch = 7;
    a.sees(&[&b]);
    eventually("its first life is refused", || a.refused(Refusal::Stale) > 0).await;
    b.sees(&[&a]);
    a.up(2).await;
    b.up(1).await;
}

#[tokio::test]
async fn another_key_is_refused_and_counted_on_both_sides() {
    let (a, b) = (host(1, 1, 1).await, host(2, 1, 9).await);
    a.sees(&[&b]);
    b.sees(&[&a]);
    eventually("both have counted it", || {
        let told = a.peers.counts().refused_by_peers[Refusal::Key as usize].load(Relaxed);
        told > 0 && b.refused(Refusal::Key) > 0
    })
    .await;
    assert!(!a.peers.is_up(node(2)) && !b.peers.is_up(node(1)));
}

#[tokio::test]
async fn strangers_are_refused_and_told_nothing() {
    let a = host(1, 1, 1).await;
    let mut stream = TcpStream::connect(a.address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = vec![];
    let end = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap();
    // Bytes that were not read may make it a reset.
    assert!(answer.is_empty() && end.unwrap_or_default() == 0);
    eventually("it is counted", || a.refused(Refusal::Foreign) == 1).await;
}

#[tokio::test]
async fn handshakes_of_one_host_are_bounded() {
    let mut a = host(1, 1, 1).await;
    let mut idle = vec![];
    for _ in 0..HANDSHAKES_OF_HOST_MAX + 3 {
        idle.push(TcpStream::connect(a.address).await.unwrap());
    }
    eventually("some are refused", || a.refused(Refusal::Full) > 0).await;
    drop(idle);
    let mut b = host(2, 1, 1).await;
    a.sees(&[&b]);
    b.sees(&[&a]);
    a.up(2).await;
    b.up(1).await;
}

#[tokio::test]
async fn a_peer_that_takes_nothing_costs_a_bounded_queue() {
    let (a, mut b) = pair().await;
    let body = Bytes::from(vec![1; FRAME_BYTES_MAX / 4]);
    let mut queued = 0u64;
    // What is queued, what the sockets hold, and what waits for its taker is bounded, so this ends.
    while a.peers.counts().channels[Channel::Exchange.index()].full_out.load(Relaxed) < 20 {
        if a.peers.send(node(2), Channel::Exchange, body.clone()) {
            queued += 1;
        } else {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let links = a.peers.links();
        assert!(links[0].queued_bytes <= QUEUE_BYTES_MAX);
        assert!(queued < 4_096, "it never fills");
    }
    for _ in 0..queued {
        assert!(matches!(b.event().await, PeerEvent::Frame { .. }));
    }
    assert!(a.peers.send(node(2), Channel::Exchange, body));
}

const PATIENCE: Duration = Duration::from_secs(20);
