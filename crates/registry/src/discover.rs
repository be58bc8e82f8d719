//! Lists (OCI distribution specification, "Content discovery").

use std::fmt::Display;
use std::sync::Arc;

use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, HeaderName, LINK};
use serde_json::json;
use smolcellar_oci::{Manifest, Repository, media};
use smolcellar_store::Digest;

use crate::body::{Answer, full};
use crate::handle::blocking;
use crate::problem::Problem;
use crate::pull::value;
use crate::query::Query;
use crate::range::number;
use crate::server::Shared;

/// So many names are listed at once, whoever asks for more.
const MOST: usize = 10_000;

/// `/v2/_catalog`
pub(crate) async fn catalog(shared: &Arc<Shared>, query: &Query) -> Result<Answer, Problem> {
    let shelf = Arc::clone(&shared.shelf);
    let all = blocking(move || shelf.repositories()).await?;
    let (page, more) = page(all, query)?;
    let mut answer = json(&json!({ "repositories": page }));
    link(&mut answer, "/v2/_catalog", query, more);
    Ok(answer)
}

/// `/v2/NAME/tags/list`
pub(crate) async fn tags(
    shared: &Arc<Shared>,
    repository: &Repository,
    query: &Query,
) -> Result<Answer, Problem> {
    let (shelf, name) = (Arc::clone(&shared.shelf), repository.clone());
    let unknown = || Problem::missing("NAME_UNKNOWN", format!("there is no repository {repository}"));
    let all = blocking(move || shelf.tags(&name)).await?.ok_or_else(unknown)?;
    let (page, more) = page(all, query)?;
    let mut answer = json(&json!({ "name": repository, "tags": page }));
    link(&mut answer, &format!("/v2/{repository}/tags/list"), query, more);
    Ok(answer)
}

/// `/v2/NAME/referrers/DIGEST`
pub(crate) async fn referrers(
    shared: &Arc<Shared>,
    repository: &Repository,
    subject: &Digest,
    query: &Query,
) -> Result<Answer, Problem> {
    let (shelf, name, of) = (Arc::clone(&shared.shelf), repository.clone(), *subject);
    let mut found = blocking(move || shelf.referrers(&name, &of)).await?;
    let wanted = query.get("artifactType");
    if let Some(wanted) = wanted {
        found.retain(|descriptor| descriptor.artifact_type.as_deref() == Some(wanted));
    }
    let mut index = Manifest::new(media::INDEX);
    index.manifests = Some(found);
    let mut answer = full(StatusCode::OK, index.to_bytes());
    answer.headers_mut().insert(CONTENT_TYPE, value(media::INDEX));
    if wanted.is_some() {
        let applied = HeaderName::from_static("oci-filters-applied");
        answer.headers_mut().insert(applied, value("artifactType"));
    }
    Ok(answer)
}

fn json(value: &serde_json::Value) -> Answer {
    let mut answer = full(StatusCode::OK, value.to_string());
    answer.headers_mut().insert(CONTENT_TYPE, crate::pull::value("application/json"));
    answer
}

/// The names after `last`, `n` of them at most; the last of these if there are more.
fn page<T: Display>(all: Vec<T>, query: &Query) -> Result<(Vec<String>, Option<String>), Problem> {
    let n = match query.get("n") {
        Some(n) => number(n).ok_or_else(|| Problem::bad("PAGINATION_NUMBER_INVALID", "n is no number"))?,
        None => MOST as u64,
    };
    let n = usize::try_from(n).unwrap_or(MOST).min(MOST);
    let last = query.get("last").unwrap_or_default();
    let mut names: Vec<String> = all.iter().map(T::to_string).filter(|name| name.as_str() > last).collect();
    names.sort();
    let more = names.len() > n && n > 0;
    names.truncate(n);
    let next = names.last().filter(|_| more).cloned();
    Ok((names, next))
}

/// Says where the rest is (RFC 8288).
fn link(answer: &mut Answer, path: &str, query: &Query, next: Option<String>) {
    if let Some(next) = next {
        let n = query.get("n").map_or_else(|| MOST.to_string(), str::to_owned);
        // Names need no encoding but for their slashes, which a query may have as they are.
        answer.headers_mut().insert(LINK, value(&format!("<{path}?n={n}&last={next}>; rel=\"next\"")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pages_together_are_the_list(mut names in prop::collection::btree_set("[a-z]{1,3}", 0..30), n in 1..8u64) {
            let all: Vec<String> = names.iter().cloned().collect();
            let mut last = String::new();
            loop {
                let query = Query::parse(Some(&format!("n={n}&last={last}"))).unwrap();
                let (page, more) = page(all.clone(), &query).unwrap();
                prop_assert!(page.len() as u64 <= n);
                for name in &page {
                    prop_assert!(names.remove(name), "{} twice", name);
                }
                match more {
                    Some(next) => last = next,
                    None => break,
                }
            }
            prop_assert!(names.is_empty());
        }
    }
}
