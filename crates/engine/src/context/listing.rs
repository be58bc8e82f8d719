//! What a context holds, file by file.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use smolcellar_store::{Digest, Hasher};

use super::path::ContextPath;

/// All that a builder sees of a build's folder, and the Dockerfile.
///
/// Owners and modification times are not in it: builders give copied files
/// to root, and neither's own cache looks at times.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContextListing {
    /// The Dockerfile, which no ignore file hides from the builder. It is in
    /// `files` too unless excluded.
    pub dockerfile: InputFile,
    /// The ignore file that was followed. It is in `files` too unless
    /// excluded, and decides nothing beyond what they say.
    pub ignore: Option<InputFile>,
    /// The files, folders and links left in.
    pub files: BTreeMap<ContextPath, ContextFile>,
}

/// A file that was read as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputFile {
    /// Where it was, for people.
    pub path: String,
    /// SHA-256 of its contents.
    pub digest: Digest,
}

/// What a context has at a path.
///
/// Stored as one line of text; see `record`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContextFile {
    /// What it is.
    pub kind: FileKind,
    /// Permission bits, the low twelve. Those of links mean nothing and are 0.
    pub mode: u16,
    /// Bytes of contents or of a link's target; 0 for everything else.
    pub size: u64,
    /// SHA-256 of a file's contents, of a link's target, of a device's number.
    pub digest: Option<Digest>,
    /// SHA-256 of the extended attributes that a builder may carry over
    /// (`security.capability`, `user.*`); `None`: there are none.
    pub attributes: Option<Digest>,
    /// What the file looked like when its contents were hashed. `None`: it
    /// may have changed since without looking otherwise (it was too young),
    /// or hashing it costs nothing.
    pub stat: Option<FileStat>,
}

/// What is at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Link,
    /// A device, a named pipe or a socket.
    Other,
}

/// As long as these and the size are the same, nothing wrote to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileStat {
    /// Last modification, in nanoseconds since 1970.
    pub mtime: i128,
    /// Last change of the inode, in nanoseconds since 1970. No program can
    /// set it back.
    pub ctime: i128,
    /// The inode's number.
    pub inode: u64,
}

impl ContextListing {
    /// The digest of all that decides what the builder sees: paths, kinds,
    /// modes, contents and attributes, and the Dockerfile's contents.
    pub fn fingerprint(&self) -> Digest {
        let mut hasher = Hasher::new();
        hasher.update(b"smolcellar context 1\n");
        hasher.update(self.dockerfile.digest.as_bytes());
        for (path, file) in &self.files {
            let path = path.as_bytes();
            hasher.update(&(path.len() as u64).to_le_bytes());
            hasher.update(path);
            hasher.update(&[file.kind.letter()]);
            hasher.update(&file.mode.to_le_bytes());
            for digest in [file.digest, file.attributes] {
                hasher.update(&[u8::from(digest.is_some())]);
                hasher.update(digest.as_ref().map_or(&[], |digest| &digest.as_bytes()[..]));
            }
        }
        hasher.finish()
    }
}

impl FileKind {
    /// One letter, as `ls` and `find` have it.
    pub(super) const fn letter(self) -> u8 {
        match self {
            Self::File => b'f',
            Self::Folder => b'd',
            Self::Link => b'l',
            Self::Other => b'o',
        }
    }
}
