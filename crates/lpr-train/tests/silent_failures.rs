//! The classic ways in which a balancer dies in silence, each injected here and caught by the checks
//! that every run makes.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::ops::Deref;
use std::sync::Arc;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, Tensor};
use lpr_data::{DataLoader, DataPosition, Split, Tokenizer};
use lpr_model::parameters::{parameter_values, with_parameter_values};
use lpr_model::router::{MovingState, RouterKind, RouterSizes};
use lpr_model::{
    CausalLm, ConfigProblem, DecoderConfig, LatentNoise, LossContext, RouterConfig, RouterLoss,
    Routing,
};
use lpr_train::batch::MicroBatch;
use lpr_train::config::RunConfig;
use lpr_train::liveness::{
    Movement, Strictness, Watch, check_counts, probe_coefficients, probe_state, probe_terms,
};
use lpr_train::optimizer::Optimizer;
use lpr_train::report::Reporters;
use lpr_train::session::{self, RunState};
use lpr_train::signals::StopRequest;
use lpr_train::step::{StepPlan, StepReport, train_step};
use lpr_train::trainer::Trainer;
use serde::{Deserialize, Serialize};

/// A small model with a router of these keys, on generated text, its run in `folder`.
fn config(folder: &std::path::Path, router: &str) -> RunConfig {
    let run_dir = folder.join("run").display().to_string();
    let text = format!(
        r#"
[model]
family = "qwen3_moe"
vocab_size = 257
hidden_size = 24
num_hidden_layers = 3
num_attention_heads = 2
num_key_value_heads = 1
head_dim = 8
moe_intermediate_size = 10
num_experts = 6
top_k = 2
[router]
{router}
[data]
train = ["builtin:synthetic"]
sequence_length = 32
packing = "packed"
[train]
total_steps = 6
micro_batch_size = 2
gradient_accumulation_steps = 2
run_dir = "{run_dir}"
[log]
every_steps = 2
"#
    );
    RunConfig::parse("x.toml", &text, &[]).unwrap_or_else(|errors| panic!("{errors}"))
}

const SOFTMAX: &str = "kind = \"softmax_topk\"\nz_loss_weight = 0.01";
const LPR: &str = "kind = \"lpr\"\nlatent_dim = 4";
const FROZEN: &str = "kind = \"sigmoid_topk\"\nbias_update_rate = 0.0";
const UPDATED: &str = "kind = \"sigmoid_topk\"\nbias_update_rate = 1e-3";

/// A config, the model that it describes, and what both work on.
struct Setup {
    folder: tempfile::TempDir,
    config: RunConfig,
    model: CausalLm,
    batches: Vec<MicroBatch>,
}

fn loader(config: &RunConfig) -> DataLoader {
    let tokenizer = Arc::new(Tokenizer::open("bytes").unwrap());
    let (rows, start) = (config.train.micro_batch_size, DataPosition::default());
    DataLoader::open(&config.data, Split::Train, rows, tokenizer, &start).unwrap()
}

impl Setup {
    fn new(router: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path(), router);
        let mut loader = loader(&config);
        let mut batch = || MicroBatch::new(&loader.next_batch().unwrap().unwrap(), &Device::flex());
        Self {
            folder,
            model: session::initial_model(&config, &Device::flex().autodiff()),
            batches: vec![batch(), batch()],
            config,
        }
    }

    fn noise(&self) -> LatentNoise {
        StepPlan::noise(self.config.train.seed, 0, 1).remove(0)
    }

    fn step(&self, model: CausalLm, learning_rate: f64) -> (CausalLm, StepReport) {
        let plan = StepPlan {
            learning_rate,
            max_grad_norm: 1.0,
            noise: StepPlan::noise(1, 0, 2),
            max_loss: f64::INFINITY,
            stop: lpr_train::signals::StopRequest::default(),
            traced_positions: 0,
            gradient_checkpointing: false,
        };
        let mut optimizer = Optimizer::new(&self.config.optimizer);
        let router = &self.config.router;
        train_step(model, &mut optimizer, router, &self.batches, &plan).unwrap()
    }
}

/// What a sabotaged router does to its losses.
#[derive(Clone, Copy, Serialize, Deserialize)]
enum Fault {
    /// The first term's graph is cut, as by a `detach` too many.
    DetachedTerm,
    /// The choice of the last layer is cut out of the graph.
    DetachedLayer,
    /// The z-loss is weighed by a constant instead of its coefficient.
    UnusedCoefficient,
}

