//! The frame index: which bytes each zstd frame of the assets holds.
//!
//! It lies in a skippable frame (RFC 8878, section 3.1.2) behind the last
//! frame, so that readers of zstd pass over it. All numbers are little-endian:
//!
//! ```text
//! skippable frame:  magic 0x184D2A5C (u32), length of what follows (u32)
//!   0   "SMOLCIDX"
//!   8   version (u32) = 1
//!  12   number of frames n (u32)
//!  16   n × 48 bytes:
//!         0  BLAKE3-256 of the frame's uncompressed bytes
//!        32  offset of the frame in the assets blob (u64)
//!        40  length of the frame (u32)
//!        44  length of its uncompressed bytes (u32)
//!  16+48n  CRC-32 of the 16+48n bytes before (u32)
//!  20+48n  28+48n-8 … length of the payload (u32), then "SMOLCIDX"
//! ```
//!
//! The last 12 bytes let a reader find the start from the end of the blob.

use std::fmt;

/// The version of the index, part of the format.
pub const INDEX_VERSION: u32 = 1;

const SKIPPABLE: u32 = 0x184D_2A5C;
const MAGIC: &[u8; 8] = b"SMOLCIDX";
const HEAD: usize = 16;
const ENTRY: usize = 48;
const TAIL: usize = 16;

/// One frame.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// BLAKE3-256 of its uncompressed bytes. A cryptographic hash, since equal
    /// digests will stand for equal bytes; and this one, since it costs a
    /// twentieth of SHA-256 where the CPU does not help.
    pub digest: [u8; 32],
    /// Where it starts in the assets blob, in bytes.
    pub offset: u64,
    /// How long it is there, in bytes.
    pub length: u32,
    /// How long it is uncompressed, in bytes.
    pub raw_length: u32,
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digest = blake3::Hash::from_bytes(self.digest).to_hex();
        write!(f, "Frame({}… {}+{} -> {})", &digest[..8], self.offset, self.length, self.raw_length)
    }
}

/// The frames of an assets blob, in order and without gaps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FrameIndex {
    /// The frames.
    pub frames: Vec<Frame>,
}

impl FrameIndex {
    /// Bytes of all frames: where the skippable frame starts.
    pub fn frames_size(&self) -> u64 {
        self.frames.last().map_or(0, |frame| frame.offset + u64::from(frame.length))
    }

    /// Uncompressed bytes of all frames.
    pub fn raw_size(&self) -> u64 {
        self.frames.iter().map(|frame| u64::from(frame.raw_length)).sum()
    }

