//! Our parameters under Hugging Face's names and layouts, in both directions.
//!
//! | ours | Hugging Face 4.x | layout |
//! |---|---|---|
//! | `self_attn.*_proj.weight` `[in, out]` | the same name, `[out, in]` | transposed |
//! | `mlp.router.weight` | `mlp.gate.weight` | transposed |
//! | `mlp.experts.gate_up_proj` `[E, in, 2 * inner]` | `mlp.experts.{e}.gate_proj.weight`, `up_proj` `[inner, in]` | split, transposed |
//! | `mlp.experts.down_proj` `[E, inner, out]` | `mlp.experts.{e}.down_proj.weight` `[out, inner]` | split, transposed |
//! | `mlp.router.prototypes` | `mlp.gate.expert_keys` | same |
//! | `mlp.router.encoder.norm.*` | `mlp.gate.norm.*` | same |
//! | `mlp.router.encoder.projection.*` | `mlp.gate.encoder.*` | weight transposed |
//! | `mlp.router.aligner.*` | `mlp.gate.out_proj.*` | weight transposed |
//! | `mlp.router.similarity.*` (`projections.*` of cross-attention) | `mlp.gate.similarity_func.*` | weights transposed |
//! | `mlp.router.similarity.prototype_log_var` | `mlp.gate.expert_keys_logvar` | same |
//! | `mlp.router.similarity.projection.*` | `mlp.gate.proj.*` | weight transposed |
//! | `mlp.router.running.*` | `mlp.gate.ema_*` | same |
//!
//! Beside log-variances the prototypes are called `mlp.gate.expert_keys_mu` there. Everything else
//! has the same name and layout in both. The LPR names are the released code's.

use crate::parameters::{HostTensor, ParameterMismatch, TensorMap};

/// How one of our parameters is laid out there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
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
    ("_proj.weight", "_proj.weight", Layout::Transposed),
    ("", "", Layout::Same),
];

