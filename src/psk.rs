//! Looks up PSK identities and their keys, in the enrollments of the configuration and among the
//! individual keys of the store. The module `provision` decides which certificate a device may
//! have.

mod own;
mod own_uses;
mod rolling;
pub mod uses;

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::{Zeroize, Zeroizing};

pub use self::{
    own::OwnKey,
    rolling::{NextKey, WhichKey},
};
use self::{
    own_uses::OwnUses,
    uses::{ByEnrollment, UseCounters},
};
use crate::{
    device::AskedId,
    guards::{Guards, Unlisted},
    store::{Store, StoreError, key_use::PskId},
};

/// A pre-shared key. It is never printed, and it is wiped when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(Zeroizing<Vec<u8>>);

/// Shortest key accepted, in bytes (128 bits).
pub const MIN_KEY: usize = 16;
/// Longest key accepted, in bytes (RFC 4279 §5.4).
pub const MAX_KEY: usize = 64;

impl Key {
    /// Parses a key of 16–64 bytes from hex digits of either case. The error says what is
    /// wrong without repeating any part of the key.
    pub fn from_hex(digits: &str) -> Result<Self, String> {
        let bytes =
            hex::decode(digits).map(Zeroizing::new).map_err(|_| "not an even number of hex digits")?;
        if !(MIN_KEY..=MAX_KEY).contains(&bytes.len()) {
            return Err(format!("{} bytes, expected {MIN_KEY} to {MAX_KEY}", bytes.len()));
        }
        Ok(Self(bytes))
    }

    /// Makes a random key in place of a configured key that cannot be read, for commands that serve
    /// no device.
    pub fn unknown() -> Result<Self, String> {
        let mut bytes = Zeroizing::new(vec![0; MIN_KEY]);
        getrandom::fill(&mut bytes).map_err(|error| format!("the system gives no random bytes: {error}"))?;
        Ok(Self(bytes))
    }

    /// Returns the bytes of the key.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Derives the key of a device from this master key of its enrollment: the first 16
    /// bytes of HMAC-SHA256(master, identity).
    pub fn derive(&self, identity: &[u8]) -> Self {
        #[cfg(test)]
        DERIVED.set(DERIVED.get() + 1);
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&self.0) else { unreachable!("HMAC takes any key") };
        mac.update(identity);
        let mut tag = mac.finalize().into_bytes();
        let key = Zeroizing::new(tag[..16].to_vec());
        tag.zeroize();
        Self(key)
    }
}

/// Stand-in for the key of an unknown identity. The stand-in is parsed like a real key, so that the
/// lookup takes the same time.
const STAND_IN_KEY: &str = "00000000000000000000000000000000";

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

/// The way in which the devices of an enrollment prove their identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Each device has a row with its own identity and key.
    Individual,
    /// The identity is the device ID; the key is derived from it with this master key.
    Derived(Key),
    /// All devices share one identity and key, which are in the firmware image.
    Shared {
        /// PSK identity.
        identity: String,
        /// Pre-shared key.
        key: Key,
    },
}

/// Name of a [`Kind`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KindName {
    /// [`Kind::Individual`].
    Individual,
    /// [`Kind::Derived`].
    Derived,
    /// [`Kind::Shared`].
    Shared,
}

impl KindName {
    /// Returns the name as it is written in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Individual => "individual",
            Self::Derived => "derived",
            Self::Shared => "shared",
        }
    }
}

impl Kind {
    /// Returns the name of the kind.
    pub const fn name(&self) -> KindName {
        match self {
            Self::Individual => KindName::Individual,
            Self::Derived(_) => KindName::Derived,
            Self::Shared { .. } => KindName::Shared,
        }
    }
}

/// Reissue policy: how often a device may fetch its certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reissue {
    /// As often as the device asks.
    Always,
    /// As often as the device asks within this time after the first issue.
    Window(Duration),
    /// Only once.
    Once,
}

/// The rules of an enrollment about certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Reissue policy.
    pub reissue: Reissue,
    /// Limits of first certificates.
    pub guards: Guards,
}

