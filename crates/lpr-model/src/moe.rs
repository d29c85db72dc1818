//! Feed-forwards: the Mixture of Experts, that is the experts' weights and how tokens reach them, and
//! the dense one of a family's first blocks.

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use crate::config::{DecoderConfig, MoeConfig};
use crate::layers::SwiGlu;
use crate::random::ParamInit;
use crate::router::{AnyRouter, RouteContext, RouterConfig, RouterSizes, Routing};

/// The weights of all routed experts of one layer: y = (silu(x G) * (x U)) D per expert.
#[derive(Module, Debug)]
pub struct Experts {
    /// G and U side by side, `[num_experts, hidden_size, 2 * moe_intermediate_size]`
    pub gate_up_proj: Param<Tensor<3>>,
    /// D, `[num_experts, moe_intermediate_size, hidden_size]`
    pub down_proj: Param<Tensor<3>>,
}

/// A router, its experts, and the experts that see every token.
#[derive(Module, Debug)]
pub struct MoeLayer {
    router: AnyRouter,
    experts: Experts,
    shared_experts: Option<SwiGlu>,
}

impl MoeLayer {
    /// Weights ~ N(0, std^2) of `init`; the experts' do not depend on the router.
    pub fn new(
        init: &ParamInit<'_>,
        hidden_size: usize,
        config: &MoeConfig,
        router: &RouterConfig,
    ) -> Self {
        let &MoeConfig {
            num_experts,
            top_k,
            moe_intermediate_size: width,
            shared_intermediate_size: shared_width,
        } = config;
        let sizes = RouterSizes {
            hidden_size,
            num_experts,
            top_k,
        };
        let experts = init.at("experts");
        Self {
            router: router.init(&sizes, &init.at("router")),
            experts: Experts {
                gate_up_proj: experts.weight("gate_up_proj", [num_experts, hidden_size, 2 * width]),
                down_proj: experts.weight("down_proj", [num_experts, width, hidden_size]),
            },
            shared_experts: (shared_width > 0)
                .then(|| SwiGlu::new(&init.at("shared_experts"), hidden_size, shared_width)),
        }
    }

    /// 1. route; 2. add the router's residual; 3. run each token through its experts and combine;
    /// 4. add the shared experts, which see the hidden states without the residual.
    ///
    /// The residual is not part of the routing that is returned.
    ///
    /// # Shapes
    /// `hidden_states`: `[tokens, hidden_size]`, and so is the result.
    pub fn forward(
        &self,
        hidden_states: Tensor<2>,
        context: &RouteContext<'_>,
    ) -> (Tensor<2>, Routing) {
        let mut routing = self.router.route(hidden_states.clone(), context);
        let shared = self
            .shared_experts
            .as_ref()
            .map(|experts| experts.forward(hidden_states.clone()));
        let expert_input = match routing.residual.take() {
            Some(residual) => hidden_states + residual,
            None => hidden_states,
        };
        let output = lpr_kernels::experts(
            expert_input,
            self.experts.gate_up_proj.val(),
            self.experts.down_proj.val(),
            routing.routing_weights.clone(),
            routing.expert_indices.clone(),
        );
        let output = match shared {
            Some(shared) => output + shared,
            None => output,
        };
        (output, routing)
    }

    /// The layer with its router replaced by what `change` makes of it.
    #[must_use]
    pub fn map_router(self, change: impl FnOnce(AnyRouter) -> AnyRouter) -> Self {
        Self {
            router: change(self.router),
            ..self
        }
    }
}

/// The feed-forward of a block.
#[derive(Module, Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "one per layer, never moved around in bulk"
)]
pub enum FeedForward {
    /// A Mixture of Experts.
    Moe(MoeLayer),
    /// One feed-forward for all tokens.
    Dense(SwiGlu),
}

impl FeedForward {
    /// The feed-forward of block `layer`.
    pub fn new(
        init: &ParamInit<'_>,
        layer: usize,
        config: &DecoderConfig,
        router: &RouterConfig,
    ) -> Self {
        let width = config.hidden_size;
        if layer < config.first_k_dense_replace {
            Self::Dense(SwiGlu::new(init, width, config.dense_intermediate_size))
        } else {
            Self::Moe(MoeLayer::new(init, width, &config.moe, router))
        }
    }

    /// The output, and the routing if there is a router.
    ///
    /// # Shapes
    /// `hidden_states`: `[tokens, hidden_size]`, and so is the result.
    pub fn forward(
        &self,
        hidden_states: Tensor<2>,
        context: &RouteContext<'_>,
    ) -> (Tensor<2>, Option<Routing>) {
        match self {
            Self::Moe(layer) => {
                let (output, routing) = layer.forward(hidden_states, context);
                (output, Some(routing))
            }
            Self::Dense(layer) => (layer.forward(hidden_states), None),
        }
    }
}
