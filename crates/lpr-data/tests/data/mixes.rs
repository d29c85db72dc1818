//! Every mix of packing, shuffling, weights and prepared files: exact under resume, and each document once an epoch.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use crate::support::{ParquetFile, gzip, json_lines};
use lpr_data::{
    DataConfig, DataFingerprint, DataLoader, DataPosition, OnBadShard, OnDataEnd, Packing, Split,
    TokenBatch, Tokenizer, prepare,
};

const PACKINGS: [Packing; 3] = [Packing::None, Packing::Packed, Packing::BestFit];

/// Numbers without pattern, the same every time.
fn mix(index: u64) -> u64 {
    let mut z = index.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x2545_f491;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z ^ (z >> 29)
}

/// Document `index`: its name between brackets, then 0 to 99 letters, now and then 600. Every tenth
/// is null.
fn document(index: u64) -> Option<String> {
    let random = mix(index);
    let len = match random % 40 {
        0 => 600,
        _ => random / 64 % 100,
    };
    let letter = |i| char::from(b'a' + (mix(index ^ (i << 32)) % 26) as u8);
    let text = || format!("<{index}>{}", (0..len).map(letter).collect::<String>());
    (!index.is_multiple_of(10)).then(text)
}

/// Files of all kinds in the folders `a` (two thirds of the documents) and `b`.
fn write_corpus(folder: &Path, num_documents: u64) {
    let shard = num_documents / 6;
    let documents = |index: u64| -> Vec<Option<String>> {
        (index * shard..(index + 1) * shard).map(document).collect()
    };
    for name in ["a", "b"] {
        std::fs::create_dir(folder.join(name)).unwrap();
    }
    for index in [0, 1] {
        ParquetFile {
            rows_per_group: 1 + shard as usize / 7,
            ..ParquetFile::default()
        }
        .write(
            &folder.join(format!("a/{index}.parquet")),
            &documents(index),
        );
    }
    std::fs::write(folder.join("a/2.jsonl"), json_lines(&documents(2))).unwrap();
    let mut lines = json_lines(&documents(3));
    lines.extend(b"not json\n");
    std::fs::write(folder.join("a/3.json.gz"), gzip(&lines)).unwrap();
    let zst = zstd::encode_all(&*json_lines(&documents(4)), 1).unwrap();
    std::fs::write(folder.join("b/4.jsonl.zst"), zst).unwrap();
    std::fs::write(folder.join("b/5.jsonl"), json_lines(&documents(5))).unwrap();
}

/// Every mix of packing, shuffling and weights.
fn configs(folder: &Path) -> Vec<DataConfig> {
    let entry = |name| folder.join(name).to_str().unwrap().to_owned();
    let mut configs = Vec::new();
    for packing in PACKINGS {
        for shuffle in [false, true] {
            for weights in [vec![], vec![1.0, 1.5]] {
                configs.push(DataConfig {
                    packing,
                    packing_window: 37,
                    shuffle,
                    shuffle_window: 23,
                    weights,
                    sequence_length: 64,
                    on_bad_shard: OnBadShard::Skip,
                    on_data_end: OnDataEnd::Repeat,
                    ..DataConfig::new(vec![entry("a"), entry("b")])
                });
            }
        }
    }
    configs
}

/// The same mixes of what `data prepare` makes of the files.
fn prepared_configs(folder: &Path) -> Vec<DataConfig> {
    let sources = ["a", "b"].map(|name| {
        let prepared = folder.join(format!("prepared-{name}"));
        std::fs::create_dir(&prepared).unwrap();
        let raw = DataConfig {
            on_bad_shard: OnBadShard::Skip,
            ..DataConfig::new(vec![folder.join(name).to_str().unwrap().to_owned()])
        };
        prepare(&raw, &bytes(), &prepared, 1, &mut |_, _| true).unwrap();
        prepared.to_str().unwrap().to_owned()
    });
    let mut configs = configs(folder);
    for config in &mut configs {
        config.train = sources.to_vec();
    }
    configs
}

fn bytes() -> Arc<Tokenizer> {
    Arc::new(Tokenizer::open("bytes").unwrap())
}

