//! Tests of a server on a host with several addresses, in a network namespace of its own. Devices
//! use a foreign stack with connected sockets. These tests need root.
#![cfg(feature = "simulation")]

use std::{
    net::{SocketAddr, UdpSocket},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use crate::{
    alone,
    support::{Process, SHARED_IDENTITY, SHARED_KEY, Site, console::free_address, http_get, stderr},
};
use nix::sched::{CloneFlags, unshare};

fn ip(arguments: &str) -> bool {
    let status = Command::new("ip").args(arguments.split(' ')).status();
    status.expect("ip, of Debian's package iproute2").success()
}

/// Runs a closure in a network namespace with two server addresses of each family. Devices use
/// another address.
pub(super) fn in_a_network(what: impl FnOnce() + Send) {
    thread::scope(|scope| {
        scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("root may make a network");
            assert!(ip("link set lo up") && ip("addr add fe80::1/64 dev lo"));
            for (address, device) in [
                ("192.0.2.1", "192.0.2.9"),
                ("192.0.2.2", "192.0.2.9"),
                ("2001:db8::1", "2001:db8::9"),
                ("2001:db8::2", "2001:db8::9"),
            ] {
                assert!(
                    ip(&format!("addr replace {device} dev lo")) && ip(&format!("addr add {address} dev lo"))
                );
                // Replaces the route that the system made. With the system's route, a device would
                // use the server's address as its own source address, and any answer would come
                // from the right address. The loop is needed because an IPv6 address becomes usable
                // only a moment after it was added.
                let deadline = Instant::now() + Duration::from_secs(20);
                while !ip(&format!("route del local {address} dev lo table local")) {
                    assert!(Instant::now() < deadline, "{address}");
                    thread::sleep(Duration::from_millis(10));
                }
                assert!(ip(&format!("route add local {address} dev lo src {device} table local")));
            }
            assert!(ip("route add local 2001:db8:5::/64 dev lo src 2001:db8::9 table local"));
            what();
        });
    });
}

fn site(listen: &str, sections: &str) -> Site {
    let key = hex::encode(SHARED_KEY);
    let site = Site::configured(&format!(
        "listen = {listen}\ndatabase = \"sqlite:certdist.db\"\n{sections}\n\
         [limits]\nworkers = 2\n\
         [[enrollment]]\nname = \"plug\"\nproduct_key = \"a1plug\"\nkind = \"shared\"\n\
         identity = \"{SHARED_IDENTITY}\"\nkey = \"hex:{key}\"\nreissue = \"always\"\n",
    ));
    site.import("deviceId,enrollment,deviceName,deviceSecret\nPG00000001,plug,plug-1,a0000000000000000000000000secret\n");
    site
}

/// Fetches a certificate from this address.
fn provision(site: &Site, server: SocketAddr) {
    let (server, key) = (server.to_string(), hex::encode(SHARED_KEY));
    let device = ["device-sim", "--server", &server, "--identity", SHARED_IDENTITY, "--psk", &key];
    let output = site.run(&[&device[..], &["--sn", "PG00000001", "--patience", "10"]].concat());
    assert!(output.status.success(), "{server}: {}", stderr(&output));
}

#[test]
fn each_address_of_the_host_answers_for_itself() {
    let _alone = alone();
    in_a_network(|| {
        let v4 = ["192.0.2.1", "192.0.2.2"];
        // The link-local address names its interface, which is the first one. The last address is
        // in a prefix that is routed to the host as a whole.
        let v6 = ["[2001:db8::1]", "[2001:db8::2]", "[fe80::1%1]", "[2001:db8:5::77]"];
        for (listen, addresses) in [
            ("\"0.0.0.0:5684\"", &v4[..]),
            ("\"[::]:5684\"", &[&v4[..], &v6[..]].concat()),
            ("[\"[::]:5684\", \"0.0.0.0:5684\"]", &[&v4[..], &v6[..]].concat()),
        ] {
            let admin: SocketAddr = free_address();
            let site = site(listen, &format!("[admin]\nlisten = \"{admin}\""));
            let server = site.serve();
            assert_eq!(server.address.port(), 5684);
            for address in addresses {
                provision(&site, format!("{address}:5684").parse().expect("an address"));
            }
            let metrics = http_get(admin, "/metrics");
            assert!(metrics.contains("certdist_datagrams_dropped_total 0\n"), "{listen}");
            assert_eq!(server.stop(), Some(0));
        }
    });
}

#[test]
fn each_address_that_is_listened_on_is_announced_and_serves() {
    let _alone = alone();
    in_a_network(|| {
        let listen = ["192.0.2.2:5684", "[2001:db8::2]:5684", "127.0.0.1:5685"];
        let site = site(&format!("{listen:?}"), "");
        let server: Process = site.serve();
        let announced = [server.address, server.next_address(), server.next_address()];
        assert_eq!(announced.map(|address| address.to_string()), listen);
        for address in announced {
            provision(&site, address);
        }
        assert_eq!(server.stop(), Some(0));
    });
}

#[test]
fn plain_coap_is_answered_from_the_address_that_was_asked() {
    let _alone = alone();
    in_a_network(|| {
        for (listen, addresses) in [
            ("0.0.0.0", &["192.0.2.1", "192.0.2.2"][..]),
            ("[::]", &["192.0.2.2", "[2001:db8::1]", "[2001:db8::2]"]),
            ("192.0.2.2", &["192.0.2.2"]),
        ] {
            let plain =
                format!("[plain_coap]\nlisten = \"{listen}:5683\"\nenrollment = \"plug\"\nexposed = true\n");
            let site = site("\"127.0.0.1:5684\"", &plain);
            let _server = site.serve();
            for address in addresses {
                let family = if address.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
                let device = UdpSocket::bind(family).expect("a socket");
                device.connect(format!("{address}:5683")).expect("connected");
                device.set_read_timeout(Some(Duration::from_secs(5))).expect("a time-out");
                // These bytes are a CoAP ping, which is answered with a reset (RFC 7252 §4.3).
                device.send(&[0x40, 0, 0x12, 0x34]).expect("sent");
                let mut answer = [0; 16];
                let length = device.recv(&mut answer).unwrap_or_else(|error| panic!("{address}: {error}"));
                assert_eq!(answer[..length], [0x70, 0, 0x12, 0x34]);
            }
        }
    });
}
