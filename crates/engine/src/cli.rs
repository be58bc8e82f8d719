//! Every engine command line, and running them.
#![expect(clippy::disallowed_methods, reason = "this module runs the engine")]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use smolcellar_run::{Limits, status_text};
use smolcellar_store::{Digest, fsio};
use xshell::Shell;

use crate::error::{EngineError, Result};
use crate::follow::{collect, follow_unless};
use crate::parse::{self, ImageInfo};
use crate::save::SaveStream;

/// How long a question to the engine may take.
const ANSWER: Duration = Duration::from_secs(60);

/// Which engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Docker.
    Docker,
    /// Podman.
    Podman,
}

/// A container engine's client program.
#[derive(Debug, Clone)]
pub struct Engine {
    program: PathBuf,
    kind: Kind,
}

/// What to build.
#[derive(Debug, Clone, Default)]
pub struct BuildSpec {
    /// The folder sent to the engine.
    pub context: PathBuf,
    /// The Dockerfile; `None` is the one in the context.
    pub dockerfile: Option<PathBuf>,
    /// The name the image gets.
    pub tag: String,
    /// The stage to build.
    pub target: Option<String>,
    /// The platform to build for; `None` is the engine's.
    pub platform: Option<String>,
    /// Build arguments.
    pub build_args: BTreeMap<String, String>,
    /// Whether every step is to run again, whatever the engine has cached.
    pub no_cache: bool,
}

impl Engine {
    /// Finds an engine: the program named by `choice`, else docker, else
    /// podman. Looks at PATH only; nothing is run.
    ///
    /// # Errors
    /// [`EngineError::NotFound`].
    pub fn find(choice: Option<&str>) -> Result<Self> {
        let wanted: Vec<&str> = choice.map_or_else(|| vec!["docker", "podman"], |program| vec![program]);
        for program in &wanted {
            if let Some(path) = which(program) {
                return Ok(Self::named(path));
            }
        }
        Err(EngineError::NotFound { wanted: wanted.join(" and ") })
    }

    pub(crate) fn named(program: PathBuf) -> Self {
        let name = program.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let kind = if name.contains("podman") { Kind::Podman } else { Kind::Docker };
        Self { program, kind }
    }

    /// The client program that is run.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Which engine it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Builds an image and gives the engine's ID of it. Every line that the
    /// engine prints goes to `line`.
    ///
    /// # Errors
    /// [`EngineError`]; a failed build carries the end of what it printed.
    pub fn build(&self, spec: &BuildSpec, scratch: &Path, line: &dyn Fn(&str)) -> Result<Digest> {
        self.build_unless(spec, scratch, line, &|| false)
    }

    /// The same, ended as soon as `give_up` says so.
    ///
    /// # Errors
    /// [`EngineError`]; [`EngineError::Run`] when it was ended.
    pub fn build_unless(
        &self,
        spec: &BuildSpec,
        scratch: &Path,
        line: &dyn Fn(&str),
        give_up: &dyn Fn() -> bool,
    ) -> Result<Digest> {
        check_inputs(spec)?;
        // Of this build alone: others may be under way in this process.
        let id_file = fsio::unused_name(scratch, "iid");
        let command = self.command(&build_args(spec, &id_file));
        let text = describe(&command);
        let followed = follow_unless(command, line, give_up);
        let (status, tail) = followed.map_err(|source| EngineError::Run { command: text.clone(), source })?;
        if !status.success() {
            let output = parse::without_notice(&tail.text());
            if let Some(said) = parse::unreachable(&output) {
                return Err(EngineError::Unreachable { program: self.name(), said });
            }
            return Err(EngineError::Failed { command: text, status: status_text(status), output });
        }
        let id = std::fs::read_to_string(&id_file);
        let _ = std::fs::remove_file(&id_file);
        let unexpected = |problem| EngineError::Unexpected { command: text.clone(), problem };
        let id = id.map_err(|error| unexpected(format!("wrote no image ID: {error}")))?;
        parse::image_id(&id).map_err(|error| unexpected(format!("wrote a strange image ID: {error}")))
    }

