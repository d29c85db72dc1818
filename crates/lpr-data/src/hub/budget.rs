//! Which files of the cache this process brought there and may drop again.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::cache::RemoteFile;

/// Files that were fetched, the one that was read last at the end, and files that are being read.
#[derive(Default)]
pub(crate) struct Budget {
    fetched: Vec<Fetched>,
    /// Readers by blob, of files of any origin.
    readers: HashMap<PathBuf, usize>,
}

struct Fetched {
    file: Arc<RemoteFile>,
    was_read: bool,
}

impl Budget {
    /// Counts a file that is about to be fetched.
    pub(crate) fn reserve(&mut self, file: &Arc<RemoteFile>) {
        self.cancel(file);
        self.fetched.push(Fetched {
            file: Arc::clone(file),
            was_read: false,
        });
    }

    /// Takes a reservation back.
    pub(crate) fn cancel(&mut self, file: &RemoteFile) {
        self.fetched
            .retain(|fetched| fetched.file.place != file.place);
    }

    pub(crate) fn start_reading(&mut self, file: &RemoteFile) {
        *self.readers.entry(file.place.blob.clone()).or_default() += 1;
    }

    pub(crate) fn end_reading(&mut self, file: &RemoteFile) {
        if let Some(readers) = self.readers.get_mut(&file.place.blob) {
            *readers -= 1;
            if *readers == 0 {
                self.readers.remove(&file.place.blob);
            }
        }
        let at = self
            .fetched
            .iter()
            .position(|fetched| fetched.file.place == file.place);
        if let Some(at) = at {
            let mut fetched = self.fetched.remove(at);
            fetched.was_read = true;
            self.fetched.push(fetched);
        }
    }

    /// Whether `incoming` bytes fit beside the files that cannot be dropped.
    pub(crate) fn fits(&self, limit: u64, incoming: u64) -> bool {
        let stays = |fetched: &&Fetched| !self.is_done(fetched);
        let kept: u64 = self.fetched.iter().filter(stays).map(|f| f.file.size).sum();
        kept.saturating_add(incoming) <= limit
    }

    /// Takes out of the list the files that nobody reads any more, the one that was read longest ago
    /// first, until the rest and `incoming` bytes fit or none is left.
    pub(crate) fn make_room(&mut self, limit: u64, incoming: u64) -> Vec<Arc<RemoteFile>> {
        let mut dropped = Vec::new();
        let size = |fetched: &[Fetched]| fetched.iter().map(|f| f.file.size).sum::<u64>();
        while size(&self.fetched).saturating_add(incoming) > limit {
            let Some(at) = self
                .fetched
                .iter()
                .position(|fetched| self.is_done(fetched))
            else {
                break;
            };
            dropped.push(self.fetched.remove(at).file);
        }
        dropped
    }

    fn is_done(&self, fetched: &Fetched) -> bool {
        fetched.was_read && !self.readers.contains_key(&fetched.file.place.blob)
    }
}

#[cfg(test)]
mod tests {
    use super::super::cache::web_file;
    use super::*;

    fn file(name: &str, size: u64) -> Arc<RemoteFile> {
        let url = format!("https://h.co/{name}");
        Arc::new(web_file(std::path::Path::new("/c"), &url, size, None))
    }

    #[test]
    fn the_files_used_longest_ago_make_room_and_no_other() {
        let mut budget = Budget::default();
        let files = ["a", "b", "c"].map(|name| file(name, 10));
        for file in &files {
            budget.reserve(file);
        }
        assert!(budget.make_room(0, 0).is_empty(), "none was read");
        assert!(!budget.fits(30, 1) && budget.fits(30, 0));
        budget.start_reading(&files[0]);
        assert!(budget.make_room(0, 0).is_empty(), "one is being read");
        budget.start_reading(&files[1]);
        budget.end_reading(&files[1]);
        budget.end_reading(&files[0]);
        assert!(budget.fits(30, 20));
        assert_eq!(budget.make_room(30, 10), [Arc::clone(&files[1])]);
        assert_eq!(budget.make_room(0, 0), [Arc::clone(&files[0])]);
        budget.cancel(&files[2]);
        assert!(budget.fits(0, 0));
    }
}
