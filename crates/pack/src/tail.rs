//! What an artifact says of itself, of its last bytes alone: what a reader far
//! away asks for first.

use smolvm_pack::format::{FOOTER_SIZE, PackFooter, PackManifest};

use crate::index::FrameIndex;
use crate::read::{MAX_INDEX, adds_up};

/// The largest manifest that is read, in bytes; smolvm's own bound (crate
/// `smolvm-pack`, module `packer`) is no lower than what is ever written.
const MAX_MANIFEST: u64 = 10 << 20;

/// The parts behind the frames.
#[derive(Debug, Clone)]
pub struct Tail {
    /// What it runs.
    pub manifest: PackManifest,
    /// The manifest as it is written.
    pub manifest_json: Vec<u8>,
    /// Its frames; `None` if another packer wrote it.
    pub index: Option<FrameIndex>,
}

/// What the last bytes of an artifact tell.
#[derive(Debug, Clone)]
pub enum TailRead {
    /// All.
    Whole(Box<Tail>),
    /// Nothing yet: this many of the last bytes are needed.
    Needs(u64),
}

/// Reads the last bytes of an artifact of `size` bytes. More than 64 of them
/// ([`FOOTER_SIZE`]) tell at least how many are needed.
///
/// # Errors
/// What is wrong with them. Nothing is proved of what comes before.
pub fn read_tail(size: u64, tail: &[u8]) -> Result<TailRead, String> {
    let length = tail.len() as u64;
    if size < FOOTER_SIZE as u64 || length > size {
        return Err("it is too short for an artifact".into());
    }
    let Some((before, footer)) = tail.split_last_chunk::<FOOTER_SIZE>() else {
        return Ok(TailRead::Needs(FOOTER_SIZE as u64));
    };
    let footer = PackFooter::from_bytes(footer).map_err(|error| error.to_string())?;
    adds_up(&footer, size)?;
    if footer.manifest_size > MAX_MANIFEST {
        return Err(format!("its manifest of {} bytes is absurd", footer.manifest_size));
    }
    // Everything below is within `size`, for the parts add up to it.
    let trailer = FrameIndex::TRAILER as u64;
    let behind_assets = footer.manifest_size + FOOTER_SIZE as u64;
    let needed = behind_assets + trailer.min(footer.assets_size);
    if length < needed {
        return Ok(TailRead::Needs(needed));
    }
    let (assets, manifest) = before.split_at((length - behind_assets) as usize);
    let index = match assets.last_chunk::<{ FrameIndex::TRAILER }>().map(FrameIndex::size_from_trailer) {
        Some(Some(index)) => index,
        _ => 0,
    };
    if index > MAX_INDEX || index > footer.assets_size {
        return Err("its frame index claims an absurd size".into());
    }
    if (assets.len() as u64) < index {
        return Ok(TailRead::Needs(behind_assets + index));
    }
    let index = match index {
        0 => None,
        index => {
            let parsed = FrameIndex::parse(&assets[assets.len() - index as usize..])?;
            if parsed.frames_size() != footer.assets_size - index {
                return Err("its frame index does not cover its frames".into());
            }
            Some(parsed)
        }
    };
    let parsed = PackManifest::from_json(manifest).map_err(|error| format!("its manifest: {error}"))?;
    let tail = Tail { manifest: parsed, manifest_json: manifest.to_vec(), index };
    Ok(TailRead::Whole(Box::new(tail)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::Frame;
    use proptest::prelude::*;

    fn artifact(frames: &[u8], indexed: bool) -> Vec<u8> {
        let mut bytes = vec![7; frames.iter().map(|n| *n as usize).sum()];
        let mut index = FrameIndex::default();
        for length in frames {
            let (offset, length) = (index.frames_size(), u32::from(*length));
            index.frames.push(Frame { digest: [frames.len() as u8; 32], offset, length, raw_length: 9 });
        }
        if indexed {
            bytes.extend(index.to_bytes().unwrap());
        }
        let manifest = PackManifest::new("i".into(), "d".into(), "linux/amd64".into(), "linux/amd64".into());
        let json = manifest.to_json().unwrap();
        let assets_size = bytes.len() as u64;
        bytes.extend(&json);
        let footer = PackFooter {
            stub_size: 0,
            assets_offset: 0,
            assets_size,
            manifest_offset: assets_size,
            manifest_size: json.len() as u64,
            checksum: crc32fast::hash(&bytes),
        };
        bytes.extend(footer.to_bytes());
        bytes
    }

    proptest! {
        #[test]
        fn any_number_of_last_bytes_tells_all_or_how_many_are_needed(
            frames in proptest::collection::vec(1..200u8, 0..20), indexed: bool, start: usize
        ) {
            let bytes = artifact(&frames, indexed);
            let size = bytes.len() as u64;
            let mut known = start % (bytes.len() + 1);
            for round in 0.. {
                prop_assert!(round < 4, "it asks for ever");
                match read_tail(size, &bytes[bytes.len() - known..]).unwrap() {
                    TailRead::Needs(more) => {
                        prop_assert!(more > known as u64 && more <= size);
                        known = more as usize;
                    }
                    TailRead::Whole(tail) => {
                        prop_assert_eq!(tail.index.map(|index| index.frames.len()), indexed.then_some(frames.len()));
                        prop_assert_eq!(tail.manifest.digest, "d");
                        break;
                    }
                }
            }
        }

        #[test]
        fn no_bytes_make_it_panic_or_ask_for_more_than_there_is(
            frames in proptest::collection::vec(1..200u8, 0..5), known: usize, at: usize, with: u8, size: Option<u64>
        ) {
            let mut bytes = artifact(&frames, true);
            let at = at % bytes.len();
            bytes[at] = with;
            let size = size.unwrap_or(bytes.len() as u64);
            let known = known % (bytes.len() + 1);
            if let Ok(TailRead::Needs(more)) = read_tail(size, &bytes[bytes.len() - known..]) {
                prop_assert!(more > known as u64 && more <= size);
            }
        }
    }

    #[test]
    fn a_sum_is_the_footers_however_the_bytes_are_cut() {
        let bytes = artifact(&[100, 50], true);
        let footer = PackFooter::from_bytes(bytes.last_chunk().unwrap()).unwrap();
        for step in [1, 7, 64, 1000] {
            let mut sum = crate::Sum::new(bytes.len() as u64);
            bytes.chunks(step).for_each(|piece| sum.update(piece));
            assert_eq!(sum.finish(), Some(footer.checksum));
        }
        assert_eq!(crate::Sum::new(100).finish(), None);
    }
}
