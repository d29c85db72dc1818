use burn::tensor::{Device, TensorData};

use super::*;
use crate::parameters::{ParameterVisitor, visit_parameters};
use crate::random::Stream;
use crate::router::LatentNoise;

const HIDDEN: usize = 6;
const SIZES: RouterSizes = RouterSizes {
    hidden_size: HIDDEN,
    num_experts: 5,
    top_k: 2,
};

fn normal(name: &str, rows: usize, width: usize, device: &Device) -> Tensor<2> {
    let values = Stream::new(8).child(name).standard_normal(rows * width);
    Tensor::from_data(TensorData::new(values, [rows, width]), device)
}

fn config() -> LprConfig {
    LprConfig {
        latent_dim: 3,
        ..LprConfig::default()
    }
}

fn router(config: &LprConfig, device: &Device) -> LprRouter {
    config.init(&SIZES, &ParamInit::new(4, 0.7, device))
}

/// Losses over `rows` tokens with the noise called `name`.
fn losses(rows: usize, name: &str, is_token: Option<&[f32]>, device: &Device) -> LossContext {
    LossContext {
        is_token: is_token.map(|mask| Tensor::from_floats(mask, device)),
        num_groups: 1,
        noise: LatentNoise::Given(vec![normal(name, rows, 3, device)]),
        step_load: None,
    }
}

fn route(router: &LprRouter, x: Tensor<2>, losses: Option<&LossContext>) -> Routing {
    router.route(x, &RouteContext { layer: 0, losses })
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

fn assert_close(a: &[f32], b: &[f32], what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    for (a, b) in a.iter().zip(b) {
        assert!((a - b).abs() <= 1e-5 * b.abs().max(1.0), "{what}: {a} {b}");
    }
}

/// Every form of every loss, with every update of prototypes.
fn variants() -> Vec<LprConfig> {
    let mut all = Vec::new();
    for diversity in [
        DiversityKind::Orthogonal,
        DiversityKind::Cosine,
        DiversityKind::Euclidean,
    ] {
        for (alignment, alignment_reduce, prototype_ema) in [
            (
                AlignmentForm::CodeL1,
                AlignmentReduce::Sum,
                PrototypeEma::Official,
            ),
            (
                AlignmentForm::PaperL2,
                AlignmentReduce::Sum,
                PrototypeEma::PaperHard,
            ),
            (
                AlignmentForm::PaperL2,
                AlignmentReduce::TokenMean,
                PrototypeEma::PaperSoft,
            ),
            (
                AlignmentForm::PaperL2,
                AlignmentReduce::Mean,
                PrototypeEma::Off,
            ),
        ] {
            all.push(LprConfig {
                diversity,
                alignment,
                alignment_reduce,
                prototype_ema,
                ..config()
            });
        }
    }
    all
}

#[test]
fn masked_padding_is_as_if_it_were_not_there() {
    let device = Device::flex();
    let (x, pads) = (
        normal("x", 7, HIDDEN, &device),
        normal("pad", 2, HIDDEN, &device),
    );
    let padded = Tensor::cat(vec![x.clone(), pads], 0);
    let mask = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0];
    for config in variants() {
        let masked = LprConfig {
            padding: Padding::Masked,
            ..config.clone()
        };
        // The noise of nine tokens begins with that of seven.
        let of = |config: &LprConfig, x: &Tensor<2>, is_token: Option<&[f32]>| {
            let rows = x.dims()[0];
            let context = losses(rows, "noise", is_token, &device);
            route(&router(config, &device), x.clone(), Some(&context))
        };
        let (want, got) = (of(&masked, &x, None), of(&masked, &padded, Some(&mask)));
        let counted = of(&config, &padded, Some(&mask));
        for ((want, got), counted) in want.terms.iter().zip(&got.terms).zip(&counted.terms) {
            let what = format!("{} of {config:?}", want.name);
            let (want, got) = (values(want.value.clone()), values(got.value.clone()));
            assert_close(&got, &want, &what);
            let counted = values(counted.value.clone());
            let moved = (counted[0] - want[0]).abs() > 1e-4;
            assert_eq!(moved, !what.starts_with(DIVERSITY_PROTOTYPES), "{what}");
        }
        assert_eq!(
            want.prototype_sums.is_some(),
            config.prototype_ema != PrototypeEma::Off
        );
        if let (Some(want), Some(got)) = (want.prototype_sums, got.prototype_sums) {
            assert_close(&values(got.latents), &values(want.latents), "latents");
            assert_close(&values(got.shares), &values(want.shares), "shares");
        }
    }
}

#[test]
fn groups_are_averaged_whether_or_not_padding_is_masked() {
    let device = Device::flex();
    let x = normal("x", 8, HIDDEN, &device);
    let mask = [1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0];
    for config in variants() {
        let config = LprConfig {
            padding: Padding::Masked,
            ..config
        };
        let router = router(&config, &device);
        let noise = normal("noise", 8, 3, &device);
        let terms = |start: usize, length: usize, num_groups: usize| -> Vec<f32> {
            let context = LossContext {
                is_token: Some(Tensor::from_floats(&mask[start..start + length], &device)),
                num_groups,
                noise: LatentNoise::Given(vec![noise.clone().narrow(0, start, length)]),
                step_load: None,
            };
            let routing = route(&router, x.clone().narrow(0, start, length), Some(&context));
            routing
                .terms
                .iter()
                .flat_map(|t| values(t.value.clone()))
                .collect()
        };
        let (one, other) = (terms(0, 4, 1), terms(4, 4, 1));
        let mean: Vec<f32> = one.iter().zip(&other).map(|(a, b)| (a + b) / 2.0).collect();
        assert_close(&terms(0, 8, 2), &mean, &format!("{config:?}"));
    }
}

