//! The certificates that nodes show each other: read, checked at the start as another node will
//! check them, and explained when they do not do.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, ClientConnection, Error, RootCertStore, ServerConfig,
    ServerConnection,
};
use spillway_net::ids::NodeId;
use spillway_runtime::error::RuntimeError;
use spillway_runtime::file;

use super::tls::TlsLink;
use crate::config::ClusterTls;

/// Why `cluster.tls` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{0}")]
    Read(#[from] RuntimeError),
    /// A file does not hold what it should.
    #[error("{path}: no {what} in PEM form here: correct cluster.tls")]
    Pem {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },
    /// The other nodes would not accept the certificate.
    #[error("{path}: {text}")]
    Certificate {
        /// The certificate's file.
        path: PathBuf,
        /// Why, and what to do.
        text: String,
    },
}

/// What a node shows to others, and what it wants to see.
#[derive(Clone, Debug)]
pub struct PeerTls {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

/// Who checks certificates, in both directions.
struct Verifiers {
    of_servers: Arc<WebPkiServerVerifier>,
    of_clients: Arc<dyn ClientCertVerifier>,
}

impl Verifiers {
    fn new(roots: RootCertStore, provider: &Arc<CryptoProvider>) -> Result<Self, Error> {
        let roots = Arc::new(roots);
        let explain =
            |error: rustls::server::VerifierBuilderError| Error::General(error.to_string());
        let servers =
            WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(provider));
        let clients = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(provider));
        Ok(Self {
            of_servers: servers.build().map_err(explain)?,
            of_clients: clients.build().map_err(explain)?,
        })
    }

    /// Whether other nodes will take this chain for node `own`, whoever connects.
    fn check(&self, chain: &[CertificateDer<'_>], own: NodeId) -> Result<(), Error> {
        let (end, between) = chain.split_first().ok_or(Error::NoCertificatesPresented)?;
        let now = UnixTime::now();
        self.of_servers.verify_server_cert(end, between, &name_of(own), &[], now)?;
        self.of_clients.verify_client_cert(end, between, now)?;
        Ok(())
    }
}

impl PeerTls {
    /// Reads the files and checks that the certificate is what other nodes will want to see of
    /// node `own`.
    ///
    /// # Errors
    /// If it is not.
    pub fn load(files: &ClusterTls, own: NodeId) -> Result<Self, TlsError> {
        let pem = |path: &Path, what| TlsError::Pem { path: path.to_owned(), what };
        let mut roots = RootCertStore::empty();
        for authority in certificates(&files.ca)? {
            roots.add(authority).map_err(|_| pem(&files.ca, "certificate of an authority"))?;
        }
        let chain = certificates(&files.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&file::read(&files.key)?)
            .map_err(|_| pem(&files.key, "private key"))?;
        Self::new(roots, chain, key, own).map_err(|error| TlsError::Certificate {
            path: files.certificate.clone(),
            text: describe(&error, Some(own)),
        })
    }

    fn new(
        roots: RootCertStore,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        own: NodeId,
    ) -> Result<Self, Error> {
        let provider = Arc::new(default_provider());
        let verifiers = Verifiers::new(roots, &provider)?;
        verifiers.check(&chain, own)?;
        let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])?
            .with_webpki_verifier(verifiers.of_servers)
            .with_client_auth_cert(chain.clone(), key.clone_key())?;
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(verifiers.of_clients)
            .with_single_cert(chain, key)?;
        // Links live long: nothing is gained by resuming them.
        client.resumption = Resumption::disabled();
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        Ok(Self { client: Arc::new(client), server: Arc::new(server) })
    }

    /// The side that connects, to reach `node`.
    pub(super) fn connect(&self, node: NodeId) -> TlsLink {
        let made = ClientConnection::new(Arc::clone(&self.client), name_of(node));
        TlsLink::new(made.expect("the configuration was checked").into())
    }

    /// The side that was connected to.
    pub(super) fn accept(&self) -> TlsLink {
        let made = ServerConnection::new(Arc::clone(&self.server));
        TlsLink::new(made.expect("the configuration was checked").into())
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = file::read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let found = found.ok().filter(|found| !found.is_empty());
    found.ok_or_else(|| TlsError::Pem { path: path.to_owned(), what: "certificate" })
}

pub(super) fn name_of(node: NodeId) -> ServerName<'static> {
    ServerName::try_from(format!("node-{node}.spillway")).expect("this is a host name")
}

/// What went wrong, in words that say what to do. `node` is whose certificate it is about.
pub(super) fn describe(error: &Error, node: Option<NodeId>) -> String {
    let name = node.map_or("node-ID.spillway".to_owned(), |node| format!("node-{node}.spillway"));
    match error {
        Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) => "the certificate is not signed by the authority in cluster.tls.ca: use one authority \
             for all nodes"
            .to_owned(),
        Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => format!(
            "the certificate does not name {name} as a subject alternative name: issue it for \
             that name"
        ),
        Error::InvalidCertificate(
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. },
        ) => {
            "the certificate is not valid at this time: renew it, or correct the clocks".to_owned()
        }
        Error::InvalidCertificate(
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. },
        ) => "the certificate must be good for servers and for clients: issue it with both uses, \
              or with none named"
            .to_owned(),
        Error::InappropriateMessage { .. } | Error::InvalidMessage(_) => {
            "what arrived is no TLS: set cluster.tls on all nodes or on none".to_owned()
        }
        Error::NoCertificatesPresented => {
            "the other side has no certificate: set cluster.tls there".to_owned()
        }
        Error::AlertReceived(alert) => {
            format!("the other side ended it ({alert:?}): see its log for the reason")
        }
        Error::InconsistentKeys(_) => {
            "the certificate is not for the private key in cluster.tls.key".to_owned()
        }
        other => format!("{other}: check cluster.tls on both nodes"),
    }
}
