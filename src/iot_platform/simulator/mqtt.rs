//! Sign-in of devices with MQTT 3.1.1 over TCP, at an address of their instance. This module
//! verifies a device, and keeps its connection until the device disconnects, signs in on another
//! connection, or is disabled or deleted. It acknowledges messages, but forwards none.

use std::{io, sync::Arc, time::Duration};

use bytes::BytesMut;
use rumqttc::mqttbytes::{
    Error, Protocol, QoS,
    v4::{
        ConnAck, Connect, ConnectReturnCode, Packet, PubAck, PubComp, PubRec, SubAck, SubscribeReasonCode,
        UnsubAck,
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Notify, Semaphore},
    time::timeout,
};

use super::Shared;
use crate::{device::Secret, iot_platform::sign_in::Claim};

/// Maximum length of a packet, in bytes.
const MAX_PACKET: usize = 256 * 1024;
/// Protocol level of MQTT 3.1.1.
const LEVEL: u8 = 4;
/// Maximum number of connections. Further connections wait.
const MAX_CONNECTIONS: usize = 4096;
/// Time within which a new connection must sign in.
const SIGN_IN_WITHIN: Duration = Duration::from_secs(10);
/// Range of `Keep Alive` that the cloud accepts, in seconds.
const KEEP_ALIVE: std::ops::RangeInclusive<u16> = 30..=1200;
/// Pause after a failed accept, for example because no file descriptor is free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts connections of the devices of one instance until the simulator stops.
pub(super) async fn serve(listener: TcpListener, instance: usize, shared: Arc<Shared>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            accepted = async {
                // The semaphore is never closed, so this wait cannot fail.
                let place = places.clone().acquire_owned().await;
                listener.accept().await.map(|(stream, _)| (stream, place))
            } => accepted,
            () = shared.stopped() => return,
        };
        match accepted {
            Ok((stream, place)) => {
                let shared = shared.clone();
                tokio::spawn(async move {
                    tokio::select! {
                        ended = keep(stream, instance, &shared) => if let Err(error) = ended {
                            tracing::debug!(%error, "a device's connection ended");
                        },
                        () = shared.stopped() => {}
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "could not accept a device's connection; trying again");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves a connection from its first to its last packet.
async fn keep(stream: TcpStream, instance: usize, shared: &Shared) -> io::Result<()> {
    // Answers are small, so the system must send them without waiting for more data.
    let _ = stream.set_nodelay(true);
    let mut connection = Connection { stream, received: BytesMut::new() };
    let connect = match timeout(SIGN_IN_WITHIN, connection.receive()).await? {
        Ok(Some(Packet::Connect(connect))) => connect,
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {
            let code = ConnectReturnCode::RefusedProtocolVersion;
            return connection.send(Packet::ConnAck(ConnAck::new(code, false))).await;
        }
        Err(error) => return Err(error),
    };
    let session = Arc::new(Notify::new());
    let signed_in = sign_in(&connect, instance, &session, shared);
    let code = signed_in.as_ref().map_or_else(|code| *code, |_| ConnectReturnCode::Success);
    // This guard is held until the function returns, so that the device is signed out in every
    // case.
    let _signed_in = signed_in.ok();
    connection.send(Packet::ConnAck(ConnAck::new(code, false))).await?;
    if code != ConnectReturnCode::Success {
        return Ok(());
    }
    // MQTT 3.1.1 §3.1.2.10: after one and a half keep-alive times without a packet, the server
    // ends the connection.
    let patience = Duration::from_secs(u64::from(connect.keep_alive)) * 3 / 2;
    loop {
        let packet = tokio::select! {
            packet = timeout(patience, connection.receive()) => packet??,
            () = session.notified() => return Ok(()),
        };
        let answer = match packet {
            None | Some(Packet::Disconnect) => return Ok(()),
            Some(packet) => answer(packet)?,
        };
        if let Some(answer) = answer {
            connection.send(answer).await?;
        }
    }
}

/// Signs the device out when dropped.
struct SignedIn<'a> {
    shared: &'a Shared,
    instance: usize,
    product_key: String,
    device_name: String,
    session: Arc<Notify>,
}

impl Drop for SignedIn<'_> {
    fn drop(&mut self) {
        let mut world = self.shared.world();
        let devices = &mut world.account(self.instance, jiff::Timestamp::now()).devices;
        devices.change(&self.product_key, &self.device_name, |device| device.sign_out(&self.session));
    }
}

/// Signs a device of an instance in, or returns the code of its refusal.
fn sign_in<'a>(
    connect: &Connect,
    instance: usize,
    session: &Arc<Notify>,
    shared: &'a Shared,
) -> Result<SignedIn<'a>, ConnectReturnCode> {
    if connect.protocol != Protocol::V4 {
        return Err(ConnectReturnCode::RefusedProtocolVersion);
    }
    let login = connect.login.as_ref().ok_or(ConnectReturnCode::BadUserNamePassword)?;
    let claim =
        Claim::read(&connect.client_id, &login.username).ok_or(ConnectReturnCode::BadUserNamePassword)?;
    let now = jiff::Timestamp::now();
    let mut world = shared.world();
    let devices = &mut world.account(instance, now).devices;
    let device = devices.get(claim.product_key, claim.device_name).ok_or(ConnectReturnCode::NotAuthorized)?;
    if !claim.is_signed_with(&Secret::new(device.device_secret.clone()), &login.password) {
        return Err(ConnectReturnCode::BadUserNamePassword);
    }
    if device.disabled || !KEEP_ALIVE.contains(&connect.keep_alive) {
        return Err(ConnectReturnCode::NotAuthorized);
    }
    devices.change(claim.product_key, claim.device_name, |device| {
        device.sign_in(now.as_millisecond());
        device.begin(session.clone());
    });
    shared.changed.notify_one();
    Ok(SignedIn {
        shared,
        instance,
        product_key: claim.product_key.to_owned(),
        device_name: claim.device_name.to_owned(),
        session: session.clone(),
    })
}

