//! Answers a request for a certificate in one of three ways. A device that is not in the table is
//! invalid. A device whose certificate is in the table gets this certificate. A device that has no
//! certificate yet is registered first, and then gets its certificate. `policy` decides which
//! devices may have a certificate.

mod hosts;

use std::{
    future,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures_util::FutureExt;

pub use self::hosts::{HandedOut, Hosts};
use crate::{
    device::{AskedId, Certificate, DeviceId},
    guards::Unlisted,
    log_limit::LogLimit,
    policy::{self, Reason, Verdict},
    psk::{Kind, KindName, Principal},
    rate_limit::Origin,
    registrar::{Outcome, Targets},
    store::{
        DeviceRow, Issue, Store, StoreError,
        audit::{Asked, Asker, AuditEvent},
        claim::new_id,
        place::{self, Places},
        waiting::{Admission, Admits, NewDevice, Note},
    },
};

/// Reason why a device does not get a certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The device is not in the table, or it is not in the enrollment of the client's key. One
    /// variant stands for both cases, because the client must not learn whether the device exists.
    #[error("the device is invalid")]
    Invalid,
    /// The client has proven to be one device, but asks for the certificate of another device.
    #[error("the identity is another device's")]
    NotYours,
    /// The operator has disabled the device.
    #[error("the device is disabled")]
    Disabled,
    /// The certificate was issued before, and the reissue policy does not allow another issue.
    #[error("the certificate was issued already")]
    Issued,
    /// The device has had no certificate, and its enrollment has closed.
    #[error("the enrollment is closed")]
    Closed,
    /// The device has no certificate, and its enrollment is full: the maximum number of devices have
    /// one.
    #[error("the enrollment is full")]
    Full,
    /// IoT Platform refuses to register the device, for this reason. Only the operator can fix
    /// it.
    #[error("IoT Platform refuses: {0}")]
    Operator(String),
    /// The device is not in the table and cannot be added, because another device has its name.
    /// Contains the full reason. Only the operator can fix it.
    #[error("the name is taken: {0}")]
    NameTaken(String),
    /// The certificate is not available yet; the device should retry after this number of
    /// seconds.
    #[error("not yet; retry in {0} s")]
    Later(u32),
    /// The device's enrollment is not open yet; the device should retry after this number of
    /// seconds.
    #[error("the enrollment is not open yet; retry in {0} s")]
    NotOpen(u32),
    /// The device is not in the table and waits until an operator admits it; it should retry after
    /// this number of seconds. The same refusal stands for a device of another enrollment.
    #[error("not admitted yet; retry in {0} s")]
    Held(u32),
    /// IoT Platform did not answer in time; the registration continues.
    #[error("IoT Platform did not answer in time")]
    TimedOut,
}

impl Refusal {
    /// Returns whether the refusal is a decision about the device, rather than a delay.
    fn is_final(&self) -> bool {
        !matches!(self, Self::Later(_) | Self::NotOpen(_) | Self::Held(_) | Self::TimedOut)
    }
}

impl From<Reason<'_>> for Refusal {
    fn from(reason: Reason<'_>) -> Self {
        match reason {
            Reason::Disabled => Self::Disabled,
            Reason::Issued => Self::Issued,
            Reason::Refused(_, reason) => Self::Operator(reason.to_owned()),
            Reason::NotOpen { wait, .. } => Self::NotOpen(wait),
            Reason::Closed(_) => Self::Closed,
            Reason::Full(_) => Self::Full,
            Reason::Filling { wait } => Self::Later(wait),
        }
    }
}

/// Maximum number of attempts to record an issue. Another attempt is made if the result of the last
/// one is unknown.
const ISSUE_ATTEMPTS: u32 = 3;

/// Delay before a device should retry if its row was changed during its request, in seconds.
const CHANGED_PAUSE: u32 = 1;

/// Delay before a device should retry if its target is not configured, in seconds. Only the operator
/// can change that.
const NO_TARGET_PAUSE: u32 = 60;

/// Delay before a device should retry after a failure of the store, in seconds.
const STORE_PAUSE: u32 = 30;

/// Delay before a device that waits to be admitted should retry, in seconds.
const HELD_PAUSE: u32 = 300;

/// Maximum number of failures of the store per second that are logged with one line each.
const MAX_FAILURE_LINES: u32 = 1;

/// Hands out certificates.
pub struct Provisioner {
    store: Arc<dyn Store>,
    targets: Arc<Targets>,
    /// Maximum time that a device waits for its registration.
    patience: Duration,
    hosts: Option<Arc<dyn Hosts>>,
    failure_lines: Mutex<LogLimit>,
}

