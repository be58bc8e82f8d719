//! Fetches the pinned wheel with the user's own pip, so with their proxy,
//! mirror and certificates.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use smolcellar_run::{Invocation, Limits, RunError};
use smolcellar_store::fsio;

use crate::error::Result;
use crate::wheel::{PINNED_VERSION, Pin};

/// What pip may be called, in the order in which it is tried.
const PIPS: [(&str, &[&str]); 3] = [("python3", &["-m", "pip"]), ("pip3", &[]), ("pip", &[])];

const PROBE: Limits<'static> = Limits::within(Duration::from_secs(60));

/// 44 MB at 0.1 MB/s take 7 minutes.
const DOWNLOAD: Limits<'static> = Limits::within(Duration::from_secs(20 * 60));

/// Downloads the wheel into the folder `scratch` and returns its path. The
/// error is a sentence that says why it did not work.
pub(crate) fn download(pin: &Pin, scratch: &Path) -> Result<Result<PathBuf, String>> {
    let requirements = scratch.join("requirements.txt");
    let line = format!("smolmachines=={PINNED_VERSION} --hash=sha256:{}\n", pin.sha256);
    fsio::write_atomic(scratch, &requirements, line.as_bytes())?;
    let dest = scratch.join("wheel");
    fsio::create_dirs(&dest)?;
    let Some(pip) = find_pip() else {
        return Ok(Err(
            "neither `python3 -m pip` nor `pip3` nor `pip` works here; install Python's pip".into()
        ));
    };
    let args = arguments(pin, &requirements, &dest);
    let run = Invocation { args: [pip.args.clone(), args].concat(), ..pip };
    Ok(match run.succeed(DOWNLOAD) {
        Ok(_) => {
            let wheel = dest.join(pin.file);
            if wheel.is_file() { Ok(wheel) } else { Err(format!("pip did not download {}", pin.file)) }
        }
        Err(error @ (RunError::Failed { .. } | RunError::TimedOut { .. } | RunError::Spawn { .. })) => {
            Err(error.to_string())
        }
        Err(error) => return Err(error.into()),
    })
}

fn find_pip() -> Option<Invocation> {
    PIPS.iter().find_map(|(program, args)| {
        let pip = Invocation {
            operation: [&[*program], *args, &["download"]].concat().join(" "),
            program: program.into(),
            args: args.iter().map(OsString::from).collect(),
            env: vec![],
            stray: None,
        };
        let mut probe = pip.clone();
        probe.args.push("--version".into());
        probe.succeed(PROBE).ok().map(|_| pip)
    })
}

/// The platform and the Python are given, so that neither those of the
/// interpreter that runs pip decide nor its age.
fn arguments(pin: &Pin, requirements: &Path, dest: &Path) -> Vec<OsString> {
    let fixed = [
        "download",
        "--quiet",
        "--no-input",
        "--disable-pip-version-check",
        "--no-deps",
        "--only-binary=:all:",
        "--implementation",
        "cp",
        "--abi",
        "abi3",
        "--python-version",
        "3.12",
        "--platform",
        pin.platform,
        "--require-hashes",
        "-r",
    ];
    let mut args: Vec<OsString> = fixed.iter().map(OsString::from).collect();
    args.extend([requirements.into(), "-d".into(), dest.into()]);
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pip_is_bound_to_the_hash_and_may_run_no_code() {
        let pin = Pin { file: "f", sha256: "00", size: 1, platform: "p" };
        let args = arguments(&pin, Path::new("/t/r.txt"), Path::new("/t/w"));
        let line = args.iter().map(|arg| arg.to_str().unwrap()).collect::<Vec<_>>().join(" ");
        for part in
            ["--require-hashes -r /t/r.txt", "--only-binary=:all:", "--no-deps", "--platform p", "-d /t/w"]
        {
            assert!(line.contains(part), "{part} in {line}");
        }
    }
}
