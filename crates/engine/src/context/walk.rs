//! Listing a context.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use smolcellar_store::Digest;

use super::Builder;
use super::error::{ContextError, Result};
use super::hash::{hash_all, stat_of};
use super::ignore::{Fallen, Ignore};
use super::listing::{ContextFile, ContextListing, FileKind, InputFile};
use super::path::ContextPath;

/// The largest Dockerfile or ignore file that is read, in bytes.
const MAX_INPUT: u64 = 4 << 20;

/// How much older than the listing a file must be for its times to tell of
/// later writes, in nanoseconds: the coarsest clock of a file system (FAT's).
const YOUNG: i128 = 2_000_000_000;

/// The mode the classic builder gives a folder that is excluded but holds
/// something that is not.
const IMPLIED: u16 = 0o755;

/// What to list.
#[derive(Debug, Clone)]
pub struct ContextSpec<'a> {
    /// The context's folder.
    pub context: &'a Path,
    /// The Dockerfile; `None` is the one in the context.
    pub dockerfile: Option<&'a Path>,
    /// Who will build.
    pub builder: Builder,
    /// The most files, folders and links to list.
    pub count_limit: usize,
}

/// What listing gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listed {
    /// All of it.
    All {
        /// The listing.
        listing: ContextListing,
        /// How many files' contents were read, the others being as they were.
        hashed: usize,
    },
    /// The context holds more than is worth listing.
    TooMany {
        /// The limit, as given.
        count_limit: usize,
    },
}

/// Lists a context. Files that look as they did when `previous` was made are
/// not read again.
///
/// # Errors
/// [`ContextError`]: something cannot be read, changed while it was, or is a
/// pattern that cannot be followed.
pub fn list(spec: &ContextSpec<'_>, previous: Option<&ContextListing>) -> Result<Listed> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i128);
    list_at(spec, previous, now)
}

/// The same at a time in nanoseconds since 1970, not after any look at a file.
pub(super) fn list_at(
    spec: &ContextSpec<'_>,
    previous: Option<&ContextListing>,
    now: i128,
) -> Result<Listed> {
    // Later on, what is not there went away meanwhile.
    std::fs::metadata(spec.context).map_err(|source| ContextError::Io {
        operation: "examine",
        path: spec.context.to_owned(),
        source,
    })?;
    let dockerfile = spec.dockerfile.map_or_else(|| usual_dockerfile(spec.context), Path::to_owned);
    let bytes = read(&dockerfile)?;
    let recorded = |path: &Path, bytes: &[u8]| InputFile {
        path: ContextPath::new(path.as_os_str().as_bytes()).to_string(),
        digest: Digest::of(bytes),
    };
    let found = ignore_file(spec, &dockerfile)?;
    let said = match &found {
        Some((path, bytes)) => Ignore::parse(path, bytes, spec.builder)?,
        None => Ignore::nothing(spec.builder),
    };
    // What the classic builder's client sends although it is excluded; the
    // engine then takes it out again.
    let mut sent = said.clone();
    let mut taken_out = Vec::new();
    if spec.builder == Builder::Classic {
        for name in std::iter::once(".dockerignore".to_owned()).chain(inside(spec.context, &dockerfile)) {
            if said.names(name.as_bytes()) {
                sent.send_anyway(&name);
                taken_out.push(ContextPath::new(name));
            }
        }
    }
    let mut walk = Walk {
        spec,
        ignore: &sent,
        previous,
        found: BTreeMap::new(),
        read: Vec::new(),
        pending: vec![Folder { path: Vec::new(), fallen: Fallen::default(), excluded: false }],
        full: false,
    };
    while let Some(folder) = walk.pending.pop().filter(|_| !walk.full) {
        walk.folder(&folder)?;
    }
    let Walk { found: mut files, read, full, .. } = walk;
    if full {
        return Ok(Listed::TooMany { count_limit: spec.count_limit });
    }
    let paths: Vec<PathBuf> = read.iter().map(|path| spec.context.join(path.as_path())).collect();
    let hashed = read.len();
    for (path, hashed) in read.into_iter().zip(hash_all(&paths)?) {
        let stat = stat_of(&hashed.metadata);
        let old = stat.mtime.max(stat.ctime) < now - YOUNG;
        files.insert(
            path,
            ContextFile {
                size: hashed.metadata.size(),
                digest: Some(hashed.digest),
                attributes: hashed.attributes,
                stat: old.then_some(stat),
                ..plain(FileKind::File, &hashed.metadata)
            },
        );
    }
    files.retain(|path, _| !taken_out.contains(path));
    let ignore = found.as_ref().map(|(path, bytes)| recorded(path, bytes));
    let listing = ContextListing { dockerfile: recorded(&dockerfile, &bytes), ignore, files };
    Ok(Listed::All { listing, hashed })
}

