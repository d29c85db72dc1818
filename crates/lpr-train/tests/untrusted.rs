//! Configurations, tokenizers, weights and machines that do not fit, given to the real binary (F15,
//! F16, F25, F26, F29, F31, F32). Broken folders of Hugging Face: `hugging_face.rs`; every message
//! about a configuration: `config/tests.rs`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use support::{Setup, Variant, lpr_train, run, run_well, text};

fn setup() -> Setup {
    Setup::new(Variant {
        router: "softmax_topk",
        packing: "packed",
        accumulation: 1,
    })
}

/// Runs the config with overrides; it must fail with `code`, say all of `words` and leave no run.
fn refused(setup: &Setup, overrides: &[&str], code: i32, words: &[&str]) -> String {
    let config = setup.config("refused");
    let mut command = lpr_train();
    command.args(["--config", &config]);
    command.args(overrides.iter().flat_map(|key| ["--override", key]));
    let output = command.output().unwrap();
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{overrides:?}: {stderr}");
    for word in words {
        assert!(stderr.contains(word), "{overrides:?}: {word} in {stderr}");
    }
    assert!(!stderr.contains("panicked"), "{stderr}");
    let checkpoints = setup.run_dir("refused").join("checkpoints");
    assert!(!checkpoints.exists(), "{overrides:?}");
    stderr
}

#[test]
fn a_wrong_configuration_ends_with_2_before_anything_is_opened() {
    let setup = setup();
    let all = [
        "optim.lr=abc",
        "optimizer.learning_rte=1",
        "router.n_group=4",
        "model.num_experts=x",
        "model.top_k=9",
        "train.micro_batch_size=-1",
        "no_equals_sign",
        "stability.on_spike=explode",
    ];
    let words = [
        "[optimizer]",
        "`learning_rate`",
        "router.n_group",
        "model.num_experts",
        "train.micro_batch_size",
        "section.key=value",
        "\"rollback\"",
    ];
    refused(&setup, &all, 2, &words);
    assert!(!setup.run_dir("refused").exists(), "nothing was made");
    // What a rule between keys says, one at a time.
    for (key, words) in [
        ("model.top_k=7", ["model.top_k", "num_experts = 6"]),
        (
            "model.num_key_value_heads=3",
            ["num_key_value_heads", "multiple"],
        ),
        (
            "schedule.warmup_ratio=0.9",
            ["schedule.stable_ratio", "at most 1"],
        ),
    ] {
        refused(&setup, &[key], 2, &words);
    }
    let path = setup.folder.path().join("large.toml");
    fs::write(&path, vec![b'#'; 10 << 20]).unwrap();
    let output = run(&["--config", &path.display().to_string()]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        text(&output.stderr).contains("larger than"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn an_override_is_in_the_resolved_configuration() {
    let setup = setup();
    let config = setup.config("run");
    let keys = [
        "train.total_steps=1",
        "eval.at_start=false",
        "optimizer.betas=[0.8, 0.9]",
    ];
    let arguments = keys.iter().flat_map(|key| ["--override", key]);
    let arguments: Vec<&str> = ["--config", &config].into_iter().chain(arguments).collect();
    run_well(&arguments);
    let resolved = fs::read_to_string(setup.run_dir("run").join("config.resolved.toml")).unwrap();
    for line in [
        "total_steps = 1",
        "betas = [0.8, 0.9]",
        "on_nonfinite = \"skip\"",
    ] {
        assert!(resolved.contains(line), "{line} in {resolved}");
    }
}

/// A tokenizer of `tokens` single letters.
fn tokenizer(folder: &Path, name: &str, tokens: u32) -> String {
    let vocabulary: serde_json::Map<String, Value> = (0..tokens)
        .map(|id| (char::from_u32(0x4e00 + id).unwrap().to_string(), id.into()))
        .collect();
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": {
            "type": "WordLevel", "vocab": vocabulary, "unk_token": "\u{4e00}"
        }
    });
    let path = folder.join(name);
    fs::write(&path, json.to_string()).unwrap();
    format!("data.tokenizer={:?}", path.display().to_string())
}

#[test]
fn a_tokenizer_that_does_not_fit_is_refused_at_the_start() {
    let setup = setup();
    let folder = setup.folder.path();
    refused(
        &setup,
        &["data.tokenizer=nowhere.json"],
        3,
        &["nowhere.json"],
    );
    refused(
        &setup,
        &["model.vocab_size=200"],
        2,
        &["257 ids", "model.vocab_size is 200"],
    );
    let large = tokenizer(folder, "large.json", 300);
    refused(&setup, &[&large], 2, &["300 ids", "at least 300"]);
    let endless = tokenizer(folder, "endless.json", 30);
    refused(&setup, &[&endless], 3, &["end"]);
    let truncated = folder.join("truncated.json");
    fs::write(&truncated, "{\"model\": {\"type\": \"BP").unwrap();
    let key = format!("data.tokenizer={:?}", truncated.display().to_string());
    refused(&setup, &[&key], 3, &["truncated.json"]);
}

