//! Times every operation on one thread, in CPU milliseconds, at the sizes of the CPU benchmarks.
//!
//! `cargo run --release -p lpr-kernels --example ops [small|medium] [repeats]`. Where the CPU time
//! of a thread cannot be read, wall time is printed.

use burn::tensor::{Device, Distribution, Int, Tensor};
use lpr_kernels::{
    AdamW, AdamWStep, Moments, SequenceMask, causal_attention, experts, instruction_set,
    linear_cross_entropy, rms_norm, rotary, silu_mul, squared_norm,
};
use std::{env, fs, sync::LazyLock, time::Instant};

/// The sizes of a model and its batch.
struct Shape {
    vocab: usize,
    hidden: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    num_experts: usize,
    top_k: usize,
    intermediate: usize,
    seq: usize,
    batch: usize,
}

const SMALL: Shape = Shape {
    vocab: 8192,
    hidden: 256,
    heads: 8,
    kv_heads: 2,
    head_dim: 32,
    num_experts: 32,
    top_k: 4,
    intermediate: 128,
    seq: 256,
    batch: 8,
};

const MEDIUM: Shape = Shape {
    vocab: 32_768,
    hidden: 512,
    heads: 8,
    kv_heads: 2,
    head_dim: 64,
    num_experts: 128,
    top_k: 8,
    intermediate: 128,
    seq: 512,
    batch: 4,
};

/// CPU time of this thread in milliseconds, else the wall time.
fn now_ms() -> f64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    let statistics = fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanoseconds = statistics.and_then(|s| s.split(' ').next()?.parse::<f64>().ok());
    nanoseconds.map_or_else(|| START.elapsed().as_secs_f64() * 1e3, |ns| ns / 1e6)
}

/// The best of some averages in milliseconds, each over runs of about `GROUP_MS`, because the CPU
/// time of a thread is brought up to date only every few milliseconds.
fn best_ms(repeats: usize, mut action: impl FnMut()) -> f64 {
    const GROUP_MS: u128 = 100;
    let mut average = || {
        let (start, started, mut runs) = (now_ms(), Instant::now(), 0);
        while runs == 0 || started.elapsed().as_millis() < GROUP_MS {
            action();
            runs += 1;
        }
        (now_ms() - start) / f64::from(runs)
    };
    let averages = (0..repeats).map(|_| average());
    averages.fold(f64::INFINITY, f64::min)
}

struct Bench {
    shape: Shape,
    repeats: usize,
}

impl Bench {
    fn random<const D: usize>(dims: [usize; D]) -> Tensor<D> {
        Tensor::random(dims, Distribution::Uniform(-1.0, 1.0), &Device::flex())
    }

    /// Prints the times of an operation without gradients, and with them and its backward pass.
    fn run<const N: usize>(
        &self,
        name: &str,
        inputs: [Tensor<1>; N],
        op: impl Fn([Tensor<1>; N]) -> Tensor<1>,
    ) {
        let forward = best_ms(self.repeats, || drop(op(inputs.clone())));
        let leaves = inputs.map(|input| input.autodiff().require_grad());
        let output = op(leaves.clone());
        let weights = output.clone().inner().random_like(Distribution::Default);
        let weights = Tensor::from_inner(weights);
        let sum = best_ms(self.repeats, || {
            drop((output.clone().inner() * weights.clone().inner()).sum());
        });
        let both = best_ms(self.repeats, || {
            drop((op(leaves.clone()) * weights.clone()).sum().backward());
        });
        let both = both - sum;
        println!("{name:<24} forward {forward:8.2}  forward + backward {both:8.2}");
    }

    fn tokens(&self) -> usize {
        self.shape.seq * self.shape.batch
    }

    fn experts(&self) {
        let Shape {
            hidden,
            intermediate,
            num_experts,
            top_k,
            ..
        } = self.shape;
        let tokens = self.tokens();
        let scores = Self::random([tokens, num_experts]);
        let (weights, indices) = scores.topk_with_indices(top_k, 1);
        let inputs = [
            Self::random([tokens * hidden]),
            Self::random([num_experts * hidden * 2 * intermediate]) * 0.1,
            Self::random([num_experts * intermediate * hidden]) * 0.1,
            weights.reshape([tokens * top_k]),
        ];
        self.run("experts", inputs, |[x, gate_up, down, weights]| {
            let output = experts(
                x.reshape([tokens, hidden]),
                gate_up.reshape([num_experts, hidden, 2 * intermediate]),
                down.reshape([num_experts, intermediate, hidden]),
                weights.reshape([tokens, top_k]),
                indices.clone(),
            );
            output.reshape([tokens * hidden])
        });
    }

