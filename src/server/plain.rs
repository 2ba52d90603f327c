//! Plain CoAP, for test benches. There is no encryption and no authentication. Any client that
//! reaches the listener can fetch the certificates that the devices of one enrollment can fetch.
//! The Echo option (RFC 9175) verifies that a client can receive messages at its address. The state
//! is bounded. The listener is a single task of the runtime and is not designed for high load.

use std::{
    collections::{HashSet, VecDeque},
    future::Future,
    io::{self, IoSlice, IoSliceMut},
    net::SocketAddr,
    os::fd::AsRawFd,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, recvmsg, sendmsg};
use tokio::{io::Interest, net::UdpSocket, task::JoinSet};

use super::{
    datagrams::{address_of, v6_control},
    local::{self, PacketInfo, Source},
};
use crate::{
    coap::{
        self, Code, ExchangeId, Response,
        echo::{Echo, Verdict},
    },
    psk::{Enrollment, Principal, WhichKey},
    rate_limit,
    resource::{Answer, MAX_PAYLOAD, Service},
};

/// Maximum number of verified addresses. At the maximum, a new verified address replaces the one
/// that was verified first.
const MAX_PEERS: usize = 1024;
/// Maximum number of requests in progress.
const MAX_TASKS: usize = 1024;
/// Longest message received, in bytes.
const MAX_MESSAGE: usize = 2048;

/// A client's address, and the server's address that the client sent to. Answers are sent from this
/// server address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Peer {
    address: SocketAddr,
    asked: Option<Source>,
}

type Finished = (ExchangeId<Peer>, Response);

/// A listener for plain CoAP.
pub struct Plain {
    socket: UdpSocket,
    endpoint: coap::Endpoint<Peer>,
    echo: Echo,
    /// Verified addresses, and the order in which they were verified.
    verified: HashSet<Peer>,
    order: VecDeque<Peer>,
    service: Arc<Service>,
    principal: Principal,
    tasks: JoinSet<Finished>,
    sent: Vec<(Peer, Vec<u8>)>,
}

impl Plain {
    /// Creates a listener that treats every client as a device of the enrollment. No client has
    /// proven a key, so a device that is not in the table is invalid, even if the enrollment holds
    /// or admits such devices. `seed` must be random.
    pub fn new(
        socket: UdpSocket,
        service: Arc<Service>,
        enrollment: Arc<Enrollment>,
        now: Instant,
        seed: [[u8; 32]; 2],
    ) -> io::Result<Self> {
        let enrollment = Arc::new(enrollment.without_unlisted());
        local::report_destination(&socket, socket.local_addr()?)?;
        let config = coap::Config { max_request_body: MAX_PAYLOAD, ..coap::Config::default() };
        Ok(Self {
            socket,
            endpoint: coap::Endpoint::new(config, now, seed[0]),
            echo: Echo::new(now, seed[1]),
            verified: HashSet::new(),
            order: VecDeque::new(),
            service,
            principal: Principal { enrollment, device: None, own: None, key: WhichKey::Current },
            tasks: JoinSet::new(),
            sent: Vec::new(),
        })
    }

    /// Serves until the future is dropped.
    pub async fn run(mut self) {
        let mut buffer = [0; MAX_MESSAGE];
        loop {
            let next =
                self.endpoint.poll_timeout().unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
            tokio::select! {
                received = self.socket.async_io(Interest::READABLE, || receive(&self.socket, &mut buffer)) => {
                    // An error here means that an earlier answer could not be delivered, so it is
                    // ignored.
                    if let Ok((length, peer)) = received {
                        self.receive(Instant::now(), peer, &buffer[..length]);
                    }
                }
                Some(finished) = self.tasks.join_next() => {
                    // If the task has panicked, the panic was already reported.
                    if let Ok((exchange, response)) = finished {
                        self.endpoint.respond(Instant::now(), exchange, &response, &mut self.sent);
                    }
                }
                () = tokio::time::sleep_until(next.into()) => {}
            }
            self.endpoint.handle_timeout(Instant::now(), &mut self.sent);
            for (peer, message) in self.sent.drain(..) {
                // A message that the system does not accept counts as a datagram lost on the
                // network.
                let _ = self.socket.async_io(Interest::WRITABLE, || send(&self.socket, peer, &message)).await;
            }
        }
    }

