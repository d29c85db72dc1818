//! Mixture-of-Experts decoders and their routers: token ids in, hidden states, logits and routing out.
//!
//! This crate knows Burn and nothing of files, data sets, optimizers, schedules or logs. Forward
//! passes compute and return; nothing in here changes state between steps.
//!
//! Modules in reading order; each uses only those above it.

mod registry;

pub mod config;
pub mod random;

pub mod parameters;

pub mod hugging_face;

pub mod layers;

pub mod router;

pub mod moe;

pub mod decoder;

pub mod families;

pub mod causal_lm;

pub mod estimate;

pub use causal_lm::{CausalLm, CausalLmOutput, ModelInput, TextSoFar};
pub use config::{ConfigProblem, DecoderConfig};
pub use families::FamilyConfig;
pub use router::{LatentNoise, LossContext, RouterConfig, RouterLoss, Routing};
