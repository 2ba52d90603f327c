//! Tests that need real sockets, a real database or several workers.

mod addresses;
mod allocations;
mod moved;
mod revoked;
mod timing;

use std::{
    collections::HashSet,
    net::UdpSocket,
    time::{Duration, Instant},
};

use super::{
    stack::{Done, Io},
    *,
};
use crate::{
    device::DeviceId,
    dtls::{
        Psk,
        testing::{Client, Profile},
    },
    provision::Provisioner,
    psk::{Enrollment, Key, Kind, Reissue},
    rate_limit::Rate,
    registrar::{Registrar, Targets},
    resource::throttle::{EnrollmentLimits, RequestLimits},
    store::{Actor, ImportRow, sqlite::Sqlite},
    testing::{cloud::Cloud, store::import},
};

const KEY: &str = "000102030405060708090a0b0c0d0e0f";

pub(super) fn services(folder: &tempfile::TempDir, runtime: &Handle, requests: RequestLimits) -> Services {
    let store = Arc::new(Sqlite::open(&folder.path().join("certdist.db")).unwrap());
    let row = ImportRow::new(DeviceId::parse("SN-1").unwrap(), "plug", "a1");
    import(&*store, [row]);
    let kind = Kind::Shared { identity: "plug".into(), key: Key::from_hex(KEY).unwrap() };
    let enrollment = Enrollment {
        name: "plug".into(),
        product_key: "a1".into(),
        kind,
        reissue: Reissue::Always,
        next: None,
        guards: Default::default(),
    };
    let cloud = Arc::new(Cloud::default());
    let registrar = Registrar::new(
        crate::registrar::Config::default(),
        crate::store::claim::Owner::new("test").unwrap(),
        store.clone(),
        cloud,
        runtime.clone(),
    );
    let provisioner = Provisioner::new(store.clone(), Targets::only(registrar), Duration::from_secs(5));
    Services {
        enrollments: Arc::new(Enrollments::new([enrollment])),
        service: Arc::new(Service::new(Instant::now(), provisioner, requests)),
        store,
    }
}

/// Collects a stack's datagrams. Fails the test if the stack cannot answer a request in one step.
struct Collected(Vec<(SocketAddr, Vec<u8>)>);

impl dtls::Outbox for Collected {
    fn push(&mut self, path: dtls::Path, datagram: &[u8]) {
        self.0.push((path.peer, datagram.to_vec()));
    }
}

impl Io for Collected {
    fn spawn(&mut self, _: impl Future<Output = Done> + Send + 'static) {
        panic!("a device that has its certificate is served at once");
    }
}

/// Returns a confirmable GET of `/cert` with a query of seven bytes.
fn request(id: u8, query: &[u8; 7]) -> Vec<u8> {
    [&[0x40, 1, 0, id, 0xb4][..], b"cert", &[0x47], query].concat()
}

struct Device {
    client: Client,
    socket: UdpSocket,
}

impl Device {
    fn socket(server: SocketAddr) -> UdpSocket {
        Self::socket_at("127.0.0.1", server)
    }

    fn socket_at(address: &str, server: SocketAddr) -> UdpSocket {
        let socket = UdpSocket::bind((address, 0)).unwrap();
        socket.connect(server).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        socket
    }

    fn connect(server: SocketAddr, profile: Profile) -> Self {
        Self::connect_over(Self::socket(server), profile)
    }

    fn connect_over(socket: UdpSocket, profile: Profile) -> Self {
        let mut device = Self { client: Client::new(profile, rand::random()), socket };
        let first = device.client.start(Instant::now());
        device.send(first);
        device.until(|client| client.is_established());
        device
    }

    fn send(&self, datagrams: Vec<Vec<u8>>) {
        for datagram in datagrams {
            self.socket.send(&datagram).unwrap();
        }
    }

    fn until(&mut self, done: impl Fn(&Client) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut buffer = [0; 2048];
        while !done(&self.client) {
            assert!(Instant::now() < deadline, "no answer within 10 s");
            let answer = match self.socket.recv(&mut buffer) {
                Ok(length) => self.client.receive(Instant::now(), &buffer[..length]),
                Err(_) => self.client.handle_timeout(Instant::now()),
            };
            self.send(answer);
        }
    }

    /// Asks for SN-1, and returns the CoAP message of the answer.
    fn ask(&mut self, id: u8) -> Vec<u8> {
        self.ask_for(id, b"sn=SN-1")
    }

    fn ask_for(&mut self, id: u8, query: &[u8; 7]) -> Vec<u8> {
        self.client.received.clear();
        let datagram = self.client.send(&request(id, query));
        self.send(vec![datagram]);
        self.until(|client| !client.received.is_empty());
        self.client.received.remove(0)
    }
}

