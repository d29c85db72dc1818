//! The paper's tables as grids: which runs they are made of, and the values it prints.
//!
//! Values and run lengths are those of arXiv 2506.21328; a [`Table::note`] says where its text, its
//! appendix and its code disagree.

/// How large the runs of a grid are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Scale {
    /// Minutes a run on two CPU cores.
    Tiny,
    /// A part of the paper's width and depth, for one GPU.
    Small,
    /// Appendix A as it is.
    Paper,
}

/// A table or figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Artefact {
    /// Routers of three families.
    Table1,
    /// Without each of the router's losses.
    Table2,
    /// Width of the latent space.
    Table3,
    /// Strength of the router losses.
    Table4,
    /// Numbers of experts and choices.
    Table5,
    /// Diversity losses.
    Table6,
    /// Similarity metrics.
    Table7,
    /// Load of every expert, vanilla router and LPR.
    Fig1,
}

/// What the paper prints for a run; NaN where it prints nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Printed {
    /// Test loss in nats.
    pub loss: f64,
    /// Gini coefficient.
    pub gini: f64,
    /// Min-max ratio.
    pub min_max_ratio: f64,
}

/// A row of a table: a run, or one for each seed.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Its name in the paper.
    pub name: &'static str,
    /// The configuration it starts from, without `.toml`.
    pub base: &'static str,
    /// What is changed.
    pub overrides: Vec<String>,
    /// What the paper prints.
    pub printed: Printed,
}

/// A table.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// Its name, for files.
    pub name: &'static str,
    /// Its title.
    pub title: &'static str,
    /// Where text, appendix and code of the paper disagree about it.
    pub note: &'static str,
    /// Its rows.
    pub rows: Vec<Row>,
}

/// Optimizer steps of the runs of Table 1 and of the ablations, by scale.
fn steps(scale: Scale, is_ablation: bool) -> u64 {
    match (scale, is_ablation) {
        (Scale::Tiny, false) => 400,
        (Scale::Tiny, true) => 150,
        (Scale::Small, false) => 1000,
        (Scale::Small, true) => 250,
        (Scale::Paper, false) => 4000,
        (Scale::Paper, true) => 362,
    }
}

impl Artefact {
    /// The grid at a scale.
    pub fn table(self, scale: Scale) -> Table {
        let (name, title, note, rows) = match self {
            Self::Table1 => ("table1", "Routing methods", TABLE_1_NOTE, methods()),
            Self::Fig1 => {
                let rows = methods()
                    .into_iter()
                    .filter(|row| row.name.starts_with("Qwen3"));
                let rows = rows.filter(|row| row.name != "Qwen3Moe-LPR (w/o init)");
                let title = "Load of every expert";
                ("fig1", title, FIGURE_1_NOTE, rows.collect())
            }
            Self::Table2 => ("table2", "Without each loss", TABLE_2_NOTE, components()),
            Self::Table3 => ("table3", "Latent dimension", TABLE_3_NOTE, latent_dims()),
            Self::Table4 => (
                "table4",
                "Regularization strength",
                TABLE_4_NOTE,
                strengths(),
            ),
            Self::Table5 => (
                "table5",
                "Number of experts",
                TABLE_5_NOTE,
                expert_counts(scale),
            ),
            Self::Table6 => ("table6", "Diversity measure", TABLE_6_NOTE, diversities()),
            Self::Table7 => ("table7", "Similarity measure", TABLE_7_NOTE, similarities()),
        };
        let is_ablation = !matches!(self, Self::Table1 | Self::Fig1);
        let complete = |row: Row| Row {
            overrides: [common(scale, is_ablation), row.overrides].concat(),
            ..row
        };
        Table {
            name,
            title,
            note,
            rows: rows.into_iter().map(complete).collect(),
        }
    }
}

