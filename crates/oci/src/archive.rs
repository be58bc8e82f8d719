//! Taking an image in: from a stream or a folder to staged blobs.
//!
//! A stream is read once, front to back, and its parts may come in any order
//! (`docker save` writes its manifest last), so every file that may be a layer
//! is staged, decompressed, as a blob in a temporary folder, and what the
//! manifest then does not name is dropped with the folder.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Cursor, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use smolcellar_store::report::Event;
use smolcellar_store::{BlobWriter, Digest, HashingReader, Reporter, StagedBlob, TempDir};

use crate::compression::{Compression, decompress};
use crate::config::{ImageConfig, Platform};
use crate::error::{OciError, Result, show};
use crate::image_id::ImageId;
use crate::layout::{self, Parts};
use crate::tar_reader::{Header, Kind, TarError, TarReader};

/// Which image is wanted, and how to call its source in messages.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The source: a file's path, "standard input", "docker save".
    pub what: String,
    /// The platform it must be for.
    pub platform: Platform,
    /// Its ID, if it is known.
    pub id: Option<ImageId>,
}

/// Bounds on what an archive may make us keep.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The largest JSON part, in bytes.
    pub json: u64,
    /// The sum of all JSON parts, in bytes.
    pub json_total: u64,
    /// Parts of any kind.
    pub parts: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { json: 8 << 20, json_total: 32 << 20, parts: 100_000 }
    }
}

/// A layer, taken in. [`Image::verify`] checks it.
#[derive(Debug, Clone)]
pub struct StagedLayer {
    /// The uncompressed tar; its digest must be the layer's diff ID.
    pub blob: Arc<StagedBlob>,
    /// What the config says its digest is.
    pub diff_id: Digest,
    /// Its path in the archive.
    pub(crate) path: String,
    /// The digest that the manifest gives for the bytes as stored, if any, and
    /// the one they have where that is not the blob's own.
    pub(crate) stored: (Option<Digest>, Option<Digest>),
}

/// An image, taken in.
#[derive(Debug)]
pub struct Image {
    /// Its ID.
    pub id: ImageId,
    /// Its config, byte for byte.
    pub config: Vec<u8>,
    /// Its config, understood.
    pub parsed: ImageConfig,
    /// Its layers, lowest first.
    pub layers: Vec<StagedLayer>,
    /// How its source is called.
    pub(crate) what: String,
}

impl Image {
    /// Checks every layer against the config and the manifest. Hashing may
    /// still be under way: this waits for it. Nothing made of the layers may
    /// be published before.
    ///
    /// # Errors
    /// [`OciError::Mismatch`] naming the layer.
    pub fn verify(&self) -> Result<()> {
        for (number, layer) in self.layers.iter().enumerate() {
            let mismatch = |kind: &str, expected: Digest, actual: Digest| OciError::Mismatch {
                what: self.what.clone(),
                part: format!("layer {} ({}), {kind}", number + 1, layer.path),
                expected,
                actual,
            };
            let digest = layer.blob.digest()?;
            let (wanted, found) = (layer.stored.0, layer.stored.1.unwrap_or(digest));
            if let Some(wanted) = wanted.filter(|wanted| *wanted != found) {
                return Err(mismatch("as stored", wanted, found));
            }
            if digest != layer.diff_id {
                return Err(mismatch("uncompressed", layer.diff_id, digest));
            }
        }
        Ok(())
    }
}

/// The task named in events.
const TASK: &str = "read image";

/// Takes an image in from a `docker save` tar or an OCI image layout tar,
/// plain, gzip or zstd. Reads `input` to its end.
///
/// # Errors
/// [`OciError`] naming the part at fault. Nothing outside `dir` is written.
pub fn ingest_stream(
    input: impl Read,
    dir: &TempDir,
    wanted: &Wanted,
    limits: Limits,
    reporter: &dyn Reporter,
) -> Result<Image> {
    reporter.report(Event::Begin { task: TASK, total: None });
    let image = read_stream(input, dir, wanted, limits, reporter);
    reporter.report(Event::End { task: TASK });
    image
}

