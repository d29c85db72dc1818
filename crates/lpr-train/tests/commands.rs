//! The commands that need no model, run as a user runs them.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn lpr_train(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lpr-train"));
    command
        .current_dir(folder)
        .env_remove("LPR_DEVICE")
        .stdin(Stdio::null());
    command
}

fn run(folder: &Path, args: &[&str]) -> Output {
    lpr_train(folder)
        .args(args)
        .output()
        .expect("the program starts")
}

fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

/// A folder with the file `x.toml` that `config init` writes.
fn initialized() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("temporary folder");
    let output = run(folder.path(), &["config", "init", "x.toml"]);
    assert_eq!(code(&output), Some(0), "{}", stderr(&output));
    folder
}

#[test]
fn a_new_configuration_passes_the_check_and_is_printed_in_full() {
    let folder = initialized();
    let printed = run(folder.path(), &["config", "init"]);
    let file = fs::read_to_string(folder.path().join("x.toml")).expect("written");
    assert_eq!(stdout(&printed), file);
    let output = run(
        folder.path(),
        &["config", "check", "x.toml", "--override", "train.seed=7"],
    );
    assert_eq!(code(&output), Some(0), "{}", stderr(&output));
    assert!(
        stdout(&output).contains("\nseed = 7\n"),
        "{}",
        stdout(&output)
    );
    fs::write(folder.path().join("resolved.toml"), &output.stdout).expect("written");
    let again = run(folder.path(), &["config", "check", "resolved.toml"]);
    assert_eq!(stdout(&again), stdout(&output));
}

#[test]
fn a_broken_configuration_exits_with_2_and_lists_every_problem_with_its_line() {
    let folder = initialized();
    let layer = "[optimizer]\nlearning_rte = 0.1\n[model]\ntop_k = 1000\n[log]\nseed = 1\n";
    fs::write(folder.path().join("y.toml"), layer).expect("written");
    let checked = run(folder.path(), &["config", "check", "x.toml", "y.toml"]);
    let trained = run(folder.path(), &["--config", "x.toml", "--config", "y.toml"]);
    for output in [checked, trained] {
        let text = stderr(&output);
        assert_eq!(
            (code(&output), stdout(&output).as_str()),
            (Some(2), ""),
            "{text}"
        );
        for needle in [
            "error: the configuration has 3 problems",
            "y.toml:2: optimizer.learning_rte",
            "y.toml:4: model.top_k",
            "y.toml:6: log.seed",
        ] {
            assert!(text.contains(needle), "{needle} in {text}");
        }
    }
    assert!(!folder.path().join("runs").exists(), "nothing was begun");
}

#[test]
fn an_access_token_is_not_repeated() {
    let folder = initialized();
    let token = format!("hf_{}", "AbCd".repeat(9));
    for value in [
        format!("data.text_column={token}"),
        format!("{token}=1"),
        token.clone(),
    ] {
        let output = run(
            folder.path(),
            &["config", "check", "x.toml", "--override", &value],
        );
        assert_eq!(code(&output), Some(2));
        assert!(!stderr(&output).contains("AbCd"), "{}", stderr(&output));
    }
}

