//! The expert block of a Mixture-of-Experts layer: each token goes through its own few `SwiGLU`
//! networks.

use crate::{
    blocks::{BlockSizes, Blocks},
    cpu::{
        Level,
        experts::{self as kernel, Operands, Sizes},
        routes::Routes,
        tensor::{consecutive, floats, floats_mut, from_floats, integers},
    },
    dispatch::{has_cpu_kernel, record},
    precision::{factor, product},
    profile::span,
    rows::take_rows,
};
use burn::{
    backend::{
        Autodiff, Backend, Dispatch, Flex, TensorMetadata,
        autodiff::checkpoint::strategy::CheckpointStrategy,
        backend_extension,
        flex::FlexTensor,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::{Int, Tensor, activation},
};

/// The weighted sum of the experts chosen for each token.
///
/// With `e` running over the experts chosen for token `t` and `w` their routing weights:
///
/// ```text
/// [gate, up] = hidden_states[t] gate_up_proj[e]
/// out[t]     = sum over e of w[t, e] * (silu(gate) * up) down_proj[e]
/// ```
///
/// The work grows with `tokens * top_k`, not with the number of experts; an expert that no token
/// chose costs nothing and gets a zero gradient. Gradients flow to the hidden states, both
/// projections and the routing weights.
///
/// # Shapes
///
/// - `hidden_states` and the result: `[tokens, hidden]`
/// - `gate_up_proj`: `[num_experts, hidden, 2 * intermediate]`, the gate in the first half
/// - `down_proj`: `[num_experts, intermediate, hidden]`
/// - `routing_weights`, `expert_indices`: `[tokens, top_k]`, indices in `0..num_experts`
///
/// # Panics
///
/// If the shapes do not fit together, one of `num_experts`, `hidden`, `intermediate` and `top_k` is
/// zero or an index is out of range. On a GPU, which would have to be waited for, an index that is out
/// of range is not noticed: some expert is taken for it.
pub fn experts(
    hidden_states: Tensor<2>,
    gate_up_proj: Tensor<3>,
    down_proj: Tensor<3>,
    routing_weights: Tensor<2>,
    expert_indices: Tensor<2, Int>,
) -> Tensor<2> {
    let _span = span("experts");
    let [tokens, hidden] = hidden_states.dims();
    let [num_experts, intermediate, _] = down_proj.dims();
    assert!(
        gate_up_proj.dims() == [num_experts, hidden, 2 * intermediate]
            && down_proj.dims() == [num_experts, intermediate, hidden],
        "experts: gate_up_proj {:?} and down_proj {:?} do not fit hidden_states {:?}",
        gate_up_proj.dims(),
        down_proj.dims(),
        hidden_states.dims()
    );
    assert!(
        routing_weights.dims() == expert_indices.dims() && routing_weights.dims()[0] == tokens,
        "experts: routing_weights {:?} and expert_indices {:?} must both be [{tokens}, top_k]",
        routing_weights.dims(),
        expert_indices.dims()
    );
    assert!(
        down_proj.shape().num_elements() > 0 && routing_weights.dims()[1] > 0,
        "experts: down_proj {:?} and top_k {} must not be empty",
        down_proj.dims(),
        routing_weights.dims()[1]
    );
    let expert_indices = expert_indices.inner();
    if has_cpu_kernel(&hidden_states) {
        return Tensor::from_dispatch(Dispatch::fused_experts(
            hidden_states.into_dispatch(),
            gate_up_proj.into_dispatch(),
            down_proj.into_dispatch(),
            routing_weights.into_dispatch(),
            expert_indices.into_dispatch(),
        ));
    }
    portable(
        hidden_states,
        gate_up_proj,
        down_proj,
        routing_weights,
        expert_indices,
    )
}

/// The operation in plain tensor operations: one batched product over blocks of rows that have one
/// expert each, of which there are as many whatever was chosen. So nothing waits for the choices.
fn portable(
    hidden_states: Tensor<2>,
    gate_up_proj: Tensor<3>,
    down_proj: Tensor<3>,
    routing_weights: Tensor<2>,
    expert_indices: Tensor<2, Int>,
) -> Tensor<2> {
    let [tokens, hidden] = hidden_states.dims();
    let [num_experts, intermediate, _] = down_proj.dims();
    let [_, top_k] = routing_weights.dims();
    if tokens == 0 {
        return hidden_states.zeros_like();
    }
    let blocks = Blocks::new(expert_indices, num_experts);
    let BlockSizes {
        blocks: num_blocks,
        block_rows,
    } = blocks.sizes;
    let of_blocks = |weights: Tensor<3>| {
        let [_, inputs, outputs] = weights.dims();
        let flat = factor(weights).reshape([num_experts, inputs * outputs]);
        take_rows(flat, blocks.to_blocks()).reshape([num_blocks, inputs, outputs])
    };
    let rows = take_rows(hidden_states, blocks.to_rows());
    let rows = rows.reshape([num_blocks, block_rows, hidden]);
    let gate_up = product(rows, of_blocks(gate_up_proj));
    let gate = gate_up.clone().narrow(2, 0, intermediate);
    let up = gate_up.narrow(2, intermediate, intermediate);
    let outputs = product(activation::silu(gate) * up, of_blocks(down_proj));
    let outputs = outputs.reshape([num_blocks * block_rows, hidden]);
    let by_slot = take_rows(outputs, blocks.to_slots()).reshape([tokens, top_k, hidden]);
    let weighted = by_slot * routing_weights.unsqueeze_dim::<3>(2);
    weighted.sum_dim(1).reshape([tokens, hidden])
}

/// The operation with a kernel of its own.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait Experts: Backend {
    fn fused_experts(
        hidden_states: FloatTensor<Self>,
        gate_up_proj: FloatTensor<Self>,
        down_proj: FloatTensor<Self>,
        routing_weights: FloatTensor<Self>,
        expert_indices: IntTensor<Self>,
    ) -> FloatTensor<Self>;
}

