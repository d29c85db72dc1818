//! What the traces of a run say together.

use lpr_data::{Split, Tokenizer};
use serde::Serialize;

use super::classes::{TokenClass, classify};
use super::parallel::{self, Costs, Layout, Prediction};
use super::specialization::{self, LayerSpecialization};
use super::stability::{self, LayerStability};
use super::trace::{Recording, Trace};

/// The findings; what `lpr-train routing --json` prints.
#[derive(Debug, Serialize)]
pub struct Findings {
    /// Steps of the traces of training steps.
    pub train_steps: Vec<u64>,
    /// Steps of the traces of evaluations.
    pub validation_steps: Vec<u64>,
    /// What the experts specialize in, from the newest evaluation, or the newest step if there is
    /// none.
    pub specialization: Option<Specialization>,
    /// How much stayed from each traced evaluation to the next.
    pub stability: Vec<Interval>,
    /// Evaluations that could not be compared with the one before, because their tokens are others.
    pub not_comparable: usize,
    /// What the load would cost, from the traced steps, or the evaluations if there are none.
    pub expert_parallelism: Option<Parallelism>,
}

/// What the experts specialize in.
#[derive(Debug, Serialize)]
pub struct Specialization {
    /// Optimizer steps done.
    pub step: u64,
    /// `train` or `validation`.
    pub split: String,
    /// Tokens looked at, padding left out.
    pub tokens: usize,
    /// The classes, in the order of the figures of each expert.
    pub classes: Vec<TokenClass>,
    /// Share of each class in the tokens.
    pub class_shares: Vec<f64>,
    /// The layers with experts.
    pub layers: Vec<LayerSpecialization>,
}

/// How much stayed between two evaluations.
#[derive(Debug, Serialize)]
pub struct Interval {
    /// Step of the first.
    pub from_step: u64,
    /// Step of the second.
    pub to_step: u64,
    /// Mean over the layers.
    pub mean: LayerStability,
    /// The layers with experts.
    pub layers: Vec<LayerStability>,
}

/// What the load would cost if the experts were spread over ranks.
#[derive(Debug, Serialize)]
pub struct Parallelism {
    /// `train`: micro-batches of steps; `validation`: batches of evaluations.
    pub split: String,
    /// Numbers of ranks.
    pub ranks: Vec<usize>,
    /// Numbers of ranks that do not divide the experts of a layer.
    pub ranks_left_out: Vec<usize>,
    /// Capacity factors.
    pub capacity_factors: Vec<f64>,
    /// Over all steps and layers.
    pub all: Prediction,
    /// The steps, over all layers.
    pub steps: Vec<StepPrediction>,
    /// The layers, over all steps.
    pub layers: Vec<Prediction>,
}

/// The costs of one step.
#[derive(Debug, Serialize)]
pub struct StepPrediction {
    /// Optimizer steps done.
    pub step: u64,
    /// Its costs.
    #[serde(flatten)]
    pub costs: Prediction,
}

/// Takes in the traces of a run one by one; holds on to the newest ones only.
pub struct Summary {
    layout: Layout,
    ranks_left_out: Vec<usize>,
    train: Side,
    validation: Side,
    stability: Vec<Interval>,
    not_comparable: usize,
}

/// The traces of one split.
#[derive(Default)]
struct Side {
    newest: Option<Trace>,
    steps: Vec<(u64, Costs)>,
    layers: Vec<Costs>,
}

impl Summary {
    /// Nothing yet, for a model with `num_experts` experts in a layer. Numbers of ranks that do not
    /// divide them are left out.
    pub fn new(ranks: &[u64], capacity_factors: &[f64], num_experts: usize) -> Self {
        let ranks = ranks.iter().map(|&ranks| ranks as usize);
        let (ranks, ranks_left_out) = ranks.partition(|&ranks| num_experts.is_multiple_of(ranks));
        Self {
            layout: Layout {
                ranks,
                capacity_factors: capacity_factors.to_vec(),
            },
            ranks_left_out,
            train: Side::default(),
            validation: Side::default(),
            stability: Vec::new(),
            not_comparable: 0,
        }
    }

    /// Takes in the next trace; those of a split come in the order of their steps, all of a model of
    /// one shape.
    pub fn add(&mut self, trace: Trace) {
        let side = match trace.split {
            Split::Train => &mut self.train,
            Split::Validation => &mut self.validation,
        };
        let layers = parallel::layers(&trace.recording, &self.layout);
        let mut all = Costs::default();
        side.layers.resize(layers.len(), Costs::default());
        for (sum, costs) in side.layers.iter_mut().zip(&layers) {
            sum.merge(costs);
            all.merge(costs);
        }
        side.steps.push((trace.step, all));
        let before = side
            .newest
            .take()
            .filter(|trace| trace.split == Split::Validation);
        if let Some(before) = before {
            if stability::is_comparable(&before.recording, &trace.recording) {
                self.stability.push(Interval::new(&before, &trace));
            } else {
                self.not_comparable += 1;
            }
        }
        side.newest = Some(trace);
    }

