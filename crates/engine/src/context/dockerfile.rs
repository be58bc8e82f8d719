//! What of a Dockerfile the fingerprint of its context does not cover.

use std::fmt;

use super::instructions::{Instruction, Instructions, is_here_document, words};

/// What else than its own bytes and the context decides what a Dockerfile
/// builds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dockerfile {
    /// The images it starts from or copies from, as written, each once, in the
    /// order of their first use.
    pub images: Vec<String>,
    /// What cannot be seen without building.
    pub blind: Vec<Blind>,
}

/// Something that cannot be seen without building. Its text names the line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Blind {
    /// `# syntax=`: another program decides what the Dockerfile means.
    Syntax {
        /// The line, from 1.
        line: usize,
    },
    /// An image named by way of a variable.
    UnresolvedImage {
        /// The line, from 1.
        line: usize,
        /// As written.
        image: String,
    },
    /// `FROM --platform`: which image that is, the engine decides.
    Platform {
        /// The line, from 1.
        line: usize,
    },
    /// An `ADD` from the network.
    Remote {
        /// The line, from 1.
        line: usize,
        /// As written.
        source: String,
    },
    /// An `ADD` or `COPY` with a variable in it.
    Variable {
        /// The line, from 1.
        line: usize,
        /// `ADD` or `COPY`.
        instruction: String,
    },
    /// A line that not all builders read alike.
    Unclear {
        /// The line, from 1.
        line: usize,
    },
}

impl fmt::Display for Blind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // By the line only: an address may hold credentials, a variable anything,
        // and this is kept and shown.
        match self {
            Self::Syntax { line } => write!(f, "line {line} asks for a Dockerfile syntax of its own"),
            Self::UnresolvedImage { line, .. } => write!(f, "the image of line {line} depends on a variable"),
            Self::Platform { line } => write!(f, "the image of line {line} is for a platform of its own"),
            Self::Remote { line, .. } => write!(f, "line {line} adds something from the network"),
            Self::Variable { line, instruction } => {
                write!(f, "the {instruction} of line {line} depends on a variable")
            }
            Self::Unclear { line } => write!(f, "line {line} is read differently by different builders"),
        }
    }
}

impl Dockerfile {
    /// Reads a Dockerfile. Nothing is refused: what no builder would accept,
    /// the builder will say.
    ///
    /// What the images themselves bring in is not seen: an `ONBUILD ADD` of
    /// the network in the configuration of one of `images`.
    pub fn parse(bytes: &[u8]) -> Self {
        let Instructions { all, syntax, unclear } = Instructions::read(&String::from_utf8_lossy(bytes));
        let mut read = Self::default();
        read.blind.extend(syntax.map(|line| Blind::Syntax { line }));
        read.blind.extend(unclear.map(|line| Blind::Unclear { line }));
        let mut stages = Stages::default();
        for mut instruction in all {
            // A later stage of this file may start from this one, and then
            // the trigger is carried out.
            while instruction.name == "ONBUILD" {
                let rest = instruction.rest;
                let (name, rest) = rest.split_once(char::is_whitespace).unwrap_or((&rest, ""));
                let (name, rest) = (name.to_uppercase(), rest.trim().to_owned());
                instruction = Instruction { line: instruction.line, name, rest };
            }
            match instruction.name.as_str() {
                "FROM" => read.from(&instruction, &mut stages),
                "ADD" | "COPY" => read.add(&instruction, &stages),
                "RUN" => read.run(&instruction, &stages),
                _ => {}
            }
        }
        read
    }

    fn from(&mut self, instruction: &Instruction, stages: &mut Stages) {
        let line = instruction.line;
        let (flags, rest) = flags(&instruction.rest);
        let mut rest = rest.split_whitespace();
        let image = rest.next().unwrap_or_default();
        if !stages.has_name(image) && !image.eq_ignore_ascii_case("scratch") {
            self.image(line, image);
            if flags.iter().any(|flag| flag.starts_with("--platform")) {
                self.blind.push(Blind::Platform { line });
            }
        }
        let named = rest.next().is_some_and(|word| word.eq_ignore_ascii_case("as"));
        stages.0.push(rest.next().filter(|_| named).map(str::to_lowercase));
    }

    fn add(&mut self, instruction: &Instruction, stages: &Stages) {
        let line = instruction.line;
        let (flags, rest) = flags(&instruction.rest);
        for from in flags.iter().filter_map(|flag| flag.strip_prefix("--from=")) {
            self.source(line, from, stages);
        }
        if instruction.rest.contains('$') {
            self.blind.push(Blind::Variable { line, instruction: instruction.name.clone() });
        }
        if instruction.name == "ADD" {
            let listed = serde_json::from_str::<Vec<String>>(rest);
            let mut sources = listed.unwrap_or_else(|_| words(rest, '\\'));
            sources.pop();
            sources.retain(|source| !is_here_document(source));
            let remote = sources.into_iter().filter(|source| is_remote(source));
            self.blind.extend(remote.map(|source| Blind::Remote { line, source }));
        }
    }

    fn run(&mut self, instruction: &Instruction, stages: &Stages) {
        let (flags, _) = flags(&instruction.rest);
        for mount in flags.iter().filter_map(|flag| flag.strip_prefix("--mount=")) {
            let pairs = mount.split(',').map(|pair| pair.trim_matches('"'));
            let named = pairs.filter_map(|pair| pair.split_once('='));
            for (_, from) in named.filter(|(key, _)| key.eq_ignore_ascii_case("from")) {
                self.source(instruction.line, from, stages);
            }
        }
    }

