//! Prepared tokens give the rows that their sources give.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lpr_data::{
    DataConfig, DataError, DataLoader, DataPosition, Hub, OnBadShard, Packing, Prepared, Split,
    TokenBatch, Tokenizer, check_files, prepare,
};

use crate::support::{ParquetFile, config, json_lines, texts};

fn bytes() -> Arc<Tokenizer> {
    Arc::new(Tokenizer::open("bytes").unwrap())
}

/// A folder `raw` with two files, one of which has gaps, and a folder `prepared` made of them.
fn folders() -> (tempfile::TempDir, DataConfig, DataConfig, Prepared) {
    let root = tempfile::tempdir().unwrap();
    let (raw, prepared) = (root.path().join("raw"), root.path().join("prepared"));
    std::fs::create_dir_all(&raw).unwrap();
    std::fs::create_dir_all(&prepared).unwrap();
    ParquetFile::default().write(&raw.join("a.parquet"), &texts(0, 50));
    let mut rows = texts(50, 10);
    rows[3] = None;
    rows[5] = Some(String::new());
    rows[7] = Some("x".to_owned());
    std::fs::write(raw.join("b.jsonl"), json_lines(&rows)).unwrap();
    let found = prepare(&config(&raw), &bytes(), &prepared, 2, &mut |_, _| true);
    let (raw, prepared) = (config(&raw), config(&prepared));
    (root, raw, prepared, found.unwrap().unwrap())
}

fn batches(config: &DataConfig, start: &DataPosition) -> Vec<TokenBatch> {
    let mut loader =
        DataLoader::open_with_workers(config, Split::Train, 3, bytes(), start, 2).unwrap();
    std::iter::from_fn(|| loader.next_batch().unwrap()).collect()
}

fn only_file(config: &DataConfig) -> PathBuf {
    Path::new(&config.train[0]).join("prepared-00000.safetensors")
}

fn open_error(config: &DataConfig) -> DataError {
    let start = DataPosition::default();
    let opened = DataLoader::open(config, Split::Train, 3, bytes(), &start);
    opened.err().expect("must not open")
}

#[test]
fn the_same_tokens_come_out_whatever_the_rows() {
    let (_root, raw, prepared, found) = folders();
    assert_eq!((found.documents, found.skipped_documents), (58, 2));
    assert_eq!((found.files, found.bad_lines, found.bad_shards), (1, 0, 0));
    for packing in [Packing::None, Packing::Packed] {
        for sequence_length in [2, 100, 1024] {
            let shape = |config: &DataConfig| DataConfig {
                packing,
                sequence_length,
                ..config.clone()
            };
            let start = DataPosition::default();
            let expected = batches(&shape(&raw), &start);
            let found = batches(&shape(&prepared), &start);
            assert_eq!(found.len(), expected.len());
            for (found, expected) in found.iter().zip(&expected) {
                assert_eq!(found.input_ids, expected.input_ids);
                assert_eq!(found.targets, expected.targets);
                assert_eq!(found.document_ids, expected.document_ids);
                assert_eq!(found.position.token_hash, expected.position.token_hash);
                assert_eq!(found.position.documents, expected.position.documents);
            }
            let middle = found.len() / 2;
            let rest = batches(&shape(&prepared), &found[middle - 1].position);
            assert_eq!(rest, found[middle..]);
        }
    }
}

#[test]
fn preparing_what_is_prepared_changes_nothing() {
    let (root, _, prepared, found) = folders();
    let again = root.path().join("again");
    std::fs::create_dir(&again).unwrap();
    let twice = prepare(&prepared, &bytes(), &again, 1, &mut |_, _| true).unwrap();
    assert_eq!((twice.unwrap().tokens), found.tokens);
    let again = config(&again);
    let start = DataPosition::default();
    let ids = |config| -> Vec<Vec<u32>> {
        let batches = batches(config, &start).into_iter();
        batches.map(|batch| batch.input_ids).collect()
    };
    assert_eq!(ids(&again), ids(&prepared));
    let report = check_files(&again.train, "text", Some(&bytes()), &Hub::default()).unwrap();
    assert_eq!(
        (report[0].documents, report[0].tokens),
        (58, Some(found.tokens))
    );
    assert_eq!(report[0].error, None);
}

#[test]
fn the_work_ends_when_asked_to_and_leaves_nothing_valid() {
    let (root, raw, _, _) = folders();
    let folder = root.path().join("stopped");
    std::fs::create_dir(&folder).unwrap();
    let found = prepare(&raw, &bytes(), &folder, 1, &mut |found, _| {
        found.documents < 5
    });
    assert_eq!(found.unwrap(), None);
    let error = open_error(&config(&folder));
    assert!(
        error
            .to_string()
            .contains("no intact file of prepared tokens"),
        "{error}"
    );
}

