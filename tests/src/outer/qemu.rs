//! Runs QEMU and reads what the machine reports.
//!
//! Everything the machine says comes through files in the run folder, written by QEMU and read here by
//! polling: `console` (what the script writes, then the mark), `result` and `pulse` (see `init.sh`), `kernel` and
//! `qemu`.
//! So there are no pipes to fill up and no threads to wait for, and what arrived before a failure is there to
//! be shown.

use super::{Job, Outcome, program, tail};
use anyhow::{Context as _, Result, bail};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Kernel options. The machine is trusted and short-lived, so what only costs time is off; a panic ends it.
const KERNEL_OPTIONS: &str = "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off nokaslr tsc=reliable \
                              nowatchdog random.trust_cpu=on audit=0 apparmor=0";

/// How long a machine may give no sign of life. QEMU's emulation of AMD-V sometimes leaves all processors
/// spinning for good; a healthy machine beats every two seconds, under load every few.
const STILL: Duration = Duration::from_secs(90);

/// A running QEMU, killed when this is dropped.
struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        // Both fail only if the process is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How a boot ended, if it did not fail.
#[derive(Debug)]
pub(super) enum Ending {
    /// With the result of the script.
    Result(Outcome),
    /// With a panic of the machine's own kernel, or with all of it standing still, which no script can be
    /// blamed for; holds the last lines.
    Panic(String),
}

/// Boots the disk in `folder` and waits for the result of the job.
pub(super) fn boot(
    parts: &Path,
    folder: &Path,
    job: &Job,
    mark: &str,
    timeout: Duration,
    log: &dyn Fn(&str),
) -> Result<Ending> {
    let start = Instant::now();
    let mut qemu = Qemu(spawn(parts, folder, job)?);
    let mut console = Console::open(folder)?;
    let mut pulse = (0, Instant::now());
    loop {
        let ended = qemu.0.try_wait().context("cannot wait for QEMU")?;
        console.read(mark, log)?;
        // Looked at after the process: a machine that is down has written all that it ever will.
        if let Some(result) = finished_result(folder, mark)? {
            drop(qemu);
            console.read(mark, log)?;
            let (exit_code, out) = parse(&result).context("the machine's result makes no sense")?;
            return Ok(Ending::Result(Outcome { exit_code, console: console.text(mark), out }));
        }
        if let Some(status) = ended {
            let report = console.report(folder, mark);
            if read_log(folder, "kernel").contains("Kernel panic") {
                return Ok(Ending::Panic(report));
            }
            bail!("the machine went down ({status}) before the script ended\n{report}");
        }
        let beats = fs::metadata(folder.join("pulse")).map_or(0, |metadata| metadata.len());
        if beats != pulse.0 {
            pulse = (beats, Instant::now());
        }
        // From the first beat on: a host under load may take its time to boot.
        if beats > 0 && pulse.1.elapsed() >= STILL {
            return Ok(Ending::Panic(console.report(folder, mark)));
        }
        if start.elapsed() >= timeout {
            bail!("the script did not end within {timeout:?}\n{}", console.report(folder, mark));
        }
        sleep(Duration::from_millis(50));
    }
}

fn spawn(parts: &Path, folder: &Path, job: &Job) -> Result<Child> {
    let errors = File::create(folder.join("qemu")).context("cannot create QEMU's log")?;
    // `setpriv` becomes QEMU, which then dies with the thread that waits for it here.
    let mut command = program("setpriv")?;
    command.args(["--pdeathsig", "KILL"]).arg(program("qemu-system-x86_64")?.get_program());
    command.current_dir(folder).stdout(Stdio::null()).stderr(errors);
    command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
    command.args(["-machine", "pc", "-accel", "tcg,thread=multi", "-cpu", "EPYC,+svm", "-smp", "2"]);
    command.args(["-m", &job.memory_mib.to_string()]);
    command.arg("-kernel").arg(parts.join("vmlinux")).arg("-initrd").arg(parts.join("initrd"));
    command.args(["-append", KERNEL_OPTIONS, "-serial", "file:kernel"]);
    command.args(["-drive", "if=none,id=disk,file=disk.ext4,format=raw,cache=unsafe,discard=unmap"]);
    command.args(["-device", "virtio-blk-pci,drive=disk", "-device", "virtio-serial-pci"]);
    for (number, name) in [("1", "console"), ("2", "result"), ("3", "pulse")] {
        command.args(["-chardev", &format!("file,id={name},path={name}")]);
        command.args(["-device", &format!("virtserialport,chardev={name},nr={number}")]);
    }
    command.spawn().context("cannot start QEMU")
}

