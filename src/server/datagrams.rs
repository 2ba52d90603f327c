//! Sends and receives datagrams in groups: one system call handles up to 32 datagrams. Under load,
//! system calls are half the cost of serving a device, so several datagrams share each call.

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket},
    os::fd::AsRawFd,
};

use nix::{
    cmsg_space, libc,
    sys::socket::{
        ControlMessage, MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg as sendmmsg_from, sendmsg,
    },
};
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, SocketAddrAny, sendmmsg, sendto};

use super::local::{self, Local, Met, Numbers, PacketInfo, Source};
use crate::dtls::{self, LocalAddress, Path};

/// Maximum number of datagrams per system call.
pub(super) const GROUP: usize = 32;
/// Length of the longest datagram received or sent, in bytes. No device sends a longer datagram. If
/// a longer datagram arrives, it is truncated here, and the record layer drops it.
const MAX_DATAGRAM: usize = 2048;

/// Returns a control buffer for the IPv4 address that a datagram was sent to.
fn v4_control() -> Vec<u8> {
    cmsg_space!(libc::in_pktinfo)
}

/// Returns a control buffer for the IPv6 or IPv4-mapped address that a datagram was sent
/// to.
pub(super) fn v6_control() -> Vec<u8> {
    cmsg_space!(libc::in6_pktinfo)
}

/// A socket to receive from. Each socket has message headers of its own. The system leaves lengths
/// in the headers that depend on the address family, and these lengths are wrong for a socket of
/// the other family.
pub(super) struct Listener {
    socket: UdpSocket,
    number: u16,
    headers: MultiHeaders<SockaddrStorage>,
    reports_destination: bool,
}

impl Listener {
    /// Wraps a bound socket; `number` is its index in `listen`.
    pub(super) fn new(socket: UdpSocket, number: u16) -> io::Result<Self> {
        let address = socket.local_addr()?;
        let reports_destination = local::report_destination(&socket, address)?;
        let control =
            reports_destination.then(|| if address.is_ipv4() { v4_control() } else { v6_control() });
        Ok(Self { socket, number, headers: MultiHeaders::preallocate(GROUP, control), reports_destination })
    }
}

/// Buffers for received datagrams.
pub(super) struct Incoming {
    buffers: Vec<[u8; MAX_DATAGRAM]>,
    received: Vec<(Path, usize)>,
    /// Index of the next datagram to take.
    next: usize,
    numbers: Met,
}

impl Incoming {
    pub(super) fn new(numbers: Numbers) -> Self {
        Self {
            buffers: vec![[0; MAX_DATAGRAM]; GROUP],
            received: Vec::with_capacity(GROUP),
            next: 0,
            numbers: Met::new(numbers),
        }
    }

    /// Replaces the previous datagrams with up to `most` newly arrived datagrams. Returns the
    /// number of new datagrams, which may be 0.
    pub(super) fn receive(&mut self, listener: &mut Listener, most: usize) -> io::Result<usize> {
        self.received.clear();
        self.next = 0;
        let Listener { socket, number, headers, reports_destination } = listener;
        let mut slices: Vec<[IoSliceMut<'_>; 1]> =
            self.buffers.iter_mut().take(most).map(|buffer| [IoSliceMut::new(buffer)]).collect();
        let flags = MsgFlags::MSG_DONTWAIT;
        match recvmmsg(socket.as_raw_fd(), headers, slices.iter_mut(), flags, None) {
            Ok(messages) => {
                for message in messages {
                    // A datagram without a sender cannot be answered. It keeps its slot,
                    // but with a length of 0.
                    let from = message.address.as_ref().and_then(address_of);
                    let length = if from.is_some() { message.bytes } else { 0 };
                    let source = if *reports_destination { Source::of(&message) } else { None };
                    let local = self.numbers.number(Local { socket: *number, source });
                    self.received.push((Path { peer: from.unwrap_or_else(no_address), local }, length));
                }
                Ok(self.received.len())
            }
            Err(nix::Error::EAGAIN | nix::Error::EINTR) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns the number of datagrams received but not taken yet.
    pub(super) fn waiting(&self) -> usize {
        self.received.len() - self.next
    }

    /// Takes the next of the received datagrams, with its path.
    pub(super) fn next(&mut self) -> Option<(Path, &mut [u8])> {
        let &(path, length) = self.received.get(self.next)?;
        let buffer = self.buffers.get_mut(self.next)?;
        self.next += 1;
        Some((path, buffer.get_mut(..length)?))
    }
}

pub(super) fn address_of(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = || address.as_sockaddr_in().map(|&address| SocketAddrV4::from(address).into());
    let v6 = || address.as_sockaddr_in6().map(|&address| SocketAddrV6::from(address).into());
    v4().or_else(v6)
}

fn no_address() -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], 0))
}

