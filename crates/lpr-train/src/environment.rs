//! Which program computes, and on what.

use burn::tensor::Device;
use lpr_kernels::devices::gpu_name;
use serde::Serialize;

/// What a result may depend on besides configuration and data. Nothing in it names a person or a
/// machine.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Environment {
    /// Of this program.
    pub version: &'static str,
    /// The commit of its sources, with `-dirty` if they were changed; absent if it was built outside of
    /// their repository.
    pub revision: Option<&'static str>,
    /// Operating system and processor family.
    pub platform: String,
    /// The processor, as the system calls it; empty where it does not tell.
    pub cpu: String,
    /// The instruction set of the kernels.
    pub cpu_kernels: String,
    /// Threads that run at the same time.
    pub cpu_threads: usize,
    /// What computes in place of the processor, as it calls itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu: Option<String>,
}

impl Environment {
    /// Of this process, which computes on the processor.
    pub fn here() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            revision: Some(env!("LPR_REVISION")).filter(|revision| !revision.is_empty()),
            platform: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            cpu: cpu_name().unwrap_or_default(),
            cpu_kernels: format!("{:?}", lpr_kernels::instruction_set()),
            cpu_threads: std::thread::available_parallelism().map_or(1, usize::from),
            gpu: None,
        }
    }

    /// Of this process, which computes on `device`.
    pub fn on(device: &Device) -> Self {
        Self {
            gpu: gpu_name(device),
            ..Self::here()
        }
    }
}

fn cpu_name() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("model name"))?;
    Some(line.trim_start_matches([' ', '\t', ':']).to_owned())
}
