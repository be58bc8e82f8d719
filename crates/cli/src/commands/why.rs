//! Reasons as people read them.

use serde_json::Value;
use smolcellar_pipeline::{InputChange, StageWhy};

/// Each stage with what had changed, a line per change.
pub(crate) fn lines(why: &[StageWhy]) -> Vec<String> {
    let of_stage = |why: &StageWhy| {
        let name = why.stage.as_str();
        let changes = changes(&why.changes).into_iter().enumerate();
        changes
            .map(|(index, line)| match index {
                0 => format!("{name:<11}  {line}"),
                _ => format!("{:<11}  {line}", ""),
            })
            .collect::<Vec<_>>()
    };
    why.iter().flat_map(of_stage).collect()
}

/// A line per change, and per thing to say of one.
pub(crate) fn changes(changes: &[InputChange]) -> Vec<String> {
    let of_change = |change: &InputChange| {
        let name = &change.input;
        let mut more = change.lines.iter();
        let first = match (&change.old, &change.new) {
            (None, None) => format!("{name}: {}", more.next().map(String::as_str).unwrap_or_default()),
            (old, new) => match (value(old.as_ref()), value(new.as_ref())) {
                // Another value of the same look, as a secret's.
                (old, new) if old == new => {
                    format!("{name}: {}", more.next().map(String::as_str).unwrap_or("changed"))
                }
                (old, new) => format!("{name}: {old} → {new}"),
            },
        };
        std::iter::once(first).chain(more.map(|line| format!("  {line}"))).collect::<Vec<_>>()
    };
    changes.iter().flat_map(of_change).collect()
}

/// A value in few characters.
pub(crate) fn value(value: Option<&Value>) -> String {
    const LONGEST: usize = 60;
    let text = match value {
        None | Some(Value::Null) => return "none".into(),
        Some(Value::String(text)) => match text.strip_prefix("sha256:") {
            Some(hex) if hex.len() == 64 => hex[..12].to_owned(),
            _ if text.is_empty() => return "none".into(),
            _ => text.clone(),
        },
        Some(other) => other.to_string(),
    };
    match text.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use smolcellar_pipeline::StageName;

    #[test]
    fn a_change_is_a_line_and_files_are_indented_below() {
        let change = |input: &str, old, new, lines: &[&str]| InputChange {
            input: input.into(),
            old,
            new,
            lines: lines.iter().map(|line| (*line).to_owned()).collect(),
        };
        let id = |digit: &str| Some(json!(format!("sha256:{}", digit.repeat(64))));
        let why = [
            StageWhy {
                stage: StageName::Image,
                changes: vec![
                    change("context", None, None, &["1 changed", "src/main.rs (contents)"]),
                    change(
                        "build-args.TOKEN",
                        Some(json!("(set)")),
                        Some(json!("(set)")),
                        &["another value"],
                    ),
                ],
            },
            StageWhy {
                stage: StageName::Smolmachine,
                changes: vec![
                    change("image", id("a"), id("b"), &[]),
                    change("user", None, Some(json!("agent")), &[]),
                    change("cmd", Some(json!(["x".repeat(100)])), Some(json!(["-v"])), &[]),
                ],
            },
        ];
        let expected = format!(
            "image        context: 1 changed\n               src/main.rs (contents)\n             \
             build-args.TOKEN: another value\n\
             smolmachine  image: aaaaaaaaaaaa → bbbbbbbbbbbb\n             user: none → agent\n             \
             cmd: [\"{}… → [\"-v\"]",
            "x".repeat(58)
        );
        assert_eq!(lines(&why).join("\n"), expected);
    }
}
