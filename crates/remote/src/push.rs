//! Blobs to a registry (OCI distribution specification, "Push").

use std::cell::Cell;
use std::io::{self, Read};
use std::time::Duration;

use smolcellar_oci::Repository;
use smolcellar_store::Digest;

use crate::auth::{Right, Scopes};
use crate::beside::Beside;
use crate::client::Client;
use crate::error::{RemoteError, Result};
use crate::http::{Answer, Ask, Pace, Payload};
use crate::pull::PROGRESS;
use crate::ranges::received;
use crate::retry::Retry;
use crate::url::Url;

/// What a registry is given at once after it did not take all, in bytes: large
/// enough to cost no time, small enough for what stands before registries.
const CHUNK: u64 = 16 << 20;
/// The least that it is given at once.
const LEAST: u64 = 256 << 10;
/// What a registry is taken to hash and move per second once it has a blob.
const COMMIT: u64 = 8 << 20;
/// From how many bytes on a registry is asked before it gets them, so that a
/// refusal is heard before they are sent: who refuses in the middle of a body
/// hangs up, and the reason is lost.
const ASKED: u64 = 1 << 20;
/// From how many repositories a blob is tried to be mounted.
const MOUNTS: usize = 3;

/// What became of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// It was there.
    Present,
    /// It was taken from another repository of the registry.
    Mounted,
    /// It was uploaded.
    Uploaded,
}

/// Opens the bytes of a blob from an offset on.
pub type Open<'a> = dyn Fn(u64) -> io::Result<Box<dyn Read + Send>> + 'a;

impl Client {
    /// Makes the registry have a blob: looks whether it has, tries to mount it
    /// from `mounts` (repositories of this registry, likeliest first), uploads
    /// it. `advance` hears of `size` bytes in all, however it gets there.
    ///
    /// An upload goes in one piece first. After a cut, or if that is refused as
    /// too large, the registry is asked how much it has, and gets the rest in
    /// pieces; one that has lost all begins anew. The last byte is sent only
    /// once all bytes were hashed and are what `digest` says.
    ///
    /// # Errors
    /// [`RemoteError`]; [`RemoteError::Damaged`] if the bytes are others: the
    /// registry then does not have them.
    pub fn push_blob(
        &self,
        digest: &Digest,
        size: u64,
        open: &Open<'_>,
        mounts: &[Repository],
        advance: &dyn Fn(u64),
    ) -> Result<Pushed> {
        let there = self.head_blob(digest, Right::Push)?;
        if there.is_some_and(|length| length.is_none_or(|length| length == size)) {
            advance(size);
            return Ok(Pushed::Present);
        }
        let mut upload = Upload {
            client: self,
            digest,
            size,
            open,
            advance,
            what: self.named("the upload of blob", digest),
            scopes: self.scopes(Right::Push),
            source: Source::new(digest, size),
            renewals: 0,
            asks: true,
        };
        let mut session = None;
        for from in mounts.iter().filter(|from| *from != self.repository()).take(MOUNTS) {
            match upload.mount(from) {
                Mount::Done => {
                    advance(size);
                    return Ok(Pushed::Mounted);
                }
                Mount::Begun(begun) => {
                    // One is enough; the registry removes the others by itself.
                    session = Some(begun);
                }
                Mount::No => {}
            }
        }
        upload.run(session)?;
        Ok(Pushed::Uploaded)
    }
}

/// What became of a mount.
enum Mount {
    Done,
    /// It could not be mounted, and this upload was begun instead.
    Begun(Session),
    No,
}

/// An upload at the registry.
struct Session {
    /// Where the next piece goes.
    url: Url,
    /// How many bytes it has.
    has: u64,
    /// The least it takes at once, but for the last piece.
    least: u64,
}

struct Upload<'a> {
    client: &'a Client,
    digest: &'a Digest,
    size: u64,
    open: &'a Open<'a>,
    advance: &'a dyn Fn(u64),
    what: String,
    scopes: Scopes,
    source: Source,
    renewals: u32,
    /// Whether to ask before large pieces; not where that is not understood.
    asks: bool,
}

