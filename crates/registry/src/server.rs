//! The server: threads of its own, from the first connection to the last.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream as Client};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioTimer;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Semaphore, watch};

use crate::crowd::{Crowd, Member};
use crate::error::{RegistryError, Result};
use crate::handle::handle;
use crate::pace::{Limits, Paced};
use crate::pieces::Pieces;
use crate::seen::{Access, Counts, Seen};
use crate::shelf::Shelf;
use crate::sound::Sound;

/// Threads that talk.
const TALKERS: usize = 2;
/// Threads that read, write and hash files.
const WORKERS: usize = 8;
/// What hyper may keep of one connection, in bytes: headers fit, and no piece of a file is
/// asked for before most of the one before it is gone.
const BUFFER: usize = 64 << 10;
/// The largest head of a request, in bytes.
const HEADERS: usize = 16 << 10;
/// What the kernel may keep of what a client has not taken yet, in bytes.
const SEND_BUFFER: u32 = 512 << 10;
/// Permits for manifests on their way in, of 64 KiB each: 16 MiB.
pub(crate) const MANIFESTS: usize = 256;
/// For how long the server may take to answer for the first time.
const READY: Duration = Duration::from_secs(5);
/// For how long files may be worked on when the runtime ends.
const LAST: Duration = Duration::from_secs(1);

/// Told of every request, on any thread.
pub type OnAccess = Arc<dyn Fn(&Access) + Send + Sync>;

/// How to serve.
#[derive(Clone)]
pub struct Options {
    /// Where; an address of the loopback interface. Port 0 is any that is free.
    pub addr: SocketAddr,
    /// For how long a client may take for the head of a request, and be silent
    /// between two.
    pub header_timeout: Duration,
    /// For how long a client may send nothing of a body that it has begun, or
    /// take nothing of one that it asked for.
    pub idle_timeout: Duration,
    /// For how long an upload may be left alone before it is discarded; a blob
    /// that no manifest names, for six times as long.
    pub upload_timeout: Duration,
    /// The most connections at once. When so many are there, the one that has
    /// moved nothing for longest goes for the next.
    pub connections: usize,
    /// Who moved nothing for so long may have to go then; so may, when memory for
    /// files on their way out is short, who takes nothing of its own for so long.
    pub patience: Duration,
    /// Told of every request.
    pub on_access: Option<OnAccess>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            addr: SocketAddr::from(([127, 0, 0, 1], 0)),
            header_timeout: Duration::from_secs(20),
            idle_timeout: Duration::from_secs(60),
            upload_timeout: Duration::from_secs(600),
            connections: room(),
            patience: Duration::from_secs(5),
            on_access: None,
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options").field("addr", &self.addr).finish_non_exhaustive()
    }
}

/// 512 connections, or as many as this process may have open with a file each.
fn room() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let files = limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
    (files.saturating_sub(320) / 2).clamp(32, 512)
}

/// Parses what people write: `HOST:PORT`, where the host is an address of the
/// loopback interface or `localhost`, which is 127.0.0.1 whatever a resolver says.
///
/// # Errors
/// [`RegistryError::Address`], [`RegistryError::NotLoopback`].
pub fn parse_addr(text: &str) -> Result<SocketAddr> {
    let clipped = || text.chars().take(100).flat_map(char::escape_debug).collect();
    let refuse = |problem| RegistryError::Address { text: clipped(), problem };
    let addr = match text.strip_prefix("localhost:") {
        Some(port) => {
            let digits = crate::range::number(port).and_then(|port| u16::try_from(port).ok());
            SocketAddr::from((
                [127, 0, 0, 1],
                digits.ok_or_else(|| refuse("its port is no number up to 65535"))?,
            ))
        }
        None => text.parse().map_err(|_| refuse("give 127.0.0.1:PORT, localhost:PORT or [::1]:PORT"))?,
    };
    is_loopback(addr.ip()).then_some(addr).ok_or(RegistryError::NotLoopback(addr))
}

fn is_loopback(ip: IpAddr) -> bool {
    // An IPv4 address written as an IPv6 one is not: `is_loopback` says so too.
    ip.is_loopback()
}

/// What all requests share.
pub(crate) struct Shared {
    pub(crate) shelf: Arc<dyn Shelf>,
    pub(crate) addr: SocketAddr,
    pub(crate) idle: Duration,
    pub(crate) pieces: Arc<Pieces>,
    pub(crate) sound: Arc<Sound>,
    pub(crate) counts: Arc<Counts>,
    pub(crate) on_access: Option<OnAccess>,
    /// The memory for manifests on their way in.
    pub(crate) manifests: Semaphore,
    crowd: Crowd,
    ending: AtomicBool,
}

