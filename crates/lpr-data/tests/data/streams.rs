//! Batches: their content, and that a position continues them exactly.

use std::path::Path;
use std::sync::Arc;

use crate::support::{ParquetFile, config, damage_row_group, gzip, json_lines, texts};
use lpr_data::{
    Cursor, DataConfig, DataError, DataLoader, DataPosition, IGNORE_INDEX, OnBadShard, OnDataEnd,
    Packing, SourcePosition, Split, TokenBatch, Tokenizer, Warning,
};

fn bytes() -> Arc<Tokenizer> {
    Arc::new(Tokenizer::open("bytes").unwrap())
}

fn open(config: &DataConfig, rows: usize, start: &DataPosition) -> DataLoader {
    DataLoader::open(config, Split::Train, rows, bytes(), start).unwrap()
}

/// At most `max` batches.
fn collect(loader: &mut DataLoader, max: usize) -> Vec<TokenBatch> {
    let next = || loader.next_batch().unwrap();
    std::iter::from_fn(next).take(max).collect()
}

/// The position of one source.
fn at(cursor: Cursor) -> DataPosition {
    let source = SourcePosition {
        cursor,
        ..SourcePosition::default()
    };
    DataPosition {
        sources: vec![source],
        ..DataPosition::default()
    }
}

fn write_lines(folder: &Path, texts: &[&str]) {
    let rows: Vec<_> = texts.iter().map(|&text| Some(text.to_owned())).collect();
    std::fs::write(folder.join("a.jsonl"), json_lines(&rows)).unwrap();
}

/// Two good files, one that breaks in its second row group, and one with bad, empty and null lines.
fn write_mixed(folder: &Path) {
    let short = |first, count| -> Vec<Option<String>> {
        let cut = |text: Option<String>| text.map(|text| text.chars().take(90).collect());
        texts(first, count).into_iter().map(cut).collect()
    };
    ParquetFile {
        rows_per_group: 3,
        ..ParquetFile::default()
    }
    .write(&folder.join("a.parquet"), &short(0, 7));
    let broken = folder.join("b.parquet");
    ParquetFile {
        rows_per_group: 4,
        ..ParquetFile::default()
    }
    .write(&broken, &texts(10, 12));
    damage_row_group(&broken, 1);
    let mut lines = json_lines(&short(30, 3));
    lines
        .extend(b"\n{\"text\": \"cut off\n{\"text\": null}\n{\"text\": \"\"}\n{\"text\": \"x\"}\n");
    lines.extend(json_lines(&short(40, 2)));
    lines.extend(b"{\"text\": 3}\n");
    std::fs::write(folder.join("c.json.gz"), gzip(&lines)).unwrap();
    let zst = zstd::encode_all(&*json_lines(&short(50, 2)), 1).unwrap();
    std::fs::write(folder.join("d.jsonl.zst"), zst).unwrap();
}

fn mixed_config(folder: &Path, packing: Packing, on_data_end: OnDataEnd) -> DataConfig {
    DataConfig {
        sequence_length: 48,
        packing,
        on_bad_shard: OnBadShard::Skip,
        on_data_end,
        ..config(folder)
    }
}

#[test]
fn every_position_continues_with_the_same_batches() {
    let folder = tempfile::tempdir().unwrap();
    write_mixed(folder.path());
    for packing in [Packing::None, Packing::Packed] {
        for on_data_end in [OnDataEnd::Stop, OnDataEnd::Repeat] {
            for rows in [1, 3] {
                let config = mixed_config(folder.path(), packing, on_data_end);
                let max = 200 / rows;
                let all = collect(&mut open(&config, rows, &DataPosition::default()), max);
                let last = &all.last().unwrap().position;
                match on_data_end {
                    OnDataEnd::Stop => assert!(all.len() < max && last.epoch() == 0),
                    OnDataEnd::Repeat => assert!(all.len() == max && last.epoch() > 0),
                }
                assert!(last.bad_lines >= 2 && last.bad_shards >= 1 && last.skipped_documents > 0);
                for (index, batch) in all.iter().enumerate() {
                    let json = serde_json::to_string(&batch.position).unwrap();
                    let start: DataPosition = serde_json::from_str(&json).unwrap();
                    // Far enough to cross into the next file, and to the end when it is near.
                    let expected: Vec<_> = all[index + 1..].iter().take(12).cloned().collect();
                    let found = collect(&mut open(&config, rows, &start), expected.len());
                    assert_eq!(found, expected, "{packing:?} {on_data_end:?} after {index}");
                }
                let mut end = open(&config, rows, last);
                assert_eq!(
                    end.next_batch().unwrap().is_none(),
                    on_data_end == OnDataEnd::Stop
                );
            }
        }
    }
}