impl Experts for Flex {
    fn fused_experts(
        hidden_states: FlexTensor,
        gate_up_proj: FlexTensor,
        down_proj: FlexTensor,
        routing_weights: FlexTensor,
        expert_indices: FlexTensor,
    ) -> FlexTensor {
        let inputs = [hidden_states, gate_up_proj, down_proj, routing_weights];
        forward(inputs.map(consecutive), expert_indices, false).0
    }
}

impl<C: CheckpointStrategy> Experts for Autodiff<Flex, C> {
    fn fused_experts(
        hidden_states: FloatTensor<Self>,
        gate_up_proj: FloatTensor<Self>,
        down_proj: FloatTensor<Self>,
        routing_weights: FloatTensor<Self>,
        expert_indices: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        let inputs = [hidden_states, gate_up_proj, down_proj, routing_weights];
        let nodes = inputs.each_ref().map(FloatTensor::<Self>::node);
        let inputs = inputs.map(|input| consecutive(input.into_primitive()));
        record::<C, _, 4>(
            "experts",
            nodes,
            |keep| forward(inputs, expert_indices, keep),
            backward,
        )
    }
}

/// What the backward pass needs.
#[derive(Clone, Debug)]
struct Kept {
    /// Hidden states, both projections, routing weights.
    inputs: [FlexTensor; 4],
    routes: Routes,
    /// Gates and ups of all rows.
    gate_up: FlexTensor,
}

fn operands<'a>(inputs: &'a [FlexTensor; 4], routes: &'a Routes) -> Operands<'a> {
    let [hidden_states, gate_up_proj, down_proj, routing_weights] = inputs;
    let [num_experts, intermediate, hidden] = down_proj.shape().dims();
    Operands {
        sizes: Sizes {
            hidden,
            intermediate,
            num_experts,
            top_k: routing_weights.shape()[1],
        },
        hidden_states: floats(hidden_states),
        gate_up_proj: floats(gate_up_proj),
        down_proj: floats(down_proj),
        routing_weights: floats(routing_weights),
        routes,
    }
}

fn forward(
    inputs: [FlexTensor; 4],
    expert_indices: FlexTensor,
    keep: bool,
) -> (FlexTensor, Option<Kept>) {
    let [num_experts, intermediate, _] = inputs[2].shape().dims();
    let chosen = integers(expert_indices);
    let routes = Routes::new(&chosen, num_experts, inputs[3].shape()[1]);
    let (output, gate_up) = kernel::forward(Level::current(), operands(&inputs, &routes), keep);
    let output = from_floats(output, &inputs[0].shape());
    let kept = gate_up.map(|gate_up| Kept {
        gate_up: from_floats(gate_up, &[chosen.len(), 2 * intermediate]),
        inputs,
        routes,
    });
    (output, kept)
}

