//! What training takes of memory, part by part, and whether there is as much.
//!
//! The parts are those of the CPU kernels, which keep 32-bit floats whatever they multiply, so they
//! are the same for every `train.precision`. `docs/memory.md` compares their sum with measured runs.

use std::fmt::Write as _;
use std::path::Path;

use lpr_data::SHUFFLE_WINDOW_BYTES;
use lpr_kernels::{BlockSizes, cross_entropy_buffers};
use lpr_model::estimate::Estimate;
use serde::Serialize;

use crate::config::RunConfig;

/// Bytes of a 32-bit float.
const FLOAT: u64 = 4;
/// Averages that AdamW keeps of every gradient.
const AVERAGES: u64 = 2;
/// Bytes of a position of a batch: ids, targets, documents, positions and whether it is a token, as
/// read and as tensors.
const POSITION: u64 = 57;
/// The program before it has read anything.
const PROGRAM: u64 = 14 << 20;

/// Memory of a training run, in bytes. The allocator keeps what is freed, so that the parts add up
/// although they are not all at their largest at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Of the model.
    pub weights: u64,
    /// Of a step; with several micro-batches their sum and those of the newest one, of which with
    /// gradient checkpointing only those of one block and of both ends of the model exist at a time.
    pub gradients: u64,
    /// Both averages of AdamW.
    pub optimizer: u64,
    /// What a micro-batch leaves for the backward pass; with gradient checkpointing the inputs and
    /// routings of all blocks and the activations of one.
    pub activations: u64,
    /// Of the fused head: the logits of as many rows as exist at a time, and the gradient of the
    /// hidden states.
    pub head: u64,
    /// Of the largest operation while it runs: the experts' backward pass.
    pub workspace: u64,
    /// The batches of a step, and the windows of a shuffled source at their largest.
    pub data: u64,
    /// The program itself.
    pub program: u64,
    /// The sum of the above.
    pub total: u64,
    /// More while a checkpoint is written: weights and averages that the next step replaces, and a
    /// copy of the largest tensor.
    pub snapshot: u64,
    /// A bound below the total: what is certainly there at one time.
    pub least: u64,
}

impl Memory {
    /// For training as `config` says, whose model was estimated.
    pub fn new(config: &RunConfig, model: &Estimate) -> Self {
        let decoder = config.model.decoder();
        let (hidden, moe) = (decoder.hidden_size as u64, &decoder.moe);
        let positions = positions(config);
        let floats = |count: u64| count.saturating_mul(FLOAT);
        let per_position = |count: u64| floats(positions.saturating_mul(count));
        let train = &config.train;
        let (params, micro_batches) = (model.total_params, train.gradient_accumulation_steps);
        let (newest, kept) = if train.gradient_checkpointing {
            // The head is as large as the embedding, or they are one matrix with two gradients.
            let embedding = decoder.vocab_size as u64 * hidden;
            let newest = (2 * embedding + model.largest_block_params).min(params);
            (newest, model.checkpointed_activations_per_token)
        } else {
            (params, model.activations_per_token)
        };
        let rows = usize::try_from(positions).unwrap_or(usize::MAX);
        let logits = cross_entropy_buffers(rows, decoder.hidden_size, decoder.vocab_size) as u64;
        let of_choice = hidden + moe.moe_intermediate_size as u64;
        let windows = if config.data.shuffle {
            config.data.weights.len().max(1) as u64 * SHUFFLE_WINDOW_BYTES as u64
        } else {
            0
        };
        let mut memory = Self {
            weights: floats(params),
            gradients: floats(params + if micro_batches > 1 { newest } else { 0 }),
            optimizer: floats(params) * AVERAGES,
            activations: per_position(kept),
            head: floats(logits).saturating_add(per_position(hidden)),
            workspace: per_position(moe.top_k as u64 * of_choice + 3 * hidden),
            data: (positions.saturating_mul(POSITION * micro_batches as u64))
                .saturating_add(windows),
            program: PROGRAM,
            total: 0,
            snapshot: floats(params) * (1 + AVERAGES) + floats(model.largest_tensor),
            least: 0,
        };
        memory.total = memory
            .parts()
            .iter()
            .fold(0, |sum: u64, (_, bytes)| sum.saturating_add(*bytes));
        // The activations go while the gradients come.
        let either = floats(params).max(memory.activations);
        memory.least = (memory.weights + memory.optimizer).saturating_add(either);
        memory
    }

