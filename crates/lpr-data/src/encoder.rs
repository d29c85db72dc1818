//! The model of a `tokenizer.json`: text to ids, with a short cut for byte-level tokenizers.
//!
//! The general path runs the stages of the `tokenizers` crate. Byte-level tokenizers whose words
//! are found by one regular expression (GPT-2, Qwen, Llama 3 and most since) skip its alignment
//! bookkeeping: each word is looked up in a cache, and only unknown words go through the merges. For
//! well-known expressions `words.rs` finds the words, and `merges.rs` merges. Tests check that all
//! paths agree.

use std::borrow::Cow;
use std::collections::HashMap;

use ahash::RandomState;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokenizers::decoders::DecoderWrapper;
use tokenizers::models::ModelWrapper;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::split::{Split as WordSplit, SplitPattern};
use tokenizers::{
    Decoder, Model, NormalizedString, Normalizer, OffsetReferential, OffsetType,
    PreTokenizedString, PreTokenizer, SplitDelimiterBehavior,
};

use crate::merges::{MAX_WORD_BYTES, Merges};
use crate::words::{Classes, GPT2_WORDS, WordFinder};

/// Words kept by a cache; the most frequent ones come early and stay.
const MAX_CACHED_WORDS: usize = 1 << 15;
/// Longer words are too rare to be worth a place.
const MAX_CACHED_WORD_BYTES: usize = 32;

/// The keys of a `tokenizer.json` that an encoder is made of.
#[derive(Deserialize)]
pub(crate) struct EncoderFile<'a> {
    normalizer: Option<NormalizerWrapper>,
    pre_tokenizer: Option<PreTokenizerWrapper>,
    decoder: Option<DecoderWrapper>,
    /// Read from its own text, because the generic path of the crate copies all merges several
    /// times.
    #[serde(borrow)]
    model: &'a RawValue,
}

/// What is read of a model before the model itself.
#[derive(Deserialize)]
struct ModelHead {
    #[serde(rename = "type")]
    name: Option<String>,
    unk_token: Option<String>,
    unk_id: Option<u32>,
}

/// Turns text into ids and back; knows no added tokens.
pub(crate) struct Encoder {
    normalizer: Option<NormalizerWrapper>,
    pre_tokenizer: Option<PreTokenizerWrapper>,
    model: ModelWrapper,
    decoder: Option<DecoderWrapper>,
    unknown_id: Option<u32>,
    /// Finds the words of a byte-level tokenizer; `None` if the general path is needed.
    words: Option<Words>,
    /// `None` if the model is more than bytes and merges.
    merges: Option<Merges>,
    byte_chars: [char; 256],
}

/// How the words of a byte-level tokenizer are found.
enum Words {
    Known(Box<WordFinder>),
    Regex(WordSplit),
}

impl Words {
    /// The way without the regular expression, if there is one.
    fn known(pattern: &str) -> Option<Self> {
        let finder = WordFinder::of(pattern)?;
        Some(Self::Known(Box::new(finder)))
    }
}

/// Ids of words already seen by one thread with one tokenizer.
#[derive(Default)]
pub(crate) struct WordCache {
    /// Start and length in `ids`.
    words: HashMap<Box<str>, (u32, u32), RandomState>,
    ids: Vec<u32>,
    /// The word in the alphabet of the vocabulary.
    spelled: String,
    classes: Classes,
}

