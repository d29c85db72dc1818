//! Parity with reference vectors, driven by their manifest.
//!
//! Every entry of `manifest.json` is checked, without exception, and every tensor of an entry is
//! either an input of the check or compared.
//! `LPR_GOLDEN_DIR` points the test at another set of the same format: any sizes and seeds, any file
//! names within the folders.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(
    clippy::case_sensitive_file_extension_comparisons,
    reason = "the manifest's own names"
)]

mod bias_update;
mod case;
mod ema;
mod losses;
mod metrics;
mod model;
mod moe_block;
mod router;
mod similarity;
mod trajectory;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use case::{Case, Golden};

/// A check of one file of the manifest.
type Check = fn(&Golden, &mut Case);

/// Groups that [`check_of`] tells apart.
const ALL_GROUPS: usize = 18;

/// (group, check) of every file that the format knows, by its folder and by what it holds: names
/// within a folder are free.
fn check_of(case: &Case) -> Option<(&'static str, Check)> {
    const LOSSES: [(&str, Check); 6] = [
        ("kl", losses::kl),
        ("x", losses::diversity),
        ("token_mean", losses::align_paper),
        ("target", losses::align_code),
        ("hf_global", losses::load_balancing),
        ("sum_over_hf_num_items", losses::causal_lm),
    ];
    const TEXTS: [(&str, Check); 4] = [
        ("load", metrics::metrics),
        ("hard", metrics::load_ema),
        ("bias", bias_update::bias_update),
        ("factor", metrics::wsd),
    ];
    let file = case.entry.file.as_str();
    let (folder, _) = file.split_once('/').unwrap_or_default();
    match folder {
        "similarity" => Some(("similarity", similarity::metric)),
        "losses" => LOSSES.into_iter().find(|(array, _)| case.has(array)),
        "lpr_router" if case.has("aggregated_keys") => Some(("paper_mode", router::paper_mode)),
        "lpr_router" => Some(("lpr_router", router::lpr)),
        "moe_block" => Some(("moe_block", moe_block::block)),
        "model" if case.has("input_ids") => Some(("model", model::forward_backward)),
        "model" => Some(("model weights", model::weights)),
        "traj" => Some(("traj", trajectory::file)),
        "" if case.has("keys0") => Some(("ema", ema::prototypes)),
        "" => TEXTS.into_iter().find(|(key, _)| case.has_key(key)),
        _ => None,
    }
}

/// Runs the check of one entry: its group, and all differences. A panic is one of them, so that the
/// other entries are still checked.
fn checked(golden: &Golden, entry: &case::Entry) -> (Option<&'static str>, Vec<String>) {
    let file = &entry.file;
    let run = || {
        let mut case = Case::new(golden, entry);
        let Some((group, check)) = check_of(&case) else {
            return (None, vec![format!("{file}: no check knows this file")]);
        };
        check(golden, &mut case);
        (Some(group), case.finish())
    };
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|&t| t.to_owned()));
        let text = text.unwrap_or_else(|| "a panic without a text".to_owned());
        (None, vec![format!("{file}: {text}")])
    })
}

fn check_every_entry(golden: &Golden) -> BTreeMap<&'static str, usize> {
    assert!(!golden.entries.is_empty(), "the manifest has no entry");
    let mut groups = BTreeMap::<_, usize>::new();
    let mut failures = Vec::new();
    for entry in &golden.entries {
        let (group, differences) = checked(golden, entry);
        failures.extend(differences);
        if let Some(group) = group {
            *groups.entry(group).or_default() += 1;
        }
    }
    println!("checked, by group: {groups:#?}");
    assert!(
        failures.is_empty(),
        "{} differences:\n{}",
        failures.len(),
        failures.join("\n")
    );
    groups
}

/// Checks a set of the project's own.
fn check_fixtures(name: &str) {
    let groups = check_every_entry(&Golden::fixtures(name));
    // A manifest without one of the groups would make its check unable to fail.
    assert_eq!(groups.keys().count(), ALL_GROUPS, "{groups:#?}");
}

/// The set that `LPR_GOLDEN_DIR` names, which may leave groups out, or else the fixtures.
#[test]
fn every_entry_of_the_manifest() {
    if let Ok(folder) = std::env::var("LPR_GOLDEN_DIR") {
        check_every_entry(&Golden::open(folder.as_ref()));
    } else {
        check_fixtures("golden");
    }
}

#[test]
fn every_entry_of_a_set_of_other_shapes() {
    check_fixtures("golden-2");
}
