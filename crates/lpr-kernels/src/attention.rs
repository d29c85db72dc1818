//! Causal grouped-query attention over rows that may hold several documents and padding.

use crate::{
    cpu::{
        Level,
        attention::{self as kernel, Operands, Results, Sizes},
        tensor::{consecutive, floats, from_floats, integers},
        visibility::{Documents, Visibility},
    },
    dispatch::{has_cpu_kernel, record},
    precision::product,
    profile::span,
};
use burn::{
    backend::{
        Autodiff, Backend, Dispatch, Flex, TensorMetadata,
        autodiff::checkpoint::strategy::CheckpointStrategy,
        backend_extension,
        flex::FlexTensor,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::{Bool, Int, Tensor, activation},
};

/// Which tokens of a batch of rows belong together.
///
/// Padding stands at the end of a row and carries the document id of the row's last document.
#[derive(Clone, Debug)]
pub struct SequenceMask {
    /// The document of each position, `[batch, seq]`; equal numbers in one row mean the same
    /// document.
    pub document_ids: Tensor<2, Int>,
    /// 1 for a token, 0 for padding, `[batch, seq]`.
    pub is_token: Tensor<2, Int>,
}

/// Scaled dot-product attention in which no position sees a later one.
///
/// Position `q` sees position `k` if `k <= q` and, with a mask, if `k` is a token of the document
/// of `q`:
///
/// ```text
/// out[q] = sum over visible k of softmax(scale * query[q] . key[k]) value[k]
/// ```
///
/// Query head `h` uses the key and value head `h / (heads / kv_heads)`. A position that sees
/// nothing yields zeros.
///
/// # Shapes
///
/// - `query`: `[batch, seq, heads, head_dim]`
/// - `key`: `[batch, seq, kv_heads, head_dim]`
/// - `value`: `[batch, seq, kv_heads, v_head_dim]`
/// - result: `[batch, seq, heads, v_head_dim]`
///
/// # Panics
///
/// If the shapes do not fit together or `heads` is not a multiple of `kv_heads`.
pub fn causal_attention(
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    mask: Option<&SequenceMask>,
    scale: f64,
) -> Tensor<4> {
    let _span = span("causal_attention");
    check_shapes(&query, &key, &value, mask);
    if !has_cpu_kernel(&query) {
        return portable(query, key, value, mask, scale);
    }
    let (query, key, value) = (
        query.into_dispatch(),
        key.into_dispatch(),
        value.into_dispatch(),
    );
    Tensor::from_dispatch(if let Some(mask) = mask {
        let documents = mask.document_ids.clone().inner().into_dispatch();
        let is_token = mask.is_token.clone().inner().into_dispatch();
        Dispatch::fused_document_attention(query, key, value, documents, is_token, scale as f32)
    } else {
        Dispatch::fused_causal_attention(query, key, value, scale as f32)
    })
}

fn check_shapes(
    query: &Tensor<4>,
    key: &Tensor<4>,
    value: &Tensor<4>,
    mask: Option<&SequenceMask>,
) {
    let [batch, seq, heads, head_dim] = query.dims();
    let [_, _, kv_heads, v_head_dim] = value.dims();
    assert!(
        key.dims() == [batch, seq, kv_heads, head_dim]
            && value.dims() == [batch, seq, kv_heads, v_head_dim],
        "causal_attention: query {:?}, key {:?} and value {:?} do not fit together",
        query.dims(),
        key.dims(),
        value.dims()
    );
    assert!(
        kv_heads > 0 && heads.is_multiple_of(kv_heads),
        "causal_attention: {heads} query heads are not a multiple of {kv_heads} key heads"
    );
    if let Some(mask) = mask {
        let dims = [batch, seq];
        assert!(
            mask.document_ids.dims() == dims && mask.is_token.dims() == dims,
            "causal_attention: the mask {:?} and {:?} must be [{batch}, {seq}]",
            mask.document_ids.dims(),
            mask.is_token.dims()
        );
    }
}

/// The operation in plain tensor operations.
fn portable(
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    mask: Option<&SequenceMask>,
    scale: f64,
) -> Tensor<4> {
    let [batch, seq, heads, head_dim] = query.dims();
    let [_, _, kv_heads, v_head_dim] = value.dims();
    let grouped = [batch, kv_heads, heads / kv_heads * seq, head_dim];
    let query = query.swap_dims(1, 2).reshape(grouped) * scale;
    let scores = product(query, key.permute([0, 2, 3, 1]));
    let visible = visible(&scores, mask, batch, seq);
    let by_head = [batch, heads, seq, seq];
    let visible = visible.unsqueeze_dim::<4>(1).expand(by_head);
    // Finite, so that a row that sees nothing stays finite; the second fill clears it.
    let scores = scores.reshape(by_head);
    let scores = scores.mask_fill(visible.clone().bool_not(), -1.0e30);
    let probs = activation::softmax(scores, 3).mask_fill(visible.bool_not(), 0.0);
    let probs = probs.reshape([batch, kv_heads, heads / kv_heads * seq, seq]);
    let out = product(probs, value.swap_dims(1, 2));
    out.reshape([batch, heads, seq, v_head_dim]).swap_dims(1, 2)
}

/// Which keys each query sees, `[batch, seq, seq]`.
fn visible(
    like: &Tensor<4>,
    mask: Option<&SequenceMask>,
    batch: usize,
    seq: usize,
) -> Tensor<3, Bool> {
    let device = like.device().inner();
    let full = [batch, seq, seq];
    let position = Tensor::<1, Int>::arange(0..seq as i64, &device);
    let of_query = position.clone().reshape([1, seq, 1]).expand(full);
    let causal = of_query.greater_equal(position.reshape([1, 1, seq]).expand(full));
    let Some(mask) = mask else {
        return causal;
    };
    let documents = mask.document_ids.clone().inner();
    let of_query = documents.clone().reshape([batch, seq, 1]).expand(full);
    let same_document = of_query.equal(documents.reshape([batch, 1, seq]).expand(full));
    let is_token = mask.is_token.clone().inner().equal_scalar(1);
    let is_token = is_token.reshape([batch, 1, seq]).expand(full);
    causal.bool_and(same_document).bool_and(is_token)
}

/// The operation with a kernel of its own.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait Attention: Backend {
    fn fused_causal_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        scale: f32,
    ) -> FloatTensor<Self>;

    fn fused_document_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        document_ids: IntTensor<Self>,
        is_token: IntTensor<Self>,
        scale: f32,
    ) -> FloatTensor<Self>;
}

