//! Applying one layer's tar to the tree.

use std::fs::File;
use std::io::BufReader;

use crate::error::{OciError, Result, show};
use crate::tar_reader::{Header, Kind, TarError, TarReader};
use crate::tree::{Content, Inode, Tree};

/// Marks the removal of the name that follows it (image-spec `layer.md`,
/// "Whiteouts").
const WHITEOUT: &[u8] = b".wh.";
/// Marks a folder that hides what lower layers put into it.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Book-keeping of AUFS, which engines skip too.
const AUFS: &[u8] = b".wh..wh.";

/// Applies the layer in `file`, the `number`th from below counted from 0.
/// Reads headers only.
pub(crate) fn apply(tree: &mut Tree, file: &File, number: usize) -> Result<()> {
    let entry =
        |path: &[u8], problem: String| OciError::Entry { layer: number + 1, path: show(path), problem };
    let what = format!("layer {}", number + 1);
    let size = file.metadata().map_err(OciError::io(&what, "metadata"))?.len();
    let layer = u32::try_from(number).map_err(|_| entry(b"", "there are too many layers".into()))?;
    let mut file = file;
    std::io::Seek::rewind(&mut file).map_err(OciError::io(&what, "start"))?;
    let mut reader = TarReader::new(BufReader::with_capacity(1 << 16, file));
    loop {
        let header = match reader.next() {
            Ok(Some(header)) => header,
            Ok(None) => return Ok(()),
            Err(TarError::Io(error)) => return Err(OciError::io(&what, "an entry")(error)),
            Err(TarError::NotTar) => {
                let problem = "a header checksum is wrong: it is damaged, or no tar".to_owned();
                return Err(OciError::Invalid { what, problem });
            }
            Err(TarError::Bad { path, problem }) => return Err(entry(&path, problem)),
        };
        // Skipping by seeking does not notice the end of the file.
        if header.offset.saturating_add(header.size) > size {
            return Err(OciError::Truncated { what, inside: format!("the entry '{}'", show(&header.path)) });
        }
        let path = header.path.clone();
        place(tree, header, layer).map_err(|problem| entry(&path, problem))?;
    }
}

fn place(tree: &mut Tree, header: Header, layer: u32) -> Result<(), String> {
    let path = header.path.as_slice();
    let trimmed = path.iter().rposition(|b| *b != b'/').map_or(&path[..0], |last| &path[..=last]);
    let cut = trimmed.iter().rposition(|b| *b == b'/').map_or(0, |slash| slash + 1);
    let (parent, name) = trimmed.split_at(cut);
    if name == OPAQUE {
        return tree.opaque(parent, layer);
    }
    if name.starts_with(AUFS) {
        return Ok(());
    }
    if let Some(hidden) = name.strip_prefix(WHITEOUT) {
        return match hidden {
            [] | [b'.'] | [b'.', b'.'] => Err("it is a whiteout of no name".into()),
            hidden => tree.white_out(&[parent, hidden].concat(), layer),
        };
    }
    let content = match header.kind {
        Kind::HardLink => return tree.hard_link(path, &header.link, layer),
        Kind::File => Content::File { layer, offset: header.offset, size: header.size },
        Kind::Directory => Content::Directory,
        Kind::Symlink => Content::Symlink(header.link.into()),
        Kind::Char => Content::Char(header.device.0, header.device.1),
        Kind::Block => Content::Block(header.device.0, header.device.1),
        Kind::Fifo => Content::Fifo,
    };
    let xattrs = (!header.xattrs.is_empty()).then(|| header.xattrs.into_boxed_slice());
    let Header { mode, uid, gid, mtime, .. } = header;
    tree.insert(&header.path, Inode { content, mode, uid, gid, mtime, xattrs }, layer)
}