impl Provisioner {
    /// Creates a provisioner; `patience` is the maximum time that a request waits for its
    /// registration.
    pub fn new(store: Arc<dyn Store>, targets: Arc<Targets>, patience: Duration) -> Self {
        let failure_lines = Mutex::new(LogLimit::new(MAX_FAILURE_LINES, "failures of the store"));
        Self { store, targets, patience, hosts: None, failure_lines }
    }

    /// Sets the source of MQTT hosts. A provisioner without such a source hands out no host.
    pub fn with_hosts(self, hosts: Arc<dyn Hosts>) -> Self {
        Self { hosts: Some(hosts), ..self }
    }

    /// Returns the certificate of the device `asked`, for a client at `origin` that has proven to
    /// be `principal`, and the device's MQTT host if `wants_host` is set. Writes refusals and
    /// reissues to the audit log. If `may_wait` is false and the answer requires a registration or
    /// the record of a first issue, the future starts no work and never becomes ready.
    pub async fn certificate(
        &self,
        origin: Origin,
        principal: &Principal,
        asked: &AskedId,
        wants_host: bool,
        may_wait: bool,
    ) -> Result<HandedOut, Refusal> {
        let row = match self.row_of(principal, asked).await {
            Err(Refusal::Invalid) if principal.unlisted() != Unlisted::Refuse => {
                self.unlisted(origin, principal, asked, may_wait).await
            }
            row => row,
        };
        let (device, answer) = match row {
            Ok(mut row) => {
                let hosts = self.hosts.as_deref().filter(|_| wants_host);
                let is_registered = row.certificate.is_some();
                // `decide` takes the certificate out of the row, which then no longer says where the
                // device is registered.
                let host = hosts.and_then(|hosts| host_of(hosts, &row));
                let answer = match self.decide(origin, principal, &mut row, may_wait).await {
                    Ok(certificate) => {
                        let host = match hosts {
                            Some(hosts) if !is_registered => {
                                self.new_host(hosts, &row.id, &certificate).await
                            }
                            _ => host,
                        };
                        Ok(HandedOut { certificate, host })
                    }
                    Err(refusal) => Err(refusal),
                };
                (row.id, answer)
            }
            Err(refusal) => (asked.first().clone(), Err(refusal)),
        };
        if let Err(refusal) = &answer
            && refusal.is_final()
        {
            let asker = (principal.enrollment.name.as_str(), principal.identity(), origin);
            let reason = format_args!("{refusal}");
            let entry = Asked::new(AuditEvent::Refused, self.store.now(), &device, asker, reason);
            // A refusal that cannot be recorded is not given: the device asks again.
            if let Err(error) = self.store.audit(entry) {
                return Err(self.store_failed(&error));
            }
        }
        answer
    }

    /// Returns the row of the device `asked` if the row is in the client's enrollment. If `asked`
    /// stands for several IDs, returns the first such row. Reads the same number of rows for a
    /// device of another enrollment as for a device that is not in the table.
    async fn row_of(&self, principal: &Principal, asked: &AskedId) -> Result<DeviceRow, Refusal> {
        let own = principal.device.as_ref();
        let failed = |error| self.store_failed(&error);
        let is_own = |id: &DeviceId| own.is_none_or(|own| own.ids().any(|own| own == id));
        let is_own_mac = || own.is_none_or(|own| own.mac().is_some_and(|own| asked.mac() == Some(own)));
        // This check comes before the table is read, so that the answer reveals nothing about the
        // table.
        if !asked.ids().any(is_own) && !is_own_mac() {
            return Err(Refusal::NotYours);
        }
        for id in asked.ids().filter(|id| is_own(id)) {
            if let Some(row) = self.in_enrollment(principal, id).await.map_err(failed)? {
                return Ok(row);
            }
        }
        // The table may have the MAC address in another spelling. An individual key gives access
        // only to the row of its own device. Any other key gives access to the row with this MAC
        // address, whatever its spelling.
        let is_individual = principal.enrollment.kind == Kind::Individual;
        if let Some(mac) = asked.mac()
            && let Some(spelled) = self.store.spelled(&mac).await.map_err(failed)?
            && (is_own(&spelled) || (!is_individual && is_own_mac()))
            && let Some(row) = self.in_enrollment(principal, &spelled).await.map_err(failed)?
        {
            return Ok(row);
        }
        Err(Refusal::Invalid)
    }

