//! Diversity losses: vectors should point in different directions (LPR eq. 14; method-spec
//! section 2, "Diversity").
//!
//! With `x_1` .. `x_n` the vectors (normalized unless `normalize` is off; never for `euclidean`):
//!
//! ```text
//! orthogonal = sum_ij (x_i . x_j - [i = j])^2     = |X'X|_F^2 - 2 sum_i |x_i|^2 + n
//! cosine     = sum_{i != j} x_i . x_j             = |sum_i x_i|^2 - sum_i |x_i|^2
//! euclidean  = - sum_{i != j} |x_i - x_j|
//! ```
//!
//! divided by the number of pairs under the sum unless `reduce` is `sum`. The right-hand sides need
//! O(n d^2) work and O(d^2) memory; no n x n matrix is ever made (the euclidean form, which has no
//! such identity, goes through the pairs in blocks and keeps nothing).

use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::similarity::normalized_rows;
use super::token_groups::TokenGroups;

/// Which relation between vectors is penalized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DiversityKind {
    /// Squared deviation of the Gram matrix from the identity.
    Orthogonal,
    /// Cosine between different vectors.
    Cosine,
    /// Negative distance between different vectors, not normalized; unbounded below.
    Euclidean,
}

/// Which vectors a diversity loss is taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DiversityOn {
    /// Latents and prototypes, one loss each, as released.
    Both,
    /// Latents of the tokens, as LPR eq. 14 is printed.
    Tokens,
    /// Prototypes.
    Prototypes,
}

impl DiversityOn {
    /// Whether the latents are among them.
    pub fn tokens(self) -> bool {
        self != Self::Prototypes
    }

    /// Whether the prototypes are among them.
    pub fn prototypes(self) -> bool {
        self != Self::Tokens
    }
}

/// Whether a sum over pairs is divided by their number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DiversityReduce {
    /// Mean over pairs, as released.
    Mean,
    /// Sum over pairs, as LPR eq. 14 is printed.
    Sum,
}

/// A diversity loss in full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Diversity {
    /// The relation.
    pub kind: DiversityKind,
    /// Mean or sum over pairs.
    pub reduce: DiversityReduce,
    /// Compare directions only.
    pub normalize: bool,
}

/// Shorter vectors count as this long.
const NORM_EPS: f64 = 1e-12;

/// Rows of one block of the euclidean form.
const BLOCK: usize = 256;

impl Diversity {
    /// The loss over one set of vectors: `[n, width]` to `[1]`.
    pub fn loss(self, vectors: Tensor<2>) -> Tensor<1> {
        self.grouped_loss(vectors, &TokenGroups::one())
    }

    /// The mean of the losses of groups of vectors; 0 for groups of fewer than two.
    ///
    /// # Shapes
    /// `vectors`: `[tokens, width]`; the result is `[1]`.
    pub fn grouped_loss(self, vectors: Tensor<2>, groups: &TokenGroups) -> Tensor<1> {
        let vectors = if self.normalize && self.kind != DiversityKind::Euclidean {
            normalized_rows(vectors, NORM_EPS)
        } else {
            vectors
        };
        let n = groups.counts(&vectors);
        let others = n.clone() - 1.0;
        // Rows of zeros add nothing to the first two sums.
        let grouped = groups.split(groups.masked(vectors.clone()));
        let squares = |t: Tensor<3>| t.powi_scalar(2).sum_dim(1).sum_dim(2);
        let (sums, pairs) = match self.kind {
            DiversityKind::Orthogonal => {
                let gram = grouped.clone().swap_dims(1, 2).matmul(grouped.clone());
                let sums = squares(gram) - squares(grouped) * 2.0 + n.clone();
                (sums, n.clone() * n.clone())
            }
            DiversityKind::Cosine => {
                let sums = squares(grouped.clone().sum_dim(1)) - squares(grouped);
                (sums, n.clone() * others)
            }
            DiversityKind::Euclidean => (-grouped_distances(vectors, groups), n.clone() * others),
        };
        let losses = match self.reduce {
            DiversityReduce::Mean => sums / pairs.clamp_min(1.0),
            DiversityReduce::Sum => sums,
        };
        losses.mask_fill(n.lower_scalar(2.0), 0.0).mean()
    }
}

/// Sum of the distances of all ordered pairs of vectors that count, by group: `[num_groups, 1, 1]`.
fn grouped_distances(vectors: Tensor<2>, groups: &TokenGroups) -> Tensor<3> {
    let num_groups = groups.num_groups;
    let n = vectors.dims()[0] / num_groups;
    let sums = (0..num_groups).map(|group| {
        let counted = groups.is_counted.clone();
        let counted = counted.map(|mask| mask.narrow(0, group * n, n));
        summed_distances(vectors.clone().narrow(0, group * n, n), counted)
    });
    Tensor::cat(sums.collect(), 0).reshape([num_groups, 1, 1])
}

