//! JSON lines to documents: plain, gzip or zstd, found from the first bytes and not from the name.
//!
//! Keeps one line in memory. Blank lines, CRLF line ends, a byte order mark and a missing final
//! newline are fine.

use std::io::{BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;
use parquet::file::reader::ChunkReader;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::error::{Place, Problem};
use crate::input::{Input, reason};
use crate::record::{Content, Failure, Record, describe_bytes};

/// Longest line, in bytes. Bounds the memory that a decompression bomb or a binary file can ask
/// for.
const MAX_LINE_BYTES: usize = 1 << 28;

const BUFFER_BYTES: usize = 1 << 16;

/// Reads one file of JSON lines from a given line on.
pub(crate) struct JsonLinesReader {
    /// What `input` reads; stays in the cache as long as this is here.
    file: Input,
    input: Box<dyn BufRead + Send>,
    text_column: String,
    /// Line that `next` reads, from 0.
    line: u64,
    /// Where it starts in a file that is not compressed.
    byte: Option<u64>,
    buffer: Vec<u8>,
    is_empty: bool,
}

impl JsonLinesReader {
    /// Opens a file, checks how it starts and goes to `line`, which starts at `byte` in a file that
    /// is not compressed. There is no such way into a compressed one: it is decompressed up to the
    /// line, without looking into the lines before.
    pub(crate) fn open(
        file: Input,
        text_column: &str,
        line: u64,
        byte: u64,
    ) -> Result<Self, Failure> {
        let failed = |problem| (Place::File, reason(file.remote().as_ref(), problem));
        let (mut input, is_plain) = open_stream(&file).map_err(failed)?;
        let start = fill(&mut input).map_err(failed)?;
        let is_empty = start.is_empty();
        check_start(start).map_err(|problem| (Place::File, problem))?;
        let mark_len = if start.starts_with(b"\xef\xbb\xbf") {
            3
        } else {
            0
        };
        let has_place = is_plain && byte > 0;
        let at_line = has_place.then(|| open_at_line(&file, byte)).flatten();
        let (input, line_read, place) = if let Some(input) = at_line {
            (input, line, Some(byte))
        } else {
            if has_place {
                // The look at the line has moved what both share.
                input = open_stream(&file).map_err(failed)?.0;
            }
            fill(&mut input).map_err(failed)?;
            input.consume(mark_len);
            (input, 0, is_plain.then_some(mark_len as u64))
        };
        let mut reader = Self {
            file,
            input,
            text_column: text_column.to_owned(),
            line: line_read,
            byte: place,
            buffer: Vec::new(),
            is_empty,
        };
        while reader.line < line && reader.read_line()? {
            reader.line += 1;
        }
        Ok(reader)
    }

    /// Whether the decompressed stream has no byte at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.is_empty
    }

    /// The next line that is not blank, `None` at the end of the file.
    pub(crate) fn next(&mut self) -> Result<Option<Record>, Failure> {
        loop {
            let byte = self.byte.unwrap_or(0);
            if !self.read_line()? {
                return Ok(None);
            }
            let row = self.line;
            self.line += 1;
            if self.buffer.trim_ascii().is_empty() {
                continue;
            }
            let content = match parse_line(&self.buffer, &self.text_column) {
                Ok(Some(text)) if !text.is_empty() => Content::Text(text),
                Ok(_) => Content::NoText,
                Err(problem) => Content::Bad(Place::Line(row + 1), problem),
            };
            return Ok(Some(Record {
                row_group: 0,
                row,
                byte,
                next_byte: self.byte.unwrap_or(0),
                content,
            }));
        }
    }

    /// Reads a line into the buffer; false at the end of the file.
    fn read_line(&mut self) -> Result<bool, Failure> {
        let place = Place::Line(self.line + 1);
        self.buffer.clear();
        if self.buffer.capacity() > 16 * BUFFER_BYTES {
            self.buffer.shrink_to(BUFFER_BYTES);
        }
        let limit = MAX_LINE_BYTES as u64 + 1;
        let read = (&mut self.input)
            .take(limit)
            .read_until(b'\n', &mut self.buffer)
            .map_err(|error| {
                let problem = Problem::Decode(error.to_string());
                (place, reason(self.file.remote().as_ref(), problem))
            })?;
        if self.buffer.len() > MAX_LINE_BYTES {
            let max_bytes = MAX_LINE_BYTES;
            return Err((place, Problem::LineTooLong { max_bytes }));
        }
        if let Some(byte) = &mut self.byte {
            *byte += read as u64;
        }
        Ok(read > 0)
    }
}

