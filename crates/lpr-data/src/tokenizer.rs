//! A thin owner of the tokenizer: text to ids and back, vocabulary size, end and padding ids.
//!
//! Text never turns into control tokens: the added tokens of a `tokenizer.json` are taken out
//! before the encoder is built, so `<|endoftext|>` inside a web page is encoded as the characters
//! it is made of. This includes added tokens that are mere text, such as the runs of spaces of
//! GPT-NeoX, which are encoded as single spaces.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::encoder::{Encoder, EncoderFile, WordCache};
use crate::error::{DataError, TokenizerError};
use crate::hub::{Hub, is_remote};

/// The `tokenizer` key of the built-in byte tokenizer.
const BYTES: &str = "bytes";
const BYTES_EOS: u32 = 256;
/// How the end mark of the byte tokenizer is spelled out when decoding.
const BYTES_EOS_TEXT: &str = "<eos>";
/// Ends a chat turn, not a document.
const TURN_END: &str = "<|im_end|>";

/// End-of-sequence tokens to look for, in this order, when no file names one that ends a document.
const KNOWN_EOS: [&str; 4] = ["<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>"];

/// Longest text handed to the encoder at once, in bytes. Bounds its working memory and its regular
/// expression's steps.
pub(crate) const MAX_PIECE_BYTES: usize = 1 << 18;

/// Turns text into token ids and back.
///
/// Special-token strings inside a text are encoded as text, and no begin or end mark is added.
pub struct Tokenizer {
    spec: String,
    file: Option<PathBuf>,
    kind: Kind,
    vocab_size: usize,
    eos_id: Option<u32>,
    fingerprint: String,
}

enum Kind {
    Bytes,
    Model(Box<Model>),
}

struct Model {
    encoder: Encoder,
    /// Added tokens by id; the encoder does not know them.
    added: HashMap<u32, String>,
    /// Special tokens that the encoder might produce all the same, because its model has them.
    control_ids: Vec<u32>,
}

/// The part of a `tokenizer.json` that the encoder must not see.
#[derive(Deserialize)]
struct AddedTokens {
    #[serde(default)]
    added_tokens: Option<Vec<AddedToken>>,
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
    #[serde(default)]
    special: bool,
}

impl Tokenizer {
    /// Opens a tokenizer: `bytes`, the path of a `tokenizer.json`, or of a folder that holds one.
    ///
    /// The end-of-sequence token is the `eos_token` of a `tokenizer_config.json` beside it, else
    /// the first of `<|endoftext|>`, `</s>`, `<|end_of_text|>` and `<eos>` that exists. One
    /// exception: `<|im_end|>`, which Qwen's chat models name there, ends a turn and not a
    /// document, so `<|endoftext|>` is preferred to it where both exist; it is what Qwen's base
    /// models have between documents.
    ///
    /// # Errors
    /// A missing file, a file that is no tokenizer, an `eos_token` outside the vocabulary.
    pub fn open(spec: &str) -> Result<Self, TokenizerError> {
        if spec == BYTES {
            return Ok(Self {
                spec: spec.to_owned(),
                file: None,
                kind: Kind::Bytes,
                vocab_size: 257,
                eos_id: Some(BYTES_EOS),
                fingerprint: BYTES.to_owned(),
            });
        }
        let path = if Path::new(spec).is_dir() {
            Path::new(spec).join("tokenizer.json")
        } else {
            PathBuf::from(spec)
        };
        if !path.is_file() {
            return Err(TokenizerError::NotFound {
                spec: spec.to_owned(),
            });
        }
        Self::open_file(spec, &path)
    }

    /// Like [`Tokenizer::open`], and `hf://OWNER/NAME[@REVISION]` is fetched into the cache of the
    /// hub.
    ///
    /// # Errors
    /// Those of [`Tokenizer::open`], and a repository that cannot be reached or has no tokenizer.
    pub fn fetch(spec: &str, hub: &Hub) -> Result<Self, DataError> {
        if is_remote(spec) {
            return Ok(Self::open_file(spec, &hub.tokenizer(spec)?)?);
        }
        Ok(Self::open(spec)?)
    }

