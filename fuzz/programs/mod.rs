//! Runs programs against the DTLS endpoint with the CoAP endpoint behind it. The bytes of
//! a program are read as operations of devices, strangers, the network, the server's
//! application and the clock. The rules asserted here, in `server` and in `ledger` hold
//! for every program. `fuzz/libfuzzer` looks for programs that break a rule, and
//! `tests/corpus.rs` runs the programs that were kept.
//!
//! The crate that includes this module must have the modules `coap` and `dtls` at its
//! root.

mod device;
mod ledger;
mod reader;
mod server;
mod shapes;

use std::{
    net::{Ipv6Addr, SocketAddr},
    time::Duration,
};

pub use self::server::Reached;
use self::{
    device::Device,
    reader::Reader,
    server::{Keys, Received, Server, Work},
};
use crate::dtls::{LocalAddress, Path, testing::ContentType, testing::predictable_endpoint};

/// Maximum number of devices in a program. No device is removed, so that each record can
/// be traced to the device that sealed it.
const MAX_DEVICES: usize = 8;
/// Maximum number of datagrams in transit, and of recorded datagrams.
const MAX_DATAGRAMS: usize = 48;
/// Longest datagram, in bytes.
const MAX_DATAGRAM: usize = 2048;
/// Maximum number of operations in a program.
const MAX_OPERATIONS: usize = 400;
/// Maximum number of rounds in which `World::settle` delivers the datagrams in transit.
/// Each round delivers the answers to the datagrams of the previous round.
const ROUNDS: usize = 12;

/// Runs a program. Panics if it breaks a rule. Returns what it has reached.
pub fn run(program: &[u8]) -> Reached {
    let mut reader = Reader::new(program);
    let Some(kind) = reader.byte() else { return Reached::default() };
    let mut world = World::new(kind);
    for _ in 0..MAX_OPERATIONS {
        if world.step(&mut reader).is_none() {
            break;
        }
        world.server.assert_bounded();
    }
    let reached = world.server.reached();
    world.end();
    reached
}

#[derive(Clone)]
struct Sent {
    path: Path,
    bytes: Vec<u8>,
    to_server: bool,
}

struct World {
    server: Server,
    devices: Vec<Device>,
    /// Datagrams in transit.
    wire: Vec<Sent>,
    /// Datagrams that devices have sent to the server, as an eavesdropper records them.
    recorded: Vec<(Path, Vec<u8>)>,
}

/// Returns one of a few addresses, most of which are in one IPv4 /24.
fn address(number: u8) -> SocketAddr {
    let port = 1000 + u16::from(number >> 4 & 3);
    match number % 8 {
        7 => SocketAddr::from((Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), port)),
        6 => SocketAddr::from(([198, 51, 100, 1], port)),
        host => SocketAddr::from(([192, 0, 2, host], port)),
    }
}

fn path(number: u8) -> Path {
    Path { peer: address(number), local: LocalAddress(u16::from(number >> 3 & 1)) }
}

impl World {
    fn new(kind: u8) -> Self {
        // From here on, this thread uses known ephemeral secrets, so that a program does
        // the same in each run.
        let (_, secrets) = predictable_endpoint::<()>(std::time::Instant::now());
        Self {
            server: Server::new(kind, secrets),
            devices: Vec::new(),
            wire: Vec::new(),
            recorded: Vec::new(),
        }
    }

