//! Progress on standard error: bars on a terminal, lines elsewhere, or JSON.

use std::collections::HashMap;
use std::io::{IsTerminal, stderr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::json;
use smolcellar_pipeline::{Observer, StageReport, StageStatus};
use smolcellar_store::{Event, Reporter};

use crate::format;
use crate::output::{self, Format};

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Style {
    /// Bars on a terminal, lines elsewhere.
    Auto,
    /// Lines.
    Plain,
    /// One JSON object per line.
    Json,
    /// Only warnings.
    Quiet,
}

/// How often a long task says a line where there are no bars.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Shows events and stages.
pub(crate) struct Progress {
    style: Style,
    format: Format,
    verbose: bool,
    bars: MultiProgress,
    tasks: Mutex<HashMap<String, Task>>,
}

struct Task {
    bar: Option<ProgressBar>,
    began: Instant,
    said: Instant,
    done: u64,
    total: Option<u64>,
}

impl Progress {
    pub(crate) fn new(style: Style, format: Format, verbose: bool) -> Self {
        let style = match style {
            Style::Auto if stderr().is_terminal() => Style::Auto,
            Style::Auto => Style::Plain,
            other => other,
        };
        Self { style, format, verbose, bars: MultiProgress::new(), tasks: Mutex::default() }
    }

    /// A line on standard error that does not break the bars.
    fn say(&self, kind: &str, text: &str) {
        match self.style {
            Style::Auto => self.bars.suspend(|| output::note(text)),
            Style::Plain => output::note(text),
            Style::Json => output::note(&json!({ "event": kind, "text": text }).to_string()),
            Style::Quiet if kind == "warning" => output::note(text),
            Style::Quiet => {}
        }
    }

    /// A line of data that does not break the bars. A closed output must not
    /// stop the work; the end of the command notices it.
    fn data(&self, text: &str) {
        self.bars.suspend(|| drop(output::line(text)));
    }

    fn stage_event(&self, agent: &str, report: &StageReport) {
        output::note(&json!({ "event": "stage", "agent": agent, "stage": report }).to_string());
    }

    fn begin(&self, name: &str, total: Option<u64>) {
        let bar = (self.style == Style::Auto).then(|| {
            let bar = self.bars.add(total.map_or_else(ProgressBar::new_spinner, ProgressBar::new));
            bar.set_style(style(match total {
                Some(_) => "  {msg:<12} [{bar:24}] {bytes}/{total_bytes} {bytes_per_sec} {eta}",
                None => "  {msg:<12} {spinner}",
            }));
            bar.set_message(name.to_owned());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        let now = Instant::now();
        let task = Task { bar, began: now, said: now, done: 0, total };
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), task);
        if self.style == Style::Json {
            output::note(&json!({ "event": "begin", "task": name, "total": total }).to_string());
        }
    }

    fn advance(&self, name: &str, bytes: u64) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(task) = tasks.get_mut(name) else { return };
        let first = task.done == 0;
        task.done += bytes;
        if let Some(bar) = &task.bar {
            if first && task.total.is_none() {
                // Not every task has bytes to tell of.
                bar.set_style(style("  {msg:<12} {spinner} {bytes} {bytes_per_sec}"));
            }
            bar.inc(bytes);
        } else if task.said.elapsed() >= LINE_EVERY {
            task.said = Instant::now();
            let (done, total) = (task.done, task.total);
            drop(tasks);
            if self.style == Style::Json {
                output::note(
                    &json!({ "event": "progress", "task": name, "done": done, "total": total }).to_string(),
                );
            } else {
                let of = total.map(|total| format!(" of {}", format::bytes(total))).unwrap_or_default();
                self.say("progress", &format!("  {name}: {}{of}", format::bytes(done)));
            }
        }
    }

    fn end(&self, name: &str) {
        let task = self.tasks.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        let Some(task) = task else { return };
        if let Some(bar) = task.bar {
            bar.finish_and_clear();
        }
        if self.style == Style::Json {
            let seconds = task.began.elapsed().as_secs_f64();
            output::note(
                &json!({ "event": "end", "task": name, "bytes": task.done, "seconds": seconds }).to_string(),
            );
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl Reporter for Progress {
    fn report(&self, event: Event<'_>) {
        match event {
            Event::Waiting { key, holder } => {
                let short: Vec<&str> = key.split('-').map(|part| part.get(..12).unwrap_or(part)).collect();
                self.say("waiting", &format!("waiting for {} held by {holder}", short.join("/")));
            }
            Event::Begin { task, total } => self.begin(task, total),
            Event::Advance { task, bytes } => self.advance(task, bytes),
            Event::End { task } => self.end(task),
            Event::Note { text } => self.say("note", text),
            Event::Warn { text } => self.say("warning", &format!("warning: {text}")),
        }
    }
}

impl Observer for Progress {
    fn stage(&self, agent: &str, report: &StageReport) {
        if self.style == Style::Json {
            self.stage_event(agent, report);
        }
        if self.format == Format::Human {
            self.data(&stage_line(report));
        }
    }

    fn line(&self, line: &str) {
        if self.verbose {
            self.say("output", &format!("  | {line}"));
        }
    }
}

/// Progress whose stage lines go to standard error.
pub(crate) struct OnStderr<'a>(&'a Progress);

impl Progress {
    /// For commands whose standard output is somebody else's.
    pub(crate) fn stages_on_stderr(&self) -> OnStderr<'_> {
        OnStderr(self)
    }
}

impl Reporter for OnStderr<'_> {
    fn report(&self, event: Event<'_>) {
        self.0.report(event);
    }
}

