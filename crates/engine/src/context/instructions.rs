//! The instructions of a Dockerfile: its lines put together.
//!
//! By the Dockerfile reference (docs.docker.com, "Parser directives",
//! "Format", "Here-documents") as BuildKit's parser carries it out.

/// One instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Instruction {
    /// Its first line, from 1.
    pub(super) line: usize,
    /// In upper case: `FROM`.
    pub(super) name: String,
    /// The rest, continuation lines joined, without here-documents' contents.
    pub(super) rest: String,
}

/// The lines of a Dockerfile.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Instructions {
    pub(super) all: Vec<Instruction>,
    /// The line of a `# syntax=` directive.
    pub(super) syntax: Option<usize>,
    /// The first line that builders of different ages read differently.
    pub(super) unclear: Option<usize>,
}

impl Instructions {
    /// Reads a Dockerfile. Nothing is refused: what no builder would accept,
    /// the builder will say.
    pub(super) fn read(text: &str) -> Self {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let lines: Vec<&str> = text.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line)).collect();
        let mut read = Self::default();
        let escape = read.directives(&lines);
        let mut at = 0;
        while at < lines.len() {
            let line = at + 1;
            let mut logical = String::new();
            let mut goes_on = true;
            while goes_on && at < lines.len() {
                let part = lines[at];
                at += 1;
                if part.trim_start().starts_with('#') || part.trim().is_empty() {
                    // Within an instruction too, both are as if not there.
                    goes_on = !logical.is_empty();
                    continue;
                }
                let bare = part.trim_end_matches([' ', '\t']);
                let piece = bare.strip_suffix(escape);
                goes_on = piece.is_some();
                if piece.is_some_and(|piece| piece.ends_with(escape)) {
                    read.unclear.get_or_insert(at);
                }
                logical.push_str(piece.unwrap_or(part));
            }
            let logical = logical.trim();
            if logical.is_empty() {
                continue;
            }
            let (name, rest) = logical.split_once(char::is_whitespace).unwrap_or((logical, ""));
            let instruction = Instruction { line, name: name.to_uppercase(), rest: rest.trim().to_owned() };
            for end in here_documents(&instruction, escape) {
                at = end.skip(&lines, at).unwrap_or_else(|| {
                    read.unclear.get_or_insert(line);
                    at
                });
            }
            read.all.push(instruction);
        }
        read
    }

    /// Reads the directives at the top; the escape character.
    fn directives(&mut self, lines: &[&str]) -> char {
        let mut escape = '\\';
        let mut strict = true;
        for (at, line) in lines.iter().enumerate() {
            // After a first line for the shell, directives still count.
            let shell = at == 0 && line.starts_with("#!");
            let Some(comment) = line.trim_start().strip_prefix('#') else {
                if line.trim().is_empty() {
                    strict = false;
                    continue;
                }
                break;
            };
            // Indented, it is a directive to some only.
            strict &= line.starts_with('#');
            let directive =
                comment.split_once('=').map(|(key, value)| (key.trim().to_lowercase(), value.trim()));
            match directive {
                // Wherever it stands in the comments at the top: some builder
                // may take it for one.
                Some((key, _)) if key == "syntax" => {
                    self.syntax.get_or_insert(at + 1);
                }
                Some((key, value)) if key == "escape" => {
                    escape = match value {
                        "`" if strict => '`',
                        "\\" => escape,
                        _ => {
                            self.unclear.get_or_insert(at + 1);
                            escape
                        }
                    };
                }
                Some((key, _)) if key == "check" => {}
                _ => strict = shell && strict,
            }
        }
        escape
    }
}

/// How a here-document ends.
struct End {
    name: String,
    /// Tabs before the name do not count.
    tabs: bool,
}

impl End {
    /// The line after the document that starts at `at`. `None`: it never ends.
    fn skip(&self, lines: &[&str], at: usize) -> Option<usize> {
        let ends = |line: &&str| {
            let line = if self.tabs { line.trim_start_matches('\t') } else { line };
            line == self.name
        };
        lines.iter().skip(at).position(ends).map(|count| at + count + 1)
    }
}