#[test]
fn the_schema_is_json_and_a_reader_that_leaves_is_no_error() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let output = run(folder.path(), &["config", "schema"]);
    let schema: serde_json::Value = serde_json::from_str(&stdout(&output)).expect("JSON");
    assert!(schema["properties"]["router"].is_object());
    let mut child = lpr_train(folder.path())
        .args(["config", "schema"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert_eq!((code(&output), stderr(&output).as_str()), (Some(0), ""));
}

#[test]
fn the_data_check_reports_every_file_and_exits_with_3_if_one_is_bad() {
    let folder = tempfile::tempdir().expect("temporary folder");
    fs::write(folder.path().join("a.jsonl"), "{\"text\": \"one\"}\n").expect("written");
    let good = run(folder.path(), &["data", "check", "a.jsonl"]);
    assert_eq!(code(&good), Some(0), "{}", stderr(&good));
    fs::write(folder.path().join("b.jsonl"), "not json\n").expect("written");
    let bad = run(
        folder.path(),
        &["data", "check", "a.jsonl", "b.jsonl", "--json"],
    );
    assert_eq!(code(&bad), Some(3), "{}", stderr(&bad));
    let list: serde_json::Value = serde_json::from_str(&stdout(&bad)).expect("JSON");
    assert_eq!(
        (&list[0]["documents"], list[1]["error"].is_string()),
        (&1.into(), true)
    );
}

#[test]
fn wrong_usage_exits_with_2() {
    let folder = tempfile::tempdir().expect("temporary folder");
    for args in [
        &["--bogus"][..],
        &["eval"],
        &["config", "check"],
        &["train"],
        &[],
    ] {
        assert_eq!(code(&run(folder.path(), args)), Some(2), "{args:?}");
    }
}

/// A source that training, `data check` and `data bench` take in place of the files it was made of.
#[test]
fn prepared_tokens_are_a_source_and_a_tokenizer_can_be_trained() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let run = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        run(folder.path(), &words)
    };
    let json = |line: &str| -> serde_json::Value {
        let output = run(line);
        assert_eq!(code(&output), Some(0), "{line}: {}", stderr(&output));
        serde_json::from_str(&stdout(&output)).expect("one JSON object")
    };
    let text = "the cat sat on the mat and the dog sat on the log. ".repeat(20);
    let line = serde_json::json!({ "text": text }).to_string();
    fs::write(folder.path().join("a.jsonl"), format!("{line}\n").repeat(9)).expect("written");

    let output = run("data tokenizer --data a.jsonl --vocab-size 300 --out t.json");
    assert_eq!(code(&output), Some(0), "{}", stderr(&output));
    assert!(
        stdout(&output).starts_with("t.json: "),
        "{}",
        stdout(&output)
    );
    let again = run("data tokenizer --data a.jsonl --vocab-size 300 --out t.json");
    assert_eq!(code(&again), Some(2), "the file is in the way");

    let prepared = json("data prepare a.jsonl --tokenizer t.json --out p --json");
    assert_eq!(
        (&prepared["documents"], &prepared["files"]),
        (&9.into(), &1.into())
    );
    let names: Vec<_> = fs::read_dir(folder.path()).expect("listed").collect();
    assert_eq!(names.len(), 3, "nothing is left beside: {names:?}");
    let bytes = fs::read(folder.path().join("p/prepared-00000.safetensors")).expect("readable");
    let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let shape = |name: &str| tensors.tensor(name).expect("there").shape().to_vec();
    assert_eq!(shape("ends"), [9]);
    assert_eq!(serde_json::json!(shape("tokens")[0]), prepared["tokens"]);

    let raw = json("data bench --data a.jsonl --tokenizer t.json --sequence-length 50 --json");
    let read = json("data bench --data p --tokenizer t.json --sequence-length 50 --json");
    for key in ["tokens", "documents", "rows"] {
        assert_eq!(raw[key], read[key], "{key}");
    }
    assert_eq!(
        json("data check p --tokenizer t.json --json")[0]["tokens"],
        prepared["tokens"]
    );

    for (line, expected) in [
        ("data check p --tokenizer bytes", "configured one is bytes"),
        ("data bench --data p", "configured one is bytes"),
        (
            "data prepare none.jsonl --tokenizer bytes --out q",
            "none.jsonl",
        ),
    ] {
        let output = run(line);
        let told = stdout(&output) + &stderr(&output);
        assert_eq!(code(&output), Some(3), "{line}: {told}");
        assert!(told.contains(expected), "{line}: {told}");
    }
    assert!(!folder.path().join("q").exists());
    let output = run("data prepare a.jsonl --tokenizer t.json --out p");
    assert_eq!(code(&output), Some(2), "{}", stderr(&output));
}