#[cfg(not(any(feature = "wgpu", feature = "cuda")))]
#[test]
fn a_device_of_another_build_is_refused_and_the_doctor_says_so() {
    let setup = setup();
    for device in ["cuda", "cuda:1", "wgpu"] {
        let key = format!("train.device={device:?}");
        refused(
            &setup,
            &[&key],
            6,
            &[device, "not compiled into this build", "--device cpu"],
        );
    }
    refused(&setup, &["train.device=\"gpu\""], 2, &["train.device"]);
    let doctor = text(&run_well(&["doctor"]).stdout);
    for words in [
        "missing      wgpu: it is not compiled in",
        "--features cuda",
    ] {
        assert!(doctor.contains(words), "{doctor}");
    }
    let json: Value = serde_json::from_slice(&run_well(&["doctor", "--json"]).stdout).unwrap();
    let names = |key: &str| -> Vec<&str> {
        let list = json[key].as_array().unwrap().iter();
        list.map(|device| device["name"].as_str().unwrap())
            .collect()
    };
    assert_eq!(names("devices"), ["cpu"]);
    assert_eq!(names("missing"), ["wgpu", "cuda"]);
}

/// No machine has the memory; the words are checked in `memory.rs`.
#[cfg(target_os = "linux")]
#[test]
fn a_run_that_cannot_fit_into_memory_is_refused_with_three_ways_out() {
    let setup = setup();
    let words = [
        "training takes at least",
        "can be had",
        "micro_batch_size",
        "sequence_length",
    ];
    let large = [
        &[
            "train.micro_batch_size=65536",
            "data.sequence_length=1000000",
        ][..],
        &[
            "model.hidden_size=65536",
            "model.moe_intermediate_size=65536",
            "model.num_hidden_layers=100",
        ],
    ];
    for overrides in large {
        refused(&setup, overrides, 6, &words);
    }
    let config = setup.config("refused");
    let estimate = run_well(&["estimate", "--config", &config, "--json"]);
    let estimate: Value = serde_json::from_slice(&estimate.stdout).unwrap();
    let memory = &estimate["memory"];
    let part = |name: &str| memory[name].as_u64().unwrap();
    let params = 4 * estimate["total_params"].as_u64().unwrap();
    assert_eq!((part("weights"), part("optimizer")), (params, 2 * params));
    assert!(
        (3 * params..part("total")).contains(&part("least")),
        "{memory}"
    );
}

/// A run of one step and its exported folder.
fn exported(setup: &Setup) -> (String, PathBuf) {
    let config = setup.config("run");
    run_well(&[
        "--config",
        &config,
        "-o",
        "train.total_steps=1",
        "-o",
        "eval.at_start=false",
    ]);
    let checkpoint = setup.run_dir("run").join("checkpoints/step-00000001");
    let checkpoint = checkpoint.display().to_string();
    let out = setup.folder.path().join("exported");
    let folder = out.display().to_string();
    run_well(&["export", "--checkpoint", &checkpoint, "--out", &folder]);
    (checkpoint, out)
}

/// What the import of a folder says, which must fail with 4 and write nothing.
fn import_refused(setup: &Setup, from: &Path) -> String {
    let target = setup.folder.path().join("imported");
    let (from, to) = (from.display().to_string(), target.display().to_string());
    let output = run(&["import", "--from", &from, "--out", &to]);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{stderr}");
    assert!(!stderr.contains("panicked") && !target.exists(), "{stderr}");
    stderr
}

/// A safetensors file of this header and so many bytes of numbers.
fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    let length = (header.len() as u64).to_le_bytes();
    [&length, header.as_bytes(), data].concat()
}

