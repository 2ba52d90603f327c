//! Checks and parses incoming messages, reads the options of requests, and builds answers.

use std::{
    collections::{LinkedList, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
};

use coap_lite::{CoapOption, MessageClass, MessageType, Packet};
use zeroize::{Zeroize, Zeroizing};

use super::{
    Code, Method, Response,
    block::{BadBlock, Block, TransferKey},
};

/// Number of the Echo option (RFC 9175 §2.2.1), which coap-lite does not define.
pub(super) const ECHO: u16 = 252;
/// Longest token accepted, in bytes. RFC 7252 allows tokens of up to 8 bytes, and RFC 8974 allows
/// longer ones.
const MAX_TOKEN: usize = 64;
/// Maximum number of options that a refusal lists.
const MAX_NAMED: usize = 8;

/// Kinds of incoming messages that RFC 7252 §4.2 and §4.3 distinguish.
pub(super) enum Incoming {
    /// A request, and its token.
    Request(Packet, Box<[u8]>),
    /// Message ID of an empty acknowledgement.
    Acknowledgement(u16),
    /// Message ID of an empty reset.
    Reset(u16),
    /// Message ID of a confirmable message that a server cannot process. The endpoint must answer
    /// with a reset.
    Rejected(u16),
    /// A message that must be ignored silently.
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
    // RFC 7252 §4.1: an empty message consists of the header alone.
    let is_empty = code == 0 && bytes.len() == 4 && first & 15 == 0;
    match (kind, code) {
        (MessageType::Acknowledgement | MessageType::Reset, 0) if !is_empty => return Incoming::Ignored,
        (MessageType::Acknowledgement, 0) => return Incoming::Acknowledgement(id),
        (MessageType::Reset, 0) => return Incoming::Reset(id),
        // RFC 7252 §4.2: an acknowledgement or reset never carries a request.
        (MessageType::Acknowledgement | MessageType::Reset, _) => return Incoming::Ignored,
        _ => {}
    }
    let request = if (1..32).contains(&code) { read_request(bytes) } else { None };
    match request {
        Some((packet, token)) => Incoming::Request(packet, token),
        // RFC 7252 §4.2: any other confirmable message is rejected with a reset. This applies to
        // pings (§4.3), unexpected responses, and messages with a reserved code.
        None if confirmable => Incoming::Rejected(id),
        None => Incoming::Ignored,
    }
}

fn read_request(bytes: &[u8]) -> Option<(Packet, Box<[u8]>)> {
    let (header, rest) = bytes.split_first_chunk::<4>()?;
    // RFC 8974 §2.1: a length field of 0 to 12 is the token length itself. A field of 13 is
    // followed by one byte, the token length minus 13. A field of 14 is followed by two
    // bytes.
    let (length, rest) = match (header[0] & 15, rest) {
        (length @ 0..=12, rest) => (usize::from(length), rest),
        (13, &[length, ref rest @ ..]) => (13 + usize::from(length), rest),
        // A field of 14 announces a token longer than accepted; 15 is reserved.
        _ => return None,
    };
    if length > MAX_TOKEN {
        return None;
    }
    let (token, rest) = rest.split_at_checked(length)?;
    let packet = if length <= 8 {
        Packet::from_bytes(bytes)
    } else {
        // coap-lite supports only tokens of up to 8 bytes, so it gets the message without the
        // token.
        Packet::from_bytes(&[&[header[0] & 0xf0], &header[1..], rest].concat())
    };
    let packet = packet.ok().filter(|packet| !has_lone_marker(packet, rest))?;
    Some((packet, token.into()))
}

/// Returns whether the message ends in a payload marker without a payload. Such a message has a
/// format error (RFC 7252 §3), but coap-lite accepts it. A last byte of 0xff may also belong to an
/// option, so the message is encoded again and compared. `rest` is the part of the message after
/// the token.
fn has_lone_marker(packet: &Packet, rest: &[u8]) -> bool {
    let header_and_token = 4 + packet.get_token().len();
    rest.last() == Some(&0xff)
        && packet.payload.is_empty()
        && packet.to_bytes_unlimited().is_ok_and(|again| again.len() < header_and_token + rest.len())
}

/// Returns an empty message: a ping, an acknowledgement or a reset.
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

/// Options that a block-wise transfer adds to a response (RFC 7959).
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Blocks {
    /// The block of the request body that the response acknowledges.
    pub(super) block1: Option<Block>,
    /// The block of the response body in this message.
    pub(super) block2: Option<Block>,
    /// Length of the whole response body, in bytes.
    pub(super) size2: Option<u32>,
    /// ETag of the response body. It keeps a client from mixing blocks of different
    /// bodies.
    pub(super) etag: Option<[u8; 4]>,
}

/// Type, message ID and token of a message.
pub(super) struct Head<'t> {
    pub(super) kind: MessageType,
    pub(super) id: u16,
    pub(super) token: &'t [u8],
}

