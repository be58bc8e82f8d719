use super::*;
use tar::{Builder, Header};

struct Made(Builder<Vec<u8>>);

impl Made {
    fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    /// Sets the fields by hand: `tar` refuses to write what an attacker would.
    fn add(mut self, kind: EntryType, name: &str, link: &str, mode: u32, data: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(data.len() as u64);
        header.set_cksum();
        self.0.append(&header, data).unwrap();
        self
    }

    fn unpack(self) -> (tempfile::TempDir, Result<()>) {
        let dir = tempfile::tempdir().unwrap();
        let archive = dir.path().join("a.tar");
        fsio::write_atomic(dir.path(), &archive, &self.0.into_inner().unwrap()).unwrap();
        fs::create_dir(dir.path().join("out")).unwrap();
        let result = unpack(&archive, &dir.path().join("out"));
        (dir, result)
    }

    fn refused(self, because: &str) {
        let (dir, result) = self.unpack();
        let error = result.expect_err(because).to_string();
        assert!(error.contains(because), "{error}");
        let outside: Vec<_> = names(dir.path()).into_iter().filter(|name| !name.starts_with("out")).collect();
        assert_eq!(outside, [Path::new("a.tar")]);
    }
}

use EntryType::{Directory, Fifo, Link, Regular, Symlink};

#[test]
fn files_folders_links_and_modes_come_out() {
    let (dir, result) = Made::new()
        .add(Directory, "./", "", 0o755, b"")
        .add(Directory, "./proc/", "", 0o555, b"")
        .add(Directory, "./bin/", "", 0o755, b"")
        .add(Regular, "./bin/busybox", "", 0o4755, b"program")
        .add(Symlink, "./bin/sh", "/bin/busybox", 0o777, b"")
        .add(Link, "./bin/hard", "./bin/busybox", 0o644, b"")
        .add(Regular, "./.smolvm-ready.abc", "", 0o644, b"")
        .unpack();
    result.unwrap();
    let out = dir.path().join("out");
    let mode = |name: &str| fs::symlink_metadata(out.join(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("proc"), mode("bin"), mode("bin/busybox")), (0o555, 0o755, 0o4755));
    assert_eq!(fs::read_link(out.join("bin/sh")).unwrap(), Path::new("/bin/busybox"));
    assert_eq!(fs::read(out.join("bin/hard")).unwrap(), b"program");
    assert!(!out.join(".smolvm-ready.abc").exists());
}

#[test]
fn nothing_is_written_outside() {
    Made::new().add(Regular, "../evil", "", 0o644, b"x").refused("leads out");
    Made::new().add(Regular, "/tmp/smolcellar-evil", "", 0o644, b"x").refused("leads out");
    let through = Made::new().add(Symlink, "a", "..", 0o777, b"").add(Regular, "a/evil", "", 0o644, b"x");
    through.refused("in no folder");
    let replaced = Made::new()
        .add(Directory, "a/", "", 0o755, b"")
        .add(Symlink, "a", "..", 0o777, b"")
        .add(Regular, "a/evil", "", 0o644, b"x");
    replaced.refused("comes twice");
    Made::new().add(Link, "a", "/etc/passwd", 0o644, b"").refused("leads out");
    Made::new().add(Link, "a", "../../etc/passwd", 0o644, b"").refused("leads out");
    let via = Made::new().add(Symlink, "s", "/etc/passwd", 0o777, b"").add(Link, "h", "s", 0o644, b"");
    via.refused("links to no file");
}

#[test]
fn what_does_not_belong_is_refused_not_skipped() {
    Made::new().add(Fifo, "pipe", "", 0o644, b"").refused("of a kind");
    Made::new().add(Regular, "a", "", 0o644, b"").add(Regular, "./a", "", 0o644, b"").refused("comes twice");
    Made::new().add(Regular, "no/folder", "", 0o644, b"").refused("in no folder");
    Made::new().add(Symlink, "a", "", 0o777, b"").refused("no target");
    Made::new().add(Directory, "./", "", 0o755, b"").refused("no files");
}

#[test]
fn a_cut_archive_is_refused() {
    let whole = Made::new().add(Regular, "a", "", 0o644, &[7; 5000]).0.into_inner().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("a.tar");
    fsio::write_atomic(dir.path(), &archive, &whole[..3000]).unwrap();
    fs::create_dir(dir.path().join("out")).unwrap();
    assert!(unpack(&archive, &dir.path().join("out")).is_err());
}
