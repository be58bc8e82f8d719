//! A store as a registry, by the categories of the OCI conformance tests: pull,
//! push, content discovery, content management. A table of requests, in order;
//! and what a table cannot say.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests damage files, and a panic is how they report"
)]

mod client;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use client::{Reply, connect, get, parse, raw, request};
use serde_json::{Value, json};
use smolcellar_oci::{Descriptor, Manifest, image_manifest, media};
use smolcellar_registry::{Options, StoreServer};
use smolcellar_store::{BlobRef, Digest, MachineReceipt, OpenOptions, Quiet, StageReceipt, Store, fsio, gc};
use tempfile::TempDir;

struct Lab {
    server: StoreServer,
    store: Arc<Store>,
    _dir: TempDir,
}

impl Lab {
    fn new() -> Self {
        Self::with(false, Options::default())
    }

    fn with(read_only: bool, options: Options) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(&dir.path().join("c"), OpenOptions::default()).unwrap());
        let server = StoreServer::start(Arc::clone(&store), read_only, options).unwrap();
        Self { server, store, _dir: dir }
    }

    fn addr(&self) -> SocketAddr {
        self.server.addr()
    }

    fn ask(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        request(self.addr(), method, target, headers, body)
    }

    /// Pushes a blob in one request.
    fn push(&self, repository: &str, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        let target = format!("/v2/{repository}/blobs/uploads/?digest={digest}");
        assert_eq!(self.ask("POST", &target, &[], bytes).status, 201);
        digest
    }

    /// Pushes an image of one layer.
    fn push_image(&self, repository: &str, tag: &str, layer: &[u8]) -> Digest {
        let (config, digest) = (self.push(repository, CONFIG), self.push(repository, layer));
        let manifest = image_manifest((config, CONFIG.len() as u64), &[(digest, layer.len() as u64)]);
        let put = self.put(repository, tag, &manifest);
        assert_eq!(put.status, 201, "{put:?}");
        Digest::of(&manifest)
    }

    fn put(&self, repository: &str, which: &str, manifest: &[u8]) -> Reply {
        let parsed: Value = serde_json::from_slice(manifest).unwrap_or_default();
        let kind = parsed["mediaType"].as_str().unwrap_or(media::MANIFEST).to_owned();
        let target = format!("/v2/{repository}/manifests/{which}");
        self.ask("PUT", &target, &[("Content-Type", &kind)], manifest)
    }

    /// Begins an upload; its path.
    fn begin(&self, repository: &str) -> String {
        let begun = self.ask("POST", &format!("/v2/{repository}/blobs/uploads/"), &[], b"");
        assert_eq!((begun.status, begun.header("range")), (202, "0-0"));
        begun.header("location").to_owned()
    }

    /// Every file of the store that lies in a temporary folder.
    fn staged(&self) -> usize {
        let runs = std::fs::read_dir(self.store.root().join("tmp")).unwrap().flatten();
        let work = runs.flat_map(|run| std::fs::read_dir(run.path()).unwrap().flatten());
        work.filter(|entry| entry.path().is_dir())
            .flat_map(|work| std::fs::read_dir(work.path()).unwrap())
            .count()
    }
}

const CONFIG: &[u8] = b"{\"os\":\"linux\"}";

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n ^ (n >> 9) ^ (n >> 17)) as u8).collect()
}

/// What a table says of an answer.
struct Row {
    method: &'static str,
    target: String,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    status: u16,
    /// The error's code.
    code: &'static str,
}

fn row(method: &'static str, target: impl Into<String>, status: u16, code: &'static str) -> Row {
    Row { method, target: target.into(), headers: vec![], body: vec![], status, code }
}

impl Row {
    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn body(mut self, body: &[u8]) -> Self {
        self.body = body.to_vec();
        self
    }
}

fn run(lab: &Lab, rows: Vec<Row>) {
    for (number, row) in rows.into_iter().enumerate() {
        let headers: Vec<_> = row.headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let reply = lab.ask(row.method, &row.target, &headers, &row.body);
        let what = format!("row {number}: {} {}: {reply:?}", row.method, row.target);
        assert_eq!(reply.status, row.status, "{what}");
        if !row.code.is_empty() {
            assert_eq!(reply.code(), row.code, "{what}");
        }
        assert_eq!(reply.header("docker-distribution-api-version"), "registry/2.0", "{what}");
    }
}