/// A datagram that waits to be sent.
struct Waiting {
    to: SocketAddr,
    from: LocalAddress,
    /// Offset in the buffer, in bytes.
    start: usize,
    length: usize,
}

impl Waiting {
    fn bytes<'b>(&self, buffer: &'b [u8]) -> [IoSlice<'b>; 1] {
        [IoSlice::new(buffer.get(self.start..self.start + self.length).unwrap_or_default())]
    }
}

/// Collects outgoing datagrams in one buffer and sends them together.
pub(super) struct Outgoing {
    buffer: Vec<u8>,
    datagrams: Vec<Waiting>,
    sender: Sender,
}

/// Sockets to send from, and the data for setting a source address.
struct Sender {
    sockets: Vec<UdpSocket>,
    numbers: Numbers,
    known: Vec<Local>,
    v4_headers: MultiHeaders<SockaddrStorage>,
    v6_headers: MultiHeaders<SockaddrStorage>,
    dropped: u64,
}

impl Outgoing {
    /// Creates an empty buffer. The sockets are in the order of the addresses under `listen`
    /// in the configuration.
    pub(super) fn new(sockets: Vec<UdpSocket>, numbers: Numbers) -> Self {
        let sender = Sender {
            sockets,
            numbers,
            known: Vec::new(),
            v4_headers: MultiHeaders::preallocate(GROUP, Some(v4_control())),
            v6_headers: MultiHeaders::preallocate(GROUP, Some(v6_control())),
            dropped: 0,
        };
        let buffer = Vec::with_capacity(GROUP * MAX_DATAGRAM);
        Self { buffer, datagrams: Vec::with_capacity(GROUP), sender }
    }

    /// Returns the number of datagrams that the system did not accept. These datagrams are lost, so
    /// their receivers will repeat their requests.
    pub(super) fn dropped(&self) -> u64 {
        self.sender.dropped
    }

    /// Sends all waiting datagrams.
    pub(super) fn flush(&mut self) {
        // One system call can send from only one address. The sort is stable, so datagrams
        // on one path stay in order.
        self.datagrams.sort_by_key(|datagram| datagram.from);
        for run in self.datagrams.chunk_by(|one, next| one.from == next.from) {
            self.sender.send(run, &self.buffer);
        }
        self.datagrams.clear();
        self.buffer.clear();
    }
}

