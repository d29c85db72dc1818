use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::save::{StagedSave, update_latest};
use super::*;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct State {
    step: u64,
    load: f64,
}

fn state(step: u64) -> State {
    State {
        step,
        load: 0.1 * step as f64,
    }
}

fn model_bytes(step: u64) -> Vec<u8> {
    (0..200_u64).map(|i| (i * 31 + step) as u8).collect()
}

fn write_bytes<'a>(bytes: Vec<u8>) -> WriteFile<'a> {
    Box::new(move |out| out.write_all(&bytes))
}

fn files<'a>(step: u64) -> Vec<(&'a str, WriteFile<'a>)> {
    vec![
        ("model.safetensors", write_bytes(model_bytes(step))),
        ("optimizer.safetensors", write_bytes(vec![1, 2, 3])),
    ]
}

fn save_step(folder: &Path, step: u64) -> PathBuf {
    save(folder, step, files(step), &state(step), "hash").expect("saved")
}

/// A folder with checkpoints of steps 10 and 20.
fn two_checkpoints() -> (tempfile::TempDir, PathBuf) {
    let temporary = tempfile::tempdir().expect("temporary folder");
    let folder = temporary.path().join("checkpoints");
    save_step(&folder, 10);
    save_step(&folder, 20);
    (temporary, folder)
}

/// Keeps the newest ones and no others.
fn last(keep_last: usize) -> Retention {
    Retention {
        keep_last,
        keep_every: 0,
        keep_best: 0,
    }
}

/// Prunes; the loss of a checkpoint is in its state.
fn prune_to(folder: &Path, retention: Retention) -> Pruned {
    let loss = |checkpoint: &Checkpoint| checkpoint.state::<State>().ok().map(|s| s.load);
    prune(folder, retention, &loss).expect("pruned")
}

fn newest_step(folder: &Path) -> Option<u64> {
    find_latest(folder)
        .expect("listed")
        .checkpoint
        .map(|checkpoint| checkpoint.step())
}

