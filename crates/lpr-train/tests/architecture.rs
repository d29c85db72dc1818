//! The rules of ARCHITECTURE.md that a program can check.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const CRATES: [&str; 4] = ["lpr-kernels", "lpr-model", "lpr-data", "lpr-train"];

fn crates() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn dependencies(name: &str, table: &str) -> BTreeSet<String> {
    let text = std::fs::read_to_string(crates().join(name).join("Cargo.toml")).unwrap();
    let manifest: toml::Table = text.parse().unwrap();
    let found = manifest.get(table).and_then(toml::Value::as_table);
    found.map_or_else(BTreeSet::new, |table| table.keys().cloned().collect())
}

/// (path below `crates`, text without comments and without the tests at its end)
fn sources(name: &str) -> Vec<(String, String)> {
    fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, files);
            } else if path.extension().is_some_and(|e| e == "rs") {
                files.push(path);
            }
        }
    }
    let mut files = Vec::new();
    walk(&crates().join(name).join("src"), &mut files);
    files.sort();
    let is_test = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        ["tests.rs", "test_support.rs"].contains(&name)
    };
    let text = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).unwrap();
        let code = text
            .split("\n#[cfg(test)]\nmod tests {")
            .next()
            .unwrap()
            .to_owned();
        let name = path.strip_prefix(crates()).unwrap().display().to_string();
        (name, code)
    };
    files
        .into_iter()
        .filter(|path| !is_test(path))
        .map(text)
        .collect()
}

fn code_lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.starts_with("//"))
}

#[test]
fn dependencies_point_down() {
    let ours = |name: &str| -> BTreeSet<String> {
        let all = dependencies(name, "dependencies").into_iter();
        all.filter(|d| CRATES.contains(&d.as_str())).collect()
    };
    let set =
        |names: &[&str]| -> BTreeSet<String> { names.iter().map(|&n| n.to_owned()).collect() };
    assert_eq!(ours("lpr-kernels"), set(&[]));
    assert_eq!(ours("lpr-data"), set(&[]));
    assert_eq!(ours("lpr-model"), set(&["lpr-kernels"]));
    assert_eq!(
        ours("lpr-train"),
        set(&["lpr-data", "lpr-kernels", "lpr-model"])
    );
}

#[test]
fn each_crate_knows_only_its_part() {
    for (name, banned) in [
        ("lpr-data", &["burn", "clap", "indicatif"][..]),
        (
            "lpr-model",
            &["clap", "indicatif", "parquet", "tokenizers", "toml"],
        ),
        ("lpr-kernels", &["clap", "indicatif", "serde", "parquet"]),
    ] {
        let found = dependencies(name, "dependencies");
        let found: Vec<_> = banned.iter().filter(|b| found.contains(**b)).collect();
        assert!(found.is_empty(), "{name} depends on {found:?}");
    }
    for name in CRATES {
        let count = dependencies(name, "dependencies").len();
        assert!(
            count < 15 + CRATES.len(),
            "{name} has {count} direct dependencies"
        );
    }
}

#[test]
fn libraries_never_print_and_only_the_kernels_are_unsafe() {
    for name in CRATES {
        for (path, text) in sources(name) {
            for line in code_lines(&text) {
                let prints = ["println!", "print!(", "eprint!(", "dbg!("]
                    .iter()
                    .any(|p| line.contains(p));
                assert!(!prints, "{path} prints: {line}");
                let unsafe_code = line.contains("unsafe ") && !line.contains("unsafe_code");
                assert!(!unsafe_code || name == "lpr-kernels", "{path}: {line}");
                let terminal = line.contains("io::stdout(") || line.contains("io::stderr(");
                assert!(
                    !terminal || path.ends_with("src/report.rs"),
                    "{path}: {line}"
                );
            }
        }
    }
}

#[test]
fn files_are_short_and_without_unwrap() {
    for name in CRATES {
        for (path, text) in sources(name) {
            let lines = text.lines().count();
            assert!(lines <= 400, "{path} has {lines} lines without its tests");
            for line in code_lines(&text) {
                assert!(!line.contains(".unwrap()"), "{path}: {line}");
                assert!(line.is_ascii(), "{path} is not ASCII: {line}");
            }
        }
    }
}

/// In `lpr-model` a module uses only those that `lib.rs` lists above it.
#[test]
fn the_model_reads_from_top_to_bottom() {
    let lib = std::fs::read_to_string(crates().join("lpr-model/src/lib.rs")).unwrap();
    let order: Vec<&str> = lib
        .lines()
        .filter_map(|line| line.trim_start_matches("pub ").strip_prefix("mod "))
        .map(|module| module.trim_end_matches(';'))
        .collect();
    assert!(order.len() > 5, "{order:?}");
    for (path, text) in sources("lpr-model") {
        let module = path
            .trim_start_matches("lpr-model/src/")
            .split(['/', '.'])
            .next()
            .unwrap();
        let Some(place) = order.iter().position(|m| *m == module) else {
            continue;
        };
        for later in &order[place + 1..] {
            assert!(
                !text.contains(&format!("crate::{later}::")),
                "{path} uses {later}, which comes later"
            );
        }
    }
}

/// Forward passes return what changes; nothing in the model is a cell.
#[test]
fn the_model_holds_no_hidden_state() {
    for (path, text) in sources("lpr-model") {
        for cell in [
            "RefCell", "Mutex", "RwLock", "OnceLock", "static ", "Atomic",
        ] {
            let used =
                code_lines(&text).any(|line| line.contains(cell) && !line.contains("'static "));
            assert!(!used, "{path} uses {cell}");
        }
    }
}
