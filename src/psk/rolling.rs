//! The second key that an enrollment has while its key is being replaced. This module decides which
//! identity each of the two keys has, and which key of a changed configuration equals the key of a
//! session.

use super::{Enrollment, Key, Kind};
pub use crate::store::key_use::WhichKey;

/// The key that is going to replace the key of an enrollment. Devices may have either.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NextKey {
    /// Master key or shared key, different from the enrollment's other key.
    pub key: Key,
    /// PSK identity of this key, if the enrollment is shared and this key has another identity.
    pub identity: Option<String>,
}

impl Enrollment {
    /// Returns the PSK identity that all devices with this key share; `None` unless the key is
    /// shared.
    pub fn shared_identity(&self, which: WhichKey) -> Option<&str> {
        let Kind::Shared { identity, .. } = &self.kind else { return None };
        let next = self.next.as_ref().filter(|_| which == WhichKey::Next);
        Some(next.and_then(|next| next.identity.as_deref()).unwrap_or(identity))
    }

    /// Returns one of the enrollment's keys. Returns `None` if it has no such key, or if each device
    /// has its own.
    pub fn key(&self, which: WhichKey) -> Option<&Key> {
        match (&self.kind, which) {
            (Kind::Individual, _) => None,
            (Kind::Derived(key) | Kind::Shared { key, .. }, WhichKey::Current) => Some(key),
            (Kind::Derived(_) | Kind::Shared { .. }, WhichKey::Next) => {
                self.next.as_ref().map(|next| &next.key)
            }
        }
    }

    /// Returns whether a client with one and the same identity may have either of two keys.
    pub fn has_two_keys_of_an_identity(&self) -> bool {
        self.key(WhichKey::Next).is_some()
            && self.shared_identity(WhichKey::Current) == self.shared_identity(WhichKey::Next)
    }

    /// Returns which key of this enrollment equals the given key of `former`, an enrollment of the
    /// previous configuration. Name, product, kind, key and identity must be equal, but the reissue
    /// policies may differ. Individual keys are not compared.
    pub fn key_of(&self, former: &Self, which: WhichKey) -> Option<WhichKey> {
        let is_same = self.name == former.name
            && self.product_key == former.product_key
            && self.kind.name() == former.kind.name();
        let key = former.key(which).filter(|_| is_same)?;
        let identity = former.shared_identity(which);
        WhichKey::ALL
            .into_iter()
            .find(|&own| self.key(own) == Some(key) && self.shared_identity(own) == identity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::psk::Reissue;

    fn key(byte: u8) -> Key {
        Key::from_hex(&hex::encode([byte; 16])).unwrap()
    }

    fn shared(own: (&str, u8), next: Option<(Option<&str>, u8)>) -> Enrollment {
        Enrollment {
            name: "plug".into(),
            product_key: "a1".into(),
            kind: Kind::Shared { identity: own.0.into(), key: key(own.1) },
            reissue: Reissue::Always,
            next: next.map(|(identity, byte)| NextKey { key: key(byte), identity: identity.map(Into::into) }),
            guards: Default::default(),
        }
    }

    fn derived(own: u8, next: Option<u8>) -> Enrollment {
        let next = next.map(|byte| NextKey { key: key(byte), identity: None });
        Enrollment { kind: Kind::Derived(key(own)), next, ..shared(("", 0), None) }
    }

    #[test]
    fn a_key_stays_the_same_key_wherever_the_configuration_has_it() {
        use WhichKey::{Current, Next};
        let both = derived(1, Some(2));
        for (now, current, next) in [
            (derived(1, Some(2)), Some(Current), Some(Next)),
            (derived(2, Some(1)), Some(Next), Some(Current)),
            (derived(2, None), None, Some(Current)),
            (derived(1, None), Some(Current), None),
            (derived(3, Some(4)), None, None),
            (Enrollment { product_key: "a2".into(), ..both.clone() }, None, None),
            (Enrollment { name: "other".into(), ..both.clone() }, None, None),
            (Enrollment { kind: Kind::Individual, next: None, ..both.clone() }, None, None),
            (shared(("", 1), None), None, None),
            (Enrollment { reissue: Reissue::Once, ..both.clone() }, Some(Current), Some(Next)),
        ] {
            assert_eq!((now.key_of(&both, Current), now.key_of(&both, Next)), (current, next), "{now:?}");
        }
        assert_eq!(derived(1, None).key_of(&derived(1, None), Next), None);
    }

    #[test]
    fn a_shared_key_is_the_same_only_under_the_same_identity() {
        use WhichKey::{Current, Next};
        let both = shared(("old", 1), Some((Some("new"), 2)));
        assert!(!both.has_two_keys_of_an_identity());
        assert_eq!(shared(("new", 2), None).key_of(&both, Next), Some(Current));
        assert_eq!(shared(("old", 2), None).key_of(&both, Next), None);
        assert_eq!(shared(("new", 1), Some((None, 2))).key_of(&both, Next), Some(Next));
        assert_eq!(shared(("new", 1), Some((None, 2))).key_of(&both, Current), None);
        let one_identity = shared(("old", 1), Some((None, 2)));
        assert!(one_identity.has_two_keys_of_an_identity());
        assert_eq!(shared(("old", 2), None).key_of(&one_identity, Next), Some(Current));
    }
}
