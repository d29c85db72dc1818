//! Damaged files of every kind: no panic, no endless loop, bounded memory, and the loader reads as
//! many documents as `check_files` reports.
//!
//! Each case is a small valid file with a few changes that follow from the number of the case.
//! `LPR_FUZZ_SECONDS=<n>` goes on for so long, `LPR_FUZZ_FIRST=<case>` starts elsewhere. A case
//! that aborts the process leaves its file in the temporary folder.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use lpr_data::{
    DataConfig, DataError, DataLoader, DataPosition, Hub, OnBadShard, Packing, Split, Tokenizer,
    check_files, prepare,
};
use parquet::basic::{BrotliLevel, Compression, Encoding, GzipLevel, ZstdLevel};
use parquet::file::properties::{WriterProperties, WriterVersion};

use crate::support::{ParquetFile, gzip, json_lines, texts};

/// Cases of a plain test run.
const CASES: u64 = 3000;
/// Far more than any case needs, however busy the machine.
const TIME_LIMIT: Duration = Duration::from_mins(2);
/// Address space of the whole test process.
const MEMORY_LIMIT: u64 = 4 << 30;

/// Every kind of file that is read: its extension and a valid example.
fn valid_files(folder: &Path) -> Vec<(&'static str, Vec<u8>)> {
    let rows = texts(0, 12);
    let parquet = |file: ParquetFile| {
        let path = folder.join("valid.parquet");
        file.write(&path, &rows);
        ("parquet", std::fs::read(path).unwrap())
    };
    let small = || ParquetFile {
        rows_per_group: 5,
        ..ParquetFile::default()
    };
    let lines = json_lines(&rows);
    let (first, second) = lines.split_at(lines.len() / 2);
    let mut files = vec![
        ("jsonl", lines.clone()),
        ("jsonl.gz", gzip(&lines)),
        ("json.gz", [gzip(first), gzip(second)].concat()),
        ("jsonl.zst", zstd::encode_all(&lines[..], 3).unwrap()),
        (
            "parquet",
            parquet(ParquetFile {
                schema: "REQUIRED BYTE_ARRAY text;",
                properties: WriterProperties::builder()
                    .set_writer_version(WriterVersion::PARQUET_2_0),
                ..small()
            })
            .1,
        ),
        (
            "parquet",
            parquet(ParquetFile {
                properties: WriterProperties::builder().set_data_page_row_count_limit(2),
                ..small()
            })
            .1,
        ),
    ];
    for codec in [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(GzipLevel::default()),
        Compression::ZSTD(ZstdLevel::default()),
        Compression::LZ4,
        Compression::LZ4_RAW,
        Compression::BROTLI(BrotliLevel::default()),
    ] {
        files.push(parquet(small().compressed(codec)));
    }
    for encoding in [
        Encoding::PLAIN,
        Encoding::DELTA_LENGTH_BYTE_ARRAY,
        Encoding::DELTA_BYTE_ARRAY,
    ] {
        files.push(parquet(small().plain_encoded(encoding)));
        let uncompressed = small().compressed(Compression::UNCOMPRESSED);
        files.push(parquet(uncompressed.plain_encoded(encoding)));
    }
    files.push(("safetensors", prepared(folder)));
    files
}

/// Prepared tokens of the last of the files above.
fn prepared(folder: &Path) -> Vec<u8> {
    let source = folder.join("valid.parquet").to_str().unwrap().to_owned();
    let tokenizer = Arc::new(Tokenizer::open("bytes").unwrap());
    let config = DataConfig::new(vec![source]);
    let out = tempfile::tempdir().unwrap();
    prepare(&config, &tokenizer, out.path(), 1, &mut |_, _| true).unwrap();
    std::fs::read(out.path().join("prepared-00000.safetensors")).unwrap()
}

/// Numbers that follow from a seed (splitmix64).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound.max(1) as u64) as usize
    }

    /// A place in a file; every other time in its last kilobyte, where parquet has its footer.
    fn place(&mut self, bytes: &[u8]) -> usize {
        let tail = bytes.len().saturating_sub(1024);
        match self.below(2) {
            0 => self.below(bytes.len()),
            _ => tail + self.below(bytes.len() - tail),
        }
    }

    fn range(&mut self, bytes: &[u8]) -> std::ops::Range<usize> {
        let start = self.place(bytes);
        let longest = 1 << self.below(9);
        start..bytes.len().min(start + 1 + self.below(longest))
    }
}

