//! `bench --remote`: an artifact of some 340 MB to a registry on this machine
//! and back, in turns with smolvm's own `pack push` and `pack pull`; and a pull
//! of the next version of it, by one who has the version before; the same over a
//! slower network; and our own registry beside docker-registry.
//!
//! Ours publishes what it pulled: it is on the disk, checked in all its parts,
//! and a hit. smolvm's pull ends with a file that nothing was waited for.

use std::ffi::OsStr;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;
use smolcellar_engine::Engine;
use smolcellar_oci::{Registry, Repository};
use smolcellar_registry::StoreServer;
use smolcellar_remote::{Cache, Client, Pull, Pulled, Push};
use smolcellar_store::{Digest, Event, Lookup, Machine, MachineKey, OpenOptions, Quiet, Reporter, Store};

use crate::args::Bench;
use crate::commands::bench::{Runner, median, noise, project};
use crate::commands::bench_link::Link;
use crate::exit;
use crate::format;
use crate::host::{self, Background};
use crate::output::{self, Format};
use crate::session::Session;

const TAG: &str = "smolcellar-bench-remote:latest";
/// What changes between the two versions, in bytes: as much as a program of
/// somebody's.
const CHANGE: usize = 3_000_000;

pub(crate) fn run(session: &Session, args: &Bench) -> Result<u8> {
    let say = |text: &str| session.progress.report(Event::Note { text });
    let dir = host::workspace()?.join("target/bench");
    if !host::has("docker-registry") {
        say("installing the Debian package docker-registry, once");
        host::apt_install(&["docker-registry"])?;
    }
    let runtime = session.runtime(&session.store()?)?;
    let engine = Engine::find(session.global.engine.as_deref())?;
    let work = dir.join("remote");
    let project = project(&dir, &engine, TAG, "COPY change /opt/change\n", &say)?;
    let runner = Runner { project, cache: work.join("cache"), runtime: runtime.lib_dir.clone() };
    say("building two versions of an image of 700 MB");
    let before = version(&runner, 1)?;
    let after = version(&runner, 2)?;
    let smolvm = Smolvm { program: runtime.vmm, lib: runtime.lib_dir, home: work.join("smolvm") };
    let registry = OwnRegistry::start(&work)?;

    let (mut their_pushes, mut pushes) = (Vec::new(), Vec::new());
    let (mut their_pulls, mut pulls, mut deltas) = (Vec::new(), Vec::new(), Vec::new());
    let (mut far_pulls, mut far_deltas) = (Vec::new(), Vec::new());
    let (mut their_reads, mut reads) = (Vec::new(), Vec::new());
    let mut moved = 0;
    let link = Link::before(&registry.host)?;
    let served = Served::start(&work, &before)?;
    for round in 1..=args.runs {
        say(&format!("round {round} of {}", args.runs));
        // A repository of each round's own: nothing is there already.
        let theirs = format!("{}/theirs-{round}:v1", registry.host);
        let ours = registry.cache(&format!("ours-{round}"))?;
        host::settle();
        their_pushes.push(smolvm.run(&["pack", "push", "--file", text(&before.path)?, &theirs])?);
        host::settle();
        pushes.push(push(&ours, &before)?);
        push(&ours, &after)?;

        let out = work.join("pulled");
        smolvm.forget()?;
        host::settle();
        their_pulls.push(smolvm.run(&["pack", "pull", &theirs, "-o", text(&out)?])?);
        std::fs::remove_file(&out).context("smolvm pulled nothing")?;

        let (whole, delta, fetched) = both(&work, &ours, &before, &after)?;
        pulls.push(whole);
        deltas.push(delta);
        moved = fetched;
        let far = cache(&link.host, &format!("ours-{round}"))?;
        let (whole, delta, _) = both(&work, &far, &before, &after)?;
        far_pulls.push(whole);
        far_deltas.push(delta);

        let digest = before.receipt.sha256;
        let own = format!("ours-{round}");
        for (reads, host, name) in
            [(&mut their_reads, &registry.host, own.as_str()), (&mut reads, &served.host, Served::NAME)]
        {
            let url = format!("http://{host}/v2/{name}/blobs/{digest}");
            host::settle();
            reads.push(host::timed(Path::new("curl"), &["-sSfo", "/dev/null", &url].map(OsStr::new), &[])?);
        }
    }
    drop(served);
    std::fs::remove_dir_all(work.join("store")).context("cannot empty a cache")?;
    let (their_push, push) = (median(their_pushes), median(pushes));
    let (their_pull, pull, delta) = (median(their_pulls), median(pulls), median(deltas));
    let (far_pull, far_delta) = (median(far_pulls), median(far_deltas));
    let (their_read, read) = (median(their_reads), median(reads));
    let hashing = hashing(&after.path)?;
    let ratio = |a: Duration, b: Duration| a.as_secs_f64() / b.as_secs_f64();
    if session.global.format == Format::Json {
        output::json(&json!({
            "runs": args.runs,
            "artifact_bytes": after.receipt.size,
            "smolvm_pack_push_seconds": their_push.as_secs_f64(),
            "push_seconds": push.as_secs_f64(),
            "push_over_smolvm": ratio(push, their_push),
            "smolvm_pack_pull_seconds": their_pull.as_secs_f64(),
            "pull_seconds": pull.as_secs_f64(),
            "pull_over_smolvm": ratio(pull, their_pull),
            "delta_pull_seconds": delta.as_secs_f64(),
            "delta_pull_bytes": moved,
            "delta_pull_over_pull": ratio(delta, pull),
            "delta_pull_over_smolvm_pull": ratio(delta, their_pull),
            "sha256_seconds": hashing.as_secs_f64(),
            "gigabit_pull_seconds": far_pull.as_secs_f64(),
            "gigabit_delta_pull_seconds": far_delta.as_secs_f64(),
            "gigabit_delta_pull_over_pull": ratio(far_delta, far_pull),
            "docker_registry_to_curl_seconds": their_read.as_secs_f64(),
            "registry_serve_to_curl_seconds": read.as_secs_f64(),
            "registry_serve_rate_over_docker_registry": ratio(their_read, read),
        }))?;
        return Ok(exit::OK);
    }
    let row = |name: &str, value: String, limit: &str| vec![name.to_owned(), value, limit.to_owned()];
    let seconds = |time: Duration| format::seconds(time.as_secs_f64());
    let over = |a, b| format!("{:.2}", ratio(a, b));
    let rows = [
        row("the artifact", format::bytes(after.receipt.size), ""),
        row("smolvm pack push", seconds(their_push), ""),
        row("push", seconds(push), ""),
        row("  over smolvm's", over(push, their_push), "1.0"),
        row("smolvm pack pull", seconds(their_pull), ""),
        row("pull, whole, published", seconds(pull), ""),
        row("  over smolvm's", over(pull, their_pull), "1.0"),
        row("pull after a change of 3 MB, published", seconds(delta), ""),
        row("  bytes fetched", format::bytes(moved), "9.5 MiB"),
        row("  over a whole pull of smolvm's", over(delta, their_pull), "0.3"),
        row("  over a whole pull of ours", over(delta, pull), "0.3"),
        row("  over SHA-256 of the artifact alone", over(delta, hashing), ""),
        row("the same over one gigabit: whole", seconds(far_pull), ""),
        row("  and after the change", seconds(far_delta), ""),
        row("  over the whole one", over(far_delta, far_pull), "0.3"),
        row("docker-registry to curl", seconds(their_read), ""),
        row("registry serve to curl", seconds(read), ""),
        row("  its rate over docker-registry's", over(their_read, read), "1.0"),
    ];
    output::table(&["MEDIAN OF", &format!("{} RUNS", args.runs), "AIM"], &[false, true, true], &rows)?;
    Ok(exit::OK)
}

