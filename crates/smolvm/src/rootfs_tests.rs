use super::*;
use crate::unpack::unpack;
use std::os::unix::fs::{PermissionsExt, symlink};

fn touch(path: &Path, bytes: &[u8], mode: u32) {
    let mut file = fsio::create_new(path).unwrap();
    file.write_all(bytes).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn canonical(folder: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    let (digest, size) = write_canonical(folder, &mut bytes, Path::new("x")).unwrap();
    assert_eq!(size, bytes.len() as u64);
    assert_eq!(digest, Digest::of(&bytes));
    bytes
}

/// A folder with one of everything, as another installer may have left it.
fn sample(folder: &Path) {
    for dir in ["sbin", "bin", "bin/sub", "proc"] {
        fs::create_dir(folder.join(dir)).unwrap();
        fs::set_permissions(folder.join(dir), fs::Permissions::from_mode(0o755)).unwrap();
    }
    touch(&folder.join("sbin/init"), b"#!/bin/sh\n", 0o755);
    touch(&folder.join("bin/busybox"), &[1; 1000], 0o4755);
    touch(&folder.join("bin.conf"), b"", 0o644);
    touch(&folder.join(format!("bin/sub/{}", "long".repeat(30))), b"far", 0o600);
    symlink("../bin//busybox/.", folder.join("sbin/link")).unwrap();
    symlink(format!("{}z", "abcdefghi/".repeat(13)), folder.join("sbin/longlink")).unwrap();
    fs::hard_link(folder.join("bin/busybox"), folder.join("bin/hard")).unwrap();
    fs::set_permissions(folder.join("proc"), fs::Permissions::from_mode(0o555)).unwrap();
}

/// The same as the release ships it: `./` in front, other owners and times,
/// another order, a hard link.
fn release_archive(folder: &Path) -> Vec<u8> {
    let mut tar = tar::Builder::new(zstd::Encoder::new(Vec::new(), 1).unwrap());
    tar.follow_symlinks(false);
    let mut all = entries(folder).unwrap();
    all.sort_by_key(|entry| (!entry.metadata.is_dir(), std::cmp::Reverse(entry.path.clone())));
    all.sort_by_key(|entry| if entry.metadata.is_dir() { entry.path.components().count() } else { 99 });
    for entry in all {
        let mut header = Header::new_gnu();
        header.set_metadata(&entry.metadata);
        header.set_uid(1001);
        header.set_gid(118);
        header.set_username("runner").unwrap();
        header.set_mtime(1_700_000_000);
        let name = Path::new("./").join(&entry.path);
        if entry.path == Path::new("bin/busybox") {
            header.set_entry_type(EntryType::Link);
            header.set_size(0);
            tar.append_link(&mut header, name, "./bin/hard").unwrap();
        } else if entry.metadata.is_symlink() {
            let target = fs::read_link(folder.join(&entry.path)).unwrap();
            header.set_entry_type(EntryType::Symlink);
            header.set_size(0);
            if target.as_os_str().len() < 100 {
                header.set_link_name_literal(target.as_os_str().as_bytes()).unwrap();
                tar.append_data(&mut header, name, io::empty()).unwrap();
            } else {
                tar.append_link(&mut header, name, target).unwrap();
            }
        } else if entry.metadata.is_dir() {
            tar.append_data(&mut header, name, io::empty()).unwrap();
        } else {
            tar.append_data(&mut header, name, fsio::open(&folder.join(&entry.path)).unwrap()).unwrap();
        }
    }
    tar.into_inner().unwrap().finish().unwrap()
}

#[test]
fn the_release_archive_and_a_folder_of_it_have_one_canonical_archive() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("folder");
    fs::create_dir(&folder).unwrap();
    sample(&folder);
    let expected = canonical(&folder);

    let archive = dir.path().join("agent-rootfs.tar.zst");
    fsio::write_atomic(dir.path(), &archive, &release_archive(&folder)).unwrap();
    let unpacked = dir.path().join("unpacked");
    fs::create_dir(&unpacked).unwrap();
    unpack(&archive, &unpacked).unwrap();
    assert!(canonical(&unpacked) == expected);

    // And from its own canonical archive again.
    let again = dir.path().join("agent-rootfs.tar");
    fsio::write_atomic(dir.path(), &again, &expected).unwrap();
    let unpacked = dir.path().join("again");
    fs::create_dir(&unpacked).unwrap();
    unpack(&again, &unpacked).unwrap();
    assert!(canonical(&unpacked) == expected);
}

#[test]
fn what_running_machines_leave_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path());
    let expected = canonical(dir.path());
    touch(&dir.path().join(".smolvm-ready"), b"", 0o644);
    touch(&dir.path().join(".smolvm-ready.0a1b"), b"1", 0o644);
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("proc.sock")).unwrap();
    assert!(canonical(dir.path()) == expected);
}

#[test]
fn the_canonical_archive_is_what_its_description_says() {
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path());
    let bytes = canonical(dir.path());
    let mut tar = tar::Archive::new(&bytes[..]);
    let mut seen = Vec::new();
    for entry in tar.entries().unwrap() {
        let entry = entry.unwrap();
        let header = entry.header();
        assert_eq!((header.uid().unwrap(), header.gid().unwrap(), header.mtime().unwrap()), (0, 0, 0));
        assert_eq!((header.username_bytes(), header.groupname_bytes()), (Some(&b""[..]), Some(&b""[..])));
        seen.push(String::from_utf8(entry.path_bytes().into_owned()).unwrap());
        match entry.path_bytes().as_ref() {
            b"bin/busybox" => assert_eq!((header.mode().unwrap(), header.size().unwrap()), (0o4755, 1000)),
            b"bin/hard" => {
                assert_eq!((header.entry_type(), header.size().unwrap()), (EntryType::Regular, 1000))
            }
            b"sbin/link" => assert_eq!(entry.link_name_bytes().unwrap().as_ref(), b"../bin//busybox/."),
            b"sbin/longlink" => assert_eq!(entry.link_name_bytes().unwrap().len(), 131),
            b"proc/" => assert_eq!(header.mode().unwrap(), 0o555),
            _ => {}
        }
    }
    let long = format!("bin/sub/{}", "long".repeat(30));
    let expected = [
        "bin/",
        "bin/busybox",
        "bin/hard",
        "bin/sub/",
        &long,
        "bin.conf",
        "proc/",
        "sbin/",
        "sbin/init",
        "sbin/link",
        "sbin/longlink",
    ];
    assert_eq!(seen, expected);
    assert_eq!(bytes.len() % TAR_BLOCK, 0);
}

#[test]
fn another_mode_content_or_target_is_another_digest() {
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path());
    let before = canonical(dir.path());
    fs::set_permissions(dir.path().join("bin.conf"), fs::Permissions::from_mode(0o600)).unwrap();
    assert!(canonical(dir.path()) != before);
    fs::set_permissions(dir.path().join("bin.conf"), fs::Permissions::from_mode(0o644)).unwrap();
    assert!(canonical(dir.path()) == before);
    fs::remove_file(dir.path().join("sbin/link")).unwrap();
    symlink("elsewhere", dir.path().join("sbin/link")).unwrap();
    assert!(canonical(dir.path()) != before);
}