    /// The parts of the total with their names.
    pub fn parts(&self) -> [(&'static str, u64); 8] {
        [
            ("weights", self.weights),
            ("gradients", self.gradients),
            ("optimizer", self.optimizer),
            ("activations", self.activations),
            ("head", self.head),
            ("workspace", self.workspace),
            ("data", self.data),
            ("program", self.program),
        ]
    }

    /// Why training cannot fit into `available` bytes and what to change, if so.
    pub fn refusal(&self, available: u64, config: &RunConfig) -> Option<String> {
        if self.least <= available {
            return None;
        }
        let mut text = format!(
            "training takes at least {} of memory ({} for weights and averages, and the larger of {} for \
             gradients and {} for what a micro-batch leaves for the backward pass), {} can be had; ways \
             to need less:",
            readable(self.least),
            readable(self.weights + self.optimizer),
            readable(self.weights),
            readable(self.activations),
            readable(available)
        );
        let decoder = config.model.decoder();
        let train = &config.train;
        let rows = [
            format!(
                "train.micro_batch_size, now {}, with a larger train.gradient_accumulation_steps",
                train.micro_batch_size
            ),
            format!("data.sequence_length, now {}", config.data.sequence_length),
            format!(
                "model.num_experts, now {}, or model.num_hidden_layers, now {}",
                decoder.moe.num_experts, decoder.num_hidden_layers
            ),
        ];
        for row in rows {
            let _ = write!(text, "\n  a smaller {row}");
        }
        if !train.gradient_checkpointing && self.activations > self.weights {
            text += "\n  train.gradient_checkpointing = true";
        }
        Some(text)
    }
}

/// What the portable experts take more than the CPU kernels for training as `config` says, in bytes:
/// empty rows in their blocks, and every block has a copy of its expert's weights. Neither depends on
/// what tokens choose.
pub fn portable_experts(config: &RunConfig) -> u64 {
    let decoder = config.model.decoder();
    let (hidden, moe) = (decoder.hidden_size as u64, &decoder.moe);
    let width = moe.moe_intermediate_size as u64;
    let choices = positions(config).saturating_mul(moe.top_k as u64);
    let choices = usize::try_from(choices).unwrap_or(usize::MAX);
    let sizes = BlockSizes::new(choices, moe.num_experts);
    // Kept for the backward pass: a row's input and output, gate and up, their product and its factor; a
    // copy of both projections.
    let empty = sizes.rows().saturating_sub(choices) as u64;
    let rows = empty.saturating_mul(2 * hidden + 4 * width);
    let copies = (sizes.blocks as u64).saturating_mul(3 * hidden * width);
    let layers = if config.train.gradient_checkpointing {
        1
    } else {
        decoder.num_moe_layers() as u64
    };
    (rows.saturating_add(copies)).saturating_mul(layers * FLOAT)
}

/// Positions of a micro-batch.
fn positions(config: &RunConfig) -> u64 {
    let rows = config.train.micro_batch_size as u64;
    rows.saturating_mul(config.data.sequence_length as u64)
}

/// A number of bytes for people.
pub fn readable(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    if mib < 1024.0 {
        format!("{mib:.1} MiB")
    } else {
        format!("{:.2} GiB", mib / 1024.0)
    }
}

/// Memory, swap space included, that this process can still get; `None` where the system does not
/// tell.
pub fn available() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let free = of_meminfo(&info, "MemAvailable:")?;
    let swap = of_meminfo(&info, "SwapFree:").unwrap_or(0);
    let limits = [
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ];
    let limits = limits.iter().filter_map(|file| limit(Path::new(file)));
    let limit = limits.chain(own_limit()).min();
    Some((free + swap).min(limit.unwrap_or(u64::MAX)))
}

