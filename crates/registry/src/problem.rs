//! Refusals, in the form that the OCI distribution specification gives them
//! ("Error Codes").

use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use serde_json::json;
use smolcellar_store::StoreError;

use crate::body::{Answer, full};

/// Why a request is refused.
#[derive(Debug)]
pub(crate) struct Problem {
    pub(crate) status: StatusCode,
    /// One of the specification's, where one fits.
    code: &'static str,
    message: String,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), headers: Vec::new() }
    }

    /// With a header beside it.
    pub(crate) fn with(mut self, name: HeaderName, value: &str) -> Self {
        // What cannot be a header's value says nothing.
        self.headers.extend(HeaderValue::from_str(value).ok().map(|value| (name, value)));
        self
    }

    pub(crate) fn bad(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    pub(crate) fn missing(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, message)
    }

    pub(crate) fn unsupported(message: impl Into<String>) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", message)
    }

    pub(crate) fn too_many(message: impl Into<String>) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", message)
            .with(hyper::header::RETRY_AFTER, "1")
    }

    pub(crate) fn no_blob(digest: impl std::fmt::Display) -> Self {
        Self::missing("BLOB_UNKNOWN", format!("there is no blob {digest}"))
    }

    /// The server's own trouble, or that of the disk below it.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN", message)
    }

    /// What a store's error is to a client.
    pub(crate) fn of_store(error: &StoreError) -> Self {
        let full = |error: &std::io::Error| {
            matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
        };
        let status = match error {
            StoreError::NoSpace { .. } => StatusCode::INSUFFICIENT_STORAGE,
            StoreError::Io { source, .. } if full(source) => StatusCode::INSUFFICIENT_STORAGE,
            StoreError::LockTimeout { .. } | StoreError::GaveUp { .. } => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, "UNKNOWN", error.to_string())
    }

    pub(crate) fn answer(self) -> Answer {
        let body = json!({ "errors": [{ "code": self.code, "message": self.message }] }).to_string();
        let mut answer = full(self.status, body.into_bytes());
        answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        answer.headers_mut().extend(self.headers);
        answer
    }
}
