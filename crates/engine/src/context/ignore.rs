//! `.dockerignore`: what is left out of a context.
//!
//! The rules are those of docs.docker.com ("Build context", ".dockerignore
//! files") as moby/patternmatcher and its `ignorefile` carry them out.

use std::path::Path;

use super::Builder;
use super::error::{ContextError, Result};
use super::pattern::Pattern;

/// The longest line, in bytes: what Docker's own reader takes.
const MAX_LINE: usize = 64 << 10;

/// The patterns of an ignore file, in its order.
#[derive(Debug, Clone)]
pub struct Ignore {
    rules: Vec<Rule>,
    builder: Builder,
}

#[derive(Debug, Clone)]
struct Rule {
    exception: bool,
    pattern: Pattern,
}

/// Which patterns a folder fell under; what is in it falls under them too.
#[derive(Debug, Clone, Default)]
pub(super) struct Fallen(Vec<bool>);

impl Ignore {
    /// Nothing is left out.
    pub fn nothing(builder: Builder) -> Self {
        Self { rules: Vec::new(), builder }
    }

    /// Understands the bytes of the ignore file at `path`.
    ///
    /// # Errors
    /// [`ContextError::Pattern`] naming the line of a malformed pattern,
    /// [`ContextError::InputFile`] if the file is not UTF-8.
    pub fn parse(path: &Path, bytes: &[u8], builder: Builder) -> Result<Self> {
        let not_a_file = |problem| ContextError::InputFile { path: path.to_owned(), problem };
        let text = std::str::from_utf8(bytes).map_err(|_| not_a_file("is not UTF-8"))?;
        let mut rules = Vec::new();
        for (number, line) in text.strip_prefix('\u{feff}').unwrap_or(text).split('\n').enumerate() {
            let rule = match line.len() {
                ..MAX_LINE => rule(line),
                _ => Err("is longer than 64 KiB"),
            };
            rules.extend(rule.map_err(|problem| ContextError::Pattern {
                path: path.to_owned(),
                line: number + 1,
                pattern: line.trim().chars().filter(|c| !c.is_control()).take(100).collect(),
                problem,
            })?);
        }
        Ok(Self { rules, builder })
    }

    /// Whether the builder does not see the file or folder at `path`.
    pub fn excludes(&self, path: &[u8]) -> bool {
        let mut fallen = Fallen::default();
        for (at, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            let (excluded, own) = self.check(&path[..at], &fallen);
            if excluded && !self.descends(&path[..at], &own) {
                return true;
            }
            fallen = own;
        }
        self.check(path, &fallen).0
    }

    /// Whether `path` falls out of the context, given what its folder fell
    /// under (nothing at the top). The last pattern that it falls under
    /// decides.
    pub(super) fn check(&self, path: &[u8], folder: &Fallen) -> (bool, Fallen) {
        let mut excluded = false;
        let mut own = Vec::with_capacity(self.rules.len());
        for (at, rule) in self.rules.iter().enumerate() {
            // A pattern that would change nothing is not tried, and then does
            // not count for what is in the folder either: as the builders do.
            let falls =
                folder.0.get(at) == Some(&true) || rule.exception == excluded && rule.pattern.matches(path);
            own.push(falls);
            if falls {
                excluded = !rule.exception;
            }
        }
        (excluded, Fallen(own))
    }

    /// Whether something in this excluded folder may be back in the context.
    pub(super) fn descends(&self, folder: &[u8], own: &Fallen) -> bool {
        match self.builder {
            Builder::Classic => {
                let inside = [folder, b"/"].concat();
                self.exceptions(0).any(|p| [p.text().as_bytes(), b"/"].concat().starts_with(&inside))
            }
            // Only an exception below the last pattern it fell under counts.
            Builder::BuildKit => {
                let last = own.0.iter().rposition(|falls| *falls).unwrap_or(0);
                self.exceptions(last).any(|pattern| pattern.may_match_below(folder))
            }
        }
    }

