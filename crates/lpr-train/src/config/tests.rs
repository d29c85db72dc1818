use std::fs;
use std::path::PathBuf;

use super::*;

const VALID: &str = r#"
[model]
family = "qwen3_moe"
vocab_size = 257
hidden_size = 32
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
head_dim = 8
moe_intermediate_size = 16
num_experts = 8
top_k = 2

[router]
kind = "lpr"
latent_dim = 4

[data]
train = ["a.parquet", "b.parquet"]
sequence_length = 64

[train]
total_steps = 100
"#;

fn load(text: &str, overrides: &[&str]) -> Result<RunConfig, ConfigErrors> {
    let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
    RunConfig::parse("x.toml", text, &overrides)
}

fn valid(overrides: &[&str]) -> RunConfig {
    load(VALID, overrides).expect("valid")
}

fn problems(text: &str, overrides: &[&str]) -> Vec<String> {
    load(text, overrides)
        .expect_err("refused")
        .problems()
        .iter()
        .map(ToString::to_string)
        .collect()
}

fn line_of(text: &str, needle: &str) -> usize {
    1 + text
        .lines()
        .position(|line| line.contains(needle))
        .expect("the text has the line")
}

/// A temporary folder with configuration files.
fn files(texts: &[&[u8]]) -> (tempfile::TempDir, Vec<PathBuf>) {
    let folder = tempfile::tempdir().expect("temporary folder");
    let write = |(index, text): (usize, &&[u8])| {
        let path = folder.path().join(format!("layer-{index}.toml"));
        fs::write(&path, text).expect("written");
        path
    };
    let paths = texts.iter().enumerate().map(write).collect();
    (folder, paths)
}

#[test]
fn defaults_are_filled_in_and_follow_other_keys() {
    let config = valid(&["train.micro_batch_size=4"]);
    assert_eq!(config.optimizer, OptimizerConfig::default());
    assert_eq!(config.log.every_steps, 10);
    assert_eq!(config.run_dir(), Path::new("runs/x"));
    assert_eq!(
        (config.eval.max_length, config.eval.rows_per_batch),
        (Some(64), Some(4))
    );
    assert_eq!(config.train.seed, 42);
}

#[test]
fn the_resolved_file_loads_to_the_same_configuration() {
    for overrides in [
        &[
            "optimizer.learning_rate=3e-4",
            "data.packing=packed",
            "eval.max_tokens=1000",
        ][..],
        &[
            "router.kind=softmax_topk",
            "train.device=cuda:1",
            "train.run_dir=\"runs/a b\"",
        ],
        &[
            "optimizer.eps=1e-300",
            "optimizer.weight_decay=0.1",
            "schedule.min_lr_ratio=0.3333333333333333",
        ],
    ] {
        let config = valid(overrides);
        let again =
            RunConfig::parse("config.resolved.toml", &config.to_toml(), &[]).expect("loads");
        assert_eq!(again, config);
        assert_eq!(again.to_toml(), config.to_toml());
        assert_eq!(again.hash(), config.hash());
    }
    let names = [
        "betas",
        "decay_on",
        "warmup_ratio",
        "keep_last",
        "text_column",
        "run_dir",
        "rows_per_batch",
    ];
    let text = valid(&[]).to_toml();
    assert!(
        names
            .iter()
            .all(|name| text.contains(&format!("\n{name} = "))),
        "{text}"
    );
}

#[test]
fn the_hash_depends_on_values_and_not_on_how_they_were_given() {
    let hash = valid(&["train.seed=7"]).hash();
    assert_eq!(
        load(&format!("{VALID}seed = 7 # lucky\n"), &[])
            .expect("valid")
            .hash(),
        hash
    );
    assert_ne!(valid(&["train.seed=8"]).hash(), hash);
    assert_eq!(hash.len(), 64);
}

#[test]
fn later_files_win_and_overrides_win_over_files() {
    let (_folder, paths) = files(&[
        VALID.as_bytes(),
        b"[data]\ntrain = [\"c.parquet\"]\n[optimizer]\nlearning_rate = 0.5\n",
        b"[optimizer]\nlearning_rate = 0.25\nweight_decay = 0.0\n",
    ]);
    let config =
        RunConfig::load(&paths, &["optimizer.weight_decay=0.5".to_owned()]).expect("valid");
    assert_eq!(config.data.train, ["c.parquet"]);
    assert_eq!(
        (
            config.optimizer.learning_rate,
            config.optimizer.weight_decay
        ),
        (0.25, 0.5)
    );
    assert_eq!(config.run_dir(), Path::new("runs/layer-2"));
}

