//! What the fuzz targets share.

use std::path::{Path, PathBuf};
use std::sync::{Once, OnceLock};

pub mod seeds;
#[allow(dead_code, reason = "the tests of lpr-data use the rest")]
#[path = "../../crates/lpr-data/tests/data/support.rs"]
mod support;
pub use support::gzip;

/// A folder of this process alone. It stays, because a target is ended and never returns.
pub fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| tempfile::tempdir().expect("a folder").keep())
}

/// Writes `bytes` to a file called `name` and returns its path.
pub fn file(name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder().join(name);
    std::fs::write(&path, bytes).expect("written");
    path
}

/// Reads every document of a data file, which must never panic, and twice gives the same.
///
/// A panic inside a decoder that `lpr-data` catches and reports is none: the fuzzer's own hook, which
/// ends the process at any, is taken away. One that nobody catches still ends it.
pub fn read_documents(path: &Path) {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| std::panic::set_hook(Box::new(|_| {})));
    let sources = [path.to_str().expect("UTF-8").to_owned()];
    let read = || lpr_data::check_files(&sources, "text", None, &lpr_data::Hub::default()).ok();
    assert_eq!(read(), read());
}
