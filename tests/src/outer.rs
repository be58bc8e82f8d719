//! A whole Linux machine in software, for tests that boot real microVMs.
//!
//! Booting a microVM takes KVM, and KVM takes VT-x or AMD-V, which build machines often lack. QEMU emulates a
//! processor *with* AMD-V, so a kernel that runs inside it has a working `/dev/kvm`. [`OuterMachine`] is such
//! a machine: Debian's kernel, busybox, the C library of this host, and the files and the script of one
//! [`Job`]. Nothing of it is shared with the host, and nothing of it is left afterwards.
//!
//! It is slow (every instruction is translated, those of the microVM twice): about ten seconds to the first
//! line of the script, then 15 to 80 seconds for each microVM. Keep a test's microVMs at one CPU and 512 MiB,
//! and its time limit generous.
//!
//! One machine runs at a time per cache folder, whoever asks: two of them on a small host would only make
//! each other miss their time limits.
#![allow(
    clippy::disallowed_methods,
    reason = "runs QEMU and Debian's tools, and its files are a cache that is rebuilt, not data"
)]

mod cpio;
mod folders;
mod kernel;
mod qemu;
mod rootfs;

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Raised when the machine is built differently without any of its ingredients being different.
const RECIPE_VERSION: u32 = 1;

/// How often a job is begun at most, see [`OuterMachine::run`].
const BOOTS: u32 = 3;

/// Every program that is run, with the Debian package that holds it.
const TOOLS: &[(&str, &str)] = &[
    ("apt-cache", "apt"),
    ("apt-get", "apt"),
    ("busybox", "busybox-static"),
    ("cp", "coreutils"),
    ("dpkg-deb", "dpkg"),
    ("mke2fs", "e2fsprogs"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("setpriv", "util-linux"),
    ("xz", "xz-utils"),
    ("zstd", "zstd"),
];

/// The Debian packages that must be installed on the host.
pub fn required_packages() -> &'static [&'static str] {
    &["qemu-system-x86", "busybox-static", "e2fsprogs", "xz-utils", "zstd"]
}

/// The programs of [`required_packages`] and of Debian itself that this host lacks. Empty: the machine can be
/// built and run here.
pub fn missing_tools() -> Vec<&'static str> {
    TOOLS.iter().map(|(program, _)| *program).filter(|program| find_program(program).is_none()).collect()
}

/// A prepared outer machine: a kernel, its first file system and a root folder, ready to boot any number of
/// times.
#[derive(Debug)]
pub struct OuterMachine {
    /// Holds the run folder and the lock under which it is used.
    cache: PathBuf,
    /// Holds `vmlinux`, `initrd` and `root`; never changed once it is there.
    parts: PathBuf,
}

/// What one boot of the machine is for.
///
/// ```no_run
/// # use std::{path::Path, time::Duration};
/// # use smolcellar_tests::outer::{Job, OuterMachine};
/// # fn main() -> anyhow::Result<()> {
/// let machine = OuterMachine::prepare(Path::new("/var/cache/outer"), &|line| println!("{line}"))?;
/// let job = Job::new("cat /input/greeting; cp /input/greeting /out/copy; exit 7")
///     .file("/input/greeting", "greeting.txt");
/// let outcome = machine.run(&job, Duration::from_secs(120), &|line| println!("{line}"))?;
/// assert_eq!(outcome.exit_code, 7);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Job {
    files: Vec<(String, PathBuf)>,
    script: String,
    env: Vec<(String, String)>,
    memory_mib: u32,
    disk_gib: u32,
}

impl Job {
    /// A job that runs `script` with busybox's `sh`, as root, in `/root`.
    pub fn new(script: impl Into<String>) -> Self {
        Self { files: Vec::new(), script: script.into(), env: Vec::new(), memory_mib: 4096, disk_gib: 24 }
    }

    /// Puts a file or a whole folder of the host at the absolute path `guest`. Modes, times, extended
    /// attributes and holes of sparse files are kept, owners too if this process is root; a folder is merged
    /// into one that is already there. A symbolic link given as `host` is followed, links inside a folder are
    /// not.
    pub fn file(mut self, guest: impl Into<String>, host: impl Into<PathBuf>) -> Self {
        self.files.push((guest.into(), host.into()));
        self
    }

    /// Sets a variable in the script's environment.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Gives the machine this much memory instead of 4096 MiB.
    pub fn memory_mib(mut self, mib: u32) -> Self {
        self.memory_mib = mib;
        self
    }

    /// Gives the machine's only disk this logical size instead of 24 GiB. It is sparse: what counts on the
    /// host is what gets written.
    pub fn disk_gib(mut self, gib: u32) -> Self {
        self.disk_gib = gib;
        self
    }
}

/// What a script did. A script that fails is an outcome, not an error.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The script's exit status.
    pub exit_code: i32,
    /// Everything the script and its programs wrote to standard output and standard error. NUL bytes are
    /// lost.
    pub console: String,
    /// The regular files that the script left in `/out`, by their path below it.
    pub out: BTreeMap<String, Vec<u8>>,
}

