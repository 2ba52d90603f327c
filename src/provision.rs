//! The logic of the device table, per request: not in the table, the device is
//! invalid; in the table with a certificate, return it; in the table without,
//! have it registered, and return it. Who may have it is `policy`'s.

use std::{future, sync::Arc, time::Duration};

use crate::{
    device::{Certificate, DeviceId},
    limits::Origin,
    policy::{self, Reason, Verdict},
    psk::Principal,
    registrar::{Outcome, Registrar},
    store::{
        DeviceRow, Issue, JournalEntry, Store, StoreError, UnixSeconds,
        audit::{Asked, Asker, AuditEvent},
        unix_now,
    },
};

/// Why a device does not get a certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not in the table, or in an enrollment that is not the client's: which of
    /// them, the client must not learn.
    #[error("the device is invalid")]
    Invalid,
    /// The client has proven to be another device.
    #[error("the identity is another device's")]
    NotYours,
    /// The operator said no.
    #[error("the device is disabled")]
    Disabled,
    /// The reissue policy says no.
    #[error("the certificate was issued already")]
    Issued,
    /// IoT Platform refuses; only the operator can mend it.
    #[error("IoT Platform refuses: {0}")]
    Operator(String),
    /// Not now; to be asked again after so many seconds.
    #[error("not yet; again in {0} s")]
    Later(u32),
    /// IoT Platform did not answer in time; the registration goes on.
    #[error("IoT Platform did not answer in time")]
    TimedOut,
}

impl Refusal {
    /// Whether it was decided about the device, rather than put off.
    fn is_final(&self) -> bool {
        !matches!(self, Self::Later(_) | Self::TimedOut)
    }
}

impl From<Reason<'_>> for Refusal {
    fn from(reason: Reason<'_>) -> Self {
        match reason {
            Reason::Disabled => Self::Disabled,
            Reason::Issued => Self::Issued,
            Reason::RefusedByCloud(reason) => Self::Operator(reason.to_owned()),
        }
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        tracing::error!(%error, "a device is told to come back");
        Self::Later(STORE_PAUSE)
    }
}

/// When a device should come back that met a store which failed, in seconds.
const STORE_PAUSE: u32 = 30;

/// Hands out certificates.
pub struct Provisioner {
    store: Arc<dyn Store>,
    registrar: Arc<Registrar>,
    /// How long a device is kept waiting for its registration.
    patience: Duration,
}

impl Provisioner {
    /// `patience` is how long a request may wait for its registration.
    pub fn new(store: Arc<dyn Store>, registrar: Arc<Registrar>, patience: Duration) -> Self {
        Self { store, registrar, patience }
    }

    /// The certificate of `device`, for a client that has proven to be `principal`,
    /// at `origin`. What becomes of it is in the audit log. If it may not wait, nothing is
    /// begun that takes time: then this is never ready, and nothing has been done.
    pub async fn certificate(
        &self,
        origin: Origin,
        principal: &Principal,
        device: &DeviceId,
        may_wait: bool,
    ) -> Result<Certificate, Refusal> {
        let answer = self.decide(origin, principal, device, may_wait).await;
        if let Err(refusal) = &answer
            && refusal.is_final()
        {
            let asker = (principal.enrollment.name.as_str(), principal.identity(), origin);
            let reason = format_args!("{refusal}");
            self.store.audit(Asked::new(AuditEvent::Refused, unix_now(), device, asker, reason));
        }
        answer
    }

    async fn decide(
        &self,
        origin: Origin,
        principal: &Principal,
        device: &DeviceId,
        may_wait: bool,
    ) -> Result<Certificate, Refusal> {
        // Decided before the table is looked at, so that the answer tells
        // nothing about it.
        if principal.device.as_ref().is_some_and(|own| own != device) {
            return Err(Refusal::NotYours);
        }
        let row = self.store.device(device).await?.ok_or(Refusal::Invalid)?;
        if row.enrollment != principal.enrollment.name {
            return Err(Refusal::Invalid);
        }
        let now = unix_now();
        let has_certificate = match policy::verdict(&row, principal.enrollment.reissue, now) {
            Verdict::Refuse(reason) => return Err(reason.into()),
            Verdict::HandOut => true,
            Verdict::Register => false,
        };
        let first_issued = row.first_issued;
        // Not begun and then given up: an issue that is recorded and never sent would lock
        // out a device that may fetch its certificate once.
        if !may_wait && (first_issued.is_none() || !has_certificate) {
            return future::pending().await;
        }
        let certificate = match row.certificate {
            Some(certificate) => certificate,
            None => self.register(row).await?,
        };
        // A device that comes again waits for no write.
        let again = match first_issued {
            Some(_) => true,
            None => !self.record_issue(origin, principal, device, now).await?.is_first,
        };
        if again {
            let asker = (principal.enrollment.name.as_str(), principal.identity(), origin);
            let detail = format_args!("{}/{}", certificate.product_key, certificate.device_name);
            self.store.audit(Asked::new(AuditEvent::Reissued, now, device, asker, detail));
        }
        Ok(certificate)
    }

    async fn register(&self, row: DeviceRow) -> Result<Certificate, Refusal> {
        let device_name = row.name();
        let wanted = JournalEntry { device: row.id, product_key: row.product_key, device_name };
        match self.registrar.register(wanted, self.patience).await {
            Outcome::Registered(certificate) => Ok(certificate),
            Outcome::Refused(reason) | Outcome::Operator(reason) => Err(Refusal::Operator(reason)),
            Outcome::Later(pause) => Err(Refusal::Later(pause.as_secs().clamp(1, u32::MAX.into()) as u32)),
            Outcome::TimedOut => Err(Refusal::TimedOut),
        }
    }

    /// The first issue is on the disk before the answer leaves, whatever the
    /// policy: what the operator reads about a device is what it was given, and a
    /// policy that is made stricter later holds for it. Of two requests at once,
    /// one was the first.
    async fn record_issue(
        &self,
        origin: Origin,
        principal: &Principal,
        device: &DeviceId,
        now: UnixSeconds,
    ) -> Result<Issue, Refusal> {
        let asker = Asker {
            enrollment: principal.enrollment.name.clone(),
            identity: principal.identity().to_owned(),
            address: origin.to_string(),
        };
        let issue = self.store.record_issue(device, now, asker).await?;
        let may_have_it =
            issue.is_first || policy::may_have_again(principal.enrollment.reissue, issue.first, now);
        if may_have_it { Ok(issue) } else { Err(Refusal::Issued) }
    }
}
