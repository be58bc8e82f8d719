//! What answers are made of: small bytes, or a file that is read as fast as the
//! client takes it.

use std::fs::File;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use hyper::header::{CONTENT_LENGTH, HeaderValue};
use hyper::{Response, StatusCode};
use smolcellar_store::{Digest, Hasher};
use tokio::task::JoinHandle;

use crate::crowd::Member;
use crate::pieces::{Piece, Pieces};

/// An answer.
pub(crate) type Answer = Response<Content>;

/// The body of an answer.
pub(crate) enum Content {
    Bytes(Option<Bytes>),
    File(Box<Reading>),
}

/// An answer with these bytes.
pub(crate) fn full(status: StatusCode, bytes: impl Into<Bytes>) -> Answer {
    let bytes = bytes.into();
    let length = HeaderValue::from(bytes.len());
    let mut answer = Response::new(Content::Bytes((!bytes.is_empty()).then_some(bytes)));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_LENGTH, length);
    answer
}

/// An answer without a body.
pub(crate) fn empty(status: StatusCode) -> Answer {
    full(status, Bytes::new())
}

/// What is done when a file was read to its end: it may turn out not to have
/// the digest that it should.
pub(crate) type AtEnd = Box<dyn FnOnce(Option<Digest>) -> io::Result<()> + Send>;

/// A part of a file, from where it is read on.
pub(crate) struct Source {
    file: Arc<File>,
    at: u64,
    left: u64,
    /// How much was read: the first pieces are small.
    sent: u64,
    pieces: Arc<Pieces>,
    /// For whom it is read.
    member: Arc<Member>,
    hasher: Option<Hasher>,
    at_end: Option<AtEnd>,
}

impl Source {
    /// `length` bytes from `at` on. With `hash`, `at_end` gets their digest before
    /// the last of them are handed out, and can hold those back.
    pub(crate) fn new(
        file: Arc<File>,
        at: u64,
        length: u64,
        (pieces, member): (Arc<Pieces>, Arc<Member>),
        hash: bool,
        at_end: AtEnd,
    ) -> Self {
        let hasher = hash.then(Hasher::new);
        Self { file, at, left: length, sent: 0, pieces, member, hasher, at_end: Some(at_end) }
    }

    /// Reads the next piece. Blocks.
    fn read(mut self) -> io::Result<(Self, Bytes)> {
        use std::os::unix::fs::FileExt;
        let mut piece: Piece = self.pieces.take(self.sent, self.left);
        self.member.keeps_large(piece.is_large());
        // A file that has become shorter ends the connection: no answer can say so any more.
        self.file.read_exact_at(piece.bytes(), self.at)?;
        let length = piece.bytes().len() as u64;
        (self.at, self.left, self.sent) = (self.at + length, self.left - length, self.sent + length);
        if let Some(hasher) = &mut self.hasher {
            hasher.update(piece.bytes());
        }
        if self.left == 0 {
            let digest = self.hasher.take().map(Hasher::finish);
            self.at_end.take().map_or(Ok(()), |at_end| at_end(digest))?;
        }
        Ok((self, piece.into()))
    }
}

/// A file on its way out. One piece is read while the one before it is sent.
pub(crate) struct Reading {
    next: Option<JoinHandle<io::Result<(Source, Bytes)>>>,
    /// Bytes that were not handed out yet.
    left: u64,
}

impl Reading {
    /// Begins at once. In the runtime only.
    pub(crate) fn begin(source: Source) -> Self {
        let left = source.left;
        Self { next: Some(tokio::task::spawn_blocking(|| source.read())), left }
    }
}

impl Body for Content {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let reading = match self.get_mut() {
            Self::Bytes(bytes) => return Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::File(reading) => reading,
        };
        let Some(next) = &mut reading.next else { return Poll::Ready(None) };
        // The runtime ends, or the reader panicked: either way there is no more.
        let read = ready!(Pin::new(next).poll(cx)).map_err(io::Error::other).and_then(|read| read);
        reading.next = None;
        let (source, bytes) = match read {
            Ok(read) => read,
            Err(error) => return Poll::Ready(Some(Err(error))),
        };
        reading.left = source.left;
        if source.left > 0 {
            reading.next = Some(tokio::task::spawn_blocking(|| source.read()));
        }
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Bytes(bytes) => bytes.is_none(),
            Self::File(reading) => reading.next.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(match self {
            Self::Bytes(bytes) => bytes.as_ref().map_or(0, |bytes| bytes.len() as u64),
            Self::File(reading) => reading.left,
        })
    }
}