/// The here-documents that follow an instruction, in their order.
fn here_documents(instruction: &Instruction, escape: char) -> Vec<End> {
    let inner = match instruction.name.as_str() {
        "ONBUILD" => instruction.rest.split_whitespace().next().unwrap_or("").to_uppercase(),
        name => name.to_owned(),
    };
    if !["RUN", "COPY", "ADD"].contains(&inner.as_str()) {
        return Vec::new();
    }
    words(&instruction.rest, escape).iter().filter_map(|word| here_document(word)).collect()
}

/// `<<NAME`, `<<-NAME`, `3<<"NAME"`.
pub(super) fn is_here_document(word: &str) -> bool {
    here_document(word).is_some()
}

fn here_document(word: &str) -> Option<End> {
    let rest = word.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix("<<")?;
    let (tabs, name) = rest.strip_prefix('-').map_or((false, rest), |name| (true, name));
    let name: String = name.chars().filter(|c| !"'\"\\".contains(*c)).collect();
    (!name.is_empty() && !name.contains('<')).then_some(End { name, tabs })
}

/// Words as a shell parts them, quotes and escapes left in.
pub(super) fn words(text: &str, escape: char) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if quote.is_none() && c.is_whitespace() {
            words.extend((!word.is_empty()).then(|| std::mem::take(&mut word)));
            continue;
        }
        word.push(c);
        match quote {
            _ if c == escape && quote != Some('\'') => word.extend(chars.next()),
            Some(open) if c == open => quote = None,
            None if c == '"' || c == '\'' => quote = Some(c),
            _ => {}
        }
    }
    words.extend((!word.is_empty()).then_some(word));
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Vec<(usize, String, String)> {
        Instructions::read(text).all.into_iter().map(|i| (i.line, i.name, i.rest)).collect()
    }

    fn one(line: usize, name: &str, rest: &str) -> (usize, String, String) {
        (line, name.into(), rest.into())
    }

    #[test]
    fn lines_go_on_after_a_backslash_over_comments_and_blank_lines() {
        let text = "from a\n\n# c\nRUN one \\\n  # c\n\n  two \\  \n three\r\nCMD x";
        assert_eq!(read(text), [one(1, "FROM", "a"), one(4, "RUN", "one   two  three"), one(9, "CMD", "x")]);
    }

    #[test]
    fn the_escape_directive_counts_at_the_top_only() {
        assert_eq!(read("# escape=`\nRUN a `\n b\nRUN c \\\nCMD d").len(), 3);
        assert_eq!(read("# c\n# escape=`\nRUN a `\nCMD b").len(), 2);
        for unclear in [
            "# c\n# escape=`\n",
            "#x=y\n#escape=`\n",
            "FROM a\nRUN b \\\\\nRUN c",
            "# escape=x\n",
            " # escape=`\n",
        ] {
            assert!(Instructions::read(unclear).unclear.is_some(), "{unclear:?}");
        }
        for clear in ["# escape=`\n", "# syntax=x\n# Escape = \\\n", "# c\nFROM a\n# escape=`\n"] {
            assert_eq!(Instructions::read(clear).unclear, None, "{clear:?}");
        }
    }

    #[test]
    fn what_is_in_a_here_document_is_no_instruction() {
        let text = "RUN <<EOF cat 3<<-'E2'\nFROM a\n EOF\nEOF\nFROM b\n\t\tE2\nCOPY <<\"X\" /x\nFROM c\nX\nRUN echo \"<<no\" $((1<<2))\nCMD y";
        let names: Vec<_> = read(text).into_iter().map(|(line, name, _)| (line, name)).collect();
        let expected = [(1, "RUN"), (7, "COPY"), (10, "RUN"), (11, "CMD")];
        assert_eq!(names, expected.map(|(line, name)| (line, name.to_owned())));
        assert_eq!(Instructions::read("RUN <<EOF\nFROM a").unclear, Some(1));
    }

    #[test]
    fn words_keep_their_quotes_and_escapes() {
        assert_eq!(words(r#"a "b c" d\ e 'f\' g"#, '\\'), ["a", r#""b c""#, r"d\ e", r"'f\'", "g"]);
    }

    proptest! {
        #[test]
        fn reading_never_panics(text in "[#aF =\\\\`<\"'\n\r\tE$-]{0,40}") {
            let _ = Instructions::read(&text);
        }
    }
}
