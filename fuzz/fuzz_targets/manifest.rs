//! The manifest of a checkpoint whose other files are there.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lpr_fuzz::{file, folder};
use lpr_train::checkpoint::{Checkpoint, MANIFEST_FILE};
use lpr_train::session::RunState;

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, bytes)) = bytes.split_first() else {
        return;
    };
    if kind % 2 == 0 {
        file("state.json", b"{}");
        file(MANIFEST_FILE, bytes);
        if let Ok(checkpoint) = Checkpoint::open(folder()) {
            let _ = checkpoint.state::<RunState>();
        }
    } else {
        let _ = serde_json::from_slice::<RunState>(bytes);
    }
});
