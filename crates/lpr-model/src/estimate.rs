//! What a model costs, before anything of it is made.
//!
//! Parameters are those that are trained, counted on the model itself: its parameters have shapes before
//! they have values. Floating-point operations are those of the forward pass, per token, two for each
//! multiply-add of a matrix product (method-spec section 3.1):
//!
//! ```text
//! projections, experts, head   2 * size of every matrix that a token meets: k of the experts
//! attention                    2 * heads * (query width + value width) * (T + 1) / 2
//! router                       what it says itself, see `RouterKind::macs_per_token`
//! ```
//!
//! T is the length of a sequence that is one document, `(T + 1) / 2` the mean number of positions that a
//! causal query sees. Norms, activations, softmax, rotations, the embedding's look-up and losses count
//! nothing. A training step costs about three times as much (one forward, two backward);
//! blocks that are made again in the backward pass do not count.
//!
//! Activations are what a position leaves in memory between the forward and the backward pass of the
//! CPU kernels, in 32-bit floats: what each operation keeps, and nothing that it computes again.

use std::collections::BTreeMap;

use burn::tensor::Device;
use serde::Serialize;

use crate::causal_lm::CausalLm;
use crate::config::DecoderConfig;
use crate::parameters::trained_shapes;
use crate::router::{RouterConfig, RouterSizes};

/// How much more a training step computes than a forward pass.
const TRAINING_FACTOR: u64 = 3;

/// One part of a model, summed over its layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PartCost {
    /// `embedding`, `attention`, `router`, `experts`, `shared_experts`, `dense`, `norms` or `head`.
    pub name: &'static str,
    /// Trained parameters.
    pub params: u64,
    /// Of these, the ones that a token meets.
    pub active_params: u64,
    /// Forward pass.
    pub flops_per_token: u64,
    /// Numbers kept for the backward pass.
    pub activations_per_token: u64,
}

/// What a model costs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Estimate {
    /// Trained parameters; a router's state that gradients do not train is not among them.
    pub total_params: u64,
    /// Of these, the ones that a token meets: k of the experts and everything else.
    pub active_params: u64,
    /// Of the routers of all layers.
    pub router_params: u64,
    /// Forward pass, head included.
    pub flops_per_token: u64,
    /// Forward pass up to the final hidden states.
    pub flops_per_token_without_head: u64,
    /// Forward and backward pass.
    pub training_flops_per_token: u64,
    /// Numbers that a position leaves for the backward pass.
    pub activations_per_token: u64,
    /// The same if the blocks make their activations again in the backward pass, one after the other:
    /// the input of each, what the losses read of its routing, and everything that one block leaves.
    pub checkpointed_activations_per_token: u64,
    /// Of the largest tensor.
    pub largest_tensor: u64,
    /// Trained parameters of the largest block.
    pub largest_block_params: u64,
    /// T: positions of the sequence that the attention was estimated for.
    pub sequence_length: u64,
    /// The parts that the model has; the figures above are their sums.
    pub parts: Vec<PartCost>,
}

/// Names of the parts and what the names of their parameters contain, the first match counts.
const PARTS: [(&str, &str); 8] = [
    ("embedding", ".embed_tokens."),
    ("attention", ".self_attn."),
    ("router", ".mlp.router."),
    ("experts", ".mlp.experts."),
    ("shared_experts", ".mlp.shared_experts."),
    ("dense", ".mlp."),
    ("head", "lm_head."),
    ("norms", ""),
];

/// Estimates the model of a config for sequences of `sequence_length` positions. Makes no weights.
pub fn estimate(
    decoder: &DecoderConfig,
    router: &RouterConfig,
    sequence_length: usize,
) -> Estimate {
    let model = CausalLm::new(decoder, router, 0, &Device::flex().autodiff());
    let mut parts = PARTS.map(|(name, _)| PartCost {
        name,
        params: 0,
        active_params: 0,
        flops_per_token: 0,
        activations_per_token: 0,
    });
    let mut largest_tensor = 0;
    let mut blocks = BTreeMap::new();
    let (num_experts, top_k) = (decoder.moe.num_experts as u64, decoder.moe.top_k as u64);
    for (name, shape) in trained_shapes(&model) {
        let index = PARTS.iter().position(|(_, part)| name.contains(part));
        let part = &mut parts[index.unwrap_or(PARTS.len() - 1)];
        let size = shape.iter().product::<usize>() as u64;
        largest_tensor = largest_tensor.max(size);
        if let Some((_, in_block)) = name.split_once(".layers.") {
            let block = in_block.split('.').next().map(str::to_owned);
            *blocks.entry(block).or_insert(0) += size;
        }
        let active = match part.name {
            "experts" => size / num_experts * top_k,
            _ => size,
        };
        part.params += size;
        part.active_params += active;
        if shape.len() > 1 {
            part.flops_per_token += 2 * active;
        }
    }
    for part in &mut parts {
        part.flops_per_token = match part.name {
            "embedding" => 0,
            "router" => router_flops(decoder, router),
            "attention" => part.flops_per_token + attention_flops(decoder, sequence_length as u64),
            // The head's matrix may be the embedding's.
            "head" => 2 * (decoder.vocab_size * decoder.hidden_size) as u64,
            _ => part.flops_per_token,
        };
        let (layers, in_one) = activations(part.name, decoder, router);
        part.activations_per_token = (layers * in_one) as u64;
        if part.name == "norms" {
            // What the last one reads.
            part.activations_per_token += decoder.hidden_size as u64;
        }
    }
    Estimate {
        checkpointed_activations_per_token: checkpointed(decoder, router) as u64,
        largest_tensor,
        largest_block_params: blocks.into_values().max().unwrap_or(0),
        ..Estimate::new(&parts, sequence_length as u64)
    }
}