    fn linear_cross_entropy(&self) {
        let Shape { vocab, hidden, .. } = self.shape;
        let tokens = self.tokens();
        let inputs = [
            Self::random([tokens * hidden]),
            Self::random([vocab * hidden]) * 0.1,
        ];
        let targets = Self::random([tokens]).abs() * vocab as f64;
        let targets: Tensor<1, Int> = targets.int().clamp(0, vocab as i64 - 1);
        self.run("linear_cross_entropy", inputs, |[x, weight]| {
            linear_cross_entropy(
                x.reshape([tokens, hidden]),
                weight.reshape([vocab, hidden]),
                targets.clone(),
            )
        });
    }

    fn attention(&self) {
        let Shape {
            heads,
            kv_heads,
            head_dim,
            seq,
            batch,
            ..
        } = self.shape;
        let keys = self.tokens() * kv_heads * head_dim;
        let inputs = [
            Self::random([self.tokens() * heads * head_dim]),
            Self::random([keys]),
            Self::random([keys]),
        ];
        let positions = Tensor::<1, Int>::arange(0..seq as i64, &Device::flex());
        let documents = positions.div_scalar(100).reshape([1, seq]);
        let documents = documents.expand([batch, seq]);
        let mask = SequenceMask {
            is_token: documents.ones_like(),
            document_ids: documents,
        };
        for (name, mask) in [("attention", None), ("attention, documents", Some(&mask))] {
            self.run(name, inputs.clone(), |[query, key, value]| {
                let output = causal_attention(
                    query.reshape([batch, seq, heads, head_dim]),
                    key.reshape([batch, seq, kv_heads, head_dim]),
                    value.reshape([batch, seq, kv_heads, head_dim]),
                    mask,
                    1.0 / (head_dim as f64).sqrt(),
                );
                output.reshape([batch * seq * heads * head_dim])
            });
        }
    }

    fn elementwise(&self) {
        let Shape {
            hidden,
            heads,
            head_dim,
            seq,
            batch,
            ..
        } = self.shape;
        let tokens = self.tokens();
        let x = Self::random([tokens * hidden]);
        let weight = Self::random([hidden]);
        self.run("rms_norm", [x.clone(), weight], |[x, weight]| {
            rms_norm(x.reshape([tokens, hidden]), weight, 1e-6).reshape([tokens * hidden])
        });
        self.run("silu_mul", [x.clone(), x], |[gate, up]| silu_mul(gate, up));
        let x = Self::random([tokens * heads * head_dim]);
        let angles = Self::random([1, seq, head_dim / 2]);
        let (cos, sin) = (angles.clone().cos(), angles.sin());
        self.run("rotary", [x], |[x]| {
            let x = x.reshape([batch, seq, heads, head_dim]);
            rotary(x, cos.clone(), sin.clone()).reshape([tokens * heads * head_dim])
        });
    }

    fn optimizer(&self) {
        const LEN: usize = 1 << 22;
        let adamw = AdamW {
            betas: (0.9, 0.95),
            eps: 1e-8,
        };
        let grad = Self::random([LEN]);
        let mut param = Self::random([LEN]);
        let mut state = Some((param.clone() * 1.0, Moments::zeros_like(&param)));
        let mut step = 0;
        let ms = best_ms(self.repeats, || {
            step += 1;
            let (old, moments) = state.take().expect("the state of the last step");
            state = Some(adamw.update(
                old,
                grad.clone(),
                moments,
                AdamWStep {
                    step,
                    learning_rate: 1e-3,
                    weight_decay: 0.1,
                    grad_scale: 0.5,
                },
            ));
        });
        println!("AdamW, 2^22 parameters   {ms:8.2}");
        param = param.mul_scalar(2.0);
        let ms = best_ms(self.repeats, || {
            std::hint::black_box(squared_norm([&param]).read());
        });
        println!("squared_norm, 2^22       {ms:8.2}");
    }
}

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let medium = arguments.iter().any(|a| a == "medium");
    let repeats = arguments.iter().find_map(|a| a.parse().ok()).unwrap_or(5);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1);
    let pool = pool.use_current_thread().build();
    let pool = pool.expect("a pool of the current thread");
    let bench = Bench {
        shape: if medium { MEDIUM } else { SMALL },
        repeats,
    };
    println!(
        "instruction set {}, CPU ms, best of {repeats}",
        instruction_set()
    );
    pool.install(|| {
        bench.experts();
        bench.linear_cross_entropy();
        bench.attention();
        bench.elementwise();
        bench.optimizer();
    });
}
