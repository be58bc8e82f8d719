//! One thin function per smolvm command.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::Duration;

use smolcellar_run::{ExecIo, Invocation, Limits, RunError, tail};

use crate::argv::{CopyPath, Speaker};
use crate::error::{Error, Result};
use crate::extraction::{self, Extraction, Extractions};
use crate::parse::{self, EgressEvent, MachineInfo};
use crate::request::{CreateRequest, ExecRequest, PackRequest};
use crate::runtime::Runtime;
use crate::version::{Dialect, Feature, Version};

/// What smolvm prints on stderr at every call when its file is not named
/// `smolvm`: it takes itself for a packed program without its pack.
const STRAY_NOTE: &[u8] = b"note: no packed assets found";

/// How long deleting a machine that never ran may take; it takes 10 ms.
const DELETE: Duration = Duration::from_secs(20);

/// What a guest command printed and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    /// The guest's exit code.
    pub code: i32,
    /// What it printed on stdout.
    pub stdout: Vec<u8>,
    /// What it printed on stderr.
    pub stderr: Vec<u8>,
}

/// What became of the copies that were to be pruned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pruned {
    /// What is gone, as it was; not only what was wanted.
    pub gone: Vec<Extraction>,
    /// What was wanted and is still there: a machine uses it, or has just
    /// been made of it.
    pub kept: Vec<Extraction>,
}

/// Drives one smolvm.
///
/// A command that fails is an [`RunError::Failed`] with exit code and stderr;
/// the two `exec` functions alone return the guest's exit code as a result.
/// smolvm keeps its machines where it always does, unless
/// [`Cli::with_data_dir`] says otherwise.
#[derive(Debug, Clone)]
pub struct Cli {
    program: PathBuf,
    env: Vec<(OsString, OsString)>,
    speaker: Speaker,
}

impl Cli {
    /// For the smolvm of `runtime`. Runs nothing.
    ///
    /// # Errors
    /// [`Error::TooOld`].
    pub fn new(runtime: &Runtime) -> Result<Self> {
        let dialect = Dialect::of(runtime.version, &runtime.vmm)?;
        let env = vec![
            ("SMOLVM_LIB_DIR".into(), runtime.lib_dir.clone().into()),
            ("SMOLVM_AGENT_ROOTFS".into(), runtime.agent_rootfs.clone().into()),
        ];
        Ok(Self { program: runtime.vmm.clone(), env, speaker: Speaker { version: runtime.version, dialect } })
    }

    /// For a smolvm that is not there yet: says what would be run, and must run
    /// nothing.
    pub fn assumed(version: Version) -> Self {
        let dialect = if version < Version::new(1, 0, 2) { Dialect::Positional } else { Dialect::Named };
        Self { program: "smolvm".into(), env: Vec::new(), speaker: Speaker { version, dialect } }
    }

    /// The command lines of one launch, in order: create, start, exec, stop,
    /// delete. `grace` as for [`Cli::stop`]. Runs nothing.
    ///
    /// # Errors
    /// [`Error::Unsupported`], [`Error::Argument`].
    pub fn lines(
        &self,
        create: &CreateRequest,
        exec: &ExecRequest,
        io: ExecIo,
        grace: Duration,
    ) -> Result<[Vec<OsString>; 5]> {
        let (speaker, name) = (self.speaker, create.name.as_str());
        let commands = [
            speaker.create(create)?,
            speaker.start(name)?,
            speaker.exec(name, exec, Some(io))?,
            speaker.stop(name, grace)?,
            speaker.delete(name)?,
        ];
        Ok(commands.map(|args| self.whole(args)))
    }

    /// The command line of [`Cli::put`]. Runs nothing.
    ///
    /// # Errors
    /// [`Error::Argument`].
    pub fn put_line(&self, from: &Path, machine: &str, path: &str) -> Result<Vec<OsString>> {
        Ok(self.whole(self.speaker.put(from, machine, path)?))
    }

    fn whole(&self, args: Vec<OsString>) -> Vec<OsString> {
        [vec![self.program.clone().into_os_string()], args].concat()
    }