impl Upload<'_> {
    fn mount(&self, from: &Repository) -> Mount {
        let url = self.client.uploads_at(Some((self.digest, from)));
        let scopes = self.scopes.clone().with_pull(from);
        // Whatever goes wrong here, an upload finds out too, or does not mind.
        let Ok((answer, ask)) = self.client.call(self.ask("POST", url), &scopes, Some(&[])) else {
            return Mount::No;
        };
        match answer.status {
            201 => Mount::Done,
            202 => self.session(&answer, &ask).map_or(Mount::No, Mount::Begun),
            _ => Mount::No,
        }
    }

    fn ask(&self, method: &'static str, url: Url) -> Ask {
        Ask::new(method, url, &self.what)
    }

    /// The upload that an answer tells of.
    fn session(&self, answer: &Answer, ask: &Ask) -> Result<Session> {
        let location = answer.header("Location").ok_or_else(|| answer.nonsense(ask, "without a Location"))?;
        let url = ask
            .url
            .join(location)
            .map_err(|problem| answer.nonsense(ask, format!("by pointing to {problem}")))?;
        let least =
            answer.header("OCI-Chunk-Min-Length").and_then(|least| least.trim().parse().ok()).unwrap_or(0);
        Ok(Session { url, has: 0, least })
    }

    /// Uploads, and goes on after what goes wrong.
    fn run(&mut self, mut session: Option<Session>) -> Result<()> {
        let mut retry = Retry::transfer(self.client.options());
        // In one piece at first.
        let mut chunk = u64::MAX;
        let mut counted = 0;
        loop {
            let Err(error) = self.once(&mut session, chunk, &retry) else { return Ok(()) };
            if let (RemoteError::Damaged { .. } | RemoteError::Local { .. }, Some(session)) =
                (&error, &session)
            {
                // Nothing more is to come. It removes what nobody ends by itself, some day.
                let _ = self.client.call(self.ask("DELETE", session.url.clone()), &self.scopes, None);
            }
            let has = session.as_ref().map_or(0, |session| session.has);
            // Lost uploads, and pieces that are too large or out of place; not a
            // registry where none can begin.
            let mendable = session.is_some() && matches!(error.status(), Some(404 | 413 | 416));
            let worth = error.is_transient() || mendable;
            if has >= counted + PROGRESS {
                counted = has;
                self.renewals = 0;
                retry.progressed();
            } else if chunk > CHUNK {
                chunk = CHUNK;
            } else {
                chunk = (chunk / 4).max(LEAST);
            }
            if error.status() == Some(413) && chunk == LEAST {
                return Err(error);
            }
            retry.again_if(worth, error)?;
            if let Some(begun) = session.take() {
                session = loop {
                    match self.status(&begun, &retry) {
                        Ok(found) => break found,
                        Err(error) => retry.again(error)?,
                    }
                };
            }
            if session.is_none() {
                // The answer to the last piece may be all that was lost.
                let there = self.client.head_blob(self.digest, Right::Push).ok().flatten();
                if there == Some(Some(self.size)) {
                    self.source.tell(self.size, self.advance);
                    return Ok(());
                }
            }
        }
    }

    /// How far an upload is, if the registry still has it.
    fn status(&self, session: &Session, retry: &Retry) -> Result<Option<Session>> {
        let ask = self.ask("GET", session.url.clone()).until(retry.deadline());
        let (answer, ask) = self.client.call(ask, &self.scopes, None)?;
        if !matches!(answer.status, 200..=204) {
            let refusal = self.client.refusal(answer, &ask);
            return if refusal.is_transient() { Err(refusal) } else { Ok(None) };
        }
        let Some(has) = answer.header("Range").map_or(Some(0), received) else { return Ok(None) };
        let url = self.session(&answer, &ask).map_or_else(|_| session.url.clone(), |found| found.url);
        // More than was sent is not this blob.
        Ok((has <= self.source.hashed()).then_some(Session { url, has, least: session.least }))
    }

    /// From where the upload is to its end.
    fn once(&mut self, session: &mut Option<Session>, chunk: u64, retry: &Retry) -> Result<()> {
        if session.is_none() {
            let ask = self.ask("POST", self.client.uploads_at(None)).until(retry.deadline());
            let (answer, ask) = self.client.call(ask, &self.scopes, Some(&[]))?;
            match answer.status {
                202 => *session = Some(self.session(&answer, &ask)?),
                // Some have it by the time they are asked.
                201 => {
                    self.source.tell(self.size, self.advance);
                    return Ok(());
                }
                _ => return Err(self.client.refusal(answer, &ask)),
            }
        }
        let Some(session) = session else { return Ok(()) };
        while session.has < self.size && chunk != u64::MAX {
            let end = session.has.saturating_add(chunk.max(session.least)).min(self.size);
            let ask = self
                .ask("PATCH", session.url.clone())
                .header("Content-Type", "application/octet-stream")
                .header("Content-Range", format!("{}-{}", session.has, end - 1))
                .until(retry.deadline());
            let Some((answer, ask)) = self.stream(ask, session.has, end)? else { continue };
            if !matches!(answer.status, 200..=204) {
                return Err(self.client.refusal(answer, &ask));
            }
            let has = answer.header("Range").map_or(Some(end), received).unwrap_or(end);
            if has > end || has <= session.has {
                return Err(answer.nonsense(&ask, format!("that it has {has} bytes of {end} sent")));
            }
            let next = self.session(&answer, &ask).map_or_else(|_| session.url.clone(), |next| next.url);
            (session.url, session.has) = (next, has);
            self.renewals = 0;
            self.source.tell(has, self.advance);
        }
        loop {
            let url = session.url.with("digest", &self.digest.to_string());
            let mut ask = self
                .ask("PUT", url)
                .header("Content-Type", "application/octet-stream")
                .until(retry.deadline());
            if session.has > 0 && session.has < self.size {
                ask = ask.header("Content-Range", format!("{}-{}", session.has, self.size - 1));
            }
            ask.extra = Duration::from_secs(self.size / COMMIT);
            let Some((answer, ask)) = self.stream(ask, session.has, self.size)? else { continue };
            return match answer.status {
                200..=204 => {
                    self.source.tell(self.size, self.advance);
                    Ok(())
                }
                _ => Err(self.client.refusal(answer, &ask)),
            };
        }
    }

    /// Sends a part of the blob. `None`: it is to be sent again, in another way
    /// or with the newer token that there is now.
    fn stream(&mut self, mut ask: Ask, from: u64, to: u64) -> Result<Option<(Answer, Ask)>> {
        let client = self.client;
        let ours = ask.url.same_origin(client.http().root());
        ask.authorization = ours.then(|| client.auth().header(&self.scopes)).flatten();
        if self.asks && to - from >= ASKED {
            ask = ask.header("Expect", "100-continue");
        }
        let problem = Cell::new(None);
        let reading = || RemoteError::local(format!("cannot read the blob {}", self.digest));
        let mut part = Part {
            inner: if from < to { (self.open)(from).map_err(reading())? } else { Box::new(io::empty()) },
            at: from,
            to,
            pace: Pace::new(client.options()),
            source: &mut self.source,
            advance: self.advance,
            problem: &problem,
        };
        if to == part.source.size {
            part.check_empty()?;
        }
        let result = client.http().send(&ask, Payload::Stream(&mut part, to - from));
        let mut answer = match (result, problem.take()) {
            (_, Some(Problem::Damaged(problem))) => {
                return Err(RemoteError::Damaged { digest: *self.digest, problem });
            }
            (_, Some(Problem::Read(error))) => return Err(reading()(error)),
            (Err(_), Some(Problem::Slow)) => {
                let problem = format!("it takes fewer than {} bytes a second", client.options().slowest);
                return Err(RemoteError::TooSlow {
                    registry: client.registry().to_owned(),
                    what: self.what.clone(),
                    problem,
                });
            }
            (result, _) => result?,
        };
        if answer.status == 401 && ours {
            client.renew(&mut answer, &ask, &self.scopes, self.renewals < 3)?;
            self.renewals += 1;
            return Ok(None);
        }
        if answer.status == 417 && self.asks {
            self.asks = false;
            return Ok(None);
        }
        Ok(Some((answer, ask)))
    }
}

