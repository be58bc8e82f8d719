//! The runtime that smolcellar installs into the store.

use std::fs;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use smolcellar_store::{Bucket, Digest, Event, Reporter, Store, StoreError, fsio};

use crate::error::{Error, Result};
use crate::layout::libraries_in;
use crate::local::{ROOTFS, set_mode, unpack_rootfs, write_rootfs_tar};
use crate::receipt::{FileFact, Receipt};
use crate::runtime::{Origin, Runtime};
use crate::wheel::{self, Contents, PINNED_VERSION, Pin};
use crate::{pip, sparse};

/// How to install.
#[derive(Debug, Clone, Copy, Default)]
pub struct InstallOptions {
    /// Nothing may be downloaded.
    pub offline: bool,
    /// What is installed is replaced.
    pub force: bool,
}

/// The installed runtime, if it is whole.
pub(crate) fn find(store: &Store) -> Result<Option<Runtime>> {
    let Some(pin) = Pin::of_host() else { return Ok(None) };
    let sha256 = pin.digest()?;
    let dest = folder(store, &sha256);
    Ok(Receipt::load(&dest)?.map(|receipt| receipt.runtime(&dest, Origin::Wheel { sha256 })))
}

/// What the wheel and what is in it take together, in bytes: 44 and 134 MB.
const INSTALLED: u64 = 180_000_000;

/// Installs the pinned runtime into the store, once: a later call, or one that
/// waited for another process doing it, finds it there.
///
/// The wheel is taken from the Runtimes bucket's folder if somebody put it
/// there, else from PyPI by pip; either way its SHA-256 must be the pinned one.
/// Takes about 10 s after the download, most of it for decompressing two disk
/// templates, and 200 MB of disk.
///
/// # Errors
/// [`Error::NoWheel`], [`Error::Fetch`], [`Error::WrongWheel`],
/// [`Error::Archive`], [`Error::Store`]. Nothing is left behind.
pub fn install(store: &Store, reporter: &dyn Reporter, options: &InstallOptions) -> Result<Runtime> {
    let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
    let pin = Pin::of_host().ok_or(Error::NoWheel { os, arch })?;
    let sha256 = pin.digest()?;
    let _lock = store.lock_build(&format!("runtime-{}", sha256.hex()), reporter)?;
    if let Some(runtime) = find(store)?.filter(|_| !options.force) {
        return Ok(runtime);
    }
    store.need(INSTALLED, "installing smolvm")?;
    // Two folders: the one is published, the other is thrown away.
    let scratch = store.temp_dir()?;
    let temp = store.temp_dir()?;
    let wheel = fetch(store, reporter, options, &pin, scratch.path())?;
    let receipt = unpack(reporter, &wheel, temp.path(), scratch.path())?;
    receipt.write(&temp)?;
    let dest = folder(store, &sha256);
    store.publish_dir(temp, &dest)?;
    Ok(receipt.runtime(&dest, Origin::Wheel { sha256 }))
}

/// Whether a folder of this name is the pinned runtime's.
pub(crate) fn is_pinned(name: &str) -> bool {
    let digest = Pin::of_host().and_then(|pin| pin.digest().ok());
    digest.is_some_and(|digest| digest.hex() == name)
}

fn folder(store: &Store, wheel: &Digest) -> PathBuf {
    store.bucket_dir(Bucket::Runtimes).join(wheel.hex())
}

/// The wheel's path, its digest checked.
fn fetch(
    store: &Store,
    reporter: &dyn Reporter,
    options: &InstallOptions,
    pin: &Pin,
    scratch: &Path,
) -> Result<PathBuf> {
    let folder = store.bucket_dir(Bucket::Runtimes);
    let by_hand = folder.join(pin.file);
    if by_hand.is_file() {
        let text =
            format!("smolvm {PINNED_VERSION}: installing the wheel found at {}, once", by_hand.display());
        reporter.report(Event::Note { text: &text });
        check(&by_hand, pin)?;
        return Ok(by_hand);
    }
    let failed = |problem: String| -> Result<Error> {
        Ok(Error::Fetch { problem, wheel: pin.file, digest: pin.digest()?, folder: folder.clone() })
    };
    if options.offline {
        return Err(failed("it is not installed and downloads are not allowed (--offline)".into())?);
    }
    let megabytes = (pin.size + 500_000) / 1_000_000;
    let text =
        format!("smolvm {PINNED_VERSION}: downloading the pinned wheel from PyPI ({megabytes} MB), once");
    reporter.report(Event::Note { text: &text });
    let task = "download smolvm";
    reporter.report(Event::Begin { task, total: None });
    let wheel = pip::download(pin, scratch);
    reporter.report(Event::End { task });
    let wheel = match wheel? {
        Ok(wheel) => wheel,
        Err(problem) => return Err(failed(problem)?),
    };
    check(&wheel, pin)?;
    Ok(wheel)
}