/// Their name (without the expert's part) and layout of our parameter `name`.
fn rule(name: &str) -> (String, Layout) {
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
const KEYS: [&str; 3] = [
    "mlp.gate.expert_keys",
    "mlp.gate.expert_keys_mu",
    "mlp.gate.expert_keys_logvar",
];

/// Renames the prototypes that have log-variances beside them.
fn rename_means(theirs: &mut TensorMap, from: &str, to: &str) {
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

/// Renames and lays out our parameters (or their gradients) as Hugging Face does.
pub fn to_hugging_face(ours: &TensorMap) -> TensorMap {
    let mut theirs = TensorMap::new();
    for (name, tensor) in ours {
        let (target, layout) = rule(name);
        match layout {
            Layout::Same => {
                theirs.insert(target, tensor.clone());
            }
            Layout::Transposed => {
                theirs.insert(target, transposed(tensor));
            }
            Layout::PerExpert(parts) => {
                for (expert, part, matrix) in split_experts(tensor, parts) {
                    theirs.insert(format!("{target}.{expert}.{part}.weight"), matrix);
                }
            }
        }
    }
    rename_means(&mut theirs, KEYS[0], KEYS[1]);
    theirs
}

/// Finds our parameters, given by name and shape, among Hugging Face's tensors.
///
/// # Errors
/// If a tensor is missing, has another shape, or is left over; all such problems are listed.
pub fn from_hugging_face(
    mut theirs: TensorMap,
    shapes: &[(String, Vec<usize>)],
) -> Result<TensorMap, ParameterMismatch> {
    rename_means(&mut theirs, KEYS[1], KEYS[0]);
    let mut problems = Vec::new();
    let mut ours = TensorMap::new();
    for (name, shape) in shapes {
        let (source, layout) = rule(name);
        let mut take = |source: &str, wanted: Vec<usize>| match theirs.remove(source) {
            None => {
                problems.push(format!("`{source}` is missing"));
                None
            }
            Some(found) if found.shape != wanted => {
                problems.push(format!(
                    "`{source}` has shape {:?}, the model needs {wanted:?}",
                    found.shape
                ));
                None
            }
            Some(found) => Some(found),
        };
        let tensor = match layout {
            Layout::Same => take(&source, shape.clone()),
            Layout::Transposed => {
                take(&source, vec![shape[1], shape[0]]).map(|tensor| transposed(&tensor))
            }
            Layout::PerExpert(parts) => {
                let matrix_shape = vec![shape[2] / parts.len(), shape[1]];
                let matrices: Vec<_> = (0..shape[0])
                    .flat_map(|expert| parts.iter().map(move |part| (expert, part)))
                    .map(|(expert, part)| {
                        take(
                            &format!("{source}.{expert}.{part}.weight"),
                            matrix_shape.clone(),
                        )
                    })
                    .collect();
                let complete: Option<Vec<HostTensor>> = matrices.into_iter().collect();
                complete.map(|matrices| join_experts(&matrices, shape, parts.len()))
            }
        };
        ours.extend(tensor.map(|tensor| (name.clone(), tensor)));
    }
    problems.extend(
        theirs
            .keys()
            .map(|name| format!("`{name}` is not used by the model")),
    );
    if problems.is_empty() {
        Ok(ours)
    } else {
        Err(ParameterMismatch(problems))
    }
}

fn transposed(tensor: &HostTensor) -> HostTensor {
    let (rows, columns) = (tensor.shape[0], tensor.shape[1]);
    let mut values = Vec::with_capacity(tensor.values.len());
    for column in 0..columns {
        values.extend((0..rows).map(|row| tensor.values[row * columns + column]));
    }
    HostTensor {
        shape: vec![columns, rows],
        values,
    }
}

/// `[experts, rows, parts * width]` to one `[width, rows]` matrix per expert and part.
fn split_experts<'a>(
    tensor: &'a HostTensor,
    parts: &'a [&str],
) -> impl Iterator<Item = (usize, &'a str, HostTensor)> + 'a {
    let (rows, columns) = (tensor.shape[1], tensor.shape[2]);
    let width = columns / parts.len();
    (0..tensor.shape[0]).flat_map(move |expert| {
        let matrix = &tensor.values[expert * rows * columns..][..rows * columns];
        parts.iter().enumerate().map(move |(index, part)| {
            let values = (0..width)
                .flat_map(|column| {
                    (0..rows).map(move |row| matrix[row * columns + index * width + column])
                })
                .collect();
            let shape = vec![width, rows];
            (expert, *part, HostTensor { shape, values })
        })
    })
}

/// The inverse of [`split_experts`], for matrices in its order.
fn join_experts(matrices: &[HostTensor], shape: &[usize], num_parts: usize) -> HostTensor {
    let (rows, columns) = (shape[1], shape[2]);
    let width = columns / num_parts;
    let mut values = vec![0.0; shape.iter().product()];
    for (index, matrix) in matrices.iter().enumerate() {
        let (expert, part) = (index / num_parts, index % num_parts);
        for column in 0..width {
            for row in 0..rows {
                values[(expert * rows + row) * columns + part * width + column] =
                    matrix.values[column * rows + row];
            }
        }
    }
    HostTensor {
        shape: shape.to_vec(),
        values,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counting(shape: &[usize]) -> HostTensor {
        HostTensor {
            shape: shape.to_vec(),
            values: (0..shape.iter().product::<usize>())
                .map(|i| i as f32)
                .collect(),
        }
    }

    fn ours() -> TensorMap {
        let layer = |name: &str| format!("model.layers.3.{name}");
        [
            (layer("self_attn.q_proj.weight"), counting(&[2, 3])),
            (layer("mlp.experts.gate_up_proj"), counting(&[2, 3, 4])),
            (layer("mlp.experts.down_proj"), counting(&[2, 2, 3])),
            (layer("mlp.router.aligner.bias"), counting(&[3])),
            ("lm_head.weight".into(), counting(&[5, 3])),
        ]
        .into()
    }

    #[test]
    fn experts_become_one_transposed_matrix_each() {
        let theirs = to_hugging_face(&ours());
        let up = &theirs["model.layers.3.mlp.experts.1.up_proj.weight"];
        // Expert 1 starts at 12; its row r has columns 12 + 4 r ..; up is the last two of them.
        assert_eq!(up.shape, [2, 3]);
        assert_eq!(up.values, [14., 18., 22., 15., 19., 23.]);
        assert!(theirs.contains_key("model.layers.3.mlp.gate.out_proj.bias"));
        assert_eq!(
            theirs["model.layers.3.self_attn.q_proj.weight"].values,
            [0., 3., 1., 4., 2., 5.]
        );
    }

    #[test]
    fn prototypes_beside_log_variances_have_the_released_name_of_means() {
        let keys = |with_log_var: bool| -> Vec<String> {
            let mut ours = ours();
            let router = "model.layers.3.mlp.router";
            ours.insert(format!("{router}.prototypes"), counting(&[2, 3]));
            ours.insert(format!("{router}.running.counts"), counting(&[2]));
            if with_log_var {
                let name = format!("{router}.similarity.prototype_log_var");
                ours.insert(name, counting(&[2, 3]));
            }
            let shapes: Vec<_> = ours
                .iter()
                .map(|(n, t)| (n.clone(), t.shape.clone()))
                .collect();
            let theirs = to_hugging_face(&ours);
            let names = theirs
                .keys()
                .filter_map(|n| n.strip_prefix("model.layers.3.mlp.gate."));
            let names = names
                .filter(|n| !n.starts_with("out_proj"))
                .map(str::to_owned);
            let names = names.collect();
            assert_eq!(from_hugging_face(theirs, &shapes).as_ref(), Ok(&ours));
            names
        };
        assert_eq!(keys(false), ["ema_counts", "expert_keys"]);
        let all = ["ema_counts", "expert_keys_logvar", "expert_keys_mu"];
        assert_eq!(keys(true), all);
    }

    #[test]
    fn there_and_back_changes_nothing() {
        let ours = ours();
        let shapes: Vec<_> = ours
            .iter()
            .map(|(n, t)| (n.clone(), t.shape.clone()))
            .collect();
        let back = from_hugging_face(to_hugging_face(&ours), &shapes).expect("complete");
        assert_eq!(back, ours);
    }

    #[test]
    fn every_problem_is_listed() {
        let ours = ours();
        let shapes: Vec<_> = ours
            .iter()
            .map(|(n, t)| (n.clone(), t.shape.clone()))
            .collect();
        let mut theirs = to_hugging_face(&ours);
        theirs.remove("lm_head.weight");
        theirs.remove("model.layers.3.mlp.experts.1.up_proj.weight");
        theirs.insert("extra".into(), counting(&[1]));
        let ParameterMismatch(problems) =
            from_hugging_face(theirs, &shapes).expect_err("incomplete");
        assert_eq!(problems.len(), 3, "{problems:?}");
    }
}