    /// Carries out one operation. Returns `None` at the end of the program.
    fn step(&mut self, reader: &mut Reader<'_>) -> Option<()> {
        match reader.below(26)? {
            0 => self.connect(reader)?,
            1 | 2 => self.settle(),
            3 => self.deliver(reader)?,
            4 => drop(self.take(reader)?),
            5 => {
                if let Some(at) = self.any_on_wire(reader)? {
                    self.put(self.wire[at].clone());
                }
            }
            6 => {
                let (one, other) = (self.any_on_wire(reader)?, self.any_on_wire(reader)?);
                if let (Some(one), Some(other)) = (one, other) {
                    self.wire.swap(one, other);
                }
            }
            7 => self.mutate(reader)?,
            8 => self.replay(reader)?,
            9 => self.splice(reader)?,
            10 => self.wait(reader.byte()?),
            11 | 12 => self.request(reader)?,
            13 => self.raw(reader)?,
            14 => self.hostile(reader)?,
            15 => {
                let to = path(reader.byte()?);
                if let Some(device) = self.device(reader)? {
                    self.devices[device].at = to;
                }
            }
            16 => {
                if let Some(device) = self.device(reader)? {
                    let record = self.devices[device].close();
                    self.send(device, record);
                }
            }
            17 => self.server.keys = Keys::ALL[reader.below(Keys::ALL.len())?],
            18 => {
                let (claim, is_known) = (reader.byte()?, reader.byte()? % 4 != 0);
                self.server.answer_claim(claim.into(), is_known);
                self.collect();
            }
            19 => self.administrate(reader)?,
            20 => {
                let from = path(reader.byte()?);
                let bytes = reader.bytes()?.to_vec();
                self.put(Sent { path: from, bytes, to_server: true });
            }
            21 => {
                let session = reader.byte()?;
                let data = reader.bytes()?.to_vec();
                self.server.send(session.into(), &data);
                self.collect();
            }
            22 => {
                let (work, length) = (reader.byte()?, reader.byte()?);
                self.server.finish(work.into(), usize::from(length) * 8);
                self.collect();
            }
            23 => {
                self.server.work = Work::ALL[reader.below(Work::ALL.len())?];
                self.server.answer_length = usize::from(reader.byte()?) * 8;
            }
            24 => self.set_number(reader)?,
            _ => {
                if let Some(device) = self.device(reader)? {
                    let device = &mut self.devices[device];
                    device.is_obliging = !device.is_obliging;
                }
            }
        }
        Some(())
    }

    /// Adds a device, which sends its first hello.
    fn connect(&mut self, reader: &mut Reader<'_>) -> Option<()> {
        let at = path(reader.byte()?);
        let number = self.devices.len();
        let mut device = Device::read(reader, number, at)?;
        if number < MAX_DEVICES {
            let flight = device.client.start(self.server.now);
            self.devices.push(device);
            for datagram in flight {
                self.send(number, datagram);
            }
        }
        Some(())
    }

    /// Delivers the datagrams in transit, then the answers to them, and so on until none
    /// are left or [`ROUNDS`] are over.
    fn settle(&mut self) {
        for _ in 0..ROUNDS {
            if self.wire.is_empty() {
                break;
            }
            for sent in std::mem::take(&mut self.wire) {
                self.arrive(sent);
            }
        }
    }

    fn deliver(&mut self, reader: &mut Reader<'_>) -> Option<()> {
        if let Some(sent) = self.take(reader)? {
            self.arrive(sent);
        }
        Some(())
    }

    /// Removes one of the datagrams in transit and returns it.
    fn take(&mut self, reader: &mut Reader<'_>) -> Option<Option<Sent>> {
        let at = self.any_on_wire(reader)?;
        Some(at.map(|at| self.wire.remove(at)))
    }

    fn any_on_wire(&self, reader: &mut Reader<'_>) -> Option<Option<usize>> {
        let number = usize::from(reader.byte()?);
        Some(number.checked_rem(self.wire.len()))
    }

    fn device(&self, reader: &mut Reader<'_>) -> Option<Option<usize>> {
        let number = usize::from(reader.byte()?);
        Some(number.checked_rem(self.devices.len()))
    }

    fn arrive(&mut self, sent: Sent) {
        if sent.to_server {
            let received = self.server.receive(sent.path, &sent.bytes);
            self.check_received(&sent.bytes, received);
            self.collect();
            return;
        }
        // Every device on this path receives the datagram, and its answers leave on the
        // same path.
        for number in 0..self.devices.len() {
            if self.devices[number].at == sent.path {
                let answers = self.devices[number].receive(self.server.now, &sent.bytes);
                for answer in answers {
                    self.send(number, answer);
                }
            }
        }
    }