    /// Treats a device that has no row in the client's enrollment as the enrollment says: notes that
    /// the device waits, or adds it to the table and returns its row. A device of another enrollment
    /// is treated as a device that is not in the table, until the table itself refuses the addition.
    async fn unlisted(
        &self,
        origin: Origin,
        principal: &Principal,
        asked: &AskedId,
        may_wait: bool,
    ) -> Result<DeviceRow, Refusal> {
        let enrollment = &principal.enrollment;
        policy::may_have_first(enrollment.terms(), self.store.now())?;
        let device = asked.canonical().clone();
        let asker = asker_of(origin, principal);
        if enrollment.guards.unlisted == Unlisted::Hold {
            let note = Note { device, asker, is_shared: enrollment.kind.name() == KindName::Shared };
            // The write continues after this future is dropped. If the answer waited for the write,
            // its time would reveal whether there is something to write, and many requests would
            // pass the limit on refused lookups before the first of them is counted. If a request
            // cannot be noted, the device's next request is noted.
            if let Some(Err(error)) = self.store.note_waiting(note).now_or_never() {
                self.store_failed(&error);
            }
            return Err(Refusal::Held(HELD_PAUSE));
        }
        let new = NewDevice {
            device: device.clone(),
            enrollment: enrollment.name.clone(),
            product_key: enrollment.product_key.clone(),
        };
        let max_rows = enrollment.guards.max_devices;
        // A guess is usually refused here, without the writer, so that it is counted before the
        // next one, and guesses cannot fill the writer's queue.
        let admission = match self.store.not_admitted(&new, max_rows).await {
            // The caller drops a future that is not ready at its first poll, so nothing is written.
            Ok(None) if !may_wait => return future::pending().await,
            Ok(None) => {
                let by = Admits::Configuration { asker, max_rows };
                self.store.admit(vec![new], by).await.map(|mut all| all.pop())
            }
            known => known,
        };
        match admission {
            Ok(Some(Admission::Added | Admission::Known)) => {}
            Ok(Some(Admission::NameTaken(holder))) => {
                return Err(Refusal::NameTaken(format!(
                    "device {holder} has the name that this device would have: import this device with another \
                     deviceName"
                )));
            }
            Ok(Some(Admission::Full)) => return Err(Refusal::Full),
            Ok(Some(Admission::Elsewhere) | None) => return Err(Refusal::Invalid),
            Ok(Some(Admission::Later)) => return Err(Refusal::Later(CHANGED_PAUSE)),
            // The device may have been added. It asks again.
            Err(error) => return Err(self.store_failed(&error)),
        }
        match self.row_of(principal, asked).await {
            // An unfinished import may hide the row, or an operator may have moved it.
            Err(Refusal::Invalid) => Err(Refusal::Later(CHANGED_PAUSE)),
            row => row,
        }
    }

    /// Returns the row of a device if it is in the client's enrollment.
    async fn in_enrollment(
        &self,
        principal: &Principal,
        id: &DeviceId,
    ) -> Result<Option<DeviceRow>, StoreError> {
        Ok(self.store.device(id).await?.filter(|row| row.enrollment == principal.enrollment.name))
    }

    /// Answers a request for the device of `row`, according to the decision of `policy`.
    async fn decide(
        &self,
        origin: Origin,
        principal: &Principal,
        row: &mut DeviceRow,
        may_wait: bool,
    ) -> Result<Certificate, Refusal> {
        let now = self.store.now();
        let terms = principal.enrollment.terms();
        let has_certificate = match policy::verdict(row, terms, Places::default(), now) {
            Verdict::Refuse(reason) => return Err(reason.into()),
            Verdict::HandOut => true,
            Verdict::Register => false,
        };
        if !has_certificate && terms.guards.max_devices.is_some() {
            let taken = self.taken(row).await.map_err(|error| self.store_failed(&error))?;
            if let Verdict::Refuse(reason) = policy::verdict(row, terms, taken, now) {
                return Err(reason.into());
            }
        }
        let first_issued = row.first_issued;
        // The caller drops a future that is not ready at its first poll, so the work must not
        // start. If an issue were recorded and the answer dropped, a device that may fetch its
        // certificate only once would never get it.
        if !may_wait && (first_issued.is_none() || !has_certificate) {
            return future::pending().await;
        }
        let certificate = row.certificate.take();
        let device = &row.id;
        let certificate = match certificate {
            Some(certificate) => certificate,
            None => match self.register(principal, row).await? {
                Some(certificate) => certificate,
                None => return Err(self.changed(principal, device).await),
            },
        };
        // A device that has received its certificate before does not wait for a write to the disk.
        let again = match first_issued {
            Some(_) => true,
            None => !self.record_issue(origin, principal, device, &certificate).await?.is_first,
        };
        if again {
            let asker = (principal.enrollment.name.as_str(), principal.identity(), origin);
            let detail = format_args!("{}/{}", certificate.product_key, certificate.device_name);
            let entry = Asked::new(AuditEvent::Reissued, self.store.now(), device, asker, detail);
            self.store.audit(entry).map_err(|error| self.store_failed(&error))?;
        }
        Ok(certificate)
    }

