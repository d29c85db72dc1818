//! Our parameters under Hugging Face's names and layouts, in both directions.
//!
//! | ours | Hugging Face 4.x | layout |
//! |---|---|---|
//! | `self_attn.*_proj.weight` `[in, out]` | the same name, `[out, in]` | transposed |
//! | `self_attn.kv_a_proj_with_mqa.weight` `[in, out]` | the same name, `[out, in]` | transposed |
//! | `mlp.router.weight` | `mlp.gate.weight` | transposed |
//! | `mlp.router.correction_bias` | `mlp.gate.e_score_correction_bias` | same |
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
//! has the same name and layout in both. The LPR names are the released code's. With
//! [`Naming::BlockSparseMoe`] `mlp` is `block_sparse_moe` there, and an expert's `gate_proj`,
//! `down_proj` and `up_proj` are `w1`, `w2` and `w3`.
//!
//! Written is this layout, which checkpoints on the hub have and transformers 5 converts as it loads.
//! Read is also that of transformers 5 in memory, where every family says `mlp` and a layer's experts
//! are `mlp.experts.gate_up_proj` `[E, 2 * inner, in]` and `mlp.experts.down_proj` `[E, out, inner]`.

mod names;

pub use names::Naming;

use self::names::{KEYS, Layout, rename_means, rule};
use crate::parameters::{HostTensor, ParameterMismatch, TensorMap};

/// How the names end by which experts in one tensor are recognized.
const FUSED: &str = ".experts.gate_up_proj";

/// Renames and lays out our parameters (or their gradients) as Hugging Face does.
pub fn to_hugging_face(ours: &TensorMap, naming: Naming) -> TensorMap {
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
    let named = theirs.into_iter();
    named
        .map(|(name, tensor)| (naming.of_family(&name), tensor))
        .collect()
}

