//! The copies that the real smolvm makes of artifacts. Making machines needs
//! no virtualisation; starting them is what does.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use smolcellar_run::{Cancel, Limits};
use smolcellar_smolvm::{Cli, CreateRequest, Extraction, RuntimeConfig, find};
use smolcellar_store::{OpenOptions, Quiet, Store};
use smolcellar_tests::archives::{docker_save, file, tar};
use smolcellar_tests::cellar::{Cellar, runtime};

const SOON: Limits<'static> = Limits::within(Duration::from_secs(60));

/// A store with artifacts in it, and a smolvm with a home of its own.
struct Lab {
    cellar: Cellar,
    smolvm: Cli,
}

/// An artifact: its file, the SHA-256 of it, the CRC-32 in its footer.
struct Built {
    path: PathBuf,
    sha256: String,
    checksum: u32,
}

impl Lab {
    fn new() -> Self {
        let cellar = Cellar::new();
        let store = Store::open(&cellar.cache(), OpenOptions::default()).unwrap();
        let config = RuntimeConfig { dir: Some(runtime()) };
        let found = find(&store, &Quiet, &config).unwrap().unwrap();
        let smolvm = Cli::new(&found).unwrap().with_data_dir(&cellar.path("smolvm"));
        Self { cellar, smolvm }
    }

    fn build(&self, content: &[u8]) -> Built {
        let archive = self.cellar.path("image.tar");
        std::fs::write(&archive, tar(&docker_save(&[tar(&[file("agent", content)])]))).unwrap();
        let built = self.cellar.json(["build-agent", "--archive", archive.to_str().unwrap()]);
        let path = PathBuf::from(built["artifact"].as_str().unwrap());
        let checksum = smolcellar_pack::read(&path).unwrap().footer.checksum;
        Built { path, sha256: built["sha256"].as_str().unwrap().into(), checksum }
    }

    fn create(&self, name: &str, artifact: &Built) {
        self.smolvm.create(&request(name, &artifact.path), SOON).unwrap();
    }

    fn copies(&self) -> Vec<Extraction> {
        self.smolvm.extractions().unwrap().list().unwrap()
    }

    fn of(&self, artifact: &Built) -> Option<Extraction> {
        self.smolvm.extractions().unwrap().of(artifact.checksum).unwrap()
    }

    fn du(&self) -> Command {
        let mut du = self.cellar.command(["cache", "du"]);
        du.env("SMOLVM_DATA_DIR", self.cellar.path("smolvm"));
        du
    }

    fn du_json(&self) -> Value {
        let output = self.du().args(["--format", "json"]).output().unwrap();
        let usage: Value = serde_json::from_slice(&output.stdout).unwrap();
        usage["smolvm_extractions"].clone()
    }
}

fn request(name: &str, artifact: &Path) -> CreateRequest {
    CreateRequest { name: name.into(), artifact: artifact.to_owned(), ..CreateRequest::default() }
}

