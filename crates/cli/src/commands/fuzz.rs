//! `fuzz`: the parsers of foreign bytes against bytes made up to break them.
//!
//! libFuzzer, on the stable compiler: coverage counters without a sanitizer.
//! Overflow checks and debug assertions take a sanitizer's place, and there is
//! no unsafe code here for it to watch.

use std::ffi::OsStr;
use std::path::Path;

use anyhow::{Context, Result, bail};
use smolcellar_store::{Event, Reporter};

use crate::args::Fuzz;
use crate::exit::{self, Usage};
use crate::host;
use crate::session::Session;

/// The programs in `tests/fuzz/src/bin`.
const TARGETS: [&str; 6] = ["answers", "archive", "artifact", "layer", "registries", "remote"];

pub(crate) fn run(session: &Session, args: &Fuzz) -> Result<u8> {
    let say = |text: &str| session.progress.report(Event::Note { text });
    if let Some(unknown) = args.targets.iter().find(|target| !TARGETS.contains(&target.as_str())) {
        let known = TARGETS.join(", ");
        return Err(Usage(format!("there is no fuzz target '{unknown}'; there are {known}")).into());
    }
    let chosen = |target: &str| args.targets.is_empty() || args.targets.iter().any(|name| name == target);
    if !host::has("c++") {
        say("installing the Debian package g++ for libFuzzer, once");
        host::apt_install(&["g++"]).context("libFuzzer is compiled with a C++ compiler")?;
    }
    let top = host::workspace()?;
    let dir = top.join("target/fuzz");
    let crashes = dir.join("crashes");
    std::fs::create_dir_all(&crashes).with_context(|| format!("cannot create {}", crashes.display()))?;
    say("compiling the fuzz targets");
    build(&top, &dir)?;
    for target in TARGETS.into_iter().filter(|target| chosen(target)) {
        say(&format!("fuzzing {target} for {} s", args.seconds));
        let program = dir.join(host::triple()?).join("release").join(target);
        let words = [
            dir.join("corpus").join(target).into_os_string(),
            format!("-max_total_time={}", args.seconds).into(),
            format!("-artifact_prefix={}/{target}-", crashes.display()).into(),
            // An input takes microseconds; these are for the ones that hang or
            // make us keep what they only claim to have.
            "-timeout=10".into(),
            "-rss_limit_mb=1024".into(),
            "-max_len=65536".into(),
        ];
        let log = dir.join(format!("{target}.log"));
        if !host::logged(&program, &words, &dir, &log)? {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            let end: Vec<&str> = text.lines().rev().take(40).collect();
            let end: Vec<&str> = end.into_iter().rev().collect();
            bail!(
                "{target} failed; the input is in {}, give it to {} again\n{}",
                crashes.display(),
                program.display(),
                end.join("\n")
            );
        }
    }
    say("no target failed");
    Ok(exit::OK)
}

fn build(top: &Path, dir: &Path) -> Result<()> {
    let triple = host::triple()?;
    let corpus = dir.join("corpus");
    std::fs::create_dir_all(&corpus).with_context(|| format!("cannot create {}", corpus.display()))?;
    let (manifest, flags) = (top.join("tests/fuzz/Cargo.toml"), top.join("tests/fuzz/coverage.toml"));
    let seeds = "run --quiet --release --locked --package smolcellar-tests --example fuzz_seeds --";
    let mut words: Vec<&OsStr> = seeds.split(' ').map(OsStr::new).collect();
    words.push(corpus.as_os_str());
    let made = host::cargo(&words, &[])?;
    let mut words: Vec<&OsStr> = ["build", "--release", "--locked", "--manifest-path"].map(OsStr::new).into();
    words.extend([manifest.as_os_str(), OsStr::new("--config"), flags.as_os_str()]);
    // Naming the target keeps the flags away from build scripts.
    words.extend([OsStr::new("--target"), OsStr::new(&triple), OsStr::new("--target-dir"), dir.as_os_str()]);
    if !made || !host::cargo(&words, &[])? {
        bail!("the fuzz targets do not compile");
    }
    Ok(())
}
