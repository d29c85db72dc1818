//! What a run says about itself: one record per logged step and per evaluation, with the keys of
//! `metrics.jsonl`.

pub mod scalars;

use lpr_data::DataPosition;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::Value as Json;

use crate::balance::{BalanceError, LoadCounts, LoadMetrics, LoadTracker};
use crate::stability::StabilityTotals;

/// The keys whose values depend on the machine and the hour. Everything else repeats exactly.
pub const TIMING_KEYS: [&str; 4] = ["tok_s", "data_wait_ms", "step_time_ms", "wall_time"];

/// A line of `metrics.jsonl` without what depends on the machine and the hour.
pub fn without_timing(mut line: Json) -> Json {
    if let Some(fields) = line.as_object_mut() {
        fields.retain(|key, _| !TIMING_KEYS.contains(&key.as_str()));
    }
    line
}

/// A logged optimizer step. Numbers that are not finite become `null` in JSON.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepRecord {
    /// Optimizer steps done, this one included.
    pub step: u64,
    /// Passes over the training data begun before this one.
    pub epoch: u64,
    /// Tokens trained on since the beginning of the run, without padding.
    pub tokens_seen: u64,
    /// Mean cross-entropy of the step, in nats per target.
    pub loss_ce: f64,
    /// Cross-entropy plus the weighted router losses of the step.
    pub loss_total: f64,
    /// The router losses by name, not weighted; `aux.<name>` in JSON.
    #[serde(flatten, serialize_with = "serialize_aux")]
    pub aux: Vec<(String, f64)>,
    /// Norm of all gradients together before clipping.
    pub grad_norm: f64,
    /// Learning rate of the step.
    pub lr: f64,
    /// Tokens per second since the last record, without padding.
    pub tok_s: f64,
    /// Mean time per step spent waiting for data since the last record, in milliseconds.
    pub data_wait_ms: f64,
    /// Mean time per step since the last record, in milliseconds.
    pub step_time_ms: f64,
    /// Seconds since 1970.
    pub wall_time: f64,
    /// Steps that were skipped, and why.
    #[serde(flatten)]
    pub stability: StabilityTotals,
    /// What became of the training data since the beginning of the run.
    pub data: DataRecord,
    /// Expert load of the steps that were applied since the last record.
    #[serde(flatten)]
    pub balance: BalanceRecord,
}

/// What became of the training data since the beginning of the run; nothing is lost uncounted.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct DataRecord {
    /// Documents trained on, in whole or in part.
    pub documents: u64,
    /// Documents without enough text.
    pub skipped_documents: u64,
    /// Lines that could not be read.
    pub bad_lines: u64,
    /// Files given up on.
    pub bad_shards: u64,
    /// Padding among all positions.
    pub padding_ratio: f64,
    /// Cut tokens among all tokens of the documents.
    pub cut_ratio: f64,
    /// Tokens trained on from each source of `data.weights`; one number without weights.
    pub source_tokens: Vec<u64>,
}

impl DataRecord {
    /// The counts of a position.
    pub fn new(data: &DataPosition) -> Self {
        Self {
            documents: data.documents,
            skipped_documents: data.skipped_documents,
            bad_lines: data.bad_lines,
            bad_shards: data.bad_shards,
            padding_ratio: data.padding_ratio(),
            cut_ratio: data.cut_ratio(),
            source_tokens: data.sources.iter().map(|source| source.tokens).collect(),
        }
    }
}

fn serialize_aux<S: Serializer>(aux: &[(String, f64)], serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(aux.len()))?;
    for (name, value) in aux {
        map.serialize_entry(&format!("aux.{name}"), value)?;
    }
    map.end()
}

/// An evaluation during a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EvalRecord {
    /// Optimizer steps done.
    pub step: u64,
    /// Seconds since 1970.
    pub wall_time: f64,
    /// What was found.
    pub eval: EvalSummary,
}

/// Loss and expert load on some data.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EvalSummary {
    /// Mean cross-entropy per target, in nats; no router losses.
    pub loss: f64,
    /// The paper's mean: cross-entropy per target of each batch, averaged over batches by their rows.
    /// Depends on `eval.rows_per_batch`.
    pub loss_batch_mean: f64,
    /// `exp(loss)`.
    pub perplexity: f64,
    /// Targets that the loss is the mean of.
    pub tokens: u64,
    /// Expert load on the same tokens.
    #[serde(flatten)]
    pub balance: BalanceRecord,
}

/// Expert load of all layers: means over the layers, except `dead_experts`, which is their sum.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct BalanceRecord {
    /// Exact, without padding.
    pub gini: f64,
    /// Exact, without padding.
    pub min_max_ratio: f64,
    /// Experts that no token chose, padding left out.
    pub dead_experts: usize,
    /// Exact, over all positions.
    pub gini_with_padding: f64,
    /// Exact, over all positions.
    pub min_max_ratio_with_padding: f64,
    /// The paper-compatible figures; only in training.
    #[serde(flatten)]
    pub smoothed: Option<SmoothedLoad>,
    /// The layers one by one.
    pub layers: Vec<LayerRecord>,
}