/// A group of devices with one product, one way to prove their identity and one reissue
/// policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrollment {
    /// Name in the device table and in the configuration.
    pub name: String,
    /// ProductKey of the product in which its devices are registered.
    pub product_key: String,
    /// The way in which its devices prove their identity.
    pub kind: Kind,
    /// The reissue policy of its devices.
    pub reissue: Reissue,
    /// A second key, which its devices may have as well.
    pub next: Option<NextKey>,
    /// Limits of its first certificates.
    pub guards: Guards,
}

/// An enrollment without its keys, for modules that show enrollments or check rows against
/// them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnrollmentOutline {
    /// Name in the device table and in the configuration.
    pub name: String,
    /// ProductKey of the product in which its devices are registered.
    pub product_key: String,
    /// Name of the way in which its devices prove their identity.
    pub kind: KindName,
    /// The reissue policy of its devices.
    pub reissue: Reissue,
    /// Limits of its first certificates.
    pub guards: Guards,
    /// Different PSK identities of its keys, if its keys are shared; otherwise empty.
    pub shared_identities: Vec<String>,
    /// IDs of its two keys, in the order of [`WhichKey::ALL`], if it has two.
    pub key_ids: Option<[PskId; 2]>,
}

/// Identity of a session's client, proven by its key.
#[derive(Debug, Clone)]
pub struct Principal {
    /// Enrollment whose key the client has proven.
    pub enrollment: Arc<Enrollment>,
    /// The client's device; `None` when the key is shared. With a derived key, the identity is the
    /// device ID, and an identity may stand for two IDs (a serial number and a MAC address).
    pub device: Option<AskedId>,
    /// The client's key, if it is individual.
    pub own: Option<OwnKey>,
    /// Key that the client has proven: one of two, or [`WhichKey::Current`] if there is only one.
    pub key: WhichKey,
}

impl Enrollment {
    /// Returns a copy that refuses devices that are not in the table. It is for clients that have
    /// proven no key.
    pub fn without_unlisted(&self) -> Self {
        let guards = Guards { unlisted: Unlisted::Refuse, ..self.guards };
        Self { guards, ..self.clone() }
    }

    /// Returns a copy without keys.
    pub fn outline(&self) -> EnrollmentOutline {
        let Self { name, product_key, kind, reissue, next: _, guards } = self;
        let identities = WhichKey::ALL.map(|which| self.shared_identity(which));
        let mut shared_identities: Vec<String> = identities.into_iter().flatten().map(Into::into).collect();
        shared_identities.dedup();
        EnrollmentOutline {
            name: name.clone(),
            product_key: product_key.clone(),
            kind: kind.name(),
            reissue: *reissue,
            guards: *guards,
            shared_identities,
            key_ids: self.key_ids(),
        }
    }

    /// Returns the rules about its certificates.
    pub fn terms(&self) -> Terms {
        Terms { reissue: self.reissue, guards: self.guards }
    }
}

impl EnrollmentOutline {
    /// Returns the rules about its certificates.
    pub fn terms(&self) -> Terms {
        Terms { reissue: self.reissue, guards: self.guards }
    }
}

impl Principal {
    /// Returns the treatment of the client's device if the device is not in the table. The result is
    /// `Refuse` unless the client has proven a derived key of its device, or a shared key.
    pub fn unlisted(&self) -> Unlisted {
        let may_be_unlisted = match &self.enrollment.kind {
            Kind::Individual => false,
            Kind::Derived(_) => self.device.is_some(),
            Kind::Shared { .. } => true,
        };
        if may_be_unlisted { self.enrollment.guards.unlisted } else { Unlisted::Refuse }
    }

    /// Returns which key the client has proven, if its enrollment or its device has two.
    pub fn which_of_two(&self) -> Option<WhichKey> {
        let has_two = self.enrollment.next.is_some() || self.own.as_ref().is_some_and(|own| own.is_rolling);
        has_two.then_some(self.key)
    }