#[test]
fn another_kind_of_router_drops_the_keys_of_the_old_one() {
    let config = valid(&["router.norm_topk_prob=true", "router.kind=softmax_topk"]);
    let RouterConfig::SoftmaxTopk(router) = &config.router else {
        panic!("{:?}", config.router)
    };
    assert!(router.norm_topk_prob);
    let (_folder, paths) = files(&[VALID.as_bytes(), b"[router]\nkind = \"softmax_topk\"\n"]);
    RunConfig::load(&paths, &[]).expect("latent_dim of the first file is gone");
}

/// A line of the broken file (empty: no file), the key, and the advice.
const EXPECTED: [(&str, &str, &str); 20] = [
    (
        "num_key_value_heads = 3",
        "model.num_key_value_heads",
        "multiple",
    ),
    ("top_k = 9", "model.top_k", "num_experts = 8"),
    ("seed = 1", "router.seed", "it belongs under [train]"),
    (
        "norm_topk_prob = true",
        "router.norm_topk_prob",
        "kind = \"softmax_topk\"",
    ),
    (
        "sequence_length = \"long\"",
        "data.sequence_length",
        "is \"long\" (string); it must be an integer, at least 2",
    ),
    ("sequence_length = 64", "`sequence_length`", "second time"),
    (
        "micro_batch_size = -3",
        "train.micro_batch_size",
        "is -3 (integer); it must be an integer, at least 1",
    ),
    (
        "gradient_accumulation_steps = 0",
        "train.gradient_accumulation_steps",
        "at least 1",
    ),
    (
        "device = \"gpu\"",
        "train.device",
        "\"cpu\", \"wgpu\", \"wgpu:N\", \"cuda\"",
    ),
    (
        "learning_rte",
        "optimizer.learning_rte",
        "did you mean `learning_rate`?",
    ),
    ("betas = [0.9, 1.0]", "optimizer.betas", "below 1"),
    (
        "max_grad_norm = nan",
        "optimizer.max_grad_norm",
        "at least 0",
    ),
    (
        "total_tokens = 5",
        "train.total_tokens",
        "remove one of the two",
    ),
    ("every_steps = 10", "eval.every_steps", "data.validation"),
    ("kind = \"cosine\"", "schedule.kind", "\"wsd\""),
    ("stable_ratio = 0.75", "schedule.stable_ratio", "1.25"),
    ("[shedule]", "shedule", "did you mean [schedule]?"),
    ("", "--override optim.lr=abc", "did you mean [optimizer]?"),
    ("", "--override log.every_steps", "section.key=value"),
    ("", "--override data.train=[a, b]", "quote"),
];

#[test]
fn every_problem_of_a_file_is_reported_at_once_with_its_line() {
    let text = VALID
        .replace("num_key_value_heads = 2", "num_key_value_heads = 3")
        .replace("top_k = 2", "top_k = 9")
        .replace(
            "latent_dim = 4",
            "latent_dim = 4\nseed = 1\nnorm_topk_prob = true",
        )
        .replace(
            "sequence_length = 64",
            "sequence_length = \"long\"\nsequence_length = 64",
        )
        + "micro_batch_size = -3\ngradient_accumulation_steps = 0\ntotal_tokens = 5\ndevice = \
         \"gpu\"\n\
           [optimizer]\nlearning_rte = 0.1\nbetas = [0.9, 1.0]\nmax_grad_norm = nan\n\
           [schedule]\nwarmup_ratio = 0.5\nstable_ratio = 0.75\nkind = \"cosine\"\n\
           [eval]\nevery_steps = 10\n[shedule]\nx = 1\n";
    let found = problems(
        &text,
        &["optim.lr=abc", "log.every_steps", "data.train=[a, b]"],
    );
    for (line, key, hint) in EXPECTED {
        let place = if line.is_empty() {
            String::new()
        } else {
            format!("x.toml:{}: ", line_of(&text, line))
        };
        let matches = |problem: &&String| {
            problem.starts_with(&place) && problem.contains(key) && problem.contains(hint)
        };
        assert!(
            found.iter().any(|problem| matches(&problem)),
            "{place}{key} .. {hint} in\n{}",
            found.join("\n")
        );
    }
    assert_eq!(
        found.len(),
        EXPECTED.len(),
        "nothing else is reported:\n{}",
        found.join("\n")
    );
}

