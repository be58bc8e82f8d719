//! Collections that fail on their way, and stores that cannot be written.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use smolcellar_tests::cellar::{Ran, program, ran};
use smolcellar_tests::lab::{Known, Lab};
use smolcellar_tests::needs::{Need, have};

#[test]
fn a_collection_with_a_fault_anywhere_leaves_the_store_whole_and_the_next_one_finishes() {
    if !have(&[Need::Program("strace")]) {
        return;
    }
    let lab = Lab::new();
    let agents: Vec<Known> = ["pinned", "a", "b"].iter().map(|name| lab.agent(name, 9000)).collect();
    let pinned = &agents[0];
    lab.ok(["cache", "pin", &pinned.key]);
    let (mut failed, mut left) = (0, 0);
    for fault in [
        "rename,renameat,renameat2:error=ENOSPC",
        "rename,renameat,renameat2:error=EIO",
        "rename,renameat,renameat2:signal=KILL",
        "unlink,unlinkat,rmdir:error=EIO",
        "unlink,unlinkat,rmdir:signal=KILL",
        "mkdir,mkdirat:error=ENOSPC",
        "getdents64:error=EIO",
        "flock:error=ENOLCK",
        "fsync:error=EIO",
    ] {
        for nth in [1, 2, 3, 5, 8, 13] {
            for known in &agents {
                lab.ok(["build-agent", "--archive", &known.archive]);
            }
            let trace = format!("trace={}", fault.split(':').next().unwrap());
            let inject = format!("inject={fault}:when={nth}");
            let strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject];
            let broken = ran(lab.under(&strace, ["cache", "gc", "--all", "--yes"]).output().unwrap());
            let which = format!("{fault} {nth}: {broken:?}");
            // Some faults are of no consequence: what is in the trash can wait.
            if broken.code == 1 {
                assert!(broken.stderr.contains("cannot "), "{which}");
            } else {
                assert!(broken.code == 0 || broken.code == 137, "{which}");
            }
            failed += usize::from(broken.code != 0);
            left += usize::from(agents[1..].iter().any(|known| known.path.exists()));
            assert!(pinned.is_whole(), "{which}");
            lab.cellar.assert_sound();
            lab.ok(["cache", "gc", "--all", "--yes"]);
            assert!(pinned.is_whole() && !agents[1..].iter().any(|known| known.path.exists()), "{which}");
            let mut stored = lab.cellar.stored();
            stored.retain(|path| !path.starts_with(lab.cellar.cache().join("pointers-v1")));
            assert_eq!(stored.len(), 3, "{which}: {stored:?}");
        }
    }
    assert!(failed > 20 && left > 5, "{failed} collections failed, {left} had something left");
}

/// What a store that cannot be written must do.
fn assert_serves(lab: &Lab, known: &Known, miss: &str, run: impl Fn(&[&str]) -> Ran) {
    let before = state(&lab.cellar.cache());
    let ok = |words: &[&str]| {
        let ran = run(words);
        assert_eq!(ran.code, 0, "{words:?}: {ran:?}");
        ran.stdout
    };
    assert!(ok(&["build-agent", "--archive", &known.archive]).contains("4 hits, 0 misses"));
    assert!(ok(&["cache", "ls"]).contains(&known.key[..12]));
    assert!(ok(&["cache", "du"]).contains("machines-v1"));
    assert!(ok(&["cache", "verify"]).contains("all is well"));
    assert!(ok(&["cache", "gc", "--all", "--dry-run"]).contains("artifact "));
    ok(&["cache", "gc", "--roots"]);
    let export = lab.cellar.path("out/export").display().to_string();
    ok(&["cache", "export", &known.key, "-o", &export]);
    let place = lab.cellar.cache().display().to_string();
    for words in [
        &["build-agent", "--archive", miss][..],
        &["cache", "gc", "--all", "--yes"],
        &["cache", "pin", &known.key],
        &["cache", "rm", &known.key],
    ] {
        let ran = run(words);
        let clear = ran.stderr.contains("cannot ") && ran.stderr.contains(&place);
        assert!(ran.code == 1 && clear && ran.stderr.contains("writable"), "{words:?}: {ran:?}");
    }
    assert_eq!(state(&lab.cellar.cache()), before);
    assert!(known.is_whole());
}

/// Every file, its last change and its size.
fn state(dir: &Path) -> Vec<(PathBuf, i64, u64)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let (path, metadata) = (entry.path(), entry.metadata().unwrap());
        if metadata.is_dir() {
            found.extend(state(&path));
        }
        found.push((path, metadata.ctime(), metadata.size()));
    }
    found.sort();
    found
}

fn shared(lab: &Lab) -> (Known, String) {
    let known = lab.agent("a", 9000);
    let out = lab.cellar.path("out");
    fs::create_dir(&out).unwrap();
    fs::set_permissions(&out, fs::Permissions::from_mode(0o777)).unwrap();
    (known, lab.archive("miss", 9000))
}

#[test]
fn a_store_on_a_read_only_file_system_serves_hits_and_says_why_it_takes_nothing() {
    if !have(&[Need::Root, Need::Program("unshare"), Need::Program("mount")]) {
        return;
    }
    let lab = Lab::new();
    let (known, miss) = shared(&lab);
    let mount = "mount --bind \"$0\" \"$0\" && mount -o remount,bind,ro \"$0\" && exec \"$@\"";
    let cache = lab.cellar.cache().display().to_string();
    let wrapper = ["unshare", "--mount", "sh", "-c", mount, &cache];
    assert_serves(&lab, &known, &miss, |words| {
        ran(lab.under(&wrapper, words.iter().copied()).output().unwrap())
    });
}

/// Nobody in particular.
const OTHER: u32 = 65_534;

/// The program as another user, who can reach all of it.
fn as_another(lab: &Lab) -> impl Fn(&[&str]) -> Ran {
    let copy = lab.cellar.path("bin/program");
    fs::copy(program(), &copy).unwrap();
    fs::set_permissions(lab.cellar.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    move |words| {
        let like = lab.command(words.iter().copied());
        let mut command = Command::new("setpriv");
        command.args([format!("--reuid={OTHER}"), format!("--regid={OTHER}"), "--clear-groups".into()]);
        command.arg(&copy).args(words).stdin(Stdio::null()).current_dir(lab.cellar.project());
        for (name, value) in like.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        ran(command.output().unwrap())
    }
}

#[test]
fn another_users_store_is_refused_and_ones_own_without_write_permission_serves_hits() {
    if !have(&[Need::Root, Need::Program("setpriv")]) {
        return;
    }
    let lab = Lab::new();
    let (known, miss) = shared(&lab);
    let run = as_another(&lab);
    let before = state(&lab.cellar.cache());
    for words in
        [&["cache", "ls"][..], &["cache", "gc", "--all", "--yes"], &["build-agent", "--archive", &miss]]
    {
        let refused = run(words);
        let clear = refused.stderr.contains("belongs to user 0") && refused.stderr.contains("--cache-dir");
        assert!(refused.code == 1 && clear, "{words:?}: {refused:?}");
    }
    assert_eq!(state(&lab.cellar.cache()), before);
    give_away(&lab.cellar.cache());
    assert_serves(&lab, &known, &miss, run);
}

/// Gives a folder to the other user, and takes the permission to write to it.
fn give_away(path: &Path) {
    let metadata = fs::symlink_metadata(path).unwrap();
    if metadata.is_dir() {
        fs::read_dir(path).unwrap().for_each(|entry| give_away(&entry.unwrap().path()));
    }
    chown(path, Some(OTHER), Some(OTHER)).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(metadata.mode() & 0o555)).unwrap();
}
