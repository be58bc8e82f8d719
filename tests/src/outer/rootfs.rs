//! The machine's root folder, and the disk that is made of it and of a job's files.

use super::{Job, find_program, output_of, program};
use anyhow::{Context as _, Result, bail, ensure};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Component, Path, PathBuf};

const INIT: &str = include_str!("init.sh");

const FOLDERS: &[&str] = &[
    "bin",
    "dev",
    "etc",
    "job",
    "out",
    "proc",
    "root",
    "run",
    "sbin",
    "sys",
    "tmp",
    "usr/bin",
    "usr/local/bin",
    "usr/sbin",
    "var/tmp",
];

const TEXTS: &[(&str, &str)] = &[
    ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
    ("etc/group", "root:x:0:\nnogroup:x:65534:\n"),
    ("etc/hosts", "127.0.0.1 localhost\n"),
    ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\n"),
    ("etc/resolv.conf", ""),
];

/// The C library and what else a Rust program is linked to. Copied from the host, because programs built here
/// may need its version.
const LIBRARIES: &[&str] = &[
    "ld-linux-x86-64.so.2",
    "libc.so.6",
    "libdl.so.2",
    "libgcc_s.so.1",
    "libm.so.6",
    "libpthread.so.0",
    "libresolv.so.2",
    "librt.so.1",
];

const LIBRARY_FOLDERS: &[&str] =
    &["/lib64", "/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/lib"];

/// What of this host goes into the root folder.
#[derive(Debug)]
pub(super) struct Root {
    busybox: PathBuf,
    /// Where each of [`LIBRARIES`] is: the linker looks at the same places inside.
    libraries: Vec<PathBuf>,
}

impl Root {
    /// Finds busybox and the libraries.
    pub(super) fn of_this_host() -> Result<Self> {
        let library = |name: &&str| {
            let found =
                LIBRARY_FOLDERS.iter().map(|folder| Path::new(folder).join(name)).find(|p| p.is_file());
            found.with_context(|| format!("this host has no {name}"))
        };
        let busybox = find_program("busybox").context("busybox is not installed")?;
        let libraries = LIBRARIES.iter().map(library).collect::<Result<_>>()?;
        Ok(Self { busybox, libraries })
    }

    /// Everything of the recipe that this module decides, with the state of the host's files.
    pub(super) fn recipe(&self) -> Result<String> {
        let mut recipe = format!("{FOLDERS:?} {TEXTS:?} {INIT}");
        for file in self.libraries.iter().chain([&self.busybox]) {
            let state = fs::metadata(file).with_context(|| format!("cannot look at {}", file.display()))?;
            recipe.push_str(&format!(" {} {} {}", file.display(), state.len(), state.mtime()));
        }
        Ok(recipe)
    }

    /// Makes the root folder at `root`.
    pub(super) fn build(&self, root: &Path) -> Result<()> {
        for folder in FOLDERS {
            make_folder(&root.join(folder))?;
        }
        for folder in ["tmp", "var/tmp"] {
            let all = fs::Permissions::from_mode(0o1777);
            fs::set_permissions(root.join(folder), all).with_context(|| format!("cannot open /{folder}"))?;
        }
        for (path, text) in TEXTS {
            fs::write(root.join(path), text).with_context(|| format!("cannot write /{path}"))?;
        }
        write_program(&root.join("sbin/outer-init"), INIT.as_bytes())?;

        let bytes =
            fs::read(&self.busybox).with_context(|| format!("cannot read {}", self.busybox.display()))?;
        // A program that needs libraries names its loader at its beginning.
        if bytes[..bytes.len().min(4096)].windows(9).any(|window| window == b"ld-linux-") {
            bail!("{} needs libraries: install busybox-static", self.busybox.display());
        }
        write_program(&root.join("bin/busybox"), &bytes)?;
        let applets = output_of(program("busybox")?.arg("--list"))?;
        for applet in String::from_utf8_lossy(&applets).lines().filter(|name| *name != "busybox") {
            symlink("busybox", root.join("bin").join(applet))
                .with_context(|| format!("cannot link the program {applet}"))?;
        }
        for library in &self.libraries {
            let inside = root.join(library.strip_prefix("/").unwrap_or(library));
            if let Some(folder) = inside.parent() {
                make_folder(folder)?;
            }
            fs::copy(library, &inside).with_context(|| format!("cannot copy {}", library.display()))?;
        }
        Ok(())
    }
}

