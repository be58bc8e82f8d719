//! `cache gc` with whatever may be wrong around it: launchers that were
//! killed, clocks, other versions' files.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use serde_json::Value;
use smolcellar_store::fsio;
use smolcellar_tests::cellar::ran;
use smolcellar_tests::lab::{Known, Lab};
use smolcellar_tests::launches::{signal, wait_for};
use smolcellar_tests::needs::{Need, have};

const ALL: [&str; 6] = ["cache", "gc", "--all", "--yes", "--format", "json"];

/// A launch of a machine `m` that lasts for as long as there is the machine.
fn launch(lab: &Lab, known: &Known) -> Child {
    let machine = lab.machine("m").display().to_string();
    let work = format!("while [ -d {machine} ]; do sleep 0.05; done");
    let words = ["launch", &known.agent, "--yes", "--name", "m", "--", "sh", "-c", &work];
    let child = lab.command(words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for("launch", || lab.checks().contains_key("exec").then_some(()));
    child
}

/// The artifacts that are kept, by their recipes, and why.
fn kept(collected: &Value) -> Vec<String> {
    let kept = collected["kept"].as_array().unwrap().iter();
    kept.map(|kept| format!("{}: {}", kept["recipe"].as_str().unwrap(), kept["roots"][0]["kind"])).collect()
}

#[test]
fn a_collector_waits_for_no_launch_and_leaves_it_its_artifact() {
    let lab = Lab::new();
    let (used, other) = (lab.agent("used", 9000), lab.agent("other", 9000));
    let mut launch = launch(&lab, &used);
    let collected = lab.json(ALL[..4].iter().copied());
    assert!(launch.try_wait().unwrap().is_none(), "it waited for the launch to end");
    assert!(used.is_whole() && !other.path.exists(), "{collected}");
    assert!(kept(&collected)[0].ends_with("\"leased\""), "{collected}");
    signal(&launch, "-INT");
    assert_eq!(launch.wait().unwrap().code(), Some(130));
    lab.ok(ALL);
    assert!(!used.path.exists());
    lab.assert_clean();
}

#[test]
fn what_a_killed_launcher_left_keeps_its_artifact_until_the_machine_is_gone() {
    let lab = Lab::new();
    let known = lab.agent("a", 9000);
    let mut launch = launch(&lab, &known);
    launch.kill().unwrap();
    launch.wait().unwrap();
    let held = |state: &str| {
        let collected = lab.json(ALL[..4].iter().copied());
        assert!(known.is_whole() && kept(&collected).len() == 1, "{state}: {collected}");
        assert_eq!((lab.machines(), lab.leases()), (vec!["m".into()], vec!["m.json".into()]), "{state}");
    };
    held("running");
    let pid = lab.pid("m").unwrap();
    assert!(Command::new("kill").args(["-KILL", &pid]).status().unwrap().success());
    // Stopped, it may be started again.
    held("stopped");
    // By another than us: nothing but asking smolvm can tell.
    fs::remove_dir_all(lab.machine("m")).unwrap();
    lab.ok(ALL);
    assert!(!known.path.exists());
    lab.assert_clean();
}

/// What must stay, whatever the clocks say, and what need not.
struct Held {
    stays: Vec<Known>,
    goes: Known,
    _in_use: fs::File,
}

fn held(lab: &Lab) -> Held {
    let [leased, pinned, in_use] = ["leased", "pinned", "used"].map(|name| lab.agent(name, 9000));
    lab.ok(["launch", "leased", "--yes", "--detach", "--name", "kept", "--", "true"]);
    lab.ok(["cache", "pin", &pinned.key]);
    let lock = lab.cellar.cache().join(format!("locks/use-{}", in_use.lock_name()));
    let lock = fs::File::open(lock).unwrap();
    lock.lock_shared().unwrap();
    Held { stays: vec![leased, pinned, in_use], goes: lab.agent("free", 9000), _in_use: lock }
}

/// Sets the times of last use, and of the last collection.
fn set_times(lab: &Lab, time: SystemTime) {
    let mut paths = lab.cellar.stored();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "stat"));
    paths.push(lab.cellar.cache().join("last-gc"));
    for path in paths {
        fs::File::open(path).unwrap().set_modified(time).unwrap();
    }
}

