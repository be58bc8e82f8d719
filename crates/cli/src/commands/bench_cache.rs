//! What the cache's own upkeep costs with ten thousand artifacts in it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use serde_json::json;
use smolcellar_store::gc::{self, Policy};
use smolcellar_store::{Bucket, Digest, MachineReceipt, StageReceipt, Store, fsio};

use crate::host;

/// How many artifacts there are.
pub(crate) const ENTRIES: usize = 10_000;

/// A cache of many small artifacts, and what looking at it takes.
pub(crate) struct ManyEntries {
    dir: PathBuf,
    store: Store,
}

impl ManyEntries {
    /// Makes it, unless it is there from a run before.
    pub(crate) fn new(dir: &Path) -> Result<Self> {
        let dir = dir.join("many");
        let store = Store::open(&dir, Default::default())?;
        if store.machine_keys()?.len() < ENTRIES {
            for number in 0..ENTRIES {
                add(&store, number)?;
            }
        }
        Ok(Self { dir, store })
    }

    /// `cache ls`, as a process.
    pub(crate) fn ls(&self) -> Result<Duration> {
        self.command(&["ls"])
    }

    /// `cache du`, as a process.
    pub(crate) fn du(&self) -> Result<Duration> {
        self.command(&["du"])
    }

    /// `cache gc --dry-run`, as a process, with a policy that half must go by.
    pub(crate) fn plan(&self) -> Result<Duration> {
        self.command(&["gc", "--dry-run", "--max-size", "40MB"])
    }

    fn command(&self, args: &[&str]) -> Result<Duration> {
        let args = [&["cache"], args].concat();
        let cache = [("SMOLCELLAR_CACHE_DIR", self.dir.as_os_str())];
        Ok(host::measure(&args, &self.dir, &cache)?.wall)
    }

    /// The automatic collection after a build, on a day that had one.
    pub(crate) fn not_due(&self) -> Result<Duration> {
        let plan = gc::Plan::default();
        // Notes the time, as one that ran does.
        self.store.collector(&smolcellar_store::Quiet)?.carry_out(&plan, None, &smolcellar_store::Quiet);
        let began = Instant::now();
        let due = self.store.gc_is_due(Duration::from_secs(86_400));
        let took = began.elapsed();
        anyhow::ensure!(!due, "it is due again, though it just was");
        Ok(took)
    }

    /// The same when it is due, and finds nothing to remove.
    pub(crate) fn nothing_to_do(&self) -> Result<Duration> {
        let began = Instant::now();
        let collector = self.store.try_collector()?.context("another process collects")?;
        let plan = gc::plan(&self.store.inventory()?, &Policy::default(), SystemTime::now());
        collector.carry_out(&plan, None, &smolcellar_store::Quiet);
        let took = began.elapsed();
        anyhow::ensure!(plan.remove.is_empty(), "there was something to remove");
        Ok(took)
    }
}

/// An artifact of four KiB with its receipts, as a build leaves them; without
/// the fsyncs of one.
fn add(store: &Store, number: usize) -> Result<()> {
    let inputs: BTreeMap<_, _> = (0..18).map(|n| (format!("input-{n}"), json!(number))).collect();
    let image = Digest::of(&number.to_le_bytes());
    let receipt = MachineReceipt {
        schema: MachineReceipt::SCHEMA,
        image,
        recipe: MachineReceipt::recipe_of(&inputs),
        inputs,
        size: 4096,
        sha256: Digest::of(&[0; 4096]),
        agent: format!("agent-{}", number % 50),
        built_at: number as u64,
        millis: 1,
    };
    let dir = store.bucket_dir(Bucket::Machines).join(image.hex());
    let of = |extension: &str| dir.join(format!("{}.{extension}", receipt.recipe.hex()));
    host::write_plain(&of("smolmachine"), &[0; 4096])?;
    host::write_plain(&of("json"), &fsio::seal(&receipt, &of("json"))?)?;
    host::write_plain(&of("stat"), b"{}")?;
    let stage = StageReceipt {
        schema: StageReceipt::SCHEMA,
        stage: "tarball".into(),
        image,
        inputs: BTreeMap::new(),
        blobs: Vec::new(),
        built_at: number as u64,
        millis: 1,
    };
    let path = store.bucket_dir(Bucket::Images).join(image.hex()).join("tarball.json");
    host::write_plain(&path, &fsio::seal(&stage, &path)?)
}
