//! `test`: everything that CI runs, on this machine.

use std::ffi::OsStr;

use anyhow::{Context, Result};
use smolcellar_store::{Event, Reporter};

use crate::args::Test;
use crate::exit;
use crate::host;
use crate::session::Session;

/// Programs that tests need, and the Debian packages that hold them.
const NEEDS: [(&str, &str); 14] = [
    ("docker-registry", "docker-registry"),
    ("htpasswd", "apache2-utils"),
    ("openssl", "openssl"),
    ("curl", "curl"),
    ("skopeo", "skopeo"),
    ("podman", "podman"),
    ("strace", "strace"),
    ("faketime", "faketime"),
    ("busybox", "busybox-static"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("mke2fs", "e2fsprogs"),
    ("script", "bsdutils"),
    ("xz", "xz-utils"),
    ("zstd", "zstd"),
];

pub(crate) fn run(session: &Session, args: &Test) -> Result<u8> {
    let say = |text: &str| session.progress.report(Event::Note { text });
    install_packages(session, args)?;
    let store = session.store()?;
    session.runtime(&store)?;
    let program = std::env::current_exe().context("cannot find this program")?;
    let cache = store.root().as_os_str();
    let mut env: Vec<(&str, &OsStr)> =
        vec![("SMOLCELLAR_TEST_PROGRAM", program.as_os_str()), ("SMOLCELLAR_TEST_RUNTIMES", cache)];
    if args.no_vm {
        env.push(("SMOLCELLAR_TEST_NO_VM", OsStr::new("1")));
    }
    say("running the tests");
    let mut words: Vec<&OsStr> = ["test", "--release", "--locked", "--workspace"].map(OsStr::new).to_vec();
    words.extend(args.args.iter().map(OsStr::new));
    Ok(if host::cargo(&words, &env)? { exit::OK } else { exit::FAILED })
}

/// Says what is missing before installing it. Without root, or without apt,
/// the tests that need it skip, each with a line; with CI=true they fail.
fn install_packages(session: &Session, args: &Test) -> Result<()> {
    let needed = NEEDS.iter().filter(|(program, _)| !(args.no_vm && program.starts_with("qemu")));
    let missing: Vec<&str> =
        needed.filter(|(program, _)| !host::has(program)).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if host::has("apt-get") && host::is_root()? {
        session
            .progress
            .report(Event::Note { text: &format!("installing Debian packages for the tests, once: {list}") });
        return host::apt_install(&missing);
    }
    let text = format!("tests will skip what is not installed; get it with `sudo apt-get install {list}`");
    session.progress.report(Event::Warn { text: &text });
    Ok(())
}
