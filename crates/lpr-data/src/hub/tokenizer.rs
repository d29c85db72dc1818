//! A tokenizer on the hub: a few small files of a repository.

use std::path::PathBuf;
use std::sync::Arc;

use super::Hub;
use super::address::{RepoAddress, is_in_repo};
use super::error::HubError;

const TOKENIZER: &str = "tokenizer.json";
/// What else belongs to a tokenizer, where it exists.
const OTHER_FILES: [&str; 4] = [
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
];

impl Hub {
    /// The `tokenizer.json` of a repository, in the cache with the files that belong to it.
    pub(crate) fn tokenizer(&self, address: &str) -> Result<PathBuf, HubError> {
        if !is_in_repo(address) {
            return Err(HubError::BadAddress {
                address: super::address::shown(address),
                reason: "a tokenizer comes from the hub or from disk".to_owned(),
            });
        }
        let folder = RepoAddress::parse(address)?;
        let folder = folder.at(&self.commit(&folder)?);
        let entries = self.tree(&folder, false)?;
        let mut found = None;
        for name in OTHER_FILES.iter().chain(&[TOKENIZER]) {
            let path = [folder.path.as_str(), name].join("/");
            let path = path.trim_start_matches('/');
            if let Some(entry) = entries.iter().find(|entry| entry.path == path) {
                let file = Arc::new(self.repo_file(&folder, entry)?);
                let local = self.local(&file)?;
                found = (*name == TOKENIZER).then(|| local.path().to_owned());
            }
        }
        found.ok_or_else(|| HubError::NotFound {
            address: folder.with_path(TOKENIZER).to_string(),
            status: 404,
            detail: ", the repository has no tokenizer.json there".to_owned(),
        })
    }
}
