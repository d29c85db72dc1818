//! Every operation on a GPU, or a program in its place, against the CPU's kernels.
//!
//! The device is that of `LPR_TEST_DEVICE`, or the first of this build. Where there is none, every
//! test fails and says why.

#![cfg(any(feature = "wgpu", feature = "cuda"))]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use burn::tensor::{Device, Int, Tensor, TensorData};
use lpr_kernels::devices::{self, DeviceName};
use lpr_kernels::{
    AdamW, AdamWStep, IGNORE_INDEX, Moments, SequenceMask, causal_attention, choices_per_expert,
    embedding, exact_linear, experts, layer_norm_silu, linear, linear_cross_entropy, rms_norm,
    rotary, silu_mul, squared_norm, top_k, weight_per_expert,
};

/// Largest difference allowed, relative to the largest value: about 80 roundings of `f32`.
const TOLERANCE: f64 = 1.0e-5;

fn gpu() -> Device {
    let first = if cfg!(feature = "wgpu") {
        "wgpu"
    } else {
        "cuda"
    };
    let name = std::env::var("LPR_TEST_DEVICE").unwrap_or_else(|_| first.to_owned());
    let device: DeviceName = name.parse().unwrap();
    devices::open(device).unwrap_or_else(|error| panic!("no device {name} to test on: {error}"))
}

/// Reproducible numbers in `-1..1` (splitmix64).
fn floats(len: usize, seed: u64) -> Vec<f32> {
    let float = |i: usize| (word(i, seed) >> 40) as f32 / (1 << 23) as f32 - 1.0;
    (0..len).map(float).collect()
}

/// Reproducible numbers below `end`.
fn below(end: usize, len: usize, seed: u64) -> Vec<i32> {
    let number = |i: usize| (word(i, seed) % end as u64) as i32;
    (0..len).map(number).collect()
}

fn word(index: usize, seed: u64) -> u64 {
    let mut z = (seed << 32 | index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn flat(values: &[f32], device: &Device) -> Tensor<1> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), device)
}

fn ints<const D: usize>(values: &[i32], shape: [usize; D], device: &Device) -> Tensor<D, Int> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

fn indices<const D: usize>(tensor: Tensor<D, Int>) -> Vec<i64> {
    tensor.into_data().iter::<i64>().collect()
}

fn assert_close(what: &str, actual: &[f64], expected: &[f64]) {
    assert_eq!(actual.len(), expected.len(), "{what}: number of values");
    let largest = expected.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
    for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
        let close = (a - e).abs() <= TOLERANCE * largest;
        assert!(close, "{what}[{i}]: {a}, on the CPU {e}, largest {largest}");
    }
}

/// The output of `op` and the gradients of its inputs, one after the other.
fn evaluate(
    op: &dyn Fn(Vec<Tensor<1>>, &Device) -> Tensor<1>,
    inputs: &[Vec<f32>],
    device: &Device,
) -> Vec<Vec<f64>> {
    let tracked = device.clone().autodiff();
    let leaf = |x: &Vec<f32>| flat(x, &tracked).require_grad();
    let leaves: Vec<_> = inputs.iter().map(leaf).collect();
    let output = op(leaves.clone(), device);
    let weights = flat(&floats(output.dims()[0], 99), &tracked);
    let grads = (output.clone() * weights).sum().backward();
    let grad = |leaf: &Tensor<1>| values(leaf.grad(&grads).unwrap());
    let all = std::iter::once(values(output.inner()));
    all.chain(leaves.iter().map(grad)).collect()
}

/// Compares output and gradients, and both of two runs on the GPU.
fn check(what: &str, inputs: &[Vec<f32>], op: impl Fn(Vec<Tensor<1>>, &Device) -> Tensor<1>) {
    let gpu = gpu();
    let on_cpu = evaluate(&op, inputs, &Device::flex());
    let on_gpu = evaluate(&op, inputs, &gpu);
    for (i, (actual, expected)) in on_gpu.iter().zip(&on_cpu).enumerate() {
        let part = if i == 0 { "output" } else { "gradient" };
        assert_close(&format!("{what}: {part} {i}"), actual, expected);
    }
    let again = evaluate(&op, inputs, &gpu);
    assert!(on_gpu == again, "{what}: another run has other bits");
}

#[test]
fn products_agree() {
    let inputs = [floats(2 * 50 * 33, 1), floats(33 * 65, 2), floats(65, 3)];
    check("linear", &inputs, |mut operands, _| {
        let bias = operands.pop();
        let weight = operands.pop().unwrap().reshape([33, 65]);
        let x = operands.pop().unwrap().reshape([2, 50, 33]);
        linear(x, weight, bias).reshape([2 * 50 * 65])
    });
    check("exact_linear", &inputs[..2], |operands, _| {
        let [x, weight] = operands.try_into().unwrap();
        exact_linear(x.reshape([100, 33]), weight.reshape([33, 65]), None).reshape([6500])
    });
}

