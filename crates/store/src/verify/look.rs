//! Whether an entry is whole.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use super::TASK;
use super::list::Work;
use crate::digest::{Digest, Hasher};
use crate::error::StoreError;
use crate::fsio;
use crate::machines::{Lookup, MachineKey};
use crate::pushed::{PushedKey, PushedManifest, PushedTag};
use crate::report::{Event, Reporter};
use crate::root::Store;

/// Bytes read at a time.
const PIECE: usize = 1 << 18;

/// What a look at an entry showed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is whole, or gone: deleting is allowed, and collecting too.
    Sound,
    Damaged(String),
    /// Of a newer version.
    Newer,
    /// The disk, or a permission, does not let us.
    Unreadable(String),
    /// Given up in the middle.
    Interrupted,
}

/// Looks at entries; with a reporter it tells how far it is, and can be given up.
pub(super) struct Look<'a> {
    store: &'a Store,
    reporter: Option<&'a dyn Reporter>,
    given_up: Cell<bool>,
}

impl<'a> Look<'a> {
    pub(super) fn new(store: &'a Store, reporter: Option<&'a dyn Reporter>) -> Self {
        Self { store, reporter, given_up: Cell::new(false) }
    }

    pub(super) fn at(&self, work: &Work) -> Verdict {
        self.given_up.set(false);
        let verdict = match work {
            Work::Blob(digest) => self.blob(digest),
            Work::Stage(image, stage) => self.stage(image, stage),
            Work::Pushed(key) => self.pushed(key),
            Work::Tag(repository, tag) => self.tag(repository, tag),
            Work::Machine(key) => self.machine(key),
        };
        if self.given_up.get() { Verdict::Interrupted } else { verdict }
    }

    fn blob(&self, digest: &Digest) -> Verdict {
        let path = self.store.blobs().path(digest);
        match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_file() => {}
            Ok(_) => return Verdict::Damaged("it is no file".into()),
            Err(error) => return of_io(&error),
        }
        match self.hash(&path) {
            Ok(actual) if actual == *digest => Verdict::Sound,
            Ok(actual) => Verdict::Damaged(format!("its bytes have {actual}")),
            Err(error) => of_io(&error),
        }
    }

    /// The receipt alone: whether its blobs are there is asked when all were
    /// looked at.
    fn stage(&self, image: &Digest, stage: &str) -> Verdict {
        match self.store.stage_receipt(image, stage) {
            Ok(Some(receipt)) if receipt.image != *image || receipt.stage != *stage => {
                Verdict::Damaged("it is the receipt of something else".into())
            }
            Ok(_) => Verdict::Sound,
            Err(error) => of_error(error),
        }
    }

    fn pushed(&self, key: &PushedKey) -> Verdict {
        let path = self.store.repository_dir(&key.repository).join(format!("{}.json", key.manifest.hex()));
        match fsio::read_sealed::<PushedManifest>(&path, PushedManifest::SCHEMA) {
            Ok(Some(receipt)) if PushedKey::new(&receipt.repository, receipt.manifest) != *key => {
                Verdict::Damaged("it is the receipt of something else".into())
            }
            Ok(_) => Verdict::Sound,
            Err(error) => of_error(error),
        }
    }

    fn tag(&self, repository: &Digest, tag: &Digest) -> Verdict {
        let path = self.store.repository_dir(repository).join(format!("tag-{}.json", tag.hex()));
        let of = |text: &str| Digest::of(text.as_bytes());
        match fsio::read_sealed::<PushedTag>(&path, PushedTag::SCHEMA) {
            Ok(Some(found)) if (of(&found.repository), of(&found.tag)) != (*repository, *tag) => {
                Verdict::Damaged("it is another tag's".into())
            }
            Ok(_) => Verdict::Sound,
            Err(error) => of_error(error),
        }
    }

    fn machine(&self, key: &MachineKey) -> Verdict {
        match self.store.machine_hashed_by(key, true, &|path| self.hash(path)) {
            Ok(Lookup::Hit(_) | Lookup::Miss) => Verdict::Sound,
            Ok(Lookup::Damaged { problem }) => Verdict::Damaged(problem),
            Err(error) => of_error(error),
        }
    }

    /// The digest of a file.
    pub(super) fn hash(&self, path: &Path) -> io::Result<Digest> {
        self.hash_open(&mut File::open(path)?)
    }

    pub(super) fn hash_open(&self, file: &mut File) -> io::Result<Digest> {
        let mut hasher = Hasher::new();
        let mut piece = vec![0; PIECE];
        loop {
            let n = match file.read(&mut piece) {
                Ok(0) => return Ok(hasher.finish()),
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            hasher.update(&piece[..n]);
            if let Some(reporter) = self.reporter {
                reporter.report(Event::Advance { task: TASK, bytes: n as u64 });
                if reporter.gives_up() {
                    self.given_up.set(true);
                    return Err(io::ErrorKind::Interrupted.into());
                }
            }
        }
    }
}

pub(super) fn of_error(error: StoreError) -> Verdict {
    match error {
        StoreError::Newer { .. } => Verdict::Newer,
        StoreError::Damaged { problem, .. } => Verdict::Damaged(problem),
        StoreError::Io { source, .. } => of_io(&source),
        error => Verdict::Unreadable(error.to_string()),
    }
}

fn of_io(error: &io::Error) -> Verdict {
    match error.kind() {
        io::ErrorKind::NotFound => Verdict::Sound,
        io::ErrorKind::IsADirectory | io::ErrorKind::NotADirectory => {
            Verdict::Damaged("it is no file".into())
        }
        _ => Verdict::Unreadable(error.to_string()),
    }
}
