use super::*;
use smolcellar_store::fsio;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

fn file(path: &Path, mode: u32) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    drop(fsio::create_new(path).unwrap());
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn libraries(dir: &Path) {
    for name in LIBRARIES {
        file(&dir.join(name), 0o755);
    }
}

fn root() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().canonicalize().unwrap();
    (dir, path)
}

#[test]
fn the_folder_of_a_wheel_is_a_runtime() {
    let (_dir, root) = root();
    file(&root.join("smol-vmm"), 0o755);
    libraries(&root);
    file(&root.join("agent-rootfs.tar.zst"), 0o644);
    let layout = Layout::of_folder(&root).unwrap();
    assert_eq!(layout.program, root.join("smol-vmm"));
    assert_eq!(layout.lib_dir, root);
    assert_eq!(layout.rootfs, RootfsSource::Archive(root.join("agent-rootfs.tar.zst")));
    // An unpacked one is preferred: it is what smolvm would use.
    file(&root.join("agent-rootfs/sbin/init"), 0o755);
    assert_eq!(Layout::of_folder(&root).unwrap().rootfs, RootfsSource::Folder(root.join("agent-rootfs")));
}

#[test]
fn the_folder_of_a_release_is_a_runtime_by_its_script() {
    let (_dir, root) = root();
    file(&root.join("smolvm"), 0o755);
    file(&root.join("smolvm-bin"), 0o755);
    libraries(&root.join("lib"));
    file(&root.join("agent-rootfs/sbin/init"), 0o755);
    let layout = Layout::of_folder(&root).unwrap();
    assert_eq!(layout.program, root.join("smolvm"));
    assert_eq!(layout.lib_dir, root.join("lib"));
    assert!(layout.parts.contains(&root.join("smolvm-bin")));
}

#[test]
fn what_is_missing_is_named() {
    let (_dir, root) = root();
    let problem = |root: &Path| Layout::of_folder(root).unwrap_err();
    assert!(problem(&root.join("none")).contains("no such folder"));
    assert!(problem(&root).contains("no smol-vmm"));
    file(&root.join("smol-vmm"), 0o644);
    assert!(problem(&root).contains("not executable"));
    fs::set_permissions(root.join("smol-vmm"), fs::Permissions::from_mode(0o755)).unwrap();
    assert!(problem(&root).contains("agent-rootfs"));
    file(&root.join("agent-rootfs.tar.zst"), 0o644);
    assert!(problem(&root).contains("libkrun"));
}

/// `(where the program is on the PATH, where libraries and binary are)`.
fn install(root: &Path, home: &str) -> Surroundings {
    file(&root.join(home).join("smolvm-bin"), 0o755);
    libraries(&root.join(home).join("lib"));
    Surroundings { path: root.join("bin").into(), agent_rootfs: None, data_dir: None }
}

#[test]
fn a_package_a_nix_store_path_and_the_installers_link_are_all_followed() {
    for (home, linked) in
        [("lib/smolvm", false), ("libexec/smolvm", false), ("libexec", false), ("opt/smolvm", true)]
    {
        let (_dir, root) = root();
        let surroundings = install(&root, home);
        if linked {
            file(&root.join(home).join("smolvm"), 0o755);
            fs::create_dir(root.join("bin")).unwrap();
            symlink(root.join(home).join("smolvm"), root.join("bin/smolvm")).unwrap();
        } else {
            file(&root.join("bin/smolvm"), 0o755);
        }
        file(&root.join(home).join("agent-rootfs/sbin/init"), 0o755);
        let program = surroundings.smolvm_on_path().unwrap();
        let layout = Layout::of_installed(&program, &surroundings).unwrap();
        assert_eq!(layout.program, root.join("bin/smolvm"));
        assert_eq!(layout.lib_dir, root.join(home).join("lib"));
        assert_eq!(layout.rootfs, RootfsSource::Folder(root.join(home).join("agent-rootfs")));
        assert!(layout.parts.contains(&root.join(home).join("smolvm-bin")));
    }
}

#[test]
fn the_agent_rootfs_is_where_the_environment_or_the_installer_put_it() {
    let (_dir, root) = root();
    let mut surroundings = install(&root, "lib/smolvm");
    file(&root.join("bin/smolvm"), 0o755);
    let program = root.join("bin/smolvm");
    assert!(Layout::of_installed(&program, &surroundings).unwrap_err().contains("agent rootfs"));
    surroundings.data_dir = Some(root.join("share"));
    file(&root.join("share/smolvm/agent-rootfs/sbin/init"), 0o755);
    let found = Layout::of_installed(&program, &surroundings).unwrap().rootfs;
    assert_eq!(found, RootfsSource::Folder(root.join("share/smolvm/agent-rootfs")));
    surroundings.agent_rootfs = Some(root.join("mine"));
    file(&root.join("mine/sbin/init"), 0o755);
    let found = Layout::of_installed(&program, &surroundings).unwrap().rootfs;
    assert_eq!(found, RootfsSource::Folder(root.join("mine")));
}

#[test]
fn only_an_executable_file_on_an_absolute_path_is_an_installed_smolvm() {
    let (_dir, root) = root();
    file(&root.join("a/smolvm"), 0o644);
    fs::create_dir_all(root.join("b/smolvm")).unwrap();
    let path =
        std::env::join_paths([Path::new("bin"), Path::new(""), &root.join("a"), &root.join("b")]).unwrap();
    let mut surroundings = Surroundings { path, ..Default::default() };
    assert_eq!(surroundings.smolvm_on_path(), None);
    file(&root.join("c/smolvm"), 0o755);
    surroundings.path = std::env::join_paths([root.join("a"), root.join("c")]).unwrap();
    assert_eq!(surroundings.smolvm_on_path(), Some(root.join("c/smolvm")));
}
