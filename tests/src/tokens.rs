//! A token server of a test's own (distribution's `spec/auth/token.md` and
//! `oauth.md`): tokens for scopes, which wear out after so many uses.

use crate::proxy::Seen;

/// Status, headers, body.
pub type Reply = (u16, Vec<(String, String)>, String);

/// Who gets tokens, and what these are good for.
#[derive(Debug, Clone)]
pub struct Tokens {
    /// `user:password` in base64, as Basic has it; `None`: anybody.
    basic: Option<String>,
    /// The identity token that is taken in its place.
    identity: Option<String>,
    /// How many requests a token is good for.
    uses: usize,
    /// What `expires_in` says, in seconds.
    expires_in: u64,
    issued: Vec<Issued>,
}

#[derive(Debug, Clone)]
struct Issued {
    text: String,
    scopes: Vec<String>,
    left: usize,
}

/// What is answered instead of the registry's answer.
#[derive(Debug)]
pub struct Judged {
    /// The answer, unless it depends on the request's body.
    pub reply: Reply,
    /// Whether it does: see [`Tokens::post`].
    pub takes_body: bool,
}

impl Default for Tokens {
    fn default() -> Self {
        Self { basic: None, identity: None, uses: usize::MAX, expires_in: 300, issued: Vec::new() }
    }
}

impl Tokens {
    /// Tokens for anybody, each good for so many requests.
    pub fn good_for(uses: usize) -> Self {
        Self { uses, ..Self::default() }
    }

    /// For this `user:password`, in base64, only.
    pub fn for_login(self, basic: &str) -> Self {
        Self { basic: Some(basic.to_owned()), ..self }
    }

    /// For this identity token, too.
    pub fn for_identity(self, token: &str) -> Self {
        Self { identity: Some(token.to_owned()), ..self }
    }

    /// How many tokens were given out.
    pub fn issued(&self) -> usize {
        self.issued.len()
    }

    /// `None` for a request that may pass to the registry.
    pub fn judge(&mut self, seen: &Seen, host: &str) -> Option<Judged> {
        let (path, query) = seen.path.split_once('?').unwrap_or((&seen.path, ""));
        if path == "/token" {
            if seen.method == "POST" {
                return Some(Judged { reply: Reply::default(), takes_body: true });
            }
            let given = seen.header("authorization").and_then(|value| value.strip_prefix("Basic "));
            let reply = match &self.basic {
                Some(wanted) if given != Some(wanted) => (401, Vec::new(), refusal("UNAUTHORIZED")),
                _ => self.issue(query, "token"),
            };
            return Some(Judged { reply, takes_body: false });
        }
        let wanted = wanted(&seen.method, path, query);
        let given = seen.header("authorization").and_then(|value| value.strip_prefix("Bearer "));
        let token = self.issued.iter_mut().find(|token| Some(token.text.as_str()) == given);
        let error = match token {
            Some(token) if token.left == 0 => "invalid_token",
            Some(token) => {
                token.left -= 1;
                if wanted.iter().all(|scope| covered(&token.scopes, scope)) {
                    return None;
                }
                "insufficient_scope"
            }
            None => "invalid_token",
        };
        let challenge = format!(
            "Bearer realm=\"http://{host}/token\",service=\"a, test\",scope=\"{}\",error=\"{error}\"",
            wanted.join(" ")
        );
        let reply = (401, vec![("WWW-Authenticate".into(), challenge)], refusal("UNAUTHORIZED"));
        Some(Judged { reply, takes_body: false })
    }

    /// The answer to a POST to the token server with this body.
    pub fn post(&mut self, body: &str) -> Reply {
        let field = |name: &str| fields(body).find(|(known, _)| known == name).map(|(_, value)| value);
        let known = self.identity.is_some() && field("refresh_token") == self.identity;
        match field("grant_type").as_deref() {
            Some("refresh_token") if known => self.issue(body, "access_token"),
            _ => (401, Vec::new(), refusal("UNAUTHORIZED")),
        }
    }

    fn issue(&mut self, query: &str, name: &str) -> Reply {
        let scopes = fields(query).filter(|(name, _)| name == "scope").map(|(_, value)| value);
        let scopes: Vec<String> =
            scopes.flat_map(|v| v.split(' ').map(str::to_owned).collect::<Vec<_>>()).collect();
        let text = format!("secret-token-{}", self.issued.len());
        let body = format!("{{\"{name}\":\"{text}\",\"expires_in\":{}}}", self.expires_in);
        self.issued.push(Issued { text, scopes, left: self.uses });
        (200, vec![("Content-Type".into(), "application/json".into())], body)
    }
}

fn refusal(code: &str) -> String {
    format!("{{\"errors\":[{{\"code\":\"{code}\",\"message\":\"said the token server\"}}]}}")
}

/// `repository:NAME:ACTION`, each with one action.
fn wanted(method: &str, path: &str, query: &str) -> Vec<String> {
    let path = path.trim_start_matches("/v2/");
    let end = ["/blobs/", "/manifests/", "/tags/"].iter().filter_map(|part| path.find(part)).min();
    let Some(name) = end.map(|end| &path[..end]) else { return Vec::new() };
    let action = match method {
        "GET" | "HEAD" => "pull",
        "DELETE" => "delete",
        _ => "push",
    };
    let from = fields(query).find(|(name, _)| name == "from").map(|(_, value)| value);
    let own = format!("repository:{name}:{action}");
    std::iter::once(own).chain(from.map(|from| format!("repository:{from}:pull"))).collect()
}

fn covered(scopes: &[String], wanted: &str) -> bool {
    let Some((name, action)) = wanted.rsplit_once(':') else { return false };
    scopes
        .iter()
        .filter_map(|scope| scope.rsplit_once(':'))
        .any(|(known, actions)| known == name && actions.split(',').any(|known| known == action))
}

/// The decoded fields of a query or a form.
fn fields(text: &str) -> impl Iterator<Item = (String, String)> {
    let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (decoded(name), decoded(value)))
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match (first, hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            (b'+', _) => bytes.push(b' '),
            _ => bytes.push(*first),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
