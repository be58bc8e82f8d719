//! Image archives made by hand: sound ones, and ones that no tool would make.

use std::path::Path;

use serde_json::{Value, json};
use smolcellar_store::Digest;

/// A layer entry.
#[derive(Debug, Clone)]
pub struct Entry {
    /// As it will stand in the header, whatever it is.
    pub path: String,
    /// Its type.
    pub kind: tar::EntryType,
    /// Its target, for links.
    pub link: String,
    /// Its contents.
    pub data: Vec<u8>,
}

/// A file.
pub fn file(path: &str, data: &[u8]) -> Entry {
    Entry { path: path.into(), kind: tar::EntryType::Regular, link: String::new(), data: data.to_vec() }
}

/// A link or a folder.
pub fn special(path: &str, kind: tar::EntryType, link: &str) -> Entry {
    Entry { path: path.into(), kind, link: link.into(), data: Vec::new() }
}

/// A tar of entries. Paths are written as they are: no library would agree to
/// some of them.
pub fn tar(entries: &[Entry]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for entry in entries {
        let mut header = tar::Header::new_ustar();
        let raw = header.as_mut_bytes();
        raw[..entry.path.len()].copy_from_slice(entry.path.as_bytes());
        raw[157..157 + entry.link.len()].copy_from_slice(entry.link.as_bytes());
        header.set_entry_type(entry.kind);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(entry.data.len() as u64);
        header.set_cksum();
        builder.append(&header, &entry.data[..]).unwrap();
    }
    builder.into_inner().unwrap()
}

/// A config for these layers.
pub fn config(layers: &[Vec<u8>], architecture: &str) -> Vec<u8> {
    let diff_ids: Vec<String> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
    json!({
        "os": "linux", "architecture": architecture, "created": "2026-01-02T03:04:05Z",
        "config": { "Entrypoint": ["/agent"], "Env": ["A=b"] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    })
    .to_string()
    .into_bytes()
}

/// This machine's architecture in Go's words.
pub fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

/// The parts of a `docker save` of engine 24 and older.
pub fn docker_save(layers: &[Vec<u8>]) -> Vec<Entry> {
    let config = config(layers, architecture());
    let name = format!("{}.json", Digest::of(&config).hex());
    let paths: Vec<String> = (0..layers.len()).map(|n| format!("{n:064x}/layer.tar")).collect();
    let manifest = json!([{ "Config": name, "RepoTags": ["t:latest"], "Layers": paths }]);
    let mut parts: Vec<Entry> = paths.iter().zip(layers).map(|(path, layer)| file(path, layer)).collect();
    parts.push(file(&name, &config));
    parts.push(file("manifest.json", manifest.to_string().as_bytes()));
    parts
}

/// The parts of an OCI image layout; `stored` says how layers are kept.
pub fn oci_layout(layers: &[Vec<u8>], stored: impl Fn(&[u8]) -> Vec<u8>) -> Vec<Entry> {
    let blob = |bytes: &[u8]| file(&format!("blobs/sha256/{}", Digest::of(bytes).hex()), bytes);
    let descriptor = |kind: &str, bytes: &[u8]| -> Value {
        json!({ "mediaType": kind, "digest": Digest::of(bytes).to_string(), "size": bytes.len() })
    };
    let config = config(layers, architecture());
    let stored: Vec<Vec<u8>> = layers.iter().map(|layer| stored(layer)).collect();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": stored.iter().map(|s| descriptor("application/vnd.oci.image.layer.v1.tar", s)).collect::<Vec<_>>(),
    })
    .to_string();
    let index = json!({
        "schemaVersion": 2,
        "manifests": [descriptor("application/vnd.oci.image.manifest.v1+json", manifest.as_bytes())],
    });
    let mut parts = vec![
        file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#),
        file("index.json", index.to_string().as_bytes()),
        blob(&config),
        blob(manifest.as_bytes()),
    ];
    parts.extend(stored.iter().map(|stored| blob(stored)));
    parts
}

/// What `docker save` of engine 25 and newer writes: both conventions at once.
pub fn docker_save_25(layers: &[Vec<u8>]) -> Vec<Entry> {
    let mut parts = oci_layout(layers, <[u8]>::to_vec);
    let path = |bytes: &[u8]| format!("blobs/sha256/{}", Digest::of(bytes).hex());
    let config = path(&config(layers, architecture()));
    let paths: Vec<String> = layers.iter().map(|layer| path(layer)).collect();
    let manifest = json!([{ "Config": config, "RepoTags": null, "Layers": paths }]);
    parts.push(file("manifest.json", manifest.to_string().as_bytes()));
    parts
}

/// Writes parts as files of a folder.
pub fn unpack(parts: &[Entry], dir: &Path) {
    for part in parts {
        let path = dir.join(&part.path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, &part.data).unwrap();
    }
}
