//! Bytes on their way, counted and reported.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use smolcellar_store::{Digest, Event, Hasher, Reporter, StoreError};

use crate::error::{Result, TransferError};
use crate::format::{self, BLOCK, END};

/// Bytes held at a time.
const PIECE: usize = 1 << 18;

/// A task in a reporter's hands; it ends however the work does.
pub(crate) struct Task<'a> {
    reporter: &'a dyn Reporter,
    name: &'a str,
}

impl<'a> Task<'a> {
    pub(crate) fn begin(reporter: &'a dyn Reporter, name: &'a str, total: u64) -> Self {
        reporter.report(Event::Begin { task: name, total: Some(total) });
        Self { reporter, name }
    }

    pub(crate) fn advance(&self, bytes: usize) {
        self.reporter.report(Event::Advance { task: self.name, bytes: bytes as u64 });
    }
}

impl Drop for Task<'_> {
    fn drop(&mut self) {
        self.reporter.report(Event::End { task: self.name });
    }
}

/// A tar under way.
pub(crate) struct TarWriter<'a> {
    out: &'a mut dyn Write,
    written: u64,
}

impl<'a> TarWriter<'a> {
    pub(crate) fn new(out: &'a mut dyn Write) -> Self {
        Self { out, written: 0 }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(TransferError::Write)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// A file of these bytes.
    pub(crate) fn bytes(&mut self, path: &str, bytes: &[u8]) -> Result<()> {
        let header = format::tar_header(path, bytes.len() as u64).map_err(TransferError::Write)?;
        self.write(&header)?;
        self.write(bytes)?;
        self.write(&END[..format::padding(bytes.len() as u64)])
    }

    /// A file with the contents of the store's file `from`, which must have
    /// this size and digest.
    pub(crate) fn file(
        &mut self,
        path: &str,
        from: &Path,
        size: u64,
        digest: &Digest,
        task: &Task<'_>,
    ) -> Result<()> {
        let damaged = |problem: String| TransferError::Damaged { path: from.to_owned(), problem };
        let read = |source: io::Error| TransferError::Read { what: from.display().to_string(), source };
        let mut file = File::open(from).map_err(read)?;
        let length = file.metadata().map_err(read)?.len();
        if length != size {
            return Err(damaged(format!("it has {length} bytes, its receipt says {size}")));
        }
        let header = format::tar_header(path, size).map_err(TransferError::Write)?;
        self.write(&header)?;
        let mut hasher = Hasher::new();
        let mut piece = vec![0; PIECE];
        let mut left = size;
        while left > 0 {
            let want = piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let n = match file.read(&mut piece[..want]) {
                Ok(0) => return Err(damaged("it became shorter while it was read".into())),
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(read(error)),
            };
            hasher.update(&piece[..n]);
            self.write(&piece[..n])?;
            task.advance(n);
            left -= n as u64;
        }
        let actual = hasher.finish();
        if actual != *digest {
            return Err(damaged(format!("its bytes have {actual}, expected {digest}")));
        }
        self.write(&END[..format::padding(size)])
    }

    /// Ends the tar; bytes written in all.
    pub(crate) fn finish(mut self) -> Result<u64> {
        self.write(&END)?;
        self.out.flush().map_err(TransferError::Write)?;
        Ok(self.written)
    }
}

/// A tar coming in. What must come is known; anything else is an error.
pub(crate) struct TarInput<'a> {
    input: &'a mut dyn Read,
    pub(crate) what: &'a str,
}

impl<'a> TarInput<'a> {
    pub(crate) fn new(input: &'a mut dyn Read, what: &'a str) -> Self {
        Self { input, what }
    }

    /// Up to `wanted` bytes: fewer only at the end of the input.
    pub(crate) fn up_to(&mut self, wanted: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let read = (&mut *self.input).take(wanted as u64).read_to_end(&mut bytes);
        read.map_err(|source| TransferError::Read { what: self.what.to_owned(), source })?;
        Ok(bytes)
    }

