//! Broken files and odd but valid ones, and what is to be said about each.
//!
//! The files are made here. `LPR_DATA_DIR=<dir>` checks a given set in their place: `<dir>/bad` and
//! `<dir>/variants`, each with an `EXPECTED.tsv` whose first column names the files. Every file
//! listed must have an expectation here.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lpr_data::{
    DataConfig, DataError, DataLoader, DataPosition, FileReport, Hub, OnBadShard, Packing, Split,
    Tokenizer, TokenizerError, check_files,
};
use parquet::basic::{BrotliLevel, Compression, Encoding, GzipLevel, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};

use crate::support::{ParquetFile, damage_row_group, gzip, json_lines, texts};

/// What `check_files` must report.
struct Expected {
    documents: std::ops::RangeInclusive<u64>,
    skipped: u64,
    bad_lines: u64,
    /// Parts of the error; empty if the file is fine.
    error: &'static [&'static str],
}

fn good(documents: u64, skipped: u64) -> Expected {
    Expected {
        documents: documents..=documents,
        skipped,
        bad_lines: 0,
        error: &[],
    }
}

fn broken(documents: u64, bad_lines: u64, error: &'static [&'static str]) -> Expected {
    Expected {
        bad_lines,
        error,
        ..good(documents, 0)
    }
}

/// `None` for the tokenizers among the bad files.
fn expected_bad(name: &str) -> Option<Expected> {
    const EMPTY: &[&str] = &["holds no document"];
    Some(match name {
        "truncated_middle.parquet" => broken(0, 0, &["cut off"]),
        "magic_only.parquet" | "footer_garbage.parquet" => broken(0, 0, &["footer"]),
        "zero_bytes.parquet" => broken(0, 0, &["the file is empty"]),
        "random_bytes.parquet" => broken(0, 0, &["not a parquet file", "bytes"]),
        "html_error_page.parquet" => broken(0, 0, &["not a parquet file", "HTML"]),
        "corrupt_page_rg1.parquet" => broken(20, 0, &["row group 1", "cannot be decoded"]),
        "no_text_column.parquet" => broken(0, 0, &["no column \"text\"", "\"token_count\""]),
        "text_column_renamed_content.parquet" => broken(0, 0, &["no column", "\"content\""]),
        "text_int64.parquet" => broken(0, 0, &["\"text\" is INT64, not text"]),
        "text_struct.parquet" => broken(0, 0, &["nested group, not text"]),
        "text_null_rows.parquet" => good(40, 20),
        "text_empty_strings.parquet" => good(45, 15),
        "text_all_null.parquet" | "text_all_empty.parquet" => Expected {
            skipped: 60,
            ..broken(0, 0, EMPTY)
        },
        "zero_rows.parquet" | "zero_bytes.json.gz" | "empty_stream.json.gz" => broken(0, 0, EMPTY),
        "odd_but_valid_texts.parquet" => good(60, 0),
        "cut_middle.json.gz" => Expected {
            documents: 1..=39,
            ..broken(
                0,
                0,
                &["line ", "cannot be decoded (incomplete deflate stream)"],
            )
        },
        "not_gzip.json.gz" => good(40, 0),
        "trailing_garbage.json.gz" => broken(40, 0, &["line 41", "invalid gzip header"]),
        "bad_line.jsonl" | "bad_line.json.gz" => broken(20, 1, &["line 11", "not valid JSON"]),
        "missing_text_key.jsonl" => broken(10, 1, &["line 6", "no key \"text\""]),
        "text_null.jsonl" => good(10, 1),
        "not_an_object.jsonl" => broken(10, 3, &["line 6", "not a JSON object"]),
        "invalid_utf8.jsonl" => broken(10, 1, &["line 6", "not valid UTF-8"]),
        "json_array.json" => broken(0, 0, &["JSON array"]),
        _ => return None,
    })
}

fn check_report(report: &FileReport, expected: &Expected) {
    assert!(expected.documents.contains(&report.documents), "{report:?}");
    assert_eq!(report.skipped, expected.skipped, "{report:?}");
    assert_eq!(report.bad_lines, expected.bad_lines, "{report:?}");
    assert_eq!(
        report.error.is_none(),
        expected.error.is_empty(),
        "{report:?}"
    );
    for part in expected.error {
        let error = report.error.as_deref().unwrap();
        assert!(
            error.contains(part) && error.contains(&report.path),
            "{report:?}"
        );
    }
}

