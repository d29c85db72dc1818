//! What can go wrong between the hub and a file on disk, said so that the reader knows what to do.
//!
//! No field ever holds a token, nor the query of an address, which may hold a signature.

use std::path::PathBuf;

use thiserror::Error;

use crate::error::{DataError, Problem};

/// Why a file on the network cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum HubError {
    /// An address that names no file.
    #[error(
        "{address:?} is not an address that can be read: {reason}; write \
         hf://datasets/OWNER/NAME[@REVISION]/PATH, hf://OWNER/NAME[@REVISION] for a tokenizer, or \
         https://..."
    )]
    BadAddress {
        /// As written in the config.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An environment variable of the hub that makes no sense.
    #[error("the environment variable {name} {reason}")]
    BadSetting {
        /// The variable.
        name: &'static str,
        /// What is wrong with its value, and what would be right.
        reason: String,
    },
    /// Status 401.
    #[error(
        "{address}: the hub wants a login (401{detail}; {sent}); check the name, and set HF_TOKEN \
         or log in with `hf auth login`"
    )]
    Unauthorized {
        /// What was asked for.
        address: String,
        /// What the hub says, in front of it a comma.
        detail: String,
        /// Whether a token was sent.
        sent: &'static str,
    },
    /// Status 403.
    #[error(
        "{address}: access is denied (403{detail}; {sent}); accept the conditions at {page} with \
         the account of your token, or use a token that may read it (HF_TOKEN, `hf auth login`)"
    )]
    Forbidden {
        /// What was asked for.
        address: String,
        /// What the hub says, in front of it a comma.
        detail: String,
        /// Whether a token was sent.
        sent: &'static str,
        /// Where to ask for access.
        page: String,
    },
    /// Status 404 and 410.
    #[error("{address}: not found ({status}{detail}); check owner, name, revision and path")]
    NotFound {
        /// What was asked for.
        address: String,
        /// The status.
        status: u16,
        /// What the hub says, in front of it a comma.
        detail: String,
    },
    /// A status that no further attempt would change.
    #[error("{address}: the server answers with status {status}{detail}")]
    Status {
        /// What was asked for.
        address: String,
        /// The status.
        status: u16,
        /// What the hub says, in front of it a comma.
        detail: String,
    },
    /// Every attempt failed.
    #[error(
        "{address}: gave up after {attempts} attempts, the last one: {reason}; what has arrived is \
         kept, the same command goes on from there"
    )]
    GaveUp {
        /// What was asked for.
        address: String,
        /// Attempts in a row that brought nothing.
        attempts: u32,
        /// Why the last one failed.
        reason: String,
    },
    /// A server that cannot prove who it is.
    #[error(
        "{address}: the certificate of the server is not trusted ({reason}); behind a proxy that \
         decrypts, set SSL_CERT_FILE to a file (PEM) with its certificate"
    )]
    Certificate {
        /// What was asked for.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A redirect that is not followed.
    #[error("{address}: the server redirects {reason}, which is not followed")]
    Redirect {
        /// What was asked for.
        address: String,
        /// Where to.
        reason: &'static str,
    },
    /// A reply that is not what the interface of the hub promises.
    #[error("{address}: the reply makes no sense ({reason}); check HF_ENDPOINT")]
    BadReply {
        /// What was asked for.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A page for people in place of a file.
    #[error(
        "{address}: an HTML page came in place of the file (a login or error page?); nothing was \
         kept"
    )]
    Page {
        /// What was asked for.
        address: String,
    },
    /// Not the announced number of bytes.
    #[error("{address}: has {found} bytes, not {expected} as listed; nothing was kept")]
    WrongSize {
        /// What was asked for.
        address: String,
        /// According to the listing.
        expected: u64,
        /// According to the server of the file.
        found: u64,
    },
    /// Not the announced content.
    #[error("{address}: its hash is {found}, not {expected} as listed; nothing was kept")]
    WrongHash {
        /// What was asked for.
        address: String,
        /// According to the listing.
        expected: String,
        /// Of what arrived.
        found: String,
    },
    /// A server that sends whole files only.
    #[error(
        "{address}: the server sends no parts of files, so it cannot be read without being stored; \
         set data.cache_limit_gb above 0"
    )]
    NoRanges {
        /// What was asked for.
        address: String,
    },
    /// Not in the cache, and no request may be made.
    #[error(
        "{address}: not in the cache {}, and HF_HUB_OFFLINE forbids to fetch it; unset it, or fetch \
         the file on a machine with the same cache",
        cache.display()
    )]
    Offline {
        /// What was asked for.
        address: String,
        /// Where it would have to be.
        cache: PathBuf,
    },
    /// A file in the cache that is not what its name says.
    #[error(
        "{address}: the cached file {} is corrupt ({reason}); delete it, and it is fetched again",
        path.display()
    )]
    Corrupt {
        /// What was asked for.
        address: String,
        /// The file in the cache.
        path: PathBuf,
        /// Both sides of the mismatch.
        reason: String,
    },
    /// The operating system refused a file of the cache.
    #[error("{}: {reason}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// The caller asked to stop, or is gone.
    #[error("stopped on request while waiting for data")]
    Interrupted,
}

impl From<HubError> for DataError {
    fn from(error: HubError) -> Self {
        match error {
            HubError::Interrupted => Self::Interrupted,
            error => Self::Hub(error),
        }
    }
}

impl From<HubError> for Problem {
    fn from(error: HubError) -> Self {
        Self::Remote(Box::new(error))
    }
}
