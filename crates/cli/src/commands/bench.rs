//! `bench`: figures as ratios within one run, on an image of some 700 MB.
//!
//! Machines are noisy and differ; what is compared is measured in turns, and
//! medians are what counts.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use smolcellar_engine::Engine;
use smolcellar_store::{Digest, Event, Reporter};

use crate::args::Bench;
use crate::commands::bench_cache::{ENTRIES, ManyEntries};
use crate::commands::bench_launch::Launches;
use crate::commands::bench_remote;
use crate::exit;
use crate::format;
use crate::host::{self, Measured};
use crate::output::{self, Format};
use crate::session::Session;

const TAG: &str = "smolcellar-bench:latest";
const BASE: &str = "smolcellar-bench-base:latest";

pub(crate) fn run(session: &Session, args: &Bench) -> Result<u8> {
    if args.remote {
        return bench_remote::run(session, args);
    }
    let say = |text: &str| session.progress.report(Event::Note { text });
    let dir = host::workspace()?.join("target/bench");
    let store = session.store()?;
    let runtime = session.runtime(&store)?;
    let engine = Engine::find(session.global.engine.as_deref())?;
    let project = project(&dir, &engine, TAG, "", &say)?;
    let bench = Runner { project, cache: dir.join("cache"), runtime: runtime.lib_dir };

    // Once for nothing: the engine's own caches are warm for all of them.
    let id = bench.build(&["--progress", "quiet"])?.0;
    let image = id["image_id"].as_str().context("build-agent named no image")?.parse::<Digest>()?;
    let (mut saves, mut misses, mut stages, mut hits) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut raw, mut verifies) = (Vec::new(), Vec::new());
    let mut peak = 0;
    for round in 1..=args.runs {
        say(&format!("round {round} of {}: docker save, a miss, a hit", args.runs));
        host::settle();
        let began = Instant::now();
        drain(&engine, &image)?;
        saves.push(began.elapsed());
        bench.forget()?;
        host::settle();
        let (result, measured) = bench.build(&["--progress", "quiet"])?;
        if stage(&result, "smolmachine")?.0 != "miss" {
            bail!("the cache was emptied, and still it hit");
        }
        misses.push(measured.wall);
        stages.push(measured.wall.saturating_sub(stage(&result, "image")?.1));
        peak = peak.max(measured.peak);
        let (result, measured) = bench.build(&["--progress", "quiet"])?;
        if stage(&result, "smolmachine")?.0 != "hit" {
            bail!("the second build was no hit");
        }
        hits.push(measured.wall);
        raw.push(bench.hash_all()?);
        verifies.push(bench.verify()?);
    }
    say(&format!("upkeep of {ENTRIES} artifacts"));
    let many = ManyEntries::new(&dir)?;
    many.ls()?;
    let (mut lists, mut usages, mut plans, mut no_ops, mut idle) = Default::default();
    let times = |of: &mut Vec<Duration>, took: Duration| of.push(took);
    for _ in 0..args.runs {
        times(&mut lists, many.ls()?);
        times(&mut usages, many.du()?);
        times(&mut plans, many.plan()?);
        times(&mut no_ops, many.not_due()?);
        times(&mut idle, many.nothing_to_do()?);
    }
    let (list, usage, plan) = (median(lists), median(usages), median(plans));
    let (no_op, idle) = (median(no_ops), median(idle));
    let (raw, verify) = (median(raw), median(verifies));
    say("launches, with a stand-in for smolvm");
    let artifact = bench.build(&["--progress", "quiet"])?.0["artifact"].as_str().map(PathBuf::from);
    let artifact = artifact.context("build-agent named no artifact")?;
    let version = runtime.version.to_string();
    let launches = Launches::new(&dir, &bench.runtime, &version, &bench.project, &bench.cache, artifact)?;
    // Once for nothing: what is derived from a runtime that was not used before.
    launches.ours()?;
    let (mut ours, mut by_hand, mut look_ups) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..args.runs * 4 {
        ours.push(launches.ours()?);
        by_hand.push(launches.by_hand()?);
        look_ups.push(launches.look_up()?);
    }
    let (ours, by_hand, look_up) = (median(ours), median(by_hand), median(look_ups));
    let overhead = ours.saturating_sub(by_hand);
    bench.forget()?;
    let (save, miss, work, hit) = (median(saves), median(misses), median(stages), median(hits));
    let ratio = |a: Duration, b: Duration| a.as_secs_f64() / b.as_secs_f64();
    let figures = json!({
        "runs": args.runs,
        "docker_save_seconds": save.as_secs_f64(),
        "miss_seconds": miss.as_secs_f64(),
        "miss_without_docker_build_seconds": work.as_secs_f64(),
        "miss_over_docker_save": ratio(miss, save),
        "miss_without_docker_build_over_docker_save": ratio(work, save),
        "hit_seconds": hit.as_secs_f64(),
        "verify_seconds": verify.as_secs_f64(),
        "verify_rate_over_sha256": ratio(raw, verify),
        "cache_ls_10000_seconds": list.as_secs_f64(),
        "cache_du_10000_seconds": usage.as_secs_f64(),
        "cache_gc_dry_run_10000_seconds": plan.as_secs_f64(),
        "auto_gc_not_due_seconds": no_op.as_secs_f64(),
        "auto_gc_10000_nothing_to_do_seconds": idle.as_secs_f64(),
        "peak_memory_bytes": peak,
        "launch_until_exec_seconds": ours.as_secs_f64(),
        "launch_by_hand_until_exec_seconds": by_hand.as_secs_f64(),
        "launch_overhead_seconds": overhead.as_secs_f64(),
        "launch_dry_run_seconds": look_up.as_secs_f64(),
    });
    if session.global.format == Format::Json {
        output::json(&figures)?;
        return Ok(exit::OK);
    }
    let row = |name: &str, value: String, limit: &str| vec![name.to_owned(), value, limit.to_owned()];
    let rows = [
        row("docker save to nowhere", format::seconds(save.as_secs_f64()), ""),
        row("build-agent, a miss", format::seconds(miss.as_secs_f64()), ""),
        row("  over docker save", format!("{:.2}", ratio(miss, save)), "1.5"),
        row("  the same, docker build apart", format!("{:.2}", ratio(work, save)), "1.5"),
        row("build-agent, a hit, all of it", millis(hit), "50 ms"),
        row("peak memory of a miss", format::bytes(peak), "128 MiB"),
        row(
            "cache verify, its rate over SHA-256 of the same on all cores",
            format!("{:.2}", ratio(raw, verify)),
            "0.8",
        ),
        row("cache ls of 10,000 artifacts", millis(list), "200 ms"),
        row("cache du of the same", millis(usage), ""),
        row("cache gc --dry-run of the same", millis(plan), "500 ms"),
        row("the collection after a build, not due", millis(no_op), "5 ms"),
        row("  due, 10,000 artifacts, nothing to remove", millis(idle), ""),
        row("launch, until the command begins", millis(ours), ""),
        row("  over the same by hand", millis(overhead), "30 ms"),
        row("launch --dry-run: the artifact found, all planned", millis(look_up), "10 ms"),
    ];
    output::table(&["MEDIAN OF", &format!("{} RUNS", args.runs), "AIM"], &[false, true, true], &rows)?;
    Ok(exit::OK)
}

