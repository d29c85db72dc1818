//! Trains a byte-level BPE tokenizer on documents.
//!
//! Words are found as Qwen finds them, merges are learned by the `tokenizers` crate, and the end mark
//! `<|endoftext|>` comes last. The result is a `tokenizer.json` like any other.

use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split as WordSplit, SplitPattern};
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper,
    SplitDelimiterBehavior, TokenizerBuilder,
};

use crate::documents::{ShardReader, shard_error};
use crate::error::{DataError, TokenizerError};
use crate::hub::Hub;
use crate::position::Cursor;
use crate::record::Content;
use crate::source::{Shard, resolve};
use crate::split::Split;
use crate::words::QWEN_WORDS;

const END_MARK: &str = "<|endoftext|>";
/// 256 bytes and the end mark.
const MIN_VOCAB_SIZE: usize = 257;

/// A trained tokenizer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrainedTokenizer {
    /// The text of its `tokenizer.json`.
    pub json: String,
    /// Its ids; fewer than asked for if the sample has no more pairs to merge.
    pub vocab_size: usize,
    /// Documents of the sample.
    pub documents: u64,
    /// Size of the sample in bytes of UTF-8.
    pub bytes: u64,
}

/// Learns a vocabulary of `vocab_size` ids, the end mark included, from the first `sample_bytes` of
/// the sources. The same sources give the same tokenizer.
///
/// # Errors
/// A vocabulary too small for all bytes, sources that cannot be read or hold no document.
pub fn train_tokenizer(
    sources: &[String],
    text_column: &str,
    vocab_size: usize,
    sample_bytes: u64,
    hub: &Hub,
) -> Result<TrainedTokenizer, DataError> {
    if vocab_size < MIN_VOCAB_SIZE {
        return Err(DataError::TooSmall {
            name: "vocab_size",
            value: vocab_size,
            min: MIN_VOCAB_SIZE,
        });
    }
    let hub = hub.separate(Some(0));
    let (shards, _) = resolve(sources, &hub)?;
    let num_shards = shards.len();
    let mut sample = Sample {
        shards: shards.into_iter(),
        text_column,
        open: None,
        remaining: sample_bytes,
        skipped: 0,
        documents: 0,
        error: None,
    };
    let trained = train(&mut sample, vocab_size);
    if let Some(error) = sample.error {
        return Err(error);
    }
    if sample.documents == 0 {
        return Err(DataError::NoUsableDocuments {
            split: Split::Train,
            entry: None,
            num_shards,
            skipped_documents: sample.skipped,
            bad_lines: 0,
            bad_shards: 0,
        });
    }
    let (json, vocab_size) = trained.map_err(|error| TokenizerError::Train {
        reason: error.to_string(),
    })?;
    Ok(TrainedTokenizer {
        json,
        vocab_size,
        documents: sample.documents,
        bytes: sample_bytes - sample.remaining,
    })
}

/// The `tokenizer.json` and its number of ids.
fn train(sample: &mut Sample, vocab_size: usize) -> tokenizers::Result<(String, usize)> {
    let bytes = ByteLevel::new(false, false, false);
    let words = SplitPattern::Regex(QWEN_WORDS.to_owned());
    let words = WordSplit::new(words, SplitDelimiterBehavior::Isolated, false)?;
    let stages = vec![words.into(), PreTokenizerWrapper::ByteLevel(bytes)];
    let mut tokenizer = TokenizerBuilder::new()
        .with_model(BPE::default())
        .with_normalizer(Some(NormalizerWrapper::NFC(NFC)))
        .with_pre_tokenizer(Some(PreTokenizerWrapper::Sequence(Sequence::new(stages))))
        .with_post_processor(Some(PostProcessorWrapper::ByteLevel(bytes)))
        .with_decoder(Some(DecoderWrapper::ByteLevel(bytes)))
        .build()?;
    let mut trainer = BpeTrainerBuilder::new()
        .show_progress(false)
        .vocab_size(vocab_size - 1)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    tokenizer.train(&mut trainer, sample)?;
    tokenizer.add_special_tokens([AddedToken::from(END_MARK, true)])?;
    Ok((tokenizer.to_string(true)?, tokenizer.get_vocab_size(true)))
}

