//! What every command works with: the store, the configuration, progress.

use std::path::PathBuf;

use anyhow::{Context, Result};
use directories::ProjectDirs;
use smolcellar_launcher::{Backend, Cli, Engine, Launched, Tools};
use smolcellar_smolvm::{InstallOptions, PINNED_VERSION, Runtime, RuntimeConfig};
use smolcellar_store::{OpenOptions, Store};

use crate::args::Global;
use crate::commands::as_usage;
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
        let options = OpenOptions {
            lock_timeout: self.global.lock_timeout,
            allow_network: self.global.allow_network_cache,
        };
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

    /// The programs of a launch that is only planned: what there is, or what
    /// there would be. Reads only.
    pub(crate) fn assumed_tools(&self, store: Option<&Store>) -> Result<Tools> {
        let config = RuntimeConfig { dir: self.global.smolvm_dir.clone() };
        let known = match store {
            Some(store) => smolcellar_smolvm::known(store, &config)?,
            None => None,
        };
        let smolvm = match &known {
            Some(runtime) => Cli::new(runtime)?,
            None => Cli::assumed(PINNED_VERSION),
        };
        let choice = self.global.engine.as_deref();
        let engine = Engine::find(choice).unwrap_or_else(|_| Engine::assumed(choice));
        Ok(Tools { smolvm: Some(smolvm), engine: Some(engine) })
    }

    /// The programs of a launch. What it needs is there afterwards; the rest
    /// is taken along if it is there, to take down what others left.
    pub(crate) fn tools(&self, store: &Store, backend: Backend, needs_engine: bool) -> Result<Tools> {
        self.tools_with(store, backend, needs_engine, self.global.engine.as_deref())
    }

    /// The programs that a launch was made with.
    pub(crate) fn tools_of(&self, store: &Store, launched: &Launched) -> Result<Tools> {
        let engine = launched.engine().or(self.global.engine.as_deref());
        self.tools_with(store, launched.backend, launched.needs_engine(), engine)
    }

    fn tools_with(
        &self,
        store: &Store,
        backend: Backend,
        needs_engine: bool,
        engine: Option<&str>,
    ) -> Result<Tools> {
        let smolvm = match backend {
            Backend::Smolvm => Some(self.runtime(store)?),
            Backend::Docker => {
                let config = RuntimeConfig { dir: self.global.smolvm_dir.clone() };
                smolcellar_smolvm::known(store, &config).ok().flatten()
            }
        };
        let engine = Engine::find(engine);
        Ok(Tools {
            smolvm: smolvm.as_ref().map(Cli::new).transpose()?,
            engine: match needs_engine || backend == Backend::Docker {
                true => Some(engine?),
                false => engine.ok(),
            },
        })
    }

    /// The programs of launches that are there, to ask or to tidy with. None of
    /// them is needed, or installed.
    pub(crate) fn present_tools(&self, store: &Store) -> Tools {
        let config = RuntimeConfig { dir: self.global.smolvm_dir.clone() };
        let smolvm = smolcellar_smolvm::known(store, &config).ok().flatten();
        Tools {
            smolvm: smolvm.and_then(|runtime| Cli::new(&runtime).ok()),
            engine: Engine::find(self.global.engine.as_deref()).ok(),
        }
    }

    /// The launch of a machine, and the programs to go on with it.
    pub(crate) fn launched(&self, store: &Store, machine: &str) -> Result<(Launched, Tools)> {
        let launched = smolcellar_launcher::find(store, machine).map_err(as_usage)?;
        if !launched.here {
            let text = format!(
                "machine {} was launched by another user, or with another smolvm or engine (HOME, SMOLVM_DATA_DIR, \
                 DOCKER_HOST); go there",
                launched.machine
            );
            return Err(Usage(text).into());
        }
        let tools = self.tools_of(store, &launched)?;
        Ok((launched, tools))
    }

    /// Installs the pinned runtime.
    pub(crate) fn install(&self, store: &Store) -> Result<Runtime> {
        Ok(smolcellar_smolvm::install(store, &self.progress, &self.install_options())?)
    }

    pub(crate) fn install_options(&self) -> InstallOptions {
        InstallOptions { offline: self.global.offline, force: false }
    }
}
