//! The page of a run, comparisons and `watch`, on a run as users make it.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use support::{Setup, Variant, run, run_well, text};

const LPR: Variant = Variant {
    router: "lpr",
    packing: "packed",
    accumulation: 1,
};

fn path(setup: &Setup, name: &str) -> String {
    setup.run_dir(name).display().to_string()
}

#[test]
fn a_run_leaves_a_page_with_all_sections_that_the_command_makes_again() {
    let setup = Setup::new(LPR);
    run_well(&["-q", "--config", &setup.config("one")]);
    let page = setup.run_dir("one").join("report.html");
    let written = std::fs::read_to_string(&page).unwrap();
    for section in [
        "<h2>Loss</h2>",
        "<h3>Router loss: kl</h3>",
        "<h2>Expert load</h2>",
        "<h2>Balance over time</h2>",
        "<h3>Map of the prototypes</h3>",
        "<h2>Tokens of the experts</h2>",
        "class=\"token\"",
        "<h2>Speed</h2>",
        "data fingerprint",
        "<dt>cpu kernels</dt>",
        "kind = &quot;lpr&quot;",
    ] {
        assert!(written.contains(section), "{section}");
    }
    assert!(!written.contains("class=\"problems\""));
    let out = setup.folder.path().join("again.html").display().to_string();
    run_well(&["report", &path(&setup, "one"), "--out", &out]);
    assert_eq!(std::fs::read_to_string(out).unwrap(), written);
    // What is not there is told, and the rest is shown.
    std::fs::remove_dir_all(setup.run_dir("one").join("checkpoints")).unwrap();
    std::fs::remove_file(setup.run_dir("one").join("environment.json")).unwrap();
    run_well(&["report", &path(&setup, "one")]);
    let less = std::fs::read_to_string(page).unwrap();
    assert!(less.contains("class=\"problems\"") && less.contains("environment.json"));
    assert!(less.contains("<h2>Loss</h2>") && !less.contains("<h2>Router</h2>"));
}

#[test]
fn compare_prints_the_figures_and_the_keys_that_differ() {
    let setup = Setup::new(LPR);
    run_well(&["-q", "--config", &setup.config("one")]);
    let second = setup.config("two");
    run_well(&["-q", "--config", &second, "--override", "train.seed=43"]);
    let out = setup.folder.path().join("both.html").display().to_string();
    let (one, two) = (path(&setup, "one"), path(&setup, "two"));
    let output = run_well(&["compare", &one, &two, "--out", &out]);
    let printed = text(&output.stdout);
    let row = |name: &str| {
        let line = printed.lines().find(|line| line.starts_with(name));
        let line = line.unwrap_or_else(|| panic!("{name} in {printed}"));
        let values = line.trim_start_matches(name).split_whitespace();
        values.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(row("figure"), ["one", "two"]);
    assert_eq!(row("steps"), ["40", "40"]);
    assert_eq!(row("train.seed"), ["42", "43"]);
    assert!(!printed.contains("run_dir"), "{printed}");
    let losses = row("validation loss, nats");
    assert_ne!(losses[0], losses[1]);
    let page = std::fs::read_to_string(out).unwrap();
    assert!(page.contains("<title>one</title><polyline") && page.contains("<title>two</title><"));
}

#[test]
fn what_is_no_run_is_refused_with_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().display().to_string();
    let output = run(&["report", &path]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("is not the folder of a run"));
    assert_eq!(run(&["compare", &path]).status.code(), Some(2));
    assert_eq!(run(&["report", &path, &path]).status.code(), Some(2));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