    fn open_file(spec: &str, path: &Path) -> Result<Self, TokenizerError> {
        let bytes = read(path)?;
        let AddedTokens { added_tokens } = parse(path, &bytes)?;
        let file: EncoderFile = parse(path, &bytes)?;
        let encoder = Encoder::new(file).map_err(|reason| invalid(path, reason))?;
        let added_tokens = added_tokens.unwrap_or_default();
        let control_ids = added_tokens
            .iter()
            .filter(|token| token.special && encoder.token_id(&token.content) == Some(token.id))
            .map(|token| token.id)
            .filter(|&id| encoder.unknown_id() != Some(id))
            .collect();
        let added_tokens = added_tokens.into_iter();
        let added: HashMap<u32, String> = added_tokens.map(|t| (t.id, t.content)).collect();
        let largest = added.keys().copied().chain(encoder.largest_id()).max();
        let largest = largest.ok_or_else(|| invalid(path, "its vocabulary is empty".to_owned()))?;
        let id_of = |token: &str| {
            let added = added.iter().find(|(_, content)| *content == token);
            added.map(|(&id, _)| id).or_else(|| encoder.token_id(token))
        };
        Ok(Self {
            spec: spec.to_owned(),
            file: Some(path.to_path_buf()),
            vocab_size: largest as usize + 1,
            eos_id: find_eos(path, id_of)?,
            fingerprint: hex(&Sha256::digest(&bytes)),
            kind: Kind::Model(Box::new(Model {
                encoder,
                added,
                control_ids,
            })),
        })
    }

    /// The `tokenizer` key it was opened with.
    pub fn spec(&self) -> &str {
        &self.spec
    }

    /// The `tokenizer.json` it was read from; `None` for the built-in one.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// Largest id plus one, added tokens included. A model's embedding needs at least as many rows.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The id that marks the end of a document, if the vocabulary has one.
    pub fn eos_id(&self) -> Option<u32> {
        self.eos_id
    }

    /// The id that fills up short rows: the end mark, or 0. Padding is never trained on, so any
    /// valid id will do.
    pub fn pad_id(&self) -> u32 {
        self.eos_id.unwrap_or(0)
    }

    /// SHA-256 of the `tokenizer.json` in hexadecimal, or `bytes`.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Token ids of a text.
    ///
    /// A text beyond 256 KiB is encoded in pieces, cut where possible between a line end and the
    /// next line, so that memory stays bounded; the ids can differ from those of the whole only
    /// next to a cut.
    ///
    /// # Errors
    /// The tokenizer refuses the text, for example because it has no token for unknown characters.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let (mut ids, mut cache) = (Vec::new(), WordCache::default());
        for piece in pieces(text) {
            self.encode_piece(piece, &mut cache, &mut ids)?;
        }
        Ok(ids)
    }

    /// Appends the ids of one of the [`pieces`] of a text. The cache must not have been used with
    /// another tokenizer.
    pub(crate) fn encode_piece(
        &self,
        piece: &str,
        cache: &mut WordCache,
        ids: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        match &self.kind {
            Kind::Bytes => ids.extend(piece.bytes().map(u32::from)),
            Kind::Model(model) => {
                let encoded = model.encode(piece, cache, ids);
                encoded.map_err(|error| TokenizerError::Encode {
                    reason: error.to_string(),
                })?;
            }
        }
        Ok(())
    }

    /// Text of token ids, added tokens spelled out. Bytes that are no UTF-8 become replacement
    /// characters.
    ///
    /// # Errors
    /// An id outside the vocabulary, or a decoder that refuses the tokens.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.vocab_size) {
            return Err(TokenizerError::Decode {
                reason: format!("id {id} in a vocabulary of {}", self.vocab_size),
            });
        }
        match &self.kind {
            Kind::Bytes => {
                let runs = ids.split(|&id| id == BYTES_EOS).map(|run| {
                    let bytes: Vec<u8> = run.iter().map(|&id| id as u8).collect();
                    String::from_utf8_lossy(&bytes).into_owned()
                });
                Ok(runs.collect::<Vec<_>>().join(BYTES_EOS_TEXT))
            }
            Kind::Model(model) => model.decode(ids),
        }
    }
}

