//! Blobs and manifests in (OCI distribution specification, "Push" and "Content
//! management").

use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{
    CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION, RANGE,
};
use hyper::{Method, Request, StatusCode};
use smolcellar_oci::{MAX_MANIFEST, Repository, Selector};
use smolcellar_store::Digest;
use tokio::time::{Instant, timeout_at};

use crate::body::{Answer, empty};
use crate::crowd::Member;
use crate::handle::{asked, blocking};
use crate::library::Library;
use crate::one_image::random;
use crate::problem::Problem;
use crate::pull::{content_digest, value};
use crate::query::Query;
use crate::range::{number, piece};
use crate::server::Shared;
use crate::shelf::Shelf;
use crate::staging::{Lease, Refused, Staging, Upload};

/// So many bytes wait for the disk while others are written to it.
const BATCH: usize = 256 << 10;
/// A sender has to send so many bytes in the time that it may be idle.
const STEP: u64 = 4096;
/// Bytes of one permit for a manifest's memory; [`crate::server::MANIFESTS`] are all there are.
const PERMIT: usize = 64 << 10;

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Full(why) => Self::too_many(why),
            Refused::Gone => Self::missing("BLOB_UPLOAD_UNKNOWN", "there is no such upload"),
            Refused::Digest(actual) => Self::bad("DIGEST_INVALID", format!("its bytes have digest {actual}")),
            Refused::Store(error) => Self::of_store(&error),
        }
    }
}

/// What can be pushed to, if anything can.
fn writable(shared: &Shared) -> Result<&Library, Problem> {
    let library = shared.shelf.library().filter(|library| library.staging.is_some());
    library.ok_or_else(|| Problem::unsupported("this registry is for reading only"))
}

fn staging(library: &Library) -> Result<&Staging, Problem> {
    library.staging.as_ref().ok_or_else(|| Problem::unsupported("this registry is for reading only"))
}

/// Work on the library, where blocking is allowed.
async fn at_library<T: Send + 'static>(
    shared: &Arc<Shared>,
    work: impl FnOnce(&Library) -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    let shelf: Arc<dyn Shelf> = Arc::clone(&shared.shelf);
    let unsupported = || Problem::unsupported("this registry is for reading only");
    blocking(move || Ok(shelf.library().ok_or_else(unsupported).and_then(work))).await?
}

/// Which digest a query asks for.
fn digest_of(query: &Query, name: &str) -> Result<Option<Digest>, Problem> {
    let parse =
        |text: &str| Digest::parse(text).map_err(|error| Problem::bad("DIGEST_INVALID", error.to_string()));
    query.get(name).map(parse).transpose()
}

fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH).and_then(|length| number(length.to_str().ok()?))
}

/// POST: begins an upload, or is all of one, or takes a blob that is there.
pub(crate) async fn begin(
    shared: &Arc<Shared>,
    member: &Member,
    repository: &Repository,
    query: &Query,
    request: &mut Request<Incoming>,
) -> Result<Answer, Problem> {
    writable(shared)?;
    if let Some(mount) = digest_of(query, "mount")? {
        let there = at_library(shared, move |library| Ok(library.size(&mount).is_some())).await?;
        if there {
            return Ok(created(repository, &mount));
        }
    }
    let digest = digest_of(query, "digest")?;
    let id = random().map_err(|error| Problem::internal(error.to_string()))?;
    let (name, need) = (repository.clone(), length(request.headers()).filter(|_| digest.is_some()));
    let upload = at_library(shared, move |library| {
        room(library, need)?;
        Ok(staging(library)?.begin(id, name)?)
    });
    let upload = upload.await?;
    let Some(digest) = digest else { return Ok(accepted(StatusCode::ACCEPTED, &upload)) };
    // Nobody else knows its ID.
    let lease = Arc::new(upload.lease().ok_or_else(|| Problem::from(Refused::Gone))?);
    let received = receive(shared, member, &lease, request.body_mut(), None).await;
    let finished = match received {
        Ok(()) => finish(shared, lease, digest).await,
        Err(problem) => Err(problem),
    };
    if finished.is_err() {
        cancel(shared, upload).await?;
    }
    finished.map(|()| created(repository, &digest))
}