#[test]
fn the_length_of_the_run_is_given_once() {
    let none = problems(&VALID.replace("total_steps = 100", ""), &[]);
    assert!(
        none.len() == 1 && none[0].contains("train.total_steps is missing"),
        "{none:?}"
    );
    let both = problems(VALID, &["train.total_tokens=5"]);
    assert!(
        both.len() == 1 && both[0].contains("remove one of the two"),
        "{both:?}"
    );
}

#[test]
fn tokens_become_steps_that_reach_them() {
    let text = VALID.replace("total_steps = 100", "total_tokens = 1025");
    let overrides = [
        "train.micro_batch_size=2",
        "train.gradient_accumulation_steps=4",
    ];
    let config = load(&text, &overrides).expect("valid");
    assert_eq!(
        (config.positions_per_step(), config.total_steps()),
        (512, 3)
    );
    let huge = problems(
        &VALID.replace("100", "1000000000000"),
        &["data.sequence_length=100000000"],
    );
    assert!(huge[0].contains("more than can be counted"), "{huge:?}");
}

#[test]
fn weights_must_fit_the_entries_they_weigh() {
    for (weights, hint) in [
        ("[0.5]", "1 weights for 2 entries"),
        ("[1.0, 0.0]", "above 0"),
    ] {
        let weights = format!("data.weights={weights}");
        let found = problems(VALID, &["data.train=[\"a\", \"b\"]", &weights]);
        assert!(
            found.len() == 1 && found[0].contains("data.weights") && found[0].contains(hint),
            "{found:?}"
        );
    }
    valid(&["data.train=[\"a\", \"b\"]", "data.weights=[1, 2.5]"]);
}

#[test]
fn evaluation_needs_something_to_evaluate_on() {
    let found = problems(VALID, &["eval.every_steps=5"]);
    assert!(
        found.len() == 1 && found[0].contains("data.validation"),
        "{found:?}"
    );
    valid(&["eval.every_steps=5", "data.validation=[\"v.parquet\"]"]);
}

#[test]
fn groups_of_the_router_losses_fill_the_micro_batch() {
    let found = problems(VALID, &["router.loss_group_rows=3"]);
    assert!(
        found.len() == 1 && found[0].contains("train.micro_batch_size = 8"),
        "{found:?}"
    );
    valid(&["router.loss_group_rows=4"]);
}

#[test]
fn files_that_cannot_be_configurations_are_refused_with_the_reason() {
    let big = vec![b' '; 2 << 20];
    let cases: [(&[u8], &str); 5] = [
        (b"", "layer-0.toml: the file is empty"),
        (b"[train]\nx = \"\xff\"\n", "layer-0.toml:2: is not UTF-8"),
        (&big, "larger than 1048576 bytes"),
        (b"[train\n", "layer-0.toml:1: not valid TOML"),
        (
            b"[train]\ntotal_steps =\n",
            "layer-0.toml:2: not valid TOML",
        ),
    ];
    for (bytes, needle) in cases {
        let (_folder, paths) = files(&[bytes]);
        let text = RunConfig::load(&paths, &[])
            .expect_err("refused")
            .to_string();
        assert!(text.contains(needle), "{text} should say {needle}");
    }
    let text = RunConfig::load(&[PathBuf::from("/nowhere/x.toml")], &[])
        .expect_err("refused")
        .to_string();
    assert!(text.contains("/nowhere/x.toml: cannot be opened"), "{text}");
    let text = RunConfig::load(&[PathBuf::from("/")], &[])
        .expect_err("refused")
        .to_string();
    assert!(text.contains("cannot be"), "{text}");
}

#[test]
fn a_broken_file_is_not_also_blamed_for_what_it_could_not_say() {
    let found = problems(&VALID.replace("head_dim = 8", "head_dim = "), &[]);
    assert_eq!(found.len(), 1, "{found:?}");
}

/// Found by `tests/mutated.rs`: the parser goes on with a date that has no part, which cannot be shown.
#[test]
fn half_a_date_is_refused_like_any_other_broken_value() {
    for number in ["0---", "10-", "2024--1"] {
        let text = VALID.replace("total_steps = 100", &format!("total_steps = {number}"));
        let found = problems(&text, &[]);
        assert!(found[0].contains("not valid TOML"), "{number}: {found:?}");
        let found = problems(VALID, &[&format!("train.total_steps={number}")]);
        assert!(
            found[0].contains("train.total_steps"),
            "{number}: {found:?}"
        );
    }
}

