//! Messages: which bytes are one, what of a request the endpoint hands on, and
//! how an answer is put together.

use coap_lite::{CoapOption, MessageClass, MessageType, Packet, RequestType};
use zeroize::{Zeroize, Zeroizing};

use super::{Code, Response};

/// No-Response (RFC 7967), which coap-lite has no name for.
const NO_RESPONSE: u16 = 258;

/// What RFC 7252 §4.2 and §4.3 tell apart before a message is looked into.
pub(super) enum Incoming {
    /// A request to work on.
    Request(Packet),
    /// Empty and acknowledging, or empty and resetting.
    Acknowledgement(u16),
    Reset(u16),
    /// Confirmable, but nothing that a server can take: to be reset.
    Rejected(u16),
    /// To be ignored in silence.
    Ignored,
}

pub(super) fn read(bytes: &[u8]) -> Incoming {
    let &[first, code, high, low, ..] = bytes else { return Incoming::Ignored };
    // RFC 7252 §3: other versions MUST be silently ignored.
    if first >> 6 != 1 {
        return Incoming::Ignored;
    }
    let id = u16::from_be_bytes([high, low]);
    let (confirmable, kind) = match first >> 4 & 3 {
        0 => (true, MessageType::Confirmable),
        1 => (false, MessageType::NonConfirmable),
        2 => (false, MessageType::Acknowledgement),
        _ => (false, MessageType::Reset),
    };
    match (kind, code) {
        (MessageType::Acknowledgement, 0) => return Incoming::Acknowledgement(id),
        (MessageType::Reset, 0) => return Incoming::Reset(id),
        // §4.2: an acknowledgement or reset never carries a request.
        (MessageType::Acknowledgement | MessageType::Reset, _) => return Incoming::Ignored,
        _ => {}
    }
    let is_request = (1..32).contains(&code);
    match Packet::from_bytes(bytes) {
        Ok(packet) if is_request && !has_lone_marker(&packet, bytes) => Incoming::Request(packet),
        // §4.2: reject with a reset; among them the ping (§4.3), a response
        // that nobody waits for, and a reserved code.
        _ if confirmable => Incoming::Rejected(id),
        _ => Incoming::Ignored,
    }
}

/// RFC 7252 §3: a payload marker followed by no payload is a format error, which
/// coap-lite lets pass. A last byte of 0xff may also be an option's.
fn has_lone_marker(packet: &Packet, bytes: &[u8]) -> bool {
    bytes.last() == Some(&0xff)
        && packet.payload.is_empty()
        && packet.to_bytes_unlimited().is_ok_and(|again| again.len() < bytes.len())
}

/// An empty message: an acknowledgement or a reset.
pub(super) fn empty(kind: MessageType, id: u16) -> [u8; 4] {
    let kind = match kind {
        MessageType::Confirmable => 0,
        MessageType::NonConfirmable => 1,
        MessageType::Acknowledgement => 2,
        MessageType::Reset => 3,
    };
    let [high, low] = id.to_be_bytes();
    [0x40 | kind << 4, 0, high, low]
}

/// The whole message of a response.
pub(super) fn response(
    kind: MessageType,
    id: u16,
    token: &[u8],
    response: &Response,
) -> Zeroizing<Box<[u8]>> {
    let mut packet = Packet::new();
    packet.header.set_type(kind);
    packet.header.message_id = id;
    packet.header.code = MessageClass::Response(response.code);
    packet.set_token(token.to_vec());
    if let Some(format) = response.content_format {
        packet.add_option(CoapOption::ContentFormat, uint(format.into()));
    }
    if let Some(seconds) = response.max_age {
        packet.add_option(CoapOption::MaxAge, uint(seconds));
    }
    if let Some(bytes) = response.size1 {
        packet.add_option(CoapOption::Size1, uint(bytes));
    }
    packet.payload.extend_from_slice(&response.payload);
    // Our responses are far below any limit, and without one it cannot fail.
    let bytes = packet.to_bytes_unlimited().unwrap_or_default();
    packet.payload.zeroize();
    Zeroizing::new(bytes.into_boxed_slice())
}

