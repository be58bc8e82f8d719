//! What every command works with: the store, the configuration, progress.

use std::path::PathBuf;

use anyhow::{Context, Result};
use directories::ProjectDirs;
use smolcellar_smolvm::{InstallOptions, Runtime, RuntimeConfig};
use smolcellar_store::{OpenOptions, Store};

use crate::args::Global;
use crate::config::Config;
use crate::exit::Usage;
use crate::progress::Progress;

/// A command's surroundings.
pub(crate) struct Session {
    pub(crate) global: Global,
    pub(crate) progress: Progress,
}

impl Session {
    pub(crate) fn new(global: Global) -> Self {
        let progress = Progress::new(global.progress, global.format, global.verbose);
        Self { global, progress }
    }

    /// Where the cache is, or would be.
    pub(crate) fn cache_dir(&self) -> Result<PathBuf> {
        if let Some(dir) = &self.global.cache_dir {
            return std::path::absolute(dir)
                .with_context(|| format!("cannot use {} as cache", dir.display()));
        }
        let dirs = ProjectDirs::from("", "", "smolcellar");
        let missing = || Usage("there is no home folder; name a cache folder with --cache-dir".into());
        Ok(dirs.ok_or_else(missing)?.cache_dir().to_owned())
    }

    /// Opens the store.
    pub(crate) fn store(&self) -> Result<Store> {
        let options = OpenOptions { lock_timeout: self.global.lock_timeout };
        Ok(Store::open(&self.cache_dir()?, options)?)
    }

    /// The configuration that governs the working folder.
    pub(crate) fn config(&self) -> Result<Option<Config>> {
        Config::find(&std::env::current_dir().context("cannot tell the working folder")?)
    }

    /// The configuration, which there must be.
    pub(crate) fn need_config(&self) -> Result<Config> {
        self.config()?.ok_or_else(|| {
            let text = "no configuration found: add [workspace.metadata.smolcellar.agent.NAME] to Cargo.toml, or \
                        [agent.NAME] to a smolcellar.toml, here or in a folder above";
            Usage(text.into()).into()
        })
    }

    /// The runtime, installed first if there is none.
    pub(crate) fn runtime(&self, store: &Store) -> Result<Runtime> {
        let config = RuntimeConfig { dir: self.global.smolvm_dir.clone() };
        match smolcellar_smolvm::find(store, &self.progress, &config)? {
            Some(runtime) => Ok(runtime),
            None => self.install(store),
        }
    }

    /// Installs the pinned runtime.
    pub(crate) fn install(&self, store: &Store) -> Result<Runtime> {
        let options = InstallOptions { offline: self.global.offline };
        Ok(smolcellar_smolvm::install(store, &self.progress, &options)?)
    }
}