/// The decompressed stream, and whether it is the file itself.
fn open_stream(file: &Input) -> Result<(Box<dyn BufRead + Send>, bool), Problem> {
    let io = |error: std::io::Error| Problem::Io(error.to_string());
    let file = file.get_read(0);
    let file = file.map_err(|error| Problem::Io(error.to_string()))?;
    let mut file = BufReader::with_capacity(BUFFER_BYTES, file);
    let magic = file.fill_buf().map_err(io)?;
    if magic.starts_with(&[0x1f, 0x8b]) {
        let decoder = MultiGzDecoder::new(file);
        let input = BufReader::with_capacity(BUFFER_BYTES, decoder);
        return Ok((Box::new(input), false));
    }
    if magic.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        let decoder = zstd::stream::read::Decoder::with_buffer(file).map_err(io)?;
        let input = BufReader::with_capacity(BUFFER_BYTES, decoder);
        return Ok((Box::new(input), false));
    }
    Ok((Box::new(file), true))
}

/// The file from `byte` on, if a line starts there.
fn open_at_line(file: &Input, byte: u64) -> Option<Box<dyn BufRead + Send>> {
    let file = file.get_read(byte.checked_sub(1)?).ok()?;
    let mut input = BufReader::with_capacity(BUFFER_BYTES, file);
    let mut line_end = [0];
    input.read_exact(&mut line_end).ok()?;
    (line_end == *b"\n").then(|| Box::new(input) as Box<dyn BufRead + Send>)
}

fn fill(input: &mut Box<dyn BufRead + Send>) -> Result<&[u8], Problem> {
    input
        .fill_buf()
        .map_err(|error| Problem::Decode(error.to_string()))
}

/// Refuses a file that is something else as a whole; a first line that is merely broken is left to
/// `next`.
fn check_start(start: &[u8]) -> Result<(), Problem> {
    let start = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start);
    let is_other_format = match start.trim_ascii_start().first() {
        None | Some(b'{') => false,
        Some(b'[') => return Err(Problem::JsonArray),
        Some(b'<') => true,
        Some(byte) => start.starts_with(b"PAR1") || !byte.is_ascii_graphic(),
    };
    if is_other_format {
        return Err(Problem::WrongFormat {
            expected: "JSON lines",
            found: describe_bytes(start),
        });
    }
    Ok(())
}

/// The text of a line, `None` if it is null.
fn parse_line(line: &[u8], text_column: &str) -> Result<Option<String>, Problem> {
    let line = std::str::from_utf8(line).map_err(|_| Problem::NotUtf8)?;
    let line = line.trim_end_matches(['\r', '\n']);
    if !line.trim_start().starts_with('{') {
        return Err(match serde_json::from_str::<IgnoredAny>(line) {
            Ok(_) => Problem::NotAnObject,
            Err(error) => json_problem(&error),
        });
    }
    let mut parser = serde_json::Deserializer::from_str(line);
    let value = parser
        .deserialize_map(ObjectVisitor { text_column })
        .and_then(|value| parser.end().map(|()| value))
        .map_err(|error| json_problem(&error))?;
    let column = || text_column.to_owned();
    match value {
        Some(Value::Text(text)) => Ok(Some(text)),
        Some(Value::Null) => Ok(None),
        Some(Value::Other(found)) => Err(Problem::ValueNotText {
            column: column(),
            found,
        }),
        None => Err(Problem::MissingKey { column: column() }),
    }
}

/// The parser's words; its line number is always 1 and would mislead.
fn json_problem(error: &serde_json::Error) -> Problem {
    let message = error.to_string();
    let words = message.split(" at line ").next().unwrap_or(&message);
    Problem::Json(format!("{words} at column {}", error.column()))
}

enum Value {
    Text(String),
    Null,
    Other(&'static str),
}

/// Takes one key's value out of an object without building the others. The last of equal keys wins,
/// as in Python.
struct ObjectVisitor<'a> {
    text_column: &'a str,
}