impl Shared {
    /// Whether the server is being stopped.
    pub(crate) fn ending(&self) -> bool {
        self.ending.load(Ordering::Relaxed)
    }
}

/// A running server. It ends when it is stopped or dropped.
///
/// Everything asynchronous is inside, on threads of its own. It must not be
/// stopped or dropped by a task of another runtime.
pub(crate) struct Server {
    /// There until it is stopped.
    runtime: Option<Runtime>,
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("addr", &self.shared.addr).finish_non_exhaustive()
    }
}

impl Server {
    /// Binds, serves, and waits until it answers: five seconds at most.
    pub(crate) fn start(shelf: Arc<dyn Shelf>, options: Options) -> Result<Self> {
        let addr = options.addr;
        if !is_loopback(addr.ip()) {
            return Err(RegistryError::NotLoopback(addr));
        }
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(TALKERS).max_blocking_threads(WORKERS).thread_name("registry").enable_all();
        let runtime = builder.build().map_err(RegistryError::Start)?;
        let listener = {
            let _inside = runtime.enter();
            listen(addr).map_err(|source| RegistryError::Bind { addr, source })?
        };
        let addr = listener.local_addr().map_err(|source| RegistryError::Bind { addr, source })?;
        let shared = Arc::new(Shared {
            shelf,
            addr,
            idle: options.idle_timeout,
            pieces: Arc::default(),
            sound: Arc::default(),
            counts: Arc::default(),
            on_access: options.on_access.clone(),
            manifests: Semaphore::new(MANIFESTS),
            crowd: Crowd::new(options.connections.max(1), options.patience),
            ending: AtomicBool::new(false),
        });
        let (stop, stopped) = watch::channel(false);
        runtime.spawn(tidy(Arc::clone(&shared), options.upload_timeout / 4));
        runtime.spawn(accept(listener, Arc::clone(&shared), options, stopped));
        let server = Self { runtime: Some(runtime), shared, stop };
        // Dropped, and so ended, if it does not answer.
        probe(addr).map_err(|problem| RegistryError::NotReady { addr, problem })?;
        Ok(server)
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.shared.addr
    }

    pub(crate) fn seen(&self) -> Seen {
        self.shared.counts.seen()
    }

    /// Takes no more connections, and ends those that are there: idle ones at
    /// once, others when they have answered or `grace` is over.
    pub(crate) fn stop(mut self, grace: Duration) -> Seen {
        self.end(grace);
        self.shared.counts.seen()
    }

    fn end(&mut self, grace: Duration) {
        let Some(runtime) = self.runtime.take() else { return };
        self.shared.ending.store(true, Ordering::Relaxed);
        self.shared.shelf.end();
        // Nobody listens if all have gone already.
        let _ = self.stop.send(true);
        let began = Instant::now();
        while self.shared.crowd.count() > 0 && began.elapsed() < grace {
            std::thread::sleep(Duration::from_millis(2));
        }
        runtime.shutdown_timeout(LAST);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end(Duration::ZERO);
    }
}

fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A server that has just ended leaves connections behind that would keep its port busy.
    socket.set_reuseaddr(true)?;
    // What clients do not take stays small, and shows. Those who connect inherit it.
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.bind(addr)?;
    socket.listen(1024)
}

/// Tidies now and then: twice a minute at least.
async fn tidy(shared: Arc<Shared>, interval: Duration) {
    loop {
        tokio::time::sleep(interval.clamp(Duration::from_millis(10), Duration::from_secs(30))).await;
        let shelf = Arc::clone(&shared.shelf);
        // It fails only when the runtime ends.
        let _ = tokio::task::spawn_blocking(move || shelf.tidy()).await;
    }
}