#[test]
fn a_copy_outlasts_its_machine_is_shown_and_is_pruned_once_nothing_uses_it() {
    let lab = Lab::new();
    let artifact = lab.build(b"one");
    assert_eq!(lab.du_json()["allocated"], 0);
    let human = |lab: &Lab| String::from_utf8(lab.du().output().unwrap().stdout).unwrap();
    assert!(!human(&lab).contains("smolvm extractions"));

    lab.create("m1", &artifact);
    let copy = lab.of(&artifact).unwrap();
    assert_eq!(format!("{}", copy.artifact.unwrap()), artifact.sha256);
    assert!(copy.complete && copy.machines == ["m1"], "{copy:?}");
    assert_eq!(lab.copies(), std::slice::from_ref(&copy));
    let shown = lab.du_json();
    assert_eq!(shown["allocated"], copy.allocated);
    assert_eq!(shown["copies"][0]["artifact"], artifact.sha256);
    assert_eq!(shown["copies"][0]["machines"][0], "m1");
    let text = human(&lab);
    assert!(
        text.contains("smolvm extractions") && text.contains(shown["folder"].as_str().unwrap()),
        "{text}"
    );

    // Nothing is run for what is in use; and smolvm itself would spare it,
    // which is seen as it prunes another.
    let pruned = lab.smolvm.prune_extractions(|_| true, SOON).unwrap();
    assert_eq!((pruned.gone, pruned.kept), (vec![], vec![copy.clone()]));
    let other = lab.build(b"two");
    lab.smolvm.extract(&request("ahead", &other.path), other.checksum, SOON).unwrap().unwrap();
    let pruned = lab.smolvm.prune_extractions(|_| true, SOON).unwrap();
    assert!(pruned.gone.len() == 1 && pruned.gone[0].checksum == other.checksum, "{pruned:?}");
    assert!(lab.of(&other).is_none() && lab.of(&artifact).is_some());

    lab.smolvm.delete("m1", SOON).unwrap();
    assert_eq!(lab.of(&artifact).unwrap().machines, [""; 0]);
    let pruned = lab.smolvm.prune_extractions(|_| true, SOON).unwrap();
    assert!(pruned.gone.len() == 1 && pruned.kept.is_empty(), "{pruned:?}");
    assert_eq!(lab.copies(), []);
    let left: Vec<_> = std::fs::read_dir(copy.path.parent().unwrap()).unwrap().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn one_wanted_copy_goes_with_older_ones_and_without_newer_ones() {
    let lab = Lab::new();
    let built: Vec<Built> = [&b"1"[..], b"2", b"3"].iter().map(|content| lab.build(content)).collect();
    let extract = |one: &Built| {
        lab.smolvm.extract(&request("ahead", &one.path), one.checksum, SOON).unwrap().unwrap();
    };
    built.iter().for_each(extract);
    // A use of the oldest makes it the newest.
    extract(&built[0]);
    assert!(lab.smolvm.list(SOON).unwrap().is_empty(), "making one ahead leaves no machine");
    let pruned = lab.smolvm.prune_extractions(|one| one.checksum == built[2].checksum, SOON).unwrap();
    let gone: Vec<u32> = pruned.gone.iter().map(|one| one.checksum).collect();
    assert!(gone.contains(&built[1].checksum) && gone.contains(&built[2].checksum), "{pruned:?}");
    assert!(gone.len() == 2 && pruned.kept.is_empty() && lab.of(&built[0]).is_some(), "{pruned:?}");
}

#[test]
fn a_name_that_is_taken_keeps_its_machine_and_an_interrupted_one_leaves_none() {
    struct Now;
    impl Cancel for Now {
        fn cancelled(&self) -> bool {
            true
        }
    }
    let lab = Lab::new();
    let [mine, other] = [b"1", b"2"].map(|content| lab.build(content));
    lab.create("m1", &mine);
    let taken = lab.smolvm.extract(&request("m1", &other.path), other.checksum, SOON);
    assert!(taken.unwrap_err().to_string().contains("already exists"));
    assert_eq!(lab.smolvm.list(SOON).unwrap()[0].name, "m1");
    let cancelled = Limits { timeout: None, cancel: &Now };
    assert!(lab.smolvm.extract(&request("m2", &other.path), other.checksum, cancelled).is_err());
    let machines = lab.smolvm.list(SOON).unwrap();
    assert!(machines.len() == 1 && machines[0].name == "m1", "{machines:?}");
}

#[test]
fn du_does_not_fail_for_a_runtime_that_is_none() {
    let lab = Lab::new();
    let empty = lab.cellar.path("empty");
    std::fs::create_dir(&empty).unwrap();
    let du = lab.du().args(["--format", "json"]).env("SMOLCELLAR_SMOLVM_DIR", &empty).output().unwrap();
    let usage: Value = serde_json::from_slice(&du.stdout).unwrap();
    assert!(du.status.success() && usage["smolvm_extractions"].is_null() && usage["buckets"].is_array());
}