#[test]
fn the_position_after_the_end_can_go_on_with_another_epoch() {
    let folder = tempfile::tempdir().unwrap();
    write_mixed(folder.path());
    let stop = mixed_config(folder.path(), Packing::None, OnDataEnd::Stop);
    let repeat = mixed_config(folder.path(), Packing::None, OnDataEnd::Repeat);
    let mut first_epoch = open(&stop, 1, &DataPosition::default());
    let num_batches = collect(&mut first_epoch, usize::MAX).len();
    let both = collect(
        &mut open(&repeat, 1, &DataPosition::default()),
        2 * num_batches,
    );
    let second = collect(&mut open(&repeat, 1, first_epoch.position()), num_batches);
    assert_eq!(second, both[num_batches..]);
    assert_eq!(second[0].position.epoch(), 1);
    assert_eq!(second[0].input_ids, both[0].input_ids);
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    write_mixed(folder.path());
    let config = mixed_config(folder.path(), Packing::Packed, OnDataEnd::Repeat);
    let start = DataPosition::default();
    let mut results = [1, 2, 5].map(|num_workers| {
        let loader =
            DataLoader::open_with_workers(&config, Split::Train, 4, bytes(), &start, num_workers);
        collect(&mut loader.unwrap(), 300)
    });
    let expected = results[0].clone();
    assert_eq!(expected.len(), 300);
    for result in results.iter_mut().skip(1) {
        assert_eq!(*result, expected);
    }
}

#[test]
fn packed_rows_are_windows_of_the_stream() {
    let folder = tempfile::tempdir().unwrap();
    write_lines(folder.path(), &["ab", "cde", ""]);
    let config = DataConfig {
        sequence_length: 4,
        packing: Packing::Packed,
        ..config(folder.path())
    };
    let mut loader = open(&config, 8, &DataPosition::default());
    let batch = loader.next_batch().unwrap().unwrap();
    let [a, b, c, d, e] = [97, 98, 99, 100, 101];
    let (end, none) = (256, IGNORE_INDEX);
    assert_eq!((batch.num_rows, batch.sequence_length), (2, 4));
    assert_eq!(batch.input_ids, [a, b, end, c, d, e, end, end]);
    let targets = [98, 256, none, 100, 101, 256, none, none];
    assert_eq!(batch.targets, targets);
    let is_token = [true, true, true, true, true, true, true, false];
    assert_eq!(batch.is_token, is_token);
    assert_eq!(batch.document_ids, [0, 0, 0, 1, 0, 0, 0, 0]);
    assert_eq!(batch.position_ids, [0, 1, 2, 0, 0, 1, 2, 3]);
    assert_eq!(batch.num_targets, 5);
    let position = &batch.position;
    assert_eq!((position.documents, position.tokens), (2, 7));
    assert_eq!(
        (position.padding_tokens, position.skipped_documents),
        (1, 1)
    );
    assert!(loader.next_batch().unwrap().is_none());
}

#[test]
fn unpacked_rows_are_documents_cut_and_padded_to_the_longest() {
    let folder = tempfile::tempdir().unwrap();
    write_lines(folder.path(), &["ab", "x", "cdefgh", "ijk"]);
    let config = DataConfig {
        sequence_length: 4,
        ..config(folder.path())
    };
    let mut loader = open(&config, 2, &DataPosition::default());
    let batch = loader.next_batch().unwrap().unwrap();
    let none = IGNORE_INDEX;
    assert_eq!((batch.num_rows, batch.sequence_length), (2, 4));
    assert_eq!(batch.input_ids, [97, 98, 256, 256, 99, 100, 101, 102]);
    let targets = [98, none, none, none, 100, 101, 102, none];
    assert_eq!(batch.targets, targets);
    assert_eq!(batch.document_ids, [0; 8]);
    assert_eq!(batch.position_ids, [0, 1, 2, 3, 0, 1, 2, 3]);
    assert_eq!(batch.num_targets, 4);
    let position = &batch.position;
    assert_eq!((position.cut_tokens, position.skipped_documents), (2, 1));
    assert_eq!(
        (position.padding_tokens, position.sources[0].cursor.row),
        (2, 3)
    );
    let rest = loader.next_batch().unwrap().unwrap();
    assert_eq!((rest.num_rows, rest.sequence_length), (1, 3));
    assert_eq!(rest.input_ids, [105, 106, 107]);
    assert!(loader.next_batch().unwrap().is_none());
}