/// All that is done with an upload that was begun.
pub(crate) async fn go_on(
    shared: &Arc<Shared>,
    member: &Member,
    repository: &Repository,
    id: &str,
    query: &Query,
    request: &mut Request<Incoming>,
) -> Result<Answer, Problem> {
    let library = writable(shared)?;
    let method = request.method().clone();
    if !asked(&method, &[Method::GET, Method::PATCH, Method::PUT, Method::DELETE]) {
        return Err(Problem::unsupported("an upload is gone on with by GET, PATCH, PUT or DELETE"));
    }
    let upload = staging(library)?.find(id, repository).ok_or_else(|| Problem::from(Refused::Gone))?;
    if method == Method::GET {
        return Ok(accepted(StatusCode::NO_CONTENT, &upload));
    }
    let busy =
        || Problem::new(StatusCode::CONFLICT, "BLOB_UPLOAD_INVALID", "another request writes to this upload");
    let lease = Arc::new(upload.lease().ok_or_else(busy)?);
    if method == Method::DELETE {
        cancel(shared, upload).await?;
        return Ok(empty(StatusCode::NO_CONTENT));
    }
    let digest = digest_of(query, "digest")?;
    if method == Method::PUT && digest.is_none() {
        return Err(Problem::bad("DIGEST_INVALID", "the upload's digest has to be said"));
    }
    let expected = expected(request.headers(), &upload)?;
    let need = length(request.headers());
    at_library(shared, move |library| room(library, need)).await?;
    let received = receive(shared, member, &lease, request.body_mut(), expected).await;
    match (digest, received) {
        (Some(digest), Ok(())) if method == Method::PUT => {
            finish(shared, lease, digest).await?;
            Ok(created(repository, &digest))
        }
        (_, Ok(())) => Ok(accepted(StatusCode::ACCEPTED, &upload)),
        (_, Err(problem)) => {
            // What is too long or too short is there, and belongs nowhere.
            if expected.is_some() && problem.status == StatusCode::BAD_REQUEST {
                cancel(shared, upload).await?;
            }
            Err(problem)
        }
    }
}

