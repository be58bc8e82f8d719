//! The canonical root filesystem: one tar for one image.
//!
//! Entries come in component-wise path order; the first name of an inode
//! carries it and later names are hard links to the first; owners are
//! numeric; times are whole seconds; modes have their low twelve bits. A
//! header is ustar, preceded by a pax header when something does not fit: a
//! path or target over 100 bytes, numbers beyond the octal fields, times
//! before 1970, extended attributes. The root folder itself has no entry.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use crate::tar_reader::BLOCK;
use crate::tree::{Content, Inode, Tree};

/// The version of the canonical form, part of every recipe. What is written
/// for one image never changes under one version.
///
/// 1. The first.
pub const CANONICAL_VERSION: u32 = 1;

/// Where a file's contents lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Data {
    /// Index into [`RootFs::layers`].
    pub layer: usize,
    /// Offset in that file, in bytes.
    pub offset: u64,
    /// Length in bytes. The tar pads it to a multiple of 512.
    pub size: u64,
}

/// One entry of the canonical tar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CanonicalEntry {
    /// Its path, without a leading or a trailing slash.
    pub path: Vec<u8>,
    /// Its header blocks, extended ones included.
    pub header: Vec<u8>,
    /// What follows the header, if anything.
    pub data: Option<Data>,
}

impl CanonicalEntry {
    /// Bytes that it takes in the tar: header, contents and padding.
    pub fn tar_size(&self) -> u64 {
        self.header.len() as u64 + self.data.map_or(0, |data| data.size.next_multiple_of(BLOCK))
    }
}

/// A flattened image: its tree, and the layers that hold its bytes.
#[derive(Debug)]
pub struct RootFs {
    tree: Tree,
    layers: Vec<File>,
}

impl RootFs {
    pub(crate) fn new(tree: Tree, layers: Vec<File>) -> Self {
        Self { tree, layers }
    }

    /// The files that [`Data::layer`] counts.
    pub fn layers(&self) -> &[File] {
        &self.layers
    }

    /// The entries in canonical order.
    pub fn entries(&self) -> impl Iterator<Item = CanonicalEntry> {
        // The first name seen of each inode, to root its hard links at.
        let mut first: Vec<Option<&[u8]>> = vec![None; self.tree.inode_count()];
        self.tree.iter().map(move |(key, number, inode)| {
            let path = slashed(key);
            match first.get(number as usize).copied().flatten() {
                Some(target) => hard_link(path, slashed(target), inode),
                None => {
                    if inode.content != Content::Directory
                        && let Some(slot) = first.get_mut(number as usize)
                    {
                        *slot = Some(key);
                    }
                    entry(path, inode)
                }
            }
        })
    }

    /// Bytes of the whole tar, its two zero blocks at the end included.
    pub fn tar_size(&self) -> u64 {
        self.entries().map(|entry| entry.tar_size()).sum::<u64>() + END.len() as u64
    }

    /// The sum of the sizes of all files, in bytes; hard links count once.
    pub fn content_size(&self) -> u64 {
        self.entries().filter_map(|entry| entry.data).map(|data| data.size).sum()
    }
}

impl RootFs {
    /// Writes the whole tar, [`RootFs::tar_size`] bytes. Contents are read from
    /// the layers as they are written: nothing of them is held.
    ///
    /// # Errors
    /// Of a layer that cannot be read, or of `out`.
    pub fn write_tar(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut piece = vec![0; 1 << 18];
        for entry in self.entries() {
            out.write_all(&entry.header)?;
            let Some(Data { layer, mut offset, size }) = entry.data else { continue };
            let file = self.layers.get(layer).ok_or_else(|| io::Error::other("a layer is missing"))?;
            let end = offset + size;
            while offset < end {
                let want = piece.len().min(usize::try_from(end - offset).unwrap_or(usize::MAX));
                file.read_exact_at(&mut piece[..want], offset)?;
                out.write_all(&piece[..want])?;
                offset += want as u64;
            }
            out.write_all(&END[..(size.next_multiple_of(BLOCK) - size) as usize])?;
        }
        out.write_all(&END)
    }
}

/// What ends a tar.
const END: [u8; 2 * BLOCK as usize] = [0; 2 * BLOCK as usize];

impl RootFs {
    /// The two zero blocks that end a tar.
    pub const END: &'static [u8] = &END;
}

fn slashed(key: &[u8]) -> Vec<u8> {
    key.iter().map(|b| if *b == 0 { b'/' } else { *b }).collect()
}

fn entry(path: Vec<u8>, inode: &Inode) -> CanonicalEntry {
    let mut data = None;
    let (kind, link, device): (_, &[u8], _) = match &inode.content {
        Content::File { layer, offset, size } => {
            if *size > 0 {
                data = Some(Data { layer: *layer as usize, offset: *offset, size: *size });
            }
            (b'0', &[], None)
        }
        Content::Directory => (b'5', &[], None),
        Content::Symlink(target) => (b'2', target, None),
        Content::Char(major, minor) => (b'3', &[], Some((*major, *minor))),
        Content::Block(major, minor) => (b'4', &[], Some((*major, *minor))),
        Content::Fifo => (b'6', &[], None),
    };
    let size = data.map_or(0, |data| data.size);
    CanonicalEntry { header: header(&path, kind, link, device, size, inode, true), path, data }
}