    /// Returns the MQTT host of a device that was registered after its row was read. Reads the row
    /// again, because the stored row names the target of the registration. Returns `None` if that
    /// row has another certificate than the one that is handed out, or cannot be read.
    async fn new_host(
        &self,
        hosts: &dyn Hosts,
        device: &DeviceId,
        certificate: &Certificate,
    ) -> Option<String> {
        match self.store.device(device).await {
            Ok(row) => {
                let row = row.filter(|row| row.certificate.as_ref() == Some(certificate))?;
                host_of(hosts, &row)
            }
            Err(error) => {
                self.log_failure(&error, "a device gets its certificate without its MQTT host");
                None
            }
        }
    }

    /// Counts the places of a device's enrollment that other devices have taken.
    async fn taken(&self, row: &DeviceRow) -> Result<Places, StoreError> {
        place::taken(&*self.store, &row.enrollment, &row.id).await
    }

    /// Registers a device. Returns `None` if its row has changed in the meantime.
    async fn register(&self, principal: &Principal, row: &DeviceRow) -> Result<Option<Certificate>, Refusal> {
        match self.targets.register(row, self.patience).await {
            Outcome::Registered(certificate) => Ok(Some(certificate)),
            Outcome::Changed => Ok(None),
            // Other devices have taken the last places since they were counted.
            Outcome::NoPlace => {
                let taken = self.taken(row).await.map_err(|error| self.store_failed(&error))?;
                match policy::verdict(row, principal.enrollment.terms(), taken, self.store.now()) {
                    Verdict::Refuse(reason) => Err(reason.into()),
                    // One of those devices has left its place meanwhile.
                    Verdict::HandOut | Verdict::Register => Err(Refusal::Later(CHANGED_PAUSE)),
                }
            }
            Outcome::NoTarget(_) => Err(Refusal::Later(NO_TARGET_PAUSE)),
            Outcome::Elsewhere(_) => Err(Refusal::Later(CHANGED_PAUSE)),
            Outcome::Refused(reason) | Outcome::Operator(reason) | Outcome::SharedName(reason) => {
                Err(Refusal::Operator(reason))
            }
            Outcome::Later(pause) => Err(Refusal::Later(pause.as_secs().clamp(1, u32::MAX.into()) as u32)),
            Outcome::TimedOut => Err(Refusal::TimedOut),
        }
    }

    /// Records the first issue on disk before the answer is sent, under every policy. The
    /// operator can thus see which devices have received a certificate, and a policy that
    /// becomes stricter later applies to them, too. Of two concurrent requests, only one counts
    /// as the first issue.
    async fn record_issue(
        &self,
        origin: Origin,
        principal: &Principal,
        device: &DeviceId,
        certificate: &Certificate,
    ) -> Result<Issue, Refusal> {
        let asker = || asker_of(origin, principal);
        let issue_id = new_id().map_err(|error| self.store_failed(&error))?;
        for _ in 0..ISSUE_ATTEMPTS {
            match self.store.record_issue(device, certificate, issue_id, asker()).await {
                Ok(issue) => {
                    let may_have_it = issue.is_first
                        || policy::may_have_again(
                            principal.enrollment.reissue,
                            issue.first,
                            self.store.now(),
                        );
                    return if may_have_it { Ok(issue) } else { Err(Refusal::Issued) };
                }
                // The issue may have been recorded. The next attempt uses the same ID, so the store
                // recognizes a recorded issue.
                Err(StoreError::Unknown(_)) => {}
                // The row has changed while the device was being registered, so this request is
                // refused. The device's next request is decided by the changed row.
                Err(StoreError::Conflict(_)) => return Err(self.changed(principal, device).await),
                Err(error) => return Err(self.store_failed(&error)),
            }
        }
        Err(Refusal::Later(STORE_PAUSE))
    }

