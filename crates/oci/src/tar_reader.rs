//! A strict reader of tar headers.
//!
//! Formats: POSIX.1-1988 ustar, POSIX.1-2001 pax, GNU long names and base-256
//! numbers. Entries are not interpreted beyond what a header says, nothing is
//! skipped silently, and every length is capped before memory is taken for
//! it. What the reader does not know is an error, not a guess.

use std::fs::File;
use std::io::{self, BufReader, Read};

use crate::error::show;

/// Bytes of a tar block.
pub(crate) const BLOCK: u64 = 512;

/// The most that one pax header or GNU long name may take, in bytes.
const MAX_EXTENSION: u64 = 1 << 20;

/// The longest path or link target that Linux can use (PATH_MAX), in bytes.
const MAX_PATH: usize = 4096;
/// Extended attributes of one entry, in bytes, over all its headers. Linux
/// allows 64 KiB a value, and file systems fewer than that in all.
const MAX_XATTRS: usize = 1 << 18;

/// The largest file that Linux can hold (loff_t), in bytes, rounded down so
/// that offsets can be added up without overflow.
const MAX_SIZE: u64 = 1 << 62;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    Symlink,
    Char,
    Block,
    Directory,
    Fifo,
}

/// One entry, its extensions applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    /// As the archive has it.
    pub(crate) path: Vec<u8>,
    pub(crate) kind: Kind,
    /// Permission bits, the low twelve.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Whole seconds since 1970, rounded down.
    pub(crate) mtime: i64,
    /// Bytes of data that follow.
    pub(crate) size: u64,
    /// Target of a link; empty otherwise.
    pub(crate) link: Vec<u8>,
    /// Major and minor of a device.
    pub(crate) device: (u32, u32),
    /// Extended attributes in the order of their names.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Offset of the data from the start of the archive, in bytes.
    pub(crate) offset: u64,
}

/// What stops a reader.
#[derive(Debug)]
pub(crate) enum TarError {
    Io(io::Error),
    /// The checksum of a header is wrong: damaged, or no tar at all.
    NotTar,
    /// The header or its extensions are not acceptable; the path where known.
    Bad {
        path: Vec<u8>,
        problem: String,
    },
}

impl From<io::Error> for TarError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Passing over bytes without looking at them.
pub(crate) trait Skip: Read {
    fn skip(&mut self, bytes: u64) -> io::Result<()>;
}

impl Skip for BufReader<&File> {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        self.seek_relative(i64::try_from(bytes).map_err(io::Error::other)?)
    }
}

impl Skip for &mut dyn Read {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        let skipped = io::copy(&mut self.by_ref().take(bytes), &mut io::sink())?;
        if skipped == bytes { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

/// Reads one header after the other. The data of an entry must be consumed
/// through [`TarReader::data`] or is skipped by the next call.
pub(crate) struct TarReader<R> {
    inner: R,
    /// Bytes of the archive behind us.
    position: u64,
    /// Data of the current entry that is still to come, without padding.
    left: u64,
    /// Padding after that data.
    padding: u64,
}

impl<R: Skip> TarReader<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self { inner, position: 0, left: 0, padding: 0 }
    }

    /// Bytes of the archive behind us.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// The next entry; `None` at the end of the archive.
    pub(crate) fn next(&mut self) -> Result<Option<Header>, TarError> {
        let mut extensions = Extensions::default();
        loop {
            let rest = self.left + self.padding;
            self.inner.skip(rest)?;
            self.position += rest;
            (self.left, self.padding) = (0, 0);
            let Some(block) = self.block()? else {
                return match extensions.any {
                    true => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                    false => Ok(None),
                };
            };
            let raw = tar::Header::from_byte_slice(&block);
            let path = extensions.path.clone().unwrap_or_else(|| raw.path_bytes().into_owned());
            let bad = |problem: &str| TarError::Bad { path: path.clone(), problem: problem.to_owned() };
            if unsigned(&block, CHECKSUM) != Some(u64::from(checksum(&block))) {
                return Err(TarError::NotTar);
            }
            let size = unsigned(&block, SIZE).ok_or_else(|| bad("its size is not a number"))?;
            let kind = match block[156] {
                b'0' | 0 | b'7' => Kind::File,
                b'1' => Kind::HardLink,
                b'2' => Kind::Symlink,
                b'3' => Kind::Char,
                b'4' => Kind::Block,
                b'5' => Kind::Directory,
                b'6' => Kind::Fifo,
                b'x' => {
                    let body = self.extension(size).map_err(|e| e.at(raw))?;
                    extensions.pax(&body).map_err(|problem| bad(&problem))?;
                    continue;
                }
                b'L' => {
                    extensions.path = Some(c_string(self.extension(size).map_err(|e| e.at(raw))?));
                    extensions.any = true;
                    continue;
                }
                b'K' => {
                    extensions.link = Some(c_string(self.extension(size).map_err(|e| e.at(raw))?));
                    extensions.any = true;
                    continue;
                }
                // A comment for the whole archive, as `git archive` writes it.
                b'g' => {
                    self.extension(size).map_err(|e| e.at(raw))?;
                    continue;
                }
                b'S' => return Err(bad("it is a GNU sparse file, which image layers do not use")),
                other => return Err(bad(&format!("it has the unknown type {:?}", char::from(other)))),
            };
            if extensions.sparse {
                return Err(bad("it is a sparse file, which image layers do not use"));
            }
            let size = match kind {
                Kind::File => extensions.size.unwrap_or(size),
                // Other kinds have no data; some writers leave a size behind.
                _ => 0,
            };
            let header = extensions.apply(&block, kind, size, self.position)?;
            if size > MAX_SIZE {
                return Err(TarError::Bad {
                    path: header.path,
                    problem: format!("its size of {size} bytes is absurd"),
                });
            }
            self.left = size;
            self.padding = size.next_multiple_of(BLOCK) - size;
            return Ok(Some(header));
        }
    }

