//! The decoder that all families share: embedding, pre-norm blocks, final norm.

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor};
use lpr_kernels::{SequenceMask, embedding};

use crate::config::DecoderConfig;
use crate::layers::{Attention, KeyValues, RmsNorm, RotaryEmbedding};
use crate::moe::FeedForward;
use crate::random::ParamInit;
use crate::router::{AnyRouter, LossContext, RouteContext, RouterConfig, Routing};

/// Is shown what each router sees: the index among the layers with experts, and the hidden states,
/// `[tokens, hidden_size]`.
pub type Watch<'a> = &'a mut dyn FnMut(usize, &Tensor<2>);

/// What the layers keep of the tokens so far; none at first.
#[derive(Debug, Clone, Default)]
pub struct Past {
    layers: Vec<KeyValues>,
}

impl Past {
    fn of_layer(&mut self, index: usize) -> &mut KeyValues {
        if self.layers.len() <= index {
            self.layers.resize_with(index + 1, KeyValues::default);
        }
        &mut self.layers[index]
    }
}

/// A table of one vector per token id.
#[derive(Module, Debug)]
pub struct Embedding {
    /// `[vocab_size, hidden_size]`
    pub weight: Param<Tensor<2>>,
}

/// One block: attention and feed-forward, each behind an RMSNorm and added to the residual stream.
#[derive(Module, Debug)]
pub struct DecoderLayer {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    mlp: FeedForward,
}

impl DecoderLayer {
    fn new(
        init: &ParamInit<'_>,
        layer: usize,
        config: &DecoderConfig,
        router: &RouterConfig,
    ) -> Self {
        let width = config.hidden_size;
        let norm = |name: &str| RmsNorm::new(&init.at(name), width, config.rms_norm_eps);
        Self {
            input_layernorm: norm("input_layernorm"),
            self_attn: Attention::new(&init.at("self_attn"), width, &config.attention),
            post_attention_layernorm: norm("post_attention_layernorm"),
            mlp: FeedForward::new(&init.at("mlp"), layer, config, router),
        }
    }

    fn has_router(&self) -> bool {
        matches!(self.mlp, FeedForward::Moe(_))
    }

    fn forward(
        &self,
        hidden_states: Tensor<3>,
        rotary: &RotaryEmbedding,
        mask: Option<&SequenceMask>,
        context: &RouteContext<'_>,
        watch: Watch<'_>,
        past: Option<&mut KeyValues>,
    ) -> (Tensor<3>, Option<Routing>) {
        let [batch, sequence, width] = hidden_states.dims();
        let normed = self.input_layernorm.forward(hidden_states.clone());
        let hidden_states = hidden_states + self.self_attn.forward(normed, rotary, mask, past);
        let normed = self.post_attention_layernorm.forward(hidden_states.clone());
        let normed = normed.reshape([batch * sequence, width]);
        if self.has_router() {
            watch(context.layer, &normed);
        }
        let (output, routing) = self.mlp.forward(normed, context);
        let output = output.reshape([batch, sequence, width]);
        (hidden_states + output, routing)
    }
}

/// The blocks of a decoder with what they share on one batch.
#[derive(Debug)]
pub struct Blocks<'a> {
    layers: &'a [DecoderLayer],
    rotary: RotaryEmbedding,
    mask: Option<&'a SequenceMask>,
    losses: Option<&'a LossContext>,
}

impl Blocks<'_> {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.layers.len()
    }

    /// The output of block `index`, and its routing if it has experts. A function of its arguments: it
    /// may be called again.
    ///
    /// # Shapes
    /// `hidden_states`: `[batch, sequence, hidden_size]`, and so is the output.
    ///
    /// # Panics
    /// If there is no such block.
    pub fn forward(&self, index: usize, hidden_states: Tensor<3>) -> (Tensor<3>, Option<Routing>) {
        self.forward_watched(index, hidden_states, &mut |_, _| (), None)
    }

    fn forward_watched(
        &self,
        index: usize,
        hidden_states: Tensor<3>,
        watch: Watch<'_>,
        past: Option<&mut KeyValues>,
    ) -> (Tensor<3>, Option<Routing>) {
        let before = self.layers[..index].iter();
        let context = RouteContext {
            layer: before.filter(|block| block.has_router()).count(),
            losses: self.losses,
        };
        let (rotary, mask) = (&self.rotary, self.mask);
        self.layers[index].forward(hidden_states, rotary, mask, &context, watch, past)
    }
}

