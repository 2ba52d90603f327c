//! A simulated device that behaves like firmware and uses a third-party DTLS library. It makes a
//! PSK handshake, sends confirmable requests for `/cert`, and takes piggybacked or separate
//! answers. It can also sign in with the certificate. Up to the certificate, the only protocol code
//! that it shares with the server is in the libraries coap-lite and minicbor.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result, anyhow, bail};
use coap_lite::{CoapOption, MessageClass, MessageType, Packet, RequestType, ResponseType};
use minicbor::{Decoder, Encoder};
use rumqttc::{AsyncClient, ConnectionError, Event, MqttOptions, Outgoing, Packet as MqttPacket};
use tokio::{
    net::UdpSocket,
    time::{Instant, timeout, timeout_at},
};
use webrtc_dtls::{cipher_suite::CipherSuiteId, config::Config, conn::DTLSConn};
use webrtc_util::Conn;

use crate::{
    device::{Certificate, Secret},
    iot_platform::sign_in::{Login, SignMethod},
};

/// Time that the device waits for an answer to the first transmission (RFC 7252 §4.8).
const ACK_TIMEOUT: Duration = Duration::from_secs(2);
const MAX_RETRANSMIT: u32 = 4;

/// A device that is about to power on.
#[derive(Clone)]
pub struct SimulatedDevice {
    /// Address at which certdist listens.
    pub server: SocketAddr,
    /// PSK identity.
    pub identity: String,
    /// Pre-shared key.
    pub psk: Vec<u8>,
    /// Serial number that the device sends. If the device sends none, its PSK identity is the
    /// device ID.
    pub sn: Option<String>,
    /// Set if the device asks for its MQTT host.
    pub asks_host: bool,
    /// Time after which the device gives up.
    pub patience: Duration,
}

/// Answer of the server.
#[derive(Debug)]
pub enum Answer {
    /// 2.05: the certificate.
    Certificate {
        /// The certificate.
        certificate: Certificate,
        /// MQTT host, if the answer has one: a host name or address, with a port unless the port is
        /// the usual one.
        host: Option<String>,
    },
    /// Any other answer.
    Refused {
        /// The response code, such as `4.04`.
        code: String,
        /// The title of the problem details (RFC 9290).
        title: String,
        /// Time after which to retry, in seconds.
        max_age: Option<u32>,
    },
}

impl SimulatedDevice {
    /// Connects, asks for the certificate, and closes the session.
    pub async fn fetch(&self) -> Result<Answer> {
        let connected = self.connect().await?;
        let answer = connected.ask().await;
        // The answer has arrived, so a failure to send close_notify does not matter.
        let _ = connected.connection.close().await;
        answer
    }

    /// Connects without sending a request, for a device that sends several requests.
    pub async fn connect(&self) -> Result<ConnectedDevice> {
        let connection = timeout(self.patience, self.handshake())
            .await
            .map_err(|_| anyhow!("no handshake within {:?}", self.patience))??;
        Ok(ConnectedDevice { device: self.clone(), connection })
    }

    async fn handshake(&self) -> Result<DTLSConn> {
        let local: SocketAddr =
            if self.server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
        let socket = UdpSocket::bind(local).await?;
        socket.connect(self.server).await?;
        let psk = self.psk.clone();
        let config = Config {
            psk: Some(Arc::new(move |_| Ok(psk.clone()))),
            psk_identity_hint: Some(self.identity.clone().into_bytes()),
            cipher_suites: vec![CipherSuiteId::Tls_Psk_With_Aes_128_Ccm_8],
            // The library requires a server name, although it is not used with a pre-shared key.
            server_name: "certdist".into(),
            ..Config::default()
        };
        let socket: Arc<dyn Conn + Send + Sync> = Arc::new(socket);
        DTLSConn::new(socket, config, true, None).await.context("the DTLS handshake failed")
    }

    async fn exchange(&self, connection: &DTLSConn) -> Result<Answer> {
        let request = self.request();
        let message = request.to_bytes()?;
        let mut wait = ACK_TIMEOUT.mul_f64(rand::random_range(1.0..1.5));
        let mut sent = 0;
        let mut acknowledged = false;
        let mut buffer = vec![0; 2048];
        loop {
            if !acknowledged {
                if sent > MAX_RETRANSMIT {
                    bail!("the request was sent {sent} times without an answer");
                }
                connection.write(&message, None).await?;
                sent += 1;
            }
            let until = if acknowledged { None } else { Some(Instant::now() + wait) };
            wait *= 2;
            loop {
                let received = match until {
                    Some(until) => match timeout_at(until, connection.read(&mut buffer, None)).await {
                        Ok(received) => received?,
                        Err(_) => break,
                    },
                    None => connection.read(&mut buffer, None).await?,
                };
                let Ok(packet) = Packet::from_bytes(buffer.get(..received).unwrap_or_default()) else {
                    continue;
                };
                if packet.header.code == MessageClass::Empty
                    && packet.header.message_id == request.header.message_id
                {
                    // RFC 7252 §5.2.2: the response follows separately.
                    acknowledged = true;
                    break;
                }
                if packet.get_token() != request.get_token() {
                    continue;
                }
                if packet.header.get_type() == MessageType::Confirmable {
                    connection.write(&acknowledgement(packet.header.message_id)?, None).await?;
                }
                return read(&packet);
            }
        }
    }