/// A router with a fault in its losses; otherwise the one of the config.
#[derive(Serialize, Deserialize)]
struct Sabotaged {
    fault: Fault,
    #[serde(flatten)]
    router: RouterConfig,
}

impl Deref for Sabotaged {
    type Target = dyn RouterKind;

    fn deref(&self) -> &Self::Target {
        self
    }
}

impl RouterKind for Sabotaged {
    fn losses(&self, layers: &[Routing], context: &LossContext) -> Vec<RouterLoss> {
        let mut layers = layers.to_vec();
        if let Fault::DetachedLayer = self.fault {
            let last = layers.last_mut().unwrap();
            last.router_logits = last.router_logits.clone().detach();
        }
        let mut losses = self.router.losses(&layers, context);
        match self.fault {
            Fault::DetachedTerm => losses[0].value = losses[0].value.clone().detach(),
            Fault::UnusedCoefficient => losses[1].weight = 0.01,
            Fault::DetachedLayer => {}
        }
        losses
    }

    fn loss_group_rows(&self) -> usize {
        self.router.loss_group_rows()
    }

    fn moving_state(&self) -> Option<MovingState> {
        self.router.moving_state()
    }

    fn macs_per_token(&self, sizes: &RouterSizes) -> u64 {
        self.router.macs_per_token(sizes)
    }

    fn validate(&self, decoder: &DecoderConfig) -> Vec<ConfigProblem> {
        self.router.validate(decoder)
    }
}

/// The verdicts on the terms of a router with a fault, after the names of the terms.
fn faults(router: &str, fault: Fault, strictness: Strictness) -> Vec<(&'static str, String)> {
    let setup = Setup::new(router);
    let sabotaged = Sabotaged {
        fault,
        router: setup.config.router.clone(),
    };
    let (batch, noise) = (&setup.batches[0], setup.noise());
    let terms = probe_terms(&setup.model, &sabotaged, batch, &noise);
    let faulty = terms
        .iter()
        .filter_map(|t| Some((t.name, t.verdict(strictness).err()?.to_string())));
    faulty.collect()
}

#[test]
fn a_detached_loss_is_named() {
    for strictness in [Strictness::Initial, Strictness::Trained] {
        for (router, name) in [(SOFTMAX, "load_balancing"), (LPR, "kl")] {
            let found = faults(router, Fault::DetachedTerm, strictness);
            assert_eq!(found.len(), 1, "{found:?}");
            assert_eq!(found[0].0, name);
            assert!(
                found[0].1.contains("no gradient at the router"),
                "{found:?}"
            );
        }
    }
}

#[test]
fn a_layer_that_is_detached_is_named() {
    for strictness in [Strictness::Initial, Strictness::Trained] {
        let found = faults(SOFTMAX, Fault::DetachedLayer, strictness);
        let names: Vec<_> = found.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["load_balancing", "z"]);
        for (_, words) in found {
            assert!(words.contains("at the router of layer 2;"), "{words}");
        }
    }
}

#[test]
fn a_coefficient_that_nothing_uses_is_named() {
    let setup = Setup::new(SOFTMAX);
    let (batch, noise) = (&setup.batches[0], setup.noise());
    let probe = |fault| {
        let sabotaged = Sabotaged {
            fault,
            router: setup.config.router.clone(),
        };
        let found = probe_coefficients(&setup.model, &sabotaged, batch, &noise);
        let dead = found.iter().filter_map(|c| c.verdict().err());
        let dead: Vec<String> = dead.map(|fault| fault.to_string()).collect();
        (found.len(), dead)
    };
    let (number, dead) = probe(Fault::UnusedCoefficient);
    assert_eq!((number, dead.len()), (2, 1), "{dead:?}");
    assert!(
        dead[0].contains("router.z_loss_weight = 0.01 is in no"),
        "{dead:?}"
    );
    // The other faults are not the coefficients'.
    assert_eq!(probe(Fault::DetachedTerm), (2, Vec::new()));
}

