//! Programs that `test` and `bench` run on this machine.
#![expect(clippy::disallowed_methods, reason = "this module runs programs")]

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use xshell::{Shell, cmd};

/// The folder of the workspace that this program was built from.
pub(crate) fn workspace() -> Result<PathBuf> {
    // crates/cli → the top. Only `test` and `bench` need the sources.
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).map(Path::to_owned);
    match top.filter(|top| top.join("Cargo.toml").is_file()) {
        Some(top) => Ok(top),
        None => bail!("the sources that this program was built from are gone; run it from a checkout"),
    }
}

/// Whether a program is on PATH or where Debian keeps system programs.
pub(crate) fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).any(|dir| dir.join(program).is_file())
}

/// Whether we are root.
pub(crate) fn is_root() -> Result<bool> {
    let shell = Shell::new()?;
    Ok(cmd!(shell, "id -u").quiet().read()? == "0")
}

/// Installs Debian packages, asking nothing.
pub(crate) fn apt_install(packages: &[&str]) -> Result<()> {
    let shell = Shell::new()?;
    shell.set_var("DEBIAN_FRONTEND", "noninteractive");
    cmd!(shell, "apt-get update -qq").quiet().ignore_stdout().run().context("apt-get update failed")?;
    cmd!(shell, "apt-get install -y -qq --no-install-recommends {packages...}")
        .quiet()
        .ignore_stdout()
        .run()
        .with_context(|| format!("apt-get could not install {}", packages.join(" ")))
}

/// Runs cargo in the workspace with its output shown; whether it succeeded.
pub(crate) fn cargo(args: &[&OsStr], env: &[(&str, &OsStr)]) -> Result<bool> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(args).current_dir(workspace()?).stdin(Stdio::null()).envs(env.iter().copied());
    // What cargo told us about this program is not for the next one.
    for name in ["CARGO_MANIFEST_DIR", "CARGO_MANIFEST_PATH", "CARGO_PKG_NAME"] {
        command.env_remove(name);
    }
    Ok(command.status().context("cannot run cargo")?.success())
}

/// Starts this program once more, with other arguments. It has our standard
/// error, and our standard input if that has something for it.
pub(crate) fn myself(args: &[OsString], input: bool) -> Result<Child> {
    let me = std::env::current_exe().context("cannot tell where this program is")?;
    let mut command = Command::new(me);
    command.args(args).stdout(Stdio::null());
    command.stdin(if input { Stdio::inherit() } else { Stdio::null() });
    command.spawn().context("cannot start the part that goes on in the background")
}

/// Runs a program with its output in `log`; whether it succeeded.
pub(crate) fn logged(program: &Path, args: &[OsString], dir: &Path, log: &Path) -> Result<bool> {
    let file = std::fs::File::options().create(true).truncate(true).write(true).open(log);
    let file = file.with_context(|| format!("cannot write {}", log.display()))?;
    let both = file.try_clone().context("cannot share the log")?;
    let mut command = Command::new(program);
    command.args(args).current_dir(dir).stdin(Stdio::null()).stdout(file).stderr(both);
    Ok(command.status().with_context(|| format!("cannot run {}", program.display()))?.success())
}

/// The host as the compiler names it: `x86_64-unknown-linux-gnu`.
pub(crate) fn triple() -> Result<String> {
    let shell = Shell::new()?;
    let said = cmd!(shell, "rustc -vV").quiet().read().context("cannot ask rustc")?;
    let host = said.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc -vV names no host")
}

/// What a run of this very program took.
pub(crate) struct Measured {
    pub(crate) wall: Duration,
    /// The most memory it had resident, in bytes.
    pub(crate) peak: u64,
    pub(crate) stdout: String,
}

/// Runs this program with other arguments and measures it.
pub(crate) fn measure(args: &[&str], dir: &Path, env: &[(&str, &OsStr)]) -> Result<Measured> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut command = Command::new(program);
    command.args(args).current_dir(dir).envs(env.iter().copied()).stdin(Stdio::null()).stdout(Stdio::piped());
    let began = Instant::now();
    let mut child = command.spawn().context("cannot run this program")?;
    // Beside the wait: a pipe holds little, and who prints more would wait for us.
    let pipe = child.stdout.take();
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        pipe.map_or(Ok(0), |mut pipe| pipe.read_to_string(&mut text)).map(|_| text)
    });
    let status_file = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    // The kernel keeps the high-water mark: the last look before the end counts.
    let status = loop {
        peak = peak.max(high_water(&status_file));
        if let Some(status) = child.try_wait().context("cannot wait")? {
            break status;
        }
        std::thread::sleep(Duration::from_micros(500));
    };
    let wall = began.elapsed();
    let stdout = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    let stdout = stdout.context("cannot read what it printed")?;
    if !status.success() {
        bail!("`{}` failed with {status}", args.join(" "));
    }
    Ok(Measured { wall, peak, stdout })
}

/// Runs another program, silently, and measures it.
pub(crate) fn timed(program: &Path, args: &[&OsStr], env: &[(&str, &OsStr)]) -> Result<Duration> {
    let mut command = Command::new(program);
    command.args(args).envs(env.iter().copied()).stdin(Stdio::null());
    let began = Instant::now();
    let output = command.output().with_context(|| format!("cannot run {}", program.display()))?;
    let took = began.elapsed();
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{} failed with {}: {}", program.display(), output.status, said.trim());
    }
    Ok(took)
}

/// A program in the background; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Background(Child);

impl Background {
    /// Starts it with its output in `log`.
    pub(crate) fn start(program: &str, args: &[&OsStr], log: &Path) -> Result<Self> {
        let file = std::fs::File::options().create(true).truncate(true).write(true).open(log);
        let file = file.with_context(|| format!("cannot write {}", log.display()))?;
        let both = file.try_clone().context("cannot share the log")?;
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).stdout(file).stderr(both);
        command.spawn().map(Self).with_context(|| format!("cannot start {program}"))
    }

    /// Whether it still runs.
    pub(crate) fn runs(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a shell script that must succeed.
pub(crate) fn script(text: &str, env: &[(&str, &OsStr)]) -> Result<()> {
    let mut command = Command::new("sh");
    command.args(["-ec", text]).envs(env.iter().copied()).stdin(Stdio::null());
    match command.status().context("cannot run sh")? {
        status if status.success() => Ok(()),
        status => bail!("the script failed with {status}"),
    }
}

fn high_water(status_file: &str) -> u64 {
    let text = std::fs::read_to_string(status_file).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Writes a file and its folder, without waiting for the disk.
pub(crate) fn write_plain(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || {
        path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
        std::fs::write(path, bytes)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// Lets what was written reach the disk, so that one measurement does not pay
/// for the one before it.
pub(crate) fn settle() {
    if let Ok(shell) = Shell::new() {
        let _ = cmd!(shell, "sync").quiet().run();
    }
}

/// Imports a Debian build system as an image. Needs root, as debootstrap does.
pub(crate) fn import_debian(tree: &Path, tag: &str) -> Result<()> {
    let shell = Shell::new()?;
    if !tree.join("etc/debian_version").is_file() {
        cmd!(shell, "debootstrap --variant=buildd bookworm {tree}")
            .quiet()
            .ignore_stdout()
            .run()
            .context("debootstrap failed; it needs root and Debian's archive")?;
    }
    let pack = r#"tar -C "$0" --numeric-owner -c . | docker import - "$1" > /dev/null"#;
    cmd!(shell, "sh -c {pack} {tree} {tag}").quiet().run().context("docker import failed")
}
