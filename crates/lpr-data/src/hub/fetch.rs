//! From the network into the cache.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ureq::http::StatusCode;

use super::cache::{ContentHash, RemoteFile, check_content, create_parent, io, note_content};
use super::error::HubError;
use super::line::{Failed, Reply, Request};
use super::{Hub, HubEvent, TICK, lock};

/// The shortest time between two events about the progress of a transfer.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// A complete file in the cache, which stays there while this exists.
pub(crate) struct LocalFile {
    hub: Hub,
    file: Arc<RemoteFile>,
}

impl LocalFile {
    /// Its name in the cache.
    pub(crate) fn path(&self) -> &Path {
        &self.file.place.link
    }
}

impl Drop for LocalFile {
    fn drop(&mut self) {
        lock(&self.hub.shared.budget).end_reading(&self.file);
        // A file that cannot be removed now is in the way of nobody but the next fetch, which says so.
        let _ = self.hub.make_room(0);
    }
}

impl Hub {
    /// The file on disk, fetched if need be.
    pub(crate) fn local(&self, file: &Arc<RemoteFile>) -> Result<LocalFile, HubError> {
        lock(&self.shared.budget).start_reading(file);
        let local = LocalFile {
            hub: self.clone(),
            file: Arc::clone(file),
        };
        self.fetch(file)?;
        Ok(local)
    }

    /// Fetches a file that will be wanted next, on a thread of its own, if there is room for it.
    pub(crate) fn fetch_ahead(&self, file: &Arc<RemoteFile>) {
        let is_offline = self.settings().is_ok_and(|settings| settings.offline);
        let has_room = self
            .limit
            .is_none_or(|limit| lock(&self.shared.budget).fits(limit, file.size));
        if is_offline || !has_room || file.place.blob.exists() {
            return;
        }
        let (hub, file) = (self.clone(), Arc::clone(file));
        // An error comes again when the file is read.
        let body = move || drop(hub.fetch(&file));
        let _ = std::thread::Builder::new()
            .name("hub fetch".to_owned())
            .spawn(body);
    }

    /// Whether the file is read from the cache, where it may have to be fetched to first.
    pub(crate) fn stores(&self, file: &RemoteFile) -> Result<bool, HubError> {
        Ok(self.limit != Some(0) || self.is_cached(file)?)
    }

    /// Whether the file is in the cache and what its name says.
    pub(crate) fn is_cached(&self, file: &RemoteFile) -> Result<bool, HubError> {
        let blob = &file.place.blob;
        let Ok(metadata) = std::fs::metadata(blob) else {
            return Ok(false);
        };
        if lock(&self.shared.verified).contains(blob) {
            return Ok(true);
        }
        let corrupt = |reason| HubError::Corrupt {
            address: file.address(),
            path: blob.clone(),
            reason,
        };
        if metadata.len() != file.size {
            let (found, expected) = (metadata.len(), file.size);
            return Err(corrupt(format!("{found} bytes, should be {expected}")));
        }
        if let Err(found) = check_content(file, blob)? {
            return Err(corrupt(format!("its hash is {found}")));
        }
        lock(&self.shared.verified).insert(blob.clone());
        Ok(true)
    }

    fn fetch(&self, file: &Arc<RemoteFile>) -> Result<(), HubError> {
        if !self.is_cached(file)? {
            if self.settings()?.offline {
                return Err(HubError::Offline {
                    address: file.address(),
                    cache: file.place.link.clone(),
                });
            }
            let _lock = self.take_lock(&file.place.lock)?;
            // Another thread or program may have fetched it in the meantime.
            if !self.is_cached(file)? {
                self.make_room(file.size)?;
                if self.limit.is_some() {
                    lock(&self.shared.budget).reserve(file);
                }
                self.download(file).inspect_err(|_| {
                    lock(&self.shared.budget).cancel(file);
                    let name = file.address();
                    self.tell(HubEvent::Failed { name });
                })?;
            }
        }
        file.place.link()
    }

    /// Drops used files until `incoming` bytes fit.
    fn make_room(&self, incoming: u64) -> Result<(), HubError> {
        let Some(limit) = self.limit else {
            return Ok(());
        };
        // Held until the files are gone, so that nobody starts to read one in between.
        let mut budget = lock(&self.shared.budget);
        for file in budget.make_room(limit, incoming) {
            lock(&self.shared.verified).remove(&file.place.blob);
            file.place.remove()?;
            let name = file.address();
            self.tell(HubEvent::Dropped { name });
        }
        Ok(())
    }