/// Builds the message of a response. `payload` is the whole payload of the response or one
/// block of it.
pub(super) fn response(
    &Head { kind, id, token }: &Head<'_>,
    response: &Response,
    blocks: Blocks,
    payload: &[u8],
) -> Zeroizing<Box<[u8]>> {
    let mut packet = Packet::new();
    packet.header.set_type(kind);
    packet.header.message_id = id;
    packet.header.code = MessageClass::from(response.code.byte());
    // coap-lite supports only tokens of up to 8 bytes (RFC 7252 §3).
    let is_long = token.len() > 8;
    if !is_long {
        packet.set_token(token.to_vec());
    }
    for (option, value) in [
        (CoapOption::ContentFormat, response.content_format.map(u32::from)),
        (CoapOption::MaxAge, response.max_age),
        (CoapOption::Size1, response.size1),
        (CoapOption::Block1, blocks.block1.map(Block::value)),
        (CoapOption::Block2, blocks.block2.map(Block::value)),
        (CoapOption::Size2, blocks.size2),
    ] {
        if let Some(value) = value {
            packet.add_option(option, uint(value));
        }
    }
    if let Some(etag) = blocks.etag {
        packet.add_option(CoapOption::ETag, etag.to_vec());
    }
    for (number, value) in &response.options {
        packet.add_option(CoapOption::from(*number), value.clone());
    }
    packet.payload.extend_from_slice(payload);
    // Encoding could fail only at a size limit, and `to_bytes_unlimited` has none.
    let bytes = Zeroizing::new(packet.to_bytes_unlimited().unwrap_or_default().into_boxed_slice());
    packet.payload.zeroize();
    if is_long { with_long_token(&bytes, token) } else { bytes }
}

/// Inserts a token of at most [`MAX_TOKEN`] bytes into a message that has none (RFC 8974
/// §2.1).
fn with_long_token(message: &[u8], token: &[u8]) -> Zeroizing<Box<[u8]>> {
    let (Some((header, rest)), Ok(length)) = (message.split_first_chunk::<4>(), u8::try_from(token.len()))
    else {
        return Zeroizing::default();
    };
    let (field, extension) = match length.checked_sub(13) {
        None => (length, None),
        Some(extension) => (13, Some(extension)),
    };
    let parts = [&[header[0] | field], &header[1..], extension.as_slice(), token, rest];
    Zeroizing::new(parts.concat().into_boxed_slice())
}

/// Encodes an unsigned integer in the fewest bytes possible (RFC 7252 §3.2).
fn uint(value: u32) -> Vec<u8> {
    let bytes = value.to_be_bytes();
    bytes[value.leading_zeros() as usize / 8..].to_vec()
}

/// Decodes an unsigned integer of at most four bytes.
fn read_uint(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |value, &byte| value << 8 | u32::from(byte))
}

/// The options of a request that matter to the server.
#[derive(Default)]
pub(super) struct Options {
    pub(super) path: Vec<String>,
    pub(super) query: Vec<String>,
    pub(super) content_format: Option<u16>,
    pub(super) accept: Option<u16>,
    pub(super) etags: Vec<Vec<u8>>,
    pub(super) if_match: Vec<Vec<u8>>,
    pub(super) if_none_match: bool,
    pub(super) no_response: u8,
    pub(super) block1: Option<Block>,
    pub(super) block2: Option<Block>,
    /// Announced length of the request body, in bytes.
    pub(super) size1: Option<u32>,
    pub(super) wants_size2: bool,
}

/// Reads the options of a request. If the endpoint itself must refuse the request, returns
/// the response as an error.
pub(super) fn options(packet: &Packet) -> Result<Options, Response> {
    let mut options = Options::default();
    // Reason for refusing the first bad critical option, and the numbers of the first [`MAX_NAMED`]
    // bad critical options.
    let mut refused: Option<(&str, Vec<u16>)> = None;
    for (&number, values) in packet.options() {
        let option = CoapOption::from(number);
        // RFC 7252 §5.4.3 and §5.4.5: an option with an invalid length, or one that is repeated but
        // not repeatable, is treated like an unknown option. A bad option with an odd number is
        // critical and refused (§5.4.1), and one with an even number is ignored.
        let fault = match definition(option) {
            None => Some("unknown critical option"),
            Some((lengths, repeatable)) => {
                let fits = values.iter().all(|value| lengths.contains(&value.len()));
                (!fits || (values.len() > 1 && !repeatable))
                    .then_some("a critical option has a wrong length or comes twice")
            }
        };
        let is_text = matches!(option, CoapOption::UriPath | CoapOption::UriQuery);
        let fault = fault.or_else(|| {
            let is_bad = is_text && values.iter().any(|value| str::from_utf8(value).is_err());
            is_bad.then_some("an option is not UTF-8")
        });
        if let Some(title) = fault {
            if number % 2 == 1 {
                let (_, numbers) = refused.get_or_insert_with(|| (title, Vec::new()));
                if numbers.len() < MAX_NAMED {
                    numbers.push(number);
                }
            }
            continue;
        }
        let first = values.front().map(Vec::as_slice).unwrap_or_default();
        match option {
            CoapOption::UriPath => options.path = texts(values),
            CoapOption::UriQuery => options.query = texts(values),
            CoapOption::ContentFormat => options.content_format = Some(read_uint(first) as u16),
            CoapOption::Accept => options.accept = Some(read_uint(first) as u16),
            CoapOption::ETag => options.etags = values.iter().cloned().collect(),
            CoapOption::IfMatch => options.if_match = values.iter().cloned().collect(),
            CoapOption::IfNoneMatch => options.if_none_match = true,
            CoapOption::Block1 => options.block1 = Some(block(first)?),
            CoapOption::Block2 => options.block2 = Some(block(first)?),
            CoapOption::Size1 => options.size1 = Some(read_uint(first)),
            CoapOption::Size2 => options.wants_size2 = true,
            CoapOption::NoResponse => options.no_response = read_uint(first) as u8,
            CoapOption::ProxyUri | CoapOption::ProxyScheme => {
                return Err(Response::problem(Code::ProxyingNotSupported, "this server is not a proxy"));
            }
            // Uri-Host and Uri-Port make no difference: the server has a single host and
            // port.
            _ => {}
        }
    }
    match refused {
        Some((title, numbers)) => Err(Response::bad_option(title, &numbers)),
        None => Ok(options),
    }
}

