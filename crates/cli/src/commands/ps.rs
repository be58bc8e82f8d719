//! `ps`: the machines that were launched.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use serde::Serialize;
use smolcellar_launcher::{Launched, Launcher, Signals, State, launches};
use smolcellar_store::{Event, Reporter};

use crate::exit;
use crate::format;
use crate::output::{self, Format};
use crate::session::Session;

/// One line of JSON.
#[derive(Serialize)]
struct Row<'a> {
    machine: &'a str,
    agent: &'a str,
    backend: String,
    /// "running", "stopped", "unclear", "gone" or "elsewhere".
    state: &'a str,
    /// Whether its command is at work.
    attended: bool,
    /// The exit code of its command, once that ended.
    ended: Option<i32>,
    /// The artifact's key.
    artifact: &'a str,
    command: &'a [String],
    /// Seconds since 1970.
    since: u64,
}

pub(crate) fn run(session: &Session) -> Result<u8> {
    if !session.cache_dir()?.join("format.json").exists() {
        return finish(session, &[]);
    }
    let store = session.store()?;
    let signals = Signals::catch()?;
    let all = launches(&store)?;
    let mut rows = Vec::new();
    for launched in &all {
        let state = match launched.here {
            false => "elsewhere",
            true => {
                let state = session
                    .tools_of(&store, launched)
                    .map(|tools| Launcher::new(tools, &store, &session.progress, &signals))
                    .and_then(|launcher| Ok(launcher.state(launched)?));
                match state {
                    Ok(Some(State::Running)) => "running",
                    Ok(Some(State::Stopped)) => "stopped",
                    Ok(Some(State::Unclear)) => "unclear",
                    // Its launcher is about to make it, or has just taken it down.
                    Ok(None) if launched.attended => "unclear",
                    Ok(None) => "gone",
                    Err(error) => {
                        let text = format!("cannot ask for {}: {error:#}", launched.machine);
                        session.progress.report(Event::Warn { text: &text });
                        "unclear"
                    }
                }
            }
        };
        rows.push((launched, state));
    }
    finish(session, &rows)
}

fn finish(session: &Session, rows: &[(&Launched, &str)]) -> Result<u8> {
    if session.global.format == Format::Json {
        for (launched, state) in rows {
            output::json(&Row {
                machine: &launched.machine,
                agent: &launched.agent,
                backend: launched.backend.to_string(),
                state,
                attended: launched.attended,
                ended: launched.ended,
                artifact: &launched.artifact,
                command: &launched.command,
                since: launched.since.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            })?;
        }
        return Ok(exit::OK);
    }
    if rows.is_empty() {
        output::line("no machines")?;
        return Ok(exit::OK);
    }
    let table: Vec<Vec<String>> = rows.iter().map(|(launched, state)| row(launched, state)).collect();
    let headers = ["MACHINE", "AGENT", "BACKEND", "STATE", "ARTIFACT", "SINCE", "COMMAND"];
    output::table(&headers, &[false; 7], &table)?;
    Ok(exit::OK)
}

fn row(launched: &Launched, state: &str) -> Vec<String> {
    const COMMAND: usize = 40;
    let state = match launched.ended {
        Some(code) => format!("{state}, exit {code}"),
        None => state.to_owned(),
    };
    let mut command = launched.command.join(" ");
    if command.chars().count() > COMMAND {
        command = command.chars().take(COMMAND - 1).chain(['…']).collect();
    }
    vec![
        launched.machine.clone(),
        launched.agent.clone(),
        launched.backend.to_string(),
        state,
        launched.artifact.chars().take(12).collect(),
        format::ago(launched.since.min(SystemTime::now())),
        command,
    ]
}
