//! Export to and import from Hugging Face folders, with the real binary.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::bf16;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

use support::{run, run_well, text, write_corpus};

const INDEX: &str = "model.safetensors.index.json";
const GROUPED: &str = "num_key_value_heads = 1\nhead_dim = 8";
const LATENT: &str = "q_lora_rank = 12\nkv_lora_rank = 10\nqk_nope_head_dim = 6\n\
                      qk_rope_head_dim = 4\nv_head_dim = 8\nnum_shared_experts = 1\n\
                      first_k_dense_replace = 1\nintermediate_size = 20";
/// (family, its own keys, its vanilla router)
const FAMILIES: [(&str, &str, &str); 3] = [
    ("qwen3_moe", GROUPED, "kind = \"softmax_topk\""),
    (
        "mixtral",
        GROUPED,
        "kind = \"softmax_topk\"\nnorm_topk_prob = true",
    ),
    (
        "deepseek_v3",
        LATENT,
        "kind = \"sigmoid_topk\"\nn_group = 3\ntopk_group = 2",
    ),
];
/// With every kind of parameter that an LPR router can have between them.
const LPR: [&str; 3] = [
    "kind = \"lpr\"\nprototype_ema = \"official\"",
    "kind = \"lpr\"\nsimilarity = \"wasserstein\"",
    "kind = \"lpr\"\nsimilarity = \"cross_attention\"\naligner = false",
];

/// A folder with a corpus, configs and a run of a few steps.
struct Trained {
    folder: tempfile::TempDir,
}

impl Trained {
    fn new(family: &str, own: &str, router: &str, steps: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_corpus(folder.path());
        let trained = Self { folder };
        let model = format!(
            "[model]\nfamily = \"{family}\"\nvocab_size = 257\nhidden_size = 16\n\
             num_hidden_layers = 3\nnum_attention_heads = 2\nmoe_intermediate_size = 12\n\
             num_experts = 6\ntop_k = 2\n{own}\n[router]\n{router}\n"
        );
        fs::write(trained.path("model.toml"), model).unwrap();
        let rest = trained.data("run", steps);
        run_well(&["-q", "-c", &trained.text("model.toml"), "-c", &rest]);
        trained
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Writes the sections of a run beside its model and returns their file.
    fn data(&self, run: &str, steps: usize) -> String {
        let corpus = self.folder.path().display();
        let text = format!(
            "[data]\ntrain = [\"{corpus}/*.jsonl\"]\nvalidation = [\"{corpus}/shard-1.jsonl\"]\n\
             sequence_length = 48\non_data_end = \"repeat\"\n[optimizer]\nlearning_rate = 1e-2\n\
             [train]\ntotal_steps = {steps}\nmicro_batch_size = 6\nrun_dir = \"{corpus}/{run}\"\n\
             [eval]\nat_start = true\nmax_tokens = 800\n"
        );
        let file = self.path(&format!("{run}.toml"));
        fs::write(&file, text).unwrap();
        file.display().to_string()
    }

    fn checkpoint(&self) -> String {
        let latest = fs::read_to_string(self.path("run/checkpoints/latest")).unwrap();
        self.text(&format!("run/checkpoints/{}", latest.trim()))
    }

    fn export(&self, checkpoint: &str, out: &str, flags: &[&str]) -> PathBuf {
        let target = self.text(out);
        let args = ["export", "--checkpoint", checkpoint, "--out", &target];
        run_well(&[&args[..], flags].concat());
        self.path(out)
    }

    fn import(&self, from: &str, out: &str, flags: &[&str]) -> String {
        let (source, target, rest) = (self.text(from), self.text(out), self.text("run.toml"));
        let args = ["import", "--from", &source, "--out", &target, "-c", &rest];
        text(&run_well(&[&args[..], flags].concat()).stdout)
    }

    /// Token ids, logits and chosen experts of a batch.
    fn logits(&self, checkpoint: &str) -> Vec<u8> {
        let file = self.text("logits.safetensors");
        run_well(&["eval", "--checkpoint", checkpoint, "--logits", &file]);
        fs::read(file).unwrap()
    }

    /// What the refused import of a folder says, in lines.
    fn refused(&self, from: &str) -> Vec<String> {
        let before = self.names();
        let output = run(&[
            "import",
            "--from",
            &self.text(from),
            "--out",
            &self.text("no"),
        ]);
        let lines = text(&output.stderr);
        assert_eq!(output.status.code(), Some(4), "{from}: {lines}");
        assert_eq!(self.names(), before, "{from}: something was written");
        let lines = lines.lines().skip(1);
        lines.map(|line| line.trim().to_owned()).collect()
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path()).unwrap();
        let names = entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    /// A copy of the folder `from` for a test to break.
    fn copy(&self, from: &str, to: &str) -> PathBuf {
        fs::create_dir(self.path(to)).unwrap();
        for entry in fs::read_dir(self.path(from)).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), self.path(to).join(entry.file_name())).unwrap();
        }
        self.path(to)
    }
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn write_json(path: &Path, json: &Value) {
    fs::write(path, json.to_string()).unwrap();
}

