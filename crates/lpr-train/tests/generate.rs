//! `lpr-train generate`: texts from a checkpoint.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::io::Write;
use std::process::Stdio;

use serde_json::Value;
use support::{Setup, Variant, lpr_train, run, run_well, text};

/// A trained model of words, and the folder of its checkpoint.
fn trained() -> (Setup, String) {
    let setup = Setup::new(Variant {
        router: "lpr",
        packing: "packed",
        accumulation: 1,
    });
    let config = setup.config("run");
    let rate = "optimizer.learning_rate=0.01";
    run_well(&["-q", "--config", &config, "--override", rate]);
    let checkpoint = setup.folder.path().join("run/checkpoints/step-00000040");
    let checkpoint = checkpoint.display().to_string();
    (setup, checkpoint)
}

fn generate(checkpoint: &str, more: &[&str]) -> Value {
    let args = [&["generate", "--json", "--checkpoint", checkpoint], more].concat();
    serde_json::from_slice(&run_well(&args).stdout).unwrap()
}

#[test]
fn a_seed_is_a_text_and_the_likeliest_tokens_need_none() {
    let (_setup, checkpoint) = trained();
    let ask = |more: &[&str]| {
        generate(
            &checkpoint,
            &[more, &["ba do", "--max-new-tokens=40"]].concat(),
        )
    };
    let first = ask(&["--seed=1"]);
    assert_eq!(first, ask(&["--seed=1"]), "the same seed");
    assert_ne!(first, ask(&["--seed=2"]), "another seed");
    let likeliest = ask(&["--temperature=0"]);
    for same in [
        &["--temperature=0", "--seed=9"][..],
        &["--top-k=1", "--seed=3"],
        &["--top-p=0.000001"],
        &["--temperature=0.000001"],
    ] {
        assert_eq!(likeliest, ask(same), "{same:?}");
    }
    let found = &likeliest["texts"][0];
    let text = found["text"].as_str().unwrap();
    assert_eq!(found["prompt"], "ba do");
    // 40 steps are enough to learn which letters there are.
    let added = text.strip_prefix("ba do").unwrap();
    assert!(added.chars().all(|c| "badokelmirsu ".contains(c)), "{text}");
    let tokens = found["tokens"].as_array().unwrap();
    let ended = usize::from(found["ended"].as_bool().unwrap());
    assert_eq!(added.len() + ended, tokens.len());
    assert!(ended == 1 || tokens.len() == 40, "{found}");
}

#[test]
fn several_prompts_are_continued_one_by_one_and_in_words() {
    let (_setup, checkpoint) = trained();
    let alone = generate(&checkpoint, &["mira", "--temperature=0"]);
    let args = ["--temperature=0", "kel ", "mira", ""];
    let both = generate(&checkpoint, &args);
    assert_eq!(both["texts"].as_array().unwrap().len(), 3);
    assert_eq!(both["texts"][1], alone["texts"][0]);
    let last = &both["texts"][2];
    assert_eq!(last["prompt"], "");
    assert!(!last["tokens"].as_array().unwrap().is_empty());

    let mut child = lpr_train()
        .args([
            "generate",
            "--checkpoint",
            &checkpoint,
            "--temperature=0",
            "-",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"mira").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let expected = alone["texts"][0]["text"].as_str().unwrap();
    assert_eq!(text(&output.stdout).trim_end(), expected.trim_end());
}

#[test]
fn what_cannot_be_asked_for_is_refused() {
    let (_setup, checkpoint) = trained();
    for (wrong, code, said) in [
        (&["x", "--temperature=-1"][..], 2, "at least 0"),
        (&["x", "--temperature=nan"], 2, "at least 0"),
        (&["x", "--top-p=0"], 2, "above 0"),
        (&["x", "--top-p=1.5"], 2, "at most 1"),
        (&["x", "--max-new-tokens=0"], 2, "max-new-tokens"),
        (&[], 2, "PROMPT"),
    ] {
        let args = [&["generate", "--checkpoint", &checkpoint], wrong].concat();
        let output = run(&args);
        assert_eq!(output.status.code(), Some(code), "{wrong:?}");
        assert!(
            text(&output.stderr).contains(said),
            "{}",
            text(&output.stderr)
        );
    }
    let weights = format!("{checkpoint}/model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    let output = run(&["generate", "--checkpoint", &checkpoint, "x"]);
    assert_eq!(output.status.code(), Some(4));
    assert!(text(&output.stderr).contains("SHA-256"));
}