fn report(path: &Path) -> FileReport {
    let sources = [path.to_str().unwrap().to_owned()];
    check_files(&sources, "text", None, &Hub::default())
        .unwrap()
        .remove(0)
}

/// The loader must agree with the report, whether it stops at bad data or skips it.
fn check_loader(report: &FileReport) {
    let tokenizer = Arc::new(Tokenizer::open("bytes").unwrap());
    let mut config = DataConfig {
        packing: Packing::Packed,
        ..DataConfig::new(vec![report.path.clone()])
    };
    let read_all = |config: &DataConfig| -> Result<DataPosition, DataError> {
        let start = DataPosition::default();
        let tokenizer = Arc::clone(&tokenizer);
        let mut loader = DataLoader::open(config, Split::Train, 4, tokenizer, &start)?;
        while loader.next_batch()?.is_some() {}
        Ok(loader.position().clone())
    };
    match (read_all(&config), &report.error) {
        (Ok(position), None) => assert_eq!(position.documents, report.documents),
        (Err(DataError::Shard(error)), Some(expected)) => assert_eq!(error.to_string(), *expected),
        (Err(DataError::NoUsableDocuments { .. }), Some(_)) => assert_eq!(report.documents, 0),
        (result, _) => panic!("{report:?}: {result:?}"),
    }
    config.on_bad_shard = OnBadShard::Skip;
    match read_all(&config) {
        Ok(position) => {
            assert_eq!(position.documents, report.documents, "{report:?}");
            assert_eq!(position.skipped_documents, report.skipped, "{report:?}");
            assert_eq!(position.bad_lines, report.bad_lines, "{report:?}");
        }
        Err(DataError::NoUsableDocuments { .. }) => assert_eq!(report.documents, 0, "{report:?}"),
        Err(error) => panic!("{report:?}: {error}"),
    }
}

/// The folder to check, and the temporary one behind it if it was made here.
fn folder(kind: &str, write: fn(&Path)) -> (PathBuf, Option<tempfile::TempDir>) {
    if let Some(given) = std::env::var_os("LPR_DATA_DIR") {
        return (Path::new(&given).join(kind), None);
    }
    let made = tempfile::tempdir().unwrap();
    write(made.path());
    let names = std::fs::read_dir(made.path()).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let list: Vec<String> = names.map(|name| format!("{name}\t\t")).collect();
    std::fs::write(
        made.path().join("EXPECTED.tsv"),
        format!("file\n{}\n", list.join("\n")),
    )
    .unwrap();
    (made.path().to_owned(), Some(made))
}

fn listed(folder: &Path) -> BTreeSet<String> {
    let list = std::fs::read_to_string(folder.join("EXPECTED.tsv")).unwrap();
    let names = list
        .lines()
        .skip(1)
        .filter_map(|line| line.split('\t').next());
    names.map(str::to_owned).collect()
}

#[test]
fn every_bad_file_is_named_with_its_fault_and_nothing_panics() {
    let (folder, _guard) = folder("bad", write_bad);
    let names = listed(&folder);
    assert!(names.len() >= 33, "{names:?}");
    for name in names {
        let path = folder.join(&name);
        if name.starts_with("tokenizer_") {
            let result = Tokenizer::open(path.to_str().unwrap());
            let Err(error @ TokenizerError::Invalid { .. }) = result.map(|_| ()) else {
                panic!("{name} must be refused as invalid");
            };
            assert!(error.to_string().contains(&name), "{error}");
            continue;
        }
        let report = report(&path);
        match name.as_str() {
            // What the damage turns into depends on the bytes around it.
            "flipped_byte.json.gz" | "binary.jsonl" => {
                assert!(report.error.is_some(), "{report:?}");
            }
            name => {
                let expected = expected_bad(name);
                check_report(
                    &report,
                    &expected.unwrap_or_else(|| panic!("unknown file {name}")),
                );
            }
        }
        check_loader(&report);
    }
    let renamed = folder.join("text_column_renamed_content.parquet");
    let sources = [renamed.to_str().unwrap().to_owned()];
    assert_eq!(
        check_files(&sources, "content", None, &Hub::default()).unwrap()[0].documents,
        60
    );
}

