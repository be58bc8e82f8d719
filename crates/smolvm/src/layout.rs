//! How a smolvm lies on disk.
//!
//! Three forms are known:
//!
//! ```text
//! the wheel's    smol-vmm  libkrun.so  libkrunfw.so.5  agent-rootfs.tar.zst  *-template.ext4.zst
//! the release's  smolvm (a script)  smolvm-bin  lib/libkrun*  agent-rootfs/
//! a package's    /usr/bin/smolvm (a script)  /usr/lib/smolvm/{smolvm-bin,lib,agent-rootfs}
//! ```
//!
//! Source: `install.sh`, `smolvm-wrapper.sh`, `nfpm.yaml`, `smolvm.nix` and
//! `PKGBUILD` of smolvm 1.9; its installer puts the agent rootfs into the
//! user's data folder instead.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::rootfs::is_rootfs;

/// The libraries that smolvm loads, by the names it looks for.
#[cfg(target_os = "macos")]
const LIBRARIES: [&str; 2] = ["libkrun.dylib", "libkrunfw.5.dylib"];
#[cfg(not(target_os = "macos"))]
const LIBRARIES: [&str; 2] = ["libkrun.so", "libkrunfw.so.5"];

/// What smolvm's program is called, in the order of preference. The release's
/// `smolvm` is a script that sets the library path and runs `smolvm-bin`.
const PROGRAMS: [&str; 3] = ["smolvm", "smol-vmm", "smolvm-bin"];

/// Where the parts of one smolvm are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    /// What is run.
    pub(crate) program: PathBuf,
    /// What else makes up its identity: the binary behind a script, the
    /// libraries.
    pub(crate) parts: Vec<PathBuf>,
    pub(crate) lib_dir: PathBuf,
    pub(crate) rootfs: RootfsSource,
}

/// Where the agent rootfs is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RootfsSource {
    /// A folder.
    Folder(PathBuf),
    /// A tar, plain or zstd.
    Archive(PathBuf),
}

/// What of the environment decides where an installed smolvm is.
#[derive(Debug, Clone, Default)]
pub(crate) struct Surroundings {
    /// `PATH`.
    pub(crate) path: OsString,
    /// `SMOLVM_AGENT_ROOTFS`, which smolvm obeys too.
    pub(crate) agent_rootfs: Option<PathBuf>,
    /// The folder of applications' data: `~/.local/share`.
    pub(crate) data_dir: Option<PathBuf>,
}

impl Surroundings {
    pub(crate) fn of_process() -> Self {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let home = set("HOME").map(PathBuf::from);
        let data_dir = if cfg!(target_os = "macos") {
            home.map(|home| home.join("Library/Application Support"))
        } else {
            set("XDG_DATA_HOME").map(PathBuf::from).or_else(|| home.map(|home| home.join(".local/share")))
        };
        Self {
            path: set("PATH").unwrap_or_default(),
            agent_rootfs: set("SMOLVM_AGENT_ROOTFS").map(PathBuf::from),
            data_dir,
        }
    }

    /// The `smolvm` that a shell would run: a look-up, nothing is started.
    pub(crate) fn smolvm_on_path(&self) -> Option<PathBuf> {
        std::env::split_paths(&self.path)
            .filter(|dir| dir.is_absolute())
            .map(|dir| dir.join("smolvm"))
            .find(|program| is_executable(program))
    }
}

impl Layout {
    /// Of a folder that somebody named. The error says what is missing.
    pub(crate) fn of_folder(dir: &Path) -> Result<Self, String> {
        if !dir.is_dir() {
            return Err("there is no such folder".into());
        }
        let program = PROGRAMS.iter().map(|name| dir.join(name)).find(|path| path.is_file());
        let program = program.ok_or("it has no smolvm and no smol-vmm")?;
        if !is_executable(&program) {
            return Err(format!("{} is not executable (chmod +x it)", program.display()));
        }
        let rootfs = rootfs_in(dir).ok_or("it has no agent-rootfs folder and no agent-rootfs.tar.zst")?;
        Self::assemble(program, dir, rootfs)
    }

    /// Of a `smolvm` found on the `PATH`.
    pub(crate) fn of_installed(program: &Path, surroundings: &Surroundings) -> Result<Self, String> {
        let real = program.canonicalize().map_err(|error| format!("it cannot be followed: {error}"))?;
        let bin = real.parent().unwrap_or(Path::new("/"));
        // Beside the program; a package's private folder; Nix, Homebrew.
        let homes = [
            bin.to_owned(),
            bin.join("../lib/smolvm"),
            bin.join("../libexec/smolvm"),
            bin.join("../libexec"),
        ];
        let homes = homes.map(|home| home.canonicalize().unwrap_or(home));
        let home = homes.iter().find(|home| libraries_in(home).is_some());
        let home = home
            .ok_or_else(|| format!("{} and {} are not where it was installed", LIBRARIES[0], LIBRARIES[1]))?;
        let given = surroundings.agent_rootfs.iter().cloned();
        let data = surroundings.data_dir.iter().map(|dir| dir.join("smolvm/agent-rootfs"));
        let rootfs =
            given.chain(std::iter::once(home.join("agent-rootfs"))).chain(data).find(|dir| is_rootfs(dir));
        let rootfs = rootfs.map(RootfsSource::Folder).or_else(|| rootfs_in(home));
        Self::assemble(program.to_owned(), home, rootfs.ok_or("its agent rootfs is nowhere to be found")?)
    }

    fn assemble(program: PathBuf, home: &Path, rootfs: RootfsSource) -> Result<Self, String> {
        let lib_dir =
            libraries_in(home).ok_or_else(|| format!("it has no {} and {}", LIBRARIES[0], LIBRARIES[1]))?;
        let binary = [home.join("smolvm-bin")].into_iter().filter(|path| path.is_file() && *path != program);
        let parts = binary.chain(LIBRARIES.iter().map(|name| lib_dir.join(name))).collect();
        Ok(Self { program, parts, lib_dir, rootfs })
    }
}

/// Whether `name` is a library of the runtime by its file name.
pub(crate) fn is_library(name: &str) -> bool {
    name.starts_with("lib") && (name.ends_with(".dylib") || name.ends_with(".so") || name.contains(".so."))
}

/// The folder of a runtime that holds both libraries.
pub(crate) fn libraries_in(home: &Path) -> Option<PathBuf> {
    [home.join("lib"), home.to_owned()]
        .into_iter()
        .find(|dir| LIBRARIES.iter().all(|name| dir.join(name).is_file()))
}

fn rootfs_in(dir: &Path) -> Option<RootfsSource> {
    let folder = dir.join("agent-rootfs");
    if is_rootfs(&folder) {
        return Some(RootfsSource::Folder(folder));
    }
    let archives = ["agent-rootfs.tar.zst", "agent-rootfs.tar"].map(|name| dir.join(name));
    archives.into_iter().find(|path| path.is_file()).map(RootfsSource::Archive)
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
#[path = "layout_tests.rs"]
mod tests;
