//! `WWW-Authenticate`: how a registry wants to be convinced (RFC 9110, section
//! 11; distribution's `spec/auth/token.md`).

use std::collections::BTreeMap;

/// The longest header that is read, in bytes.
const LONGEST: usize = 16 << 10;

/// One way in.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Challenge {
    /// Lower-case: `basic`, `bearer`.
    pub(crate) scheme: String,
    /// Names in lower case.
    pub(crate) parameters: BTreeMap<String, String>,
}

impl Challenge {
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }
}

/// The challenges in one header, as far as they can be understood: what comes
/// after something that cannot is left out.
pub(crate) fn parse(header: &str) -> Vec<Challenge> {
    let mut challenges: Vec<Challenge> = Vec::new();
    let mut rest = header.get(..header.len().min(LONGEST)).unwrap_or_default();
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let (word, after) = token(rest);
        if word.is_empty() {
            return challenges;
        }
        let trimmed = after.trim_start_matches([' ', '\t']);
        match (trimmed.strip_prefix('='), challenges.last_mut()) {
            // NAME=VALUE belongs to the scheme before it.
            (Some(value), Some(challenge)) => {
                let Some((value, after)) = parameter(value.trim_start_matches([' ', '\t'])) else {
                    return challenges;
                };
                challenge.parameters.entry(word.to_ascii_lowercase()).or_insert(value);
                rest = after;
            }
            (Some(_), None) => return challenges,
            (None, _) => {
                challenges.push(Challenge { scheme: word.to_ascii_lowercase(), ..Challenge::default() });
                rest = after;
            }
        }
    }
}

/// `token` of RFC 9110, section 5.6.2, and what follows it.
fn token(text: &str) -> (&str, &str) {
    let part = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~/".contains(c);
    text.split_at(text.find(|c| !part(c)).unwrap_or(text.len()))
}

/// A token or a quoted string, and what follows it.
fn parameter(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let (value, rest) = token(text);
        return (!value.is_empty()).then(|| (value.to_owned(), rest));
    };
    let (mut value, mut escaped) = (String::new(), false);
    for (at, c) in quoted.char_indices() {
        match c {
            _ if escaped => {
                value.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            '"' => return Some((value, &quoted[at + 1..])),
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bearer(parameters: &[(&str, &str)]) -> Challenge {
        let pairs = parameters.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Challenge { scheme: "bearer".into(), parameters: pairs.collect() }
    }

    #[test]
    fn challenges_of_real_registries_are_understood() {
        let docker = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#;
        let expected = bearer(&[
            ("realm", "https://auth.docker.io/token"),
            ("service", "registry.docker.io"),
            ("scope", "repository:a/b:pull,push"),
        ]);
        assert_eq!(parse(docker), [expected]);
        let both = parse(r#"Basic realm="a \"b\", c" , BEARER Realm = x, error="invalid_token""#);
        assert_eq!((both[0].scheme.as_str(), both[0].get("realm")), ("basic", Some("a \"b\", c")));
        assert_eq!(both[1], bearer(&[("realm", "x"), ("error", "invalid_token")]));
        assert_eq!(parse("Negotiate, Basic realm=x").len(), 2);
    }

    #[test]
    fn what_is_cut_short_or_odd_is_left_out() {
        assert_eq!(parse(r#"Bearer realm="https://x"#), [bearer(&[])]);
        assert_eq!(parse(r#"Bearer realm=,service="s""#), [bearer(&[])]);
        assert_eq!(parse("=x, Bearer"), []);
        // Said twice, the first counts: nobody can add another realm after it.
        assert_eq!(parse("Bearer realm=a, realm=b"), [bearer(&[("realm", "a")])]);
    }

    proptest! {
        #[test]
        fn a_challenge_reads_back_whatever_its_values(
            values in proptest::collection::btree_map("[a-z_]{1,8}", "\\PC{0,20}", 0..4)
        ) {
            let quoted = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
            let parts: Vec<_> = values.iter().map(|(n, v)| format!("{n}=\"{}\"", quoted(v))).collect();
            let header = format!("Bearer {}", parts.join(", "));
            prop_assert_eq!(parse(&header), [Challenge { scheme: "bearer".into(), parameters: values }]);
        }

        #[test]
        fn no_text_makes_it_panic(text in "(Bearer )?[ -~é\"=,\\\\]{0,80}") {
            let _ = parse(&text);
        }
    }
}