    fn receive(&mut self, now: Instant, peer: Peer, message: &[u8]) {
        if !self.verified.contains(&peer) {
            match self.echo.verify(now, peer.address.to_string().as_bytes(), message) {
                Verdict::Verified => self.remember(peer),
                Verdict::Challenge(challenge) => return self.sent.push((peer, challenge)),
                Verdict::Pass => {}
            }
        }
        let Some(request) = self.endpoint.receive(now, peer, message, &mut self.sent) else { return };
        let (exchange, source) = (request.exchange, rate_limit::Source::of(peer.address));
        match self.service.answer(now, source, &self.principal, &request, true) {
            Answer::Now(response) => {
                self.endpoint.respond(now, exchange, &response, &mut self.sent);
            }
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
        exchange: ExchangeId<Peer>,
        work: Pin<Box<dyn Future<Output = Response> + Send>>,
    ) {
        self.endpoint.defer(now, exchange);
        self.tasks.spawn(async move { (exchange, work.await) });
    }

    fn remember(&mut self, peer: Peer) {
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

/// Receives a message. Fails with `WouldBlock` if there is none.
fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<(usize, Peer)> {
    let (mut slices, mut control) = ([IoSliceMut::new(buffer)], v6_control());
    let flags = MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut slices, Some(&mut control), flags)?;
    let address = message.address.as_ref().and_then(address_of).ok_or(io::ErrorKind::AddrNotAvailable)?;
    Ok((message.bytes, Peer { address, asked: Source::of(&message) }))
}

fn send(socket: &UdpSocket, peer: Peer, message: &[u8]) -> io::Result<()> {
    let (fd, slices, to) = (socket.as_raw_fd(), [IoSlice::new(message)], SockaddrStorage::from(peer.address));
    let send =
        |control: &[ControlMessage<'_>]| sendmsg(fd, &slices, control, MsgFlags::MSG_DONTWAIT, Some(&to));
    match peer.asked.map(Source::packet_info) {
        None => send(&[]),
        Some(PacketInfo::V4(info)) => send(&[ControlMessage::Ipv4PacketInfo(&info)]),
        Some(PacketInfo::V6(info)) => send(&[ControlMessage::Ipv6PacketInfo(&info)]),
    }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        guards::{Guards, Unlisted},
        provision::Provisioner,
        psk::{Key, Kind, Reissue},
        registrar::{self, Registrar, Targets},
        resource::throttle::RequestLimits,
        store::claim::Owner,
        testing::{cloud::Cloud, store::Memory},
    };

    #[tokio::test]
    async fn a_client_without_a_key_neither_waits_nor_is_admitted() {
        let (store, cloud): (Arc<Memory>, Arc<Cloud>) = Default::default();
        let (config, owner) = (registrar::Config::default(), Owner::new("test").unwrap());
        let runtime = tokio::runtime::Handle::current();
        let registrar = Registrar::new(config, owner, store.clone(), cloud, runtime);
        let provisioner = Provisioner::new(store, Targets::only(registrar), Duration::from_secs(1));
        let now = Instant::now();
        let service = Arc::new(Service::new(now, provisioner, RequestLimits::default()));
        let key = Key::from_hex("000102030405060708090a0b0c0d0e0f").unwrap();
        for unlisted in [Unlisted::Hold, Unlisted::Admit] {
            let enrollment = Enrollment {
                name: "plug".into(),
                product_key: "a1plug".into(),
                kind: Kind::Shared { identity: "plug".into(), key: key.clone() },
                reissue: Reissue::Always,
                next: None,
                guards: Guards { unlisted, ..Guards::default() },
            };
            let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let plain = Plain::new(socket, service.clone(), Arc::new(enrollment), now, [[7; 32]; 2]).unwrap();
            assert_eq!(plain.principal.unlisted(), Unlisted::Refuse);
        }
    }
}