impl Model {
    /// Appends the ids of a text. Where a control token comes out, which models that look whole
    /// words up can be talked into, the line is encoded character by character.
    fn encode(
        &self,
        text: &str,
        cache: &mut WordCache,
        ids: &mut Vec<u32>,
    ) -> tokenizers::Result<()> {
        let start = ids.len();
        self.encoder.encode(text, cache, ids)?;
        if !self.has_control(&ids[start..]) {
            return Ok(());
        }
        ids.truncate(start);
        for line in text.split_inclusive('\n') {
            let start = ids.len();
            self.encoder.encode(line, cache, ids)?;
            if self.has_control(&ids[start..]) {
                ids.truncate(start);
                for character in line.split_inclusive(|_| true) {
                    self.encoder.encode(character, cache, ids)?;
                }
            }
        }
        Ok(())
    }

    fn has_control(&self, ids: &[u32]) -> bool {
        !self.control_ids.is_empty() && ids.iter().any(|id| self.control_ids.contains(id))
    }

    /// Decodes the runs between added tokens, which the encoder does not know.
    fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        let mut text = String::new();
        let mut rest = ids;
        while !rest.is_empty() {
            let run = rest.iter().position(|id| self.added.contains_key(id));
            let (run, after) = rest.split_at(run.unwrap_or(rest.len()));
            if !run.is_empty() {
                let decoded = self.encoder.decode(run);
                text.push_str(&decoded.map_err(|error| TokenizerError::Decode {
                    reason: error.to_string(),
                })?);
            }
            if let Some(token) = after.first().and_then(|id| self.added.get(id)) {
                text.push_str(token);
            }
            rest = after.get(1..).unwrap_or_default();
        }
        Ok(text)
    }
}

/// Cuts a text into pieces of at most [`MAX_PIECE_BYTES`], if possible between a line end and a
/// line that starts with neither white space nor another line end, else before white space, else
/// between characters.
pub(crate) fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (piece, after) = rest.split_at(piece_end(rest));
        rest = after;
        Some(piece)
    })
}

fn piece_end(text: &str) -> usize {
    if text.len() <= MAX_PIECE_BYTES {
        return text.len();
    }
    let bytes = text.as_bytes();
    let window = MAX_PIECE_BYTES / 2..=MAX_PIECE_BYTES;
    let is_line_start = |&at: &usize| {
        bytes[at - 1] == b'\n'
            && !bytes[at].is_ascii_whitespace()
            && !bytes[at - 2].is_ascii_whitespace()
    };
    let is_word_start = |&at: &usize| {
        bytes[at] == b' '
            && !bytes[at + 1].is_ascii_whitespace()
            && !bytes[at - 1].is_ascii_whitespace()
    };
    let last = |wanted: &dyn Fn(&usize) -> bool| window.clone().rev().find(wanted);
    last(&is_line_start)
        .or_else(|| last(&is_word_start))
        .unwrap_or_else(|| text.floor_char_boundary(MAX_PIECE_BYTES))
}