#[test]
fn a_lone_end_mark_at_the_end_of_the_data_is_not_handed_out() {
    let folder = tempfile::tempdir().unwrap();
    write_lines(folder.path(), &["abc"]);
    let config = DataConfig {
        sequence_length: 3,
        packing: Packing::Packed,
        ..config(folder.path())
    };
    let mut loader = open(&config, 2, &DataPosition::default());
    let batch = loader.next_batch().unwrap().unwrap();
    assert_eq!(batch.targets, [98, 99, 256]);
    assert_eq!((batch.num_rows, batch.num_targets), (1, 3));
    assert_eq!((batch.position.tokens, batch.position.cut_tokens), (3, 1));
    assert!(loader.next_batch().unwrap().is_none());
}

#[test]
fn packing_loses_and_invents_no_token() {
    let folder = tempfile::tempdir().unwrap();
    let rows = texts(0, 40);
    ParquetFile::default().write(&folder.path().join("a.parquet"), &rows);
    let config = DataConfig {
        sequence_length: 100,
        packing: Packing::Packed,
        ..config(folder.path())
    };
    let mut loader = open(&config, 3, &DataPosition::default());
    let batches = collect(&mut loader, usize::MAX);
    let expected: Vec<u32> = rows
        .iter()
        .flatten()
        .flat_map(|text| text.bytes().map(u32::from).chain([256]))
        .collect();
    let tokens = batches.iter().flat_map(|batch| {
        let tokens = batch.input_ids.iter().zip(&batch.is_token);
        tokens.filter(|(_, is_token)| **is_token).map(|(&id, _)| id)
    });
    assert_eq!(tokens.collect::<Vec<_>>(), expected);
    let targets = batches.iter().flat_map(|batch| &batch.targets);
    let targets = targets.filter(|&&target| target != IGNORE_INDEX).count();
    // Every token but the first of a document is a target exactly once.
    assert_eq!(targets, expected.len() - rows.len());
    let hash = expected.iter().flat_map(|id| id.to_le_bytes());
    let hash = hash.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    assert_eq!(loader.position().token_hash, hash);
    assert_eq!(loader.position().tokens, expected.len() as u64);
}

#[test]
fn a_huge_document_passes_and_dropping_the_loader_stops_its_threads() {
    let folder = tempfile::tempdir().unwrap();
    let huge = "x".repeat(50_000_000);
    write_lines(folder.path(), &["small one", &huge, "small two"]);
    let config = DataConfig {
        packing: Packing::Packed,
        on_data_end: OnDataEnd::Repeat,
        ..config(folder.path())
    };
    let tokenizer = bytes();
    let start = DataPosition::default();
    for num_workers in [1, 3] {
        let tokenizer = Arc::clone(&tokenizer);
        let split = Split::Train;
        let mut loader =
            DataLoader::open_with_workers(&config, split, 64, tokenizer, &start, num_workers)
                .unwrap();
        let batch = std::iter::from_fn(|| loader.next_batch().unwrap())
            .find(|batch| batch.position.epoch() == 1)
            .unwrap();
        assert!(batch.position.tokens > 50_000_000, "{:?}", batch.position);
    }
    // Every thread holds a reference until it ends.
    assert_eq!(Arc::strong_count(&tokenizer), 1);
}

#[test]
fn bad_files_stop_the_loader_or_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    write_mixed(folder.path());
    std::fs::write(folder.path().join("0.parquet"), b"no parquet at all").unwrap();
    let mut config = mixed_config(folder.path(), Packing::None, OnDataEnd::Stop);
    config.on_bad_shard = OnBadShard::Fail;
    let start = DataPosition::default();
    let Err(DataError::Shard(error)) = DataLoader::open(&config, Split::Train, 1, bytes(), &start)
    else {
        panic!("a bad file must be found when the loader is opened");
    };
    assert!(error.path.ends_with("0.parquet"), "{error}");

    config.on_bad_shard = OnBadShard::Skip;
    let mut loader = open(&config, 1, &start);
    let documents = collect(&mut loader, usize::MAX).len();
    // Seven of a, the first row group of b, five of c, two of d.
    assert_eq!(documents, 7 + 4 + 5 + 2);
    let position = loader.position();
    assert_eq!((position.bad_shards, position.bad_lines), (2, 2));
    // Null, empty, and one byte, which has no next token.
    assert_eq!(position.skipped_documents, 3);
    let warnings = loader.warnings();
    let skipped = |warning: &&Warning| matches!(warning, Warning::ShardSkipped(_));
    assert_eq!(warnings.iter().filter(skipped).count(), 2, "{warnings:?}");
    assert!(loader.warnings().is_empty());
}