/// Embedding, blocks, final norm.
#[derive(Module, Debug)]
pub struct Decoder {
    /// Token embedding; also the head when tied.
    pub embed_tokens: Embedding,
    layers: Vec<DecoderLayer>,
    norm: RmsNorm,
    #[module(skip)]
    rotary_dim: usize,
    #[module(skip)]
    rope_theta: f64,
}

impl Decoder {
    /// Weights ~ N(0, `initializer_range`^2), norms 1.
    pub fn new(init: &ParamInit<'_>, config: &DecoderConfig, router: &RouterConfig) -> Self {
        let layers = init.at("layers");
        let (rotary_dim, rope_theta) = config.attention.rotary();
        Self {
            embed_tokens: Embedding {
                weight: init
                    .at("embed_tokens")
                    .weight("weight", [config.vocab_size, config.hidden_size]),
            },
            layers: (0..config.num_hidden_layers)
                .map(|i| DecoderLayer::new(&layers.at(&i.to_string()), i, config, router))
                .collect(),
            norm: RmsNorm::new(&init.at("norm"), config.hidden_size, config.rms_norm_eps),
            rotary_dim,
            rope_theta,
        }
    }

    /// The vectors of tokens, `[batch, sequence]` to `[batch, sequence, hidden_size]`.
    pub fn embed(&self, input_ids: Tensor<2, Int>) -> Tensor<3> {
        embedding(self.embed_tokens.weight.val(), input_ids)
    }

    /// The blocks, for tokens at these positions: `[batch, sequence]` or `[1, sequence]`.
    pub fn blocks<'a>(
        &'a self,
        position_ids: Tensor<2, Int>,
        mask: Option<&'a SequenceMask>,
        losses: Option<&'a LossContext>,
    ) -> Blocks<'a> {
        let device = self.embed_tokens.weight.val().device();
        let (dim, theta) = (self.rotary_dim, self.rope_theta);
        Blocks {
            layers: &self.layers,
            rotary: RotaryEmbedding::new(position_ids, dim, theta, &device),
            mask,
            losses,
        }
    }

    /// The final norm, `[batch, sequence, hidden_size]` to `[batch * sequence, hidden_size]`.
    pub fn normed(&self, hidden_states: Tensor<3>) -> Tensor<2> {
        self.norm.forward(hidden_states).flatten(0, 1)
    }

    /// Final hidden states and the routing of every layer with experts. `watch` is called for each of
    /// these layers in order. With a `past`, the tokens are those that follow it; it then has them,
    /// too.
    ///
    /// # Shapes
    /// `input_ids`: `[batch, sequence]`; `position_ids`: the same or `[1, sequence]`; the hidden
    /// states are `[batch * sequence, hidden_size]`.
    pub fn forward(
        &self,
        input_ids: Tensor<2, Int>,
        position_ids: Tensor<2, Int>,
        mask: Option<&SequenceMask>,
        losses: Option<&LossContext>,
        watch: Watch<'_>,
        mut past: Option<&mut Past>,
    ) -> (Tensor<2>, Vec<Routing>) {
        let blocks = self.blocks(position_ids, mask, losses);
        let mut hidden_states = self.embed(input_ids);
        let mut routings = Vec::with_capacity(blocks.count());
        for index in 0..blocks.count() {
            let past = past.as_mut().map(|past| past.of_layer(index));
            let (output, routing) = blocks.forward_watched(index, hidden_states, watch, past);
            hidden_states = output;
            routings.extend(routing);
        }
        (self.normed(hidden_states), routings)
    }

    /// The decoder with every router replaced by what `change` makes of it, given its index among the
    /// layers with experts.
    #[must_use]
    pub fn map_routers(self, mut change: impl FnMut(usize, AnyRouter) -> AnyRouter) -> Self {
        let mut index = 0..;
        let mut changed = |layer: DecoderLayer| match layer.mlp {
            FeedForward::Moe(moe) => DecoderLayer {
                mlp: FeedForward::Moe(moe.map_router(|router| {
                    change(index.next().expect("the range has no end"), router)
                })),
                ..layer
            },
            FeedForward::Dense(_) => layer,
        };
        let layers = self.layers.into_iter().map(&mut changed).collect();
        Self { layers, ..self }
    }
}