    /// Keeps everything that smolvm writes under `dir` (`SMOLVM_DATA_DIR`,
    /// which smolvm heeds on Linux only).
    #[must_use]
    pub fn with_data_dir(mut self, dir: &Path) -> Self {
        self.env.push(("SMOLVM_DATA_DIR".into(), dir.into()));
        self
    }

    /// The program that is run.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// The version spoken to.
    pub fn version(&self) -> Version {
        self.speaker.version
    }

    /// Whether this version knows `feature`.
    pub fn supports(&self, feature: Feature) -> bool {
        self.speaker.version.supports(feature)
    }

    /// `machine create --from ARTIFACT`: needs no virtualisation.
    ///
    /// # Errors
    /// [`RunError::Failed`], [`RunError::TimedOut`], [`RunError::Cancelled`],
    /// [`Error::Unsupported`], [`Error::Argument`]; so for all that follow.
    pub fn create(&self, request: &CreateRequest, limits: Limits<'_>) -> Result<()> {
        self.run("machine create", self.speaker.create(request)?).succeed(limits)?;
        Ok(())
    }

    /// `machine start`: returns once the guest's agent answers.
    ///
    /// # Errors
    /// See [`Cli::create`].
    pub fn start(&self, name: &str, limits: Limits<'_>) -> Result<()> {
        self.run("machine start", self.speaker.start(name)?).succeed(limits)?;
        Ok(())
    }

    /// `machine exec` with our streams; the guest's exit code, or 128 + n when
    /// signal n ended smolvm itself.
    ///
    /// smolvm's own failures have exit code 1 too and cannot be told from a
    /// guest's; ask [`Cli::status`] when that matters.
    ///
    /// # Errors
    /// See [`Cli::create`], without [`RunError::Failed`].
    pub fn exec(&self, name: &str, request: &ExecRequest, io: ExecIo, limits: Limits<'_>) -> Result<i32> {
        Ok(self.run("machine exec", self.speaker.exec(name, request, Some(io))?).stream(io, limits)?)
    }

    /// `machine exec` without input, keeping its output, which may have
    /// up to 64 MiB a stream.
    ///
    /// # Errors
    /// See [`Cli::exec`].
    pub fn exec_captured(&self, name: &str, request: &ExecRequest, limits: Limits<'_>) -> Result<ExecOutput> {
        use std::os::unix::process::ExitStatusExt;
        let captured = self.run("machine exec", self.speaker.exec(name, request, None)?).capture(limits)?;
        let code = captured.status.code().unwrap_or_else(|| 128 + captured.status.signal().unwrap_or(0));
        Ok(ExecOutput { code, stdout: captured.stdout, stderr: captured.stderr })
    }

    /// `machine stop`. `grace` is what the workload gets to end by itself,
    /// where the version lets that be said. Success is a claim: some versions
    /// report a stop that did not happen.
    ///
    /// # Errors
    /// See [`Cli::create`].
    pub fn stop(&self, name: &str, grace: Duration, limits: Limits<'_>) -> Result<()> {
        self.run("machine stop", self.speaker.stop(name, grace)?).succeed(limits)?;
        Ok(())
    }

    /// `machine delete -f`. Success is a claim, as for [`Cli::stop`].
    ///
    /// # Errors
    /// See [`Cli::create`].
    pub fn delete(&self, name: &str, limits: Limits<'_>) -> Result<()> {
        self.run("machine delete", self.speaker.delete(name)?).succeed(limits)?;
        Ok(())
    }

    /// `machine ls`: every machine of this user.
    ///
    /// # Errors
    /// See [`Cli::create`]; [`RunError::Output`].
    pub fn list(&self, limits: Limits<'_>) -> Result<Vec<MachineInfo>> {
        let run = self.run("machine ls", self.speaker.list());
        let captured = run.succeed(limits)?;
        parse::machines(&captured.stdout)
            .map_err(|problem| RunError::Output { operation: run.operation, problem }.into())
    }

