//! `kill -9` at random moments, saves included, of every model, router and packing.
//!
//! `LPR_KILLS=240` for more of them (`just kill-test`).

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lpr_model::RouterConfig;
use support::{Setup, Variant, lpr_train, mix, text};

const PACKINGS: [&str; 2] = ["packed", "none"];

/// A small model of each family, as a configuration layer.
const FAMILIES: [(&str, &str); 3] = [
    (
        "qwen3_moe",
        "num_key_value_heads = 1\nhead_dim = 8\nnum_experts = 6\ntop_k = 2",
    ),
    (
        "mixtral",
        "num_key_value_heads = 1\nhead_dim = 8\nnum_experts = 4\ntop_k = 2",
    ),
    (
        "deepseek_v3",
        "q_lora_rank = 8\nkv_lora_rank = 8\nqk_nope_head_dim = 8\nqk_rope_head_dim = 4\n\
         v_head_dim = 8\nnum_shared_experts = 1\nnum_experts = 6\ntop_k = 2",
    ),
];

/// Runs of one combination.
struct Trial {
    setup: Setup,
    family: String,
}

impl Trial {
    fn new(family: &str, keys: &str, router: &'static str, packing: &'static str) -> Self {
        let setup = Setup::new(Variant {
            router,
            packing,
            accumulation: 2,
        });
        let path = setup.folder.path().join("family.toml");
        let layer = format!(
            "[model]\nfamily = \"{family}\"\nvocab_size = 257\nhidden_size = 16\n\
             num_hidden_layers = 2\nnum_attention_heads = 2\nmoe_intermediate_size = 12\n{keys}\n"
        );
        std::fs::write(&path, layer).unwrap();
        let family = path.display().to_string();
        Self { setup, family }
    }

    /// A run with a checkpoint after every step, so that many kills hit a save. Always with
    /// --resume, as a scheduler would say it.
    fn command(&self, name: &str) -> Command {
        let config = self.setup.config(name);
        let mut command = lpr_train();
        command.args([
            "-q",
            "--resume",
            "--config",
            &config,
            "--config",
            &self.family,
        ]);
        for key in [
            "checkpoint.every_steps=1",
            "checkpoint.keep_last=3",
            "train.total_steps=24",
        ] {
            command.args(["--override", key]);
        }
        command.stderr(Stdio::piped());
        command
    }

    /// Kills the run `killed` so often, then lets it finish. How many kills hit a save.
    fn kill(&self, kills: u64, seed: u64, length: Duration) -> u64 {
        let (mut done, mut in_save, mut newest) = (0, 0, 0);
        for attempt in 0.. {
            assert!(
                attempt < 20 * kills + 20,
                "the run does not get ahead: {done} kills"
            );
            let mut child = self.command("killed").spawn().unwrap();
            if done < kills {
                // Between "before anything is read" and the end of an uninterrupted run.
                let share = (mix(seed + attempt) % 1000) as f64 / 1000.0;
                std::thread::sleep(length.mul_f64(share));
                // Fails if the run has ended.
                let _ = child.kill();
            }
            let output = child.wait_with_output().unwrap();
            // All of them are valid, none is lost.
            let steps = self.setup.steps("killed");
            let first = steps.first().copied().unwrap_or(0);
            assert!(first >= newest, "step {newest} was there, now {steps:?}");
            newest = first;
            if output.status.success() {
                if done >= kills {
                    break;
                }
                // Finished too early: start over and go on killing.
                std::fs::remove_dir_all(self.setup.run_dir("killed")).unwrap();
                newest = 0;
            } else {
                // A kill leaves no exit code; anything else is a failure of the program.
                let why = text(&output.stderr);
                assert!(output.status.code().is_none(), "attempt {attempt}: {why}");
                done += 1;
                in_save += u64::from(!self.setup.leftovers("killed").is_empty());
            }
        }
        self.setup.assert_same_at("whole", "killed", 24);
        assert_eq!(self.setup.leftovers("killed"), Vec::<String>::new());
        in_save
    }
}

#[test]
fn kill_9_at_random_moments_loses_nothing() {
    let combinations = (FAMILIES.len() * RouterConfig::NAMES.len() * PACKINGS.len()) as u64;
    let wanted = std::env::var("LPR_KILLS").map_or(combinations, |kills| kills.parse().unwrap());
    let each = wanted.div_ceil(combinations).max(1);
    let (mut kills, mut in_save) = (0, 0);
    for (family, keys) in FAMILIES {
        for &router in RouterConfig::NAMES {
            for packing in PACKINGS {
                let trial = Trial::new(family, keys, router, packing);
                let start = Instant::now();
                let output = trial.command("whole").output().unwrap();
                let why = text(&output.stderr);
                assert!(
                    output.status.success(),
                    "{family} {router} {packing}: {why}"
                );
                let hit = trial.kill(each, 1000 * kills, start.elapsed());
                kills += each;
                in_save += hit;
                println!("{family} {router} {packing}: {each} kills, {hit} of them in a save");
            }
        }
    }
    println!(
        "{kills} kills over {combinations} combinations, {in_save} of them in a save: 0 lost or \
         corrupt checkpoints, 0 differing weights, 0 leftovers"
    );
    assert!(kills < 100 || in_save > 0, "no kill hit a save");
}