#[test]
fn an_error_in_the_middle_comes_after_the_batches_before_it() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(
        folder.path().join("a.jsonl"),
        "{\"text\": \"one\"}\n{\"text\": \"two\"}\n{\"txt\": \"three\"}\n",
    )
    .unwrap();
    let mut loader = open(&config(folder.path()), 1, &DataPosition::default());
    assert_eq!(loader.next_batch().unwrap().unwrap().position.documents, 1);
    assert_eq!(loader.next_batch().unwrap().unwrap().position.documents, 2);
    let error = loader.next_batch().unwrap_err().to_string();
    assert!(
        error.contains("a.jsonl, line 3: has no key \"text\""),
        "{error}"
    );
}

#[test]
fn an_epoch_without_a_usable_document_is_an_error_and_no_endless_loop() {
    let folder = tempfile::tempdir().unwrap();
    write_lines(folder.path(), &["", "x", ""]);
    let config = DataConfig {
        on_data_end: OnDataEnd::Repeat,
        ..config(folder.path())
    };
    let mut loader = open(&config, 1, &DataPosition::default());
    let error = loader.next_batch().unwrap_err();
    assert!(
        matches!(
            error,
            DataError::NoUsableDocuments {
                skipped_documents: 3,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn data_that_became_unusable_is_noticed_after_a_start_in_the_middle() {
    let folder = tempfile::tempdir().unwrap();
    write_lines(folder.path(), &["", "x", ""]);
    let config = DataConfig {
        on_data_end: OnDataEnd::Repeat,
        ..config(folder.path())
    };
    let middle = at(Cursor {
        row: 1,
        ..Cursor::default()
    });
    let error = open(&config, 1, &middle).next_batch().unwrap_err();
    let DataError::NoUsableDocuments {
        skipped_documents, ..
    } = error
    else {
        panic!("{error}");
    };
    // The rest of the first epoch proves nothing; the whole second one does.
    assert_eq!(skipped_documents, 3);
}

#[test]
fn validation_always_stops_and_must_be_given() {
    let folder = tempfile::tempdir().unwrap();
    write_lines(folder.path(), &["some text"]);
    let mut config = DataConfig {
        on_data_end: OnDataEnd::Repeat,
        ..config(folder.path())
    };
    let start = DataPosition::default();
    let open =
        |config: &DataConfig| DataLoader::open(config, Split::Validation, 1, bytes(), &start);
    assert!(matches!(open(&config), Err(DataError::NoSources { .. })));
    config.validation = config.train.clone();
    assert_eq!(collect(&mut open(&config).unwrap(), 10).len(), 1);
}

#[test]
fn the_synthetic_corpus_streams_like_a_file() {
    let mut config = DataConfig::new(vec!["builtin:synthetic".to_owned()]);
    config.validation.clone_from(&config.train);
    config.packing = Packing::Packed;
    let start = DataPosition::default();
    let first = collect(&mut open(&config, 2, &start), 20);
    let rest = collect(&mut open(&config, 2, &first[9].position), 10);
    assert_eq!(rest, first[10..]);
    let mut validation = DataLoader::open(&config, Split::Validation, 8, bytes(), &start).unwrap();
    collect(&mut validation, usize::MAX);
    assert_eq!(validation.position().documents, 500);
}

#[test]
fn a_position_that_does_not_fit_the_data_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    write_lines(folder.path(), &["a text of some length", "another"]);
    let config = DataConfig {
        packing: Packing::Packed,
        ..config(folder.path())
    };
    let beyond = at(Cursor {
        shard: 2,
        ..Cursor::default()
    });
    let result = DataLoader::open(&config, Split::Train, 1, bytes(), &beyond);
    assert!(matches!(result, Err(DataError::PositionMismatch { .. })));
    for (row, token_offset) in [(1, 100), (5, 3)] {
        let inside = DataPosition {
            token_offset,
            ..at(Cursor {
                row,
                ..Cursor::default()
            })
        };
        let error = open(&config, 1, &inside).next_batch().unwrap_err();
        assert!(
            matches!(error, DataError::PositionMismatch { .. }),
            "{error}"
        );
    }
}

#[test]
fn values_out_of_range_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    write_lines(folder.path(), &["one"]);
    let start = DataPosition::default();
    let open = |config: &DataConfig, rows| {
        DataLoader::open(config, Split::Train, rows, bytes(), &start).map(|_| ())
    };
    let mut config = config(folder.path());
    assert!(matches!(open(&config, 0), Err(DataError::TooSmall { .. })));
    config.sequence_length = 1;
    assert!(matches!(open(&config, 1), Err(DataError::TooSmall { .. })));
}