    /// The findings; `tokenizer` is that of the run.
    pub fn finish(self, tokenizer: &Tokenizer) -> Findings {
        let steps = |side: &Side| side.steps.iter().map(|(step, _)| *step).collect();
        let (train_steps, validation_steps) = (steps(&self.train), steps(&self.validation));
        let newest = self
            .validation
            .newest
            .as_ref()
            .or(self.train.newest.as_ref());
        let specialization = newest.map(|trace| Specialization::new(trace, tokenizer));
        let (side, split) = if self.train.steps.is_empty() {
            (self.validation, Split::Validation)
        } else {
            (self.train, Split::Train)
        };
        let parallelism = Parallelism::new(&side, split, self.layout, self.ranks_left_out);
        Findings {
            expert_parallelism: (!side.steps.is_empty()).then_some(parallelism),
            train_steps,
            validation_steps,
            specialization,
            stability: self.stability,
            not_comparable: self.not_comparable,
        }
    }
}

impl Specialization {
    fn new(trace: &Trace, tokenizer: &Tokenizer) -> Self {
        let recording: &Recording = &trace.recording;
        let found = classify(recording, tokenizer);
        let share = |class: &TokenClass| {
            let of_class = found.iter().filter(|found| *found == class).count();
            of_class as f64 / found.len().max(1) as f64
        };
        let layers = 0..recording.layers.len();
        Self {
            step: trace.step,
            split: trace.split.to_string(),
            tokens: found.len(),
            classes: TokenClass::ALL.to_vec(),
            class_shares: TokenClass::ALL.iter().map(share).collect(),
            layers: layers
                .map(|layer| specialization::layer(recording, layer, &found))
                .collect(),
        }
    }
}

impl Interval {
    fn new(before: &Trace, after: &Trace) -> Self {
        let layers = 0..after.recording.layers.len();
        let layers =
            layers.map(|layer| stability::layer(&before.recording, &after.recording, layer));
        let layers: Vec<LayerStability> = layers.collect();
        Self {
            from_step: before.step,
            to_step: after.step,
            mean: LayerStability::mean(&layers),
            layers,
        }
    }
}

impl Parallelism {
    fn new(side: &Side, split: Split, layout: Layout, ranks_left_out: Vec<usize>) -> Self {
        let mut all = Costs::default();
        side.layers.iter().for_each(|costs| all.merge(costs));
        let step = |(step, costs): &(u64, Costs)| StepPrediction {
            step: *step,
            costs: costs.prediction(),
        };
        Self {
            split: split.to_string(),
            ranks: layout.ranks,
            ranks_left_out,
            capacity_factors: layout.capacity_factors,
            all: all.prediction(),
            steps: side.steps.iter().map(step).collect(),
            layers: side.layers.iter().map(Costs::prediction).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::trace::tests::trace;
    use super::*;

    /// One choice among four experts for each byte of a text.
    fn traced(step: u64, split: Split, text: &str, chosen: &[u16]) -> Trace {
        let ids: Vec<u32> = text.bytes().map(u32::from).collect();
        let chosen: Vec<_> = chosen.iter().map(|&expert| vec![expert]).collect();
        Trace {
            step,
            split,
            recording: trace(&ids, &vec![true; ids.len()], &chosen, 4),
        }
    }

    fn summary(traces: Vec<Trace>) -> Findings {
        let mut summary = Summary::new(&[2, 3, 4], &[1.0], 4);
        for trace in traces {
            summary.add(trace);
        }
        summary.finish(&Tokenizer::open("bytes").expect("built in"))
    }

    #[test]
    fn each_figure_comes_from_the_traces_it_should() {
        let found = summary(vec![
            traced(0, Split::Validation, "a1b2", &[0, 0, 1, 1]),
            traced(10, Split::Train, "abcd", &[0, 1, 2, 3]),
            traced(10, Split::Validation, "a1b2", &[0, 2, 0, 2]),
            traced(20, Split::Train, "abcd", &[0, 0, 0, 0]),
            traced(20, Split::Validation, "other", &[0, 1, 2, 3, 0]),
        ]);
        assert_eq!(
            (found.train_steps, found.validation_steps),
            (vec![10, 20], vec![0, 10, 20])
        );
        let of_experts = found.specialization.expect("traces");
        assert_eq!((of_experts.step, of_experts.tokens), (20, 5));
        assert_eq!(of_experts.class_shares[..2], [0.2, 0.8]);
        // One of four stayed, the last evaluation is of another text.
        let [interval] = &found.stability[..] else {
            panic!("{:?}", found.stability)
        };
        assert_eq!((interval.from_step, interval.to_step), (0, 10));
        assert_eq!((interval.mean.overlap, interval.layers.len()), (0.25, 1));
        assert_eq!(found.not_comparable, 1);
        let costs = found.expert_parallelism.expect("traces");
        assert_eq!(
            (&costs.split[..], costs.ranks, costs.ranks_left_out),
            ("train", vec![2, 4], vec![3])
        );
        assert_eq!(costs.steps[0].costs.slow_down, [1.0, 1.0]);
        assert_eq!(costs.steps[1].costs.slow_down, [2.0, 4.0]);
        assert_eq!(costs.all.slow_down, [1.5, 2.5]);
        assert_eq!(costs.all.drop_rate, [3.0 / 8.0]);
        assert_eq!(costs.layers[0], costs.all);
    }

    #[test]
    fn steps_alone_and_evaluations_alone_say_what_they_can() {
        let found = summary(vec![traced(10, Split::Train, "ab", &[0, 1])]);
        assert_eq!(found.specialization.expect("a trace").split, "train");
        assert!(found.stability.is_empty());
        let found = summary(vec![traced(10, Split::Validation, "ab", &[0, 1])]);
        assert_eq!(
            found.expert_parallelism.expect("a trace").split,
            "validation"
        );
        let found = summary(Vec::new());
        assert!(found.specialization.is_none() && found.expert_parallelism.is_none());
    }
}
