//! Whether a folder is on a file system whose locks reach other machines, or
//! may not: there, `flock` may exclude only this machine's processes, or
//! nobody, and the store's promises would not hold.

use std::path::Path;

/// Kinds of file systems, as `/proc/self/mountinfo` names them, that other
/// machines may write to at the same time.
const NETWORK: [&str; 23] = [
    "9p",
    "afs",
    "beegfs",
    "ceph",
    "cifs",
    "coda",
    "davfs",
    "gfs2",
    "glusterfs",
    "gpfs",
    "lustre",
    "ncpfs",
    "nfs",
    "nfs4",
    "ocfs2",
    "orangefs",
    "prl_fs",
    "pvfs2",
    "smb3",
    "smbfs",
    "vboxsf",
    "virtiofs",
    "vmhgfs",
];

/// Kinds of FUSE file systems that are of this machine alone. Any other may be
/// anything.
const LOCAL_FUSE: [&str; 6] =
    ["fuse.fuse-overlayfs", "fuse.overlayfs", "fuse.bindfs", "fuse.gocryptfs", "fuse.encfs", "fuse.mergerfs"];

/// The kind of the file system that `path` is on, if other machines may write
/// to it, or nobody knows. Linux only: elsewhere it is not known how to tell.
pub(crate) fn network_kind(path: &Path) -> Option<String> {
    // The nearest folder that is there is where it would be made.
    let there = path.ancestors().find_map(|path| std::fs::canonicalize(path).ok())?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    kind_of(&mounts, &there).filter(|kind| is_network(kind))
}

fn is_network(kind: &str) -> bool {
    NETWORK.contains(&kind) || kind == "fuse" || (kind.starts_with("fuse.") && !LOCAL_FUSE.contains(&kind))
}

/// The kind of the file system that is mounted over `path`: of the mounts whose
/// point it is under, the longest, and of those the last (proc(5)).
fn kind_of(mounts: &str, path: &Path) -> Option<String> {
    let mount = |line: &str| {
        // ID parent major:minor root POINT options [optional fields] - KIND source options
        let (fields, rest) = line.split_once(" - ")?;
        let point = unescape(fields.split(' ').nth(4)?);
        let kind = rest.split(' ').next()?.to_owned();
        path.starts_with(&point).then_some((point.len(), kind))
    };
    mounts.lines().filter_map(mount).max_by_key(|(length, _)| *length).map(|(_, kind)| kind)
}

/// Mount points have white space and backslashes as octal escapes.
fn unescape(text: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = text.as_bytes();
    while let Some((byte, rest)) = bytes.split_first() {
        let escaped = rest.get(..3).filter(|_| *byte == b'\\');
        let code = escaped.and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(code) => {
                out.push(code);
                bytes = &rest[3..];
            }
            None => {
                out.push(*byte);
                bytes = rest;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MOUNTS: &str = "\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:26 / /home rw - nfs4 server:/home rw
31 30 0:27 / /home/me/a\\040b rw master:1 shared:2 - tmpfs tmpfs rw
32 22 0:28 / /s rw - fuse.sshfs host: rw
33 22 0:29 / /o rw - fuse.fuse-overlayfs fuse-overlayfs rw
34 22 0:30 / /s rw - ext4 /dev/vdb rw
";

    #[test]
    fn the_mount_that_is_over_a_path_decides() {
        let kind = |path: &str| kind_of(MOUNTS, Path::new(path)).unwrap();
        assert_eq!(kind("/var/cache"), "ext4");
        assert_eq!(kind("/home/me/.cache"), "nfs4");
        assert_eq!(kind("/home/me/a b/c"), "tmpfs");
        assert_eq!(kind("/homes"), "ext4");
        assert_eq!(kind("/s/x"), "ext4", "the last one hides those below");
        let refused = ["nfs", "nfs4", "cifs", "9p", "virtiofs", "fuse.sshfs", "fuse.unheard-of", "fuse"];
        assert!(refused.into_iter().all(is_network));
        assert!(
            !["ext4", "xfs", "tmpfs", "overlay", "btrfs", "zfs", "fuse.fuse-overlayfs", "fuseblk"]
                .into_iter()
                .any(is_network)
        );
    }

    #[test]
    fn this_machine_s_temporary_folder_is_its_own() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(network_kind(&dir.path().join("not/there/yet")), None);
    }

    proptest! {
        #[test]
        fn no_list_of_mounts_is_too_strange(mounts in ".{0,200}", path in "/.{0,20}") {
            let _ = kind_of(&mounts, Path::new(&path));
        }
    }
}