    fn exceptions(&self, from: usize) -> impl Iterator<Item = &Pattern> {
        self.rules.iter().skip(from).filter(|rule| rule.exception).map(|rule| &rule.pattern)
    }

    /// Whether the patterns say that `path` is left out, wherever the builder
    /// looks: the classic builder's rule for the two files it needs itself.
    pub(super) fn names(&self, path: &[u8]) -> bool {
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        let ends: Vec<usize> = ends.chain([path.len()]).collect();
        self.rules.iter().fold(false, |excluded, rule| {
            let changes =
                rule.exception == excluded && ends.iter().any(|e| rule.pattern.matches(&path[..*e]));
            excluded != changes
        })
    }

    /// The classic builder's client appends an exception for a file that it
    /// must send, by its name as a pattern.
    pub(super) fn send_anyway(&mut self, name: &str) {
        if let Ok(pattern) = Pattern::compile(name) {
            self.rules.push(Rule { exception: true, pattern });
        }
    }
}

/// One line. `None`: it is blank or a comment.
fn rule(line: &str) -> Result<Option<Rule>, &'static str> {
    let trimmed = line.trim();
    if line.starts_with('#') || trimmed.is_empty() {
        return Ok(None);
    }
    // Docker's reader cleans, drops one slash at the start and hands a list of
    // patterns to its matcher, which trims and cleans once more and only then
    // looks for exceptions.
    let (mark, text) = match trimmed.strip_prefix('!') {
        Some(text) => ("!", text.trim()),
        None => ("", trimmed),
    };
    let text = if text.is_empty() { String::new() } else { clean(text) };
    let text = text.strip_prefix('/').filter(|rest| !rest.is_empty()).unwrap_or(&text);
    let text = clean(format!("{mark}{text}").trim());
    match text.strip_prefix('!') {
        Some("") => Err("is an exception of nothing"),
        Some(text) => Pattern::compile(text).map(|pattern| Some(Rule { exception: true, pattern })),
        None => Pattern::compile(&text).map(|pattern| Some(Rule { exception: false, pattern })),
    }
}

