//! Simulated networks between a device and the server. One network loses, repeats and reorders
//! datagrams, one has an outage, and one an attacker. One loses nothing and counts. Two other networks
//! change the device's address: one with every datagram, and one only once, during the cookie exchange.
//! A network reads only the type of a datagram's first record.

use std::{
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};

/// Time without traffic after which a network ends.
const IDLE: Duration = Duration::from_secs(300);
/// Content types of records (RFC 5246 §6.2.1).
const CHANGE_CIPHER_SPEC: u8 = 20;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
/// A record with a connection ID (RFC 9146 §4).
const TLS12_CID: u8 = 25;

/// Starts a network that loses one datagram in five, delivers one in ten twice, and delivers one in
/// five after its successor. Returns the address at which the device reaches the server.
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

/// One direction of the bad network.
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

/// Starts a network with an attacker in it, with one device behind it. Before each datagram of the
/// server, the device gets up to three mangled copies; one of five datagrams of the server is lost.
/// Returns the address at which the device reaches the server.
pub fn hostile_network(server: SocketAddr, seed: u64) -> SocketAddr {
    let (front, address) = front();
    let back = back_socket(server);
    let device = Arc::<Mutex<Option<SocketAddr>>>::default();
    let (returning, sender, target) = (back.clone(), front.try_clone().expect("a clone"), device.clone());
    thread::spawn(move || {
        let mut random = StdRng::seed_from_u64(seed);
        let mut buffer = [0; 2048];
        loop {
            let length = match returning.recv(&mut buffer) {
                Ok(length) => length,
                // The server is not there; the device tries again.
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => continue,
                Err(_) => return,
            };
            let Some(device) = *target.lock().expect("not poisoned") else { continue };
            for _ in 0..random.random_range(0..=3) {
                let _ = sender.send_to(&mangled(&buffer[..length], &mut random), device);
            }
            if random.random_bool(0.8) {
                let _ = sender.send_to(&buffer[..length], device);
            }
        }
    });
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = front.recv_from(&mut buffer) {
            *device.lock().expect("not poisoned") = Some(from);
            let _ = back.send(&buffer[..length]);
        }
    });
    address
}

/// Returns a copy with some bytes changed, cut off or added, or noise.
fn mangled(datagram: &[u8], random: &mut StdRng) -> Vec<u8> {
    let mut copy = datagram.to_vec();
    match random.random_range(0..5) {
        0 | 1 => {
            for _ in 0..random.random_range(1..=4) {
                let at = random.random_range(0..copy.len());
                copy[at] = random.random();
            }
        }
        2 => copy.truncate(random.random_range(0..copy.len())),
        3 => copy.extend((0..random.random_range(1..60)).map(|_| random.random::<u8>())),
        _ => copy = (0..random.random_range(1..300)).map(|_| random.random()).collect(),
    }
    copy
}

/// A network with an address translator that forgets its mapping immediately. One device is behind
/// the translator. After the server's last flight, each datagram of the device leaves from a new
/// port, and datagrams to older ports are lost.
pub struct ForgetfulNetwork {
    /// Address at which the device reaches the server.
    pub address: SocketAddr,
    /// Number of datagrams that left from a new port.
    pub moved: Arc<AtomicU32>,
    /// Number of datagrams from a new port that began with a handshake record.
    pub handshakes: Arc<AtomicU32>,
}

impl ForgetfulNetwork {
    /// Creates a network in front of this server.
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
                                // If the device has ended, the send fails, which does not matter.
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

/// A network that loses nothing and counts what a device sends before it is answered. One device uses
/// it. The server acknowledges the device's request first and answers it separately.
pub struct Tap {
    /// Address at which the device reaches the server.
    pub address: SocketAddr,
    counts: Arc<Mutex<Counts>>,
}

#[derive(Default)]
struct Counts {
    /// Set after the server's Finished. From then on, each protected record contains a CoAP message. A
    /// repeated flight of the handshake begins with another record.
    is_connected: bool,
    first_request: Option<Instant>,
    requests: usize,
    /// Number of the server's messages: the empty acknowledgement, and the answer.
    messages: usize,
    answered: Option<Instant>,
}

impl Tap {
    /// Creates a network in front of this server.
    pub fn new(server: SocketAddr) -> Self {
        let (front, address) = front();
        let back = back_socket(server);
        let counts = Arc::<Mutex<Counts>>::default();
        let device = Arc::<Mutex<Option<SocketAddr>>>::default();
        let (returning, sender, target) = (back.clone(), front.try_clone().expect("a clone"), device.clone());
        let seen = counts.clone();
        thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok(length) = returning.recv(&mut buffer) {
                {
                    let mut counts = seen.lock().expect("not poisoned");
                    if buffer[0] == CHANGE_CIPHER_SPEC {
                        counts.is_connected = true;
                    } else if counts.is_connected && is_protected(buffer[0]) {
                        counts.messages += 1;
                        if counts.messages == 2 {
                            counts.answered = Some(Instant::now());
                        }
                    }
                }
                let Some(device) = *target.lock().expect("not poisoned") else { continue };
                let _ = sender.send_to(&buffer[..length], device);
            }
        });
        let seen = counts.clone();
        thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok((length, from)) = front.recv_from(&mut buffer) {
                *device.lock().expect("not poisoned") = Some(from);
                let mut counts = seen.lock().expect("not poisoned");
                if counts.is_connected && counts.answered.is_none() && is_protected(buffer[0]) {
                    counts.requests += 1;
                    counts.first_request.get_or_insert_with(Instant::now);
                }
                drop(counts);
                let _ = back.send(&buffer[..length]);
            }
        });
        Self { address, counts }
    }

    /// Returns whether the device was answered after an acknowledgement, and repeated its request
    /// only when the timers of RFC 7252 §4.2 allow it: 2, 6, 14 and 30 s after the first time, or
    /// later.
    pub fn was_patient(&self) -> bool {
        let counts = self.counts.lock().expect("not poisoned");
        let (Some(first), Some(answered)) = (counts.first_request, counts.answered) else { return false };
        let elapsed = answered.duration_since(first);
        let copies = [2, 6, 14, 30].into_iter().filter(|&seconds| elapsed >= Duration::from_secs(seconds));
        (1..=1 + copies.count()).contains(&counts.requests)
    }
}