const YEARS: Duration = Duration::from_secs(10 * 365 * 86_400);

#[test]
fn ten_years_to_and_fro_on_any_clock_change_nothing_that_is_held() {
    if !have(&[Need::Program("faketime")]) {
        return;
    }
    let lab = Lab::new();
    let held = held(&lab);
    let now = SystemTime::now();
    for time in [now - YEARS, now, now + YEARS] {
        for clock in ["-10y", "+0", "+10y"] {
            let age = ["cache", "gc", "--max-age", "1d", "--keep-last", "0", "--yes"];
            let last = ["cache", "gc", "--all", "--keep-last", "1", "--yes"];
            for (words, last_stays) in [(&ALL[..], false), (&age[..], false), (&last[..], true)] {
                lab.ok(["build-agent", "--archive", &held.goes.archive]);
                set_times(&lab, time);
                let mut command = lab.under(&["faketime", "-f", clock], words.iter().copied());
                // Files keep the times that they have.
                let ran = ran(command.env("NO_FAKE_STAT", "1").output().unwrap());
                let which = format!("{words:?}, used {time:?}, clock {clock}: {ran:?}");
                assert_eq!(ran.code, 0, "{which}");
                for known in &held.stays {
                    assert!(known.is_whole(), "{}: {which}", known.agent);
                }
                assert!(!last_stays || held.goes.is_whole(), "{which}");
                assert!(words != ALL || !held.goes.path.exists(), "{which}");
                // It went by that clock, or all of this proved nothing.
                if *words == age && time == now {
                    assert_eq!(held.goes.path.exists(), clock != "+10y", "{which}");
                }
            }
        }
    }
    lab.ok(["rm", "--force", "kept"]);
    lab.assert_clean();
}

#[test]
fn a_last_collection_in_the_future_does_not_put_off_the_next() {
    let lab = Lab::new();
    lab.agent("a", 9000);
    let last = lab.cellar.cache().join("last-gc");
    let day = Duration::from_secs(86_400);
    set_times(&lab, SystemTime::now() + YEARS);
    lab.agent("b", 9000);
    assert!(fs::metadata(&last).unwrap().modified().unwrap() < SystemTime::now() + day);
}

/// Every file, with all that a change would change.
fn state(dir: &Path) -> Vec<(PathBuf, u64, i64, u64)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let (path, metadata) = (entry.path(), entry.metadata().unwrap());
        if metadata.is_dir() {
            found.extend(state(&path));
        }
        found.push((path, metadata.ino(), metadata.mtime(), metadata.size()));
    }
    found.sort();
    found
}

#[test]
fn a_store_of_a_newer_version_is_refused_by_every_command_and_stays_as_it_is() {
    let lab = Lab::new();
    let known = lab.agent("a", 9000);
    let scratch = lab.cellar.path("");
    let format = lab.cellar.cache().join("format.json");
    fsio::write_sealed(&scratch, &format, &serde_json::json!({ "schema": 99 })).unwrap();
    let before = state(&lab.cellar.cache());
    let file = lab.cellar.path("export").display().to_string();
    for words in [
        &ALL[..],
        &["build-agent", "--archive", &known.archive],
        &["launch", "a", "--yes", "--", "true"],
        &["cache", "ls"],
        &["cache", "du"],
        &["cache", "verify"],
        &["cache", "pin", &known.key],
        &["cache", "unpin", &known.key],
        &["cache", "rm", &known.key],
        &["cache", "export", &known.key, "-o", &file],
        &["ps"],
    ] {
        let ran = lab.run(words.iter().copied());
        assert!(ran.code != 0 && ran.stderr.contains("has format 99"), "{words:?}: {ran:?}");
        assert!(ran.stderr.contains("update smolcellar"), "{words:?}: {ran:?}");
    }
    assert_eq!(state(&lab.cellar.cache()), before);
    assert!(!Path::new(&file).exists());
}

