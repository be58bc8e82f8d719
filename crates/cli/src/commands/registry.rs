//! `registry serve`: the cache as a registry, in the foreground.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use smolcellar_registry::{Access, OnAccess, Options, StoreServer, parse_addr};

use crate::args::{Registry, Serve};
use crate::exit::{self, Usage};
use crate::format;
use crate::output::{self, Format};
use crate::session::Session;

/// For how long what is under way may go on after the first signal.
const GRACE: Duration = Duration::from_secs(5);
/// So many files may be open, where the system lets us: a connection has two.
const FILES: u64 = 4096;

pub(super) fn run(session: &Session, command: &Registry) -> Result<u8> {
    let Registry::Serve(args) = command;
    serve(session, args)
}

fn serve(session: &Session, args: &Serve) -> Result<u8> {
    let addr = parse_addr(&args.addr).map_err(|error| Usage(error.to_string()))?;
    // From here on, so that there is no moment at which a signal leaves something behind.
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM]).context("cannot catch signals")?;
    raise_file_limit();
    let store = Arc::new(session.store()?);
    let log = |access: &Access| {
        output::note(&format!("{} {} {} {} ms", access.method, access.path, access.status, access.millis));
    };
    let on_access = session.global.verbose.then(|| Arc::new(log) as OnAccess);
    let server =
        StoreServer::start(store, args.read_only, Options { addr, on_access, ..Options::default() })?;
    show(session, &server, args.read_only)?;
    // It ends only with a signal.
    let _ = signals.forever().next();
    std::thread::spawn(move || {
        for signal in signals.forever() {
            // The second: whatever is under way, as if nobody had caught it.
            let _ = signal_hook::low_level::emulate_default_handler(signal);
        }
    });
    let seen = server.stop(GRACE);
    if session.global.format == Format::Human {
        let blobs = format::count(usize::try_from(seen.blobs).unwrap_or(usize::MAX), "blob", "blobs");
        output::note(&format!("{} requests, {blobs} sent, {}", seen.requests, format::bytes(seen.bytes)));
    }
    Ok(exit::OK)
}

fn show(session: &Session, server: &StoreServer, read_only: bool) -> Result<()> {
    let addr = server.addr();
    if session.global.format == Format::Json {
        let url = format!("http://{addr}/v2/");
        return output::json(&json!({ "addr": addr, "url": url, "read_only": read_only }));
    }
    output::line(&format!(
        "serving {} at {addr}, to this machine only; Ctrl-C ends it",
        session.cache_dir()?.display()
    ))?;
    output::line(&format!("  list   curl http://{addr}/v2/_catalog"))?;
    output::line(&format!("  pull   docker pull {addr}/AGENT"))?;
    if !read_only {
        output::line(&format!("  push   docker tag IMAGE {addr}/NAME && docker push {addr}/NAME"))?;
    }
    Ok(())
}

/// As far as the system lets us. With fewer there is room for fewer connections.
fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(FILES, |most| most.min(FILES));
    if limit.current.is_some_and(|now| now < wanted) {
        limit.current = Some(wanted);
        let _ = setrlimit(Resource::Nofile, limit);
    }
}