#[test]
fn every_odd_but_valid_file_gives_the_same_documents() {
    let (folder, _guard) = folder("variants", write_variants);
    let names = listed(&folder);
    assert!(names.len() >= 20, "{names:?}");
    let mut bytes = [BTreeSet::new(), BTreeSet::new()];
    for name in names {
        let report = report(&folder.join(&name));
        let is_parquet = name.ends_with(".parquet");
        check_report(&report, &good(if is_parquet { 60 } else { 40 }, 0));
        check_loader(&report);
        bytes[usize::from(is_parquet)].insert(report.bytes);
    }
    assert_eq!(
        bytes.map(|sizes| sizes.len()),
        [1, 1],
        "files hold different texts"
    );
}

#[test]
fn one_bad_file_does_not_stop_the_check_of_the_others() {
    let folder = tempfile::tempdir().unwrap();
    ParquetFile::default().write(&folder.path().join("a.parquet"), &texts(0, 3));
    std::fs::write(folder.path().join("b.parquet"), b"garbage").unwrap();
    std::fs::write(folder.path().join("c.jsonl"), json_lines(&texts(0, 2))).unwrap();
    let tokenizer = Tokenizer::open("bytes").unwrap();
    let sources = [folder.path().to_str().unwrap().to_owned()];
    let reports = check_files(&sources, "text", Some(&tokenizer), &Hub::default()).unwrap();
    let documents: Vec<u64> = reports.iter().map(|report| report.documents).collect();
    assert_eq!(documents, [3, 0, 2]);
    assert!(reports[1].error.is_some());
    assert_eq!(reports[2].tokens, Some(reports[2].bytes));
}

#[test]
fn rows_of_a_parquet_file_that_are_not_utf8_are_bad_one_by_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    let rows = [b"good".to_vec(), b"caf\xe9".to_vec(), b"fine".to_vec()].map(Some);
    ParquetFile::default().write_bytes(&path, &rows);
    let report = report(&path);
    check_report(
        &report,
        &broken(2, 1, &["row group 0, row 1: is not valid UTF-8"]),
    );
    check_loader(&report);
}

/// Damage anywhere in a file must end in documents or an error, never in a panic or a hang.
#[test]
fn random_damage_never_panics() {
    let folder = tempfile::tempdir().unwrap();
    let rows = texts(0, 30);
    let parquet = folder.path().join("whole.parquet");
    ParquetFile::default()
        .compressed(Compression::ZSTD(ZstdLevel::default()))
        .write(&parquet, &rows);
    let parquet = std::fs::read(&parquet).unwrap();
    let files = [
        ("x.parquet", parquet),
        ("x.json.gz", gzip(&json_lines(&rows))),
    ];
    let mut state = 1_u64;
    let mut random = |bound: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) as usize % bound
    };
    for (name, whole) in files {
        let mut num_errors = 0;
        for _ in 0..200 {
            let mut bytes = whole.clone();
            for _ in 0..=random(8) {
                let at = random(bytes.len());
                bytes[at] = random(256) as u8;
            }
            if random(4) == 0 {
                bytes.truncate(random(bytes.len()));
            }
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            let report = report(&path);
            // Damage can make a line end of any byte, but it must not go unnoticed.
            assert!(
                report.documents <= 30 || report.error.is_some(),
                "{report:?}"
            );
            num_errors += u32::from(report.error.is_some());
        }
        assert!(num_errors > 100, "{name}: {num_errors} of 200");
    }
}

fn write_bad(folder: &Path) {
    write_bad_parquet(folder);
    write_bad_lines(folder);
    let cut = "{\"version\": \"1.0\", \"added_tokens\": [], \"model\": {\"type\": \"BPE\", \"vo";
    std::fs::write(folder.join("tokenizer_truncated.json"), cut).unwrap();
    std::fs::write(folder.join("tokenizer_empty_object.json"), "{}").unwrap();
}