/// What is known of the bytes that are sent, over all tries.
struct Source {
    digest: Digest,
    size: u64,
    /// `None` once all bytes were hashed, and were right.
    hash: Option<Beside>,
    hashed: u64,
    told: u64,
}

impl Source {
    fn new(digest: &Digest, size: u64) -> Self {
        Self { digest: *digest, size, hash: Some(Beside::new(size)), hashed: 0, told: 0 }
    }

    /// How many bytes were sent, or nearly.
    fn hashed(&self) -> u64 {
        self.hashed
    }

    /// Tells that bytes up to `at` are done, each once.
    fn tell(&mut self, at: u64, advance: &dyn Fn(u64)) {
        if at > self.told {
            advance(at - self.told);
            self.told = at;
        }
    }

    /// Takes bytes that begin at `at`. What is wrong with the blob, once all of
    /// it is known.
    fn take(&mut self, at: u64, bytes: &[u8]) -> Result<(), String> {
        let end = at + bytes.len() as u64;
        let Some(hash) = &mut self.hash else { return Ok(()) };
        if end > self.hashed {
            let known = usize::try_from(self.hashed.saturating_sub(at)).unwrap_or(bytes.len());
            hash.update(bytes.get(known..).unwrap_or_default());
            self.hashed = end;
        }
        if self.hashed < self.size {
            return Ok(());
        }
        match self.hash.take().map(Beside::finish) {
            Some(actual) if actual != self.digest => Err(format!("its digest is {actual}")),
            _ => Ok(()),
        }
    }
}

