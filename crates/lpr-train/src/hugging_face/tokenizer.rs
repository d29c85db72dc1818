//! The tokenizer files of an exported folder.

use std::fs;
use std::io;
use std::path::Path;

use lpr_data::{Tokenizer, TokenizerError};
use serde_json::{Map, Value as Json, json};

/// The tokenizer itself.
pub const TOKENIZER_FILE: &str = "tokenizer.json";
/// Which class of transformers opens it, and what its special tokens are for.
const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";
/// What ends a generated text.
const GENERATION_CONFIG_FILE: &str = "generation_config.json";
/// Copied, if there, with the tokenizer.
const COMPANIONS: [&str; 3] = [
    TOKENIZER_CONFIG_FILE,
    "special_tokens_map.json",
    "added_tokens.json",
];

/// Writes the files of `tokenizer` to `folder`: its own where it has some; for bytes, a
/// `tokenizer.json` that makes the same ids.
///
/// # Errors
/// If a file cannot be copied or written.
pub fn write(folder: &Path, tokenizer: &Tokenizer) -> io::Result<()> {
    let target = folder.join(TOKENIZER_FILE);
    match tokenizer.file() {
        Some(file) => {
            copy(file, &target)?;
            for name in COMPANIONS {
                let companion = file.with_file_name(name);
                if companion.is_file() {
                    copy(&companion, &folder.join(name))?;
                }
            }
        }
        None => write_json(&target, &bytes_tokenizer(tokenizer))?,
    }
    let config = folder.join(TOKENIZER_CONFIG_FILE);
    if !config.exists() {
        let mut json = json!({ "tokenizer_class": "PreTrainedTokenizerFast" });
        if let Some(eos) = end_mark(tokenizer) {
            json["eos_token"] = eos.into();
        }
        write_json(&config, &json)?;
    }
    if let Some(eos_id) = tokenizer.eos_id() {
        let json = json!({ "eos_token_id": eos_id });
        write_json(&folder.join(GENERATION_CONFIG_FILE), &json)?;
    }
    Ok(())
}

/// Copies the content alone: the copy of a read-only file can be written.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::write(to, fs::read(from)?)
}

fn write_json(path: &Path, json: &Json) -> io::Result<()> {
    fs::write(path, format!("{json:#}\n"))
}

fn end_mark(tokenizer: &Tokenizer) -> Option<String> {
    let decoded: Result<String, TokenizerError> = tokenizer.decode(&[tokenizer.eos_id()?]);
    decoded.ok()
}

/// A byte-level BPE without merges, whose 256 tokens have the ids of the bytes they stand for.
fn bytes_tokenizer(tokenizer: &Tokenizer) -> Json {
    let vocab: Map<String, Json> = (0..=u8::MAX)
        .map(|byte| (letter(byte).to_string(), byte.into()))
        .collect();
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false,
    });
    let eos: Vec<Json> = tokenizer
        .eos_id()
        .zip(end_mark(tokenizer))
        .map(|(id, content)| {
            json!({
                "id": id, "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true,
            })
        })
        .into_iter()
        .collect();
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": eos,
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": null,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": false, "vocab": vocab, "merges": [],
        },
    })
}

/// The printable character that byte-level tokenizers write for a byte: itself where it is one, else
/// one of those from U+0100 on, in the order of the bytes (GPT-2).
fn letter(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return byte.into();
    }
    let earlier = (0..byte).filter(|&other| !printable(other)).count() as u32;
    char::from_u32(0x100 + earlier).expect("a letter of the Latin alphabet")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_a_tokenizer_file_that_makes_the_same_ids() {
        let folder = tempfile::tempdir().expect("a folder");
        let bytes = Tokenizer::open("bytes").expect("built in");
        write(folder.path(), &bytes).expect("written");
        let path = folder.path().display().to_string();
        let file = Tokenizer::open(&path).expect("a tokenizer");
        let all: Vec<char> = (0..0x3000).filter_map(char::from_u32).collect();
        let mut text: String = all.iter().rev().chain(&all).collect();
        text += " a  b\t\n\n\u{1f600} <eos> it's  ";
        let ids = |tokenizer: &Tokenizer| tokenizer.encode(&text).expect("bytes");
        assert_eq!(ids(&file), ids(&bytes));
        assert_eq!(file.vocab_size(), bytes.vocab_size());
        assert_eq!(file.eos_id(), bytes.eos_id());
        let ids = [104, 105, 256];
        let text = |tokenizer: &Tokenizer| tokenizer.decode(&ids).expect("known ids");
        assert_eq!(text(&file), text(&bytes));
    }
}
