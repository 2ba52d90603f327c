//! Recent handshakes that failed, by identity and reason, so that an operator can find the devices
//! that caused them. Nothing in this record is authenticated: a client may claim any identity.

use std::sync::{Mutex, MutexGuard, PoisonError};

use hashbrown::Equivalent;

use crate::{
    dtls::Failure,
    rate_limit::Origin,
    recent::{Counted, Recent},
    unix_time::UnixSeconds,
};

/// Maximum number of pairs of an identity and a reason that each worker remembers.
const MOST: usize = 2048;

/// Maximum length of a remembered identity, in characters. Identities that differ only beyond this
/// length are counted together.
const MAX_IDENTITY: usize = 128;

/// Client of a failed handshake: the identity that it claimed, or its origin if the handshake ended
/// before it claimed one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Claimed {
    /// The identity, with escapes for bytes that are not visible ASCII characters.
    Identity(Box<str>),
    /// The origin of a client without an identity.
    Origin(Origin),
}

/// Map key for a lookup in the record, borrowed so that the lookup allocates no memory. It has the
/// same hash as the owned map key in the record.
#[derive(Hash)]
struct Key<'k>(&'k Claimed, Failure);

impl Equivalent<(Claimed, Failure)> for Key<'_> {
    fn equivalent(&self, (claimed, failure): &(Claimed, Failure)) -> bool {
        (self.0, self.1) == (claimed, *failure)
    }
}

/// Recent failed handshakes of one worker. For each client and reason, the record holds the origin
/// of the last handshake.
#[derive(Debug)]
pub struct FailedHandshakes(Mutex<Recent<(Claimed, Failure), Origin>>);

impl Default for FailedHandshakes {
    fn default() -> Self {
        Self(Mutex::new(Recent::new(MOST)))
    }
}

impl FailedHandshakes {
    /// Notes a failed handshake. `identity` is the identity that the client claimed, if any.
    pub fn note(&self, now: UnixSeconds, identity: Option<&[u8]>, reason: Failure, origin: Origin) {
        let claimed = match identity {
            Some(identity) => {
                let mut text = identity.escape_ascii().to_string();
                text.truncate(MAX_IDENTITY);
                Claimed::Identity(text.into())
            }
            None => Claimed::Origin(origin),
        };
        let key = (claimed.clone(), reason);
        self.lock().note(now, &Key(&claimed, reason), || (key, origin), |known| *known = origin);
    }

    /// Calls `each` with the failed handshakes since `from`. Returns whether the record was ever
    /// full, so that older handshakes were forgotten.
    pub fn since(
        &self,
        from: UnixSeconds,
        mut each: impl FnMut(&Claimed, Failure, &Counted<Origin>),
    ) -> bool {
        let record = self.lock();
        record.since(from).for_each(|((claimed, reason), counted)| each(claimed, *reason, counted));
        record.has_forgotten()
    }

    fn lock(&self) -> MutexGuard<'_, Recent<(Claimed, Failure), Origin>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(last: u8) -> Origin {
        Origin::of([192, 0, 2, last].into())
    }

    #[test]
    fn handshakes_are_counted_by_identity_and_reason_or_by_origin() {
        let failed = FailedHandshakes::default();
        failed.note(10, Some(b"SN-1"), Failure::WrongKey, origin(1));
        failed.note(20, Some(b"SN-1"), Failure::WrongKey, origin(2));
        failed.note(30, Some(b"SN-1"), Failure::TimedOut, origin(2));
        failed.note(40, None, Failure::TimedOut, origin(3));
        failed.note(50, None, Failure::TimedOut, origin(4));
        failed.note(60, Some(b"\xff\n\xe2\x80\xae"), Failure::WrongKey, origin(5));
        failed.note(70, Some(&[0xff; 128]), Failure::WrongKey, origin(6));
        let mut seen = Vec::new();
        let forgotten = failed.since(20, |claimed, reason, counted| {
            seen.push((claimed.clone(), reason, counted.count, counted.last, counted.value));
        });
        assert!(!forgotten);
        seen.sort_by_key(|(_, _, _, last, _)| *last);
        let identity = |text: &str| Claimed::Identity(text.into());
        assert_eq!(
            seen,
            [
                (identity("SN-1"), Failure::WrongKey, 2, 20, origin(2)),
                (identity("SN-1"), Failure::TimedOut, 1, 30, origin(2)),
                (Claimed::Origin(origin(3)), Failure::TimedOut, 1, 40, origin(3)),
                (Claimed::Origin(origin(4)), Failure::TimedOut, 1, 50, origin(4)),
                (identity("\\xff\\n\\xe2\\x80\\xae"), Failure::WrongKey, 1, 60, origin(5)),
                (identity(&"\\xff".repeat(32)), Failure::WrongKey, 1, 70, origin(6)),
            ]
        );
    }
}
