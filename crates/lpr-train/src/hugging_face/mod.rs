//! Hugging Face folders: what `export` writes and `import` reads.
//!
//! | file | written and read by |
//! |---|---|
//! | `config.json` | `config` |
//! | `model.safetensors`, or shards and their index | `shards`, `folder` |
//! | `tokenizer.json`, `tokenizer_config.json`, `generation_config.json` | `tokenizer` |
//! | `README.md` | `card` |
//!
//! Names and layouts of tensors are `lpr_model::hugging_face`'s.

pub mod card;
pub mod config;
pub mod folder;
pub mod shards;
pub mod tokenizer;

use std::path::PathBuf;

use thiserror::Error;

/// Everything that keeps a folder from being imported.
#[derive(Debug, Error)]
#[error("{} cannot be imported:{}", path.display(), list(problems))]
pub struct FolderError {
    /// The folder.
    pub path: PathBuf,
    /// What is wrong, each in a sentence.
    pub problems: Vec<String>,
}

fn list(problems: &[String]) -> String {
    let line = |text: String, problem: &String| text + &format!("\n  {problem}");
    problems.iter().fold(String::new(), line)
}