fn write_bad_parquet(folder: &Path) {
    let rows = texts(0, 60);
    let path = |name: &str| folder.join(format!("{name}.parquet"));
    let write = |name: &str, schema: &str, rows: &[Option<String>]| {
        let file = ParquetFile {
            schema,
            ..ParquetFile::default()
        };
        file.write(&path(name), rows);
    };
    let optional = "OPTIONAL BYTE_ARRAY text (UTF8);";
    write("corrupt_page_rg1", optional, &rows);
    let whole = std::fs::read(path("corrupt_page_rg1")).unwrap();
    damage_row_group(&path("corrupt_page_rg1"), 1);
    std::fs::write(path("truncated_middle"), &whole[..whole.len() * 6 / 10]).unwrap();
    let mut garbage = whole.clone();
    let end = whole.len() - 8;
    let footer = u32::from_le_bytes(whole[end..end + 4].try_into().unwrap()) as usize;
    garbage[end - footer..end].fill(0xff);
    std::fs::write(path("footer_garbage"), garbage).unwrap();
    std::fs::write(path("magic_only"), b"PAR1PAR1").unwrap();
    std::fs::write(path("zero_bytes"), b"").unwrap();
    std::fs::write(path("random_bytes"), random_bytes(4096)).unwrap();
    let page = "<!DOCTYPE html><html><body>404</body></html>";
    std::fs::write(path("html_error_page"), page).unwrap();

    write("no_text_column", "OPTIONAL BYTE_ARRAY url (UTF8);", &rows);
    let renamed = "OPTIONAL BYTE_ARRAY content (UTF8);";
    write("text_column_renamed_content", renamed, &rows);
    let nested = "OPTIONAL GROUP text { OPTIONAL BYTE_ARRAY en (UTF8); }";
    write("text_struct", nested, &rows);
    write_integers(&path("text_int64"));
    write("zero_rows", optional, &[]);
    let null_every_third =
        |index: usize| (!index.is_multiple_of(3)).then(|| rows[index].clone().unwrap());
    write(
        "text_null_rows",
        optional,
        &(0..60).map(null_every_third).collect::<Vec<_>>(),
    );
    write("text_all_null", optional, &vec![None; 60]);
    write("text_all_empty", optional, &vec![Some(String::new()); 60]);
    let partly_empty = |index: usize| match index % 4 {
        0 => Some(String::new()),
        1 => Some(" \n\t".to_owned()),
        _ => rows[index].clone(),
    };
    write(
        "text_empty_strings",
        optional,
        &(0..60).map(partly_empty).collect::<Vec<_>>(),
    );
    let mut odd = rows.clone();
    odd[0] = Some("\u{feff}NUL \0 and <|endoftext|>".to_owned());
    odd[1] = Some("x".repeat(3_000_000));
    odd[2] = Some("e\u{301} \u{1f469}\u{200d}\u{1f680}".to_owned());
    write("odd_but_valid_texts", optional, &odd);
}

/// A file whose column `text` holds integers.
fn write_integers(path: &Path) {
    use parquet::data_type::Int64Type;
    use parquet::file::writer::SerializedFileWriter;

    let schema = "message schema { REQUIRED INT64 text; }";
    let schema = Arc::new(parquet::schema::parser::parse_message_type(schema).unwrap());
    let properties = Arc::new(WriterProperties::builder().build());
    let file = std::fs::File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, properties).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    let typed = column.typed::<Int64Type>();
    typed.write_batch(&[1, 2, 3], None, None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
}

fn write_bad_lines(folder: &Path) {
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.join(name), bytes).unwrap();
    let lines = json_lines(&texts(0, 40));
    let whole = gzip(&lines);
    write("cut_middle.json.gz", &whole[..whole.len() / 2]);
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 0x10;
    write("flipped_byte.json.gz", &flipped);
    write("not_gzip.json.gz", &lines);
    write("zero_bytes.json.gz", b"");
    write("empty_stream.json.gz", &gzip(b""));
    write(
        "trailing_garbage.json.gz",
        &[&whole[..], b"some junk after it"].concat(),
    );
    let spliced = |before: u64, bad: &[u8], after: u64| {
        let after = json_lines(&texts(before, after));
        [&json_lines(&texts(0, before))[..], bad, &after].concat()
    };
    let bad_line = spliced(10, b"{\"text\": \"unfinished\n", 10);
    write("bad_line.jsonl", &bad_line);
    write("bad_line.json.gz", &gzip(&bad_line));
    write(
        "missing_text_key.jsonl",
        &spliced(5, b"{\"txt\": \"x\"}\n", 5),
    );
    write("text_null.jsonl", &spliced(5, b"{\"text\": null}\n", 5));
    write(
        "not_an_object.jsonl",
        &spliced(5, b"3\n[1, 2]\n\"text\"\n", 5),
    );
    write(
        "invalid_utf8.jsonl",
        &spliced(5, b"{\"text\": \"caf\xe9\"}\n", 5),
    );
    write(
        "json_array.json",
        b"[{\"text\": \"one\"},\n {\"text\": \"two\"}]\n",
    );
    write("binary.jsonl", &random_bytes(2048));
}

