//! Keeps a file in the table between two requests, in parts, so that any server of the table can take
//! the second request. The file is encrypted under a key that is derived from its token. Only the page
//! that the file's owner sees contains the token, so the table alone does not reveal the file.

use std::time::Duration;

use chacha20poly1305::{AeadInOut, Tag, XChaCha20Poly1305, XNonce};
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::session::{self, SessionKey};
use crate::{
    random::random,
    store::{
        StoreError, StoreFuture, Table,
        shelf::{Item, ItemKey, ItemKind, ShelfLimits},
    },
};

/// Time for which a file is kept.
pub(super) const KEPT: Duration = Duration::from_secs(600);
/// Size of a part, in bytes. Each part is a write of its own, so that the writes of devices do not wait
/// for a whole file.
const PART: usize = 256 << 10;
/// Sizes of the nonce and of the authentication tag of a part, in bytes.
const NONCE: usize = 24;
const TAG: usize = 16;

/// Kind of kept files.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shelf {
    /// Kind of the first item of a file, which contains the number of parts.
    head: ItemKind,
    /// Kind of the items that contain the parts.
    part: ItemKind,
    /// Maximum number of files. A new file replaces the oldest.
    most: usize,
    /// Maximum size of a file, in bytes.
    max: usize,
}

impl Shelf {
    /// Uploaded files that wait to be confirmed.
    pub(super) const UPLOADS: Self =
        Self { head: ItemKind::Upload, part: ItemKind::UploadPart, most: 4, max: 17 << 20 };
    /// Lists of bad lines.
    pub(super) const BAD_LINES: Self =
        Self { head: ItemKind::BadLines, part: ItemKind::BadLinesPart, most: 4, max: 5 << 20 };

    /// Keeps a file of `owner` under a new token.
    pub(super) async fn keep(
        self,
        store: &dyn Table,
        token: &str,
        owner: &SessionKey,
        file: &[u8],
    ) -> Result<(), StoreError> {
        if file.len() > self.max {
            return Err(StoreError::Failed(format!("the file has {} bytes", file.len())));
        }
        let parts = file.chunks(PART);
        let count = u32::try_from(parts.len()).unwrap_or(u32::MAX);
        let seal = Seal::new(token, owner);
        let limits = |most| ShelfLimits { most, kept: Some(KEPT) };
        for (number, part) in (1..).zip(parts) {
            let most = self.most * self.max.div_ceil(PART);
            store.shelve(self.part, part_key(token, number), seal.seal(number, part)?, limits(most)).await?;
        }
        // The head is written last, so that every file with a head is complete.
        let head = seal.seal(0, &count.to_be_bytes())?;
        store.shelve(self.head, session::key_of(token), head, limits(self.most)).await.map(drop)
    }

    /// Returns a file of `owner` and removes it. Of several calls, only one gets it.
    pub(super) async fn take(
        self,
        store: &dyn Table,
        token: &str,
        owner: &SessionKey,
    ) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        let seal = Seal::new(token, owner);
        let key = session::key_of(token);
        // A user with the token of another user's file must not remove the file.
        if seal.count(store.shelved(self.head, key).await?.as_ref()).is_none() {
            return Ok(None);
        }
        let Some(count) = seal.count(store.take_item(self.head, key).await?.as_ref()) else {
            return Ok(None);
        };
        seal.whole(count, |number| store.take_item(self.part, part_key(token, number))).await
    }

    /// Returns a file of `owner`.
    pub(super) async fn read(
        self,
        store: &dyn Table,
        token: &str,
        owner: &SessionKey,
    ) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        let seal = Seal::new(token, owner);
        let head = store.shelved(self.head, session::key_of(token)).await?;
        let Some(count) = seal.count(head.as_ref()) else { return Ok(None) };
        seal.whole(count, |number| store.shelved(self.part, part_key(token, number))).await
    }
}

fn part_key(token: &str, number: u32) -> ItemKey {
    let hash = Sha256::new().chain_update(b"part").chain_update(number.to_be_bytes());
    hash.chain_update(session::key_of(token)).finalize().into()
}

/// Encrypts the parts of one file.
struct Seal {
    cipher: XChaCha20Poly1305,
    owner: SessionKey,
}

impl Seal {
    fn new(token: &str, owner: &SessionKey) -> Self {
        let Ok(mut mac) = <Hmac<Sha256> as KeyInit>::new_from_slice(token.as_bytes()) else {
            unreachable!("HMAC takes any key")
        };
        mac.update(b"certdist console file 1");
        let key = Zeroizing::new(<[u8; 32]>::from(mac.finalize().into_bytes()));
        Self { cipher: XChaCha20Poly1305::new((&*key).into()), owner: *owner }
    }

    /// Returns the data that is authenticated with a part: the owner of the file, and the number of the
    /// part.
    fn place(&self, number: u32) -> Vec<u8> {
        [&self.owner[..], &number.to_be_bytes()].concat()
    }

