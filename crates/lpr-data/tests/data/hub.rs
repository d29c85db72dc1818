//! Files on the network: a hub on the loopback interface and everything it can do wrong.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lpr_data::{
    DataConfig, DataError, DataLoader, DataPosition, Hub, HubError, HubEvent, HubSettings,
    OnBadShard, Retry, Split, Token, Tokenizer, check_files,
};
use sha1::{Digest, Sha1};
use tempfile::TempDir;

use crate::fake_hub::{FIRST_COMMIT, FakeHub, Fault, hex};
use crate::support::{ParquetFile, gzip, json_lines, texts};

const SECRET: &str = "hf_abcdefghijklmnopqrstuvwxyz";
const REPO: &str = "datasets/some/corpus";
const SOURCE: &str = "hf://datasets/some/corpus";

/// A hub, a cache, and what the client tells.
struct Setup {
    folder: TempDir,
    fake: FakeHub,
    settings: HubSettings,
    events: Arc<Mutex<Vec<HubEvent>>>,
    stop: Arc<AtomicBool>,
}

impl Setup {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let fake = FakeHub::new();
        let settings = HubSettings {
            endpoint: fake.url.clone(),
            cache: folder.path().join("hub"),
            url_cache: folder.path().join("urls"),
            token: Token::new(SECRET),
            offline: false,
            timeout: Duration::from_secs(20),
            certificates: None,
            proxy: None,
            retry: Retry {
                attempts: 3,
                first_delay: Duration::from_millis(2),
                max_delay: Duration::from_millis(4),
            },
        };
        Self {
            folder,
            fake,
            settings,
            events: Arc::default(),
            stop: Arc::default(),
        }
    }

    /// With three shards of 100 documents each.
    fn with_shards() -> Self {
        let setup = Self::new();
        for (index, bytes) in shards(setup.folder.path()).iter().enumerate() {
            setup
                .fake
                .add(&format!("{REPO}/data/{index}.parquet"), bytes);
        }
        setup
    }

    fn hub(&self) -> Hub {
        let (events, stop) = (Arc::clone(&self.events), Arc::clone(&self.stop));
        Hub::new(
            Ok(self.settings.clone()),
            Box::new(move || stop.load(Ordering::SeqCst)),
            Box::new(move |event| events.lock().unwrap().push(event)),
        )
    }

    fn read(&self, source: &str) -> Result<DataPosition, DataError> {
        read(&DataConfig::new(vec![source.to_owned()]), &self.hub())
    }

    fn fail(&self, source: &str) -> HubError {
        match self.read(source) {
            Err(DataError::Hub(error)) => error,
            other => panic!("{other:?}"),
        }
    }

    /// Files in `blobs` that a reader would take for complete.
    fn blobs(&self) -> Vec<String> {
        let folder = self.settings.cache.join("datasets--some--corpus/blobs");
        let Ok(entries) = fs::read_dir(folder) else {
            return Vec::new();
        };
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names
            .filter(|name| !name.ends_with(".incomplete"))
            .collect()
    }

    fn snapshot(&self) -> PathBuf {
        let repo = self.settings.cache.join("datasets--some--corpus");
        repo.join("snapshots").join(FIRST_COMMIT)
    }

    fn retries(&self) -> Vec<Duration> {
        let events = self.events.lock().unwrap();
        let delays = events.iter().filter_map(|event| match event {
            HubEvent::Retry { delay, .. } => Some(*delay),
            _ => None,
        });
        delays.collect()
    }
}

fn shards(folder: &Path) -> Vec<Vec<u8>> {
    let path = folder.join("shard.parquet");
    let shard = |index: u64| {
        ParquetFile::default().write(&path, &texts(100 * index, 100));
        fs::read(&path).unwrap()
    };
    let shards = (0..3).map(shard).collect();
    fs::remove_file(&path).unwrap();
    shards
}

fn read(config: &DataConfig, hub: &Hub) -> Result<DataPosition, DataError> {
    let config = &over(config, hub);
    let tokenizer = Arc::new(Tokenizer::open("bytes").unwrap());
    let start = DataPosition::default();
    let mut loader = DataLoader::open(config, Split::Train, 8, tokenizer, &start)?;
    while loader.next_batch()?.is_some() {}
    Ok(loader.position().clone())
}

