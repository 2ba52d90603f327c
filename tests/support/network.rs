//! Networks between a device and the server: one that loses, repeats and
//! reorders, and one that gives the device a new address again and again. They
//! read nothing of what they carry but the type of its first record.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};

/// How long a network stands without traffic.
const IDLE: Duration = Duration::from_secs(300);
/// Content types, RFC 5246 §6.2.1.
const CHANGE_CIPHER_SPEC: u8 = 20;
const HANDSHAKE: u8 = 22;

/// One datagram in five is lost, one in ten comes twice, one in five comes after
/// the next one.
pub fn bad_network(server: SocketAddr, seed: u64) -> SocketAddr {
    let (front, address) = front();
    thread::spawn(move || {
        let back: Mutex<Vec<(SocketAddr, Arc<UdpSocket>)>> = Mutex::default();
        let mut line = Line::new(seed);
        let mut buffer = [0; 2048];
        while let Ok((length, device)) = front.recv_from(&mut buffer) {
            let mut back = back.lock().expect("not poisoned");
            let known = back.iter().find(|(known, _)| *known == device).map(|(_, socket)| socket.clone());
            let socket = known.unwrap_or_else(|| {
                let socket = back_socket(server);
                back.push((device, socket.clone()));
                let (front, returning) = (front.try_clone().expect("a clone"), socket.clone());
                thread::spawn(move || {
                    let mut line = Line::new(seed + 1);
                    let mut buffer = [0; 2048];
                    while let Ok(length) = returning.recv(&mut buffer) {
                        line.pass(&buffer[..length], |datagram| drop(front.send_to(datagram, device)));
                    }
                });
                socket
            });
            line.pass(&buffer[..length], |datagram| drop(socket.send(datagram)));
        }
    });
    address
}

/// One direction of it.
struct Line {
    random: StdRng,
    held: Option<Vec<u8>>,
}

impl Line {
    fn new(seed: u64) -> Self {
        Self { random: StdRng::seed_from_u64(seed), held: None }
    }

    fn pass(&mut self, datagram: &[u8], send: impl Fn(&[u8])) {
        if !self.random.random_bool(0.2) {
            if self.held.is_none() && self.random.random_bool(0.2) {
                self.held = Some(datagram.to_vec());
                return;
            }
            send(datagram);
            if self.random.random_bool(0.1) {
                send(datagram);
            }
        }
        if let Some(held) = self.held.take() {
            send(&held);
        }
    }
}

/// A network whose address translator forgets at once: from the server's last
/// flight on, each datagram of the one device behind it leaves from a new port,
/// and what comes to an older one goes nowhere.
pub struct ForgetfulNetwork {
    /// Where the device finds the server.
    pub address: SocketAddr,
    /// Datagrams that left from a new port.
    pub moved: Arc<AtomicU32>,
    /// Of them, those of another handshake.
    pub handshakes: Arc<AtomicU32>,
}

impl ForgetfulNetwork {
    /// In front of this server.
    pub fn new(server: SocketAddr) -> Self {
        let (front, address) = front();
        let network = Self { address, moved: Arc::default(), handshakes: Arc::default() };
        let (moved, handshakes) = (network.moved.clone(), network.handshakes.clone());
        thread::spawn(move || {
            let connected = Arc::new(AtomicBool::new(false));
            let mut back = None::<Arc<UdpSocket>>;
            let mut buffer = [0; 2048];
            while let Ok((length, device)) = front.recv_from(&mut buffer) {
                if connected.load(SeqCst) {
                    back = None;
                    moved.fetch_add(1, SeqCst);
                    handshakes.fetch_add(u32::from(buffer[0] == HANDSHAKE), SeqCst);
                }
                let mapping = moved.load(SeqCst);
                let socket = back.get_or_insert_with(|| {
                    let socket = back_socket(server);
                    let (front, returning) = (front.try_clone().expect("a clone"), socket.clone());
                    let (moved, connected) = (moved.clone(), connected.clone());
                    thread::spawn(move || {
                        let mut buffer = [0; 2048];
                        while let Ok(length) = returning.recv(&mut buffer) {
                            if buffer[0] == CHANGE_CIPHER_SPEC {
                                connected.store(true, SeqCst);
                            }
                            if moved.load(SeqCst) == mapping {
                                // The device may be gone.
                                let _ = front.send_to(&buffer[..length], device);
                            }
                        }
                    });
                    socket
                });
                let _ = socket.send(&buffer[..length]);
            }
        });
        network
    }
}

fn front() -> (UdpSocket, SocketAddr) {
    let front = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    front.set_read_timeout(Some(IDLE)).expect("a time-out");
    let address = front.local_addr().expect("an address");
    (front, address)
}

fn back_socket(server: SocketAddr) -> Arc<UdpSocket> {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    socket.connect(server).expect("connected");
    socket.set_read_timeout(Some(IDLE)).expect("a time-out");
    Arc::new(socket)
}