/// Builds the image with one version of what changes.
fn version(runner: &Runner, seed: u64) -> Result<Machine> {
    host::write_plain(&runner.project.join("context/change"), &noise(seed, CHANGE))?;
    let (result, _) = runner.build(&["--progress", "quiet"])?;
    let digest = |name: &str| -> Result<Digest> {
        Ok(result[name].as_str().with_context(|| format!("build-agent named no {name}"))?.parse()?)
    };
    let key = MachineKey { image: digest("image_id")?, recipe: digest("recipe")? };
    match Store::open(&runner.cache, OpenOptions::default())?.machine(&key, false)? {
        Lookup::Hit(machine) => Ok(*machine),
        other => bail!("what was built is not there: {other:?}"),
    }
}

fn push(cache: &Cache, machine: &Machine) -> Result<Duration> {
    let began = Instant::now();
    match cache.push(machine, &Quiet)? {
        Push::Done { bytes } if bytes == machine.receipt.size => Ok(began.elapsed()),
        other => bail!("a push to a new repository came to {other:?}"),
    }
}

fn pull(cache: &Cache, store: &Store, key: &MachineKey) -> Result<(Duration, Pulled)> {
    let began = Instant::now();
    let lock = store.lock_build(&key.lock_name(), &Quiet)?;
    match cache.pull(store, key, Some("big"), &lock, &Quiet)? {
        Pull::Done(pulled) => Ok((began.elapsed(), *pulled)),
        Pull::Missing => bail!("what was pushed is not there"),
    }
}

