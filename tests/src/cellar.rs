//! A project folder and a cache folder of a test's own, and the real program
//! run on them.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// Where a test works.
#[derive(Debug)]
pub struct Cellar {
    dir: TempDir,
}

/// What a run left.
#[derive(Debug)]
pub struct Ran {
    /// The exit code; 128 + n for a signal.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Cellar {
    /// An empty project and no cache yet.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("project")).unwrap();
        Self { dir }
    }

    /// The project folder.
    pub fn project(&self) -> PathBuf {
        self.dir.path().join("project")
    }

    /// The cache folder.
    pub fn cache(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    /// Beside both.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file of the project, and its folders.
    pub fn write(&self, path: &str, text: &str) {
        let path = self.project().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    /// The program with these arguments, ready to run.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(program());
        command
            .args(args)
            .current_dir(self.project())
            .env("SMOLCELLAR_CACHE_DIR", self.cache())
            .env("SMOLCELLAR_SMOLVM_DIR", runtime())
            .env_remove("SMOLCELLAR_FORMAT")
            .stdin(Stdio::null());
        command
    }

    /// Runs the program.
    pub fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Ran {
        ran(self.command(args).output().unwrap())
    }

    /// Runs the program, which must succeed, and parses what it prints.
    pub fn json<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Value {
        let mut command = self.command(args);
        let ran = ran(command.args(["--format", "json"]).output().unwrap());
        assert_eq!(ran.code, 0, "{ran:?}");
        serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"))
    }

    /// Runs the program, which must fail with `code`; what it complains.
    pub fn fails<S: AsRef<OsStr>>(&self, code: i32, args: impl IntoIterator<Item = S>) -> String {
        let ran = self.run(args);
        assert_eq!(ran.code, code, "{ran:?}");
        assert!(ran.stderr.contains("error: "), "{ran:?}");
        ran.stderr
    }

    /// Every artifact, receipt and blob in the cache, and temporary files.
    pub fn stored(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for folder in ["machines-v1", "images-v1", "blobs-v1", "tmp", "trash", "pointers-v1"] {
            files(&self.cache().join(folder), &mut found);
        }
        found.sort();
        found
    }

    /// Asserts what must hold after any trouble: `cache verify` is clean and
    /// no temporary file is left once a build has run.
    pub fn assert_sound(&self) {
        let verify = self.run(["cache", "verify"]);
        assert_eq!(verify.code, 0, "{verify:?}");
        let litter: Vec<_> =
            self.stored().into_iter().filter(|p| p.starts_with(self.cache().join("tmp"))).collect();
        assert_eq!(litter, Vec::<PathBuf>::new());
    }
}

impl Default for Cellar {
    fn default() -> Self {
        Self::new()
    }
}

/// A finished process, understood.
pub fn ran(output: Output) -> Ran {
    use std::os::unix::process::ExitStatusExt;
    Ran {
        code: output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0)),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// The statuses of the stages in a result.
pub fn statuses(result: &Value) -> Vec<String> {
    let stages = result["stages"].as_array().unwrap();
    stages
        .iter()
        .map(|s| format!("{}:{}", s["name"].as_str().unwrap(), s["status"].as_str().unwrap()))
        .collect()
}

/// What every stage of a result says when nothing had to be done.
pub const ALL_HIT: [&str; 4] = ["image:hit", "tarball:hit", "registry:hit", "smolmachine:hit"];

/// The program under test: what `cargo xtask test` runs as, else the one of
/// the same build.
pub fn program() -> PathBuf {
    if let Some(path) = std::env::var_os("SMOLCELLAR_TEST_PROGRAM") {
        return path.into();
    }
    let me = std::env::current_exe().unwrap();
    let path = me.ancestors().nth(2).unwrap().join("xtask");
    assert!(
        path.is_file(),
        "run `cargo xtask test`, or `cargo build --release` first: there is no {}",
        path.display()
    );
    path
}

/// The smolvm runtime that `cargo xtask test` installed.
pub fn runtime() -> PathBuf {
    let cache = match std::env::var_os("SMOLCELLAR_TEST_RUNTIMES") {
        Some(cache) => PathBuf::from(cache),
        None => {
            let dir = Command::new(program()).args(["cache", "dir"]).output().unwrap();
            PathBuf::from(String::from_utf8(dir.stdout).unwrap().trim_end())
        }
    };
    let runtimes = std::fs::read_dir(cache.join("runtimes-v1")).into_iter().flatten().flatten();
    let found = runtimes.map(|entry| entry.path()).find(|path| path.join("runtime.json").is_file());
    found.unwrap_or_else(|| {
        panic!("there is no smolvm runtime in {}: run `cargo xtask setup`", cache.display())
    })
}

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        match entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            true => files(&path, found),
            false => found.push(path),
        }
    }
}
