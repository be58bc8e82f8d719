//! Bringing up the network of a launch and its sidecar.

use std::io::Read;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use smolcellar_engine::Engine;
use smolcellar_run::Limits;

use crate::bounds::Bounds;
use crate::error::{LaunchError, Result};
use crate::plan::{Found, Plan, Published};
use crate::sidecar::{Reach, Sidecar};
use crate::signals::Interrupt;
use crate::spec::{LaunchSpec, Tools};
use crate::subnet::{self, CANDIDATES, Subnet};

/// How long a connection may take that proves that somebody listens.
const CONNECT: Duration = Duration::from_millis(250);
/// How long a listener has to hang up, by which a port that is only forwarded
/// shows that nobody is behind it.
const HANG_UP: Duration = Duration::from_millis(100);
/// How often a port is tried.
const PAUSE: Duration = Duration::from_millis(20);
/// How much of a sidecar's log is shown.
const LOG_LINES: u32 = 30;

/// What it takes to bring up what is beside a guest.
pub(crate) struct Surroundings<'a> {
    pub(crate) spec: &'a LaunchSpec,
    pub(crate) tools: &'a Tools,
    pub(crate) bounds: &'a Bounds,
    pub(crate) interrupt: &'a dyn Interrupt,
}

impl Surroundings<'_> {
    fn query(&self) -> Limits<'static> {
        Limits::within(self.bounds.query)
    }

    /// For what the engine makes: see [`Bounds::engine`].
    fn making(&self) -> Limits<'static> {
        Limits::within(self.bounds.engine)
    }

    /// Makes the launch's network, with the first of its candidates' addresses
    /// that nobody has: the engine decides that, so there is no race.
    pub(crate) fn network(&self, mut plan: Plan) -> Result<(Plan, Found)> {
        let engine = self.tools.engine()?;
        let routes = subnet::routes();
        let mut found = Found::default();
        for turn in 0..CANDIDATES {
            found.turn = turn;
            if turn > 0 {
                plan = Plan::with(self.spec, self.tools, &found)?;
            }
            let Some(network) = &plan.network else { return Ok((plan, found)) };
            let routed = Subnet::candidate(&plan.machine, turn).is_routed(&routes);
            if !routed && engine.create_network(&network.spec(), self.making())? {
                return Ok((plan, found));
            }
        }
        Err(LaunchError::NoSubnet)
    }

    /// Makes the sidecar, starts it, and waits until all its ports are served.
    pub(crate) fn sidecar(&self, plan: Plan, mut found: Found, scratch: &Path) -> Result<Plan> {
        let (Some(own), Some(sidecar)) = (&self.spec.sidecar, &plan.sidecar) else { return Ok(plan) };
        let engine = self.tools.engine()?;
        // By its ID: the name may be another launch's by the time it is used.
        let mut image = own.image.clone();
        if let Some(build) = &own.build {
            let began = Instant::now();
            let give_up = || self.interrupt.cancelled() || began.elapsed() > self.bounds.create;
            image = engine.build_unless(build, scratch, &|_| {}, &give_up)?.to_string();
        }
        let name = &sidecar.container;
        if own.build.is_none() && engine.inspect(&own.image)?.is_none() {
            // Apart from the rest: this may take long, and may be cut short.
            let limits = Limits { timeout: Some(self.bounds.create), cancel: self.interrupt };
            engine.pull(&own.image, limits)?;
        }
        engine.create_container(&own.container(sidecar, &plan.agent, &image), self.making())?;
        let network = &sidecar.network.name;
        engine.connect(network, name, sidecar.ip, self.making())?;
        engine.start_container(name, self.making())?;
        let info = engine.container(name, self.query())?;
        let info = info.ok_or_else(|| self.not_ready(engine, sidecar, "it vanished"))?;
        if !info.running {
            let problem = format!("it ended with exit code {}", info.exit_code);
            return Err(self.not_ready(engine, sidecar, &problem));
        }
        let mut probes = Vec::new();
        let mut published = Published::new();
        for port in &sidecar.ports {
            let probe = match own.reach {
                Reach::Loopback => {
                    let address = info.published(port.port);
                    let missing = || self.not_ready(engine, sidecar, "the engine published no port for it");
                    let address = address.ok_or_else(missing)?;
                    published.insert(port.port, address);
                    address
                }
                Reach::Bridge if sidecar.network.host_joins => {
                    SocketAddr::new(IpAddr::V4(sidecar.ip), port.port)
                }
                // By its way out, which the guest does not have.
                Reach::Bridge => {
                    let other = info.addresses.iter().find(|(name, _)| name != network);
                    let missing = || self.not_ready(engine, sidecar, "it has no address of the engine's");
                    SocketAddr::new(other.ok_or_else(missing)?.1, port.port)
                }
            };
            probes.push((port.name.as_str(), probe));
        }
        self.wait(engine, sidecar, &probes, own.reach == Reach::Loopback)?;
        if own.reach == Reach::Loopback {
            found.published = Some(published);
            return Plan::with(self.spec, self.tools, &found);
        }
        Ok(plan)
    }

    fn wait(
        &self,
        engine: &Engine,
        sidecar: &Sidecar,
        probes: &[(&str, SocketAddr)],
        forwarded: bool,
    ) -> Result<()> {
        let began = Instant::now();
        for (port, address) in probes {
            while !is_served(*address, forwarded) {
                let container = engine.container(&sidecar.container, self.query())?;
                if let Some(ended) = container.filter(|info| !info.running) {
                    let problem = format!("it ended with exit code {}", ended.exit_code);
                    return Err(self.not_ready(engine, sidecar, &problem));
                }
                if began.elapsed() > self.bounds.sidecar {
                    let seconds = self.bounds.sidecar.as_secs_f64();
                    let problem = format!("nothing served its port {port} ({address}) within {seconds:.0} s");
                    return Err(self.not_ready(engine, sidecar, &problem));
                }
                if self.interrupt.cancelled() {
                    return Err(LaunchError::Interrupted);
                }
                std::thread::sleep(PAUSE);
            }
        }
        Ok(())
    }

    fn not_ready(&self, engine: &Engine, sidecar: &Sidecar, problem: &str) -> LaunchError {
        let log = engine.container_logs(&sidecar.container, LOG_LINES, self.query());
        let log = match log.unwrap_or_default() {
            log if log.is_empty() => "it printed nothing".to_owned(),
            log => format!("it printed:\n{log}"),
        };
        LaunchError::Sidecar { image: sidecar.image.clone(), problem: problem.to_owned(), log }
    }
}

/// Whether somebody listens there. An engine that forwards a port takes any
/// connection, and hangs up at once if nobody is behind it.
fn is_served(address: SocketAddr, forwarded: bool) -> bool {
    let Ok(mut stream) = TcpStream::connect_timeout(&address, CONNECT) else { return false };
    if !forwarded {
        return true;
    }
    let waiting = |error: std::io::Error| {
        matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
    };
    match stream.set_read_timeout(Some(HANG_UP)).and_then(|()| stream.read(&mut [0])) {
        Ok(bytes) => bytes > 0,
        Err(error) => waiting(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::TcpListener;

    #[test]
    fn a_forwarder_with_nobody_behind_it_is_not_taken_for_a_service() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            // Hangs up; greets; waits.
            drop(listener.accept().unwrap());
            listener.accept().unwrap().0.write_all(b"hello").unwrap();
            let (stream, _) = listener.accept().unwrap();
            std::thread::sleep(HANG_UP * 4);
            drop(stream);
        });
        assert!(!is_served(address, true));
        assert!(is_served(address, true));
        assert!(is_served(address, true));
        server.join().unwrap();
        assert!(!is_served(address, false), "nobody listens any more");
    }
}