fn open(config: &DataConfig, start: &DataPosition) -> DataLoader {
    DataLoader::open_with_workers(config, Split::Train, 3, bytes(), start, 2).unwrap()
}

/// At most `max` batches.
fn collect(loader: &mut DataLoader, max: usize) -> Vec<TokenBatch> {
    let next = || loader.next_batch().unwrap();
    std::iter::from_fn(next).take(max).collect()
}

/// How a checkpoint keeps a position.
fn saved(position: &DataPosition) -> DataPosition {
    serde_json::from_str(&serde_json::to_string(position).unwrap()).unwrap()
}

#[test]
fn one_leg_two_legs_and_three_legs_give_the_same_batches() {
    let folder = tempfile::tempdir().unwrap();
    write_corpus(folder.path(), 240);
    let mut configs = configs(folder.path());
    configs.extend(prepared_configs(folder.path()));
    for (number, config) in configs.iter().enumerate() {
        let name = format!(
            "{:?} {} {:?} {:?}",
            config.packing, config.shuffle, config.weights, config.train
        );
        let whole = collect(&mut open(config, &DataPosition::default()), 220);
        assert_eq!(whole.len(), 220, "{name}");
        let last = &whole[219].position;
        for source in &last.sources {
            assert!(source.cursor.epoch >= 1, "{name}: {:?}", last.sources);
        }
        let mut in_progress = 0;
        for attempt in 0..25 {
            // Two stops; the third leg goes on from what the second one saved.
            let random = mix(1000 * number as u64 + attempt);
            let first = 1 + random as usize % 150;
            let second = first + 1 + (random >> 20) as usize % (218 - first);
            let place = saved(&whole[first - 1].position);
            in_progress += usize::from(place.token_offset + place.window_rows > 0);
            let middle = collect(&mut open(config, &place), second - first);
            assert_eq!(middle, whole[first..second], "{name} from {first}");
            let place = saved(&middle.last().unwrap().position);
            let rest = collect(&mut open(config, &place), 220 - second);
            assert_eq!(rest, whole[second..], "{name} from {first} and {second}");
        }
        let can_be_in_progress = config.packing != Packing::None;
        assert_eq!(in_progress > 0, can_be_in_progress, "{name}");
    }
}

#[test]
fn the_number_of_threads_changes_nothing_in_any_mix() {
    let folder = tempfile::tempdir().unwrap();
    write_corpus(folder.path(), 240);
    for config in configs(folder.path()) {
        let batches = |workers| {
            let (start, split) = (DataPosition::default(), Split::Train);
            let loader = DataLoader::open_with_workers(&config, split, 3, bytes(), &start, workers);
            collect(&mut loader.unwrap(), 80)
        };
        assert_eq!(batches(1), batches(4), "{config:?}");
    }
}

/// How often each document begins in the batches, by its name. A packed one may go on in the next
/// row.
fn documents_begun(batches: &[TokenBatch]) -> HashMap<u64, usize> {
    let tokens = batches
        .iter()
        .flat_map(|batch| batch.input_ids.iter().zip(&batch.is_token));
    let text: String = tokens
        .filter(|(_, is_token)| **is_token)
        .map(|(&id, _)| u8::try_from(id).map_or(' ', char::from))
        .collect();
    let mut counts = HashMap::new();
    for part in text.split('<').skip(1) {
        let (name, _) = part.split_once('>').unwrap();
        *counts.entry(name.parse().unwrap()).or_insert(0) += 1;
    }
    counts
}

#[test]
fn no_document_is_seen_twice_or_missed_in_an_epoch() {
    const NUM_DOCUMENTS: u64 = 3600;
    let folder = tempfile::tempdir().unwrap();
    write_corpus(folder.path(), NUM_DOCUMENTS);
    let expected: HashMap<u64, usize> = (0..NUM_DOCUMENTS)
        .filter(|index| !index.is_multiple_of(10))
        .map(|index| (index, 1))
        .collect();
    for config in configs(folder.path()) {
        let config = DataConfig {
            packing_window: 500,
            shuffle_window: 300,
            sequence_length: 1 << 16,
            on_data_end: OnDataEnd::Stop,
            ..config
        };
        let name = format!(
            "{:?} {} {:?}",
            config.packing, config.shuffle, config.weights
        );
        let mut loader = open(&config, &DataPosition::default());
        let batches = collect(&mut loader, usize::MAX);
        assert!(documents_begun(&batches) == expected, "{name}");
        let position = loader.position();
        assert_eq!(position.documents, expected.len() as u64, "{name}");
        assert_eq!(position.skipped_documents, NUM_DOCUMENTS / 10, "{name}");
        assert_eq!((position.bad_lines, position.bad_shards), (1, 0), "{name}");
    }
}