fn random_bytes(len: usize) -> Vec<u8> {
    let mut state = 7_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..len).map(|_| next()).collect()
}

fn write_variants(folder: &Path) {
    let rows = texts(0, 60);
    let write = |name: &str, file: ParquetFile| {
        file.write(&folder.join(format!("{name}.parquet")), &rows);
    };
    let codecs = [
        ("none", Compression::UNCOMPRESSED),
        ("snappy", Compression::SNAPPY),
        ("gzip", Compression::GZIP(GzipLevel::default())),
        ("zstd", Compression::ZSTD(ZstdLevel::default())),
        ("lz4", Compression::LZ4),
        ("lz4_raw", Compression::LZ4_RAW),
        ("brotli", Compression::BROTLI(BrotliLevel::default())),
    ];
    for (name, codec) in codecs {
        write(
            &format!("codec_{name}"),
            ParquetFile::default().compressed(codec),
        );
    }
    let encodings = [
        ("plain", Encoding::PLAIN),
        ("delta_length", Encoding::DELTA_LENGTH_BYTE_ARRAY),
        ("delta", Encoding::DELTA_BYTE_ARRAY),
    ];
    for (name, encoding) in encodings {
        write(
            &format!("enc_{name}"),
            ParquetFile::default().plain_encoded(encoding),
        );
    }
    let properties = WriterProperties::builder;
    let page_v2 = properties().set_writer_version(WriterVersion::PARQUET_2_0);
    let small_pages = properties()
        .set_data_page_row_count_limit(2)
        .set_write_batch_size(1)
        .set_statistics_enabled(EnabledStatistics::Page);
    for (name, properties) in [("page_v2", page_v2), ("small_pages_index", small_pages)] {
        let file = ParquetFile {
            properties,
            ..ParquetFile::default()
        };
        write(name, file);
    }
    let row_group_per_row = ParquetFile {
        rows_per_group: 1,
        ..ParquetFile::default()
    };
    write("row_group_per_row", row_group_per_row);
    let schemas = [
        ("required", "REQUIRED BYTE_ARRAY text (UTF8);"),
        ("binary", "OPTIONAL BYTE_ARRAY text;"),
        ("string", "OPTIONAL BYTE_ARRAY text (STRING);"),
    ];
    for (name, schema) in schemas {
        let file = ParquetFile {
            schema,
            ..ParquetFile::default()
        };
        write(&format!("text_{name}"), file);
    }
    write_line_variants(folder);
}

fn write_line_variants(folder: &Path) {
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.join(name), bytes).unwrap();
    let lines = json_lines(&texts(0, 40));
    let text = String::from_utf8(lines.clone()).unwrap();
    write("plain.jsonl", &lines);
    write("crlf.jsonl", text.replace('\n', "\r\n").as_bytes());
    write(
        "blank_lines.jsonl",
        text.replace('\n', "\n\n  \n").as_bytes(),
    );
    write("bom.jsonl", format!("\u{feff}{text}").as_bytes());
    let escape = |c: char| match c {
        c if c.is_ascii() => c.to_string(),
        c => {
            let mut units = [0; 2];
            let units = c.encode_utf16(&mut units).iter();
            let units: Vec<String> = units.map(|unit| format!("\\u{unit:04x}")).collect();
            units.concat()
        }
    };
    write(
        "ascii_escaped.jsonl",
        text.chars().map(escape).collect::<String>().as_bytes(),
    );
    write(
        "no_final_newline.json.gz",
        &gzip(text.trim_end().as_bytes()),
    );
    let (first, second) = lines.split_at(lines.len() / 3);
    write("two_members.json.gz", &[gzip(first), gzip(second)].concat());
    write("plain.jsonl.zst", &zstd::encode_all(&*lines, 3).unwrap());
}
