//! The pinned wheel of smolvm: which, and what is taken out of it.
//!
//! PyPI's `smolmachines` carries the engine: `smol/smol-vmm` is the smolvm
//! program, beside its libraries, agent rootfs and disk templates.

use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use smolcellar_store::{Digest, Hasher, StoreError, fsio};
use zip::ZipArchive;

use crate::error::{Error, Result};
use crate::layout::is_library;
use crate::local::set_mode;
use crate::receipt::FileFact;
use crate::version::Version;

/// The version that [`crate::install`] installs.
pub const PINNED_VERSION: Version = Version::new(1, 32, 2);

/// The largest file that is taken out of a wheel, in bytes.
const LARGEST: u64 = 1 << 30;

/// A wheel, known by its contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pin {
    /// The file's name on PyPI.
    pub file: &'static str,
    /// Its SHA-256 in hexadecimal digits.
    pub sha256: &'static str,
    /// Its size in bytes.
    pub size: u64,
    /// What pip calls the platform.
    pub platform: &'static str,
}

/// Every platform that the pinned version is published for.
const PINS: [(&str, &str, Pin); 3] = [
    (
        "linux",
        "x86_64",
        Pin {
            file: "smolmachines-1.32.2-cp39-abi3-manylinux_2_28_x86_64.whl",
            sha256: "81b104e2622aa0b187b6b7054397c391151b83db2638a16d0e54c517684f0dc2",
            size: 44_288_015,
            platform: "manylinux_2_28_x86_64",
        },
    ),
    (
        "linux",
        "aarch64",
        Pin {
            file: "smolmachines-1.32.2-cp39-abi3-manylinux_2_28_aarch64.whl",
            sha256: "5cdd53c71369f149639f00197ce9deaafd204d2bda03b323b1ae3ee35ba4cf8b",
            size: 42_344_788,
            platform: "manylinux_2_28_aarch64",
        },
    ),
    (
        "macos",
        "aarch64",
        Pin {
            file: "smolmachines-1.32.2-cp39-abi3-macosx_11_0_arm64.whl",
            sha256: "af690651bd2d2e329f3ab15d35acd7037a3a94581b3f79c08d1df867e8ef54f9",
            size: 43_799_419,
            platform: "macosx_11_0_arm64",
        },
    ),
];

impl Pin {
    /// The wheel for this machine, if there is one.
    pub fn of_host() -> Option<Self> {
        Self::of(std::env::consts::OS, std::env::consts::ARCH)
    }

    fn of(os: &str, arch: &str) -> Option<Self> {
        PINS.iter().find(|(pin_os, pin_arch, _)| (*pin_os, *pin_arch) == (os, arch)).map(|(_, _, pin)| *pin)
    }

    /// Its digest.
    ///
    /// # Errors
    /// None for the pins of this module, which a test proves.
    pub fn digest(&self) -> Result<Digest> {
        let bad = |_| Error::Argument {
            what: "pinned digest",
            value: self.sha256.into(),
            problem: "is no SHA-256",
        };
        Digest::from_hex(self.sha256).map_err(bad)
    }
}

/// What came out of a wheel.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    /// The files that belong to the runtime as they are.
    pub(crate) files: Vec<FileFact>,
    /// The archive of the agent rootfs.
    pub(crate) rootfs: Option<PathBuf>,
    /// The compressed disk templates. A wheel for macOS has none.
    pub(crate) templates: Vec<PathBuf>,
}