/// What all runs of a scale share.
fn common(scale: Scale, is_ablation: bool) -> Vec<String> {
    let steps = steps(scale, is_ablation);
    let mut overrides = vec![format!("train.total_steps={steps}")];
    let set = |keys: &[&str]| keys.iter().map(|&key| key.to_owned()).collect::<Vec<_>>();
    overrides.extend(match scale {
        Scale::Tiny => set(&["eval.every_steps=0", "checkpoint.every_steps=100"]),
        Scale::Small => set(&[
            "model.hidden_size=512",
            "model.num_hidden_layers=4",
            "data.sequence_length=512",
            "checkpoint.every_steps=100",
        ]),
        Scale::Paper => Vec::new(),
    });
    overrides
}

const FULL: &str = "qwen3moe-lpr";

fn row(name: &'static str, base: &'static str, overrides: &[&str], printed: [f64; 3]) -> Row {
    let [loss, gini, min_max_ratio] = printed;
    Row {
        name,
        base,
        overrides: overrides.iter().map(|&text| text.to_owned()).collect(),
        printed: Printed {
            loss,
            gini,
            min_max_ratio,
        },
    }
}

fn methods() -> Vec<Row> {
    let without = &["router.prototype_init=normal"][..];
    vec![
        row("Mixtral", "mixtral", &[], [3.683, 0.635, 3.33e-6]),
        row(
            "Mixtral-LPR (w/o init)",
            "mixtral-lpr",
            without,
            [3.747, 0.047, 0.649],
        ),
        row("DeepSeekV3", "deepseekv3", &[], [3.673, 0.790, 6.41e-9]),
        row(
            "DeepSeekMoe-LPR (w/o init)",
            "deepseekv3-lpr",
            without,
            [3.720, 0.036, 0.724],
        ),
        row("Qwen3Moe", "qwen3moe", &[], [3.666, 0.707, 1.27e-16]),
        row("Qwen3Moe-LPR (w/ init)", FULL, &[], [3.685, 0.057, 0.597]),
        row(
            "Qwen3Moe-LPR (w/o init)",
            FULL,
            without,
            [3.697, 0.039, 0.696],
        ),
    ]
}

fn components() -> Vec<Row> {
    vec![
        row("Full LPR", FULL, &[], [4.86, 0.06, 0.595]),
        row(
            "w/o KL",
            FULL,
            &["router.kl_weight=0.0"],
            [4.82, 0.115, 0.304],
        ),
        row(
            "w/o alignment",
            FULL,
            &["router.alignment_weight=0.0"],
            [4.83, 0.115, 0.286],
        ),
        row(
            "w/o diversity",
            FULL,
            &["router.diversity_weight=0.0"],
            [5.01, 0.716, 0.002],
        ),
    ]
}

fn latent_dims() -> Vec<Row> {
    vec![
        row("4", FULL, &["router.latent_dim=4"], [5.085, 0.122, 0.385]),
        row("8", FULL, &["router.latent_dim=8"], [4.927, 0.085, 0.480]),
        row("16", FULL, &["router.latent_dim=16"], [4.869, 0.060, 0.595]),
        row(
            "32",
            FULL,
            &["router.latent_dim=32"],
            [4.828, 0.070, 0.5247],
        ),
        row("64", FULL, &["router.latent_dim=64"], [4.874, 0.063, 0.525]),
        row(
            "128",
            FULL,
            &["router.latent_dim=128"],
            [4.891, 0.074, 0.507],
        ),
        row(
            "256",
            FULL,
            &["router.latent_dim=256"],
            [4.902, 0.093, 0.395],
        ),
    ]
}

