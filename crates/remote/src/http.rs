//! One request and its answer, bounded in time. No retries, no redirects, no
//! logging in: these are above this.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use smolcellar_oci::Registry;
use ureq::http::{HeaderMap, Request};
use ureq::{Agent, BodyReader, SendBody, Timeout};

use crate::error::{RemoteError, Result};
use crate::options::{Options, Secret};
use crate::retry::retry_after;
use crate::text::{clip, said};
use crate::url::Url;

/// The largest refusal that is read, in bytes.
const MAX_REFUSAL: usize = 64 << 10;

/// Connections to one registry, and to where it sends us.
#[derive(Debug, Clone)]
pub(crate) struct Http {
    agent: Agent,
    root: Url,
    /// What errors call it.
    name: String,
    options: Arc<Options>,
}

/// What is asked.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    pub(crate) method: &'static str,
    pub(crate) url: Url,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) authorization: Option<Secret>,
    /// What errors call it.
    pub(crate) what: String,
    /// When all of it must be over.
    pub(crate) deadline: Option<Instant>,
    /// How much longer than usual the answer may take.
    pub(crate) extra: Duration,
}

impl Ask {
    pub(crate) fn new(method: &'static str, url: Url, what: impl Into<String>) -> Self {
        Self {
            method,
            url,
            headers: Vec::new(),
            authorization: None,
            what: what.into(),
            deadline: None,
            extra: Duration::ZERO,
        }
    }

    pub(crate) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(crate) fn until(self, deadline: Option<Instant>) -> Self {
        Self { deadline, ..self }
    }
}

/// What goes with it.
pub(crate) enum Payload<'a> {
    None,
    Bytes(&'a [u8]),
    /// So many bytes.
    Stream(&'a mut dyn Read, u64),
}

impl Http {
    pub(crate) fn new(registry: &Registry, name: &str, options: Arc<Options>) -> Self {
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("smolcellar/", env!("CARGO_PKG_VERSION")))
            // Bytes as they are: their digests are checked.
            .accept_encoding("identity")
            .timeout_connect(Some(options.connect))
            .timeout_resolve(Some(options.connect))
            .timeout_send_request(Some(options.answer))
            .timeout_per_write(Some(options.idle))
            .max_response_header_size(64 << 10)
            .max_idle_connections(32)
            .max_idle_connections_per_host(16)
            .tls_config(
                ureq::tls::TlsConfig::builder().root_certs(ureq::tls::RootCerts::PlatformVerifier).build(),
            );
        if registry.is_loopback() {
            // No proxy reaches this machine's own loopback.
            config = config.proxy(None);
        }
        Self { agent: config.build().into(), root: Url::of(registry), name: name.to_owned(), options }
    }

    /// The registry's address.
    pub(crate) fn root(&self) -> &Url {
        &self.root
    }

    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    /// What errors call the registry.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// What errors call who was asked: the registry, or where it sent us.
    fn who(&self, ask: &Ask) -> String {
        if ask.url.same_origin(&self.root) { self.name.clone() } else { ask.url.to_string() }
    }

    /// Sends a request and waits for the head of its answer.
    pub(crate) fn send(&self, ask: &Ask, payload: Payload<'_>) -> Result<Answer> {
        let who = self.who(ask);
        let left = match ask.deadline {
            None => None,
            Some(deadline) => match deadline.checked_duration_since(Instant::now()) {
                Some(left) if !left.is_zero() => Some(left),
                _ => return Err(self.too_slow(ask, &who, "its time is over".into())),
            },
        };
        let failed = |error: ureq::Error| self.failed(ask, &who, error);
        let mut request = Request::builder().method(ask.method).uri(ask.url.text());
        for (name, value) in &ask.headers {
            request = request.header(*name, value);
        }
        if let Some(header) = &ask.authorization {
            request = request.header("Authorization", header.expose());
        }
        match payload {
            Payload::None if matches!(ask.method, "GET" | "HEAD" | "DELETE") => {
                self.finish(ask, &who, request, left, (), failed)
            }
            Payload::None => self.finish(ask, &who, request, left, &[][..], failed),
            Payload::Bytes(bytes) => self.finish(ask, &who, request, left, bytes, failed),
            Payload::Stream(reader, length) => {
                let request = request.header("Content-Length", length.to_string());
                self.finish(ask, &who, request, left, SendBody::from_reader(reader), failed)
            }
        }
    }

    fn finish(
        &self,
        ask: &Ask,
        who: &str,
        request: ureq::http::request::Builder,
        left: Option<Duration>,
        body: impl ureq::AsSendBody,
        failed: impl Fn(ureq::Error) -> RemoteError,
    ) -> Result<Answer> {
        let request = request.body(body).map_err(|error| failed(error.into()))?;
        let request = self
            .agent
            .configure_request(request)
            .timeout_global(left)
            .timeout_recv_response(Some(self.options.answer + ask.extra))
            .timeout_per_read(Some(self.options.idle + ask.extra))
            .build();
        let response = self.agent.run(request).map_err(&failed)?;
        let (parts, body) = response.into_parts();
        let slow = Pace::new(&self.options);
        let answer = Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: body.into_reader(),
            who: who.to_owned(),
            slow,
        };
        Ok(answer)
    }

    fn too_slow(&self, ask: &Ask, who: &str, problem: String) -> RemoteError {
        RemoteError::TooSlow { registry: who.to_owned(), what: ask.what.clone(), problem }
    }

    fn failed(&self, ask: &Ask, who: &str, error: ureq::Error) -> RemoteError {
        classify(who, &ask.what, error)
    }
}

