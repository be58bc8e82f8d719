use std::time::Duration;

use tempfile::TempDir;

use super::*;

const SHA: &str = "a2bf696fad0eadd3ddf574aed0d24c83873fdf7bca98cc416cdeb0bf875116db";

/// smolvm's cache as it leaves it.
struct Cache(TempDir);

impl Cache {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn at(&self) -> Extractions {
        Extractions::locate(|name| (name == "XDG_CACHE_HOME").then(|| self.0.path().into())).unwrap()
    }

    fn file(&self, path: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join("smolvm/vms").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        smolcellar_store::fsio::write_atomic(self.0.path(), &path, bytes).unwrap();
        path
    }

    fn copy(&self, name: &str) {
        self.file(&format!("_shared/{name}/layers/x"), &[1; 50_000]);
        self.file(&format!("_shared/{name}/.smolvm-extracted"), b"");
        self.file(&format!("_shared/{name}.lock"), b"");
        self.file(&format!("_shared/{name}.artifact-sha256"), format!("{SHA}\n").as_bytes());
    }

    fn machine(&self, id: &str, name: &str, pointer: &str) {
        self.file(&format!("{id}/name"), name.as_bytes());
        self.file(&format!("{id}/.pack-shared"), pointer.as_bytes());
    }
}

type Variables<'a> = &'a [(&'a str, &'a str)];

fn located(variables: Variables<'_>) -> Option<PathBuf> {
    let variable = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| v.into());
    Extractions::locate(variable).map(|found| found.folder())
}

#[test]
fn copies_are_where_the_variables_put_smolvms_cache() {
    let cases: [(Variables<'_>, Option<&str>); 7] = [
        (&[("HOME", "/h")], Some("/h/.cache")),
        (&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")], Some("/x")),
        (&[("HOME", "/h"), ("XDG_CACHE_HOME", "x")], Some("/h/.cache")),
        (&[("HOME", "/h"), ("XDG_CACHE_HOME", "")], Some("/h/.cache")),
        (&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x"), ("SMOLVM_DATA_DIR", "/d")], Some("/d/.cache")),
        (&[("HOME", "/h"), ("SMOLVM_DATA_DIR", "")], None),
        (&[("HOME", "")], None),
    ];
    for (variables, cache) in cases {
        let expected = cache.map(|cache| Path::new(cache).join("smolvm/vms/_shared"));
        assert_eq!(located(variables), expected, "{variables:?}");
    }
}

#[test]
fn no_folder_holds_no_copies() {
    let cache = Cache::new();
    assert_eq!(cache.at().list().unwrap(), []);
    assert_eq!(cache.at().of(7).unwrap(), None);
}

#[test]
fn a_copy_is_listed_with_its_artifact_its_bytes_and_its_machines() {
    let cache = Cache::new();
    cache.copy("081fca57");
    let folder = cache.at().folder();
    let pointer = format!("{}\n", folder.join("081fca57").display());
    cache.machine("ca0df2c95aa144c1", "m1", &pointer);
    cache.machine("00000000000000aa", "", &pointer);
    cache.machine("00000000000000bb", "m3", &format!("{}\n", folder.join("873e7261").display()));
    let all = cache.at().list().unwrap();
    let [one] = &all[..] else { panic!("{all:?}") };
    assert_eq!((one.path.clone(), one.checksum), (folder.join("081fca57"), 0x081f_ca57));
    assert_eq!(one.artifact, Some(Digest::from_hex(SHA).unwrap()));
    assert!(one.complete && (50_000..200_000).contains(&one.allocated), "{one:?}");
    assert_eq!(one.machines, ["00000000000000aa", "m1"]);
    assert_eq!(cache.at().of(0x081f_ca57).unwrap().as_ref(), Some(one));
    assert_eq!(cache.at().of(0x873e_7261).unwrap(), None);
}

#[test]
fn what_a_killed_create_leaves_is_an_incomplete_copy_of_nobody_knows_what() {
    let cache = Cache::new();
    cache.file("_shared/873e7261/agent-rootfs.partial", b"x");
    cache.file("_shared/873e7261.lock", b"");
    let one = cache.at().of(0x873e_7261).unwrap().unwrap();
    assert!(!one.complete && one.artifact.is_none() && one.machines.is_empty(), "{one:?}");
}

#[test]
fn disk_images_made_of_an_artifact_count_with_its_copy() {
    let cache = Cache::new();
    cache.copy("081fca57");
    let alone = cache.at().of(0x081f_ca57).unwrap().unwrap();
    cache.file(&format!("_cow-bases/{SHA}/overlay/base.raw"), &[1; 80_000]);
    let both = cache.at().of(0x081f_ca57).unwrap().unwrap();
    assert!(both.allocated >= alone.allocated + 80_000 && both.used >= alone.used);
}

#[test]
fn what_is_no_copy_is_passed_over() {
    let cache = Cache::new();
    for name in ["873E7261", "873e726", "873e72611", "_shared", "873e726g"] {
        cache.file(&format!("_shared/{name}/x"), b"");
    }
    cache.file("_shared/00000001", b"a file");
    let outside = cache.file("outside/x", b"");
    std::os::unix::fs::symlink(outside.parent().unwrap(), cache.at().folder().join("00000002")).unwrap();
    assert_eq!(cache.at().list().unwrap(), []);
    assert_eq!(cache.at().of(2).unwrap(), None);
}

#[test]
fn pointers_digests_and_names_are_believed_only_if_they_are_such() {
    assert_eq!(pointed(b"/c/_shared/873e7261\n"), Some(0x873e_7261));
    let long = [b"/".repeat(5000), b"873e7261".to_vec()].concat();
    for bad in [&b""[..], b"\n", b"873e7261", b"/c/_shared/", b"/c/_shared/x", b"\xff\0", &long] {
        assert_eq!(pointed(bad), None, "{bad:?}");
    }
    assert_eq!(digest(format!("{SHA}\n").as_bytes()).unwrap().hex(), SHA);
    for bad in ["", "sha256:", &SHA[1..], &SHA.to_uppercase()] {
        assert_eq!(digest(bad.as_bytes()), None, "{bad:?}");
    }
    assert_eq!(machine_name(b"m1"), Some("m1".into()));
    for bad in [&b""[..], b"-f", b"a b", b"\xff", b"\x1b[31m"] {
        assert_eq!(machine_name(bad), None, "{bad:?}");
    }
}

#[test]
fn as_many_are_kept_as_were_used_after_the_newest_wanted_one() {
    let copy = |checksum: u32, seconds, machines: &[&str]| Extraction {
        path: format!("/{checksum:08x}").into(),
        checksum,
        artifact: None,
        allocated: 0,
        complete: true,
        machines: machines.iter().map(ToString::to_string).collect(),
        used: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
    };
    let all = [copy(1, 10, &[]), copy(2, 20, &[]), copy(3, 30, &["m"]), copy(4, 40, &[]), copy(5, 20, &[])];
    let keep = |wanted: &[u32]| keep(&all, |one| wanted.contains(&one.checksum));
    assert_eq!(keep(&[1]), Some(3));
    assert_eq!(keep(&[2]), Some(1), "one used at the same time goes too");
    assert_eq!(keep(&[1, 4]), Some(0));
    assert_eq!(keep(&[1, 3]), Some(3), "what is in use is neither counted nor removed");
    assert_eq!(keep(&[3]), None);
    assert_eq!(keep(&[9]), None);
}