    /// The data of the current entry, up to its end.
    pub(crate) fn data(&mut self) -> EntryData<'_, R> {
        EntryData(self)
    }

    /// One block; `None` at the end: a zero block or the end of the input.
    fn block(&mut self) -> io::Result<Option<Block>> {
        let mut block = [0; BLOCK as usize];
        let mut filled = 0;
        while filled < block.len() {
            match self.inner.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.position += BLOCK;
        Ok(block.iter().any(|byte| *byte != 0).then_some(block))
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        if size > MAX_EXTENSION {
            let problem = format!("its extended header has {size} bytes, more than {MAX_EXTENSION}");
            return Err(TarError::Bad { path: Vec::new(), problem });
        }
        let mut body = Vec::new();
        self.inner.by_ref().take(size).read_to_end(&mut body)?;
        if (body.len() as u64) < size {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let padding = size.next_multiple_of(BLOCK) - size;
        self.inner.skip(padding)?;
        self.position += size + padding;
        Ok(body)
    }
}

/// The path (as messages have it) and the size in bytes of the first entry of a
/// tar; `None` at its end.
///
/// # Errors
/// What is wrong with its header.
pub fn first_entry(input: &mut dyn Read) -> Result<Option<(String, u64)>, String> {
    match TarReader::new(input).next() {
        Ok(header) => Ok(header.map(|header| (show(&header.path), header.size))),
        Err(TarError::Io(error)) => Err(error.to_string()),
        Err(TarError::NotTar) => Err("a header checksum is wrong".into()),
        Err(TarError::Bad { problem, .. }) => Err(problem),
    }
}

/// Reads the data of one entry.
pub(crate) struct EntryData<'a, R>(&'a mut TarReader<R>);

impl<R: Skip> Read for EntryData<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let reader = &mut *self.0;
        let want = buf.len().min(usize::try_from(reader.left).unwrap_or(usize::MAX));
        if want == 0 {
            return Ok(0);
        }
        let n = reader.inner.read(&mut buf[..want])?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        reader.left -= n as u64;
        reader.position += n as u64;
        Ok(n)
    }
}

impl TarError {
    fn at(self, raw: &tar::Header) -> Self {
        match self {
            Self::Bad { path, problem } if path.is_empty() => {
                Self::Bad { path: raw.path_bytes().into_owned(), problem }
            }
            other => other,
        }
    }
}

/// What extended headers said about the entry that follows them.
#[derive(Default)]
struct Extensions {
    any: bool,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<i64>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    xattr_bytes: usize,
    sparse: bool,
}