/// Finds our parameters, given by name and shape, among Hugging Face's tensors, one matrix per expert
/// or all experts of a layer in one tensor.
///
/// # Errors
/// If a tensor is missing, has another shape, or is left over; all such problems are listed.
pub fn from_hugging_face(
    theirs: TensorMap,
    shapes: &[(String, Vec<usize>)],
    naming: Naming,
) -> Result<TensorMap, ParameterMismatch> {
    let mut problems = Vec::new();
    let mut ours = TensorMap::new();
    let fused = theirs.keys().any(|name| name.ends_with(FUSED));
    let naming = if fused { Naming::Mlp } else { naming };
    let mut theirs = in_mlp_form(theirs, naming, &mut problems);
    rename_means(&mut theirs, KEYS[1], KEYS[0]);
    for (name, shape) in shapes {
        let (source, layout) = rule(name);
        let mut take = |source: &str, wanted: Vec<usize>| match theirs.remove(source) {
            None => {
                problems.push(format!("`{}` is missing", naming.of_family(source)));
                None
            }
            Some(found) if found.shape != wanted => {
                problems.push(format!(
                    "`{}` has shape {:?}, the model needs {wanted:?}",
                    naming.of_family(source),
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
            Layout::PerExpert(_) if fused => take(name, vec![shape[0], shape[2], shape[1]])
                .map(|tensor| transposed_each(&tensor)),
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
    problems.extend(theirs.keys().map(|name| unused(&naming.of_family(name))));
    if problems.is_empty() {
        Ok(ours)
    } else {
        Err(ParameterMismatch(problems))
    }
}

/// All tensors under their names in the form [`Naming::Mlp`]; a name that the family does not give is
/// a problem.
fn in_mlp_form(theirs: TensorMap, naming: Naming, problems: &mut Vec<String>) -> TensorMap {
    let mut named = TensorMap::new();
    for (name, tensor) in theirs {
        match naming.in_mlp_form(&name) {
            Some(name) => {
                named.insert(name, tensor);
            }
            None => problems.push(unused(&name)),
        }
    }
    named
}

fn unused(name: &str) -> String {
    format!("`{name}` is not used by the model")
}

fn transposed(tensor: &HostTensor) -> HostTensor {
    let (rows, columns) = (tensor.shape[0], tensor.shape[1]);
    HostTensor {
        shape: vec![columns, rows],
        values: transposed_values(&tensor.values, rows, columns).collect(),
    }
}

/// `[n, rows, columns]` to `[n, columns, rows]`.
fn transposed_each(tensor: &HostTensor) -> HostTensor {
    let (rows, columns) = (tensor.shape[1], tensor.shape[2]);
    let matrices = tensor.values.chunks(rows * columns);
    HostTensor {
        shape: vec![tensor.shape[0], columns, rows],
        values: matrices
            .flat_map(|matrix| transposed_values(matrix, rows, columns))
            .collect(),
    }
}

fn transposed_values(
    matrix: &[f32],
    rows: usize,
    columns: usize,
) -> impl Iterator<Item = f32> + '_ {
    (0..columns).flat_map(move |column| (0..rows).map(move |row| matrix[row * columns + column]))
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
        let theirs = to_hugging_face(&ours(), Naming::Mlp);
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
            let theirs = to_hugging_face(&ours, Naming::Mlp);
            let names = theirs
                .keys()
                .filter_map(|n| n.strip_prefix("model.layers.3.mlp.gate."));
            let names = names
                .filter(|n| !n.starts_with("out_proj"))
                .map(str::to_owned);
            let names = names.collect();
            assert_eq!(
                from_hugging_face(theirs, &shapes, Naming::Mlp).as_ref(),
                Ok(&ours)
            );
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
        for naming in [Naming::Mlp, Naming::BlockSparseMoe] {
            let theirs = to_hugging_face(&ours, naming);
            let back = from_hugging_face(theirs, &shapes, naming).expect("complete");
            assert_eq!(back, ours);
        }
    }

    #[test]
    fn mixtral_has_its_own_names() {
        let (ours, mixtral) = (ours(), Naming::BlockSparseMoe);
        let (usual, theirs) = (
            to_hugging_face(&ours, Naming::Mlp),
            to_hugging_face(&ours, mixtral),
        );
        assert_eq!(usual.len(), theirs.len());
        for (part, theirs_part) in [("gate_proj", "w1"), ("down_proj", "w2"), ("up_proj", "w3")] {
            assert_eq!(
                usual[&format!("model.layers.3.mlp.experts.1.{part}.weight")],
                theirs[&format!("model.layers.3.block_sparse_moe.experts.1.{theirs_part}.weight")]
            );
        }
        assert!(theirs.contains_key("model.layers.3.block_sparse_moe.gate.out_proj.bias"));
        // Tensors of another family are not taken for Mixtral's, and problems say Mixtral's names.
        let shapes: Vec<_> = ours
            .iter()
            .map(|(n, t)| (n.clone(), t.shape.clone()))
            .collect();
        let ParameterMismatch(problems) =
            from_hugging_face(usual, &shapes, mixtral).expect_err("other names");
        let missing = "`model.layers.3.block_sparse_moe.experts.1.w2.weight` is missing";
        assert!(problems.iter().any(|p| p == missing), "{problems:?}");
    }

    /// As transformers 5 keeps them: `[experts, 2 * inner, in]`, gate above up.
    #[test]
    fn experts_in_one_tensor_are_the_same_experts() {
        let ours = ours();
        let shapes: Vec<_> = ours
            .iter()
            .map(|(n, t)| (n.clone(), t.shape.clone()))
            .collect();
        let mut theirs = to_hugging_face(&ours, Naming::Mlp);
        let layer = "model.layers.3.mlp.experts";
        let mut stacked = |parts: &[&str], shape: [usize; 3]| HostTensor {
            shape: shape.to_vec(),
            values: (0..2)
                .flat_map(|e| {
                    parts
                        .iter()
                        .map(move |part| format!("{layer}.{e}.{part}.weight"))
                })
                .flat_map(|name| theirs.remove(&name).expect("written").values)
                .collect(),
        };
        let (gate_up, down) = (
            stacked(&["gate_proj", "up_proj"], [2, 4, 3]),
            stacked(&["down_proj"], [2, 3, 2]),
        );
        theirs.insert(format!("{layer}.gate_up_proj"), gate_up);
        theirs.insert(format!("{layer}.down_proj"), down);
        // All families have the same names then.
        for naming in [Naming::Mlp, Naming::BlockSparseMoe] {
            let back = from_hugging_face(theirs.clone(), &shapes, naming);
            assert_eq!(back.as_ref(), Ok(&ours));
        }
        let down = format!("{layer}.down_proj");
        theirs.insert(down.clone(), counting(&[2, 2, 3]));
        let ParameterMismatch(problems) =
            from_hugging_face(theirs, &shapes, Naming::Mlp).expect_err("another shape");
        assert_eq!(
            problems,
            [format!(
                "`{down}` has shape [2, 2, 3], the model needs [2, 3, 2]"
            )]
        );
    }

    #[test]
    fn every_problem_is_listed() {
        let ours = ours();
        let shapes: Vec<_> = ours
            .iter()
            .map(|(n, t)| (n.clone(), t.shape.clone()))
            .collect();
        let mut theirs = to_hugging_face(&ours, Naming::Mlp);
        theirs.remove("lm_head.weight");
        theirs.remove("model.layers.3.mlp.experts.1.up_proj.weight");
        theirs.insert("extra".into(), counting(&[1]));
        let ParameterMismatch(problems) =
            from_hugging_face(theirs, &shapes, Naming::Mlp).expect_err("incomplete");
        assert_eq!(problems.len(), 3, "{problems:?}");
    }
}
