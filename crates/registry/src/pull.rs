//! Manifests and blobs out (OCI distribution specification, "Pull").

use std::io;
use std::sync::Arc;

use hyper::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue,
    IF_NONE_MATCH, IF_RANGE, RANGE,
};
use hyper::{Method, Response, StatusCode};
use smolcellar_oci::{Repository, Selector};
use smolcellar_store::{Digest, Hasher, StoreError};

use crate::body::{Answer, Content, Reading, Source, empty, full};
use crate::crowd::Member;
use crate::handle::blocking;
use crate::problem::Problem;
use crate::range::{Wanted, wanted};
use crate::seen::add;
use crate::server::Shared;
use crate::shelf::FoundBlob;
use crate::sound::Look;

/// A blob up to this many bytes is hashed before anything of it is sent.
const SMALL: u64 = 1 << 20;

/// `Docker-Content-Digest`: what a body's digest is, or the body's of a GET.
pub(crate) fn content_digest() -> HeaderName {
    HeaderName::from_static("docker-content-digest")
}

/// A header value of digits, hex and punctuation.
pub(crate) fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""))
}

fn tag_of(digest: &Digest) -> String {
    format!("\"{digest}\"")
}

/// Adds the headers that name a digest; whether the client has the bytes already.
fn named(answer: &mut Answer, digest: &Digest, headers: &HeaderMap) -> bool {
    let tag = tag_of(digest);
    answer.headers_mut().insert(ETAG, value(&tag));
    answer.headers_mut().insert(content_digest(), value(&digest.to_string()));
    let known = headers.get_all(IF_NONE_MATCH).iter().filter_map(|known| known.to_str().ok());
    known.flat_map(|list| list.split(',')).any(|known| known.trim().trim_start_matches("W/") == tag)
}

/// GET and HEAD of a manifest. What a client says it accepts is not asked: there
/// is one form of each manifest, and it names its type.
pub(crate) async fn manifest(
    shared: &Arc<Shared>,
    repository: &Repository,
    which: &Selector,
    headers: &HeaderMap,
) -> Result<Answer, Problem> {
    let (shelf, name, selector) = (Arc::clone(&shared.shelf), repository.clone(), which.clone());
    let found = blocking(move || shelf.manifest(&name, &selector)).await?;
    let unknown = || Problem::missing("MANIFEST_UNKNOWN", format!("{repository} has no manifest {which}"));
    let found = found.ok_or_else(unknown)?;
    add(&shared.counts.manifests, 1);
    // hyper sends no body in answer to HEAD, and the length that is said here.
    let mut answer = full(StatusCode::OK, found.bytes);
    if named(&mut answer, &found.digest, headers) {
        let mut unchanged = empty(StatusCode::NOT_MODIFIED);
        named(&mut unchanged, &found.digest, headers);
        return Ok(unchanged);
    }
    answer.headers_mut().insert(CONTENT_TYPE, value(&found.media_type));
    Ok(answer)
}

/// GET and HEAD of a blob.
pub(crate) async fn blob(
    shared: &Arc<Shared>,
    member: &Arc<Member>,
    repository: &Repository,
    digest: &Digest,
    method: &Method,
    headers: &HeaderMap,
) -> Result<Answer, Problem> {
    let (shelf, name, wanted_digest) = (Arc::clone(&shared.shelf), repository.clone(), *digest);
    let found = blocking(move || shelf.blob(&name, &wanted_digest)).await?;
    let found = found.ok_or_else(|| Problem::no_blob(digest))?;
    let size = found.metadata.len();
    let mut answer = empty(StatusCode::OK);
    let unchanged = named(&mut answer, digest, headers);
    let all = answer.headers_mut();
    all.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    all.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    all.insert(CONTENT_LENGTH, HeaderValue::from(size));
    if unchanged {
        *answer.status_mut() = StatusCode::NOT_MODIFIED;
        answer.headers_mut().remove(CONTENT_LENGTH);
        return Ok(answer);
    }
    let range = match (method, if_range(headers, digest)) {
        (&Method::GET, true) => wanted(headers.get(RANGE).and_then(|range| range.to_str().ok()), size),
        _ => Wanted::Whole,
    };
    let (first, length) = match range {
        Wanted::Whole => (0, size),
        Wanted::Part { first, last } => (first, last - first + 1),
        Wanted::Outside => {
            let outside = StatusCode::RANGE_NOT_SATISFIABLE;
            return Err(Problem::new(outside, "SIZE_INVALID", format!("the blob has {size} bytes"))
                .with(CONTENT_RANGE, &format!("bytes */{size}")));
        }
    };
    if length < size {
        *answer.status_mut() = StatusCode::PARTIAL_CONTENT;
        let range = format!("bytes {first}-{}/{size}", first + length - 1);
        answer.headers_mut().insert(CONTENT_RANGE, value(&range));
        answer.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
    } else if let Wanted::Part { .. } = range {
        *answer.status_mut() = StatusCode::PARTIAL_CONTENT;
        answer.headers_mut().insert(CONTENT_RANGE, value(&format!("bytes 0-{}/{size}", size - 1)));
    }
    if *method == Method::HEAD || length == 0 {
        return Ok(answer);
    }
    let hash = sound(shared, digest, &found, length < size).await?;
    let source = source(shared, member, digest, found, (first, length), hash);
    let (parts, _) = answer.into_parts();
    Ok(Response::from_parts(parts, Content::File(Box::new(Reading::begin(source)))))
}

