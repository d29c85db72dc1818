//! Finds the words of byte-level tokenizers where the regular expression is a known one, without
//! running it.
//!
//! Which characters are letters, numbers and white space is asked of the regular expression engine
//! of the general path, once for each character, so that both know the same edition of Unicode.

use tokenizers::SplitDelimiterBehavior;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};

/// How GPT-2 finds words; what `ByteLevel` with `use_regex` stands for in a `tokenizer.json`.
pub(crate) const GPT2_WORDS: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// How Qwen finds words.
pub(crate) const QWEN_WORDS: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
/// How Llama 3 and GPT-4 find words: like Qwen, but with up to three digits in one.
pub(crate) const LLAMA3_WORDS: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// Characters below have a place in the table of [`Classes`]; the rest is asked for every time.
const TABLE_LEN: usize = 0x2_0000;

/// A known regular expression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pattern {
    Gpt2,
    /// Qwen and Llama 3.
    Recent {
        max_digits: usize,
    },
}

/// What the regular expressions tell characters apart by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Letter,
    Number,
    Space,
    Other,
}

/// The classes of the characters that one thread has met.
#[derive(Default)]
pub(crate) struct Classes(Vec<Option<Class>>);

/// Cuts texts into words.
pub(crate) struct WordFinder {
    pattern: Pattern,
    ascii: [Class; 128],
    /// Matches of one letter, one number and one white space.
    members: [(Class, Split); 3],
}

impl WordFinder {
    /// A finder for a regular expression, if it is a known one.
    pub(crate) fn of(pattern: &str) -> Option<Self> {
        let pattern = match pattern {
            GPT2_WORDS => Pattern::Gpt2,
            QWEN_WORDS => Pattern::Recent { max_digits: 1 },
            LLAMA3_WORDS => Pattern::Recent { max_digits: 3 },
            _ => return None,
        };
        let one_of = |set: &str| {
            let set = SplitPattern::Regex(set.to_owned());
            Split::new(set, SplitDelimiterBehavior::Isolated, false).ok()
        };
        let mut finder = Self {
            pattern,
            ascii: [Class::Other; 128],
            members: [
                (Class::Letter, one_of(r"\p{L}")?),
                (Class::Number, one_of(r"\p{N}")?),
                (Class::Space, one_of(r"\s")?),
            ],
        };
        finder.ascii = std::array::from_fn(|code| finder.ask(char::from(code as u8)));
        Some(finder)
    }

    /// Calls `each` with the words of a text in order; together they are the text.
    pub(crate) fn words<E>(
        &self,
        text: &str,
        classes: &mut Classes,
        mut each: impl FnMut(&str) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut scan = Scan {
            finder: self,
            classes,
            text,
        };
        let mut start = 0;
        while start < text.len() {
            let end = match self.pattern {
                Pattern::Gpt2 => scan.gpt2_word(start),
                Pattern::Recent { max_digits } => scan.recent_word(start, max_digits),
            };
            each(&text[start..end])?;
            start = end;
        }
        Ok(())
    }

    /// The class of a character, by the engine.
    fn ask(&self, character: char) -> Class {
        let mut buffer = [0; 4];
        let text: &str = character.encode_utf8(&mut buffer);
        let mut members = self.members.iter();
        let found = members.find(|(_, set)| set.regex.find_iter(text).next().is_some());
        found.map_or(Class::Other, |(class, _)| *class)
    }
}

/// A text and what is needed to look at it.
struct Scan<'a> {
    finder: &'a WordFinder,
    classes: &'a mut Classes,
    text: &'a str,
}

