//! A connection that is ended when its client stands still.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::Sleep;

use crate::crowd::Member;
use crate::pieces::Pieces;

/// How soon a client that takes nothing is looked at again, at the soonest.
const LOOK: Duration = Duration::from_millis(10);

/// For how long a client may take nothing.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    pub(crate) idle: Duration,
    /// The same for one that keeps what others need, when there is none left.
    pub(crate) patience: Duration,
    pub(crate) pieces: Arc<Pieces>,
}

/// A client's connection. Reading is bounded where it is known what is waited
/// for: headers by hyper, bodies by their handlers. Writing is bounded here.
pub(crate) struct Paced {
    io: TokioIo<TcpStream>,
    member: Arc<Member>,
    limits: Limits,
    /// Since when the client takes nothing, how often pieces were refused then, and
    /// when that is looked at again.
    stalled: Option<(Instant, u64, Pin<Box<Sleep>>)>,
}

impl Paced {
    pub(crate) fn new(stream: TcpStream, member: Arc<Member>, limits: Limits) -> Self {
        Self { io: TokioIo::new(stream), member, limits, stalled: None }
    }

    fn written(&mut self, cx: &mut Context<'_>, poll: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match poll {
            Poll::Ready(result) => {
                self.stalled = None;
                self.member.moved(*result.as_ref().unwrap_or(&0));
                Poll::Ready(result)
            }
            Poll::Pending => {
                let Limits { idle, patience, pieces } = &self.limits;
                let look = (*patience).min(*idle).max(LOOK);
                let begin = || (Instant::now(), pieces.refused(), Box::pin(tokio::time::sleep(look)));
                let (since, refused, sleep) = self.stalled.get_or_insert_with(begin);
                loop {
                    ready!(sleep.as_mut().poll(cx));
                    let scarce = self.member.has_large() && pieces.are_short(*refused);
                    let left = idle.saturating_sub(since.elapsed());
                    if scarce || left.is_zero() {
                        let kind = io::ErrorKind::TimedOut;
                        return Poll::Ready(Err(io::Error::new(kind, "the client takes nothing")));
                    }
                    sleep.set(tokio::time::sleep(look.min(left)));
                }
            }
        }
    }
}

impl Read for Paced {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl Write for Paced {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.io).poll_write(cx, buf);
        self.written(cx, poll)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.written(cx, poll)
    }
}