/// The config with its data from `hub`.
fn over(config: &DataConfig, hub: &Hub) -> DataConfig {
    DataConfig {
        hub: hub.clone(),
        ..config.clone()
    }
}

/// What is read from disk.
fn expected(files: &[(&str, &[u8])]) -> DataPosition {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    let source = folder.path().to_str().unwrap().to_owned();
    read(&DataConfig::new(vec![source]), &Hub::default()).unwrap()
}

fn expected_shards() -> DataPosition {
    let folder = tempfile::tempdir().unwrap();
    let shards = shards(folder.path());
    let names = ["0.parquet", "1.parquet", "2.parquet"];
    let files: Vec<_> = names
        .into_iter()
        .zip(shards.iter().map(Vec::as_slice))
        .collect();
    expected(&files)
}

#[test]
fn the_hub_gives_the_tokens_of_the_disk_and_a_cache_that_others_can_read() {
    let setup = Setup::with_shards();
    setup.fake.set_page_size(2);
    let expected = expected_shards();
    assert_eq!(expected.documents, 300);
    for source in [
        format!("{SOURCE}/data/*.parquet"),
        format!("{SOURCE}/**/*.parquet"),
        format!("{SOURCE}/data"),
        format!("{SOURCE}@{FIRST_COMMIT}/data/?.parquet"),
    ] {
        assert_eq!(setup.read(&source).unwrap(), expected, "{source}");
    }
    assert_eq!(
        setup.fake.seen("/resolve/").len(),
        3,
        "each file comes once"
    );
    assert_eq!(setup.blobs().len(), 3);
    let head = setup
        .settings
        .cache
        .join("datasets--some--corpus/refs/main");
    assert_eq!(fs::read_to_string(head).unwrap(), FIRST_COMMIT);
    let link = setup.snapshot().join("data/1.parquet");
    let target = fs::read_link(&link).unwrap();
    assert!(target.starts_with("../../../blobs"), "{}", target.display());
    assert_eq!(fs::read(&link).unwrap(), shards(setup.folder.path())[1]);
    let one = setup.read(&format!("{SOURCE}/data/1.parquet")).unwrap();
    assert_eq!(one.documents, 100);
}

#[test]
fn small_files_are_checked_by_the_hash_of_git() {
    let setup = Setup::new();
    let lines = gzip(&json_lines(&texts(0, 50)));
    let header = format!("blob {}\0", lines.len());
    let hash = Sha1::new()
        .chain_update(header)
        .chain_update(&lines)
        .finalize();
    let hash = hex(&hash);
    setup
        .fake
        .add_named(&format!("{REPO}/a b.json.gz"), &lines, &hash);
    let source = format!("{SOURCE}/*.json.gz");
    assert_eq!(
        setup.read(&source).unwrap(),
        expected(&[("a.json.gz", &lines)])
    );
    assert_eq!(setup.blobs(), [hash]);
}

#[test]
fn the_token_goes_to_the_hub_and_not_to_the_server_it_redirects_to() {
    let setup = Setup::with_shards();
    let storage = setup.fake.with_storage();
    assert_eq!(
        setup.read(&format!("{SOURCE}/data")).unwrap(),
        expected_shards()
    );
    let bearer = Some(format!("Bearer {SECRET}"));
    let (at_hub, at_storage) = (setup.fake.seen("/"), storage.seen("/"));
    assert_eq!(at_storage.len(), 3);
    assert!(at_hub.iter().all(|seen| seen.authorization == bearer));
    assert!(
        at_storage.iter().all(|seen| seen.authorization.is_none()),
        "{at_storage:?}"
    );
    // An address that the hub signed is not repeated in a message either.
    setup.fake.commit(&"1".repeat(40));
    setup
        .fake
        .add(&format!("{REPO}/x.parquet"), b"another file");
    storage.fail("x.parquet", Fault::Status(500, ""), usize::MAX);
    let error = setup.fail(&format!("{SOURCE}/x.parquet")).to_string();
    assert!(
        error.contains("status 500") && !error.contains("Signature"),
        "{error}"
    );
}

