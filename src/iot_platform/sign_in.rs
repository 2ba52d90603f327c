//! Sign-in of a device at IoT Platform with its certificate: the fields of the MQTT CONNECT, and
//! their verification. This module performs no I/O, and uses neither MQTT nor the clock.

use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::device::{Certificate, Secret, is_device_name};

/// Maximum length of a client ID without its extension, in bytes.
const MAX_CLIENT_ID: usize = 64;
/// Maximum length of a product key, in bytes.
const MAX_PRODUCT_KEY: usize = 64;

/// `signmethod`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignMethod {
    /// `hmacsha1`
    HmacSha1,
    /// `hmacsha256`
    HmacSha256,
}

impl SignMethod {
    /// Returns the value of `signmethod`.
    pub fn name(self) -> &'static str {
        match self {
            Self::HmacSha1 => "hmacsha1",
            Self::HmacSha256 => "hmacsha256",
        }
    }
}

/// The fields of a device's CONNECT. This type has no `Debug`, because the password can be used to
/// sign in again.
pub struct Login {
    /// `ID|securemode=…,signmethod=…,timestamp=…|`
    pub client_id: String,
    /// `deviceName&productKey`
    pub user_name: String,
    /// The signature in hex.
    pub password: Secret,
}

impl Login {
    /// Makes the fields for a connection without TLS. `now_ms` is the time in milliseconds since
    /// 1970.
    pub fn new(certificate: &Certificate, method: SignMethod, now_ms: i64) -> Self {
        let Certificate { product_key, device_name, device_secret } = certificate;
        let timestamp = now_ms.to_string();
        let claim =
            Claim { client_id: device_name, device_name, product_key, timestamp: Some(&timestamp), method };
        Self {
            // securemode is 3 for TCP, 2 for TLS.
            client_id: format!(
                "{device_name}|securemode=3,signmethod={},timestamp={timestamp}|",
                method.name()
            ),
            user_name: format!("{device_name}&{product_key}"),
            password: claim.password(device_secret),
        }
    }
}

/// The identity that a CONNECT claims. It is not proven until
/// [`is_signed_with`](Self::is_signed_with) has returned true.
pub struct Claim<'a> {
    client_id: &'a str,
    /// The first half of the user name.
    pub device_name: &'a str,
    /// The second half of the user name.
    pub product_key: &'a str,
    timestamp: Option<&'a str>,
    method: SignMethod,
}

impl<'a> Claim<'a> {
    /// Reads a client ID and a user name. Returns `None` if one of them does not have the
    /// documented form.
    pub fn read(client_id: &'a str, user_name: &'a str) -> Option<Self> {
        let (client_id, extension) = client_id.split_once('|')?;
        let (mut secure, mut timestamp, mut method) = (false, None, None);
        for field in extension.strip_suffix('|')?.split(',') {
            match field.split_once('=')? {
                ("securemode", "2" | "3") => secure = true,
                ("signmethod", "hmacsha1") => method = Some(SignMethod::HmacSha1),
                ("signmethod", "hmacsha256") => method = Some(SignMethod::HmacSha256),
                ("securemode" | "signmethod", _) => return None,
                ("timestamp", text) => timestamp = Some(text),
                // All other fields are ignored. For example, an SDK adds its version.
                _ => {}
            }
        }
        let (device_name, product_key) = user_name.split_once('&')?;
        let legal = (1..=MAX_CLIENT_ID).contains(&client_id.len())
            && is_device_name(device_name)
            && (1..=MAX_PRODUCT_KEY).contains(&product_key.len());
        (secure && legal).then_some(Self { client_id, device_name, product_key, timestamp, method: method? })
    }

    /// Returns whether `password` is a signature with `device_secret`. The hex digits of `password`
    /// may be in upper or lower case.
    pub fn is_signed_with(&self, device_secret: &Secret, password: &str) -> bool {
        let right = self.password(device_secret);
        let given = Zeroizing::new(password.to_ascii_lowercase());
        right.expose().as_bytes().ct_eq(given.as_bytes()).into()
    }