    /// What the engine knows of an image; `None` if it has no such image.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn inspect(&self, image: &str) -> Result<Option<ImageInfo>> {
        let args = ["image", "inspect", "--format", "{{json .}}", image].map(OsString::from);
        let run = self.invocation("image inspect", args.to_vec());
        let Some(captured) = self.answer(&run, Limits::within(ANSWER))? else { return Ok(None) };
        let info = parse::image_info(&String::from_utf8_lossy(&captured.stdout));
        info.map(Some).map_err(|problem| EngineError::Unexpected { command: run.operation, problem })
    }

    /// Streams an image out, by ID: a tag may have moved.
    ///
    /// # Errors
    /// [`EngineError::Run`] if the program cannot be started.
    pub fn save(&self, image: &Digest) -> Result<SaveStream> {
        let mut args = vec![OsString::from("save")];
        if self.kind == Kind::Podman {
            args.extend(["--quiet", "--format", "docker-archive"].map(OsString::from));
        }
        args.push(image.to_string().into());
        let mut command = self.command(&args);
        let text = describe(&command);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let started = smolcellar_run::spawn(&mut command);
        let (mut child, under_way) =
            started.map_err(|source| EngineError::Run { command: text.clone(), source })?;
        let stderr = collect(child.stderr.take(), |_| {});
        Ok(SaveStream::new(child, under_way, stderr, text))
    }

    pub(crate) fn name(&self) -> String {
        self.program.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// The one constructor of engine commands: the C locale, since messages
    /// are read; no input; the configuration that the user's own calls have.
    fn command(&self, args: &[OsString]) -> Command {
        let mut command = match Shell::new() {
            Ok(shell) => Command::from(shell.cmd(&self.program)),
            // No current folder: the engine does not need one for these.
            Err(_) => Command::new(&self.program),
        };
        command.args(args).env("LC_ALL", "C").stdin(Stdio::null());
        command
    }
}

/// `build`; the engine writes the image's ID to `id_file`.
pub fn build_args(spec: &BuildSpec, id_file: &Path) -> Vec<OsString> {
    let mut args: Vec<OsString> = vec!["build".into(), "--iidfile".into(), id_file.into()];
    args.extend(["--tag".into(), OsString::from(&spec.tag)]);
    let mut option = |name: &str, value: OsString| args.extend([name.into(), value]);
    if let Some(dockerfile) = &spec.dockerfile {
        option("--file", dockerfile.into());
    }
    if let Some(target) = &spec.target {
        option("--target", target.into());
    }
    if let Some(platform) = &spec.platform {
        option("--platform", platform.into());
    }
    for (name, value) in &spec.build_args {
        option("--build-arg", format!("{name}={value}").into());
    }
    if spec.no_cache {
        args.push("--no-cache".into());
    }
    args.push(spec.context.clone().into());
    args
}

/// Engines word these badly, and differently.
/// Whether what is to be built is there.
///
/// # Errors
/// [`EngineError::NoInput`].
pub fn check_inputs(spec: &BuildSpec) -> Result<()> {
    if !spec.context.is_dir() {
        return Err(EngineError::NoInput {
            what: "build context",
            path: spec.context.clone(),
            key: "context",
        });
    }
    let named = spec.dockerfile.clone();
    let usual = ["Dockerfile", "Containerfile"].map(|name| spec.context.join(name));
    let found = match &named {
        Some(path) => path.is_file(),
        None => usual.iter().any(|path| path.is_file()),
    };
    let [usual, _] = usual;
    match found {
        true => Ok(()),
        false => {
            Err(EngineError::NoInput { what: "Dockerfile", path: named.unwrap_or(usual), key: "dockerfile" })
        }
    }
}

fn which(program: &str) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let runs =
        |path: &PathBuf| path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    if program.contains('/') {
        return Some(PathBuf::from(program)).filter(runs);
    }
    std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(program)).find(runs)
}

fn describe(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or_default();
    let words = std::iter::once(program).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> BuildSpec {
        BuildSpec {
            context: "ctx".into(),
            dockerfile: Some("ctx/Other".into()),
            tag: "smolcellar/a:latest".into(),
            target: Some("final".into()),
            platform: Some("linux/amd64".into()),
            build_args: BTreeMap::from([("V".into(), "1".into())]),
            no_cache: false,
        }
    }

    #[test]
    fn a_build_has_this_command_line() {
        let args = build_args(&spec(), Path::new("/s/iid"));
        let args: Vec<_> = args.iter().map(|arg| arg.to_string_lossy()).collect();
        let expected = "build --iidfile /s/iid --tag smolcellar/a:latest --file ctx/Other --target final --platform \
                        linux/amd64 --build-arg V=1 ctx";
        assert_eq!(args.join(" "), expected);
    }

    #[test]
    fn a_missing_context_or_dockerfile_is_named_with_its_key() {
        let error = check_inputs(&spec()).unwrap_err().to_string();
        assert!(error.contains("no build context at ctx") && error.contains("`context`"), "{error}");
        let dir = tempfile::tempdir().unwrap();
        let spec = BuildSpec { context: dir.path().into(), dockerfile: None, ..spec() };
        let error = check_inputs(&spec).unwrap_err().to_string();
        assert!(error.contains("Dockerfile") && error.contains("`dockerfile`"), "{error}");
    }

    #[test]
    fn an_engine_that_is_not_there_is_named_with_the_way_around_it() {
        let error = Engine::find(Some("no-such-engine")).unwrap_err().to_string();
        assert!(error.contains("no-such-engine") && error.contains("--archive"), "{error}");
    }
}