#[test]
fn a_refusal_says_what_to_do_and_is_not_repeated() {
    let gated = Fault::Status(403, "X-Error-Code: GatedRepo");
    for (fault, words) in [
        (Fault::Status(401, ""), ["401", "HF_TOKEN"]),
        (gated, ["GatedRepo", "/datasets/some/corpus"]),
        (
            Fault::Status(404, "X-Error-Code: EntryNotFound"),
            ["404", "EntryNotFound"],
        ),
        (Fault::Page, ["HTML page", "0.parquet"]),
    ] {
        let setup = Setup::with_shards();
        setup.fake.fail("/resolve/", fault, usize::MAX);
        let config = DataConfig {
            on_bad_shard: OnBadShard::Skip,
            ..DataConfig::new(vec![format!("{SOURCE}/data/0.parquet")])
        };
        // The network says nothing about the file, so `skip` does not apply.
        let error = read(&config, &setup.hub()).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, DataError::Hub(_)), "{text}");
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
        assert!(!text.contains(SECRET), "{text}");
        assert_eq!(setup.fake.seen("/resolve/").len(), 1, "{fault:?}");
        assert!(setup.blobs().is_empty() && !setup.snapshot().exists());
    }
    let setup = Setup::new();
    setup.fake.fail("/revision/", Fault::Status(401, ""), 1);
    assert!(matches!(
        setup.fail(&format!("{SOURCE}/a/*.parquet")),
        HubError::Unauthorized { .. }
    ));
    assert!(matches!(
        setup.fail(&format!("{SOURCE}/a/*.parquet")),
        HubError::NotFound { .. }
    ));
}

#[test]
fn what_may_pass_is_repeated_as_often_and_as_late_as_it_should() {
    let setup = Setup::with_shards();
    setup.fake.fail("/tree/", Fault::Status(500, ""), 2);
    setup
        .fake
        .fail("1.parquet", Fault::Status(429, "Retry-After: 1"), 1);
    let start = Instant::now();
    assert_eq!(
        setup.read(&format!("{SOURCE}/data")).unwrap(),
        expected_shards()
    );
    assert!(start.elapsed() >= Duration::from_secs(1));
    let retries = setup.retries();
    assert_eq!(retries.len(), 3, "{retries:?}");
    assert!(retries.contains(&Duration::from_secs(1)), "{retries:?}");
    assert!(
        retries
            .iter()
            .filter(|delay| **delay <= Duration::from_millis(4))
            .count()
            == 2
    );
    // Not for ever.
    let setup = Setup::with_shards();
    setup
        .fake
        .fail("/revision/", Fault::Status(503, ""), usize::MAX);
    let error = setup.fail(&format!("{SOURCE}/data"));
    assert!(
        matches!(error, HubError::GaveUp { attempts: 3, .. }),
        "{error}"
    );
    assert_eq!(setup.fake.seen("/revision/").len(), 3);
    // A host that does not exist.
    let mut setup = Setup::new();
    setup.settings.endpoint = "http://127.0.0.1:1".to_owned();
    let error = setup.fail(&format!("{SOURCE}/data"));
    assert!(matches!(error, HubError::GaveUp { .. }), "{error}");
}

#[test]
fn an_interrupted_transfer_goes_on_where_it_stopped() {
    let setup = Setup::with_shards();
    let size = shards(setup.folder.path())[0].len();
    let source = format!("{SOURCE}/data/0.parquet");
    setup.fake.fail("0.parquet", Fault::Cut, 1);
    let expected = setup.read(&source).unwrap();
    assert_eq!(expected.documents, 100);
    let range = |index: usize| setup.fake.seen("0.parquet")[index].range.clone();
    assert_eq!(range(1), Some(format!("bytes={}-", size / 2)));
    assert_eq!(setup.fake.sent(), size as u64);
    // The same in another process, which finds what the first one left.
    let setup = Setup::with_shards();
    setup.fake.fail("0.parquet", Fault::Cut, 1);
    setup
        .fake
        .fail("0.parquet", Fault::Status(500, ""), usize::MAX);
    assert!(matches!(setup.fail(&source), HubError::GaveUp { .. }));
    assert!(setup.blobs().is_empty() && !setup.snapshot().exists());
    setup.fake.recover();
    assert_eq!(setup.read(&source).unwrap(), expected);
    assert_eq!(setup.fake.sent(), size as u64);
    // A server that sends no parts sends all of it again.
    let setup = Setup::with_shards();
    setup.fake.fail("0.parquet", Fault::Cut, 1);
    setup.fake.fail("0.parquet", Fault::NoRange, 1);
    assert_eq!(setup.read(&source).unwrap(), expected);
    assert_eq!(setup.fake.sent(), (size / 2 + size) as u64);
}

