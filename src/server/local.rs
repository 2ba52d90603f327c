//! The server's own addresses, and the numbers that stand for them in a `Path`. An answer leaves
//! from the address that the device sent to, because a device drops datagrams from any other
//! address (RFC 6347 §4.1.1, RFC 7252 §5.3.2). All workers use the same numbers, so a datagram
//! keeps its path when it is forwarded to another worker.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nix::{
    libc,
    sys::socket::{
        ControlMessageOwned, RecvMsg, SockaddrLike, setsockopt,
        sockopt::{Ipv4PacketInfo, Ipv6RecvPacketInfo},
    },
};
use socket2::SockRef;

use crate::dtls::LocalAddress;

/// Makes a socket that is bound to a wildcard address report the address that each datagram was
/// sent to. Returns `false` for a socket that is bound to one address, because it always answers
/// from that address.
pub(super) fn report_destination(socket: &impl AsFd, bound: SocketAddr) -> io::Result<bool> {
    match bound {
        _ if !bound.ip().is_unspecified() => return Ok(false),
        SocketAddr::V4(_) => setsockopt(socket, Ipv4PacketInfo, &true)?,
        SocketAddr::V6(_) => {
            // For an IPv4 datagram, this option reports the IPv4-mapped address.
            setsockopt(socket, Ipv6RecvPacketInfo, &true)?;
            // If a whole prefix is routed to the host, the addresses of the prefix are assigned to
            // no interface. Without this option, such an address cannot be a source address.
            SockRef::from(socket).set_freebind_v6(true)?;
        }
    }
    Ok(true)
}

/// Maximum number of addresses that get a number. Only a host to which a whole prefix is routed has
/// more addresses. A datagram to an address without a number is answered from an address that the
/// system chooses.
const MAX_ADDRESSES: usize = 4096;

/// An address of the server: a socket and, if the socket is bound to a wildcard, one of
/// the host's addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Local {
    /// Index of the socket in `listen`.
    pub(super) socket: u16,
    /// Source address for answers. `None` if the socket has only one address, or if the
    /// system chooses the address.
    pub(super) source: Option<Source>,
}

/// Source address of datagrams, in the form that the socket's address family needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Source {
    address: IpAddr,
    /// Index of the network interface of a link-local address; 0 for any other address.
    interface: u32,
}

/// A [`Source`] in the form of the system's API.
pub(super) enum PacketInfo {
    V4(libc::in_pktinfo),
    V6(libc::in6_pktinfo),
}

impl Source {
    /// Returns the address that a datagram was sent to, or `None` if it cannot be a source
    /// address, such as a multicast address.
    pub(super) fn of<S: SockaddrLike>(message: &RecvMsg<'_, '_, S>) -> Option<Self> {
        message.cmsgs().ok()?.find_map(|control| match control {
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                let address = Ipv4Addr::from_bits(u32::from_be(info.ipi_spec_dst.s_addr));
                Self::new(address.into(), 0)
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => {
                Self::new(Ipv6Addr::from(info.ipi6_addr.s6_addr).into(), info.ipi6_ifindex)
            }
            _ => None,
        })
    }

    fn new(address: IpAddr, interface: u32) -> Option<Self> {
        if address.is_unspecified() || address.is_multicast() {
            return None;
        }
        let is_link_local = matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
        // Only a link-local address needs its interface. For any other address, the system may send
        // the answer through a different interface than the request came from.
        Some(Self { address, interface: if is_link_local { interface } else { 0 } })
    }

    /// Returns the control data to send with a datagram.
    pub(super) fn packet_info(self) -> PacketInfo {
        match self.address {
            IpAddr::V4(address) => PacketInfo::V4(libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr { s_addr: address.to_bits().to_be() },
                ipi_addr: libc::in_addr { s_addr: 0 },
            }),
            IpAddr::V6(address) => PacketInfo::V6(libc::in6_pktinfo {
                ipi6_addr: libc::in6_addr { s6_addr: address.octets() },
                ipi6_ifindex: self.interface,
            }),
        }
    }
}

/// Numbers of the server's addresses. A number is assigned once and never reused.
#[derive(Clone)]
pub(super) struct Numbers(Arc<Mutex<Assigned>>);

struct Assigned {
    addresses: Vec<Local>,
    numbers: HashMap<Local, LocalAddress>,
}

impl Numbers {
    /// Creates the numbers. The addresses of the first `sockets` sockets have the sockets' indexes as
    /// their numbers.
    pub(super) fn new(sockets: u16) -> Self {
        let addresses: Vec<Local> = (0..sockets).map(|socket| Local { socket, source: None }).collect();
        let numbers = addresses.iter().map(|&local| (local, LocalAddress(local.socket))).collect();
        Self(Arc::new(Mutex::new(Assigned { addresses, numbers })))
    }