/// The paper-compatible figures of the smoothed load (see [`LoadTracker`]), padding included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct SmoothedLoad {
    /// Of the choices.
    pub gini_ema: f64,
    /// Of the choices.
    pub min_max_ratio_ema: f64,
    /// Of the routing weights.
    pub gini_ema_soft: f64,
    /// Of the routing weights.
    pub min_max_ratio_ema_soft: f64,
}

/// Expert load of one layer; exact and without padding unless the name says otherwise.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerRecord {
    /// Index of the layer.
    pub layer: usize,
    /// See [`LoadMetrics::gini`].
    pub gini: f64,
    /// See [`LoadMetrics::min_max_ratio`].
    pub min_max_ratio: f64,
    /// See [`LoadMetrics::cv`].
    pub cv: f64,
    /// See [`LoadMetrics::max_over_mean`].
    pub max_over_mean: f64,
    /// See [`LoadMetrics::normalized_entropy`].
    pub normalized_entropy: f64,
    /// Experts that no token chose.
    pub dead_experts: usize,
    /// Over all positions.
    pub gini_with_padding: f64,
    /// Over all positions.
    pub min_max_ratio_with_padding: f64,
    /// The paper-compatible figures; only in training.
    #[serde(flatten)]
    pub smoothed: Option<SmoothedLoad>,
    /// Choices per expert.
    pub counts: Vec<u64>,
    /// Choices per expert over all positions.
    pub counts_with_padding: Vec<u64>,
}

impl BalanceRecord {
    /// The figures of a window: `counts` per layer, and the trackers of the same layers in
    /// training.
    ///
    /// # Errors
    /// [`BalanceError::InvalidLoad`] if a tracker is damaged.
    ///
    /// # Panics
    /// If the numbers of layers differ.
    pub fn new(
        counts: &[LoadCounts],
        trackers: Option<&[LoadTracker]>,
    ) -> Result<Self, BalanceError> {
        if let Some(trackers) = trackers {
            assert_eq!(
                counts.len(),
                trackers.len(),
                "counts and trackers of different numbers of layers"
            );
        }
        let tracker = |layer: usize| trackers.map(|trackers| &trackers[layer]);
        let layers = counts
            .iter()
            .enumerate()
            .map(|(layer, counts)| LayerRecord::new(layer, counts, tracker(layer)));
        let layers: Vec<LayerRecord> = layers.collect::<Result<_, _>>()?;
        let mean = |figure: fn(&LayerRecord) -> f64| mean(layers.iter().map(figure));
        Ok(Self {
            gini: mean(|layer| layer.gini),
            min_max_ratio: mean(|layer| layer.min_max_ratio),
            dead_experts: layers.iter().map(|layer| layer.dead_experts).sum(),
            gini_with_padding: mean(|layer| layer.gini_with_padding),
            min_max_ratio_with_padding: mean(|layer| layer.min_max_ratio_with_padding),
            smoothed: trackers.map(|_| SmoothedLoad::mean(&layers)),
            layers,
        })
    }
}

impl LayerRecord {
    fn new(
        layer: usize,
        counts: &LoadCounts,
        tracker: Option<&LoadTracker>,
    ) -> Result<Self, BalanceError> {
        let exact = LoadMetrics::from_counts(&counts.without_padding);
        let padded = LoadMetrics::from_counts(&counts.with_padding);
        Ok(Self {
            layer,
            gini: exact.gini,
            min_max_ratio: exact.min_max_ratio,
            cv: exact.cv,
            max_over_mean: exact.max_over_mean,
            normalized_entropy: exact.normalized_entropy,
            dead_experts: exact.dead_experts,
            gini_with_padding: padded.gini,
            min_max_ratio_with_padding: padded.min_max_ratio,
            smoothed: tracker.map(SmoothedLoad::new).transpose()?,
            counts: counts.without_padding.clone(),
            counts_with_padding: counts.with_padding.clone(),
        })
    }
}

impl SmoothedLoad {
    fn new(tracker: &LoadTracker) -> Result<Self, BalanceError> {
        let (hard, soft) = (tracker.hard_metrics()?, tracker.soft_metrics()?);
        Ok(Self {
            gini_ema: hard.gini,
            min_max_ratio_ema: hard.min_max_ratio,
            gini_ema_soft: soft.gini,
            min_max_ratio_ema_soft: soft.min_max_ratio,
        })
    }

    fn mean(layers: &[LayerRecord]) -> Self {
        let mean = |figure: fn(&Self) -> f64| {
            mean(
                layers
                    .iter()
                    .filter_map(|layer| layer.smoothed.as_ref().map(figure)),
            )
        };
        Self {
            gini_ema: mean(|load| load.gini_ema),
            min_max_ratio_ema: mean(|load| load.min_max_ratio_ema),
            gini_ema_soft: mean(|load| load.gini_ema_soft),
            min_max_ratio_ema_soft: mean(|load| load.min_max_ratio_ema_soft),
        }
    }
}

