//! Takes connections, with TLS or without, and serves HTTP on them: bounded in number,
//! and in how long a handshake or a request's header may take. Knows no routes.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

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

/// Connections at once; more wait in the system's queue.
const MOST: usize = 128;
/// How long a TLS handshake, or a request's header, may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a connection may last: a page renews itself over a new one.
const LONGEST: Duration = Duration::from_secs(600);
/// Pause after a connection that the system could not hand out.
const PAUSE: Duration = Duration::from_millis(100);

/// Who a request comes from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub(super) SocketAddr);

/// Serves until it is dropped. Each connection has the TLS of when it comes.
pub(super) async fn serve(
    listener: TcpListener,
    tls: Option<Arc<ArcSwap<rustls::ServerConfig>>>,
    routes: Router,
) -> Infallible {
    let places = Arc::new(Semaphore::new(MOST));
    loop {
        // Never closed.
        let place = places.clone().acquire_owned().await.ok();
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "the admin port could not take a connection");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let acceptor = tls.as_ref().map(|tls| TlsAcceptor::from(tls.load_full()));
        let routes = routes.clone().layer(Extension(Peer(peer)));
        tokio::spawn(async move {
            let _place = place;
            let Some(acceptor) = acceptor else { return answer(stream, routes).await };
            match tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => answer(stream, routes).await,
                Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS"),
                Err(_) => tracing::debug!(%peer, "TLS: too slow"),
            }
        });
    }
}

async fn answer(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, routes: Router) {
    let mut builder = Builder::new(hyper_util::rt::TokioExecutor::new()).http1_only();
    builder.http1().timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
    // A connection that broke is its client's affair.
    let _ = tokio::time::timeout(LONGEST, connection).await;
}
