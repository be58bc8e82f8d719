//! Launches in real containers: projects for them, and what they leave.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::cellar::{Cellar, Ran, program, ran, runtime};
use crate::engine::docker;

/// The sample agent, built from this repository's sources: a static program
/// that prints its environment, connects, serves.
pub fn sample_agent() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let project = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let cache = tempfile::tempdir().unwrap();
        let mut build = Command::new(program());
        build.args(["build-agent", "sample"]).current_dir(project).env("SMOLCELLAR_CACHE_DIR", cache.path());
        let built = ran(build.env("SMOLCELLAR_SMOLVM_DIR", runtime()).output().unwrap());
        assert_eq!(built.code, 0, "{built:?}");
        project.join("crates/sample-agent/target/release/smolcellar-sample-agent")
    })
}

/// A project whose only agent, of this name, is the sample agent; `more` is
/// added to its configuration. No two tests may use the same name.
#[must_use]
pub fn agent_project(name: &str, more: &str) -> Cellar {
    let cellar = Cellar::new();
    let text = format!("[agent.{name}]\ncontext = \"ctx\"\ncpus = 1\nmemory = 64\n{more}\n");
    cellar.write("smolcellar.toml", &text);
    for (folder, dockerfile) in [
        ("ctx", "WORKDIR /work\nENV AGENT=sample\nENTRYPOINT [\"/agent\"]\n"),
        ("gate", "ENTRYPOINT [\"/agent\"]\nCMD [\"serve\", \"7000\"]\n"),
    ] {
        // Of no other test's layers: see `busybox_project`.
        cellar.write(&format!("{folder}/own"), &cellar.path("x").display().to_string());
        let text = format!("FROM scratch\nCOPY own agent /\n{dockerfile}");
        cellar.write(&format!("{folder}/Dockerfile"), &text);
        std::fs::copy(sample_agent(), cellar.project().join(folder).join("agent")).unwrap();
    }
    cellar
}

/// `launch` in a container, without questions; its arguments follow.
pub fn launch(cellar: &Cellar, args: &[&str]) -> Command {
    let mut command = cellar.command(["launch", "--backend", "docker", "--yes"]);
    command.args(args);
    command
}

/// Runs it.
pub fn launched(cellar: &Cellar, args: &[&str]) -> Ran {
    ran(launch(cellar, args).output().unwrap())
}

/// Containers and networks of launches whose machines' names hold `word`.
pub fn left(word: &str) -> Vec<String> {
    let label = "label=dev.smolcellar.launch";
    let containers = docker(&["ps", "--all", "--filter", label, "--format", "{{.Names}}"]);
    let networks = docker(&["network", "ls", "--filter", label, "--format", "{{.Name}}"]);
    let all = containers.lines().chain(networks.lines());
    all.filter(|name| name.contains(word)).map(str::to_owned).collect()
}

/// Asserts that nothing of these launches is left, in the engine or the cache.
pub fn assert_nothing_left(cellar: &Cellar, word: &str) {
    assert_eq!(left(word), Vec::<String>::new());
    for folder in ["leases", "launches"] {
        let dir = cellar.cache().join(folder);
        let names: Vec<_> =
            std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.file_name()).collect();
        assert!(names.is_empty(), "{folder}: {names:?}");
    }
}

/// Waits until `ready` says something.
pub fn wait_for<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = ready() {
            return found;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "still no {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Removes what a test's launches left in the engine: its images, and whatever
/// a failed test left behind.
#[derive(Debug)]
pub struct Tidy {
    agent: String,
    store: String,
}

impl Tidy {
    /// For the agent of this name. Keep it beside the cellar.
    #[must_use]
    pub fn after(cellar: &Cellar, agent: &str) -> Self {
        let root = cellar.cache().display().to_string();
        let store = smolcellar_store::Digest::of(root.as_bytes()).hex()[..16].to_owned();
        Self { agent: agent.to_owned(), store }
    }

    /// The images of this store's artifacts, by ID.
    pub fn images(&self) -> Vec<String> {
        let filter = format!("label=dev.smolcellar.store={}", self.store);
        let ids = docker(&["images", "--quiet", "--filter", &filter]);
        ids.lines().map(str::to_owned).collect()
    }
}

impl Drop for Tidy {
    fn drop(&mut self) {
        let run = |args: &[&str]| drop(Command::new("docker").args(args).output());
        for name in left(&format!("-{}-", self.agent)) {
            run(&["rm", "-f", &name]);
            run(&["network", "rm", &name]);
        }
        let mut images = self.images();
        images.extend(["", "-sidecar"].map(|suffix| format!("smolcellar/{}{suffix}", self.agent)));
        for image in images {
            run(&["rmi", "-f", &image]);
        }
    }
}

const SIDECAR: &str = "[agent.NAME.sidecar]\ncontext = \"gate\"\nservices = [\"egress-proxy\"]\n\
                       ports = { http-proxy = 7000 }\n";

/// The configuration of a sidecar for the agent of an [`agent_project`]: the
/// sample agent, serving.
#[must_use]
pub fn sidecar(name: &str) -> String {
    SIDECAR.replace("NAME", name)
}

/// Sends a signal, as `kill` names it.
pub fn signal(child: &std::process::Child, name: &str) {
    let sent = Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}