/// The program under measure, on a project and a cache of its own.
pub(crate) struct Runner {
    pub(crate) project: PathBuf,
    pub(crate) cache: PathBuf,
    pub(crate) runtime: PathBuf,
}

impl Runner {
    pub(crate) fn build(&self, extra: &[&str]) -> Result<(Value, Measured)> {
        let env = [
            ("SMOLCELLAR_CACHE_DIR", self.cache.as_os_str()),
            ("SMOLCELLAR_SMOLVM_DIR", self.runtime.as_os_str()),
        ];
        let args = [&["build-agent", "big", "--format", "json"][..], extra].concat();
        let measured = host::measure(&args, &self.project, &env)?;
        let result = serde_json::from_str(&measured.stdout).context("build-agent printed no JSON")?;
        Ok((result, measured))
    }

    /// `cache verify`, as a process.
    fn verify(&self) -> Result<Duration> {
        let env = [("SMOLCELLAR_CACHE_DIR", self.cache.as_os_str())];
        Ok(host::measure(&["cache", "verify", "--keep", "--progress", "quiet"], &self.project, &env)?.wall)
    }

    /// SHA-256 of the same files and nothing else, on all cores.
    fn hash_all(&self) -> Result<Duration> {
        let mut files = Vec::new();
        let mut pending = vec![self.cache.clone()];
        while let Some(path) = pending.pop() {
            let metadata = std::fs::symlink_metadata(&path)?;
            match metadata.is_dir() {
                true => pending.extend(std::fs::read_dir(&path)?.flatten().map(|entry| entry.path())),
                false => files.push((metadata.len(), path)),
            }
        }
        // The largest first, so that no core is left with one at the end.
        files.sort_by_key(|(size, _)| std::cmp::Reverse(*size));
        let next = AtomicUsize::new(0);
        let began = Instant::now();
        let hash = || -> Result<()> {
            while let Some((_, path)) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                Digest::of_file(path)?;
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            let workers: Vec<_> = (0..cores).map(|_| scope.spawn(hash)).collect();
            let join = |worker: std::thread::ScopedJoinHandle<'_, Result<()>>| {
                worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            workers.into_iter().try_for_each(join)
        })?;
        Ok(began.elapsed())
    }

    /// Empties the cache, but for what was derived from the runtime.
    fn forget(&self) -> Result<()> {
        for bucket in ["blobs-v1", "images-v1", "machines-v1", "pointers-v1"] {
            let path = self.cache.join(bucket);
            if path.exists() {
                std::fs::remove_dir_all(&path)
                    .with_context(|| format!("cannot remove {}", path.display()))?;
            }
        }
        Ok(())
    }
}