/// The names of documents, one a row.
fn order(config: &DataConfig, max: usize) -> Vec<u64> {
    let batches = collect(&mut open(config, &DataPosition::default()), max);
    let name = |row: &[u32]| -> u64 {
        let digits = row[1..].iter().take_while(|&&id| id != u32::from(b'>'));
        let digits: String = digits.map(|&id| char::from(id as u8)).collect();
        digits.parse().unwrap()
    };
    let rows = |batch: &TokenBatch| -> Vec<u64> {
        batch
            .input_ids
            .chunks(batch.sequence_length)
            .map(name)
            .collect()
    };
    batches.iter().flat_map(rows).collect()
}

#[test]
fn shuffling_has_another_order_in_each_epoch_and_for_each_seed() {
    let folder = tempfile::tempdir().unwrap();
    write_corpus(folder.path(), 600);
    let entry = folder.path().join("*").to_str().unwrap().to_owned();
    let config = |shuffle, seed| DataConfig {
        train: vec![entry.replace('*', "a"), entry.replace('*', "b")],
        weights: Vec::new(),
        packing: Packing::None,
        shuffle,
        shuffle_seed: seed,
        shuffle_window: 50,
        sequence_length: 1024,
        on_bad_shard: OnBadShard::Skip,
        on_data_end: OnDataEnd::Repeat,
        ..DataConfig::new(vec![entry.clone()])
    };
    // 540 documents an epoch, three a batch.
    let epochs = |config: &DataConfig| {
        let names: Vec<Vec<u64>> = order(config, 360).chunks(540).map(<[_]>::to_vec).collect();
        assert_eq!(names.len(), 2);
        names
    };
    let plain = epochs(&config(false, 1));
    let (one, other) = (epochs(&config(true, 1)), epochs(&config(true, 2)));
    let moved = |a: &[u64], b: &[u64]| a.iter().zip(b).filter(|(a, b)| a != b).count();
    for (a, b) in [
        (&plain[0], &one[0]),
        (&one[0], &one[1]),
        (&one[0], &other[0]),
    ] {
        let sorted = |names: &[u64]| {
            let mut names = names.to_vec();
            names.sort_unstable();
            names
        };
        assert_eq!(sorted(a), sorted(b));
        assert!(moved(a, b) > 450, "{}", moved(a, b));
    }
}

#[test]
fn sources_give_tokens_in_proportion_to_their_weights() {
    let folder = tempfile::tempdir().unwrap();
    write_corpus(folder.path(), 600);
    for config in configs(folder.path()) {
        if config.weights.is_empty() {
            continue;
        }
        let batches = collect(&mut open(&config, &DataPosition::default()), 200);
        for batch in &batches[100..] {
            let [a, b] = [0, 1].map(|source| batch.position.sources[source].tokens);
            assert_eq!(a + b, batch.position.tokens);
            let share = b as f64 / (a + b) as f64;
            assert!((share - 1.5 / 2.5).abs() < 0.02, "{config:?}: {share}");
        }
    }
}

#[test]
fn a_source_that_ends_leaves_its_share_to_the_others_with_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    write_corpus(folder.path(), 240);
    let config = DataConfig {
        on_data_end: OnDataEnd::Stop,
        ..configs(folder.path()).remove(5)
    };
    assert_eq!((config.packing, config.weights.len()), (Packing::Packed, 2));
    let mut loader = open(&config, &DataPosition::default());
    collect(&mut loader, usize::MAX);
    let warnings: Vec<String> = loader.warnings().iter().map(ToString::to_string).collect();
    let ended = warnings.iter().filter(|text| text.contains("has ended"));
    assert_eq!(ended.count(), 1, "{warnings:?}");
}

