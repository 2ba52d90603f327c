//! Notifies the service manager (sd_notify(3)), by a datagram to the socket in `NOTIFY_SOCKET`.
//! Does nothing if this variable is not set. This module knows nothing about the server.

use std::{
    env,
    ffi::OsStr,
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
    process,
    time::Duration,
};

/// Reports that the service is ready: `systemctl start` returns, and dependent units start.
pub fn ready() {
    tell("READY=1");
}

/// Feeds the watchdog. The service manager restarts a service that does not feed the watchdog
/// within `WatchdogSec=`. [`watchdog_interval`] returns the interval for these calls.
pub fn watchdog() {
    tell("WATCHDOG=1");
}

/// Reports that the service is shutting down on purpose, and that this may take up to `most`. The
/// service manager then waits for that time, even if its own time-out (`TimeoutStopSec=`) is
/// shorter.
pub fn stopping(most: Duration) {
    tell(&stopping_within(most));
}

fn stopping_within(most: Duration) -> String {
    format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={}", most.as_micros())
}

/// Returns half of `WatchdogSec=`, so that one late message does not cause a restart. Returns
/// `None` if the service manager does not watch this process.
pub fn watchdog_interval() -> Option<Duration> {
    interval(env::var("WATCHDOG_USEC").ok().as_deref(), env::var("WATCHDOG_PID").ok().as_deref())
}

/// Feeds the watchdog at the required interval, as long as `is_alive` returns true. Returns
/// immediately if there is no watchdog.
pub async fn keep_watchdog<F: Future<Output = bool>>(is_alive: impl Fn() -> F) {
    if let Some(interval) = watchdog_interval() {
        watch(interval, is_alive, watchdog).await;
    }
}

async fn watch<F: Future<Output = bool>>(interval: Duration, is_alive: impl Fn() -> F, say_so: impl Fn()) {
    let mut ticks = tokio::time::interval(interval);
    loop {
        ticks.tick().await;
        if is_alive().await {
            say_so();
        }
    }
}

fn interval(microseconds: Option<&str>, process: Option<&str>) -> Option<Duration> {
    let microseconds: u64 = microseconds?.parse().ok().filter(|microseconds| *microseconds > 0)?;
    // If this process has inherited the variables from its parent, the service manager watches only
    // the parent.
    let is_ours = process.is_none_or(|id| id.parse() == Ok(process::id()));
    is_ours.then(|| Duration::from_micros(microseconds) / 2)
}

fn tell(state: &str) {
    let Some(socket) = env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = send(&socket, state) {
        tracing::warn!(%error, notification = state, "could not notify the service manager");
    }
}

fn send(socket: &OsStr, state: &str) -> io::Result<()> {
    // sd_notify(3): a leading `@` stands for the zero byte with which an abstract name begins.
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    let sender = UnixDatagram::unbound()?;
    // If the service manager has stopped reading, the send must not block the caller.
    sender.set_nonblocking(true)?;
    sender.send_to_addr(state.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn received(manager: &UnixDatagram) -> String {
        manager.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut buffer = [0; 64];
        let length = manager.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }

    #[test]
    fn a_manager_is_notified_at_its_path_or_its_abstract_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        send(path.as_os_str(), "READY=1").unwrap();
        assert_eq!(received(&manager), "READY=1");
        send(path.as_os_str(), &stopping_within(Duration::from_secs(90))).unwrap();
        assert_eq!(received(&manager), "STOPPING=1\nEXTEND_TIMEOUT_USEC=90000000");

        let name = format!("certdist-test-{}", process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        send(format!("@{name}").as_ref(), "STOPPING=1").unwrap();
        assert_eq!(received(&manager), "STOPPING=1");
        assert!(send(folder.path().join("nobody").as_os_str(), "READY=1").is_err());
    }

    #[test]
    fn a_manager_that_does_not_read_holds_nothing_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let _manager = UnixDatagram::bind(&path).unwrap();
        let full = (0..10_000).find_map(|_| send(path.as_os_str(), "WATCHDOG=1").err());
        assert_eq!(full.map(|error| error.kind()), Some(io::ErrorKind::WouldBlock));
    }

    #[test]
    fn a_watched_process_feeds_the_watchdog_twice_as_often_as_it_must() {
        let own = process::id().to_string();
        assert_eq!(interval(Some("30000000"), Some(&own)), Some(Duration::from_secs(15)));
        assert_eq!(interval(Some("30000000"), None), Some(Duration::from_secs(15)));
        assert_eq!(interval(Some("30000000"), Some("1")), None);
        assert_eq!(interval(None, None), None);
        assert_eq!(interval(Some("0"), None), None);
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_live_service_feeds_the_watchdog() {
        let (asked, said) = (Cell::new(0), Cell::new(0));
        let is_alive = async || {
            asked.set(asked.get() + 1);
            asked.get() <= 3
        };
        let watching = watch(Duration::from_secs(15), is_alive, || said.set(said.get() + 1));
        assert!(tokio::time::timeout(Duration::from_secs(100), watching).await.is_err());
        assert_eq!((asked.get(), said.get()), (7, 3));
    }
}
