//! Pre-trains Mixture-of-Experts language models and shows what the router does.
//!
//! The library never prints; only `report` and the binary write to the terminal.

pub mod atomic_file;
pub mod balance;
pub mod batch;
pub mod bench;
pub mod checkpoint;
pub mod cli;
pub mod clock;
pub mod commands;
pub mod config;
pub mod data_wait;
pub mod error;
pub mod eval;
pub mod fault;
pub mod hub;
pub mod hugging_face;
pub mod idle;
pub mod liveness;
pub mod load;
pub mod logits_file;
pub mod memory;
pub mod new_folder;
pub mod objective;
pub mod optimizer;
pub mod process;
pub mod record;
pub mod report;
pub mod resume;
pub mod router_swap;
pub mod run_dir;
pub mod saver;
pub mod schedule;
pub mod session;
pub mod sha256;
pub mod signals;
pub mod skipped_step;
pub mod snapshot;
pub mod spoil;
pub mod stability;
pub mod step;
pub mod trainer;
pub mod weights_file;
