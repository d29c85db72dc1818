//! Distances between diagonal normal distributions, every one of `a` against every one of `b`:
//! `[tokens, latent_dim]` and `[num_experts, latent_dim]` to `[tokens, num_experts]`.
//!
//! With m the means, l the log-variances, v = exp(l), s = sqrt(v), D the difference of the means,
//! and sums over dimensions:
//!
//! ```text
//! kl               1/2 sum (l_b - l_a + (v_a + D^2) / v_b - 1)                        LPR eq. 21
//! js               1/4 sum (2 log v_0 - l_a - l_b + (v_a + v_b + D^2 / 2) / v_0 - 2),
//!                  v_0 = (v_a + v_b) / 2                                              LPR eq. 22
//! hellinger        sqrt(1 - prod c),  c = sqrt(2 s_a s_b / (v_a + v_b)) exp(-D^2 / (4 (v_a + v_b)))
//! hellinger_paper  sqrt(1 - prod c) / sqrt(2),  the same c without its root           LPR eq. 23
//! wasserstein      sqrt(sum (D^2 + (s_a - s_b)^2))
//! wasserstein_paper     sum (D^2 + (s_a - s_b)^2)                                     LPR eq. 20
//! ```
//!
//! In `kl` and `js` variances are at least 1e-6, as in the released code, which leaves the
//! log-variances that stand alone as they are. LPR eq. 23 is printed for one dimension; the product over dimensions is the
//! distance of the joint distributions. Deviation: a Hellinger distance is at least 1e-6, because
//! the released root has an infinite gradient at zero.

use burn::tensor::Tensor;
use lpr_kernels::{exact_linear, exp};

use super::{Latent, squared_distances};

/// A distance between distributions.
pub type Divergence = fn(&Latent, &Latent) -> Tensor<2>;

/// Smallest variance, and what the released code adds to denominators and under roots.
const EPS: f64 = 1e-6;
/// Smallest value under the root of a Hellinger distance.
const MIN_SQUARED_HELLINGER: f64 = 1e-12;

fn variance(log_var: &Tensor<2>) -> Tensor<2> {
    exp(log_var.clone()).clamp_min(EPS)
}

/// Sum of `x` over dimensions, one per distribution: `[rows, 1]`.
fn total(x: Tensor<2>) -> Tensor<2> {
    x.sum_dim(1)
}

/// `f(a_i, b_j)` for all pairs and dimensions: `[tokens, num_experts, latent_dim]`.
fn pairs(a: Tensor<2>, b: Tensor<2>, f: impl Fn(Tensor<3>, Tensor<3>) -> Tensor<3>) -> Tensor<3> {
    f(a.unsqueeze_dim(1), b.unsqueeze_dim(0))
}

/// KL(a || b). Inner products only, no pair is expanded to its dimensions. Means are measured from
/// the experts' center and second moments from one, which changes no pair but keeps the sums small:
/// rounding is then about that of the sum over pairs as it is written.
pub fn kl(a: &Latent, b: &Latent) -> Tensor<2> {
    let (v_a, precision) = (variance(&a.log_var), variance(&b.log_var).recip());
    let center = b.mean.clone().detach().mean_dim(0);
    let (m_a, m_b) = (a.mean.clone() - center.clone(), b.mean.clone() - center);
    let second_moment = v_a + m_a.clone().powi_scalar(2) - 1.0;
    let weighted_mean = m_b.clone() * precision.clone();
    let of_b = (precision.clone() - 1.0 + b.log_var.clone()) + m_b * weighted_mean.clone();
    let sum = exact_linear(second_moment, precision.transpose(), None)
        - exact_linear(m_a, weighted_mean.transpose(), None) * 2.0
        + total(of_b).transpose()
        - total(a.log_var.clone());
    sum * 0.5
}

/// Half of KL(a || 0) + KL(b || 0), where 0 has the mean of both means and of both variances.
pub fn js(a: &Latent, b: &Latent) -> Tensor<2> {
    let (v_a, v_b) = (variance(&a.log_var), variance(&b.log_var));
    let v_0 = (pairs(v_a.clone(), v_b.clone(), |a, b| a + b) * 0.5).clamp_min(EPS);
    let squares = pairs(a.mean.clone(), b.mean.clone(), |a, b| a - b).powi_scalar(2);
    let moments = pairs(v_a, v_b, |a, b| a + b) + squares * 0.5;
    let of_pairs: Tensor<2> = (v_0.clone().log() * 2.0 + moments / v_0 - 2.0)
        .sum_dim(2)
        .squeeze_dim(2);
    let logs = total(a.log_var.clone()) + total(b.log_var.clone()).transpose();
    (of_pairs - logs) * 0.25
}

/// log of the product of the factors c, with `root` as the power of their sigma part.
fn log_affinity(a: &Latent, b: &Latent, root: f64, eps: f64) -> Tensor<2> {
    let sum = pairs(exp(a.log_var.clone()), exp(b.log_var.clone()), |a, b| a + b) + eps;
    let squares = pairs(a.mean.clone(), b.mean.clone(), |a, b| a - b).powi_scalar(2);
    let log_product = pairs(a.log_var.clone(), b.log_var.clone(), |a, b| a + b) * 0.5;
    let sigmas = log_product - sum.clone().log() + 2.0_f64.ln();
    let log_c = sigmas * root - squares / sum * 0.25;
    log_c.clamp(EPS.ln(), 0.0).sum_dim(2).squeeze_dim(2)
}

fn root_of_rest(log_affinity: Tensor<2>) -> Tensor<2> {
    (-exp(log_affinity) + 1.0)
        .clamp_min(MIN_SQUARED_HELLINGER)
        .sqrt()
}

/// The textbook distance, as released.
pub fn hellinger(a: &Latent, b: &Latent) -> Tensor<2> {
    root_of_rest(log_affinity(a, b, 0.5, EPS))
}

/// As printed.
pub fn hellinger_paper(a: &Latent, b: &Latent) -> Tensor<2> {
    root_of_rest(log_affinity(a, b, 1.0, 0.0)) * 0.5_f64.sqrt()
}

/// The released code's, with 1e-6 under the root.
pub fn wasserstein(a: &Latent, b: &Latent) -> Tensor<2> {
    (wasserstein_paper(a, b) + EPS).sqrt()
}

/// The square of the distance.
pub fn wasserstein_paper(a: &Latent, b: &Latent) -> Tensor<2> {
    let deviation = |x: &Latent| exp(x.log_var.clone() * 0.5);
    let joined = |x: &Latent| Tensor::cat(vec![x.mean.clone(), deviation(x)], 1);
    squared_distances(joined(a), joined(b))
}
