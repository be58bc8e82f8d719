//! The whole program with a stand-in for smolvm, where no machine can boot.
//! The stand-in holds against every artifact that it is given what that
//! artifact must be, as long as a machine needs it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::archives::{docker_save, file, tar};
use crate::cellar::{Cellar, Ran, program, ran};
use crate::engine::fake_docker;

/// Keeps machines as folders and processes. A machine's process looks at its
/// artifact for as long as it lives; what is not as it was is noted in `lost`.
const STAND_IN: &str = r#"#!/bin/sh
lab=$(dirname "$0")/lab
[ "$1" = machine ] || { echo "smolvm 1.32.2"; exit; }
command=$2; shift 2; [ "$1" != --name ] || shift; name=$1; vm=$lab/vms/$name
show() { p=$(cat "$1/pid" 2>/dev/null); grep -qs ') [^ZX]' "/proc/$p/stat" && s=running || { s=stopped; p=null; }
         n=$(basename "$1")
         printf '{"name":"%s","state":"%s","pid":%s,"labels":{"dev.smolcellar.launch":"%s"}}' "$n" $s "$p" "$n"; }
check() { from=$(cat "$vm/from" 2>/dev/null) || return 0
          set -- $(sha256sum < "$from" 2>/dev/null) none
          grep -qsx "$from $1" "$lab/known" || { [ ! -d "$vm" ] || echo "$stage $name $from $1" >> "$lab/lost"; }
          echo "$stage" >> "$lab/checks"; }
