//! Grids of runs, trained by the real binary.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::path::Path;

use support::{Setup, Variant, run, run_well, text};

const LPR: Variant = Variant {
    router: "lpr",
    packing: "packed",
    accumulation: 1,
};

fn run_folders(out: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(out.join("runs")).unwrap();
    let folders = entries.map(|entry| entry.unwrap().path());
    let folders = folders.filter(|path| path.is_dir());
    let mut names: Vec<String> = folders.map(|path| path.display().to_string()).collect();
    names.sort();
    names
}

#[test]
fn an_ablation_trains_every_combination_and_a_second_call_trains_nothing() {
    let setup = Setup::new(LPR);
    let out = setup.folder.path().join("grid");
    let config = setup.config("base");
    let folder = out.display().to_string();
    let args = [
        "ablate", "--config", &config, "--out", &folder, "--seeds", "2",
    ];
    let set = [
        "--set",
        "router.latent_dim=2,3",
        "--override",
        "train.total_steps=4",
    ];
    let args = [&args[..], &set].concat();
    let first = run_well(&args);
    let table = text(&first.stdout);
    for row in [
        "| router.latent_dim=2 | ",
        "| router.latent_dim=3 | ",
        "| 2 |\n",
    ] {
        assert!(table.contains(row), "{row} in {table}");
    }
    assert_eq!(text(&first.stderr).matches("training ").count(), 4);
    let folders = run_folders(&out);
    assert_eq!(folders.len(), 4);
    for name in [
        "ablation.md",
        "ablation.csv",
        "ablation.tex",
        "ablation.html",
    ] {
        assert!(
            std::fs::metadata(out.join(name)).unwrap().len() > 200,
            "{name}"
        );
    }
    // One run is lost; the others stay.
    std::fs::remove_dir_all(&folders[1]).unwrap();
    let second = run_well(&args);
    assert_eq!(text(&second.stderr).matches("training ").count(), 1);
    assert!(text(&second.stderr).contains(&folders[1]));
    let figures = |table: &str| -> Vec<Vec<String>> {
        let rows = table.lines().filter(|line| line.starts_with("| router."));
        // Time is measured.
        let cells = |row: &str| row.split('|').take(10).map(str::to_owned).collect();
        rows.map(cells).collect()
    };
    assert_eq!(figures(&text(&second.stdout)), figures(&table));
}

#[test]
fn a_table_of_the_paper_shares_runs_with_others_and_names_its_values() {
    let setup = Setup::new(LPR);
    let out = setup.folder.path().join("grid");
    let folder = out.display().to_string();
    let corpus = setup.folder.path().display().to_string();
    let small = [
        format!("data.train=[\"{corpus}/*.jsonl\"]"),
        format!("data.validation=[\"{corpus}/shard-1.jsonl\"]"),
        "train.total_steps=2".to_owned(),
        "model.hidden_size=16".to_owned(),
        "model.num_hidden_layers=1".to_owned(),
        "model.moe_intermediate_size=8".to_owned(),
        "data.sequence_length=32".to_owned(),
        "eval.max_tokens=100".to_owned(),
    ];
    let reproduce = |table: &str| {
        let mut args = vec!["reproduce", table, "--out", &folder];
        args.extend(small.iter().flat_map(|key| ["--override", key.as_str()]));
        run_well(&args)
    };
    let second = reproduce("table2");
    let table = text(&second.stdout);
    assert!(table.contains("| w/o diversity | "), "{table}");
    assert!(
        table.contains("| 5.010 | ") && table.contains("alignment weight"),
        "{table}"
    );
    assert!(
        table.contains("/*.jsonl with the tokenizer bytes; evaluated on "),
        "{table}"
    );
    assert_eq!(run_folders(&out).len(), 4);
    // Its orthogonal row is the full router of table 2.
    let sixth = reproduce("table6");
    assert_eq!(text(&sixth.stderr).matches("training ").count(), 2);
    assert_eq!(run_folders(&out).len(), 6);
}

#[test]
fn a_grid_with_a_wrong_key_trains_nothing() {
    let setup = Setup::new(LPR);
    let out = setup.folder.path().join("grid");
    let (config, folder) = (setup.config("base"), out.display().to_string());
    let wrong = [
        "ablate",
        "--config",
        &config,
        "--out",
        &folder,
        "--set",
        "router.latent_dim=2,-1",
    ];
    let output = run(&wrong);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("router.latent_dim"));
    assert!(!out.exists());
}