impl Observer for OnStderr<'_> {
    fn stage(&self, _: &str, report: &StageReport) {
        self.0.say("stage", &stage_line(report));
    }

    fn line(&self, line: &str) {
        self.0.line(line);
    }
}

/// Progress of one agent of several that are worked on at once: its name is
/// before all that is said.
pub(crate) struct OfAgent<'a> {
    progress: &'a Progress,
    agent: &'a str,
}

impl Progress {
    /// For commands that work on several agents at once.
    pub(crate) fn of_agent<'a>(&'a self, agent: &'a str) -> OfAgent<'a> {
        OfAgent { progress: self, agent }
    }
}

impl Reporter for OfAgent<'_> {
    fn report(&self, event: Event<'_>) {
        let named = |task: &str| format!("{} {task}", self.agent);
        match event {
            Event::Begin { task, total } => self.progress.report(Event::Begin { task: &named(task), total }),
            Event::Advance { task, bytes } => {
                self.progress.report(Event::Advance { task: &named(task), bytes });
            }
            Event::End { task } => self.progress.report(Event::End { task: &named(task) }),
            other => self.progress.report(other),
        }
    }
}

impl Observer for OfAgent<'_> {
    fn stage(&self, agent: &str, report: &StageReport) {
        match self.progress.style {
            Style::Json => self.progress.stage_event(agent, report),
            _ => self.progress.say("stage", &format!("{agent}: {}", stage_line(report).trim_start())),
        }
    }

    fn line(&self, line: &str) {
        self.progress.line(line);
    }
}

/// One stage as a line for people.
pub(crate) fn stage_line(report: &StageReport) -> String {
    let status = match report.status {
        StageStatus::Hit => "HIT",
        StageStatus::Miss => "MISS",
        StageStatus::Skipped => "SKIPPED",
    };
    let size = if report.bytes > 0 { format::bytes(report.bytes) } else { "-".into() };
    format!("  {:<12} {status:<7} {size:>11} {:>9}", report.name.as_str(), format::seconds(report.seconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use smolcellar_pipeline::StageName;

    #[test]
    fn stage_lines_stand_in_columns() {
        let line = |name, status, bytes, seconds| stage_line(&StageReport { name, status, bytes, seconds });
        let lines = [
            line(StageName::Image, StageStatus::Hit, 504_321, 0.3123),
            line(StageName::Smolmachine, StageStatus::Miss, 12_345_678_901, 123.4),
            line(StageName::Registry, StageStatus::Skipped, 0, 0.0),
        ];
        let expected = "  image        HIT       492.5 KiB    0.31 s\n  \
                        smolmachine  MISS       11.5 GiB  123.40 s\n  \
                        registry     SKIPPED           -    0.00 s";
        assert_eq!(lines.join("\n"), expected);
    }
}
