//! Gradient checkpointing: a micro-batch whose forward pass keeps nothing for the backward pass but
//! the input of every block. The backward pass makes the activations again, one block at a time.
//!
//! ```text
//! forward   x_0 = embedding, (x_l+1, r_l) = block_l(x_l) without a graph; x_l and the routings r_l stay
//! losses    of the head and of all routings at once: gradients of x_L and of the r_l
//! backward  for l from the last to the first: block_l again, with a graph, from x_l;
//!           backward from sum(x_l+1 * dx_l+1) + sum(r_l * dr_l) gives its parameters' gradients and dx_l
//! ```
//!
//! A block and its noise are functions of their arguments, so the second pass makes what the first one
//! did. Loads and statistics come from the first alone.

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Gradients, Tensor};
use lpr_kernels::profile::span;
use lpr_model::Routing;
use lpr_model::router::RouterTerm;

use super::{Losses, Pass};
use crate::optimizer::GradientSum;

/// The losses and routings of a micro-batch; adds its gradients to `gradients`.
pub(super) fn forward_backward(
    pass: &Pass<'_>,
    gradients: &mut GradientSum,
) -> (Losses, Vec<Routing>) {
    let (model, batch) = (pass.model, &pass.batch.input);
    let decoder = model.decoder();
    let forward = span("forward");
    let (inputs, output, routings) = without_graph(pass);
    let output = leaf(output);
    let routings: Vec<_> = routings.into_iter().map(with_leaves).collect();
    let (objective, losses) = pass.objective(decoder.normed(output.clone()), &routings);
    drop(forward);

    let _backward = span("backward");
    // A tied embedding is before the blocks and behind them; both gradients are added up first, as
    // they are when the whole micro-batch is one graph.
    let mut ends = GradientSum::default();
    let mut found = objective.backward();
    let mut output_gradient = gradient(&output, &mut found);
    let of_routing = |routing| RoutingGradient::remove(routing, &mut found);
    let mut routing_gradients: Vec<_> = routings.iter().map(of_routing).collect();
    ends.add(model, found);
    let positions = batch.position_ids.clone();
    let blocks = decoder.blocks(positions, batch.mask.as_ref(), Some(pass.context));
    for (index, input) in inputs.into_iter().enumerate().rev() {
        let input = leaf(input);
        let again = span("recompute");
        let (output, routing) = blocks.forward(index, input.clone());
        let mut summands = routing.map_or_else(Vec::new, |routing| {
            let gradient = routing_gradients.pop().expect("one for each routing");
            gradient.times(&routing)
        });
        // The last one, as the cross-entropy is in the objective.
        summands.push((output * output_gradient).sum());
        let carrier = summands.into_iter().reduce(|sum, summand| sum + summand);
        drop(again);
        let mut found = carrier.expect("the output is in it").backward();
        output_gradient = gradient(&input, &mut found);
        gradients.add(model, found);
    }
    let embedded = decoder.embed(batch.input_ids.clone());
    ends.add(model, (embedded * output_gradient).sum().backward());
    gradients.merge(ends);
    (losses, routings)
}

/// The input of every block, the output of the last one, and all routings.
fn without_graph(pass: &Pass<'_>) -> (Vec<Tensor<3>>, Tensor<3>, Vec<Routing>) {
    let (model, batch) = (pass.model.clone().map(&mut Constants), &pass.batch.input);
    let decoder = model.decoder();
    let positions = batch.position_ids.clone();
    let blocks = decoder.blocks(positions, batch.mask.as_ref(), Some(pass.context));
    let mut hidden_states = decoder.embed(batch.input_ids.clone());
    let mut inputs = Vec::with_capacity(blocks.count());
    let mut routings = Vec::with_capacity(blocks.count());
    for index in 0..blocks.count() {
        inputs.push(hidden_states.clone());
        let (output, routing) = blocks.forward(index, hidden_states);
        hidden_states = output;
        routings.extend(routing);
    }
    (inputs, hidden_states, routings)
}

/// Makes parameters constants. Neither `valid`, because without autodiff some operations are composed
/// and rounded differently, nor `no_grad`, which reaches the original if it has no values yet.
struct Constants;

impl ModuleMapper for Constants {
    fn map_float<const D: usize>(&mut self, parameter: Param<Tensor<D>>) -> Param<Tensor<D>> {
        parameter.map(|value| Tensor::from_inner(value.inner()))
    }
}

/// The tensor as the beginning of a graph.
fn leaf<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    Tensor::from_inner(tensor.inner()).require_grad()
}

/// The routing with everything that a loss may depend on as leaves.
fn with_leaves(routing: Routing) -> Routing {
    let term = |term: RouterTerm| RouterTerm {
        value: leaf(term.value),
        ..term
    };
    Routing {
        router_logits: leaf(routing.router_logits),
        routing_weights: leaf(routing.routing_weights),
        terms: routing.terms.into_iter().map(term).collect(),
        ..routing
    }
}

/// The gradient of a leaf that the loss depends on.
fn gradient(leaf: &Tensor<3>, found: &mut Gradients) -> Tensor<3> {
    leaf.grad_remove(found)
        .expect("every loss depends on the hidden states")
}

/// Gradients at what a block decided; `None` where no loss depends on it.
struct RoutingGradient {
    router_logits: Option<Tensor<2>>,
    routing_weights: Option<Tensor<2>>,
    terms: Vec<Option<Tensor<1>>>,
}

impl RoutingGradient {
    /// Moves the gradients of the leaves of `routing` out of `found`.
    fn remove(routing: &Routing, found: &mut Gradients) -> Self {
        let terms = routing.terms.iter();
        Self {
            router_logits: routing.router_logits.grad_remove(found),
            routing_weights: routing.routing_weights.grad_remove(found),
            terms: terms.map(|term| term.value.grad_remove(found)).collect(),
        }
    }

    /// Numbers, `[1]` each, whose sum has this gradient at `routing`.
    fn times(self, routing: &Routing) -> Vec<Tensor<1>> {
        let logits = self
            .router_logits
            .map(|gradient| (&routing.router_logits, gradient));
        let weights = self
            .routing_weights
            .map(|gradient| (&routing.routing_weights, gradient));
        let matrices = logits.into_iter().chain(weights);
        let matrices = matrices.map(|(tensor, gradient)| (tensor.clone() * gradient).sum());
        let terms = routing.terms.iter().zip(self.terms);
        let terms = terms.filter_map(|(term, gradient)| Some(term.value.clone() * gradient?));
        matrices.chain(terms).collect()
    }
}
