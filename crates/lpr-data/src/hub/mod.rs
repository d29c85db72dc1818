//! Files on the Hugging Face hub and on other web servers.
//!
//! The cache is the one that Python and other programs use (`blobs`, `snapshots`, `refs`); its
//! names come from `hf-hub`. The bytes come over `ureq`: every wait has a limit, failures that may
//! pass are repeated, an interrupted transfer goes on where it stopped, and a file is in the cache
//! only when its size and hash are those that the hub lists.
//!
//! Nothing here prints. [`HubEvent`]s tell the caller what to show.

mod address;
mod budget;
mod cache;
mod error;
mod fetch;
mod line;
mod listing;
mod remote;
mod settings;
mod tokenizer;

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

pub use error::HubError;
pub use settings::{HubSettings, Retry, Token};

pub(crate) use address::is_remote;
pub(crate) use fetch::LocalFile;
pub(crate) use remote::RemoteBytes;

use address::RepoAddress;
use budget::Budget;
pub(crate) use cache::RemoteFile;
use line::{Failed, Line, Reply, Request};

/// How often a wait looks whether it should end.
const TICK: Duration = Duration::from_millis(20);

/// What a user may want to see of a transfer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum HubEvent {
    /// Bytes of a file have arrived.
    Progress {
        /// The file.
        name: String,
        /// Bytes on disk.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// A file has arrived and is what it should be.
    Fetched {
        /// The file.
        name: String,
        /// Bytes that were transferred now; fewer than its size if a part was there.
        bytes: u64,
        /// How long that took, waits included.
        time: Duration,
    },
    /// A file was taken out of the cache, because `data.cache_limit_gb` is reached.
    Dropped {
        /// The file.
        name: String,
    },
    /// A transfer of a file ended with an error, which is told elsewhere.
    Failed {
        /// The file.
        name: String,
    },
    /// An attempt failed and is repeated.
    Retry {
        /// What was asked for.
        address: String,
        /// Why it failed.
        reason: String,
        /// When the next one starts.
        delay: Duration,
    },
    /// Without the hub, a glob stands for those of its files that are in the cache.
    OfflineGlob {
        /// The source.
        address: String,
        /// Files found.
        files: usize,
    },
}

/// What is done with events; called from any thread.
pub type HubEvents = Box<dyn Fn(HubEvent) + Send + Sync>;
/// Whether to end every wait.
pub type StopCheck = Box<dyn Fn() -> bool + Send + Sync>;

/// Opened by the first request.
type SharedLine = OnceLock<Result<Line, HubError>>;

/// Access to files on the network. Copies share all that is known, and are closed together.
#[derive(Clone)]
pub struct Hub {
    shared: Arc<Shared>,
    line: Arc<SharedLine>,
    /// Bytes of fetched files to keep; `None` keeps all.
    limit: Option<u64>,
}

struct Shared {
    settings: Result<HubSettings, HubError>,
    stop: StopCheck,
    events: HubEvents,
    listings: Mutex<HashMap<listing::Folder, Arc<Vec<listing::Entry>>>>,
    /// Files of the cache whose content was compared with its name.
    verified: Mutex<HashSet<PathBuf>>,
    budget: Mutex<Budget>,
    lines: Mutex<Vec<Weak<SharedLine>>>,
    watch: OnceLock<()>,
}

impl Default for Hub {
    /// The hub of the environment, for callers that show nothing and never stop early.
    fn default() -> Self {
        let never = Box::new(|| false);
        Self::new(HubSettings::from_env(), never, Box::new(drop))
    }
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub").finish_non_exhaustive()
    }
}

impl PartialEq for Hub {
    /// All are equal: how data is reached does not change what it is.
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// Access that ends every wait, of its copies too, when it is dropped.
pub(crate) struct OwnHub(Hub);

impl std::ops::Deref for OwnHub {
    type Target = Hub;

    fn deref(&self) -> &Hub {
        &self.0
    }
}

impl Drop for OwnHub {
    fn drop(&mut self) {
        if let Ok(line) = self.0.line.get_or_init(|| Err(HubError::Interrupted)) {
            line.close();
        }
    }
}

impl Hub {
    /// Makes no request and reads no file yet; settings that make no sense are an error of the first
    /// use. `stop` is asked about 50 times a second while something is on the network.
    pub fn new(
        settings: Result<HubSettings, HubError>,
        stop: StopCheck,
        events: HubEvents,
    ) -> Self {
        let shared = Shared {
            settings,
            stop,
            events,
            listings: Mutex::default(),
            verified: Mutex::default(),
            budget: Mutex::default(),
            lines: Mutex::default(),
            watch: OnceLock::new(),
        };
        Self {
            shared: Arc::new(shared),
            line: Arc::default(),
            limit: None,
        }
    }

    /// Access that can be closed without closing this one, and that keeps at most `limit` bytes of
    /// what it fetches: used files go first, the file being read stays.
    pub(crate) fn separate(&self, limit: Option<u64>) -> OwnHub {
        OwnHub(Self {
            shared: Arc::clone(&self.shared),
            line: Arc::default(),
            limit,
        })
    }