fn hard_link(path: Vec<u8>, target: Vec<u8>, inode: &Inode) -> CanonicalEntry {
    CanonicalEntry { header: header(&path, b'1', &target, None, 0, inode, false), path, data: None }
}

/// The largest values of ustar's octal fields of 8 and of 12 bytes.
const MAX_OCTAL_8: u64 = 0o777_7777;
const MAX_OCTAL_12: u64 = 0o777_7777_7777;

fn header(
    path: &[u8],
    kind: u8,
    link: &[u8],
    device: Option<(u32, u32)>,
    size: u64,
    inode: &Inode,
    with_xattrs: bool,
) -> Vec<u8> {
    let mut name = path.to_vec();
    if kind == b'5' {
        name.push(b'/');
    }
    let (uid, gid) = (u64::from(inode.uid), u64::from(inode.gid));
    let mtime = u64::try_from(inode.mtime).ok().filter(|seconds| *seconds <= MAX_OCTAL_12);
    let mut pax = Vec::new();
    if name.len() > 100 {
        record(&mut pax, b"path", &name);
    }
    if link.len() > 100 {
        record(&mut pax, b"linkpath", link);
    }
    if size > MAX_OCTAL_12 {
        record(&mut pax, b"size", size.to_string().as_bytes());
    }
    if uid > MAX_OCTAL_8 {
        record(&mut pax, b"uid", uid.to_string().as_bytes());
    }
    if gid > MAX_OCTAL_8 {
        record(&mut pax, b"gid", gid.to_string().as_bytes());
    }
    if mtime.is_none() {
        record(&mut pax, b"mtime", inode.mtime.to_string().as_bytes());
    }
    for (name, value) in inode.xattrs.iter().flatten().filter(|_| with_xattrs) {
        record(&mut pax, &[b"SCHILY.xattr.", name.as_slice()].concat(), value);
    }
    let mut out = Vec::with_capacity(BLOCK as usize);
    if !pax.is_empty() {
        let mut block = Block::new(b"PaxHeaders", b'x');
        block.numbers(0o644, 0, 0, pax.len() as u64, 0);
        out.extend_from_slice(&block.finish());
        out.extend_from_slice(&pax);
        out.resize(out.len().next_multiple_of(BLOCK as usize), 0);
    }
    let mut block = Block::new(&name, kind);
    block.numbers(
        inode.mode,
        capped(uid),
        capped(gid),
        if size > MAX_OCTAL_12 { 0 } else { size },
        mtime.unwrap_or(0),
    );
    block.text(157, 100, link);
    if let Some((major, minor)) = device {
        block.octal(329, 8, u64::from(major));
        block.octal(337, 8, u64::from(minor));
    }
    out.extend_from_slice(&block.finish());
    out
}

fn capped(id: u64) -> u64 {
    if id > MAX_OCTAL_8 { 0 } else { id }
}

/// Appends a pax record: its length counts its own digits.
fn record(pax: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    pax.extend_from_slice(length.to_string().as_bytes());
    pax.push(b' ');
    pax.extend_from_slice(key);
    pax.push(b'=');
    pax.extend_from_slice(value);
    pax.push(b'\n');
}

/// A ustar header block (POSIX.1-1988), field by field.
struct Block([u8; BLOCK as usize]);

impl Block {
    fn new(name: &[u8], kind: u8) -> Self {
        let mut block = Self([0; BLOCK as usize]);
        block.text(0, 100, name);
        block.0[156] = kind;
        block.text(257, 8, b"ustar\x0000");
        block
    }

    /// Whatever does not fit is in the pax header before this block.
    fn text(&mut self, at: usize, width: usize, text: &[u8]) {
        let length = text.len().min(width);
        self.0[at..at + length].copy_from_slice(&text[..length]);
    }

    fn octal(&mut self, at: usize, width: usize, value: u64) {
        let digits = format!("{value:0width$o}", width = width - 1);
        self.text(at, width - 1, digits.as_bytes());
    }

    fn numbers(&mut self, mode: u16, uid: u64, gid: u64, size: u64, mtime: u64) {
        self.octal(100, 8, u64::from(mode));
        self.octal(108, 8, uid);
        self.octal(116, 8, gid);
        self.octal(124, 12, size);
        self.octal(136, 12, mtime);
    }