fn strengths() -> Vec<Row> {
    vec![
        row(
            "0",
            FULL,
            &["router.loss_weight=0.0"],
            [4.995, 0.72, 0.0009],
        ),
        row(
            "0.01",
            FULL,
            &["router.loss_weight=0.01"],
            [4.870, 0.060, 0.595],
        ),
        row(
            "0.04",
            FULL,
            &["router.loss_weight=0.04"],
            [5.060, 0.043, 0.668],
        ),
        row(
            "0.1",
            FULL,
            &["router.loss_weight=0.1"],
            [5.234, 0.044, 0.662],
        ),
        row(
            "0.5",
            FULL,
            &["router.loss_weight=0.5"],
            [5.752, 0.05, 0.628],
        ),
    ]
}

/// Experts and choices; a quarter of the paper's experts and half its choices where the model is tiny.
fn expert_counts(scale: Scale) -> Vec<Row> {
    const NONE: f64 = f64::NAN;
    let settings: [(&str, usize, usize, bool, [f64; 3]); 6] = [
        ("128-8", 128, 8, true, [NONE, 0.099, 0.412]),
        ("256-8", 256, 8, true, [NONE, 0.155, 0.245]),
        ("512-8", 512, 8, true, [NONE, 0.249, 0.059]),
        ("512-4", 512, 4, true, [NONE, 0.347, 0.018]),
        ("512-1", 512, 1, true, [NONE, 0.322, 0.047]),
        ("512-1, no reg.", 512, 1, false, [NONE, 0.9853, 9.3e-22]),
    ];
    let make = |(name, experts, top_k, regularized, printed): (_, usize, usize, bool, _)| {
        let (experts, top_k) = match scale {
            Scale::Tiny => (experts / 4, top_k.div_ceil(2)),
            _ => (experts, top_k),
        };
        let mut overrides = vec![
            format!("model.num_experts={experts}"),
            format!("model.top_k={top_k}"),
        ];
        if !regularized {
            overrides.push("router.loss_weight=0.0".to_owned());
        }
        Row {
            overrides,
            ..row(name, FULL, &[], printed)
        }
    };
    settings.into_iter().map(make).collect()
}

fn diversities() -> Vec<Row> {
    vec![
        row(
            "Cosine",
            FULL,
            &["router.diversity=cosine"],
            [5.11, 0.482, 0.037],
        ),
        row(
            "Orthogonal",
            FULL,
            &["router.diversity=orthogonal"],
            [4.86, 0.06, 0.595],
        ),
        row(
            "Euclidean",
            FULL,
            &["router.diversity=euclidean"],
            [6.745, 0.263, 0.111],
        ),
    ]
}

fn similarities() -> Vec<Row> {
    let metrics = [
        ("Cosine", "cosine", [4.855, 0.082, 0.595]),
        ("Gaussian kernel", "gaussian", [4.908, 0.269, 0.139]),
        ("Mahalanobis", "mahalanobis", [4.910, 0.246, 0.111]),
        ("Cross-attention", "cross_attention", [4.878, 0.574, 0.007]),
        ("Wasserstein", "wasserstein", [4.884, 0.29, 0.067]),
        ("Hellinger", "hellinger", [4.964, 0.364, 0.043]),
        ("JS divergence", "js", [4.979, 0.298, 0.08]),
        ("KL divergence", "kl", [4.881, 0.261, 0.098]),
    ];
    let make = |(name, metric, printed): (&'static str, &str, [f64; 3])| Row {
        overrides: vec![format!("router.similarity={metric}")],
        ..row(name, FULL, &[], printed)
    };
    metrics.into_iter().map(make).collect()
}

const TABLE_1_NOTE: &str = "The paper says 1 B tokens here and 100 M in its appendix; its configs train 4,000 \
    steps of 270 documents. Its text says that DeepSeekV3 corrects by a bias, its code never changes that bias. \
    Its loss of Mixtral-LPR and DeepSeek-LPR contains router losses, ours never does. It says the balance is \
    that of C4; its code smooths counts of training, padding included (our columns EMA).";
const FIGURE_1_NOTE: &str =
    "The heat maps are in the report: smoothed training loads in the paper, exact counts here.";