/// The shortest form of a path: Go's `filepath.Clean`.
fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if rooted => {}
            part => parts.push(part),
        }
    }
    match (rooted, parts.is_empty()) {
        (true, _) => format!("/{}", parts.join("/")),
        (false, true) => ".".to_owned(),
        (false, false) => parts.join("/"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ignore(text: &str, builder: Builder) -> Ignore {
        Ignore::parse(Path::new(".dockerignore"), text.as_bytes(), builder).unwrap()
    }

    fn excluded(text: &str, path: &str) -> bool {
        let both = [Builder::Classic, Builder::BuildKit].map(|b| ignore(text, b).excludes(path.as_bytes()));
        assert_eq!(both[0], both[1], "{text:?} {path}");
        both[0]
    }

    #[test]
    fn lines_are_trimmed_cleaned_and_comments_dropped() {
        for (line, path, expected) in [
            ("a", "a", true),
            ("  a\t\r", "a", true),
            ("\u{feff}a", "a", true),
            ("#a", "#a", false),
            (" #a", "#a", true),
            ("/a/", "a", true),
            ("./d//e/../a", "d/a", true),
            ("../a", "a", false),
            ("/../a", "a", true),
            (".", "a", false),
            ("/", "a", false),
            ("a", "d/a", false),
            ("d", "d/a", true),
            ("*", "d/a", true),
            ("a\n!a", "a", false),
            ("!a\na", "a", true),
            ("a\n! /a", "a", false),
            ("*\n!d/e", "d/e/f", false),
            ("*\n!d/e", "d/f", true),
            ("a\n\n#c\nb", "b", true),
        ] {
            assert_eq!(excluded(line, path), expected, "{line:?} {path}");
        }
    }

    #[test]
    fn a_malformed_line_is_named_with_its_file_and_number() {
        for (text, expected) in [
            (
                "a\n# c\n[b\n",
                "ctx/.dockerignore, line 3: the pattern '[b' has a '[' without its ']'; correct it",
            ),
            ("!\n", "ctx/.dockerignore, line 1: the pattern '!' is an exception of nothing; correct it"),
            ("!/\n", "ctx/.dockerignore, line 1: the pattern '!/' is an exception of nothing; correct it"),
        ] {
            let error = Ignore::parse(Path::new("ctx/.dockerignore"), text.as_bytes(), Builder::Classic);
            assert_eq!(error.unwrap_err().to_string(), expected);
        }
        let long = "a".repeat(70_000);
        let error = Ignore::parse(Path::new("i"), long.as_bytes(), Builder::Classic).unwrap_err();
        assert!(error.to_string().len() < 300, "{error}");
        assert!(Ignore::parse(Path::new("i"), b"a\xff", Builder::Classic).is_err());
    }

    #[test]
    fn an_excluded_folder_is_walked_only_if_an_exception_may_be_in_it() {
        let walked = |text: &str, folder: &str, builder| {
            let ignore = ignore(text, builder);
            let (excluded, own) = ignore.check(folder.as_bytes(), &Fallen::default());
            assert!(excluded);
            ignore.descends(folder.as_bytes(), &own)
        };
        for builder in [Builder::Classic, Builder::BuildKit] {
            assert!(!walked("node_modules", "node_modules", builder));
            assert!(!walked("node_modules\n!src/keep", "node_modules", builder));
            assert!(walked("*\n!d/keep", "d", builder));
        }
        // The builders differ.
        assert!(!walked("node_modules\n!**/keep", "node_modules", Builder::Classic));
        assert!(walked("node_modules\n!**/keep", "node_modules", Builder::BuildKit));
        // What stands above the exclusion cannot undo it.
        assert!(!walked("!**/keep\nnode_modules", "node_modules", Builder::BuildKit));
    }

    #[test]
    fn an_exception_that_changed_nothing_for_a_folder_does_not_cover_what_is_in_it() {
        // Both builders leave d/a out here; so moby/patternmatcher goes.
        assert!(excluded("*/a\n!d", "d/a"));
        assert!(!excluded("*/a\nd\n!d", "d/a"));
    }

    #[test]
    fn cleaning_gives_the_shortest_path() {
        for (path, expected) in [
            ("a//b/./c/..", "a/b"),
            ("/../..", "/"),
            ("..//..", "../.."),
            ("a/..", "."),
            ("a/../../b", "../b"),
        ] {
            assert_eq!(clean(path), expected, "{path}");
        }
    }

    proptest! {
        #[test]
        fn what_is_left_out_with_buildkit_is_what_the_patterns_say_of_each_path(
            lines in prop::collection::vec("!?(\\*\\*/|[ab]/|\\*/)?(a|b|\\*|\\*\\*|[?])(/\\*\\*|/a)?", 0..5),
            path in "[ab](/[ab]){0,3}",
        ) {
            let ignore = ignore(&lines.join("\n"), Builder::BuildKit);
            // Without leaving folders out early.
            let mut fallen = Fallen::default();
            let mut expected = false;
            for at in (1..=path.len()).step_by(2) {
                (expected, fallen) = ignore.check(&path.as_bytes()[..at], &fallen);
            }
            prop_assert_eq!(ignore.excludes(path.as_bytes()), expected, "{:?} {}", lines, path);
        }

        #[test]
        fn parsing_never_panics(bytes: Vec<u8>, text in "[!#/ .a*\\[\\]\\\\\n\r]{0,20}") {
            let _ = Ignore::parse(Path::new("i"), &bytes, Builder::Classic);
            let _ = Ignore::parse(Path::new("i"), text.as_bytes(), Builder::BuildKit);
        }
    }
}
