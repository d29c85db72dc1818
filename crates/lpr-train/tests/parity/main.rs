//! Parity with reference vectors, driven by their manifest.
//!
//! Every entry of `manifest.json` is checked, without exception, and every tensor of an entry is
//! either an input of the check or compared.
//! `LPR_GOLDEN_DIR` points the test at another set of the same format.

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

use case::{Case, Golden};

/// A check of one file of the manifest.
type Check = fn(&Golden, &mut Case);

/// (file or prefix of files, check); the first that fits counts.
const CHECKS: &[(&str, Check)] = &[
    ("metrics.json", metrics::metrics),
    ("load_ema.json", metrics::load_ema),
    ("wsd.json", metrics::wsd),
    ("similarity/", similarity::metric),
    ("ema.safetensors", ema::prototypes),
    ("losses/kl.", losses::kl),
    ("losses/diversity_", losses::diversity),
    ("losses/align_code.", losses::align_code),
    ("losses/align_paper.", losses::align_paper),
    ("losses/load_balancing.", losses::load_balancing),
    ("losses/causal_lm.", losses::causal_lm),
    ("lpr_router/paper_mode.", router::paper_mode),
    ("lpr_router/", router::lpr),
    ("bias_update.json", bias_update::bias_update),
    ("moe_block/qwen3_moe_", moe_block::block),
    ("moe_block/mixtral.", moe_block::block),
    ("moe_block/deepseek_v3_", moe_block::block),
    ("model/qwen3_moe/model.", model::weights),
    ("model/qwen3_moe/", model::forward_backward),
    ("model/qwen3_moe_lpr/model.", model::weights),
    ("model/qwen3_moe_lpr/", model::forward_backward),
    ("model/mixtral/model.", model::weights),
    ("model/mixtral/", model::forward_backward),
    ("model/mixtral_lpr/model.", model::weights),
    ("model/mixtral_lpr/", model::forward_backward),
    ("model/deepseek_v3/model.", model::weights),
    ("model/deepseek_v3/", model::forward_backward),
    ("model/deepseek_v3_lpr/model.", model::weights),
    ("model/deepseek_v3_lpr/", model::forward_backward),
    ("traj/qwen3_moe", trajectory::file),
];

#[test]
fn every_entry_of_the_manifest() {
    let golden = Golden::open();
    let mut checked = BTreeMap::<&str, usize>::new();
    let mut failures = Vec::new();
    for entry in &golden.entries {
        let Some((prefix, check)) = CHECKS.iter().find(|(p, _)| entry.file.starts_with(p)) else {
            failures.push(format!("{}: no check knows this file", entry.file));
            continue;
        };
        let mut case = Case::new(&golden, entry);
        check(&golden, &mut case);
        failures.extend(case.finish());
        *checked.entry(prefix).or_default() += 1;
    }
    println!("checked, by group: {checked:#?}");
    assert!(
        failures.is_empty(),
        "{} differences:\n{}",
        failures.len(),
        failures.join("\n")
    );
    // A manifest without one of the groups would make its check unable to fail.
    let unused: Vec<_> = CHECKS
        .iter()
        .filter(|(prefix, _)| !checked.contains_key(prefix))
        .map(|(prefix, _)| prefix)
        .collect();
    assert!(unused.is_empty(), "no entry for the checks {unused:?}");
}