/// Returns the valid lengths of an option's value, in bytes, and whether the option may be
/// repeated (RFC 7252 §5.10, RFC 7959 §2.1, RFC 7967 §2). Returns `None` for an unknown
/// option.
fn definition(option: CoapOption) -> Option<(std::ops::RangeInclusive<usize>, bool)> {
    Some(match option {
        CoapOption::IfMatch => (0..=8, true),
        CoapOption::UriHost => (1..=255, false),
        CoapOption::ETag => (1..=8, true),
        CoapOption::IfNoneMatch => (0..=0, false),
        CoapOption::UriPort => (0..=2, false),
        CoapOption::UriPath | CoapOption::UriQuery => (0..=255, true),
        CoapOption::ContentFormat | CoapOption::Accept => (0..=2, false),
        CoapOption::Block1 | CoapOption::Block2 => (0..=3, false),
        CoapOption::Size1 | CoapOption::Size2 => (0..=4, false),
        CoapOption::ProxyUri => (1..=1034, false),
        CoapOption::ProxyScheme => (1..=255, false),
        CoapOption::NoResponse => (0..=1, false),
        _ => return None,
    })
}

fn texts(values: &LinkedList<Vec<u8>>) -> Vec<String> {
    values.iter().map(|value| String::from_utf8_lossy(value).into_owned()).collect()
}

fn block(value: &[u8]) -> Result<Block, Response> {
    Block::read(value).map_err(|BadBlock| Response::problem(Code::BadRequest, "reserved block size"))
}

/// Returns the transfer key of a request: a digest of the request's method and options. Options
/// that differ between the requests of one transfer are left out.
pub(super) fn transfer_key(packet: &Packet) -> TransferKey {
    let mut hasher = DefaultHasher::new();
    u8::from(packet.header.code).hash(&mut hasher);
    for (&number, values) in packet.options() {
        let varies = matches!(
            CoapOption::from(number),
            CoapOption::Block1
                | CoapOption::Block2
                | CoapOption::Size1
                | CoapOption::Size2
                | CoapOption::NoResponse
                | CoapOption::Observe
        );
        if !varies && number != ECHO {
            (number, values).hash(&mut hasher);
        }
    }
    hasher.finish()
}

/// Returns a digest that distinguishes request payloads.
pub(super) fn digest(payload: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    payload.hash(&mut hasher);
    hasher.finish()
}

/// Returns whether the client has declined responses of this class (RFC 7967 §2.1).
pub(super) fn is_unwanted(no_response: u8, code: Code) -> bool {
    // Without a 2.31, the client cannot continue its transfer.
    if code == Code::Continue {
        return false;
    }
    let class = code.class();
    (1..=5).contains(&class) && no_response >> (class - 1) & 1 == 1
}

/// Returns the method of a request.
pub(super) fn method(packet: &Packet) -> Method {
    Method::of(packet.header.code.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_encoded_in_the_fewest_bytes() {
        for (value, bytes) in
            [(0, &[][..]), (1, &[1]), (255, &[255]), (256, &[1, 0]), (1 << 24, &[1, 0, 0, 0])]
        {
            assert_eq!(uint(value), bytes);
            assert_eq!(read_uint(bytes), value);
        }
    }

    #[test]
    fn no_response_selects_classes_by_bits() {
        assert!(is_unwanted(2, Code::Content));
        assert!(!is_unwanted(2, Code::NotFound));
        assert!(is_unwanted(8, Code::NotFound));
        assert!(is_unwanted(16, Code::BadGateway));
        assert!(!is_unwanted(0, Code::Content));
    }
}