const TABLE_2_NOTE: &str = "The paper says that removing KL or alignment degrades the model, and prints a lower loss \
    for both. Its text has an alignment weight of 0.05, its appendix 0.1, which is used here.";
const TABLE_3_NOTE: &str = "The row 16 is the full LPR of the other tables, whose loss is printed as 4.86, 4.869, 4.870 \
    and 4.855.";
const TABLE_4_NOTE: &str = "The released code adds router losses once per micro-batch without dividing, so that its \
    strengths are 18 to 27 times the printed ones; router.equiv_accum says so here.";
const TABLE_5_NOTE: &str = "The row 128-8 is the full LPR of the other tables, where the paper prints 0.060 and 0.595. \
    With one choice the routing weight is 1, so that only aligner and router losses train the router. At \
    --scale tiny there are a quarter of the experts and half of the choices.";
const TABLE_6_NOTE: &str = "The paper's diversity is a sum over pairs of tokens; its code takes the mean over \
    normalized pairs, of tokens and of prototypes, as here.";
const TABLE_7_NOTE: &str = "The paper prints another Gini for cosine (0.082) than for the same run in Table 2 (0.060). \
    The measures of distributions cannot run as released; here prototypes are the means.";

/// The text of a configuration.
pub fn base_config(base: &str, scale: Scale) -> Option<&'static str> {
    Some(match (scale, base) {
        (Scale::Tiny, "mixtral") => include_str!("../../../../configs/tiny-mixtral.toml"),
        (Scale::Tiny, "mixtral-lpr") => include_str!("../../../../configs/tiny-mixtral-lpr.toml"),
        (Scale::Tiny, "deepseekv3") => include_str!("../../../../configs/tiny-deepseekv3.toml"),
        (Scale::Tiny, "deepseekv3-lpr") => {
            include_str!("../../../../configs/tiny-deepseekv3-lpr.toml")
        }
        (Scale::Tiny, "qwen3moe") => include_str!("../../../../configs/tiny-qwen3moe.toml"),
        (Scale::Tiny, "qwen3moe-lpr") => include_str!("../../../../configs/tiny-qwen3moe-lpr.toml"),
        (_, "mixtral") => include_str!("../../../../configs/mixtral.toml"),
        (_, "mixtral-lpr") => include_str!("../../../../configs/mixtral-lpr.toml"),
        (_, "deepseekv3") => include_str!("../../../../configs/deepseekv3.toml"),
        (_, "deepseekv3-lpr") => include_str!("../../../../configs/deepseekv3-lpr.toml"),
        (_, "qwen3moe") => include_str!("../../../../configs/qwen3moe.toml"),
        (_, "qwen3moe-lpr") => include_str!("../../../../configs/qwen3moe-lpr.toml"),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::lab::grid::variants;

    const ALL: [Artefact; 8] = [
        Artefact::Table1,
        Artefact::Table2,
        Artefact::Table3,
        Artefact::Table4,
        Artefact::Table5,
        Artefact::Table6,
        Artefact::Table7,
        Artefact::Fig1,
    ];

    fn hashes(artefact: Artefact, scale: Scale) -> Vec<String> {
        let rows = variants(&artefact.table(scale), scale, &[]);
        let rows = rows.unwrap_or_else(|error| panic!("{artefact:?}: {error}"));
        rows.into_iter().map(|(_, config)| config.hash()).collect()
    }

    #[test]
    fn all_tables_together_are_35_valid_runs_at_every_scale() {
        for scale in [Scale::Tiny, Scale::Small, Scale::Paper] {
            let runs: BTreeSet<String> = ALL.into_iter().flat_map(|a| hashes(a, scale)).collect();
            assert_eq!(runs.len(), 35, "{scale:?}");
            for artefact in ALL {
                let rows = hashes(artefact, scale);
                let distinct: BTreeSet<&String> = rows.iter().collect();
                assert_eq!(distinct.len(), rows.len(), "{artefact:?}");
            }
        }
    }
}