fn find_eos(
    tokenizer: &Path,
    id_of: impl Fn(&str) -> Option<u32>,
) -> Result<Option<u32>, TokenizerError> {
    let known = KNOWN_EOS.iter().find_map(|token| id_of(token));
    let path = tokenizer.with_file_name("tokenizer_config.json");
    if !path.is_file() {
        return Ok(known);
    }
    let bytes = read(&path)?;
    let config: Value = parse(&path, &bytes)?;
    let token = match config.get("eos_token") {
        Some(Value::Object(token)) => token.get("content").and_then(Value::as_str),
        token => token.and_then(Value::as_str),
    };
    match token {
        None => Ok(known),
        Some(TURN_END) if id_of(KNOWN_EOS[0]).is_some() => Ok(known),
        Some(token) => id_of(token).map(Some).ok_or_else(|| {
            let token = token.to_owned();
            TokenizerError::UnknownEos { path, token }
        }),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TokenizerError> {
    std::fs::read(path).map_err(|error| TokenizerError::Io {
        path: path.to_owned(),
        error,
    })
}

fn parse<'a, T: Deserialize<'a>>(path: &Path, bytes: &'a [u8]) -> Result<T, TokenizerError> {
    serde_json::from_slice(bytes).map_err(|error| invalid(path, error.to_string()))
}

fn invalid(path: &Path, reason: String) -> TokenizerError {
    TokenizerError::Invalid {
        path: path.to_owned(),
        reason,
    }
}

/// Lower-case hexadecimal of a digest.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;

    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A tokenizer of whole words, with added tokens that are partly outside the model's
    /// vocabulary.
    fn write_tokenizer(folder: &Path, added: &[(&str, u32)], eos_token: Option<&str>) -> String {
        let vocabulary = json!({"?": 0, "a": 1, "b": 2});
        let model = json!({"type": "WordLevel", "unk_token": "?", "vocab": vocabulary});
        let added: Vec<Value> = added
            .iter()
            .map(|&(content, id)| json!({"id": id, "content": content, "special": true}))
            .collect();
        let file = json!({
            "version": "1.0",
            "truncation": {"max_length": 1, "strategy": "LongestFirst", "stride": 0},
            "padding": null,
            "added_tokens": added,
            "normalizer": null,
            "pre_tokenizer": {"type": "Whitespace"},
            "post_processor": {"type": "BertProcessing", "sep": ["a", 1], "cls": ["b", 2]},
            "decoder": null,
            "model": model,
        });
        std::fs::write(folder.join("tokenizer.json"), file.to_string()).unwrap();
        if let Some(eos_token) = eos_token {
            let config = json!({"eos_token": {"content": eos_token}}).to_string();
            std::fs::write(folder.join("tokenizer_config.json"), config).unwrap();
        }
        folder.to_str().unwrap().to_owned()
    }

    #[test]
    fn the_byte_tokenizer_is_what_it_says() {
        let tokenizer = Tokenizer::open("bytes").unwrap();
        assert_eq!(
            (tokenizer.vocab_size(), tokenizer.eos_id()),
            (257, Some(256))
        );
        let ids = tokenizer.encode("caf\u{e9}").unwrap();
        assert_eq!(ids, [99, 97, 102, 0xc3, 0xa9]);
        assert_eq!(tokenizer.decode(&ids).unwrap(), "caf\u{e9}");
        assert_eq!(
            tokenizer.decode(&[97, 256, 98, 256]).unwrap(),
            "a<eos>b<eos>"
        );
        assert_eq!(tokenizer.decode(&[0xc3]).unwrap(), "\u{fffd}");
        assert!(matches!(
            tokenizer.decode(&[257]),
            Err(TokenizerError::Decode { .. })
        ));
    }

    #[test]
    fn added_tokens_count_for_the_vocabulary_and_are_never_encoded() {
        let folder = tempfile::tempdir().unwrap();
        let spec = write_tokenizer(folder.path(), &[("</s>", 7), ("<tool>", 9)], None);
        let tokenizer = Tokenizer::open(&spec).unwrap();
        assert_eq!(tokenizer.vocab_size(), 10);
        assert_eq!((tokenizer.eos_id(), tokenizer.pad_id()), (Some(7), 7));
        // No begin or end mark, no truncation, and unknown words in place of the added tokens.
        let ids = tokenizer.encode("a b </s> <tool> a").unwrap();
        assert_eq!(ids, [1, 2, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(tokenizer.decode(&[1, 2, 7, 1]).unwrap(), "a b</s>a");
    }

    #[test]
    fn a_model_that_has_its_control_tokens_does_not_give_them_away() {
        let folder = tempfile::tempdir().unwrap();
        let vocabulary = json!([
            ["<unk>", 0.0],
            ["</s>", 0.0],
            ["<", -5.0],
            ["/", -5.0],
            ["s", -5.0],
            [">", -5.0],
            ["a", -5.0],
            ["aa", -6.0],
            ["\n", -5.0]
        ]);
        let file = json!({
            "added_tokens": [
                {"id": 0, "content": "<unk>", "special": true},
                {"id": 1, "content": "</s>", "special": true},
            ],
            "normalizer": {"type": "NFKC"},
            "model": {"type": "Unigram", "unk_id": 0, "vocab": vocabulary},
        });
        let path = folder.path().join("tokenizer.json");
        std::fs::write(&path, file.to_string()).unwrap();
        let tokenizer = Tokenizer::open(path.to_str().unwrap()).unwrap();
        assert_eq!(tokenizer.eos_id(), Some(1));
        // The second line has full-width characters, which the normalizer maps to the same.
        for line in ["</s>", "\u{ff1c}\u{ff0f}s\u{ff1e}"] {
            let ids = tokenizer.encode(&format!("aa\n{line}\naa")).unwrap();
            assert_eq!(ids, [7, 8, 2, 3, 4, 5, 8, 7]);
        }
        assert_eq!(tokenizer.encode("a!").unwrap(), [6, 0]);
    }

    #[test]
    fn the_end_mark_is_the_configured_one_unless_it_ends_a_chat_turn() {
        let eos = |added: &[(&str, u32)], configured| {
            let folder = tempfile::tempdir().unwrap();
            Tokenizer::open(&write_tokenizer(folder.path(), added, configured)).map(|t| t.eos_id())
        };
        let both = [("</s>", 5), ("<|endoftext|>", 4)];
        assert_eq!(eos(&both, None).unwrap(), Some(4));
        assert_eq!(eos(&both, Some("</s>")).unwrap(), Some(5));
        let qwen = [("<|endoftext|>", 4), ("<|im_end|>", 6)];
        assert_eq!(eos(&qwen, Some("<|im_end|>")).unwrap(), Some(4));
        assert_eq!(eos(&qwen[1..], Some("<|im_end|>")).unwrap(), Some(6));
        assert_eq!(eos(&[], None).unwrap(), None);
        let unknown = eos(&both, Some("<nope>")).unwrap_err();
        assert!(
            matches!(unknown, TokenizerError::UnknownEos { .. }),
            "{unknown}"
        );
    }

    #[test]
    fn wrong_specs_have_their_own_errors() {
        let error = |spec: &str| Tokenizer::open(spec).map(|_| ()).unwrap_err();
        assert!(matches!(
            error("no/such/file.json"),
            TokenizerError::NotFound { .. }
        ));
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(
            error(folder.path().to_str().unwrap()),
            TokenizerError::NotFound { .. }
        ));
        let file = folder.path().join("tokenizer.json");
        for wrong in [
            "",
            "{}",
            "[]",
            "{\"model\": {\"type\": \"BPE\"}}",
            "{\"model\": {\"type\": \"None\"}}",
        ] {
            std::fs::write(&file, wrong).unwrap();
            let error = error(file.to_str().unwrap());
            assert!(
                matches!(error, TokenizerError::Invalid { .. }),
                "{wrong}: {error}"
            );
        }
    }

    #[test]
    fn pieces_cover_the_text_and_end_at_lines_if_there_are_any() {
        let line = format!("{}\n", "caf\u{e9} ".repeat(30));
        let lines = format!("{}.\n", "caf\u{e9} ".repeat(30).trim_end()).repeat(3000);
        for text in [
            lines.clone(),
            line.repeat(3000),
            "\u{20ac}".repeat(300_000),
            "a b".repeat(400_000),
        ] {
            let pieces: Vec<&str> = pieces(&text).collect();
            assert_eq!(pieces.concat(), text);
            assert!(pieces.len() > 1);
            assert!(pieces.iter().all(|piece| piece.len() <= MAX_PIECE_BYTES));
        }
        assert!(pieces(&lines).all(|piece| piece.ends_with(".\n")));
        assert_eq!(pieces("").count(), 0);
    }
}