impl Scan<'_> {
    /// The class of the character at a place and the place after it; `None` at the end.
    fn at(&mut self, place: usize) -> Option<(Class, usize)> {
        let first = *self.text.as_bytes().get(place)?;
        if let Some(class) = self.finder.ascii.get(usize::from(first)) {
            return Some((*class, place + 1));
        }
        let character = self.text[place..].chars().next()?;
        let finder = self.finder;
        let known = &mut self.classes.0;
        if known.is_empty() {
            known.resize(TABLE_LEN, None);
        }
        let class = match known.get_mut(character as usize) {
            Some(known) => *known.get_or_insert_with(|| finder.ask(character)),
            None => finder.ask(character),
        };
        Some((class, place + character.len_utf8()))
    }

    /// The end of a run of one class, of at most `limit` characters.
    fn run(&mut self, mut place: usize, class: Class, limit: usize) -> usize {
        for _ in 0..limit {
            match self.at(place) {
                Some((found, next)) if found == class => place = next,
                _ => break,
            }
        }
        place
    }

    /// The end of `'s`, `'t`, `'re`, `'ve`, `'m`, `'ll` or `'d`, if that is what an apostrophe begins.
    fn contraction(&self, apostrophe: usize, any_case: bool) -> Option<usize> {
        let bytes = &self.text.as_bytes()[apostrophe..];
        if bytes[0] != b'\'' {
            return None;
        }
        let lower = |index: usize| {
            let byte = bytes.get(index).copied().unwrap_or(0);
            if any_case {
                byte.to_ascii_lowercase()
            } else {
                byte
            }
        };
        let len = match (lower(1), lower(2)) {
            (b's' | b't' | b'm' | b'd', _) => 2,
            (b'r' | b'v', b'e') | (b'l', b'l') => 3,
            // The long s is an s of another case.
            (0xc5, 0xbf) if any_case => 3,
            _ => return None,
        };
        Some(apostrophe + len)
    }

    fn gpt2_word(&mut self, start: usize) -> usize {
        if let Some(end) = self.contraction(start, false) {
            return end;
        }
        let Some((class, next)) = self.at(start) else {
            return self.text.len();
        };
        if class != Class::Space {
            return self.run(next, class, usize::MAX);
        }
        match self.at(next) {
            Some((after, end)) if after != Class::Space && self.is_blank(start) => {
                self.run(end, after, usize::MAX)
            }
            _ => self.white_space(start),
        }
    }

    fn recent_word(&mut self, start: usize, max_digits: usize) -> usize {
        if let Some(end) = self.contraction(start, true) {
            return end;
        }
        let Some((class, next)) = self.at(start) else {
            return self.text.len();
        };
        let after = self.at(next);
        match (class, after) {
            (Class::Letter, _) => self.run(next, Class::Letter, usize::MAX),
            (Class::Number, _) => self.run(next, Class::Number, max_digits - 1),
            (_, Some((Class::Letter, end))) if !self.is_line_end(start) => {
                self.run(end, Class::Letter, usize::MAX)
            }
            (Class::Other, _) => self.signs(next),
            (Class::Space, Some((Class::Other, end))) if self.is_blank(start) => self.signs(end),
            (Class::Space, _) => {
                let end = self.run(next, Class::Space, usize::MAX);
                match self.text[start..end].rfind(['\r', '\n']) {
                    Some(last) => start + last + 1,
                    None => self.white_space(start),
                }
            }
        }
    }

    /// The end of a run of other characters and of the line ends after it.
    fn signs(&mut self, place: usize) -> usize {
        let mut end = self.run(place, Class::Other, usize::MAX);
        while self.is_line_end(end) {
            end += 1;
        }
        end
    }

    /// The end of a run of white space, without its last character if something follows it.
    fn white_space(&mut self, start: usize) -> usize {
        let end = self.run(start, Class::Space, usize::MAX);
        let run = &self.text[start..end];
        let last = run.chars().next_back().map_or(0, char::len_utf8);
        if end == self.text.len() || last == run.len() {
            end
        } else {
            end - last
        }
    }

    fn is_blank(&self, place: usize) -> bool {
        self.text.as_bytes()[place] == b' '
    }

    fn is_line_end(&self, place: usize) -> bool {
        matches!(self.text.as_bytes().get(place), Some(b'\r' | b'\n'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The words that the engine finds.
    fn expected(pattern: &str, text: &str) -> Vec<String> {
        let set = SplitPattern::Regex(pattern.to_owned());
        let split = Split::new(set, SplitDelimiterBehavior::Isolated, false).unwrap();
        let words = split.regex.find_iter(text);
        words
            .map(|(start, end)| text[start..end].to_owned())
            .collect()
    }

    fn found(pattern: &str, text: &str, classes: &mut Classes) -> Vec<String> {
        let finder = WordFinder::of(pattern).unwrap();
        let mut words = Vec::new();
        let result: Result<(), ()> = finder.words(text, classes, |word| {
            words.push(word.to_owned());
            Ok(())
        });
        result.unwrap();
        words
    }

    /// Characters next to which the patterns decide differently, and all that were ever special.
    fn odd_characters() -> Vec<char> {
        let mut characters: Vec<char> = "aZ09 \t\n\r\u{b}\u{c}'sStTreREvVmMlLdD.,-_!\0\u{7f}"
            .chars()
            .collect();
        characters.extend(
            "\u{85}\u{a0}\u{ad}\u{b2}\u{bc}\u{e9}\u{df}\u{17f}\u{1c5}\u{2b0}\u{301}".chars(),
        );
        characters.extend(
            "\u{660}\u{93e}\u{200b}\u{200d}\u{2003}\u{2028}\u{2029}\u{202f}\u{2160}".chars(),
        );
        characters
            .extend("\u{212a}\u{3000}\u{4e00}\u{ac00}\u{fb05}\u{feff}\u{ff11}\u{1d7d8}".chars());
        characters.extend("\u{1f680}\u{1f3fd}\u{20000}\u{e0041}\u{10ffff}\u{e000}\u{fffd}".chars());
        characters
    }

    #[test]
    fn words_are_those_of_the_regular_expressions() {
        let characters = odd_characters();
        let mut state = 7_u64;
        let mut next = move |bound: usize| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) as usize % bound
        };
        let mut classes = Classes::default();
        for case in 0..6000 {
            // Few different characters in a text make long runs of one class.
            let variety = 2 + next(characters.len() - 2);
            let offset = next(characters.len());
            let text: String = (0..case % 24)
                .map(|_| characters[(offset + next(variety)) % characters.len()])
                .collect();
            for pattern in [GPT2_WORDS, QWEN_WORDS, LLAMA3_WORDS] {
                assert_eq!(
                    found(pattern, &text, &mut classes),
                    expected(pattern, &text),
                    "{text:?} with {pattern}"
                );
            }
        }
    }

    #[test]
    fn every_character_is_in_the_class_that_the_engine_says() {
        let mut classes = Classes::default();
        // All of them next to a letter, a number, white space and a sign, in a few long texts.
        for block in (0..0x11_0000_u32).collect::<Vec<_>>().chunks(0x4000) {
            let characters = block.iter().filter_map(|&code| char::from_u32(code));
            let text: String = characters
                .flat_map(|c| [c, 'a', c, '1', c, ' ', c, '.'])
                .collect();
            assert_eq!(
                found(QWEN_WORDS, &text, &mut classes),
                expected(QWEN_WORDS, &text)
            );
        }
    }
}