#[test]
fn a_file_that_is_not_what_was_listed_never_becomes_visible() {
    let source = format!("{SOURCE}/data/0.parquet");
    let setup = Setup::with_shards();
    setup.fake.fail("0.parquet", Fault::WrongSize, 1);
    assert!(matches!(setup.fail(&source), HubError::WrongSize { .. }));
    setup.fake.fail("0.parquet", Fault::WrongByte, 1);
    assert!(matches!(setup.fail(&source), HubError::WrongHash { .. }));
    assert!(setup.blobs().is_empty() && !setup.snapshot().exists());
    // Damage in what an earlier process left is repaired.
    setup.fake.fail("0.parquet", Fault::Cut, 1);
    setup.fake.fail("0.parquet", Fault::Status(500, ""), 3);
    setup.fail(&source);
    let folder = setup.settings.cache.join("datasets--some--corpus/blobs");
    let part = fs::read_dir(&folder)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let mut bytes = fs::read(&part).unwrap();
    bytes[10] ^= 1;
    fs::write(&part, bytes).unwrap();
    setup.fake.recover();
    assert_eq!(setup.read(&source).unwrap().documents, 100);
}

#[test]
fn a_damaged_file_in_the_cache_is_refused() {
    for cut in [false, true] {
        let setup = Setup::with_shards();
        let source = format!("{SOURCE}/data/0.parquet");
        setup.read(&source).unwrap();
        let blob = fs::canonicalize(setup.snapshot().join("data/0.parquet")).unwrap();
        let mut bytes = fs::read(&blob).unwrap();
        bytes[10] ^= 1;
        bytes.truncate(bytes.len() - usize::from(cut));
        fs::write(&blob, bytes).unwrap();
        let error = setup.fail(&source);
        assert!(matches!(error, HubError::Corrupt { .. }), "{error}");
        assert!(
            error.to_string().contains(blob.to_str().unwrap()),
            "{error}"
        );
    }
}

#[test]
fn a_body_that_does_not_come_is_given_up_on() {
    let mut setup = Setup::with_shards();
    setup.settings.timeout = Duration::from_millis(60);
    setup.fake.fail("0.parquet", Fault::Hang, usize::MAX);
    let error = setup.fail(&format!("{SOURCE}/data/0.parquet"));
    assert!(
        matches!(error, HubError::GaveUp { attempts: 3, .. }),
        "{error}"
    );
}