async fn accept(
    listener: TcpListener,
    shared: Arc<Shared>,
    options: Options,
    stopped: watch::Receiver<bool>,
) {
    let mut stop = stopped.clone();
    let mut stopping = std::pin::pin!(async move {
        let _ = stop.wait_for(|stop| *stop).await;
    });
    loop {
        let next = std::future::poll_fn(|cx| {
            if stopping.as_mut().poll(cx).is_ready() {
                return std::task::Poll::Ready(None);
            }
            listener.poll_accept(cx).map(Some)
        });
        let stream = match next.await {
            None => return,
            Some(Ok((stream, _))) => stream,
            // Out of descriptors, most likely: others go on, and free some.
            Some(Err(_)) => {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Some(member) = shared.crowd.join() else {
            turn_away(stream);
            continue;
        };
        let leaving = Leaving { shared: Arc::clone(&shared), member };
        tokio::spawn(talk(stream, leaving, options.clone(), stopped.clone()));
    }
}

/// Says that there is no room, if that can be said without waiting.
fn turn_away(stream: TcpStream) {
    let text = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n";
    let _ = stream.try_write(text);
}

/// Parts with the crowd however the connection's task ends.
struct Leaving {
    shared: Arc<Shared>,
    member: Arc<Member>,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.shared.crowd.part(&self.member);
    }
}

async fn talk(stream: TcpStream, leaving: Leaving, options: Options, mut stopped: watch::Receiver<bool>) {
    // Answers are written whole: waiting for more to send only delays them.
    let _ = stream.set_nodelay(true);
    let member = &leaving.member;
    let (idle, patience) = (options.idle_timeout, options.patience);
    let limits = Limits { idle, patience, pieces: Arc::clone(&leaving.shared.pieces) };
    let io = Paced::new(stream, Arc::clone(member), limits);
    let service = service_fn(|request| handle(Arc::clone(&leaving.shared), Arc::clone(member), request));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(options.header_timeout)
        .max_buf_size(BUFFER)
        .max_header_size(HEADERS);
    let mut connection = std::pin::pin!(http.serve_connection(io, service));
    let mut leave = std::pin::pin!(member.leave.notified());
    let mut stopping = std::pin::pin!(stopped.wait_for(|stop| *stop));
    let mut told = false;
    std::future::poll_fn(|cx| {
        if !told && stopping.as_mut().poll(cx).is_ready() {
            told = true;
            connection.as_mut().graceful_shutdown();
        }
        // What is wrong with a connection is its client's business.
        if leave.as_mut().poll(cx).is_ready() || connection.as_mut().poll(cx).is_ready() {
            return std::task::Poll::Ready(());
        }
        std::task::Poll::Pending
    })
    .await;
}

/// Asks the server whether it is there, as a client would.
fn probe(addr: SocketAddr) -> std::result::Result<(), String> {
    let ask = || -> io::Result<String> {
        let mut client = Client::connect_timeout(&addr, READY)?;
        client.set_read_timeout(Some(READY))?;
        client.set_write_timeout(Some(READY))?;
        client.write_all(
            format!("GET /v2/ HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n").as_bytes(),
        )?;
        let mut text = String::new();
        client.take(4096).read_to_string(&mut text)?;
        Ok(text)
    };
    match ask() {
        Ok(text) if text.starts_with("HTTP/1.1 200 ") => Ok(()),
        Ok(text) => Err(format!("it said '{}'", text.lines().next().unwrap_or_default().escape_debug())),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_address_is_one_of_this_machine_alone() {
        for (text, addr) in [
            ("127.0.0.1:5000", "127.0.0.1:5000"),
            ("localhost:0", "127.0.0.1:0"),
            ("127.3.4.5:80", "127.3.4.5:80"),
            ("[::1]:5000", "[::1]:5000"),
        ] {
            assert_eq!(parse_addr(text).unwrap(), addr.parse().unwrap(), "{text}");
        }
        for text in ["0.0.0.0:5000", "[::]:5000", "192.168.1.1:80", "[::ffff:127.0.0.1]:5000"] {
            let problem = parse_addr(text).unwrap_err().to_string();
            assert!(problem.contains("this machine alone"), "{text}: {problem}");
        }
        for text in
            ["", "5000", "localhost", "localhost:", "localhost:70000", "localhost:+1", "example.org:5000"]
        {
            assert!(matches!(parse_addr(text), Err(RegistryError::Address { .. })), "{text}");
        }
        assert!(!parse_addr("\u{1b}[2J:1").unwrap_err().to_string().contains('\u{1b}'));
    }

    proptest! {
        #[test]
        fn no_text_gives_an_address_that_others_reach(text in "\\PC{0,30}|[0-9.]{7,15}:[0-9]{1,5}") {
            if let Ok(addr) = parse_addr(&text) {
                prop_assert!(addr.ip().is_loopback());
            }
        }
    }
}