fn is_protected(content_type: u8) -> bool {
    matches!(content_type, APPLICATION_DATA | TLS12_CID)
}

/// A network with an address translator that forgets its mapping after the device's first datagram.
/// So the cookie that the server issued for the old port becomes invalid.
pub struct RebindingNetwork {
    /// Address at which the device reaches the server.
    pub address: SocketAddr,
    /// Set if the second datagram left from a new port.
    pub rebound: Arc<AtomicBool>,
}

impl RebindingNetwork {
    /// Creates a network in front of this server.
    pub fn new(server: SocketAddr) -> Self {
        let rebound = Arc::<AtomicBool>::default();
        let (mut datagrams, seen) = (0, rebound.clone());
        let address = translator(
            server,
            || true,
            move || {
                datagrams += 1;
                if datagrams != 2 {
                    return Fate::Pass;
                }
                seen.store(true, SeqCst);
                Fate::Rebind
            },
        );
        Self { address, rebound }
    }
}

/// A network that fails after the cookie exchange, with one device behind it. From the third
/// datagram of the device on, all datagrams in both directions are lost for a time.
pub struct Outage {
    /// Address at which the device reaches the server.
    pub address: SocketAddr,
    /// Number of datagrams of the device that were lost.
    pub lost: Arc<AtomicU32>,
    /// Number of lost datagrams that the device sent between one and six seconds after the outage
    /// began. A device with the timers of RFC 7925 §11 sends no datagram in this time, even if its
    /// timers are a quarter shorter.
    pub hurried: Arc<AtomicU32>,
}

impl Outage {
    /// Creates a network in front of this server, with an outage of this length.
    pub fn new(server: SocketAddr, length: Duration) -> Self {
        let (lost, hurried) = (Arc::<AtomicU32>::default(), Arc::<AtomicU32>::default());
        let began = Arc::<Mutex<Option<Instant>>>::default();
        let is_over = {
            let began = began.clone();
            move || began.lock().expect("not poisoned").is_none_or(|began| began.elapsed() >= length)
        };
        let (mut datagrams, counts) = (0, (lost.clone(), hurried.clone()));
        let passes = is_over.clone();
        let address = translator(server, passes, move || {
            datagrams += 1;
            if datagrams == 3 {
                *began.lock().expect("not poisoned") = Some(Instant::now());
            }
            if is_over() {
                return Fate::Pass;
            }
            let since = began.lock().expect("not poisoned").map_or(Duration::ZERO, |began| began.elapsed());
            let early = (Duration::from_secs(1)..Duration::from_secs(6)).contains(&since);
            counts.0.fetch_add(1, SeqCst);
            counts.1.fetch_add(u32::from(early), SeqCst);
            Fate::Lose
        });
        Self { address, lost, hurried }
    }
}

/// Decision of the translator about a device's datagram.
enum Fate {
    Pass,
    /// Sends the datagram from a new port. Datagrams to the old port are lost.
    Rebind,
    Lose,
}

/// Starts an address translator in front of a server, for one device at a time. `returns` decides
/// whether a datagram of the server is passed on. `fate` decides what happens to each datagram of
/// the device.
fn translator(
    server: SocketAddr,
    returns: impl Fn() -> bool + Clone + Send + 'static,
    mut fate: impl FnMut() -> Fate + Send + 'static,
) -> SocketAddr {
    let (front, address) = front();
    thread::spawn(move || {
        let (mapping, mut back) = (Arc::<AtomicU32>::default(), None::<Arc<UdpSocket>>);
        let mut known = None;
        let mut buffer = [0; 2048];
        while let Ok((length, device)) = front.recv_from(&mut buffer) {
            let fate = fate();
            if matches!(fate, Fate::Lose) {
                continue;
            }
            // If the device has another port, it has started again, and the mapping is no longer
            // valid.
            if matches!(fate, Fate::Rebind) || known.replace(device) != Some(device) {
                back = None;
                mapping.fetch_add(1, SeqCst);
            }
            let own = mapping.load(SeqCst);
            let socket = back.get_or_insert_with(|| {
                let socket = back_socket(server);
                let (front, returning) = (front.try_clone().expect("a clone"), socket.clone());
                let (mapping, returns) = (mapping.clone(), returns.clone());
                thread::spawn(move || {
                    let mut buffer = [0; 2048];
                    while let Ok(length) = returning.recv(&mut buffer) {
                        if mapping.load(SeqCst) == own && returns() {
                            // If the device has ended, the send fails, which does not matter.
                            let _ = front.send_to(&buffer[..length], device);
                        }
                    }
                });
                socket
            });
            let _ = socket.send(&buffer[..length]);
        }
    });
    address
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
