//! Writes sound inputs for the fuzz targets to start from: `fuzz_seeds FOLDER`
//! makes FOLDER/<target>/….
#![expect(
    clippy::disallowed_methods,
    clippy::expect_used,
    reason = "writes files that may be made again, and a panic is how it fails"
)]

use std::fs;
use std::path::{Path, PathBuf};

use smolcellar_tests::archives::{Entry, docker_save, docker_save_25, file, oci_layout, special, tar};
use tar::EntryType;

fn main() {
    let folder = std::env::args_os().nth(1).map(PathBuf::from).expect("usage: seeds FOLDER");
    let put = |target: &str, name: &str, bytes: &[u8]| {
        let dir = folder.join(target);
        fs::create_dir_all(&dir).and_then(|()| fs::write(dir.join(name), bytes)).expect("written");
    };
    let lower = tar(&[
        special("d/", EntryType::Directory, ""),
        file("d/a", b"one"),
        special("d/hard", EntryType::Link, "d/a"),
        special("l", EntryType::Symlink, "d"),
        special("fifo", EntryType::Fifo, ""),
        pax(b"30 mtime=1700000000.5\n22 SCHILY.xattr.user.k=v\n"),
        file("x", b""),
    ]);
    let upper = tar(&[file("d/.wh.a", b""), file("l/b", b"two"), file("d/.wh..wh..opq", b"")]);
    put("layer", "two", &[lower.clone(), upper.clone()].concat());
    put("layer", "one", &lower);
    let layers = [lower, upper];
    put("archive", "save", &tar(&docker_save(&layers)));
    put("archive", "save-25", &tar(&docker_save_25(&layers)));
    put("archive", "oci", &tar(&oci_layout(&layers, <[u8]>::to_vec)));
    for (name, text) in [("inspect", INSPECT), ("ls", LS), ("version", "smolvm 1.32.2\n"), ("path", "/a/b\n")]
    {
        put("answers", name, text.as_bytes());
    }
    let artifact = artifact(&folder);
    put("artifact", "artifact", &artifact);
    put("remote", "artifact", &artifact);
    let (manifest, receipt) = remote(&artifact);
    put("remote", "manifest", &manifest);
    put("remote", "receipt", receipt.as_bytes());
    put("remote", "pointer", &pointer());
    put("registries", "manifest", &manifest);
    for (number, text) in registries().iter().enumerate() {
        put("registries", &format!("text-{number:02}"), text.as_bytes());
    }
}

const INSPECT: &str =
    r#"{"Id":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","Size":5}"#;
const LS: &str = r#"[{"name":"m","state":"running","pid":7}]"#;

/// What registries and their clients say, and are told: one thing of each kind.
fn registries() -> Vec<String> {
    let digest = smolcellar_store::Digest::of(b"blob");
    let fixed = [
        r#"Bearer realm="https://a.x/token",service="r",scope="repository:a/b:pull,push", Basic realm="\"q\"""#,
        r#"{"auths":{"h.x:5000":{"auth":"dTpw"},"https://index.docker.io/v1/":{"username":"u","password":"p"},"h.x:5000/team":{"identitytoken":"i"}}}"#,
        r#"{"credHelpers":{"h.x:5000":"lab"},"credsStore":"pass"}"#,
        r#"{"errors":[{"code":"DENIED","message":"no way","detail":{}}]}"#,
        r#"</v2/a/tags/list?n=2&last=b>; rel="next""#,
        "/v2/a/blobs/uploads/1?x=y\nhttps://h.x:443/v2/",
        "https://s.y:444/p?signature=z#f\nhttps://h.x/v2/a",
        "bytes 0-9/10",
        "bytes=2-5\n10",
        "bytes=-3\n10",
        "0-9",
        "digest=sha256%3Aab&mount=x&from=a/b&n=5",
        "/v2/_catalog",
        "/v2/a/b/tags/list",
        "/v2/a/blobs/uploads/0f",
        "127.0.0.1:5000\nhttp://localhost:5000/v2/",
        "localhost:5000",
        "[::1]:5000",
        "http://[::1]:5000/team/agent:v1",
    ];
    let named = [
        format!("h.x:5000/team/agent:v1@{digest}"),
        format!("/v2/a/manifests/{digest}"),
        format!("/v2/a/referrers/{digest}"),
        digest.to_string(),
    ];
    fixed.map(str::to_owned).into_iter().chain(named).collect()
}

fn pax(records: &[u8]) -> Entry {
    Entry { kind: EntryType::XHeader, ..file("PaxHeaders", records) }
}

/// The manifest that a registry keeps of an artifact, and its receipt.
fn remote(artifact: &[u8]) -> (Vec<u8>, String) {
    use smolcellar_store::{Digest, MachineReceipt};
    let inputs = [("cpus".to_owned(), 2.into()), ("packer".to_owned(), "native".into())].into();
    let entry = smolcellar_transfer::MachineEntry {
        image: Digest::of(b"image"),
        recipe: MachineReceipt::recipe_of(&inputs),
        inputs,
        size: artifact.len() as u64,
        sha256: Digest::of(artifact),
        agent: "agent".into(),
    };
    let manifest = smolcellar_remote::artifact::manifest(&entry, 7, b"{}", "container").expect("a manifest");
    (manifest.to_bytes(), entry.to_text())
}

fn pointer() -> Vec<u8> {
    use smolcellar_store::{Digest, MachineKey};
    let key = MachineKey { image: Digest::of(b"image"), recipe: Digest::of(b"recipe") };
    smolcellar_remote::artifact::pointer(&Digest::of(b"seen"), &key).to_bytes()
}

/// A whole artifact, as the packer writes it.
fn artifact(folder: &Path) -> Vec<u8> {
    use smolcellar_oci::{ImageId, Platform};
    use smolcellar_pack::{AgentRootfs, MachineSpec};
    let path = folder.join("layer.tar");
    fs::write(&path, tar(&[file("a", b"one")])).expect("written");
    let layer = fs::File::open(path).expect("a file");
    let rootfs = smolcellar_oci::flatten(vec![layer]).expect("a sound layer");
    let agent = folder.join("agent.tar");
    fs::write(&agent, b"agent").expect("written");
    let agent = AgentRootfs { path: agent, size: 5, digest: smolcellar_store::Digest::of(b"agent") };
    let spec = MachineSpec {
        image: ImageId::of_config(b"{}"),
        platform: Platform::guest(),
        host_platform: "linux/amd64".into(),
        entrypoint: vec!["/agent".into()],
        cmd: vec![],
        env: vec!["A=b".into()],
        workdir: None,
        user: None,
        cpus: 1,
        memory_mib: 512,
        created: "2026-01-01T00:00:00Z".into(),
        smolvm_version: "1.32.2".into(),
        level: 1,
    };
    let path = folder.join("seed.smolmachine");
    let mut out =
        fs::File::options().create(true).truncate(true).read(true).write(true).open(&path).expect("a file");
    smolcellar_pack::pack(&spec, &rootfs, &agent, &mut out, &smolcellar_store::Quiet).expect("packed");
    fs::read(path).expect("its bytes")
}
