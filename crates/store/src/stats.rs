//! What runs did, over time: a line of JSON per run, appended.
//!
//! A run is noted without a lock and without any fsync: one `write` to a file
//! opened for appending is one piece on a local file system, and a line that
//! was torn or lost costs nothing but that line.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::bucket::Bucket;
use crate::error::{Result, StoreError};
use crate::fsio;
use crate::machines::list;
use crate::root::Store;

/// One file per so many seconds: thirty days.
const PERIOD: u64 = 30 * 86_400;
/// Older periods than this many are removed when a new one begins.
const PERIODS: u64 = 13;
/// A longer line is none of ours, in bytes.
const LONGEST: u64 = 16 << 10;

/// What one run did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunStat {
    /// When it ended: seconds since 1970.
    pub at: u64,
    /// The agent.
    pub agent: String,
    /// What each stage did.
    pub stages: Vec<StageStat>,
}

/// What one stage of a run did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageStat {
    /// Its name.
    pub stage: String,
    /// "hit", "miss" or "skipped".
    pub status: String,
    /// How long it took, in milliseconds.
    pub millis: u64,
    /// What it had taken when it last had to work, for a hit: what was saved.
    pub saved_millis: u64,
    /// The size of what it makes, in bytes: written by a miss, saved by a hit.
    pub bytes: u64,
}

impl Store {
    /// Notes a run. Where it cannot, it does not.
    pub fn note_run(&self, run: &RunStat) {
        let Ok(mut line) = serde_json::to_vec(run) else { return };
        line.push(b'\n');
        let path = self.stats_path(run.at / PERIOD);
        let new = !path.exists();
        if line.len() as u64 > LONGEST || (new && fsio::create_dirs(&self.bucket_dir(Bucket::Stats)).is_err())
        {
            return;
        }
        if let Ok(mut file) = fsio::append(&path) {
            let _ = file.write_all(&line);
        }
        if new {
            self.forget_before((run.at / PERIOD).saturating_sub(PERIODS));
        }
    }

    /// Every run that was noted since `since`, in seconds since 1970, oldest
    /// first. What is no note is left out.
    ///
    /// # Errors
    /// [`StoreError::Io`] if a file cannot be read.
    pub fn runs(&self, since: u64) -> Result<Vec<RunStat>> {
        let mut runs = Vec::new();
        for path in list(&self.bucket_dir(Bucket::Stats))? {
            let Some(period) = period_of(&path).filter(|period| (period + 1) * PERIOD > since) else {
                continue;
            };
            let mut reader = BufReader::new(fsio::open(&path)?);
            loop {
                let mut line = Vec::new();
                let read = reader.by_ref().take(LONGEST).read_until(b'\n', &mut line);
                if read.map_err(StoreError::io("read", &path))? == 0 {
                    break;
                }
                runs.extend(
                    serde_json::from_slice::<RunStat>(&line)
                        .ok()
                        .filter(|run| run.at >= since && run.at / PERIOD == period),
                );
            }
        }
        runs.sort_by_key(|run| run.at);
        Ok(runs)
    }

    fn forget_before(&self, first: u64) {
        for path in list(&self.bucket_dir(Bucket::Stats)).unwrap_or_default() {
            if period_of(&path).is_some_and(|period| period < first) {
                let _ = fs::remove_file(path);
            }
        }
    }

    fn stats_path(&self, period: u64) -> PathBuf {
        self.bucket_dir(Bucket::Stats).join(format!("{period}.jsonl"))
    }
}

fn period_of(path: &std::path::Path) -> Option<u64> {
    let period = path.file_name()?.to_str()?.strip_suffix(".jsonl")?.parse().ok();
    // Far beyond any clock, and too large to reckon with.
    period.filter(|period| *period < u64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::OpenOptions;

    fn run(at: u64) -> RunStat {
        let stage = StageStat {
            stage: "image".into(),
            status: "hit".into(),
            millis: 1,
            saved_millis: 2000,
            bytes: 10,
        };
        RunStat { at, agent: "a".into(), stages: vec![stage] }
    }

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("c"), OpenOptions::default()).unwrap();
        (dir, store)
    }

    #[test]
    fn runs_come_back_in_order_and_torn_lines_cost_only_themselves() {
        let (_dir, store) = store();
        assert_eq!(store.runs(0).unwrap(), []);
        for at in [PERIOD * 3, 5, PERIOD * 3 + 7] {
            store.note_run(&run(at));
        }
        let mut file = fsio::append(&store.stats_path(3)).unwrap();
        file.write_all(b"{\"at\": 1, \"ag\n\xff\xfe\n").unwrap();
        let far = serde_json::to_vec(&run(u64::MAX)).unwrap();
        file.write_all(&[far, b"\n".to_vec()].concat()).unwrap();
        file.write_all(&vec![b'x'; 3 * LONGEST as usize]).unwrap();
        file.write_all(b"\n").unwrap();
        store.note_run(&run(PERIOD * 3 + 9));
        let at = |since| store.runs(since).unwrap().iter().map(|run| run.at).collect::<Vec<_>>();
        assert_eq!(at(0), [5, PERIOD * 3, PERIOD * 3 + 7, PERIOD * 3 + 9]);
        assert_eq!(at(PERIOD * 3 + 1), [PERIOD * 3 + 7, PERIOD * 3 + 9]);
    }

    #[test]
    fn threads_at_once_lose_no_line() {
        let (_dir, store) = store();
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let store = &store;
                scope.spawn(move || (0..100).for_each(|n| store.note_run(&run(thread * 1000 + n))));
            }
        });
        assert_eq!(store.runs(0).unwrap().len(), 800);
    }

    #[test]
    fn after_a_year_the_oldest_go() {
        let (_dir, store) = store();
        for period in [0, 1, 20] {
            store.note_run(&run(period * PERIOD));
        }
        assert_eq!(store.runs(0).unwrap().len(), 1);
    }
}
