//! Files and streams from which a table is read. A stream is read to its end before anything else
//! happens. So no later step waits for the stream, and its content can be read again. This module
//! knows nothing about the format.

use std::{
    fs::File,
    io::{self, Cursor, Read},
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

/// Path that stands for standard input.
const STDIN: &str = "-";

/// Maximum size of a stream, in bytes. A stream is kept in memory, because it may hold secrets.
const MAX_STREAM: usize = 256 << 20;

/// Size of the parts in which a stream is kept, in bytes.
const PART: usize = 1 << 20;

/// A table that can be read any number of times.
pub struct Source {
    name: PathBuf,
    content: Content,
    is_stream: bool,
}

/// Content of a table, from its beginning.
pub struct Input<'a> {
    /// Path of the file, or name of the stream.
    pub name: &'a Path,
    /// Size in bytes.
    pub size: u64,
    /// Set for a stream, which ends early if its writer fails.
    pub is_stream: bool,
    /// Reader of the content.
    pub reader: Box<dyn Read + 'a>,
}

enum Content {
    File,
    Kept(Vec<Zeroizing<Vec<u8>>>),
}

impl Source {
    /// Opens a file, or standard input for `-`. Reads anything that is not a regular file, such as
    /// a pipe, to its end. Fails if the content is longer than 256 MiB.
    pub fn open(path: &Path) -> io::Result<Self> {
        if path == Path::new(STDIN) {
            let stdin = io::stdin().lock();
            let is_stream = !File::open("/dev/stdin").is_ok_and(|file| is_regular(&file));
            return Ok(Self { is_stream, ..Self::kept("standard input".into(), stdin)? });
        }
        let file = File::open(path)?;
        match is_regular(&file) {
            true => Ok(Self { name: path.to_owned(), content: Content::File, is_stream: false }),
            false => Self::kept(path.to_owned(), file),
        }
    }

    fn kept(name: PathBuf, mut reader: impl Read) -> io::Result<Self> {
        let (mut parts, mut size) = (Vec::new(), 0);
        loop {
            // The buffer has its full size from the start, so that no reallocation leaves a copy of
            // a secret behind.
            let mut part = Zeroizing::new(Vec::with_capacity(PART));
            reader.by_ref().take(PART as u64).read_to_end(&mut part)?;
            size += part.len();
            if size > MAX_STREAM {
                let limit = MAX_STREAM >> 20;
                let reason = format!("more than {limit} MiB; write it to a file first, and import that");
                return Err(io::Error::new(io::ErrorKind::FileTooLarge, reason));
            }
            let is_last = part.len() < PART;
            parts.push(part);
            if is_last {
                return Ok(Self { name, content: Content::Kept(parts), is_stream: true });
            }
        }
    }

    /// Returns the path of the file, or the name of the stream.
    pub fn name(&self) -> &Path {
        &self.name
    }

    /// Returns the content from its beginning.
    pub fn input(&self) -> io::Result<Input<'_>> {
        let (size, reader): (_, Box<dyn Read>) = match &self.content {
            Content::File => {
                let file = File::open(&self.name)?;
                (file.metadata()?.len(), Box::new(file))
            }
            Content::Kept(parts) => {
                let size = parts.iter().map(|part| part.len() as u64).sum();
                (size, Box::new(Parts { current: Cursor::default(), rest: parts.iter() }))
            }
        };
        Ok(Input { name: &self.name, size, is_stream: self.is_stream, reader })
    }
}

/// Reads the parts of a stream in their order.
struct Parts<'a> {
    current: Cursor<&'a [u8]>,
    rest: std::slice::Iter<'a, Zeroizing<Vec<u8>>>,
}

impl Read for Parts<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.current.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            let Some(next) = self.rest.next() else { return Ok(0) };
            self.current = Cursor::new(next);
        }
    }
}

fn is_regular(file: &File) -> bool {
    file.metadata().is_ok_and(|metadata| metadata.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_read_to_its_end_and_can_be_read_again() {
        let bytes: Vec<u8> = (0..3 * PART + 7).map(|at| at as u8).collect();
        let source = Source::kept("pipe".into(), &bytes[..]).unwrap();
        for _ in 0..2 {
            let Input { size, is_stream, mut reader, .. } = source.input().unwrap();
            let mut read = Vec::new();
            reader.read_to_end(&mut read).unwrap();
            assert!(is_stream && size == bytes.len() as u64 && read == bytes);
        }
    }

    #[test]
    fn a_stream_without_end_is_refused() {
        let error = Source::kept("pipe".into(), io::repeat(b'x')).err().unwrap();
        assert_eq!(error.to_string(), "more than 256 MiB; write it to a file first, and import that");
    }

    #[test]
    fn a_file_is_read_from_its_beginning_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("devices.csv");
        std::fs::write(&path, "deviceId\nSN-1\n").unwrap();
        let source = Source::open(&path).unwrap();
        for _ in 0..2 {
            let Input { size, is_stream, mut reader, .. } = source.input().unwrap();
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            assert_eq!((size, is_stream, text.as_str()), (14, false, "deviceId\nSN-1\n"));
        }
        assert!(Source::open(&folder.path().join("absent.csv")).is_err());
    }
}
