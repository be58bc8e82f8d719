//! The real container engine, and fakes of it for faults.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cellar::Cellar;
use crate::needs::which;

/// Runs docker, which must succeed; its output.
pub fn docker(args: &[&str]) -> String {
    let output = Command::new("docker").args(args).output().unwrap();
    assert!(output.status.success(), "docker {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// An image of a test's own, removed when dropped.
#[derive(Debug)]
pub struct Image {
    /// Its tag.
    pub tag: String,
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = Command::new("docker").args(["rmi", "--force", &self.tag]).output();
    }
}

/// Makes the project of a small agent `small`: a static busybox and a few
/// files, in several layers with everything that layers can do to each other.
/// No two projects share a layer: builds at the same time would take each
/// other's from the engine's cache and change their images.
#[must_use]
pub fn busybox_project(cellar: &Cellar) -> Image {
    let own = cellar.path("x").display().to_string();
    let tag = format!("smolcellar-test/{}", &smolcellar_store::Digest::of(own.as_bytes()).hex()[..16]);
    let busybox = which("busybox").unwrap();
    let context = cellar.project().join("ctx");
    std::fs::create_dir_all(context.join("data/deep/er")).unwrap();
    std::fs::copy(busybox, context.join("busybox")).unwrap();
    cellar.write("smolcellar.toml", &format!("[agent.small]\ncontext = \"ctx\"\nimage = \"{tag}\"\n"));
    cellar.write("ctx/data/own", &own);
    cellar.write("ctx/data/keep", "kept\n");
    cellar.write("ctx/data/gone", "to be removed\n");
    cellar.write("ctx/data/deep/er/file", "deep\n");
    cellar.write(
        "ctx/Dockerfile",
        r#"FROM scratch
COPY busybox /bin/busybox
COPY data /data
RUN ["/bin/busybox", "sh", "-c", "/bin/busybox --install -s /bin && mkdir -p /opaque/sub /tmp && echo a > /opaque/a && echo b > /opaque/sub/b && echo shared > /one && ln /one /two && mkfifo /pipe && mknod /null-here c 1 3 && chmod 4755 /bin/busybox && chown 1234:4321 /data/keep"]
RUN ["/bin/busybox", "sh", "-c", "rm -r /data/gone /opaque && mkdir /opaque && echo new > /opaque/new && rm /one && echo other > /one && ln -s ../data /opaque/link && mv /data/deep /data/moved"]
RUN ["/bin/busybox", "sh", "-c", "long=/x; for i in 1 2 3 4 5 6 7 8; do long=$long/a-rather-long-name-of-a-folder-$i; done; mkdir -p $long && echo long > $long/file && rm -r /tmp && echo now a file > /tmp"]
ENV GREETING=hello
WORKDIR /data
USER 1234:4321
ENTRYPOINT ["/bin/busybox"]
CMD ["id"]
"#,
    );
    Image { tag }
}

/// Puts a fake `docker` into a folder of its own: a script that gets docker's
/// arguments. `build` writes `id` to the ID file unless the script does more.
pub fn fake_docker(dir: &Path, script: &str) -> PathBuf {
    std::fs::create_dir_all(dir).unwrap();
    let path = dir.join("docker");
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}