/// What the script has written so far.
struct Console {
    file: File,
    bytes: Vec<u8>,
    /// How much of it went to the log: whole lines only.
    logged: usize,
}

impl Console {
    fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("console");
        // QEMU may not have made it yet; it empties the file when it opens it, before anything is written.
        let file = File::options().create(true).append(true).read(true).open(&path);
        Ok(Self {
            file: file.with_context(|| format!("cannot open {}", path.display()))?,
            bytes: Vec::new(),
            logged: 0,
        })
    }

    fn read(&mut self, mark: &str, log: &dyn Fn(&str)) -> Result<()> {
        self.file.read_to_end(&mut self.bytes).context("cannot read the machine's console")?;
        while let Some(length) = self.bytes[self.logged..].iter().position(|byte| *byte == b'\n') {
            let line = String::from_utf8_lossy(&self.bytes[self.logged..self.logged + length]);
            match line.strip_suffix(mark) {
                Some("") => {}
                Some(unfinished) => log(unfinished),
                None => log(&line),
            }
            self.logged += length + 1;
        }
        Ok(())
    }

    /// Everything before the mark.
    fn text(&self, mark: &str) -> String {
        let text = String::from_utf8_lossy(&self.bytes);
        text.split_once(mark).map_or(text.as_ref(), |(before, _)| before).to_owned()
    }

    /// The ends of all logs, for an error.
    fn report(&self, folder: &Path, mark: &str) -> String {
        let mut report = format!("last lines of the script:\n{}", tail(&self.text(mark)));
        for (name, title) in [("kernel", "of the kernel"), ("qemu", "of QEMU")] {
            let text = read_log(folder, name);
            // Said at every boot, about features that nobody asked for.
            let lines: Vec<_> = text.lines().filter(|line| !line.contains("TCG doesn't support")).collect();
            if !lines.is_empty() {
                report.push_str(&format!("\nlast lines {title}:\n{}", tail(&lines.join("\n"))));
            }
        }
        report
    }
}

/// A log for an error: what cannot be read is left out.
fn read_log(folder: &Path, name: &str) -> String {
    String::from_utf8_lossy(&fs::read(folder.join(name)).unwrap_or_default()).into_owned()
}

/// The result without its end line, once it is complete.
fn finished_result(folder: &Path, mark: &str) -> Result<Option<Vec<u8>>> {
    let mut result = match fs::read(folder.join("result")) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.context("cannot read the machine's result")?,
    };
    let end = format!("end {mark}\n");
    if !result.ends_with(end.as_bytes()) {
        return Ok(None);
    }
    result.truncate(result.len() - end.len());
    Ok(Some(result))
}

/// Takes the result apart: a line with the exit status, then each file as a line with its size and name and
/// that many bytes.
fn parse(mut rest: &[u8]) -> Result<(i32, BTreeMap<String, Vec<u8>>)> {
    let status = take_line(&mut rest)?.strip_prefix("exit ").map(str::parse);
    let status = status.context("it does not begin with a status")?.context("its status is no number")?;
    let mut files = BTreeMap::new();
    while !rest.is_empty() {
        let line = take_line(&mut rest)?;
        let parts = line.strip_prefix("file ").and_then(|line| line.split_once(' '));
        let (size, name) = parts.with_context(|| format!("this is no file: {line:?}"))?;
        let size: usize = size.parse().with_context(|| format!("this is no size: {size:?}"))?;
        let (bytes, after) = rest.split_at_checked(size).with_context(|| format!("{name} is cut short"))?;
        files.insert(name.to_owned(), bytes.to_owned());
        rest = after;
    }
    Ok((status, files))
}

fn take_line<'a>(rest: &mut &'a [u8]) -> Result<&'a str> {
    let length = rest.iter().position(|byte| *byte == b'\n').context("a line is cut short")?;
    let line = std::str::from_utf8(&rest[..length]).context("a line is not text")?;
    *rest = &rest[length + 1..];
    Ok(line)
}