#[test]
fn a_micro_batch_of_padding_alone_has_finite_losses_and_gradients() {
    let device = Device::flex().autodiff();
    for config in variants() {
        let config = LprConfig {
            padding: Padding::Masked,
            ..config
        };
        let context = losses(4, "noise", Some(&[0.0; 4]), &device);
        let x = normal("x", 4, HIDDEN, &device).require_grad();
        let routing = route(&router(&config, &device), x.clone(), Some(&context));
        let terms = routing.terms.into_iter().map(|term| term.value);
        let loss = terms.reduce(|a, b| a + b).expect("there are terms");
        assert!(values(loss.clone())[0].is_finite(), "{config:?}");
        let gradient = x.grad(&loss.backward()).map(values);
        let gradient = gradient.unwrap_or_default();
        assert!(
            gradient.iter().all(|g| *g == 0.0),
            "{config:?}: {gradient:?}"
        );
    }
}

#[test]
fn noise_moves_tokens_only_if_samples_are_scored_and_only_in_training() {
    let device = Device::flex();
    let x = normal("x", 9, HIDDEN, &device);
    for score in [Score::Mean, Score::Sample] {
        let router = router(&LprConfig { score, ..config() }, &device);
        let scores =
            |losses: Option<&LossContext>| values(route(&router, x.clone(), losses).router_logits);
        let evaluated = scores(None);
        let one = scores(Some(&losses(9, "one", None, &device)));
        let other = scores(Some(&losses(9, "other", None, &device)));
        assert_eq!(one == other, score == Score::Mean);
        assert_eq!(one == evaluated, score == Score::Mean);
    }
}

#[test]
fn diversity_is_taken_over_what_was_asked_for() {
    let device = Device::flex();
    let x = normal("x", 9, HIDDEN, &device);
    let names = |diversity_on| -> Vec<&str> {
        let router = router(
            &LprConfig {
                diversity_on,
                ..config()
            },
            &device,
        );
        let context = losses(9, "noise", None, &device);
        let terms = route(&router, x.clone(), Some(&context)).terms;
        let names = terms.into_iter().map(|term| term.name);
        names.filter(|name| name.starts_with("diversity")).collect()
    };
    assert_eq!(
        names(DiversityOn::Both),
        [DIVERSITY_TOKENS, DIVERSITY_PROTOTYPES]
    );
    assert_eq!(names(DiversityOn::Tokens), [DIVERSITY_TOKENS]);
    assert_eq!(names(DiversityOn::Prototypes), [DIVERSITY_PROTOTYPES]);
}

/// The router after a step that showed it `x`.
fn stepped(router: LprRouter, x: &Tensor<2>, losses: &LossContext) -> LprRouter {
    let routing = route(&router, x.clone(), Some(losses));
    router.after_step(&StepStatistics::new(&routing, None))
}

#[test]
fn every_update_moves_prototypes_that_stay_trained_and_state_that_is_not() {
    struct Trained(Vec<(String, bool)>);
    impl ParameterVisitor for Trained {
        fn visit<const D: usize>(&mut self, name: &str, parameter: &Param<Tensor<D>>) {
            self.0
                .push((name.to_owned(), parameter.val().is_require_grad()));
        }
    }
    let device = Device::flex().autodiff();
    let x = normal("x", 9, HIDDEN, &device);
    let context = losses(9, "noise", None, &device);
    for prototype_ema in [
        PrototypeEma::Off,
        PrototypeEma::Official,
        PrototypeEma::PaperHard,
        PrototypeEma::PaperSoft,
    ] {
        let before = router(
            &LprConfig {
                prototype_ema,
                ..config()
            },
            &device,
        );
        let old = values(before.prototypes.val());
        let after = stepped(before, &x, &context);
        assert_eq!(
            values(after.prototypes.val()) == old,
            prototype_ema == PrototypeEma::Off
        );
        let mut trained = Trained(Vec::new());
        visit_parameters(&after, &mut trained);
        for (name, requires_grad) in &trained.0 {
            assert_eq!(*requires_grad, !name.starts_with("running."), "{name}");
        }
        let has_state = trained.0.iter().any(|(name, _)| name == "running.sums");
        assert_eq!(has_state, prototype_ema == PrototypeEma::Official);
        // Gradients still arrive.
        let routing = route(&after, x.clone(), Some(&context));
        let gradients = routing.routing_weights.powi_scalar(2).sum().backward();
        assert!(after.prototypes.val().grad(&gradients).is_some());
    }
}

#[test]
fn under_constant_input_prototypes_converge_to_its_mean_and_unused_ones_stay() {
    let device = Device::flex();
    let shares = Tensor::<2>::from_data([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]], &device);
    let latents = Tensor::<2>::from_data([[1.0, 2.0], [2.0, 4.0], [6.0, 0.0]], &device);
    let step = PrototypeSums::new(shares, latents);
    let start = Tensor::<2>::from_data([[9.0, 9.0], [-5.0, 7.0]], &device);
    let mut paper = start.clone();
    let (mut sums, mut counts) = (start.clone(), Tensor::<1>::zeros([2], &device));
    let mut official = start;
    for _ in 0..60 {
        paper = paper_update(paper, &step, 0.8);
        (sums, counts, official) = official_update(sums, counts, &step, 0.8);
    }
    assert_close(&values(paper), &[3.0, 2.0, -5.0, 7.0], "paper");
    let official = values(official);
    assert_close(&official[..2], &[3.0, 2.0], "official");
    assert!(official[2..].iter().all(|x| x.is_finite()), "{official:?}");
}