    /// Returns the PSK identity that the client's key belongs to. Returns an empty string
    /// for a client without an identity.
    pub fn identity(&self) -> &str {
        match (&self.own, &self.device) {
            (Some(own), _) => &own.identity,
            (None, Some(device)) => device.first().as_str(),
            (None, None) => self.enrollment.shared_identity(self.key).unwrap_or_default(),
        }
    }
}

/// Result of [`Enrollments::find`].
#[derive(Debug)]
pub struct Lookup {
    /// The keys of the identity; `None` if the identity is unknown.
    pub keys: Option<FoundKeys>,
    /// Set if some identity has two keys. Two keys must then be tried for every identity, so that
    /// the duration of a handshake does not reveal which identities have two.
    pub tries_two: bool,
}

/// The key of an identity, and the principal that it proves.
pub type Found = (Key, Principal);

/// The key of an identity and, if it has two, its second key.
pub type FoundKeys = (Found, Option<Found>);

/// The enrollments of a configuration, indexed for lookup.
#[derive(Debug, Default)]
pub struct Enrollments {
    by_name: HashMap<String, Arc<Enrollment>>,
    /// Enrollment of each shared identity, and the key of the enrollment that has the identity: the
    /// first one, if both keys have the same identity.
    by_identity: HashMap<String, (Arc<Enrollment>, WhichKey)>,
    derived: Vec<Arc<Enrollment>>,
    /// One of the individual enrollments, used as a stand-in for an unknown identity.
    individual: Option<Arc<Enrollment>>,
    /// Set if some shared identity, or some derived enrollment, has two keys.
    shares_two: bool,
    derives_two: bool,
    counters: ByEnrollment,
    own_uses: Arc<OwnUses>,
}

impl Enrollments {
    /// Creates the index. Names and shared identities must be unique, and at most one derived
    /// enrollment may take devices that are not in the table, as the configuration has checked.
    pub fn new(enrollments: impl IntoIterator<Item = Enrollment>) -> Self {
        let mut all = Self::default();
        for enrollment in enrollments.into_iter().map(Arc::new) {
            let has_two = enrollment.has_two_keys_of_an_identity();
            match &enrollment.kind {
                Kind::Individual => all.individual = Some(enrollment.clone()),
                Kind::Derived(_) => {
                    all.derives_two |= has_two;
                    // Devices that are not in the table are treated as devices of the first
                    // enrollment, so the enrollment that holds or admits them comes first.
                    let place = match enrollment.guards.unlisted {
                        Unlisted::Refuse => all.derived.len(),
                        _ => 0,
                    };
                    all.derived.insert(place, enrollment.clone());
                }
                Kind::Shared { .. } => {
                    all.shares_two |= has_two;
                    // The first key comes last, because it leads to the second one if both have the
                    // same identity.
                    for which in [WhichKey::Next, WhichKey::Current] {
                        if let Some(identity) = enrollment.shared_identity(which) {
                            all.by_identity.insert(identity.to_owned(), (enrollment.clone(), which));
                        }
                    }
                }
            }
            all.by_name.insert(enrollment.name.clone(), enrollment);
        }
        all
    }

    /// Creates the index like [`new`](Self::new). The handshakes with each key are counted in
    /// `counters`.
    pub fn counted(enrollments: impl IntoIterator<Item = Enrollment>, counters: &UseCounters) -> Self {
        let all = Self::new(enrollments);
        let own_uses = counters.own.clone();
        let counters = counters.count(all.by_name.values().map(AsRef::as_ref));
        Self { counters, own_uses, ..all }
    }

    /// Returns the enrollment with this name.
    pub fn named(&self, name: &str) -> Option<&Arc<Enrollment>> {
        self.by_name.get(name)
    }

    /// Returns a copy that shares no memory with this one.
    pub fn unshared(&self) -> Self {
        // The derived enrollments keep their order, because unknown devices are treated as devices
        // of the first derived enrollment.
        let others = self.by_name.values().filter(|other| !matches!(other.kind, Kind::Derived(_)));
        let all = self.derived.iter().chain(others).map(|enrollment| Enrollment::clone(enrollment));
        // The counters are shared, because they are read for the whole process.
        Self { counters: self.counters.clone(), own_uses: self.own_uses.clone(), ..Self::new(all) }
    }

