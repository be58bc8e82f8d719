//! Blobs from a registry.

use std::io::{self, Write};

use smolcellar_oci::Descriptor;
use smolcellar_store::Digest;

use crate::auth::Right;
use crate::beside::Beside;
use crate::client::Client;
use crate::error::{RemoteError, Result};
use crate::http::Ask;
use crate::ranges::content_range;
use crate::retry::Retry;

/// What is read at once, in bytes.
const PIECE: usize = 256 << 10;
/// So much is progress, in bytes: less does not buy another try, so that a
/// registry that sends a byte and hangs up is not asked for ever.
pub(crate) const PROGRESS: u64 = 1 << 20;

/// Whether a part of a blob came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ranged {
    /// All of it did.
    Done,
    /// The registry has no parts to give: fetch the whole blob. What came
    /// before that was noticed counts for nothing.
    NoRanges,
}

impl Client {
    /// The size of a blob; `None` if there is none.
    ///
    /// # Errors
    /// [`RemoteError`]; within [`crate::Options::lookup`].
    pub fn has_blob(&self, digest: &Digest) -> Result<Option<u64>> {
        let no_length = || RemoteError::Nonsense {
            registry: self.registry().to_owned(),
            what: self.named("the blob", digest),
            problem: "no length of it".into(),
        };
        self.head_blob(digest, Right::Pull)?.map(|length| length.ok_or_else(no_length)).transpose()
    }

    /// Whether there is a blob, and its size if the registry says.
    pub(crate) fn head_blob(&self, digest: &Digest, right: Right) -> Result<Option<Option<u64>>> {
        Retry::lookup(self.options()).run(|retry| {
            let ask = Ask::new("HEAD", self.blob_at(digest), self.named("the blob", digest))
                .until(retry.deadline());
            let (answer, ask) = self.call(ask, &self.scopes(right), None)?;
            match answer.status {
                200 => Ok(Some(answer.length())),
                404 => Ok(None),
                _ => Err(self.refusal(answer, &ask)),
            }
        })
    }

    /// A small blob, of the size and digest that its descriptor says.
    ///
    /// # Errors
    /// [`RemoteError`]; [`RemoteError::Nonsense`] if it is larger than `most`,
    /// in bytes. Within [`crate::Options::lookup`].
    pub fn blob_small(&self, descriptor: &Descriptor, most: usize) -> Result<Vec<u8>> {
        let what = self.named("the blob", descriptor.digest);
        let nonsense = |problem| RemoteError::Nonsense {
            registry: self.registry().to_owned(),
            what: what.clone(),
            problem,
        };
        if descriptor.size > most as u64 {
            return Err(nonsense(format!(
                "a manifest with a blob of {} bytes, more than {most}",
                descriptor.size
            )));
        }
        Retry::lookup(self.options()).run(|retry| {
            let ask = Ask::new("GET", self.blob_at(&descriptor.digest), &what).until(retry.deadline());
            let (mut answer, ask) = self.call(ask, &self.scopes(Right::Pull), None)?;
            if answer.status != 200 {
                return Err(self.refusal(answer, &ask));
            }
            let bytes = answer.small(most)?;
            let actual = Digest::of(&bytes);
            if actual != descriptor.digest {
                return Err(self.wrong(&what, &descriptor.digest, actual));
            }
            if bytes.len() as u64 != descriptor.size {
                return Err(nonsense(format!("{} bytes, not the {} promised", bytes.len(), descriptor.size)));
            }
            Ok(bytes)
        })
    }

    fn wrong(&self, what: &str, expected: &Digest, actual: Digest) -> RemoteError {
        let registry = self.registry().to_owned();
        RemoteError::Wrong { registry, what: what.to_owned(), expected: *expected, actual }
    }

    /// A blob into `out`, of the size and digest that its descriptor says;
    /// `advance` hears of bytes as they come.
    ///
    /// After a cut it goes on where it stopped: by a range where the registry
    /// has ranges, else by reading the blob from its start again and passing over what `out`
    /// has. Nothing is written twice.
    ///
    /// # Errors
    /// [`RemoteError`]: what `out` has then is not to be used.
    pub fn blob(&self, descriptor: &Descriptor, out: &mut dyn Write, advance: &dyn Fn(u64)) -> Result<()> {
        let what = self.named("the blob", descriptor.digest);
        let mut retry = Retry::transfer(self.options());
        let mut taken = Taken { hash: Beside::new(descriptor.size), bytes: 0 };
        let mut buffer = vec![0; PIECE];
        let mut counted = 0;
        while let Err(error) =
            self.blob_from(descriptor, &what, &mut taken, &mut buffer, out, advance, &retry)
        {
            if taken.bytes - counted >= PROGRESS {
                counted = taken.bytes;
                retry.progressed();
            }
            retry.again(error)?;
        }
        let actual = taken.hash.finish();
        if actual == descriptor.digest { Ok(()) } else { Err(self.wrong(&what, &descriptor.digest, actual)) }
    }