/// Why a part could not be read to its end.
enum Problem {
    Damaged(String),
    Read(io::Error),
    Slow,
}

/// A part of the blob on its way.
struct Part<'a> {
    inner: Box<dyn Read + Send>,
    at: u64,
    to: u64,
    pace: Pace,
    source: &'a mut Source,
    advance: &'a dyn Fn(u64),
    problem: &'a Cell<Option<Problem>>,
}

impl Part<'_> {
    /// An empty blob is never read, and is hashed here.
    fn check_empty(&mut self) -> Result<()> {
        match self.source.size {
            0 => {
                let digest = self.source.digest;
                self.source.take(0, &[]).map_err(|problem| RemoteError::Damaged { digest, problem })
            }
            _ => Ok(()),
        }
    }

    fn stop(&self, problem: Problem) -> io::Error {
        self.problem.set(Some(problem));
        io::Error::other("the upload was stopped")
    }
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.to - self.at).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let read = match self.inner.read(&mut buffer[..most]) {
            Ok(0) => {
                let problem = format!("it ends after {} of {} bytes", self.at, self.source.size);
                return Err(self.stop(Problem::Damaged(problem)));
            }
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
            Err(error) => return Err(self.stop(Problem::Read(error))),
        };
        // The piece before this one was taken.
        if !self.pace.count(read) {
            return Err(self.stop(Problem::Slow));
        }
        // With the last piece the digest is known: before it is sent.
        if let Err(problem) = self.source.take(self.at, &buffer[..read]) {
            return Err(self.stop(Problem::Damaged(problem)));
        }
        self.at += read as u64;
        self.source.tell(self.at, self.advance);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_piece_of_a_blob_that_is_another_is_never_handed_out() {
        let bytes = vec![7_u8; 3_000_000];
        for (digest, cut) in [(Digest::of(b"another"), bytes.len()), (Digest::of(&bytes), 2_000_000)] {
            let mut source = Source::new(&digest, bytes.len() as u64);
            let problem = Cell::new(None);
            let told = Cell::new(0);
            let mut part = Part {
                inner: Box::new(io::Cursor::new(bytes[..cut].to_vec())),
                at: 0,
                to: bytes.len() as u64,
                pace: Pace::new(&crate::Options::default()),
                source: &mut source,
                advance: &|bytes| told.set(told.get() + bytes),
                problem: &problem,
            };
            let (mut sent, mut buffer) = (0, vec![0; 1 << 17]);
            while let Ok(read @ 1..) = part.read(&mut buffer) {
                sent += read;
            }
            assert!(sent < bytes.len() && matches!(problem.take(), Some(Problem::Damaged(_))));
            assert_eq!(told.get(), sent as u64);
        }
    }

    #[test]
    fn bytes_that_are_sent_again_are_hashed_and_told_of_once() {
        let bytes: Vec<u8> = (0..2_000_000_u32).map(|n| (n % 251) as u8).collect();
        let mut source = Source::new(&Digest::of(&bytes), bytes.len() as u64);
        source.take(0, &bytes[..1_500_000]).unwrap();
        source.take(1_000_000, &bytes[1_000_000..1_200_000]).unwrap();
        source.take(1_200_000, &bytes[1_200_000..]).unwrap();
        assert!(source.hash.is_none());
        let told = Cell::new(0);
        for at in [10, 5, 30] {
            source.tell(at, &|bytes| told.set(told.get() + bytes));
        }
        assert_eq!(told.get(), 30);
    }
}