impl Extensions {
    /// Takes in a pax body: records `<length> <key>=<value>\n`, the length in
    /// decimal and of the whole record. Values may hold any byte.
    fn pax(&mut self, body: &[u8]) -> Result<(), String> {
        self.any = true;
        let mut rest = body;
        while !rest.is_empty() {
            let malformed = || "its pax header is malformed".to_owned();
            let space = rest.iter().take(20).position(|b| *b == b' ').ok_or_else(malformed)?;
            let length: usize = number(&rest[..space]).ok_or_else(malformed)?;
            if length <= space + 1 || length > rest.len() || rest[length - 1] != b'\n' {
                return Err(malformed());
            }
            let record = &rest[space + 1..length - 1];
            rest = &rest[length..];
            let equals = record.iter().position(|b| *b == b'=').ok_or_else(malformed)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            let wrong = || format!("its pax {} is no number", String::from_utf8_lossy(key));
            match key {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => self.size = Some(number(value).ok_or_else(wrong)?),
                b"uid" => self.uid = Some(number(value).ok_or_else(wrong)?),
                b"gid" => self.gid = Some(number(value).ok_or_else(wrong)?),
                b"mtime" => self.mtime = Some(floor_seconds(value).ok_or_else(wrong)?),
                _ if key.starts_with(b"GNU.sparse.") => self.sparse = true,
                _ => {
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                        self.xattr_bytes += name.len() + value.len();
                        if self.xattr_bytes > MAX_XATTRS {
                            return Err(format!("its extended attributes take more than {MAX_XATTRS} bytes"));
                        }
                        self.xattrs.push((name.to_vec(), value.to_vec()));
                    }
                    // Other keys (atime, comment, vendor extensions) do not
                    // shape the file system; POSIX says to ignore them.
                }
            }
        }
        Ok(())
    }

    fn apply(&mut self, block: &Block, kind: Kind, size: u64, offset: u64) -> Result<Header, TarError> {
        let raw = tar::Header::from_byte_slice(block);
        let path = self.path.take().unwrap_or_else(|| raw.path_bytes().into_owned());
        let link = match kind {
            Kind::HardLink | Kind::Symlink => self
                .link
                .take()
                .or_else(|| raw.link_name_bytes().map(|name| name.into_owned()))
                .unwrap_or_default(),
            _ => Vec::new(),
        };
        let at = path.clone();
        let bad = move |problem: &str| TarError::Bad { path: at.clone(), problem: problem.to_owned() };
        for (text, name) in [(&path, "path"), (&link, "link target")] {
            if text.len() > MAX_PATH {
                return Err(bad(&format!("its {name} has {} bytes, more than {MAX_PATH}", text.len())));
            }
            if text.contains(&0) {
                return Err(bad(&format!("its {name} contains a NUL byte")));
            }
        }
        if matches!(kind, Kind::HardLink | Kind::Symlink) && link.is_empty() {
            return Err(bad("it is a link without a target"));
        }
        let small = |pax: Option<u64>, field: Field, name: &str| -> Result<u32, TarError> {
            let value = pax.or_else(|| unsigned(block, field));
            let value = value.ok_or_else(|| bad(&format!("its {name} is no number")))?;
            u32::try_from(value).map_err(|_| bad(&format!("its {name} {value} is out of range")))
        };
        let device = match kind {
            Kind::Char | Kind::Block => {
                (small(None, MAJOR, "major device number")?, small(None, MINOR, "minor device number")?)
            }
            _ => (0, 0),
        };
        self.xattrs.sort();
        if self.xattrs.windows(2).any(|pair| pair[0].0 == pair[1].0) {
            return Err(bad("it has one extended attribute twice"));
        }
        let mtime = match self.mtime {
            Some(seconds) => seconds,
            None => signed(block, MTIME).ok_or_else(|| bad("its modification time is no number"))?,
        };
        Ok(Header {
            kind,
            mode: (small(None, MODE, "mode")? & 0o7777) as u16,
            uid: small(self.uid, UID, "user ID")?,
            gid: small(self.gid, GID, "group ID")?,
            mtime,
            size,
            link,
            device,
            xattrs: std::mem::take(&mut self.xattrs),
            offset,
            path,
        })
    }
}

/// A header block.
type Block = [u8; BLOCK as usize];

/// A numeric field of a header block, as offset and width in bytes.
type Field = (usize, usize);

const MODE: Field = (100, 8);
const UID: Field = (108, 8);
const GID: Field = (116, 8);
const SIZE: Field = (124, 12);
const MTIME: Field = (136, 12);
const CHECKSUM: Field = (148, 8);
const MAJOR: Field = (329, 8);
const MINOR: Field = (337, 8);

fn unsigned(block: &Block, field: Field) -> Option<u64> {
    signed(block, field)?.try_into().ok()
}

/// Octal digits among spaces and NULs, nothing of them being 0, or GNU's
/// base-256: a first byte of 0x80 or 0xff, then big-endian two's complement.
fn signed(block: &Block, (at, width): Field) -> Option<i64> {
    let bytes = &block[at..at + width];
    if bytes[0] & 0x80 != 0 {
        let negative = bytes[0] == 0xff;
        if !negative && bytes[0] != 0x80 {
            return None;
        }
        let start = if negative { -1 } else { 0 };
        return bytes[1..]
            .iter()
            .try_fold(start, |value: i64, b| Some(value.checked_mul(256)? + i64::from(*b)));
    }
    let text = std::str::from_utf8(bytes).ok()?.trim_matches(['\0', ' ']);
    // Digits end at the first NUL; some writers leave rubbish behind it.
    let text = text.split('\0').next().unwrap_or_default();
    if text.is_empty() {
        return Some(0);
    }
    if !text.bytes().all(|b| (b'0'..=b'7').contains(&b)) {
        return None;
    }
    i64::from_str_radix(text, 8).ok()
}