struct Walk<'a> {
    spec: &'a ContextSpec<'a>,
    ignore: &'a Ignore,
    previous: Option<&'a ContextListing>,
    found: BTreeMap<ContextPath, ContextFile>,
    /// Files whose contents must be read.
    read: Vec<ContextPath>,
    /// Folders to look into, one after the other: a context may be nested
    /// deeper than the stack or the limit of open files.
    pending: Vec<Folder>,
    /// There is more than the limit.
    full: bool,
}

/// A folder of the context; the empty path is the context itself.
struct Folder {
    path: Vec<u8>,
    fallen: Fallen,
    excluded: bool,
}

impl Walk<'_> {
    /// Lists what is in a folder.
    fn folder(&mut self, folder: &Folder) -> Result<()> {
        let at = self.spec.context.join(ContextPath::new(folder.path.clone()).as_path());
        let entries = match std::fs::read_dir(&at) {
            // Looked into only in case an exception is in it.
            Err(error) if folder.excluded && error.kind() == io::ErrorKind::PermissionDenied => return Ok(()),
            entries => entries.map_err(ContextError::io("list", &at))?,
        };
        for entry in entries {
            let name = entry.map_err(ContextError::io("list", &at))?.file_name();
            let separator: &[u8] = if folder.path.is_empty() { b"" } else { b"/" };
            self.entry([&folder.path, separator, name.as_bytes()].concat(), &folder.fallen)?;
            if self.full {
                return Ok(());
            }
        }
        Ok(())
    }

    fn entry(&mut self, path: Vec<u8>, folder: &Fallen) -> Result<()> {
        let (excluded, own) = self.ignore.check(&path, folder);
        let place = ContextPath::new(path);
        let at = self.spec.context.join(place.as_path());
        let metadata = match at.symlink_metadata() {
            // What is not in the context may come and go.
            Err(error) if excluded && error.kind() == io::ErrorKind::NotFound => return Ok(()),
            metadata => metadata.map_err(ContextError::io("examine", &at))?,
        };
        if metadata.is_dir() {
            if !excluded {
                self.add(place.clone(), plain(FileKind::Folder, &metadata))?;
            }
            if !excluded || self.ignore.descends(place.as_bytes(), &own) {
                let path = place.as_bytes().to_owned();
                self.pending.push(Folder { path, fallen: own, excluded });
            }
            return Ok(());
        }
        if excluded {
            return Ok(());
        }
        if metadata.is_file() {
            let known = self.previous.and_then(|previous| previous.files.get(&place));
            let same = known.filter(|known| {
                known.kind == FileKind::File
                    && known.stat == Some(stat_of(&metadata))
                    && known.size == metadata.size()
            });
            let file = match same {
                Some(known) => ContextFile { mode: mode(&metadata), ..known.clone() },
                None => {
                    self.read.push(place.clone());
                    plain(FileKind::File, &metadata)
                }
            };
            return self.add(place, file);
        }
        let (kind, contents) = if metadata.is_symlink() {
            let target = std::fs::read_link(&at).map_err(|error| match error.kind() {
                io::ErrorKind::InvalidInput => ContextError::Unsteady { path: at.clone() },
                _ => ContextError::io("read", &at)(error),
            })?;
            (FileKind::Link, target.as_os_str().as_bytes().to_vec())
        } else {
            if metadata.file_type().is_socket() && self.spec.builder == Builder::Classic {
                // A tar cannot hold one, and the client goes on without it.
                return Ok(());
            }
            let number = format!("{:o} {}", metadata.mode() & 0o170_000, metadata.rdev());
            (FileKind::Other, number.into_bytes())
        };
        let size = if kind == FileKind::Link { contents.len() as u64 } else { 0 };
        self.add(place, ContextFile { size, digest: Some(Digest::of(&contents)), ..plain(kind, &metadata) })
    }

    /// Adds an entry, and the folders above it that are excluded themselves.
    fn add(&mut self, path: ContextPath, file: ContextFile) -> Result<()> {
        let bytes = path.as_bytes();
        let ends: Vec<usize> =
            bytes.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at).collect();
        for end in ends.into_iter().rev() {
            let above = ContextPath::new(&path.as_bytes()[..end]);
            if self.found.contains_key(&above) {
                break;
            }
            let at = self.spec.context.join(above.as_path());
            let metadata = at.symlink_metadata().map_err(ContextError::io("examine", &at))?;
            let mut folder = plain(FileKind::Folder, &metadata);
            if self.spec.builder == Builder::Classic {
                folder.mode = IMPLIED;
            }
            self.found.insert(above, folder);
        }
        self.found.insert(path, file);
        self.full |= self.found.len() > self.spec.count_limit;
        Ok(())
    }
}