    /// One machine, `None` if there is none of that name. `machine status`
    /// fails for an absent machine as for any other reason, so the list
    /// decides.
    ///
    /// # Errors
    /// See [`Cli::list`].
    pub fn status(&self, name: &str, limits: Limits<'_>) -> Result<Option<MachineInfo>> {
        let run = self.run("machine status", self.speaker.status(name)?);
        let captured = run.capture(limits)?;
        if captured.status.success() {
            let machine = parse::machine(&captured.stdout)
                .map_err(|problem| RunError::Output { operation: run.operation, problem })?;
            return Ok(Some(machine));
        }
        Ok(self.list(limits)?.into_iter().find(|machine| machine.name == name))
    }

    /// `machine data-dir`: where smolvm keeps the machine. Each process that
    /// runs it has an argument below that folder.
    ///
    /// # Errors
    /// See [`Cli::list`].
    pub fn data_dir(&self, name: &str, limits: Limits<'_>) -> Result<PathBuf> {
        let run = self.run("machine data-dir", self.speaker.data_dir(name)?);
        let captured = run.succeed(limits)?;
        parse::path(&captured.stdout).ok_or_else(|| {
            RunError::Output { operation: run.operation, problem: "no absolute path".into() }.into()
        })
    }

    /// `machine logs`: what the machine's workload printed, the last `lines`
    /// of it.
    ///
    /// # Errors
    /// See [`Cli::create`].
    pub fn logs(&self, name: &str, lines: Option<u32>, limits: Limits<'_>) -> Result<Vec<u8>> {
        let captured = self.run("machine logs", self.speaker.logs(name, lines)?).succeed(limits)?;
        Ok(captured.stdout)
    }

    /// `machine egress-events`: the connections of the guest that were refused,
    /// the newest last.
    ///
    /// # Errors
    /// See [`Cli::list`].
    pub fn egress_events(&self, name: &str, limits: Limits<'_>) -> Result<Vec<EgressEvent>> {
        let run = self.run("machine egress-events", self.speaker.egress_events(name)?);
        let captured = run.succeed(limits)?;
        parse::egress_events(&captured.stdout)
            .map_err(|problem| RunError::Output { operation: run.operation, problem }.into())
    }

    /// `machine cp`. An empty path on either side means that there is nothing
    /// to copy.
    ///
    /// # Errors
    /// See [`Cli::create`].
    pub fn copy(&self, from: &CopyPath, to: &CopyPath, limits: Limits<'_>) -> Result<()> {
        if from.is_empty() || to.is_empty() {
            return Ok(());
        }
        self.run("machine cp", self.speaker.copy(from, to)?).succeed(limits)?;
        Ok(())
    }

    /// `machine cp` of a file into the guest, where everybody may read it.
    ///
    /// # Errors
    /// See [`Cli::create`].
    pub fn put(&self, from: &Path, machine: &str, path: &str, limits: Limits<'_>) -> Result<()> {
        self.run("machine cp", self.speaker.put(from, machine, path)?).succeed(limits)?;
        Ok(())
    }

    /// `pack create`: boots a machine that pulls the image and packs it. Where
    /// the artifact is: [`PackRequest::artifact`]. Success is a claim: some
    /// versions have ended well with nothing done.
    ///
    /// # Errors
    /// See [`Cli::create`].
    pub fn pack(&self, request: &PackRequest, limits: Limits<'_>) -> Result<()> {
        self.run("pack create", self.speaker.pack(request)).succeed(limits)?;
        Ok(())
    }

    /// Where this smolvm keeps its copies of artifacts. `None`: it makes none
    /// that outlast their machine (before 1.9.0, or not on Linux), or there is
    /// no home folder.
    pub fn extractions(&self) -> Option<Extractions> {
        if !cfg!(target_os = "linux") || !self.supports(Feature::SharedExtractions) {
            return None;
        }
        let own = |name: &str| self.env.iter().rev().find(|(own, _)| own == name);
        Extractions::locate(|name| match own(name) {
            Some((_, value)) => Some(value.clone()),
            None => std::env::var_os(name),
        })
    }