fn names(folder: &Path) -> Vec<String> {
    let items = fs::read_dir(folder).expect("listed");
    let mut names: Vec<String> = items
        .map(|item| {
            item.expect("entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    names.sort();
    names
}

fn edit_manifest(folder: &Path, edit: impl FnOnce(&mut serde_json::Value)) {
    let path = folder.join(MANIFEST_FILE);
    let mut value = serde_json::from_slice(&fs::read(&path).expect("readable")).expect("json");
    edit(&mut value);
    fs::write(&path, value.to_string()).expect("written");
}

/// The explicit path is refused and the automatic choice falls back to step 10; both texts name
/// what is wrong.
fn assert_refused(folder: &Path, needles: &[&str]) {
    let error = Checkpoint::open(&folder.join("step-00000020"))
        .expect_err("refused")
        .to_string();
    let found = find_latest(folder).expect("listed");
    assert_eq!(
        found.checkpoint.map(|checkpoint| checkpoint.step()),
        Some(10)
    );
    for needle in needles {
        assert!(error.contains(needle), "`{error}` should name `{needle}`");
        assert!(
            found.warnings[0].contains(needle),
            "`{}` should name `{needle}`",
            found.warnings[0]
        );
    }
}

#[test]
fn a_saved_checkpoint_opens_with_its_files_and_state() {
    let (_temporary, folder) = two_checkpoints();
    let found = find_latest(&folder).expect("listed");
    assert_eq!(found.warnings, Vec::<String>::new());
    let checkpoint = found.checkpoint.expect("there are two");
    assert_eq!(checkpoint.step(), 20);
    assert_eq!(checkpoint.path(), folder.join("step-00000020"));
    assert_eq!(checkpoint.manifest().config_hash, "hash");
    assert_eq!(checkpoint.state::<State>().expect("state"), state(20));
    let model = checkpoint.file("model.safetensors").expect("listed");
    assert_eq!(fs::read(model).expect("readable"), model_bytes(20));
    let error = checkpoint.file("router.bin").expect_err("not listed");
    assert!(error.to_string().contains("router.bin"), "{error}");
    assert_eq!(names(&folder), ["latest", "step-00000010", "step-00000020"]);
    assert_eq!(
        fs::read_to_string(folder.join(LATEST_FILE)).expect("readable"),
        "step-00000020\n"
    );
}

#[test]
fn a_folder_that_does_not_exist_holds_no_checkpoint() {
    let temporary = tempfile::tempdir().expect("temporary folder");
    let folder = temporary.path().join("nothing");
    assert_eq!(find_latest(&folder).expect("listed"), Found::default());
    let cleaned = clean_leftovers(&folder).expect("listed");
    assert_eq!(cleaned, Cleaned::default());
    assert_eq!(prune_to(&folder, last(1)), Pruned::default());
}

#[test]
fn one_flipped_byte_in_any_file_is_found_by_its_hash() {
    for name in ["model.safetensors", "optimizer.safetensors", "state.json"] {
        let (_temporary, folder) = two_checkpoints();
        let path = folder.join("step-00000020").join(name);
        let mut bytes = fs::read(&path).expect("readable");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&path, bytes).expect("written");
        assert_refused(&folder, &[name, "SHA-256"]);
    }
}

#[test]
fn a_shorter_empty_or_missing_file_is_named_with_both_sizes() {
    let cases: [(usize, &[&str]); 2] = [(150, &["150 bytes", "200"]), (0, &["0 bytes", "200"])];
    for (length, needles) in cases {
        let (_temporary, folder) = two_checkpoints();
        let path = folder.join("step-00000020/model.safetensors");
        let bytes = fs::read(&path).expect("readable");
        fs::write(&path, &bytes[..length]).expect("written");
        assert_refused(&folder, &[needles, &["model.safetensors"]].concat());
    }
    let (_temporary, folder) = two_checkpoints();
    fs::remove_file(folder.join("step-00000020/model.safetensors")).expect("removed");
    assert_refused(&folder, &["model.safetensors", "missing"]);
}

#[test]
fn a_file_that_the_manifest_does_not_list_is_refused() {
    let (_temporary, folder) = two_checkpoints();
    fs::write(folder.join("step-00000020/extra.bin"), b"x").expect("written");
    assert_refused(&folder, &["extra.bin", "not listed"]);
}

#[test]
fn a_missing_empty_or_garbled_manifest_is_no_checkpoint() {
    for content in [
        None,
        Some(""),
        Some("{\"format_version\": 1, \"step\""),
        Some("[]"),
        Some("{\"format_version\": 1}"),
    ] {
        let (_temporary, folder) = two_checkpoints();
        let path = folder.join("step-00000020").join(MANIFEST_FILE);
        match content {
            Some(text) => fs::write(&path, text).expect("written"),
            None => fs::remove_file(&path).expect("removed"),
        }
        assert_refused(&folder, &[MANIFEST_FILE]);
    }
}

#[test]
fn a_manifest_may_not_name_files_outside_the_folder() {
    for name in ["../latest", "/etc/hostname", "a/b", ".."] {
        let (_temporary, folder) = two_checkpoints();
        edit_manifest(&folder.join("step-00000020"), |manifest| {
            let entry = manifest["files"]["model.safetensors"].clone();
            manifest["files"][name] = entry;
        });
        assert_refused(&folder, &[name, "plain file name"]);
    }
}

#[cfg(unix)]
#[test]
fn a_link_in_place_of_a_file_is_refused() {
    let (temporary, folder) = two_checkpoints();
    let path = folder.join("step-00000020/model.safetensors");
    let elsewhere = temporary.path().join("elsewhere");
    fs::rename(&path, &elsewhere).expect("moved");
    std::os::unix::fs::symlink(&elsewhere, &path).expect("linked");
    assert_refused(&folder, &["model.safetensors", "symbolic link"]);
}

#[test]
fn a_folder_named_for_another_step_is_refused() {
    let (_temporary, folder) = two_checkpoints();
    fs::rename(folder.join("step-00000020"), folder.join("step-00000030")).expect("renamed");
    let error = Checkpoint::open(&folder.join("step-00000030"))
        .expect_err("refused")
        .to_string();
    assert!(error.contains("30") && error.contains("20"), "{error}");
    assert_eq!(newest_step(&folder), Some(10));
}

#[test]
fn a_copy_under_another_name_opens() {
    let (_temporary, folder) = two_checkpoints();
    fs::rename(folder.join("step-00000020"), folder.join("best")).expect("renamed");
    assert_eq!(
        Checkpoint::open(&folder.join("best"))
            .expect("valid")
            .step(),
        20
    );
    assert_eq!(newest_step(&folder), Some(10));
}

#[test]
fn a_newer_format_stops_instead_of_falling_back() {
    let (_temporary, folder) = two_checkpoints();
    edit_manifest(&folder.join("step-00000020"), |manifest| {
        manifest["format_version"] = 2.into();
        manifest["lpr_train_version"] = "9.0.0".into();
        manifest["new_field"] = true.into();
    });
    for error in [
        find_latest(&folder).err(),
        Checkpoint::open(&folder.join("step-00000020")).err(),
    ] {
        let error = error.expect("refused");
        assert!(
            matches!(error, CheckpointError::NewerFormat { found: 2, .. }),
            "{error:?}"
        );
        assert!(error.to_string().contains("9.0.0"), "{error}");
    }
}

#[test]
fn a_wrong_latest_is_a_warning_and_the_folders_decide() {
    for content in [
        None,
        Some("step-00000010\n"),
        Some("../../etc"),
        Some("\u{1b}[31m"),
        Some(""),
    ] {
        let (_temporary, folder) = two_checkpoints();
        let path = folder.join(LATEST_FILE);
        match content {
            Some(text) => fs::write(&path, text).expect("written"),
            None => fs::remove_file(&path).expect("removed"),
        }
        let found = find_latest(&folder).expect("listed");
        assert_eq!(
            found.checkpoint.map(|checkpoint| checkpoint.step()),
            Some(20)
        );
        assert_eq!(found.warnings.len(), 1, "{:?}", found.warnings);
        assert!(
            found.warnings[0].contains("step-00000020"),
            "{:?}",
            found.warnings
        );
        assert!(
            !found.warnings[0].contains('\u{1b}'),
            "control characters are not repeated"
        );
    }
}

/// Stops a save of step 30 after each of its stages, as if the process had been killed there.
#[test]
fn a_crash_between_any_two_stages_leaves_a_complete_checkpoint() {
    for stages in 0..=5 {
        let (_temporary, folder) = two_checkpoints();
        let mut staged = StagedSave::begin(&folder, 30, "hash").expect("begun");
        if stages >= 1 {
            staged
                .write_file("model.safetensors", write_bytes(model_bytes(30)))
                .expect("written");
        }
        if stages >= 2 {
            staged.write_state(&state(30)).expect("written");
        }
        if stages >= 3 {
            staged.write_manifest().expect("written");
        }
        if stages >= 4 {
            staged.publish().expect("published");
        } else {
            std::mem::forget(staged);
        }
        if stages >= 5 {
            update_latest(&folder, 30).expect("updated");
        }
        let want = if stages >= 4 { 30 } else { 20 };
        assert_eq!(
            newest_step(&folder),
            Some(want),
            "killed after stage {stages}"
        );
        let leftovers = clean_leftovers(&folder).expect("cleaned");
        assert_eq!(
            leftovers.removed.len(),
            usize::from(stages < 4),
            "killed after stage {stages}"
        );
        assert!(
            names(&folder).iter().all(|name| !name.starts_with(".tmp-")),
            "{:?}",
            names(&folder)
        );
        save_step(&folder, 30);
        assert_eq!(newest_step(&folder), Some(30));
    }
}

#[test]
fn a_failed_write_removes_the_temporary_folder_and_keeps_the_older_checkpoints() {
    let (_temporary, folder) = two_checkpoints();
    let before = names(&folder);
    let full: WriteFile<'_> = Box::new(|out| {
        out.write_all(b"half")?;
        Err(io::Error::new(io::ErrorKind::StorageFull, "no space left"))
    });
    let files = vec![
        ("model.safetensors", write_bytes(model_bytes(30))),
        ("optimizer.safetensors", full),
    ];
    let error = save(&folder, 30, files, &state(30), "hash").expect_err("fails");
    assert!(
        error.to_string().contains("optimizer.safetensors"),
        "{error}"
    );
    assert_eq!(names(&folder), before);
    assert_eq!(newest_step(&folder), Some(20));
}