impl<'de> Visitor<'de> for ObjectVisitor<'_> {
    type Value = Option<Value>;

    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(is_text) = map.next_key_seed(KeySeed(self.text_column))? {
            if is_text {
                found = Some(map.next_value_seed(ValueSeed)?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

/// Compares a key without allocating it.
struct KeySeed<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for KeySeed<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for KeySeed<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<bool, E> {
        Ok(key == self.0)
    }
}

struct ValueSeed;

impl<'de> DeserializeSeed<'de> for ValueSeed {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ValueSeed {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("a value")
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Value, E> {
        Ok(Value::Other("a boolean"))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Value, E> {
        Ok(Value::Other("a number"))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Value, E> {
        Ok(Value::Other("a number"))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Value, E> {
        Ok(Value::Other("a number"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Value::Other("an array"))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        while items.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Value::Other("an object"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(line: &str) -> Result<Option<String>, Problem> {
        parse_line(line.as_bytes(), "text")
    }

    #[test]
    fn takes_one_key_whatever_surrounds_it() {
        let line =
            r#" {"a": {"text": "inner"}, "text": "caf\u00e9 \ud83d\ude80", "b": [1, null]} "#;
        assert_eq!(text(line), Ok(Some("caf\u{e9} \u{1f680}".to_owned())));
        assert_eq!(
            text(r#"{"t\u0065xt": "escaped key"}"#),
            Ok(Some("escaped key".to_owned()))
        );
        assert_eq!(
            text(r#"{"text": "first", "text": "last"}"#),
            Ok(Some("last".to_owned()))
        );
        assert_eq!(text(r#"{"text": null}"#), Ok(None));
    }

    #[test]
    fn says_what_is_wrong_with_a_line() {
        let not_text = |found| {
            let column = "text".to_owned();
            Err(Problem::ValueNotText { column, found })
        };
        assert_eq!(text(r#"{"text": 1.5}"#), not_text("a number"));
        assert_eq!(text(r#"{"text": ["a", {}]}"#), not_text("an array"));
        assert_eq!(text(r#"{"text": {"en": "a"}}"#), not_text("an object"));
        assert_eq!(text(r#"{"text": true}"#), not_text("a boolean"));
        assert_eq!(text("[]"), Err(Problem::NotAnObject));
        let column = "text".to_owned();
        assert_eq!(text("{}"), Err(Problem::MissingKey { column }));
        for broken in [
            "{",
            r#"{"text": "a"} {}"#,
            r#"{"text": "a",}"#,
            "text",
            r#"{"text": "\ud83d"}"#,
        ] {
            let Err(Problem::Json(message)) = text(broken) else {
                panic!("{broken} is not JSON");
            };
            assert!(
                message.contains(" at column ") && !message.contains("line"),
                "{message}"
            );
        }
        assert_eq!(
            parse_line(b"{\"text\": \"\xe9\"}", "text"),
            Err(Problem::NotUtf8)
        );
    }

    #[test]
    fn reading_from_a_line_on_gives_the_same_records() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let lines = "\u{feff}{\"text\": \"0\"}\n\n{\"text\": null}\r\n{\"text\": \"3\"}";
        std::fs::write(file.path(), lines).unwrap();
        let read_from = |line, byte| {
            let mut reader =
                JsonLinesReader::open(Input::open(file.path()).unwrap(), "text", line, byte)
                    .unwrap();
            std::iter::from_fn(move || reader.next().unwrap()).collect::<Vec<_>>()
        };
        let all = read_from(0, 0);
        assert_eq!(
            all.iter().map(|record| record.row).collect::<Vec<_>>(),
            [0, 2, 3]
        );
        assert_eq!(all[1].content, Content::NoText);
        for line in 0..6 {
            let expected = all.iter().filter(|record| record.row >= line);
            assert!(read_from(line, 0).iter().eq(expected), "from line {line}");
        }
        for (index, record) in all.iter().enumerate() {
            let next = record.row + 1;
            assert_eq!(read_from(record.row, record.byte), all[index..]);
            assert_eq!(read_from(next, record.next_byte), all[index + 1..]);
            // A place that is not the start of a line is looked for line by line.
            assert_eq!(read_from(record.row, record.byte + 1), all[index..]);
        }
    }

    #[test]
    fn other_formats_are_named() {
        for (start, found) in [
            (&b"PAR1\0\0"[..], "parquet"),
            (b"<html><body>", "HTML"),
            (b"\x00\x01\x02", "00, 01, 02"),
        ] {
            let Err(problem) = check_start(start) else {
                panic!("{found} is not JSON lines");
            };
            assert!(problem.to_string().contains(found), "{problem}");
        }
        assert_eq!(check_start(b" \n[1]"), Err(Problem::JsonArray));
        assert_eq!(check_start(b"\xef\xbb\xbf{}"), Ok(()));
    }
}
