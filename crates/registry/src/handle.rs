//! One request: who asks, for what, and what is answered.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Method, Request, StatusCode};
use smolcellar_store::StoreError;

use crate::body::{Answer, full};
use crate::crowd::Member;
use crate::guard;
use crate::problem::Problem;
use crate::query::Query;
use crate::route::{NoRoute, Route};
use crate::seen::{Access, add};
use crate::server::Shared;
use crate::{discover, pull, push};

/// So much of a refused body is read, so that its sender gets to read the refusal.
const DRAIN: usize = 1 << 20;
const DRAIN_TIME: Duration = Duration::from_secs(2);

/// Answers a request; never fails.
pub(crate) async fn handle(
    shared: Arc<Shared>,
    member: Arc<Member>,
    mut request: Request<Incoming>,
) -> Result<Answer, Infallible> {
    let began = Instant::now();
    member.stepped();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let answered = respond(&shared, &member, &mut request).await;
    let mut answer = match answered {
        Ok(answer) => answer,
        Err(problem) => {
            drain(&mut request).await;
            problem.answer()
        }
    };
    let version = HeaderName::from_static("docker-distribution-api-version");
    answer.headers_mut().insert(version, HeaderValue::from_static("registry/2.0"));
    add(&shared.counts.requests, 1);
    if answer.status().is_client_error() || answer.status().is_server_error() {
        add(&shared.counts.refused, 1);
    }
    if let Some(on_access) = &shared.on_access {
        on_access(&Access {
            method: method.as_str().escape_debug().to_string(),
            path: path.escape_debug().to_string(),
            status: answer.status().as_u16(),
            millis: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        });
    }
    member.stepped();
    Ok(answer)
}

async fn respond(
    shared: &Arc<Shared>,
    member: &Arc<Member>,
    request: &mut Request<Incoming>,
) -> Result<Answer, Problem> {
    guard::check(request.uri(), request.headers(), shared.addr)?;
    let route = Route::parse(request.uri().path()).map_err(|no_route| match no_route {
        NoRoute::Unknown => Problem::missing("NAME_UNKNOWN", "there is nothing of a registry at this path"),
        NoRoute::Name(problem) => Problem::bad("NAME_INVALID", problem),
        NoRoute::Tag(problem) => Problem::bad("TAG_INVALID", problem),
        NoRoute::Digest(problem) => Problem::bad("DIGEST_INVALID", problem),
    })?;
    let query = Query::parse(request.uri().query());
    let query =
        query.ok_or_else(|| Problem::bad("UNSUPPORTED", "the percent-encoding of the query is wrong"))?;
    let method = request.method().clone();
    match (&route, &method) {
        (Route::Base, &Method::GET | &Method::HEAD) => {
            let mut answer = full(StatusCode::OK, "{}");
            answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            Ok(answer)
        }
        (Route::Catalog, &Method::GET | &Method::HEAD) => discover::catalog(shared, &query).await,
        (Route::Tags(repository), &Method::GET | &Method::HEAD) => {
            discover::tags(shared, repository, &query).await
        }
        (Route::Referrers(repository, subject), &Method::GET | &Method::HEAD) => {
            discover::referrers(shared, repository, subject, &query).await
        }
        (Route::Manifest(repository, which), &Method::GET | &Method::HEAD) => {
            pull::manifest(shared, repository, which, request.headers()).await
        }
        (Route::Blob(repository, digest), &Method::GET | &Method::HEAD) => {
            pull::blob(shared, member, repository, digest, &method, request.headers()).await
        }
        (Route::Manifest(repository, which), &Method::PUT) => {
            push::put(shared, member, repository, which, request).await
        }
        (Route::Manifest(repository, which), &Method::DELETE) => {
            push::delete(shared, repository, which).await
        }
        (Route::Blob(_, digest), &Method::DELETE) => push::delete_blob(shared, digest).await,
        (Route::Uploads(repository), &Method::POST) => {
            push::begin(shared, member, repository, &query, request).await
        }
        (Route::Upload(repository, id), _) => {
            push::go_on(shared, member, repository, id, &query, request).await
        }
        (Route::Uploads(_), _) => Err(Problem::unsupported("an upload begins with POST").with(ALLOW, "POST")),
        (Route::Manifest(..), _) => Err(no_method("GET, HEAD, PUT, DELETE")),
        (Route::Blob(..), _) => Err(no_method("GET, HEAD, DELETE")),
        _ => Err(no_method("GET, HEAD")),
    }
}

fn no_method(allowed: &str) -> Problem {
    Problem::unsupported(format!("here are only {allowed}")).with(ALLOW, allowed)
}

/// Whether a method is one of these.
pub(crate) fn asked(method: &Method, any: &[Method]) -> bool {
    any.contains(method)
}

/// Runs what blocks where that is allowed.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, Problem> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|error| Problem::of_store(&error)),
        Err(error) => Err(Problem::internal(error.to_string())),
    }
}

/// Reads some of what is left of a body. A connection that is closed with bytes
/// unread is reset, and a reset can overtake the answer.
async fn drain(request: &mut Request<Incoming>) {
    let mut left = DRAIN;
    let reading = async {
        while let Some(Ok(frame)) = request.body_mut().frame().await {
            let length = frame.data_ref().map_or(0, |data| data.len());
            match left.checked_sub(length) {
                Some(rest) => left = rest,
                None => break,
            }
        }
    };
    // Whether it was all of it makes no difference to what is answered.
    let _ = tokio::time::timeout(DRAIN_TIME, reading).await;
}