/// The layers that have a part, and what it keeps of a position in one of them.
fn activations(part: &str, decoder: &DecoderConfig, router: &RouterConfig) -> (usize, usize) {
    /// Numbers in three lists of 64-bit places, by which a choice finds its row and back.
    const ROUTES: usize = 6;
    let (hidden, moe) = (decoder.hidden_size, &decoder.moe);
    let (layers, moe_layers) = (decoder.num_hidden_layers, decoder.num_moe_layers());
    match part {
        // What it reads.
        "attention" => (layers, hidden + decoder.attention.kept_per_token()),
        "router" => (moe_layers, router.kept_per_token(&sizes(decoder)) as usize),
        // What it reads, gates and ups of each choice.
        "experts" => (
            moe_layers,
            hidden + moe.top_k * (2 * moe.moe_intermediate_size + ROUTES),
        ),
        // Gates, ups and their product.
        "shared_experts" => (moe_layers, 3 * moe.shared_intermediate_size),
        "dense" => (
            layers - moe_layers,
            hidden + 3 * decoder.dense_intermediate_size,
        ),
        // What they read.
        "norms" => (layers, 2 * hidden),
        _ => (0, 0),
    }
}

/// What is kept of a position at most if blocks are made again: the input of each and of the last norm,
/// scores, weights and 64-bit choices of each router, everything of the largest block.
fn checkpointed(decoder: &DecoderConfig, router: &RouterConfig) -> usize {
    let in_block = |parts: &[&str]| -> usize {
        let parts = parts.iter().map(|part| activations(part, decoder, router));
        parts.map(|(layers, in_one)| in_one * layers.min(1)).sum()
    };
    let feed_forward = in_block(&["router", "experts", "shared_experts"]);
    let largest_block = in_block(&["attention", "norms"]) + feed_forward.max(in_block(&["dense"]));
    let inputs = (decoder.num_hidden_layers + 1) * decoder.hidden_size;
    let routing = decoder.moe.num_experts + 3 * decoder.moe.top_k;
    inputs + decoder.num_moe_layers() * routing + largest_block
}

fn router_flops(decoder: &DecoderConfig, router: &RouterConfig) -> u64 {
    2 * router.macs_per_token(&sizes(decoder)) * decoder.num_moe_layers() as u64
}

fn sizes(decoder: &DecoderConfig) -> RouterSizes {
    RouterSizes {
        hidden_size: decoder.hidden_size,
        num_experts: decoder.moe.num_experts,
        top_k: decoder.moe.top_k,
    }
}

/// Queries times keys, probabilities times values.
fn attention_flops(decoder: &DecoderConfig, sequence_length: u64) -> u64 {
    let macs_per_pair = decoder.attention.macs_per_pair() as u64;
    macs_per_pair * (sequence_length + 1) * decoder.num_hidden_layers as u64
}

impl Estimate {
    fn new(parts: &[PartCost], sequence_length: u64) -> Self {
        let sum = |figure: fn(&PartCost) -> u64| parts.iter().map(figure).sum();
        let part = |name| parts.iter().find(|part| part.name == name);
        let flops_per_token = sum(|part| part.flops_per_token);
        let head = part("head").map_or(0, |head| head.flops_per_token);
        Self {
            total_params: sum(|part| part.params),
            active_params: sum(|part| part.active_params),
            router_params: part("router").map_or(0, |router| router.params),
            flops_per_token,
            flops_per_token_without_head: flops_per_token - head,
            training_flops_per_token: TRAINING_FACTOR * flops_per_token,
            activations_per_token: sum(|part| part.activations_per_token),
            checkpointed_activations_per_token: 0,
            largest_tensor: 0,
            largest_block_params: 0,
            sequence_length,
            parts: parts
                .iter()
                .filter(|part| part.params > 0 || part.flops_per_token > 0)
                .copied()
                .collect(),
        }
    }
}