/// How many bytes a request has for an upload, if it says where they belong.
fn expected(headers: &HeaderMap, upload: &Upload) -> Result<Option<u64>, Problem> {
    let Some(range) = headers.get(CONTENT_RANGE) else { return Ok(None) };
    let parsed = range.to_str().ok().and_then(piece);
    let (first, last) =
        parsed.ok_or_else(|| Problem::bad("BLOB_UPLOAD_INVALID", "the Content-Range is none"))?;
    if first != upload.received() {
        let text = format!("the upload has {} bytes, and this begins at {first}", upload.received());
        return Err(Problem::new(StatusCode::RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID", text)
            .with(LOCATION, &location(upload))
            .with(RANGE, &so_far(upload)));
    }
    let count = last - first + 1;
    match length(headers) {
        Some(length) if length != count => Err(Problem::bad(
            "SIZE_INVALID",
            "the Content-Range and the Content-Length do not fit each other",
        )),
        _ => Ok(Some(count)),
    }
}

/// Whether the disk has room for what is to come.
fn room(library: &Library, bytes: Option<u64>) -> Result<(), Problem> {
    let need = library.store.need(bytes.unwrap_or(0), "an upload");
    need.map_err(|error| Problem::of_store(&error))
}

async fn finish(shared: &Arc<Shared>, lease: Arc<Lease>, digest: Digest) -> Result<(), Problem> {
    at_library(shared, move |library| Ok(staging(library)?.finish(&lease, &digest)?)).await
}

async fn cancel(shared: &Arc<Shared>, upload: Arc<Upload>) -> Result<(), Problem> {
    at_library(shared, move |library| {
        staging(library)?.cancel(&upload);
        Ok(())
    })
    .await
}

/// Takes a body in. What has come stays when the rest does not: the client can
/// go on from there.
async fn receive(
    shared: &Arc<Shared>,
    member: &Member,
    lease: &Arc<Lease>,
    body: &mut Incoming,
    expected: Option<u64>,
) -> Result<(), Problem> {
    let mut pace = Pace::new(shared.idle);
    let (mut received, mut batch, mut held) = (0, Vec::new(), 0);
    let mut writing: Option<Writing> = None;
    let end = loop {
        // One batch is written while the next comes. What has come is not kept here for longer than that.
        let event = {
            let mut next = std::pin::pin!(pace.next(body));
            std::future::poll_fn(|cx| {
                if let Some(task) = &mut writing
                    && let Poll::Ready(done) = Pin::new(task).poll(cx)
                {
                    return Poll::Ready(Event::Written(done));
                }
                match held < BATCH {
                    true => next.as_mut().poll(cx).map(Event::Came),
                    false => Poll::Pending,
                }
            })
            .await
        };
        match event {
            Event::Written(done) => {
                writing = None;
                done.unwrap_or_else(|error| Err(Problem::internal(error.to_string())))?;
            }
            Event::Came(Ok(Some(data))) => {
                member.moved(data.len());
                received += data.len() as u64;
                if expected.is_some_and(|expected| received > expected) {
                    break Err(Problem::bad(
                        "SIZE_INVALID",
                        "there are more bytes than the Content-Range says",
                    ));
                }
                held += data.len();
                batch.push(data);
            }
            Event::Came(Ok(None)) => break Ok(()),
            Event::Came(Err(problem)) => break Err(problem),
        }
        if writing.is_none() && held > 0 {
            held = 0;
            writing = Some(write(shared, lease, std::mem::take(&mut batch)));
        }
    };
    if let Some(done) = writing {
        joined(done).await?;
    }
    joined(write(shared, lease, batch)).await?;
    end?;
    if expected.is_some_and(|expected| received < expected) {
        return Err(Problem::bad("SIZE_INVALID", "there are fewer bytes than the Content-Range says"));
    }
    Ok(())
}

/// A batch on its way to the disk.
type Writing = tokio::task::JoinHandle<Result<(), Problem>>;

/// What comes next while a body is taken in.
enum Event {
    Written(Result<Result<(), Problem>, tokio::task::JoinError>),
    Came(Result<Option<Bytes>, Problem>),
}

fn write(shared: &Arc<Shared>, lease: &Arc<Lease>, batch: Vec<Bytes>) -> Writing {
    // It has the lease too: if the request is dropped, the upload is not free before this is done.
    let (shelf, lease) = (Arc::clone(&shared.shelf), Arc::clone(lease));
    tokio::task::spawn_blocking(move || {
        let Some(library) = shelf.library() else { return Ok(()) };
        Ok(staging(library)?.write(&library.store, &lease, &batch)?)
    })
}

async fn joined(task: Writing) -> Result<(), Problem> {
    task.await.unwrap_or_else(|error| Err(Problem::internal(error.to_string())))
}

/// How fast a body has to come.
struct Pace {
    idle: Duration,
    until: Instant,
    bytes: u64,
}

impl Pace {
    fn new(idle: Duration) -> Self {
        Self { idle, until: Instant::now() + idle, bytes: 0 }
    }

    /// The next bytes; `None` after the last.
    async fn next(&mut self, body: &mut Incoming) -> Result<Option<Bytes>, Problem> {
        loop {
            let frame = timeout_at(self.until, body.frame()).await;
            let slow =
                |_| Problem::new(StatusCode::REQUEST_TIMEOUT, "SIZE_INVALID", "the body came too slowly");
            let broken = |_| Problem::bad("SIZE_INVALID", "the body ended before its end");
            let Some(frame) = frame.map_err(slow)?.transpose().map_err(broken)? else { return Ok(None) };
            // Trailers say nothing here.
            let Ok(data) = frame.into_data() else { continue };
            self.bytes += data.len() as u64;
            if self.bytes >= STEP {
                (self.bytes, self.until) = (0, Instant::now() + self.idle);
            }
            return Ok(Some(data));
        }
    }
}

/// PUT of a manifest.
pub(crate) async fn put(
    shared: &Arc<Shared>,
    member: &Member,
    repository: &Repository,
    which: &Selector,
    request: &mut Request<Incoming>,
) -> Result<Answer, Problem> {
    writable(shared)?;
    let too_large = || {
        let text = format!("a manifest has {MAX_MANIFEST} bytes at most");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID", text)
    };
    if length(request.headers()).is_some_and(|length| length > MAX_MANIFEST as u64) {
        return Err(too_large());
    }
    let kind = request.headers().get(CONTENT_TYPE).map(|kind| kind.to_str().map(str::to_owned));
    let kind = kind.transpose().map_err(|_| Problem::bad("MANIFEST_INVALID", "its Content-Type is none"))?;
    let mut pace = Pace::new(shared.idle);
    let (mut bytes, mut permits) = (Vec::new(), Vec::new());
    while let Some(data) = pace.next(request.body_mut()).await? {
        member.moved(data.len());
        if bytes.len() + data.len() > MAX_MANIFEST {
            return Err(too_large());
        }
        while permits.len() * PERMIT < bytes.len() + data.len() {
            let permit = shared.manifests.try_acquire();
            permits.push(permit.map_err(|_| Problem::too_many("too many manifests come at once"))?);
        }
        bytes.extend_from_slice(&data);
    }
    let (name, selector) = (repository.clone(), which.clone());
    let put = at_library(shared, move |library| library.put(&name, &selector, kind.as_deref(), &bytes));
    let put = put.await?;
    let mut answer = empty(StatusCode::CREATED);
    let headers = answer.headers_mut();
    headers.insert(LOCATION, value(&format!("/v2/{repository}/manifests/{}", put.digest)));
    headers.insert(content_digest(), value(&put.digest.to_string()));
    if let Some(subject) = put.subject {
        headers.insert(HeaderName::from_static("oci-subject"), value(&subject.to_string()));
    }
    Ok(answer)
}

/// DELETE of a manifest or a tag.
pub(crate) async fn delete(
    shared: &Arc<Shared>,
    repository: &Repository,
    which: &Selector,
) -> Result<Answer, Problem> {
    writable(shared)?;
    let (name, selector) = (repository.clone(), which.clone());
    at_library(shared, move |library| library.delete(&name, &selector)).await?;
    Ok(empty(StatusCode::ACCEPTED))
}

/// DELETE of a blob: of one that no manifest names yet. Others are the
/// collector's to remove, when none names them any more.
pub(crate) async fn delete_blob(shared: &Arc<Shared>, digest: &Digest) -> Result<Answer, Problem> {
    writable(shared)?;
    let digest = *digest;
    at_library(shared, move |library| {
        // Not between the moment at which a manifest's blobs are found and that at which they are published.
        let none_put = library.putting.lock().unwrap_or_else(PoisonError::into_inner);
        if staging(library)?.forget([&digest]) {
            return Ok(empty(StatusCode::ACCEPTED));
        }
        drop(none_put);
        Err(match library.size(&digest) {
            Some(_) => Problem::unsupported(
                "blobs go when no manifest names them: delete those, and run `cargo xtask cache gc`",
            ),
            None => Problem::no_blob(digest),
        })
    })
    .await
}

fn location(upload: &Upload) -> String {
    format!("/v2/{}/blobs/uploads/{}", upload.repository, upload.id)
}

/// What there is, both ends included. Nothing is `0-0` too: so Docker began it,
/// and clients go on at 0 after a POST whatever this says.
fn so_far(upload: &Upload) -> String {
    format!("0-{}", upload.received().saturating_sub(1))
}

fn accepted(status: StatusCode, upload: &Upload) -> Answer {
    let mut answer = empty(status);
    let headers = answer.headers_mut();
    if status == StatusCode::NO_CONTENT {
        headers.remove(CONTENT_LENGTH);
    }
    headers.insert(LOCATION, value(&location(upload)));
    headers.insert(RANGE, value(&so_far(upload)));
    let id = HeaderValue::from_str(&upload.id).unwrap_or(HeaderValue::from_static(""));
    headers.insert(HeaderName::from_static("docker-upload-uuid"), id);
    answer
}

fn created(repository: &Repository, digest: &Digest) -> Answer {
    let mut answer = empty(StatusCode::CREATED);
    let headers = answer.headers_mut();
    headers.insert(LOCATION, value(&format!("/v2/{repository}/blobs/{digest}")));
    headers.insert(content_digest(), value(&digest.to_string()));
    answer
}
