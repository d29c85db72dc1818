//! Numbers that are not finite and losses that jump, injected into the real binary (F13, F14).

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::Value;
use support::{Setup, Variant, lpr_train, text};

const STEPS: u64 = 24;

fn setup() -> Setup {
    Setup::new(Variant {
        router: "sigmoid_topk",
        packing: "packed",
        accumulation: 1,
    })
}

impl Setup {
    /// Runs to step 24 with a checkpoint every 4 steps and a log line at each.
    fn train(&self, run: &str, fault: &str, more: &[&str]) -> Output {
        let config = self.config(run);
        let mut command = lpr_train();
        command.args(["--config", &config]).env("LPR_FAULT", fault);
        if fault.is_empty() {
            command.env_remove("LPR_FAULT");
        }
        let keys = [
            "train.total_steps=24",
            "checkpoint.every_steps=4",
            "log.every_steps=1",
        ];
        for argument in keys.iter().chain(more) {
            match *argument {
                "--resume" => command.arg(argument),
                key => command.args(["--override", key]),
            };
        }
        command.output().unwrap()
    }

    /// The value of a key in every line of a step, by step.
    fn series(&self, run: &str, key: &str) -> Vec<(u64, Value)> {
        let lines = self.metrics(run).into_iter();
        let steps = lines.filter(|line| line.get("loss_ce").is_some());
        let pairs = steps.map(|line| (line["step"].as_u64().unwrap(), line[key].clone()));
        pairs.collect()
    }

    fn last(&self, run: &str, key: &str) -> u64 {
        self.series(run, key).last().unwrap().1.as_u64().unwrap()
    }

    fn skipped(&self, run: &str) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.run_dir(run).join("skipped")).unwrap();
        let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }

    fn checkpoint(&self, run: &str, step: u64) -> String {
        let folder = self
            .run_dir(run)
            .join(format!("checkpoints/step-{step:08}"));
        folder.display().to_string()
    }

    fn assert_ends_alike(&self, one: &str, other: &str) {
        for file in ["model.safetensors", "optimizer.safetensors", "state.json"] {
            let same = self.file(one, STEPS, file) == self.file(other, STEPS, file);
            assert!(same, "{file} of {one} and {other} differ");
        }
        assert_eq!(self.metrics(one), self.metrics(other));
    }
}

/// Every checkpoint of the run holds only numbers, and every file says so itself.
fn assert_finite(run_dir: &Path) {
    let mut files = 0;
    for checkpoint in std::fs::read_dir(run_dir.join("checkpoints")).unwrap() {
        let folder = checkpoint.unwrap().path();
        for name in ["model.safetensors", "optimizer.safetensors"] {
            if !folder.is_dir() {
                continue;
            }
            let tensors = lpr_train::weights_file::read(&folder.join(name)).unwrap();
            let finite = |value: &f32| value.is_finite();
            assert!(tensors.values().all(|t| t.values.iter().all(finite)));
            files += 1;
        }
    }
    assert!(files > 0, "no checkpoint in {}", run_dir.display());
}

#[test]
fn a_step_that_is_not_finite_is_skipped_counted_and_written_down() {
    let setup = setup();
    for (run, fault, words) in [
        (
            "loss",
            "step-loss:6:times=nan",
            "loss NaN, gradient norm NaN",
        ),
        ("infinite", "step-loss:6:times=inf", "loss inf"),
        ("gradient", "step-gradient:6:times=nan", "norm.weight"),
        (
            "expert",
            "step-expert-gradient:6:times=inf",
            "experts.gate_up_proj[1]",
        ),
    ] {
        let output = setup.train(run, fault, &[]);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{run}: {stderr}");
        assert!(
            stderr.contains("step 6 was skipped: it is not finite"),
            "{run}: {stderr}"
        );
        assert!(stderr.contains(words), "{run}: {stderr}");

        let totals = setup.series(run, "nonfinite_total");
        let want = |step| u64::from(step >= 6);
        assert!(
            totals
                .iter()
                .all(|(step, total)| total.as_u64() == Some(want(*step)))
        );
        assert_eq!(totals.len() as u64, STEPS);
        assert_eq!(setup.last(run, "skipped_total"), 1);
        let counts = setup.series(run, "layers");
        let counted = |step: usize| counts[step - 1].1[0]["counts"].to_string();
        assert!(
            counted(6).chars().all(|c| !c.is_ascii_digit() || c == '0'),
            "no load"
        );
        assert_ne!(counted(7), counted(6));

        assert_finite(&setup.run_dir(run));
        assert_eq!(setup.skipped(run).len(), 1);
    }
}

