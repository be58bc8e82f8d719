//! Pushes to a served cache beside collectors that never stop: what a push was
//! thanked for is whole, until a collector takes all of it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use smolcellar_store::{Digest, OpenOptions, Store};
use smolcellar_tests::cellar::{Cellar, ran};
use smolcellar_tests::lab::Random;
use smolcellar_tests::served::Served;

/// Clients of each server. Each has a repository of its own: a busy one is not
/// collected.
const CLIENTS: usize = 3;
/// The layers that all images share: pushed by one, and found there by others.
const SHARED: [&[u8]; 2] = [&[1; 3000], &[2; 70_000]];
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// What an image has of its own: the more there is to publish, the more
/// collectors come in between.
const OWN: usize = 4;

struct Field<'a> {
    cellar: &'a Cellar,
    /// The same cache, to look behind the servers' backs.
    store: Store,
    until: Instant,
    counts: Mutex<BTreeMap<&'static str, u64>>,
    /// What collectors say that they took: repository and manifest.
    taken: Mutex<BTreeSet<(String, String)>>,
    /// What clients found gone.
    gone: Mutex<BTreeSet<(String, String)>>,
}

impl Field<'_> {
    fn goes_on(&self) -> bool {
        Instant::now() < self.until
    }

    fn count(&self, what: &'static str) {
        *self.counts.lock().unwrap().entry(what).or_insert(0) += 1;
    }
}

/// An answer: its status, its `Location`, its body.
struct Answer {
    status: u16,
    location: String,
    body: Vec<u8>,
}

fn ask(addr: &str, request: &str, headers: &str, body: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let length = body.len();
    let head = format!(
        "{request} HTTP/1.1\r\nHost: {addr}\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n"
    );
    stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
    let head = String::from_utf8(answer[..end].to_vec()).unwrap();
    let location = head.lines().find_map(|line| line.strip_prefix("location: ")).unwrap_or_default();
    Answer {
        status: head.split(' ').nth(1).unwrap().parse().unwrap(),
        location: location.to_owned(),
        body: answer[end + 4..].to_vec(),
    }
}

/// An image that nobody pushed before.
struct Image {
    repository: String,
    blobs: Vec<Vec<u8>>,
    manifest: Vec<u8>,
}

impl Image {
    fn new(repository: &str, number: u64) -> Self {
        let own = (0..OWN).map(|part| format!("{repository} {number} {part}").repeat(100).into_bytes());
        let blobs: Vec<_> = own.chain(SHARED.iter().map(|layer| layer.to_vec())).collect();
        let descriptor = |blob: &Vec<u8>| json!({ "mediaType": "application/octet-stream", "digest": Digest::of(blob), "size": blob.len() });
        let descriptors: Vec<_> = blobs.iter().map(descriptor).collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": descriptors[0], "layers": descriptors[1..],
        });
        Self { repository: repository.to_owned(), blobs, manifest: manifest.to_string().into_bytes() }
    }

    fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }

    fn path(&self, kind: &str, last: impl std::fmt::Display) -> String {
        format!("/v2/{}/{kind}/{last}", self.repository)
    }
}

#[test]
fn beside_collectors_a_push_that_was_taken_is_whole_until_all_of_it_is_collected() {
    let cellar = Cellar::new();
    // Two processes: what one publishes, the other finds and names.
    let mut servers = [Served::start(&cellar, &[]), Served::start(&cellar, &[])];
    let seconds = crate::number("SMOLCELLAR_CANARY_SECONDS", 5);
    let field = Field {
        cellar: &cellar,
        store: Store::open(&cellar.cache(), OpenOptions::default()).unwrap(),
        until: Instant::now() + Duration::from_secs(seconds),
        counts: Mutex::default(),
        taken: Mutex::default(),
        gone: Mutex::default(),
    };
    std::thread::scope(|scope| {
        let field = &field;
        for (number, served) in servers.iter().enumerate() {
            for client in 0..CLIENTS {
                scope.spawn(move || push(field, &served.addr, &format!("team/r{number}-{client}")));
            }
            scope.spawn(move || take_back(field, &served.addr));
        }
        scope.spawn(move || collect(field));
    });
    // With what only the last collections could take.
    let verify = cellar.run(["cache", "verify"]);
    assert_eq!(verify.code, 0, "{verify:?}");
    for served in &mut servers {
        served.signal("TERM");
        assert_eq!(served.wait(Duration::from_secs(20)), 0);
    }
    gc(&field);
    cellar.assert_sound();
    let mut left = cellar.stored();
    left.retain(|path| !path.starts_with(cellar.cache().join("pointers-v1")));
    assert_eq!(left, Vec::<std::path::PathBuf>::new(), "nothing holds these");
    let (counts, taken) = (field.counts.into_inner().unwrap(), field.taken.into_inner().unwrap());
    let gone = field.gone.into_inner().unwrap();
    crate::say(&format!("{seconds} s of {counts:?}; {} pushes collected", taken.len()));
    assert!(gone.is_subset(&taken), "lost, and taken by nobody: {:?}", gone.difference(&taken));
    assert_eq!(Some(&(taken.len() as u64)), counts.get("pushes"), "each push was collected once");
    // They met, or all of this proved nothing.
    for met in ["gcs", "collected meanwhile", "pulls", "shared layers found", "sent again", "taken back"] {
        assert!(counts.get(met).is_some_and(|count| *count > 0), "no {met}: {counts:?}");
    }
}