#[test]
fn best_fit_wastes_less_than_one_percent_and_keeps_documents_whole() {
    let folder = tempfile::tempdir().unwrap();
    write_corpus(folder.path(), 3600);
    let config = DataConfig {
        packing: Packing::BestFit,
        packing_window: 4096,
        sequence_length: 128,
        on_data_end: OnDataEnd::Stop,
        ..configs(folder.path()).remove(0)
    };
    let mut loader = open(&config, &DataPosition::default());
    let batches = collect(&mut loader, usize::MAX);
    let position = loader.position();
    let waste = position.padding_ratio() + position.cut_ratio();
    assert!(waste < 0.01, "{waste}");
    // A document that fits in a row is in one row, from its first letter to its end mark.
    let mut num_whole = 0;
    for batch in &batches {
        for row in batch.input_ids.chunks(128) {
            let starts = row.iter().filter(|&&id| id == u32::from(b'<')).count();
            let ends = row.iter().filter(|&&id| id == 256).count();
            let goes_on = row[0] != u32::from(b'<');
            if !goes_on && starts <= ends {
                num_whole += starts;
            }
        }
    }
    let num_short = (0..3600)
        .filter_map(document)
        .filter(|text| text.len() < 128);
    assert!(num_whole >= num_short.count() * 9 / 10, "{num_whole}");
}

#[test]
fn without_the_mask_a_row_is_one_document_with_the_same_targets() {
    let folder = tempfile::tempdir().unwrap();
    write_corpus(folder.path(), 240);
    for packing in PACKINGS {
        let apart = DataConfig {
            packing,
            ..configs(folder.path()).remove(0)
        };
        let crossing = DataConfig {
            document_mask: false,
            ..apart.clone()
        };
        let start = DataPosition::default();
        let (apart, crossing) = (
            collect(&mut open(&apart, &start), 50),
            collect(&mut open(&crossing, &start), 50),
        );
        let mut many = false;
        for (apart, crossing) in apart.iter().zip(&crossing) {
            many |= apart.document_ids.iter().any(|&id| id > 0);
            assert!(crossing.document_ids.iter().all(|&id| id == 0));
            for row in crossing.position_ids.chunks(crossing.sequence_length) {
                assert!(row.iter().copied().eq(0..crossing.sequence_length as u32));
            }
            assert_eq!(apart.input_ids, crossing.input_ids);
            assert_eq!(apart.targets, crossing.targets);
            assert_eq!(apart.position, crossing.position);
        }
        assert_eq!(many, packing != Packing::None);
    }
}

#[test]
fn max_tokens_ends_the_training_data_with_the_row_that_reaches_it() {
    let folder = tempfile::tempdir().unwrap();
    write_corpus(folder.path(), 240);
    let config = DataConfig {
        max_tokens: Some(1000),
        ..configs(folder.path()).remove(6)
    };
    let batches = collect(&mut open(&config, &DataPosition::default()), usize::MAX);
    let last = &batches.last().unwrap().position;
    assert!((1000..1064).contains(&last.tokens), "{}", last.tokens);
    assert!(open(&config, last).next_batch().unwrap().is_none());
}

#[test]
fn a_window_of_huge_documents_does_not_block_and_stops_when_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let huge = Some("x".repeat(20_000_000));
    let rows = [document(1), huge.clone(), document(2), huge, document(3)];
    std::fs::write(folder.path().join("a.jsonl"), json_lines(&rows)).unwrap();
    let config = DataConfig {
        packing: Packing::BestFit,
        shuffle: true,
        on_data_end: OnDataEnd::Repeat,
        ..DataConfig::new(vec![folder.path().to_str().unwrap().to_owned()])
    };
    let tokenizer = bytes();
    let (start, split) = (DataPosition::default(), Split::Train);
    let copy = Arc::clone(&tokenizer);
    let mut loader = DataLoader::open_with_workers(&config, split, 64, copy, &start, 2).unwrap();
    while loader.position().tokens < 30_000_000 {
        loader.next_batch().unwrap().unwrap();
    }
    drop(loader);
    // Every thread holds a reference until it ends.
    assert_eq!(Arc::strong_count(&tokenizer), 1);
}