/// Pulls one version into an empty cache, and then the next one: what each
/// took, and the bytes that the second fetched.
fn both(work: &Path, from: &Cache, before: &Machine, after: &Machine) -> Result<(Duration, Duration, u64)> {
    let store = work.join("store");
    if store.exists() {
        std::fs::remove_dir_all(&store).context("cannot empty a cache")?;
    }
    let store = Store::open(&store, OpenOptions::default())?;
    host::settle();
    let (whole, pulled) = pull(from, &store, &before.receipt.key())?;
    if !pulled.whole {
        bail!("an empty cache had something to copy from");
    }
    host::settle();
    let (delta, pulled) = pull(from, &store, &after.receipt.key())?;
    if pulled.whole || Digest::of_file(&pulled.machine.path)? != after.receipt.sha256 {
        bail!("the second version was not pulled by its parts");
    }
    Ok((whole, delta, pulled.fetched))
}

/// SHA-256 of a file and nothing else: what no pull can be faster than that
/// proves the file.
fn hashing(path: &Path) -> Result<Duration> {
    Digest::of_file(path)?;
    let began = Instant::now();
    Digest::of_file(path)?;
    Ok(began.elapsed())
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is no UTF-8", path.display()))
}

/// smolvm with folders of its own.
struct Smolvm {
    program: PathBuf,
    lib: PathBuf,
    home: PathBuf,
}

impl Smolvm {
    fn run(&self, words: &[&str]) -> Result<Duration> {
        let words: Vec<&OsStr> = words.iter().map(OsStr::new).collect();
        let home = self.home.as_os_str();
        let env = [
            ("SMOLVM_LIB_DIR", self.lib.as_os_str()),
            ("SMOLVM_DATA_DIR", home),
            ("HOME", home),
            ("XDG_CACHE_HOME", home),
        ];
        std::fs::create_dir_all(&self.home).context("cannot make a folder for smolvm")?;
        host::timed(&self.program, &words, &env)
    }

    /// So that it fetches again.
    fn forget(&self) -> Result<()> {
        match self.home.exists() {
            true => std::fs::remove_dir_all(&self.home).context("cannot empty smolvm's folder"),
            false => Ok(()),
        }
    }
}

/// Debian's docker-registry, in a folder that goes with it.
struct OwnRegistry {
    host: String,
    dir: PathBuf,
    _process: Background,
}

impl OwnRegistry {
    fn start(work: &Path) -> Result<Self> {
        let dir = work.join("registry");
        if dir.exists() {
            std::fs::remove_dir_all(&dir).context("cannot empty the registry")?;
        }
        let host = TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr());
        let host = host.context("there is no free port")?.to_string();
        let config = dir.join("config.yml");
        let settings = format!(
            "version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    \
             rootdirectory: {}/data\nhttp:\n  addr: {host}\n  secret: of-a-benchmark\n",
            dir.display()
        );
        host::write_plain(&config, settings.as_bytes())?;
        let args = [OsStr::new("serve"), config.as_os_str()];
        let mut process = Background::start("docker-registry", &args, &dir.join("log"))?;
        let began = Instant::now();
        while std::net::TcpStream::connect(&host).is_err() {
            if !process.runs() || began.elapsed() > Duration::from_secs(20) {
                bail!("docker-registry does not answer; see {}", dir.join("log").display());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(Self { host, dir, _process: process })
    }

    fn cache(&self, repository: &str) -> Result<Cache> {
        cache(&self.host, repository)
    }
}

/// Our own registry, with one artifact pushed to it.
struct Served {
    host: String,
    _server: StoreServer,
}

impl Served {
    const NAME: &str = "bench";

    fn start(work: &Path, machine: &Machine) -> Result<Self> {
        let dir = work.join("served");
        if dir.exists() {
            std::fs::remove_dir_all(&dir).context("cannot empty a cache")?;
        }
        let store = Arc::new(Store::open(&dir, OpenOptions::default())?);
        let server = StoreServer::start(store, false, Default::default())?;
        let host = server.addr().to_string();
        push(&cache(&host, Self::NAME)?, machine)?;
        Ok(Self { host, _server: server })
    }
}

fn cache(host: &str, repository: &str) -> Result<Cache> {
    let (registry, repository) = (Registry::parse(host)?, Repository::parse(repository)?);
    Ok(Cache::new(Client::new(&registry, &repository, Cache::options())?))
}

impl Drop for OwnRegistry {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