#[test]
fn every_family_and_router_survives_the_round_trip_bit_for_bit() {
    for (family, own, vanilla) in FAMILIES {
        for router in [vanilla, LPR[0], LPR[1], LPR[2]] {
            let case = format!("{family}, {router}");
            let trained = Trained::new(family, own, router, 3);
            let original = trained.checkpoint();
            let first = trained.export(&original, "first", &[]);
            trained.import("first", "back", &[]);
            let second = trained.export(&trained.text("back"), "second", &[]);
            let tensors = |folder: &Path| fs::read(folder.join("model.safetensors")).unwrap();
            assert!(tensors(&first) == tensors(&second), "{case}: other tensors");
            let configs = [&first, &second].map(|folder| read_json(&folder.join("config.json")));
            assert_eq!(configs[0], configs[1], "{case}");
            assert_eq!(
                configs[0]["model_type"] == family,
                router == vanilla,
                "{case}"
            );
            let logits = [&original, &trained.text("back")].map(|from| trained.logits(from));
            assert!(logits[0] == logits[1], "{case}: other logits or experts");
            let bytes = tensors(&first);
            let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
            assert_eq!(header.metadata().as_ref().unwrap()["format"], "pt");
            let file = SafeTensors::deserialize(&bytes).unwrap();
            assert!(file.iter().all(|(_, view)| view.dtype() == Dtype::F32));
            for name in ["README.md", "tokenizer.json", "generation_config.json"] {
                assert!(first.join(name).is_file(), "{case}: {name}");
            }
        }
    }
}

#[test]
fn shards_hold_the_same_as_one_file() {
    let (family, own, router) = FAMILIES[2];
    let trained = Trained::new(family, own, router, 1);
    trained.export(&trained.checkpoint(), "whole", &[]);
    let parts = trained.export(
        &trained.checkpoint(),
        "parts",
        &["--max-shard-size", "20kB"],
    );
    let index = read_json(&parts.join("model.safetensors.index.json"));
    let map = index["weight_map"].as_object().unwrap();
    let mut shards: Vec<_> = map.values().map(|v| v.as_str().unwrap()).collect();
    shards.sort_unstable();
    shards.dedup();
    assert!(shards.len() > 2, "{shards:?}");
    let mut total = 0;
    for shard in &shards {
        let bytes = fs::read(parts.join(shard)).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let size: usize = file.iter().map(|(_, view)| view.data().len()).sum();
        assert!(
            size <= 20_000 || file.len() == 1,
            "{shard} has {size} bytes"
        );
        total += size;
    }
    assert_eq!(index["metadata"]["total_size"], total);
    trained.import("whole", "a", &[]);
    trained.import("parts", "b", &[]);
    let weights = |name: &str| fs::read(trained.path(name).join("model.safetensors")).unwrap();
    assert!(weights("a") == weights("b"));
}

/// One array of a folder that a test writes, in 16-bit floats.
type Halves = (String, Vec<usize>, Vec<bf16>);