    /// The same address at a commit: its own, or that of the same place in `known`, or the one that
    /// its revision means now. What is not in a repository stays as it is.
    ///
    /// # Errors
    /// A repository or revision that cannot be reached.
    pub fn pin(&self, address: &str, known: &[String]) -> Result<String, HubError> {
        if !address::is_in_repo(address) {
            return Ok(address.to_owned());
        }
        let address = RepoAddress::parse(address)?;
        if address.commit().is_some() {
            return Ok(address.to_string());
        }
        for known in known.iter().filter(|known| address::is_in_repo(known)) {
            let known = RepoAddress::parse(known)?;
            if let Some(commit) = known.commit()
                && known == address.at(commit)
            {
                return Ok(known.to_string());
            }
        }
        Ok(address.at(&self.commit(&address)?).to_string())
    }

    /// Whether an address on the network can be read as one; a path on disk always can.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check_address(address: &str) -> Result<(), HubError> {
        if address::is_in_repo(address) {
            RepoAddress::parse(address)?;
        } else if is_remote(address) && address::Origin::of(address).is_none() {
            return Err(HubError::BadAddress {
                address: address::shown(address),
                reason: "it is no web address, or holds a password".to_owned(),
            });
        }
        Ok(())
    }

    fn settings(&self) -> Result<&HubSettings, HubError> {
        self.shared.settings.as_ref().map_err(Clone::clone)
    }

    fn tell(&self, event: HubEvent) {
        (self.shared.events)(event);
    }

    fn is_interrupted(&self) -> bool {
        let is_closed = |line: &Result<Line, HubError>| match line {
            Ok(line) => line.is_closed(),
            Err(error) => *error == HubError::Interrupted,
        };
        (self.shared.stop)() || self.line.get().is_some_and(is_closed)
    }

    fn line(&self) -> Result<&Line, HubError> {
        let settings = self.settings()?;
        let line = self.line.get_or_init(|| {
            let mut lines = lock(&self.shared.lines);
            lines.retain(|line| line.strong_count() > 0);
            lines.push(Arc::downgrade(&self.line));
            Line::open(settings)
        });
        self.shared.watch.get_or_init(|| watch(&self.shared));
        line.as_ref().map_err(Clone::clone)
    }

    /// One attempt.
    fn get(&self, request: Request) -> Result<Reply, Failed> {
        self.line()?.get(self.settings()?, request)
    }

    /// Repeats `attempt` until it succeeds, fails for good, or has failed too often without bringing
    /// anything. `progress` grows while something comes.
    fn with_retries<T>(
        &self,
        address: &str,
        progress: &mut u64,
        mut attempt: impl FnMut(&mut u64) -> Result<T, Failed>,
    ) -> Result<T, HubError> {
        let retry = self.settings()?.retry.clone();
        let mut attempts = 0;
        loop {
            if self.is_interrupted() {
                return Err(HubError::Interrupted);
            }
            let before = *progress;
            let failed = match attempt(progress) {
                Ok(value) => return Ok(value),
                Err(failed) => failed,
            };
            if self.is_interrupted() {
                return Err(HubError::Interrupted);
            }
            let (reason, after) = match failed {
                Failed::Passing { reason, after } => (reason, after),
                Failed::Lasting(error) => return Err(error),
            };
            if *progress > before {
                attempts = 0;
            }
            attempts += 1;
            let address = address.to_owned();
            if attempts >= retry.attempts {
                return Err(HubError::GaveUp {
                    address,
                    attempts,
                    reason,
                });
            }
            let delay = after.unwrap_or_else(|| backoff(&retry, attempts));
            self.tell(HubEvent::Retry {
                address,
                reason,
                delay,
            });
            self.sleep(delay)?;
        }
    }

    fn sleep(&self, delay: Duration) -> Result<(), HubError> {
        let end = Instant::now() + delay;
        while !self.is_interrupted() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(TICK));
        }
        Err(HubError::Interrupted)
    }
}

/// Half of the wait is drawn by lot, so that many machines do not come back at once.
fn backoff(retry: &Retry, attempts: u32) -> Duration {
    let delay = retry
        .first_delay
        .saturating_mul(1 << attempts.min(16).saturating_sub(1));
    let lot = RandomState::new().hash_one(attempts) % 1000;
    delay
        .min(retry.max_delay)
        .mul_f64(0.5 + lot as f64 / 2000.0)
}

/// A panic of another thread leaves the maps as they were before or after a change.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Closes all lines when the caller wants to stop; ends with the last copy of the hub.
fn watch(shared: &Arc<Shared>) {
    let shared = Arc::downgrade(shared);
    let body = move || {
        while let Some(shared) = shared.upgrade() {
            if (shared.stop)() {
                let lines = lock(&shared.lines);
                for line in lines.iter().filter_map(Weak::upgrade) {
                    if let Some(Ok(line)) = line.get() {
                        line.close();
                    }
                }
                return;
            }
            drop(shared);
            std::thread::sleep(TICK);
        }
    };
    // Without it a request still ends at its limit of time.
    let _ = std::thread::Builder::new()
        .name("hub watch".to_owned())
        .spawn(body);
}
