//! What a path asks for (OCI distribution specification, "Endpoints").

use smolcellar_oci::{NameError, Repository, Selector};
use smolcellar_store::Digest;

use crate::query::decode;

/// Something of a repository's that a path names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Route {
    /// `/v2/`: whether this is a registry.
    Base,
    /// `/v2/_catalog`
    Catalog,
    /// `/v2/NAME/tags/list`
    Tags(Repository),
    /// `/v2/NAME/manifests/TAG|DIGEST`
    Manifest(Repository, Selector),
    /// `/v2/NAME/blobs/DIGEST`
    Blob(Repository, Digest),
    /// `/v2/NAME/blobs/uploads/`
    Uploads(Repository),
    /// `/v2/NAME/blobs/uploads/ID`
    Upload(Repository, String),
    /// `/v2/NAME/referrers/DIGEST`
    Referrers(Repository, Digest),
}

/// Why a path names nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NoRoute {
    /// It is none of the specification's.
    Unknown,
    /// The repository's name is none.
    Name(String),
    /// The tag is none.
    Tag(String),
    /// The digest is none, or of an algorithm that is not known.
    Digest(String),
}

impl Route {
    /// Parses a path. The end is looked at first: a repository may be called
    /// `a/blobs/uploads`.
    ///
    /// # Errors
    /// [`NoRoute`].
    pub(crate) fn parse(path: &str) -> Result<Self, NoRoute> {
        let path = decode(path).ok_or(NoRoute::Unknown)?;
        let rest = match path.strip_prefix("/v2") {
            Some("" | "/") => return Ok(Self::Base),
            Some(rest) => rest.strip_prefix('/').ok_or(NoRoute::Unknown)?,
            None => return Err(NoRoute::Unknown),
        };
        if rest == "_catalog" {
            return Ok(Self::Catalog);
        }
        let name = |text: &str| Repository::parse(text).map_err(|error| NoRoute::Name(error.to_string()));
        let digest = |text: &str| Digest::parse(text).map_err(|error| NoRoute::Digest(error.to_string()));
        let (head, last) = rest.rsplit_once('/').ok_or(NoRoute::Unknown)?;
        let (front, middle) = head.rsplit_once('/').ok_or(NoRoute::Unknown)?;
        match (front.rsplit_once('/'), middle, last) {
            (_, "manifests", last) => Ok(Self::Manifest(name(front)?, selector(last)?)),
            (_, "tags", "list") => Ok(Self::Tags(name(front)?)),
            (_, "referrers", last) => Ok(Self::Referrers(name(front)?, digest(last)?)),
            // `…/blobs/uploads/ID` before `…/blobs/DIGEST`, of which it has one part more.
            (Some((front, "blobs")), "uploads", "") => Ok(Self::Uploads(name(front)?)),
            (Some((front, "blobs")), "uploads", id) => Ok(Self::Upload(name(front)?, id.to_owned())),
            // Some clients leave the last slash away.
            (_, "blobs", "uploads") => Ok(Self::Uploads(name(front)?)),
            (_, "blobs", last) => Ok(Self::Blob(name(front)?, digest(last)?)),
            _ => Err(NoRoute::Unknown),
        }
    }
}

fn selector(text: &str) -> Result<Selector, NoRoute> {
    text.parse().map_err(|error: NameError| match text.contains(':') {
        true => NoRoute::Digest(error.to_string()),
        false => NoRoute::Tag(error.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(text: &str) -> Repository {
        Repository::parse(text).unwrap()
    }

    #[test]
    fn every_endpoint_of_the_specification_is_found() {
        let digest = Digest::of(b"x");
        for (path, route) in [
            ("/v2/".to_owned(), Route::Base),
            ("/v2".into(), Route::Base),
            ("/v2/_catalog".into(), Route::Catalog),
            ("/v2/a/b/tags/list".into(), Route::Tags(name("a/b"))),
            ("/v2/a/manifests/v1".into(), Route::Manifest(name("a"), "v1".parse().unwrap())),
            (format!("/v2/a/manifests/{digest}"), Route::Manifest(name("a"), Selector::Digest(digest))),
            (format!("/v2/a/b/c/blobs/{digest}"), Route::Blob(name("a/b/c"), digest)),
            (format!("/v2/a/blobs/sha256%3A{}", digest.hex()), Route::Blob(name("a"), digest)),
            ("/v2/a/blobs/uploads/".into(), Route::Uploads(name("a"))),
            ("/v2/a/blobs/uploads".into(), Route::Uploads(name("a"))),
            ("/v2/a/blobs/uploads/0f".into(), Route::Upload(name("a"), "0f".into())),
            (format!("/v2/a/referrers/{digest}"), Route::Referrers(name("a"), digest)),
            // Names that look like endpoints.
            ("/v2/a/blobs/uploads/manifests/l".into(), {
                Route::Manifest(name("a/blobs/uploads"), "l".parse().unwrap())
            }),
            ("/v2/tags/list/tags/list".into(), Route::Tags(name("tags/list"))),
        ] {
            assert_eq!(Route::parse(&path), Ok(route), "{path}");
        }
    }

    #[test]
    fn what_is_no_endpoint_has_a_reason() {
        for path in
            ["", "/", "/v1/", "/v3/", "/v2x/", "/v2/a", "/v2/a/b/c", "/v2//", "/v2/a/tags/x", "/v2/%zz"]
        {
            assert_eq!(Route::parse(path), Err(NoRoute::Unknown), "{path}");
        }
        for path in
            ["/v2/../manifests/x", "/v2/A/tags/list", "/v2/a/../../etc/manifests/x", "/v2/%2e%2e/tags/list"]
        {
            assert!(matches!(Route::parse(path), Err(NoRoute::Name(_))), "{path}");
        }
        for path in
            ["/v2/a/blobs/sha256:0", "/v2/a/blobs/..", "/v2/a/referrers/x", "/v2/a/manifests/sha512:00"]
        {
            assert!(matches!(Route::parse(path), Err(NoRoute::Digest(_))), "{path}");
        }
        for path in ["/v2/a/manifests/.x", "/v2/a/manifests/"] {
            assert!(matches!(Route::parse(path), Err(NoRoute::Tag(_))), "{path}");
        }
    }

    proptest! {
        #[test]
        fn no_path_makes_it_panic(path in "(/v2)?(/(a|b|\\.\\.|blobs|uploads|manifests|tags|list|%2F|\\PC{0,5})){0,7}") {
            let _ = Route::parse(&path);
        }

        #[test]
        fn any_repository_and_tag_are_found_again(repository in "[a-z0-9]{1,8}(/[a-z0-9]{1,8}){0,3}", tag in "[a-zA-Z0-9_][a-zA-Z0-9._-]{0,9}") {
            let route = Route::parse(&format!("/v2/{repository}/manifests/{tag}"));
            prop_assert_eq!(route, Ok(Route::Manifest(name(&repository), tag.parse().unwrap())));
        }
    }
}