fn write_halves(path: &Path, tensors: &[Halves]) {
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, _, values)| values.iter().flat_map(|v| v.to_le_bytes()).collect())
        .collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
        let view = TensorView::new(Dtype::BF16, shape.clone(), bytes).unwrap();
        (name.as_str(), view)
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// The experts of every layer in one tensor, as transformers 5 has them for all families.
fn fused(tensors: &[Halves]) -> Vec<Halves> {
    let find = |name: &str| tensors.iter().find(|(other, _, _)| other == name).unwrap();
    let is_expert = |name: &str| name.contains(".experts.");
    let mut found: Vec<Halves> = tensors
        .iter()
        .filter(|(name, _, _)| !is_expert(name))
        .map(|(name, shape, v)| {
            (
                name.replace(".block_sparse_moe.", ".mlp."),
                shape.clone(),
                v.clone(),
            )
        })
        .collect();
    for layer in 0..3 {
        let prefix = format!("model.layers.{layer}.block_sparse_moe.experts");
        for (target, parts) in [("gate_up_proj", &["w1", "w3"][..]), ("down_proj", &["w2"])] {
            let matrices: Vec<&Halves> = (0..6)
                .flat_map(|e| parts.iter().map(move |p| (e, p)))
                .map(|(e, part)| find(&format!("{prefix}.{e}.{part}.weight")))
                .collect();
            let shape = vec![6, matrices[0].1[0] * parts.len(), matrices[0].1[1]];
            let values = matrices.iter().flat_map(|m| m.2.clone()).collect();
            found.push((
                format!("model.layers.{layer}.mlp.experts.{target}"),
                shape,
                values,
            ));
        }
    }
    found
}

