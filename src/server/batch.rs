//! Datagrams by the batch: one system call receives or sends up to 32. At load
//! the system calls are half of what a provisioning costs, so they are shared.

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket},
    os::fd::AsRawFd,
};

use nix::{
    cmsg_space, libc,
    sys::socket::{
        ControlMessage, MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg as sendmmsg_from,
    },
};
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, SocketAddrAny, sendmmsg};

use super::local::{self, Local, Met, Numbers, PacketInfo, Source};
use crate::dtls::{self, LocalAddress, Path};

/// Datagrams a system call.
pub(super) const BATCH: usize = 32;
/// Longest datagram received or sent, in bytes. What is longer than any device's
/// is cut, and then dropped by the record layer.
const MAX_DATAGRAM: usize = 2048;

/// Room for the address that a datagram was sent to.
fn v4_control() -> Vec<u8> {
    cmsg_space!(libc::in_pktinfo)
}

/// The same for IPv6, and for IPv4 in mapped addresses.
pub(super) fn v6_control() -> Vec<u8> {
    cmsg_space!(libc::in6_pktinfo)
}

/// A socket to receive from. The system shortens the headers to what it has filled in,
/// which differs by the address family, so each socket has its own.
pub(super) struct Listener {
    socket: UdpSocket,
    number: u16,
    headers: MultiHeaders<SockaddrStorage>,
    tells_address: bool,
}

impl Listener {
    /// Takes a bound socket, the one with this index in `listen`.
    pub(super) fn new(socket: UdpSocket, number: u16) -> io::Result<Self> {
        let address = socket.local_addr()?;
        let tells_address = local::have_address_told(&socket, address)?;
        let control = tells_address.then(|| if address.is_ipv4() { v4_control() } else { v6_control() });
        Ok(Self { socket, number, headers: MultiHeaders::preallocate(BATCH, control), tells_address })
    }
}

/// Receives.
pub(super) struct Incoming {
    buffers: Vec<[u8; MAX_DATAGRAM]>,
    received: Vec<(Path, usize)>,
    /// Index of the next of them to be taken.
    next: usize,
    numbers: Met,
}

impl Incoming {
    pub(super) fn new(numbers: Numbers) -> Self {
        Self {
            buffers: vec![[0; MAX_DATAGRAM]; BATCH],
            received: Vec::with_capacity(BATCH),
            next: 0,
            numbers: Met::new(numbers),
        }
    }

    /// Receives what has arrived, but at most so many, in place of the batch before;
    /// returns the number of datagrams, 0 when there is none.
    pub(super) fn receive(&mut self, listener: &mut Listener, most: usize) -> io::Result<usize> {
        self.received.clear();
        self.next = 0;
        let Listener { socket, number, headers, tells_address } = listener;
        let mut slices: Vec<[IoSliceMut<'_>; 1]> =
            self.buffers.iter_mut().take(most).map(|buffer| [IoSliceMut::new(buffer)]).collect();
        let flags = MsgFlags::MSG_DONTWAIT;
        match recvmmsg(socket.as_raw_fd(), headers, slices.iter_mut(), flags, None) {
            Ok(messages) => {
                for message in messages {
                    // A datagram without a sender cannot be answered: its place
                    // is kept, with nothing in it.
                    let from = message.address.as_ref().and_then(address_of);
                    let length = if from.is_some() { message.bytes } else { 0 };
                    let source = if *tells_address { Source::of(&message) } else { None };
                    let local = self.numbers.number(Local { socket: *number, source });
                    self.received.push((Path { peer: from.unwrap_or_else(nobody), local }, length));
                }
                Ok(self.received.len())
            }
            Err(nix::Error::EAGAIN | nix::Error::EINTR) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    /// Number of datagrams received and not yet taken.
    pub(super) fn waiting(&self) -> usize {
        self.received.len() - self.next
    }

    /// Takes the next datagram of those received, and the way that it came.
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

fn nobody() -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], 0))
}

/// A datagram that waits to be sent.
struct Waiting {
    to: SocketAddr,
    from: LocalAddress,
    /// Place in the buffer.
    start: usize,
    length: usize,
}

impl Waiting {
    fn bytes<'b>(&self, buffer: &'b [u8]) -> [IoSlice<'b>; 1] {
        [IoSlice::new(buffer.get(self.start..self.start + self.length).unwrap_or_default())]
    }
}

/// Sends: datagrams are put side by side and leave together.
pub(super) struct Outgoing {
    buffer: Vec<u8>,
    datagrams: Vec<Waiting>,
    sender: Sender,
}

/// Sockets to send from, and what is needed to name a source address.
struct Sender {
    sockets: Vec<UdpSocket>,
    numbers: Numbers,
    known: Vec<Local>,
    v4_headers: MultiHeaders<SockaddrStorage>,
    v6_headers: MultiHeaders<SockaddrStorage>,
    dropped: u64,
}

impl Outgoing {
    /// The sockets are in the order of `listen`.
    pub(super) fn new(sockets: Vec<UdpSocket>, numbers: Numbers) -> Self {
        let sender = Sender {
            sockets,
            numbers,
            known: Vec::new(),
            v4_headers: MultiHeaders::preallocate(BATCH, Some(v4_control())),
            v6_headers: MultiHeaders::preallocate(BATCH, Some(v6_control())),
            dropped: 0,
        };
        let buffer = Vec::with_capacity(BATCH * MAX_DATAGRAM);
        Self { buffer, datagrams: Vec::with_capacity(BATCH), sender }
    }

    /// Datagrams that the system did not take. Their peers ask again.
    pub(super) fn dropped(&self) -> u64 {
        self.sender.dropped
    }

    /// Sends what is waiting.
    pub(super) fn flush(&mut self) {
        // A system call sends from one address. The order of datagrams on one path
        // stays as it is.
        self.datagrams.sort_by_key(|datagram| datagram.from);
        for run in self.datagrams.chunk_by(|one, next| one.from == next.from) {
            self.sender.send(run, &self.buffer);
        }
        self.datagrams.clear();
        self.buffer.clear();
    }
}

impl Sender {
    /// Sends datagrams that leave from one address.
    fn send(&mut self, run: &[Waiting], buffer: &[u8]) {
        let Some(first) = run.first() else { return };
        let Local { socket, source } = self.numbers.address(first.from, &mut self.known);
        let Some(socket) = self.sockets.get(usize::from(socket)) else { return };
        let slices: Vec<[IoSlice<'_>; 1]> = run.iter().map(|datagram| datagram.bytes(buffer)).collect();
        self.dropped += match source.map(Source::packet_info) {
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

/// Sends from the socket's address, or the one that the system chooses; returns how
/// many were dropped.
fn send(socket: &UdpSocket, run: &[Waiting], slices: &[[IoSlice<'_>; 1]]) -> u64 {
    let addresses: Vec<SocketAddrAny> = run.iter().map(|datagram| datagram.to.into()).collect();
    let mut controls: [SendAncillaryBuffer<'_, '_, '_>; BATCH] = Default::default();
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
            // The first of them cannot be sent: its address is unreachable,
            // or the socket's buffer is full. The others may be.
            Err(_) => {
                dropped += 1;
                1
            }
        };
        waiting = waiting.get_mut(sent..).unwrap_or_default();
    }
    dropped
}

/// Does the same, from the address in `control`.
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
            // As above; or the address is no longer one of the host's.
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
        if self.datagrams.len() == BATCH {
            self.flush();
        }
        let (start, length) = (self.buffer.len(), datagram.len());
        self.buffer.extend_from_slice(datagram);
        self.datagrams.push(Waiting { to: path.peer, from: path.local, start, length });
    }
}