fn push(field: &Field<'_>, addr: &str, repository: &str) {
    let mut random = Random::new(Digest::of(repository.as_bytes()).hex().bytes().map(u64::from).sum());
    for number in 0.. {
        if !field.goes_on() {
            break;
        }
        let image = Image::new(repository, number);
        send(field, addr, &image, &mut random);
        field.count("pushes");
        let whole = pull(field, addr, &image);
        // Collectors wait for moments at which nobody publishes.
        pause(&mut random, 60);
        if whole {
            pull(field, addr, &image);
        }
    }
}

fn pause(random: &mut Random, millis: usize) {
    std::thread::sleep(Duration::from_millis(random.below(millis) as u64));
}

/// Until it is taken. What is said to be there may be gone when the manifest
/// comes: then the manifest is refused, and all is sent.
fn send(field: &Field<'_>, addr: &str, image: &Image, random: &mut Random) {
    for again in 0..100 {
        for blob in &image.blobs {
            let shared = SHARED.contains(&blob.as_slice());
            let path = image.path("blobs", Digest::of(blob));
            if shared && again == 0 && ask(addr, &format!("HEAD {path}"), "", b"").status == 200 {
                field.count("shared layers found");
                continue;
            }
            upload(addr, image, blob);
        }
        pause(random, 20);
        let request = format!("PUT {}", image.path("manifests", image.digest()));
        let put = ask(addr, &request, &format!("Content-Type: {MANIFEST}\r\n"), &image.manifest);
        if put.status == 201 {
            return;
        }
        let body = String::from_utf8_lossy(&put.body);
        assert!(put.status == 400 && body.contains("MANIFEST_BLOB_UNKNOWN"), "{}: {body}", put.status);
        field.count("sent again");
    }
    panic!("refused a hundred times: {}", image.repository);
}

fn upload(addr: &str, image: &Image, blob: &[u8]) {
    let begun = ask(addr, &format!("POST {}", image.path("blobs", "uploads/")), "", b"");
    assert_eq!(begun.status, 202, "{}", String::from_utf8_lossy(&begun.body));
    let request = format!("PUT {}?digest={}", begun.location, Digest::of(blob));
    let put = ask(addr, &request, "", blob);
    assert_eq!(put.status, 201, "{}", String::from_utf8_lossy(&put.body));
}

/// Whoever was told that it is taken finds all of it, or none; whether it was all.
///
/// A receipt is never written again: the manifest is pushed once. So when there
/// is one after something was found missing, there was one all the time since
/// the answer to the push, and what it names was collected under it.
fn pull(field: &Field<'_>, addr: &str, image: &Image) -> bool {
    let manifest = ("manifests", image.manifest.as_slice());
    let blobs = image.blobs.iter().map(|blob| ("blobs", blob.as_slice()));
    for (kind, bytes) in [manifest].into_iter().chain(blobs) {
        let digest = Digest::of(bytes);
        // Behind the server's back first: that takes no time in which a collector could tidy up.
        let missing = !field.store.blobs().has(&digest, bytes.len() as u64);
        let answer = (!missing).then(|| ask(addr, &format!("GET {}", image.path(kind, digest)), "", b""));
        match answer {
            Some(answer) if answer.status == 200 => assert_eq!(Digest::of(&answer.body), digest),
            Some(answer) if answer.status != 404 => panic!("{}", String::from_utf8_lossy(&answer.body)),
            _ => {
                let receipt = field.store.pushed(&image.repository, &image.digest()).unwrap();
                assert!(receipt.is_none(), "{kind} {digest} is gone, and named by {receipt:?}");
                let key = (image.repository.clone(), image.digest().to_string());
                assert!(field.gone.lock().unwrap().insert(key));
                field.count("collected meanwhile");
                return false;
            }
        }
    }
    field.count("pulls");
    true
}

/// Deletes what waits for a manifest, as a client may.
fn take_back(field: &Field<'_>, addr: &str) {
    let mut random = Random::new(7);
    while field.goes_on() {
        let digest = Digest::of(SHARED[random.below(SHARED.len())]);
        let status = ask(addr, &format!("DELETE /v2/other/blobs/{digest}"), "", b"").status;
        assert!(matches!(status, 202 | 404 | 405), "{status}");
        if status == 202 {
            field.count("taken back");
        }
        pause(&mut random, 10);
    }
}

fn collect(field: &Field<'_>) {
    while field.goes_on() {
        gc(field);
        field.count("gcs");
    }
}

fn gc(field: &Field<'_>) {
    let words = ["cache", "gc", "--all", "--yes", "--format", "json"];
    let ran = ran(field.cellar.command(words).output().unwrap());
    assert_eq!(ran.code, 0, "{ran:?}");
    let result: Value = serde_json::from_str(&ran.stdout).unwrap();
    for entry in result["done"]["removed"].as_array().unwrap_or(&vec![]) {
        if entry["kind"] == "pushed" {
            let text = |name: &str| entry[name].as_str().unwrap().to_owned();
            let key = (text("repository"), text("digest"));
            assert!(field.taken.lock().unwrap().insert(key), "taken twice: {entry}");
        }
    }
}