/// The mean, 0 of nothing.
fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0_u32), |(sum, count), value| (sum + value, count + 1));
    if count == 0 {
        0.0
    } else {
        sum / f64::from(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts() -> Vec<LoadCounts> {
        vec![
            LoadCounts {
                with_padding: vec![4, 4],
                without_padding: vec![3, 1],
            },
            LoadCounts {
                with_padding: vec![8, 0],
                without_padding: vec![4, 0],
            },
        ]
    }

    fn step_record() -> StepRecord {
        let mut trackers = vec![LoadTracker::new(2); 2];
        for (tracker, counts) in trackers.iter_mut().zip(counts()) {
            tracker.update(&counts.with_padding, &[1.0, 3.0]);
        }
        StepRecord {
            step: 7,
            epoch: 0,
            tokens_seen: 28,
            loss_ce: 5.5,
            loss_total: 5.75,
            aux: vec![
                ("kl_loss".to_owned(), 0.5),
                ("diversity_loss".to_owned(), f64::NAN),
            ],
            grad_norm: 1.5,
            lr: 1e-3,
            tok_s: 100.0,
            data_wait_ms: 0.5,
            step_time_ms: 20.0,
            stability: StabilityTotals::default(),
            wall_time: 1.0,
            data: DataRecord::default(),
            balance: BalanceRecord::new(&counts(), Some(&trackers)).expect("finite"),
        }
    }

    #[test]
    fn figures_are_means_over_layers_and_dead_experts_their_sum() {
        let balance = BalanceRecord::new(&counts(), None).expect("finite");
        assert_eq!(
            (balance.gini, balance.min_max_ratio, balance.dead_experts),
            (0.375, 1.0 / 6.0, 1)
        );
        assert_eq!(
            (
                balance.gini_with_padding,
                balance.min_max_ratio_with_padding
            ),
            (0.25, 0.5)
        );
        assert_eq!(balance.layers[0].counts, [3, 1]);
        assert_eq!(balance.smoothed, None);
        assert_eq!(
            BalanceRecord::new(&[], None).expect("nothing is fine"),
            BalanceRecord::default()
        );
    }

    #[test]
    fn a_step_has_the_keys_of_the_file_in_a_fixed_order() {
        let text = serde_json::to_string(&step_record()).expect("json");
        let keys = [
            "step",
            "epoch",
            "tokens_seen",
            "loss_ce",
            "loss_total",
            "aux.kl_loss",
            "aux.diversity_loss",
            "grad_norm",
            "lr",
            "tok_s",
            "data_wait_ms",
            "step_time_ms",
            "wall_time",
            "nonfinite_total",
            "spikes_total",
            "skipped_total",
            "rollbacks_total",
            "data",
            "gini",
            "min_max_ratio",
            "dead_experts",
            "gini_with_padding",
            "min_max_ratio_with_padding",
            "gini_ema",
            "min_max_ratio_ema",
            "gini_ema_soft",
            "min_max_ratio_ema_soft",
            "layers",
        ];
        let places: Vec<usize> = keys
            .iter()
            .map(|key| {
                text.find(&format!("\"{key}\":"))
                    .unwrap_or_else(|| panic!("{key} in {text}"))
            })
            .collect();
        assert!(places.is_sorted(), "{text}");
        let value: Json = serde_json::from_str(&text).expect("json");
        assert_eq!(value.as_object().expect("object").len(), keys.len());
        assert!(
            value["aux.diversity_loss"].is_null(),
            "what is not a number is null"
        );
        assert_eq!(value["gini_ema"], 0.25);
        assert_eq!(value["gini_ema_soft"], 0.25);
        assert_eq!(value["layers"][1]["min_max_ratio_ema"], 0.0);
    }

    #[test]
    fn without_timing_two_runs_can_be_compared() {
        let line = serde_json::to_value(step_record()).expect("json");
        let rest = without_timing(line.clone());
        let dropped =
            line.as_object().expect("object").len() - rest.as_object().expect("object").len();
        assert_eq!(dropped, TIMING_KEYS.len());
        assert_eq!(rest["loss_ce"], 5.5);
    }

    #[test]
    fn an_evaluation_is_told_apart_from_a_step() {
        let balance = BalanceRecord::new(&counts(), None).expect("finite");
        let eval = EvalSummary {
            loss: 2.0,
            loss_batch_mean: 2.0,
            perplexity: 2_f64.exp(),
            tokens: 9,
            balance,
        };
        let value = serde_json::to_value(EvalRecord {
            step: 3,
            wall_time: 1.0,
            eval,
        })
        .expect("json");
        assert_eq!(
            (&value["step"], &value["eval"]["tokens"]),
            (&Json::from(3), &Json::from(9))
        );
        assert!(value["loss_ce"].is_null());
        for key in [
            "layer",
            "gini",
            "min_max_ratio",
            "cv",
            "dead_experts",
            "counts",
        ] {
            assert!(!value["eval"]["layers"][0][key].is_null(), "{key}");
        }
        assert!(value["eval"].get("gini_ema").is_none());
    }
}
