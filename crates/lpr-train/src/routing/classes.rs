//! Classes of tokens by their text: what experts may specialize in.

use std::collections::HashMap;

use lpr_data::Tokenizer;
use serde::Serialize;

use super::trace::Recording;

/// What a token is. The first class that fits counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenClass {
    /// The end mark, or a token without text.
    Special,
    /// Text with a character beyond ASCII, or a part of one.
    NonAscii,
    /// Blanks with a line end among them.
    Newline,
    /// Other blanks.
    Whitespace,
    /// Text with a letter, after a blank or where no letter, digit or apostrophe is before it.
    WordStart,
    /// Other text with a letter.
    WordContinuation,
    /// Text with a digit and no letter.
    Digits,
    /// Anything else.
    Punctuation,
}

impl TokenClass {
    /// All classes, in the order of their figures.
    pub const ALL: [Self; 8] = [
        Self::WordStart,
        Self::WordContinuation,
        Self::Digits,
        Self::Punctuation,
        Self::Whitespace,
        Self::Newline,
        Self::NonAscii,
        Self::Special,
    ];

    /// Its place in [`Self::ALL`].
    pub fn index(self) -> usize {
        let place = Self::ALL.iter().position(|&class| class == self);
        place.expect("all classes are listed")
    }

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::WordStart => "word start",
            Self::WordContinuation => "word continuation",
            Self::Digits => "digits",
            Self::Punctuation => "punctuation",
            Self::Whitespace => "whitespace",
            Self::Newline => "newline",
            Self::NonAscii => "non-ASCII",
            Self::Special => "special",
        }
    }

    /// The class of a token with this text after `before`, the text of the token before it in the
    /// same document, if there is one.
    fn of(text: &str, before: Option<&str>) -> Self {
        let blank = text.chars().all(char::is_whitespace);
        let has = |is: fn(&char) -> bool| text.chars().any(|c| is(&c));
        let goes_on = |c: char| c.is_alphanumeric() || c == '\'';
        let inside = before
            .and_then(|text| text.chars().last())
            .is_some_and(goes_on);
        if text.is_empty() {
            Self::Special
        } else if !text.is_ascii() {
            Self::NonAscii
        } else if blank && text.contains('\n') {
            Self::Newline
        } else if blank {
            Self::Whitespace
        } else if !has(char::is_ascii_alphabetic) {
            let digit = has(char::is_ascii_digit);
            if digit {
                Self::Digits
            } else {
                Self::Punctuation
            }
        } else if text.starts_with(char::is_whitespace) || !inside {
            Self::WordStart
        } else {
            Self::WordContinuation
        }
    }
}

/// The class of each recorded token, padding left out.
pub fn classify(recording: &Recording, tokenizer: &Tokenizer) -> Vec<TokenClass> {
    let mut known = HashMap::new();
    let mut texts = Texts {
        tokenizer,
        alone: HashMap::new(),
    };
    let mut classes = Vec::new();
    for (at, &id) in recording.token_ids.iter().enumerate() {
        if !recording.is_token[at] {
            continue;
        }
        let starts = recording.position_ids[at] == 0;
        let before = at.checked_sub(1).filter(|_| !starts);
        let before = before.map(|at| recording.token_ids[at]);
        let class = known
            .entry((before, id))
            .or_insert_with(|| texts.class(before, id));
        classes.push(*class);
    }
    classes
}

struct Texts<'a> {
    tokenizer: &'a Tokenizer,
    alone: HashMap<u32, String>,
}

impl Texts<'_> {
    fn class(&mut self, before: Option<u32>, id: u32) -> TokenClass {
        if self.tokenizer.eos_id() == Some(id) {
            return TokenClass::Special;
        }
        let before = before.filter(|&before| self.tokenizer.eos_id() != Some(before));
        let Some(first) = before else {
            return TokenClass::of(&self.alone(id), None);
        };
        // Some tokenizers drop the blank at the start of a text, so a token is read behind the one
        // before it. Parts of characters change the text before them; then it is read alone.
        let start = self.alone(first);
        let both = self.tokenizer.decode(&[first, id]).unwrap_or_default();
        match both.strip_prefix(&start) {
            Some(text) if !text.is_empty() => TokenClass::of(text, Some(&start)),
            _ => TokenClass::of(&self.alone(id), Some(&start)),
        }
    }

    /// The text of one token; none if the tokenizer refuses its id.
    fn alone(&mut self, id: u32) -> String {
        let decode = || self.tokenizer.decode(&[id]).unwrap_or_default();
        self.alone.entry(id).or_insert_with(decode).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::super::trace::tests::trace;
    use super::*;

    #[test]
    fn a_token_is_classified_by_its_text_and_the_one_before() {
        use TokenClass as C;
        for (text, before, class) in [
            (" the", Some("in"), C::WordStart),
            ("the", None, C::WordStart),
            ("ing", Some("do"), C::WordContinuation),
            ("s", Some("it'"), C::WordContinuation),
            ("'s", Some("it"), C::WordContinuation),
            ("based", Some("-"), C::WordStart),
            ("2nd", Some(" "), C::WordStart),
            (" 1,000", Some("a"), C::Digits),
            ("...", Some("a"), C::Punctuation),
            (" (", None, C::Punctuation),
            ("  ", Some("a"), C::Whitespace),
            (" \n", Some("a"), C::Newline),
            ("caf\u{e9}", Some(" "), C::NonAscii),
            ("\u{fffd}", Some(" "), C::NonAscii),
            ("", Some(" "), C::Special),
        ] {
            assert_eq!(C::of(text, before), class, "{text:?} after {before:?}");
        }
    }

    #[test]
    fn the_bytes_of_a_text_are_classified_without_padding() {
        use TokenClass as C;
        let text = "No 7.\n\u{e9}";
        let tokenizer = Tokenizer::open("bytes").expect("built in");
        let mut ids: Vec<u32> = text.bytes().map(u32::from).collect();
        ids.extend([256, 256]);
        let mut is_token = vec![true; ids.len()];
        is_token[ids.len() - 1] = false;
        let recording = trace(&ids, &is_token, &vec![vec![0]; ids.len()], 1);
        let classes = [
            C::WordStart,
            C::WordContinuation,
            C::Whitespace,
            C::Digits,
            C::Punctuation,
            C::Newline,
            C::NonAscii,
            C::NonAscii,
            C::Special,
        ];
        assert_eq!(classify(&recording, &tokenizer), classes);
    }
}