fn read_stream(
    input: impl Read,
    dir: &TempDir,
    wanted: &Wanted,
    limits: Limits,
    reporter: &dyn Reporter,
) -> Result<Image> {
    let what = wanted.what.as_str();
    let mut input = decompress(peeked(Counting { inner: input, reporter }, what)?)
        .map_err(OciError::io(what, "its compression header"))?;
    let mut parts = TarParts::new(what, dir);
    let mut reader = TarReader::new(&mut *input as &mut dyn Read);
    let mut count = 0;
    loop {
        let header = match reader.next() {
            Ok(Some(header)) => header,
            Ok(None) => break,
            // Not even one block: a tar that was cut has more.
            Err(TarError::Io(error))
                if error.kind() == io::ErrorKind::UnexpectedEof && reader.position() == 0 =>
            {
                return Err(not_a_tar(what));
            }
            Err(TarError::Io(error)) => return Err(broken(what, "an entry", error)),
            Err(TarError::NotTar) if count == 0 => return Err(not_a_tar(what)),
            Err(TarError::NotTar) => {
                let problem = "a header checksum is wrong: it is damaged".to_owned();
                return Err(OciError::Invalid { what: what.to_owned(), problem });
            }
            Err(TarError::Bad { path, problem }) => return Err(invalid(what, &path, &problem)),
        };
        count += 1;
        if count > limits.parts {
            return Err(invalid(
                what,
                &header.path,
                &format!("there are more than {} entries", limits.parts),
            ));
        }
        parts.take(&header, reader.data(), limits)?;
    }
    // The writer may pad its output; let it finish writing.
    io::copy(&mut input, &mut io::sink()).map_err(|error| broken(what, "its padding", error))?;
    if count == 0 {
        return Err(not_a_tar(what));
    }
    layout::resolve(&mut parts, wanted)
}

/// Takes an image in from an OCI image layout folder.
///
/// # Errors
/// As [`ingest_stream`].
pub fn ingest_folder(
    folder: &Path,
    dir: &TempDir,
    wanted: &Wanted,
    limits: Limits,
    reporter: &dyn Reporter,
) -> Result<Image> {
    reporter.report(Event::Begin { task: TASK, total: None });
    let image = layout::resolve(&mut FolderParts { folder, dir, limits, wanted, reporter }, wanted);
    reporter.report(Event::End { task: TASK });
    image
}

/// The ID of the image in an archive file, without reading its layers. `None`
/// where that cannot be told cheaply or at all: [`ingest_stream`] says why.
pub fn peek(file: &File, wanted: &Wanted) -> Option<ImageId> {
    let limits = Limits::default();
    let mut parts = SmallParts::default();
    let mut total = 0;
    let mut reader = TarReader::new(BufReader::new(file));
    while let Ok(Some(header)) = reader.next() {
        let name = clean(&header.path).ok()?;
        if header.kind == Kind::File && header.size <= limits.json && parts.0.len() < limits.parts {
            let mut bytes = vec![0; 1];
            let mut data = reader.data();
            if data.read_exact(&mut bytes).is_ok() && matches!(bytes[0], b'{' | b'[') {
                data.read_to_end(&mut bytes).ok()?;
                total += header.size;
                if total > limits.json_total {
                    return None;
                }
                parts.0.insert(name, bytes);
            }
        }
    }
    layout::identify(&mut parts, wanted).ok()
}

/// The JSON parts of a tar.
#[derive(Default)]
struct SmallParts(HashMap<String, Vec<u8>>);

impl Parts for SmallParts {
    fn small(&mut self, path: &str) -> Result<Option<Vec<u8>>> {
        Ok(self.0.get(path).cloned())
    }

    fn layer(&mut self, _: &str) -> Result<Option<Part>> {
        Ok(None)
    }

    fn hint(&self) -> &'static str {
        ""
    }
}

/// Fills a buffer far enough to tell the compression, however the input dribbles.
fn peeked<R: Read>(mut input: R, what: &str) -> Result<BufReader<io::Chain<Cursor<Vec<u8>>, R>>> {
    let mut start = Vec::new();
    input.by_ref().take(16).read_to_end(&mut start).map_err(OciError::io(what, "its start"))?;
    Ok(BufReader::with_capacity(1 << 18, Cursor::new(start).chain(input)))
}

/// Reports the bytes that pass.
struct Counting<'a, R> {
    inner: R,
    reporter: &'a dyn Reporter,
}

impl<R: Read> Read for Counting<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.reporter.report(Event::Advance { task: TASK, bytes: n as u64 });
        Ok(n)
    }
}

/// A file of the archive that may be a layer.
#[derive(Clone)]
pub(crate) struct Part {
    pub(crate) blob: Arc<StagedBlob>,
    /// The digest of its bytes as the archive has them, if that is not the
    /// blob's own.
    pub(crate) raw: Option<Digest>,
}

