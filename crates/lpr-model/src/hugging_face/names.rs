//! What a parameter of ours is called elsewhere, and how it is laid out there.

use crate::parameters::TensorMap;

/// What a family calls the tensors of its feed-forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Naming {
    /// `mlp.experts.{e}.gate_proj`: Qwen3-MoE, DeepSeek-V3.
    Mlp,
    /// `block_sparse_moe.experts.{e}.w1`: Mixtral.
    BlockSparseMoe,
}

/// (in the form [`Naming::Mlp`], in the form [`Naming::BlockSparseMoe`]); the matrices are those of
/// single experts.
const BLOCK: (&str, &str) = (".mlp.", ".block_sparse_moe.");
const MATRICES: [(&str, &str); 3] = [
    (".gate_proj.weight", ".w1.weight"),
    (".down_proj.weight", ".w2.weight"),
    (".up_proj.weight", ".w3.weight"),
];

impl Naming {
    /// The family's name of a tensor that is called `name` in the form [`Naming::Mlp`].
    pub(super) fn of_family(self, name: &str) -> String {
        match self {
            Self::Mlp => name.to_owned(),
            Self::BlockSparseMoe => renamed(name, |(mlp, block)| (mlp, block)),
        }
    }

    /// The inverse of [`Self::of_family`]; `None` for a name that the family does not give.
    pub(super) fn in_mlp_form(self, name: &str) -> Option<String> {
        let mlp = match self {
            Self::Mlp => name.to_owned(),
            Self::BlockSparseMoe => renamed(name, |(mlp, block)| (block, mlp)),
        };
        (self.of_family(&mlp) == name).then_some(mlp)
    }
}

/// Replaces the name of the block and of an expert's matrix, from the first to the second of each
/// pair that `direction` makes.
fn renamed<'a>(name: &str, direction: impl Fn((&'a str, &'a str)) -> (&'a str, &'a str)) -> String {
    let (from, to) = direction(BLOCK);
    let name = name.replace(from, to);
    for (from, to) in MATRICES.map(direction) {
        if let Some(expert) = name.strip_suffix(from)
            && expert.contains(".experts.")
        {
            return format!("{expert}{to}");
        }
    }
    name
}

/// How one of our parameters is laid out there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    Same,
    Transposed,
    /// One transposed matrix per expert and name; several names share the columns equally.
    PerExpert(&'static [&'static str]),
}

/// (our suffix, theirs, layout); the first match counts.
const RULES: &[(&str, &str, Layout)] = &[
    (
        "experts.gate_up_proj",
        "experts",
        Layout::PerExpert(&["gate_proj", "up_proj"]),
    ),
    (
        "experts.down_proj",
        "experts",
        Layout::PerExpert(&["down_proj"]),
    ),
    ("mlp.router.weight", "mlp.gate.weight", Layout::Transposed),
    (
        "mlp.router.prototypes",
        "mlp.gate.expert_keys",
        Layout::Same,
    ),
    (
        "mlp.router.encoder.norm.weight",
        "mlp.gate.norm.weight",
        Layout::Same,
    ),
    (
        "mlp.router.encoder.norm.bias",
        "mlp.gate.norm.bias",
        Layout::Same,
    ),
    (
        "mlp.router.encoder.projection.weight",
        "mlp.gate.encoder.weight",
        Layout::Transposed,
    ),
    (
        "mlp.router.encoder.projection.bias",
        "mlp.gate.encoder.bias",
        Layout::Same,
    ),
    (
        "mlp.router.aligner.weight",
        "mlp.gate.out_proj.weight",
        Layout::Transposed,
    ),
    (
        "mlp.router.aligner.bias",
        "mlp.gate.out_proj.bias",
        Layout::Same,
    ),
    (
        "mlp.router.similarity.log_sigma",
        "mlp.gate.similarity_func.log_sigma",
        Layout::Same,
    ),
    (
        "mlp.router.similarity.projections.q_proj.weight",
        "mlp.gate.similarity_func.q_proj.weight",
        Layout::Transposed,
    ),
    (
        "mlp.router.similarity.projections.q_proj.bias",
        "mlp.gate.similarity_func.q_proj.bias",
        Layout::Same,
    ),
    (
        "mlp.router.similarity.projections.k_proj.weight",
        "mlp.gate.similarity_func.k_proj.weight",
        Layout::Transposed,
    ),
    (
        "mlp.router.similarity.projections.k_proj.bias",
        "mlp.gate.similarity_func.k_proj.bias",
        Layout::Same,
    ),
    (
        "mlp.router.similarity.projections.q_norm.weight",
        "mlp.gate.similarity_func.q_norm.weight",
        Layout::Same,
    ),
    (
        "mlp.router.similarity.projections.k_norm.weight",
        "mlp.gate.similarity_func.k_norm.weight",
        Layout::Same,
    ),
    (
        "mlp.router.similarity.v_proj.weight",
        "mlp.gate.similarity_func.v_proj.weight",
        Layout::Transposed,
    ),
    (
        "mlp.router.similarity.v_proj.bias",
        "mlp.gate.similarity_func.v_proj.bias",
        Layout::Same,
    ),
    (
        "mlp.router.similarity.prototype_log_var",
        "mlp.gate.expert_keys_logvar",
        Layout::Same,
    ),
    (
        "mlp.router.similarity.projection.weight",
        "mlp.gate.proj.weight",
        Layout::Transposed,
    ),
    (
        "mlp.router.similarity.projection.bias",
        "mlp.gate.proj.bias",
        Layout::Same,
    ),
    ("mlp.router.running.sums", "mlp.gate.ema_sums", Layout::Same),
    (
        "mlp.router.running.counts",
        "mlp.gate.ema_counts",
        Layout::Same,
    ),
    (
        "mlp.router.correction_bias",
        "mlp.gate.e_score_correction_bias",
        Layout::Same,
    ),
    (
        "kv_a_proj_with_mqa.weight",
        "kv_a_proj_with_mqa.weight",
        Layout::Transposed,
    ),
    ("_proj.weight", "_proj.weight", Layout::Transposed),
    ("", "", Layout::Same),
];

/// Their name (without the expert's part) and layout of our parameter `name`.
pub(super) fn rule(name: &str) -> (String, Layout) {
    let (ours, theirs, layout) = RULES
        .iter()
        .find(|(ours, _, _)| name.ends_with(ours))
        .expect("the last rule fits every name");
    (
        format!("{}{theirs}", &name[..name.len() - ours.len()]),
        *layout,
    )
}

/// The released code's names of prototypes, alone and beside their log-variances.
pub(super) const KEYS: [&str; 3] = [
    "mlp.gate.expert_keys",
    "mlp.gate.expert_keys_mu",
    "mlp.gate.expert_keys_logvar",
];

/// Renames the prototypes that have log-variances beside them.
pub(super) fn rename_means(theirs: &mut TensorMap, from: &str, to: &str) {
    let [_, _, log_var] = KEYS;
    let prefixes: Vec<String> = theirs
        .keys()
        .filter_map(|name| name.strip_suffix(log_var).map(str::to_owned))
        .collect();
    for prefix in prefixes {
        let target = format!("{prefix}{to}");
        if !theirs.contains_key(&target)
            && let Some(means) = theirs.remove(&format!("{prefix}{from}"))
        {
            theirs.insert(target, means);
        }
    }
}