    fn request(&self) -> Packet {
        let mut packet = Packet::new();
        packet.header.set_type(MessageType::Confirmable);
        packet.header.code = MessageClass::Request(RequestType::Get);
        packet.header.message_id = rand::random();
        packet.set_token(rand::random::<[u8; 4]>().to_vec());
        packet.add_option(CoapOption::UriPath, b"cert".to_vec());
        let entries = u64::from(self.sn.is_some()) + u64::from(self.asks_host);
        if entries > 0 {
            let mut body = Encoder::new(Vec::new());
            // Writing to a vector cannot fail.
            let _ = body.map(entries);
            if let Some(sn) = &self.sn {
                let _ = body.str("sn").and_then(|map| map.str(sn));
            }
            if self.asks_host {
                let _ = body.str("host").and_then(|map| map.bool(true));
            }
            packet.add_option(CoapOption::ContentFormat, vec![60]);
            packet.payload = body.into_writer();
        }
        packet
    }
}

/// Keep-alive interval of a device that is signed in.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// Signs in over MQTT with a certificate, and disconnects. `broker` is `HOST:PORT`.
///
/// # Errors
///
/// Fails when no answer arrives within `patience`, or when the certificate is refused.
pub async fn sign_in(certificate: &Certificate, broker: &str, patience: Duration) -> Result<()> {
    let (host, port) = broker.rsplit_once(':').context("a broker is HOST:PORT")?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let login = Login::new(certificate, SignMethod::HmacSha256, jiff::Timestamp::now().as_millisecond());
    let mut options = MqttOptions::new(login.client_id, host, port.parse().context("a broker is HOST:PORT")?);
    options.set_credentials(login.user_name, login.password.expose()).set_keep_alive(KEEP_ALIVE);
    let (client, mut events) = AsyncClient::new(options, 1);
    let session = async {
        loop {
            match events.poll().await {
                Ok(Event::Incoming(MqttPacket::ConnAck(_))) => client.disconnect().await?,
                Ok(Event::Outgoing(Outgoing::Disconnect)) => return Ok(()),
                Ok(_) => {}
                Err(ConnectionError::ConnectionRefused(code)) => {
                    bail!("IoT Platform refuses the certificate with return code {} ({code:?})", code as u8);
                }
                Err(error) => return Err(anyhow!(error).context("the MQTT connection failed")),
            }
        }
    };
    timeout(patience, session).await.map_err(|_| anyhow!("not signed in within {patience:?}"))?
}

/// A device that has an open session.
pub struct ConnectedDevice {
    device: SimulatedDevice,
    connection: DTLSConn,
}

impl ConnectedDevice {
    /// Asks for the certificate in a new request.
    pub async fn ask(&self) -> Result<Answer> {
        let patience = self.device.patience;
        timeout(patience, self.device.exchange(&self.connection))
            .await
            .map_err(|_| anyhow!("no answer within {patience:?}"))?
    }
}

fn acknowledgement(message_id: u16) -> Result<Vec<u8>> {
    let mut packet = Packet::new();
    packet.header.set_type(MessageType::Acknowledgement);
    packet.header.code = MessageClass::Empty;
    packet.header.message_id = message_id;
    Ok(packet.to_bytes()?)
}

fn read(packet: &Packet) -> Result<Answer> {
    if packet.header.code == MessageClass::Response(ResponseType::Content) {
        return read_certificate(&packet.payload).context("the certificate is not readable");
    }
    let max_age = packet.get_first_option(CoapOption::MaxAge);
    Ok(Answer::Refused {
        code: packet.header.code.to_string(),
        title: read_title(&packet.payload).unwrap_or_default(),
        max_age: max_age.map(|bytes| bytes.iter().fold(0, |value, &byte| value << 8 | u32::from(byte))),
    })
}

fn read_certificate(payload: &[u8]) -> Result<Answer> {
    let mut decoder = Decoder::new(payload);
    let (mut product_key, mut device_name, mut device_secret, mut host) = (None, None, None, None);
    for _ in 0..decoder.map()?.context("a map of unknown length")? {
        match (decoder.str()?, decoder.str()?.to_owned()) {
            ("productKey", value) => product_key = Some(value),
            ("deviceName", value) => device_name = Some(value),
            ("deviceSecret", value) => device_secret = Some(Secret::new(value)),
            ("host", value) => host = Some(value),
            _ => {}
        }
    }
    let certificate = Certificate {
        product_key: product_key.context("no productKey")?,
        device_name: device_name.context("no deviceName")?,
        device_secret: device_secret.context("no deviceSecret")?,
    };
    Ok(Answer::Certificate { certificate, host })
}

fn read_title(payload: &[u8]) -> Option<String> {
    let mut decoder = Decoder::new(payload);
    decoder.map().ok()?;
    (decoder.i8().ok()? == -1).then(|| decoder.str().ok().map(str::to_owned))?
}
