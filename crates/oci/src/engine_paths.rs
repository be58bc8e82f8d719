//! The paths that a container engine owns.
//!
//! Docker puts placeholders over these in every container, so an exported
//! image shows the engine's and a saved one shows the image's. Neither counts
//! at run time: the engine masks them, and smolvm writes its own. One rule for
//! both routes makes their results equal:
//!
//! - `.dockerenv` and `dev/console` are left out;
//! - `etc/hosts`, `etc/hostname` and `etc/resolv.conf` are empty files of
//!   mode 0644, `etc/mtab` is a symlink to `/proc/mounts`;
//! - `dev`, `dev/pts`, `dev/shm`, `etc`, `proc` and `sys` exist; the image's
//!   modes and owners are kept, else they are root's with mode 0755;
//! - all of these have the modification time 0.

use crate::tree::{Content, Inode, Tree};

/// Brings the engine's paths into their canonical form.
pub(crate) fn settle(tree: &mut Tree) {
    // Keys have NUL in place of the slash; see `tree`.
    for key in [&b".dockerenv"[..], b"dev\0console"] {
        tree.remove(key);
    }
    for key in [&b"dev"[..], b"dev\0pts", b"dev\0shm", b"etc", b"proc", b"sys"] {
        match tree.get_mut(key) {
            Some(inode) if inode.content == Content::Directory => inode.mtime = 0,
            _ => replace(tree, key, Inode::plain(Content::Directory, 0o755)),
        }
    }
    for key in [&b"etc\0hosts"[..], b"etc\0hostname", b"etc\0resolv.conf"] {
        replace(tree, key, Inode::plain(Content::File { layer: 0, offset: 0, size: 0 }, 0o644));
    }
    let mounts = Content::Symlink(b"/proc/mounts"[..].into());
    replace(tree, b"etc\0mtab", Inode::plain(mounts, 0o777));
}

fn replace(tree: &mut Tree, key: &[u8], inode: Inode) {
    tree.remove(key);
    // Fails only past 2^32 inodes, and then reading the layers failed first.
    let _ = tree.put(key, inode, u32::MAX);
}
