//! A smolvm that can be used, and where it is looked for.

use std::path::{Path, PathBuf};

use smolcellar_store::{Digest, Event, Reporter, Store};

use crate::error::{Error, Result};
use crate::layout::{Layout, Surroundings};
use crate::version::Dialect;
use crate::{local, managed};

/// A smolvm, complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runtime {
    /// What `--version` says.
    pub version: crate::Version,
    /// The program to run.
    pub vmm: PathBuf,
    /// The folder of libkrun and libkrunfw (`SMOLVM_LIB_DIR`).
    pub lib_dir: PathBuf,
    /// The unpacked agent rootfs (`SMOLVM_AGENT_ROOTFS`). Running machines put
    /// markers into it.
    pub agent_rootfs: PathBuf,
    /// The canonical tar of the agent rootfs, in the store: what goes into an
    /// artifact.
    pub rootfs_tar: PathBuf,
    /// The SHA-256 of `rootfs_tar`.
    pub rootfs_digest: Digest,
    /// The bytes of `rootfs_tar`.
    pub rootfs_size: u64,
    /// Where it comes from.
    pub origin: Origin,
}

/// Where a runtime comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The folder that the user named.
    Configured(PathBuf),
    /// The `smolvm` on the `PATH`.
    Installed(PathBuf),
    /// The pinned wheel, installed in the store.
    Wheel {
        /// The SHA-256 of the wheel.
        sha256: Digest,
    },
}

/// Which runtime the user wants.
#[derive(Debug, Clone, Default)]
pub struct RuntimeConfig {
    /// The folder of a runtime, if one was named.
    pub dir: Option<PathBuf>,
}

/// Finds a runtime: the configured folder, else an installed smolvm, else the
/// one in the store. `None`: there is none, [`crate::install`] gets one.
///
/// Cheap when it was found before: reads metadata and one receipt, starts no
/// program, hashes no file. The first time for a folder or an installed smolvm
/// it asks for the version and writes the canonical agent rootfs into the
/// store (about 0.2 s).
///
/// A configured folder that cannot be used is an error; an installed smolvm
/// that cannot be used is passed over with a warning.
///
/// # Errors
/// [`Error::NotARuntime`], [`Error::TooOld`], [`Error::NoVersion`],
/// [`Error::Store`].
pub fn find(store: &Store, reporter: &dyn Reporter, config: &RuntimeConfig) -> Result<Option<Runtime>> {
    find_in(store, reporter, config, &Surroundings::of_process())
}

/// The runtime that [`find`] would give, if that takes no work: reads only,
/// starts nothing and writes nothing. `None`: nobody has used it yet.
///
/// # Errors
/// As [`find`], for a configured folder.
pub fn known(store: &Store, config: &RuntimeConfig) -> Result<Option<Runtime>> {
    if let Some(dir) = &config.dir {
        let (layout, dir) = configured(dir)?;
        return local::known(store, &layout, Origin::Configured(dir));
    }
    let surroundings = Surroundings::of_process();
    if let Some(program) = surroundings.smolvm_on_path()
        && let Ok(layout) = Layout::of_installed(&program, &surroundings)
    {
        return local::known(store, &layout, Origin::Installed(program));
    }
    managed::find(store)
}

/// Discards what was derived from the configured or the installed smolvm if it
/// is damaged: [`find`] derives it again. Whether it was.
///
/// # Errors
/// As [`find`], for a configured folder; [`Error::Store`].
pub fn discard_damaged(store: &Store, reporter: &dyn Reporter, config: &RuntimeConfig) -> Result<bool> {
    if let Some(dir) = &config.dir {
        return local::discard_if_damaged(store, reporter, &configured(dir)?.0);
    }
    let surroundings = Surroundings::of_process();
    match surroundings.smolvm_on_path().map(|program| Layout::of_installed(&program, &surroundings)) {
        Some(Ok(layout)) => local::discard_if_damaged(store, reporter, &layout),
        _ => Ok(false),
    }
}

fn configured(dir: &Path) -> Result<(Layout, PathBuf)> {
    // smolvm is told these paths, and it runs in other folders.
    let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    match Layout::of_folder(&dir) {
        Ok(layout) => Ok((layout, dir)),
        Err(problem) => Err(Error::NotARuntime { dir, problem }),
    }
}

pub(crate) fn find_in(
    store: &Store,
    reporter: &dyn Reporter,
    config: &RuntimeConfig,
    surroundings: &Surroundings,
) -> Result<Option<Runtime>> {
    if let Some(dir) = &config.dir {
        let (layout, dir) = configured(dir)?;
        return usable(local::derive(store, reporter, &layout, Origin::Configured(dir))?).map(Some);
    }
    if let Some(program) = surroundings.smolvm_on_path() {
        match installed(store, reporter, surroundings, program.clone()) {
            Ok(runtime) => return Ok(Some(runtime)),
            Err(Error::Store(error)) => return Err(error.into()),
            Err(error) => reporter.report(Event::Warn {
                text: &format!("passing over the installed {}: {error}", program.display()),
            }),
        }
    }
    managed::find(store)
}

fn installed(
    store: &Store,
    reporter: &dyn Reporter,
    surroundings: &Surroundings,
    program: PathBuf,
) -> Result<Runtime> {
    let layout = Layout::of_installed(&program, surroundings)
        .map_err(|problem| Error::NotARuntime { dir: program.clone(), problem })?;
    usable(local::derive(store, reporter, &layout, Origin::Installed(program))?)
}

fn usable(runtime: Runtime) -> Result<Runtime> {
    Dialect::of(runtime.version, &runtime.vmm)?;
    Ok(runtime)
}

#[cfg(test)]
#[path = "runtime_tests.rs"]
mod tests;
