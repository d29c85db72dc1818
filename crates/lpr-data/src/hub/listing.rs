//! From an address to the files it stands for, each with its size and hash.

use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;

use super::address::{Origin, RepoAddress, encode_path, is_in_repo, is_inside};
use super::cache::{self, ContentHash, RemoteFile};
use super::error::HubError;
use super::line::{Failed, Reply, Request};
use super::{Hub, HubEvent, lock};
use crate::format::Format;

/// Longest reply to a question about a repository.
const MAX_REPLY_BYTES: usize = 1 << 26;
/// A thousand files each.
const MAX_PAGES: usize = 10_000;

/// A file of a repository at a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) path: String,
    pub(crate) size: u64,
    pub(crate) hash: ContentHash,
}

/// What is listed at once: a folder, perhaps with those below it.
pub(crate) type Folder = (RepoAddress, bool);

#[derive(Deserialize)]
struct Revision {
    sha: String,
}

/// A file or folder as the hub lists it.
#[derive(Deserialize)]
struct TreeItem {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    oid: String,
    lfs: Option<LargeFile>,
}

#[derive(Deserialize)]
struct LargeFile {
    oid: String,
    size: u64,
}

impl Hub {
    /// The files that a source stands for, in no particular order. A folder or glob yields those
    /// whose format is known.
    pub(crate) fn files(&self, source: &str) -> Result<Vec<RemoteFile>, HubError> {
        if !is_in_repo(source) {
            return Ok(vec![self.web_file(source)?]);
        }
        let address = RepoAddress::parse(source)?;
        if !address.is_dataset {
            return Err(HubError::BadAddress {
                address: source.to_owned(),
                reason: "it is a model; data is in datasets".to_owned(),
            });
        }
        let address = address.at(&self.commit(&address)?);
        let entries = self.matching(&address)?;
        let files = entries.iter().map(|entry| self.repo_file(&address, entry));
        files.collect()
    }

    /// The commit that a revision means now; without the hub, when it was last asked.
    pub(super) fn commit(&self, address: &RepoAddress) -> Result<String, HubError> {
        if let Some(commit) = address.commit() {
            return Ok(commit.to_owned());
        }
        let settings = self.settings()?;
        let cache = cache::RepoFolder::new(&settings.cache, address);
        if settings.offline {
            return cache
                .read_ref(address.revision())
                .ok_or_else(|| HubError::Offline {
                    address: address.to_string(),
                    cache: cache.ref_path(address.revision()),
                });
        }
        let url = address.api_url(&settings.endpoint, "revision") + "?expand=sha";
        let (_, body) = self.ask(address, &url)?;
        let Revision { sha } = parse(address, &body)?;
        if !super::address::is_commit(&sha) {
            return Err(bad_reply(address, "the commit is not one"));
        }
        cache.write_ref(address.revision(), &sha)?;
        Ok(sha)
    }

    fn matching(&self, address: &RepoAddress) -> Result<Vec<Entry>, HubError> {
        let path = &address.path;
        let parent = |path: &str| {
            path.rsplit_once('/')
                .map_or("", |(parent, _)| parent)
                .to_owned()
        };
        let is_known = |entry: &&Entry| Format::of(Path::new(&entry.path)).is_some();
        if let Some(at) = path.find(['*', '?', '[']) {
            let pattern = glob::Pattern::new(path).map_err(|error| HubError::BadAddress {
                address: address.to_string(),
                reason: error.to_string(),
            })?;
            let (folder, is_deep) = (parent(&path[..at]), path[at..].contains('/'));
            let entries = self.tree(&address.with_path(&folder), is_deep)?;
            let options = glob::MatchOptions {
                require_literal_separator: true,
                ..glob::MatchOptions::new()
            };
            let matches = |entry: &&Entry| pattern.matches_with(&entry.path, options);
            let found: Vec<_> = entries
                .iter()
                .filter(matches)
                .filter(is_known)
                .cloned()
                .collect();
            if self.settings()?.offline {
                let (address, files) = (address.to_string(), found.len());
                self.tell(HubEvent::OfflineGlob { address, files });
            }
            return Ok(found);
        }
        if Format::of(Path::new(path)).is_some() {
            let entries = self.tree(&address.with_path(&parent(path)), false)?;
            return Ok(entries
                .iter()
                .filter(|entry| entry.path == *path)
                .cloned()
                .collect());
        }
        let entries = self.tree(address, false)?;
        Ok(entries.iter().filter(is_known).cloned().collect())
    }

    /// The files in a folder of a repository at a commit.
    pub(super) fn tree(
        &self,
        folder: &RepoAddress,
        is_deep: bool,
    ) -> Result<Arc<Vec<Entry>>, HubError> {
        let key = (folder.clone(), is_deep);
        if let Some(known) = lock(&self.shared.listings).get(&key) {
            return Ok(Arc::clone(known));
        }
        let settings = self.settings()?;
        let entries = if settings.offline {
            cache::RepoFolder::new(&settings.cache, folder).list(folder, is_deep)?
        } else {
            self.ask_tree(folder, is_deep)?
        };
        let entries = Arc::new(entries);
        // Without the hub more files may appear, brought by another program.
        if !settings.offline {
            lock(&self.shared.listings).insert(key, Arc::clone(&entries));
        }
        Ok(entries)
    }