impl Encoder {
    /// Builds the encoder. Random merges (`dropout`) are switched off: the same text always gives
    /// the same ids.
    pub(crate) fn new(file: EncoderFile) -> Result<Self, String> {
        let text = file.model.get();
        let in_model = |error: serde_json::Error| format!("model: {error}");
        let head: ModelHead = serde_json::from_str(text).map_err(in_model)?;
        let mut model = if head.name.as_deref() == Some("BPE") {
            serde_json::from_str(text).map(ModelWrapper::BPE)
        } else {
            serde_json::from_str(text)
        }
        .map_err(in_model)?;
        let words = file.pre_tokenizer.as_ref().and_then(word_splitter);
        let byte_chars = byte_chars();
        if let ModelWrapper::BPE(bpe) = &mut model {
            bpe.dropout = None;
            if words.is_some() {
                // Words are cached here; a second cache inside would only cost memory.
                BPE::resize_cache(bpe, 0);
            }
        }
        let merges = match (&model, &words) {
            (ModelWrapper::BPE(bpe), Some(_)) => {
                Merges::of(text, &byte_chars, |token| bpe.token_to_id(token))
            }
            _ => None,
        };
        let unknown_token = head.unk_token.as_deref();
        let unknown_id = unknown_token.and_then(|token| model.token_to_id(token));
        Ok(Self {
            unknown_id: head.unk_id.or(unknown_id),
            normalizer: file.normalizer,
            pre_tokenizer: file.pre_tokenizer,
            model,
            decoder: file.decoder,
            words,
            merges,
            byte_chars,
        })
    }

    /// Largest id of the model, `None` if it has no token.
    pub(crate) fn largest_id(&self) -> Option<u32> {
        self.model.get_vocab().into_values().max()
    }

    /// The id that stands for whatever is not in the vocabulary.
    pub(crate) fn unknown_id(&self) -> Option<u32> {
        self.unknown_id
    }

    pub(crate) fn token_id(&self, token: &str) -> Option<u32> {
        self.model.token_to_id(token)
    }

    /// Appends the ids of a text.
    pub(crate) fn encode(
        &self,
        text: &str,
        cache: &mut WordCache,
        ids: &mut Vec<u32>,
    ) -> tokenizers::Result<()> {
        match &self.words {
            Some(words) => self.encode_words(&self.normalize(text)?, words, cache, ids),
            None => self.encode_generally(text, ids),
        }
    }

    fn encode_generally(&self, text: &str, ids: &mut Vec<u32>) -> tokenizers::Result<()> {
        let mut normalized = NormalizedString::from(text);
        if let Some(normalizer) = &self.normalizer {
            normalizer.normalize(&mut normalized)?;
        }
        let mut words = PreTokenizedString::from(normalized);
        if let Some(pre_tokenizer) = &self.pre_tokenizer {
            pre_tokenizer.pre_tokenize(&mut words)?;
        }
        words.tokenize(|word| self.model.tokenize(word.get()))?;
        for (_, _, tokens) in words.get_splits(OffsetReferential::Normalized, OffsetType::None) {
            ids.extend(tokens.iter().flatten().map(|token| token.id));
        }
        Ok(())
    }

    fn encode_words(
        &self,
        text: &str,
        words: &Words,
        cache: &mut WordCache,
        ids: &mut Vec<u32>,
    ) -> tokenizers::Result<()> {
        let words = match words {
            Words::Regex(words) => words,
            Words::Known(finder) => {
                let mut classes = std::mem::take(&mut cache.classes);
                let each = |word: &str| self.encode_word(word, cache, ids);
                let encoded = finder.words(text, &mut classes, each);
                cache.classes = classes;
                return encoded;
            }
        };
        let mut end_of_last = 0;
        for (start, end) in words.regex.find_iter(text) {
            // What lies between two matches is a word as well.
            if end_of_last < start {
                self.encode_word(&text[end_of_last..start], cache, ids)?;
            }
            if start < end {
                self.encode_word(&text[start..end], cache, ids)?;
            }
            end_of_last = end;
        }
        if end_of_last < text.len() {
            self.encode_word(&text[end_of_last..], cache, ids)?;
        }
        Ok(())
    }