#[test]
fn norms_and_activations_agree() {
    let inputs = [floats(74 * 33, 1), floats(33, 2), floats(33, 3)];
    check("rms_norm", &inputs[..2], |operands, _| {
        let [x, weight] = operands.try_into().unwrap();
        rms_norm(x.reshape([2, 37, 33]), weight, 1e-6).reshape([74 * 33])
    });
    check("layer_norm_silu", &inputs, |operands, _| {
        let [x, weight, bias] = operands.try_into().unwrap();
        layer_norm_silu(x.reshape([74, 33]), weight, bias, 1e-5).reshape([74 * 33])
    });
    let gate = floats(401, 4).into_iter().map(|x| 20.0 * x).collect();
    check("silu_mul", &[gate, floats(401, 5)], |operands, _| {
        let [gate, up] = operands.try_into().unwrap();
        silu_mul(gate, up)
    });
    check(
        "rotary",
        &[floats(2 * 13 * 3 * 10, 6)],
        |operands, device| {
            let [x] = operands.try_into().unwrap();
            let angles = flat(&floats(13 * 5, 7), device).reshape([1, 13, 5]) * 3.0;
            rotary(
                x.reshape([2, 13, 3, 10]),
                angles.clone().cos(),
                angles.sin(),
            )
            .reshape([780])
        },
    );
}

#[test]
fn attention_agrees() {
    let [batch, seq, heads, kv_heads, width] = [3, 37, 4, 2, 8];
    let positions = batch * seq;
    let inputs = [
        floats(positions * heads * width, 1),
        floats(positions * kv_heads * width, 2),
        floats(positions * kv_heads * width, 3),
    ];
    for masked in [false, true] {
        check("causal_attention", &inputs, |operands, device| {
            let [query, key, value] = operands.try_into().unwrap();
            let mask = masked.then(|| SequenceMask {
                document_ids: ints(&below(3, positions, 4), [batch, seq], device),
                is_token: ints(&below(2, positions, 5), [batch, seq], device),
            });
            let output = causal_attention(
                query.reshape([batch, seq, heads, width]),
                key.reshape([batch, seq, kv_heads, width]),
                value.reshape([batch, seq, kv_heads, width]),
                mask.as_ref(),
                0.35,
            );
            output.reshape([positions * heads * width])
        });
    }
}

/// Whom tokens choose.
#[derive(Clone, Copy, Debug)]
enum Spread {
    Random,
    /// All tokens the same experts.
    Same,
    /// The first tokens the first experts, the next ones the next.
    Sorted,
}

/// Choices of different experts.
fn choices(tokens: usize, num_experts: usize, top_k: usize, spread: Spread) -> Vec<i32> {
    let random = below(num_experts, tokens, 8);
    let choice = |i: usize| {
        let start = match spread {
            Spread::Random => random[i / top_k] as usize,
            Spread::Same => 1,
            Spread::Sorted => i / top_k * num_experts / tokens,
        };
        ((start + i % top_k) % num_experts) as i32
    };
    (0..tokens * top_k).map(choice).collect()
}

/// The largest case has more choices than a unit counts, and several blocks of rows per expert.
#[test]
fn experts_agree() {
    let [hidden, inner] = [20, 12];
    for (tokens, num_experts, top_k, spread) in [
        (77, 9, 3, Spread::Random),
        (1, 5, 2, Spread::Random),
        (1, 1, 1, Spread::Same),
        (130, 3, 1, Spread::Same),
        (40, 16, 4, Spread::Same),
        (31, 7, 7, Spread::Sorted),
        (19, 67, 2, Spread::Sorted),
        (997, 13, 3, Spread::Random),
    ] {
        let projection = num_experts * hidden * inner;
        let inputs = [
            floats(tokens * hidden, 1),
            floats(2 * projection, 2),
            floats(projection, 3),
            floats(tokens * top_k, 4),
        ];
        let chosen = choices(tokens, num_experts, top_k, spread);
        let what = format!("experts, {tokens} x {top_k} of {num_experts}, {spread:?}");
        check(&what, &inputs, |operands, device| {
            let [x, gate_up, down, weights] = operands.try_into().unwrap();
            let output = experts(
                x.reshape([tokens, hidden]),
                gate_up.reshape([num_experts, hidden, 2 * inner]),
                down.reshape([num_experts, inner, hidden]),
                weights.reshape([tokens, top_k]),
                ints(&chosen, [tokens, top_k], device),
            );
            output.reshape([tokens * hidden])
        });
    }
}