/// pip was told the hash too; what it printed is not believed.
fn check(wheel: &Path, pin: &Pin) -> Result<()> {
    let expected = pin.digest()?;
    let actual = Digest::of_file(wheel).map_err(StoreError::io("read", wheel))?;
    if actual == expected {
        Ok(())
    } else {
        Err(Error::WrongWheel { path: wheel.to_owned(), expected, actual })
    }
}

/// Makes the runtime's folder in `dest`.
fn unpack(reporter: &dyn Reporter, wheel: &Path, dest: &Path, scratch: &Path) -> Result<Receipt> {
    set_mode(dest, 0o755)?;
    let Contents { mut files, rootfs, templates } = wheel::extract(wheel, dest, scratch)?;
    let bad = Error::archive(wheel);
    let has_program = files.iter().any(|fact| fact.path == Path::new("smolvm"));
    if !has_program || libraries_in(dest).is_none() {
        return Err(bad(&"it has no smol-vmm, or not its libraries"));
    }
    let rootfs = rootfs.ok_or_else(|| bad(&"it has no agent rootfs"))?;
    let (rootfs, templates) = std::thread::scope(|scope| {
        let templates: Vec<_> =
            templates.iter().map(|from| scope.spawn(move || template(reporter, from, dest))).collect();
        let rootfs = unpack_rootfs(&rootfs, dest).and_then(|()| write_rootfs_tar(&dest.join(ROOTFS), dest));
        let templates: Vec<_> = templates.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        (rootfs, templates)
    });
    let rootfs = rootfs?;
    files.push(rootfs.clone());
    for template in templates {
        files.push(template.map_err(|_| bad(&"a thread that unpacked a template panicked"))??);
    }
    Ok(Receipt {
        schema: Receipt::SCHEMA,
        version: PINNED_VERSION,
        program: "smolvm".into(),
        lib_dir: PathBuf::new(),
        agent_rootfs: ROOTFS.into(),
        rootfs_tar: rootfs.path,
        rootfs_digest: rootfs.sha256,
        rootfs_size: rootfs.size,
        files,
    })
}

/// Decompresses a disk template. smolvm would do it itself at its first start,
/// in 22 s; it looks for the result beside its program.
fn template(reporter: &dyn Reporter, from: &Path, dest: &Path) -> Result<FileFact> {
    let path = PathBuf::from(from.file_stem().unwrap_or_default());
    let task = format!("unpack {}", path.display());
    let source = BufReader::new(fsio::open(from)?);
    reporter.report(Event::Begin { task: &task, total: frame_size(from) });
    let progress = |bytes| reporter.report(Event::Advance { task: &task, bytes });
    let at = dest.join(&path);
    let facts = sparse::decompress(source, from, &at, &progress);
    reporter.report(Event::End { task: &task });
    let facts = facts?;
    // Machines' disks are overlays over it: whoever writes to it breaks them.
    set_mode(&at, 0o444)?;
    Ok(FileFact { path, size: facts.size, sha256: facts.digest, sparse: true })
}

/// The logical size that a zstd frame says it has; the header is 18 bytes at
/// the most.
fn frame_size(path: &Path) -> Option<u64> {
    use std::io::Read;
    let mut head = Vec::new();
    fs::File::open(path).ok()?.take(18).read_to_end(&mut head).ok()?;
    zstd::zstd_safe::get_frame_content_size(&head).ok().flatten()
}

#[cfg(test)]
#[path = "managed_tests.rs"]
mod tests;