fn mode(metadata: &Metadata) -> u16 {
    (metadata.mode() & 0o7777) as u16
}

/// An entry of which only kind and mode are known.
fn plain(kind: FileKind, metadata: &Metadata) -> ContextFile {
    let mode = if kind == FileKind::Link { 0 } else { mode(metadata) };
    ContextFile { kind, mode, size: 0, digest: None, attributes: None, stat: None }
}

/// The Dockerfile of a context where none is named, as Docker looks for it;
/// `Containerfile` last, which is Podman's.
fn usual_dockerfile(context: &Path) -> PathBuf {
    let names = ["Dockerfile", "dockerfile", "Containerfile"].map(|name| context.join(name));
    let found = names.iter().find(|path| path.is_file());
    found.unwrap_or(&names[0]).clone()
}

/// The Dockerfile's path in the context, if it is there, as the classic
/// builder's client finds it: links resolved.
fn inside(context: &Path, dockerfile: &Path) -> Option<String> {
    let (context, dockerfile) = (context.canonicalize().ok()?, dockerfile.canonicalize().ok()?);
    dockerfile.strip_prefix(context).ok()?.to_str().map(str::to_owned)
}

/// The ignore file that the builder follows, and its contents.
fn ignore_file(spec: &ContextSpec<'_>, dockerfile: &Path) -> Result<Option<(PathBuf, Vec<u8>)>> {
    let mut own = dockerfile.as_os_str().to_owned();
    own.push(".dockerignore");
    let own = (spec.builder == Builder::BuildKit).then(|| PathBuf::from(own));
    for path in own.into_iter().chain([spec.context.join(".dockerignore")]) {
        if path.exists() {
            let bytes = read(&path)?;
            return Ok(Some((path, bytes)));
        }
    }
    Ok(None)
}

/// All of a small file, links followed.
fn read(path: &Path) -> Result<Vec<u8>> {
    let io = |operation| move |source| ContextError::Io { operation, path: path.to_owned(), source };
    // A pipe would keep us waiting for its other end.
    if !std::fs::metadata(path).map_err(io("examine"))?.is_file() {
        return Err(ContextError::InputFile { path: path.to_owned(), problem: "is not a file" });
    }
    let file = std::fs::File::open(path).map_err(io("open"))?;
    let mut bytes = Vec::new();
    file.take(MAX_INPUT + 1).read_to_end(&mut bytes).map_err(io("read"))?;
    if bytes.len() as u64 > MAX_INPUT {
        return Err(ContextError::InputFile { path: path.to_owned(), problem: "is larger than 4 MiB" });
    }
    Ok(bytes)
}
