//! Accepts connections, with or without TLS, and serves HTTP on them. Tells [`Places`] what each
//! connection does, and ends the connections that have lost their place or take too long. The
//! routes are an argument.

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use arc_swap::ArcSwap;
use axum::{
    Extension, Router,
    body::{Body, HttpBody},
    extract::{Request, State},
    http::StatusCode,
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use futures_util::{StreamExt, stream};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpSocket},
    sync::Notify,
    time::{Instant, sleep, timeout_at},
};
use tokio_rustls::TlsAcceptor;

use super::places::{Admitted, IDLE, Id, Loss, Places, Stage};

/// Age after which a connection takes no further request. A page that updates itself then opens a
/// new connection.
const LONGEST: Duration = Duration::from_secs(600);
/// Interval at which a connection's time is checked.
const TICK: Duration = Duration::from_secs(1);
/// Pause after the system failed to accept a connection.
const PAUSE: Duration = Duration::from_millis(100);
/// Maximum number of connections that wait to be accepted; the system may allow fewer.
const BACKLOG: u32 = 4096;
/// Maximum size of a request's header, and of the part of an answer that the client has not taken
/// yet, in bytes each.
const BUFFER: usize = 64 << 10;

/// Addresses of the connection on which a request arrives.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer {
    /// Address of the client, or of the proxy in front of it.
    pub(super) address: SocketAddr,
    /// Address of this machine at which the connection arrived.
    pub(super) local: IpAddr,
}

/// The places of all connections, and the number of lost connections for each reason.
#[derive(Default)]
pub(super) struct Connections {
    places: Mutex<Places>,
    lost: [AtomicU64; Loss::ALL.len()],
}

impl Connections {
    fn places(&self) -> MutexGuard<'_, Places> {
        // No code panics while it holds this lock, so a poisoned lock cannot occur.
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the number of open connections.
    pub(super) fn open(&self) -> usize {
        self.places().len()
    }

    /// Returns the number of connections that were lost for each reason.
    pub(super) fn lost(&self) -> impl Iterator<Item = (Loss, u64)> {
        std::iter::zip(Loss::ALL, &self.lost).map(|(loss, count)| (loss, count.load(Ordering::Relaxed)))
    }

    fn count(&self, loss: Loss) {
        if let Some((_, count)) = std::iter::zip(Loss::ALL, &self.lost).find(|(known, _)| *known == loss) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Gives a place to a new connection. Returns `None` if no place is free and none can be made
    /// free.
    fn admit(self: &Arc<Self>, peer: SocketAddr, stage: Stage) -> Option<(Place, Arc<Notify>)> {
        match self.places().admit(now(), peer, stage) {
            Ok(Admitted { id, bell, has_displaced }) => {
                if has_displaced {
                    self.count(Loss::Displaced);
                }
                Some((Place { connections: self.clone(), id }, bell))
            }
            Err(loss) => {
                self.count(loss);
                None
            }
        }
    }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

/// The place of a connection. Each request on the connection carries the place as an extension.
#[derive(Clone)]
pub(super) struct Place {
    connections: Arc<Connections>,
    id: Id,
}

impl Place {
    /// Notes that a user or a script sends the current request. The request's body then gets more
    /// time, and the connections of strangers are ended first when room is needed.
    pub(super) fn authenticate(&self) {
        self.connections.places().authenticate(self.id, true);
    }

    fn enter(&self, stage: Stage) {
        self.connections.places().enter(now(), self.id, stage);
    }

    /// Begins a request. It counts as a stranger's request until it is authenticated.
    fn begin(&self) {
        let mut places = self.connections.places();
        places.authenticate(self.id, false);
        places.enter(now(), self.id, Stage::Working);
    }

    /// Waits until the connection must end.
    async fn over(&self, bell: &Notify) {
        loop {
            tokio::select! {
                () = bell.notified() => return,
                () = sleep(TICK) => {}
            }
            if let Some(loss) = self.connections.places().overdue(now(), self.id) {
                return loss.into_iter().for_each(|loss| self.connections.count(loss));
            }
        }
    }
}

/// Opens the port with a long queue for connections that wait to be accepted. The system drops
/// connections that do not fit into the queue, and their clients retry only after a second.
pub(super) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves until the future is dropped. Each new connection uses the current TLS configuration.
pub(super) async fn serve(
    listener: TcpListener,
    tls: Option<Arc<ArcSwap<rustls::ServerConfig>>>,
    connections: Arc<Connections>,
    routes: Router,
) -> Infallible {
    loop {
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "could not accept a connection on the admin port; trying again");
                sleep(PAUSE).await;
                continue;
            }
        };
        // The connection may have ended already.
        let Ok(local) = stream.local_addr() else { continue };
        let acceptor = tls.as_ref().map(|tls| TlsAcceptor::from(tls.load_full()));
        let stage = if acceptor.is_some() { Stage::Handshake } else { Stage::Header };
        let Some((place, bell)) = connections.admit(address, stage) else { continue };
        let routes = routes.clone().layer(Extension(Peer { address, local: local.ip() }));
        tokio::spawn(attend(stream, acceptor, place, bell, routes));
    }
}

