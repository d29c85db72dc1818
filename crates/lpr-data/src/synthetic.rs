//! `builtin:synthetic`: English-like text with a known, skewed cluster structure, so that routing
//! has something to find.
//!
//! A document belongs to one of [`NUM_TOPICS`] topics; topic `k` is drawn with a probability
//! proportional to `1/(k+1)`. A topic has words of its own, built from its own syllables, and each
//! word has preferred successors inside the topic. Function words are shared by all topics.
//! Everything is integer arithmetic on a counter-based generator: document `index` of a split is
//! the same on every machine and needs no other document.

use std::collections::HashSet;
use std::sync::LazyLock;

use crate::random::Random;
use crate::split::Split;

/// Number of topics.
pub const NUM_TOPICS: usize = 16;
/// Words that belong to one topic.
pub const WORDS_PER_TOPIC: usize = 48;
/// Documents in one epoch of the training split.
pub const NUM_TRAIN_DOCUMENTS: u64 = 20_000;
/// Documents in the validation split, none of which is in the training split.
pub const NUM_VALIDATION_DOCUMENTS: u64 = 500;

const MIN_WORDS: u64 = 40;
const MAX_WORDS: u64 = 400;
const SYLLABLES_PER_TOPIC: usize = 12;
const NUM_SUCCESSORS: usize = 4;
const TABLE_SEED: u64 = 0x6c70_725f_7461_626c;
const TRAIN_SEED: u64 = 0x6c70_725f_7472_6169;
const VALIDATION_SEED: u64 = 0x6c70_725f_7661_6c69;

const FUNCTION_WORDS: [&str; 24] = [
    "the", "of", "and", "to", "a", "in", "is", "that", "for", "it", "was", "on", "with", "as",
    "by", "at", "from", "or", "an", "be", "this", "which", "not", "but",
];
const ONSETS: [&str; 20] = [
    "b", "br", "c", "ch", "d", "dr", "f", "g", "gl", "h", "l", "m", "n", "p", "r", "s", "st", "t",
    "tr", "v",
];
const VOWELS: [&str; 8] = ["a", "e", "i", "o", "u", "ai", "ea", "ou"];
const CODAS: [&str; 8] = ["", "", "", "n", "r", "s", "l", "m"];

/// A generated document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyntheticDocument {
    /// The topic it was drawn from, `0..NUM_TOPICS`, most frequent first.
    pub topic: usize,
    /// Its text: ASCII sentences, 40 to 400 words.
    pub text: String,
}

/// Number of documents in one pass over a split.
pub fn num_documents(split: Split) -> u64 {
    match split {
        Split::Train => NUM_TRAIN_DOCUMENTS,
        Split::Validation => NUM_VALIDATION_DOCUMENTS,
    }
}

/// Document `index` of a split. Any index is valid; an epoch uses `0..num_documents(split)`.
pub fn document(split: Split, index: u64) -> SyntheticDocument {
    static TABLES: LazyLock<Tables> = LazyLock::new(Tables::new);

    let seed = match split {
        Split::Train => TRAIN_SEED,
        Split::Validation => VALIDATION_SEED,
    };
    let mut random = Random::new(seed, index);
    let topic = TABLES.topic_weights.draw(&mut random);
    let num_words = MIN_WORDS + random.below(MAX_WORDS - MIN_WORDS + 1);
    let text = write_text(&TABLES, topic, num_words, &mut random);
    SyntheticDocument { topic, text }
}

/// Words and their preferences, the same for every document.
struct Tables {
    topic_weights: ZipfWeights,
    word_weights: ZipfWeights,
    topics: Vec<Topic>,
}

struct Topic {
    words: Vec<String>,
    /// For each word, the words of the topic that like to follow it, best first.
    successors: Vec<[usize; NUM_SUCCESSORS]>,
    /// For each word, the function word that likes to follow it.
    function_words: Vec<usize>,
}

