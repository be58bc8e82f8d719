//! One pattern of an ignore file.
//!
//! Docker turns a pattern into a regular expression over the whole path
//! (moby/patternmatcher), after Go's `filepath.Match` has found its syntax
//! sound. This is that language as a set of states walked once over the path:
//! a match takes at most (length of the path + 1) × (length of the pattern + 1)
//! steps, whatever the pattern. Where the detour through regular expressions
//! makes Docker read a pattern otherwise than its documentation says, the
//! pattern is refused.

/// A compiled pattern.
#[derive(Debug, Clone)]
pub(super) struct Pattern {
    text: String,
    form: Form,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Form {
    /// No wildcard: the path itself.
    Exact,
    /// Only a `**` at the end: what starts like it, within a name too.
    Prefix,
    /// Only a `**` at the start: what ends like it, within a name too.
    Suffix,
    /// Everything else.
    States(Vec<Token>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Char(char),
    /// `?`
    One,
    /// `*`
    Many,
    /// `[…]`. Matches `/` too if it says so or is negated, as Docker's does.
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
    /// `**`: nothing, or what the next token takes.
    MaybeFolders,
    /// Whole folders, up to and with a `/`.
    InFolders,
    /// `**` at the end.
    Rest,
}

impl Token {
    fn takes(&self, c: char) -> bool {
        match self {
            Self::Char(own) => *own == c,
            Self::One | Self::Many => c != '/',
            Self::Class { negated, ranges } => {
                ranges.iter().any(|(low, high)| (*low..=*high).contains(&c)) != *negated
            }
            // The dot of Docker's regular expressions.
            Self::InFolders | Self::Rest => c != '\n',
            Self::MaybeFolders => false,
        }
    }
}

impl Pattern {
    /// Compiles the cleaned text of a pattern.
    ///
    /// # Errors
    /// What is wrong with it, as the rest of a sentence.
    pub(super) fn compile(text: &str) -> Result<Self, &'static str> {
        let chars: Vec<char> = text.chars().collect();
        let mut tokens = Vec::new();
        let mut form = Form::Exact;
        let mut caret = false;
        let mut at = 0;
        while let Some(&c) = chars.get(at) {
            let start = at;
            at += 1;
            match c {
                '*' if chars.get(at) == Some(&'*') => {
                    at += 1;
                    if chars.get(at) == Some(&'/') {
                        at += 1;
                    }
                    if at < chars.len() {
                        tokens.extend([Token::MaybeFolders, Token::InFolders]);
                        form = Form::States(Vec::new());
                    } else if form == Form::Exact {
                        form = Form::Prefix;
                    } else {
                        tokens.push(Token::Rest);
                        form = Form::States(Vec::new());
                    }
                    if start == 0 {
                        form = Form::Suffix;
                    }
                    continue;
                }
                '*' => tokens.push(Token::Many),
                '?' => tokens.push(Token::One),
                '\\' => tokens.push(Token::Char(escaped(&chars, &mut at)?)),
                '[' => tokens.push(class(&chars, &mut at)?),
                plain => {
                    caret |= plain == '^';
                    tokens.push(Token::Char(plain));
                    // The closing bracket alone makes Docker take the long way.
                    if plain != ']' {
                        continue;
                    }
                }
            }
            form = Form::States(Vec::new());
        }
        if let Form::States(states) = &mut form {
            if caret {
                return Err("has a '^' outside of brackets, which Docker does not match as such");
            }
            *states = tokens;
        }
        Ok(Self { text: text.to_owned(), form })
    }

    /// The text it was compiled from.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Whether it matches this very path.
    pub(super) fn matches(&self, path: &[u8]) -> bool {
        let text = self.text.as_bytes();
        match &self.form {
            Form::Exact => path == text,
            Form::Prefix => path.starts_with(&text[..text.len() - 2]),
            Form::Suffix => path.ends_with(&text[2..]) || text.get(2) == Some(&b'/') && *path == text[3..],
            Form::States(tokens) => run(tokens, &decode(path), &mut 0).contains(&tokens.len()),
        }
    }

    /// Whether some path below this folder may match.
    pub(super) fn may_match_below(&self, folder: &[u8]) -> bool {
        let text = self.text.as_bytes();
        let inside = [folder, b"/"].concat();
        match &self.form {
            Form::Exact => text.starts_with(&inside),
            Form::Prefix => {
                let prefix = &text[..text.len() - 2];
                prefix.starts_with(&inside) || inside.starts_with(prefix)
            }
            Form::Suffix => true,
            Form::States(tokens) => {
                run(tokens, &decode(&inside), &mut 0).iter().any(|state| *state < tokens.len())
            }
        }
    }
}

/// The states reached after all of `path`; `tokens.len()` is a match.
fn run(tokens: &[Token], path: &[char], steps: &mut u64) -> Vec<usize> {
    let mut seen = vec![usize::MAX; tokens.len() + 1];
    let (mut now, mut next) = (Vec::new(), Vec::new());
    enter(tokens, 0, 0, &mut seen, &mut now);
    for (at, &c) in path.iter().enumerate() {
        if now.is_empty() {
            break;
        }
        for state in now.drain(..) {
            *steps += 1;
            let Some(token) = tokens.get(state) else { continue };
            if !token.takes(c) {
                continue;
            }
            if matches!(token, Token::Many | Token::InFolders | Token::Rest) {
                enter(tokens, state, at + 1, &mut seen, &mut next);
            }
            if matches!(token, Token::Char(_) | Token::One | Token::Class { .. })
                || *token == Token::InFolders && c == '/'
            {
                enter(tokens, state + 1, at + 1, &mut seen, &mut next);
            }
        }
        std::mem::swap(&mut now, &mut next);
    }
    now
}

/// Adds a state, and those reached from it by taking nothing, each once for
/// one place in the path.
fn enter(tokens: &[Token], state: usize, place: usize, seen: &mut [usize], into: &mut Vec<usize>) {
    let mut state = state;
    while seen[state] != place {
        seen[state] = place;
        into.push(state);
        match tokens.get(state) {
            Some(Token::Many | Token::Rest) => state += 1,
            Some(Token::MaybeFolders) => {
                if seen[state + 1] != place {
                    seen[state + 1] = place;
                    into.push(state + 1);
                }
                state += 2;
            }
            _ => return,
        }
    }
}

/// A path as Go's regular expressions see it: a byte that is not UTF-8 is one
/// replacement character.
fn decode(path: &[u8]) -> Vec<char> {
    let mut chars = Vec::with_capacity(path.len());
    for chunk in path.utf8_chunks() {
        chars.extend(chunk.valid().chars());
        chars.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
    chars
}

/// The character after a backslash.
fn escaped(chars: &[char], at: &mut usize) -> Result<char, &'static str> {
    let c = *chars.get(*at).ok_or("ends in a backslash")?;
    *at += 1;
    if c.is_ascii_alphanumeric() || !c.is_ascii() {
        return Err("has a backslash before a letter or digit, which Docker does not match as such");
    }
    Ok(c)
}

/// The rest of `[…]`.
fn class(chars: &[char], at: &mut usize) -> Result<Token, &'static str> {
    const OPEN: &str = "has a '[' without its ']'";
    let negated = chars.get(*at) == Some(&'^');
    *at += usize::from(negated);
    let one = |at: &mut usize| {
        let c = *chars.get(*at).ok_or(OPEN)?;
        *at += 1;
        match c {
            '-' | ']' => Err("has an empty or half range in brackets"),
            '\\' => escaped(chars, at),
            '*' | '?' | '[' => Err("has a wildcard within brackets, which Docker does not match as such"),
            c => Ok(c),
        }
    };
    let mut ranges = Vec::new();
    loop {
        match chars.get(*at) {
            None => return Err(OPEN),
            Some(']') if !ranges.is_empty() => {
                *at += 1;
                return Ok(Token::Class { negated, ranges });
            }
            Some(_) => {}
        }
        let low = one(at)?;
        let mut high = low;
        if chars.get(*at) == Some(&'-') {
            *at += 1;
            high = one(at)?;
        }
        if low > high {
            return Err("has a range in brackets that runs backwards");
        }
        ranges.push((low, high));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn matches(pattern: &str, path: &str) -> bool {
        Pattern::compile(pattern).unwrap().matches(path.as_bytes())
    }

    /// The regular expression's own words, tried in every way.
    fn naive(pattern: &[char], path: &[char], start: bool) -> bool {
        let deep = |c: &char| *c != '\n';
        match pattern {
            [] => path.is_empty(),
            ['*', '*', rest @ ..] => {
                let rest = rest.strip_prefix(&['/']).unwrap_or(rest);
                let plain = !rest.iter().any(|c| "*?[]\\".contains(*c));
                if rest.is_empty() {
                    return path.iter().all(deep) || start;
                }
                if start && plain && pattern[2] != '/' {
                    return path.ends_with(rest);
                }
                let folders = |n: usize| n == 0 || path[n - 1] == '/';
                (0..=path.len())
                    .filter(|n| folders(*n) && (path[..*n].iter().all(deep) || start && plain))
                    .any(|n| naive(rest, &path[n..], false))
            }
            ['*', rest @ ..] => (0..=path.len())
                .take_while(|n| path[..*n].iter().all(|c| *c != '/'))
                .any(|n| naive(rest, &path[n..], false)),
            ['?', rest @ ..] => path.first().is_some_and(|c| *c != '/') && naive(rest, &path[1..], false),
            ['[', '^', a, '-', b, ']', rest @ ..] => {
                path.first().is_some_and(|c| c < a || c > b) && naive(rest, &path[1..], false)
            }
            ['[', a, ']', rest @ ..] => path.first() == Some(a) && naive(rest, &path[1..], false),
            ['\\', c, rest @ ..] => path.first() == Some(c) && naive(rest, &path[1..], false),
            [c, rest @ ..] => path.first() == Some(c) && naive(rest, &path[1..], false),
        }
    }

    #[test]
    fn wildcards_stay_within_a_name_and_two_stars_do_not() {
        for (pattern, path, expected) in [
            ("*.go", "a.go", true),
            ("*.go", "d/a.go", false),
            ("*/a", "d/a", true),
            ("*/a", "d/e/a", false),
            ("?", "/", false),
            ("a?c", "aéc", true),
            ("**", "a/b", true),
            ("**/a", "a", true),
            ("**/a", "d/e/a", true),
            ("**/a", "ba", false),
            ("**a", "d/ba", true),
            ("**/*.go", "d/e/a.go", true),
            ("d/**", "d/e/f", true),
            ("d/**", "d", false),
            ("d**", "dd/e", true),
            ("d/**/a", "d/a", true),
            ("d/**/a", "d/e/f/a", true),
            ("d/**/a", "d/ba", false),
            ("**/d/**", "x/d/e", true),
            ("[a-c]x", "bx", true),
            ("[a-c]x", "dx", false),
            ("[^a-c]x", "dx", true),
            ("a[^b]c", "a/c", true),
            ("[!a]", "!", true),
            (r"\*", "*", true),
            (r"\*", "a", false),
            (r"a\[b", "a[b", true),
            ("a]", "a]", true),
            ("a.c", "abc", false),
            ("a+(b)|{c}$", "a+(b)|{c}$", true),
            ("a^b", "a^b", true),
        ] {
            assert_eq!(matches(pattern, path), expected, "{pattern} {path}");
        }
        assert!(Pattern::compile("a?").unwrap().matches(b"a\xff"));
        assert!(!Pattern::compile("a?").unwrap().matches(b"a\xe2\x82"));
    }

    #[test]
    fn malformed_patterns_and_those_that_docker_reads_otherwise_are_refused() {
        for (pattern, part) in [
            ("[", "without its"),
            ("[a", "without its"),
            ("[^", "without its"),
            ("[]", "half range"),
            ("[]a]", "half range"),
            ("[a-]", "half range"),
            ("[-a]", "half range"),
            ("[z-a]", "backwards"),
            ("a\\", "ends in a backslash"),
            ("[\\", "ends in a backslash"),
            (r"\d", "before a letter"),
            ("[a*]", "within brackets"),
            ("[[:alpha:]]", "within brackets"),
            ("^a*", "'^' outside"),
        ] {
            let problem = Pattern::compile(pattern).unwrap_err();
            assert!(problem.contains(part), "{pattern}: {problem}");
        }
    }

    #[test]
    fn hostile_patterns_take_no_more_steps_than_both_lengths_multiplied() {
        let path = vec!['a'; 4096];
        for piece in ["*a", "**/", "**/*a", "*?", "a*", "[a-b]*", "**/a/**/", "*/"] {
            let text = format!("{}b", piece.repeat(60));
            let pattern = Pattern::compile(&text).unwrap();
            let Form::States(tokens) = &pattern.form else { continue };
            let mut steps = 0;
            let reached = run(tokens, &path, &mut steps);
            assert!(!reached.contains(&tokens.len()), "{piece}");
            assert!(steps <= (path.len() as u64 + 1) * (tokens.len() as u64 + 1), "{piece}: {steps} steps");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]
        #[test]
        fn it_agrees_with_trying_everything(
            parts in prop::collection::vec(
                prop::sample::select(vec!["a", "b", "/", "*", "**", "**/", "?", "[a]", "[^a-b]", r"\*", "\\\\", "é"]), 1..8),
            path in "[ab/é*]{0,8}",
        ) {
            // A pattern that was read has no slash at its end.
            let text = parts.concat().trim_end_matches('/').to_owned();
            let chars: Vec<char> = text.chars().collect();
            let path_chars: Vec<char> = path.chars().collect();
            prop_assert_eq!(matches(&text, &path), naive(&chars, &path_chars, true), "{} {}", text, path);
        }

        #[test]
        fn a_folder_under_which_nothing_may_match_holds_no_match(
            parts in prop::collection::vec(
                prop::sample::select(vec!["a", "b", "/", "*", "**", "**/", "?", "[a]"]), 1..8),
            folder in "[ab]{1,2}(/[ab]{1,2})?",
            below in "[ab]{1,2}(/[ab]{1,2})?",
        ) {
            // A pattern that was read has no slash at its end.
            let text = parts.concat().trim_end_matches('/').to_owned();
            let pattern = Pattern::compile(&text).unwrap();
            if pattern.matches(format!("{folder}/{below}").as_bytes()) {
                prop_assert!(pattern.may_match_below(folder.as_bytes()));
            }
        }

        #[test]
        fn compiling_never_panics(text in r"[a-c*?\[\]\\^/!.-]{0,12}", path in "[a-c/]{0,6}") {
            if let Ok(pattern) = Pattern::compile(&text) {
                pattern.matches(path.as_bytes());
                pattern.may_match_below(path.as_bytes());
            }
        }
    }
}