/// The limit of this process's own control group, where groups are nested.
fn own_limit() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    limit(&Path::new("/sys/fs/cgroup").join(path).join("memory.max"))
}

/// A number in a file; the word "max" is none.
fn limit(file: &Path) -> Option<u64> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

fn of_meminfo(info: &str, key: &str) -> Option<u64> {
    let line = info.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use lpr_model::estimate::estimate;

    use super::*;

    #[test]
    fn memory_is_read_as_the_system_writes_it() {
        let info = "MemTotal:       24682416 kB\nMemAvailable:         20 kB\nSwapFree:  0 kB\n";
        assert_eq!(of_meminfo(info, "MemAvailable:"), Some(20 * 1024));
        assert_eq!(of_meminfo(info, "SwapFree:"), Some(0));
        assert_eq!(of_meminfo("MemAvailable: x kB\n", "MemAvailable:"), None);
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("memory.max");
        for (text, want) in [("4096\n", Some(4096)), ("max\n", None)] {
            std::fs::write(&file, text).expect("written");
            assert_eq!(limit(&file), want);
        }
        assert_eq!(limit(&folder.path().join("none")), None);
    }

    #[test]
    fn the_parts_are_counted_by_hand() {
        let text = crate::config::template();
        let overrides = ["train.micro_batch_size=3".to_owned()];
        let config = RunConfig::parse("x.toml", &text, &overrides).expect("valid");
        let model = estimate(&config.model.decoder(), &config.router, 128);
        let memory = Memory::new(&config, &model);
        let params = 4 * model.total_params;
        assert_eq!(memory.weights, params);
        assert_eq!(memory.gradients, params);
        assert_eq!(memory.optimizer, 2 * params);
        // 3 rows of 128 positions.
        let position = 384 * 4;
        // 2 layers, 64 wide. Attention reads the hidden state, norms 4 + 2 heads of 16, keeps queries
        // and results, keys and values, and a sum per head; the encoder, the residual and latents of
        // 16; 2 of 16 experts, 32 wide; 5 norms.
        let attention = 64 + 96 + 2 * 64 + 2 * 32 + 4;
        let router = 2 * 64 + 24 * 16 + 6 * 16 + 4 * 2;
        let experts = 64 + 2 * (2 * 32 + 6);
        let kept = 2 * (attention + router + experts) + 5 * 64;
        assert_eq!(model.activations_per_token, kept);
        assert_eq!(memory.activations, position * kept);
        // All rows fit into one chunk of logits, whose 257 columns are two tiles.
        assert_eq!(memory.head, position * (257 + 5 * 64) + position * 64);
        assert_eq!(memory.workspace, position * (2 * (64 + 32) + 3 * 64));
        assert_eq!(memory.data, 384 * 57);
        let sum: u64 = memory.parts().iter().map(|(_, bytes)| bytes).sum();
        assert_eq!(memory.total, sum);
        // 16 experts, gates and ups.
        assert_eq!(memory.snapshot, 3 * params + 4 * 16 * 64 * 64);
        assert_eq!(memory.least, 3 * params + params.max(memory.activations));
    }

    #[test]
    fn blocks_that_are_made_again_leave_their_inputs_and_routings() {
        let text = crate::config::template();
        let memory = |overrides: &[&str]| {
            let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
            let config = RunConfig::parse("x.toml", &text, &overrides).expect("valid");
            let model = estimate(&config.model.decoder(), &config.router, 128);
            (Memory::new(&config, &model), model)
        };
        let key = "train.gradient_checkpointing=true";
        let (kept, model) = memory(&[]);
        let (one, _) = memory(&[key]);
        // The model of the test above. One of its two blocks with two norms, three inputs, and of each
        // router 16 scores, 2 weights and 2 choices of 64 bits.
        let attention = 64 + 96 + 2 * 64 + 2 * 32 + 4;
        let router = 2 * 64 + 24 * 16 + 6 * 16 + 4 * 2;
        let experts = 64 + 2 * (2 * 32 + 6);
        let block = attention + router + experts + 2 * 64;
        let floats = block + 3 * 64 + 2 * (16 + 2 + 4);
        assert_eq!(one.activations, 8 * 128 * 4 * floats);
        assert!(one.activations < kept.activations);
        assert_eq!(one.gradients, kept.gradients);
        // Both blocks are alike, beside them are the embedding, the head and a norm.
        let (two, _) = memory(&[key, "train.gradient_accumulation_steps=2"]);
        let ends = 2 * 257 * 64;
        let block = (model.total_params - ends - 64) / 2;
        assert_eq!(model.largest_block_params, block);
        assert_eq!(two.gradients, one.gradients + 4 * (ends + block));
        let config =
            |overrides: &[String]| RunConfig::parse("x.toml", &text, overrides).expect("valid");
        let (without, with) = (config(&[]), config(&[key.to_owned()]));
        let layers = portable_experts(&without) / portable_experts(&with);
        assert_eq!(layers, 2);
        // Told where it helps.
        for (memory, config, told) in [(kept, &without, true), (one, &with, false)] {
            let refusal = memory.refusal(0, config).expect("too much");
            assert_eq!(
                refusal.contains("gradient_checkpointing"),
                told,
                "{refusal}"
            );
        }
    }

    #[test]
    fn several_micro_batches_and_shuffled_sources_take_more() {
        let text = crate::config::template();
        let memory = |overrides: &[&str]| {
            let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
            let config = RunConfig::parse("x.toml", &text, &overrides).expect("valid");
            let model = estimate(&config.model.decoder(), &config.router, 128);
            Memory::new(&config, &model)
        };
        let (one, two) = (
            memory(&[]),
            memory(&["train.gradient_accumulation_steps=2"]),
        );
        assert_eq!(two.gradients, 2 * one.gradients);
        assert_eq!(two.data, 2 * one.data);
        assert_eq!((two.activations, two.least), (one.activations, one.least));
        let shuffled = memory(&["data.shuffle=true"]);
        assert_eq!(shuffled.data, one.data + (1 << 25));
        assert_eq!(memory(&["train.precision=bf16"]), one);
    }

    #[test]
    fn the_portable_experts_cost_empty_rows_and_a_copy_of_the_weights_per_block() {
        let text = crate::config::template();
        let config = RunConfig::parse("x.toml", &text, &[]).expect("valid");
        // 1024 positions choose 2 of 16, 128 rows for each on average, so blocks have 32, and each
        // expert may leave 31 of its last one empty: (2048 + 16 * 31) / 32 blocks.
        let (blocks, rows) = (79, 79 * 32);
        let floats = (rows - 2048) * (2 * 64 + 4 * 32) + blocks * 3 * 64 * 32;
        assert_eq!(portable_experts(&config), 2 * 4 * floats);
    }

    #[test]
    fn a_run_is_refused_above_what_there_is() {
        let text = crate::config::template();
        let overrides = ["train.micro_batch_size=3".to_owned()];
        let config = RunConfig::parse("x.toml", &text, &overrides).expect("valid");
        let model = estimate(&config.model.decoder(), &config.router, 128);
        let memory = Memory::new(&config, &model);
        assert_eq!(memory.refusal(memory.least, &config), None);
        let refusal = memory.refusal(memory.least - 1, &config).expect("too much");
        for words in [
            "micro_batch_size, now 3",
            "sequence_length, now 128",
            "num_experts, now 16",
        ] {
            assert!(refusal.contains(words), "{refusal}");
        }
    }
}