impl Tables {
    fn new() -> Self {
        let mut taken = FUNCTION_WORDS.map(str::to_owned).into();
        let topics = (0..NUM_TOPICS)
            .map(|topic| Topic::new(topic, &mut taken))
            .collect();
        Self {
            topic_weights: ZipfWeights::new(NUM_TOPICS),
            word_weights: ZipfWeights::new(WORDS_PER_TOPIC),
            topics,
        }
    }
}

impl Topic {
    fn new(topic: usize, taken: &mut HashSet<String>) -> Self {
        let mut random = Random::new(TABLE_SEED, topic as u64);
        let syllables: Vec<String> = (0..SYLLABLES_PER_TOPIC)
            .map(|_| {
                let (onset, vowel) = (random.pick(&ONSETS), random.pick(&VOWELS));
                format!("{onset}{vowel}{}", random.pick(&CODAS))
            })
            .collect();
        let mut words = Vec::with_capacity(WORDS_PER_TOPIC);
        while words.len() < WORDS_PER_TOPIC {
            let num_syllables = 1 + random.below(2);
            let word: String = (0..num_syllables)
                .map(|_| random.pick(&syllables).as_str())
                .collect();
            if taken.insert(word.clone()) {
                words.push(word);
            }
        }
        let below_words = |random: &mut Random| random.below(WORDS_PER_TOPIC as u64) as usize;
        let successors = (0..WORDS_PER_TOPIC)
            .map(|_| std::array::from_fn(|_| below_words(&mut random)))
            .collect();
        let function_words = (0..WORDS_PER_TOPIC)
            .map(|_| random.below(FUNCTION_WORDS.len() as u64) as usize)
            .collect();
        Self {
            words,
            successors,
            function_words,
        }
    }

    /// The next word: one of the preferred successors in 7 of 8 cases, else any word by frequency.
    fn next_word(&self, word: usize, weights: &ZipfWeights, random: &mut Random) -> usize {
        match random.below(16) {
            0..=7 => self.successors[word][0],
            8..=10 => self.successors[word][1],
            11..=12 => self.successors[word][2],
            13 => self.successors[word][3],
            _ => weights.draw(random),
        }
    }
}

fn write_text(tables: &Tables, topic: usize, num_words: u64, random: &mut Random) -> String {
    let topic = &tables.topics[topic];
    let mut text = String::new();
    let mut word = tables.word_weights.draw(random);
    let mut left_in_sentence = 0;
    let mut written = 0;
    while written < num_words {
        if left_in_sentence == 0 {
            if !text.is_empty() {
                text.push_str(". ");
            }
            left_in_sentence = 6 + random.below(9);
            push_capitalized(&mut text, &topic.words[word]);
        } else {
            text.push(' ');
            text.push_str(&topic.words[word]);
        }
        written += 1;
        left_in_sentence -= 1;
        // A sentence never ends in a function word, and neither does the document.
        if left_in_sentence > 0 && written + 1 < num_words && random.below(5) < 2 {
            let function_word = if random.below(4) < 3 {
                FUNCTION_WORDS[topic.function_words[word]]
            } else {
                random.pick(&FUNCTION_WORDS)
            };
            text.push(' ');
            text.push_str(function_word);
            written += 1;
        }
        word = topic.next_word(word, &tables.word_weights, random);
    }
    text.push_str(".\n");
    text
}

fn push_capitalized(text: &mut String, word: &str) {
    let mut letters = word.chars();
    text.extend(letters.next().map(|first| first.to_ascii_uppercase()));
    text.push_str(letters.as_str());
}

/// Integer weights proportional to `1/(k+1)`, up to rounding, as running sums.
struct ZipfWeights {
    running_sums: Vec<u64>,
}

impl ZipfWeights {
    fn new(len: usize) -> Self {
        let mut sum = 0;
        let running_sums = (1..=len as u64)
            .map(|rank| {
                sum += (1 << 32) / rank;
                sum
            })
            .collect();
        Self { running_sums }
    }

