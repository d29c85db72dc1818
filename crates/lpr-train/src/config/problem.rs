//! What is wrong with a configuration, worded for the person who wrote it.

use std::fmt;

use thiserror::Error;

/// Where a key was set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// In a file.
    File {
        /// Position of the file on the command line.
        index: usize,
        /// Its path.
        path: String,
        /// The line, from 1; 0 if the file as a whole is meant.
        line: usize,
    },
    /// By `--override`.
    Override {
        /// The argument as given.
        argument: String,
    },
    /// Nowhere: the key is missing, or a default.
    Nowhere,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line: 0, .. } => write!(f, "{path}"),
            Self::File { path, line, .. } => write!(f, "{path}:{line}"),
            Self::Override { argument } => write!(f, "--override {argument}"),
            Self::Nowhere => f.write_str("configuration"),
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Where.
    pub place: Place,
    /// The dotted key, empty if the problem is not about one.
    pub key: String,
    /// What was found, what is allowed and what to do; continues the key in a sentence.
    pub message: String,
}

impl Problem {
    /// A problem with `key`, which was set at `place`.
    pub fn new(place: &Place, key: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            place: place.clone(),
            key: key.into(),
            message: message.into(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let separator = if self.key.is_empty() { "" } else { " " };
        let text = format!("{}: {}{separator}{}", self.place, self.key, self.message);
        f.write_str(&hide_tokens(&text))
    }
}

/// Everything that is wrong with a configuration, in the order of files and lines.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub struct ConfigErrors {
    problems: Vec<Problem>,
}

impl ConfigErrors {
    /// The list, sorted and without repetitions.
    pub fn new(mut problems: Vec<Problem>) -> Self {
        problems.sort();
        problems.dedup();
        Self { problems }
    }

    /// The problems.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.problems.len() {
            1 => write!(f, "the configuration has a problem")?,
            count => write!(f, "the configuration has {count} problems")?,
        }
        self.problems
            .iter()
            .try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

/// What every access token of the Hugging Face hub starts with, and the fewest characters that
/// follow.
const TOKEN_PREFIX: &str = "hf_";
const MIN_TOKEN_CHARS: usize = 20;

/// Whether a text contains what looks like an access token of the Hugging Face hub.
pub fn has_token(text: &str) -> bool {
    find_token(text).is_some()
}

/// The text with everything that looks like an access token taken out.
pub fn hide_tokens(text: &str) -> String {
    let mut rest = text;
    let mut shown = String::new();
    while let Some((start, end)) = find_token(rest) {
        shown.push_str(&rest[..start]);
        shown.push_str("[hidden]");
        rest = &rest[end..];
    }
    shown + rest
}

/// Byte range of the first token-like part.
fn find_token(text: &str) -> Option<(usize, usize)> {
    text.match_indices(TOKEN_PREFIX).find_map(|(start, _)| {
        let body = start + TOKEN_PREFIX.len();
        let length = text[body..]
            .bytes()
            .take_while(u8::is_ascii_alphanumeric)
            .count();
        let part = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        let end = body + text[body..].bytes().take_while(part).count();
        (length >= MIN_TOKEN_CHARS).then_some((start, end))
    })
}

/// The candidate most like `word`, if any is like it at all.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    const LEAST_SIMILARITY: f64 = 0.8;
    let scored = candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(word, candidate), candidate));
    let best = scored.max_by(|a, b| a.0.total_cmp(&b.0));
    best.filter(|(score, _)| *score >= LEAST_SIMILARITY)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_found_anywhere_and_never_shown() {
        let token = format!("hf_{}", "a1B2c3D4e5".repeat(2));
        for text in [
            token.clone(),
            format!("x = \"{token}\""),
            format!("hf_short {token}{token}!"),
        ] {
            assert!(has_token(&text), "{text}");
            let hidden = hide_tokens(&text);
            assert!(
                !hidden.contains("a1B2") && hidden.contains("[hidden]"),
                "{hidden}"
            );
        }
        for text in [
            "",
            "hf_",
            "hf://datasets/owner/name",
            "hf_transfer",
            "half_a_dozen_of_them_or_more",
        ] {
            assert!(!has_token(text), "{text}");
            assert_eq!(hide_tokens(text), text);
        }
    }

    #[test]
    fn problems_are_sorted_by_file_and_line_and_shown_one_a_line() {
        let file = |index, line| Place::File {
            index,
            path: format!("{index}.toml"),
            line,
        };
        let errors = ConfigErrors::new(vec![
            Problem::new(
                &Place::Override {
                    argument: "a.b=1".to_owned(),
                },
                "a.b",
                "is unknown",
            ),
            Problem::new(&file(1, 2), "c.d", "is wrong"),
            Problem::new(&file(0, 10), "", "broken"),
            Problem::new(&file(0, 9), "e.f", "is wrong"),
            Problem::new(&file(0, 9), "e.f", "is wrong"),
        ]);
        let want = "the configuration has 4 problems\n  0.toml:9: e.f is wrong\n  0.toml:10: \
         broken\n  \
                    1.toml:2: c.d is wrong\n  --override a.b=1: a.b is unknown";
        assert_eq!(errors.to_string(), want);
    }

    #[test]
    fn a_typo_is_near_its_word_and_another_word_is_not() {
        let keys = ["learning_rate", "betas", "eps"];
        assert_eq!(nearest("learning_rte", keys), Some("learning_rate"));
        assert_eq!(nearest("beta", keys), Some("betas"));
        assert_eq!(nearest("momentum", keys), None);
        assert_eq!(nearest("optim", ["optimizer", "data"]), Some("optimizer"));
    }
}
