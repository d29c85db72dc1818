//! Parity with reference vectors, driven by their manifest.
//!
//! Every entry of `manifest.json` is checked, or belongs to a group that is named below as not
//! covered yet; every tensor of a checked entry is either an input of the check or compared.
//! `LPR_GOLDEN_DIR` points the test at another set of the same format.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(
    clippy::case_sensitive_file_extension_comparisons,
    reason = "the manifest's own names"
)]

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

use case::{Case, Golden};

/// A check of one file of the manifest.
type Check = fn(&Golden, &mut Case);

/// (file or prefix of files, check); `None` is a group of a later change, named in the output.
const CHECKS: &[(&str, Option<Check>)] = &[
    ("metrics.json", Some(metrics::metrics)),
    ("load_ema.json", Some(metrics::load_ema)),
    ("wsd.json", Some(metrics::wsd)),
    ("similarity/", Some(similarity::metric)),
    ("ema.safetensors", Some(ema::prototypes)),
    ("losses/kl.", Some(losses::kl)),
    ("losses/diversity_", Some(losses::diversity)),
    ("losses/align_code.", Some(losses::align_code)),
    ("losses/align_paper.", Some(losses::align_paper)),
    ("losses/load_balancing.", Some(losses::load_balancing)),
    ("losses/causal_lm.", Some(losses::causal_lm)),
    ("lpr_router/paper_mode.", Some(router::paper_mode)),
    ("lpr_router/", Some(router::lpr)),
    ("moe_block/qwen3_moe_", Some(moe_block::block)),
    ("model/qwen3_moe/model.", Some(model::weights)),
    ("model/qwen3_moe/", Some(model::forward_backward)),
    ("model/qwen3_moe_lpr/model.", Some(model::weights)),
    ("model/qwen3_moe_lpr/", Some(model::forward_backward)),
    ("traj/qwen3_moe", Some(trajectory::file)),
    // Routers and families that do not exist here yet.
    ("bias_update.json", None),
    ("moe_block/", None),
    ("model/", None),
];

#[test]
fn every_entry_of_the_manifest() {
    let golden = Golden::open();
    let mut checked = BTreeMap::<&str, usize>::new();
    let mut uncovered = Vec::new();
    let mut failures = Vec::new();
    for entry in &golden.entries {
        let Some((prefix, check)) = CHECKS.iter().find(|(p, _)| entry.file.starts_with(p)) else {
            failures.push(format!("{}: no check knows this file", entry.file));
            continue;
        };
        let Some(check) = check else {
            uncovered.push(entry.file.as_str());
            continue;
        };
        let mut case = Case::new(&golden, entry);
        check(&golden, &mut case);
        failures.extend(case.finish());
        *checked.entry(prefix).or_default() += 1;
    }
    println!("checked, by group: {checked:#?}");
    println!("not covered yet: {uncovered:#?}");
    assert!(
        failures.is_empty(),
        "{} differences:\n{}",
        failures.len(),
        failures.join("\n")
    );
    // A manifest without one of the groups would make its check unable to fail.
    let unused: Vec<_> = CHECKS
        .iter()
        .filter(|(prefix, check)| check.is_some() && !checked.contains_key(prefix))
        .map(|(prefix, _)| prefix)
        .collect();
    assert!(unused.is_empty(), "no entry for the checks {unused:?}");
}