fn stage<'a>(result: &'a Value, name: &str) -> Result<(&'a str, Duration)> {
    let stages = result["stages"].as_array().context("there are no stages")?;
    let stage = stages.iter().find(|stage| stage["name"] == name).context("a stage is missing")?;
    let seconds = stage["seconds"].as_f64().context("a stage has no seconds")?;
    Ok((stage["status"].as_str().unwrap_or_default(), Duration::from_secs_f64(seconds)))
}

fn drain(engine: &Engine, image: &Digest) -> Result<()> {
    let mut stream = engine.save(image)?;
    std::io::copy(&mut stream, &mut std::io::sink()).context("cannot read docker save")?;
    Ok(stream.finish()?)
}

fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

pub(crate) fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// An image of some 700 MB: a Debian build system, 60 MB that zstd cannot
/// shrink, and a few changes in layers of their own. `more` is more of its
/// Dockerfile.
pub(crate) fn project(
    dir: &Path,
    engine: &Engine,
    tag: &str,
    more: &str,
    say: &dyn Fn(&str),
) -> Result<PathBuf> {
    let context = dir.join("project/context");
    std::fs::create_dir_all(&context).with_context(|| format!("cannot create {}", context.display()))?;
    if engine.inspect(BASE)?.is_none() {
        if !host::has("debootstrap") {
            say("installing the Debian package debootstrap, once");
            host::apt_install(&["debootstrap"])?;
        }
        say("making the base image with debootstrap, once (some minutes)");
        host::import_debian(&dir.join("tree"), BASE)?;
    }
    let scratch = dir.join("tmp");
    std::fs::create_dir_all(&scratch).with_context(|| format!("cannot create {}", scratch.display()))?;
    let put = |path: &str, bytes: &[u8]| {
        smolcellar_store::fsio::write_atomic(&scratch, &dir.join("project").join(path), bytes)
    };
    put("smolcellar.toml", format!("[agent.big]\ncontext = \"context\"\nimage = \"{tag}\"\n").as_bytes())?;
    put("context/Dockerfile", (DOCKERFILE.replace("BASE", BASE) + more).as_bytes())?;
    if !context.join("noise").is_file() {
        put("context/noise", &noise(0, 60_000_000))?;
    }
    Ok(dir.join("project"))
}

const DOCKERFILE: &str = "FROM BASE
COPY noise /opt/noise
RUN rm -r /usr/share/doc/bash && ln /opt/noise /opt/noise-too && echo changed > /etc/motd
ENTRYPOINT [\"/bin/bash\"]
";

/// Bytes that do not compress and are the same every time for a seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64 ^ seed;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(next).take(length / 8).flatten().collect()
}