/// The sum of the header's bytes, its checksum field read as spaces.
fn checksum(block: &Block) -> u32 {
    block.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { 32 } else { u32::from(*b) }).sum()
}

/// GNU long names end in a NUL byte.
fn c_string(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|b| *b == 0) {
        bytes.truncate(end);
    }
    bytes
}

fn number<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    // `from_str` alone would take a leading plus sign.
    text.first().filter(|b| b.is_ascii_digit())?;
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// A pax time, `[-]seconds[.fraction]`, rounded down to whole seconds.
fn floor_seconds(text: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let seconds: i64 = whole.parse().ok()?;
    let below = whole.starts_with('-') && fraction.bytes().any(|b| b != b'0');
    seconds.checked_sub(i64::from(below))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read_all(bytes: &[u8]) -> Result<Vec<(Header, Vec<u8>)>, TarError> {
        let mut input = bytes;
        let mut reader = TarReader::new(&mut input as &mut dyn Read);
        let mut entries = Vec::new();
        while let Some(header) = reader.next()? {
            let mut data = Vec::new();
            reader.data().read_to_end(&mut data)?;
            entries.push((header, data));
        }
        Ok(entries)
    }

    fn archive(path: &str, extensions: &[(&str, &[u8])], data: &[u8]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        if !extensions.is_empty() {
            builder.append_pax_extensions(extensions.iter().copied()).unwrap();
        }
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o4755);
        header.set_mtime(7);
        builder.append_data(&mut header, path, data).unwrap();
        builder.into_inner().unwrap()
    }

    #[test]
    fn gnu_long_names_and_pax_records_are_applied() {
        let long = "d/".repeat(120) + "file";
        let entries = read_all(&archive(&long, &[], b"data")).unwrap();
        assert_eq!(entries[0].0.path, long.as_bytes());
        let pax: &[(&str, &[u8])] = &[
            ("mtime", b"-1.5"),
            ("uid", b"4000000000"),
            ("SCHILY.xattr.user.b", b"2\n="),
            ("SCHILY.xattr.user.a", &[0, 255]),
            ("comment", b"ignored"),
        ];
        let (header, data) = read_all(&archive("f", pax, b"data")).unwrap().remove(0);
        assert_eq!((header.mtime, header.uid, header.mode), (-2, 4_000_000_000, 0o4755));
        let xattrs = [(b"user.a".to_vec(), vec![0, 255]), (b"user.b".to_vec(), b"2\n=".to_vec())];
        assert_eq!(header.xattrs, xattrs);
        assert_eq!(data, b"data");
    }

    #[test]
    fn every_cut_is_an_early_end_or_the_end_of_an_entry() {
        let whole = archive("f", &[("mtime", b"5")], &[b'x'; 700]);
        for cut in 1..whole.len() - 1024 {
            match read_all(&whole[..cut]) {
                Err(TarError::Io(error)) => {
                    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "cut {cut}")
                }
                other => panic!("cut {cut}: {other:?}"),
            }
        }
    }

    #[test]
    fn sparse_files_unknown_types_and_huge_extensions_are_refused() {
        assert!(matches!(
            read_all(&archive("f", &[("GNU.sparse.major", b"1")], b"")),
            Err(TarError::Bad { .. })
        ));
        for (at, value) in [(156, b'S'), (156, b'Z'), (124, b'9')] {
            let mut bytes = archive("f", &[], b"");
            bytes[at] = value;
            assert!(read_all(&bytes).is_err());
        }
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::XHeader);
        header.set_size(1 << 40);
        header.set_cksum();
        let error = read_all(header.as_bytes()).unwrap_err();
        assert!(matches!(error, TarError::Bad { problem, .. } if problem.contains("extended header")));
    }

    proptest! {
        #[test]
        fn no_input_makes_it_panic_or_take_memory(mut bytes in proptest::collection::vec(any::<u8>(), 0..2048), fix: bool) {
            if fix && bytes.len() >= 512 {
                let mut block = [0; 512];
                block.copy_from_slice(&bytes[..512]);
                let sum = checksum(&block);
                bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
            let _ = read_all(&bytes);
        }

        #[test]
        fn what_the_tar_crate_writes_is_read_the_same(path in "[a-zäöü]{1,8}(/[a-z]{1,40}){0,6}", data: Vec<u8>) {
            let entries = read_all(&archive(&path, &[], &data)).unwrap();
            prop_assert_eq!(&entries[0].0.path, path.as_bytes());
            prop_assert_eq!(&entries[0].1, &data);
        }
    }
}
