//! One exchange of CoAP (RFC 7252): a confirmable request, and its answer in the acknowledgement or
//! in a message of its own. It uses the session, but does not interpret the request or the answer.

use std::time::Duration;

use anyhow::{Result, bail};
use coap_lite::{MessageClass, MessageType, Packet};
use tokio::time::{Instant, timeout_at};
use webrtc_dtls::conn::DTLSConn;

/// Time that the device waits for an answer to the first transmission (RFC 7252 §4.8), before
/// jitter.
const ACK_TIMEOUT: Duration = Duration::from_secs(2);
const MAX_RETRANSMIT: u32 = 4;
/// Longest wait for a separate answer (RFC 7252 §4.8.2, EXCHANGE_LIFETIME).
const EXCHANGE_LIFETIME: Duration = Duration::from_secs(247);
/// Time that the session stays open after a separate answer. If the acknowledgement is lost, the
/// server repeats the answer within 3 s.
const LINGER: Duration = Duration::from_secs(3);

/// An answer.
pub(super) struct Answer {
    pub(super) packet: Packet,
    /// Response code, such as `4.04`.
    pub(super) code: String,
    /// Set if the answer came in a confirmable message of its own.
    pub(super) is_separate: bool,
}

/// Meaning of a message for a request.
enum Received {
    /// The answer, or a copy of it.
    Answer(Answer),
    /// The empty acknowledgement of the request.
    Acknowledged,
    /// The reset of the request.
    Reset,
    /// Another confirmable message, with this message ID.
    Foreign(u16),
    /// Any other message. It is ignored.
    Nothing,
}

/// Sends a request and returns its answer.
///
/// # Errors
///
/// Fails if the request is not answered within the times of RFC 7252 or is reset, or if the session
/// ends.
pub(super) async fn exchange(connection: &DTLSConn, request: &Packet) -> Result<Answer> {
    let message = request.to_bytes()?;
    let mut wait = ACK_TIMEOUT.mul_f64(rand::random_range(1.0..1.5));
    let (mut sent, mut is_acknowledged) = (0, false);
    let mut until = Instant::now();
    loop {
        if Instant::now() >= until {
            // RFC 7252 §4.2: the request is repeated until it is acknowledged.
            if is_acknowledged {
                bail!("the request was acknowledged, but not answered");
            }
            if sent > MAX_RETRANSMIT {
                bail!("the request was sent {sent} times without an answer");
            }
            connection.write(&message, None).await?;
            sent += 1;
            until = Instant::now() + wait;
            wait *= 2;
        }
        match receive(connection, request, until).await? {
            Some(Received::Answer(answer)) => return Ok(answer),
            Some(Received::Reset) => bail!("the server reset the request"),
            Some(Received::Acknowledged) if !is_acknowledged => {
                // RFC 7252 §5.2.2: the answer follows separately, and the request is not repeated.
                is_acknowledged = true;
                until = Instant::now() + EXCHANGE_LIFETIME;
            }
            _ => {}
        }
    }
}

/// Acknowledges copies of a separate answer, as long as the server may send them.
pub(super) async fn linger(connection: &DTLSConn, request: &Packet) {
    let until = Instant::now() + LINGER;
    while Instant::now() < until && receive(connection, request, until).await.is_ok() {}
}

/// Receives a message, and acknowledges or rejects it if it is confirmable (RFC 7252 §4.2). Returns
/// `None` if none arrives in time.
async fn receive(connection: &DTLSConn, request: &Packet, until: Instant) -> Result<Option<Received>> {
    let mut buffer = vec![0; 2048];
    let Ok(length) = timeout_at(until, connection.read(&mut buffer, None)).await else { return Ok(None) };
    let received = classify(buffer.get(..length?).unwrap_or_default(), request);
    let reply = match &received {
        Received::Answer(answer) if answer.is_separate => {
            Some((MessageType::Acknowledgement, answer.packet.header.message_id))
        }
        Received::Foreign(message_id) => Some((MessageType::Reset, *message_id)),
        _ => None,
    };
    if let Some((kind, message_id)) = reply {
        connection.write(&empty(kind, message_id)?, None).await?;
    }
    Ok(Some(received))
}

/// Returns the meaning of a message for a request. The answer has the request's token. An answer in an
/// acknowledgement also has the request's message ID.
fn classify(bytes: &[u8], request: &Packet) -> Received {
    let &[first, code, high, low, ..] = bytes else { return Received::Nothing };
    let message_id = u16::from_be_bytes([high, low]);
    let is_ours = message_id == request.header.message_id;
    let kind = match (first >> 6, first >> 4 & 3) {
        (1, 0) => MessageType::Confirmable,
        (1, 1) => MessageType::NonConfirmable,
        (1, 2) => MessageType::Acknowledgement,
        (1, _) => MessageType::Reset,
        _ => return Received::Nothing,
    };
    let answer = (matches!(code >> 5, 2 | 4 | 5) && kind != MessageType::Reset)
        .then(|| Packet::from_bytes(bytes).ok())
        .flatten()
        .filter(|packet| packet.get_token() == request.get_token())
        .filter(|_| kind != MessageType::Acknowledgement || is_ours)
        // RFC 7252 §3: a payload marker without a payload is an error, which coap-lite ignores.
        .filter(|packet| packet.to_bytes().is_ok_and(|again| again.len() == bytes.len()))
        // RFC 7252 §5.4.1: a message with an unknown critical option is rejected.
        .filter(|packet| packet.options().all(|(number, _)| number % 2 == 0));
    match (answer, kind) {
        (Some(packet), kind) => Received::Answer(Answer {
            packet,
            code: format!("{}.{:02}", code >> 5, code & 31),
            is_separate: kind == MessageType::Confirmable,
        }),
        (None, MessageType::Confirmable) => Received::Foreign(message_id),
        (None, MessageType::Acknowledgement) if is_ours && bytes.len() == 4 && code == 0 => {
            Received::Acknowledged
        }
        (None, MessageType::Reset) if is_ours && bytes.len() == 4 && code == 0 => Received::Reset,
        _ => Received::Nothing,
    }
}

/// Returns an empty message (RFC 7252 §4.1).
fn empty(kind: MessageType, message_id: u16) -> Result<Vec<u8>> {
    let mut packet = Packet::new();
    packet.header.set_type(kind);
    packet.header.code = MessageClass::Empty;
    packet.header.message_id = message_id;
    Ok(packet.to_bytes()?)
}