#[test]
fn a_request_to_stop_and_a_loader_that_goes_away_end_the_wait() {
    let setup = Setup::with_shards();
    setup.fake.fail("0.parquet", Fault::Hang, usize::MAX);
    let source = format!("{SOURCE}/data/0.parquet");
    let stop = Arc::clone(&setup.stop);
    let start = Instant::now();
    let stopper = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        stop.store(true, Ordering::SeqCst);
    });
    let error = setup.read(&source).unwrap_err();
    assert!(matches!(error, DataError::Interrupted), "{error}");
    stopper.join().unwrap();
    setup.stop.store(false, Ordering::SeqCst);
    let config = DataConfig::new(vec![source]);
    let tokenizer = Arc::new(Tokenizer::open("bytes").unwrap());
    let (rows, hub) = (1, setup.hub());
    let start_at = DataPosition::default();
    let loader = DataLoader::open(
        &over(&config, &hub),
        Split::Train,
        rows,
        tokenizer,
        &start_at,
    )
    .unwrap();
    let seen = setup.fake.seen("0.parquet").len();
    while setup.fake.seen("0.parquet").len() == seen && seen < 2 {
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(loader);
    // Far below the 20 seconds that a read may take.
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn without_the_hub_the_cache_is_enough_or_the_missing_file_is_named() {
    let mut setup = Setup::with_shards();
    let source = format!("{SOURCE}/data/*.parquet");
    let expected = setup.read(&source).unwrap();
    setup.settings.offline = true;
    setup.fake.clear_log();
    assert_eq!(setup.read(&source).unwrap(), expected);
    let pinned = format!("{SOURCE}@{FIRST_COMMIT}/data/1.parquet");
    assert_eq!(setup.read(&pinned).unwrap().documents, 100);
    let events = setup.events.lock().unwrap().clone();
    assert!(
        events
            .iter()
            .any(|e| matches!(e, HubEvent::OfflineGlob { files: 3, .. }))
    );
    let error = setup.fail("hf://datasets/other/corpus/*.parquet");
    let text = error.to_string();
    assert!(matches!(error, HubError::Offline { .. }), "{text}");
    assert!(
        text.contains("datasets--other--corpus") && text.contains("HF_HUB_OFFLINE"),
        "{text}"
    );
    let link = setup.snapshot().join("data/1.parquet");
    fs::remove_file(fs::canonicalize(&link).unwrap()).unwrap();
    assert!(matches!(
        setup.read(&pinned),
        Err(DataError::NoMatch { .. })
    ));
    assert!(setup.fake.seen("/").is_empty());
}

#[test]
fn a_pinned_source_stays_where_it_is_when_the_branch_moves() {
    let setup = Setup::with_shards();
    let source = format!("{SOURCE}/data/*.parquet");
    let pinned = setup.hub().pin(&source, &[]).unwrap();
    assert_eq!(pinned, format!("{SOURCE}@{FIRST_COMMIT}/data/*.parquet"));
    let expected = setup.read(&pinned).unwrap();
    let second = "f".repeat(40);
    setup.fake.commit(&second);
    setup.fake.add(
        &format!("{REPO}/data/9.parquet"),
        &shards(setup.folder.path())[0],
    );
    assert_eq!(setup.read(&source).unwrap().documents, 100);
    assert_eq!(setup.read(&pinned).unwrap(), expected);
    let pin = |known: &[String]| setup.hub().pin(&source, known).unwrap();
    assert_eq!(pin(&[]), format!("{SOURCE}@{second}/data/*.parquet"));
    assert_eq!(pin(std::slice::from_ref(&pinned)), pinned);
    assert_eq!(pin(&["data/*.parquet".to_owned()]), pin(&[]));
    assert_eq!(
        setup.hub().pin("data/*.parquet", &[]).unwrap(),
        "data/*.parquet"
    );
}

#[test]
fn used_shards_make_room_for_the_next_ones() {
    let setup = Setup::with_shards();
    let size = shards(setup.folder.path())
        .iter()
        .map(Vec::len)
        .max()
        .unwrap();
    let config = DataConfig {
        cache_limit_gb: Some(2.2 * size as f64 / 1e9),
        ..DataConfig::new(vec![format!("{SOURCE}/data/*.parquet")])
    };
    let hub = setup.hub();
    assert_eq!(read(&config, &hub).unwrap(), expected_shards());
    assert_eq!(setup.blobs().len(), 2);
    assert!(!setup.snapshot().join("data/0.parquet").exists());
    // What was there before the run stays.
    let setup = Setup::with_shards();
    setup.read(&format!("{SOURCE}/data/0.parquet")).unwrap();
    assert_eq!(read(&config, &setup.hub()).unwrap(), expected_shards());
    assert!(setup.snapshot().join("data/0.parquet").exists());
}

#[test]
fn the_next_shard_comes_while_one_is_read() {
    let setup = Setup::with_shards();
    setup.fake.fail("1.parquet", Fault::Hang, 1);
    let config = DataConfig::new(vec![format!("{SOURCE}/data/*.parquet")]);
    let tokenizer = Arc::new(Tokenizer::open("bytes").unwrap());
    let (start, hub) = (DataPosition::default(), setup.hub());
    let mut loader =
        DataLoader::open(&over(&config, &hub), Split::Train, 1, tokenizer, &start).unwrap();
    assert!(
        loader.next_batch().unwrap().is_some(),
        "shard 0 is readable"
    );
    let deadline = Instant::now() + Duration::from_secs(10);
    while setup.fake.seen("1.parquet").is_empty() {
        assert!(Instant::now() < deadline, "shard 1 was not asked for");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A file whose other column is much larger than its text.
fn wide_shard(path: &Path) -> Vec<u8> {
    let noise = |row: u64| -> Vec<u8> {
        let mut state = row + 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        };
        (0..20_000).map(|_| next()).collect()
    };
    let rows: Vec<_> = (0..40).map(|row| Some(noise(row))).collect();
    let wide = ParquetFile {
        schema: "OPTIONAL BYTE_ARRAY pixels; OPTIONAL BYTE_ARRAY text (UTF8);",
        rows_per_group: 10,
        ..ParquetFile::default()
    };
    wide.write_columns(path, &[rows, texts_as_bytes(40)]);
    fs::read(path).unwrap()
}

fn texts_as_bytes(count: u64) -> Vec<Option<Vec<u8>>> {
    let texts = texts(0, count).into_iter();
    texts.map(|text| text.map(String::into_bytes)).collect()
}

#[test]
fn without_room_only_the_text_column_is_fetched_and_nothing_is_kept() {
    let setup = Setup::new();
    let bytes = wide_shard(&setup.folder.path().join("wide.parquet"));
    let lines = gzip(&json_lines(&texts(500, 200)));
    setup.fake.add(&format!("{REPO}/wide.parquet"), &bytes);
    setup.fake.add(&format!("{REPO}/z.json.gz"), &lines);
    let config = |name: &str| DataConfig {
        cache_limit_gb: Some(0.0),
        ..DataConfig::new(vec![format!("{SOURCE}/{name}")])
    };
    let found = read(&config("wide.parquet"), &setup.hub()).unwrap();
    assert_eq!(found, expected(&[("wide.parquet", &bytes)]));
    let (sent, size) = (setup.fake.sent(), bytes.len() as u64);
    assert!(sent < size / 5, "{sent} of {size} bytes");
    let both = read(&config("*"), &setup.hub()).unwrap();
    assert_eq!(
        both,
        expected(&[("wide.parquet", &bytes), ("z.json.gz", &lines)])
    );
    assert!(setup.blobs().is_empty() && !setup.snapshot().exists());
    // From the middle of the file on, as after a resume.
    setup.fake.fail("wide.parquet", Fault::Cut, 1);
    setup.fake.fail("wide.parquet", Fault::Status(500, ""), 1);
    assert_eq!(read(&config("wide.parquet"), &setup.hub()).unwrap(), found);
    setup.fake.fail("wide.parquet", Fault::NoRange, 1);
    let error = read(&config("wide.parquet"), &setup.hub()).unwrap_err();
    assert!(error.to_string().contains("cache_limit_gb"), "{error}");
    // What is in the cache is read from there.
    setup.read(&format!("{SOURCE}/wide.parquet")).unwrap();
    setup.fake.clear_log();
    assert_eq!(read(&config("wide.parquet"), &setup.hub()).unwrap(), found);
    assert_eq!(setup.fake.sent(), 0);
}

#[test]
fn a_check_reads_everything_and_reports_bad_files_but_not_a_bad_network() {
    let setup = Setup::with_shards();
    setup.fake.add(
        &format!("{REPO}/data/bad.parquet"),
        b"<html>no parquet at all</html>",
    );
    let sources = [format!("{SOURCE}/data/*.parquet")];
    let reports = check_files(&sources, "text", None, &setup.hub()).unwrap();
    let documents: Vec<u64> = reports.iter().map(|report| report.documents).collect();
    assert_eq!(documents, [100, 100, 100, 0]);
    assert!(reports[..3].iter().all(|report| report.error.is_none()));
    let error = reports[3].error.as_deref().unwrap();
    assert!(
        error.contains("bad.parquet: not a parquet file: it is an HTML page"),
        "{error}"
    );
    setup
        .fake
        .fail("2.parquet", Fault::Status(500, ""), usize::MAX);
    let failed = check_files(&sources, "text", None, &setup.hub());
    assert!(matches!(failed, Err(DataError::Hub(_))), "{failed:?}");
}

#[test]
fn a_tokenizer_comes_with_the_files_that_belong_to_it() {
    let mut setup = Setup::new();
    let vocabulary = serde_json::json!({ "a": 0, "b": 1, "<end>": 2 });
    let model = serde_json::json!({ "type": "BPE", "vocab": vocabulary, "merges": [] });
    let file = serde_json::json!({ "model": model }).to_string();
    setup.fake.add("some/model/tokenizer.json", file.as_bytes());
    setup.fake.add(
        "some/model/tokenizer_config.json",
        br#"{"eos_token": "<end>"}"#,
    );
    setup.fake.add("some/model/model.safetensors", &[0; 1000]);
    for offline in [false, true] {
        setup.settings.offline = offline;
        let tokenizer = Tokenizer::fetch("hf://some/model", &setup.hub()).unwrap();
        assert_eq!((tokenizer.vocab_size(), tokenizer.eos_id()), (3, Some(2)));
        assert_eq!(tokenizer.encode("ab").unwrap(), [0, 1]);
        let path = tokenizer.file().unwrap().to_str().unwrap();
        assert!(
            path.contains("models--some--model") && path.ends_with("tokenizer.json"),
            "{path}"
        );
    }
    assert!(setup.fake.seen("model.safetensors").is_empty());
    setup.settings.offline = false;
    setup.fake.add("some/weights/model.safetensors", &[0; 1000]);
    let error = Tokenizer::fetch("hf://some/weights", &setup.hub())
        .err()
        .unwrap();
    assert!(error.to_string().contains("tokenizer.json"), "{error}");
}

#[test]
fn files_of_other_servers_are_read_and_kept_too() {
    let mut setup = Setup::with_shards();
    let web = setup.fake.with_storage();
    let url = format!(
        "{}/{REPO}/resolve/{FIRST_COMMIT}/data/0.parquet?key=secret",
        web.url
    );
    let expected = setup.read(&url).unwrap();
    assert_eq!(expected.documents, 100);
    assert!(
        web.seen("/")
            .iter()
            .all(|seen| seen.authorization.is_none())
    );
    setup.settings.offline = true;
    web.clear_log();
    assert_eq!(setup.read(&url).unwrap(), expected);
    assert!(web.seen("/").is_empty());
    let blobs = fs::read_dir(setup.settings.url_cache.join("blobs")).unwrap();
    for entry in blobs {
        let path = entry.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        if bytes.starts_with(b"PAR1") {
            bytes[20] ^= 1;
            fs::write(&path, bytes).unwrap();
        }
    }
    let error = setup.fail(&url);
    assert!(matches!(error, HubError::Corrupt { .. }), "{error}");
    assert!(!error.to_string().contains("secret"), "{error}");
    setup.settings.offline = false;
    let error = setup.fail("http://example.com/a.parquet");
    assert!(error.to_string().contains("https://"), "{error}");
}

#[test]
fn a_listing_cannot_name_files_outside_of_the_cache() {
    let setup = Setup::new();
    setup
        .fake
        .add(&format!("{REPO}/data/../../../../x.parquet"), b"x");
    let error = setup.fail(&format!("{SOURCE}/data/**/*.parquet"));
    assert!(matches!(error, HubError::BadReply { .. }), "{error}");
    let setup = Setup::new();
    setup
        .fake
        .add_named(&format!("{REPO}/a.parquet"), b"x", "../../escape");
    let error = setup.fail(&format!("{SOURCE}/*.parquet"));
    assert!(matches!(error, HubError::BadReply { .. }), "{error}");
}

#[test]
fn settings_that_make_no_sense_are_told_when_they_are_needed() {
    let wrong = || HubError::BadSetting {
        name: "HF_ENDPOINT",
        reason: "is wrong".to_owned(),
    };
    let hub = Hub::new(Err(wrong()), Box::new(|| false), Box::new(drop));
    let local = DataConfig::new(vec!["builtin:synthetic".to_owned()]);
    let tokenizer = Arc::new(Tokenizer::open("bytes").unwrap());
    let start = DataPosition::default();
    assert!(
        DataLoader::open(&over(&local, &hub), Split::Validation, 1, tokenizer, &start).is_err()
    );
    assert_eq!(hub.pin(SOURCE, &[]).unwrap_err(), wrong());
    let mut setup = Setup::with_shards();
    let path = setup.folder.path().join("certificates.pem");
    fs::write(&path, "none").unwrap();
    setup.settings.certificates = Some(path);
    let error = setup.fail(&format!("{SOURCE}/data")).to_string();
    assert!(error.contains("SSL_CERT_FILE"), "{error}");
}