/// Resumes with the data as it is now.
fn resume(
    config: &DataConfig,
    saved: (&DataPosition, &DataFingerprint),
    allow: bool,
) -> Result<DataLoader, String> {
    DataLoader::resume(config, 3, bytes(), saved, allow).map_err(|error| error.to_string())
}

#[test]
fn changed_data_is_named_and_refused_unless_allowed() {
    let folder = tempfile::tempdir().unwrap();
    write_corpus(folder.path(), 240);
    let config = configs(folder.path()).remove(4);
    assert_eq!((config.packing, config.shuffle), (Packing::Packed, false));
    let mut loader = open(&config, &DataPosition::default());
    let position = collect(&mut loader, 10).remove(9).position;
    assert_eq!(position.sources[0].cursor.shard, 0);
    let fingerprint = loader.fingerprint().clone();
    let saved = (&position, &fingerprint);
    let expected = collect(&mut loader, 5);
    // The same data elsewhere is the same data.
    let moved = tempfile::tempdir().unwrap();
    write_corpus(moved.path(), 240);
    let elsewhere = DataConfig {
        train: vec![
            moved.path().join("a").to_str().unwrap().to_owned(),
            moved.path().join("b").to_str().unwrap().to_owned(),
        ],
        ..config.clone()
    };
    assert_eq!(
        collect(&mut resume(&elsewhere, saved, false).unwrap(), 5),
        expected
    );

    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    std::fs::remove_file(a.join("2.jsonl")).unwrap();
    std::fs::write(b.join("6.jsonl"), json_lines(&[document(7)])).unwrap();
    let mut content = std::fs::read(b.join("5.jsonl")).unwrap();
    let last_quote = content.iter().rposition(|&byte| byte == b'x').unwrap();
    content[last_quote] = b'y';
    std::fs::write(b.join("5.jsonl"), content).unwrap();
    std::fs::write(a.join("3.json.gz"), gzip(b"{\"text\": \"other\"}\n")).unwrap();
    let error = resume(&config, saved, false).map(|_| ()).unwrap_err();
    for part in [
        "2.jsonl was removed",
        "6.jsonl was added",
        "5.jsonl has other content of the same size",
        "3.json.gz: ",
    ] {
        assert!(error.contains(part), "{error}");
    }
    // The file being read has not changed: the document in progress is read again from its start.
    let mut loader = resume(&config, saved, true).unwrap();
    assert_eq!(loader.position().sources, position.sources);
    assert_eq!(loader.position().token_offset, 0);
    assert!(loader.next_batch().unwrap().is_some());
    let warning = loader.warnings().remove(0).to_string();
    assert!(warning.contains("2.jsonl was removed"), "{warning}");
    // Now it has, so the source begins its next epoch.
    std::fs::remove_file(a.join("0.parquet")).unwrap();
    let loader = resume(&config, saved, true).unwrap();
    let cursor = loader.position().sources[0].cursor;
    assert_eq!((cursor.epoch, cursor.shard, cursor.row), (1, 0, 0));
    assert_eq!(loader.position().tokens, position.tokens);
    // Another tokenizer is not data.
    let other = DataFingerprint {
        tokenizer: "another".to_owned(),
        ..fingerprint.clone()
    };
    let error = resume(&config, (&position, &other), true)
        .map(|_| ())
        .unwrap_err();
    assert!(error.contains("the tokenizer: another -> bytes"), "{error}");
}

#[test]
fn a_source_without_usable_documents_is_an_error_in_any_mix() {
    let folder = tempfile::tempdir().unwrap();
    write_corpus(folder.path(), 240);
    let b = folder.path().join("b");
    std::fs::remove_file(b.join("4.jsonl.zst")).unwrap();
    std::fs::write(b.join("5.jsonl"), "not json\nnor this\n").unwrap();
    for config in configs(folder.path()) {
        let config = DataConfig {
            train: config.train[1..].to_vec(),
            weights: config.weights.iter().skip(1).copied().collect(),
            ..config
        };
        let error = open(&config, &DataPosition::default())
            .next_batch()
            .unwrap_err();
        let error = error.to_string();
        assert!(error.contains("no usable document in 1 file(s)"), "{error}");
        assert!(error.contains("2 bad lines"), "{error}");
    }
}