impl Attention for Flex {
    fn fused_causal_attention(
        query: FlexTensor,
        key: FlexTensor,
        value: FlexTensor,
        scale: f32,
    ) -> FlexTensor {
        Inputs::new([query, key, value], None, scale).forward().0
    }

    fn fused_document_attention(
        query: FlexTensor,
        key: FlexTensor,
        value: FlexTensor,
        document_ids: FlexTensor,
        is_token: FlexTensor,
        scale: f32,
    ) -> FlexTensor {
        let mask = Some([document_ids, is_token]);
        Inputs::new([query, key, value], mask, scale).forward().0
    }
}

impl<C: CheckpointStrategy> Attention for Autodiff<Flex, C> {
    fn fused_causal_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        scale: f32,
    ) -> FloatTensor<Self> {
        recorded::<C>([query, key, value], None, scale)
    }

    fn fused_document_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        document_ids: IntTensor<Self>,
        is_token: IntTensor<Self>,
        scale: f32,
    ) -> FloatTensor<Self> {
        recorded::<C>([query, key, value], Some([document_ids, is_token]), scale)
    }
}

fn recorded<C: CheckpointStrategy>(
    tensors: [FloatTensor<Autodiff<Flex, C>>; 3],
    mask: Option<[FlexTensor; 2]>,
    scale: f32,
) -> FloatTensor<Autodiff<Flex, C>> {
    let nodes = tensors
        .each_ref()
        .map(FloatTensor::<Autodiff<Flex, C>>::node);
    let tensors = tensors.map(FloatTensor::<Autodiff<Flex, C>>::into_primitive);
    record::<C, _, 3>(
        "causal_attention",
        nodes,
        |keep| {
            let inputs = Inputs::new(tensors, mask, scale);
            let (output, log_sums) = inputs.forward();
            let kept = keep.then(|| Kept {
                inputs,
                output: output.clone(),
                log_sums,
            });
            (output, kept)
        },
        Kept::backward,
    )
}

