//! SHA-256 of bytes and files.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read};
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
        }
    }
}
