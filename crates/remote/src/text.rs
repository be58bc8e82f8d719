//! What a registry says, made fit to be shown: it is somebody else's text.

use serde::Deserialize;

/// The most characters of a registry's message that an error shows.
const SHOWN: usize = 300;

/// The most characters of a problem that is told of something foreign.
const PROBLEM: usize = 600;

/// What is wrong with something foreign: such texts quote what they are about.
pub(crate) fn problem(text: &str) -> String {
    clip(text, PROBLEM)
}

/// The beginning of a text, without anything that steers a terminal. What was
/// clipped once stays as it is.
pub(crate) fn clip(text: &str, most: usize) -> String {
    let mut clipped = String::new();
    for (count, c) in text.chars().enumerate() {
        if count == most {
            clipped.push('…');
            break;
        }
        match c {
            '\n' | '\r' | '\t' => clipped.push(' '),
            // Direction marks and their like hide what they are in.
            c if c.is_control() || !c.is_ascii() && !c.is_alphanumeric() && c != '…' => {
                clipped.extend(c.escape_unicode())
            }
            c => clipped.push(c),
        }
    }
    clipped.trim().to_owned()
}

#[derive(Deserialize)]
struct Errors {
    errors: Vec<Said>,
}

#[derive(Deserialize)]
struct Said {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// What the body of a refusal says: the codes and messages of the distribution
/// specification ("Error Codes"), else the beginning of the text. Empty if it
/// says nothing.
pub(crate) fn said(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let text = match serde_json::from_slice::<Errors>(body) {
        Ok(parsed) => {
            let one = |said: &Said| match (said.code.as_str(), said.message.as_str()) {
                ("", message) => message.to_owned(),
                (code, "") => code.to_owned(),
                (code, message) => format!("{code}: {message}"),
            };
            parsed.errors.iter().take(3).map(one).collect::<Vec<_>>().join("; ")
        }
        // A page for browsers says nothing to people who read errors.
        Err(_) if text.trim_start().starts_with('<') => String::new(),
        Err(_) => text.into_owned(),
    };
    clip(&text, SHOWN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn codes_and_messages_are_shown_and_pages_for_browsers_are_not() {
        let body = br#"{"errors":[{"code":"DENIED","message":"no\u001b[2J way","detail":{}},{"code":"X"}]}"#;
        assert_eq!(said(body), "DENIED: no\\u{1b}[2J way; X");
        assert_eq!(said(b"<html>busy</html>"), "");
        assert_eq!(said(b" too many\nrequests "), "too many requests");
        assert_eq!(clip("a\u{202e}b", 9), "a\\u{202e}b");
    }

    proptest! {
        #[test]
        fn no_bytes_steer_a_terminal_or_fill_it(bytes: Vec<u8>) {
            let said = said(&bytes);
            prop_assert!(!said.chars().any(char::is_control));
            prop_assert!(said.chars().count() <= SHOWN * 10 + 1);
        }
    }
}