/// How many files of an archive are kept as possible layers. Each holds a file
/// open, of which a process has 1024 by default; engines allow 127 layers, and
/// an archive of many images has a few hundred.
const MAX_LARGE: usize = 700;

/// The parts of a tar.
struct TarParts<'a> {
    what: String,
    dir: &'a TempDir,
    small: HashMap<String, Vec<u8>>,
    small_total: u64,
    large: HashMap<String, Part>,
    links: HashMap<String, String>,
}

impl<'a> TarParts<'a> {
    fn new(what: &str, dir: &'a TempDir) -> Self {
        Self {
            what: what.to_owned(),
            dir,
            small: HashMap::new(),
            small_total: 0,
            large: HashMap::new(),
            links: HashMap::new(),
        }
    }

    fn take(&mut self, header: &Header, mut data: impl Read, limits: Limits) -> Result<()> {
        let bad = |problem: &str| invalid(&self.what, &header.path, problem);
        let name = clean(&header.path).map_err(|problem| bad(&problem))?;
        if header.kind == Kind::Directory {
            return Ok(());
        }
        if self.small.contains_key(&name) || self.large.contains_key(&name) || self.links.contains_key(&name)
        {
            return Err(bad("the archive has it twice"));
        }
        match header.kind {
            Kind::Symlink | Kind::HardLink => {
                // `docker save` writes a layer once and links to it after that.
                let base = match header.kind {
                    Kind::Symlink => name.rsplit_once('/').map_or("", |(parent, _)| parent),
                    _ => "",
                };
                // A link out of the archive leads to no part of it, and is not
                // followed: only an archive that is no image has one.
                let target = join(base, &header.link).unwrap_or_default();
                self.links.insert(name, target);
                return Ok(());
            }
            Kind::File => {}
            // No part of an image, whatever it is.
            _ => return Ok(()),
        }
        let inside = show(&header.path);
        let mut start = Vec::new();
        let mut failed = |error| broken(&self.what, &inside, error);
        data.by_ref().take(16).read_to_end(&mut start).map_err(&mut failed)?;
        let json = matches!(start.first(), Some(b'{' | b'['));
        if json && header.size <= limits.json {
            self.small_total += header.size;
            if self.small_total > limits.json_total {
                return Err(bad(&format!("the archive has more than {} bytes of JSON", limits.json_total)));
            }
            data.read_to_end(&mut start).map_err(&mut failed)?;
            self.small.insert(name, start);
            return Ok(());
        }
        if self.large.len() == MAX_LARGE {
            let problem = format!("it has more than {MAX_LARGE} files that could be layers");
            let hint = self.hint();
            return Err(OciError::NotAnImage { what: self.what.clone(), problem, hint });
        }
        let part = stage(Cursor::new(start).chain(data), self.dir, &self.what, &inside)?;
        self.large.insert(name, part);
        Ok(())
    }

    fn follow(&self, path: &str) -> String {
        let mut path = path.to_owned();
        // As many hops as a sane archive could ever need.
        for _ in 0..8 {
            match self.links.get(&path) {
                Some(target) => path.clone_from(target),
                None => break,
            }
        }
        path
    }
}

impl Parts for TarParts<'_> {
    fn small(&mut self, path: &str) -> Result<Option<Vec<u8>>> {
        Ok(self.small.get(&self.follow(path)).cloned())
    }

    fn layer(&mut self, path: &str) -> Result<Option<Part>> {
        let path = self.follow(path);
        if let Some(part) = self.large.get(&path) {
            return Ok(Some(part.clone()));
        }
        // A layer whose first bytes happened to look like JSON.
        match self.small.get(&path) {
            Some(bytes) => stage(Cursor::new(bytes.clone()), self.dir, &self.what, &path).map(Some),
            None => Ok(None),
        }
    }

    fn hint(&self) -> &'static str {
        let has = |name: &str| self.large.keys().chain(self.links.keys()).any(|path| path.starts_with(name));
        match has("etc/") || has("bin/") || has("usr/") {
            true => " (this looks like a root filesystem: `docker import` it and build from that)",
            false => "",
        }
    }
}

/// The parts of a folder.
struct FolderParts<'a> {
    folder: &'a Path,
    dir: &'a TempDir,
    limits: Limits,
    wanted: &'a Wanted,
    reporter: &'a dyn Reporter,
}

