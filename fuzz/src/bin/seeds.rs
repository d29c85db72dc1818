//! Small valid files, from which fuzzing starts.
//!
//! `cargo run --bin seeds` writes them to `corpus/`, a folder for each target.

use std::path::Path;

use lpr_fuzz::seeds;

fn main() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for (target, name, bytes) in seeds::all() {
        let folder = corpus.join(target);
        std::fs::create_dir_all(&folder).expect("created");
        std::fs::write(folder.join(name), bytes).expect("written");
    }
}
