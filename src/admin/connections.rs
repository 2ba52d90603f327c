//! Accepts connections, with or without TLS, and serves HTTP on them. Limits their number,
//! and the time for a TLS handshake and for a request's header. The routes are an argument.

use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use axum::{Extension, Router};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::Semaphore,
};
use tokio_rustls::TlsAcceptor;

/// Maximum number of open connections; further ones wait in the system's queue.
const MOST: usize = 128;
/// Maximum time for a TLS handshake, and for a request's header.
const PATIENCE: Duration = Duration::from_secs(10);
/// Maximum lifetime of a connection. A page that updates itself then opens a new one.
const LONGEST: Duration = Duration::from_secs(600);
/// Pause after the system failed to accept a connection.
const PAUSE: Duration = Duration::from_millis(100);

/// Addresses of the connection on which a request comes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer {
    /// Address of the client, or of the proxy in front of it.
    pub(super) address: SocketAddr,
    /// Address of this machine at which the connection arrived.
    pub(super) local: IpAddr,
}

/// Serves until the future is dropped. Each new connection uses the current TLS configuration.
pub(super) async fn serve(
    listener: TcpListener,
    tls: Option<Arc<ArcSwap<rustls::ServerConfig>>>,
    routes: Router,
) -> Infallible {
    let places = Arc::new(Semaphore::new(MOST));
    loop {
        // Always succeeds, as the semaphore is never closed.
        let place = places.clone().acquire_owned().await.ok();
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "could not accept a connection on the admin port; trying again");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let acceptor = tls.as_ref().map(|tls| TlsAcceptor::from(tls.load_full()));
        // The connection may have ended already.
        let Ok(local) = stream.local_addr() else { continue };
        let routes = routes.clone().layer(Extension(Peer { address: peer, local: local.ip() }));
        tokio::spawn(async move {
            let _place = place;
            let Some(acceptor) = acceptor else { return answer(stream, routes).await };
            match tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => answer(stream, routes).await,
                Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS handshake failed"),
                Err(_) => tracing::debug!(%peer, "TLS handshake timed out"),
            }
        });
    }
}

async fn answer(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, routes: Router) {
    let mut builder = Builder::new(hyper_util::rt::TokioExecutor::new()).http1_only();
    builder.http1().timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
    // A broken connection concerns only its client.
    let _ = tokio::time::timeout(LONGEST, connection).await;
}