#[test]
fn both_layouts_of_transformers_in_16_bits_are_the_same_model() {
    let (family, own, router) = FAMILIES[1];
    let trained = Trained::new(family, own, router, 1);
    let source = trained.export(&trained.checkpoint(), "source", &[]);
    let bytes = fs::read(source.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let halves: Vec<Halves> = file
        .iter()
        .map(|(name, view)| {
            let numbers = view
                .data()
                .as_chunks::<4>()
                .0
                .iter()
                .map(|b| f32::from_le_bytes(*b));
            let values = numbers.map(bf16::from_f32).collect();
            (name.to_owned(), view.shape().to_vec(), values)
        })
        .collect();
    for (name, tensors) in [("hub", halves.clone()), ("fused", fused(&halves))] {
        let folder = trained.copy("source", name);
        write_halves(&folder.join("model.safetensors"), &tensors);
        trained.import(name, &format!("{name}-back"), &[]);
    }
    let weights = |name: &str| fs::read(trained.path(name).join("model.safetensors")).unwrap();
    assert!(weights("hub-back") == weights("fused-back"));
    let bytes = weights("hub-back");
    let back = SafeTensors::deserialize(&bytes).unwrap();
    let embedding = back.tensor("model.embed_tokens.weight").unwrap();
    let (_, _, want) = halves
        .iter()
        .find(|(n, _, _)| n == "model.embed_tokens.weight")
        .unwrap();
    let want: Vec<u8> = want.iter().flat_map(|v| v.to_f32().to_le_bytes()).collect();
    assert!(embedding.data() == want);
}

#[test]
fn broken_folders_are_refused_with_the_full_list() {
    let (family, own, router) = FAMILIES[0];
    let trained = Trained::new(family, own, router, 1);
    trained.export(&trained.checkpoint(), "good", &["--max-shard-size", "20kB"]);
    let index = read_json(&trained.path("good").join(INDEX));
    let map = index["weight_map"].as_object().unwrap();
    let last = map.values().filter_map(Value::as_str).max().unwrap();
    let in_last: Vec<&String> = map
        .iter()
        .filter(|(_, s)| *s == last)
        .map(|(n, _)| n)
        .collect();
    assert!(in_last.len() > 1, "{map:?}");
    let says = |lines: &[String], start: &str, part: &str| {
        let found = lines
            .iter()
            .any(|l| l.starts_with(start) && l.contains(part));
        assert!(found, "{start} .. {part} in {lines:#?}");
    };

    // A shard that is missing, and a pickle: both are said, and every tensor that is lost.
    let folder = trained.copy("good", "missing");
    fs::remove_file(folder.join(last)).unwrap();
    fs::write(folder.join("pytorch_model.bin"), "x").unwrap();
    let lines = trained.refused("missing");
    says(&lines, "`pytorch_model.bin`", "never read");
    says(&lines, &format!("`{last}` is missing"), "");
    for name in &in_last {
        says(&lines, &format!("`{name}` is missing"), "");
    }
    assert_eq!(lines.len(), 2 + in_last.len(), "{lines:#?}");

    // Paths that lead out of the folder.
    for (name, target) in [
        ("parent", "../good/x.safetensors"),
        ("absolute", "/etc/passwd"),
    ] {
        let folder = trained.copy("good", name);
        let mut index = index.clone();
        index["weight_map"][in_last[0]] = target.into();
        write_json(&folder.join(INDEX), &index);
        let lines = trained.refused(name);
        says(&lines, &format!("{target:?}"), "plain name");
        says(
            &lines,
            &format!("`{last}` holds `{}`", in_last[0]),
            "index does not say",
        );
    }
    #[cfg(unix)]
    {
        let folder = trained.copy("good", "linked");
        fs::remove_file(folder.join(last)).unwrap();
        let outside = trained.path("good").join(last);
        std::os::unix::fs::symlink(outside, folder.join(last)).unwrap();
        says(
            &trained.refused("linked"),
            &format!("`{last}`"),
            "leads out",
        );
    }

    // A file that ends too early.
    let folder = trained.copy("good", "truncated");
    let bytes = fs::read(folder.join(last)).unwrap();
    fs::write(folder.join(last), &bytes[..bytes.len() / 2]).unwrap();
    let lines = trained.refused("truncated");
    says(
        &lines,
        &format!("`{last}`"),
        "not a complete safetensors file",
    );

    // An index that puts a tensor where it is not.
    let folder = trained.copy("good", "lying");
    let mut lie = index.clone();
    let other = map.values().find(|s| *s != last).unwrap();
    lie["weight_map"][in_last[0]] = other.clone();
    write_json(&folder.join(INDEX), &lie);
    let lines = trained.refused("lying");
    says(&lines, "the index says", in_last[0]);
    says(&lines, &format!("`{last}` holds"), in_last[0]);
    assert_eq!(lines.len(), 2, "{lines:#?}");

    // What is no model of this program.
    for (name, content, part) in [
        ("no-json", "{\"model_type\"".to_owned(), "not complete JSON"),
        (
            "llama",
            json!({ "model_type": "llama" }).to_string(),
            "known are qwen3_moe",
        ),
    ] {
        let folder = trained.copy("good", name);
        fs::write(folder.join("config.json"), content).unwrap();
        let all = trained.refused(name).join("\n");
        assert!(all.contains(part), "{name}: {all}");
    }
    let folder = trained.copy("good", "numbers");
    let mut config = read_json(&folder.join("config.json"));
    config["num_experts_per_tok"] = 99.into();
    config["hidden_act"] = "gelu".into();
    write_json(&folder.join("config.json"), &config);
    let lines = trained.refused("numbers");
    says(&lines, "`config.json`: model.top_k", "is 99");
    says(&lines, "`hidden_act`", "gelu");
    fs::remove_file(folder.join("config.json")).unwrap();
    says(&trained.refused("numbers"), "`config.json` is missing", "");
    says(&trained.refused("nowhere"), "it is not a folder", "");
}

#[test]
fn every_missing_extra_and_misshapen_tensor_is_listed() {
    let (family, own, router) = FAMILIES[0];
    let trained = Trained::new(family, own, router, 1);
    let folder = trained.export(&trained.checkpoint(), "folder", &[]);
    let path = folder.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let gate = "model.layers.1.mlp.gate.weight";
    let norm = "model.norm.weight";
    let mut views: Vec<(String, TensorView<'_>)> = file
        .iter()
        .map(|(name, view)| (name.to_owned(), view))
        .filter(|(name, _)| name != norm && !name.ends_with("experts.4.up_proj.weight"))
        .collect();
    let turned = |view: &TensorView<'_>| vec![view.shape()[1], view.shape()[0]];
    for (name, view) in &mut views {
        if name == gate {
            let data = file.tensor(gate).unwrap().data();
            *view = TensorView::new(Dtype::F32, turned(view), data).unwrap();
        }
    }
    views.push(("model.extra".to_owned(), file.tensor(norm).unwrap()));
    safetensors::serialize_to_file(views, None, &path).unwrap();
    let lines = trained.refused("folder");
    let experts =
        (0..3).map(|l| format!("`model.layers.{l}.mlp.experts.4.up_proj.weight` is missing"));
    let mut want: Vec<String> = experts.collect();
    want.push(format!(
        "`{gate}` has shape [16, 6], the model needs [6, 16]"
    ));
    want.push(format!("`{norm}` is missing"));
    want.push("`model.extra` is not used by the model".to_owned());
    let mut lines = lines;
    lines.sort();
    want.sort();
    assert_eq!(lines, want);
}

#[test]
fn what_exists_is_not_overwritten() {
    let (family, own, router) = FAMILIES[0];
    let trained = Trained::new(family, own, router, 1);
    let checkpoint = trained.checkpoint();
    trained.export(&checkpoint, "out", &[]);
    let (out, run_folder) = (trained.text("out"), trained.text("run"));
    for args in [
        ["export", "--checkpoint", &checkpoint, "--out", &out],
        ["import", "--from", &out, "--out", &run_folder],
    ] {
        let output = run(&args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(text(&output.stderr).contains("not empty"), "{args:?}");
    }
}

#[test]
fn any_run_starts_from_an_import_but_not_another_model() {
    let (family, own, router) = FAMILIES[0];
    let trained = Trained::new(family, own, router, 2);
    trained.export(&trained.checkpoint(), "hub", &[]);
    trained.import("hub", "start", &[]);
    let (config, resume) = (trained.text("start/config.toml"), trained.text("start"));
    let rest = trained.data("again", 2);
    let resume = format!("--resume={resume}");
    let args = ["-c", &config, "-c", &rest, "-o", "train.seed=7", &resume];
    run_well(&args);
    let output = run(&[&args[..], &["-o", "model.rms_norm_eps=0.1"]].concat());
    assert_eq!(output.status.code(), Some(4));
    let said = text(&output.stderr);
    assert!(
        said.contains("model.rms_norm_eps") && !said.contains("train.seed:"),
        "{said}"
    );
}

/// The figures of a row of the table that the swap prints: Gini before, unfitted, fitted; inertia
/// unfitted, fitted.
fn figures(row: &str) -> Vec<f64> {
    let words = row.split_whitespace().skip(1).filter(|word| *word != "->");
    words.map(|word| word.parse().unwrap()).collect()
}

#[test]
fn a_vanilla_router_is_replaced_by_fitted_prototypes_and_trains_on() {
    let (family, own, router) = FAMILIES[2];
    let trained = Trained::new(family, own, router, 30);
    trained.export(&trained.checkpoint(), "hub", &[]);
    let flags = [
        "--router",
        "lpr",
        "-o",
        "router.latent_dim=4",
        "--sample-tokens",
        "3000",
    ];
    let said = trained.import("hub", "swapped", &flags);
    let rows: Vec<Vec<f64>> = said
        .lines()
        .filter(|line| line.contains("->"))
        .map(figures)
        .collect();
    // One block is dense.
    assert_eq!(rows.len(), 2, "{said}");
    // What k-means promises; an even load is no part of it and depends on the text.
    for row in &rows {
        assert!(row[4] < row[3] / 2.0, "{said}");
    }
    trained.import("hub", "same", &flags);
    let weights = |name: &str| fs::read(trained.path(name).join("model.safetensors")).unwrap();
    assert!(
        weights("swapped") == weights("same"),
        "the fit is not deterministic"
    );

    let (config, resume) = (trained.text("swapped/config.toml"), trained.text("swapped"));
    let rest = trained.data("on", 30);
    run_well(&[
        "-q",
        "-c",
        &config,
        "-c",
        &rest,
        &format!("--resume={resume}"),
    ]);
    let lines = fs::read_to_string(trained.path("on/metrics.jsonl")).unwrap();
    let lines = lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let losses: Vec<f64> = lines
        .filter_map(|line| line["eval"]["loss"].as_f64())
        .collect();
    assert!(losses.len() == 2 && losses[1] < losses[0], "{losses:?}");

    // A router that is LPR already, and a sample that is too small for its experts.
    let (checkpoint, again) = (trained.text("swapped"), trained.text("again"));
    trained.export(&checkpoint, "lpr", &[]);
    let tiny = trained.path("tiny.jsonl");
    fs::write(&tiny, "{\"text\": \"ab\"}\n").unwrap();
    let (tiny, hub, lpr) = (
        tiny.display().to_string(),
        trained.text("hub"),
        trained.text("lpr"),
    );
    for (from, source, part) in [(&lpr, &rest, "already"), (&hub, &tiny, "fewer than the 6")] {
        let args = [
            "import", "--router", "lpr", "--from", from, "--out", &again, "--data", source,
        ];
        let output = run(&args);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(part), "{said}");
    }
}
