//! The language model: a decoder, a head, and the losses that training and evaluation need.

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor};
use lpr_kernels::SequenceMask;

use crate::config::DecoderConfig;
use crate::decoder::{Decoder, Past, Watch};
use crate::random::ParamInit;
use crate::router::{AnyRouter, LossContext, RouterConfig, Routing, StepStatistics};

/// A batch of token rows on the device.
#[derive(Debug, Clone)]
pub struct ModelInput {
    /// `[batch, sequence]`
    pub input_ids: Tensor<2, Int>,
    /// `[batch, sequence]`, or `[1, sequence]` when all rows count alike.
    pub position_ids: Tensor<2, Int>,
    /// Documents and padding; `None` when every row is one whole document.
    pub mask: Option<SequenceMask>,
}

/// What one forward pass returns.
#[derive(Debug, Clone)]
pub struct CausalLmOutput {
    /// After the final norm, `[batch * sequence, hidden_size]`.
    pub hidden_states: Tensor<2>,
    /// One per layer with experts.
    pub routings: Vec<Routing>,
}

/// The text before the next token, as the model sees it; empty at first.
#[derive(Debug, Clone, Default)]
pub struct TextSoFar {
    tokens: usize,
    past: Past,
}

/// The matrix that turns hidden states into logits.
#[derive(Module, Debug)]
pub struct LanguageModelHead {
    /// `[vocab_size, hidden_size]`
    pub weight: Param<Tensor<2>>,
}

/// Decoder and head.
#[derive(Module, Debug)]
pub struct CausalLm {
    model: Decoder,
    lm_head: Option<LanguageModelHead>,
}

impl CausalLm {
    /// Initial weights are a function of `seed` and each parameter's name alone.
    pub fn new(config: &DecoderConfig, router: &RouterConfig, seed: u64, device: &Device) -> Self {
        let init = ParamInit::new(seed, config.initializer_range, device);
        let head = || LanguageModelHead {
            weight: init
                .at("lm_head")
                .weight("weight", [config.vocab_size, config.hidden_size]),
        };
        Self {
            lm_head: (!config.tie_word_embeddings).then(head),
            model: Decoder::new(&init.at("model"), config, router),
        }
    }

    /// Runs the decoder. `losses` is given in training: the routers then return their loss terms.
    pub fn forward(&self, input: &ModelInput, losses: Option<&LossContext>) -> CausalLmOutput {
        self.forward_watched(input, losses, &mut |_, _| ())
    }

    /// Like [`Self::forward`], and shows `watch` what each router sees.
    pub fn forward_watched(
        &self,
        input: &ModelInput,
        losses: Option<&LossContext>,
        watch: Watch<'_>,
    ) -> CausalLmOutput {
        let (hidden_states, routings) = self.model.forward(
            input.input_ids.clone(),
            input.position_ids.clone(),
            input.mask.as_ref(),
            losses,
            watch,
            None,
        );
        CausalLmOutput {
            hidden_states,
            routings,
        }
    }

    /// The decoder, whose parts can be run one by one.
    pub fn decoder(&self) -> &Decoder {
        &self.model
    }

    /// The logits of what follows the last of `tokens`, which continue those that `text` had before,
    /// `[vocab_size]`. The first tokens may be many, then they come one by one.
    ///
    /// # Panics
    /// If there are no tokens, or several after the first call.
    pub fn next_logits(&self, tokens: &[u32], text: &mut TextSoFar) -> Tensor<1> {
        let device = self.head().device();
        let row = |numbers: Vec<i32>| -> Tensor<2, Int> {
            Tensor::<1, Int>::from_ints(numbers.as_slice(), &device).unsqueeze()
        };
        let positions = text.tokens..text.tokens + tokens.len();
        let (hidden_states, _) = self.model.forward(
            row(tokens.iter().map(|&id| id as i32).collect()),
            row(positions.map(|position| position as i32).collect()),
            None,
            None,
            &mut |_, _| (),
            Some(&mut text.past),
        );
        text.tokens += tokens.len();
        let last = hidden_states.narrow(0, tokens.len() - 1, 1);
        self.logits(last).flatten(0, 1)
    }

    /// Sum of the cross-entropy over all targets but those that are
    /// [`IGNORE_INDEX`](lpr_kernels::IGNORE_INDEX), `[1]`.
    ///
    /// # Shapes
    /// `hidden_states`: `[rows, hidden_size]`; `targets`: `[rows]`, each the token that follows.
    pub fn cross_entropy_sum(
        &self,
        hidden_states: Tensor<2>,
        targets: Tensor<1, Int>,
    ) -> Tensor<1> {
        lpr_kernels::linear_cross_entropy(hidden_states, self.head(), targets)
    }

    /// Logits of every row, `[rows, vocab_size]`.
    pub fn logits(&self, hidden_states: Tensor<2>) -> Tensor<2> {
        hidden_states.matmul(self.head().transpose())
    }

    /// Lets every router take in what its layer saw in a step; one entry per layer
    /// with experts.
    ///
    /// # Panics
    /// If `statistics` has another length.
    #[must_use]
    pub fn after_step(self, statistics: &[StepStatistics]) -> Self {
        let mut num_routers = 0;
        let model = self.map_routers(|layer, router| {
            num_routers = layer + 1;
            router.after_step(&statistics[layer])
        });
        assert_eq!(statistics.len(), num_routers, "one entry per router");
        model
    }

    /// The model with every router replaced by what `change` makes of it, given its index among the
    /// layers with experts.
    #[must_use]
    pub fn map_routers(self, change: impl FnMut(usize, AnyRouter) -> AnyRouter) -> Self {
        Self {
            model: self.model.map_routers(change),
            ..self
        }
    }

    fn head(&self) -> Tensor<2> {
        match &self.lm_head {
            Some(head) => head.weight.val(),
            None => self.model.embed_tokens.weight.val(),
        }
    }
}