    fn encode_word(
        &self,
        word: &str,
        cache: &mut WordCache,
        ids: &mut Vec<u32>,
    ) -> tokenizers::Result<()> {
        if let Some(&(start, len)) = cache.words.get(word) {
            ids.extend_from_slice(&cache.ids[start as usize..][..len as usize]);
            return Ok(());
        }
        let start_in_ids = ids.len();
        match &self.merges {
            Some(merges) if word.len() <= MAX_WORD_BYTES => merges.encode(word.as_bytes(), ids),
            _ => {
                cache.spelled.clear();
                let chars = word.bytes().map(|byte| self.byte_chars[usize::from(byte)]);
                cache.spelled.extend(chars);
                let tokens = self.model.tokenize(&cache.spelled)?;
                ids.extend(tokens.iter().map(|token| token.id));
            }
        }
        if word.len() <= MAX_CACHED_WORD_BYTES && cache.words.len() < MAX_CACHED_WORDS {
            let new = &ids[start_in_ids..];
            let place = (cache.ids.len() as u32, new.len() as u32);
            cache.ids.extend_from_slice(new);
            cache.words.insert(word.into(), place);
        }
        Ok(())
    }

    fn normalize<'a>(&self, text: &'a str) -> tokenizers::Result<Cow<'a, str>> {
        let Some(normalizer) = &self.normalizer else {
            return Ok(Cow::Borrowed(text));
        };
        let normalize = |text: &str, result: &mut String| {
            let mut normalized = NormalizedString::from(text);
            normalizer.normalize(&mut normalized)?;
            result.push_str(normalized.get());
            tokenizers::Result::Ok(())
        };
        let mut result = String::new();
        if !matches!(normalizer, NormalizerWrapper::NFC(_)) {
            normalize(text, &mut result)?;
            return Ok(Cow::Owned(result));
        }
        // NFC never reaches across a line end, so only lines that it may change pay for it.
        if text.chars().all(is_composed) {
            return Ok(Cow::Borrowed(text));
        }
        result.reserve(text.len());
        for line in text.split_inclusive('\n') {
            if line.chars().all(is_composed) {
                result.push_str(line);
            } else {
                normalize(line, &mut result)?;
            }
        }
        Ok(Cow::Owned(result))
    }

    /// Text of ids, which must be ids of the model.
    pub(crate) fn decode(&self, ids: &[u32]) -> tokenizers::Result<String> {
        let tokens = ids.iter().filter_map(|&id| self.model.id_to_token(id));
        match &self.decoder {
            Some(decoder) => decoder.decode(tokens.collect()),
            None => Ok(tokens.collect::<Vec<_>>().join(" ")),
        }
    }
}

/// Whether NFC leaves a character as it is among others of this kind: Latin letters with all their
/// accents, and the quotes and dashes of running text.
fn is_composed(character: char) -> bool {
    matches!(character, '\0'..='\u{2ff}' | '\u{2010}'..='\u{2027}')
}

/// How the words of a byte-level tokenizer are found, if that is all its pre-tokenizer does.
fn word_splitter(pre_tokenizer: &PreTokenizerWrapper) -> Option<Words> {
    match pre_tokenizer {
        PreTokenizerWrapper::ByteLevel(bytes) if bytes.use_regex && !bytes.add_prefix_space => {
            Words::known(GPT2_WORDS)
        }
        PreTokenizerWrapper::Sequence(sequence) => match sequence.as_ref() {
            [
                PreTokenizerWrapper::Split(words),
                PreTokenizerWrapper::ByteLevel(bytes),
            ] if !bytes.use_regex
                && !bytes.add_prefix_space
                && !words.invert
                && words.behavior == SplitDelimiterBehavior::Isolated =>
            {
                let known = match &words.pattern {
                    SplitPattern::Regex(pattern) => Words::known(pattern),
                    SplitPattern::String(_) => None,
                };
                known.or_else(|| Some(Words::Regex(words.clone())))
            }
            _ => None,
        },
        _ => None,
    }
}