#[test]
fn names_of_files_are_plain_unique_and_not_the_manifest() {
    let temporary = tempfile::tempdir().expect("temporary folder");
    for name in ["../x", "", MANIFEST_FILE, STATE_FILE] {
        let files = vec![(name, write_bytes(vec![0]))];
        let error = save(temporary.path(), 1, files, &state(1), "hash").expect_err("refused");
        assert!(
            matches!(error, CheckpointError::BadName { .. }),
            "{name}: {error}"
        );
    }
    assert_eq!(names(temporary.path()), Vec::<String>::new());
}

#[test]
fn saving_a_step_again_replaces_it_unless_it_is_the_same() {
    let (_temporary, folder) = two_checkpoints();
    let path = folder.join("step-00000020");
    fs::write(path.join("model.safetensors"), b"damaged").expect("written");
    save_step(&folder, 20);
    assert_eq!(newest_step(&folder), Some(20));
    let modified = || {
        fs::metadata(path.join(MANIFEST_FILE))
            .and_then(|data| data.modified())
            .expect("time")
    };
    let before = modified();
    save_step(&folder, 20);
    assert_eq!(modified(), before, "an equal checkpoint is kept as it is");
    save(&folder, 20, files(21), &state(20), "hash").expect("saved");
    let checkpoint = Checkpoint::open(&path).expect("valid");
    let model = checkpoint.file("model.safetensors").expect("listed");
    assert_eq!(fs::read(model).expect("readable"), model_bytes(21));
    assert_eq!(names(&folder), ["latest", "step-00000010", "step-00000020"]);
}