    fn seal(&self, number: u32, clear: &[u8]) -> Result<Vec<u8>, StoreError> {
        let failed = || StoreError::Failed("a file could not be encrypted".into());
        let random: [u8; 32] = random().map_err(|error| StoreError::Failed(error.to_string()))?;
        let mut sealed = vec![0; NONCE + clear.len() + TAG];
        let (nonce, rest) = sealed.split_at_mut(NONCE);
        let (text, tag) = rest.split_at_mut(clear.len());
        nonce.copy_from_slice(&random[..NONCE]);
        text.copy_from_slice(clear);
        let nonce = XNonce::try_from(&*nonce).map_err(|_| failed())?;
        let made = self.cipher.encrypt_inout_detached(&nonce, &self.place(number), text.into());
        tag.copy_from_slice(&made.map_err(|_| failed())?);
        Ok(sealed)
    }

    fn open(&self, number: u32, sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let length = sealed.len().checked_sub(NONCE + TAG)?;
        let (nonce, rest) = sealed.split_at_checked(NONCE)?;
        let (text, tag) = rest.split_at_checked(length)?;
        let mut text = Zeroizing::new(text.to_vec());
        let (nonce, tag) = (XNonce::try_from(nonce).ok()?, Tag::try_from(tag).ok()?);
        self.cipher
            .decrypt_inout_detached(&nonce, &self.place(number), text.as_mut_slice().into(), &tag)
            .ok()?;
        Some(text)
    }

    /// Returns a file of this many parts, or `None` if a part is missing or cannot be opened. `part`
    /// gets the item with the part of a number.
    async fn whole<'s>(
        &self,
        count: u32,
        part: impl Fn(u32) -> StoreFuture<'s, Option<Item>>,
    ) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        // With room for all parts, the vector leaves no copy of the file in freed memory.
        let mut file = Zeroizing::new(Vec::with_capacity(count as usize * PART));
        for number in 1..=count {
            let part = part(number).await?.and_then(|part| self.open(number, &part.value));
            let Some(part) = part else { return Ok(None) };
            file.extend_from_slice(&part);
        }
        Ok(Some(file))
    }

    /// Returns the number of parts of a file, if the head is of this owner's file and not too old.
    fn count(&self, head: Option<&Item>) -> Option<u32> {
        let head = head.filter(|head| head.age < KEPT)?;
        let count = self.open(0, &head.value)?;
        Some(u32::from_be_bytes(count.as_slice().try_into().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{seal::Keyring, store::sealed::Sealed, testing::store::Memory};

    const OWNER: SessionKey = [1; 32];

    fn servers() -> [Sealed<Memory>; 2] {
        let memory = Memory::default();
        [memory.clone(), memory].map(|handle| Sealed::new(handle, Keyring::default()))
    }

    #[tokio::test]
    async fn another_server_gets_a_file_but_only_for_its_owner_and_only_once() {
        let [one, other] = servers();
        for size in [0, 1, PART, PART + 1, 3 * PART] {
            let file: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
            let uploads = Shelf::UPLOADS;
            uploads.keep(&one, "token", &OWNER, &file).await.unwrap();
            assert!(uploads.take(&other, "token", &[2; 32]).await.unwrap().is_none());
            assert!(uploads.take(&other, "other", &OWNER).await.unwrap().is_none());
            assert_eq!(uploads.read(&other, "token", &OWNER).await.unwrap().as_deref(), Some(&file));
            assert_eq!(uploads.take(&other, "token", &OWNER).await.unwrap().as_deref(), Some(&file));
            assert!(uploads.take(&one, "token", &OWNER).await.unwrap().is_none());
        }
    }

    #[tokio::test]
    async fn a_new_file_replaces_the_oldest_and_a_large_one_is_refused() {
        let [one, _] = servers();
        let uploads = Shelf::UPLOADS;
        for number in 0..=uploads.most {
            uploads.keep(&one, &number.to_string(), &OWNER, b"deviceId\n").await.unwrap();
            std::thread::sleep(Duration::from_millis(3));
        }
        assert!(uploads.read(&one, "0", &OWNER).await.unwrap().is_none());
        assert!(uploads.read(&one, "1", &OWNER).await.unwrap().is_some());
        assert!(uploads.keep(&one, "x", &OWNER, &vec![0; uploads.max + 1]).await.is_err());
    }

    #[tokio::test]
    async fn the_table_does_not_have_the_text_of_a_file() {
        let [one, _] = servers();
        Shelf::UPLOADS.keep(&one, "token", &OWNER, b"a secret of a device").await.unwrap();
        use crate::store::shelf::Shelf as _;
        let part = one.shelved(ItemKind::UploadPart, part_key("token", 1)).await.unwrap().unwrap();
        assert!(!part.value.windows(6).any(|bytes| bytes == b"secret"));
        let seal = Seal::new("token", &OWNER);
        let mut changed = part.value.clone();
        changed[NONCE] ^= 1;
        assert!(seal.open(1, &changed).is_none() && seal.open(2, &part.value).is_none());
        assert!(seal.open(1, &part.value).is_some());
    }
}