/// Makes `disk.ext4` in `folder`: the root folder, the job's files, its script and its environment.
pub(super) fn make_disk(root: &Path, job: &Job, mark: &str, folder: &Path) -> Result<()> {
    let tree = folder.join("tree");
    copy(root, &tree)?;
    for (guest, host) in &job.files {
        let host = fs::canonicalize(host).with_context(|| format!("cannot find {}", host.display()))?;
        let inside = below(&tree, guest)?;
        if let Some(parent) = inside.parent() {
            make_folder(parent)?;
        }
        copy(&host, &inside)?;
    }
    for (name, text) in [("script", &job.script), ("mark", &mark.to_owned()), ("env", &exports(&job.env)?)] {
        fs::write(tree.join("job").join(name), text).with_context(|| format!("cannot write /job/{name}"))?;
    }
    let owner = fs::metadata(&tree).with_context(|| format!("cannot look at {}", tree.display()))?.uid();
    if owner != 0 {
        fs::write(tree.join("job/chown"), "").context("cannot write /job/chown")?;
    }
    // No journal: nothing outlives the machine, so nothing need be recovered.
    let mut command = program("mke2fs")?;
    command.args(["-q", "-F", "-t", "ext4", "-m", "0", "-O", "^has_journal,^resize_inode"]);
    command.args(["-E", "lazy_itable_init=1,root_owner=0:0", "-d"]).arg(&tree).arg(folder.join("disk.ext4"));
    output_of(command.arg(format!("{}G", job.disk_gib))).context("cannot make the disk")?;
    fs::remove_dir_all(&tree).with_context(|| format!("cannot remove {}", tree.display()))
}

/// Copies a file or what is in a folder, around the holes. What is there already is replaced, never written
/// to: the root folder's programs are links to a single file.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut command = program("cp")?;
    command.args(["-aT", "--remove-destination", "--sparse=always", "--reflink=auto"]).arg(from).arg(to);
    output_of(&mut command).map(drop)
}

/// The place of an absolute path of the machine below the folder that becomes its root.
fn below(tree: &Path, guest: &str) -> Result<PathBuf> {
    let mut inside = tree.to_owned();
    let mut parts = Path::new(guest).components();
    ensure!(parts.next() == Some(Component::RootDir), "the path {guest:?} is not absolute");
    for part in parts {
        match part {
            Component::Normal(name) => inside.push(name),
            _ => bail!("the path {guest:?} is not a plain one"),
        }
        // A link would lead out of the folder, into this host.
        let linked = inside.symlink_metadata().is_ok_and(|state| state.is_symlink());
        ensure!(!linked, "the path {guest:?} leads through a symbolic link");
    }
    ensure!(inside != tree, "the root itself cannot be replaced");
    Ok(inside)
}

/// Shell commands that set the environment.
fn exports(env: &[(String, String)]) -> Result<String> {
    let mut text = String::new();
    for (name, value) in env {
        let plain = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        ensure!(plain && !value.contains('\0'), "{name:?} cannot be set by a shell");
        text.push_str(&format!("export {name}='{}'\n", value.replace('\'', r"'\''")));
    }
    Ok(text)
}

fn make_folder(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))
}

fn write_program(file: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(file, bytes).with_context(|| format!("cannot write {}", file.display()))?;
    let executable = fs::Permissions::from_mode(0o755);
    fs::set_permissions(file, executable).with_context(|| format!("cannot change {}", file.display()))
}
