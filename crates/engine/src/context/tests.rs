//! Listings and their differences, against real folders and a model.
#![expect(clippy::disallowed_methods, reason = "tests write files")]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use proptest::prelude::*;
use smolcellar_store::Digest;
use smolcellar_store::fsio::{read_sealed, write_sealed};
use tempfile::TempDir;

use super::hash::hash_file;
use super::walk::list_at;
use super::*;

/// Later than any file here is old: everything may be trusted.
const LATER: i128 = i64::MAX as i128;

fn context(files: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "Dockerfile", "FROM scratch\n");
    files.iter().for_each(|(path, text)| put(dir.path(), path, text));
    dir
}

fn put(dir: &Path, path: &str, text: &str) {
    let path = dir.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn spec(dir: &Path) -> ContextSpec<'_> {
    ContextSpec { context: dir, dockerfile: None, builder: Builder::Classic, count_limit: 1000 }
}

fn all(spec: &ContextSpec<'_>, previous: Option<&ContextListing>, now: i128) -> (ContextListing, usize) {
    match list_at(spec, previous, now).unwrap() {
        Listed::All { listing, hashed } => (listing, hashed),
        Listed::TooMany { count_limit } => panic!("more than {count_limit}"),
    }
}

fn listing(dir: &Path) -> ContextListing {
    all(&spec(dir), None, LATER).0
}

fn paths(listing: &ContextListing) -> Vec<String> {
    listing.files.keys().map(ToString::to_string).collect()
}

#[test]
fn a_listing_has_kinds_modes_sizes_and_digests_and_follows_no_link() {
    let dir = context(&[("d/a", "text")]);
    symlink("..", dir.path().join("d/up")).unwrap();
    symlink("nowhere", dir.path().join("dangling")).unwrap();
    fs::set_permissions(dir.path().join("d/a"), fs::Permissions::from_mode(0o4711)).unwrap();
    fs::set_permissions(dir.path().join("d"), fs::Permissions::from_mode(0o1700)).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
    let listing = listing(dir.path());
    assert_eq!(paths(&listing), ["Dockerfile", "d", "d/a", "d/up", "dangling"]);
    let get = |path: &str| listing.files[&ContextPath::new(path)].clone();
    let (folder, file, link) = (get("d"), get("d/a"), get("d/up"));
    assert_eq!((folder.kind, folder.mode, folder.digest), (FileKind::Folder, 0o1700, None));
    assert_eq!((file.kind, file.mode, file.size), (FileKind::File, 0o4711, 4));
    assert_eq!(file.digest, Some(Digest::of(b"text")));
    assert_eq!((link.kind, link.mode, link.digest), (FileKind::Link, 0, Some(Digest::of(b".."))));
    assert_eq!(listing.dockerfile.digest, Digest::of(b"FROM scratch\n"));
    assert!(listing.dockerfile.path.ends_with("/Dockerfile"));
}

#[test]
fn the_dockerfile_is_recorded_even_if_excluded_and_listed_only_if_not() {
    for builder in [Builder::Classic, Builder::BuildKit] {
        let dir = context(&[(".dockerignore", "*\n!a"), ("a", ""), ("b", "")]);
        let (listing, _) = all(&ContextSpec { builder, ..spec(dir.path()) }, None, LATER);
        assert_eq!(paths(&listing), ["a"], "{builder:?}");
        assert_eq!(listing.dockerfile.digest, Digest::of(b"FROM scratch\n"));
        assert_eq!(listing.ignore.unwrap().digest, Digest::of(b"*\n!a"));
    }
}

#[test]
fn only_buildkit_prefers_the_ignore_file_beside_the_dockerfile() {
    let dir = context(&[(".dockerignore", "a"), ("Dockerfile.dockerignore", "b"), ("a", ""), ("b", "")]);
    let with = |builder| paths(&all(&ContextSpec { builder, ..spec(dir.path()) }, None, LATER).0).join(" ");
    assert_eq!(with(Builder::Classic), ".dockerignore Dockerfile Dockerfile.dockerignore b");
    assert_eq!(with(Builder::BuildKit), ".dockerignore Dockerfile Dockerfile.dockerignore a");
}

#[test]
fn an_excluded_folder_without_exceptions_is_not_walked() {
    let dir = context(&[(".dockerignore", "node_modules\n!src"), ("src/y", "")]);
    // Deeper than a path can be: nobody can walk it, the superuser neither.
    let long = ["x".repeat(250).as_str(); 12].join("/");
    let (one, two) = (dir.path().join("node_modules").join(&long), dir.path().join("moved"));
    fs::create_dir_all(&one).unwrap();
    fs::create_dir_all(two.join(&long)).unwrap();
    fs::rename(&two, one.join("moved")).unwrap();
    assert_eq!(paths(&listing(dir.path())), [".dockerignore", "Dockerfile", "src", "src/y"]);
    put(dir.path(), ".dockerignore", "node_modules\n!node_modules/**/y");
    let error = list_at(&ContextSpec { builder: Builder::BuildKit, ..spec(dir.path()) }, None, LATER);
    assert!(matches!(error, Err(ContextError::Io { .. })), "{error:?}");
}