    /// What is missing of a blob.
    #[expect(clippy::too_many_arguments, reason = "the state of one loop")]
    fn blob_from(
        &self,
        descriptor: &Descriptor,
        what: &str,
        taken: &mut Taken,
        buffer: &mut [u8],
        out: &mut dyn Write,
        advance: &dyn Fn(u64),
        retry: &Retry,
    ) -> Result<()> {
        let size = descriptor.size;
        if taken.bytes == size && size > 0 {
            return Ok(());
        }
        let mut ask = Ask::new("GET", self.blob_at(&descriptor.digest), what).until(retry.deadline());
        if taken.bytes > 0 {
            ask = ask.header("Range", format!("bytes={}-", taken.bytes));
        }
        let (mut answer, ask) = self.call(ask, &self.scopes(Right::Pull), None)?;
        // How much of what comes is there already.
        let mut over = match answer.status {
            200 => taken.bytes,
            206 if taken.bytes > 0 => {
                let range = answer.header("Content-Range").and_then(content_range);
                match range {
                    Some((first, last, total))
                        if first == taken.bytes
                            && last + 1 == size
                            && total.is_none_or(|total| total == size) =>
                    {
                        0
                    }
                    _ => return Err(answer.nonsense(&ask, "another range than it was asked for")),
                }
            }
            _ => return Err(self.refusal(answer, &ask)),
        };
        let expected = size - taken.bytes + over;
        if let Some(length) = answer.length().filter(|length| *length != expected) {
            return Err(answer.nonsense(&ask, format!("{length} bytes, not the {expected} promised")));
        }
        loop {
            let read = answer.read(what, buffer)?;
            if read == 0 {
                break;
            }
            let pass = over.min(read as u64);
            over -= pass;
            let piece = &buffer[pass as usize..read];
            if piece.len() as u64 > size - taken.bytes {
                return Err(answer.nonsense(&ask, format!("more than the {size} bytes promised")));
            }
            out.write_all(piece).map_err(RemoteError::local(format!("cannot keep {what}")))?;
            taken.hash.update(piece);
            taken.bytes += piece.len() as u64;
            advance(piece.len() as u64);
        }
        match taken.bytes == size {
            true => Ok(()),
            false => Err(RemoteError::Cut {
                registry: self.registry().to_owned(),
                what: what.to_owned(),
                problem: format!("{} of {size} bytes came", taken.bytes),
            }),
        }
    }

    /// A part of a blob into `sink`, in order and exactly; after a cut it goes on
    /// where it stopped. A part has no digest: whoever asks for it must know
    /// what it should be.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub fn blob_range(
        &self,
        digest: &Digest,
        start: u64,
        length: u64,
        sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<Ranged> {
        let Some(end) = start.checked_add(length) else { return Ok(Ranged::NoRanges) };
        let what = self.named("a part of blob", digest);
        let mut retry = Retry::transfer(self.options());
        let (mut at, mut counted) = (start, start);
        while at < end {
            match self.range_from(digest, &what, &mut at, end, sink, &retry) {
                Ok(Ranged::Done) => {}
                Ok(Ranged::NoRanges) => return Ok(Ranged::NoRanges),
                Err(error) => {
                    if at - counted >= PROGRESS {
                        counted = at;
                        retry.progressed();
                    }
                    retry.again(error)?;
                }
            }
        }
        Ok(Ranged::Done)
    }

    fn range_from(
        &self,
        digest: &Digest,
        what: &str,
        at: &mut u64,
        end: u64,
        sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
        retry: &Retry,
    ) -> Result<Ranged> {
        let ask = Ask::new("GET", self.blob_at(digest), what)
            .header("Range", format!("bytes={at}-{}", end - 1))
            .until(retry.deadline());
        let (mut answer, ask) = self.call(ask, &self.scopes(Right::Pull), None)?;
        let range = match answer.status {
            206 => answer.header("Content-Range").and_then(content_range),
            // All of it, or too little: the whole blob can be verified.
            200 | 416 | 501 => None,
            _ => return Err(self.refusal(answer, &ask)),
        };
        match range {
            Some((first, last, _)) if first == *at && last + 1 == end => {}
            _ => return Ok(Ranged::NoRanges),
        }
        if answer.length().is_some_and(|length| length != end - *at) {
            return Err(answer.nonsense(&ask, "a range with another length than it says"));
        }
        let mut buffer = vec![0; PIECE.min(usize::try_from(end - *at).unwrap_or(PIECE))];
        loop {
            let read = answer.read(what, &mut buffer)?;
            if read as u64 > end - *at {
                return Err(answer.nonsense(&ask, "more than the range it was asked for"));
            }
            if read == 0 {
                break;
            }
            sink(&buffer[..read]).map_err(RemoteError::local(format!("cannot keep {what}")))?;
            *at += read as u64;
        }
        match *at == end {
            true => Ok(Ranged::Done),
            false => Err(RemoteError::Cut {
                registry: self.registry().to_owned(),
                what: what.to_owned(),
                problem: format!("{} bytes were missing", end - *at),
            }),
        }
    }
}

/// What came of a blob so far.
struct Taken {
    hash: Beside,
    bytes: u64,
}