    /// The skippable frame. `None` if there are more frames than it can hold,
    /// 2^32 bytes' worth, which is an image of over 80 TiB.
    pub fn to_bytes(&self) -> Option<Vec<u8>> {
        let payload = HEAD + ENTRY * self.frames.len() + TAIL;
        let payload_length = u32::try_from(payload).ok()?.to_le_bytes();
        let count = u32::try_from(self.frames.len()).ok()?;
        let mut out = Vec::with_capacity(8 + payload);
        out.extend_from_slice(&SKIPPABLE.to_le_bytes());
        out.extend_from_slice(&payload_length);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&INDEX_VERSION.to_le_bytes());
        out.extend_from_slice(&count.to_le_bytes());
        for frame in &self.frames {
            out.extend_from_slice(&frame.digest);
            out.extend_from_slice(&frame.offset.to_le_bytes());
            out.extend_from_slice(&frame.length.to_le_bytes());
            out.extend_from_slice(&frame.raw_length.to_le_bytes());
        }
        out.extend_from_slice(&crc32fast::hash(&out[8..]).to_le_bytes());
        out.extend_from_slice(&payload_length);
        out.extend_from_slice(MAGIC);
        Some(out)
    }

    /// Bytes of the skippable frame, told by the last [`FrameIndex::TRAILER`]
    /// bytes of an assets blob; `None` if they are not an index's.
    pub fn size_from_trailer(trailer: &[u8; Self::TRAILER]) -> Option<u64> {
        let (length, magic) = trailer.split_at(4);
        (magic == MAGIC).then(|| u64::from(u32_at(length, 0).unwrap_or(0)) + 8)
    }

    /// Length of what [`FrameIndex::size_from_trailer`] needs, in bytes.
    pub const TRAILER: usize = 12;

    /// Parses a whole skippable frame.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        let payload = bytes.get(8..).ok_or("the index is too short")?;
        let body = payload.len().checked_sub(TAIL).ok_or("the index is too short")?;
        if u32_at(bytes, 0) != Some(SKIPPABLE)
            || payload.get(..8) != Some(MAGIC)
            || bytes[bytes.len() - 8..] != *MAGIC
        {
            return Err("there is no frame index");
        }
        if u32_at(payload, 8) != Some(INDEX_VERSION) {
            return Err("the frame index has another version");
        }
        let length = Some(payload.len() as u32);
        let count = u32_at(payload, 12).unwrap_or(0) as usize;
        if u32_at(bytes, 4) != length
            || u32_at(payload, body + 4) != length
            || count.checked_mul(ENTRY).and_then(|n| n.checked_add(HEAD)) != Some(body)
        {
            return Err("the frame index contradicts its own length");
        }
        if u32_at(payload, body) != Some(crc32fast::hash(&payload[..body])) {
            return Err("the frame index is damaged");
        }
        let mut index = Self::default();
        for entry in payload[HEAD..body].chunks_exact(ENTRY) {
            let mut digest = [0; 32];
            digest.copy_from_slice(&entry[..32]);
            let mut offset = [0; 8];
            offset.copy_from_slice(&entry[32..40]);
            let frame = Frame {
                digest,
                offset: u64::from_le_bytes(offset),
                length: u32_at(entry, 40).unwrap_or(0),
                raw_length: u32_at(entry, 44).unwrap_or(0),
            };
            if frame.offset != index.frames_size() || frame.length == 0 || frame.offset > 1 << 62 {
                return Err("the frames of the index do not follow one another");
            }
            index.frames.push(frame);
        }
        Ok(index)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn index(lengths: &[(u32, u32)]) -> FrameIndex {
        let mut index = FrameIndex::default();
        for (length, raw_length) in lengths {
            let offset = index.frames_size();
            let digest = *blake3::hash(&offset.to_le_bytes()).as_bytes();
            index.frames.push(Frame { digest, offset, length: *length, raw_length: *raw_length });
        }
        index
    }

    proptest! {
        #[test]
        fn an_index_reads_back_and_is_found_from_the_end(lengths in proptest::collection::vec((1..1u32 << 22, any::<u32>()), 0..40)) {
            let index = index(&lengths);
            let bytes = index.to_bytes().unwrap();
            let trailer = bytes[bytes.len() - FrameIndex::TRAILER..].try_into().unwrap();
            prop_assert_eq!(FrameIndex::size_from_trailer(&trailer), Some(bytes.len() as u64));
            prop_assert_eq!(FrameIndex::parse(&bytes), Ok(index));
        }

        #[test]
        fn a_flipped_bit_is_found(lengths in proptest::collection::vec((1..1000u32, any::<u32>()), 0..6), at: usize, bit in 0..8u8) {
            let mut bytes = index(&lengths).to_bytes().unwrap();
            let at = at % bytes.len();
            bytes[at] ^= 1u8 << bit;
            prop_assert!(FrameIndex::parse(&bytes).is_err());
        }

        #[test]
        fn no_input_makes_it_panic(bytes: Vec<u8>) {
            let _ = FrameIndex::parse(&bytes);
        }
    }

    #[test]
    fn a_reader_of_zstd_passes_over_it() {
        let mut bytes = zstd::encode_all(&b"frame"[..], 1).unwrap();
        bytes.extend(index(&[(bytes.len() as u32, 5)]).to_bytes().unwrap());
        assert_eq!(zstd::decode_all(&bytes[..]).unwrap(), b"frame");
    }
}