    fn ask_tree(&self, folder: &RepoAddress, is_deep: bool) -> Result<Vec<Entry>, HubError> {
        let mut url = folder.api_url(&self.settings()?.endpoint, "tree");
        if !folder.path.is_empty() {
            url = url + "/" + &encode_path(&folder.path);
        }
        url += if is_deep {
            "?recursive=true"
        } else {
            "?recursive=false"
        };
        let mut entries = Vec::new();
        for _ in 0..MAX_PAGES {
            let (next, body) = self.ask(folder, &url)?;
            let items: Vec<TreeItem> = parse(folder, &body)?;
            for item in items.into_iter().filter(|item| item.kind == "file") {
                entries.push(entry(folder, item)?);
            }
            let Some(next) = next else {
                return Ok(entries);
            };
            let origin = Origin::of(&url).and_then(|origin| origin.resolve(&next));
            url = origin.ok_or_else(|| bad_reply(folder, "the next page has no address"))?;
        }
        Err(bad_reply(folder, "the list of files does not end"))
    }

    /// A reply of the interface, with the address of the next page.
    fn ask(&self, address: &RepoAddress, url: &str) -> Result<(Option<String>, Vec<u8>), HubError> {
        let page = address.page(&self.settings()?.endpoint);
        let address = address.to_string();
        let request = Request {
            address: &address,
            url,
            range: None,
            page: &page,
        };
        self.with_retries(&address, &mut 0, |_| {
            let reply = self.get(request)?;
            let next = next_page(&reply);
            Ok((next, reply.read_all(MAX_REPLY_BYTES)?))
        })
    }

    pub(super) fn repo_file(
        &self,
        address: &RepoAddress,
        entry: &Entry,
    ) -> Result<RemoteFile, HubError> {
        let settings = self.settings()?;
        let address = address.with_path(&entry.path);
        Ok(RemoteFile {
            name: address.to_string().into(),
            url: address.file_url(&settings.endpoint),
            page: address.page(&settings.endpoint),
            size: entry.size,
            hash: entry.hash.clone(),
            place: cache::RepoFolder::new(&settings.cache, &address).place(&address, &entry.hash),
        })
    }

    /// A file of another web server, described by the headers of a request for its first byte.
    fn web_file(&self, source: &str) -> Result<RemoteFile, HubError> {
        let settings = self.settings()?;
        let refuse = |reason: &str| HubError::BadAddress {
            address: super::address::shown(source),
            reason: reason.to_owned(),
        };
        let origin = Origin::of(source);
        let origin = origin.ok_or_else(|| refuse("it is no web address, or holds a password"))?;
        if !origin.is_private() && Some(&origin) != Origin::of(&settings.endpoint).as_ref() {
            return Err(refuse(
                "http:// lets anybody on the way change the data; use https://",
            ));
        }
        let name = &super::address::shown(source);
        if settings.offline {
            return cache::known_web_file(&settings.url_cache, source).ok_or_else(|| {
                HubError::Offline {
                    address: name.clone(),
                    cache: settings.url_cache.clone(),
                }
            });
        }
        let request = Request {
            address: name,
            url: source,
            range: Some((0, Some(1))),
            page: name,
        };
        let (size, etag) = self.with_retries(name, &mut 0, |_| {
            let reply = self.get(request)?;
            if reply.is_page() {
                let address = name.clone();
                return Err(HubError::Page { address }.into());
            }
            let size = reply
                .content_range()
                .map(|(_, size)| size)
                .or_else(|| reply.body_len());
            let size = size.ok_or_else(|| {
                Failed::from(HubError::BadReply {
                    address: name.clone(),
                    reason: "the server does not say how long the file is".to_owned(),
                })
            })?;
            let modified = || reply.header("last-modified").map(str::to_owned);
            Ok((size, reply.etag().or_else(modified)))
        })?;
        let file = cache::web_file(&settings.url_cache, source, size, etag);
        cache::remember_web_file(&settings.url_cache, source, &file)?;
        Ok(file)
    }
}

fn next_page(reply: &Reply) -> Option<String> {
    let links = reply.header("link")?.split(',');
    let next = links.filter_map(|link| link.split_once(';'));
    let (address, _) = next
        .into_iter()
        .find(|(_, kind)| kind.contains("rel=\"next\""))?;
    let address = address.trim().strip_prefix('<')?.strip_suffix('>')?;
    Some(address.to_owned())
}

fn entry(folder: &RepoAddress, item: TreeItem) -> Result<Entry, HubError> {
    let (oid, size) = match item.lfs {
        Some(large) => (large.oid, large.size),
        None => (item.oid, item.size),
    };
    let hash = ContentHash::of_name(&oid);
    let hash = hash.ok_or_else(|| bad_reply(folder, "a file has no hash"))?;
    if item.path.is_empty() || !is_inside(&item.path) {
        return Err(bad_reply(folder, "a file lies outside the repository"));
    }
    Ok(Entry {
        path: item.path,
        size,
        hash,
    })
}

fn parse<'a, T: Deserialize<'a>>(address: &RepoAddress, body: &'a [u8]) -> Result<T, HubError> {
    serde_json::from_slice(body).map_err(|error| bad_reply(address, &error.to_string()))
}

fn bad_reply(address: &RepoAddress, reason: &str) -> HubError {
    HubError::BadReply {
        address: address.to_string(),
        reason: reason.to_owned(),
    }
}