/// What the kernel works on.
#[derive(Clone, Debug)]
struct Inputs {
    /// Query, key, value.
    tensors: [FlexTensor; 3],
    visibility: Visibility,
    scale: f32,
}

/// What the backward pass needs.
#[derive(Clone, Debug)]
struct Kept {
    inputs: Inputs,
    output: FlexTensor,
    log_sums: Vec<f32>,
}

impl Inputs {
    fn new(tensors: [FlexTensor; 3], mask: Option<[FlexTensor; 2]>, scale: f32) -> Self {
        let seq = tensors[0].shape()[1];
        let visibility = match mask.map(|mask| mask.map(integers)) {
            None => Visibility::causal(seq),
            Some([document_ids, is_token]) => {
                let documents = Documents {
                    document_ids,
                    is_token,
                };
                Visibility::by_document(&documents, seq)
            }
        };
        Self {
            tensors: tensors.map(consecutive),
            visibility,
            scale,
        }
    }

    fn operands(&self) -> Operands<'_> {
        let [query, key, value] = &self.tensors;
        let [batch, seq, heads, head_dim] = query.shape().dims();
        let [_, _, kv_heads, v_head_dim] = value.shape().dims();
        Operands {
            sizes: Sizes {
                batch,
                seq,
                heads,
                kv_heads,
                head_dim,
                v_head_dim,
            },
            query: floats(query),
            key: floats(key),
            value: floats(value),
            visibility: &self.visibility,
            scale: self.scale,
        }
    }

    /// The output and the logarithms of the softmax denominators.
    fn forward(&self) -> (FlexTensor, Vec<f32>) {
        let operands = self.operands();
        let Sizes {
            batch,
            seq,
            heads,
            v_head_dim,
            ..
        } = operands.sizes;
        let (output, log_sums) = kernel::forward(Level::current(), operands);
        let shape = [batch, seq, heads, v_head_dim];
        (from_floats(output, &shape), log_sums)
    }
}