    /// Checks the data that has reached the application: a device to which the session may
    /// belong has sealed it in this form, and it arrives once.
    fn check_received(&mut self, datagram: &[u8], received: Vec<Received>) {
        for Received { session, identity, data } in received {
            let maker = self.devices.iter_mut().find_map(|device| {
                let is_maker = device.may_be(identity) && device.session.is_none_or(|known| known == session);
                let record = device.records.iter().find(|record| record.is_in(datagram, &data))?;
                let number = record.number;
                is_maker.then_some((device, number))
            });
            let Some((device, number)) = maker else {
                panic!("{} bytes were delivered that nobody has sealed", data.len());
            };
            device.session = Some(session);
            assert!(device.delivered.insert(number), "record {number} was delivered twice");
        }
    }

    /// Adds the datagrams that the server has sent to those in transit.
    fn collect(&mut self) {
        for (path, bytes) in self.server.take_sent(&self.devices) {
            self.put(Sent { path, bytes, to_server: false });
        }
    }

    fn send(&mut self, device: usize, bytes: Vec<u8>) {
        let path = self.devices[device].at;
        if self.recorded.len() == MAX_DATAGRAMS {
            self.recorded.remove(0);
        }
        self.recorded.push((path, bytes.clone()));
        self.put(Sent { path, bytes, to_server: true });
    }

    fn put(&mut self, mut sent: Sent) {
        sent.bytes.truncate(MAX_DATAGRAM);
        if self.wire.len() < MAX_DATAGRAMS && !sent.bytes.is_empty() {
            self.wire.push(sent);
        }
    }

    /// Changes a datagram in transit.
    fn mutate(&mut self, reader: &mut Reader<'_>) -> Option<()> {
        let (at, how, place, value) =
            (self.any_on_wire(reader)?, reader.below(5)?, usize::from(reader.byte()?), reader.byte()?);
        let Some(at) = at else { return Some(()) };
        let bytes = &mut self.wire[at].bytes;
        // Most fields worth changing are in the first bytes, and the tag is in the last
        // ones, so a high value counts from the end.
        let place = if place < 192 { place } else { bytes.len().saturating_sub(256 - place) };
        match how {
            0 => bytes.truncate(place.max(1)),
            1 => {
                if let Some(byte) = bytes.get_mut(place) {
                    *byte ^= value.max(1);
                }
            }
            2 => {
                if let Some(byte) = bytes.get_mut(place) {
                    *byte = value;
                }
            }
            3 => bytes.insert(place.min(bytes.len()), value),
            _ => bytes.extend(std::iter::repeat_n(value, place)),
        }
        Some(())
    }

    /// Sends a recorded datagram again, from its own path or from another one.
    fn replay(&mut self, reader: &mut Reader<'_>) -> Option<()> {
        let (number, elsewhere) = (usize::from(reader.byte()?), reader.byte()?);
        if let Some((from, bytes)) = number.checked_rem(self.recorded.len()).map(|at| &self.recorded[at]) {
            let from = if elsewhere & 0x80 == 0 { *from } else { path(elsewhere) };
            self.put(Sent { path: from, bytes: bytes.clone(), to_server: true });
        }
        Some(())
    }

    /// Sends the beginning of one recorded datagram and the end of another as one
    /// datagram.
    fn splice(&mut self, reader: &mut Reader<'_>) -> Option<()> {
        let [one, other, head, tail] =
            [reader.byte()?, reader.byte()?, reader.byte()?, reader.byte()?].map(usize::from);
        let count = self.recorded.len();
        if let (Some(one), Some(other)) = (one.checked_rem(count), other.checked_rem(count)) {
            let (path, one) = &self.recorded[one];
            let other = &self.recorded[other].1;
            // Positions beyond a datagram are set to its end.
            let bytes = [&one[..head.min(one.len())], &other[tail.min(other.len())..]].concat();
            self.put(Sent { path: *path, bytes, to_server: true });
        }
        Some(())
    }

