//! Whether each coefficient of the config reaches the weights of the losses.

use std::fmt;
use std::ops::Deref;

use lpr_model::router::RouterKind;
use lpr_model::{CausalLm, LatentNoise, RouterLoss};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::DeadBalancer;
use crate::batch::MicroBatch;
use crate::step::loss_context;

/// Keys of `[router]` with this ending weigh a loss.
const ENDING: &str = "_weight";

/// What doubling a coefficient does.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CoefficientLiveness {
    /// The key of `[router]`.
    pub key: String,
    /// Its value, not zero.
    pub value: f64,
    /// Factor by which each term's weight grew; terms of weight zero are left out.
    pub growth: Vec<(&'static str, f64)>,
    /// Whether there are terms, but all of them have a weight of zero.
    pub all_off: bool,
}

impl CoefficientLiveness {
    /// What is wrong with the coefficient, if anything.
    ///
    /// # Errors
    /// [`DeadBalancer::Coefficient`] if no weight depends on it, or one not in proportion.
    pub fn verdict(&self) -> Result<(), DeadBalancer> {
        let is = |growth: f64, want: f64| (growth - want).abs() < 1e-9;
        let fault = if self.all_off {
            return Ok(());
        } else if self.growth.iter().all(|(_, growth)| is(*growth, 1.0)) {
            "is in no balance term's weight"
        } else if !self.growth.iter().all(|(_, g)| is(*g, 1.0) || is(*g, 2.0)) {
            "changes a balance term's weight out of proportion"
        } else {
            return Ok(());
        };
        Err(DeadBalancer::Coefficient {
            key: self.key.clone(),
            value: self.value,
            fault,
        })
    }
}

impl fmt::Display for CoefficientLiveness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let growing = self.growth.iter().filter(|(_, growth)| *growth > 1.0);
        let names: Vec<_> = growing.map(|(name, _)| *name).collect();
        let terms = match (names.as_slice(), self.all_off) {
            (_, true) => "every term is off".to_owned(),
            ([], false) => "weighs nothing".to_owned(),
            (names, false) => format!("weighs {}", names.join(", ")),
        };
        write!(f, "{:<24} {:<17.4} {terms}", self.key, self.value)
    }
}

/// Doubles each coefficient of `router` in turn and compares the weights of the losses.
pub fn probe_coefficients<R>(
    model: &CausalLm,
    router: &R,
    batch: &MicroBatch,
    noise: &LatentNoise,
) -> Vec<CoefficientLiveness>
where
    R: Deref<Target = dyn RouterKind> + Serialize + DeserializeOwned,
{
    let context = loss_context(&**router, batch, noise);
    let routings = model.forward(&batch.input, Some(&context)).routings;
    let losses = router.losses(&routings, &context);
    let all_off = !losses.is_empty() && losses.iter().all(|loss| loss.weight == 0.0);
    doubled(router)
        .into_iter()
        .map(|(key, value, changed)| CoefficientLiveness {
            key,
            value,
            growth: growth(&losses, &changed.losses(&routings, &context)),
            all_off,
        })
        .collect()
}

fn growth(before: &[RouterLoss], after: &[RouterLoss]) -> Vec<(&'static str, f64)> {
    let pairs = before.iter().zip(after);
    pairs
        .filter(|(before, _)| before.weight != 0.0)
        .map(|(before, after)| (before.name, after.weight / before.weight))
        .collect()
}

/// Every coefficient that is not zero: its key, its value, and `router` with twice that value.
fn doubled<R: Serialize + DeserializeOwned>(router: &R) -> Vec<(String, f64, R)> {
    let unreachable = "a router's configuration consists of numbers and words";
    let section = serde_json::to_value(router).expect(unreachable);
    let keys = section.as_object().into_iter().flatten();
    keys.filter(|(key, _)| key.ends_with(ENDING))
        .filter_map(|(key, value)| Some((key, value.as_f64()?)))
        .filter(|(_, value)| *value != 0.0)
        .map(|(key, value)| {
            let mut changed = section.clone();
            changed[key] = (2.0 * value).into();
            let changed = serde_json::from_value(changed).expect(unreachable);
            (key.clone(), value, changed)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(growth: &[(&'static str, f64)], all_off: bool) -> CoefficientLiveness {
        CoefficientLiveness {
            key: "kl_weight".to_owned(),
            value: 0.5,
            growth: growth.to_vec(),
            all_off,
        }
    }

    #[test]
    fn a_coefficient_must_double_the_weight_of_some_term() {
        for fine in [
            found(&[("kl", 2.0), ("alignment", 1.0)], false),
            found(&[("kl", 2.0), ("alignment", 2.0)], false),
            found(&[], true),
        ] {
            assert_eq!(fine.verdict(), Ok(()), "{fine}");
        }
        for (dead, words) in [
            (found(&[], false), "no balance term's weight"),
            (found(&[("kl", 1.0)], false), "no balance term's weight"),
            (found(&[("kl", 4.0)], false), "out of proportion"),
            (found(&[("kl", f64::NAN)], false), "out of proportion"),
        ] {
            let error = dead.verdict().expect_err("dead").to_string();
            assert!(error.contains(words), "{error}");
            assert!(error.contains("router.kl_weight = 0.5"), "{error}");
        }
    }
}
