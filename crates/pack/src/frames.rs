//! Frames against their index.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use smolcellar_store::Reporter;
use zstd::zstd_safe::get_frame_content_size;

use crate::error::{PackError, Result};
use crate::index::{Frame, FrameIndex};
use crate::read::{Artifact, read};

/// The longest header of a zstd frame in bytes (RFC 8878, section 3.1.1): magic,
/// descriptor, window, dictionary, content size.
const HEADER: usize = 18;
/// How a zstd frame begins.
const MAGIC: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();
/// The most that a frame holds uncompressed, in bytes; see [`crate::cut`].
const MAX_RAW: u32 = crate::cut::MAX as u32;

/// Checks that each frame begins as one where the index says, and that a
/// content size in its header is the index's: 18 bytes of each are read. Returns
/// what [`read`] does.
///
/// # Errors
/// [`PackError::Artifact`] saying what is wrong.
pub fn check_structure(path: &Path) -> Result<Artifact> {
    let artifact = read(path)?;
    if let Some(index) = &artifact.index {
        let file = open(path)?;
        for frame in &index.frames {
            header(&file, artifact.footer.assets_offset, frame).map_err(bad(path))?;
        }
    }
    Ok(artifact)
}

/// Decompresses every frame, on all cores, and compares its length and its
/// BLAKE3 with the index. Memory is a few frames' worth. Returns the bytes that
/// there are uncompressed; `None` if `reporter` gave up.
///
/// # Errors
/// [`PackError::Artifact`] saying what is wrong.
pub fn check_frames(path: &Path, reporter: &dyn Reporter) -> Result<Option<u64>> {
    let artifact = check_structure(path)?;
    // Another packer's has no frames of its own.
    let index = artifact.index.unwrap_or_default();
    let file = open(path)?;
    let at = artifact.footer.assets_offset;
    if let Some(problem) = in_parallel(&file, at, &index, reporter) {
        return Err(bad(path)(problem));
    }
    Ok((!reporter.gives_up()).then(|| index.raw_size()))
}

fn in_parallel(file: &File, at: u64, index: &FrameIndex, reporter: &dyn Reporter) -> Option<String> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(index.frames.len().max(1));
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let problem = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut buffers = (Vec::new(), Vec::new());
                while !stop.load(Ordering::Relaxed) && !reporter.gives_up() {
                    let Some(frame) = index.frames.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
                    if let Err(text) = contents(file, at, frame, &mut buffers) {
                        stop.store(true, Ordering::Relaxed);
                        problem.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(text);
                    }
                }
            });
        }
    });
    problem.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn header(file: &File, at: u64, frame: &Frame) -> Result<(), String> {
    let mut head = [0; HEADER];
    let head = &mut head[..HEADER.min(frame.length as usize)];
    let wrong = |problem: &str| format!("its frame at {} {problem}", frame.offset);
    file.read_exact_at(head, at.saturating_add(frame.offset)).map_err(|error| wrong(&error.to_string()))?;
    if !head.starts_with(&MAGIC) {
        return Err(wrong("does not begin as one"));
    }
    match get_frame_content_size(head) {
        Ok(Some(size)) if size != u64::from(frame.raw_length) => {
            Err(wrong("says another size than the index"))
        }
        Ok(_) if frame.raw_length > MAX_RAW => Err(wrong("is larger than a frame may be")),
        Ok(_) => Ok(()),
        Err(_) => Err(wrong("has a damaged header")),
    }
}

fn contents(file: &File, at: u64, frame: &Frame, buffers: &mut (Vec<u8>, Vec<u8>)) -> Result<(), String> {
    let wrong = |problem: &str| format!("its frame at {} {problem}", frame.offset);
    let (packed, raw) = buffers;
    // A frame that zstd cannot shrink is a little longer than its contents.
    if frame.raw_length > MAX_RAW || frame.length as usize > zstd::zstd_safe::compress_bound(MAX_RAW as usize)
    {
        return Err(wrong("is larger than a frame may be"));
    }
    packed.resize(frame.length as usize, 0);
    file.read_exact_at(packed, at.saturating_add(frame.offset)).map_err(|error| wrong(&error.to_string()))?;
    raw.resize(frame.raw_length as usize, 0);
    let length = zstd::bulk::decompress_to_buffer(packed, raw.as_mut_slice())
        .map_err(|error| wrong(&format!("cannot be decompressed: {error}")))?;
    if length != raw.len() {
        return Err(wrong("has another size than the index says"));
    }
    match blake3::hash(raw).as_bytes() == &frame.digest {
        true => Ok(()),
        false => Err(wrong("has other contents than the index says")),
    }
}

fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|error| bad(path)(error.to_string()))
}

fn bad(path: &Path) -> impl Fn(String) -> PackError {
    move |problem| PackError::Artifact { path: path.to_owned(), problem }
}
