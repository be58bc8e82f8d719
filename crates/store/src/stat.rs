//! Stat seals: what a file looked like when all of it was last hashed.
//!
//! A hit must not hash gigabytes. As long as size, times, inode and device are
//! those recorded after the last full hash, nothing has written to the file;
//! `ctime` cannot be set back by a program. A difference is no verdict, only a
//! reason to hash. Damage below the file system shows in `cache verify`.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

use serde::{Deserialize, Serialize};

/// The facts compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StatSeal {
    pub(crate) schema: u64,
    size: u64,
    mtime_s: i64,
    mtime_ns: i64,
    ctime_s: i64,
    ctime_ns: i64,
    inode: u64,
    device: u64,
}

impl StatSeal {
    pub(crate) const SCHEMA: u64 = 1;

    pub(crate) fn of(metadata: &Metadata) -> Self {
        Self {
            schema: Self::SCHEMA,
            size: metadata.size(),
            mtime_s: metadata.mtime(),
            mtime_ns: metadata.mtime_nsec(),
            ctime_s: metadata.ctime(),
            ctime_ns: metadata.ctime_nsec(),
            inode: metadata.ino(),
            device: metadata.dev(),
        }
    }
}