#[test]
fn what_is_missing_or_no_file_is_named() {
    let dir = context(&[]);
    let gone = dir.path().join("gone");
    let error = list(&ContextSpec { context: &gone, ..spec(dir.path()) }, None).unwrap_err();
    assert!(
        error.to_string().starts_with("cannot examine ") && error.to_string().contains("/gone"),
        "{error}"
    );
    fs::create_dir(dir.path().join(".dockerignore")).unwrap();
    let error = list(&spec(dir.path()), None).unwrap_err();
    assert!(error.to_string().ends_with("/.dockerignore is not a file; correct it"), "{error}");
}

#[test]
fn folders_may_be_nested_deeper_than_files_may_be_open() {
    let dir = context(&[]);
    fs::create_dir_all(dir.path().join(["d"; 1500].join("/"))).unwrap();
    let found = list_at(&ContextSpec { count_limit: 2000, ..spec(dir.path()) }, None, LATER).unwrap();
    assert!(matches!(found, Listed::All { listing, .. } if listing.files.len() == 1501));
}

#[test]
fn names_that_are_not_utf_8_are_listed_apart_and_kept_when_stored() {
    let dir = context(&[]);
    for name in [&b"a\xff"[..], b"a\xfe", b"a\\xff", b"new\nline"] {
        fs::write(dir.path().join(OsStr::from_bytes(name)), name).unwrap();
    }
    let listing = listing(dir.path());
    assert_eq!(paths(&listing), ["Dockerfile", r"a\\xff", r"a\xfe", r"a\xff", r"new\x0aline"]);
    let stored = dir.path().join("listing.json");
    write_sealed(dir.path(), &stored, &listing).unwrap();
    assert_eq!(read_sealed::<ContextListing>(&stored, 1).unwrap(), Some(listing));
}

#[test]
fn fifty_thousand_files_fit_a_sealed_file() {
    let dir = context(&[("a", "")]);
    let mut listing = listing(dir.path());
    let file = listing.files[&ContextPath::new("a")].clone();
    for n in 0..50_000 {
        let path = format!("crates/a-crate-{}/src/a_folder/some_file_{n}.rs", n % 100);
        listing.files.insert(ContextPath::new(path), file.clone());
    }
    let stored = dir.path().join("listing.json");
    write_sealed(dir.path(), &stored, &listing).unwrap();
    let size = stored.metadata().unwrap().len();
    assert!(size < 9 << 20, "{size} bytes");
    assert_eq!(read_sealed::<ContextListing>(&stored, 1).unwrap(), Some(listing));
}

#[test]
fn more_than_the_limit_is_said_instead_of_listed() {
    let dir = context(&[("a", ""), ("b", ""), ("d/c", "")]);
    let limited =
        |count_limit| list_at(&ContextSpec { count_limit, ..spec(dir.path()) }, None, LATER).unwrap();
    assert_eq!(limited(4), Listed::TooMany { count_limit: 4 });
    assert!(matches!(limited(5), Listed::All { .. }));
}

#[test]
fn only_files_that_look_otherwise_are_read_again() {
    let dir = context(&[("a", "one"), ("b", "two")]);
    let (first, hashed) = all(&spec(dir.path()), None, LATER);
    assert_eq!(hashed, 3);
    let (second, hashed) = all(&spec(dir.path()), Some(&first), LATER);
    assert_eq!((hashed, &second), (0, &first));
    // The same size and modification time: the time of change tells.
    let times = fs::metadata(dir.path().join("a")).unwrap().modified().unwrap();
    let file = fs::OpenOptions::new().write(true).open(dir.path().join("a")).unwrap();
    std::io::Write::write_all(&mut &file, b"eno").unwrap();
    file.set_modified(times).unwrap();
    drop(file);
    let (third, hashed) = all(&spec(dir.path()), Some(&first), LATER);
    assert_eq!(hashed, 1);
    assert_eq!(third.files[&ContextPath::new("a")].digest, Some(Digest::of(b"eno")));
    assert_ne!(third.fingerprint(), first.fingerprint());
}

#[test]
fn files_too_young_for_their_times_to_tell_are_read_again() {
    let dir = context(&[("a", "one")]);
    let old = listing(dir.path());
    let stat = old.files[&ContextPath::new("a")].stat.unwrap();
    let (young, _) = all(&spec(dir.path()), None, stat.ctime + 1_000_000_000);
    assert_eq!(young.files[&ContextPath::new("a")].stat, None);
    assert_eq!(all(&spec(dir.path()), Some(&young), LATER).1, 2);
    assert_eq!(young.fingerprint(), old.fingerprint(), "times are not in it");
}