/// Whether a range counts: it does not if it is a range of something else.
fn if_range(headers: &HeaderMap, digest: &Digest) -> bool {
    headers.get(IF_RANGE).is_none_or(|known| known.as_bytes() == tag_of(digest).as_bytes())
}

/// Makes sure that a blob is what it is called, if that can be done before it
/// is sent; whether it must be done while it is sent.
async fn sound(
    shared: &Arc<Shared>,
    digest: &Digest,
    found: &FoundBlob,
    part: bool,
) -> Result<bool, Problem> {
    let (size, look) = (found.metadata.len(), Look::of(&found.metadata));
    let known = || match shared.sound.verdict(digest, look) {
        Some(true) => Some(Ok(false)),
        Some(false) => Some(Err(Problem::no_blob(digest))),
        None => None,
    };
    if found.sound {
        return Ok(false);
    }
    if let Some(known) = known() {
        return known;
    }
    if !part && size > SMALL {
        return Ok(true);
    }
    // A part says nothing of the whole, which is hashed for its first part. Those
    // who want the same wait for that.
    let turn = shared.sound.turn(digest).await;
    let turn = turn.ok_or_else(|| Problem::internal("the server ends".to_owned()))?;
    if let Some(known) = known() {
        return known;
    }
    let (all, file, digest) = (Arc::clone(shared), Arc::clone(&found.file), *digest);
    let metadata = found.metadata.clone();
    let sound = blocking(move || {
        let _turn = turn;
        let ending = || all.ending();
        let actual = hash(&file, size, &ending).map_err(StoreError::io("read", digest.hex()))?;
        all.sound.note(digest, look, actual == digest);
        match actual == digest {
            true => all.shelf.hashed(&digest, &metadata),
            false => all.shelf.damaged(&digest),
        }
        Ok(actual == digest)
    });
    if sound.await? { Ok(false) } else { Err(Problem::no_blob(digest)) }
}

fn hash(file: &std::fs::File, size: u64, ending: &dyn Fn() -> bool) -> io::Result<Digest> {
    use std::os::unix::fs::FileExt;
    let mut hasher = Hasher::new();
    let mut piece = vec![0; usize::try_from(size).unwrap_or(usize::MAX).min(256 << 10)];
    let mut at = 0;
    while at < size {
        if ending() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let left = usize::try_from(size - at).unwrap_or(usize::MAX);
        let length = left.min(piece.len());
        file.read_exact_at(&mut piece[..length], at)?;
        hasher.update(&piece[..length]);
        at += length as u64;
    }
    Ok(hasher.finish())
}