/// Trains `model` as the configuration of `setup` says: the exit code, or also the message, and the
/// number of steps.
fn run(setup: &Setup, model: CausalLm) -> (Result<u8, (u8, String)>, u64) {
    let config = &setup.config;
    let loader = loader(config);
    let mut reporter = Reporters::new(Vec::new());
    let mut trainer = Trainer {
        config,
        device: Device::flex(),
        tokenizer: Arc::new(Tokenizer::open("bytes").unwrap()),
        optimizer: Optimizer::new(&config.optimizer),
        state: RunState::new(config, loader.fingerprint().clone()),
        loader,
        saver: lpr_train::saver::Saver::new(setup.folder.path().join("checkpoints"), None),
        save: lpr_train::signals::SaveRequest::default(),
        reporter: &mut reporter,
        stop: StopRequest::default(),
        watch: Watch::new(config),
        trace_routing: None,
    };
    let outcome = match trainer.run(model) {
        Ok(outcome) => Ok(outcome.exit_code()),
        Err(error) => Err((error.exit_code(), error.to_string())),
    };
    (outcome, trainer.state.step)
}

/// The model has another bias rate than the configuration: the first probe stops the run.
#[test]
fn a_frozen_bias_that_is_configured_as_updated_stops_the_run() {
    let setup = Setup::new(UPDATED);
    let frozen = config(setup.folder.path(), FROZEN);
    let device = Device::flex().autodiff();
    let (outcome, steps) = run(&setup, session::initial_model(&frozen, &device));
    let (code, message) = outcome.unwrap_err();
    assert_eq!((code, steps), (1, 0), "{message}");
    for words in [
        "router.bias_update_rate",
        "`correction_bias`",
        "layers 0, 1 and 2",
    ] {
        assert!(message.contains(words), "{message}");
    }
    assert_eq!(run(&setup, setup.model.clone()), (Ok(0), 6));
}

/// Takes the prototypes out of the parameters that are trained.
#[derive(Default)]
struct FreezePrototypes(Vec<String>);

impl ModuleMapper for FreezePrototypes {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.0.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.0.pop();
    }

    fn map_float<const D: usize>(&mut self, parameter: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if self.0.last().is_some_and(|name| name == "prototypes") {
            parameter.set_require_grad(false)
        } else {
            parameter
        }
    }
}

/// Every term still has a gradient at the encoders; only the log line shows what stands still.
#[test]
fn frozen_prototypes_stop_the_run_at_the_first_log_line() {
    let keys = "diversity_on = \"tokens\"\nalignment = \"paper_l2\"";
    let setup = Setup::new(&format!("{LPR}\n{keys}"));
    let frozen = setup.model.clone().map(&mut FreezePrototypes::default());
    let (outcome, _) = run(&setup, frozen);
    let (code, message) = outcome.unwrap_err();
    assert_eq!(code, 1, "{message}");
    let words = "`prototypes`, but it did not move in layers 0, 1 and 2 from step 0 to step 2;";
    assert!(message.contains(words), "{message}");
    assert_eq!(run(&setup, setup.model.clone()), (Ok(0), 6));
}

/// What a log line compares, if a bias freezes later.
#[test]
fn a_bias_that_stops_moving_is_named_with_its_layers_and_steps() {
    let setup = Setup::new(UPDATED);
    let frozen = config(setup.folder.path(), FROZEN);
    let model = session::initial_model(&frozen, &Device::flex().autodiff());
    let router = &*setup.config.router;
    let mut movement = Movement::start(&model, router, 40).unwrap();
    movement.remember(&model);
    let (model, report) = setup.step(model, 1e-3);
    let error = movement
        .compare(&model, 41, 1e-3, &report.loads)
        .unwrap_err();
    let words =
        "`correction_bias`, but it did not move in layers 0, 1 and 2 from step 40 to step 41";
    assert!(error.to_string().contains(words), "{error}");

    // Where every expert got the same there is nothing to follow.
    let mut even = report.loads.clone();
    for load in even.iter_mut().flatten() {
        load.counts.without_padding.fill(7);
    }
    assert_eq!(movement.compare(&model, 41, 1e-3, &even), Ok(()));

    let mut movement = Movement::start(&setup.model, router, 0).unwrap();
    let (model, report) = setup.step(setup.model.clone(), 1e-3);
    assert_eq!(movement.compare(&model, 1, 1e-3, &report.loads), Ok(()));
    // Up and down since the last comparison, but not in the last step.
    movement.remember(&setup.model);
    assert_eq!(movement.compare(&model, 3, 1e-3, &report.loads), Ok(()));
}