    fn draw(&self, random: &mut Random) -> usize {
        let total = self.running_sums.last().copied().unwrap_or(1);
        let value = random.below(total);
        self.running_sums.partition_point(|&sum| sum <= value)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn texts(split: Split, range: std::ops::Range<u64>) -> String {
        range.map(|index| document(split, index).text).collect()
    }

    #[test]
    fn the_corpus_never_changes() {
        let text = texts(Split::Train, 0..50) + &texts(Split::Validation, 0..50);
        let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        assert_eq!(
            hash, 15_250_900_853_030_646_888,
            "losses of old runs can no longer be compared"
        );
    }

    #[test]
    fn documents_look_like_sentences_of_the_promised_length() {
        for index in 0..300 {
            let text = document(Split::Train, index).text;
            let words = text.split_whitespace().count() as u64;
            assert!((MIN_WORDS..=MAX_WORDS).contains(&words), "{words}");
            assert!(text.is_ascii() && text.ends_with(".\n"), "{text}");
            assert!(text.starts_with(|first: char| first.is_ascii_uppercase()));
        }
    }

    #[test]
    fn topics_follow_the_promised_frequencies() {
        let mut counts = [0_u32; NUM_TOPICS];
        for index in 0..NUM_TRAIN_DOCUMENTS {
            counts[document(Split::Train, index).topic] += 1;
        }
        let harmonic: f64 = (1..=NUM_TOPICS).map(|rank| 1.0 / rank as f64).sum();
        for (topic, &count) in counts.iter().enumerate() {
            let share = 1.0 / (topic + 1) as f64 / harmonic;
            let expected = share * NUM_TRAIN_DOCUMENTS as f64;
            // Five standard deviations of a binomial count.
            let tolerance = 5.0 * (expected * (1.0 - share)).sqrt();
            assert!(
                (f64::from(count) - expected).abs() < tolerance,
                "{counts:?}"
            );
        }
    }

    #[test]
    fn no_validation_document_is_in_the_training_split() {
        let train: HashSet<String> = (0..NUM_TRAIN_DOCUMENTS)
            .map(|index| document(Split::Train, index).text)
            .collect();
        let held_out = |index| document(Split::Validation, index).text;
        assert!((0..NUM_VALIDATION_DOCUMENTS).all(|index| !train.contains(&held_out(index))));
    }

    #[test]
    fn topics_share_no_word_but_the_function_words() {
        let mut seen = HashSet::new();
        for topic in Tables::new().topics {
            assert_eq!(topic.words.len(), WORDS_PER_TOPIC);
            for word in topic.words {
                assert!(!FUNCTION_WORDS.contains(&word.as_str()));
                assert!(seen.insert(word));
            }
        }
    }

    /// Bits per byte on held-out text of a table that predicts a byte from the `order` bytes before
    /// it.
    fn held_out_entropy(order: usize) -> f64 {
        let mut counts: HashMap<(&[u8], u8), f64> = HashMap::new();
        let mut totals: HashMap<&[u8], f64> = HashMap::new();
        let train = texts(Split::Train, 0..500);
        for window in train.as_bytes().windows(order + 1) {
            let (context, next) = (&window[..order], window[order]);
            *counts.entry((context, next)).or_default() += 1.0;
            *totals.entry(context).or_default() += 1.0;
        }
        let test = texts(Split::Validation, 0..50);
        let windows = test.as_bytes().windows(order + 1);
        let num_windows = windows.len() as f64;
        let bits = windows.map(|window| {
            let (context, next) = (&window[..order], window[order]);
            let count = counts.get(&(context, next)).unwrap_or(&0.0) + 0.01;
            let total = totals.get(context).unwrap_or(&0.0) + 0.01 * 60.0;
            -(count / total).log2()
        });
        bits.sum::<f64>() / num_windows
    }

    #[test]
    fn a_few_bytes_of_context_predict_far_better_than_none() {
        let (none, some, more) = (
            held_out_entropy(0),
            held_out_entropy(3),
            held_out_entropy(6),
        );
        assert!(none > 3.5, "{none}");
        assert!(some < 0.6 * none, "{some} of {none}");
        assert!(more < 0.4 * none, "{more} of {none}");
    }
}
