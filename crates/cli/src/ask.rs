//! Asking a person.

use std::io::{BufRead, IsTerminal, Write, stderr, stdin};

use anyhow::{Context, Result};

use crate::exit::Declined;

/// Asks on standard error; only "y" and "yes" are yes.
///
/// # Errors
/// [`Declined`] where there is nobody to ask.
pub(crate) fn yes(question: &str) -> Result<bool> {
    if !stdin().is_terminal() || !stderr().is_terminal() {
        return Err(
            Declined("there is no terminal to ask on: say --yes, or look with --dry-run".into()).into()
        );
    }
    let mut err = stderr().lock();
    write!(err, "{question} [y/N] ").and_then(|()| err.flush()).context("cannot ask")?;
    let mut answer = String::new();
    stdin().lock().read_line(&mut answer).context("cannot read the answer")?;
    Ok(is_yes(&answer))
}

fn is_yes(answer: &str) -> bool {
    matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

#[cfg(test)]
mod tests {
    use super::is_yes;

    #[test]
    fn only_yes_is_yes() {
        assert!(["y\n", "Y", " yes \n"].into_iter().all(is_yes));
        assert!(!["", "\n", "n", "yep", "no"].into_iter().any(is_yes));
    }
}
