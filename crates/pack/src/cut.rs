//! Where frames are cut.
//!
//! The rule must put the cuts of two similar images at the same places, so
//! that most frames of a rebuilt image are frames of the one before it. Cuts
//! therefore depend on nothing but what is near them:
//!
//! 1. An entry of [`LARGE`] bytes or more has frames of its own, cut every
//!    [`MAX`] bytes from the start of its header.
//! 2. Before any other entry there is a cut if the frame has [`MIN`] bytes or
//!    more and the low three bits of the first byte of the BLAKE3 of the
//!    entry's path are zero; and in any case if the entry would take the frame
//!    past [`MAX`].
//! 3. What surrounds the entries (the agent root filesystem, the header of
//!    the layer, the end of the archives) has frames of its own, cut every
//!    [`MAX`] bytes.
//!
//! Sizes are those in the tar: header, contents and padding.

/// The version of the rule, part of the format.
pub const CUT_VERSION: u32 = 1;

/// A frame with less than this, in bytes, is not cut for its neighbour's name.
pub const MIN: u64 = 512 << 10;

/// An entry of this many bytes has frames of its own.
pub const LARGE: u64 = 1 << 20;

/// The most bytes in a frame, uncompressed.
pub const MAX: u64 = 2 << 20;

/// Whether the entry `path` of `size` bytes starts a new frame after one that
/// has `filled` bytes. Asked only for entries smaller than [`LARGE`].
pub fn cuts_before(path: &[u8], size: u64, filled: u64) -> bool {
    let named = || blake3::hash(path).as_bytes()[0] & 7 == 0;
    filled > 0 && (filled + size > MAX || (filled >= MIN && named()))
}
