//! The binary and a hub on the loopback interface.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../../lpr-data/tests/data/fake_hub.rs"]
mod fake_hub;
mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use fake_hub::{FIRST_COMMIT, FakeHub, Fault};
use support::{Setup, Variant, lpr_train, text};

const SECRET: &str = "hf_abcdefghijklmnopqrstuvwxyz";
const SOURCE: &str = "hf://datasets/some/corpus";
const VARIANT: Variant = Variant {
    router: "softmax_topk",
    packing: "packed",
    accumulation: 1,
};

/// A corpus on disk and the same on a hub.
struct OnHub {
    setup: Setup,
    hub: FakeHub,
}

impl OnHub {
    fn new() -> Self {
        let setup = Setup::new(VARIANT);
        let hub = FakeHub::new();
        for name in ["shard-0.jsonl", "shard-1.jsonl"] {
            let bytes = fs::read(setup.folder.path().join(name)).unwrap();
            hub.add(&format!("datasets/some/corpus/{name}"), &bytes);
        }
        Self { setup, hub }
    }

    /// A config whose data is on the hub.
    fn config(&self, name: &str) -> String {
        let path = self.setup.config(name);
        let local = self.setup.folder.path().display().to_string();
        let sources = |line: &str| {
            let is_source = line.starts_with("train = ") || line.starts_with("validation = ");
            let line = if is_source {
                line.replace(&local, SOURCE)
            } else {
                line.to_owned()
            };
            line + "\n"
        };
        let text: String = fs::read_to_string(&path)
            .unwrap()
            .lines()
            .map(sources)
            .collect();
        fs::write(&path, text).unwrap();
        path
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = lpr_train();
        for name in [
            "HF_HUB_CACHE",
            "HF_HUB_OFFLINE",
            "HF_TOKEN_PATH",
            "HF_HUB_DOWNLOAD_TIMEOUT",
            "HF_HUB_DISABLE_IMPLICIT_TOKEN",
            "SSL_CERT_FILE",
            "HTTPS_PROXY",
            "https_proxy",
            "HTTP_PROXY",
            "http_proxy",
            "ALL_PROXY",
            "all_proxy",
        ] {
            command.env_remove(name);
        }
        command
            .env("HF_ENDPOINT", &self.hub.url)
            .env("HF_TOKEN", SECRET);
        command.env("HF_HOME", self.setup.folder.path().join("hf"));
        command.args(args);
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn run_well(&self, args: &[&str]) -> Output {
        let output = self.run(args);
        assert!(
            output.status.success(),
            "{args:?}: {}",
            text(&output.stderr)
        );
        output
    }

    /// The token is in no output and in no file of a run.
    fn assert_secret(&self, outputs: &[&Output], run: &str) {
        for output in outputs {
            for bytes in [&output.stdout, &output.stderr] {
                assert!(!text(bytes).contains(SECRET), "{}", text(bytes));
            }
        }
        let folder = self.setup.run_dir(run);
        if folder.exists() {
            assert_without(&folder, SECRET.as_bytes());
        }
    }
}

fn assert_without(folder: &Path, secret: &[u8]) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            assert_without(&path, secret);
        } else {
            let bytes = fs::read(&path).unwrap();
            let found = bytes.windows(secret.len()).any(|window| window == secret);
            assert!(!found, "{}", path.display());
        }
    }
}

#[test]
fn a_run_on_the_hub_is_that_on_disk_and_is_resumed_on_the_same_commit() {
    let all = OnHub::new();
    let local = all.setup.config("local");
    all.run_well(&["--config", &local]);
    let config = all.config("whole");
    let output = all.run_well(&["--config", &config]);
    let names = ["model.safetensors", "optimizer.safetensors"];
    for name in names {
        let file = |run: &str| all.setup.file(run, 40, name);
        assert!(file("local") == file("whole"), "{name}");
    }
    let state = |run: &str| all.setup.state(run, 40)["data"].clone();
    assert_eq!(state("local"), state("whole"));
    assert_eq!(all.setup.metrics("local"), all.setup.metrics("whole"));
    let resolved = all.setup.run_dir("whole").join("config.resolved.toml");
    let resolved = fs::read_to_string(resolved).unwrap();
    assert!(
        resolved.contains(&format!("{SOURCE}@{FIRST_COMMIT}/*.jsonl")),
        "{resolved}"
    );

    // The branch moves on; the run does not.
    all.setup.copy_at("whole", "whole-again", 20);
    all.hub.commit(&"e".repeat(40));
    all.hub.add(
        "datasets/some/corpus/shard-0.jsonl",
        b"{\"text\": \"something else\"}\n",
    );
    let again = all.config("whole-again");
    let resumed = all.run_well(&["--config", &again, "--resume"]);
    assert!(
        text(&resumed.stderr).contains(FIRST_COMMIT),
        "{}",
        text(&resumed.stderr)
    );
    all.setup.assert_same("whole", "whole-again");
    all.assert_secret(&[&output, &resumed], "whole");
    all.assert_secret(&[], "whole-again");
}