/// What a file of the wheel is to us.
#[derive(Debug, PartialEq, Eq)]
enum Part<'a> {
    /// Installed under this name, with this mode.
    Keep(PathBuf, u32),
    /// The agent rootfs, to be unpacked.
    Rootfs(&'a str),
    /// A disk template, to be unpacked.
    Template(&'a str),
    /// Nothing: the Python side.
    Skip,
}

impl<'a> Part<'a> {
    fn of(name: &'a str) -> Self {
        let Some(name) = name.strip_prefix("smol/") else { return Self::Skip };
        let plain = |name: &str| !name.is_empty() && !name.contains('/') && name != "." && name != "..";
        match name {
            // Under its own name it takes itself for a packed program.
            "smol-vmm" => Self::Keep("smolvm".into(), 0o755),
            "THIRD_PARTY_NOTICES.md" => Self::Keep(name.into(), 0o444),
            "agent-rootfs.tar.zst" => Self::Rootfs(name),
            "storage-template.ext4.zst" | "overlay-template.ext4.zst" => Self::Template(name),
            _ if name.strip_prefix("licenses/").is_some_and(plain) => Self::Keep(name.into(), 0o444),
            _ if plain(name) && is_library(name) => Self::Keep(name.into(), 0o755),
            _ => Self::Skip,
        }
    }
}

/// Takes out of `wheel` what is installed, into `dest`, and what is to be
/// unpacked further, into `scratch`.
pub(crate) fn extract(wheel: &Path, dest: &Path, scratch: &Path) -> Result<Contents> {
    let bad = Error::archive(wheel);
    let mut zip = ZipArchive::new(BufReader::new(fsio::open(wheel)?)).map_err(|e| bad(&e))?;
    let mut contents = Contents::default();
    for index in 0..zip.len() {
        let mut file = zip.by_index(index).map_err(|e| bad(&e))?;
        let name = file.name().map_err(|e| bad(&e))?.into_owned();
        let size = file.size();
        match Part::of(&name) {
            Part::Skip => {}
            Part::Keep(path, mode) => {
                let at = dest.join(&path);
                if let Some(parent) = at.parent().filter(|parent| *parent != dest) {
                    fsio::create_dirs(parent)?;
                    set_mode(parent, 0o755)?;
                }
                let sha256 = copy(&mut file, size, &at).map_err(|e| wrap(e, &name, &bad))?;
                set_mode(&at, mode)?;
                contents.files.push(FileFact { path, size, sha256, sparse: false });
            }
            Part::Rootfs(short) => {
                copy(&mut file, size, &scratch.join(short)).map_err(|e| wrap(e, &name, &bad))?;
                contents.rootfs = Some(scratch.join(short));
            }
            Part::Template(short) => {
                copy(&mut file, size, &scratch.join(short)).map_err(|e| wrap(e, &name, &bad))?;
                contents.templates.push(scratch.join(short));
            }
        }
    }
    contents.files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(contents)
}

/// Which side of a copy failed.
enum CopyError {
    Read(String),
    Write(StoreError),
}

fn wrap(error: CopyError, name: &str, bad: &impl Fn(&dyn std::fmt::Display) -> Error) -> Error {
    match error {
        CopyError::Read(problem) => bad(&format_args!("{name}: {problem}")),
        CopyError::Write(error) => error.into(),
    }
}

fn copy(from: &mut impl Read, size: u64, to: &Path) -> Result<Digest, CopyError> {
    let mut file = fsio::create_new(to).map_err(CopyError::Write)?;
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; 1 << 16];
    let mut copied = 0;
    loop {
        let length = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(CopyError::Read(error.to_string())),
        };
        let bytes = buffer.get(..length).unwrap_or_default();
        copied += length as u64;
        if copied > size.min(LARGEST) {
            return Err(CopyError::Read("is larger than it says".into()));
        }
        hasher.update(bytes);
        io::Write::write_all(&mut file, bytes)
            .map_err(|e| CopyError::Write(StoreError::io("write", to)(e)))?;
    }
    if copied != size {
        return Err(CopyError::Read(format!("has {copied} of {size} bytes")));
    }
    Ok(hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pin_is_well_formed_and_of_the_pinned_version() {
        for (os, arch, pin) in PINS {
            assert_eq!(pin.digest().unwrap().hex(), pin.sha256);
            assert!(pin.file.starts_with(&format!("smolmachines-{PINNED_VERSION}-")), "{}", pin.file);
            assert!(pin.file.ends_with(&format!("-{}.whl", pin.platform)), "{}", pin.file);
            assert_eq!(Pin::of(os, arch), Some(pin));
        }
        assert_eq!(Pin::of("macos", "x86_64"), None);
    }

    #[test]
    fn only_the_engine_is_taken_out_of_a_wheel() {
        assert_eq!(Part::of("smol/smol-vmm"), Part::Keep("smolvm".into(), 0o755));
        assert_eq!(Part::of("smol/libkrun.so"), Part::Keep("libkrun.so".into(), 0o755));
        assert_eq!(Part::of("smol/libkrunfw.so.5"), Part::Keep("libkrunfw.so.5".into(), 0o755));
        assert_eq!(Part::of("smol/libkrunfw.5.dylib"), Part::Keep("libkrunfw.5.dylib".into(), 0o755));
        assert_eq!(Part::of("smol/licenses/a.txt"), Part::Keep("licenses/a.txt".into(), 0o444));
        assert_eq!(Part::of("smol/agent-rootfs.tar.zst"), Part::Rootfs("agent-rootfs.tar.zst"));
        assert_eq!(Part::of("smol/overlay-template.ext4.zst"), Part::Template("overlay-template.ext4.zst"));
        for other in [
            "smol/__init__.py",
            "smol/_native.abi3.so",
            "smol/licenses/../../x",
            "smol/licenses/",
            "smol/../libx.so",
            "smol/lib/../../libx.so",
            "libkrun.so",
            "/smol/libkrun.so",
            "smolmachines-1.32.2.dist-info/RECORD",
        ] {
            assert_eq!(Part::of(other), Part::Skip, "{other}");
        }
    }

    #[test]
    fn a_wheel_that_is_no_zip_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let wheel = dir.path().join("a.whl");
        fsio::write_atomic(dir.path(), &wheel, b"not a zip").unwrap();
        let error = extract(&wheel, dir.path(), dir.path()).unwrap_err().to_string();
        assert!(error.contains("a.whl"), "{error}");
    }
}