    fn finish(mut self) -> [u8; BLOCK as usize] {
        self.0[148..156].fill(b' ');
        let sum: u32 = self.0.iter().map(|b| u32::from(*b)).sum();
        self.text(148, 7, format!("{sum:06o}\0").as_bytes());
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn write(rootfs: &RootFs) -> Vec<u8> {
        let mut out = Vec::new();
        rootfs.write_tar(&mut out).unwrap();
        out
    }

    fn layer(build: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> File {
        use std::io::Write;
        let mut builder = tar::Builder::new(Vec::new());
        build(&mut builder);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&builder.into_inner().unwrap()).unwrap();
        file
    }

    fn add(builder: &mut tar::Builder<Vec<u8>>, path: &str, data: &[u8], uid: u64) {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o4711);
        header.set_uid(uid);
        header.set_mtime(1_700_000_000);
        builder.append_data(&mut header, path, data).unwrap();
    }

    #[test]
    fn the_tar_reads_back_with_another_reader_and_has_the_promised_size() {
        let long = "deep/".repeat(40) + "file";
        let file = layer(|builder| {
            add(builder, &long, b"long", 3_000_000_000);
            builder.append_pax_extensions([("SCHILY.xattr.user.k", &b"v\n"[..])]).unwrap();
            add(builder, "x", b"data", 7);
            let mut link = tar::Header::new_gnu();
            link.set_entry_type(tar::EntryType::Link);
            link.set_size(0);
            builder.append_link(&mut link, "a-link", "x").unwrap();
        });
        let rootfs = crate::flatten(vec![file]).unwrap();
        let bytes = write(&rootfs);
        assert_eq!(bytes.len() as u64, rootfs.tar_size());
        let mut archive = tar::Archive::new(&bytes[..]);
        let mut seen = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            if path == long {
                // ustar's octal fields end at 2097151: this came by way of pax.
                assert_eq!((entry.header().uid().unwrap(), text.as_str()), (3_000_000_000, "long"));
            }
            if path == "a-link" {
                // The first name in order carries the data, whatever the layer had.
                assert_eq!(text, "data");
                assert_eq!(entry.header().mode().unwrap(), 0o4711);
            }
            if path == "x" {
                assert_eq!(entry.link_name_bytes().unwrap().as_ref(), b"a-link");
            }
            seen.push(path);
        }
        let mut sorted = seen.clone();
        sorted.sort_by_key(|path| path.trim_end_matches('/').replace('/', "\0"));
        assert_eq!(seen, sorted);
        // With the name that carries the inode, and not again with its links.
        let attribute = b"26 SCHILY.xattr.user.k=v\n\n";
        let found = bytes.windows(attribute.len()).filter(|window| window == attribute).count();
        assert_eq!(found, 1);
        for owned in ["dev/", "etc/", "etc/hosts", "etc/mtab", "proc/", "sys/"] {
            assert!(seen.iter().any(|path| path == owned), "{owned} is missing");
        }
    }

    #[test]
    fn the_order_of_entries_in_a_layer_does_not_show() {
        let one = layer(|b| {
            add(b, "b", b"2", 0);
            add(b, "a", b"1", 0);
        });
        let two = layer(|b| {
            add(b, "a", b"1", 0);
            add(b, "b", b"2", 0);
        });
        assert_eq!(write(&crate::flatten(vec![one]).unwrap()), write(&crate::flatten(vec![two]).unwrap()));
    }

    #[test]
    fn flattening_what_was_flattened_changes_nothing() {
        use std::io::Write;
        let first = layer(|b| {
            add(b, "etc/hosts", b"10.0.0.1 x", 0);
            add(b, "etc/passwd", b"root", 0);
            add(b, ".dockerenv", b"", 0);
            add(b, &("nnnnnnnnn/".repeat(20) + "f"), b"x", 9);
        });
        let once = write(&crate::flatten(vec![first]).unwrap());
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&once).unwrap();
        assert_eq!(write(&crate::flatten(vec![file]).unwrap()), once);
    }

    #[test]
    fn sizes_beyond_the_octal_field_go_into_the_pax_header_and_read_back() {
        use crate::tar_reader::TarReader;
        for size in [MAX_OCTAL_12, MAX_OCTAL_12 + 1, 1 << 40] {
            let inode = Inode::plain(Content::File { layer: 0, offset: 0, size }, 0o644);
            let bytes = header(b"big", b'0', &[], None, size, &inode, true);
            assert_eq!(bytes.len() > 512, size > MAX_OCTAL_12);
            let mut bytes = &bytes[..];
            let read = TarReader::new(&mut bytes as &mut dyn Read).next().unwrap().unwrap();
            assert_eq!((read.path.as_slice(), read.size), (&b"big"[..], size));
        }
    }

    #[test]
    fn a_pax_record_counts_its_own_length_around_each_power_of_ten() {
        for length in 80..130 {
            let mut pax = Vec::new();
            record(&mut pax, b"path", &vec![b'x'; length]);
            let text = String::from_utf8(pax).unwrap();
            let (count, _) = text.split_once(' ').unwrap();
            assert_eq!(count.parse::<usize>().unwrap(), text.len());
        }
    }
}