#[test]
fn prototypes_that_stand_still_are_named_unless_the_learning_rate_is_next_to_nothing() {
    let setup = Setup::new(LPR);
    let router = &*setup.config.router;
    let start = || Movement::start(&setup.model, router, 0).unwrap();
    let (model, report) = setup.step(setup.model.clone(), 1e-3);
    assert_eq!(start().compare(&model, 1, 1e-3, &report.loads), Ok(()));

    // The step is lost for the prototypes of one layer.
    let name = "model.layers.1.mlp.router.prototypes";
    let mut values = parameter_values(&model);
    values.insert(
        name.to_owned(),
        parameter_values(&setup.model)[name].clone(),
    );
    let stuck = with_parameter_values(model, values).unwrap();
    let error = start().compare(&stuck, 1, 1e-3, &report.loads).unwrap_err();
    let error = error.to_string();
    for words in [
        "router.loss_weight",
        "`prototypes`",
        "in layer 1 from step 0 to step 1",
    ] {
        assert!(error.contains(words), "{error}");
    }
    assert_eq!(start().compare(&stuck, 1, 0.0, &report.loads), Ok(()));
}

/// A decay of one keeps the old prototypes, although the update is configured.
#[test]
fn an_update_of_prototypes_that_updates_nothing_is_named() {
    for (keys, dead) in [
        ("prototype_ema = \"paper_hard\"\nema_decay = 1.0", true),
        ("prototype_ema = \"paper_hard\"", false),
        ("prototype_ema = \"official\"", false),
    ] {
        let setup = Setup::new(&format!("{LPR}\n{keys}"));
        let (batch, noise) = (&setup.batches[0], setup.noise());
        let found = probe_state(&setup.model, &*setup.config.router, batch, &noise).unwrap();
        let verdict = found.verdict().map_err(|fault| fault.to_string());
        assert_eq!(verdict.is_err(), dead, "{keys}: {verdict:?}");
        if let Err(words) = verdict {
            assert!(words.contains("router.prototype_ema"), "{words}");
        }
    }
}

#[test]
fn counts_that_a_recomputed_pass_doubled_are_refused() {
    let setup = Setup::new(SOFTMAX);
    let (_, report) = setup.step(setup.model.clone(), 1e-3);
    let check = |report: &StepReport| {
        check_counts(&setup.batches, report, 2).map_err(|error| error.to_string())
    };
    assert_eq!(check(&report), Ok(()));
    // One layer's forward pass counted again, and all layers of a micro-batch counted again.
    let mut layer = report.clone();
    let load = &mut layer.loads[1][2].counts;
    let again = load.clone();
    load.add(&again);
    let mut micro_batch = report.clone();
    micro_batch.loads.push(report.loads[0].clone());
    for (doubled, name) in [(layer, "layer 2:"), (micro_batch, "layer 0:")] {
        let error = check(&doubled).unwrap_err();
        assert!(error.starts_with(name), "{error}");
        assert!(error.contains("128 tokens x top_k 2 = 256"), "{error}");
    }
}

/// A model that makes every choice twice as often as configured: a run notices in its first step.
#[test]
fn a_run_with_doubled_counts_stops() {
    let setup = Setup::new(SOFTMAX);
    let mut decoder = setup.config.model.decoder();
    decoder.moe.top_k *= 2;
    let device = Device::flex().autodiff();
    let doubled = CausalLm::new(&decoder, &setup.config.router, 1, &device);
    let (outcome, steps) = run(&setup, doubled);
    let (code, message) = outcome.unwrap_err();
    assert_eq!((code, steps), (1, 0), "{message}");
    assert!(
        message.contains("add up to 512, but 128 tokens"),
        "{message}"
    );
}

/// A term of weight zero changes neither the objective nor one bit of the weights after a step.
#[test]
fn a_coefficient_of_zero_leaves_no_trace() {
    let weights = |aux_loss: &str| {
        let keys = format!("aux_loss = \"{aux_loss}\"\naux_loss_weight = 0.0");
        let setup = Setup::new(&format!("kind = \"softmax_topk\"\n{keys}"));
        let (model, report) = setup.step(setup.model.clone(), 1e-3);
        assert_eq!(report.loss_total.to_bits(), report.loss_ce.to_bits());
        parameter_values(&model)
    };
    assert!(weights("none") == weights("switch"), "the weights differ");
}