#[test]
fn weights_files_made_to_harm_are_refused_with_4() {
    let setup = setup();
    let (_, folder) = exported(&setup);
    let tensor = |name: &str, from: usize, to: usize| {
        let floats = to.wrapping_sub(from) / 4;
        format!(
            "\"{name}\":{{\"dtype\":\"F32\",\"shape\":[{floats}],\"data_offsets\":[{from},{to}]}}"
        )
    };
    let file = |tensors: &[String], bytes: usize| {
        safetensors(&format!("{{{}}}", tensors.join(",")), &vec![0; bytes])
    };
    let huge = (200_u64 << 20).to_le_bytes();
    let overflow = "{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\
                    \"data_offsets\":[0,8]}}";
    let cases: [(&str, Vec<u8>, &str); 9] = [
        (
            "header beyond its limit",
            [&huge[..], b"{}"].concat(),
            "header too large",
        ),
        (
            "header beyond the file",
            safetensors("{}", b"")[..9].to_vec(),
            "invalid header length",
        ),
        ("empty file", Vec::new(), "header too small"),
        (
            "overlap",
            file(&[tensor("a", 0, 8), tensor("b", 4, 12)], 12),
            "invalid offset for tensor `b`",
        ),
        (
            "out of range",
            file(&[tensor("a", 0, 800)], 8),
            "not fully covered",
        ),
        (
            "gap",
            file(&[tensor("a", 0, 4), tensor("b", 8, 12)], 12),
            "invalid offset for tensor `b`",
        ),
        (
            "negative length",
            file(&[tensor("a", 8, 0)], 8),
            "invalid offset for tensor `a`",
        ),
        (
            "size beyond 64 bits",
            safetensors(overflow, &[0; 8]),
            "overflow",
        ),
        (
            "same name twice",
            file(&[tensor("a", 0, 8), tensor("a", 0, 8)], 8),
            "two tensors called `a`",
        ),
    ];
    for (what, bytes, words) in cases {
        fs::write(folder.join("model.safetensors"), bytes).unwrap();
        let said = import_refused(&setup, &folder);
        assert!(said.contains("`model.safetensors`"), "{what}: {said}");
        assert!(said.contains(words), "{what}: {said}");
    }
}

/// The file with the last of its numbers, and so of some tensor, replaced.
fn spoil(path: &Path, value: f32) {
    let mut bytes = fs::read(path).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&value.to_le_bytes());
    fs::write(path, bytes).unwrap();
}

/// Makes the manifest say what a changed file of a checkpoint holds.
fn rehash(checkpoint: &str, file: &str) {
    let manifest = Path::new(checkpoint).join("manifest.json");
    let mut json: Value = serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();
    let entry = lpr_train::sha256::of_file(&Path::new(checkpoint).join(file)).unwrap();
    json["files"][file] = serde_json::to_value(entry).unwrap();
    fs::write(&manifest, json.to_string()).unwrap();
}

/// The hashes are right, but the lists are not those of the model.
#[test]
fn a_state_made_to_harm_is_refused_with_4() {
    let setup = setup();
    let (checkpoint, _) = exported(&setup);
    let path = Path::new(&checkpoint).join("state.json");
    let whole: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let damage: [fn(&mut Value); 5] = [
        |state| state["window"] = json!([]),
        |state| state["window"][0]["with_padding"] = json!([1]),
        |state| state["trackers"][1]["soft"] = json!([]),
        |state| state["idle"]["reported"] = json!([0]),
        |state| state["step"] = 7.into(),
    ];
    let config = setup.config("run");
    for (number, damage) in damage.iter().enumerate() {
        let mut state = whole.clone();
        damage(&mut state);
        fs::write(&path, state.to_string()).unwrap();
        rehash(&checkpoint, "state.json");
        let resume = format!("--resume={checkpoint}");
        let output = run(&["--config", &config, &resume, "-o", "train.total_steps=3"]);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(4), "{number}: {stderr}");
        assert!(
            stderr.contains("its state is that of"),
            "{number}: {stderr}"
        );
    }
}

#[test]
fn weights_that_are_no_numbers_are_neither_imported_nor_resumed_from_nor_exported() {
    let setup = setup();
    let (checkpoint, folder) = exported(&setup);
    for value in [f32::NAN, f32::INFINITY] {
        spoil(&folder.join("model.safetensors"), value);
        let said = import_refused(&setup, &folder);
        assert!(said.contains("which is no weight"), "{said}");
    }

    // A checkpoint whose hashes are right, so that nothing but its numbers is wrong.
    let weights = Path::new(&checkpoint).join("model.safetensors");
    spoil(&weights, f32::NAN);
    rehash(&checkpoint, "model.safetensors");
    let out = setup.folder.path().join("again").display().to_string();
    let config = setup.config("run");
    let resume = format!("--resume={checkpoint}");
    for arguments in [
        &["export", "--checkpoint", &checkpoint, "--out", &out][..],
        &["eval", "--checkpoint", &checkpoint],
        &["--config", &config, &resume, "-o", "train.total_steps=3"],
    ] {
        let output = run(arguments);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(4), "{arguments:?}: {stderr}");
        assert!(stderr.contains("which is no weight"), "{stderr}");
    }
    assert!(!Path::new(&out).exists());
}
