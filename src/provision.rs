//! The three-way logic for each request: a device that is not in the table is invalid;
//! one in the table with a certificate gets it; one in the table without a certificate is
//! registered and then gets it. Who may have it is decided in `policy`.

use std::{future, sync::Arc, time::Duration};

use crate::{
    device::{Certificate, DeviceId},
    policy::{self, Reason, Verdict},
    psk::Principal,
    rate_limit::Origin,
    registrar::{Outcome, Registrar},
    store::{
        DeviceRow, Issue, JournalEntry, Store, StoreError, UnixSeconds,
        audit::{Asked, Asker, AuditEvent},
        unix_now,
    },
};

/// Reason why a device does not get a certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not in the table, or in another enrollment than the client's; the client must not
    /// learn which.
    #[error("the device is invalid")]
    Invalid,
    /// The client has proven that it is another device.
    #[error("the identity is another device's")]
    NotYours,
    /// The operator has disabled the device.
    #[error("the device is disabled")]
    Disabled,
    /// The reissue policy does not allow it again.
    #[error("the certificate was issued already")]
    Issued,
    /// IoT Platform refuses; only the operator can fix it.
    #[error("IoT Platform refuses: {0}")]
    Operator(String),
    /// Not now; retry after this many seconds.
    #[error("not yet; retry in {0} s")]
    Later(u32),
    /// IoT Platform did not answer in time; the registration continues.
    #[error("IoT Platform did not answer in time")]
    TimedOut,
}

impl Refusal {
    /// Returns whether it is a decision about the device and not a delay.
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
        tracing::error!(%error, "the store failed: a device is asked to retry later");
        Self::Later(STORE_PAUSE)
    }
}

/// Seconds after which a device should retry when the store failed.
const STORE_PAUSE: u32 = 30;

/// Hands out certificates.
pub struct Provisioner {
    store: Arc<dyn Store>,
    registrar: Arc<Registrar>,
    /// Maximum time that a device waits for its registration.
    patience: Duration,
}

impl Provisioner {
    /// Creates a provisioner; `patience` is the maximum time that a request waits for its
    /// registration.
    pub fn new(store: Arc<dyn Store>, registrar: Arc<Registrar>, patience: Duration) -> Self {
        Self { store, registrar, patience }
    }

    /// Returns the certificate of `device` for a client that has proven to be
    /// `principal`, at `origin`. Refusals and reissues are written to the audit log. If
    /// `may_wait` is false, nothing that takes time is started: the future then never
    /// becomes ready, and has done nothing.
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
        // Checked before the table is read, so that the answer reveals nothing about it.
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
        // Not started at all, rather than started and dropped: an issue that is recorded
        // but never sent would lock out a device that may fetch its certificate only
        // once.
        if !may_wait && (first_issued.is_none() || !has_certificate) {
            return future::pending().await;
        }
        let certificate = match row.certificate {
            Some(certificate) => certificate,
            None => self.register(row).await?,
        };
        // A device that asks again waits for no write.
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

    /// Records the first issue on the disk before the answer leaves, under every policy:
    /// the operator can thus see what a device was given, and a policy that is made
    /// stricter later applies to it. Of two concurrent requests, only one is the first.
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
