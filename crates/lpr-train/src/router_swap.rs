//! Puts the paper's router into a model that was trained with another one.
//!
//! The new routers start as in a new run. Their encoders are shown what the old routers see on a
//! sample of text, and the prototypes go to the centers of these latents.

use burn::tensor::{Device, Int, Tensor};
use lpr_data::{DataLoader, TokenBatch};
use lpr_model::CausalLm;
use lpr_model::random::Stream;
use lpr_model::router::{AnyRouter, Latent, LprRouter, PrototypeFit};

use crate::batch::MicroBatch;
use crate::config::RunConfig;
use crate::error::TrainError;
use crate::load::DeviceLoad;
use crate::session;

/// What the swap did to one layer. Counts are tokens per expert of the sample, without padding.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerSwap {
    /// Tokens of the sample.
    pub num_tokens: usize,
    /// By the old router.
    pub old: Vec<u64>,
    /// By the new router with its initial prototypes.
    pub unfitted: Vec<u64>,
    /// By the new router with fitted prototypes.
    pub fitted: Vec<u64>,
    /// How far the prototypes were from the tokens.
    pub fit: PrototypeFit,
}

/// One layer while the sample is read.
struct Layer {
    router: LprRouter,
    means: Vec<Tensor<2>>,
    log_vars: Vec<Tensor<2>>,
    old: Vec<u64>,
}

/// Replaces every router of `model` (on `device`, without autodiff) by the LPR router of `config`,
/// fitted to the first `sample_tokens` tokens of `loader`, whole batches. `None` if `stop` asked to
/// end before that.
///
/// # Errors
/// If the data cannot be read or has fewer tokens than there are experts.
///
/// # Panics
/// If `config` has another router than LPR.
pub fn swap_routers(
    model: CausalLm,
    config: &RunConfig,
    mut loader: DataLoader,
    sample_tokens: u64,
    device: &Device,
    stop: &dyn Fn() -> bool,
) -> Result<Option<(CausalLm, Vec<LayerSwap>)>, TrainError> {
    let mut layers = new_layers(config, device);
    let mut tokens = 0;
    while tokens < sample_tokens {
        let Some(batch) = loader.next_batch()? else {
            break;
        };
        if stop() {
            return Ok(None);
        }
        tokens = batch.position.tokens;
        read(&model, &mut layers, &batch, device);
    }
    let moe = config.model.decoder().moe;
    let num_tokens = layers[0].old.iter().sum::<u64>() as usize / moe.top_k;
    if num_tokens < moe.num_experts {
        return Err(TrainError::Usage(format!(
            "the sample has {num_tokens} tokens, fewer than the {} experts of a layer; name more \
             with --data or --sample-tokens",
            moe.num_experts
        )));
    }
    let stream = Stream::new(config.train.seed).child("prototype fit");
    let (mut routers, mut swaps) = (Vec::new(), Vec::new());
    for (index, layer) in layers.into_iter().enumerate() {
        let latent = Latent {
            mean: Tensor::cat(layer.means, 0),
            log_var: Tensor::cat(layer.log_vars, 0),
        };
        let unfitted = choices(&layer.router, &latent, moe.top_k);
        let mean = latent.mean.clone();
        let (router, fit) = layer.router.fitted(mean, stream.index(index as u64));
        swaps.push(LayerSwap {
            num_tokens,
            old: layer.old,
            unfitted,
            fitted: choices(&router, &latent, moe.top_k),
            fit,
        });
        routers.push(router);
    }
    let model = model.map_routers(|layer, _| AnyRouter::Lpr(routers[layer].clone()));
    Ok(Some((model, swaps)))
}

/// The routers that a new run of `config` starts with.
fn new_layers(config: &RunConfig, device: &Device) -> Vec<Layer> {
    let mut layers = Vec::new();
    let _ = session::initial_model(config, device).map_routers(|_, router| {
        let AnyRouter::Lpr(lpr) = &router else {
            panic!("the router is {}", config.router.name())
        };
        layers.push(Layer {
            router: lpr.clone(),
            means: Vec::new(),
            log_vars: Vec::new(),
            old: vec![0; config.model.decoder().moe.num_experts],
        });
        router
    });
    layers
}

/// Shows the tokens of a batch to the old and the new routers.
fn read(model: &CausalLm, layers: &mut [Layer], batch: &TokenBatch, device: &Device) {
    let is_token = batch.is_token.iter().enumerate();
    let places: Vec<i32> = is_token
        .filter(|(_, is)| **is)
        .map(|(place, _)| place as i32)
        .collect();
    let places = Tensor::<1, Int>::from_data(places.as_slice(), device);
    let batch = MicroBatch::new(batch, device);
    let output = model.forward_watched(&batch.input, None, &mut |layer, hidden_states| {
        let tokens = hidden_states.clone().select(0, places.clone());
        let Latent { mean, log_var } = layers[layer].router.encode(tokens);
        layers[layer].means.push(mean);
        layers[layer].log_vars.push(log_var);
    });
    for (layer, routing) in layers.iter_mut().zip(&output.routings) {
        let counts = DeviceLoad::new(routing, &batch).read().counts;
        let new = counts.without_padding.iter();
        layer
            .old
            .iter_mut()
            .zip(new)
            .for_each(|(sum, count)| *sum += count);
    }
}

/// Tokens per expert, if `router` sends `latent` to its `top_k` most similar prototypes.
fn choices(router: &LprRouter, latent: &Latent, top_k: usize) -> Vec<u64> {
    let scores = router.compare(latent).scores;
    let mut counts = vec![0; scores.dims()[1]];
    let (_, chosen) = scores.topk_with_indices(top_k, 1);
    for expert in chosen.into_data().iter::<u64>() {
        counts[expert as usize] += 1;
    }
    counts
}