fn backward(kept: Kept, grad: FlexTensor) -> [FlexTensor; 4] {
    let Kept {
        inputs,
        routes,
        mut gate_up,
    } = kept;
    let grad = consecutive(grad);
    let gradients = kernel::backward(
        Level::current(),
        operands(&inputs, &routes),
        floats_mut(&mut gate_up),
        floats(&grad),
    );
    let gradients = [
        gradients.hidden_states,
        gradients.gate_up_proj,
        gradients.down_proj,
        gradients.routing_weights,
    ];
    let mut shapes = inputs.iter().map(TensorMetadata::shape);
    gradients.map(|gradient| {
        let shape = shapes.next().expect("one shape per gradient");
        from_floats(gradient, &shape)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{
        Op, Random, assert_close, check, check_differences, evaluate, widened,
    };
    use burn::tensor::{DType, Device, TensorData};

    /// Sizes of a case and how its tokens choose.
    #[derive(Clone)]
    struct Case {
        tokens: usize,
        hidden: usize,
        intermediate: usize,
        num_experts: usize,
        top_k: usize,
        chosen: Vec<i64>,
    }

    impl Case {
        /// Every token chooses different experts at random.
        fn random(
            [tokens, hidden, intermediate]: [usize; 3],
            num_experts: usize,
            top_k: usize,
        ) -> Self {
            let mut random = Random::new((tokens * num_experts) as u64);
            let mut chosen = Vec::new();
            for _ in 0..tokens {
                let mut experts: Vec<_> = (0..num_experts as i64).collect();
                for choice in 0..top_k {
                    let other = choice + random.below(num_experts - choice);
                    experts.swap(choice, other);
                }
                chosen.extend_from_slice(&experts[..top_k]);
            }
            Self {
                tokens,
                hidden,
                intermediate,
                num_experts,
                top_k,
                chosen,
            }
        }

        /// All tokens choose one expert.
        fn crowded(sizes: [usize; 3], num_experts: usize, expert: i64) -> Self {
            let case = Self::random(sizes, num_experts, 1);
            let chosen = vec![expert; case.tokens];
            Self { chosen, ..case }
        }

        fn lens(&self) -> [usize; 4] {
            let projection = self.num_experts * self.hidden * self.intermediate;
            let choices = self.tokens * self.top_k;
            [
                self.tokens * self.hidden,
                2 * projection,
                projection,
                choices,
            ]
        }

        fn inputs(&self) -> Vec<Vec<f32>> {
            let mut random = Random::new(1);
            self.lens().map(|len| random.floats(len)).to_vec()
        }

        fn op(&self) -> impl Op {
            let case = self.clone();
            move |inputs: Vec<Tensor<1>>| {
                let [x, gate_up, down, weights] = inputs.try_into().expect("four inputs");
                let Case {
                    tokens,
                    hidden,
                    intermediate,
                    num_experts,
                    top_k,
                    ref chosen,
                } = case;
                let data = TensorData::new(chosen.clone(), [tokens, top_k]);
                let output = experts(
                    x.reshape([tokens, hidden]),
                    gate_up.reshape([num_experts, hidden, 2 * intermediate]),
                    down.reshape([num_experts, intermediate, hidden]),
                    weights.reshape([tokens, top_k]),
                    Tensor::from_data(data, &Device::flex()),
                );
                output.reshape([tokens * hidden])
            }
        }

        /// The formula of [`experts`], number by number.
        fn by_formula(&self, inputs: &[Vec<f64>]) -> Vec<f64> {
            let (hidden, inner) = (self.hidden, self.intermediate);
            let mut output = vec![0.0; self.tokens * hidden];
            for (slot, &expert) in self.chosen.iter().enumerate() {
                let (token, e) = (slot / self.top_k, expert as usize);
                let product = |column: usize| {
                    let term = |h| {
                        let weight = (e * hidden + h) * 2 * inner + column;
                        inputs[0][token * hidden + h] * inputs[1][weight]
                    };
                    (0..hidden).map(term).sum::<f64>()
                };
                for j in 0..inner {
                    let (gate, up) = (product(j), product(inner + j));
                    let activated = gate / (1.0 + (-gate).exp()) * up * inputs[3][slot];
                    for h in 0..hidden {
                        let weight = inputs[2][(e * inner + j) * hidden + h];
                        output[token * hidden + h] += activated * weight;
                    }
                }
            }
            output
        }
    }

    fn cases() -> Vec<Case> {
        vec![
            Case::random([1, 1, 1], 1, 1),
            Case::random([7, 5, 3], 4, 4),
            Case::random([77, 40, 24], 9, 3),
            Case::random([1, 17, 19], 5, 2),
            Case::random([13, 16, 8], 1024, 5),
            Case::crowded([301, 33, 17], 3, 2),
            Case::crowded([2100, 7, 3], 2, 0),
        ]
    }

    #[test]
    fn agrees_with_its_twin_on_all_shapes() {
        for case in cases() {
            check(case.op(), &case.inputs());
        }
    }

    #[test]
    fn agrees_with_its_twin_on_random_shapes() {
        let mut random = Random::new(99);
        for _ in 0..40 {
            let mut up_to = |most: usize| 1 + random.below(most);
            let sizes = [up_to(60), up_to(40), up_to(40)];
            let num_experts = up_to(12);
            let case = Case::random(sizes, num_experts, up_to(num_experts));
            check(case.op(), &case.inputs());
        }
    }

    #[test]
    fn the_twin_follows_the_formula() {
        for case in cases() {
            let inputs = widened(&case.inputs());
            let twin = evaluate(case.op(), &inputs, DType::F64);
            assert_close("output", &twin.output, &case.by_formula(&inputs), 1e-12);
        }
    }

    #[test]
    fn accepts_views_that_are_not_consecutive_and_any_integer_type() {
        let case = Case::random([6, 4, 3], 5, 2);
        let chosen = TensorData::new(case.chosen.clone(), [6, 2]);
        let op = |inputs: Vec<Tensor<1>>| {
            let [x, gate_up, down, weights] = inputs.try_into().expect("four inputs");
            let options = (&Device::flex(), DType::I64);
            let output = experts(
                x.reshape([4, 6]).transpose(),
                gate_up.reshape([5, 6, 4]).swap_dims(1, 2),
                down.reshape([3, 5, 4]).swap_dims(0, 1),
                weights.reshape([2, 6]).transpose(),
                Tensor::from_data(chosen.clone(), options),
            );
            output.reshape([24])
        };
        check(op, &case.inputs());
    }

    #[test]
    fn gradients_are_slopes() {
        for case in [
            Case::random([5, 4, 3], 6, 2),
            Case::random([3, 5, 2], 2, 2),
            Case::crowded([4, 3, 5], 3, 1),
        ] {
            check_differences(case.op(), &case.inputs());
        }
    }

    #[test]
    fn an_expert_that_nobody_chose_has_a_gradient_of_zero() {
        let case = Case::crowded([40, 6, 5], 3, 1);
        let inputs = widened(&case.inputs());
        let result = evaluate(case.op(), &inputs, DType::F32);
        for grad in &result.grads[1..3] {
            let third = grad.len() / 3;
            assert!(
                grad[..third]
                    .iter()
                    .chain(&grad[2 * third..])
                    .all(|&g| g == 0.0)
            );
            assert!(grad[third..2 * third].iter().all(|&g| g != 0.0));
        }
    }

    #[test]
    fn without_tokens_there_is_nothing_to_do() {
        let case = Case::random([0, 4, 3], 2, 1);
        let result = evaluate(
            case.op(),
            &[vec![], vec![1.0; 48], vec![1.0; 24], vec![]],
            DType::F32,
        );
        assert!(result.output.is_empty());
        assert!(
            result.grads[1]
                .iter()
                .chain(&result.grads[2])
                .all(|&g| g == 0.0)
        );
    }

    #[test]
    #[should_panic(expected = "index 2 is not below num_experts 2")]
    fn refuses_an_expert_that_does_not_exist() {
        let case = Case::crowded([3, 2, 2], 2, 2);
        check(case.op(), &case.inputs());
    }

    #[test]
    #[should_panic(expected = "index -1 is not below num_experts 2")]
    fn the_twin_refuses_an_expert_that_does_not_exist() {
        let case = Case::crowded([1, 1, 1], 2, -1);
        let ones = case.lens().map(|len| vec![1.0; len]);
        evaluate(case.op(), &ones, DType::F64);
    }
}
