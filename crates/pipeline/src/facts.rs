//! What an image build sees: everything that decides the image, as far as it
//! can be known without building.
//!
//! Two builds that see the same make the same image, as the engine's own build
//! cache takes it. So the digest of what was seen leads to the image
//! ([`crate::pointer`]), and the difference to the last build explains a miss.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::json;
use smolcellar_engine::context::{Builder, ContextListing, ContextSpec, Dockerfile, Listed, list};
use smolcellar_engine::{BuildSpec, Engine, Kind};
use smolcellar_store::{Digest, Hasher};

/// More files than this are not compared; the engine is asked instead.
const FILES: usize = 50_000;
/// The longest list of them, in bytes: half of what a file of the store may have.
const LIST: usize = 8 << 20;
/// What a file takes in that list beside its path, in bytes.
const LINE: usize = 110;
/// The largest Dockerfile that is read, in bytes.
const DOCKERFILE: u64 = 4 << 20;

/// What an image build sees.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BuildFacts {
    /// Which builder, and where it is.
    pub builder: String,
    /// The stage that is built; empty for the last.
    pub target: String,
    /// The platform that is asked for; empty for the engine's own.
    pub platform: String,
    /// Build arguments. Only the digests of their values: they may be secrets.
    pub build_args: BTreeMap<String, Digest>,
    /// The images that it starts or copies from, and the engine's IDs of them.
    pub bases: BTreeMap<String, Option<Digest>>,
    /// The files, if they could be listed.
    pub context: Option<ContextListing>,
    /// What decides the image too, and cannot be seen.
    pub unseen: Vec<String>,
}

impl BuildFacts {
    /// Looks at everything a build of `spec` would see. Files that have not
    /// changed since `previous` are not read again. The engine is asked only
    /// for images that the Dockerfile names.
    pub fn gather(spec: &BuildSpec, engine: &Engine, previous: Option<&Self>) -> Self {
        let digest = |(name, value): (&String, &String)| (name.clone(), Digest::of(value.as_bytes()));
        let mut facts = Self {
            builder: builder(engine),
            target: spec.target.clone().unwrap_or_default(),
            platform: spec.platform.clone().unwrap_or_default(),
            build_args: spec.build_args.iter().map(digest).collect(),
            bases: BTreeMap::new(),
            context: None,
            unseen: Vec::new(),
        };
        if facts.list(spec, previous.and_then(|facts| facts.context.as_ref())) {
            facts.bases(spec, engine);
        }
        facts.unseen.extend(ambiguous(spec, engine));
        facts
    }

    /// Whether all of it is still what it was when this was gathered: a build in
    /// between saw just this.
    pub(crate) fn still_hold(&self, spec: &BuildSpec, engine: &Engine) -> bool {
        let seen = self.fingerprint();
        seen.is_some() && Self::gather(spec, engine, Some(self)).fingerprint() == seen
    }

    /// The digest of all of it; `None` where that does not decide the image.
    pub fn fingerprint(&self) -> Option<Digest> {
        let context = self.context.as_ref().filter(|_| self.unseen.is_empty())?;
        let mut hasher = Hasher::new();
        let mut add = |text: &str| {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        };
        for text in ["smolcellar build 1", &self.builder, &self.target, &self.platform] {
            add(text);
        }
        add(&self.build_args.len().to_string());
        for (name, value) in &self.build_args {
            add(name);
            add(&value.hex());
        }
        for (name, id) in &self.bases {
            add(name);
            // An image that the engine has yet to get may be any.
            add(&id.as_ref()?.hex());
        }
        add(&context.fingerprint().hex());
        Some(hasher.finish())
    }

    /// The digest of what can be told of the sources on any machine: without the
    /// engine, and its IDs of the images that the Dockerfile names. It may be the
    /// same for two images; that is told when either is built.
    pub(crate) fn sources(&self) -> Digest {
        let listing = self.context.as_ref().map(ContextListing::fingerprint);
        let names: Vec<&String> = self.bases.keys().collect();
        let told = json!({
            "target": self.target, "platform": self.platform, "build-args": self.build_args,
            "bases": names, "context": listing, "unseen": self.unseen,
        });
        Digest::of(told.to_string().as_bytes())
    }

    fn list(&mut self, spec: &BuildSpec, previous: Option<&ContextListing>) -> bool {
        let builder = match buildkit() {
            Some(false) => Builder::Classic,
            Some(true) | None => Builder::BuildKit,
        };
        let dockerfile = spec.dockerfile.as_deref();
        let asked = ContextSpec { context: &spec.context, dockerfile, builder, count_limit: FILES };
        match list(&asked, previous) {
            Ok(Listed::All { listing, .. }) => {
                let size: usize = listing.files.keys().map(|path| path.as_bytes().len() + LINE).sum();
                match size <= LIST {
                    true => self.context = Some(listing),
                    false => self.unseen.push("the list of the build context's files is too long".into()),
                }
            }
            Ok(Listed::TooMany { count_limit }) => {
                self.unseen.push(format!("the build context has more than {count_limit} files"));
            }
            // The build will say it, if it is one.
            Err(error) => self.unseen.push(error.to_string()),
        }
        self.context.is_some()
    }

    fn bases(&mut self, spec: &BuildSpec, engine: &Engine) {
        let path = spec.dockerfile.clone().unwrap_or_else(|| spec.context.join("Dockerfile"));
        let dockerfile = match read(&path) {
            Ok(bytes) => Dockerfile::parse(&bytes),
            Err(error) => return self.unseen.push(format!("{}: {error}", path.display())),
        };
        self.unseen.extend(dockerfile.blind.iter().map(ToString::to_string));
        for image in dockerfile.images {
            let id = engine.inspect(&image).ok().flatten().map(|info| info.id);
            self.bases.insert(image, id);
        }
    }
}

