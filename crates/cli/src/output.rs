//! Standard output and error.
use std::io::{self, Write};

use anyhow::{Context, Result};
use serde::Serialize;

/// How data is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Human,
    /// For programs: one JSON object per line.
    Json,
}

/// Prints one line of data.
pub(crate) fn line(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        // `… | head -1`: the reader has enough. The work goes on, and its
        // result is the exit code.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot write to standard output"),
    }
}

/// Prints one value as a line of JSON.
pub(crate) fn json(value: &impl Serialize) -> Result<()> {
    line(&serde_json::to_string(value).context("cannot write JSON")?)
}

/// Prints a table: columns as wide as they need, numbers flushed right.
pub(crate) fn table(headers: &[&str], right: &[bool], rows: &[Vec<String>]) -> Result<()> {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(headers.get(column).map(|h| h.len())).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headers.len()).map(width).collect();
    // In one piece: a long table is thousands of lines.
    let mut text = String::new();
    let mut print = |cells: &[String]| {
        let padded: Vec<String> = cells
            .iter()
            .zip(&widths)
            .zip(right)
            .map(
                |((cell, width), right)| {
                    if *right { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
                },
            )
            .collect();
        text += padded.join("  ").trim_end();
        text.push('\n');
    };
    print(&headers.iter().map(|header| (*header).to_owned()).collect::<Vec<_>>());
    rows.iter().for_each(|row| print(row));
    line(text.trim_end())
}

/// Prints a line on standard error. That may be closed: nothing to be done.
pub(crate) fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Prints an error and what caused it.
pub(crate) fn complain(error: &anyhow::Error) {
    let mut said = error.to_string();
    let mut text = format!("error: {said}");
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        // Some errors repeat their source in their own text.
        if !said.contains(&cause) {
            text += &format!("\n  because: {cause}");
            said = cause;
        }
    }
    note(&text);
}
