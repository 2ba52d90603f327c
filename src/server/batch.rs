//! Datagrams by the batch: one system call receives or sends up to 32. At load
//! the system calls are half of what a provisioning costs, so they are shared.

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket},
    os::fd::AsRawFd,
};

use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg};
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, SocketAddrAny, sendmmsg};

use crate::dtls;

/// Datagrams a system call.
pub(super) const BATCH: usize = 32;
/// Longest datagram received or sent, in bytes. What is longer than any device's
/// is cut, and then dropped by the record layer.
const MAX_DATAGRAM: usize = 2048;

/// Receives.
pub(super) struct Incoming {
    headers: MultiHeaders<SockaddrStorage>,
    buffers: Vec<[u8; MAX_DATAGRAM]>,
    received: Vec<(SocketAddr, usize)>,
}

impl Incoming {
    pub(super) fn new() -> Self {
        Self {
            headers: MultiHeaders::preallocate(BATCH, None),
            buffers: vec![[0; MAX_DATAGRAM]; BATCH],
            received: Vec::with_capacity(BATCH),
        }
    }

    /// Takes what has arrived; answers with how many datagrams, 0 when there is
    /// none.
    pub(super) fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        self.received.clear();
        let mut slices: Vec<[IoSliceMut<'_>; 1]> =
            self.buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
        let flags = MsgFlags::MSG_DONTWAIT;
        match recvmmsg(socket.as_raw_fd(), &mut self.headers, slices.iter_mut(), flags, None) {
            Ok(messages) => {
                for message in messages {
                    // A datagram without a sender cannot be answered: its place
                    // is kept, with nothing in it.
                    let from = message.address.as_ref().and_then(address_of);
                    let length = if from.is_some() { message.bytes } else { 0 };
                    self.received.push((from.unwrap_or_else(nobody), length));
                }
                Ok(self.received.len())
            }
            Err(nix::Error::EAGAIN | nix::Error::EINTR) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    /// The datagram at `index` of those just received, and where it came from.
    pub(super) fn datagram(&mut self, index: usize) -> Option<(SocketAddr, &mut [u8])> {
        let &(from, length) = self.received.get(index)?;
        Some((from, self.buffers.get_mut(index)?.get_mut(..length)?))
    }
}

fn address_of(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = || address.as_sockaddr_in().map(|&address| SocketAddrV4::from(address).into());
    let v6 = || address.as_sockaddr_in6().map(|&address| SocketAddrV6::from(address).into());
    v4().or_else(v6)
}

fn nobody() -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], 0))
}

/// Sends: datagrams are put side by side and leave together.
pub(super) struct Outgoing {
    buffer: Vec<u8>,
    datagrams: Vec<(SocketAddrAny, usize)>,
    socket: UdpSocket,
    dropped: u64,
}

impl Outgoing {
    pub(super) fn new(socket: UdpSocket) -> Self {
        let buffer = Vec::with_capacity(BATCH * MAX_DATAGRAM);
        Self { buffer, datagrams: Vec::with_capacity(BATCH), socket, dropped: 0 }
    }

    /// Datagrams that the system did not take. Their peers ask again.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Sends what is waiting.
    pub(super) fn flush(&mut self) {
        let mut rest = &self.buffer[..];
        let slices: Vec<[IoSlice<'_>; 1]> = self
            .datagrams
            .iter()
            .filter_map(|&(_, length)| {
                let (datagram, after) = rest.split_at_checked(length)?;
                rest = after;
                Some([IoSlice::new(datagram)])
            })
            .collect();
        let mut controls: [SendAncillaryBuffer<'_, '_, '_>; BATCH] = Default::default();
        let mut messages: Vec<MMsgHdr<'_>> = self
            .datagrams
            .iter()
            .zip(&slices)
            .zip(&mut controls)
            .map(|(((to, _), slice), control)| MMsgHdr::new_with_addr(to, slice, control))
            .collect();
        let mut waiting = &mut messages[..];
        while !waiting.is_empty() {
            let sent = match sendmmsg(&self.socket, waiting, SendFlags::DONTWAIT) {
                Ok(sent) => sent.max(1),
                Err(rustix::io::Errno::INTR) => continue,
                // The first of them cannot be sent: its address is unreachable,
                // or the socket's buffer is full. The others may be.
                Err(_) => {
                    self.dropped += 1;
                    1
                }
            };
            waiting = waiting.get_mut(sent..).unwrap_or_default();
        }
        drop(messages);
        self.datagrams.clear();
        self.buffer.clear();
    }
}

impl dtls::Outbox for Outgoing {
    fn push(&mut self, path: dtls::Path, datagram: &[u8]) {
        if self.datagrams.len() == BATCH {
            self.flush();
        }
        self.buffer.extend_from_slice(datagram);
        self.datagrams.push((path.peer.into(), datagram.len()));
    }
}