#[test]
fn an_access_token_is_refused_and_never_repeated() {
    let token = format!("hf_{}", "AbCd".repeat(8));
    let in_file = problems(&VALID.replace("a.parquet", &token), &[]);
    let in_comment = problems(&format!("{VALID}# {token}\n"), &[]);
    let in_override = problems(VALID, &[&format!("data.text_column={token}")]);
    let in_wrong_type = problems(
        &VALID.replace("total_steps = 100", &format!("total_steps = \"{token}\"")),
        &[],
    );
    for found in [in_file, in_comment, in_override, in_wrong_type] {
        let text = found.join("\n");
        assert!(
            text.contains("HF_TOKEN") && !text.contains("AbCd"),
            "{text}"
        );
    }
}

#[test]
fn the_template_is_a_valid_configuration_that_names_every_key() {
    let text = template();
    let config = RunConfig::parse("template", &text, &[])
        .unwrap_or_else(|errors| panic!("{errors}\n{text}"));
    assert_eq!(config.train.total_steps, Some(200));
    let values = serde_json::to_value(&config).expect("json");
    for (section, keys) in values.as_object().expect("sections") {
        assert!(text.contains(&format!("\n[{section}]\n")), "{section}");
        for key in keys.as_object().expect("keys").keys() {
            assert!(
                text.lines().any(|line| line
                    .trim_start_matches("# ")
                    .starts_with(&format!("{key} ="))),
                "{key}"
            );
        }
    }
    let uncommented: String = text
        .lines()
        .map(|line| {
            line.strip_prefix("# ")
                .filter(|rest| rest.contains(" = ") && !rest.contains('('))
                .unwrap_or(line)
        })
        .fold(String::new(), |text, line| text + line + "\n");
    let all =
        RunConfig::parse("template", &uncommented, &[]).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(all, config, "the defaults in the comments are the defaults");
}

#[test]
fn every_key_is_described() {
    let schema = schema::Schema::of::<RunConfig>();
    for (section, node) in schema.sections() {
        for fields in schema.kinds(node) {
            for (key, property) in fields.properties {
                let tag = fields.kind.is_some_and(|(tag, _)| tag == key);
                assert!(
                    tag || property["description"].is_string(),
                    "{section}.{key} has no doc comment"
                );
            }
        }
    }
}

#[test]
fn what_defines_the_run_may_not_change_on_resume() {
    let saved = valid(&[]);
    let cases = [
        "model.num_hidden_layers=3",
        "model.vocab_size=300",
        "router.kind=softmax_topk",
        "router.latent_dim=8",
        "data.packing=packed",
        "data.packing_window=7",
        "data.document_mask=false",
        "data.shuffle=true",
        "data.shuffle_window=7",
        "data.shuffle_seed=7",
        "data.sequence_length=32",
        "train.micro_batch_size=3",
        "train.gradient_accumulation_steps=2",
        "train.seed=1",
        "optimizer.betas=[0.9, 0.99]",
        "optimizer.eps=1e-6",
        "optimizer.decay_on=matrices",
    ];
    for change in cases {
        let differences = resume_differences(&saved, &valid(&[change]));
        let (key, _) = change.split_once('=').expect("an assignment");
        assert!(
            differences
                .refused
                .iter()
                .any(|difference| difference.key == key),
            "{change}: {differences:?}"
        );
    }
}

#[test]
fn what_only_steers_the_run_may_change_and_is_noted() {
    let saved = valid(&[]);
    let cases = [
        "optimizer.learning_rate=0.1",
        "optimizer.weight_decay=0.0",
        "schedule.min_lr_ratio=0.0",
        "train.total_steps=200",
        "train.device=wgpu",
        "train.run_dir=elsewhere",
        "data.train=[\"a.parquet\"]",
        "data.tokenizer=other",
        "data.text_column=body",
        "data.max_tokens=9",
        "checkpoint.every_steps=5",
        "eval.max_tokens=5",
        "log.every_steps=1",
        "router.kl_weight=0.5",
    ];
    for change in cases {
        let differences = resume_differences(&saved, &valid(&[change]));
        let (key, _) = change.split_once('=').expect("an assignment");
        assert_eq!(differences.refused, [], "{change}");
        let keys: Vec<&str> = differences
            .noted
            .iter()
            .map(|difference| difference.key.as_str())
            .collect();
        assert_eq!(keys, [key]);
    }
    assert_eq!(resume_differences(&saved, &saved), Differences::default());
    let shown = resume_differences(&saved, &valid(&["train.total_steps=200"])).noted[0].to_string();
    assert_eq!(shown, "train.total_steps: 100 -> 200");
}
