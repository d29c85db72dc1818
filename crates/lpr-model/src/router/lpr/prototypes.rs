//! Where the prototypes start.

use burn::module::Param;
use burn::tensor::{Tensor, TensorData};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::similarity::normalized_rows;
use crate::random::ParamInit;

/// The initial prototypes. Nothing keeps them there afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PrototypeInit {
    /// Random directions of length one ("w/ init" in the paper's tables).
    UnitBall,
    /// Standard normal numbers ("w/o init").
    Normal,
    /// Orthonormal bases, as many as it takes, each in a random orientation.
    Orthogonal,
}

impl PrototypeInit {
    /// One prototype per expert: r ~ N(0, I); r / max(|r|, 1e-12); or every run of `latent_dim`
    /// such rows made orthonormal.
    ///
    /// # Shapes
    /// `[num_experts, latent_dim]`
    pub fn init(
        self,
        init: &ParamInit<'_>,
        num_experts: usize,
        latent_dim: usize,
    ) -> Param<Tensor<2>> {
        let normal = init.standard_normal([num_experts, latent_dim]);
        Param::from_tensor(match self {
            Self::UnitBall => normalized_rows(normal, 1e-12),
            Self::Normal => normal,
            Self::Orthogonal => orthonormal_runs(normal),
        })
    }
}

/// Gram-Schmidt in 64 bits on every run of `width` rows of `[rows, width]`.
fn orthonormal_runs(rows: Tensor<2>) -> Tensor<2> {
    let ([num_rows, width], device) = (rows.dims(), rows.device());
    let mut values: Vec<f64> = rows.into_data().iter::<f64>().collect();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    for run in values.chunks_mut(width * width) {
        for row in 0..run.len() / width {
            let (done, rest) = run.split_at_mut(row * width);
            let current = &mut rest[..width];
            // Twice, so that what rounding left of the first pass is removed as well.
            for earlier in done.chunks(width).chain(done.chunks(width)) {
                let part = dot(earlier, current);
                current
                    .iter_mut()
                    .zip(earlier)
                    .for_each(|(x, e)| *x -= part * e);
            }
            let norm = dot(current, current).sqrt();
            for x in current {
                *x /= norm;
            }
        }
    }
    let values: Vec<f32> = values.into_iter().map(|v| v as f32).collect();
    Tensor::from_data(TensorData::new(values, [num_rows, width]), &device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    fn made(init: PrototypeInit) -> Tensor<2> {
        let device = Device::flex();
        init.init(&ParamInit::new(3, 0.02, &device), 10, 4).val()
    }

    fn gram(rows: Tensor<2>) -> Vec<f32> {
        let product = rows.clone().matmul(rows.transpose());
        product.into_data().iter::<f32>().collect()
    }

    #[test]
    fn unit_ball_rows_have_length_one_and_normal_rows_do_not() {
        let lengths = |init| -> Vec<f32> { gram(made(init)).into_iter().step_by(11).collect() };
        let one = |length: &f32| (length - 1.0).abs() < 1e-5;
        assert!(lengths(PrototypeInit::UnitBall).iter().all(one));
        assert!(!lengths(PrototypeInit::Normal).iter().all(one));
    }

    #[test]
    fn runs_of_orthogonal_rows_are_orthonormal() {
        let gram = gram(made(PrototypeInit::Orthogonal));
        for i in 0..10 {
            for j in (i / 4 * 4)..10.min(i / 4 * 4 + 4) {
                let want = f32::from(u8::from(i == j));
                assert!((gram[i * 10 + j] - want).abs() < 1e-6, "{i} {j}");
            }
        }
    }
}