#[test]
fn other_commands_read_from_the_hub_too() {
    let all = OnHub::new();
    let config = all.config("run");
    all.run_well(&["--config", &config]);
    let checkpoint = all.setup.run_dir("run").join("checkpoints/step-00000040");
    let checkpoint = checkpoint.to_str().unwrap();
    let eval = |source: &str| {
        let output = all.run_well(&[
            "eval",
            "--checkpoint",
            checkpoint,
            "--data",
            source,
            "--json",
        ]);
        text(&output.stdout)
    };
    let local = all.setup.folder.path().join("shard-0.jsonl");
    assert_eq!(
        eval(&format!("{SOURCE}/shard-0.jsonl")),
        eval(local.to_str().unwrap())
    );
    let source = format!("{SOURCE}/*.jsonl");
    let check = all.run_well(&["data", "check", &source]);
    let table = text(&check.stdout);
    assert_eq!(table.matches("24 documents").count(), 2, "{table}");
    // Without the hub, from the cache.
    all.hub.clear_log();
    let offline = all
        .command(&["data", "check", &source])
        .env("HF_HUB_OFFLINE", "1")
        .output();
    let offline = offline.unwrap();
    assert_eq!(text(&offline.stdout), table, "{}", text(&offline.stderr));
    assert!(all.hub.seen("/").is_empty());
}

#[test]
fn a_hub_that_refuses_ends_the_run_with_3_and_a_remedy() {
    for (part, fault, words) in [
        ("/revision/", Fault::Status(401, ""), "hf auth login"),
        (
            "/resolve/",
            Fault::Status(403, "X-Error-Code: GatedRepo"),
            "accept the conditions",
        ),
        ("/tree/", Fault::Status(404, ""), "not found (404)"),
        (
            "/tree/",
            Fault::Status(500, "Retry-After: 0"),
            "gave up after 8 attempts",
        ),
        ("/resolve/", Fault::WrongByte, "its hash is"),
        ("/resolve/", Fault::Page, "HTML page"),
    ] {
        let all = OnHub::new();
        let config = all.config("run");
        all.hub.fail(part, fault, usize::MAX);
        let output = all.run(&["--config", &config]);
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{fault:?}: {message}");
        assert!(
            message.contains(words) && message.contains(SOURCE),
            "{fault:?}: {message}"
        );
        assert!(!message.contains("panicked"), "{message}");
        all.assert_secret(&[&output], "run");
    }
    let all = OnHub::new();
    let config = all.config("run");
    let output = all
        .command(&["--config", &config])
        .env("HF_HUB_OFFLINE", "1")
        .output()
        .unwrap();
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{message}");
    assert!(
        message.contains("HF_HUB_OFFLINE") && message.contains("hf/hub"),
        "{message}"
    );
}

#[test]
fn addresses_that_name_nothing_are_problems_of_the_config() {
    let all = OnHub::new();
    let config = all.config("run");
    let text_of_config = fs::read_to_string(&config).unwrap();
    let password = text_of_config.replace(
        &format!("validation = [\"{SOURCE}/shard-1.jsonl\"]"),
        "validation = [\"https://user:password@host/x.parquet\"]",
    );
    assert_ne!(password, text_of_config);
    fs::write(&config, password).unwrap();
    let wrong = "data.tokenizer=hf://Qwen";
    let output = all.run(&["--config", &config, "--override", wrong]);
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(
        message.contains("data.tokenizer") && message.contains("data.validation"),
        "{message}"
    );
    assert!(!message.contains("user:password"), "{message}");
    assert!(all.hub.seen("/").is_empty());
}

#[cfg(unix)]
#[test]
fn a_signal_ends_the_wait_for_the_hub() {
    for part in ["/revision/", "shard-1"] {
        let all = OnHub::new();
        let config = all.config("run");
        // A transfer that stands still is repeated for minutes.
        let fault = if part == "/revision/" {
            Fault::Status(503, "Retry-After: 100")
        } else {
            Fault::Hang
        };
        all.hub.fail(part, fault, usize::MAX);
        let mut command = all.command(&["--config", &config]);
        command.args(["--override", "eval.at_start=false"]);
        command
            .env("HF_HUB_DOWNLOAD_TIMEOUT", "100")
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        while all.hub.seen(part).is_empty() {
            std::thread::sleep(Duration::from_millis(5));
        }
        // The training may have reached the shard that does not come, or not.
        std::thread::sleep(Duration::from_millis(300));
        let start = Instant::now();
        let id = child.id().to_string();
        assert!(Command::new("kill").arg(&id).status().unwrap().success());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(75), "{}", text(&output.stderr));
        assert!(
            start.elapsed() < Duration::from_secs(30),
            "{:?}",
            start.elapsed()
        );
    }
}
