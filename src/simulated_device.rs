//! A simulated device that behaves like firmware and uses a third-party DTLS library. It makes a PSK
//! handshake, sends confirmable requests for `/cert`, accepts piggybacked and separate answers, and
//! retries like the firmware kit. It can also sign in with the certificate. Up to the certificate, the
//! only protocol code that it shares with the server is in the libraries coap-lite and minicbor.

mod exchange;
mod retry;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result, anyhow, bail};
use coap_lite::{CoapOption, MessageClass, MessageType, Packet, RequestType};
use minicbor::{Decoder, Encoder};
use rumqttc::{AsyncClient, ConnectionError, Event, MqttOptions, Outgoing, Packet as MqttPacket};
use tokio::{
    net::UdpSocket,
    time::{Instant, sleep, timeout},
};
use webrtc_dtls::{cipher_suite::CipherSuiteId, config::Config, conn::DTLSConn};
use webrtc_util::Conn;

use crate::{
    device::{Certificate, Secret},
    iot_platform::sign_in::{Login, SignMethod},
    simulated_device::retry::{Conduct, Retry, Setback, jittered},
};

/// Time after which a handshake is given up, as the server does.
const HANDSHAKE: Duration = Duration::from_secs(120);

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
    /// Connects, asks for the certificate once, and closes the session. After a separate answer, a
    /// task keeps the session open for a few seconds, to acknowledge copies of the answer.
    ///
    /// # Errors
    ///
    /// Fails when there is no session or no answer within `patience`.
    pub async fn fetch(&self) -> Result<Answer> {
        let (answer, leaving) = self.connect().await?.ask_and_leave().await;
        if leaving.lingers {
            tokio::spawn(leaving.close());
        } else {
            leaving.close().await;
        }
        answer
    }

    /// Powers on: connects and asks, and retries like the firmware kit, until the device has its
    /// certificate. Returns a refusal if the device has to stop, or if its next attempt would be later
    /// than `patience`.
    ///
    /// # Errors
    ///
    /// Fails like [`fetch`](Self::fetch), with the last error, if the next attempt would be later than
    /// `patience`.
    pub async fn provision(&self) -> Result<Answer> {
        let (start, mut retry) = (Instant::now(), Retry::default());
        loop {
            let device = Self { patience: self.patience.saturating_sub(start.elapsed()), ..self.clone() };
            let outcome = device.attempt().await;
            let setback = match &outcome {
                Ok(Answer::Certificate { .. }) => return outcome,
                Ok(Answer::Refused { code, max_age, .. }) => Setback::Answer(code, *max_age),
                Err(error) if is_alert(error) => Setback::WrongKey,
                Err(_) => Setback::Silence,
            };
            let (conduct, delay) = retry.after(setback);
            let delay = jittered(delay, rand::random());
            if conduct != Conduct::ComeBack || start.elapsed() + delay >= self.patience {
                return outcome;
            }
            sleep(delay).await;
        }
    }

    /// Connects and asks once. Closes the session after it has acknowledged any copies of a separate
    /// answer.
    async fn attempt(&self) -> Result<Answer> {
        let (answer, leaving) = self.connect().await?.ask_and_leave().await;
        leaving.close().await;
        answer
    }

    /// Connects without sending a request, for a device that sends several requests.
    ///
    /// # Errors
    ///
    /// Fails when the handshake does not succeed within 120 s, or within `patience`.
    pub async fn connect(&self) -> Result<ConnectedDevice> {
        let most = self.patience.min(HANDSHAKE);
        let connection =
            timeout(most, self.handshake()).await.map_err(|_| anyhow!("no handshake within {most:?}"))??;
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
    ///
    /// # Errors
    ///
    /// Fails when no answer arrives within the times of RFC 7252, or within `patience`.
    pub async fn ask(&self) -> Result<Answer> {
        self.exchange(&self.device.request()).await.map(|(answer, _)| answer)
    }

    /// Asks for the certificate. Also returns what remains to be done in the session.
    async fn ask_and_leave(self) -> (Result<Answer>, Leaving) {
        let request = self.device.request();
        let (answer, lingers) = match self.exchange(&request).await {
            Ok((answer, is_separate)) => (Ok(answer), is_separate),
            Err(error) => (Err(error), false),
        };
        (answer, Leaving { connection: self.connection, request, lingers })
    }

    /// Returns the answer to a request, and whether it was a separate one.
    async fn exchange(&self, request: &Packet) -> Result<(Answer, bool)> {
        let patience = self.device.patience;
        let answer = timeout(patience, exchange::exchange(&self.connection, request))
            .await
            .map_err(|_| anyhow!("no answer within {patience:?}"))??;
        Ok((read(&answer)?, answer.is_separate))
    }
}

/// A session after its last exchange.
struct Leaving {
    connection: DTLSConn,
    request: Packet,
    /// Set if the server may repeat its answer.
    lingers: bool,
}

impl Leaving {
    async fn close(self) {
        if self.lingers {
            exchange::linger(&self.connection, &self.request).await;
        }
        // The answer has arrived, so a failure to send close_notify does not matter.
        let _ = self.connection.close().await;
    }
}

/// Returns whether the server ended a handshake with an alert. The library does not report which alert
/// it was; the server sends decrypt_error for a wrong key and for an unknown identity.
fn is_alert(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(webrtc_dtls::Error::ErrAlertFatalOrClose))
}

fn read(answer: &exchange::Answer) -> Result<Answer> {
    let packet = &answer.packet;
    if answer.code == "2.05" {
        return read_certificate(&packet.payload).context("the certificate is not readable");
    }
    let max_age = packet.get_first_option(CoapOption::MaxAge).filter(|bytes| bytes.len() <= 4);
    Ok(Answer::Refused {
        code: answer.code.clone(),
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