    /// What something is copied or mounted from: a stage or an image.
    fn source(&mut self, line: usize, from: &str, stages: &Stages) {
        let from = from.trim_matches(['"', '\'']);
        if !stages.has_name(from) && !stages.has_number(from) {
            self.image(line, from);
        }
    }

    fn image(&mut self, line: usize, image: &str) {
        if image.contains('$') {
            self.blind.push(Blind::UnresolvedImage { line, image: image.to_owned() });
        } else if !image.is_empty() && !self.images.iter().any(|known| known == image) {
            self.images.push(image.to_owned());
        }
    }
}

/// The stages so far, by their names.
#[derive(Default)]
struct Stages(Vec<Option<String>>);

impl Stages {
    fn has_name(&self, name: &str) -> bool {
        let name = name.to_lowercase();
        self.0.iter().flatten().any(|stage| *stage == name)
    }

    fn has_number(&self, number: &str) -> bool {
        number.parse::<usize>().is_ok_and(|number| number < self.0.len())
    }
}

/// The flags at the start, and what follows them.
fn flags(rest: &str) -> (Vec<&str>, &str) {
    let mut flags = Vec::new();
    let mut rest = rest.trim_start();
    while rest.starts_with("--") {
        let end = flag_end(rest);
        flags.push(&rest[..end]);
        rest = rest[end..].trim_start();
    }
    (flags, rest)
}

/// A flag ends at white space that is not in quotes.
fn flag_end(text: &str) -> usize {
    let mut quote = None;
    for (at, c) in text.char_indices() {
        match quote {
            None if c.is_whitespace() => return at,
            None if c == '"' || c == '\'' => quote = Some(c),
            Some(open) if c == open => quote = None,
            _ => {}
        }
    }
    text.len()
}

/// Whether builders take a source of `ADD` for something of the network.
fn is_remote(source: &str) -> bool {
    let source = source.trim_matches(['"', '\'']).to_lowercase();
    // `user@host:path` is git by SSH, or looks like it.
    let ssh = source.split_once('@').is_some_and(|(user, host)| !user.contains('/') && host.contains(':'));
    source.contains("://") || ssh || source.starts_with("github.com/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Dockerfile {
        Dockerfile::parse(text.as_bytes())
    }

    fn blind(text: &str) -> Vec<String> {
        parse(text).blind.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn images_are_those_that_are_no_stages() {
        let text = "ARG V=1\nFROM rust:1 AS Build\nFROM build as test\nFROM scratch\nCOPY --from=build /a /a\n\
            COPY --chown=1 --from=0 /b /b\nCOPY --from=nginx:1 /c /c\nCOPY --from=7 /d /d\n\
            RUN --network=none --mount=type=bind,from=busybox,target=/x --mount=type=cache,From=test,target=/y ls\n\
            ONBUILD COPY --from=alpine /e /e\nfrom RUST:1\nFROM rust:1";
        assert_eq!(parse(text).images, ["rust:1", "nginx:1", "7", "busybox", "alpine", "RUST:1"]);
        assert_eq!(blind(text), [""; 0]);
    }

    #[test]
    fn a_stage_is_none_before_its_line() {
        assert_eq!(
            parse("FROM a\nCOPY --from=b /x /\nFROM c AS b\nFROM d AS d").images,
            ["a", "b", "c", "d"]
        );
    }

    #[test]
    fn what_cannot_be_seen_is_said_with_its_line() {
        for (text, expected) in [
            ("# syntax=docker/dockerfile:1\nFROM a", "line 1 asks for a Dockerfile syntax of its own"),
            ("#!/x\n#SYNTAX = a", "line 2 asks for a Dockerfile syntax of its own"),
            ("FROM a:${V}", "the image of line 1 depends on a variable"),
            ("\nFROM a\nCOPY --from=$X b c", "the image of line 3 depends on a variable"),
            ("FROM a\nRUN --mount=from=a$X,target=/b c", "the image of line 2 depends on a variable"),
            ("FROM --platform=$BUILDPLATFORM a", "the image of line 1 is for a platform of its own"),
            ("ADD --checksum=x \\\n HTTPS://a/b /c", "line 1 adds something from the network"),
            ("ADD [\"x\", \"git@a:b.git\", \"/\"]", "line 1 adds something from the network"),
            ("ONBUILD ADD git://a /b", "line 1 adds something from the network"),
            ("ADD me:SECRET@host:path /b", "line 1 adds something from the network"),
            ("copy a $B", "the COPY of line 1 depends on a variable"),
            ("RUN a \\\\\nCMD", "line 1 is read differently by different builders"),
        ] {
            let found = blind(text);
            assert_eq!(found.first().map(String::as_str), Some(expected), "{text:?}: {found:?}");
        }
        for seen in
            ["FROM a\nCOPY http://x /b", "ADD a http://b", "RUN echo $X", "COPY <<E /x\nADD $A http://b c\nE"]
        {
            assert_eq!(blind(seen), [""; 0], "{seen:?}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(
            bytes: Vec<u8>,
            parts in prop::collection::vec(prop::sample::select(vec![
                "FROM ", "COPY ", "ADD ", "RUN ", "ONBUILD ", "--from=", "--mount=", "a", "é", " AS ", "\n", "\\", "\"",
                "<<E", "[", "$", "#", "escape=`", "--", ","]), 0..16),
        ) {
            let _ = Dockerfile::parse(&bytes);
            for blind in parse(&parts.concat()).blind {
                prop_assert!(!blind.to_string().contains('\n'));
            }
        }
    }
}