#[test]
fn pull() {
    let lab = Lab::new();
    let layer = bytes(100_000);
    let manifest = lab.push_image("team/app", "v1", &layer);
    let (blob, lost) = (Digest::of(&layer), Digest::of(b"nowhere"));
    let get_blob = lab.ask("GET", &format!("/v2/team/app/blobs/{blob}"), &[], b"");
    assert!(get_blob.body == layer);
    assert_eq!(get_blob.header("docker-content-digest"), blob.to_string());
    let head = lab.ask("HEAD", &format!("/v2/team/app/manifests/{manifest}"), &[], b"");
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.header("content-type"), media::MANIFEST);
    let whole = get(lab.addr(), "/v2/team/app/manifests/v1");
    assert_eq!(Digest::of(&whole.body), manifest);
    assert_eq!(head.header("content-length"), whole.body.len().to_string());
    run(
        &lab,
        vec![
            row("GET", "/v2/", 200, ""),
            row("HEAD", "/v2/", 200, ""),
            row("GET", "/v2/team/app/manifests/v1", 200, "").with("Accept", media::MANIFEST),
            row("GET", "/v2/team/app/manifests/v1", 200, "").with("Accept", "text/html"),
            row("HEAD", "/v2/team/app/manifests/v1", 200, ""),
            row("GET", format!("/v2/team/app/manifests/{manifest}"), 200, ""),
            row("GET", "/v2/team/app/manifests/v2", 404, "MANIFEST_UNKNOWN"),
            row("HEAD", "/v2/team/app/manifests/v2", 404, ""),
            row("GET", format!("/v2/team/app/manifests/{lost}"), 404, "MANIFEST_UNKNOWN"),
            row("GET", format!("/v2/other/manifests/{manifest}"), 404, "MANIFEST_UNKNOWN"),
            row("HEAD", format!("/v2/team/app/blobs/{blob}"), 200, ""),
            row("GET", format!("/v2/team/app/blobs/{lost}"), 404, "BLOB_UNKNOWN"),
            row("HEAD", format!("/v2/team/app/blobs/{lost}"), 404, ""),
            row("GET", format!("/v2/team/app/blobs/{blob}"), 206, "").with("Range", "bytes=10-19"),
            row("GET", format!("/v2/team/app/blobs/{blob}"), 416, "SIZE_INVALID")
                .with("Range", "bytes=100000-"),
            row("GET", format!("/v2/team/app/blobs/{blob}"), 304, "")
                .with("If-None-Match", format!("\"{blob}\"")),
            row("GET", "/v2/team/app/blobs/sha256:12", 400, "DIGEST_INVALID"),
            row("GET", format!("/v2/team/app/blobs/sha512:{}", "0".repeat(128)), 400, "DIGEST_INVALID"),
            row("GET", "/v2/Team/manifests/v1", 400, "NAME_INVALID"),
            row("GET", "/v2/../../etc/passwd/manifests/v1", 400, "NAME_INVALID"),
            row("GET", "/v2/a/%2e%2e/b/manifests/v1", 400, "NAME_INVALID"),
            row("GET", "/v2/team/app/manifests/.x", 400, "TAG_INVALID"),
            row("GET", "/elsewhere", 404, "NAME_UNKNOWN"),
        ],
    );
}

#[test]
fn push_in_one_piece() {
    let lab = Lab::new();
    let (a, lost) = (Digest::of(b"a"), Digest::of(b"nowhere"));
    let target = |digest: &Digest| format!("/v2/app/blobs/uploads/?digest={digest}");
    let upload = lab.begin("app");
    let there = |status| row("HEAD", format!("/v2/app/blobs/{}", Digest::of(b"b")), status, "");
    run(
        &lab,
        vec![
            row("POST", target(&a), 201, "").body(b"a"),
            row("GET", format!("/v2/app/blobs/{a}"), 200, ""),
            row("POST", target(&lost), 400, "DIGEST_INVALID").body(b"a"),
            row("GET", format!("/v2/app/blobs/{lost}"), 404, "BLOB_UNKNOWN"),
            row("POST", "/v2/app/blobs/uploads/?digest=sha256:xyz", 400, "DIGEST_INVALID").body(b"a"),
            row("POST", "/v2/app/blobs/uploads/?digest=%zz", 400, "UNSUPPORTED").body(b"a"),
            // Begun, and then all at once.
            there(404),
            row("PUT", upload.clone(), 400, "DIGEST_INVALID").body(b"b"),
            row("PUT", format!("{upload}?digest={}", Digest::of(b"b")), 201, "").body(b"b"),
            there(200),
            // It is over.
            row("PUT", format!("{upload}?digest={}", Digest::of(b"b")), 404, "BLOB_UPLOAD_UNKNOWN")
                .body(b"b"),
            row("GET", upload.clone(), 404, "BLOB_UPLOAD_UNKNOWN"),
            row("PATCH", "/v2/app/blobs/uploads/never", 404, "BLOB_UPLOAD_UNKNOWN").body(b"b"),
            row("PUT", "/v2/app/blobs/uploads/", 405, "UNSUPPORTED"),
            row("POST", format!("/v2/app/blobs/{a}"), 405, "UNSUPPORTED"),
            row("PATCH", "/v2/app/manifests/v1", 405, "UNSUPPORTED"),
        ],
    );
    // Another digest ends an upload.
    let upload = lab.begin("app");
    run(
        &lab,
        vec![
            row("PUT", format!("{upload}?digest={lost}"), 400, "DIGEST_INVALID").body(b"x"),
            row("GET", upload, 404, "BLOB_UPLOAD_UNKNOWN"),
        ],
    );
    assert_eq!(lab.staged(), 2, "the two blobs, and nothing else");
}