#[test]
fn a_newer_versions_receipt_keeps_its_artifact_and_every_blob() {
    let lab = Lab::new();
    let (known, free) = (lab.agent("newer", 9000), lab.agent("free", 9000));
    let scratch = lab.cellar.path("");
    let newer = serde_json::json!({ "schema": 99, "what": "nobody knows" });
    fsio::write_sealed(&scratch, &known.path.with_extension("json"), &newer).unwrap();
    let image = known.key.split('/').next().unwrap();
    let receipt = lab.cellar.cache().join("images-v1").join(image).join("tarball.json");
    fsio::write_sealed(&scratch, &receipt, &newer).unwrap();
    let blobs = || state(&lab.cellar.cache().join("blobs-v1"));
    let (before, image) = (blobs(), state(receipt.parent().unwrap()));
    let ran = lab.ok(ALL);
    assert!(ran.stderr.contains("newer smolcellar") && !free.path.exists(), "{ran:?}");
    assert_eq!((blobs(), state(receipt.parent().unwrap())), (before, image));
    assert!(known.is_whole());
    let refused = lab.run(["build-agent", "--archive", &known.archive]);
    assert!(refused.code == 1 && refused.stderr.contains("update smolcellar"), "{refused:?}");
    assert!(known.is_whole());
}

#[test]
fn folders_of_other_versions_are_left_alone_and_shown_by_du() {
    let lab = Lab::new();
    let known = lab.agent("a", 9000);
    let cache = lab.cellar.cache();
    let others = ["blobs-v0", "blobs-v2", "machines-v0", "images-v2"].map(|name| cache.join(name));
    for folder in &others {
        let inner = folder.join("sha256/ab");
        fs::create_dir_all(&inner).unwrap();
        fs::write(inner.join("ab".repeat(32)), vec![1; 10_000]).unwrap();
        // As in this version nothing would trust it.
        fs::write(folder.join(format!("{}.smolmachine", "cd".repeat(32))), "x").unwrap();
    }
    let before: Vec<_> = others.iter().map(|folder| state(folder)).collect();
    lab.ok(["cache", "pin", &known.key]);
    lab.ok(ALL);
    lab.ok(["cache", "unpin", &known.key]);
    lab.ok(ALL);
    lab.ok(["build-agent", "--archive", &known.archive]);
    lab.ok(["cache", "verify"]);
    assert_eq!(others.iter().map(|folder| state(folder)).collect::<Vec<_>>(), before);
    let usage = lab.json(["cache", "du"]);
    let strange = usage["buckets"].as_array().unwrap().iter();
    let strange = strange.filter(|bucket| bucket["purpose"] == "not of this version; left alone");
    let names: Vec<_> = strange.map(|bucket| bucket["folder"].as_str().unwrap()).collect();
    assert_eq!(names, ["blobs-v0", "blobs-v2", "images-v2", "machines-v0"], "{usage}");
    let shown = lab.ok(["cache", "du"]).stdout;
    assert!(names.iter().all(|name| shown.contains(name)), "{shown}");
}

#[test]
fn the_stand_in_notices_an_artifact_that_a_machine_loses() {
    let lab = Lab::new();
    let known = lab.agent("a", 9000);
    let mut launch = launch(&lab, &known);
    fs::remove_file(&known.path).unwrap();
    wait_for("complaint", || {
        lab.note("lost").contains(&format!("running m {}", known.path.display())).then_some(())
    });
    signal(&launch, "-INT");
    assert_eq!(launch.wait().unwrap().code(), Some(130));
}
