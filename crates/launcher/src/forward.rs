//! Ports of a container on this host's loopback. An engine publishes no port
//! of a network that leads nowhere, so this process passes connections on, for
//! as long as the launch lasts.

use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use smolcellar_smolvm::Port;

use crate::error::{LaunchError, Result};

/// The most connections that a port has at one time; more wait to be accepted.
const CONNECTIONS: usize = 256;
/// How often a listener looks for whether it is still wanted.
const LOOK: Duration = Duration::from_millis(20);

/// Listeners on this host. Taken before anything is made, so that a port that
/// somebody has is noticed first.
pub(crate) struct Forwards {
    listeners: Vec<(TcpListener, Port)>,
    ended: Arc<AtomicBool>,
}

impl Forwards {
    pub(crate) fn bind(ports: &[Port]) -> Result<Self> {
        let mut listeners = Vec::new();
        for port in ports {
            let taken = |source| LaunchError::Port { port: port.host, source };
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port.host)).map_err(taken)?;
            listener.set_nonblocking(true).map_err(taken)?;
            listeners.push((listener, *port));
        }
        Ok(Self { listeners, ended: Arc::default() })
    }

    /// Begins to pass connections on to a guest, until this is dropped.
    pub(crate) fn begin(&mut self, guest: Ipv4Addr) {
        for (listener, port) in self.listeners.drain(..) {
            let ended = Arc::clone(&self.ended);
            let to = SocketAddr::from((guest, port.guest));
            std::thread::spawn(move || serve(&listener, to, &ended));
        }
    }
}

impl Drop for Forwards {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
    }
}

fn serve(listener: &TcpListener, to: SocketAddr, ended: &AtomicBool) {
    let open = Arc::new(AtomicUsize::new(0));
    while !ended.load(Ordering::SeqCst) {
        if open.load(Ordering::SeqCst) >= CONNECTIONS {
            std::thread::sleep(LOOK);
            continue;
        }
        match listener.accept() {
            Ok((from, _)) => {
                let open = Arc::clone(&open);
                open.fetch_add(1, Ordering::SeqCst);
                std::thread::spawn(move || {
                    // A guest that does not answer closes the connection: the
                    // caller sees what it would see without us.
                    let _ = pass(from, to);
                    open.fetch_sub(1, Ordering::SeqCst);
                });
            }
            Err(_) => std::thread::sleep(LOOK),
        }
    }
}

fn pass(from: TcpStream, to: SocketAddr) -> io::Result<()> {
    from.set_nonblocking(false)?;
    let to = TcpStream::connect_timeout(&to, Duration::from_secs(10))?;
    let (back_from, back_to) = (to.try_clone()?, from.try_clone()?);
    let back = std::thread::spawn(move || one_way(back_from, back_to));
    one_way(from, to);
    let _ = back.join();
    Ok(())
}

fn one_way(mut from: TcpStream, mut to: TcpStream) {
    let _ = io::copy(&mut from, &mut to);
    // The other side may still have something to say.
    let _ = to.shutdown(Shutdown::Write);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn a_connection_goes_both_ways_and_a_taken_port_is_named() {
        let guest = TcpListener::bind("127.0.0.2:0").unwrap();
        let address = guest.local_addr().unwrap();
        let echo = std::thread::spawn(move || {
            let (mut stream, _) = guest.accept().unwrap();
            let mut heard = Vec::new();
            stream.read_to_end(&mut heard).unwrap();
            stream.write_all(&heard).unwrap();
        });
        // Some port that is free.
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = free.local_addr().unwrap().port();
        let port = Port { host, guest: address.port() };
        let taken = Forwards::bind(&[port]).err().unwrap().to_string();
        assert!(taken.contains(&host.to_string()), "{taken}");
        drop(free);
        let mut forwards = Forwards::bind(&[port]).unwrap();
        forwards.begin("127.0.0.2".parse().unwrap());
        let mut stream = TcpStream::connect(("127.0.0.1", host)).unwrap();
        stream.write_all(&[7; 100_000]).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).unwrap();
        assert_eq!(heard, [7; 100_000]);
        echo.join().unwrap();
        drop(forwards);
        let began = std::time::Instant::now();
        while TcpListener::bind(("127.0.0.1", host)).is_err() {
            assert!(began.elapsed() < Duration::from_secs(5), "the port is never free again");
            std::thread::sleep(LOOK);
        }
    }
}
