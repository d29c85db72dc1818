//! The update of prototypes after the step: exact resume, and no dependence on the split of a batch.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use lpr_train::weights_file;
use support::{Setup, Variant, run_well};

const UPDATES: [&str; 3] = ["official", "paper_hard", "paper_soft"];

fn setup(accumulation: usize) -> Setup {
    Setup::new(Variant {
        router: "lpr",
        packing: "none",
        accumulation,
    })
}

fn run(setup: &Setup, name: &str, update: &str, more: &[&str]) {
    let config = setup.config(name);
    let ema = format!("router.prototype_ema={update}");
    let mut args = vec!["-q", "--config", &config, "--override", &ema];
    args.extend(more);
    run_well(&args);
}

#[test]
fn a_run_with_moving_prototypes_resumes_with_the_same_bits() {
    for update in UPDATES {
        let setup = setup(2);
        run(&setup, "whole", update, &[]);
        setup.copy_at("whole", "two", 20);
        run(&setup, "two", update, &["--resume"]);
        setup.assert_same("whole", "two");
    }
}

#[test]
fn running_sums_are_saved_and_change_every_step() {
    let setup = setup(1);
    run(&setup, "whole", "official", &[]);
    let saved = |step: u64| {
        let file = format!("checkpoints/step-{step:08}/model.safetensors");
        weights_file::read(&setup.run_dir("whole").join(file)).unwrap()
    };
    let (early, late) = (saved(5), saved(10));
    for layer in 0..2 {
        let router = format!("model.layers.{layer}.mlp.router");
        for name in ["running.sums", "running.counts", "prototypes"] {
            let name = format!("{router}.{name}");
            assert_ne!(early[&name], late[&name], "{name}");
        }
        // The prototypes are what the sums say.
        let (sums, counts) = (
            &late[&format!("{router}.running.sums")].values,
            &late[&format!("{router}.running.counts")].values,
        );
        let prototypes = &late[&format!("{router}.prototypes")].values;
        let width = sums.len() / counts.len();
        for (index, (sum, prototype)) in sums.iter().zip(prototypes).enumerate() {
            let want = sum / counts[index / width];
            assert!(
                (want - prototype).abs() <= 1e-6 * want.abs(),
                "{want} {prototype}"
            );
        }
    }
}