/// The part of a blob's file, and what happens when it was read to its end.
fn source(
    shared: &Arc<Shared>,
    member: &Arc<Member>,
    digest: &Digest,
    found: FoundBlob,
    (first, length): (u64, u64),
    hash: bool,
) -> Source {
    let (all, digest, look) = (Arc::clone(shared), *digest, Look::of(&found.metadata));
    let metadata = found.metadata.clone();
    let at_end = move |actual: Option<Digest>| {
        if actual.is_some_and(|actual| actual != digest) {
            all.sound.note(digest, look, false);
            all.shelf.damaged(&digest);
            // The client misses the last bytes, and sees that by their number.
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the blob is damaged"));
        }
        if actual.is_some() {
            all.sound.note(digest, look, true);
            // Not before the last bytes are sent: that takes an fsync.
            let shelf = Arc::clone(&all.shelf);
            tokio::task::spawn_blocking(move || shelf.hashed(&digest, &metadata));
        }
        add(&all.counts.blobs, 1);
        add(&all.counts.bytes, length);
        Ok(())
    };
    Source::new(
        found.file,
        first,
        length,
        (Arc::clone(&shared.pieces), Arc::clone(member)),
        hash,
        Box::new(at_end),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::sync::Mutex;
    use std::time::Duration;

    use smolcellar_oci::{Descriptor, Tag};

    use crate::one_image::open;
    use crate::server::{Options, Server};
    use crate::shelf::{FoundManifest, Shelf};
    use crate::sound::AT_ONCE;

    type Found<T> = Result<T, StoreError>;

    /// Files that nobody hashed, and how they are.
    struct Unsealed {
        files: Vec<(Digest, std::path::PathBuf)>,
        /// Being hashed, the most at once, all in all.
        hashed: Mutex<(usize, usize, usize)>,
    }

    impl Shelf for Unsealed {
        fn manifest(&self, _: &Repository, _: &Selector) -> Found<Option<FoundManifest>> {
            Ok(None)
        }

        fn blob(&self, _: &Repository, digest: &Digest) -> Found<Option<FoundBlob>> {
            let file = self.files.iter().find(|file| file.0 == *digest);
            file.map_or(Ok(None), |file| open(&file.1))
        }

        fn tags(&self, _: &Repository) -> Found<Option<Vec<Tag>>> {
            Ok(None)
        }

        fn repositories(&self) -> Found<Vec<Repository>> {
            Ok(Vec::new())
        }

        fn referrers(&self, _: &Repository, _: &Digest) -> Found<Vec<Descriptor>> {
            Ok(Vec::new())
        }

        /// The last of hashing a file, on the thread that did it.
        fn hashed(&self, _: &Digest, _: &std::fs::Metadata) {
            let count = |by: isize| {
                let mut hashed = self.hashed.lock().unwrap();
                hashed.0 = hashed.0.wrapping_add_signed(by);
                hashed.1 = hashed.1.max(hashed.0);
                hashed.2 += usize::from(by > 0);
            };
            count(1);
            std::thread::sleep(Duration::from_millis(100));
            count(-1);
        }

        fn damaged(&self, _: &Digest) {}
    }

    #[test]
    fn a_file_that_many_want_parts_of_is_hashed_once_and_few_are_hashed_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let file = |n: u8| {
            let (bytes, path) = (vec![n; 8 << 20], dir.path().join(n.to_string()));
            smolcellar_store::fsio::write_atomic(dir.path(), &path, &bytes).unwrap();
            (Digest::of(&bytes), path)
        };
        let files: Vec<_> = (0..6).map(file).collect();
        let shelf = Arc::new(Unsealed { files, hashed: Mutex::default() });
        let server = Server::start(Arc::clone(&shelf) as Arc<dyn Shelf>, Options::default()).unwrap();
        let addr = server.addr();
        let part = |digest: &Digest, part: usize| {
            let mut stream = TcpStream::connect(addr).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            let range = format!("bytes={part}-{}", part + 9);
            let head = format!(
                "GET /v2/a/blobs/{digest} HTTP/1.1\r\nHost: {addr}\r\nRange: {range}\r\nConnection: close"
            );
            stream.write_all(format!("{head}\r\n\r\n").as_bytes()).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 206"), "{answer:?}");
        };
        std::thread::scope(|scope| {
            for (digest, _) in &shelf.files {
                (0..8).for_each(|number| drop(scope.spawn(move || part(digest, number * 1000))));
            }
        });
        let hashed = *shelf.hashed.lock().unwrap();
        assert_eq!(hashed, (0, AT_ONCE, shelf.files.len()));
    }
}