#[test]
fn a_device_that_moves_is_served_by_its_worker_whichever_worker_receives_it() {
    let folder = tempfile::TempDir::new().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let limits = Limits { workers: 4, ..Limits::default() };
    let services = services(&folder, runtime.handle(), RequestLimits::default());
    let server =
        Server::start(&["127.0.0.1:0".parse().unwrap()], &limits, &services, runtime.handle()).unwrap();
    let psk = Psk::new(hex::decode(KEY).unwrap()).unwrap();
    let profile = Profile { connection_id: Some(Vec::new()), ..Profile::new("plug", psk) };

    let mut workers = HashSet::new();
    for _ in 0..8 {
        let mut device = Device::connect(server.addresses()[0], profile.clone());
        workers.insert(device.client.server_connection_id()[0]);
        let first = device.ask(1);
        assert_eq!(first[1], 0x45);
        // The NAT in front of the device changes its mapping. Each request comes from another port,
        // and so may reach another worker's socket.
        for id in 2..12 {
            device.socket = Device::socket(server.addresses()[0]);
            let again = device.ask(id);
            assert_eq!((again[1], &again[4..]), (0x45, &first[4..]));
        }
    }
    assert!(workers.len() > 1, "the devices were spread over the workers");
    let handshakes: u64 =
        server.metrics().iter().map(|worker| worker.handshakes_completed.load(Ordering::Relaxed)).sum();
    assert_eq!(handshakes, 8);
    server.stop();
}

#[test]
fn a_session_that_moves_uses_the_limits_of_its_first_address() {
    let folder = tempfile::TempDir::new().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let tries = EnrollmentLimits { requests: None, refused_lookups: Rate::new(3, Duration::from_secs(3600)) };
    let requests =
        RequestLimits { enrollments: [("plug".to_owned(), tries)].into(), ..RequestLimits::default() };
    let services = services(&folder, runtime.handle(), requests);
    let limits = Limits { workers: 2, ..Limits::default() };
    let server =
        Server::start(&["127.0.0.1:0".parse().unwrap()], &limits, &services, runtime.handle()).unwrap();
    let psk = Psk::new(hex::decode(KEY).unwrap()).unwrap();
    let profile = Profile { connection_id: Some(Vec::new()), ..Profile::new("plug", psk) };
    let connect =
        |address| Device::connect_over(Device::socket_at(address, server.addresses()[0]), profile.clone());

    let mut thief = connect("127.0.0.2");
    // A client with a stolen key pretends to be at the address of a factory.
    thief.socket = Device::socket_at("127.0.0.3", server.addresses()[0]);
    let codes: Vec<u8> = (1..=5).map(|id| thief.ask_for(id, b"sn=SN-9")[1]).collect();
    assert_eq!(codes, [0x84, 0x84, 0x84, 0x9d, 0x9d]);
    assert_eq!(connect("127.0.0.3").ask(1)[1], 0x45);
    // Other devices at the thief's own address are still served, but the thief is not.
    assert_eq!(connect("127.0.0.2").ask(1)[1], 0x45);
    assert_eq!(thief.ask_for(9, b"sn=SN-1")[1], 0x9d);
    server.stop();
}

/// In one case, the device closes the session. In the other case, the session is idle for too long.
#[test]
fn the_coap_state_of_a_session_is_forgotten_with_it() {
    for says_close in [true, false] {
        let folder = tempfile::TempDir::new().unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let services = services(&folder, runtime.handle(), RequestLimits::default());
        let (mut now, peer) = (Instant::now(), SocketAddr::from(([10, 0, 0, 1], 5684)));
        let dtls = dtls::Endpoint::new(dtls::Config::default(), now, &[1; 32], [2; 32]);
        let coap = coap::Endpoint::new(coap::Config::default(), now, [3; 32]);
        let mut stack = stack::Stack::new(dtls, coap, services);
        let psk = Psk::new(hex::decode(KEY).unwrap()).unwrap();
        let mut client = Client::new(Profile::new("plug", psk), [4; 32]);
        let mut out = Collected(Vec::new());
        let mut to_server = client.start(now);
        let mut asked = false;
        while let Some(mut datagram) = to_server.pop() {
            stack.receive(now, peer, &mut datagram, &mut out);
            for (_, answer) in out.0.drain(..) {
                to_server.extend(client.receive(now, &answer));
            }
            if client.is_established() && !asked {
                asked = true;
                // The request is for a resource that does not exist, so the server looks up
                // nothing.
                to_server.push(client.send(&[0x40, 1, 0, 9, 0xb1, b'x']));
            }
        }
        assert_eq!(client.received.remove(0)[1], 0x84);
        assert_eq!(stack.coap_peers(), 1);
        if says_close {
            stack.receive(now, peer, &mut client.close(), &mut out);
        } else {
            now += Duration::from_secs(30 * 24 * 3600);
            stack.handle_timeout(now, &mut out);
        }
        assert_eq!(stack.coap_peers(), 0, "closed by the device: {says_close}");
    }
}
