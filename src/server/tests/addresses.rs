//! Tests of a server with several addresses. Devices send to each address from connected sockets,
//! which receive answers only from that address. All addresses in 127.0.0.0/8 belong to this host.
//! Without a source address, the system would answer from 127.0.0.1.

use super::*;

/// Starts a server of two workers on these addresses.
fn start(listen: &[&str], folder: &tempfile::TempDir, runtime: &Handle) -> Server {
    let services = services(folder, runtime, RequestLimits::default());
    let limits = Limits { workers: 2, ..Limits::default() };
    let listen: Vec<SocketAddr> = listen.iter().map(|address| address.parse().unwrap()).collect();
    Server::start(&listen, &limits, &services, runtime).unwrap()
}

fn profile() -> Profile {
    let psk = Psk::new(hex::decode(KEY).unwrap()).unwrap();
    Profile { connection_id: Some(Vec::new()), ..Profile::new("plug", psk) }
}

/// Provisions a device that connects to this address of the server. The device then asks again from
/// other ports.
fn provision(server: SocketAddr) {
    let mut device = Device::connect(server, profile());
    assert_eq!(device.ask(1)[1], 0x45, "{server}");
    for id in 2..6 {
        device.socket = Device::socket(server);
        assert_eq!(device.ask(id)[1], 0x45, "{server}");
    }
}

#[test]
fn an_answer_leaves_from_the_address_that_the_device_sent_to() {
    let (folder, runtime) = (tempfile::TempDir::new().unwrap(), tokio::runtime::Runtime::new().unwrap());
    // A socket on `[::]` also receives IPv4, with IPv4-mapped addresses.
    for listen in ["0.0.0.0:0", "[::]:0"] {
        let server = start(&[listen], &folder, runtime.handle());
        let port = server.addresses()[0].port();
        for address in ["127.0.0.1", "127.0.0.5", "127.9.8.7", "127.0.0.5"] {
            provision(format!("{address}:{port}").parse().unwrap());
        }
        let dropped: u64 =
            server.metrics().iter().map(|worker| worker.datagrams_dropped.load(Ordering::Relaxed)).sum();
        assert_eq!(dropped, 0);
        server.stop();
    }
}

#[test]
fn devices_in_one_group_are_each_answered_from_the_address_they_sent_to() {
    let (folder, runtime) = (tempfile::TempDir::new().unwrap(), tokio::runtime::Runtime::new().unwrap());
    let server = start(&["0.0.0.0:0"], &folder, runtime.handle());
    let port = server.addresses()[0].port();
    std::thread::scope(|scope| {
        for number in 0..24 {
            scope.spawn(move || provision(SocketAddr::from(([127, 0, 1, number % 5], port))));
        }
    });
    server.stop();
}

#[test]
fn a_server_listens_on_several_addresses() {
    let (folder, runtime) = (tempfile::TempDir::new().unwrap(), tokio::runtime::Runtime::new().unwrap());
    let listen = ["127.0.0.2:0", "0.0.0.0:0", "127.0.0.3:0", "[::]:0"];
    let server = start(&listen, &folder, runtime.handle());
    let addresses = server.addresses().to_vec();
    assert_eq!(addresses.len(), listen.len());
    provision(addresses[0]);
    provision(format!("127.0.0.7:{}", addresses[1].port()).parse().unwrap());
    provision(addresses[2]);
    server.stop();
}

#[test]
fn the_wildcards_of_both_families_share_a_port() {
    let (folder, runtime) = (tempfile::TempDir::new().unwrap(), tokio::runtime::Runtime::new().unwrap());
    let free = UdpSocket::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port();
    let server = start(&[&format!("[::]:{free}"), &format!("0.0.0.0:{free}")], &folder, runtime.handle());
    provision(format!("127.0.0.5:{free}").parse().unwrap());
    server.stop();
}

#[test]
fn an_address_that_overlaps_another_is_refused() {
    let (folder, runtime) = (tempfile::TempDir::new().unwrap(), tokio::runtime::Runtime::new().unwrap());
    let free = UdpSocket::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port();
    let services = services(&folder, runtime.handle(), RequestLimits::default());
    let listen = [([0, 0, 0, 0], free).into(), ([127, 0, 0, 1], free).into()];
    let Err(error) = Server::start(&listen, &Limits::default(), &services, runtime.handle()) else {
        panic!("each socket would receive only a part of the datagrams");
    };
    assert!(format!("{error:#}").starts_with(&format!("cannot listen on 127.0.0.1:{free}")), "{error:#}");
}

#[test]
fn a_worker_that_ends_is_reported() {
    let (folder, runtime) = (tempfile::TempDir::new().unwrap(), tokio::runtime::Runtime::new().unwrap());
    let mut server = start(&["127.0.0.1:0"], &folder, runtime.handle());
    let ended = |server: &mut Server, patience| {
        runtime.block_on(async { tokio::time::timeout(patience, server.worker_ended()).await.ok() })
    };
    assert_eq!(ended(&mut server, Duration::ZERO), None);
    server.fail_worker(1);
    assert_eq!(ended(&mut server, Duration::from_secs(20)), Some(1));
    assert_eq!(ended(&mut server, Duration::ZERO), None);
    server.stop();
}