impl Outcome {
    /// An error with the end of the console in it, unless the script ended with status 0.
    pub fn ok(self) -> Result<Self> {
        if self.exit_code != 0 {
            bail!(
                "the script ended with status {}; its last lines:\n{}",
                self.exit_code,
                tail(&self.console)
            );
        }
        Ok(self)
    }

    /// The text of one file of `/out`.
    pub fn text(&self, name: &str) -> Result<String> {
        let bytes = self.out.get(name).with_context(|| {
            format!("the script left no /out/{name}; its last lines:\n{}", tail(&self.console))
        })?;
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }
}

impl OuterMachine {
    /// Builds the machine below `cache` unless it is already there. Needs the package mirror the first time
    /// (for the kernel, 70 MB); takes a few seconds then and nothing later.
    ///
    /// Any number of processes may call this at once: one builds, the others wait for it. What is there is
    /// complete, and is built anew when the recipe or the host's libraries differ.
    pub fn prepare(cache: &Path, log: &dyn Fn(&str)) -> Result<Self> {
        if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
            bail!("the outer machine copies the programs of an x86-64 Linux host");
        }
        let missing = missing_tools();
        if !missing.is_empty() {
            let mut packages: Vec<_> =
                TOOLS.iter().filter(|tool| missing.contains(&tool.0)).map(|tool| tool.1).collect();
            packages.dedup();
            bail!(
                "programs are missing: {}; on Debian: apt-get install {}",
                missing.join(", "),
                packages.join(" ")
            );
        }
        fs::create_dir_all(cache).with_context(|| format!("cannot create {}", cache.display()))?;
        let cache = fs::canonicalize(cache).with_context(|| format!("cannot resolve {}", cache.display()))?;
        let root = rootfs::Root::of_this_host()?;
        let parts = cache.join(format!("outer-{}", recipe(&root)?));
        let _lock = folders::lock(&cache.join("build.lock"), folders::LOCK_WAIT)?;
        if !parts.is_dir() {
            log("building the outer machine");
            let building = folders::Scratch::fresh(&cache.join("building"))?;
            kernel::fetch(building.path(), log)?;
            root.build(&building.path().join("root"))?;
            building.publish(&parts)?;
        }
        Ok(Self { cache, parts })
    }

    /// Boots, runs the job's script and ends the machine, calling `log` with every line the script writes.
    ///
    /// `timeout` counts from the boot, not from the wait for other machines. An error means that there is no
    /// result: the time was up, QEMU failed, or the machine went down; it carries the last lines of the
    /// script and of the kernel. QEMU and the machine's files are gone when this returns or unwinds; should
    /// this process be killed, QEMU dies with it and the next run removes the files.
    ///
    /// QEMU's emulation of AMD-V is not perfect: rarely the machine's kernel panics, or the whole
    /// machine stands still, while a microVM runs. Then the job is begun again on a new disk, with what is left of the time; `log` is told.
    pub fn run(&self, job: &Job, timeout: Duration, log: &dyn Fn(&str)) -> Result<Outcome> {
        let _lock = folders::lock(&self.cache.join("run.lock"), folders::LOCK_WAIT)?;
        let start = Instant::now();
        let mut attempt = 0;
        loop {
            attempt += 1;
            let folder = folders::Scratch::fresh(&self.cache.join("run"))?;
            let mark = format!("-- outer machine {}-{} --", std::process::id(), nanoseconds());
            rootfs::make_disk(&self.parts.join("root"), job, &mark, folder.path())?;
            let left = timeout.saturating_sub(start.elapsed());
            match qemu::boot(&self.parts, folder.path(), job, &mark, left, log)? {
                qemu::Ending::Result(outcome) => return Ok(outcome),
                qemu::Ending::Panic(report) if attempt == BOOTS => {
                    bail!("the machine's kernel panicked or stood still in each of {BOOTS} boots\n{report}")
                }
                qemu::Ending::Panic(_) => {
                    log("the outer machine's kernel panicked or stood still: booting it again")
                }
            }
        }
    }
}

/// A name for everything that goes into the machine, so that a machine built differently gets another folder.
fn recipe(root: &rootfs::Root) -> Result<String> {
    let mut hash = Sha256::new();
    for part in [RECIPE_VERSION.to_string(), kernel::recipe(), root.recipe()?] {
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    Ok(hex::encode(&hash.finalize()[..8]))
}

/// Different at every call of one process; the process id tells the processes apart.
fn nanoseconds() -> u128 {
    std::time::UNIX_EPOCH.elapsed().map_or(0, |age| age.as_nanos())
}

/// The last lines of a log, for an error.
fn tail(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

/// Where a program is. The folders of the system's programs count too: they are not on every user's path.
fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// A command for one of [`TOOLS`], reading nothing.
fn program(name: &str) -> Result<Command> {
    let file = find_program(name).with_context(|| format!("{name} is not installed"))?;
    let mut command = Command::new(file);
    command.stdin(Stdio::null());
    Ok(command)
}

/// Runs a command to its end and returns what it printed; its errors become ours.
fn output_of(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?} failed ({}):\n{}", output.status, tail(&said));
    }
    Ok(output.stdout)
}