/// The weights and averages after the step are those before it, whatever the step would have done.
#[test]
fn the_update_is_not_applied() {
    let setup = setup();
    let keys = ["checkpoint.every_steps=1", "train.total_steps=6"];
    let output = setup.train("run", "step-expert-gradient:6:times=nan", &keys);
    assert!(output.status.success(), "{}", text(&output.stderr));
    for file in ["model.safetensors", "optimizer.safetensors"] {
        let at = |step| setup.file("run", step, file);
        assert!(at(4) != at(5), "{file} does not change at all");
        assert!(at(5) == at(6), "{file} changed");
    }
    let tokens = |step| setup.state("run", step)["data"]["tokens"].as_u64();
    assert!(tokens(6) > tokens(5), "the batch is used up");
}

#[test]
fn a_resumed_run_is_the_same_after_a_skip_and_after_a_rollback() {
    let setup = setup();
    let skip = ("skip", "step-loss:6:times=nan", "stability.max_skips=3", 8);
    let back = ("back", "step-loss:7:times=nan", "stability.max_skips=0", 12);
    for (run, fault, key, step) in [skip, back] {
        let output = setup.train(run, fault, &[key]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let resumed = format!("{run}-resumed");
        setup.copy_at(run, &resumed, step);
        let output = setup.train(&resumed, "", &[key, "--resume"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        setup.assert_ends_alike(run, &resumed);
    }
}

#[test]
fn after_too_many_skips_the_run_goes_back_but_not_in_the_data() {
    let setup = setup();
    let fault = "step-loss:6:times=nan,step-loss:7:times=nan";
    let output = setup.train("run", fault, &["stability.max_skips=1"]);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(stderr.contains("step 6 was skipped"), "{stderr}");
    assert!(stderr.contains("step 7 was not taken"), "{stderr}");
    assert!(
        stderr.contains("going back to") && stderr.contains("step-00000004"),
        "{stderr}"
    );

    let totals = setup.series("run", "rollbacks_total");
    let steps: Vec<u64> = totals.iter().map(|(step, _)| *step).collect();
    assert_eq!(steps, (1..=STEPS).collect::<Vec<_>>(), "each step once");
    let want = |step| u64::from(step > 4);
    assert!(
        totals
            .iter()
            .all(|(step, total)| total.as_u64() == Some(want(*step)))
    );
    assert_eq!(setup.last("run", "skipped_total"), 2);

    // The seven batches that were read before are not read again.
    let straight = setup.train("straight", "", &[]);
    assert!(straight.status.success(), "{}", text(&straight.stderr));
    let tokens = |run| setup.series(run, "tokens_seen");
    assert_eq!(tokens("run")[7].1, tokens("straight")[10].1);
    assert_finite(&setup.run_dir("run"));
}

#[test]
fn after_too_many_rollbacks_the_run_ends_with_5_and_its_checkpoints_are_whole() {
    let setup = setup();
    let keys = ["stability.max_skips=1", "stability.max_rollbacks=2"];
    let output = setup.train("run", "step-loss:6+:times=nan", &keys);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{stderr}");
    assert_eq!(stderr.matches("going back to").count(), 2, "{stderr}");
    assert!(stderr.contains("training diverged at step"), "{stderr}");
    assert_finite(&setup.run_dir("run"));

    // Without a checkpoint there is nowhere to go back to; and nobody need go back.
    let nowhere = ["stability.max_skips=0", "checkpoint.every_steps=0"];
    let output = setup.train("nowhere", "step-loss:3:times=nan", &nowhere);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{stderr}");
    assert!(
        stderr.contains("there is no checkpoint to go back to"),
        "{stderr}"
    );
    let output = setup.train(
        "abort",
        "step-loss:6:times=nan",
        &["stability.on_nonfinite=abort"],
    );
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{stderr}");
    assert_eq!(setup.skipped("abort").len(), 1);
}

#[test]
fn a_weight_that_is_no_number_is_never_saved() {
    let setup = setup();
    let output = setup.train("run", "step-weight:8:times=nan", &[]);
    let stderr = text(&output.stderr);
    // The save of step 8 fails, so the steps after it, whose losses are none, go back to step 4.
    for words in [
        "cannot save step 8",
        "is NaN, which is no weight",
        "going back to",
        "step-00000004",
    ] {
        assert!(stderr.contains(words), "{words} in {stderr}");
    }
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert_finite(&setup.run_dir("run"));
}

/// One step at 1000 times the learning rate.
#[test]
fn a_spike_is_named_with_its_score_and_each_policy_is_followed() {
    let setup = setup();
    let fault = "step-learning-rate:14:times=1000";
    let run = |policy: &str| {
        let keys = [
            &*format!("stability.on_spike={policy}"),
            "stability.spike_window=8",
            "stability.max_skips=2",
            "optimizer.learning_rate=0.003",
        ];
        let output = setup.train(policy, fault, &keys);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{policy}: {stderr}");
        assert!(
            stderr.contains("standard deviations above the mean of the last 8"),
            "{stderr}"
        );
        assert!(setup.last(policy, "spikes_total") > 0);
        assert_finite(&setup.run_dir(policy));
        let totals = ["skipped_total", "rollbacks_total", "nonfinite_total"];
        totals.map(|key| setup.last(policy, key))
    };
    assert_eq!(run("warn"), [0, 0, 0]);
    assert_eq!(
        run("skip"),
        [3, 1, 0],
        "the weights stay bad until the run goes back"
    );
    assert_eq!(run("rollback"), [1, 1, 0]);
}

#[test]
fn a_skipped_step_is_made_again_from_its_file() {
    let setup = setup();
    let every = "checkpoint.every_steps=1";
    let output = setup.train("run", "step-loss:6:times=nan", &[every]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let straight = setup.train("straight", "", &[every]);
    assert!(straight.status.success(), "{}", text(&straight.stderr));
    let file = setup.skipped("run").remove(0).display().to_string();
    let replay = |step: u64, fault: Option<&str>| {
        let checkpoint = setup.checkpoint("run", step);
        let mut command = lpr_train();
        command.args(["replay", &file, "--checkpoint", &checkpoint, "--json"]);
        command.envs(fault.map(|fault| ("LPR_FAULT", fault)));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    // The same weights, batch and noise as the run that nothing was injected into.
    let found = replay(5, None);
    let (_, loss) = &setup.series("straight", "loss_ce")[5];
    assert_eq!(
        (&found["loss_ce"], &found["reason_now"]),
        (loss, &Value::Null)
    );
    assert_eq!(
        (found["step"].as_u64(), found["checkpoint_step"].as_u64()),
        (Some(5), Some(5))
    );
    let again = replay(5, Some("step-loss:1:times=nan"));
    assert_eq!(again["reason_now"], again["reason"]);
    assert_eq!(replay(9, None)["checkpoint_step"], 9);

    // A file of something else is an error and no panic.
    let checkpoint = setup.checkpoint("run", 5);
    let whole = std::fs::read_to_string(&file).unwrap();
    let damaged: [(String, i32); 3] = [
        (whole[..whole.len() / 2].to_owned(), 1),
        (whole.replacen("\"num_rows\":3", "\"num_rows\":4", 1), 2),
        (
            whole.replacen("\"input_ids\":[", "\"input_ids\":[4000000000,", 1),
            2,
        ),
    ];
    for (text_of_file, code) in damaged {
        std::fs::write(&file, text_of_file).unwrap();
        let output = support::run(&["replay", &file, "--checkpoint", &checkpoint]);
        assert_eq!(output.status.code(), Some(code), "{}", text(&output.stderr));
    }
}
