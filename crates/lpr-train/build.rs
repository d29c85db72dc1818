//! Tells the program from which revision of the sources it was built.
//!
//! It runs when the sources changed, when the program is built again anyway, and not when only the
//! revision did. So a program built from changed sources that were committed later says `-dirty`.

use std::process::Command;

/// What the program is built from.
const SOURCES: [&str; 7] = [
    "build.rs",
    "Cargo.toml",
    "src",
    "../lpr-data/src",
    "../lpr-kernels/src",
    "../lpr-model/src",
    "../../Cargo.lock",
];

fn main() {
    for path in SOURCES {
        println!("cargo:rerun-if-changed={path}");
    }
    let revision = revision().unwrap_or_default();
    println!("cargo:rustc-env=LPR_REVISION={revision}");
}

/// The commit, with `-dirty` if tracked files differ from it; `None` outside of a repository of these
/// sources, or without git.
fn revision() -> Option<String> {
    git(&["ls-files", "--error-unmatch", "build.rs"])?;
    git(&[
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
        "--exclude=*",
    ])
}

fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