#[test]
fn push_in_chunks() {
    let lab = Lab::new();
    let whole = bytes(3_000_000);
    let digest = Digest::of(&whole);
    let upload = lab.begin("app");
    let range = |first: usize, last: usize| format!("{first}-{last}");
    let mut at = 0;
    for piece in whole.chunks(1_300_000) {
        let next = range(at, at + piece.len() - 1);
        // Out of order first.
        let wrong = lab.ask("PATCH", &upload, &[("Content-Range", &range(at + 1, at + piece.len()))], piece);
        assert_eq!((wrong.status, wrong.code()), (416, "BLOB_UPLOAD_INVALID".into()));
        assert_eq!(wrong.header("location"), upload);
        let sent = lab.ask("PATCH", &upload, &[("Content-Range", &next)], piece);
        at += piece.len();
        assert_eq!((sent.status, sent.header("range")), (202, range(0, at - 1).as_str()));
        let status = lab.ask("GET", &upload, &[], b"");
        assert_eq!((status.status, status.header("range")), (204, range(0, at - 1).as_str()));
        assert_eq!(status.header("location"), upload);
    }
    let put = lab.ask("PUT", &format!("{upload}?digest={digest}"), &[], b"");
    assert_eq!((put.status, put.header("docker-content-digest")), (201, digest.to_string().as_str()));
    assert!(get(lab.addr(), put.header("location")).body == whole);
    // The last piece with the PUT; without lengths; as Docker does, without a range.
    let upload = lab.begin("app");
    assert_eq!(
        lab.ask("PATCH", &upload, &[("Transfer-Encoding", "chunked")], b"3\r\nabc\r\n0\r\n\r\n").status,
        202
    );
    let last = lab.ask(
        "PUT",
        &format!("{upload}?digest={}", Digest::of(b"abcd")),
        &[("Content-Range", "3-3")],
        b"d",
    );
    assert_eq!(last.status, 201);
    let other = lab.begin("app");
    let repository_of_another = other.replace("/app/", "/other/");
    run(
        &lab,
        vec![
            row("PATCH", repository_of_another, 404, "BLOB_UPLOAD_UNKNOWN").body(b"x"),
            row("PATCH", other.clone(), 400, "SIZE_INVALID").with("Content-Range", "0-9").body(b"x"),
            row("PATCH", other.clone(), 400, "BLOB_UPLOAD_INVALID")
                .with("Content-Range", "nonsense")
                .body(b"x"),
            row("POST", other.clone(), 405, "UNSUPPORTED"),
            row("DELETE", other.clone(), 204, ""),
            row("DELETE", other.clone(), 404, "BLOB_UPLOAD_UNKNOWN"),
        ],
    );
    // A range that lies about a body without a length: nothing of it is kept.
    for lie in ["0-1", "0-9"] {
        let upload = lab.begin("app");
        let headers = [("Content-Range", lie), ("Transfer-Encoding", "chunked")];
        let lied = lab.ask("PATCH", &upload, &headers, b"3\r\nabc\r\n0\r\n\r\n");
        assert_eq!((lied.status, lied.code()), (400, "SIZE_INVALID".into()), "{lie}");
        assert_eq!(lab.ask("GET", &upload, &[], b"").status, 404);
    }
}

#[test]
fn an_upload_that_was_cut_off_goes_on_where_it_was() {
    let lab = Lab::new();
    let whole = bytes(600_000);
    let upload = lab.begin("app");
    let mut half = connect(lab.addr());
    write!(half, "PATCH {upload} HTTP/1.1\r\nHost: {}\r\nContent-Length: 600000\r\n\r\n", lab.addr())
        .unwrap();
    half.write_all(&whole[..400_000]).unwrap();
    drop(half);
    let began = Instant::now();
    let received = loop {
        // While the request that was cut off still has it, nobody else may write.
        let status = lab.ask("GET", &upload, &[], b"");
        let received: usize = status.header("range").trim_start_matches("0-").parse().unwrap();
        let next = lab.ask(
            "PATCH",
            &upload,
            &[("Content-Range", &format!("{}-{}", received + 1, 599_999))],
            &whole[received + 1..],
        );
        match next.status {
            202 => break received + 1,
            409 | 416 => assert!(began.elapsed() < Duration::from_secs(5), "{next:?}"),
            _ => panic!("{next:?}"),
        }
    };
    assert!(received > 0 && received <= 400_000);
    assert_eq!(lab.ask("PUT", &format!("{upload}?digest={}", Digest::of(&whole)), &[], b"").status, 201);
}