impl Sender {
    /// Sends datagrams that all leave from the same address.
    fn send(&mut self, run: &[Waiting], buffer: &[u8]) {
        let Some(first) = run.first() else { return };
        let Local { socket, source } = self.numbers.address(first.from, &mut self.known);
        let Some(socket) = self.sockets.get(usize::from(socket)) else { return };
        let info = source.map(Source::packet_info);
        if run.len() == 1 {
            self.dropped += u64::from(!send_one(socket, first, buffer, info.as_ref()));
            return;
        }
        let slices: Vec<[IoSlice<'_>; 1]> = run.iter().map(|datagram| datagram.bytes(buffer)).collect();
        self.dropped += match info {
            None => send(socket, run, &slices),
            Some(PacketInfo::V4(info)) => {
                let control = [ControlMessage::Ipv4PacketInfo(&info)];
                send_from(socket, run, &slices, &control, &mut self.v4_headers)
            }
            Some(PacketInfo::V6(info)) => {
                let control = [ControlMessage::Ipv6PacketInfo(&info)];
                send_from(socket, run, &slices, &control, &mut self.v6_headers)
            }
        };
    }
}

/// Sends one datagram, at a lower cost than a group. Returns whether the system accepted it.
fn send_one(socket: &UdpSocket, datagram: &Waiting, buffer: &[u8], from: Option<&PacketInfo>) -> bool {
    let slices = datagram.bytes(buffer);
    let control = from.map(|info| match info {
        PacketInfo::V4(info) => ControlMessage::Ipv4PacketInfo(info),
        PacketInfo::V6(info) => ControlMessage::Ipv6PacketInfo(info),
    });
    loop {
        let sent = match &control {
            None => sendto(socket, &slices[0], SendFlags::DONTWAIT, &datagram.to).map_err(io::Error::from),
            Some(control) => {
                let (control, to) = (std::slice::from_ref(control), SockaddrStorage::from(datagram.to));
                sendmsg(socket.as_raw_fd(), &slices, control, MsgFlags::MSG_DONTWAIT, Some(&to))
                    .map_err(io::Error::from)
            }
        };
        match sent {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // For the possible errors, see `send` and `send_from`.
            sent => return sent.is_ok(),
        }
    }
}

/// Sends datagrams from the socket's address or, for a socket on a wildcard, from an address that
/// the system chooses. Returns the number of datagrams dropped.
fn send(socket: &UdpSocket, run: &[Waiting], slices: &[[IoSlice<'_>; 1]]) -> u64 {
    let addresses: Vec<SocketAddrAny> = run.iter().map(|datagram| datagram.to.into()).collect();
    let mut controls: [SendAncillaryBuffer<'_, '_, '_>; GROUP] = Default::default();
    let mut messages: Vec<MMsgHdr<'_>> = addresses
        .iter()
        .zip(slices)
        .zip(&mut controls)
        .map(|((to, slice), control)| MMsgHdr::new_with_addr(to, slice, control))
        .collect();
    let (mut waiting, mut dropped) = (&mut messages[..], 0);
    while !waiting.is_empty() {
        let sent = match sendmmsg(socket, waiting, SendFlags::DONTWAIT) {
            Ok(sent) => sent.max(1),
            Err(rustix::io::Errno::INTR) => continue,
            // The first datagram cannot be sent, because its destination is unreachable or the
            // socket's buffer is full. It is dropped, and sending continues with the next datagram.
            Err(_) => {
                dropped += 1;
                1
            }
        };
        waiting = waiting.get_mut(sent..).unwrap_or_default();
    }
    dropped
}

/// Sends datagrams from the address in `control`. Returns the number of datagrams dropped.
fn send_from(
    socket: &UdpSocket,
    run: &[Waiting],
    slices: &[[IoSlice<'_>; 1]],
    control: &[ControlMessage<'_>; 1],
    headers: &mut MultiHeaders<SockaddrStorage>,
) -> u64 {
    let addresses: Vec<Option<SockaddrStorage>> =
        run.iter().map(|datagram| Some(datagram.to.into())).collect();
    let (mut waiting, mut addresses, mut dropped) = (slices, &addresses[..], 0);
    while !waiting.is_empty() {
        let flags = MsgFlags::MSG_DONTWAIT;
        let sent = match sendmmsg_from(socket.as_raw_fd(), headers, waiting, addresses, control, flags) {
            Ok(sent) => sent.count().max(1),
            Err(nix::Error::EINTR) => continue,
            // The first datagram cannot be sent: its destination is unreachable, the socket's
            // buffer is full, or the source address no longer belongs to the host.
            Err(_) => {
                dropped += 1;
                1
            }
        };
        waiting = waiting.get(sent..).unwrap_or_default();
        addresses = addresses.get(sent..).unwrap_or_default();
    }
    dropped
}

impl dtls::Outbox for Outgoing {
    fn push(&mut self, path: Path, datagram: &[u8]) {
        if self.datagrams.len() == GROUP {
            self.flush();
        }
        let (start, length) = (self.buffer.len(), datagram.len());
        self.buffer.extend_from_slice(datagram);
        self.datagrams.push(Waiting { to: path.peer, from: path.local, start, length });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtls::Outbox;

    #[test]
    fn one_datagram_and_several_are_sent_and_those_that_cannot_be_sent_are_counted() {
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        receiver.set_nonblocking(true).unwrap();
        let mut outgoing = Outgoing::new(vec![sender], Numbers::new(1));
        // Nothing can be sent to port 0.
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let there = receiver.local_addr().unwrap();
        for (to, dropped) in [
            (&[there][..], 0),
            (&[nowhere][..], 1),
            (&[there, nowhere, there][..], 2),
            (&[nowhere, there][..], 3),
        ] {
            to.iter().for_each(|&to| outgoing.push(Path::from(to), to.to_string().as_bytes()));
            outgoing.flush();
            assert_eq!(outgoing.dropped(), dropped);
            let mut buffer = [0; 100];
            let received = std::iter::from_fn(|| receiver.recv(&mut buffer).ok()).count();
            assert_eq!(received, to.iter().filter(|&&to| to == there).count());
        }
    }
}
