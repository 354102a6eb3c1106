//! TLS around a link, with certificates on both sides. A machine: bytes in, bytes out.
//!
//! TLS 1.3 only. Either end accepts any certificate that comes from one of the authorities of the configuration, whatever
//! name it is for: which node the other end is, the handshake inside says, and that one is bound to this channel (exported
//! keying material, RFC 8446, 7.5), so a certificate alone makes nobody a node and a key of the cluster alone neither.
//! rustls draws its own random numbers and looks at the wall clock for the validity of certificates.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConnection, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ParsedCertificate, ServerConnection, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{
    ClientConfig, Connection, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme, version,
};
use std::io::{Read, Write};
use std::sync::Arc;

/// What TLS needs, at either end.
#[derive(Clone, Debug)]
pub struct TlsConfig {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

/// Why certificates or keys are refused.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("not a PEM file of {0}: {1}")]
    Pem(&'static str, rustls::pki_types::pem::Error),
    #[error("there are no certificates in the file")]
    NoCertificate,
    #[error("the certificate and the key do not fit together, or cannot be used")]
    Pair(#[source] rustls::Error),
    #[error("the authorities cannot be used")]
    Authorities(#[source] rustls::Error),
    #[error("the authorities cannot be used")]
    Verifier(#[from] VerifierBuilderError),
}

impl TlsConfig {
    /// From the contents of the three PEM files.
    ///
    /// # Errors
    /// They are not what they should be.
    pub fn new(certificate: &[u8], key: &[u8], authorities: &[u8]) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let chain = certificates(certificate)?;
        let key =
            PrivateKeyDer::from_pem_slice(key).map_err(|error| TlsError::Pem("a private key", error))?;
        let mut roots = RootCertStore::empty();
        for authority in certificates(authorities)? {
            roots.add(authority).map_err(TlsError::Authorities)?;
        }
        let roots = Arc::new(roots);
        let versions = &[&version::TLS13];
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build()?;
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)
            .map_err(TlsError::Pair)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(TlsError::Pair)?;
        // Connections last; there is nothing to resume.
        server.send_tls13_tickets = 0;
        server.alpn_protocols = vec![PROTOCOL.to_vec()];
        let verifier = AnyName { roots, provider: provider.clone() };
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .map_err(TlsError::Pair)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_auth_cert(chain, key)
            .map_err(TlsError::Pair)?;
        client.resumption = rustls::client::Resumption::disabled();
        client.enable_sni = false;
        client.alpn_protocols = vec![PROTOCOL.to_vec()];
        Ok(Self { client: Arc::new(client), server: Arc::new(server) })
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let all = all.map_err(|error| TlsError::Pem("certificates", error))?;
    if all.is_empty() { Err(TlsError::NoCertificate) } else { Ok(all) }
}

/// One end of one connection.
#[derive(Debug)]
pub(super) struct Tls(Connection);

impl Tls {
    /// The end that connected.
    ///
    /// # Errors
    /// rustls refuses its configuration.
    pub fn client(config: &TlsConfig) -> Result<Self, rustls::Error> {
        let name = ServerName::try_from("node").expect("a valid name, which nobody looks at");
        let connection = ClientConnection::new(config.client.clone(), name)?;
        Ok(Self::new(Connection::Client(connection)))
    }

    /// The end that was connected to.
    ///
    /// # Errors
    /// rustls refuses its configuration.
    pub fn server(config: &TlsConfig) -> Result<Self, rustls::Error> {
        Ok(Self::new(Connection::Server(ServerConnection::new(config.server.clone())?)))
    }

    fn new(mut connection: Connection) -> Self {
        // What is written is taken at once; the queue before it is bounded.
        connection.set_buffer_limit(None);
        Self(connection)
    }

    /// The certificates have not been checked yet.
    pub fn is_greeting(&self) -> bool {
        self.0.is_handshaking()
    }

    /// There is something to send that is not from the link's queue.
    pub fn wants_send(&self) -> bool {
        self.0.wants_write()
    }

    /// Takes all of `bytes` and appends what they say to `plain`.
    ///
    /// # Errors
    /// The other end is not who it must be, or what it sent was changed on the way.
    pub fn open(&mut self, mut bytes: &[u8], plain: &mut Vec<u8>) -> Result<(), rustls::Error> {
        let other = |error: std::io::Error| rustls::Error::General(error.to_string());
        while !bytes.is_empty() {
            self.0.read_tls(&mut bytes).map_err(other)?;
            let state = self.0.process_new_packets()?;
            let start = plain.len();
            plain.resize(start + state.plaintext_bytes_to_read(), 0);
            self.0.reader().read_exact(&mut plain[start..]).map_err(other)?;
            if state.peer_has_closed() {
                break;
            }
        }
        Ok(())
    }

    /// Takes more to send.
    pub fn write(&mut self, plain: &[u8]) {
        self.0.writer().write_all(plain).expect("there is no bound to what is written");
    }

    /// Everything that is to be sent now.
    pub fn take(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        while self.0.wants_write() {
            self.0.write_tls(&mut out).expect("a vector takes everything");
        }
        out
    }

    /// Names this channel at both of its ends and nowhere else; after the handshake.
    ///
    /// # Errors
    /// The handshake is not over.
    pub fn binding(&self) -> Result<[u8; 32], rustls::Error> {
        self.0.export_keying_material([0; 32], BINDING_LABEL, None)
    }
}

/// Accepts a server's certificate for any name.
#[derive(Debug)]
struct AnyName {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&certificate, &self.roots, intermediates, now, algorithms)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not offered".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// ALPN (RFC 7301): a server for something else with a certificate of the same authority does not answer to it.
const PROTOCOL: &[u8] = b"signalbox-relay";
const BINDING_LABEL: &[u8] = b"EXPORTER-signalbox-relay";