    /// Logs a failure of the store, and returns the refusal of the device.
    fn store_failed(&self, error: &StoreError) -> Refusal {
        self.log_failure(error, "a device is asked to retry later");
        Refusal::Later(STORE_PAUSE)
    }

    fn log_failure(&self, error: &StoreError, effect: &str) {
        // No code panics while it holds the lock.
        let mut lines = self.failure_lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.admit(Instant::now()) {
            tracing::error!(%error, "the store failed: {effect}");
        }
    }

    /// Returns the refusal of a device whose row has changed since it was read, according to the
    /// row's current contents.
    async fn changed(&self, principal: &Principal, device: &DeviceId) -> Refusal {
        let row = match self.store.device(device).await {
            Ok(Some(row)) if row.enrollment == principal.enrollment.name => row,
            Ok(_) => return Refusal::Invalid,
            Err(error) => return self.store_failed(&error),
        };
        match policy::verdict(&row, principal.enrollment.terms(), Places::default(), self.store.now()) {
            Verdict::Refuse(reason) => reason.into(),
            Verdict::HandOut | Verdict::Register => Refusal::Later(CHANGED_PAUSE),
        }
    }
}

/// Returns the MQTT host of a device whose row has its certificate; `None` if it has none.
fn host_of(hosts: &dyn Hosts, row: &DeviceRow) -> Option<String> {
    hosts.host_of(row, &row.certificate.as_ref()?.product_key)
}

/// Returns the client as the audit log names it.
fn asker_of(origin: Origin, principal: &Principal) -> Asker {
    Asker {
        enrollment: principal.enrollment.name.clone(),
        identity: principal.identity().to_owned(),
        address: origin.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use tokio::runtime::Handle;

    use super::*;
    use crate::{
        registrar::{Config, Registrar},
        store::claim::Owner,
        testing::{cloud::Cloud, log::Log, store::Memory},
    };

    #[tokio::test]
    async fn a_store_that_fails_for_a_crowd_is_logged_once_a_second() {
        let store = Arc::new(Memory::default());
        let cloud: Arc<Cloud> = Arc::default();
        let owner = Owner::new("test").unwrap();
        let registrar = Registrar::new(Config::default(), owner, store.clone(), cloud, Handle::current());
        let provisioner = Provisioner::new(store, Targets::only(registrar), Duration::from_secs(1));
        let log = Log::default();
        let begun = Instant::now();
        tracing::subscriber::with_default(log.subscriber(), || {
            for _ in 0..1000 {
                let refusal = provisioner.store_failed(&StoreError::Busy("locked".into()));
                assert_eq!(refusal, Refusal::Later(STORE_PAUSE));
            }
        });
        let log = log.text();
        let lines = log.matches("the store failed").count() as u64;
        assert!((1..=1 + begun.elapsed().as_secs()).contains(&lines), "{log}");
    }

    /// Names the target of a row, if it has one.
    struct OfRow;

    impl Hosts for OfRow {
        fn host_of(&self, row: &DeviceRow, _: &str) -> Option<String> {
            row.target().map(str::to_owned)
        }
    }

    #[tokio::test]
    async fn a_host_is_of_the_row_that_has_the_certificate_or_is_not_told() {
        let certificate = |secret: &str| Certificate {
            product_key: "a1".into(),
            device_name: "SN-1".into(),
            device_secret: crate::device::Secret::new(secret.into()),
        };
        let store = Memory::default();
        let before = DeviceRow::imported(DeviceId::parse("SN-1").unwrap(), "lamp", "a1");
        let registrar = Registrar::new(
            Config::default(),
            Owner::new("test").unwrap(),
            Arc::new(store.clone()),
            Arc::<Cloud>::default(),
            Handle::current(),
        );
        let provisioner =
            Provisioner::new(Arc::new(store.clone()), Targets::only(registrar), Duration::from_secs(1));
        let new = certificate("new");
        assert_eq!(provisioner.new_host(&OfRow, &before.id, &new).await, None, "the device was deleted");
        store.insert(before.clone());
        assert_eq!(provisioner.new_host(&OfRow, &before.id, &new).await, None);
        for (stored, expected) in [("other", None), ("new", Some("tokyo"))] {
            let (target, certificate) = (Some("tokyo".to_owned()), Some(certificate(stored)));
            store.insert(DeviceRow { target, certificate, ..before.clone() });
            assert_eq!(provisioner.new_host(&OfRow, &before.id, &new).await.as_deref(), expected, "{stored}");
        }
    }
}