/// Ids that come often, once and never, in tables of one, two and three digits to sort by.
#[test]
fn embeddings_agree() {
    for (vocab, hidden, tokens, distinct) in [
        (300, 24, 144, 300),
        (5003, 3, 1200, 40),
        (262_147, 2, 600, 262_147),
        (17, 5, 1, 17),
        (600, 4, 300, 1),
    ] {
        let ids = below(distinct, tokens, 6);
        let last: Vec<i32> = ids.iter().map(|id| vocab - 1 - id).collect();
        let inputs = [floats(vocab as usize * hidden, 7)];
        let what = format!("embedding, {tokens} of {distinct} of {vocab}");
        check(&what, &inputs, |operands, device| {
            let [table] = operands.try_into().unwrap();
            let ids = ints(&last, [1, tokens], device);
            embedding(table.reshape([vocab as usize, hidden]), ids).reshape([tokens * hidden])
        });
    }
}

/// More rows than a chunk of logits has.
#[test]
fn the_head_agrees() {
    let (rows, hidden, vocab) = (1301, 5, 131);
    let ignored = |(i, target)| {
        if i % 5 == 0 {
            IGNORE_INDEX as i32
        } else {
            target
        }
    };
    let targets: Vec<i32> = below(vocab, rows, 1)
        .into_iter()
        .enumerate()
        .map(ignored)
        .collect();
    let inputs = [floats(rows * hidden, 2), floats(vocab * hidden, 3)];
    check("linear_cross_entropy", &inputs, |operands, device| {
        let [x, weight] = operands.try_into().unwrap();
        linear_cross_entropy(
            x.reshape([rows, hidden]),
            weight.reshape([vocab, hidden]),
            ints(&targets, [rows], device),
        )
    });
}

/// Many scores are equal: the first columns win.
#[test]
fn the_largest_scores_are_the_same_also_where_scores_are_equal() {
    let (rows, columns) = (70, 33);
    let scores: Vec<f32> = below(9, rows * columns, 1)
        .iter()
        .map(|&s| s as f32 - 3.0)
        .collect();
    for k in [1, 4, 8] {
        let found = |device: &Device| {
            let (values, columns) = top_k(flat(&scores, device).reshape([rows, columns]), k);
            (
                values.into_data().iter::<f32>().collect::<Vec<_>>(),
                indices(columns),
            )
        };
        assert!(found(&gpu()) == found(&Device::flex()), "k = {k}");
    }
    let inputs = [floats(rows * columns, 2)];
    check("top_k", &inputs, |operands, _| {
        let [scores] = operands.try_into().unwrap();
        top_k(scores.reshape([rows, columns]), 4)
            .0
            .reshape([rows * 4])
    });
}

#[test]
fn loads_are_counted_alike() {
    let (tokens, num_experts, top_k) = (90, 7, 3);
    let chosen = choices(tokens, num_experts, top_k, Spread::Random);
    let is_token = below(2, tokens, 3);
    let counted = |device: &Device| {
        let chosen = || ints(&chosen, [tokens, top_k], device);
        let weights = flat(&floats(tokens * top_k, 1), device).reshape([tokens, top_k]);
        let is_token = ints(&is_token, [tokens], device);
        (
            indices(choices_per_expert(chosen(), None, num_experts)),
            indices(choices_per_expert(chosen(), Some(is_token), num_experts)),
            values(weight_per_expert(chosen(), weights, num_experts)),
        )
    };
    let (cpu, gpu) = (counted(&Device::flex()), counted(&gpu()));
    assert_eq!(gpu.0, cpu.0);
    assert_eq!(gpu.1, cpu.1);
    assert_eq!(cpu.0.iter().sum::<i64>(), (tokens * top_k) as i64);
    assert_close("weight_per_expert", &gpu.2, &cpu.2);
}

#[test]
fn the_optimizer_agrees() {
    let len = 5003;
    let adamw = AdamW {
        betas: (0.9, 0.95),
        eps: 1e-8,
    };
    let run = |device: &Device| {
        let mut param = flat(&floats(len, 1), device);
        let mut moments = Moments::zeros_like(&param);
        let mut norms = Vec::new();
        for step in 1..=3 {
            let grad = flat(&floats(len, 1 + step), device);
            norms.push(squared_norm([&grad, &param]).read());
            let step = AdamWStep {
                step,
                learning_rate: 1e-2,
                weight_decay: 0.1,
                grad_scale: 0.5,
            };
            (param, moments) = adamw.update(param, grad, moments, step);
        }
        (values(param), values(moments.exp_avg_sq), norms)
    };
    let (cpu, gpu) = (run(&Device::flex()), run(&gpu()));
    assert_close("parameter", &gpu.0, &cpu.0);
    assert_close("second average", &gpu.1, &cpu.1);
    assert_close("squared norm", &gpu.2, &cpu.2);
}