/// Files that one builder follows and another does not, where it cannot be told
/// which one will build: what is ignored here might be seen there.
fn ambiguous(spec: &BuildSpec, engine: &Engine) -> Option<String> {
    let dockerfile = spec.dockerfile.clone().unwrap_or_else(|| spec.context.join("Dockerfile"));
    let mut own_ignore = dockerfile.into_os_string();
    own_ignore.push(".dockerignore");
    // Podman's, and Podman may be called docker.
    let mut files = vec![spec.context.join(".containerignore"), spec.context.join("Containerfile")];
    if engine.kind() == Kind::Podman || buildkit().is_none() {
        files.push(PathBuf::from(own_ignore));
    }
    let there = files.into_iter().find(|file| file.exists())?;
    Some(format!("{} is followed by some builders only", there.display()))
}

fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(DOCKERFILE).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Whether Docker builds with BuildKit, where its variable says so; it reads
/// that as Go's `strconv.ParseBool` does.
fn buildkit() -> Option<bool> {
    match std::env::var("DOCKER_BUILDKIT").ok()?.as_str() {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// What else decides how an engine builds.
fn builder(engine: &Engine) -> String {
    let kind = match engine.kind() {
        Kind::Docker => "docker",
        Kind::Podman => "podman",
    };
    let mut text = kind.to_owned();
    let names =
        ["DOCKER_HOST", "DOCKER_CONTEXT", "CONTAINER_HOST", "DOCKER_BUILDKIT", "DOCKER_DEFAULT_PLATFORM"];
    for name in names {
        if let Some(value) = std::env::var_os(name).filter(|value| !value.is_empty()) {
            text += &format!(" {name}={}", value.to_string_lossy());
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use smolcellar_store::fsio;

    fn put(dir: &Path, name: &str, text: &str) {
        let _ = std::fs::remove_file(dir.join(name));
        fsio::write_atomic(dir, &dir.join(name), text.as_bytes()).unwrap();
    }

    /// An engine that must not be asked anything.
    fn engine(name: &str) -> Engine {
        Engine::assumed(Some(name))
    }

    fn gather(dir: &Path, change: impl FnOnce(&mut BuildSpec)) -> BuildFacts {
        let mut spec = BuildSpec { context: dir.into(), tag: "t".into(), ..BuildSpec::default() };
        change(&mut spec);
        BuildFacts::gather(&spec, &engine("docker"), None)
    }

    #[test]
    fn each_input_of_a_build_changes_the_fingerprint_and_a_time_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        put(dir, "Dockerfile", "FROM scratch\nCOPY a /\n");
        put(dir, "a", "1");
        put(dir, ".dockerignore", "ignored\n");
        let seen = |change: fn(&mut BuildSpec)| gather(dir, change).fingerprint().unwrap();
        let first = seen(|_| {});
        put(dir, "a", "1");
        put(dir, "ignored", "anything");
        assert_eq!(seen(|_| {}), first);
        assert_eq!(seen(|spec| spec.tag = "another name".into()), first);
        let changes: [fn(&mut BuildSpec); 4] = [
            |spec| spec.target = Some("x".into()),
            |spec| spec.platform = Some("linux/arm64".into()),
            |spec| drop(spec.build_args.insert("A".into(), "1".into())),
            |spec| drop(spec.build_args.insert("A".into(), "2".into())),
        ];
        let mut all: Vec<_> = changes.map(seen).into();
        put(dir, "a", "2");
        all.push(seen(|_| {}));
        put(dir, "Dockerfile", "FROM scratch\nCOPY a /b\n");
        all.push(seen(|_| {}));
        all.push(first);
        let count = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn what_decides_the_image_and_cannot_be_seen_leaves_no_fingerprint() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        for text in [
            "# syntax=x/y\nFROM scratch\n",
            "FROM scratch\nADD https://example.org/x /\n",
            "ARG B\nFROM $B\n",
        ] {
            put(dir, "Dockerfile", text);
            let facts = gather(dir, |_| {});
            assert!(facts.fingerprint().is_none() && !facts.unseen.is_empty(), "{text}");
        }
        put(dir, "Dockerfile", "FROM scratch\n");
        assert!(gather(dir, |_| {}).fingerprint().is_some());
        let spec = BuildSpec { context: dir.into(), ..BuildSpec::default() };
        put(dir, ".containerignore", "");
        assert!(BuildFacts::gather(&spec, &engine("podman"), None).fingerprint().is_none());
        assert!(gather(dir, |_| {}).fingerprint().is_none(), "Podman may be called docker");
        std::fs::remove_file(dir.join(".containerignore")).unwrap();
        assert!(gather(dir, |_| {}).fingerprint().is_some());
        put(dir, "Dockerfile.dockerignore", "");
        assert!(gather(dir, |_| {}).fingerprint().is_none());
        assert!(gather(&dir.join("missing"), |_| {}).fingerprint().is_none());
    }

    #[test]
    fn files_that_change_during_a_build_are_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        put(dir, "Dockerfile", "FROM scratch\nCOPY a /\n");
        put(dir, "a", "1");
        let spec = BuildSpec { context: dir.into(), ..BuildSpec::default() };
        let facts = BuildFacts::gather(&spec, &engine("docker"), None);
        assert!(facts.still_hold(&spec, &engine("docker")));
        put(dir, "a", "2");
        assert!(!facts.still_hold(&spec, &engine("docker")));
    }
}