    /// Counts a completed handshake of this client.
    pub fn count_use(&self, principal: &Principal) {
        match &principal.own {
            Some(own) => self.own_uses.count(principal, own),
            None => uses::count(&self.counters, &principal.enrollment.name, principal.key),
        }
    }

    /// Looks up an identity. Returns the keys and principals of the identity.
    ///
    /// Does the same work for every identity, so that the duration of a handshake does not reveal
    /// the kind of its identity. For each kind of enrollment that is configured, this function
    /// copies a shared key, reads an individual key or derives a key. A stand-in replaces a key
    /// that does not exist.
    pub async fn find(&self, identity: &[u8], store: &dyn Store) -> Result<Lookup, StoreError> {
        let tries_two = self.shares_two || self.derives_two;
        // An identity that is not UTF-8 cannot exist. This is public knowledge, so a faster lookup
        // reveals nothing.
        let Ok(identity) = std::str::from_utf8(identity) else { return Ok(Lookup { keys: None, tries_two }) };
        let (individual, are_rolling) = self.individual(identity, store).await?;
        let derived = self.derived(identity, store).await?;
        let keys = self.shared(identity).or(individual).or(derived);
        Ok(Lookup { keys, tries_two: tries_two || are_rolling })
    }

    fn shared(&self, identity: &str) -> Option<FoundKeys> {
        let found = self.by_identity.get(identity);
        let (enrollment, which) = found.or_else(|| self.by_identity.values().next())?;
        let candidate = |key: &Key, which| {
            let enrollment = enrollment.clone();
            (key.clone(), Principal { enrollment, device: None, own: None, key: which })
        };
        let first = candidate(enrollment.key(*which)?, *which);
        let second = self.shares_two.then(|| {
            let key = enrollment.next.as_ref().map_or(&first.0, |next| &next.key);
            candidate(key, WhichKey::Next)
        });
        let second =
            second.filter(|_| *which == WhichKey::Current && enrollment.has_two_keys_of_an_identity());
        found.is_some().then_some((first, second))
    }

    async fn derived(&self, identity: &str, store: &dyn Store) -> Result<Option<FoundKeys>, StoreError> {
        let Some(first) = self.derived.first() else { return Ok(None) };
        // An identity that is not a valid device ID belongs to no device. This is public knowledge,
        // so a faster lookup reveals nothing.
        let Ok(device) = AskedId::parse(identity) else { return Ok(None) };
        let enrollment = self.derived_of(&device, first, store).await?.clone();
        let Kind::Derived(master) = &enrollment.kind else { return Ok(None) };
        let candidate = |master: &Key, which| {
            let (enrollment, device) = (enrollment.clone(), Some(device.clone()));
            let key = master.derive(identity.as_bytes());
            (key, Principal { enrollment, device, own: None, key: which })
        };
        let next = enrollment.next.as_ref().map(|next| &next.key);
        let key = candidate(master, WhichKey::Current);
        // If one derived enrollment has two keys, two keys are derived for the devices of every
        // derived enrollment.
        let second = self.derives_two.then(|| candidate(next.unwrap_or(master), WhichKey::Next));
        Ok(Some((key, second.filter(|_| next.is_some()))))
    }

    /// Returns the derived enrollment of a device. A device that is not in the table is treated as a
    /// device of the first derived enrollment: if a derived enrollment holds or admits such devices,
    /// it comes first. So the device can prove its key. If no enrollment holds or admits the device,
    /// its request is then refused as invalid. If there is only one derived enrollment, the store is
    /// not read.
    async fn derived_of<'a>(
        &'a self,
        device: &AskedId,
        first: &'a Arc<Enrollment>,
        store: &dyn Store,
    ) -> Result<&'a Arc<Enrollment>, StoreError> {
        if self.derived.len() == 1 {
            return Ok(first);
        }
        let spelled = match device.mac() {
            Some(mac) => store.spelled(&mac).await?,
            None => None,
        };
        let mut own = None;
        // If an identity stands for several IDs, all of them are looked up, so that the duration
        // does not reveal which of them is in the table.
        for id in device.ids().chain(&spelled) {
            let name = store.enrollment_of(id).await?;
            let found = self.derived.iter().find(|enrollment| Some(&enrollment.name) == name.as_ref());
            own = own.or(found);
        }
        Ok(own.unwrap_or(first))
    }
}