    /// `pack prune`: removes the `wanted` copies, but none that a machine uses,
    /// running or not.
    ///
    /// smolvm cannot be told which copies, only how many unused ones to keep,
    /// the last used first. So unused copies that were last used before the
    /// newest wanted one go as well, whoever launched them; the next create of
    /// their artifacts makes them again. It applies the same number to what
    /// `pack run` left (`smolvm-pack` and `smolvm-libs` in its cache), which is
    /// not reported here. If none that is wanted is unused, nothing is run.
    ///
    /// While it runs, creates wait for it, and it for creates.
    ///
    /// # Errors
    /// See [`Cli::create`]; [`Error::Unsupported`] before 1.9.0, which leave no
    /// copies. What was removed before a failure is gone.
    pub fn prune_extractions(
        &self,
        wanted: impl Fn(&Extraction) -> bool,
        limits: Limits<'_>,
    ) -> Result<Pruned> {
        let all_go = self.speaker.prune(0)?;
        let Some(extractions) = self.extractions() else { return Ok(Pruned { gone: vec![], kept: vec![] }) };
        let before = extractions.list()?;
        let after = match extraction::keep(&before, &wanted) {
            Some(keep) => {
                let args = if keep == 0 { all_go } else { self.speaker.prune(keep)? };
                self.run("pack prune", args).succeed(limits)?;
                extractions.list()?
            }
            None => before.clone(),
        };
        let still = |one: &Extraction| after.iter().any(|other| other.path == one.path);
        let gone = before.into_iter().filter(|one| !still(one)).collect();
        Ok(Pruned { gone, kept: after.into_iter().filter(|one| wanted(one)).collect() })
    }

    /// Makes the copy of an artifact ahead of its first machine, with a machine
    /// of this request that is deleted at once; `checksum` is the CRC-32 in the
    /// artifact's footer. There is no command for it: `pack run` unpacks
    /// elsewhere. Cheap if the copy is there already, and then counts as a use
    /// of it. Needs no virtualisation.
    ///
    /// `None`: this smolvm shares no copies, and nothing was run; or it was told
    /// not to (`SMOLVM_DISABLE_SHARED_EXTRACT`).
    ///
    /// The machine is deleted too when the create was interrupted; what may then
    /// stay is an unfinished copy, which is finished or pruned later, and 0.4 MB
    /// of disks that smolvm does not list and the next create of that name takes
    /// over. When the create failed, smolvm has left no machine, and one of that
    /// name is somebody else's.
    ///
    /// # Errors
    /// See [`Cli::create`].
    pub fn extract(
        &self,
        request: &CreateRequest,
        checksum: u32,
        limits: Limits<'_>,
    ) -> Result<Option<Extraction>> {
        let Some(extractions) = self.extractions() else { return Ok(None) };
        let created = self.create(request, limits);
        if matches!(created, Ok(()) | Err(Error::Run(RunError::TimedOut { .. } | RunError::Cancelled { .. })))
        {
            // Also when the caller is in a hurry.
            let deleted = self.delete(&request.name, Limits::within(DELETE));
            created.and(deleted)?;
        } else {
            created?;
        }
        extractions.of(checksum)
    }

    fn run(&self, command: &str, args: Vec<OsString>) -> Invocation {
        let operation = format!("smolvm {command}");
        let stray = prints_stray_note(&self.program).then_some(STRAY_NOTE);
        Invocation { operation, program: self.program.clone(), args, env: self.env.clone(), stray }
    }
}

/// smolvm goes by the name of its file; these two are a plain install to it.
fn prints_stray_note(program: &Path) -> bool {
    !matches!(program.file_stem().and_then(OsStr::to_str), Some("smolvm" | "smolvm-bin"))
}

/// `--version` of a program that may be smolvm.
///
/// # Errors
/// [`RunError::Spawn`], [`RunError::TimedOut`], [`Error::NoVersion`].
pub(crate) fn version(program: &Path) -> Result<Version> {
    let run = Invocation {
        operation: format!("{} --version", program.display()),
        program: program.to_owned(),
        args: vec!["--version".into()],
        env: vec![],
        stray: Some(STRAY_NOTE),
    };
    let captured = run.capture(Limits::within(Duration::from_secs(20)))?;
    parse::version(&captured.stdout).filter(|_| captured.status.success()).ok_or_else(|| {
        let output = [captured.stdout, captured.stderr].concat();
        Error::NoVersion { program: program.to_owned(), output: tail(&output) }
    })
}