    /// Returns the number of an address. A new address gets the next number. Returns
    /// `None` when all numbers are assigned.
    fn assign(&self, local: Local) -> Option<LocalAddress> {
        let assigned = &mut *self.lock();
        if let Some(&number) = assigned.numbers.get(&local) {
            return Some(number);
        }
        if assigned.addresses.len() >= MAX_ADDRESSES {
            return None;
        }
        let number = LocalAddress(u16::try_from(assigned.addresses.len()).ok()?);
        assigned.addresses.push(local);
        assigned.numbers.insert(local, number);
        if assigned.addresses.len() == MAX_ADDRESSES {
            tracing::warn!(
                addresses = MAX_ADDRESSES,
                "too many local addresses in use: requests to further addresses are answered from an \
                 address that the system chooses; set `listen` to the addresses that devices use"
            );
        }
        Some(number)
    }

    /// Returns the address with this number. `known` is the caller's copy of the addresses. The
    /// copy is extended if it does not contain the number yet.
    pub(super) fn address(&self, number: LocalAddress, known: &mut Vec<Local>) -> Local {
        let index = usize::from(number.0);
        if index >= known.len() {
            known.extend_from_slice(self.lock().addresses.get(known.len()..).unwrap_or_default());
        }
        known.get(index).copied().unwrap_or(Local { socket: 0, source: None })
    }

    fn lock(&self) -> MutexGuard<'_, Assigned> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One worker's copy of the numbers that it has seen, so that the lock is taken only once
/// for each new address.
pub(super) struct Met {
    all: Numbers,
    numbers: HashMap<Local, LocalAddress>,
    latest: (Local, LocalAddress),
}

impl Met {
    pub(super) fn new(all: Numbers) -> Self {
        let first = (Local { socket: 0, source: None }, LocalAddress(0));
        Self { all, numbers: HashMap::new(), latest: first }
    }

    /// Returns the number of an address.
    pub(super) fn number(&mut self, local: Local) -> LocalAddress {
        if local == self.latest.0 {
            return self.latest.1;
        }
        let number = match self.numbers.get(&local) {
            Some(&number) => number,
            None => {
                // An address that gets no number is not kept in the map, because the number of such
                // addresses is unlimited.
                let Some(number) = self.all.assign(local) else { return LocalAddress(local.socket) };
                self.numbers.insert(local, number);
                number
            }
        };
        self.latest = (local, number);
        number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(socket: u16, address: &str) -> Local {
        Local { socket, source: Source::new(address.parse().unwrap(), 3) }
    }

    #[test]
    fn an_address_has_the_same_number_at_each_worker() {
        let numbers = Numbers::new(2);
        let (mut one, mut two) = (Met::new(numbers.clone()), Met::new(numbers.clone()));
        let addresses = [
            Local { socket: 0, source: None },
            Local { socket: 1, source: None },
            local(1, "192.0.2.1"),
            local(1, "2001:db8::1"),
            local(0, "192.0.2.1"),
        ];
        let at_one = addresses.map(|local| one.number(local));
        assert_eq!(at_one, [0, 1, 2, 3, 4].map(LocalAddress));
        let mut at_two = addresses;
        at_two.reverse();
        assert_eq!(at_two.map(|local| two.number(local)), [4, 3, 2, 1, 0].map(LocalAddress));
        let mut known = Vec::new();
        assert_eq!(at_one.map(|number| numbers.address(number, &mut known)), addresses);
        assert_eq!(known.len(), addresses.len());
    }

    #[test]
    fn numbers_are_bounded_and_then_the_system_chooses() {
        let numbers = Numbers::new(1);
        let mut met = Met::new(numbers.clone());
        for address in 0..10_000 {
            met.number(local(0, &Ipv4Addr::from_bits(0x0a00_0000 + address).to_string()));
        }
        assert_eq!((numbers.lock().addresses.len(), met.numbers.len()), (MAX_ADDRESSES, MAX_ADDRESSES - 1));
        assert_eq!(met.number(local(0, "192.0.2.1")), LocalAddress(0));
        assert_eq!(met.number(local(0, "10.0.0.0")), LocalAddress(1), "those that have a number keep it");
    }

    #[test]
    fn only_a_link_local_address_is_bound_to_its_interface() {
        let interface = |address: &str| local(0, address).source.map(|source| source.interface);
        assert_eq!(interface("fe80::1"), Some(3));
        assert_eq!(interface("2001:db8::1"), Some(0));
        assert_eq!(interface("ff02::1"), None, "a multicast address is no source");
        assert_eq!(interface("0.0.0.0"), None);
    }
}
