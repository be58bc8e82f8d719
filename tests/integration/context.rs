//! What a build context holds, against what the engine's own build copies.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use smolcellar_engine::context::{Builder, ContextSpec, FileKind, Listed, list};
use smolcellar_store::Digest;
use smolcellar_tests::engine::{Image, docker};
use smolcellar_tests::needs::{Need, have};

/// Path: kind, mode, digest.
type Files = BTreeMap<String, (char, u32, Option<Digest>)>;

/// Contents of an ignore file, and the Dockerfile's place where it matters.
const TRICKY: [(&str, &str); 21] = [
    ("# only a comment\n\n", "Dockerfile"),
    ("\u{feff}# c\na.txt\r\n  b.md\t\n #odd\n", "Dockerfile"),
    ("**\n", "Dockerfile"),
    ("*\n!src\n", "Dockerfile"),
    ("*\n!src/deep/keep.txt\nDockerfile\n", "Dockerfile"),
    ("Dockerfile\n.dockerignore\n", "Dockerfile"),
    ("**/*.md\n!**/README.md\nsrc/**/README.md\n", "Dockerfile"),
    ("node_modules\n!**/keep.txt\n", "Dockerfile"),
    ("src\n!src/deep\nsrc/deep/x*\n", "Dockerfile"),
    ("/src/../node_modules/./\n./a.txt/\n//b.md\n", "Dockerfile"),
    ("[a-b].*\n?.txt\n\\*star\n[^a-z]*\n", "Dockerfile"),
    ("src/**\n!src/deep/**/keep.txt\n", "Dockerfile"),
    ("**/deep/**\nsrc**\n", "Dockerfile"),
    ("**keep.txt\n**.md\n", "Dockerfile"),
    ("src/**/x.rs\nnode_modules/*\n!node_modules/pkg\n", "Dockerfile"),
    ("*/deep\n!src\n", "Dockerfile"),
    ("src[^x]deep\n", "Dockerfile"),
    ("a.txt\n!a.txt\nlink\nfifo\n!  /fifo\n", "Dockerfile"),
    ("docker\nsrc/deep\n", "docker/Dockerfile"),
    ("*\n", "docker/Dockerfile"),
    ("**\n!docker\n!**/x.rs\n", "docker/Dockerfile"),
];

fn context(ignore: &str, dockerfile: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().display().to_string();
    let files = [
        (".dockerignore", ignore),
        ("a.txt", &own),
        ("b.md", "b"),
        ("*star", "star"),
        ("#odd", "odd"),
        ("README.md", "readme"),
        ("src/main.rs", "main"),
        ("src/README.md", "nested"),
        ("src/deep/keep.txt", "keep"),
        ("src/deep/x.rs", "x"),
        ("src/deep/er/keep.txt", "deeper"),
        ("src/deep/er/x.rs", "xx"),
        ("node_modules/keep.txt", "kept"),
        ("node_modules/pkg/index.js", "js"),
        ("docker/keep.txt", "beside"),
        ("Dockerfile", "FROM scratch\nCOPY . /\n"),
        (dockerfile, "FROM scratch\nCOPY . /\n"),
    ];
    for (path, text) in files {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    symlink("../src", dir.path().join("link")).unwrap();
    make_fifo(&dir.path().join("fifo"));
    let mode = |path: &str, mode| {
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(dir.path().join(path), mode).unwrap();
    };
    mode("src/main.rs", 0o4755);
    mode("node_modules/pkg", 0o700);
    mode("node_modules", 0o750);
    mode("b.md", 0o600);
    dir
}

fn make_fifo(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

/// What the image holds, without what the engine adds to every container.
fn built(dir: &Path, dockerfile: &str) -> Files {
    let tag = format!("smolcellar-test/{}", &Digest::of(dir.to_string_lossy().as_bytes()).hex()[..16]);
    let image = Image { tag };
    let file = dir.join(dockerfile).display().to_string();
    let context = dir.display().to_string();
    let output = Command::new("docker")
        .env("DOCKER_BUILDKIT", "0")
        .args(["build", "--quiet", "--tag", &image.tag, "--file", &file, &context])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Not `save`: how layers are kept differs between engines, and an image of
    // nothing cannot be saved.
    let container = docker(&["create", "--network", "none", &image.tag, "/nothing"]);
    let exported = dir.with_extension("tar");
    docker(&["export", "--output", exported.to_str().unwrap(), container.trim()]);
    docker(&["rm", container.trim()]);
    let mut files = read_tar(&std::fs::read(&exported).unwrap());
    std::fs::remove_file(exported).unwrap();
    let of_the_engine = [".dockerenv", "dev", "etc", "proc", "sys", ""];
    files.retain(|path, _| !of_the_engine.contains(&path.split('/').next().unwrap_or_default()));
    files
}

fn read_tar(bytes: &[u8]) -> Files {
    let mut files = Files::new();
    let mut archive = tar::Archive::new(bytes);
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().display().to_string();
        let path = path.trim_start_matches("./").trim_end_matches('/').to_owned();
        let mode = entry.header().mode().unwrap() & 0o7777;
        let mut contents = Vec::new();
        entry.read_to_end(&mut contents).unwrap();
        let link = entry.link_name().unwrap().map(|target| Digest::of(target.as_os_str().as_encoded_bytes()));
        let file = match entry.header().entry_type() {
            tar::EntryType::Regular => ('f', mode, Some(Digest::of(&contents))),
            tar::EntryType::Directory => ('d', mode, None),
            tar::EntryType::Symlink => ('l', 0, link),
            _ => ('o', mode, None),
        };
        files.insert(path, file);
    }
    files
}

fn listed(dir: &Path, dockerfile: &str) -> Files {
    let dockerfile = dir.join(dockerfile);
    let spec = ContextSpec {
        context: dir,
        dockerfile: Some(&dockerfile),
        builder: Builder::Classic,
        count_limit: 100,
    };
    let Listed::All { listing, .. } = list(&spec, None).unwrap() else { panic!("too many") };
    let files = listing.files.iter().map(|(path, file)| {
        let mode = u32::from(file.mode);
        let file = match file.kind {
            // The engine gives copies to root, at which the kernel takes away
            // the bits that act as the owner.
            FileKind::File => ('f', mode & 0o1777, file.digest),
            FileKind::Folder => ('d', mode, None),
            FileKind::Link => ('l', 0, file.digest),
            FileKind::Other => ('o', mode, None),
        };
        (path.to_string(), file)
    });
    files.collect()
}

#[test]
fn a_listing_of_the_context_is_what_the_engine_copies() {
    if !have(&[Need::Docker]) {
        return;
    }
    let mut wrong = Vec::new();
    for (ignore, dockerfile) in TRICKY {
        let dir = context(ignore, dockerfile);
        let (built, listed) = (built(dir.path(), dockerfile), listed(dir.path(), dockerfile));
        let only = |here: &Files, there: &Files| -> Vec<String> {
            let missing = here.iter().filter(|(path, file)| there.get(*path) != Some(file));
            missing.map(|(path, (kind, mode, _))| format!("{path} ({kind}{mode:o})")).collect()
        };
        let (copied, seen) = (only(&built, &listed), only(&listed, &built));
        if !copied.is_empty() || !seen.is_empty() {
            wrong.push(format!("{ignore:?} {dockerfile}: the engine copied {copied:?}, listed are {seen:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