    fn exactly(&mut self, wanted: usize, inside: &str) -> Result<Vec<u8>> {
        let bytes = self.up_to(wanted)?;
        if bytes.len() < wanted { Err(self.cut(inside)) } else { Ok(bytes) }
    }

    fn cut(&self, inside: &str) -> TransferError {
        TransferError::Cut { what: self.what.to_owned(), inside: inside.to_owned() }
    }

    pub(crate) fn invalid(&self, entry: &str, problem: impl Into<String>) -> TransferError {
        TransferError::Invalid {
            what: self.what.to_owned(),
            entry: entry.to_owned(),
            problem: problem.into(),
        }
    }

    /// The small file whose first header block was read already.
    pub(crate) fn small(&mut self, first: &[u8], path: &str, size: u64) -> Result<Vec<u8>> {
        let expected =
            format::tar_header(path, size).map_err(|error| self.invalid(path, error.to_string()))?;
        if first != expected {
            return Err(self.invalid(path, "its tar header is not written as an export's is"));
        }
        let length = usize::try_from(size).map_err(|_| self.invalid(path, "it is too large"))?;
        let bytes = self.exactly(length, path)?;
        self.padding(path, size)?;
        Ok(bytes)
    }

    /// The next file, which must be `path` with `size` bytes: its contents go
    /// to `out`, which is to check them. `to` is for messages.
    pub(crate) fn file(
        &mut self,
        path: &str,
        size: u64,
        out: &mut dyn Write,
        to: &Path,
        task: &Task<'_>,
    ) -> Result<()> {
        let expected =
            format::tar_header(path, size).map_err(|error| self.invalid(path, error.to_string()))?;
        let header = self.exactly(expected.len(), &format!("the header of {path}"))?;
        if header != expected {
            return Err(self.invalid(path, self.found_instead(&header)));
        }
        let mut piece = vec![0; PIECE];
        let mut left = size;
        while left > 0 {
            let want = piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let n = match self.input.read(&mut piece[..want]) {
                Ok(0) => return Err(self.cut(path)),
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(TransferError::Read { what: self.what.to_owned(), source }),
            };
            out.write_all(&piece[..n]).map_err(StoreError::io("write", to))?;
            task.advance(n);
            left -= n as u64;
        }
        self.padding(path, size)
    }

    fn padding(&mut self, path: &str, size: u64) -> Result<()> {
        let padding = self.exactly(format::padding(size), path)?;
        match padding.iter().all(|byte| *byte == 0) {
            true => Ok(()),
            false => Err(self.invalid(path, "what pads it is not zeros")),
        }
    }

    /// The end: two zero blocks, and nothing after them.
    pub(crate) fn end(&mut self) -> Result<()> {
        let end = self.up_to(END.len() + 1)?;
        if end == END {
            return Ok(());
        }
        if end.len() < END.len() && end.iter().all(|byte| *byte == 0) {
            return Err(self.cut("its end"));
        }
        if end.len() > END.len() && end.starts_with(&END) {
            return Err(self.invalid("its end", "there are bytes after it"));
        }
        let block = &end[..end.len().min(BLOCK)];
        Err(self.invalid("its end", self.found_instead(block)))
    }

    /// What stands where something else should.
    fn found_instead(&self, header: &[u8]) -> String {
        match smolcellar_oci::first_entry(&mut &*header) {
            Ok(Some((path, size))) => {
                format!(
                    "in its place is '{path}' of {size} bytes, or its header is not written as an export's is"
                )
            }
            Ok(None) => "in its place is the end of the archive".into(),
            Err(problem) => format!("its tar header is damaged: {problem}"),
        }
    }
}

/// Copies all of `input` to `out`. `to` is for messages.
pub(crate) fn all(input: &mut dyn Read, out: &mut dyn Write, what: &str, to: &Path) -> Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        match input.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(n) => out.write_all(&piece[..n]).map_err(StoreError::io("write", to))?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(TransferError::Read { what: what.to_owned(), source }),
        }
    }
}