stage=$command
case $command in
    create) while [ "$1" != --from ]; do shift; done; mkdir "$vm" && echo "$2" > "$vm/from" && check ;;
    start) check; stage=running; watch() { while [ -d "$vm" ]; do check; sleep 0.2; done; }
           (trap - TERM; watch) > /dev/null 2>&1 & echo $! > "$vm/pid" ;;
    exec) while [ "$1" != -- ]; do shift; done; shift; echo $$ >> "$vm/execs"
          check; "$@"; code=$?; stage=ended; check; exit $code ;;
    data-dir) echo "$vm" ;;
    status) [ -d "$vm" ] || exit 1; show "$vm" ;;
    ls) printf '['; sep=; for one in "$lab"/vms/*/; do [ -d "$one" ] && { printf '%s' "$sep"; show "${one%/}"; sep=,; }; done; echo ']' ;;
    stop) kill $(cat "$vm/pid" "$vm/execs") 2>/dev/null || true ;;
    delete) check; rm -r "$vm" ;;
esac
"#;

/// A cellar, a small stand-in runtime, and archives.
#[derive(Debug)]
pub struct Lab {
    /// The project and the cache.
    pub cellar: Cellar,
    dir: PathBuf,
}

/// An artifact that an archive becomes.
#[derive(Debug, Clone)]
pub struct Known {
    /// The agent: the archive's name.
    pub agent: String,
    /// What to build it from.
    pub archive: String,
    /// As commands take it: `IMAGE/RECIPE`.
    pub key: String,
    /// Where it is, when it is there.
    pub path: PathBuf,
    /// Its SHA-256 in hex.
    pub sha256: String,
}

impl Known {
    /// Whether it is there and whole.
    pub fn is_whole(&self) -> bool {
        fs::read(&self.path).is_ok_and(|bytes| smolcellar_store::Digest::of(&bytes).hex() == self.sha256)
    }

    /// The name of its locks, leases and pins.
    pub fn lock_name(&self) -> String {
        self.key.replace('/', "-")
    }
}

impl Lab {
    /// With an empty cache. Its agent root filesystem is a few bytes: builds
    /// take milliseconds, and what can happen in a run happens often.
    pub fn new() -> Self {
        let cellar = Cellar::new();
        let dir = cellar.path("smolvm");
        fs::create_dir_all(dir.join("agent-rootfs/sbin")).unwrap();
        fs::create_dir_all(dir.join("lab/vms")).unwrap();
        fs::create_dir(cellar.path("home")).unwrap();
        for name in ["libkrun.so", "libkrunfw.so.5", "libkrun.dylib", "libkrunfw.5.dylib"] {
            fs::write(dir.join(name), name).unwrap();
        }
        fs::write(dir.join("agent-rootfs/sbin/init"), "init").unwrap();
        fs::write(dir.join("smolvm"), STAND_IN).unwrap();
        fs::set_permissions(dir.join("smolvm"), fs::Permissions::from_mode(0o755)).unwrap();
        // Nothing here is about an engine, and asking a real one takes long.
        fake_docker(&cellar.path("bin"), "exit 1");
        Self { cellar, dir }
    }

    /// The program with these arguments, ready to run.
    pub fn command<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Command {
        self.under(&[], words)
    }

    /// The same, run by another program.
    pub fn under<'a>(&self, wrapper: &[&str], words: impl IntoIterator<Item = &'a str>) -> Command {
        let program = program();
        let mut line: Vec<&Path> = wrapper.iter().map(Path::new).collect();
        line.push(&program);
        let mut command = Command::new(line[0]);
        let path = std::env::var("PATH").unwrap_or_default();
        command
            .args(&line[1..])
            .args(words)
            .current_dir(self.cellar.project())
            .stdin(std::process::Stdio::null())
            .env("SMOLCELLAR_CACHE_DIR", self.cellar.cache())
            .env("SMOLCELLAR_SMOLVM_DIR", &self.dir)
            .env("SMOLCELLAR_ASSUME_VIRTUALISATION", "1")
            .env("SMOLCELLAR_ENGINE", self.cellar.path("bin/docker"))
            .env("HOME", self.cellar.path("home"))
            .env("PATH", format!("{}:{path}", self.cellar.path("bin").display()))
            .env_remove("SMOLCELLAR_FORMAT")
            .env_remove("XDG_CACHE_HOME")
            .env_remove("XDG_DATA_HOME");
        command
    }

    /// Runs the program.
    pub fn run<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Ran {
        ran(self.command(words).output().unwrap())
    }

    /// Runs the program, which must succeed.
    pub fn ok<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Ran {
        let ran = self.run(words);
        assert_eq!(ran.code, 0, "{ran:?}");
        ran
    }

    /// Runs the program, which must succeed, and parses what it prints.
    pub fn json<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Value {
        let ran = self.ok(words.into_iter().chain(["--format", "json"]));
        serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"))
    }

    /// Builds an agent of this name from an archive with about so many bytes
    /// that do not compress, and tells the stand-in of it.
    pub fn agent(&self, name: &str, bytes: usize) -> Known {
        let archive = self.archive(name, bytes);
        let built = self.json(["build-agent", "--archive", &archive]);
        let text = |field: &str| built[field].as_str().unwrap().to_owned();
        let hex = |field: &str| text(field).trim_start_matches("sha256:").to_owned();
        let known = Known {
            agent: name.to_owned(),
            archive,
            key: format!("{}/{}", hex("image_id"), hex("recipe")),
            path: text("artifact").into(),
            sha256: hex("sha256"),
        };
        let line = format!("{} {}\n", known.path.display(), known.sha256);
        fs::write(self.dir.join("lab/known"), self.note("known") + &line).unwrap();
        known
    }

    /// An archive whose agent has this name, of noise and of a file that all
    /// have.
    pub fn archive(&self, name: &str, bytes: usize) -> String {
        let seed = name.bytes().fold(7_u64, |seed, byte| seed.wrapping_mul(31) + u64::from(byte));
        let mut random = Random::new(seed);
        let noise: Vec<u8> = (0..bytes.div_ceil(8)).flat_map(|_| random.next().to_le_bytes()).collect();
        let layers = [tar(&[file("shared", &[7; 3000])]), tar(&[file("agent", &noise)])];
        let path = self.cellar.path(&format!("{name}.tar"));
        fs::write(&path, tar(&docker_save(&layers))).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// What the stand-in wrote down.
    pub fn note(&self, name: &str) -> String {
        fs::read_to_string(self.dir.join("lab").join(name)).unwrap_or_default()
    }

    /// How often the stand-in looked at an artifact, by the moment.
    pub fn checks(&self) -> BTreeMap<String, usize> {
        let mut count = BTreeMap::new();
        for stage in self.note("checks").lines() {
            *count.entry(stage.to_owned()).or_insert(0) += 1;
        }
        count
    }

    /// The machines that there are.
    pub fn machines(&self) -> Vec<String> {
        names(&self.dir.join("lab/vms"))
    }

    /// Where the stand-in keeps a machine.
    pub fn machine(&self, name: &str) -> PathBuf {
        self.dir.join("lab/vms").join(name)
    }

    /// The process of a machine that runs.
    pub fn pid(&self, machine: &str) -> Option<String> {
        let text = fs::read_to_string(self.machine(machine).join("pid")).ok()?;
        Some(text.trim().to_owned())
    }

    /// The machines that have a lease.
    pub fn leases(&self) -> Vec<String> {
        names(&self.cellar.cache().join("leases"))
    }

    /// Asserts that no launch is left, and that none ever lost its artifact.
    pub fn assert_clean(&self) {
        assert_eq!(self.note("lost"), "", "artifacts were lost");
        assert_eq!((self.machines(), self.leases()), (Vec::new(), Vec::new()), "launches are left");
        self.cellar.assert_sound();
    }
}

impl Default for Lab {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // A test that failed leaves machines; each ends when its folder is gone.
        let _ = fs::remove_dir_all(self.dir.join("lab/vms"));
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Numbers that no two seeds share, and the same ones each time (xorshift).
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// The next number.
    #[expect(clippy::should_implement_trait, reason = "it never ends, and is no iterator")]
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() >> 16) as usize % end
    }
}
