//! The ephemeral half of ECDHE_PSK (RFC 5489 §2): X25519 from dalek and P-256 from RustCrypto. An
//! ephemeral key serves one handshake and is then discarded. Its secret comes from the operating
//! system, because the state of a generator in this process could reveal the secret.

use p256::elliptic_curve::sec1::ToSec1Point;
use zeroize::Zeroizing;

#[cfg(any(test, feature = "testing"))]
use super::wire::Reader;
use super::{
    clean_stack::on_clean_stack,
    wire::{Malformed, put_vector8},
};

/// A named group (RFC 8422 §5.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Group {
    X25519 = 29,
    Secp256r1 = 23,
}

impl Group {
    pub(crate) const ALL: [Self; 2] = [Self::X25519, Self::Secp256r1];
}

/// Secret that both sides compute; wiped when dropped.
pub(crate) type SharedSecret = Zeroizing<Vec<u8>>;

/// Length of the secret of an ephemeral key in bytes, for either group.
const SECRET: usize = 32;

/// Error: the operating system returned no random bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NoRandomness;

/// The server's ephemeral key for one handshake. The secret is boxed, so it never moves in memory,
/// and it is wiped when dropped.
pub(crate) struct EphemeralKey {
    group: Group,
    secret: Box<Zeroizing<[u8; SECRET]>>,
}

impl EphemeralKey {
    pub(crate) fn generate(group: Group) -> Result<Self, NoRandomness> {
        #[cfg(any(test, feature = "testing"))]
        if let Some(secret) = known::SECRET.get() {
            return Ok(Self::known(group, secret));
        }
        let mut secret = Box::new(Zeroizing::new([0; SECRET]));
        // About one in 2^32 random numbers is not a valid P-256 secret, so a few attempts
        // suffice.
        for _ in 0..4 {
            getrandom::fill(&mut secret[..]).map_err(|_| NoRandomness)?;
            let is_valid = || group == Group::X25519 || p256::SecretKey::from_slice(&secret[..]).is_ok();
            if on_clean_stack(is_valid) {
                return Ok(Self { group, secret });
            }
        }
        Err(NoRandomness)
    }

    /// Creates an ephemeral key with the given secret, for tests.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn known(group: Group, secret: [u8; SECRET]) -> Self {
        Self { group, secret: Box::new(Zeroizing::new(secret)) }
    }

    pub(crate) fn group(&self) -> Group {
        self.group
    }

    /// Appends ServerECDHParams (RFC 8422 §5.4): a named curve and our point.
    pub(crate) fn put_params(&self, out: &mut Vec<u8>) {
        const NAMED_CURVE: u8 = 3;
        out.push(NAMED_CURVE);
        out.extend_from_slice(&(self.group as u16).to_be_bytes());
        put_vector8(out, &self.public());
    }

    pub(crate) fn public(&self) -> Vec<u8> {
        on_clean_stack(|| match self.group {
            Group::X25519 => x25519_dalek::PublicKey::from(&self.x25519()).to_bytes().to_vec(),
            // `generate` has checked that the secret is valid.
            Group::Secp256r1 => p256::SecretKey::from_slice(&self.secret[..])
                .map(|secret| secret.public_key().to_sec1_point(false).as_bytes().to_vec())
                .unwrap_or_default(),
        })
    }

    /// Computes the shared secret with the client's point. Refuses a point that is not on
    /// the curve, or that leads to an all-zero secret (RFC 7748 §6.1): with such a point,
    /// others could learn the secret.
    pub(crate) fn agree(&self, point: &[u8]) -> Result<SharedSecret, Malformed> {
        on_clean_stack(|| match self.group {
            Group::X25519 => {
                let point: [u8; 32] = point.try_into().map_err(|_| Malformed)?;
                let shared = self.x25519().diffie_hellman(&point.into());
                if shared.was_contributory() {
                    Ok(Zeroizing::new(shared.as_bytes().to_vec()))
                } else {
                    Err(Malformed)
                }
            }
            Group::Secp256r1 => {
                // RFC 8422 §5.1.1: only uncompressed points are allowed.
                if point.first() != Some(&4) {
                    return Err(Malformed);
                }
                let point = p256::PublicKey::from_sec1_bytes(point).map_err(|_| Malformed)?;
                let secret = p256::SecretKey::from_slice(&self.secret[..]).map_err(|_| Malformed)?;
                let shared = p256::ecdh::diffie_hellman(secret.to_nonzero_scalar(), point.as_affine());
                Ok(Zeroizing::new(shared.raw_secret_bytes().to_vec()))
            }
        })
    }

    fn x25519(&self) -> x25519_dalek::StaticSecret {
        x25519_dalek::StaticSecret::from(**self.secret)
    }
}

/// Fixed secret of the ephemeral keys that this thread makes, for replaying handshakes.
#[cfg(any(test, feature = "testing"))]
pub(crate) mod known {
    thread_local! {
        pub(crate) static SECRET: std::cell::Cell<Option<[u8; super::SECRET]>> =
            const { std::cell::Cell::new(None) };
    }
}

/// Reads ServerECDHParams: the group and the server's point.
#[cfg(any(test, feature = "testing"))]
pub(crate) fn read_params(reader: &mut Reader<'_>) -> Result<(Group, Vec<u8>), Malformed> {
    let _named_curve = reader.u8()?;
    let code = reader.u16()?;
    let group = Group::ALL.into_iter().find(|group| *group as u16 == code).ok_or(Malformed)?;
    Ok((group, reader.vector8()?.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(group: Group, seed: u8) -> EphemeralKey {
        EphemeralKey::known(group, [seed; SECRET])
    }

    #[test]
    fn every_generated_key_is_different() {
        for group in Group::ALL {
            let keys: Vec<_> = (0..8).map(|_| EphemeralKey::generate(group).unwrap().public()).collect();
            for (number, key) in keys.iter().enumerate() {
                assert!(!keys[number + 1..].contains(key));
            }
        }
    }

    #[test]
    fn both_sides_agree_in_each_group() {
        for group in Group::ALL {
            let (ours, theirs) = (key(group, 1), key(group, 2));
            let (our_point, their_point) = (ours.public(), theirs.public());
            assert_eq!(ours.agree(&their_point).unwrap(), theirs.agree(&our_point).unwrap());
        }
    }

    #[test]
    fn low_order_points_of_x25519_are_refused() {
        // The points of small order (RFC 7748 §6.1).
        let low_order = [
            "0000000000000000000000000000000000000000000000000000000000000000",
            "0100000000000000000000000000000000000000000000000000000000000000",
            "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
            "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
            "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        ];
        for point in low_order {
            assert!(key(Group::X25519, 1).agree(&hex::decode(point).unwrap()).is_err(), "{point}");
        }
    }

    #[test]
    fn invalid_points_are_refused() {
        for group in Group::ALL {
            let point = key(group, 2).public();
            for length in 0..point.len() {
                assert!(key(group, 1).agree(&point[..length]).is_err());
            }
        }
        let mut off_the_curve = key(Group::Secp256r1, 2).public();
        off_the_curve[64] ^= 1;
        assert!(key(Group::Secp256r1, 1).agree(&off_the_curve).is_err());
        assert!(key(Group::Secp256r1, 1).agree(&[0]).is_err(), "the point at infinity");
        let mut compressed = key(Group::Secp256r1, 2).public()[..33].to_vec();
        compressed[0] = 2;
        assert!(key(Group::Secp256r1, 1).agree(&compressed).is_err());
    }
}