/// Serves a connection until it ends or loses its place.
async fn attend(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    acceptor: Option<TlsAcceptor>,
    place: Place,
    bell: Arc<Notify>,
    routes: Router,
) {
    let serving = async {
        let Some(acceptor) = acceptor else { return answer(stream, &place, routes).await };
        match acceptor.accept(stream).await {
            Ok(stream) => {
                place.enter(Stage::Header);
                answer(stream, &place, routes).await;
            }
            Err(error) => tracing::debug!(%error, "TLS handshake failed"),
        }
    };
    tokio::select! {
        () = serving => {}
        () = place.over(&bell) => {}
    }
    place.connections.places().leave(place.id);
}

async fn answer(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, place: &Place, routes: Router) {
    let routes = routes.layer(middleware::from_fn_with_state(place.clone(), follow));
    let stream = Followed { stream, place: place.clone() };
    let mut builder = Builder::new(hyper_util::rt::TokioExecutor::new()).http1_only();
    // This limit also applies between two requests. `Places` gives the first header less time.
    builder.http1().timer(TokioTimer::new()).header_read_timeout(IDLE).max_buf_size(BUFFER);
    let mut connection =
        pin!(builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes)));
    tokio::select! {
        // An error of a connection concerns only its client, so the error is ignored.
        _ = connection.as_mut() => return,
        () = sleep(LONGEST) => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

/// Follows a request from its header to its answer, and limits the time for its body.
async fn follow(State(place): State<Place>, request: Request, next: Next) -> Response {
    place.begin();
    let is_late = Arc::new(AtomicBool::new(false));
    let (mut parts, body) = request.into_parts();
    parts.extensions.insert(place.clone());
    let body = if body.is_end_stream() { body } else { paced(body, place.clone(), is_late.clone()) };
    let mut response = next.run(Request::from_parts(parts, body)).await;
    if is_late.load(Ordering::Relaxed) {
        place.connections.count(Loss::SlowBody);
        let text = "the request's body came too slowly, and nothing was changed; send it again over a faster \
                    line, or use the command line on the server\n";
        response = (StatusCode::REQUEST_TIMEOUT, text).into_response();
    }
    place.enter(Stage::Answering);
    response
}

/// Limits the time for a body. Sets `is_late` if the body takes longer.
fn paced(body: Body, place: Place, is_late: Arc<AtomicBool>) -> Body {
    let chunks = stream::try_unfold(body.into_data_stream(), move |mut chunks| {
        let (place, is_late) = (place.clone(), is_late.clone());
        async move {
            place.enter(Stage::Body);
            let deadline = place.connections.places().deadline(place.id).unwrap_or_else(now);
            match timeout_at(deadline.into(), chunks.next()).await {
                Ok(Some(chunk)) => {
                    let chunk = chunk?;
                    place.connections.places().progress(now(), place.id, chunk.len());
                    Ok(Some((chunk, chunks)))
                }
                Ok(None) => {
                    place.enter(Stage::Working);
                    Ok(None)
                }
                Err(_) => {
                    is_late.store(true, Ordering::Relaxed);
                    Err(axum::Error::new(io::Error::from(io::ErrorKind::TimedOut)))
                }
            }
        }
    });
    Body::from_stream(chunks)
}

/// A stream that tells [`Places`] when the client takes the bytes of an answer.
struct Followed<S> {
    stream: S,
    place: Place,
}

impl<S: AsyncRead + Unpin> AsyncRead for Followed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> Followed<S> {
    fn wrote(&self, bytes: usize) {
        let mut places = self.place.connections.places();
        // A long answer may be flushed in several parts. Each flush ends the stage `Answering`, and
        // the next part begins this stage again. In other stages, the server writes only "100
        // Continue".
        if places.stage(self.place.id) == Some(Stage::Idle) {
            places.enter(now(), self.place.id, Stage::Answering);
        }
        if places.stage(self.place.id) == Some(Stage::Answering) {
            places.progress(now(), self.place.id, bytes);
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Followed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(context, bytes))?;
        self.wrote(written);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(context, parts))?;
        self.wrote(written);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        let mut places = self.place.connections.places();
        if places.stage(self.place.id) == Some(Stage::Answering) {
            places.enter(now(), self.place.id, Stage::Idle);
        }
        drop(places);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use axum::{
        body::Bytes,
        routing::{get, post},
    };
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
        task::JoinHandle,
    };

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A client, the task that serves its connection, and the counters.
    struct Client {
        stream: DuplexStream,
        serving: JoinHandle<()>,
        connections: Arc<Connections>,
    }

    async fn length(body: Result<Bytes, axum::extract::rejection::BytesRejection>) -> Response {
        body.map_or_else(IntoResponse::into_response, |body| body.len().to_string().into_response())
    }

    async fn user(request: Request, next: Next) -> Response {
        request.extensions().get::<Place>().unwrap().authenticate();
        next.run(request).await
    }

    /// Connects a client to a server. The buffer between them holds at most 8 KiB.
    fn connect() -> Client {
        let users = Router::new().route("/user", post(length)).layer(middleware::from_fn(user));
        let routes = Router::new()
            .route("/stranger", post(length))
            .route("/large", get(|| async { vec![b'x'; 300_000] }))
            .merge(users)
            .layer(axum::extract::DefaultBodyLimit::disable());
        let connections = Arc::<Connections>::default();
        let (place, bell) = connections.admit("192.0.2.1:1".parse().unwrap(), Stage::Header).unwrap();
        let (stream, server) = duplex(8 << 10);
        let serving = tokio::spawn(attend(server, None, place, bell, routes));
        Client { stream, serving, connections }
    }

    impl Client {
        async fn send(&mut self, text: &str) {
            self.stream.write_all(text.as_bytes()).await.unwrap();
        }

        async fn post(&mut self, path: &str, length: usize) {
            self.send(&format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n")).await;
        }

        /// Reads the head of an answer and the beginning of its body.
        async fn answer(&mut self) -> String {
            let mut buffer = vec![0; 4096];
            let mut text = String::new();
            while !text.contains("\r\n\r\n") {
                let length = self.stream.read(&mut buffer).await.unwrap();
                assert_ne!(length, 0, "no answer: {text}");
                text.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
            }
            text
        }

        fn lost(&self) -> Vec<Loss> {
            lost(&self.connections)
        }
    }

    fn lost(connections: &Connections) -> Vec<Loss> {
        connections.lost().flat_map(|(loss, count)| std::iter::repeat_n(loss, count as usize)).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stalls_is_answered_with_what_to_do_and_a_users_has_more_time() {
        for (path, seconds) in [("/stranger", 10), ("/user", 30)] {
            let mut client = connect();
            let began = Instant::now();
            client.post(path, 100).await;
            client.send("some").await;
            let answer = client.answer().await;
            assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("too slowly"), "{path}: {answer}");
            assert_eq!(began.elapsed().as_secs(), seconds, "{path}");
            client.serving.await.unwrap();
            assert_eq!((client.connections.open(), lost(&client.connections)), (0, vec![Loss::SlowBody]));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_upload_over_a_slow_line_arrives() {
        let mut client = connect();
        client.post("/user", 300_000).await;
        for _ in 0..100 {
            client.send(&"x".repeat(3000)).await;
            sleep(SECOND).await;
        }
        let answer = client.answer().await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("300000"), "{answer}");
        assert_eq!(client.lost(), []);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_taken_in_time_or_its_connection_ends() {
        let request = "GET /large HTTP/1.1\r\nHost: x\r\n\r\n";
        let mut client = connect();
        let began = Instant::now();
        client.send(request).await;
        client.serving.await.unwrap();
        assert_eq!((began.elapsed().as_secs(), client.connections.open()), (30, 0));
        assert_eq!(lost(&client.connections), [Loss::SlowReader]);

        let mut client = connect();
        client.send(request).await;
        let (mut buffer, mut read) = (vec![0; 4000], 0);
        while read < 300_000 {
            sleep(SECOND).await;
            let length = client.stream.read(&mut buffer).await.unwrap();
            assert_ne!(length, 0, "ended after {read} bytes");
            read += length;
        }
        assert_eq!(client.lost(), []);
    }

    #[tokio::test(start_paused = true)]
    async fn a_header_has_ten_seconds_and_an_idle_connection_as_well_unless_it_is_a_users() {
        let mut client = connect();
        client.send("GET /large HTTP/1.1\r\nHost: ").await;
        let began = Instant::now();
        client.serving.await.unwrap();
        assert_eq!(began.elapsed().as_secs(), 10);
        assert_eq!(lost(&client.connections), [Loss::SlowHeader]);

        for (path, seconds) in [("/stranger", 10), ("/user", 60)] {
            let mut client = connect();
            // Occasional requests keep the connection open.
            for _ in 0..5 {
                client.post(path, 4).await;
                client.send("body").await;
                assert!(client.answer().await.ends_with('4'));
                sleep(SECOND * (seconds - 2)).await;
            }
            let began = Instant::now();
            assert_eq!(client.stream.read(&mut [0; 1]).await.unwrap(), 0);
            assert!(began.elapsed() <= 3 * SECOND, "{path}: {:?}", began.elapsed());
            assert_eq!(client.lost(), [], "{path}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_a_users_only_while_its_requests_are() {
        let mut client = connect();
        for path in ["/user", "/stranger"] {
            client.post(path, 4).await;
            client.send("body").await;
            assert!(client.answer().await.ends_with('4'));
        }
        let began = Instant::now();
        client.serving.await.unwrap();
        assert_eq!(began.elapsed().as_secs(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn an_old_connection_takes_no_further_request_but_ends_none() {
        let mut client = connect();
        client.post("/user", 700 * 3000).await;
        for _ in 0..700 {
            client.send(&"x".repeat(3000)).await;
            sleep(SECOND).await;
        }
        let answer = client.answer().await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("2100000"), "{answer}");
        assert_eq!(client.stream.read(&mut [0; 1]).await.unwrap(), 0, "closed after the answer");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_makes_room_ends_at_once() {
        let client = connect();
        let peer = "192.0.2.1:1".parse().unwrap();
        let began = Instant::now();
        let others: Vec<_> = (0..super::super::places::PLACES / 4)
            .map(|_| client.connections.admit(peer, Stage::Header))
            .collect();
        client.serving.await.unwrap();
        assert!(others.iter().all(Option::is_some) && began.elapsed() < SECOND);
        assert_eq!(lost(&client.connections), [Loss::Displaced]);
    }
}