/// The first documents of some files.
struct Sample<'a> {
    shards: std::vec::IntoIter<Shard>,
    text_column: &'a str,
    open: Option<(Shard, ShardReader)>,
    /// Bytes still to take.
    remaining: u64,
    skipped: u64,
    documents: u64,
    /// What ended the sample before its time.
    error: Option<DataError>,
}

impl Sample<'_> {
    /// The next text; `None` at the end of the files.
    fn read(&mut self) -> Result<Option<String>, DataError> {
        loop {
            let Some((shard, reader)) = &mut self.open else {
                let Some(shard) = self.shards.next() else {
                    return Ok(None);
                };
                let start = Cursor::default();
                let reader = ShardReader::open(&shard, Split::Train, self.text_column, None, start)
                    .map_err(|failure| shard_error(&shard, failure))?;
                self.open = Some((shard, reader));
                continue;
            };
            let record = reader
                .next()
                .map_err(|failure| shard_error(shard, failure))?;
            match record.map(|record| record.content) {
                Some(Content::Text(text)) => return Ok(Some(text)),
                Some(Content::NoText | Content::Tokens(_)) => self.skipped += 1,
                Some(Content::Bad(place, problem)) => {
                    return Err(shard_error(shard, (place, problem)).into());
                }
                None => self.open = None,
            }
        }
    }
}

impl Iterator for Sample<'_> {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        if self.remaining == 0 || self.error.is_some() {
            return None;
        }
        let mut text = self.read().unwrap_or_else(|error| {
            self.error = Some(error);
            None
        })?;
        let limit = usize::try_from(self.remaining).unwrap_or(usize::MAX);
        text.truncate(text.floor_char_boundary(limit));
        if text.is_empty() {
            self.remaining = 0;
            return None;
        }
        self.remaining -= text.len() as u64;
        self.documents += 1;
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::Tokenizer;

    fn synthetic(vocab_size: usize, sample_bytes: u64) -> Result<TrainedTokenizer, DataError> {
        let sources = ["builtin:synthetic".to_owned()];
        train_tokenizer(&sources, "text", vocab_size, sample_bytes, &Hub::default())
    }

    #[test]
    fn the_result_is_a_tokenizer_with_an_end_mark_that_repeats_exactly() {
        let trained = synthetic(400, 50_000).unwrap();
        assert_eq!((trained.vocab_size, trained.bytes), (400, 50_000));
        assert_eq!(trained, synthetic(400, 50_000).unwrap());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        std::fs::write(&path, &trained.json).unwrap();
        let tokenizer = Tokenizer::open(path.to_str().unwrap()).unwrap();
        assert_eq!(
            (tokenizer.vocab_size(), tokenizer.eos_id()),
            (400, Some(399))
        );
        let text =
            crate::synthetic::document(Split::Validation, 0).text + " caf\u{e9} <|endoftext|>";
        let ids = tokenizer.encode(&text).unwrap();
        assert!(
            ids.len() * 2 < text.len(),
            "{} ids for {} bytes",
            ids.len(),
            text.len()
        );
        assert!(!ids.contains(&399));
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    }

    #[test]
    fn a_small_sample_gives_fewer_ids_and_a_small_vocabulary_is_refused() {
        let trained = synthetic(100_000, 300).unwrap();
        assert!(
            (257..1000).contains(&trained.vocab_size),
            "{}",
            trained.vocab_size
        );
        assert!(matches!(
            synthetic(256, 300),
            Err(DataError::TooSmall {
                value: 256,
                min: 257,
                ..
            })
        ));
    }

    #[test]
    fn bad_and_empty_sources_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        let sources = [path.to_str().unwrap().to_owned()];
        let train = || train_tokenizer(&sources, "text", 300, 1000, &Hub::default());
        std::fs::write(&path, "{\"text\": \"\"}\n").unwrap();
        assert!(matches!(train(), Err(DataError::NoUsableDocuments { .. })));
        std::fs::write(&path, "{\"text\": \"good\"}\nbad\n").unwrap();
        assert!(train().unwrap_err().to_string().contains("line 2"));
    }
}