#[test]
fn leftovers_of_a_living_process_stay() {
    let temporary = tempfile::tempdir().expect("temporary folder");
    #[cfg(unix)]
    let living = format!(".tmp-{}-step-00000001", std::os::unix::process::parent_id());
    #[cfg(not(unix))]
    let living = ".tmp-x-step-00000001".to_owned();
    fs::create_dir(temporary.path().join(&living)).expect("created");
    fs::write(temporary.path().join(".tmp-4194305-latest"), "x").expect("written");
    fs::write(temporary.path().join(".tmp-notes"), "x").expect("written");
    let cleaned = clean_leftovers(temporary.path()).expect("cleaned");
    assert_eq!(
        cleaned.removed,
        [temporary.path().join(".tmp-4194305-latest")]
    );
    assert_eq!(names(temporary.path()).len(), 2);
}

#[test]
fn pruning_keeps_the_newest_complete_ones() {
    let (_temporary, folder) = two_checkpoints();
    save_step(&folder, 30);
    let pruned = prune_to(&folder, last(2));
    assert_eq!(pruned.removed, [folder.join("step-00000010")]);
    assert_eq!(names(&folder), ["latest", "step-00000020", "step-00000030"]);
}

#[test]
fn pruning_never_removes_the_newest_valid_checkpoint() {
    let (_temporary, folder) = two_checkpoints();
    let newest = save_step(&folder, 30);
    fs::write(newest.join("model.safetensors"), vec![0; 200]).expect("damaged, of the same size");
    let pruned = prune_to(&folder, last(0));
    assert_eq!(pruned.removed, [folder.join("step-00000010")]);
    assert_eq!(newest_step(&folder), Some(20));
    assert_eq!(names(&folder), ["latest", "step-00000020", "step-00000030"]);
}

#[test]
fn each_rule_of_retention_keeps_its_own() {
    // The loss falls with the step, but for a dip at step 30.
    let temporary = tempfile::tempdir().expect("temporary folder");
    let folder = temporary.path().join("checkpoints");
    for step in (10..=100).step_by(10) {
        let load = if step == 30 {
            0.5
        } else {
            20.0 - 0.1 * step as f64
        };
        save(&folder, step, files(step), &State { step, load }, "hash").expect("saved");
    }
    let kept = |retention| {
        let loss = |checkpoint: &Checkpoint| checkpoint.state::<State>().ok().map(|s| s.load);
        let doomed = surplus(&folder, retention, &loss).expect("listed");
        let all = step_folders(&folder).expect("listed").into_iter();
        let all = all.filter(|(_, path)| !doomed.contains(path));
        all.map(|(step, _)| step).collect::<Vec<u64>>()
    };
    let rule = |keep_last, keep_every, keep_best| Retention {
        keep_last,
        keep_every,
        keep_best,
    };
    assert_eq!(kept(rule(2, 0, 0)), [100, 90]);
    assert_eq!(kept(rule(1, 40, 0)), [100, 80, 40]);
    assert_eq!(kept(rule(1, 0, 1)), [100, 30]);
    assert_eq!(kept(rule(1, 0, 2)), [100, 30]);
    assert_eq!(kept(rule(2, 50, 3)), [100, 90, 50, 30]);
}

#[test]
fn what_a_later_version_wrote_is_neither_pruned_nor_replaced() {
    let (_temporary, folder) = two_checkpoints();
    edit_manifest(&folder.join("step-00000010"), |manifest| {
        manifest["format_version"] = 2.into();
    });
    save_step(&folder, 30);
    assert_eq!(
        prune_to(&folder, last(1)).removed,
        [folder.join("step-00000020")]
    );
    let error = save(&folder, 10, files(10), &state(10), "hash").expect_err("refused");
    assert!(
        matches!(error, CheckpointError::NewerFormat { .. }),
        "{error}"
    );
    assert_eq!(names(&folder), ["latest", "step-00000010", "step-00000030"]);
}

#[test]
fn a_format_that_never_was_is_refused() {
    let (_temporary, folder) = two_checkpoints();
    edit_manifest(&folder.join("step-00000020"), |manifest| {
        manifest["format_version"] = 0.into();
    });
    assert_refused(&folder, &[MANIFEST_FILE, "format version"]);
}