#[test]
fn push_of_manifests() {
    let lab = Lab::new();
    let layer = b"layer";
    let digest = lab.push_image("app", "v1", layer);
    let config = Digest::of(CONFIG);
    let manifest =
        |size: u64, layer: &[u8]| image_manifest((config, CONFIG.len() as u64), &[(Digest::of(layer), size)]);
    let good = manifest(5, layer);
    let put = lab.put("app", &digest.to_string(), &good);
    assert_eq!((put.status, put.header("docker-content-digest")), (201, digest.to_string().as_str()));
    assert_eq!(get(lab.addr(), put.header("location")).body, good);
    let refused = |which: &str, bytes: &[u8], status: u16, code: &str| {
        let put = lab.put("app", which, bytes);
        assert_eq!(
            (put.status, put.code().as_str()),
            (status, code),
            "{}",
            String::from_utf8_lossy(&bytes[..bytes.len().min(99)])
        );
    };
    refused("v2", &manifest(7, b"nowhere"), 400, "MANIFEST_BLOB_UNKNOWN");
    refused("v2", &manifest(6, layer), 400, "MANIFEST_INVALID");
    refused("v2", b"{", 400, "MANIFEST_INVALID");
    refused("v2", br#"{"schemaVersion":1}"#, 400, "MANIFEST_INVALID");
    refused("v2", br#"{"schemaVersion":2,"manifests":[],"layers":[]}"#, 400, "MANIFEST_INVALID");
    refused("v2", &vec![b' '; (4 << 20) + 1], 413, "SIZE_INVALID");
    refused(&Digest::of(b"other").to_string(), &good, 400, "DIGEST_INVALID");
    let lied = lab.ask("PUT", "/v2/app/manifests/v2", &[("Content-Type", media::INDEX)], &good);
    assert_eq!((lied.status, lied.code()), (400, "MANIFEST_INVALID".into()));
    let index = |digest: Digest, size: u64| {
        let mut index = Manifest::new(media::INDEX);
        index.manifests = Some(vec![Descriptor::named(media::MANIFEST, digest, size)]);
        index.to_bytes()
    };
    refused("all", &index(Digest::of(b"nowhere"), 7), 400, "MANIFEST_BLOB_UNKNOWN");
    assert_eq!(get(lab.addr(), "/v2/app/manifests/v2").status, 404);
    assert_eq!(lab.put("app", "all", &index(digest, good.len() as u64)).status, 201);
    assert_eq!(get(lab.addr(), "/v2/app/manifests/all").header("content-type"), media::INDEX);
    // A tag moves.
    let next = lab.push_image("app", "v1", b"next layer");
    assert_eq!(get(lab.addr(), "/v2/app/manifests/v1").header("docker-content-digest"), next.to_string());
    assert_eq!(get(lab.addr(), &format!("/v2/app/manifests/{digest}")).status, 200);
    // Without a length, in chunks, and with a type that is said once.
    let mut plain: Value = serde_json::from_slice(&good).unwrap();
    plain.as_object_mut().unwrap().remove("mediaType");
    let plain = plain.to_string();
    let chunked = format!("{:x}\r\n{plain}\r\n0\r\n\r\n", plain.len());
    let headers = [("Content-Type", media::DOCKER_MANIFEST), ("Transfer-Encoding", "chunked")];
    assert_eq!(lab.ask("PUT", "/v2/app/manifests/plain", &headers, chunked.as_bytes()).status, 201);
    assert_eq!(get(lab.addr(), "/v2/app/manifests/plain").header("content-type"), media::DOCKER_MANIFEST);
    // Layers that need not be here are not asked for.
    let foreign = json!({ "schemaVersion": 2, "mediaType": media::MANIFEST,
        "config": { "mediaType": media::CONFIG, "digest": config, "size": CONFIG.len() },
        "layers": [{ "mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            "digest": Digest::of(b"elsewhere"), "size": 1, "urls": ["https://example.org/x"] }] });
    assert_eq!(lab.put("app", "foreign", foreign.to_string().as_bytes()).status, 201);
    assert_eq!(lab.staged(), 0, "all that was pushed is published");
    let verified = lab.store.verify(&Default::default(), &Quiet).unwrap();
    assert_eq!(verified.damaged, []);
}

#[test]
fn mounting_takes_what_is_there_and_begins_an_upload_for_the_rest() {
    let lab = Lab::new();
    let blob = lab.push("a", b"blob");
    let mount = |digest: &Digest, from: &str| {
        lab.ask("POST", &format!("/v2/b/blobs/uploads/?mount={digest}{from}"), &[], b"")
    };
    for from in ["&from=a", ""] {
        let mounted = mount(&blob, from);
        assert_eq!(
            (mounted.status, mounted.header("location")),
            (201, format!("/v2/b/blobs/{blob}").as_str())
        );
    }
    let begun = mount(&Digest::of(b"nowhere"), "&from=a");
    assert!(begun.status == 202 && begun.header("location").starts_with("/v2/b/blobs/uploads/"));
}

#[test]
fn content_discovery() {
    let lab = Lab::new();
    for tag in ["c", "a", "b", "0"] {
        lab.push_image("app", tag, b"layer");
    }
    lab.push_image("team/other", "x", b"layer");
    let json = |target: &str| get(lab.addr(), target).json();
    assert_eq!(json("/v2/app/tags/list"), json!({ "name": "app", "tags": ["0", "a", "b", "c"] }));
    let page = get(lab.addr(), "/v2/app/tags/list?n=2");
    assert_eq!(page.json()["tags"], json!(["0", "a"]));
    assert_eq!(page.header("link"), "</v2/app/tags/list?n=2&last=a>; rel=\"next\"");
    let rest = get(lab.addr(), "/v2/app/tags/list?n=2&last=a");
    assert_eq!((rest.json()["tags"].clone(), rest.header("link")), (json!(["b", "c"]), ""));
    assert_eq!(json("/v2/app/tags/list?n=0")["tags"], json!([]));
    assert_eq!(json("/v2/_catalog")["repositories"], json!(["app", "team/other"]));
    assert_eq!(
        get(lab.addr(), "/v2/_catalog?n=1").header("link"),
        "</v2/_catalog?n=1&last=app>; rel=\"next\""
    );
    assert_eq!(json("/v2/_catalog?n=1&last=app")["repositories"], json!(["team/other"]));
    run(
        &lab,
        vec![
            row("GET", "/v2/none/tags/list", 404, "NAME_UNKNOWN"),
            row("GET", "/v2/app/tags/list?n=x", 400, "PAGINATION_NUMBER_INVALID"),
            row("DELETE", "/v2/app/tags/list", 405, "UNSUPPORTED"),
            row("POST", "/v2/_catalog", 405, "UNSUPPORTED"),
            row("GET", "/v2/app/referrers/latest", 400, "DIGEST_INVALID"),
        ],
    );
}

#[test]
fn referrers_are_found_by_subject_and_by_type() {
    let lab = Lab::new();
    let subject = lab.push_image("app", "v1", b"layer");
    let empty = lab.push("app", b"{}");
    let mut digests = Vec::new();
    for (kind, by_config) in [("application/x.sbom", false), ("application/x.signature", true)] {
        let mut manifest = Manifest::new(media::MANIFEST);
        manifest.config = Some(Descriptor::named(if by_config { kind } else { media::EMPTY }, empty, 2));
        manifest.artifact_type = (!by_config).then(|| kind.to_owned());
        manifest.layers = Some(vec![]);
        manifest.subject = Some(Descriptor::named(media::MANIFEST, subject, 1));
        manifest.annotations = Some(BTreeMap::from([("kind".into(), kind.into())]));
        let bytes = manifest.to_bytes();
        let digest = Digest::of(&bytes);
        let put = lab.put("app", &digest.to_string(), &bytes);
        assert_eq!((put.status, put.header("oci-subject")), (201, subject.to_string().as_str()));
        digests.push((kind, digest));
    }
    let ask = |target: &str| get(lab.addr(), &format!("/v2/app/referrers/{target}"));
    let all = ask(&subject.to_string());
    assert_eq!((all.status, all.header("content-type")), (200, media::INDEX));
    assert_eq!(all.json()["manifests"].as_array().unwrap().len(), 2);
    assert_eq!((all.json()["schemaVersion"].clone(), all.header("oci-filters-applied")), (json!(2), ""));
    for (kind, digest) in digests {
        let found = ask(&format!("{subject}?artifactType={}", kind.replace('/', "%2F")));
        assert_eq!(found.header("oci-filters-applied"), "artifactType");
        let found = found.json()["manifests"].clone();
        assert_eq!(found.as_array().unwrap().len(), 1);
        assert_eq!(found[0]["digest"], json!(digest));
        assert_eq!(
            (&found[0]["artifactType"], &found[0]["annotations"]["kind"]),
            (&json!(kind), &json!(kind))
        );
    }
    // Of what nobody knows there are none, which is no error.
    let none = ask(&Digest::of(b"nowhere").to_string());
    assert_eq!((none.status, none.json()["manifests"].clone()), (200, json!([])));
}

#[test]
fn content_management() {
    let lab = Lab::new();
    let waiting = lab.push("app", b"waits");
    let (a, b) = (lab.push_image("app", "a", b"layer a"), lab.push_image("app", "b", b"layer b"));
    let layer = Digest::of(b"layer a");
    run(
        &lab,
        vec![
            row("DELETE", "/v2/app/manifests/a", 202, ""),
            row("GET", "/v2/app/manifests/a", 404, "MANIFEST_UNKNOWN"),
            row("DELETE", "/v2/app/manifests/a", 404, "MANIFEST_UNKNOWN"),
            row("GET", format!("/v2/app/manifests/{a}"), 200, ""),
            row("DELETE", format!("/v2/app/manifests/{a}"), 202, ""),
            row("GET", format!("/v2/app/manifests/{a}"), 404, "MANIFEST_UNKNOWN"),
            row("DELETE", format!("/v2/app/manifests/{a}"), 404, "MANIFEST_UNKNOWN"),
            // Its tag goes with it.
            row("DELETE", format!("/v2/app/manifests/{b}"), 202, ""),
            row("GET", "/v2/app/manifests/b", 404, "MANIFEST_UNKNOWN"),
            row("GET", "/v2/app/tags/list", 404, "NAME_UNKNOWN"),
            row("DELETE", format!("/v2/app/blobs/{waiting}"), 202, ""),
            row("GET", format!("/v2/app/blobs/{waiting}"), 404, "BLOB_UNKNOWN"),
            row("DELETE", format!("/v2/app/blobs/{waiting}"), 404, "BLOB_UNKNOWN"),
            row("DELETE", format!("/v2/app/blobs/{layer}"), 405, "UNSUPPORTED"),
        ],
    );
    // What nobody names any more is the collector's.
    let policy = gc::Policy::default();
    let plan = gc::plan(&lab.store.inventory().unwrap(), &policy, std::time::SystemTime::now());
    lab.store.collector(&Quiet).unwrap().carry_out(&plan, None, &Quiet);
    run(&lab, vec![row("GET", format!("/v2/app/blobs/{layer}"), 404, "BLOB_UNKNOWN")]);
}

#[test]
fn what_is_for_reading_only_refuses_all_else() {
    let lab = Lab::with(true, Options::default());
    let digest = Digest::of(b"x");
    run(
        &lab,
        vec![
            row("GET", "/v2/", 200, ""),
            row("POST", "/v2/app/blobs/uploads/", 405, "UNSUPPORTED"),
            row("PATCH", "/v2/app/blobs/uploads/x", 405, "UNSUPPORTED"),
            row("PUT", "/v2/app/manifests/x", 405, "UNSUPPORTED").body(b"{}"),
            row("DELETE", "/v2/app/manifests/x", 405, "UNSUPPORTED"),
            row("DELETE", format!("/v2/app/blobs/{digest}"), 405, "UNSUPPORTED"),
        ],
    );
    assert_eq!(lab.staged(), 0);
}

/// What a build leaves: an image's blobs and receipts, and an artifact of it.
fn built(store: &Store, agent: &str, layer: &[u8]) -> (Digest, Digest) {
    let publishing = store.publishing(&Quiet).unwrap();
    let config = format!("{{\"of\":\"{}\"}}", Digest::of(layer));
    let put = |role: &str, bytes: &[u8]| BlobRef {
        role: role.into(),
        digest: store.blobs().put(bytes, &publishing).unwrap(),
        size: bytes.len() as u64,
    };
    let (config, layer) = (put("config", config.as_bytes()), put("layer", layer));
    let image = config.digest;
    let manifest = put("manifest", &image_manifest((image, config.size), &[(layer.digest, layer.size)]));
    let digest = manifest.digest;
    for (stage, blobs) in [("tarball", vec![config, layer]), ("registry", vec![manifest])] {
        let (stage, inputs) = (stage.to_owned(), BTreeMap::new());
        let receipt = StageReceipt { schema: 1, stage, image, inputs, blobs, built_at: 1, millis: 1 };
        store.commit_stage(&receipt, &publishing).unwrap();
    }
    let inputs = BTreeMap::from([("image".to_owned(), json!(image))]);
    let temp = store.temp_dir().unwrap();
    let path = temp.path().join("machine");
    let mut file = fsio::create_new(&path).unwrap();
    file.write_all(b"artifact").unwrap();
    let receipt = MachineReceipt {
        schema: 1,
        image,
        recipe: MachineReceipt::recipe_of(&inputs),
        inputs,
        size: 8,
        sha256: Digest::of(b"artifact"),
        agent: agent.into(),
        built_at: 1,
        millis: 1,
    };
    store.publish_machine(&file, &path, receipt).unwrap();
    (image, digest)
}

#[test]
fn agents_are_repositories_and_their_images_are_tags() {
    let lab = Lab::with(true, Options::default());
    let (old, old_manifest) = built(&lab.store, "agent", &bytes(2_000_000));
    std::thread::sleep(Duration::from_millis(20));
    let (new, new_manifest) = built(&lab.store, "agent", b"layer two");
    built(&lab.store, "No Name", b"layer three");
    let json = |target: &str| get(lab.addr(), target).json();
    assert_eq!(json("/v2/_catalog")["repositories"], json!(["agent"]));
    let mut tags = vec![old.short(), new.short(), "latest".to_owned()];
    tags.sort();
    assert_eq!(json("/v2/agent/tags/list")["tags"], json!(tags));
    let digest = |which: &str| {
        get(lab.addr(), &format!("/v2/agent/manifests/{which}")).header("docker-content-digest").to_owned()
    };
    assert_eq!(digest("latest"), new_manifest.to_string());
    assert_eq!(digest(&old.short()), old_manifest.to_string());
    assert_eq!(digest(&old_manifest.to_string()), old_manifest.to_string());
    let layer = Digest::of(&bytes(2_000_000));
    assert!(get(lab.addr(), &format!("/v2/agent/blobs/{layer}")).body == bytes(2_000_000));
    run(&lab, vec![row("GET", "/v2/agent/manifests/other", 404, "MANIFEST_UNKNOWN")]);
    // A damaged blob is never sent whole, and is put aside.
    let path = lab.store.blobs().path(&layer);
    let mut spoilt = bytes(2_000_000);
    spoilt[1_000_000] ^= 1;
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, &spoilt).unwrap();
    let cut = get(lab.addr(), &format!("/v2/agent/blobs/{layer}"));
    assert!(cut.body.len() < spoilt.len());
    assert_eq!(lab.store.quarantined().unwrap(), 1);
    run(&lab, vec![row("GET", format!("/v2/agent/blobs/{layer}"), 404, "BLOB_UNKNOWN")]);
}

#[test]
fn what_was_hashed_when_it_was_pushed_is_hashed_no_more_and_what_nobody_hashed_is() {
    let lab = Lab::new();
    let (good, spoilt) = (bytes(2_000_000), bytes(2_100_000));
    // One lies there damaged before it is pushed, with the same size.
    let path = lab.store.blobs().path(&Digest::of(&spoilt));
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, vec![0; spoilt.len()]).unwrap();
    for (tag, layer) in [("good", &good), ("spoilt", &spoilt)] {
        lab.push_image("app", tag, layer);
        let digest = Digest::of(layer);
        let metadata = std::fs::metadata(lab.store.blobs().path(&digest)).unwrap();
        assert_eq!(lab.store.blobs().is_sealed(&digest, &metadata), tag == "good", "{tag}");
    }
    let cut = get(lab.addr(), &format!("/v2/app/blobs/{}", Digest::of(&spoilt)));
    assert!(cut.body.len() < spoilt.len());
    assert!(get(lab.addr(), &format!("/v2/app/blobs/{}", Digest::of(&good))).body == good);
}

#[test]
fn an_agents_image_is_deleted_by_another_command() {
    let lab = Lab::new();
    let (_, manifest) = built(&lab.store, "agent", b"layer");
    run(
        &lab,
        vec![
            row("DELETE", format!("/v2/agent/manifests/{manifest}"), 405, "UNSUPPORTED"),
            row("DELETE", "/v2/agent/manifests/latest", 405, "UNSUPPORTED"),
            row("GET", "/v2/agent/manifests/latest", 200, ""),
        ],
    );
    // What is pushed under an agent's name comes before its own.
    let pushed = lab.push_image("agent", "latest", b"pushed");
    assert_eq!(
        get(lab.addr(), "/v2/agent/manifests/latest").header("docker-content-digest"),
        pushed.to_string()
    );
}

#[test]
fn whatever_is_sent_the_answer_is_no_500_and_nothing_is_stored() {
    let lab = Lab::new();
    let host = lab.addr();
    let long = "a".repeat(70_000);
    let before = files(lab.store.root());
    for text in [
        format!("GET /v2/{long}/manifests/x HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"),
        format!("BREW /v2/ HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"),
        format!("TRACE /v2/ HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"),
        format!("CONNECT example.org:443 HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"),
        format!("OPTIONS * HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"),
        format!(
            "POST /v2/../x/blobs/uploads/ HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        ),
        format!(
            "POST /v2/x/blobs/uploads/?digest=../../x HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        ),
        format!(
            "PUT /v2/x/manifests/..%2f..%2fx HTTP/1.1\r\nHost: {host}\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}"
        ),
        format!(
            "PUT /v2/x/manifests/y HTTP/1.1\r\nHost: {host}\r\nContent-Length: 99999999999\r\nConnection: close\r\n\r\n"
        ),
        format!(
            "PUT /v2/x/manifests/y HTTP/1.1\r\nHost: {host}\r\nContent-Length: -1\r\nConnection: close\r\n\r\n"
        ),
        format!(
            "PUT /v2/x/manifests/y HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\nConnection: close\r\n\r\nzz\r\n"
        ),
        format!("GET /v2/ HTTP/1.1\r\nHost: {host}\r\nX: {long}\r\nConnection: close\r\n\r\n"),
        format!("GET /v2/ HTTP/9.9\r\nHost: {host}\r\n\r\n"),
        "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0".to_owned() + &long[..600],
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
        "\r\n\r\n\r\n".to_owned(),
    ] {
        let began = Instant::now();
        let mut stream = connect(host);
        let _ = stream.write_all(text.as_bytes());
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let shown = text.chars().take(80).collect::<String>();
        if let Some(reply) = parse(&answer) {
            assert!((400..500).contains(&reply.status), "{shown:?}: {reply:?}");
        }
        assert!(began.elapsed() < Duration::from_secs(5), "{shown:?}");
    }
    assert_eq!(files(lab.store.root()), before);
    assert_eq!(get(host, "/v2/").status, 200);
}

fn files(root: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![root.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() { pending.push(path) } else { found.push(path) }
        }
    }
    // Locks and when they were looked for are no contents.
    found.retain(|path| !path.starts_with(root.join("locks")));
    found.sort();
    found
}

#[test]
fn uploads_that_nobody_goes_on_with_are_discarded() {
    let options = Options { upload_timeout: Duration::from_millis(100), ..Options::default() };
    let lab = Lab::with(false, options);
    let upload = lab.begin("app");
    let waiting = lab.push("app", b"waits");
    let began = Instant::now();
    while lab.ask("GET", &upload, &[], b"").status != 404 {
        assert!(began.elapsed() < Duration::from_secs(5));
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(get(lab.addr(), &format!("/v2/app/blobs/{waiting}")).status, 200);
    std::thread::sleep(Duration::from_millis(1200));
    assert_eq!(get(lab.addr(), &format!("/v2/app/blobs/{waiting}")).status, 404);
    assert_eq!(lab.staged(), 0);
}

#[test]
fn a_body_that_trickles_is_cut_off_and_stopping_waits_for_none() {
    let options = Options { idle_timeout: Duration::from_millis(300), ..Options::default() };
    let lab = Lab::with(false, options);
    let upload = lab.begin("app");
    let mut slow = connect(lab.addr());
    write!(slow, "PATCH {upload} HTTP/1.1\r\nHost: {}\r\nContent-Length: 1000000\r\n\r\n", lab.addr())
        .unwrap();
    let trickle = slow.try_clone().unwrap();
    std::thread::spawn(move || {
        let mut trickle = trickle;
        // A byte is no progress.
        while trickle.write_all(b"x").is_ok() {
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    let began = Instant::now();
    let mut answer = Vec::new();
    let _ = slow.read_to_end(&mut answer);
    assert!(began.elapsed() < Duration::from_secs(5));
    assert!(parse(&answer).is_none_or(|reply| reply.status == 408), "{}", String::from_utf8_lossy(&answer));
    // One that is under way when the server ends.
    let upload = lab.begin("app");
    let mut open = connect(lab.addr());
    write!(open, "PATCH {upload} HTTP/1.1\r\nHost: {}\r\nContent-Length: 1000000\r\n\r\nx", lab.addr())
        .unwrap();
    std::thread::sleep(Duration::from_millis(50));
    let Lab { server, store, _dir } = lab;
    let began = Instant::now();
    server.stop(Duration::from_millis(100));
    assert!(began.elapsed() < Duration::from_millis(1500), "{:?}", began.elapsed());
    let root = store.root().to_owned();
    drop(store);
    assert_eq!(std::fs::read_dir(root.join("tmp")).unwrap().count(), 0, "all temporary folders are gone");
}

#[test]
fn two_who_push_the_same_at_once_both_succeed() {
    let lab = Lab::new();
    let layer = bytes(1_500_000);
    std::thread::scope(|scope| {
        for n in 0..6 {
            let (lab, layer) = (&lab, &layer);
            scope.spawn(move || lab.push_image(&format!("app{}", n % 2), &format!("t{}", n % 3), layer));
        }
    });
    assert!(get(lab.addr(), &format!("/v2/app0/blobs/{}", Digest::of(&layer))).body == layer);
    assert_eq!(lab.store.verify(&Default::default(), &Quiet).unwrap().damaged, []);
    assert_eq!(lab.staged(), 0);
}

#[test]
fn many_requests_on_one_connection_are_answered_in_order() {
    let lab = Lab::new();
    lab.push_image("app", "v1", b"layer");
    let one = format!("GET /v2/app/manifests/v1 HTTP/1.1\r\nHost: {}\r\n\r\n", lab.addr());
    let last =
        format!("GET /v2/none/tags/list HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", lab.addr());
    let answers = raw(lab.addr(), format!("{}{last}", one.repeat(20)).as_bytes());
    let text = String::from_utf8(answers).unwrap();
    assert_eq!((text.matches("HTTP/1.1 200").count(), text.matches("HTTP/1.1 404").count()), (20, 1));
}
