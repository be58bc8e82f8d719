//! Taking an export in.

use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::path::PathBuf;

use smolcellar_oci::ImageId;
use smolcellar_store::{BlobRef, BlobWriter, Digest, MachineKey, Reporter, Store, TempDir, fsio};

use crate::copy::{TarInput, Task};
use crate::error::{Result, Stopped, TransferError};
use crate::foreign;
use crate::format::{self, BLOCK, Header, HeaderError, MachineEntry};
use crate::publish::{self, Staged};

/// The task named in events.
const TASK: &str = "import";

/// The magic number of a zstd frame (RFC 8878, section 3.1.1), with which the
/// assets of a `.smolmachine` begin.
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// What the caller knows of the input.
#[derive(Debug, Clone, Default)]
pub struct Expected {
    /// The image of a bare `.smolmachine`; an export names its own.
    pub image_id: Option<ImageId>,
    /// There must be exactly one artifact.
    pub one: bool,
    /// Whom a bare `.smolmachine` is said to be built for; an agent's name.
    pub agent: Option<String>,
}

/// How an entry got into the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It was not there.
    Imported,
    /// It was there and whole, and stays as it was.
    Present,
    /// It was there, and damaged: that is in quarantine now.
    Replaced,
}

/// An entry of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// An image's blobs and their receipts.
    Image(Digest),
    /// An artifact.
    Machine {
        /// Its key.
        key: MachineKey,
        /// The agent it was first built for.
        agent: String,
        /// Where it is, absolute.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// Its SHA-256.
        sha256: Digest,
    },
}

/// An entry that is in the store now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// Which.
    pub what: What,
    /// How it got there.
    pub status: Status,
}

/// Takes an export, or a bare `.smolmachine` of a known image, into the store.
/// `what` is what messages call it. Nothing of an entry is visible before all
/// of it was checked, and then all of it is.
///
/// # Errors
/// [`Stopped`] with what was imported before: entries are published one by one.
pub fn import(
    store: &Store,
    input: &mut dyn Read,
    what: &str,
    expected: &Expected,
    reporter: &dyn Reporter,
) -> Result<Vec<Imported>, Box<Stopped>> {
    let mut import = Import { store, what, expected, reporter, entries: 0, imported: Vec::new() };
    match import.run(input) {
        Ok(()) => Ok(import.imported),
        Err(error) => Err(Box::new(Stopped { imported: import.imported, entries: import.entries, error })),
    }
}

struct Import<'a> {
    store: &'a Store,
    what: &'a str,
    expected: &'a Expected,
    reporter: &'a dyn Reporter,
    entries: usize,
    imported: Vec<Imported>,
}

impl Import<'_> {
    fn run(&mut self, input: &mut dyn Read) -> Result<()> {
        let mut tar = TarInput::new(input, self.what);
        let first = tar.up_to(BLOCK)?;
        let what = || self.what.to_owned();
        if first.starts_with(&ZSTD) {
            let image = self.expected.image_id.ok_or_else(|| TransferError::NeedsImage(what()))?;
            self.entries = 1;
            let agent = self.expected.agent.as_deref();
            let mut all = std::io::Cursor::new(first).chain(input);
            let imported = foreign::import(self.store, &mut all, self.what, image, agent, self.reporter)?;
            self.imported.push(imported);
            return Ok(());
        }
        let size = match smolcellar_oci::first_entry(&mut &first[..]) {
            Ok(Some((path, size))) if path == format::HEADER => size,
            _ if first.len() < BLOCK && first.starts_with(format::HEADER.as_bytes()) => {
                return Err(TransferError::Cut { what: what(), inside: "its first header".into() });
            }
            _ => return Err(TransferError::NotExport(what())),
        };
        if self.expected.image_id.is_some() {
            return Err(TransferError::NeedsNoImage(what()));
        }
        if size > fsio::MAX_JSON {
            return Err(tar.invalid(format::HEADER, format!("its size of {size} bytes is absurd")));
        }
        let bytes = tar.small(&first, format::HEADER, size)?;
        let header = Header::parse(&bytes, self.what).map_err(|error| match error {
            HeaderError::Bad(problem) => tar.invalid(format::HEADER, problem),
            HeaderError::Store(error) => error.into(),
        })?;
        if self.expected.one && header.machines.len() != 1 {
            return Err(TransferError::NotOne { what: what(), count: header.machines.len() });
        }
        self.entries = header.images.len() + header.machines.len();
        self.store.need(self.missing(&header)?, &format!("importing {}", self.what))?;
        self.files(&mut tar, &header)?;
        tar.end()
    }

    /// The bytes of what the store does not have yet.
    fn missing(&self, header: &Header) -> Result<u64> {
        let keys: HashSet<_> = self.store.machine_keys()?.into_iter().collect();
        let there = |machine: &&MachineEntry| {
            keys.contains(&MachineKey { image: machine.image, recipe: machine.recipe })
        };
        let machines = header.machines.iter().filter(|machine| !there(machine)).map(|machine| machine.size);
        let blobs = self.store.blobs();
        let layers = header.blobs().filter(|(_, blob)| !blobs.has(&blob.digest, blob.size));
        // A header may say anything.
        Ok(machines.chain(layers.map(|(_, blob)| blob.size)).fold(0, u64::saturating_add))
    }

    /// The files after the header, each entry published when it is complete.
    fn files(&mut self, tar: &mut TarInput<'_>, header: &Header) -> Result<()> {
        let task = Task::begin(self.reporter, TASK, header.bytes());
        let mut blobs = header.blobs().peekable();
        for (number, image) in header.images.iter().enumerate() {
            let dir = self.store.temp_dir()?;
            let mut staged = HashMap::new();
            while let Some((_, blob)) = blobs.next_if(|(of, _)| *of == number) {
                staged.insert(blob.digest, self.blob(tar, &dir, blob, &task)?);
            }
            let status = publish::image(self.store, self.what, image, &staged, self.reporter)?;
            self.imported.push(Imported { what: What::Image(image.image), status });
        }
        for machine in &header.machines {
            let dir = self.store.temp_dir()?;
            let staged = self.machine(tar, &dir, machine, &task)?;
            let imported = publish::machine(self.store, self.what, machine, &staged, self.reporter)?;
            self.imported.push(imported);
        }
        Ok(())
    }

    fn blob(&self, tar: &mut TarInput<'_>, dir: &TempDir, blob: &BlobRef, task: &Task<'_>) -> Result<Staged> {
        self.stage(tar, dir, &format::blob_path(&blob.digest), blob.size, &blob.digest, task)
    }

    fn machine(
        &self,
        tar: &mut TarInput<'_>,
        dir: &TempDir,
        machine: &MachineEntry,
        task: &Task<'_>,
    ) -> Result<Staged> {
        let path = format::machine_path(&machine.key());
        self.stage(tar, dir, &path, machine.size, &machine.sha256, task)
    }

    /// The next file, in a temporary folder, with the digest it must have.
    fn stage(
        &self,
        tar: &mut TarInput<'_>,
        dir: &TempDir,
        path: &str,
        size: u64,
        expected: &Digest,
        task: &Task<'_>,
    ) -> Result<Staged> {
        let mut writer = BlobWriter::create(dir)?;
        let to = writer.path().to_owned();
        tar.file(path, size, &mut writer, &to, task)?;
        let staged = Staged { path: to, blob: writer.finish(), sum: None };
        let actual = staged.blob.digest()?;
        if actual == *expected {
            return Ok(staged);
        }
        let (what, entry) = (self.what.to_owned(), path.to_owned());
        Err(TransferError::Mismatch { what, entry, expected: *expected, actual })
    }
}