/// RFC 7252 §3.2: an unsigned integer in as few bytes as it needs.
fn uint(value: u32) -> Vec<u8> {
    let bytes = value.to_be_bytes();
    bytes[value.leading_zeros() as usize / 8..].to_vec()
}

fn read_uint(bytes: &[u8]) -> Option<u32> {
    (bytes.len() <= 4).then(|| bytes.iter().fold(0, |value, &byte| value << 8 | u32::from(byte)))
}

/// What of a request's options matters to us.
pub(super) struct Options {
    pub(super) path: Vec<String>,
    pub(super) query: Vec<String>,
    pub(super) content_format: Option<u16>,
    pub(super) accept: Option<u16>,
    pub(super) no_response: u8,
}

/// Reads the options; a request that the endpoint itself must refuse gets the
/// response that says so.
pub(super) fn options(packet: &Packet) -> Result<Options, Response> {
    let mut options =
        Options { path: Vec::new(), query: Vec::new(), content_format: None, accept: None, no_response: 0 };
    for (&number, values) in packet.options() {
        let text = || {
            let texts = values.iter().map(|value| String::from_utf8(value.clone()));
            texts.collect::<Result<Vec<_>, _>>().map_err(|_| bad_option("an option is not UTF-8"))
        };
        let option = CoapOption::from(number);
        match option {
            CoapOption::UriPath => options.path = text()?,
            CoapOption::UriQuery => options.query = text()?,
            CoapOption::ContentFormat => options.content_format = format_of(values.front()),
            CoapOption::Accept if values.len() == 1 => {
                options.accept = Some(
                    format_of(values.front()).ok_or_else(|| bad_option("Accept is not a Content-Format"))?,
                );
            }
            CoapOption::ProxyUri | CoapOption::ProxyScheme => {
                return Err(Response::problem(Code::ProxyingNotSupported, "this server is not a proxy"));
            }
            // One host and one port are served, under whatever name; there are
            // no ETags, so conditions mean nothing (RFC 7252 §5.10.8).
            CoapOption::UriHost | CoapOption::UriPort | CoapOption::IfNoneMatch if values.len() == 1 => {}
            CoapOption::IfMatch => {}
            _ if number == NO_RESPONSE => {
                options.no_response = values.front().and_then(|value| read_uint(value)).unwrap_or(0) as u8;
            }
            // RFC 7252 §5.4.1 and §5.4.5: odd numbers are critical; one that is
            // not known, or repeated where it must not be, is refused.
            _ if number % 2 == 1 => return Err(bad_option("unknown critical option")),
            _ => {}
        }
    }
    Ok(options)
}

fn bad_option(title: &str) -> Response {
    Response::problem(Code::BadOption, title)
}

fn format_of(value: Option<&Vec<u8>>) -> Option<u16> {
    value.and_then(|value| read_uint(value)).and_then(|value| value.try_into().ok())
}

/// RFC 7967 §2.1: whether the client asked not to be sent a response of this class.
pub(super) fn is_unwanted(no_response: u8, code: Code) -> bool {
    let class = u8::from(MessageClass::Response(code)) >> 5;
    (1..=5).contains(&class) && no_response >> (class - 1) & 1 == 1
}

/// The method, `UnKnown` for codes that have none.
pub(super) fn method(packet: &Packet) -> RequestType {
    match packet.header.code {
        MessageClass::Request(method) => method,
        _ => RequestType::UnKnown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_take_as_few_bytes_as_they_need() {
        for (value, bytes) in
            [(0, &[][..]), (1, &[1]), (255, &[255]), (256, &[1, 0]), (1 << 24, &[1, 0, 0, 0])]
        {
            assert_eq!(uint(value), bytes);
            assert_eq!(read_uint(bytes), Some(value));
        }
        assert_eq!(read_uint(&[0; 5]), None);
    }

    #[test]
    fn no_response_names_classes_by_bits() {
        assert!(is_unwanted(2, Code::Content));
        assert!(!is_unwanted(2, Code::NotFound));
        assert!(is_unwanted(8, Code::NotFound));
        assert!(is_unwanted(16, Code::BadGateway));
        assert!(!is_unwanted(0, Code::Content));
    }
}