/// Flips, overwrites, cuts, repeats, and splices with another file.
fn mutate(bytes: &mut Vec<u8>, other: &[u8], numbers: &mut Numbers) {
    const TELLING: [u8; 8] = [0, 1, 0x7f, 0x80, 0xff, 0xfe, b'"', b'\n'];
    for _ in 0..1 << numbers.below(4) {
        if bytes.is_empty() {
            return;
        }
        let place = numbers.place(bytes);
        match numbers.below(8) {
            0..=2 => bytes[place] ^= 1 << numbers.below(8),
            3 => bytes[place] = TELLING[numbers.below(TELLING.len())],
            4 => {
                let range = numbers.range(bytes);
                let value = TELLING[numbers.below(TELLING.len())];
                bytes[range].fill(value);
            }
            5 => drop(bytes.drain(numbers.range(bytes))),
            6 => {
                let range = numbers.range(bytes);
                let copy = bytes[range].to_vec();
                bytes.splice(place..place, copy);
            }
            _ => {
                let range = numbers.range(other);
                let end = bytes.len().min(place + range.len());
                bytes.splice(place..end, other[range].iter().copied());
            }
        }
    }
    if numbers.below(16) == 0 {
        bytes.truncate(numbers.place(bytes));
    }
}

/// Documents that a loader hands out that skips what is bad; `None` if it rightly refuses.
fn count_documents(path: &str) -> Option<u64> {
    let config = DataConfig {
        packing: Packing::Packed,
        on_bad_shard: OnBadShard::Skip,
        ..DataConfig::new(vec![path.to_owned()])
    };
    let tokenizer = Arc::new(Tokenizer::open("bytes").unwrap());
    let start = DataPosition::default();
    let opened = DataLoader::open_with_workers(&config, Split::Train, 4, tokenizer, &start, 1);
    let mut loader = match opened {
        // The name of the tokenizer in a prepared file was hit.
        Err(error)
            if error
                .to_string()
                .contains("was prepared with the tokenizer") =>
        {
            return None;
        }
        opened => opened.unwrap(),
    };
    loop {
        match loader.next_batch() {
            Ok(Some(_)) => {}
            Ok(None) => return Some(loader.position().documents),
            Err(DataError::NoUsableDocuments { .. }) => return Some(0),
            Err(error) => panic!("{path}: {error}"),
        }
    }
}

/// Reads a damaged file in both ways.
fn read(path: &Path) {
    let path = path.to_str().unwrap();
    let report = check_files(&[path.to_owned()], "text", None, &Hub::default())
        .unwrap()
        .remove(0);
    let loaded = count_documents(path);
    assert!(
        loaded.is_none_or(|count| count == report.documents),
        "{loaded:?}, {report:?}"
    );
}

/// The most address space this process has had, in bytes; 0 where the system does not tell.
fn peak_address_space() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB"));
    kib.map_or(0, |kib| kib.trim().parse::<u64>().unwrap() << 10)
}

fn number_from(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable} = {text} is no number")),
    )
}

#[test]
fn damaged_files_never_panic_hang_or_eat_memory() {
    let folder = tempfile::tempdir().unwrap();
    let files = valid_files(folder.path());
    for (index, (extension, bytes)) in files.iter().enumerate() {
        let path = folder.path().join(format!("valid-{index}.{extension}"));
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(
            count_documents(path.to_str().unwrap()),
            Some(12),
            "{}",
            path.display()
        );
    }
    let first = number_from("LPR_FUZZ_FIRST").unwrap_or(0);
    let end = number_from("LPR_FUZZ_SECONDS").map(|n| Instant::now() + Duration::from_secs(n));
    let (to_reader, cases) = channel::<PathBuf>();
    let (done, finished) = channel();
    let reader = std::thread::spawn(move || {
        for path in cases {
            read(&path);
            done.send(()).unwrap();
        }
    });
    let goes_on = |case| end.map_or(case < first + CASES, |end| Instant::now() < end);
    let mut case = first;
    while goes_on(case) {
        let mut numbers = Numbers(case);
        let (extension, valid) = &files[case as usize % files.len()];
        let mut bytes = valid.clone();
        let other = &files[numbers.below(files.len())].1;
        mutate(&mut bytes, other, &mut numbers);
        let path = folder.path().join(format!("case-{case}.{extension}"));
        std::fs::write(&path, &bytes).unwrap();
        to_reader.send(path.clone()).unwrap();
        let result = finished.recv_timeout(TIME_LIMIT);
        assert!(result.is_ok(), "case {case} ({extension}): {result:?}");
        let peak = peak_address_space();
        assert!(
            peak < MEMORY_LIMIT,
            "case {case} ({extension}): {peak} bytes"
        );
        std::fs::remove_file(path).unwrap();
        case += 1;
    }
    drop(to_reader);
    reader.join().unwrap();
}