#[test]
fn a_file_that_changes_while_it_is_read_is_read_again_and_then_refused() {
    let dir = context(&[("a", "one")]);
    let path = dir.path().join("a");
    let mut times = 0;
    let hashed = hash_file(&path, &mut [0; 2], &mut || {
        times += 1;
        if times == 1 {
            fs::write(&path, "longer").unwrap();
        }
    });
    assert_eq!((hashed.unwrap().digest, times), (Digest::of(b"longer"), 2));
    let mut text = String::new();
    let error = hash_file(&path, &mut [0; 2], &mut || {
        text.push('x');
        fs::write(&path, &text).unwrap();
    });
    assert!(matches!(error, Err(ContextError::Unsteady { .. })), "{error:?}");
    let error = hash_file(&path, &mut [0; 2], &mut || fs::remove_file(&path).unwrap()).unwrap_err();
    assert!(error.to_string().contains("/a of the build context changed while"), "{error}");
    symlink("Dockerfile", &path).unwrap();
    assert!(matches!(hash_file(&path, &mut [0; 2], &mut || {}), Err(ContextError::Unsteady { .. })));
}

#[test]
fn a_difference_is_told_in_as_many_lines_as_asked_for() {
    let dir = context(&[("a", "1"), ("b", "1"), ("c", "1"), ("d/e", "1")]);
    let old = listing(dir.path());
    put(dir.path(), "a", "2");
    fs::set_permissions(dir.path().join("b"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::remove_file(dir.path().join("c")).unwrap();
    fs::remove_dir_all(dir.path().join("d")).unwrap();
    put(dir.path(), "d", "");
    put(dir.path(), "f", "");
    let diff = ContextDiff::between(&old, &listing(dir.path()));
    assert_eq!(diff.counts(), "3 changed, 1 added, 2 removed");
    let lines = ["a (contents)", "b (mode)", "d (kind, mode)", "f (added)", "c (removed)", "d/e (removed)"];
    assert_eq!(diff.lines(6), lines);
    assert_eq!(diff.lines(3), ["a (contents)", "b (mode)", "… and 4 more"]);
    assert_eq!(diff.lines(0), [""; 0]);
    assert_eq!(diff.summary(2), "3 changed, 1 added, 2 removed: a (contents), … and 5 more");
    put(dir.path(), "Dockerfile", "FROM other\n");
    let diff = ContextDiff::between(&old, &listing(dir.path()));
    assert!(diff.summary(1).starts_with("Dockerfile changed, 4 changed, 1 added"), "{}", diff.summary(1));
    assert_eq!(ContextDiff::between(&old, &old).summary(3), "nothing changed");
}

/// Files by name: contents and mode.
type Model = BTreeMap<String, (u8, bool)>;

fn any_model() -> impl Strategy<Value = Model> {
    prop::collection::btree_map("[ab](/[cd]){0,2}", (0..3u8, any::<bool>()), 0..6).prop_map(|mut model| {
        // A name is a file or a folder.
        let all: Vec<String> = model.keys().cloned().collect();
        model.retain(|path, _| !all.iter().any(|other| other.starts_with(&format!("{path}/"))));
        model
    })
}

fn write(model: &Model) -> TempDir {
    let dir = context(&[]);
    for (path, (contents, executable)) in model {
        put(dir.path(), path, &"x".repeat(usize::from(*contents)));
        let mode = if *executable { 0o755 } else { 0o644 };
        fs::set_permissions(dir.path().join(path), fs::Permissions::from_mode(mode)).unwrap();
    }
    dir
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    #[test]
    fn listings_and_differences_agree_with_a_model(old in any_model(), new in any_model(), exclude in "[abc]") {
        let (one, two) = (write(&old), write(&new));
        for dir in [&one, &two] {
            put(dir.path(), ".dockerignore", &format!("{exclude}\n.dockerignore"));
        }
        let first = listing(one.path());
        let (second, _) = all(&spec(two.path()), Some(&first), LATER);
        let diff = ContextDiff::between(&first, &second);
        let names = |model: &Model| -> Vec<String> {
            let seen = |path: &&String| path.split('/').next() != Some(exclude.as_str());
            model.keys().filter(seen).cloned().collect()
        };
        let listed = |listing: &ContextListing| -> Vec<String> {
            let files = listing.files.iter().filter(|(_, file)| file.kind == FileKind::File);
            files.map(|(path, _)| path.to_string()).filter(|path| path != "Dockerfile").collect()
        };
        prop_assert_eq!(listed(&first), names(&old));
        prop_assert_eq!(listed(&second), names(&new));
        for name in names(&new) {
            let path = ContextPath::new(name.clone());
            let change = diff.changed.iter().find(|(changed, _)| *changed == path).map(|(_, change)| *change);
            match old.get(&name) {
                Some(before) => {
                    prop_assert_eq!(change.is_some(), *before != new[&name] );
                    let change = change.unwrap_or_default();
                    prop_assert_eq!(change.contents, before.0 != new[&name].0);
                    prop_assert_eq!(change.mode, before.1 != new[&name].1);
                }
                // A folder may have been there.
                None => prop_assert!(diff.added.contains(&path) || change.is_some_and(|change| change.kind)),
            }
        }
        prop_assert_eq!(diff.is_empty(), first.fingerprint() == second.fingerprint());
        let back = ContextDiff::between(&second, &first);
        prop_assert_eq!((&back.added, &back.removed), (&diff.removed, &diff.added));
    }
}
