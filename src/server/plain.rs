//! Plain CoAP, for a bench: no encryption, and nobody proves who they are, so
//! whoever reaches it has what one enrollment's devices have. That an address is
//! somebody's is shown by Echo (RFC 9175); what is remembered is bounded. It is one
//! task of the runtime, and not made for load.

use std::{
    collections::{HashSet, VecDeque},
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{net::UdpSocket, task::JoinSet};

use crate::{
    cert::{Answer, MAX_PAYLOAD, Service},
    coap::{
        self, Code, ExchangeId, Response,
        echo::{Echo, Verdict},
    },
    limits::Origin,
    psk::{Enrollment, Principal},
};

/// Most addresses that have shown that they are there; beyond, the first is forgotten.
const MAX_PEERS: usize = 1024;
/// Most requests that are worked on at once.
const MAX_TASKS: usize = 1024;
/// Longest message received, in bytes.
const MAX_MESSAGE: usize = 2048;

type Finished = (ExchangeId<SocketAddr>, Response);

/// A listener for plain CoAP.
pub struct Plain {
    socket: UdpSocket,
    endpoint: coap::Endpoint<SocketAddr>,
    echo: Echo,
    /// Addresses that have shown that they are there, and in which order they did.
    verified: HashSet<SocketAddr>,
    order: VecDeque<SocketAddr>,
    service: Arc<Service>,
    principal: Principal,
    tasks: JoinSet<Finished>,
    sent: Vec<(SocketAddr, Vec<u8>)>,
}

impl Plain {
    /// Takes everybody for one of the enrollment's devices. `seed` is random.
    pub fn new(
        socket: UdpSocket,
        service: Arc<Service>,
        enrollment: Arc<Enrollment>,
        now: Instant,
        seed: [[u8; 32]; 2],
    ) -> Self {
        let config = coap::Config { max_request_body: MAX_PAYLOAD, ..coap::Config::default() };
        Self {
            socket,
            endpoint: coap::Endpoint::new(config, now, seed[0]),
            echo: Echo::new(now, seed[1]),
            verified: HashSet::new(),
            order: VecDeque::new(),
            service,
            principal: Principal { enrollment, device: None, own_identity: None },
            tasks: JoinSet::new(),
            sent: Vec::new(),
        }
    }

    /// Serves until it is dropped.
    pub async fn run(mut self) {
        let mut buffer = [0; MAX_MESSAGE];
        loop {
            let next =
                self.endpoint.poll_timeout().unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
            tokio::select! {
                received = self.socket.recv_from(&mut buffer) => {
                    // An error is an earlier answer's, that reached nobody.
                    if let Ok((length, peer)) = received {
                        self.receive(Instant::now(), peer, &buffer[..length]);
                    }
                }
                Some(finished) = self.tasks.join_next() => {
                    // A task that panicked has said so.
                    if let Ok((exchange, response)) = finished {
                        self.endpoint.respond(Instant::now(), exchange, &response, &mut self.sent);
                    }
                }
                () = tokio::time::sleep_until(next.into()) => {}
            }
            self.endpoint.handle_timeout(Instant::now(), &mut self.sent);
            for (peer, message) in self.sent.drain(..) {
                // What the system does not take is lost like any datagram.
                let _ = self.socket.send_to(&message, peer).await;
            }
        }
    }

    fn receive(&mut self, now: Instant, peer: SocketAddr, message: &[u8]) {
        if !self.verified.contains(&peer) {
            match self.echo.verify(now, peer.to_string().as_bytes(), message) {
                Verdict::Verified => self.remember(peer),
                Verdict::Challenge(challenge) => return self.sent.push((peer, challenge)),
                Verdict::Pass => {}
            }
        }
        let Some(request) = self.endpoint.receive(now, peer, message, &mut self.sent) else { return };
        let (exchange, origin) = (request.exchange, Origin::of(peer.ip()));
        match self.service.answer(now, origin, &self.principal, &request) {
            Answer::Now(response) => self.endpoint.respond(now, exchange, &response, &mut self.sent),
            Answer::Later(_) if self.tasks.len() >= MAX_TASKS => {
                let busy = Response::problem(Code::ServiceUnavailable, "too many requests at once");
                self.endpoint.respond(now, exchange, &busy.with_max_age(10), &mut self.sent);
            }
            Answer::Later(work) => self.spawn(now, exchange, work),
        }
    }

    fn spawn(
        &mut self,
        now: Instant,
        exchange: ExchangeId<SocketAddr>,
        work: Pin<Box<dyn Future<Output = Response> + Send>>,
    ) {
        self.endpoint.defer(now, exchange);
        self.tasks.spawn(async move { (exchange, work.await) });
    }

    fn remember(&mut self, peer: SocketAddr) {
        if self.order.len() == MAX_PEERS
            && let Some(first) = self.order.pop_front()
        {
            self.verified.remove(&first);
            self.endpoint.forget(first);
        }
        self.verified.insert(peer);
        self.order.push_back(peer);
    }
}