#[cfg(test)]
thread_local! {
    /// Number of keys that this thread has derived.
    pub(crate) static DERIVED: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_derived_key_is_the_beginning_of_the_hmac() {
        // The key of RFC 4231 §4.3 (test case 2) is too short for a master key. So this test takes
        // the HMAC as correct and checks only the truncation.
        let master = Key::from_hex("000102030405060708090a0b0c0d0e0f").unwrap();
        let mut mac = Hmac::<Sha256>::new_from_slice(master.as_bytes()).unwrap();
        mac.update(b"SN00000001");
        assert_eq!(master.derive(b"SN00000001").as_bytes(), &mac.finalize().into_bytes()[..16]);
        // The expected key was computed with `openssl dgst -sha256 -mac hmac`.
        assert_eq!(hex::encode(master.derive(b"SN00000001").as_bytes()), "6d5e2bff07c2591af4b318ee7ca9ba2a");
    }

    #[test]
    fn an_unlisted_device_is_of_the_enrollment_that_takes_such_devices() {
        let derived = |name: &str, byte: &str, unlisted| Enrollment {
            name: name.into(),
            product_key: "a1".into(),
            kind: Kind::Derived(Key::from_hex(&byte.repeat(16)).unwrap()),
            reissue: Reissue::Always,
            next: None,
            guards: Guards { unlisted, ..Guards::default() },
        };
        for unlisted in [Unlisted::Hold, Unlisted::Admit] {
            let all = [derived("a", "aa", Unlisted::Refuse), derived("b", "bb", unlisted)];
            let all = Enrollments::new(all);
            for enrollments in [&all, &all.unshared()] {
                assert_eq!(enrollments.derived[0].name, "b");
            }
        }
        let usual = [derived("a", "aa", Unlisted::Refuse), derived("b", "bb", Unlisted::Refuse)];
        assert_eq!(Enrollments::new(usual).derived[0].name, "a");
    }

    #[test]
    fn a_copy_is_equal_and_shares_nothing() {
        let key = || Key::from_hex(&"ab".repeat(16)).unwrap();
        let kinds =
            [Kind::Individual, Kind::Derived(key()), Kind::Shared { identity: "one".into(), key: key() }];
        let enrollments = Enrollments::new(kinds.into_iter().enumerate().map(|(number, kind)| Enrollment {
            name: number.to_string(),
            product_key: "a1".into(),
            kind,
            reissue: Reissue::Always,
            next: None,
            guards: Guards::default(),
        }));
        let copy = enrollments.unshared();
        assert_eq!(format!("{:?}", copy.derived), format!("{:?}", enrollments.derived));
        assert_eq!((copy.by_identity["one"].0.name.as_str(), copy.individual.is_some()), ("2", true));
        for (name, enrollment) in &enrollments.by_name {
            assert_eq!(copy.by_name[name], *enrollment);
            assert!(!Arc::ptr_eq(&copy.by_name[name], enrollment));
        }
        assert!(Arc::ptr_eq(&copy.derived[0], &copy.by_name["1"]));
    }

    #[test]
    fn the_error_about_a_bad_key_does_not_repeat_it() {
        assert_eq!(Key::from_hex("00ff").unwrap_err(), "2 bytes, expected 16 to 64");
        assert_eq!(Key::from_hex("xyz").unwrap_err(), "not an even number of hex digits");
        assert!(Key::from_hex(&"ab".repeat(64)).is_ok());
        assert!(Key::from_hex(&"ab".repeat(65)).is_err());
        assert_eq!(format!("{:?}", Key::from_hex(&"ab".repeat(16)).unwrap()), "Key(…)");
    }
}
