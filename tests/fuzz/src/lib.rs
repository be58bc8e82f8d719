//! What the fuzz targets share.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::OnceLock;

use smolcellar_store::{OpenOptions, Store};

/// A store in memory where there is such a file system, else in the system's
/// temporary folder. One per process.
///
/// # Panics
/// If it cannot be made.
pub fn store() -> &'static Store {
    static STORE: OnceLock<(Store, tempfile::TempDir)> = OnceLock::new();
    let (store, _dir) = STORE.get_or_init(|| {
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        let dir = dir.expect("a temporary folder");
        let store = Store::open(&dir.path().join("store"), OpenOptions::default()).expect("a store");
        (store, dir)
    });
    store
}

/// A nameless file with these bytes, at its start.
///
/// # Panics
/// If it cannot be made.
pub fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile_in("/dev/shm").or_else(|_| tempfile::tempfile()).expect("a file");
    file.write_all(bytes).expect("written");
    file.seek(SeekFrom::Start(0)).expect("rewound");
    file
}

/// Gives every header in a tar the checksum that it should have, so that
/// changed bytes get past that check and reach the code behind it.
pub fn mend(tar: &mut [u8]) {
    for block in tar.chunks_exact_mut(512) {
        if block[257..262] == *b"ustar" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
}
