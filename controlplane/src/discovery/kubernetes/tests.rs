//! Against an API server made here, with TLS and a certificate of a test authority.

use super::*;
use std::path::Path;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

const LIST: &str = r#"{"kind": "EndpointSliceList", "items": [
    {"addressType": "IPv4", "endpoints": [
        {"addresses": ["10.1.0.1"], "conditions": {"ready": true}},
        {"addresses": ["10.1.0.2"], "conditions": {"ready": false}}], "ports": null},
    {"addressType": "IPv6", "endpoints": [{"addresses": ["fd00::1"]}]},
    {"addressType": "FQDN", "endpoints": [{"addresses": ["node.example.test"]}]},
    {"addressType": "IPv4", "endpoints": null}]}"#;

fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/kubernetes").join(name)
}

/// An API that answers each request with `answer`, and keeps the heads of requests.
async fn serve(answer: Vec<u8>, folder: &Path) -> (Api, tokio::sync::mpsc::Receiver<String>) {
    let certificates = CertificateDer::pem_file_iter(testdata("server.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(testdata("server.key")).unwrap();
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(certificates.map(Result::unwrap).collect(), key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (heads, received) = tokio::sync::mpsc::channel(8);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let (mut head, mut buffer) = (vec![], [0; 4_096]);
            while !head.windows(4).any(|end| end == b"\r\n\r\n") {
                let Ok(bytes @ 1..) = stream.read(&mut buffer).await else { break };
                head.extend_from_slice(&buffer[..bytes]);
            }
            let _ = heads.send(String::from_utf8_lossy(&head).into_owned()).await;
            let _ = stream.write_all(&answer).await;
            let _ = stream.shutdown().await;
        }
    });
    let token = folder.join("token");
    std::fs::write(&token, "the-token\n").unwrap();
    let api = Api {
        host: "127.0.0.1".into(),
        port,
        token,
        authorities: testdata("ca.pem"),
        namespace: "space".into(),
        service: "signalbox".into(),
        node_port: 18_083,
    };
    (api, received)
}

fn answer(status: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

async fn look(answer: Vec<u8>) -> Result<Vec<SocketAddr>, ApiError> {
    let folder = tempfile::tempdir().unwrap();
    let (api, _heads) = serve(answer, folder.path()).await;
    api.look().await
}

#[tokio::test]
async fn endpoints_are_nodes_whether_they_are_ready_or_not() {
    let folder = tempfile::tempdir().unwrap();
    let (api, mut heads) = serve(answer("200 OK", LIST), folder.path()).await;
    let found = api.look().await.unwrap();
    let expected = ["10.1.0.1:18083", "10.1.0.2:18083", "[fd00::1]:18083"];
    assert_eq!(found, expected.map(|text| text.parse::<SocketAddr>().unwrap()));
    let head = heads.recv().await.unwrap().to_lowercase();
    let path = "get /apis/discovery.k8s.io/v1/namespaces/space/endpointslices?labelselector=kubernetes.io%2fservice-name%3dsignalbox&";
    assert!(head.starts_with(path), "{head}");
    assert!(head.contains("\r\nauthorization: bearer the-token\r\n"), "{head}");
}

#[tokio::test]
async fn what_is_wrong_is_told_with_what_to_do() {
    for (status, part) in [
        ("401 Unauthorized", "does not accept the token"),
        ("403 Forbidden", "give it a Role with the verb list"),
        ("404 Not Found", "came with Kubernetes 1.21"),
        ("500 Internal Server Error", "answers 500"),
    ] {
        let error = look(answer(status, "{}")).await.unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    let empty = look(answer("200 OK", r#"{"items": []}"#)).await.unwrap_err().to_string();
    assert!(empty.contains("space/signalbox has no endpoints"), "{empty}");
    assert!(matches!(look(answer("200 OK", "[1]")).await, Err(ApiError::Content(_))));
    assert!(matches!(look(b"SSH-2.0-x\r\n".to_vec()).await, Err(ApiError::Http(_))));
}

#[tokio::test]
async fn long_and_broken_answers_are_refused() {
    let long = format!("{{\"items\": [], \"x\": \"{}\"}}", "y".repeat(ANSWER_BYTES_MAX));
    assert!(matches!(look(answer("200 OK", &long)).await, Err(ApiError::Body)));
    let broken = b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{".to_vec();
    assert!(matches!(look(broken).await, Err(ApiError::Body)));
}

#[tokio::test]
async fn an_api_of_another_authority_is_not_believed() {
    let folder = tempfile::tempdir().unwrap();
    let (api, mut heads) = serve(answer("200 OK", LIST), folder.path()).await;
    // A certificate that vouches for nobody.
    let other = Api { authorities: testdata("server.pem"), ..api.clone() };
    let error = other.look().await.unwrap_err();
    assert!(matches!(error, ApiError::Connect { .. } | ApiError::Authority { .. }), "{error}");
    let error = Api { authorities: folder.path().join("token"), ..api.clone() }.look().await.unwrap_err();
    assert!(error.to_string().contains("has no certificate of an authority"), "{error}");
    let error = Api { token: folder.path().join("gone"), ..api }.look().await.unwrap_err();
    assert!(error.to_string().contains("is a service account mounted?"), "{error}");
    assert!(heads.try_recv().is_err(), "the token was shown to nobody");
}
