//! `cache stats`: hits and misses, and what the hits have saved.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use serde::Serialize;
use smolcellar_store::{RunStat, StageStat};

use crate::args::{CacheStats, StatsBy};
use crate::exit;
use crate::format;
use crate::output::{self, Format};
use crate::session::Session;

/// Sums of stages.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
struct Sum {
    hits: u64,
    misses: u64,
    skipped: u64,
    /// Milliseconds that hits did not take.
    saved_millis: u64,
    /// Milliseconds that misses took.
    spent_millis: u64,
    /// Bytes that hits did not make again.
    saved_bytes: u64,
    /// Bytes that misses made.
    written_bytes: u64,
}

/// One line of JSON.
#[derive(Serialize)]
struct Row<'a> {
    /// The stage, agent or day; "total" for all of them.
    by: &'a str,
    #[serde(flatten)]
    sum: &'a Sum,
}

pub(super) fn run(session: &Session, args: &CacheStats) -> Result<u8> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let since = args.since.map_or(0, |age| now.saturating_sub(age).as_secs());
    let runs = session.store()?.runs(since)?;
    let (rows, total) = add_up(&runs, args.by);
    if session.global.format == Format::Json {
        for (by, sum) in &rows {
            output::json(&Row { by, sum })?;
        }
        output::json(&Row { by: "total", sum: &total })?;
        return Ok(exit::OK);
    }
    if runs.is_empty() {
        output::line("no runs yet")?;
        return Ok(exit::OK);
    }
    let row = |(by, sum): &(String, Sum)| {
        vec![
            by.clone(),
            sum.hits.to_string(),
            sum.misses.to_string(),
            format!("{:.0} %", 100.0 * sum.hits as f64 / (sum.hits + sum.misses).max(1) as f64),
            time(sum.saved_millis),
            time(sum.spent_millis),
            format::bytes(sum.saved_bytes),
            format::bytes(sum.written_bytes),
        ]
    };
    let all: Vec<_> = rows.iter().chain([&("total".to_owned(), total)]).map(row).collect();
    let by = match args.by {
        StatsBy::Stage => "STAGE",
        StatsBy::Agent => "AGENT",
        StatsBy::Day => "DAY",
    };
    output::table(
        &[by, "HITS", "MISSES", "HIT RATE", "SAVED", "SPENT", "NOT MADE AGAIN", "MADE"],
        &[false, true, true, true, true, true, true, true],
        &all,
    )?;
    let first = runs.first().map_or(0, |run| run.at);
    let first = format::ago(UNIX_EPOCH.checked_add(Duration::from_secs(first)).unwrap_or(UNIX_EPOCH));
    output::line(&format!("{}, the first {first}", format::count(runs.len(), "run", "runs")))?;
    Ok(exit::OK)
}

/// The sums, in the order of the stages, else of their names; and that of all.
fn add_up(runs: &[RunStat], by: StatsBy) -> (Vec<(String, Sum)>, Sum) {
    let (mut sums, mut total) = (BTreeMap::<(usize, String), Sum>::new(), Sum::default());
    for run in runs {
        for (index, stage) in run.stages.iter().enumerate() {
            let key = match by {
                StatsBy::Stage => (index, stage.stage.clone()),
                StatsBy::Agent => (0, run.agent.clone()),
                StatsBy::Day => (0, format::day(run.at)),
            };
            sums.entry(key).or_default().add(stage);
            total.add(stage);
        }
    }
    (sums.into_iter().map(|((_, name), sum)| (name, sum)).collect(), total)
}

impl Sum {
    fn add(&mut self, stage: &StageStat) {
        match stage.status.as_str() {
            "hit" => {
                self.hits = self.hits.saturating_add(1);
                self.saved_millis = self.saved_millis.saturating_add(stage.saved_millis);
                self.saved_bytes = self.saved_bytes.saturating_add(stage.bytes);
            }
            "miss" => {
                self.misses = self.misses.saturating_add(1);
                self.spent_millis = self.spent_millis.saturating_add(stage.millis);
                self.written_bytes = self.written_bytes.saturating_add(stage.bytes);
            }
            _ => {
                self.skipped = self.skipped.saturating_add(1);
                self.saved_millis = self.saved_millis.saturating_add(stage.saved_millis);
            }
        }
    }
}

/// A sum of times: "1.20 s", "3 min", "2 h".
fn time(millis: u64) -> String {
    match millis {
        0..60_000 => format::seconds(millis as f64 / 1e3),
        _ => format::age(Duration::from_millis(millis)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hits_save_and_misses_spend() {
        let stage = |name: &str, status: &str| StageStat {
            stage: name.into(),
            status: status.into(),
            millis: 10,
            saved_millis: 500,
            bytes: 7,
        };
        let run = |agent: &str, at, status: &str| RunStat {
            at,
            agent: agent.into(),
            stages: vec![stage("image", status), stage("tarball", status)],
        };
        let runs = [run("b", 5, "miss"), run("a", 6, "hit"), run("a", 90_000, "hit")];
        let (rows, total) = add_up(&runs, StatsBy::Stage);
        assert_eq!(rows.iter().map(|row| row.0.as_str()).collect::<Vec<_>>(), ["image", "tarball"]);
        let one = Sum {
            hits: 2,
            misses: 1,
            skipped: 0,
            saved_millis: 1000,
            spent_millis: 10,
            saved_bytes: 14,
            written_bytes: 7,
        };
        assert_eq!(rows[0].1, one);
        assert_eq!((total.hits, total.saved_bytes), (4, 28));
        let days: Vec<_> = add_up(&runs, StatsBy::Day).0.into_iter().map(|row| row.0).collect();
        assert_eq!(days, ["1970-01-01", "1970-01-02"]);
    }

    #[test]
    fn numbers_that_nobody_can_have_meant_add_up_to_the_most() {
        let stage = StageStat {
            stage: "image".into(),
            status: "hit".into(),
            millis: u64::MAX,
            saved_millis: u64::MAX,
            bytes: u64::MAX,
        };
        let run = RunStat { at: 5, agent: "a".into(), stages: vec![stage.clone(), stage] };
        assert_eq!(add_up(&[run.clone(), run], StatsBy::Agent).1.saved_millis, u64::MAX);
    }
}
