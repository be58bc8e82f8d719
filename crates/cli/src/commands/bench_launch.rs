//! What a launch costs beside what smolvm does: our way up to the command, over
//! the same commands typed by hand. With a stand-in for smolvm that does
//! nothing, so that all that is left is ours.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use crate::host;

/// Answers what is asked, keeps no machine, and notes when a command begins.
const STAND_IN: &str = r#"#!/bin/sh
case "$2" in
    exec) date +%s%N > "$(dirname "$0")/began" ;;
    ls) echo '[]' ;;
    status) exit 1 ;;
    data-dir) echo /nonexistent ;;
esac
[ "$1" != --version ] || echo smolvm VERSION
"#;

/// One way up, in a shell.
const BY_HAND: &str = r#""$SMOLVM" machine create --name by-hand --from "$ARTIFACT" --cpus 2 --mem 1024
"$SMOLVM" machine start --name by-hand --no-workload
"$SMOLVM" machine exec --name by-hand -i -- true
"#;

/// The times from the start of a launch to the start of its command.
pub(crate) struct Launches<'a> {
    pub(crate) project: &'a Path,
    pub(crate) cache: &'a Path,
    pub(crate) artifact: PathBuf,
    stand_in: PathBuf,
}

impl<'a> Launches<'a> {
    /// Makes the stand-in: a runtime's folder with another program.
    pub(crate) fn new(
        dir: &Path,
        runtime: &Path,
        version: &str,
        project: &'a Path,
        cache: &'a Path,
        artifact: PathBuf,
    ) -> Result<Self> {
        let stand_in = dir.join("stand-in");
        let context = || format!("cannot make {}", stand_in.display());
        if stand_in.exists() {
            std::fs::remove_dir_all(&stand_in).with_context(context)?;
        }
        std::fs::create_dir_all(&stand_in).with_context(context)?;
        for entry in std::fs::read_dir(runtime).with_context(context)? {
            let entry = entry.with_context(context)?;
            if entry.file_name() != "smolvm" {
                let link = stand_in.join(entry.file_name());
                std::os::unix::fs::symlink(entry.path(), link).with_context(context)?;
            }
        }
        let program = stand_in.join("smolvm");
        let text = STAND_IN.replace("VERSION", version);
        smolcellar_store::fsio::write_atomic(&stand_in, &program, text.as_bytes())?;
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).with_context(context)?;
        Ok(Self { project, cache, artifact, stand_in })
    }

    /// Ours, from the start of the program.
    pub(crate) fn ours(&self) -> Result<Duration> {
        let args = ["launch", "--yes", "--assume-virtualisation", "--progress", "quiet", "big", "--", "true"];
        let env = [
            ("SMOLCELLAR_CACHE_DIR", self.cache.as_os_str()),
            ("SMOLCELLAR_SMOLVM_DIR", self.stand_in.as_os_str()),
        ];
        self.until_it_began(|| host::measure(&args, self.project, &env).map(drop))
    }

    /// The same by hand.
    pub(crate) fn by_hand(&self) -> Result<Duration> {
        let program = self.stand_in.join("smolvm");
        let env: [(&str, &OsStr); 2] =
            [("SMOLVM", program.as_os_str()), ("ARTIFACT", self.artifact.as_os_str())];
        self.until_it_began(|| host::script(BY_HAND, &env))
    }

    /// What it takes to find the artifact and to plan: all of a dry run.
    pub(crate) fn look_up(&self) -> Result<Duration> {
        let args = ["launch", "--dry-run", "--format", "json", "big", "--", "true"];
        let env = [
            ("SMOLCELLAR_CACHE_DIR", self.cache.as_os_str()),
            ("SMOLCELLAR_SMOLVM_DIR", self.stand_in.as_os_str()),
        ];
        Ok(host::measure(&args, self.project, &env)?.wall)
    }

    fn until_it_began(&self, run: impl FnOnce() -> Result<()>) -> Result<Duration> {
        let stamp = self.stand_in.join("began");
        let started = SystemTime::now();
        run()?;
        let text = std::fs::read_to_string(&stamp).context("the stand-in ran no command")?;
        let began: u64 = text.trim().parse().context("the stand-in wrote no time")?;
        let began = UNIX_EPOCH + Duration::from_nanos(began);
        std::fs::remove_file(&stamp).context("cannot remove the stand-in's note")?;
        began.duration_since(started).context("the clock went backwards")
    }
}