    /// Waits until no other program fetches the same file.
    fn take_lock(&self, path: &Path) -> Result<Option<File>, HubError> {
        create_parent(path)?;
        let file = OpenOptions::new().create(true).append(true).open(path);
        let file = file.map_err(|error| io(path, &error))?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Some(file)),
                Err(TryLockError::WouldBlock) => self.sleep(TICK)?,
                // A file system without locks.
                Err(TryLockError::Error(_)) => return Ok(None),
            }
        }
    }

    fn download(&self, file: &RemoteFile) -> Result<(), HubError> {
        let start = Instant::now();
        let path = file.place.incomplete();
        create_parent(&path)?;
        let mut brought = 0;
        let mut part = Part::open(path)?;
        let mut was_there = part.done > 0;
        loop {
            self.transfer(file, &mut part, &mut brought)?;
            part.file
                .sync_all()
                .map_err(|error| io(&part.path, &error))?;
            let Err(found) = check_content(file, &part.path)? else {
                break;
            };
            part.clear()?;
            // What an earlier process left may have been damaged; what came now may not.
            if !std::mem::take(&mut was_there) {
                std::fs::remove_file(&part.path).map_err(|error| io(&part.path, &error))?;
                return Err(HubError::WrongHash {
                    address: file.address(),
                    expected: file.hash.text().to_owned(),
                    found,
                });
            }
        }
        note_content(file, &part.path)?;
        let blob = &file.place.blob;
        std::fs::rename(&part.path, blob).map_err(|error| io(blob, &error))?;
        lock(&self.shared.verified).insert(blob.clone());
        self.tell(HubEvent::Fetched {
            name: file.address(),
            bytes: brought,
            time: start.elapsed(),
        });
        Ok(())
    }

    /// Brings a part to the size of the file.
    fn transfer(
        &self,
        file: &RemoteFile,
        part: &mut Part,
        brought: &mut u64,
    ) -> Result<(), HubError> {
        let address = file.address();
        self.with_retries(&address, brought, |brought| {
            if part.done > file.size {
                part.clear()?;
            }
            if part.done == file.size {
                return Ok(());
            }
            let request = Request {
                address: &address,
                url: &file.url,
                range: (part.done > 0).then_some((part.done, None)),
                page: &file.page,
            };
            let reply = self.get(request)?;
            check_reply(file, &reply)?;
            match reply.content_range() {
                Some((start, _)) if reply.status == StatusCode::PARTIAL_CONTENT => {
                    if start != part.done {
                        return Err(Failed::passing(format!("the part starts at byte {start}")));
                    }
                }
                // The whole file, whatever was asked for.
                _ => part.clear()?,
            }
            let mut told = Instant::now();
            reply.read(|bytes| {
                part.append(bytes)?;
                *brought += bytes.len() as u64;
                if part.done > file.size {
                    return Err(wrong_size(file, part.done).into());
                }
                if told.elapsed() > PROGRESS_EVERY {
                    told = Instant::now();
                    self.tell(HubEvent::Progress {
                        name: address.clone(),
                        done: part.done,
                        total: file.size,
                    });
                }
                if self.is_interrupted() {
                    return Err(HubError::Interrupted.into());
                }
                Ok(())
            })?;
            if part.done < file.size {
                return Err(Failed::passing("the connection broke off"));
            }
            Ok(())
        })
    }
}

/// Whether a reply is about the file as it was listed.
pub(super) fn check_reply(file: &RemoteFile, reply: &Reply) -> Result<(), HubError> {
    if reply.is_page() {
        let address = file.address();
        return Err(HubError::Page { address });
    }
    let size = match reply.content_range() {
        Some((_, size)) if reply.status == StatusCode::PARTIAL_CONTENT => Some(size),
        _ => reply.body_len(),
    };
    if let Some(found) = size.filter(|size| *size != file.size) {
        return Err(wrong_size(file, found));
    }
    let named = match &file.hash {
        ContentHash::Unknown => None,
        ContentHash::Etag(_) => reply.etag(),
        // The file server behind a hub has names of its own.
        ContentHash::Sha256(_) | ContentHash::Git(_) => {
            let own = || reply.etag().filter(|_| !reply.was_redirected());
            let etag = reply.linked_etag.clone().or_else(own);
            etag.filter(|etag| ContentHash::of_name(etag).is_some())
        }
    };
    match named {
        Some(found) if found != file.hash.text() => Err(HubError::WrongHash {
            address: file.address(),
            expected: file.hash.text().to_owned(),
            found,
        }),
        _ => Ok(()),
    }
}

pub(super) fn wrong_size(file: &RemoteFile, found: u64) -> HubError {
    HubError::WrongSize {
        address: file.address(),
        expected: file.size,
        found,
    }
}

/// A file that is not complete.
struct Part {
    path: PathBuf,
    file: File,
    done: u64,
}

impl Part {
    fn open(path: PathBuf) -> Result<Self, HubError> {
        let open = OpenOptions::new().create(true).append(true).open(&path);
        let file = open.map_err(|error| io(&path, &error))?;
        let done = file.metadata().map_err(|error| io(&path, &error))?.len();
        Ok(Self { path, file, done })
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), HubError> {
        let written = self.file.write_all(bytes);
        written.map_err(|error| io(&self.path, &error))?;
        self.done += bytes.len() as u64;
        Ok(())
    }

    fn clear(&mut self) -> Result<(), HubError> {
        self.done = 0;
        self.file.set_len(0).map_err(|error| io(&self.path, &error))
    }
}
