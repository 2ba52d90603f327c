//! Keys of individual devices: each device has its own key in the table, and a second one while the
//! key is being replaced. Looks keys up, and finds out whether a session's key is still a key of its
//! device.

use std::sync::Arc;

use super::{Enrollments, FoundKeys, Key, Kind, Principal, STAND_IN_KEY, WhichKey};
use crate::store::{IndividualKey, KeyLookup, Store, StoreError, UnixSeconds};

/// The individual key that a client has proven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnKey {
    /// PSK identity that the client presented.
    pub identity: Arc<str>,
    /// ID by which the key is recognized later.
    pub(super) id: [u8; 8],
    /// Set if the device had two keys when the key was looked up.
    pub is_rolling: bool,
    /// Time at which the device was given its second key. A use of the key counts only in this roll,
    /// because in a later roll, the device has two other keys.
    pub(super) since: Option<UnixSeconds>,
}

impl Enrollments {
    /// Looks up an individual key. Also returns whether two keys must be tried for every identity. Does
    /// the same work for every identity, with one key, two keys or none.
    pub(super) async fn individual(
        &self,
        identity: &str,
        store: &dyn Store,
    ) -> Result<(Option<FoundKeys>, bool), StoreError> {
        let Some(stand_in) = &self.individual else { return Ok((None, false)) };
        let KeyLookup { found, are_rolling } = store.individual_key(identity).await?;
        Ok((self.keys(identity, found, &stand_in.name, are_rolling), are_rolling))
    }

    fn keys(
        &self,
        identity: &str,
        found: Option<IndividualKey>,
        stand_in: &str,
        are_rolling: bool,
    ) -> Option<FoundKeys> {
        let (digits, next, name) = match &found {
            Some(found) => (found.psk.expose(), found.next.as_ref(), found.enrollment.as_str()),
            None => (STAND_IN_KEY, None, stand_in),
        };
        let is_rolling = next.is_some();
        let since = found.as_ref().and_then(|found| found.next_since);
        let first = Key::from_hex(digits).ok()?;
        let second = are_rolling.then(|| Key::from_hex(next.map_or(STAND_IN_KEY, |next| next.expose())).ok());
        let second = second.flatten();
        let enrollment = self.by_name.get(name)?;
        let is_known = found.is_some() && enrollment.kind == Kind::Individual;
        let device = found.map(|found| found.device);
        let candidate = |key: Key, which| {
            let id = enrollment.digest(key.as_bytes());
            let own = OwnKey { identity: identity.into(), id, is_rolling, since };
            let device = device.clone().map(Into::into);
            (key, Principal { enrollment: enrollment.clone(), device, own: Some(own), key: which })
        };
        let first = candidate(first, WhichKey::Current);
        let second = second.map(|key| candidate(key, WhichKey::Next)).filter(|_| is_rolling);
        is_known.then_some((first, second))
    }

    /// Returns whether the individual key that a client has proven is still a key of its device, in
    /// the same enrollment. Returns true for a client with another kind of key.
    pub async fn still_has(&self, principal: &Principal, store: &dyn Store) -> Result<bool, StoreError> {
        let Some(own) = &principal.own else { return Ok(true) };
        let Some(found) = store.individual_key(&own.identity).await?.found else { return Ok(false) };
        let enrollment = &principal.enrollment;
        let is_key =
            |digits: &str| Key::from_hex(digits).is_ok_and(|key| enrollment.digest(key.as_bytes()) == own.id);
        let is_device = principal.device.as_ref().is_some_and(|device| *device.first() == found.device);
        Ok(is_device
            && found.enrollment == enrollment.name
            && (is_key(found.psk.expose()) || found.next.is_some_and(|next| is_key(next.expose()))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        device::{DeviceId, Secret},
        psk::{Enrollment, Reissue},
        store::{
            Actor, ImportRow,
            roll::{Ending, Rolls},
        },
        testing::store::{Memory, import},
    };

    const OLD: &str = "000102030405060708090a0b0c0d0e0f";
    const NEW: &str = "ff0102030405060708090a0b0c0d0e0f";

    fn own(name: &str) -> Enrollment {
        Enrollment {
            name: name.into(),
            product_key: "a1".into(),
            kind: Kind::Individual,
            reissue: Reissue::Always,
            next: None,
            guards: Default::default(),
        }
    }

    fn row(next: Option<&str>) -> ImportRow {
        let secret = |digits: &str| Secret::new(digits.to_owned());
        ImportRow {
            individual: true,
            key: Some(("one".into(), secret(OLD))),
            next_key: next.map(secret),
            ..ImportRow::new(DeviceId::parse("SN-1").unwrap(), "own", "a1")
        }
    }

    fn key(digits: &str) -> Key {
        Key::from_hex(digits).unwrap()
    }

    #[tokio::test]
    async fn a_device_has_both_keys_while_they_are_rolled() {
        let store = Memory::default();
        let enrollments = Enrollments::new([own("own")]);
        import(&store, [row(None)]);
        let (found, tries_two) = enrollments.individual("one", &store).await.unwrap();
        assert!(!tries_two && found.unwrap().1.is_none());
        import(&store, [row(Some(NEW))]);
        let (found, tries_two) = enrollments.individual("one", &store).await.unwrap();
        let ((first, current), second) = found.unwrap();
        let (second, next) = second.unwrap();
        assert_eq!((first, second, tries_two), (key(OLD), key(NEW), true));
        assert_eq!((current.key, next.key), (WhichKey::Current, WhichKey::Next));
        assert_eq!((current.identity(), next.identity()), ("one", "one"));
        assert_eq!(current.device, next.device);
        let (found, tries_two) = enrollments.individual("two", &store).await.unwrap();
        assert!(found.is_none() && tries_two, "two keys are tried for every identity");
    }

    #[tokio::test]
    async fn a_key_that_was_taken_away_is_noticed() {
        let store = Memory::default();
        let enrollments = Enrollments::new([own("own"), own("other")]);
        import(&store, [row(Some(NEW))]);
        let (found, _) = enrollments.individual("one", &store).await.unwrap();
        let ((_, former), second) = found.unwrap();
        let (_, new) = second.unwrap();
        let still = async || [&former, &new].map(|client| enrollments.still_has(client, &store));
        let both = async || {
            let [former, new] = still().await;
            [former.await.unwrap(), new.await.unwrap()]
        };
        assert_eq!(both().await, [true, true]);
        let device = DeviceId::parse("SN-1").unwrap();
        store.end_roll(&device, Ending::Anyway, &Actor::system_user()).await.unwrap();
        assert_eq!(both().await, [false, true]);
        let moved = ImportRow { enrollment: "other".into(), key: None, ..row(None) };
        import(&store, [moved]);
        assert_eq!(both().await, [false, false], "its enrollment has changed");
        assert!(enrollments.still_has(&Principal { own: None, ..former.clone() }, &store).await.unwrap());
    }
}
