//! SHA-256 of bytes and files.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Size and hash of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 of the content, in lower-case hexadecimal.
    pub sha256: String,
}

/// Size and hash of the file at `path`, read in pieces.
///
/// # Errors
/// Those of the file system.
pub fn of_file(path: &Path) -> io::Result<FileEntry> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    let mut bytes = 0;
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok(FileEntry {
                bytes,
                sha256: hexadecimal(&hasher.finalize()),
            });
        }
        hasher.update(&buffer[..count]);
        bytes += count as u64;
    }
}

/// A new file whose size and hash are known once it is written, without reading it again.
#[derive(Debug)]
pub struct HashedFile {
    file: File,
    hasher: Sha256,
    bytes: u64,
}

impl HashedFile {
    /// Makes the file at `path`, which must not exist.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn create(path: &Path) -> io::Result<Self> {
        Ok(Self {
            file: File::create_new(path)?,
            hasher: Sha256::new(),
            bytes: 0,
        })
    }

    /// Makes what was written durable, and describes it.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn finish(self) -> io::Result<FileEntry> {
        self.file.sync_all()?;
        Ok(FileEntry {
            bytes: self.bytes,
            sha256: hexadecimal(&self.hasher.finalize()),
        })
    }
}

impl Write for HashedFile {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let count = self.file.write(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The SHA-256 of some bytes, in lower-case hexadecimal.
pub fn of_bytes(bytes: &[u8]) -> String {
    hexadecimal(&Sha256::digest(bytes))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_hash_is_that_of_the_standard() {
        // The example of FIPS 180-2, appendix B.1.
        assert_eq!(
            of_bytes(b"abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn a_file_is_described_by_its_size_and_hash_whatever_its_length() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("file");
        for length in [0, 1, (1 << 18) - 1, 1 << 18, (1 << 18) + 1] {
            let content = vec![7; length];
            fs::write(&path, &content).expect("written");
            let want = FileEntry {
                bytes: length as u64,
                sha256: of_bytes(&content),
            };
            assert_eq!(of_file(&path).expect("readable"), want);
            let path = folder.path().join(format!("new-{length}"));
            let mut file = HashedFile::create(&path).expect("made");
            for piece in content.chunks(1000) {
                file.write_all(piece).expect("written");
            }
            assert_eq!(file.finish().expect("durable"), want);
            assert_eq!(of_file(&path).expect("readable"), want);
            let again = HashedFile::create(&path).expect_err("it exists");
            assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        }
    }
}
