//! Where the bytes of a data file come from: disk, the cache of the hub, or the network.

use std::fs::File;
use std::io::{BufReader, ErrorKind, Read, Seek, SeekFrom};
use std::path::Path;

use bytes::Bytes;
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};

use crate::error::Problem;
use crate::hub::{LocalFile, RemoteBytes};

/// A data file, open.
pub(crate) enum Input {
    File(File),
    /// Stays in the cache while it is read.
    Cached {
        file: File,
        _stays: LocalFile,
    },
    /// Not stored anywhere.
    Remote(RemoteBytes),
}

impl Input {
    pub(crate) fn open(path: &Path) -> Result<Self, Problem> {
        File::open(path).map(Self::File).map_err(io)
    }

    pub(crate) fn cached(local: LocalFile) -> Result<Self, Problem> {
        let file = File::open(local.path()).map_err(io)?;
        Ok(Self::Cached {
            file,
            _stays: local,
        })
    }

    /// The file on the network, if it stays there.
    pub(crate) fn remote(&self) -> Option<RemoteBytes> {
        match self {
            Self::File(_) | Self::Cached { .. } => None,
            Self::Remote(remote) => Some(remote.clone()),
        }
    }
}

/// The network's error, if it was the reason of one just met; else `problem`.
pub(crate) fn reason(remote: Option<&RemoteBytes>, problem: Problem) -> Problem {
    let failure = remote.and_then(RemoteBytes::take_failure);
    failure.map_or(problem, Problem::from)
}

fn io(error: std::io::Error) -> Problem {
    Problem::Io(error.to_string())
}

impl Length for Input {
    fn len(&self) -> u64 {
        match self {
            Self::File(file) | Self::Cached { file, .. } => file.len(),
            Self::Remote(remote) => remote.len(),
        }
    }
}

impl ChunkReader for Input {
    type T = Box<dyn Read + Send>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        Ok(match self {
            Self::File(file) | Self::Cached { file, .. } => {
                let mut reader = file.try_clone()?;
                match reader.seek(SeekFrom::Start(start)) {
                    // A pipe is read as it comes.
                    Err(error) if start == 0 && error.kind() == ErrorKind::NotSeekable => {}
                    sought => drop(sought?),
                }
                Box::new(BufReader::new(reader))
            }
            Self::Remote(remote) => Box::new(remote.get_read(start)?),
        })
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        match self {
            Self::File(file) | Self::Cached { file, .. } => file.get_bytes(start, length),
            Self::Remote(remote) => remote.get_bytes(start, length),
        }
    }
}