/// An error of the HTTP library, in our words.
fn classify(who: &str, what: &str, error: ureq::Error) -> RemoteError {
    let (registry, what) = (who.to_owned(), what.to_owned());
    match error {
        ureq::Error::Timeout(Timeout::Connect | Timeout::Resolve) => {
            RemoteError::Unreachable { registry, problem: "it does not answer".into() }
        }
        ureq::Error::Timeout(which) => {
            let problem = match which {
                Timeout::Global | Timeout::PerCall => "its time is over",
                Timeout::PerRead | Timeout::RecvBody => "it paused for too long",
                Timeout::PerWrite | Timeout::SendBody | Timeout::SendRequest => "it takes nothing any more",
                _ => "it does not answer",
            };
            RemoteError::TooSlow { registry, what, problem: problem.into() }
        }
        ureq::Error::HostNotFound => {
            RemoteError::Unreachable { registry, problem: "there is no host of that name".into() }
        }
        ureq::Error::ConnectionFailed => {
            RemoteError::Unreachable { registry, problem: "no connection".into() }
        }
        ureq::Error::Io(error) => match error.kind() {
            // How rustls passes on what it thinks of a peer.
            io::ErrorKind::InvalidData => {
                RemoteError::Tls { registry, problem: clip(&error.to_string(), 200) }
            }
            io::ErrorKind::ConnectionRefused
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown
            | io::ErrorKind::AddrNotAvailable => {
                RemoteError::Unreachable { registry, problem: error.to_string() }
            }
            _ => RemoteError::Cut { registry, what, problem: clip(&error.to_string(), 200) },
        },
        ureq::Error::Rustls(error) => RemoteError::Tls { registry, problem: clip(&error.to_string(), 200) },
        ureq::Error::Tls(problem) => RemoteError::Tls { registry, problem: problem.to_owned() },
        ureq::Error::ConnectProxyFailed(problem) => {
            RemoteError::Unreachable { registry, problem: format!("the proxy says: {}", clip(&problem, 100)) }
        }
        error => RemoteError::Nonsense {
            registry,
            what,
            problem: format!("no HTTP: {}", clip(&error.to_string(), 200)),
        },
    }
}

/// Watches that a transfer makes enough bytes in enough time.
#[derive(Debug)]
pub(crate) struct Pace {
    slowest: u64,
    window: Duration,
    began: Instant,
    bytes: u64,
}

impl Pace {
    pub(crate) fn new(options: &Options) -> Self {
        Self { slowest: options.slowest, window: options.idle, began: Instant::now(), bytes: 0 }
    }

    /// Counts bytes. Whether there were enough of them.
    pub(crate) fn count(&mut self, bytes: usize) -> bool {
        self.bytes += bytes as u64;
        let passed = self.began.elapsed();
        if passed < self.window {
            return true;
        }
        let enough = self.bytes as f64 >= self.slowest as f64 * passed.as_secs_f64();
        (self.began, self.bytes) = (Instant::now(), 0);
        enough
    }
}

/// An answer: its head, and its body to come.
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: HeaderMap,
    body: BodyReader<'static>,
    who: String,
    slow: Pace,
}

impl Answer {
    /// A header, if it is text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// All headers of this name.
    pub(crate) fn headers(&self, name: &str) -> Vec<String> {
        let values = self.headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.map(str::to_owned).collect()
    }

    /// `Content-Length`.
    pub(crate) fn length(&self) -> Option<u64> {
        self.header("Content-Length").and_then(|length| length.trim().parse().ok())
    }

    /// The next bytes of the body; 0 at its end.
    pub(crate) fn read(&mut self, what: &str, buffer: &mut [u8]) -> Result<usize> {
        let result = self.body.read(buffer);
        let read = result.map_err(|error| classify(&self.who, what, ureq::Error::from(error)))?;
        if read > 0 && !self.slow.count(read) {
            let problem = format!("it sends fewer than {} bytes a second", self.slow.slowest);
            return Err(RemoteError::TooSlow { registry: self.who.clone(), what: what.to_owned(), problem });
        }
        Ok(read)
    }

    /// The whole body, which must have no more than `most` bytes.
    pub(crate) fn small(&mut self, most: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut piece = vec![0; 16 << 10];
        loop {
            match self.read("a short answer", &mut piece)? {
                0 => return Ok(bytes),
                read if bytes.len() + read > most => {
                    return Err(RemoteError::Nonsense {
                        registry: self.who.clone(),
                        what: "a short answer".into(),
                        problem: format!("more than {most} bytes"),
                    });
                }
                read => bytes.extend_from_slice(&piece[..read]),
            }
        }
    }

    /// This answer as an error. Reads the reason.
    pub(crate) fn refusal(mut self, ask: &Ask) -> RemoteError {
        let body = self.small(MAX_REFUSAL).unwrap_or_default();
        self.refused(ask, &body)
    }

    /// This answer as an error, its body read already. Only 4xx and 5xx refuse
    /// anything; what else was not hoped for makes no sense.
    pub(crate) fn refused(&self, ask: &Ask, body: &[u8]) -> RemoteError {
        if self.status < 400 {
            return self.nonsense(ask, format!("with status {}, which is no answer to that", self.status));
        }
        RemoteError::Refused {
            registry: self.who.clone(),
            what: ask.what.clone(),
            status: self.status,
            said: said(body),
            retry_after: self.header("Retry-After").and_then(retry_after),
        }
    }

    /// An answer that makes no sense.
    pub(crate) fn nonsense(&self, ask: &Ask, problem: impl Into<String>) -> RemoteError {
        RemoteError::Nonsense { registry: self.who.clone(), what: ask.what.clone(), problem: problem.into() }
    }
}