    fn password(&self, device_secret: &Secret) -> Secret {
        match self.method {
            SignMethod::HmacSha1 => self.signature::<Hmac<Sha1>>(device_secret),
            SignMethod::HmacSha256 => self.signature::<Hmac<Sha256>>(device_secret),
        }
    }

    /// Signs the names and values of the fields in alphabetical order. The time stamp is signed
    /// only if there is one.
    fn signature<M: Mac + KeyInit>(&self, device_secret: &Secret) -> Secret {
        let mut mac = <M as KeyInit>::new_from_slice(device_secret.expose().as_bytes())
            .expect("HMAC takes a key of any length");
        for part in
            ["clientId", self.client_id, "deviceName", self.device_name, "productKey", self.product_key]
        {
            mac.update(part.as_bytes());
        }
        if let Some(timestamp) = self.timestamp {
            mac.update(b"timestamp");
            mac.update(timestamp.as_bytes());
        }
        Secret::new(hex::encode(mac.finalize().into_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate() -> Certificate {
        Certificate {
            product_key: "a1BwAGVxyz1".into(),
            device_name: "SN01".into(),
            device_secret: Secret::new("0123456789abcdef0123456789abcdef".into()),
        }
    }

    #[test]
    fn the_documented_example_is_right() {
        let claim =
            Claim::read("12345|securemode=3,signmethod=hmacsha1,timestamp=789|", "device&pk").unwrap();
        let secret = Secret::new("secret".into());
        assert!(claim.is_signed_with(&secret, "FAFD82A3D602B37FB0FA8B7892F24A477F851A14"));
        assert!(!claim.is_signed_with(&secret, "FAFD82A3D602B37FB0FA8B7892F24A477F851A15"));
        assert!(!claim.is_signed_with(&secret, ""));
    }

    #[test]
    fn a_login_is_accepted_with_its_secret_only() {
        for method in [SignMethod::HmacSha1, SignMethod::HmacSha256] {
            let login = Login::new(&certificate(), method, 1_551_342_063_000);
            let claim = Claim::read(&login.client_id, &login.user_name).unwrap();
            assert_eq!((claim.device_name, claim.product_key), ("SN01", "a1BwAGVxyz1"));
            assert!(claim.is_signed_with(&certificate().device_secret, login.password.expose()));
            assert!(!claim.is_signed_with(&Secret::new("another".into()), login.password.expose()));
            // If any signed part is changed, the signature is wrong.
            for (client_id, user_name) in [
                (login.client_id.replace("SN01|", "SN02|"), login.user_name.clone()),
                (login.client_id.replace("1551342063000", "1551342063001"), login.user_name.clone()),
                (login.client_id.clone(), "SN02&a1BwAGVxyz1".into()),
                (login.client_id.clone(), "SN01&a1BwAGVxyz2".into()),
            ] {
                let claim = Claim::read(&client_id, &user_name).unwrap();
                assert!(!claim.is_signed_with(&certificate().device_secret, login.password.expose()));
            }
        }
    }

    #[test]
    fn a_connect_that_is_not_as_documented_is_no_claim() {
        let user_name = "SN01&a1";
        assert!(Claim::read("id|securemode=2,signmethod=hmacsha256,_v=sdk-c-3.0|", user_name).is_some());
        for client_id in [
            "",
            "id",
            "|securemode=3,signmethod=hmacsha1|",
            "id|securemode=3,signmethod=hmacsha1",
            "id|securemode=3|",
            "id|signmethod=hmacsha1|",
            "id|securemode=1,signmethod=hmacsha1|",
            "id|securemode=3,signmethod=hmacmd5|",
            "id|securemode=3,signmethod=hmacsha1,x|",
        ] {
            assert!(Claim::read(client_id, user_name).is_none(), "{client_id}");
        }
        for user_name in ["", "SN01", "SN01&", "&a1", "S&a1", "SN 01&a1"] {
            let client_id = "id|securemode=3,signmethod=hmacsha1|";
            assert!(Claim::read(client_id, user_name).is_none(), "{user_name}");
        }
    }
}
