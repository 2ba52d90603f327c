//! Records a client's session with an endpoint whose seed, secrets and clock are fixed.
//! `scripts/record-handshakes` uses it.
//!
//! ```text
//! record_handshake 127.0.0.1:5684 IDENTITY PSK-HEX
//! ```
//!
//! Answers each CoAP request with 2.05 and "hello". Ends when no datagram has arrived for a second
//! after an answer. Then prints the recorded session as JSON.

use std::{
    net::{SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use certdist::dtls::{Datagram, Event, Psk, testing};
use serde_json::{Value, json};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, identity, psk] = &arguments[..] else { anyhow::bail!("usage: ADDRESS IDENTITY PSK-HEX") };
    let key = Psk::new(hex::decode(psk)?).ok_or_else(|| anyhow::anyhow!("a key has 1–64 bytes"))?;
    let socket = UdpSocket::bind(address)?;
    // The time is always the same, so no timer causes a retransmission.
    let now = Instant::now();
    let (mut endpoint, _known) = testing::predictable_endpoint::<()>(now);
    let mut buffer = [0; 2048];
    let mut datagrams: Vec<Value> = Vec::new();
    let mut peer: Option<SocketAddr> = None;
    let (mut requests, mut answers) = (Vec::new(), Vec::new());
    socket.set_read_timeout(Some(Duration::from_secs(20)))?;
    while let Ok((length, from)) = socket.recv_from(&mut buffer) {
        let bytes = &mut buffer[..length];
        datagrams.push(json!({"from": "client", "bytes": hex::encode(&*bytes)}));
        peer = Some(from);
        let mut out: Vec<(SocketAddr, Vec<u8>)> = Vec::new();
        let mut datagram = Datagram::new(from, bytes);
        while let Some(received) = endpoint.receive(now, &mut datagram, &mut out) {
            let answer = answer(received.data);
            requests.push(hex::encode(&*received.data));
            endpoint.send(received.session, &answer, &mut out);
            answers.push(hex::encode(answer));
            socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        }
        while let Some(event) = endpoint.poll_event() {
            if let Event::PskNeeded { handshake, identity: claimed } = event {
                let key = (*claimed == *identity.as_bytes()).then(|| (key.clone(), ()));
                endpoint.provide_psk(now, handshake, key, &mut out);
            }
        }
        for (to, bytes) in out {
            datagrams.push(json!({"from": "server", "bytes": hex::encode(&bytes)}));
            socket.send_to(&bytes, to)?;
        }
    }
    let recording = json!({
        "identity": identity, "psk": psk, "peer": peer,
        "requests": requests, "answers": answers, "datagrams": datagrams,
    });
    println!("{recording}");
    Ok(())
}

/// Returns a piggybacked 2.05 response (RFC 7252 §5.2.1) to a request.
fn answer(request: &[u8]) -> Vec<u8> {
    let token = request.first().map_or(0, |first| usize::from(first & 0xf));
    let mut answer = vec![0x60 | token as u8, 0x45];
    answer.extend_from_slice(request.get(2..4 + token).unwrap_or_default());
    answer.extend_from_slice(b"\xffhello");
    answer
}