/// The printable character that stands for each byte in the vocabulary of a byte-level tokenizer:
/// itself if it is a visible Latin-1 character, else the next free one from U+0100 on.
fn byte_chars() -> [char; 256] {
    let is_visible = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut hidden = '\u{100}'..;
    std::array::from_fn(|byte| match byte as u8 {
        byte if is_visible(byte) => char::from(byte),
        _ => hidden.next().unwrap_or(char::REPLACEMENT_CHARACTER),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::documents::ShardReader;
    use crate::position::Cursor;
    use crate::record::Content;
    use crate::source::Shard;
    use crate::split::Split;
    use crate::synthetic;
    use crate::tokenizer::pieces;
    use crate::tokenizer_training::train_tokenizer;
    use crate::words::QWEN_WORDS;

    fn byte_level_stage(use_regex: bool) -> Value {
        json!({
            "type": "ByteLevel",
            "add_prefix_space": false,
            "trim_offsets": false,
            "use_regex": use_regex,
        })
    }

    /// A byte-level tokenizer with a few merges, in the two shapes that have a short cut.
    fn byte_level(normalizer: &Value, pre_tokenizer: &Value) -> Encoder {
        let mut vocabulary: Vec<String> = byte_chars().iter().map(char::to_string).collect();
        let merges = [
            "t h",
            "th e",
            "\u{120} the",
            "i n",
            "\u{120} in",
            "\u{c3} \u{a9}",
            "\u{10a} \u{10a}",
        ];
        vocabulary.extend(merges.iter().map(|merge| merge.replace(' ', "")));
        let ids = vocabulary.into_iter().zip(0..);
        let vocabulary: serde_json::Map<_, _> = ids.map(|(token, id)| (token, json!(id))).collect();
        let file = json!({
            "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer,
            "decoder": byte_level_stage(false),
            "model": {"type": "BPE", "dropout": 0.5, "vocab": vocabulary, "merges": merges},
        })
        .to_string();
        Encoder::new(serde_json::from_str(&file).unwrap()).unwrap()
    }

    fn gpt2_like() -> Encoder {
        byte_level(&Value::Null, &byte_level_stage(true))
    }

    fn qwen_like() -> Encoder {
        split_by(QWEN_WORDS)
    }

    /// Like Qwen's tokenizer with another regular expression.
    fn split_by(pattern: &str) -> Encoder {
        let words = json!({
            "type": "Split",
            "pattern": {"Regex": pattern},
            "behavior": "Isolated",
            "invert": false,
        });
        let stages = json!([words, byte_level_stage(false)]);
        let sequence = json!({"type": "Sequence", "pretokenizers": stages});
        byte_level(&json!({"type": "NFC"}), &sequence)
    }

    fn texts() -> Vec<String> {
        let pieces = [
            "the",
            "in",
            " ",
            "  ",
            "\n",
            "\r\n",
            "\t",
            "caf\u{e9}",
            "cafe\u{301}",
            "\u{1f680}",
            "'s",
            "'LL",
            "42",
            "...",
            "\u{3000}",
            "\u{ac00}",
            "\u{1100}\u{1161}",
            "\u{301}",
            "<|endoftext|>",
            "The",
            "\0",
            "\u{feff}",
            "-",
            "\u{fb01}",
        ];
        let mut state = 3_usize;
        let mut next = move |bound: usize| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) % bound
        };
        let mut text = move |len: usize| (0..len).map(|_| pieces[next(pieces.len())]).collect();
        (0..300).map(|index| text(index % 40)).collect()
    }

    #[test]
    fn the_short_cut_gives_the_ids_of_the_general_path() {
        let letters_only = split_by(r"\p{L}+");
        for encoder in [gpt2_like(), qwen_like(), letters_only] {
            assert!(encoder.words.is_some());
            let mut cache = WordCache::default();
            for text in texts() {
                assert_paths_agree(&encoder, &mut cache, &text);
            }
            assert!(cache.words.len() > 50);
        }
    }

    fn assert_paths_agree(encoder: &Encoder, cache: &mut WordCache, text: &str) {
        let (mut short, mut general) = (Vec::new(), Vec::new());
        encoder.encode(text, cache, &mut short).unwrap();
        encoder.encode_generally(text, &mut general).unwrap();
        let differs = short.iter().zip(&general).position(|(a, b)| a != b);
        let start: String = text.chars().take(200).collect();
        assert!(short == general, "{start:?}: differs at {differs:?}");
    }

    /// `LPR_DATA_DIR=<dir>` also takes every `tokenizer/*/tokenizer.json` and every document below it.
    #[test]
    fn thousands_of_merges_give_the_ids_of_the_general_path() {
        let sources = ["builtin:synthetic".to_owned()];
        let trained =
            train_tokenizer(&sources, "text", 3000, 300_000, &crate::Hub::default()).unwrap();
        let mut files = vec![trained.json];
        let mut texts: Vec<String> = texts();
        texts.extend((0..200).map(|i| synthetic::document(Split::Validation, i).text));
        texts.extend(["x", "the", " ", "\u{ac00}", "'s\r\n"].map(|part| part.repeat(700)));
        // Words around the longest that are merged here.
        texts.extend((40..60).map(|len| "intheofandthat".repeat(5)[..len].to_owned()));
        if let Some(folder) = std::env::var_os("LPR_DATA_DIR").map(std::path::PathBuf::from) {
            let list = |pattern: &str| {
                let pattern = folder.join(pattern).to_str().unwrap().to_owned();
                glob::glob(&pattern).unwrap().map(Result::unwrap)
            };
            files.extend(
                list("tokenizer/*/tokenizer.json")
                    .map(|path| std::fs::read_to_string(path).unwrap()),
            );
            for path in list("*/*").filter(|path| path.is_file()) {
                let Some(format) = crate::format::Format::of(&path) else {
                    continue;
                };
                let shard = Shard::File(path, format);
                let start = Cursor::default();
                let Ok(mut reader) = ShardReader::open(&shard, Split::Train, "text", None, start)
                else {
                    continue;
                };
                while let Ok(Some(record)) = reader.next() {
                    if let Content::Text(text) = record.content {
                        texts.extend(pieces(&text).map(str::to_owned));
                    }
                }
            }
        }
        for file in files {
            let encoder = Encoder::new(serde_json::from_str(&file).unwrap()).unwrap();
            assert!(matches!(encoder.words, Some(Words::Known(_))) && encoder.merges.is_some());
            let mut cache = WordCache::default();
            for text in &texts {
                assert_paths_agree(&encoder, &mut cache, text);
            }
        }
    }

    #[test]
    fn normal_form_c_leaves_composed_characters_alone() {
        let all: Vec<char> = ('\0'..='\u{ffff}').filter(|&c| is_composed(c)).collect();
        assert!(all.len() > 700);
        for first in &all {
            // Next to a letter that takes accents, and to each other.
            let text: String = all
                .iter()
                .flat_map(|second| [*first, *second, 'e', *first])
                .collect();
            let mut normalized = NormalizedString::from(text.as_str());
            let nfc = tokenizers::normalizers::unicode::NFC;
            nfc.normalize(&mut normalized).unwrap();
            assert_eq!(normalized.get(), text);
        }
    }

    #[test]
    fn decoding_gives_the_text_back() {
        let encoder = gpt2_like();
        for text in texts() {
            let mut ids = Vec::new();
            encoder
                .encode(&text, &mut WordCache::default(), &mut ids)
                .unwrap();
            assert_eq!(encoder.decode(&ids).unwrap(), text);
        }
    }

    #[test]
    fn merges_apply_although_the_file_asks_for_random_ones() {
        let mut ids = Vec::new();
        let encoder = gpt2_like();
        encoder
            .encode("the in", &mut WordCache::default(), &mut ids)
            .unwrap();
        let expected = ["the", "\u{120}in"].map(|token| encoder.token_id(token).unwrap());
        assert_eq!(ids, expected);
    }

    #[test]
    fn bytes_are_spelled_as_in_gpt2() {
        let chars = byte_chars();
        let spelled = |byte: u8| chars[usize::from(byte)];
        assert_eq!(
            [b'A', b' ', b'\n', 0x7f].map(spelled),
            ['A', '\u{120}', '\u{10a}', '\u{121}']
        );
        assert_eq!(
            [0xad, 0xe9, 0xff].map(spelled),
            ['\u{143}', '\u{e9}', '\u{ff}']
        );
    }
}
