//! Which tokens a router loss speaks of, and which of them belong together.

use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::super::LossContext;

/// Whether padding takes part in the router's losses and in the update of the prototypes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Padding {
    /// Every position counts, as released.
    Counted,
    /// Only real tokens count.
    Masked,
}

/// Equal runs of consecutive rows, each with a loss of its own; the losses are averaged.
#[derive(Debug, Clone)]
pub struct TokenGroups {
    /// How many.
    pub num_groups: usize,
    /// `[tokens]`, 1 for rows that count and 0 for others; `None` if all count.
    pub is_counted: Option<Tensor<1>>,
}

impl TokenGroups {
    /// Of the tokens of a micro-batch.
    pub fn new(context: &LossContext, padding: Padding) -> Self {
        Self {
            num_groups: context.num_groups,
            is_counted: match padding {
                Padding::Counted => None,
                Padding::Masked => context.is_token.clone(),
            },
        }
    }

    /// One group in which everything counts.
    pub fn one() -> Self {
        Self {
            num_groups: 1,
            is_counted: None,
        }
    }

    /// `[tokens, width]` to `[num_groups, rows, width]`.
    pub fn split(&self, x: Tensor<2>) -> Tensor<3> {
        let [tokens, width] = x.dims();
        x.reshape([self.num_groups, tokens / self.num_groups, width])
    }

    /// The same with zeros in the rows that do not count.
    pub fn masked(&self, x: Tensor<2>) -> Tensor<2> {
        match &self.is_counted {
            None => x,
            Some(mask) => x * mask.clone().unsqueeze_dim(1),
        }
    }

    /// How many of the rows of `x`, `[tokens, width]`, count in each group: `[num_groups, 1, 1]`.
    pub fn counts(&self, x: &Tensor<2>) -> Tensor<3> {
        let [tokens, _] = x.dims();
        match &self.is_counted {
            None => {
                let rows = (tokens / self.num_groups) as f64;
                Tensor::full([self.num_groups, 1, 1], rows, (&x.device(), x.dtype()))
            }
            Some(mask) => self.split(mask.clone().unsqueeze_dim(1)).sum_dim(1),
        }
    }

    /// Sum over the rows of a group and over columns, mean over groups: `[1]`.
    pub fn sum(&self, x: Tensor<2>) -> Tensor<1> {
        self.masked(x).sum() * (self.num_groups as f64).recip()
    }

    /// Sum over columns, mean over the rows of a group, mean over groups: `[1]`. A group without a
    /// row that counts has the mean 0.
    pub fn mean(&self, x: Tensor<2>) -> Tensor<1> {
        let counts = self.counts(&x).clamp_min(1.0);
        let sums = self.split(self.masked(x).sum_dim(1)).sum_dim(1);
        (sums / counts).mean()
    }
}
