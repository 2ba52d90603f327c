//! A temporary file for an export whose reader may be slow. The file has no name. Its content is
//! encrypted with a random key that never leaves this process, so that no secret stays on the disk.

use std::{
    fs::File,
    io::{self, BufReader, BufWriter, Read, Seek, Write},
};

use chacha20poly1305::{AeadInOut, ChaCha20Poly1305, KeyInit, Nonce, Tag};
use zeroize::Zeroizing;

/// Size of the parts that are encrypted, in bytes.
const PART: usize = 64 * 1024;

/// Size of an authentication tag, in bytes.
const TAG: usize = 16;

/// A temporary file that is being written.
pub(super) struct Spool {
    file: BufWriter<File>,
    parts: Parts,
    part: Zeroizing<Vec<u8>>,
}

/// A temporary file that is being read.
pub(super) struct SpoolReader {
    file: BufReader<File>,
    parts: Parts,
    part: Zeroizing<Vec<u8>>,
    read: usize,
}

/// Encrypts and decrypts the parts in their order. Each encryption key encrypts only one file, so a
/// counter can serve as the nonce.
struct Parts {
    cipher: ChaCha20Poly1305,
    next: u64,
}

impl Parts {
    fn nonce(&mut self) -> Nonce {
        let mut nonce = Nonce::default();
        nonce[..8].copy_from_slice(&self.next.to_le_bytes());
        self.next += 1;
        nonce
    }
}

impl Spool {
    /// Creates an empty spool in the folder for temporary files.
    pub(super) fn create() -> io::Result<Self> {
        let mut key = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *key).map_err(io::Error::other)?;
        let parts = Parts { cipher: ChaCha20Poly1305::new((&*key).into()), next: 0 };
        let part = Zeroizing::new(Vec::with_capacity(PART));
        Ok(Self { file: BufWriter::new(tempfile::tempfile()?), parts, part })
    }

    /// Ends the spool, and returns its content from the beginning.
    pub(super) fn into_reader(mut self) -> io::Result<SpoolReader> {
        self.write_part()?;
        let mut file = self.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.rewind()?;
        let parts = Parts { next: 0, ..self.parts };
        Ok(SpoolReader { file: BufReader::new(file), parts, part: self.part, read: 0 })
    }

    /// Writes the current part: its size, a tag, and the encrypted bytes.
    fn write_part(&mut self) -> io::Result<()> {
        let nonce = self.parts.nonce();
        let tag = self
            .parts
            .cipher
            .encrypt_inout_detached(&nonce, b"", self.part.as_mut_slice().into())
            .map_err(|_| io::Error::other("a part could not be encrypted"))?;
        self.file.write_all(&(self.part.len() as u32).to_le_bytes())?;
        self.file.write_all(&tag)?;
        self.file.write_all(&self.part)?;
        self.part.clear();
        Ok(())
    }
}

impl Write for Spool {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(PART - self.part.len());
        self.part.extend_from_slice(&bytes[..taken]);
        if self.part.len() == PART {
            self.write_part()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        // There is nothing to flush: a full part is written at once, and `into_reader` writes the
        // last part.
        Ok(())
    }
}

impl SpoolReader {
    /// Reads the next part. Returns false at the end.
    fn read_part(&mut self) -> io::Result<bool> {
        let mut size = [0; 4];
        match self.file.read_exact(&mut size) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            size => size?,
        }
        let size = (u32::from_le_bytes(size) as usize).min(PART);
        let mut tag = [0; TAG];
        self.file.read_exact(&mut tag)?;
        self.part.resize(size, 0);
        self.file.read_exact(&mut self.part)?;
        let (nonce, tag) = (self.parts.nonce(), Tag::from(tag));
        self.parts
            .cipher
            .decrypt_inout_detached(&nonce, b"", self.part.as_mut_slice().into(), &tag)
            .map_err(|_| io::Error::other("the temporary file was changed by another process"))?;
        self.read = 0;
        Ok(true)
    }
}

impl Read for SpoolReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // A part can be empty, so parts are read until one has bytes or the file ends.
        while self.read == self.part.len() {
            if !self.read_part()? {
                return Ok(0);
            }
        }
        let taken = buffer.len().min(self.part.len() - self.read);
        buffer[..taken].copy_from_slice(&self.part[self.read..self.read + taken]);
        self.read += taken;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_and_is_not_in_the_file() {
        for size in [0, 1, 1000, PART - 1, PART, PART + 1, 3 * PART + 17] {
            let text: Vec<u8> = b"secret".iter().copied().cycle().take(size).collect();
            let mut spool = Spool::create().unwrap();
            spool.write_all(&text).unwrap();
            let mut reader = spool.into_reader().unwrap();
            let mut file = reader.file.get_ref().try_clone().unwrap();
            let mut read = Vec::new();
            reader.read_to_end(&mut read).unwrap();
            assert!(read == text, "{size}");
            let mut raw = Vec::new();
            file.rewind().unwrap();
            file.read_to_end(&mut raw).unwrap();
            assert!(!raw.windows(6).any(|bytes| bytes == b"secret"), "{size}");
        }
    }

    #[test]
    fn a_file_that_was_changed_is_not_read() {
        let mut spool = Spool::create().unwrap();
        spool.write_all(&[7; 100]).unwrap();
        let mut reader = spool.into_reader().unwrap();
        let mut file = reader.file.get_ref().try_clone().unwrap();
        file.seek(io::SeekFrom::Start(40)).unwrap();
        file.write_all(b"x").unwrap();
        file.rewind().unwrap();
        assert!(reader.read_to_end(&mut Vec::new()).is_err());
    }
}
