//! A file that stays on the network: read by parts, never stored.

use std::io::Read;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};
use ureq::http::StatusCode;

use super::cache::RemoteFile;
use super::error::HubError;
use super::fetch::{check_reply, wrong_size};
use super::line::{Failed, Request};
use super::{Hub, lock};

/// Bytes that are asked for at once, where that many are of use. Bounds the memory of a reader.
const WINDOW_BYTES: u64 = 8 << 20;
/// Most parquet footers are smaller.
const TAIL_BYTES: u64 = 64 << 10;

/// Reads any part of a file. Copies share what is in memory.
#[derive(Clone)]
pub(crate) struct RemoteBytes {
    hub: Hub,
    file: Arc<RemoteFile>,
    state: Arc<Mutex<State>>,
}

struct State {
    /// Place of `window` in the file.
    start: u64,
    window: Bytes,
    /// Bytes from here on are fetched only if somebody wants them.
    useful_end: u64,
    /// Why the last read failed.
    failure: Option<HubError>,
}

impl RemoteBytes {
    /// Makes no request yet.
    pub(crate) fn new(hub: &Hub, file: &Arc<RemoteFile>) -> Self {
        Self {
            hub: hub.clone(),
            file: Arc::clone(file),
            state: Arc::new(Mutex::new(State {
                start: 0,
                window: Bytes::new(),
                useful_end: file.size,
                failure: None,
            })),
        }
    }

    /// Fetches the end of the file, where parquet has its footer.
    pub(crate) fn read_tail(&self) -> Result<(), HubError> {
        let start = self.file.size.saturating_sub(TAIL_BYTES);
        self.bytes(start, self.file.size - start).map(drop)
    }

    /// From now on, bytes are fetched ahead only up to `end`.
    pub(crate) fn set_useful_end(&self, end: u64) {
        lock(&self.state).useful_end = end;
    }

    /// Why a read failed, if the network was the reason.
    pub(crate) fn take_failure(&self) -> Option<HubError> {
        lock(&self.state).failure.take()
    }

    fn bytes(&self, start: u64, len: u64) -> Result<Bytes, HubError> {
        let mut state = lock(&self.state);
        let end = start.saturating_add(len);
        if end > self.file.size {
            return Err(wrong_size(&self.file, end));
        }
        let window_end = state.start + state.window.len() as u64;
        if start < state.start || end > window_end {
            let ahead = (start + WINDOW_BYTES).min(state.useful_end);
            let fetched = self.hub.part(&self.file, start, end.max(ahead));
            state.window = fetched.inspect_err(|error| state.failure = Some(error.clone()))?;
            state.start = start;
        }
        let from = (start - state.start) as usize;
        Ok(state.window.slice(from..from + len as usize))
    }
}

impl Hub {
    /// Bytes `start..end` of a file.
    fn part(&self, file: &RemoteFile, start: u64, end: u64) -> Result<Bytes, HubError> {
        if start == end {
            return Ok(Bytes::new());
        }
        let address = file.address();
        if self.settings()?.offline {
            let cache = file.place.link.clone();
            return Err(HubError::Offline { address, cache });
        }
        let request = Request {
            address: &address,
            url: &file.url,
            range: Some((start, Some(end))),
            page: &file.page,
        };
        self.with_retries(&address, &mut 0, |_| {
            let reply = self.get(request)?;
            let range = reply.content_range();
            if reply.status != StatusCode::PARTIAL_CONTENT && !reply.is_page() {
                let address = address.clone();
                return Err(HubError::NoRanges { address }.into());
            }
            check_reply(file, &reply)?;
            let bytes = reply.read_all((end - start) as usize)?;
            if range.is_none_or(|(first, _)| first != start) || bytes.len() as u64 != end - start {
                return Err(Failed::passing("the server sent another part of the file"));
            }
            Ok(bytes.into())
        })
    }
}

impl Length for RemoteBytes {
    fn len(&self) -> u64 {
        self.file.size
    }
}

impl ChunkReader for RemoteBytes {
    type T = RemoteReader;

    fn get_read(&self, start: u64) -> Result<RemoteReader, ParquetError> {
        Ok(self.reader(start))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        let bytes = self.bytes(start, length as u64);
        bytes.map_err(|error| ParquetError::External(Box::new(error)))
    }
}

impl RemoteBytes {
    /// Reads from `start` on.
    pub(crate) fn reader(&self, start: u64) -> RemoteReader {
        RemoteReader {
            bytes: self.clone(),
            at: start,
        }
    }
}

/// Reads a file from front to back.
pub(crate) struct RemoteReader {
    bytes: RemoteBytes,
    at: u64,
}

impl Read for RemoteReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let left = self.bytes.file.size.saturating_sub(self.at);
        let in_window = {
            let state = lock(&self.bytes.state);
            let end = state.start + state.window.len() as u64;
            if (state.start..end).contains(&self.at) {
                end - self.at
            } else {
                u64::MAX
            }
        };
        let len = left.min(buffer.len() as u64).min(in_window);
        let bytes = self
            .bytes
            .bytes(self.at, len)
            .map_err(std::io::Error::other)?;
        buffer[..bytes.len()].copy_from_slice(&bytes);
        self.at += len;
        Ok(bytes.len())
    }
}
