//! The command that an agent may run before its image is built.
#![expect(clippy::disallowed_methods, reason = "this module runs the agent's own command")]

use std::path::Path;
use std::process::Command;

use crate::error::{PipelineError, Result};

/// Runs `words` in `dir`. Its output goes to `line`, both streams as one.
pub(crate) fn run(words: &[String], dir: &Path, line: &dyn Fn(&str)) -> Result<()> {
    let Some((program, args)) = words.split_first() else { return Ok(()) };
    let command = words.join(" ");
    let failed = |source| PipelineError::BeforeRun { command: command.clone(), source };
    let mut run = Command::new(program);
    run.args(args).current_dir(dir);
    let (status, tail) = smolcellar_engine::follow(run, line).map_err(failed)?;
    if status.success() {
        return Ok(());
    }
    Err(PipelineError::Before { command, status: status.to_string(), output: tail.text() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn a_failing_command_is_named_with_what_it_printed() {
        let dir = tempfile::tempdir().unwrap();
        let error =
            run(&words(&["sh", "-c", "echo out; echo err >&2; exit 3"]), dir.path(), &|_| {}).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("out\nerr") && text.contains("exit status: 3"), "{text}");
        let error = run(&words(&["no-such-program"]), dir.path(), &|_| {}).unwrap_err().to_string();
        assert!(error.contains("no-such-program") && error.contains("`before`"), "{error}");
    }

    #[test]
    fn it_runs_in_the_given_folder() {
        let dir = tempfile::tempdir().unwrap();
        run(&words(&["sh", "-c", "touch here"]), dir.path(), &|_| {}).unwrap();
        assert!(dir.path().join("here").exists());
    }
}
