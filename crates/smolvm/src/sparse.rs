//! Disk images that are almost only zeros.
//!
//! smolvm's two disk templates are ext4 images of 20 and 10 GiB with a few MiB
//! of data. Only blocks that are not zero are written, hashed and read.

use std::fs::File;
use std::io::{BufRead, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use smolcellar_store::{Digest, Hasher, StoreError, fsio};

use crate::error::{Error, Result};

/// What is left out when it is zero, in bytes.
const BLOCK: usize = 64 << 10;

/// The largest image that is unpacked, in bytes of its logical size.
const LARGEST: u64 = 64 << 30;

/// How often progress is told, in bytes.
const STEP: u64 = 256 << 20;

/// A sparse file's facts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sparse {
    /// The logical size in bytes.
    pub(crate) size: u64,
    /// SHA-256 of, for each block that is not all zeros, in order, its offset
    /// (u64, little endian) and its bytes; then the logical size.
    pub(crate) digest: Digest,
}

/// Decompresses zstd into the new file `dest`; zero blocks become holes.
/// `progress` is told of logical bytes.
pub(crate) fn decompress(
    source: impl BufRead,
    name: &Path,
    dest: &Path,
    progress: &dyn Fn(u64),
) -> Result<Sparse> {
    let bad = Error::archive(name);
    let mut decoder = zstd::Decoder::with_buffer(source).map_err(|e| bad(&e))?;
    let file = fsio::create_new(dest)?;
    let mut digest = SparseHasher::default();
    let mut buffer = vec![0; BLOCK];
    let mut offset = 0;
    let mut told = 0;
    loop {
        let length = fill(&mut decoder, &mut buffer).map_err(|e| bad(&e))?;
        let block = buffer.get(..length).unwrap_or_default();
        if !is_zero(block) {
            file.write_all_at(block, offset).map_err(StoreError::io("write", dest))?;
            digest.block(offset, block);
        }
        offset += length as u64;
        if offset - told >= STEP || length < BLOCK {
            progress(offset - told);
            told = offset;
        }
        if offset > LARGEST {
            return Err(bad(&format_args!("it is larger than {LARGEST} bytes")));
        }
        if length < BLOCK {
            break;
        }
    }
    file.set_len(offset).map_err(StoreError::io("extend", dest))?;
    Ok(digest.finish(offset))
}

/// The facts of a file on disk, by reading what is not a hole.
pub(crate) fn examine(path: &Path) -> Result<Sparse> {
    let file = fsio::open(path)?;
    let size = file.metadata().map_err(StoreError::io("examine", path))?.len();
    let mut digest = SparseHasher::default();
    let mut buffer = vec![0; BLOCK];
    let mut offset = 0;
    while offset < size {
        offset = next_data(&file, offset, size);
        if offset >= size {
            break;
        }
        let length = usize::try_from(size - offset).map_or(BLOCK, |left| left.min(BLOCK));
        let block = buffer.get_mut(..length).unwrap_or_default();
        file.read_exact_at(block, offset).map_err(StoreError::io("read", path))?;
        if !is_zero(block) {
            digest.block(offset, block);
        }
        offset += length as u64;
    }
    Ok(digest.finish(size))
}

/// The start of the block that holds the next data at or after `offset`;
/// `size` if there is none. Where the file system cannot tell: `offset`.
fn next_data(file: &File, offset: u64, size: u64) -> u64 {
    match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(offset)) {
        Ok(data) => (data - data % BLOCK as u64).max(offset),
        Err(rustix::io::Errno::NXIO) => size,
        Err(_) => offset,
    }
}

#[derive(Default)]
struct SparseHasher(Hasher);

impl SparseHasher {
    fn block(&mut self, offset: u64, bytes: &[u8]) {
        self.0.update(&offset.to_le_bytes());
        self.0.update(bytes);
    }

    fn finish(mut self, size: u64) -> Sparse {
        self.0.update(&size.to_le_bytes());
        Sparse { size, digest: self.0.finish() }
    }
}

/// Without an early exit inside a chunk, so that the compiler vectorises it.
fn is_zero(bytes: &[u8]) -> bool {
    let mut chunks = bytes.chunks_exact(256);
    chunks.by_ref().all(|chunk| chunk.iter().fold(0, |any, byte| any | byte) == 0)
        && chunks.remainder().iter().all(|byte| *byte == 0)
}

/// Reads until the buffer is full or the stream ends.
fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match reader.read(rest) {
            Ok(0) => break,
            Ok(length) => filled += length,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;

    /// 64 MiB of zeros with a little data at both ends of it and at odd places.
    fn image() -> Vec<u8> {
        let mut image = vec![0; (64 << 20) + 1000];
        for at in [0, 70_000, BLOCK * 3 - 1, BLOCK * 500, image.len() - 1] {
            image[at] = 7;
        }
        image
    }

    #[test]
    fn a_template_unpacks_to_the_same_bytes_and_few_blocks() {
        let dir = tempfile::tempdir().unwrap();
        let dest = dir.path().join("template.ext4");
        let image = image();
        let packed = zstd::encode_all(&image[..], 1).unwrap();
        let told = Cell::new(0);
        let facts = decompress(&packed[..], Path::new("t.zst"), &dest, &|bytes| told.set(told.get() + bytes))
            .unwrap();
        assert_eq!(facts.size, image.len() as u64);
        assert_eq!(told.get(), facts.size);
        assert!(std::fs::read(&dest).unwrap() == image);
        let blocks = std::fs::metadata(&dest).unwrap().blocks() * 512;
        assert!(blocks <= 6 * BLOCK as u64, "{blocks} bytes on disk");
        assert_eq!(examine(&dest).unwrap(), facts);
    }

    #[test]
    fn an_image_of_whole_blocks_and_an_empty_one_have_their_size() {
        let dir = tempfile::tempdir().unwrap();
        for (name, size) in [("whole", BLOCK * 4), ("empty", 0)] {
            let dest = dir.path().join(name);
            let packed = zstd::encode_all(&vec![0; size][..], 1).unwrap();
            let facts = decompress(&packed[..], Path::new("t"), &dest, &|_| ()).unwrap();
            assert_eq!(facts.size, size as u64);
            assert_eq!(std::fs::metadata(&dest).unwrap().len(), size as u64);
            assert_eq!(examine(&dest).unwrap(), facts);
        }
    }

    #[test]
    fn a_changed_byte_or_a_changed_size_changes_the_digest() {
        let dir = tempfile::tempdir().unwrap();
        let dest = dir.path().join("t");
        let packed = zstd::encode_all(&image()[..], 1).unwrap();
        let facts = decompress(&packed[..], Path::new("t"), &dest, &|_| ()).unwrap();
        let file = std::fs::OpenOptions::new().write(true).open(&dest).unwrap();
        file.set_len(facts.size + 1).unwrap();
        assert_ne!(examine(&dest).unwrap().digest, facts.digest);
        file.set_len(facts.size).unwrap();
        file.write_all_at(&[1], 10 << 20).unwrap();
        assert_ne!(examine(&dest).unwrap().digest, facts.digest);
    }

    #[test]
    fn a_cut_or_foreign_template_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let mut noise = Vec::new();
        noise.write_all(&image()).unwrap();
        let packed = zstd::encode_all(&noise[..], 1).unwrap();
        let cut =
            decompress(&packed[..packed.len() - 5], Path::new("cut.zst"), &dir.path().join("a"), &|_| ());
        assert!(cut.unwrap_err().to_string().contains("cut.zst"));
        assert!(decompress(&b"no zstd at all"[..], Path::new("x"), &dir.path().join("b"), &|_| ()).is_err());
    }
}