/// Returns the acknowledgement of a packet.
fn answer(packet: Packet) -> io::Result<Option<Packet>> {
    Ok(match packet {
        Packet::PingReq => Some(Packet::PingResp),
        Packet::Publish(publish) => match publish.qos {
            QoS::AtMostOnce => None,
            QoS::AtLeastOnce => Some(Packet::PubAck(PubAck::new(publish.pkid))),
            QoS::ExactlyOnce => Some(Packet::PubRec(PubRec::new(publish.pkid))),
        },
        Packet::PubRel(release) => Some(Packet::PubComp(PubComp::new(release.pkid))),
        Packet::Subscribe(subscribe) => {
            let granted = subscribe.filters.iter().map(|filter| SubscribeReasonCode::Success(filter.qos));
            Some(Packet::SubAck(SubAck::new(subscribe.pkid, granted.collect())))
        }
        Packet::Unsubscribe(unsubscribe) => Some(Packet::UnsubAck(UnsubAck::new(unsubscribe.pkid))),
        _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "a packet that only a server sends")),
    })
}

/// Reads the protocol level of a CONNECT (MQTT 3.1.1 §3.1.2.2). The level comes after the packet
/// type (one byte), a length (one to four bytes), and the name of the protocol.
fn protocol_level(bytes: &[u8]) -> Option<u8> {
    (2..=5).find_map(|at| bytes.get(at..)?.strip_prefix(b"\x00\x04MQTT")?.first().copied())
}

struct Connection {
    stream: TcpStream,
    received: BytesMut,
}

impl Connection {
    /// Reads the next packet. Returns `None` if the device has closed the connection. For a CONNECT
    /// of another protocol version, returns an error of the kind `Unsupported`.
    async fn receive(&mut self) -> io::Result<Option<Packet>> {
        loop {
            let level = protocol_level(&self.received);
            match Packet::read(&mut self.received, MAX_PACKET) {
                Ok(packet) => return Ok(Some(packet)),
                Err(Error::InsufficientBytes(_)) => {}
                Err(error) if level.is_some_and(|level| level != LEVEL) => {
                    return Err(io::Error::new(io::ErrorKind::Unsupported, error));
                }
                Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
            }
            if self.stream.read_buf(&mut self.received).await? == 0 {
                return Ok(None);
            }
        }
    }

    async fn send(&mut self, packet: Packet) -> io::Result<()> {
        let mut bytes = BytesMut::new();
        let written = packet.write(&mut bytes, MAX_PACKET);
        written.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        self.stream.write_all(&bytes).await
    }
}
