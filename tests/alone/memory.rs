//! Tests which secrets a later reader of a server's memory would find.

use std::{
    fs,
    net::{SocketAddr, UdpSocket},
    os::unix::fs::FileExt,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use crate::{
    alone,
    support::{SHARED_IDENTITY, SHARED_KEY, Site},
};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// Derives the traffic keys with P_SHA256 (RFC 5246 §5). This implementation is limited to a key
/// block of 32 bytes.
fn traffic_keys(master: &[u8], server_random: &[u8], client_random: &[u8]) -> [Vec<u8>; 2] {
    let hmac = |parts: &[&[u8]]| {
        let mut mac = Hmac::<Sha256>::new_from_slice(master).expect("HMAC takes any key");
        parts.iter().for_each(|part| mac.update(part));
        mac.finalize().into_bytes()
    };
    let seed = [b"key expansion", server_random, client_random].concat();
    let block = hmac(&[&hmac(&[&seed]), &seed]);
    [block[..16].to_vec(), block[16..].to_vec()]
}

/// A device's session with the server. Its close_notify is withheld.
struct Conversation {
    back: UdpSocket,
    close_notify: Vec<u8>,
    /// The master secret and both traffic keys.
    secrets: Vec<Vec<u8>>,
}

/// Fetches a certificate with libcoap's client, and returns the session with its keys.
fn converse(site: &Site, server: SocketAddr) -> Conversation {
    let (front, back) = (UdpSocket::bind("127.0.0.1:0"), UdpSocket::bind("127.0.0.1:0"));
    let (front, back) = (front.expect("a socket"), back.expect("a socket"));
    back.connect(server).expect("connected");
    for socket in [&front, &back] {
        socket.set_nonblocking(true).expect("it can be set");
    }
    let log = site.path("key-log");
    let _ = fs::remove_file(&log);
    let mut device = Command::new("coap-client-gnutls")
        .env("SSLKEYLOGFILE", &log)
        .args(["-u", SHARED_IDENTITY, "-k", SHARED_KEY, "-B", "20"])
        .arg(format!("coaps://{}/cert?sn=PLUG-1", front.local_addr().expect("an address")))
        .stdout(Stdio::null())
        .spawn()
        .expect("installed by `make clients`");
    let (mut from, mut server_random, mut close_notify) = (None, Vec::new(), Vec::new());
    let mut buffer = [0; 2048];
    let mut has_ended = false;
    loop {
        let mut is_quiet = true;
        if let Ok((length, device)) = front.recv_from(&mut buffer) {
            (from, is_quiet) = (Some(device), false);
            // This is a record of epoch 1 with an alert.
            if buffer[0] == 21 && buffer[4] == 1 {
                close_notify = buffer[..length].to_vec();
            } else {
                back.send(&buffer[..length]).expect("sent");
            }
        }
        if let Ok(length) = back.recv(&mut buffer) {
            is_quiet = false;
            // This is a ServerHello, in which the random follows the version.
            if buffer[0] == 22 && buffer[13] == 2 {
                server_random = buffer[27..59].to_vec();
            }
            if let Some(device) = from {
                let _ = front.send_to(&buffer[..length], device);
            }
        }
        if is_quiet && has_ended {
            break;
        }
        has_ended |= device.try_wait().expect("it runs").is_some();
        thread::sleep(Duration::from_millis(1));
    }
    let told = fs::read_to_string(&log).expect("GnuTLS writes it");
    let fields: Vec<_> =
        told.split_whitespace().map(|field| hex::decode(field).unwrap_or_default()).collect();
    let [_, client_random, master] = &fields[..] else { panic!("one line: {told}") };
    assert!(!close_notify.is_empty() && !server_random.is_empty());
    let mut secrets = traffic_keys(master, &server_random, client_random).to_vec();
    secrets.push(master.clone());
    Conversation { back, close_notify, secrets }
}

/// Returns, for each secret, whether the writable memory of a process contains it.
fn in_memory(process: u32, secrets: &[&Vec<u8>]) -> Vec<bool> {
    let maps = fs::read_to_string(format!("/proc/{process}/maps")).expect("it runs");
    let memory = fs::File::open(format!("/proc/{process}/mem")).expect("the tests are root's");
    let mut found = vec![false; secrets.len()];
    for line in
        maps.lines().filter(|line| line.split_whitespace().nth(1).is_some_and(|how| how.starts_with("rw")))
    {
        let (range, _) = line.split_once(' ').expect("fields");
        let (start, end) = range.split_once('-').expect("a range");
        let [start, end] = [start, end].map(|at| u64::from_str_radix(at, 16).expect("hex digits"));
        let mut bytes = vec![0; (end - start) as usize];
        if memory.read_exact_at(&mut bytes, start).is_err() {
            continue;
        }
        let mut found = found.iter_mut();
        for secret in secrets {
            let is_there = memchr::memmem::find(&bytes, secret).is_some();
            *found.next().expect("as many") |= is_there;
        }
    }
    found
}

/// The keys of a session are wiped when it ends, and the master secret after the handshake. A
/// later reader of the memory cannot decrypt recorded traffic.
#[test]
fn no_key_of_a_closed_session_is_left_in_the_memory_of_a_server() {
    let _alone = alone();
    let site = Site::new();
    site.import(
        "deviceId,enrollment,deviceName,deviceSecret\nPLUG-1,plug,plug-1,secretofplug10000000000000000000\n",
    );
    let server = site.serve();
    let conversations: Vec<_> = (0..12).map(|_| converse(&site, server.address)).collect();
    let secrets: Vec<_> = conversations.iter().flat_map(|conversation| &conversation.secrets).collect();
    let kinds: Vec<_> = in_memory(server.id(), &secrets).chunks(3).map(<[bool]>::to_vec).collect();
    // While the sessions are open, the search finds their traffic keys. This shows that the search
    // works.
    assert_eq!(kinds, vec![vec![true, true, false]; 12]);
    for conversation in &conversations {
        conversation.back.send(&conversation.close_notify).expect("sent");
    }
    for conversation in &conversations {
        // The server answers with its own close_notify and ends the session.
        conversation.back.set_nonblocking(false).expect("it can be set");
        conversation.back.set_read_timeout(Some(Duration::from_secs(10))).expect("a time-out");
        conversation.back.recv(&mut [0; 100]).expect("an answer to close_notify");
    }
    assert_eq!(in_memory(server.id(), &secrets), vec![false; 36]);
    assert_eq!(server.stop(), Some(0));
}