impl Kept {
    fn backward(self, grad: FlexTensor) -> [FlexTensor; 3] {
        let grad = consecutive(grad);
        let results = Results {
            output: floats(&self.output),
            log_sums: &self.log_sums,
            grad: floats(&grad),
        };
        let grads = kernel::backward(Level::current(), self.inputs.operands(), results);
        let mut shapes = self.inputs.tensors.iter().map(TensorMetadata::shape);
        grads.map(|grad| {
            let shape = shapes.next().expect("one shape per gradient");
            from_floats(grad, &shape)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{
        Op, Random, assert_close, check, check_differences, evaluate, widened,
    };
    use burn::tensor::{DType, Device, TensorData};

    #[derive(Clone)]
    struct Case {
        sizes: Sizes,
        /// Documents and tokens.
        mask: Option<[Vec<i64>; 2]>,
    }

    impl Case {
        fn causal(
            [batch, seq]: [usize; 2],
            [heads, kv_heads]: [usize; 2],
            [head_dim, v_head_dim]: [usize; 2],
        ) -> Self {
            let sizes = Sizes {
                batch,
                seq,
                heads,
                kv_heads,
                head_dim,
                v_head_dim,
            };
            Self { sizes, mask: None }
        }

        /// Rows of several documents, the later rows with more padding, the last one without a
        /// token.
        fn packed(batch: [usize; 2], heads: [usize; 2], dims: [usize; 2]) -> Self {
            let case = Self::causal(batch, heads, dims);
            let [batch, seq] = batch;
            let mut random = Random::new(seq as u64);
            let (mut documents, mut tokens) = (Vec::new(), Vec::new());
            for row in 0..batch {
                let num_tokens = seq - row * seq / (batch - 1).max(1);
                let mut document = row as i64;
                for position in 0..seq {
                    let new = position < num_tokens && random.below(seq / 3 + 1) == 0;
                    document += i64::from(new);
                    documents.push(document);
                    tokens.push(i64::from(position < num_tokens));
                }
            }
            let mask = Some([documents, tokens]);
            Self { mask, ..case }
        }

        /// Documents and padding in no order.
        fn scattered(batch: [usize; 2], heads: [usize; 2], dims: [usize; 2]) -> Self {
            let case = Self::causal(batch, heads, dims);
            let mut random = Random::new(8);
            let mut draw = |end| -> Vec<i64> {
                let places = 0..batch[0] * batch[1];
                places.map(|_| random.below(end) as i64).collect()
            };
            let mask = Some([draw(3), draw(2)]);
            Self { mask, ..case }
        }

        fn lens(&self) -> [usize; 3] {
            let s = self.sizes;
            let positions = s.batch * s.seq;
            let key = s.kv_heads * s.head_dim;
            [
                positions * s.heads * s.head_dim,
                positions * key,
                positions * s.kv_heads * s.v_head_dim,
            ]
        }

        fn inputs(&self) -> Vec<Vec<f32>> {
            let mut random = Random::new(21);
            self.lens().map(|len| random.floats(len)).to_vec()
        }

        fn op(&self, scale: f64) -> impl Op {
            let Self { sizes, mask } = self.clone();
            move |inputs: Vec<Tensor<1>>| {
                let [query, key, value] = inputs.try_into().expect("three inputs");
                let Sizes { batch, seq, .. } = sizes;
                let mask = mask.as_ref().map(|mask| {
                    let [document_ids, is_token] = mask.clone().map(|values| {
                        let data = TensorData::new(values, [batch, seq]);
                        Tensor::from_data(data, &Device::flex())
                    });
                    SequenceMask {
                        document_ids,
                        is_token,
                    }
                });
                let output = causal_attention(
                    query.reshape([batch, seq, sizes.heads, sizes.head_dim]),
                    key.reshape([batch, seq, sizes.kv_heads, sizes.head_dim]),
                    value.reshape([batch, seq, sizes.kv_heads, sizes.v_head_dim]),
                    mask.as_ref(),
                    scale,
                );
                output.reshape([batch * seq * sizes.heads * sizes.v_head_dim])
            }
        }

        /// The formula of [`causal_attention`], number by number.
        fn by_formula(&self, inputs: &[Vec<f64>], scale: f64) -> Vec<f64> {
            let s = self.sizes;
            let mut output = Vec::new();
            for (row, query, head) in (0..s.batch)
                .flat_map(|row| (0..s.seq).map(move |query| (row, query)))
                .flat_map(|(row, query)| (0..s.heads).map(move |head| (row, query, head)))
            {
                let kv_head = head / (s.heads / s.kv_heads);
                let visible = |key: &usize| {
                    let mask = self.mask.as_ref();
                    mask.is_none_or(|[documents, tokens]| {
                        let (query, key) = (row * s.seq + query, row * s.seq + key);
                        tokens[key] == 1 && documents[query] == documents[key]
                    })
                };
                let keys: Vec<_> = (0..=query).filter(visible).collect();
                let exponential = |&key: &usize| {
                    let q = ((row * s.seq + query) * s.heads + head) * s.head_dim;
                    let k = ((row * s.seq + key) * s.kv_heads + kv_head) * s.head_dim;
                    let dot = |i| inputs[0][q + i] * inputs[1][k + i];
                    (scale * (0..s.head_dim).map(dot).sum::<f64>()).exp()
                };
                let sum: f64 = keys.iter().map(exponential).sum();
                output.extend((0..s.v_head_dim).map(|i| {
                    let value = |key: &usize| {
                        let v = (row * s.seq + key) * s.kv_heads + kv_head;
                        exponential(key) / sum * inputs[2][v * s.v_head_dim + i]
                    };
                    keys.iter().map(value).sum::<f64>()
                }));
            }
            output
        }
    }

    fn cases() -> Vec<Case> {
        vec![
            Case::causal([1, 1], [1, 1], [1, 1]),
            Case::causal([2, 67], [4, 4], [8, 8]),
            Case::causal([1, 131], [3, 1], [5, 7]),
            Case::packed([3, 71], [4, 2], [24, 16]),
            Case::packed([2, 193], [2, 1], [6, 32]),
            Case::scattered([2, 70], [2, 1], [4, 3]),
        ]
    }

    #[test]
    fn agrees_with_its_twin_on_all_shapes_and_masks() {
        for case in cases() {
            check(case.op(0.3), &case.inputs());
        }
    }

    #[test]
    fn agrees_with_its_twin_on_random_shapes() {
        let mut random = Random::new(5);
        for round in 0..30 {
            let mut up_to = |most: usize| 1 + random.below(most);
            // Where every query sees one key, gradients of queries and keys vanish and the kernel's
            // are roundings, which no relative tolerance allows.
            let batch = [up_to(3), 8 + up_to(150)];
            let kv_heads = up_to(3);
            let heads = [kv_heads * up_to(3), kv_heads];
            let dims = [up_to(40), up_to(40)];
            let case = match round % 3 {
                0 => Case::causal(batch, heads, dims),
                1 => Case::packed(batch, heads, dims),
                _ => Case::scattered(batch, heads, dims),
            };
            check(case.op(0.3), &case.inputs());
        }
    }

    #[test]
    fn the_twin_follows_the_formula() {
        for case in cases() {
            let inputs = widened(&case.inputs());
            let twin = evaluate(case.op(0.7), &inputs, DType::F64);
            assert_close(
                "output",
                &twin.output,
                &case.by_formula(&inputs, 0.7),
                1e-12,
            );
        }
    }

    #[test]
    fn accepts_views_that_are_not_consecutive() {
        let op = |inputs: Vec<Tensor<1>>| {
            let [joint] = inputs.try_into().expect("one input");
            let joint = joint.reshape([2, 9, 4, 5]);
            let query = joint.clone().narrow(2, 0, 2);
            let key = joint.clone().narrow(2, 2, 1);
            let value = joint.swap_dims(1, 2).narrow(1, 3, 1).swap_dims(1, 2);
            causal_attention(query, key, value, None, 0.6).reshape([2 * 9 * 2 * 5])
        };
        let joint = Random::new(4).floats(2 * 9 * 4 * 5);
        check(op, &[joint]);
    }

    #[test]
    fn gradients_are_slopes() {
        for case in [
            Case::causal([1, 7], [2, 1], [3, 2]),
            Case::packed([2, 9], [2, 2], [2, 3]),
            Case::scattered([1, 8], [2, 1], [2, 1]),
        ] {
            check_differences(case.op(0.8), &case.inputs());
        }
    }

    #[test]
    fn the_largest_score_takes_all_without_overflow() {
        let case = Case::causal([1, 3], [1, 1], [1, 1]);
        let inputs = [vec![100.0; 3], vec![-1.0, 2.0, 1.0], vec![5.0, 6.0, 7.0]];
        let result = evaluate(case.op(10.0), &inputs, DType::F32);
        assert_eq!(result.output, [5.0, 6.0, 6.0]);
        assert!(result.grads.iter().flatten().all(|g| g.is_finite()));
    }

    #[test]
    fn padding_changes_nothing_for_the_tokens_before_it() {
        let long = Case::packed([2, 40], [2, 1], [4, 4]);
        let [documents, mut tokens] = long.mask.clone().expect("a mask");
        tokens.fill(1);
        let full = evaluate_first_row(&Case {
            mask: Some([documents.clone(), tokens.clone()]),
            ..long.clone()
        });
        tokens[30..40].fill(0);
        let padded = evaluate_first_row(&Case {
            mask: Some([documents, tokens]),
            ..long
        });
        assert_eq!(padded[..30 * 8], full[..30 * 8]);
        assert_ne!(padded[30 * 8..], full[30 * 8..]);
    }

    /// The output of the first of two rows.
    fn evaluate_first_row(case: &Case) -> Vec<f64> {
        let inputs = widened(&case.inputs());
        let mut output = evaluate(case.op(0.5), &inputs, DType::F32).output;
        output.truncate(output.len() / 2);
        output
    }

    #[test]
    #[should_panic(expected = "3 query heads are not a multiple of 2 key heads")]
    fn refuses_heads_that_cannot_be_grouped() {
        let case = Case::causal([1, 2], [3, 2], [2, 2]);
        check(case.op(1.0), &case.inputs());
    }
}
