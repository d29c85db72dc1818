//! Whether a run fits into the memory that there is, as far as that is certain beforehand.

use std::fmt::Write as _;
use std::path::Path;

use lpr_model::estimate::Estimate;
use serde::Serialize;

use crate::config::RunConfig;

/// Bytes of a 32-bit float.
const FLOAT: u64 = 4;
/// Weights, their gradients and the two averages of AdamW.
const COPIES: u64 = 4;
/// Hidden states of a layer that the backward pass needs: what goes into attention and into the
/// experts.
const STATES_PER_LAYER: u64 = 2;

/// The least memory that training takes. What is not counted (the states inside of layers, the
/// logits, the tokenizer, other copies for a moment) comes on top, so a run that seems to fit may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LeastMemory {
    /// Weights, gradients and averages, in bytes.
    pub parameter_bytes: u64,
    /// Hidden states of a micro-batch, in bytes.
    pub state_bytes: u64,
}

impl LeastMemory {
    /// For training as `config` says, whose model was estimated.
    pub fn new(config: &RunConfig, model: &Estimate) -> Self {
        let decoder = config.model.decoder();
        let rows = config.train.micro_batch_size as u64;
        let positions = rows.saturating_mul(config.data.sequence_length as u64);
        let states = STATES_PER_LAYER * decoder.num_hidden_layers as u64;
        Self {
            parameter_bytes: model.total_params.saturating_mul(FLOAT * COPIES),
            state_bytes: (positions.saturating_mul(decoder.hidden_size as u64))
                .saturating_mul(states * FLOAT),
        }
    }

    /// All of it, in bytes.
    pub fn total(&self) -> u64 {
        self.parameter_bytes.saturating_add(self.state_bytes)
    }

    /// Why training cannot fit into `available` bytes and what to change, if so.
    pub fn refusal(&self, available: u64, config: &RunConfig) -> Option<String> {
        if self.total() <= available {
            return None;
        }
        let mut text = format!(
            "training takes at least {} of memory ({} for weights, gradients and averages, {} for the \
             hidden states of a micro-batch), {} can be had; three ways to need less:",
            gib(self.total()),
            gib(self.parameter_bytes),
            gib(self.state_bytes),
            gib(available)
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
        Some(text)
    }
}

/// A number of bytes for people.
pub fn gib(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30))
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
    fn the_least_memory_is_counted_by_hand_and_refused_above_what_there_is() {
        let text = crate::config::template();
        let overrides = ["train.micro_batch_size=3".to_owned()];
        let config = RunConfig::parse("x.toml", &text, &overrides).expect("valid");
        let length = config.data.sequence_length;
        let model = estimate(&config.model.decoder(), &config.router, length);
        let least = LeastMemory::new(&config, &model);
        assert_eq!(least.parameter_bytes, 16 * model.total_params);
        // 2 layers with 2 states each, 64 wide, for 3 rows of 128 tokens.
        assert_eq!(least.state_bytes, 2 * 2 * 64 * 3 * 128 * 4);
        assert_eq!(least.refusal(least.total(), &config), None);
        let refusal = least.refusal(least.total() - 1, &config).expect("too much");
        for words in [
            "micro_batch_size, now 3",
            "sequence_length, now 128",
            "num_experts, now 16",
        ] {
            assert!(refusal.contains(words), "{refusal}");
        }
    }
}