/// Sum of the distances of all ordered pairs of rows (of which both are `counted`), `[1]`.
///
/// Value and gradient are computed block by block outside the graph; the result is the value plus a
/// term that is zero and has that gradient. (Second derivatives are not available.)
fn summed_distances(vectors: Tensor<2>, counted: Option<Tensor<1>>) -> Tensor<1> {
    let is_autodiff = vectors.device().is_autodiff();
    let constant = if is_autodiff {
        vectors.clone().inner()
    } else {
        vectors.clone()
    };
    let [n, width] = constant.dims();
    let weights = match counted {
        Some(mask) if mask.device().is_autodiff() => mask.inner(),
        Some(mask) => mask,
        None => Tensor::ones([n], (&constant.device(), constant.dtype())),
    };
    let weights = weights.reshape([n, 1]);
    let mut total = Tensor::<1>::zeros([1], &constant.device()).cast(constant.dtype());
    let mut gradient = Vec::new();
    for first in (0..n).step_by(BLOCK) {
        let length = BLOCK.min(n - first);
        let pairs = |rows: &Tensor<2>| {
            let block = rows.clone().narrow(0, first, length);
            (
                block.unsqueeze_dim::<3>(1),
                rows.clone().unsqueeze_dim::<3>(0),
            )
        };
        // [block, n, width]; summed over the other vectors.
        let (block, all) = pairs(&constant);
        let difference = block - all;
        let (block, all) = pairs(&weights);
        let weight = block * all;
        let distance = difference.clone().powi_scalar(2).sum_dim(2).sqrt();
        let safe = distance
            .clone()
            .mask_fill(distance.clone().equal_scalar(0.0), 1.0);
        total = total + (distance * weight.clone()).sum();
        let pull = (difference / safe * weight).sum_dim(1);
        gradient.push(pull.reshape([length, width]) * 2.0);
    }
    let gradient = Tensor::cat(gradient, 0);
    let offset = total - (constant * gradient.clone()).sum();
    if is_autodiff {
        (vectors * Tensor::from_inner(gradient)).sum() + Tensor::from_inner(offset)
    } else {
        (vectors * gradient).sum() + offset
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    fn diversity(kind: DiversityKind) -> Diversity {
        Diversity {
            kind,
            reduce: DiversityReduce::Mean,
            normalize: true,
        }
    }

    fn value(loss: Tensor<1>) -> f32 {
        loss.into_scalar::<f32>()
    }

    #[test]
    fn orthonormal_vectors_have_no_orthogonal_loss() {
        let eye = Tensor::<2>::eye(5, &Device::flex());
        let loss = diversity(DiversityKind::Orthogonal).loss(eye * 3.0);
        assert!(value(loss).abs() < 1e-6);
    }

    #[test]
    fn equal_vectors_have_the_loss_of_their_off_diagonal_pairs() {
        let ones = Tensor::<2>::ones([4, 3], &Device::flex());
        // 12 of the 16 pairs have cosine one, the diagonal has error zero.
        let orthogonal = value(diversity(DiversityKind::Orthogonal).loss(ones.clone()));
        assert!((orthogonal - 12.0 / 16.0).abs() < 1e-6, "{orthogonal}");
        let cosine = value(diversity(DiversityKind::Cosine).loss(ones.clone()));
        assert!((cosine - 1.0).abs() < 1e-6, "{cosine}");
        let euclidean = value(diversity(DiversityKind::Euclidean).loss(ones));
        assert!(euclidean.abs() < 1e-6, "{euclidean}");
    }

    #[test]
    fn euclidean_distances_are_right_across_blocks() {
        let device = Device::flex();
        // Points 0 .. 599 on a line: the mean distance of different ones is (n + 1) / 3.
        let line = Tensor::<1, burn::tensor::Int>::arange(0..600, &device).float();
        let loss = diversity(DiversityKind::Euclidean).loss(line.reshape([600, 1]));
        assert!((value(loss) + 601.0 / 3.0).abs() < 1e-2);
    }

    #[test]
    fn groups_are_averaged() {
        let device = Device::flex();
        let both = Tensor::cat(
            vec![Tensor::eye(3, &device), Tensor::ones([3, 3], &device)],
            0,
        );
        let groups = TokenGroups {
            num_groups: 2,
            is_counted: None,
        };
        for (kind, expected) in [
            (DiversityKind::Orthogonal, 3.0 / 9.0),
            (DiversityKind::Cosine, 0.5),
            (DiversityKind::Euclidean, -2.0_f32.sqrt() / 2.0),
        ] {
            let grouped = value(diversity(kind).grouped_loss(both.clone(), &groups));
            assert!(
                (grouped - expected).abs() < 1e-5,
                "{kind:?} {grouped} {expected}"
            );
        }
    }

    #[test]
    fn a_single_vector_has_no_loss() {
        let one = Tensor::<2>::ones([1, 3], &Device::flex());
        let loss = value(diversity(DiversityKind::Orthogonal).loss(one));
        assert!(loss.abs() < 1e-12, "{loss}");
    }
}