impl FolderParts<'_> {
    fn open(&self, path: &str) -> Result<Option<(File, PathBuf)>> {
        let what = &self.wanted.what;
        let clean = clean(path.as_bytes()).map_err(|problem| invalid(what, path.as_bytes(), &problem))?;
        let path = self.folder.join(clean);
        match File::open(&path) {
            Ok(file) => Ok(Some((file, path))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(OciError::io(what, &path.display().to_string())(error)),
        }
    }
}

impl Parts for FolderParts<'_> {
    fn small(&mut self, path: &str) -> Result<Option<Vec<u8>>> {
        let Some((file, at)) = self.open(path)? else { return Ok(None) };
        let mut bytes = Vec::new();
        let failed = OciError::io(&self.wanted.what, &at.display().to_string());
        file.take(self.limits.json + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > self.limits.json {
            let problem = format!("it has more than {} bytes", self.limits.json);
            return Err(invalid(&self.wanted.what, path.as_bytes(), &problem));
        }
        Ok(Some(bytes))
    }

    fn layer(&mut self, path: &str) -> Result<Option<Part>> {
        let Some((file, at)) = self.open(path)? else { return Ok(None) };
        let file = Counting { inner: file, reporter: self.reporter };
        stage(file, self.dir, &self.wanted.what, &at.display().to_string()).map(Some)
    }

    fn hint(&self) -> &'static str {
        " (a folder must be an OCI image layout)"
    }
}

/// Writes a part, decompressed, into the temporary folder.
fn stage(mut input: impl Read, dir: &TempDir, what: &str, inside: &str) -> Result<Part> {
    let mut start = Vec::new();
    input.by_ref().take(16).read_to_end(&mut start).map_err(|error| broken(what, inside, error))?;
    let compression = Compression::sniff(&start);
    let mut input = Cursor::new(start).chain(input);
    let mut writer = BlobWriter::create(dir)?;
    let at = writer.path().to_owned();
    if compression == Compression::None {
        // The blob's own digest is that of the raw bytes: hash once.
        copy(&mut input, &mut writer, what, inside, &at)?;
        return Ok(Part { raw: None, blob: Arc::new(writer.finish()) });
    }
    let mut raw = BufReader::with_capacity(1 << 18, HashingReader::new(input));
    {
        let mut reader = decompress(&mut raw).map_err(|error| broken(what, inside, error))?;
        copy(&mut reader, &mut writer, what, inside, &at)?;
    }
    // What follows the compressed stream still belongs to the raw digest.
    io::copy(&mut raw, &mut io::sink()).map_err(|error| broken(what, inside, error))?;
    Ok(Part { blob: Arc::new(writer.finish()), raw: Some(raw.into_inner().finish().0) })
}

fn copy(reader: &mut dyn Read, writer: &mut BlobWriter, what: &str, inside: &str, at: &Path) -> Result<()> {
    let mut piece = vec![0; 1 << 18];
    loop {
        match reader.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(n) => writer
                .write_all(&piece[..n])
                .map_err(|error| smolcellar_store::StoreError::io("write", at)(error))?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(broken(what, inside, error)),
        }
    }
}

/// An archive's path as its parts joined by single slashes.
fn clean(path: &[u8]) -> Result<String, String> {
    let text = std::str::from_utf8(path).map_err(|_| "its path is not UTF-8".to_owned())?;
    if text.starts_with('/') {
        return Err("its path is absolute".into());
    }
    let parts: Vec<_> = text.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if parts.contains(&"..") {
        return Err("its path contains '..'".into());
    }
    Ok(parts.join("/"))
}

/// Where a link in folder `base` leads; `None` if out of the archive.
fn join(base: &str, target: &[u8]) -> Option<String> {
    let target = std::str::from_utf8(target).ok().filter(|target| !target.starts_with('/'))?;
    let mut parts: Vec<&str> = base.split('/').filter(|part| !part.is_empty()).collect();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// Reading failed: an early end and damaged compression are the archive's
/// fault, the rest is the machine's.
fn broken(what: &str, inside: &str, error: io::Error) -> OciError {
    match error.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::Other => {
            OciError::Invalid {
                what: what.to_owned(),
                problem: format!("{inside}: its compressed data is damaged ({error})"),
            }
        }
        _ => OciError::io(what, inside)(error),
    }
}

fn invalid(what: &str, path: &[u8], problem: &str) -> OciError {
    OciError::Invalid { what: what.to_owned(), problem: format!("'{}': {problem}", show(path)) }
}

fn not_a_tar(what: &str) -> OciError {
    let hint = "; gzip and zstd are read too, other compressions are not";
    OciError::NotAnImage { what: what.to_owned(), problem: "it is no tar archive".into(), hint }
}
