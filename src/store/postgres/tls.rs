//! TLS of the connections to PostgreSQL, by rustls. The server's certificate is always verified.

use std::{
    future::Future,
    io,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use rustls_platform_verifier::BuilderVerifierExt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::{
    Socket,
    tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream},
};
use tokio_rustls::{TlsConnector, client};

use crate::store::StoreError;

/// Encryption of connections.
#[derive(Clone)]
pub(super) struct Tls(Option<TlsConnector>);

impl Tls {
    /// Encrypts nothing.
    pub(super) fn off() -> Self {
        Self(None)
    }

    /// Trusts the certificates in this PEM file or, without one, those that the system trusts.
    pub(super) fn new(roots: Option<&Path>) -> Result<Self, StoreError> {
        let failed = |reason: String| StoreError::Failed(format!("database: {reason}"));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| failed(error.to_string()))?;
        let builder = match roots {
            None => builder
                .with_platform_verifier()
                .map_err(|error| failed(format!("the system's root certificates: {error}")))?,
            Some(path) => {
                let unreadable = |error: String| failed(format!("sslrootcert {}: {error}", path.display()));
                let mut store = RootCertStore::empty();
                let found =
                    CertificateDer::pem_file_iter(path).map_err(|error| unreadable(error.to_string()))?;
                for certificate in found {
                    let certificate = certificate.map_err(|error| unreadable(error.to_string()))?;
                    store.add(certificate).map_err(|error| unreadable(error.to_string()))?;
                }
                if store.is_empty() {
                    return Err(unreadable("it has no certificate".into()));
                }
                builder.with_root_certificates(store)
            }
        };
        Ok(Self(Some(TlsConnector::from(Arc::new(builder.with_no_client_auth())))))
    }
}

impl MakeTlsConnect<Socket> for Tls {
    type Stream = Encrypted;
    type TlsConnect = Connect;
    type Error = io::Error;

    fn make_tls_connect(&mut self, domain: &str) -> io::Result<Connect> {
        let Some(connector) = self.0.clone() else { return Ok(Connect(None)) };
        let server = ServerName::try_from(domain.to_owned());
        let server =
            server.map_err(|_| io::Error::other("the host is no name that a certificate can have"))?;
        Ok(Connect(Some((connector, server))))
    }
}

/// The TLS handshake of one connection; `None` if TLS is off, and then it is not asked for.
pub(super) struct Connect(Option<(TlsConnector, ServerName<'static>)>);

impl TlsConnect<Socket> for Connect {
    type Stream = Encrypted;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Encrypted>> + Send>>;

    fn connect(self, socket: Socket) -> Self::Future {
        Box::pin(async move {
            let (connector, server) = self.0.ok_or_else(|| io::Error::other("TLS is off"))?;
            Ok(Encrypted(connector.connect(server, socket).await?))
        })
    }
}

/// An encrypted connection.
pub(super) struct Encrypted(client::TlsStream<Socket>);

impl TlsStream for Encrypted {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl AsyncRead for Encrypted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Encrypted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