    /// Lets 1 ms to 2^18 ms pass: a power of two that depends on `exponent`.
    fn wait(&mut self, exponent: u8) {
        self.server.advance(Duration::from_millis(1 << (exponent % 19)));
        self.collect();
        for number in 0..self.devices.len() {
            for datagram in self.devices[number].client.handle_timeout(self.server.now) {
                self.send(number, datagram);
            }
        }
    }

    fn request(&mut self, reader: &mut Reader<'_>) -> Option<()> {
        let device = self.device(reader)?;
        let same = reader.byte()? % 8 == 0;
        let message = shapes::message(reader)?;
        if let Some(number) = device {
            let record = self.devices[number].ask(message, same);
            self.send(number, record);
        }
        Some(())
    }

    fn raw(&mut self, reader: &mut Reader<'_>) -> Option<()> {
        let device = self.device(reader)?;
        let data = reader.bytes()?;
        if let Some(number) = device {
            let record = self.devices[number].seal(ContentType::ApplicationData, data);
            self.send(number, record);
        }
        Some(())
    }

    /// Sends a record under the right keys that no honest device makes.
    fn hostile(&mut self, reader: &mut Reader<'_>) -> Option<()> {
        let (device, kind) = (self.device(reader)?, reader.below(6)?);
        let inside = reader.bytes()?;
        let Some(number) = device else { return Some(()) };
        let device = &mut self.devices[number];
        let record = match kind {
            0 => device.seal(ContentType::Alert, inside),
            1 => device.seal(ContentType::Handshake, inside),
            2 => device.seal(ContentType::ChangeCipherSpec, inside),
            3 => device.seal(ContentType::Tls12Cid, inside),
            // A repeated Finished, or a message that looks like one.
            4 => {
                let finished = [&[20, 0, 0, 12, 0, 3, 0, 0, 0, 0, 0, 12][..], inside].concat();
                device.seal(ContentType::Handshake, &finished)
            }
            _ => device.seal_inner(inside),
        };
        self.send(number, record);
        Some(())
    }

    /// Sets the number of a device's next record, forwards or backwards.
    fn set_number(&mut self, reader: &mut Reader<'_>) -> Option<()> {
        let (device, exponent, less) = (self.device(reader)?, reader.byte()? % 49, reader.byte()?);
        if let Some(number) = device {
            let sequence = (1u64 << exponent).saturating_sub(u64::from(less));
            self.devices[number].client.set_next_record(sequence.min((1 << 48) - 1));
        }
        Some(())
    }

    fn administrate(&mut self, reader: &mut Reader<'_>) -> Option<()> {
        let (what, which) = (reader.below(5)?, usize::from(reader.byte()?));
        self.server.administrate(what, which);
        self.collect();
        Some(())
    }

    /// Checks the end of a program: when all timers have run out, the server holds no
    /// state of any client, and then it serves a new device as usual.
    fn end(&mut self) {
        self.server.idle_out();
        self.collect();
        self.wire.clear();
        self.server.assert_no_state();

        self.devices.clear();
        self.server.forget_devices();
        self.server.keys = Keys::AtOnce;
        self.server.work = Work::AtOnce;
        self.server.answer_length = 100;
        let at = Path { peer: SocketAddr::from(([203, 0, 113, 1], 5684)), local: LocalAddress(0) };
        let mut device = Device::ordinary(at);
        let flight = device.client.start(self.server.now);
        self.devices.push(device);
        flight.into_iter().for_each(|datagram| self.send(0, datagram));
        self.settle();
        assert!(self.devices[0].client.is_established(), "the next device cannot connect");
        let record = self.devices[0].ask(shapes::plain(), false);
        self.send(0, record);
        self.settle();
        assert!(!self.devices[0].client.received.is_empty(), "the next device gets no answer");
    }
}
