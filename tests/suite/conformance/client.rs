//! The tester in ETSI's test descriptions: builds messages, sends them over UDP, and checks each
//! received message.

use std::{
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use coap_lite::{CoapOption, MessageClass, MessageType, Packet, RequestType, ResponseType};

pub struct Client {
    socket: UdpSocket,
    next: u16,
}

/// NUM, M and SZX of a Block option.
pub type Block = (u32, bool, u8);

impl Client {
    pub fn of(server: SocketAddr) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        socket.connect(server).expect("connected");
        Self { socket, next: 0x1000 }
    }

    /// Returns a request with a new message ID and a new token.
    pub fn request(&mut self, kind: MessageType, method: RequestType, path: &str) -> Packet {
        self.next += 1;
        let mut packet = Packet::new();
        packet.header.set_type(kind);
        packet.header.message_id = self.next;
        packet.header.code = MessageClass::Request(method);
        packet.set_token([b"tk".as_slice(), &self.next.to_be_bytes()].concat());
        for segment in path.split('/').filter(|segment| !segment.is_empty()) {
            packet.add_option(CoapOption::UriPath, segment.into());
        }
        packet
    }

    pub fn con(&mut self, method: RequestType, path: &str) -> Packet {
        self.request(MessageType::Confirmable, method, path)
    }

    pub fn send(&self, packet: &Packet) {
        self.send_bytes(&packet.to_bytes_unlimited().expect("a message"));
    }

    pub fn send_bytes(&self, bytes: &[u8]) {
        self.socket.send(bytes).expect("loopback takes it");
    }

    /// Returns the next message, which must arrive within 5 s.
    pub fn receive(&self) -> Packet {
        let bytes = self.receive_within(Duration::from_secs(5)).expect("an answer within 5 s");
        Packet::from_bytes(&bytes).expect("a message")
    }

    pub fn receive_within(&self, time: Duration) -> Option<Vec<u8>> {
        self.socket.set_read_timeout(Some(time)).expect("a time-out");
        let mut buffer = [0; 2048];
        let length = self.socket.recv(&mut buffer).ok()?;
        Some(buffer[..length].to_vec())
    }

    /// Sends a confirmable request and checks the requirements on every piggybacked answer.
    pub fn exchange(&self, request: &Packet) -> Packet {
        self.send(request);
        let response = self.receive();
        assert_eq!(response.header.get_type(), MessageType::Acknowledgement);
        assert_eq!(response.header.message_id, request.header.message_id);
        assert_eq!(response.get_token(), request.get_token());
        response
    }

    /// Sends a non-confirmable request and checks the requirements on every answer to it.
    pub fn exchange_non(&self, request: &Packet) -> Packet {
        self.send(request);
        let response = self.receive();
        assert_eq!(response.header.get_type(), MessageType::NonConfirmable);
        assert_eq!(response.get_token(), request.get_token());
        response
    }

    /// Acknowledges a confirmable response.
    pub fn acknowledge(&self, response: &Packet) {
        assert_eq!(response.header.get_type(), MessageType::Confirmable);
        let [high, low] = response.header.message_id.to_be_bytes();
        self.send_bytes(&[0x60, 0, high, low]);
    }
}

pub fn is(response: &Packet, code: ResponseType) {
    assert_eq!(response.header.code, MessageClass::Response(code));
}

/// Returns the value of a numeric option.
pub fn number(packet: &Packet, option: CoapOption) -> Option<u32> {
    let value = packet.get_option(option)?.front()?;
    Some(value.iter().fold(0, |number, &byte| number << 8 | u32::from(byte)))
}

pub fn block(packet: &Packet, option: CoapOption) -> Option<Block> {
    let bits = number(packet, option)?;
    Some((bits >> 4, bits & 8 != 0, (bits & 7) as u8))
}

pub fn set_block(packet: &mut Packet, option: CoapOption, (number, more, size_exponent): Block) {
    let bits = number << 4 | u32::from(more) << 3 | u32::from(size_exponent);
    packet.add_option(option, bits.to_be_bytes()[1..].to_vec());
}

/// Returns the texts of an option that may occur several times.
pub fn texts(packet: &Packet, option: CoapOption) -> Vec<String> {
    let values = packet.get_option(option).into_iter().flatten();
    values.map(|value| String::from_utf8(value.clone()).expect("text")).collect()
}