#[test]
fn bad_lines_are_refused_or_left_out_and_counted() {
    let (root, mut raw, _, _) = folders();
    let path = Path::new(&raw.train[0]).join("c.jsonl");
    std::fs::write(path, "{\"text\": \"good\"}\nbad\n").unwrap();
    let folder = root.path().join("skipping");
    std::fs::create_dir(&folder).unwrap();
    let prepare = |config: &DataConfig| {
        let mut warnings = Vec::new();
        let found = prepare(config, &bytes(), &folder, 1, &mut |_, new| {
            warnings.extend(new.iter().map(ToString::to_string));
            true
        });
        (found, warnings)
    };
    let error = prepare(&raw).0.unwrap_err().to_string();
    assert!(error.contains("c.jsonl, line 2"), "{error}");
    std::fs::remove_dir_all(root.path().join("skipping")).unwrap();
    std::fs::create_dir(root.path().join("skipping")).unwrap();
    raw.on_bad_shard = OnBadShard::Skip;
    let (found, warnings) = prepare(&raw);
    let found = found.unwrap().unwrap();
    assert_eq!(
        (found.documents, found.bad_lines, warnings.len()),
        (59, 1, 1)
    );
}

#[test]
fn another_tokenizer_is_named_with_the_one_that_was_used() {
    let (root, _, prepared, _) = folders();
    let path = only_file(&prepared);
    let bytes_in_file = std::fs::read(&path).unwrap();
    let text = String::from_utf8(bytes_in_file[8..1024].to_vec()).unwrap();
    assert!(text.contains(r#""tokenizer":"bytes""#), "{text}");
    let other = text.replace(r#""tokenizer":"bytes""#, r#""tokenizer":"0a1b2""#);
    std::fs::write(
        &path,
        [
            &bytes_in_file[..8],
            other.as_bytes(),
            &bytes_in_file[1024..],
        ]
        .concat(),
    )
    .unwrap();
    // Skipping bad files must not hide it.
    for on_bad_shard in [OnBadShard::Fail, OnBadShard::Skip] {
        let error = open_error(&DataConfig {
            on_bad_shard,
            ..prepared.clone()
        });
        let words = [
            "prepared-00000",
            "tokenizer 0a1b2",
            "configured one is bytes",
        ];
        let text = error.to_string();
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    }
    let report = check_files(&prepared.train, "text", Some(&bytes()), &Hub::default()).unwrap();
    assert!(
        report[0].error.as_deref().unwrap().contains("0a1b2"),
        "{report:?}"
    );
    drop(root);
}

#[test]
fn files_of_two_preparations_do_not_mix_in_a_folder() {
    let (root, mut raw, prepared, _) = folders();
    let other = root.path().join("other");
    std::fs::create_dir(&other).unwrap();
    raw.train = vec![format!("{}/a.parquet", raw.train[0])];
    prepare(&raw, &bytes(), &other, 1, &mut |_, _| true).unwrap();
    let start = DataPosition::default();
    let both = DataConfig::new(vec![
        prepared.train[0].clone(),
        config(&other).train[0].clone(),
    ]);
    assert_eq!(
        batches(&both, &start).last().unwrap().position.documents,
        107
    );
    let mixed = Path::new(&prepared.train[0]).join("prepared-00001.safetensors");
    std::fs::rename(other.join("prepared-00000.safetensors"), mixed).unwrap();
    let error = open_error(&prepared).to_string();
    let words = "prepared-00001.safetensors: was prepared from the sources";
    assert!(error.contains(words), "{error}");
}

#[test]
fn damaged_files_are_named_with_what_is_wrong() {
    let (_root, _, prepared, _) = folders();
    let path = only_file(&prepared);
    let good = std::fs::read(&path).unwrap();
    let check = |bytes: &[u8], words: &str| {
        std::fs::write(&path, bytes).unwrap();
        let report = check_files(&prepared.train, "text", None, &Hub::default())
            .unwrap()
            .remove(0);
        let error = report.error.unwrap();
        assert!(
            error.contains(words) && error.contains("data prepare"),
            "{error}"
        );
    };
    check(&good[..good.len() - 4], "bytes of data in place of");
    check(&good[..500], "does not start like one");
    check(b"", "does not start like one");
    check(&[&good[..], &[0; 4]].concat(), "bytes of data in place of");
    let mut bad = good.clone();
    bad[8] = b'[';
    check(&bad, "header: ");
    let text = String::from_utf8_lossy(&good[..1024]).into_owned();
    let shape = text.find(r#""shape":["#).unwrap() + 9;
    let mut bad = good.clone();
    bad[shape] = if bad[shape] == b'9' { b'8' } else { b'9' };
    check(&bad, "contradict each other");
    // An id beyond the vocabulary in the second document, of which the first is intact.
    let first_end = u32::from_le_bytes(*good[good.len() - 58 * 4..].first_chunk().unwrap());
    let mut bad = good.clone();
    bad[1024 + 4 * first_end as usize + 1] = 2;
    check(&bad, "row 1: is no intact file of prepared tokens (id ");
    let mut bad = good.clone();
    let ends = bad.len() - 58 * 4;
    bad[ends + 3] = 0xff;
    check(
        &bad,
        "row 0: is no intact file of prepared tokens (the document is said",
    );
    std::fs::write(&path, &good).unwrap();
    assert_eq!(
        check_files(&prepared.train, "text", None, &Hub::default()).unwrap()[0].error,
        None
    );
}
