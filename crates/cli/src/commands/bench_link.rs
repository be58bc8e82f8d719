//! A network for `bench --remote`: this machine's loopback, as slow as a
//! network is.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Bytes per second: one gigabit, what an office or a cloud's smaller machines
/// have between them.
pub(super) const RATE: u64 = 125_000_000;
/// Bytes that are passed on at a time.
const PIECE: usize = 64 << 10;

/// A front before a server whose answers, all connections taken together, come
/// at [`RATE`]. Lives as long as the program.
pub(super) struct Link {
    /// `127.0.0.1:PORT`.
    pub(super) host: String,
}

impl Link {
    pub(super) fn before(backend: &str) -> Result<Self> {
        let backend: SocketAddr = backend.parse().context("the registry has no address")?;
        let listener = TcpListener::bind(("127.0.0.1", 0)).context("there is no free port")?;
        let host = listener.local_addr().context("a listener has no address")?.to_string();
        // When the next byte may pass.
        let free = Arc::new(Mutex::new(Instant::now()));
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(backend) else { continue };
                let free = Arc::clone(&free);
                // A connection that breaks is its client's to notice.
                std::thread::spawn(move || both_ways(client, server, &free));
            }
        });
        Ok(Self { host })
    }
}

fn both_ways(client: TcpStream, server: TcpStream, free: &Mutex<Instant>) -> io::Result<()> {
    let _ = client.set_nodelay(true).and_then(|()| server.set_nodelay(true));
    let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    std::thread::spawn(move || {
        let _ = io::copy(&mut from_client, &mut to_server);
        let _ = to_server.shutdown(Shutdown::Write);
    });
    let (mut from, mut to) = (server, client);
    let mut piece = vec![0; PIECE];
    loop {
        let n = from.read(&mut piece)?;
        if n == 0 {
            return to.shutdown(Shutdown::Write);
        }
        let until = {
            let mut free = free.lock().unwrap_or_else(PoisonError::into_inner);
            *free = (*free).max(Instant::now()) + Duration::from_nanos(n as u64 * 1_000_000_000 / RATE);
            *free
        };
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
        to.write_all(&piece[..n])?;
    }
}
